//! COPY. On local tables, and wherever one shard has all of it, the shard's own: data is relayed both ways as it is.
//! Into a sharded table the client's stream is split by key ([`into`]); out of one, or out of a query over several
//! shards, the rows of a plan are written in COPY's format ([`out_of`], [`format`]).

mod client_errors;
mod evaluate;
mod format;
mod into;
mod on_shard;
mod out_of;
mod outflow;
mod own_encoding;
mod plan;
mod running;
mod words;
mod written;

use super::enter::Entered;
use super::execute::{names_missing_child, stale_route};
use super::forward::{lock_fences, lost_lease, no_block};
use super::relay::{End, Failure, Filter, Fresh, Reply, relay};
use super::{Mode, Problem, Session, Unit};
use crate::client::{Client, FLUSH_AT, Gone};
use crate::messages::put_copy_data;
use crate::user_types::Asking;
use pgherd_model::{Resolved, ServerError, ShardId, SqlState, Table, TableKind};
use pgherd_shards::Backend;
use pgherd_sql::{CopyShape, CopySource, CopyTarget, Kind, Part, Route};
use pgherd_transaction::Transaction;
use pgwire::messages::PgWireFrontendMessage;
use postgres_protocol::message::frontend;

/// How often a stale route is tried again after a refresh.
const STALE_ROUTE_TRIES: usize = 5;

impl Session {
    /// Runs a COPY, again with a fresh catalog where its route was stale.
    pub(crate) async fn copy(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let Kind::Copy(shape) = &unit.statement.parsed.kind else {
            return Err(ServerError::internal("COPY without its parts").into());
        };
        if unit.statement.names_another(&self.who.database) {
            return self.judged_by_home(unit).await;
        }
        match self.encoding_of_copy(shape).await? {
            Some(encoding) => self.copy_in_encoding(unit, shape, encoding).await,
            None => self.copy_as_client(unit, shape).await,
        }
    }

    /// With data in the client's encoding.
    async fn copy_as_client(&mut self, unit: Unit<'_>, shape: &CopyShape) -> Result<(), Problem> {
        if shape.format == pgherd_sql::CopyFormat::Binary && self.converter().is_some() {
            let types = self.binary_types(unit, shape).await?;
            self.know_shapes(types.iter().copied()).await?;
            self.client.expect_binary_copy(Some(types))?;
            let copied = self.copy_again(unit, shape).await;
            self.client.expect_binary_copy(None)?;
            return copied;
        }
        self.copy_again(unit, shape).await
    }

    /// The types of the columns that are copied.
    async fn binary_types(&mut self, unit: Unit<'_>, shape: &CopyShape) -> Result<Vec<u32>, Problem> {
        let name = match &shape.source {
            CopySource::Table(name) => name,
            CopySource::Query(span) => {
                let query = unit.statement.text.get(span.clone()).unwrap_or_default();
                let described = self.read_apart(query, &[]).await;
                let columns = described.and_then(Result::ok).and_then(|d| d.columns);
                return Ok(columns.iter().flatten().map(|c| c.type_oid).collect());
            }
        };
        let schema = name.schema.iter().map(|s| pgherd_model::quote_identifier(s) + ".");
        let relation = schema.collect::<String>() + &pgherd_model::quote_identifier(&name.name);
        let sql = format!(
            "SELECT a.attname, a.atttypid::pg_catalog.text FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = pg_catalog.to_regclass({}) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum",
            pgherd_model::quote_literal(&relation)
        );
        let told = self.ask_home(&sql).await?;
        let rows = told.first().map_or(0, |r| r.rows.len());
        let text = |row, column| told.first().and_then(|r| r.text(row, column));
        let of = |row: usize| text(row, 1).and_then(|oid| oid.parse().ok()).unwrap_or(0);
        Ok(match &shape.columns {
            None => (0..rows).map(of).collect(),
            Some(names) => {
                let place = |name: &String| (0..rows).find(|&row| text(row, 0) == Some(name));
                names.iter().map(|name| place(name).map_or(0, of)).collect()
            }
        })
    }

