//! Variables in SQL: wherever PostgreSQL would see a column, and there is a variable of that name, its value stands instead.

use super::NotUnderstood;
use crate::kind::{DdlKind, Kind};
use crate::lexer::{Token, TokenKind, tokenize};
use crate::position::map_back;
use crate::relations::substitute;
use crate::route::Replaced;
use sqlparser::ast::{
    AccessExpr, Expr, GroupByExpr, Ident, OrderByKind, Query, Select, SelectItem, SetExpr, Visit, Visitor,
};
use std::collections::HashSet;
use std::ops::{ControlFlow, Range};

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// no variable
    Nothing,
    /// SQL that gives the value
    Value(String),
    /// a variable that cannot stand there
    Unusable,
}

/// A statement with values in place of variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// what is run
    pub text: String,
    replaced: Vec<Replaced>,
}

impl Bound {
    /// The text as it is.
    pub fn unchanged(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            replaced: Vec::new(),
        }
    }

    /// Whether no variable was found.
    pub fn is_unchanged(&self) -> bool {
        self.replaced.is_empty()
    }

    /// A position in the text that is run, in characters from 1, becomes one in the block's statement: a variable's beginning where it
    /// is inside of its value.
    pub fn map_position(&self, position: u32) -> u32 {
        map_back(&self.text, &self.replaced, position)
    }
}

/// The statement with values in place of variables. `find` is asked for each name that may be a column's, such as `a` and `a.b`, with
/// the byte at which it stands; of names that only may be meant, with none.
///
/// Errors: variables in what sqlparser does not read, where their places cannot be known.
pub fn bind(text: &str, find: &dyn Fn(&[String], Option<usize>) -> Found) -> Result<Bound, NotUnderstood> {
    let tokens = tokenize(text).map_err(|_| NotUnderstood("A string in it does not end.".into()))?;
    let name = |token: &Token| token.identifier(text);
    let mentions = tokens
        .iter()
        .filter_map(name)
        .any(|name| find(std::slice::from_ref(&name), None) != Found::Nothing);
    if !mentions {
        return Ok(Bound::unchanged(text));
    }
    let unclear = || {
        NotUnderstood(format!(
            "Where its variables stand in \"{}\" is not understood.",
            short(text)
        ))
    };
    let stars = stars(text, &tokens, find).ok_or_else(unclear)?;
    let blanks: Vec<_> = stars
        .iter()
        .map(|(span, _)| (span.clone(), format!("{:<width$}", "0", width = span.len())))
        .collect();
    let (blanked, _) = substitute(text, &blanks);
    let statements = crate::parse(&blanked).map_err(|_| unclear())?;
    let [statement] = &statements[..] else {
        return Err(unclear());
    };
    let takes_values = matches!(
        statement.kind,
        Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge
    );
    if !takes_values {
        // A statement of any other kind has no variables in PL/pgSQL.
        return match &statement.kind {
            Kind::Other | Kind::Explain { .. } | Kind::Copy(_) | Kind::Call => Err(unclear()),
            // CREATE TABLE AS takes values as its query would.
            Kind::Ddl(ddl) if ddl.kind == DdlKind::CreateTableAs => Err(unclear()),
            _ => Ok(Bound::unchanged(text)),
        };
    }
    let tree = statement.ast.as_ref().ok_or_else(unclear)?;
    let mut places = Places {
        text: &blanked,
        offset: statement.span.start,
        tokens: &statement.tokens,
        find,
        outputs: HashSet::new(),
        seen: HashSet::new(),
        found: Vec::new(),
    };
    if tree.visit(&mut places).is_break() {
        return Err(unclear());
    }
    let mut found = places.found;
    found.sort_by_key(|(start, ..)| *start);
    found.dedup_by_key(|(start, ..)| *start);
    let found = found.into_iter().map(|(start, end, value)| (start..end, value));
    let mut replacements: Vec<_> = found.chain(stars).collect();
    replacements.sort_by_key(|(span, _)| span.start);
    let (text, replaced) = substitute(text, &replacements);
    Ok(Bound { text, replaced })
}

/// `r.*` of variables that hold rows, where it is a list of its columns, and what stands there instead. None where it is not clear what is meant.
fn stars(
    text: &str,
    tokens: &[Token],
    find: &dyn Fn(&[String], Option<usize>) -> Found,
) -> Option<Vec<(Range<usize>, String)>> {
    let is = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
    let word = |at: usize, words: &[&str]| words.iter().any(|w| tokens.get(at).is_some_and(|t| t.is_word(text, w)));
    let mut found = Vec::new();
    for at in 1..tokens.len() {
        let Some(name) = tokens[at]
            .identifier(text)
            .filter(|_| is(at + 1, ".") && is(at + 2, "*"))
        else {
            continue;
        };
        let value = match find(&[name.clone(), "*".to_owned()], None) {
            Found::Nothing => continue,
            Found::Unusable => return None,
            Found::Value(value) => value,
        };
        let opens = is(at - 1, "(") && at > 1 && (word(at - 2, &["values", "row"]) || is(at - 2, ","));
        let begins = word(at - 1, &["select", "returning"]) || is(at - 1, ",") || opens;
        let ends = at + 3 == tokens.len()
            || is(at + 3, ",")
            || is(at + 3, ")")
            || word(at + 3, &["from", "where", "on", "returning"]);
        // A relation of that name would be meant as well.
        let is_relation = (0..tokens.len()).any(|i| {
            !is(i + 1, ".") && tokens[i].identifier(text).as_deref() == Some(&name) && !(i > 0 && is(i - 1, "."))
        });
        if !begins || !ends || is_relation {
            return None;
        }
        found.push((tokens[at].start as usize..tokens[at + 2].end as usize, value));
    }
    Some(found)
}

