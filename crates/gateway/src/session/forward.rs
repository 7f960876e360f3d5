//! One shard runs the whole statement; its reply is relayed as bytes.

use super::enter::Entered;
use super::local_numbers::Asked;
use super::lock_modes::before_snapshot;
use super::portal::{PortalState, backend_portal};
use super::relay::{End, Failure, Filter, Fresh, Reply, relay};
use super::{Mode, Problem, Session, Unit};
use crate::origins::Naming;
use crate::statements::StatementCache;
use crate::template::Template;
use crate::user_types::Asking;
use bytes::Bytes;
use pgherd_model::{ServerError, ShardId, SqlState, Table};
use pgherd_query::Description;
use pgherd_shards::{Backend, SimpleResult};
use pgherd_sql::{Kind, Part};
use pgherd_transaction::Transaction;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// More prepared statements than this on one backend, and all are closed.
const MAX_STATEMENTS: usize = 1000;

/// A parameter's type, and whether it is binary and its value.
type TypedParameter<'a> = (u32, &'a (bool, Option<Bytes>));

impl Session {
    /// Forwards to one shard: alone in autocommit, else as a participant of the block.
    pub(crate) async fn forward(&mut self, unit: Unit<'_>, entered: &Entered, part: &Part) -> Result<(), Problem> {
        if self.block.is_none() && part.fences.is_empty() && !unit.statement.shared_clock {
            return self.forward_alone(unit, entered, part).await;
        }
        let made = self.ensure_block();
        if let (true, Some(open)) = (made, self.block.open_mut()) {
            open.transaction.stay_alone();
        }
        let result = self.forward_in_block(unit, entered, part).await;
        self.finish_statement(made, result).await
    }

    /// Ends the block that was made for one statement, then tells the client its tag; in a longer block, just the tag.
    pub(crate) async fn finish_statement(
        &mut self,
        made: bool,
        result: Result<Option<String>, Problem>,
    ) -> Result<(), Problem> {
        let made = made || self.block.open().is_some_and(|open| open.for_one_statement);
        let result = self.end_statement(result).await;
        let tag = match result {
            Ok(tag) => tag,
            Err(problem) => {
                if made {
                    self.rollback_block().await?;
                }
                return Err(problem);
            }
        };
        if made {
            self.commit_block().await?;
        }
        if let Some(tag) = tag {
            self.client.put_tag(&tag);
        }
        Ok(())
    }

    /// Autocommit on one shard: PostgreSQL's own behaviour at PostgreSQL's own price.
    async fn forward_alone(&mut self, unit: Unit<'_>, entered: &Entered, part: &Part) -> Result<(), Problem> {
        let told = self.told_columns(unit, entered).await?;
        let numbers = self.numbers_of_change(unit, entered, part).await?;
        let fresh = Fresh::Statement(&entered.guard);
        let asking = Asking::new(&self.database, &self.who, self.gateway.shards.home());
        let naming = naming(unit, entered, part.shard, &asking, told.as_deref());
        let types = asking.on_shard(part.shard, unit.types).await?;
        let unit = unit.with_types(types.as_deref());
        let backend = &mut self.database.coordinator.autocommit(part.shard, &self.who).await?;
        if unit.statement.notifies {
            self.gateway.listeners.note_sender(self.cancel.process_id, backend);
        }
        self.cancel.slot.start(backend.cancel_token());
        let parsed = put_statement(backend, &self.database.cache, part, unit, self.keep(unit, entered))?;
        numbers.iter().try_for_each(|asked| asked.put(backend, false))?;
        backend.flush().await?;
        let filter = Filter {
            hide_preparation: true,
            hold_tag: false,
            hide_no_data: matches!(unit.mode, Mode::SimplePrepared),
            hide_description: unit.mode.looks(),
            foreign: asking.foreign(part.shard),
            naming: naming.as_ref(),
            holding: &[],
        };
        let end = relay(backend, &mut self.client, filter, fresh).await;
        let reply = settle(backend, parsed, end)?;
        self.cancel.slot.clear();
        // The statement's own transaction has ended: nothing undoes it any more, and the client has its reply.
        let told = told_numbers(backend, numbers, &reply).await.unwrap_or_default();
        if let Some((asked, results)) = told {
            self.note_local_numbers(&asked, &results);
        }
        match reply.error {
            Some(error) => Err(self.shard_error(part, unit, error).into()),
            None => Ok(()),
        }
    }

