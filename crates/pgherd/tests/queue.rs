//! A queue over three shards, from which workers take jobs through two gateways: `SELECT … ORDER BY … LIMIT 1 FOR UPDATE SKIP LOCKED`.

use pgherd_testkit::herd::Herd;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, SimpleQueryMessage};

const JOBS: i32 = 120;
const WORKERS: usize = 6;
const LIMIT: Duration = Duration::from_secs(120);
const TAKE: &str = "SELECT id FROM job WHERE state = 'new' ORDER BY urgency, id LIMIT 1 FOR UPDATE SKIP LOCKED";

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!("{sql}: {error:?}");
    }
}

async fn numbers(client: &Client, sql: &str) -> Vec<i32> {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    rows.map(|n| n.parse().expect("a number")).collect()
}

/// Takes jobs until there are none; every seventh time it changes its mind. What it did, in order.
async fn work(client: Client, by_prepared: bool) -> Vec<i32> {
    let (mut done, mut turn, begun) = (Vec::new(), 0, Instant::now());
    let take = client.prepare(TAKE).await.expect("prepare");
    loop {
        assert!(begun.elapsed() < LIMIT, "the queue does not get empty: {done:?}");
        run(&client, "BEGIN").await;
        let taken = match by_prepared {
            true => client
                .query(&take, &[])
                .await
                .expect("take")
                .first()
                .map(|row| row.get::<_, i32>(0)),
            false => numbers(&client, TAKE).await.first().copied(),
        };
        let Some(job) = taken else {
            run(&client, "ROLLBACK").await;
            // Others may still change their minds.
            if numbers(&client, "SELECT count(*) FROM job WHERE state = 'new'").await == [0] {
                return done;
            }
            continue;
        };
        turn += 1;
        if turn % 7 == 0 {
            run(&client, "ROLLBACK").await;
            continue;
        }
        run(
            &client,
            &format!("UPDATE job SET state = 'done', times = times + 1 WHERE id = {job}"),
        )
        .await;
        run(&client, "COMMIT").await;
        done.push(job);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_taken_twice() {
    let herd = Herd::start(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3)
        .await
        .expect("three shards");
    let gateways = [
        herd.gateway("one").await.expect("gateway"),
        herd.gateway("two").await.expect("gateway"),
    ];
    let client = gateways[0].connect().await.expect("connect");
    run(&client, "SET pgherd.initial_bounds = 'int 40,80'").await;
    run(
        &client,
        &format!(
            "CREATE TABLE job (id int PRIMARY KEY, urgency int, state text NOT NULL, times int NOT NULL) PARTITION BY RANGE (id);
             INSERT INTO job SELECT n, n * 7 % 5, 'new', 0 FROM generate_series(0, {JOBS} - 1) n"
        ),
    )
    .await;

    // One worker locks one row, and the next one gets the next.
    let mut order: Vec<i32> = (0..JOBS).collect();
    order.sort_by_key(|n| (n * 7 % 5, *n));
    let mut holders = Vec::new();
    for (n, expected) in order.iter().take(4).enumerate() {
        let holder = gateways[n % 2].connect().await.expect("connect");
        run(&holder, "BEGIN").await;
        assert_eq!(numbers(&holder, TAKE).await, [*expected]);
        holders.push(holder);
    }
    let free = numbers(
        &client,
        "SELECT id FROM job ORDER BY urgency, id FOR UPDATE SKIP LOCKED",
    )
    .await;
    assert_eq!(free, order[4..], "only those that were taken are locked");
    drop(holders);

    let mut workers = Vec::new();
    for n in 0..WORKERS {
        let client = gateways[n % 2].connect().await.expect("connect");
        workers.push(tokio::spawn(work(client, n % 3 == 0)));
    }
    let (mut times, mut busy) = (BTreeMap::new(), 0);
    for worker in workers {
        let done = worker.await.expect("worker");
        busy += usize::from(!done.is_empty());
        for job in done {
            *times.entry(job).or_insert(0) += 1;
        }
    }
    assert_eq!(times.len(), JOBS as usize);
    assert!(times.values().all(|n| *n == 1), "{times:?}");
    assert_eq!(
        numbers(&client, "SELECT sum(times) FROM job WHERE times = 1").await,
        [JOBS]
    );
    assert!(busy > 1, "one worker did all");
    for gateway in gateways {
        assert!(gateway.stop().await);
    }
}
