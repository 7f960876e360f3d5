use super::fixture::snapshot;
use super::{analyzed, check, check_places, place, route_with, show, text};
use crate::ParameterValue;

#[test]
fn tables_of_the_home_shard_are_not_read_elsewhere() {
    check_places(&[
        (
            "insert into t (k) values (1) on conflict (k) do update set v = (select x from loc)",
            "1",
        ),
        (
            "insert into t (k) values (5) on conflict (k) do update set v = (select x from loc)",
            "plan",
        ),
        (
            "insert into t (k) values (5) on conflict do nothing returning (select x from loc)",
            "plan",
        ),
        (
            "insert into t (k) values (5) on conflict do nothing returning (select oid from pg_catalog.pg_class limit 1)",
            "2",
        ),
    ]);
}

#[test]
fn one_range() {
    check(&[
        (
            "insert into t values (5, 'x')",
            r#"2: insert into "pgherd_data"."t1_r2" AS "t" ("k", "v") values (5, 'x')"#,
        ),
        (
            "insert into t (v, k) values ('x', 5), ('y', 6)",
            r#"2: insert into "pgherd_data"."t1_r2" AS "t" (v, k) values ('x', 5), ('y', 6)"#,
        ),
        (
            "insert into t as x (k) values (5) on conflict (k) do update set v = x.v returning x.*",
            r#"2: insert into "pgherd_data"."t1_r2" as x (k) values (5) on conflict (k) do update set v = x.v returning x.*"#,
        ),
        (
            "insert into t as x values (5)",
            r#"2: insert into "pgherd_data"."t1_r2" as x ("k") values (5)"#,
        ),
        (
            "insert into t (k) values (5) on conflict on constraint t_pkey do nothing",
            "2: insert into t (k) values (5) on conflict on constraint t_pkey do nothing [fence_1_5]",
        ),
        (
            "insert into t (k, v) values (5, now()::text) returning t",
            "2: insert into t (k, v) values (5, now()::text) returning t [fence_1_5]",
        ),
        (
            "insert into t (k, v) values (5, default)",
            r#"2: insert into "pgherd_data"."t1_r2" AS "t" (k, v) values (5, default)"#,
        ),
        (
            "insert into dflt (v) values ('x')",
            r#"2: insert into "pgherd_data"."t13_r2" AS "dflt" (v) values ('x')"#,
        ),
        (
            "insert into dflt default values",
            r#"2: insert into "pgherd_data"."t13_r2" AS "dflt" default values"#,
        ),
        (
            "insert into dflt values (default, 'x')",
            r#"2: insert into "pgherd_data"."t13_r2" AS "dflt" ("k", "v") values (default, 'x')"#,
        ),
        ("insert into p1 values (5)", "2: insert into p1 values (5)"),
        (
            "insert into loose values (5)",
            "2: insert into loose values (5) [fence_3_5]",
        ),
        (
            "insert into two values (1), (5)",
            "1: insert into two values (1), (5) [fence_10_5]",
        ),
    ]);
}

#[test]
fn several_shards() {
    check(&[
        (
            "insert into t (k, v) values (5, 'a'), (1, 'b'), (6, 'c') returning v",
            "2: insert into \"pgherd_data\".\"t1_r2\" AS \"t\" (k, v) values (5, 'a'), (6, 'c') returning v\n\
          1: insert into \"pgherd_data\".\"t1_r1\" AS \"t\" (k, v) values (1, 'b') returning v\n\
          interleave [0, 1, 0]",
        ),
        (
            "insert into t values (8), (1), (2)",
            "3: insert into \"pgherd_data\".\"t1_r3\" AS \"t\" (\"k\") values (8)\n\
             1: insert into \"pgherd_data\".\"t1_r1\" AS \"t\" (\"k\") values (1), (2)",
        ),
        (
            "insert into two (k) values (1), (5), (8)",
            "1: insert into two (k) values (1), (5) [fence_10_5]\n\
          2: insert into \"pgherd_data\".\"t10_r3\" AS \"two\" (k) values (8)",
        ),
        (
            "insert into t (k) values (5), (1) on conflict do nothing returning k",
            "2: insert into \"pgherd_data\".\"t1_r2\" AS \"t\" (k) values (5) on conflict do nothing returning k\n\
          1: insert into \"pgherd_data\".\"t1_r1\" AS \"t\" (k) values (1) on conflict do nothing returning k\n\
          interleave [0, 1]",
        ),
    ]);
    assert_eq!(
        route_with(
            "insert into t (v, k) values ($1, $2), ($3, $4) returning $5::int",
            &[text("a"), text("5"), text("b"), text("1"), text("9")]
        ),
        "2: insert into \"pgherd_data\".\"t1_r2\" AS \"t\" (v, k) values ($1, $2) returning $3::int [0, 1, 4]\n\
         1: insert into \"pgherd_data\".\"t1_r1\" AS \"t\" (v, k) values ($1, $2) returning $3::int [2, 3, 4]\n\
         interleave [0, 1]"
    );
}

