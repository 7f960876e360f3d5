//! What a SELECT on one sharded table computes, when it is on tier 2's list: from the tree to shard SQL and what is left to
//! do with its rows. Everything that is computed from a row is computed by PostgreSQL on the shard; what is left is to
//! concatenate, merge in order, add up partial aggregates, and count to a limit.
//!
//! None means that the statement is not on the list.

use super::key::{Direction, KeyKind};
use crate::pushdown::From;
use crate::relations::fold;
use crate::render::{Names, plain_column, render};
use pgherd_model::{Table, quote_identifier};
use pgherd_shards::ColumnDescription;
use sqlparser::ast::{
    Distinct, DuplicateTreatment, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, LimitClause,
    NonBlock, OrderByKind, Query, Select, SelectItem, SetExpr, Value,
};

/// A final aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aggregate {
    /// count: the sum of counts, never NULL
    Count,
    /// sum with an int8 result
    SumBigint,
    /// sum with a numeric result
    SumNumeric,
    /// avg with a numeric result
    Average,
    /// the least
    Min,
    /// the greatest
    Max,
}

/// Where one column of the result comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// this column of the shard's rows, as it is
    Column(usize),
    /// an aggregate of partial results
    Aggregate {
        what: Aggregate,
        /// the shard's column with the partial value; for Min and Max in the client's format
        value: usize,
        /// Average: the column with the count. Min and Max: the column with the value in binary
        second: usize,
        /// Min and Max
        key: Option<KeyKind>,
    },
}

/// A sort key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SortKey {
    /// what it sorts
    pub by: SortBy,
    pub kind: KeyKind,
    pub direction: Direction,
}

/// What is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SortBy {
    /// a binary column of the shard's rows
    Column(usize),
    /// an aggregate of the result
    Output(usize),
}

/// The whole.
#[derive(Debug)]
pub(crate) struct Shape {
    /// SELECT list for the shards, as SQL
    pub select: Vec<String>,
    /// the format of each
    pub formats: Vec<i16>,
    /// DISTINCT on the shards
    pub distinct: bool,
    /// WHERE, as SQL; empty for none
    pub filter: String,
    /// GROUP BY, as SQL; None when there is no grouping, empty for a single group
    pub group: Option<Vec<String>>,
    /// columns that make a group: binary columns of the shards' rows
    pub group_keys: Vec<(usize, KeyKind)>,
    /// ORDER BY on the shards, as SQL
    pub order: Vec<String>,
    pub sort: Vec<SortKey>,
    pub outputs: Vec<Output>,
    pub limit: Option<u64>,
    pub offset: u64,
    /// FOR UPDATE …, as SQL; empty for none
    pub lock: String,
    /// its rows come through a view, which does not tell where they are
    pub through_view: bool,
}

/// What the planner knows beside the tree.
pub(crate) struct Context<'a> {
    pub table: &'a Table,
    /// the result's columns
    pub columns: &'a [ColumnDescription],
    /// the client's formats, one per column
    pub formats: Vec<i16>,
    /// whether `$number` can be sent to a shard
    pub parameter: &'a dyn Fn(usize) -> bool,
    /// a whole-number parameter's value, for LIMIT
    pub number: &'a dyn Fn(usize) -> Option<i64>,
}

struct OneTable<'a> {
    from: &'a From<'a>,
    context: &'a Context<'a>,
}

impl Names for OneTable<'_> {
    fn column(&self, qualifier: Option<&str>, name: &str) -> Option<String> {
        self.from.owner(qualifier, name).and_then(|_| plain_column(name))
    }

    fn parameter(&self, number: usize) -> bool {
        (self.context.parameter)(number)
    }
}

struct Builder<'a> {
    names: OneTable<'a>,
    context: &'a Context<'a>,
    shape: Shape,
    /// the expression of each output that is a plain column, with its SQL
    plain: Vec<Option<(&'a Expr, String)>>,
}

/// The names of aggregates of pg_catalog that tier 2 knows.
const AGGREGATES: &[&str] = &["count", "sum", "avg", "min", "max"];

