//! Variables, and the values of expressions.

use super::inner::{Answer, Words};
use super::not_run;
use super::records::Record;
use super::run::Machine;
use crate::session::forward::no_block;
use crate::session::{Problem, Session};
use pgherd_model::{ServerError, SqlState, quote_literal};
use pgherd_sql::plpgsql::{Bound, Declaration, Found, NotUnderstood, VariableKind, bind};
use std::cell::RefCell;
use std::collections::BTreeMap;

pub(super) const NULL_VALUE: SqlState = SqlState::from_bytes(b"22004");
const ERROR_IN_ASSIGNMENT: SqlState = SqlState::from_bytes(b"22005");
const TOO_MANY_ROWS: SqlState = SqlState::from_bytes(b"21000");
/// No table has a column of this name.
const NO_COLUMN: &str = "\"\u{e000}pgherd\u{e000}\"";
const AMBIGUOUS: SqlState = SqlState::from_bytes(b"42702");
const NOT_ASSIGNED: SqlState = SqlState::from_bytes(b"55000");
const BOOL: u32 = 16;
const INT4: u32 = 23;
const TEXT: u32 = 25;
/// OIDs from here on are of types that users made, or PostgreSQL's rarer ones, which may be any.
const FIRST_ASKED: u32 = 10_000;

/// A value with its type, in text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) type_oid: u32,
    /// as SQL writes it
    pub(super) type_name: String,
    /// None for NULL
    pub(super) text: Option<String>,
}

impl Value {
    pub(super) fn of(type_oid: u32, type_name: &str, text: Option<String>) -> Self {
        Self {
            type_oid,
            type_name: type_name.to_owned(),
            text,
        }
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::of(TEXT, "text", Some(text.into()))
    }

    /// SQL that gives it.
    pub(super) fn literal(&self) -> String {
        match &self.text {
            Some(text) => format!("({}::{})", quote_literal(text), self.type_name),
            None => format!("(NULL::{})", self.type_name),
        }
    }
}

/// A variable.
#[derive(Debug)]
pub(super) enum Variable {
    Scalar {
        value: Value,
        constant: bool,
        not_null: bool,
    },
    Record(Record),
}

/// The variables of a block or a loop.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) label: Option<String>,
    pub(super) variables: Vec<(String, Variable)>,
}

impl Scope {
    fn find(&self, name: &str) -> Option<&Variable> {
        self.variables.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v)
    }
}

impl Machine {
    /// What a name in SQL stands for, the innermost first.
    pub(super) fn look_up(&self, names: &[String]) -> Found {
        let scopes = self.scopes.iter().rev();
        let of_variable = |variable: &Variable, field: Option<&String>| match (variable, field) {
            (Variable::Scalar { value, .. }, None) => Found::Value(value.literal()),
            // A table of that name, since the value has no fields.
            (Variable::Scalar { .. }, Some(_)) => Found::Nothing,
            (Variable::Record(record), None) => Found::Value(record.literal()),
            (Variable::Record(record), Some(field)) if field == "*" => {
                record.all_fields().map_or(Found::Unusable, Found::Value)
            }
            (Variable::Record(record), Some(field)) => record
                .field(field)
                .map_or(Found::Unusable, |value| Found::Value(value.literal())),
        };
        for scope in scopes {
            let found = match names {
                [name] | [name, _] if scope.find(name).is_some() => {
                    scope.find(name).map(|v| of_variable(v, names.get(1)))
                }
                [label, name] | [label, name, _] if scope.label.as_ref() == Some(label) => {
                    scope.find(name).map(|v| of_variable(v, names.get(2)))
                }
                _ => None,
            };
            if let Some(found) = found {
                return found;
            }
        }
        match (names, self.handled.last()) {
            ([name], _) if name == "found" => Found::Value(format!("({}::boolean)", self.found)),
            ([name], Some(error)) if name == "sqlstate" => Found::Value(Value::text(error.sqlstate().code()).literal()),
            ([name], Some(error)) if name == "sqlerrm" => {
                Found::Value(Value::text(error.fields().message.clone()).literal())
            }
            _ => Found::Nothing,
        }
    }

