//! Making a table's ranges: the parent on every shard, a child on each owner, the fence, the catalog's rows.

use crate::inspect::Definition;
use crate::work::Work;
use pgherd_catalog::{child_name, fence_name};
use pgherd_model::{
    Bound, KeyBound, KeyType, Name, Range, RangeId, ServerError, ShardId, Snapshot, TableId, quote_literal,
};
use serde_json::{Value, json};

/// A range to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewRange {
    pub id: RangeId,
    pub from: KeyBound,
    pub to: KeyBound,
    pub shard: ShardId,
}

/// A new sharded table.
pub(crate) struct NewTable<'a> {
    pub id: TableId,
    pub name: Name,
    pub key_types: Vec<KeyType>,
    pub ranges: Vec<NewRange>,
    pub by_default: bool,
    /// storage options of the children
    pub options: &'a [String],
    /// the colocation number of a table that it is to lie beside for good; else that of any with equal ranges
    pub beside: Option<u32>,
}

/// Ranges over all keys: neighbours on different shards where there are splits, else one range where there are fewest.
pub(crate) fn automatic_ranges(
    bounds: Vec<(KeyBound, KeyBound)>,
    snapshot: &Snapshot,
    shards: &[ShardId],
) -> Vec<NewRange> {
    let single = bounds.len() == 1;
    bounds
        .into_iter()
        .enumerate()
        .map(|(i, (from, to))| NewRange {
            id: RangeId(i as u32 + 1),
            from,
            to,
            shard: if single {
                emptiest(snapshot, shards)
            } else {
                shards[i % shards.len()]
            },
        })
        .collect()
}

/// The shard with the fewest ranges of all tables.
fn emptiest(snapshot: &Snapshot, shards: &[ShardId]) -> ShardId {
    let count = |shard: ShardId| {
        let tables = snapshot.sharded().filter_map(|t| t.sharded());
        tables
            .map(|s| s.ranges.ranges().iter().filter(|r| r.shard == shard).count())
            .sum::<usize>()
    };
    shards
        .iter()
        .copied()
        .min_by_key(|s| (count(*s), *s))
        .unwrap_or(ShardId(1))
}

/// The number of a table with the same key types and bounds on the same shards, or else this table's own.
pub(crate) fn colocation(
    snapshot: &Snapshot,
    own: TableId,
    key_types: &[KeyType],
    ranges: &[(KeyBound, KeyBound, ShardId)],
) -> u32 {
    snapshot
        .sharded()
        .filter_map(|t| t.sharded())
        .find(|s| {
            let theirs = s.ranges.ranges();
            s.id != own
                && s.key_types == key_types
                && theirs.len() == ranges.len()
                && theirs
                    .iter()
                    .zip(ranges)
                    .all(|(a, b)| a.from == b.0 && a.to == b.1 && a.shard == b.2)
        })
        .map_or(own.0, |s| s.colocation)
}

/// A bound as the catalog stores it.
pub(crate) fn stored_bound(bound: &KeyBound) -> Vec<String> {
    let column = |b: &Bound| match b {
        Bound::Min => "<".to_owned(),
        Bound::Max => ">".to_owned(),
        Bound::Value(v) => format!("={}", v.to_text()),
    };
    bound.0.iter().map(column).collect()
}

/// `FOR VALUES FROM (…) TO (…)`. MINVALUE and MAXVALUE go on to the last column, as PostgreSQL demands.
pub(crate) fn for_values(from: &KeyBound, to: &KeyBound) -> String {
    let text = |bound: &KeyBound| {
        let mut infinite = None;
        let parts: Vec<_> = bound
            .0
            .iter()
            .map(|b| {
                let b = infinite.unwrap_or(b);
                if !matches!(b, Bound::Value(_)) {
                    infinite = Some(b);
                }
                match b {
                    Bound::Min => "MINVALUE".to_owned(),
                    Bound::Max => "MAXVALUE".to_owned(),
                    Bound::Value(v) => quote_literal(&v.to_text()),
                }
            })
            .collect();
        parts.join(", ")
    };
    format!("FOR VALUES FROM ({}) TO ({})", text(from), text(to))
}

/// The same of a range of the catalog.
pub(crate) fn for_values_of(range: &Range) -> String {
    for_values(&range.from, &range.to)
}

/// Makes children under their parents, with the parents' owner and grants. `options` are storage options.
pub(crate) async fn make_children(
    work: &mut Work<'_, '_>,
    parent: &Name,
    table: TableId,
    ranges: &[NewRange],
    options: &[String],
) -> Result<(), ServerError> {
    let with = if options.is_empty() {
        String::new()
    } else {
        format!(" WITH ({})", options.join(", "))
    };
    for shard in work.shards() {
        let own: Vec<_> = ranges.iter().filter(|r| r.shard == shard).collect();
        if own.is_empty() {
            continue;
        }
        let (mut statements, mut adopted) = (Vec::new(), Vec::new());
        for range in own {
            let child = child_name(table, range.id).name;
            // Made beside the parent, where the client may make tables; the service role then moves it.
            let made = format!("pgherd_{child}");
            let full = Name::new(&parent.schema, &made);
            let values = for_values(&range.from, &range.to);
            statements.push(format!("CREATE TABLE {full} PARTITION OF {parent} {values}{with}"));
            adopted.push(json!({"schema": *parent.schema, "from": made, "to": *child}));
        }
        work.on(shard, &statements.join("; ")).await?;
        work.signed(shard, "adopt", &Value::Array(adopted).to_string()).await?;
    }
    let mut owners: Vec<_> = ranges.iter().map(|r| r.shard).collect();
    owners.sort();
    owners.dedup();
    work.keep_children(&owners, std::slice::from_ref(parent)).await
}

