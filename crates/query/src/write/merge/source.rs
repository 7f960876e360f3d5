//! The SELECT that finds what a MERGE does: its source left joined with its target, and for each pair of rows that a WHEN takes
//! the number of that WHEN, who the target's row is, and the values that it is given.
//!
//! The values of a WHEN stand inside a CASE, because nothing of a WHEN that is not taken may be computed. What WHEN NOT MATCHED names
//! are columns of the source alone, also where the target has columns of the same names.

use super::super::shape::{Shape, Value};
use super::super::source::{Item, Source, column_type, key_sql, refuse_parts_with_key, set_types, value_sql};
use super::super::target::Target;
use super::shape::{Action, Clause, MergeShape};
use crate::Transaction;
use crate::carrier::{Carrier, TargetType, carriers};
use crate::gather::IDENTITY;
use crate::statement::{Statement, describe};
use pgherd_model::{ServerError, quote_identifier};
use pgherd_sql::lexer::tokenize;
use std::ops::Range;

/// Columns of the SELECT in front of the values.
const IN_FRONT: usize = 2;

/// What one WHEN writes: its place among the clauses, an UPDATE's or DELETE's parts, and where its values are.
pub(super) struct Written {
    pub clause: usize,
    pub inserts: bool,
    pub shape: Shape,
    pub source: Source,
}

impl Written {
    /// What is deleted goes first, what is inserted comes last.
    pub fn rank(&self) -> u8 {
        match (self.shape.deletes, self.inserts) {
            (true, _) => 0,
            (_, false) => 1,
            _ => 2,
        }
    }
}

/// The values that a WHEN gives columns, while the SELECT is made.
#[derive(Default)]
struct Given {
    clause: usize,
    set: Vec<(String, Option<usize>)>,
    inserted: Vec<(String, usize)>,
    /// the new key as the target stores it
    keys: Vec<String>,
}

/// The SELECT's list, as it grows.
struct List<'a> {
    target: &'a Target,
    shape: &'a MergeShape,
    items: Vec<Item>,
}

/// Builds the SELECT, and asks the home shard for its types.
pub(super) async fn build(
    statement: &Statement<'_>,
    shape: &MergeShape,
    target: &Target,
    transaction: &mut Transaction,
) -> Result<Vec<Written>, ServerError> {
    let mut list = List {
        target,
        shape,
        items: Vec::new(),
    };
    let mut given = Vec::new();
    for (number, clause) in shape.clauses.iter().enumerate() {
        let mut one = match &clause.action {
            Action::Nothing => continue,
            Action::Delete => Given::default(),
            Action::Update(set) => {
                let home = transaction.participant(statement.snapshot.home()).await?;
                list.update(number, set, set_types(target, set, home).await?)?
            }
            Action::Insert { .. } => list.insert(number, &clause.action)?,
        };
        one.clause = number;
        given.push(one);
    }
    let home = transaction.participant(statement.snapshot.home()).await?;
    let bounds = super::bounds::bounds(statement, shape, target, home).await?;
    let keys: Vec<String> = given.iter().flat_map(|g| g.keys.clone()).collect();
    let whole = |identity: &str| {
        let parts = (&list.items[..], &keys[..], bounds.as_deref());
        select(statement.text, shape, target, parts, identity)
    };
    let described = describe(home, &whole("CAST('' AS pg_catalog.text)").0, statement.parameter_types).await;
    let columns = described
        .map_err(|error| not_in_parts(&error))?
        .columns
        .unwrap_or_default();
    let types: Vec<u32> = columns
        .iter()
        .skip(IN_FRONT)
        .take(list.items.len())
        .map(|c| c.type_oid)
        .collect();
    let own_type = |(oid, (_, target)): (&u32, &Item)| {
        let sql = String::new();
        target.clone().unwrap_or(TargetType { oid: *oid, sql })
    };
    let targets: Vec<_> = types.iter().zip(&list.items).map(own_type).collect();
    let carriers = carriers(home, &types, &targets).await?;
    Carrier::check(&carriers)?;
    let (sql, target_at) = whole(&format!("{}.{IDENTITY}", quote_identifier(&shape.target.alias)));
    let mut formats = vec![0; IN_FRONT];
    formats.extend(carriers.iter().map(|c| c.format));
    formats.extend(keys.iter().map(|_| 1));
    let mut key_at = IN_FRONT + carriers.len();
    let written = |given: Given| {
        let clause = &shape.clauses[given.clause];
        let key = key_at..key_at + given.keys.len();
        key_at = key.end;
        Written {
            clause: given.clause,
            inserts: matches!(clause.action, Action::Insert { .. }),
            shape: Shape {
                deletes: clause.action == Action::Delete,
                ..shape.target.clone()
            },
            source: Source {
                sql: sql.clone(),
                target_at,
                formats: formats.clone(),
                set: given.set,
                inserted: given.inserted,
                carriers: carriers.clone(),
                places: (IN_FRONT..IN_FRONT + carriers.len()).collect(),
                carried: Vec::new(),
                key: key.collect(),
            },
        }
    };
    Ok(given.into_iter().map(written).collect())
}

