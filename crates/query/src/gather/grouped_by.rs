//! What a SELECT groups by: only where all columns of a primary key are among it may the key stand for its row's other columns.

use crate::relations::fold;
use sqlparser::ast::{Expr, GroupByExpr, Select, SelectItem, Value};
use std::collections::HashSet;

/// Names of columns that SELECTs of one statement group by.
#[derive(Default)]
pub(super) struct GroupedBy {
    names: HashSet<String>,
    /// some of them are not known
    unclear: bool,
}

impl GroupedBy {
    /// Adds those of a SELECT.
    pub fn add(&mut self, select: &Select) {
        match &select.group_by {
            GroupByExpr::Expressions(items, _) => items.iter().for_each(|item| self.item(item, select)),
            GroupByExpr::All(_) => self.unclear = true,
        }
    }

    /// Whether a column of this name may be among them.
    pub fn may_have(&self, column: &str) -> bool {
        self.unclear || self.names.contains(column)
    }

    fn item(&mut self, item: &Expr, select: &Select) {
        match item {
            Expr::Identifier(ident) => {
                let name = fold(ident);
                // It may be an output's name.
                for output in &select.projection {
                    if let SelectItem::ExprWithAlias { expr, alias } = output
                        && fold(alias) == name
                    {
                        self.column(expr);
                    }
                }
                self.names.insert(name);
            }
            Expr::Value(value) => {
                if let Value::Number(number, _) = &value.value {
                    self.output(number, select);
                }
            }
            Expr::Nested(inner) => self.item(inner, select),
            Expr::Tuple(items) => items.iter().for_each(|item| self.item(item, select)),
            Expr::Rollup(sets) | Expr::Cube(sets) | Expr::GroupingSets(sets) => {
                sets.iter().flatten().for_each(|item| self.item(item, select));
            }
            other => self.column(other),
        }
    }

    /// The output of this number.
    fn output(&mut self, number: &str, select: &Select) {
        let is_star = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
        let at = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        match at.and_then(|at| select.projection.get(at)) {
            Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. })
                if !select.projection.iter().any(is_star) =>
            {
                self.column(expr);
            }
            _ => self.unclear = true,
        }
    }

    /// A column; other expressions are nothing that a key has.
    fn column(&mut self, expr: &Expr) {
        match expr {
            Expr::Identifier(ident) => {
                self.names.insert(fold(ident));
            }
            Expr::CompoundIdentifier(parts) => self.names.extend(parts.last().map(fold)),
            Expr::Nested(inner) => self.column(inner),
            Expr::CompoundFieldAccess { .. } => self.unclear = true,
            _ => {}
        }
    }
}
