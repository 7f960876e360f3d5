//! A predicate as far as it restricts one table's columns. What is not understood becomes [`Condition::Any`],
//! so a condition always holds for at least the rows that the predicate accepts.

use crate::scalar::{List, Scalar};
use sqlparser::ast::{BinaryOperator, Expr};

/// A comparison's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

/// What must hold for a row of one table. Columns are numbered by the caller.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Condition {
    /// no restriction
    Any,
    /// no row
    Never,
    All(Vec<Condition>),
    Either(Vec<Condition>),
    Compare(usize, Comparison, Scalar),
    OneOf(usize, List),
    /// a row comparison, in the order of the row
    Row(Vec<usize>, Comparison, Vec<Scalar>),
}

impl Comparison {
    fn from_operator(op: &BinaryOperator) -> Option<Self> {
        Some(match op {
            BinaryOperator::Eq => Self::Equal,
            BinaryOperator::Lt => Self::Less,
            BinaryOperator::LtEq => Self::LessOrEqual,
            BinaryOperator::Gt => Self::Greater,
            BinaryOperator::GtEq => Self::GreaterOrEqual,
            _ => return None,
        })
    }

    fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Equal => Self::Equal,
            Self::GreaterOrEqual => Self::LessOrEqual,
            Self::Greater => Self::Less,
        }
    }
}

/// Finds the column of the table in question that an expression names.
pub(crate) type Resolve<'a> = &'a dyn Fn(&Expr) -> Option<usize>;

impl Condition {
    /// What `expr` says about the columns that `resolve` knows. On the side of an outer join that may be filled
    /// with NULLs (`nullable`), what accepts NULL says nothing: taking a row away would make such a filling.
    pub fn from_expr(expr: &Expr, nullable: bool, resolve: Resolve) -> Self {
        match expr {
            Expr::Nested(inner) | Expr::IsTrue(inner) => Self::from_expr(inner, nullable, resolve),
            Expr::BinaryOp { left, op, right } => match op {
                BinaryOperator::And => Self::all(vec![
                    Self::from_expr(left, nullable, resolve),
                    Self::from_expr(right, nullable, resolve),
                ]),
                BinaryOperator::Or => Self::either(vec![
                    Self::from_expr(left, nullable, resolve),
                    Self::from_expr(right, nullable, resolve),
                ]),
                _ => match Comparison::from_operator(op) {
                    Some(comparison) => Self::compare(left, comparison, right, resolve)
                        .or_else(|| Self::compare(right, comparison.flipped(), left, resolve))
                        .unwrap_or(Self::Any),
                    None => Self::Any,
                },
            },
            Expr::IsNotDistinctFrom(..) | Expr::IsNull(_) if nullable => Self::Any,
            Expr::IsNotDistinctFrom(left, right) => Self::compare(left, Comparison::Equal, right, resolve)
                .or_else(|| Self::compare(right, Comparison::Equal, left, resolve))
                .unwrap_or(Self::Any),
            Expr::IsNull(inner) => match resolve(inner) {
                Some(column) => Self::Compare(column, Comparison::Equal, Scalar::Null),
                None => Self::Any,
            },
            Expr::Between {
                expr,
                negated: false,
                low,
                high,
            } => Self::all(
                [(Comparison::GreaterOrEqual, low), (Comparison::LessOrEqual, high)]
                    .into_iter()
                    .map(|(c, bound)| Self::compare(expr, c, bound, resolve).unwrap_or(Self::Any))
                    .collect(),
            ),
            Expr::InList {
                expr,
                list,
                negated: false,
            } => Self::in_list(expr, list, resolve),
            Expr::AnyOp {
                left,
                compare_op: BinaryOperator::Eq,
                right,
                ..
            } => match (resolve(left), List::from_array(right)) {
                (Some(column), Some(list)) => Self::OneOf(column, list),
                _ => Self::Any,
            },
            _ => Self::Any,
        }
    }

    fn compare(left: &Expr, comparison: Comparison, right: &Expr, resolve: Resolve) -> Option<Self> {
        if let (Some(columns), Some(values)) = (row(left), row(right)) {
            return Self::compare_rows(columns, comparison, values, resolve);
        }
        let column = resolve(strip(left))?;
        Some(Self::Compare(column, comparison, Scalar::from_operand(right)?))
    }

