//! Tier 2, plan: SELECTs on tier 2's list ([`shape`]) run as SQL on each shard and are put together in the gateway.
//!
//! 1. [`shape`] turns the tree into SQL for the shards and a recipe for their rows; None sends the statement to tier 3.
//! 2. One cut is opened, all shards start at once.
//! 3. Without computing: [`merge`]. One group: its partial results are added up here. Groups and DISTINCT: few in [`groups`]; of many,
//!    [`frame`] hands the rows to DataFusion, which groups and sorts by keys and spills, and calls back into [`functions`]. Rows to be locked
//!    in an order, or up to a limit: [`locked`].
//!
//! Values that are only passed on are never decoded: each column comes from the shards in the client's format.

pub(crate) mod engine;
mod finish;
mod frame;
mod functions;
mod groups;
mod join;
pub(crate) mod join_run;
mod key;
mod locked;
pub(crate) mod merge;
mod numeric;
pub(crate) mod row;
mod shape;
mod total;

use crate::fragment;
use crate::pushdown::{Columns, From};
use crate::read_ahead::ReadAhead;
use crate::relay::{self, RowBatch};
use crate::rows::Rows;
use crate::statement::Statement;
use crate::{Engine, Fragment, Transaction};
use bytes::BytesMut;
use datafusion::logical_expr::AggregateUDF;
use datafusion::prelude::col;
use finish::{Finish, row_of};
use frame::Layout;
pub(crate) use locked::Locked;
pub(crate) use merge::Merge;
use pgherd_model::{RangeId, ServerError, ShardId, Table};
use pgherd_shards::ColumnDescription;
use pgherd_sql::LockStrength;
use shape::{Context, Output, Shape};
use sqlparser::ast::{Query, SetExpr, Statement as Ast, TableFactor};
use std::sync::Arc;

/// A statement of tier 2, ready to run.
pub(crate) struct Plan {
    pub table: Arc<Table>,
    shape: Shape,
    formats: Vec<i16>,
    pub fragments: Vec<Fragment>,
    /// what each fragment reads
    places: Vec<fragment::Place>,
}

/// The columns of the one table.
struct TableColumns<'a> {
    at: usize,
    names: Vec<String>,
    parameter: &'a dyn Fn(usize) -> bool,
}

impl Columns for TableColumns<'_> {
    fn columns_at(&self, at: usize) -> Option<&[String]> {
        (at == self.at).then_some(self.names.as_slice())
    }

    fn parameter(&self, number: usize) -> bool {
        (self.parameter)(number)
    }
}

/// The plan; None when the statement is not on tier 2's list.
pub(crate) fn plan(statement: &Statement<'_>, columns: &[ColumnDescription]) -> Option<Plan> {
    let Ast::Query(query) = statement.ast else {
        return None;
    };
    let SetExpr::Select(select) = &*query.body else {
        return None;
    };
    let table = the_table(statement, query)?;
    let formats = client_formats(statement, columns)?;
    let parameter = |number: usize| parameter_type(statement, number).is_some();
    let number = |number: usize| whole_parameter(statement, number);
    let TableFactor::Table { name, .. } = &select.from.first()?.relation else {
        return None;
    };
    let at = (name.0.first()?.as_ident()?.span.start.column as usize).checked_sub(1)?;
    let known = TableColumns {
        at,
        names: table.columns.iter().map(|c| c.name.clone()).collect(),
        parameter: &parameter,
    };
    let from = From::of(&select.from, &known);
    let context = Context {
        table: &table,
        columns,
        formats: formats.clone(),
        parameter: &parameter,
        number: &number,
    };
    let mut shape = shape::shape(query, select, &from, &context)?;
    if !shape.lock.is_empty() {
        shape.lock = format!(" {}{}", strength(statement.text)?.sql(), shape.lock);
    }
    // A view does not tell where its rows are.
    if locked::is_needed(&shape) && shape.through_view {
        return None;
    }
    // Nor are its parameters' types told to each shard as that one numbers them.
    let of_users = |number| parameter_type(statement, number).is_some_and(|oid| oid >= 16384);
    if locked::is_needed(&shape) && (1..=statement.parameters.len()).any(of_users) {
        return None;
    }
    let wanted = wanted_ranges(statement, &table, select.selection.as_ref(), &from, None)?;
    let places = fragment::places(&table, &wanted)?;
    let fragments = fragments(statement, &places, &shape);
    Some(Plan {
        table,
        shape,
        formats,
        fragments,
        places,
    })
}

/// How strong the lock of the only locking clause is, which the tree does not say.
fn strength(text: &str) -> Option<LockStrength> {
    let tokens = pgherd_sql::lexer::tokenize(text).ok()?;
    (0..tokens.len())
        .rev()
        .find_map(|at| LockStrength::at(text, &tokens, at))
}

