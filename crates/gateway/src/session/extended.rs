//! The extended protocol. Messages gather until Sync or Flush, or until the client is silent for a moment, so that it is
//! known whether a statement is alone (autocommit) or one of several that share an implicit transaction, as in PostgreSQL.
//!
//! ParseComplete and BindComplete come from here; what they would check is checked when the portal runs (and then they are taken back), or
//! at once where a Parse is the last message. A statement is described by the home shard, which knows every table.

use super::portal::{Portal, PortalState};
use super::read_constants::Reading;
use super::simple::at_semicolon;
use super::{Mode, Problem, Session, Unit};
use crate::statements::Statement;
use crate::user_types::may_be_held;
use bytes::Bytes;
use parking_lot::Mutex;
use pgherd_model::{ServerError, SqlState};
use pgherd_query::Description;
use pgherd_sql::Kind;
use pgwire::messages::PgWireFrontendMessage;
use pgwire::messages::extendedquery::{Bind, Close, Describe, Execute, Parse};
use std::sync::Arc;
use std::time::SystemTime;

/// A pipeline longer than this is run in parts (within one implicit transaction), so that it takes no more memory.
const MAX_GATHERED: usize = 4096;

/// A prepared statement of the session; `statement` is None for an empty text.
pub(crate) struct Prepared {
    pub(crate) statement: Option<Arc<Statement>>,
    pub(crate) types: Vec<u32>,
    pub(crate) named: bool,
    /// the client's text, where the statement has a name
    pub(crate) text: Arc<str>,
    /// how many characters of the client's text are before the query: of PREPARE some, and PostgreSQL counts them in a position
    pub(crate) offset: u32,
    /// by PREPARE, not by the protocol
    pub(crate) from_sql: bool,
    pub(crate) prepared_at: SystemTime,
    /// what the client was told of it
    pub(crate) told: Mutex<Option<Told>>,
    pub(crate) reading: Option<Reading>,
}

/// A description that a client relies on, and the version of the schema that it was made under.
pub(crate) struct Told {
    version: u64,
    description: Arc<Description>,
    /// the parameters have these types still, where they would be found to have others now
    keeps_types: bool,
}

impl Told {
    pub(super) fn new(version: u64, description: Arc<Description>) -> Self {
        Self {
            version,
            description,
            keeps_types: false,
        }
    }

    fn kept_types(&self) -> Option<Vec<u32>> {
        self.keeps_types.then(|| self.description.parameter_types.clone())
    }
}

impl Session {
    /// One message of the extended protocol.
    pub(crate) async fn extended_message(&mut self, message: PgWireFrontendMessage) -> Result<(), Problem> {
        match message {
            PgWireFrontendMessage::Sync(_) => self.sync().await,
            PgWireFrontendMessage::Flush(_) => {
                self.run_gathered(false).await?;
                Ok(self.client.flush().await?)
            }
            _ if self.skip_to_sync => Ok(()),
            message => {
                self.gathered.push(message);
                if self.gathered.len() >= MAX_GATHERED {
                    self.run_gathered(false).await?;
                }
                Ok(())
            }
        }
    }

    async fn sync(&mut self) -> Result<(), Problem> {
        self.run_gathered(true).await?;
        // The Sync that came with the COPY was before its data; another one follows that.
        if std::mem::take(&mut self.copy_took_sync) {
            return Ok(());
        }
        self.skip_to_sync = false;
        if let Err(problem) = self.end_implicit().await {
            match problem {
                Problem::Error(error) => self.client.put_error(&error),
                other => return Err(other),
            }
        }
        if self.block.is_none() {
            self.portals.clear();
        }
        self.put_notifications();
        self.convert_replies().await?;
        self.put_ready();
        Ok(())
    }

