//! Values as the types of what they are assigned to. An assignment refuses what a cast would cut off.

use super::values::Value;
use crate::session::{Problem, Session};

const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
const BIT: u32 = 1560;
const VARBIT: u32 = 1562;

impl Session {
    /// The value as another type, as an assignment makes it.
    pub(super) async fn cast(&mut self, value: Value, oid: u32, name: &str) -> Result<Value, Problem> {
        let sql = match with_length(&value, oid, name) {
            Some(call) => format!("SELECT {call}"),
            None if value.type_oid == oid && !name.contains('(') => {
                return Ok(Value {
                    type_name: name.to_owned(),
                    ..value
                });
            }
            None => format!("SELECT CAST({} AS {name})", value.literal()),
        };
        let answer = self.run_inner(&sql).await?;
        let text = answer.rows.first().and_then(|row| row.first().cloned().flatten());
        Ok(Value::of(oid, name, text))
    }
}

/// The call of the function by which PostgreSQL gives a value a length where it is assigned; None for types without one.
fn with_length(value: &Value, oid: u32, name: &str) -> Option<String> {
    /// A modifier of char and varchar counts its own header.
    const HEADER: u32 = 4;
    let length = length_of(oid, name)?;
    let (function, base, modifier) = match oid {
        BPCHAR => ("bpchar", "bpchar", length + HEADER),
        VARCHAR => ("varchar", "varchar", length + HEADER),
        BIT => ("bit", "\"bit\"", length),
        VARBIT => ("varbit", "varbit", length),
        _ => return None,
    };
    let value = value.literal();
    Some(format!(
        "pg_catalog.{function}(CAST({value} AS pg_catalog.{base}), {modifier}, false)"
    ))
}

/// The length that a type's name says.
fn length_of(oid: u32, name: &str) -> Option<u32> {
    if let Some((_, rest)) = name.split_once('(') {
        return rest.split(')').next()?.trim().parse().ok();
    }
    let words = [
        "bit",
        "char",
        "character",
        "nchar",
        "national char",
        "national character",
    ];
    let is_one = matches!(oid, BIT | BPCHAR) && words.contains(&name.to_ascii_lowercase().as_str());
    is_one.then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        let cases = [
            (BIT, "bit", Some(1)),
            (BIT, "\"bit\"", None),
            (BIT, "pg_catalog.bit", None),
            (BIT, "bit (4)", Some(4)),
            (VARBIT, "bit varying( 3 )", Some(3)),
            (VARBIT, "bit varying", None),
            (BPCHAR, "CHAR", Some(1)),
            (BPCHAR, "bpchar", None),
            (BPCHAR, "character(5)", Some(5)),
            (VARCHAR, "varchar", None),
            (VARCHAR, "character varying(20)", Some(20)),
        ];
        for (oid, name, length) in cases {
            assert_eq!(length_of(oid, name), length, "{name}");
        }
    }
}
