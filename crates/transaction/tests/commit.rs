//! Transactions over one to three shards that end as they should: tags, errors, savepoints, what is left behind.

mod bed;

use bed::{BALANCE, Bed, add, app, begin, run, state};
use bytes::BytesMut;
use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_shards::{Pin, TransactionStatus};
use pgherd_transaction::{Isolation, Mode};
use postgres_protocol::message::frontend;
use std::time::{Duration, Instant};

#[tokio::test]
async fn commits_and_rolls_back() {
    let bed = Bed::start(3).await;
    let gateway = bed.gateway("gw1", 1).await;

    let nothing = begin(&gateway).commit().await.expect("commit");
    assert_eq!(nothing.tag, "COMMIT");

    for (account, changes) in [
        (1, &[(1, 5)][..]),
        (2, &[(1, -5), (2, 5)]),
        (3, &[(1, -6), (2, 3), (3, 3)]),
    ] {
        let mut transaction = begin(&gateway);
        add(&mut transaction, account, changes).await.expect("updates");
        assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
        let mut expected = vec![BALANCE; 3];
        for (shard, change) in changes {
            expected[*shard as usize - 1] += change;
        }
        assert_eq!(bed.balances(account).await, expected);
    }
    let markers = "SELECT count(*) FROM pgherd.dtx WHERE state = 'p'";
    let counts = [
        bed.number(1, markers).await,
        bed.number(2, markers).await,
        bed.number(3, markers).await,
    ];
    assert_eq!(counts, [2, 2, 1], "one writer leaves no marker");

    let mut transaction = begin(&gateway);
    add(&mut transaction, 4, &[(1, -1), (2, 1)]).await.expect("updates");
    transaction.rollback().await.expect("rollback");
    assert_eq!(bed.balances(4).await, [BALANCE; 3]);

    // One writer among readers needs no second phase either.
    let mut transaction = begin(&gateway);
    run(&mut transaction, 1, "SELECT sum(balance) FROM account")
        .await
        .expect("read");
    add(&mut transaction, 5, &[(2, 7)]).await.expect("update");
    run(&mut transaction, 3, "SELECT sum(balance) FROM account")
        .await
        .expect("read");
    assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
    assert_eq!(bed.number(2, markers).await, 2);
    assert_eq!(bed.balances(5).await, [BALANCE, BALANCE + 7, BALANCE]);

    // A function in a SELECT writes; no command tag tells.
    for shard in bed.ids() {
        bed.sql(shard, "CREATE FUNCTION hidden() RETURNS int LANGUAGE sql AS $$ UPDATE account SET balance = 1 WHERE id = 6 RETURNING 1 $$").await;
    }
    let mut transaction = begin(&gateway);
    run(&mut transaction, 1, "SELECT hidden()").await.expect("read");
    run(&mut transaction, 2, "SELECT hidden()").await.expect("read");
    run(&mut transaction, 3, "SELECT 1").await.expect("read");
    transaction.commit().await.expect("commit");
    assert_eq!(bed.balances(6).await, [1, 1, BALANCE]);
    assert_eq!(bed.number(2, markers).await, 3, "both wrote, so both have a marker");
    assert_eq!(bed.prepared().await, 0);
}

#[tokio::test]
async fn a_failed_transaction_only_rolls_back() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    let error = run(&mut transaction, 2, "SELECT 1/0").await.expect_err("division");
    assert_eq!(state(&error), "22012");
    assert_eq!(transaction.status(), TransactionStatus::Failed);
    assert_eq!(state(&transaction.savepoint("s").await.expect_err("failed")), "25P02");
    assert_eq!(transaction.commit().await.expect("answers").tag, "ROLLBACK");
    assert_eq!(bed.balances(1).await, [BALANCE; 2]);

    // Failed in the gateway: the shards know nothing of it.
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    transaction.fail().await;
    assert_eq!(
        state(&run(&mut transaction, 1, "SELECT 1").await.expect_err("failed")),
        "25P02"
    );
    assert_eq!(transaction.commit().await.expect("answers").tag, "ROLLBACK");
    assert_eq!(bed.balances(1).await, [BALANCE; 2]);
}

