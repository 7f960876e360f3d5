//! pg_dump of a database through the gateway: what is the cluster's own stays out of it.

use super::{cluster, program};
use pgherd_testkit::herd::{self, Gateway, Herd};

/// What one of PostgreSQL's programs writes.
async fn said(herd: &Herd, gateway: &Gateway, name: &str, arguments: &[&str]) -> String {
    let mut command = program(herd, gateway, name);
    command.args(arguments);
    herd::run(name, command).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_has_nothing_of_the_cluster() {
    let (herd, gateway) = cluster().await;
    let client = gateway.connect().await.expect("connect");
    client
        .batch_execute("CREATE TABLE notes (id int PRIMARY KEY, body text); INSERT INTO notes VALUES (1, 'one')")
        .await
        .expect("table");
    let said = said(&herd, &gateway, "pg_dump", &[]).await;
    assert!(
        said.contains("CREATE TABLE public.notes") && said.contains("\n1\tone\n"),
        "{said}"
    );
    assert!(!said.contains("pgherd"), "{said}");
    let dropped = client.batch_execute("DROP EXTENSION plpgsql CASCADE").await;
    let code = dropped.expect_err("refused").code().map(|c| c.code().to_owned());
    assert_eq!(code.as_deref(), Some("2BP01"));
    assert!(gateway.stop().await);
}

/// PostgreSQL's programs look for a partitioned table's rows in its partitions, and pgherd's ranges are none that they see.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_has_the_rows_of_every_sharded_table() {
    let (herd, gateway) = cluster().await;
    let client = gateway.connect().await.expect("connect");
    client
        .batch_execute(
            "CREATE TABLE ranged (k int PRIMARY KEY, v text) PARTITION BY RANGE (k); INSERT INTO ranged VALUES (7, 'of a range');
             CREATE INDEX ranged_v ON ranged (v); CREATE TABLE spread (k int PRIMARY KEY, v text)",
        )
        .await
        .expect("tables");
    client
        .batch_execute("CALL pgherd.distribute('spread', 'k')")
        .await
        .expect("distribute");
    client
        .batch_execute("INSERT INTO spread VALUES (8, 'distributed')")
        .await
        .expect("row");
    let said = said(&herd, &gateway, "pg_dump", &[]).await;
    for wanted in [
        "7\tof a range",
        "8\tdistributed",
        "CREATE INDEX ranged_v ON public.ranged USING btree (v);",
        "    ADD CONSTRAINT spread_pkey PRIMARY KEY (k);",
    ] {
        assert!(said.lines().any(|line| line == wanted), "{wanted}\n{said}");
    }
    assert!(!said.contains("PARTITION"), "{said}");
    assert!(gateway.stop().await);
}

/// `template1` allows no connections through a gateway, and says so. The table has the name of an alias in vacuumdb's own statements.
#[tokio::test(flavor = "multi_thread")]
async fn what_works_through_all_databases_passes_template1_by() {
    let (herd, gateway) = cluster().await;
    let client = gateway.connect().await.expect("connect");
    client
        .batch_execute("CREATE TABLE t (id int, body text, PRIMARY KEY (id)) PARTITION BY RANGE (id); INSERT INTO t VALUES (1, 'one')")
        .await
        .expect("table");
    client.batch_execute("CREATE DATABASE another").await.expect("database");
    let run = async |name: &str, arguments: &[&str]| said(&herd, &gateway, name, arguments).await;
    let dumped = run("pg_dumpall", &[]).await;
    assert!(
        dumped.contains("CREATE DATABASE another") && dumped.contains("\n1\tone\n"),
        "{dumped}"
    );
    for name in ["vacuumdb", "reindexdb", "clusterdb"] {
        run(name, &["--all", "--quiet"]).await;
    }
    let dumped = run("pg_dump", &["--serializable-deferrable", "--table=t", "postgres"]).await;
    assert!(dumped.contains("\n1\tone\n"), "{dumped}");
    assert!(gateway.stop().await);
}

/// What is dumped through the gateway, restored through it, and dumped again is the same, to the byte, and its tables lie beside each other.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_are_dumped_and_restored() {
    const BY_PRIMARY_KEY: &str = "-c pgherd.default_distribution=primary_key";
    let (herd, gateway) = cluster().await;
    let client = gateway.connect().await.expect("connect");
    client
        .batch_execute(
            "SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 3,7';
             CREATE TABLE orders (id int PRIMARY KEY);
             CREATE TABLE items (order_id int REFERENCES orders ON DELETE CASCADE, n int, up int, PRIMARY KEY (order_id, n),
                 CONSTRAINT above FOREIGN KEY (order_id, up) REFERENCES items DEFERRABLE);
             COMMENT ON CONSTRAINT above ON items IS 'within an order';
             INSERT INTO orders SELECT generate_series(1, 9);
             INSERT INTO items SELECT i, 1, 1 FROM generate_series(1, 9) i",
        )
        .await
        .unwrap_or_else(|error| panic!("{:?}", error.as_db_error()));
    let dump = async |database: &str| {
        let mut pg_dump = program(&herd, &gateway, "pg_dump");
        pg_dump.env("PGDATABASE", database);
        let said = herd::run("pg_dump", pg_dump).await;
        let said = said.unwrap_or_else(|error| panic!("{error}"));
        // Newer versions of pg_dump put a random word around the whole.
        let lines = said.lines().filter(|line| !line.contains("restrict"));
        lines.collect::<Vec<_>>().join("\n") + "\n"
    };
    let first = dump("postgres").await;
    assert!(!first.contains("pgherd") && !first.contains("t2_r"), "{first}");
    for wanted in [
        "    ADD CONSTRAINT items_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders(id) ON DELETE CASCADE;",
        "    ADD CONSTRAINT above FOREIGN KEY (order_id, up) REFERENCES public.items(order_id, n) DEFERRABLE;",
        "COMMENT ON CONSTRAINT above ON public.items IS 'within an order';",
    ] {
        assert!(first.lines().any(|line| line == wanted), "{wanted}\n{first}");
    }
    client.batch_execute("CREATE DATABASE again").await.expect("database");
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("dump.sql");
    std::fs::write(&file, &first).expect("write");
    let mut psql = program(&herd, &gateway, "psql");
    psql.env("PGDATABASE", "again").env("PGOPTIONS", BY_PRIMARY_KEY);
    psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file);
    herd::run("psql", psql).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(dump("again").await, first);
    let mut config = gateway.config();
    config.dbname("again");
    let (again, connection) = config.connect(tokio_postgres::NoTls).await.expect("connect");
    tokio::spawn(connection);
    let places = "SELECT count(*), count(DISTINCT shard) FROM pgherd.ranges";
    let row = again.query_one(places, &[]).await.expect("ranges");
    assert_eq!(
        (row.get::<_, i64>(0), row.get::<_, i64>(1)),
        (2, 1),
        "one range each, on one shard"
    );
    let error = again
        .batch_execute("INSERT INTO items VALUES (1, 2, 5)")
        .await
        .expect_err("no such item");
    let error = error.as_db_error().expect("an error of the database");
    assert_eq!((error.code().code(), error.constraint()), ("23503", Some("above")));
    assert!(gateway.stop().await);
}
