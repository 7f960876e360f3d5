//! What the shards' catalogs were found to say at SERIALIZABLE over shards: nothing reads behind the back of what a statement
//! names (designs/0013-serializable.md).
//!
//! A finding holds for one version of a shard's schema. Whoever relies on it has the shard compare the version before the
//! transaction ends, so what is kept here may be old: it then costs a transaction, and never gives a wrong answer.

use parking_lot::Mutex;
use pgherd_model::ShardId;
use std::collections::{HashMap, HashSet};

/// More names than this of one version, and all are forgotten.
const MOST_NAMES: usize = 10_000;

/// What is known of each shard, in one database.
#[derive(Default)]
pub(crate) struct Judged(Mutex<HashMap<ShardId, Finding>>);

struct Finding {
    version: i64,
    names: HashSet<String>,
}

impl Judged {
    /// The version of the shard's schema in which nothing reads behind any of these; None where that is not known of all.
    pub(crate) fn version(&self, shard: ShardId, names: &[String]) -> Option<i64> {
        let findings = self.0.lock();
        let finding = findings.get(&shard)?;
        names
            .iter()
            .all(|name| finding.names.contains(name))
            .then_some(finding.version)
    }

    /// Nothing reads behind these in that version, which a transaction other than the one that makes it has seen.
    pub(crate) fn note(&self, shard: ShardId, version: i64, names: Vec<String>) {
        let mut findings = self.0.lock();
        let finding = findings.entry(shard).or_insert_with(|| Finding {
            version,
            names: HashSet::new(),
        });
        if finding.version != version || finding.names.len() > MOST_NAMES {
            finding.version = version;
            finding.names.clear();
        }
        finding.names.extend(names);
    }

    /// A shard has another version.
    pub(crate) fn forget(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_holds_for_its_version_and_its_shard() {
        let judged = Judged::default();
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let (one, two) = (ShardId(1), ShardId(2));
        assert_eq!(judged.version(one, &[]), None);
        judged.note(one, 7, names(&["a", "b"]));
        assert_eq!(judged.version(one, &names(&["b", "a"])), Some(7));
        assert_eq!(judged.version(one, &names(&["a", "c"])), None);
        assert_eq!(judged.version(two, &names(&["a"])), None);
        judged.note(one, 8, names(&["c"]));
        assert_eq!(judged.version(one, &names(&["a"])), None, "of the version before");
        assert_eq!(judged.version(one, &names(&["c"])), Some(8));
        judged.forget();
        assert_eq!(judged.version(one, &names(&["c"])), None);
    }
}
