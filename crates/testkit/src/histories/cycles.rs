//! From what clients wrote down to the crate `adya`, which infers the order of transactions and looks for cycles.

use super::record::{Outcome, Record};
use super::verdict::Verdict;
use adya::history::{Interner, Mop, Op, OpType, ReadValue, Scalar};
use adya::{History, Opts, Valid};
use std::time::Duration;

/// What a transaction did to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MicroOp {
    /// Put a value behind a list; no value comes twice.
    Append(i64, i64),
    /// Read a list.
    List(i64, Vec<i64>),
    /// Wrote a register; no value comes twice.
    Write(i64, i64),
    /// Read a register; `None` before the first write.
    Value(i64, Option<i64>),
}

impl MicroOp {
    pub(super) fn is_read(&self) -> bool {
        matches!(self, MicroOp::List(..) | MicroOp::Value(..))
    }
}

/// One step: its operations in their order.
pub(super) type Step = Vec<MicroOp>;

/// What is asked of a history.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub(super) workload: adya::Workload,
    /// As `adya` calls it.
    pub(super) model: &'static str,
    /// For registers: a step that reads a key and writes it, writes the version after the one that it read. Not so at READ
    /// COMMITTED.
    pub(super) writes_follow_reads: bool,
}

/// How long the search in one component of the graph may take.
const SEARCH_LIMIT: Duration = Duration::from_secs(20);

/// Adds what `adya` finds to a verdict.
pub(super) fn check(records: &[Record<Step>], question: Question, verdict: &mut Verdict) {
    let options = Opts {
        models: vec![question.model.to_owned()],
        timeout: SEARCH_LIMIT,
        wfr_keys: question.writes_follow_reads,
        // An acknowledged write comes before all that begin later: each key lies on one shard.
        linearizable_keys: true,
        ..Opts::default()
    };
    let report = adya::check(&history(records), question.workload, &options);
    if report.valid == Valid::True {
        return;
    }
    for (kind, anomalies) in &report.anomalies {
        for anomaly in anomalies {
            verdict.violation(kind, anomaly.explanation.clone());
        }
    }
}

/// Invocations and completions by the clock.
fn history(records: &[Record<Step>]) -> History {
    let mut interner = Interner::default();
    let mut events = Vec::with_capacity(records.len() * 2);
    for record in records {
        let asked = record.what.iter().map(|op| mop(&mut interner, op, false)).collect();
        // Of what failed or is unknown, only the writes say something.
        let told = record.outcome == Outcome::Ok;
        let answer = record.what.iter().map(|op| mop(&mut interner, op, told)).collect();
        let kind = match record.outcome {
            Outcome::Ok => OpType::Ok,
            Outcome::Failed => OpType::Fail,
            Outcome::Unknown => OpType::Info,
        };
        events.push((record.begun, record.process, OpType::Invoke, asked));
        events.push((record.ended, record.process, kind, answer));
    }
    events.sort_by_key(|(moment, ..)| *moment);
    let ops = events.into_iter().zip(0..);
    let ops = ops.map(|((_, process, kind, value), index)| Op {
        index,
        kind,
        process: i64::try_from(process).ok(),
        value,
        time: None,
    });
    let ops = ops.collect();
    History::from_ops(ops, interner)
}

fn mop(interner: &mut Interner, op: &MicroOp, told: bool) -> Mop {
    let mut id = |value: i64| interner.intern(Scalar::Int(value));
    match op {
        MicroOp::Append(key, value) => Mop::Append {
            key: id(*key),
            value: id(*value),
        },
        MicroOp::Write(key, value) => Mop::Write {
            key: id(*key),
            value: id(*value),
        },
        MicroOp::List(key, values) => Mop::Read {
            key: id(*key),
            value: match told {
                true => ReadValue::List(values.iter().map(|value| id(*value)).collect()),
                false => ReadValue::Nil,
            },
        },
        MicroOp::Value(key, value) => Mop::Read {
            key: id(*key),
            value: match value {
                Some(value) if told => ReadValue::Scalar(id(*value)),
                _ => ReadValue::Nil,
            },
        },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A step of a process; times in the order in which they are given to [`history_of`].
    pub(crate) fn step(process: u64, begun: u64, ended: u64, outcome: Outcome, what: Step) -> Record<Step> {
        Record {
            process,
            begun,
            ended,
            outcome,
            what,
        }
    }

    fn found(records: &[Record<Step>], workload: adya::Workload, model: &'static str) -> Vec<String> {
        let mut verdict = Verdict::default();
        let question = Question {
            workload,
            model,
            writes_follow_reads: true,
        };
        check(records, question, &mut verdict);
        verdict.kinds.into_keys().collect()
    }

    #[test]
    fn write_skew_is_no_snapshot_anomaly_and_no_serial_history() {
        use MicroOp::{Append, List};
        let records = [
            step(
                1,
                1,
                3,
                Outcome::Ok,
                vec![List(1, vec![]), List(2, vec![]), Append(1, 7)],
            ),
            step(
                2,
                2,
                4,
                Outcome::Ok,
                vec![List(1, vec![]), List(2, vec![]), Append(2, 8)],
            ),
            step(3, 5, 6, Outcome::Ok, vec![List(1, vec![7]), List(2, vec![8])]),
        ];
        let lists = adya::Workload::ListAppend;
        assert_eq!(
            found(&records, lists, "strong-snapshot-isolation"),
            Vec::<String>::new()
        );
        assert_eq!(found(&records, lists, "serializable"), ["G2-item"]);
    }

    #[test]
    fn what_was_refused_and_is_read_is_found() {
        use MicroOp::{Append, List, Value, Write};
        let lists = [
            step(1, 1, 2, Outcome::Failed, vec![Append(1, 7)]),
            step(2, 3, 4, Outcome::Ok, vec![List(1, vec![7])]),
        ];
        assert!(found(&lists, adya::Workload::ListAppend, "read-committed").contains(&"G1a".to_owned()));
        let unknown = [
            step(1, 1, 2, Outcome::Unknown, vec![Append(1, 7)]),
            step(2, 3, 4, Outcome::Ok, vec![List(1, vec![7])]),
        ];
        assert_eq!(
            found(&unknown, adya::Workload::ListAppend, "strict-serializable"),
            Vec::<String>::new()
        );
        let registers = [
            step(1, 1, 2, Outcome::Failed, vec![Write(1, 7)]),
            step(2, 3, 4, Outcome::Ok, vec![Value(1, Some(7))]),
        ];
        assert!(found(&registers, adya::Workload::RwRegister, "read-committed").contains(&"G1a".to_owned()));
    }

    #[test]
    fn a_lost_update_of_a_register_is_found() {
        use MicroOp::{Value, Write};
        let records = [
            step(1, 1, 3, Outcome::Ok, vec![Value(1, None), Write(1, 7)]),
            step(2, 2, 4, Outcome::Ok, vec![Value(1, None), Write(1, 8)]),
        ];
        let kinds = found(&records, adya::Workload::RwRegister, "strong-snapshot-isolation");
        assert!(kinds.contains(&"lost-update".to_owned()), "{kinds:?}");
    }
}