/// The sharded table of a FROM that names just one, without TABLESAMPLE and the like.
fn the_table(statement: &Statement<'_>, query: &Query) -> Option<Arc<Table>> {
    let SetExpr::Select(select) = &*query.body else {
        return None;
    };
    let [tree] = select.from.as_slice() else {
        return None;
    };
    let TableFactor::Table {
        name,
        alias,
        args: None,
        sample: None,
        ..
    } = &tree.relation
    else {
        return None;
    };
    let renamed = alias.as_ref().is_some_and(|a| !a.columns.is_empty());
    if !tree.joins.is_empty() || renamed {
        return None;
    }
    crate::relations::sharded(statement, name)
}

/// One format per column; None where a value's format means something on its own server only.
fn client_formats(statement: &Statement<'_>, columns: &[ColumnDescription]) -> Option<Vec<i16>> {
    let format = |i: usize| match statement.result_formats {
        [] => 0,
        [one] => *one,
        each => each.get(i).copied().unwrap_or(0),
    };
    let formats: Vec<_> = (0..columns.len()).map(format).collect();
    // regproc … regcollation: numbers that other servers give to other objects.
    let foreign = |oid: u32| {
        oid >= 16384 || matches!(oid, 24 | 2202..=2211 | 3734 | 3735 | 3769 | 3770 | 4089..=4097 | 4191 | 4192)
    };
    let portable = columns
        .iter()
        .zip(&formats)
        .all(|(c, f)| *f == 0 || !foreign(c.type_oid));
    portable.then_some(formats)
}

/// A parameter's type as the home shard numbers it, where it is known; [`fragment::parameters`] has other shards' numbers of users' types.
fn parameter_type(statement: &Statement<'_>, number: usize) -> Option<u32> {
    let oid = statement.parameter_types.get(number.checked_sub(1)?);
    oid.copied().filter(|oid| *oid > 0)
}

/// A parameter's value where it is an int2, int4 or int8.
fn whole_parameter(statement: &Statement<'_>, number: usize) -> Option<i64> {
    let (binary, value) = statement.parameters.get(number.checked_sub(1)?)?;
    let value = value.as_ref()?;
    match (statement.parameter_types.get(number - 1)?, binary) {
        (20 | 21 | 23, true) => key::KeyKind::Whole.number(value),
        (20 | 21 | 23, false) => std::str::from_utf8(value).ok()?.trim().parse().ok(),
        _ => None,
    }
}

/// The ranges that WHERE leaves, of the table that is this item of the FROM.
fn wanted_ranges(
    statement: &Statement<'_>,
    table: &Table,
    condition: Option<&sqlparser::ast::Expr>,
    from: &From<'_>,
    item: Option<usize>,
) -> Option<Vec<RangeId>> {
    use crate::relations::fold;
    use sqlparser::ast::Expr;
    let sharded = table.sharded()?;
    let key_column = |expr: &Expr| {
        let (qualifier, column) = match expr {
            Expr::Identifier(column) => (None, fold(column)),
            Expr::CompoundIdentifier(parts) if parts.len() == 2 => (Some(fold(&parts[0])), fold(&parts[1])),
            _ => return None,
        };
        let owner = from.owner(qualifier.as_deref(), &column)?;
        if item.is_some_and(|item| item != owner) {
            return None;
        }
        sharded.key.iter().position(|k| *k == column)
    };
    let parameters: Vec<_> = statement
        .parameters
        .iter()
        .enumerate()
        .map(|(i, (binary, value))| pgherd_sql::ParameterValue {
            bytes: value.as_deref(),
            binary: *binary,
            type_oid: statement.parameter_types.get(i).copied().unwrap_or(0),
        })
        .collect();
    Some(pgherd_sql::ranges_of(condition, sharded, &key_column, &parameters))
}

