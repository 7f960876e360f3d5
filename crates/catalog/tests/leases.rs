//! Gateways agree before a change takes effect: two or three catalogs over one real home shard.

use pgherd_catalog::{Catalog, Options, bring_up_to_date, install};
use pgherd_local_cluster::LocalCluster;
use pgherd_shards::{Identity, ShardConfig, Shards};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SECRET: &str = "it's a secret";
const A: u64 = 0xA1;
const B: u64 = 0xB2;

async fn cluster(count: usize) -> (LocalCluster, Arc<Shards>) {
    let cluster = LocalCluster::ephemeral(count).await.expect("the shards start");
    let configs = cluster
        .shards()
        .iter()
        .enumerate()
        .map(|(i, s)| ShardConfig {
            id: pgherd_model::ShardId(i as u32 + 1),
            name: s.name().to_owned(),
            host: s.socket_dir().display().to_string(),
            port: s.port(),
            tls: None,
        })
        .collect();
    let shards = Shards::new(pgherd_shards::Options::new(configs, pgherd_local_cluster::SERVICE_ROLE));
    install(&shards, "postgres", "test", SECRET)
        .await
        .expect("the catalog installs");
    (cluster, shards)
}

async fn gateway(shards: &Arc<Shards>, name: &str, lease_ms: u64) -> Arc<Catalog> {
    let mut options = Options::new("test", name, "127.0.0.1:1", SECRET);
    options.lease = Duration::from_millis(lease_ms);
    options.renew_every = Duration::from_millis(lease_ms / 4);
    Catalog::open(shards.clone(), "postgres", options)
        .await
        .expect("a lease")
}

async fn within<T>(limit_ms: u64, what: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(limit_ms), what).await.ok()
}

