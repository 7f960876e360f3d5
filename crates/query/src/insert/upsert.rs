//! INSERT … ON CONFLICT DO UPDATE whose SET or condition has subqueries, over several shards.
//!
//! 1. One SELECT, in one cut, gives each row of the source, the row that is in its way, and what that one would be set to; it is
//!    computed for rows that are changed only, as PostgreSQL does.
//! 2. Each shard then runs the INSERT with its own ON CONFLICT ([`super::upsert_write`]): it does the assignment casts, checks
//!    the proposed rows, and changes a row only where it is still the version that was read.
//! 3. Where another transaction was faster, the statement is undone and run again, as gathered writes are
//!    (docs/designs/0007-gathered-writes.md).

use super::columns::{self, TargetColumn};
use super::conflict::{self, Arbiter, Conflict};
use super::source::{key_sql, wrap_with_defaults};
use super::upsert_moves::{self, Moves};
use super::{Plan, values};
use crate::Transaction;
use crate::carrier::{Carrier, TargetType, carriers};
use crate::gather::IDENTITY;
use crate::statement::{Statement, describe};
use crate::write::shape::Value;
use crate::write::target::Target as Checked;
use pgherd_model::{ServerError, quote_identifier, quote_literal};
use pgherd_shards::Backend;

/// Columns of the SELECT between the keys and the values.
pub(super) const IN_FRONT: usize = 3;

/// The SELECT, and what is made of its rows.
pub(crate) struct Upsert<'a> {
    /// the INSERT, without a WITH in front
    pub(crate) statement: Statement<'a>,
    pub(super) find: String,
    /// the byte at which the SELECT names the target
    pub(crate) target_at: usize,
    pub(super) formats: Vec<i16>,
    pub(super) plan: Plan,
    pub(super) checked: Checked,
    /// of the rows to insert
    pub(super) carriers: Vec<Carrier>,
    /// of the values that are set
    pub(super) set_carriers: Vec<Carrier>,
    /// SET: column, and the number of its value; None for DEFAULT
    pub(super) set: Vec<(String, Option<usize>)>,
    pub(super) conflict: Conflict,
    /// where SET gives rows other keys
    pub(super) moves: Option<Moves>,
}

fn refuse(what: &str, remedy: &str) -> ServerError {
    ServerError::unsupported(
        format!("ON CONFLICT DO UPDATE that reads tables cannot {what} where it needs rows of more than one shard"),
        remedy,
    )
}

/// What takes part in the SELECT.
struct Parts<'a> {
    with: &'a str,
    tail: &'a str,
    /// the target's name and alias, as in FROM
    named: &'a str,
    alias: String,
    /// names of the columns that decide what is in the way
    arbiter: &'a [String],
    conflict: &'a Conflict,
    columns: &'a [TargetColumn],
}

/// Builds it. `statement` begins with INSERT, and `with` stood before it.
pub(super) async fn build<'a>(
    statement: Statement<'a>,
    with: &str,
    mut plan: Plan,
    transaction: &mut Transaction,
) -> Result<Upsert<'a>, ServerError> {
    let text = statement.text;
    let tail = &text[plan.target.tail.clone()];
    let conflict = conflict::parse(tail)?;
    let lookup = plan.lookup();
    let home = transaction.participant(statement.snapshot.home()).await?;
    let (schema, name) = (plan.target.schema.as_deref(), plan.target.name.clone());
    let checked = Checked::read(&statement, schema, &name, "INSERT", home).await?;
    if checked.has_row_triggers {
        return Err(refuse("fire row triggers", "Read first and then write."));
    }
    let columns = columns::read(&lookup, home).await?;
    let arbiter = arbiter(&lookup, &conflict, home).await?;
    let inner = wrap_with_defaults(&statement, with, &mut plan, transaction).await?;
    if plan.table.is_none() && plan.columns.is_empty() {
        plan.columns = columns.iter().take(inner.given).map(|c| c.name.clone()).collect();
    }
    if plan.types.is_empty() {
        plan.types = own_types(&plan.columns, &checked);
    }
    let parts = Parts {
        with,
        tail,
        named: &text[plan.target.named.clone()],
        alias: plan.target.alias.clone(),
        arbiter: &arbiter,
        conflict: &conflict,
        columns: &columns,
    };
    let items = set_items(&parts, &checked)?;
    let (mut moves, of_moves) = upsert_moves::plan(&plan, &columns, &checked, (&items.set, &items.sql), &parts.alias);
    let bound = bound(&statement, &plan, &parts);
    let (described_sql, _) = parts.select(
        &plan,
        &inner.sql,
        (&items.sql, &of_moves),
        bound.as_deref(),
        "CAST('' AS pg_catalog.text)",
    )?;
    let home = transaction.participant(statement.snapshot.home()).await?;
    let described = describe(home, &described_sql, statement.parameter_types)
        .await
        .map_err(|e| e.with_position(None))?;
    let types: Vec<u32> = described
        .columns
        .unwrap_or_default()
        .iter()
        .map(|c| c.type_oid)
        .collect();
    let (width, keys) = (plan.columns.len(), plan.key.len());
    let garbled = || ServerError::internal("the home shard described other columns than it was asked for");
    let (row_types, set_types) = (
        types.get(..width).ok_or_else(garbled)?,
        types.get(width + keys + IN_FRONT..).ok_or_else(garbled)?,
    );
    let (set_types, moved_types) = set_types.split_at_checked(items.sql.len()).ok_or_else(garbled)?;
    let row_carriers = carriers(home, row_types, &plan.types).await?;
    let set_carriers = carriers(home, set_types, &items.targets).await?;
    Carrier::check(&row_carriers)?;
    Carrier::check(&set_carriers)?;
    let mut formats: Vec<i16> = row_carriers.iter().map(|c| c.format).collect();
    formats.extend((0..keys).map(|_| 1));
    formats.extend([0; IN_FRONT]);
    formats.extend(set_carriers.iter().map(|c| c.format));
    if let Some(moves) = &mut moves {
        let home = transaction.participant(statement.snapshot.home()).await?;
        moves.describe(moved_types, home).await?;
        formats.extend(moves.formats());
    }
    let identity = format!("{}.{IDENTITY}", quote_identifier(&parts.alias));
    let (find, target_at) = parts.select(&plan, &inner.sql, (&items.sql, &of_moves), bound.as_deref(), &identity)?;
    Ok(Upsert {
        find,
        target_at,
        formats,
        checked,
        carriers: row_carriers,
        set_carriers,
        set: items.set,
        statement,
        conflict,
        moves,
        plan,
    })
}