    fn compare_rows(left: &[Expr], comparison: Comparison, right: &[Expr], resolve: Resolve) -> Option<Self> {
        if left.len() != right.len() {
            return None;
        }
        if comparison == Comparison::Equal {
            let each = left.iter().zip(right).map(|(l, r)| {
                Self::compare(l, comparison, r, resolve)
                    .or_else(|| Self::compare(r, comparison, l, resolve))
                    .unwrap_or(Self::Any)
            });
            return Some(Self::all(each.collect()));
        }
        // The leading columns decide; where the row goes on with something else, only they count.
        let understood: Vec<_> = left
            .iter()
            .zip(right)
            .map_while(|(l, r)| Some((resolve(strip(l))?, Scalar::from_expr(r)?)))
            .collect();
        let whole = understood.len() == left.len();
        let (columns, values): (Vec<_>, Vec<_>) = understood.into_iter().unzip();
        let widened = match comparison {
            _ if whole => comparison,
            Comparison::Less => Comparison::LessOrEqual,
            Comparison::Greater => Comparison::GreaterOrEqual,
            other => other,
        };
        (!columns.is_empty()).then_some(Self::Row(columns, widened, values))
    }

    fn in_list(expr: &Expr, list: &[Expr], resolve: Resolve) -> Self {
        if let Some(columns) = row(expr) {
            let each = list.iter().map(|values| {
                row(values)
                    .and_then(|values| Self::compare_rows(columns, Comparison::Equal, values, resolve))
                    .unwrap_or(Self::Any)
            });
            return Self::either(each.collect());
        }
        let scalars = list.iter().map(Scalar::from_expr).collect::<Option<_>>();
        match (resolve(strip(expr)), scalars) {
            (Some(column), Some(scalars)) => Self::OneOf(column, List::Scalars(scalars)),
            _ => Self::Any,
        }
    }

    /// All of them hold.
    pub fn all(conditions: Vec<Condition>) -> Self {
        let mut kept = Vec::new();
        for condition in conditions {
            match condition {
                Self::Any => {}
                Self::Never => return Self::Never,
                Self::All(inner) => kept.extend(inner),
                other => kept.push(other),
            }
        }
        match kept.len() {
            0 => Self::Any,
            1 => kept.remove(0),
            _ => Self::All(kept),
        }
    }

    /// One of them holds.
    pub fn either(conditions: Vec<Condition>) -> Self {
        let mut kept = Vec::new();
        for condition in conditions {
            match condition {
                Self::Any => return Self::Any,
                Self::Never => {}
                Self::Either(inner) => kept.extend(inner),
                other => kept.push(other),
            }
        }
        match kept.len() {
            0 => Self::Never,
            1 => kept.remove(0),
            _ => Self::Either(kept),
        }
    }

    /// The same about other columns: `to` gives a column's new number, or None where it has none, which lifts
    /// the restriction.
    pub fn mapped(&self, to: &dyn Fn(usize) -> Option<usize>) -> Self {
        match self {
            Self::Any => Self::Any,
            Self::Never => Self::Never,
            Self::All(inner) => Self::all(inner.iter().map(|c| c.mapped(to)).collect()),
            Self::Either(inner) => Self::either(inner.iter().map(|c| c.mapped(to)).collect()),
            Self::Compare(column, comparison, scalar) => {
                to(*column).map_or(Self::Any, |c| Self::Compare(c, *comparison, scalar.clone()))
            }
            Self::OneOf(column, list) => to(*column).map_or(Self::Any, |c| Self::OneOf(c, list.clone())),
            Self::Row(columns, comparison, scalars) => {
                let known: Vec<_> = columns.iter().map_while(|&c| to(c)).collect();
                let widened = match comparison {
                    _ if known.len() == columns.len() => *comparison,
                    Comparison::Less => Comparison::LessOrEqual,
                    Comparison::Greater => Comparison::GreaterOrEqual,
                    other => *other,
                };
                match known.len() {
                    0 => Self::Any,
                    count => Self::Row(known, widened, scalars[..count].to_vec()),
                }
            }
        }
    }

    /// The one column that it is about, if it is about one only.
    pub fn only_column(&self) -> Option<usize> {
        match self {
            Self::Any | Self::Never | Self::Row(..) => None,
            Self::Compare(column, ..) | Self::OneOf(column, _) => Some(*column),
            Self::All(inner) | Self::Either(inner) => {
                let first = inner.first()?.only_column()?;
                inner.iter().all(|c| c.only_column() == Some(first)).then_some(first)
            }
        }
    }
}

/// `(a)` is `a`.
pub(crate) fn strip(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => strip(inner),
        other => other,
    }
}

/// The fields of `(a, b)`.
fn row(expr: &Expr) -> Option<&[Expr]> {
    match strip(expr) {
        Expr::Tuple(fields) => Some(fields),
        _ => None,
    }
}