/// The shape of `query`, a SELECT FROM the one table of `from`.
pub(crate) fn shape<'a>(
    query: &'a Query,
    select: &'a Select,
    from: &'a From<'a>,
    context: &'a Context<'a>,
) -> Option<Shape> {
    let plain_query = query.with.is_none()
        && query.for_clause.is_none()
        && query.settings.is_none()
        && query.format_clause.is_none()
        && query.pipe_operators.is_empty();
    let plain_select = select.into.is_none()
        && select.having.is_none()
        && select.named_window.is_empty()
        && select.top.is_none()
        && select.qualify.is_none();
    let distinct = match &select.distinct {
        None | Some(Distinct::All) => false,
        Some(Distinct::Distinct) => true,
        Some(Distinct::On(_)) => return None,
    };
    if !plain_query || !plain_select {
        return None;
    }
    let mut builder = Builder {
        names: OneTable { from, context },
        context,
        shape: Shape {
            select: Vec::new(),
            formats: Vec::new(),
            distinct: false,
            filter: String::new(),
            group: None,
            group_keys: Vec::new(),
            order: Vec::new(),
            sort: Vec::new(),
            outputs: Vec::new(),
            limit: None,
            offset: 0,
            lock: String::new(),
            through_view: context.table.sharded().is_some_and(|s| s.through_view.is_some()),
        },
        plain: Vec::new(),
    };
    if let Some(filter) = &select.selection {
        builder.shape.filter = render(filter, &builder.names)?;
    }
    builder.outputs(select)?;
    let aggregates = builder
        .shape
        .outputs
        .iter()
        .any(|o| matches!(o, Output::Aggregate { .. }));
    let groups: &[Expr] = match &select.group_by {
        GroupByExpr::Expressions(list, modifiers) if modifiers.is_empty() => list,
        _ => return None,
    };
    if aggregates || !groups.is_empty() {
        if distinct {
            return None;
        }
        builder.grouping(groups)?;
    } else if distinct {
        builder.distinct()?;
    }
    builder.order(query)?;
    builder.limit(query)?;
    builder.lock(query)?;
    Some(builder.shape)
}

impl<'a> Builder<'a> {
    /// A column of the shards' rows; the same SQL in the same format is fetched once.
    fn fetch(&mut self, sql: String, format: i16) -> usize {
        let shape = &mut self.shape;
        let found = shape
            .select
            .iter()
            .zip(&shape.formats)
            .position(|(s, f)| *s == sql && *f == format);
        found.unwrap_or_else(|| {
            shape.select.push(sql);
            shape.formats.push(format);
            shape.select.len() - 1
        })
    }

    fn outputs(&mut self, select: &'a Select) -> Option<()> {
        for item in &select.projection {
            match item {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => self.output(expr)?,
                SelectItem::Wildcard(options) if options.to_string().is_empty() => {
                    for column in &self.context.table.columns {
                        self.plain_output(None, quote_identifier(&column.name))?;
                    }
                }
                _ => return None,
            }
        }
        (self.shape.outputs.len() == self.context.columns.len()).then_some(())
    }

    fn output(&mut self, expr: &'a Expr) -> Option<()> {
        if let Some(aggregate) = aggregate_call(expr) {
            return self.aggregate(aggregate);
        }
        let sql = render(expr, &self.names)?;
        self.plain_output(Some(expr), sql)
    }

    fn plain_output(&mut self, expr: Option<&'a Expr>, sql: String) -> Option<()> {
        let index = self.shape.outputs.len();
        let format = *self.context.formats.get(index)?;
        // Each output column keeps its own place, so that rows can pass as they are.
        self.shape.select.push(sql.clone());
        self.shape.formats.push(format);
        self.shape.outputs.push(Output::Column(self.shape.select.len() - 1));
        self.plain.push(expr.map(|e| (e, sql)));
        Some(())
    }

