//! Temporary tables, views, functions and whatever else is in pg_temp: on one connection to the home shard, which stays with the session and which no
//! catalog of gateways knows.

use super::Problem;
use super::block::notice;
use super::forward::no_block;
use super::{Session, Unit};
use crate::standing::Keeps;
use pgherd_model::{ServerError, Snapshot, SqlState, quote_identifier, quote_literal};
use pgherd_sql::relations::references;
use pgherd_sql::{Ddl, DdlKind, Kind};
use std::collections::HashSet;

/// Makes a view a temporary one.
pub(super) const TEMPORARY: &str = "TEMPORARY ";

impl Session {
    /// CREATE VIEW over a temporary relation makes a temporary view, to PostgreSQL; here it is to be one from the start.
    pub(super) async fn as_temporary_view(&mut self, unit: Unit<'_>, ddl: &Ddl) -> Result<Option<String>, Problem> {
        if ddl.kind != DdlKind::CreateView || ddl.temporary || self.temporary.is_empty() {
            return Ok(None);
        }
        let (text, parsed) = (&unit.statement.text, &unit.statement.parsed);
        let read = parsed.ast.as_deref().and_then(|tree| references(tree, &|_, _| None));
        let mut names: Vec<String> = match read {
            Some(read) => read
                .into_iter()
                .filter(|r| r.name.schema.is_none())
                .map(|r| r.name.name)
                .collect(),
            None => parsed.identifiers(text).collect(),
        };
        names.retain(|name| self.temporary.contains(name));
        if names.is_empty() {
            return Ok(None);
        }
        // It may be gone with its transaction.
        let names: Vec<_> = names
            .iter()
            .map(|name| quote_literal(&format!("pg_temp.{}", quote_identifier(name))))
            .collect();
        let sql = format!(
            "SELECT pg_catalog.bool_or(pg_catalog.to_regclass(n) IS NOT NULL)::text FROM pg_catalog.unnest(ARRAY[{}]) AS n",
            names.join(", ")
        );
        let answer = self.ask_home(&sql).await?;
        let is_view = |t: &&pgherd_sql::lexer::Token| t.is_word(text, "view") || t.is_word(text, "recursive");
        let (Some("true"), Some(view)) = (
            answer.first().and_then(|r| r.text(0, 0)),
            parsed.tokens.iter().find(is_view),
        ) else {
            return Ok(None);
        };
        let name = ddl.relations.first().map_or("", |name| name.name.as_str());
        let message = format!("view \"{name}\" will be a temporary view");
        self.put_notice(&notice("NOTICE", SqlState::SUCCESS, &message));
        let at = view.start as usize;
        Ok(Some(format!("{}{TEMPORARY}{}", &text[..at], &text[at..])))
    }

    /// CREATE TEMPORARY VIEW over sharded tables: a schema change, since the tables become local for it. The view is made on the
    /// session's own connection to the home shard.
    pub(super) async fn is_temporary_view_of_sharded(&mut self, unit: Unit<'_>, ddl: &Ddl) -> Result<bool, Problem> {
        if ddl.kind != DdlKind::CreateView || !self.enter(unit).await?.analysis.touches_sharded {
            return Ok(false);
        }
        self.pin_home(Keeps::TemporaryTables).await?;
        Ok(true)
    }

    pub(super) fn is_temporary(&self, ddl: &pgherd_sql::Ddl) -> bool {
        let named = |name: &pgherd_sql::ObjectName| match name.schema.as_deref() {
            None => self.temporary.contains(&name.name),
            // Also types and functions.
            Some(schema) => schema == "pg_temp",
        };
        let is_named = !ddl.relations.is_empty() && ddl.relations.iter().all(named);
        ddl.temporary
            || (is_named && ddl.relations.iter().any(|name| name.schema.is_some()))
            || (is_named && is_about_relations(ddl.kind))
    }

    /// Whether it is CREATE TABLE AS of a query that reads no sharded table: only the new name is also one's.
    fn is_made_of_local(&self, unit: Unit<'_>, ddl: &pgherd_sql::Ddl) -> Result<bool, ServerError> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let name = ddl.relations.first().filter(|_| ddl.kind == DdlKind::CreateTableAs);
        let Some(parts) = name.and_then(|name| pgherd_sql::table_as(text, tokens, name)) else {
            return Ok(false);
        };
        let statements = self.database.cache.parse(&parts.query)?;
        let [statement] = &statements[..] else { return Ok(false) };
        let analysis = self.analysis(Unit { statement, ..unit }, &self.present_snapshot())?;
        Ok(matches!(statement.parsed.kind, Kind::Select { .. }) && !analysis.touches_sharded)
    }

    /// Learns from the session's own backend which temporary relations there are: they go with ROLLBACK, ON COMMIT DROP, CASCADE and
    /// RENAME as well, and a name that is theirs no longer may be a sharded table's.
    pub(super) async fn read_temporary(&mut self) {
        const NAMES: &str = "SELECT relname FROM pg_catalog.pg_class \
             WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind NOT IN ('i', 'I', 't')";
        let told = match self.who.pin {
            Some(_) => self.ask_home(NAMES).await.ok(),
            None => None,
        };
        let result = told.as_ref().and_then(|told| told.first());
        let names =
            result.map(|result| (0..result.rows.len()).filter_map(|row| result.text(row, 0).map(str::to_owned)));
        self.temporary = names.map_or_else(HashSet::new, Iterator::collect);
    }

