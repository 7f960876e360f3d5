//! Values that are known while a gather in stages runs: those that bound what is read next, and those of IN's subqueries.

use super::added::Added;
use super::copies::{Kept, Keys};
use super::keys::KeyQuery;
use super::run::{Edits, Runner, Target};
use super::sent::Instead;
use super::{By, FetchBound};
use crate::Transaction;
use crate::carrier::Carrier;
use crate::rows::Scratch;
use pgherd_model::ServerError;

impl Runner<'_, '_> {
    /// The values that a bound lets through, and how they travel.
    pub fn known_values(&self, bound: &FetchBound) -> Option<(&Keys, &Carrier)> {
        let (keys, type_oid) = match bound.by {
            By::Keys(query) => (self.keys[query].as_ref()?, self.plan.keys[query].type_oid),
            By::Fetch { at, place } => {
                let source = &self.fetched[at].source;
                let keys = self.kept[at].keys.get(&place)?;
                (keys, source.relation.columns[source.wanted[place]].type_oid)
            }
            By::Stage { stage, place, .. } => (self.stage_keys.get(&(stage, place))?, bound.by_type.0),
        };
        keys.count()?;
        Some((keys, self.types.get(type_oid)?))
    }

    /// About what part of the rows a bound lets through.
    pub fn share(&self, bound: &FetchBound) -> Option<f64> {
        let count = self.known_values(bound)?.0.count()? as f64;
        Some(match (bound.values, &bound.by) {
            (Some(values), _) => count / values.max(1.0),
            (None, By::Keys(_) | By::Stage { .. }) => 0.0,
            (None, By::Fetch { at, .. }) => self.rows[*at] as f64 / bound.by_rows.max(1.0),
        })
    }

    /// Runs a subquery of IN; None where it has too many values.
    pub async fn key_query(
        &mut self,
        query: &KeyQuery,
        transaction: &mut Transaction,
        scratch: &mut Scratch,
    ) -> Result<Option<Keys>, ServerError> {
        let target = Target {
            name: String::new(),
            types: Vec::new(),
            binary: true,
        };
        let mut fragments = Vec::new();
        for &shard in &query.stage.shards {
            match self.fragment(
                &query.stage,
                &target,
                shard,
                &Instead::default(),
                &Added::behind(self.statement),
            ) {
                Some(fragment) => fragments.push(fragment),
                None => return Ok(None),
            }
        }
        let mut kept = Kept::new(0, false, &[0]);
        let what = self.plan.name_of_keys(query);
        let rows = self
            .read(what, &fragments, None, &mut kept, transaction, scratch)
            .await?;
        self.memory.stays(&kept);
        tracing::debug!(relation = query.mention, column = query.column, rows, "keys");
        Ok(kept.keys.remove(&0).filter(|keys| keys.count().is_some()))
    }

    /// Whether a block is, or is in, a subquery whose values are known.
    pub fn is_known(&self, block: usize) -> bool {
        let list = &self.plan.blocks.list;
        let at = list[block].span.start;
        let mut known = self.plan.keys.iter().zip(&self.keys);
        known.any(|(query, keys)| keys.is_some() && list[query.stage.block].span.contains(&at))
    }

    /// What stands in the place of subqueries whose values are known.
    pub fn known_blocks(&self, added: &mut Added) -> Edits {
        let mut edits = Edits::new();
        for (query, keys) in self.plan.keys.iter().zip(&self.keys) {
            let known = keys.as_ref().zip(self.types.get(query.type_oid));
            if let Some((keys, carrier)) = known {
                let parameter = added.push(carrier, keys.array(carrier));
                let span = self.plan.blocks.list[query.stage.block].span.clone();
                edits.push((span, format!("SELECT pg_catalog.unnest({parameter})")));
            }
        }
        edits
    }
}
