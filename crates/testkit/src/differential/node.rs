//! A generated statement as a tree that knows what can be left out of it, so that a difference can be made small.
//!
//! The tree knows nothing of SQL but that: whether what is left is still a statement, PostgreSQL says.

use super::types::Type;
use std::collections::HashMap;

/// A piece of a statement.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// Words as they are.
    Text(String),
    /// One piece after the other.
    All(Vec<Node>),
    /// A clause that can be left out.
    Optional(Box<Node>),
    /// Items of which some can be left out; without any, what stands before and after goes as well.
    List {
        before: &'static str,
        items: Vec<Node>,
        between: &'static str,
        after: &'static str,
        /// how many must stay
        least: usize,
    },
    /// An expression; anything of the same type can stand for it.
    Typed(Type, Box<Node>),
    /// A value, `None` for NULL, which may travel as a parameter. A bare one leaves its type to PostgreSQL.
    Constant {
        of: Type,
        value: Option<String>,
        bare: bool,
    },
    /// The position of an output column in the outermost ORDER BY, by which rows can then be compared in order.
    Ordinal(usize),
    /// The outermost ORDER BY leaves no choice: rows are compared in order.
    TotalOrder,
    /// What COPY FROM STDIN is given.
    Data(String),
    /// The rows are a plan: each side has its own.
    Plan,
}

/// A statement's text, and what is to be known about it.
#[derive(Debug, Clone, Default)]
pub(super) struct Rendered {
    pub(super) sql: String,
    /// In text format; empty when constants stand in the text.
    pub(super) parameters: Vec<Option<String>>,
    /// Output columns (from 1) that the rows are ordered by, first things first.
    pub(super) ordered: Vec<usize>,
    pub(super) total_order: bool,
    /// Only whether there is an answer counts, not what its rows are.
    pub(super) is_plan: bool,
    /// What COPY FROM STDIN is given.
    pub(super) data: Option<String>,
}

impl Rendered {
    /// As psql takes it: with a semicolon, and the data of COPY behind it.
    pub(super) fn for_psql(&self) -> String {
        match &self.data {
            Some(lines) => format!("{};\n{lines}\\.\n", self.sql),
            None => format!("{};\n", self.sql),
        }
    }
}

/// `Text`, from anything like it.
pub(super) fn text(words: impl Into<String>) -> Node {
    Node::Text(words.into())
}

/// Pieces in order.
pub(super) fn all(pieces: impl Into<Vec<Node>>) -> Node {
    Node::All(pieces.into())
}

/// `before item, item …` with at least one item.
pub(super) fn list(before: &'static str, items: Vec<Node>, after: &'static str) -> Node {
    Node::List {
        before,
        items,
        between: ", ",
        after,
        least: 1,
    }
}

impl Node {
    pub(super) fn typed(self, of: Type) -> Node {
        Node::Typed(of, Box::new(self))
    }

    /// This, and then that.
    pub(super) fn then(self, next: Node) -> Node {
        Node::All(vec![self, next])
    }

    pub(super) fn optional(self) -> Node {
        Node::Optional(Box::new(self))
    }

    /// The text with its constants in it, or with parameters in their place.
    pub(super) fn render(&self, with_parameters: bool) -> Rendered {
        let mut rendered = Rendered::default();
        let mut numbers = with_parameters.then(HashMap::new);
        self.write(&mut rendered, &mut numbers);
        rendered
    }

    fn write(&self, out: &mut Rendered, numbers: &mut Option<HashMap<(Type, Option<String>), usize>>) {
        match self {
            Node::Text(words) => out.sql.push_str(words),
            Node::All(nodes) => nodes.iter().for_each(|node| node.write(out, numbers)),
            Node::Optional(node) | Node::Typed(_, node) => node.write(out, numbers),
            Node::List {
                before,
                items,
                between,
                after,
                ..
            } => {
                for (i, item) in items.iter().enumerate() {
                    out.sql.push_str(if i == 0 { before } else { between });
                    item.write(out, numbers);
                }
                if !items.is_empty() {
                    out.sql.push_str(after);
                }
            }
            Node::Constant { of, value, bare } => match numbers {
                Some(numbers) => {
                    let next = numbers.len() + 1;
                    let number = *numbers.entry((*of, value.clone())).or_insert(next);
                    if number == next {
                        out.parameters.push(value.clone());
                    }
                    // Where a text stands twice, once bare, its type is still that of the cast.
                    out.sql.push_str(&format!("${number}"));
                    if !bare {
                        out.sql.push_str(&format!("::{}", of.sql()));
                    }
                }
                None => out.sql.push_str(&literal(*of, value.as_deref(), *bare)),
            },
            Node::Ordinal(position) => {
                out.ordered.push(*position);
                out.sql.push_str(&position.to_string());
            }
            Node::TotalOrder => out.total_order = true,
            Node::Plan => out.is_plan = true,
            Node::Data(lines) => out.data = Some(lines.clone()),
        }
    }

