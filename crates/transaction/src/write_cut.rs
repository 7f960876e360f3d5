//! A cut for an UPDATE, DELETE or INSERT … SELECT over several shards at READ COMMITTED.
//!
//! Such a statement takes its snapshot when it is executed, not when it is bound, and then it may wait for rows. So it notes
//! itself which commits its snapshot shows (`pgherd.note_markers`, which the caller has added to its condition), and whoever
//! runs it asks behind it ([`ASK`]) for that list and for a second one, of a snapshot after the statement.
//!
//! 1. The statement runs on all its shards, within a savepoint.
//! 2. [`cut::stale`] compares what was noted. Where a shard's snapshot is older than another's, the statement is undone on that
//!    shard alone, and run again.
//! 3. When that does not end, it is undone and run on all shards while commits are held off.
//!
//! Rows that the statement waited for are newer than its snapshot. On one PostgreSQL that shows little, since all rows are in one
//! place; here it would miss a row that a transaction has just taken to another shard. Therefore the first tries also count a
//! commit as open that came while the statement ran, and that another of its shards takes part in. A statement that runs for
//! long, or where that does not end, does without this and is what PostgreSQL's own READ COMMITTED gives.

use crate::commit_gate::Gate;
use crate::cut::{self, Seen, stale};
use crate::gid::Gid;
use crate::read_cut::{Known, SEARCH_TIMEOUT, parse_gids};
use crate::transaction::{STATEMENT, Transaction};
use crate::{Coordinator, Error};
use pgherd_model::{ShardId, quote_identifier, quote_literal};
use pgherd_shards::SimpleResult;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to run behind the statement, by the simple protocol: which commits its snapshot showed, and which a later one shows.
pub const ASK: &str = "SELECT pg_catalog.current_setting('pgherd.noted_markers'), pgherd.visible_markers(\
     pg_catalog.current_setting('pgherd.known_sequences')::pg_catalog.text[], \
     pg_catalog.current_setting('pgherd.settled_through')::pg_catalog.int8[])";
/// How often the statement is run only where it is too old, before it is run twice while commits are held off.
const EAGER_TRIES: u32 = 3;
/// How often, and for how long, a commit that came while the statement ran makes it run again.
const STRICT_TRIES: u32 = 20;
const STRICT_TIME: Duration = Duration::from_secs(5);

/// The search for a cut that a writing statement sees, and for the shards on which it has to run again.
pub struct WriteCut {
    coordinator: Arc<Coordinator>,
    shards: BTreeSet<ShardId>,
    known: Known,
    known_since: Instant,
    begun: Instant,
    seen: BTreeMap<ShardId, Noted>,
    tries: u32,
    /// commits are held off in this try; in all of the cluster, not only of this gateway
    gate: Option<bool>,
}

/// What a shard's run of the statement saw.
struct Noted {
    by_statement: BTreeSet<Gid>,
    afterwards: BTreeSet<Gid>,
}

impl Transaction {
    /// Begins a writing statement over these shards. None where it needs no cut of its own: on a single shard, or with one
    /// snapshot for the whole transaction.
    pub async fn write_cut(&mut self, shards: impl Iterator<Item = ShardId>) -> Result<Option<WriteCut>, Error> {
        let shards: BTreeSet<ShardId> = shards.collect();
        if shards.len() < 2 || !self.needs_cuts() {
            return Ok(None);
        }
        let coordinator = self.coordinator.clone();
        let (known, known_since) = self.settled_by_now(&coordinator).await?;
        self.open_statement().await?;
        Ok(Some(WriteCut {
            coordinator,
            shards,
            known,
            known_since,
            begun: Instant::now(),
            seen: BTreeMap::new(),
            tries: 0,
            gate: None,
        }))
    }
}

