//! A statement that begins with WITH, in its parts: what stands in parentheses behind each name, and the statement behind them.

use crate::cursor::Cursor;
use crate::lexer::{Token, TokenKind};
use std::ops::Range;

/// One query of WITH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithQuery {
    /// its name
    pub name: String,
    /// `(a, b)` behind the name: bytes
    pub columns: Option<Range<usize>>,
    /// name, columns and query: bytes
    pub span: Range<usize>,
    /// what stands in the parentheses: bytes
    pub body: Range<usize>,
    /// it is an INSERT, UPDATE, DELETE or MERGE
    pub writes: bool,
    /// all names in it
    pub words: Vec<String>,
}

/// The parts of such a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithQueries {
    /// WITH RECURSIVE, in which nevertheless no query names a later one
    pub recursive: bool,
    /// in the order of the text
    pub queries: Vec<WithQuery>,
    /// the statement behind them: bytes
    pub main: Range<usize>,
    /// all names in it
    pub main_words: Vec<String>,
}

impl WithQueries {
    /// Whether any of its queries writes.
    pub fn writes(&self) -> bool {
        self.queries.iter().any(|q| q.writes)
    }
}

/// The parts of a statement; None where it does not begin with WITH, where one of its queries names a later one, or one that writes
/// names itself, as RECURSIVE lets them, or where it has what is not known here.
pub fn with_queries(text: &str, tokens: &[Token]) -> Option<WithQueries> {
    let mut c = Cursor::new(text, tokens);
    c.accept("with").then_some(())?;
    let recursive = c.accept("recursive");
    let mut queries = Vec::new();
    loop {
        let start = c.at;
        let name = c.identifier()?;
        let columns = c.is_symbol("(").then(|| {
            let from = c.at;
            c.skip_parentheses();
            c.bytes(from..c.at)
        });
        c.accept("as").then_some(())?;
        c.accept("not");
        c.accept("materialized");
        c.is_symbol("(").then_some(())?;
        let inside = c.skip_parentheses();
        let first = tokens.get(inside.start)?;
        if let Some(nested) = nested(text, tokens, inside.clone()) {
            queries.extend(nested.queries);
            queries.push(WithQuery {
                name,
                columns,
                span: c.bytes(start..c.at),
                body: nested.main,
                writes: true,
                words: nested.main_words,
            });
            if !c.accept_symbol(",") {
                break;
            }
            continue;
        }
        queries.push(WithQuery {
            name,
            columns,
            span: c.bytes(start..c.at),
            body: c.bytes(inside.clone()),
            writes: writes(text, first, &tokens[inside.clone()])?,
            words: words(text, &tokens[inside]),
        });
        if !c.accept_symbol(",") {
            break;
        }
    }
    // SEARCH and CYCLE stand there, which only RECURSIVE has.
    let known = ["select", "values", "insert", "update", "delete", "merge"];
    (known.iter().any(|w| c.is(w)) || c.is_symbol("(")).then_some(())?;
    (!recursive || names_only_what_is_before(&queries)).then_some(())?;
    Some(WithQueries {
        recursive,
        queries,
        main: c.bytes(c.at..tokens.len()),
        main_words: words(text, &tokens[c.at..]),
    })
}

/// The parts of `WITH a AS (…) DELETE …` that stands in parentheses of another WITH: its queries can as well be the outer one's, where
/// their names mean nothing to the rest. None for what only reads, and where that is not so.
fn nested(text: &str, tokens: &[Token], inside: Range<usize>) -> Option<WithQueries> {
    let inner = with_queries(text, &tokens[inside.clone()])?;
    let main = tokens[inside.clone()]
        .iter()
        .find(|t| t.start as usize == inner.main.start)?;
    let outside = || tokens[..inside.start].iter().chain(&tokens[inside.end..]);
    let is_named = |name: &String| outside().any(|t| t.identifier(text).as_ref() == Some(name));
    let is_apart = inner.queries.iter().all(|q| !q.writes && !is_named(&q.name));
    (is_write(text, main) && is_apart && !inner.recursive).then_some(inner)
}

