//! A distributed plan as EXPLAIN writes it: lines, or a document of JSON, XML or YAML.

mod documents;

use crate::session::explain::Used;
use pgherd_model::ShardId;
use serde_json::{Map, Value, json};

/// What runs where, and what it took.
#[derive(Debug, Default)]
pub(crate) struct Distributed {
    /// forward, scatter, plan, gather, write or parts
    pub(crate) tier: &'static str,
    pub(crate) reason: String,
    /// what is done with the shards' rows
    pub(crate) combine: String,
    pub(crate) shards: Vec<ShardPlan>,
    /// without ANALYZE
    pub(crate) planning_ms: Option<f64>,
    /// with ANALYZE
    pub(crate) execution_ms: Option<f64>,
    /// with ANALYZE, over several shards
    pub(crate) actual: Option<Actual>,
}

/// One shard's part.
#[derive(Debug)]
pub(crate) struct ShardPlan {
    pub(crate) shard: ShardId,
    pub(crate) relation: Option<String>,
    pub(crate) sql: String,
    /// of the shard's EXPLAIN
    pub(crate) lines: Vec<String>,
}

/// What the statement took.
#[derive(Debug)]
pub(crate) struct Actual {
    pub(crate) rows: u64,
    /// of its reply
    pub(crate) bytes: u64,
    pub(crate) used: Used,
}

impl Distributed {
    fn shard_count(&self) -> usize {
        let mut shards: Vec<_> = self.shards.iter().map(|s| s.shard).collect();
        shards.sort();
        shards.dedup();
        shards.len()
    }

    /// Lines in PostgreSQL's manner.
    pub(crate) fn text(&self, timing: bool, times: bool) -> Vec<String> {
        let shards = match self.shard_count() {
            0 => String::new(),
            1 => " on 1 shard".to_owned(),
            several => format!(" on {several} shards"),
        };
        let actual = match (&self.actual, self.execution_ms.filter(|_| timing)) {
            (Some(actual), Some(took)) => format!("  (actual time={took:.3} rows={})", actual.rows),
            (Some(actual), None) => format!("  (actual rows={})", actual.rows),
            _ => String::new(),
        };
        let mut lines = vec![format!("Distributed {}{shards}{actual}", capitalized(self.tier))];
        lines.push(format!("  Reason: {}", self.reason));
        lines.push(format!("  Combine: {}", self.combine));
        if let Some(actual) = &self.actual {
            lines.push(format!("  Reply: {} bytes", actual.bytes));
            if !actual.used.received.is_empty() {
                let each = actual
                    .used
                    .received
                    .iter()
                    .map(|(shard, bytes)| format!("shard {shard}: {bytes} bytes"));
                lines.push(format!("  Received: {}", each.collect::<Vec<_>>().join(", ")));
            }
            if let Some(used) = &actual.used.statistics {
                let steps = used.steps.iter();
                lines.extend(steps.map(|s| format!("  Step: {}: rows={} Bytes: {}", s.what, s.rows, s.bytes)));
                if used.steps.is_empty() {
                    lines.push(format!(
                        "  Memory: {}kB  Disk: {}kB",
                        used.memory_bytes.div_ceil(1024),
                        used.spilled_bytes.div_ceil(1024)
                    ));
                }
            }
        }
        for shard in &self.shards {
            let relation = shard.relation.as_ref().map_or(String::new(), |r| format!(" for {r}"));
            lines.push(format!("  ->  Shard {}{relation}", shard.shard));
            for (i, line) in shard.sql.trim().lines().enumerate() {
                lines.push(format!("        {}{line}", if i == 0 { "Query: " } else { "       " }));
            }
            for (i, line) in shard.lines.iter().flat_map(|l| l.lines()).enumerate() {
                lines.push(format!("        {}{line}", if i == 0 { "->  " } else { "    " }));
            }
        }
        if times {
            if let Some(took) = self.planning_ms {
                lines.push(format!("Planning Time: {took:.3} ms"));
            }
            if let Some(took) = self.execution_ms {
                lines.push(format!("Execution Time: {took:.3} ms"));
            }
        }
        lines
    }

    /// One document.
    pub(crate) fn json(&self, times: bool) -> String {
        serde_json::to_string_pretty(&json!([self.document(times)])).unwrap_or_default()
    }

    /// The same as XML.
    pub(crate) fn xml(&self, times: bool) -> String {
        documents::xml(&self.document(times))
    }

    /// The same as YAML.
    pub(crate) fn yaml(&self, times: bool) -> String {
        documents::yaml(&self.document(times))
    }

    /// What a document says, with each shard's own plan in it.
    fn document(&self, times: bool) -> Value {
        let part = |shard: &ShardPlan| {
            let own = serde_json::from_str::<Value>(&shard.lines.join("\n")).ok();
            let plan = own.and_then(|own| own.get(0)?.get("Plan").cloned());
            let mut node = json!({"Node Type": "Shard", "Shard": shard.shard.0, "Query": shard.sql});
            if let (Some(relation), Some(node)) = (&shard.relation, node.as_object_mut()) {
                node.insert("Relation".into(), json!(relation));
            }
            if let (Some(plan), Some(node)) = (plan, node.as_object_mut()) {
                node.insert("Plans".into(), json!([plan]));
            }
            node
        };
        let mut plan = json!({
            "Node Type": "Distributed Plan",
            "Tier": self.tier,
            "Reason": self.reason,
            "Combine": self.combine,
            "Shards": self.shard_count(),
            "Plans": self.shards.iter().map(part).collect::<Vec<_>>(),
        });
        if let (Some(actual), Some(plan)) = (&self.actual, plan.as_object_mut()) {
            plan.insert("Actual Rows".into(), json!(actual.rows));
            plan.insert("Reply Bytes".into(), json!(actual.bytes));
            let received = actual.used.received.iter();
            let received: Map<String, Value> = received.map(|(s, bytes)| (s.to_string(), json!(bytes))).collect();
            plan.insert("Received Bytes".into(), Value::Object(received));
            if let Some(used) = &actual.used.statistics {
                let step = |s: &pgherd_query::Step| json!({"Step": s.what, "Rows": s.rows, "Bytes": s.bytes});
                if !used.steps.is_empty() {
                    plan.insert("Steps".into(), used.steps.iter().map(step).collect());
                }
                plan.insert("Memory Bytes".into(), json!(used.memory_bytes));
                plan.insert("Spilled Bytes".into(), json!(used.spilled_bytes));
            }
        }
        let mut document = json!({"Plan": plan});
        if let (true, Some(document)) = (times, document.as_object_mut()) {
            if let Some(took) = self.planning_ms {
                document.insert("Planning Time".into(), json!(took));
            }
            if let Some(took) = self.execution_ms {
                document.insert("Execution Time".into(), json!(took));
            }
        }
        document
    }
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
