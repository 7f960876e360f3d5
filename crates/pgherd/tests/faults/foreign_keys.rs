//! A gateway that dies while the ranges of linked tables move.

use super::{run, three_shards, value};
use std::time::Duration;

/// Root constraints that PostgreSQL holds for checked, one on each shard.
const VALID: &str = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND convalidated \
    AND connamespace = 'public'::regnamespace";
const ORPHANS: &str = "SELECT count(*) FROM items i WHERE NOT EXISTS (SELECT FROM orders o WHERE o.id = i.order_id)";
const RANGES: &str = "SELECT count(*) FROM (SELECT \"from\", \"to\", shard FROM pgherd.ranges \
    WHERE \"table\" IN ('orders', 'items') GROUP BY 1, 2, 3 HAVING count(*) <> 2) AS alone";

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_in_a_split_leaves_every_row_checked() {
    let herd = three_shards().await;
    let lives = herd.gateway("lives").await.expect("gateway");
    let client = lives.connect().await.expect("connect");
    run(
        &client,
        "SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 3000,6000'",
    )
    .await;
    run(&client, "CREATE TABLE orders (id int PRIMARY KEY)").await;
    run(
        &client,
        "CREATE TABLE items (order_id int REFERENCES orders ON DELETE CASCADE, n int, PRIMARY KEY (order_id, n))",
    )
    .await;
    run(&client, "INSERT INTO orders SELECT generate_series(0, 8999)").await;
    run(
        &client,
        "INSERT INTO items SELECT i % 9000, i / 9000 FROM generate_series(0, 17999) i",
    )
    .await;
    let (mut done, mut undone) = (0, 0);
    for attempt in 0..8_u64 {
        let dies = herd.gateway("dies").await.expect("gateway");
        let victim = dies.connect().await.expect("connect");
        // From the first shard's range to another one, a piece further each time.
        let split = format!("CALL pgherd.split('items', {}, to => 'shard2')", 2800 - attempt * 300);
        let change = tokio::spawn(async move { victim.batch_execute(&split).await });
        tokio::time::sleep(Duration::from_millis(30 + attempt * 50)).await;
        dies.kill().await;
        let before = done;
        match change.await.expect("the task") {
            Ok(()) => done += 1,
            Err(_) => undone += 1,
        }
        // Waits for what the dead gateway announced, and for its transaction.
        run(&client, &format!("ALTER TABLE items ADD COLUMN a{attempt} int")).await;
        assert_eq!(value(&client, "SELECT count(*) FROM items").await, "18000");
        assert_eq!(value(&client, "SELECT count(*) FROM orders").await, "9000");
        assert_eq!(value(&client, ORPHANS).await, "0");
        assert_eq!(
            value(&client, RANGES).await,
            "0",
            "one table was split without the other"
        );
        assert_eq!(herd.sum_over_shards(VALID).await.expect("pg_constraint"), 3);
        let refused = client.batch_execute("INSERT INTO items VALUES (-1, 1)").await;
        let refused = refused.expect_err("no such order");
        assert_eq!(refused.code().map(|c| c.code()), Some("23503"));
        if done > 0 && undone > 0 && done > before {
            break;
        }
    }
    eprintln!("{done} splits were done, {undone} were not when their gateway died");
    assert!(undone > 0, "no split was interrupted");
    run(&client, "DELETE FROM orders WHERE id BETWEEN 1000 AND 6999").await;
    assert_eq!(value(&client, "SELECT count(*) FROM items").await, "6000");
    assert!(lives.stop().await);
}
