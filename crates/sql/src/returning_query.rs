//! An INSERT, UPDATE or DELETE whose RETURNING has subqueries, taken apart so that the list can be read by a query over the rows
//! that were written: PostgreSQL computes the list of each row in the statement's snapshot, which shows nothing of what the statement
//! writes, and so does a query beside a WITH that writes.

use crate::functions;
use crate::lexer::{Token, TokenKind, depths};
use std::ops::Range;

/// Columns that every table has and that belong to a row where it lies.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// The parts, as bytes of the statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturningQuery {
    /// `WITH …` in front, or empty
    pub with: Range<usize>,
    /// the statement up to RETURNING
    pub write: Range<usize>,
    /// the list of RETURNING
    pub list: Range<usize>,
    /// what the list says in front of the target's name: `s.` of `s.t.a`, which the rows of a query have not
    pub schemas: Vec<Range<usize>>,
    /// what the target's columns are qualified with
    pub alias: String,
    /// the list has a `*`
    pub all: bool,
    /// all names in the list
    pub names: Vec<String>,
    /// the key word that its tag begins with
    pub verb: &'static str,
}

/// The parts of a statement whose RETURNING has a subquery, or looks something up in the catalogs; None for other statements, and where the list needs more of a row than
/// its columns.
pub fn returning_query(text: &str, tokens: &[Token]) -> Option<ReturningQuery> {
    let depths = depths(text, tokens);
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
    let find = |from: usize, words: &[&str]| {
        (from..tokens.len()).find(|&i| depths[i] == 0 && words.iter().any(|w| word(i, w)))
    };
    let start = match word(0, "with") {
        true => (1..tokens.len()).find(|&i| {
            let verb = ["insert", "update", "delete"].iter().any(|w| word(i, w));
            depths[i] == 0 && verb && !word(i + 1, "as") && !symbol(i + 1, "(")
        })?,
        false => 0,
    };
    let returning = find(start + 1, &["returning"])?;
    let list = returning + 1..tokens.len();
    let opens = |i: usize| symbol(i, "(") && ["values", "table", "with"].iter().any(|w| word(i + 1, w));
    let has_query = list.clone().any(|i| word(i, "select") || opens(i));
    // What the home shard looks up for a row is asked by a query as well.
    if !has_query && !functions::calls_look_up(text, &tokens[list.clone()]) {
        return None;
    }
    let (verb, name) = match start {
        at if word(at, "insert") && word(at + 1, "into") => ("INSERT", at + 2),
        at if word(at, "update") => ("UPDATE", at + 1),
        at if word(at, "delete") && word(at + 1, "from") => ("DELETE", at + 2),
        _ => return None,
    };
    let (mut alias, mut at) = (tokens.get(name)?.identifier(text)?, name + 1);
    while symbol(at, ".") {
        alias = tokens.get(at + 1)?.identifier(text)?;
        at += 2;
    }
    let is_name = |i: usize| matches!(tokens[i].kind, TokenKind::Word | TokenKind::Quoted);
    let ends: &[&str] = match verb {
        "INSERT" => &[],
        "UPDATE" => &["set"],
        _ => &["using", "where", "returning"],
    };
    if word(at, "as") {
        alias = tokens.get(at + 1)?.identifier(text)?;
        at += 2;
    } else if verb != "INSERT" && is_name(at) && !ends.iter().any(|w| word(at, w)) {
        alias = tokens.get(at)?.identifier(text)?;
        at += 1;
    }
    // Columns of other relations would have to come along.
    let joins = match verb {
        "UPDATE" => {
            !word(at, "set") || has_from(&depths, &|i| word(i, "from") && !word(i - 1, "distinct"), at..returning)
        }
        "DELETE" => find(at, &["using"]).is_some_and(|using| using < returning) || symbol(at, "*"),
        _ => false,
    };
    let names: Vec<String> = list.clone().filter_map(|i| tokens[i].identifier(text)).collect();
    let whole_row = list.clone().any(|i| {
        let is_alias = is_name(i) && tokens[i].identifier(text).as_deref() == Some(&alias);
        let is_relation = ["from", "join", "only", "table", "as"].iter().any(|w| word(i - 1, w));
        is_alias && !is_relation && !symbol(i + 1, ".") && !symbol(i - 1, ".")
    });
    if joins || whole_row || names.iter().any(|n| SYSTEM_COLUMNS.contains(&n.as_str())) {
        return None;
    }
    let bytes = |tokens_of: Range<usize>| -> Option<Range<usize>> {
        let (first, last) = (tokens.get(tokens_of.start)?, tokens.get(tokens_of.end.checked_sub(1)?)?);
        Some(first.start as usize..last.end as usize)
    };
    let schemas = schemas(text, tokens, &alias, list.clone())?;
    let star = |i: usize| symbol(i, "*") && (symbol(i - 1, ".") || symbol(i - 1, ",") || i == list.start);
    Some(ReturningQuery {
        with: if start > 0 { bytes(0..start)? } else { 0..0 },
        write: bytes(start..returning)?,
        all: list.clone().any(star),
        list: bytes(list)?,
        schemas,
        alias,
        names,
        verb,
    })
}

