//! Which of many keys a relation has: PostgreSQL can read the relation and keep what is among the keys, or look each key up.
//!
//! `SELECT DISTINCT k … WHERE k = ANY ($1)` is planned as the former where the keys are many, whatever the indexes; EXISTS leaves the choice
//! among joins. Which is cheaper depends on the table's indexes and size, so PostgreSQL is asked for its costs.

use super::run::Runner;
use super::{Fetch, FetchBound};
use crate::carrier::Carrier;
use crate::explain;
use crate::gather::source::Identity;
use crate::{Fragment, Transaction};
use pgherd_model::{ServerError, quote_identifier};

/// Fewer keys are not worth two questions.
const MANY_KEYS: usize = 1_000;
/// Of a larger part of the rows, reading all is the cheaper way.
const FEW_ROWS: f64 = 0.15;
const KEYS: &str = "pgherd_keys";

impl Runner<'_, '_> {
    /// The same fragments, in which each key is looked up; None where rows are more than the keys that bound them. `parameter`
    /// has these, and the bound is the last condition of the only mention.
    pub fn looking_up(
        &self,
        fetch: &Fetch,
        bound: &FetchBound,
        carrier: &Carrier,
        parameter: &str,
    ) -> Option<Vec<String>> {
        let source = &fetch.source;
        let ([wanted], [filters]) = (source.wanted.as_slice(), source.filters.as_slice()) else {
            return None;
        };
        let column = &source.relation.columns[*wanted];
        let is_key = column.name == bound.column && column.type_oid == carrier.element();
        let worth_asking = self.known_values(bound)?.0.count()? >= MANY_KEYS && self.share(bound)? <= FEW_ROWS;
        if !(is_key && worth_asking && source.distinct && source.binary) || source.identity != Identity::None {
            return None;
        }
        let name = quote_identifier(&column.name);
        let (_, others) = filters.split_last()?;
        let mut conditions = others.to_vec();
        conditions.push(format!("{name} = {KEYS}.{name}"));
        let conditions = conditions.join(" AND ");
        let sql = |relation: &str| {
            format!(
                "SELECT {KEYS}.{name} FROM pg_catalog.unnest({parameter}) AS {KEYS}({name}) \
                 WHERE EXISTS (SELECT FROM {relation} WHERE {conditions})"
            )
        };
        Some(source.places.iter().map(|place| sql(&place.relation)).collect())
    }

    /// Takes the other texts where PostgreSQL, on the first of the shards, thinks that they cost less; whether it does.
    pub async fn take_cheaper(
        &self,
        fragments: &mut [Fragment],
        others: Vec<String>,
        transaction: &mut Transaction,
    ) -> Result<bool, ServerError> {
        let (Some(first), Some(other)) = (fragments.first(), others.first()) else {
            return Ok(false);
        };
        let other = Fragment {
            sql: other.clone(),
            ..first.clone()
        };
        let own = cost(first, fragments.len(), transaction).await?;
        let look_up = cost(&other, fragments.len(), transaction).await?;
        let is_cheaper = own.zip(look_up).is_some_and(|(own, look_up)| look_up < own);
        if is_cheaper {
            for (fragment, sql) in fragments.iter_mut().zip(others) {
                fragment.sql = sql;
            }
        }
        Ok(is_cheaper)
    }
}

/// What PostgreSQL thinks that a fragment costs, which is for one of so many shards.
async fn cost(fragment: &Fragment, one_of: usize, transaction: &mut Transaction) -> Result<Option<f64>, ServerError> {
    let plan = explain::ask("EXPLAIN ", fragment, one_of, transaction).await?;
    Ok(plan
        .first()
        .and_then(|line| explain::estimate(line, explain::TOTAL_COST)))
}
