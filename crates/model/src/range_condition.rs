//! SQL that says of a row whether its key lies in a range.

use crate::{Bound, KeyBound, KeyType};

/// The condition that a row's key lies in a range, in SQL over the quoted key columns.
pub fn range_condition(columns: &[String], key_types: &[KeyType], from: &KeyBound, to: &KeyBound) -> String {
    let (lower, upper) = (
        edge(columns, key_types, from, true),
        edge(columns, key_types, to, false),
    );
    let not_null: Vec<_> = columns.iter().map(|c| format!("{c} IS NOT NULL")).collect();
    format!("{lower} AND {upper} AND {}", not_null.join(" AND "))
}

/// `key >= bound` (lower) or `key < bound`. Behind an infinite column nothing counts: the rows whose first columns equal the
/// bound's are all above it (MINVALUE) or all below it (MAXVALUE).
fn edge(columns: &[String], key_types: &[KeyType], bound: &KeyBound, lower: bool) -> String {
    let finite: Vec<_> = bound
        .0
        .iter()
        .zip(key_types)
        .map_while(|(b, t)| match b {
            Bound::Value(v) => Some(v.to_literal(*t)),
            _ => None,
        })
        .collect();
    let above = match bound.0.get(finite.len()) {
        None | Some(Bound::Min) => true,
        Some(_) => false,
    };
    if finite.is_empty() {
        return if above == lower { "true".into() } else { "false".into() };
    }
    let operator = match (lower, above) {
        (true, true) => ">=",
        (true, false) => ">",
        (false, true) => "<",
        (false, false) => "<=",
    };
    let names = columns[..finite.len()].join(", ");
    format!("ROW({names}) {operator} ROW({})", finite.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyValue;

    #[test]
    fn conditions_treat_infinite_columns_as_postgresql_does() {
        let columns = ["\"a\"".to_owned(), "\"b\"".to_owned()];
        let types = [KeyType::Int, KeyType::Int];
        let bound = |second: Bound| KeyBound(vec![Bound::Value(KeyValue::Int(5)), second]);
        let lower = |b| edge(&columns, &types, &b, true);
        let upper = |b| edge(&columns, &types, &b, false);
        assert_eq!(lower(bound(Bound::Min)), "ROW(\"a\") >= ROW('5'::integer)");
        assert_eq!(lower(bound(Bound::Max)), "ROW(\"a\") > ROW('5'::integer)");
        assert_eq!(upper(bound(Bound::Min)), "ROW(\"a\") < ROW('5'::integer)");
        assert_eq!(upper(bound(Bound::Max)), "ROW(\"a\") <= ROW('5'::integer)");
        let two = bound(Bound::Value(KeyValue::Int(6)));
        assert_eq!(upper(two), "ROW(\"a\", \"b\") < ROW('5'::integer, '6'::integer)");
        assert_eq!(lower(KeyBound::min(2)), "true");
        assert_eq!(upper(KeyBound::max(2)), "true");
    }
}
