//! One gateway reads in a loop while another creates, distributes, splits, alters and drops the table: every answer is the
//! whole answer or an error.

mod cluster;
use cluster::Cluster;
use pgherd_catalog::{Catalog, Options};
use pgherd_model::{Name, ServerError, ShardId, SqlState};
use pgherd_shards::{Identity, Shards};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const ROWS: u64 = 10;

/// Counts the table's rows as a gateway with this catalog would: on the home shard while it is local, range by range else.
async fn count(catalog: &Catalog, shards: &Arc<Shards>) -> Result<u64, ServerError> {
    let guard = catalog.enter(&[pgherd_sql::name_hash("t")], None).await?;
    let who = Identity::new("postgres", "postgres");
    let mut places = Vec::new();
    match guard
        .snapshot
        .table(&Name::new("public", "t"))
        .and_then(|t| t.sharded())
    {
        Some(sharded) => places.extend(sharded.ranges.ranges().iter().map(|r| (r.shard, r.child.to_string()))),
        None => places.push((shards.home(), "public.t".to_owned())),
    }
    let mut sum = 0;
    for (shard, name) in places {
        // Time for a change to come in between.
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        let mut backend = shards.checkout(shard, &who).await?;
        let results = backend.simple(&format!("SELECT count(*) FROM {name}")).await?;
        sum += results[0].text(0, 0).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    if !guard.is_valid() {
        return Err(pgherd_catalog::Error::LeaseLapsed.into());
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_whole_while_another_gateway_changes_the_table() {
    let c = Cluster::start(3).await;
    let options = Options::new("test", "reader", "127.0.0.1:2", "secret");
    let reader = Catalog::open(c.shards.clone(), "postgres", options).await.unwrap();
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let reading = tokio::spawn({
        let (reader, shards, stop, answers) = (reader.clone(), c.shards.clone(), stop.clone(), answers.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                match count(&reader, &shards).await {
                    Ok(rows) => {
                        assert_eq!(rows, ROWS, "a partial answer");
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                    // Not there at the moment.
                    Err(e) => assert_eq!(e.sqlstate(), SqlState::UNDEFINED_TABLE, "{e}"),
                }
            }
        }
    });
    for round in 0..4 {
        let (mut transaction, mut change) = (c.begin(), None);
        c.within(
            &mut transaction,
            &mut change,
            "CREATE TABLE t (id int PRIMARY KEY, v int)",
        )
        .await
        .unwrap();
        let home = transaction.participant(ShardId(1)).await.unwrap();
        home.simple("INSERT INTO t SELECT i, i FROM generate_series(1, 10) i")
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        assert!(change.is_none(), "a local table is nobody's business");
        for sql in [
            "CALL pgherd.distribute('t', 'id')",
            "CALL pgherd.split('t', 5, to => 'shard1')",
            "ALTER TABLE t ADD COLUMN w int DEFAULT 0",
            "CREATE UNIQUE INDEX ON t (id, w)",
            "CALL pgherd.split('t', 9)",
            "CALL pgherd.undistribute('t')",
            "ALTER TABLE t RENAME TO t_elsewhere",
            "ALTER TABLE t_elsewhere RENAME TO t",
            "CALL pgherd.distribute('t', 'id')",
            "DROP TABLE t",
        ] {
            let before = answers.load(Ordering::Relaxed);
            c.ok(sql).await;
            let wanted = if sql.starts_with("DROP") || sql.ends_with("elsewhere") {
                before
            } else {
                before + 1
            };
            while answers.load(Ordering::Relaxed) < wanted && !reading.is_finished() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            assert!(!reading.is_finished(), "{sql} in round {round}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    reading.await.unwrap();
    reader.close().await;
    drop(reader);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_to_a_savepoint_does_not_hide_the_change_that_follows() {
    let c = Cluster::start(2).await;
    let options = Options::new("test", "reader", "127.0.0.1:2", "secret");
    let reader = Catalog::open(c.shards.clone(), "postgres", options).await.unwrap();
    let (mut transaction, mut change) = (c.begin(), None);
    transaction.savepoint("a").await.unwrap();
    let create = "CREATE TABLE t (id int) PARTITION BY RANGE (id)";
    c.within(&mut transaction, &mut change, create).await.unwrap();
    transaction.rollback_to("a").await.unwrap();
    c.within(&mut transaction, &mut change, create).await.unwrap();
    transaction.commit().await.unwrap();
    change.unwrap().finish().await.unwrap();
    let guard = reader.enter(&[pgherd_sql::name_hash("t")], None).await.unwrap();
    assert_eq!(guard.snapshot.sharded().count(), 1, "the other gateway knows");
    drop(guard);
    reader.close().await;
    drop(reader);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_somebody_holds_is_waited_for_without_keeping_others() {
    let c = Cluster::start(2).await;
    c.ok("CREATE TABLE t (id int) PARTITION BY RANGE (id)").await;
    let who = Identity::new("postgres", "postgres");
    let mut holder = c.shards.checkout(ShardId(2), &who).await.unwrap();
    holder.simple("BEGIN; LOCK TABLE t IN ACCESS SHARE MODE").await.unwrap();
    let changing = c.run("ALTER TABLE t ADD COLUMN v int");
    let releasing = async {
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        // The other shard's lock was given up meanwhile, at one time or another.
        let mut other = c.shards.checkout(ShardId(1), &who).await.unwrap();
        other
            .simple("SET lock_timeout = '5s'; SELECT count(*) FROM t")
            .await
            .unwrap();
        other.taint();
        holder.simple("COMMIT").await.unwrap();
    };
    let (changed, ()) = tokio::join!(changing, releasing);
    assert_eq!(changed.unwrap().tag, "ALTER TABLE");
    c.stop().await;
}
