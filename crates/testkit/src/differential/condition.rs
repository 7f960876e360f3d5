//! Conditions: what WHERE, ON, HAVING, FILTER and CASE want.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, list, text};
use super::types::Type;

impl Grammar<'_> {
    /// Conditions joined by AND, for a whole clause; each can be left out.
    pub(super) fn conditions(&mut self, before: &'static str, scope: &Scope) -> Node {
        let count = *self.chance.pick(&[1, 1, 1, 2]);
        let items = (0..count).map(|_| self.condition(scope, 2)).collect();
        Node::List {
            before,
            items,
            between: " AND ",
            after: "",
            least: 0,
        }
    }

    /// One condition, at most `depth` deep.
    pub(super) fn condition(&mut self, scope: &Scope, depth: usize) -> Node {
        let condition = match self.chance.below(if depth == 0 { 8 } else { 16 }) {
            0..=2 => self.comparison(scope, depth),
            3 => self.null_test(scope),
            4 => self.in_list(scope),
            5 => self.between(scope),
            6 => self.test(scope, depth),
            7 => self.key_condition(scope),
            8 | 9 => self.joined(scope, depth),
            10 => all([text("NOT ("), self.condition(scope, depth - 1), text(")")]),
            11 => {
                let inner = self.condition(scope, depth - 1);
                let test = *self.chance.pick(&[" IS TRUE", " IS NOT FALSE", " IS UNKNOWN"]);
                all([text("("), inner, text(")"), text(test)])
            }
            12 | 13 if self.may_nest() => self.exists(scope),
            14 if self.may_nest() => self.in_subquery(scope),
            15 if self.may_nest() => self.compared_subquery(scope),
            _ => self.comparison(scope, depth),
        };
        condition.typed(Type::Bool)
    }

    fn joined(&mut self, scope: &Scope, depth: usize) -> Node {
        let count = self.chance.between(2, 3);
        let items = (0..count).map(|_| self.condition(scope, depth - 1)).collect();
        Node::List {
            before: "(",
            items,
            between: self.chance.pick::<&str>(&[" OR ", " OR ", " AND "]),
            after: ")",
            least: 1,
        }
    }

    fn comparison(&mut self, scope: &Scope, depth: usize) -> Node {
        let (of, left) = self.ordered_column(scope);
        let left = if depth > 0 && self.chance.one_in(3) {
            self.expression(of, scope, depth)
        } else {
            left
        };
        let operators = [
            "=",
            "=",
            "<>",
            "<",
            "<=",
            ">",
            ">=",
            "IS DISTINCT FROM",
            "IS NOT DISTINCT FROM",
        ];
        let operator = format!(" {} ", self.chance.pick(&operators));
        let right = match self.chance.below(3) {
            0 => self.expression(of, scope, depth),
            _ => self.bare_constant(of),
        };
        match self.chance.one_in(8) {
            true => all([right, text(operator), left]),
            false => all([left, text(operator), right]),
        }
    }

    /// On the columns that tables are sharded by, as a client asks for rows.
    fn key_condition(&mut self, scope: &Scope) -> Node {
        let is_key = |node: &Node| matches!(node, Node::Text(words) if words.ends_with("k0"));
        let keys: Vec<_> = scope.columns.iter().filter(|(_, node)| is_key(node)).cloned().collect();
        if keys.is_empty() {
            return self.comparison(scope, 0);
        }
        let (of, key) = self.chance.pick(&keys).clone();
        let key = key.typed(of);
        match self.chance.below(4) {
            0 | 1 => all([key, text(" = "), self.bare_constant(of)]),
            2 => {
                let items = (0..self.chance.between(1, 3)).map(|_| self.bare_constant(of)).collect();
                all([key, list(" IN (", items, ")")])
            }
            _ => {
                let operator = *self.chance.pick(&[" < ", " >= ", " > "]);
                all([key, text(operator), self.bare_constant(of)])
            }
        }
    }

    fn null_test(&mut self, scope: &Scope) -> Node {
        let (_, value) = self.any_column(scope);
        let test = *self
            .chance
            .pick(&[" IS NULL", " IS NOT NULL", " IS NOT NULL", " ISNULL", " NOTNULL"]);
        all([value, text(test)])
    }

    fn in_list(&mut self, scope: &Scope) -> Node {
        let (of, value) = self.ordered_column(scope);
        let items = (0..self.chance.between(1, 4))
            .map(|_| match self.chance.one_in(5) {
                true => self.leaf(of, scope),
                false => self.bare_constant(of),
            })
            .collect();
        let not = *self.chance.pick(&["", "", " NOT"]);
        all([value, text(not), list(" IN (", items, ")")])
    }

    fn between(&mut self, scope: &Scope) -> Node {
        let (of, value) = self.ordered_column(scope);
        let (low, high) = (self.bare_constant(of), self.bare_constant(of));
        let mut how = *self.chance.pick(&[" BETWEEN ", " BETWEEN ", " NOT BETWEEN "]);
        if self.chance.one_in(30) {
            how = " BETWEEN SYMMETRIC ";
        }
        all([value, text(how), low, text(" AND "), high])
    }

    fn exists(&mut self, scope: &Scope) -> Node {
        let not = *self.chance.pick(&["", "", "NOT "]);
        let source = self.correlated_source(scope);
        all([
            text(not),
            text("EXISTS (SELECT "),
            text(*self.chance.pick(&["1", "*", ""])),
            source,
            text(")"),
        ])
    }

    fn in_subquery(&mut self, scope: &Scope) -> Node {
        let (of, value) = self.ordered_column(scope);
        let not = *self.chance.pick(&["", "", "NOT "]);
        let query = self.column_query(of, scope);
        all([value, text(format!(" {not}IN (")), query, text(")")])
    }

    fn compared_subquery(&mut self, scope: &Scope) -> Node {
        let (of, value) = self.ordered_column(scope);
        let operator = *self.chance.pick(&[" = ANY (", " > ALL (", " <> ALL (", " <= SOME ("]);
        let query = self.column_query(of, scope);
        all([value, text(operator), query, text(")")])
    }
}
