//! Writes that show their client nothing of what was there before, but by the number of their rows.

use crate::kind::Kind;
use crate::lexer::{Token, TokenKind};

/// Words before a parenthesis that are no function.
const WORDS: [&str; 8] = ["and", "in", "not", "or", "row", "set", "values", "where"];

/// An INSERT of `rows` constants, or an UPDATE or DELETE of one row by a whole unique key (`is_point`): such a row is waited for
/// when a transaction between its two phases has changed it, and written in its newest version. Not where something could
/// read more: a function, a subquery. RETURNING is the caller's to look at.
pub(crate) fn is_blind(kind: &Kind, is_point: bool, rows: usize, text: &str, tokens: &[Token]) -> bool {
    let from = match kind {
        Kind::Insert if rows > 0 => tokens.iter().position(|t| t.is_word(text, "values")),
        Kind::Update | Kind::Delete if is_point => Some(0),
        _ => None,
    };
    let Some(from) = from else { return false };
    let called = |pair: &[Token]| {
        let is_name = matches!(pair[0].kind, TokenKind::Word | TokenKind::Quoted);
        is_name && pair[1].is(text, "(") && !WORDS.iter().any(|word| pair[0].is_word(text, word))
    };
    !tokens[from..].windows(2).any(called) && !tokens[from..].iter().any(|t| t.is_word(text, "select"))
}
