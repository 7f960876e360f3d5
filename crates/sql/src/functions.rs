//! Functions whose calls decide where a statement may run.

use crate::lexer::{Token, TokenKind};
use pgherd_model::Snapshot;

/// Functions of PostgreSQL that run SQL given as text, or read whole relations by name: they would see one
/// shard's part.
const RUN_SQL: [&str; 17] = [
    "query_to_xml",
    "query_to_xmlschema",
    "query_to_xml_and_xmlschema",
    "cursor_to_xml",
    "cursor_to_xmlschema",
    "table_to_xml",
    "table_to_xmlschema",
    "table_to_xml_and_xmlschema",
    "schema_to_xml",
    "schema_to_xmlschema",
    "schema_to_xml_and_xmlschema",
    "database_to_xml",
    "database_to_xmlschema",
    "database_to_xml_and_xmlschema",
    "ts_stat",
    "ts_rewrite",
    "crosstab",
];

/// Functions of PostgreSQL whose meaning is one server's state, which the home shard keeps for the database.
const HOME: [&str; 18] = [
    "nextval",
    "currval",
    "lastval",
    "setval",
    "set_config",
    "pg_notify",
    "pg_export_snapshot",
    "txid_current",
    "pg_current_xact_id",
    "pg_backend_pid",
    "pg_cancel_backend",
    "pg_terminate_backend",
    "lo_create",
    "lo_creat",
    "lo_import",
    "lo_export",
    "lo_unlink",
    "pg_get_serial_sequence",
];

/// Functions of PostgreSQL, and words before a parenthesis, that are in many statements.
const BUILTIN: [&str; 40] = [
    "abs",
    "all",
    "and",
    "any",
    "array_agg",
    "as",
    "avg",
    "by",
    "char",
    "coalesce",
    "concat",
    "count",
    "date_trunc",
    "exists",
    "extract",
    "filter",
    "from",
    "greatest",
    "in",
    "join",
    "least",
    "left",
    "length",
    "lower",
    "max",
    "min",
    "not",
    "now",
    "nullif",
    "numeric",
    "on",
    "or",
    "over",
    "round",
    "select",
    "string_agg",
    "sum",
    "upper",
    "values",
    "where",
];

/// Whether everything that is called, or looks like it, is known to be PostgreSQL's own. Not of all that is so.
pub fn calls_builtins_only(text: &str, tokens: &[Token]) -> bool {
    calls(text, tokens).all(|(_, name)| BUILTIN.contains(&name.as_str()))
}

/// The names of all functions called in these tokens: a name before `(`.
fn calls<'a>(text: &'a str, tokens: &'a [Token]) -> impl Iterator<Item = (usize, String)> + 'a {
    tokens.windows(2).enumerate().filter_map(move |(i, pair)| {
        let named = matches!(pair[0].kind, TokenKind::Word | TokenKind::Quoted);
        if !named || !pair[1].is(text, "(") {
            return None;
        }
        Some((i, pair[0].identifier(text)?))
    })
}

/// Whether there is a call (or a type with a length, which looks the same).
pub(crate) fn has_call(text: &str, tokens: &[Token]) -> bool {
    calls(text, tokens).next().is_some()
}

/// Whether the time of the statement or of its transaction is in there.
pub(crate) fn has_time(text: &str, tokens: &[Token]) -> bool {
    const WORDS: [&str; 5] = [
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
    ];
    const CALLS: [&str; 3] = ["now", "transaction_timestamp", "statement_timestamp"];
    // `'now'::timestamptz` and the like: input that depends on the time.
    const INPUTS: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];
    let word = |t: &Token| WORDS.iter().any(|w| t.is_word(text, w));
    let input = |t: &Token| {
        let string = t.string(text).map(|s| s.trim().to_ascii_lowercase());
        string.is_some_and(|s| INPUTS.iter().any(|i| s.starts_with(i)))
    };
    // What schema pgherd's functions say is the same on every shard.
    let shared = |i: usize| i > 1 && tokens[i - 1].is(text, ".") && tokens[i - 2].is_word(text, "pgherd");
    tokens.iter().any(|t| word(t) || input(t))
        || calls(text, tokens).any(|(i, name)| CALLS.contains(&name.as_str()) && !shared(i))
}

/// Whether a call's meaning is the home shard's state.
pub(crate) fn bound_to_home(text: &str, tokens: &[Token]) -> bool {
    calls(text, tokens).any(|(_, name)| {
        HOME.contains(&name.as_str()) || name.starts_with("pg_advisory") || name.starts_with("pg_try_advisory")
    })
}

/// The first function whose call could see one shard's part of a sharded table, also in the notation
/// `row.function`; `is_column` tells names that are columns there.
pub(crate) fn unsafe_call(
    text: &str,
    tokens: &[Token],
    snapshot: &Snapshot,
    is_column: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let sharded = snapshot.sharded().next().is_some();
    let called = calls(text, tokens).map(|(_, name)| name);
    let mut refused = called.filter(|name| {
        snapshot.unsafe_functions.contains(name.as_str()) || (sharded && RUN_SQL.contains(&name.as_str()))
    });
    refused.next().or_else(|| {
        if snapshot.unsafe_functions.is_empty() {
            return None;
        }
        let mut fields = tokens.windows(2).filter(|pair| pair[0].is(text, "."));
        fields.find_map(|pair| {
            let name = pair[1].identifier(text)?;
            (snapshot.unsafe_functions.contains(&name) && !is_column(&name)).then_some(name)
        })
    })
}
