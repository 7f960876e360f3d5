//! `ALTER TABLE parent ATTACH PARTITION table FOR VALUES …`: a local table becomes a declared partition of a sharded table. Its rows go to the
//! shard that owns the new range. PostgreSQL judges columns, constraints, bounds and rows on the home shard first.

use crate::alter_table::as_local;
use crate::convert::undistribute;
use crate::copy_rows::copy_rows;
use crate::localize::localize;
use crate::partition::{changed, declare, drop_automatic, least_used, no_range, parse_for_values, stand_in};
use crate::statement_text::StatementText;
use crate::work::Work;
use pgherd_model::{Name, ServerError, ShardId, quote_literal};
use pgherd_sql::ObjectName;

/// Runs it and returns its tag.
pub(crate) async fn attach(
    work: &mut Work<'_, '_>,
    parent: &ObjectName,
    name: &ObjectName,
    text: &StatementText<'_>,
) -> Result<String, ServerError> {
    work.announce([name.name.as_str(), parent.name.as_str()], text.text)
        .await?;
    make_local(work, name).await?;
    let table = work.sharded(parent).ok_or_else(|| changed(parent))?;
    let shards = work.shards();
    work.lock(&shards, &[table.name.to_string()], "ACCESS EXCLUSIVE")
        .await?;
    let mut sharded = table.sharded().ok_or_else(|| changed(parent))?.clone();
    if sharded.is_linked {
        if table.may_yield() {
            let why = format!(
                "\"{}\" is to be a partition of it, and foreign keys link it with other tables",
                name.name
            );
            return as_local(work, &table, &why, text).await;
        }
        return Err(ServerError::unsupported(
            format!(
                "cannot attach \"{}\" while foreign keys link \"{}\" with other tables",
                name.name, table.name.name
            ),
            "Attach it first, and add the foreign keys then.",
        ));
    }
    let before = work.inspect(text.written(name)).await?;
    if sharded.automatic && before.as_ref().is_some_and(|t| !t.is_partition) {
        drop_automatic(work, &table.name, &mut sharded).await?;
    }
    let differs = match &before {
        Some(before) => differences(work, &table.name, &before.full_name(), before).await?,
        None => None,
    };
    let tag = work.on_home(text.text).await?;
    let made = work.inspect(text.written(name)).await?.ok_or_else(|| changed(name))?;
    let full = made.full_name();
    let bounds = made.bound.as_deref();
    let bounds = bounds.and_then(|b| parse_for_values(b, &sharded.key_types));
    if bounds.is_none() || made.kind != 'r' {
        localize(work, &table, no_range(made.kind)).await?;
        return Ok(tag);
    }
    if let Some(why) = differs {
        let why = format!("partition \"{}\" is not a range of it, since {why}", name.name);
        localize(work, &table, &why).await?;
        return Ok(tag);
    }
    let shard = least_used(&sharded, &shards);
    if shard != work.home() {
        take_to(work, &full, shard, text).await?;
    }
    if let Some((from, to)) = bounds {
        declare(work, &sharded, &full, (from, to, shard)).await?;
    }
    Ok(tag)
}

/// What is to be a partition is a table of its own again: PostgreSQL reads its rows on the home shard.
pub(crate) async fn make_local(work: &mut Work<'_, '_>, name: &ObjectName) -> Result<(), ServerError> {
    let Some(child) = work.resolve(name) else {
        return Ok(());
    };
    let Some(sharded) = child.sharded() else {
        return Ok(());
    };
    if child.is_by_default() || (sharded.is_linked && child.may_yield()) {
        undistribute(work, &child.name).await?;
    } else {
        let why = "it is a partition of another table";
        work.announce([&*child.name.name], why).await?;
        let shards = work.shards();
        work.lock(&shards, &[child.name.to_string()], "ACCESS EXCLUSIVE")
            .await?;
        if sharded.automatic {
            drop_automatic(work, &child.name, &mut sharded.clone()).await?;
        }
        localize(work, &child, why).await?;
    }
    work.reload().await
}

/// In what a table differs from the one that it is to be a partition of, where statements that name its range could tell.
async fn differences(
    work: &mut Work<'_, '_>,
    parent: &Name,
    child: &Name,
    relation: &crate::inspect::Relation,
) -> Result<Option<String>, ServerError> {
    let own = [
        (!relation.triggers.is_empty(), "it has triggers"),
        (!relation.rules.is_empty(), "it has rules"),
        (
            relation.row_security || !relation.policies.is_empty(),
            "it has row level security",
        ),
        (relation.persistence != 'p', "it is temporary or unlogged"),
        (!relation.foreign_keys.is_empty(), "it has foreign keys"),
    ];
    if let Some((_, why)) = own.iter().find(|(holds, _)| *holds) {
        return Ok(Some((*why).to_owned()));
    }
    // Identity belongs to the parent.
    let columns = |name: &Name| {
        format!(
            "(SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', pg_catalog.quote_ident(a.attname), \
             pg_catalog.format_type(a.atttypid, a.atttypmod), a.attcollation, a.attgenerated, \
             pg_catalog.pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a \
             LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
             WHERE a.attrelid = {}::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped)",
            quote_literal(&name.to_string())
        )
    };
    let sql = format!(
        "SELECT ({} IS NOT DISTINCT FROM {})::pg_catalog.text",
        columns(parent),
        columns(child)
    );
    let same = work.value(&sql).await?;
    Ok((same.as_deref() != Some("true"))
        .then(|| "its columns or their defaults are not the same, in the same order".to_owned()))
}

/// Makes the partition on another shard, with its rows, and leaves an empty one on the home shard.
async fn take_to(
    work: &mut Work<'_, '_>,
    full: &Name,
    shard: ShardId,
    text: &StatementText<'_>,
) -> Result<(), ServerError> {
    let definition = work.definition(full).await?;
    let mut statements = definition.create_sequences();
    statements.extend(definition.create(full, None));
    statements.extend(definition.own_sequences(full));
    statements.extend(definition.grant(full, &work.transaction.who().role));
    let before = work.notice_count();
    work.on(shard, &statements.join("; ")).await?;
    work.truncate_notices(before);
    let columns = definition.copied_columns();
    let (home, target) = (work.home(), full.to_string());
    let query = format!("SELECT {columns} FROM {full}");
    copy_rows(
        work,
        (home, &query),
        (shard, &target, &columns),
        definition.builtin_types,
    )
    .await?;
    for statement in &definition.unchecked {
        work.on(shard, statement).await?;
    }
    work.on(shard, text.text).await?;
    work.on_home(&format!("TRUNCATE {full}")).await?;
    stand_in(work, full).await?;
    work.close_sequences(&[target]).await
}
