//! A gather that leaves as much as it can on the shards.
//!
//! The plain gather copies every relation of a statement to one shard, row by row. For large tables this reads the same statement as
//! query blocks ([`blocks`]) and takes three steps off that way:
//!
//! - A block that is right shard by shard ([`spread`]) runs on the shards: colocated tables stay in place, the other relations are
//!   sent to every shard as arrays, aggregates are divided ([`aggregates`]). Only its result is gathered.
//! - What is still copied is bounded by the keys of what was copied before ([`reduce`]): the small side first.
//! - Which way is cheaper is estimated from PostgreSQL's own statistics ([`sizes`], [`choose`]).
//!
//! PostgreSQL evaluates every expression, on a shard or over the gathered rows, so there is nothing of PostgreSQL's behaviour to
//! imitate. Since the steps follow one another, all of them read in one snapshot: the statement runs at REPEATABLE READ, in a cut of
//! its own where it is no part of a transaction block. In a block at READ COMMITTED the plain gather is used, whose
//! portals are all bound at once.

mod aggregates;
mod blocks;
mod calls;
mod choose;
mod copies;
mod prune;
mod reduce;
mod run;
mod sizes;
mod spread;
mod text;

use super::source::{self, Gathered, Resolution};
use crate::metadata::{self, Metadata};
use crate::plan::engine::Engine;
use crate::rows::Rows;
use crate::statement::Statement;
use crate::views::{self, ParsedQuery};
use crate::{Transaction, refusal};
use blocks::{Blocks, ColumnId, Role};
use choose::{Choice, Size, Stage, bounded};
use pgherd_model::ServerError;
use pgherd_transaction::{Isolation, Mode};
use reduce::Bound;
use sqlparser::ast::Statement as Ast;
use std::collections::HashMap;
use std::ops::Range;

/// A relation that is read for itself.
struct Fetch {
    source: Gathered,
    /// the stage that it is sent to the shards for; None when the rest of the statement reads it
    stage: Option<usize>,
    /// its columns' bounds: slot among the source's mentions, column, the fetch and the place of its column
    bounds: Vec<(usize, String, usize, usize)>,
    /// the places of columns whose values bound others
    collects: Vec<usize>,
    /// columns that correlated subqueries look rows up by
    index: Vec<String>,
    /// conditions of the statement that all its rows meet
    known: Vec<Range<usize>>,
}

/// What will be done, in this order.
struct Plan<'a> {
    blocks: Blocks<'a>,
    resolutions: &'a [Resolution],
    fetches: Vec<Fetch>,
    stages: Vec<Stage>,
}

/// Runs a SELECT so; None when it should be gathered plainly. Then nothing has been read.
pub(super) async fn select(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Rows<'static>>, ServerError> {
    let one_snapshot = transaction.mode().isolation == Some(Isolation::RepeatableRead);
    let alone = statement.alone
        && matches!(transaction.mode().isolation, None | Some(Isolation::ReadCommitted))
        && transaction.participants().next().is_none();
    if !(one_snapshot || alone) || !matches!(statement.ast, Ast::Query(_)) {
        return Ok(None);
    }
    // What is wrong with the statement is told by the plain gather.
    let Ok(expanded) = views::expand(statement, None) else {
        return Ok(None);
    };
    let Ok(parsed) = views::parse_query(&expanded.text) else {
        return Ok(None);
    };
    let Ok(resolutions) = source::resolve(statement, &parsed) else {
        return Ok(None);
    };
    if refusal::check(&parsed).is_err() || resolutions.is_empty() {
        return Ok(None);
    }
    let rows = sizes::total_rows(&resolutions, transaction, engine).await?;
    if rows.iter().sum::<f64>() < engine.staged_from_rows() {
        return Ok(None);
    }
    if alone {
        let mode = Mode {
            isolation: Some(Isolation::RepeatableRead),
            ..transaction.mode().clone()
        };
        transaction.set_mode(mode);
    }
    let names: Vec<String> = resolutions.iter().map(|r| r.lookup.clone()).collect();
    let home = transaction.participant(statement.snapshot.home()).await?;
    let metadata = metadata::read(home, &names, &parsed.words).await?;
    if !metadata.text_is_exact
        || !metadata.functions.is_empty()
        || metadata
            .relations
            .iter()
            .any(|r| r.as_ref().is_none_or(|r| r.is_system()))
    {
        return Ok(None);
    }
    let each = |mention: usize| Some(mention);
    let sources = source::apart(statement, &parsed, &resolutions, &metadata, None, &each);
    let sizes = sizes::sizes(&sources, &resolutions, &rows, transaction).await?;
    let plan = plan(statement, &parsed, &resolutions, &metadata, &sizes);
    run::run(plan, statement, &expanded, transaction).await
}

