//! CREATE, ALTER, DROP and TRUNCATE on three real shards.

mod cluster;
use cluster::Cluster;

const CHILDREN: &str = "SELECT count(*) FROM pg_inherits WHERE inhparent = 't'::regclass";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partition_by_range_makes_ranges_on_all_shards() {
    let c = Cluster::start(3).await;
    let outcome = c
        .ok("CREATE TABLE t (id int PRIMARY KEY, v text DEFAULT 'x', n serial) PARTITION BY RANGE (id)")
        .await;
    assert_eq!(outcome.tag, "CREATE TABLE");
    assert_eq!(
        c.ranges("t").await,
        "MINVALUE..3 shard1, 3..7 shard2, 7..MAXVALUE shard3"
    );
    assert_eq!(c.on_all(CHILDREN).await, ["1", "1", "1"]);
    let snapshot = c.catalog.snapshot();
    let table = snapshot.sharded().next().unwrap();
    let sharded = table.sharded().unwrap();
    assert!(sharded.direct && sharded.automatic && !sharded.by_default);
    assert_eq!(sharded.unique, [("t_pkey".to_owned(), vec!["id".to_owned()])]);
    assert_eq!(
        c.on(3, &format!("LOCK TABLE {} IN ACCESS SHARE MODE", sharded.fence))
            .await,
        "25P01 ERROR: LOCK TABLE can only be used in transaction blocks (25P01)"
    );
    // Sequences give values on the home shard only.
    assert_eq!(c.on(1, "SELECT nextval('t_n_seq')").await, "1");
    assert!(c.on(2, "SELECT nextval('t_n_seq')").await.starts_with("2200H"));
    // A duplicate key names the parent's constraint when it is put back.
    c.on(2, "INSERT INTO pgherd_data.t1_r2 (id, n) VALUES (5, 1)").await;
    let said = c.on(2, "INSERT INTO pgherd_data.t1_r2 (id, n) VALUES (5, 1)").await;
    assert!(said.contains("t1_r2$t_pkey"), "{said}");

    assert_eq!(
        c.refused("CREATE TABLE t (id int) PARTITION BY RANGE (id)").await,
        "42P07"
    );
    let again = c
        .ok("CREATE TABLE IF NOT EXISTS t (id int) PARTITION BY RANGE (id)")
        .await;
    assert_eq!(again.notices.len(), 1);
    c.ok("DROP TABLE t").await;
    assert_eq!(c.on_all("SELECT to_regclass('t')").await, ["NULL", "NULL", "NULL"]);
    assert_eq!(
        c.on_all("SELECT count(*) FROM pg_class WHERE relnamespace = 'pgherd_data'::regnamespace")
            .await,
        ["0", "0", "0"]
    );
    assert!(c.catalog.snapshot().relations.is_empty());
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ranges_cannot_be_made_of_is_local() {
    let c = Cluster::start(2).await;
    for sql in [
        "CREATE TABLE a (id int) PARTITION BY LIST (id)",
        "CREATE TABLE b (id int) PARTITION BY HASH (id)",
        "CREATE TABLE d (id int) PARTITION BY RANGE ((id + 1))",
        "CREATE TABLE e (id float8) PARTITION BY RANGE (id)",
        "CREATE TABLE f (id int)",
        "CREATE TEMP TABLE g (id int)",
        "CREATE TABLE d1 PARTITION OF d FOR VALUES FROM (1) TO (2)",
    ] {
        c.ok(sql).await;
    }
    assert!(c.catalog.snapshot().relations.is_empty());
    assert_eq!(c.on(2, "SELECT to_regclass('f')").await, "NULL");
    let notice = c.ok("CREATE TABLE h (id float8) PARTITION BY RANGE (id)").await.notices;
    assert!(notice[0].fields().message.contains("double precision"), "{notice:?}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn declared_partitions_spread_and_replace_automatic_ranges() {
    let c = Cluster::start(3).await;
    c.ok("CREATE TABLE t (id int, v int) PARTITION BY RANGE (id)").await;
    for i in 1..=6 {
        let (from, to) = (i * 10, i * 10 + 10);
        let from = if i == 1 { "minvalue".into() } else { from.to_string() };
        c.ok(&format!(
            "create table t_{i} partition of t for values from ({from}) to ({to}) with (fillfactor=100)"
        ))
        .await;
    }
    assert_eq!(
        c.ranges("t").await,
        "MINVALUE..20 shard1, 20..30 shard2, 30..40 shard3, 40..50 shard1, 50..60 shard2, 60..70 shard3"
    );
    // The home shard has all by name, the others their own.
    assert_eq!(c.on_all(CHILDREN).await, ["6", "2", "2"]);
    assert!(c.on(1, "INSERT INTO t_2 VALUES (25, 1)").await.starts_with("23514"));
    assert_eq!(
        c.refused("CREATE TABLE t_x PARTITION OF t FOR VALUES FROM (15) TO (18)")
            .await,
        "42P17"
    );
    c.on(2, "INSERT INTO t_2 VALUES (25, 1), (26, 2)").await;
    c.ok("ALTER TABLE t DETACH PARTITION t_2").await;
    assert_eq!(c.on_all("SELECT count(*) FROM t_2").await[0], "2");
    assert_eq!(c.on(2, "SELECT to_regclass('t_2')").await, "NULL");
    c.ok("ALTER TABLE t_3 RENAME TO third").await;
    assert_eq!(c.on(3, "SELECT to_regclass('third')").await, "third");
    c.ok("DROP TABLE third").await;
    assert_eq!(
        c.ranges("t").await,
        "MINVALUE..20 shard1, 40..50 shard1, 50..60 shard2, 60..70 shard3"
    );
    c.ok("ALTER TABLE t ADD PRIMARY KEY (id)").await;
    // A DEFAULT partition is no range of keys.
    let local = c.ok("CREATE TABLE t_x PARTITION OF t DEFAULT").await;
    assert!(
        local.notices[0].fields().message.contains("is local"),
        "{:?}",
        local.notices
    );
    assert_eq!(c.on_all("SELECT to_regclass('t_5')").await, ["t_5", "NULL", "NULL"]);
    c.ok("DROP TABLE t").await;
    assert_eq!(c.on_all("SELECT to_regclass('t_5')").await, ["NULL", "NULL", "NULL"]);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alter_reaches_every_shard_and_children_follow() {
    let c = Cluster::start(3).await;
    c.ok("CREATE ROLE alice").await;
    c.ok("CREATE TABLE t (id int, v text) PARTITION BY RANGE (id)").await;
    for sql in [
        "ALTER TABLE t ADD COLUMN w numeric(10,2) NOT NULL DEFAULT 1.5",
        "ALTER TABLE ONLY t ADD CONSTRAINT t_key PRIMARY KEY (id)",
        "ALTER TABLE t ADD CHECK (w > 0)",
        "ALTER TABLE t RENAME v TO value",
        "CREATE INDEX ON t (value)",
        "CREATE UNIQUE INDEX t_both ON t (id, value)",
        "GRANT SELECT, INSERT ON t TO alice",
        "GRANT UPDATE (value) ON t TO alice",
        "COMMENT ON TABLE t IS 'a table'",
        "ALTER TABLE t RENAME TO u",
        "CREATE SCHEMA s",
        "ALTER TABLE u SET SCHEMA s",
        "ALTER TABLE s.u OWNER TO alice",
    ] {
        c.ok(sql).await;
    }
    let columns = "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 's.u'::regclass AND attnum > 0";
    assert_eq!(c.on_all(columns).await, ["id,value,w"; 3]);
    let indexes = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class JOIN pg_index ON indexrelid = oid WHERE indrelid = 's.u'::regclass";
    assert_eq!(c.on_all(indexes).await, ["t_both,t_key,t_value_idx"; 3]);
    let child = "SELECT relname || ' ' || relowner::regrole || ' ' || has_table_privilege('alice', oid, 'INSERT') || ' ' || has_column_privilege('alice', oid, 'value', 'UPDATE')
        FROM pg_class WHERE relkind = 'r' AND relname LIKE 't_\\_r_'";
    assert_eq!(
        c.on_all(child).await,
        [
            "t1_r1 alice true true",
            "t1_r2 alice true true",
            "t1_r3 alice true true"
        ]
    );
    let names = "SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relkind = 'i' AND relnamespace = 'pgherd_data'::regnamespace";
    assert_eq!(c.on(2, names).await, "t1_r2$t_both,t1_r2$t_key,t1_r2$t_value_idx");
    let snapshot = c.catalog.snapshot();
    assert_eq!(snapshot.sharded().next().unwrap().name.to_string(), "\"s\".\"u\"");
    assert_eq!(c.refused("ALTER TABLE s.u DROP COLUMN id").await, "42P16");
    assert_eq!(c.refused("ALTER TABLE s.u ADD UNIQUE (value)").await, "0A000");
    assert_eq!(
        c.refused("ALTER TABLE s.u ADD COLUMN x int REFERENCES s.u").await,
        "0A000"
    );
    c.ok("DROP INDEX s.t_both").await;
    assert_eq!(c.on_all(indexes).await, ["t_key,t_value_idx"; 3]);
    for shard in 1..=3 {
        c.on(
            shard,
            &format!("INSERT INTO pgherd_data.t1_r{shard} VALUES ({}, 'a')", shard * 3 - 1),
        )
        .await;
    }
    c.ok("TRUNCATE s.u").await;
    assert_eq!(c.on_all("SELECT count(*) FROM s.u").await, ["0"; 3]);
    // Only the home shard has the local table: its list is longer than the others', and the only one that is told.
    c.ok("CREATE TABLE s.here (id int)").await;
    let dropped = c.ok("DROP SCHEMA s CASCADE").await.notices;
    assert_eq!(dropped.len(), 1, "{dropped:?}");
    assert!(
        dropped[0]
            .fields()
            .detail
            .as_ref()
            .is_some_and(|d| d.contains("s.here")),
        "{dropped:?}"
    );
    assert!(c.catalog.snapshot().relations.is_empty());
    assert_eq!(
        c.on_all("SELECT count(*) FROM pg_class WHERE relnamespace = 'pgherd_data'::regnamespace")
            .await,
        ["0"; 3]
    );
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_sees_its_own_changes_and_rolls_them_back() {
    let c = Cluster::start(2).await;
    let (mut transaction, mut change) = (c.begin(), None);
    for sql in [
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "ALTER TABLE t ADD COLUMN v int",
        "DROP TABLE t",
        "CREATE TABLE t (a text) PARTITION BY RANGE (a)",
        "CREATE TABLE u (a text) PARTITION BY RANGE (a)",
    ] {
        let outcome = c.within(&mut transaction, &mut change, sql).await;
        assert!(outcome.unwrap().catalog_changed);
    }
    assert!(c.catalog.snapshot().relations.is_empty(), "nobody else sees them");
    transaction.rollback().await.unwrap();
    change.unwrap().finish().await.unwrap();
    assert!(c.catalog.snapshot().relations.is_empty());
    assert_eq!(c.on_all("SELECT to_regclass('u')").await, ["NULL"; 2]);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_functions_and_sequences_are_everywhere_and_views_on_the_home_shard() {
    let c = Cluster::start(2).await;
    for sql in [
        "CREATE TYPE mood AS ENUM ('sad', 'happy')",
        "CREATE FUNCTION plus(a int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT a + 1'",
        "CREATE TABLE local (id int)",
        "CREATE FUNCTION reads() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM local'",
        "CREATE SEQUENCE s START 5",
        "CREATE TABLE t (id int DEFAULT nextval('s'), m mood, CHECK (plus(id) > 0)) PARTITION BY RANGE (id)",
        "CREATE VIEW v AS SELECT * FROM t JOIN local USING (id)",
        "CREATE VIEW w AS SELECT id FROM v",
    ] {
        c.ok(sql).await;
    }
    assert_eq!(c.on_all("SELECT 'happy'::mood").await, ["happy"; 2]);
    assert_eq!(c.on(1, "SELECT nextval('s')").await, "5");
    assert!(c.on(2, "SELECT nextval('s')").await.starts_with("2200H"));
    let snapshot = c.catalog.snapshot();
    let kind = |n: &str| format!("{:?}", snapshot.relations[n][0].1.as_ref().unwrap().kind);
    assert!(kind("v").starts_with("View") && kind("w").starts_with("View"));
    assert!(!snapshot.unsafe_functions.contains("reads"));
    c.ok("CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM v'")
        .await;
    assert!(c.catalog.snapshot().unsafe_functions.contains("f"));
    c.ok("CREATE OR REPLACE FUNCTION f() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'")
        .await;
    assert!(!c.catalog.snapshot().unsafe_functions.contains("f"));
    assert_eq!(
        c.refused("CREATE MATERIALIZED VIEW m AS SELECT query_to_xml('SELECT 1', true, false, '')")
            .await,
        "0A000"
    );
    assert_eq!(c.refused("CREATE TABLE x AS SELECT * FROM v").await, "0A000");
    // It has no primary key.
    assert_eq!(c.refused("CREATE TABLE r (id int REFERENCES t)").await, "42704");
    assert_eq!(
        c.refused("CREATE RULE n AS ON INSERT TO local DO ALSO INSERT INTO t VALUES (1)")
            .await,
        "0A000"
    );
    assert_eq!(c.refused("DROP TABLE t").await, "2BP01");
    c.ok("DROP TABLE t CASCADE").await;
    assert!(c.catalog.snapshot().relations.is_empty());
    c.ok("DROP SEQUENCE s").await;
    assert_eq!(c.on_all("SELECT to_regclass('s')").await, ["NULL"; 2]);
    c.stop().await;
}
