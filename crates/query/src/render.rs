//! Writes an expression as SQL for a shard, or says that it may not leave the statement.
//!
//! What is written means the same on every shard and as often as it is evaluated: columns of the relation at hand,
//! constants, parameters, operators, and functions that are known to have no effects and to depend on nothing but
//! arguments and session settings. Everything else (subqueries, `random()`, `now()`, functions of users) gives None.

use crate::relations::{fold, parts};
use pgherd_model::{quote_identifier, quote_literal};
use sqlparser::ast::{
    BinaryOperator, CastKind, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, UnaryOperator, Value,
};
use std::fmt::Write;

/// What names mean where the expression will run.
pub(crate) trait Names {
    /// A column as SQL; None when it is not a column of the relation at hand.
    fn column(&self, qualifier: Option<&str>, name: &str) -> Option<String>;
    /// Whether `$number` can be sent to a shard.
    fn parameter(&self, number: usize) -> bool;
}

/// Functions of pg_catalog that give the same result on every shard for the same arguments and settings.
pub(crate) const FUNCTIONS: &[&str] = &[
    "abs",
    "ascii",
    "btrim",
    "ceil",
    "ceiling",
    "char_length",
    "character_length",
    "chr",
    "coalesce",
    "concat",
    "concat_ws",
    "date_part",
    "date_trunc",
    "div",
    "floor",
    "greatest",
    "initcap",
    "least",
    "left",
    "length",
    "lower",
    "lpad",
    "ltrim",
    "make_date",
    "make_timestamp",
    "md5",
    "mod",
    "nullif",
    "octet_length",
    "position",
    "power",
    "repeat",
    "replace",
    "reverse",
    "right",
    "round",
    "rpad",
    "rtrim",
    "sign",
    "split_part",
    "sqrt",
    "starts_with",
    "strpos",
    "substr",
    "substring",
    "to_char",
    "to_date",
    "to_number",
    "to_timestamp",
    "translate",
    "trunc",
    "upper",
];

/// The expression as SQL, with parentheses wherever they could matter.
pub(crate) fn render(expr: &Expr, names: &dyn Names) -> Option<String> {
    let mut out = String::new();
    Renderer { names, out: &mut out }.expr(expr)?;
    Some(out)
}

struct Renderer<'a> {
    names: &'a dyn Names,
    out: &'a mut String,
}

