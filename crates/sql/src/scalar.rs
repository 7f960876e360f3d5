//! Constants and parameters in a predicate, and their values as the key's type.
//!
//! Everything that is not surely understood is «unknown»: the predicate then does not restrict.

use crate::route::ParameterValue;
use pgherd_model::{KeyType, KeyValue};
use sqlparser::ast::{BinaryOperator, CastKind, DataType, Expr, UnaryOperator, Value};

/// A constant or parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar {
    Null,
    /// A string literal without a type: PostgreSQL gives it the other side's.
    Text(String),
    /// A number with its sign: integer if it has only digits, else numeric.
    Number(String),
    /// A literal with a type: the type's input text.
    Typed(KeyType, String),
    /// Counted from 0, with the type of a cast around it.
    Parameter(u16, Option<KeyType>),
    /// The sum (or, when true, the difference) of two of these, understood for integer keys.
    Sum(Box<Scalar>, bool, Box<Scalar>),
}

/// What a scalar is as a key value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Evaluated {
    Null,
    Value(KeyValue),
    Unknown,
}

impl From<Option<KeyValue>> for Evaluated {
    fn from(value: Option<KeyValue>) -> Self {
        value.map_or(Self::Unknown, Self::Value)
    }
}

/// The parameters of one execution, and the types that Parse declared.
#[derive(Clone, Copy)]
pub(crate) struct Parameters<'a> {
    pub values: &'a [ParameterValue<'a>],
    pub types: &'a [u32],
}

const UNKNOWN_OID: u32 = 705;

impl Parameters<'_> {
    /// The type's OID; 0 when not known.
    pub fn type_oid(&self, number: u16) -> u32 {
        let given = self.values.get(usize::from(number)).map_or(0, |v| v.type_oid);
        let declared = self.types.get(usize::from(number)).copied().unwrap_or(0);
        match if given == 0 { declared } else { given } {
            UNKNOWN_OID => 0,
            oid => oid,
        }
    }
}

fn is_integer(t: KeyType) -> bool {
    matches!(t, KeyType::SmallInt | KeyType::Int | KeyType::BigInt)
}

fn is_text(t: KeyType) -> bool {
    matches!(t, KeyType::Text | KeyType::Varchar)
}

