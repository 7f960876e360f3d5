//! Money moves between accounts in many sessions, while gateways or shards may die at any moment.
//!
//! Every transfer is one transaction over three tables' rows that mostly lie on different shards: two accounts and a line
//! of the ledger. So each line of the ledger stands for exactly one transfer, and the accounts can be computed from it: a
//! transaction that was committed in part shows as an account that differs from what its ledger says.
//!
//! The bank remembers what its clients were told about each transfer. An acknowledged one must be in the ledger, a
//! refused one must not, and one whose COMMIT was never answered may be either: an honest client knows no more.

use crate::Result;
use rand::Rng;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

/// How many accounts there are, with ids from 1.
pub const ACCOUNTS: i32 = 300;
/// What lies in each account at first.
pub const OPENING_BALANCE: i64 = 1000;
/// Ids of transfers are unique over all clients and runs: the run's first id plus the client's number times this.
const TRANSFERS_PER_CLIENT: i64 = 1_000_000;
/// How long one statement may take before the client gives up on it. A shard's in-doubt transaction blocks rows until
/// recovery has seen to it, so this is longer than any lease.
const STATEMENT_LIMIT: Duration = Duration::from_secs(60);
/// Between two attempts to connect: a server that is down is not to be kept busy with refusing.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What the clients of a bank were told.
#[derive(Debug, Default)]
pub struct Told {
    /// Transfers whose COMMIT was answered with success.
    pub acknowledged: HashSet<i64>,
    /// Transfers of which it is certain that they did not happen.
    pub refused: HashSet<i64>,
    /// Transfers whose COMMIT had no answer, or the answer that nobody knows (08007).
    pub unknown: HashSet<i64>,
    /// How often the sum over all accounts was read, and was right.
    pub right_sums: u64,
    /// Sums that were wrong.
    pub wrong_sums: Vec<String>,
    /// ROLLBACKs that were answered with an error, which PostgreSQL never does.
    pub failed_rollbacks: u64,
    /// SQLSTATEs that clients saw, with how often.
    pub errors: BTreeMap<String, u64>,
    /// The first messages of each SQLSTATE, to understand a failure.
    pub samples: BTreeMap<String, String>,
}

/// A bank that works until it is closed; clients whose connection ends come again.
pub struct Bank {
    told: Arc<Mutex<Told>>,
    acknowledged: Arc<AtomicU64>,
    closing: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

/// Makes the tables: accounts and ledger in three declared ranges each, so that the same statements work on PostgreSQL.
///
/// # Errors
/// What the server says.
pub async fn create(client: &Client) -> Result<()> {
    client
        .batch_execute(
            "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL) PARTITION BY RANGE (id);
             CREATE TABLE account_low PARTITION OF account FOR VALUES FROM (MINVALUE) TO (101);
             CREATE TABLE account_middle PARTITION OF account FOR VALUES FROM (101) TO (201);
             CREATE TABLE account_high PARTITION OF account FOR VALUES FROM (201) TO (MAXVALUE);
             CREATE TABLE ledger (id bigint PRIMARY KEY, payer int NOT NULL, payee int NOT NULL, amount bigint NOT NULL)
                 PARTITION BY RANGE (id)",
        )
        .await?;
    // Clients 0 to 2, 3 to 5 and the others write to different ranges.
    for (name, from, to) in [
        ("low", "MINVALUE", "3000000"),
        ("middle", "3000000", "6000000"),
        ("high", "6000000", "MAXVALUE"),
    ] {
        let sql = format!("CREATE TABLE ledger_{name} PARTITION OF ledger FOR VALUES FROM ({from}) TO ({to})");
        client.batch_execute(&sql).await?;
    }
    let rows: Vec<_> = (1..=ACCOUNTS).map(|id| format!("({id}, {OPENING_BALANCE})")).collect();
    client
        .batch_execute(&format!("INSERT INTO account (id, balance) VALUES {}", rows.join(", ")))
        .await?;
    Ok(())
}

impl Bank {
    /// Opens for business: `clients` sessions that transfer, and one that reads sums. `run` (0 to 99) tells the ids of
    /// this run's transfers from those of other runs.
    pub fn open(config: &Config, clients: usize, run: i64) -> Self {
        let bank = Self {
            told: Arc::default(),
            acknowledged: Arc::default(),
            closing: Arc::default(),
            clients: JoinSet::new(),
        };
        let mut bank = bank;
        for number in 0..clients as i64 {
            let worker = bank.worker(config);
            let first_id = number * TRANSFERS_PER_CLIENT + run * (TRANSFERS_PER_CLIENT / 100);
            bank.clients.spawn(worker.transfer(first_id));
        }
        let auditor = bank.worker(config);
        bank.clients.spawn(auditor.audit());
        bank
    }