    /// In a block; returns the tag for the caller to send when it is due.
    pub(super) async fn forward_in_block(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        part: &Part,
    ) -> Result<Option<String>, Problem> {
        let clock = match unit.statement.shared_clock {
            true => self.clock_setting(part.shard).await?,
            false => None,
        };
        let open = self.block.open_mut().ok_or_else(no_block)?;
        enlist(&mut open.transaction, unit, part.shard).await?;
        let reads = !matches!(unit.statement.parsed.kind, Kind::Lock(_) | Kind::Show { .. });
        if !entered.analysis.read_only && reads {
            open.transaction.wrote(part.shard);
        }
        if reads && !entered.analysis.blind {
            open.transaction.catch_up(part.shard);
        }
        let mut reply = self
            .relay_in_block(unit, entered, part, clock.as_deref(), false)
            .await?;
        // A write that finds its row waits for the newest version of it. One that finds none may have looked too early.
        let found_none = matches!(reply.tag.as_deref(), Some("UPDATE 0" | "DELETE 0"));
        if entered.analysis.blind && found_none && reply.error.is_none() {
            let open = self.block.open_mut().ok_or_else(no_block)?;
            if open.transaction.catch_up(part.shard) {
                reply = self.relay_in_block(unit, entered, part, clock.as_deref(), true).await?;
            }
        }
        if let Some(error) = reply.error {
            return Err(self.shard_error(part, unit, error).into());
        }
        if let Mode::Extended {
            portal, max_rows: 1.., ..
        } = unit.mode
        {
            if reply.suspended {
                self.suspend(portal, PortalState::OnShard(part.shard, reply.holding));
                self.client.put(b's', &[]);
                return Ok(None);
            }
            self.suspend(portal, PortalState::Done(Some(part.shard)));
        }
        Ok(reply.tag)
    }

    /// Runs the statement on its participant, which is enlisted, and relays the reply. `again`: what there is to describe was relayed before.
    async fn relay_in_block(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        part: &Part,
        clock: Option<&str>,
        again: bool,
    ) -> Result<Reply, Problem> {
        let told = self.told_columns(unit, entered).await?;
        let numbers = self.numbers_of_change(unit, entered, part).await?;
        let fresh = Fresh::Statement(&entered.guard);
        let keep = self.keep(unit, entered);
        let asking = Asking::new(&self.database, &self.who, self.gateway.shards.home());
        let naming = naming(unit, entered, part.shard, &asking, told.as_deref());
        let types = asking.on_shard(part.shard, unit.types).await?;
        let unit = unit.with_types(types.as_deref());
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let lower = before_snapshot(unit, part, &mut open.transaction);
        // Another text than the one that a backend may have prepared.
        let keep = keep.filter(|_| lower.is_none());
        let part = lower.as_ref().unwrap_or(part);
        let backend = enlist(&mut open.transaction, unit, part.shard).await?;
        if unit.statement.notifies {
            self.gateway.listeners.note_sender(self.cancel.process_id, backend);
        }
        clock.iter().for_each(|setting| backend.queue_silent(setting));
        lock_fences(backend, part);
        self.cancel.slot.start(backend.cancel_token());
        let parsed = put_statement(backend, &self.database.cache, part, unit, keep)?;
        numbers.iter().try_for_each(|asked| asked.put(backend, true))?;
        backend.flush().await?;
        let filter = Filter {
            hide_preparation: true,
            hold_tag: true,
            hide_no_data: again || matches!(unit.mode, Mode::SimplePrepared),
            hide_description: unit.mode.looks(),
            foreign: asking.foreign(part.shard),
            naming: naming.as_ref(),
            holding: &[],
        };
        let end = relay(backend, &mut self.client, filter, fresh).await;
        let reply = settle(backend, parsed, end)?;
        self.cancel.slot.clear();
        let told = told_numbers(backend, numbers, &reply).await?;
        if let Some((asked, results)) = told {
            self.note_local_numbers(&asked, &results);
        }
        Ok(reply)
    }

