//! What a session has when it begins: PostgreSQL's own settings of its role and database, whatever backends are at hand.

use futures::StreamExt;
use pgherd_testkit::herd::{Gateway, Herd, value};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

async fn connect(gateway: &Gateway, role: &str) -> Client {
    gateway.connect_to(role, "postgres").await.expect("connect")
}

/// So many shards, and a gateway.
async fn started(shards: usize, name: &str) -> (Herd, Gateway) {
    Herd::with_gateway(Path::new(env!("CARGO_BIN_EXE_pgherd")), shards, name)
        .await
        .expect("a cluster")
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_role_and_database_reach_the_next_session() {
    let (_herd, gateway) = started(3, "sessions").await;
    let admin = connect(&gateway, "postgres").await;
    admin
        .batch_execute(
            "CREATE ROLE app LOGIN; CREATE SCHEMA a; GRANT ALL ON SCHEMA a, public TO app;
             CREATE TABLE a.which (k int PRIMARY KEY, v text); INSERT INTO a.which VALUES (1, 'a');
             CREATE TABLE public.which (k int PRIMARY KEY, v text); INSERT INTO public.which VALUES (1, 'public');
             GRANT SELECT ON a.which, public.which TO app",
        )
        .await
        .expect("set up");
    let before = connect(&gateway, "app").await;
    let others_before = [connect(&gateway, "app").await, connect(&gateway, "app").await];
    assert_eq!(value(&before, "SELECT v FROM which").await, "public");
    admin
        .batch_execute(
            "ALTER ROLE app SET search_path = a, public; ALTER ROLE app SET pgherd.default_distribution = 'primary_key';
             ALTER DATABASE postgres SET \"pgherd.initial_bounds\" = 'int 3,7'",
        )
        .await
        .expect("alter");
    let after = connect(&gateway, "app").await;
    assert_eq!(value(&after, "SHOW search_path").await, "a, public");
    assert_eq!(value(&after, "SELECT v FROM which").await, "a");
    after
        .batch_execute("CREATE TABLE spread (k int PRIMARY KEY); INSERT INTO spread SELECT generate_series(1, 9)")
        .await
        .expect("create");
    let places = "SELECT count(DISTINCT shard) FROM pgherd.ranges WHERE \"table\" = 'spread'";
    assert_eq!(value(&after, places).await, "3");
    // As in PostgreSQL, a session that was there before keeps what it had.
    assert_eq!(value(&before, "SELECT v FROM which").await, "public");
    // One that needs another backend, which would have the new settings, ends instead; and so does the next.
    before
        .batch_execute("BEGIN; SELECT v FROM which")
        .await
        .expect("holds its backend");
    for other in &others_before {
        let error = other
            .simple_query("SELECT v FROM which")
            .await
            .expect_err("another search_path");
        assert_eq!(error.code().map(|code| code.code()), Some("57P01"), "{error:?}");
    }
    before.batch_execute("COMMIT").await.expect("commit");
    admin
        .batch_execute("ALTER ROLE app RESET ALL; ALTER DATABASE postgres RESET ALL")
        .await
        .expect("reset");
    let again = connect(&gateway, "app").await;
    assert_eq!(value(&again, "SELECT v FROM which").await, "public");
    assert_eq!(value(&after, "SELECT v FROM which").await, "a");
    assert!(gateway.stop().await);
}

/// Two databases that have come to the same epoch, with tables of one name: the same texts mean other tables there.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_statement_means_another_table_in_another_database() {
    let (herd, gateway) = started(3, "databases").await;
    let admin = connect(&gateway, "postgres").await;
    let mut clients = Vec::new();
    for (name, columns, bounds) in [
        ("one", "k int PRIMARY KEY, v text", "3,7"),
        ("two", "k int PRIMARY KEY, n int DEFAULT 5, v text", "30,70"),
    ] {
        admin
            .batch_execute(&format!("CREATE DATABASE {name}"))
            .await
            .expect(name);
        let client = gateway.connect_to("postgres", name).await.expect("connect");
        let sql = format!(
            "SET pgherd.default_distribution = primary_key; SET pgherd.initial_bounds = 'int {bounds}'; CREATE TABLE t ({columns})"
        );
        client.batch_execute(&sql).await.expect(&sql);
        clients.push(client);
    }
    for k in 1..=9 {
        for client in &clients {
            let sql = format!("INSERT INTO t VALUES ({k})");
            client.batch_execute(&sql).await.expect(&sql);
        }
    }
    for client in &clients {
        assert_eq!(value(client, "SELECT count(*) FROM t").await, "9");
        assert_eq!(value(client, "SELECT k FROM t WHERE k = 8").await, "8");
    }
    let columns = client_columns(&clients).await;
    assert_eq!(columns, [2, 3]);
    gateway.stop().await;
    herd.stop().await;
}

