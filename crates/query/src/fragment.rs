//! What a shard is asked: where a table's rows are, and the parameters that the SQL there gets.

use crate::statement::Statement;
use bytes::Bytes;
use pgherd_model::{RangeId, ShardId, Table};
use std::sync::Arc;

/// Some of a table's rows on one shard.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub shard: ShardId,
    /// what to read there, as SQL
    pub relation: String,
    /// to lock first, as SQL
    pub fences: Vec<Arc<str>>,
}

/// Where those ranges are: per shard the child when only one is asked for and may be named, else the parent, fenced.
pub(crate) fn places(table: &Table, wanted: &[RangeId]) -> Option<Vec<Place>> {
    let sharded = table.sharded()?;
    let wanted = || sharded.ranges.ranges().iter().filter(|r| wanted.contains(&r.id));
    let mut shards: Vec<_> = wanted().map(|r| r.shard).collect();
    shards.sort();
    shards.dedup();
    let place = |shard| {
        let mut ranges = wanted().filter(|r| r.shard == shard);
        match (ranges.next(), ranges.next()) {
            (Some(only), None) if sharded.direct => Place {
                shard,
                relation: only.child.to_string(),
                fences: Vec::new(),
            },
            _ => Place {
                shard,
                relation: table.name.to_string(),
                fences: vec![sharded.fence.to_string().into()],
            },
        }
    };
    Some(shards.into_iter().map(place).collect())
}

/// Types and values for a piece of the statement on that shard, which keeps the client's parameter numbers. Parameters that it does
/// not use are sent as NULLs of type text: their types may not exist on the shard, and PostgreSQL wants a type for each.
pub(crate) fn parameters(
    statement: &Statement<'_>,
    sql: &str,
    shard: ShardId,
) -> (Vec<u32>, Vec<(bool, Option<Bytes>)>) {
    const TEXT: u32 = 25;
    if statement.parameters.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let used = used_parameters(sql);
    let count = used.iter().max().copied().unwrap_or(0);
    (1..=count)
        .map(
            |number| match (used.contains(&number), statement.parameters.get(number - 1)) {
                (true, Some(value)) => {
                    let of = statement.parameter_types[number - 1];
                    let there = statement.types_elsewhere.get(&(shard, of)).copied();
                    (there.unwrap_or(of), value.clone())
                }
                _ => (TEXT, (false, None)),
            },
        )
        .unzip()
}

/// Writes a Bind of the unnamed statement.
pub(crate) fn bind(
    portal: &str,
    parameters: &[(bool, Option<Bytes>)],
    result_formats: &[i16],
    out: &mut bytes::BytesMut,
) -> Result<(), pgherd_model::ServerError> {
    let bound = postgres_protocol::message::frontend::bind(
        portal,
        "",
        parameters.iter().map(|(binary, _)| i16::from(*binary)),
        parameters,
        |(_, value), buffer| match value {
            Some(value) => {
                buffer.extend_from_slice(value);
                Ok(postgres_protocol::IsNull::No)
            }
            None => Ok(postgres_protocol::IsNull::Yes),
        },
        result_formats.iter().copied(),
        out,
    );
    bound.map_err(|_| pgherd_model::ServerError::internal("a message to a shard cannot be encoded"))
}

/// The numbers of the parameters in a text.
fn used_parameters(sql: &str) -> Vec<usize> {
    use pgherd_sql::lexer::{TokenKind, tokenize};
    let tokens = tokenize(sql).unwrap_or_default();
    let parameters = tokens.iter().filter(|t| t.kind == TokenKind::Parameter);
    parameters.filter_map(|t| t.text(sql)[1..].parse().ok()).collect()
}
