//! The locking clauses of a SELECT's text, and its LIMIT, found at the key words that stand outside of all parentheses.

use crate::write::shape::Reader;
use pgherd_sql::LockStrength;
use pgherd_sql::lexer::{depths, tokenize};
use std::ops::Range;

/// What is done about rows that others have locked. NOWAIT is stronger than SKIP LOCKED, as in PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Policy {
    Wait,
    Skip,
    Fail,
}

/// One clause.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clause {
    pub strength: LockStrength,
    pub policy: Policy,
    /// OF; empty for all relations
    pub of: Vec<String>,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Clauses {
    pub locks: Vec<Clause>,
    /// the statement with blanks in their places
    pub text: String,
    /// the same without LIMIT, OFFSET and FETCH
    pub unlimited: String,
    /// the byte behind the select list, and whether it has anything
    pub list_end: usize,
    pub has_list: bool,
}

impl Policy {
    pub fn sql(self) -> &'static str {
        match self {
            Self::Wait => "",
            Self::Skip => " SKIP LOCKED",
            Self::Fail => " NOWAIT",
        }
    }
}

/// Reads a statement's text; None for a form that is not known, among them one that locks in a subquery.
pub(super) fn find(text: &str) -> Option<Clauses> {
    let tokens = tokenize(text).ok()?;
    let r = Reader {
        text,
        tokens: &tokens,
        depths: depths(text, &tokens),
    };
    let select = r.find(0, &["select"])?;
    let from = r.find(select, &["from"])?;
    let (mut locks, mut blanks, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    let ends = |at: usize| {
        let next = r.find(at + 1, &["for", "limit", "offset", "fetch"]);
        next.unwrap_or(tokens.len())
    };
    for at in from..tokens.len() {
        match LockStrength::at(text, &tokens, at) {
            Some(_) if r.depths[at] > 0 => return None,
            Some(strength) => {
                let end = ends(at);
                locks.push(clause(&r, at + strength.words()..end, strength)?);
                blanks.push(r.span(at..end)?);
            }
            None if r.depths[at] == 0 && ["limit", "offset", "fetch"].iter().any(|w| r.word(at, w)) => {
                limits.push(r.span(at..ends(at))?);
            }
            None => {}
        }
    }
    let without = |text: &str, spans: &[Range<usize>]| {
        let mut text = text.to_owned();
        for span in spans {
            text.replace_range(span.clone(), &" ".repeat(span.len()));
        }
        text
    };
    let shortened = without(text, &blanks);
    Some(Clauses {
        unlimited: without(&shortened, &limits),
        text: shortened,
        list_end: tokens[from - 1].end as usize,
        has_list: from > select + 1,
        locks,
    })
}

fn is(r: &Reader<'_>, at: usize, words: &[&str]) -> bool {
    words.iter().enumerate().all(|(n, word)| r.word(at + n, word))
}

/// `[OF a, b] [NOWAIT | SKIP LOCKED]`
fn clause(r: &Reader<'_>, tokens: Range<usize>, strength: LockStrength) -> Option<Clause> {
    let mut end = tokens.end;
    let mut policy = Policy::Wait;
    if end > tokens.start && r.word(end - 1, "nowait") {
        (policy, end) = (Policy::Fail, end - 1);
    } else if end > tokens.start + 1 && is(r, end - 2, &["skip", "locked"]) {
        (policy, end) = (Policy::Skip, end - 2);
    }
    let of = match r.word(tokens.start, "of") {
        true => {
            let name = |item: Range<usize>| (item.len() == 1).then(|| r.identifier(item.start)).flatten();
            let names = r.split(tokens.start + 1..end).into_iter().map(name);
            names.collect::<Option<Vec<_>>>()?
        }
        false => (tokens.start == end).then(Vec::new)?,
    };
    Some(Clause { strength, policy, of })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        let Some(found) = find(text) else {
            return "unknown".into();
        };
        let clause = |c: &Clause| format!("{} OF {}{}", c.strength.sql(), c.of.join(","), c.policy.sql());
        let locks: Vec<_> = found.locks.iter().map(clause).collect();
        format!(
            "{}|{}|{}",
            text[..found.list_end].trim(),
            found.unlimited.trim(),
            locks.join("; ")
        )
    }

    #[test]
    fn clauses_are_found() {
        for (text, parts) in [
            (
                "SELECT a, b FROM t JOIN u USING (k) FOR UPDATE",
                "SELECT a, b|SELECT a, b FROM t JOIN u USING (k)|FOR UPDATE OF ",
            ),
            (
                "with w as (select 1 from x) select extract(day from d) from t, \"U\" order by 1 limit 3 offset $1 \
                 for no key update of t, \"U\" skip locked for key share of w nowait",
                "with w as (select 1 from x) select extract(day from d)|with w as (select 1 from x) \
                 select extract(day from d) from t, \"U\" order by 1|FOR NO KEY UPDATE OF t,U SKIP LOCKED; FOR KEY SHARE OF w NOWAIT",
            ),
            (
                "SELECT * FROM t FOR SHARE LIMIT 1",
                "SELECT *|SELECT * FROM t|FOR SHARE OF ",
            ),
            ("SELECT * FROM t WHERE a IN (SELECT a FROM u FOR UPDATE)", "unknown"),
            (
                "SELECT substring(a for 2) FROM t",
                "SELECT substring(a for 2)|SELECT substring(a for 2) FROM t|",
            ),
        ] {
            assert_eq!(show(text), parts, "{text}");
        }
    }
}
