//! Two statements that are parts of one, and change rows of the same table: PostgreSQL lets the later one pass by the rows that the
//! earlier one has written. Here the earlier one returns their keys as well, and the later one gets a condition more.

use crate::lexer::{Token, TokenKind, depths, tokenize};
use pgherd_model::quote_identifier;

/// An INSERT, UPDATE or DELETE without WITH in front, by its tokens outside of parentheses.
struct Parts {
    tokens: Vec<Token>,
    inserts: bool,
    alias: String,
    /// SET
    set: Option<usize>,
    /// WHERE of an UPDATE or DELETE
    condition: Option<usize>,
    returning: Option<usize>,
}

fn parts(text: &str) -> Option<Parts> {
    let tokens = tokenize(text).ok()?;
    let depths = depths(text, &tokens);
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
    let find = |from: usize, what: &str| (from..tokens.len()).find(|&i| depths[i] == 0 && word(i, what));
    let inserts = word(0, "insert") && word(1, "into");
    let name = match 0 {
        at if inserts || word(at, "delete") && word(1, "from") => 2,
        at if word(at, "update") => 1,
        _ => return None,
    };
    let (mut alias, mut at) = (tokens.get(name)?.identifier(text)?, name + 1);
    while symbol(at, ".") {
        alias = tokens.get(at + 1)?.identifier(text)?;
        at += 2;
    }
    let ends = ["set", "using", "where", "returning"];
    let is_name = |i: usize| {
        tokens
            .get(i)
            .is_some_and(|t| matches!(t.kind, TokenKind::Word | TokenKind::Quoted))
    };
    if word(at, "as") {
        alias = tokens.get(at + 1)?.identifier(text)?;
    } else if !inserts && is_name(at) && !ends.iter().any(|w| word(at, w)) {
        alias = tokens.get(at)?.identifier(text)?;
    }
    if symbol(at, "*") || word(name, "only") {
        return None;
    }
    let returning = find(at, "returning");
    let condition = find(at, "where").filter(|_| !inserts);
    let set = match inserts {
        true => (at..tokens.len()).find(|&i| word(i, "set") && word(i - 1, "update") && word(i - 2, "do")),
        false => find(at, "set"),
    };
    if condition.is_some_and(|w| word(w + 1, "current") && word(w + 2, "of")) {
        return None;
    }
    Some(Parts {
        inserts,
        alias,
        set,
        condition,
        returning,
        tokens,
    })
}

impl Parts {
    /// Whether SET gives a value to one of these columns.
    fn sets(&self, text: &str, columns: &[String]) -> bool {
        let Some(set) = self.set else { return false };
        let is = |i: usize, symbol: &str| self.tokens.get(i).is_some_and(|t| t.is(text, symbol));
        let begins = |i: usize| i == set + 1 || is(i - 1, ",") || is(i - 1, "(");
        (set + 1..self.tokens.len()).any(|i| {
            let named = self.tokens[i]
                .identifier(text)
                .is_some_and(|name| columns.contains(&name));
            // In a list of names, or before its value.
            named && begins(i) && (is(i + 1, "=") || is(i + 1, ",") || is(i + 1, ")") || is(i + 1, "["))
        })
    }

    fn at(&self, token: usize) -> usize {
        self.tokens[token].start as usize
    }

    fn columns(&self, key: &[String]) -> String {
        let alias = quote_identifier(&self.alias);
        let columns: Vec<_> = key.iter().map(|c| format!("{alias}.{}", quote_identifier(c))).collect();
        columns.join(", ")
    }
}

/// The statement with these columns of the rows that it writes behind what it returns; None where it sets one of them, or is of
/// another form.
pub fn returning_also(text: &str, key: &[String]) -> Option<String> {
    let parts = parts(text)?;
    (!parts.sets(text, key)).then_some(())?;
    let columns = parts.columns(key);
    Some(match parts.returning {
        Some(_) => format!("{text}, {columns}"),
        None => format!("{text} RETURNING {columns}"),
    })
}

/// The UPDATE or DELETE for rows whose columns are not among these, each a constant or several in parentheses; None for another form.
pub fn passing_by(text: &str, key: &[String], rows: &[String]) -> Option<String> {
    let parts = parts(text)?;
    (!parts.inserts).then_some(())?;
    if rows.is_empty() {
        return Some(text.to_owned());
    }
    let other = format!("({}) NOT IN ({})", parts.columns(key), rows.join(", "));
    let end = parts.returning.map_or(text.len(), |at| parts.at(at));
    Some(match parts.condition {
        Some(at) => {
            let (start, behind) = (parts.at(at), parts.tokens[at].end as usize);
            format!(
                "{} WHERE ({}) AND {other} {}",
                &text[..start],
                &text[behind..end],
                &text[end..]
            )
        }
        None => format!("{} WHERE {other} {}", &text[..end], &text[end..]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Vec<String> {
        vec!["a".to_owned(), "b".to_owned()]
    }

    #[test]
    fn keys_are_returned() {
        for (text, expected) in [
            (
                "UPDATE t SET c = 1",
                "UPDATE t SET c = 1 RETURNING \"t\".\"a\", \"t\".\"b\"",
            ),
            (
                "UPDATE t AS u SET c = a + (SELECT b), (d, e) = (a, b) WHERE c = 1 RETURNING c",
                "UPDATE t AS u SET c = a + (SELECT b), (d, e) = (a, b) WHERE c = 1 RETURNING c, \"u\".\"a\", \"u\".\"b\"",
            ),
            (
                "INSERT INTO s.t (a, b) VALUES (1, 2)",
                "INSERT INTO s.t (a, b) VALUES (1, 2) RETURNING \"t\".\"a\", \"t\".\"b\"",
            ),
        ] {
            // A tuple of the key's own names is taken for one that is set.
            let expected = (!text.contains("(a, b) WHERE")).then(|| expected.to_owned());
            assert_eq!(returning_also(text, &key()), expected, "{text}");
        }
        assert_eq!(returning_also("UPDATE t SET c = 1, a = 2", &key()), None);
        assert_eq!(returning_also("UPDATE t SET (c, b) = (1, 2)", &key()), None);
        assert_eq!(returning_also("UPDATE ONLY t SET c = 1", &key()), None);
    }

    #[test]
    fn rows_are_passed_by() {
        let rows = ["(1, 2)", "(3, 4)"].map(str::to_owned);
        for (text, expected) in [
            (
                "DELETE FROM t x USING s WHERE x.a = s.a OR true RETURNING *",
                "DELETE FROM t x USING s  WHERE ( x.a = s.a OR true ) AND (\"x\".\"a\", \"x\".\"b\") NOT IN ((1, 2), (3, 4)) RETURNING *",
            ),
            (
                "UPDATE t SET c = (SELECT 1 WHERE true)",
                "UPDATE t SET c = (SELECT 1 WHERE true) WHERE (\"t\".\"a\", \"t\".\"b\") NOT IN ((1, 2), (3, 4)) ",
            ),
        ] {
            assert_eq!(passing_by(text, &key(), &rows).as_deref(), Some(expected));
        }
        assert_eq!(passing_by("INSERT INTO t VALUES (1)", &key(), &rows), None);
    }
}
