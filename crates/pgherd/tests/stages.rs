//! Statements over tables that are large enough for a gather in stages, whose copies are too many for loops: PostgreSQL's answers, read by
//! the keys that were sent along, with the workers that shards of one host share.

use pgherd_testkit::herd::{Herd, lines};
use std::path::Path;
use tokio_postgres::Client;

/// Lines beside their orders; a quarter of the parts is red. The same tables lie on the shards and, local, in another schema.
const TABLES: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, day int);
    CREATE TABLE lines (order_id int, n int, part int, quantity int, note text, PRIMARY KEY (order_id, n));
    CREATE TABLE parts (id int PRIMARY KEY, color text, weight numeric);
    CREATE TABLE sizes (id int PRIMARY KEY, part bigint, label text);";
const ROWS: &str = "
    INSERT INTO orders SELECT i, i % 50 FROM generate_series(1, 12000) i;
    INSERT INTO lines SELECT o, n, CASE WHEN (o * 7 + n) % 13 > 0 THEN (o * 31 + n * 17) % 11000 END, (o + n) % 9, 'note ' || o % 5
        FROM generate_series(1, 12000) o, generate_series(1, 4) n;
    INSERT INTO parts SELECT i, CASE i % 4 WHEN 0 THEN 'red' WHEN 1 THEN 'blue' ELSE 'green' END, i / 8.0 FROM generate_series(1, 10000) i;
    INSERT INTO sizes SELECT i, i % 9000, 'size ' || i % 3 FROM generate_series(1, 9000) i;
    CREATE INDEX ON lines (part);
    ANALYZE orders, lines, parts, sizes;";