    fn worker(&self, config: &Config) -> Worker {
        Worker {
            config: config.clone(),
            told: self.told.clone(),
            acknowledged: self.acknowledged.clone(),
            closing: self.closing.clone(),
        }
    }

    /// How many transfers have been acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many transfers have been acknowledged; `false` when that takes longer than `limit`.
    pub async fn wait_for(&self, transfers: u64, limit: Duration) -> bool {
        let reached = async {
            while self.acknowledged() < transfers {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(limit, reached).await.is_ok()
    }

    /// Waits until somebody has read a right sum; `false` when that takes longer than `limit`.
    pub async fn wait_for_a_sum(&self, limit: Duration) -> bool {
        let read = || self.told.lock().unwrap_or_else(PoisonError::into_inner).right_sums > 0;
        let reached = async {
            while !read() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(limit, reached).await.is_ok()
    }

    /// Lets every client finish the transfer it is at (or notice that its connection is gone), and says what they know.
    pub async fn close(mut self) -> Told {
        self.closing.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        std::mem::take(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Worker {
    config: Config,
    told: Arc<Mutex<Told>>,
    acknowledged: Arc<AtomicU64>,
    closing: Arc<AtomicBool>,
}

/// How far a transfer came before its error.
enum Failure {
    /// COMMIT had not been sent.
    Before(tokio_postgres::Error),
    /// COMMIT had been sent.
    AtCommit(tokio_postgres::Error),
    /// No answer in time; the connection is given up.
    Silent,
}

impl Worker {
    fn tell(&self, tell: impl FnOnce(&mut Told)) {
        tell(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn open(&self) -> bool {
        !self.closing.load(Ordering::Relaxed)
    }

    fn note(&self, error: &tokio_postgres::Error) {
        self.note_as("", error);
    }

    fn note_as(&self, what: &str, error: &tokio_postgres::Error) {
        let state = error.code().map_or("connection lost", SqlState::code);
        let state = format!("{what} {state}").trim_start().to_string();
        self.tell(|told| {
            told.samples
                .entry(state.clone())
                .or_insert_with(|| crate::Error::describe(error));
            *told.errors.entry(state).or_default() += 1;
        });
    }

    /// Connects, and tries again while the server does not let anybody in; `None` once the bank closes.
    async fn connect(&self) -> Option<Client> {
        while self.open() {
            match self.config.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return Some(client);
                }
                Err(error) => self.note(&error),
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
        None
    }

    async fn transfer(self, first_id: i64) {
        let Some(mut client) = self.connect().await else { return };
        let mut id = first_id;
        while self.open() {
            id += 1;
            match one_transfer(&client, id).await {
                Ok(()) => {
                    self.tell(|told| {
                        told.acknowledged.insert(id);
                    });
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Err(Failure::Before(error)) => {
                    self.note(&error);
                    self.tell(|told| {
                        told.refused.insert(id);
                    });
                }
                Err(Failure::AtCommit(error)) => {
                    self.note(&error);
                    let certain = error.code().is_some_and(certainly_rolled_back);
                    self.tell(|told| {
                        let list = if certain { &mut told.refused } else { &mut told.unknown };
                        list.insert(id);
                    });
                }
                Err(Failure::Silent) => {
                    self.tell(|told| {
                        told.unknown.insert(id);
                        *told.errors.entry("no answer".into()).or_default() += 1;
                    });
                    return;
                }
            }
            if !client.is_closed()
                && let Err(error) = client.batch_execute("ROLLBACK").await
            {
                self.note_as("ROLLBACK", &error);
                self.tell(|told| told.failed_rollbacks += u64::from(error.code().is_some()));
            }
            if client.is_closed() {
                let Some(again) = self.connect().await else { return };
                client = again;
            }
        }
    }

    async fn audit(self) {
        let Some(mut client) = self.connect().await else { return };
        let right = (i64::from(ACCOUNTS), i64::from(ACCOUNTS) * OPENING_BALANCE);
        while self.open() {
            match totals(&client).await {
                Ok(found) if found == right => self.tell(|told| told.right_sums += 1),
                Ok(found) => self.tell(|told| told.wrong_sums.push(format!("{found:?} instead of {right:?}"))),
                Err(error) => {
                    self.note(&error);
                    if client.is_closed() {
                        let Some(again) = self.connect().await else { return };
                        client = again;
                    }
                }
            }
        }
    }
}

/// Whether this answer to COMMIT means that nothing of the transaction is left. Class 08 and the shutdown of a server say
/// nothing about it.
fn certainly_rolled_back(state: &SqlState) -> bool {
    !state.code().starts_with("08") && !state.code().starts_with("57P")
}

async fn one_transfer(client: &Client, id: i64) -> Result<(), Failure> {
    let (payer, payee, amount) = {
        let mut random = rand::rng();
        let payer = random.random_range(1..=ACCOUNTS);
        // Mostly on another shard, and never the same account.
        let payee = (payer + random.random_range(1..ACCOUNTS) - 1) % ACCOUNTS + 1;
        (payer, payee, random.random_range(1..=50_i64))
    };
    let change = |account, by| format!("UPDATE account SET balance = balance + {by} WHERE id = {account}");
    // The lower id first, so that two transfers cannot wait for each other.
    let (first, second) = if payer < payee {
        (change(payer, -amount), change(payee, amount))
    } else {
        (change(payee, amount), change(payer, -amount))
    };
    let line = format!("INSERT INTO ledger (id, payer, payee, amount) VALUES ({id}, {payer}, {payee}, {amount})");
    let work = async {
        for sql in ["BEGIN", &first, &second, &line] {
            client.batch_execute(sql).await.map_err(Failure::Before)?;
        }
        client.batch_execute("COMMIT").await.map_err(Failure::AtCommit)
    };
    tokio::time::timeout(STATEMENT_LIMIT, work)
        .await
        .unwrap_or(Err(Failure::Silent))
}

/// The number of accounts, and what lies in all of them.
async fn totals(client: &Client) -> Result<(i64, i64), tokio_postgres::Error> {
    let row = client
        .query_one("SELECT count(*), sum(balance)::bigint FROM account", &[])
        .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Looks whether the tables agree with each other and with what clients were told; returns what is wrong, in words.
///
/// # Errors
/// The tables cannot be read.
pub async fn verify(client: &Client, told: &[Told]) -> Result<Vec<String>> {
    let mut wrong: Vec<String> = told.iter().flat_map(|told| told.wrong_sums.clone()).collect();
    let mut expected: BTreeMap<i32, i64> = (1..=ACCOUNTS).map(|id| (id, OPENING_BALANCE)).collect();
    let mut ledger = HashSet::new();
    for row in client.query("SELECT id, payer, payee, amount FROM ledger", &[]).await? {
        let (id, payer, payee, amount): (i64, i32, i32, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        *expected.entry(payer).or_default() -= amount;
        *expected.entry(payee).or_default() += amount;
        ledger.insert(id);
    }
    let mut balances = BTreeMap::new();
    for row in client.query("SELECT id, balance FROM account", &[]).await? {
        balances.insert(row.try_get::<_, i32>(0)?, row.try_get::<_, i64>(1)?);
    }
    let total: i64 = balances.values().sum();
    if total != i64::from(ACCOUNTS) * OPENING_BALANCE || balances.len() != ACCOUNTS as usize {
        wrong.push(format!("{} accounts hold {total}", balances.len()));
    }
    for (account, balance) in &expected {
        if balances.get(account) != Some(balance) {
            let found = balances.get(account);
            wrong.push(format!("account {account} holds {found:?}, its ledger says {balance}"));
        }
    }
    for told in told {
        if told.failed_rollbacks > 0 {
            wrong.push(format!("{} ROLLBACKs failed", told.failed_rollbacks));
        }
        let lost = told.acknowledged.iter().filter(|id| !ledger.contains(id));
        wrong.extend(lost.map(|id| format!("transfer {id} was acknowledged and is not there")));
        let kept = told.refused.iter().filter(|id| ledger.contains(id));
        wrong.extend(kept.map(|id| format!("transfer {id} was refused and is there")));
    }
    Ok(wrong)
}
