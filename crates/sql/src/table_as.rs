//! CREATE TABLE AS and SELECT INTO in two statements: one that makes the table without rows, which PostgreSQL can do
//! wherever the tables' columns are known, and the query.

use crate::kind::ObjectName;
use crate::lexer::{Reader, Token, TokenKind, tokenize};
use crate::relations::substitute;

/// The two statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableAs {
    /// `CREATE TABLE … AS … WITH NO DATA`
    pub create: String,
    /// the query
    pub query: String,
    /// rows are wanted
    pub with_data: bool,
    /// an existing table is left as it is
    pub if_not_exists: bool,
    /// `create` begins with the client's text, so that positions in it are the client's
    pub keeps_positions: bool,
    /// has parameters
    pub parameters: bool,
}

impl TableAs {
    /// The whole statement with another query; None for SELECT INTO.
    pub fn with_query(&self, query: &str) -> Option<String> {
        let head = self.create.strip_suffix(NO_DATA)?.strip_suffix(self.query.as_str())?;
        Some(format!("{head}{query}{}", if self.with_data { "" } else { NO_DATA }))
    }
}

const NO_DATA: &str = " WITH NO DATA";

/// Splits a statement that makes the table `name`; None where it has another form.
pub fn table_as(text: &str, tokens: &[Token], name: &ObjectName) -> Option<TableAs> {
    let r = Reader { text, tokens };
    let parameters = tokens.iter().any(|t| t.kind == TokenKind::Parameter);
    if r.is_word(0, "create") {
        let at = r.outside("as")?;
        let (end, with_data) = match tokens.len() {
            n if r.words(n.checked_sub(3)?, &["with", "no", "data"]) => (n - 3, false),
            n if r.words(n - 2, &["with", "data"]) => (n - 2, true),
            n => (n, true),
        };
        // Parentheses around all of it mean nothing.
        let begin = (at + 1..end).find(|&i| !r.encloses(i, (end + at).checked_sub(i)))?;
        let query_end = end - (begin - at - 1);
        let query = r.piece(begin, query_end)?;
        let opened: Vec<_> = tokens[at + 1..begin]
            .iter()
            .map(|t| (t.start as usize..t.end as usize, " ".to_owned()))
            .collect();
        let head = text.get(..tokens[begin].start as usize)?;
        let (head, _) = substitute(head, &opened);
        return Some(TableAs {
            create: format!("{head}{query}{NO_DATA}"),
            query: match r.is_word(begin, "table") {
                true => format!("SELECT * FROM {}", r.piece(begin + 1, query_end)?),
                false => query.to_owned(),
            },
            with_data,
            if_not_exists: (1..at).any(|i| r.words(i, &["if", "not", "exists"])),
            keeps_positions: true,
            parameters,
        });
    }
    // SELECT … INTO [TEMPORARY | UNLOGGED] [TABLE] name …
    let into = r.outside("into")?;
    let name_at = (into..tokens.len()).find(|&i| tokens[i].start as usize == name.span.start)?;
    let behind = (name_at..tokens.len()).find(|&i| tokens[i].start as usize >= name.span.end);
    let persistence: Vec<_> = (into + 1..name_at)
        .filter(|&i| !r.is_word(i, "table"))
        .map(|i| tokens[i].text(text))
        .collect();
    let rest = behind.and_then(|at| r.piece(at, tokens.len())).unwrap_or_default();
    let query = format!("{} {rest}", r.piece(0, into)?);
    Some(TableAs {
        create: format!(
            "CREATE {} TABLE {} AS {query} WITH NO DATA",
            persistence.join(" "),
            text.get(name.span.clone())?
        ),
        query,
        with_data: true,
        if_not_exists: false,
        keeps_positions: false,
        parameters,
    })
}

/// A query with constants, as SQL, in place of its parameters. Where a parameter is a column of the result, the column keeps the name that
/// PostgreSQL gives it. None where the text cannot be read, or has other parameters.
pub fn with_constants(text: &str, constants: &[String]) -> Option<String> {
    let tokens = tokenize(text).ok()?;
    let mut replacements = Vec::new();
    for (i, token) in tokens
        .iter()
        .enumerate()
        .filter(|(_, t)| t.kind == TokenKind::Parameter)
    {
        let number: usize = token.text(text).get(1..)?.parse().ok()?;
        let constant = constants.get(number.checked_sub(1)?)?;
        let begins = |t: &Token| t.is(text, ",") || ["select", "distinct", "all"].iter().any(|w| t.is_word(text, w));
        let ends = |t: &Token| {
            let words = ["from", "where", "union", "order", "limit", "group"];
            t.is(text, ",") || t.is(text, ")") || words.iter().any(|w| t.is_word(text, w))
        };
        let is_column = i > 0 && begins(&tokens[i - 1]) && tokens.get(i + 1).is_none_or(ends);
        let with = match is_column {
            true => format!("(SELECT {constant} AS \"?column?\")"),
            false => constant.clone(),
        };
        replacements.push((token.start as usize..token.end as usize, with));
    }
    Some(substitute(text, &replacements).0)
}

