//! Declared partitions of sharded tables: `CREATE TABLE … PARTITION OF`, and their own ALTER and DETACH.
//!
//! A declared partition holds its rows on the shard that owns its range. The home shard has every declared partition by
//! name; where it is not the owner, an empty one with `CHECK (false)`, so that names are taken, `\d` shows it and nothing can be
//! written there by mistake.

use crate::alter_table::as_local;
use crate::bounds::Automatic;
use crate::convert;
use crate::copy_rows::copy_rows;
use crate::localize::localize;
use crate::ranges::{NewRange, colocation, write_range};
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{
    Bound, KeyBound, KeyType, Name, Range, RangeId, ServerError, ShardId, Sharded, SqlState, Table, TableKind,
    quote_literal,
};
use pgherd_sql::{Ddl, ObjectName};
use serde_json::json;
use std::sync::Arc;

/// The constraint of an empty stand-in on the home shard.
const ELSEWHERE: &str = "pgherd_elsewhere";

/// `CREATE TABLE name PARTITION OF parent FOR VALUES …`.
pub(crate) async fn create(
    work: &mut Work<'_, '_>,
    name: &ObjectName,
    parent: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let linked = work
        .sharded(parent)
        .map(|t| work.snapshot.linked(&t.name))
        .unwrap_or_default();
    let names = linked.iter().map(|t| &*t.name.name);
    work.announce(names.chain([name.name.as_str(), parent.name.as_str()]), text.text)
        .await?;
    let table = work.sharded(parent).ok_or_else(|| changed(parent))?;
    let full = crate::create_table::full_name(work, name).await?;
    if text.has(&["if", "not", "exists"]) && work.inspect(&full.to_string()).await?.is_some() {
        return work.on_home(text.text).await;
    }
    let shards = work.shards();
    work.lock(&shards, &[table.name.to_string()], "ACCESS EXCLUSIVE")
        .await?;
    let mut sharded = table.sharded().expect("just resolved").clone();
    if sharded.automatic {
        drop_automatic(work, &table.name, &mut sharded).await?;
    }
    // What turns out to be no range makes the linked tables local first.
    let (home, may_be_undone) = (work.home(), sharded.is_linked && table.may_yield());
    if may_be_undone {
        work.attempt(home).await?;
    }
    let tag = work.on_home(text.text).await?;
    let made = work.inspect(&full.to_string()).await?.ok_or_else(|| changed(name))?;
    let bounds = made
        .bound
        .as_deref()
        .and_then(|b| parse_for_values(b, &sharded.key_types));
    let bounds = bounds.filter(|_| made.kind == 'r');
    if bounds.is_none() && may_be_undone {
        work.undo(home).await?;
        return as_local(work, &table, no_range(made.kind), text).await;
    }
    if may_be_undone {
        work.keep(home).await?;
    }
    let Some((from, to)) = bounds else {
        localize(work, &table, no_range(made.kind)).await?;
        return Ok(tag);
    };
    let shard = owner_of_linked(work, &table, &from, &to)?.unwrap_or_else(|| least_used(&sharded, &shards));
    if shard != work.home() {
        stand_in(work, &full).await?;
        work.on(shard, text.text).await?;
    }
    declare(work, &sharded, &full, (from, to, shard)).await?;
    if sharded.is_linked {
        work.keep_children(&shards, std::slice::from_ref(&table.name)).await?;
    }
    Ok(tag)
}

/// Why a partition cannot be a range on a shard.
pub(crate) fn no_range(kind: char) -> &'static str {
    match kind {
        'p' => "it has a partition that is partitioned itself",
        'f' => "it has a partition on a foreign server",
        _ => "it has a DEFAULT partition",
    }
}

/// Brings a declared partition's rows to the home shard, and drops it where it was.
pub(crate) async fn return_rows(work: &mut Work<'_, '_>, range: &Range) -> Result<(), ServerError> {
    if range.shard == work.home() {
        return Ok(());
    }
    let child = range.child.to_string();
    let definition = work.definition(&range.child).await?;
    let columns = definition.copied_columns();
    work.on_home(&format!("ALTER TABLE {child} DROP CONSTRAINT {ELSEWHERE}"))
        .await?;
    let query = format!("SELECT {columns} FROM {child}");
    let target = (work.home(), child.as_str(), columns.as_str());
    // Triggers have seen these rows.
    let off = work.value(&switch_triggers(&range.child, false)).await?;
    let on = work.value(&switch_triggers(&range.child, true)).await?;
    if let Some(off) = off {
        work.on_home(&off).await?;
    }
    copy_rows(work, (range.shard, &query), target, definition.builtin_types).await?;
    if let Some(on) = on {
        work.on_home(&on).await?;
    }
    work.on(range.shard, &format!("DROP TABLE {child}")).await.map(drop)
}

