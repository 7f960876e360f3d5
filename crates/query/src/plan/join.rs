//! Joins of sharded tables by equal columns: inner and left joins, in the order of FROM.
//!
//! Each table is one scan of all its shards, with the conditions that are its alone. DataFusion joins the scans by keys; what an
//! output, an aggregate or a sort key needs comes from exactly one table. On the right of a LEFT JOIN only plain columns are
//! taken: any expression could make something of the NULLs that stand for a missing row.
//!
//! None means that the join is not on tier 2's list.

use super::key::{Direction, KeyKind};
use super::shape::{Aggregate, Context, Output, SortBy, SortKey, aggregate_call, row_count};
use crate::pushdown::{From, Item};
use crate::relations::fold;
use crate::render::{Names, conjuncts, plain_column, render};
use pgherd_model::Table;
use sqlparser::ast::{
    BinaryOperator, Distinct, Expr, GroupByExpr, JoinConstraint, JoinOperator, LimitClause, OrderByKind, Query, Select,
    SelectItem, Value,
};
use std::cell::Cell;
use std::sync::Arc;

/// One table's part.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub select: Vec<String>,
    pub formats: Vec<i16>,
    pub filters: Vec<String>,
    /// key columns: place in `select`, kind
    pub keys: Vec<(usize, KeyKind)>,
}

/// How a scan, from the second on, is joined to those before.
#[derive(Debug)]
pub(crate) struct Join {
    pub left: bool,
    /// ((scan, key), key of this scan)
    pub on: Vec<((usize, usize), usize)>,
}

/// The whole.
#[derive(Debug)]
pub(crate) struct JoinShape {
    pub scans: Vec<Scan>,
    /// one less than scans
    pub joins: Vec<Join>,
    /// columns are (scan, place) until [`JoinShape::place`] has numbered them
    outputs: Vec<Part>,
    sort: Vec<(Part, KeyKind, Direction)>,
    /// (scan, key) of each GROUP BY or DISTINCT column; None when there is no grouping
    pub group: Option<Vec<(usize, usize)>>,
    pub limit: Option<u64>,
    pub offset: u64,
}

type Column = (usize, usize);

#[derive(Debug, Clone)]
enum Part {
    Column(Column),
    Aggregate {
        what: Aggregate,
        value: Column,
        second: Option<Column>,
        key: Option<KeyKind>,
    },
    /// in `sort`: this output
    Output(usize),
}

struct OneScan<'a> {
    from: &'a From<'a>,
    context: &'a Context<'a>,
    /// the scan of the columns seen so far
    owner: Cell<Option<usize>>,
    mixed: Cell<bool>,
}

impl Names for OneScan<'_> {
    fn column(&self, qualifier: Option<&str>, name: &str) -> Option<String> {
        let owner = self.from.owner(qualifier, name)?;
        if self.owner.get().is_some_and(|o| o != owner) {
            self.mixed.set(true);
        }
        self.owner.set(Some(owner));
        plain_column(name)
    }

    fn parameter(&self, number: usize) -> bool {
        (self.context.parameter)(number)
    }
}

struct Builder<'a> {
    from: &'a From<'a>,
    tables: &'a [Arc<Table>],
    context: &'a Context<'a>,
    /// on the right of a LEFT JOIN
    nullable: Vec<bool>,
    shape: JoinShape,
}

