//! Which conditions of a SELECT can run where the rows of one relation are read, without changing the result.
//!
//! The conditions stay in the statement as well, so a condition that is not pushed only costs rows. Sound is:
//! - a condition of WHERE, or of an inner join's ON, for a relation that no outer join can extend with NULLs;
//! - a condition of a LEFT JOIN's ON for the relation on its right.

use crate::relations::fold;
use crate::render::{Names, conjuncts, plain_column, render};
use sqlparser::ast::{BinaryOperator, Expr, JoinConstraint, JoinOperator, Select, TableFactor, TableWithJoins};
use std::ops::Range;

/// A relation as the conditions around it see it.
pub(crate) struct Item<'a> {
    /// where its name starts in the statement; None for what is no relation (a subquery, a function)
    pub at: Option<usize>,
    /// what qualifies its columns
    pub name: Option<String>,
    /// its columns, where they are known
    pub columns: Option<&'a [String]>,
    /// conditions of WHERE may not be pushed to it
    nullable: bool,
    /// TABLESAMPLE comes before any condition
    sampled: bool,
}

/// A relation's columns by the place of its name; `None` for a relation whose columns are not known.
pub(crate) trait Columns {
    /// The columns of the relation that is named at this byte.
    fn columns_at(&self, at: usize) -> Option<&[String]>;
    /// Whether `$number` can be sent to a shard.
    fn parameter(&self, number: usize) -> bool;
}

/// Of which items a join's condition may leave out rows. A condition without columns would do for any, and must not get beyond its join:
/// in `a JOIN b ON false RIGHT JOIN c ON …`, all rows of c stay.
#[derive(Clone)]
enum On {
    /// an inner join's: of those in it, unless a join around it extends them with NULLs
    Inner(Range<usize>),
    /// a LEFT JOIN's: of the one on its right
    Left(usize),
}

/// One FROM, flattened.
pub(crate) struct From<'a> {
    pub items: Vec<Item<'a>>,
    /// names in USING lists
    merged: Vec<String>,
    natural: bool,
    /// conditions of ON, each with the items whose rows it may leave out
    conditions: Vec<(&'a Expr, On)>,
}

impl<'a> From<'a> {
    /// Flattens a FROM.
    pub fn of(from: &'a [TableWithJoins], known: &'a dyn Columns) -> Self {
        let mut this = Self {
            items: Vec::new(),
            merged: Vec::new(),
            natural: false,
            conditions: Vec::new(),
        };
        for tree in from {
            this.tree(tree, known, false);
        }
        this
    }

    fn tree(&mut self, tree: &'a TableWithJoins, known: &'a dyn Columns, nullable: bool) {
        let first = self.items.len();
        self.factor(&tree.relation, known, nullable);
        for join in &tree.joins {
            let right = self.items.len();
            use JoinOperator as J;
            let (constraint, left_extends, right_extends) = match &join.join_operator {
                J::Join(c) | J::Inner(c) | J::CrossJoin(c) => (Some(c), false, false),
                J::Left(c) | J::LeftOuter(c) => (Some(c), false, true),
                J::Right(c) | J::RightOuter(c) => (Some(c), true, false),
                J::FullOuter(c) => (Some(c), true, true),
                _ => (None, true, true),
            };
            self.factor(&join.relation, known, nullable || right_extends);
            if left_extends {
                self.items[first..right]
                    .iter_mut()
                    .for_each(|item| item.nullable = true);
            }
            match constraint {
                Some(JoinConstraint::On(condition)) => match (left_extends, right_extends) {
                    (false, false) => self.conditions.push((condition, On::Inner(first..self.items.len()))),
                    (false, true) if self.items.len() == right + 1 => {
                        self.conditions.push((condition, On::Left(right)))
                    }
                    _ => {}
                },
                Some(JoinConstraint::Using(names)) => self.merged.extend(
                    names
                        .iter()
                        .filter_map(|n| n.0.last().and_then(|p| p.as_ident()).map(fold)),
                ),
                Some(JoinConstraint::Natural) => self.natural = true,
                _ => {}
            }
        }
    }

