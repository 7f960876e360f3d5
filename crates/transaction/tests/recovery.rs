//! Gateways and shards that die at every step of a commit: afterwards all shards agree, nothing is left between the
//! phases, and clients were told the truth.

mod bed;

use bed::{BALANCE, Bed, add, begin, run, state};
use pgherd_model::ShardId;
use pgherd_shards::Pin;
use pgherd_transaction::control::Point;
use pgherd_transaction::gid::{Gid, SequenceId, database_hash, proof};
use pgherd_transaction::two_phase_commit::Action;
use pgherd_transaction::{Committed, Error, Transaction};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const RECOVERY_LIMIT: Duration = Duration::from_secs(5);

/// One transfer over all shards; the account's balance afterwards tells whether it took effect.
const CHANGES: [(u32, i64); 3] = [(1, -3), (2, 1), (3, 2)];

/// Whether it is there, on all shards or on none.
async fn took_effect(bed: &Bed, before: &[i64], account: i32) -> bool {
    let changes: Vec<i64> = bed
        .balances(account)
        .await
        .iter()
        .zip(before)
        .map(|(b, a)| b - a)
        .collect();
    match changes[..] {
        [0, 0, 0] => false,
        [-3, 1, 2] => true,
        _ => panic!("torn: {changes:?}"),
    }
}

/// What the client was told must be so.
fn check_told(told: &Result<Committed, Error>, there: bool, at: &str) {
    match told {
        Ok(committed) => assert_eq!(committed.tag == "COMMIT", there, "{at}: told {committed:?}"),
        Err(Error::OutcomeUnknown { .. }) => {}
        Err(e) => assert!(!there, "{at}: refused with {e}, and is there"),
    }
}

/// Makes that shard's part of the transaction one that PostgreSQL does not prepare, on a session's own connection.
async fn hold_what_is_not_prepared(transaction: &mut Transaction, shard: u32) -> Arc<Pin> {
    let pin = Pin::new(ShardId(shard));
    let backend = transaction.participant(ShardId(shard)).await.expect("enlisted");
    let temporary = "CREATE TEMPORARY TABLE own ON COMMIT DROP AS SELECT 1";
    backend.simple(temporary).await.expect("a temporary table");
    backend.pin(Some(pin.clone()));
    pin
}

#[tokio::test]
async fn a_gateway_dies_at_every_step() {
    gateway_dies_at_every_step(None).await;
}

#[tokio::test]
async fn a_gateway_dies_at_every_step_when_one_shard_commits_last() {
    gateway_dies_at_every_step(Some(2)).await;
}

