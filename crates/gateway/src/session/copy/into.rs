//! COPY FROM STDIN into a sharded table: one COPY per shard into the parent there (which holds just that shard's
//! ranges), all in one transaction, each opened at its first row and behind the table's fence. The first shard's is
//! opened before the client is asked for data, so that PostgreSQL has judged names, options and privileges by then.

use super::client_errors::{with_client_line, without_supplied_fields};
use super::evaluate::{Evaluator, computed_default, quote_list, without_modifier};
use super::format::empty_binary;
use super::{Inflow, describes, next_inflow, put_data, put_fail, unexpected_message};
use crate::client::{Client, FLUSH_AT, Gone};
use crate::session::block::Open;
use crate::session::execute::{Entered, names_missing_child, stale_route};
use crate::session::forward::{lost_lease, no_block};
use crate::session::{Mode, Problem, Session, Unit};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::{join_all, select_all};
use pgherd_model::{ServerError, ShardId, SqlState, Table};
use pgherd_shards::Backend;
use pgherd_sql::copy_split::{CopyOptions, KeyColumn, KeySource, Progress, Splitter, Target};
use pgherd_sql::{CopyFormat, CopyShape};
use postgres_protocol::message::frontend;

/// The most bytes that wait for the home shard where its COPY cannot begin before the client's data has ended.
const MOST_HELD_BYTES: usize = 256 << 20;

/// Room for the letter and length of a CopyData in front of its bytes.
const FRAME: [u8; 5] = [b'd', 0, 0, 0, 0];

/// The COPY as each shard gets it.
struct Plan {
    sql: String,
    binary: bool,
    fence: String,
    relation: String,
    /// columns of the client's rows
    fields: usize,
    supplied: Vec<String>,
    defaults: String,
    key: Vec<KeyColumn>,
}

/// A shard's stream.
struct Outflow {
    shard: ShardId,
    /// a CopyData in the making: [`FRAME`] and its bytes; or nothing
    pending: BytesMut,
    open: bool,
}

/// Why the stream ended before its time.
enum Cause {
    /// a shard has said why, or will
    Shard,
    Error(ServerError),
    Gone,
}

impl From<ServerError> for Cause {
    fn from(error: ServerError) -> Self {
        Self::Error(error)
    }
}

impl From<Problem> for Cause {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Error(error) => Self::Error(error),
            Problem::NeedsWholeText | Problem::NeedsSharedClock | Problem::NeedsParts | Problem::NeedsLocks => {
                Self::Error(ServerError::internal("COPY has no template"))
            }
            Problem::Gone => Self::Gone,
        }
    }
}

fn gone(gone: Gone) -> Cause {
    match gone {
        Gone::Closed => Cause::Gone,
        Gone::Garbage(error) => Cause::Error(error.fatal()),
        Gone::Text((error, _)) => Cause::Error(error),
        Gone::FunctionCall(_) => {
            Cause::Error(ServerError::new(SqlState::PROTOCOL_VIOLATION, unexpected_message(b'F')).fatal())
        }
    }
}

/// What a shard answered.
#[derive(Default)]
struct Answer {
    count: u64,
    error: Option<ServerError>,
    notices: Vec<ServerError>,
}

impl Session {
    /// Runs the COPY in the block, or in one of its own.
    pub(super) async fn copy_into(
        &mut self,
        unit: Unit<'_>,
        shape: &CopyShape,
        entered: &Entered,
        table: &Table,
    ) -> Result<(), Problem> {
        let plan = Plan::new(unit, shape, table)?;
        let made = self.ensure_block();
        let result = self.copy_into_block(unit, shape, entered, table, &plan).await;
        let result = result.map(|count| Some(format!("COPY {count}")));
        self.finish_statement(made, result).await
    }

