//! Statements that find one row by a whole unique key.

use super::fixture::{path, snapshot};
use crate::{analyze, parse};

/// The number of constants that may be parameters, or None where the statement is no point statement.
fn places(text: &str) -> Option<Vec<(usize, bool)>> {
    let parsed = parse(text).expect(text).remove(0);
    let analysis = analyze(&parsed, text, &snapshot(), &path(), &|_| false, &[]).expect(text);
    analysis.point.map(|p| p.constants)
}

#[test]
fn a_whole_unique_key() {
    for (text, expected) in [
        ("select v from keyed where k = $1", Some(vec![(1, true)])),
        (
            "select * from keyed x where $1 = x.k and v = $2",
            Some(vec![(1, true), (2, true)]),
        ),
        ("delete from keyed where (k = $1) returning *", Some(vec![(1, true)])),
        (
            "update keyed set n = n + -$1, v = $2 where k = $3",
            Some(vec![(1, false), (2, true), (3, true)]),
        ),
        // One row, but not every constant is where a parameter means the same.
        ("select v, $1 from keyed where k = $2", Some(vec![(2, true)])),
        ("update keyed set n = abs($1) where k = $2", Some(vec![(2, true)])),
        ("select v from keyed where k = $1 and n > $2", Some(vec![(1, true)])),
        // More than one row, or no way to know.
        ("select v from keyed where v = $1", None),
        ("select v from keyed where k > $1", None),
        ("select v from keyed where k = $1 or k = $2", None),
        ("select v from keyed where k = $1 order by $2", None),
        ("select count(*) from keyed where k = $1 group by $2", None),
        ("select v from keyed where k = $1 limit $2", None),
        ("select v from keyed, loc where k = $1", None),
        ("select (select max(x) from loc) from keyed where k = $1", None),
        ("select v from t where k = $1", None),
        ("insert into keyed values ($1, $2)", None),
    ] {
        assert_eq!(places(text), expected, "{text}");
    }
}

#[test]
fn blind_writes() {
    let snapshot = super::fixture::snapshot();
    for (sql, blind) in [
        ("update t set v = v || 'x' where k = $1", false),
        ("update keyed set v = 'x' where k = $1", true),
        ("update keyed set v = 'x' where k = $1 returning v", false),
        ("update keyed set v = f(v) where k in ($1)", false),
        ("update keyed set v = 'x' where k > 5", false),
        ("delete from keyed where k = $1 and v = 'x'", true),
        ("select v from keyed where k = $1", false),
        ("insert into t (k, v) values ($1, 'x')", true),
        ("insert into t (k, v) values ($1, f('x'))", false),
        ("insert into t (k, v) values ($1, (select 'x'))", false),
        ("insert into t (k, v) select 5, 'x'", false),
    ] {
        assert_eq!(super::analyzed(sql, &snapshot).blind, blind, "{sql}");
    }
}