/// How many columns each finds in the same prepared statement.
async fn client_columns(clients: &[Client]) -> Vec<usize> {
    let mut counts = Vec::new();
    for client in clients {
        let statement = client.prepare("SELECT * FROM t WHERE k > $1").await.expect("prepare");
        assert_eq!(client.query(&statement, &[&5]).await.expect("query").len(), 4);
        counts.push(statement.columns().len());
    }
    counts
}

/// A role that was dropped and made again is another one: connections that had logged in as the first are of no use to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_made_again_can_log_in() {
    let (_herd, gateway) = started(3, "roles").await;
    let admin = connect(&gateway, "postgres").await;
    let make = "CREATE ROLE guest LOGIN; GRANT SELECT ON visits TO guest";
    admin
        .batch_execute("CREATE TABLE visits (k int PRIMARY KEY) PARTITION BY RANGE (k); INSERT INTO visits VALUES (-9), (0), (900)")
        .await
        .expect("table");
    for _ in 0..3 {
        admin.batch_execute(make).await.expect("make");
        // Several at once, so that several connections stay in the pool.
        let sessions = [connect(&gateway, "guest").await, connect(&gateway, "guest").await];
        for session in &sessions {
            assert_eq!(value(session, "SELECT current_user").await, "guest");
            assert_eq!(value(session, "SELECT count(*) FROM visits").await, "3");
        }
        drop(sessions);
        admin
            .batch_execute("DROP OWNED BY guest; DROP ROLE guest")
            .await
            .expect("drop");
    }
}

/// A client that asks for protocol 3.2 is told 3.0, as a whole number; drivers refuse a version 0.0.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_protocol_is_answered_with_the_one_that_is_spoken() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (_herd, gateway) = started(1, "sessions").await;
    let port = gateway.config().get_ports()[0];
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("connect");
    let body = b"\x00\x03\x00\x02user\0postgres\0database\0postgres\0_pq_.later\0on\0\0";
    stream.write_u32(body.len() as u32 + 4).await.expect("send");
    stream.write_all(body).await.expect("send");
    let mut reply = [0; 24];
    stream.read_exact(&mut reply).await.expect("a reply");
    assert_eq!(reply, *b"v\x00\x00\x00\x17\x00\x03\x00\x00\x00\x00\x00\x01_pq_.later\0");
}

/// A backend keeps what clients prepare, under its text; the same text is about other tables under another search_path.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_under_another_search_path_is_another_statement() {
    let (_herd, gateway) = started(1, "sessions").await;
    let client = connect(&gateway, "postgres").await;
    let tables =
        "CREATE SCHEMA one; CREATE SCHEMA two; CREATE TABLE one.t (a int); CREATE TABLE two.t (a text, b text);
        INSERT INTO one.t VALUES (1); INSERT INTO two.t VALUES ('x', 'y')";
    client.batch_execute(tables).await.expect("tables");
    for _ in 0..3 {
        client.batch_execute("SET search_path = one").await.expect("set");
        let row = client.query_one("SELECT * FROM t", &[]).await.expect("one.t");
        assert_eq!(row.get::<_, i32>(0), 1);
        client.batch_execute("SET search_path = two").await.expect("set");
        let row = client.query_one("SELECT * FROM t", &[]).await.expect("two.t");
        assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("x", "y"));
    }
}