impl Renderer<'_> {
    fn expr(&mut self, expr: &Expr) -> Option<()> {
        match expr {
            Expr::Identifier(ident) => self.column(None, ident),
            Expr::CompoundIdentifier(idents) => match idents.as_slice() {
                [qualifier, column] => self.column(Some(qualifier), column),
                [_, qualifier, column] => self.column(Some(qualifier), column),
                _ => None,
            },
            Expr::Value(value) => self.value(&value.value),
            Expr::TypedString(typed) if !typed.uses_odbc_syntax => {
                let text = string(&typed.value.value)?;
                write!(self.out, "{} {}", typed.data_type, quote_literal(text)).ok()
            }
            Expr::Interval(interval) => self.interval(interval),
            Expr::Nested(inner) => self.expr(inner),
            Expr::BinaryOp { left, op, right } => {
                let own = level(expr);
                // Left-associative, but for comparisons, which do not associate.
                let least = if own == COMPARISON { own + 1 } else { own };
                self.infix((left, least), operator(op)?, (right, own + 1))
            }
            Expr::UnaryOp { op, expr: inner } => {
                let (op, least) = match op {
                    UnaryOperator::Plus => ("+ ", SIGN),
                    UnaryOperator::Minus => ("- ", SIGN),
                    UnaryOperator::Not => ("NOT ", NOT),
                    _ => return None,
                };
                write!(self.out, "({op}").ok()?;
                self.child(inner, least)?;
                self.out.push(')');
                Some(())
            }
            Expr::IsNull(e) => self.postfix(e, "IS NULL"),
            Expr::IsNotNull(e) => self.postfix(e, "IS NOT NULL"),
            Expr::IsTrue(e) => self.postfix(e, "IS TRUE"),
            Expr::IsNotTrue(e) => self.postfix(e, "IS NOT TRUE"),
            Expr::IsFalse(e) => self.postfix(e, "IS FALSE"),
            Expr::IsNotFalse(e) => self.postfix(e, "IS NOT FALSE"),
            Expr::IsUnknown(e) => self.postfix(e, "IS UNKNOWN"),
            Expr::IsNotUnknown(e) => self.postfix(e, "IS NOT UNKNOWN"),
            Expr::IsDistinctFrom(a, b) => self.infix((a, IS + 1), "IS DISTINCT FROM", (b, IS + 1)),
            Expr::IsNotDistinctFrom(a, b) => self.infix((a, IS + 1), "IS NOT DISTINCT FROM", (b, IS + 1)),
            Expr::InList { expr, list, negated } => {
                self.out.push('(');
                self.child(expr, MEMBER + 1)?;
                self.out.push_str(if *negated { " NOT IN (" } else { " IN (" });
                self.list(list)?;
                self.out.push_str("))");
                Some(())
            }
            Expr::Between {
                expr,
                negated,
                low,
                high,
            } => {
                self.out.push('(');
                self.child(expr, MEMBER + 1)?;
                self.out.push_str(if *negated { " NOT BETWEEN " } else { " BETWEEN " });
                self.child(low, MEMBER + 1)?;
                self.out.push_str(" AND ");
                self.child(high, MEMBER + 1)?;
                self.out.push(')');
                Some(())
            }
            Expr::Like {
                negated,
                any: false,
                expr,
                pattern,
                escape_char,
            } => {
                let word = if *negated { "NOT LIKE" } else { "LIKE" };
                self.like(expr, word, pattern, escape_char.as_ref().map(|e| &e.value))
            }
            Expr::ILike {
                negated,
                any: false,
                expr,
                pattern,
                escape_char,
            } => {
                let word = if *negated { "NOT ILIKE" } else { "ILIKE" };
                self.like(expr, word, pattern, escape_char.as_ref().map(|e| &e.value))
            }
            Expr::Cast {
                kind: kind @ (CastKind::Cast | CastKind::DoubleColon),
                expr,
                data_type,
                array: false,
                format: None,
            } => {
                self.out.push_str("CAST(");
                self.child(expr, if *kind == CastKind::DoubleColon { CAST } else { OR })?;
                write!(self.out, " AS {data_type})").ok()
            }
            Expr::Case {
                operand,
                conditions,
                else_result,
                ..
            } => {
                self.out.push_str("(CASE ");
                if let Some(operand) = operand {
                    self.expr(operand)?;
                }
                for when in conditions {
                    self.out.push_str(" WHEN ");
                    self.expr(&when.condition)?;
                    self.out.push_str(" THEN ");
                    self.expr(&when.result)?;
                }
                if let Some(otherwise) = else_result {
                    self.out.push_str(" ELSE ");
                    self.expr(otherwise)?;
                }
                self.out.push_str(" END)");
                Some(())
            }
            Expr::Function(function) => self.function(function),
            Expr::Extract { field, expr, .. } => {
                write!(self.out, "EXTRACT({field} FROM ").ok()?;
                self.expr(expr)?;
                self.out.push(')');
                Some(())
            }
            Expr::Substring {
                expr,
                substring_from: Some(from),
                substring_for,
                special: false,
                ..
            } => {
                self.out.push_str("SUBSTRING(");
                self.expr(expr)?;
                self.out.push_str(" FROM ");
                self.expr(from)?;
                if let Some(length) = substring_for {
                    self.out.push_str(" FOR ");
                    self.expr(length)?;
                }
                self.out.push(')');
                Some(())
            }
            Expr::Tuple(list) if list.len() > 1 => {
                self.out.push('(');
                self.list(list)?;
                self.out.push(')');
                Some(())
            }
            Expr::AnyOp {
                left,
                compare_op,
                right,
                ..
            } => self.quantified(left, compare_op, "ANY", right),
            Expr::AllOp {
                left,
                compare_op,
                right,
            } => self.quantified(left, compare_op, "ALL", right),
            Expr::Array(array) if array.named => {
                self.out.push_str("ARRAY[");
                self.list(&array.elem)?;
                self.out.push(']');
                Some(())
            }
            _ => None,
        }
    }

    fn column(&mut self, qualifier: Option<&Ident>, column: &Ident) -> Option<()> {
        let sql = self.names.column(qualifier.map(fold).as_deref(), &fold(column))?;
        self.out.push_str(&sql);
        Some(())
    }

    fn value(&mut self, value: &Value) -> Option<()> {
        match value {
            Value::Number(number, false) => self.out.push_str(number),
            Value::SingleQuotedString(_) | Value::DollarQuotedString(_) => {
                self.out.push_str(&quote_literal(string(value)?));
            }
            Value::Boolean(true) => self.out.push_str("TRUE"),
            Value::Boolean(false) => self.out.push_str("FALSE"),
            Value::Null => self.out.push_str("NULL"),
            Value::Placeholder(name) => {
                let number: usize = name.strip_prefix('$')?.parse().ok()?;
                if !self.names.parameter(number) {
                    return None;
                }
                write!(self.out, "${number}").ok()?;
            }
            _ => return None,
        }
        Some(())
    }

    fn interval(&mut self, interval: &sqlparser::ast::Interval) -> Option<()> {
        let Expr::Value(value) = &*interval.value else {
            return None;
        };
        if interval.leading_precision.is_some() || interval.fractional_seconds_precision.is_some() {
            return None;
        }
        write!(self.out, "INTERVAL {}", quote_literal(string(&value.value)?)).ok()?;
        if let Some(field) = &interval.leading_field {
            write!(self.out, " {field}").ok()?;
        }
        if let Some(field) = &interval.last_field {
            write!(self.out, " TO {field}").ok()?;
        }
        Some(())
    }

    /// `(expr after)`
    fn postfix(&mut self, expr: &Expr, after: &str) -> Option<()> {
        self.out.push('(');
        self.child(expr, IS + 1)?;
        write!(self.out, " {after})").ok()
    }

    fn infix(&mut self, left: (&Expr, u8), op: &str, right: (&Expr, u8)) -> Option<()> {
        self.out.push('(');
        self.child(left.0, left.1)?;
        write!(self.out, " {op} ").ok()?;
        self.child(right.0, right.1)?;
        self.out.push(')');
        Some(())
    }

    /// An operand that must bind at least as tightly as `least`. The tree comes from a parser whose precedences are
    /// not quite PostgreSQL's; a tree in which every operand passes is the one that PostgreSQL builds.
    fn child(&mut self, expr: &Expr, least: u8) -> Option<()> {
        (level(expr) >= least).then(|| self.expr(expr))?
    }

    fn list(&mut self, list: &[Expr]) -> Option<()> {
        for (i, expr) in list.iter().enumerate() {
            if i > 0 {
                self.out.push_str(", ");
            }
            self.expr(expr)?;
        }
        Some(())
    }

    fn like(&mut self, expr: &Expr, word: &str, pattern: &Expr, escape: Option<&Value>) -> Option<()> {
        self.out.push('(');
        self.child(expr, MEMBER + 1)?;
        write!(self.out, " {word} ").ok()?;
        self.child(pattern, MEMBER + 1)?;
        if let Some(escape) = escape {
            write!(self.out, " ESCAPE {}", quote_literal(string(escape)?)).ok()?;
        }
        self.out.push(')');
        Some(())
    }

    fn quantified(&mut self, left: &Expr, op: &BinaryOperator, word: &str, right: &Expr) -> Option<()> {
        self.out.push('(');
        self.child(left, OTHER)?;
        write!(self.out, " {} {word} (", operator(op)?).ok()?;
        self.expr(right)?;
        self.out.push_str("))");
        Some(())
    }

    fn function(&mut self, function: &sqlparser::ast::Function) -> Option<()> {
        let plain = function.filter.is_none()
            && function.over.is_none()
            && function.null_treatment.is_none()
            && function.within_group.is_empty()
            && !function.uses_odbc_syntax
            && matches!(function.parameters, FunctionArguments::None);
        let name = match parts(&function.name)?.as_slice() {
            [name] => fold(name),
            [schema, name] if fold(schema) == "pg_catalog" => fold(name),
            _ => return None,
        };
        let FunctionArguments::List(arguments) = &function.args else {
            return None;
        };
        if !plain
            || !FUNCTIONS.contains(&name.as_str())
            || arguments.duplicate_treatment.is_some()
            || !arguments.clauses.is_empty()
        {
            return None;
        }
        write!(self.out, "{name}(").ok()?;
        for (i, argument) in arguments.args.iter().enumerate() {
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument else {
                return None;
            };
            if i > 0 {
                self.out.push_str(", ");
            }
            self.expr(expr)?;
        }
        self.out.push(')');
        Some(())
    }
}

