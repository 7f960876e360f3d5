//! Transactions over shards: participants, cuts, two-phase commit, recovery, deadlocks.
