//! Views over sharded tables that every shard has, so that a statement that names one can be sent there as it is.
//!
//! The home shard's are the pattern. They are compared and copied at the end of a schema change, one transaction at a time.

use crate::work::{LOCK_PATIENCE, Work, yields};
use pgherd_model::{ServerError, ShardId, TableKind};
use std::time::{Duration, Instant};

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
                self.signed_reading(self.home(), "hold_views", "").await?;
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
