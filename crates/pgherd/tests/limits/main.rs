//! How many clients there may be, and what becomes of what a client leaves behind.

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

async fn connect(gateway: &Gateway, role: &str) -> Result<Client, tokio_postgres::Error> {
    gateway.connect_to(role, "postgres").await
}

async fn refused(gateway: &Gateway, role: &str) -> (String, String) {
    let error = connect(gateway, role).await.expect_err("one too many");
    let error = error.as_db_error().expect("an error of the server");
    (error.code().code().to_owned(), error.message().to_owned())
}

/// Until it is true, or for ten seconds.
async fn becomes_true(client: &Client, question: &str) -> Duration {
    let began = Instant::now();
    loop {
        let row = client.query_one(question, &[]).await.expect(question);
        if row.get(0) {
            return began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{question}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_databases_and_gateways_have_limits() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 1)
        .await
        .expect("shard");
    let gateway = herd
        .gateway_with_settings("limited", "max_clients = 6\nmax_clients_per_role = 4")
        .await
        .expect("gateway");
    let admin = connect(&gateway, "postgres").await.expect("connect");
    admin
        .batch_execute(
            "CREATE ROLE few LOGIN CONNECTION LIMIT 2; CREATE ROLE many LOGIN; GRANT CREATE ON SCHEMA public TO few",
        )
        .await
        .expect("roles");

    let first = connect(&gateway, "few").await.expect("one");
    let second = connect(&gateway, "few").await.expect("two");
    let told = refused(&gateway, "few").await;
    assert_eq!(told, ("53300".into(), "too many connections for role \"few\"".into()));
    // The shard has no room for a third connection of the role, but for one after the other.
    first.batch_execute("CREATE TABLE mine (i int)").await.expect("table");
    first
        .batch_execute("BEGIN; INSERT INTO mine VALUES (1)")
        .await
        .expect("block");
    second
        .batch_execute("BEGIN; INSERT INTO mine VALUES (2)")
        .await
        .expect("block");
    for client in [&first, &second] {
        client.batch_execute("COMMIT").await.expect("commit");
        client
            .query("SELECT i FROM mine WHERE i > $1", &[&0])
            .await
            .expect("query");
    }
    drop(second);
    becomes_true(
        &admin,
        "SELECT count(*) < 3 FROM pg_stat_activity WHERE usename = 'few'",
    )
    .await;
    let again = async {
        loop {
            if let Ok(client) = connect(&gateway, "few").await {
                return client;
            }
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("a place is free");

    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(connect(&gateway, "many").await.expect("many"));
    }
    let told = refused(&gateway, "many").await;
    assert_eq!(told, ("53300".into(), "sorry, too many clients already".into()));
    drop((first, again));
    let full = async {
        loop {
            match connect(&gateway, "many").await {
                Ok(client) => others.push(client),
                Err(error) => match error.as_db_error().map(|e| e.message().to_owned()) {
                    Some(message) if message.contains("for role") => return message,
                    _ => {}
                },
            }
        }
    };
    let message = tokio::time::timeout(Duration::from_secs(10), full)
        .await
        .expect("the role's limit");
    assert_eq!(message, "too many connections for role \"many\"");
    assert_eq!(others.len(), 4);

    others.clear();
    admin
        .batch_execute("ALTER DATABASE postgres CONNECTION LIMIT 1")
        .await
        .expect("alter");
    let told = async {
        loop {
            let error = connect(&gateway, "many").await.err();
            if let Some(error) = error.as_ref().and_then(|e| e.as_db_error()) {
                return error.message().to_owned();
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(10), told)
        .await
        .expect("the database's limit");
    assert_eq!(told, "too many connections for database \"postgres\"");
    connect(&gateway, "postgres").await.expect("superusers are exempt");
}

/// A client that leaves while its statement waits for a lock lets go of what its transaction has locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_holds_nothing() {
    let (_herd, gateway) = Herd::with_gateway(Path::new(env!("CARGO_BIN_EXE_pgherd")), 2, "left")
        .await
        .expect("a cluster");
    let admin = connect(&gateway, "postgres").await.expect("connect");
    admin
        .batch_execute(
            "SET pgherd.initial_bounds = 'int 3'; CREATE TABLE held (k int PRIMARY KEY, v int) PARTITION BY RANGE (k);
             INSERT INTO held VALUES (1, 0), (5, 0)",
        )
        .await
        .expect("set up");
    let blocker = connect(&gateway, "postgres").await.expect("connect");
    blocker
        .batch_execute("BEGIN; UPDATE held SET v = 1 WHERE k = 1")
        .await
        .expect("lock");

    let mut config = gateway.config();
    let (leaving, connection) = config.user("postgres").connect(NoTls).await.expect("connect");
    let connection = tokio::spawn(connection);
    leaving
        .batch_execute("BEGIN; UPDATE held SET v = 2 WHERE k = 5")
        .await
        .expect("lock");
    let hung = tokio::spawn(async move { leaving.batch_execute("UPDATE held SET v = 2 WHERE k = 1").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Its socket is closed without a word.
    connection.abort();
    hung.abort();

    // What it has locked on the other shard is free, although what it waits for is not.
    let taken = tokio::time::timeout(
        Duration::from_secs(10),
        admin.batch_execute("UPDATE held SET v = 3 WHERE k = 5"),
    );
    taken.await.expect("in time").expect("update");
    blocker.batch_execute("COMMIT").await.expect("commit");
    let rows = admin.query("SELECT v FROM held ORDER BY k", &[]).await.expect("rows");
    let values: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(values, [1, 3]);
}
