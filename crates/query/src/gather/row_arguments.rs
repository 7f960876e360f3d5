//! Whole rows: as arguments of users' functions, `f(t)`, `f(t.*)` and `t.f`, and anywhere else.
//!
//! A copy's rows have the type of the copy, by which PostgreSQL would not find the function. So a statement that has whole rows of a
//! relation in it reads the copy through a function in FROM that returns rows of the relation's type ([`Gathered::loaded_sql`]). Where the
//! copy's own primary key or rows are wanted, the argument alone is written as one of the relation's own type: `f(CASE WHEN (t.*) IS DISTINCT FROM NULL THEN ROW(t."a", t."b")::s.t END)`. An outer join gives a row that is NULL where
//! there is none; a row of NULLs is none such.

use super::source::{Gathered, Identity, Resolution};
use crate::relations::{bytes, fold, parts};
use crate::views::ParsedQuery;
use pgherd_model::quote_identifier;
use sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Select, SelectItem, Visit, Visitor,
};
use std::collections::HashSet;
use std::ops::{ControlFlow, Range};

/// What is to stand in the place of such arguments. `functions`: those that take rows.
pub(super) fn edits(
    parsed: &ParsedQuery,
    resolutions: &[Resolution],
    sources: &[Gathered],
    functions: &[String],
) -> Vec<(Range<usize>, String)> {
    if functions.is_empty() {
        return Vec::new();
    }
    let mut calls = Calls {
        functions,
        arguments: Vec::new(),
        notations: Vec::new(),
        outputs: HashSet::new(),
    };
    let _ = parsed.query.visit(&mut calls);
    // With a star behind it, a name is no column's.
    let row = |name: &str, starred: bool| {
        let is_column = |s: &Gathered| s.relation.column_names.iter().any(|column| column == name);
        let may_be_column = || calls.outputs.contains(name) || sources.iter().any(is_column);
        if !parsed.relations.is_unique(name) || (!starred && may_be_column()) {
            return None;
        }
        let named = |&m: &usize| {
            let mention = &resolutions[m].mention;
            mention.alias.as_ref().unwrap_or(&mention.name) == name
        };
        let source = sources.iter().find(|source| source.mentions.iter().any(named))?;
        // Its rows are the relation's own already.
        if source.has_typed_rows() {
            return None;
        }
        Some((source, source.row_sql(&quote_identifier(name))))
    };
    let star_behind = |at: usize| {
        let mut tokens = parsed.tokens.iter().skip_while(|token| (token.start as usize) < at);
        let star = tokens.nth(1).filter(|token| token.is(&parsed.text, "*"))?;
        Some(star.end as usize)
    };
    let arguments = calls.arguments.iter().filter_map(|(span, name, starred)| {
        let (_, row) = row(name, *starred)?;
        let end = if *starred { star_behind(span.end)? } else { span.end };
        Some((span.start..end, row))
    });
    let notations = calls.notations.iter().filter_map(|(span, name, function)| {
        let (source, row) = row(name, false)?;
        let is_column = source.relation.column_names.contains(function);
        (!is_column).then(|| (span.clone(), format!("{}({row})", quote_identifier(function))))
    });
    let mut edits: Vec<_> = arguments.chain(notations).collect();
    edits.sort_by_key(|(span, _)| span.start);
    edits.dedup_by_key(|(span, _)| span.start);
    edits
}

/// Whether the row of a relation stands in an expression with a star: `(t.*)`, `f(t.*, …)` or `t.*::type`, as views' definitions have it.
pub(super) fn is_row_with_star(parsed: &ParsedQuery, name: &str) -> bool {
    let (text, tokens) = (&parsed.text, &parsed.tokens);
    (0..tokens.len().saturating_sub(2)).any(|at| {
        let behind = |symbol| tokens.get(at + 3).is_some_and(|t| t.is(text, symbol));
        let before = at > 0 && tokens[at - 1].is(text, "(");
        tokens[at].identifier(text).as_deref() == Some(name)
            && tokens[at + 1].is(text, ".")
            && tokens[at + 2].is(text, "*")
            && (behind("::") || before && (behind(")") || behind(",")))
    })
}

