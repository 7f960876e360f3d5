//! Functions whose calls decide where a statement may run.

use crate::lexer::{Token, TokenKind};
use pgherd_model::functions::{HOME_STATE, SESSION_LOCKS, is_advisory_lock};
use pgherd_model::{Snapshot, Table};
use std::collections::HashSet;

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

/// PostgreSQL's functions that return sets, and that statements write where values stand.
const SETS: [&str; 22] = [
    "generate_series",
    "generate_subscripts",
    "json_array_elements",
    "json_array_elements_text",
    "json_each",
    "json_each_text",
    "json_object_keys",
    "json_populate_recordset",
    "jsonb_array_elements",
    "jsonb_array_elements_text",
    "jsonb_each",
    "jsonb_each_text",
    "jsonb_object_keys",
    "jsonb_path_query",
    "jsonb_populate_recordset",
    "regexp_matches",
    "regexp_split_to_table",
    "string_to_table",
    "ts_parse",
    "unnest",
    "_pg_expandarray",
    "xpath_table",
];

/// Whether one of PostgreSQL's functions that return sets is called.
pub fn calls_set_returning(text: &str, tokens: &[Token]) -> bool {
    calls(text, tokens).any(|(_, name)| SETS.contains(&name.as_str()))
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

/// Functions of PostgreSQL that look something up in its catalogs, by name or OID: only the home shard has all of it, under OIDs that
/// clients know.
const LOOK_UP: [&str; 31] = [
    "col_description",
    "has_any_column_privilege",
    "has_column_privilege",
    "has_function_privilege",
    "has_sequence_privilege",
    "has_table_privilege",
    "has_type_privilege",
    "obj_description",
    "pg_describe_object",
    "pg_get_constraintdef",
    "pg_get_expr",
    "pg_get_function_arguments",
    "pg_get_function_result",
    "pg_get_functiondef",
    "pg_get_indexdef",
    "pg_get_partkeydef",
    "pg_get_ruledef",
    "pg_get_statisticsobjdef",
    "pg_get_triggerdef",
    "pg_get_viewdef",
    "pg_identify_object",
    "pg_indexes_size",
    "pg_partition_tree",
    "pg_relation_size",
    "pg_sequence_last_value",
    "pg_table_is_visible",
    "pg_table_size",
    "pg_total_relation_size",
    "row_security_active",
    "to_regclass",
    "to_regtype",
];

/// Whether a call's meaning is the home shard's state, or it reads what only the home shard has.
pub(crate) fn bound_to_home(text: &str, tokens: &[Token], snapshot: &Snapshot) -> bool {
    calls_state_of_home(text, tokens, snapshot) || looks_up(text, tokens, snapshot)
}

/// Whether a call's meaning is the home shard's state, or it reads tables of the home shard.
pub(crate) fn calls_state_of_home(text: &str, tokens: &[Token], snapshot: &Snapshot) -> bool {
    calls(text, tokens).any(|(_, name)| {
        HOME_STATE.contains(&name.as_str()) || is_advisory_lock(&name) || snapshot.home_functions.contains(&name)
    })
}

/// Whether something is looked up in PostgreSQL's catalogs.
pub(crate) fn looks_up(text: &str, tokens: &[Token], snapshot: &Snapshot) -> bool {
    calls_look_up(text, tokens) || names_relation_of_home(text, tokens, snapshot)
}

/// Whether a function is called that does so.
pub(crate) fn calls_look_up(text: &str, tokens: &[Token]) -> bool {
    calls(text, tokens).any(|(i, name)| {
        let schema = (i > 1 && tokens[i - 1].is(text, ".")).then(|| tokens[i - 2].identifier(text));
        match schema.flatten().as_deref() {
            None | Some("pg_catalog") => LOOK_UP.contains(&name.as_str()),
            // What stands in a catalog's place.
            Some("pgherd") => name.starts_with("pg_") || name.starts_with("information_schema_"),
            Some(_) => false,
        }
    })
}

/// These tokens without the queries among them.
pub(crate) fn outside_of_queries(text: &str, tokens: &[Token]) -> Vec<Token> {
    let mut depth = 0;
    let mut outside = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let opens = token.is(text, "(");
        let begins = |word: &&str| tokens.get(i + 1).is_some_and(|t| t.is_word(text, word));
        if opens && (depth > 0 || ["select", "with", "values", "table"].iter().any(begins)) {
            depth += 1;
        }
        if depth == 0 {
            outside.push(*token);
        } else if token.is(text, ")") {
            depth -= 1;
        }
    }
    outside
}