/// Asks for the statements that switch a table's triggers off, or on again as they are now.
fn switch_triggers(table: &Name, on: bool) -> String {
    let action = match on {
        true => "'ENABLE ', CASE t.tgenabled WHEN 'R' THEN 'REPLICA ' WHEN 'A' THEN 'ALWAYS ' END",
        false => "'DISABLE '",
    };
    let table = quote_literal(&table.to_string());
    format!(
        "SELECT pg_catalog.string_agg(pg_catalog.concat('ALTER TABLE ', {table}, ' ', {action}, 'TRIGGER ', pg_catalog.quote_ident(t.tgname)), \
         '; ') FROM pg_catalog.pg_trigger t \
         WHERE t.tgrelid = {table}::pg_catalog.regclass AND NOT t.tgisinternal AND t.tgenabled <> 'D'"
    )
}

/// What the home shard has is not the real one.
pub(crate) async fn stand_in(work: &mut Work<'_, '_>, full: &Name) -> Result<(), ServerError> {
    let sql = format!("ALTER TABLE {full} ADD CONSTRAINT {ELSEWHERE} CHECK (false)");
    work.on_home(&sql).await.map(drop)
}

/// Writes a declared partition into the catalog.
pub(crate) async fn declare(
    work: &mut Work<'_, '_>,
    sharded: &Sharded,
    full: &Name,
    (from, to, shard): (KeyBound, KeyBound, ShardId),
) -> Result<(), ServerError> {
    let range = NewRange {
        id: RangeId(sharded.next_range),
        from,
        to,
        shard,
    };
    write_range(work, sharded.id, &range, full, true);
    let mut placed: Vec<_> = sharded
        .ranges
        .ranges()
        .iter()
        .map(|r| (r.from.clone(), r.to.clone(), r.shard))
        .collect();
    placed.push((range.from, range.to, shard));
    placed.sort_by(|a, b| a.0.cmp(&b.0));
    let number = colocation(&work.snapshot, sharded.id, &sharded.key_types, &placed);
    // Declared while plain tables are sharded of themselves, it is no more the user's wish than theirs are.
    let by_default =
        sharded.by_default || (sharded.automatic && work.session.distribution.automatic == Automatic::PrimaryKey);
    work.write(json!({
        "do": "set", "id": sharded.id.0, "automatic": false, "colocation": number, "by_default": by_default,
    }));
    work.renew_fence(sharded).await
}

/// The shard that has the keys of this range in the tables that foreign keys link with its table: where the new one belongs.
fn owner_of_linked(
    work: &Work<'_, '_>,
    table: &Table,
    from: &KeyBound,
    to: &KeyBound,
) -> Result<Option<ShardId>, ServerError> {
    let linked = work.snapshot.linked(&table.name);
    let others = linked.iter().skip(1).filter_map(|t| t.sharded());
    let overlapping = others
        .flat_map(|s| s.ranges.ranges())
        .filter(|r| r.from < *to && *from < r.to);
    let mut owners: Vec<_> = overlapping.map(|r| r.shard).collect();
    owners.sort();
    owners.dedup();
    match owners[..] {
        [] => Ok(None),
        [owner] => Ok(Some(owner)),
        _ => Err(ServerError::unsupported(
            format!(
                "this partition of \"{}\" would refer to rows, or be referred to from rows, of several shards",
                table.name.name
            ),
            "Declare the partitions of all tables that foreign keys link with it first, and add the foreign keys then.",
        )),
    }
}

pub(crate) fn changed(name: &ObjectName) -> ServerError {
    ServerError::new(
        SqlState::UNDEFINED_TABLE,
        format!("relation \"{}\" does not exist", name.name),
    )
}

/// The shard that owns the fewest of this table's ranges, so that partitions spread evenly.
pub(crate) fn least_used(sharded: &Sharded, shards: &[ShardId]) -> ShardId {
    let used = |shard: ShardId| sharded.ranges.ranges().iter().filter(|r| r.shard == shard).count();
    shards
        .iter()
        .copied()
        .min_by_key(|s| (used(*s), *s))
        .unwrap_or(ShardId(1))
}

