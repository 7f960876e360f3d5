//! `SELECT … ORDER BY … LIMIT … FOR UPDATE` and its kin over several ranges: which rows are locked depends on how many were
//! locked before them.
//!
//! PostgreSQL sorts by the snapshot, then locks row by row in that order, and limits last: a row that somebody else has changed
//! is looked at again and may be left out, one that is locked is skipped if so asked, and further rows take their place. So here:
//!
//! 1. Each shard has a portal over its rows, sorted, without a lock; together they are a cut. They say where each row is, and are
//!    read as far as they are needed.
//! 2. The first row of all is locked where it is (tableoid and ctid), by a statement that checks WHERE again and returns the
//!    row's columns; then the next, until LIMIT is filled. No row is locked that PostgreSQL would not lock.
//!
//! What somebody has changed between the cut and the lock is not found in its old place. PostgreSQL's `currtid2()` follows a row to its newest
//! version, as PostgreSQL's own locks do; the portal keeps the versions in between from being cleared away. A row that has
//! been moved to another range meanwhile counts as deleted.

use super::Plan;
use super::key::append_sort_key;
use super::merge::garbled;
use super::row::{fields, messages};
use super::shape::{Shape, SortBy, SortKey};
use crate::fragment::{self, Place};
use crate::relay::{self, Next, RowBatch};
use crate::statement::Statement;
use crate::{Fragment, Transaction};
use bytes::{Bytes, BytesMut};
use pgherd_model::{ServerError, SqlState};
use pgherd_shards::Backend;
use postgres_protocol::message::frontend;
use std::collections::VecDeque;

/// Rows that a portal gives at a time.
const READ_AHEAD: i32 = 50;
/// Rows that are handed on at a time.
const BATCH_ROWS: usize = 100;
/// How often a row may be changed between looking for it and locking it.
const FOLLOW_LIMIT: u32 = 100;

/// Whether the rows have to be locked one by one.
pub(crate) fn is_needed(shape: &Shape) -> bool {
    let limited = shape.limit.is_some() || shape.offset > 0;
    // In an order alone, only that in which locks are taken is another one on several shards.
    let ordered = !shape.order.is_empty() && !shape.through_view;
    !shape.lock.is_empty() && (ordered || limited)
}

/// The columns that say where a row is, behind those of the shape.
pub(crate) const IDENTITY: [&str; 2] = ["tableoid", "ctid"];

/// A row that is a candidate, as the portal shows it.
struct Candidate {
    key: Vec<u8>,
    table: String,
    place: String,
}

/// One shard's candidates.
struct Run {
    fragment: Fragment,
    relation: String,
    waiting: VecDeque<Candidate>,
    ended: bool,
}

/// The rows on their way.
pub(crate) struct Locked {
    runs: Vec<Run>,
    sort: Vec<SortKey>,
    /// columns of the shards' rows without the identity
    columns: usize,
    select: String,
    filter: String,
    lock: String,
    formats: Vec<i16>,
    /// at READ COMMITTED a changed row is followed; with one snapshot it is an error of the shard's
    follows: bool,
    skip: u64,
    left: Option<u64>,
    /// a shard was asked to lock something, and so whether that is allowed
    asked: bool,
    parameter_types: Vec<u32>,
    parameters: Vec<(bool, Option<Bytes>)>,
}

impl Locked {
    /// For portals that are open and not executed yet.
    pub fn new(plan: Plan, places: Vec<Place>, statement: &Statement<'_>, follows: bool) -> Self {
        let shape = plan.shape;
        let outputs = shape.outputs.len();
        let select = shape.select[..outputs].join(", ");
        let filter = match shape.filter.as_str() {
            "" => String::new(),
            filter => format!(" AND ({filter})"),
        };
        // Only types of PostgreSQL's own get here, which are the same on every shard.
        let home = statement.snapshot.home();
        let (parameter_types, parameters) = fragment::parameters(statement, &format!("{select}{filter}"), home);
        let runs = plan.fragments.into_iter().zip(places).map(|(fragment, place)| Run {
            fragment,
            relation: place.relation,
            waiting: VecDeque::new(),
            ended: false,
        });
        Self {
            runs: runs.collect(),
            sort: shape.sort,
            columns: shape.select.len(),
            select,
            filter,
            lock: shape.lock,
            formats: shape.formats[..outputs].to_vec(),
            follows,
            skip: shape.offset,
            left: shape.limit,
            asked: false,
            parameter_types,
            parameters,
        }
    }

