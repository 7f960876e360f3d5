//! The source of an INSERT … SELECT: its rows with keys and defaults.

use super::Plan;
use crate::edit::Edited;
use crate::relay::{self, RowBatch};
use crate::rows::Rows;
use crate::statement::{Statement, describe};
use crate::{Fragment, Transaction, gather, views};
use pgherd_model::{KeyType, Resolved, ServerError, Sharded};
use postgres_protocol::message::frontend;
use std::sync::Arc;

/// Rows that an Execute on the home participant returns at most, so that rows can be written in between.
const ROWS_AT_ONCE: i32 = 5000;
/// The portal of a source on the home participant.
const PORTAL: &str = "pgherd source";

/// The source's SQL, wrapped.
pub(super) struct Wrapped {
    pub sql: String,
    /// types of the source's and the defaults' columns; keys are left out
    pub types: Vec<u32>,
}

/// The source with computed defaults behind its columns, `c1` and so on.
pub(super) struct Inner {
    pub sql: String,
    /// the source's own columns
    pub given: usize,
}

/// Describes the source behind `with`, completes the plan, and puts the computed defaults behind the source's columns.
pub(super) async fn wrap_with_defaults(
    statement: &Statement<'_>,
    with: &str,
    plan: &mut Plan,
    transaction: &mut Transaction,
) -> Result<Inner, ServerError> {
    let source = statement.text[plan.target.source.clone()].trim();
    let home = transaction.participant(statement.snapshot.home()).await?;
    let described = format!("{with} {source}");
    let description = describe(home, &described, statement.parameter_types)
        .await
        .map_err(|e| e.with_position(None))?;
    let given = description.columns.unwrap_or_default().len();
    plan.complete(given)?;
    if plan.target.has_parts() {
        plan.type_parts(transaction.participant(statement.snapshot.home()).await?)
            .await?;
    }
    let names = |prefix: &str, count: usize| -> Vec<String> { (1..=count).map(|i| format!("{prefix}{i}")).collect() };
    let columns = names("c", given);
    let mut inner = vec!["pgherd_source.*".to_owned()];
    inner.extend(
        plan.defaults
            .iter()
            .enumerate()
            .map(|(i, sql)| format!("{sql} AS c{}", given + i + 1)),
    );
    let list = if columns.is_empty() {
        String::new()
    } else {
        format!(" ({})", columns.join(", "))
    };
    let sql = format!("SELECT {} FROM ({source}) AS pgherd_source{list}", inner.join(", "));
    Ok(Inner { sql, given })
}

/// Wraps the source: its columns, the computed defaults, then the key's columns cast to the key's types.
pub(super) async fn wrap(
    statement: &Statement<'_>,
    plan: &mut Plan,
    transaction: &mut Transaction,
) -> Result<Wrapped, ServerError> {
    let Inner { mut sql, given } = wrap_with_defaults(statement, "", plan, transaction).await?;
    if let Some(sharded) = plan.table.as_ref().and_then(|t| t.sharded()) {
        let mut outer = vec!["pgherd_rows.*".to_owned()];
        outer.extend(key_sql(plan, sharded));
        sql = format!("SELECT {} FROM ({sql}) AS pgherd_rows", outer.join(", "));
    }
    let home = transaction.participant(statement.snapshot.home()).await?;
    let described = describe(home, &sql, statement.parameter_types)
        .await
        .map_err(|e| e.with_position(None))?;
    let all = described.columns.unwrap_or_default();
    let types = all
        .iter()
        .take(given + plan.defaults.len())
        .map(|c| c.type_oid)
        .collect();
    Ok(Wrapped { sql, types })
}

/// The key's columns as the target stores them.
pub(super) fn key_sql(plan: &Plan, sharded: &Sharded) -> Vec<String> {
    let cast = |(place, key_type): (&Option<usize>, &KeyType)| match place {
        Some(place) => format!(
            "CAST(CAST(pgherd_rows.c{} AS {}) AS {})",
            place + 1,
            plan.types[*place].sql,
            base_type(*key_type)
        ),
        None => format!("CAST(NULL AS {})", base_type(*key_type)),
    };
    plan.key.iter().zip(&sharded.key_types).map(cast).collect()
}

/// A key type's name as SQL.
pub(crate) fn base_type(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::SmallInt => "pg_catalog.int2",
        KeyType::Int => "pg_catalog.int4",
        KeyType::BigInt => "pg_catalog.int8",
        KeyType::Text => "pg_catalog.text",
        KeyType::Varchar => "pg_catalog.varchar",
        KeyType::Uuid => "pg_catalog.uuid",
        KeyType::Date => "pg_catalog.date",
        KeyType::Timestamp => "pg_catalog.timestamp",
        KeyType::TimestampTz => "pg_catalog.timestamptz",
        KeyType::Numeric => "pg_catalog.numeric",
    }
}