/// From the first declared partition on, only declared bounds exist: pgherd's own ranges go, if they are empty.
pub(crate) async fn drop_automatic(
    work: &mut Work<'_, '_>,
    parent: &Name,
    sharded: &mut Sharded,
) -> Result<(), ServerError> {
    for range in sharded.ranges.ranges().to_vec() {
        let sql = format!("SELECT EXISTS (SELECT FROM {})", range.child);
        let results = work.on(range.shard, &sql).await?;
        if results.last().and_then(|r| r.text(0, 0)) != Some("f") {
            return Err(ServerError::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!(
                    "cannot declare partitions of table \"{}\", which has rows in ranges of pgherd's own",
                    parent.name
                ),
            )
            .with_hint("Declare partitions before there are rows, or split ranges with CALL pgherd.split(…)."));
        }
        work.on(range.shard, &format!("DROP TABLE {}", range.child)).await?;
        work.write(json!({"do": "drop_range", "table": sharded.id.0, "id": range.id.0}));
    }
    sharded.ranges = pgherd_model::RangeMap::default();
    Ok(())
}

/// `FOR VALUES FROM (…) TO (…)` as PostgreSQL prints it.
pub(crate) fn parse_for_values(text: &str, key_types: &[KeyType]) -> Option<(KeyBound, KeyBound)> {
    let rest = text.strip_prefix("FOR VALUES FROM (")?;
    let (from, rest) = parse_list(rest, key_types)?;
    let rest = rest.strip_prefix(" TO (")?;
    let (to, rest) = parse_list(rest, key_types)?;
    rest.is_empty().then_some((from, to))
}

/// The values up to the closing parenthesis, and what is behind it.
fn parse_list<'t>(mut rest: &'t str, key_types: &[KeyType]) -> Option<(KeyBound, &'t str)> {
    let mut bounds = Vec::new();
    for key_type in key_types {
        if let Some(after) = rest.strip_prefix("MINVALUE") {
            bounds.push(Bound::Min);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("MAXVALUE") {
            bounds.push(Bound::Max);
            rest = after;
        } else {
            let (value, after) = parse_value(rest)?;
            bounds.push(Bound::Value(key_type.parse_text(&value)?));
            rest = after;
        }
        rest = rest.strip_prefix(", ").unwrap_or(rest);
    }
    Some((KeyBound(bounds), rest.strip_prefix(')')?))
}

/// A constant: `'text'`, `E'…'` is not printed for keys, a number plain or quoted.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text.find([',', ')'])?;
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices().peekable());
    while let Some((at, c)) = chars.next() {
        if c != '\'' {
            value.push(c);
        } else if chars.peek().is_some_and(|(_, next)| *next == '\'') {
            chars.next();
            value.push('\'');
        } else {
            return Some((value, &quoted[at + 1..]));
        }
    }
    None
}

/// The sharded table and the range of a declared partition.
pub(crate) fn owner(work: &Work<'_, '_>, partition: &Table) -> Option<(Arc<Table>, Range)> {
    let TableKind::Partition { parent, range } = &partition.kind else {
        return None;
    };
    let parent = work.snapshot.table(parent)?.clone();
    let range = parent.sharded()?.ranges.get(*range)?.clone();
    Some((parent, range))
}

/// The first column whose default is not the parent's, which INSERT into the parent would take here and PostgreSQL would not.
fn other_defaults(child: &Name, parent: &Name) -> String {
    let of = |table: &Name| {
        let table = quote_literal(&table.to_string());
        format!(
            "(SELECT a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attribute a \
             JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
             WHERE a.attrelid = {table}::pg_catalog.regclass)"
        )
    };
    format!("{} EXCEPT {} LIMIT 1", of(child), of(parent))
}