    pub(super) async fn run_gathered(&mut self, to_sync: bool) -> Result<(), Problem> {
        let mut messages = std::mem::take(&mut self.gathered);
        let executes = messages
            .iter()
            .filter(|m| matches!(m, PgWireFrontendMessage::Execute(_)))
            .count();
        let shared = executes > 1 || !to_sync;
        // Where the client's buffer ended before the last Parse, and what that named.
        let mut parsed: Option<(usize, String)> = None;
        let mut i = 0;
        while i < messages.len() {
            let is_last = i + 1 == messages.len();
            let result = match &mut messages[i] {
                PgWireFrontendMessage::Parse(parse) => {
                    parsed = Some((self.client.out.len(), parse.name.clone().unwrap_or_default()));
                    self.parse(parse, is_last).await
                }
                PgWireFrontendMessage::Bind(bind) => self.bind(bind),
                PgWireFrontendMessage::Close(close) => self.close(close).await,
                PgWireFrontendMessage::Describe(describe) => {
                    let describe = Describe::new(describe.target_type, describe.name.take());
                    match messages.get(i + 1) {
                        // Described and run in one go: the shard's own RowDescription is relayed.
                        Some(PgWireFrontendMessage::Execute(execute))
                            if describe.target_type == b'P' && describe.name == execute.name =>
                        {
                            let execute = Execute::new(execute.name.clone(), execute.max_rows);
                            i += 1;
                            self.execute(&execute, true, shared).await
                        }
                        _ => self.describe(&describe).await,
                    }
                }
                PgWireFrontendMessage::Execute(execute) => {
                    let execute = Execute::new(execute.name.take(), execute.max_rows);
                    self.execute(&execute, false, shared).await
                }
                _ => Err(ServerError::new(SqlState::PROTOCOL_VIOLATION, "unexpected message")
                    .fatal()
                    .into()),
            };
            i += 1;
            match result {
                Ok(()) => self.client.flush_if_large().await?,
                Err(Problem::Error(error)) => {
                    if let Some((mark, name)) = parsed {
                        self.take_back_parse(mark, &name, &error).await;
                    }
                    self.fail(error).await?;
                    self.skip_to_sync = true;
                    break;
                }
                Err(other) => return Err(other),
            }
        }
        messages.clear();
        self.gathered = messages;
        // Where a Flush began a COPY, its Sync came while data was expected, and was ignored there.
        self.copy_took_sync &= to_sync;
        Ok(())
    }

    /// An error that PostgreSQL reports at Parse is known here when the portal runs. Where the client has not been told more than ParseComplete
    /// and BindComplete yet, it is not told these: a driver would take the statement for prepared.
    async fn take_back_parse(&mut self, mark: usize, name: &str, error: &ServerError) {
        const PARSED: &[u8] = b"1\0\0\0\x04";
        const BOUND: &[u8] = b"2\0\0\0\x04";
        let told = self.client.out.get(mark..).unwrap_or_default();
        let is_all = told
            .strip_prefix(PARSED)
            .is_some_and(|rest| rest.is_empty() || rest == BOUND);
        if !is_all || !error.sqlstate().code().starts_with("42") || self.converter().is_some() {
            return;
        }
        let Some(prepared) = self.prepared.get(name).cloned() else {
            return;
        };
        let Some(statement) = &prepared.statement else {
            return;
        };
        let judged = self.read_apart(&statement.text, &prepared.types).await;
        let is_same =
            |e: &ServerError| e.sqlstate() == error.sqlstate() && e.fields().message == error.fields().message;
        if judged.is_some_and(|judged| judged.is_err_and(|e| is_same(&e))) {
            self.client.out.truncate(mark);
            self.prepared.remove(name);
            self.portals
                .retain(|_, portal| !Arc::ptr_eq(&portal.prepared, &prepared));
        }
    }

    /// What PostgreSQL says against a statement that is only to be prepared for now.
    async fn judge(&mut self, statement: &Arc<Statement>, types: &[u32]) -> Result<(), Problem> {
        let kind = &statement.parsed.kind;
        if self.block.is_failed() || answers_nothing(kind) || matches!(kind, Kind::Execute(_) | Kind::Fetch { .. }) {
            return Ok(());
        }
        let unit = Unit {
            types,
            ..Unit::plain(statement)
        };
        let entered = self.enter(unit).await?;
        self.description(unit, &entered.snapshot).await.map(|_| ())
    }

