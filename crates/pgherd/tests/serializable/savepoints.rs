//! ROLLBACK TO gives up locks that were taken after the savepoint, and with them what was read.

use super::{BEGIN, Bed, refused, run};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_after_locks_were_given_up() {
    let bed = Bed::start().await;
    let client = bed.client(0).await;
    let other = bed.client(1).await;
    // What was locked before is not given up, and what did not succeed in locking has read nothing.
    run(&client, BEGIN).await;
    run(&client, "SELECT sum(v) FROM t").await;
    run(&client, "SAVEPOINT s; UPDATE t SET v = 1 WHERE k = 1; ROLLBACK TO s").await;
    assert_eq!(run(&client, "SELECT sum(v) FROM t").await, "0");
    run(&client, "SAVEPOINT r; SELECT v FROM near; RELEASE r").await;
    assert_eq!(run(&client, "SELECT sum(v) FROM near").await, "0");
    run(&client, "COMMIT").await;
    run(&other, "BEGIN; UPDATE near SET v = 5 WHERE k = 1").await;
    run(
        &client,
        &format!("{BEGIN}; SET LOCAL lock_timeout = '100ms'; SAVEPOINT s"),
    )
    .await;
    assert_eq!(refused(&client, "SELECT sum(v) FROM near").await, "55P03");
    run(&client, "ROLLBACK TO s").await;
    run(&other, "ROLLBACK").await;
    assert_eq!(run(&client, "SELECT sum(v) FROM near").await, "0");
    run(&client, "COMMIT").await;
    // An error that depends on a row has told something of it.
    run(&client, BEGIN).await;
    run(&client, "SAVEPOINT s").await;
    assert_eq!(refused(&client, "INSERT INTO t VALUES (5, 1)").await, "23505");
    run(&client, "ROLLBACK TO s").await;
    assert_eq!(refused(&client, "SELECT sum(v) FROM t").await, "0A000");
    run(&client, "ROLLBACK").await;
    // After a write, a savepoint's reads are given up with it.
    run(&client, BEGIN).await;
    run(&client, "INSERT INTO t VALUES (30, 1)").await;
    run(
        &client,
        "SAVEPOINT s; UPDATE t SET v = 1 WHERE k = 30; SELECT sum(v) FROM near; ROLLBACK TO s",
    )
    .await;
    assert_eq!(refused(&client, "SELECT sum(v) FROM near").await, "0A000");
    run(&client, "ROLLBACK").await;
    run(&client, BEGIN).await;
    run(&client, "INSERT INTO t VALUES (30, 1)").await;
    run(
        &client,
        "SAVEPOINT s; UPDATE t SET v = 1 WHERE k = 30; SELECT sum(v) FROM near; ROLLBACK TO s; COMMIT",
    )
    .await;
    assert_eq!(run(&client, "SELECT v FROM t WHERE k = 30").await, "1");
    bed.stop().await;
}