async fn gateway_dies_at_every_step(last: Option<u32>) {
    let bed = Bed::start(3).await;
    let _survivor = bed.gateway("survivor", 1).await;
    let (mut outcomes, mut stop_at) = ([0, 0], 0);
    loop {
        let name = format!("gw{stop_at}");
        let gateway = bed.gateway(&name, 100 + stop_at as u64).await;
        let (passed, dead) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counter, died) = (passed.clone(), dead.clone());
        gateway.set_control(Some(Arc::new(move |_| {
            let goes_on = counter.fetch_add(1, Ordering::SeqCst) < stop_at;
            if !goes_on {
                died.store(1, Ordering::SeqCst);
            }
            goes_on
        })));
        let before = bed.balances(1).await;
        let mut transaction = begin(&gateway);
        add(&mut transaction, 1, &CHANGES).await.expect("updates");
        let _pin = match last {
            Some(shard) => Some(hold_what_is_not_prepared(&mut transaction, shard).await),
            None => None,
        };
        let told = transaction.commit().await;
        // Its background task would do the survivor's work.
        drop(gateway);
        bed.lease(&name, 100 + stop_at as u64, "-1 second").await;
        bed.until_nothing_is_prepared(RECOVERY_LIMIT).await;
        let there = took_effect(&bed, &before, 1).await;
        check_told(&told, there, &format!("stopped at {stop_at}"));
        outcomes[usize::from(there)] += 1;
        if dead.load(Ordering::SeqCst) == 0 {
            assert!(told.is_ok());
            break;
        }
        stop_at += 1;
    }
    let requests = if last.is_some() { 5 } else { 6 };
    assert!(stop_at >= 2 * requests, "before and after each: {stop_at}");
    assert!(
        outcomes[0] > 2 && outcomes[1] > 4,
        "both outcomes were seen: {outcomes:?}"
    );
    assert_eq!(bed.prepared_gids().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_shard_dies_at_every_step() {
    shard_dies_at_every_step(None).await;
}

#[tokio::test]
async fn the_shard_that_commits_last_dies_at_every_step() {
    shard_dies_at_every_step(Some(2)).await;
}

#[tokio::test]
async fn a_shard_dies_at_every_step_while_another_commits_last() {
    shard_dies_at_every_step(Some(1)).await;
}

async fn shard_dies_at_every_step(last: Option<u32>) {
    let bed = Arc::new(Bed::start(3).await);
    let gateway = bed.gateway("gw1", 2).await;
    for stop_at in 0..13 {
        let before = bed.balances(1).await;
        let mut transaction = begin(&gateway);
        add(&mut transaction, 1, &CHANGES).await.expect("updates");
        let _pin = match last {
            Some(shard) => Some(hold_what_is_not_prepared(&mut transaction, shard).await),
            None => None,
        };
        let passed = Arc::new(AtomicUsize::new(0));
        let (counter, crashing) = (passed.clone(), bed.clone());
        gateway.set_control(Some(Arc::new(move |_| {
            if counter.fetch_add(1, Ordering::SeqCst) == stop_at {
                let crashing = crashing.clone();
                std::thread::scope(|scope| {
                    let crash = || {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                        runtime.expect("runtime").block_on(crashing.cluster.kill_shard(2));
                    };
                    scope.spawn(crash).join().expect("crashed");
                });
            }
            true
        })));
        let told = std::sync::OnceLock::new();
        let commit = async { told.set(transaction.commit().await).expect("once") };
        tokio::join!(commit, async {
            while passed.load(Ordering::SeqCst) <= stop_at && told.get().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            // What finishes behind an acknowledged commit passes points too: none of them may crash the shard again
            // while it starts.
            gateway.set_control(None);
            bed.cluster.restart_shard(2).await.expect("restart");
        });
        let told = told.into_inner().expect("an end");
        // The first statement there after an acknowledged commit sees it, whatever is still to be finished.
        if told.is_ok() {
            let mut reading = begin(&gateway);
            let seen = run(&mut reading, 2, "SELECT balance FROM account WHERE id = 1")
                .await
                .expect("ready");
            assert_eq!(
                seen,
                Some((before[1] + 1).to_string()),
                "stopped at {stop_at}: acknowledged, and not seen"
            );
            reading.rollback().await.expect("rollback");
        }
        bed.until_nothing_is_prepared(RECOVERY_LIMIT).await;
        let there = took_effect(&bed, &before, 1).await;
        check_told(&told, there, &format!("crashed at {stop_at}"));
    }
}

/// A gid of a gateway, prepared by hand on some shards.
async fn leave_prepared(
    bed: &Bed,
    gateway: &str,
    number: u64,
    participants: &[u32],
    on: &[u32],
    account: i32,
) -> String {
    let gid = Gid {
        cluster: bed::CLUSTER.into(),
        database: database_hash("postgres"),
        participants: participants.iter().map(|n| ShardId(*n)).collect(),
        sequence: SequenceId {
            gateway: gateway.into(),
            incarnation: 1,
            generation: 0,
        },
        number,
        last: None,
    };
    let (name, sequence) = (gid.to_string(), gid.sequence.to_string());
    for shard in on {
        let proof = proof(bed::SECRET, &name);
        let register = format!(
            "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation) VALUES ('{sequence}', '{gateway}', 1) ON CONFLICT DO NOTHING"
        );
        bed.sql(*shard, &register).await;
        let statements = format!(
            "BEGIN; UPDATE account SET balance = balance + 1 WHERE id = {account};
             SELECT pgherd.write_marker('{name}', '{proof}'); PREPARE TRANSACTION '{name}'"
        );
        bed.sql(*shard, &statements).await;
    }
    name
}

#[tokio::test]
async fn only_the_dead_are_recovered() {
    let bed = Bed::start(3).await;
    bed.lease("other", 1, "1 hour").await;
    let half = leave_prepared(&bed, "other", 1, &[1, 2], &[1], 1).await;
    let whole = leave_prepared(&bed, "other", 2, &[2, 3], &[2, 3], 2).await;
    // Not ours: another cluster's, and a client's.
    bed.sql(
        1,
        "BEGIN; UPDATE account SET balance = 1 WHERE id = 7; PREPARE TRANSACTION 'pgherd:elsewhere:0:6:other:1.0:1'",
    )
    .await;
    bed.sql(
        1,
        "BEGIN; UPDATE account SET balance = 1 WHERE id = 8; PREPARE TRANSACTION 'mine'",
    )
    .await;
    let _gateway = bed.gateway("gw1", 2).await;
    let prepared = bed.prepared_gids().await;
    assert!([&half, &whole].iter().all(|gid| prepared.contains(gid)), "{prepared:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.prepared().await, 5, "the other gateway is alive");

    bed.lease("other", 1, "-1 second").await;
    let begun = std::time::Instant::now();
    while bed.prepared().await > 2 {
        assert!(begun.elapsed() < RECOVERY_LIMIT, "not recovered");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bed.balances(1).await, [BALANCE; 3], "it was missing on one shard");
    assert_eq!(
        bed.balances(2).await,
        [BALANCE, BALANCE + 1, BALANCE + 1],
        "it was prepared everywhere"
    );

    // The gateway was only paused: what it sends now is refused.
    let proof = proof(bed::SECRET, &half);
    let late = bed
        .cluster
        .shard(2)
        .connect("postgres", "postgres")
        .await
        .expect("connect");
    let refused = late
        .batch_execute(&format!("BEGIN; SELECT pgherd.write_marker('{half}', '{proof}')"))
        .await;
    assert_eq!(
        refused.expect_err("fenced").code().map(|c| c.code().to_owned()),
        Some("23505".into())
    );
    // And its sequence takes no more: not even transactions that nobody knew of.
    let unknown = half.replace(":1.0:1", ":1.0:99");
    let proof = pgherd_transaction::gid::proof(bed::SECRET, &unknown);
    let begun = std::time::Instant::now();
    loop {
        late.batch_execute("ROLLBACK").await.expect("rollback");
        match late
            .batch_execute(&format!("BEGIN; SELECT pgherd.write_marker('{unknown}', '{proof}')"))
            .await
        {
            Err(e) => break assert_eq!(e.code().map(|c| c.code().to_owned()), Some("PGH01".into())),
            Ok(()) => assert!(begun.elapsed() < Duration::from_secs(12), "its sequence was not closed"),
        }
        late.batch_execute("ROLLBACK").await.expect("rollback");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for name in ["mine", "pgherd:elsewhere:0:6:other:1.0:1"] {
        bed.sql(1, &format!("ROLLBACK PREPARED '{name}'")).await;
    }
}

#[tokio::test]
async fn a_gateway_that_was_taken_for_dead_goes_on_under_a_new_sequence() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 2).await;
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    for shard in bed.ids() {
        bed.sql(shard, "UPDATE pgherd.dtx_sequence SET closed = true").await;
    }
    assert_eq!(state(&transaction.commit().await.expect_err("closed")), "40001");
    assert_eq!(bed.balances(1).await, [BALANCE; 2]);
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    transaction.commit().await.expect("commit");
    assert_eq!(bed.balances(1).await, [BALANCE - 1, BALANCE + 1]);
    assert_eq!(bed.prepared().await, 0);
}

/// A client's connection is cut while the reply to PREPARE is on its way: the transaction is prepared or fenced, never both.
#[tokio::test]
async fn a_lost_reply_is_looked_into() {
    let bed = Arc::new(Bed::start(3).await);
    let gateway = bed.gateway("gw1", 2).await;
    let cut = bed.clone();
    gateway.set_control(Some(Arc::new(move |point| {
        if point == Point::Before(Action::Prepare(ShardId(3))) {
            std::thread::scope(|scope| {
                let terminate = || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .expect("runtime");
                    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
                    runtime.block_on(cut.sql(2, sql));
                };
                scope.spawn(terminate).join().expect("terminated");
            });
        }
        true
    })));
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &CHANGES).await.expect("updates");
    let before = [BALANCE; 3];
    let told = transaction.commit().await;
    assert!(told.is_err(), "its backend was gone before it could prepare");
    bed.until_nothing_is_prepared(RECOVERY_LIMIT).await;
    assert!(!took_effect(&bed, &before, 1).await);
    check_told(&told, false, "terminated");
}