// How tightly PostgreSQL's operators bind, loosest first (https://www.postgresql.org/docs/15/sql-syntax-lexical.html).
const OR: u8 = 0;
const AND: u8 = 1;
const NOT: u8 = 2;
const IS: u8 = 3;
const COMPARISON: u8 = 4;
const MEMBER: u8 = 5;
const OTHER: u8 = 6;
const SUM: u8 = 7;
const PRODUCT: u8 = 8;
const SIGN: u8 = 10;
const CAST: u8 = 12;
const ATOM: u8 = 20;

fn level(expr: &Expr) -> u8 {
    use BinaryOperator as B;
    match expr {
        Expr::BinaryOp { op, .. } => match op {
            B::Or => OR,
            B::And => AND,
            B::Eq | B::NotEq | B::Lt | B::LtEq | B::Gt | B::GtEq => COMPARISON,
            B::Plus | B::Minus => SUM,
            B::Multiply | B::Divide | B::Modulo => PRODUCT,
            _ => OTHER,
        },
        Expr::UnaryOp {
            op: UnaryOperator::Not, ..
        } => NOT,
        Expr::UnaryOp { .. } => SIGN,
        Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsNotTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsNotFalse(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotUnknown(_)
        | Expr::IsDistinctFrom(..)
        | Expr::IsNotDistinctFrom(..) => IS,
        Expr::InList { .. } | Expr::Between { .. } | Expr::Like { .. } | Expr::ILike { .. } => MEMBER,
        Expr::AnyOp { .. } | Expr::AllOp { .. } => OTHER,
        Expr::Cast {
            kind: CastKind::DoubleColon,
            ..
        } => CAST,
        _ => ATOM,
    }
}

/// None for what may mean the transaction's time, which is another one on each shard.
fn string(value: &Value) -> Option<&str> {
    let text = match value {
        Value::SingleQuotedString(text) => text,
        Value::DollarQuotedString(text) => &text.value,
        _ => return None,
    };
    (!pgherd_sql::moment::is_now(text)).then_some(text.as_str())
}

/// The operator as PostgreSQL writes it; None for those that the parser may have read differently.
fn operator(op: &BinaryOperator) -> Option<&'static str> {
    use BinaryOperator as B;
    Some(match op {
        B::Plus => "+",
        B::Minus => "-",
        B::Multiply => "*",
        B::Divide => "/",
        B::Modulo => "%",
        B::StringConcat => "||",
        B::Gt => ">",
        B::Lt => "<",
        B::GtEq => ">=",
        B::LtEq => "<=",
        B::Eq => "=",
        B::NotEq => "<>",
        B::And => "AND",
        B::Or => "OR",
        B::PGRegexMatch => "~",
        B::PGRegexIMatch => "~*",
        B::PGRegexNotMatch => "!~",
        B::PGRegexNotIMatch => "!~*",
        B::Arrow => "->",
        B::LongArrow => "->>",
        B::AtArrow => "@>",
        B::ArrowAt => "<@",
        _ => return None,
    })
}

/// The conditions that a WHERE or ON joins with AND.
pub(crate) fn conjuncts(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::BinaryOp {
            left,
            op: BinaryOperator::And,
            right,
        } => [conjuncts(left), conjuncts(right)].concat(),
        Expr::Nested(inner) => conjuncts(inner),
        other => vec![other],
    }
}

/// A column of one relation, qualified with nothing.
pub(crate) fn plain_column(name: &str) -> Option<String> {
    Some(quote_identifier(name))
}
