//! INSERT … SELECT where the target, or what the source reads, lies on several shards.
//!
//! 1. The source runs once: on the home participant when it reads no sharded table, else by gathering. It is wrapped so
//!    that it also gives the key as the target stores it, and defaults that must not be taken per shard (sequences, now()).
//! 2. Each row goes to the shard of its key, in batches: `INSERT INTO t (…) SELECT … FROM unnest(…)`, with the
//!    statement's own ON CONFLICT and RETURNING. The shard does the assignment casts, checks and triggers.
//!
//! A batch is a statement of its own on its shard: statement triggers fire per batch. ON CONFLICT wants to see all rows of a
//! statement, so it gets one batch per shard and a limit on its size.

mod columns;
mod conflict;
mod source;
mod target;
mod upsert;
mod upsert_moves;
pub(crate) mod upsert_write;
mod values;
mod write;

use crate::carrier::TargetType;
use crate::rows::Rows;
use crate::statement::Statement;
use crate::{Engine, Fragment, Transaction};
use pgherd_model::{Column, Name, Range, Resolved, ServerError, ShardId, Table, quote_identifier};
use pgherd_shards::{Backend, ColumnDescription};
use pgherd_sql::lexer::{depths, tokenize};
pub(crate) use source::base_type;
use std::sync::Arc;
use target::Target;
pub(crate) use upsert::Upsert;

/// Where rows go, and as what.
pub(crate) struct Plan {
    target: Target,
    /// the sharded table; None for a table of the home shard
    table: Option<Arc<Table>>,
    /// the columns that are given a value, in the order of the source's columns; empty for a local table without a list
    columns: Vec<String>,
    types: Vec<TargetType>,
    /// defaults to compute with the source, for the last of `columns`
    defaults: Vec<String>,
    /// the columns' places in `columns` of the key's columns; None for a key column that is left NULL
    key: Vec<Option<usize>>,
}

/// Runs an INSERT … SELECT over several shards. Returns the number of rows inserted, and those of RETURNING.
///
/// # Errors
/// PostgreSQL's own; 0A000 for what cannot be done exactly.
pub async fn insert_select<'t>(
    statement: Statement<'_>,
    returning: Option<&[ColumnDescription]>,
    transaction: &'t mut Transaction,
    engine: &Engine,
) -> Result<(u64, Option<Rows<'t>>), ServerError> {
    let _ = engine;
    let prepared = Prepared::read(&statement, transaction).await?;
    let statement = Statement {
        text: &prepared.text,
        ..statement
    };
    let target = target::parse(statement.text)?;
    let updates = prepared.updates;
    check(&statement, &target, updates)?;
    let plan = plan(&statement, target)?;
    let (count, rows) = match updates {
        true => {
            let upsert = upsert::build(statement, &prepared.with, plan, transaction).await?;
            crate::write::upsert(&upsert, transaction).await?
        }
        false => write::run(&statement, plan, transaction).await?,
    };
    Ok((count, returning.map(|_| Rows::ready(rows))))
}

/// The statement in the words in which it runs.
struct Prepared {
    /// `WITH …` that stays in front, or empty
    with: String,
    text: String,
    /// its ON CONFLICT reads tables, or may give rows other keys
    updates: bool,
}

