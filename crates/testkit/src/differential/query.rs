//! SELECT: its clauses put together so that the result is fixed by the standard's words, or by PostgreSQL's.

use super::Grammar;
use super::aggregates::{NUMBER_FRAMES, Needs, PEER_FRAMES, ROW_FRAMES, TIME_FRAMES, WINDOW_FUNCTIONS};
use super::expression::{Scope, places};
use super::node::{Node, all, list, text};
use super::source::{From, Source, grouped, numbered};
use super::types::Type;

/// A query without its ORDER BY.
pub(super) struct Query {
    pub(super) node: Node,
    pub(super) columns: Vec<Type>,
}

/// One SELECT, in parts.
struct Select {
    node: Node,
    columns: Vec<Type>,
    /// What orders its rows without a choice, where ORDER BY may name it.
    unique: Option<Vec<Node>>,
    scope: Scope,
}

impl Grammar<'_> {
    /// A query for a place where the order does not matter. Without `wanted`, the types are whatever comes.
    pub(super) fn query(&mut self, outer: &Scope, depth: usize, wanted: Option<&[Type]>) -> Query {
        self.nesting += 1;
        let select = self.select(outer, depth, wanted);
        let mut node = select.node;
        if self.chance.one_in(8) {
            node = self.set_operation(node, &select.columns, outer, depth);
        } else if self.chance.one_in(6) {
            let order = self.order(&select.columns, select.unique, None);
            node = all([node, order]);
        }
        self.nesting -= 1;
        Query {
            node,
            columns: select.columns,
        }
    }

    /// The outermost query.
    pub(super) fn statement(&mut self) -> Node {
        let with = if self.chance.one_in(5) { self.with() } else { all([]) };
        let outer = Scope::default();
        let select = self.select(&outer, 2, None);
        if self.chance.one_in(8) {
            let node = self.set_operation(select.node, &select.columns, &outer, 1);
            let order = if self.chance.one_in(2) {
                self.order(&select.columns, None, Some(&Scope::default()))
            } else {
                all([])
            };
            return all([with, node, order]);
        }
        let order = match self.chance.one_in(3) {
            true => all([]),
            false => self.order(&select.columns, select.unique, Some(&select.scope)),
        };
        all([with, select.node, order])
    }

    /// A query whose expressions can fail, and have to be evaluated for every row of one table.
    pub(super) fn failing_statement(&mut self) -> Node {
        let (table, source) = self.table_source();
        let scope = super::source::scope(&Scope::default(), std::slice::from_ref(&source));
        let (_, value) = self.partial_expression(&scope);
        let beside = self.leaf(Type::Int4, &scope);
        match self.chance.below(4) {
            0 => all([
                text("SELECT 1 FROM "),
                table,
                text(" WHERE "),
                value,
                text(" IS NOT NULL"),
            ]),
            1 => all([text("SELECT count(*), max("), value, text("::text) FROM "), table]),
            _ => all([text("SELECT "), beside, text(", "), value, text(" FROM "), table]),
        }
    }

    /// A query that is wrong in its names or types.
    pub(super) fn wrong_statement(&mut self) -> Node {
        let from = self.from(&Scope::default(), 0);
        let alias = from.sources[0].alias.clone();
        let words = match self.chance.below(8) {
            0 => format!("SELECT {alias}.nosuch"),
            1 => "SELECT nosuch(1)".to_owned(),
            2 => format!("SELECT count(*), {alias}.{}", from.sources[0].columns[0].0),
            3 => "SELECT 1 + 'x'".to_owned(),
            4 => "SELECT missing.a".to_owned(),
            5 => format!("SELECT sum({alias})"),
            6 => "SELECT DISTINCT ON (2) 1".to_owned(),
            _ => format!(
                "SELECT {alias}.* , {alias}.{}::nosuchtype",
                from.sources[0].columns[0].0
            ),
        };
        all([text(words), from.node])
    }

    fn select(&mut self, outer: &Scope, depth: usize, wanted: Option<&[Type]>) -> Select {
        let from = self.from(outer, depth);
        let filter = if self.chance.one_in(2) {
            all([])
        } else {
            self.conditions(" WHERE ", &from.scope)
        };
        match self.chance.below(10) {
            0..=2 => self.grouped(from, filter, wanted),
            3 => self.distinct(from, filter, wanted),
            _ => self.plain(from, filter, wanted),
        }
    }

    fn plain(&mut self, from: From, filter: Node, wanted: Option<&[Type]>) -> Select {
        let mut named_window = all([]);
        let unique = from.unique();
        let columns = self.types(wanted, &from.scope);
        let mut items = Vec::new();
        let mut types = Vec::new();
        for of in columns {
            if wanted.is_none() && self.chance.one_in(12) {
                let (of, node, window) = self.window(&from.scope, unique.as_deref());
                if let Some(window) = window {
                    named_window = window;
                    items.push(node);
                    types.push(of);
                    // One name for one window.
                    continue;
                }
                items.push(node);
                types.push(of);
                continue;
            }
            items.push(self.expression(of, &from.scope, 2));
            types.push(of);
        }
        let returns_sets = wanted.is_none() && self.chance.one_in(20);
        if returns_sets {
            let (of, set) = self.set_of_values(&from.scope);
            items.push(set);
            types.push(of);
        }
        let select = list("SELECT ", as_numbered(items), "");
        Select {
            node: all([select, from.node, filter, named_window]),
            columns: types,
            // One of the keys stands in several rows then.
            unique: unique.filter(|_| !returns_sets),
            scope: from.scope,
        }
    }

    fn distinct(&mut self, from: From, filter: Node, wanted: Option<&[Type]>) -> Select {
        let mut types = self.types(wanted, &from.scope);
        if wanted.is_none() {
            types.retain(|of| of.is_ordered());
            types.truncate(3);
        }
        if types.is_empty() || !types.iter().all(|of| of.is_ordered()) {
            return self.plain(from, filter, wanted);
        }
        types.iter().for_each(|of| self.note_ambiguous(*of));
        let items: Vec<_> = types.iter().map(|of| self.expression(*of, &from.scope, 1)).collect();
        let unique = from.unique();
        if let Some(unique) = unique
            && self.chance.one_in(2)
        {
            let (of, on) = self.ordered_column(&from.scope);
            self.note_ambiguous(of);
            let order = [vec![on.clone()], unique].concat();
            let select = all([text("SELECT DISTINCT ON ("), on, list(") ", as_numbered(items), "")]);
            // Its own ORDER BY is part of it; another one goes outside.
            let alias = self.alias('d');
            let order = list(" ORDER BY ", order, ") AS ");
            return Select {
                node: all([text("SELECT * FROM ("), select, from.node, filter, order, text(alias)]),
                columns: types,
                unique: None,
                scope: Scope::default(),
            };
        }
        Select {
            node: all([list("SELECT DISTINCT ", as_numbered(items), ""), from.node, filter]),
            columns: types,
            unique: None,
            scope: Scope::default(),
        }
    }

    fn grouped(&mut self, from: From, filter: Node, wanted: Option<&[Type]>) -> Select {
        let mut keys = Vec::new();
        for _ in 0..*self.chance.pick(&[0, 1, 1, 1, 2, 2, 3]) {
            let mut key = self.ordered_column(&from.scope);
            if self.chance.one_in(4) {
                key.1 = self.expression(key.0, &from.scope, 1);
            }
            let is_constant = matches!(&key.1, Node::Typed(_, inner) if matches!(**inner, Node::Constant { .. }));
            if !is_constant {
                self.note_ambiguous(key.0);
                keys.push(key);
            }
        }
        let nodes: Vec<_> = keys.iter().map(|(_, node)| node.clone()).collect();
        let sets = nodes.len() > 1 && self.chance.one_in(3) || !nodes.is_empty() && self.chance.one_in(12);
        let group = match (nodes.is_empty(), sets) {
            (true, _) => all([]),
            (false, false) => list(" GROUP BY ", nodes.clone(), ""),
            (false, true) if nodes.len() > 1 && self.chance.one_in(3) => {
                let distinct = *self.chance.pick(&["", "DISTINCT "]);
                let sets = *self.chance.pick(&[", ROLLUP (", ", CUBE ("]);
                let rest = nodes[1..].iter().map(|node| all([node.clone()])).collect();
                let first = all([text(format!(" GROUP BY {distinct}")), nodes[0].clone()]);
                let second = Node::List {
                    before: sets,
                    items: rest,
                    between: ", ",
                    after: ")",
                    least: 1,
                };
                all([first, second])
            }
            (false, true) => match self.chance.below(3) {
                0 => list(" GROUP BY ROLLUP (", nodes.clone(), ")"),
                1 => list(" GROUP BY CUBE (", nodes.clone(), ")"),
                _ => {
                    let mut sets: Vec<_> = nodes.iter().map(|node| list("(", vec![node.clone()], ")")).collect();
                    sets.push(text("()"));
                    list(" GROUP BY GROUPING SETS (", sets, ")")
                }
            },
        };
        let scope = grouped(keys.clone(), from.scope);
        let mut types = self.types(wanted, &scope);
        let mut items: Vec<_> = types.iter().map(|of| self.expression(*of, &scope, 1)).collect();
        if wanted.is_none() {
            for _ in 0..self.chance.between(1, 3) {
                let of = *self.chance.pick(&[
                    Type::Int8,
                    Type::Int8,
                    Type::Numeric,
                    Type::Text,
                    Type::Date,
                    Type::Int4,
                    Type::Bool,
                    Type::Float8,
                ]);
                let input = scope.grouped.clone().unwrap_or_default();
                if let Some(aggregate) = self.aggregate(of, &input) {
                    items.push(aggregate);
                    types.push(of);
                }
            }
            if sets {
                items.push(list("grouping(", nodes, ")").typed(Type::Int4));
                types.push(Type::Int4);
            }
        }
        let having = if self.chance.one_in(4) {
            list(" HAVING ", vec![self.condition(&scope, 1)], "").optional()
        } else {
            all([])
        };
        Select {
            node: all([
                list("SELECT ", as_numbered(items), ""),
                from.node,
                filter,
                group,
                having,
            ]),
            columns: types,
            unique: None,
            scope: Scope::default(),
        }
    }

    /// Types of a few output columns: those of columns in sight, or any.
    pub(super) fn types(&mut self, wanted: Option<&[Type]>, scope: &Scope) -> Vec<Type> {
        if let Some(wanted) = wanted {
            return wanted.to_vec();
        }
        (0..self.chance.between(1, 4))
            .map(|_| match self.chance.one_in(4) {
                true => *self.chance.pick(&[
                    Type::Int4,
                    Type::Text,
                    Type::Numeric,
                    Type::Bool,
                    Type::Timestamptz,
                    Type::Jsonb,
                ]),
                false => self.any_column(scope).0,
            })
            .collect()
    }

    /// A window function's call, and the WINDOW clause that it names, if it does.
    fn window(&mut self, scope: &Scope, unique: Option<&[Node]>) -> (Type, Node, Option<Node>) {
        let usable: Vec<_> = WINDOW_FUNCTIONS
            .iter()
            .filter(|(_, _, _, needs)| *needs == Needs::Peers || unique.is_some())
            .collect();
        let (words, arguments, of, needs) = **self.chance.pick(&usable);
        let arguments: Vec<_> = arguments.iter().map(|of| self.leaf(*of, scope)).collect();
        let call = places(words, &arguments);
        let (mut frames, mut order) = match (needs, unique) {
            (Needs::TotalOrder, Some(unique)) => (ROW_FRAMES, unique.to_vec()),
            _ => (PEER_FRAMES, Vec::new()),
        };
        if order.is_empty() || self.chance.one_in(2) {
            let (by_type, by) = self.ordered_column(scope);
            let direction = *self.chance.pick(&["", " DESC", " NULLS FIRST"]);
            if order.is_empty() && self.chance.one_in(2) {
                frames = match by_type {
                    Type::Int4 | Type::Int8 | Type::Numeric => NUMBER_FRAMES,
                    Type::Date | Type::Timestamp | Type::Timestamptz => TIME_FRAMES,
                    _ => frames,
                };
            }
            order.insert(0, all([by, text(direction)]));
        }
        let partition = if self.chance.one_in(2) {
            let (_, by) = self.ordered_column(scope);
            list("PARTITION BY ", vec![by], " ").optional()
        } else {
            all([])
        };
        let frame = text(*self.chance.pick(frames)).optional();
        let least = order.len();
        let order = Node::List {
            before: "ORDER BY ",
            items: order,
            between: ", ",
            after: "",
            least,
        };
        let window = all([text("("), partition, order, frame, text(")")]);
        if self.windows == 0 && self.chance.one_in(4) {
            self.windows += 1;
            return (
                of,
                all([call, text(" OVER w")]).typed(of),
                Some(all([text(" WINDOW w AS "), window])),
            );
        }
        (of, all([call, text(" OVER "), window]).typed(of), None)
    }

    fn set_operation(&mut self, first: Node, types: &[Type], outer: &Scope, depth: usize) -> Node {
        let comparable = types.iter().all(|of| of.is_ordered());
        let operators: &[&str] = match comparable {
            true => &[" UNION ", " UNION ALL ", " INTERSECT ", " EXCEPT ", " EXCEPT ALL "],
            false => &[" UNION ALL "],
        };
        let operator = *self.chance.pick(operators);
        types.iter().for_each(|of| self.note_ambiguous(*of));
        self.nesting += 1;
        let second = self.select(outer, depth.min(1), Some(types));
        self.nesting -= 1;
        all([
            text("("),
            first,
            text(")"),
            text(operator),
            text("("),
            second.node,
            text(")"),
        ])
    }

    /// ORDER BY, and LIMIT where the order leaves no choice. `top` is what the outermost ORDER BY may name.
    fn order(&mut self, types: &[Type], unique: Option<Vec<Node>>, top: Option<&Scope>) -> Node {
        if let Some(unique) = unique
            && self.chance.one_in(2)
        {
            return self.total_order(unique, top);
        }
        let mut positions: Vec<_> = (1..=types.len()).filter(|i| types[i - 1].is_ordered()).collect();
        if positions.is_empty() {
            return all([]);
        }
        let first = self.chance.below(positions.len());
        positions.rotate_left(first);
        let is_total = positions.len() == types.len();
        if !is_total || self.chance.one_in(2) {
            positions.truncate(self.chance.between(1, positions.len()));
        }
        let (is_total, least) = (positions.len() == types.len(), positions.len());
        let items = positions
            .iter()
            .map(|position| {
                let key = if top.is_some() {
                    Node::Ordinal(*position)
                } else {
                    text(position.to_string())
                };
                all([key, text(self.direction())])
            })
            .collect();
        let limit = if is_total || self.chance.one_in(4) {
            self.limit(is_total)
        } else {
            all([])
        };
        if is_total {
            types.iter().for_each(|of| self.note_ambiguous(*of));
        }
        let order = order_by(items, least);
        all([order, limit.optional()]).optional()
    }

    fn total_order(&mut self, unique: Vec<Node>, top: Option<&Scope>) -> Node {
        let mut items: Vec<_> = unique
            .into_iter()
            .map(|key| all([key, text(self.direction())]))
            .collect();
        if let Some(scope) = top
            && self.chance.one_in(2)
        {
            let (of, _) = self.ordered_column(scope);
            let by = self.expression(of, scope, 1);
            // A constant would be taken for a position.
            if !matches!(&by, Node::Typed(_, inner) if matches!(**inner, Node::Constant { .. })) {
                items.insert(0, all([by, text(self.direction())]));
            }
        }
        let least = items.len();
        let order = order_by(items, least);
        let mark = if top.is_some() { Node::TotalOrder } else { all([]) };
        let limit = if self.chance.one_in(2) {
            self.limit(true).optional()
        } else {
            all([])
        };
        all([order, mark, limit]).optional()
    }

    fn direction(&mut self) -> &'static str {
        self.chance
            .pick::<&str>(&["", "", "", " DESC", " NULLS FIRST", " DESC NULLS LAST"])
    }

    fn limit(&mut self, is_total: bool) -> Node {
        let count = self.chance.pick(&["0", "1", "3", "7", "20"]).to_string();
        if !is_total {
            // Whoever is equal to the last row comes along, so that there is no choice either.
            return text(format!(" FETCH FIRST {count} ROWS WITH TIES"));
        }
        let skip = self.chance.pick(&["0", "1", "5"]).to_string();
        match self.chance.below(5) {
            0 => text(format!(" OFFSET {skip}")),
            1 => text(format!(" LIMIT {count} OFFSET {skip}")),
            2 => text(format!(" OFFSET {skip} ROWS FETCH NEXT {count} ROWS ONLY")),
            3 => {
                let value = Some(count);
                let of = Type::Int8;
                all([text(" LIMIT "), Node::Constant { of, value, bare: false }])
            }
            _ => text(format!(" LIMIT {count}")),
        }
    }

    /// WITH, whose names FROM then knows.
    fn with(&mut self) -> Node {
        let mut items = Vec::new();
        for _ in 0..self.chance.between(1, 2) {
            let name = self.alias('q');
            let recursive = self.chance.one_in(4);
            let (columns, query) = if recursive {
                self.recursive(&name)
            } else {
                let query = self.query(&Scope::default(), 1, None);
                (query.columns, query.node)
            };
            let how = match recursive {
                true => "",
                false => *self.chance.pick(&["", "", "MATERIALIZED ", "NOT MATERIALIZED "]),
            };
            let columns = numbered(&columns);
            let names: Vec<_> = columns.iter().map(|(name, _)| name.as_str()).collect();
            items.push(all([
                text(format!("{name}({}) AS {how}(", names.join(", "))),
                query,
                text(")"),
            ]));
            self.ctes.push(Source {
                alias: name,
                columns,
                unique: Vec::new(),
            });
        }
        list("WITH RECURSIVE ", items, " ")
    }

    /// Steps from row to row, at most four of them.
    fn recursive(&mut self, name: &str) -> (Vec<Type>, Node) {
        self.nesting += 1;
        let (first, source) = self.table_source();
        let scope = super::source::scope(&Scope::default(), std::slice::from_ref(&source));
        let (of, start) = self.ordered_column(&scope);
        let filter = self.conditions(" WHERE ", &scope);
        let (second, next) = self.table_source();
        let next_scope = super::source::scope(&Scope::default(), std::slice::from_ref(&next));
        let value = self.leaf(of, &next_scope);
        let (column, is) = &next.columns[0];
        let cast = if *is == of { "" } else { "::text" };
        let link = format!(" ON {}.{column}{cast} = r.o2{cast} WHERE r.o1 < 4", next.alias);
        self.note_ambiguous(of);
        self.nesting -= 1;
        let node = all([
            text("SELECT 1, "),
            start,
            text(" FROM "),
            first,
            filter,
            text(" UNION SELECT r.o1 + 1, "),
            value,
            text(format!(" FROM {name} r JOIN ")),
            second,
            text(link),
        ]);
        (vec![Type::Int4, of], node)
    }
}

/// `item AS o1, …`
pub(super) fn as_numbered(items: Vec<Node>) -> Vec<Node> {
    (1..)
        .zip(items)
        .map(|(number, item)| all([item, text(format!(" AS o{number}"))]))
        .collect()
}

/// ` ORDER BY …`; shrinking leaves so many of them at least.
pub(super) fn order_by(items: Vec<Node>, least: usize) -> Node {
    Node::List {
        before: " ORDER BY ",
        items,
        between: ", ",
        after: "",
        least,
    }
}
