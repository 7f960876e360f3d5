//! Subqueries and queries of WITH that lock rows: `WHERE id IN (SELECT … FOR UPDATE SKIP LOCKED)`, as queues are written.

use crate::lexer::{Token, TokenKind};
use crate::lock_strength::LockStrength;
use crate::with_queries::with_queries;
use std::ops::Range;

/// One that has no other inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockingSubquery {
    /// what stands in its parentheses: bytes
    pub body: Range<usize>,
    /// PostgreSQL may run it in part only, or again and again: in EXISTS, behind LATERAL, or under RECURSIVE; or it names a query of WITH
    pub is_bound: bool,
}

/// Those of a statement, in the order of the text.
pub fn locking_subqueries(text: &str, tokens: &[Token]) -> Vec<LockingSubquery> {
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let locks = |at: usize| LockStrength::at(text, tokens, at).is_some();
    let (mut open, mut found) = (Vec::<(usize, bool)>::new(), Vec::<Range<usize>>::new());
    for (at, token) in tokens.iter().enumerate() {
        if token.kind == TokenKind::Symbol && token.is(text, "(") {
            open.push((at, false));
        } else if token.kind == TokenKind::Symbol && token.is(text, ")") {
            let Some((start, true)) = open.pop() else { continue };
            if !found.iter().any(|inner| start < inner.start) {
                found.push(start + 1..at);
            }
        } else if locks(at)
            && let Some((start, is_locking)) = open.last_mut()
        {
            *is_locking |= ["select", "with"].iter().any(|w| word(*start + 1, w));
        }
    }
    let with = with_queries(text, tokens).filter(|with| !with.recursive);
    let names = |body: &Range<usize>, inside: &Range<usize>| {
        let own = &tokens[inside.clone()];
        let before = with
            .iter()
            .flat_map(|w| &w.queries)
            .filter(|q| q.span.end < body.start || q.body.start > body.end);
        let mut before = before.filter(|q| !q.body.contains(&body.start));
        before.any(|q| own.iter().any(|t| t.identifier(text).as_deref() == Some(&q.name)))
    };
    let of = |inside: Range<usize>| {
        let body = tokens[inside.start].start as usize..tokens[inside.end - 1].end as usize;
        let before = |word_before: &str| inside.start >= 2 && word(inside.start - 2, word_before);
        LockingSubquery {
            is_bound: before("exists")
                || before("lateral")
                || (word(0, "with") && with.is_none())
                || names(&body, &inside),
            body,
        }
    };
    found.into_iter().filter(|inside| !inside.is_empty()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_are_found() {
        for (text, shown) in [
            ("select * from t for update", ""),
            ("select substring(a for update) from t", ""),
            (
                "update t set a = 1 where id in (select id from t where f(b) limit 1 for update skip locked)",
                "select id from t where f(b) limit 1 for update skip locked",
            ),
            (
                "with n as (select id from t for no key update) update t set a = 1 from n where t.id = n.id",
                "select id from t for no key update",
            ),
            (
                "with a as (select 1), b as (select * from a for share) select * from b",
                "!select * from a for share",
            ),
            (
                "select * from t where exists (select 1 from u for share) and a = (select 1 from (select 2 from u for update) v for key share)",
                "!select 1 from u for share; select 2 from u for update",
            ),
            (
                "with recursive a as (select 1 from t for update) select * from a",
                "!select 1 from t for update",
            ),
        ] {
            let tokens = crate::lexer::tokenize(text).unwrap();
            let show = |q: &LockingSubquery| format!("{}{}", if q.is_bound { "!" } else { "" }, &text[q.body.clone()]);
            let found: Vec<_> = locking_subqueries(text, &tokens).iter().map(show).collect();
            assert_eq!(found.join("; "), shown, "{text}");
        }
    }
}
