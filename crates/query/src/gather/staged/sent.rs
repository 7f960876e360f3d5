//! What is sent to a stage's shards: rows of small relations as arrays, which also bound what is read of the tables that stay in place.

use super::choose::Stage;
use super::run::{Added, Edits, Runner, alias};
use crate::carrier::Carrier;
use pgherd_model::quote_identifier;
use std::collections::HashMap;

/// A bound that lets a larger part of the rows through is not worth looking at every row.
const SELECTIVE: f64 = 0.3;

/// Rows that are sent along.
pub(super) struct Sent {
    /// what stands in the relations' place
    pub copies: Edits,
    /// the rows of the largest
    pub most_rows: usize,
    /// by mention and column, the parameter that has the values, and what part of the relation's rows they are of
    columns: HashMap<(usize, String), (String, f64)>,
}

/// What stands in the place of a stage's relations and subqueries.
#[derive(Default)]
pub(super) struct Instead {
    pub copies: Edits,
    /// by mention, of those that stay in place
    pub bounds: HashMap<usize, InPlace>,
    /// subqueries whose values are known
    pub known_blocks: Edits,
}

/// What bounds a table that stays in place.
pub(super) struct InPlace {
    pub condition: String,
    pub column: String,
    /// the mention that is sent along
    pub by: usize,
    share: f64,
}

impl Runner<'_, '_> {
    /// Takes the rows that were kept for a stage. None where a type cannot travel.
    pub fn sent(&mut self, number: usize, added: &mut Added) -> Option<Sent> {
        let mut sent = Sent {
            copies: self.known(Some(number)),
            most_rows: 0,
            columns: HashMap::new(),
        };
        for (fetch, kept) in self.fetched.iter().zip(&mut self.kept) {
            let (Some(rows), true) = (&mut kept.rows, fetch.stage == Some(number)) else {
                continue;
            };
            let columns = fetch.source.wanted.iter().map(|&c| &fetch.source.relation.columns[c]);
            let carriers: Option<Vec<Carrier>> = columns.clone().map(|c| self.types.get(c.type_oid).cloned()).collect();
            let count = rows.rows;
            sent.most_rows = sent.most_rows.max(count);
            let (types, arrays) = rows.take(&carriers?);
            let numbers: Vec<String> = types
                .into_iter()
                .zip(arrays)
                .map(|array| format!("${}", self.statement.parameters.len() + added.push(array)))
                .collect();
            let names: Vec<String> = columns.clone().map(|c| quote_identifier(&c.name)).collect();
            let sql = format!(
                "(SELECT * FROM unnest({}) AS u({}))",
                numbers.join(", "),
                names.join(", ")
            );
            for &mention in &fetch.source.mentions {
                let span = self.plan.resolutions[mention].mention.span.clone();
                sent.copies.push((span, format!("{sql}{}", alias(self.plan, mention))));
                let share = count as f64 / self.plan.sizes[mention].rows.max(1.0);
                for (column, number) in columns.clone().zip(&numbers) {
                    let value = (number.clone(), share);
                    sent.columns.insert((mention, column.name.clone()), value);
                }
            }
        }
        Some(sent)
    }

    /// By mention, what bounds a table that stays in place. PostgreSQL can use an index for it, or look rows up by it. Of arrays it knows
    /// nothing but their length, so it would rather make a hash table of a large table's rows than of theirs.
    pub fn bounds_in_place(&self, stage: &Stage, sent: &Sent) -> HashMap<usize, InPlace> {
        let mut least: HashMap<usize, InPlace> = HashMap::new();
        let is_anchor = |mention: usize| stage.anchors[mention].is_some();
        for bound in self.plan.bounds.iter().filter(|b| is_anchor(b.mention)) {
            let Some((number, share)) = sent.columns.get(&(bound.by, bound.by_column.clone())) else {
                continue;
            };
            // Of one type: PostgreSQL can make a hash table of the array then.
            let own = self.type_of(bound.mention, &bound.column);
            if *share > SELECTIVE || own.is_none() || own != self.type_of(bound.by, &bound.by_column) {
                continue;
            }
            if least.get(&bound.mention).is_none_or(|known| *share < known.share) {
                let in_place = InPlace {
                    condition: format!("{} = ANY ({number})", quote_identifier(&bound.column)),
                    column: bound.column.clone(),
                    by: bound.by,
                    share: *share,
                };
                least.insert(bound.mention, in_place);
            }
        }
        least
    }

    fn type_of(&self, mention: usize, column: &str) -> Option<u32> {
        let columns = &self.plan.blocks.metadata.relations[mention].as_ref()?.columns;
        columns.iter().find(|c| c.name == column).map(|c| c.type_oid)
    }
}
