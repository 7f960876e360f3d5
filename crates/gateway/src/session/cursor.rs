//! Cursors in SQL: DECLARE goes where its query goes whole; FETCH, MOVE and CLOSE follow it there. A cursor over several
//! ranges is PostgreSQL's own, over rows that are gathered when it is declared, on a connection that is its own. So is every
//! cursor WITH HOLD: when its transaction commits, the connection's does as well, and stays with the session.

use super::enter::Entered;
use super::execute::names_missing_child;
use super::forward::{no_block, put_statement, settle};
use super::locked_cursor::of_keys;
use super::portal::backend_portal;
use super::relay::{Filter, Fresh, relay};
use super::{Mode, Problem, Session, Unit};
use crate::origins::Naming;
use crate::standing::Keeps;
use crate::user_types::Asking;
use pgherd_model::{ServerError, Snapshot, SqlState, quote_literal};
use pgherd_query::Description;
use pgherd_shards::SimpleResult;
use pgherd_sql::{Instead, Kind, Part, Replaced, Route};
use postgres_protocol::message::frontend;
use std::sync::Arc;

impl Session {
    /// Runs one of the four.
    pub(crate) async fn cursor(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        match &unit.statement.parsed.kind {
            Kind::Declare { name, hold, inner } => self.declare(unit, name, *hold, inner.clone()).await,
            Kind::Fetch { name, .. } => self.on_cursor(unit, name).await,
            Kind::Close(Some(name)) => self.on_cursor(unit, name).await,
            Kind::Close(None) => {
                self.held_cursors.clear();
                self.cursor_texts.clear();
                if let Some(open) = self.block.open_mut() {
                    open.cursors.clear();
                    open.locked_cursors.clear();
                    open.gathered_cursors.clear();
                    for (_, backend) in open.transaction.participants() {
                        backend.simple("CLOSE ALL").await?;
                    }
                }
                if self.block.is_none() && self.who.pin.is_some() {
                    self.ask_home("CLOSE ALL").await?;
                }
                self.client.put_tag("CLOSE CURSOR ALL");
                Ok(())
            }
            _ => Err(ServerError::internal("not a cursor statement").into()),
        }
    }