#[test]
fn postgresql_judges() {
    check(&[
        (
            "insert into t values (null)",
            "1: insert into t values (null) [fence_1_5]",
        ),
        (
            "insert into t (v) values ('x')",
            "1: insert into t (v) values ('x') [fence_1_5]",
        ),
        (
            "insert into decl values (15)",
            "1: insert into decl values (15) [fence_9_5]",
        ),
        (
            "insert into t (nosuch) values (5)",
            "1: insert into t (nosuch) values (5) [fence_1_5]",
        ),
        (
            "insert into t (k, v) values (5)",
            "1: insert into t (k, v) values (5) [fence_1_5]",
        ),
        (
            "insert into t (k, k) values (5, 6)",
            "1: insert into t (k, k) values (5, 6) [fence_1_5]",
        ),
        (
            "insert into ident (id, k) values (1, 5)",
            "1: insert into ident (id, k) values (1, 5) [fence_12_5]",
        ),
    ]);
    check_places(&[
        (
            "insert into t (k) values (5) on conflict (k) do update set k = 6",
            "plan",
        ),
        (
            "insert into t (k) values (5) on conflict (k) do update set k = t.k",
            "2",
        ),
        ("insert into t (k, n) values (5, (select count(*) from u))", "plan"),
        ("insert into loc values ((select 1))", "1"),
    ]);
}

#[test]
fn stored_values() {
    check_places(&[
        ("insert into t values ('5')", "2"),
        ("insert into t values (5.4)", "defaults"),
        ("insert into t values (5::bigint)", "2"),
        ("insert into vc values ('h  ')", "2"),
        ("insert into vc values ('gzz ')", "1"),
        ("insert into vc values ('gzzz')", "1"),
        ("insert into tx values (5)", "defaults"),
        ("insert into dd values ('2024-03-01')", "2"),
        ("insert into dd values ('2024-03-01'::timestamp)", "defaults"),
        ("insert into nu values (7.5)", "3"),
        ("insert into uu values ('60000000-0000-0000-0000-000000000000')", "2"),
    ]);
}

fn with_defaults(sql: &str, parameters: &[ParameterValue], rows: &[&[Option<&str>]]) -> (String, String) {
    let snapshot = snapshot();
    let analysis = analyzed(sql, &snapshot);
    let rows: Vec<Vec<_>> = rows
        .iter()
        .map(|r| r.iter().map(|v| v.map(str::to_owned)).collect())
        .collect();
    let first = show(&analysis.route(&snapshot, parameters));
    (first, show(&analysis.route_with_defaults(&snapshot, parameters, &rows)))
}

#[test]
fn sequences_are_of_the_home_shard() {
    let (query, route) = with_defaults(
        "insert into seq (v) values ('a'), ('b')",
        &[],
        &[&[Some("5")], &[Some("6")]],
    );
    assert_eq!(
        query,
        "defaults: SELECT CAST((nextval('seq_id_seq'::regclass)) AS integer)::text FROM generate_series(1, 2)"
    );
    assert_eq!(
        route,
        r#"2: insert into "pgherd_data"."t11_r2" AS "seq" (v, "id") values ('a', '5'::integer), ('b', '6'::integer)"#
    );
    let (query, route) = with_defaults(
        "insert into seq values (default, 'a'), (9, 'b')",
        &[],
        &[&[Some("1")], &[None]],
    );
    assert_eq!(
        query,
        "defaults: VALUES (CAST((nextval('seq_id_seq'::regclass)) AS integer)::text), (NULL::text)"
    );
    assert_eq!(
        route,
        "1: insert into \"pgherd_data\".\"t11_r1\" AS \"seq\" (\"id\", \"v\") values ('1'::integer, 'a')\n\
         3: insert into \"pgherd_data\".\"t11_r3\" AS \"seq\" (\"id\", \"v\") values (9, 'b')"
    );
    let (_, route) = with_defaults("insert into seq default values returning id", &[], &[&[Some("5")]]);
    assert_eq!(
        route,
        r#"2: insert into "pgherd_data"."t11_r2" AS "seq" ("id") VALUES ('5'::integer) returning id"#
    );
    check_places(&[
        ("insert into seq values (5, 'x')", "2"),
        ("insert into t (k, n) values (5, nextval('s'))", "defaults"),
    ]);
}

#[test]
fn identity_columns() {
    let (query, route) = with_defaults("insert into ident (k, v) values (5, 'x')", &[], &[&[Some("77")]]);
    assert_eq!(
        query,
        "defaults: SELECT CAST((pgherd.next_identity('\"public\".\"ident\"', 'id')) AS bigint)::text FROM generate_series(1, 1)"
    );
    assert_eq!(
        route,
        "2: insert into \"pgherd_data\".\"t12_r2\" AS \"ident\" (k, v, \"id\") OVERRIDING SYSTEM VALUE values (5, 'x', '77'::bigint)"
    );
    check(&[(
        "insert into ident (id, k) overriding system value values (1, 5)",
        r#"2: insert into "pgherd_data"."t12_r2" AS "ident" (id, k) overriding system value values (1, 5)"#,
    )]);
}

