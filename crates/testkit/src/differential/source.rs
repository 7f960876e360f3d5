//! What FROM reads: tables, subqueries, functions, and the joins between them.

use super::Grammar;
use super::expression::Scope;
use super::node::{Node, all, list, text};
use super::schema::Table;
use super::types::Type;
use std::rc::Rc;

/// One relation under its alias.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) alias: String,
    pub(super) columns: Vec<(String, Type)>,
    /// Columns whose values together name one row; none where that is not known.
    pub(super) unique: Vec<String>,
}

impl Source {
    /// A table under this name.
    pub(super) fn of_table(table: &Table, alias: &str) -> Self {
        Self {
            alias: alias.to_owned(),
            columns: table
                .columns
                .iter()
                .map(|column| (column.name.clone(), column.of))
                .collect(),
            unique: table.key_columns().iter().map(|column| column.name.clone()).collect(),
        }
    }

    /// Its columns as an expression names them.
    pub(super) fn columns(&self) -> impl Iterator<Item = (Type, Node)> + Clone {
        self.columns
            .iter()
            .map(|(name, of)| (*of, text(format!("{}.{name}", self.alias))))
    }
}

/// ` WHERE …`, all of these; nothing where there are none.
fn where_all(items: Vec<Node>) -> Node {
    Node::List {
        before: " WHERE ",
        items,
        between: " AND ",
        after: "",
        least: 0,
    }
}

/// A FROM clause and what it brings in sight.
pub(super) struct From {
    pub(super) node: Node,
    pub(super) sources: Vec<Source>,
    /// Columns of the sources, and a merged one of USING.
    pub(super) scope: Scope,
}

impl From {
    /// Columns that order the rows without a choice, if there are such.
    pub(super) fn unique(&self) -> Option<Vec<Node>> {
        let is_unique = self.sources.iter().all(|source| !source.unique.is_empty());
        let named = |source: &Source| {
            let alias = source.alias.clone();
            source
                .unique
                .clone()
                .into_iter()
                .map(move |name| text(format!("{alias}.{name}")))
        };
        is_unique.then(|| self.sources.iter().flat_map(named).collect())
    }
}

