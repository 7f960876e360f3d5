//! One client: a session with a gateway, its transactions, and what it knows of their outcomes.

use super::Workload;
use super::record::{Outcome, Record};
use super::stage::Stage;
use crate::Error;
use crate::wire::{Protocol, Reply, Session};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a client waits for an answer. Longer than any lease, pause and recovery, so that no answer in this time is a bug.
const STATEMENT_LIMIT: Duration = Duration::from_secs(60);
/// How long a client tries to connect after the end of the run, when all gateways and shards are to be there again.
const LAST_CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Between two attempts to connect: a server that is down is not to be kept busy with refusing.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Why a transaction did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nothing of it is left.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// Rows as text.
pub(super) type Rows = Vec<Vec<Option<String>>>;

pub(super) struct Client {
    pub(super) stage: Arc<Stage>,
    pub(super) random: StdRng,
    workload: Workload,
    gateway: usize,
    session: Option<Session>,
    process: u64,
    /// The protocol that carries the statements; clients differ in it.
    protocol: Protocol,
}

impl Client {
    /// A client that connects when it needs to, always to the same gateway.
    pub(super) fn new(stage: &Arc<Stage>, workload: Workload, number: usize) -> Self {
        let own = (workload as u64) << 32 | number as u64;
        let seed = stage.seed ^ (own + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            stage: stage.clone(),
            random: StdRng::seed_from_u64(seed),
            workload,
            gateway: number % stage.gateways(),
            session: None,
            process: stage.new_process(),
            protocol: match number / 2 % 2 {
                0 => Protocol::Simple,
                _ => Protocol::Extended,
            },
        }
    }

    pub(super) async fn begin(&mut self) -> Result<(), Stop> {
        self.exchange(self.stage.level.begin(), false).await.map(drop)
    }

    /// The rows of a SELECT.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Rows, Stop> {
        let reply = self.exchange(sql, false).await?;
        Ok(reply
            .results
            .into_iter()
            .next_back()
            .map_or_else(Vec::new, |result| result.rows))
    }

    /// Two columns of whole numbers; NULL is `None`.
    pub(super) async fn pairs(&mut self, sql: &str) -> Result<Vec<(i64, Option<i64>)>, Stop> {
        let number = |value: &Option<String>| value.as_ref().and_then(|text| text.parse::<i64>().ok());
        let rows = self.rows(sql).await?;
        Ok(rows
            .iter()
            .filter_map(|row| Some((number(row.first()?)?, row.get(1).and_then(number))))
            .collect())
    }

    /// A statement within a transaction; how many rows it changed.
    pub(super) async fn change(&mut self, sql: &str) -> Result<u64, Stop> {
        let reply = self.exchange(sql, false).await?;
        Ok(reply.results.last().map_or(0, |result| result.affected_rows()))
    }

    /// A writing statement outside of a transaction: it decides its own.
    pub(super) async fn change_alone(&mut self, sql: &str) -> Result<u64, Stop> {
        let reply = self.exchange(sql, true).await?;
        Ok(reply.results.last().map_or(0, |result| result.affected_rows()))
    }

    /// COMMIT. One that answers ROLLBACK has failed.
    pub(super) async fn commit(&mut self) -> Result<(), Stop> {
        let reply = self.exchange("COMMIT", true).await?;
        match reply.results.last().map(|result| result.tag.as_str()) {
            Some("COMMIT") => Ok(()),
            _ => Err(Stop::Failed),
        }
    }

    /// Gives the transaction up on purpose.
    pub(super) async fn give_up(&mut self) -> Result<(), Stop> {
        self.exchange("ROLLBACK", false).await?;
        Err(Stop::Failed)
    }

    /// Writes a step down that began at `begun`, and gets the session ready for the next.
    pub(super) async fn settle<T>(&mut self, begun: u64, result: Result<(), Stop>, what: T) -> Record<T> {
        let outcome = Outcome::of(&result);
        let record = Record {
            process: self.process,
            begun,
            ended: self.stage.tick(),
            outcome,
            what,
        };
        if outcome == Outcome::Ok {
            self.stage.stepped(self.workload);
        }
        if outcome == Outcome::Unknown {
            // Its last step may still take effect: from here on it is another process.
            self.process = self.stage.new_process();
        }
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.transaction_status() != 'I')
        {
            // An error here is noted, and the connection given up.
            let _ = self.exchange("ROLLBACK", false).await;
        }
        record
    }

    /// A step of its own beside the one that is going on: a statement at READ COMMITTED.
    pub(super) fn statement<T>(&self, begun: u64, what: T) -> Record<T> {
        Record {
            process: self.stage.new_process(),
            begun,
            ended: self.stage.tick(),
            outcome: Outcome::Ok,
            what,
        }
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.random.random_bool(probability)
    }

    /// `decides`: once this was sent, the transaction may have been committed.
    async fn exchange(&mut self, sql: &str, decides: bool) -> Result<Reply, Stop> {
        let fails = if decides { Stop::Unknown } else { Stop::Failed };
        if self.session.is_none() {
            self.connect().await?;
        }
        let Some(session) = &mut self.session else {
            return Err(Stop::Failed);
        };
        let reply = session.run(sql, self.protocol, STATEMENT_LIMIT).await;
        match reply {
            Ok(mut reply) => match reply.error.take() {
                None => Ok(reply),
                Some(error) => {
                    self.stage.note(error.code(), &format!("{}, to {sql}", error.message()));
                    // Class 08 and the shutdown of a server say nothing about a transaction.
                    let silent = error.code().starts_with("08") || error.code().starts_with("57P");
                    Err(if silent { fails } else { Stop::Failed })
                }
            },
            Err(error) => {
                match error {
                    Error::Timeout(limit) => {
                        let text = format!("no answer within {} s to {sql}", limit.as_secs());
                        self.stage.note("no answer", &text);
                    }
                    _ => self.stage.note("connection lost", &error.to_string()),
                }
                self.session = None;
                Err(fails)
            }
        }
    }

    /// Connects, and tries again while nobody lets it in; after the end of the run, for a while only.
    async fn connect(&mut self) -> Result<(), Stop> {
        let begun = Instant::now();
        while self.stage.is_open() || begun.elapsed() < LAST_CONNECT_LIMIT {
            match self.stage.gateway(self.gateway).connect().await {
                Ok(session) => {
                    self.session = Some(session);
                    return Ok(());
                }
                Err(error) => self
                    .stage
                    .note(error.sqlstate().unwrap_or("connection lost"), &error.to_string()),
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
        Err(Stop::Failed)
    }
}