#[test]
fn key_expressions_are_computed_once() {
    let (query, route) = with_defaults(
        "insert into t (k, v) values (1 + $1, $2)",
        &[text("4"), text("x")],
        &[&[Some("5")]],
    );
    assert_eq!(
        query,
        r#"defaults: EXPLAIN INSERT INTO "public"."t" ("k") VALUES (1 + '4'); VALUES (CAST((1 + '4') AS integer)::text)"#
    );
    assert_eq!(
        route,
        r#"2: insert into "pgherd_data"."t1_r2" AS "t" (k, v) values ('5'::integer, $1) [1]"#
    );
    let (query, route) = with_defaults("insert into tx values (lower('A'), 1)", &[], &[&[Some("it's")]]);
    assert_eq!(
        query,
        r#"defaults: EXPLAIN INSERT INTO "public"."tx" ("k") VALUES (lower('A')); VALUES (CAST((lower('A')) AS text)::text)"#
    );
    assert_eq!(
        route,
        r#"2: insert into "pgherd_data"."t5_r2" AS "tx" ("k", "v") values ('it''s'::text, 1)"#
    );
    let (_, route) = with_defaults("insert into t values (nullif(1, 1))", &[], &[&[None]]);
    assert_eq!(route, r#"1: insert into t values (NULL) [fence_1_5]"#);
    assert_eq!(place("insert into t values ($1)", &[text("5")]), "2");
    assert_eq!(place("insert into t values ($1)", &[]), "1 fenced");
}

#[test]
fn only_assignments_make_a_key() {
    check(&[
        // PostgreSQL says 42804, with the position in the client's own text.
        (
            "insert into t (k) values (true)",
            "1: insert into t (k) values (true) [fence_1_5]",
        ),
        (
            "insert into t (k, n) values (5, 1), (false, 2)",
            "1: insert into t (k, n) values (5, 1), (false, 2) [fence_1_5]",
        ),
        (
            "insert into tx values (true)",
            r#"defaults: EXPLAIN INSERT INTO "public"."tx" ("k") VALUES (true); VALUES (CAST((true) AS text)::text)"#,
        ),
        (
            "insert into t (k, n) values (1, (select true)), ('2' || '', 3)",
            "defaults: EXPLAIN INSERT INTO \"public\".\"t\" (\"k\", \"n\") VALUES (DEFAULT, (select true)), ('2' || '', DEFAULT); \
             VALUES (NULL::text, CAST(((select true)) AS integer)::text), (CAST(('2' || '') AS integer)::text, NULL::text)",
        ),
        // A string without a type is the column's input; it has nothing to be judged.
        (
            "insert into dd values ('today')",
            "defaults: VALUES (to_json(CAST(('today') AS date))#>>'{}')",
        ),
    ]);
}

#[test]
fn a_child_says_what_not_null_refuses() {
    check(&[
        (
            "insert into must values (null, 'x')",
            r#"2: insert into "pgherd_data"."t17_r1" AS "must" ("k", "v") values (null, 'x')"#,
        ),
        (
            "insert into must (v) values ('x')",
            r#"2: insert into "pgherd_data"."t17_r1" AS "must" (v) values ('x')"#,
        ),
        (
            "insert into must (k) values (7), (null)",
            r#"3: insert into "pgherd_data"."t17_r2" AS "must" (k) values (7), (null)"#,
        ),
        // No partition of relation found for row: 23514.
        (
            "insert into mdecl (v) values ('x')",
            "1: insert into mdecl (v) values ('x') [fence_18_5]",
        ),
    ]);
}

#[test]
fn one_statement_has_one_time() {
    let answer: &[Option<&str>] = &[Some("2024-05-05T01:02:03+00:00"), Some("7")];
    let (query, route) = with_defaults("insert into born (k) values (1), (5)", &[], &[answer, answer]);
    assert_eq!(
        query,
        "defaults: SELECT to_json(CAST((now()) AS timestamp with time zone))#>>'{}', CAST((random()) AS bigint)::text \
         FROM generate_series(1, 2)"
    );
    let row = "'2024-05-05T01:02:03+00:00'::timestamp with time zone, '7'::bigint";
    assert_eq!(
        route,
        format!(
            "1: insert into \"pgherd_data\".\"t19_r1\" AS \"born\" (k, \"at\", \"r\") values (1, {row})\n\
             2: insert into \"pgherd_data\".\"t19_r2\" AS \"born\" (k, \"at\", \"r\") values (5, {row})"
        )
    );
    check_places(&[
        // One shard's clock is one clock.
        ("insert into born (k) values (5), (6)", "2"),
        ("insert into born (k) values (5)", "2"),
        (
            "insert into born (k, at, r) values (1, default, 1), (5, now(), 2)",
            "defaults",
        ),
        (
            "insert into born (k, at, r) values (1, '2024-01-01', 1), (5, '2024-01-01', 2)",
            "1,2",
        ),
        ("insert into t (k, v) values (1, current_date), (5, 'x')", "defaults"),
        ("insert into t (k, v) values (1, lower('A')), (5, 'x')", "1,2"),
    ]);
}
