//! Which relations a statement refers to, and where in its text: resolved past common table expressions.
//! And putting other names in their place.

use crate::kind::ObjectName;
use crate::route::Replaced;
use crate::walk::Walk;
use pgherd_model::Table;
use sqlparser::ast::{Ident, ObjectName as AstName, Statement};
use std::ops::Range;
use std::sync::Arc;

/// How a statement uses a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// FROM, USING, JOIN, a subquery
    Read,
    /// INSERT INTO
    Insert,
    /// UPDATE
    Update,
    /// DELETE FROM
    Delete,
    /// MERGE INTO
    Merge,
}

/// One use of a relation.
#[derive(Debug, Clone)]
pub struct Reference {
    /// as written, with its bytes in the statement
    pub name: ObjectName,
    /// AS …
    pub alias: Option<String>,
    /// behind the alias if there is one, else behind the name: bytes in the statement
    pub end: usize,
    /// for what
    pub role: Role,
    /// what `resolve` knew of it; None: local, temporary, of the system, or not there
    pub table: Option<Arc<Table>>,
}

/// Finds a relation by schema, if given, and name.
pub type ResolveTable<'a> = &'a dyn Fn(Option<&str>, &str) -> Option<Arc<Table>>;

/// All uses of relations in SELECT, INSERT, UPDATE, DELETE, MERGE and in the query of CREATE TABLE AS and
/// CREATE VIEW, in the order of the text's grammar; names of common table expressions are left out. None when
/// the tree has something that is not PostgreSQL's, so that the list might not be whole.
pub fn references(statement: &Statement, resolve: ResolveTable) -> Option<Vec<Reference>> {
    let mut walk = Walk::new(resolve);
    walk.statement(statement);
    walk.is_whole(statement).then_some(walk.references)
}

/// The catalog's form of an identifier: folded where it is not quoted, cut at 63 bytes.
pub fn identifier(ident: &Ident) -> String {
    let name = match ident.quote_style {
        None => ident.value.to_ascii_lowercase(),
        Some(_) => ident.value.clone(),
    };
    crate::lexer::cut_name(name)
}

/// The bytes of an identifier in the statement.
pub fn ident_span(ident: &Ident) -> Range<usize> {
    let byte = |column: u64| (column as usize).saturating_sub(1);
    byte(ident.span.start.column)..byte(ident.span.end.column)
}

/// A name's last two parts; None for what is no plain name.
pub fn object_name(name: &AstName) -> Option<ObjectName> {
    let parts: Vec<&Ident> = name.0.iter().map(|p| p.as_ident()).collect::<Option<_>>()?;
    let (first, last) = (parts.first()?, parts.last()?);
    Some(ObjectName {
        schema: parts.len().checked_sub(2).map(|i| identifier(parts[i])),
        name: identifier(last),
        span: ident_span(first).start..ident_span(last).end,
    })
}

/// Puts other text in the place of `replacements` (bytes in `text`, not overlapping), and says where what was put, ascending.
pub fn substitute(text: &str, replacements: &[(Range<usize>, String)]) -> (String, Vec<Replaced>) {
    // A tree is not walked in the order of its text: relations of subqueries come before those of FROM.
    let start = |(span, _): &(Range<usize>, String)| (span.start, span.end);
    if !replacements.is_sorted_by_key(start) {
        let mut sorted = replacements.to_vec();
        sorted.sort_by_key(start);
        return substitute(text, &sorted);
    }
    let grown: usize = replacements.iter().map(|(_, with)| with.len()).sum();
    let mut out = String::with_capacity(text.len() + grown);
    let mut replaced = Vec::with_capacity(replacements.len());
    let mut at = 0;
    for (span, with) in replacements {
        out.push_str(&text[at..span.start]);
        replaced.push(Replaced {
            at: out.len() as u32,
            length: with.len() as u32,
            original_at: span.start as u32,
            original_length: span.len() as u32,
            original_characters: text[span.clone()].chars().count() as u32,
        });
        out.push_str(with);
        at = span.end;
    }
    out.push_str(&text[at..]);
    (out, replaced)
}