/// PostgreSQL has taken the client's statement, so what it says against ours is not the client's fault.
fn not_in_parts(error: &ServerError) -> ServerError {
    ServerError::unsupported(
        "this MERGE is not supported where it needs rows of more than one shard",
        "Name single columns of the source and the target.",
    )
    .with_detail(format!("In parts: {}.", error.fields().message))
}

impl List<'_> {
    /// Adds a value that is computed where this clause is taken.
    fn add(&mut self, clause: usize, sql: &str, target: Option<TargetType>) -> usize {
        let sql = match self.shape.clauses[clause].matched {
            true => format!("({sql})"),
            false => of_source(self.shape, self.target, sql),
        };
        let chosen = format!("CASE WHEN pgherd_m.pgherd_a = {} THEN {sql} END", clause + 1);
        self.items.push((chosen, target));
        self.items.len() - 1
    }

    fn update(
        &mut self,
        clause: usize,
        set: &[(String, Value)],
        types: Vec<Option<TargetType>>,
    ) -> Result<Given, ServerError> {
        let target = self.target;
        let sharded = target.sharded();
        let keyed = sharded.is_some_and(|s| set.iter().any(|(name, _)| s.key.contains(name)));
        refuse_parts_with_key(set, keyed)?;
        let mut given = Given::default();
        for ((name, value), of_type) in set.iter().zip(types) {
            let written = quote_identifier(name) + value.part();
            let value = value_sql(target, name, value, keyed)?;
            let place = value.map(|sql| self.add(clause, &sql, of_type));
            given.set.push((written, place));
            given.inserted.extend(place.map(|place| (name.clone(), place)));
        }
        let (Some(sharded), true) = (sharded, keyed) else {
            return Ok(given);
        };
        for column in &target.columns {
            let is_generated = target.is_generated(&column.name);
            if is_generated || set.iter().any(|(name, _)| *name == column.name) {
                continue;
            }
            let alias = quote_identifier(&self.shape.target.alias);
            let sql = format!("{alias}.{}", quote_identifier(&column.name));
            let place = self.add(clause, &sql, column_type(target, &column.name));
            given.inserted.push((column.name.clone(), place));
        }
        given.keys = key_sql(sharded, &given.inserted, &self.items)?;
        Ok(given)
    }

    fn insert(&mut self, clause: usize, action: &Action) -> Result<Given, ServerError> {
        let Action::Insert {
            columns,
            values,
            ignores_identity,
        } = action
        else {
            return Ok(Given::default());
        };
        let target = self.target;
        let all = || target.columns.iter().map(|c| c.name.clone()).collect();
        let names: Vec<String> = columns.clone().unwrap_or_else(all);
        let named = |name: &str| names.iter().position(|n| n == name);
        let given_value = |name: &str| values.as_ref().and_then(|values| values.get(named(name)?));
        let is_default = |name: &str| match given_value(name) {
            None | Some(Value::Default) => true,
            Some(_) => *ignores_identity && target.has_identity(name),
        };
        // An INSERT wants a column at least.
        let nothing = target.columns.iter().all(|c| is_default(&c.name));
        let mut given = Given::default();
        for column in target.columns.iter().filter(|c| !target.is_generated(&c.name)) {
            let in_key = target.sharded().is_some_and(|s| s.key.contains(&column.name));
            let sql = match given_value(&column.name).filter(|_| !is_default(&column.name)) {
                Some(value) => value_sql(target, &column.name, value, true)?,
                None => value_sql(target, &column.name, &Value::Default, in_key || nothing)?,
            };
            if let Some(sql) = sql {
                let place = self.add(clause, &sql, column_type(target, &column.name));
                given.inserted.push((column.name.clone(), place));
            }
        }
        if let Some(sharded) = target.sharded() {
            given.keys = key_sql(sharded, &given.inserted, &self.items)?;
        }
        // Defaults of the home shard's own tables are not known here.
        if given.inserted.is_empty() {
            return Err(ServerError::unsupported(
                "MERGE cannot insert a row of defaults into a local table yet where it reads several shards",
                "Name a column of the INSERT, and its value.",
            ));
        }
        Ok(given)
    }
}

