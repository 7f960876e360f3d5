//! What a commit costs, and a read of several shards, counted and not timed: messages, rounds and flushes of the log.
//!
//! A round is what a gateway sends to a shard before it waits for the answer. PostgreSQL flushes its log once for each COMMIT of
//! a transaction that wrote, each PREPARE and each COMMIT PREPARED (with `synchronous_commit` on), so these records are counted.
//! The gateway's housekeeping may come in between, once a second: a price holds if it is met in one of several tries, and no
//! try is cheaper.

mod bed;

use bed::wire::{Message, Wire};
use bed::{Bed, begin, fragment, run};
use pgherd_model::ShardId;
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;

const TRIES: usize = 20;

/// What was sent on clients' connections, by shard and round.
fn rounds(heard: &[Message]) -> BTreeMap<u32, Vec<Vec<String>>> {
    let mut rounds: BTreeMap<u32, BTreeMap<u32, Vec<String>>> = BTreeMap::new();
    for message in heard.iter().filter(|m| m.role == "app") {
        let shard = rounds.entry(message.shard).or_default();
        shard.entry(message.round).or_default().push(message.text.clone());
    }
    let list = |(shard, rounds): (u32, BTreeMap<u32, Vec<String>>)| (shard, rounds.into_values().collect());
    rounds.into_iter().map(list).collect()
}

async fn position(bed: &Bed, shard: u32) -> String {
    let client = bed
        .cluster
        .shard(shard)
        .connect("postgres", "postgres")
        .await
        .expect("connect");
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await;
    row.expect("position").get(0)
}