    async fn copy_into_block(
        &mut self,
        unit: Unit<'_>,
        shape: &CopyShape,
        entered: &Entered,
        table: &Table,
        plan: &Plan,
    ) -> Result<u64, Problem> {
        let sharded = table
            .sharded()
            .ok_or_else(|| ServerError::internal("COPY into a table that is not sharded"))?;
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let first = sharded.ranges.shards().first().copied().unwrap_or(home);
        let held = open.overlay.is_some().then_some(home);
        let backend = open.transaction.participant(first).await?;
        self.cancel.slot.start(backend.cancel_token());
        let began = match held == Some(first) {
            true => try_copy(backend, plan).await?,
            false => begin_copy(backend, plan).await?,
        };
        let response = match began {
            Ok(response) => response,
            Err(error) => return Err(self.copy_error(error).into()),
        };
        let encoding = backend.parameter("client_encoding").unwrap_or("UTF8").to_owned();
        open.transaction.wrote(first);
        let target = Target {
            relation: &plan.relation,
            fields: plan.fields,
            supplied: plan.supplied.clone(),
            key: plan.key.clone(),
            ranges: &sharded.ranges,
            home,
        };
        let splitter = CopyOptions::from_shape(shape, &encoding).and_then(|options| Splitter::new(options, target));
        let key_types = plan
            .key
            .iter()
            .map(|k| (type_name(table, &k.name), k.key_type))
            .collect();
        let evaluator = Evaluator::new(
            self.database.coordinator.clone(),
            home,
            &self.who,
            key_types,
            plan.defaults.clone(),
            plan.binary,
        );
        let splitter = match splitter {
            Ok(splitter) => splitter,
            Err(error) => {
                if held != Some(first) {
                    let _ = end(open.transaction.participant(first).await?, Some("")).await;
                }
                return Err(error.into());
            }
        };
        if describes(unit) {
            self.client.put(b'n', &[]);
        }
        self.client.put(b'G', &response);
        self.copy_took_sync |= matches!(unit.mode, Mode::Extended { .. });
        let outflow = |&shard: &ShardId| Outflow {
            shard,
            pending: BytesMut::new(),
            open: shard == first && held != Some(first),
        };
        let outflows = splitter.shards().iter().map(outflow).collect();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let cancel = &self.cancel.slot;
        let client = &mut self.client;
        let mut running = Running {
            client,
            open,
            plan,
            splitter,
            evaluator,
            outflows,
            ended: false,
            held,
            cancel,
        };
        let result = running.run().await;
        running.evaluator.finish().await;
        self.cancel.slot.clear();
        if !entered.guard.holds().await {
            return Err(lost_lease().into());
        }
        result.map_err(|problem| match problem {
            // The client's data is gone: there is no second try.
            Problem::Error(error) if names_missing_child(&error) => stale_route(error).into(),
            Problem::Error(error) => self.as_client_sees(error).into(),
            gone => gone,
        })
    }

    /// A shard's error with the parent's names; one that says the route was stale as it is.
    fn copy_error(&self, error: ServerError) -> ServerError {
        match names_missing_child(&error) {
            true => error,
            false => self.as_client_sees(error),
        }
    }
}

impl Plan {
    fn new(unit: Unit<'_>, shape: &CopyShape, table: &Table) -> Result<Self, ServerError> {
        let sharded = table
            .sharded()
            .ok_or_else(|| ServerError::internal("COPY into a table that is not sharded"))?;
        let columns: Vec<&str> = match &shape.columns {
            Some(named) => named.iter().map(String::as_str).collect(),
            None => table
                .columns
                .iter()
                .filter(|c| !c.generated)
                .map(|c| c.name.as_str())
                .collect(),
        };
        let (mut supplied, mut defaults) = (Vec::new(), Vec::new());
        for column in table.columns.iter().filter(|c| !columns.contains(&c.name.as_str())) {
            let constant_key = || {
                column
                    .default
                    .clone()
                    .filter(|_| sharded.key.contains(&column.name) && !column.generated)
            };
            if let Some(default) = computed_default(&table.name, column).or_else(constant_key) {
                supplied.push(column.name.clone());
                // In text, the column's input function reads whatever the expression gives.
                defaults.push(match shape.format {
                    CopyFormat::Binary => format!("({default})::{}", without_modifier(&column.type_name)),
                    _ => default,
                });
            }
        }
        let key = sharded.key.iter().zip(&sharded.key_types).map(|(name, key_type)| {
            let field = columns.iter().position(|c| c == name).map(KeySource::Field);
            let source = || {
                supplied
                    .iter()
                    .position(|c| c == name)
                    .map_or(KeySource::Missing, KeySource::Supplied)
            };
            KeyColumn {
                name: name.clone(),
                key_type: *key_type,
                type_modifier: table.column(name).map_or(-1, |c| c.type_modifier),
                source: field.unwrap_or_else(source),
            }
        });
        let key = key.collect();
        let all = supplied.iter().map(String::as_str).chain(columns.iter().copied());
        let list = match quote_list(all) {
            list if list.is_empty() => list,
            list => format!(" ({list})"),
        };
        let options = unit.statement.text.get(shape.options.clone()).unwrap_or_default();
        let binary = if is_old_binary(unit, shape) { "BINARY " } else { "" };
        Ok(Self {
            sql: format!("COPY {binary}{}{list} FROM STDIN {options}", table.name),
            binary: shape.format == CopyFormat::Binary,
            fence: sharded.fence.to_string(),
            relation: table.name.name.to_string(),
            fields: columns.len(),
            defaults: defaults.join(", "),
            supplied,
            key,
        })
    }
}

