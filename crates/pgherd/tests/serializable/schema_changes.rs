//! What a gateway has found in the catalogs holds only while the schema stays as it was: through another gateway, and behind
//! all gateways' backs.

use super::{BEGIN, Bed, refused, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_changes_meanwhile_is_noticed() {
    let bed = Bed::start().await;
    let (client, other) = (bed.client(0).await, bed.client(1).await);
    for sql in [
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v + 1; RETURN NEW; END'",
        "CREATE TABLE touched (k int, v int)",
        "CREATE TRIGGER g BEFORE INSERT ON touched FOR EACH ROW EXECUTE FUNCTION touch()",
    ] {
        run(&client, sql).await;
    }
    run(&client, "SET default_transaction_isolation = 'serializable'").await;
    let insert = "INSERT INTO touched VALUES (1, 1) RETURNING v";
    for _ in 0..2 {
        assert_eq!(run(&client, insert).await, "2");
    }
    let reads = "CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql \
                 AS 'BEGIN NEW.v := (SELECT max(k) FROM near); RETURN NEW; END'";
    run(&other, reads).await;
    assert_eq!(refused(&client, insert).await, "40001", "it was found to read nothing");
    assert_eq!(refused(&client, insert).await, "0A000");
    assert_eq!(run(&client, "SELECT count(*) FROM touched").await, "2");
    // Behind the gateways' backs, and within a function.
    let home = bed.herd.cluster().shard(1).connect("postgres", "postgres").await;
    let home = home.expect("connect");
    for sql in [
        "DROP TRIGGER g ON touched",
        "DO $$ BEGIN CREATE TRIGGER g BEFORE INSERT ON touched FOR EACH ROW EXECUTE FUNCTION touch(); END $$",
    ] {
        home.batch_execute(sql).await.expect(sql);
        if sql.starts_with("DROP") {
            assert_eq!(run(&client, "INSERT INTO touched VALUES (1, 1) RETURNING v").await, "1");
        } else {
            assert_eq!(refused(&client, insert).await, "40001");
            assert_eq!(refused(&client, insert).await, "0A000");
        }
    }
    bed.stop().await;
}

/// Whatever the transaction does: its COMMIT notices that the schema has changed since its first statement.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_does_not_outlive_what_it_was_judged_by() {
    let bed = Bed::start().await;
    let (client, other) = (bed.client(0).await, bed.client(1).await);
    for (number, (begin, statements)) in [
        (BEGIN, vec!["SELECT v FROM t WHERE k = 1"]),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
            vec!["SELECT sum(v) FROM t"],
        ),
        (
            BEGIN,
            vec![
                "UPDATE t SET v = v + 1 WHERE k = 1",
                "UPDATE t SET v = v + 1 WHERE k = 9",
            ],
        ),
        (
            BEGIN,
            vec!["SELECT v FROM t WHERE k = 5", "UPDATE t SET v = v + 1 WHERE k = 9"],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        run(&client, begin).await;
        for statement in &statements {
            run(&client, statement).await;
        }
        run(
            &other,
            &format!("CREATE FUNCTION f{number}() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
        )
        .await;
        assert_eq!(refused(&client, "COMMIT").await, "40001", "{begin} {statements:?}");
        assert_eq!(run(&other, "SELECT sum(v) FROM t").await, "0", "{begin} {statements:?}");
        run(&client, begin).await;
        for statement in &statements {
            run(&client, statement).await;
        }
        // A temporary table concerns nobody else.
        run(&other, "CREATE TEMPORARY TABLE IF NOT EXISTS here (k int)").await;
        run(&client, "COMMIT").await;
        run(&other, "UPDATE t SET v = 0").await;
    }
    // Its own change is none of somebody else's.
    run(&client, BEGIN).await;
    run(&client, "SELECT v FROM t WHERE k = 1").await;
    run(
        &client,
        "CREATE TABLE own (k int PRIMARY KEY, v int); INSERT INTO own VALUES (1, 1)",
    )
    .await;
    assert_eq!(run(&client, "SELECT v FROM own WHERE k = 1").await, "1");
    run(&client, "UPDATE t SET v = 7 WHERE k = 9; COMMIT").await;
    assert_eq!(run(&other, "SELECT sum(t.v) FROM t, own").await, "7");
    bed.stop().await;
}
