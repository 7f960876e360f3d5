//! INSERT … SELECT over shards leaves what it leaves on one PostgreSQL.

mod support;

use pgherd_model::ServerError;
use pgherd_query::{Statement, describe, insert_select};
use support::{Fixture, lines_of};

async fn fixture() -> Fixture {
    let mut f = Fixture::start().await;
    f.on(2, "CREATE TYPE other AS ENUM ('x')").await;
    f.everywhere("CREATE TYPE mood AS ENUM ('sad', 'ok')").await;
    f.sharded(
        "source",
        "id int PRIMARY KEY, grp int, name text, mood mood",
        "id",
        &[20, 60],
    )
    .await;
    let rows: Vec<_> = (0..90i64)
        .map(|id| {
            (
                id,
                format!("({id}, {}, 'n{id}', '{}')", id % 4, ["sad", "ok"][id as usize % 2]),
            )
        })
        .collect();
    f.insert("source", &rows).await;
    f.sharded("target", TARGET, "id", &[50, 100, 150]).await;
    f.local("CREATE TABLE log (n int, what varchar(5))").await;
    f
}

const TARGET: &str = "id int PRIMARY KEY, price numeric(6,1), note varchar(4), tags int[], mood mood, made int DEFAULT 7, \
                      twice int GENERATED ALWAYS AS (id * 2) STORED, CHECK (price < 900)";

/// Runs an INSERT on both sides; true when both answered the same. The rows of RETURNING are compared as sets.
async fn same(f: &mut Fixture, sql: &str) -> Option<String> {
    let ours = ours(f, sql).await.map_err(|e| e.sqlstate().to_string());
    let (count, mut rows) = match f.plain_insert(sql).await {
        Ok(answer) => answer,
        Err(state) => return (ours != Err(state.clone())).then(|| format!("{sql}: ours {ours:?}, theirs {state}")),
    };
    rows.sort();
    let theirs = Ok((count, rows));
    (ours != theirs).then(|| format!("{sql}: ours {ours:?}, theirs {theirs:?}"))
}

async fn ours(f: &Fixture, sql: &str) -> Result<(u64, Vec<String>), ServerError> {
    let mut transaction = f.transaction();
    let result = async {
        let parsed = pgherd_sql::parse(sql)?.remove(0);
        let home = transaction
            .participant(pgherd_model::ShardId(1))
            .await
            .map_err(ServerError::from)?;
        let description = describe(home, sql, &[]).await?;
        let search_path = ["public".into()];
        let statement = Statement {
            text: sql,
            ast: parsed.ast.as_deref().expect(sql),
            parameter_types: &[],
            parameters: &[],
            result_formats: &[],
            search_path: &search_path,
            snapshot: &f.snapshot,
            types_elsewhere: &Default::default(),
            settings_sql: "",
            alone: false,
            ends: false,
            told_by_epoch: false,
            schema_is_own: false,
        };
        let columns = description.columns.as_deref();
        let (count, rows) = insert_select(statement, columns, &mut transaction, &f.engine).await?;
        let mut lines = Vec::new();
        if let Some(mut rows) = rows {
            while let Some(batch) = rows.next().await? {
                lines_of(batch.bytes, &mut lines);
            }
        }
        lines.sort();
        Ok((count, lines))
    };
    let result = result.await;
    match &result {
        Ok(_) => {
            transaction.commit().await.expect(sql);
        }
        Err(error) => {
            eprintln!("{sql}\n  {error}");
            transaction.rollback().await.expect(sql);
        }
    }
    result
}

#[tokio::test]
async fn rows_arrive_where_they_belong() {
    let mut f = fixture().await;
    let mut differences = Vec::new();
    for sql in [
        "INSERT INTO target (id, price, note) SELECT i, i * 1.26, i FROM generate_series(1, 160) i",
        "INSERT INTO target (id, price, note, mood) SELECT id + 200, id / 3.0, name, mood FROM source WHERE grp = 1 RETURNING id, price, mood, twice",
        "INSERT INTO target (id, note, tags) SELECT 1000.6 + id, 'abc ', ARRAY[id, NULL] FROM source WHERE id < 40",
        "INSERT INTO target SELECT id + 3000 FROM source ORDER BY id DESC LIMIT 5",
        "INSERT INTO target (id, price) SELECT id, 3 FROM source ON CONFLICT (id) DO UPDATE SET price = target.price + excluded.price WHERE target.id < 70 RETURNING id, price",
        "INSERT INTO target AS t (id) SELECT id FROM source ON CONFLICT DO NOTHING",
        "INSERT INTO target (id, price, mood, made) SELECT 5000, '12.34', 'ok', NULL FROM source WHERE id = 3",
        "INSERT INTO target (id, price) SELECT id + 400, 2000 FROM source",
        "INSERT INTO target (id, note) SELECT id + 400, 'too long' FROM source",
        "INSERT INTO target (id) SELECT id FROM source",
        "INSERT INTO target (id) SELECT 'x' FROM source",
        "INSERT INTO target (id, price) SELECT 6000 + id, 1 / (id - 5) FROM source",
        "INSERT INTO target (id) WITH s AS (SELECT max(id) AS m FROM source) SELECT m + 7000 FROM s",
        "INSERT INTO target (id) SELECT id + 8000 FROM target",
        "INSERT INTO log SELECT id, name FROM source WHERE id BETWEEN 10 AND 70",
        "INSERT INTO log (what) SELECT mood FROM source RETURNING what, n",
        "INSERT INTO log (n) SELECT count(*) FROM source JOIN target USING (id)",
    ] {
        differences.extend(same(&mut f, sql).await);
    }
    for table in ["target", "log"] {
        differences.extend(f.difference(&format!("SELECT * FROM {table}"), &[]).await);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn sequences_count_for_the_whole_cluster() {
    let mut f = fixture().await;
    f.everywhere("CREATE SEQUENCE numbers").await;
    f.sharded(
        "counted",
        "id int DEFAULT nextval('numbers'), v text, at timestamptz DEFAULT now()",
        "id",
        &[30, 60],
    )
    .await;
    f.set_default("counted", "id", "nextval('numbers'::regclass)");
    f.set_default("counted", "at", "now()");
    let sql = "INSERT INTO counted (v) SELECT name FROM source";
    assert_eq!(same(&mut f, sql).await, None);
    let sql = "INSERT INTO counted (v) SELECT 'x' FROM generate_series(1, 20)";
    assert_eq!(same(&mut f, sql).await, None);
    let sql = "SELECT count(DISTINCT id), min(id), max(id), count(DISTINCT at) < 3 FROM counted";
    assert_eq!(f.ours(sql, &[]).await.expect(sql), ["110 | 1 | 110 | t"]);
}
