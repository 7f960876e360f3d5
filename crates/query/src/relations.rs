//! Which relations a SELECT names, and where: every table of every FROM, at any depth, but for names of WITH.
//!
//! It does not look at columns or predicates; [`crate::pushdown`] does.

use crate::statement::Statement;
use pgherd_model::{Resolved, ServerError, Table, quote_identifier};
use sqlparser::ast::{
    Ident, ObjectName, ObjectNamePart, Query, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, TableFactor, Visit,
    Visitor,
};
use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// One mention of a relation in a FROM.
#[derive(Debug, Clone)]
pub(crate) struct Mention {
    /// bytes of the name in the statement, schema included
    pub span: Range<usize>,
    /// the schema, where it is given
    pub schema: Option<String>,
    /// the name as the catalog has it
    pub name: String,
    /// what its columns can be qualified with, where it has an alias
    pub alias: Option<String>,
}

/// `schema.table` before a column or `*`.
#[derive(Debug)]
struct Qualifier {
    /// bytes in the statement
    span: Range<usize>,
    schema: String,
    table: String,
}

/// What a walk over the whole tree found.
#[derive(Debug, Default)]
pub(crate) struct Relations {
    /// every mention of a relation that is not a WITH query's
    pub mentions: Vec<Mention>,
    /// `schema.table` before a column or `*`
    qualifiers: Vec<Qualifier>,
    /// tables' names or aliases before a column or `*`, without a schema
    names_used: HashSet<String>,
    /// what can stand before a column, of every FROM item; with the schema where that can stand before it, too
    exposed: Vec<(Option<String>, String)>,
    /// the tree locks rows (FOR UPDATE …)
    pub locks: bool,
    /// the tree has INSERT, UPDATE, DELETE or MERGE in a WITH
    pub modifies: bool,
    /// the tree has SELECT INTO
    pub into: bool,
}

/// The name as PostgreSQL stores it: folded unless quoted.
pub(crate) fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// Bytes of the statement, from a span on line 1.
pub(crate) fn bytes(from: &Ident, to: &Ident) -> Option<Range<usize>> {
    let (start, end) = (from.span.start, to.span.end);
    (start.line == 1 && end.line == 1 && end.column > start.column)
        .then(|| start.column as usize - 1..end.column as usize - 1)
}

/// The identifiers of a name; None when it is no plain name.
pub(crate) fn parts(name: &ObjectName) -> Option<Vec<&Ident>> {
    let parts = name.0.iter().map(|part| match part {
        ObjectNamePart::Identifier(ident) => Some(ident),
        _ => None,
    });
    parts.collect()
}

/// The sharded table that a name stands for: itself, or what stands for a view of one.
pub(crate) fn sharded(statement: &Statement<'_>, name: &ObjectName) -> Option<Arc<Table>> {
    let parts = parts(name)?;
    let (schema, last) = match parts.as_slice() {
        [last] => (None, *last),
        [schema, last] => (Some(fold(schema)), *last),
        _ => return None,
    };
    let name = fold(last);
    match statement
        .snapshot
        .resolve(schema.as_deref(), &name, statement.search_path)
    {
        Resolved::Known(table) => Some(table.placed()).filter(|t| t.sharded().is_some()),
        Resolved::Home => None,
    }
}