#[tokio::test]
async fn a_failure_lets_go_of_locks_on_all_shards() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    let free = |account: i32| {
        format!("SELECT count(*) FROM (SELECT FROM account WHERE id = {account} FOR UPDATE SKIP LOCKED) AS free")
    };
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, 1)]).await.expect("update");
    transaction.savepoint("s").await.expect("savepoint");
    add(&mut transaction, 2, &[(1, 1), (2, 1)]).await.expect("updates");
    assert_eq!(bed.number(1, &free(2)).await, 0);
    run(&mut transaction, 2, "SELECT 1/0").await.expect_err("division");
    transaction.fail().await;
    // As on one server: what came before the savepoint stays locked.
    assert_eq!((bed.number(1, &free(1)).await, bed.number(1, &free(2)).await), (0, 1));
    assert_eq!(bed.number(2, &free(2)).await, 1);
    transaction.rollback_to("s").await.expect("back");
    add(&mut transaction, 2, &[(2, 5)]).await.expect("update");
    assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
    assert_eq!(bed.balances(1).await, [BALANCE + 1, BALANCE]);
    assert_eq!(bed.balances(2).await, [BALANCE, BALANCE + 5]);

    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, 1), (2, 1)]).await.expect("updates");
    run(&mut transaction, 2, "SELECT 1/0").await.expect_err("division");
    transaction.fail().await;
    assert_eq!((bed.number(1, &free(1)).await, bed.number(2, &free(1)).await), (1, 1));
    assert_eq!(transaction.commit().await.expect("answers").tag, "ROLLBACK");
    assert_eq!(bed.balances(1).await, [BALANCE + 1, BALANCE]);

    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, 1)]).await.expect("update");
    assert_eq!(
        state(&transaction.rollback_to("nowhere").await.expect_err("unknown")),
        "3B001"
    );
    transaction.fail().await;
    assert_eq!(bed.number(1, &free(1)).await, 1);
    assert_eq!(transaction.commit().await.expect("answers").tag, "ROLLBACK");
}

#[tokio::test]
async fn savepoints_nest_and_reach_shards_that_join_late() {
    let bed = Bed::start(3).await;
    let gateway = bed.gateway("gw1", 1).await;
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, 1)]).await.expect("update");
    transaction.savepoint("s").await.expect("savepoint");
    add(&mut transaction, 1, &[(2, 10)]).await.expect("a late joiner");
    transaction.savepoint("s").await.expect("the same name again");
    add(&mut transaction, 1, &[(3, 100), (1, 100)])
        .await
        .expect("another late joiner");
    assert!(run(&mut transaction, 3, "SELECT nothing").await.is_err());
    transaction.rollback_to("s").await.expect("the inner one");
    assert_eq!(transaction.status(), TransactionStatus::InBlock);
    add(&mut transaction, 2, &[(3, 5)]).await.expect("goes on");
    transaction.release("s").await.expect("the inner one");
    add(&mut transaction, 2, &[(2, 50)]).await.expect("goes on");
    transaction.rollback_to("s").await.expect("the outer one");
    transaction.rollback_to("s").await.expect("which is still there");
    add(&mut transaction, 3, &[(3, -1)]).await.expect("goes on");
    assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
    assert_eq!(bed.balances(1).await, [BALANCE + 1, BALANCE, BALANCE]);
    assert_eq!(bed.balances(2).await, [BALANCE; 3]);
    assert_eq!(bed.balances(3).await, [BALANCE, BALANCE, BALANCE - 1]);

    let mut transaction = begin(&gateway);
    transaction.savepoint("a").await.expect("savepoint");
    transaction.release("a").await.expect("release");
    assert_eq!(
        state(&transaction.rollback_to("a").await.expect_err("released")),
        "3B001"
    );
    assert_eq!(transaction.status(), TransactionStatus::Failed, "as PostgreSQL does");
    transaction.rollback().await.expect("rollback");
    let mut transaction = begin(&gateway);
    add(&mut transaction, 4, &[(1, 1)]).await.expect("update");
    for n in 0..500 {
        transaction.savepoint(&format!("s{n}")).await.expect("savepoint");
    }
    transaction.rollback_to("s0").await.expect("rollback to");
    transaction.commit().await.expect("commit");
    assert_eq!(bed.balances(4).await, [BALANCE + 1, BALANCE, BALANCE]);

    // A statement over shards that is taken back as a whole and run again.
    let mut transaction = begin(&gateway);
    transaction.open_statement().await.expect("open");
    add(&mut transaction, 5, &[(1, 1), (2, 1)]).await.expect("update");
    transaction.undo_statement().await.expect("undo");
    transaction.open_statement().await.expect("open");
    add(&mut transaction, 5, &[(2, 2), (3, 2)]).await.expect("update");
    transaction.keep_statement().await.expect("keep");
    transaction.commit().await.expect("commit");
    assert_eq!(bed.balances(5).await, [BALANCE, BALANCE + 2, BALANCE + 2]);
}

