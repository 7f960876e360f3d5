//! Whether two answers are the same, as far as PostgreSQL itself fixes the answer.

use super::Statement;
use super::node::Rendered;
use super::side::{Answer, Carrier, Table};
use crate::wire::ServerError;
use regex::Regex;
use std::sync::LazyLock;

/// What the comparison of one statement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same, with so many rows.
    Same(usize),
    /// The same error, by its SQLSTATE.
    SameError(String),
    /// pgherd says that it does not support it.
    Refused(String),
    /// PostgreSQL took too long, or is free to fail here and not there.
    Open,
    /// Not the same.
    Differs(String),
}

/// OIDs of pg_type.dat, as [`Table::columns`] shows them.
const FLOAT4: &str = "700";
const FLOAT8: &str = "701";
const NUMERIC: &str = "1700";
const INTERVAL: &str = "1186";
const JSONB: &str = "3802";

/// How a difference begins that is a hang or a crash.
pub(super) const LOST: &str = "pgherd was lost";

/// Compares what plain PostgreSQL said with what pgherd said.
pub(super) fn compare(
    statement: &Statement,
    rendered: &Rendered,
    carrier: Carrier,
    plain: &Answer,
    herd: &Answer,
) -> Verdict {
    match (plain, herd) {
        (Answer::Failed(error), _) if error.code() == "57014" => Verdict::Open,
        (Answer::Lost(why), _) => Verdict::Differs(format!("plain PostgreSQL was lost: {why}")),
        (_, Answer::Lost(why)) => Verdict::Differs(format!("{LOST}: {why}")),
        (Answer::Failed(plain), Answer::Failed(herd)) => errors(statement, plain, herd),
        // Another round's schema is made at the same time, which a snapshot or lock of all tables' shards may not outlive.
        (Answer::Done(_), Answer::Failed(herd)) if statement.keeps_snapshot() && herd.code() == "40001" => {
            Verdict::Open
        }
        (Answer::Done(_), Answer::Failed(herd)) => failed(statement, "PostgreSQL succeeds", herd),
        (Answer::Failed(plain), Answer::Done(_)) if statement.may_collide && plain.code() == "23505" => Verdict::Open,
        (Answer::Failed(plain), Answer::Done(herd)) => {
            Verdict::Differs(format!("PostgreSQL fails: {plain}\npgherd succeeds: {}", herd.tag))
        }
        (Answer::Done(plain), Answer::Done(herd)) => match tables(statement, rendered, carrier, plain, herd) {
            Ok(()) => Verdict::Same(plain.rows.len()),
            Err(why) => Verdict::Differs(why),
        },
    }
}

fn errors(statement: &Statement, plain: &ServerError, herd: &ServerError) -> Verdict {
    let of_data = |error: &ServerError| ["21", "22", "23"].iter().any(|class| error.code().starts_with(class));
    if plain.code() != herd.code() && statement.writes_rows && of_data(plain) && of_data(herd) {
        return Verdict::Open;
    }
    if plain.code() != herd.code() {
        return failed(statement, &format!("PostgreSQL fails: {plain}"), herd);
    }
    // Elsewhere a message may name the value that was met first.
    let fixed = plain.code().starts_with("42");
    let whole = |error: &ServerError| ['M', 'P', 'D', 'H'].map(|field| error.field(field).map(str::to_owned));
    if fixed && whole(plain) != whole(herd) {
        let at = |error: &ServerError| error.field('P').unwrap_or("nowhere").to_owned();
        return Verdict::Differs(format!(
            "PostgreSQL: {plain} at {}, {:?}\npgherd: {herd} at {}, {:?}",
            at(plain),
            whole(plain),
            at(herd),
            whole(herd)
        ));
    }
    // Which value was met first is open, what is said of it is not.
    if !statement.writes_rows && without_values(plain.message()) != without_values(herd.message()) {
        return failed(statement, &format!("PostgreSQL fails: {plain}"), herd);
    }
    let named =
        |error: &ServerError| ['M', 'D', 's', 't', 'c', 'd', 'n'].map(|field| error.field(field).map(str::to_owned));
    let is_broken_constraint = plain.code().starts_with("23") && !statement.writes_rows;
    if is_broken_constraint && named(plain) != named(herd) {
        return Verdict::Differs(format!("PostgreSQL: {:?}\npgherd: {:?}", named(plain), named(herd)));
    }
    Verdict::SameError(plain.code().to_owned())
}

fn failed(statement: &Statement, otherwise: &str, herd: &ServerError) -> Verdict {
    match herd.code() {
        "0A000" => Verdict::Refused(herd.message().to_owned()),
        "23505" if statement.may_collide => Verdict::Open,
        _ => Verdict::Differs(format!("{otherwise}\npgherd fails: {herd}")),
    }
}