    async fn copy_again(&mut self, unit: Unit<'_>, shape: &CopyShape) -> Result<(), Problem> {
        let mut tries = 0;
        loop {
            let mark = self.client.position();
            let entered = self.enter(unit).await?;
            let epoch = entered.snapshot.epoch;
            self.begin_strict_for_one(&entered.snapshot);
            let result = match self.lock_copied(unit, shape, &entered).await {
                Ok(()) => self.copy_entered(unit, shape, &entered).await,
                refused => refused,
            };
            drop(entered);
            match result {
                Err(Problem::Error(error)) if names_missing_child(&error) => {
                    let nothing_delivered = self.client.position() == mark;
                    tries += 1;
                    if self.is_alone() && nothing_delivered && tries <= STALE_ROUTE_TRIES {
                        self.rollback_block().await?;
                        let fresh = self.catalog().refresh().await?;
                        if fresh.epoch != epoch {
                            continue;
                        }
                    }
                    return Err(stale_route(error).into());
                }
                other => return other,
            }
        }
    }

    /// At SERIALIZABLE over shards, before a COPY.
    async fn lock_copied(&mut self, unit: Unit<'_>, shape: &CopyShape, entered: &Entered) -> Result<(), Problem> {
        if !self.is_strict() {
            return Ok(());
        }
        let text = &unit.statement.text;
        let name = match &shape.source {
            CopySource::Table(name) => name,
            CopySource::Query(span) => {
                return self.lock_inner(unit, text.get(span.clone()).unwrap_or_default()).await;
            }
        };
        self.check_calls(text.get(shape.options.clone()).unwrap_or_default())
            .await?;
        let (snapshot, home) = (&entered.snapshot, self.gateway.shards.home());
        let path = &self.settings.search_path;
        let table = match snapshot.resolve(name.schema.as_deref(), &name.name, path) {
            Resolved::Known(table) => Some(table),
            Resolved::Home => None,
        };
        let mut locks = pgherd_sql::Locks::default();
        match shape.from {
            true => locks.write(name, table.as_ref(), home),
            false => locks.read(name, table.as_ref(), snapshot),
        }
        self.take(locks, snapshot).await
    }

    async fn copy_entered(&mut self, unit: Unit<'_>, shape: &CopyShape, entered: &Entered) -> Result<(), Problem> {
        match entered.analysis.route(&entered.snapshot, &[]) {
            // The parent of ranges has no rows that PostgreSQL would copy, wherever they are.
            Route::Forward(part) if shape.from || !self.copies_sharded_table(shape, entered) => {
                return self.relay_copy(unit, entered, &part).await;
            }
            Route::Refuse(error) => return Err(error.into()),
            _ => {}
        }
        let CopySource::Table(name) = &shape.source else {
            only_to_client(shape)?;
            return self.copy_query(unit, shape).await;
        };
        let resolved = entered
            .snapshot
            .resolve(name.schema.as_deref(), &name.name, &self.settings.search_path);
        let Resolved::Known(table) = resolved else {
            return Err(ServerError::internal("COPY of a table that nobody knows").into());
        };
        match &table.kind {
            TableKind::Sharded(_) => {
                only_to_client(shape)?;
                if shape.from {
                    // Its defaults may draw numbers that the session does not see.
                    self.drawn.forget();
                    self.copy_into(unit, shape, entered, &table).await
                } else {
                    self.copy_table(unit, shape, &table).await
                }
            }
            TableKind::Partition { parent, range } => {
                only_to_client(shape)?;
                let sharded = entered.snapshot.table(parent).and_then(|t| t.sharded());
                let place = sharded.and_then(|s| Some((s.ranges.get(*range)?.shard, s.fence.to_string())));
                let (shard, fence) = place.ok_or_else(|| ServerError::internal("a partition without its parent"))?;
                let text = unit.statement.text.clone();
                let fences = vec![fence.into()];
                let part = Part {
                    shard,
                    text,
                    parameters: None,
                    fences,
                    replaced: [].into(),
                };
                self.relay_copy(unit, entered, &part).await
            }
            TableKind::View { .. } => Err(copy_of_view(&table, shape.from).into()),
            TableKind::Refused { readable: true, .. } if !shape.from => {
                let part = Part {
                    shard: self.gateway.shards.home(),
                    text: unit.statement.text.clone(),
                    parameters: None,
                    fences: Vec::new(),
                    replaced: [].into(),
                };
                self.relay_copy(unit, entered, &part).await
            }
            TableKind::Refused { reason, .. } => Err(ServerError::new(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("COPY of \"{}\" is not supported", table.name.name),
            )
            .with_detail(reason.clone())
            .into()),
        }
    }

    fn copies_sharded_table(&self, shape: &CopyShape, entered: &Entered) -> bool {
        let CopySource::Table(name) = &shape.source else {
            return false;
        };
        let path = &self.settings.search_path;
        let resolved = entered.snapshot.resolve(name.schema.as_deref(), &name.name, path);
        matches!(resolved, Resolved::Known(table) if matches!(table.kind, TableKind::Sharded(_)))
    }