/// `COPY BINARY t FROM STDIN`, from before 7.3.
fn is_old_binary(unit: Unit<'_>, shape: &CopyShape) -> bool {
    let second = unit.statement.text.split_whitespace().nth(1).unwrap_or_default();
    shape.format == CopyFormat::Binary
        && second.eq_ignore_ascii_case("binary")
        && !shape.option_list.iter().any(|(name, _)| name == "format")
}

fn type_name(table: &Table, column: &str) -> String {
    table
        .column(column)
        .map_or_else(|| "text".into(), |c| c.type_name.clone())
}

/// Queues the fence's lock and the COPY.
fn start(backend: &mut Backend, plan: &Plan) -> Result<(), Problem> {
    backend.queue_silent(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", plan.fence));
    backend.queue_query(&plan.sql)?;
    Ok(())
}

/// Begins the COPY; CopyInResponse's body, or the error that came instead.
async fn begin_copy(backend: &mut Backend, plan: &Plan) -> Result<Result<Bytes, ServerError>, Problem> {
    start(backend, plan)?;
    backend.flush().await?;
    await_copy(backend).await
}

/// What [`begin_copy`] would say, without a COPY left open. Triggers that an empty COPY fires have fired for nothing.
async fn try_copy(backend: &mut Backend, plan: &Plan) -> Result<Result<Bytes, ServerError>, Problem> {
    backend.simple("SAVEPOINT pgherd_copy").await?;
    let began = begin_copy(backend, plan).await?;
    if began.is_ok() {
        if plan.binary {
            put_data(backend.outbox(), &empty_binary());
        }
        if let Some(error) = end(backend, None).await?.error {
            return Ok(Err(error));
        }
        backend
            .simple("ROLLBACK TO SAVEPOINT pgherd_copy; RELEASE SAVEPOINT pgherd_copy")
            .await?;
    }
    Ok(began)
}

/// CopyInResponse's body, or the error that came instead.
async fn await_copy(backend: &mut Backend) -> Result<Result<Bytes, ServerError>, Problem> {
    let mut failed = match backend.skip_silent().await {
        Err(pgherd_shards::Error::Server(error)) => Some(error),
        other => {
            other?;
            None
        }
    };
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            b'G' => return Ok(Ok(message.body)),
            b'E' => {
                failed.get_or_insert_with(|| ServerError::from_body(&message.body));
            }
            b'Z' => {
                return Ok(Err(
                    failed.unwrap_or_else(|| ServerError::internal("COPY did not begin"))
                ));
            }
            _ => {}
        }
    }
}

/// Ends a shard's COPY, well (None) or with a failure, and reads its answer.
async fn end(backend: &mut Backend, failure: Option<&str>) -> Result<Answer, Problem> {
    match failure {
        None => frontend::copy_done(backend.outbox()),
        Some(message) => put_fail(backend, message),
    }
    backend.flush_listening().await?;
    let mut answer = Answer::default();
    match backend.skip_silent().await {
        // The COPY behind the failed lock fails with it (25P02); this is the error that says why.
        Err(pgherd_shards::Error::Server(error)) => answer.error = Some(error),
        other => other?,
    }
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            b'C' => {
                let tag = String::from_utf8_lossy(&message.body);
                let count = tag
                    .trim_end_matches('\0')
                    .rsplit(' ')
                    .next()
                    .and_then(|n| n.parse().ok());
                answer.count = count.unwrap_or(0);
            }
            b'E' => {
                answer
                    .error
                    .get_or_insert_with(|| ServerError::from_body(&message.body));
            }
            b'Z' => {
                answer.notices = backend.take_notices();
                return Ok(answer);
            }
            _ => {}
        }
    }
}

/// A COPY under way.
struct Running<'a> {
    client: &'a mut Client,
    open: &'a mut Open,
    plan: &'a Plan,
    splitter: Splitter,
    evaluator: Evaluator,
    outflows: Vec<Outflow>,
    ended: bool,
    /// The home shard, where its participant has to evaluate what comes: the transaction has changed the schema, which no
    /// other connection sees. Its COPY begins when the client's data has ended; until then its rows are kept here.
    held: Option<ShardId>,
    cancel: &'a crate::cancel::CancelSlot,
}

