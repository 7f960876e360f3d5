//! Runs a join: a DataFusion table per scan, joined left to right.

use super::engine::{self, Engine, Started};
use super::finish::Finish;
use super::frame::{self, Feed, Layout};
use super::functions::{FinishGroup, FinishRow, JoinRows};
use super::join::{self, JoinShape};
use super::shape::Context;
use super::{client_formats, parameter_type, wanted_ranges, whole_parameter};
use crate::fragment;
use crate::pushdown::{Columns, From};
use crate::read_ahead::ReadAhead;
use crate::relay;
use crate::rows::Rows;
use crate::statement::Statement;
use crate::{Fragment, Transaction};
use datafusion::common::{DataFusionError, JoinType};
use datafusion::logical_expr::{AggregateUDF, Expr, ScalarUDF};
use datafusion::prelude::{DataFrame, col};
use pgherd_model::{ServerError, Table};
use pgherd_shards::ColumnDescription;
use sqlparser::ast::{Select, SetExpr, Statement as Ast, TableFactor, TableWithJoins};
use std::sync::Arc;

/// A join, ready to run.
pub(crate) struct Plan {
    tables: Vec<Arc<Table>>,
    shape: JoinShape,
    formats: Vec<i16>,
    /// scan by scan
    pub fragments: Vec<Fragment>,
    /// fragments of each scan
    counts: Vec<usize>,
}

/// The columns of each table by the place of its name.
struct Tables<'a> {
    known: Vec<(usize, Vec<String>)>,
    parameter: &'a dyn Fn(usize) -> bool,
}

impl Columns for Tables<'_> {
    fn columns_at(&self, at: usize) -> Option<&[String]> {
        self.known
            .iter()
            .find(|(a, _)| *a == at)
            .map(|(_, names)| names.as_slice())
    }

    fn parameter(&self, number: usize) -> bool {
        (self.parameter)(number)
    }
}

/// The plan; None when the statement is no join on tier 2's list.
pub(crate) fn plan(statement: &Statement<'_>, columns: &[ColumnDescription]) -> Option<Plan> {
    let Ast::Query(query) = statement.ast else {
        return None;
    };
    let SetExpr::Select(select) = &*query.body else {
        return None;
    };
    let mut tables = Vec::new();
    let mut known = Vec::new();
    for factor in select.from.iter().flat_map(factors) {
        let (at, table) = sharded_table(statement, factor)?;
        known.push((at, table.columns.iter().map(|c| c.name.clone()).collect()));
        tables.push(table);
    }
    if tables.len() < 2 {
        return None;
    }
    let formats = client_formats(statement, columns)?;
    let parameter = |number: usize| parameter_type(statement, number).is_some();
    let number = |number: usize| whole_parameter(statement, number);
    let known = Tables {
        known,
        parameter: &parameter,
    };
    let from = From::of(&select.from, &known);
    let context = Context {
        table: &tables[0],
        columns,
        formats: formats.clone(),
        parameter: &parameter,
        number: &number,
    };
    let shape = join::shape(query, select, &from, &tables, &context)?;
    let (fragments, counts) = fragments(statement, select, &from, &tables, &shape)?;
    Some(Plan {
        shape,
        formats,
        fragments,
        counts,
        tables,
    })
}

fn factors(tree: &TableWithJoins) -> impl Iterator<Item = &TableFactor> {
    std::iter::once(&tree.relation).chain(tree.joins.iter().map(|j| &j.relation))
}

fn sharded_table(statement: &Statement<'_>, factor: &TableFactor) -> Option<(usize, Arc<Table>)> {
    let TableFactor::Table {
        name,
        args: None,
        sample: None,
        ..
    } = factor
    else {
        return None;
    };
    let parts = crate::relations::parts(name)?;
    let at = (parts.first()?.span.start.column as usize).checked_sub(1)?;
    Some((at, crate::relations::sharded(statement, name)?))
}

fn fragments(
    statement: &Statement<'_>,
    select: &Select,
    from: &From<'_>,
    tables: &[Arc<Table>],
    shape: &JoinShape,
) -> Option<(Vec<Fragment>, Vec<usize>)> {
    let (mut fragments, mut counts) = (Vec::new(), Vec::new());
    for (scan, (part, table)) in shape.scans.iter().zip(tables).enumerate() {
        // WHERE says nothing about which ranges of a LEFT JOIN's right side are needed: what accepts its NULLs would be
        // taken for a condition on its rows.
        let nullable = scan > 0 && shape.joins[scan - 1].left;
        let condition = select.selection.as_ref().filter(|_| !nullable);
        let wanted = wanted_ranges(statement, table, condition, from, Some(scan))?;
        let filter = match part.filters.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", part.filters.join(" AND ")),
        };
        let places = fragment::places(table, &wanted)?;
        counts.push(places.len());
        for place in places {
            let sql = format!("SELECT {} FROM {}{filter}", part.select.join(", "), place.relation);
            let (parameter_types, parameters) = fragment::parameters(statement, &sql, place.shard);
            fragments.push(Fragment {
                shard: place.shard,
                portal: format!("f{}", fragments.len()),
                sql,
                parameter_types,
                parameters,
                result_formats: part.formats.clone(),
                fences: place.fences,
            });
        }
    }
    Some((fragments, counts))
}