    /// One shard runs the COPY; alone in autocommit, else as a participant of the block.
    async fn relay_copy(&mut self, unit: Unit<'_>, entered: &Entered, part: &Part) -> Result<(), Problem> {
        let holding = self.copied_types(unit, part.shard).await?;
        if self.block.is_none() && part.fences.is_empty() {
            let mut backend = self.database.coordinator.autocommit(part.shard, &self.who).await?;
            let tag = self
                .relay_copy_on(&mut backend, unit, entered, (part, &holding))
                .await?;
            drop(backend);
            self.client.put_tag(&tag);
            return Ok(());
        }
        let made = self.ensure_block();
        if let (true, Some(open)) = (made, self.block.open_mut()) {
            open.transaction.stay_alone();
        }
        let result = self.relay_copy_in_block(unit, entered, (part, &holding)).await;
        self.finish_statement(made, result.map(Some)).await
    }

    async fn relay_copy_in_block(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        (part, holding): (&Part, &[(usize, u32)]),
    ) -> Result<String, Problem> {
        // The block lends its backend for the time of the statement.
        let mut block = std::mem::take(&mut self.block);
        let result = match block.open_mut() {
            Some(open) => match caught_up(&mut open.transaction, part.shard).await {
                Ok(backend) => self.relay_copy_on(backend, unit, entered, (part, holding)).await,
                Err(error) => Err(error.into()),
            },
            None => Err(no_block().into()),
        };
        self.block = block;
        result
    }

    async fn relay_copy_on(
        &mut self,
        backend: &mut Backend,
        unit: Unit<'_>,
        entered: &Entered,
        (part, holding): (&Part, &[(usize, u32)]),
    ) -> Result<String, Problem> {
        // The session is borrowed while rows are relayed.
        let (database, who) = (self.database.clone(), self.who.clone());
        let asking = Asking::new(&database, &who, self.gateway.shards.home());
        let fresh = Fresh::Statement(&entered.guard);
        let mark = self.client.out.len();
        lock_fences(backend, part);
        self.cancel.slot.start(backend.cancel_token());
        backend.queue_query(&part.text)?;
        backend.flush().await?;
        let filter = Filter {
            hide_preparation: true,
            hold_tag: true,
            foreign: asking.foreign(part.shard),
            holding,
            ..Filter::default()
        };
        let mut end = relay(backend, &mut self.client, filter, fresh).await;
        let mut began = false;
        while let Ok(End::Copy(tag)) = end {
            began = true;
            if describes(unit) {
                let response = self.client.out.split_off(mark);
                self.client.put(b'n', &[]);
                self.client.out.unsplit(response);
            }
            if tag == b'G' {
                self.copy_took_sync |= matches!(unit.mode, Mode::Extended { .. });
                if let Err(problem) = relay_in(&mut self.client, backend).await {
                    // What it says of a COPY that was given up has been read.
                    if matches!(problem, Problem::Gone) {
                        backend.taint();
                    }
                    return Err(problem);
                }
            }
            end = relay(backend, &mut self.client, filter, fresh).await;
        }
        let reply = match end {
            Ok(End::Ready(reply)) => reply,
            Ok(End::Copy(_)) => Reply::default(),
            Err(Failure::Client) => return Err(Problem::Gone),
            Err(Failure::Shard(error)) => return Err(error.into()),
            Err(Failure::Stale) => return Err(lost_lease().into()),
        };
        self.cancel.slot.clear();
        match reply.error {
            // Data has gone one way or the other: there is no second try.
            Some(error) if began && names_missing_child(&error) => Err(stale_route(error).into()),
            Some(error) => Err(self.shard_error(part, unit, error).into()),
            None => Ok(reply.tag.unwrap_or_default()),
        }
    }
}

/// Whether the client is to be told that the portal returns no rows.
fn describes(unit: Unit<'_>) -> bool {
    unit.mode.describes() && matches!(unit.mode, Mode::Extended { .. })
}

/// A message of the client's during COPY FROM STDIN.
enum Inflow {
    Data(bytes::Bytes),
    Done,
    Failed(String),
    /// not a message for a COPY: its letter
    Unexpected(u8),
}

