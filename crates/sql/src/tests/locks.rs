//! What statements lock at SERIALIZABLE over shards.

use super::analyzed;
use super::fixture::snapshot;
use pgherd_model::ShardId;

/// `shard: what is read, +what is written`, with children as they are named in `pgherd_data`.
fn locks(sql: &str) -> String {
    let snapshot = snapshot();
    let Some(locks) = analyzed(sql, &snapshot).locks(&snapshot, &[], Some(ShardId(2))) else {
        return "not understood".into();
    };
    let lines = locks.by_shard.iter().map(|(shard, locks)| {
        let written = locks.writes.iter().map(|name| format!("+{name}"));
        let names: Vec<_> = locks.reads.iter().cloned().chain(written).collect();
        format!(
            "{shard}: {}",
            names.join(" ").replace("\"pgherd_data\".", "").replace('"', "")
        )
    });
    lines.collect::<Vec<_>>().join("; ")
}

#[test]
fn what_may_hold_rows_that_matter_is_locked() {
    for (sql, expected) in [
        ("select v from t where k = 5", "2: t1_r2"),
        ("select v from t where k < 5", "1: t1_r1; 2: t1_r2"),
        ("select count(*) from t where v = 'x'", "1: t1_r1; 2: t1_r2; 3: t1_r3"),
        ("select 1 from t where k = 1 and k = 9", "1: t1_r1"),
        ("select * from t join u using (k) where k = 5", "2: t1_r2 t2_r2"),
        ("select * from loc", "1: loc"),
        ("select * from s.loc, t where k = 5", "1: s.loc; 2: t1_r2"),
        ("with loc as (select 1) select * from loc", ""),
        ("select * from tv", "1: public.tv"),
        ("update t set v = 'x' where k = 5", "2: t1_r2 +public.t"),
        (
            "delete from t using loc where k = x and k = 5",
            "1: loc; 2: t1_r2 +public.t",
        ),
        (
            "delete from loc where x in (select k from t where k > 8)",
            "1: loc +loc; 3: t1_r3",
        ),
        ("insert into t values (5, 'x')", "2: +public.t"),
        (
            "insert into t values (5, 'x') on conflict (k) do update set v = 'y'",
            "2: +public.t",
        ),
        (
            "insert into t values (5, 'x') on conflict do nothing",
            "1: t1_r1; 2: t1_r2 +public.t; 3: t1_r3",
        ),
        ("insert into loc select k from t where k = 9", "1: +loc; 3: t1_r3"),
        ("insert into t select x, 'x' from loc", "1: loc; 2: +public.t"),
        ("select * from only loc", "not understood"),
    ] {
        assert_eq!(locks(sql), expected, "{sql}");
    }
}

#[test]
fn names_that_may_be_functions() {
    let snapshot = snapshot();
    let calls = |sql: &str| analyzed(sql, &snapshot).locks(&snapshot, &[], None).expect(sql).calls;
    assert_eq!(calls("select v from t where k = 5"), Vec::<String>::new());
    assert_eq!(calls("select f(t.k), s.\"G\" (1) from t x"), ["G", "f", "k"]);
}

#[test]
fn one_row_is_enough_where_nothing_else_decides() {
    let snapshot = snapshot();
    let locks_row = |sql: &str| analyzed(sql, &snapshot).point.is_some_and(|point| point.locks_row);
    for sql in [
        "select v from keyed where k = $1",
        "select x.v from keyed x where x.k = $1 and n > 5",
        "update keyed set n = n + 1 where k = $1 returning v",
        "delete from keyed where k = $1",
    ] {
        assert!(locks_row(sql), "{sql}");
    }
    for sql in [
        "select count(*) from keyed where k = $1",
        "select v from keyed where k = $1 for key share",
        "update keyed set v = f(v) where k = $1",
        "select v from keyed where k > $1",
    ] {
        assert!(!locks_row(sql), "{sql}");
    }
}

#[test]
fn settings_are_read_where_they_show_the_level_that_was_asked_for() {
    let snapshot = snapshot();
    for (sql, expected) in [
        (
            "select current_setting('x')",
            Some("select pgherd.current_setting('x')"),
        ),
        (
            "select pg_catalog.current_setting ('x'), v from t where k = 1",
            Some("select pgherd.current_setting ('x'), v from t where k = 1"),
        ),
        (
            "select pg_settings.name from pg_settings",
            Some("select pg_settings.name from pgherd.pg_settings"),
        ),
        (
            "select 1 from pg_catalog.pg_settings s where name = current_setting('a')",
            Some("select 1 from pgherd.pg_settings s where name = pgherd.current_setting('a')"),
        ),
        (
            "select his.current_setting('x'), 'current_setting(' from his.pg_settings",
            None,
        ),
        ("select pgherd.current_setting('x') from pgherd.pg_settings", None),
    ] {
        let instead = analyzed(sql, &snapshot)
            .with_level()
            .map(|instead| instead.text.to_string());
        assert_eq!(instead.as_deref(), expected, "{sql}");
    }
}
