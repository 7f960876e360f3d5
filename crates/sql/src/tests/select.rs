use super::{check, check_places, place, route_with, text};
use crate::ParameterValue;

#[test]
fn local_statements_go_home_unchanged() {
    check(&[
        ("select 1", "1: select 1"),
        ("select * from other.t", "1: select * from other.t"),
        (
            "select * from nowhere where k = 5",
            "1: select * from nowhere where k = 5",
        ),
        (
            "select * from temp_t where k = 5",
            "1: select * from temp_t where k = 5",
        ),
        ("select relname from pg_class", "1: select relname from pg_class"),
        (
            "with t as (select 1 as k) select * from t",
            "1: with t as (select 1 as k) select * from t",
        ),
        (
            "select * from generate_series(1, 3) t(k)",
            "1: select * from generate_series(1, 3) t(k)",
        ),
    ]);
}

#[test]
fn one_range_addresses_the_child() {
    check(&[
        (
            "select * from t where k = 5",
            r#"2: select * from "pgherd_data"."t1_r2" AS "t" where k = 5"#,
        ),
        (
            "select * from t where k = -5",
            r#"1: select * from "pgherd_data"."t1_r1" AS "t" where k = -5"#,
        ),
        (
            "select * from t where k between 3 and 3 + 2",
            r#"2: select * from "pgherd_data"."t1_r2" AS "t" where k between 3 and 3 + 2"#,
        ),
        (
            "select * from t where k = 10 - (2 + 3)",
            r#"2: select * from "pgherd_data"."t1_r2" AS "t" where k = 10 - (2 + 3)"#,
        ),
        ("select * from t where k < 3 * 2", "plan"),
        (
            "select * from only t where k = 5",
            "refuse: ONLY of a sharded table is not supported here yet",
        ),
        (
            "update only t set v = 'x' where k = 5",
            "refuse: ONLY of a sharded table is not supported here yet",
        ),
        (
            "SELECT t.v FROM T x WHERE X.k = 3",
            r#"2: SELECT t.v FROM "pgherd_data"."t1_r2" x WHERE X.k = 3"#,
        ),
        (
            "select v from public.t where t.k = 7 -- ö",
            r#"3: select v from "pgherd_data"."t1_r3" AS "t" where t.k = 7"#,
        ),
        (
            "select 'ä', v from t where k = 7",
            r#"3: select 'ä', v from "pgherd_data"."t1_r3" AS "t" where k = 7"#,
        ),
        (
            "select * from \"Mixed\" where \"Key\" = 1",
            r#"1: select * from "pgherd_data"."t16_r1" AS "Mixed" where "Key" = 1"#,
        ),
        (
            "select t.* from t where k = 5 for update",
            r#"2: select t.* from "pgherd_data"."t1_r2" AS "t" where k = 5 for update"#,
        ),
        ("table t", "plan"),
        (
            "select a.k from t as a (x, y) where a.x = 5",
            r#"2: select a.k from "pgherd_data"."t1_r2" as a (x, y) where a.x = 5"#,
        ),
    ]);
}

#[test]
fn the_parent_where_a_child_would_show() {
    check(&[
        (
            "select t from t where k = 5",
            "2: select t from t where k = 5 [fence_1_5]",
        ),
        (
            "select row_to_json(t) from t where k = 5",
            "2: select row_to_json(t) from t where k = 5 [fence_1_5]",
        ),
        (
            "select count(t.*) from t where k = 5",
            "2: select count(t.*) from t where k = 5 [fence_1_5]",
        ),
        (
            "select tableoid::regclass from t where k = 5",
            "2: select pgherd.tableoid('\"public\".\"t\"'::pg_catalog.regclass)::regclass from \"pgherd_data\".\"t1_r2\" AS \"t\" where k = 5",
        ),
        (
            "select public.t.k from public.t where k = 5",
            "2: select public.t.k from public.t where k = 5 [fence_1_5]",
        ),
        (
            "select * from loose where k = 5",
            "2: select * from loose where k = 5 [fence_3_5]",
        ),
        (
            "select * from two where k < 6",
            "1: select * from two where k < 6 [fence_10_5]",
        ),
        (
            "select * from two where k in (1, 5)",
            "1: select * from two where k in (1, 5) [fence_10_5]",
        ),
        (
            "select * from t where k = null",
            "1: select * from t where k = null [fence_1_5]",
        ),
        (
            "select * from t where k > 5 and k < 4",
            "1: select * from t where k > 5 and k < 4 [fence_1_5]",
        ),
        (
            "select * from t where k is null",
            "1: select * from t where k is null [fence_1_5]",
        ),
    ]);
}