/// Runs a join; gives the transaction back when it turns out that some text does not compare by bytes.
pub(crate) async fn run<'t>(
    plan: Plan,
    statement: &Statement<'_>,
    transaction: &'t mut Transaction,
    engine: &Engine,
) -> Result<Result<Rows<'t>, &'t mut Transaction>, ServerError> {
    for table in &plan.tables {
        if !super::is_bytewise(table, statement.snapshot.home(), transaction, engine).await? {
            return Ok(Err(transaction));
        }
    }
    transaction.open_cut(&plan.fragments).await?;
    relay::execute(&plan.fragments, transaction, super::ends_with(statement, &plan.tables)).await?;
    match stream(&plan, engine).await {
        Ok(((stream, computed), feeds)) => {
            let ahead = ReadAhead::new(plan.fragments.len());
            let pump = frame::pump(feeds, plan.fragments, ahead, transaction);
            Ok(Ok(Rows::computed(stream, Box::pin(pump)).by(computed)))
        }
        Err(error) => {
            relay::finish(transaction, false).await?;
            Err(engine::error(error))
        }
    }
}

async fn stream(plan: &Plan, engine: &Engine) -> Result<(Started, Vec<Feed>), DataFusionError> {
    let shape = &plan.shape;
    let context = engine.context();
    let sorted = !shape.sort().is_empty();
    let finish = Arc::new(Finish {
        outputs: shape.outputs(),
        formats: plan.formats.clone(),
        sort: shape.sort(),
        columns: shape.width(),
    });
    let mut feeds = Vec::new();
    let mut joined: Option<DataFrame> = None;
    let mut keys: Vec<String> = Vec::new();
    let mut width = 0;
    for (scan, (part, count)) in shape.scans.iter().zip(&plan.counts).enumerate() {
        let (table, feed) = frame::table(Layout::new(&prefix(scan), part.keys.clone()), *count)?;
        feeds.push(feed);
        let right = context.read_table(table)?;
        keys.extend((0..part.keys.len()).map(|key| key_name(scan, key)));
        let row = format!("{}_row", prefix(scan));
        joined = Some(match joined {
            None => right.select(named(&keys, col(row)))?,
            Some(left) => {
                let join = &shape.joins[scan - 1];
                let on_left: Vec<String> = join.on.iter().map(|((s, k), _)| key_name(*s, *k)).collect();
                let on_right: Vec<String> = join.on.iter().map(|(_, k)| key_name(scan, *k)).collect();
                let left_names: Vec<&str> = on_left.iter().map(String::as_str).collect();
                let right_names: Vec<&str> = on_right.iter().map(String::as_str).collect();
                let kind = if join.left { JoinType::Left } else { JoinType::Inner };
                let both = left.join(right, kind, &left_names, &right_names, None)?;
                let rows = ScalarUDF::new_from_impl(JoinRows::new(width, part.select.len()));
                both.select(named(&keys, rows.call(vec![col("row"), col(row)])))?
            }
        });
        width += part.select.len();
    }
    let Some(frame) = joined else {
        return Err(DataFusionError::Internal("a join without tables".into()));
    };
    let frame = match &shape.group {
        Some(group) => {
            let finished = AggregateUDF::new_from_impl(FinishGroup::new(finish)).call(vec![col("row")]);
            // `GROUP BY a, a` is one key.
            let unique: std::collections::BTreeSet<_> = group.iter().copied().collect();
            let keys = unique.into_iter().map(|(scan, key)| col(key_name(scan, key))).collect();
            frame
                .aggregate(keys, vec![finished.alias("result")])?
                .select(vec![col("result")])?
        }
        None => {
            let finished = ScalarUDF::new_from_impl(FinishRow::new(finish)).call(vec![col("row")]);
            frame.select(vec![finished.alias("result")])?
        }
    };
    let frame = super::ordered(frame, sorted, shape.offset, shape.limit)?;
    Ok((engine::start(frame).await?, feeds))
}

fn prefix(scan: usize) -> String {
    format!("s{scan}")
}

fn key_name(scan: usize, key: usize) -> String {
    format!("s{scan}_k{key}")
}

/// The keys, and the row under its common name.
fn named(keys: &[String], row: Expr) -> Vec<Expr> {
    keys.iter().map(col).chain([row.alias("row")]).collect()
}