    async fn declare(
        &mut self,
        unit: Unit<'_>,
        name: &str,
        hold: bool,
        inner: std::ops::Range<usize>,
    ) -> Result<(), Problem> {
        if self.block.is_none() && !hold {
            self.check_syntax(&unit.statement.text).await?;
            return Err(ServerError::new(
                SqlState::NO_ACTIVE_TRANSACTION,
                "DECLARE CURSOR can only be used in transaction blocks",
            )
            .into());
        }
        let in_block = self
            .block
            .open()
            .is_some_and(|open| open.cursors.contains_key(name) || open.gathered_cursors.contains_key(name));
        if in_block || self.held_cursors.contains_key(name) {
            let exists = format!("cursor \"{name}\" already exists");
            return Err(ServerError::new(SqlState::from_code("42P03"), exists).into());
        }
        let text = unit.statement.text.clone();
        self.note_cursor(name, &text);
        let head = text.get(..inner.start).unwrap_or_default();
        let tail = text.get(inner.end..).unwrap_or_default();
        let statements = self.database.cache.parse(text.get(inner.clone()).unwrap_or_default())?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::new(SqlState::SYNTAX_ERROR, "syntax error at end of input"))?;
        let entered = self.enter(Unit { statement, ..unit }).await?;
        if let Some(query) = &entered.analysis.instead {
            let instead = Instead::new(&text, &[(inner, query.text.to_string())]);
            drop(entered);
            return Box::pin(self.run_all_instead(unit, &instead)).await;
        }
        let route = entered.analysis.route(&entered.snapshot, &[]);
        self.lock_reads(Unit { statement, ..unit }, &entered, &[], &route)
            .await?;
        match route {
            Route::Refuse(error) => {
                self.check_syntax(&text).await?;
                Err(error.into())
            }
            Route::Plan if matches!(statement.parsed.kind, Kind::Select { locking: true, .. }) => {
                let reads = entered
                    .analysis
                    .sharded
                    .iter()
                    .map(|table| table.name.clone())
                    .collect();
                drop(entered);
                let query = Unit { statement, ..unit };
                self.declare_locked(unit, query, (name, head), reads).await
            }
            // A participant with such a cursor could not be prepared: its rows are gathered wherever they are.
            _ if hold && entered.analysis.touches_sharded => {
                let made = self.ensure_block();
                let query = Unit { statement, ..unit };
                let declared = self.declare_gathered(query, &entered, name, head, true).await;
                self.finish_statement(made, declared.map(|()| Some("DECLARE CURSOR".to_owned())))
                    .await
            }
            Route::Forward(part) => {
                // It outlives its transaction, and with it the transaction's hold on the connection.
                if hold {
                    self.pin_home(Keeps::HeldCursors).await?;
                }
                let behind_head = |piece: &Replaced| Replaced {
                    at: piece.at + head.len() as u32,
                    original_at: piece.original_at + head.len() as u32,
                    ..*piece
                };
                let shifted = Part {
                    text: format!("{head}{}{tail}", part.text).into(),
                    replaced: part.replaced.iter().map(behind_head).collect(),
                    ..part
                };
                self.forward(unit, &entered, &shifted).await?;
                if let Some(open) = self.block.open_mut() {
                    open.place_cursor(name, shifted.shard);
                }
                Ok(())
            }
            Route::Plan => {
                self.declare_gathered(Unit { statement, ..unit }, &entered, name, head, false)
                    .await?;
                self.client.put_tag("DECLARE CURSOR");
                Ok(())
            }
            _ => Err(ServerError::unsupported(
                "a cursor over several ranges is not supported yet",
                "Run the query without a cursor; drivers can limit the rows per Execute instead.",
            )
            .into()),
        }
    }

    /// Keeps the client's text of a cursor, which the server that it is on may have in other words. Those of cursors that are gone are
    /// forgotten when none is open.
    fn note_cursor(&mut self, name: &str, text: &str) {
        let open = self.block.open();
        let is_first = open.is_none_or(|open| open.cursors.is_empty() && open.gathered_cursors.is_empty());
        if is_first && self.held_cursors.is_empty() {
            self.cursor_texts.clear();
        }
        self.cursor_texts.insert(name.to_owned(), text.into());
    }

    /// For PostgreSQL's view of cursors: as JSON, the rows of those that are not on the home shard's connection, and the texts of
    /// all by their names; null for what is not to be seen there.
    pub(crate) async fn open_cursors(&mut self) -> Result<[String; 2], Problem> {
        const ROWS: &str = "SELECT pg_catalog.row_to_json(c) FROM pg_catalog.pg_cursors c WHERE c.name = ";
        let home = self.gateway.shards.home();
        let mut rows = Vec::new();
        let mut add = |told: Vec<SimpleResult>| {
            rows.extend(told.first().and_then(|r| r.text(0, 0)).map(str::to_owned));
        };
        let asked = |name: &str| format!("{ROWS}{}", quote_literal(name));
        if let Some(open) = self.block.open_mut() {
            for (name, kept) in &mut open.gathered_cursors {
                add(kept.cursor.backend().simple(&asked(name)).await?);
            }
            for (name, placed) in open.cursors.iter().filter(|(_, placed)| placed.shard != home) {
                add(open
                    .transaction
                    .participant(placed.shard)
                    .await?
                    .simple(&asked(name))
                    .await?);
            }
        }
        for (name, kept) in &mut self.held_cursors {
            add(kept.cursor.backend().simple(&asked(name)).await?);
        }
        let mut texts: serde_json::Map<String, serde_json::Value> = self
            .cursor_texts
            .iter()
            .map(|(name, text)| (name.clone(), (&**text).into()))
            .collect();
        // Portals of the protocol are cursors too. Here they have their own names, and the one without belongs to this statement.
        texts.insert(String::new(), serde_json::Value::Null);
        if let Some(open) = self.block.open() {
            let hidden = open
                .locked_cursors
                .keys()
                .map(|name| (of_keys(name), serde_json::Value::Null));
            texts.extend(hidden);
        }
        for (name, portal) in &self.portals {
            texts.insert(backend_portal(name), serde_json::Value::Null);
            rows.push(portal.as_cursor(name).to_string());
        }
        Ok([
            format!("[{}]", rows.join(",")),
            serde_json::Value::Object(texts).to_string(),
        ])
    }

    async fn declare_gathered(
        &mut self,
        query: Unit<'_>,
        entered: &Entered,
        name: &str,
        head: &str,
        hold: bool,
    ) -> Result<(), Problem> {
        let shift = head.chars().count() as u32;
        let description = match self.description(query, &entered.snapshot).await {
            Err(Problem::Error(error)) => return Err(super::simple::shift(error, shift).into()),
            described => described?,
        };
        let surroundings = self
            .surroundings(&description.parameter_types, &entered.snapshot)
            .await?;
        let not_known = (
            "a cursor over several ranges is not supported for this query",
            "Its grammar is known to PostgreSQL only; write it another way.",
        );
        let statement = surroundings.statement(query, &description.parameter_types, &entered.snapshot, not_known)?;
        let open = self.block.open_mut().ok_or_else(no_block)?;
        self.cancel.slot.start_all(open.transaction.cancel_tokens());
        match pgherd_query::declare(statement, head, &mut open.transaction).await {
            Ok(cursor) => {
                let reads = entered.analysis.sharded.iter().map(|table| table.name.clone());
                open.keep_cursor(name, (cursor, description.clone()), hold, reads.collect());
            }
            Err(error) if names_missing_child(&error) => return Err(error.into()),
            Err(error) => return Err(self.as_client_sees(error).into()),
        }
        if matches!(query.mode, Mode::Extended { .. }) && query.mode.describes() {
            self.client.put(b'n', &[]);
        }
        Ok(())
    }

    /// FETCH, MOVE or CLOSE of a cursor over several ranges.
    async fn on_gathered(&mut self, unit: Unit<'_>, name: &str) -> Result<(), Problem> {
        if let Mode::Extended { max_rows, .. } = unit.mode
            && max_rows > 0
        {
            return Err(ServerError::unsupported(
                "FETCH from a cursor over several ranges with a row limit of the protocol is not supported",
                "Ask FETCH for the number of rows.",
            )
            .into());
        }
        let catalog = self.database.catalog.clone();
        let fresh = Fresh::Lease(&catalog);
        let in_block = self
            .block
            .open_mut()
            .and_then(|open| open.gathered_cursors.remove(name));
        let is_held = in_block.is_none();
        let kept = in_block.or_else(|| self.held_cursors.remove(name));
        let Some(mut kept) = kept else {
            return Err(ServerError::internal("a cursor is missing").into());
        };
        let backend = kept.cursor.backend();
        self.cancel.slot.start(backend.cancel_token());
        let part = Part {
            shard: backend.shard(),
            text: unit.statement.text.clone(),
            parameters: None,
            fences: vec![],
            replaced: [].into(),
        };
        // Parsed anew each time: the connection goes with the cursor.
        let parsed = put_statement(backend, &self.database.cache, &part, unit, None)?;
        backend.flush().await?;
        let asking = Asking::new(&self.database, &self.who, self.gateway.shards.home());
        let snapshot = catalog.snapshot();
        let naming = Naming::new(&asking, &snapshot).told(Some(&kept.description));
        let filter = Filter {
            hide_preparation: true,
            hide_description: unit.mode.looks(),
            naming: Some(&naming),
            ..Filter::default()
        };
        let end = relay(backend, &mut self.client, filter, fresh).await;
        let reply = settle(backend, parsed, end)?;
        self.cancel.slot.clear();
        let closes = matches!(unit.statement.parsed.kind, Kind::Close(_));
        match self.block.open_mut() {
            _ if closes => {}
            _ if is_held => drop(self.held_cursors.insert(name.to_owned(), kept)),
            // After an error its transaction has failed: the cursor is gone.
            Some(open) if reply.error.is_none() => drop(open.gathered_cursors.insert(name.to_owned(), kept)),
            _ => {}
        }
        match reply.error {
            Some(error) => Err(self.as_client_sees(error).into()),
            None => Ok(()),
        }
    }

    /// A cursor of SQL is a portal of the protocol: its columns, asked where it is open. False where there is none.
    pub(crate) async fn describe_cursor(&mut self, name: &str) -> Result<bool, Problem> {
        let home = self.gateway.shards.home();
        let open = self.block.open_mut();
        let in_block = open
            .as_ref()
            .is_some_and(|open| open.gathered_cursors.contains_key(name) || open.cursors.contains_key(name));
        let mut kept_apart;
        let mut told = None;
        let backend = match (open, self.held_cursors.get_mut(name)) {
            (Some(open), _) if in_block => match (open.gathered_cursors.get_mut(name), open.cursors.get(name).copied())
            {
                (Some(kept), _) => {
                    told = Some(kept.description.clone());
                    kept.cursor.backend()
                }
                (None, Some(placed)) => open.transaction.participant(placed.shard).await?,
                (None, None) => return Ok(false),
            },
            (_, Some(kept)) => {
                told = Some(kept.description.clone());
                kept.cursor.backend()
            }
            // One WITH HOLD whose rows are the home shard's lives on the connection that is the session's for it.
            (_, None) if self.who.pin.is_none() => return Ok(false),
            (Some(open), None) => open.transaction.participant(home).await?,
            (None, None) => {
                kept_apart = self.home_backend().await?;
                &mut kept_apart
            }
        };
        frontend::describe(b'P', name, backend.outbox())?;
        frontend::sync(backend.outbox());
        backend.expect_ready();
        backend.flush().await?;
        let catalog = self.database.catalog.clone();
        let fresh = Fresh::Lease(&catalog);
        let asking = Asking::new(&self.database, &self.who, home);
        let snapshot = catalog.snapshot();
        let naming = Naming::new(&asking, &snapshot).told(told.as_deref());
        let filter = Filter {
            foreign: asking.foreign(backend.shard()).filter(|_| told.is_none()),
            naming: Some(&naming),
            ..Filter::default()
        };
        let end = relay(backend, &mut self.client, filter, fresh).await;
        match settle(backend, None, end)?.error {
            Some(error) => Err(self.as_client_sees(error).into()),
            None => Ok(true),
        }
    }

    /// What FETCH of a cursor that is not on the home shard returns: what its query does. None for other cursors.
    pub(crate) async fn describe_fetch(
        &mut self,
        name: &str,
        snapshot: &Snapshot,
    ) -> Result<Option<Arc<Description>>, Problem> {
        let open = self.block.open();
        let in_block = open.and_then(|open| open.gathered_cursors.get(name));
        if let Some(kept) = in_block.or_else(|| self.held_cursors.get(name)) {
            return Ok(Some(of_fetch(&kept.description)));
        }
        let is_elsewhere = open
            .and_then(|open| open.place_of_cursor(name))
            .is_some_and(|shard| shard != self.gateway.shards.home());
        let Some(text) = self.cursor_texts.get(name).filter(|_| is_elsewhere) else {
            return Ok(None);
        };
        let declared = self.database.cache.parse(text)?;
        let Some(Kind::Declare { inner, .. }) = declared.first().map(|s| &s.parsed.kind) else {
            return Ok(None);
        };
        let query = self.database.cache.parse(text.get(inner.clone()).unwrap_or_default())?;
        let Some(query) = query.first() else { return Ok(None) };
        let described = self.description(Unit::plain(query), snapshot).await?;
        Ok(Some(of_fetch(&described)))
    }

    async fn on_cursor(&mut self, unit: Unit<'_>, name: &str) -> Result<(), Problem> {
        let in_block = self.block.open();
        if in_block.is_some_and(|open| open.gathered_cursors.contains_key(name))
            || (self.held_cursors.contains_key(name) && !in_block.is_some_and(|open| open.cursors.contains_key(name)))
        {
            return self.on_gathered(unit, name).await;
        }
        if !in_block.is_some_and(|open| open.cursors.contains_key(name)) && self.portals.contains_key(name) {
            return Box::pin(self.portal_as_cursor(unit, name)).await;
        }
        let home = self.gateway.shards.home();
        let shard = self
            .block
            .open()
            .and_then(|open| open.place_of_cursor(name))
            .unwrap_or(home);
        let part = Part {
            shard,
            text: unit.statement.text.clone(),
            parameters: None,
            fences: vec![],
            replaced: [].into(),
        };
        self.check_unchanged(unit, name)?;
        let entered = self.enter(unit).await?;
        self.forward(unit, &entered, &part).await?;
        drop(entered);
        self.follow_cursor(unit, name).await?;
        if let (Kind::Close(_), Some(open)) = (&unit.statement.parsed.kind, self.block.open_mut()) {
            open.cursors.remove(name);
        }
        Ok(())
    }
}

/// What FETCH returns of a query's rows: it has no parameters itself.
fn of_fetch(query: &Description) -> Arc<Description> {
    Arc::new(Description {
        parameter_types: Vec::new(),
        columns: query.columns.clone(),
    })
}