    fn variable(&mut self, target: &[String]) -> Option<(&mut Variable, Option<String>)> {
        for scope in self.scopes.iter_mut().rev() {
            let by_label = target.len() > 1 && scope.label.as_ref() == Some(&target[0]);
            let path = if by_label && scope.find(&target[1]).is_some() {
                &target[1..]
            } else {
                target
            };
            if path.len() <= 2
                && let Some((_, variable)) = scope.variables.iter_mut().rev().find(|(n, _)| *n == path[0])
            {
                return Some((variable, path.get(1).cloned()));
            }
        }
        None
    }

    /// What a variable, or a record's field, holds.
    pub(super) fn value_held(&mut self, target: &[String]) -> Option<Value> {
        match self.variable(target)? {
            (Variable::Scalar { value, .. }, None) => Some(value.clone()),
            (Variable::Record(record), Some(field)) => record.field(&field).cloned(),
            _ => None,
        }
    }

    /// What holds rows, if the target does.
    pub(super) fn record(&mut self, target: &[String]) -> Option<&mut Record> {
        match self.variable(target) {
            Some((Variable::Record(record), None)) => Some(record),
            _ => None,
        }
    }
}

pub(super) fn unknown(target: &[String]) -> ServerError {
    let message = format!("\"{}\" is not a known variable", target.join("."));
    ServerError::new(SqlState::SYNTAX_ERROR, message)
}

impl Session {
    /// The variables of a block, in a scope that is open.
    pub(super) async fn declare_variable(
        &mut self,
        machine: &mut Machine,
        declaration: &Declaration,
    ) -> Result<(), Problem> {
        let variable = match &declaration.kind {
            VariableKind::Record => Variable::Record(Record::default()),
            VariableKind::Row(table) => self.empty_row(table).await?,
            VariableKind::Of(written) => match self.type_of(written).await? {
                (_, kind) if kind == "c" => self.empty_row(written).await?,
                (oid, _) => Variable::Scalar {
                    value: Value::of(oid, written, None),
                    constant: false,
                    not_null: false,
                },
            },
            VariableKind::OfColumn(table, column) => {
                let sql = format!(
                    "SELECT a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a \
                     WHERE a.attrelid = {}::pg_catalog.regclass AND a.attname = {} AND NOT a.attisdropped",
                    quote_literal(table),
                    quote_literal(column)
                );
                let answer = self.run_inner(&sql).await?;
                let row = answer.rows.first().ok_or_else(|| {
                    let message = format!("column \"{column}\" of relation \"{table}\" does not exist");
                    ServerError::new(SqlState::UNDEFINED_COLUMN, message)
                })?;
                let cell = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
                Variable::Scalar {
                    value: Value::of(cell(0).parse().unwrap_or(0), &cell(1), None),
                    constant: false,
                    not_null: false,
                }
            }
        };
        let name = declaration.name.clone();
        let target = [name.clone()];
        let is_row = matches!(variable, Variable::Record(_));
        let value = match &declaration.default {
            Some(expression) if !is_row => Some(self.value_of(machine, expression).await?),
            _ => None,
        };
        if let Some(scope) = machine.scopes.last_mut() {
            scope.variables.push((name, variable));
        }
        if let Some(expression) = declaration.default.as_ref().filter(|_| is_row) {
            return self
                .assign_row(machine, &target, expression, Words::expression(expression))
                .await;
        }
        if let Some(value) = value {
            self.assign(machine, &target, value).await?;
        }
        if let Some((
            Variable::Scalar {
                value,
                constant,
                not_null,
            },
            _,
        )) = machine.variable(&target)
        {
            (*constant, *not_null) = (declaration.constant, declaration.not_null);
            if declaration.not_null && value.text.is_none() {
                let message = format!(
                    "variable \"{}\" must have a default value, since it's declared NOT NULL",
                    target[0]
                );
                return Err(ServerError::new(SqlState::SYNTAX_ERROR, message).into());
            }
        }
        Ok(())
    }

    /// A row of a table or composite type, all NULL.
    async fn empty_row(&mut self, written: &str) -> Result<Variable, Problem> {
        let sql = format!(
            "SELECT a.attname, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a \
             JOIN pg_catalog.pg_type t ON t.typrelid = a.attrelid \
             WHERE t.oid = pg_catalog.pg_typeof(NULL::{written})::pg_catalog.oid AND a.attnum > 0 AND NOT a.attisdropped \
             ORDER BY a.attnum"
        );
        let answer = self.run_inner(&sql).await?;
        let fields = answer.rows.into_iter().filter_map(|row| match &row[..] {
            [Some(name), Some(oid), Some(of)] => Some((name.clone(), Value::of(oid.parse().ok()?, of, None))),
            _ => None,
        });
        Ok(Variable::Record(Record::of(written, fields.collect())))
    }

