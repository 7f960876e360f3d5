//! Messages and gateways that come too late: after a transaction was settled by others, and its markers were deleted.

mod bed;

use bed::{Bed, add, app, begin, fragment, state};
use pgherd_model::ShardId;
use pgherd_transaction::control::Point;
use pgherd_transaction::gid::{Gid, SequenceId, database_hash, proof};
use pgherd_transaction::two_phase_commit::Action;
use pgherd_transaction::{Isolation, Mode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs SQL on a shard from within a control point, which is no place to wait in.
fn sql_now(bed: &Bed, shard: u32, sql: &str) {
    std::thread::scope(|scope| {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(bed.sql(shard, sql));
        };
        scope.spawn(run).join().expect("ran");
    });
}

/// A transaction of the gateway's sequence that the tests enter.
fn gid(number: u64) -> Gid {
    Gid {
        cluster: bed::CLUSTER.into(),
        database: database_hash("postgres"),
        participants: vec![ShardId(1), ShardId(2)],
        sequence: SequenceId {
            gateway: "gw1".into(),
            incarnation: 1,
            generation: 0,
        },
        number,
        last: None,
    }
}

async fn superuser(bed: &Bed) -> tokio_postgres::Client {
    let shard = bed.cluster.shard(1);
    shard.connect("postgres", "postgres").await.expect("connect")
}

/// A PREPARE may be on its way for longer than its fence is kept.
#[tokio::test]
async fn a_marker_of_a_settled_number_is_refused() {
    let bed = Bed::start(1).await;
    bed.sql(
        1,
        "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation, settled) VALUES ('gw1:1.0', 'gw1', 1, 5)",
    )
    .await;
    let client = superuser(&bed).await;
    for (number, expected) in [(5, Some("PGH01")), (6, None)] {
        let name = gid(number).to_string();
        let sql = format!(
            "BEGIN; SELECT pgherd.write_marker('{name}', '{}')",
            proof(bed::SECRET, &name)
        );
        let written = client.batch_execute(&sql).await;
        let state = written.err().and_then(|e| e.code().map(|c| c.code().to_owned()));
        assert_eq!(state.as_deref(), expected, "number {number}");
        client.batch_execute("ROLLBACK").await.expect("rollback");
    }
}

/// A gateway that lost an answer, stood still for long and was taken for dead finds the key of its marker free, and may not
/// conclude that nothing was committed.
#[tokio::test]
async fn the_fence_of_a_gateway_taken_for_dead_proves_nothing() {
    let bed = Arc::new(Bed::start(2).await);
    let gateway = bed.gateway("gw1", 2).await;
    let (acting, closed) = (bed.clone(), Arc::new(AtomicBool::new(false)));
    let fenced = closed.clone();
    gateway.set_control(Some(Arc::new(move |point| {
        match point {
            Point::Before(Action::Prepare(ShardId(1))) => {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
                sql_now(&acting, 2, sql);
            }
            Point::Before(Action::Fence(ShardId(2))) => {
                sql_now(&acting, 2, "UPDATE pgherd.dtx_sequence SET closed = true");
                fenced.store(true, Ordering::SeqCst);
            }
            _ => {}
        }
        true
    })));
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    let told = transaction.commit().await.expect_err("it lost a participant");
    assert!(closed.load(Ordering::SeqCst), "it came to a fence");
    assert_eq!(state(&told), "08007", "{told}");
    bed.until_nothing_is_prepared(Duration::from_secs(5)).await;
    assert_eq!(bed.balances(1).await, [bed::BALANCE; 2]);
}

/// A gateway that stands still before it prepares, at REPEATABLE READ: whoever takes it for dead closes its sequence, and settles
/// all its numbers. Its transaction's snapshot, which its marker is written in, is older than that.
#[tokio::test]
async fn one_old_snapshot_does_not_hide_that_a_gateway_was_taken_for_dead() {
    let close = "UPDATE pgherd.dtx_sequence SET closed = true";
    for (level, closing, expected) in [
        (Isolation::ReadCommitted, Some(close), Some("40001")),
        (Isolation::RepeatableRead, Some(close), Some("40001")),
        (Isolation::RepeatableRead, None, None),
    ] {
        let bed = Arc::new(Bed::start(2).await);
        let gateway = bed.gateway("gw1", 2).await;
        let acting = bed.clone();
        gateway.set_control(Some(Arc::new(move |point| {
            if let (Point::Before(Action::Prepare(ShardId(1))), Some(sql)) = (point, closing) {
                sql_now(&acting, 1, sql);
                sql_now(&acting, 2, sql);
            }
            true
        })));
        let mode = Mode {
            isolation: Some(level),
            ..Mode::default()
        };
        let mut transaction = gateway.begin(app(), mode);
        add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
        let told = transaction.commit().await;
        let told = told.map_err(|error| state(&error)).err();
        assert_eq!(told.as_deref(), expected, "{level:?} {closing:?}");
        bed.until_nothing_is_prepared(Duration::from_secs(5)).await;
        let change = i64::from(expected.is_none());
        assert_eq!(bed.balances(1).await, [bed::BALANCE - change, bed::BALANCE + change]);
    }
}

