//! The transaction's time in a statement's text.
//!
//! Each shard's `now()` is when the transaction came to that shard. Where a transaction has more than one shard, its
//! statements call the functions of schema `pgherd` instead, which give the time of the shard that it began on. They
//! have the same last names, so a result's columns are called the same.

use crate::lexer::{Token, TokenKind, depths, tokenize};
use crate::moment::moments;
use crate::relations::substitute;
use pgherd_model::{Column, quote_identifier};
use std::ops::Range;

/// Key words, and the type that a precision behind them is of.
const WORDS: [(&str, Option<&str>); 5] = [
    ("current_date", None),
    ("current_time", Some("timetz")),
    ("current_timestamp", Some("timestamptz")),
    ("localtime", Some("time")),
    ("localtimestamp", Some("timestamp")),
];
/// The transaction's time as a `timestamptz`.
pub(crate) const NOW: &str = "pgherd.now()";
const CALLS: [&str; 2] = ["now", "transaction_timestamp"];

/// What to put in place of each use of the transaction's time, ascending.
pub(crate) fn replacements(text: &str, tokens: &[Token]) -> Vec<(Range<usize>, String)> {
    let calls = (0..tokens.len()).filter_map(|i| replacement(text, tokens, i));
    let constants = moments(text, tokens).into_iter().map(|m| (m.span.clone(), m.of(NOW)));
    let mut found: Vec<_> = calls.chain(constants).collect();
    found.sort_by_key(|(span, _)| span.start);
    found
}

fn replacement(text: &str, tokens: &[Token], i: usize) -> Option<(Range<usize>, String)> {
    let is = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
    let token = &tokens[i];
    let (start, end) = (token.start as usize, token.end as usize);
    let behind_dot = i > 0 && is(i - 1, ".");
    if token.kind == TokenKind::Word
        && let Some((word, precise)) = WORDS.iter().find(|(word, _)| token.is_word(text, word))
    {
        // Behind AS it is a column's name.
        if behind_dot || (i > 0 && tokens[i - 1].is_word(text, "as")) {
            return None;
        }
        let call = format!("pgherd.{}()", quote_identifier(word));
        return Some(match (precise, tokens.get(i + 2)) {
            (Some(type_name), Some(digits)) if is(i + 1, "(") && is(i + 3, ")") => (
                start..tokens[i + 3].end as usize,
                format!("CAST({call} AS pg_catalog.{type_name}({}))", digits.text(text)),
            ),
            _ => (start..end, call),
        });
    }
    if !is(i + 1, "(") || !is(i + 2, ")") {
        return None;
    }
    let name = token.identifier(text).filter(|name| CALLS.contains(&name.as_str()))?;
    let start = match behind_dot {
        false => start,
        true => {
            let schema = i.checked_sub(2).map(|s| &tokens[s])?;
            (schema.identifier(text)? == "pg_catalog").then_some(schema.start as usize)?
        }
    };
    Some((start..end, format!("pgherd.{name}")))
}

/// A column's default with the functions of schema `pgherd` in it, where it has the transaction's time.
pub(crate) fn timed_default(column: &Column) -> Option<String> {
    let default = column.default.as_deref().filter(|_| !column.generated)?;
    let tokens = tokenize(default).ok()?;
    let replaced = replacements(default, &tokens);
    (!replaced.is_empty()).then(|| substitute(default, &replaced).0)
}

/// An ALTER TABLE that does nothing but add columns, by whose defaults the rows that are there get the transaction's time, calling
/// the functions of schema `pgherd` for it. None for all others.
pub fn column_of_one_time(text: &str) -> Option<String> {
    let tokens = tokenize(text).ok()?;
    let has = |word: &str| tokens.iter().any(|t| t.is_word(text, word));
    let depths = depths(text, &tokens);
    let count = |is: &dyn Fn(&Token) -> bool| {
        tokens
            .iter()
            .zip(&depths)
            .filter(|(t, depth)| **depth == 0 && is(t))
            .count()
    };
    // Each action of the list is to add something.
    let others = count(&|t| t.is_word(text, "add")) != count(&|t| t.is(text, ",")) + 1;
    // In a CHECK or a generated column it would stay.
    let adds = has("add") && has("default") && !has("check") && !has("generated");
    let replaced = replacements(text, &tokens);
    (adds && !others && !replaced.is_empty()).then(|| substitute(text, &replaced).0)
}

/// Whether the text calls the functions of schema `pgherd` that give the transaction's time.
pub fn uses_shared_clock(text: &str, tokens: &[Token]) -> bool {
    tokens.windows(4).any(|w| {
        w[0].is_word(text, "pgherd")
            && w[1].is(text, ".")
            && w[3].is(text, "(")
            && w[2].identifier(text).is_some_and(|name| is_clock(&name))
    })
}

/// Whether a function of schema `pgherd` gives the transaction's time.
pub(crate) fn is_clock(name: &str) -> bool {
    CALLS.contains(&name) || WORDS.iter().any(|(word, _)| *word == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let tokens = crate::lexer::tokenize(text).expect("tokens");
        let (found, _) = crate::relations::substitute(text, &replacements(text, &tokens));
        assert_eq!(found, expected);
        let tokens = crate::lexer::tokenize(&found).expect("tokens");
        assert_eq!(uses_shared_clock(&found, &tokens), text != expected);
        assert!(replacements(&found, &tokens).is_empty(), "{found}");
    }

    #[test]
    fn the_transactions_time_is_called_in_our_schema() {
        check(
            "SELECT now(), pg_catalog.Now ( )",
            "SELECT pgherd.now(), pgherd.now ( )",
        );
        check(
            "SELECT CURRENT_DATE, localtimestamp(3)",
            "SELECT pgherd.\"current_date\"(), CAST(pgherd.\"localtimestamp\"() AS pg_catalog.timestamp(3))",
        );
        check(
            "SELECT date 'now', now()",
            "SELECT pg_catalog.\"date\"(pgherd.now()), pgherd.now()",
        );
        check(
            "SELECT transaction_timestamp()",
            "SELECT pgherd.transaction_timestamp()",
        );
    }

    #[test]
    fn names_and_other_clocks_are_left_alone() {
        for text in [
            "SELECT now FROM t",
            "SELECT t.now, 1 AS current_date",
            "SELECT \"current_date\", x.now()",
            "SELECT clock_timestamp(), statement_timestamp()",
        ] {
            check(text, text);
        }
    }
}