impl Relations {
    /// Walks a query. Errors: 0A000 for relations that cannot be told from the tree.
    pub fn of(query: &Query) -> Result<Self, ServerError> {
        let mut walk = Walk::default();
        match query.visit(&mut walk) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => walk.found.checked(),
        }
    }

    /// A table's copy has no schema. Columns named with one can be told apart by an alias, unless the same name is used for
    /// something else without a schema.
    fn checked(self) -> Result<Self, ServerError> {
        for Qualifier { schema, table, .. } in &self.qualifiers {
            let is_other = |(other, name): &&(Option<String>, String)| name == table && other.as_ref() != Some(schema);
            let mut others = self.exposed.iter().filter(is_other).peekable();
            let told_apart = !self.names_used.contains(table) && others.clone().all(|(schema, _)| schema.is_some());
            if others.peek().is_some() && !told_apart {
                return Err(ServerError::unsupported(
                    format!(
                        "{schema}.{table} and another \"{table}\" are not supported in one query over several ranges"
                    ),
                    "Give the tables aliases, and name their columns with these.",
                ));
            }
        }
        Ok(self)
    }

    /// Whether columns are named with a schema somewhere.
    pub fn names_schemas(&self) -> bool {
        !self.qualifiers.is_empty()
    }

    /// The alias for what stands in a mention's place: its own, or the table's name. Tables of one name from two schemas may stand
    /// beside each other, as long as their columns are named with the schema; aliases may not.
    pub fn alias(&self, mention: &Mention) -> String {
        if let Some(alias) = &mention.alias {
            return alias.clone();
        }
        let is_twin = |m: &Mention| m.alias.is_none() && m.name == mention.name && m.schema != mention.schema;
        match &mention.schema {
            Some(schema) if !self.names_used.contains(&mention.name) && self.mentions.iter().any(is_twin) => {
                format!("{schema}.{}", mention.name)
            }
            _ => mention.name.clone(),
        }
    }

    /// Whether only one FROM item, of all at any depth, can be meant by a name.
    pub fn is_unique(&self, name: &str) -> bool {
        self.exposed.iter().filter(|(_, exposed)| exposed == name).count() == 1
    }

    /// Replaces `schema.table` before columns by the alias of the mention that it means, for those mentions that are replaced.
    pub fn requalified(&self, replaced: impl Fn(&Mention) -> bool) -> Vec<(Range<usize>, String)> {
        let of = |qualifier: &Qualifier| {
            let mut mentions = self.mentions.iter().filter(|m| m.alias.is_none() && replaced(m));
            let same = |m: &&Mention| m.name == qualifier.table && m.schema.as_ref() == Some(&qualifier.schema);
            Some((
                qualifier.span.clone(),
                quote_identifier(&self.alias(mentions.find(same)?)),
            ))
        };
        self.qualifiers.iter().filter_map(of).collect()
    }
}

/// The names of one query's WITH, as far as they can be seen from where the walk is.
struct Scope {
    names: Vec<(String, *const Query)>,
    recursive: bool,
    /// which of its WITH queries the walk is in
    inside: Option<usize>,
}

#[derive(Default)]
struct Walk {
    scopes: Vec<Scope>,
    found: Relations,
}

impl Walk {
    fn is_with_query(&self, name: &str) -> bool {
        self.scopes.iter().rev().any(|scope| {
            // A WITH query sees the ones before it, and itself and all others under RECURSIVE.
            let visible = match scope.inside {
                Some(inside) if !scope.recursive => inside,
                _ => scope.names.len(),
            };
            scope.names[..visible].iter().any(|(n, _)| n == name)
        })
    }
}

