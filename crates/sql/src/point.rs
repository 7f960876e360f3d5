//! Statements that find at most one row, by a whole unique key. PostgreSQL plans such a statement the same for every
//! value, so it may be kept prepared on the shards, whoever sends it and however often: no plan gets worse.
//!
//! A statement that came with constants in its text is looked up with placeholders in their places. Whether it may also
//! be *run* that way depends on where they stand: [`Point::constants`] counts those places in which a parameter means
//! just what the constant does. Anything else (a constant in ORDER BY or GROUP BY, in a type, in an expression that
//! resolves overloads by it) makes the count fall short of the text's, and the text is sent as it came.

use crate::relations::identifier;
use pgherd_model::{FIRST_OF_USERS, Sharded, Table};
use sqlparser::ast::{
    Assignment, AssignmentTarget, BinaryOperator, Expr, FromTable, GroupByExpr, Query, Select, SetExpr, Statement,
    TableFactor, TableWithJoins, UnaryOperator, Value,
};

/// OIDs of text and varchar, whose every text is a value.
const TEXTS: [u32; 2] = [25, 1043];

/// A statement on at most one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// the placeholders that could be constants in their places, ascending and each once: `$number`, and whether a
    /// quoted constant may stand there, or only a number
    pub constants: Vec<(usize, bool)>,
    /// the placeholders that the key's columns equal
    pub key: Vec<usize>,
    /// nothing but that row decides what it does, and a SELECT may be followed by FOR UPDATE
    pub locks_row: bool,
}

/// What is known of the statement while it is looked through.
struct Finder<'a> {
    table: &'a Table,
    sharded: &'a Sharded,
    /// columns that equal a placeholder, and which
    fixed: Vec<(&'a str, usize)>,
    constants: Vec<(usize, bool)>,
}

/// For a statement whose only relation is the sharded `table`, and which has no subqueries.
pub(crate) fn point(tree: &Statement, table: &Table) -> Option<Point> {
    let mut finder = Finder {
        table,
        sharded: table.sharded()?,
        fixed: Vec::new(),
        constants: Vec::new(),
    };
    match tree {
        Statement::Query(query) => finder.condition(selection(query)?),
        Statement::Update(update) if update.from.is_none() && alone(&update.table) => {
            finder.condition(update.selection.as_ref()?);
            update.assignments.iter().for_each(|a| finder.assignment(a));
        }
        Statement::Delete(delete) if delete.using.is_none() => {
            match &delete.from {
                FromTable::WithFromKeyword(from) if matches!(&from[..], [one] if alone(one)) => {}
                _ => return None,
            }
            finder.condition(delete.selection.as_ref()?);
        }
        _ => return None,
    }
    let placeholder_of = |column: &String| {
        finder
            .fixed
            .iter()
            .find(|(c, _)| c == column)
            .map(|(_, number)| *number)
    };
    let by_key = (finder.sharded.unique.iter())
        .find_map(|(_, columns)| columns.iter().map(placeholder_of).collect::<Option<Vec<_>>>());
    // Users' types may bring functions along, and rules and policies other tables.
    let plain = finder.sharded.direct && table.columns.iter().all(|c| c.type_oid < FIRST_OF_USERS);
    let unlocked = !matches!(tree, Statement::Query(query) if !query.locks.is_empty());
    let mut constants = finder.constants;
    constants.sort_unstable();
    constants.dedup_by_key(|(number, _)| *number);
    Some(Point {
        constants,
        key: by_key?,
        locks_row: plain && unlocked,
    })
}

/// WHERE of a plain SELECT.
fn selection(query: &Query) -> Option<&Expr> {
    let plain =
        query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none();
    let SetExpr::Select(select) = &*query.body else {
        return None;
    };
    let Select {
        distinct: None,
        having: None,
        group_by: GroupByExpr::Expressions(groups, _),
        ..
    } = &**select
    else {
        return None;
    };
    let plain = plain && groups.is_empty() && select.named_window.is_empty();
    match &select.from[..] {
        [one] if plain && alone(one) => select.selection.as_ref(),
        _ => None,
    }
}

fn alone(table: &TableWithJoins) -> bool {
    table.joins.is_empty() && matches!(table.relation, TableFactor::Table { .. })
}

impl<'a> Finder<'a> {
    /// Conditions that AND joins.
    fn condition(&mut self, expr: &Expr) {
        match expr {
            Expr::Nested(inner) => self.condition(inner),
            Expr::BinaryOp {
                left,
                op: BinaryOperator::And,
                right,
            } => {
                self.condition(left);
                self.condition(right);
            }
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Eq,
                right,
            } => {
                let found = match (self.column(left), placeholder(right)) {
                    (Some(column), Some(number)) => Some((column, number)),
                    _ => self.column(right).zip(placeholder(left)),
                };
                if let Some((column, number)) = found {
                    self.fixed.push((&self.table.columns[column].name, number));
                    self.constants.push((number, self.takes_text(column)));
                }
            }
            _ => {}
        }
    }

    /// `column = $1`, or `column = other + $1`.
    fn assignment(&mut self, assignment: &Assignment) {
        let AssignmentTarget::ColumnName(name) = &assignment.target else {
            return;
        };
        let target = match &name.0[..] {
            [only] => only.as_ident().map(identifier),
            _ => None,
        };
        let Some(column) = target.and_then(|n| self.table.columns.iter().position(|c| c.name == n)) else {
            return;
        };
        match &assignment.value {
            Expr::BinaryOp {
                left,
                op: BinaryOperator::Plus | BinaryOperator::Minus | BinaryOperator::Multiply,
                right,
            } if self.column(left).is_some() => {
                let number = match &**right {
                    Expr::UnaryOp {
                        op: UnaryOperator::Minus,
                        expr,
                    } => placeholder(expr),
                    other => placeholder(other),
                };
                self.constants.extend(number.map(|n| (n, false)));
            }
            value => {
                let text = TEXTS.contains(&self.table.columns[column].type_oid);
                self.constants.extend(placeholder(value).map(|n| (n, text)));
            }
        }
    }

    /// The column that an expression names, with or without the relation.
    fn column(&self, expr: &Expr) -> Option<usize> {
        let name = match expr {
            Expr::Identifier(name) => identifier(name),
            Expr::CompoundIdentifier(parts) if parts.len() == 2 => identifier(&parts[1]),
            _ => return None,
        };
        self.table.columns.iter().position(|c| c.name == name)
    }

    /// Whether a quoted constant that is compared with the column cannot fail to be a value of its type: texts are,
    /// and what routing has read as a key is.
    fn takes_text(&self, column: usize) -> bool {
        let column = &self.table.columns[column];
        TEXTS.contains(&column.type_oid) || self.sharded.key.contains(&column.name)
    }
}

fn placeholder(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Placeholder(name) => name.strip_prefix('$')?.parse().ok(),
            _ => None,
        },
        _ => None,
    }
}