    /// The OID and pg_type.typtype of a type as written.
    async fn type_of(&mut self, written: &str) -> Result<(u32, String), Problem> {
        match written.to_ascii_lowercase().as_str() {
            "text" => return Ok((TEXT, "b".into())),
            "int" | "integer" | "int4" => return Ok((INT4, "b".into())),
            "boolean" | "bool" => return Ok((BOOL, "b".into())),
            _ => {}
        }
        let sql = format!(
            "SELECT t.oid, t.typtype FROM pg_catalog.pg_type t WHERE t.oid = pg_catalog.pg_typeof(NULL::{written})::pg_catalog.oid"
        );
        let answer = self.run_inner(&sql).await?;
        let cell = |at: usize| answer.rows.first().and_then(|row| row.get(at).cloned().flatten());
        match (cell(0).and_then(|oid| oid.parse().ok()), cell(1)) {
            (Some(oid), Some(kind)) => Ok((oid, kind)),
            _ => Err(ServerError::new(SqlState::UNDEFINED_OBJECT, format!("type \"{written}\" does not exist")).into()),
        }
    }

    /// How SQL writes the type of this OID.
    pub(super) async fn type_name(&mut self, machine: &mut Machine, oid: u32) -> Result<String, Problem> {
        let known = match oid {
            BOOL => Some("boolean"),
            INT4 => Some("integer"),
            TEXT => Some("text"),
            _ => None,
        };
        if let Some(known) = known {
            return Ok(known.to_owned());
        }
        if let Some(name) = machine.type_names.get(&oid) {
            return Ok(name.clone());
        }
        let answer = self
            .run_inner(&format!("SELECT pg_catalog.format_type({oid}, -1)"))
            .await?;
        let name = answer.rows.first().and_then(|row| row.first().cloned().flatten());
        let name = name.ok_or_else(|| ServerError::internal(format!("type {oid} has no name")))?;
        // Another name may be another type after a change of search_path.
        if oid < FIRST_ASKED {
            machine.type_names.insert(oid, name.clone());
        }
        Ok(name)
    }

    /// An expression's one value.
    pub(super) async fn value_of(&mut self, machine: &mut Machine, expression: &str) -> Result<Value, Problem> {
        self.value_in(machine, expression, Words::expression(expression)).await
    }

    pub(super) async fn value_in(
        &mut self,
        machine: &mut Machine,
        expression: &str,
        words: Words<'_>,
    ) -> Result<Value, Problem> {
        let answer = self.query(machine, &format!("SELECT {expression}"), words).await?;
        match &answer.columns[..] {
            [_] => {}
            columns => {
                let message = format!("query returned {} columns", columns.len());
                return Err(ServerError::new(SqlState::SYNTAX_ERROR, message)
                    .with_hint("An expression has one value.")
                    .into());
            }
        }
        if answer.rows.len() > 1 {
            return Err(ServerError::new(TOO_MANY_ROWS, "query returned more than one row").into());
        }
        let text = answer.rows.first().and_then(|row| row[0].clone());
        let type_oid = answer.columns[0].1;
        if text.is_some() {
            self.check_values(machine, [type_oid]).await?;
        }
        let type_name = self.type_name(machine, type_oid).await?;
        Ok(Value {
            type_oid,
            type_name,
            text,
        })
    }

    /// Refuses values whose text means others under the session's settings.
    pub(super) async fn check_values(
        &mut self,
        machine: &mut Machine,
        types: impl IntoIterator<Item = u32>,
    ) -> Result<(), Problem> {
        let types: Vec<_> = types.into_iter().filter(|oid| !machine.exact.contains(oid)).collect();
        if !types.is_empty() {
            self.check_text(types.iter().copied()).await?;
            machine.exact.extend(types);
        }
        Ok(())
    }

    /// Whether a condition is true; NULL is not.
    pub(super) async fn is_true(&mut self, machine: &mut Machine, condition: &str) -> Result<bool, Problem> {
        let value = self.value_of(machine, condition).await?;
        let value = self.cast(value, BOOL, "boolean").await?;
        Ok(value.text.as_deref() == Some("t"))
    }

    /// An integer, as the bounds of loops are.
    pub(super) async fn integer(&mut self, machine: &mut Machine, expression: &str) -> Result<Option<i64>, Problem> {
        let value = self.value_of(machine, expression).await?;
        let value = self.cast(value, INT4, "integer").await?;
        Ok(value.text.and_then(|text| text.parse().ok()))
    }

