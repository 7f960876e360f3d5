//! Gives each statement to the branch that runs it, and runs those that routing decides.

use super::enter::Entered;
use super::forward::constant_types;
use super::syntax::is_doubtful;
use super::{Mode, Problem, Session, Unit};
use crate::cancel::StatementTimer;
use crate::standing::Keeps;
use crate::template::Template;
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::{Kind, ParameterValue, Route};
use std::sync::Arc;

/// How often a stale route is tried again after a refresh.
const STALE_ROUTE_TRIES: usize = 5;

/// PostgreSQL reads a statement before it draws from a sequence. One without parameters is read in the same round trip, others are
/// described, which is remembered.
fn is_judged_with_defaults(unit: Unit<'_>) -> bool {
    matches!(unit.mode, Mode::Simple) && unit.parameters.is_empty() && unit.statement.text.len() < LONGEST_JUDGED
}

/// Reads an INSERT on the home shard before its defaults are drawn there.
const JUDGE: &str = "PREPARE pgherd_judged AS ";

/// Bytes of an INSERT beyond which reading it twice costs more than the numbers are worth that it draws in vain where it is wrong.
const LONGEST_JUDGED: usize = 16 << 10;

impl Session {
    /// Runs one statement and puts its reply, up to CommandComplete, into the client's buffer.
    pub(crate) async fn run(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let mark = self.mark();
        match self.run_once(unit).await {
            Err(Problem::Error(error)) if self.runs_without_setting(&error, mark) => self.run_once(unit).await,
            result => result,
        }
    }

    async fn run_once(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let limit = self.settings.timeouts.statement;
        let timer = limit.map(|limit| StatementTimer::start(&self.cancel.slot, limit));
        let result = self.run_by_kind(unit).await;
        let result = self.end_statement(result).await;
        let result = self.end_block_for_one(result).await;
        match timer {
            Some(timer) => match timer.end().await {
                true => result.map_err(timed_out),
                false => result,
            },
            None => result,
        }
    }

    /// Tells the transaction that a statement has ended. One that was cancelled to end a deadlock fails with that.
    pub(crate) async fn end_statement<T>(&mut self, result: Result<T, Problem>) -> Result<T, Problem> {
        let Some(open) = self.block.open_mut() else {
            return result;
        };
        let deadlock = open.transaction.end_statement().await;
        let strict = open.transaction.is_strict();
        if strict {
            open.transaction.allow_writes().await?;
        }
        if let Some(limit) = self.settings.timeouts.idle_in_transaction {
            open.transaction.keep_alive(limit).await;
        }
        let result = match (deadlock, result) {
            (Some(detail), Err(Problem::Error(error))) => {
                Err(pgherd_transaction::deadlock_error(error, &detail).into())
            }
            (_, result) => result,
        };
        match result {
            Err(Problem::Error(error)) if strict => Err(self.told_of_strict(error).into()),
            result => result,
        }
    }

