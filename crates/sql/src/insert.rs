//! INSERT … VALUES into a sharded table: each row's key decides its range.
//!
//! Some values only the home shard can give: those of sequences and identity columns (a sequence per shard would
//! give numbers twice), of key expressions that are no constants, of subqueries. They are *slots*:
//! [`Route::Defaults`] asks the home shard for them, one row of answers per inserted row, and they are put into
//! the text as literals. Where rows go to several shards, so are defaults that call functions and expressions with
//! the statement's time. All other expressions and defaults are left to the shard that stores the row.

use crate::analysis::Context;
use crate::cursor::Cursor;
use crate::functions;
use crate::insert_place::stored;
use crate::insert_text::Given;
use crate::literal::split_commas;
use crate::placed::{Address, DirectCheck, is_home_default, placement, sharded_of};
use crate::relations::{Reference, Role, identifier, object_name};
use crate::route::{Part, Route};
use crate::scalar::{Evaluated, Parameters, Scalar};
use crate::tree::tree;
use crate::walk::{Assigned, Walk};
use pgherd_model::{Column, KeyType, Name, ServerError, ShardId, Sharded, Snapshot, Table};
use sqlparser::ast::{ConflictTarget, Expr, Insert, OnInsert, Query, SelectItem, SetExpr, Statement, Value, Values};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// One value of a row.
#[derive(Debug)]
pub(crate) struct Cell {
    /// bytes in the statement
    pub span: Range<usize>,
    pub kind: CellKind,
}