/// Rows that only move are not new: until [`wake_triggers`] is given what this returns, no trigger fires for them.
pub(crate) async fn silence_triggers(
    work: &mut Work<'_, '_>,
    table: TableId,
    ranges: &[NewRange],
) -> Result<Vec<(ShardId, String)>, ServerError> {
    let mut to_wake = Vec::new();
    for range in ranges {
        let child = child_name(table, range.id).to_string();
        let asked = format!(
            "SELECT pg_catalog.string_agg(pg_catalog.format('ALTER TABLE %s %s TRIGGER %I', tgrelid::pg_catalog.regclass, \
             CASE tgenabled WHEN 'O' THEN 'ENABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, tgname), '; ') \
             FROM pg_catalog.pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgrelid = {}::pg_catalog.regclass",
            quote_literal(&child)
        );
        let results = work.on(range.shard, &asked).await?;
        if let Some(wake) = results.last().and_then(|r| r.text(0, 0)) {
            to_wake.push((range.shard, wake.to_owned()));
            work.on(range.shard, &format!("ALTER TABLE {child} DISABLE TRIGGER USER"))
                .await?;
        }
    }
    Ok(to_wake)
}

/// Lets the triggers fire again that [`silence_triggers`] has silenced.
pub(crate) async fn wake_triggers(work: &mut Work<'_, '_>, to_wake: Vec<(ShardId, String)>) -> Result<(), ServerError> {
    for (shard, sql) in to_wake {
        work.on(shard, &sql).await?;
    }
    Ok(())
}

/// Everything of a new table but its parent on the home shard, which exists: parents elsewhere, children, fences, catalog.
pub(crate) async fn establish(
    work: &mut Work<'_, '_>,
    table: &NewTable<'_>,
    definition: &Definition,
    partition_key: &str,
) -> Result<(), ServerError> {
    let mut statements = definition.create_sequences();
    statements.extend(definition.create(&table.name, Some(partition_key)));
    statements.extend(definition.own_sequences(&table.name));
    statements.extend(definition.grant(&table.name, &work.transaction.who().role));
    let (others, before) = (work.others(), work.notice_count());
    work.on_each(&others, &statements.join("; ")).await?;
    // The sequences may be there already, which is not news to the client.
    work.truncate_notices(before);
    let payload = json!({"create": [*fence_name(table.id, 1).name], "drop": []}).to_string();
    for shard in work.shards() {
        work.signed(shard, "change_fences", &payload).await?;
    }
    make_children(work, &table.name, table.id, &table.ranges, table.options).await?;
    work.close_sequences(&[table.name.to_string()]).await?;
    let placed: Vec<_> = table
        .ranges
        .iter()
        .map(|r| (r.from.clone(), r.to.clone(), r.shard))
        .collect();
    let equal = || colocation(&work.snapshot, table.id, &table.key_types, &placed);
    let colocation = table.beside.unwrap_or_else(equal);
    work.write(json!({
        "do": "table", "id": table.id.0, "relation": table.name.to_string(), "automatic": true,
        "by_default": table.by_default, "colocation": colocation, "fence": 1,
    }));
    for range in &table.ranges {
        write_range(work, table.id, range, &child_name(table.id, range.id), false);
    }
    Ok(())
}

/// The catalog's row of a range.
pub(crate) fn write_range(work: &mut Work<'_, '_>, table: TableId, range: &NewRange, child: &Name, declared: bool) {
    work.write(json!({
        "do": "range", "table": table.0, "id": range.id.0, "lower": stored_bound(&range.from),
        "upper": stored_bound(&range.to), "shard": range.shard.0, "child_schema": *child.schema,
        "child": *child.name, "declared": declared,
    }));
}

/// A range of the catalog as one to be made again under another number.
pub(crate) fn renumbered(range: &Range, id: RangeId) -> NewRange {
    NewRange {
        id,
        from: range.from.clone(),
        to: range.to.clone(),
        shard: range.shard,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_model::KeyValue;

    #[test]
    fn bounds_are_written_with_trailing_infinities() {
        let from = KeyBound(vec![Bound::Value(KeyValue::Text("it's".into())), Bound::Min]);
        assert_eq!(
            for_values(&from, &KeyBound(vec![Bound::Max, Bound::Min])),
            "FOR VALUES FROM ('it''s', MINVALUE) TO (MAXVALUE, MAXVALUE)"
        );
        assert_eq!(stored_bound(&from), ["=it's", "<"]);
    }
}