    pub(super) async fn run_by_kind(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let kind = &unit.statement.parsed.kind;
        if self.control(kind, unit).await? || Box::pin(self.two_phases(unit)).await? {
            return Ok(());
        }
        if self.block.is_failed() {
            self.refuse_in_failed(&unit.statement.text).await?;
        }
        if unit.statement.sets_config
            && let Some(instead) = Box::pin(self.take_over_set_config(unit)).await?
        {
            // There may be more in it that is about the session.
            return self.run_all_instead(unit, &instead).await;
        }
        if unit.statement.reads_catalogs
            && let Some(instead) = Box::pin(self.with_shown_catalogs(unit)).await?
        {
            return self.run_all_instead(unit, &instead).await;
        }
        if unit.statement.uses_sequences {
            self.pin_home(Keeps::SequenceValues).await?;
            if let Some(instead) = self.with_drawn_numbers(unit).await? {
                return self.run_instead(unit, &instead).await;
            }
        }
        if unit.statement.asks_session
            && let Some(instead) = Box::pin(self.with_own_state(unit)).await?
        {
            let run = self.run_instead(unit, &instead).await;
            self.client.signals = None;
            return run;
        }
        if matches!(kind, Kind::Update | Kind::Delete)
            && unit.statement.names_cursor
            && let Some(instead) = Box::pin(self.at_cursor(unit)).await?
        {
            // Not what it is in other words: only the row that was fetched is changed.
            return self.run_instead(unit, &instead).await;
        }
        self.note_changes(unit);
        match kind {
            Kind::Set { .. }
            | Kind::Reset(_)
            | Kind::SetTransaction { .. }
            | Kind::SetConstraints
            | Kind::Discard(_) => self.change_settings(unit).await,
            Kind::Prepare { .. } | Kind::Execute(_) | Kind::Deallocate(_) => Box::pin(self.stored(unit)).await,
            Kind::Copy(_) => Box::pin(self.copy(unit)).await,
            Kind::Ddl(_) | Kind::CallPgherd { .. } => Box::pin(self.change_schema(unit)).await,
            Kind::Vacuum(_) | Kind::Analyze(_) | Kind::Reindex(..) | Kind::Cluster(_) => {
                Box::pin(self.maintain(unit)).await
            }
            Kind::Explain { .. } => Box::pin(self.explain(unit)).await,
            Kind::Declare { .. } | Kind::Fetch { .. } | Kind::Close(_) => Box::pin(self.cursor(unit)).await,
            Kind::Listen(_) | Kind::Unlisten(_) => Box::pin(self.listen(unit)).await,
            // The simple protocol has no parameters, and outside of a block nothing stays locked: PostgreSQL says so.
            Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge
                if unit.statement.has_parameters && matches!(unit.mode, Mode::Simple) =>
            {
                self.judged_by_home(unit).await
            }
            Kind::Do => {
                Box::pin(self.listen_within(unit)).await?;
                Box::pin(self.do_block(unit)).await
            }
            Kind::Lock(_) if self.block.is_none() => self.judged_by_home(unit).await,
            Kind::Lock(_) => {
                if let Some(open) = self.block.open_mut() {
                    open.has_locked_tables = true;
                }
                self.routed(unit).await
            }
            Kind::Show { .. }
                if Box::pin(self.show_level(unit)).await? || self.show_encoding(unit) || self.show_ssl(unit) =>
            {
                Ok(())
            }
            Kind::Database(change) => Box::pin(self.change_database(unit, change)).await,
            Kind::WholeServer => Box::pin(self.whole_server(unit)).await,
            _ => self.routed(unit).await,
        }
    }

    /// Keeps one home-shard backend for this session from now on, also for this. What others left on it of the kind is taken away
    /// first.
    pub(crate) async fn pin_home(&mut self, why: Keeps) -> Result<(), Problem> {
        if self.who.pin.is_some() {
            self.cancel.standing.keeps(why);
            return Ok(());
        }
        let home = self.gateway.shards.home();
        let pin = pgherd_shards::Pin::new(home);
        let process_id = match self.block.open_mut() {
            Some(open) => {
                let backend = open.transaction.participant(home).await?;
                backend.simple(why.reset()).await?;
                backend.pin(Some(pin.clone()));
                backend.process_id()
            }
            None => {
                let mut backend = self.home_backend().await?;
                backend.simple(why.reset()).await?;
                backend.pin(Some(pin.clone()));
                backend.process_id()
            }
        };
        self.who.pin = Some(pin);
        self.cancel.standing.keeps(why);
        self.cancel.standing.set_home_process(process_id);
        Ok(())
    }

    /// Sends a statement to the home shard as it came, since PostgreSQL will refuse it.
    pub(super) async fn judged_by_home(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let part = pgherd_sql::Part {
            shard: self.gateway.shards.home(),
            text: unit.statement.text.clone(),
            parameters: None,
            fences: Vec::new(),
            replaced: Arc::default(),
        };
        let entered = self.enter(unit).await?;
        self.forward(unit, &entered, &part).await
    }

