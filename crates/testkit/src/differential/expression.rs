//! Expressions of a given type over the columns in sight.

use super::Grammar;
use super::aggregates::AGGREGATES;
use super::functions::{PARTIAL, TESTS, TOTAL, Template};
use super::node::{Node, all, list, text};
use super::types::Type;
use std::rc::Rc;

/// What an expression may use.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    /// Columns, or what the groups of a grouped query are made of.
    pub(super) columns: Vec<(Type, Node)>,
    /// In a grouped query, what aggregates take.
    pub(super) grouped: Option<Rc<Scope>>,
}

/// NULL of a type.
pub(super) fn null(of: Type) -> Node {
    Node::Constant {
        of,
        value: None,
        bare: false,
    }
    .typed(of)
}

impl Grammar<'_> {
    /// An expression that never fails, at most `depth` functions deep.
    pub(super) fn expression(&mut self, of: Type, scope: &Scope, depth: usize) -> Node {
        if of == Type::Bool && depth > 0 && !self.chance.one_in(4) {
            return all([text("("), self.condition(scope, depth - 1), text(")")]).typed(of);
        }
        if depth == 0 || self.chance.one_in(3) {
            return self.leaf(of, scope);
        }
        match self.chance.below(10) {
            0..=5 => self.by_template(TOTAL, of, scope, depth),
            6 => self.choice(of, scope, depth),
            7 if depth > 1 && self.may_nest() => self.scalar_subquery(of, scope),
            _ => self.leaf(of, scope),
        }
    }

    /// One that fails on some values; only where PostgreSQL has to evaluate it for every row.
    pub(super) fn partial_expression(&mut self, scope: &Scope) -> (Type, Node) {
        let template = self.chance.pick(PARTIAL);
        (template.2, self.filled(template, scope, 1))
    }

    /// A column, an aggregate where there are groups, or a constant.
    pub(super) fn leaf(&mut self, of: Type, scope: &Scope) -> Node {
        if let Some(input) = scope.grouped.clone()
            && self.chance.one_in(2)
            && let Some(aggregate) = self.aggregate(of, &input)
        {
            return aggregate;
        }
        let columns: Vec<_> = scope.columns.iter().filter(|(has, _)| *has == of).collect();
        if !columns.is_empty() && !self.chance.one_in(6) {
            return self.chance.pick(&columns).1.clone().typed(of);
        }
        self.constant(of)
    }

    /// A column of any type, or a constant when there is none.
    pub(super) fn any_column(&mut self, scope: &Scope) -> (Type, Node) {
        if scope.columns.is_empty() {
            return (Type::Int4, self.constant(Type::Int4));
        }
        let (of, node) = self.chance.pick(&scope.columns).clone();
        (of, node.typed(of))
    }

    /// A column whose type can be compared.
    pub(super) fn ordered_column(&mut self, scope: &Scope) -> (Type, Node) {
        let ordered: Vec<_> = scope.columns.iter().filter(|(of, _)| of.is_ordered()).collect();
        if ordered.is_empty() {
            return (Type::Int4, self.constant(Type::Int4));
        }
        let (of, node) = (*self.chance.pick(&ordered)).clone();
        (of, node.typed(of))
    }

    pub(super) fn constant(&mut self, of: Type) -> Node {
        self.constant_as(of, false)
    }

    /// A constant beside something whose type decides about it.
    pub(super) fn bare_constant(&mut self, of: Type) -> Node {
        let bare = !matches!(of, Type::Bpchar | Type::Citext);
        self.constant_as(of, bare)
    }

    fn constant_as(&mut self, of: Type, bare: bool) -> Node {
        let value = (!self.chance.one_in(12)).then(|| (*self.chance.pick(of.values())).to_owned());
        Node::Constant { of, value, bare }.typed(of)
    }

    fn by_template(&mut self, templates: &'static [Template], of: Type, scope: &Scope, depth: usize) -> Node {
        let fitting: Vec<_> = templates.iter().filter(|template| template.2 == of).collect();
        if fitting.is_empty() {
            return self.leaf(of, scope);
        }
        let template = *self.chance.pick(&fitting);
        self.filled(template, scope, depth)
    }

    /// One of the tests that only some types have.
    pub(super) fn test(&mut self, scope: &Scope, depth: usize) -> Node {
        let template = self.chance.pick(TESTS);
        self.filled(template, scope, depth)
    }

    fn filled(&mut self, (words, arguments, result): &Template, scope: &Scope, depth: usize) -> Node {
        let arguments: Vec<_> = arguments
            .iter()
            .map(|of| self.expression(*of, scope, depth.saturating_sub(1)))
            .collect();
        places(words, &arguments).typed(*result)
    }

    /// COALESCE, CASE and their kin, for any type.
    fn choice(&mut self, of: Type, scope: &Scope, depth: usize) -> Node {
        let (a, b) = (
            self.expression(of, scope, depth - 1),
            self.expression(of, scope, depth - 1),
        );
        let chosen = match self.chance.below(5) {
            0 => list("coalesce(", vec![a, b], ")"),
            1 if of.is_ordered() => all([text("nullif("), a, text(", "), b, text(")")]),
            2 if of.is_ordered() => {
                self.note_ambiguous(of);
                let name = *self.chance.pick(&["greatest(", "least("]);
                list(name, vec![a, b, self.leaf(of, scope)], ")")
            }
            3 => {
                let (by, value) = self.ordered_column(scope);
                let when = self.constant(by);
                all([
                    text("CASE "),
                    value,
                    text(" WHEN "),
                    when,
                    text(" THEN "),
                    a,
                    text(" ELSE "),
                    b,
                    text(" END"),
                ])
            }
            _ => {
                let condition = self.condition(scope, depth - 1);
                let otherwise = all([text(" ELSE "), b]).optional();
                all([
                    text("CASE WHEN "),
                    condition,
                    text(" THEN "),
                    a,
                    otherwise,
                    text(" END"),
                ])
            }
        };
        chosen.typed(of)
    }

    /// An aggregate of that type, where there is one.
    pub(super) fn aggregate(&mut self, of: Type, input: &Scope) -> Option<Node> {
        let depth = self.chance.below(2);
        let fitting: Vec<_> = AGGREGATES.iter().filter(|aggregate| aggregate.result == of).collect();
        let kinds = fitting.len() + usize::from(of.has_extremes()) * 2 + usize::from(of == Type::Int8) * 3;
        if kinds == 0 {
            return None;
        }
        let call = match self.chance.below(kinds) {
            n if n < fitting.len() => {
                let aggregate = fitting[n];
                self.inexact |= aggregate.inexact;
                aggregate
                    .arguments
                    .iter()
                    .for_each(|argument| self.note_ambiguous(*argument));
                let arguments: Vec<_> = aggregate
                    .arguments
                    .iter()
                    .map(|of| self.expression(*of, input, depth))
                    .collect();
                places(aggregate.text, &arguments)
            }
            _ if of.has_extremes() && self.chance.one_in(2) || of != Type::Int8 => {
                self.note_ambiguous(of);
                let name = *self.chance.pick(&["min(", "max("]);
                all([text(name), self.expression(of, input, depth), text(")")])
            }
            _ => {
                let (_, counted) = self.ordered_column(input);
                let distinct = *self.chance.pick(&["count(", "count(DISTINCT "]);
                all([text(distinct), counted, text(")")])
            }
        };
        let filter = if self.chance.one_in(5) {
            let condition = self.condition(input, 1);
            all([text(" FILTER (WHERE "), condition, text(")")]).optional()
        } else {
            all([])
        };
        Some(all([call, filter]).typed(of))
    }

    /// Remembers that PostgreSQL is free to show another one of several equal values.
    pub(super) fn note_ambiguous(&mut self, of: Type) {
        self.ambiguous |= of.is_ambiguous();
    }
}

/// Text with `{0}`, `{1}` … replaced.
pub(super) fn places(words: &str, arguments: &[Node]) -> Node {
    let mut pieces = Vec::new();
    let mut rest = words;
    while let Some((before, after)) = rest.split_once('{') {
        let is_place =
            after.as_bytes().first().is_some_and(u8::is_ascii_digit) && after.as_bytes().get(1) == Some(&b'}');
        if is_place {
            pieces.push(text(before));
            pieces.push(arguments[usize::from(after.as_bytes()[0] - b'0')].clone());
            rest = &after[2..];
        } else {
            pieces.push(text(format!("{before}{{")));
            rest = after;
        }
    }
    pieces.push(text(rest));
    all(pieces)
}