fn tables(
    statement: &Statement,
    rendered: &Rendered,
    carrier: Carrier,
    plain: &Table,
    herd: &Table,
) -> Result<(), String> {
    if plain.columns != herd.columns {
        return Err(format!(
            "PostgreSQL's columns: {:?}\npgherd's columns: {:?}",
            plain.columns, herd.columns
        ));
    }
    if rendered.is_plan {
        return Ok(());
    }
    let types: Vec<&str> = plain.columns.iter().flatten().map(|(_, of)| of.as_str()).collect();
    let canonical = |table: &Table| -> Vec<Vec<String>> {
        let cell = |(cell, of): (&Option<String>, &&str)| match cell {
            None => "NULL".to_owned(),
            Some(cell) => canonical(statement, carrier, of, cell),
        };
        let row = |row: &Vec<Option<String>>| row.iter().zip(&types).map(cell).collect();
        table.rows.iter().map(row).collect()
    };
    let (mut ours, mut theirs) = (canonical(herd), canonical(plain));
    if !statement.picks_rows && plain.tag != herd.tag {
        return Err(format!(
            "PostgreSQL: {}, {}\npgherd: {}, {}",
            plain.tag,
            show(&theirs),
            herd.tag,
            show(&ours)
        ));
    }
    if rendered.total_order && ours != theirs {
        return Err(format!(
            "in order, PostgreSQL: {}\npgherd: {}",
            show(&theirs),
            show(&ours)
        ));
    }
    let keys = |rows: &[Vec<String>]| -> Vec<Vec<String>> {
        let sorted_by = |(of, cell): (&&str, &String)| match *of {
            JSONB | NUMERIC | FLOAT4 | FLOAT8 | "citext" => for_equal_ones(of, carrier == Carrier::Binary, cell),
            _ => cell.clone(),
        };
        let key = |row: &Vec<String>| {
            let of_position = |position: &usize| types.get(position - 1).zip(row.get(position - 1)).map(sorted_by);
            rendered.ordered.iter().filter_map(of_position).collect()
        };
        rows.iter().map(key).collect()
    };
    if keys(&ours) != keys(&theirs) {
        return Err(format!(
            "by columns {:?} PostgreSQL's order: {}\npgherd's order: {}",
            rendered.ordered,
            show(&theirs),
            show(&ours)
        ));
    }
    ours.sort();
    theirs.sort();
    if ours == theirs {
        return Ok(());
    }
    let only = |these: &[Vec<String>], others: &[Vec<String>]| -> Vec<Vec<String>> {
        let mut others = others.to_vec();
        let mut left = these.to_vec();
        left.retain(|row| match others.iter().position(|other| other == row) {
            Some(found) => {
                others.swap_remove(found);
                false
            }
            None => true,
        });
        left
    };
    Err(format!(
        "only PostgreSQL has {}\nonly pgherd has {}",
        show(&only(&theirs, &ours)),
        show(&only(&ours, &theirs))
    ))
}

fn show(rows: &[Vec<String>]) -> String {
    const MOST: usize = 12;
    let shown: Vec<_> = rows
        .iter()
        .take(MOST)
        .map(|row| format!("({})", row.join(" | ")))
        .collect();
    let more = if rows.len() > MOST { " …" } else { "" };
    format!("{} rows: {}{more}", rows.len(), shown.join(" "))
}

/// A value's text, the same for all values that PostgreSQL may show in its place.
fn canonical(statement: &Statement, carrier: Carrier, of: &str, cell: &str) -> String {
    let binary = carrier == Carrier::Binary;
    if statement.inexact && (of == FLOAT4 || of == FLOAT8) {
        return rounded(cell, binary, if of == FLOAT4 { 4 } else { 9 });
    }
    if !statement.ambiguous {
        return cell.to_owned();
    }
    for_equal_ones(of, binary, cell)
}

/// A text that is the same for all values that are equal to this one, 1.0 and 1.00 say; for some types it says nothing.
fn for_equal_ones(of: &str, binary: bool, cell: &str) -> String {
    match (of, binary) {
        // Months, days and seconds that amount to the same.
        (INTERVAL, _) => "an interval".to_owned(),
        // The fourth of its 16-bit numbers is how many decimals are shown.
        (NUMERIC, true) if cell.len() >= 16 => format!("{}{}", &cell[..12], &cell[16..]),
        (FLOAT4 | FLOAT8, true) => match cell.strip_prefix('8') {
            Some(rest) if rest.bytes().all(|digit| digit == b'0') => cell.replacen('8', "0", 1),
            _ => cell.to_owned(),
        },
        // What was compared as text already.
        (_, true) => "a value".to_owned(),
        ("citext", false) => cell.to_lowercase(),
        (_, false) => without_trailing_zeros(cell),
    }
}

/// What functions say of one value or of another, depending on which row came first.
const OF_VALUES: [[&str; 2]; 2] = [
    [
        "cannot take logarithm of zero",
        "cannot take logarithm of a negative number",
    ],
    [
        "null character not permitted",
        "requested character too large for encoding: …",
    ],
];

