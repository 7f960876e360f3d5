//! What is refused, time limits, and what a session says of its level.

use super::{BEGIN, Bed, ask, refused, run, spawn};

#[tokio::test(flavor = "multi_thread")]
async fn what_reads_unseen_is_refused() {
    let bed = Bed::start().await;
    let client = bed.client(0).await;
    for sql in [
        "CREATE FUNCTION reads() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM near'",
        "CREATE FUNCTION calls() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN reads() + 1; END'",
        "CREATE FUNCTION quiet(int) RETURNS int LANGUAGE sql AS 'SELECT $1 + 1'",
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v + 1; RETURN NEW; END'",
        "CREATE FUNCTION sees() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := reads(); RETURN NEW; END'",
        "CREATE TABLE touched (k int, v int); CREATE TRIGGER g BEFORE INSERT ON touched FOR EACH ROW EXECUTE FUNCTION touch()",
        "CREATE TABLE seen (k int, v int); CREATE TRIGGER g BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION sees()",
        "CREATE TABLE given (k int, v bigint DEFAULT reads())",
        "CREATE TABLE ruled (k int); CREATE RULE r AS ON INSERT TO ruled DO ALSO DELETE FROM near WHERE k = NEW.k",
        "CREATE VIEW counting AS SELECT reads() AS n",
        "CREATE TABLE listed (k int, v int) PARTITION BY LIST (k)",
        "CREATE TABLE listed_1 PARTITION OF listed FOR VALUES IN (1)",
        "CREATE TRIGGER g BEFORE INSERT ON listed_1 FOR EACH ROW EXECUTE FUNCTION sees()",
        "CREATE FUNCTION makes() RETURNS void LANGUAGE plpgsql AS 'BEGIN CREATE TABLE made_by (); END'",
        "CREATE VIEW seconds AS SELECT k + 1 AS k FROM near",
        "CREATE MATERIALIZED VIEW kept AS SELECT * FROM near",
        "CREATE FUNCTION same(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT reads() > $1 + $2'",
    ] {
        run(&client, sql).await;
    }
    run(&client, "SET default_transaction_isolation = 'serializable'").await;
    for sql in [
        "SELECT reads()",
        "SELECT (near).reads FROM near",
        "SELECT v + calls() FROM near",
        "UPDATE near SET v = reads()",
        "INSERT INTO t VALUES (20, reads())",
        "INSERT INTO seen VALUES (1, 1)",
        "INSERT INTO given VALUES (1)",
        "INSERT INTO listed VALUES (1, 1)",
        "SELECT makes()",
        "INSERT INTO ruled VALUES (1)",
        "SELECT * FROM counting",
        "SELECT * FROM kept",
        "COPY (SELECT reads()) TO STDOUT",
        "COPY seen FROM STDIN",
        "DO $$ BEGIN PERFORM 1; END $$",
        "CREATE TABLE made AS SELECT reads()",
        "PREPARE p AS SELECT $1::bigint; EXECUTE p(reads())",
        "BEGIN; REFRESH MATERIALIZED VIEW kept",
    ] {
        assert_eq!(refused(&client, sql).await, "0A000", "{sql}");
        let _ = ask(&client, "ROLLBACK").await;
    }
    assert_eq!(run(&client, "SELECT quiet(v) FROM near WHERE k = 1").await, "1");
    assert_eq!(run(&client, "INSERT INTO touched VALUES (1, 1) RETURNING v").await, "2");
    assert_eq!(run(&client, "SELECT min(k) FROM seconds").await, "2");
    // The shards' blocks are at another level.
    for sql in [
        "SELECT current_setting('transaction_isolation')",
        "SELECT pg_catalog.current_setting('Transaction_Isolation', true) FROM near WHERE k = 1",
        "SELECT setting FROM pg_settings WHERE name = 'transaction_isolation'",
        "SELECT s.setting FROM pg_catalog.pg_settings AS s WHERE s.name LIKE 'transaction%'",
    ] {
        let answer = run(&client, sql).await;
        assert!(
            answer.split(',').any(|value| value == "serializable"),
            "{sql}: {answer}"
        );
        assert!(
            !answer.split(',').any(|value| value == "read committed"),
            "{sql}: {answer}"
        );
    }
    let by_parameter = client.query_one("SELECT current_setting($1)", &[&"transaction_isolation"]);
    assert_eq!(
        by_parameter.await.expect("the level").get::<_, String>(0),
        "serializable"
    );
    let all = client.simple_query("SHOW ALL").await.expect("SHOW ALL");
    let level = all.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("transaction_isolation") => {
            row.get("setting").map(str::to_owned)
        }
        _ => None,
    });
    assert_eq!(level.as_deref(), Some("serializable"));
    assert!(all.len() > 300, "{} settings", all.len());
    let error = client
        .simple_query("SELECT current_setting('nosuch')")
        .await
        .expect_err("42704");
    let error = error.as_db_error().expect("an error of PostgreSQL");
    assert_eq!(
        (error.code().code(), error.message()),
        ("42704", "unrecognized configuration parameter \"nosuch\"")
    );
    // Operators are used without being named, so none may read at all.
    run(
        &client,
        "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = same)",
    )
    .await;
    assert_eq!(refused(&client, "SELECT v FROM near").await, "0A000");
    // At other levels all of it goes as ever.
    run(&client, "SET default_transaction_isolation = 'repeatable read'").await;
    assert_eq!(run(&client, "SELECT n FROM counting").await, "2");
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_end_in_time_and_the_level_is_what_was_asked_for() {
    let bed = Bed::start().await;
    let (one, two) = (bed.client(0).await, bed.client(1).await);
    run(&one, BEGIN).await;
    run(&one, "SELECT sum(v) FROM t").await;
    for (setting, state) in [("lock_timeout", "55P03"), ("statement_timeout", "57014")] {
        for statement in [
            "SELECT sum(v) FROM t",
            "UPDATE t SET v = 1 WHERE k = 5",
            "INSERT INTO t VALUES (50, 1)",
        ] {
            run(&two, &format!("SET {setting} = '100ms'; {BEGIN}")).await;
            assert_eq!(refused(&two, statement).await, state, "{setting}: {statement}");
            run(&two, &format!("ROLLBACK; RESET {setting}")).await;
        }
    }
    // A cancel request reaches whoever waits for a lock.
    run(&two, BEGIN).await;
    let waiting = spawn(&two, "SELECT sum(v) FROM t");
    bed.until_waiting(1, "the sum").await;
    let cancelled = two.cancel_token().cancel_query(tokio_postgres::NoTls).await;
    cancelled.expect("the request");
    assert_eq!(
        super::ended(waiting).await.expect_err("it is cancelled").code().code(),
        "57014"
    );
    run(&two, "ROLLBACK").await;
    // Readers that write nothing do not wait for each other; with one that may write, they do.
    run(&one, "COMMIT").await;
    for client in [&one, &two] {
        run(client, &format!("{BEGIN} READ ONLY")).await;
        assert_eq!(run(client, "SELECT sum(v) FROM t").await, "0");
        assert_eq!(run(client, "SHOW transaction_read_only").await, "on");
    }
    for write in [
        "UPDATE t SET v = 1 WHERE k = 5",
        "INSERT INTO near VALUES (7, 7)",
        "SELECT nextval('s')",
    ] {
        run(&one, "ROLLBACK; CREATE SEQUENCE IF NOT EXISTS s").await;
        run(&one, "BEGIN READ ONLY; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE").await;
        assert_eq!(refused(&one, write).await, "25006", "{write}");
    }
    run(&one, "ROLLBACK").await;
    run(&two, "COMMIT").await;
    run(
        &two,
        "SET default_transaction_isolation = 'serializable'; SET default_transaction_read_only = on",
    )
    .await;
    run(&two, "SET default_transaction_deferrable = on").await;
    assert_eq!(run(&two, "SELECT count(*) FROM t WHERE k IN (1, 5, 9)").await, "3");
    assert_eq!(refused(&two, "UPDATE t SET v = 1").await, "25006");
    run(&two, "BEGIN READ WRITE; UPDATE t SET v = 1; COMMIT").await;
    assert_eq!(run(&two, "SHOW transaction_isolation").await, "serializable");
    run(&two, "BEGIN").await;
    assert_eq!(run(&two, "SHOW TRANSACTION ISOLATION LEVEL").await, "serializable");
    assert_eq!(run(&two, "SELECT sum(v) FROM t").await, "9");
    assert_eq!(refused(&two, "SET TRANSACTION READ WRITE").await, "25001");
    run(&two, "ROLLBACK; BEGIN; SELECT 1").await;
    assert_eq!(
        refused(&two, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await,
        "25001"
    );
    run(&two, "ROLLBACK; BEGIN ISOLATION LEVEL READ COMMITTED; SELECT 1").await;
    assert_eq!(
        refused(&two, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE").await,
        "25001"
    );
    run(&two, "ROLLBACK").await;
    bed.stop().await;
}
