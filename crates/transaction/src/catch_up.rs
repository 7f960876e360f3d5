//! A transaction at READ COMMITTED that does not go back in time from one shard to another.
//!
//! A statement on shard 1 has shown a commit over shards 1 and 3, and the next one is about to run on shard 3. When that does not
//! show the commit, it is still prepared there, since all participants are prepared before any is visible. So the names of
//! what is prepared on shard 3 say what there is to wait for: all that another shard of this transaction takes part in.
//! They are few, and gone within milliseconds. The wait is a statement of its own in front of the client's, in the same message;
//! the client's takes its snapshot behind it.
//!
//! What a client has prepared itself may stay for hours and is not waited for. Within a statement over several shards, [`cut`](crate::cut)
//! sees to this; here it is about shards that an earlier statement used.

use crate::gid::{self, PREFIX};
use crate::transaction::Transaction;
use pgherd_model::ShardId;

/// The hexadecimal digits that have each bit.
const DIGITS: [&str; 4] = ["13579bdf", "2367abef", "4567cdef", "89abcdef"];

impl Transaction {
    /// A statement is about to run on that shard alone, which is enlisted: queues in front of it what it has to wait for, so that
    /// it sees what earlier statements saw on other shards. False where there is nothing: no other shard has been
    /// used, or one snapshot serves the whole transaction.
    pub fn catch_up(&mut self, shard: ShardId) -> bool {
        self.catch_up_with(shard, |_| false)
    }

    /// The same for one shard of a cut over several, among which the cut itself looks.
    pub(crate) fn catch_up_with(&mut self, shard: ShardId, in_cut: impl Fn(ShardId) -> bool) -> bool {
        if self.participants.len() < 2 || !self.needs_cuts() {
            return false;
        }
        let shown = self.participants.iter().filter(|p| p.was_shown).map(|p| p.shard());
        let others: Vec<ShardId> = shown.filter(|other| *other != shard && !in_cut(*other)).collect();
        let Some(at) = self.position(shard).filter(|_| !others.is_empty()) else {
            return false;
        };
        let identity = &self.coordinator.identity;
        let (cluster, database) = (
            gid::label(&identity.cluster),
            gid::database_hash(&self.coordinator.database),
        );
        let names = names(&cluster, &database, &others);
        self.participants[at].queue(&format!("SELECT pgherd.wait_for_commits('{names}')"));
        true
    }
}

/// A regular expression for the names of the cluster's own commits that one of these shards takes part in.
fn names(cluster: &str, database: &str, shards: &[ShardId]) -> String {
    let one = |shard: &ShardId| format!("[{}].{{{}}}", DIGITS[shard.0 as usize % 4], shard.0 / 4);
    let any: Vec<String> = shards.iter().map(one).collect();
    // Of what a label is made of, only the point means something else.
    let cluster = cluster.replace('.', "[.]");
    let any = any.join("|");
    format!("^{PREFIX}{cluster}:{database}:[0-9a-f]*({any}):[^:]+:[0-9]+[.][0-9]+:[0-9]+(:[0-9]+)?$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_commits() {
        assert_eq!(
            names("a.b", "1f3a9c02", &[ShardId(1), ShardId(10)]),
            "^pgherd:a[.]b:1f3a9c02:[0-9a-f]*([2367abef].{0}|[4567cdef].{2}):[^:]+:[0-9]+[.][0-9]+:[0-9]+(:[0-9]+)?$"
        );
    }
}
