//! ALTER TABLE of local and sharded tables.

use crate::bounds::Automatic;
use crate::convert::{self, Target, distributable};
use crate::create_table::{first_key_column, free_inherited, refuse_foreign_keys};
use crate::foreign_keys::Member;
use crate::statement_text::{ForeignKeyClause, StatementText};
use crate::work::{Work, met_another_change};
use crate::{align, attach, everywhere, foreign_keys, partition};
use pgherd_model::{Name, ServerError, SqlState, Table, TableKind, quote_identifier, quote_literal};
use pgherd_sql::{Ddl, Kind, ObjectName};
use std::sync::Arc;

/// Runs the statement and returns its tag.
pub(crate) async fn alter_table(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let name = &ddl.relations[0];
    free_inherited(work, text).await?;
    match work.resolve(name).map(|t| t.kind.clone()) {
        Some(TableKind::Sharded(_)) if ddl.partition.is_some() => partition::detach(work, ddl, text).await,
        Some(TableKind::Sharded(_)) if text.switches_triggers(name) => switch_triggers(work, name, text).await,
        Some(TableKind::Sharded(_)) => alter_sharded(work, name, text).await,
        Some(TableKind::Partition { .. }) => partition::alter(work, ddl, text).await,
        found => {
            if found.is_none()
                && let Some(tag) = alter_sequence(work, name, text).await?
            {
                return Ok(tag);
            }
            convert::free_referenced(work, text).await?;
            if let Some(partition) = text.attached() {
                attach::make_local(work, &partition).await?;
            }
            alter_local(work, name, text).await
        }
    }
}