/// Whether there is a constant of type `regclass` that names what other shards may not have. Beside `tableoid`, which tells of the shard
/// where the row is, it means the same as that.
fn names_relation_of_home(text: &str, tokens: &[Token], snapshot: &Snapshot) -> bool {
    let is_type = |i: usize| tokens.get(i).is_some_and(|t| t.is_word(text, "regclass"));
    let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
    let in_catalog = |i: usize| tokens.get(i).is_some_and(|t| t.is_word(text, "pg_catalog")) && is(i + 1, ".");
    let is_cast = |i: usize| is(i + 1, "::") && (is_type(i + 2) || in_catalog(i + 2) && is_type(i + 4));
    let is_elsewhere = |i: usize| {
        let named = tokens[i].string(text).unwrap_or_default();
        let name = named.rsplit('.').next().unwrap_or_default().trim_matches('"');
        let known = |t: &Table| t.name.name.eq_ignore_ascii_case(name);
        let is_oid = named.bytes().all(|b| b.is_ascii_digit());
        !is_oid && !snapshot.sharded().any(|t| known(t))
    };
    let is_constant =
        |i: usize| tokens[i].kind == TokenKind::String && (is_cast(i) || i > 0 && is_type(i - 1)) && is_elsewhere(i);
    (0..tokens.len()).any(is_constant) && !tokens.iter().any(|t| t.is_word(text, "tableoid"))
}

/// Whether a lock is taken that the session keeps beyond its transaction.
pub(crate) fn takes_session_lock(text: &str, tokens: &[Token], snapshot: &Snapshot) -> bool {
    let takes = |name: &String| SESSION_LOCKS.contains(&name.as_str()) || snapshot.locking_functions.contains(name);
    calls(text, tokens).any(|(_, name)| takes(&name)) || changes_locking_relation(text, tokens, snapshot)
}

/// Whether a relation is changed that takes such a lock by itself, by a trigger or a default. SELECT * FROM it takes none, but does not have to be told
/// apart where something else is changed as well.
fn changes_locking_relation(text: &str, tokens: &[Token], snapshot: &Snapshot) -> bool {
    const CHANGES: [&str; 6] = ["insert", "update", "delete", "merge", "copy", "truncate"];
    let named = |t: &Token| {
        t.identifier(text)
            .is_some_and(|name| snapshot.locking_relations.contains(&name))
    };
    !snapshot.locking_relations.is_empty()
        && tokens.iter().any(|t| CHANGES.iter().any(|word| t.is_word(text, word)))
        && tokens.iter().any(named)
}

/// The same for a DO block, whose body is a string: that the name is in there is enough.
pub(crate) fn block_takes_session_lock(text: &str, snapshot: &Snapshot) -> bool {
    let lower = text.to_lowercase();
    let mut functions = snapshot.locking_functions.iter().map(|name| name.to_lowercase());
    let mut relations = snapshot.locking_relations.iter().map(|name| name.to_lowercase());
    SESSION_LOCKS.iter().any(|name| lower.contains(name))
        || functions.any(|name| lower.contains(&name))
        || relations.any(|name| lower.contains(&name))
}

/// Whether a function of a user is called that may write elsewhere than in the statement's own table.
pub(crate) fn calls_home_function(text: &str, tokens: &[Token], snapshot: &Snapshot) -> bool {
    calls(text, tokens).any(|(_, name)| snapshot.home_functions.contains(&name))
}

/// The first name of these that is called, also in the notation `row.function`; `is_column` tells names that are columns there.
fn named_call(
    text: &str,
    tokens: &[Token],
    names: &HashSet<String>,
    is_column: &dyn Fn(&str) -> bool,
) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let mut called = calls(text, tokens).map(|(_, name)| name);
    called.find(|name| names.contains(name)).or_else(|| {
        let fields = tokens.windows(2).filter(|pair| pair[0].is(text, "."));
        let mut fields = fields.filter_map(|pair| pair[1].identifier(text));
        fields.find(|name| names.contains(name) && !is_column(name))
    })
}

/// The first function whose call is to be watched while it runs.
pub(crate) fn watched_call(
    text: &str,
    tokens: &[Token],
    snapshot: &Snapshot,
    is_column: &dyn Fn(&str) -> bool,
) -> Option<String> {
    named_call(text, tokens, &snapshot.watched_functions, is_column)
}

/// The first function whose call could see one shard's part of a sharded table, or an operator or type that calls one.
pub(crate) fn unsafe_call(
    text: &str,
    tokens: &[Token],
    snapshot: &Snapshot,
    is_column: &dyn Fn(&str) -> bool,
) -> Option<String> {
    named_call(text, tokens, &snapshot.unsafe_functions, is_column).or_else(|| {
        if snapshot.unsafe_words.is_empty() {
            return None;
        }
        let word = |t: &Token| match t.kind {
            TokenKind::Operator => Some(t.text(text).to_owned()),
            _ => t.identifier(text),
        };
        tokens
            .iter()
            .filter_map(word)
            .find(|w| snapshot.unsafe_words.contains(w) && !is_column(w))
    })
}