async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = client
        .simple_query(sql)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    lines(&messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_bound_what_stays_in_place() {
    let (herd, gateway) = Herd::with_gateway(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3, "stages")
        .await
        .expect("a cluster");
    let client = gateway.connect().await.expect("connect");
    client
        .batch_execute(&format!(
            "CREATE SCHEMA local; SET search_path = local; {TABLES} {ROWS}"
        ))
        .await
        .expect("local tables");
    let sharded = "SET search_path = public; SET pgherd.initial_bounds = 'int 4000, 8000'; \
                   CALL pgherd.distribute('orders', 'id'); CALL pgherd.distribute('lines', 'order_id', colocate_with => 'orders'); \
                   SET pgherd.initial_bounds = 'int 3000, 7000'; \
                   CALL pgherd.distribute('parts', 'id'); CALL pgherd.distribute('sizes', 'id')";
    client
        .batch_execute(&format!("SET search_path = public; {TABLES}"))
        .await
        .expect("tables");
    for statement in sharded.split(';') {
        client.batch_execute(statement).await.expect(statement);
    }
    client.batch_execute(ROWS).await.expect("rows");

    let joined = "FROM orders o, lines l, parts p WHERE l.order_id = o.id AND p.id = l.part AND p.color = 'red'";
    let bounded = [
        format!("SELECT o.day, count(*), sum(l.quantity), sum(p.weight) {joined} GROUP BY o.day ORDER BY o.day"),
        format!("SELECT count(*), max(l.note) {joined} AND l.quantity > 3 AND o.day < 20"),
        "SELECT count(*), sum(quantity) FROM lines, parts WHERE parts.id = part AND color = 'red'".to_owned(),
        "SELECT l.note, count(*) FROM parts p JOIN lines l ON l.part = p.id JOIN orders o ON o.id = l.order_id \
         WHERE p.color = 'red' AND p.weight > 2 GROUP BY l.note ORDER BY 1"
            .to_owned(),
    ];
    for sql in &bounded {
        let plan = rows(&client, &format!("EXPLAIN ANALYZE {sql}")).await.join("\n");
        assert!(plan.contains(" bounded in part by parts"), "{sql}\n{plan}");
    }
    // Rows that are looked up by the key of what stays in place go to one shard each.
    let by_range = [
        (
            "lines sent by ranges of part",
            "SELECT p.color, count(*), sum(l.quantity) FROM lines l, parts p WHERE l.part = p.id AND l.order_id < 900 \
             GROUP BY p.color ORDER BY 1",
        ),
        (
            "lines sent by ranges of part",
            "SELECT p.color, count(*) FROM parts p WHERE EXISTS \
             (SELECT FROM lines l WHERE l.part = p.id AND l.order_id < 900 AND l.quantity < 5) GROUP BY p.color ORDER BY 1",
        ),
        (
            "lines sent by ranges of part",
            "SELECT p.color, count(*) FROM parts p WHERE NOT EXISTS \
             (SELECT FROM lines l WHERE l.part = p.id AND l.order_id < 900 AND l.quantity < 5) GROUP BY p.color ORDER BY 1",
        ),
        (
            // Of another width than the key.
            "sizes sent by ranges of part",
            "SELECT l.note, count(*), min(s.label) FROM sizes s, lines l, orders o WHERE s.part = l.order_id AND o.id = l.order_id \
             AND o.day < 30 AND s.id % 7 = 2 GROUP BY 1 ORDER BY 1",
        ),
    ];
    let looked_up = (
        "lines, bounded in order_id by sizes, each looked up",
        "SELECT s.label, count(*) FROM sizes s WHERE s.id % 8 = 1 AND EXISTS \
         (SELECT 1 FROM lines WHERE order_id = s.id AND quantity < 3) GROUP BY 1 ORDER BY 1",
    );
    // Pages that PostgreSQL believes to be in memory: looking keys up is the cheaper way then.
    client.batch_execute("SET random_page_cost = 1").await.expect("set");
    // Values that the shards give by themselves are asked for first.
    let values = [
        (
            "value 1: stage 1, partial results",
            "SELECT p.color, count(*) FROM parts p WHERE p.weight > (SELECT avg(weight) FROM parts WHERE color = 'red') \
             AND NOT EXISTS (SELECT FROM lines l WHERE l.part = p.id) GROUP BY 1 ORDER BY 1",
        ),
        (
            "value 2: stage 1, partial results",
            "SELECT o.day, sum(l.quantity) FROM orders o, lines l WHERE o.id = l.order_id AND o.day BETWEEN (SELECT min(day) + 3 FROM orders) \
             AND (SELECT max(quantity) * 3 FROM lines WHERE n < 3) GROUP BY 1 ORDER BY 1",
        ),
        (
            "value 1: stage 1, partial results",
            "SELECT part, sum(quantity) FROM lines GROUP BY part \
             HAVING sum(quantity) > (SELECT 1.8 * sum(quantity) / count(DISTINCT part) FROM lines) ORDER BY 1",
        ),
        (
            "value 1: stage 1, partial results",
            "SELECT count(*), count(p.id) FROM lines l LEFT JOIN parts p ON p.id = l.part \
             WHERE l.quantity >= coalesce((SELECT max(day) FROM orders WHERE day > 1000), 7) OR p.id < 5",
        ),
    ];
    let shown = by_range.into_iter().chain([looked_up]).chain(values);
    for (how, sql) in shown.clone() {
        let plan = rows(&client, &format!("EXPLAIN ANALYZE {sql}")).await.join("\n");
        assert!(plan.contains(how), "{sql}\n{plan}");
    }
    let others = [
        // No values: of rows, of a type with a collation, of one row of what is around it.
        "SELECT count(*) FROM lines l WHERE l.quantity = ANY (SELECT max(quantity) FROM lines) AND l.part < 4000",
        // Read along with the rest.
        "SELECT l.note, count(*) FROM lines l, parts p WHERE l.part = p.id AND p.weight > (SELECT avg(weight) FROM parts WHERE color = 'red') \
         GROUP BY 1 ORDER BY 1",
        "SELECT count(*) FROM lines l, parts p WHERE p.id = l.part AND p.color > (SELECT min(color) FROM parts)",
        "SELECT count(*) FROM orders o WHERE o.day > (SELECT max(l.quantity) FROM lines l WHERE l.order_id = o.id AND l.n > o.day)",
        "SELECT count(*) FROM lines l WHERE l.quantity > (SELECT count(*) FROM orders HAVING count(*) > 100000) OR l.part < 10",
        // Every part has its row, so all lines' parts are on all shards.
        "SELECT p.color, count(*), count(l.n) FROM parts p LEFT JOIN lines l ON l.part = p.id AND l.order_id < 900 GROUP BY p.color ORDER BY 1",
        "SELECT p.color, count(*) FROM parts p, lines l WHERE (l.part = p.id OR l.n = p.id) AND l.order_id < 300 GROUP BY p.color ORDER BY 1",
        "SELECT p.color, (SELECT count(*) FROM lines l WHERE l.order_id < 900) FROM parts p WHERE p.id < 4 ORDER BY 1",
        "SELECT count(*) FROM (SELECT l.part, count(*) AS n FROM lines l WHERE l.order_id < 900 GROUP BY l.part) q, parts p \
         WHERE p.id = q.part AND q.n > 1",
        // Lines without a part count.
        "SELECT count(*), count(p.id), sum(p.weight) FROM lines l LEFT JOIN parts p ON p.id = l.part AND p.color = 'red'",
        "SELECT count(*) FROM lines l WHERE NOT EXISTS (SELECT FROM parts p WHERE p.id = l.part AND p.color = 'red')",
        "SELECT count(*) FROM lines l WHERE l.part NOT IN (SELECT p.id FROM parts p WHERE p.color = 'red')",
        "SELECT count(*), sum(quantity) FROM lines WHERE part IN (SELECT id FROM parts WHERE color = 'red')",
        "SELECT count(*) FROM orders o WHERE EXISTS \
         (SELECT FROM lines l, parts p WHERE l.order_id = o.id AND p.id = l.part AND p.color = 'red')",
        "SELECT count(*) FROM orders o WHERE NOT EXISTS \
         (SELECT FROM lines l, parts p WHERE l.order_id = o.id AND p.id = l.part AND p.color = 'red')",
        "SELECT sum(l.quantity) FROM lines l, parts p WHERE p.id = l.part AND p.color = 'red' AND l.quantity > \
         (SELECT avg(other.quantity) FROM lines other WHERE other.order_id = l.order_id)",
        "SELECT count(*) FROM lines l, parts p WHERE (p.id = l.part OR l.quantity = 8) AND p.color = 'red' AND p.id < 40",
        // Of another type.
        "SELECT s.label, count(*) FROM lines l, sizes s WHERE s.part = l.part AND s.id < 2500 GROUP BY s.label ORDER BY 1",
        "SELECT l.note, count(DISTINCT p.id) FROM lines l, parts p, sizes s WHERE p.id = l.part AND s.id = p.id \
         AND s.label = 'size 1' GROUP BY l.note ORDER BY 1",
    ];
    let bounded = bounded.iter().map(String::as_str);
    for sql in bounded.chain(shown.map(|(_, sql)| sql)).chain(others) {
        client.batch_execute("SET search_path = local").await.expect("local");
        let plain = rows(&client, sql).await;
        client.batch_execute("SET search_path = public").await.expect("public");
        assert_eq!(rows(&client, sql).await, plain, "{sql}");
    }
    gateway.stop().await;
    herd.stop().await;
}

/// The shards of this cluster are on one host: together they are as many processes as one server would have with its two workers.
#[tokio::test(flavor = "multi_thread")]
async fn shards_of_a_host_share_its_workers() {
    let (herd, gateway) = Herd::with_gateway(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3, "workers")
        .await
        .expect("a cluster");
    let client = gateway.connect().await.expect("connect");
    let tables = "SET pgherd.initial_bounds = 'int 10, 20'; CREATE TABLE t (id int PRIMARY KEY, v int) WITH (parallel_workers = 4); \
                  CALL pgherd.distribute('t', 'id'); INSERT INTO t SELECT i, i FROM generate_series(1, 30) i; \
                  SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0";
    for statement in tables.split(';') {
        client.batch_execute(statement).await.expect(statement);
    }
    let plan = async || rows(&client, "EXPLAIN SELECT sum(v) FROM t").await.join("\n");
    let none = plan().await;
    assert!(!none.contains("Workers Planned"), "{none}");
    // Who asks for a number gets it.
    client
        .batch_execute("SET max_parallel_workers_per_gather = 2")
        .await
        .expect("set");
    let two = plan().await;
    assert_eq!(two.matches("Workers Planned: 2").count(), 3, "{two}");
    client
        .batch_execute("RESET max_parallel_workers_per_gather")
        .await
        .expect("reset");
    // What runs on one shard has the host for itself, and what is asked is answered.
    let alone = rows(&client, "EXPLAIN SELECT sum(v) FROM t WHERE id < 10")
        .await
        .join("\n");
    assert!(alone.contains("Workers Planned: 2"), "{alone}");
    let shown = "SELECT DISTINCT current_setting('max_parallel_workers_per_gather') FROM t";
    assert_eq!(rows(&client, shown).await, ["2"]);
    gateway.stop().await;
    herd.stop().await;
}
