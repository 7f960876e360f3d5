//! Statements over several ranges that the query room plans: SELECT, INSERT … SELECT, UPDATE and DELETE that gather, and
//! EXPLAIN of them.

use super::execute::{Entered, names_missing_child};
use super::forward::{lost_lease, no_block};
use super::{Mode, Problem, Session, Unit};
use bytes::BytesMut;
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::Kind;

impl Session {
    /// Plans and runs a statement in the block, or in one of its own.
    pub(crate) async fn plan(&mut self, unit: Unit<'_>, entered: &Entered) -> Result<(), Problem> {
        let description = self.description(unit, &entered.snapshot).await?;
        let made = self.ensure_block();
        let result = self.plan_in_block(unit, entered, &description).await;
        let result = result.map_err(|problem| match problem {
            Problem::Error(error) if !names_missing_child(&error) => self.as_client_sees(error).into(),
            other => other,
        });
        self.finish_statement(made, result).await
    }

    async fn plan_in_block(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        description: &pgherd_query::Description,
    ) -> Result<Option<String>, Problem> {
        let ast = unit.statement.parsed.ast.as_deref().ok_or_else(|| {
            ServerError::unsupported(
                "this statement over several ranges is not supported yet",
                "Its grammar is known to PostgreSQL only; restrict it to one range, or write it another way.",
            )
        })?;
        let settings_sql = self.settings.set_sql();
        let search_path = self.settings.search_path.clone();
        let statement = pgherd_query::Statement {
            text: &unit.statement.text,
            ast,
            parameter_types: &description.parameter_types,
            parameters: unit.parameters,
            result_formats: unit.mode.formats(),
            search_path: &search_path,
            snapshot: &entered.snapshot,
            settings_sql: &settings_sql,
        };
        let gateway = self.gateway.clone();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let slot = self.cancel.slot.clone();
        slot.start_all(open.transaction.cancel_tokens());
        let columns = description.columns.as_deref();
        let (written, mut rows) = match &unit.statement.parsed.kind {
            Kind::Insert => {
                // Its defaults may draw numbers that the session does not see.
                self.drawn.forget();
                let (count, rows) =
                    pgherd_query::insert_select(statement, columns, &mut open.transaction, &gateway.engine).await?;
                (Some(("INSERT 0", count)), rows.unwrap_or_default())
            }
            kind @ (Kind::Update | Kind::Delete) => {
                let (count, rows) = pgherd_query::gathered_write(statement, columns, &mut open.transaction).await?;
                let word = if matches!(kind, Kind::Update) {
                    "UPDATE"
                } else {
                    "DELETE"
                };
                (Some((word, count)), rows.unwrap_or_default())
            }
            _ => {
                let columns = columns.unwrap_or_default();
                let rows = pgherd_query::select(statement, columns, &mut open.transaction, &gateway.engine).await?;
                (None, rows)
            }
        };
        let tag = move |rows: usize| match written {
            Some((word, count)) => format!("{word} {count}"),
            None => format!("SELECT {rows}"),
        };
        if unit.mode.describes() {
            match &description.columns {
                Some(columns) => self.client.put_row_description(columns, unit.mode.formats()),
                None if matches!(unit.mode, Mode::Extended { .. }) => self.client.put(b'n', &[]),
                None => {}
            }
        }
        let mut seen = 0;
        let (limit, portal) = match unit.mode {
            Mode::Extended { max_rows, portal, .. } if max_rows > 0 => (max_rows, portal),
            _ => (0, ""),
        };
        let mut kept = BytesMut::new();
        if let Some(token) = rows.cancel_token() {
            slot.add(token);
        }
        // A request that came while rows were gathered found nothing to cancel on the shards.
        if slot.requested().is_some() {
            return Err(canceled().into());
        }
        while let Some(batch) = rows.next().await? {
            if slot.requested().is_some() {
                return Err(canceled().into());
            }
            seen += batch.rows;
            if limit > 0 {
                kept.unsplit(batch.bytes);
                continue;
            }
            self.client.out.extend_from_slice(&batch.bytes);
            if self.client.out.len() >= crate::client::FLUSH_AT {
                if !entered.guard.is_valid() {
                    return Err(lost_lease().into());
                }
                self.client.flush().await?;
            }
        }
        // They borrow the transaction, which the session needs again.
        drop(rows);
        if !entered.guard.is_valid() {
            return Err(lost_lease().into());
        }
        if limit > 0 {
            let portal = portal.to_owned();
            return Ok(self.deliver_rows(&portal, kept, limit).map(tag));
        }
        Ok(Some(tag(seen)))
    }

