use super::fixture::{path, snapshot};
use super::{analyzed, text};
use crate::relations::{references, substitute};
use crate::{Route, map_position, parse};
use pgherd_model::Resolved;

fn listed(sql: &str) -> String {
    let parsed = parse(sql).unwrap();
    let snapshot = snapshot();
    let resolve = |schema: Option<&str>, name: &str| match snapshot.resolve(schema, name, &path()) {
        Resolved::Known(table) => Some(table),
        Resolved::Home => None,
    };
    let Some(found) = references(parsed[0].ast.as_deref().unwrap(), &resolve) else {
        return "not whole".into();
    };
    let one = |r: &crate::relations::Reference| {
        let known = if r.table.is_some() { "+" } else { "" };
        format!("{:?} {}{known}", r.role, &sql[r.name.span.clone()])
    };
    found.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn lists_references() {
    assert_eq!(
        listed("select * from t, public.u x where exists (select 1 from loc)"),
        "Read t+, Read public.u+, Read loc"
    );
    assert_eq!(
        listed("with a as (select * from t), b as (select * from a) select * from b, c"),
        "Read t+, Read c+"
    );
    assert_eq!(listed("insert into t select * from u"), "Insert t+, Read u+");
    assert_eq!(
        listed("update t set v = (select w from u) from loc"),
        "Update t+, Read loc, Read u+"
    );
    assert_eq!(
        listed("with x as (delete from t returning *) insert into u select * from x"),
        "Delete t+, Insert u+"
    );
    assert_eq!(listed("create table n as select * from t"), "Read t+");
    assert_eq!(
        listed("create view n as select * from t join u on true"),
        "Read t+, Read u+"
    );
    assert_eq!(listed("select * from t tablesample bernoulli (10)"), "Read t+");
    assert_eq!(listed("table t union table u"), "Read t+, Read u+");
    assert_eq!(
        listed("select array(select k from t), 1 in (select k from u) order by (select 1 from loc)"),
        "Read t+, Read u+, Read loc"
    );
    assert_eq!(
        listed("select sum(k) filter (where exists (select 1 from u)) over (order by (select 1 from loc)) from t"),
        "Read t+, Read u+, Read loc"
    );
}

#[test]
fn substitutes() {
    let (out, replaced) = substitute("abcdef", &[(4..4, "-".into()), (1..2, "XYZ".into())]);
    assert_eq!(out, "aXYZcd-ef");
    assert_eq!(
        (
            replaced[0].at,
            replaced[0].length,
            replaced[1].at,
            replaced[1].original_at
        ),
        (1, 3, 6, 4)
    );
}

#[test]
fn maps_positions() {
    let sql = "select 'ö', nosuch from t where k = 5 and nix";
    let snapshot = snapshot();
    let Route::Forward(part) = analyzed(sql, &snapshot).route(&snapshot, &[text("")]) else {
        panic!()
    };
    for word in ["nosuch", "nix", "where"] {
        let position = |text: &str| text[..text.find(word).unwrap()].chars().count() as u32 + 1;
        assert_eq!(map_position(&part, position(&part.text)), position(sql), "{word}");
    }
    let child = part.text[..part.text.find("t1_r2").unwrap()].chars().count() as u32 + 1;
    assert_eq!(map_position(&part, child), sql.find("t where").unwrap() as u32);
}