    /// Temporary objects live on one home-shard backend, which stays with the session.
    pub(super) async fn temporary_ddl(&mut self, unit: Unit<'_>, ddl: &pgherd_sql::Ddl) -> Result<(), Problem> {
        let entered = self.enter(unit).await?;
        // The new table's own name may be that of a sharded one. What else CREATE TABLE names, as in LIKE, is about columns,
        // which the home shard has.
        let needs_ranges = entered.analysis.touches_sharded && ddl.kind != DdlKind::CreateTable;
        if needs_ranges && !self.is_made_of_local(unit, ddl)? {
            return Err(match ddl.kind {
                DdlKind::CreateFunction => pgherd_operations::temporary_function_unsupported(),
                _ => ServerError::unsupported(
                    "a temporary table made from a sharded table is not supported yet",
                    "Create the temporary table first, then INSERT … SELECT into it.",
                ),
            }
            .into());
        }
        let home = self.gateway.shards.home();
        self.pin_home(Keeps::TemporaryTables).await?;
        let part = pgherd_sql::Part {
            shard: home,
            text: unit.statement.text.clone(),
            parameters: None,
            fences: Vec::new(),
            replaced: [].into(),
        };
        let any_sharded = entered.snapshot.sharded().next().is_some();
        if any_sharded {
            refuse_temporary_calls(unit, &entered.snapshot)?;
        }
        if any_sharded && ddl.kind == DdlKind::CreateFunction {
            let made = self.ensure_block();
            if let (true, Some(open)) = (made, self.block.open_mut()) {
                open.for_one_statement = true;
            }
            match self.wants_tables(unit, ddl).await {
                Ok(false) => {}
                Ok(true) => {
                    // A change waits for all statements that have entered.
                    drop(entered);
                    let result = self.change_in_one_snapshot(unit).await;
                    return self.finish_statement(made, result).await;
                }
                Err(problem) => return self.finish_statement(made, Err(problem)).await,
            }
        }
        self.forward(unit, &entered, &part).await?;
        self.temporary_changed = !self.block.is_none();
        self.read_temporary().await;
        Ok(())
    }

    /// Whether tables are to become local for a function in pg_temp. No gateway watches such a function, since no catalog has it, so it
    /// must not be one that may read a sharded table otherwise. The home shard makes it, for the catalog to judge, and takes it back.
    async fn wants_tables(&mut self, unit: Unit<'_>, ddl: &Ddl) -> Result<bool, Problem> {
        let (home, catalog) = (self.gateway.shards.home(), self.database.catalog.clone());
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let backend = open.transaction.participant(home).await?;
        backend.simple("SAVEPOINT pgherd_look").await?;
        let judged = match backend.simple(&unit.statement.text).await {
            Ok(_) => Some(catalog.load_through(backend).await),
            // PostgreSQL says it again, to the client.
            Err(_) => None,
        };
        backend
            .simple("ROLLBACK TO SAVEPOINT pgherd_look; RELEASE SAVEPOINT pgherd_look")
            .await?;
        let Some(snapshot) = judged.transpose()? else {
            return Ok(false);
        };
        if !snapshot.yielding.is_empty() {
            return Ok(true);
        }
        if !ddl.relations.iter().any(|r| snapshot.may_reach(&r.name)) {
            return Ok(false);
        }
        Err(pgherd_operations::temporary_function_unsupported().into())
    }
}

/// What a temporary object calls by itself, a view, trigger, rule, default, check or domain, finds one shard's rows of a sharded table.
/// No catalog has such objects, so they must not call what may read one.
fn refuse_temporary_calls(unit: Unit<'_>, snapshot: &Snapshot) -> Result<(), ServerError> {
    let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
    if pgherd_sql::hides_a_name(text, tokens) {
        return Err(pgherd_sql::hidden_name());
    }
    for (i, token) in tokens.iter().enumerate() {
        let called = || tokens.get(i + 1).is_some_and(|next| next.is(text, "("));
        let name = token.identifier(text);
        let reaches = |name: &str| snapshot.may_reach(name) && called() || snapshot.unsafe_words.contains(name);
        if name.as_deref().is_some_and(reaches) {
            let error = ServerError::unsupported(
                "a temporary object that calls a function that may use a sharded table is not supported yet",
                "Create it in a schema, or run the statements by themselves.",
            );
            return Err(error.with_detail(format!("It calls \"{}\".", name.unwrap_or_default())));
        }
    }
    Ok(())
}

/// Whether a change names relations that are there already. What it makes, or what is no relation, is never hidden by a temporary table.
fn is_about_relations(kind: DdlKind) -> bool {
    use DdlKind::{
        AlterPolicy, AlterRule, AlterSequence, AlterTable, AlterTrigger, AlterView, Comment, CreateIndex, CreatePolicy,
        CreateRule, CreateStatistics, CreateTrigger, DropPolicy, DropRule, DropSequence, DropTable, DropTrigger,
        DropView, Grant, Revoke, SecurityLabel, Truncate,
    };
    matches!(
        kind,
        AlterPolicy
            | AlterRule
            | AlterSequence
            | AlterTable
            | AlterTrigger
            | AlterView
            | Comment
            | CreateIndex
            | CreatePolicy
            | CreateRule
            | CreateStatistics
            | CreateTrigger
            | DropPolicy
            | DropRule
            | DropSequence
            | DropTable
            | DropTrigger
            | DropView
            | Grant
            | Revoke
            | SecurityLabel
            | Truncate
    )
}
