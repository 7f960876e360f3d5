//! One anomaly after the other, with two or three sessions.

use super::{BEGIN, Bed, ask, ended, refused, run, spawn};

/// Two transactions read the same, and each writes what the other has read: the second one waits, and reads what the first
/// has written.
async fn skew(bed: &Bed, read: &str, writes: [&str; 2], answers: [&str; 2]) {
    let (one, two) = (bed.client(0).await, bed.client(1).await);
    run(&one, BEGIN).await;
    run(&two, BEGIN).await;
    assert_eq!(run(&one, read).await, answers[0], "{read}");
    let reading = spawn(&two, read);
    bed.until_waiting(1, read).await;
    run(&one, writes[0]).await;
    run(&one, "COMMIT").await;
    assert_eq!(ended(reading).await.expect(read), answers[1], "{read}");
    run(&two, writes[1]).await;
    run(&two, "COMMIT").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_skew_does_not_happen() {
    let bed = Bed::start().await;
    // Two shards, one shard, one shard and a local table, a predicate, keys that are not there, a view, a join.
    let sum = "SELECT sum(v) FROM t WHERE k IN (1, 9)";
    let writes = [
        "UPDATE t SET v = v + 1 WHERE k = 1",
        "UPDATE t SET v = v + 1 WHERE k = 9",
    ];
    skew(&bed, sum, writes, ["0", "1"]).await;
    let sum = "SELECT sum(v) FROM t WHERE k IN (1, 2)";
    let writes = [
        "UPDATE t SET v = v + 1 WHERE k = 1",
        "UPDATE t SET v = v + 1 WHERE k = 2",
    ];
    skew(&bed, sum, writes, ["1", "2"]).await;
    let sum = "SELECT t.v + l.v FROM t JOIN near l USING (k) WHERE k = 1";
    let writes = ["UPDATE t SET v = 10 WHERE k = 1", "UPDATE near SET v = 10 WHERE k = 1"];
    skew(&bed, sum, writes, ["2", "10"]).await;
    let writes = ["INSERT INTO t VALUES (10, 50)", "INSERT INTO t VALUES (-1, 50)"];
    skew(&bed, "SELECT count(*) FROM t WHERE v = 50", writes, ["0", "1"]).await;
    let missing = "SELECT count(*) FROM t WHERE k IN (-10, 20)";
    let writes = ["INSERT INTO t VALUES (20, 0)", "INSERT INTO t VALUES (-10, 0)"];
    skew(&bed, missing, writes, ["0", "1"]).await;
    let client = bed.client(0).await;
    run(
        &client,
        "CREATE VIEW high AS SELECT t.k FROM t, near WHERE t.k = near.k AND t.v > 100",
    )
    .await;
    let writes = ["UPDATE t SET v = 200 WHERE k = 1", "UPDATE t SET v = 200 WHERE k = 2"];
    skew(&bed, "SELECT count(*) FROM high", writes, ["0", "1"]).await;
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_their_own_and_every_way_to_read_wait_for_writers_and_keep_them_out() {
    let bed = Bed::start().await;
    let (writer, reader) = (bed.client(0).await, bed.client(1).await);
    run(&reader, "SET default_transaction_isolation = 'serializable'").await;
    // What it gives while the transaction's row is not there, and afterwards.
    let reads = [
        ("SELECT count(*) FROM t WHERE v = 7", "1"),
        ("SELECT count(*) FROM t WHERE k = 9 AND v = 7", "0"),
        ("SELECT v FROM t WHERE k = 100", "7"),
        (
            "INSERT INTO near SELECT 100, count(*) FROM t WHERE v = 7 RETURNING v",
            "1",
        ),
        ("UPDATE t SET v = v + 1 WHERE v = 7 RETURNING k", "100"),
        ("DELETE FROM t WHERE v >= 7 RETURNING k", "100"),
        (
            "WITH n AS (SELECT count(*) AS c FROM t WHERE v = 7) SELECT c FROM n",
            "1",
        ),
        (
            "CREATE TABLE made AS SELECT k FROM t WHERE v = 7; SELECT count(*) FROM made",
            "1",
        ),
        (
            "BEGIN; DECLARE c CURSOR FOR SELECT k FROM t WHERE v = 7 ORDER BY k; FETCH ALL FROM c",
            "100",
        ),
        ("PREPARE p AS SELECT k FROM t WHERE v = $1; EXECUTE p(7)", "100"),
        ("INSERT INTO t VALUES (100, 1) ON CONFLICT DO NOTHING RETURNING k", ""),
    ];
    for (read, answer) in reads {
        run(&writer, "BEGIN; INSERT INTO t VALUES (100, 7)").await;
        let reading = spawn(&reader, read);
        bed.until_waiting(1, read).await;
        run(&writer, "COMMIT").await;
        assert_eq!(ended(reading).await.expect(read), answer, "{read}");
        let _ = ask(&reader, "ROLLBACK").await;
        run(
            &writer,
            "DELETE FROM t WHERE k = 100; DROP TABLE IF EXISTS made; DELETE FROM near WHERE k = 100",
        )
        .await;
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_is_told_as_a_serialization_failure() {
    let bed = Bed::start().await;
    let (one, two) = (bed.client(0).await, bed.client(1).await);
    for (client, key) in [(&one, 10), (&two, -1)] {
        run(client, BEGIN).await;
        run(client, &format!("INSERT INTO t VALUES ({key}, 1)")).await;
    }
    // Each reads where the other has written, on another shard.
    let first = spawn(&one, "SELECT sum(v) FROM t WHERE k < 3");
    let second = spawn(&two, "SELECT sum(v) FROM t WHERE k > 6");
    let (first, second) = (ended(first).await, ended(second).await);
    let failed: Vec<_> = [&first, &second].into_iter().filter_map(|r| r.as_ref().err()).collect();
    assert_eq!(failed.len(), 1, "{first:?} {second:?}");
    assert_eq!(failed[0].code().code(), "40001", "{failed:?}");
    assert!(
        failed[0].message().starts_with("could not serialize access"),
        "{failed:?}"
    );
    for client in [&one, &two] {
        let _ = ask(client, "ROLLBACK").await;
    }
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_sharded_tables_has_postgresqls_own() {
    let bed = Bed::bare().await;
    let (one, two) = (bed.client(0).await, bed.client(1).await);
    run(
        &one,
        "CREATE TABLE l (k int PRIMARY KEY, v int); INSERT INTO l VALUES (1, 0), (2, 0)",
    )
    .await;
    let both = |sql: &'static str| async { (run(&one, sql).await, run(&two, sql).await) };
    both(BEGIN).await;
    // Nobody waits, functions may be called, and one of them fails when it would be too late.
    assert_eq!(both("SELECT sum(v) FROM l").await, ("0".into(), "0".into()));
    assert_eq!(
        run(&one, "SELECT current_setting('transaction_isolation')").await,
        "serializable"
    );
    run(&one, "DO $$ BEGIN PERFORM count(*) FROM l; END $$").await;
    run(&one, "UPDATE l SET v = 1 WHERE k = 1").await;
    run(&two, "UPDATE l SET v = 1 WHERE k = 2").await;
    run(&one, "COMMIT").await;
    assert_eq!(refused(&two, "COMMIT").await, "40001");
    // One that is open when the first table is sharded does not go on beside those that take locks.
    run(&one, BEGIN).await;
    assert_eq!(run(&one, "SELECT sum(v) FROM l").await, "1");
    run(&two, "SET pgherd.initial_bounds = 'int 3,7'").await;
    run(&two, "CREATE TABLE t (k int PRIMARY KEY) PARTITION BY RANGE (k)").await;
    assert_eq!(refused(&one, "UPDATE l SET v = 2 WHERE k = 2").await, "40001");
    run(&one, "ROLLBACK").await;
    // When it is gone, locks are still taken: others may have begun before.
    run(&two, "DROP TABLE t").await;
    run(&one, BEGIN).await;
    assert_eq!(run(&one, "SHOW transaction_isolation").await, "serializable");
    run(&one, "SELECT sum(v) FROM l").await;
    run(&two, BEGIN).await;
    let waiting = spawn(&two, "SELECT sum(v) FROM l");
    bed.until_waiting(1, "the sum").await;
    run(&one, "COMMIT").await;
    assert_eq!(ended(waiting).await.expect("the sum"), "1");
    run(&two, "COMMIT").await;
    bed.stop().await;
}
