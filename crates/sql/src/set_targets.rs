//! `SET a[1] = …`: the subscripts of what is set. sqlparser wants the name of a column there, which says as much about where a row is.

use crate::lexer::{Token, TokenKind};

/// The tokens of such subscripts, ascending.
pub(crate) fn subscripts(text: &str, tokens: &[Token]) -> Vec<usize> {
    let mut found = Vec::new();
    let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
    if !tokens.iter().any(|t| t.is(text, "[")) {
        return found;
    }
    for set in (0..tokens.len()).filter(|&i| tokens[i].is_word(text, "set") && !(i > 0 && symbol(i - 1, "."))) {
        let mut at = set + 1;
        loop {
            let from = at;
            at = target_end(text, tokens, from);
            if !symbol(at, "=") {
                break;
            }
            if symbol(from, "(") {
                // `(a[1], b) = …`
                let mut depth = 0;
                found.extend((from..at).filter(|&i| {
                    let closes = symbol(i, "]");
                    depth += i32::from(symbol(i, "[")) - i32::from(closes);
                    depth > 0 || closes
                }));
            } else if let Some(open) = (from..at).find(|&i| symbol(i, "[")) {
                found.extend(open..at);
            }
            match next_target(text, tokens, at + 1) {
                Some(next) => at = next,
                None => break,
            }
        }
    }
    found
}

/// Behind what is set, which begins here: names with points and subscripts between, or a list in parentheses.
fn target_end(text: &str, tokens: &[Token], from: usize) -> usize {
    let mut depth = 0_i32;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text(text) {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "." => {}
            _ if depth > 0 || matches!(token.kind, TokenKind::Word | TokenKind::Quoted) => {}
            _ => return at,
        }
        if depth < 0 {
            return at;
        }
    }
    tokens.len()
}

/// Behind the comma that ends the value which begins here.
fn next_target(text: &str, tokens: &[Token], from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.text(text) {
            "(" | "[" => depth += 1,
            ")" | "]" if depth == 0 => return None,
            ")" | "]" => depth -= 1,
            "," if depth == 0 => return Some(at + 1),
            _ if depth == 0
                && ["from", "where", "returning", "when"]
                    .iter()
                    .any(|w| token.is_word(text, w)) =>
            {
                return None;
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
    fn subscripts_of_targets_are_found() {
        for (text, left) in [
            (
                "update t set a = b[1], c = 2 where d[1] = 3",
                "update t set a = b[1], c = 2 where d[1] = 3",
            ),
            (
                "update t set a = f(x[1], 2), b[i + 1][2:3] = array[1, 2], s.c[1] = 4 from u where e[1] = 3",
                "update t set a = f(x[1], 2), b = array[1, 2], s.c = 4 from u where e[1] = 3",
            ),
            (
                "update t set (a[1], b.c, d[x[2]][3]) = (select e[1], 2, 3) where f[1] = 1",
                "update t set (a, b.c, d) = (select e[1], 2, 3) where f[1] = 1",
            ),
            (
                "insert into t values (1) on conflict do update set (a, b) = (1, 2), c[1] = t.d[2] returning a[1]",
                "insert into t values (1) on conflict do update set (a, b) = (1, 2), c = t.d[2] returning a[1]",
            ),
        ] {
            let tokens = crate::lexer::tokenize(text).unwrap();
            let found = subscripts(text, &tokens);
            let (mut out, mut end) = (String::new(), 0);
            for (i, token) in tokens.iter().enumerate() {
                if !found.contains(&i) {
                    out.push_str(&text[end..token.start as usize]);
                    out.push_str(token.text(text));
                }
                end = token.end as usize;
            }
            assert_eq!(out.replace(' ', ""), left.replace(' ', ""));
        }
    }
}