    /// What the home shard says of the statement's columns, where the tables that shards have do not tell it.
    pub(super) async fn told_columns(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
    ) -> Result<Option<Arc<Description>>, Problem> {
        let has_rows = matches!(unit.statement.parsed.kind, Kind::Select { .. }) || entered.analysis.returning;
        if !unit.mode.describes() || !has_rows || !self.needs_told_columns(entered) {
            return Ok(None);
        }
        Ok(Some(self.description(unit, &entered.snapshot).await?))
    }

    /// Whether tables are the transaction's own, which no other connection sees yet, or a declared partition is named together with its
    /// table, which is the same to the shard.
    pub(super) fn needs_told_columns(&self, entered: &Entered) -> bool {
        let analysis = &entered.analysis;
        let declared = |table: &Arc<Table>| table.sharded().is_some_and(|s| !s.automatic);
        let overlay = || self.block.open().is_some_and(|open| open.overlay.is_some());
        analysis.touches_sharded && ((analysis.names_partition && analysis.sharded.iter().any(declared)) || overlay())
    }

    /// Under which number a statement is kept prepared on backends: that of the last schema change for what a client named;
    /// the catalog's epoch for what comes again and again and finds its row by a unique key. So a changed table gets a new
    /// statement, not an error.
    fn keep(&self, unit: Unit<'_>, entered: &Entered) -> Option<u64> {
        let epoch = entered.snapshot.epoch.0;
        let readings = unit.statement.readings;
        if readings.by_moment {
            return None;
        }
        // A shard reads constants when it prepares the statement, as the session wants it that comes first.
        let styles = match readings.by_style {
            true => self.client.styles.number(),
            false => 0,
        };
        let epoch_or_version = match unit.mode {
            Mode::Simple => None,
            Mode::SimplePrepared => Some(epoch),
            Mode::Extended { named: true, .. } => Some(self.schema_version(epoch)),
            Mode::Extended { max_rows, .. } => {
                let point = entered.analysis.point.is_some() && max_rows == 0;
                (point && unit.statement.uses() >= WORTH_KEEPING).then_some(epoch)
            }
        };
        epoch_or_version.map(|number| number ^ styles)
    }

    /// Another number after each schema change that this gateway knows of, its own and those that change the epoch, and for each
    /// search_path: names of the same text are other tables then, with other columns.
    pub(crate) fn schema_version(&self, epoch: u64) -> u64 {
        let changes = self.gateway.schema_changes.load(Ordering::Relaxed);
        // Never one of the bare epochs that other statements are kept under.
        (1 << 63) | ((changes << 32) ^ (epoch & u64::from(u32::MAX)) ^ self.settings.search_path_id)
    }

    /// A shard's error with positions in the client's text and the user's names.
    pub(crate) fn shard_error(&self, part: &Part, unit: Unit<'_>, error: ServerError) -> ServerError {
        if super::execute::names_missing_child(&error) {
            return error;
        }
        let position = error.fields().position.map(|p| pgherd_sql::map_position(part, p));
        let position = match (unit.mode, unit.template) {
            (Mode::SimplePrepared, Some(template)) => position.map(|p| template.position(p)),
            _ => position,
        };
        self.as_client_sees(error.with_position(position))
    }
}

