//! ON CONFLICT DO UPDATE, taken apart in an INSERT's tail.

use crate::write::shape::{Reader, Value, assignments};
use pgherd_model::ServerError;
use pgherd_sql::lexer::{depths, tokenize};
use std::collections::HashSet;
use std::ops::Range;

/// What decides that a row is in the way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arbiter {
    /// the columns of a unique index
    Columns(Vec<String>),
    /// ON CONSTRAINT
    Constraint(String),
}

/// The parts, as bytes of the tail.
#[derive(Debug)]
pub(super) struct Conflict {
    pub arbiter: Arbiter,
    /// `ON CONFLICT …`, up to DO
    pub target: Range<usize>,
    pub set: Vec<(String, Value)>,
    /// what follows WHERE behind SET
    pub condition: Option<Range<usize>>,
    /// `RETURNING …`, or empty
    pub returning: Range<usize>,
    /// columns of the row that was proposed, by name; None where all may be meant
    pub excluded: Option<HashSet<String>>,
}

/// Whether the tail is ON CONFLICT DO UPDATE with a subquery in what is set or in the condition, which needs tables that a shard
/// does not have whole.
pub(super) fn reads_tables(tail: &str) -> bool {
    let Ok(tokens) = tokenize(tail) else { return false };
    let word = |i: usize, word: &str| tokens.get(i).is_some_and(|t| t.is_word(tail, word));
    let updates = (0..tokens.len()).any(|i| word(i, "do") && word(i + 1, "update"));
    let opens = |i: usize| tokens[i].is(tail, "(") && ["values", "table", "with"].iter().any(|w| word(i + 1, w));
    updates && (0..tokens.len()).any(|i| word(i, "select") || opens(i))
}

/// Reads the parts. Errors: 0A000 for a form that is not known.
pub(super) fn parse(tail: &str) -> Result<Conflict, ServerError> {
    find(tail).ok_or_else(|| {
        ServerError::unsupported(
            "this form of ON CONFLICT cannot read tables where it needs rows of more than one shard",
            "Name the columns of a unique index, or a constraint, and set whole columns.",
        )
    })
}

fn find(tail: &str) -> Option<Conflict> {
    let tokens = tokenize(tail).ok()?;
    let r = Reader {
        text: tail,
        tokens: &tokens,
        depths: depths(tail, &tokens),
    };
    (r.word(0, "on") && r.word(1, "conflict")).then_some(())?;
    let act = r.find(2, &["do"])?;
    (r.word(act + 1, "update") && r.word(act + 2, "set")).then_some(())?;
    let arbiter = match r.word(2, "on") && r.word(3, "constraint") && act == 5 {
        true => Arbiter::Constraint(r.identifier(4)?),
        false => {
            let names = r.inside(&(2..act))?;
            let name = |part: Range<usize>| r.identifier(part.start).filter(|_| part.len() == 1);
            Arbiter::Columns(r.split(names).into_iter().map(name).collect::<Option<_>>()?)
        }
    };
    let end = tokens.len();
    let returning = r.find(act + 3, &["returning"]);
    let condition = r.find(act + 3, &["where"]);
    let set_end = condition.or(returning).unwrap_or(end);
    let set = assignments(&r, act + 3..set_end)?;
    let sets_parts = set.iter().any(|(_, value)| matches!(value, Value::Part { .. }));
    (!sets_parts).then_some(())?;
    Some(Conflict {
        arbiter,
        target: r.span(0..act)?,
        set,
        condition: match condition {
            Some(at) => Some(r.span(at + 1..returning.unwrap_or(end))?),
            None => None,
        },
        returning: match returning {
            Some(at) => r.span(at..end)?,
            None => tail.len()..tail.len(),
        },
        excluded: excluded(&r, act),
    })
}

fn excluded(r: &Reader<'_>, from: usize) -> Option<HashSet<String>> {
    let mut names = HashSet::new();
    for at in from..r.tokens.len() {
        let is_it = r.identifier(at).as_deref() == Some("excluded") && !r.symbol(at - 1, ".");
        if is_it {
            r.symbol(at + 1, ".").then_some(())?;
            names.insert(r.identifier(at + 2)?);
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        let tail = "ON CONFLICT (a, \"B\") DO UPDATE SET x = excluded.x + (SELECT 1), (y, z) = (2, DEFAULT) WHERE t.x > (SELECT 2) RETURNING a, x";
        assert!(reads_tables(tail));
        let found = parse(tail).unwrap();
        assert_eq!(found.arbiter, Arbiter::Columns(vec!["a".to_owned(), "B".to_owned()]));
        assert_eq!(&tail[found.target], "ON CONFLICT (a, \"B\")");
        assert_eq!(found.set.len(), 3);
        assert_eq!(found.set[2], ("z".to_owned(), Value::Default));
        assert_eq!(&tail[found.condition.unwrap()], "t.x > (SELECT 2)");
        assert_eq!(&tail[found.returning], "RETURNING a, x");
        assert_eq!(found.excluded, Some(HashSet::from(["x".to_owned()])));
        let found = parse("ON CONFLICT ON CONSTRAINT k DO UPDATE SET x = (SELECT excluded)").unwrap();
        assert_eq!(
            (found.arbiter, found.excluded),
            (Arbiter::Constraint("k".to_owned()), None)
        );
        for unknown in [
            "ON CONFLICT (a) WHERE b DO UPDATE SET x = (SELECT 1)",
            "ON CONFLICT (lower(a)) DO UPDATE SET x = (SELECT 1)",
            "ON CONFLICT (a) DO UPDATE SET x[1] = (SELECT 1)",
        ] {
            assert!(parse(unknown).is_err(), "{unknown}");
        }
        assert!(!reads_tables("ON CONFLICT DO NOTHING RETURNING (SELECT 1)"));
        assert!(!reads_tables("ON CONFLICT (a) DO UPDATE SET a = 1"));
    }
}
