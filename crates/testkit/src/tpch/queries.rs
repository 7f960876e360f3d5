//! The 22 queries, from the texts that tpchgen carries, with the specification's validation parameters.

use crate::{Error, Result};
use tpchgen::q_and_a::queries;

/// The validation parameters, `:1` first (TPC-H 3.0.1, clause 2.4, "Query Validation"), and the number of rows that the
/// specification lets a query return.
const PARAMETERS: [(&[&str], Option<u32>); 22] = [
    (&["90"], None),
    (&["15", "BRASS", "EUROPE"], Some(100)),
    (&["BUILDING", "1995-03-15"], Some(10)),
    (&["1993-07-01"], None),
    (&["ASIA", "1994-01-01"], None),
    (&["1994-01-01", "0.06", "24"], None),
    (&["FRANCE", "GERMANY"], None),
    (&["BRAZIL", "AMERICA", "ECONOMY ANODIZED STEEL"], None),
    (&["green"], None),
    (&["1993-10-01"], Some(20)),
    // The second one is 0.0001 divided by the scale factor.
    (&["GERMANY", "0.0001"], None),
    (&["MAIL", "SHIP", "1994-01-01"], None),
    (&["special", "requests"], None),
    (&["1995-09-01"], None),
    (&["1996-01-01"], None),
    (
        &[
            "Brand#45",
            "MEDIUM POLISHED",
            "49",
            "14",
            "23",
            "45",
            "19",
            "3",
            "36",
            "9",
        ],
        None,
    ),
    (&["Brand#23", "MED BOX"], None),
    (&["300"], Some(100)),
    (&["Brand#12", "Brand#23", "Brand#34", "1", "10", "20"], None),
    (&["forest", "1994-01-01", "CANADA"], None),
    (&["SAUDI ARABIA"], Some(100)),
    (&["13", "31", "23", "29", "30", "18", "17"], None),
];

/// The queries with these numbers, in order, or all.
pub(super) fn chosen(only: &[u8]) -> Result<Vec<(u8, String)>> {
    if let Some(unknown) = only.iter().find(|number| !(1..=22).contains(*number)) {
        return Err(Error::Script(format!(
            "TPC-H has no query {unknown}; there are 1 to 22"
        )));
    }
    let wanted = (1..=22).filter(|number| only.is_empty() || only.contains(number));
    Ok(wanted.map(|number| (number, query(number))).collect())
}

fn query(number: u8) -> String {
    let (parameters, rows) = PARAMETERS[usize::from(number) - 1];
    let mut sql = queries::query(i32::from(number)).unwrap_or_default().trim().to_owned();
    if number == 15 {
        sql = view_as_with_query(&sql);
    }
    // Highest first: `:1` is also how `:10` begins.
    for (i, value) in parameters.iter().enumerate().rev() {
        sql = sql.replace(&format!(":{}", i + 1), value);
    }
    // PostgreSQL takes a precision for seconds only.
    let sql = sql.replace("day (3)", "day");
    let sql = sql.trim_end_matches(';');
    match rows {
        Some(rows) => format!("{sql}\nlimit {rows}"),
        None => sql.to_owned(),
    }
}

/// The approved variant of query 15, with a WITH query in place of the view that it makes and drops.
fn view_as_with_query(sql: &str) -> String {
    let sql = sql.replace("revenue:s", "revenue");
    let mut statements = sql.split(';').map(str::trim);
    let view = statements.next().unwrap_or_default();
    let select = statements.next().unwrap_or_default();
    let (head, body) = view.split_once(" as\n").unwrap_or_default();
    let name = head.trim_start_matches("create view ");
    format!("with {name} as (\n{body}\n)\n{select}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_has_its_value() {
        for (number, sql) in chosen(&[]).expect("all") {
            assert!(!sql.contains(':') && !sql.contains(';'), "query {number}: {sql}");
            assert!(sql.contains("select"), "query {number}: {sql}");
        }
    }

    #[test]
    fn the_fifteenth_is_one_statement() {
        let sql = query(15);
        assert!(
            sql.starts_with("with revenue (supplier_no, total_revenue) as (\n"),
            "{sql}"
        );
        assert!(
            sql.contains("'1996-01-01'") && sql.contains("max(total_revenue)"),
            "{sql}"
        );
    }

    #[test]
    fn unknown_numbers_are_refused() {
        assert!(chosen(&[23]).is_err());
        assert_eq!(chosen(&[6, 1]).expect("two").len(), 2);
    }
}
