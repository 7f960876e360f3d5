//! The names that pgherd gives to children, fences and their indexes on the shards, and back to the user's names in errors.

use pgherd_model::{Name, RangeId, ServerError, Sharded, Snapshot, SqlState, Table, TableId};
use std::sync::Arc;

/// The schema of children and fences.
const DATA_SCHEMA: &str = "pgherd_data";

/// The child of a range: `pgherd_data.t42_r17`.
pub fn child_name(table: TableId, range: RangeId) -> Name {
    Name::new(DATA_SCHEMA, &format!("t{}_r{}", table.0, range.0))
}

/// The fence of a table: `pgherd_data.fence_42_3`.
pub fn fence_name(table: TableId, number: u32) -> Name {
    Name::new(DATA_SCHEMA, &format!("fence_{}_{number}", table.0))
}

/// Puts the parent's name and its constraints' names where a shard's error names a child of pgherd's, as PostgreSQL on one
/// server would have said it. Everything else stays.
pub fn restore_parent_names(error: &mut ServerError, snapshot: &Snapshot) {
    let fields = error.fields_mut();
    if let Some(detail) = fields.detail.as_ref().and_then(|text| restore(text, snapshot)) {
        fields.detail = Some(detail);
        tell_once(error);
    }
    let fields = error.fields_mut();
    let texts = [Some(&mut fields.message), fields.hint.as_mut()];
    for text in texts.into_iter().flatten() {
        if let Some(restored) = restore(text, snapshot) {
            *text = restored;
        }
    }
    let child = fields.other.iter().find(|(l, _)| *l == b't').map(|(_, t)| t.clone());
    let Some((table, _)) = child.as_deref().and_then(|c| parent(c, snapshot)) else {
        // An index error may name no table.
        for (_, text) in fields.other.iter_mut().filter(|(l, _)| *l == b'n' || *l == b'W') {
            if let Some(restored) = restore(text, snapshot) {
                *text = restored;
            }
        }
        return;
    };
    for (letter, text) in &mut fields.other {
        match letter {
            b's' => *text = table.name.schema.to_string(),
            b't' => *text = table.name.name.to_string(),
            b'n' | b'W' => {
                if let Some(restored) = restore(text, snapshot) {
                    *text = restored;
                }
            }
            _ => {}
        }
    }
}