impl Prepared {
    /// With VALUES whose expressions have their columns' types, and WITH behind INTO where nothing but the source needs it.
    async fn read(statement: &Statement<'_>, transaction: &mut Transaction) -> Result<Self, ServerError> {
        let (with, insert) = target::split_with(statement.text);
        let target = target::parse(insert)?;
        let source = &insert[target.source.clone()];
        let is_values = source
            .trim_start()
            .get(..6)
            .is_some_and(|word| word.eq_ignore_ascii_case("values"));
        let mut text = insert.to_owned();
        if is_values {
            let lookup = lookup(statement, &target);
            let home = transaction.participant(statement.snapshot.home()).await?;
            let columns = columns::read(&lookup, home).await?;
            text = values::assigned(insert, &target, &columns)?.unwrap_or(text);
        }
        let target = target::parse(&text)?;
        let tail = &text[target.tail.clone()];
        let resolved = statement
            .snapshot
            .resolve(target.schema.as_deref(), &target.name, statement.search_path);
        let updates = conflict::reads_tables(tail)
            || matches!(&resolved, Resolved::Known(table) if upsert_moves::sets_key(tail, &table.clone().placed()));
        if with.is_empty() || updates {
            let with = with.to_owned();
            return Ok(Self { with, text, updates });
        }
        let whole = format!("{with} {text}");
        let text = target::with_behind(&whole).unwrap_or(whole);
        Ok(Self {
            with: String::new(),
            text,
            updates,
        })
    }
}

/// The target's name as SQL, for the home shard.
fn lookup(statement: &Statement<'_>, target: &Target) -> String {
    let resolved = statement
        .snapshot
        .resolve(target.schema.as_deref(), &target.name, statement.search_path);
    match resolved {
        Resolved::Known(table) => table.name.to_string(),
        Resolved::Home => target.home_name(),
    }
}

/// What is asked of which shard for the rows; for EXPLAIN.
pub(crate) async fn fragments(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
) -> Result<Vec<(Option<String>, Fragment)>, ServerError> {
    let prepared = Prepared::read(statement, transaction).await?;
    let statement = &Statement {
        text: &prepared.text,
        ..*statement
    };
    let target = target::parse(statement.text)?;
    check(statement, &target, prepared.updates)?;
    let mut plan = plan(statement, target)?;
    if prepared.updates {
        let upsert = upsert::build(*statement, &prepared.with, plan, transaction).await?;
        let select = Statement {
            text: &upsert.find,
            ..*statement
        };
        return crate::gather::fragments(&select, Some(upsert.target_at), transaction).await;
    }
    let wrapped = source::wrap(statement, &mut plan, transaction).await?;
    source::fragments(statement, &wrapped.sql, transaction).await
}

/// Refuses what would run on each shard and read that shard's rows only, and what is no query.
fn check(statement: &Statement<'_>, target: &Target, updates: bool) -> Result<(), ServerError> {
    let tail = &statement.text[target.tail.clone()];
    let tokens = tokenize(tail).unwrap_or_default();
    let has = |word: &str| tokens.iter().any(|token| token.is_word(tail, word));
    let known = |name: &str| statement.snapshot.relations.contains_key(name);
    let sharded = known(&target.name);
    let names_known = || {
        tokens
            .iter()
            .filter_map(|token| token.identifier(tail))
            .any(|name| known(&name))
    };
    let source = statement.text[target.source.clone()].trim_start();
    if source.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("default")) {
        return Err(ServerError::unsupported(
            "DEFAULT VALUES is not supported where INSERT needs rows of more than one shard",
            "Name a column, with VALUES (DEFAULT).",
        ));
    }
    // What a value is of is PostgreSQL's to say: its type is not the column's.
    if target.has_parts()
        && (updates || tokenize(source).is_ok_and(|tokens| tokens.first().is_some_and(|t| t.is_word(source, "values"))))
    {
        return Err(ServerError::unsupported(
            "parts of columns cannot be given values here where INSERT needs rows of more than one shard",
            "Give whole columns values.",
        ));
    }
    // On other shards than the home shard, local tables are not there either.
    let reads = (has("select") && has("from") || has("table")) && (sharded || names_known());
    if reads && !updates {
        return Err(ServerError::unsupported(
            "ON CONFLICT and RETURNING of this INSERT cannot read tables",
            "Read first and then write, or use INSERT … SELECT without them.",
        ));
    }
    Ok(())
}