/// Who names the tables of the columns that a shard describes; nobody where the client is not told, or knows the shard's own names.
pub(super) fn naming<'a>(
    unit: Unit<'_>,
    entered: &'a Entered,
    shard: ShardId,
    asking: &'a Asking<'a>,
    told: Option<&'a Description>,
) -> Option<Naming<'a>> {
    let reads_cursor = matches!(unit.statement.parsed.kind, Kind::Fetch { .. });
    let has_ranges = entered.analysis.touches_sharded || reads_cursor || shard != asking.home();
    (unit.mode.describes() && has_ranges).then(|| {
        Naming::new(asking, &entered.snapshot)
            .of_partition(entered.analysis.names_partition)
            .told(told)
    })
}

/// The participant on which a statement runs. LOCK TABLE and SHOW decide no snapshot, as in PostgreSQL.
pub(crate) async fn enlist<'t>(
    transaction: &'t mut Transaction,
    unit: Unit<'_>,
    shard: ShardId,
) -> Result<&'t mut Backend, Problem> {
    let backend = match unit.statement.parsed.kind {
        Kind::Lock(_) => transaction.participant_to_lock(shard).await,
        Kind::Show { .. } => transaction.participant_to_set(shard).await,
        _ => transaction.participant(shard).await,
    };
    Ok(backend?)
}

/// Opens a statement that goes through a parent: the fence's name carries the epoch, so a stale route gets 42P01.
pub(crate) fn lock_fences(backend: &mut Backend, part: &Part) {
    for fence in &part.fences {
        backend.queue_silent(&format!("LOCK TABLE {fence} IN ACCESS SHARE MODE"));
    }
}

/// A bug: a block was there a moment ago.
pub(crate) fn no_block() -> ServerError {
    ServerError::internal("a transaction block is missing")
}

/// What a connection says of the numbers that an INSERT has drawn; None where it failed.
async fn told_numbers(
    backend: &mut Backend,
    numbers: Option<Asked>,
    reply: &Reply,
) -> Result<Option<(Asked, Vec<SimpleResult>)>, Problem> {
    let Some(asked) = numbers else { return Ok(None) };
    match (backend.read_simple().await, &reply.error) {
        (Ok(results), None) => Ok(Some((asked, results))),
        (Err(error), None) => Err(error.into()),
        // In a block that failed, it fails like all that follows.
        _ => Ok(None),
    }
}

/// Undoes what was assumed of a backend's prepared statements when the Parse did not come through, and turns a
/// failed relay into what the client is told.
pub(crate) fn settle(backend: &mut Backend, parsed: Option<u64>, end: Result<End, Failure>) -> Result<Reply, Problem> {
    let reply = match end {
        Ok(End::Ready(reply)) => reply,
        Ok(End::Copy(_)) => {
            backend.taint();
            return Err(ServerError::internal("a statement that is no COPY began a copy").into());
        }
        Err(Failure::Client) => return Err(Problem::Gone),
        Err(Failure::Shard(error)) => return Err(error.into()),
        Err(Failure::Stale) => return Err(lost_lease().into()),
    };
    if let Some(id) = parsed
        && reply.error.is_some()
        && !reply.prepared
    {
        backend.remove_statement(id);
    }
    Ok(reply)
}

/// The session ends: what was sent so far may be part of an answer that is not valid any more.
pub(crate) fn lost_lease() -> ServerError {
    ServerError::new(
        SqlState::CANNOT_CONNECT_NOW,
        "this gateway lost its lease while the statement ran",
    )
    .with_detail("The cluster may have changed since; the answer is discarded.")
    .with_hint("Connect again, to this gateway or another one, and repeat the transaction.")
    .fatal()
}

/// How often a text comes before it is worth keeping prepared although no client named it.
const WORTH_KEEPING: u32 = 3;

