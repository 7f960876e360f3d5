//! What is read behind the stages, once their results are known.
//!
//! Relations whose columns must equal a stage's output are read for the values that the stage gave. Where the statement wants the first
//! groups only, in an order that the groups themselves tell ([`super::late`]), they are read for those groups alone, ties included: if
//! these find as many partners as rows are wanted, no other group can be among the first. Otherwise everything is read.

use super::Fetch;
use super::added::Added;
use super::blocks::Blocks;
use super::choose::Stage;
use super::copies::{Kept, Keys};
use super::late::{FirstGroups, GROUPS};
use super::reduce::Bound;
use super::run::{Edits, Runner, Target, replace};
use super::{By, aggregates};
use crate::relay;
use crate::rows::Scratch;
use crate::{Transaction, edit::Edited};
use pgherd_model::{ServerError, quote_identifier};
use std::ops::Range;

/// The first groups of a stage.
pub(super) struct First {
    pub stage: usize,
    pub groups: FirstGroups,
}

/// The table on the scratch connection that has them.
const FIRST: &str = "pgherd_first";

/// A column that a stage gives unchanged.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub stage: usize,
    /// its place among the stage's columns, and among the block's outputs
    pub place: usize,
    pub output: usize,
    mention: usize,
    column: String,
}

impl Given {
    pub fn gives(&self, bound: &Bound) -> bool {
        self.mention == bound.by && self.column == bound.by_column
    }
}

/// The columns of relations that stages give unchanged, row by row or group by group.
pub(super) fn given(blocks: &Blocks<'_>, stages: &[Stage]) -> Vec<Given> {
    let mut all = Vec::new();
    for (number, stage) in stages.iter().enumerate() {
        let block = stage.block;
        let divided = match stage.partial {
            true => aggregates::partial(blocks, block, &[], &[]),
            false => aggregates::whole(blocks, block, &[]),
        };
        let (Some(divided), Some(groups), true) = (divided, blocks.groups(block), blocks.is_plain(block)) else {
            continue;
        };
        let projection = &blocks.list[block].select.projection;
        for (output, item) in projection.iter().enumerate() {
            let place = match stage.partial {
                true => {
                    let group = groups.iter().position(|g| super::blocks::item_expr(item) == Some(g));
                    group.and_then(|g| divided.groups.get(g).copied())
                }
                false => Some(output),
            };
            let column = blocks.output(block, output);
            if let (Some(place), Some((b, i, column))) = (place, column)
                && let Some(mention) = blocks.list[b].items[i].mention
            {
                all.push(Given {
                    stage: number,
                    place,
                    output,
                    mention,
                    column,
                });
            }
        }
    }
    all
}

impl Runner<'_, '_> {
    /// Reads what is bounded by stages' results; false where it was too much.
    pub async fn fetch_behind_stages(
        &mut self,
        fetches: &[Fetch],
        targets: &[Target],
        transaction: &mut Transaction,
        scratch: &mut Scratch,
    ) -> Result<bool, ServerError> {
        if fetches.is_empty() {
            return Ok(true);
        }
        let before = self.fetched.len();
        if let Some(first) = &self.plan.first {
            self.first_groups = self.make_first(first, targets, scratch).await?;
        }
        if !self.fetch_for_known(fetches, targets, transaction, scratch).await? {
            return Ok(false);
        }
        let Some(candidates) = self.first_groups else {
            return Ok(true);
        };
        let wanted = self.plan.first.as_ref().map_or(0, |first| first.groups.rows);
        if candidates < wanted || self.partners(targets, transaction, scratch).await? >= wanted {
            return Ok(true);
        }
        self.first_groups = None;
        let tables: Vec<String> = fetches
            .iter()
            .map(|f| format!("TRUNCATE pg_temp.{}", f.source.temporary))
            .collect();
        scratch.backend().simple(&tables.join("; ")).await?;
        self.fetched.truncate(before);
        self.kept.truncate(before);
        self.rows.truncate(before);
        self.fetch_for_known(fetches, targets, transaction, scratch).await
    }