fn plan(statement: &Statement<'_>, target: Target) -> Result<Plan, ServerError> {
    let resolved = statement
        .snapshot
        .resolve(target.schema.as_deref(), &target.name, statement.search_path);
    let table = match resolved {
        Resolved::Home => None,
        Resolved::Known(table) => {
            let table = table.placed();
            if table.sharded().is_none() {
                return Err(ServerError::unsupported(
                    format!(
                        "INSERT … SELECT into \"{}\" is not supported over several shards",
                        target.name
                    ),
                    "Insert into the sharded table itself.",
                ));
            }
            Some(table)
        }
    };
    let Some(table) = table else {
        return Ok(Plan {
            columns: target.columns.clone().unwrap_or_default(),
            target,
            table: None,
            types: Vec::new(),
            defaults: Vec::new(),
            key: Vec::new(),
        });
    };
    Ok(Plan {
        columns: Vec::new(),
        types: Vec::new(),
        defaults: Vec::new(),
        key: Vec::new(),
        target,
        table: Some(table),
    })
}

impl Plan {
    /// Decides the columns, now that the source's number of columns is known.
    fn complete(&mut self, given: usize) -> Result<(), ServerError> {
        let Some(table) = self.table.clone() else {
            return Ok(());
        };
        let given: Vec<&Column> = match &self.target.columns {
            Some(names) => {
                let columns = names
                    .iter()
                    .map(|n| table.column(n).ok_or_else(|| unknown_column(n, &table)));
                columns.collect::<Result<_, _>>()?
            }
            None => table.columns.iter().take(given).collect(),
        };
        table.refuse_other_names(given.iter().map(|c| &*c.name))?;
        if self.target.ignores_identities && given.iter().any(|c| c.identity.is_some()) {
            return Err(ServerError::unsupported(
                "OVERRIDING USER VALUE is not supported where INSERT needs rows of more than one shard",
                "Leave the identity column out of the list.",
            ));
        }
        let omitted = table.columns.iter().filter(|c| !given.iter().any(|g| g.name == c.name));
        let defaults: Vec<_> = omitted
            .filter_map(|c| Some((c, default_sql(&table.name, c)?)))
            .collect();
        let all = || given.iter().copied().chain(defaults.iter().map(|(c, _)| *c));
        self.columns = all().map(|c| c.name.clone()).collect();
        self.types = all()
            .map(|c| TargetType {
                oid: c.type_oid,
                sql: c.type_name.clone(),
            })
            .collect();
        let key = &table.sharded().ok_or_else(|| unknown_column("", &table))?.key;
        self.key = key.iter().map(|k| self.columns.iter().position(|c| c == k)).collect();
        self.defaults = defaults.into_iter().map(|(_, sql)| sql).collect();
        Ok(())
    }

    /// Asks for the types of the parts of columns that get values.
    async fn type_parts(&mut self, home: &mut Backend) -> Result<(), ServerError> {
        let names = self.target.columns.iter().flatten().map(|name| quote_identifier(name));
        let parts = names.zip(&self.target.places).map(|(name, place)| {
            let part = format!("((NULL::{}).{name}){}", self.lookup(), &place[name.len()..]);
            format!("pg_catalog.pg_typeof({part})::oid, pg_catalog.pg_typeof({part})")
        });
        let sql = format!("SELECT {}", parts.collect::<Vec<_>>().join(", "));
        let results = home
            .simple(&sql)
            .await
            .map_err(|error| ServerError::from(error).with_position(None))?;
        for (i, place) in self.types.iter_mut().enumerate().take(self.target.places.len()) {
            let told = |column| results.first().and_then(|result| result.text(0, column));
            if let (Some(oid), Some(sql)) = (told(2 * i).and_then(|oid| oid.parse().ok()), told(2 * i + 1)) {
                *place = TargetType {
                    oid,
                    sql: sql.to_owned(),
                };
            }
        }
        Ok(())
    }

