//! Views, materialised views and CREATE TABLE AS. They are made on the home shard. A view that has the rows of one sharded table, row by
//! row, is then made on the other shards as well (`Work::finish`); others over sharded tables are expanded by gateways.

use crate::convert;
use crate::drop::forget_vanished;
use crate::materialized::reached;
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::ServerError;
use pgherd_sql::{Ddl, DdlKind};

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
    if ddl.temporary && reaches {
        free_read(work, text).await?;
    } else if reaches {
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

/// A temporary view is one connection's to the home shard, which no other shard knows: what it reads becomes local where it may.
async fn free_read(work: &mut Work<'_, '_>, text: &StatementText<'_>) -> Result<(), ServerError> {
    const HINT: &str = "Create the view without TEMPORARY, or use WITH.";
    if let Some(function) = text.identifiers().find(|i| work.snapshot.may_reach(i)) {
        let message = format!("function {function} may read sharded tables and cannot be called in a temporary view");
        return Err(ServerError::unsupported(message, HINT));
    }
    for table in reached(&work.snapshot, text.identifiers().collect()) {
        if !table.may_yield() {
            let message = format!(
                "a temporary view of sharded table \"{}\" is not supported yet",
                table.name.name
            );
            return Err(ServerError::unsupported(message, HINT));
        }
        // One that is linked with another has become local along with that one.
        if work.snapshot.table(&table.name).is_some_and(|t| t.sharded().is_some()) {
            convert::refuse_to_free(work, &table)?;
            convert::free(work, &table.name, "a temporary view reads it").await?;
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
    let others = text
        .identifiers()
        .filter(|i| *i != own)
        .any(|i| work.snapshot.relations.contains_key(i.as_str()) || work.snapshot.may_reach(&i));
    if others && !text.has(&["with", "no", "data"]) {
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