/// A message without the values and names in it. Values may have quotes of their own.
fn without_values(message: &str) -> String {
    static VALUES: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#""+[^"]*"+|-?\d+"#).expect("a pattern"));
    let general = VALUES.replace_all(message, "…").into_owned();
    let of_values = OF_VALUES.iter().find(|messages| messages.contains(&general.as_str()));
    of_values.map_or(general, |messages| messages[0].to_owned())
}

fn without_trailing_zeros(cell: &str) -> String {
    static DECIMALS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(\.\d*?)0+\b").expect("a pattern"));
    static ZERO: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"-0\b").expect("a pattern"));
    let stripped = DECIMALS.replace_all(cell, "$1");
    let stripped = stripped
        .strip_suffix('.')
        .unwrap_or(&stripped)
        .replace(".,", ",")
        .replace(".}", "}")
        .replace(".]", "]");
    ZERO.replace_all(&stripped, "0").into_owned()
}

fn rounded(cell: &str, binary: bool, digits: usize) -> String {
    let value = match binary {
        false => cell.parse::<f64>().ok(),
        true => match (u64::from_str_radix(cell, 16), cell.len()) {
            (Ok(bits), 8) => Some(f64::from(f32::from_bits(bits as u32))),
            (Ok(bits), _) => Some(f64::from_bits(bits)),
            _ => None,
        },
    };
    match value {
        Some(value) if value.abs() < 1e-12 => "0".to_owned(),
        Some(value) => format!("{value:.digits$e}"),
        None => cell.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::node::text;

    fn statement(ambiguous: bool, inexact: bool) -> Statement {
        Statement {
            node: text(""),
            before: Vec::new(),
            isolation: "READ COMMITTED",
            writes: None,
            ambiguous,
            inexact,
            picks_rows: false,
            writes_rows: false,
            may_collide: false,
            is_script: false,
        }
    }

    fn answer(rows: &[&str], of: &str) -> Answer {
        Answer::Done(Table {
            columns: Some(vec![("c".into(), of.into())]),
            rows: rows.iter().map(|cell| vec![Some((*cell).to_owned())]).collect(),
            tag: format!("SELECT {}", rows.len()),
        })
    }

    fn verdict(statement: &Statement, ordered: &[usize], plain: &Answer, herd: &Answer) -> bool {
        let rendered = Rendered {
            ordered: ordered.to_vec(),
            ..Rendered::default()
        };
        matches!(
            compare(statement, &rendered, Carrier::Simple, plain, herd),
            Verdict::Same(_)
        )
    }

    #[test]
    fn order_counts_where_it_was_asked_for() {
        let (one, other) = (answer(&["1", "2"], "23"), answer(&["2", "1"], "23"));
        assert!(verdict(&statement(false, false), &[], &one, &other));
        assert!(!verdict(&statement(false, false), &[1], &one, &other));
        assert!(!verdict(
            &statement(false, false),
            &[],
            &one,
            &answer(&["1", "1"], "23")
        ));
        assert!(!verdict(
            &statement(false, false),
            &[],
            &one,
            &answer(&["1", "2"], "20")
        ));
    }

    #[test]
    fn equal_numbers_have_no_order() {
        let (one, other) = (
            answer(&["1", "0", "0.00"], NUMERIC),
            answer(&["1", "0.00", "0"], NUMERIC),
        );
        assert!(verdict(&statement(false, false), &[1], &one, &other));
        let third = answer(&["0", "1", "0.00"], NUMERIC);
        assert!(!verdict(&statement(false, false), &[1], &one, &third));
    }

    #[test]
    fn equal_numbers_in_jsonb_have_no_order() {
        let (one, other) = (answer(&["[1]", "[1.0]"], JSONB), answer(&["[1.0]", "[1]"], JSONB));
        assert!(verdict(&statement(false, false), &[1], &one, &other));
        assert!(!verdict(
            &statement(false, false),
            &[1],
            &one,
            &answer(&["[1]", "[1]"], JSONB)
        ));
    }

    #[test]
    fn equal_values_may_print_differently_only_where_that_is_open() {
        let (one, other) = (answer(&["1.50"], NUMERIC), answer(&["1.5"], NUMERIC));
        assert!(verdict(&statement(true, false), &[], &one, &other));
        assert!(!verdict(&statement(false, false), &[], &one, &other));
        assert!(!verdict(
            &statement(true, false),
            &[],
            &one,
            &answer(&["1.51"], NUMERIC)
        ));
        let (one, other) = (answer(&["0.30000000000000004"], FLOAT8), answer(&["0.3"], FLOAT8));
        assert!(verdict(&statement(false, true), &[], &one, &other));
        assert!(!verdict(&statement(true, false), &[], &one, &other));
    }
}
