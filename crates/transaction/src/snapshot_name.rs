//! The name of a snapshot over all shards, by which another session sees what the exporting transaction sees (`pg_dump -j`).
//!
//! It holds all that an importer needs, so that it may be connected to another gateway: the names that PostgreSQL gave the
//! snapshot on each shard, and the epoch of the catalog. An importer whose catalog has another epoch must refuse it: rows of a range that has moved
//! since are in neither of the places where it would look for them.
//!
//! ```text
//! pgherd-17/1:00000015-00000164-1/2:0000000A-00000021-1
//! ```

use pgherd_model::ShardId;
use std::collections::BTreeMap;
use std::fmt;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotName {
    /// the catalog's, when the snapshot was taken
    pub epoch: u64,
    /// PostgreSQL's own name on each shard
    pub shards: BTreeMap<ShardId, String>,
}

impl SnapshotName {
    /// None for what is no such name.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("pgherd-")?.split('/');
        let epoch = parts.next()?.parse().ok()?;
        let of_shard = |part: &str| {
            let (shard, name) = part.split_once(':')?;
            let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
            plain.then_some((ShardId(shard.parse().ok()?), name.to_owned()))
        };
        let shards: BTreeMap<_, _> = parts.map(of_shard).collect::<Option<_>>()?;
        (!shards.is_empty()).then_some(Self { epoch, shards })
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pgherd-{}", self.epoch)?;
        self.shards
            .iter()
            .try_for_each(|(shard, name)| write!(f, "/{}:{name}", shard.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let text = "pgherd-17/1:00000015-00000164-1/2:0000000A-00000021-1";
        let name = SnapshotName::parse(text).expect("a name");
        assert_eq!((name.epoch, name.shards.len()), (17, 2));
        assert_eq!(name.to_string(), text);
    }

    #[test]
    fn nothing_else_is_one() {
        for text in [
            "00000015-00000164-1",
            "pgherd-17",
            "pgherd-x/1:00",
            "pgherd-1/1:",
            "pgherd-1/1:0'; DROP TABLE t; --",
            "pgherd-1/1:00//",
        ] {
            assert_eq!(SnapshotName::parse(text), None, "{text}");
        }
    }
}
