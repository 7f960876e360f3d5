//! Subqueries that stand for one value, and that the shards can answer where they are, are run first: the value takes their place.
//!
//! With `c_acctbal > (SELECT avg(c_acctbal) FROM customer)` nothing bounds what is read of the customers, as the subquery is asked over
//! what was gathered. As `c_acctbal > ($1)` it is a condition like any other, which the shards meet before anything travels.

use super::blocks::{Role, start_of};
use super::choose::{Stage, bounded, is_unique};
use super::run::FEW_ROWS;
use super::spread::subqueries;
use super::{Plan, run_instead};
use crate::Transaction;
use crate::gather::Reading;
use crate::plan::engine::Engine;
use crate::plan::row::{fields, messages};
use crate::rows::Step;
use crate::statement::Statement;
use bytes::Bytes;
use pgherd_model::ServerError;
use sqlparser::ast::{Expr, Visit, Visitor};
use std::ops::ControlFlow;

/// Types that a parameter stands for as well as a subquery does: no collation comes with them, and their binary format is the value.
/// (bool, int8, int2, int4, float4, float8, date, time, timestamp, timestamptz, interval, numeric)
const TYPES: [u32; 12] = [16, 20, 21, 23, 700, 701, 1082, 1083, 1114, 1184, 1186, 1700];
/// What EXPLAIN takes a value for, which it does not know.
const SOME_TYPE: u32 = 1700;

/// A statement with parameters in the place of subqueries.
pub(super) struct Known {
    pub text: String,
    parameter_types: Vec<u32>,
    parameters: Vec<(bool, Option<Bytes>)>,
    /// what was done for the values
    pub steps: Vec<Step>,
}

impl Known {
    /// The statement with these parameters.
    pub fn statement<'s>(&'s self, statement: &Statement<'s>) -> Statement<'s> {
        Statement {
            parameter_types: &self.parameter_types,
            parameters: &self.parameters,
            ..*statement
        }
    }
}

/// The blocks of such subqueries.
pub(super) fn find(plan: &Plan<'_>) -> Vec<usize> {
    let with_few_copies = plan.stages.iter().filter(|stage| has_few_copies(plan, stage));
    let blocks = with_few_copies.map(|stage| stage.block);
    blocks.filter(|&block| is_value(plan, block)).collect()
}

/// Whether few rows are sent along with a stage: more would be sent twice where the statement needs them as well, and change how the
/// shards plan.
fn has_few_copies(plan: &Plan<'_>, stage: &Stage) -> bool {
    let span = &plan.blocks.list[stage.block].span;
    let mentions = plan.resolutions.iter().zip(&stage.anchors).enumerate();
    let copied = mentions.filter(|(_, (r, anchor))| anchor.is_none() && span.contains(&r.mention.span.start));
    let copied: Vec<usize> = copied.map(|(mention, _)| mention).collect();
    let unique = |mention: usize, column: &str| is_unique(plan.resolutions, mention, column);
    let read = bounded(&copied, &plan.sizes, &plan.bounds, &unique);
    read.iter().all(|(_, rows)| *rows <= FEW_ROWS as f64)
}

/// Whether a block gives one row, and only conditions read it.
fn is_value(plan: &Plan<'_>, block: usize) -> bool {
    let blocks = &plan.blocks;
    let own = &blocks.list[block];
    let (Role::Scalar, Some(parent)) = (&own.role, own.parent) else {
        return false;
    };
    let around = &blocks.list[parent];
    let conditions = around.conditions.iter().chain(&around.select.having);
    let is_read = |condition: &Expr| {
        let mut inside = subqueries(condition).into_iter();
        inside.any(|query| start_of(&query) == Some(own.span.start)) && !is_set(condition, own.span.start)
    };
    let one_row = own.aggregates && own.select.having.is_none() && blocks.groups(block).is_some_and(|g| g.is_empty());
    one_row && own.select.projection.len() == 1 && blocks.is_plain(block) && conditions.into_iter().any(is_read)
}

