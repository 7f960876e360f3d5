//! A gather that leaves as much as it can on the shards.
//!
//! The plain gather copies every relation of a statement to one shard, row by row. For large tables this reads the same statement as
//! query blocks ([`blocks`]) and takes three steps off that way:
//!
//! - A block that is right shard by shard ([`spread`]) runs on the shards: colocated tables stay in place, the other relations are
//!   sent to every shard as arrays, aggregates are divided ([`aggregates`]). Only its result is gathered.
//! - What is still copied is bounded by the keys of what was copied before ([`reduce`]), the small side first, and by what IN's
//!   subqueries give, which are run before ([`keys`]). So are subqueries that stand for one value ([`scalar`]).
//! - Tables that only add columns to groups are joined to the groups ([`late`]), and read for the keys that stages gave ([`first`]).
//! - Which way is cheaper is estimated from PostgreSQL's own statistics ([`sizes`], [`choose`]).
//!
//! PostgreSQL evaluates every expression, on a shard or over the gathered rows, so there is nothing of PostgreSQL's behaviour to
//! imitate. Since the steps follow one another, all of them read in one snapshot: the statement runs at REPEATABLE READ, in a cut of
//! its own where it is no part of a transaction block. In a block at READ COMMITTED the plain gather is used, whose
//! portals are all bound at once.

mod added;
mod aggregates;
mod blocks;
mod by_range;
mod calls;
mod choose;
mod copies;
mod first;
mod keys;
mod late;
mod looked_up;
mod order;
mod prune;
mod reduce;
mod run;
mod scalar;
mod sent;
mod shown;
pub(super) mod sizes;
mod spread;
mod text;
mod values;

use super::Reading;
use super::source::{self, Gathered, Resolution};
use crate::metadata::Metadata;
use crate::plan::engine::Engine;
use crate::rows::Rows;
use crate::statement::Statement;
use crate::{Fragment, Transaction};
use blocks::{Blocks, Role};
use choose::{Choice, Size, Stage};
use first::First;
use keys::KeyQuery;
use late::Late;
use pgherd_model::ServerError;
use pgherd_transaction::{Isolation, Mode};
use reduce::Bound;
use sqlparser::ast::Statement as Ast;
use std::ops::Range;

/// A relation that is read for itself.
#[derive(Clone)]
struct Fetch {
    source: Gathered,
    /// the stage that it is sent to the shards for; None when the rest of the statement reads it
    stage: Option<usize>,
    bounds: Vec<FetchBound>,
    /// it is bounded by what stages give, and read after them
    behind_stages: bool,
    /// the places of columns whose values bound others
    collects: Vec<usize>,
    /// columns that correlated subqueries look rows up by
    index: Vec<String>,
    /// conditions of the statement that all its rows meet
    known: Vec<Range<usize>>,
}

/// A column of a fetch whose values are among others that are known by then.
#[derive(Clone)]
struct FetchBound {
    /// which of the source's mentions
    slot: usize,
    column: String,
    by: By,
    /// the type of the values, as the home shard numbers it and as SQL
    by_type: (u32, String),
    /// how many values the column has in the whole relation, where that is known
    values: Option<f64>,
    /// the rows of the whole relation that bounds it
    by_rows: f64,
}

/// Who knows the values.
#[derive(Clone)]
enum By {
    /// an earlier fetch, in this column of its rows
    Fetch { at: usize, place: usize },
    /// a subquery
    Keys(usize),
    /// a stage, in this column of its rows, which is this output of its block
    Stage { stage: usize, place: usize, output: usize },
}

/// What will be done, in this order.
struct Plan<'a> {
    blocks: Blocks<'a>,
    resolutions: &'a [Resolution],
    keys: Vec<KeyQuery>,
    fetches: Vec<Fetch>,
    bounds: Vec<Bound>,
    stages: Vec<Stage>,
    /// a stage of which the first groups may do
    first: Option<First>,
    sizes: Vec<Size>,
    /// bytes that would travel, weighted, as far as that is known beforehand
    cost: f64,
}

