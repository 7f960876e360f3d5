//! Views over sharded tables that every shard has, so that a statement that names one can be sent there as it is.
//!
//! The home shard's are the pattern. They are compared and copied at the end of a schema change, one transaction at a time.

use crate::work::{LOCK_PATIENCE, Work, yields};
use pgherd_model::{ServerError, ShardId, SqlState, TableKind};
use std::time::{Duration, Instant};

/// How often a circle of waits for the right to change views is taken for none.
const MOST_CIRCLES: u32 = 5;

impl Work<'_, '_> {
    /// The other shards get the views that every shard has, as the home shard has them now.
    pub async fn keep_views(&mut self) -> Result<(), ServerError> {
        let known = self.snapshot.relations.values().flatten();
        let mut views = known.filter_map(|(_, t)| t.as_ref().map(|t| &t.kind));
        let had_any = views.any(|kind| matches!(kind, TableKind::View { .. }));
        let others = self.others();
        if others.is_empty() || !(self.catalog_changed || had_any) {
            return Ok(());
        }
        let (started, mut holds) = (Instant::now(), false);
        loop {
            let wanted = self.twin_views().await?;
            if !had_any && wanted == "[]" {
                return Ok(());
            }
            let mut differing = Vec::new();
            for shard in &others {
                if !self.has_views(*shard, &wanted).await? {
                    differing.push(*shard);
                }
            }
            if differing.is_empty() {
                return Ok(());
            }
            if !holds {
                // Somebody else's views may have come between the two questions, or be committed on one of the two shards only.
                self.hold_views().await?;
                holds = true;
                continue;
            }
            match self.put_views(&differing, &wanted).await {
                Err(e) if yields(&e) && started.elapsed() < LOCK_PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(rand::random_range(20..200))).await;
                }
                done => return done,
            }
        }
    }

    /// Waits until nobody else changes views. Who does may be reading the text of a view that this transaction has changed, for as long as it is let
    /// wait: PostgreSQL may take that for a circle, and it is none.
    async fn hold_views(&mut self) -> Result<(), ServerError> {
        let home = self.home();
        let mut attempts = MOST_CIRCLES;
        loop {
            attempts -= 1;
            self.attempt(home).await?;
            match self.signed_reading(home, "hold_views", "").await {
                Ok(()) => return self.keep(home).await,
                Err(e) => {
                    self.undo(home).await?;
                    if attempts == 0 || e.sqlstate() != SqlState::DEADLOCK_DETECTED {
                        return Err(e);
                    }
                }
            }
        }
    }

    /// These shards get the views of the list. Where one of them cannot be looked at, since another transaction is changing it, that shard is left
    /// as it was, and the ones after it.
    async fn put_views(&mut self, shards: &[ShardId], wanted: &str) -> Result<(), ServerError> {
        for shard in shards {
            self.attempt(*shard).await?;
            match self.signed(*shard, "keep_views", wanted).await {
                Ok(()) => self.keep(*shard).await?,
                Err(e) => {
                    self.undo(*shard).await?;
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// The views that every shard has, as the home shard has them: what `keep_views` takes.
    async fn twin_views(&mut self) -> Result<String, ServerError> {
        let views = self.value("SELECT pgherd.seen_within('twin_views')").await?;
        Ok(views.unwrap_or_default())
    }

    /// Whether the shard has these views; not where that cannot be told, since another transaction is changing one of them.
    async fn has_views(&mut self, shard: ShardId, wanted: &str) -> Result<bool, ServerError> {
        let backend = self.transaction.participant(shard).await?;
        let asked = backend
            .query("SELECT pgherd.seen_within('has_views', $1)", &[Some(wanted)])
            .await;
        let asked = asked.map_err(|e| self.worded(e.into()))?;
        Ok(asked.first().and_then(|row| row.first()?.as_deref()) == Some(&b"true"[..]))
    }
}
