//! The parameters that a shard's SQL gets.

use crate::statement::Statement;
use bytes::Bytes;

/// Types and values for a piece of the statement that keeps the client's parameter numbers. Parameters that it does
/// not use are sent as NULLs of type text: their types may not exist on the shard, and PostgreSQL wants a type for each.
pub(crate) fn parameters(statement: &Statement<'_>, sql: &str) -> (Vec<u32>, Vec<(bool, Option<Bytes>)>) {
    const TEXT: u32 = 25;
    let used = used_parameters(sql);
    let count = used.iter().max().copied().unwrap_or(0);
    (1..=count)
        .map(
            |number| match (used.contains(&number), statement.parameters.get(number - 1)) {
                (true, Some(value)) => (statement.parameter_types[number - 1], value.clone()),
                _ => (TEXT, (false, None)),
            },
        )
        .unzip()
}

/// The numbers of the parameters in a text.
fn used_parameters(sql: &str) -> Vec<usize> {
    use pgherd_sql::lexer::{TokenKind, tokenize};
    let tokens = tokenize(sql).unwrap_or_default();
    let parameters = tokens.iter().filter(|t| t.kind == TokenKind::Parameter);
    parameters.filter_map(|t| t.text(sql)[1..].parse().ok()).collect()
}