/// A PREPARE at REPEATABLE READ that was on its way for longer than its fence was kept.
#[tokio::test]
async fn one_old_snapshot_does_not_hide_that_a_fence_was_there() {
    let bed = Bed::start(1).await;
    bed.sql(
        1,
        "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation) VALUES ('gw1:1.0', 'gw1', 1)",
    )
    .await;
    let client = superuser(&bed).await;
    for (number, is_fenced) in [(1, false), (2, true), (3, false)] {
        let name = gid(number).to_string();
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT";
        client.batch_execute(begin).await.expect("its snapshot");
        if is_fenced {
            for sql in [
                &format!("SELECT pgherd.fence_marker('{name}')"),
                "UPDATE pgherd.dtx_sequence SET settled = 2",
                "DELETE FROM pgherd.dtx",
            ] {
                bed.sql(1, sql).await;
            }
        }
        let sql = format!("SELECT pgherd.write_marker('{name}', '{}')", proof(bed::SECRET, &name));
        let written = client.batch_execute(&sql).await;
        let state = written.err().and_then(|e| e.code().map(|c| c.code().to_owned()));
        assert_eq!(state.as_deref(), is_fenced.then_some("40001"), "number {number}");
        client.batch_execute("ROLLBACK").await.expect("rollback");
    }
}

/// What a dead gateway wrote goes however much it is, and whatever PostgreSQL believes how much that is: its statistics are of
/// another time nearly always, and a join for them compares each marker with each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_markers_are_deleted() {
    let bed = Bed::start(2).await;
    for shard in bed.ids() {
        bed.sql(
            shard,
            "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation, settled, closed, settled_at)
             VALUES ('dead:1.0', 'dead', 1, 9223372036854775807, true, now() - interval '1 hour');
             ALTER TABLE pgherd.dtx SET (autovacuum_enabled = off);
             INSERT INTO pgherd.dtx (gid, state, sequence, number) SELECT 'x' || n, 'p', 'x', n FROM generate_series(1, 1000) n;
             ANALYZE pgherd.dtx;
             INSERT INTO pgherd.dtx (gid, state, sequence, number)
             SELECT 'pgherd:test:00000000:3:dead:1.0:' || n, 'p', 'dead:1.0', n FROM generate_series(1, 200000) n",
        )
        .await;
    }
    let _gateway = bed.gateway("gw1", 2).await;
    let begun = Instant::now();
    for shard in bed.ids() {
        while bed
            .number(shard, "SELECT count(*) FROM pgherd.dtx WHERE sequence = 'dead:1.0'")
            .await
            > 0
        {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "markers are left on shard {shard}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A cut looks at the markers behind the watermark only, also where the statistics say that all markers are of one sequence.
#[tokio::test]
async fn settled_markers_are_not_looked_at() {
    let bed = Bed::start(1).await;
    bed.sql(
        1,
        "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation) VALUES ('busy:1.0', 'busy', 1);
         INSERT INTO pgherd.dtx (gid, state, sequence, number)
         SELECT 'pgherd:test:00000000:3:busy:1.0:' || n, 'p', 'busy:1.0', n FROM generate_series(1, 50000) n ORDER BY random();
         ANALYZE pgherd.dtx, pgherd.dtx_sequence",
    )
    .await;
    let client = superuser(&bed).await;
    let list = "SELECT cardinality(pgherd.visible_markers('{busy:1.0}', '{49990}'))";
    // The last times with a plan that is kept.
    for _ in 0..8 {
        let listed: i32 = client.query_one(list, &[]).await.expect("list").get(0);
        assert_eq!(listed, 10);
    }
    let read = "SELECT pg_stat_get_xact_tuples_returned('pgherd.dtx'::regclass) + pg_stat_get_xact_tuples_fetched('pgherd.dtx'::regclass)";
    client.batch_execute("BEGIN").await.expect("begin");
    let before: i64 = client.query_one(read, &[]).await.expect("statistics").get(0);
    client.query_one(list, &[]).await.expect("list");
    let rows = client.query_one(read, &[]).await.expect("statistics").get::<_, i64>(0) - before;
    assert!(rows <= 20, "{rows} rows were read");
    client.batch_execute("ROLLBACK").await.expect("rollback");
}

/// Gateways give up a database that nobody uses, and may come back soon and often. What such a one has committed is settled: nobody takes it
/// for dead, which would cost transactions with one snapshot, and its name is not kept for a day.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_is_soon_forgotten() {
    let bed = Bed::start(2).await;
    let (one, other) = (bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await);
    let mut transaction = begin(&one);
    add(&mut transaction, 1, &[(1, 1), (2, -1)]).await.expect("updates");
    transaction.commit().await.expect("commit");
    let fragments = [1, 2].map(|shard| fragment(shard, "f0", "SELECT balance FROM account"));
    let mut reader = begin(&other);
    reader.open_cut(&fragments).await.expect("a cut that shows it");
    one.end().await;
    drop(one);
    for shard in bed.ids() {
        let ended = "SELECT count(*) FROM pgherd.dtx_sequence WHERE gateway = 'gw1' AND ended AND NOT closed";
        assert_eq!(bed.number(shard, ended).await, 1, "shard {shard}");
        bed.sql(
            shard,
            "UPDATE pgherd.dtx_sequence SET settled_at = now() - interval '2 min' WHERE ended",
        )
        .await;
    }
    let begun = Instant::now();
    for shard in bed.ids() {
        let left = "SELECT (SELECT count(*) FROM pgherd.dtx_sequence WHERE gateway = 'gw1') \
                    + (SELECT count(*) FROM pgherd.dtx WHERE sequence = 'gw1:1.0')";
        while bed.number(shard, left).await > 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "not forgotten on shard {shard}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let refusals = bed.number(shard, "SELECT last_value FROM pgherd.last_refusal").await;
        assert_eq!(refusals, 0, "shard {shard}");
    }
    reader.open_cut(&fragments).await.expect("what it has seen is settled");
    reader.commit().await.expect("commit");
}
