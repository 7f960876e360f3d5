//! Views, materialised views and CREATE TABLE AS. They are made on the home shard. A view that has the rows of one sharded table, row by
//! row, is then made on the other shards as well (`Work::finish`); others over sharded tables are expanded by gateways.

use crate::convert;
use crate::drop::forget_vanished;
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{ServerError, Table, TableKind, quote_literal};
use pgherd_sql::{Ddl, DdlKind};
use std::collections::HashSet;
use std::sync::Arc;

/// Whether the text names anything through which it could reach a sharded table.
pub(crate) fn reaches(work: &Work<'_, '_>, text: &StatementText<'_>) -> bool {
    text.identifiers()
        .any(|i| work.snapshot.relations.contains_key(i.as_str()) || work.snapshot.may_reach(&i))
}

/// CREATE, ALTER and DROP of views and materialised views.
pub(crate) async fn change_views(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let reaches = reaches(work, text);
    if reaches && ddl.kind == DdlKind::CreateMaterializedView {
        return crate::materialized::create(work, text).await;
    }
    if ddl.temporary {
        let tables = read(work, text);
        if !free_read(work, tables, "a temporary view reads it").await? {
            return Err(ServerError::unsupported(
                "a temporary view of a sharded table is not supported yet",
                "Create the view without TEMPORARY.",
            ));
        }
    }
    if reaches {
        let renamed = text.new_name();
        let mut names: Vec<_> = ddl.relations.iter().map(|n| n.name.as_str()).collect();
        names.extend(renamed.as_deref());
        if text.has(&["cascade"]) {
            names.push("");
        }
        work.announce(names, text.text).await?;
    }
    if reaches && ddl.kind == DdlKind::CreateView && !ddl.temporary {
        return create_view(work, ddl, text).await;
    }
    let tag = work.on_home(text.text).await?;
    if ddl.kind == DdlKind::DropView && text.has(&["cascade"]) {
        forget_vanished(work).await?;
    }
    Ok(tag)
}

/// CREATE VIEW over what may be sharded. A view that shows where rows lie, and one with a check option that shards cannot have (it is there to be changed
/// through), are what PostgreSQL has them to be over local tables only.
async fn create_view(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<String, ServerError> {
    let Some(name) = ddl.relations.first() else {
        return work.on_home(text.text).await;
    };
    let home = work.home();
    work.attempt(home).await?;
    let tag = work.on_home(text.text).await?;
    let view = format!("pg_catalog.to_regclass({})", quote_literal(text.written(name)));
    let asked = format!(
        "SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid AND w.ev_class = {view} \
             WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.refobjsubid < 0 AND d.refobjsubid <> -6) \
             THEN 'a view shows system columns of it' \
         WHEN EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = {view} AND pg_catalog.array_to_string(c.reloptions, ' ') LIKE '%check_option%') \
             AND pgherd.view_source({view}) IS NULL THEN 'a view of several tables has a check option on it' END"
    );
    let why = work.value(&asked).await?;
    let Some(why) = why else {
        work.keep(home).await?;
        return Ok(tag);
    };
    let tables = read(work, text);
    work.undo(home).await?;
    free_read(work, tables, &why).await?;
    work.on_home(text.text).await
}

/// The relations of the catalog that a query reads, or may read where its grammar is not understood whole.
fn read(work: &Work<'_, '_>, query: &StatementText<'_>) -> Vec<Arc<Table>> {
    let resolve = |schema: Option<&str>, name: &str| work.resolve_name(schema, name);
    let by_name = || {
        query
            .identifiers()
            .filter_map(|name| work.resolve_name(None, &name))
            .collect()
    };
    query.tables_read(&resolve).unwrap_or_else(by_name)
}

/// Makes the tables local that `pgherd.default_distribution` has made sharded, and that are among these or read by views among these: the home
/// shard alone has what the views are about to be, or to do. (A temporary view is on one connection to it, and known to no gateway.) False,
/// with nothing done, where somebody has sharded one of them on purpose.
pub(crate) async fn free_read(
    work: &mut Work<'_, '_>,
    tables: Vec<Arc<Table>>,
    why: &str,
) -> Result<bool, ServerError> {
    let mut pending = vec![tables];
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    while let Some(tables) = pending.pop() {
        for table in tables.into_iter().filter(|t| seen.insert(t.name.clone())) {
            match &table.kind {
                TableKind::View { definition, .. } => {
                    let parsed = pgherd_sql::parse(definition)?;
                    let queries = parsed
                        .iter()
                        .map(|query| read(work, &StatementText::new(query, definition)));
                    pending.extend(queries.collect::<Vec<_>>());
                }
                TableKind::Partition { parent, .. } => {
                    pending.push(work.snapshot.table(parent).cloned().into_iter().collect());
                }
                _ if table.may_yield() => {
                    convert::refuse_to_free(work, &table)?;
                    found.push(table.name.clone());
                }
                _ => return Ok(false),
            }
        }
    }
    convert::free_each(work, found, why).await?;
    Ok(true)
}

/// The same of what the views read that the statement names.
pub(crate) async fn free_read_by_named_views(
    work: &mut Work<'_, '_>,
    text: &StatementText<'_>,
    why: &str,
) -> Result<(), ServerError> {
    let views: Vec<_> = text
        .qualified()
        .filter_map(|(schema, name)| work.resolve_name(schema.as_deref(), &name))
        .filter(|table| matches!(table.kind, TableKind::View { .. }))
        .collect();
    free_read(work, views, why).await.map(drop)
}

/// CREATE TABLE AS and SELECT INTO from what is local; the new table is local. WITH NO DATA it may name sharded tables: the
/// home shard knows their columns, and reads nothing.
pub(crate) async fn table_as(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let own = ddl.relations.first().map(|n| n.name.clone()).unwrap_or_default();
    let parts = ddl.relations.first().and_then(|name| text.table_as(name));
    let parsed = parts.map(|parts| pgherd_sql::parse(&parts.query).map(|query| (query, parts.query)));
    let reads_known = match parsed.transpose()? {
        // The names of the new table's columns may be those of tables.
        Some((query, own_text)) if query.len() == 1 => {
            reads_known(work, &StatementText::new(&query[0], &own_text), &own)
        }
        _ => reads_known(work, text, &own),
    };
    if reads_known && !text.has(&["with", "no", "data"]) {
        return Err(ServerError::unsupported(
            "CREATE TABLE AS cannot read sharded tables yet",
            "Create the table first, and fill it with INSERT … SELECT.",
        ));
    }
    if work.snapshot.relations.contains_key(own.as_str()) {
        work.announce([own.as_str()], text.text).await?;
    }
    work.on_home(text.text).await
}

/// Whether a query, or a statement that has one and makes the table `own`, reads a table of the catalog, or may do so.
fn reads_known(work: &Work<'_, '_>, query: &StatementText<'_>, own: &str) -> bool {
    let mut others = query.identifiers().filter(|i| i != own);
    let resolve = |schema: Option<&str>, name: &str| work.resolve_name(schema, name);
    // An alias, or a table of another schema, may have a sharded table's name.
    match query.tables_read(&resolve) {
        Some(tables) => !tables.is_empty() || others.any(|i| work.snapshot.may_reach(&i)),
        None => others.any(|i| work.snapshot.relations.contains_key(i.as_str()) || work.snapshot.may_reach(&i)),
    }
}
