//! VACUUM, ANALYZE, REINDEX, CLUSTER and what is done CONCURRENTLY: outside of transactions, shard by shard, where the
//! tables are.

use crate::statement_text::StatementText;
use crate::{Outcome, Session};
use pgherd_catalog::restore_parent_names;
use pgherd_model::{Resolved, ServerError, ShardId, Table, TableKind, quote_literal};
use pgherd_shards::Identity;
use pgherd_sql::{Ddl, Kind, ObjectName, Parsed};
use pgherd_transaction::Coordinator;
use std::sync::Arc;

/// Runs the statement on every shard that it concerns. It is not atomic, as in PostgreSQL.
///
/// # Errors
/// The first error of a shard; shards before it have done their part.
pub async fn maintenance(
    session: &Session<'_>,
    coordinator: &Arc<Coordinator>,
    who: &Identity,
    statement: &Parsed,
    text: &str,
) -> Result<Outcome, ServerError> {
    let text = StatementText::new(statement, text);
    let with_index = match &statement.kind {
        Kind::Cluster(Some(name)) => clustered_before(session, coordinator, &text, name).await?,
        _ => None,
    };
    let text = match &with_index {
        Some(longer) => text.with_more(longer),
        None => text,
    };
    let (names, everything): (Vec<ObjectName>, bool) = match &statement.kind {
        Kind::Vacuum(names) | Kind::Analyze(names) => (names.clone(), names.is_empty()),
        Kind::Cluster(name) => (name.iter().cloned().collect(), name.is_none()),
        Kind::Ddl(ddl) => {
            refuse_sharded(session, ddl)?;
            (Vec::new(), false)
        }
        Kind::Reindex(what, name) => (
            name.iter().cloned().collect(),
            !matches!(what.as_str(), "TABLE" | "INDEX"),
        ),
        _ => return Err(ServerError::internal("not a maintenance statement")),
    };
    let mut outcome = Outcome::default();
    let home = session.shards.home();
    for shard in session.shards.all().iter().map(|s| s.id) {
        let sql = if shard == home || everything {
            Some(text.text.to_owned())
        } else {
            elsewhere(session, &statement.kind, &names, &text, shard)
        };
        let Some(sql) = sql else {
            continue;
        };
        let mut backend = coordinator.autocommit(shard, who).await?;
        let result = backend.simple(&sql).await;
        for mut notice in backend.take_notices() {
            let as_said = notice.clone();
            restore_parent_names(&mut notice, &session.snapshot);
            // What is said of a range is said of its table.
            let is_own = shard == home && notice == as_said;
            if is_own || !outcome.notices.contains(&notice) {
                outcome.notices.push(notice);
            }
        }
        let results = result.map_err(|e| {
            let mut error = ServerError::from(e);
            restore_parent_names(&mut error, &session.snapshot);
            error
        })?;
        if shard == home {
            outcome.tag = results.last().map(|r| r.tag.clone()).unwrap_or_default();
        }
    }
    Ok(outcome)
}

/// `CLUSTER t` of a sharded table, with the index that it was clustered by before: PostgreSQL notes that for ranges, not for their parent. None
/// where it is to say itself that there is none.
async fn clustered_before(
    session: &Session<'_>,
    coordinator: &Arc<Coordinator>,
    text: &StatementText<'_>,
    name: &ObjectName,
) -> Result<Option<String>, ServerError> {
    if text.has(&["using"]) || text.has(&["on"]) {
        return Ok(None);
    }
    let resolved = session
        .snapshot
        .resolve(name.schema.as_deref(), &name.name, session.search_path);
    // A table of declared partitions is what it is to PostgreSQL.
    let Resolved::Known(table) = resolved else {
        return Ok(None);
    };
    if table.sharded().is_none_or(|s| !s.automatic) {
        return Ok(None);
    }
    let asked = format!(
        "SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_index p JOIN pg_catalog.pg_inherits h ON h.inhparent = p.indexrelid \
         JOIN pg_catalog.pg_index i ON i.indexrelid = h.inhrelid JOIN pg_catalog.pg_class c ON c.oid = p.indexrelid \
         WHERE p.indrelid = pg_catalog.to_regclass({}) AND i.indisclustered LIMIT 1",
        quote_literal(&table.name.to_string())
    );
    for shard in session.shards.all().iter().map(|s| s.id) {
        let results = coordinator.service(shard).await?.simple(&asked).await?;
        if let Some(index) = results.first().and_then(|r| r.text(0, 0)) {
            return Ok(Some(format!("{} USING {index}", text.text.trim_end())));
        }
    }
    Ok(None)
}

/// PostgreSQL does nothing to partitioned tables concurrently either.
fn refuse_sharded(session: &Session<'_>, ddl: &Ddl) -> Result<(), ServerError> {
    let sharded = |name: &&ObjectName| {
        let resolved = session
            .snapshot
            .resolve(name.schema.as_deref(), &name.name, session.search_path);
        let table = matches!(&resolved, Resolved::Known(t) if !matches!(t.kind, TableKind::View { .. }));
        let tables = session.snapshot.sharded().filter_map(|t| t.sharded());
        table || tables.flat_map(|s| &s.unique).any(|(index, _)| *index == name.name)
    };
    let partition = ddl.partition.as_ref().filter(sharded);
    match ddl.relations.iter().find(sharded).or(partition) {
        Some(name) => Err(ServerError::unsupported(
            format!("this cannot be done concurrently to sharded table \"{}\"", name.name),
            "Leave out CONCURRENTLY.",
        )),
        None => Ok(()),
    }
}

/// The statement for another shard, with the tables that are there; None without any.
fn elsewhere(
    session: &Session<'_>,
    kind: &Kind,
    names: &[ObjectName],
    text: &StatementText<'_>,
    shard: ShardId,
) -> Option<String> {
    if matches!(kind, Kind::Reindex(what, _) if what == "INDEX") {
        // An index of a sharded table has the same name everywhere; one of a local table is not there.
        let index = names.first()?;
        let sharded = session.snapshot.sharded().filter_map(|t| t.sharded());
        let known = sharded.flat_map(|s| &s.unique).any(|(name, _)| *name == index.name);
        return known.then(|| text.text.to_owned());
    }
    let kept: Vec<String> = names
        .iter()
        .filter_map(|name| {
            match session
                .snapshot
                .resolve(name.schema.as_deref(), &name.name, session.search_path)
            {
                Resolved::Known(table) => is_there(session, &table, shard).then(|| text.written(name).to_owned()),
                Resolved::Home => None,
            }
        })
        .collect();
    if kept.is_empty() {
        return None;
    }
    // Column lists stand between the names, so a list is only narrowed when something is missing.
    if kept.len() == names.len() {
        return Some(text.text.to_owned());
    }
    Some(text.with_names(names, &kept))
}

fn is_there(session: &Session<'_>, table: &Table, shard: ShardId) -> bool {
    match &table.kind {
        TableKind::Sharded(_) => true,
        TableKind::Partition { parent, range } => session
            .snapshot
            .table(parent)
            .and_then(|p| p.sharded()?.ranges.get(*range).map(|r| r.shard == shard))
            .unwrap_or(false),
        TableKind::View { .. } | TableKind::Refused { .. } => false,
    }
}
