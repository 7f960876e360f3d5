//! `ctid`, `xmin` and their kin, by which rows are found: each range has rows of the same places and versions.

use crate::kind::Kind;
use crate::lexer::{Token, TokenKind};
use pgherd_model::ServerError;

const NAMES: [&str; 5] = ["ctid", "xmin", "xmax", "cmin", "cmax"];

/// The first of them that stands where rows are chosen: not in the list of a SELECT, nor behind RETURNING.
pub(crate) fn found_by(text: &str, tokens: &[Token], kind: &Kind) -> Option<&'static str> {
    let word = |word: &str| tokens.iter().position(|t| t.is_word(text, word));
    let chosen = match kind {
        Kind::Select { .. } => word("from").unwrap_or(tokens.len())..tokens.len(),
        Kind::Update | Kind::Delete | Kind::Merge => 0..word("returning").unwrap_or(tokens.len()),
        _ => return None,
    };
    chosen.into_iter().find_map(|at| {
        let is_name = matches!(tokens[at].kind, TokenKind::Word | TokenKind::Quoted);
        let called = tokens.get(at + 1).is_some_and(|next| next.is(text, "("));
        let named = tokens[at].identifier(text).filter(|_| is_name && !called)?;
        NAMES.into_iter().find(|name| *name == named)
    })
}

pub(crate) fn not_over_ranges(column: &str) -> ServerError {
    ServerError::unsupported(
        format!("finding rows by system column \"{column}\" is not supported over several ranges"),
        "Name the rows by their key instead.",
    )
    .with_detail("Rows of several ranges may have the same.")
}
