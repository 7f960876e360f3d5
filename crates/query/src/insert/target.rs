//! The parts of an INSERT … SELECT, found in its tokens: the tree keeps no places of clauses.

use pgherd_model::{ServerError, quote_identifier};
use pgherd_sql::lexer::{Token, TokenKind, depths, tokenize};
use std::ops::Range;

/// Where an INSERT's parts are, in bytes of its text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// the target's schema, where it is given
    pub schema: Option<String>,
    /// the target's name
    pub name: String,
    /// what the target's columns are qualified with
    pub alias: String,
    /// `INSERT INTO name [AS alias]`
    pub head: Range<usize>,
    /// the column list's names; None without a list
    pub columns: Option<Vec<String>>,
    /// what the list has of each of them, as SQL: the column, or a part of it (`a[1]`, `b.x`)
    pub places: Vec<String>,
    /// `name [AS alias]`
    pub named: Range<usize>,
    /// OVERRIDING … VALUE, or empty
    pub overriding: Range<usize>,
    /// that is OVERRIDING USER VALUE
    pub ignores_identities: bool,
    /// the source query
    pub source: Range<usize>,
    /// ON CONFLICT … RETURNING …, or empty
    pub tail: Range<usize>,
    /// the tail has ON CONFLICT
    pub conflict: bool,
    /// the tail has RETURNING
    pub returning: bool,
}

impl Target {
    /// Whether it gives values to parts of columns.
    pub fn has_parts(&self) -> bool {
        self.columns
            .iter()
            .flatten()
            .zip(&self.places)
            .any(|(name, place)| quote_identifier(name) != *place)
    }

    /// Its name as it was given, as SQL.
    pub fn home_name(&self) -> String {
        let schema = self.schema.as_ref().map(|s| quote_identifier(s) + ".");
        schema.unwrap_or_default() + &quote_identifier(&self.name)
    }
}

/// Reads an INSERT's parts. Errors: 0A000 for a form that is not known.
pub(super) fn parse(text: &str) -> Result<Target, ServerError> {
    find(text).ok_or_else(|| {
        ServerError::unsupported(
            "this form of INSERT is not supported over several shards",
            "Write INSERT INTO table (columns) SELECT …, with WITH behind INSERT.",
        )
    })
}

/// `WITH … INSERT INTO t SELECT …` as `INSERT INTO t WITH … SELECT …`, which is the same where nothing else needs the WITH; None
/// for other statements.
pub(super) fn with_behind(text: &str) -> Option<String> {
    let tokens = tokenize(text).ok()?;
    if !tokens.first()?.is_word(text, "with") {
        return None;
    }
    let insert = top_level(text, &tokens, 1, "insert", Some("into"))?;
    let (with, rest) = text.split_at(tokens[insert].start as usize);
    let target = find(rest)?;
    let starts = |span: &Range<usize>, word: &str| {
        let start = rest[span.clone()].trim_start();
        start.len() >= word.len() && start[..word.len()].eq_ignore_ascii_case(word)
    };
    let tail = rest[target.tail.clone()].to_ascii_lowercase();
    if starts(&target.source, "default") || tail.contains("select") {
        return None;
    }
    let (head, source, tail) = (
        &rest[..target.source.start],
        &rest[target.source.clone()],
        &rest[target.source.end..],
    );
    if !starts(&target.source, "with") {
        return Some(format!("{head} {with} {source}{tail}"));
    }
    // Both have one: a single list, where no name of the second means anything in the first.
    let (source, first) = (source.trim_start(), tokenize(with).ok()?);
    let apart = |name: &String| first.iter().all(|t| t.identifier(with).as_ref() != Some(name));
    let is_apart = !first.get(1)?.is_word(with, "recursive") && names_of_with(source)?.iter().all(apart);
    is_apart.then(|| format!("{head} {}, {} {tail}", with.trim_end(), &source["with".len()..]))
}

/// The names in `WITH a AS (…), b (x) AS MATERIALIZED (…) …`; None with RECURSIVE.
fn names_of_with(text: &str) -> Option<Vec<String>> {
    let tokens = tokenize(text).ok()?;
    let depths = depths(text, &tokens);
    let (mut names, mut at) = (Vec::new(), 1);
    loop {
        let token = tokens.get(at).filter(|t| !t.is_word(text, "recursive"))?;
        names.push(token.identifier(text)?);
        let of = (at..tokens.len()).find(|&i| depths[i] == depths[at] && tokens[i].is_word(text, "as"))?;
        let open = (of..tokens.len()).find(|&i| tokens[i].is(text, "("))?;
        let close = (open + 1..tokens.len()).find(|&i| depths[i] == depths[at] + 1 && tokens[i].is(text, ")"))?;
        if !tokens.get(close + 1)?.is(text, ",") {
            return Some(names);
        }
        at = close + 2;
    }
}

/// `WITH …` and the INSERT behind it, where one stands in front.
pub(super) fn split_with(text: &str) -> (&str, &str) {
    let insert = tokenize(text).ok().and_then(|tokens| {
        let first = tokens.first().filter(|t| t.is_word(text, "with"))?;
        let insert = top_level(text, &tokens, 1, "insert", Some("into"))?;
        Some((first.start as usize, tokens[insert].start as usize))
    });
    match insert {
        Some((start, at)) => (text[start..at].trim_end(), &text[at..]),
        None => ("", text),
    }
}