#[tokio::test]
async fn what_cannot_be_prepared_is_rolled_back_everywhere() {
    let bed = Bed::start(2).await;
    for shard in bed.ids() {
        bed.sql(shard, "CREATE TABLE child (account int REFERENCES account DEFERRABLE INITIALLY DEFERRED); GRANT ALL ON child TO app").await;
    }
    let gateway = bed.gateway("gw1", 1).await;
    for (sql, code) in [
        ("INSERT INTO child VALUES (99)", "23503"),
        ("CREATE TEMP TABLE t (); SELECT 1", "0A000"),
        ("NOTIFY n; SELECT 1", "0A000"),
    ] {
        let mut transaction = begin(&gateway);
        add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
        run(&mut transaction, 2, sql).await.expect(sql);
        let error = transaction.commit().await.expect_err(sql);
        assert_eq!(state(&error), code, "{sql}: {error}");
        if code == "0A000" {
            let error: ServerError = error.into();
            assert!(error.fields().hint.is_some(), "{sql}: says what to do");
        }
        assert_eq!(
            (bed.balances(1).await, bed.prepared().await),
            (vec![BALANCE; 2], 0),
            "{sql}"
        );
    }
    // Where functions may do so on the home shard, that one is not prepared.
    bed.sql(
        1,
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_notify($$n$$, $$$$); RETURN NEW; END'; \
         CREATE TRIGGER tell AFTER UPDATE ON account FOR EACH ROW WHEN (NEW.id = 7) EXECUTE FUNCTION tell()",
    )
    .await;
    let begun = Instant::now();
    loop {
        let mut transaction = begin(&gateway);
        add(&mut transaction, 7, &[(1, -1), (2, 1)]).await.expect("updates");
        match transaction.commit().await {
            Ok(_) => break,
            Err(error) => assert!(
                state(&error) == "0A000" && begun.elapsed() < Duration::from_secs(60),
                "{error}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(
        (bed.balances(7).await, bed.prepared().await),
        (vec![BALANCE - 1, BALANCE + 1], 0)
    );
    // Alone on its shard, a transaction may do all of this, and a NOTIFY can be kept for after the decision.
    let mut transaction = begin(&gateway);
    run(&mut transaction, 1, "CREATE TEMP TABLE t (); NOTIFY n; SELECT 1")
        .await
        .expect("one shard");
    transaction.commit().await.expect("one shard");
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    transaction.after_commit(ShardId(1), "UPDATE account SET balance = 77 WHERE id = 8");
    transaction.commit().await.expect("commit");
    assert_eq!(bed.balances(8).await, [77, BALANCE]);
}

#[tokio::test]
async fn settings_of_the_session_do_not_weaken_a_commit() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    let mut transaction = begin(&gateway);
    for shard in bed.ids() {
        let sql = "SET LOCAL synchronous_commit = off; SET LOCAL statement_timeout = '1s'; SET LOCAL search_path = nowhere; \
                   UPDATE public.account SET balance = 3 WHERE id = 1";
        run(&mut transaction, shard, sql).await.expect("update");
        // What the marker's function leaves behind is what PREPARE TRANSACTION runs under.
        let gid = format!("pgherd:x:y:6:gw1:1.0:{shard}000");
        let sql = format!(
            "SAVEPOINT s; SELECT pgherd.write_marker('{gid}', '{}')",
            pgherd_transaction::gid::proof(bed::SECRET, &gid)
        );
        run(&mut transaction, shard, &sql).await.expect("marker");
        for (setting, value) in [
            ("synchronous_commit", "on"),
            ("statement_timeout", "0"),
            ("lock_timeout", "10s"),
        ] {
            let shown = run(&mut transaction, shard, &format!("SHOW {setting}"))
                .await
                .expect("show");
            assert_eq!(shown.as_deref(), Some(value), "{setting}");
        }
        run(&mut transaction, shard, "ROLLBACK TO s; SELECT 1")
            .await
            .expect("undone");
    }
    // A role of the moment: whoever is not it any more could not run COMMIT PREPARED.
    bed.sql(
        2,
        "CREATE ROLE other; GRANT other TO app; GRANT ALL ON account TO other",
    )
    .await;
    run(
        &mut transaction,
        2,
        "SET LOCAL ROLE other; UPDATE public.account SET balance = 4 WHERE id = 2",
    )
    .await
    .expect("other role");
    transaction.commit().await.expect("commit");
    assert_eq!(bed.balances(1).await, [3, 3]);
    assert_eq!(bed.balances(2).await, [BALANCE, 4]);
    assert_eq!(bed.prepared().await, 0);
}

#[tokio::test]
async fn clients_cannot_touch_markers() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    let mut client = gateway.autocommit(ShardId(1), &app()).await.expect("connect");
    for sql in [
        "SELECT pgherd.write_marker('pgherd:test:0:6:gw1:1.0:5', 'guess')",
        "SELECT pgherd.write_marker('pgherd:test:0:6:gw1:1.0:5', NULL)",
        "SELECT pgherd.fence_marker('pgherd:test:0:6:gw1:1.0:5')",
        "SELECT pgherd.set_commit_secret('mine')",
        "SELECT secret FROM pgherd.commit_secret",
        "INSERT INTO pgherd.dtx VALUES ('g', 'p', 's', 1)",
        "DELETE FROM pgherd.dtx",
        "UPDATE pgherd.dtx_sequence SET settled = 9",
        "SELECT gid FROM pgherd.dtx FOR UPDATE",
    ] {
        let error = client.simple(sql).await.expect_err(sql);
        assert_eq!(error.sqlstate().code(), "42501", "{sql}: {error}");
    }
}

