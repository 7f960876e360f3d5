//! FOR UPDATE and its kin of a query over one subquery: PostgreSQL locks the rows of the subquery's tables then, which is what the same
//! clause inside of the subquery says.

use crate::lexer::{Token, TokenKind, depths};
use crate::lock_strength::LockStrength;

/// `SELECT … FROM (SELECT …) AS s ORDER BY … FOR UPDATE` as `SELECT … FROM (SELECT … FOR UPDATE) AS s ORDER BY …`. None for other
/// statements: with a condition of its own, or other relations, fewer rows may be locked.
pub fn locked_inside(text: &str, tokens: &[Token]) -> Option<String> {
    let depths = depths(text, tokens);
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
    let any = |at: usize, words: &[&str]| words.iter().any(|w| word(at, w));
    word(0, "select").then_some(())?;
    let mut locks = (1..tokens.len()).filter(|&i| depths[i] == 0 && LockStrength::at(text, tokens, i).is_some());
    let (lock, None) = (locks.next()?, locks.next()) else {
        return None;
    };
    let from = (1..lock).find(|&i| depths[i] == 0 && word(i, "from") && !word(i - 1, "distinct"))?;
    (symbol(from + 1, "(") && word(from + 2, "select")).then_some(())?;
    let close = (from + 2..lock).find(|&i| symbol(i, ")") && depths[i] == 1)?;
    let own = ["union", "intersect", "except", "for", "with", "into"];
    if (from + 2..close).any(|i| depths[i] == 1 && any(i, &own)) {
        return None;
    }
    let name = close + 1 + usize::from(word(close + 1, "as"));
    let alias = tokens
        .get(name)
        .filter(|t| matches!(t.kind, TokenKind::Word | TokenKind::Quoted))?
        .identifier(text)?;
    let mut behind = name + 1;
    if symbol(behind, "(") {
        behind = (behind..lock).find(|&i| symbol(i, ")") && depths[i] == 1)? + 1;
    }
    let others = [
        "limit",
        "offset",
        "fetch",
        "where",
        "group",
        "having",
        "window",
        "union",
        "intersect",
        "except",
        "join",
    ];
    let ordered = behind == lock || word(behind, "order") && word(behind + 1, "by");
    if !ordered || (behind..tokens.len()).any(|i| depths[i] == 0 && any(i, &others)) {
        return None;
    }
    let mut clause: Vec<&str> = Vec::new();
    let mut at = lock;
    while at < tokens.len() {
        if word(at, "of") {
            (tokens.get(at + 1)?.identifier(text)? == alias).then_some(())?;
            (!symbol(at + 2, ",")).then_some(())?;
            at += 2;
            continue;
        }
        clause.push(tokens[at].text(text));
        at += 1;
    }
    let (inner_end, lock_start) = (tokens[close].start as usize, tokens[lock].start as usize);
    Some(format!(
        "{} {}{}",
        &text[..inner_end],
        clause.join(" "),
        text[inner_end..lock_start].trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clause_goes_inside() {
        for (text, expected) in [
            (
                "select * from (select a from t where b limit 1) s order by a for update of s skip locked",
                "select * from (select a from t where b limit 1 for update skip locked) s order by a",
            ),
            (
                "select f(a) from (select a, (select 1) from t) as s (a, b) for no key update",
                "select f(a) from (select a, (select 1) from t for no key update) as s (a, b)",
            ),
            ("select * from (select a from t) s where a = 1 for update", ""),
            ("select * from (select a from t) s, u for update", ""),
            ("select * from (select a from t) s limit 1 for update", ""),
            ("select * from (select a from t) s for update limit 1", ""),
            ("select * from (select a from t for share) s for update", ""),
            ("select * from (select a from t union select 1) s for update", ""),
            ("select * from t for update", ""),
            ("select * from (select a from t) s", ""),
        ] {
            let tokens = crate::lexer::tokenize(text).unwrap();
            assert_eq!(locked_inside(text, &tokens).unwrap_or_default(), expected, "{text}");
        }
    }
}
