//! What is sent to a stage's shards: rows of small relations as arrays, which also bound what is read of the tables that stay in place.

use super::added::{Added, Array};
use super::by_range;
use super::choose::Stage;
use super::run::{Edits, Runner, alias};
use crate::carrier::Carrier;
use pgherd_model::quote_identifier;
use std::collections::HashMap;

/// A bound that lets a larger part of the rows through is not worth looking at every row.
const SELECTIVE: f64 = 0.3;

/// Rows that are sent along.
pub(super) struct Sent {
    /// what stands in the relations' place
    pub copies: Edits,
    /// the rows of the largest, on one shard
    pub most_rows: usize,
    /// mentions whose rows go only where their keys are, and the columns that tell
    pub by_range: Vec<(usize, String)>,
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
    pub fn sent(&mut self, number: usize, stage: &Stage, added: &mut Added) -> Option<Sent> {
        let mut sent = Sent {
            copies: self.known(Some(number)),
            most_rows: 0,
            by_range: Vec::new(),
            columns: HashMap::new(),
        };
        for (fetch, kept) in self.fetched.iter().zip(&mut self.kept) {
            let (Some(rows), true) = (&mut kept.rows, fetch.stage == Some(number)) else {
                continue;
            };
            let columns = fetch.source.wanted.iter().map(|&c| &fetch.source.relation.columns[c]);
            let carriers: Option<Vec<Carrier>> = columns.clone().map(|c| self.types.get(c.type_oid).cloned()).collect();
            let count = rows.rows;
            let carriers = carriers?;
            let tied = by_range::tied(stage, self.plan.resolutions, fetch);
            let (most_rows, arrays) = match tied {
                Some((place, by_range)) => {
                    let rows = std::mem::take(rows);
                    by_range.divide(&rows, place, &carriers, &stage.shards)
                }
                None => (count, rows.take(&carriers).1.into_iter().map(Array::Same).collect()),
            };
            sent.most_rows = sent.most_rows.max(most_rows);
            let numbers: Vec<String> = carriers
                .iter()
                .zip(arrays)
                .map(|(carrier, array)| added.push(carrier, array))
                .collect();
            if let Some((place, _)) = tied {
                let column = &fetch.source.relation.columns[fetch.source.wanted[place]];
                sent.by_range.push((fetch.source.mentions[0], column.name.clone()));
            }
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
