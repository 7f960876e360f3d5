//! `a JOIN b USING (k) AS x`: the alias of the merged columns, which sqlparser lacks.
//!
//! The tree can do without it where it is nothing but what stands before a column: what cannot be resolved restricts no ranges and is
//! pushed down to no shard, and PostgreSQL gets the text, which has it.

use crate::lexer::Token;

/// The tokens of all such aliases, with their AS.
pub(super) fn using_aliases(text: &str, tokens: &[Token]) -> Vec<usize> {
    let starts = (0..tokens.len()).filter(|&i| tokens[i].is_word(text, "using"));
    let aliases = starts.filter_map(|using| {
        let at = list_end(text, tokens, using + 1)? + 1;
        let name = tokens.get(at + 1)?.identifier(text)?;
        (tokens[at].is_word(text, "as") && only_qualifies(text, tokens, at + 1, &name)).then_some([at, at + 1])
    });
    aliases.flatten().collect()
}

/// The closing parenthesis of a list of names that begins at `open`.
fn list_end(text: &str, tokens: &[Token], open: usize) -> Option<usize> {
    tokens.get(open).filter(|t| t.is(text, "("))?;
    let mut at = open + 1;
    loop {
        tokens.get(at)?.identifier(text)?;
        let behind = tokens.get(at + 1)?;
        match behind.text(text) {
            ")" => return Some(at + 1),
            "," => at += 2,
            _ => return None,
        }
    }
}

/// Whether a name stands before a `.` wherever else it stands, and is no other table's alias therefore.
fn only_qualifies(text: &str, tokens: &[Token], own: usize, name: &str) -> bool {
    let elsewhere = (0..tokens.len()).filter(|&i| i != own && tokens[i].identifier(text).is_some_and(|n| n == name));
    let mut elsewhere = elsewhere.map(|i| tokens.get(i + 1).is_some_and(|t| t.is(text, ".")));
    elsewhere.all(|qualifies| qualifies)
}
