//! A table is read in a loop while other sessions create, distribute, split, alter and drop it. Every answer must be that
//! of the whole table as it was at some moment, or an error: never that of one shard's part.

use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// Rows of the table when it is full: keys 1 to this, each with `x = k`.
pub const ROWS: i64 = 900;

/// Between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Longer than this nobody waits for answers; too few of them show in what was seen.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// Fills the table in one statement.
pub fn fill() -> String {
    let rows: Vec<_> = (1..=ROWS).map(|k| format!("({k}, {k})")).collect();
    format!("INSERT INTO whole (k, x) VALUES {}", rows.join(", "))
}

/// What the readers saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Answers of a full table.
    pub full: u64,
    /// Answers of a table that has been made and not yet filled.
    pub empty: u64,
    /// Errors by SQLSTATE.
    pub errors: BTreeMap<String, u64>,
    /// The first message of each SQLSTATE.
    pub samples: BTreeMap<String, String>,
    /// Answers that were neither.
    pub partial: Vec<String>,
}

/// Sessions that read until they are told to stop.
pub struct Readers {
    seen: Arc<Mutex<Seen>>,
    answers: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    sessions: JoinSet<()>,
}

/// How one session asks.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// The simple protocol.
    Simple,
    /// The extended protocol, prepared anew each time.
    Extended,
    /// A statement that was prepared once, and is prepared again after an error.
    Prepared,
    /// Two reads in a REPEATABLE READ transaction, which must agree.
    Transaction,
    /// Rows themselves, counted by the client.
    Rows,
}

const TOTALS: &str = "SELECT count(*), coalesce(sum(x), 0)::bigint FROM whole";

impl Readers {
    /// Starts one session for each way to ask.
    ///
    /// # Errors
    /// A session cannot be opened.
    pub async fn start(config: &Config) -> Result<Self> {
        let mut readers = Self {
            seen: Arc::default(),
            answers: Arc::default(),
            stopping: Arc::default(),
            sessions: JoinSet::new(),
        };
        for way in [Way::Simple, Way::Extended, Way::Prepared, Way::Transaction, Way::Rows] {
            let (mut client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            let config = config.clone();
            let (seen, answers, stopping) = (readers.seen.clone(), readers.answers.clone(), readers.stopping.clone());
            readers.sessions.spawn(async move {
                let mut prepared = None;
                while !stopping.load(Ordering::Relaxed) {
                    let answer = ask(&client, way, &mut prepared).await;
                    answers.fetch_add(1, Ordering::Relaxed);
                    // A gateway that lost its lease ends the session (FATAL); the close itself comes a moment later.
                    if matches!(&answer, Err(error) if error.sqlstate() == Some("57P03")) {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                    note(&mut seen.lock().unwrap_or_else(PoisonError::into_inner), way, answer);
                    // A gateway that had stood still ends its sessions; their clients come again.
                    while client.is_closed() && !stopping.load(Ordering::Relaxed) {
                        prepared = None;
                        match config.connect(NoTls).await {
                            Ok((again, connection)) => {
                                tokio::spawn(connection);
                                client = again;
                            }
                            Err(_) => tokio::time::sleep(RECONNECT_PAUSE).await,
                        }
                    }
                }
            });
        }
        Ok(readers)
    }

    /// How many answers there were so far, errors included.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits for so many more answers.
    pub async fn wait_for(&self, more: u64) {
        let until = self.answers() + more;
        let begun = Instant::now();
        while self.answers() < until && begun.elapsed() < WAIT_LIMIT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops them, each after the answer it waits for.
    pub async fn stop(mut self) -> Seen {
        self.stopping.store(true, Ordering::Relaxed);
        while self.sessions.join_next().await.is_some() {}
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn note(seen: &mut Seen, way: Way, answer: Result<(i64, i64)>) {
    match answer {
        Ok((ROWS, sum)) if sum == ROWS * (ROWS + 1) / 2 => seen.full += 1,
        Ok((0, 0)) => seen.empty += 1,
        Ok(other) => seen.partial.push(format!("{way:?}: {other:?}")),
        Err(error) => {
            let state = error.sqlstate().unwrap_or("connection lost").to_string();
            seen.samples.entry(state.clone()).or_insert_with(|| error.to_string());
            *seen.errors.entry(state).or_default() += 1;
        }
    }
}

async fn ask(client: &Client, way: Way, prepared: &mut Option<tokio_postgres::Statement>) -> Result<(i64, i64)> {
    match way {
        Way::Simple => simple(client, TOTALS).await,
        Way::Extended => {
            let row = client.query_one(TOTALS, &[]).await?;
            Ok((row.try_get(0)?, row.try_get(1)?))
        }
        Way::Prepared => {
            let statement = match prepared.take() {
                Some(statement) => statement,
                None => client.prepare(TOTALS).await?,
            };
            let row = client.query_one(&statement, &[]).await?;
            *prepared = Some(statement);
            Ok((row.try_get(0)?, row.try_get(1)?))
        }
        Way::Transaction => {
            let outcome = twice(client).await;
            let end = client.batch_execute("ROLLBACK").await;
            let answers = outcome?;
            end?;
            answers
        }
        Way::Rows => {
            let rows = client.query("SELECT x::bigint FROM whole", &[]).await?;
            let values: Result<Vec<i64>, _> = rows.iter().map(|row| row.try_get(0)).collect();
            Ok((rows.len() as i64, values?.iter().sum()))
        }
    }
}

async fn twice(client: &Client) -> Result<Result<(i64, i64)>> {
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
    let first = simple(client, TOTALS).await?;
    let second = simple(client, TOTALS).await?;
    if first == second {
        return Ok(Ok(first));
    }
    // Neither full nor empty, so that it is reported.
    Ok(Ok((-1, first.0 * 1_000_000 + second.0)))
}

async fn simple(client: &Client, sql: &str) -> Result<(i64, i64)> {
    for message in client.simple_query(sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            let number = |column| row.get(column).and_then(|text: &str| text.parse().ok());
            return match (number(0), number(1)) {
                (Some(count), Some(sum)) => Ok((count, sum)),
                _ => Err(Error::Protocol(format!("not two numbers: {row:?}"))),
            };
        }
    }
    Err(Error::Protocol("no row".into()))
}