/// ALTER TABLE of a sequence, where ALTER SEQUENCE says the same; None for all else.
async fn alter_sequence(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<Option<String>, ServerError> {
    let says_the_same = [["rename", "to"], ["set", "schema"], ["owner", "to"]]
        .iter()
        .any(|words| text.has(words));
    if !says_the_same {
        return Ok(None);
    }
    let relation = work.inspect(text.written(name)).await?;
    if relation.is_none_or(|relation| relation.kind != 'S') {
        return Ok(None);
    }
    let Some(sql) = text.as_of_sequence() else {
        return Ok(None);
    };
    let parsed = pgherd_sql::parse(&sql)?;
    let [statement] = &parsed[..] else { return Ok(None) };
    let Kind::Ddl(ddl) = &statement.kind else {
        return Ok(None);
    };
    everywhere::sequence(work, ddl, &StatementText::new(statement, &sql)).await?;
    Ok(Some("ALTER TABLE".to_owned()))
}

/// The names whose meaning the statement may change.
fn names<'n>(name: &'n ObjectName, renamed: &'n Option<String>) -> Vec<&'n str> {
    let mut names = vec![name.name.as_str()];
    names.extend(renamed.as_deref());
    names
}

async fn alter_sharded(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let renamed = text.new_name();
    let mut announced: Vec<String> = names(name, &renamed).into_iter().map(str::to_owned).collect();
    announced.extend(concerned(work, name, text).iter().map(|t| t.name.name.to_string()));
    work.announce(announced.iter().map(String::as_str), text.text).await?;
    let table = still_sharded(work, name)?;
    let concerned = concerned(work, name, text);
    let shards = work.shards();
    lock_concerned(work, &table, &concerned).await?;
    let by_default = table.is_by_default();
    if by_default && text.has(&["tableoid"]) {
        return as_local(work, &table, "its definition has its own OID in it", text).await;
    }
    if let Some(action) = text.storage_action(name).filter(|_| by_default) {
        return change_storage(work, &table, action).await;
    }
    if let Some(function) = called_on_home(work, text).filter(|_| table.may_yield()) {
        let why = format!("function {function} needs the home shard");
        return as_local(work, &table, &why, text).await;
    }
    if fills_from_sequence(work, &table, text).await? {
        if table.may_yield() {
            return as_local(work, &table, "its rows get values from a sequence", text).await;
        }
        return Err(ServerError::unsupported(
            format!(
                "the rows of sharded table \"{}\" cannot get values from a sequence in ALTER TABLE",
                table.name.name
            ),
            "Add the column without its default, fill it with UPDATE, and set the default then.",
        ));
    }
    let clauses = text.foreign_keys();
    for clause in &clauses {
        align::beside_referenced(work, name, clause).await?;
    }
    let table = still_sharded(work, name)?;
    // A key of the parent of declared partitions is one that theirs are attached to, which is how pg_dump writes it.
    let declared = table.sharded().is_some_and(|s| !s.automatic);
    let mut sql = match declared && text.has(&["add", "constraint"]) && clauses.is_empty() {
        true => text.text.to_owned(),
        false => text.without_only(name),
    };
    // PostgreSQL has no such keys on partitioned tables: it is checked at once, and is valid from the start.
    let mut blank: Vec<_> = clauses.iter().filter_map(|c| c.not_valid.clone()).collect();
    blank.retain(|_| by_default);
    if by_default {
        sql = text.over(&text.blanked(blank.clone())).without_only(name);
    }
    let qualifiers = text.qualifiers(name);
    let unqualified = (!declared && !qualifiers.is_empty()).then(|| {
        blank.extend(qualifiers);
        text.over(&text.blanked(blank)).without_only(name)
    });
    let home = work.home();
    let makes_indexes = ["unique", "primary", "exclude", "constraint"]
        .iter()
        .any(|word| text.has(&[word]));
    let opened: Vec<_> = shards.iter().copied().filter(|_| makes_indexes).collect();
    work.open_children(&opened, true).await?;
    let rebounds = ["type", "maxvalue", "minvalue"].iter().any(|word| text.has(&[word]));
    let values = match rebounds {
        true => work.sequence_values(&[table.name.to_string()]).await?,
        false => None,
    };
    let notices = work.notice_count();
    let (sql, done) = attempt_on_home(work, sql, unqualified).await?;
    let judged = match done {
        Ok(_) if by_default && text.has(&["drop", "not", "null"]) && key_may_be_null(work, &table).await? => {
            Err("its shard key may be null".into())
        }
        Ok(tag) => foreign_keys_hold(work, &table).await?.map(|()| tag),
        // The rows may be on other shards.
        Err(e) if e.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION && !align::all_hold(work, &table, text) => Err(
            "a foreign key does not match the shard keys of both tables, and cannot be checked across ranges".into(),
        ),
        Err(e) if by_default && (cannot_hold(&e) || is_unchecked(&e, &clauses)) => Err(e.fields().message.clone()),
        Err(e) => return Err(text.naming_unique(e)),
    };
    let tag = match judged {
        Ok(tag) => tag,
        Err(why) if table.may_yield() => {
            work.undo(home).await?;
            work.truncate_notices(notices);
            work.open_children(&opened, false).await?;
            return as_local(work, &table, &why, text).await;
        }
        Err(why) => {
            return Err(ServerError::unsupported(
                format!(
                    "sharded table \"{}\" cannot have this foreign key: {why}",
                    table.name.name
                ),
                "Leave the foreign key out, or make the table local with CALL pgherd.undistribute(…).",
            ));
        }
    };
    // Rows that break a key which was to be unchecked may be on any shard.
    let unchecked = by_default && clauses.iter().any(|c| c.not_valid.is_some());
    let attempted: Vec<_> = work.others().into_iter().filter(|_| unchecked).collect();
    for shard in &attempted {
        work.attempt(*shard).await?;
    }
    work.open_sequences(values.as_deref()).await?;
    match on_other_shards(work, &table, &sql).await {
        Err(e) if unchecked && is_unchecked(&e, &clauses) => {
            for shard in &shards {
                work.undo(*shard).await?;
            }
            work.open_children(&opened, false).await?;
            return as_local(work, &table, &e.fields().message, text).await;
        }
        done => done.map_err(|e| text.naming_unique(e))?,
    }
    for shard in attempted.iter().chain([&home]) {
        work.keep(*shard).await?;
    }
    work.open_children(&opened, false).await?;
    let now = work
        .snapshot
        .sharded()
        .find(|t| t.sharded().map(|s| s.id) == table.sharded().map(|s| s.id));
    if let Some(now) = now.map(|t| t.name.clone()) {
        if !clauses.is_empty() || text.has(&["references"]) {
            foreign_keys::name_as_on_home(work, &now).await?;
        }
        work.keep_children(&shards, std::slice::from_ref(&now)).await?;
        work.close_sequences(&[now.to_string()]).await?;
    }
    Ok(tag)
}

/// A function that needs what only the home shard has, where the statement may have it called for rows: in a new column's default, a
/// constraint, or USING.
pub(crate) fn called_on_home(work: &Work<'_, '_>, text: &StatementText<'_>) -> Option<String> {
    let words = ["add", "using", "check", "generated"];
    let calls = words.iter().any(|word| text.has(&[word]));
    let needs = |name: &String| work.snapshot.home_functions.contains(name);
    text.identifiers().find(needs).filter(|_| calls)
}

/// Whether rows that are there get values from a sequence, of which each shard would have its own: by a new column's default, or by
/// another type's USING. It is told before anything is tried, since what a sequence has given is gone.
async fn fills_from_sequence(
    work: &mut Work<'_, '_>,
    table: &Table,
    text: &StatementText<'_>,
) -> Result<bool, ServerError> {
    let draws = [
        "nextval",
        "serial",
        "serial2",
        "serial4",
        "serial8",
        "smallserial",
        "bigserial",
    ];
    let fills = text.has(&["add"]) || text.has(&["using"]);
    let Some(sharded) = table.sharded().filter(|_| fills) else {
        return Ok(false);
    };
    if !text.identifiers().any(|word| draws.contains(&word.as_str())) {
        // A domain may have a default.
        let names: Vec<_> = text.identifiers().map(|name| quote_literal(&name)).collect();
        let asked = format!(
            "SELECT t.typname FROM pg_catalog.pg_type t WHERE t.typtype = 'd' AND t.typname = ANY (ARRAY[{}]::pg_catalog.name[]) \
             AND (pg_catalog.pg_get_expr(t.typdefaultbin, 0) LIKE '%nextval(%' OR t.typdefaultbin IS NOT NULL AND EXISTS \
               (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid \
                AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass)) LIMIT 1",
            names.join(", ")
        );
        if work.value(&asked).await?.is_none() {
            return Ok(false);
        }
    }
    for range in sharded.ranges.ranges() {
        let any = format!("SELECT EXISTS (SELECT FROM {})", range.child);
        let results = work.on(range.shard, &any).await?;
        if results.last().and_then(|r| r.text(0, 0)) == Some("t") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Runs the statement on the home shard, with a savepoint before it, and returns the text that it was. A partitioned table's
/// name does not stand for its partitions, in which PostgreSQL reads expressions again: then it is tried without the name in
/// front of columns.
async fn attempt_on_home(
    work: &mut Work<'_, '_>,
    sql: String,
    unqualified: Option<String>,
) -> Result<(String, Result<String, ServerError>), ServerError> {
    let home = work.home();
    work.attempt(home).await?;
    let done = work.on_home(&sql).await;
    let is_unknown = done.as_ref().is_err_and(|e| e.sqlstate() == SqlState::UNDEFINED_TABLE);
    let Some(unqualified) = unqualified.filter(|_| is_unknown) else {
        return Ok((sql, done));
    };
    work.undo(home).await?;
    work.attempt(home).await?;
    let done = work.on_home(&unqualified).await;
    Ok((unqualified, done))
}

/// Which triggers fire is nothing that gateways route by, so that the catalog stays as it is. Whoever loads test data may do this to every
/// table there is and back again, each time.
async fn switch_triggers(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let known = still_sharded(work, name)?.name.name.clone();
    work.reserve([name.name.as_str(), &*known], text.text).await?;
    let table = still_sharded(work, name)?;
    // As PostgreSQL locks it.
    let shards = work.shards();
    let own = [table.name.to_string()];
    work.lock(&shards, &own, "SHARE ROW EXCLUSIVE").await?;
    let sql = text.without_only(name);
    let tag = work.on_home(&sql).await?;
    let others = work.others();
    work.on_each(&others, &sql).await?;
    Ok(tag)
}

/// What PostgreSQL does to plain tables and not to partitioned ones: each range has its own storage.
async fn change_storage(work: &mut Work<'_, '_>, table: &Table, action: &str) -> Result<String, ServerError> {
    let ranges = table.sharded().map(|s| s.ranges.ranges()).unwrap_or_default();
    for range in ranges {
        work.on(range.shard, &format!("ALTER TABLE {} {action}", range.child))
            .await?;
    }
    Ok("ALTER TABLE".into())
}

/// The other sharded tables whose ranges, rows or foreign keys the statement may change: those that it refers to, and those that
/// are linked with them or with its own table.
fn concerned(work: &Work<'_, '_>, name: &ObjectName, text: &StatementText<'_>) -> Vec<Arc<Table>> {
    let referenced = text.referenced();
    if referenced.is_empty() && !text.has(&["drop"]) && !text.has(&["unique"]) && !text.has(&["constraint"]) {
        return Vec::new();
    }
    let roots: Vec<_> = std::iter::once(name)
        .chain(&referenced)
        .filter_map(|n| work.sharded(n))
        .collect();
    let own = roots.first().map(|t| t.name.clone());
    let mut all = foreign_keys::with_linked(&work.snapshot, &roots);
    all.retain(|t| Some(&t.name) != own.as_ref());
    all
}

/// The table itself for everything; the others too, where the role may: PostgreSQL locks them by itself as far as it has to.
async fn lock_concerned(work: &mut Work<'_, '_>, table: &Table, others: &[Arc<Table>]) -> Result<(), ServerError> {
    let shards = work.shards();
    let own = table.name.to_string();
    if !others.is_empty() {
        let all: Vec<_> = std::iter::once(own.clone())
            .chain(others.iter().map(|t| t.name.to_string()))
            .collect();
        match work.lock(&shards, &all, "ACCESS EXCLUSIVE").await {
            Err(e) if e.sqlstate() == SqlState::INSUFFICIENT_PRIVILEGE => {}
            locked => return locked,
        }
    }
    work.lock(&shards, &[own], "ACCESS EXCLUSIVE").await
}

/// Whether a key that was to be added without a check is broken by the rows that are there.
fn is_unchecked(error: &ServerError, clauses: &[ForeignKeyClause]) -> bool {
    error.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION && clauses.iter().any(|c| c.not_valid.is_some())
}

/// What the home shard has done. A new column's default fills the rows that are there: where it is the time, with the home shard's.
async fn on_other_shards(work: &mut Work<'_, '_>, before: &Table, sql: &str) -> Result<(), ServerError> {
    let others = work.others();
    let Some(timed) = pgherd_sql::clock::column_of_one_time(sql) else {
        work.on_each(&others, sql).await?;
        return work.reload().await;
    };
    let time = work.value(pgherd_transaction::ASK_CLOCK).await?.unwrap_or_default();
    let sql = format!("SET LOCAL pgherd.transaction_time TO '{time}'; {timed}");
    work.on_each(&others, &sql).await?;
    work.reload().await?;
    let id = before.sharded().map(|s| s.id);
    let now = work
        .snapshot
        .sharded()
        .find(|t| t.sharded().map(|s| s.id) == id)
        .cloned();
    if let Some(table) = now {
        let new = table.columns.iter().filter(|c| before.column(&c.name).is_none());
        for (column, default) in new.filter_map(|c| Some((&c.name, c.default.as_ref()?))) {
            let column = quote_identifier(column);
            let sql = format!("ALTER TABLE {} ALTER COLUMN {column} SET DEFAULT {default}", table.name);
            work.on_each(&others, &sql).await?;
        }
    }
    Ok(())
}

/// After the announcement the table may be another than before.
pub(crate) fn still_sharded(work: &Work<'_, '_>, name: &ObjectName) -> Result<std::sync::Arc<Table>, ServerError> {
    work.sharded(name).ok_or_else(met_another_change)
}

/// What PostgreSQL says of a partitioned table where it would do the same to a plain one.
pub(crate) fn cannot_hold(error: &ServerError) -> bool {
    matches!(
        error.sqlstate(),
        SqlState::FEATURE_NOT_SUPPORTED
            | SqlState::WRONG_OBJECT_TYPE
            | SqlState::INVALID_TABLE_DEFINITION
            | SqlState::INVALID_OBJECT_DEFINITION
    )
}

/// A table that `pgherd.default_distribution` made sharded becomes local, and the statement runs there.
pub(crate) async fn as_local(
    work: &mut Work<'_, '_>,
    table: &Table,
    why: &str,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    convert::refuse_to_free(work, table)?;
    let before = work.notice_count();
    let linked = convert::undistribute(work, &table.name).await?;
    work.truncate_notices(before);
    work.reload().await?;
    convert::free_referenced(work, text).await?;
    let tag = work.on_home(text.text).await?;
    work.notice(format!("table \"{}\" is local: {why}", table.name.name));
    convert::notice_linked(work, &linked, &table.name);
    Ok(tag)
}

/// Whether a row without a key is allowed now: no range takes it.
async fn key_may_be_null(work: &mut Work<'_, '_>, table: &Table) -> Result<bool, ServerError> {
    let Some(sharded) = table.sharded() else {
        return Ok(false);
    };
    let asked = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_partitioned_table p JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid \
         AND a.attnum = ANY (p.partattrs::pg_catalog.int2[]) WHERE p.partrelid = {} AND NOT a.attnotnull)::text",
        sharded.relation
    );
    Ok(work.value(&asked).await?.as_deref() == Some("true"))
}

/// Whether the foreign keys that the table has now can be checked on each shard.
async fn foreign_keys_hold(work: &mut Work<'_, '_>, table: &Table) -> Result<Result<(), String>, ServerError> {
    let Some(sharded) = table.sharded() else {
        return Ok(Ok(()));
    };
    let oid = sharded.relation;
    let name = work.value(&format!("SELECT {oid}::pg_catalog.regclass::text")).await?;
    let relation = work.inspect(&name.unwrap_or_default()).await?;
    Ok(relation.map_or(Ok(()), |r| foreign_keys::check(&work.snapshot, sharded, &r)))
}

async fn alter_local(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let renamed = text.new_name();
    let known = |n: &str| work.snapshot.relations.contains_key(n);
    let is_known = names(name, &renamed).into_iter().any(known);
    if text.switches_triggers(name) {
        if is_known {
            work.reserve([name.name.as_str()], text.text).await?;
        }
        return work.on_home(text.text).await;
    }
    if is_known {
        work.announce(names(name, &renamed), text.text).await?;
    }
    let written = text.written(name);
    let by_primary_key = work.session.distribution.automatic == Automatic::PrimaryKey;
    let may_distribute = by_primary_key && text.has(&["primary", "key"]);
    let had_key = match work.inspect(written).await? {
        Some(relation) if may_distribute => relation.primary_key,
        _ => true,
    };
    let tag = work.on_home(text.text).await?;
    let Some(relation) = work.inspect(written).await? else {
        return Ok(tag);
    };
    refuse_foreign_keys(work, &relation)?;
    if had_key || !relation.primary_key || relation.kind != 'r' {
        return Ok(tag);
    }
    if work.shows_one_snapshot() {
        work.notice(format!(
            "table \"{}\" is local: its key is made in a transaction at isolation level REPEATABLE READ or SERIALIZABLE",
            name.name
        ));
        return Ok(tag);
    }
    let key = first_key_column(&relation);
    let possible = match relation.foreign_keys.first() {
        None => distributable(&relation, &key),
        Some(link) => Err(format!("foreign key \"{}\" links it with a local table", link.name)),
    };
    match possible {
        Ok(key_types) => {
            let full: Name = relation.full_name();
            if let Some(dependent) = convert::dependent(&work.definition(&full).await?) {
                work.notice(format!("table \"{}\" is local: {dependent} depends on it", name.name));
                return Ok(tag);
            }
            work.announce([&*full.name], text.text).await?;
            let member = Member {
                relation,
                key,
                key_types,
            };
            let target = Target {
                like: None,
                by_default: true,
            };
            convert::distribute(work, &[member], target).await?;
        }
        Err(why) => {
            if relation.persistence == 'p' && !relation.is_partition && !relation.inherits {
                work.notice(format!("table \"{}\" is local: {why}", name.name));
            }
        }
    }
    Ok(tag)
}
