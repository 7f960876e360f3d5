//! `now()` and its kin must show when the *transaction* began, and the scratch connection's began later: they are
//! replaced by the time of the transaction's first shard.

use crate::views::ParsedQuery;
use pgherd_sql::lexer::Token;
use pgherd_sql::moment::moments;
use std::ops::Range;

/// Replacements for the calls of `now()`, `current_timestamp`, …; none when the statement also uses such a word as a
/// column's name, which a replaced call would no longer give.
pub(crate) fn edits(parsed: &ParsedQuery, now: &str) -> Vec<(Range<usize>, String)> {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let constants = moments(text, tokens).into_iter();
    let mut edits: Vec<_> = constants
        .map(|moment| (moment.span.clone(), moment.of(&literal(now, "timestamptz"))))
        .collect();
    for (i, token) in tokens.iter().enumerate() {
        let Some(name) = token.identifier(text) else {
            continue;
        };
        let after_dot = i > 0 && tokens[i - 1].is(text, ".");
        match name.as_str() {
            "now" | "transaction_timestamp" => {
                let called = is(tokens, i + 1, text, "(") && is(tokens, i + 2, text, ")");
                if !called || after_dot {
                    return Vec::new();
                }
                edits.push((span(token, &tokens[i + 2]), literal(now, "timestamptz")));
            }
            "current_timestamp" | "localtimestamp" | "current_time" | "localtime" | "current_date"
                if token.kind == pgherd_sql::lexer::TokenKind::Word && !after_dot =>
            {
                let target = match name.as_str() {
                    "current_timestamp" => "timestamptz",
                    "localtimestamp" => "timestamp",
                    "current_time" => "timetz",
                    "localtime" => "time",
                    _ => "date",
                };
                let precise = name != "current_date" && is(tokens, i + 1, text, "(") && is(tokens, i + 3, text, ")");
                let (last, target) = match tokens.get(i + 2) {
                    Some(digits) if precise => (&tokens[i + 3], format!("{target}({})", digits.text(text))),
                    _ => (token, target.to_owned()),
                };
                edits.push((span(token, last), literal(now, &target)));
            }
            _ => {}
        }
    }
    edits.sort_by_key(|(span, _)| span.start);
    edits
}

fn is(tokens: &[Token], at: usize, text: &str, symbol: &str) -> bool {
    tokens.get(at).is_some_and(|t| t.is(text, symbol))
}

fn span(first: &Token, last: &Token) -> Range<usize> {
    first.start as usize..last.end as usize
}

fn literal(now: &str, target: &str) -> String {
    format!("CAST(CAST('{now}' AS pg_catalog.timestamptz) AS pg_catalog.{target})")
}
