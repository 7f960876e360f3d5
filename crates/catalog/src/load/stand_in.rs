//! Views whose rows are those of one sharded table, row by row, are on every shard. A *stand-in* is that table as such a view shows
//! it: statements are routed by it as if the view were a table, and PostgreSQL does the rest where the rows are: rights, defaults,
//! WITH CHECK OPTION.
//!
//! `pgherd.view_source()` says of which views that is so. Those that call what only the home shard can answer, or have the
//! transaction's time in them, have no stand-in: they are expanded by gateways.

use super::body::words;
use super::{ByOid, Document};
use pgherd_model::functions::{HOME_STATE, is_advisory_lock};
use pgherd_model::{Column, Sharded, Table, TableKind, ThroughView};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Words of which each may mean the time of a statement or of its transaction.
const TIMES: [&str; 12] = [
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "today",
    "tomorrow",
    "yesterday",
    "clock_timestamp",
];

/// What a view shows of the one relation whose rows it has.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Source {
    relation: u32,
    /// by the number of the view's column, the number of the relation's column that it shows unchanged
    columns: Option<HashMap<i16, i16>>,
}

/// The views with stand-ins where they can have one.
pub(super) fn with_stand_ins(
    mut views: Vec<Table>,
    tables: &[Table],
    document: &Document,
    home_functions: &HashSet<String>,
) -> Vec<Table> {
    let by_name = |oid: u32, schema: &str, name: &str| {
        let found = tables
            .iter()
            .find(|t| *t.name.schema == *schema && *t.name.name == *name);
        found.map(|table| (oid, Arc::new(table.clone())))
    };
    let roots = document.tables.iter();
    let mut placed: ByOid<Arc<Table>> = roots.filter_map(|t| by_name(t.oid, &t.schema, &t.name)).collect();
    // A view over a view comes after it.
    loop {
        let before = placed.len();
        for entry in document.views.iter().filter(|v| v.source.is_some()) {
            if placed.contains_key(&entry.oid) {
                continue;
            }
            let of = views
                .iter_mut()
                .find(|v| *v.name.schema == *entry.schema && *v.name.name == *entry.name);
            let (Some(view), Some(source)) = (of, &entry.source) else {
                continue;
            };
            let made = placed
                .get(&source.relation)
                .and_then(|table| stand_in(view, table, source, home_functions));
            if let (Some(made), TableKind::View { stand_in, .. }) = (made, &mut view.kind) {
                let made = Arc::new(made);
                *stand_in = Some(made.clone());
                placed.insert(entry.oid, made);
            }
        }
        if placed.len() == before {
            return views;
        }
    }
}

fn stand_in(view: &Table, table: &Table, source: &Source, home_functions: &HashSet<String>) -> Option<Table> {
    let (TableKind::View { definition, .. }, TableKind::Sharded(sharded)) = (&view.kind, &table.kind) else {
        return None;
    };
    let is_elsewhere = |word: &String| {
        HOME_STATE.contains(&word.as_str())
            || is_advisory_lock(word)
            || TIMES.contains(&word.as_str())
            || home_functions.iter().any(|f| f.to_lowercase() == *word)
    };
    if words(definition).iter().any(is_elsewhere) {
        return None;
    }
    let shown = |column: &Column| {
        let number = source.columns.as_ref()?.get(&column.number)?;
        table.columns.iter().find(|c| c.number == *number)
    };
    let columns: Vec<Column> = view.columns.iter().map(|c| as_shown(c, shown(c))).collect();
    let name_of = |of: &Column| {
        view.columns
            .iter()
            .find(|c| shown(c).is_some_and(|s| s.number == of.number))
    };
    // Of a view over a view, the names that that one has for the key count as well.
    let other_names = view.columns.iter().filter_map(|column| {
        let of = shown(column)?;
        let place = sharded.place_in_key(&of.name)?;
        let is_first = name_of(of).is_some_and(|first| first.name == column.name);
        (!is_first || sharded.key[place] != of.name).then(|| (column.name.clone(), place))
    });
    let other_names: Vec<_> = other_names.collect();
    // No column has this name: what is not shown restricts nothing.
    let key_name = |name: &String| {
        let shown = table.column(name).and_then(name_of);
        shown.map_or_else(String::new, |c| c.name.clone())
    };
    let hidden = table.columns.iter().filter(|c| name_of(c).is_none());
    let no_insert = sharded.through_view.as_ref().and_then(|v| v.no_insert.clone());
    let no_insert = no_insert.or_else(|| hidden.into_iter().find_map(|c| unfilled(c, sharded)));
    Some(Table {
        name: view.name.clone(),
        columns,
        kind: TableKind::Sharded(Box::new(Sharded {
            key: sharded.key.iter().map(key_name).collect(),
            direct: false,
            unique: Vec::new(),
            through_view: Some(ThroughView {
                table: sharded
                    .through_view
                    .as_ref()
                    .map_or_else(|| table.name.clone(), |v| v.table.clone()),
                other_names,
                no_insert,
            }),
            ..(**sharded).clone()
        })),
    })
}

/// A view's column with what is filled in where an INSERT leaves it out: by the view's own default first.
fn as_shown(column: &Column, shown: Option<&Column>) -> Column {
    let Some(shown) = shown else { return column.clone() };
    let own = column.default.is_some();
    Column {
        default: column.default.clone().or_else(|| shown.default.clone()),
        not_null: shown.not_null,
        generated: shown.generated,
        identity: shown.identity.filter(|always| *always || !own),
        ..column.clone()
    }
}

/// Why a column that a view does not show cannot be filled where the row is.
fn unfilled(column: &Column, sharded: &Sharded) -> Option<String> {
    let default = column.default.as_deref().filter(|_| !column.generated)?;
    let computed = default.contains('(') || words(default).iter().any(|w| TIMES.contains(&w.as_str()));
    (computed || sharded.key.contains(&column.name)).then(|| {
        format!(
            "The view does not show column \"{}\", whose default decides where rows belong or is computed in one place.",
            column.name
        )
    })
}
