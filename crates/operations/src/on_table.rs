//! Triggers, rules, policies and statistics, which belong to a table. On a sharded table they exist on every shard, as
//! far as what runs inside one shard cannot see less than it should.

use crate::alter_table::as_local;
use crate::convert;
use crate::statement_text::StatementText;
use crate::view;
use crate::work::Work;
use pgherd_model::{Name, ServerError, Table, TableKind, quote_literal};
use pgherd_sql::{Ddl, DdlKind};

/// ALTER and DROP STATISTICS, which name no table: those of a sharded one are on every shard, others on the home shard alone.
pub(crate) async fn change_statistics(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let tag = work.on_home(text.text).await?;
    let sql = match ddl.kind {
        DdlKind::DropStatistics => text.if_exists("statistics"),
        _ => text.text.to_owned(),
    };
    for shard in work.others() {
        work.tolerating(shard, &sql, &["42704", "3F000"]).await?;
    }
    Ok(tag)
}

/// CREATE, ALTER or DROP of such an object.
pub(crate) async fn change(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    if ddl.kind == DdlKind::CreateTrigger {
        refuse_unsafe_function(work, text)?;
    }
    if matches!(ddl.kind, DdlKind::CreateRule) {
        convert::free_named(work, text, "a rule involves it").await?;
        view::free_read_by_named_views(work, text, "a rule on a view involves it").await?;
        refuse_rule(work, ddl, text)?;
    }
    if ddl.kind == DdlKind::CreateTrigger && text.has(&["instead", "of"]) {
        let own = ddl.relations.first().and_then(|n| work.resolve(n));
        view::free_read(
            work,
            own.into_iter().collect(),
            "a view with an INSTEAD OF trigger reads it",
        )
        .await?;
    }
    let policy = matches!(ddl.kind, DdlKind::CreatePolicy | DdlKind::AlterPolicy);
    if policy {
        free_read_by_policy(work, ddl, text).await?;
    }
    let Some(table) = ddl.relations.first().and_then(|n| work.resolve(n)) else {
        let (watched, locking) = (&work.snapshot.watched_functions, &work.snapshot.locking_functions);
        let tells = text.identifiers().any(|i| watched.contains(&i) || locking.contains(&i));
        if let (DdlKind::CreateTrigger, true, Some(name)) = (ddl.kind, tells, ddl.relations.first()) {
            // Changes of the table are run in another way from now on.
            work.announce([name.name.as_str()], text.text).await?;
        }
        return work.on_home(text.text).await;
    };
    let name = &table.name.name;
    match &table.kind {
        TableKind::Sharded(_) => {}
        TableKind::Partition { .. } => {
            if let Some(whole) = ddl.relations.first().and_then(|n| work.yielding(n)) {
                let why = format!("its partition \"{name}\" is not like the others");
                return as_local(work, &whole, &why, text).await;
            }
            return Err(ServerError::unsupported(
                format!("cannot change partition \"{name}\" on its own"),
                "Change the sharded table, and its partitions follow.",
            ));
        }
        TableKind::View { .. } | TableKind::Refused { .. } => {
            work.announce([&**name], text.text).await?;
            return work.on_home(text.text).await;
        }
    }
    let for_each_row = text.has(&["for", "each", "row"]) || text.has(&["for", "row"]);
    if ddl.kind == DdlKind::CreateTrigger && table.may_yield() {
        if !for_each_row {
            return as_local(work, &table, "it has a statement-level trigger", text).await;
        }
        if text.has(&["before"]) && may_assign_key(work, &table, text).await? {
            return as_local(work, &table, "it has a trigger that may change the shard key", text).await;
        }
        if refuse_home_function(work, text).is_err() {
            return as_local(
                work,
                &table,
                "it has a trigger whose function needs the home shard",
                text,
            )
            .await;
        }
    }
    if ddl.kind == DdlKind::CreateTrigger {
        refuse_home_function(work, text)?;
    }
    if ddl.kind == DdlKind::CreateTrigger && !for_each_row {
        return Err(ServerError::unsupported(
            format!("statement-level triggers on sharded table \"{name}\" would fire once on every shard"),
            "Use a trigger FOR EACH ROW.",
        ));
    }
    work.announce([&**name], text.text).await?;
    let shards = work.shards();
    let mode = if ddl.kind == DdlKind::CreateStatistics {
        "SHARE UPDATE EXCLUSIVE"
    } else {
        "ACCESS EXCLUSIVE"
    };
    work.lock(&shards, &[table.name.to_string()], mode).await?;
    let home = work.home();
    if policy {
        work.attempt(home).await?;
    }
    let tag = work.on_home(text.text).await?;
    if policy && work.value(&policy_reads(&table.name)).await?.is_some() {
        if table.may_yield() {
            work.undo(home).await?;
            return as_local(work, &table, "a policy of it reads another table", text).await;
        }
        return Err(ServerError::unsupported(
            format!("a policy of sharded table \"{name}\" cannot read other tables"),
            "It would run on every shard, and other tables are not whole there. Make the table local with CALL pgherd.undistribute(…).",
        ));
    }
    if policy {
        work.keep(home).await?;
    }
    let others = work.others();
    work.on_each(&others, text.text).await?;
    work.keep_children(&shards, std::slice::from_ref(&table.name)).await?;
    Ok(tag)
}

