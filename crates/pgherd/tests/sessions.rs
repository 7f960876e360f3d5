//! What a session has when it begins: PostgreSQL's own settings of its role and database, whatever backends are at hand.

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

async fn connect(gateway: &Gateway, role: &str) -> Client {
    let mut config = gateway.config();
    config.user(role);
    let (client, connection) = config.connect(NoTls).await.expect("connect");
    tokio::spawn(connection);
    client
}

async fn value(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.expect(sql);
    let mut rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    rows.next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_role_and_database_reach_the_next_session() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("shards");
    let gateway = herd.gateway("sessions").await.expect("gateway");
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