    /// EXPLAIN: PostgreSQL's own where one shard runs the statement, else the distributed plan.
    pub(crate) async fn explain(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        if let Kind::Explain { inner, .. } = &unit.statement.parsed.kind {
            let (head, inner) = unit.statement.text.split_at_checked(inner.start).unwrap_or_default();
            let statements = self.gateway.cache.parse(inner)?;
            if let Some(execute) = statements.first()
                && let Kind::Execute(name) = &execute.parsed.kind
            {
                let execute = Unit {
                    statement: execute,
                    ..unit
                };
                return self.explain_stored(execute, name, head).await;
            }
        }
        let entered = self.enter(unit).await?;
        self.begin_strict_for_one(&entered.snapshot);
        let sharded = entered.analysis.touches_sharded;
        drop(entered);
        if let Kind::Explain { analyze: true, inner } = &unit.statement.parsed.kind {
            let inner = unit.statement.text.get(inner.clone()).unwrap_or_default();
            self.lock_inner(unit, inner).await?;
        }
        match sharded {
            true => self.explain_sharded(unit).await,
            false => self.routed(unit).await,
        }
    }

    async fn explain_sharded(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let Kind::Explain { analyze, inner } = &unit.statement.parsed.kind else {
            return Err(ServerError::internal("EXPLAIN without its parts").into());
        };
        let text = &unit.statement.text;
        let inner_text = text.get(inner.clone()).unwrap_or_default();
        let head = text.get(..inner.start).unwrap_or_default();
        let statements = self.gateway.cache.parse(inner_text)?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::new(SqlState::SYNTAX_ERROR, "syntax error at end of input"))?;
        let inner_unit = Unit { statement, ..unit };
        let entered = self.enter(inner_unit).await?;
        let values = unit.values(unit.types);
        match entered.analysis.route(&entered.snapshot, &values) {
            pgherd_sql::Route::Forward(mut part) => {
                part.text = format!("{head}{}", part.text).into();
                part.replaced = [].into();
                self.forward(unit, &entered, &part).await
            }
            pgherd_sql::Route::Scatter { parts, .. } if !analyze => {
                let mut lines = vec![format!("Distributed over {} shards", parts.len())];
                for part in &parts {
                    lines.push(format!("  ->  Shard {}: {}", part.shard, part.text));
                }
                self.put_plan(unit, &lines);
                Ok(())
            }
            pgherd_sql::Route::Plan if !analyze => {
                let description = self.description(inner_unit, &entered.snapshot).await?;
                let ast = inner_unit.statement.parsed.ast.as_deref().ok_or_else(|| {
                    ServerError::unsupported(
                        "EXPLAIN of this statement is not supported yet",
                        "Run it without EXPLAIN.",
                    )
                })?;
                let statement = pgherd_query::Statement {
                    text: &inner_unit.statement.text,
                    ast,
                    parameter_types: &description.parameter_types,
                    parameters: unit.parameters,
                    result_formats: &[],
                    search_path: &self.settings.search_path,
                    snapshot: &entered.snapshot,
                    settings_sql: "",
                };
                let columns = description.columns.as_deref().unwrap_or_default();
                let lines = pgherd_query::explain(statement, columns)?;
                self.put_plan(unit, &lines);
                Ok(())
            }
            pgherd_sql::Route::Refuse(error) => Err(error.into()),
            _ => Err(ServerError::unsupported(
                "EXPLAIN of this statement is not supported yet",
                "Use EXPLAIN without ANALYZE, or EXPLAIN a SELECT.",
            )
            .into()),
        }
    }

    fn put_plan(&mut self, unit: Unit<'_>, lines: &[String]) {
        if unit.mode.describes() {
            let column = pgherd_shards::ColumnDescription {
                name: "QUERY PLAN".into(),
                table_oid: 0,
                column_number: 0,
                type_oid: 25,
                type_size: -1,
                type_modifier: -1,
                format: 0,
            };
            self.client.put_row_description(&[column], unit.mode.formats());
        }
        for line in lines {
            self.client.put_row(&[Some(line.as_bytes())]);
        }
        self.client.put_tag("EXPLAIN");
    }
}

/// 57014, for a request that came between two steps on the shards. Where it was the statement's time limit, that is said
/// when the statement ends.
pub(crate) fn canceled() -> ServerError {
    ServerError::new(SqlState::QUERY_CANCELED, "canceling statement due to user request")
}
