//! One gateway reads a table in a loop while another creates, distributes, splits, alters and drops it.

use super::{run, three_shards, value};
use nix::sys::signal::Signal;
use pgherd_testkit::faults::whole_answers::{ROWS, Readers, Seen, fill};
use pgherd_testkit::herd::{Gateway, Herd};
use std::time::Duration;
use tokio_postgres::Client;

/// How often the table goes through its life; a thorough run says more.
fn lives() -> usize {
    let asked = std::env::var("PGHERD_LIVES").ok();
    asked.map_or(2, |text| text.parse().expect("PGHERD_LIVES is a number"))
}

/// The table's whole life. Between the steps, `pause` lets others look.
async fn life(client: &Client, mut pause: impl AsyncFnMut()) {
    run(client, "CREATE TABLE whole (k int PRIMARY KEY, x bigint NOT NULL)").await;
    pause().await;
    run(client, &fill()).await;
    pause().await;
    run(client, "SET pgherd.initial_bounds = 'int 300,600'").await;
    run(client, "CALL pgherd.distribute('whole', 'k')").await;
    assert_eq!(
        value(
            client,
            "SELECT count(DISTINCT shard) FROM pgherd.ranges WHERE \"table\" = 'whole'"
        )
        .await,
        "3"
    );
    pause().await;
    run(client, "ALTER TABLE whole ADD COLUMN y int NOT NULL DEFAULT 5").await;
    pause().await;
    run(client, "CREATE INDEX whole_x ON whole (x)").await;
    pause().await;
    run(client, "ALTER TABLE whole ALTER COLUMN x TYPE numeric").await;
    pause().await;
    run(client, "CALL pgherd.split('whole', 2000, to => 'shard2')").await;
    pause().await;
    run(client, "CALL pgherd.split('whole', 450)").await;
    pause().await;
    assert_eq!(
        value(client, "SELECT count(*) FROM pgherd.ranges WHERE \"table\" = 'whole'").await,
        "5"
    );
    assert_eq!(value(client, "SELECT sum(y) FROM whole").await, (ROWS * 5).to_string());
    run(client, "DROP TABLE whole").await;
    pause().await;
    // The same name once more, sharded from its birth.
    run(
        client,
        "CREATE TABLE whole (k int PRIMARY KEY, x bigint NOT NULL) PARTITION BY RANGE (k);
         CREATE TABLE whole_1 PARTITION OF whole FOR VALUES FROM (MINVALUE) TO (400);
         CREATE TABLE whole_2 PARTITION OF whole FOR VALUES FROM (400) TO (MAXVALUE)",
    )
    .await;
    run(client, &fill()).await;
    pause().await;
    run(client, "DROP TABLE whole").await;
    pause().await;
}

/// Errors that a reader may meet: there is no table now; a change is under way; a statement was overtaken by one.
const EXPECTED: [&str; 6] = ["42P01", "40001", "57P03", "55P03", "0A000", "25P02"];

fn judge(seen: &Seen, gateways: &[&Gateway]) {
    assert_eq!(seen.partial, Vec::<String>::new(), "a part was given out as the whole");
    assert!(seen.full > 0, "nobody ever saw the whole table: {seen:?}");
    for (state, sample) in &seen.samples {
        assert!(EXPECTED.contains(&state.as_str()), "{state}: {sample}");
    }
    for gateway in gateways {
        assert!(!gateway.errors().contains("panicked"), "{}", gateway.errors());
    }
    eprintln!(
        "{} whole answers, {} empty ones, errors {:?}",
        seen.full, seen.empty, seen.errors
    );
}

