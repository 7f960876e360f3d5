//! Local to sharded and back: a new table under the same name with all that the old one had, rows copied within the
//! transaction, the old one dropped. Tables that foreign keys link go together; the keys are put on when all rows are there.

use crate::copy_rows::copy_rows;
use crate::foreign_keys::Member;
use crate::inspect::{Definition, Relation};
use crate::localize::forget;
use crate::partition::return_rows;
use crate::ranges::{NewRange, NewTable, automatic_ranges, establish};
use crate::statement_text::StatementText;
use crate::work::Work;
use crate::{bounds, foreign_keys};
use pgherd_catalog::child_name;
use pgherd_model::{KeyType, Name, ServerError, Sharded, Table, TableKind, quote_identifier, range_condition};
use std::collections::BTreeSet;

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
        (!relation.triggers.is_empty(), "it has triggers"),
        (!relation.rules.is_empty(), "it has rules"),
        (relation.published, "a publication has it"),
        (
            relation.row_security || !relation.policies.is_empty(),
            "it has row level security",
        ),
    ];
    if let Some((_, why)) = refused.iter().find(|(holds, _)| *holds) {
        return Err((*why).into());
    }
    if let Some(name) = &relation.local_type {
        return Err(format!("type {name} in its columns is that of a local table's rows"));
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

/// Where a conversion puts its tables.
pub(crate) struct Target<'a> {
    /// split as this table is
    pub like: Option<&'a Table>,
    pub by_default: bool,
}

/// Makes local tables sharded, rows, foreign keys and all: one table with those that foreign keys link with it. Their names are
/// announced and they are locked.
pub(crate) async fn distribute(
    work: &mut Work<'_, '_>,
    members: &[Member],
    target: Target<'_>,
) -> Result<(), ServerError> {
    let names: Vec<Name> = members.iter().map(|m| m.relation.full_name()).collect();
    let keys = foreign_keys::of(work, &names).await?;
    let ranges = match (target.like.and_then(|t| t.sharded()), members) {
        (Some(like), _) => as_in(like),
        (None, [first, ..]) => {
            let splits = work.session.distribution.splits(first.key_types[0]);
            let covering = bounds::covering(&splits, first.key_types.len());
            automatic_ranges(covering, &work.snapshot, &work.shards())
        }
        (None, []) => Vec::new(),
    };
    let mut olds = Vec::new();
    let mut table = NewTable {
        id: pgherd_model::TableId(0),
        name: names[0].clone(),
        key_types: members[0].key_types.clone(),
        ranges,
        by_default: target.by_default,
        options: &[],
        beside: target.like.and_then(|t| t.sharded()).map(|s| s.colocation),
    };
    for (member, name) in members.iter().zip(&names) {
        table.id = work.session.catalog.new_table_number().await?;
        table.name = name.clone();
        table.options = &member.relation.options;
        olds.push(distribute_one(work, member, &table).await?);
        work.reload().await?;
        // The others stay beside the first one.
        let made = work.snapshot.table(name).and_then(|t| t.sharded());
        table.beside = made.map(|s| s.colocation).or(table.beside);
    }
    drop_old(work, &olds).await?;
    let shards = work.shards();
    foreign_keys::put_on(work, &keys, &shards).await?;
    for name in &names {
        work.on_each(&shards, &format!("ANALYZE {name}")).await?;
    }
    work.keep_children(&shards, &names).await
}

