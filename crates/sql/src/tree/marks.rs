//! Grammar that sqlparser reads differently is given to it with marks, which mean what PostgreSQL means afterwards.

use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, Select, SelectItem,
    SelectItemQualifiedWildcardKind, Value, VisitorMut, WildcardAdditionalOptions,
};
use std::ops::ControlFlow;

/// sqlparser takes all that follows IS [NOT] DISTINCT FROM for its operand, also behind AND and OR. So it gets
/// `a <=> mark(b)`, which it reads with the right precedence, and [`Unmark`] puts the meaning back.
pub(super) const DISTINCT: &str = "pgherd is distinct from";
pub(super) const NOT_DISTINCT: &str = "pgherd is not distinct from";

/// Which bound of BETWEEN SYMMETRIC is the lower one is only known when it is computed. So both become calls of a function that nobody
/// knows, which says nothing about where rows are.
pub(super) const SYMMETRIC: &str = "pgherd symmetric";

/// sqlparser has COLLATE behind names and constants only. Behind a cast it gets `a::text AT TIME ZONE mark(b)`, which binds as tightly
/// but to another AT TIME ZONE, and [`Unmark`] puts the meaning back.
pub(super) const COLLATION: &str = "pgherd collate";

/// An array that stands for the rest of the arguments: only PostgreSQL knows what the function makes of it, so it is an argument that
/// nobody knows.
pub(super) const VARIADIC: &str = "pgherd variadic";

/// The columns of a row, `(f(x)).*`, which sqlparser knows of names only. [`Unmark`] puts the meaning back.
pub(super) const ROW_COLUMNS: &str = "pgherd row columns";

/// The first of several values of IN where it is a query, which sqlparser would take for the only one.
pub(super) const VALUE: &str = "pgherd value";

/// `COLLATION FOR (a)`.
pub(super) const COLLATION_FOR: &str = "pgherd collation for";

/// `ROWS FROM (f(x), g(y))`: a function in FROM that nobody knows.
pub(super) const ROWS_FROM: &str = "pgherd rows from";

/// Puts back what the marks stand for.
pub(super) struct Unmark;

impl VisitorMut for Unmark {
    type Break = ();

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(Expr::Function(function)) = item
                && let Some(row) = marked_argument(function, ROW_COLUMNS)
            {
                let kind = SelectItemQualifiedWildcardKind::Expr(row);
                *item = SelectItem::QualifiedWildcard(kind, WildcardAdditionalOptions::default());
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::AtTimeZone { timestamp, time_zone } = expr
            && let Some(collation) = marked_collation(time_zone)
        {
            let nothing = Box::new(Expr::Value(Value::Null.into()));
            let expr_of = std::mem::replace(timestamp, nothing);
            *expr = Expr::Collate {
                expr: expr_of,
                collation,
            };
            return ControlFlow::Continue(());
        }
        if let Expr::BinaryOp {
            left,
            op: BinaryOperator::Spaceship,
            right,
        } = expr
            && let Expr::Function(function) = &mut **right
            && let Some(name) = function
                .name
                .0
                .first()
                .and_then(|p| p.as_ident())
                .map(|i| i.value.clone())
            && let FunctionArguments::List(list) = &mut function.args
            && let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(operand))) = list.args.pop()
        {
            let nothing = Box::new(Expr::Value(Value::Null.into()));
            let (left, right) = (std::mem::replace(left, nothing), Box::new(operand));
            *expr = match name == DISTINCT {
                true => Expr::IsDistinctFrom(left, right),
                false => Expr::IsNotDistinctFrom(left, right),
            };
        }
        ControlFlow::Continue(())
    }
}

/// The argument of a call of this mark.
fn marked_argument(function: &mut Function, mark: &str) -> Option<Expr> {
    let name = function.name.0.first().and_then(|part| part.as_ident())?;
    let FunctionArguments::List(list) = &mut function.args else {
        return None;
    };
    if name.value != mark || list.args.len() != 1 {
        return None;
    }
    match list.args.pop()? {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) => Some(argument),
        _ => None,
    }
}

/// The name in `mark(name)`.
fn marked_collation(expr: &Expr) -> Option<ObjectName> {
    let Expr::Function(function) = expr else { return None };
    let name = function.name.0.first().and_then(|part| part.as_ident())?;
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] = &list.args[..] else {
        return None;
    };
    let parts = match argument {
        _ if name.value != COLLATION => return None,
        Expr::Identifier(part) => vec![part.clone()],
        Expr::CompoundIdentifier(parts) => parts.clone(),
        _ => return None,
    };
    Some(ObjectName::from(parts))
}