fn is_write(text: &str, token: &Token) -> bool {
    ["insert", "update", "delete", "merge"]
        .iter()
        .any(|w| token.is_word(text, w))
}

fn names_only_what_is_before(queries: &[WithQuery]) -> bool {
    let names = |query: &WithQuery, other: &WithQuery| query.words.contains(&other.name);
    (0..queries.len()).all(|i| {
        let (query, behind) = (&queries[i], &queries[i + 1..]);
        let names_itself = query.writes && names(query, query);
        !names_itself && !behind.iter().any(|other| names(query, other))
    })
}

/// None for a WITH inside that may write.
fn writes(text: &str, first: &Token, tokens: &[Token]) -> Option<bool> {
    match first.is_word(text, "with") {
        true => (!tokens.iter().any(|t| is_write(text, t))).then_some(false),
        false => Some(is_write(text, first)),
    }
}

fn words(text: &str, tokens: &[Token]) -> Vec<String> {
    let named = tokens
        .iter()
        .filter(|t| matches!(t.kind, TokenKind::Word | TokenKind::Quoted));
    named.filter_map(|t| t.identifier(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        let text = "WITH a AS (DELETE FROM t RETURNING *), \"B\" (x) AS NOT MATERIALIZED (SELECT 1) INSERT INTO u SELECT * FROM a";
        let tokens = crate::lexer::tokenize(text).unwrap();
        let parts = with_queries(text, &tokens).unwrap();
        let shown: Vec<_> = parts
            .queries
            .iter()
            .map(|q| (q.name.as_str(), &text[q.body.clone()], &text[q.span.clone()], q.writes))
            .collect();
        assert_eq!(
            shown,
            [
                (
                    "a",
                    "DELETE FROM t RETURNING *",
                    "a AS (DELETE FROM t RETURNING *)",
                    true
                ),
                ("B", "SELECT 1", "\"B\" (x) AS NOT MATERIALIZED (SELECT 1)", false),
            ]
        );
        assert_eq!(&text[parts.main], "INSERT INTO u SELECT * FROM a");
        for text in [
            "SELECT 1",
            "WITH RECURSIVE a AS (SELECT * FROM b), b AS (SELECT 1) SELECT 1",
            "WITH RECURSIVE a AS (DELETE FROM a RETURNING *) SELECT 1",
            "WITH RECURSIVE a AS (SELECT 1) CYCLE x SET y USING z SELECT 1",
            "WITH a AS SELECT 1",
        ] {
            let tokens = crate::lexer::tokenize(text).unwrap();
            assert_eq!(with_queries(text, &tokens), None, "{text}");
        }
        let text = "WITH a AS (WITH b AS (SELECT 1) DELETE FROM t USING b RETURNING *) SELECT * FROM a";
        let parts = with_queries(text, &crate::lexer::tokenize(text).unwrap()).unwrap();
        let shown: Vec<_> = parts
            .queries
            .iter()
            .map(|q| (&text[q.body.clone()], q.writes))
            .collect();
        assert_eq!(
            shown,
            [("SELECT 1", false), ("DELETE FROM t USING b RETURNING *", true)]
        );
        let text = "WITH a AS (WITH b AS (SELECT 1) DELETE FROM t USING b RETURNING *) SELECT * FROM a, b";
        assert_eq!(with_queries(text, &crate::lexer::tokenize(text).unwrap()), None);
        let text =
            "WITH RECURSIVE a AS (SELECT 1 UNION SELECT * FROM a), b AS (DELETE FROM t USING a RETURNING *) SELECT 1";
        let parts = with_queries(text, &crate::lexer::tokenize(text).unwrap());
        assert!(parts.is_some_and(|parts| parts.recursive && parts.queries.len() == 2));
    }
}
