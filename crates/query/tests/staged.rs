//! Statements that are gathered in stages give PostgreSQL's answer: blocks on the shards, partial aggregates, bounds by keys.

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::Fixture;

/// Customers, their orders, and the orders' lines, which lie beside them.
async fn fixture() -> Fixture {
    let mut f = Fixture::start().await;
    f.sharded(
        "customers",
        "id int PRIMARY KEY, name text, region int, code char(5), balance numeric(12,2)",
        "id",
        &[20, 40],
    )
    .await;
    f.sharded(
        "orders",
        "id int PRIMARY KEY, customer int, day date, note text, weight float8",
        "id",
        &[60, 120],
    )
    .await;
    f.sharded(
        "lines",
        "order_id int, n int, qty int, price numeric(10,2), kind text, PRIMARY KEY (order_id, n)",
        "order_id",
        &[60, 120],
    )
    .await;
    f.colocate("lines", "orders");
    f.local("CREATE TABLE regions (id int PRIMARY KEY, label text)").await;
    f.local("INSERT INTO regions SELECT i, 'region ' || i FROM generate_series(0, 4) i")
        .await;
    let mut random = StdRng::seed_from_u64(11);
    let mut some = |text: String| {
        if random.random_bool(0.1) {
            "NULL".to_owned()
        } else {
            text
        }
    };
    let customers: Vec<_> = (0..60i64)
        .map(|id| {
            let region = some((id % 5).to_string());
            let balance = some(format!("{}.{:02}", id * 37 % 1000 - 300, id % 100));
            (
                id,
                format!("({id}, 'customer {}', {region}, 'c{}', {balance})", id % 40, id % 7),
            )
        })
        .collect();
    f.insert("customers", &customers).await;
    let orders: Vec<_> = (0..180i64)
        .map(|id| {
            let customer = some((id * 7 % 75).to_string());
            let day = some(format!("date '2024-01-01' + {}", id * 3 % 200));
            (
                id,
                format!("({id}, {customer}, {day}, 'note {}', {}.5)", id % 9, id % 4),
            )
        })
        .collect();
    f.insert("orders", &orders).await;
    let lines: Vec<_> = (0..160i64)
        .flat_map(|order| (0..order % 4).map(move |n| (order, n)))
        .map(|(order, n)| {
            let qty = some(((order * 5 + n) % 11).to_string());
            let price = some(format!("{}.{}", (order * 13 + n) % 97, n));
            let kind = some(format!("'k{}'", (order + n) % 5));
            (order, format!("({order}, {n}, {qty}, {price}, {kind})"))
        })
        .collect();
    f.insert("lines", &lines).await;
    f.view(
        "big",
        "SELECT order_id, sum(qty) AS total FROM lines GROUP BY order_id HAVING sum(qty) > 9",
    )
    .await;
    f.on_shards("ANALYZE").await;
    f.plan_in_stages();
    f
}

#[tokio::test]
async fn stages_give_postgresqls_answer() {
    let mut f = fixture().await;
    f.check_file("staged.sql").await;
    let sql = "SELECT c.name, count(*), sum(l.price) FROM customers c, orders o, lines l WHERE c.id = o.customer AND \
               l.order_id = o.id AND l.qty > $1 AND c.code = $2 GROUP BY c.name ORDER BY c.name";
    assert_eq!(f.difference(sql, &[Some("3"), Some("c2")]).await, None);
    assert_eq!(f.difference(sql, &[None, Some("c2")]).await, None);
}

/// What the steps of a statement are asked, without names of children.
async fn steps(f: &Fixture, sql: &str) -> String {
    f.explain_steps(sql).await.join("\n")
}

#[tokio::test]
async fn tables_that_only_add_columns_are_joined_to_the_groups() {
    let f = fixture().await;
    let from = "FROM customers c, orders o, lines l WHERE c.id = o.customer AND l.order_id = o.id";
    let late = [
        format!("SELECT c.id, c.name, sum(l.price) AS s {from} GROUP BY c.id, c.name ORDER BY s DESC LIMIT 2"),
        format!("SELECT c.name, count(*) {from} GROUP BY c.id ORDER BY count(*), c.name LIMIT 2"),
        format!(
            "SELECT o.customer, c.name {from} GROUP BY o.customer, c.name HAVING sum(l.qty) > 3 ORDER BY 1 LIMIT 2"
        ),
    ];
    for sql in late {
        let steps = steps(&f, &sql).await;
        assert!(steps.contains("customers, bounded in id by stage 1"), "{sql}\n{steps}");
        assert!(steps.contains("GROUP BY"), "{sql}\n{steps}");
    }
    let not = [
        // An aggregate reads them.
        format!("SELECT c.id, c.name, sum(c.balance) AS s {from} GROUP BY c.id, c.name ORDER BY s DESC LIMIT 2"),
        // The key is not among the groups: customers of one name make one group.
        format!("SELECT c.name, sum(l.price) AS s {from} GROUP BY c.name ORDER BY s DESC LIMIT 2"),
        // Without the customers, a division could fail that PostgreSQL never makes.
        format!("SELECT c.id, c.name, sum(1 / l.qty) AS s {from} GROUP BY c.id, c.name ORDER BY s DESC LIMIT 2"),
        format!("SELECT c.id {from} GROUP BY c.id HAVING 1 / count(l.qty) > 0 ORDER BY count(*) LIMIT 2"),
        // A condition of their own bounds what else is read.
        format!("SELECT c.id, c.name {from} AND c.code = 'c1' GROUP BY c.id, c.name ORDER BY count(*) LIMIT 2"),
    ];
    for sql in not {
        let steps = steps(&f, &sql).await;
        assert!(!steps.contains("by stage"), "{sql}\n{steps}");
    }
}
