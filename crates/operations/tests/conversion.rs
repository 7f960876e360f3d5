//! Distribution by primary key, distribute, undistribute, split, maintenance.

mod cluster;
use cluster::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_key_distributes_and_what_cannot_hold_makes_local_again() {
    let mut c = Cluster::start(3).await;
    c.by_primary_key();
    c.ok("CREATE TABLE t (id bigint PRIMARY KEY, v text) WITH (fillfactor = 70)")
        .await;
    assert_eq!(
        c.ranges("t").await,
        "MINVALUE..3 shard1, 3..7 shard2, 7..MAXVALUE shard3"
    );
    assert_eq!(
        c.on(2, "SELECT reloptions::text FROM pg_class WHERE relname = 't1_r2'")
            .await,
        "{fillfactor=70}"
    );
    c.on(1, "INSERT INTO t VALUES (1, 'a')").await;
    c.on(2, "INSERT INTO t VALUES (5, 'b')").await;
    let outcome = c.ok("ALTER TABLE t ADD UNIQUE (v)").await;
    assert!(
        outcome.notices[0].fields().message.contains("is local"),
        "{:?}",
        outcome.notices
    );
    assert_eq!(c.on(1, "SELECT string_agg(v, ',' ORDER BY id) FROM t").await, "a,b");
    assert_eq!(c.on(2, "SELECT to_regclass('t')").await, "NULL");

    let unique = c.ok("CREATE TABLE u (id int PRIMARY KEY, v int UNIQUE)").await;
    assert!(
        unique.notices[0].fields().message.contains("u_v_key"),
        "{:?}",
        unique.notices
    );
    c.ok("CREATE TABLE p (id int PRIMARY KEY)").await;
    let child = c.ok("CREATE TABLE q (id int PRIMARY KEY, p int REFERENCES p)").await;
    assert_eq!(child.notices.len(), 2, "{:?}", child.notices);
    assert!(c.catalog.snapshot().relations.is_empty());
    assert_eq!(
        c.on(
            1,
            "INSERT INTO p VALUES (1); INSERT INTO q VALUES (1, 1); SELECT count(*) FROM q"
        )
        .await,
        "1"
    );

    // A key that is added later distributes what is there.
    c.ok("CREATE SEQUENCE late_id").await;
    c.ok("CREATE TABLE late (id int DEFAULT nextval('late_id'), v text)")
        .await;
    c.ok("ALTER SEQUENCE late_id OWNED BY late.id").await;
    c.on(
        1,
        "INSERT INTO late SELECT i, 'row ' || i FROM generate_series(1, 10) i",
    )
    .await;
    let keyed = c.ok("ALTER TABLE late ADD PRIMARY KEY (id)").await;
    assert!(keyed.notices.is_empty(), "{:?}", keyed.notices);
    assert_eq!(
        c.on_all("SELECT count(*) || ' ' || min(id) FROM late").await,
        ["2 1", "4 3", "4 7"]
    );
    assert_eq!(c.refused("ALTER TABLE late ADD PRIMARY KEY (id)").await, "42P16");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distribute_moves_rows_and_keeps_what_the_table_had() {
    let c = Cluster::start(3).await;
    for sql in [
        "CREATE TYPE mood AS ENUM ('sad', 'happy')",
        "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL, n serial, i int GENERATED ALWAYS AS IDENTITY, m mood DEFAULT 'sad', g int GENERATED ALWAYS AS (id * 2) STORED, CHECK (id > 0))",
        "CREATE INDEX t_v ON t (lower(v)) WHERE id > 1",
        "COMMENT ON COLUMN t.v IS 'a value'",
        "CREATE ROLE alice",
        "GRANT SELECT ON t TO alice",
        "CREATE VIEW w AS SELECT v FROM t",
    ] {
        c.ok(sql).await;
    }
    c.on(
        1,
        "INSERT INTO t (id, v) SELECT i, 'row ' || i FROM generate_series(1, 10) i",
    )
    .await;
    let before = c.on(1, "SELECT md5(string_agg(t::text, ';' ORDER BY id)) FROM t").await;
    assert_eq!(c.ok("CALL pgherd.distribute('t', 'id')").await.tag, "CALL");
    assert_eq!(c.on_all("SELECT count(*) FROM t").await, ["2", "4", "4"]);
    assert_eq!(c.on(1, "SELECT col_description('t'::regclass, 2)").await, "a value");
    assert_eq!(
        c.on_all("SELECT has_table_privilege('alice', 't', 'SELECT')").await,
        ["t"; 3]
    );
    assert_eq!(
        c.on_all("SELECT count(*) FROM pg_index WHERE indrelid = 't'::regclass")
            .await,
        ["2"; 3]
    );
    assert_eq!(
        c.on(1, "INSERT INTO t (id, v) VALUES (2000000, '') RETURNING n, i")
            .await
            .split_whitespace()
            .next(),
        Some("23514")
    );
    assert_eq!(
        c.on(
            1,
            "SELECT nextval('t_n_seq'), nextval(pg_get_serial_sequence('t', 'i'))"
        )
        .await,
        "12|12"
    );
    assert!(c.on(3, "SELECT nextval('t_n_seq')").await.starts_with("2200H"));
    assert!(
        c.catalog.snapshot().relations["w"][0].1.is_some(),
        "its view is expanded now"
    );
    assert_eq!(c.refused("CALL pgherd.distribute('t', 'id')").await, "42809");

    c.ok("CALL pgherd.undistribute('t')").await;
    assert_eq!(
        c.on(1, "SELECT md5(string_agg(t::text, ';' ORDER BY id)) FROM t").await,
        before
    );
    assert_eq!(c.on(1, "SELECT count(*) FROM w").await, "10");
    assert_eq!(
        c.on(1, "SELECT pg_get_serial_sequence('t', 'n')").await,
        "public.t_n_seq"
    );
    assert_eq!(c.on(2, "SELECT to_regclass('t')").await, "NULL");
    assert!(c.catalog.snapshot().relations.is_empty());
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distribute_refuses_what_cannot_be_kept() {
    let c = Cluster::start(2).await;
    for sql in [
        "CREATE TABLE u (id int PRIMARY KEY, v int UNIQUE)",
        "CREATE TABLE f (id int PRIMARY KEY REFERENCES u)",
        "CREATE TABLE n (id int, v int)",
        "CREATE TABLE k (id float8 PRIMARY KEY)",
    ] {
        c.ok(sql).await;
    }
    for table in ["u", "f", "k"] {
        assert_eq!(
            c.refused(&format!("CALL pgherd.distribute('{table}', 'id')")).await,
            "0A000",
            "{table}"
        );
    }
    c.on(1, "INSERT INTO n VALUES (1, 1), (NULL, 2)").await;
    assert_eq!(c.refused("CALL pgherd.distribute('n', 'id')").await, "23514");
    assert_eq!(c.on(1, "SELECT count(*) FROM n").await, "2");
    assert_eq!(c.refused("CALL pgherd.distribute('nowhere', 'id')").await, "42P01");
    assert_eq!(c.refused("CALL pgherd.distribute('n')").await, "42883");
    assert_eq!(c.refused("CALL pgherd.nonsense('n')").await, "42883");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn split_moves_the_upper_half_of_the_whole_colocation_group() {
    let c = Cluster::start(3).await;
    c.ok("CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)")
        .await;
    c.ok("CREATE TABLE b (id int, n int)").await;
    c.ok("CALL pgherd.distribute('b', 'id', colocate_with => 't')").await;
    let numbers = c.on(1, "SELECT count(DISTINCT colocation) FROM pgherd.tables").await;
    assert_eq!(numbers, "1");
    for (shard, ids) in [(1, "(1, 'a'), (2, 'b')"), (2, "(3, 'c'), (6, 'd')"), (3, "(7, 'e')")] {
        c.on(shard, &format!("INSERT INTO t VALUES {ids}")).await;
    }
    c.ok("CALL pgherd.split('t', 5, to => 'shard1')").await;
    let expected = "MINVALUE..3 shard1, 7..MAXVALUE shard3, 3..5 shard2, 5..7 shard1";
    assert_eq!(c.ranges("t").await, expected);
    assert_eq!(c.ranges("b").await, expected);
    assert_eq!(
        c.on_all("SELECT string_agg(v, '' ORDER BY id) FROM t").await,
        ["abd", "c", "e"]
    );
    assert_eq!(
        c.on(2, "SELECT to_regclass('pgherd_data.t1_r2')").await,
        "NULL",
        "stale gateways get 42P01"
    );
    assert_eq!(
        c.on_all(
            "SELECT to_regclass('pgherd_data.fence_1_2') IS NOT NULL AND to_regclass('pgherd_data.fence_1_1') IS NULL"
        )
        .await,
        ["t"; 3]
    );
    assert_eq!(c.refused("CALL pgherd.split('t', 5)").await, "22023");
    assert_eq!(c.refused("CALL pgherd.split('t', 4, to => 'shard9')").await, "42704");
    c.ok("CREATE TABLE k (a int, b text) PARTITION BY RANGE (a, b)").await;
    c.ok("CALL pgherd.split('k', ROW(5, 'm'))").await;
    assert!(c.ranges("k").await.contains("(5, m)"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_goes_where_the_tables_are() {
    let c = Cluster::start(2).await;
    c.ok("CREATE TABLE t (id int, v text) PARTITION BY RANGE (id)").await;
    c.ok("CREATE TABLE local (id int)").await;
    c.on(1, "INSERT INTO t VALUES (1, 'a')").await;
    c.on(2, "INSERT INTO t VALUES (5, 'a')").await;
    for sql in [
        "VACUUM t",
        "ANALYZE t, local",
        "VACUUM (ANALYZE) local",
        "ANALYZE",
        "REINDEX TABLE t",
    ] {
        let outcome = c.maintain(sql).await.unwrap_or_else(|e| panic!("{sql}\n{e}"));
        assert_eq!(outcome.tag, sql.split_whitespace().next().unwrap());
    }
    assert_eq!(
        c.on_all("SELECT count(*) > 0 FROM pg_stats WHERE tablename = 't'")
            .await,
        ["t"; 2]
    );
    assert_eq!(
        c.maintain("VACUUM nowhere").await.unwrap_err().sqlstate().code(),
        "42P01"
    );
    c.stop().await;
}
