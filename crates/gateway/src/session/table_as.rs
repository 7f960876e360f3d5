//! CREATE TABLE AS and SELECT INTO from sharded tables: the home shard makes the table without rows, then its rows come
//! as those of an INSERT … SELECT do. Both are one statement to the client, in one transaction.

use super::execute::names_missing_child;
use super::forward::{lost_lease, no_block};
use super::serializable::unseen;
use super::{Mode, Problem, Session, Unit};
use crate::standing::Keeps;
use pgherd_model::{ServerError, quote_identifier, quote_literal};
use pgherd_sql::{Kind, ObjectName, Route, TableAs};

/// What PostgreSQL answers when no rows were asked for.
const NO_ROWS: &str = "CREATE TABLE AS";

impl Session {
    /// Runs the statement if its query reads sharded tables; else false.
    pub(crate) async fn table_as(
        &mut self,
        unit: Unit<'_>,
        temporary: bool,
        name: &ObjectName,
        parts: &TableAs,
    ) -> Result<bool, Problem> {
        let statements = self.database.cache.parse(&parts.query)?;
        if let [statement] = &statements[..]
            && let Kind::Execute(stored) = &statement.parsed.kind
        {
            self.table_as_stored(unit, stored, Unit { statement, ..unit }, parts)
                .await?;
            return Ok(true);
        }
        let query = match &statements[..] {
            [statement] if matches!(statement.parsed.kind, Kind::Select { .. }) => Some(statement),
            _ => None,
        };
        let Some(statement) = query else {
            return match self.will_be_strict() {
                true => Err(unseen("What it makes the table of is no query.").into()),
                false => Ok(false),
            };
        };
        // Not kept: making the table must not wait for its own query.
        let entered = self.enter(Unit { statement, ..unit }).await?;
        if !entered.analysis.touches_sharded {
            self.begin_strict_for_one(&entered.snapshot);
            drop(entered);
            self.lock_inner(unit, &parts.query).await?;
            return Ok(false);
        }
        if let Route::Refuse(error) = entered.analysis.route(&entered.snapshot, &[]) {
            return Err(error.into());
        }
        drop(entered);
        if parts.parameters {
            return Err(ServerError::unsupported(
                "CREATE TABLE AS with parameters is not supported on sharded tables yet",
                "Create the table first, and fill it with INSERT … SELECT.",
            )
            .into());
        }
        let made = self.ensure_block();
        let result = self.table_as_in_block(unit, temporary, name, parts).await;
        let result = result.map_err(|problem| match problem {
            Problem::Error(error) if !names_missing_child(&error) => self.as_client_sees(error).into(),
            other => other,
        });
        self.finish_statement(made, result).await?;
        Ok(true)
    }

    /// `CREATE TABLE … AS EXECUTE`: the prepared query stands in the statement instead.
    async fn table_as_stored(
        &mut self,
        unit: Unit<'_>,
        name: &str,
        execute: Unit<'_>,
        parts: &TableAs,
    ) -> Result<(), Problem> {
        let query = self.stored_query(name, execute).await?;
        let whole = parts
            .with_query(&self.with_values(&query).await?)
            .ok_or_else(|| ServerError::internal("CREATE TABLE AS EXECUTE has another form"))?;
        let statements = self.database.cache.parse(&whole)?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::internal("a prepared query is empty"))?;
        Box::pin(self.change_schema(Unit { statement, ..unit })).await
    }

    async fn table_as_in_block(
        &mut self,
        unit: Unit<'_>,
        temporary: bool,
        name: &ObjectName,
        parts: &TableAs,
    ) -> Result<Option<String>, Problem> {
        let schema = match (&name.schema, temporary) {
            (Some(schema), _) => schema.clone(),
            (None, true) => "pg_temp".to_owned(),
            (None, false) => self.creation_schema().await?,
        };
        let target = format!("{}.{}", quote_identifier(&schema), quote_identifier(&name.name));
        let exists = parts.if_not_exists && self.is_relation(&target).await?;
        match temporary {
            true => self.make_temporary(&parts.create, name).await?,
            false => {
                let statements = self.database.cache.parse(&parts.create)?;
                let statement = statements
                    .first()
                    .ok_or_else(|| ServerError::internal("no CREATE TABLE"))?;
                let made = self
                    .change_in_one_snapshot(Unit {
                        statement,
                        mode: Mode::Simple,
                        ..unit
                    })
                    .await;
                made.map_err(|problem| match problem {
                    Problem::Error(error) if !parts.keeps_positions => error.with_position(None).into(),
                    other => other,
                })?;
            }
        }
        if exists || !parts.with_data {
            return Ok(Some(NO_ROWS.to_owned()));
        }
        let count = self
            .fill(unit, &format!("INSERT INTO {target} {}", parts.query))
            .await?;
        Ok(Some(format!("SELECT {count}")))
    }

    /// The schema that a new table without one goes to.
    async fn creation_schema(&mut self) -> Result<String, Problem> {
        let schema = self.ask_home_for("SELECT pg_catalog.current_schema()").await?;
        Ok(schema.unwrap_or_else(|| "public".to_owned()))
    }

    async fn is_relation(&mut self, name: &str) -> Result<bool, Problem> {
        let sql = format!("SELECT pg_catalog.to_regclass({})", quote_literal(name));
        Ok(self.ask_home_for(&sql).await?.is_some())
    }

    /// One value, from the home participant.
    async fn ask_home_for(&mut self, sql: &str) -> Result<Option<String>, Problem> {
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let results = open.transaction.participant(home).await?.simple(sql).await?;
        Ok(results.first().and_then(|r| r.text(0, 0)).map(str::to_owned))
    }

    /// Temporary tables live on one home-shard backend, which stays with the session.
    async fn make_temporary(&mut self, create: &str, name: &ObjectName) -> Result<(), Problem> {
        self.pin_home(Keeps::TemporaryTables).await?;
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let backend = open.transaction.participant(home).await?;
        let made = backend.simple(create).await;
        let notices = backend.take_notices();
        open.transaction.wrote(home);
        made?;
        for notice in notices {
            self.client.put_notice(&notice);
        }
        self.temporary.insert(name.name.clone());
        self.temporary_changed = true;
        Ok(())
    }

    /// Runs the INSERT; returns the number of rows.
    async fn fill(&mut self, unit: Unit<'_>, insert: &str) -> Result<u64, Problem> {
        let statements = self.database.cache.parse(insert)?;
        let not_known = (
            "this form of CREATE TABLE AS is not supported on sharded tables yet",
            "Create the table first, and fill it with INSERT … SELECT.",
        );
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::unsupported(not_known.0, not_known.1))?;
        let entered = self.enter(Unit { statement, ..unit }).await?;
        let route = entered.analysis.route(&entered.snapshot, &[]);
        self.lock_reads(Unit { statement, ..unit }, &entered, &[], &route)
            .await?;
        let surroundings = self.surroundings(&[], &entered.snapshot).await?;
        let insert = Unit {
            statement,
            parameters: &[],
            ..unit
        };
        let statement = surroundings.statement(insert, &[], &entered.snapshot, not_known)?;
        let gateway = self.gateway.clone();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        self.cancel.slot.start_all(open.transaction.cancel_tokens());
        let filled = pgherd_query::insert_select(statement, None, &mut open.transaction, &gateway.engine).await;
        let (count, _) = filled.map_err(|error| error.with_position(None))?;
        if !entered.guard.holds().await {
            return Err(lost_lease().into());
        }
        Ok(count)
    }
}
