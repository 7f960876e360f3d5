//! An UPDATE, DELETE, INSERT … SELECT or MERGE that notes which commits its own snapshot shows.
//!
//! The condition gets a subquery beside it that refers to nothing: `WHERE (…) AND (SELECT pgherd.note_markers())`. PostgreSQL
//! evaluates it once, before it looks for rows, with the statement's snapshot. A MERGE gets it beside its source. Tag, RETURNING, types and rules stay as they are.

use crate::lexer::{Token, depths};
use crate::relations::substitute;
use crate::route::Part;

const NOTE: &str = "(SELECT pgherd.note_markers())";

/// The part of a scattered statement with the call in it, positions of errors being the client's still. `text` and `tokens` are
/// the client's. None for what has no condition that could be added to (`WHERE CURRENT OF`, a source in parentheses).
pub(crate) fn noting(text: &str, tokens: &[Token], part: &Part) -> Option<Part> {
    let depths = depths(text, tokens);
    let outside: Vec<usize> = (0..tokens.len()).filter(|&i| depths[i] == 0).collect();
    // They are reserved: behind a point they are columns' names, and else nothing but key words up to RETURNING.
    let is_key_word = |i: usize, word: &str| tokens[i].is_word(text, word) && (i == 0 || !tokens[i - 1].is(text, "."));
    let find = |word: &str| outside.iter().copied().find(|&i| is_key_word(i, word));
    let on_conflict = |i: &usize| {
        let next = tokens.get(i + 1);
        is_key_word(*i, "on") && next.is_some_and(|t| t.is_word(text, "conflict"))
    };
    let merges = tokens[0].is_word(text, "merge");
    if !merges && find("insert").is_some() && find("select").is_none() {
        return None;
    }
    let tail = outside.iter().copied().find(on_conflict).or_else(|| find("returning"));
    let condition = find("where").filter(|at| tail.is_none_or(|tail| *at < tail));
    let last = &tokens[tail.unwrap_or(tokens.len()).checked_sub(1)?];
    let added = match condition {
        _ if merges => beside_source(text, tokens, find("using")?)?,
        None => vec![(last.end as usize, format!(" WHERE {NOTE}"))],
        Some(at) => {
            let first = tokens.get(at + 1)?;
            let of = tokens.get(at + 2);
            if first.is_word(text, "current") && of.is_some_and(|t| t.is_word(text, "of")) {
                return None;
            }
            vec![
                (first.start as usize, "(".to_owned()),
                (last.end as usize, format!(") AND {NOTE}")),
            ]
        }
    };
    let mut replacements: Vec<_> = part
        .replaced
        .iter()
        .map(|piece| {
            let (at, from) = (piece.at as usize, piece.original_at as usize);
            let with = part.text[at..at + piece.length as usize].to_owned();
            (from..from + piece.original_length as usize, with)
        })
        .chain(added.into_iter().map(|(at, with)| (at..at, with)))
        .collect();
    // A name that is replaced may end where the addition begins: that comes behind it.
    replacements.sort_by_key(|(span, _)| (span.start, span.end));
    let (text, replaced) = substitute(text, &replacements);
    Some(Part {
        text: text.into(),
        replaced: replaced.into(),
        ..part.clone()
    })
}

/// `USING s` becomes `USING (SELECT * FROM s WHERE …) AS s`.
fn beside_source(text: &str, tokens: &[Token], using: usize) -> Option<Vec<(usize, String)>> {
    let (first, mut last) = (using + 1, using + 1);
    while tokens.get(last + 1).is_some_and(|t| t.is(text, ".")) {
        last += 2;
    }
    let (start, end) = (tokens.get(first)?.start as usize, tokens.get(last)?.end as usize);
    let alias = match tokens.get(last + 1)?.is_word(text, "on") {
        true => format!(
            " AS {}",
            pgherd_model::quote_identifier(&tokens[last].identifier(text)?)
        ),
        false => String::new(),
    };
    Some(vec![
        (start, "(SELECT * FROM ".to_owned()),
        (end, format!(" WHERE {NOTE}){alias}")),
    ])
}
