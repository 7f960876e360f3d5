//! What no tier can answer exactly is refused here, before anything runs.

use crate::gather;
use crate::views::ParsedQuery;
use pgherd_model::{ServerError, SqlState};

/// The one of [`SYSTEM_COLUMNS`] that a list may show.
pub(crate) const VERSION: &str = "xmin";

/// Columns that every table has and that mean something on its own server only.
pub(crate) const SYSTEM_COLUMNS: &[&str] = &["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// Functions of pg_catalog that act on, or ask about, the session or transaction of the server they run on.
const SESSION_FUNCTIONS: &[&str] = &[
    "set_config",
    "query_to_xml",
    "table_to_xml",
    "cursor_to_xml",
    "schema_to_xml",
    "database_to_xml",
];

/// Functions of pg_catalog that lock, change or ask for what only the home shard has, in the transaction that calls them: they can run
/// on the home shard's participant, over rows that are brought there.
const HOME_FUNCTIONS: &[&str] = &[
    "currval",
    "lastval",
    "pg_export_snapshot",
    "pg_notify",
    "txid_current",
    "txid_current_if_assigned",
    "txid_current_snapshot",
    "pg_current_xact_id",
    "pg_current_xact_id_if_assigned",
    "pg_current_snapshot",
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_advisory_unlock",
    "pg_advisory_unlock_all",
    "pg_advisory_unlock_shared",
    "pg_advisory_xact_lock",
    "pg_advisory_xact_lock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
    "pg_try_advisory_xact_lock",
    "pg_try_advisory_xact_lock_shared",
    "lo_create",
    "lo_creat",
    "lo_import",
    "lo_export",
    "lo_unlink",
    "lo_get",
    "lo_put",
    "lo_from_bytea",
];

/// A function in the statement that must run in the transaction itself, on the home shard.
pub(crate) fn home_function(parsed: &ParsedQuery) -> Option<&'static str> {
    let is_named = |name: &&&str| parsed.words.iter().any(|word| word == **name) && is_call(parsed, name);
    HOME_FUNCTIONS.iter().find(is_named).copied()
}

/// Whether the statement draws from a sequence, which the session remembers where it runs in the transaction itself.
pub(crate) fn draws(parsed: &ParsedQuery) -> bool {
    const DRAW: [&str; 2] = ["nextval", "setval"];
    DRAW.iter()
        .any(|name| parsed.words.iter().any(|word| word == name) && is_call(parsed, name))
}

/// Refuses a function that means something in another transaction, or on another server, only.
pub(crate) fn not_here(function: &str) -> ServerError {
    ServerError::unsupported(
        format!("{function}() is not supported in a query over several shards"),
        "Call it in a statement of its own.",
    )
}

/// Refuses what a statement over several shards cannot have.
pub(crate) fn check(parsed: &ParsedQuery) -> Result<(), ServerError> {
    if parsed.relations.modifies {
        return Err(ServerError::unsupported(
            "data-modifying statements in WITH are not supported over several shards",
            "Run the statements one after another in a transaction.",
        ));
    }
    if parsed.relations.into {
        return Err(ServerError::unsupported(
            "SELECT INTO is not supported over several shards",
            "Use CREATE TABLE and INSERT INTO … SELECT.",
        ));
    }
    if parsed.relations.locks {
        return Err(ServerError::unsupported(
            "FOR UPDATE and FOR SHARE are not supported in this query over several shards",
            "Lock the rows in a SELECT on one table without GROUP BY and DISTINCT.",
        ));
    }
    for word in &parsed.words {
        let is_column = SYSTEM_COLUMNS.contains(&word.as_str()) && !is_call(parsed, word);
        if is_column && !(word == VERSION && gather::reads_versions(parsed)) {
            return Err(system_column(word));
        }
        if SESSION_FUNCTIONS.contains(&word.as_str()) {
            return Err(not_here(word));
        }
    }
    Ok(())
}

/// Refuses a column that means something in one range only.
pub(crate) fn system_column(name: &str) -> ServerError {
    ServerError::unsupported(
        format!("system column \"{name}\" is not supported in a query over several shards"),
        "Name the rows by their key instead.",
    )
}

/// Whether a word is a function's name wherever it stands, as in `pgherd.tableoid(…)`.
fn is_call(parsed: &ParsedQuery, word: &str) -> bool {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    let mut mentions = (0..tokens.len()).filter(|&i| tokens[i].identifier(text).as_deref() == Some(word));
    mentions.all(|i| tokens.get(i + 1).is_some_and(|next| next.is(text, "(")))
}

/// A volatile function that tried to write where the statement runs READ ONLY.
pub(crate) fn explain_read_only(error: ServerError) -> ServerError {
    if error.sqlstate() != SqlState::from_bytes(b"25006") {
        return error;
    }
    ServerError::unsupported(
        "a query over several shards cannot call a function that writes",
        "Call the function in a statement of its own.",
    )
    .with_detail(error.fields().message.clone())
}