fn find(text: &str) -> Option<Target> {
    let tokens = tokenize(text).ok()?;
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
    let identifier = |at: usize| tokens.get(at).and_then(|t| t.identifier(text));
    if !word(0, "insert") || !word(1, "into") {
        return None;
    }
    let (mut schema, mut name, mut at) = (None, identifier(2)?, 3);
    while symbol(at, ".") {
        schema = Some(std::mem::replace(&mut name, identifier(at + 1)?));
        at += 2;
    }
    let mut alias = name.clone();
    if word(at, "as") {
        alias = identifier(at + 1)?;
        at += 2;
    }
    let head = tokens.first()?.start as usize..tokens.get(at - 1)?.end as usize;
    let (mut columns, mut places) = (None, Vec::new());
    if symbol(at, "(") && !["select", "with", "values", "table"].iter().any(|w| word(at + 1, w)) && !symbol(at + 1, "(")
    {
        let mut names = Vec::new();
        while symbol(at, if names.is_empty() { "(" } else { "," }) {
            names.push(identifier(at + 1)?);
            let end = part_end(text, &tokens, at + 2)?;
            let part = &text[tokens[at + 1].end as usize..tokens[end - 1].end as usize];
            places.push(quote_identifier(names.last()?) + part);
            at = end;
        }
        if !symbol(at, ")") {
            return None;
        }
        at += 1;
        columns = Some(names);
    }
    let mut overriding = head.end..head.end;
    let ignores_identities = word(at, "overriding") && word(at + 1, "user");
    if word(at, "overriding") && word(at + 2, "value") {
        overriding = tokens[at].start as usize..tokens[at + 2].end as usize;
        at += 3;
    }
    let (conflict, returning) = (
        top_level(text, &tokens, at, "on", Some("conflict")),
        top_level(text, &tokens, at, "returning", None),
    );
    let tail = [conflict, returning].into_iter().flatten().min();
    let end = text.len();
    let tail_start = tail.map_or(end, |t| tokens[t].start as usize);
    Some(Target {
        schema,
        name,
        alias,
        named: tokens.get(2)?.start as usize..head.end,
        head,
        columns,
        places,
        overriding,
        ignores_identities,
        source: tokens.get(at)?.start as usize..tail_start,
        tail: tail_start..end,
        conflict: conflict.is_some(),
        returning: returning.is_some(),
    })
}

/// Behind `[1]`, `.x` and such, which make a column's name one of a part of it.
fn part_end(text: &str, tokens: &[Token], mut at: usize) -> Option<usize> {
    loop {
        let token = tokens.get(at)?;
        if token.is(text, ".") {
            at += 2;
        } else if token.is(text, "[") {
            let mut depth = 0;
            at += tokens[at..].iter().position(|token| {
                depth += i32::from(token.is(text, "[")) - i32::from(token.is(text, "]"));
                depth == 0
            })?;
            at += 1;
        } else {
            return Some(at);
        }
    }
}

/// The first unquoted word outside of parentheses, followed by another where that is asked for.
fn top_level(text: &str, tokens: &[Token], from: usize, word: &str, next: Option<&str>) -> Option<usize> {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(from) {
        match token.kind {
            TokenKind::Symbol if token.is(text, "(") => depth += 1,
            TokenKind::Symbol if token.is(text, ")") => depth -= 1,
            TokenKind::Word if depth == 0 && token.is_word(text, word) => {
                let follows = next.is_none_or(|next| tokens.get(i + 1).is_some_and(|t| t.is_word(text, next)));
                if follows {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        let text = "INSERT INTO s.\"T\" AS x (a, \"B\") OVERRIDING SYSTEM VALUE SELECT 1, (SELECT 2) FROM t JOIN u ON t.a = u.a ON CONFLICT (a) DO NOTHING RETURNING a";
        let target = parse(text).expect(text);
        assert_eq!(&text[target.head.clone()], "INSERT INTO s.\"T\" AS x");
        assert_eq!(target.columns, Some(vec!["a".to_owned(), "B".to_owned()]));
        assert_eq!(&text[target.overriding.clone()], "OVERRIDING SYSTEM VALUE");
        assert_eq!(
            &text[target.source.clone()],
            "SELECT 1, (SELECT 2) FROM t JOIN u ON t.a = u.a "
        );
        assert_eq!(&text[target.tail.clone()], "ON CONFLICT (a) DO NOTHING RETURNING a");
        let text = "insert into t (select 1)";
        let target = parse(text).expect(text);
        assert_eq!((&text[target.source.clone()], target.columns), ("(select 1)", None));
        let target = parse("INSERT INTO t (k, a[1 + b[2]], \"B\".x.y) SELECT 1, 2, 3").expect("parts of columns");
        assert_eq!(
            (target.columns, target.places),
            (
                Some(vec!["k".to_owned(), "a".to_owned(), "B".to_owned()]),
                vec!["\"k\"".to_owned(), "\"a\"[1 + b[2]]".to_owned(), "\"B\".x.y".to_owned()]
            )
        );
        assert_eq!(
            with_behind("WITH w AS (INSERT INTO x VALUES (1)) INSERT INTO t (a) SELECT 1 FROM w RETURNING a")
                .as_deref(),
            Some("INSERT INTO t (a)  WITH w AS (INSERT INTO x VALUES (1))  SELECT 1 FROM w RETURNING a")
        );
        assert_eq!(
            with_behind("WITH a AS (SELECT 1) INSERT INTO t WITH b (x) AS (SELECT 2), c AS (SELECT 3) SELECT 4")
                .as_deref(),
            Some("INSERT INTO t  WITH a AS (SELECT 1),  b (x) AS (SELECT 2), c AS (SELECT 3) SELECT 4 ")
        );
        assert_eq!(
            with_behind("WITH a AS (SELECT * FROM b) INSERT INTO t WITH b AS (SELECT 2) SELECT 4"),
            None
        );
        assert_eq!(with_behind("INSERT INTO t SELECT 1"), None);
    }
}