/// What the client says next. Sync and Flush are ignored, as in PostgreSQL: some drivers send them before they know
/// that their statement is a COPY.
async fn next_inflow(client: &mut Client) -> Result<Inflow, Gone> {
    loop {
        return Ok(match client.next().await? {
            PgWireFrontendMessage::CopyData(data) => Inflow::Data(data.data),
            PgWireFrontendMessage::CopyDone(_) => Inflow::Done,
            PgWireFrontendMessage::CopyFail(fail) => Inflow::Failed(fail.message),
            PgWireFrontendMessage::Sync(_) | PgWireFrontendMessage::Flush(_) => continue,
            PgWireFrontendMessage::Terminate(_) => return Err(Gone::Closed),
            PgWireFrontendMessage::Query(_) => Inflow::Unexpected(b'Q'),
            PgWireFrontendMessage::Parse(_) => Inflow::Unexpected(b'P'),
            PgWireFrontendMessage::Bind(_) => Inflow::Unexpected(b'B'),
            PgWireFrontendMessage::Describe(_) => Inflow::Unexpected(b'D'),
            PgWireFrontendMessage::Execute(_) => Inflow::Unexpected(b'E'),
            PgWireFrontendMessage::Close(_) => Inflow::Unexpected(b'C'),
            _ => Inflow::Unexpected(b'p'),
        });
    }
}

fn unexpected_message(letter: u8) -> String {
    format!("unexpected message type 0x{letter:02X} during COPY from stdin")
}

/// The client's data to one shard, until either side ends it. The shard's reply is left to be read.
async fn relay_in(client: &mut Client, backend: &mut Backend) -> Result<(), Problem> {
    client.flush().await?;
    loop {
        let message = if client.has_message() {
            next_inflow(client).await
        } else {
            backend.flush().await?;
            if backend.has_error() {
                return Ok(());
            }
            tokio::select! {
                message = next_inflow(client) => message,
                filled = backend.fill() => {
                    filled?;
                    continue;
                }
            }
        };
        match message {
            Ok(Inflow::Data(data)) => {
                put_copy_data(backend.outbox(), &data);
                if backend.outbox().len() >= FLUSH_AT {
                    backend.flush().await?;
                    if backend.has_error() {
                        return Ok(());
                    }
                }
                continue;
            }
            Ok(Inflow::Done) => frontend::copy_done(backend.outbox()),
            Ok(Inflow::Failed(message)) => put_fail(backend, &message),
            // The shard gets what PostgreSQL would have got, so that it says what PostgreSQL would.
            Ok(Inflow::Unexpected(letter)) => {
                put_fail(backend, "the client left COPY");
                backend.flush().await?;
                let _ = backend.drain().await;
                return Err(ServerError::new(SqlState::PROTOCOL_VIOLATION, unexpected_message(letter)).into());
            }
            Err(gone) => {
                put_fail(backend, "the client's data cannot be read");
                backend.flush().await?;
                let _ = backend.drain().await;
                return Err(match gone {
                    Gone::Data(error) => error.into(),
                    _ => Problem::Gone,
                });
            }
        }
        backend.flush().await?;
        return Ok(());
    }
}

fn put_fail(backend: &mut Backend, message: &str) {
    let text = message.replace('\0', "");
    frontend::copy_fail(&text, backend.outbox()).expect("the NULs are gone");
}

/// Files and programs lie on one server; a sharded table does not.
fn only_to_client(shape: &CopyShape) -> Result<(), ServerError> {
    match shape.target {
        CopyTarget::Client => Ok(()),
        CopyTarget::File | CopyTarget::Program => Err(ServerError::unsupported(
            "COPY between a sharded table and a server's file or program is not supported",
            "Use COPY FROM STDIN or TO STDOUT; psql's \\copy does it with a file of the client's.",
        )),
    }
}

/// As PostgreSQL refuses a view; one with an INSTEAD OF trigger over sharded tables is not supported.
fn copy_of_view(view: &Table, from: bool) -> ServerError {
    let name = &view.name.name;
    match from {
        false => ServerError::new(SqlState::WRONG_OBJECT_TYPE, format!("cannot copy from view \"{name}\""))
            .with_hint("Try the COPY (SELECT ...) TO variant."),
        true => ServerError::unsupported(
            format!("COPY into view \"{name}\" over a sharded table is not supported"),
            "Copy into the table.",
        ),
    }
}

/// The participant, behind what it has to wait for.
async fn caught_up(transaction: &mut Transaction, shard: ShardId) -> Result<&mut Backend, pgherd_transaction::Error> {
    transaction.participant(shard).await?;
    transaction.catch_up(shard);
    transaction.participant(shard).await
}