    /// `is_last`: nothing behind it uses the statement before the client waits for an answer.
    async fn parse(&mut self, parse: &mut Parse, is_last: bool) -> Result<(), Problem> {
        let name = parse.name.take().unwrap_or_default();
        if let Some(explicit) = self.explicit_escapes(&parse.query) {
            parse.query = explicit.text;
        }
        let statements = self.database.cache.parse(&parse.query)?;
        if statements.len() > 1 {
            return Err(ServerError::new(
                SqlState::SYNTAX_ERROR,
                "cannot insert multiple commands into a prepared statement",
            )
            .into());
        }
        let statement = statements.first().cloned();
        if self.block.is_failed() && statement.as_ref().is_some_and(|s| !ends_failed_block(&s.parsed.kind)) {
            self.refuse_in_failed(&parse.query).await?;
        }
        if !name.is_empty() && self.prepared.contains_key(&name) {
            return Err(ServerError::new(
                SqlState::DUPLICATE_PREPARED_STATEMENT,
                format!("prepared statement \"{name}\" already exists"),
            )
            .into());
        }
        let named = !name.is_empty();
        let types = std::mem::take(&mut parse.type_oids);
        if let (true, Some(statement)) = (is_last, &statement) {
            self.judge(statement, &types).await.map_err(|p| match p {
                Problem::Error(error) => at_semicolon(error, &parse.query).into(),
                other => other,
            })?;
        }
        let statement = match statement {
            Some(statement) if named => Some(self.at_this_moment(statement, &types).await),
            statement => statement,
        };
        let reading = self.reading(statement.as_ref());
        self.prepared.insert(
            name,
            Arc::new(Prepared {
                statement,
                reading,
                types,
                named,
                text: if named {
                    parse.query.as_str().into()
                } else {
                    Arc::default()
                },
                offset: 0,
                from_sql: false,
                prepared_at: SystemTime::now(),
                told: Mutex::default(),
            }),
        );
        self.client.put(b'1', &[]);
        Ok(())
    }

    fn bind(&mut self, bind: &mut Bind) -> Result<(), Problem> {
        let name = bind.statement_name.take().unwrap_or_default();
        let prepared = self.prepared.get(&name).cloned().ok_or_else(|| no_statement(&name))?;
        if self.block.is_failed()
            && !prepared
                .statement
                .as_ref()
                .is_some_and(|s| ends_failed_block(&s.parsed.kind))
        {
            self.check_not_failed()?;
        }
        let portal = bind.portal_name.take().unwrap_or_default();
        if !portal.is_empty() && self.portals.contains_key(&portal) {
            let error = ServerError::new(
                SqlState::from_code("42P03"),
                format!("cursor \"{portal}\" already exists"),
            );
            return Err(error.into());
        }
        let (codes, values) = (&bind.parameter_format_codes, std::mem::take(&mut bind.parameters));
        if codes.len() > 1 && codes.len() != values.len() {
            return Err(ServerError::new(
                SqlState::PROTOCOL_VIOLATION,
                format!(
                    "bind message has {} parameter formats but {} parameters",
                    codes.len(),
                    values.len()
                ),
            )
            .into());
        }
        let binary = |i: usize| crate::client::format_of(codes, i) == 1;
        let parameters = values
            .into_iter()
            .enumerate()
            .map(|(i, value)| (binary(i), value))
            .collect();
        let formats = std::mem::take(&mut bind.result_column_format_codes);
        let bound_at = (!portal.is_empty()).then(SystemTime::now);
        self.portals.insert(
            portal,
            Portal {
                prepared,
                parameters,
                formats,
                bound_formats: None,
                state: PortalState::Ready,
                bound_at,
            },
        );
        self.client.put(b'2', &[]);
        Ok(())
    }