/// What operations do in the changing transaction.
async fn hold(shards: &Arc<Shards>, change: &pgherd_catalog::Change) -> pgherd_shards::Backend {
    let who = Identity::new("postgres", "postgres");
    let mut home = shards.checkout(shards.home(), &who).await.unwrap();
    home.simple("BEGIN").await.unwrap();
    let payload = change.hold_payload();
    let proof = pgherd_catalog::sign(SECRET, "hold_changes", &payload, home.process_id());
    home.query("SELECT pgherd.hold_changes($1, $2)", &[Some(&payload), Some(&proof)])
        .await
        .unwrap();
    home
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_statements_elsewhere_and_closes_only_its_names() {
    let (cluster, shards) = cluster(1).await;
    let (one, two) = (gateway(&shards, "one", 4000).await, gateway(&shards, "two", 4000).await);

    let in_flight = two.enter(&[A], None).await.unwrap();
    assert!(
        within(400, one.begin_change(&[A], "test")).await.is_none(),
        "two still runs a statement on A"
    );
    // That attempt was given up: its names open again.
    within(4000, one.enter(&[A], None))
        .await
        .expect("nothing is left of it")
        .unwrap();

    let beginning = tokio::spawn({
        let one = one.clone();
        async move { one.begin_change(&[A], "test").await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(two.try_enter(&[A]).is_none(), "A is closed on the other gateway");
    assert!(two.try_enter(&[B]).is_some(), "B is not");
    assert!(!beginning.is_finished());
    drop(in_flight);
    let change = within(3000, beginning).await.expect("drained").unwrap().unwrap();
    assert!(one.try_enter(&[A]).is_none() && two.try_enter(&[A]).is_none());
    within(100, one.enter(&[A], Some(change.id())))
        .await
        .expect("the changing transaction goes on")
        .unwrap();

    let before = two.snapshot().epoch;
    let mut home = hold(&shards, &change).await;
    home.simple("COMMIT").await.unwrap();
    change.finish().await.unwrap();
    assert!(
        one.snapshot().epoch > before,
        "the changing gateway has the new catalog at once"
    );
    let guard = within(1000, two.enter(&[A], None))
        .await
        .expect("A is open again")
        .unwrap();
    assert!(guard.snapshot.epoch > before, "nobody enters with the old catalog");
    assert!(guard.is_valid());
    cluster.stop().await;
}

#[tokio::test]
async fn a_lease_that_lapsed_for_nothing_was_held() {
    let (cluster, shards) = cluster(1).await;
    // The test's one thread is the gateway's as well: while it sleeps, nothing renews the lease.
    let stopped = gateway(&shards, "stopped", 1000).await;
    let guard = stopped.enter(&[A], None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!guard.is_valid(), "the lease is over");
    assert!(within(5000, guard.holds()).await.expect("it is taken again"));
    assert!(guard.is_valid(), "nothing has changed meanwhile");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stopped_loses_its_lease_and_the_change_goes_on() {
    let (cluster, shards) = cluster(1).await;
    let one = gateway(&shards, "one", 1500).await;
    // A runtime of its own, so that it can be stopped as a whole, as SIGSTOP does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (send, receive) = std::sync::mpsc::channel::<()>();
    let (answer, answered) = tokio::sync::oneshot::channel();
    let own_shards = Shards::new(pgherd_shards::Options::new(
        shards.all().to_vec(),
        shards.service_role(),
    ));
    let thread = std::thread::spawn(move || {
        runtime.block_on(async {
            let stopped = gateway(&own_shards, "stopped", 1500).await;
            let guard = stopped.enter(&[A], None).await.unwrap();
            answer.send(guard.is_valid()).unwrap();
            receive.recv().unwrap();
            // It wakes up: its answer may be stale, and is not given even when the lease is taken again.
            let at_once = guard.is_valid();
            let later = guard.holds().await;
            tokio::time::sleep(Duration::from_millis(1000)).await;
            (at_once, later || guard.is_valid(), stopped.try_enter(&[B]).is_some())
        })
    });
    assert!(answered.await.unwrap());
    let started = Instant::now();
    let change = within(8000, one.begin_change(&[A], "test"))
        .await
        .expect("the lease runs out")
        .unwrap();
    assert!(
        started.elapsed() > Duration::from_millis(500),
        "the stopped gateway was waited for"
    );
    let mut home = hold(&shards, &change).await;
    home.simple("COMMIT").await.unwrap();
    change.finish().await.unwrap();
    send.send(()).unwrap();
    let (at_once, later, serves_again) = tokio::task::spawn_blocking(move || thread.join().unwrap())
        .await
        .unwrap();
    assert!(!at_once && !later, "the stopped gateway's statement is refused");
    assert!(serves_again, "and the gateway takes a new lease");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_owners_change_ends_only_with_its_transaction() {
    let (cluster, shards) = cluster(1).await;
    let (one, two) = (gateway(&shards, "one", 1000).await, gateway(&shards, "two", 1000).await);
    let change = one.begin_change(&[A], "test").await.unwrap();
    let mut home = hold(&shards, &change).await;
    // Its gateway dies with the transaction open: the catalog's tasks end, nobody finishes the change.
    std::mem::forget(change);
    one.close().await;
    drop(one);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(two.try_enter(&[A]).is_none(), "the transaction may still commit");
    let epoch = two.snapshot().epoch;
    home.simple("COMMIT").await.unwrap();
    let guard = within(4000, two.enter(&[A], None)).await.expect("it is over").unwrap();
    assert!(guard.snapshot.epoch > epoch, "it had committed");

    // One that had not held its change yet is kept from committing later.
    let three = gateway(&shards, "three", 1000).await;
    drop(guard);
    let change = three.begin_change(&[A], "test").await.unwrap();
    let payload = change.hold_payload();
    std::mem::forget(change);
    three.close().await;
    within(4000, two.enter(&[A], None)).await.expect("cleared").unwrap();
    let proof = pgherd_catalog::sign(SECRET, "hold_changes", &payload, home.process_id());
    let late = home
        .query("SELECT pgherd.hold_changes($1, $2)", &[Some(&payload), Some(&proof)])
        .await;
    assert_eq!(late.unwrap_err().sqlstate().code(), "40001");
    drop(home);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_cannot_write_the_catalog() {
    let (cluster, shards) = cluster(1).await;
    let client = shards.connect_service(shards.home(), "postgres").await.unwrap();
    client.batch_execute("CREATE ROLE alice LOGIN").await.unwrap();
    let who = Identity::new("alice", "postgres");
    let mut alice = shards.checkout(shards.home(), &who).await.unwrap();
    for sql in [
        "SELECT pgherd.write_catalog('[]', 'forged')",
        "SELECT pgherd.hold_changes('[1]', repeat('0', 64))",
        "SELECT pgherd.adopt('[]', NULL)",
        "SELECT pgherd.clear_change(1, '1s')",
        "SELECT secret FROM pgherd.installation",
        "INSERT INTO pgherd.table_range DEFAULT VALUES",
        "SELECT pgherd.heartbeat('x', 1, 1, '{}')",
        "CREATE TABLE pgherd_data.t1_r1 ()",
    ] {
        let refused = alice.simple(sql).await.unwrap_err();
        assert_eq!(refused.sqlstate().code(), "42501", "{sql}");
    }
    for view in ["shards", "tables", "ranges", "gateways", "transactions"] {
        alice.simple(&format!("SELECT * FROM pgherd.{view}")).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entering_is_cheap_when_nothing_is_pending() {
    let (cluster, shards) = cluster(1).await;
    let catalog = gateway(&shards, "one", 4000).await;
    let rounds = 200_000;
    let started = Instant::now();
    for i in 0..rounds {
        std::hint::black_box(catalog.try_enter(&[i, i + 1]).expect("open"));
    }
    let each = started.elapsed() / rounds as u32;
    // Far above what it takes in a release build (under 200 ns), to hold on a busy machine.
    assert!(each < Duration::from_micros(20), "{each:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_an_older_gateway_gets_the_functions_of_this_one() {
    let (cluster, shards) = cluster(2).await;
    let revision = |value: &'static str| {
        format!(
            "ALTER FUNCTION pgherd.check_signature(text, text) COST 7; UPDATE pgherd.installation SET revision = {value}, digest = 'other'"
        )
    };
    let has_new_function = async |shard| {
        let client = shards.connect_service(shard, "postgres").await.unwrap();
        let row = client
            .query_one(
                "SELECT procost <> 7 FROM pg_proc WHERE oid = 'pgherd.check_signature(text, text)'::regprocedure",
                &[],
            )
            .await;
        row.unwrap().get::<_, bool>(0)
    };
    let ids: Vec<_> = shards.all().iter().map(|s| s.id).collect();
    for (value, expected) in [("0", true), ("1000000", false)] {
        for &shard in &ids {
            let client = shards.connect_service(shard, "postgres").await.unwrap();
            client.batch_execute(&revision(value)).await.unwrap();
            assert!(!has_new_function(shard).await);
        }
        bring_up_to_date(&shards, "postgres", "test", SECRET).await.unwrap();
        // An older gateway that is started does not take back what a newer one has installed.
        install(&shards, "postgres", "test", SECRET).await.unwrap();
        for &shard in &ids {
            assert_eq!(has_new_function(shard).await, expected, "revision {value}");
        }
    }
    // What is not installed is not made by the way.
    let home = shards.connect_service(shards.home(), "postgres").await.unwrap();
    home.batch_execute("CREATE DATABASE strange").await.unwrap();
    bring_up_to_date(&shards, "strange", "test", SECRET).await.unwrap_err();
    assert!(pgherd_catalog::uninstalled(&shards, "strange").await.unwrap());
    cluster.stop().await;
}
