//! What every shard has: schemas, types, functions, extensions, roles, sequences' names, and grants.

use crate::bounds::Automatic;
use crate::convert;
use crate::drop::forget_vanished;
use crate::statement_text::StatementText;
use crate::view::reaches;
use crate::work::Work;
use crate::yielding;
use pgherd_model::functions::SESSION_LOCKS;
use pgherd_model::{Name, ServerError, Table, TableKind, quote_literal};
use pgherd_sql::{Ddl, DdlKind};
use std::sync::Arc;

/// The whole statement on every shard.
pub(crate) async fn broadcast(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    use DdlKind::*;
    let any_sharded = work.snapshot.sharded().next().is_some();
    if ddl.kind == CreateSchema
        && let Some(head) = text.schema_head()
    {
        return filled_schema(work, head, text).await;
    }
    let may_drop = matches!(
        ddl.kind,
        DropSchema | DropOwned | DropType | DropDomain | DropExtension | DropRole
    );
    let may_rename = matches!(
        ddl.kind,
        AlterSchema | AlterType | AlterDomain | ReassignOwned | AlterExtension
    );
    if any_sharded && (may_drop && (text.has(&["cascade"]) || ddl.kind == DropOwned) || may_rename) {
        // Whatever goes along, no statement may run on any of it meanwhile.
        work.announce([""], text.text).await?;
    }
    let tag = work.on_home(text.text).await?;
    match ddl.kind {
        CreateType | AlterType | DropType | CreateDomain | AlterDomain | DropDomain => {
            type_elsewhere(work, ddl, text).await?;
        }
        // A schema that a function has made is on the home shard alone.
        DropSchema | AlterSchema => {
            let before = work.notice_count();
            let sql = match ddl.kind {
                DropSchema => text.if_exists("schema"),
                _ => text.text.to_owned(),
            };
            for shard in work.others() {
                work.tolerating(shard, &sql, &["3F000"]).await?;
            }
            work.truncate_notices(before);
        }
        _ => {
            let others = work.others();
            work.on_each(&others, text.text).await?;
        }
    }
    if any_sharded {
        if may_drop {
            forget_vanished(work).await?;
        }
        if may_rename {
            let tables: Vec<Name> = work.snapshot.sharded().map(|t| t.name.clone()).collect();
            work.reload().await?;
            let shards = work.shards();
            work.keep_children(&shards, &tables).await?;
        }
    }
    Ok(tag)
}