impl WriteCut {
    /// The shards on which the statement is to be run now, each time behind [`Self::prelude`] and with [`ASK`] behind it; on
    /// shards where it has run, that was undone. None: all of them have seen the same, and the statement stays.
    ///
    /// Errors: 40001 when there was no cut to be had within 20 s.
    pub async fn next(&mut self, transaction: &mut Transaction) -> Result<Option<BTreeSet<ShardId>>, Error> {
        let mut again = match self.tries {
            0 => self.shards.clone(),
            _ => self.stale(transaction),
        };
        if again.is_empty() {
            let seen = std::mem::take(&mut self.seen).into_values();
            transaction.seen_gids.extend(seen.flat_map(|noted| noted.by_statement));
            transaction.keep_statement().await?;
            return Ok(None);
        }
        let too_old = self.tries > 0 && self.known_since.elapsed() > cut::TIME_LIMIT;
        // The tries in between keep the rows that were found on other shards, so that those stay where they are.
        let is_due = self.tries % (EAGER_TRIES + 2) >= EAGER_TRIES;
        self.gate = (is_due || too_old).then_some(self.tries > EAGER_TRIES);
        if self.tries > 0 {
            if self.tries > STRICT_TRIES && self.begun.elapsed() > SEARCH_TIMEOUT {
                let seen = std::mem::take(&mut self.seen).into_iter();
                let seen = seen.map(|(shard, noted)| (shard, Seen::of_one(noted.by_statement)));
                return Err(self.coordinator.why_no_cut(&seen.collect(), self.tries).await);
            }
            metrics::counter!("pgherd_cut_retries_total").increment(1);
            if self.tries > EAGER_TRIES + 1 {
                let longest = u64::from(self.tries.min(50));
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..longest))).await;
            }
            if self.gate.is_some() {
                again = self.shards.clone();
            }
            undo(transaction, &again, self.gate.is_some()).await?;
        }
        if again.len() == self.shards.len() {
            (self.known, self.known_since) = transaction.settled_by_now(&self.coordinator).await?;
        }
        self.tries += 1;
        for shard in &again {
            self.seen.remove(shard);
        }
        Ok(Some(again))
    }

    fn stale(&self, transaction: &Transaction) -> BTreeSet<ShardId> {
        let is_strict = self.tries < STRICT_TRIES && self.begun.elapsed() < STRICT_TIME;
        let as_seen = |noted: &Noted| {
            let mut seen = Seen::of_one(noted.by_statement.clone());
            if is_strict {
                seen.after = noted.afterwards.clone();
            }
            seen
        };
        let seen: Vec<_> = self
            .seen
            .iter()
            .map(|(shard, noted)| (*shard, as_seen(noted)))
            .collect();
        let seen: Vec<_> = seen.iter().map(|(shard, seen)| (*shard, seen)).collect();
        stale(&seen, &transaction.seen_gids)
    }

    /// Before the prelude, on a shard that is enlisted: what earlier statements saw on shards that this one does not use.
    pub fn catch_up(&self, transaction: &mut Transaction, shard: ShardId) {
        transaction.catch_up_with(shard, |other| self.shards.contains(&other));
    }

    /// What goes before the statement, within the transaction.
    pub fn prelude(&self) -> String {
        let (sequences, settled) = self.known.as_arrays();
        format!(
            "SELECT pg_catalog.set_config('pgherd.known_sequences', {}, true), \
             pg_catalog.set_config('pgherd.settled_through', {}, true), \
             pg_catalog.set_config('pgherd.noted_markers', '', true)",
            quote_literal(sequences),
            quote_literal(settled),
        )
    }

    /// Sends the statement to the shards and waits for their answers: while commits are held off, if that is due, but not
    /// for as long as the statement waits for rows.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(all) = self.gate else { return work.await };
        let gate = Gate::close(&self.coordinator, &self.shards, all).await;
        Gate::hold_for(Some(gate), work).await
    }

    /// What [`ASK`] gave on a shard. A statement that PostgreSQL has seen to need no rows there has no list, and nothing
    /// that another shard could contradict.
    pub fn saw(&mut self, shard: ShardId, answer: &[SimpleResult]) {
        let text = |column| {
            answer
                .first()
                .and_then(|result| result.text(0, column))
                .unwrap_or_default()
        };
        if !text(0).is_empty() {
            let noted = Noted {
                by_statement: parse_gids(text(0).as_bytes()),
                afterwards: parse_gids(text(1).as_bytes()),
            };
            self.seen.insert(shard, noted);
        }
    }
}

/// What the statement did on these shards never was.
async fn undo(transaction: &mut Transaction, shards: &BTreeSet<ShardId>, now: bool) -> Result<(), Error> {
    let sql = format!("ROLLBACK TO SAVEPOINT {}", quote_identifier(STATEMENT));
    for participant in &mut transaction.participants {
        if shards.contains(&participant.shard()) {
            participant.queue(&sql);
            // Before commits are waited for, which could wait for these rows.
            if now {
                participant.backend.flush().await?;
            }
        }
    }
    Ok(())
}
