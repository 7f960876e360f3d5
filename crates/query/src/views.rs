//! Views over sharded tables are expanded in the text, before anything else is decided, as PostgreSQL's rewriter does.

use crate::edit::Edited;
use crate::relations::{Mention, Relations};
use crate::statement::Statement;
use pgherd_model::{Resolved, ServerError, Snapshot, TableKind, quote_identifier};
use pgherd_sql::lexer::Token;
use sqlparser::ast::{Query, Statement as Ast};
use std::ops::Range;
use std::sync::Arc;

/// A query's text and everything that was read from it.
pub(crate) struct ParsedQuery {
    pub text: String,
    pub query: Query,
    pub tokens: Arc<[Token]>,
    pub relations: Relations,
    /// all its identifiers and key words, as the catalog would have them
    pub words: Vec<String>,
    /// it has a `.*`
    pub dotted_star: bool,
}

/// Parses one SELECT. Errors: 0A000 for grammar that the tree lacks.
pub(crate) fn parse_query(text: &str) -> Result<ParsedQuery, ServerError> {
    let unclear = || {
        ServerError::unsupported(
            "this query is not supported over several shards",
            "The gateway does not understand its syntax; write it in other words.",
        )
    };
    let parsed = pgherd_sql::parse(text)?.into_iter().next().ok_or_else(unclear)?;
    // Spans count from the statement's first byte.
    let text = parsed.text(text).to_owned();
    let query = match parsed.ast.as_deref() {
        Some(Ast::Query(query)) => (**query).clone(),
        _ => return Err(unclear()),
    };
    let mut words: Vec<_> = parsed.identifiers(&text).collect();
    words.sort();
    words.dedup();
    let tokens = parsed.tokens.clone();
    let dotted_star = tokens.windows(2).any(|t| t[0].is(&text, ".") && t[1].is(&text, "*"));
    Ok(ParsedQuery {
        relations: Relations::of(&query)?,
        query,
        tokens,
        words,
        dotted_star,
        text,
    })
}

/// A statement without those views over sharded tables that were to be replaced.
pub(crate) struct Expanded {
    pub parsed: ParsedQuery,
    pub has_views: bool,
    /// the byte that was asked about, where it is now
    pub at: Option<usize>,
}

/// Which views are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    /// the shards have the others, and let the role read through them
    NotEverywhere,
}

/// Deeper nesting of views is refused; PostgreSQL itself ends at its stack's depth.
const DEEPEST: usize = 50;

/// Replaces views over sharded tables by their definitions, until none is left, and says where the byte `at` is then, which is in no
/// view's name.
pub(crate) fn expand(statement: &Statement<'_>, at: Option<usize>, which: Which) -> Result<Expanded, ServerError> {
    let mut parsed = parse_query(statement.text)?;
    let (mut has_views, mut at) = (false, at);
    for _ in 0..DEEPEST {
        let edits = definitions(&parsed, statement.snapshot, statement.search_path, which);
        if edits.is_empty() {
            return Ok(Expanded { parsed, has_views, at });
        }
        at = at.map(|at| {
            let before = edits.iter().filter(|(span, _)| span.end <= at);
            let (gone, come) = before.fold((0, 0), |(gone, come), (span, with)| {
                (gone + span.len(), come + with.len())
            });
            at + come - gone
        });
        (parsed, has_views) = (parse_query(&Edited::new(&parsed.text, edits).text)?, true);
    }
    Err(ServerError::unsupported(
        "views are nested too deeply for a query over several shards",
        "Query the tables that the views read.",
    ))
}

/// What stands in place of each view that a statement names, and of the schema before its columns.
fn definitions(
    parsed: &ParsedQuery,
    snapshot: &Snapshot,
    search_path: &[Arc<str>],
    which: Which,
) -> Vec<(Range<usize>, String)> {
    let mut edits = Vec::new();
    let definition = |mention: &Mention| {
        let resolved = snapshot.resolve(mention.schema.as_deref(), &mention.name, search_path);
        match resolved {
            Resolved::Known(table) => match &table.kind {
                TableKind::View { stand_in: Some(_), .. } if which == Which::NotEverywhere => None,
                TableKind::View { definition, .. } => Some(definition.trim().trim_end_matches(';').to_owned()),
                _ => None,
            },
            Resolved::Home => None,
        }
    };
    for mention in &parsed.relations.mentions {
        let Some(definition) = definition(mention) else {
            continue;
        };
        let alias = match mention.alias {
            Some(_) => String::new(),
            None => format!(" AS {}", quote_identifier(&parsed.relations.alias(mention))),
        };
        // The view's own column names may differ from the definition's only where CREATE VIEW renamed them; the
        // catalog's definition has the names.
        edits.push((mention.span.clone(), format!("({definition}){alias}")));
    }
    if !edits.is_empty() {
        edits.extend(parsed.relations.requalified(|mention| definition(mention).is_some()));
    }
    edits
}