    /// The target's name as SQL, for the home shard.
    fn lookup(&self) -> String {
        match &self.table {
            Some(table) => table.name.to_string(),
            None => self.target.home_name(),
        }
    }

    /// `INSERT INTO t (a, b) OVERRIDING …` of the statement's text; into this child of the table, where one is given.
    fn head_sql(&self, text: &str, child: Option<&Name>) -> String {
        let overriding = match self.overrides() {
            true => "OVERRIDING SYSTEM VALUE",
            false => &text[self.target.overriding.clone()],
        };
        let head = match child {
            None => text[self.target.head.clone()].to_owned(),
            Some(child) => format!("INSERT INTO {child} AS {}", quote_identifier(&self.target.alias)),
        };
        format!("{head}{} {overriding}", self.list_sql())
    }

    /// What stands behind the source. A child's constraints have other names, so ON CONFLICT is left out for it where it names one: NOT
    /// NULL comes first.
    fn tail_sql<'t>(&self, text: &'t str, child: Option<&Name>) -> &'t str {
        let tail = &text[self.target.tail.clone()];
        let Ok(tokens) = tokenize(tail) else { return tail };
        let depths = depths(tail, &tokens);
        let at = |word: &str| (0..tokens.len()).find(|&at| depths[at] == 0 && tokens[at].is_word(tail, word));
        if child.is_none() || !self.target.conflict || at("constraint").is_none() {
            return tail;
        }
        at("returning").map_or("", |at| &tail[tokens[at].start as usize..])
    }

    /// The range whose child tells what is wrong with a row of which these of the key's columns are NULL; None where nothing is, or
    /// only the table itself can tell.
    fn tells_of_nulls(&self, home: ShardId, nulls: impl Iterator<Item = bool>) -> Option<&Range> {
        let table = self.table.as_ref()?;
        let sharded = table.sharded().filter(|s| s.direct && s.through_view.is_none())?;
        let is_refused = |name: &String| table.column(name).is_some_and(|column| column.not_null);
        let is_broken = sharded
            .key
            .iter()
            .zip(nulls)
            .any(|(name, null)| null && is_refused(name));
        let place = is_broken.then(|| sharded.tells_of_nulls(home)).flatten()?;
        sharded.ranges.ranges().get(place)
    }

    /// `(a, b)`, or nothing for a local table without a list.
    fn list_sql(&self) -> String {
        if self.columns.is_empty() {
            return String::new();
        }
        let listed = self.target.places.iter().cloned();
        let others = self
            .columns
            .iter()
            .skip(self.target.places.len())
            .map(|c| quote_identifier(c));
        let names: Vec<_> = listed.chain(others).collect();
        format!(" ({})", names.join(", "))
    }

    /// Whether a value is given for a GENERATED ALWAYS AS IDENTITY column that the statement left out.
    fn overrides(&self) -> bool {
        let given = self.columns.len() - self.defaults.len();
        let table = self.table.as_ref();
        let defaulted = self.columns[given..]
            .iter()
            .filter_map(|c| table.and_then(|t| t.column(c)));
        defaulted.into_iter().any(|c| c.identity == Some(true))
    }
}

fn unknown_column(name: &str, table: &Table) -> ServerError {
    ServerError::new(
        pgherd_model::SqlState::UNDEFINED_COLUMN,
        format!("column \"{name}\" of relation \"{}\" does not exist", table.name.name),
    )
}

/// A default that must be computed once for the whole cluster: a sequence's next value, or what a shard might compute
/// differently. Constants are left to the shards.
pub(crate) fn default_sql(table: &Name, column: &Column) -> Option<String> {
    if column.generated {
        return None;
    }
    if column.identity.is_some() {
        return Some(pgherd_sql::next_identity(table, column));
    }
    let default = column.default.as_ref()?;
    let computes =
        default.contains('(') || default.to_ascii_uppercase().contains("CURRENT") || default.contains("LOCAL");
    computes.then(|| default.clone())
}
