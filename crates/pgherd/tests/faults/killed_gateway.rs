//! `kill -9` of the gateway in the middle of transfers between shards.

use super::{say, three_shards};
use pgherd_testkit::faults::bank::{self, Bank};
use std::time::{Duration, Instant};

/// How long in-doubt transactions may be left after the next gateway's start.
const RECOVERY_LIMIT: Duration = Duration::from_secs(5);

/// How often the gateway is killed; a thorough run says 20.
fn times() -> i64 {
    let asked = std::env::var("PGHERD_KILLS").ok();
    asked.map_or(3, |text| text.parse().expect("PGHERD_KILLS is a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_loses_and_invents_nothing() {
    let herd = three_shards().await;
    let mut gateway = herd.gateway("one").await.expect("gateway");
    let client = gateway.connect().await.expect("connect");
    bank::create(&client).await.expect("create the bank");
    drop(client);
    let mut told = Vec::new();
    let mut in_doubt = 0;
    for run in 0..times() {
        let bank = Bank::open(&gateway.config(), 8, run);
        // Not always at the same point: after 30 to 99 transfers, which differ in how far they are.
        let enough = 30 + (run as u64 * 37) % 70;
        let limit = Duration::from_secs(60);
        // A run lasts for less than a second: one of them goes on until a sum was read.
        let busy = bank.wait_for(enough, limit).await && (run > 0 || bank.wait_for_a_sum(limit).await);
        if !busy {
            let errors = gateway.errors();
            gateway.kill().await;
            panic!("the bank stands still: {:?}\n{errors}", bank.close().await);
        }
        gateway.kill().await;
        in_doubt += herd.prepared_transactions().await.expect("count");
        let begun = Instant::now();
        gateway = herd.gateway("one").await.expect("the next gateway");
        told.push(bank.close().await);
        while herd.prepared_transactions().await.expect("count") > 0 {
            assert!(
                begun.elapsed() < RECOVERY_LIMIT,
                "run {run}: prepared transactions are left"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let client = gateway.connect().await.expect("connect");
        let wrong = bank::verify(&client, &told).await.expect("verify");
        assert_eq!(
            wrong,
            Vec::<String>::new(),
            "run {run}, after {} acknowledged transfers",
            told[run as usize].acknowledged.len()
        );
    }
    let right_sums: u64 = told.iter().map(|told| told.right_sums).sum();
    let unknown: usize = told.iter().map(|told| told.unknown.len()).sum();
    eprintln!(
        "{in_doubt} transactions were in doubt at a kill, {unknown} clients got no answer, {right_sums} sums were right"
    );
    assert!(right_sums > 0, "nobody read a sum: {told:?}");
    for told in &told {
        for (state, sample) in &told.samples {
            assert!(
                state.ends_with("connection lost") || state.starts_with("08") || state.starts_with("57P"),
                "{state}: {sample}"
            );
        }
    }
    // 20 kills that never hit a commit would have tested nothing.
    assert!(
        times() < 20 || in_doubt > 0,
        "no kill hit a transaction that was being committed"
    );
    assert!(gateway.stop().await, "the last gateway ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_gateway_finishes_what_a_dead_one_left() {
    let herd = three_shards().await;
    let dies = herd.gateway("dies").await.expect("gateway");
    let lives = herd.gateway("lives").await.expect("gateway");
    let client = lives.connect().await.expect("connect");
    bank::create(&client).await.expect("create the bank");
    let survivors = Bank::open(&lives.config(), 3, 1);
    let victims = Bank::open(&dies.config(), 8, 2);
    assert!(
        victims.wait_for(60, Duration::from_secs(60)).await,
        "the bank stands still"
    );
    dies.kill().await;
    let victims = victims.close().await;
    // Those who wait for rows that a dead gateway holds go on once its lease is over.
    let goes_on = survivors.acknowledged() + 200;
    let went_on = survivors.wait_for(goes_on, Duration::from_secs(40)).await;
    let survivors = survivors.close().await;
    assert!(went_on, "{:?} {:?}", survivors.errors, survivors.samples);
    let begun = Instant::now();
    while herd.prepared_transactions().await.expect("count") > 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "prepared transactions are left"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let wrong = bank::verify(&client, &[victims, survivors]).await.expect("verify");
    assert_eq!(wrong, Vec::<String>::new());
    client
        .batch_execute("DROP TABLE account; DROP TABLE ledger")
        .await
        .unwrap_or_else(|error| panic!("{}", say(&error)));
    assert!(lives.stop().await);
}