    async fn close(&mut self, close: &mut Close) -> Result<(), Problem> {
        let name = close.name.take().unwrap_or_default();
        match close.target_type {
            b'S' => {
                self.prepared.remove(&name);
            }
            _ => {
                self.close_portal(&name).await?;
            }
        }
        self.client.put(b'3', &[]);
        Ok(())
    }

    pub(super) async fn describe(&mut self, describe: &Describe) -> Result<(), Problem> {
        let name = describe.name.clone().unwrap_or_default();
        if describe.target_type == b'P' && !self.portals.contains_key(&name) && self.describe_cursor(&name).await? {
            return Ok(());
        }
        let (prepared, formats, parameters) = if describe.target_type == b'S' {
            (
                self.prepared.get(&name).cloned().ok_or_else(|| no_statement(&name))?,
                Vec::new(),
                Vec::new(),
            )
        } else {
            let portal = self.portals.get(&name).ok_or_else(|| no_portal(&name))?;
            (
                portal.prepared.clone(),
                portal.formats.clone(),
                portal.parameters.clone(),
            )
        };
        let of_statement = describe.target_type == b'S';
        let Some(statement) = prepared.statement.as_ref().filter(|s| !answers_nothing(&s.parsed.kind)) else {
            if of_statement {
                self.client.put(b't', &0i16.to_be_bytes());
            }
            self.client.put(b'n', &[]);
            return Ok(());
        };
        self.check_not_failed()?;
        let mode = Mode::Extended {
            formats: &formats,
            describe: true,
            looks: false,
            max_rows: 0,
            named: prepared.named,
            portal: &name,
        };
        let unit = Unit {
            statement,
            types: &prepared.types,
            parameters: &parameters,
            mode,
            template: None,
        };
        let entered = self.enter(unit).await?;
        let described = match &statement.parsed.kind {
            Kind::Execute(_) => self.describe_stored(unit).await?,
            Kind::Fetch { name, moves: false } => match self.describe_fetch(name, &entered.snapshot).await? {
                Some(described) => described,
                None => self.description(unit, &entered.snapshot).await?,
            },
            _ => self.description(unit, &entered.snapshot).await?,
        };
        if of_statement || prepared.told.lock().is_none() {
            let version = self.schema_version(entered.snapshot.epoch.0);
            *prepared.told.lock() = Some(Told::new(version, described.clone()));
        }
        if of_statement {
            let mut body = (described.parameter_types.len() as i16).to_be_bytes().to_vec();
            described
                .parameter_types
                .iter()
                .for_each(|t| body.extend_from_slice(&t.to_be_bytes()));
            self.client.put(b't', &body);
        }
        match &described.columns {
            Some(columns) => self.client.put_row_description(columns, &formats),
            None => self.client.put(b'n', &[]),
        }
        Ok(())
    }

