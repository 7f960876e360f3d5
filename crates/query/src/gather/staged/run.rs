//! Runs the steps: each relation in its turn, then the blocks on the shards, then what is left of the statement over their rows.

use super::added::Added;
use super::aggregates::{self, Divided, column};
use super::by_range::ByRange;
use super::choose::Stage;
use super::copies::{Kept, Keys, Memory, Types};
use super::sent::{InPlace, Instead};
use super::{By, Fetch, Plan};
use crate::fragment;
use crate::gather::{load, source};
use crate::metadata;
use crate::plan::engine::Engine;
use crate::relay;
use crate::rows::{Rows, Scratch, Step};
use crate::statement::Statement;
use crate::{Fragment, Transaction};
use pgherd_model::{ServerError, ShardId, quote_identifier};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

pub(super) type Edits = Vec<(Range<usize>, String)>;

/// A stage's table on the scratch connection.
pub(super) struct Target {
    pub name: String,
    /// the columns' types as SQL
    pub types: Vec<String>,
    pub binary: bool,
}

pub(super) struct Runner<'a, 's> {
    pub plan: &'a Plan<'a>,
    pub statement: &'a Statement<'s>,
    pub types: Types,
    /// by key query, the values; None where they are too many
    pub keys: Vec<Option<Keys>>,
    /// by stage and place, the values that stages gave
    pub stage_keys: HashMap<(usize, usize), Keys>,
    /// how many groups can be among the first, where only these are looked at
    pub first_groups: Option<u64>,
    /// what has been read, how many rows it has, and what is kept of it
    pub fetched: Vec<Fetch>,
    pub rows: Vec<u64>,
    pub kept: Vec<Kept>,
    pub memory: Memory,
    pub steps: Vec<Step>,
}

