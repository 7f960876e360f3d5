//! A statement in other words, where a table's ranges must not show: ONLY and `tableoid` of a table that is partitioned
//! because pgherd made it so.

use crate::analysis::Context;
use crate::lexer::{Token, TokenKind};
use crate::position::map_back;
use crate::relations::{Reference, references, substitute};
use crate::route::Replaced;
use crate::tree::{redundant_tokens, starts_query, tree};
use pgherd_model::{ServerError, Sharded, Table, TableKind, quote_identifier, quote_literal, range_condition};
use std::ops::Range;
use std::sync::Arc;

/// What to run in a statement's place.
#[derive(Debug, Clone)]
pub struct Instead {
    /// the statement to run
    pub text: Arc<str>,
    /// what was put into the client's text
    pub replaced: Arc<[Replaced]>,
}

impl Instead {
    /// With these pieces of the text replaced: bytes, ascending.
    pub fn new(text: &str, replacements: &[(Range<usize>, String)]) -> Self {
        let (text, replaced) = substitute(text, replacements);
        Self {
            text: text.into(),
            replaced: replaced.into(),
        }
    }

    /// A position in [`Instead::text`], as one in the client's statement.
    pub fn map_position(&self, position: u32) -> u32 {
        map_back(&self.text, &self.replaced, position)
    }
}

/// What ONLY means in a statement over sharded tables.
pub(crate) enum Only {
    /// nothing: the same statement without it
    Nothing(Instead),
    /// the parents of declared partitions, which have no rows of their own: the home shard's are as empty as any
    Parents(Vec<Reference>),
    /// not known to be either
    Unclear(ServerError),
}

/// The places of ONLY and of parentheses around the name behind it. ONLY is reserved, so it is nothing else, but in
/// `FETCH FIRST 1 ROW ONLY`.
fn only_tokens(text: &str, tokens: &[Token]) -> Vec<(usize, Vec<Range<usize>>)> {
    let span = |t: &Token| t.start as usize..t.end as usize;
    let mut found = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let of_fetch = i > 0 && (tokens[i - 1].is_word(text, "row") || tokens[i - 1].is_word(text, "rows"));
        let is_name = i > 0 && (tokens[i - 1].is(text, ".") || tokens[i - 1].is_word(text, "as"));
        if !token.is_word(text, "only") || of_fetch || is_name {
            continue;
        }
        let mut spans = vec![span(token)];
        let mut name = i + 1;
        if tokens.get(name).is_some_and(|t| t.is(text, "(")) {
            spans.push(span(&tokens[name]));
            name += 1;
            let close = tokens[name..].iter().find(|t| t.is(text, ")"));
            spans.extend(close.map(span));
        }
        found.extend(tokens.get(name).map(|t| (t.start as usize, spans)));
    }
    found
}

/// What ONLY means here; None without one, or where no sharded table is near.
pub(crate) fn only(context: &Context) -> Option<Only> {
    let only = only_tokens(context.text, context.tokens);
    if only.is_empty() {
        return None;
    }
    // ONLY inside of the parentheses of another one has the same closing parenthesis.
    let blank = |spans: &[Range<usize>]| -> Vec<(Range<usize>, String)> {
        let mut spans = spans.to_vec();
        spans.sort_by_key(|span| span.start);
        spans.dedup();
        spans.into_iter().map(|s| (s.clone(), " ".repeat(s.len()))).collect()
    };
    let all: Vec<_> = only.iter().flat_map(|(_, spans)| spans.clone()).collect();
    // Blanks keep every offset.
    let (blanked, _) = substitute(context.text, &blank(&all));
    let tokens = context.tokens.iter().copied();
    let tokens: Vec<Token> = tokens
        .filter(|t| !all.contains(&(t.start as usize..t.end as usize)))
        .collect();
    let tree = tree(&blanked, &tokens)?;
    let references = references(&tree, &|schema, name| context.resolve(schema, name))?;
    let is_only = |r: &Reference| only.iter().any(|(name, _)| *name == r.name.span.start);
    // Without children in the client's catalogs: what pgherd sharded by itself, and a declared partition.
    let childless = |r: &&Reference| {
        let kind = r.table.as_ref().map(|t| &t.kind);
        is_only(r)
            && match kind {
                Some(TableKind::Sharded(sharded)) => sharded.by_default && sharded.automatic,
                Some(TableKind::Partition { .. }) => true,
                _ => false,
            }
    };
    let declared = |r: &Reference| match r.table.as_ref().map(|t| &t.kind) {
        Some(TableKind::Sharded(sharded)) => !sharded.automatic,
        _ => false,
    };
    if references.iter().all(|r| r.table.is_none()) {
        return None;
    }
    let spans: Vec<_> = references.iter().filter(childless).collect();
    if !spans.is_empty() {
        let here = |(name, _): &&(usize, Vec<Range<usize>>)| spans.iter().any(|r| r.name.span.start == *name);
        let spans: Vec<_> = only.iter().filter(here).flat_map(|(_, s)| s.clone()).collect();
        return Some(Only::Nothing(Instead::new(context.text, &blank(&spans))));
    }
    let parents = references
        .iter()
        .all(|r| r.table.is_none() || (is_only(r) && declared(r)));
    if parents {
        return Some(Only::Parents(references));
    }
    Some(Only::Unclear(ServerError::unsupported(
        "ONLY of a sharded table is not supported here yet",
        "Leave ONLY out: pgherd's ranges are no tables of their own.",
    )))
}