/// SERIALIZABLE always, REPEATABLE READ where it was told that no other shard has rows, or is not to be used now.
#[tokio::test]
async fn stricter_levels_stay_on_one_shard() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    for (isolation, confined) in [
        (Isolation::RepeatableRead, false),
        (Isolation::RepeatableRead, true),
        (Isolation::Serializable, false),
    ] {
        let mode = Mode {
            isolation: Some(isolation),
            ..Mode::default()
        };
        let mut transaction = gateway.begin(app(), mode);
        match confined {
            true => transaction.confine(Some(ShardId(2))),
            false => transaction.stay_alone(),
        }
        let shown = run(&mut transaction, 2, "SHOW transaction_isolation")
            .await
            .expect("show");
        assert_eq!(shown, Some(isolation.as_sql().to_lowercase()));
        let error = run(&mut transaction, 1, "SELECT 1").await.expect_err("a second shard");
        assert_eq!(state(&error), "0A000");
        if confined {
            transaction.confine(None);
            run(&mut transaction, 1, "SELECT 1").await.expect("for a moment only");
        }
        transaction.rollback().await.expect("rollback");
    }
}

#[tokio::test]
async fn without_room_for_prepared_transactions_only_one_shard_can_be_written() {
    let bed = Bed::start_with(2, &[("max_prepared_transactions", "0")]).await;
    let gateway = bed.gateway("gw1", 1).await;
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    let error = transaction.commit().await.expect_err("cannot prepare");
    assert_eq!(state(&error), "55000");
    assert!(
        ServerError::from(error)
            .fields()
            .hint
            .as_deref()
            .is_some_and(|h| h.contains("max_prepared_transactions"))
    );
    assert_eq!(bed.balances(1).await, [BALANCE; 2]);
    let mut transaction = begin(&gateway);
    add(&mut transaction, 1, &[(1, -1)]).await.expect("update");
    transaction.commit().await.expect("one shard");
}

/// PostgreSQL tells of a time limit at once, and says that it is ready although nobody has asked: the connection is not lost for that.
#[tokio::test]
async fn a_time_limit_between_two_messages_keeps_the_connection() {
    let bed = Bed::start(1).await;
    let gateway = bed.gateway("gw1", 1).await;
    let mut transaction = begin(&gateway);
    let backend = transaction.participant(ShardId(1)).await.expect("enlisted");
    let pin = Pin::new(ShardId(1));
    backend.pin(Some(pin.clone()));
    let process = backend.process_id();
    backend
        .simple("SET LOCAL statement_timeout = '100ms'")
        .await
        .expect("set");
    frontend::parse("", "SELECT 1", [], backend.outbox()).expect("parse");
    let nothing = |_: &str, _: &mut BytesMut| Ok(postgres_protocol::IsNull::Yes);
    assert!(frontend::bind("", "", [], [""; 0], nothing, [], backend.outbox()).is_ok());
    frontend::flush(backend.outbox());
    backend.flush().await.expect("sent");
    tokio::time::sleep(Duration::from_millis(400)).await;
    frontend::execute("", 0, backend.outbox()).expect("execute");
    frontend::sync(backend.outbox());
    backend.expect_ready();
    let told = backend.drain().await.expect_err("the limit");
    assert!(matches!(&told, pgherd_shards::Error::Server(e) if e.sqlstate() == SqlState::QUERY_CANCELED));
    transaction.rollback().await.expect("rolled back");
    assert_eq!(pin.process_id(), Some(process));
}