#[test]
fn predicates() {
    check_places(&[
        ("select * from t", "plan"),
        ("select * from t where v = 'x'", "plan"),
        ("select * from t where k = 5 and v = 'x'", "2"),
        ("select * from t where v = 'x' and (n > 3 or n is null) and 5 = k", "2"),
        ("select * from t where k = 5 or v = 'x'", "plan"),
        ("select * from t where k = 5 or k = 6", "2"),
        ("select * from t where k = 5 or k = 7", "plan"),
        ("select * from t where not k = 5", "plan"),
        ("select * from t where k <> 5", "plan"),
        ("select * from t where k in (3, 4, null)", "2"),
        ("select * from t where k in (3, 4, n)", "plan"),
        ("select * from t where k not in (1)", "plan"),
        ("select * from t where k between 3 and 6", "2"),
        ("select * from t where k between 3 and 7", "plan"),
        ("select * from t where k not between 3 and 6", "plan"),
        ("select * from t where k >= 7", "3"),
        ("select * from t where 7 <= k", "3"),
        ("select * from t where k < 3", "1"),
        ("select * from t where k <= 3", "plan"),
        ("select * from t where k >= 3 and k < 7", "2"),
        ("select * from t where k > 2", "plan"),
        ("select * from t where k = any (array[3, 4])", "2"),
        ("select * from t where k = any ('{3,4,NULL}')", "2"),
        ("select * from t where k = any ('{3,4}'::int[])", "2"),
        ("select * from t where k = some (array[3, 8])", "plan"),
        ("select * from t where k > any (array[8])", "plan"),
        ("select * from t where k = all (array[8])", "plan"),
        ("select * from t where (k = 5) is true", "2"),
        ("select * from t where (k = 5) is not true", "plan"),
        ("select * from t where (k = 5) is false", "plan"),
        ("select * from t where k is not distinct from 5", "2"),
        ("select * from t where k is distinct from 5", "plan"),
        (
            "select * from t where k = 5 and n is not distinct from 1 or v = 'x'",
            "plan",
        ),
        (
            "select * from t where k = 5 and n is distinct from 1 or v = 'x'",
            "plan",
        ),
        (
            "select * from t where k = 5 and n is distinct from case when v = 'a' and n = 1 then 1 end",
            "2",
        ),
        (
            "select * from t where n is not distinct from (1) and (v is distinct from 'a') and k = 5",
            "2",
        ),
        ("select * from t where k = (select 5)", "plan"),
        ("select * from t where k in (select 5)", "plan"),
        ("select * from t where k = 5 = true", "plan"),
        ("select * from t where case when k = 5 then true end", "plan"),
        ("select * from t where k + 0 = 5", "plan"),
        ("select * from t where k = n", "plan"),
        ("select * from t where k = 2 + 3", "2"),
    ]);
}