fn own_types(names: &[String], checked: &Checked) -> Vec<TargetType> {
    let of = |name: &String| checked.columns.iter().find(|c| c.name == *name);
    let as_target = |c: &crate::metadata::Column| TargetType {
        oid: c.type_oid,
        sql: c.type_sql.clone(),
    };
    names.iter().filter_map(of).map(as_target).collect()
}

/// The columns that decide whether a row is in the way.
async fn arbiter(lookup: &str, conflict: &Conflict, home: &mut Backend) -> Result<Vec<String>, ServerError> {
    let relation = quote_literal(lookup);
    let name = match &conflict.arbiter {
        Arbiter::Constraint(name) => quote_literal(name),
        Arbiter::Columns(_) => "''".to_owned(),
    };
    let sql = format!(
        "SELECT a.attname::text FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid \
         AND a.attnum = ANY (k.conkey) WHERE k.conrelid = to_regclass({relation}) AND k.conname = {name} AND k.contype IN ('p', 'u'); \
         SELECT (EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = to_regclass({relation}) AND i.indnullsnotdistinct))::text"
    );
    let results = home.simple(&sql).await?;
    if results.get(1).and_then(|r| r.text(0, 0)) == Some("true") {
        return Err(refuse("use NULLS NOT DISTINCT", "Read first and then write."));
    }
    let of_constraint = || {
        let rows = results.first();
        let names = rows.map(|r| {
            (0..r.rows.len())
                .filter_map(|row| r.text(row, 0).map(str::to_owned))
                .collect()
        });
        names.filter(|names: &Vec<String>| !names.is_empty())
    };
    match &conflict.arbiter {
        Arbiter::Columns(names) => Ok(names.clone()),
        Arbiter::Constraint(_) => {
            of_constraint().ok_or_else(|| refuse("use this constraint", "Name the columns of a unique index."))
        }
    }
}

/// SET as the SELECT's list has it.
struct SetItems {
    set: Vec<(String, Option<usize>)>,
    sql: Vec<String>,
    targets: Vec<TargetType>,
}

fn set_items(parts: &Parts<'_>, checked: &Checked) -> Result<SetItems, ServerError> {
    let mut items = SetItems {
        set: Vec::new(),
        sql: Vec::new(),
        targets: Vec::new(),
    };
    for (name, value) in &parts.conflict.set {
        let number = match value {
            // The shard's own sequences are not the cluster's.
            Value::Default => match parts
                .columns
                .iter()
                .find(|c| c.name == *name)
                .and_then(|c| c.default.as_ref())
            {
                Some(default) if default.contains('(') => Some(default.clone()),
                _ => None,
            },
            Value::Expression(sql) => Some(sql.clone()),
            Value::Part { .. } => return Err(refuse("set parts of columns", "Set whole columns.")),
        };
        let number = number.map(|sql| {
            items.sql.push(sql);
            items.sql.len() - 1
        });
        if number.is_some() {
            let unknown = || ServerError::internal("a column that is set is not described");
            let column = checked.columns.iter().find(|c| c.name == *name).ok_or_else(unknown)?;
            items.targets.push(TargetType {
                oid: column.type_oid,
                sql: column.type_sql.clone(),
            });
        }
        items.set.push((name.clone(), number));
    }
    Ok(items)
}