/// The text with values in place of `$1`, `$2` and so on.
///
/// Errors: a parameter without a value.
pub fn parameters(text: &str, values: &[String]) -> Result<Bound, NotUnderstood> {
    let Ok(tokens) = tokenize(text) else {
        return Ok(Bound::unchanged(text));
    };
    let mut replacements = Vec::new();
    for token in tokens.iter().filter(|token| token.kind == TokenKind::Parameter) {
        let number = token.text(text)[1..].parse::<usize>().unwrap_or(0);
        let value = number.checked_sub(1).and_then(|at| values.get(at));
        let value = value.ok_or_else(|| NotUnderstood(format!("There is no value for ${number}.")))?;
        replacements.push((token.start as usize..token.end as usize, value.clone()));
    }
    let (text, replaced) = substitute(text, &replacements);
    Ok(Bound { text, replaced })
}

fn short(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

struct Places<'a> {
    text: &'a str,
    offset: usize,
    tokens: &'a [Token],
    find: &'a dyn Fn(&[String], Option<usize>) -> Found,
    /// where ORDER BY and GROUP BY name what is in the select list
    outputs: HashSet<u64>,
    /// where names begin that were seen with what is behind them
    seen: HashSet<u64>,
    /// from, to, and what stands there instead
    found: Vec<(usize, usize, String)>,
}

impl Places<'_> {
    fn note(&mut self, idents: &[Ident]) -> ControlFlow<()> {
        if let [one] = idents
            && (self.outputs.contains(&one.span.start.column) || self.seen.contains(&one.span.start.column))
        {
            return ControlFlow::Continue(());
        }
        let names: Vec<String> = idents.iter().map(folded).collect();
        let column = idents.first().map_or(0, |ident| ident.span.start.column as usize);
        let at = column.checked_sub(1).map(|at| self.offset + at);
        let value = match (self.find)(&names, at) {
            Found::Nothing => return ControlFlow::Continue(()),
            Found::Unusable => return ControlFlow::Break(()),
            Found::Value(value) => value,
        };
        // What the parser was given in other words has no place here.
        let place = |ident: &Ident| {
            let start = usize::try_from(ident.span.start.column).ok()?.checked_sub(1)?;
            let token = self.tokens.iter().find(|token| token.start as usize == start)?;
            let statement = &self.text[self.offset..];
            let name = token.identifier(statement)?;
            (name == folded(ident)).then_some((self.offset + token.start as usize, self.offset + token.end as usize))
        };
        match (idents.first().and_then(place), idents.last().and_then(place)) {
            // The name of an argument.
            (Some(_), Some((_, end))) if self.is_named_argument(end) => ControlFlow::Continue(()),
            (Some((start, _)), Some((_, end))) => {
                self.found.push((start, end, value));
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Break(()),
        }
    }
}

impl Places<'_> {
    /// A name alone in ORDER BY or GROUP BY is that of a column of the result first.
    fn note_outputs(&mut self, query: &Query) {
        let Some(select) = first_select(&query.body) else {
            return;
        };
        let names: HashSet<String> = select.projection.iter().filter_map(output_name).collect();
        let by_order = match query.order_by.as_ref().map(|order| &order.kind) {
            Some(OrderByKind::Expressions(items)) => items.iter().map(|item| &item.expr).collect(),
            _ => Vec::new(),
        };
        let by_group = match &select.group_by {
            GroupByExpr::Expressions(items, _) => &items[..],
            GroupByExpr::All(_) => &[],
        };
        for expr in by_order.into_iter().chain(by_group) {
            if let Expr::Identifier(ident) = expr
                && names.contains(&folded(ident))
            {
                self.outputs.insert(ident.span.start.column);
            }
        }
    }

    fn is_named_argument(&self, end: usize) -> bool {
        let behind = self
            .tokens
            .iter()
            .find(|token| self.offset + token.start as usize >= end);
        let statement = &self.text[self.offset..];
        behind.is_some_and(|token| token.is(statement, "=>") || token.is(statement, ":="))
    }
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

fn first_select(body: &SetExpr) -> Option<&Select> {
    match body {
        SetExpr::Select(select) => Some(select),
        SetExpr::SetOperation { left, .. } => first_select(left),
        SetExpr::Query(query) => first_select(&query.body),
        _ => None,
    }
}

/// What a column of the result is called, where that is written.
fn output_name(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(folded(alias)),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(idents)) => idents.last().map(folded),
        _ => None,
    }
}

impl Visitor for Places<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.note_outputs(query);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(ident) => self.note(std::slice::from_ref(ident)),
            Expr::CompoundIdentifier(idents) => self.note(idents),
            // `r.a[1]`: the field of a record, and one of its elements.
            Expr::CompoundFieldAccess { root, access_chain } => {
                let Expr::Identifier(first) = &**root else {
                    return ControlFlow::Continue(());
                };
                let mut idents = vec![first.clone()];
                idents.extend(access_chain.iter().map_while(|access| match access {
                    AccessExpr::Dot(Expr::Identifier(ident)) => Some(ident.clone()),
                    _ => None,
                }));
                let noted = self.note(&idents);
                self.seen.extend(idents.iter().map(|ident| ident.span.start.column));
                noted
            }
            _ => ControlFlow::Continue(()),
        }
    }
}
