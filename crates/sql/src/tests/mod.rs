//! Routes as text: each test gives a statement and where it goes.

mod fixture;
pub(crate) mod fuzz;
mod insert;
mod locks;
mod noting;
mod oracle;
mod point;
mod properties;
mod relations;
mod select;
mod statements;
mod timing;
mod write;

use crate::{Analysis, Merge, ParameterValue, Part, Route, analyze, parse};
use fixture::{path, snapshot};
use pgherd_model::Snapshot;

/// A text-format parameter without a declared type.
pub(crate) fn text(value: &str) -> ParameterValue<'_> {
    ParameterValue {
        bytes: Some(value.as_bytes()),
        binary: false,
        type_oid: 0,
    }
}

pub(crate) fn analyzed(sql: &str, snapshot: &Snapshot) -> Analysis {
    let parsed = parse(sql).unwrap();
    assert_eq!(parsed.len(), 1, "{sql}");
    analyze(&parsed[0], sql, snapshot, &path(), &|name| name == "temp_t", &[]).unwrap()
}

/// Of what runs in the statement's place, where something does.
pub(crate) fn route_with(sql: &str, parameters: &[ParameterValue]) -> String {
    let snapshot = snapshot();
    let mut analysis = analyzed(sql, &snapshot);
    if let Some(instead) = analysis.instead.clone() {
        analysis = analyzed(&instead.text, &snapshot);
    }
    show(&analysis.route(&snapshot, parameters))
}

/// `shard: text [fences] {parameters}`, one line for each part.
pub(crate) fn show(route: &Route) -> String {
    match route {
        Route::Forward(part) => show_part(part),
        Route::Scatter { parts, merge } => {
            let lines: Vec<_> = parts.iter().map(show_part).collect();
            let merge = match merge {
                Merge::Concatenate => String::new(),
                Merge::Interleave(order) => format!("\ninterleave {order:?}"),
            };
            lines.join("\n") + &merge
        }
        Route::Defaults { query, .. } => format!("defaults: {query}"),
        Route::Plan => "plan".into(),
        Route::GatherWrite => "gather write".into(),
        Route::Refuse(error) => format!("refuse: {}", error.fields().message),
    }
}

fn show_part(part: &Part) -> String {
    let mut out = format!("{}: {}", part.shard, part.text);
    if !part.fences.is_empty() {
        out += &format!(
            " [{}]",
            part.fences.join(", ").replace("\"pgherd_data\".", "").replace('"', "")
        );
    }
    if let Some(numbers) = &part.parameters {
        out += &format!(" {numbers:?}");
    }
    out
}

/// Each statement and its route. Children are shown as they are: `"pgherd_data"."t1_r2"`.
pub(crate) fn check(cases: &[(&str, &str)]) {
    for (sql, expected) in cases {
        assert_eq!(route_with(sql, &[]), *expected, "\n{sql}");
    }
}

/// Only where it goes: `1`, `2 fenced`, `1,3`, `plan`, `refuse`.
pub(crate) fn place(sql: &str, parameters: &[ParameterValue]) -> String {
    let snapshot = snapshot();
    let one = |part: &Part| {
        let fenced = if part.fences.is_empty() { "" } else { " fenced" };
        format!("{}{fenced}", part.shard)
    };
    match analyzed(sql, &snapshot).route(&snapshot, parameters) {
        Route::Forward(part) => one(&part),
        Route::Scatter { parts, .. } => parts.iter().map(one).collect::<Vec<_>>().join(","),
        Route::Defaults { .. } => "defaults".into(),
        Route::Plan => "plan".into(),
        Route::GatherWrite => "gather write".into(),
        Route::Refuse(_) => "refuse".into(),
    }
}

pub(crate) fn check_places(cases: &[(&str, &str)]) {
    for (sql, expected) in cases {
        assert_eq!(place(sql, &[]), *expected, "\n{sql}");
    }
}