    async fn fetch_for_known(
        &mut self,
        fetches: &[Fetch],
        targets: &[Target],
        transaction: &mut Transaction,
        scratch: &mut Scratch,
    ) -> Result<bool, ServerError> {
        self.stage_keys.clear();
        for bound in fetches.iter().flat_map(|f| &f.bounds) {
            if let By::Stage { stage, place, output } = bound.by
                && !self.stage_keys.contains_key(&(stage, place))
            {
                let keys = self.keys_of_stage((stage, place, output), targets, scratch).await?;
                if let Some(keys) = keys {
                    self.stage_keys.insert((stage, place), keys);
                }
            }
        }
        for fetch in fetches {
            let mut fetch = fetch.clone();
            self.fetch(&mut fetch, transaction, scratch).await?;
            if self.kept.last().is_some_and(|kept| kept.gave_up) {
                return Ok(false);
            }
            self.fetched.push(fetch);
        }
        Ok(true)
    }

    /// The different values of a stage's column, or of the first groups'.
    async fn keys_of_stage(
        &mut self,
        (stage, place, output): (usize, usize, usize),
        targets: &[Target],
        scratch: &mut Scratch,
    ) -> Result<Option<Keys>, ServerError> {
        let target = &targets[stage];
        if self.is_known(self.plan.stages[stage].block) || !target.binary {
            return Ok(None);
        }
        let first = self.first_groups.is_some() && self.plan.first.as_ref().is_some_and(|f| f.stage == stage);
        let names = self.plan.blocks.output_names(self.plan.stages[stage].block);
        let (column, table) = match (first, names) {
            (true, Some(names)) => (quote_identifier(&names[output]), FIRST),
            (true, None) => return Ok(None),
            (false, _) => (aggregates::column(place), target.name.as_str()),
        };
        let sql = format!("SELECT DISTINCT {column} FROM pg_temp.{table}");
        let backend = scratch.backend();
        relay::send(backend, &sql, &[], &[], &[1]).await?;
        let mut kept = Kept::new(1, false, &[0]);
        while let Some(batch) = relay::next_rows(backend).await? {
            kept.add(&batch.bytes).ok_or_else(crate::plan::merge::garbled)?;
            self.memory.count(&mut kept);
        }
        backend.drain().await?;
        self.memory.stays(&kept);
        Ok(kept.keys.remove(&0).filter(|keys| keys.count().is_some()))
    }

    /// Puts the first groups into a table of their own; how many there are. None where that cannot be done apart from the statement.
    async fn make_first(
        &self,
        first: &First,
        targets: &[Target],
        scratch: &mut Scratch,
    ) -> Result<Option<u64>, ServerError> {
        let Some(groups) = self.put_together(first.stage, targets, &[]) else {
            return Ok(None);
        };
        if groups.contains('$') {
            return Ok(None);
        }
        let (order, rows) = (&first.groups.order, first.groups.rows);
        let sql = format!(
            "CREATE TEMPORARY TABLE {FIRST} ON COMMIT DROP AS SELECT * FROM ({groups}) AS {GROUPS} \
             ORDER BY {order} FETCH FIRST {rows} ROWS WITH TIES; SELECT pg_catalog.count(*) FROM pg_temp.{FIRST}"
        );
        let results = scratch.backend().simple(&sql).await?;
        let count = results.last().and_then(|r| r.text(0, 0)).and_then(|n| n.parse().ok());
        Ok(count)
    }