    /// Runs a statement where routing says, again with a fresh catalog where the route was stale.
    pub(crate) async fn routed(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let mut tries = 0;
        loop {
            let mark = self.client.position();
            let entered = self.enter(unit).await?;
            if entered.analysis.locks_session {
                self.cancel.standing.keeps(Keeps::AdvisoryLocks);
                if self.who.pin.is_none() {
                    drop(entered);
                    self.pin_home(Keeps::AdvisoryLocks).await?;
                    continue;
                }
            }
            // VACUUM and its kin return nothing that was read, and PostgreSQL does not run all of them in a block.
            let kind = &unit.statement.parsed.kind;
            if !matches!(
                kind,
                Kind::Vacuum(_) | Kind::Analyze(_) | Kind::Reindex(..) | Kind::Cluster(_)
            ) {
                self.begin_strict_for_one(&entered.snapshot);
            }
            let mut instead = entered.analysis.instead.clone();
            if instead.is_none() && unit.statement.shows_settings && self.is_strict() {
                instead = entered.analysis.with_level();
            }
            let epoch = entered.snapshot.epoch;
            let result = match instead {
                Some(_) => Ok(()),
                None => self.run_entered(unit, &entered).await,
            };
            if let Err(Problem::NeedsSharedClock) = result {
                instead = entered.analysis.with_shared_clock();
            }
            drop(entered);
            if let Err(Problem::NeedsParts) = result {
                return Box::pin(self.with_writes(unit)).await;
            }
            if let Err(Problem::NeedsReturningQuery) = result {
                return Box::pin(self.with_returning_query(unit)).await;
            }
            if let Err(Problem::NeedsLocks) = result {
                return Box::pin(self.with_locking_subqueries(unit)).await;
            }
            if let Some(instead) = instead {
                return self.run_instead(unit, &instead).await;
            }
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
                Err(Problem::Error(error)) if misses_relation(&error) => {
                    return Err(self.as_home_tells(unit, error).await.into());
                }
                other => return other,
            }
        }
    }

    async fn run_entered(&mut self, unit: Unit<'_>, entered: &Entered) -> Result<(), Problem> {
        if let Some(template) = unit.template {
            return self.run_template(unit, entered, template).await;
        }
        let types = self.parameter_types(unit, entered).await?;
        let values = unit.values(&types);
        let route = entered.analysis.route(&entered.snapshot, &values);
        if self.is_explaining() {
            return match needs_parts(unit, entered, &route) {
                Some(problem) => Err(problem),
                // Not boxed, though it is rare and large: the futures around it, smaller then, are copied for each statement, which took a
                // sixth of the forward path's rate.
                None => self.note_part(unit, entered, &route).await,
            };
        }
        if self.needs_shared_clock(&entered.analysis, &route) {
            return Err(Problem::NeedsSharedClock);
        }
        if let (Route::Refuse(_), Some(watched)) = (&route, entered.analysis.watched(&entered.snapshot)) {
            return Box::pin(self.forward_watched(unit, entered, &values, watched)).await;
        }
        if let Route::Forward(part) = &route {
            return self.forward_locked(unit, entered, &values, &route, part).await;
        }
        self.lock_reads(unit, entered, &values, &route).await?;
        let route = match route {
            Route::Defaults { query, drawn } => {
                if entered.analysis.defaults_may_write(&entered.snapshot) {
                    self.begin_for_one_at_home().await?;
                }
                let refused = self.refuse_write_in_read_only(unit, entered);
                if refused.is_err() || !is_judged_with_defaults(unit) {
                    self.description(unit, &entered.snapshot).await?;
                }
                refused?;
                let rows = self.default_values(unit, query).await?;
                if self.who.pin.is_none() {
                    self.drawn.note(&drawn, &rows);
                }
                entered.analysis.route_with_defaults(&entered.snapshot, &values, &rows)
            }
            route => route,
        };
        if let Some(problem) = needs_parts(unit, entered, &route) {
            return Err(problem);
        }
        match route {
            Route::Forward(part) => self.forward(unit, entered, &part).await,
            Route::Scatter { parts, merge } => Box::pin(self.scatter(unit, entered, &parts, &merge)).await,
            Route::Plan | Route::GatherWrite => Box::pin(self.plan(unit, entered)).await,
            Route::Refuse(error) => {
                if is_doubtful(&unit.statement.parsed) {
                    self.check_syntax(&unit.statement.text).await?;
                }
                Err(self.refused(unit, entered, error).await)
            }
            Route::Defaults { .. } => {
                Err(ServerError::internal("routing asked for default values that it was given").into())
            }
        }
    }

    /// What is wrong with a statement in itself, PostgreSQL says before anybody asks where it would run.
    pub(super) async fn refused(&mut self, unit: Unit<'_>, entered: &Entered, error: ServerError) -> Problem {
        match self.description(unit, &entered.snapshot).await {
            Err(Problem::Error(own)) if ["42", "0A"].contains(&&own.sqlstate().code()[..2]) => own.into(),
            _ => error.into(),
        }
    }

    /// Forwards the client's own text where its constants lead, or the text that is prepared there for all constants.
    async fn run_template(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        template: &Template<'_>,
    ) -> Result<(), Problem> {
        let value = |v| ParameterValue {
            bytes: Some(str::as_bytes(v)),
            binary: false,
            type_oid: 0,
        };
        let values: Vec<ParameterValue<'_>> = template.values().map(value).collect();
        let route = entered.analysis.route(&entered.snapshot, &values);
        if self.needs_shared_clock(&entered.analysis, &route) || self.needs_told_columns(entered) {
            return Err(Problem::NeedsWholeText);
        }
        let Route::Forward(part) = &route else {
            return Err(Problem::NeedsWholeText);
        };
        if let Some(types) = constant_types(unit, entered, template) {
            let constant = |v| (false, Some(bytes::Bytes::copy_from_slice(str::as_bytes(v))));
            let parameters: Vec<_> = template.values().map(constant).collect();
            let unit = Unit {
                types: &types,
                parameters: &parameters,
                mode: Mode::SimplePrepared,
                ..unit
            };
            return self.forward_locked(unit, entered, &values, &route, part).await;
        }
        match template.render(part) {
            Some(part) => self.forward_locked(unit, entered, &values, &route, &part).await,
            None => Err(Problem::NeedsWholeText),
        }
    }

    /// The declared types; the home shard's where a binary value came without one and routing needs it.
    pub(crate) async fn parameter_types(&mut self, unit: Unit<'_>, entered: &Entered) -> Result<Vec<u32>, Problem> {
        let unknown = unit
            .parameters
            .iter()
            .enumerate()
            .any(|(i, (binary, _))| *binary && unit.types.get(i).copied().unwrap_or(0) == 0);
        if unknown && entered.analysis.touches_sharded {
            return Ok(self.description(unit, &entered.snapshot).await?.parameter_types.clone());
        }
        Ok(unit.types.to_vec())
    }

    /// Values of defaults that only the home shard can give, one row per inserted row.
    async fn default_values(&mut self, unit: Unit<'_>, query: String) -> Result<Vec<Vec<Option<String>>>, Problem> {
        let mut query = match unit.statement.shared_clock {
            true => match self.clock_setting(self.gateway.shards.home()).await? {
                Some(setting) => format!("{setting}; {query}"),
                None => query,
            },
            false => query,
        };
        let (text, judged) = (&unit.statement.text, is_judged_with_defaults(unit));
        if judged {
            query = format!("{JUDGE}{text}\n; DEALLOCATE pgherd_judged; {query}");
        }
        let results = match self.ask_home(&query).await {
            Ok(results) => results,
            Err(error) => {
                let position = error.fields().position.and_then(|p| p.checked_sub(JUDGE.len() as u32));
                let own = position.filter(|p| judged && (1..=text.chars().count() as u32).contains(p));
                return Err(match own {
                    Some(_) => error.with_position(own),
                    None => self.at_its_place(unit, error).await,
                }
                .into());
            }
        };
        let rows = results.into_iter().next_back().map(|r| r.rows).unwrap_or_default();
        let text = |v: Option<bytes::Bytes>| v.map(|b| String::from_utf8_lossy(&b).into_owned());
        Ok(rows
            .into_iter()
            .map(|row| row.into_iter().map(text).collect())
            .collect())
    }

    /// An error of a query that was made of the statement's expressions: its position counts in that query. What PostgreSQL finds
    /// while it reads the client's own text, it finds there at its place.
    async fn at_its_place(&mut self, unit: Unit<'_>, error: ServerError) -> ServerError {
        if error.fields().position.is_none() {
            return error;
        }
        let is_same =
            |own: &ServerError| own.sqlstate() == error.sqlstate() && own.fields().message == error.fields().message;
        let read = self.read_apart(&unit.statement.text, unit.types).await;
        let own = read.and_then(Result::err).filter(is_same);
        error.with_position(own.and_then(|own| own.fields().position))
    }

    /// Whether the open block may have locked tables so that nobody else, not even another connection of this session, can read what
    /// they are.
    pub(super) fn may_hold_tables(&self) -> bool {
        let open = self.block.open();
        let locks = |open: &super::block::Open| {
            // What a SERIALIZABLE block reads, nobody may change, nor so much as look at in order to change it.
            open.has_changed_schema || open.has_locked_tables || open.transaction.is_strict()
        };
        open.is_some_and(locks)
    }

    /// What the home shard finds when it reads a statement on another connection than the block's, where one has failed. None where it
    /// could not be asked, or would wait for the block itself.
    pub(super) async fn read_apart(
        &mut self,
        text: &str,
        types: &[u32],
    ) -> Option<Result<pgherd_query::Description, ServerError>> {
        if self.may_hold_tables() {
            return None;
        }
        let mut backend = self.home_backend().await.ok()?;
        if self.block.is_none() {
            return Some(pgherd_query::describe(&mut backend, text, types).await);
        }
        // A function may have locked something that nobody saw.
        backend.simple("BEGIN; SET LOCAL lock_timeout = '1s'").await.ok()?;
        let read = pgherd_query::describe(&mut backend, text, types).await;
        backend.simple("ROLLBACK").await.ok()?;
        let waited = |error: &ServerError| error.sqlstate() == SqlState::LOCK_NOT_AVAILABLE;
        Some(read).filter(|read| !read.as_ref().is_err_and(waited))
    }

    /// A name of a table that has an alias in the statement means nothing, and PostgreSQL says what was probably meant: but a shard
    /// that reads a child does not know that it is the table's.
    async fn as_home_tells(&mut self, unit: Unit<'_>, error: ServerError) -> ServerError {
        match self.read_apart(&unit.statement.text, unit.types).await {
            Some(Err(told))
                if told.sqlstate() == error.sqlstate() && told.fields().message.starts_with(INVALID_REFERENCE) =>
            {
                told.with_position(error.fields().position)
            }
            _ => error,
        }
    }

    /// An error with the user's names for things.
    pub(crate) fn as_client_sees(&self, mut error: ServerError) -> ServerError {
        let snapshot = self.present_snapshot();
        pgherd_catalog::restore_parent_names(&mut error, &snapshot);
        pgherd_catalog::restore_not_null(&mut error, &snapshot);
        error
    }
}