    fn aggregate(&mut self, (name, argument): (String, Option<&'a Expr>)) -> Option<()> {
        let index = self.shape.outputs.len();
        let (format, result) = (
            *self.context.formats.get(index)?,
            self.context.columns.get(index)?.type_oid,
        );
        let argument = match argument {
            Some(expr) => Some(render(expr, &self.names)?),
            None => None,
        };
        let call = |name: &str| format!("{name}({})", argument.as_deref().unwrap_or("*"));
        let (what, value, second, key) = match (name.as_str(), &argument, result) {
            ("count", _, 20) => (Aggregate::Count, self.fetch(call("count"), 1), 0, None),
            ("sum", Some(_), 20) => (Aggregate::SumBigint, self.fetch(call("sum"), 1), 0, None),
            ("sum", Some(_), 1700) => (Aggregate::SumNumeric, self.fetch(call("sum"), 1), 0, None),
            ("avg", Some(_), 1700) => {
                let sum = self.fetch(format!("CAST({} AS pg_catalog.numeric)", call("sum")), 1);
                (Aggregate::Average, sum, self.fetch(call("count"), 1), None)
            }
            ("min" | "max", Some(_), _) => {
                let kind = KeyKind::of(result)?;
                let what = if name == "min" { Aggregate::Min } else { Aggregate::Max };
                (
                    what,
                    self.fetch(call(&name), format),
                    self.fetch(call(&name), 1),
                    Some(kind),
                )
            }
            _ => return None,
        };
        self.shape.outputs.push(Output::Aggregate {
            what,
            value,
            second,
            key,
        });
        self.plain.push(None);
        Some(())
    }

    /// GROUP BY: every plain output must be one of the grouped expressions.
    fn grouping(&mut self, groups: &'a [Expr]) -> Option<()> {
        let mut list = Vec::new();
        for expr in groups {
            let output = match expr {
                Expr::Value(v) => match &v.value {
                    Value::Number(n, _) => Some(n.parse::<usize>().ok()?.checked_sub(1)?),
                    _ => return None,
                },
                // A column's name comes before an output's here, so a name that is no column is not on the list.
                _ => {
                    let sql = render(expr, &self.names)?;
                    self.plain
                        .iter()
                        .position(|p| p.as_ref().is_some_and(|(_, s)| *s == sql))
                }
            };
            let (sql, kind) = match output {
                Some(output) => {
                    let (_, sql) = self.plain.get(output)?.clone()?;
                    (sql, KeyKind::of(self.context.columns.get(output)?.type_oid)?)
                }
                None => self.typed_column(expr)?,
            };
            list.push(sql.clone());
            let column = self.fetch(sql, 1);
            self.shape.group_keys.push((column, kind));
        }
        let grouped = |sql: &str| list.iter().any(|g| g == sql);
        let all_grouped = self
            .plain
            .iter()
            .zip(&self.shape.outputs)
            .all(|(plain, output)| match (plain, output) {
                (Some((_, sql)), _) => grouped(sql),
                (None, Output::Aggregate { .. }) => true,
                (None, Output::Column(c)) => grouped(&self.shape.select[*c]),
            });
        self.shape.group = Some(list);
        all_grouped.then_some(())
    }

    /// DISTINCT is grouping by all outputs.
    fn distinct(&mut self) -> Option<()> {
        self.shape.distinct = true;
        for index in 0..self.shape.outputs.len() {
            let Output::Column(column) = self.shape.outputs[index] else {
                return None;
            };
            let kind = KeyKind::of(self.context.columns[index].type_oid)?;
            let sql = self.shape.select[column].clone();
            let key = self.fetch(sql, 1);
            self.shape.group_keys.push((key, kind));
        }
        Some(())
    }

    /// A plain column's SQL and kind, from the catalog.
    fn typed_column(&self, expr: &Expr) -> Option<(String, KeyKind)> {
        let name = match expr {
            Expr::Identifier(ident) => fold(ident),
            Expr::CompoundIdentifier(idents) if idents.len() == 2 => fold(&idents[1]),
            _ => return None,
        };
        let sql = render(expr, &self.names)?;
        Some((sql, KeyKind::of(self.context.table.column(&name)?.type_oid)?))
    }

    fn order(&mut self, query: &'a Query) -> Option<()> {
        let Some(order_by) = &query.order_by else {
            return Some(());
        };
        let OrderByKind::Expressions(list) = &order_by.kind else {
            return None;
        };
        if order_by.interpolate.is_some() {
            return None;
        }
        for item in list {
            if item.with_fill.is_some() {
                return None;
            }
            let descending = item.options.asc == Some(false);
            let direction = Direction {
                descending,
                nulls_first: item.options.nulls_first.unwrap_or(descending),
            };
            let (by, kind, sql) = self.sort_target(&item.expr, query)?;
            self.shape.sort.push(SortKey { by, kind, direction });
            if let Some(sql) = sql {
                let word = if descending { "DESC" } else { "ASC" };
                let nulls = if direction.nulls_first { "FIRST" } else { "LAST" };
                self.shape.order.push(format!("{sql} {word} NULLS {nulls}"));
            }
        }
        Some(())
    }

    /// What ORDER BY names: an output by number or name, else an expression of the table.
    fn sort_target(&mut self, expr: &'a Expr, query: &'a Query) -> Option<(SortBy, KeyKind, Option<String>)> {
        let output = match expr {
            Expr::Value(v) => match &v.value {
                Value::Number(n, _) => Some(n.parse::<usize>().ok()?.checked_sub(1)?),
                _ => return None,
            },
            Expr::Identifier(ident) => {
                let name = fold(ident);
                let mut named = (0..self.context.columns.len()).filter(|i| self.context.columns[*i].name == name);
                let first = named.next();
                // Several outputs of one name: only PostgreSQL says whether they are the same.
                if first.is_some() && named.next().is_some() {
                    return None;
                }
                first
            }
            _ => self.same_output(expr, query),
        };
        let Some(output) = output else {
            if !self.shape.group_keys.is_empty() || self.shape.group.is_some() {
                let (sql, kind) = self.typed_column(expr)?;
                let grouped = self.shape.group.as_ref().is_some_and(|g| g.contains(&sql));
                return grouped.then(|| (SortBy::Column(self.fetch(sql, 1)), kind, None));
            }
            let (sql, kind) = self.typed_column(expr)?;
            return Some((SortBy::Column(self.fetch(sql.clone(), 1)), kind, Some(sql)));
        };
        let type_oid = self.context.columns.get(output)?.type_oid;
        let kind = KeyKind::of(type_oid)?;
        match self.shape.outputs.get(output)?.clone() {
            Output::Column(column) => {
                let sql = self.shape.select[column].clone();
                Some((SortBy::Column(self.fetch(sql.clone(), 1)), kind, Some(sql)))
            }
            Output::Aggregate { .. } => Some((SortBy::Output(output), kind, None)),
        }
    }

    fn same_output(&self, expr: &Expr, query: &'a Query) -> Option<usize> {
        let SetExpr::Select(select) = &*query.body else {
            return None;
        };
        if select.projection.len() != self.shape.outputs.len() {
            return None;
        }
        select.projection.iter().position(|item| match item {
            SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. } => e == expr,
            _ => false,
        })
    }

