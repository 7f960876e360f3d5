//! Grammar that sqlparser reads differently is given to it with marks, which mean what PostgreSQL means afterwards.

use sqlparser::ast::{
    BinaryOperator, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, Value, VisitorMut,
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

/// Puts back what the marks stand for.
pub(super) struct Unmark;

impl VisitorMut for Unmark {
    type Break = ();

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
