use super::fixture::snapshot;
use super::{analyzed, check, check_places, place, show};
use crate::name_hash;
use pgherd_model::ShardId;

#[test]
fn other_kinds() {
    check_places(&[
        ("begin", "1"),
        ("show all", "1"),
        ("vacuum loc", "1"),
        ("vacuum t", "refuse"),
        ("create table x (a int)", "1"),
        ("drop table t", "refuse"),
        ("call count_t()", "refuse"),
        ("call other()", "1"),
        ("do $$ begin perform 1; end $$", "1"),
        ("do $$ begin perform count(*) from t; end $$", "refuse"),
        ("do $$ begin execute 'select 1'; end $$", "refuse"),
        ("do $$ begin perform count_t(); end $$", "refuse"),
        ("copy loc from stdin", "1"),
        ("copy t from stdin", "plan"),
        ("copy (select * from t) to stdout", "plan"),
        ("copy (select * from loc) to stdout", "1"),
        ("select 'unterminated", "1"),
        ("lock table loc", "1"),
        ("lock table t, only loc", "refuse"),
        ("lock table t, tv", "refuse"),
        ("lock table loc, pgherd_data.t1_r1 in access share mode", "refuse"),
        ("copy pgherd_data.t1_r1 (k, v) to stdout", "refuse"),
        ("select * from pgherd.ranges", "1"),
    ]);
    check(&[(
        "lock table two in share mode",
        "1: lock table two in share mode [fence_10_5]\n2: lock table two in share mode [fence_10_5]",
    )]);
    check(&[
        (
            "lock table a, p2, two, public.loc, s.b nowait",
            "1: lock table a, two, public.loc, s.b nowait [fence_10_5]\n\
             2: lock table two nowait [fence_10_5]\n\
             3: lock table p2 nowait",
        ),
        (
            "lock two , loc in share mode",
            "1: lock two , loc in share mode [fence_10_5]\n2: lock two in share mode [fence_10_5]",
        ),
        ("lock table loc, a", "1: lock table loc, a"),
    ]);
}

#[test]
fn facts_about_a_statement() {
    let snapshot = snapshot();
    let of = |sql: &str| {
        let a = analyzed(sql, &snapshot);
        let sharded: Vec<_> = a.sharded.iter().map(|t| t.name.name.to_string()).collect();
        format!(
            "sharded=[{}] touches={} read_only={} locking={} returning={}",
            sharded.join(","),
            a.touches_sharded,
            a.read_only,
            a.locking,
            a.returning
        )
    };
    assert_eq!(
        of("select * from t, u, t x"),
        "sharded=[t,u] touches=true read_only=true locking=false returning=false"
    );
    assert_eq!(
        of("select * from loc for update"),
        "sharded=[] touches=false read_only=false locking=true returning=false"
    );
    assert_eq!(
        of("select * from tv"),
        "sharded=[] touches=true read_only=true locking=false returning=false"
    );
    assert_eq!(
        of("with a as (delete from loc returning 1) select 1"),
        "sharded=[] touches=false read_only=false locking=false returning=false"
    );
    assert_eq!(
        of("delete from t returning k"),
        "sharded=[t] touches=true read_only=false locking=false returning=true"
    );
    assert_eq!(
        of("insert into t values (5)"),
        "sharded=[t] touches=true read_only=false locking=false returning=false"
    );
    assert_eq!(
        of("alter table t add column x int"),
        "sharded=[t] touches=true read_only=false locking=false returning=false"
    );
    let names = analyzed("with a as (select 1) select * from a, loc, public.t", &snapshot).names;
    assert_eq!(names, [name_hash("loc"), name_hash("t")]);
}

#[test]
fn one_shard_runs_everything() {
    let mut snapshot = snapshot();
    snapshot.shards = vec![ShardId(1)];
    for (sql, expected) in [
        ("select * from t", "1: select * from t [fence_1_5]"),
        ("select * from only t", "1: select * from only t [fence_1_5]"),
        ("select count_t()", "1: select count_t()"),
        (
            "insert into seq (v) values ('x')",
            "defaults: SELECT CAST((nextval('seq_id_seq'::regclass)) AS integer)::text FROM generate_series(1, 1)",
        ),
        ("select * from mat", "1: select * from mat"),
    ] {
        assert_eq!(show(&analyzed(sql, &snapshot).route(&snapshot, &[])), expected);
    }
}

/// Texts that nest deeply or chain on for ever end in a route, on a small stack.
#[test]
fn deep_and_long_texts() {
    let deep = |n: usize| format!("select * from t where {}k = 5{}", "(".repeat(n), ")".repeat(n));
    let chain = |n: usize| format!("select * from t where k = 5{}", " or k = 5".repeat(n));
    let calls = |n: usize| format!("select {}1{} from loc", "abs(".repeat(n), ")".repeat(n));
    let unions = |n: usize| format!("select 1{}", " union all select k from t where k = 5".repeat(n));
    let run = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let places = [
            place(&deep(20), &[]),
            place(&deep(5_000), &[]),
            place(&chain(480), &[]),
            place(&chain(50_000), &[]),
            place(&calls(20_000), &[]),
            place(&unions(100), &[]),
            place(&unions(5_000), &[]),
            place(&format!("select * from t where k in (5{})", ", 5".repeat(50_000)), &[]),
            place(&format!("insert into t (k) values (5){}", ", (6)".repeat(20_000)), &[]),
            place(&format!("select {}1", "- ".repeat(20_000)), &[]),
            place(&format!("select {}true", "not ".repeat(20_000)), &[]),
        ];
        assert_eq!(
            places,
            ["2", "2", "2", "refuse", "1", "2", "refuse", "2", "2", "1", "1"]
        );
    });
    run.unwrap().join().unwrap();
}