    /// How many rows the statement would have without its limit, over what is known of the first groups.
    async fn partners(
        &self,
        targets: &[Target],
        transaction: &mut Transaction,
        scratch: &mut Scratch,
    ) -> Result<u64, ServerError> {
        let Some((edits, added)) = self.rest_edits(targets, transaction).await? else {
            return Ok(0);
        };
        let parsed = self.plan.blocks.parsed;
        let top = self.plan.blocks.list.iter().find(|b| b.role == super::Role::Top);
        let Some(clauses) = top.and_then(|top| super::text::clauses(parsed, top.span.start)) else {
            return Ok(0);
        };
        let piece = |range: &Range<usize>| super::text::edited(&parsed.text, range, &edits);
        let selection = clauses
            .selection
            .map_or(String::new(), |s| format!(" WHERE {}", piece(&s)));
        let sql = format!(
            "SELECT pg_catalog.count(*)::text FROM {}{selection}",
            piece(&clauses.from)
        );
        let (types, values) = added.with(self.statement, &sql, self.statement.snapshot.home());
        let backend = scratch.backend();
        relay::send(backend, &sql, &types, &values, &[]).await?;
        let lines = relay::lines(backend).await?;
        Ok(lines.first().and_then(|count| count.parse().ok()).unwrap_or(0))
    }

    /// What stands in the place of a stage's block: its rows, put together.
    pub fn put_together(&self, number: usize, targets: &[Target], edits: &[(Range<usize>, String)]) -> Option<String> {
        let (stage, target) = (&self.plan.stages[number], &targets[number]);
        let is_first = self.plan.first.as_ref().is_some_and(|first| first.stage == number);
        if is_first && self.first_groups.is_some() {
            return Some(format!("SELECT * FROM pg_temp.{FIRST}"));
        }
        let divided = match stage.partial {
            true => aggregates::partial(&self.plan.blocks, stage.block, &[], edits)?,
            false => aggregates::whole(&self.plan.blocks, stage.block, &[])?,
        };
        let mut sql = divided.instead.replace("{rows}", &format!("pg_temp.{}", target.name));
        for place in divided.sums {
            sql = sql.replace(&format!("{{type {place}}}"), &target.types[place]);
        }
        Some(sql)
    }

    /// What is left of the statement: its relations' temporary tables, and in place of each block what puts its rows together.
    pub async fn rest(
        &self,
        targets: &[Target],
        transaction: &mut Transaction,
    ) -> Result<Option<(Edited, Added)>, ServerError> {
        let edits = self.rest_edits(targets, transaction).await?;
        Ok(edits.map(|(edits, added)| (Edited::new(&self.plan.blocks.parsed.text, edits), added)))
    }

    async fn rest_edits(
        &self,
        targets: &[Target],
        transaction: &mut Transaction,
    ) -> Result<Option<(Edits, Added)>, ServerError> {
        let parsed = self.plan.blocks.parsed;
        let mut edits: Edits = self.known(None);
        for fetch in self.fetched.iter().filter(|f| f.stage.is_none()) {
            for &mention in &fetch.source.mentions {
                let alias = super::run::alias(self.plan, mention);
                let name = format!("pg_temp.{}{alias}", fetch.source.temporary);
                edits.push((self.plan.resolutions[mention].mention.span.clone(), name));
            }
        }
        if !crate::gather::clock::edits(parsed, "").is_empty() {
            let now = transaction.clock().await?.unwrap_or_default();
            edits.extend(crate::gather::clock::edits(parsed, &now));
        }
        let mut added = Added::behind(self.statement);
        replace(&mut edits, self.known_blocks(&mut added).into_iter());
        // Those inside others come first: they are part of what those become.
        let mut order: Vec<usize> = (0..self.plan.stages.len()).collect();
        let span = |s: usize| self.plan.blocks.list[self.plan.stages[s].block].span.clone();
        order.sort_by_key(|&s| span(s).len());
        for s in order {
            if self.is_known(self.plan.stages[s].block) {
                continue;
            }
            let Some(sql) = self.put_together(s, targets, &edits) else {
                return Ok(None);
            };
            replace(&mut edits, std::iter::once((span(s), sql)));
        }
        Ok(Some((edits, added)))
    }
}