/// An expression in which names are columns of the source: where the target has one of that name, the source is put nearer.
fn of_source(shape: &MergeShape, target: &Target, sql: &str) -> String {
    let tokens = tokenize(sql).unwrap_or_default();
    let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(sql, symbol));
    let of_both = |i: usize| {
        let qualified = i > 0 && is(i - 1, ".") || is(i + 1, ".");
        let name = tokens[i].identifier(sql).filter(|_| !qualified);
        name.is_some_and(|name| target.columns.iter().any(|c| c.name == name))
    };
    match (0..tokens.len()).any(of_both) {
        true => {
            let nearer = |alias: &String| {
                let alias = quote_identifier(alias);
                format!("(SELECT {alias}.*) AS {alias}")
            };
            let sources: Vec<_> = shape.source_aliases.iter().map(nearer).collect();
            format!("(SELECT {sql} FROM {})", sources.join(", "))
        }
        false => format!("({sql})"),
    }
}

/// The number of the WHEN that takes a pair of rows, from 1; 0 where nothing is done.
fn taken(text: &str, shape: &MergeShape, target: &Target, identity: &str) -> String {
    let of = |matched: bool| {
        let mut whens = String::new();
        for (number, clause) in shape.clauses.iter().enumerate().filter(|(_, c)| c.matched == matched) {
            let number = match clause.action {
                Action::Nothing => 0,
                _ => number + 1,
            };
            whens.push_str(&format!(
                " WHEN {} THEN {number}",
                condition(text, shape, target, clause)
            ));
        }
        match whens.is_empty() {
            true => "0".to_owned(),
            false => format!("CASE{whens} ELSE 0 END"),
        }
    };
    format!(
        "CASE WHEN {identity} IS NOT NULL THEN {} ELSE {} END",
        of(true),
        of(false)
    )
}

fn condition(text: &str, shape: &MergeShape, target: &Target, clause: &Clause) -> String {
    let piece = |span: &Range<usize>| text[span.clone()].to_owned();
    match (&clause.condition, clause.matched) {
        (None, _) => "true".to_owned(),
        (Some(span), true) => format!("({})", piece(span)),
        (Some(span), false) => of_source(shape, target, &piece(span)),
    }
}

/// The whole SELECT with this expression as the identity, and where it names the target.
fn select(
    text: &str,
    shape: &MergeShape,
    target: &Target,
    (items, keys, bounds): (&[Item], &[String], Option<&str>),
    identity: &str,
) -> (String, usize) {
    let keys: Vec<_> = keys.iter().map(|key| format!(", {key}")).collect();
    let mut sql = format!("SELECT pgherd_rows.*{} FROM (", keys.concat());
    sql.push_str(&text[shape.target.with.clone()]);
    sql.push_str(&format!(" SELECT {identity} AS {IDENTITY}, pgherd_m.pgherd_a"));
    for (number, (item, _)) in items.iter().enumerate() {
        sql.push_str(&format!(", {item} AS pgherd_v{number}"));
    }
    sql.push_str(&format!(" FROM {} LEFT JOIN ", &text[shape.source.clone()]));
    let at = sql.len();
    sql.push_str(&text[shape.target.target.clone()]);
    sql.push_str(&format!(" ON ({})", &text[shape.on.clone()]));
    if let Some(bounds) = bounds {
        sql.push_str(&format!(" AND {bounds}"));
    }
    // OFFSET keeps it from being computed again for every value.
    sql.push_str(&format!(
        " CROSS JOIN LATERAL (SELECT {} AS pgherd_a OFFSET 0) AS pgherd_m) AS pgherd_rows WHERE pgherd_rows.pgherd_a > 0",
        taken(text, shape, target, identity)
    ));
    (sql, at)
}
