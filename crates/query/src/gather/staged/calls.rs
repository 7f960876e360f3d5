//! What is called and named in an expression, and which calls are aggregates.

use super::blocks::item_expr;
use crate::relations::{fold, parts};
use sqlparser::ast::{Expr, Function, Query, Select, Visit, Visitor};
use std::ops::{ControlFlow, Range};

/// Aggregates that can be divided.
pub(super) const DIVIDED: [&str; 5] = ["count", "sum", "avg", "min", "max"];
/// Aggregates that PostgreSQL has beside them: what calls one is an aggregate query.
const OTHERS: &[&str] = &[
    "array_agg",
    "any_value",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "covar_pop",
    "covar_samp",
    "every",
    "grouping",
    "json_agg",
    "json_object_agg",
    "jsonb_agg",
    "jsonb_object_agg",
    "mode",
    "percentile_cont",
    "percentile_disc",
    "range_agg",
    "range_intersect_agg",
    "regr_count",
    "regr_slope",
    "stddev",
    "stddev_pop",
    "stddev_samp",
    "string_agg",
    "var_pop",
    "var_samp",
    "variance",
    "xmlagg",
];

/// The name of a function of pg_catalog.
pub(super) fn name_of(function: &Function) -> Option<String> {
    match parts(&function.name)?.as_slice() {
        [name] => Some(fold(name)),
        [schema, name] if fold(schema) == "pg_catalog" => Some(fold(name)),
        _ => None,
    }
}

/// Whether a call is that of an aggregate that PostgreSQL has.
pub(super) fn is_aggregate(function: &Function) -> bool {
    let known = |name: String| DIVIDED.contains(&name.as_str()) || OTHERS.contains(&name.as_str());
    function.over.is_none() && name_of(function).is_some_and(known)
}

/// Calls and columns of an expression, with where they are.
#[derive(Default)]
pub(super) struct Found {
    /// of the subquery that the walk is in
    depth: usize,
    pub calls: Vec<Function>,
    /// outside of subqueries
    pub columns: Vec<(Range<usize>, Expr)>,
    pub windows: bool,
    pub subqueries: bool,
}

impl Visitor for Found {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        self.subqueries = true;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.depth > 0 {
            return ControlFlow::Continue(());
        }
        let span = |first: &sqlparser::ast::Ident, last: &sqlparser::ast::Ident| {
            (first.span.start.column as usize).saturating_sub(1)..(last.span.end.column as usize).saturating_sub(1)
        };
        match expr {
            Expr::Function(function) => {
                self.windows |= function.over.is_some();
                self.calls.push(function.clone());
            }
            Expr::Identifier(column) => self.columns.push((span(column, column), expr.clone())),
            Expr::CompoundIdentifier(idents) => {
                if let (Some(first), Some(last)) = (idents.first(), idents.last()) {
                    self.columns.push((span(first, last), expr.clone()));
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// What is called and named in an expression.
pub(super) fn found(expr: &Expr) -> Found {
    let mut found = Found::default();
    let _ = expr.visit(&mut found);
    found
}

/// Whether a SELECT has window functions of its own.
pub(super) fn has_windows(select: &Select) -> bool {
    let items = select.projection.iter().filter_map(item_expr);
    !select.named_window.is_empty() || items.chain(&select.having).any(|e| found(e).windows)
}