/// The SQL for each shard.
fn fragments(statement: &Statement<'_>, places: &[fragment::Place], shape: &Shape) -> Vec<Fragment> {
    let one_by_one = locked::is_needed(shape);
    let mut end = String::new();
    if !shape.filter.is_empty() {
        end.push_str(&format!(" WHERE {}", shape.filter));
    }
    match &shape.group {
        Some(group) if !group.is_empty() => end.push_str(&format!(" GROUP BY {}", group.join(", "))),
        Some(_) => {}
        None => {
            if !shape.order.is_empty() && !shape.distinct {
                end.push_str(&format!(" ORDER BY {}", shape.order.join(", ")));
            }
            // With DISTINCT, a shard's rows in no order say nothing about which are first.
            // Nor is it known how many rows will be left out when they are locked.
            if let (Some(limit), false) = (shape.limit, shape.distinct || one_by_one) {
                end.push_str(&format!(
                    " LIMIT {}",
                    limit.saturating_add(shape.offset).min(i64::MAX as u64)
                ));
            }
        }
    }
    if !one_by_one {
        end.push_str(&shape.lock);
    }
    let distinct = if shape.distinct { "DISTINCT " } else { "" };
    // A bare name in ORDER BY means an output column first, and a cast of `id` is called `id`: outputs get names that
    // no column has.
    let mut select: Vec<String> = match end.contains(" ORDER BY ") {
        true => shape
            .select
            .iter()
            .enumerate()
            .map(|(i, item)| format!("{item} AS \"pgherd {i}\""))
            .collect(),
        false => shape.select.clone(),
    };
    let mut formats = shape.formats.clone();
    if one_by_one {
        select.extend(locked::IDENTITY.map(str::to_owned));
        formats.extend(locked::IDENTITY.map(|_| 0));
    }
    let make = |(i, place): (usize, &fragment::Place)| {
        let sql = format!("SELECT {distinct}{} FROM {}{end}", select.join(", "), place.relation);
        let (parameter_types, parameters) = fragment::parameters(statement, &sql, place.shard);
        Fragment {
            shard: place.shard,
            portal: format!("f{i}"),
            sql,
            parameter_types,
            parameters,
            result_formats: formats.clone(),
            fences: place.fences.clone(),
        }
    };
    places.iter().enumerate().map(make).collect()
}

impl Plan {
    /// For EXPLAIN: what is done with the shards' rows.
    pub fn summary(&self) -> String {
        let shape = &self.shape;
        let how = match (&shape.group, shape.group_keys.is_empty(), shape.sort.is_empty()) {
            (_, false, _) if shape.distinct => "Distinct",
            (_, false, _) => "Group partial results",
            (Some(_), ..) => "Add up partial results",
            _ if locked::is_needed(shape) => "Lock in order",
            (None, _, false) => "Merge in order",
            (None, ..) => "Append",
        };
        how.to_owned()
    }

    fn finish(&self) -> Finish {
        Finish {
            outputs: self.shape.outputs.clone(),
            formats: self.formats.clone(),
            sort: self.shape.sort.clone(),
            columns: self.shape.select.len(),
        }
    }
}

/// Whether all text of a table compares by bytes; asks the home shard the first time.
async fn is_bytewise(
    table: &Arc<Table>,
    home: ShardId,
    transaction: &mut Transaction,
    engine: &Engine,
) -> Result<bool, ServerError> {
    if let Some(known) = engine.is_bytewise(table) {
        return Ok(known);
    }
    let backend = transaction.participant(home).await?;
    let bytewise = crate::metadata::is_bytewise(backend, &table.name.to_string()).await?;
    // What an open block may have changed is not for others to know.
    if transaction.mode().implicit {
        engine.learn_bytewise(table, bytewise);
    }
    Ok(bytewise)
}

/// Runs a plan; None when it turns out that the table's text does not compare by bytes.
pub(crate) async fn run<'t>(
    plan: Plan,
    statement: &Statement<'_>,
    transaction: &'t mut Transaction,
    engine: &Engine,
) -> Result<Result<Rows<'t>, &'t mut Transaction>, ServerError> {
    let compares = !plan.shape.sort.is_empty() || !plan.shape.group_keys.is_empty() || has_extremes(&plan.shape);
    if compares && !is_bytewise(&plan.table, statement.snapshot.home(), transaction, engine).await? {
        return Ok(Err(transaction));
    }
    if locked::is_needed(&plan.shape) {
        return lock_in_order(plan, statement, transaction).await.map(Ok);
    }
    transaction.open_cut(&plan.fragments).await?;
    relay::execute(&plan.fragments, transaction, ends_with(statement, [&plan.table])).await?;
    if !plan.shape.group_keys.is_empty() {
        return grouped(plan, transaction, engine).await.map(Ok);
    }
    if plan.shape.group.is_some() {
        return single_group(plan, transaction).await.map(Ok);
    }
    Ok(Ok(Rows::merge(Merge::new(&plan.shape, plan.fragments), transaction)))
}

/// Whether the shards' transactions end with what the plan asks them: nothing comes behind it, and it writes nothing, since what a plan
/// sends has no effects but those of a table's policies.
fn ends_with<'a>(statement: &Statement<'_>, tables: impl IntoIterator<Item = &'a Arc<Table>>) -> bool {
    let has_policies = |table: &Arc<Table>| table.sharded().is_none_or(|sharded| !sharded.direct);
    statement.ends && !tables.into_iter().any(has_policies)
}