    pub(super) async fn execute(&mut self, execute: &Execute, describe: bool, shared: bool) -> Result<(), Problem> {
        let name = execute.name.clone().unwrap_or_default();
        let portal = self.portals.get_mut(&name).ok_or_else(|| no_portal(&name))?;
        let Some(statement) = portal.prepared.statement.clone() else {
            if describe {
                self.client.put(b'n', &[]);
            }
            self.client.put(b'I', &[]);
            return Ok(());
        };
        // Also a portal that was run before: what it gave last is no answer any more.
        if !ends_failed_block(&statement.parsed.kind) {
            self.block.check_not_failed()?;
        }
        if portal.bound_formats.is_some() && !matches!(portal.state, PortalState::Done(_)) {
            return Err(super::suspended::in_other_formats().into());
        }
        match std::mem::replace(&mut portal.state, PortalState::Done(None)) {
            PortalState::Ready => {}
            PortalState::OnShard(shard, holding) => {
                portal.state = PortalState::Done(Some(shard));
                let result = self.resume_on_shard(&name, (shard, holding), execute.max_rows).await;
                return self.end_statement(result).await;
            }
            PortalState::Rows(rows) => return self.resume_rows(&name, rows, execute.max_rows).await,
            // A query that has come to its end has no more rows; anything else is not done twice.
            PortalState::Done(shard) if matches!(statement.parsed.kind, Kind::Select { .. }) => {
                portal.state = PortalState::Done(shard);
                if describe {
                    self.describe(&Describe::new(b'P', Some(name))).await?;
                }
                self.client.put_tag("SELECT 0");
                return Ok(());
            }
            PortalState::Done(_) => {
                let error = ServerError::new(
                    SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("portal \"{name}\" cannot be run"),
                );
                return Err(error.into());
            }
        }
        let prepared = portal.prepared.clone();
        self.cancel.standing.begin(match prepared.text.is_empty() {
            true => &statement.text,
            false => &prepared.text,
        });
        let (parameters, formats) = (
            std::mem::take(&mut portal.parameters),
            std::mem::take(&mut portal.formats),
        );
        let kind = &statement.parsed.kind;
        let as_read = match &prepared.reading {
            None => None,
            reading => {
                let read = self.as_read(&statement, &prepared.types, reading.as_ref());
                Box::pin(read).await?
            }
        };
        if shared {
            self.begin_implicit(kind);
        }
        let silent = describe && answers_nothing(kind);
        if silent {
            self.client.put(b'n', &[]);
        }
        let described = describe && !silent;
        // A client that has had the rows described knows whether there is anything to translate.
        let looks = !described
            && formats.contains(&1)
            && prepared
                .told
                .lock()
                .as_ref()
                .is_none_or(|told| may_be_held(&told.description));
        let mode = Mode::Extended {
            formats: &formats,
            describe: described,
            looks,
            max_rows: execute.max_rows.max(0),
            named: prepared.named,
            portal: &name,
        };
        let unit = Unit {
            statement: as_read.as_ref().unwrap_or(&statement),
            types: &prepared.types,
            parameters: &parameters,
            mode,
            template: None,
        };
        let kept = self.check_told(unit, &prepared).await?;
        let unit = Unit {
            types: kept.as_deref().unwrap_or(unit.types),
            ..unit
        };
        let result = match self.converter() {
            None => self.run(unit).await,
            Some(_) => self.run_converted(unit).await,
        };
        // Only a portal that has stopped is read from again.
        if execute.max_rows > 0
            && let Some(portal) = self.portals.get_mut(&name)
        {
            portal.formats = formats;
        }
        result
    }

    async fn run_converted(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let parameters = self.decode_parameters(unit).await?;
        let unit = Unit {
            parameters: &parameters,
            ..unit
        };
        self.expect_columns(unit).await?;
        self.run(unit).await
    }

    /// As PostgreSQL: a statement whose columns are not any more what the client was told is not run. Its parameters keep their types: gives
    /// those where it would have others now.
    pub(super) async fn check_told(
        &mut self,
        unit: Unit<'_>,
        prepared: &Prepared,
    ) -> Result<Option<Vec<u32>>, Problem> {
        let is_query = matches!(
            unit.statement.parsed.kind,
            Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge
        );
        let (version, then) = match &*prepared.told.lock() {
            None => return Ok(None),
            Some(told) => {
                let version = self.schema_version(self.catalog().snapshot().epoch.0);
                if told.version == version || !is_query || self.block.is_failed() {
                    return Ok(told.kept_types());
                }
                (version, told.description.clone())
            }
        };
        let entered = self.enter(unit).await?;
        let mut now = self.description(unit, &entered.snapshot).await?;
        let keeps_types = now.parameter_types != then.parameter_types;
        if keeps_types {
            let unit = Unit {
                types: &then.parameter_types,
                ..unit
            };
            now = self.description(unit, &entered.snapshot).await?;
        }
        let columns = |d: &Description| -> Option<Vec<_>> {
            let columns = d.columns.as_ref()?.iter();
            Some(columns.map(|c| (c.name.clone(), c.type_oid, c.type_modifier)).collect())
        };
        if columns(&then) != columns(&now) {
            return Err(changed_result_type().into());
        }
        if let Some(told) = &mut *prepared.told.lock() {
            told.version = version;
            told.keeps_types = keeps_types;
        }
        Ok(keeps_types.then(|| then.parameter_types.clone()))
    }