impl Visitor for Walk {
    type Break = ServerError;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<ServerError> {
        if let Some(scope) = self.scopes.last_mut()
            && let Some(inside) = scope.names.iter().position(|(_, q)| std::ptr::eq(*q, query))
        {
            scope.inside = Some(inside);
        }
        let with = query.with.as_ref();
        self.scopes.push(Scope {
            names: with
                .iter()
                .flat_map(|w| &w.cte_tables)
                .map(|cte| (fold(&cte.alias.name), &raw const *cte.query))
                .collect(),
            recursive: with.is_some_and(|w| w.recursive),
            inside: None,
        });
        self.found.locks |= !query.locks.is_empty();
        self.note_body(&query.body)
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<ServerError> {
        self.scopes.pop();
        if let Some(scope) = self.scopes.last_mut()
            && scope.names.iter().any(|(_, q)| std::ptr::eq(*q, query))
        {
            scope.inside = None;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &sqlparser::ast::Select) -> ControlFlow<ServerError> {
        self.found.into |= select.into.is_some();
        for item in &select.projection {
            if let SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) = item
                && let Some(idents) = parts(name)
            {
                self.note_qualifier(&idents);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<ServerError> {
        self.note_exposed(factor);
        let TableFactor::Table { name, alias, args, .. } = factor else {
            return ControlFlow::Continue(());
        };
        if args.is_some() {
            // A function in FROM.
            return ControlFlow::Continue(());
        }
        let unclear = || {
            ControlFlow::Break(ServerError::unsupported(
                format!("cannot tell which relation \"{name}\" is in a query over several ranges"),
                "Name the table as schema.table, without ONLY.",
            ))
        };
        let Some(idents) = parts(name) else {
            return unclear();
        };
        let (schema, last) = match idents.as_slice() {
            [last] => (None, *last),
            [schema, last] => (Some(fold(schema)), *last),
            [_, schema, last] => (Some(fold(schema)), *last),
            _ => return unclear(),
        };
        if schema.is_none() && last.quote_style.is_none() && last.value.eq_ignore_ascii_case("only") {
            return unclear();
        }
        let name = fold(last);
        if schema.is_none() && self.is_with_query(&name) {
            return ControlFlow::Continue(());
        }
        let Some(span) = bytes(idents[0], last) else {
            return unclear();
        };
        self.found.mentions.push(Mention {
            span,
            schema,
            name,
            alias: alias.as_ref().map(|a| fold(&a.name)),
        });
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &sqlparser::ast::Expr) -> ControlFlow<ServerError> {
        if let sqlparser::ast::Expr::CompoundIdentifier(idents) = expr {
            let idents: Vec<_> = idents.iter().collect();
            self.note_qualifier(&idents[..idents.len().saturating_sub(1)]);
        }
        ControlFlow::Continue(())
    }
}

impl Walk {
    fn note_exposed(&mut self, factor: &TableFactor) {
        let (name, alias) = match factor {
            TableFactor::Table { name, alias, .. } => (Some(name), alias),
            TableFactor::Derived { alias, .. }
            | TableFactor::TableFunction { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::UNNEST { alias, .. }
            | TableFactor::NestedJoin { alias, .. } => (None, alias),
            _ => return,
        };
        if let Some(alias) = alias {
            self.found.exposed.push((None, fold(&alias.name)));
            return;
        }
        let idents = name.and_then(parts).unwrap_or_default();
        if let Some((table, before)) = idents.split_last() {
            self.found
                .exposed
                .push((before.last().map(|schema| fold(schema)), fold(table)));
        }
    }

    /// What stands before a column or `*`.
    fn note_qualifier(&mut self, idents: &[&Ident]) {
        match idents {
            [table] => {
                self.found.names_used.insert(fold(table));
            }
            [schema, table] => self.found.qualifiers.extend(bytes(schema, table).map(|span| Qualifier {
                span,
                schema: fold(schema),
                table: fold(table),
            })),
            _ => {}
        }
    }

    fn note_body(&mut self, body: &SetExpr) -> ControlFlow<ServerError> {
        match body {
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                self.found.modifies = true;
            }
            SetExpr::SetOperation { left, right, .. } => {
                self.note_body(left)?;
                self.note_body(right)?;
            }
            // The tree keeps no place of its name.
            SetExpr::Table(table) => {
                return ControlFlow::Break(ServerError::unsupported(
                    format!("TABLE {} is not supported in a query over several ranges", table),
                    "Write SELECT * FROM instead of TABLE.",
                ));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlparser::ast::Statement;
    use sqlparser::dialect::PostgreSqlDialect;
    use sqlparser::parser::Parser;

    fn names(sql: &str) -> String {
        let statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).expect(sql).remove(0);
        let Statement::Query(query) = statement else {
            panic!("not a query: {sql}")
        };
        let mentions = Relations::of(&query).expect(sql).mentions;
        let texts: Vec<_> = mentions.iter().map(|m| &sql[m.span.clone()]).collect();
        texts.join(" ")
    }

    #[test]
    fn every_from_counts() {
        let sql = "SELECT (SELECT max(x) FROM a) FROM b, LATERAL (SELECT 1 FROM c) d JOIN s.e ON EXISTS (SELECT FROM f) UNION SELECT 1 FROM g WHERE x IN (SELECT y FROM h)";
        let mut found: Vec<_> = names(sql).split(' ').map(str::to_owned).collect();
        found.sort();
        assert_eq!(found.join(" "), "a b c f g h s.e");
    }

    #[test]
    fn with_queries_hide_tables_only_where_they_are_seen() {
        assert_eq!(names("WITH t AS (SELECT * FROM t) SELECT * FROM t"), "t");
        assert_eq!(
            names("WITH RECURSIVE t AS (SELECT 1 UNION SELECT * FROM t) SELECT * FROM t"),
            ""
        );
        assert_eq!(
            names("WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a, b"),
            "b"
        );
        assert_eq!(names("SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x) y, x"), "x");
        assert_eq!(names("WITH x AS (SELECT 1) SELECT * FROM public.x"), "public.x");
    }

    #[test]
    fn functions_are_no_relations() {
        assert_eq!(names("SELECT * FROM generate_series(1, 2) g, unnest(ARRAY[1]) u"), "");
    }
}