#[test]
fn constants() {
    check_places(&[
        ("select * from t where k = '5'", "2"),
        ("select * from t where k = ' 5 '", "2"),
        ("select * from t where k = 'x'", "plan"),
        ("select * from t where k = 5.0", "plan"),
        ("select * from t where k = 5::bigint", "2"),
        ("select * from t where k = 5::int8", "2"),
        ("select * from t where k = cast('5' as smallint)", "2"),
        ("select * from t where k = 5::pg_catalog.int4", "2"),
        ("select * from t where k = int '5'", "2"),
        ("select * from t where k = -5::int", "1"),
        ("select * from t where k = 5.4::int", "plan"),
        ("select * from t where k = 5::numeric", "plan"),
        ("select * from t where k = 5::text", "plan"),
        ("select * from t where k = 3000000000", "3"),
        ("select * from t where k = 99999999999999999999", "plan"),
        ("select * from t where k = 1e0", "plan"),
        ("select * from t where k::bigint = 5", "plan"),
        ("select * from tx where k = 'a'", "1"),
        ("select * from tx where k = E'h\\n'", "2"),
        ("select * from tx where k = $q$z$q$", "3"),
        ("select * from tx where k = 'a'::text", "1"),
        ("select * from tx where k = 'abc'::varchar(1)", "plan"),
        ("select * from tx where k = 'a'::bpchar", "plan"),
        ("select * from tx where k = 'a' collate \"C\"", "plan"),
        ("select * from tx where k collate \"C\" = 'a'", "plan"),
        ("select * from tx where k = 'a' || 'b'", "plan"),
        ("select * from tx where k like 'a%'", "plan"),
        ("select * from tx where k < 'h'", "1"),
        ("select * from tx where k = 'a'\n'b'", "1"),
        (
            "select * from uu where id = '60000000-0000-0000-0000-000000000000'",
            "2",
        ),
        (
            "select * from uu where id = '60000000-0000-0000-0000-000000000000'::uuid",
            "2",
        ),
        ("select * from dd where k = '2024-03-01'", "2"),
        ("select * from dd where k = date '2024-12-01'", "3"),
        ("select * from dd where k = '2024-03-01'::timestamp", "plan"),
        ("select * from dd where k = current_date", "plan"),
        ("select * from dd where k = 'today'", "plan"),
        ("select * from dd where k between '2024-01-01' and '2024-06-30'", "2"),
        ("select * from ts where k = timestamp '2024-03-01 10:00'", "2"),
        ("select * from ts where k = date '2024-03-01'", "plan"),
        ("select * from nu where k = 3", "2"),
        ("select * from nu where k = 7.50", "3"),
        ("select * from nu where k = 7.4999", "2"),
        ("select * from nu where k = 'NaN'", "3"),
        ("select * from nu where k = 5::int", "2"),
        ("select * from nu where k = 5::float8", "plan"),
        ("select * from vc where k = 'z'", "3"),
    ]);
}

#[test]
fn composite_keys() {
    check_places(&[
        ("select * from c where a = 3 and b = 'a'", "1"),
        ("select * from c where a = 3 and b = 'm'", "2"),
        ("select * from c where a = 3", "plan"),
        ("select * from c where a = 2", "1"),
        ("select * from c where a = 7", "3"),
        ("select * from c where b = 'a'", "plan"),
        ("select * from c where a < 3", "1"),
        ("select * from c where a <= 3 and b < 'm'", "plan"),
        ("select * from c where a = 3 and b < 'm'", "1"),
        ("select * from c where a = 3 and b >= 'm'", "2"),
        ("select * from c where (a, b) = (3, 'z')", "2"),
        ("select * from c where (3, 'z') = (a, b)", "2"),
        ("select * from c where (b, a) = ('z', 3)", "2"),
        ("select * from c where (a, b) in ((4, 'a'), (5, 'b'))", "2"),
        ("select * from c where (a, b) in ((1, 'a'), (5, 'b'))", "plan"),
        ("select * from c where (a, b) < (3, 'm')", "1"),
        ("select * from c where (a, b) <= (3, 'm')", "plan"),
        ("select * from c where (a, b) >= (7, '')", "3"),
        ("select * from c where (a, b) > (3, 'm') and (a, b) < (6, 'x')", "2"),
        ("select * from c where (a, x) < (3, 0)", "plan"),
        ("select * from c where (a, x) < (2, 0)", "1"),
        ("select * from c where a in (4, 5) and b in ('a', 'b')", "2"),
    ]);
}