    fn factor(&mut self, factor: &'a TableFactor, known: &'a dyn Columns, nullable: bool) {
        let mut item = Item {
            at: None,
            name: None,
            columns: None,
            nullable,
            sampled: false,
        };
        match factor {
            TableFactor::Table {
                name,
                alias,
                args: None,
                sample,
                ..
            } => {
                let ident = |i: usize| name.0.get(i).and_then(|p| p.as_ident());
                let at = ident(0).map(|i| i.span.start.column as usize).unwrap_or(0);
                item.at = at.checked_sub(1);
                item.columns = item.at.and_then(|at| known.columns_at(at));
                item.sampled = sample.is_some();
                item.name = match alias {
                    Some(alias) => {
                        if !alias.columns.is_empty() {
                            // Renamed columns: no condition can be written in the relation's own names.
                            item.columns = None;
                        }
                        Some(fold(&alias.name))
                    }
                    None => ident(name.0.len() - 1).map(fold),
                };
            }
            TableFactor::NestedJoin {
                table_with_joins,
                alias: None,
            } => {
                return self.tree(table_with_joins, known, nullable);
            }
            TableFactor::Derived { alias: Some(alias), .. } => item.name = Some(fold(&alias.name)),
            _ => {}
        }
        self.items.push(item);
    }

    /// The item that owns a column, when that is certain.
    pub fn owner(&self, qualifier: Option<&str>, column: &str) -> Option<usize> {
        let mut owners = self.items.iter().enumerate().filter(|(_, item)| match qualifier {
            Some(qualifier) => item.name.as_deref() == Some(qualifier),
            None => item.columns.is_some_and(|c| c.iter().any(|c| c == column)),
        });
        let (index, item) = owners.next()?;
        if owners.next().is_some() || !item.columns?.iter().any(|c| c == column) {
            return None;
        }
        // An unqualified name of a USING list is the join's own column. A subquery that has the name as well would
        // have made it ambiguous, which PostgreSQL has ruled out when it described the statement.
        if qualifier.is_none() && (self.natural || self.merged.iter().any(|m| m == column)) {
            return None;
        }
        Some(index)
    }
}

/// Sees the columns of one item only.
struct Only<'a> {
    from: &'a From<'a>,
    item: usize,
    known: &'a dyn Columns,
}

impl Names for Only<'_> {
    fn column(&self, qualifier: Option<&str>, name: &str) -> Option<String> {
        (self.from.owner(qualifier, name)? == self.item).then(|| plain_column(name))?
    }

    fn parameter(&self, number: usize) -> bool {
        self.known.parameter(number)
    }
}

/// What a condition says about one relation's rows: the condition itself where it has nothing else in it, and of alternatives
/// that each say something about the relation, that one of them holds.
fn implied(condition: &Expr, names: &dyn Names) -> Option<String> {
    if let Some(sql) = render(condition, names) {
        return Some(sql);
    }
    match condition {
        Expr::Nested(inner) => implied(inner, names),
        Expr::BinaryOp {
            left,
            op: BinaryOperator::Or,
            right,
        } => {
            let side = |side: &Expr| {
                let parts: Vec<_> = conjuncts(side).into_iter().filter_map(|c| implied(c, names)).collect();
                (!parts.is_empty()).then(|| parts.join(" AND "))
            };
            Some(format!("(({}) OR ({}))", side(left)?, side(right)?))
        }
        _ => None,
    }
}

/// The conditions for each relation of this SELECT's own FROM: (where its name starts, conditions in
/// the relation's column names). A relation without any is listed with none.
pub(crate) fn conditions<'a>(select: &'a Select, known: &'a dyn Columns) -> Vec<(usize, Vec<String>)> {
    let from = From::of(&select.from, known);
    let whole = On::Inner(0..from.items.len());
    let on = from.conditions.iter().map(|(condition, on)| (*condition, on));
    let all: Vec<(&Expr, &On)> = on
        .chain(select.selection.iter().map(|condition| (condition, &whole)))
        .flat_map(|(condition, on)| conjuncts(condition).into_iter().map(move |c| (c, on)))
        .collect();
    let per_item = from.items.iter().enumerate().filter_map(|(index, item)| {
        let at = item.at?;
        let mut pushed = Vec::new();
        if item.columns.is_some() && !item.sampled {
            for (condition, on) in &all {
                let allowed = match on {
                    On::Left(right) => *right == index,
                    On::Inner(items) => items.contains(&index) && !item.nullable,
                };
                let names = Only {
                    from: &from,
                    item: index,
                    known,
                };
                if allowed && let Some(sql) = implied(condition, &names) {
                    pushed.push(sql);
                }
            }
        }
        Some((at, pushed))
    });
    per_item.collect()
}
