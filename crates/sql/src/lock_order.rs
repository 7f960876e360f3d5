//! `FOR UPDATE LIMIT 1`, which PostgreSQL takes in either order: sqlparser wants LIMIT, OFFSET and FETCH first.

use crate::lexer::{Token, TokenKind};
use crate::lock_strength::LockStrength;

/// The order in which the tree gets the tokens; None where it is that of the text.
pub(crate) fn limits_first(text: &str, tokens: &[Token]) -> Option<Vec<usize>> {
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let locks = |at: usize| LockStrength::at(text, tokens, at).is_some();
    let limits = |at: usize| ["limit", "offset", "fetch"].iter().any(|w| word(at, w));
    let first = (0..tokens.len()).find(|&at| locks(at))?;
    let mut order: Vec<usize> = (0..first).collect();
    let mut at = first;
    while at < tokens.len() {
        if !locks(at) {
            order.push(at);
            at += 1;
            continue;
        }
        let is_end = |end: usize, also: &dyn Fn(usize) -> bool| also(end) || closes(text, tokens, at, end);
        let lock_end = (at + 1..tokens.len()).find(|&end| is_end(end, &|end| locks(end) || limits(end)));
        let lock_end = lock_end.unwrap_or(tokens.len());
        let behind = (lock_end..tokens.len())
            .find(|&end| is_end(end, &locks))
            .unwrap_or(tokens.len());
        order.extend(lock_end..behind);
        order.extend(at..lock_end);
        at = behind;
    }
    Some(order)
}

/// Whether the parentheses around token `from` close at `at`.
fn closes(text: &str, tokens: &[Token], from: usize, at: usize) -> bool {
    let mut depth = 0_i32;
    for token in tokens[from..=at].iter().filter(|t| t.kind == TokenKind::Symbol) {
        match token.text(text) {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
    }
    depth < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_first() {
        for (text, as_read) in [
            ("select 1 limit 2", "="),
            (
                "select a from t for update limit 2",
                "select a from t limit 2 for update",
            ),
            (
                "select a from t limit 2 for update",
                "select a from t limit 2 for update",
            ),
            (
                "delete from t where a in (select a from t for no key update of t skip locked limit (1 + 1) offset 3) and b",
                "delete from t where a in (select a from t limit (1 + 1) offset 3 for no key update of t skip locked) and b",
            ),
        ] {
            let tokens = crate::lexer::tokenize(text).unwrap();
            let order = limits_first(text, &tokens);
            let words = order.map(|order| order.iter().map(|&i| tokens[i].text(text)).collect::<Vec<_>>().concat());
            let expected = as_read.replace(' ', "");
            assert_eq!(words.unwrap_or_else(|| "=".to_owned()), expected, "{text}");
        }
    }
}