    /// Parameters in binary whose text is in the client's encoding, as the shards are to have them.
    async fn decode_parameters(&mut self, unit: Unit<'_>) -> Result<Vec<(bool, Option<Bytes>)>, Problem> {
        let Some(encoding) = self.converter().cloned() else {
            return Ok(unit.parameters.to_vec());
        };
        let is_plain = |value: &Option<Bytes>| value.as_ref().is_none_or(|v| v.is_ascii());
        if unit.parameters.iter().all(|(binary, value)| !binary || is_plain(value)) {
            return Ok(unit.parameters.to_vec());
        }
        let entered = self.enter(unit).await?;
        let types = self.description(unit, &entered.snapshot).await?.parameter_types.clone();
        self.know_shapes(types.iter().copied()).await?;
        let shapes = &self.client.shapes;
        let decode = |(i, (binary, value)): (usize, &(bool, Option<Bytes>))| {
            let type_oid = types.get(i).copied().unwrap_or(0);
            let value = match value {
                Some(value) if *binary => Some(encoding.decode_parameter(value, type_oid, shapes)?),
                other => other.clone(),
            };
            Ok::<_, ServerError>((*binary, value))
        };
        Ok(unit
            .parameters
            .iter()
            .enumerate()
            .map(decode)
            .collect::<Result<_, _>>()?)
    }
}

/// Drivers that keep prepared statements know the error by the routine that reports it, and prepare anew: asyncpg, JDBC.
fn changed_result_type() -> ServerError {
    let message = "cached plan must not change result type";
    let mut error = ServerError::new(SqlState::FEATURE_NOT_SUPPORTED, message);
    let reported = [(b'F', "plancache.c"), (b'L', "718"), (b'R', "RevalidateCachedQuery")];
    let fields = reported.map(|(letter, value)| (letter, value.to_owned()));
    error.fields_mut().other.extend(fields);
    error
}

/// Statements that the gateway answers itself, always without rows.
fn answers_nothing(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Begin { .. }
            | Kind::Commit { .. }
            | Kind::Rollback { .. }
            | Kind::Savepoint(_)
            | Kind::RollbackTo(_)
            | Kind::Release(_)
            | Kind::PrepareTransaction(_)
            | Kind::CommitPrepared(_)
            | Kind::RollbackPrepared(_)
            | Kind::SetTransaction { .. }
            | Kind::SetConstraints
            | Kind::Set { .. }
            | Kind::Reset(_)
            | Kind::Discard(_)
            | Kind::Copy(_)
            | Kind::CallPgherd { .. }
            | Kind::Ddl(_)
            | Kind::Vacuum(_)
            | Kind::Analyze(_)
            | Kind::Reindex(..)
            | Kind::Cluster(_)
            | Kind::Prepare { .. }
            | Kind::Deallocate(_)
            | Kind::Declare { .. }
            | Kind::Close(_)
            | Kind::Listen(_)
            | Kind::Unlisten(_)
            | Kind::Notify(_)
            | Kind::Database(_)
            | Kind::WholeServer
    )
}

/// What may be parsed and bound in a failed block.
fn ends_failed_block(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Commit { .. } | Kind::Rollback { .. } | Kind::RollbackTo(_) | Kind::PrepareTransaction(_)
    )
}

/// 26000 with PostgreSQL's words.
pub(crate) fn no_statement(name: &str) -> ServerError {
    let text = match name {
        "" => "unnamed prepared statement does not exist".to_owned(),
        name => format!("prepared statement \"{name}\" does not exist"),
    };
    ServerError::new(SqlState::INVALID_STATEMENT_NAME, text)
}

fn no_portal(name: &str) -> ServerError {
    ServerError::new(
        SqlState::INVALID_CURSOR_NAME,
        format!("portal \"{name}\" does not exist"),
    )
}
