//! The rooms' dependency rules of docs/ARCHITECTURE.md, checked against what cargo resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Package name → names of its normal (not dev, not build) dependencies, transitively within the workspace's graph.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn load() -> Self {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--workspace",
                "--edges",
                "normal",
                "--prefix",
                "depth",
                "--format",
                " {p}",
                "--offline",
            ])
            .output()
            .expect("cargo tree runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut stack: Vec<String> = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|l| !l.is_empty())
        {
            let (depth, rest) = line.split_once(' ').expect("a depth and a package");
            let depth: usize = depth.parse().expect("a number");
            let package = rest.split_whitespace().next().expect("a name").to_owned();
            stack.truncate(depth);
            if let Some(parent) = stack.last() {
                graph.entry(parent.clone()).or_default().insert(package.clone());
            }
            graph.entry(package.clone()).or_default();
            stack.push(package);
        }
        Self(graph)
    }

    fn direct(&self, package: &str) -> &BTreeSet<String> {
        self.0
            .get(package)
            .unwrap_or_else(|| panic!("{package} is in the workspace"))
    }

    fn reaches(&self, package: &str, wanted: &str) -> bool {
        let (mut open, mut seen) = (vec![package], BTreeSet::new());
        while let Some(at) = open.pop() {
            if at == wanted {
                return true;
            }
            if seen.insert(at) {
                open.extend(self.direct(at).iter().map(String::as_str));
            }
        }
        false
    }

    /// Our own crates that name `wanted` as a dependency.
    fn users(&self, wanted: &str) -> Vec<&str> {
        let ours = self.0.iter().filter(|(name, _)| name.starts_with("pgherd"));
        ours.filter(|(_, uses)| uses.contains(wanted))
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

#[test]
fn rooms_use_only_what_they_may() {
    let graph = Graph::load();
    assert_eq!(
        graph.users("pgwire"),
        ["pgherd-gateway"],
        "only the gateway knows pgwire"
    );
    assert_eq!(
        graph.users("datafusion"),
        ["pgherd-query"],
        "only query knows DataFusion"
    );
    assert_eq!(graph.users("arrow"), ["pgherd-query"], "only query knows Arrow");
    for pure in ["pgherd-model", "pgherd-sql"] {
        assert!(!graph.reaches(pure, "tokio"), "{pure} is pure: no tokio");
    }
    for (room, not) in [
        ("pgherd-testkit", "pgherd-gateway"),
        ("pgherd-shards", "pgherd-catalog"),
        ("pgherd-catalog", "pgherd-transaction"),
        ("pgherd-transaction", "pgherd-query"),
        ("pgherd-query", "pgherd-operations"),
        ("pgherd-operations", "pgherd-gateway"),
        ("pgherd-local-cluster", "pgherd-model"),
        ("pgherd-model", "pgherd-sql"),
        ("pgherd-sql", "pgherd-shards"),
    ] {
        assert!(!graph.reaches(room, not), "{room} must not reach {not}");
    }
    // The check itself must be able to see an edge.
    assert!(graph.reaches("pgherd", "tokio"));
    assert!(graph.reaches("pgherd-query", "pgherd-sql"));
}
