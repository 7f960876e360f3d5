//! Local to sharded and back: a new table under the same name with all that the old one had, rows copied within the
//! transaction, the old one dropped.

use crate::bounds;
use crate::copy_rows::copy_rows;
use crate::inspect::{Definition, Relation};
use crate::ranges::{NewRange, NewTable, automatic_ranges, condition, establish};
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_catalog::child_name;
use pgherd_model::{KeyType, Name, ServerError, Sharded, Table, TableKind, quote_identifier};
use serde_json::json;

/// The key types that a plain table would have when split by these columns, or why it cannot be.
pub(crate) fn distributable(relation: &Relation, key: &[String]) -> Result<Vec<KeyType>, String> {
    let key_types: Vec<_> = key.iter().map(|c| relation.key_type(c)).collect::<Result<_, _>>()?;
    if key_types.is_empty() {
        return Err("it has no key".into());
    }
    let refused = [
        (relation.kind != 'r' || relation.is_partition, "it is not a plain table"),
        (relation.inherits, "it inherits or is inherited from"),
        (relation.typed, "it is a typed table"),
        (relation.persistence != 'p', "it is temporary or unlogged"),
        (
            relation.method.as_deref().is_some_and(|m| m != "heap"),
            "its access method is not heap",
        ),
        (
            !relation.foreign_keys.is_empty(),
            "a foreign key cannot be checked across ranges yet",
        ),
        (!relation.triggers.is_empty(), "it has triggers"),
        (!relation.rules.is_empty(), "it has rules"),
        (
            relation.row_security || !relation.policies.is_empty(),
            "it has row level security",
        ),
    ];
    if let Some((_, why)) = refused.iter().find(|(holds, _)| *holds) {
        return Err((*why).into());
    }
    for unique in &relation.unique {
        if unique.exclusion {
            return Err(format!(
                "exclusion constraint \"{}\" cannot hold across ranges",
                unique.name
            ));
        }
        let covers = unique.plain && key.iter().all(|k| unique.columns.contains(k));
        if !covers {
            return Err(format!(
                "unique constraint \"{}\" does not include the shard key and cannot hold across ranges",
                unique.name
            ));
        }
    }
    Ok(key_types)
}

/// What a conversion needs besides the table.
pub(crate) struct Target<'a> {
    /// the key columns
    pub key: &'a [String],
    pub key_types: Vec<KeyType>,
    /// split as this table is
    pub like: Option<&'a Table>,
    pub by_default: bool,
}

/// Makes a local table sharded, rows and all. Its name is announced and it is locked.
pub(crate) async fn distribute(
    work: &mut Work<'_, '_>,
    relation: &Relation,
    target: Target<'_>,
) -> Result<(), ServerError> {
    let name = relation.full_name();
    let definition = work.definition(&name).await?;
    refuse_dependents(&name, &definition)?;
    let id = work.session.catalog.new_table_number().await?;
    let quoted: Vec<_> = target.key.iter().map(|c| quote_identifier(c)).collect();
    let partition_key = format!("RANGE ({})", quoted.join(", "));
    let old = set_aside(work, &name, &definition, id.0).await?;
    remake_on_home(work, &name, &definition, Some(&partition_key), &old).await?;
    let ranges = match target.like.and_then(|t| t.sharded()) {
        Some(like) => as_in(like),
        None => {
            let splits = work.session.distribution.splits(target.key_types[0]);
            let covering = bounds::covering(&splits, target.key_types.len());
            automatic_ranges(covering, &work.snapshot, &work.shards())
        }
    };
    let table = NewTable {
        id,
        name: name.clone(),
        key_types: target.key_types.clone(),
        ranges,
        by_default: target.by_default,
        options: &relation.options,
    };
    establish(work, &table, &definition, &partition_key).await?;
    let columns = definition.copied_columns();
    let mut moved = 0;
    for range in &table.ranges {
        let condition = condition(&quoted, &target.key_types, &range.from, &range.to);
        let query = format!("SELECT {columns} FROM {old} WHERE {condition}");
        let child = child_name(id, range.id).to_string();
        let home = work.home();
        moved += copy_rows(
            work,
            (home, &query),
            (range.shard, &child, &columns),
            definition.builtin_types,
        )
        .await?;
    }
    let all = work.value(&format!("SELECT pg_catalog.count(*) FROM {old}")).await?;
    if all.as_deref() != Some(moved.to_string().as_str()) {
        return Err(ServerError::new(
            pgherd_model::SqlState::CHECK_VIOLATION,
            format!("no partition of relation \"{}\" found for row", name.name),
        )
        .with_detail("A row's key is null or lies outside of the ranges."));
    }
    take_old_away(work, &name, &definition, &old, false).await?;
    let shards = work.shards();
    work.on_each(&shards, &format!("ANALYZE {name}")).await?;
    work.keep_children(&shards, &[name]).await
}