#[derive(Debug)]
pub(crate) enum CellKind {
    Scalar(Scalar),
    Default,
    /// something to compute; `home`: only the home shard can
    Expression {
        home: bool,
        /// it has the statement's time
        time: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Row {
    /// with its parentheses
    pub span: Range<usize>,
    pub cells: Vec<Cell>,
}

/// Which elements of a column list, with its parentheses, are parts of columns: `(k, a[1], b.x)`.
fn parts_of_list(list: &str) -> Vec<bool> {
    let tokens = crate::lexer::tokenize(list).unwrap_or_default();
    let (mut parts, mut depth, mut length) = (Vec::new(), 0, 0);
    for token in &tokens {
        match token.text(list) {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 || depth == 1 && token.is(list, ",") {
            parts.push(length > 1);
            length = 0;
        } else if depth > 1 || !token.is(list, "(") {
            length += 1;
        }
    }
    parts
}

/// A value that the home shard gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// the value at this place of the row
    Cell(usize),
    /// a column (by its place in the table) that the statement leaves out
    Omitted(usize),
}

#[derive(Debug)]
pub(crate) struct InsertPlan {
    pub table: Arc<Table>,
    /// the sharded table's name, also where a partition is named
    pub parent: Name,
    pub address: Address,
    /// behind the table's name and alias
    pub behind_name: usize,
    /// the column list, with its parentheses
    pub list: Option<Range<usize>>,
    /// for each place of a row, the column's place in the table
    pub columns: Vec<usize>,
    /// VALUES, or DEFAULT VALUES
    pub values_at: Range<usize>,
    pub default_values: bool,
    pub overriding: bool,
    /// OVERRIDING USER VALUE
    pub ignoring: Option<Range<usize>>,
    pub rows: Vec<Row>,
    /// columns left out that the home shard must give
    pub omitted: Vec<usize>,
    /// columns whose defaults must be computed in one place where the rows go to several
    pub computed: Vec<usize>,
    /// `$n` tokens: bytes, and the number from 0
    pub parameters: Vec<(Range<usize>, u16)>,
    /// the key's columns, by their places in the table
    pub key: Vec<usize>,
    /// a declared partition named by the statement
    pub partition: Option<usize>,
    /// PostgreSQL will refuse it; the home shard says how
    judged: bool,
    refused: Option<ServerError>,
    /// ON CONFLICT or RETURNING reads tables of the home shard
    reads_home: bool,
    pub returning: bool,
    pub ready: Box<[OnceLock<Part>]>,
}

impl InsertPlan {
    /// None when the statement is no INSERT … VALUES into a sharded table.
    pub fn new(statement: &Statement, walk: &Walk, context: &Context) -> Option<Result<Self, ServerError>> {
        let Statement::Insert(insert) = statement else {
            return None;
        };
        let values = match &insert.source {
            None => None,
            Some(source) => Some(plain_values(source)?),
        };
        let reference = walk.references.iter().find(|r| r.role == Role::Insert)?;
        let named = reference.table.clone()?;
        let (parent, partition) = sharded_of(&named, context.snapshot)?;
        if walk
            .references
            .iter()
            .any(|r| r.role != Role::Insert && r.table.is_some())
        {
            // VALUES is a query like any other.
            return None;
        }
        let sharded = placement(&parent);
        let sets_key = |a: &Assigned| {
            let column = named.columns.get(a.column);
            column.is_some_and(|c| sharded.place_in_key(&c.name).is_some())
        };
        if walk.assigned.iter().any(sets_key) || walk.sets_always {
            // The row may belong elsewhere then; or PostgreSQL judges it.
            return None;
        }
        if values.is_some_and(|v| v.rows.len() == 1) && functions::calls_set_returning(context.text, context.tokens) {
            // One row of VALUES is a SELECT to PostgreSQL, and gives as many rows as its sets have.
            return None;
        }
        // A partition may have columns in another order; its own are what its INSERT means.
        let table = if partition.is_some() { named } else { parent.clone() };
        let direct = DirectCheck::new(walk, context);
        let mut address = direct.address(reference, sharded, partition.is_some());
        let conflict = match &insert.on {
            Some(OnInsert::OnConflict(conflict)) => Some(conflict),
            _ => None,
        };
        let by_constraint =
            conflict.is_some_and(|c| matches!(c.conflict_target, Some(ConflictTarget::OnConstraint(_))));
        address.direct &= !by_constraint;
        // A declared partition may have unique indexes of its own, which PostgreSQL does not take for the parent's.
        let target = conflict.and_then(|c| c.conflict_target.as_ref());
        if let (false, Some(ConflictTarget::Columns(columns))) = (sharded.automatic, target) {
            let named: BTreeSet<String> = columns.iter().map(identifier).collect();
            let is_whole = |unique: &(String, Vec<String>)| unique.1.iter().cloned().collect::<BTreeSet<_>>() == named;
            address.direct &= sharded.unique.iter().any(is_whole);
        }
        let place = |name: &String| table.columns.iter().position(|c| c.name == *name);
        let mut plan = Self {
            key: sharded.key.iter().filter_map(place).collect(),
            ready: sharded.ranges.ranges().iter().map(|_| OnceLock::new()).collect(),
            address,
            behind_name: reference.end,
            list: None,
            columns: Vec::new(),
            values_at: 0..0,
            default_values: values.is_none(),
            overriding: false,
            ignoring: None,
            rows: Vec::new(),
            omitted: Vec::new(),
            computed: Vec::new(),
            parameters: parameters(context),
            partition,
            judged: false,
            refused: None,
            reads_home: false,
            returning: insert.returning.is_some(),
            parent: parent.name.clone(),
            table: parent.clone(),
        };
        plan.judged |= plan.key.len() != sharded.key.len();
        plan.read(insert, values, &table, context);
        let given = plan.columns.iter().map(|&place| &*table.columns[place].name);
        if let Err(error) = parent.refuse_other_names(given) {
            plan.refused.get_or_insert(error);
        }
        let behind = plan.rows.last().map_or(plan.values_at.end, |row| row.span.end);
        let first = context.tokens.partition_point(|t| (t.start as usize) < behind);
        let tail = &context.tokens[first..];
        // A query there is gathered; what stands beside it is computed where the row is.
        let outside = functions::outside_of_queries(context.text, tail);
        if functions::calls_state_of_home(context.text, tail, context.snapshot)
            || functions::looks_up(context.text, &outside, context.snapshot)
        {
            plan.refused.get_or_insert_with(|| {
                ServerError::unsupported(
                    "RETURNING and ON CONFLICT of an INSERT into a sharded table cannot call functions of sequences, sessions and local tables",
                    "The shard that stores the row has none of what they need. Call the function in a statement of its own.",
                )
            });
        }
        // Tables of the home shard; the catalog's own are everywhere.
        let is_elsewhere = |r: &Reference| {
            let system = r.name.schema.as_deref() == Some("pg_catalog") || r.name.name.starts_with("pg_");
            r.role != Role::Insert && r.name.span.start >= behind && !system
        };
        plan.reads_home =
            walk.references.iter().any(is_elsewhere) || functions::looks_up(context.text, tail, context.snapshot);
        plan.table_for_columns(table);
        Some(Ok(plan))
    }

    /// Columns are those of the relation named; placement is the sharded table's.
    fn table_for_columns(&mut self, named: Arc<Table>) {
        if self.partition.is_some() {
            let mut table = (*named).clone();
            table.kind = self.table.kind.clone();
            self.table = Arc::new(table);
        }
    }

    /// Rows and column list, from tree and tokens together.
    fn read(&mut self, insert: &Insert, values: Option<&Values>, table: &Table, context: &Context) {
        let mut c = Cursor::new(context.text, context.tokens);
        while c.peek().is_some_and(|t| (t.start as usize) < self.behind_name) {
            c.at += 1;
        }
        if c.is_symbol("(") {
            let start = c.at;
            c.skip_parentheses();
            self.list = Some(c.bytes(start..c.at));
        }
        self.overriding = c.accept("overriding system value");
        let before = c.at;
        if c.accept("overriding user value") {
            self.ignoring = Some(c.bytes(before..c.at));
            self.overriding = true;
        }
        self.values_at = c.peek().map_or(0..0, |t| t.start as usize..t.end as usize);
        let named: Vec<_> = insert.columns.iter().filter_map(object_name).map(|n| n.name).collect();
        match values {
            None => {
                let last = c.tokens.get(c.at + 1).map_or(self.values_at.end, |t| t.end as usize);
                self.values_at.end = last;
                self.judged |= !(c.is("default") && c.is_ahead(1, "values"));
                self.rows = vec![Row {
                    span: last..last,
                    cells: Vec::new(),
                }];
            }
            Some(values) => {
                self.judged |= !c.accept("values");
                self.read_rows(&mut c, values, context.snapshot);
                let width = self.rows.first().map_or(0, |r| r.cells.len());
                let places: Option<Vec<_>> = match self.list {
                    Some(_) => named
                        .iter()
                        .map(|n| table.columns.iter().position(|c| c.name == *n))
                        .collect(),
                    None => Some((0..width.min(table.columns.len())).collect()),
                };
                self.columns = places.unwrap_or_default();
                if self.ignoring.is_some() {
                    self.ignore_identities(table);
                }
                let fits = self.columns.len() == width && self.rows.iter().all(|r| r.cells.len() == width);
                let twice = (1..self.columns.len()).any(|i| self.columns[..i].contains(&self.columns[i]));
                let has_parts = self.list.clone().is_some_and(|list| self.read_parts(&c.text[list]));
                self.judged |= !fits || twice && !has_parts || self.boolean_key(values);
            }
        }
        self.judged |= self.explicit_always(table);
        let given = |column: usize| self.columns.contains(&column);
        self.omitted = (0..table.columns.len())
            .filter(|&i| !given(i) && self.needs_home(table, i, context.snapshot))
            .collect();
        self.computed = (0..table.columns.len())
            .filter(|&i| !self.needs_home(table, i, context.snapshot) && computed(&table.columns[i]))
            .collect();
    }

    /// Whether the list has parts of columns, `a[1], a[2], b.x`: a column may be there several times then, and a value is not of its type.
    fn read_parts(&mut self, list: &str) -> bool {
        let parts = parts_of_list(list);
        let cells = self.rows.iter().flat_map(|row| row.cells.iter().zip(&parts));
        for (cell, _) in cells.filter(|(_, is_part)| **is_part) {
            match cell.kind {
                CellKind::Scalar(_)
                | CellKind::Expression {
                    home: false,
                    time: false,
                } => {}
                // PostgreSQL says that there is none.
                CellKind::Default => self.judged = true,
                CellKind::Expression { .. } => {
                    self.refused.get_or_insert_with(|| {
                        ServerError::unsupported(
                            "INSERT into parts of columns of a sharded table cannot compute values with sequences, subqueries or the time",
                            "Give whole columns values.",
                        )
                    });
                }
            }
        }
        parts.contains(&true)
    }

    /// Values for identity columns, which OVERRIDING USER VALUE says are to be drawn like those that are left out.
    fn ignore_identities(&mut self, table: &Table) {
        for row in &mut self.rows {
            let cells = row.cells.iter_mut().zip(&self.columns);
            let of_identities = cells.filter(|(_, column)| table.columns[**column].identity.is_some());
            of_identities.for_each(|(cell, _)| cell.kind = CellKind::Default);
        }
    }

    fn read_rows(&mut self, c: &mut Cursor, values: &Values, snapshot: &Snapshot) {
        for exprs in &values.rows {
            let start = c.at;
            let inside = c.skip_parentheses();
            let span = c.bytes(start..c.at);
            let pieces = split_commas(c, inside);
            self.judged |= pieces.len() != exprs.content.len();
            let cells = pieces.into_iter().zip(&exprs.content).map(|(tokens, expr)| Cell {
                span: c.bytes(tokens.clone()),
                kind: cell_kind(expr, c.text, &c.tokens[tokens], snapshot),
            });
            self.rows.push(Row {
                span,
                cells: cells.collect(),
            });
            c.accept_symbol(",");
        }
    }

    /// `true` or `false` for a key that only an explicit cast would make of it.
    fn boolean_key(&self, values: &Values) -> bool {
        let takes = |column: usize| {
            let text = matches!(self.key_type(column), KeyType::Text | KeyType::Varchar);
            text || !self.key.contains(&column)
        };
        values.rows.iter().any(|row| {
            let mut cells = row.content.iter().zip(&self.columns);
            cells.any(|(expr, &column)| {
                !takes(column) && matches!(expr, Expr::Value(v) if matches!(v.value, Value::Boolean(_)))
            })
        })
    }

    /// A value for a GENERATED ALWAYS identity without OVERRIDING: 428C9, which a child would not say.
    fn explicit_always(&self, table: &Table) -> bool {
        let always = |place: usize| table.columns[self.columns[place]].identity == Some(true);
        let explicit = |row: &Row| {
            let mut cells = row.cells.iter().take(self.columns.len()).enumerate();
            cells.any(|(i, cell)| always(i) && !matches!(cell.kind, CellKind::Default))
        };
        !self.overriding && self.rows.iter().any(explicit)
    }

    /// Whether a column that gets no value needs the home shard.
    fn needs_home(&self, table: &Table, column: usize, snapshot: &Snapshot) -> bool {
        let described = &table.columns[column];
        if described.generated {
            return false;
        }
        let sequence = described.identity.is_some()
            || described
                .default
                .as_deref()
                .is_some_and(|d| is_home_default(d, snapshot));
        sequence
            || (self.key.contains(&column)
                && described.default.is_some()
                && default_scalar(described.default.as_deref()).is_none())
    }

    /// Whether PostgreSQL will refuse it as it is.
    pub fn is_judged(&self) -> bool {
        self.judged
    }

    pub fn sharded(&self) -> &Sharded {
        placement(&self.table)
    }

    pub fn route(
        &self,
        text: &Arc<str>,
        snapshot: &Snapshot,
        parameters: Parameters,
        given: Option<&[Vec<Option<String>>]>,
    ) -> Route {
        let unbound = self
            .parameters
            .iter()
            .any(|(_, n)| parameters.values.len() <= usize::from(*n));
        if self.judged || unbound {
            return Route::Forward(self.through_parent(text, snapshot.home()));
        }
        if let Some(error) = &self.refused {
            return Route::Refuse(error.clone());
        }
        let mut slots: Vec<_> = (0..self.rows.len())
            .map(|row| self.slots(row, parameters, snapshot))
            .collect();
        let at_once: Vec<_> = (0..self.rows.len()).map(|row| self.at_once(row, parameters)).collect();
        if at_once.iter().any(|s| !s.is_empty()) && self.spreads(snapshot, parameters, &slots) {
            for (slots, more) in slots.iter_mut().zip(at_once) {
                slots.extend(more);
            }
        }
        let union: BTreeSet<Slot> = slots.iter().flatten().copied().collect();
        if self.reads_home && !self.stays_home(union.is_empty(), snapshot, parameters) {
            // Before anything is drawn from a sequence.
            return Route::Plan;
        }
        let given = match given {
            None if union.is_empty() => None,
            None => {
                return match self.query(text, &slots, &union, parameters) {
                    Ok(query) => Route::Defaults {
                        query,
                        drawn: self.drawn(&union, snapshot),
                    },
                    Err(error) => Route::Refuse(error),
                };
            }
            Some(answers) if answers.len() != self.rows.len() || answers.iter().any(|a| a.len() != union.len()) => {
                return Route::Refuse(ServerError::internal("defaults do not fit the INSERT"));
            }
            Some(answers) => Some(Given {
                slots: &slots,
                places: union.into_iter().collect(),
                answers,
            }),
        };
        let ranges = match self.ranges(snapshot, parameters, given.as_ref()) {
            Ok(ranges) => ranges,
            Err(error) => return Route::Refuse(error),
        };
        self.place(text, snapshot, &ranges, given.as_ref())
    }

    /// Whether all rows surely go to the home shard, which has the tables that ON CONFLICT and RETURNING read.
    fn stays_home(&self, is_complete: bool, snapshot: &Snapshot, parameters: Parameters) -> bool {
        let here = |range: Option<usize>| self.shard_of(range, snapshot) == snapshot.home();
        let ranges = self.ranges(snapshot, parameters, None);
        is_complete && ranges.is_ok_and(|ranges| ranges.into_iter().all(here))
    }

    fn through_parent(&self, text: &Arc<str>, shard: ShardId) -> Part {
        Part::new(shard, text, &[], vec![self.sharded().fence.to_string().into()])
    }

    /// What the home shard must give for a row.
    pub fn slots(&self, row: usize, parameters: Parameters, snapshot: &Snapshot) -> Vec<Slot> {
        let cells = self.rows[row].cells.iter().zip(&self.columns).enumerate();
        let needed = cells.filter(|(_, (cell, column))| match &cell.kind {
            CellKind::Default => self.needs_home(&self.table, **column, snapshot),
            CellKind::Expression { home, .. } => *home || self.is_key(**column),
            CellKind::Scalar(scalar) => {
                self.is_key(**column) && self.assigned(scalar, **column, parameters) == Evaluated::Unknown
            }
        });
        needed
            .map(|(place, _)| Slot::Cell(place))
            .chain(self.omitted.iter().map(|&c| Slot::Omitted(c)))
            .collect()
    }

    /// A partition's bounds are PostgreSQL's to check; its key decides nothing.
    fn is_key(&self, column: usize) -> bool {
        self.partition.is_none() && self.key.contains(&column)
    }

    pub fn key_type(&self, column: usize) -> KeyType {
        let place = self.key.iter().position(|&k| k == column).unwrap_or(0);
        self.sharded().key_types[place]
    }

    /// A scalar as a key column stores it, where the assignment surely keeps it.
    pub fn assigned(&self, scalar: &Scalar, column: usize, parameters: Parameters) -> Evaluated {
        let modifier = self.table.columns[column].type_modifier;
        match scalar.evaluate(self.key_type(column), parameters) {
            Evaluated::Value(value) => stored(value, modifier).into(),
            other => other,
        }
    }
}

/// The VALUES of a source that is nothing else.
fn plain_values(query: &Query) -> Option<&Values> {
    let plain =
        query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none() && query.fetch.is_none();
    match &*query.body {
        SetExpr::Values(values) if plain => Some(values),
        _ => None,
    }
}

fn cell_kind(expr: &Expr, text: &str, tokens: &[crate::lexer::Token], snapshot: &Snapshot) -> CellKind {
    if let [only] = tokens
        && only.is_word(text, "default")
    {
        return CellKind::Default;
    }
    match Scalar::from_expr(expr) {
        Some(scalar) => CellKind::Scalar(scalar),
        None => {
            let subquery = tokens
                .iter()
                .any(|t| t.is_word(text, "select") || t.is_word(text, "values"));
            CellKind::Expression {
                home: subquery || functions::bound_to_home(text, tokens, snapshot),
                time: functions::has_time(text, tokens),
            }
        }
    }
}

/// Whether a default calls functions or has the statement's time.
fn computed(column: &Column) -> bool {
    let default = column.default.as_deref().filter(|_| !column.generated);
    default.is_some_and(|text| {
        let tokens = crate::lexer::tokenize(text);
        tokens.is_ok_and(|tokens| functions::has_call(text, &tokens) || functions::has_time(text, &tokens))
    })
}

/// A column's default where it is a constant; NULL for none.
pub(crate) fn default_scalar(default: Option<&str>) -> Option<Scalar> {
    let Some(default) = default else {
        return Some(Scalar::Null);
    };
    let text = format!("SELECT {default}");
    let tokens = crate::lexer::tokenize(&text).ok()?;
    let Statement::Query(query) = tree(&text, &tokens)? else {
        return None;
    };
    match query.body.as_select()?.projection.as_slice() {
        [SelectItem::UnnamedExpr(expr)] => Scalar::from_expr(expr),
        _ => None,
    }
}

fn parameters(context: &Context) -> Vec<(Range<usize>, u16)> {
    let tokens = context.tokens.iter();
    tokens
        .filter(|t| t.kind == crate::lexer::TokenKind::Parameter)
        .filter_map(|t| {
            let number = crate::scalar::parameter_number(t.text(context.text))?;
            Some((t.start as usize..t.end as usize, number))
        })
        .collect()
}
