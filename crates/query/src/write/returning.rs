//! RETURNING of a gathered write: the shard that writes a row evaluates the client's own expressions, with its new
//! values; columns of the other relations come along with the row, and stand in their places.

use super::shape::Shape;
use crate::carrier::Carrier;
use crate::refusal::SYSTEM_COLUMNS;
use pgherd_model::{ServerError, quote_identifier};
use sqlparser::ast::{
    AccessExpr, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectNamePart, Query,
    SelectItem, Visit, Visitor,
};
use std::ops::{ControlFlow, Range};

/// What comes along with each row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Carried {
    /// an expression of one column
    Expression(String),
    /// all columns of one relation, or of all but the target: what stands before `*`, if anything, and their number
    All { qualifier: Option<String>, width: usize },
}

impl Carried {
    /// How many columns it has.
    pub fn width(&self) -> usize {
        match self {
            Self::Expression(_) => 1,
            Self::All { width, .. } => *width,
        }
    }
}

enum Item {
    /// all columns of the target
    Target,
    /// an entry of the carried ones
    Carried(usize),
    /// the client's text from..to, with pieces that are entries of the carried ones, or are left out
    Text(Range<usize>, Vec<(Range<usize>, Option<usize>)>),
}

/// RETURNING.
#[derive(Default)]
pub(super) struct Returning {
    items: Vec<Item>,
    pub carried: Vec<Carried>,
}

fn not_supported(what: &str) -> ServerError {
    ServerError::unsupported(
        format!("RETURNING with {what} is not supported where a statement needs rows of more than one shard"),
        "Return columns and expressions over them.",
    )
}

impl Returning {
    /// Reads the clause. Widths of `*` are left 0. `may_move`: rows may go to other shards.
    pub fn read(
        text: &str,
        shape: &Shape,
        items: &[SelectItem],
        columns: &[crate::metadata::Column],
        may_move: bool,
    ) -> Result<Self, ServerError> {
        let mut this = Self::default();
        if items.len() != shape.returning.len() {
            return Err(not_supported("this form"));
        }
        for (item, tokens) in items.iter().zip(&shape.returning) {
            let tokens = &shape.tokens[tokens.clone()];
            let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else {
                return Err(not_supported("this form"));
            };
            let words = tokens.iter().filter_map(|t| t.identifier(text));
            if let Some(word) = words.into_iter().find(|w| SYSTEM_COLUMNS.contains(&w.as_str())) {
                return Err(not_supported(&format!("system column \"{word}\"")));
            }
            match tokens {
                [star] if star.is(text, "*") => {
                    this.items.push(Item::Target);
                    if shape.from.is_some() {
                        this.carry(Carried::All {
                            qualifier: None,
                            width: 0,
                        });
                    }
                }
                [name, dot, star] if dot.is(text, ".") && star.is(text, "*") => {
                    if name.identifier(text).as_deref() == Some(&shape.alias) {
                        this.items.push(Item::Target);
                    } else {
                        this.carry(Carried::All {
                            qualifier: Some(name.text(text).to_owned()),
                            width: 0,
                        });
                    }
                }
                _ if tokens.windows(2).any(|t| t[0].is(text, ".") && t[1].is(text, "*")) => {
                    return Err(not_supported("this form"));
                }
                _ => {
                    let span = first.start as usize..last.end as usize;
                    this.expression(text, shape, (item, span), columns, may_move)?;
                }
            }
        }
        Ok(this)
    }

    fn carry(&mut self, carried: Carried) {
        self.items.push(Item::Carried(self.carried.len()));
        self.carried.push(carried);
    }