#[test]
fn joins() {
    check_places(&[
        ("select * from t join u on t.k = u.k where t.k = 5", "2"),
        ("select * from t join u using (k) where k = 5", "2"),
        ("select * from t, u where t.k = u.k and u.k = 5", "2"),
        ("select * from t, u where t.k = u.k", "plan"),
        ("select * from t, u where t.k = 5 and u.k = 5", "2"),
        ("select * from t, u where t.k = 5 and u.k = 6", "2"),
        ("select * from t, u where t.k = 5 and u.k = 1", "plan"),
        ("select * from t, u where t.k = 5", "plan"),
        ("select * from t left join u on t.k = u.k where t.k = 5", "2"),
        ("select * from t left join u on t.k = u.k and u.k = 5", "plan"),
        ("select * from t left join u on t.k = u.k and t.k = 5", "plan"),
        ("select * from t left join u on t.k = u.k where u.k = 5", "plan"),
        ("select * from t left join u on t.k = u.k where u.k is null", "plan"),
        (
            "select * from t left join u on t.k = u.k where t.k = 5 and u.k is null",
            "2",
        ),
        (
            "select * from t left join u on t.k = u.k where t.k = 5 or u.k = 5",
            "plan",
        ),
        ("select * from u right join t on t.k = u.k where t.k = 5", "2"),
        (
            "select * from u right join t on t.k = u.k where u.k is not distinct from 5",
            "plan",
        ),
        ("select * from t full join u on t.k = u.k where t.k = 5", "plan"),
        (
            "select * from t full join u on t.k = u.k where t.k = 5 and u.k = 5",
            "2",
        ),
        ("select * from t full join u using (k) where k = 5", "plan"),
        ("select * from t natural join u where k = 5", "plan"),
        (
            "select * from t a join t b on a.k = b.k join u on u.k = b.k where a.k = 5",
            "2",
        ),
        ("select * from (t join u on t.k = u.k) where t.k = 5", "2"),
        ("select * from t join u on t.v = u.w where t.k = 5", "plan"),
        ("select * from t join u on u.k = t.n where t.k = 5 and t.n = 6", "2"),
        ("select * from t join u on u.m = t.n where t.k = 5 and u.k = 6", "2"),
        ("select * from t join tx on tx.v = t.k where t.k = 5", "plan"),
        ("select * from t cross join u where t.k = 1 and u.k = 2", "1"),
    ]);
    check(&[(
        "select * from t join u on t.k = u.k where t.k = 5",
        r#"2: select * from "pgherd_data"."t1_r2" AS "t" join "pgherd_data"."t2_r2" AS "u" on t.k = u.k where t.k = 5"#,
    )]);
}

#[test]
fn local_tables_beside_sharded_ones() {
    check_places(&[
        ("select * from t, loc where t.k = 1", "1"),
        ("select * from t, loc where t.k = 5", "plan"),
        ("select * from t join loc on loc.id = t.k where loc.id = 5", "plan"),
        ("select * from t, loc where k = 1", "1"),
        ("select *, nextval('s') from t where k = 1", "1"),
        ("select *, nextval('s') from t where k = 5", "plan"),
        ("select pg_advisory_xact_lock(k) from t where k = 5", "plan"),
        (
            "select * from t, generate_series(1, 3) g where t.k = 5 and g = t.n",
            "2",
        ),
    ]);
}

