//! Statements on one shard after another, at READ COMMITTED: what one has shown, the next does not take back.

mod bed;

use bed::hold::Hold;
use bed::{BALANCE, Bed, add, begin, fragment, run, state};
use pgherd_model::ShardId;
use pgherd_transaction::control::Point;
use pgherd_transaction::two_phase_commit::Action;
use pgherd_transaction::{Coordinator, Error, Isolation, Mode, Transaction};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const READ: &str = "SELECT balance FROM account WHERE id = 1";

/// What a gateway does for a statement that one shard runs.
async fn read(transaction: &mut Transaction, shard: u32, looks: bool) -> Result<i64, Error> {
    transaction.participant(ShardId(shard)).await?;
    if looks {
        transaction.catch_up(ShardId(shard));
    }
    let value = run(transaction, shard, READ).await?.expect("a row");
    transaction.end_statement().await;
    Ok(value.parse().expect("a number"))
}

/// A commit over all shards that is visible on the first one only, until it may go on.
struct Half {
    hold: Hold,
    committing: tokio::task::JoinHandle<()>,
}

impl Half {
    async fn commit(bed: &Bed, gateway: &Arc<Coordinator>) -> Self {
        let hold = Hold::at(
            gateway,
            |point| matches!(point, Point::Before(Action::CommitPrepared(shard)) if shard != ShardId(1)),
        );
        let mut transaction = begin(gateway);
        add(&mut transaction, 1, &[(1, 5), (2, 5), (3, 5)])
            .await
            .expect("updates");
        let committing = tokio::spawn(async move {
            assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
        });
        hold.reached().await;
        let gids = bed.prepared_gids().await;
        let gid = &gids[0];
        // The gateway may have done it already: what it does on the other shards waits in any case.
        let sql = format!("SELECT count(*) FROM pg_prepared_xacts WHERE gid = '{gid}'");
        if bed.number(1, &sql).await > 0 {
            bed.sql(1, &format!("COMMIT PREPARED '{gid}'")).await;
        }
        Self { hold, committing }
    }

    async fn end(self) {
        self.hold.release();
        self.committing.await.expect("commit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_shown_on_one_shard_is_shown_on_the_next() {
    let bed = Bed::start(3).await;
    let (writing, reading) = (bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await);
    let half = Half::commit(&bed, &writing).await;

    let mut naive = begin(&reading);
    assert_eq!(read(&mut naive, 1, true).await.expect("first"), BALANCE + 5);
    assert_eq!(
        read(&mut naive, 2, false).await.expect("second"),
        BALANCE,
        "back in time"
    );
    naive.rollback().await.expect("rollback");

    // On its first shard a transaction waits for nothing, and in one snapshot there is nothing to wait for.
    let mut other = begin(&reading);
    assert_eq!(read(&mut other, 2, true).await.expect("first"), BALANCE);
    assert_eq!(read(&mut other, 2, true).await.expect("again"), BALANCE);
    other.rollback().await.expect("rollback");

    let statement = tokio::spawn({
        let mut transaction = begin(&reading);
        async move {
            let first = read(&mut transaction, 1, true).await.expect("first");
            let second = read(&mut transaction, 2, true).await.expect("second");
            transaction.rollback().await.expect("rollback");
            (first, second)
        }
    });
    // A cut over two other shards would be one, both being as old.
    let cut = tokio::spawn({
        let mut transaction = begin(&reading);
        async move {
            let first = read(&mut transaction, 1, true).await.expect("first");
            let fragments = [2, 3].map(|shard| fragment(shard, "f0", READ));
            transaction.open_cut(&fragments).await.expect("cut");
            let mut balances = vec![first];
            for shard in [2, 3] {
                let backend = transaction.participant(ShardId(shard)).await.expect("participant");
                let results = backend.simple("FETCH ALL FROM f0").await.expect("rows");
                balances.push(results[0].text(0, 0).expect("a row").parse().expect("a number"));
            }
            transaction.rollback().await.expect("rollback");
            balances
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!statement.is_finished() && !cut.is_finished(), "they wait");
    half.end().await;
    assert_eq!(statement.await.expect("task"), (BALANCE + 5, BALANCE + 5));
    assert_eq!(cut.await.expect("task"), [BALANCE + 5; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_wait_has_an_end() {
    let bed = Bed::start(3).await;
    let (writing, reading) = (bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await);
    let half = Half::commit(&bed, &writing).await;
    let mut transaction = begin(&reading);
    read(&mut transaction, 1, true).await.expect("first");
    let begun = Instant::now();
    let error = read(&mut transaction, 2, true).await.expect_err("it does not come");
    assert_eq!(state(&error), "40001", "{error}");
    assert!(begun.elapsed() > Duration::from_secs(9), "{:?}", begun.elapsed());
    transaction.rollback().await.expect("rollback");

    // With one snapshot for the transaction there is nothing to wait for.
    let mode = Mode {
        isolation: Some(Isolation::RepeatableRead),
        ..Mode::default()
    };
    half.end().await;
    let mut transaction = reading.begin(bed::app(), mode);
    assert_eq!(read(&mut transaction, 1, true).await.expect("first"), BALANCE + 5);
    assert!(!transaction.catch_up(ShardId(1)));
    transaction.rollback().await.expect("rollback");
}

/// Readers go from shard to shard while all are counted up together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_do_not_go_back_while_others_commit() {
    let bed = Bed::start(3).await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (gateway, stop) = (gateways[0].clone(), stop.clone());
        async move {
            let mut commits = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut transaction = begin(&gateway);
                add(&mut transaction, 1, &[(1, 1), (2, 1), (3, 1)])
                    .await
                    .expect("updates");
                transaction.commit().await.expect("commit");
                commits += 1;
            }
            commits
        }
    });
    let (begun, mut reads, mut back, mut back_naively) = (Instant::now(), 0, 0, 0);
    while begun.elapsed() < Duration::from_secs(4) || (back_naively == 0 && begun.elapsed() < Duration::from_secs(60)) {
        for looks in [true, false] {
            let mut transaction = begin(&gateways[reads % 2]);
            let mut last = 0;
            for n in 0..6 {
                let balance = read(&mut transaction, 1 + n % 3, looks).await.expect("read");
                if balance < last {
                    *(if looks { &mut back } else { &mut back_naively }) += 1;
                }
                last = balance;
            }
            transaction.rollback().await.expect("rollback");
        }
        reads += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let commits: u32 = writer.await.expect("writer");
    eprintln!("{commits} commits, {reads} readers; {back_naively} steps back in time where nobody looks");
    assert_eq!(back, 0, "steps back in time");
    assert!(
        back_naively > 0,
        "without looking some go back, or this test shows nothing"
    );
}
