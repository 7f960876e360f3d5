//! `xmin` in a SELECT's list, by which applications tell whether a row has changed since they read it: it is the row's own on its shard,
//! as the UPDATE will find it that names the key and the version.
//!
//! Versions of rows of several shards cannot be compared with one another. So it is read where it is only shown: in the list of a
//! SELECT, or of one in FROM or WITH, without DISTINCT, GROUP BY and set operations.

use super::source::{Gathered, IDENTITY, Resolution};
use crate::refusal::{self, VERSION};
use crate::views::ParsedQuery;
use pgherd_model::{ServerError, quote_identifier};
use pgherd_sql::lexer::{Token, TokenKind};
use std::ops::Range;

/// A mention of a relation's `xmin`.
pub(crate) struct Version {
    /// its bytes, with what qualifies it
    span: Range<usize>,
    /// the byte at which the relation is named, and what qualifies its columns
    relation: usize,
    alias: String,
}

/// What compares rows as wholes, wherever it stands.
const COMPARES: [&str; 6] = ["distinct", "group", "union", "intersect", "except", "natural"];

/// Words that open another part of a query than its list.
const CLAUSES: [&str; 16] = [
    "from",
    "where",
    "group",
    "having",
    "order",
    "by",
    "on",
    "using",
    "limit",
    "offset",
    "fetch",
    "window",
    "values",
    "with",
    "join",
    "tablesample",
];

/// Whether all mentions of it only show it.
pub(crate) fn are_read(parsed: &ParsedQuery) -> bool {
    find(parsed).is_some()
}

/// Its mentions that are a relation's; None where one does more than show it.
pub(super) fn find(parsed: &ParsedQuery) -> Option<Vec<Version>> {
    let mut found = Vec::new();
    if !parsed.words.iter().any(|word| word == VERSION) {
        return Some(found);
    }
    let (text, tokens) = (&*parsed.text, &*parsed.tokens);
    for at in 0..tokens.len() {
        let is_name = matches!(tokens[at].kind, TokenKind::Word | TokenKind::Quoted);
        if !is_name || tokens[at].identifier(text).as_deref() != Some(VERSION) {
            continue;
        }
        let names_output = at > 0 && tokens[at - 1].is_word(text, "as");
        if !is_in_list(text, tokens, if names_output { at - 1 } else { at }) {
            return None;
        }
        if !names_output {
            found.extend(of_relation(parsed, at)?);
        }
    }
    let compares = || tokens.iter().any(|t| COMPARES.iter().any(|word| t.is_word(text, word)));
    (found.is_empty() || !compares()).then_some(found)
}

/// Whether the token stands in the list of the whole SELECT, or of one that FROM or WITH reads.
fn is_in_list(text: &str, tokens: &[Token], at: usize) -> bool {
    let mut closed = 0usize;
    for i in (0..at).rev() {
        match tokens[i].text(text) {
            ")" | "]" => closed += 1,
            "(" | "[" => closed = closed.saturating_sub(1),
            _ if closed > 0 => {}
            _ if tokens[i].is_word(text, "select") => return i == 0 || is_source(text, tokens, i - 1),
            _ if CLAUSES.iter().any(|word| tokens[i].is_word(text, word)) => return false,
            _ => {}
        }
    }
    false
}

/// Whether what stands in front of a SELECT makes it a relation, or ends a WITH.
fn is_source(text: &str, tokens: &[Token], before: usize) -> bool {
    let opens = tokens[before].is(text, "(");
    let sources = ["from", "join", "lateral", "as", "materialized"];
    let introduced = || {
        sources
            .iter()
            .any(|word| before > 0 && tokens[before - 1].is_word(text, word))
    };
    tokens[before].is(text, ")") || (opens && introduced())
}

/// The mention at a token. Some(None) where it is a column of a subquery; None where it is not clear whose it is.
fn of_relation(parsed: &ParsedQuery, at: usize) -> Option<Option<Version>> {
    let (text, tokens) = (&*parsed.text, &*parsed.tokens);
    let dot = |i: usize| i.checked_sub(1).is_some_and(|before| tokens[before].is(text, "."));
    let exposed = |m: &crate::relations::Mention| m.alias.clone().unwrap_or_else(|| m.name.clone());
    let mentions = &parsed.relations.mentions;
    let (first, mention) = if dot(at) {
        let qualifier = at.checked_sub(2)?;
        if dot(qualifier) {
            return None;
        }
        let name = tokens[qualifier].identifier(text)?;
        let Some(mention) = mentions.iter().find(|m| exposed(m) == name) else {
            return Some(None);
        };
        parsed.relations.is_unique(&name).then_some((qualifier, mention))?
    } else {
        let selects = tokens.iter().filter(|t| t.is_word(text, "select")).count();
        let [only] = &mentions[..] else { return None };
        (selects == 1).then_some((at, only))?
    };
    Some(Some(Version {
        span: tokens[first].start as usize..tokens[at].end as usize,
        relation: mention.span.start,
        alias: exposed(mention),
    }))
}

/// Notes the rows of the relations, and has each mention look there.
pub(super) fn edits(
    versions: &[Version],
    resolutions: &[Resolution],
    sources: &mut [Gathered],
) -> Result<Vec<(Range<usize>, String)>, ServerError> {
    let edit = |version: &Version| {
        let mention = resolutions
            .iter()
            .position(|r| r.mention.span.start == version.relation);
        let source = mention.and_then(|m| sources.iter_mut().find(|source| source.mentions.contains(&m)));
        let source = source.ok_or_else(|| refusal::system_column(VERSION))?;
        source.marks();
        let sql = format!(
            "(SELECT CAST(pg_catalog.split_part(pgherd_marks.{IDENTITY}, '/', 4) AS pg_catalog.xid) AS {VERSION} \
             FROM pg_temp.{} AS pgherd_marks WHERE pgherd_marks.ctid = {}.ctid)",
            source.marked(),
            quote_identifier(&version.alias)
        );
        Ok((version.span.clone(), sql))
    };
    versions.iter().map(edit).collect()
}
