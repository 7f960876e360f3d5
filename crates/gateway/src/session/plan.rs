//! Statements over several ranges that the query room plans: SELECT, INSERT … SELECT, and UPDATE, DELETE and MERGE that gather.

use super::enter::Entered;
use super::execute::names_missing_child;
use super::explain::Used;
use super::forward::{lost_lease, no_block};
use super::{Mode, Problem, Session, Unit};
use crate::user_types::Asking;
use bytes::BytesMut;
use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_sql::Kind;
use pgherd_transaction::Transaction;

impl Session {
    /// Plans and runs a statement in the block, or in one of its own.
    pub(crate) async fn plan(&mut self, unit: Unit<'_>, entered: &Entered) -> Result<(), Problem> {
        let description = self.description(unit, &entered.snapshot).await?;
        let made = self.ensure_block();
        let result = self.plan_in_block(unit, entered, &description, made).await;
        if let Some(open) = self.block.open_mut() {
            let notices = open.transaction.take_notices();
            self.put_notices(notices);
        }
        let has_made = self.block.open().is_some_and(|open| open.has_changed_schema);
        let result = result.map_err(|problem| match problem {
            Problem::Error(error) if has_made && names_nothing(&error) => uncommitted().into(),
            Problem::Error(error) if !names_missing_child(&error) => self.as_client_sees(error).into(),
            other => other,
        });
        self.finish_statement(made, result).await
    }

    async fn plan_in_block(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        description: &pgherd_query::Description,
        made: bool,
    ) -> Result<Option<String>, Problem> {
        let surroundings = self
            .surroundings(&description.parameter_types, &entered.snapshot)
            .await?;
        let not_known = (
            "this statement over several ranges is not supported yet",
            "Its grammar is known to PostgreSQL only; restrict it to one range, or write it another way.",
        );
        let statement = surroundings.statement(unit, &description.parameter_types, &entered.snapshot, not_known)?;
        let only_reads = unit.statement.only_reads();
        let statement = pgherd_query::Statement {
            result_formats: unit.mode.formats(),
            alone: (made || self.explains_alone) && only_reads,
            ends: made && only_reads,
            schema_is_own: self.block.open().is_some_and(|open| open.has_changed_schema),
            told_by_epoch: only_reads && self.is_told_by_epoch(unit, &entered.analysis),
            ..statement
        };
        let gateway = self.gateway.clone();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let slot = self.cancel.slot.clone();
        slot.start_all(open.transaction.cancel_tokens());
        let before = match self.client.is_discarding() {
            true => received(&mut open.transaction),
            false => Vec::new(),
        };
        let columns = description.columns.as_deref();
        let (written, mut rows) = match &unit.statement.parsed.kind {
            Kind::Insert => {
                // Its defaults may draw numbers that the session does not see.
                self.drawn.forget();
                let (count, rows) =
                    pgherd_query::insert_select(statement, columns, &mut open.transaction, &gateway.engine).await?;
                (Some(("INSERT 0", count)), rows.unwrap_or_default())
            }
            kind @ (Kind::Update | Kind::Delete) => {
                let (count, rows) = pgherd_query::gathered_write(statement, columns, &mut open.transaction).await?;
                let word = if matches!(kind, Kind::Update) {
                    "UPDATE"
                } else {
                    "DELETE"
                };
                (Some((word, count)), rows.unwrap_or_default())
            }
            Kind::Merge => {
                self.drawn.forget();
                let count = pgherd_query::merge(statement, &mut open.transaction).await?;
                (Some(("MERGE", count)), pgherd_query::Rows::default())
            }
            _ => {
                let columns = columns.unwrap_or_default();
                let rows = pgherd_query::select(statement, columns, &mut open.transaction, &gateway.engine).await?;
                (None, rows)
            }
        };
        let tag = move |rows: usize| match written {
            Some((word, count)) => format!("{word} {count}"),
            None => format!("SELECT {rows}"),
        };
        if unit.mode.describes() {
            match &description.columns {
                Some(columns) => self.client.put_row_description(columns, unit.mode.formats()),
                None if matches!(unit.mode, Mode::Extended { .. }) => self.client.put(b'n', &[]),
                None => {}
            }
        }
        let mut seen = 0;
        let (limit, portal) = match unit.mode {
            Mode::Extended { max_rows, portal, .. } if max_rows > 0 => (max_rows, portal),
            _ => (0, ""),
        };
        let mut kept = BytesMut::new();
        if let Some(token) = rows.cancel_token() {
            slot.add(token);
        }
        // A request that came while rows were gathered found nothing to cancel on the shards.
        if slot.requested().is_some() {
            return Err(canceled().into());
        }
        let asking = Asking::new(&self.database, &self.who, self.gateway.shards.home());
        let statistics = loop {
            let mut batch = match rows.next().await {
                Ok(Some(batch)) => batch,
                ended => {
                    let notices = rows.take_notices();
                    let statistics = rows.statistics();
                    // They borrow the transaction, which the session needs again.
                    drop(rows);
                    self.put_notices(notices);
                    ended?;
                    break statistics;
                }
            };
            if slot.requested().is_some() {
                return Err(canceled().into());
            }
            asking
                .translate_returned(&mut batch, description, unit.mode.formats())
                .await?;
            seen += batch.rows;
            if limit > 0 {
                kept.unsplit(batch.bytes);
                continue;
            }
            self.client.out.extend_from_slice(&batch.bytes);
            if self.client.out.len() >= crate::client::FLUSH_AT {
                if !entered.guard.holds().await {
                    return Err(lost_lease().into());
                }
                self.client.flush().await?;
            }
        };
        if let (true, Some(open)) = (self.client.is_discarding(), self.block.open_mut()) {
            let mut received = received(&mut open.transaction);
            for (shard, bytes) in &mut received {
                let known = before.iter().find(|(s, _)| s == shard);
                *bytes -= known.map_or(0, |(_, before)| *before);
            }
            self.used = Some(Used { received, statistics });
        }
        if !entered.guard.holds().await {
            return Err(lost_lease().into());
        }
        if limit > 0 {
            let portal = portal.to_owned();
            return Ok(self.deliver_rows(&portal, kept, limit).map(tag));
        }
        Ok(Some(tag(seen)))
    }
}

/// Whether a name means nothing: a function's, a type's, a schema's.
fn names_nothing(error: &ServerError) -> bool {
    ["42883", "42704", "3F000"].contains(&error.sqlstate().code())
}

/// PostgreSQL found the names when it judged the statement in its transaction; the connection that gathers rows is another one.
fn uncommitted() -> ServerError {
    ServerError::unsupported(
        "a query over several shards cannot use functions, types and schemas that its transaction has made",
        "Commit them first.",
    )
}

/// Bytes that came from each participant.
fn received(transaction: &mut Transaction) -> Vec<(ShardId, u64)> {
    let participants = transaction.participants();
    participants
        .map(|(shard, backend)| (shard, backend.received()))
        .collect()
}

/// 57014, for a request that came between two steps on the shards. Where it was the statement's time limit, that is said
/// when the statement ends.
pub(crate) fn canceled() -> ServerError {
    ServerError::new(SqlState::QUERY_CANCELED, "canceling statement due to user request")
}
