//! Transactions that wait between the two phases, as an operator sees them: in `pgherd.transactions`, in the metrics, in the log,
//! and what `CALL pgherd.resolve` does and refuses.

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_postgres::error::DbError;
use tokio_postgres::{Client, SimpleQueryMessage};

/// How long the gateways may take to find and finish something on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Prepares a transaction on some of its shards, as a gateway called `ghost` would have in that life.
async fn leave_prepared(herd: &Herd, life: u32, number: u32, participants: &[u32], on: &[u32], role: &str) -> String {
    let bitmap = participants.iter().fold(0, |bits, shard| bits | 1 << shard);
    let mut name = String::new();
    for shard in on {
        let client = herd
            .cluster()
            .shard(*shard)
            .connect("postgres", "postgres")
            .await
            .expect("connect");
        let sql = format!(
            "SELECT 'pgherd:herd:' || left(encode(sha256('postgres'), 'hex'), 8) || ':{bitmap:x}:ghost:{life}.0:{number}'"
        );
        name = client.query_one(&sql, &[]).await.expect("name").get(0);
        let known = format!(
            "INSERT INTO pgherd.dtx_sequence (sequence, gateway, incarnation) VALUES ('ghost:{life}.0', 'ghost', {life})
             ON CONFLICT DO NOTHING"
        );
        client.batch_execute(&known).await.expect("its sequence");
        let sql = format!(
            "BEGIN; SET LOCAL ROLE {role}; INSERT INTO note VALUES ({number}); RESET ROLE;
             SELECT pgherd.write_marker('{name}', encode(sha256(secret || sha256(secret || convert_to('{name}', 'UTF8'))), 'hex'))
             FROM pgherd.commit_secret;
             SET SESSION AUTHORIZATION {role}; PREPARE TRANSACTION '{name}'"
        );
        client
            .batch_execute(&sql)
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }
    name
}

/// How many shards show the row of a transaction.
async fn shown_on(herd: &Herd, number: u32) -> i64 {
    herd.sum_over_shards(&format!("SELECT count(*) FROM note WHERE n = {number}"))
        .await
        .expect("sum")
}

/// The life of the gateway `ghost` that may have a lease.
const LEASED: u32 = 7;

/// Gives the gateway `ghost` a lease, or takes it.
async fn lease(herd: &Herd, time: &str) {
    let home = herd
        .cluster()
        .shard(1)
        .connect("postgres", "postgres")
        .await
        .expect("connect");
    let sql = format!(
        "INSERT INTO pgherd.gateway_lease (incarnation, name, address, lease_until) VALUES ('{LEASED}', 'ghost', '', now() + interval '{time}')
         ON CONFLICT (incarnation) DO UPDATE SET lease_until = excluded.lease_until"
    );
    home.batch_execute(&sql).await.expect("lease");
}

async fn rows(client: &Client, sql: &str) -> Vec<Vec<String>> {
    let messages = client
        .simple_query(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|i| row.get(i).unwrap_or("NULL").to_owned())
                .collect(),
        ),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

async fn refused(client: &Client, sql: &str) -> DbError {
    let error = client.batch_execute(sql).await.expect_err(sql);
    error
        .as_db_error()
        .unwrap_or_else(|| panic!("{sql}: {error:?}"))
        .clone()
}