/// ALTER TABLE of a declared partition: what does not make it differ from its parent.
pub(crate) async fn alter(work: &mut Work<'_, '_>, ddl: &Ddl, text: &StatementText<'_>) -> Result<String, ServerError> {
    let name = &ddl.relations[0];
    let harmless = [
        &["rename", "to"][..],
        &["set", "("],
        &["reset"],
        &["cluster"],
        &["set", "without", "cluster"],
        &["owner", "to"],
        &["set", "statistics"],
        &["replica", "identity"],
        // Of its own, or one that its parent has already.
        &["add", "constraint"],
        &["drop", "constraint"],
        &["set", "default"],
    ];
    let is_harmless = harmless
        .iter()
        .any(|words| text.has(&words[..1]) && words.iter().all(|w| *w == "(" || text.has(&[w])));
    let differs = format!("its partition \"{}\" is not like the others", name.name);
    if !is_harmless || text.has(&["references"]) {
        if let Some(whole) = work.yielding(name) {
            return as_local(work, &whole, &differs, text).await;
        }
        return Err(ServerError::unsupported(
            format!("cannot change partition \"{}\" on its own", name.name),
            "Change the sharded table, and its partitions follow.",
        ));
    }
    if text.mentions(ELSEWHERE) {
        let message = format!(
            "constraint \"{ELSEWHERE}\" of relation \"{}\" does not exist",
            name.name
        );
        return Err(ServerError::new(SqlState::UNDEFINED_OBJECT, message));
    }
    let renamed = text.new_name();
    let mut names = vec![name.name.as_str()];
    names.extend(renamed.as_deref());
    work.announce(names, text.text).await?;
    let partition = work.resolve(name).ok_or_else(|| changed(name))?;
    let (parent, range) = owner(work, &partition).ok_or_else(|| changed(name))?;
    let tag = work.on_home(text.text).await?;
    if text.has(&["set", "default"]) && work.value(&other_defaults(&range.child, &parent.name)).await?.is_some() {
        if parent.may_yield() {
            convert::refuse_to_free(work, &parent)?;
            convert::free(work, &parent.name, &differs).await?;
            return Ok(tag);
        }
        return Err(ServerError::unsupported(
            format!(
                "partition \"{}\" cannot have another default than its parent",
                name.name
            ),
            "Change the sharded table, and its partitions follow.",
        ));
    }
    if range.shard != work.home() {
        work.on(range.shard, text.text).await?;
    }
    if let (Some(new), Some(sharded)) = (renamed, parent.sharded()) {
        work.write(json!({
            "do": "name_range", "table": sharded.id.0, "id": range.id.0, "child_schema": *range.child.schema, "child": new,
        }));
    }
    Ok(tag)
}

/// `ALTER TABLE parent DETACH PARTITION name`: it becomes a local table, so its rows move to the home shard.
pub(crate) async fn detach(
    work: &mut Work<'_, '_>,
    ddl: &Ddl,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    let (parent, Some(name)) = (&ddl.relations[0], &ddl.partition) else {
        return Err(ServerError::internal("DETACH PARTITION without a partition"));
    };
    if text.has(&["attach", "partition"]) {
        return crate::attach::attach(work, parent, name, text).await;
    }
    if ddl.concurrently || text.has(&["concurrently"]) || text.has(&["finalize"]) {
        return Err(ServerError::unsupported(
            format!(
                "cannot detach partitions of sharded table \"{}\" concurrently",
                parent.name
            ),
            "Leave out CONCURRENTLY.",
        ));
    }
    work.announce([name.name.as_str(), parent.name.as_str()], text.text)
        .await?;
    let table = work.sharded(parent).ok_or_else(|| changed(parent))?;
    let shards = work.shards();
    work.lock(&shards, &[table.name.to_string()], "ACCESS EXCLUSIVE")
        .await?;
    let found = work.resolve(name).and_then(|p| owner(work, &p));
    if found.is_some() && table.sharded().is_some_and(|s| s.is_linked) {
        if table.may_yield() {
            let why = format!(
                "its partition \"{}\" is to be a table of its own, and foreign keys link it with others",
                name.name
            );
            return as_local(work, &table, &why, text).await;
        }
        return Err(ServerError::unsupported(
            format!(
                "cannot detach partition \"{}\" while foreign keys link its table with others",
                name.name
            ),
            "Drop the foreign keys first: a local table's keys cannot be checked across ranges.",
        ));
    }
    // Whatever else is named, PostgreSQL says what is wrong with it.
    let tag = work.on_home(text.text).await?;
    let (Some((_, range)), Some(sharded)) = (found, table.sharded()) else {
        return Ok(tag);
    };
    return_rows(work, &range).await?;
    work.write(json!({"do": "drop_range", "table": sharded.id.0, "id": range.id.0}));
    work.write(json!({"do": "set", "id": sharded.id.0, "colocation": sharded.id.0}));
    work.renew_fence(sharded).await?;
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_model::KeyValue;

    #[test]
    fn bounds_are_read_as_postgresql_prints_them() {
        let (from, to) = parse_for_values(
            "FOR VALUES FROM ('it''s, (so)', MINVALUE) TO ('z', 5)",
            &[KeyType::Text, KeyType::Int],
        )
        .unwrap();
        assert_eq!(from.0[0], Bound::Value(KeyValue::Text("it's, (so)".into())));
        assert_eq!(from.0[1], Bound::Min);
        assert_eq!(to.0[1], Bound::Value(KeyValue::Int(5)));
        let (from, _) = parse_for_values("FOR VALUES FROM ('-3') TO (MAXVALUE)", &[KeyType::Int]).unwrap();
        assert_eq!(from.0[0], Bound::Value(KeyValue::Int(-3)));
        assert!(parse_for_values("DEFAULT", &[KeyType::Int]).is_none());
    }
}