fn as_in(like: &Sharded) -> Vec<NewRange> {
    let ranges = like.ranges.ranges().iter().enumerate();
    ranges
        .map(|(i, r)| crate::ranges::renumbered(r, pgherd_model::RangeId(i as u32 + 1)))
        .collect()
}

/// Makes a sharded table local, rows and all. Announces it, and locks it.
pub(crate) async fn undistribute(work: &mut Work<'_, '_>, name: &Name) -> Result<(), ServerError> {
    work.announce([&*name.name], &format!("undistribute {name}")).await?;
    let table = work.snapshot.table(name).cloned();
    let Some((table, sharded)) = table.as_ref().and_then(|t| Some((t, t.sharded()?))) else {
        return Err(ServerError::new(
            pgherd_model::SqlState::WRONG_OBJECT_TYPE,
            format!("\"{}\" is not a sharded table", name.name),
        ));
    };
    let shards = work.shards();
    work.lock(&shards, &[name.to_string()], "ACCESS EXCLUSIVE").await?;
    let relation = work.inspect(&name.to_string()).await?;
    let Some(relation) = relation.filter(|r| r.triggers.is_empty() && r.policies.is_empty()) else {
        return Err(ServerError::unsupported(
            format!(
                "table \"{}\" has triggers or policies and cannot be made local yet",
                name.name
            ),
            "Drop them, and create them again afterwards.",
        ));
    };
    if !sharded.automatic && !sharded.ranges.ranges().is_empty() {
        return Err(ServerError::unsupported(
            format!(
                "table \"{}\" has declared partitions and cannot be made local",
                name.name
            ),
            "Detach its partitions first.",
        ));
    }
    let definition = work.definition(name).await?;
    let old = set_aside(work, name, &definition, sharded.id.0).await?;
    remake_on_home(work, name, &definition, None, &old).await?;
    let columns = definition.copied_columns();
    let target = name.to_string();
    for range in sharded.ranges.ranges() {
        let query = format!("SELECT {columns} FROM {}", range.child);
        let home = work.home();
        copy_rows(
            work,
            (range.shard, &query),
            (home, &target, &columns),
            definition.builtin_types,
        )
        .await?;
    }
    take_old_away(work, name, &definition, &old, true).await?;
    work.write(json!({"do": "drop_table", "id": sharded.id.0}));
    let fences = json!({"create": [], "drop": [*sharded.fence.name]}).to_string();
    for shard in shards {
        work.signed(shard, "change_fences", &fences).await?;
    }
    work.on_home(&format!("ANALYZE {name}")).await?;
    debug_assert!(table.sharded().is_some() && relation.kind == 'p');
    Ok(())
}

/// Views can follow to another table of the same columns; these cannot.
fn refuse_dependents(name: &Name, definition: &Definition) -> Result<(), ServerError> {
    let view = definition.views.iter().find(|v| v.kind != 'v').map(|v| v.name.clone());
    match view.or_else(|| definition.functions.first().cloned()) {
        Some(dependent) => Err(ServerError::unsupported(
            format!("{dependent} depends on table \"{}\"", name.name),
            "Drop what depends on it first; only plain views can follow.",
        )),
        None => Ok(()),
    }
}

