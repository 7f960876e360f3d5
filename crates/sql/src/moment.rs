//! Constants that mean the transaction's time: `timestamptz 'now'`, `'now'::date`, `CAST('now' AS time(3))`.
//!
//! A shard reads them as the time at which the transaction came to it, as it does `now()`. Without a type a string is a moment only
//! where a column's type makes it one, which the text does not show.

use crate::lexer::{Reader, Token};
use std::ops::Range;

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub struct Moment {
    /// its bytes, with the type
    pub span: Range<usize>,
    /// the type, as functions of PostgreSQL are called that make one of it
    type_name: &'static str,
    /// digits of a second
    precision: Option<String>,
}

/// Whether a string is read as the transaction's time.
pub fn is_now(constant: &str) -> bool {
    constant.trim().eq_ignore_ascii_case("now")
}

impl Moment {
    /// The same of an expression that is a `timestamptz`. A result's column is called what the constant's is.
    pub fn of(&self, time: &str) -> String {
        let name = format!("pg_catalog.\"{}\"", self.type_name);
        match &self.precision {
            None => format!("{name}({time})"),
            Some(digits) => format!("{name}({name}({time}), {digits})"),
        }
    }
}

/// All in a statement, ascending.
pub fn moments(text: &str, tokens: &[Token]) -> Vec<Moment> {
    let reader = Reader { text, tokens };
    let is_moment = |at: &usize| tokens[*at].string(text).is_some_and(|constant| is_now(&constant));
    (0..tokens.len())
        .filter(is_moment)
        .filter_map(|at| reader.moment(at))
        .collect()
}

impl Reader<'_> {
    /// The constant whose string is at `at`.
    fn moment(&self, at: usize) -> Option<Moment> {
        let longest = (1..=7).rev().filter_map(|length| at.checked_sub(length));
        for begin in longest {
            if let Some((end, type_name, precision)) = self.type_at(begin)
                && end == at
                && !(begin > 0 && self.is(begin - 1, "."))
            {
                return Some(self.made(begin, at, type_name, precision));
            }
        }
        if self.is(at + 1, "::") {
            let (end, type_name, precision) = self.type_at(at + 2)?;
            return (!self.is(end, "[") && !self.is(end, ".")).then(|| self.made(at, end - 1, type_name, precision));
        }
        if at > 1 && self.is(at - 1, "(") && self.is_word(at - 2, "cast") && self.is_word(at + 1, "as") {
            let (end, type_name, precision) = self.type_at(at + 2)?;
            return self.is(end, ")").then(|| self.made(at - 2, end, type_name, precision));
        }
        None
    }

    fn made(&self, first: usize, last: usize, type_name: &'static str, precision: Option<String>) -> Moment {
        Moment {
            span: self.tokens[first].start as usize..self.tokens[last].end as usize,
            type_name,
            precision,
        }
    }

    /// The type whose name begins here: where it ends, what it is, and its precision.
    fn type_at(&self, at: usize) -> Option<(usize, &'static str, Option<String>)> {
        let names = ["date", "time", "timetz", "timestamp", "timestamptz"];
        let name = names.into_iter().find(|name| self.is_word(at, name))?;
        let mut end = at + 1;
        let mut precision = None;
        if name != "date" && self.is(end, "(") && self.is(end + 2, ")") {
            precision = Some(self.tokens[end + 1].text(self.text).to_owned());
            end += 3;
        }
        let has_zone = match name {
            "time" => Some("timetz"),
            "timestamp" => Some("timestamptz"),
            _ => None,
        };
        let zone =
            |word: &str| self.is_word(end, word) && self.is_word(end + 1, "time") && self.is_word(end + 2, "zone");
        match has_zone {
            Some(with) if zone("with") => Some((end + 3, with, precision)),
            Some(_) if zone("without") => Some((end + 3, name, precision)),
            _ => Some((end, name, precision)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lexer::tokenize;
    use crate::relations::substitute;

    fn replaced(text: &str) -> String {
        let tokens = tokenize(text).expect("tokens");
        let found: Vec<_> = moments(text, &tokens)
            .iter()
            .map(|m| (m.span.clone(), m.of("x()")))
            .collect();
        substitute(text, &found).0
    }

    #[test]
    fn constants_with_a_type_are_found() {
        for (text, expected) in [
            ("SELECT timestamptz 'now'", "SELECT pg_catalog.\"timestamptz\"(x())"),
            (
                "SELECT timestamp(2) with time zone ' NOW ', 1",
                "SELECT pg_catalog.\"timestamptz\"(pg_catalog.\"timestamptz\"(x()), 2), 1",
            ),
            (
                "SELECT 'now'::time without time zone + 'now'::date",
                "SELECT pg_catalog.\"time\"(x()) + pg_catalog.\"date\"(x())",
            ),
            (
                "SELECT CAST('now' AS timestamp(0))",
                "SELECT pg_catalog.\"timestamp\"(pg_catalog.\"timestamp\"(x()), 0)",
            ),
        ] {
            assert_eq!(replaced(text), expected);
        }
    }

    #[test]
    fn other_strings_are_left_alone() {
        for text in [
            "SELECT 'now'",
            "SELECT 'now'::text, text 'now'",
            "SELECT date 'today', 'now'::date[]",
            "SELECT x.date 'now'",
        ] {
            assert_eq!(replaced(text), text);
        }
    }
}