/// TABLE t as SELECT * FROM t, in which the name can be replaced by a query; None without one.
pub(crate) fn table_queries(context: &Context) -> Option<Instead> {
    let (text, tokens) = (context.text, context.tokens);
    let is_query = |i: &usize| tokens[*i].is_word(text, "table") && starts_query(text, tokens, *i);
    let queries = (0..tokens.len()).filter(is_query);
    let replacements: Vec<_> = queries
        .map(|i| {
            (
                tokens[i].start as usize..tokens[i].end as usize,
                "SELECT * FROM".to_owned(),
            )
        })
        .collect();
    (!replacements.is_empty()).then(|| Instead::new(text, &replacements))
}

/// `FROM t *` as `FROM t`, in which another name and an alias can stand, and `INSERT INTO t (VALUES …)` without the parentheses, of which
/// rows can be left out; None without one.
pub(crate) fn without_redundant(context: &Context) -> Option<Instead> {
    let redundant = redundant_tokens(context.text, context.tokens).into_iter();
    let spans = redundant.map(|i| context.tokens[i].start as usize..context.tokens[i].end as usize);
    let replacements: Vec<_> = spans.map(|span| (span, " ".to_owned())).collect();
    (!replacements.is_empty()).then(|| Instead::new(context.text, &replacements))
}

/// `tableoid` of a table whose ranges are pgherd's: the table itself. Where it is a column of the result, the home shard's
/// OID, which is the one that the client's catalogs show; in expressions, which the shard compares with other names, its
/// own. Of a table with declared partitions, `tableoid::regclass`: the partition. None where it is not mentioned, or where it is not
/// clear of which table it is.
pub(crate) fn tableoid(references: &[Reference], context: &Context) -> Option<Instead> {
    let (text, tokens) = (context.text, context.tokens);
    let mentioned = |t: &Token| t.kind == TokenKind::Word && t.is_word(text, "tableoid");
    if !tokens.iter().any(mentioned) {
        return None;
    }
    let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
    let mut replacements = Vec::new();
    for (i, token) in tokens.iter().enumerate().filter(|(_, t)| mentioned(t)) {
        let named = i > 0 && tokens[i - 1].is_word(text, "as");
        let (mut start, mut qualifier) = (token.start as usize, None);
        if i > 1 && is(i - 1, ".") {
            (i < 3 || !is(i - 3, ".")).then_some(())?;
            qualifier = Some(tokens[i - 2].identifier(text)?);
            start = tokens[i - 2].start as usize;
        }
        if named || is(i + 1, "(") || is(i + 1, ".") {
            return None;
        }
        let table = whose(references, qualifier.as_deref())?;
        let sharded = table.sharded().filter(|s| s.through_view.is_none())?;
        if !sharded.automatic {
            // A partition's OID is another one on each shard; by its name it is found where its rows are.
            let named = is(i + 1, "::") && tokens.get(i + 2).is_some_and(|t| t.is_word(text, "regclass"));
            (named && !sharded.ranges.ranges().is_empty()).then_some(())?;
            let own = partition_of_row(sharded, qualifier.as_deref());
            replacements.push((start..token.end as usize, format!("pgherd.tableoid({own})")));
            continue;
        }
        let first = tokens.iter().position(|t| t.start as usize == start).unwrap_or(i);
        let begins = |t: &Token| t.is(text, ",") || ["select", "distinct", "all"].iter().any(|w| t.is_word(text, w));
        let ends = |t: &Token| t.is(text, ",") || ["from", "as"].iter().any(|w| t.is_word(text, w));
        let column = first > 0 && begins(&tokens[first - 1]) && tokens.get(i + 1).is_some_and(ends);
        let oid = match column {
            true => format!("{}::pg_catalog.oid", sharded.relation),
            false => format!("{}::pg_catalog.regclass", quote_literal(&table.name.to_string())),
        };
        let oid = match presence(references, table, qualifier.as_deref())? {
            None => oid,
            Some(column) => format!("CASE WHEN {column} IS NOT NULL THEN {oid} END"),
        };
        replacements.push((start..token.end as usize, format!("pgherd.tableoid({oid})")));
    }
    Some(Instead::new(text, &replacements))
}

/// The declared partition that a row lies in, by its key; NULL for a row that an outer join has added.
fn partition_of_row(sharded: &Sharded, qualifier: Option<&str>) -> String {
    let column = |name: &String| match qualifier {
        Some(qualifier) => format!("{}.{}", quote_identifier(qualifier), quote_identifier(name)),
        None => quote_identifier(name),
    };
    let key: Vec<String> = sharded.key.iter().map(column).collect();
    let cases = sharded.ranges.ranges().iter().map(|range| {
        let lies_in = range_condition(&key, &sharded.key_types, &range.from, &range.to);
        format!("WHEN {lies_in} THEN {}", quote_literal(&range.child.to_string()))
    });
    let cases: Vec<_> = cases.collect();
    // Where the name is not known there is an error, which to_regclass() would hide.
    format!("CAST(CASE {} END AS pg_catalog.regclass)", cases.join(" "))
}

/// The table whose column is meant. None where it is not clear.
fn whose<'r>(references: &'r [Reference], qualifier: Option<&str>) -> Option<&'r Arc<Table>> {
    let exposed = |r: &&Reference| {
        let name = r.alias.as_deref().unwrap_or(&r.name.name);
        qualifier.is_none_or(|qualifier| qualifier == name)
    };
    let mut found = references.iter().filter(exposed);
    match (found.next()?, found.next()) {
        (reference, None) => reference.table.as_ref(),
        _ => None,
    }
}

/// Among several tables a column that tells whether an outer join has a row of this one. None where there is none.
fn presence(references: &[Reference], table: &Table, qualifier: Option<&str>) -> Option<Option<String>> {
    if references.len() == 1 {
        return Some(None);
    }
    let certain = table.columns.iter().find(|c| c.not_null)?;
    let column = format!("{}.{}", quote_identifier(qualifier?), quote_identifier(&certain.name));
    Some(Some(column))
}