impl Grammar<'_> {
    pub(super) fn alias(&mut self, letter: char) -> String {
        self.aliases += 1;
        format!("{letter}{}", self.aliases)
    }

    /// `FROM …` with up to three joins; `outer` is in sight for subqueries that are correlated or LATERAL.
    pub(super) fn from(&mut self, outer: &Scope, depth: usize) -> From {
        let (first, source) = self.source(outer, depth, &Scope::default());
        let mut from = From {
            node: all([]),
            scope: scope(outer, std::slice::from_ref(&source)),
            sources: vec![source],
        };
        let mut pieces = vec![text(" FROM "), first];
        let most = [0, 0, 0, 1, 1, 1, 2, 2, 3];
        let joins = most[self.chance.below(if depth == 0 { 6 } else { most.len() })];
        for number in 0..joins {
            let join = self.join(&mut from, outer, depth, joins == 1 && number == 0);
            pieces.push(join);
        }
        from.node = all(pieces);
        from
    }

    fn join(&mut self, from: &mut From, outer: &Scope, depth: usize, only: bool) -> Node {
        let lateral = from.scope.clone();
        let (node, source) = self.source(outer, depth, &lateral);
        let before = std::mem::take(&mut from.scope);
        from.sources.push(source.clone());
        from.scope = scope(outer, &from.sources);
        // LATERAL cannot be on the side that an outer join leaves out.
        let is_lateral = matches!(&node, Node::All(pieces) if matches!(pieces.first(), Some(Node::Text(words)) if words.starts_with("LATERAL")));
        let kinds: &[&str] = match is_lateral {
            true => &[" JOIN ", " LEFT JOIN ", " CROSS JOIN "],
            false => &[
                " JOIN ",
                " JOIN ",
                " LEFT JOIN ",
                " LEFT JOIN ",
                " RIGHT JOIN ",
                " FULL JOIN ",
                " CROSS JOIN ",
                ", ",
            ],
        };
        let kind = *self.chance.pick(kinds);
        if matches!(kind, " CROSS JOIN " | ", ") {
            return all([text(kind), node]).optional();
        }
        let shared = |(name, of): &(String, Type)| {
            let first = &from.sources[0];
            of.is_ordered() && first.columns.iter().any(|(other, is)| other == name && is == of)
        };
        if only && self.chance.one_in(3) {
            let common: Vec<_> = source.columns.iter().filter(|column| shared(column)).cloned().collect();
            if let Some((name, of)) = common.first() {
                self.note_ambiguous(*of);
                let clash = outer
                    .columns
                    .iter()
                    .any(|(_, node)| matches!(node, Node::Text(words) if words == name));
                if !clash {
                    from.scope.columns.push((*of, text(name.clone())));
                }
                return all([text(kind), node, text(format!(" USING ({name})"))]);
            }
        }
        let on = self.join_condition(kind, &before, &source, from);
        all([text(kind), node, on]).optional()
    }

    fn join_condition(&mut self, kind: &str, before: &Scope, source: &Source, from: &From) -> Node {
        let mut pairs = Vec::new();
        for (of, right) in source.columns() {
            let lefts = before.columns.iter().filter(|(is, _)| *is == of && of.is_ordered());
            pairs.extend(lefts.map(|(_, left)| (left.clone(), right.clone(), of)));
        }
        let mut items = Vec::new();
        if !pairs.is_empty() && !self.chance.one_in(6) {
            for _ in 0..*self.chance.pick(&[1, 1, 1, 2]) {
                let (left, right, of) = self.chance.pick(&pairs).clone();
                items.push(all([left.typed(of), text(" = "), right.typed(of)]));
            }
        }
        // PostgreSQL can run a FULL JOIN only by conditions that merge or hash.
        if kind != " FULL JOIN " && (items.is_empty() || self.chance.one_in(4)) {
            items.push(self.condition(&from.scope, 1));
        }
        if items.is_empty() {
            return text(" ON true");
        }
        Node::List {
            before: " ON ",
            items,
            between: " AND ",
            after: "",
            least: 1,
        }
    }

    fn source(&mut self, outer: &Scope, depth: usize, lateral: &Scope) -> (Node, Source) {
        match self.chance.below(if depth == 0 { 10 } else { 15 }) {
            8 if !lateral.columns.is_empty() && self.chance.one_in(3) => self.lateral_values(lateral),
            8 => self.values(),
            9 => self.function(lateral),
            10 if !self.ctes.is_empty() => self.cte(),
            11 | 12 if self.may_nest() => self.derived(outer, depth - 1),
            13 if self.may_nest() && !lateral.columns.is_empty() => self.lateral(lateral),
            14 if !self.ctes.is_empty() => self.cte(),
            _ => self.table_source(),
        }
    }

    /// A table under an alias.
    pub(super) fn table_source(&mut self) -> (Node, Source) {
        let alias = self.alias('x');
        let table = self.chance.pick(&self.schema.tables);
        let source = Source::of_table(table, &alias);
        let words = *self.chance.pick(&["", "", "AS "]);
        (text(format!("{} {words}{alias}", table.name)), source)
    }

    fn derived(&mut self, outer: &Scope, depth: usize) -> (Node, Source) {
        let alias = self.alias('d');
        // Columns of the query around are not in sight here, only those of the queries around that one.
        let query = self.query(outer, depth, None);
        let columns = numbered(&query.columns);
        let source = Source {
            alias: alias.clone(),
            columns,
            unique: Vec::new(),
        };
        (all([text("("), query.node, text(format!(") AS {alias}"))]), source)
    }

    fn lateral(&mut self, lateral: &Scope) -> (Node, Source) {
        let alias = self.alias('l');
        let query = self.query(lateral, 0, None);
        let source = Source {
            alias: alias.clone(),
            columns: numbered(&query.columns),
            unique: Vec::new(),
        };
        (all([text("LATERAL ("), query.node, text(format!(") {alias}"))]), source)
    }

    fn values(&mut self) -> (Node, Source) {
        let alias = self.alias('v');
        let types = [
            *self.chance.pick(&[Type::Int4, Type::Int4, Type::Int8, Type::Text]),
            *self.chance.pick(&[Type::Text, Type::Date, Type::Numeric]),
        ];
        let rows = (0..self.chance.between(1, 4))
            .map(|_| list("(", types.map(|of| self.constant(of)).into(), ")"))
            .collect();
        let source = Source {
            alias: alias.clone(),
            columns: vec![("a".to_owned(), types[0]), ("b".to_owned(), types[1])],
            unique: Vec::new(),
        };
        (
            list("(VALUES ", rows, ") AS ").then(text(format!("{alias}(a, b)"))),
            source,
        )
    }

    /// VALUES of what stands before it in FROM.
    fn lateral_values(&mut self, lateral: &Scope) -> (Node, Source) {
        let alias = self.alias('v');
        let types = [self.any_column(lateral).0, self.any_column(lateral).0];
        let rows = (0..self.chance.between(1, 3))
            .map(|_| {
                let values = types.map(|of| self.expression(of, lateral, 1));
                list("(", values.into(), ")")
            })
            .collect();
        let source = Source {
            alias: alias.clone(),
            columns: vec![("a".to_owned(), types[0]), ("b".to_owned(), types[1])],
            unique: Vec::new(),
        };
        let end = text(format!("{alias}(a, b)"));
        (all([text("LATERAL "), list("(VALUES ", rows, ") AS "), end]), source)
    }

    /// Several functions side by side, or one that returns records.
    fn functions_together(&mut self, lateral: &Scope) -> (Node, Source) {
        let alias = self.alias('f');
        let columns = |of: &[(&str, Type)]| of.iter().map(|(name, of)| ((*name).to_owned(), *of)).collect();
        let (node, columns, unique) = match self.chance.below(3) {
            0 => {
                let (one, two) = (self.leaf(Type::Int4Array, lateral), self.leaf(Type::TextArray, lateral));
                let call = all([text("unnest("), one, text(", "), two, text(")")]);
                let end = text(format!(" WITH ORDINALITY AS {alias}(a, b, n)"));
                let columns = columns(&[("a", Type::Int4), ("b", Type::Text), ("n", Type::Int8)]);
                (all([call, end]), columns, vec!["n".to_owned()])
            }
            1 => {
                let words = self.leaf(Type::Text, lateral);
                let call = all([
                    text("ROWS FROM (generate_series(1, 3), string_to_table("),
                    words,
                    text(", 'a'), jsonb_each_text('{\"x\": 1}'))"),
                ]);
                let end = text(format!(" WITH ORDINALITY AS {alias}(a, b, c, d, n)"));
                let columns = columns(&[
                    ("a", Type::Int4),
                    ("b", Type::Text),
                    ("c", Type::Text),
                    ("d", Type::Text),
                    ("n", Type::Int8),
                ]);
                (all([call, end]), columns, vec!["n".to_owned()])
            }
            _ => {
                let (number, words) = (self.leaf(Type::Int4, lateral), self.leaf(Type::Text, lateral));
                let call = all([
                    text("jsonb_to_recordset(jsonb_build_array(jsonb_build_object('a', "),
                    number,
                    text(", 'b', "),
                    words,
                    text("), '{\"b\": \"x\"}'::jsonb))"),
                ]);
                let end = text(format!(" AS {alias}(a int, b text)"));
                (
                    all([call, end]),
                    columns(&[("a", Type::Int4), ("b", Type::Text)]),
                    Vec::new(),
                )
            }
        };
        (node, Source { alias, columns, unique })
    }

    fn function(&mut self, lateral: &Scope) -> (Node, Source) {
        if self.chance.one_in(4) {
            return self.functions_together(lateral);
        }
        let alias = self.alias('f');
        let (call, of) = match self.chance.below(9) {
            0 => (text("generate_series(1, 5)"), Type::Int4),
            1 => {
                let argument = self.leaf(Type::Int4, lateral);
                // No more rows than a handful, whatever the value.
                (all([text("generate_series(1, "), argument, text(" % 6)")]), Type::Int4)
            }
            2 => (
                all([text("unnest("), self.leaf(Type::TextArray, lateral), text(")")]),
                Type::Text,
            ),
            3 => (
                text("generate_series(timestamp '2024-01-01', '2024-03-01', '20 days')"),
                Type::Timestamp,
            ),
            4 => (
                all([text("string_to_table("), self.leaf(Type::Text, lateral), text(", 'a')")]),
                Type::Text,
            ),
            5 => (
                all([text("unnest("), self.leaf(Type::MoodArray, lateral), text(")")]),
                Type::Mood,
            ),
            6 => (
                all([
                    text("jsonb_array_elements(jsonb_build_array("),
                    self.leaf(Type::Int4, lateral),
                    text(", "),
                    self.leaf(Type::Jsonb, lateral),
                    text("))"),
                ]),
                Type::Jsonb,
            ),
            7 => (
                all([
                    text("ROWS FROM (regexp_split_to_table("),
                    self.leaf(Type::Text, lateral),
                    text(", '')) "),
                ]),
                Type::Text,
            ),
            _ => (
                all([text("unnest("), self.leaf(Type::Int4Array, lateral), text(")")]),
                Type::Int4,
            ),
        };
        let source = Source {
            alias: alias.clone(),
            columns: vec![("a".to_owned(), of), ("n".to_owned(), Type::Int8)],
            unique: vec!["n".to_owned()],
        };
        (all([call, text(format!(" WITH ORDINALITY AS {alias}(a, n)"))]), source)
    }

    /// A set of values of one type, for the list of a SELECT.
    pub(super) fn set_of_values(&mut self, scope: &Scope) -> (Type, Node) {
        match self.chance.below(13) {
            8 => {
                let json = self.leaf(Type::Jsonb, scope);
                let call = all([
                    text("(jsonb_each_text(jsonb_build_object('a', "),
                    json,
                    text(", 'b', 2))).value"),
                ]);
                (Type::Text, call)
            }
            9 => {
                let json = self.leaf(Type::Jsonb, scope);
                (
                    Type::Jsonb,
                    all([text("jsonb_path_query("), json, text(", 'lax $.**')")]),
                )
            }
            10 => {
                let array = self.leaf(Type::Int4Array, scope);
                let call = all([text("(generate_subscripts("), array, text(", 1) + 1)")]);
                (Type::Int4, call)
            }
            11 => {
                let ranges = self.leaf(Type::Int4Multirange, scope);
                (Type::Int4Range, all([text("unnest("), ranges, text(")")]))
            }
            12 => {
                let array = self.leaf(Type::Int4Array, scope);
                let call = all([text("generate_series(1, unnest("), array, text(") % 4)")]);
                (Type::Int4, call)
            }
            3 => {
                let last = self.leaf(Type::Int4, scope);
                let call = all([text("abs(generate_series(0, "), last, text(" % 4))")]);
                (Type::Int4, call)
            }
            4 => {
                let words = self.leaf(Type::Text, scope);
                (
                    Type::TextArray,
                    all([text("regexp_matches("), words, text(", '[a-z]', 'g')")]),
                )
            }
            5 => {
                let (a, b) = (self.leaf(Type::Numeric, scope), self.leaf(Type::Numeric, scope));
                let call = all([text("unnest(ARRAY["), a, text(", "), b, text("])")]);
                (Type::Numeric, call)
            }
            6 => {
                let array = self.leaf(Type::Jsonb, scope);
                let call = all([
                    text("jsonb_array_elements_text(jsonb_build_array("),
                    array,
                    text(", 1))"),
                ]);
                (Type::Text, call)
            }
            0 => (Type::Int4, text("generate_series(1, 3)").typed(Type::Int4)),
            1 => {
                let array = self.leaf(Type::TextArray, scope);
                (Type::Text, all([text("unnest("), array, text(")")]))
            }
            _ => {
                let words = self.leaf(Type::Text, scope);
                (Type::Text, all([text("string_to_table("), words, text(", 'b')")]))
            }
        }
    }

    fn cte(&mut self) -> (Node, Source) {
        let alias = self.alias('w');
        let mut source = self.chance.pick(&self.ctes).clone();
        let name = std::mem::replace(&mut source.alias, alias.clone());
        (text(format!("{name} AS {alias}")), source)
    }

    /// ` FROM t x WHERE …`, with a condition on what is in sight outside.
    pub(super) fn correlated_source(&mut self, outer: &Scope) -> Node {
        self.nesting += 1;
        let (table, source) = self.table_source();
        let inner = scope(outer, std::slice::from_ref(&source));
        let mut items = vec![self.correlation(outer, &source)];
        if self.chance.one_in(2) {
            items.push(self.condition(&inner, 1));
        }
        self.nesting -= 1;
        all([text(" FROM "), table, where_all(items)])
    }

    fn correlation(&mut self, outer: &Scope, source: &Source) -> Node {
        let mut pairs = Vec::new();
        for (of, inner) in source.columns() {
            let outers = outer.columns.iter().filter(|(is, _)| *is == of && of.is_ordered());
            pairs.extend(outers.map(|(_, node)| all([inner.clone().typed(of), text(" = "), node.clone().typed(of)])));
        }
        match pairs.is_empty() {
            true => self.condition(&scope(&Scope::default(), std::slice::from_ref(source)), 1),
            false => self.chance.pick(&pairs).clone(),
        }
    }

    /// A query of one column, for IN and its kin.
    pub(super) fn column_query(&mut self, of: Type, outer: &Scope) -> Node {
        self.nesting += 1;
        let (table, source) = self.table_source();
        let inner = scope(outer, std::slice::from_ref(&source));
        let fitting: Vec<_> = source.columns().filter(|(is, _)| *is == of).collect();
        let value = match fitting.is_empty() {
            true => self.expression(of, &scope(&Scope::default(), std::slice::from_ref(&source)), 1),
            false => self.chance.pick(&fitting).1.clone().typed(of),
        };
        let mut items = Vec::new();
        if self.chance.one_in(2) {
            items.push(self.condition(&inner, 1));
        }
        if self.chance.one_in(4) {
            items.push(self.correlation(outer, &source));
        }
        self.nesting -= 1;
        all([text("SELECT "), value, text(" FROM "), table, where_all(items)])
    }

    /// A query with at most one row of one column.
    pub(super) fn scalar_subquery(&mut self, of: Type, outer: &Scope) -> Node {
        self.nesting += 1;
        let (table, source) = self.table_source();
        let own = scope(&Scope::default(), std::slice::from_ref(&source));
        let inner = scope(outer, std::slice::from_ref(&source));
        let conditions = if self.chance.one_in(2) {
            list(" WHERE ", vec![self.correlation(outer, &source)], "")
        } else {
            self.conditions(" WHERE ", &inner)
        };
        let aggregate = self.aggregate(of, &own);
        self.nesting -= 1;
        let unique: Vec<_> = source
            .unique
            .iter()
            .map(|name| text(format!("{}.{name}", source.alias)))
            .collect();
        match aggregate {
            Some(value) if unique.is_empty() || self.chance.one_in(2) => {
                all([text("(SELECT "), value, text(" FROM "), table, conditions, text(")")]).typed(of)
            }
            _ if unique.is_empty() => self.leaf(of, outer),
            _ => {
                let value = self.leaf(of, &own);
                let order = list(" ORDER BY ", unique, " LIMIT 1)");
                all([text("(SELECT "), value, text(" FROM "), table, conditions, order]).typed(of)
            }
        }
    }
}

/// Columns of some sources and of the queries around.
pub(super) fn scope(outer: &Scope, sources: &[Source]) -> Scope {
    let own = sources.iter().flat_map(Source::columns);
    Scope {
        // Twice, so that expressions are mostly about the query's own rows.
        columns: own.clone().chain(own).chain(outer.columns.iter().cloned()).collect(),
        grouped: None,
    }
}

/// A scope over groups.
pub(super) fn grouped(keys: Vec<(Type, Node)>, input: Scope) -> Scope {
    Scope {
        columns: keys,
        grouped: Some(Rc::new(input)),
    }
}

/// Names that the grammar gives to output columns.
pub(super) fn numbered(types: &[Type]) -> Vec<(String, Type)> {
    (1..)
        .map(|number| format!("o{number}"))
        .zip(types.iter().copied())
        .collect()
}
