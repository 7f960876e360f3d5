//! Short runs of the workloads of `pgherd soak`, side by side: each level while gateways and shards die and pause, and with
//! bugs put into the shards, which the checkers must find.
//!
//! `PGHERD_HISTORY_SECONDS` makes the runs longer, `PGHERD_HISTORY_SEED` gives clients and faults other chances.

use pgherd_testkit::histories::{self, Account, Fault, Level, Options, Seed, Workload};
use std::time::Duration;

/// How long a round with a bug takes. Most show within a second or two.
const SEEDED: Duration = Duration::from_secs(8);
/// How often a bug gets another chance to show.
const MOST_ROUNDS: u64 = 8;

fn number(name: &str) -> Option<u64> {
    let asked = std::env::var(name).ok();
    asked.map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn options(level: Level) -> Options {
    let mut options = Options::new(env!("CARGO_BIN_EXE_pgherd").into(), level);
    options.seed = number("PGHERD_HISTORY_SEED").unwrap_or(1);
    if let Some(seconds) = number("PGHERD_HISTORY_SECONDS") {
        options.time = Duration::from_secs(seconds);
    }
    options
}

async fn run(options: &Options) -> Account {
    let account = histories::run(options).await.expect("a round");
    for (workload, verdict) in &account.verdicts {
        eprintln!("{}, {workload}: {verdict:?}", options.level);
    }
    eprintln!(
        "{} s, faults {:?}, errors {:?}",
        account.seconds, account.faults, account.errors
    );
    account
}

fn assert_clean(account: &Account) {
    let violations = account.violations();
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn read_committed_shows_whole_transactions() {
    let account = run(&options(Level::ReadCommitted)).await;
    assert!(!account.faults.is_empty());
    assert_clean(&account);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeatable_read_allows_nothing_but_what_is_written_down() {
    let account = run(&options(Level::RepeatableRead)).await;
    assert!(!account.faults.is_empty());
    assert_clean(&account);
}

#[tokio::test(flavor = "multi_thread")]
async fn serializable_has_no_cycle() {
    let account = run(&options(Level::Serializable)).await;
    assert!(!account.faults.is_empty());
    assert_clean(&account);
}

/// Whether an anomaly of this name is what a bug does.
type IsIt = fn(&str) -> bool;

/// Rounds with a bug, until each of these workloads' checkers has found what it does; what that is, by the names of anomalies.
async fn assert_found(mut options: Options, expected: &[(Workload, IsIt)]) {
    options.time = SEEDED;
    options.sessions = 6;
    let mut missing = expected.to_vec();
    // When something goes wrong is a matter of chance; in most rounds it does many times.
    for seed in 1..=MOST_ROUNDS {
        options.seed = seed;
        options.workloads = missing.iter().map(|(workload, _)| *workload).collect();
        let account = run(&options).await;
        missing.retain(|(workload, is_it)| !account.verdicts[workload].kinds.keys().any(|kind| is_it(kind)));
        if missing.is_empty() {
            return;
        }
    }
    let missing: Vec<_> = missing.iter().map(|(workload, _)| workload.to_string()).collect();
    panic!("{:?} was not found by {}", options.bug, missing.join(", "));
}

/// A cut that nobody checks shows halves of transactions, and each checker that reads over shards says so.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_marker_check_readers_see_halves() {
    let mut options = options(Level::ReadCommitted);
    options.bug = Some(Seed::NoMarkerCheck);
    options.faults = Vec::new();
    assert_found(
        options,
        &[
            (Workload::Bank, |kind| kind == "wrong sum"),
            (Workload::Monotonic, |kind| kind == "fractured read"),
            (Workload::Lists, |kind| kind.starts_with("G-single-item")),
        ],
    )
    .await;
}

/// A marker that is deleted while readers still compare it lets halves through as well.
#[tokio::test(flavor = "multi_thread")]
async fn with_markers_cleared_early_readers_see_halves() {
    let mut options = options(Level::ReadCommitted);
    options.bug = Some(Seed::EarlyCleanUp);
    // Behind a paused shard, commits and readers queue up.
    options.faults = vec![Fault::PauseShard];
    assert_found(
        options,
        &[
            (Workload::Bank, |kind| kind == "wrong sum"),
            (Workload::Monotonic, |kind| kind == "fractured read"),
        ],
    )
    .await;
}

/// Shards that commit where they were to prepare leave halves of transactions when another one fails.
#[tokio::test(flavor = "multi_thread")]
async fn without_prepare_halves_of_transactions_stay() {
    let mut options = options(Level::ReadCommitted);
    options.faults = Vec::new();
    options.time = SEEDED;
    options.workloads = vec![Workload::Bank, Workload::Lists];
    options.bug = Some(Seed::LostPrepares);
    // The same losses with PREPARE where it belongs: nothing is wrong.
    assert_clean(&run(&options).await);
    options.bug = Some(Seed::CommitWithoutPrepare);
    assert_found(
        options,
        &[
            (Workload::Bank, |kind| kind == "wrong sum"),
            (Workload::Lists, |kind| kind.ends_with("append")),
        ],
    )
    .await;
}
