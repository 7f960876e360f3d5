//! One round: a fresh cluster, clients of some workloads at one level through two gateways, faults, and what came of it.

use super::client::Client;
use super::nemesis::{self, Fault, Nemesis};
use super::seeded::{self, Seed};
use super::stage::{self, Stage};
use super::verdict::Verdict;
use super::{Level, Workload, bank, lists, monotonic, order, registers, set, write_skew};
use crate::herd::Herd;
use crate::wire::{Protocol, Session};
use crate::{Error, Result};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;

const GATEWAYS: usize = 2;
/// How long anything that prepares or ends a round may take.
const LIMIT: Duration = Duration::from_secs(60);
/// After the last fault, how long transactions may wait between the phases: recovery, and a lease that ends before.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// How much longer than asked a round may go on, until each workload has done something.
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// A round in which a workload has done less has tested nothing.
const LEAST_STEPS: u64 = 20;

/// A workload as the round sees it.
#[async_trait]
pub(super) trait Script: Send + Sync {
    /// The tables, filled.
    fn tables(&self) -> String;

    /// Whether a shard's keys are a million, not a thousand.
    fn is_wide(&self) -> bool {
        false
    }

    /// How many sessions it needs, when so many are asked for.
    fn sessions(&self, asked: usize) -> usize {
        asked
    }

    /// What one session does until the stage closes.
    async fn work(self: Arc<Self>, client: Client, number: usize);

    /// What is to be read when all is quiet.
    async fn last_look(&self, client: &mut Client);

    /// Judges what was written down; called once.
    fn verdict(&self, stage: &Stage) -> Verdict;
}

fn script(workload: Workload) -> Arc<dyn Script> {
    match workload {
        Workload::Lists => Arc::new(lists::Lists::default()),
        Workload::Registers => Arc::new(registers::Registers::default()),
        Workload::Bank => Arc::new(bank::Bank::default()),
        Workload::LongFork | Workload::CausalReverse => Arc::new(order::Order::new(workload)),
        Workload::WriteSkew => Arc::new(write_skew::WriteSkew::default()),
        Workload::Set => Arc::new(set::Set::default()),
        Workload::Monotonic => Arc::new(monotonic::Monotonic::default()),
    }
}

/// What a round is to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `pgherd` program.
    pub program: PathBuf,
    /// At which level the clients' transactions run.
    pub level: Level,
    /// Which workloads, side by side.
    pub workloads: Vec<Workload>,
    /// Sessions of each workload.
    pub sessions: usize,
    /// How long clients work.
    pub time: Duration,
    /// What faults there are; none for a quiet round.
    pub faults: Vec<Fault>,
    /// How long it is quiet between two faults, on average.
    pub between_faults: Duration,
    /// From which clients and faults take their chances. The machine's own are not in it: the same seed gives a similar round.
    pub seed: u64,
    /// A bug, for a test of the checkers.
    pub bug: Option<Seed>,
}

impl Options {
    /// All workloads at that level for a short time, with all faults but the longest.
    pub fn new(program: PathBuf, level: Level) -> Self {
        Self {
            program,
            level,
            workloads: Workload::ALL.to_vec(),
            sessions: 3,
            time: Duration::from_secs(20),
            // The remaining one takes half of a short run.
            faults: Fault::ALL
                .into_iter()
                .filter(|fault| *fault != Fault::OutlastLease)
                .collect(),
            between_faults: Duration::from_millis(1500),
            seed: 1,
            bug: None,
        }
    }
}

/// What came of a round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Account {
    /// By workload, what its checker found.
    pub verdicts: BTreeMap<Workload, Verdict>,
    /// By kind, how many faults there were.
    pub faults: BTreeMap<Fault, u64>,
    /// By SQLSTATE (or what else happened), how often clients were told so, and an example.
    pub errors: BTreeMap<String, (u64, String)>,
    /// What is wrong with the cluster as a whole: prepared transactions that are left, errors that nothing explains.
    pub wrong: Vec<String>,
    /// For how long clients worked.
    pub seconds: u64,
}

impl Account {
    /// Everything that must not have happened, in words.
    pub fn violations(&self) -> Vec<String> {
        let of_checkers = self
            .verdicts
            .iter()
            .flat_map(|(workload, verdict)| verdict.violations.iter().map(move |text| format!("{workload}: {text}")));
        of_checkers.chain(self.wrong.iter().cloned()).collect()
    }
}

/// Runs a round.
///
/// # Errors
/// A cluster that cannot be started, prepared or stopped. What clients are told is no error but a part of the account.
pub async fn run(options: &Options) -> Result<Account> {
    let herd = Herd::start(&options.program, order::SHARDS).await?;
    let account = in_herd(&herd, options).await;
    herd.stop().await;
    account
}

type Scripts = BTreeMap<Workload, Arc<dyn Script>>;

