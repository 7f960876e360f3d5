//! SERIALIZABLE over shards, for statements that find one row by a whole unique key: the row itself is locked, not its table.
//!
//! A SELECT takes the lock that a write would need in the same breath (FOR NO KEY UPDATE; FOR SHARE where nothing will be
//! written): what a locking SELECT returns of a single row is its newest version, locked. An UPDATE or DELETE locks what it
//! writes. Either way a statement that found no row has read that there is none, and no lock says so: its effect was nothing, and
//! it is run again behind the lock of its table.

use super::enter::Entered;
use super::forward::no_block;
use super::{Mode, Problem, Session, Unit};
use pgherd_model::{ServerError, SqlState, Table, quote_literal};
use pgherd_sql::{Kind, ParameterValue, Part, Route};

/// What is put behind a reply must be removed again, so it must not have been sent: wider tables are locked whole.
const MOST_COLUMNS: usize = 100;

/// Whether a statement failed while it waited for a lock.
pub(super) fn ended_waiting(error: &ServerError) -> bool {
    let states = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::DEADLOCK_DETECTED,
        SqlState::SERIALIZATION_FAILURE,
    ];
    states.contains(&error.sqlstate())
}

fn privileges_changed() -> ServerError {
    ServerError::new(
        SqlState::SERIALIZATION_FAILURE,
        "could not serialize access due to a concurrent change of privileges",
    )
    .with_hint("The transaction might succeed if retried.")
}

impl Session {
    /// Forwards a statement; at SERIALIZABLE over shards, with what it reads locked.
    pub(crate) async fn forward_locked(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        values: &[ParameterValue<'_>],
        route: &Route,
        part: &Part,
    ) -> Result<(), Problem> {
        if self.is_strict() {
            let row = self.row_name(unit, entered, values, part);
            if let Some(row) = row
                && self.forward_to_row(unit, entered, part, row).await?
            {
                return Ok(());
            }
            self.lock_reads(unit, entered, values, route).await?;
        }
        self.forward(unit, entered, part).await
    }

    /// The name of the only row that the statement can find, where locking it is enough.
    fn row_name(
        &self,
        unit: Unit<'_>,
        entered: &Entered,
        values: &[ParameterValue<'_>],
        part: &Part,
    ) -> Option<String> {
        let analysis = &entered.analysis;
        let point = analysis.point.as_ref().filter(|point| point.locks_row)?;
        let table = analysis.sharded.first()?;
        let limited = matches!(unit.mode, Mode::Extended { max_rows, .. } if max_rows > 0);
        let read_only = self.block.open()?.transaction.mode().read_only == Some(true);
        let writes = !matches!(unit.statement.parsed.kind, Kind::Select { .. });
        if limited || !part.fences.is_empty() || table.columns.len() > MOST_COLUMNS || (writes && read_only) {
            return None;
        }
        let mut name = format!("a row of {}", table.name);
        for number in &point.key {
            let value = values.get(number.checked_sub(1)?)?;
            name.push_str(&format!(" {}{:?}", u8::from(value.binary), value.bytes?));
        }
        Some(name)
    }

    /// False where there is no such row, or where its lock is not to be had that way: nothing has happened then.
    async fn forward_to_row(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        part: &Part,
        row: String,
    ) -> Result<bool, Problem> {
        let table = entered.analysis.sharded.first().ok_or_else(no_block)?.clone();
        let reads = matches!(unit.statement.parsed.kind, Kind::Select { .. });
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let is_held = open.strict.holds_row(part.shard, &row, &table);
        open.strict.refuse_if_released()?;
        open.transaction.allow_writes().await?;
        if reads && !is_held && !self.may_lock_rows(part, entered, &table).await? {
            return Ok(false);
        }
        self.look_behind(part.shard, (!reads).then_some(&*table)).await?;
        if !reads && table.sharded().is_some_and(|s| s.is_linked) {
            self.note_learnt();
        }
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let lock = match (reads && !is_held, open.transaction.mode().read_only) {
            (false, _) => "",
            (true, Some(true)) => "\nFOR SHARE",
            (true, _) => "\nFOR NO KEY UPDATE",
        };
        if self.client.out.len() >= crate::client::FLUSH_AT / 2 {
            self.client.flush().await?;
        }
        let mark = self.client.out.len();
        let mut sent = part.clone();
        if !lock.is_empty() {
            sent.text = format!("{}{lock}", part.text).into();
        }
        let result = self.forward_in_block(unit, entered, &sent).await;
        if let Err(Problem::Error(error)) = &result
            && error.sqlstate() == SqlState::INSUFFICIENT_PRIVILEGE
            && !lock.is_empty()
        {
            // It had the privilege a while ago. The next try asks again.
            self.row_locks.clear();
            return Err(privileges_changed().into());
        }
        let found_none = matches!(&result, Ok(Some(tag)) if tag.ends_with(" 0"));
        if found_none && !is_held {
            self.client.out.truncate(mark);
            return Ok(false);
        }
        // An error may tell what is in the row, but not when its lock was not had.
        let not_locked = is_held || matches!(&result, Err(Problem::Error(error)) if ended_waiting(error));
        if let (false, Some(open)) = (not_locked, self.block.open_mut()) {
            let depth = open.depth();
            open.strict.note_row(part.shard, row, depth);
        }
        self.finish_statement(false, result).await?;
        Ok(true)
    }

    /// Whether the session's role may lock rows of the table, which wants more than SELECT.
    async fn may_lock_rows(&mut self, part: &Part, entered: &Entered, table: &Table) -> Result<bool, Problem> {
        let (of_settings, epoch) = (self.settings.fingerprint(), entered.snapshot.epoch);
        if let Some((settings, known, may)) = self.row_locks.get(&table.name)
            && (*settings, *known) == (of_settings, epoch)
        {
            return Ok(*may);
        }
        let sql = format!(
            "SELECT pg_catalog.has_any_column_privilege({}, 'UPDATE')",
            quote_literal(&table.name.to_string())
        );
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let results = open.transaction.participant(part.shard).await?.simple(&sql).await?;
        let may = results.first().and_then(|r| r.text(0, 0)) == Some("t");
        self.row_locks.insert(table.name.clone(), (of_settings, epoch, may));
        Ok(may)
    }
}
