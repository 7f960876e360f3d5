//! Parallel workers of a statement that runs on several shards of one host at once.
//!
//! Each shard believes that the host's processors are its own, and starts as many workers as it is allowed. A statement that reads all
//! shards keeps the processors busy already; the workers only repeat what each of them has to make for itself, such as a hash table of
//! rows that were sent along. So the shards of a host are together as many processes as one server would be.

use crate::shard_state::ShardState;
use crate::transaction::Transaction;
use pgherd_model::ShardId;
use pgherd_shards::ShardConfig;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI32, Ordering};

/// How many workers one statement may start on a shard, while it runs on the other shards of the host as well.
pub(crate) struct Workers {
    /// shards on the same host, this one among them
    shards: usize,
    /// for each of them; -1 while that is not known
    each: AtomicI32,
}

impl Workers {
    pub(crate) fn of(shard: &ShardConfig, all: &[ShardConfig]) -> Self {
        Self {
            shards: all.iter().filter(|other| host(other) == host(shard)).count(),
            each: AtomicI32::new(-1),
        }
    }

    /// The shard's own limit, as `SHOW max_parallel_workers_per_gather` gives it.
    pub(crate) fn learn(&self, limit: Option<&str>) {
        let limit = limit.and_then(|limit| limit.parse::<i32>().ok());
        let shards = i32::try_from(self.shards.max(1)).unwrap_or(i32::MAX);
        // Rounded down: one server would have its leader and its workers at the statement, and here each shard has a leader.
        let each = limit.map_or(-1, |limit| limit / shards);
        self.each.store(each, Ordering::Relaxed);
    }

    /// Whether others run on the same host.
    fn is_crowded(&self) -> bool {
        self.shards > 1
    }

    /// None where the shard's own limit holds.
    fn each(&self) -> Option<i32> {
        let each = self.each.load(Ordering::Relaxed);
        (self.is_crowded() && each >= 0).then_some(each)
    }
}

/// Where a shard runs; one name for all addresses of this host.
fn host(shard: &ShardConfig) -> &str {
    match shard.host.as_str() {
        host if host.starts_with('/') || host.starts_with("127.") => "localhost",
        "::1" => "localhost",
        host => host,
    }
}

impl Transaction {
    /// Lets what runs on several shards of one host at once start its part of the workers only, until the transaction ends. For a
    /// statement that is a transaction of its own: those behind it would keep the limit.
    pub fn divide_workers(&mut self) {
        self.divides_workers = true;
    }

    /// Queues on a participant what goes in front of a fragment: its fences, and how many workers it may start where it is `one_of` several
    /// shards' at once.
    pub fn queue_before_fragment(&mut self, shard: ShardId, fences: &BTreeSet<&str>, one_of: usize) {
        let divides = self.divides_workers && one_of > 1;
        let each = self
            .coordinator
            .state(shard)
            .ok()
            .filter(|_| divides)
            .and_then(|state: &ShardState| state.workers.each());
        let Some(participant) = self.participants.iter_mut().find(|p| p.shard() == shard) else {
            return;
        };
        let mut sql: Vec<String> = Vec::new();
        if let Some(each) = each.filter(|_| !std::mem::replace(&mut participant.has_limit, true)) {
            sql.push(format!("SET LOCAL max_parallel_workers_per_gather = {each}"));
        }
        if !fences.is_empty() {
            let names: Vec<&str> = fences.iter().copied().collect();
            sql.push(format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")));
        }
        if !sql.is_empty() {
            participant.backend.queue_silent(&sql.join("; "));
        }
    }

    /// Lets a participant start no workers for what follows, where other shards have the same processors: for statements in which each
    /// worker would do the same again.
    pub fn spare_workers(&mut self, shard: ShardId) {
        let is_crowded = self
            .coordinator
            .state(shard)
            .is_ok_and(|state| state.workers.is_crowded());
        let participant = self.participants.iter_mut().find(|p| p.shard() == shard);
        if let Some(participant) = participant.filter(|_| self.divides_workers && is_crowded) {
            participant.has_limit = true;
            participant
                .backend
                .queue_silent("SET LOCAL max_parallel_workers_per_gather = 0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: u16, host: &str) -> ShardConfig {
        ShardConfig {
            id: ShardId(u32::from(id)),
            name: format!("shard{id}"),
            host: host.to_owned(),
            port: 6000 + id,
            tls: None,
        }
    }

    #[test]
    fn shards_of_a_host_share_its_workers() {
        let all = [
            shard(1, "/run/one"),
            shard(2, "127.0.0.1"),
            shard(3, "elsewhere"),
            shard(4, "localhost"),
        ];
        let each = |at: usize, limit: Option<&str>| {
            let workers = Workers::of(&all[at], &all);
            workers.learn(limit);
            workers.each()
        };
        assert_eq!(each(0, Some("8")), Some(2), "nine processes, of which three lead");
        assert_eq!(each(0, Some("3")), Some(1));
        assert_eq!(
            each(3, Some("2")),
            Some(0),
            "as many processes as one server would have"
        );
        assert_eq!(each(3, Some("0")), Some(0));
        assert_eq!(each(2, Some("8")), None, "it has its host for itself");
        assert_eq!(each(0, None), None, "nothing is known");
    }
}