impl Gathered {
    /// Whether its rows are read as ones of the relation's own type. A key that is relied on is the copy's; so is what stands beside a row.
    pub(super) fn has_typed_rows(&self) -> bool {
        let relies_on_key = self.with_key && self.groups_by_key;
        self.typed_rows && !relies_on_key && self.identity == Identity::None && !self.relation.columns.is_empty()
    }

    /// The loaded table in a FROM.
    pub(super) fn loaded_sql(&self) -> String {
        let temporary = format!("pg_temp.{}", self.temporary);
        if !self.has_typed_rows() {
            return temporary;
        }
        let columns: Vec<_> = self
            .relation
            .columns
            .iter()
            .map(|c| quote_identifier(&c.name))
            .collect();
        self.typed_rows_sql(&columns, &format!("FROM {temporary}"))
    }

    /// Rows of these columns as the relation's own, in a FROM.
    pub(super) fn typed_rows_sql(&self, columns: &[String], from: &str) -> String {
        format!(
            "pg_catalog.unnest(ARRAY(SELECT ROW({})::{} {from}))",
            columns.join(", "),
            self.relation.sql()
        )
    }

    /// A whole row of its copy, which the statement calls so, as one of the relation.
    fn row_sql(&self, alias: &str) -> String {
        let columns = self.relation.column_names.iter();
        let columns: Vec<_> = columns
            .map(|name| format!("{alias}.{}", quote_identifier(name)))
            .collect();
        format!(
            "CASE WHEN ({alias}.*) IS DISTINCT FROM NULL THEN ROW({})::{} END",
            columns.join(", "),
            self.relation.sql()
        )
    }
}

struct Calls<'a> {
    functions: &'a [String],
    /// a name that is an argument, where it is, and whether `.*` is behind it
    arguments: Vec<(Range<usize>, String, bool)>,
    /// `row.function`
    notations: Vec<(Range<usize>, String, String)>,
    /// names of columns of subqueries, which may hide rows
    outputs: HashSet<String>,
}

impl Calls<'_> {
    fn note(&mut self, argument: &FunctionArgExpr) {
        let idents = match argument {
            FunctionArgExpr::Expr(Expr::Identifier(ident)) => vec![ident],
            FunctionArgExpr::QualifiedWildcard(name) => parts(name).unwrap_or_default(),
            _ => return,
        };
        if let [ident] = &idents[..]
            && let Some(span) = bytes(ident, ident)
        {
            let starred = matches!(argument, FunctionArgExpr::QualifiedWildcard(_));
            self.arguments.push((span, fold(ident), starred));
        }
    }

    fn note_call(&mut self, call: &Function) {
        let name = parts(&call.name).and_then(|parts| parts.last().map(|ident| fold(ident)));
        if !name.is_some_and(|name| self.functions.contains(&name)) {
            return;
        }
        let FunctionArguments::List(list) = &call.args else {
            return;
        };
        for argument in &list.args {
            match argument {
                FunctionArg::Named { arg, .. } | FunctionArg::ExprNamed { arg, .. } | FunctionArg::Unnamed(arg) => {
                    self.note(arg);
                }
            }
        }
    }
}

impl Visitor for Calls<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        for item in &select.projection {
            if let SelectItem::ExprWithAlias { alias, .. } = item {
                self.outputs.insert(fold(alias));
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(call) => self.note_call(call),
            Expr::CompoundIdentifier(idents) => {
                if let [row, function] = &idents[..]
                    && self.functions.contains(&fold(function))
                    && let Some(span) = bytes(row, function)
                {
                    self.notations.push((span, fold(row), fold(function)));
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
