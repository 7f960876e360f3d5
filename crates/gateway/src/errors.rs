//! A shard's error as the client must see it: the parent's names instead of a child's, positions in the client's text.

use pgherd_model::{Name, ServerError, Snapshot, Table};
use std::sync::Arc;

/// The schema that holds ranges' children and fences.
pub(crate) const DATA_SCHEMA: &str = "pgherd_data";

/// Replaces names of children (`t42_r17`, `t42_r17_pkey`) in all fields by those of the parent.
pub(crate) fn name_parent(mut error: ServerError, snapshot: &Snapshot) -> ServerError {
    let fields = error.fields();
    let texts = [Some(&fields.message), fields.detail.as_ref(), fields.hint.as_ref()];
    let mentions = texts.into_iter().flatten().chain(fields.other.iter().map(|(_, v)| v)).any(|t| child_at(t).is_some());
    if !mentions {
        return error;
    }
    let fields = error.fields_mut();
    fields.message = replace_children(&fields.message, snapshot);
    fields.detail = fields.detail.take().map(|d| replace_children(&d, snapshot));
    fields.hint = fields.hint.take().map(|h| replace_children(&h, snapshot));
    let parent = fields.other.iter().filter(|(l, _)| *l == b't').find_map(|(_, v)| parent_of(v, snapshot));
    for (letter, value) in &mut fields.other {
        match (letter, &parent) {
            (b's', Some(table)) if value == DATA_SCHEMA => *value = table.name.schema.to_string(),
            _ => *value = replace_children(value, snapshot),
        }
    }
    error
}

/// Whether an error says that a child or fence is not there (any more): the route was stale.
pub(crate) fn names_missing_child(error: &ServerError) -> bool {
    error.sqlstate() == pgherd_model::SqlState::UNDEFINED_TABLE && error.fields().message.contains(DATA_SCHEMA)
}

/// The first `t<digits>_r<digits>` in a text, as a byte span.
fn child_at(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(offset) = text[from..].find('t') {
        let start = from + offset;
        from = start + 1;
        let before = start.checked_sub(1).map(|i| bytes[i]);
        if before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        let table = digits(&bytes[start + 1..]);
        let rest = &bytes[start + 1 + table..];
        if table == 0 || !rest.starts_with(b"_r") {
            continue;
        }
        let range = digits(&rest[2..]);
        if range > 0 {
            return Some((start, start + 1 + table + 2 + range));
        }
    }
    None
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

/// The sharded table that a child's name (`t42_r17…`) belongs to.
fn parent_of<'a>(child: &str, snapshot: &'a Snapshot) -> Option<&'a Arc<Table>> {
    let number: u32 = child.strip_prefix('t')?.split("_r").next()?.parse().ok()?;
    snapshot.sharded().find(|t| t.sharded().is_some_and(|s| s.id.0 == number))
}

fn replace_children(text: &str, snapshot: &Snapshot) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((start, end)) = child_at(rest) {
        let child = &rest[start..end];
        let after = &rest[end..];
        let suffix = after.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        match parent_of(child, snapshot) {
            Some(table) => {
                // «pgherd_data.t1_r2» and «"pgherd_data"."t1_r2"» are the parent's qualified name.
                let before = rest[..start].strip_suffix("pgherd_data.").unwrap_or(&rest[..start]);
                out.push_str(before);
                out.push_str(&parent_object(table, &after[..suffix]));
            }
            None => out.push_str(&rest[..end + suffix]),
        }
        rest = &after[suffix..];
    }
    out + rest
}

/// The parent's name for what is called child + `suffix` on the shard: the table itself, or a unique constraint
/// (PostgreSQL names a child's by its own name, the columns and `_key`, or `_pkey`).
fn parent_object(table: &Table, suffix: &str) -> String {
    if suffix.is_empty() {
        return table.name.name.to_string();
    }
    let unique = table.sharded().map(|s| s.unique.as_slice()).unwrap_or_default();
    let by_columns = unique.iter().find(|(_, columns)| suffix == format!("_{}_key", columns.join("_")));
    let by_end = || unique.iter().find(|(name, _)| suffix == "_pkey" && name.ends_with("_pkey"));
    let only = || unique.first().filter(|_| unique.len() == 1);
    match by_columns.or_else(by_end).or_else(only) {
        Some((name, _)) => name.clone(),
        None => format!("{}{suffix}", table.name.name),
    }
}

/// A relation's name as error messages show it.
pub(crate) fn display(name: &Name) -> String {
    format!("{}.{}", name.schema, name.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_found_in_text() {
        assert_eq!(child_at("relation \"t42_r17\" x"), Some((10, 17)));
        assert_eq!(child_at("constraint \"t1_r2_pkey\""), Some((12, 17)));
        assert_eq!(child_at("at1_r2 t_r t1r2"), None);
    }
}