/// What cancelled the statement was its time limit.
fn timed_out(problem: Problem) -> Problem {
    match problem {
        Problem::Error(error) if error.sqlstate() == SqlState::QUERY_CANCELED => {
            let mut told = statement_timeout();
            let context = error.fields().other.iter().filter(|(letter, _)| *letter == b'W');
            told.fields_mut().other = context.cloned().collect();
            told.into()
        }
        other => other,
    }
}

pub(super) fn statement_timeout() -> ServerError {
    ServerError::new(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
}

/// The catalog changed under a transaction that had begun: it must start again.
pub(crate) fn stale_route(error: ServerError) -> ServerError {
    ServerError::new(
        pgherd_model::SqlState::SERIALIZATION_FAILURE,
        "could not serialize access due to a concurrent change of the table's ranges",
    )
    .with_detail(error.fields().message.clone())
    .with_hint("Repeat the transaction.")
}

/// How PostgreSQL begins what it says of a table's name where the table has an alias.
const INVALID_REFERENCE: &str = "invalid reference to FROM-clause entry";

/// Whether no relation of that name is in the statement.
fn misses_relation(error: &ServerError) -> bool {
    error.sqlstate() == SqlState::UNDEFINED_TABLE && error.fields().message.starts_with("missing FROM-clause entry")
}

/// How a statement has to be taken apart before it can run; None where it runs as it is.
pub(super) fn needs_parts(unit: Unit<'_>, entered: &Entered, route: &Route) -> Option<Problem> {
    if !matches!(route, Route::Plan | Route::GatherWrite | Route::Refuse(_)) {
        return None;
    }
    let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
    let locks_inside = || entered.analysis.locking && pgherd_sql::locked_inside(text, tokens).is_some();
    if !pgherd_sql::locking_subqueries(text, tokens).is_empty() || locks_inside() {
        return Some(Problem::NeedsLocks);
    }
    if pgherd_sql::with_queries(text, tokens).is_some_and(|parts| parts.writes()) {
        return Some(Problem::NeedsParts);
    }
    let returns_query = entered.analysis.returning && pgherd_sql::returning_query(text, tokens).is_some();
    returns_query.then_some(Problem::NeedsReturningQuery)
}

/// Whether an error says that a child or fence is not there (any more): the route was stale.
pub(crate) fn names_missing_child(error: &ServerError) -> bool {
    error.sqlstate() == pgherd_model::SqlState::UNDEFINED_TABLE && error.fields().message.contains("pgherd_data")
}