/// Asks until the answer is this one.
async fn until(client: &Client, sql: &str, expected: &[&[&str]]) {
    let begun = Instant::now();
    loop {
        let found = rows(client, sql).await;
        if found == expected {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{sql}: {found:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// One number of `/metrics`.
async fn metric(port: u16, name: &str) -> Option<f64> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("metrics");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.expect("ask");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

async fn until_metric(port: u16, name: &str, wanted: impl Fn(f64) -> bool) {
    let begun = Instant::now();
    while !metric(port, name).await.is_some_and(&wanted) {
        assert!(begun.elapsed() < LIMIT, "{name}: {:?}", metric(port, name).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn start() -> (Herd, Gateway, u16) {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("three shards");
    for shard in herd.cluster().shards() {
        let client = shard.connect("postgres", "postgres").await.expect("connect");
        client
            .batch_execute(
                "CREATE ROLE teller LOGIN; CREATE TABLE note (n int PRIMARY KEY); GRANT ALL ON note TO PUBLIC",
            )
            .await
            .expect("role and table");
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port");
    let metrics = format!("127.0.0.1:{}", free.port());
    let gateway = herd
        .gateway_with("one", &["--metrics-listen", &metrics], &[])
        .await
        .expect("gateway");
    (herd, gateway, free.port())
}

const SHOWN: &str = "SELECT gateway, live, role, participants, prepared_on FROM pgherd.transactions";

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_lost_shard_waits_and_is_told() {
    let (herd, gateway, metrics) = start().await;
    let client = gateway.connect().await.expect("connect");
    lease(&herd, "1 hour").await;
    let gid = leave_prepared(&herd, LEASED, 1, &[2, 3], &[2], "teller").await;
    let call = format!("CALL pgherd.resolve('{gid}')");

    // While its own gateway lives, it is left alone.
    until(
        &client,
        SHOWN,
        &[&["ghost", "t", "teller", "{shard2,shard3}", "{shard2}"]],
    )
    .await;
    let error = refused(&client, &call).await;
    assert_eq!(error.code().code(), "55000");
    assert_eq!(error.detail(), Some("Gateway \"ghost\" is alive and commits it."));

    // The gateway dies, and with it a shard without which nobody can know the outcome.
    herd.cluster().kill_shard(3).await;
    lease(&herd, "-1 second").await;
    until(
        &client,
        SHOWN,
        &[&["ghost", "f", "teller", "{shard2,shard3}", "{shard2}"]],
    )
    .await;
    let error = refused(&client, &call).await;
    assert_eq!(error.code().code(), "55000");
    assert_eq!(
        error.message(),
        format!("the outcome of prepared transaction \"{gid}\" cannot be known yet")
    );
    assert_eq!(error.detail(), Some("No answer from shard 3."));
    assert!(error.hint().is_some());
    let dead = "pgherd_transactions_in_doubt{database=\"postgres\",gateway=\"dead\"}";
    until_metric(metrics, dead, |count| count == 1.0).await;
    let warnings = || {
        gateway
            .errors()
            .matches("waits between the two phases of its commit")
            .count()
    };
    // It is looked at every second, and told once.
    let oldest = "pgherd_transactions_in_doubt_oldest_seconds{database=\"postgres\"}";
    until_metric(metrics, oldest, |age| age > 5.0 && warnings() > 0).await;
    let since = metric(metrics, oldest).await.expect(oldest);
    until_metric(metrics, oldest, |age| age > since + 3.0).await;
    assert_eq!(warnings(), 1, "{}", gateway.errors());

    // With the shard, recovery comes by itself.
    herd.cluster().restart_shard(3).await.expect("restart");
    until(&client, SHOWN, &[]).await;
    assert_eq!(herd.prepared_transactions().await.expect("count"), 0);
    assert_eq!(shown_on(&herd, 1).await, 0, "it was never prepared on shard 3");
    let error = refused(&client, &call).await;
    assert_eq!(error.code().code(), "42704");
    assert_eq!(
        error.message(),
        format!("prepared transaction with identifier \"{gid}\" does not exist")
    );
    assert!(gateway.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn resolve_finishes_what_recovery_would_and_asks_who_is_there() {
    let (herd, gateway, _) = start().await;
    let client = gateway.connect().await.expect("connect");
    let mut config = gateway.config();
    let (teller, connection) = config
        .user("teller")
        .connect(tokio_postgres::NoTls)
        .await
        .expect("teller");
    tokio::spawn(connection);

    for (sql, state) in [
        ("CALL pgherd.resolve('none')", "42704"),
        ("CALL pgherd.resolve('pgherd:elsewhere:0:6:ghost:7.0:1')", "42704"),
        ("CALL pgherd.resolve()", "42883"),
        ("CALL pgherd.resolve(1)", "42883"),
        ("CALL pgherd.resolve(NULL)", "22023"),
        ("BEGIN; CALL pgherd.resolve('none')", "25001"),
    ] {
        assert_eq!(refused(&client, sql).await.code().code(), state, "{sql}");
        client.batch_execute("ROLLBACK").await.expect("rollback");
    }

    lease(&herd, "1 hour").await;
    let foreign = leave_prepared(&herd, LEASED, 1, &[1, 2], &[1, 2], "postgres").await;
    let error = refused(&teller, &format!("CALL pgherd.resolve('{foreign}')")).await;
    assert_eq!(
        (error.code().code(), error.message()),
        ("42501", "permission denied to finish prepared transaction")
    );
    let own = leave_prepared(&herd, LEASED, 2, &[1, 2], &[1, 2], "teller").await;
    let busy = refused(&teller, &format!("CALL pgherd.resolve('{own}')")).await;
    assert_eq!(busy.code().code(), "55000", "its gateway lives");
    lease(&herd, "-1 second").await;

    // Recovery looks every second: after some tries, somebody who asks is faster. A new life each time, since sequences of the
    // dead are closed.
    let mut faster = 0;
    for number in 10..40 {
        let whole = number % 2 == 0;
        let on: &[u32] = if whole { &[2, 3] } else { &[2] };
        let gid = leave_prepared(&herd, number, number, &[2, 3], on, "teller").await;
        match teller.batch_execute(&format!("CALL pgherd.resolve('{gid}')")).await {
            Ok(()) => faster += 1,
            Err(e) => assert_eq!(e.code().map(|c| c.code()), Some("42704"), "{e:?}"),
        }
        let begun = Instant::now();
        while herd.prepared_transactions().await.expect("count") > 0 {
            assert!(begun.elapsed() < LIMIT, "{gid} is left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(shown_on(&herd, number).await, if whole { 2 } else { 0 });
        if faster >= 4 {
            break;
        }
    }
    assert!(faster > 0, "recovery was faster each time");
    assert!(gateway.stop().await);
}