/// The shape of a SELECT over `tables`, the items of `from` in order.
pub(crate) fn shape<'a>(
    query: &'a Query,
    select: &'a Select,
    from: &'a From<'a>,
    tables: &'a [Arc<Table>],
    context: &'a Context<'a>,
) -> Option<JoinShape> {
    let plain = query.with.is_none()
        && query.locks.is_empty()
        && query.fetch.is_none()
        && query.pipe_operators.is_empty()
        && select.into.is_none()
        && select.having.is_none()
        && select.named_window.is_empty();
    let items: &[Item<'_>] = &from.items;
    if !plain || items.len() != tables.len() || items.iter().any(|i| i.columns.is_none()) {
        return None;
    }
    let mut builder = Builder {
        from,
        tables,
        context,
        nullable: vec![false; tables.len()],
        shape: JoinShape {
            scans: tables.iter().map(|_| Scan::default()).collect(),
            joins: (1..tables.len())
                .map(|_| Join {
                    left: false,
                    on: Vec::new(),
                })
                .collect(),
            outputs: Vec::new(),
            sort: Vec::new(),
            group: None,
            limit: None,
            offset: 0,
        },
    };
    builder.from(select)?;
    if builder.shape.joins.iter().any(|j| j.on.is_empty()) {
        return None;
    }
    builder.outputs(select)?;
    builder.group(select)?;
    builder.order(query, select)?;
    builder.limit(query)?;
    // A scan that only filters still needs a column.
    for scan in &mut builder.shape.scans {
        if scan.select.is_empty() {
            scan.select.push("1".into());
            scan.formats.push(1);
        }
    }
    Some(builder.shape)
}

impl<'a> Builder<'a> {
    /// Joins and conditions. Tables of a comma list are joined by WHERE.
    fn from(&mut self, select: &'a Select) -> Option<()> {
        let mut at = 0;
        for tree in &select.from {
            at += 1;
            for join in &tree.joins {
                use JoinOperator as J;
                let (constraint, left) = match &join.join_operator {
                    J::Join(c) | J::Inner(c) => (c, false),
                    J::Left(c) | J::LeftOuter(c) => (c, true),
                    _ => return None,
                };
                let JoinConstraint::On(condition) = constraint else {
                    return None;
                };
                self.nullable[at] = left;
                self.shape.joins.get_mut(at - 1)?.left = left;
                for condition in conjuncts(condition) {
                    self.condition(condition, left.then_some(at))?;
                }
                at += 1;
            }
        }
        // Every item must have been one plain table of this walk.
        if at != self.tables.len() {
            return None;
        }
        for condition in select.selection.iter().flat_map(conjuncts) {
            self.condition(condition, None)?;
        }
        Some(())
    }

    /// A condition of WHERE or of an inner join (`left_of` None), or of the LEFT JOIN of that scan.
    fn condition(&mut self, condition: &'a Expr, left_of: Option<usize>) -> Option<()> {
        if let Expr::BinaryOp {
            left,
            op: BinaryOperator::Eq,
            right,
        } = condition
            && let (Some(a), Some(b)) = (self.key_column(left), self.key_column(right))
            && a.0 != b.0
        {
            let ((first, first_name), (second, second_name)) = if a.0 < b.0 { (a, b) } else { (b, a) };
            let target = left_of.unwrap_or(second);
            let nullable_left = self.nullable[first] || (left_of.is_none() && self.nullable[second]);
            if target != second || nullable_left || !self.comparable(first, &first_name, second, &second_name) {
                return None;
            }
            let on = (self.key(first, &first_name)?, self.key(second, &second_name)?);
            self.shape.joins.get_mut(second - 1)?.on.push(((first, on.0), on.1));
            return Some(());
        }
        let (scan, sql) = self.single(condition)?;
        let allowed = match left_of {
            Some(right) => scan == right,
            None => !self.nullable[scan],
        };
        self.shape.scans[scan].filters.push(sql);
        allowed.then_some(())
    }

    /// A plain column: its scan and name.
    fn key_column(&self, expr: &Expr) -> Option<(usize, String)> {
        let (qualifier, column) = match expr {
            Expr::Identifier(column) => (None, fold(column)),
            Expr::CompoundIdentifier(parts) if parts.len() == 2 => (Some(fold(&parts[0])), fold(&parts[1])),
            Expr::Nested(inner) => return self.key_column(inner),
            _ => return None,
        };
        Some((self.from.owner(qualifier.as_deref(), &column)?, column))
    }

    fn type_of(&self, scan: usize, column: &str) -> Option<u32> {
        Some(self.tables[scan].column(column)?.type_oid)
    }

    /// Whether equal keys mean equal values.
    fn comparable(&self, a: usize, a_name: &str, b: usize, b_name: &str) -> bool {
        let class = |oid: u32| match oid {
            20 | 21 | 23 => 20,
            25 | 1043 => 25,
            700 | 701 => 701,
            other => other,
        };
        match (self.type_of(a, a_name), self.type_of(b, b_name)) {
            (Some(a), Some(b)) => class(a) == class(b),
            _ => false,
        }
    }

    /// A key column of a scan.
    fn key(&mut self, scan: usize, column: &str) -> Option<usize> {
        let kind = KeyKind::of(self.type_of(scan, column)?)?;
        let place = self.fetch(scan, plain_column(column)?, 1);
        Some(self.add_key(scan, place, kind))
    }

    fn add_key(&mut self, scan: usize, place: usize, kind: KeyKind) -> usize {
        let keys = &mut self.shape.scans[scan].keys;
        keys.iter().position(|k| k.0 == place).unwrap_or_else(|| {
            keys.push((place, kind));
            keys.len() - 1
        })
    }

    fn fetch(&mut self, scan: usize, sql: String, format: i16) -> usize {
        let scan = &mut self.shape.scans[scan];
        let found = scan
            .select
            .iter()
            .zip(&scan.formats)
            .position(|(s, f)| *s == sql && *f == format);
        found.unwrap_or_else(|| {
            scan.select.push(sql);
            scan.formats.push(format);
            scan.select.len() - 1
        })
    }

    /// An expression of one scan as SQL; constants belong to the first.
    fn single(&self, expr: &Expr) -> Option<(usize, String)> {
        let names = OneScan {
            from: self.from,
            context: self.context,
            owner: Cell::new(None),
            mixed: Cell::new(false),
        };
        let sql = render(expr, &names)?;
        (!names.mixed.get()).then(|| (names.owner.get().unwrap_or(0), sql))
    }

    /// Like [`Self::single`], for values that the join passes on.
    fn value(&self, expr: &Expr) -> Option<(usize, String)> {
        let (scan, sql) = self.single(expr)?;
        (!self.nullable[scan] || self.key_column(expr).is_some()).then_some((scan, sql))
    }

    fn outputs(&mut self, select: &'a Select) -> Option<()> {
        for item in &select.projection {
            let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else {
                return None;
            };
            let index = self.shape.outputs.len();
            let format = *self.context.formats.get(index)?;
            let part = match aggregate_call(expr) {
                Some((name, argument)) => {
                    self.aggregate(&name, argument, format, self.context.columns.get(index)?.type_oid)?
                }
                None => {
                    let (scan, sql) = self.value(expr)?;
                    Part::Column((scan, self.fetch(scan, sql, format)))
                }
            };
            self.shape.outputs.push(part);
        }
        (self.shape.outputs.len() == self.context.columns.len()).then_some(())
    }

    /// An aggregate over the joined rows: each row counts as a partial result.
    fn aggregate(&mut self, name: &str, argument: Option<&Expr>, format: i16, result: u32) -> Option<Part> {
        let Some(argument) = argument else {
            let one = self.fetch(0, "CAST(1 AS pg_catalog.int8)".into(), 1);
            return Some(Part::Aggregate {
                what: Aggregate::Count,
                value: (0, one),
                second: None,
                key: None,
            });
        };
        let (scan, sql) = self.value(argument)?;
        let counted = format!("CAST(CASE WHEN {sql} IS NULL THEN 0 ELSE 1 END AS pg_catalog.int8)");
        let mut at = |sql: String, format| (scan, self.fetch(scan, sql, format));
        let (what, value, second, key) = match (name, result) {
            ("count", 20) => (Aggregate::Count, at(counted, 1), None, None),
            ("sum", 20) => (
                Aggregate::SumBigint,
                at(format!("CAST({sql} AS pg_catalog.int8)"), 1),
                None,
                None,
            ),
            ("sum", 1700) => (
                Aggregate::SumNumeric,
                at(format!("CAST({sql} AS pg_catalog.numeric)"), 1),
                None,
                None,
            ),
            ("avg", 1700) => {
                let sum = at(format!("CAST({sql} AS pg_catalog.numeric)"), 1);
                (Aggregate::Average, sum, Some(at(counted, 1)), None)
            }
            ("min" | "max", _) => {
                let what = if name == "min" { Aggregate::Min } else { Aggregate::Max };
                let kind = KeyKind::of(result)?;
                (what, at(sql.clone(), format), Some(at(sql, 1)), Some(kind))
            }
            _ => return None,
        };
        Some(Part::Aggregate {
            what,
            value,
            second,
            key,
        })
    }

    fn group(&mut self, select: &'a Select) -> Option<()> {
        let groups: &[Expr] = match &select.group_by {
            GroupByExpr::Expressions(list, modifiers) if modifiers.is_empty() => list,
            _ => return None,
        };
        let aggregates = self.shape.outputs.iter().any(|o| matches!(o, Part::Aggregate { .. }));
        match &select.distinct {
            None | Some(Distinct::All) => {}
            Some(Distinct::Distinct) if !aggregates && groups.is_empty() => {
                let mut keys = Vec::new();
                for index in 0..self.shape.outputs.len() {
                    let Part::Column((scan, place)) = self.shape.outputs[index] else {
                        return None;
                    };
                    let kind = KeyKind::of(self.context.columns.get(index)?.type_oid)?;
                    let sql = self.shape.scans[scan].select[place].clone();
                    let place = self.fetch(scan, sql, 1);
                    keys.push((scan, self.add_key(scan, place, kind)));
                }
                self.shape.group = Some(keys);
                return Some(());
            }
            Some(_) => return None,
        }
        if !aggregates && groups.is_empty() {
            return Some(());
        }
        let mut keys = Vec::new();
        let mut grouped = Vec::new();
        for expr in groups {
            let (scan, column) = self.key_column(expr)?;
            keys.push((scan, self.key(scan, &column)?));
            grouped.push((scan, plain_column(&column)?));
        }
        let covered = self.shape.outputs.iter().all(|output| match output {
            Part::Column((scan, place)) => grouped.contains(&(*scan, self.shape.scans[*scan].select[*place].clone())),
            _ => true,
        });
        self.shape.group = Some(keys);
        covered.then_some(())
    }

    fn order(&mut self, query: &'a Query, select: &'a Select) -> Option<()> {
        let Some(order_by) = &query.order_by else {
            return Some(());
        };
        let OrderByKind::Expressions(list) = &order_by.kind else {
            return None;
        };
        for item in list {
            let descending = item.options.asc == Some(false);
            let direction = Direction {
                descending,
                nulls_first: item.options.nulls_first.unwrap_or(descending),
            };
            let (part, kind) = self.sort_target(&item.expr, select)?;
            self.shape.sort.push((part, kind, direction));
        }
        Some(())
    }

    fn sort_target(&mut self, expr: &'a Expr, select: &'a Select) -> Option<(Part, KeyKind)> {
        let columns = self.context.columns;
        let output = match expr {
            Expr::Value(v) => match &v.value {
                Value::Number(n, _) => Some(n.parse::<usize>().ok()?.checked_sub(1)?),
                _ => return None,
            },
            Expr::Identifier(ident) if columns.iter().any(|c| c.name == fold(ident)) => {
                let name = fold(ident);
                let mut named = (0..columns.len()).filter(|i| columns[*i].name == name);
                let first = named.next();
                if named.next().is_some() {
                    return None;
                }
                first
            }
            _ => select.projection.iter().position(|item| match item {
                SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. } => e == expr,
                _ => false,
            }),
        };
        let Some(output) = output else {
            // Behind a grouping, only its outputs are there.
            if self.shape.group.is_some() {
                return None;
            }
            let (scan, column) = self.key_column(expr)?;
            let kind = KeyKind::of(self.type_of(scan, &column)?)?;
            return Some((Part::Column((scan, self.fetch(scan, plain_column(&column)?, 1))), kind));
        };
        let kind = KeyKind::of(columns.get(output)?.type_oid)?;
        match self.shape.outputs.get(output)?.clone() {
            Part::Column((scan, place)) => {
                let sql = self.shape.scans[scan].select[place].clone();
                Some((Part::Column((scan, self.fetch(scan, sql, 1))), kind))
            }
            _ => Some((Part::Output(output), kind)),
        }
    }

    fn limit(&mut self, query: &Query) -> Option<()> {
        let Some(clause) = &query.limit_clause else {
            return Some(());
        };
        let LimitClause::LimitOffset {
            limit,
            offset,
            limit_by,
        } = clause
        else {
            return None;
        };
        if !limit_by.is_empty() {
            return None;
        }
        if let Some(limit) = limit {
            self.shape.limit = row_count(limit, self.context)?;
        }
        if let Some(offset) = offset {
            self.shape.offset = row_count(&offset.value, self.context)??;
        }
        Some(())
    }
}

