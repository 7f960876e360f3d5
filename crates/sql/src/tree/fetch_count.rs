//! `FETCH FIRST (n + 1) ROWS ONLY`: sqlparser takes a constant or a parameter there, and no expression. ORMs write the parentheses.
//!
//! Without ties it is `LIMIT (n + 1)`. WITH TIES is PostgreSQL's to compute, from the text; the tree has 1 for the number of rows, unless
//! there may be something in it that routing has to know: a query or a function.

use crate::lexer::{Token, TokenKind};

/// What becomes of the tokens of such clauses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FetchCounts {
    /// FETCH, for which LIMIT stands
    pub limits: Vec<usize>,
    /// the parenthesis for which a number stands
    pub numbers: Vec<usize>,
    /// what the tree can do without
    pub left_out: Vec<usize>,
}

/// All such clauses in a statement.
pub(super) fn fetch_counts(text: &str, tokens: &[Token]) -> FetchCounts {
    let word = |at: usize, words: &[&str]| {
        let token = tokens.get(at);
        token.is_some_and(|t| words.iter().any(|word| t.is_word(text, word)))
    };
    let mut found = FetchCounts::default();
    for fetch in 0..tokens.len() {
        let open = fetch + 2;
        let begins = word(fetch, &["fetch"]) && word(fetch + 1, &["first", "next"]);
        if !begins || !tokens.get(open).is_some_and(|t| t.is(text, "(")) {
            continue;
        }
        let Some(close) = closed_at(text, tokens, open) else {
            continue;
        };
        if !word(close + 1, &["row", "rows"]) {
            continue;
        }
        if word(close + 2, &["only"]) {
            found.limits.push(fetch);
            found.left_out.extend([fetch + 1, close + 1, close + 2]);
        } else if word(close + 2, &["with"]) && is_constant(text, &tokens[open..close]) {
            found.numbers.push(open);
            found.left_out.extend(open + 1..=close);
        }
    }
    found
}

/// Where the parenthesis is closed.
fn closed_at(text: &str, tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0;
    (open..tokens.len()).find(|&at| {
        depth += i32::from(tokens[at].is(text, "(")) - i32::from(tokens[at].is(text, ")"));
        depth == 0
    })
}

/// Whether no name stands there but that of a type behind a cast.
fn is_constant(text: &str, tokens: &[Token]) -> bool {
    let is_name = |t: &Token| matches!(t.kind, TokenKind::Word | TokenKind::Quoted);
    let mut named = (0..tokens.len()).filter(|&at| is_name(&tokens[at]));
    named.all(|at| at > 0 && tokens[at - 1].is(text, "::"))
}

#[cfg(test)]
mod tests {
    use crate::lexer::tokenize;
    use crate::tree::tree;

    #[test]
    fn expressions_are_read_as_limits_or_left_to_postgresql() {
        for (text, as_read) in [
            (
                "SELECT a FROM t ORDER BY a OFFSET (1) ROWS FETCH FIRST (1 + $1::int) ROWS ONLY FOR UPDATE",
                "SELECT a FROM t ORDER BY a LIMIT (1 + $1::INT) OFFSET (1) ROWS FOR UPDATE",
            ),
            (
                "SELECT a FROM (SELECT a FROM t FETCH NEXT ((SELECT 2)) ROW ONLY) AS x",
                "SELECT a FROM (SELECT a FROM t LIMIT ((SELECT 2))) AS x",
            ),
            (
                "SELECT a FROM t ORDER BY a FETCH FIRST ($1::int + 1) ROWS WITH TIES",
                "SELECT a FROM t ORDER BY a FETCH FIRST 1 ROWS WITH TIES",
            ),
            (
                "SELECT a FROM t FETCH FIRST 2 ROWS ONLY",
                "SELECT a FROM t FETCH FIRST 2 ROWS ONLY",
            ),
        ] {
            let tokens = tokenize(text).expect("tokens");
            let read = tree(text, &tokens).unwrap_or_else(|| panic!("no tree: {text}"));
            assert_eq!(read.to_string(), as_read);
        }
        let with_query = "SELECT a FROM t ORDER BY a FETCH FIRST (SELECT count(*) FROM t) ROWS WITH TIES";
        let tokens = tokenize(with_query).expect("tokens");
        assert!(tree(with_query, &tokens).is_none());
    }
}