/// Whether the trigger's function may give a row another key than the one by which it was placed: PostgreSQL would have to move it then,
/// which it does not do from within a trigger.
async fn may_assign_key(work: &mut Work<'_, '_>, table: &Table, text: &StatementText<'_>) -> Result<bool, ServerError> {
    let (Some(sharded), Some(function)) = (table.sharded(), text.trigger_function()) else {
        return Ok(false);
    };
    let body = format!(
        "SELECT p.prosrc FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
         WHERE l.lanname = 'plpgsql' AND p.oid = pg_catalog.to_regprocedure({})",
        quote_literal(&format!("{}()", function.trim()))
    );
    let key: Vec<&str> = sharded.key.iter().map(String::as_str).collect();
    let body = work.value(&body).await?;
    Ok(body.is_some_and(|body| pgherd_sql::plpgsql::may_assign_new(&body, &key)))
}

/// A policy runs where its table's row is, and needs what it reads there: tables that may yield become local, its own among them.
async fn free_read_by_policy(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<(), ServerError> {
    let own = ddl
        .relations
        .first()
        .and_then(|n| work.yielding(n))
        .map(|t| t.name.clone());
    let of_its_own = |name: &str| ddl.relations.iter().chain(&ddl.object).any(|r| r.name == name);
    let mut others = text
        .identifiers()
        .filter(|i| !of_its_own(i))
        .filter_map(|i| work.yielding_name(None, &i));
    if others.any(|t| own.as_ref() != Some(&t.name)) {
        convert::free_named(work, text, "a policy involves it").await?;
    }
    Ok(())
}

/// Asks for a relation that a policy of the table reads besides its row.
fn policy_reads(table: &Name) -> String {
    format!(
        "SELECT d.refobjid::pg_catalog.regclass FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_depend d \
         ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND d.objid = p.oid \
         WHERE p.polrelid = {}::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
         AND d.refobjid <> p.polrelid LIMIT 1",
        quote_literal(&table.to_string())
    )
}

/// A trigger's function runs inside one shard.
fn refuse_unsafe_function(work: &Work<'_, '_>, text: &StatementText<'_>) -> Result<(), ServerError> {
    match text.identifiers().find(|i| work.snapshot.unsafe_functions.contains(i)) {
        Some(function) => Err(ServerError::unsupported(
            format!("function {function} may read or write sharded tables and cannot run in a trigger"),
            "A trigger runs inside one shard and would see that shard's part only.",
        )),
        None => Ok(()),
    }
}

/// On a sharded table, a trigger runs where the row is.
fn refuse_home_function(work: &Work<'_, '_>, text: &StatementText<'_>) -> Result<(), ServerError> {
    match text.identifiers().find(|i| work.snapshot.home_functions.contains(i)) {
        Some(function) => Err(ServerError::unsupported(
            format!("function {function} cannot run in a trigger on a sharded table"),
            "It needs local tables, sequences, advisory locks, notifications or its table's own name, which only the home shard has.",
        )),
        None => Ok(()),
    }
}

/// A rule rewrites inside one shard.
fn refuse_rule(work: &Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<(), ServerError> {
    let known = |i: &String| work.snapshot.relations.contains_key(i.as_str());
    let own = ddl.relations.first().and_then(|n| work.resolve(n));
    if own.is_some() || text.identifiers().any(|i| known(&i)) {
        return Err(ServerError::unsupported(
            "rules cannot involve sharded tables",
            "A rule runs inside one shard and would see that shard's part only. Use a trigger FOR EACH ROW.",
        ));
    }
    Ok(())
}
