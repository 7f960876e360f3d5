//! A client's session: reads messages, runs statements, answers.
//!
//! [`Session::serve`] is the loop. A simple query is in [`simple`], the extended protocol in [`extended`]; both end in
//! [`execute`], which gives each [`Unit`] (a statement with its parameters) to the room's own branch: transaction
//! control in [`block`] and [`prepared`], settings in [`settings`], [`set_config`], [`constraints`] and [`encoding_setting`], one shard in [`forward`], several in [`scatter`] and [`plan`] ([`for_query`]),
//! schema change in [`schema`], [`table_as`], [`database_statements`] and [`whole_server`], [`copy`], LISTEN in [`notifications`], and SQL-level PREPARE
//! in [`stored`], the protocol's function call in [`function_call`]. Some are run in other words: [`rewritten`], [`sequences`], [`own_state`], [`shown_catalogs`]. What SERIALIZABLE locks is in [`serializable`] and [`row_locks`].

mod block;
mod constants;
mod constraints;
mod copied_database;
mod copy;
mod cursor;
mod database_statements;
mod encoding_setting;
mod enter;
mod exact_text;
mod execute;
pub(crate) mod explain;
mod explain_parts;
mod extended;
mod first_violation;
mod for_query;
mod forward;
mod function_call;
mod local_numbers;
mod lock_modes;
mod locked_cursor;
mod locking_subqueries;
pub(crate) mod notifications;
pub(crate) mod own_state;
mod plan;
mod portal;
mod prepared;
mod procedural;
pub(crate) mod read_constants;
pub(crate) mod relay;
mod resolve;
mod returning_query;
mod rewritten;
mod row_locks;
mod scatter;
mod schema;
mod sequences;
mod serializable;
mod set_config;
pub(crate) mod settings;
mod settings_statements;
pub(crate) mod shown_catalogs;
mod simple;
mod snapshots;
mod start;
mod stored;
mod suspended;
mod syntax;
mod table_as;
mod temporary;
mod watched;
mod whole_server;
mod with_writes;

use crate::cancel::{CancelSlot, Registered};
use crate::client::{Client, Gone};
use crate::databases::Database;
use crate::listener::Shared;
use crate::statements::Statement;
use crate::template::Template;
use block::Block;
use bytes::Bytes;
use extended::Prepared;
use pgherd_catalog::Catalog;
use pgherd_model::{Epoch, Name, ServerError, SqlState};
use pgherd_shards::{Backend, Identity, SimpleResult};
use pgherd_sql::ParameterValue;
use pgwire::messages::PgWireFrontendMessage;
use portal::Portal;
use settings::Settings;
pub(crate) use start::StartUp;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// One client's session.
pub(crate) struct Session {
    gateway: Arc<Shared>,
    /// dropped before the client, whose socket it knows
    cancel: Registered,
    client: Client,
    who: Identity,
    database: Arc<Database>,
    settings: Settings,
    prepared: HashMap<String, Arc<Prepared>>,
    portals: HashMap<String, Portal>,
    block: Block,
    /// its home-shard connection listens
    listening: Option<notifications::Listening>,
    /// cursors WITH HOLD of transactions that have committed
    held_cursors: HashMap<String, block::GatheredCursor>,
    /// what the client wrote to declare its cursors
    cursor_texts: HashMap<String, Arc<str>>,
    /// names of temporary tables, which live on the pinned backend
    temporary: HashSet<String>,
    /// the open block has made or dropped some of them, or may have: they are read again when it, or a part of it, is undone or ends
    temporary_changed: bool,
    /// the parameters that the client was told of since its block began, with the last values: what undoes them is told as well
    told_in_block: HashMap<String, String>,
    /// numbers drawn for defaults, which `currval()` and `lastval()` must know
    drawn: sequences::Drawn,
    /// whether the role may lock rows of a table: under which settings and epoch, and the answer
    row_locks: HashMap<Name, (u64, Epoch, bool)>,
    /// extended protocol: messages since the last Sync or Flush
    gathered: Vec<PgWireFrontendMessage>,
    /// extended protocol: an error came, skip to Sync
    skip_to_sync: bool,
    /// extended protocol: a COPY FROM STDIN began, in which a Sync counts for nothing
    copy_took_sync: bool,
    /// what the statement used that EXPLAIN ANALYZE runs
    used: Option<explain::Used>,
    /// the statement that EXPLAIN explains would be alone in its transaction
    pub(crate) explains_alone: bool,
    /// EXPLAIN takes a statement apart: its parts give their plans
    pub(crate) explaining: Option<explain_parts::Explaining>,
}

