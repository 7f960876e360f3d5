//! UPDATE, DELETE, MERGE and row locks over several shards beside other writers: nothing is lost, nothing is done twice.

use pgherd_testkit::herd::{Gateway, Herd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const SETTINGS: &str = "SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 10,20'; \
                        SET lock_timeout = '60s'";

struct Bed {
    herd: Herd,
    gateways: [Gateway; 2],
}

impl Bed {
    async fn start(sql: &str) -> Self {
        let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
            .await
            .expect("three shards");
        let gateways = [
            herd.gateway("one").await.expect("gateway"),
            herd.gateway("two").await.expect("gateway"),
        ];
        let bed = Self { herd, gateways };
        let client = bed.client(0).await;
        client.batch_execute(SETTINGS).await.expect("settings");
        client.batch_execute(sql).await.expect(sql);
        bed
    }

    async fn client(&self, number: usize) -> Client {
        let port = self.gateways[number % 2].port();
        let address = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client.batch_execute(SETTINGS).await.expect("settings");
        client
    }

    async fn stop(self) {
        for gateway in self.gateways {
            gateway.stop().await;
        }
        self.herd.stop().await;
    }
}

/// Runs a statement until others leave it alone; returns the number of its rows.
async fn write(client: &Client, sql: &str) -> u64 {
    loop {
        let error = match client.simple_query(sql).await {
            Ok(messages) => return count(&messages),
            Err(error) => error,
        };
        let code = error.code().map(|c| c.code().to_owned());
        // Two sessions that move rows into each other's places wait in a circle on one PostgreSQL, too.
        assert!(matches!(code.as_deref(), Some("40001" | "40P01")), "{sql}: {error:?}");
    }
}

fn count(messages: &[SimpleQueryMessage]) -> u64 {
    let counts = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::CommandComplete(count) => Some(*count),
        _ => None,
    });
    counts.sum()
}