/// With so many relations, the tables have to be twice as large as a single one: steps follow one another, and each costs its round
/// trips, however few rows it reads.
const RELATIONS: f64 = 20.0;

/// Whether a SELECT is one that is gathered so: in one snapshot, over large tables.
fn applies(
    statement: &Statement<'_>,
    reading: &Reading,
    rows: &[f64],
    transaction: &Transaction,
    engine: &Engine,
) -> bool {
    let level = transaction.mode().isolation;
    let alone = statement.alone && matches!(level, None | Some(Isolation::ReadCommitted));
    (alone || level == Some(Isolation::RepeatableRead))
        && matches!(statement.ast, Ast::Query(_))
        && !reading.resolutions.is_empty()
        && rows.iter().sum::<f64>() >= engine.staged_from_rows() * (1.0 + rows.len() as f64 / RELATIONS)
}

/// Runs a SELECT over large tables so, leaving as much as can be on the shards; None when it should be gathered plainly: then
/// nothing has been read. `rows` are those of [`Reading::rows`].
pub(crate) async fn select(
    statement: &Statement<'_>,
    reading: &Reading,
    rows: &[f64],
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Rows<'static>>, ServerError> {
    let one_snapshot = transaction.mode().isolation == Some(Isolation::RepeatableRead);
    if !applies(statement, reading, rows, transaction, engine)
        || !(one_snapshot || transaction.participants().next().is_none())
    {
        return Ok(None);
    }
    if !one_snapshot {
        let mode = Mode {
            isolation: Some(Isolation::RepeatableRead),
            ..transaction.mode().clone()
        };
        transaction.set_mode(mode);
    }
    let Some(described) = Described::of(statement, reading, rows, transaction, engine).await? else {
        return Ok(None);
    };
    let plan = described.plan(statement, reading, engine, None);
    let subqueries = scalar::find(&plan);
    if !subqueries.is_empty()
        && let Some(known) = scalar::values(&plan, &subqueries, statement, transaction, engine).await?
        && let Some(reading) = Reading::instead(statement, &known.text)?
    {
        let rows = run_instead(&known.statement(statement), &reading, transaction, engine).await?;
        return Ok(rows.map(|rows| rows.after(known.steps)));
    }
    run_better(plan, statement, transaction, engine).await
}

/// Runs what was read in the place of a statement, or of a part of it; None as [`select`].
async fn run_instead(
    statement: &Statement<'_>,
    reading: &Reading,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Rows<'static>>, ServerError> {
    match Described::instead(statement, reading, transaction, engine).await? {
        Some(described) => {
            let plan = described.plan(statement, reading, engine, None);
            run_better(plan, statement, transaction, engine).await
        }
        None => Ok(None),
    }
}

