//! INSERT … VALUES into a sharded table: each row's key decides its range.
//!
//! Some values only the home shard can give: those of sequences and identity columns (a sequence per shard would
//! give numbers twice), of key expressions that are no constants, of subqueries. They are *slots*:
//! [`Route::Defaults`] asks the home shard for them, one row of answers per inserted row, and they are put into
//! the text as literals. All other expressions and defaults are left to the shard that stores the row.

use crate::analysis::Context;
use crate::cursor::Cursor;
use crate::functions;
use crate::insert_text::Given;
use crate::literal::split_commas;
use crate::placed::{Address, DirectCheck, is_sequence_default, placement, sharded_of};
use crate::relations::{Role, object_name};
use crate::route::{Merge, Part, Route};
use crate::scalar::{Evaluated, Parameters, Scalar};
use crate::tree::tree;
use crate::walk::Walk;
use pgherd_model::{KeyType, KeyValue, Name, Numeric, ServerError, ShardId, Sharded, Snapshot, Table};
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
    },
}

#[derive(Debug)]
pub(crate) struct Row {
    /// with its parentheses
    pub span: Range<usize>,
    pub cells: Vec<Cell>,
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
    pub rows: Vec<Row>,
    /// columns left out that the home shard must give
    pub omitted: Vec<usize>,
    /// `$n` tokens: bytes, and the number from 0
    pub parameters: Vec<(Range<usize>, u16)>,
    /// the key's columns, by their places in the table
    key: Vec<usize>,
    /// a declared partition named by the statement
    partition: Option<usize>,
    /// PostgreSQL will refuse it; the home shard says how
    judged: bool,
    refused: Option<ServerError>,
    returning: bool,
    ready: Box<[OnceLock<Part>]>,
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
            return Some(Err(ServerError::unsupported(
                "INSERT … VALUES cannot use sharded tables in its expressions yet",
                "Use INSERT … SELECT, or read first and then write.",
            )));
        }
        // A partition may have columns in another order; its own are what its INSERT means.
        let table = if partition.is_some() { named } else { parent.clone() };
        let sharded = placement(&parent);
        let direct = DirectCheck::new(walk, context);
        let mut address = direct.address(reference, sharded, partition.is_some());
        let conflict = match &insert.on {
            Some(OnInsert::OnConflict(conflict)) => Some(conflict),
            _ => None,
        };
        let by_constraint =
            conflict.is_some_and(|c| matches!(c.conflict_target, Some(ConflictTarget::OnConstraint(_))));
        address.direct &= !by_constraint;
        let place = |name: &String| table.columns.iter().position(|c| c.name == *name);
        let assigns_key = walk
            .assigned
            .iter()
            .any(|a| sharded.key.contains(&table.columns[a.column].name));
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
            rows: Vec::new(),
            omitted: Vec::new(),
            parameters: parameters(context),
            partition,
            judged: false,
            refused: assigns_key.then(|| {
                ServerError::unsupported(
                    "ON CONFLICT DO UPDATE cannot set a column of the shard key",
                    "Leave the key out of SET: it equals the row that was found.",
                )
            }),
            returning: insert.returning.is_some(),
            parent: parent.name.clone(),
            table: parent.clone(),
        };
        plan.judged |= plan.key.len() != sharded.key.len();
        plan.read(insert, values, &table, context);
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
                self.read_rows(&mut c, values);
                let width = self.rows.first().map_or(0, |r| r.cells.len());
                let places: Option<Vec<_>> = match self.list {
                    Some(_) => named
                        .iter()
                        .map(|n| table.columns.iter().position(|c| c.name == *n))
                        .collect(),
                    None => Some((0..width.min(table.columns.len())).collect()),
                };
                self.columns = places.unwrap_or_default();
                let fits = self.columns.len() == width && self.rows.iter().all(|r| r.cells.len() == width);
                let twice = (1..self.columns.len()).any(|i| self.columns[..i].contains(&self.columns[i]));
                self.judged |= !fits || twice || self.boolean_key(values);
            }
        }
        self.judged |= self.explicit_always(table);
        let given = |column: usize| self.columns.contains(&column);
        self.omitted = (0..table.columns.len())
            .filter(|&i| !given(i) && self.needs_home(table, i))
            .collect();
    }

    fn read_rows(&mut self, c: &mut Cursor, values: &Values) {
        for exprs in &values.rows {
            let start = c.at;
            let inside = c.skip_parentheses();
            let span = c.bytes(start..c.at);
            let pieces = split_commas(c, inside);
            self.judged |= pieces.len() != exprs.content.len();
            let cells = pieces.into_iter().zip(&exprs.content).map(|(tokens, expr)| Cell {
                span: c.bytes(tokens.clone()),
                kind: cell_kind(expr, c.text, &c.tokens[tokens]),
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
    fn needs_home(&self, table: &Table, column: usize) -> bool {
        let described = &table.columns[column];
        if described.generated {
            return false;
        }
        let sequence = described.identity.is_some() || described.default.as_deref().is_some_and(is_sequence_default);
        sequence
            || (self.key.contains(&column)
                && described.default.is_some()
                && default_scalar(described.default.as_deref()).is_none())
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
        let slots: Vec<_> = (0..self.rows.len()).map(|row| self.slots(row, parameters)).collect();
        let union: BTreeSet<Slot> = slots.iter().flatten().copied().collect();
        let given = match given {
            None if union.is_empty() => None,
            None => {
                return match self.query(text, &slots, &union, parameters) {
                    Ok(query) => Route::Defaults { query },
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

    fn through_parent(&self, text: &Arc<str>, shard: ShardId) -> Part {
        Part {
            shard,
            text: text.clone(),
            parameters: None,
            fences: vec![self.sharded().fence.to_string().into()],
            replaced: Arc::default(),
        }
    }

    /// What the home shard must give for a row.
    fn slots(&self, row: usize, parameters: Parameters) -> Vec<Slot> {
        let cells = self.rows[row].cells.iter().zip(&self.columns).enumerate();
        let needed = cells.filter(|(_, (cell, column))| match &cell.kind {
            CellKind::Default => self.needs_home(&self.table, **column),
            CellKind::Expression { home } => *home || self.is_key(**column),
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

    fn key_type(&self, column: usize) -> KeyType {
        let place = self.key.iter().position(|&k| k == column).unwrap_or(0);
        self.sharded().key_types[place]
    }

    /// A scalar as a key column stores it, where the assignment surely keeps it.
    fn assigned(&self, scalar: &Scalar, column: usize, parameters: Parameters) -> Evaluated {
        let modifier = self.table.columns[column].type_modifier;
        match scalar.evaluate(self.key_type(column), parameters) {
            Evaluated::Value(value) => stored(value, modifier).into(),
            other => other,
        }
    }

    /// The range of each row; None where no range holds it, or where its key has a NULL.
    fn ranges(
        &self,
        snapshot: &Snapshot,
        parameters: Parameters,
        given: Option<&Given>,
    ) -> Result<Vec<Option<usize>>, ServerError> {
        if self.partition.is_some() {
            return Ok(vec![self.partition; self.rows.len()]);
        }
        let (mut ranges, mut refused) = (Vec::with_capacity(self.rows.len()), Vec::new());
        for row in 0..self.rows.len() {
            let mut key = Vec::with_capacity(self.key.len());
            for &column in &self.key {
                key.push(self.key_value(row, column, parameters, given)?);
            }
            if key
                .iter()
                .zip(&self.key)
                .any(|(v, &c)| v.is_none() && self.table.columns[c].not_null)
            {
                refused.push(row);
            }
            let whole: Option<Vec<_>> = key.into_iter().collect();
            ranges.push(whole.and_then(|key| self.sharded().ranges.find_index(&key)));
        }
        // Where pgherd made the ranges, the table is none of partitions to its user: NOT NULL is what such a row
        // breaks, and any child says so before it looks at its bounds.
        if self.sharded().automatic && !refused.is_empty() {
            let at_home = |r: &pgherd_model::Range| r.shard == snapshot.home();
            let all = self.sharded().ranges.ranges();
            let any = ranges.iter().flatten().next().copied();
            let any = any
                .or_else(|| all.iter().position(at_home))
                .or((!all.is_empty()).then_some(0));
            refused.into_iter().for_each(|row| ranges[row] = any);
        }
        Ok(ranges)
    }

    /// A key column's value in a row; None for NULL.
    fn key_value(
        &self,
        row: usize,
        column: usize,
        parameters: Parameters,
        given: Option<&Given>,
    ) -> Result<Option<KeyValue>, ServerError> {
        let place = self.columns.iter().position(|&c| c == column);
        let slot = place.map_or(Slot::Omitted(column), Slot::Cell);
        let described = &self.table.columns[column];
        let value = match given.and_then(|g| g.answer(row, slot)) {
            Some(None) => Evaluated::Null,
            Some(Some(text)) => match self.key_type(column).parse_text(text) {
                Some(value) => Evaluated::Value(value),
                None => return Err(unreadable(&described.name, text)),
            },
            None => match place.map(|p| &self.rows[row].cells[p].kind) {
                Some(CellKind::Scalar(scalar)) => self.assigned(scalar, column, parameters),
                _ => match default_scalar(described.default.as_deref()) {
                    Some(scalar) => self.assigned(&scalar, column, parameters),
                    None => Evaluated::Null,
                },
            },
        };
        match value {
            Evaluated::Value(value) => Ok(Some(value)),
            Evaluated::Null => Ok(None),
            Evaluated::Unknown => Err(unreadable(&described.name, "default")),
        }
    }

    /// Rows that no range takes go to the home shard's parent, which says 23514 or 23502.
    fn place(&self, text: &Arc<str>, snapshot: &Snapshot, ranges: &[Option<usize>], given: Option<&Given>) -> Route {
        let shard_of =
            |range: Option<usize>| range.map_or(snapshot.home(), |i| self.sharded().ranges.ranges()[i].shard);
        let first = ranges.first().copied().flatten();
        let all_rows: Vec<_> = (0..ranges.len()).collect();
        if ranges.iter().all(|r| *r == ranges[0]) {
            let make = || self.part(text, shard_of(ranges[0]), &all_rows, ranges, given);
            return Route::Forward(match (first, given) {
                (Some(range), None) => self.ready[range].get_or_init(make).clone(),
                _ => make(),
            });
        }
        let mut shards: Vec<_> = ranges.iter().map(|&r| shard_of(r)).collect();
        let by_row = shards.clone();
        shards.sort();
        shards.dedup();
        let parts: Vec<_> = shards
            .iter()
            .map(|&shard| {
                let rows: Vec<_> = all_rows.iter().copied().filter(|&r| by_row[r] == shard).collect();
                self.part(text, shard, &rows, ranges, given)
            })
            .collect();
        let mut parts = parts.into_iter();
        match (parts.next(), parts.len()) {
            (Some(only), 0) => Route::Forward(only),
            (first, _) => {
                let order = |s: &ShardId| shards.iter().position(|x| x == s).unwrap_or(0) as u16;
                Route::Scatter {
                    parts: first.into_iter().chain(parts).collect(),
                    merge: match self.returning {
                        true => Merge::Interleave(by_row.iter().map(order).collect()),
                        false => Merge::Concatenate,
                    },
                }
            }
        }
    }

    fn part(
        &self,
        text: &Arc<str>,
        shard: ShardId,
        rows: &[usize],
        ranges: &[Option<usize>],
        given: Option<&Given>,
    ) -> Part {
        let range = ranges[rows[0]];
        let one = rows.iter().all(|&r| ranges[r] == range);
        let child = range
            .filter(|_| one && self.address.direct)
            .map(|i| &self.sharded().ranges.ranges()[i].child);
        let (text, replaced, parameters) = self.rewrite(text, rows, child, given);
        let fences = match child.is_some() || self.partition.is_some() {
            true => Vec::new(),
            false => vec![self.sharded().fence.to_string().into()],
        };
        Part {
            shard,
            text,
            parameters,
            fences,
            replaced: replaced.into(),
        }
    }
}

/// A value as a column with this type modifier stores it; None where that needs PostgreSQL.
fn stored(value: KeyValue, modifier: i32) -> Option<KeyValue> {
    if modifier < 0 {
        return Some(value);
    }
    match value {
        // varchar(n): too long is an error on any shard, but blanks at the end are cut.
        KeyValue::Text(text) => {
            let most = (modifier - 4).max(0) as usize;
            let end = text.char_indices().nth(most).map_or(text.len(), |(at, _)| at);
            let blank = text[end..].bytes().all(|b| b == b' ');
            Some(KeyValue::Text(if blank { text[..end].to_owned() } else { text }))
        }
        KeyValue::Numeric(Numeric::Finite(number)) => {
            let scale = i64::from((modifier - 4) & 0x7ff);
            let fits = scale < 0x400 && number.normalized().fractional_digit_count() <= scale;
            fits.then_some(KeyValue::Numeric(Numeric::Finite(number)))
        }
        KeyValue::Timestamp(us) if us != i64::MAX && us != i64::MIN => {
            let step = 10_i64.pow(6 - modifier.clamp(0, 6) as u32);
            (us % step == 0).then_some(KeyValue::Timestamp(us))
        }
        other => Some(other),
    }
}

fn unreadable(column: &str, value: &str) -> ServerError {
    ServerError::unsupported(
        format!("the value {value} of shard key column \"{column}\" cannot be placed"),
        "Give the key as a constant in ISO form.",
    )
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

fn cell_kind(expr: &Expr, text: &str, tokens: &[crate::lexer::Token]) -> CellKind {
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
                home: subquery || functions::bound_to_home(text, tokens),
            }
        }
    }
}

/// A column's default where it is a constant; NULL for none.
fn default_scalar(default: Option<&str>) -> Option<Scalar> {
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