async fn lock_in_order<'t>(
    plan: Plan,
    statement: &Statement<'_>,
    transaction: &'t mut Transaction,
) -> Result<Rows<'t>, ServerError> {
    let follows = !transaction.shows_one_snapshot();
    let (places, fragments) = (plan.places.clone(), plan.fragments.clone());
    let locked = Locked::new(plan, places, statement, follows);
    locked.check_rights(transaction).await?;
    transaction.open_cut(&fragments).await?;
    Ok(Rows::locked(locked, transaction))
}

fn has_extremes(shape: &Shape) -> bool {
    shape
        .outputs
        .iter()
        .any(|o| matches!(o, Output::Aggregate { key: Some(_), .. }))
}

/// Aggregates without GROUP BY: one row per shard, one row in all.
async fn single_group<'t>(plan: Plan, transaction: &'t mut Transaction) -> Result<Rows<'t>, ServerError> {
    let finish = plan.finish();
    let read = async {
        let mut group = finish.group();
        for fragment in &plan.fragments {
            let backend = transaction.participant(fragment.shard).await?;
            while let Some(batch) = crate::relay::next_rows(backend).await? {
                for message in row::messages(&batch.bytes) {
                    group.add(&finish, message)?;
                }
            }
        }
        let mut batch = RowBatch::default();
        if plan.shape.offset == 0 && plan.shape.limit != Some(0) {
            group.write_row(&finish, &mut batch.bytes)?;
            batch.rows = 1;
        }
        Ok(batch)
    };
    let read: Result<RowBatch, ServerError> = read.await;
    relay::finish(transaction, read.is_ok()).await?;
    Ok(Rows::ready(read?))
}

/// GROUP BY and DISTINCT.
async fn grouped<'t>(plan: Plan, transaction: &'t mut Transaction, engine: &Engine) -> Result<Rows<'t>, ServerError> {
    let finish = Arc::new(plan.finish());
    let mut ahead = ReadAhead::new(plan.fragments.len());
    let few = groups::few(&plan, &finish, &mut ahead, transaction).await;
    if !matches!(few, Ok(None)) {
        relay::finish(transaction, few.is_ok()).await?;
        return Ok(Rows::ready(few?.unwrap_or_default()));
    }
    let layout = Layout::new("a", plan.shape.group_keys.clone());
    let keys = layout.keys.len();
    let made = async {
        let (table, feed) = frame::table(layout, plan.fragments.len())?;
        let group = AggregateUDF::new_from_impl(functions::FinishGroup::new(finish.clone()));
        let keys = (0..keys).map(|i| col(format!("a_k{i}"))).collect();
        let frame = engine.context().read_table(table)?;
        let frame = frame.aggregate(keys, vec![group.call(vec![col("a_row")]).alias("result")])?;
        let frame = ordered(
            frame.select(vec![col("result")])?,
            !plan.shape.sort.is_empty(),
            plan.shape.offset,
            plan.shape.limit,
        )?;
        Ok((engine::start(frame).await?, feed))
    };
    let made: Result<_, datafusion::common::DataFusionError> = made.await;
    match made {
        Ok(((stream, computed), feed)) => {
            let pump = frame::pump(vec![feed], plan.fragments, ahead, transaction);
            Ok(Rows::computed(stream, Box::pin(pump)).by(computed))
        }
        Err(error) => {
            relay::finish(transaction, false).await?;
            Err(engine::error(error))
        }
    }
}

/// ORDER BY, OFFSET and LIMIT over results with their sort keys.
fn ordered(
    mut frame: datafusion::prelude::DataFrame,
    sorted: bool,
    offset: u64,
    limit: Option<u64>,
) -> Result<datafusion::prelude::DataFrame, datafusion::common::DataFusionError> {
    if sorted {
        frame = frame.sort(vec![col("result").sort(true, false)])?;
    }
    if limit.is_some() || offset > 0 {
        frame = frame.limit(offset as usize, limit.map(|l| l as usize))?;
    }
    Ok(frame)
}

/// A batch of results as DataRow messages.
pub(crate) fn result_rows(batch: &arrow::array::RecordBatch) -> Result<RowBatch, ServerError> {
    use arrow::array::Array;
    use arrow::array::AsArray;
    let column = batch
        .columns()
        .first()
        .and_then(|c| c.as_binary_opt::<i32>())
        .ok_or_else(merge::garbled)?;
    let mut out = RowBatch {
        rows: column.len(),
        bytes: BytesMut::with_capacity(column.value_data().len()),
        origins: Vec::new(),
    };
    for result in column.iter() {
        let row = result.and_then(row_of).ok_or_else(merge::garbled)?;
        out.bytes.extend_from_slice(row);
    }
    Ok(out)
}