impl Running<'_> {
    /// Takes the client's stream to its end; the number of rows.
    async fn run(&mut self) -> Result<u64, Problem> {
        self.client.flush().await?;
        let failure = self.feed().await.err();
        // An error of ours is about the client's next row: what the rows before it are worth, the shards say first.
        let message = match &failure {
            None | Some(Cause::Error(_)) => None,
            Some(Cause::Shard | Cause::Gone) => Some("COPY failed on another shard"),
        };
        let answers = self.end_all(message).await?;
        match failure {
            Some(Cause::Gone) => return Err(Problem::Gone),
            _ if self.first_error(&answers, message).is_some() => {}
            Some(Cause::Error(error)) => return Err(error.into()),
            _ => {}
        }
        if let Some(error) = self.first_error(&answers, message) {
            return Err(error.into());
        }
        for notice in answers.iter().flat_map(|(_, a)| &a.notices) {
            self.client.put_notice(notice);
        }
        Ok(answers.iter().map(|(_, a)| a.count).sum())
    }

    /// The error on the client's first line, with that line's number; those that we provoked do not count.
    fn first_error(&self, answers: &[(usize, Answer)], provoked: Option<&str>) -> Option<ServerError> {
        let ours = |e: &ServerError| {
            e.sqlstate() == SqlState::QUERY_CANCELED && provoked.is_some_and(|m| e.fields().message.ends_with(m))
        };
        let errors = answers.iter().filter_map(|(stream, answer)| {
            let mut error = answer.error.clone().filter(|e| !ours(e))?;
            without_supplied_fields(&mut error, self.plan.supplied.len());
            Some(with_client_line(
                error,
                |line| self.splitter.client_line(*stream, line),
                &self.plan.relation,
            ))
        });
        errors
            .min_by_key(|(_, line)| line.unwrap_or(u64::MAX))
            .map(|(error, _)| error)
    }

    async fn feed(&mut self) -> Result<(), Cause> {
        loop {
            let message = self.next().await?;
            // A shard that waits for rows, or was not asked yet, does not notice.
            if self.cancel.requested().is_some() {
                let message = "canceling statement due to user request";
                let error = ServerError::new(SqlState::QUERY_CANCELED, message);
                return Err(Cause::Error(self.at_next_line(error)));
            }
            match message {
                Inflow::Data(data) => {
                    let Self { splitter, outflows, .. } = self;
                    let progress = splitter.push(&data, &mut |stream, bytes| outflows[stream].put(bytes));
                    self.settle(progress).await?;
                    self.send(FLUSH_AT).await?;
                }
                Inflow::Done => break,
                Inflow::Failed(message) => {
                    let error =
                        ServerError::new(SqlState::QUERY_CANCELED, format!("COPY from stdin failed: {message}"));
                    return Err(Cause::Error(self.at_next_line(error)));
                }
                Inflow::Unexpected(letter) => {
                    let error = ServerError::new(SqlState::PROTOCOL_VIOLATION, unexpected_message(letter));
                    return Err(Cause::Error(self.at_next_line(error)));
                }
            }
        }
        self.ended = true;
        let Self { splitter, outflows, .. } = self;
        let progress = splitter.finish(&mut |stream, bytes| outflows[stream].put(bytes));
        self.settle(progress).await?;
        self.held = None;
        self.send(1).await
    }

    /// Gives the splitter what it asks for until it has done all it can.
    async fn settle(&mut self, mut progress: Result<Progress, ServerError>) -> Result<(), Cause> {
        loop {
            match progress.map_err(Cause::Error)? {
                Progress::Done => return Ok(()),
                Progress::Undecided(unknown) => {
                    let in_block = home_participant(self.open, self.held).await?;
                    let values = self.evaluator.key_values(&unknown, in_block).await?;
                    let Self { splitter, outflows, .. } = self;
                    progress = splitter.resolve(values, &mut |stream, bytes| outflows[stream].put(bytes));
                }
                Progress::NeedValues(count) => {
                    let in_block = home_participant(self.open, self.held).await?;
                    let rows = self.evaluator.defaults(count, in_block).await?;
                    let Self {
                        splitter,
                        outflows,
                        ended,
                        ..
                    } = self;
                    splitter.supply(rows);
                    let mut sink = |stream: usize, bytes: &[u8]| outflows[stream].put(bytes);
                    progress = match ended {
                        true => splitter.finish(&mut sink),
                        false => splitter.push(&[], &mut sink),
                    };
                }
            }
        }
    }

    /// The client's next message, or a shard's error while the client is silent.
    async fn next(&mut self) -> Result<Inflow, Cause> {
        loop {
            if self.client.has_message() {
                return next_inflow(self.client).await.map_err(gone);
            }
            let outflows = &self.outflows;
            let open = |shard: ShardId| outflows.iter().any(|o| o.open && o.shard == shard);
            let shards = self.open.transaction.participants().filter(|(shard, _)| open(*shard));
            let listening: Vec<_> = shards.map(|(_, backend)| Box::pin(backend.fill())).collect();
            if listening.is_empty() {
                return next_inflow(self.client).await.map_err(gone);
            }
            tokio::select! {
                message = next_inflow(self.client) => return message.map_err(gone),
                (heard, _, _) = select_all(listening) => heard.map_err(|e| Cause::from(Problem::from(e)))?,
            }
            self.check_errors()?;
        }
    }

    fn check_errors(&mut self) -> Result<(), Cause> {
        let failed = self
            .open
            .transaction
            .participants()
            .any(|(_, backend)| backend.has_error());
        if failed { Err(Cause::Shard) } else { Ok(()) }
    }

    /// Sends the streams that have gathered at least so many bytes.
    async fn send(&mut self, least: usize) -> Result<(), Cause> {
        let mut some = false;
        for outflow in self.outflows.iter_mut().filter(|o| o.pending.len() >= least) {
            if self.held == Some(outflow.shard) {
                outflow.check_held()?;
                continue;
            }
            some = true;
            let backend = self
                .open
                .transaction
                .participant(outflow.shard)
                .await
                .map_err(Problem::from)?;
            if !outflow.open {
                self.cancel.add(backend.cancel_token());
                start(backend, self.plan)?;
                outflow.open = true;
            }
            outflow.move_to(backend.outbox());
            self.open.transaction.wrote(outflow.shard);
        }
        if !some {
            return Ok(());
        }
        let sending = self
            .open
            .transaction
            .participants()
            .map(|(_, backend)| backend.flush_listening());
        let sent: Result<Vec<()>, _> = join_all(sending).await.into_iter().collect();
        sent.map_err(|e| Cause::from(Problem::from(e)))?;
        self.check_errors()
    }

    /// Ends the COPY on every shard that has one.
    async fn end_all(&mut self, failure: Option<&str>) -> Result<Vec<(usize, Answer)>, Problem> {
        if failure.is_none() {
            // What is left to send may find errors of its own; they come with the answers.
            let _ = self.send(1).await;
        }
        let Self { outflows, open, .. } = self;
        let stream_of = |shard: ShardId| outflows.iter().position(|o| o.open && o.shard == shard);
        let ending = open.transaction.participants().filter_map(|(shard, backend)| {
            let stream = stream_of(shard)?;
            Some(async move { end(backend, failure).await.map(|answer| (stream, answer)) })
        });
        let answers = join_all(ending).await.into_iter().collect();
        outflows.iter_mut().for_each(|o| o.open = false);
        answers
    }

    /// With the context that PostgreSQL gives while it waits for the next line.
    fn at_next_line(&self, mut error: ServerError) -> ServerError {
        let context = format!("COPY {}, line {}", self.plan.relation, self.splitter.line() + 1);
        error.fields_mut().other.push((b'W', context));
        error
    }
}

/// The home shard's participant, where it is the one to ask.
async fn home_participant(open: &mut Open, held: Option<ShardId>) -> Result<Option<&mut Backend>, Problem> {
    match held {
        None => Ok(None),
        Some(home) => Ok(Some(open.transaction.participant(home).await?)),
    }
}

impl Outflow {
    /// 0A000 when too much waits.
    fn check_held(&self) -> Result<(), ServerError> {
        if self.pending.len() <= MOST_HELD_BYTES {
            return Ok(());
        }
        Err(ServerError::unsupported(
            format!(
                "COPY of more than {} MB after a schema change in the same transaction is not supported",
                MOST_HELD_BYTES >> 20
            ),
            "Commit the schema change first.",
        ))
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.pending.is_empty() {
            self.pending.put_slice(&FRAME);
        }
        self.pending.put_slice(bytes);
    }

    /// Completes the CopyData and appends it.
    fn move_to(&mut self, out: &mut BytesMut) {
        let length = (self.pending.len() as u32 - 1).to_be_bytes();
        self.pending[1..5].copy_from_slice(&length);
        out.unsplit(self.pending.split());
    }
}