fn only_digits(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// The key type that a type's name in SQL means, where values keep as they are: no length, precision or scale.
pub(crate) fn key_type(data_type: &DataType) -> Option<KeyType> {
    let name = data_type.to_string().to_ascii_lowercase();
    named_key_type(name.strip_prefix("pg_catalog.").unwrap_or(&name))
}

/// The same from `format_type`'s name.
pub(crate) fn named_key_type(name: &str) -> Option<KeyType> {
    Some(match name {
        "smallint" | "int2" => KeyType::SmallInt,
        "int" | "integer" | "int4" => KeyType::Int,
        "bigint" | "int8" => KeyType::BigInt,
        "text" => KeyType::Text,
        "varchar" | "character varying" | "char varying" => KeyType::Varchar,
        "uuid" => KeyType::Uuid,
        "date" => KeyType::Date,
        "timestamp" | "timestamp without time zone" => KeyType::Timestamp,
        "timestamptz" | "timestamp with time zone" => KeyType::TimestampTz,
        "numeric" | "decimal" | "dec" => KeyType::Numeric,
        _ => return None,
    })
}

impl Scalar {
    /// From one side of a comparison, where `$1 + 99` may stand; else as [`Scalar::from_expr`].
    pub fn from_operand(expr: &Expr) -> Option<Self> {
        match expr {
            Expr::Nested(inner) => Self::from_operand(inner),
            Expr::BinaryOp { left, op, right } => {
                let minus = match op {
                    BinaryOperator::Plus => false,
                    BinaryOperator::Minus => true,
                    _ => return None,
                };
                let (left, right) = (Self::from_operand(left)?, Self::from_operand(right)?);
                Some(Self::Sum(Box::new(left), minus, Box::new(right)))
            }
            _ => Self::from_expr(expr),
        }
    }

    /// From an expression; None when it is no constant, or one that is not surely understood.
    pub fn from_expr(expr: &Expr) -> Option<Self> {
        match expr {
            Expr::Nested(inner) => Self::from_expr(inner),
            Expr::Value(value) => match &value.value {
                Value::Null => Some(Self::Null),
                Value::SingleQuotedString(text) => Some(Self::Text(text.clone())),
                Value::Number(text, _) => Some(Self::Number(text.clone())),
                Value::Placeholder(name) => Some(Self::Parameter(parameter_number(name)?, None)),
                _ => None,
            },
            Expr::UnaryOp { op, expr } => match (op, Self::from_expr(expr)?) {
                (UnaryOperator::Plus, number @ Self::Number(_)) => Some(number),
                (UnaryOperator::Minus, Self::Number(text)) => Some(Self::Number(negated(&text))),
                (UnaryOperator::Minus, Self::Typed(t, text))
                    if is_integer(t) && only_digits(&text) && !text.starts_with('-') =>
                {
                    Some(Self::Typed(t, negated(&text)))
                }
                _ => None,
            },
            Expr::TypedString(typed) => match &typed.value.value {
                Value::SingleQuotedString(text) => Some(Self::Typed(key_type(&typed.data_type)?, text.clone())),
                _ => None,
            },
            Expr::Cast {
                kind: CastKind::Cast | CastKind::DoubleColon,
                expr,
                data_type,
                array: false,
                format: None,
            } => Self::cast(Self::from_expr(expr)?, key_type(data_type)?),
            _ => None,
        }
    }

    fn cast(inner: Self, to: KeyType) -> Option<Self> {
        match inner {
            Self::Null => Some(Self::Null),
            Self::Text(text) => Some(Self::Typed(to, text)),
            Self::Number(text) if is_integer(to) && only_digits(&text) => Some(Self::Typed(to, text)),
            Self::Number(text) if to == KeyType::Numeric => Some(Self::Typed(to, text)),
            Self::Parameter(number, None) => Some(Self::Parameter(number, Some(to))),
            Self::Typed(from, text) if from == to || (is_text(from) && is_text(to)) => Some(Self::Typed(to, text)),
            Self::Typed(from, text) if is_integer(from) && is_integer(to) && only_digits(&text) => {
                Some(Self::Typed(to, text))
            }
            _ => None,
        }
    }

    /// Its value where it is compared with a key column of type `key`.
    pub fn evaluate(&self, key: KeyType, parameters: Parameters) -> Evaluated {
        match self {
            Self::Null => Evaluated::Null,
            Self::Text(text) => key.parse_text(text).into(),
            Self::Number(text) if is_integer(key) && only_digits(text) => text.parse().ok().map(KeyValue::Int).into(),
            Self::Number(text) if key == KeyType::Numeric => key.parse_text(text).into(),
            Self::Number(_) => Evaluated::Unknown,
            Self::Typed(t, text) => convert(*t, t.parse_text(text), key).into(),
            Self::Parameter(number, cast) => parameter(*number, *cast, key, parameters),
            Self::Sum(left, minus, right) if is_integer(key) => {
                match (left.evaluate(key, parameters), right.evaluate(key, parameters)) {
                    (Evaluated::Null, _) | (_, Evaluated::Null) => Evaluated::Null,
                    (Evaluated::Value(KeyValue::Int(a)), Evaluated::Value(KeyValue::Int(b))) => {
                        // Where PostgreSQL's narrower type overflows, the shard that is asked says so.
                        let sum = if *minus { a.checked_sub(b) } else { a.checked_add(b) };
                        sum.map(KeyValue::Int).into()
                    }
                    _ => Evaluated::Unknown,
                }
            }
            Self::Sum(..) => Evaluated::Unknown,
        }
    }
}

fn negated(number: &str) -> String {
    match number.strip_prefix('-') {
        Some(positive) => positive.to_owned(),
        None => format!("-{number}"),
    }
}

/// `$3` → 2.
pub(crate) fn parameter_number(name: &str) -> Option<u16> {
    name.strip_prefix('$')?.parse::<u16>().ok()?.checked_sub(1)
}

/// A value of type `from` in a comparison with a key of type `key`: only where PostgreSQL's own operator
/// compares both exactly.
fn convert(from: KeyType, value: Option<KeyValue>, key: KeyType) -> Option<KeyValue> {
    let value = value?;
    match value {
        _ if from.comparable(key) => Some(value),
        KeyValue::Int(v) if key == KeyType::Numeric => key.parse_text(&v.to_string()),
        _ => None,
    }
}

fn parameter(number: u16, cast: Option<KeyType>, key: KeyType, parameters: Parameters) -> Evaluated {
    // Not bound yet: it may be anything.
    let Some(value) = parameters.values.get(usize::from(number)) else {
        return Evaluated::Unknown;
    };
    let Some(bytes) = value.bytes else {
        return Evaluated::Null;
    };
    let oid = parameters.type_oid(number);
    let own = match oid {
        0 => cast.unwrap_or(key),
        known => match KeyType::from_oid(known) {
            Some(own) => own,
            None => return Evaluated::Unknown,
        },
    };
    // Eight bytes of an unknown type could be either timestamp.
    if oid == 0 && value.binary && matches!(own, KeyType::Timestamp | KeyType::TimestampTz) {
        return Evaluated::Unknown;
    }
    let parsed = match value.binary {
        true => own.parse_binary(bytes),
        false => std::str::from_utf8(bytes).ok().and_then(|text| own.parse_text(text)),
    };
    let Some(cast) = cast.filter(|&c| c != own) else {
        return convert(own, parsed, key).into();
    };
    match parsed {
        Some(KeyValue::Text(text)) => convert(cast, cast.parse_text(&text), key).into(),
        Some(int @ KeyValue::Int(_)) if is_integer(cast) => convert(cast, Some(int), key).into(),
        Some(KeyValue::Int(v)) if cast == KeyType::Numeric => {
            convert(cast, cast.parse_text(&v.to_string()), key).into()
        }
        _ => Evaluated::Unknown,
    }
}

/// The right side of IN (…) or = ANY (…).
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum List {
    Scalars(Vec<Scalar>),
    /// `'{1,2}'`, with the element type of a cast
    Text(String, Option<KeyType>),
    /// `$1`, with the element type of a cast
    Parameter(u16, Option<KeyType>),
}

impl List {
    /// From the operand of ANY.
    pub fn from_array(expr: &Expr) -> Option<Self> {
        match expr {
            Expr::Nested(inner) => Self::from_array(inner),
            Expr::Array(array) => Some(Self::Scalars(
                array.elem.iter().map(Scalar::from_expr).collect::<Option<_>>()?,
            )),
            Expr::Value(value) => match &value.value {
                Value::SingleQuotedString(text) => Some(Self::Text(text.clone(), None)),
                Value::Placeholder(name) => Some(Self::Parameter(parameter_number(name)?, None)),
                _ => None,
            },
            Expr::Cast { expr, data_type, .. } => {
                let name = data_type.to_string().to_ascii_lowercase();
                let element = named_key_type(name.strip_suffix("[]")?)?;
                match Self::from_array(expr)? {
                    Self::Text(text, None) => Some(Self::Text(text, Some(element))),
                    Self::Parameter(number, None) => Some(Self::Parameter(number, Some(element))),
                    Self::Scalars(scalars) => {
                        let cast = scalars.into_iter().map(|s| Scalar::cast(s, element));
                        Some(Self::Scalars(cast.collect::<Option<_>>()?))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The values other than NULL, sorted; None when one of them is not understood.
    pub fn evaluate(&self, key: KeyType, parameters: Parameters) -> Option<Vec<KeyValue>> {
        let mut values = match self {
            Self::Scalars(scalars) => {
                let mut values = Vec::with_capacity(scalars.len());
                for scalar in scalars {
                    match scalar.evaluate(key, parameters) {
                        Evaluated::Value(value) => values.push(value),
                        Evaluated::Null => {}
                        Evaluated::Unknown => return None,
                    }
                }
                values
            }
            Self::Text(text, element) => array_text(text, element.unwrap_or(key), key)?,
            Self::Parameter(number, cast) => {
                let value = parameters.values.get(usize::from(*number))?;
                let Some(bytes) = value.bytes else {
                    return Some(Vec::new());
                };
                let element = match parameters.type_oid(*number) {
                    0 => cast.unwrap_or(key),
                    oid => array_element(oid)?,
                };
                if cast.is_some_and(|cast| cast != element) {
                    return None;
                }
                match value.binary {
                    true => array_binary(bytes, key)?,
                    false => array_text(std::str::from_utf8(bytes).ok()?, element, key)?,
                }
            }
        };
        values.sort();
        values.dedup();
        Some(values)
    }
}

/// The element type of an array type, by OID in pg_type.
fn array_element(oid: u32) -> Option<KeyType> {
    Some(match oid {
        1005 => KeyType::SmallInt,
        1007 => KeyType::Int,
        1016 => KeyType::BigInt,
        1009 => KeyType::Text,
        1015 => KeyType::Varchar,
        2951 => KeyType::Uuid,
        1182 => KeyType::Date,
        1115 => KeyType::Timestamp,
        1185 => KeyType::TimestampTz,
        1231 => KeyType::Numeric,
        _ => return None,
    })
}

/// `{a,"b c",NULL}` of one dimension (array_in).
fn array_text(text: &str, element: KeyType, key: KeyType) -> Option<Vec<KeyValue>> {
    let body = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut values = Vec::new();
    let mut rest = body.chars().peekable();
    if body.trim().is_empty() {
        return Some(values);
    }
    loop {
        while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let (mut item, mut quoted) = (String::new(), false);
        if rest.next_if_eq(&'"').is_some() {
            quoted = true;
            loop {
                match rest.next()? {
                    '"' => break,
                    '\\' => item.push(rest.next()?),
                    other => item.push(other),
                }
            }
            while rest.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        } else {
            while let Some(c) = rest.next_if(|&c| c != ',') {
                match c {
                    '{' | '}' | '"' => return None,
                    '\\' => item.push(rest.next()?),
                    other => item.push(other),
                }
            }
            item.truncate(item.trim_end().len());
        }
        if quoted || !item.eq_ignore_ascii_case("null") {
            values.push(convert(element, element.parse_text(&item), key)?);
        }
        match rest.next() {
            None => return Some(values),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

/// array_recv's format: dimensions, has-null flag, element OID, then per dimension length and lower bound, then
/// the elements with their lengths.
fn array_binary(bytes: &[u8], key: KeyType) -> Option<Vec<KeyValue>> {
    let word = |at: usize| Some(i32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let dimensions = usize::try_from(word(0)?).ok().filter(|&d| d <= 6)?;
    let element = KeyType::from_oid(word(8)? as u32)?;
    let mut at = 12 + 8 * dimensions;
    let mut values = Vec::new();
    while at < bytes.len() {
        let length = word(at)?;
        at += 4;
        if length >= 0 {
            let item = bytes.get(at..at + length as usize)?;
            values.push(convert(element, element.parse_binary(item), key)?);
            at += length as usize;
        }
    }
    Some(values)
}