/// A statement with all that it takes to run it.
#[derive(Clone, Copy)]
pub(crate) struct Unit<'a> {
    pub(crate) statement: &'a Arc<Statement>,
    /// declared types of the parameters
    pub(crate) types: &'a [u32],
    /// the parameters: binary format or not, value
    pub(crate) parameters: &'a [(bool, Option<Bytes>)],
    /// the statement stands for a text with these constants in place of its parameters
    pub(crate) template: Option<&'a Template<'a>>,
    pub(crate) mode: Mode<'a>,
}

impl<'a> Unit<'a> {
    /// The statement as a simple query, without parameters.
    pub(crate) fn plain(statement: &'a Arc<Statement>) -> Self {
        Self {
            statement,
            types: &[],
            parameters: &[],
            template: None,
            mode: Mode::Simple,
        }
    }

    /// The same with parameters of these types, if there are others than its own.
    pub(crate) fn with_types<'b>(self, types: Option<&'b [u32]>) -> Unit<'b>
    where
        'a: 'b,
    {
        match types {
            Some(types) => Unit { types, ..self },
            None => self,
        }
    }

    /// The parameters as routing wants them, with these types.
    pub(crate) fn values(&self, types: &[u32]) -> Vec<ParameterValue<'a>> {
        let value = |(i, (binary, value)): (usize, &'a (bool, Option<Bytes>))| ParameterValue {
            bytes: value.as_deref(),
            binary: *binary,
            type_oid: types.get(i).copied().unwrap_or(0),
        };
        self.parameters.iter().enumerate().map(value).collect()
    }
}

/// By which protocol a statement came.
#[derive(Clone, Copy)]
pub(crate) enum Mode<'a> {
    /// rows in text, with a RowDescription
    Simple,
    /// the same for the client, but the shard gets it as a prepared statement, with its constants as parameters
    SimplePrepared,
    /// Bind's formats; RowDescription only when the portal is described
    Extended {
        formats: &'a [i16],
        describe: bool,
        /// a shard describes the rows all the same, since their binary values may have OIDs of types in them
        looks: bool,
        max_rows: i32,
        /// a prepared statement's text is worth keeping prepared on backends
        named: bool,
        /// the client's name of the portal
        portal: &'a str,
    },
}

impl Mode<'_> {
    /// A part of a statement, or one that is only measured: its rows come in text, and are not described.
    pub(crate) const HIDDEN: Mode<'static> = Mode::Extended {
        formats: &[],
        describe: false,
        looks: false,
        max_rows: 0,
        named: false,
        portal: "",
    };

    pub(crate) fn formats(&self) -> &[i16] {
        match self {
            Mode::Simple | Mode::SimplePrepared => &[],
            Mode::Extended { formats, .. } => formats,
        }
    }

    /// Whether the shard describes rows that the client has had described.
    pub(crate) fn looks(&self) -> bool {
        matches!(self, Mode::Extended { looks: true, .. })
    }

    pub(crate) fn describes(&self) -> bool {
        match self {
            Mode::Simple | Mode::SimplePrepared => true,
            Mode::Extended { describe, .. } => *describe,
        }
    }
}

/// Why a statement did not run to its end.
#[derive(Debug)]
pub(crate) enum Problem {
    /// told to the client; the session goes on
    Error(ServerError),
    /// it cannot be run by its template: parse the whole text
    NeedsWholeText,
    /// it has the transaction's time in it, and would take it from several shards
    NeedsSharedClock,
    /// its WITH writes on several shards: it must be run in parts
    NeedsParts,
    /// its RETURNING reads tables: it must be run as a WITH that writes
    NeedsReturningQuery,
    /// its subqueries that lock rows run first
    NeedsLocks,
    /// the client is gone, or the session must end
    Gone,
}