async fn two_gateways() -> (Herd, Gateway, Gateway) {
    let herd = three_shards().await;
    let reads = herd.gateway("reads").await.expect("gateway");
    let changes = herd.gateway("changes").await.expect("gateway");
    (herd, reads, changes)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_whole_while_another_gateway_changes_the_table() {
    let (_herd, reads, changes) = two_gateways().await;
    let client = changes.connect().await.expect("connect");
    let readers = Readers::start(&reads.config()).await.expect("readers");
    for _ in 0..lives() {
        life(&client, async || readers.wait_for(25).await).await;
    }
    judge(&readers.stop().await, &[&reads, &changes]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_whole_on_the_gateway_that_changes_the_table() {
    let (_herd, _idle, changes) = two_gateways().await;
    let client = changes.connect().await.expect("connect");
    let readers = Readers::start(&changes.config()).await.expect("readers");
    for _ in 0..lives() {
        life(&client, async || readers.wait_for(25).await).await;
    }
    judge(&readers.stop().await, &[&changes]);
}

/// Changes the table while the gateway that `stands_still` may hold locks in an open transaction on the shards, which
/// nobody can take from it: then the change is given up with 55P03, and works once that gateway goes on.
async fn change_beside(stands_still: &Gateway, client: &Client, sql: &str) {
    match client.batch_execute(sql).await {
        Ok(()) => {}
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE) => {
            stands_still.signal(Signal::SIGCONT);
            run(client, sql).await;
        }
        Err(error) => panic!("{sql}: {}", super::say(&error)),
    }
}

/// A gateway that stands still loses its lease, and must not answer from what it knew when it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_gateway_gives_no_stale_answer() {
    let (_herd, reads, changes) = two_gateways().await;
    let client = changes.connect().await.expect("connect");
    let readers = Readers::start(&reads.config()).await.expect("readers");
    run(&client, "CREATE TABLE whole (k int PRIMARY KEY, x bigint NOT NULL)").await;
    run(&client, &fill()).await;
    readers.wait_for(50).await;
    run(&client, "SET pgherd.initial_bounds = 'int 300,600'").await;

    reads.signal(Signal::SIGSTOP);
    // Waits until the lease of the one that stands still is over, and then moves two thirds of the rows away.
    change_beside(&reads, &client, "CALL pgherd.distribute('whole', 'k')").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    reads.signal(Signal::SIGCONT);
    readers.wait_for(100).await;

    reads.signal(Signal::SIGSTOP);
    change_beside(&reads, &client, "DROP TABLE whole").await;
    run(&client, "CREATE TABLE whole (k int PRIMARY KEY, x bigint NOT NULL)").await;
    reads.signal(Signal::SIGCONT);
    readers.wait_for(100).await;
    run(&client, &fill()).await;
    readers.wait_for(50).await;
    judge(&readers.stop().await, &[&reads, &changes]);
    let again = reads.connect().await.expect("the gateway has a lease again");
    assert_eq!(value(&again, "SELECT count(*) FROM whole").await, ROWS.to_string());
}

/// A gateway that dies in the middle of a change leaves the table as it was or as it was to be.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_in_a_change_leaves_a_whole_table() {
    let herd = three_shards().await;
    let lives = herd.gateway("lives").await.expect("gateway");
    let client = lives.connect().await.expect("connect");
    run(&client, "CREATE TABLE whole (k int PRIMARY KEY, x bigint NOT NULL)").await;
    run(&client, &fill()).await;
    let readers = Readers::start(&lives.config()).await.expect("readers");
    for attempt in 0..4_u64 {
        let dies = herd.gateway("dies").await.expect("gateway");
        let victim = dies.connect().await.expect("connect");
        run(&victim, "SET pgherd.initial_bounds = 'int 300,600'").await;
        let change = tokio::spawn(async move { victim.batch_execute("CALL pgherd.distribute('whole', 'k')").await });
        tokio::time::sleep(Duration::from_millis(20 + attempt * 60)).await;
        dies.kill().await;
        let outcome = change.await.expect("the task");
        readers.wait_for(40).await;
        // The table can be changed again, once what the dead gateway announced is cleared away.
        run(&client, &format!("ALTER TABLE whole ADD COLUMN a{attempt} int")).await;
        if outcome.is_ok()
            || value(&client, "SELECT count(*) FROM pgherd.tables WHERE \"table\" = 'whole'").await == "1"
        {
            break;
        }
    }
    judge(&readers.stop().await, &[&lives]);
}

/// What PostgreSQL says of a view locks what the view reads. While somebody holds that (here without a gateway, as a transaction in doubt
/// would), schema changes go on, and a gateway starts; it knows the view as soon as that is over. Nor do changes keep such locks.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_under_a_view_holds_up_nobody_else() {
    let herd = three_shards().await;
    let gateway = herd.gateway("g1").await.expect("gateway");
    let client = gateway.connect().await.expect("connect");
    run(
        &client,
        "CREATE TABLE seen (k int PRIMARY KEY) PARTITION BY RANGE (k); CREATE VIEW view_of_it AS SELECT k + 1 AS k FROM seen; \
         CREATE TABLE near (n int); CREATE VIEW view_of_near AS SELECT * FROM near; INSERT INTO seen VALUES (1)",
    )
    .await;

    run(
        &client,
        "BEGIN; CREATE TABLE another (k int PRIMARY KEY) PARTITION BY RANGE (k)",
    )
    .await;
    let kept =
        "SELECT count(*) FROM pg_locks WHERE relation IN ('seen'::regclass, 'near'::regclass, 'view_of_it'::regclass)";
    assert_eq!(
        value(&client, kept).await,
        "0",
        "locks of what the change does not concern"
    );
    run(&client, "COMMIT").await;

    let holder = herd
        .cluster()
        .shard(1)
        .connect("postgres", "postgres")
        .await
        .expect("connect");
    run(&holder, "BEGIN; LOCK TABLE seen, near IN ACCESS EXCLUSIVE MODE").await;
    let in_time = async {
        run(&client, "CREATE TABLE third (k int PRIMARY KEY) PARTITION BY RANGE (k)").await;
        let second = herd.gateway("g2").await.expect("a gateway that starts meanwhile");
        let beside = second.connect().await.expect("connect");
        run(&beside, "INSERT INTO third VALUES (1)").await;
        assert_eq!(value(&beside, "SELECT count(*) FROM third").await, "1");
        (second, beside)
    };
    let (_second, beside) = tokio::time::timeout(Duration::from_secs(40), in_time)
        .await
        .expect("held up");
    run(&holder, "COMMIT").await;
    let mut tries = 0;
    while beside.batch_execute("SELECT * FROM view_of_it").await.is_err() {
        tries += 1;
        assert!(tries < 100, "the view stays unknown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(value(&beside, "SELECT k FROM view_of_it").await, "2");
}