    fn limit(&mut self, query: &Query) -> Option<()> {
        let mut limit = None;
        if let Some(clause) = &query.limit_clause {
            let LimitClause::LimitOffset {
                limit: count,
                offset,
                limit_by,
            } = clause
            else {
                return None;
            };
            if !limit_by.is_empty() {
                return None;
            }
            limit = count.as_ref();
            if let Some(offset) = offset {
                self.shape.offset = row_count(&offset.value, self.context)??;
            }
        }
        if let Some(fetch) = &query.fetch {
            if fetch.with_ties || fetch.percent || limit.is_some() {
                return None;
            }
            limit = fetch.quantity.as_ref();
            if limit.is_none() {
                self.shape.limit = Some(1);
            }
        }
        if let Some(limit) = limit {
            self.shape.limit = row_count(limit, self.context)?;
        }
        Some(())
    }

    /// NOWAIT or SKIP LOCKED of FOR UPDATE and its kin, which lock rows of the table. How strongly, the tree does not say.
    fn lock(&mut self, query: &Query) -> Option<()> {
        let lock = match query.locks.as_slice() {
            [] => return Some(()),
            // OF can only name the one table.
            [lock] => lock,
            _ => return None,
        };
        let shape = &mut self.shape;
        if shape.group.is_some() || shape.distinct {
            return None;
        }
        shape.lock = match lock.nonblock {
            None => " ",
            Some(NonBlock::Nowait) => " NOWAIT",
            Some(NonBlock::SkipLocked) => " SKIP LOCKED",
        }
        .to_owned();
        Some(())
    }
}

/// A row count: a constant or a parameter; Some(None) for NULL, which is no limit.
pub(crate) fn row_count(expr: &Expr, context: &Context<'_>) -> Option<Option<u64>> {
    let Expr::Value(value) = expr else {
        return None;
    };
    match &value.value {
        // What is no bigint is for PostgreSQL to refuse.
        Value::Number(number, _) => Some(Some(u64::try_from(number.parse::<i64>().ok()?).ok()?)),
        Value::Placeholder(name) => {
            let number = name.strip_prefix('$')?.parse().ok()?;
            Some(Some(u64::try_from((context.number)(number)?).ok()?))
        }
        _ => None,
    }
}

/// `name(argument)` of a known aggregate, without DISTINCT, FILTER and the like; None as argument for `count(*)`.
pub(crate) fn aggregate_call(expr: &Expr) -> Option<(String, Option<&Expr>)> {
    let Expr::Function(function) = expr else {
        return None;
    };
    let [name] = crate::relations::parts(&function.name)?[..] else {
        return None;
    };
    let name = fold(name);
    let plain = function.filter.is_none()
        && function.over.is_none()
        && function.null_treatment.is_none()
        && function.within_group.is_empty()
        && matches!(function.parameters, FunctionArguments::None);
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let all = !matches!(list.duplicate_treatment, Some(DuplicateTreatment::Distinct));
    if !plain || !AGGREGATES.contains(&name.as_str()) || !list.clauses.is_empty() || !all {
        return None;
    }
    match list.args.as_slice() {
        [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)] if name == "count" => Some((name, None)),
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))] => Some((name, Some(expr))),
        _ => None,
    }
}
