//! psql's own commands, which read PostgreSQL's catalogs with queries of their own.

use super::{cluster, program};
use pgherd_testkit::herd;

#[tokio::test(flavor = "multi_thread")]
async fn psql_describes_what_is_there() {
    let (herd, gateway) = cluster().await;
    let client = gateway.connect().await.expect("connect");
    client
        .batch_execute(
            "CREATE TABLE orders (id int PRIMARY KEY, customer text NOT NULL, total numeric(10,2)) PARTITION BY RANGE (id);
             CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM (MINVALUE) TO (100);
             CREATE TABLE orders_2 PARTITION OF orders FOR VALUES FROM (100) TO (200);
             CREATE TABLE orders_3 PARTITION OF orders FOR VALUES FROM (200) TO (MAXVALUE);
             CREATE TABLE notes (id serial PRIMARY KEY, body text);
             CREATE FUNCTION double(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
             CREATE ROLE clerk LOGIN",
        )
        .await
        .unwrap_or_else(|error| panic!("{:?}", error.as_db_error()));
    client
        .batch_execute("CREATE TABLE ranged (k int PRIMARY KEY, v text) PARTITION BY RANGE (k)")
        .await
        .expect("create");
    for (command, shown) in [
        (
            "\\d",
            vec!["orders", "orders_1", "orders_3", "notes", "notes_id_seq", "ranged"],
        ),
        ("\\dt", vec!["orders", "orders_2", "notes"]),
        ("\\dt+", vec!["orders", "notes"]),
        (
            "\\d orders",
            vec![
                "customer",
                "not null",
                "numeric(10,2)",
                "orders_pkey",
                "RANGE (id)",
                "Number of partitions: 3",
            ],
        ),
        (
            "\\d+ orders",
            vec!["orders_1 FOR VALUES FROM (MINVALUE) TO (100)", "orders_3"],
        ),
        ("\\d orders_1", vec!["Partition of: orders"]),
        ("\\d notes", vec!["nextval('notes_id_seq'::regclass)", "notes_pkey"]),
        ("\\d ranged", vec!["RANGE (k)", "ranged_pkey"]),
        ("\\l", vec!["postgres", "template1"]),
        ("\\du", vec!["postgres", "clerk", "Superuser"]),
        ("\\df", vec!["double"]),
        ("\\dn", vec!["public"]),
        ("\\di", vec!["orders_pkey", "notes_pkey"]),
        ("\\ds", vec!["notes_id_seq"]),
        ("\\dp orders", vec!["orders"]),
        ("\\conninfo", vec!["postgres"]),
        ("\\encoding", vec!["UTF8"]),
    ] {
        let mut psql = program(&herd, &gateway, "psql");
        psql.args(["-X", "-v", "ON_ERROR_STOP=1", "-c", command]);
        let said = herd::run(&format!("psql -c '{command}'"), psql)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        for word in shown {
            assert!(said.contains(word), "{command} does not show {word}:\n{said}");
        }
    }
    assert!(gateway.stop().await);
}

/// A script as people write them: variables, \copy, \gset, \watch's little brother \g, and errors that stop it.
#[tokio::test(flavor = "multi_thread")]
async fn psql_runs_a_script() {
    let (herd, gateway) = cluster().await;
    let folder = tempfile::tempdir().expect("folder");
    let (script, data) = (folder.path().join("script.sql"), folder.path().join("rows.csv"));
    std::fs::write(&data, "1,one\n150,two\n250,\"three, four\"\n").expect("write");
    let text = format!(
        "CREATE TABLE t (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
         CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (MINVALUE) TO (100);
         CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (100) TO (200);
         CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (200) TO (MAXVALUE);
         \\copy t FROM '{}' WITH (FORMAT csv)
         SELECT count(*) AS n, max(k) AS most FROM t \\gset
         \\echo rows :n most :most
         SELECT v FROM t WHERE k = :most;
         \\copy (SELECT k, v FROM t ORDER BY k) TO STDOUT
         BEGIN;
         UPDATE t SET v = upper(v);
         \\echo state :SQLSTATE
         ROLLBACK;
         SELECT string_agg(v, '|' ORDER BY k) FROM t;
         SELECT 1/0;
         SELECT 'not reached';\n",
        data.display()
    );
    std::fs::write(&script, text).expect("write");
    let mut psql = program(&herd, &gateway, "psql");
    psql.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-f"])
        .arg(&script);
    let output = psql.output().await.expect("run psql");
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(3), "{said}{errors}");
    assert_eq!(
        said, "rows 3 most 250\nthree, four\n1\tone\n150\ttwo\n250\tthree, four\nstate 00000\none|two|three, four\n",
        "{errors}"
    );
    assert!(errors.contains("division by zero"), "{errors}");
    assert!(gateway.stop().await);
}

