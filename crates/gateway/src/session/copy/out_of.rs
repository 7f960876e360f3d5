//! COPY TO STDOUT of a sharded table or of a query over several shards: the rows of a plan, which reads one cut, in
//! COPY's format. PostgreSQL judges the options: the home shard runs the same COPY for no rows, and its response and
//! header line are the ones the client gets.

use super::describes;
use super::evaluate::quote_list;
use super::format::Writer;
use super::words::Words;
use crate::messages::put_copy_data;
use crate::session::enter::Entered;
use crate::session::execute::needs_parts;
use crate::session::forward::{lost_lease, no_block};
use crate::session::plan::canceled;
use crate::session::{Problem, Session, Unit};
use crate::user_types::{Asking, Holding};
use bytes::Bytes;
use pgherd_model::{Resolved, ServerError, ShardId, SqlState, Table};
use pgherd_shards::Backend;
use pgherd_sql::copy_split::CopyOptions;
use pgherd_sql::{CopyFormat, CopyShape, CopySource, Kind, Part, Route};

/// What the home shard answered to the COPY of no rows.
pub(super) struct Prologue {
    /// CopyOutResponse's body
    pub(super) response: Bytes,
    /// the header line, or nothing
    pub(super) header: Vec<u8>,
    pub(super) encoding: String,
}

/// Rows come in the client's encoding.
pub(super) fn check_encoding(shape: &CopyShape, prologue: &Prologue) -> Result<(), ServerError> {
    let own_encoding = shape.option_list.iter().find(|(name, _)| name == "encoding");
    if own_encoding.is_some_and(|(_, encoding)| !encoding.eq_ignore_ascii_case(&prologue.encoding)) {
        return Err(ServerError::unsupported(
            "COPY from several shards in another encoding than the client's is not supported yet",
            "SET client_encoding instead.",
        ));
    }
    Ok(())
}

/// What PostgreSQL says of the list of columns, one after the other.
fn check_columns(columns: &[&str], table: &Table) -> Result<(), ServerError> {
    for (place, name) in columns.iter().enumerate() {
        let Some(column) = table.column(name) else {
            let message = format!("column \"{name}\" of relation \"{}\" does not exist", table.name.name);
            return Err(ServerError::new(SqlState::from_code("42703"), message));
        };
        if column.generated {
            let message = format!("column \"{name}\" is a generated column");
            let error = ServerError::new(SqlState::from_code("42P10"), message);
            return Err(error.with_detail("Generated columns cannot be used in COPY."));
        }
        if columns[..place].contains(name) {
            let message = format!("column \"{name}\" specified more than once");
            return Err(ServerError::new(SqlState::from_code("42701"), message));
        }
    }
    Ok(())
}

impl Session {
    /// COPY table TO STDOUT. PostgreSQL itself refuses partitioned tables here; a table that was sharded under its
    /// user's hands goes on to work.
    pub(super) async fn copy_table(&mut self, unit: Unit<'_>, shape: &CopyShape, table: &Table) -> Result<(), Problem> {
        let columns = super::plan::columns(shape, table);
        check_columns(&columns, table)?;
        let query = format!("SELECT {} FROM {}", quote_list(columns), table.name);
        let words = Words {
            unit,
            shape,
            query: None,
        };
        self.copy_rows(words, &query).await
    }

    /// COPY (query) TO STDOUT.
    pub(super) async fn copy_query(&mut self, unit: Unit<'_>, shape: &CopyShape) -> Result<(), Problem> {
        let CopySource::Query(span) = &shape.source else {
            return Err(ServerError::internal("COPY without a query").into());
        };
        let query = unit.statement.text.get(span.clone()).unwrap_or_default();
        let words = Words {
            unit,
            shape,
            query: Some(span.start),
        };
        self.copy_rows(words, query).await
    }

    async fn copy_rows(&mut self, words: Words<'_>, query: &str) -> Result<(), Problem> {
        let statements = self
            .database
            .cache
            .parse(query)
            .map_err(|error| words.told(error.into()))?;
        let [statement] = &statements[..] else {
            return Err(ServerError::new(SqlState::SYNTAX_ERROR, "COPY takes one query").into());
        };
        let words = words.behind(statement.offset_chars);
        let inner = Unit::plain(statement);
        let entered = self.enter(inner).await.map_err(|problem| words.told(problem))?;
        let route = entered.analysis.route(&entered.snapshot, &[]);
        let in_parts = needs_parts(inner, &entered, &route).is_some();
        match route {
            Route::Forward(part) => {
                let part = words.put_around(part, "COPY (", "\n) TO STDOUT ");
                self.relay_copy(words.unit, &entered, &part).await
            }
            Route::Plan if matches!(statement.parsed.kind, Kind::Select { .. }) && !in_parts => {
                let made = self.ensure_block();
                let prologue = self.judge_copy(words, inner).await;
                let result = match prologue {
                    Ok(prologue) => {
                        let copied = self.copy_plan(words, inner, &entered, prologue).await;
                        copied.map_err(|problem| words.told(problem))
                    }
                    Err(problem) => Err(problem),
                };
                self.finish_statement(made, result.map(Some)).await
            }
            Route::Refuse(error) if !in_parts => Err(words.told(error.into())),
            _ => {
                drop(entered);
                self.copy_written(words, inner).await
            }
        }
    }

