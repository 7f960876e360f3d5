//! What is measured: pgbench's own scripts, and a few of ours in its language.

use crate::{Error, Result};

/// What pgbench runs in one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    /// One of pgbench's built-in scripts.
    BuiltIn(&'static str),
    /// A script of ours; `:scale` is set.
    Own(&'static str),
}

/// One thing to measure.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// What `--only` calls it.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    /// pgbench's query mode: simple, extended or prepared.
    pub(crate) mode: &'static str,
    pub(crate) script: Script,
    /// How many clients, where it is not the number that was asked for.
    pub(crate) clients: Option<usize>,
    /// What others do meanwhile, and how many they are. The latency is what matters then, and is kept.
    pub(crate) beside: Option<(Script, usize)>,
}

impl Workload {
    /// The same with another name, title and number of clients.
    const fn with_clients(self, name: &'static str, title: &'static str, clients: usize) -> Self {
        Self {
            name,
            title,
            clients: Some(clients),
            ..self
        }
    }
}

/// Money moves between two random accounts, on two shards more often than not. The lower id comes first, so that two
/// transfers cannot wait for each other.
const TRANSFER: &str = "\
\\set a random(1, 100000 * :scale)
\\set b random(1, 100000 * :scale)
\\set low least(:a, :b)
\\set high greatest(:a, :b)
\\set amount random(-500, 500)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance - :amount WHERE aid = :low;
UPDATE pgbench_accounts SET abalance = abalance + :amount WHERE aid = :high;
END;
";

/// Money moves from an account in the first sixth of the keys to one in the last: with the sharded side's six ranges, always
/// from one shard to another.
const TRANSFER_TWO_SHARDS: &str = "\
\\set low random(1, 100000 * :scale / 6)
\\set high random(100000 * :scale - 100000 * :scale / 6 + 1, 100000 * :scale)
\\set amount random(-500, 500)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance - :amount WHERE aid = :low;
UPDATE pgbench_accounts SET abalance = abalance + :amount WHERE aid = :high;
END;
";

/// Reads a balance and writes it back, as applications do; the keys lie in all ranges. Conflicts are tried again.
const SERIALIZABLE: &str = "\
\\set key random(0, 99) * 1000 * :scale + 1
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT abalance FROM pgbench_accounts WHERE aid = :key;
UPDATE pgbench_accounts SET abalance = abalance + 0 WHERE aid = :key;
END;
";

/// Reads one account of the first sixth of the keys and one of the last: on the sharded side a cut over two shards.
const TWO_SHARDS_READ: &str = "\
\\set low random(1, 100000 * :scale / 6)
\\set high random(100000 * :scale - 100000 * :scale / 6 + 1, 100000 * :scale)
SELECT sum(abalance) FROM pgbench_accounts WHERE aid IN (:low, :high);
";

const RANGE_SUM: &str = "\
\\set first random(1, 100000 * :scale - 99)
SELECT sum(abalance) FROM pgbench_accounts WHERE aid BETWEEN :first AND :first + 99;
";

const GROUP_BY: &str = "SELECT bid, count(*), sum(abalance) FROM pgbench_accounts GROUP BY bid;\n";

const fn workload(name: &'static str, title: &'static str, mode: &'static str, script: Script) -> Workload {
    Workload {
        name,
        title,
        mode,
        script,
        clients: None,
        beside: None,
    }
}

const TRANSFER_TWO: Workload = workload(
    "transfer-two-shards",
    "transfer between the first and the last sixth",
    "simple",
    Script::Own(TRANSFER_TWO_SHARDS),
);

const TPCB: Workload = workload("tpcb-simple", "TPC-B, simple", "simple", Script::BuiltIn("tpcb-like"));

/// All of them, in the order of the table.
pub(crate) const ALL: &[Workload] = &[
    workload(
        "select-simple",
        "point SELECT, simple",
        "simple",
        Script::BuiltIn("select-only"),
    ),
    workload(
        "select-extended",
        "point SELECT, extended",
        "extended",
        Script::BuiltIn("select-only"),
    ),
    workload(
        "select-prepared",
        "point SELECT, prepared",
        "prepared",
        Script::BuiltIn("select-only"),
    ),
    TPCB,
    TPCB.with_clients("tpcb-1", "TPC-B, simple, 1 client", 1),
    TPCB.with_clients("tpcb-32", "TPC-B, simple, 32 clients", 32),
    workload(
        "tpcb-prepared",
        "TPC-B, prepared",
        "prepared",
        Script::BuiltIn("tpcb-like"),
    ),
    workload(
        "transfer",
        "transfer between two accounts",
        "simple",
        Script::Own(TRANSFER),
    ),
    TRANSFER_TWO,
    TRANSFER_TWO.with_clients("transfer-two-shards-1", "the same, 1 client", 1),
    TRANSFER_TWO.with_clients("transfer-two-shards-32", "the same, 32 clients", 32),
    Workload {
        clients: Some(1),
        beside: Some((Script::Own(TRANSFER_TWO_SHARDS), 16)),
        ..workload(
            "read-two-shards",
            "read of two accounts, one client beside 16 that transfer between the same sixths",
            "simple",
            Script::Own(TWO_SHARDS_READ),
        )
    },
    workload(
        "serializable",
        "SERIALIZABLE, read and update one of 100 keys",
        "simple",
        Script::Own(SERIALIZABLE),
    ),
    workload(
        "range-sum",
        "sum over 100 neighbouring keys",
        "simple",
        Script::Own(RANGE_SUM),
    ),
    workload(
        "group-by",
        "GROUP BY over the whole table",
        "simple",
        Script::Own(GROUP_BY),
    ),
];

/// The named workloads in the order of the table, or all.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<Workload>> {
    let known = |name: &String| ALL.iter().any(|workload| workload.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let known: Vec<_> = ALL.iter().map(|workload| workload.name).collect();
        return Err(Error::Script(format!(
            "there is no workload \"{unknown}\"; there are: {}",
            known.join(", ")
        )));
    }
    let wanted = ALL
        .iter()
        .filter(|workload| names.is_empty() || names.iter().any(|name| name == workload.name));
    Ok(wanted.copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_by_name() {
        assert_eq!(chosen(&[]).expect("all").len(), ALL.len());
        let two = chosen(&["transfer".into(), "select-simple".into()]).expect("two");
        let names: Vec<_> = two.iter().map(|workload| workload.name).collect();
        assert_eq!(names, ["select-simple", "transfer"], "in the order of the table");
        let error = chosen(&["selects".into()]).expect_err("unknown").to_string();
        assert!(error.contains("selects") && error.contains("select-simple"), "{error}");
    }
}