#[test]
fn subqueries_and_common_tables() {
    check_places(&[
        (
            "select (select max(w) from u where u.k = t.k) from t where t.k = 5",
            "2",
        ),
        ("select (select max(w) from u) from t where t.k = 5", "plan"),
        (
            "select * from t where k = 5 and exists (select 1 from u where u.k = t.k)",
            "2",
        ),
        (
            "select * from t where exists (select 1 from u where u.k = t.k and u.k = 5)",
            "plan",
        ),
        (
            "select * from t where k = 5 and n in (select m from u where k = 6)",
            "2",
        ),
        (
            "select * from t where k = 5 and exists (select 1 from u where k = 1)",
            "plan",
        ),
        ("select * from (select * from t where k = 5) x", "2"),
        ("select * from (select * from t) x where x.k = 5", "plan"),
        (
            "select * from t, lateral (select * from u where u.k = t.k) x where t.k = 5",
            "2",
        ),
        ("with a as (select * from t where k = 5) select * from a", "2"),
        ("with a as (select * from t) select * from a where k = 5", "plan"),
        ("with t as (select * from u where k = 5) select * from t", "2"),
        (
            "with recursive r as (select k from t where k = 5 union all select r.k + 1 from r where k < 9) select * from r",
            "2",
        ),
        ("with a as (select 1), b as (select * from a) select * from b", "1"),
        ("with a as (select * from b), b as (select 1) select * from a", "1"),
        ("select k from t where k = 5 union all select k from u where k = 6", "2"),
        (
            "select k from t where k = 5 union all select k from u where k = 7",
            "plan",
        ),
        ("select k from t where k = 5 union select 1", "2"),
        (
            "select * from loc where exists (select 1 from t where t.k = loc.id and t.k = 1)",
            "1",
        ),
        ("select * from (values (1), (2)) x(k) where k = 1", "1"),
        (
            "select count(*) from t where k = 5 group by v having count(*) > (select 1) order by (select 2) limit (select 3)",
            "2",
        ),
        (
            "select count(*) from t where k = 5 having count(*) > (select count(*) from u)",
            "plan",
        ),
    ]);
}

#[test]
fn names_and_scopes() {
    check_places(&[
        ("select * from t where T.K = 5", "2"),
        ("select * from t where \"K\" = 5", "plan"),
        ("select * from t x where t.k = 5", "plan"),
        ("select * from t, u where k = 5", "plan"),
        ("select * from t where exists (select 1 from loc where k = 5)", "plan"),
        ("select * from t where exists (select 1 from u where k = 5)", "plan"),
        ("select * from \"Mixed\" where key = 5", "plan"),
        ("select * from Mixed where key = 5", "1"),
        ("select * from other.t where k = 5", "1"),
        ("select * from nosuch.t where k = 5", "1"),
    ]);
}