/// What depends on something, and what is dropped with it, PostgreSQL lists in the detail: a table and its ranges are one there.
fn tell_once(error: &mut ServerError) {
    let fields = error.fields_mut();
    let Some(detail) = &fields.detail else { return };
    let mut lines: Vec<&str> = Vec::new();
    for line in detail.lines() {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let all = detail.lines().count();
    if lines.len() == all {
        return;
    }
    let counted = fields.message == format!("drop cascades to {all} other objects");
    match lines.as_slice() {
        [only] if counted => {
            fields.message = (*only).to_owned();
            fields.detail = None;
        }
        lines => {
            if counted {
                fields.message = format!("drop cascades to {} other objects", lines.len());
            }
            fields.detail = Some(lines.join("\n"));
        }
    }
}

/// Where pgherd made the ranges, the table is none of partitions to its user: a NULL in a NOT NULL column of the key breaks
/// NOT NULL, where PostgreSQL says that there is no partition for it.
pub fn restore_not_null(error: &mut ServerError, snapshot: &Snapshot) {
    let fields = error.fields_mut();
    if fields.code != SqlState::CHECK_VIOLATION || !fields.message.starts_with("no partition of relation") {
        return;
    }
    let of = |letter| fields.other.iter().find(|(l, _)| *l == letter).map(|(_, t)| t.as_str());
    let (Some(schema), Some(name)) = (of(b's'), of(b't')) else {
        return;
    };
    let table = snapshot.table(&Name::new(schema, name));
    let Some((table, sharded)) = table.and_then(|t| Some((t, t.sharded()?))).filter(|(_, s)| s.automatic) else {
        return;
    };
    // `Partition key of the failing row contains (a, b) = (1, null).`; long values are cut, NULLs are not.
    let detail = fields.detail.as_deref().unwrap_or_default();
    let values = detail.rsplit_once(" = (").map_or("", |(_, values)| values);
    let values: Vec<_> = values.trim_end_matches(").").split(", ").collect();
    if values.len() != sharded.key.len() {
        return;
    }
    let is_null = |column: &str| table.column(column).is_some_and(|c| c.not_null);
    let mut nulls = sharded.key.iter().zip(values).filter(|(_, value)| *value == "null");
    let Some((column, _)) = nulls.find(|(column, _)| is_null(column)) else {
        return;
    };
    fields.code = SqlState::NOT_NULL_VIOLATION;
    fields.message = format!("null value in column \"{column}\" of relation \"{name}\" violates not-null constraint");
    fields.detail = None;
    fields.other.push((b'c', column.clone()));
}

/// Replaces every child's and child index's name in a text; None when there is none.
fn restore(text: &str, snapshot: &Snapshot) -> Option<String> {
    let (mut out, mut rest, mut changed) = (String::with_capacity(text.len()), text, false);
    while let Some(at) = rest.find('t') {
        let starts_word = out.is_empty() && at == 0
            || !rest[..at]
                .chars()
                .next_back()
                .or(out.chars().next_back())
                .is_some_and(is_word);
        let candidate = &rest[at..];
        let end = name_end(candidate);
        match (starts_word && end > 1)
            .then(|| parent(&candidate[..end], snapshot))
            .flatten()
        {
            Some((table, index)) => {
                out.push_str(&rest[..at]);
                let name = index.unwrap_or_else(|| table.name.name.to_string());
                rest = put_without_schema(&mut out, &name, &candidate[end..]);
                changed = true;
            }
            None => {
                out.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// Puts a name behind what is there, without the schema in front of it (`pgherd_data."t1_r2$t_pkey"`, where PostgreSQL lists what
/// depends on something), and with quotes then only where it needs them. Returns the rest without a quote that was its own.
fn put_without_schema<'r>(out: &mut String, name: &str, rest: &'r str) -> &'r str {
    let bare = out.trim_end_matches('"').len();
    if !out[..bare].ends_with(&format!("{DATA_SCHEMA}.")) {
        out.push_str(name);
        return rest;
    }
    let behind = if bare < out.len() { rest.strip_prefix('"') } else { None };
    out.truncate(bare - DATA_SCHEMA.len() - 1);
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let is_plain = name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit() || c == '$');
    match is_plain {
        true => out.push_str(name),
        false => out.push_str(&pgherd_model::quote_identifier(name)),
    }
    behind.unwrap_or(rest)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// Where a name ends: at the closing quote where it is quoted, as in all of PostgreSQL's messages.
fn name_end(text: &str) -> usize {
    let word = text.find(|c: char| !is_word(c) && c != '#').unwrap_or(text.len());
    match text.find('"') {
        // `t1_r2$my index"`: an index's name may have any characters.
        Some(quote) if text[..word].contains('$') => quote,
        _ => word,
    }
}

/// The sharded table of a child `t1_r2`, or of a child's index `t1_r2$name` or `t1_r2_pkey`, and then that index's parent.
fn parent<'s>(name: &str, snapshot: &'s Snapshot) -> Option<(&'s Arc<Table>, Option<String>)> {
    let rest = name.strip_prefix('t')?;
    let (table, rest) = rest.split_once("_r")?;
    let (range, index) = match rest.split_once('$') {
        Some((range, index)) => (range, Some(index)),
        None => (rest, None),
    };
    // One that is only being made: PostgreSQL puts what it is of behind the table's name.
    let (range, made) = match range.split_once('_') {
        Some((range, made)) if index.is_none() => (range, Some(made)),
        _ => (range, None),
    };
    let (table, _): (u32, u32) = (table.parse().ok()?, range.parse().ok()?);
    let table = snapshot
        .sharded()
        .find(|t| t.sharded().is_some_and(|s| s.id == TableId(table)))?;
    if let Some(made) = made {
        return Some((table, Some(format!("{}_{made}", table.name.name))));
    }
    let index = index.map(|i| match i.strip_prefix('#') {
        Some(digest) => table
            .sharded()
            .and_then(|s| key_by_digest(table, digest, snapshot).or_else(|| by_digest(s, digest)))
            .unwrap_or_else(|| i.to_owned()),
        None => i.to_owned(),
    });
    Some((table, index))
}

/// A unique index whose name was too long to be part of another.
fn by_digest(sharded: &Sharded, digest: &str) -> Option<String> {
    let mut long = sharded.unique.iter().map(|(name, _)| name).filter(|n| n.len() > 40);
    // One such index is the usual case; with more, the digest would have to be computed, and md5 is not linked for that.
    match (long.next(), long.next(), digest.is_empty()) {
        (Some(name), None, false) => Some(name.clone()),
        _ => None,
    }
}

/// A foreign key that refers to the table, whose name was too long to be part of another.
fn key_by_digest(table: &Table, digest: &str, snapshot: &Snapshot) -> Option<String> {
    let mut keys = snapshot.referencing(&table.name).map(|(_, key)| key);
    keys.find(|key| key.digest == digest).map(|key| key.name.clone())
}

#[cfg(test)]
mod tests;