impl<'a> Reader<'a> {
    fn words(&self, at: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(i, word)| self.is_word(at + i, word))
    }

    /// The first such word outside of parentheses.
    fn outside(&self, word: &str) -> Option<usize> {
        let mut depth = 0;
        for (i, token) in self.tokens.iter().enumerate() {
            match token.kind {
                TokenKind::Symbol if token.is(self.text, "(") => depth += 1,
                TokenKind::Symbol if token.is(self.text, ")") => depth -= 1,
                TokenKind::Word if depth == 0 && token.is_word(self.text, word) => return Some(i),
                _ => {}
            }
        }
        None
    }

    /// Whether these are a parenthesis and its other.
    fn encloses(&self, open: usize, close: Option<usize>) -> bool {
        let mut depth = 0;
        let closes = (open..self.tokens.len()).find(|&at| {
            depth += i32::from(self.is(at, "(")) - i32::from(self.is(at, ")"));
            depth == 0
        });
        self.is(open, "(") && closes == close
    }

    fn piece(&self, from: usize, to: usize) -> Option<&'a str> {
        let (first, last) = (self.tokens.get(from)?, self.tokens.get(to.checked_sub(1)?)?);
        self.text.get(first.start as usize..last.end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn parts(text: &str) -> Option<(String, String, bool)> {
        let parsed = crate::parse(text).expect(text).remove(0);
        let Kind::Ddl(ddl) = &parsed.kind else { panic!("{text}") };
        let parts = table_as(text, &parsed.tokens, &ddl.relations[0])?;
        Some((parts.create, parts.query, parts.with_data))
    }

    #[test]
    fn a_query_takes_the_place_of_another() {
        let text = "create table t (a) as execute q with no data";
        let parsed = crate::parse(text).expect(text).remove(0);
        let Kind::Ddl(ddl) = &parsed.kind else { panic!("{text}") };
        let parts = table_as(text, &parsed.tokens, &ddl.relations[0]).expect(text);
        let whole = parts.with_query("select 1");
        assert_eq!(whole.as_deref(), Some("create table t (a) as select 1 WITH NO DATA"));
    }

    #[test]
    fn parentheses_around_the_query_are_left_out() {
        let parts_of = |text: &str| parts(text).map(|(create, query, _)| (create, query));
        assert_eq!(
            parts_of("create table t as ((with w as (select 1) table w)) with data"),
            Some((
                "create table t as   with w as (select 1) table w WITH NO DATA".to_owned(),
                "with w as (select 1) table w".to_owned()
            ))
        );
        let union = "create table t as (select 1) union (select 2)";
        assert_eq!(
            parts_of(union),
            Some((
                format!("{union} WITH NO DATA"),
                "(select 1) union (select 2)".to_owned()
            ))
        );
    }

    #[test]
    fn constants_stand_for_parameters() {
        let constants = ["CAST('1' AS integer)".to_owned(), "CAST(NULL AS text)".to_owned()];
        assert_eq!(
            with_constants("select $2, a from t where b > $1", &constants).as_deref(),
            Some("select (SELECT CAST(NULL AS text) AS \"?column?\"), a from t where b > CAST('1' AS integer)")
        );
        assert_eq!(with_constants("select $3", &constants), None);
    }

    #[test]
    fn both_forms_are_split() {
        for (text, create, query, data) in [
            (
                "create table t (a, b) as select 1 as x, 2",
                "create table t (a, b) as select 1 as x, 2 WITH NO DATA",
                "select 1 as x, 2",
                true,
            ),
            (
                "CREATE TEMP TABLE IF NOT EXISTS s.t WITH (fillfactor = 70) ON COMMIT DROP AS (TABLE a) WITH NO DATA",
                "CREATE TEMP TABLE IF NOT EXISTS s.t WITH (fillfactor = 70) ON COMMIT DROP AS  TABLE a WITH NO DATA",
                "SELECT * FROM a",
                false,
            ),
            (
                "CREATE TABLE t AS TABLE a WITH DATA",
                "CREATE TABLE t AS TABLE a WITH NO DATA",
                "SELECT * FROM a",
                true,
            ),
            (
                "WITH w AS (SELECT 1) SELECT a INTO UNLOGGED TABLE \"S\".t FROM w WHERE a > 1",
                "CREATE UNLOGGED TABLE \"S\".t AS WITH w AS (SELECT 1) SELECT a FROM w WHERE a > 1 WITH NO DATA",
                "WITH w AS (SELECT 1) SELECT a FROM w WHERE a > 1",
                true,
            ),
            (
                "SELECT 1 INTO t",
                "CREATE  TABLE t AS SELECT 1  WITH NO DATA",
                "SELECT 1 ",
                true,
            ),
        ] {
            assert_eq!(parts(text), Some((create.into(), query.into(), data)), "{text}");
        }
    }
}