    /// Gives a variable, or a record's field, a value.
    pub(super) async fn assign(
        &mut self,
        machine: &mut Machine,
        target: &[String],
        value: Value,
    ) -> Result<(), Problem> {
        let held = match machine.variable(target) {
            Some((
                Variable::Scalar {
                    value: held, constant, ..
                },
                None,
            )) => {
                if *constant {
                    let message = format!("variable \"{}\" is declared CONSTANT", target.join("."));
                    return Err(ServerError::new(ERROR_IN_ASSIGNMENT, message).into());
                }
                held.clone()
            }
            Some((Variable::Record(record), Some(_))) if !record.has_fields() => {
                let message = format!("record \"{}\" is not assigned yet", target[0]);
                return Err(ServerError::new(NOT_ASSIGNED, message)
                    .with_detail("The tuple structure of a not-yet-assigned record is indeterminate.")
                    .into());
            }
            Some((Variable::Record(record), Some(field))) => {
                let found = record.field(&field).cloned();
                found.ok_or_else(|| {
                    let message = format!("record \"{}\" has no field \"{field}\"", target[0]);
                    ServerError::new(SqlState::UNDEFINED_COLUMN, message)
                })?
            }
            Some((Variable::Record(_), None)) => {
                let why = format!("\"{}\" is a row, which gets its value by INTO only.", target.join("."));
                return Err(not_run(NotUnderstood(why)));
            }
            _ => return Err(unknown(target).into()),
        };
        let new = self.cast(value, held.type_oid, &held.type_name).await?;
        if new.text.is_some() {
            self.check_values(machine, [new.type_oid]).await?;
        }
        match machine.variable(target) {
            Some((Variable::Scalar { value, not_null, .. }, None)) => {
                if *not_null && new.text.is_none() {
                    let message = format!(
                        "null value cannot be assigned to variable \"{}\" declared NOT NULL",
                        target.join(".")
                    );
                    return Err(ServerError::new(NULL_VALUE, message).into());
                }
                *value = new;
            }
            Some((Variable::Record(record), Some(field))) => record.set_field(&field, new),
            _ => {}
        }
        Ok(())
    }

    /// A row into its targets; None: NULL for all of them.
    pub(super) async fn put_row(
        &mut self,
        machine: &mut Machine,
        targets: &[Vec<String>],
        answer: &Answer,
        row: Option<&[Option<String>]>,
    ) -> Result<(), Problem> {
        let mut values = Vec::with_capacity(answer.columns.len());
        self.check_values(machine, answer.columns.iter().map(|(_, oid)| *oid))
            .await?;
        for (at, (name, oid)) in answer.columns.iter().enumerate() {
            let type_name = self.type_name(machine, *oid).await?;
            let text = row.and_then(|row| row.get(at).cloned().flatten());
            values.push((name.clone(), Value::of(*oid, &type_name, text)));
        }
        if let [target] = targets
            && let Some(record) = machine.record(target)
        {
            let values = match record.shape() {
                Some(shape) => self.shaped(machine, shape, values).await?,
                None => values,
            };
            if let Some(record) = machine.record(target) {
                record.set(values);
            }
            return Ok(());
        }
        let mut values = values.into_iter();
        for target in targets {
            let value = values.next().map_or(Value::of(TEXT, "text", None), |(_, value)| value);
            self.assign(machine, target, value).await?;
        }
        Ok(())
    }

    /// Runs a statement with values in place of its variables.
    pub(super) async fn query(
        &mut self,
        machine: &mut Machine,
        text: &str,
        words: Words<'_>,
    ) -> Result<Answer, Problem> {
        let asked = RefCell::new(BTreeMap::new());
        let bound = bind(text, &|names, at| {
            let found = machine.look_up(names);
            if let ([name], Some(at), Found::Value(_)) = (names, at, &found) {
                asked.borrow_mut().insert(at, name.clone());
            }
            found
        });
        let bound = bound.map_err(not_run)?;
        if !bound.is_unchanged() && !machine.clear.contains(text) {
            let judged = self.refuse_ambiguous(machine, text, &asked.into_inner()).await;
            judged.map_err(|problem| match problem {
                Problem::Error(mut error) => {
                    words.tell(&mut error);
                    error.into()
                }
                other => other,
            })?;
            machine.clear.insert(text.to_owned());
        }
        self.run_told(machine, &bound, words).await
    }