    /// Where rows are is told only to those who may read the whole table. Who may read what the statement names is refused
    /// clearly; who may not, gets PostgreSQL's own error.
    pub async fn check_rights(&self, transaction: &mut Transaction) -> Result<(), ServerError> {
        let Some(run) = self.runs.first() else { return Ok(()) };
        let backend = transaction.participant(run.fragment.shard).await?;
        let relation = pgherd_model::quote_literal(&run.relation);
        let sql = format!("SELECT pg_catalog.has_table_privilege({relation}, 'SELECT')");
        let answer = backend.simple(&sql).await?;
        if answer.first().and_then(|r| r.text(0, 0)) == Some("t") {
            return Ok(());
        }
        let sql = format!(
            "SELECT {} FROM {} WHERE false{}{}",
            self.select, run.relation, self.filter, self.lock
        );
        self.query(backend, &sql).await?;
        Err(ServerError::unsupported(
            "FOR UPDATE and FOR SHARE with ORDER BY or LIMIT over several shards want the right to read the whole table",
            "Grant SELECT on the table, not on some of its columns.",
        ))
    }

    /// The next rows. After None or an error nothing runs on the shards any more.
    pub async fn next(&mut self, transaction: &mut Transaction) -> Result<Option<RowBatch>, ServerError> {
        let mut batch = RowBatch::default();
        let filled = async {
            self.fill(transaction, &mut batch).await?;
            if batch.rows == 0 {
                self.ask(transaction).await?;
                self.close(transaction).await?;
            }
            Ok(())
        };
        match filled.await {
            Ok(()) => Ok((batch.rows > 0).then_some(batch)),
            Err(error) => {
                let _ = relay::finish(transaction, false).await;
                Err(error)
            }
        }
    }

    async fn fill(&mut self, transaction: &mut Transaction, batch: &mut RowBatch) -> Result<(), ServerError> {
        while self.left != Some(0) && batch.rows < BATCH_ROWS {
            for run in &mut self.runs {
                if run.waiting.is_empty() && !run.ended {
                    let backend = transaction.participant(run.fragment.shard).await?;
                    run.read(backend, &self.sort, self.columns).await?;
                }
            }
            let heads = self.runs.iter().enumerate();
            let heads = heads.filter_map(|(i, r)| Some((i, &r.waiting.front()?.key)));
            let Some((first, _)) = heads.min_by(|a, b| a.1.cmp(b.1)) else {
                return Ok(());
            };
            let Some(candidate) = self.runs[first].waiting.pop_front() else {
                return Ok(());
            };
            self.asked = true;
            let run = &self.runs[first];
            let backend = transaction.participant(run.fragment.shard).await?;
            let Some(row) = self.lock(backend, &run.relation, candidate).await? else {
                continue;
            };
            // As in PostgreSQL, what OFFSET leaves out was locked.
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            if let Some(left) = &mut self.left {
                *left -= 1;
            }
            batch.rows += 1;
            batch.bytes.extend_from_slice(&row);
        }
        Ok(())
    }