async fn in_herd(herd: &Herd, options: &Options) -> Result<Account> {
    let bug = match options.bug {
        Some(bug) => Some(seeded::put(bug, herd).await?),
        None => None,
    };
    let gateways = nemesis::gateways(herd, GATEWAYS).await?;
    let targets = gateways.iter().map(nemesis::target).collect::<Result<Vec<_>>>()?;
    let workloads = options.workloads.iter();
    let scripts: Scripts = workloads.map(|workload| (*workload, script(*workload))).collect();
    let mut session = targets[0].connect().await?;
    for script in scripts.values() {
        create(&mut session, script.as_ref()).await?;
    }
    session.close().await;
    if let Some(bug) = &bug {
        bug.begin();
    }
    let stage = Arc::new(Stage::new(options.level, options.seed, targets));
    let mut nemesis = Nemesis::new(herd, gateways, stage.clone());
    let begun = Instant::now();
    let mut wrong = work(options, &stage, &scripts, &mut nemesis).await?;
    let seconds = begun.elapsed().as_secs();
    if let Err(left) = until_nothing_is_prepared(herd).await {
        wrong.push(left);
    }
    for (number, (workload, script)) in scripts.iter().enumerate() {
        script.last_look(&mut Client::new(&stage, *workload, number)).await;
    }
    let faults = nemesis.end().await?;
    drop(bug);
    let mut account = judge(stage, scripts).await?;
    account.wrong.append(&mut wrong);
    Ok(Account {
        faults,
        seconds,
        ..account
    })
}

/// Clients work, and the nemesis too, until it is time; what went wrong with the clients themselves.
async fn work(
    options: &Options,
    stage: &Arc<Stage>,
    scripts: &Scripts,
    nemesis: &mut Nemesis<'_>,
) -> Result<Vec<String>> {
    let mut clients = JoinSet::new();
    for (workload, script) in scripts {
        for number in 0..script.sessions(options.sessions) {
            let client = Client::new(stage, *workload, number);
            clients.spawn(script.clone().work(client, number));
        }
    }
    let begun = Instant::now();
    let stop = Notify::new();
    let watch = async {
        tokio::time::sleep(options.time).await;
        while stage.least_steps(&options.workloads) < LEAST_STEPS && begun.elapsed() < options.time + MOST_PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop.notify_one();
    };
    let (faults, ()) = tokio::join!(nemesis.run(&options.faults, options.between_faults, &stop), watch);
    faults?;
    stage.close();
    let mut wrong = Vec::new();
    while let Some(ended) = clients.join_next().await {
        wrong.extend(ended.err().map(|error| format!("a client did not end well: {error}")));
    }
    Ok(wrong)
}

/// What the checkers say, and what is wrong with the round as a whole. Some checkers take long: not in a thread of the runtime.
async fn judge(stage: Arc<Stage>, scripts: Scripts) -> Result<Account> {
    let judged = stage.clone();
    let verdicts = tokio::task::spawn_blocking(move || {
        let verdicts = scripts.iter();
        verdicts
            .map(|(workload, script)| (*workload, script.verdict(&judged)))
            .collect()
    });
    let verdicts: BTreeMap<Workload, Verdict> = verdicts.await.map_err(|error| Error::Script(error.to_string()))?;
    let errors = stage.errors();
    let mut wrong = Vec::new();
    for (state, (count, example)) in &errors {
        if !stage::is_explained(state) {
            wrong.push(format!("{count} times {state}, such as: {example}"));
        }
    }
    for (workload, verdict) in &verdicts {
        if verdict.ok < LEAST_STEPS || verdict.reads == 0 {
            let (steps, reads) = (verdict.ok, verdict.reads);
            wrong.push(format!("{workload} stands still: {steps} steps, {reads} reads"));
        }
    }
    Ok(Account {
        verdicts,
        faults: BTreeMap::new(),
        errors,
        wrong,
        seconds: 0,
    })
}

/// Makes a workload's tables, on three shards.
async fn create(session: &mut Session, script: &dyn Script) -> Result<()> {
    let bounds = match script.is_wide() {
        true => "int 1000000,2000000",
        false => "int 1000,2000",
    };
    let sql = format!("SET pgherd.initial_bounds = '{bounds}'; {}", script.tables());
    // One message would be one transaction, in which a table cannot be made and filled on several shards.
    for statement in sql.split(';') {
        let reply = session.run(statement, Protocol::Simple, LIMIT).await?;
        if let Some(error) = reply.error {
            return Err(Error::Server(error));
        }
    }
    let name = script.tables();
    let name = name.split_whitespace().nth(2).unwrap_or_default().to_owned();
    let count = format!("SELECT count(DISTINCT shard) FROM pgherd.ranges WHERE \"table\" = '{name}'");
    let reply = session.execute(&count, LIMIT).await?;
    let shards = reply.first().and_then(|result| result.rows.first()?.first()?.clone());
    if shards.as_deref() != Some("3") {
        return Err(Error::Script(format!("table {name} lies on {shards:?} shards")));
    }
    Ok(())
}

async fn until_nothing_is_prepared(herd: &Herd) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        match herd.prepared_transactions().await {
            Ok(0) => return Ok(()),
            Ok(left) if begun.elapsed() > SETTLE_LIMIT => {
                return Err(format!(
                    "{left} prepared transactions are left after {} s",
                    SETTLE_LIMIT.as_secs()
                ));
            }
            Err(error) if begun.elapsed() > SETTLE_LIMIT => return Err(error.to_string()),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