async fn row(client: &Client, sql: &str) -> Vec<String> {
    for message in client.simple_query(sql).await.expect(sql) {
        if let SimpleQueryMessage::Row(row) = message {
            return (0..row.len())
                .map(|i| row.get(i).unwrap_or("NULL").to_owned())
                .collect();
        }
    }
    panic!("{sql}: no row");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_update_is_lost() {
    let bed = Bed::start(
        "CREATE TABLE counter (k int PRIMARY KEY, n int NOT NULL); INSERT INTO counter SELECT i, 0 FROM generate_series(1, 30) i; \
         CREATE TABLE bonus (id int PRIMARY KEY, whose int, n int); INSERT INTO bonus SELECT i, 31 - i, 1 FROM generate_series(1, 30) i",
    )
    .await;
    let statements = [
        (
            "UPDATE counter SET n = counter.n + b.n FROM bonus b WHERE b.whose = counter.k",
            15,
        ),
        ("UPDATE counter SET n = n + (SELECT max(n) FROM bonus)", 15),
        ("UPDATE counter SET n = n + 1 WHERE k = 5", 150),
        ("UPDATE counter SET n = n + 1 WHERE k = 25", 150),
    ];
    let mut tasks = Vec::new();
    for (number, (sql, times)) in statements.into_iter().enumerate() {
        let client = bed.client(number).await;
        tasks.push(tokio::spawn(async move {
            let mut written = 0;
            for _ in 0..times {
                written += write(&client, sql).await;
            }
            written
        }));
    }
    let mut written = 0;
    for task in tasks {
        written += task.await.expect("a writer");
    }
    assert_eq!(written, 30 * 30 + 300);
    let client = bed.client(0).await;
    let sums = row(&client, "SELECT sum(n), min(n), count(*) FROM counter").await;
    assert_eq!(sums, ["1200", "30", "30"]);
    drop(client);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moves_is_one_row() {
    let bed = Bed::start(
        "CREATE TABLE nomad (k int PRIMARY KEY, tag int NOT NULL, n int NOT NULL DEFAULT 0); \
         INSERT INTO nomad (k, tag) SELECT i, i FROM generate_series(1, 6) i",
    )
    .await;
    // Each of them finds each row, wherever the others have put it.
    let statements = [
        ("UPDATE nomad SET k = (k + 12) % 36, n = n + 1 WHERE tag <= 3", 20, 3),
        ("UPDATE nomad SET k = (k + 24) % 36, n = n + 1 WHERE tag = 2", 30, 1),
        (
            "UPDATE nomad SET n = nomad.n + x.n FROM (SELECT max(tag) / 6 AS n FROM nomad) x",
            20,
            6,
        ),
    ];
    let mut tasks = Vec::new();
    for (number, (sql, times, rows)) in statements.into_iter().enumerate() {
        let client = bed.client(number).await;
        tasks.push(tokio::spawn(async move {
            for _ in 0..times {
                assert_eq!(write(&client, sql).await, rows, "{sql}");
            }
        }));
    }
    for task in tasks {
        task.await.expect("a writer");
    }
    let client = bed.client(0).await;
    // 20 times 12 is 24 of 36; 30 times 24 is none.
    let sql = "SELECT count(*), sum(n), string_agg(tag || ':' || k, ' ' ORDER BY tag) FROM nomad";
    let seen = row(&client, sql).await;
    assert_eq!(seen, ["6", "210", "1:25 2:26 3:27 4:4 5:5 6:6"]);
    drop(client);
    bed.stop().await;
}

/// Each shard can find its rows alone, but a row on its way from one shard to another must be found on one of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_scattered_write_finds_each_row_once() {
    let bed = Bed::start(
        "CREATE TABLE herd (k int PRIMARY KEY, tag int NOT NULL, n int NOT NULL DEFAULT 0); \
         INSERT INTO herd (k, tag) SELECT i, i FROM generate_series(1, 3) i",
    )
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut movers = Vec::new();
    for tag in 1..=3_u64 {
        let (client, stop) = (bed.client(tag as usize).await, stop.clone());
        movers.push(tokio::spawn(async move {
            let (mut k, mut moves) = (tag, 0);
            while !stop.load(Ordering::Relaxed) {
                let to = (k + 10) % 30;
                if moves % 2 == 0 {
                    let sql = format!("UPDATE herd SET k = {to} WHERE k = {k}");
                    assert_eq!(write(&client, &sql).await, 1, "{sql}");
                } else {
                    client.batch_execute("BEGIN").await.expect("BEGIN");
                    let n = row(&client, &format!("DELETE FROM herd WHERE k = {k} RETURNING n")).await;
                    let sql = format!("INSERT INTO herd VALUES ({to}, {tag}, {}); COMMIT", n[0]);
                    client.batch_execute(&sql).await.expect(&sql);
                }
                (k, moves) = (to, moves + 1);
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..60))).await;
            }
            moves
        }));
    }
    let (mut clients, mut times, begun) = ([bed.client(0).await, bed.client(1).await], 0, Instant::now());
    while begun.elapsed() < Duration::from_secs(5) {
        clients.swap(0, 1);
        assert_eq!(write(&clients[0], "UPDATE herd SET n = n + 1").await, 3);
        assert_eq!(
            write(&clients[0], "UPDATE herd SET n = n + 1 WHERE tag = 2 RETURNING k, n").await,
            1
        );
        times += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let mut moves = 0;
    for mover in movers {
        moves += mover.await.expect("a mover");
    }
    eprintln!("{moves} moves, {times} times");
    let seen = row(&clients[0], "SELECT count(*), sum(n) FROM herd").await;
    assert_eq!(seen, ["3".to_owned(), (4 * times).to_string()]);
    assert_eq!(write(&clients[0], "DELETE FROM herd WHERE n > 0 RETURNING *").await, 3);
    drop(clients);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_deleted_once() {
    let bed = Bed::start(
        "CREATE TABLE queue (k int PRIMARY KEY, what text); INSERT INTO queue SELECT i, 'job' FROM generate_series(1, 30) i",
    )
    .await;
    let mut tasks = Vec::new();
    for number in 0..3 {
        let client = bed.client(number).await;
        tasks.push(tokio::spawn(async move {
            let mut taken = 0;
            loop {
                match write(&client, "DELETE FROM queue WHERE k = (SELECT max(k) FROM queue)").await {
                    0 => {
                        let left = row(&client, "SELECT count(*) FROM queue").await;
                        if left == ["0"] {
                            return taken;
                        }
                    }
                    some => taken += some,
                }
            }
        }));
    }
    let mut taken = 0;
    for task in tasks {
        taken += task.await.expect("a worker");
    }
    assert_eq!(taken, 30);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_repeatable_read_the_first_writer_wins() {
    let bed = Bed::start(
        "CREATE TABLE seen (k int PRIMARY KEY, n int); INSERT INTO seen SELECT i, i FROM generate_series(1, 30) i",
    )
    .await;
    let (reader, writer) = (bed.client(0).await, bed.client(1).await);
    for (theirs, ours) in [
        (
            "UPDATE seen SET n = n + 1 WHERE k = 25",
            "UPDATE seen SET n = n + (SELECT count(*) FROM seen)",
        ),
        (
            "UPDATE seen SET k = 40 WHERE k = 5",
            "UPDATE seen SET k = k + 100 WHERE n < 8",
        ),
        (
            "DELETE FROM seen WHERE k = 15",
            "DELETE FROM seen WHERE n > (SELECT avg(n) FROM seen) - 3",
        ),
    ] {
        reader
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM seen")
            .await
            .expect("a snapshot");
        assert_eq!(count(&writer.simple_query(theirs).await.expect(theirs)), 1, "{theirs}");
        let error = reader.simple_query(ours).await.expect_err(ours);
        assert_eq!(error.code().map(|c| c.code()), Some("40001"), "{ours}: {error:?}");
        reader.batch_execute("ROLLBACK").await.expect("the end");
    }
    let seen = row(&reader, "SELECT count(*), sum(n), max(k) FROM seen").await;
    assert_eq!(seen, ["29", "451", "40"]);
    drop((reader, writer));
    bed.stop().await;
}

/// Several sessions add by MERGE, whose source and target lie on different shards.
#[tokio::test(flavor = "multi_thread")]
async fn merges_lose_nothing() {
    let bed = Bed::start(
        "CREATE TABLE tally (k int PRIMARY KEY, n int NOT NULL); CREATE TABLE step (k int PRIMARY KEY, m int); \
         INSERT INTO tally VALUES (5, 0), (15, 0), (25, 0); INSERT INTO step VALUES (1, 25), (11, 5), (21, 15), (22, 16)",
    )
    .await;
    let mut sessions = Vec::new();
    for number in 0..4 {
        let client = bed.client(number).await;
        sessions.push(tokio::spawn(async move {
            let sql = "MERGE INTO tally t USING step s ON t.k = s.m WHEN MATCHED THEN UPDATE SET n = t.n + 1";
            for _ in 0..8 {
                assert_eq!(write(&client, sql).await, 3, "{sql}");
            }
        }));
    }
    for session in sessions {
        session.await.expect("a session");
    }
    let client = bed.client(0).await;
    let sums = row(&client, "SELECT min(n), max(n), count(*) FROM tally").await;
    assert_eq!(sums, ["32", "32", "3"]);
    bed.stop().await;
}

/// A queue that is taken from by a join, and by a subquery that locks: each job is done once, and all are.
/// ON CONFLICT DO UPDATE that reads a table, by writers that insert and change the same rows: each finds the row that another has just
/// added or changed.
#[tokio::test(flavor = "multi_thread")]
async fn upserts_lose_nothing() {
    let bed = Bed::start(
        "CREATE TABLE counter (k int PRIMARY KEY, n int NOT NULL); \
         CREATE TABLE step (id int PRIMARY KEY, n int); INSERT INTO step VALUES (5, 1), (15, 0), (25, 0)",
    )
    .await;
    let upsert = |first: i32| {
        format!(
            "INSERT INTO counter SELECT i, 1 FROM generate_series({first}, 30, 4) i \
             ON CONFLICT (k) DO UPDATE SET n = counter.n + (SELECT max(n) FROM step)"
        )
    };
    let statements = [
        upsert(1),
        upsert(3),
        upsert(1),
        "UPDATE counter SET n = n + 1 WHERE k = 5".to_owned(),
    ];
    let mut tasks = Vec::new();
    for (number, sql) in statements.into_iter().enumerate() {
        let client = bed.client(number).await;
        tasks.push(tokio::spawn(async move {
            let mut written = 0;
            for _ in 0..10 {
                written += write(&client, &sql).await;
            }
            written
        }));
    }
    let mut written = 0;
    for task in tasks {
        written += task.await.expect("a writer");
    }
    let client = bed.client(0).await;
    let sums = row(&client, "SELECT sum(n), count(*) FROM counter").await;
    assert_eq!(sums, [written.to_string(), "15".to_owned()]);
    drop(client);
    bed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_found_by_joins_are_done_once() {
    let bed = Bed::start(
        "CREATE TABLE job (k int PRIMARY KEY, kind int, done int NOT NULL DEFAULT 0); CREATE TABLE kind (k int PRIMARY KEY); \
         INSERT INTO kind VALUES (5), (15), (25); INSERT INTO job SELECT g, (g * 7 % 3) * 10 + 5 FROM generate_series(1, 30) g",
    )
    .await;
    let mut sessions = Vec::new();
    for number in 0..4 {
        let client = bed.client(number).await;
        sessions.push(tokio::spawn(async move {
            let mut jobs = 0;
            for _ in 0..200 {
                let done = match number {
                    0 | 1 => {
                        client.batch_execute("BEGIN").await.expect("BEGIN");
                        let next = "SELECT job.k FROM job JOIN kind ON kind.k = job.kind WHERE done = 0 ORDER BY job.k LIMIT 2 \
                                    FOR UPDATE OF job SKIP LOCKED";
                        let mut done = 0;
                        for message in client.simple_query(next).await.expect(next) {
                            if let SimpleQueryMessage::Row(row) = message {
                                let k = row.get(0).unwrap_or_default();
                                done += write(&client, &format!("UPDATE job SET done = done + 1 WHERE k = {k}")).await;
                            }
                        }
                        client.batch_execute("COMMIT").await.expect("COMMIT");
                        done
                    }
                    _ => {
                        let sql = "UPDATE job SET done = done + 1 WHERE k IN \
                                   (SELECT k FROM job WHERE done = 0 ORDER BY k DESC FOR UPDATE SKIP LOCKED LIMIT 2)";
                        write(&client, sql).await
                    }
                };
                jobs += done;
                let left = row(&client, "SELECT count(*) FROM job WHERE done = 0").await;
                if left == ["0"] {
                    break;
                }
            }
            jobs
        }));
    }
    let mut jobs = 0;
    for session in sessions {
        jobs += session.await.expect("a session");
    }
    let client = bed.client(0).await;
    let sums = row(&client, "SELECT min(done), max(done), count(*) FROM job").await;
    assert_eq!((jobs, sums), (30, ["1", "1", "30"].map(str::to_owned).to_vec()));
    bed.stop().await;
}