/// Runs the plan; None where it turns out not to be exact, or to need too much memory: then the statement can be gathered.
pub(super) async fn run(
    mut plan: Plan<'_>,
    statement: &Statement<'_>,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Rows<'static>>, ServerError> {
    let (home, who) = (statement.snapshot.home(), transaction.who().clone());
    let mut scratch = Scratch::new(transaction.shards().checkout(home, &who).await?);
    let mut setup = crate::gather::begin_copies_sql(statement);
    for fetch in plan.fetches.iter().filter(|f| f.stage.is_none()) {
        setup.push_str("; ");
        setup.push_str(&fetch.source.create_sql());
    }
    scratch.backend().simple(&setup).await?;
    let mut columns: Vec<(u32, String)> = plan.fetches.iter().flat_map(types_that_travel).collect();
    columns.extend(plan.fetches.iter().flat_map(types_that_bound));
    columns.extend(plan.keys.iter().map(|query| (query.type_oid, query.type_sql.clone())));
    let types = Types::of(scratch.backend(), &columns).await?;
    let Some(targets) = targets(&plan, statement, &mut scratch).await? else {
        return Ok(None);
    };
    let fetches = std::mem::take(&mut plan.fetches);
    let (behind, fetches): (Vec<Fetch>, Vec<Fetch>) = fetches.into_iter().partition(|f| f.behind_stages);
    let mut runner = Runner {
        memory: Memory::new(engine, plan.stages.iter().map(|s| s.shards.len()).max().unwrap_or(0)),
        plan: &plan,
        statement,
        types,
        keys: Vec::new(),
        stage_keys: HashMap::new(),
        first_groups: None,
        fetched: Vec::new(),
        rows: Vec::new(),
        kept: Vec::new(),
        steps: Vec::new(),
    };
    for query in &plan.keys {
        let keys = runner.key_query(query, transaction, &mut scratch).await?;
        runner.keys.push(keys);
    }
    for mut fetch in fetches {
        runner.fetch(&mut fetch, transaction, &mut scratch).await?;
        if runner.kept.last().is_some_and(|kept| kept.gave_up) {
            return Ok(None);
        }
        runner.fetched.push(fetch);
    }
    for (number, (stage, target)) in plan.stages.iter().zip(&targets).enumerate() {
        if runner.is_known(stage.block) {
            continue;
        }
        if runner
            .stage(number, stage, target, transaction, &mut scratch)
            .await?
            .is_none()
        {
            return Ok(None);
        }
    }
    if !runner
        .fetch_behind_stages(&behind, &targets, transaction, &mut scratch)
        .await?
    {
        return Ok(None);
    }
    let edited = runner.rest(&targets, transaction).await?;
    let Some((edited, added)) = edited else {
        return Ok(None);
    };
    let home = statement.snapshot.home();
    super::super::bind(statement, &edited.text, &added.on(home), scratch.backend())?;
    relay::queue_execute(scratch.backend(), "")?;
    relay::sync(scratch.backend()).await?;
    let text = &runner.plan.blocks.parsed.text;
    let original = (statement.text == text).then(|| text.clone());
    let explain = move |error: ServerError| match &original {
        Some(original) => edited.map_back(original, error),
        None => error.with_position(None),
    };
    Ok(Some(Rows::scratch(scratch, Box::new(explain)).after(runner.steps)))
}

/// A nested loop over a copy of more rows than this is left out of the shards' plans: what they estimate without statistics may be
/// far too low, and a loop over a copy has no index to use.
pub(super) const FEW_ROWS: usize = 2_000;

/// The types of columns that pass through the gateway.
fn types_that_travel(fetch: &Fetch) -> Vec<(u32, String)> {
    let wanted = fetch.source.wanted.iter().enumerate();
    let travels = |(place, _): &(usize, &usize)| fetch.stage.is_some() || fetch.collects.contains(place);
    wanted
        .filter(travels)
        .map(|(_, &c)| {
            let column = &fetch.source.relation.columns[c];
            (column.type_oid, column.type_sql.clone())
        })
        .collect()
}

/// The types of columns that stages' results bound.
fn types_that_bound(fetch: &Fetch) -> Vec<(u32, String)> {
    let by_stage = fetch.bounds.iter().filter(|b| matches!(b.by, By::Stage { .. }));
    by_stage.map(|b| b.by_type.clone()).collect()
}

/// Makes the table for each stage's rows, with the types that PostgreSQL gives them; None where a partial result could not be
/// added up exactly.
async fn targets(
    plan: &Plan<'_>,
    statement: &Statement<'_>,
    scratch: &mut Scratch,
) -> Result<Option<Vec<Target>>, ServerError> {
    let mut divided = Vec::new();
    for (number, stage) in plan.stages.iter().enumerate() {
        let Some((own, sql)) = stage_sql(plan, stage, &[]) else {
            return Ok(None);
        };
        let name = format!("pgherd_stage_{}", number + 1);
        let create = format!("CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS {sql} WITH NO DATA");
        let (types, values) = fragment::parameters(statement, &create, statement.snapshot.home());
        let backend = scratch.backend();
        relay::send(backend, &create, &types, &values, &[]).await?;
        backend.drain().await?;
        divided.push((own, name));
    }
    if divided.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let names: Vec<String> = divided.iter().map(|(_, name)| format!("pg_temp.{name}")).collect();
    let metadata = metadata::read(scratch.backend(), &names, &[]).await?;
    let mut targets = Vec::new();
    for ((own, name), relation) in divided.into_iter().zip(metadata.relations) {
        let Some(relation) = relation else {
            return Ok(None);
        };
        let exact = |&place: &usize| {
            let column = relation.columns.get(place);
            column.is_some_and(|c| matches!(c.type_oid, 20 | 21 | 23 | 1700))
        };
        if !own.exact.iter().all(exact) {
            return Ok(None);
        }
        targets.push(Target {
            name,
            types: relation.columns.iter().map(|c| c.type_sql.clone()).collect(),
            binary: relation.columns.iter().all(|c| c.binary),
        });
    }
    Ok(Some(targets))
}

/// A stage's SELECT, with these names of relations.
pub(super) fn stage_sql(plan: &Plan<'_>, stage: &Stage, names: &[(Range<usize>, String)]) -> Option<(Divided, String)> {
    let own = match stage.partial {
        true => aggregates::partial(&plan.blocks, stage.block, names, &[])?,
        false => aggregates::whole(&plan.blocks, stage.block, names)?,
    };
    let parsed = plan.blocks.parsed;
    let clauses = super::text::clauses(parsed, plan.blocks.list[stage.block].span.start)?;
    let piece = |range: &Range<usize>| super::text::edited(&parsed.text, range, names);
    let items: Vec<String> = own
        .select
        .iter()
        .enumerate()
        .map(|(place, sql)| format!("{sql} AS {}", column(place)))
        .collect();
    let distinct = if own.distinct { "DISTINCT " } else { "" };
    let selection = clauses
        .selection
        .map_or(String::new(), |s| format!(" WHERE {}", piece(&s)));
    let sql = format!(
        "SELECT {distinct}{} FROM {}{selection}{}",
        items.join(", "),
        piece(&clauses.from),
        own.tail
    );
    Some((own, sql))
}

/// ` AS "name"` for a relation that has no alias of its own.
pub(super) fn alias(plan: &Plan<'_>, mention: usize) -> String {
    let mention = &plan.resolutions[mention].mention;
    match mention.alias {
        Some(_) => String::new(),
        None => format!(" AS {}", quote_identifier(&mention.name)),
    }
}

/// Adds what a stage's tables that stay in place are called on a shard, each with a condition if it has one; returns their fences.
pub(super) fn anchored(
    plan: &Plan<'_>,
    stage: &Stage,
    shard: ShardId,
    bounds: &HashMap<usize, InPlace>,
    names: &mut Edits,
) -> Option<Vec<Arc<str>>> {
    let mut fences: Vec<Arc<str>> = Vec::new();
    for (mention, resolution) in plan.resolutions.iter().enumerate() {
        let (Some(_), Some(table)) = (&stage.anchors[mention], &resolution.table) else {
            continue;
        };
        let all: Vec<_> = table.sharded()?.ranges.ranges().iter().map(|r| r.id).collect();
        let place = fragment::places(table, &all)?.into_iter().find(|p| p.shard == shard)?;
        for fence in place.fences {
            if !fences.contains(&fence) {
                fences.push(fence);
            }
        }
        let rows = match bounds.get(&mention) {
            Some(bound) => format!("(SELECT * FROM {} WHERE {})", place.relation, bound.condition),
            None => place.relation,
        };
        let name = format!("{rows}{}", alias(plan, mention));
        names.push((resolution.mention.span.clone(), name));
    }
    Some(fences)
}

impl Runner<'_, '_> {
    /// Reads a relation: into a temporary table, or for the shards; and the keys that bound others.
    pub async fn fetch(
        &mut self,
        fetch: &mut Fetch,
        transaction: &mut Transaction,
        scratch: &mut Scratch,
    ) -> Result<(), ServerError> {
        let mut added = Added::behind(self.statement);
        let mut looking_up = None;
        for slot in 0..fetch.source.mentions.len() {
            // One list, the one that spares the most: with several, an index over both columns would be asked for every pair.
            let own = fetch.bounds.iter().filter(|b| b.slot == slot);
            let known = own
                .filter_map(|bound| Some((self.share(bound)?, bound, self.known_values(bound)?)))
                .filter(|(share, ..)| *share <= super::order::ALMOST_ALL);
            if let Some((_, bound, (keys, carrier))) = known.min_by(|(a, ..), (b, ..)| a.total_cmp(b)) {
                let mention = fetch.source.mentions[slot];
                let table = self.plan.resolutions[mention].table.as_deref();
                let by_range = table.and_then(|t| ByRange::of(t, &bound.column, carrier.element()));
                let array = match by_range {
                    Some(by_range) => keys.by_range(carrier, by_range, &fetch.source.shards()),
                    None => keys.array(carrier),
                };
                let parameter = added.push(carrier, array);
                let name = quote_identifier(&bound.column);
                fetch.source.filters[slot].push(format!("{name} = ANY ({parameter})"));
                looking_up = self.looking_up(fetch, bound, carrier, &parameter);
            }
        }
        let mut fragments = fetch.source.fragments(self.statement);
        for fragment in &mut fragments {
            (fragment.parameter_types, fragment.parameters) = match fragment.sql.contains('$') {
                true => added.with(self.statement, &fragment.sql, fragment.shard),
                false => (Vec::new(), Vec::new()),
            };
        }
        let mut what = self.plan.name_of_fetch(fetch, &self.fetched);
        if let Some(others) = looking_up
            && self.take_cheaper(&mut fragments, others, transaction).await?
        {
            what.push_str(", each looked up");
        }
        let binary = fetch.source.binary;
        let collects = if binary { fetch.collects.clone() } else { Vec::new() };
        let mut kept = Kept::new(fetch.source.wanted.len(), fetch.stage.is_some(), &collects);
        let copy = fetch.stage.is_none().then(|| (fetch.source.copy_sql(), binary));
        let rows = self
            .read(what, &fragments, copy, &mut kept, transaction, scratch)
            .await?;
        self.memory.stays(&kept);
        tracing::debug!(relation = %fetch.source.relation.name, stage = ?fetch.stage, rows, bounds = added.count(), "read");
        if fetch.stage.is_none() {
            let mut finish = fetch.source.finish_sql(rows);
            if !fetch.index.is_empty() && rows > 100 {
                let columns: Vec<_> = fetch.index.iter().map(|c| quote_identifier(c)).collect();
                finish.insert(
                    0,
                    format!(
                        "CREATE INDEX ON pg_temp.{} ({})",
                        fetch.source.temporary,
                        columns.join(", ")
                    ),
                );
            }
            if !finish.is_empty() {
                scratch.backend().simple(&finish.join("; ")).await?;
            }
        }
        self.kept.push(kept);
        self.rows.push(rows);
        Ok(())
    }

    /// Runs a block on its shards and gathers what they give. None where a type cannot travel.
    async fn stage(
        &mut self,
        number: usize,
        stage: &Stage,
        target: &Target,
        transaction: &mut Transaction,
        scratch: &mut Scratch,
    ) -> Result<Option<()>, ServerError> {
        let mut added = Added::behind(self.statement);
        let Some(sent) = self.sent(number, stage, &mut added) else {
            return Ok(None);
        };
        let mut bounds = HashMap::new();
        if sent.most_rows > FEW_ROWS {
            if !self.statement.alone {
                return Ok(None);
            }
            bounds = self.bounds_in_place(stage, &sent);
            for &shard in &stage.shards {
                let backend = transaction.participant(shard).await?;
                backend.queue_silent("SET LOCAL enable_nestloop = off");
                // A worker would not share a hash table that is made of a copy.
                transaction.spare_workers(shard);
            }
        }
        let instead = Instead {
            copies: sent.copies,
            bounds,
            known_blocks: self.known_blocks(&mut added),
        };
        let mut fragments = Vec::new();
        for &shard in &stage.shards {
            let Some(fragment) = self.fragment(stage, target, shard, &instead, &added) else {
                return Ok(None);
            };
            fragments.push(fragment);
        }
        let columns: Vec<String> = (0..target.types.len()).map(column).collect();
        let format = if target.binary { "binary" } else { "text" };
        let copy = format!(
            "COPY pg_temp.{} ({}) FROM STDIN (FORMAT {format})",
            target.name,
            columns.join(", ")
        );
        let mut kept = Kept::new(0, false, &[]);
        let what = self.plan.name_of_stage(number, &instead.bounds, &sent.by_range);
        let copy = Some((copy, target.binary));
        let rows = self
            .read(what, &fragments, copy, &mut kept, transaction, scratch)
            .await?;
        tracing::debug!(
            number,
            rows,
            partial = stage.partial,
            sql = fragments.first().map_or("", |f| &f.sql),
            "stage"
        );
        if rows >= source::ANALYZE_ROWS {
            scratch
                .backend()
                .simple(&format!("ANALYZE pg_temp.{}", target.name))
                .await?;
        }
        Ok(Some(()))
    }

    /// Conditions that hold anyway, for what reads the relations of this stage, or of none.
    pub fn known(&self, stage: Option<usize>) -> Edits {
        let own = self.fetched.iter().filter(|f| f.stage == stage);
        own.flat_map(|f| f.known.iter().map(|place| (place.clone(), "TRUE".to_owned())))
            .collect()
    }

    /// What one shard runs of a stage.
    pub fn fragment(
        &self,
        stage: &Stage,
        target: &Target,
        shard: ShardId,
        instead: &Instead,
        added: &Added,
    ) -> Option<Fragment> {
        let mut names: Edits = instead.copies.clone();
        let fences = anchored(self.plan, stage, shard, &instead.bounds, &mut names)?;
        replace(&mut names, instead.known_blocks.iter().cloned());
        let (_, sql) = stage_sql(self.plan, stage, &names)?;
        let (parameter_types, parameters) = match sql.contains('$') {
            true => added.with(self.statement, &sql, shard),
            false => (Vec::new(), Vec::new()),
        };
        Some(Fragment {
            shard,
            portal: "stage".into(),
            sql,
            parameter_types,
            parameters,
            result_formats: vec![i16::from(target.binary)],
            fences,
        })
    }

    /// Executes fragments on all their shards at once and takes their rows in turn; how many there were. With `copy`, a COPY and
    /// whether it is binary, they also go into a table of the scratch connection.
    pub async fn read(
        &mut self,
        what: String,
        fragments: &[Fragment],
        copy: Option<(String, bool)>,
        kept: &mut Kept,
        transaction: &mut Transaction,
        scratch: &mut Scratch,
    ) -> Result<u64, ServerError> {
        transaction.open_cut(fragments).await?;
        let mut step = Step {
            what,
            rows: 0,
            bytes: 0,
        };
        let read = async {
            relay::execute_all(fragments, transaction).await?;
            if let Some((copy, binary)) = &copy {
                load::open_copy(scratch.backend(), copy, *binary).await?;
            }
            for fragment in fragments {
                let backend = transaction.participant(fragment.shard).await?;
                while let Some(batch) = relay::next_rows(backend).await? {
                    step.rows += batch.rows as u64;
                    step.bytes += batch.bytes.len() as u64;
                    if !kept.is_empty() {
                        kept.add(&batch.bytes).ok_or_else(crate::plan::merge::garbled)?;
                        self.memory.count(kept);
                    }
                    if let Some((_, binary)) = &copy {
                        load::put_rows(scratch.backend(), batch, *binary).await?;
                    }
                }
            }
            if let Some((_, binary)) = &copy {
                load::close_copy(scratch.backend(), *binary).await?;
            }
            Ok::<(), ServerError>(())
        };
        let read = read.await;
        relay::finish(transaction, read.is_ok()).await?;
        read?;
        let rows = step.rows;
        self.steps.push(step);
        Ok(rows)
    }
}

/// Adds edits of larger pieces: those of pieces inside them go.
pub(super) fn replace(edits: &mut Edits, with: impl Iterator<Item = (Range<usize>, String)>) {
    for (own, sql) in with {
        edits.retain(|(inner, _)| !(own.start <= inner.start && inner.end <= own.end));
        edits.push((own, sql));
    }
}
