//! LOCK TABLE before the first query of a REPEATABLE READ transaction over several shards.
//!
//! Such a transaction's snapshot is decided by its first query, and imported on each shard. PostgreSQL imports none into a transaction that
//! has a number of its own, which ACCESS EXCLUSIVE gives it (a standby is told of that lock). So the table is locked IN EXCLUSIVE MODE, which
//! keeps out everybody who would change it, and in the mode that was asked for as soon as the snapshot is there. Until then others can still
//! read what has not been changed.

use super::Unit;
use pgherd_sql::lexer::tokenize;
use pgherd_sql::{Kind, Part};
use pgherd_transaction::Transaction;
use std::sync::Arc;

/// What runs on the participant in the part's place; None where it can run as it is.
pub(super) fn before_snapshot(unit: Unit<'_>, part: &Part, transaction: &mut Transaction) -> Option<Part> {
    if !matches!(unit.statement.parsed.kind, Kind::Lock(_)) || !transaction.is_open_repeatable_read() {
        return None;
    }
    let lower = exclusive(&part.text)?;
    transaction.with_the_snapshot(part.shard, part.text.to_string());
    Some(Part {
        text: Arc::from(lower),
        ..part.clone()
    })
}

/// The statement IN EXCLUSIVE MODE; None where it does not lock IN ACCESS EXCLUSIVE MODE.
fn exclusive(text: &str) -> Option<String> {
    let tokens = tokenize(text).ok()?;
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    // IN is reserved: no table has that name without quotes.
    if let Some(at) = (0..tokens.len()).find(|at| is(*at, "in")) {
        let whole = is(at + 1, "access") && is(at + 2, "exclusive");
        let access = tokens.get(at + 1).filter(|_| whole)?;
        let rest = &text[access.end as usize..];
        return Some(format!("{}{}", &text[..access.start as usize], rest.trim_start()));
    }
    let names_end = tokens
        .iter()
        .rposition(|t| !t.is_word(text, "nowait") && !t.is(text, ";"))?;
    let end = tokens[names_end].end as usize;
    Some(format!("{} IN EXCLUSIVE MODE{}", &text[..end], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_strongest_mode_becomes_another() {
        let lower = |text: &str| exclusive(text);
        assert_eq!(lower("LOCK a, b;").as_deref(), Some("LOCK a, b IN EXCLUSIVE MODE;"));
        assert_eq!(
            lower("LOCK TABLE ONLY a NOWAIT").as_deref(),
            Some("LOCK TABLE ONLY a IN EXCLUSIVE MODE NOWAIT")
        );
        assert_eq!(
            lower("LOCK TABLE \"in\" in access exclusive mode nowait").as_deref(),
            Some("LOCK TABLE \"in\" in exclusive mode nowait")
        );
        assert_eq!(lower("LOCK TABLE a IN ACCESS SHARE MODE"), None);
        assert_eq!(lower("LOCK TABLE a IN SHARE ROW EXCLUSIVE MODE"), None);
        assert_eq!(lower("LOCK TABLE a IN EXCLUSIVE MODE"), None);
    }
}