/// PostgreSQL drops a setting whose prefix a library takes that is loaded later. Backends that have loaded it refuse the setting.
/// Statements of several sessions are kept prepared on the same connections of shards, where PostgreSQL reads constants once.
#[tokio::test(flavor = "multi_thread")]
async fn constants_are_read_as_the_session_wants_that_prepares_them() {
    let (_herd, gateway) = started(2, "styles").await;
    let admin = connect(&gateway, "postgres").await;
    admin
        .batch_execute(
            "SET pgherd.initial_bounds = 'int 5'; CREATE TABLE day (k int PRIMARY KEY, d date) PARTITION BY RANGE (k);
             INSERT INTO day VALUES (1, '2020-01-02'), (9, '2020-01-02')",
        )
        .await
        .expect("set up");
    let (american, european) = (connect(&gateway, "postgres").await, connect(&gateway, "postgres").await);
    american.batch_execute("SET DateStyle = 'ISO, MDY'").await.expect("SET");
    european.batch_execute("SET DateStyle = 'ISO, DMY'").await.expect("SET");
    let text = "SELECT count(*) FROM day WHERE k = $1 AND d = '01/02/2020'";
    let count = async |client: &Client, statement: &tokio_postgres::Statement, k: i32| {
        let row = client.query_one(statement, &[&k]).await.expect("a count");
        row.get::<_, i64>(0)
    };
    let mut prepared = Vec::new();
    for (client, expected) in [(&american, 1), (&european, 0), (&american, 1)] {
        let statement = client.prepare(text).await.expect("prepare");
        for k in [1, 9, 1, 9, 1, 9] {
            assert_eq!(count(client, &statement, k).await, expected, "key {k}");
        }
        prepared.push(statement);
    }
    // What was prepared stays what it was, whatever the session has set since.
    american.batch_execute("SET DateStyle = 'ISO, DMY'").await.expect("SET");
    european.batch_execute("SET DateStyle = 'ISO, MDY'").await.expect("SET");
    for k in [1, 9] {
        assert_eq!(count(&american, &prepared[0], k).await, 1);
        assert_eq!(count(&european, &prepared[1], k).await, 0);
    }
    let moment = american.prepare("SELECT 'now'::timestamptz").await.expect("prepare");
    let read = async || {
        american
            .query_one(&moment, &[])
            .await
            .expect("a moment")
            .get::<_, std::time::SystemTime>(0)
    };
    let first = read().await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(read().await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_a_library_takes_is_lost_and_nothing_else() {
    let (_herd, gateway) = started(3, "prefixes").await;
    let admin = connect(&gateway, "postgres").await;
    admin.batch_execute("CREATE ROLE app LOGIN").await.expect("set up");
    let client = connect(&gateway, "app").await;
    for sql in [
        "SET plpgsql.no_such_setting = true",
        "SET app.tenant = '7'",
        "DO $$ BEGIN NULL; END $$",
        "SET work_mem = '5MB'",
        "SELECT 1",
        "BEGIN; SELECT 1; COMMIT",
    ] {
        client.batch_execute(sql).await.expect(sql);
    }
    assert_eq!(
        value(
            &client,
            "SELECT current_setting('app.tenant') || current_setting('work_mem')"
        )
        .await,
        "75MB"
    );
    let error = client
        .batch_execute("SHOW plpgsql.no_such_setting")
        .await
        .expect_err("gone");
    assert_eq!(error.code().map(|code| code.code()), Some("42704"), "{error:?}");
    assert!(gateway.stop().await);
}

/// The process ids of BackendKeyData and of `pg_stat_activity` are the same, and ending sessions by them ends the clients' sessions.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_shown_and_signalled_by_computed_process_ids() {
    let (_herd, gateway) = started(3, "sessions").await;
    let admin = connect(&gateway, "postgres").await;
    admin
        .batch_execute("CREATE ROLE weak LOGIN; CREATE TABLE t (k int PRIMARY KEY) PARTITION BY RANGE (k)")
        .await
        .expect("set up");
    admin.batch_execute("CREATE DATABASE other").await.expect("database");
    let to_other = || async {
        let mut config = gateway.config();
        let (client, connection) = config
            .dbname("other")
            .application_name("of other")
            .connect(NoTls)
            .await
            .expect("connect");
        tokio::spawn(connection);
        client
    };

    // What is shown.
    let one = to_other().await;
    let own = value(&one, "SELECT pg_backend_pid()").await;
    let shown = "SELECT concat_ws(' ', pid, datname, usename, state, wait_event, query) FROM pg_stat_activity WHERE application_name = 'of other'";
    assert_eq!(
        value(&admin, shown).await,
        format!("{own} other postgres idle ClientRead SELECT pg_backend_pid()")
    );
    let itself = "SELECT state || ' ' || query FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    assert_eq!(value(&one, itself).await, format!("active {itself}"));
    let weak = connect(&gateway, "weak").await;
    let others =
        "SELECT concat_ws(' ', usename, state, query) FROM pg_stat_activity WHERE application_name = 'of other'";
    assert_eq!(value(&weak, others).await, "postgres <insufficient privilege>");
    let pooled = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state IS NOT NULL";
    assert_eq!(value(&admin, pooled).await, "3", "nothing but the sessions");

    // Who may not, does nothing.
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'other' AND pid <> pg_backend_pid()";
    let refused = weak.simple_query(end).await.expect_err("not allowed");
    let refused = refused.as_db_error().expect("an error of the server");
    assert_eq!(
        (refused.code().code(), refused.message()),
        ("42501", "must be a superuser to terminate superuser process")
    );
    let forged = "DO $$ BEGIN RAISE INFO USING ERRCODE = 'PH002', MESSAGE = 'terminate ' || {}; END $$";
    weak.batch_execute(&forged.replace("{}", &own))
        .await
        .expect("only said");
    assert_eq!(value(&one, "SELECT 1").await, "1");

    // What every script does before DROP DATABASE.
    let two = to_other().await;
    two.batch_execute("BEGIN").await.expect("begin");
    assert_eq!(value(&admin, end).await, "2");
    admin
        .batch_execute("DROP DATABASE other")
        .await
        .expect("nobody is left");
    for client in [one, two] {
        let ended = client
            .simple_query("SELECT 1")
            .await
            .expect_err("the session has ended");
        assert!(client.is_closed() || ended.code().is_some_and(|code| code.code() == "57P01"));
    }

    // A statement over several shards is cancelled, also by a DO block.
    for how in [
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%sleep(60)%' AND pid <> pg_backend_pid()",
        "DO $$ BEGIN PERFORM pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%sleep(60)%' AND pid <> pg_backend_pid(); END $$",
    ] {
        let sleeper = connect(&gateway, "postgres").await;
        let slept = tokio::spawn(async move {
            let error = sleeper
                .simple_query("SELECT pg_sleep(60)")
                .await
                .expect_err("cancelled");
            let code = error.code().expect("an error of the server").code().to_owned();
            (code, value(&sleeper, "SELECT 1").await)
        });
        let running =
            "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND wait_event = 'PgSleep'";
        while value(&admin, running).await != "1" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        admin.batch_execute(how).await.expect(how);
        assert_eq!(slept.await.expect("joined"), ("57014".to_owned(), "1".to_owned()));
    }

    // Of all sessions the own one is one.
    let last = admin
        .simple_query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = (SELECT pg_backend_pid())")
        .await
        .expect_err("its own end");
    assert_eq!(last.code().expect("an error of the server").code(), "57P01");
}

/// Also where all tables are local, a session keeps its connection for the locks that functions and triggers take.
#[tokio::test(flavor = "multi_thread")]
async fn advisory_locks_of_functions_and_triggers_are_the_sessions() {
    let (_herd, gateway) = started(1, "sessions").await;
    let admin = connect(&gateway, "postgres").await;
    for statement in [
        "CREATE FUNCTION lock_it(key int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(key); RETURN key; END $$",
        "CREATE FUNCTION lock_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM lock_it(NEW.v); RETURN NEW; END $$",
        "CREATE TABLE rows (v int)",
        "CREATE TRIGGER locks BEFORE INSERT ON rows FOR EACH ROW EXECUTE FUNCTION lock_row()",
    ] {
        admin.batch_execute(statement).await.expect(statement);
    }
    for taking in ["SELECT lock_it(7)", "INSERT INTO rows VALUES (7)"] {
        let (one, other) = (connect(&gateway, "postgres").await, connect(&gateway, "postgres").await);
        one.batch_execute(taking).await.expect(taking);
        let kept = "SELECT pinned_by FROM pgherd.sessions WHERE pid = pg_backend_pid()";
        assert_eq!(value(&one, kept).await, "{\"advisory locks\"}", "{taking}");
        assert_eq!(value(&other, "SELECT pg_try_advisory_lock(7)").await, "f", "{taking}");
        assert_eq!(value(&one, "SELECT pg_advisory_unlock(7)").await, "t", "{taking}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_holds_ends_with_it_though_it_was_the_first_on_other_shards() {
    let (_herd, gateway) = started(3, "first").await;
    let admin = connect(&gateway, "postgres").await;
    for statement in [
        "CREATE DATABASE elsewhere",
        "CREATE ROLE app LOGIN SUPERUSER",
        "ALTER ROLE app SET pgherd.default_distribution = 'primary_key'",
        "ALTER ROLE app SET pgherd.initial_bounds = 'int 3,7'",
    ] {
        admin.batch_execute(statement).await.expect(statement);
    }
    let mut config = gateway.config();
    config.user("app").dbname("elsewhere");
    let (first, connection) = config.connect(NoTls).await.expect("connect");
    let ended = tokio::spawn(connection);
    // Nobody has used the other shards as this role before the session has a connection of its own on the home shard.
    for statement in [
        "SELECT pg_advisory_lock(7)",
        "CREATE TABLE spread (k int PRIMARY KEY)",
        "INSERT INTO spread SELECT generate_series(1, 9)",
    ] {
        first.batch_execute(statement).await.expect(statement);
    }
    drop(first);
    ended.await.expect("the connection's task").expect("ends well");
    let (next, connection) = config.connect(NoTls).await.expect("connect");
    tokio::spawn(connection);
    next.batch_execute("SET lock_timeout = '5s'; SELECT pg_advisory_lock(7)")
        .await
        .expect("the lock is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_while_the_shard_looks_for_the_next() {
    let (_herd, gateway) = started(1, "early").await;
    let client = connect(&gateway, "postgres").await;
    let begun = Instant::now();
    // Hardly more than PostgreSQL keeps before it sends.
    let sql = "SELECT n FROM generate_series(1, 700) n UNION ALL SELECT 0 FROM pg_sleep(5)";
    let rows = client.query_raw::<_, i32, _>(sql, []).await.expect(sql);
    let mut rows = std::pin::pin!(rows);
    rows.next().await.expect("a row").expect("no error");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(rows.count().await, 700);
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
}

/// Where an error is, counted in the client's text, though a shard was sent another one.
#[tokio::test(flavor = "multi_thread")]
async fn positions_are_those_of_the_clients_text() {
    let (_herd, gateway) = started(3, "positions").await;
    let client = connect(&gateway, "postgres").await;
    client
        .batch_execute(
            "SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 3,7';
             CREATE TABLE pointed (k int PRIMARY KEY, v text); PREPARE kept AS SELECT k, $1::int FROM pointed x WHERE k = 5;
             ALTER TABLE pointed RENAME COLUMN k TO kk",
        )
        .await
        .expect("set up");
    for (sql, position) in [
        ("SELECT 1 FROM pointed x WHERE x.kk = 5 ORDER BY x.kk, f.n", 55),
        (
            "BEGIN; DECLARE c CURSOR FOR SELECT 1 FROM pointed x WHERE x.kk = 5 ORDER BY x.kk, f.n",
            83,
        ),
        (
            "BEGIN; DECLARE c CURSOR FOR SELECT 1 FROM pointed x ORDER BY x.kk, x.n",
            68,
        ),
        // As PostgreSQL has it: in the text of PREPARE.
        ("EXECUTE kept (1)", 24),
    ] {
        let error = client.batch_execute(sql).await.expect_err(sql);
        let told = error.as_db_error().and_then(|e| e.position().cloned());
        let expected = tokio_postgres::error::ErrorPosition::Original(position);
        assert_eq!(told, Some(expected), "{sql}: {error:?}");
        client.batch_execute("ROLLBACK").await.expect("rolled back");
    }
    assert!(gateway.stop().await);
}