/// The records for which the log is flushed, since that position.
async fn flushed_since(bed: &Bed, shard: u32, since: &str) -> Vec<String> {
    let client = bed
        .cluster
        .shard(shard)
        .connect("postgres", "postgres")
        .await
        .expect("connect");
    let sql = format!(
        "SELECT record_type FROM pg_get_wal_records_info('{since}', pg_current_wal_flush_lsn()) \
         WHERE resource_manager = 'Transaction' AND record_type IN ('COMMIT', 'PREPARE', 'COMMIT_PREPARED') ORDER BY start_lsn"
    );
    if position(bed, shard).await == since {
        return Vec::new();
    }
    let rows = client.query(&sql, &[]).await.expect("records");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Two shards, heard, on which everything has run once: connections are open, statements prepared, sequences registered.
async fn two_shards() -> (Bed, Wire, std::sync::Arc<pgherd_transaction::Coordinator>) {
    let bed = Bed::start(2).await;
    for shard in bed.ids() {
        bed.sql(shard, "CREATE EXTENSION pg_walinspect").await;
        // No records of others.
        bed.sql(shard, "ALTER SYSTEM SET autovacuum = off").await;
        bed.sql(shard, "SELECT pg_reload_conf()").await;
    }
    let (bed, wire) = Wire::before(bed);
    let gateway = bed.gateway("gw1", 1).await;
    let begun = std::time::Instant::now();
    loop {
        let mut transaction = begin(&gateway);
        bed::add(&mut transaction, 1, &[(1, 1), (2, -1)])
            .await
            .expect("updates");
        wire.heard();
        transaction.commit().await.expect("commit");
        let constraints = "SET CONSTRAINTS ALL IMMEDIATE";
        if !wire.heard().iter().any(|m| m.text == constraints) {
            return (bed, wire, gateway);
        }
        // Until housekeeping has seen that there are none.
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(30),
            "deferrable constraints are there"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_shard_costs_what_postgresql_costs() {
    let (bed, wire, gateway) = two_shards().await;
    let update = "UPDATE account SET balance = balance + 1 WHERE id = 2";
    let mut cheapest = None;
    for _ in 0..TRIES {
        let positions = [position(&bed, 1).await, position(&bed, 2).await];
        wire.heard();
        let mut transaction = begin(&gateway);
        run(&mut transaction, 1, update).await.expect("update");
        assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
        let heard = wire.heard();
        // The very statements, BEGIN in one write with the first.
        let expected = vec![
            vec!["BEGIN".to_string(), update.to_string()],
            vec!["COMMIT".to_string()],
        ];
        assert_eq!(rounds(&heard), BTreeMap::from([(1, expected)]));
        let flushes = [
            flushed_since(&bed, 1, &positions[0]).await,
            flushed_since(&bed, 2, &positions[1]).await,
        ];
        assert!(flushes[0].contains(&"COMMIT".to_string()), "{flushes:?}");
        let others = heard.iter().filter(|m| m.role != "app").count();
        if others == 0 && flushes.concat() == ["COMMIT"] {
            cheapest = Some(heard.len());
            break;
        }
    }
    assert_eq!(cheapest, Some(3), "messages; one flush on the one shard");

    // A second shard that is only read adds its own COMMIT and one question, and no second phase.
    let mut transaction = begin(&gateway);
    run(&mut transaction, 2, "SELECT balance FROM account WHERE id = 2")
        .await
        .expect("read");
    run(&mut transaction, 1, update).await.expect("update");
    wire.heard();
    transaction.commit().await.expect("commit");
    let heard = rounds(&wire.heard());
    assert_eq!(heard[&1], [["COMMIT"]]);
    let question = "SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL";
    assert_eq!(heard[&2], [[question], ["COMMIT"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_shards_cost_two_rounds_and_four_flushes() {
    let (bed, wire, gateway) = two_shards().await;
    let mut cheapest = false;
    for n in 0..TRIES {
        let mut transaction = begin(&gateway);
        bed::add(&mut transaction, 3, &[(1, 1), (2, -1)])
            .await
            .expect("updates");
        let positions = [position(&bed, 1).await, position(&bed, 2).await];
        wire.heard();
        assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
        // It is visible on both now.
        let heard = wire.heard();
        let [one, two] = [1, 2].map(|shard| rounds(&heard).remove(&shard).unwrap_or_default());
        assert_eq!(one, two, "both get the same");
        let [prepare, commit] = &one[..] else {
            panic!("{} rounds: {one:?}", one.len());
        };
        // Bind and Execute of the marker's statement; Parse, Bind and Execute of PREPARE; Sync.
        let gid = commit[0].strip_prefix("COMMIT PREPARED ").expect("COMMIT PREPARED");
        assert_eq!(
            prepare[..],
            ["B", "E", &format!("PREPARE TRANSACTION {gid}"), "B", "E", "S"]
        );
        assert_eq!(commit.len(), 1);
        let flushes = [
            flushed_since(&bed, 1, &positions[0]).await,
            flushed_since(&bed, 2, &positions[1]).await,
        ];
        for flushes in &flushes {
            let own: Vec<_> = flushes.iter().filter(|r| *r != "COMMIT").collect();
            assert_eq!(own, ["PREPARE", "COMMIT_PREPARED"], "try {n}");
        }
        let others = heard.iter().filter(|m| m.role != "app").count();
        if others == 0 && flushes.concat().len() == 4 {
            cheapest = true;
            break;
        }
    }
    assert!(
        cheapest,
        "each try had more flushes, or sent more to the shards, than the protocol needs"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_ends_with_its_statement_costs_two_rounds() {
    let (_bed, wire, gateway) = two_shards().await;
    let shards = [ShardId(1), ShardId(2)];
    let fragments = shards.map(|shard| fragment(shard.0, "f0", "SELECT balance FROM account"));
    let mut heard = BTreeMap::new();
    // The first time, the statement that lists markers is parsed.
    for _ in 0..2 {
        let mut transaction = begin(&gateway);
        wire.heard();
        transaction.open_cut(&fragments).await.expect("cut");
        for shard in shards {
            let backend = transaction.participant(shard).await.expect("participant");
            frontend::execute("f0", 0, backend.outbox()).expect("execute");
            frontend::sync(backend.outbox());
            backend.expect_ready();
            transaction.end_behind_statement(shard).expect("queued");
            let backend = transaction.participant(shard).await.expect("participant");
            backend.flush().await.expect("flush");
        }
        assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
        heard = rounds(&wire.heard());
    }
    for shard in [1, 2] {
        let [bind, execute] = &heard[&shard][..] else {
            panic!("more rounds than two: {heard:?}");
        };
        assert_eq!(bind[0], "BEGIN");
        assert_eq!(execute[..], ["E", "S", "COMMIT"]);
    }
}
