//! The steps of a gather in stages as EXPLAIN shows them, and as they are counted when they run.

use super::choose::Stage;
use super::keys::KeyQuery;
use super::run::{Edits, anchored, stage_sql};
use super::sent::InPlace;
use super::{By, Fetch, Plan};
use crate::Fragment;
use crate::statement::Statement;
use pgherd_model::ShardId;
use std::collections::{BTreeMap, HashMap};

impl Plan<'_> {
    pub(super) fn name_of_keys(&self, query: &KeyQuery) -> String {
        format!("values of {}.{}", self.name(query.mention), query.column)
    }

    pub(super) fn name_of_fetch(&self, fetch: &Fetch, fetches: &[Fetch]) -> String {
        let mut name = fetch.source.relation.name.clone();
        let mut bounds: Vec<String> = Vec::new();
        for bound in &fetch.bounds {
            let by = match bound.by {
                By::Keys(query) => self.name(self.keys[query].mention),
                By::Fetch { at, .. } => &fetches[at].source.relation.name,
                By::Stage { stage, .. } => &format!("stage {}", stage + 1),
            };
            let said = format!("{} by {by}", bound.column);
            if !bounds.contains(&said) {
                bounds.push(said);
            }
        }
        if !bounds.is_empty() {
            name.push_str(&format!(", bounded in {}", bounds.join(" or ")));
        }
        match fetch.stage {
            Some(stage) => format!("{name}, for stage {}", stage + 1),
            None => name,
        }
    }

    pub(super) fn name_of_stage(
        &self,
        number: usize,
        bounds: &HashMap<usize, InPlace>,
        by_range: &[(usize, String)],
    ) -> String {
        let mut name = match self.stages[number].partial {
            true => format!("stage {}, partial results", number + 1),
            false => format!("stage {}", number + 1),
        };
        for (&mention, bound) in bounds.iter().collect::<BTreeMap<_, _>>() {
            let (table, by) = (self.name(mention), self.name(bound.by));
            name.push_str(&format!(", {table} bounded in {} by {by}", bound.column));
        }
        for (mention, column) in by_range {
            name.push_str(&format!(", {} sent by ranges of {column}", self.name(*mention)));
        }
        name
    }

    fn name(&self, mention: usize) -> &str {
        &self.resolutions[mention].mention.name
    }

    /// All steps with what their shards are asked; without the values and rows of earlier steps, which only a run knows. None where a
    /// block has no SQL.
    pub(super) fn shown(&self, statement: &Statement<'_>) -> Option<Vec<(String, Fragment)>> {
        let mut shown = Vec::new();
        for query in &self.keys {
            let name = self.name_of_keys(query);
            for &shard in &query.stage.shards {
                shown.push((name.clone(), self.shown_stage(&query.stage, shard)?));
            }
        }
        let fetches = |behind: bool| {
            let own = self.fetches.iter().filter(move |f| f.behind_stages == behind);
            own.flat_map(|fetch| {
                let name = self.name_of_fetch(fetch, &self.fetches);
                let fragments = fetch.source.fragments(statement).into_iter();
                fragments.map(move |fragment| (name.clone(), fragment))
            })
        };
        shown.extend(fetches(false));
        for (number, stage) in self.stages.iter().enumerate() {
            if self.keys.iter().any(|query| query.stage.block == stage.block) {
                continue;
            }
            for &shard in &stage.shards {
                shown.push((
                    self.name_of_stage(number, &HashMap::new(), &[]),
                    self.shown_stage(stage, shard)?,
                ));
            }
        }
        shown.extend(fetches(true));
        Some(shown)
    }

    /// A stage's SQL, in which relations that are sent along have the client's names.
    fn shown_stage(&self, stage: &Stage, shard: ShardId) -> Option<Fragment> {
        let mut names = Edits::new();
        let fences = anchored(self, stage, shard, &HashMap::new(), &mut names)?;
        Some(Fragment {
            shard,
            portal: String::new(),
            sql: stage_sql(self, stage, &names)?.1,
            parameter_types: Vec::new(),
            parameters: Vec::new(),
            result_formats: Vec::new(),
            fences,
        })
    }
}