async fn run_better(
    plan: Plan<'_>,
    statement: &Statement<'_>,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Rows<'static>>, ServerError> {
    let later = Later::of(statement, &plan, transaction, engine).await?;
    let plan = better(plan, later.as_ref(), statement, engine);
    run::run(plan, statement, transaction, engine).await
}

/// Steps by name, with what their shards are asked.
type Shown = Vec<(String, Fragment)>;

/// The steps that [`select`] would take, each with what its shards are asked before anything is known of other steps' rows; None
/// where it would take none.
pub(crate) async fn steps(
    statement: &Statement<'_>,
    reading: &Reading,
    rows: &[f64],
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Shown>, ServerError> {
    if !applies(statement, reading, rows, transaction, engine) {
        return Ok(None);
    }
    let Some(described) = Described::of(statement, reading, rows, transaction, engine).await? else {
        return Ok(None);
    };
    let plan = described.plan(statement, reading, engine, None);
    let subqueries = scalar::find(&plan);
    if subqueries.is_empty() {
        return shown_better(plan, statement, transaction, engine).await;
    }
    let mut steps = Vec::new();
    for (i, &block) in subqueries.iter().enumerate() {
        let text = scalar::alone(&plan, block);
        let own = shown_instead(statement, &text, transaction, engine).await?;
        let own = own.into_iter().flatten();
        steps.extend(own.map(|(name, fragment)| (scalar::name(i, &name), fragment)));
    }
    let known = scalar::unknown(&plan, &subqueries, statement);
    let rest = shown_instead(&known.statement(statement), &known.text, transaction, engine).await?;
    Ok(rest.map(|rest| {
        steps.extend(rest);
        steps
    }))
}

async fn shown_instead(
    statement: &Statement<'_>,
    text: &str,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Shown>, ServerError> {
    let Some(reading) = Reading::instead(statement, text)? else {
        return Ok(None);
    };
    match Described::instead(statement, &reading, transaction, engine).await? {
        Some(described) => {
            let plan = described.plan(statement, &reading, engine, None);
            shown_better(plan, statement, transaction, engine).await
        }
        None => Ok(None),
    }
}

async fn shown_better(
    plan: Plan<'_>,
    statement: &Statement<'_>,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Shown>, ServerError> {
    let later = Later::of(statement, &plan, transaction, engine).await?;
    Ok(better(plan, later.as_ref(), statement, engine).shown(statement))
}

/// What the shards say of what a SELECT reads, on which its plan depends.
struct Described {
    metadata: Metadata,
    sizes: Vec<Size>,
}

impl Described {
    /// Asks them. None where the SELECT is not gathered so.
    async fn of(
        statement: &Statement<'_>,
        reading: &Reading,
        rows: &[f64],
        transaction: &mut Transaction,
        engine: &Engine,
    ) -> Result<Option<Self>, ServerError> {
        let metadata = reading.metadata(statement, transaction, Some(engine)).await?;
        let is_own = |r: &Option<crate::metadata::Relation>| r.as_ref().is_some_and(|r| !r.is_system());
        if !metadata.text_is_exact || !metadata.functions.is_empty() || !metadata.relations.iter().all(is_own) {
            return Ok(None);
        }
        let (parsed, resolutions) = (&reading.parsed, &reading.resolutions);
        let each = |mention: usize| Some(mention);
        let sources = source::apart(statement, parsed, resolutions, &metadata, None, &each);
        let sizes = sizes::sizes(&sources, resolutions, rows, transaction).await?;
        Ok(Some(Self { metadata, sizes }))
    }

    /// The same for what the gateway has made of a statement.
    async fn instead(
        statement: &Statement<'_>,
        reading: &Reading,
        transaction: &mut Transaction,
        engine: &Engine,
    ) -> Result<Option<Self>, ServerError> {
        let rows = reading.rows(transaction, engine).await?;
        Self::of(statement, reading, &rows, transaction, engine).await
    }

    /// What will be done, as [`plan`] says.
    fn plan<'a>(
        &'a self,
        statement: &Statement<'_>,
        reading: &'a Reading,
        engine: &Engine,
        late: Option<f64>,
    ) -> Plan<'a> {
        let many_rows = engine.staged_from_rows() / 2.0;
        plan(statement, reading, &self.metadata, &self.sizes, many_rows, late)
    }
}

/// The statement with tables joined to its groups, as it is read.
struct Later {
    late: Late,
    reading: Reading,
    described: Described,
    /// about how many groups there are
    groups: f64,
}

impl Later {
    /// Looks for such tables; None where there are none of which many rows would be read.
    async fn of(
        statement: &Statement<'_>,
        plan: &Plan<'_>,
        transaction: &mut Transaction,
        engine: &Engine,
    ) -> Result<Option<Self>, ServerError> {
        let many_rows = engine.staged_from_rows() / 2.0;
        let are_many = |late: &Late| late.tables.iter().any(|&m| plan.sizes[m].rows > many_rows);
        let Some(late) = late::late(&plan.blocks, plan.resolutions).filter(are_many) else {
            return Ok(None);
        };
        let Some(reading) = Reading::instead(statement, &late.text)? else {
            return Ok(None);
        };
        let Some(described) = Described::instead(statement, &reading, transaction, engine).await? else {
            return Ok(None);
        };
        let most = |mentions: &[usize], rows: &dyn Fn(&Size) -> f64| {
            let rows = mentions.iter().map(|&m| rows(&plan.sizes[m]));
            rows.fold(0.0, f64::max)
        };
        let mut groups = most(&late.keyed, &|size| size.wanted);
        if late.keyed.len() == 1 {
            groups = groups.min(most(&late.tables, &|size| size.rows));
        }
        Ok(Some(Self {
            late,
            reading,
            described,
            groups,
        }))
    }

    /// Its plan, where the groups come from a stage.
    fn plan(&self, statement: &Statement<'_>, engine: &Engine) -> Option<Plan<'_>> {
        let read = self.late.first.as_ref().map_or(self.groups, |first| first.rows as f64);
        let mut plan = self.described.plan(statement, &self.reading, engine, Some(read));
        let is_groups = |stage: &Stage| plan.blocks.list[stage.block].role == Role::Derived;
        let stage = plan.stages.iter().position(is_groups)?;
        plan.cost += choose::cost_of_groups(self.groups, self.late.columns);
        plan.first = self.late.first.clone().map(|groups| First { stage, groups });
        Some(plan)
    }
}

/// The plan that is thought to cost less.
fn better<'a>(plan: Plan<'a>, later: Option<&'a Later>, statement: &Statement<'_>, engine: &Engine) -> Plan<'a> {
    let Some(later) = later else { return plan };
    let top = plan.stages.iter().find(|s| plan.blocks.list[s.block].role == Role::Top);
    let results = match top {
        Some(stage) if stage.partial => {
            choose::cost_of_groups(later.groups, plan.blocks.list[stage.block].select.projection.len())
        }
        _ => 0.0,
    };
    match later.plan(statement, engine) {
        Some(other) if other.cost < plan.cost + results => other,
        _ => plan,
    }
}