    /// Locks one row; its columns as they are now, or None where it is not one of the result's any more, or is skipped.
    async fn lock(
        &self,
        backend: &mut Backend,
        relation: &str,
        candidate: Candidate,
    ) -> Result<Option<BytesMut>, ServerError> {
        let Candidate { table, mut place, .. } = candidate;
        for _ in 0..FOLLOW_LIMIT {
            let sql = format!(
                "SELECT {} FROM {relation} WHERE tableoid = {table} AND ctid = '{place}'{}{}",
                self.select, self.filter, self.lock
            );
            if let Some(row) = self.query(backend, &sql).await? {
                return Ok(Some(row));
            }
            if !self.follows {
                return Ok(None);
            }
            let newest = format!("SELECT pgherd.newest_version({table}, '{place}')");
            let answer = backend.simple(&newest).await?;
            match answer.first().and_then(|r| r.text(0, 0)) {
                Some(newest) if newest != place => place = newest.to_owned(),
                _ => return Ok(None),
            }
        }
        let message = "could not serialize access due to concurrent update";
        let error = ServerError::new(SqlState::SERIALIZATION_FAILURE, message);
        Err(error.with_detail("A row was changed again each time before it could be locked."))
    }

    async fn query(&self, backend: &mut Backend, sql: &str) -> Result<Option<BytesMut>, ServerError> {
        let out = backend.outbox();
        frontend::parse("", sql, self.parameter_types.iter().copied(), out)
            .map_err(|_| ServerError::internal("a statement holds a NUL"))?;
        fragment::bind("", &self.parameters, &self.formats, out)?;
        relay::queue_execute(backend, "")?;
        relay::sync(backend).await?;
        let mut found = None;
        while let Some(batch) = relay::next_rows(backend).await? {
            found = Some(batch.bytes);
        }
        backend.drain().await?;
        Ok(found)
    }

    /// Whether rows may be locked is an error even where there are none.
    async fn ask(&mut self, transaction: &mut Transaction) -> Result<(), ServerError> {
        let Some(run) = self.runs.first().filter(|_| !self.asked) else {
            return Ok(());
        };
        let backend = transaction.participant(run.fragment.shard).await?;
        let sql = format!("SELECT 1 FROM {} WHERE false{}", run.relation, self.lock);
        backend.simple(&sql).await?;
        Ok(())
    }

    /// The portals hold snapshots, which keep old versions of rows.
    async fn close(&self, transaction: &mut Transaction) -> Result<(), ServerError> {
        for run in &self.runs {
            let backend = transaction.participant(run.fragment.shard).await?;
            frontend::close(b'P', &run.fragment.portal, backend.outbox())
                .map_err(|_| ServerError::internal("a portal's name holds a NUL"))?;
            relay::sync(backend).await?;
            backend.drain().await?;
        }
        Ok(())
    }
}

impl Run {
    /// The next candidates.
    async fn read(&mut self, backend: &mut Backend, sort: &[SortKey], columns: usize) -> Result<(), ServerError> {
        frontend::execute(&self.fragment.portal, READ_AHEAD, backend.outbox())
            .map_err(|_| ServerError::internal("a portal's name holds a NUL"))?;
        relay::sync(backend).await?;
        loop {
            match relay::next_rows_or_pause(backend).await? {
                Next::Rows(batch) => self.take(&batch.bytes, sort, columns)?,
                Next::Paused => break,
                Next::Complete => {
                    self.ended = true;
                    break;
                }
            }
        }
        Ok(backend.drain().await?)
    }

    fn take(&mut self, batch: &[u8], sort: &[SortKey], columns: usize) -> Result<(), ServerError> {
        let mut values = Vec::new();
        for message in messages(batch) {
            fields(message, &mut values).ok_or_else(garbled)?;
            let value = |at: usize| values.get(at).cloned().ok_or_else(garbled);
            let text = |at: usize| {
                let span = value(at)?.ok_or_else(garbled)?;
                Ok::<_, ServerError>(String::from_utf8_lossy(&message[span]).into_owned())
            };
            let mut key = Vec::with_capacity(16);
            for part in sort {
                let SortBy::Column(column) = part.by else {
                    return Err(garbled());
                };
                let value = value(column)?.map(|v| &message[v]);
                append_sort_key(&mut key, part.kind, value, part.direction).ok_or_else(garbled)?;
            }
            let (table, place) = (text(columns)?, text(columns + 1)?);
            self.waiting.push_back(Candidate { key, table, place });
        }
        Ok(())
    }
}