impl From<ServerError> for Problem {
    fn from(error: ServerError) -> Self {
        Self::Error(error)
    }
}

impl From<pgherd_shards::Error> for Problem {
    fn from(error: pgherd_shards::Error) -> Self {
        Self::Error(error.into())
    }
}

impl From<pgherd_transaction::Error> for Problem {
    fn from(error: pgherd_transaction::Error) -> Self {
        Self::Error(error.into())
    }
}

impl From<pgherd_catalog::Error> for Problem {
    fn from(error: pgherd_catalog::Error) -> Self {
        Self::Error(error.into())
    }
}

impl From<std::io::Error> for Problem {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// Returns when the limit is over; without one, never.
async fn too_long_idle(limit: Option<(Duration, ServerError)>) -> ServerError {
    match limit {
        Some((limit, error)) => {
            tokio::time::sleep(limit).await;
            error
        }
        None => std::future::pending().await,
    }
}

/// How long the messages of a pipeline wait for its Sync or Flush. A client may wait for an error, which PostgreSQL would have
/// told by then.
const GATHER_LIMIT: Duration = Duration::from_millis(20);

/// Returns when a client with messages that wait has said no more for a while; without such messages, never.
async fn lull(waits: bool) {
    match waits {
        true => tokio::time::sleep(GATHER_LIMIT).await,
        false => std::future::pending().await,
    }
}

/// Returns when notifications have come; where nobody listens, never.
async fn notified(pin: Option<Arc<pgherd_shards::Pin>>) -> Result<(), pgherd_shards::Error> {
    match pin {
        Some(pin) => pin.notified().await,
        None => std::future::pending().await,
    }
}

impl Session {
    /// Serves the client until it leaves or the gateway stops.
    pub(crate) async fn serve(mut self) {
        let mut stopping = self.gateway.stopping.clone();
        let slot = self.cancel.slot.clone();
        loop {
            if slot.is_terminated() {
                self.client.put_error(&own_state::terminated());
                let _ = self.client.flush().await;
                break;
            }
            // An answer that is whole does not wait for what the client has sent behind it.
            let is_due = !self.client.has_message() || self.client.has_whole_answer();
            if is_due && self.client.flush().await.is_err() {
                break;
            }
            let idle = self.idle_limit();
            let listening = self.notified();
            let waits = !self.gathered.is_empty();
            let message = tokio::select! {
                biased;
                message = self.client.next() => message,
                () = slot.terminated() => continue,
                () = lull(waits) => {
                    if self.run_gathered(false).await.is_err() {
                        break;
                    }
                    continue;
                }
                told = notified(listening) => match told {
                    Ok(()) => {
                        self.put_notifications();
                        continue;
                    }
                    Err(error) => {
                        self.client.put_error(&ServerError::from(error).fatal());
                        let _ = self.client.flush().await;
                        break;
                    }
                },
                error = too_long_idle(idle) => {
                    self.client.put_error(&error.fatal());
                    let _ = self.client.flush().await;
                    break;
                }
                _ = stopping.changed() => {
                    let error = ServerError::new(
                        SqlState::ADMIN_SHUTDOWN,
                        "terminating connection due to administrator command",
                    );
                    self.client.put_error(&error.fatal());
                    let _ = self.client.flush().await;
                    break;
                }
            };
            let done = match message {
                Ok(PgWireFrontendMessage::Terminate(_)) | Err(Gone::Closed) => break,
                Err(Gone::Garbage(error)) => {
                    self.client.put_error(&error.fatal());
                    let _ = self.client.flush().await;
                    break;
                }
                Err(Gone::Text(error)) => self.refuse_text(error).await,
                // What a client still sends for a COPY that has failed.
                Err(Gone::Data(_)) => Ok(()),
                Err(Gone::FunctionCall(body)) => {
                    let done = self.function_call(body).await;
                    self.end_statement(done).await
                }
                Ok(message) => {
                    let done = self.message(message).await;
                    self.end_statement(done).await
                }
            };
            if done.is_err() {
                break;
            }
        }
        self.abandon().await;
    }