impl ReturningQuery {
    /// The list, as it stands over rows that are called `alias` and belong to no schema.
    pub fn list_sql(&self, text: &str) -> String {
        let (mut out, mut at) = (String::new(), self.list.start);
        for schema in &self.schemas {
            out.push_str(&text[at..schema.start]);
            at = schema.end;
        }
        out.push_str(&text[at..self.list.end]);
        out
    }
}

/// The bytes of each schema (and database) in front of `alias.` in these tokens. None where a subquery reads a relation of that name
/// which may be another: without its schema, the name would mean that one.
fn schemas(text: &str, tokens: &[Token], alias: &str, list: Range<usize>) -> Option<Vec<Range<usize>>> {
    let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
    let is_alias = |i: usize| tokens[i].identifier(text).as_deref() == Some(alias);
    // Where the name that ends at this token begins.
    let first = |mut at: usize| {
        while at >= list.start + 2 && symbol(at - 1, ".") && tokens[at - 2].identifier(text).is_some() {
            at -= 2;
        }
        at
    };
    let spelled =
        |tokens_of: Range<usize>| -> Vec<_> { tokens[tokens_of].iter().map(|t| t.identifier(text)).collect() };
    let mentions = || list.clone().filter(|&i| is_alias(i) && first(i) < i);
    let (of_columns, of_relations): (Vec<_>, Vec<_>) = mentions().partition(|&i| symbol(i + 1, "."));
    let Some(&column) = of_columns.first() else {
        return Some(Vec::new());
    };
    let schema = spelled(first(column)..column);
    let is_same = |&i: &usize| spelled(first(i)..i) == schema;
    let is_bare = |i: usize| {
        let begins = ["from", "join", "only", "table", "as", "lateral"]
            .iter()
            .any(|w| tokens[i - 1].is_word(text, w));
        is_alias(i) && !symbol(i + 1, ".") && (begins || symbol(i - 1, ",") || symbol(i - 1, "("))
    };
    let mut all = of_columns.iter().chain(&of_relations);
    (all.all(is_same) && !list.clone().any(is_bare)).then_some(())?;
    let bytes = |i: &usize| tokens[first(*i)].start as usize..tokens[*i].start as usize;
    Some(of_columns.iter().map(bytes).collect())
}

fn has_from(depths: &[i32], is_from: &dyn Fn(usize) -> bool, mut tokens: Range<usize>) -> bool {
    tokens.any(|i| depths[i] == 0 && is_from(i))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        let tokens = crate::lexer::tokenize(text).unwrap();
        match returning_query(text, &tokens) {
            None => "none".to_owned(),
            Some(q) => format!(
                "{}|{}|{}|{}|{}",
                &text[q.with.clone()],
                &text[q.write.clone()],
                q.list_sql(text),
                q.alias,
                q.all
            ),
        }
    }

    #[test]
    fn parts_are_found() {
        for (text, parts) in [
            (
                "INSERT INTO s.t AS x (a) VALUES (1) ON CONFLICT DO NOTHING RETURNING a, (SELECT 1), x.*",
                "|INSERT INTO s.t AS x (a) VALUES (1) ON CONFLICT DO NOTHING|a, (SELECT 1), x.*|x|true",
            ),
            (
                "WITH q AS (SELECT 2) UPDATE t u SET a = b IS DISTINCT FROM c WHERE (SELECT true FROM q) RETURNING count(*) + (TABLE q)",
                "WITH q AS (SELECT 2)|UPDATE t u SET a = b IS DISTINCT FROM c WHERE (SELECT true FROM q)|count(*) + (TABLE q)|u|false",
            ),
            (
                "DELETE FROM t WHERE a = 1 RETURNING (SELECT max(b) FROM s)",
                "|DELETE FROM t WHERE a = 1|(SELECT max(b) FROM s)|t|false",
            ),
            (
                "DELETE FROM t RETURNING (SELECT a FROM t WHERE t.b = 1)",
                "|DELETE FROM t|(SELECT a FROM t WHERE t.b = 1)|t|false",
            ),
            (
                "DELETE FROM s.t RETURNING s.t.a, (SELECT b FROM u WHERE u.a = s . \"t\".a AND s.t(1)), s.t.*",
                "|DELETE FROM s.t|t.a, (SELECT b FROM u WHERE u.a = \"t\".a AND s.t(1)), t.*|t|true",
            ),
            ("DELETE FROM s.t RETURNING s.t.a, (SELECT max(a) FROM q.t)", "none"),
            ("DELETE FROM s.t RETURNING s.t.a, (SELECT max(a) FROM t)", "none"),
            (
                "DELETE FROM t RETURNING a, to_regclass('t')",
                "|DELETE FROM t|a, to_regclass('t')|t|false",
            ),
            ("DELETE FROM t RETURNING a", "none"),
            ("DELETE FROM t USING s RETURNING (SELECT 1)", "none"),
            ("UPDATE t SET a = 1 FROM s RETURNING (SELECT 1)", "none"),
            ("INSERT INTO t VALUES (1) RETURNING t, (SELECT 1)", "none"),
            ("INSERT INTO t VALUES (1) RETURNING xmax, (SELECT 1)", "none"),
            ("INSERT INTO t SELECT 1", "none"),
        ] {
            assert_eq!(show(text), parts, "{text}");
        }
    }
}