impl JoinShape {
    /// Where a column is in the joined rows.
    fn place(&self, (scan, place): Column) -> usize {
        self.scans[..scan].iter().map(|s| s.select.len()).sum::<usize>() + place
    }

    /// Columns of the joined rows.
    pub fn width(&self) -> usize {
        self.scans.iter().map(|s| s.select.len()).sum()
    }

    /// The outputs over the joined rows.
    pub fn outputs(&self) -> Vec<Output> {
        let output = |part: &Part| match part {
            Part::Column(column) => Output::Column(self.place(*column)),
            Part::Aggregate {
                what,
                value,
                second,
                key,
            } => Output::Aggregate {
                what: *what,
                value: self.place(*value),
                second: second.map_or(0, |s| self.place(s)),
                key: *key,
            },
            Part::Output(index) => Output::Column(*index),
        };
        self.outputs.iter().map(output).collect()
    }

    /// The sort keys over the joined rows.
    pub fn sort(&self) -> Vec<SortKey> {
        let key = |(part, kind, direction): &(Part, KeyKind, Direction)| SortKey {
            by: match part {
                Part::Column(column) => SortBy::Column(self.place(*column)),
                Part::Output(index) => SortBy::Output(*index),
                Part::Aggregate { value, .. } => SortBy::Column(self.place(*value)),
            },
            kind: *kind,
            direction: *direction,
        };
        self.sort.iter().map(key).collect()
    }
}
