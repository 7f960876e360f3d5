//! A COPY FROM STDIN under way: the client's rows, told apart by their keys, flow to the shards.

use super::client_errors::{with_client_line, without_supplied_fields};
use super::evaluate::Evaluator;
use super::on_shard::{Answer, end, start};
use super::outflow::Outflow;
use super::plan::Plan;
use super::{Inflow, next_inflow, unexpected_message};
use crate::client::{Client, FLUSH_AT, Gone};
use crate::session::Problem;
use crate::session::block::Open;
use futures::future::{join_all, select_all};
use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_shards::Backend;
use pgherd_sql::copy_split::{Progress, Splitter};

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
            Problem::NeedsWholeText
            | Problem::NeedsSharedClock
            | Problem::NeedsParts
            | Problem::NeedsReturningQuery
            | Problem::NeedsLocks => Self::Error(ServerError::internal("COPY has no template")),
            Problem::Gone => Self::Gone,
        }
    }
}

fn gone(gone: Gone) -> Cause {
    match gone {
        Gone::Closed => Cause::Gone,
        Gone::Garbage(error) => Cause::Error(error.fatal()),
        Gone::Text((error, _)) | Gone::Data(error) => Cause::Error(error),
        Gone::FunctionCall(_) => {
            Cause::Error(ServerError::new(SqlState::PROTOCOL_VIOLATION, unexpected_message(b'F')).fatal())
        }
    }
}

/// A COPY under way.
pub(super) struct Running<'a> {
    pub client: &'a mut Client,
    pub open: &'a mut Open,
    pub plan: &'a Plan,
    pub splitter: Splitter,
    pub evaluator: Evaluator,
    pub outflows: Vec<Outflow>,
    pub ended: bool,
    /// The home shard, where its participant has to evaluate what comes: the transaction has changed the schema, which no
    /// other connection sees. Its COPY begins when the client's data has ended; until then its rows are kept here.
    pub held: Option<ShardId>,
    pub cancel: &'a crate::cancel::CancelSlot,
}

impl Running<'_> {
    /// Takes the client's stream to its end; the number of rows.
    pub async fn run(&mut self) -> Result<u64, Problem> {
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
        let sending = self.open.transaction.participants().map(|(_, backend)| backend.flush());
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
