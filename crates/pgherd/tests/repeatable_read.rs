//! REPEATABLE READ beside changes of the tables' ranges, as clients of two gateways see it: a snapshot either shows all of
//! a table's rows or is refused with 40001, and schema changes stay out of it.

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use tokio_postgres::{Client, SimpleQueryMessage};

const BOUNDS: &str = "SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 300,600'";
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ";
const ROWS: &str = "900";

async fn two_gateways() -> (Herd, [Gateway; 2]) {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("three shards");
    let gateways = [
        herd.gateway("gw1").await.expect("a gateway"),
        herd.gateway("gw2").await.expect("a gateway"),
    ];
    (herd, gateways)
}

/// The first value of the last result, or the SQLSTATE.
async fn ask(client: &Client, sql: &str) -> Result<String, String> {
    let messages = client.simple_query(sql).await.map_err(|error| {
        let code = error.as_db_error().map(|e| e.code().code().to_owned());
        code.unwrap_or_else(|| panic!("{sql}: {error:?}"))
    })?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    Ok(rows.last().unwrap_or_default())
}

async fn run(client: &Client, sql: &str) -> String {
    ask(client, sql).await.unwrap_or_else(|state| panic!("{sql}: {state}"))
}

/// Table `t` of 900 rows on three shards, and `other`.
async fn fill(client: &Client) {
    for sql in [
        BOUNDS,
        "CREATE TABLE t (k int PRIMARY KEY, v int)",
        // With bounds of its own, or it would be split together with the other.
        "SET pgherd.initial_bounds = 'int 250,500'",
        "CREATE TABLE other (k int PRIMARY KEY, v int)",
        "INSERT INTO t SELECT n, 1 FROM generate_series(1, 900) n",
        "INSERT INTO other SELECT n, 1 FROM generate_series(1, 900) n",
        "RESET pgherd.default_distribution; RESET pgherd.initial_bounds",
        "CREATE TABLE local (k int PRIMARY KEY, v int)",
        "INSERT INTO local SELECT n, 1 FROM generate_series(1, 900) n",
    ] {
        run(client, sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_does_not_lose_rows_that_move() {
    let (herd, gateways) = two_gateways().await;
    let reader = gateways[0].connect().await.expect("connect");
    let mover = gateways[1].connect().await.expect("connect");
    let settings = "SET pgherd.initial_bounds = 'int 300,600'";
    fill(&mover).await;
    let changes = [
        "CALL pgherd.split('t', 450, to => 'shard3')",
        "CALL pgherd.split('t', 100)",
        "CALL pgherd.distribute('local', 'k')",
    ];
    for change in changes {
        run(&mover, settings).await;
        // The snapshot is older than the change, and the tables were not read before.
        run(&reader, BEGIN).await;
        assert_eq!(run(&reader, "SELECT count(*) FROM other WHERE k < 10").await, "9");
        run(&mover, change).await;
        let table = if change.contains("local") { "local" } else { "t" };
        for query in ["SELECT count(*) FROM $", "SELECT count(*) + 899 FROM $ WHERE k = 440"] {
            run(&reader, "SAVEPOINT s").await;
            let found = ask(&reader, &query.replace('$', table)).await;
            assert_eq!(found, Err("40001".into()), "{change}: {query}");
            run(&reader, "ROLLBACK TO s").await;
        }
        run(&reader, "ROLLBACK").await;
        let count = format!("SELECT count(*) FROM {table}");
        assert_eq!(run(&reader, &count).await, ROWS, "{change}");
    }
    // Read before, the table is locked as PostgreSQL locks it, and the change waits.
    run(&reader, BEGIN).await;
    assert_eq!(run(&reader, "SELECT count(*) FROM t WHERE k < 10").await, "9");
    let change = tokio::spawn(async move {
        let outcome = ask(&mover, "SET lock_timeout = '30s'; CALL pgherd.split('t', 777)").await;
        (mover, outcome)
    });
    for _ in 0..5 {
        assert_eq!(run(&reader, "SELECT count(*) FROM t").await, ROWS);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    run(&reader, "COMMIT").await;
    let (mover, outcome) = change.await.expect("task");
    assert!(outcome.is_ok() || outcome == Err("55P03".into()), "{outcome:?}");
    assert_eq!(run(&mover, "SELECT count(*) FROM t").await, ROWS);
    // Local tables have nothing to do with it.
    run(
        &mover,
        "RESET pgherd.initial_bounds; CREATE TABLE apart (v int); INSERT INTO apart VALUES (1)",
    )
    .await;
    run(&reader, BEGIN).await;
    assert_eq!(run(&reader, "SELECT count(*) FROM apart").await, "1");
    run(&mover, "CALL pgherd.split('other', 444)").await;
    assert_eq!(run(&reader, "SELECT count(*) FROM apart").await, "1");
    run(&reader, "COMMIT").await;
    herd.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_changes_do_not_use_an_old_snapshot() {
    let (herd, gateways) = two_gateways().await;
    let client = gateways[0].connect().await.expect("connect");
    let other = gateways[1].connect().await.expect("connect");
    fill(&client).await;
    // In a block they would move rows as the snapshot shows them.
    for change in ["CALL pgherd.split('t', 450)", "CALL pgherd.distribute('local', 'k')"] {
        run(&client, BEGIN).await;
        run(&client, "SELECT count(*) FROM t").await;
        run(&other, "UPDATE t SET v = v + 1; UPDATE local SET v = v + 1").await;
        assert_eq!(ask(&client, change).await, Err("0A000".into()), "{change}");
        run(&client, "ROLLBACK").await;
    }
    // Alone they run as at every level, whatever the session's default is.
    run(&client, "SET default_transaction_isolation = 'repeatable read'").await;
    run(&client, "CALL pgherd.split('t', 450)").await;
    run(&client, "SET pgherd.initial_bounds = 'int 300,600'").await;
    run(&client, "CALL pgherd.distribute('local', 'k')").await;
    run(&client, "CREATE TABLE made (k int PRIMARY KEY) PARTITION BY RANGE (k)").await;
    for table in ["t", "local"] {
        assert_eq!(run(&other, &format!("SELECT sum(v) FROM {table}")).await, "2700");
    }
    // What is local stays possible in a block.
    run(&client, "BEGIN").await;
    assert_eq!(run(&client, "SELECT count(*) FROM t").await, ROWS);
    run(&client, "RESET pgherd.default_distribution").await;
    run(&client, "CREATE TABLE scratch (v int); INSERT INTO scratch VALUES (3)").await;
    assert_eq!(run(&client, "SELECT sum(v) FROM scratch").await, "3");
    assert_eq!(run(&client, "SELECT count(*) FROM t, scratch").await, ROWS);
    run(&client, "COMMIT").await;
    assert_eq!(run(&other, "SELECT sum(v) FROM scratch").await, "3");
    herd.stop().await;
}

/// What a role's default, several statements in one message, COPY and prepared statements see.
#[tokio::test(flavor = "multi_thread")]
async fn every_way_into_the_level_gives_one_snapshot() {
    let (herd, gateways) = two_gateways().await;
    let owner = gateways[0].connect().await.expect("connect");
    fill(&owner).await;
    run(
        &owner,
        "CREATE ROLE careful LOGIN; ALTER ROLE careful SET default_transaction_isolation = 'repeatable read'",
    )
    .await;
    run(&owner, "GRANT ALL ON t, other, local TO careful").await;
    let mut config = gateways[1].config();
    let (client, connection) = config
        .user("careful")
        .connect(tokio_postgres::NoTls)
        .await
        .expect("connect");
    tokio::spawn(connection);
    // The sleep lets another transaction in between two statements of one message.
    let several = "SELECT sum(v) FROM t WHERE k < 100; SELECT pg_sleep(1); SELECT sum(v) FROM t WHERE k > 500";
    let (seen, _) = tokio::join!(ask(&client, several), async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        run(&owner, "UPDATE t SET v = v + 1").await;
    });
    assert_eq!(seen, Ok("400".into()));
    assert_eq!(run(&client, "SELECT sum(v) FROM t").await, "1800");

    run(&client, "BEGIN").await;
    let statement = client
        .prepare("SELECT sum(v) FROM t WHERE k >= $1")
        .await
        .expect("prepare");
    let sum = async |from: i32| {
        client
            .query_one(&statement, &[&from])
            .await
            .expect("sum")
            .get::<_, i64>(0)
    };
    assert_eq!(sum(600).await, 602);
    run(&owner, "UPDATE t SET v = v + 1").await;
    assert_eq!(sum(1).await, 1800);
    assert_eq!(sum(900).await, 2);
    let mut copied = std::pin::pin!(client.copy_out("COPY t TO STDOUT").await.expect("copy"));
    let mut text = Vec::new();
    while let Some(chunk) = futures::StreamExt::next(&mut copied).await {
        text.extend_from_slice(&chunk.expect("data"));
    }
    let text = String::from_utf8(text).expect("text");
    assert_eq!(text.lines().filter(|line| line.ends_with("\t2")).count(), 900);
    assert_eq!(
        run(&client, "SELECT count(*) FROM t JOIN local ON local.k = t.v").await,
        ROWS
    );
    assert_eq!(
        ask(&client, "UPDATE t SET v = 0 WHERE k = 450").await,
        Err("40001".into())
    );
    run(&client, "ROLLBACK").await;
    assert_eq!(run(&client, "SELECT sum(v) FROM t").await, "2700");
    herd.stop().await;
}
