//! Views, materialised views and CREATE TABLE AS. They are made on the home shard. A view that has the rows of one sharded table, row by
//! row, is then made on the other shards as well (`Work::finish`); others over sharded tables are expanded by gateways.

use crate::convert;
use crate::drop::forget_vanished;
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{ServerError, Table, TableKind};
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
        free_for_session(work, text).await?;
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
    let tag = work.on_home(text.text).await?;
    if ddl.kind == DdlKind::DropView && text.has(&["cascade"]) {
        forget_vanished(work).await?;
    }
    Ok(tag)
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

/// A temporary view is on one connection to the home shard, and known to no gateway. So the tables that `pgherd.default_distribution` has
/// made sharded become local when one reads them, itself or through other views.
async fn free_for_session(work: &mut Work<'_, '_>, text: &StatementText<'_>) -> Result<(), ServerError> {
    let mut pending = vec![read(work, text)];
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
                _ => {
                    return Err(ServerError::unsupported(
                        "a temporary view of a sharded table is not supported yet",
                        "Create the view without TEMPORARY.",
                    ));
                }
            }
        }
    }
    for name in found {
        // One that a foreign key links with another has become local with it.
        if work.snapshot.table(&name).is_some_and(|t| t.sharded().is_some()) {
            convert::free(work, &name, "a temporary view reads it").await?;
        }
    }
    Ok(())
}

/// CREATE TABLE AS and SELECT INTO from what is local; the new table is local. WITH NO DATA it may name sharded tables: the
/// home shard knows their columns, and reads nothing.
pub(crate) async fn table_as(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let own = ddl.relations.first().map(|n| n.name.clone()).unwrap_or_default();
    let mut others = text.identifiers().filter(|i| *i != own);
    let resolve = |schema: Option<&str>, name: &str| work.resolve_name(schema, name);
    // An alias, or a table of another schema, may have a sharded table's name.
    let reads_known = match text.tables_read(&resolve) {
        Some(tables) => !tables.is_empty() || others.any(|i| work.snapshot.may_reach(&i)),
        None => others.any(|i| work.snapshot.relations.contains_key(i.as_str()) || work.snapshot.may_reach(&i)),
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
