//! Tier 3 gives PostgreSQL's answer.

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::Fixture;

const ITEMS: &str = "id int PRIMARY KEY, grp int, name text, price numeric(10,2), big bigint, ratio float8, day date, \
                     at timestamptz, code uuid, flag bool, tags int[], mood mood, extra jsonb";

async fn fixture() -> Fixture {
    let mut f = Fixture::start().await;
    // Types get other OIDs on every shard.
    f.on(2, "CREATE TYPE other AS ENUM ('x')").await;
    f.on(3, "CREATE DOMAIN another AS int").await;
    f.everywhere("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')").await;
    f.everywhere("CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2'")
        .await;
    f.everywhere("CREATE TABLE log (x int); CREATE FUNCTION noted(x int) RETURNS int LANGUAGE plpgsql AS 'BEGIN INSERT INTO log VALUES (x); RETURN x; END'").await;
    f.sharded("items", ITEMS, "id", &[50, 100, 150, 200]).await;
    f.sharded(
        "orders",
        "id int PRIMARY KEY, item int, qty int, note text",
        "id",
        &[100, 300],
    )
    .await;
    f.local("CREATE TABLE kinds (k int PRIMARY KEY, label text)").await;
    f.local("INSERT INTO kinds SELECT i, 'kind ' || i FROM generate_series(0, 6) i")
        .await;
    let mut random = StdRng::seed_from_u64(7);
    let maybe = |random: &mut StdRng, text: String| if random.random_bool(0.1) { "NULL".into() } else { text };
    let items: Vec<_> = (0..250i64)
        .map(|id| {
            let r = &mut random;
            let values = [
                id.to_string(),
                {
                    let v = r.random_range(0..8).to_string();
                    maybe(r, v)
                },
                {
                    let v = format!("E'n\\t{}\\\\ é\\n{}'", id % 17, r.random_range(0..5));
                    maybe(r, v)
                },
                {
                    let v = format!("{}", r.random_range(-100000..100000) as f64 / 100.0);
                    maybe(r, v)
                },
                {
                    let v = r.random_range(-(1i64 << 60)..1 << 60).to_string();
                    maybe(r, v)
                },
                {
                    let v = r.random_range(-1000..1000).to_string() + ".5";
                    maybe(r, v)
                },
                {
                    let v = format!("date '2020-01-01' + {}", r.random_range(0..500));
                    maybe(r, v)
                },
                {
                    let v = format!(
                        "timestamptz '2020-01-01 00:00Z' + interval '{} s'",
                        r.random_range(0..9999999)
                    );
                    maybe(r, v)
                },
                {
                    let v = format!("'00000000-0000-0000-0000-{:012}'", r.random_range(0..99999));
                    maybe(r, v)
                },
                {
                    let v = r.random_bool(0.5).to_string();
                    maybe(r, v)
                },
                {
                    let v = format!("ARRAY[{}, NULL, {id}]", r.random_range(0..5));
                    maybe(r, v)
                },
                {
                    let v = format!("'{}'", ["sad", "ok", "happy"][r.random_range(0..3)]);
                    maybe(r, v)
                },
                {
                    let v = format!("'{{\"a\": [{id}, \"x\\ty\"]}}'");
                    maybe(r, v)
                },
            ];
            (id, format!("({})", values.join(",")))
        })
        .collect();
    f.insert("items", &items).await;
    let orders: Vec<_> = (0..400i64)
        .map(|id| {
            let item = random.random_range(0..300);
            let qty = random.random_range(1..10);
            (id, format!("({id}, {item}, {qty}, 'order {id}')"))
        })
        .collect();
    f.insert("orders", &orders).await;
    f.view(
        "priced",
        "SELECT id AS key, name, price * 2 AS twice FROM items WHERE price > 0",
    )
    .await;
    f.view(
        "totals",
        "SELECT o.item, sum(o.qty) AS total FROM orders o GROUP BY o.item",
    )
    .await;
    f
}

#[tokio::test]
async fn every_query_gives_postgresqls_answer() {
    let mut f = fixture().await;
    f.check_file("gather.sql").await;
    let sql = "SELECT id, $2::text FROM items WHERE grp = $1 OR name = $2";
    assert_eq!(f.difference(sql, &[Some("3"), None]).await, None);
    let sql = "SELECT id FROM items WHERE mood = $1 AND id < $2 AND day > $3";
    assert_eq!(
        f.difference(sql, &[Some("ok"), Some("200"), Some("2020-03-01")]).await,
        None
    );
}

#[tokio::test]
async fn planned_queries_give_postgresqls_answer() {
    let mut f = fixture().await;
    f.check_file("plan.sql").await;
    for sql in support::statements("plan.sql").iter().take(support::PLANNED) {
        let explained = f.explain(sql).await;
        assert!(explained[0].starts_with("Plan"), "{sql} is not on tier 2's list");
    }
    f.check_file("join.sql").await;
    f.plan_joins();
    f.check_file("join.sql").await;
    for sql in support::statements("join.sql") {
        let explained = f.explain(&sql).await;
        assert!(explained[0].starts_with("Plan: Join"), "{sql} is not on tier 2's list");
    }
    for (sql, parameters) in [
        (
            "SELECT id FROM items WHERE grp > $1 ORDER BY id LIMIT $2 OFFSET $3",
            vec![Some("2"), Some("7"), Some("3")],
        ),
        (
            "SELECT sum(price), count(*) FROM items WHERE id BETWEEN $1 AND $2",
            vec![Some("45"), Some("120")],
        ),
        (
            "SELECT $1::text, grp, count(*) FROM items WHERE name LIKE $1 GROUP BY grp",
            vec![Some("n%")],
        ),
    ] {
        assert_eq!(f.difference(sql, &parameters).await, None);
    }
}