/// One table without its foreign keys. Returns the name of the old one, which is still there.
async fn distribute_one(work: &mut Work<'_, '_>, member: &Member, table: &NewTable<'_>) -> Result<Name, ServerError> {
    let (id, name) = (table.id, &table.name);
    let definition = work.definition(name).await?;
    refuse_dependents(name, dependent(&definition))?;
    let quoted: Vec<_> = member.key.iter().map(|c| quote_identifier(c)).collect();
    let partition_key = format!("RANGE ({})", quoted.join(", "));
    let old = set_aside(work, name, &definition, id.0).await?;
    remake_on_home(work, name, &definition, Some(&partition_key), &old).await?;
    establish(work, table, &definition, &partition_key).await?;
    let columns = definition.copied_columns();
    let mut moved = 0;
    for range in &table.ranges {
        let condition = range_condition(&quoted, &member.key_types, &range.from, &range.to);
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
    let shards = work.shards();
    for statement in &definition.unchecked {
        work.on_each(&shards, statement).await?;
    }
    Ok(old)
}

/// Ranges like another table's, numbered from 1.
pub(crate) fn as_in(like: &Sharded) -> Vec<NewRange> {
    let ranges = like.ranges.ranges().iter().enumerate();
    ranges
        .map(|(i, r)| crate::ranges::renumbered(r, pgherd_model::RangeId(i as u32 + 1)))
        .collect()
}

/// Makes a sharded table local, rows and all, with those that foreign keys link with it. Announces them, and locks them. Returns
/// the others' names.
///
/// One of declared partitions stays the table that it is: its partitions' rows come to the home shard's.
pub(crate) async fn undistribute(work: &mut Work<'_, '_>, name: &Name) -> Result<Vec<Name>, ServerError> {
    let linked = work.snapshot.linked(name);
    let announced: Vec<_> = std::iter::once(name.name.to_string())
        .chain(linked.iter().map(|t| t.name.name.to_string()))
        .collect();
    work.announce(announced.iter().map(String::as_str), &format!("undistribute {name}"))
        .await?;
    let tables = work.snapshot.linked(name);
    if tables.first().is_none_or(|t| t.sharded().is_none()) {
        return Err(ServerError::new(
            pgherd_model::SqlState::WRONG_OBJECT_TYPE,
            format!("\"{}\" is not a sharded table", name.name),
        ));
    }
    let names: Vec<Name> = tables.iter().map(|t| t.name.clone()).collect();
    let shards = work.shards();
    let locked: Vec<_> = names.iter().map(Name::to_string).collect();
    work.lock(&shards, &locked, "ACCESS EXCLUSIVE").await?;
    // A table that stays keeps its foreign keys, which rows that come one table after the other would break.
    let keys = match tables.iter().any(|t| is_declared(t)) {
        true => foreign_keys::take_off(work, &names, &shards).await?,
        false => foreign_keys::of(work, &names).await?,
    };
    let mut olds = Vec::new();
    for table in &tables {
        match table.sharded().filter(|_| is_declared(table)) {
            Some(sharded) => {
                for range in sharded.ranges.ranges() {
                    return_rows(work, range).await?;
                }
            }
            None => olds.extend(undistribute_one(work, table).await?),
        }
    }
    drop_old(work, &olds).await?;
    // The home shard's views follow to the new tables.
    forget(work, tables.iter().map(|t| &**t)).await?;
    foreign_keys::put_on(work, &keys, &[work.home()]).await?;
    for name in &names {
        work.on_home(&format!("ANALYZE {name}")).await?;
    }
    Ok(names.into_iter().skip(1).collect())
}

/// Whether its ranges are partitions that were declared.
fn is_declared(table: &Table) -> bool {
    table.sharded().is_some_and(|s| !s.automatic)
}

/// One table without its foreign keys. Returns the name of the old one on the home shard, which is still there.
async fn undistribute_one(work: &mut Work<'_, '_>, table: &Table) -> Result<Option<Name>, ServerError> {
    let Some(sharded) = table.sharded() else {
        return Ok(None);
    };
    let name = &table.name;
    let definition = work.definition(name).await?;
    refuse_dependents(name, stuck_dependent(&definition))?;
    drop_routines(work, &definition).await?;
    let old = set_aside(work, name, &definition, sharded.id.0).await?;
    remake_on_home(work, name, &definition, None, &old).await?;
    make_routines(work, &definition).await?;
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
    if let Some(options) = storage_options(work, sharded).await? {
        work.on_home(&format!("ALTER TABLE {name} SET ({options})")).await?;
    }
    // They are not meant for the rows that were there before.
    let after = definition.unchecked.iter().chain(&definition.triggers);
    for statement in after.chain(&definition.policies) {
        work.on_home(statement).await?;
    }
    Ok(Some(old))
}

/// What its ranges have of storage options, which a partitioned table has not.
async fn storage_options(work: &mut Work<'_, '_>, sharded: &Sharded) -> Result<Option<String>, ServerError> {
    let Some(range) = sharded.ranges.ranges().first() else {
        return Ok(None);
    };
    let child = pgherd_model::quote_literal(&range.child.to_string());
    let asked = format!(
        "SELECT pg_catalog.array_to_string(reloptions, ', ') FROM pg_catalog.pg_class WHERE oid = {child}::pg_catalog.regclass"
    );
    let results = work.on(range.shard, &asked).await?;
    let options = results.last().and_then(|r| r.text(0, 0)).map(str::to_owned);
    Ok(options.filter(|options| !options.is_empty()))
}

/// Drops what was set aside; these tables may refer to each other.
async fn drop_old(work: &mut Work<'_, '_>, names: &[Name]) -> Result<(), ServerError> {
    if names.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = names.iter().map(Name::to_string).collect();
    work.on_home(&format!("DROP TABLE {}", names.join(", ")))
        .await
        .map(drop)
}

/// What depends on a table and cannot follow to another one of the same columns on all shards, as views can.
pub(crate) fn dependent(definition: &Definition) -> Option<String> {
    let function = definition.functions.first().map(|f| f.name.clone());
    function.or_else(|| stuck_dependent(definition))
}

/// The same on the home shard alone, where functions can follow as well.
fn stuck_dependent(definition: &Definition) -> Option<String> {
    let view = definition.views.iter().find(|v| v.kind != 'v').map(|v| v.name.clone());
    let function = definition.functions.iter().find(|f| f.stuck).map(|f| f.name.clone());
    view.or_else(|| definition.publications.first().cloned())
        .or(function)
        .or_else(|| definition.others_policies.first().cloned())
        .or_else(|| definition.row_columns.first().cloned())
}

/// Takes away the functions that depend on a table's rows' type; [`make_routines`] makes them again for the table that takes its place.
async fn drop_routines(work: &mut Work<'_, '_>, definition: &Definition) -> Result<(), ServerError> {
    let names: Vec<_> = definition.functions.iter().map(|f| f.name.as_str()).collect();
    match names.is_empty() {
        true => Ok(()),
        false => work
            .on_home(&format!("DROP ROUTINE {}", names.join(", ")))
            .await
            .map(drop),
    }
}

async fn make_routines(work: &mut Work<'_, '_>, definition: &Definition) -> Result<(), ServerError> {
    let statements: Vec<_> = definition
        .functions
        .iter()
        .flat_map(|f| f.make.iter().flatten())
        .collect();
    if statements.is_empty() {
        return Ok(());
    }
    // Their bodies were judged when they were made, under another search_path perhaps.
    let checked = work
        .value("SELECT pg_catalog.current_setting('check_function_bodies')")
        .await?;
    work.on_home("SET LOCAL check_function_bodies = off").await?;
    for statement in statements {
        work.on_home(statement).await?;
    }
    let checked = checked.as_deref().unwrap_or("on");
    work.on_home(&format!("SET LOCAL check_function_bodies = {checked}"))
        .await
        .map(drop)
}

fn refuse_dependents(name: &Name, dependent: Option<String>) -> Result<(), ServerError> {
    match dependent {
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
    statements.extend(definition.grant(name, &work.transaction.who().role));
    statements.extend(definition.comments.iter().cloned());
    for view in &definition.views {
        let options = view.options.as_ref().map_or(String::new(), |o| format!(" WITH ({o})"));
        statements.push(format!(
            "CREATE OR REPLACE VIEW {}{options} AS {}",
            view.name, view.definition
        ));
    }
    work.on_home(&statements.join("; ")).await.map(drop)
}

/// Tables that were sharded by default become local again when a foreign key is to reference them; others refuse.
pub(crate) async fn free_referenced(work: &mut Work<'_, '_>, text: &StatementText<'_>) -> Result<(), ServerError> {
    for referenced in text.referenced() {
        let Some(table) = work.resolve(&referenced) else {
            continue;
        };
        if let Some(table) = work.yielding(&referenced) {
            refuse_to_free(work, &table)?;
            let why = "a foreign key that references it cannot be checked across ranges";
            free(work, &table.name, why).await?;
            continue;
        }
        match &table.kind {
            TableKind::Sharded(_) | TableKind::Partition { .. } => {
                return Err(ServerError::unsupported(
                    format!(
                        "this foreign key cannot be checked across the ranges of table \"{}\"",
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

/// Every table that is named and was sharded by default becomes local, for this reason.
pub(crate) async fn free_named(
    work: &mut Work<'_, '_>,
    text: &StatementText<'_>,
    why: &str,
) -> Result<(), ServerError> {
    let names: BTreeSet<(Option<String>, String)> = text.qualified().collect();
    for (schema, name) in names {
        let Some(table) = work.yielding_name(schema.as_deref(), &name) else {
            continue;
        };
        refuse_to_free(work, &table)?;
        free(work, &table.name, why).await?;
    }
    Ok(())
}

/// [`free`] for each of these that is sharded still: one that a foreign key links with another has become local with it.
pub(crate) async fn free_each(
    work: &mut Work<'_, '_>,
    names: impl IntoIterator<Item = Name>,
    why: &str,
) -> Result<(), ServerError> {
    for name in names {
        if work.snapshot.table(&name).is_some_and(|t| t.sharded().is_some()) {
            free(work, &name, why).await?;
        }
    }
    Ok(())
}

/// Makes a table local that was sharded by default, with those that foreign keys link with it, says why, and reads the catalog anew.
pub(crate) async fn free(work: &mut Work<'_, '_>, name: &Name, why: &str) -> Result<(), ServerError> {
    let before = work.notice_count();
    let linked = undistribute(work, name).await?;
    work.truncate_notices(before);
    work.notice(format!("table \"{}\" is local: {why}", name.name));
    notice_linked(work, &linked, name);
    work.reload().await
}

/// Only what `pgherd.default_distribution` has made sharded becomes local by itself; tables that are linked with it too.
pub(crate) fn refuse_to_free(work: &Work<'_, '_>, table: &Table) -> Result<(), ServerError> {
    let linked = work.snapshot.linked(&table.name);
    match linked.iter().find(|t| t.sharded().is_some_and(|s| !s.by_default)) {
        Some(explicit) => Err(ServerError::unsupported(
            format!(
                "table \"{}\" cannot be made local for this, since foreign keys link it with sharded table \"{}\"",
                table.name.name, explicit.name.name
            ),
            "Make them local with CALL pgherd.undistribute(…), or drop the foreign keys first.",
        )),
        None => Ok(()),
    }
}

/// Whether the table could become local by itself, and those that are linked with it.
pub(crate) async fn is_free(work: &mut Work<'_, '_>, table: &Table) -> Result<bool, ServerError> {
    if refuse_to_free(work, table).is_err() {
        return Ok(false);
    }
    for linked in work.snapshot.linked(&table.name) {
        let definition = work.definition(&linked.name).await?;
        if !is_declared(&linked) && stuck_dependent(&definition).is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Says of tables that have become local along with another one why they have.
pub(crate) fn notice_linked(work: &mut Work<'_, '_>, linked: &[Name], with: &Name) {
    for name in linked {
        work.notice(format!(
            "table \"{}\" is local: foreign keys link it with table \"{}\"",
            name.name, with.name
        ));
    }
}