fn plan<'a>(
    statement: &Statement<'_>,
    parsed: &'a ParsedQuery,
    resolutions: &'a [Resolution],
    metadata: &'a Metadata,
    sizes: &[Size],
) -> Plan<'a> {
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
        stages: Vec::new(),
    };
    choice.decide();
    let stage_of: Vec<Option<usize>> = (0..resolutions.len()).map(|m| stage_of(&choice, m)).collect();
    let stays = |m: usize| stage_of[m].is_some_and(|s| choice.stages[s].anchors[m].is_some());
    let number = |m: usize| match stage_of[m] {
        _ if stays(m) => None,
        Some(_) => Some(m + 1),
        None => Some(0),
    };
    let sources = source::apart(statement, parsed, resolutions, metadata, None, &number);
    let fetches = in_order(&blocks, sources, &stage_of, sizes, &bounds, &choice);
    let stages = choice.stages;
    Plan {
        blocks,
        resolutions,
        fetches,
        stages,
    }
}

/// The stage that reads a mention: its block's, or that of the innermost stage around it where a subquery of its HAVING is a stage.
fn stage_of(choice: &Choice<'_>, mention: usize) -> Option<usize> {
    let inside = (0..choice.stages.len()).filter(|&s| choice.reads(&choice.stages[s], mention));
    inside.min_by_key(|&s| choice.blocks.list[choice.stages[s].block].span.len())
}

/// The sources, each behind those that bound it, with their bounds.
fn in_order(
    blocks: &Blocks<'_>,
    sources: Vec<Gathered>,
    stage_of: &[Option<usize>],
    sizes: &[Size],
    bounds: &[Bound],
    choice: &Choice<'_>,
) -> Vec<Fetch> {
    let mentions: Vec<usize> = sources.iter().flat_map(|s| s.mentions.iter().copied()).collect();
    let order = bounded(&mentions, sizes, bounds, &|m, c| choice.is_unique(m, c));
    let rows: HashMap<usize, f64> = order.iter().copied().collect();
    let mut sources = sources;
    sources.sort_by_key(|source| order.iter().rposition(|(m, _)| source.mentions.contains(m)));
    let mut fetches: Vec<Fetch> = Vec::new();
    for mut source in sources {
        let known = prune::known(blocks, &source);
        prune::prune(blocks, &mut source, &known);
        let mut fetch = Fetch {
            known,
            stage: stage_of[source.mentions[0]],
            bounds: Vec::new(),
            collects: Vec::new(),
            index: index(blocks, &source),
            source,
        };
        for (slot, &mention) in fetch.source.mentions.iter().enumerate() {
            for bound in bounds.iter().filter(|b| b.mention == mention) {
                let Some(by) = fetches.iter().position(|f| f.source.mentions.contains(&bound.by)) else {
                    continue;
                };
                // Nothing is gained where all values are there.
                if rows[&bound.by] > sizes[bound.by].rows * 0.7 && sizes[bound.by].rows >= sizes[mention].rows / 50.0 {
                    continue;
                }
                let other = &fetches[by].source;
                let place = other
                    .wanted
                    .iter()
                    .position(|&c| other.relation.columns[c].name == bound.by_column);
                if let Some(place) = place {
                    fetches[by].collects.push(place);
                    fetch.bounds.push((slot, bound.column.clone(), by, place));
                }
            }
        }
        fetch.source.distinct = fetch.stage.is_none() && only_existence(blocks, &fetch.source);
        fetches.push(fetch);
    }
    for fetch in &mut fetches {
        fetch.collects.sort_unstable();
        fetch.collects.dedup();
    }
    fetches
}

/// Whether a source's rows are only asked whether they are there: it stands alone in EXISTS and IN.
fn only_existence(blocks: &Blocks<'_>, source: &Gathered) -> bool {
    source.mentions.iter().all(|&mention| {
        blocks.list.iter().any(|block| {
            let alone = block.items.len() == 1 && block.items[0].mention == Some(mention);
            let plain = !block.aggregates && block.query.limit_clause.is_none() && !block.unclear;
            let no_groups =
                matches!(&block.select.group_by, sqlparser::ast::GroupByExpr::Expressions(l, _) if l.is_empty());
            alone
                && plain
                && no_groups
                && block.select.having.is_none()
                && block.query.with.is_none()
                && matches!(block.role, Role::Exists | Role::In { .. })
        })
    })
}

/// The columns by which correlated subqueries look up a source's rows, when all its mentions agree on them.
fn index(blocks: &Blocks<'_>, source: &Gathered) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (b, block) in blocks.list.iter().enumerate() {
        let own = |item: usize| block.items[item].mention.is_some_and(|m| source.mentions.contains(&m));
        if !matches!(block.role, Role::Scalar) || !(0..block.items.len()).any(own) {
            continue;
        }
        let mut columns: Vec<String> = Vec::new();
        let mut add = |a: &ColumnId, other: &ColumnId| {
            if a.0 == b && own(a.1) && other.0 != b && !columns.contains(&a.2) {
                columns.push(a.2.clone());
            }
        };
        for (a, c) in blocks.equalities(b) {
            add(&a, &c);
            add(&c, &a);
        }
        if !columns.is_empty() && found.is_empty() {
            found = columns;
        }
    }
    found
}