/// A type on the other shards: not where a local table's row is in it. Tables with such columns are local.
async fn type_elsewhere(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<(), ServerError> {
    let sql = match ddl.kind {
        DdlKind::DropType => text.if_exists("type"),
        DdlKind::DropDomain => text.if_exists("domain"),
        _ => text.text.to_owned(),
    };
    let before = work.notice_count();
    for shard in work.others() {
        work.tolerating(shard, &sql, &["42704"]).await?;
    }
    work.truncate_notices(before);
    Ok(())
}

/// CREATE SCHEMA with what is in it, which is made on the home shard as PostgreSQL makes it: its tables are local. The other
/// shards get the schema.
async fn filled_schema(work: &mut Work<'_, '_>, head: &str, text: &StatementText<'_>) -> Result<String, ServerError> {
    if reaches(work, text) {
        // Its tables may have the names of sharded ones, and its views may read those; a foreign key to one is found when the catalog is
        // read again.
        let names: Vec<String> = text.identifiers().collect();
        work.announce(names.iter().map(String::as_str), text.text).await?;
    }
    let tag = work.on_home(text.text).await?;
    let others = work.others();
    work.on_each(&others, head).await?;
    if work.session.distribution.automatic == Automatic::PrimaryKey && text.has(&["create", "table"]) {
        work.notice("tables that CREATE SCHEMA makes along with the schema are local");
    }
    Ok(tag)
}

/// CREATE, ALTER and DROP FUNCTION, PROCEDURE, AGGREGATE.
pub(crate) async fn function(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    if ddl.relations.iter().any(|f| f.schema.as_deref() == Some("pg_temp")) {
        return function_of_session(work, ddl, text).await;
    }
    let any_sharded = work.snapshot.sharded().next().is_some();
    let body_reaches = any_sharded && (reaches(work, text) || body_mentions(work, text.text));
    if body_reaches {
        // Views, triggers and other functions may call it: what they are can change with it.
        work.announce([""], text.text).await?;
    }
    let tag = function_at_home(work, ddl, text, body_reaches).await?;
    for shard in work.others() {
        // A body over local tables cannot be checked elsewhere; one in standard SQL form cannot even be made there. A
        // function that is missing on a shard gives an error where it is used, not a wrong answer.
        let sql = match ddl.kind {
            DdlKind::CreateFunction => format!("SET LOCAL check_function_bodies = off; {}", text.text),
            _ => text.text.to_owned(),
        };
        work.tolerating(shard, &sql, &["42P01", "42883", "42704", "3F000"])
            .await?;
        if ddl.kind == DdlKind::CreateFunction {
            work.on(shard, "SET LOCAL check_function_bodies = on").await?;
        }
    }
    // A session keeps its connection for the locks that it takes, also where all tables are local.
    let told = any_sharded || may_lock(work, text.text);
    if told && !body_reaches {
        tell_what_functions_are(work, ddl, text).await?;
    }
    Ok(tag)
}

/// A function in pg_temp, on the session's own connection to the home shard: tables yield to it, and it must not need others.
async fn function_of_session(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    work.announce([""], text.text).await?;
    let tag = function_at_home(work, ddl, text, true).await?;
    let seen = work.look().await?;
    match ddl.relations.iter().any(|f| seen.may_reach(&f.name)) {
        true => Err(temporary_function_unsupported()),
        false => Ok(tag),
    }
}

/// 0A000: a function in pg_temp may use a sharded table that does not become local for it, of which it would find one shard's rows.
pub fn temporary_function_unsupported() -> ServerError {
    ServerError::unsupported(
        "a temporary function that may use a sharded table is not supported yet",
        "Create the function in a schema, or run its statements by themselves.",
    )
}

/// The function on the home shard. What yields to it is made local without it there, since it may depend on the tables that are replaced.
async fn function_at_home(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
    body_reaches: bool,
) -> Result<String, ServerError> {
    if !body_reaches || ddl.kind == DdlKind::DropFunction {
        return work.on_home(text.text).await;
    }
    let (home, notices) = (work.home(), work.notice_count());
    work.attempt(home).await?;
    let tag = work.on_home(text.text).await?;
    let yielding = work.look().await?.yielding.clone();
    if yielding.is_empty() {
        work.keep(home).await?;
        return Ok(tag);
    }
    work.undo(home).await?;
    work.truncate_notices(notices);
    yielding::make_local(work, yielding).await?;
    work.on_home(text.text).await
}

/// Statements that call a function go by what it is, as soon as it is there: one that draws from a sequence belongs to the
/// home shard.
async fn tell_what_functions_are(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<(), ServerError> {
    let fresh = work.look().await?;
    let known = &work.snapshot;
    let same = fresh.unsafe_functions == known.unsafe_functions
        && fresh.watched_functions == known.watched_functions
        && fresh.unsafe_words == known.unsafe_words
        && fresh.home_functions == known.home_functions
        && fresh.locking_functions == known.locking_functions;
    if same {
        return Ok(());
    }
    let names: Vec<_> = ddl
        .relations
        .iter()
        .chain(&ddl.object)
        .map(|n| n.name.clone())
        .collect();
    work.announce(names.iter().map(String::as_str), text.text).await
}

/// Whether the body, which is a string, mentions what takes advisory locks that a session keeps.
fn may_lock(work: &Work<'_, '_>, text: &str) -> bool {
    let text = text.to_lowercase();
    let mut functions = work.snapshot.locking_functions.iter();
    SESSION_LOCKS.iter().any(|name| text.contains(name)) || functions.any(|name| text.contains(&name.to_lowercase()))
}

/// Whether the body, which is a string, mentions a known name or runs dynamic SQL.
fn body_mentions(work: &Work<'_, '_>, text: &str) -> bool {
    let text = text.to_lowercase();
    let word = |w: &str| {
        !w.is_empty()
            && text.match_indices(w).any(|(at, _)| {
                let is_word = |c: char| c.is_alphanumeric() || c == '_';
                !text[..at].chars().next_back().is_some_and(is_word)
                    && !text[at + w.len()..].chars().next().is_some_and(is_word)
            })
    };
    word("execute")
        || work.snapshot.relations.keys().any(|n| word(&n.to_lowercase()))
        || work.snapshot.unsafe_functions.iter().any(|n| word(&n.to_lowercase()))
        || work.snapshot.watched_functions.iter().any(|n| word(&n.to_lowercase()))
        || text.contains("spi")
}

/// Sequences: defined everywhere, so that defaults can name them; their values come from the home shard.
pub(crate) async fn sequence(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    if ddl.temporary {
        return work.on_home(text.text).await;
    }
    let dropping = ddl.kind == DdlKind::DropSequence && text.has(&["cascade"]);
    let renaming = ddl.kind == DdlKind::AlterSequence && (text.has(&["rename"]) || text.has(&["set", "schema"]));
    if dropping || renaming {
        // Gateways write defaults into the rows that they insert, by the sequence's name.
        let drawing: Vec<_> = work
            .snapshot
            .sharded()
            .filter(|t| draws(t))
            .map(|t| t.name.name.to_string())
            .collect();
        if !drawing.is_empty() {
            work.announce(drawing.iter().map(String::as_str), text.text).await?;
        }
    }
    let rebounds = ["as", "maxvalue", "minvalue"].iter().any(|word| text.has(&[word]));
    let values = match ddl.kind == DdlKind::AlterSequence && rebounds {
        true => {
            let names = full_names(work, ddl, text).await?;
            work.sequence_values(&names).await?
        }
        false => None,
    };
    let tag = work.on_home(text.text).await?;
    work.open_sequences(values.as_deref()).await?;
    // Sequences of local tables' serial columns are on the home shard only, as are the tables that OWNED BY names.
    let sql = match ddl.kind {
        DdlKind::CreateSequence => text.text.to_owned(),
        _ => text.if_exists("sequence"),
    };
    let before = work.notice_count();
    for shard in work.others() {
        work.tolerating(shard, &sql, &["42P01", "42703", "42P07"]).await?;
    }
    work.truncate_notices(before);
    if ddl.kind != DdlKind::DropSequence {
        let names = full_names(work, ddl, text).await?;
        work.close_sequences(&names).await?;
    } else if dropping {
        forget_vanished(work).await?;
    }
    Ok(tag)
}

/// By their full names what the statement names and the home shard has: the shards do not look along the session's search_path.
async fn full_names(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<Vec<String>, ServerError> {
    let mut names = Vec::new();
    for name in &ddl.relations {
        let full = format!(
            "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_catalog.to_regclass({})",
            quote_literal(text.written(name))
        );
        names.extend(work.value(&full).await?);
    }
    Ok(names)
}

/// Whether a column's default takes its value from a sequence.
fn draws(table: &Table) -> bool {
    let mut defaults = table.columns.iter().filter_map(|c| c.default.as_deref());
    defaults.any(|default| default.contains("nextval"))
}

/// GRANT and REVOKE: on tables where the tables are, on everything else everywhere. Children follow their parents.
pub(crate) async fn grant(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<String, ServerError> {
    let tag = work.on_home(text.text).await?;
    let shards = work.shards();
    if ddl.relations.is_empty() {
        let before = work.notice_count();
        for shard in work.others() {
            // Functions and types of local tables may be missing elsewhere.
            work.tolerating(shard, text.text, &["42883", "42P01", "42704"]).await?;
        }
        work.truncate_notices(before);
        if text.has(&["on", "all", "tables"]) {
            let tables: Vec<Name> = work.snapshot.sharded().map(|t| t.name.clone()).collect();
            work.keep_children(&shards, &tables).await?;
        }
        return Ok(tag);
    }
    let tables: Vec<_> = ddl.relations.iter().filter_map(|n| work.resolve(n)).collect();
    let sharded: Vec<Name> = tables
        .iter()
        .filter(|t| t.sharded().is_some())
        .map(|t| t.name.clone())
        .collect();
    for shard in work.others() {
        let there = tables.iter().filter(|t| match &t.kind {
            TableKind::Sharded(_) => true,
            TableKind::Partition { parent, range } => work
                .snapshot
                .table(parent)
                .and_then(|p| p.sharded()?.ranges.get(*range).map(|r| r.shard == shard))
                .unwrap_or(false),
            _ => false,
        });
        let names: Vec<_> = there.map(|t| t.name.to_string()).collect();
        if !names.is_empty() {
            work.on(shard, &text.with_names(&ddl.relations, &names)).await?;
        }
    }
    work.keep_children(&shards, &sharded).await?;
    Ok(tag)
}

/// The rest: what types and operators are made of goes everywhere, what connects servers stays on the home shard.
pub(crate) async fn other(work: &mut Work<'_, '_>, text: &StatementText<'_>) -> Result<String, ServerError> {
    let everywhere = [
        "cast",
        "collation",
        "operator",
        "conversion",
        "language",
        "transform",
        "access",
        "text",
        "trusted",
        "procedural",
    ];
    let second = text.identifiers().nth(1).unwrap_or_default();
    // Names of servers and wrappers are no tables'.
    if matches!(second.as_str(), "server" | "user") || second == "foreign" && text.has(&["foreign", "data", "wrapper"])
    {
        return work.on_home(text.text).await;
    }
    if let Some(function) = text.identifiers().find(|i| work.snapshot.may_reach(i)) {
        return Err(ServerError::unsupported(
            format!("function {function} may read or write sharded tables and cannot be part of an operator or a cast"),
            "It would run inside one shard and see that shard's part only.",
        ));
    }
    if everywhere.contains(&second.as_str()) {
        // Columns, defaults and views go along, and no statement may run on any of it meanwhile.
        let any_goes = text.has(&["cascade"]) && work.snapshot.sharded().next().is_some();
        if any_goes {
            work.announce([""], text.text).await?;
        }
        let tag = work.on_home(text.text).await?;
        let before = work.notice_count();
        for shard in work.others() {
            // Rows of local tables are types of the home shard alone, and so are functions that take them.
            work.tolerating(shard, text.text, &["42704", "42883", "42P01"]).await?;
        }
        work.truncate_notices(before);
        if any_goes {
            forget_vanished(work).await?;
        }
        return Ok(tag);
    }
    if second == "publication" {
        return publication(work, text).await;
    }
    if reaches(work, text) {
        return Err(ServerError::unsupported(
            "this statement cannot involve sharded tables",
            "It would take effect on one shard's part only.",
        ));
    }
    work.on_home(text.text).await
}

/// A publication is the home shard's, and has what is there: tables that may yield become local for it.
async fn publication(work: &mut Work<'_, '_>, text: &StatementText<'_>) -> Result<String, ServerError> {
    if text.has(&["drop", "publication"]) {
        return work.on_home(text.text).await;
    }
    let mut schemas = text.published_schemas();
    if schemas.iter().any(|schema| schema == "current_schema") {
        schemas.extend(work.value("SELECT pg_catalog.current_schema()").await?);
    }
    let everything = text.has(&["for", "all", "tables"]);
    let had = |table: &Table| everything || schemas.iter().any(|schema| **schema == *table.name.schema);
    let named: Vec<Arc<Table>> = match text.has(&["table"]) {
        true => text
            .qualified()
            .filter_map(|(schema, name)| work.resolve_name(schema.as_deref(), &name))
            .collect(),
        false => Vec::new(),
    };
    let in_schemas = work.snapshot.sharded().filter(|table| had(table)).cloned();
    let mut whole: Vec<Name> = Vec::new();
    for table in named.into_iter().chain(in_schemas) {
        let Some(table) = work.snapshot.whole(&table).filter(|t| t.sharded().is_some()) else {
            continue;
        };
        if !table.may_yield() {
            return Err(ServerError::unsupported(
                format!("a publication cannot have sharded table \"{}\"", table.name.name),
                "It would have one shard's part only. Publish on the shards themselves, or make the table local with CALL pgherd.undistribute(…).",
            ));
        }
        convert::refuse_to_free(work, table)?;
        whole.push(table.name.clone());
    }
    convert::free_each(work, whole, "a publication has it").await?;
    work.on_home(text.text).await
}