    /// The same with one thing less; `site` counts the places where that can be, and there are no more when it is None.
    pub(super) fn smaller(&self, site: usize) -> Option<Node> {
        let mut left = site;
        self.edited(&mut left)
    }

    fn edited(&self, left: &mut usize) -> Option<Node> {
        let here = |left: &mut usize| {
            let found = *left == 0;
            *left = left.wrapping_sub(1);
            found
        };
        match self {
            Node::Text(_)
            | Node::Constant { .. }
            | Node::Ordinal(_)
            | Node::TotalOrder
            | Node::Data(_)
            | Node::Plan => None,
            Node::Optional(node) => {
                if here(left) {
                    return Some(Node::All(Vec::new()));
                }
                node.edited(left).map(Node::optional)
            }
            Node::All(nodes) => edited_one(nodes, left).map(Node::All),
            Node::List {
                before,
                items,
                between,
                after,
                least,
            } => {
                let with = |items| Node::List {
                    before,
                    items,
                    between,
                    after,
                    least: *least,
                };
                if items.len() > *least {
                    for i in 0..items.len() {
                        if here(left) {
                            let mut items = items.clone();
                            items.remove(i);
                            return Some(with(items));
                        }
                    }
                }
                edited_one(items, left).map(with)
            }
            Node::Typed(of, node) => {
                for inner in node.of_type(*of) {
                    if here(left) {
                        return Some(inner);
                    }
                }
                if !matches!(**node, Node::Constant { .. }) && here(left) {
                    return Some(super::expression::null(*of));
                }
                node.edited(left).map(|node| node.typed(*of))
            }
        }
    }

    /// Expressions of that type inside, the outermost ones.
    fn of_type(&self, wanted: Type) -> Vec<Node> {
        match self {
            Node::Typed(of, _) if *of == wanted => vec![self.clone()],
            Node::Typed(_, node) | Node::Optional(node) => node.of_type(wanted),
            Node::All(nodes) | Node::List { items: nodes, .. } => {
                nodes.iter().flat_map(|node| node.of_type(wanted)).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn edited_one(nodes: &[Node], left: &mut usize) -> Option<Vec<Node>> {
    for (i, node) in nodes.iter().enumerate() {
        if let Some(smaller) = node.edited(left) {
            let mut nodes = nodes.to_vec();
            nodes[i] = smaller;
            return Some(nodes);
        }
        // Below zero: the edit was tried and is somewhere else.
        if *left == usize::MAX {
            return None;
        }
    }
    None
}

/// A value as SQL writes it.
pub(super) fn literal(of: Type, value: Option<&str>, bare: bool) -> String {
    match value {
        None if bare => "NULL".to_owned(),
        None => format!("NULL::{}", of.sql()),
        Some(value) if bare && of.is_plain_number() => value.to_owned(),
        Some(value) if bare => quoted(value),
        Some(value) => format!("{}::{}", quoted(value), of.sql()),
    }
}

/// A string constant.
pub(super) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> Node {
        let of = Type::Int4;
        let value = Node::Constant {
            of,
            value: Some("5".into()),
            bare: false,
        };
        let sum = all([
            text("("),
            text("a").typed(of),
            text(" + "),
            value.clone().typed(of),
            text(")"),
        ])
        .typed(of);
        all([
            list("SELECT ", vec![sum, value.typed(of)], " FROM t"),
            text(" WHERE b").optional(),
        ])
    }

    #[test]
    fn constants_become_parameters_once() {
        let plain = statement().render(false);
        assert_eq!(plain.sql, "SELECT (a + '5'::int4), '5'::int4 FROM t WHERE b");
        let rendered = statement().render(true);
        assert_eq!(rendered.sql, "SELECT (a + $1::int4), $1::int4 FROM t WHERE b");
        assert_eq!(rendered.parameters, [Some("5".to_owned())]);
    }

    #[test]
    fn every_smaller_statement_is_tried_once() {
        let smaller: Vec<_> = (0..)
            .map_while(|site| statement().smaller(site))
            .map(|node| node.render(false).sql)
            .collect();
        assert_eq!(
            smaller,
            [
                "SELECT '5'::int4 FROM t WHERE b",
                "SELECT (a + '5'::int4) FROM t WHERE b",
                "SELECT a, '5'::int4 FROM t WHERE b",
                "SELECT '5'::int4, '5'::int4 FROM t WHERE b",
                "SELECT NULL::int4, '5'::int4 FROM t WHERE b",
                "SELECT (NULL::int4 + '5'::int4), '5'::int4 FROM t WHERE b",
                "SELECT (a + '5'::int4), '5'::int4 FROM t",
            ]
        );
    }
}
