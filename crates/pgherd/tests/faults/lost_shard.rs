//! A shard goes down while clients work: what lies on the others is still served, and nothing is lost.

use super::{run, say, three_shards, value};
use pgherd_testkit::faults::bank::{self, Bank};
use pgherd_testkit::herd::Gateway;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Tries until it works, and returns how long that took.
async fn until_it_works(client: &Client, sql: &str) -> Duration {
    let begun = Instant::now();
    loop {
        match client.batch_execute(sql).await {
            Ok(()) => return begun.elapsed(),
            Err(error) if begun.elapsed() > Duration::from_secs(20) => panic!("{sql}: {}", say(&error)),
            Err(error) => assert!(!client.is_closed(), "the session ended: {}", say(&error)),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_shards_are_served_while_one_is_down() {
    let herd = three_shards().await;
    let gateway = herd.gateway("one").await.expect("gateway");
    let client = gateway.connect().await.expect("connect");
    run(
        &client,
        "CREATE TABLE t (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO (100);
         CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (100) TO (200);
         CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (200) TO (MAXVALUE);
         INSERT INTO t VALUES (1, 'a'), (101, 'b'), (201, 'c')",
    )
    .await;
    let shard = |key: i32| {
        let client = &client;
        async move {
            let sql = format!(
                "SELECT shard FROM pgherd.ranges WHERE \"table\" = 't' AND {key} >= CASE \"from\" WHEN 'MINVALUE' THEN 0 ELSE \"from\"::int END
                 ORDER BY range DESC LIMIT 1"
            );
            value(client, &sql).await
        }
    };
    // The home shard holds the catalog; another one goes down.
    let mut lost = None;
    let mut others = Vec::new();
    for key in [1, 101, 201] {
        match shard(key)
            .await
            .strip_prefix("shard")
            .and_then(|number| number.parse::<u32>().ok())
        {
            Some(number) if number > 1 && lost.is_none() => lost = Some((key, number)),
            _ => others.push(key),
        }
    }
    let (lost_key, lost_shard) = lost.expect("a range on another than the home shard");

    let in_a_block = gateway.connect().await.expect("connect");
    run(
        &in_a_block,
        &format!("BEGIN; UPDATE t SET v = 'block' WHERE k = {}", others[0]),
    )
    .await;
    let across = gateway.connect().await.expect("connect");
    run(
        &across,
        &format!("BEGIN; UPDATE t SET v = 'lost' WHERE k IN ({}, {lost_key})", others[1]),
    )
    .await;

    herd.cluster().kill_shard(lost_shard).await;
    for sql in [
        format!("SELECT v FROM t WHERE k = {lost_key}"),
        format!("UPDATE t SET v = 'x' WHERE k = {lost_key}"),
        "SELECT count(*) FROM t".to_string(),
        "UPDATE t SET v = 'everywhere'".to_string(),
    ] {
        let begun = Instant::now();
        let error = client.batch_execute(&sql).await.expect_err(&sql);
        let state = error.code().map_or("", |state| state.code()).to_string();
        assert!(
            state.starts_with("08") || state.starts_with("57"),
            "{sql}: {}",
            say(&error)
        );
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "{sql} took {:?}",
            begun.elapsed()
        );
    }
    for key in &others {
        let new = key + 5;
        run(&client, &format!("INSERT INTO t VALUES ({new}, 'while it was down')")).await;
        let found = value(&client, &format!("SELECT v FROM t WHERE k = {new}")).await;
        assert_eq!(found, "while it was down");
    }
    run(&in_a_block, "COMMIT").await;
    assert_eq!(
        value(&client, &format!("SELECT v FROM t WHERE k = {}", others[0])).await,
        "block"
    );
    across
        .batch_execute("COMMIT")
        .await
        .expect_err("one of its shards is gone");
    assert!(gateway.connect().await.is_ok(), "new sessions come in");

    herd.cluster().restart_shard(lost_shard).await.expect("restart");
    until_it_works(&client, &format!("UPDATE t SET v = v || '!' WHERE k = {lost_key}")).await;
    assert_eq!(value(&client, "SELECT count(*) FROM t").await, "5");
    assert_eq!(
        value(
            &client,
            "SELECT string_agg(v, ' ' ORDER BY k) FROM t WHERE v LIKE '%lost%'"
        )
        .await,
        "NULL",
        "the transaction over the lost shard left nothing"
    );
    until_it_works(&across, "ROLLBACK; UPDATE t SET v = 'after'").await;
    assert_eq!(value(&client, "SELECT count(*) FROM t WHERE v = 'after'").await, "5");
    assert!(!gateway.errors().contains("panicked"), "{}", gateway.errors());
    assert!(gateway.stop().await);
}

/// What clients of a bank that stands still were told.
async fn why(bank: Bank, gateway: &Gateway) -> String {
    let told = bank.close().await;
    format!("{:?} {:?}\n{}", told.errors, told.samples, gateway.errors())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_dies_among_transfers_loses_nothing() {
    let herd = three_shards().await;
    let mut gateway = herd.gateway("one").await.expect("gateway");
    let client = gateway.connect().await.expect("connect");
    bank::create(&client).await.expect("create the bank");
    let bank = Bank::open(&gateway.config(), 6, 0);
    for shard in [2, 3, 1] {
        if !bank.wait_for(bank.acknowledged() + 60, Duration::from_secs(40)).await {
            panic!(
                "the bank stands still before shard {shard} dies: {}",
                why(bank, &gateway).await
            );
        }
        herd.cluster().kill_shard(shard).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        herd.cluster().restart_shard(shard).await.expect("restart");
    }
    let goes_on = bank.wait_for(bank.acknowledged() + 60, Duration::from_secs(60)).await;
    let told = bank.close().await;
    assert!(
        gateway.is_running() && !gateway.errors().contains("panicked"),
        "{}",
        gateway.errors()
    );
    assert!(goes_on, "the bank stands still: {:?} {:?}", told.errors, told.samples);
    let begun = Instant::now();
    while herd.prepared_transactions().await.expect("count") > 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "prepared transactions are left"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let client = gateway.connect().await.expect("connect");
    eprintln!("{} acknowledged, errors {:?}", told.acknowledged.len(), told.errors);
    let samples = told.samples.clone();
    let wrong = bank::verify(&client, &[told]).await.expect("verify");
    assert_eq!(wrong, Vec::<String>::new(), "{samples:?}");
    for (state, sample) in &samples {
        assert_ne!(state, "XX000", "{sample}");
    }
    assert!(gateway.stop().await);
}
