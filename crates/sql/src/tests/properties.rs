//! Over a small domain of keys: whatever a random predicate accepts lies in a range that the route asks.

use super::fixture::{path, sharded};
use crate::{Part, Route, analyze, parse};
use pgherd_model::{KeyValue, ShardId, Snapshot, Table};
use proptest::prelude::*;
use std::sync::Arc;

/// A predicate over `a` (0 to 9) and `b` (0 to 4), both keys, and `x`, which is neither.
#[derive(Debug, Clone)]
enum Predicate {
    Compare(&'static str, &'static str, i64),
    In(&'static str, Vec<i64>),
    Between(&'static str, i64, i64),
    Row(&'static str, i64, i64),
    RowIn(Vec<(i64, i64)>),
    IsNull(&'static str),
    And(Box<Predicate>, Box<Predicate>),
    Or(Box<Predicate>, Box<Predicate>),
    Not(Box<Predicate>),
}

fn compare(op: &str, ordering: std::cmp::Ordering) -> bool {
    match op {
        "=" => ordering.is_eq(),
        "<>" => ordering.is_ne(),
        "<" => ordering.is_lt(),
        "<=" => ordering.is_le(),
        ">" => ordering.is_gt(),
        _ => ordering.is_ge(),
    }
}

impl Predicate {
    fn sql(&self) -> String {
        match self {
            Self::Compare(c, op, v) if v % 2 == 0 => format!("{c} {op} {v}"),
            Self::Compare(c, op, v) => {
                let flipped = match *op {
                    "<" => ">",
                    "<=" => ">=",
                    ">" => "<",
                    ">=" => "<=",
                    same => same,
                };
                format!("{v} {flipped} t.{c}")
            }
            Self::In(c, values) => {
                let values: Vec<_> = values.iter().map(|v| format!("'{v}'")).collect();
                format!("{c} IN ({})", values.join(", "))
            }
            Self::Between(c, from, to) => format!("{c} BETWEEN {from} AND {to}"),
            Self::Row(op, a, b) => format!("(a, b) {op} ({a}, {b})"),
            Self::RowIn(rows) => {
                let rows: Vec<_> = rows.iter().map(|(a, b)| format!("({a}, {b})")).collect();
                format!("(a, b) IN ({})", rows.join(", "))
            }
            Self::IsNull(c) => format!("{c} IS NULL"),
            Self::And(l, r) => format!("({}) AND ({})", l.sql(), r.sql()),
            Self::Or(l, r) => format!("({}) OR ({})", l.sql(), r.sql()),
            Self::Not(p) => format!("NOT ({})", p.sql()),
        }
    }

    /// Without NULLs in the row, no predicate is NULL.
    fn holds(&self, a: i64, b: i64, x: i64) -> bool {
        let column = |name: &str| match name {
            "a" => a,
            "b" => b,
            _ => x,
        };
        match self {
            Self::Compare(c, op, v) => compare(op, column(c).cmp(v)),
            Self::In(c, values) => values.contains(&column(c)),
            Self::Between(c, from, to) => (from..=to).contains(&&column(c)),
            Self::Row(op, va, vb) => compare(op, (a, b).cmp(&(*va, *vb))),
            Self::RowIn(rows) => rows.contains(&(a, b)),
            Self::IsNull(_) => false,
            Self::And(l, r) => l.holds(a, b, x) && r.holds(a, b, x),
            Self::Or(l, r) => l.holds(a, b, x) || r.holds(a, b, x),
            Self::Not(p) => !p.holds(a, b, x),
        }
    }
}

fn predicate() -> impl Strategy<Value = Predicate> {
    let column = prop::sample::select(vec!["a", "b", "x"]);
    let op = prop::sample::select(vec!["=", "<>", "<", "<=", ">", ">="]);
    let leaf = prop_oneof![
        4 => (column.clone(), op.clone(), -1..10i64).prop_map(|(c, op, v)| Predicate::Compare(c, op, v)),
        2 => (column.clone(), prop::collection::vec(-1..10i64, 1..4)).prop_map(|(c, v)| Predicate::In(c, v)),
        1 => (column.clone(), 0..10i64, 0..10i64).prop_map(|(c, f, t)| Predicate::Between(c, f, t)),
        2 => (op, 0..10i64, 0..5i64).prop_map(|(op, a, b)| Predicate::Row(op, a, b)),
        1 => prop::collection::vec((0..10i64, 0..5i64), 1..4).prop_map(Predicate::RowIn),
        1 => column.prop_map(Predicate::IsNull),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            3 => (inner.clone(), inner.clone()).prop_map(|(l, r)| Predicate::And(l.into(), r.into())),
            2 => (inner.clone(), inner.clone()).prop_map(|(l, r)| Predicate::Or(l.into(), r.into())),
            1 => inner.prop_map(|p| Predicate::Not(p.into())),
        ]
    })
}

/// Nine ranges of (a, b), each on a shard of its own, so that the shards asked are the ranges asked.
fn snapshot(single: bool) -> Snapshot {
    let columns = &[("a", 23), ("b", 23), ("x", 23)];
    let table: Table = match single {
        true => sharded(
            1,
            "t",
            columns,
            &["a"],
            &[&["2"], &["4"], &["5"], &["8"]],
            &[1, 2, 3, 4, 5],
        ),
        false => sharded(
            1,
            "t",
            columns,
            &["a", "b"],
            &[
                &["1", "-"],
                &["2", "2"],
                &["4", "-"],
                &["4", "3"],
                &["5", "1"],
                &["7", "-"],
                &["7", "4"],
                &["9", "2"],
            ],
            &[1, 2, 3, 4, 5, 6, 7, 8, 9],
        ),
    };
    let mut snapshot = Snapshot {
        shards: (1..=9).map(ShardId).collect(),
        ..Snapshot::default()
    };
    snapshot
        .relations
        .insert("t".into(), vec![("public".into(), Some(Arc::new(table)))]);
    snapshot
}

fn asked(route: &Route) -> Vec<ShardId> {
    let shard = |part: &Part| part.shard;
    match route {
        Route::Forward(part) => vec![shard(part)],
        Route::Scatter { parts, .. } => parts.iter().map(shard).collect(),
        other => panic!("{other:?}"),
    }
}

fn covers(predicate: &Predicate, single: bool) {
    let snapshot = snapshot(single);
    let sql = format!("DELETE FROM t WHERE {}", predicate.sql());
    let parsed = parse(&sql).unwrap();
    assert!(parsed[0].ast.is_some(), "{sql}");
    let analysis = analyze(&parsed[0], &sql, &snapshot, &path(), &|_| false, &[]).unwrap();
    let asked = asked(&analysis.route(&snapshot, &[]));
    let sharded = analysis.sharded[0].sharded().unwrap();
    for (a, b, x) in (0..10).flat_map(|a| (0..5).flat_map(move |b| [0, 3, 9].map(move |x| (a, b, x)))) {
        if predicate.holds(a, b, x) {
            let key = [KeyValue::Int(a), KeyValue::Int(b)];
            let owner = sharded.ranges.find(&key[..sharded.key.len()]).unwrap().shard;
            assert!(
                asked.contains(&owner),
                "{sql}: ({a}, {b}) is on {owner}, asked {asked:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_match_is_asked(predicate in predicate()) {
        covers(&predicate, true);
        covers(&predicate, false);
    }
}