/// Renames the table and all of its that has names of their own on the home shard. Returns its new name.
async fn set_aside(
    work: &mut Work<'_, '_>,
    name: &Name,
    definition: &Definition,
    number: u32,
) -> Result<Name, ServerError> {
    let old = Name::new(&name.schema, &format!("pgherd_old_{number}"));
    let mut statements = vec![format!("ALTER TABLE {name} RENAME TO {}", quote_identifier(&old.name))];
    for (i, index) in definition.index_names.iter().enumerate() {
        statements.push(format!("ALTER INDEX {index} RENAME TO pgherd_old_{number}_i{i}"));
    }
    for (i, statistics) in definition.statistics_names.iter().enumerate() {
        statements.push(format!(
            "ALTER STATISTICS {statistics} RENAME TO pgherd_old_{number}_s{i}"
        ));
    }
    for (i, sequence) in definition.sequences.iter().filter(|s| s.identity).enumerate() {
        statements.push(format!(
            "ALTER SEQUENCE {} RENAME TO pgherd_old_{number}_q{i}",
            sequence.name
        ));
    }
    work.on_home(&statements.join("; ")).await?;
    Ok(old)
}

/// The new table on the home shard, with all but rows.
async fn remake_on_home(
    work: &mut Work<'_, '_>,
    name: &Name,
    definition: &Definition,
    partitioned: Option<&str>,
    old: &Name,
) -> Result<(), ServerError> {
    let mut statements = definition.create(name, partitioned);
    statements.extend(definition.own_sequences(name));
    for (i, sequence) in definition.sequences.iter().filter(|s| s.identity).enumerate() {
        let from = Name::new(&old.schema, &format!("{}_q{i}", old.name));
        statements.push(format!(
            "SELECT pg_catalog.setval({}, last_value, is_called) FROM {from}",
            pgherd_model::quote_literal(&sequence.name)
        ));
    }
    statements.extend(definition.grants.iter().cloned());
    statements.extend(definition.comments.iter().cloned());
    let role = work.transaction.who().role.clone();
    if *role != *definition.owner {
        statements.push(format!(
            "ALTER TABLE {name} OWNER TO {}",
            quote_identifier(&definition.owner)
        ));
    }
    for view in &definition.views {
        let options = view.options.as_ref().map_or(String::new(), |o| format!(" WITH ({o})"));
        statements.push(format!(
            "CREATE OR REPLACE VIEW {}{options} AS {}",
            view.name, view.definition
        ));
    }
    work.on_home(&statements.join("; ")).await.map(drop)
}

/// Drops the old table: everywhere when it was sharded.
async fn take_old_away(
    work: &mut Work<'_, '_>,
    name: &Name,
    _definition: &Definition,
    old: &Name,
    sharded: bool,
) -> Result<(), ServerError> {
    work.on_home(&format!("DROP TABLE {old}")).await?;
    if sharded {
        // Its views on other shards go along; the home shard's follow to the new table.
        let (others, before) = (work.others(), work.notice_count());
        work.on_each(&others, &format!("DROP TABLE {name} CASCADE")).await?;
        work.truncate_notices(before);
    }
    Ok(())
}

/// Tables that were sharded by default become local again when a foreign key is to reference them; others refuse.
pub(crate) async fn free_referenced(work: &mut Work<'_, '_>, text: &StatementText<'_>) -> Result<(), ServerError> {
    for referenced in text.referenced() {
        let Some(table) = work.resolve(&referenced) else {
            continue;
        };
        match &table.kind {
            TableKind::Sharded(sharded) if sharded.by_default => {
                undistribute(work, &table.name).await?;
                work.notice(format!(
                    "table \"{}\" is local: a foreign key that references it cannot be checked across ranges yet",
                    table.name.name
                ));
                work.reload().await?;
            }
            TableKind::Sharded(_) | TableKind::Partition { .. } => {
                return Err(ServerError::unsupported(
                    format!(
                        "a foreign key cannot be checked across the ranges of table \"{}\"",
                        table.name.name
                    ),
                    "Leave the foreign key out, or make that table local with CALL pgherd.undistribute(…).",
                ));
            }
            TableKind::View { .. } | TableKind::Refused { .. } => {}
        }
    }
    Ok(())
}