/// A condition on the target that follows from the rows' keys, where VALUES gives them as constants: nothing else is read then.
fn bound(statement: &Statement<'_>, plan: &Plan, parts: &Parts<'_>) -> Option<String> {
    let source = statement.text[plan.target.source.clone()].trim();
    let rows = values::rows(source)?;
    let is_constant = |sql: &str| {
        let tokens = pgherd_sql::lexer::tokenize(sql).unwrap_or_default();
        let opens = |t: &pgherd_sql::lexer::Token| t.is(sql, "(");
        let words = ["select", "values", "table"];
        !tokens.is_empty()
            && !tokens.iter().any(|t| words.iter().any(|w| t.is_word(sql, w)))
            // `CAST(('x') AS text)` is what an expression became; a function may be another one each time.
            && (!tokens.iter().any(opens) || sql.starts_with("CAST((") && tokens.iter().filter(|t| opens(t)).count() == 2)
    };
    parts.arbiter.iter().find_map(|name| {
        let at = plan.columns.iter().position(|c| c == name)?;
        let cells: Option<Vec<&str>> = rows.iter().map(|row| Some(&source[row.get(at)?.clone()?])).collect();
        let cells = cells.filter(|cells| cells.len() <= 1000 && cells.iter().all(|cell| is_constant(cell)))?;
        let type_sql = &plan.types.get(at)?.sql;
        let cells: Vec<_> = cells.iter().map(|cell| format!("CAST({cell} AS {type_sql})")).collect();
        let (alias, column) = (quote_identifier(&parts.alias), quote_identifier(name));
        Some(format!("{alias}.{column} IN ({})", cells.join(", ")))
    })
}

impl Parts<'_> {
    /// The row that is proposed, as the target would store it.
    fn excluded(&self, plan: &Plan) -> Result<String, ServerError> {
        let mut list = Vec::new();
        for column in self.columns {
            let name = quote_identifier(&column.name);
            if let Some(at) = plan.columns.iter().position(|c| *c == column.name) {
                list.push(format!(
                    "CAST(pgherd_rows.c{} AS {}) AS {name}",
                    at + 1,
                    column.type_sql
                ));
                continue;
            }
            let is_named = self
                .conflict
                .excluded
                .as_ref()
                .is_none_or(|names| names.contains(&column.name));
            let varies = column.default.as_ref().is_some_and(|d| d.contains('('));
            if is_named && (column.generated || varies) {
                return Err(refuse(
                    "use a column of the proposed row that is computed",
                    "Write its expression instead.",
                ));
            }
            let value = column.default.as_deref().filter(|_| is_named).unwrap_or("NULL");
            list.push(format!("CAST(({value}) AS {}) AS {name}", column.type_sql));
        }
        Ok(list.join(", "))
    }

    /// The SELECT, with this expression as the identity of the row in the way, and where it names the target. Its columns: those of the
    /// rows, keys, identity, what is to be done (0: insert, 1: nothing, 2: update), the row's number, values, what rows that move take along.
    fn select(
        &self,
        plan: &Plan,
        rows: &str,
        (set, of_moves): (&[String], &[String]),
        bound: Option<&str>,
        identity: &str,
    ) -> Result<(String, usize), ServerError> {
        let alias = quote_identifier(&self.alias);
        let columns = (1..=plan.columns.len()).map(|i| format!("pgherd_rows.c{i}"));
        let keys = plan
            .table
            .as_ref()
            .and_then(|t| t.sharded())
            .map(|sharded| key_sql(plan, sharded));
        let mut list: Vec<String> = columns.chain(keys.into_iter().flatten()).collect();
        list.push(format!("{identity} AS {IDENTITY}"));
        list.push("pgherd_m.pgherd_a".to_owned());
        list.push("pgherd_rows.pgherd_n".to_owned());
        for (number, sql) in set.iter().enumerate() {
            list.push(format!(
                "CASE WHEN pgherd_m.pgherd_a = 2 THEN ({sql}) END AS pgherd_v{number}"
            ));
        }
        list.extend(of_moves.iter().cloned());
        let with = if self.with.is_empty() { "" } else { " " };
        let mut sql = format!(
            "{}{with}SELECT {} FROM (SELECT pgherd_source.*, pg_catalog.row_number() OVER () AS pgherd_n \
             FROM ({rows}) AS pgherd_source) AS pgherd_rows CROSS JOIN LATERAL (SELECT {}) AS excluded LEFT JOIN ",
            self.with,
            list.join(", "),
            self.excluded(plan)?
        );
        let at = sql.len();
        let on = self.arbiter.iter().map(|name| {
            let name = quote_identifier(name);
            format!("{alias}.{name} = excluded.{name}")
        });
        let on: Vec<_> = on.chain(bound.map(str::to_owned)).collect();
        let condition = self.conflict.condition.clone().map_or("true", |span| &self.tail[span]);
        sql.push_str(&format!(
            "{} ON {} CROSS JOIN LATERAL (SELECT CASE WHEN {identity} IS NULL THEN 0 WHEN ({condition}) THEN 2 ELSE 1 END \
             AS pgherd_a OFFSET 0) AS pgherd_m",
            self.named,
            on.join(" AND ")
        ));
        Ok((sql, at))
    }
}