/// SJIS has characters whose second byte is a backslash, and psql sends COPY data in pieces.
#[tokio::test(flavor = "multi_thread")]
async fn characters_of_several_bytes_are_converted() {
    let (herd, gateway) = cluster().await;
    let script = herd.folder().join("sjis.sql");
    let mut text = b"CREATE TABLE texts (k int PRIMARY KEY, t text);\nCOPY texts FROM STDIN;\n1\t".to_vec();
    for _ in 0..5000 {
        text.extend_from_slice(b"\x83\x5c\x93\xfa");
    }
    text.extend_from_slice(b"\n\\.\nINSERT INTO texts VALUES (2, '\x83\x5c');\n");
    text.extend_from_slice(
        b"SELECT k, encode(convert_to(right(t, 2), 'UTF8'), 'hex'), length(t) FROM texts ORDER BY k;\n",
    );
    text.extend_from_slice(b"SELECT left(t, 2) FROM texts ORDER BY k;\nSELECT 'a\x81 ';\nSELECT U&'\\20AC';\n");
    std::fs::write(&script, text).expect("write");
    let mut command = program(&herd, &gateway, "psql");
    command
        .env("PGCLIENTENCODING", "SJIS")
        .args(["-XAtq", "-f"])
        .arg(&script);
    let output = command.output().await.expect("psql");
    assert_eq!(
        output.stdout,
        b"1|e382bde697a5|10000\n2|e382bd|1\n\x83\x5c\x93\xfa\n\x83\x5c\n",
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("invalid byte sequence for encoding \"SJIS\": 0x81 0x20"),
        "{errors}"
    );
    assert!(
        errors.contains(
            "character with byte sequence 0xe2 0x82 0xac in encoding \"UTF8\" has no equivalent in encoding \"SJIS\""
        ),
        "{errors}"
    );
}

/// What `\d` says of tables with foreign keys, as it does of plain ones.
#[tokio::test(flavor = "multi_thread")]
async fn psql_describes_foreign_keys_as_those_of_plain_tables() {
    let (herd, gateway) = cluster().await;
    let client = gateway.connect().await.expect("connect");
    client
        .batch_execute(
            "SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 3,7';
             CREATE TABLE orders (id int PRIMARY KEY);
             CREATE TABLE items (order_id int REFERENCES orders ON DELETE CASCADE, n int, PRIMARY KEY (order_id, n))",
        )
        .await
        .unwrap_or_else(|error| panic!("{:?}", error.as_db_error()));
    let describe = async |what: &str| {
        let mut psql = program(&herd, &gateway, "psql");
        psql.args(["-X", "-c", &format!("\\d {what}")]);
        herd::run("psql", psql).await.unwrap_or_else(|error| panic!("{error}"))
    };
    let items = describe("items").await;
    assert!(
        items.ends_with(
            "Foreign-key constraints:\n    \"items_order_id_fkey\" FOREIGN KEY (order_id) REFERENCES orders(id) ON DELETE CASCADE\n\n"
        ),
        "{items}"
    );
    let orders = describe("orders").await;
    assert!(
        orders.ends_with(
            "Referenced by:\n    TABLE \"items\" CONSTRAINT \"items_order_id_fkey\" FOREIGN KEY (order_id) REFERENCES orders(id) ON DELETE CASCADE\n\n"
        ),
        "{orders}"
    );
    assert!(gateway.stop().await);
}

/// COPY of what statements return that write several shards, or that are taken apart to run.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_copied_out() {
    let (herd, gateway) = cluster().await;
    let script = herd.folder().join("copied.sql");
    std::fs::write(
        &script,
        "SET pgherd.default_distribution = 'primary_key'; SET pgherd.initial_bounds = 'int 3,7';
         CREATE TABLE t (k int PRIMARY KEY, a int, b text);
         INSERT INTO t SELECT g, g, 'x,' || g FROM generate_series(1, 9) g;
         COPY (DELETE FROM t WHERE a > 8 RETURNING *) TO STDOUT;
         COPY (UPDATE t SET a = a + (SELECT max(k) FROM t) WHERE k = 8 RETURNING a, b, NULL AS \"q r\") TO STDOUT (FORMAT csv, HEADER, FORCE_QUOTE (a));
         COPY (WITH gone AS (DELETE FROM t WHERE k IN (1, 4) RETURNING k, b) SELECT * FROM gone ORDER BY k) TO STDOUT;
         COPY (SELECT k FROM t WHERE k < 4 ORDER BY k FOR UPDATE) TO STDOUT;
         COPY (UPDATE t SET a = 1 / (k - 5) RETURNING a) TO STDOUT;
         COPY (DELETE FROM t) TO STDOUT;
         COPY (DELETE FROM t RETURNING k) TO STDOUT (FORMAT nosuch);
         BEGIN;
         COPY (DELETE FROM t WHERE k > 6 RETURNING k) TO STDOUT (DELIMITER ';');
         ROLLBACK;
         SELECT count(*), sum(a) FROM t;\n",
    )
    .expect("write");
    let mut psql = program(&herd, &gateway, "psql");
    psql.args(["-XAtq", "-v", "VERBOSITY=sqlstate", "-f"]).arg(&script);
    let output = psql.output().await.expect("psql");
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    let (sorted, rest) = said.split_once("7\n8\n6|").unwrap_or((&said, ""));
    assert_eq!(
        sorted, "9\t9\tx,9\na,b,q r\n\"16\",\"x,8\",\n1\tx,1\n4\tx,4\n2\n3\n",
        "{said}{errors}"
    );
    assert_eq!(rest, "39\n", "{said}{errors}");
    let states: Vec<_> = errors.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(states, ["22012", "0A000", "22023"], "{errors}");
    assert!(gateway.stop().await);
}
