//! What runs where:
//!
//! | statement | runs on |
//! |---|---|
//! | about local tables and their indexes, views, comments | the home shard |
//! | about sharded tables and their indexes, triggers, policies | every shard |
//! | about a declared partition | its owner, and its stand-in on the home shard |
//! | about schemas, types, functions, sequences, roles, extensions, grants on them | every shard |
//!
//! Each kind of statement is a module of its own; this one only chooses.

use crate::statement_text::StatementText;
use crate::work::Work;
use crate::{
    Failure, Outcome, Session, alter_table, create_table, drop, everywhere, index, materialized, on_table, view,
    yielding,
};
use pgherd_catalog::Change;
use pgherd_model::{ServerError, SqlState, TableKind};
use pgherd_sql::{Ddl, DdlKind, Kind, Parsed};
use pgherd_transaction::Transaction;

/// Runs a schema change, or a procedure of pgherd, inside `transaction` (an implicit one for autocommit). What gateways route by changes under a
/// [`Change`], left in `change` for the caller to finish when the transaction has ended. The caller holds no
/// statement guard on the names of the statement. Error positions count within the statement.
///
/// # Errors
/// PostgreSQL's own; 0A000 for what cannot be exact. The transaction has failed then.
pub async fn schema_change(
    session: &Session<'_>,
    transaction: &mut Transaction,
    statement: &Parsed,
    text: &str,
    change: &mut Option<Change>,
) -> Result<Outcome, Failure> {
    let ddl = match &statement.kind {
        Kind::Ddl(ddl) => ddl,
        Kind::CallPgherd { procedure, arguments } => {
            return Ok(crate::call(session, transaction, procedure, arguments, change).await?);
        }
        _ => return Err(ServerError::internal("not a schema change").into()),
    };
    let text = StatementText::new(statement, text);
    let mut work = Work::new(session, transaction, change);
    match run(&mut work, ddl, &text).await {
        Ok(tag) => {
            if is_told_by_names(ddl.kind) {
                work.check_same_tables(ddl, &text).await?;
            }
            yield_names(&mut work, ddl, &text).await?;
            Ok(work.finish(tag).await?)
        }
        Err(mut error) => {
            if work.lock_refused && error.sqlstate() == SqlState::INSUFFICIENT_PRIVILEGE {
                error = work.on_home(text.text).await.err().unwrap_or(error);
            }
            Err(Failure {
                error,
                notices: work.into_notices(),
            })
        }
    }
}

async fn run(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<String, ServerError> {
    use DdlKind::*;
    refuse_own_schemas(work, ddl, text)?;
    match ddl.kind {
        CreateTable if !ddl.relations.is_empty() => create_table::create_table(work, ddl, text).await,
        CreateTableAs => view::table_as(work, ddl, text).await,
        AlterTable if !ddl.relations.is_empty() => alter_table::alter_table(work, ddl, text).await,
        DropTable => drop::drop_tables(work, ddl, text).await,
        Truncate => drop::truncate(work, ddl, text).await,
        CreateIndex if !ddl.relations.is_empty() => index::create_index(work, ddl, text).await,
        AlterIndex | DropIndex => index::change_indexes(work, ddl, text).await,
        CreateView | CreateMaterializedView | AlterView | DropView => view::change_views(work, ddl, text).await,
        RefreshMaterializedView => materialized::refresh(work, ddl, text).await,
        CreateTrigger | AlterTrigger | DropTrigger | CreateRule | AlterRule | DropRule | CreatePolicy | AlterPolicy
        | DropPolicy | CreateStatistics => on_table::change(work, ddl, text).await,
        Grant | Revoke => everywhere::grant(work, ddl, text).await,
        Comment | SecurityLabel => work.on_home(text.text).await,
        AlterStatistics | DropStatistics => on_table::change_statistics(work, ddl, text).await,
        CreateSequence | AlterSequence | DropSequence => everywhere::sequence(work, ddl, text).await,
        CreateFunction | AlterFunction | DropFunction => everywhere::function(work, ddl, text).await,
        OtherDdl => everywhere::other(work, text).await,
        _ => everywhere::broadcast(work, ddl, text).await,
    }
}

/// Whether what such a statement names decides where it runs. Others run on every shard, whatever they name.
fn is_told_by_names(kind: DdlKind) -> bool {
    use DdlKind::*;
    matches!(
        kind,
        CreateTable
            | AlterTable
            | DropTable
            | Truncate
            | CreateIndex
            | AlterIndex
            | DropIndex
            | CreateView
            | CreateMaterializedView
            | AlterView
            | DropView
            | CreateTrigger
            | AlterTrigger
            | DropTrigger
            | CreateRule
            | AlterRule
            | DropRule
            | CreatePolicy
            | AlterPolicy
            | DropPolicy
            | CreateStatistics
            | AlterStatistics
            | DropStatistics
            | Grant
            | Revoke
    )
}

/// Relations that functions have named all along may be there now.
async fn yield_names(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<(), ServerError> {
    use DdlKind::*;
    if !matches!(ddl.kind, CreateTable | AlterTable | CreateView | AlterView) || !work.has_changed_catalog() {
        return Ok(());
    }
    let renamed = text.new_name();
    let names = ddl.relations.iter().map(|n| n.name.as_str()).chain(renamed.as_deref());
    yielding::after(work, &names.collect::<Vec<_>>()).await
}

/// The schemas of pgherd's own objects are its own.
fn refuse_own_schemas(work: &Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<(), ServerError> {
    // Its members would go with it without being asked for.
    if matches!(ddl.kind, DdlKind::DropExtension) && text.mentions("plpgsql") {
        return Err(ServerError::new(
            SqlState::from_code("2BP01"),
            "cannot drop extension plpgsql because other objects depend on it",
        )
        .with_detail("The functions of schema pgherd are written in its language.")
        .with_hint("Leave it there; pgherd needs it in every database."));
    }
    let names = ddl.relations.iter().chain(&ddl.object).chain(&ddl.partition);
    for name in names {
        let schema_statement = matches!(ddl.kind, DdlKind::AlterSchema | DdlKind::DropSchema);
        let schema = if schema_statement {
            Some(&name.name)
        } else {
            name.schema.as_ref()
        };
        if schema.is_some_and(|s| s == "pgherd" || s == "pgherd_data") {
            return Err(ServerError::new(
                SqlState::INSUFFICIENT_PRIVILEGE,
                format!("permission denied for schema {}", schema.map_or("", String::as_str)),
            )
            .with_hint("pgherd keeps ranges and its catalog there; change tables under their own names."));
        }
        if let Some(table) = work.resolve(name)
            && matches!(table.kind, TableKind::Refused { .. })
            && matches!(ddl.kind, DdlKind::RefreshMaterializedView)
        {
            work.refuse_refused(&table)?;
        }
    }
    Ok(())
}