#[test]
fn parameters() {
    let with = |sql: &str, parameters: &[ParameterValue]| place(sql, parameters);
    fn typed(bytes: &[u8], binary: bool, type_oid: u32) -> ParameterValue<'_> {
        ParameterValue {
            bytes: Some(bytes),
            binary,
            type_oid,
        }
    }
    let null = ParameterValue {
        bytes: None,
        binary: false,
        type_oid: 0,
    };
    let sql = "select * from t where k = $1";
    assert_eq!(with(sql, &[text("5")]), "2");
    assert_eq!(with(sql, &[typed(b"5", false, 23)]), "2");
    assert_eq!(with(sql, &[typed(b"5", false, 705)]), "2");
    assert_eq!(with(sql, &[typed(&5i32.to_be_bytes(), true, 23)]), "2");
    assert_eq!(with(sql, &[typed(&5i64.to_be_bytes(), true, 20)]), "2");
    assert_eq!(with(sql, &[typed(&5i16.to_be_bytes(), true, 21)]), "2");
    assert_eq!(with(sql, &[typed(b"5.0", false, 1700)]), "plan");
    assert_eq!(with(sql, &[typed(&5f64.to_be_bytes(), true, 701)]), "plan");
    assert_eq!(with(sql, &[typed(b"5", false, 25)]), "plan");
    assert_eq!(with(sql, &[null]), "1 fenced");
    assert_eq!(with(sql, &[text("x")]), "plan");
    assert_eq!(with(sql, &[]), "plan");
    assert_eq!(
        with("select * from t where k = $1::int", &[typed(b"5", false, 25)]),
        "2"
    );
    assert_eq!(
        with("select * from t where k = $2 and v = $1", &[text("x"), text("8")]),
        "3"
    );
    assert_eq!(
        with("select * from t where k in ($1, $2)", &[text("3"), text("6")]),
        "2"
    );
    assert_eq!(
        with("select * from t where k = any ($1)", &[typed(b"{3,4}", false, 1007)]),
        "2"
    );
    assert_eq!(
        with("select * from t where k = any ($1)", &[typed(b"{3,4}", false, 0)]),
        "2"
    );
    assert_eq!(
        with(
            "select * from t where k = any ($1::int[])",
            &[typed(b"{3,9}", false, 0)]
        ),
        "plan"
    );
    let mut array = Vec::new();
    for word in [1, 0, 20, 2, 1] {
        array.extend(i32::to_be_bytes(word));
    }
    for value in [3i64, 4] {
        array.extend(8i32.to_be_bytes());
        array.extend(value.to_be_bytes());
    }
    assert_eq!(
        with("select * from t where k = any ($1)", &[typed(&array, true, 1016)]),
        "2"
    );
    assert_eq!(
        with("select * from c where a = $1 and b = $2", &[text("3"), text("z")]),
        "2"
    );
    assert_eq!(
        with("select * from ts where k = $1", &[typed(&0i64.to_be_bytes(), true, 0)]),
        "plan"
    );
    assert_eq!(
        with(
            "select * from ts where k = $1",
            &[typed(&0i64.to_be_bytes(), true, 1114)]
        ),
        "1"
    );
    assert_eq!(
        route_with(sql, &[text("5")]),
        r#"2: select * from "pgherd_data"."t1_r2" AS "t" where k = $1"#
    );
}

#[test]
fn partitions_views_and_refusals() {
    check(&[
        (
            "select * from decl where k = 5",
            r#"2: select * from "public"."p1" AS "decl" where k = 5"#,
        ),
        (
            "select * from decl where k = 15",
            "1: select * from decl where k = 15 [fence_9_5]",
        ),
        ("select * from p1", "2: select * from p1"),
        ("select * from only p1", "2: select * from      p1"),
        ("select * from p1 where k = 5", "2: select * from p1 where k = 5"),
        ("select * from p1 join p2 on true", "plan"),
        ("select * from tv", "plan"),
        ("select * from tv where k = 5", "plan"),
        (
            "update tv set v = 1",
            "refuse: view \"tv\" over a sharded table cannot be changed",
        ),
        (
            "select * from mat",
            "refuse: \"mat\" cannot be used while its data lies on several shards",
        ),
        (
            "select count_t()",
            "refuse: function \"count_t\" may read or change sharded tables and cannot be called yet",
        ),
        (
            "select Public.Count_T (1)",
            "refuse: function \"count_t\" may read or change sharded tables and cannot be called yet",
        ),
        (
            "select loc.count_t from loc",
            "refuse: function \"count_t\" may read or change sharded tables and cannot be called yet",
        ),
        ("select count_t from loc", "1: select count_t from loc"),
        ("select 'count_t()'", "1: select 'count_t()'"),
        (
            "select query_to_xml('select * from t', true, true, '')",
            "refuse: function \"query_to_xml\" may read or change sharded tables and cannot be called yet",
        ),
    ]);
}

#[test]
fn what_sqlparser_does_not_read() {
    check_places(&[
        ("select * from only t where k = 5", "refuse"),
        ("select * from only loc", "1"),
        ("select * from t where k == 5", "plan"),
        ("select * from t where k = 5 and xmlelement(name a) is document", "2"),
        ("selec * from loc", "1"),
        ("selec * from t", "refuse"),
    ]);
}