/// The types of a template's constants as parameters; None where one of them means something else as a parameter.
pub(crate) fn constant_types(unit: Unit<'_>, entered: &Entered, template: &Template<'_>) -> Option<Vec<u32>> {
    let point = entered.analysis.point.as_ref()?;
    (unit.statement.uses() >= WORTH_KEEPING).then(|| template.types(&point.constants))?
}

/// Writes the statement into the backend's outbox: in the protocol it came by, or as a prepared statement that is kept
/// under that number. Returns the number of the prepared statement that a Parse was sent for.
pub(crate) fn put_statement(
    backend: &mut Backend,
    cache: &StatementCache,
    part: &Part,
    unit: Unit<'_>,
    keep: Option<u64>,
) -> Result<Option<u64>, Problem> {
    let (formats, describe, max_rows, portal): (&[i16], _, _, _) = match unit.mode {
        Mode::Simple => {
            backend.queue_query(&part.text)?;
            return Ok(None);
        }
        Mode::SimplePrepared => (&[], true, 0, ""),
        Mode::Extended {
            formats,
            describe,
            looks,
            max_rows,
            portal,
            ..
        } => (formats, describe || looks, max_rows, portal),
    };
    let chosen: Option<Vec<TypedParameter>> = part.parameters.as_ref().map(|numbers| {
        let of = |n: &u16| {
            let i = usize::from(*n);
            Some((unit.types.get(i).copied().unwrap_or(0), unit.parameters.get(i)?))
        };
        numbers.iter().filter_map(of).collect()
    });
    let types: Vec<u32> = match &chosen {
        Some(chosen) => chosen.iter().map(|(t, _)| *t).collect(),
        None => unit.types.to_vec(),
    };
    let mut parsed = None;
    let mut name = String::new();
    if let Some(epoch) = keep {
        if backend.statement_count() > MAX_STATEMENTS {
            for id in backend.take_statements() {
                close_statement(backend, id)?;
            }
        }
        let id = cache.id(&part.text, &types, epoch);
        name = format!("s{id}");
        if !backend.has_statement(id) {
            backend.add_statement(id);
            parsed = Some(id);
        }
    }
    // A portal that a limit may suspend keeps a name of its own, so that no other statement takes its place.
    let portal = if max_rows > 0 {
        backend_portal(portal)
    } else {
        String::new()
    };
    let out = backend.outbox();
    if max_rows > 0 {
        frontend::close(b'P', &portal, out).map_err(too_large)?;
    }
    if keep.is_none() || parsed.is_some() {
        frontend::parse(&name, &part.text, types, out).map_err(too_large)?;
    }
    match &chosen {
        Some(chosen) => bind(&portal, &name, chosen.iter().map(|(_, p)| *p), formats, out)?,
        None => bind(&portal, &name, unit.parameters.iter(), formats, out)?,
    }
    if describe {
        frontend::describe(b'P', &portal, out).map_err(too_large)?;
    }
    frontend::execute(&portal, max_rows, out).map_err(too_large)?;
    frontend::sync(out);
    backend.expect_ready();
    Ok(parsed)
}

fn bind<'a>(
    portal: &str,
    name: &str,
    parameters: impl Iterator<Item = &'a (bool, Option<Bytes>)> + Clone,
    formats: &[i16],
    out: &mut bytes::BytesMut,
) -> Result<(), Problem> {
    let bound = frontend::bind(
        portal,
        name,
        parameters.clone().map(|(binary, _)| i16::from(*binary)),
        parameters,
        |(_, value), buf| match value {
            Some(bytes) => {
                buf.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        },
        formats.iter().copied(),
        out,
    );
    bound.map_err(|_| ServerError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a parameter is too large").into())
}

/// Closes a prepared statement; its reply is read with the next one's and hidden.
fn close_statement(backend: &mut Backend, id: u64) -> Result<(), Problem> {
    backend.queue_silent(&format!("DEALLOCATE s{id}"));
    Ok(())
}

pub(super) fn too_large(error: std::io::Error) -> Problem {
    ServerError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, error.to_string()).into()
}
