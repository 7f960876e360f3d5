//! Which rows of its target a MERGE can match, where its source reads no tables: `USING (VALUES (1, 'a'), …) AS s (k, v) ON t.k = s.k` matches
//! rows with these keys only. The source's keys are computed first, and bound what is read of the target.

use super::super::shape::Reader;
use super::super::target::Target;
use super::shape::MergeShape;
use crate::plan::row::{fields, messages};
use crate::relay;
use crate::statement::Statement;
use crate::views;
use pgherd_model::{ServerError, quote_identifier, quote_literal};
use pgherd_shards::Backend;
use pgherd_sql::lexer::{depths, tokenize};
use pgherd_sql::locks::names_called;
use std::ops::Range;

/// More keys are not sent to the shards.
const MOST_KEYS: u64 = 10_000;

/// What may stand before a parenthesis in a source that gives the same rows whenever it is asked.
const STEADY: [&str; 10] = [
    "values",
    "generate_series",
    "unnest",
    "as",
    "json_array_elements",
    "jsonb_array_elements",
    "json_to_recordset",
    "jsonb_to_recordset",
    "json_populate_recordset",
    "jsonb_populate_recordset",
];

/// A condition on the target that ON implies; None where there is none to be had.
pub(super) async fn bounds(
    statement: &Statement<'_>,
    shape: &MergeShape,
    target: &Target,
    home: &mut Backend,
) -> Result<Option<String>, ServerError> {
    let source = &statement.text[shape.source.clone()];
    let Some((column, key)) =
        key(&statement.text[shape.on.clone()], shape, target).filter(|_| is_steady(source, shape))
    else {
        return Ok(None);
    };
    let sql = format!(
        "SELECT pg_catalog.array_agg(DISTINCT {key})::text, pg_catalog.pg_typeof(pg_catalog.array_agg({key}))::text, \
         pg_catalog.count(DISTINCT {key})::text FROM {source}"
    );
    let row = ask(statement, &sql, home).await?;
    let [keys, Some(array), Some(count)] = &row[..] else {
        return Ok(None);
    };
    if count.parse::<u64>().map_or(true, |count| count > MOST_KEYS) {
        return Ok(None);
    }
    let alias = quote_identifier(&shape.target.alias);
    let keys = quote_literal(keys.as_deref().unwrap_or("{}"));
    Ok(Some(format!(
        "{alias}.{} = ANY ({keys}::{array})",
        quote_identifier(&column)
    )))
}

fn is_steady(source: &str, shape: &MergeShape) -> bool {
    let Ok(tokens) = tokenize(source) else { return false };
    let steady = |name: &String| STEADY.contains(&name.as_str()) || shape.source_aliases.contains(name);
    let reads = |query: views::ParsedQuery| !query.relations.mentions.is_empty();
    shape.target.with.is_empty()
        && names_called(source, &tokens).is_some_and(|names| names.iter().all(steady))
        && views::parse_query(&format!("SELECT 1 FROM {source}")).is_ok_and(|query| !reads(query))
}

/// `t.c = …`, among conditions that all hold, where the right side is of the source.
fn key(on: &str, shape: &MergeShape, target: &Target) -> Option<(String, String)> {
    let tokens = tokenize(on).ok()?;
    let r = Reader {
        text: on,
        tokens: &tokens,
        depths: depths(on, &tokens),
    };
    if r.find(0, &["or", "case", "between", "not"]).is_some() {
        return None;
    }
    let (mut conjuncts, mut start) = (Vec::new(), 0);
    while let Some(and) = r.find(start, &["and"]) {
        conjuncts.push(start..and);
        start = and + 1;
    }
    conjuncts.push(start..tokens.len());
    conjuncts.into_iter().find_map(|conjunct| {
        let mut equals = conjunct.clone().filter(|&i| r.depths[i] == 0 && r.symbol(i, "="));
        let at = equals.next().filter(|_| equals.next().is_none())?;
        let (left, right) = (conjunct.start..at, at + 1..conjunct.end);
        of_sides(&r, &left, &right, shape, target).or_else(|| of_sides(&r, &right, &left, shape, target))
    })
}

fn of_sides(
    r: &Reader<'_>,
    column: &Range<usize>,
    value: &Range<usize>,
    shape: &MergeShape,
    target: &Target,
) -> Option<(String, String)> {
    let is_column = |name: &str| target.columns.iter().any(|c| c.name == name);
    let name = match column.len() {
        1 => r.identifier(column.start)?,
        3 if r.symbol(column.start + 1, ".") && r.identifier(column.start)? == shape.target.alias => {
            r.identifier(column.start + 2)?
        }
        _ => return None,
    };
    // A plain column of the source: what else could be computed in another way, or not at all.
    let known = match value.len() {
        1 => !is_column(&r.identifier(value.start)?),
        3 => r.symbol(value.start + 1, ".") && shape.source_aliases.contains(&r.identifier(value.start)?),
        _ => false,
    };
    let sql = r.piece(value.clone()).filter(|_| known && is_column(&name))?;
    Some((name, sql))
}

/// The only row of a query on the home shard, as text.
async fn ask(statement: &Statement<'_>, sql: &str, home: &mut Backend) -> Result<Vec<Option<String>>, ServerError> {
    let types = statement.parameter_types;
    relay::send(home, sql, types, statement.parameters, &[]).await?;
    let mut row = Vec::new();
    while let Some(batch) = relay::next_rows(home).await? {
        for message in messages(&batch.bytes) {
            let mut values = Vec::new();
            fields(message, &mut values).ok_or_else(|| ServerError::internal("a row of keys is garbled"))?;
            let text = |value: Range<usize>| String::from_utf8_lossy(&message[value]).into_owned();
            row = values.into_iter().map(|value| value.map(text)).collect();
        }
    }
    home.drain().await?;
    Ok(row)
}