    /// What PostgreSQL says of the COPY, options included, before any row is read.
    async fn judge_copy(&mut self, words: Words<'_>, inner: Unit<'_>) -> Result<Prologue, Problem> {
        let Words { unit, shape, .. } = words;
        let home = self.gateway.shards.home();
        let whole = Part {
            shard: home,
            text: inner.statement.text.clone(),
            parameters: None,
            fences: Vec::new(),
            replaced: [].into(),
        };
        let judged = words.put_around(whole, "COPY (SELECT * FROM (", "\n) AS copied LIMIT 0) TO STDOUT ");
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let prologue = prologue(open.transaction.participant(home).await?, &judged.text).await?;
        let prologue = prologue.map_err(|error| self.shard_error(&judged, unit, error))?;
        check_encoding(shape, &prologue)?;
        Ok(prologue)
    }

    async fn copy_plan(
        &mut self,
        words: Words<'_>,
        inner: Unit<'_>,
        entered: &Entered,
        prologue: Prologue,
    ) -> Result<String, Problem> {
        let Words { unit, shape, .. } = words;
        let copy_options = CopyOptions::from_shape(shape, &prologue.encoding)?;
        let binary = copy_options.format == CopyFormat::Binary;
        let description = self.description(inner, &entered.snapshot).await?;
        let columns = description.columns.as_deref().unwrap_or_default();
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        let mut writer = Writer::new(copy_options, &names);
        let surroundings = self.surroundings(&[], &entered.snapshot).await?;
        let not_known = (
            "COPY of this query over several shards is not supported yet",
            "Its grammar is known to PostgreSQL only; write it another way.",
        );
        let result_formats = [i16::from(binary)];
        let statement = pgherd_query::Statement {
            result_formats: &result_formats,
            ..surroundings.statement(inner, &[], &entered.snapshot, not_known)?
        };
        let gateway = self.gateway.clone();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let slot = self.cancel.slot.clone();
        slot.start_all(open.transaction.cancel_tokens());
        let mut rows = pgherd_query::select(statement, columns, &mut open.transaction, &gateway.engine).await?;
        if let Some(token) = rows.cancel_token() {
            slot.add(token);
        }
        let client = &mut self.client;
        if describes(unit) {
            client.put(b'n', &[]);
        }
        client.put(b'H', &prologue.response);
        // Of the binary format, the response to no rows is header and trailer; the writer knows where they go.
        if !binary && !prologue.header.is_empty() {
            put_copy_data(&mut client.out, &prologue.header);
        }
        let mut count = 0;
        let asking = Asking::new(&self.database, &self.who, self.gateway.shards.home());
        while let Some(mut batch) = rows.next().await? {
            if slot.requested().is_some() {
                return Err(canceled().into());
            }
            count += batch.rows;
            asking
                .translate_returned(&mut batch, &description, &result_formats)
                .await?;
            writer.write(batch.bytes, &mut client.out);
            if client.out.len() >= crate::client::FLUSH_AT {
                if !entered.guard.holds().await {
                    return Err(lost_lease().into());
                }
                client.flush().await?;
            }
        }
        let mut notices = rows.take_notices();
        drop(rows);
        if !entered.guard.holds().await {
            return Err(lost_lease().into());
        }
        writer.finish(&mut client.out);
        client.put(b'c', &[]);
        if let Some(open) = self.block.open_mut() {
            notices.extend(open.transaction.take_notices());
        }
        self.put_notices(notices);
        Ok(format!("COPY {count}"))
    }
}

impl Session {
    /// Which columns of a COPY that this shard alone runs have OIDs of users' types in their binary values.
    pub(super) async fn copied_types(&mut self, unit: Unit<'_>, shard: ShardId) -> Result<Holding, Problem> {
        let home = self.gateway.shards.home();
        let shape = match &unit.statement.parsed.kind {
            Kind::Copy(shape) if !shape.from && shape.format == CopyFormat::Binary && shard != home => shape,
            _ => return Ok(Holding::new()),
        };
        let query = match &shape.source {
            CopySource::Query(span) => unit.statement.text.get(span.clone()).unwrap_or_default().to_owned(),
            CopySource::Table(name) => {
                let path = &self.settings.search_path;
                let resolved = self
                    .present_snapshot()
                    .resolve(name.schema.as_deref(), &name.name, path);
                let Resolved::Known(table) = resolved else {
                    return Ok(Holding::new());
                };
                let columns = super::plan::columns(shape, &table);
                format!("SELECT {} FROM {}", quote_list(columns), table.name)
            }
        };
        let statements = self.database.cache.parse(&query)?;
        let [statement] = &statements[..] else {
            return Ok(Holding::new());
        };
        let inner = Unit::plain(statement);
        let entered = self.enter(inner).await?;
        let description = self.description(inner, &entered.snapshot).await?;
        let asking = Asking::new(&self.database, &self.who, home);
        Ok(asking.holding_in_binary(shard, &description).await?)
    }
}

/// Runs the COPY of no rows.
pub(super) async fn prologue(backend: &mut Backend, sql: &str) -> Result<Result<Prologue, ServerError>, Problem> {
    backend.queue_query(sql)?;
    backend.flush().await?;
    let (mut response, mut header, mut failed) = (Bytes::new(), Vec::new(), None);
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            b'H' => response = message.body,
            b'd' => header.extend_from_slice(&message.body),
            b'E' => failed = Some(ServerError::from_body(&message.body)),
            b'Z' => break,
            _ => {}
        }
    }
    Ok(match failed {
        Some(error) => Err(error),
        None => {
            let encoding = backend.parameter("client_encoding").unwrap_or("UTF8").to_owned();
            Ok(Prologue {
                response,
                header,
                encoding,
            })
        }
    })
}