    /// How long the client may stay silent now, and what it is told then. The gateway keeps these limits itself: a block may
    /// have touched no shard yet, and the pools' connections are not the session's.
    fn idle_limit(&self) -> Option<(Duration, ServerError)> {
        let timeouts = &self.settings.timeouts;
        if !self.gathered.is_empty() || self.skip_to_sync {
            return None;
        }
        match self.block.open() {
            Some(open) if open.implicit => None,
            Some(_) => timeouts.idle_in_transaction.map(|limit| {
                let message = "terminating connection due to idle-in-transaction timeout";
                (limit, ServerError::new(SqlState::IDLE_IN_TRANSACTION_TIMEOUT, message))
            }),
            None => timeouts.idle.map(|limit| {
                let message = "terminating connection due to idle-session timeout";
                (limit, ServerError::new(SqlState::IDLE_SESSION_TIMEOUT, message))
            }),
        }
    }

    async fn message(&mut self, message: PgWireFrontendMessage) -> Result<(), Problem> {
        match message {
            PgWireFrontendMessage::Query(query) => {
                // What came before it without a Sync is run before it.
                self.run_gathered(false).await?;
                match self.skip_to_sync {
                    true => Ok(()),
                    false => self.simple_query(&query.query).await,
                }
            }
            // Left over from a COPY that failed, they are ignored, as by PostgreSQL; not where it is among what was sent just before.
            message @ (PgWireFrontendMessage::CopyData(_)
            | PgWireFrontendMessage::CopyDone(_)
            | PgWireFrontendMessage::CopyFail(_)) => {
                if self.gathered.is_empty() {
                    return Ok(());
                }
                self.client.put_back(message);
                self.run_gathered(false).await
            }
            message => self.extended_message(message).await,
        }
    }

    /// ReadyForQuery.
    fn put_ready(&mut self) {
        let status = self.block.status();
        let settings = &self.settings;
        let standing = &self.cancel.standing;
        standing.ready(status, settings.fingerprint(), || settings.application_name());
        self.client.put_ready(status);
    }

    /// A statement could not be read: an error, and in the simple protocol ReadyForQuery.
    async fn refuse_text(&mut self, error: (ServerError, bool)) -> Result<(), Problem> {
        let (error, simple) = error;
        self.fail(error).await?;
        if !simple {
            self.skip_to_sync = true;
            self.gathered.clear();
            return Ok(());
        }
        if let Err(Problem::Gone) = self.end_implicit().await {
            return Err(Problem::Gone);
        }
        self.put_ready();
        Ok(())
    }

    /// The catalog of the session's database.
    fn catalog(&self) -> &Arc<Catalog> {
        &self.database.catalog
    }

    /// Runs a statement of the gateway's own on the home shard, in the session's transaction if it has one there.
    async fn ask_home(&mut self, sql: &str) -> Result<Vec<SimpleResult>, ServerError> {
        self.ask_home_under(sql, None).await
    }

    /// The same; a request to cancel that comes to this slot reaches it.
    async fn ask_home_under(&mut self, sql: &str, slot: Option<&CancelSlot>) -> Result<Vec<SimpleResult>, ServerError> {
        let home = self.gateway.shards.home();
        let mut alone;
        let backend = match self.block.open_mut() {
            // Asking for settings decides no snapshot.
            Some(open) if open.transaction.enlisted(home) => open.transaction.participant_to_set(home).await?,
            _ => {
                alone = self.home_backend().await?;
                &mut alone
            }
        };
        let Some(slot) = slot else {
            return Ok(backend.simple(sql).await?);
        };
        slot.start(backend.cancel_token());
        let asked = backend.simple(sql).await;
        slot.clear();
        Ok(asked?)
    }

    /// A home-shard connection of the session's role, outside of its transaction.
    pub(crate) async fn home_backend(&self) -> Result<Backend, ServerError> {
        let home = self.gateway.shards.home();
        let checked_out = self.database.coordinator.autocommit(home, &self.who).await;
        Ok(checked_out?)
    }

    /// The client is gone: what is open is rolled back.
    async fn abandon(&mut self) {
        if let Some(open) = self.block.take() {
            let change = open.change;
            let _ = open.transaction.rollback().await;
            if let Some(change) = change {
                let _ = change.finish().await;
            }
        }
    }
}