    fn expression(
        &mut self,
        text: &str,
        shape: &Shape,
        (item, span): (&SelectItem, Range<usize>),
        columns: &[crate::metadata::Column],
        may_move: bool,
    ) -> Result<(), ServerError> {
        let mut names = Names::default();
        let _ = item.visit(&mut names);
        if names.subquery {
            return Err(not_supported("a subquery"));
        }
        let mut edits = Vec::new();
        for parts in names.found {
            let folded: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
            let is_targets = match folded.as_slice() {
                [name] if columns.iter().any(|c| c.name == *name) => true,
                // A row that moves comes out of a query, which has no type of its own; and another relation may have a column of this name.
                [name] if *name == shape.alias && (may_move || shape.from.is_some()) => {
                    return Err(not_supported("a whole row"));
                }
                [name] if *name == shape.alias => true,
                [_] => shape.from.is_none(),
                [.., qualifier, _] => *qualifier == shape.alias,
                _ => return Err(not_supported("this form")),
            };
            let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
                continue;
            };
            let place = first.1.start..last.1.end;
            if is_targets {
                // A row that has moved comes out of a query, which has no schema.
                if let [schema @ .., qualifier, _] = &parts[..]
                    && let Some(first) = schema.first()
                {
                    edits.push((first.1.start..qualifier.1.start, None));
                }
                continue;
            }
            let carried = Carried::Expression(text.get(place.clone()).unwrap_or_default().to_owned());
            let known = self.carried.iter().position(|c| *c == carried);
            let index = known.unwrap_or_else(|| {
                self.carried.push(carried);
                self.carried.len() - 1
            });
            edits.push((place, Some(index)));
        }
        edits.sort_by_key(|(place, _)| place.start);
        self.items.push(Item::Text(span, edits));
        Ok(())
    }

    /// ` RETURNING …` as a shard gets it: `values` gives the carried columns' expressions.
    pub fn list_sql(
        &self,
        text: &str,
        alias: &str,
        columns: &[crate::metadata::Column],
        values: &dyn Fn(usize) -> Vec<String>,
    ) -> Option<String> {
        if self.items.is_empty() {
            return None;
        }
        let alias = quote_identifier(alias);
        let item = |item: &Item| match item {
            Item::Target => {
                let names = columns.iter().map(|c| format!("{alias}.{}", quote_identifier(&c.name)));
                names.collect::<Vec<_>>().join(", ")
            }
            Item::Carried(index) => values(*index).join(", "),
            Item::Text(span, edits) => {
                let (mut out, mut at) = (String::new(), span.start);
                for (place, index) in edits {
                    out.push_str(&text[at..place.start]);
                    out.push_str(&index.map_or(String::new(), |index| values(index).join(", ")));
                    at = place.end;
                }
                out.push_str(&text[at..span.end]);
                out
            }
        };
        let items: Vec<_> = self.items.iter().map(item).filter(|sql| !sql.is_empty()).collect();
        Some(items.join(", "))
    }
}

/// A carried column in the array that brings it.
pub(super) fn value_sql(carrier: &Carrier, number: usize) -> String {
    carrier.value_sql(&format!("pgherd_new.pgherd_v{number}"))
}

/// `NFC` and its kin in `normalize(text, NFC)`: a word of the grammar, whatever columns there are.
fn normal_form(function: &Function) -> Option<&Ident> {
    const FORMS: [&str; 4] = ["nfc", "nfd", "nfkc", "nfkd"];
    let is = |ident: &Ident, words: &[&str]| {
        ident.quote_style.is_none() && words.iter().any(|word| ident.value.eq_ignore_ascii_case(word))
    };
    let [ObjectNamePart::Identifier(name)] = function.name.0.as_slice() else {
        return None;
    };
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    match list.args.as_slice() {
        [_, FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(form)))]
            if is(name, &["normalize"]) && is(form, &FORMS) =>
        {
            Some(form)
        }
        _ => None,
    }
}

/// Column references, each as its parts with their bytes.
#[derive(Default)]
struct Names {
    found: Vec<Vec<(String, Range<usize>)>>,
    /// where names of fields and of arguments stand: `(pair).a`, `f(a => 1)`
    fields: Vec<Range<usize>>,
    subquery: bool,
}

impl Visitor for Names {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.subquery = true;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let part = |ident: &Ident| (crate::relations::fold(ident), pgherd_sql::relations::ident_span(ident));
        match expr {
            Expr::CompoundFieldAccess { access_chain, .. } => {
                let field = |access: &AccessExpr| match access {
                    AccessExpr::Dot(Expr::Identifier(ident)) => Some(part(ident).1),
                    _ => None,
                };
                self.fields.extend(access_chain.iter().filter_map(field));
            }
            Expr::Function(function) => {
                let FunctionArguments::List(list) = &function.args else {
                    return ControlFlow::Continue(());
                };
                let name = |argument: &FunctionArg| match argument {
                    FunctionArg::ExprNamed {
                        name: Expr::Identifier(ident),
                        ..
                    } => Some(part(ident).1),
                    _ => None,
                };
                self.fields.extend(list.args.iter().filter_map(name));
                self.fields.extend(normal_form(function).map(|ident| part(ident).1));
            }
            Expr::Identifier(ident) if self.fields.contains(&part(ident).1) => {}
            Expr::Identifier(ident) => self.found.push(vec![part(ident)]),
            Expr::CompoundIdentifier(idents) => self.found.push(idents.iter().map(part).collect()),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