#[tokio::test]
async fn in_stages_the_answers_are_the_same() {
    let mut f = fixture().await;
    f.plan_in_stages();
    for file in ["gather.sql", "join.sql", "plan.sql"] {
        f.check_file(file).await;
    }
}

#[tokio::test]
async fn rows_are_locked_on_every_shard() {
    let f = fixture().await;
    let mut transaction = f.transaction();
    let sql = "SELECT id FROM items WHERE id IN (10, 60, 120) FOR UPDATE";
    let mut locked = f.ours_in(&mut transaction, sql, &[], 0).await.expect(sql);
    locked.sort();
    assert_eq!(locked, ["10", "120", "60"]);
    let sql = "SELECT id FROM items WHERE id IN (10, 11, 60, 120, 121) FOR UPDATE SKIP LOCKED";
    let mut free = f.ours(sql, &[]).await.expect(sql);
    free.sort();
    assert_eq!(free, ["11", "121"]);
    transaction.rollback().await.expect("rollback");
}

#[tokio::test]
async fn binary_results_are_postgresqls() {
    let f = fixture().await;
    for sql in [
        "SELECT id, name, price, big, ratio, day, at, code, flag, tags FROM items ORDER BY id LIMIT 120",
        "SELECT count(*), sum(grp), sum(big), avg(price), min(price), max(at) FROM items",
        "SELECT grp, avg(big), max(name) FROM items GROUP BY grp ORDER BY grp",
        "SELECT i.id, o.qty, i.price FROM items i JOIN orders o ON o.item = i.id ORDER BY 1, o.id",
    ] {
        let mut transaction = f.transaction();
        let ours = f.ours_in(&mut transaction, sql, &[], 1).await.expect(sql);
        transaction.rollback().await.expect("rollback");
        assert_eq!(ours, f.theirs_binary(sql).await, "{sql}");
    }
}

#[tokio::test]
async fn explain_shows_tier_ranges_and_sql() {
    let mut f = fixture().await;
    f.plan_joins();
    let mut shown = String::new();
    for sql in [
        "SELECT id, name FROM items WHERE id BETWEEN 40 AND 60 AND grp = 3",
        "SELECT sum(price), count(*) FROM items WHERE id IN (1, 60)",
        "SELECT grp, avg(big) FROM items GROUP BY grp ORDER BY 2 LIMIT 3",
        "SELECT id FROM items i WHERE i.id > 150 ORDER BY price DESC LIMIT 5",
        "SELECT DISTINCT grp FROM items WHERE id < 99",
        "SELECT count(DISTINCT grp) FROM items WHERE flag",
        "SELECT k.label FROM items i JOIN kinds k ON k.k = i.grp WHERE i.id < 70 AND k.label <> 'x'",
    ] {
        shown.push_str(&format!("{sql}\n{}\n\n", f.explain(sql).await.join("\n")));
    }
    expect_test::expect_file!["./queries/explain.txt"].assert_eq(&shown);
}

#[tokio::test]
async fn what_cannot_be_exact_is_refused() {
    let f = fixture().await;
    for sql in [
        "SELECT tableoid::regclass, count(*) FROM items GROUP BY 1",
        "SELECT ctid FROM items",
        "WITH d AS (DELETE FROM kinds RETURNING *) SELECT * FROM d, items",
        "SELECT noted(id) FROM items WHERE id < 5",
    ] {
        assert_eq!(f.ours(sql, &[]).await, Err("0A000".into()), "{sql}");
    }
}

#[tokio::test]
async fn errors_point_into_the_clients_text() {
    let f = fixture().await;
    let sql = "SELECT i.name, length(i.name)::text::int FROM public.items i WHERE 'x' = nowhere";
    let mut transaction = f.transaction();
    let error = f
        .ours_in(&mut transaction, sql, &[], 0)
        .await
        .expect_err("no such column");
    let position = error.fields().position.expect("position") as usize - 1;
    assert!(sql[position..].starts_with("nowhere"), "{error}");
}

#[tokio::test]
async fn a_transaction_sees_its_own_rows_on_every_shard() {
    let f = fixture().await;
    let mut transaction = f.transaction();
    for (shard, id) in [(1, 1000), (2, 60), (3, 120)] {
        let backend = transaction
            .participant(pgherd_model::ShardId(shard))
            .await
            .expect("participant");
        let sql = match shard {
            1 => "INSERT INTO kinds VALUES (77, 'mine')".to_owned(),
            _ => format!("UPDATE items SET grp = 77 WHERE id = {id}"),
        };
        backend.simple(&sql).await.expect(&sql);
    }
    let sql = "SELECT i.id, k.label FROM items i JOIN kinds k ON k.k = i.grp WHERE k.k = 77 ORDER BY i.id";
    let ours = f.ours_in(&mut transaction, sql, &[], 0).await.expect(sql);
    assert_eq!(ours, ["60 | mine", "120 | mine"]);
    transaction.rollback().await.expect("rollback");
}