    /// 42702, as PostgreSQL has it, where a variable's name is a column's as well. Which names are columns is for PostgreSQL to say: it
    /// reads the statement with one variable left in it, and misses that one where it is no column. `names` are the variables by the
    /// bytes at which they stand.
    async fn refuse_ambiguous(
        &mut self,
        machine: &Machine,
        text: &str,
        names: &BTreeMap<usize, String>,
    ) -> Result<(), Problem> {
        if !reads_relations(text) {
            return Ok(());
        }
        let mut columns = BTreeMap::new();
        for (place, name) in names {
            if self.is_column(machine, text, *place).await? {
                columns.insert(*place, name);
            }
        }
        let Some((place, _)) = columns.first_key_value() else {
            return Ok(());
        };
        // Which of them PostgreSQL meets first, it says where none of them is a column.
        let marked = bind(text, &|names, at| match at {
            Some(at) if columns.contains_key(&at) => Found::Value(NO_COLUMN.to_owned()),
            _ => machine.look_up(names),
        });
        let met = self.misses(&marked.map_err(not_run)?).await?;
        let place = met
            .and_then(|met| columns.keys().find(|place| position_of(text, **place) == met))
            .unwrap_or(place);
        let message = format!("column reference \"{}\" is ambiguous", columns[place]);
        Err(ServerError::new(AMBIGUOUS, message)
            .with_detail("It could refer to either a PL/pgSQL variable or a table column.")
            .with_position(Some(position_of(text, *place)))
            .into())
    }

    /// Whether the name at a byte is a column's, and is met before anything else is found wrong.
    async fn is_column(&mut self, machine: &Machine, text: &str, place: usize) -> Result<bool, Problem> {
        let with = |found: Found| {
            bind(text, &|names, at| match at {
                Some(at) if at == place => found.clone(),
                _ => machine.look_up(names),
            })
            .map_err(not_run)
        };
        let own = Some(position_of(text, place));
        let left = with(Found::Nothing)?;
        let judged = self.judge_apart(&left.text).await?;
        let Some(error) = judged else {
            return Ok(true);
        };
        if error.fields().position.map(|at| left.map_position(at)) == own {
            return Ok(![SqlState::UNDEFINED_COLUMN, SqlState::UNDEFINED_TABLE].contains(&error.sqlstate()));
        }
        let marked = with(Found::Value(NO_COLUMN.to_owned()))?;
        Ok(self.misses(&marked).await? == own)
    }

    /// The position of the first column that PostgreSQL misses in a statement, if that is what it finds wrong first.
    async fn misses(&mut self, bound: &Bound) -> Result<Option<u32>, Problem> {
        let error = self.judge_apart(&bound.text).await?;
        let error = error.filter(|error| error.sqlstate() == SqlState::UNDEFINED_COLUMN);
        let position = error.and_then(|error| error.fields().position);
        Ok(position.map(|at| bound.map_position(at)))
    }

    /// What the home shard says against a statement that is only to be read.
    async fn judge_apart(&mut self, text: &str) -> Result<Option<ServerError>, Problem> {
        if !self.may_hold_tables() && self.who.pin.is_none() {
            let mut backend = self.home_backend().await?;
            return Ok(pgherd_query::describe(&mut backend, text, &[]).await.err());
        }
        // In the transaction, which made some of what the statement names; an error there is undone.
        let savepoint = "pgherd look";
        self.set_savepoint(savepoint).await?;
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let backend = open.transaction.participant(home).await?;
        let judged = pgherd_query::describe(backend, text, &[]).await.err();
        self.back_to_savepoint(savepoint).await?;
        self.release_savepoint(savepoint).await?;
        Ok(judged)
    }
}

/// A byte of a text as a position, in characters from 1.
fn position_of(text: &str, byte: usize) -> u32 {
    let characters = text.char_indices().take_while(|(at, _)| *at < byte).count();
    u32::try_from(characters + 1).unwrap_or(u32::MAX)
}

/// Whether a statement may have columns in it.
fn reads_relations(text: &str) -> bool {
    let tokens = pgherd_sql::lexer::tokenize(text).unwrap_or_default();
    let words = ["from", "insert", "update", "delete", "merge", "table", "join"];
    tokens
        .iter()
        .any(|token| words.iter().any(|word| token.is_word(text, word)))
}
