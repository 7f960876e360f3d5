//! Texts of sessions with `standard_conforming_strings = off`, where a backslash escapes in `'…'` too. Everything here, and all that is made of a
//! statement for the shards, reads strings as by default; so such strings are written as `E'…'`, which means the same under either setting.

use crate::lexer::{Token, TokenKind, tokenize_under};
use pgherd_model::{ServerError, SqlState};

/// A text with the escapes of its strings made explicit.
#[derive(Debug, PartialEq, Eq)]
pub struct Explicit {
    /// the text
    pub text: String,
    /// for each string, the position in `text` behind what was put in front of it, and how many characters that added
    added: Vec<(u32, u32)>,
    /// what PostgreSQL warns of where `escape_string_warning` is on, at the client's positions
    pub warnings: Vec<ServerError>,
}

impl Explicit {
    /// A position of `text` (characters, from 1) in the client's text.
    pub fn map_position(&self, position: u32) -> u32 {
        let before = self.added.iter().take_while(|(at, _)| *at <= position);
        position - before.map(|(_, characters)| characters).sum::<u32>()
    }
}

/// None where the text means the same as by default, or cannot be read: PostgreSQL then says why.
pub fn explicit(text: &str) -> Option<Explicit> {
    if !text.contains('\\') {
        return None;
    }
    let tokens = tokenize_under(text, true).ok()?;
    let (mut made, mut added, mut warnings) = (String::with_capacity(text.len() + 16), Vec::new(), Vec::new());
    // What was copied of the text, in bytes and in characters, and how many characters were put in.
    let (mut copied, mut characters, mut more) = (0, 0, 0);
    for token in tokens.iter().filter(|token| is_escaped(token, text)) {
        let start = token.start as usize;
        let between = &text[copied..start];
        made.push_str(between);
        characters += between.chars().count() as u32;
        // A word may stand right before it.
        let (prefix, skipped) = match text.as_bytes()[start] {
            b'\'' => (" E", 0),
            _ => (" NCHAR E", 1),
        };
        made.push_str(prefix);
        let position = characters + 1;
        warnings.extend(warning(token.text(text)).map(|warning| warning.with_position(Some(position))));
        copied = start + skipped;
        characters += skipped as u32;
        let put_in = (prefix.len() - skipped) as u32;
        more += put_in;
        added.push((characters + more + 1, put_in));
    }
    if added.is_empty() {
        return None;
    }
    made.push_str(&text[copied..]);
    Some(Explicit {
        text: made,
        added,
        warnings,
    })
}

/// A string without `E` that has a backslash.
fn is_escaped(token: &Token, text: &str) -> bool {
    let raw = token.text(text);
    token.kind == TokenKind::String && raw.starts_with(['\'', 'n', 'N']) && raw.contains('\\')
}

/// What `scan.l` says of the first escape in a string.
fn warning(raw: &str) -> Option<ServerError> {
    let (_, escaped) = raw.split_once('\\')?;
    let (what, hint) = match escaped.chars().next()? {
        '\'' => (
            "\\' in",
            "Use \'\' to write quotes in strings, or use the escape string syntax (E'...').",
        ),
        '\\' => (
            "\\\\ in",
            "Use the escape string syntax for backslashes, e.g., E'\\\\'.",
        ),
        _ => (
            "escape in",
            "Use the escape string syntax for escapes, e.g., E'\\r\\n'.",
        ),
    };
    let message = format!("nonstandard use of {what} a string literal");
    let warning = ServerError::new(SqlState::NONSTANDARD_USE_OF_ESCAPE_CHARACTER, message);
    Some(warning.with_severity("WARNING").with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_explicit() {
        let made = explicit(
            r"select'a\'b', 'x' -- don't \
            , E'\n', $$\$$, 'c'
            '\\', N'\x41'",
        )
        .unwrap();
        assert_eq!(
            made.text,
            r"select E'a\'b', 'x' -- don't \
            , E'\n', $$\$$,  E'c'
            '\\',  NCHAR E'\x41'"
        );
        let positions: Vec<_> = made.warnings.iter().filter_map(|w| w.fields().position).collect();
        assert_eq!(positions[0], 7);
        assert_eq!(made.map_position(9), 7, "the first string");
        assert_eq!(made.map_position(17), 15, "the second one");
        assert_eq!(explicit(r"select 'a', E'\\' from b"), None);
        assert_eq!(explicit(r"select 'a\' from b"), None, "it does not end");
    }
}