/// The source's rows while they are read.
pub(super) enum Source {
    /// a portal on the home participant
    Home,
    /// a gather's result
    Gathered(Box<Rows<'static>>),
    Ended,
}

/// Whether the source reads anything that is not the home shard's alone.
fn reads_sharded(statement: &Statement<'_>, parsed: &views::ParsedQuery) -> bool {
    parsed.relations.mentions.iter().any(|mention| {
        let resolved = statement
            .snapshot
            .resolve(mention.schema.as_deref(), &mention.name, statement.search_path);
        matches!(resolved, Resolved::Known(_))
    })
}

/// What is asked of which shard for the source; for EXPLAIN.
pub(super) async fn fragments(
    statement: &Statement<'_>,
    sql: &str,
    transaction: &mut Transaction,
) -> Result<Vec<(Option<String>, Fragment)>, ServerError> {
    let parsed = views::parse_query(sql)?;
    if reads_sharded(statement, &parsed) {
        let source = Statement {
            text: &parsed.text,
            ..*statement
        };
        return gather::fragments(&source, None, transaction).await;
    }
    let (parameter_types, parameters) = crate::fragment::parameters(statement, sql, statement.snapshot.home());
    let fragment = Fragment {
        shard: statement.snapshot.home(),
        portal: PORTAL.to_owned(),
        sql: sql.to_owned(),
        parameter_types,
        parameters,
        result_formats: Vec::new(),
        fences: Vec::new(),
    };
    Ok(vec![(None, fragment)])
}

/// Starts the source with these result formats.
pub(super) async fn open(
    statement: &Statement<'_>,
    sql: &str,
    formats: &[i16],
    transaction: &mut Transaction,
) -> Result<Source, ServerError> {
    let parsed = views::parse_query(sql)?;
    let source = Statement {
        text: &parsed.text,
        result_formats: formats,
        ..*statement
    };
    if reads_sharded(statement, &parsed) {
        // The result comes from the scratch connection, so the transaction is free meanwhile.
        return Ok(Source::Gathered(Box::new(
            gather::select_target(&source, None, transaction).await?,
        )));
    }
    let shard = statement.snapshot.home();
    let mut text = parsed.text.clone();
    if transaction.first_shard().is_some_and(|first| first != shard) {
        let now = transaction.clock().await?.unwrap_or_default();
        text = Edited::new(&text, gather::clock::edits(&parsed, &now)).text;
    }
    transaction.participant(shard).await?;
    transaction.catch_up(shard);
    let home = transaction.participant(shard).await?;
    let out = home.outbox();
    let nul = |_| ServerError::internal("a message to the home shard cannot be encoded");
    frontend::close(b'P', PORTAL, out).map_err(nul)?;
    frontend::parse("", &text, statement.parameter_types.iter().copied(), out).map_err(nul)?;
    crate::fragment::bind(PORTAL, statement.parameters, formats, out)?;
    relay::sync(home).await?;
    home.drain().await?;
    Ok(Source::Home)
}

impl Source {
    /// The next rows, with nothing left to read on the home participant; None at the end.
    pub async fn next(
        &mut self,
        home: pgherd_model::ShardId,
        transaction: &mut Transaction,
    ) -> Result<Option<Vec<RowBatch>>, ServerError> {
        match self {
            Source::Ended => Ok(None),
            Source::Gathered(rows) => match rows.next().await? {
                Some(batch) => Ok(Some(vec![batch])),
                None => {
                    transaction.note_notices(rows.take_notices());
                    *self = Source::Ended;
                    Ok(None)
                }
            },
            Source::Home => {
                let backend = transaction.participant(home).await?;
                let nul = |_| ServerError::internal("a portal's name holds a NUL");
                frontend::execute(PORTAL, ROWS_AT_ONCE, backend.outbox()).map_err(nul)?;
                relay::sync(backend).await?;
                let mut batches = Vec::new();
                let read = loop {
                    match relay::next_rows_or_pause(backend).await {
                        Ok(relay::Next::Rows(batch)) => batches.push(batch),
                        Ok(relay::Next::Paused) => break Ok(()),
                        Ok(relay::Next::Complete) => {
                            *self = Source::Ended;
                            break Ok(());
                        }
                        Err(error) => break Err(error),
                    }
                };
                let drained = backend.drain().await;
                read?;
                drained?;
                if matches!(self, Source::Ended) {
                    // Left open, it would be one of the session's cursors, and keep the transaction from changing the tables that it reads.
                    frontend::close(b'P', PORTAL, backend.outbox()).map_err(nul)?;
                    relay::sync(backend).await?;
                    backend.drain().await?;
                }
                Ok(Some(batches))
            }
        }
    }
}

/// A table that a plan writes.
pub(super) fn sharded(table: Option<&Arc<pgherd_model::Table>>) -> Option<&Sharded> {
    table.and_then(|t| t.sharded())
}