/// What will be done with relations of these sizes. With `late`, tables are joined to groups: the outer block stays whole, and about so
/// many rows of each of its tables are expected to be read.
fn plan<'a>(
    statement: &Statement<'_>,
    reading: &'a Reading,
    metadata: &'a Metadata,
    sizes: &[Size],
    many_rows: f64,
    late: Option<f64>,
) -> Plan<'a> {
    let (parsed, resolutions) = (&reading.parsed, reading.resolutions.as_slice());
    let blocks = Blocks::of(parsed, metadata);
    let bounds = reduce::bounds(&blocks);
    let parameter = |number: usize| {
        let oid = number.checked_sub(1).and_then(|i| statement.parameter_types.get(i));
        oid.is_some_and(|oid| (1..16384).contains(oid))
    };
    let mut choice = Choice {
        blocks: &blocks,
        resolutions,
        sizes,
        bounds: &bounds,
        parameter: &parameter,
        many_rows,
        stages: Vec::new(),
    };
    match late {
        Some(_) => choice.decide_inside(),
        None => choice.decide(),
    }
    let stage_of: Vec<Option<usize>> = (0..resolutions.len()).map(|m| order::stage_of(&choice, m)).collect();
    let stays = |m: usize| stage_of[m].is_some_and(|s| choice.stages[s].anchors[m].is_some());
    let number = |m: usize| match stage_of[m] {
        _ if stays(m) => None,
        Some(_) => Some(m + 1),
        None => Some(0),
    };
    let sources = source::apart(statement, parsed, resolutions, metadata, None, &number);
    let mentions: Vec<usize> = sources.iter().flat_map(|s| s.mentions.iter().copied()).collect();
    let keys = keys::find(&choice, &mentions);
    let fetches = order::in_order(sources, &stage_of, &keys, &choice);
    let unstaged: Vec<usize> = (0..resolutions.len()).filter(|&m| stage_of[m].is_none()).collect();
    let mut expected = sizes.to_vec();
    for &mention in &unstaged {
        expected[mention].wanted = expected[mention].wanted.min(late.unwrap_or(f64::INFINITY));
    }
    let cost = choice.cost(&unstaged, &expected);
    let stages = choice.stages;
    Plan {
        blocks,
        resolutions,
        keys,
        fetches,
        bounds,
        stages,
        first: None,
        sizes: sizes.to_vec(),
        cost,
    }
}