/// Whether the subquery that begins there is what ANY or ALL compare with: rows, not a value.
fn is_set(condition: &Expr, start: usize) -> bool {
    struct Sets(usize);
    impl Visitor for Sets {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            let (Expr::AnyOp { right, .. } | Expr::AllOp { right, .. }) = expr else {
                return ControlFlow::Continue(());
            };
            match &**right {
                Expr::Subquery(query) if start_of(query) == Some(self.0) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        }
    }
    condition.visit(&mut Sets(start)).is_break()
}

/// The statement with parameters for these blocks: `value` gives the type and the value of each.
fn replaced(plan: &Plan<'_>, statement: &Statement<'_>, values: Vec<(usize, u32, Option<Bytes>)>) -> Known {
    let mut known = Known {
        text: String::new(),
        parameter_types: statement.parameter_types.to_vec(),
        parameters: statement.parameters.to_vec(),
        steps: Vec::new(),
    };
    let mut edits = Vec::new();
    for (block, type_oid, value) in values {
        known.parameter_types.push(type_oid);
        known.parameters.push((true, value));
        let name = format!("${}", known.parameters.len());
        edits.push((plan.blocks.list[block].span.clone(), name));
    }
    let text = &plan.blocks.parsed.text;
    known.text = super::text::edited(text, &(0..text.len()), &edits);
    known
}

/// Asks the shards for the values; None where one is of a type that a parameter does not stand for.
pub(super) async fn values(
    plan: &Plan<'_>,
    blocks: &[usize],
    statement: &Statement<'_>,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Known>, ServerError> {
    let (mut known, mut steps) = (Vec::new(), Vec::new());
    for &block in blocks {
        let Some((type_oid, value, did)) = value(plan, block, statement, transaction, engine).await? else {
            return Ok(None);
        };
        let i = known.len();
        steps.extend(did.into_iter().map(|step| Step {
            what: name(i, &step.what),
            ..step
        }));
        known.push((block, type_oid, value));
    }
    Ok(Some(Known {
        steps,
        ..replaced(plan, statement, known)
    }))
}

type Value = (u32, Option<Bytes>, Vec<Step>);

async fn value(
    plan: &Plan<'_>,
    block: usize,
    statement: &Statement<'_>,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<Option<Value>, ServerError> {
    let Some(reading) = Reading::instead(statement, &alone(plan, block))? else {
        return Ok(None);
    };
    let statement = Statement {
        result_formats: &[1, 0],
        ..*statement
    };
    let Some(mut rows) = run_instead(&statement, &reading, transaction, engine).await? else {
        return Ok(None);
    };
    let steps = rows.statistics().map_or(Vec::new(), |s| s.steps);
    let mut found = None;
    while let Some(batch) = rows.next().await? {
        for message in messages(&batch.bytes) {
            let mut places = Vec::new();
            fields(message, &mut places).ok_or_else(crate::plan::merge::garbled)?;
            if let [value, Some(type_oid)] = places.as_slice() {
                let value = value.clone().map(|place| Bytes::copy_from_slice(&message[place]));
                let type_oid = std::str::from_utf8(&message[type_oid.clone()]).ok();
                found = type_oid.and_then(|oid| oid.parse().ok()).zip(Some(value));
            }
        }
    }
    let found = found.filter(|(type_oid, _)| TYPES.contains(type_oid));
    Ok(found.map(|(type_oid, value)| (type_oid, value, steps)))
}

/// A statement that gives a block's value, and its type.
pub(super) fn alone(plan: &Plan<'_>, block: usize) -> String {
    let own = &plan.blocks.parsed.text[plan.blocks.list[block].span.clone()];
    format!(
        "SELECT pgherd_value.v, pg_catalog.pg_typeof(pgherd_value.v)::pg_catalog.oid FROM ({own}) AS pgherd_value (v)"
    )
}

/// A step of those for the values, which are counted from 0.
pub(super) fn name(i: usize, step: &str) -> String {
    format!("value {}: {step}", i + 1)
}

/// The statement with parameters whose values nobody knows yet, for EXPLAIN.
pub(super) fn unknown(plan: &Plan<'_>, blocks: &[usize], statement: &Statement<'_>) -> Known {
    let values = blocks.iter().map(|&block| (block, SOME_TYPE, None));
    replaced(plan, statement, values.collect())
}
