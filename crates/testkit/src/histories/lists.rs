//! Transactions that put values behind lists on several shards, and read lists of all shards.
//!
//! Every value is put behind a list once, so a list that was read says in which order the transactions before it came.
//!
//! What is asked depends on the level. Every transaction that writes does so on at least two of the three shards and every
//! SELECT reads of all three. Then any two transactions share a shard, on which they came one after the other; and so readers
//! of cuts agree on their order, whoever they ask.
//! - REPEATABLE READ: *strong snapshot isolation*, no cycle but write skew, and what was acknowledged before is seen.
//! - READ COMMITTED: every SELECT is a step of its own, without what its own transaction has written; transactions only append.
//!   Steps of these two kinds are *strictly serializable* if every SELECT reads a cut: a fractured one makes a cycle.
//! - SERIALIZABLE: *strictly serializable*.

use super::client::{Client, Stop};
use super::cycles::{self, MicroOp, Question, Step};
use super::record::{Log, Outcome, Record};
use super::round::Script;
use super::stage::Stage;
use super::verdict::Verdict;
use super::{Level, order::SHARDS};
use async_trait::async_trait;
use rand::Rng;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Keys of one shard; the first of the next shard comes right after.
pub(super) const KEYS_PER_SHARD: i64 = 1000;
/// So many keys of each shard are in use at a time.
const KEYS_AT_A_TIME: i64 = 2;
/// After so many transactions, the next key of each shard comes in use: lists stay short.
const TRANSACTIONS_PER_KEY: i64 = 30;

#[derive(Default)]
pub(super) struct Lists {
    log: Log<Step>,
    /// The last value that was given out.
    value: AtomicI64,
    transactions: AtomicI64,
    /// SELECTs that did not show what their own transaction had written.
    forgetful: Mutex<Vec<String>>,
    /// All lists after the end.
    end: Mutex<Option<BTreeMap<i64, Vec<i64>>>>,
}

/// The keys that are in use after so many transactions, one of each shard, in the order of the shards.
pub(super) fn keys_in_use(client: &mut Client, transactions: i64, per_key: i64) -> [i64; SHARDS] {
    let first = transactions / per_key;
    let mut keys = [0; SHARDS];
    for (key, shard) in keys.iter_mut().zip(0..) {
        let slot = (first + client.random.random_range(0..KEYS_AT_A_TIME)) % KEYS_PER_SHARD;
        *key = shard * KEYS_PER_SHARD + slot;
    }
    keys
}

/// Two or three of the keys; mostly in their order, so that transactions rarely wait for each other in a circle.
pub(super) fn some_of(client: &mut Client, keys: [i64; SHARDS]) -> Vec<i64> {
    let mut some = keys.to_vec();
    some.shuffle(&mut client.random);
    some.truncate(client.random.random_range(2..=SHARDS));
    if client.chance(0.95) {
        some.sort_unstable();
    }
    some
}

/// `1, 2, 3`
pub(super) fn comma_separated(keys: &[i64]) -> String {
    keys.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

fn parse(list: Option<&String>) -> Vec<i64> {
    let text = list.map_or("", String::as_str);
    text.split_whitespace().filter_map(|value| value.parse().ok()).collect()
}

impl Lists {
    async fn read(client: &mut Client, keys: &[i64]) -> Result<Vec<(i64, Vec<i64>)>, Stop> {
        let sql = format!("SELECT k, v FROM lists WHERE k IN ({})", comma_separated(keys));
        let rows = client.rows(&sql).await?;
        let key = |row: &Vec<Option<String>>| row.first()?.as_ref()?.parse::<i64>().ok();
        Ok(rows
            .iter()
            .filter_map(|row| Some((key(row)?, parse(row.get(1)?.as_ref()))))
            .collect())
    }

    /// A SELECT within a transaction: a step of its own, or a part of the transaction's.
    async fn look(&self, client: &mut Client, keys: &[i64], step: &mut Step) -> Result<(), Stop> {
        let begun = client.stage.tick();
        let found = Self::read(client, keys).await?;
        if client.stage.level.is_one_step() {
            step.extend(found.into_iter().map(|(key, list)| MicroOp::List(key, list)));
            return Ok(());
        }
        let mut seen = Step::new();
        for (key, mut list) in found {
            let own = step.iter().filter_map(|op| match op {
                MicroOp::Append(to, value) if *to == key => Some(*value),
                _ => None,
            });
            let own: Vec<i64> = own.collect();
            if list.ends_with(&own) {
                list.truncate(list.len() - own.len());
            } else {
                let text = format!("list {key} is read as {list:?} by the transaction that has just appended {own:?}");
                self.forgetful.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            }
            seen.push(MicroOp::List(key, list));
        }
        self.log.push(client.statement(begun, seen));
        Ok(())
    }

    async fn append(&self, client: &mut Client, keys: &[i64], step: &mut Step) -> Result<(), Stop> {
        let value = self.value.fetch_add(1, Ordering::Relaxed) + 1;
        step.extend(keys.iter().map(|key| MicroOp::Append(*key, value)));
        let sql = format!(
            "UPDATE lists SET v = v || ' {value}' WHERE k IN ({})",
            comma_separated(keys)
        );
        client.change(&sql).await.map(drop)
    }

    async fn transaction(&self, client: &mut Client, step: &mut Step) -> Result<(), Stop> {
        let number = self.transactions.fetch_add(1, Ordering::Relaxed);
        let keys = keys_in_use(client, number, TRANSACTIONS_PER_KEY);
        let written = some_of(client, keys);
        client.begin().await?;
        if client.chance(0.6) {
            self.look(client, &keys, step).await?;
        }
        // One statement over several shards locks them side by side, and two such may meet in a circle: not too many of them.
        if client.chance(0.15) {
            self.append(client, &written, step).await?;
        } else {
            for key in &written {
                self.append(client, &[*key], step).await?;
            }
        }
        if client.chance(0.2) {
            // What it wrote so far is not its last: nobody may see it.
            self.append(client, &written[..1], step).await?;
        }
        if client.chance(0.3) {
            self.look(client, &keys, step).await?;
        }
        if client.chance(0.05) {
            return client.give_up().await;
        }
        client.commit().await
    }

    /// Reads, in one statement or one transaction.
    async fn reading(&self, client: &mut Client, step: &mut Step) -> Result<(), Stop> {
        let number = self.transactions.load(Ordering::Relaxed);
        let keys = keys_in_use(client, number, TRANSACTIONS_PER_KEY);
        if !client.stage.level.is_one_step() {
            return self.look(client, &keys, step).await;
        }
        client.begin().await?;
        if client.chance(0.5) {
            self.look(client, &keys, step).await?;
        } else {
            for key in keys {
                self.look(client, &[key], step).await?;
            }
        }
        client.commit().await
    }

    /// What was acknowledged and is not there at the end, and what was refused and is.
    fn compare_with_the_end(&self, records: &[Record<Step>], verdict: &mut Verdict) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(end) = end else {
            verdict.violation("no end", "the lists could not be read after the run");
            return;
        };
        let there: BTreeSet<(i64, i64)> = end
            .iter()
            .flat_map(|(key, list)| list.iter().map(|value| (*key, *value)))
            .collect();
        for record in records {
            let appended = record.what.iter().filter_map(|op| match op {
                MicroOp::Append(key, value) => Some((*key, *value)),
                _ => None,
            });
            let appended: Vec<_> = appended.collect();
            let kept = appended.iter().filter(|append| there.contains(append)).count();
            match record.outcome {
                Outcome::Ok if kept < appended.len() => {
                    verdict.violation(
                        "lost append",
                        format!("{appended:?} was acknowledged, {kept} of it are there"),
                    );
                }
                Outcome::Failed if kept > 0 => {
                    verdict.violation(
                        "kept append",
                        format!("{appended:?} was refused, {kept} of it are there"),
                    );
                }
                Outcome::Unknown if kept != 0 && kept < appended.len() => {
                    verdict.violation("torn append", format!("of {appended:?} only {kept} are there"));
                }
                _ => {}
            }
        }
    }
}

#[async_trait]
impl Script for Lists {
    fn tables(&self) -> String {
        format!(
            "CREATE TABLE lists (k int PRIMARY KEY, v text NOT NULL) PARTITION BY RANGE (k);
             INSERT INTO lists SELECT n, '' FROM generate_series(0, {}) n",
            SHARDS as i64 * KEYS_PER_SHARD - 1
        )
    }

    async fn work(self: Arc<Self>, mut client: Client, _: usize) {
        while client.stage.is_open() {
            let begun = client.stage.tick();
            let mut step = Step::new();
            let result = match client.chance(0.7) {
                true => self.transaction(&mut client, &mut step).await,
                false => self.reading(&mut client, &mut step).await,
            };
            let record = client.settle(begun, result, step).await;
            // At READ COMMITTED what it read is written down already.
            if !record.what.is_empty() {
                self.log.push(record);
            }
        }
    }

    async fn last_look(&self, client: &mut Client) {
        let keys: Vec<i64> = (0..SHARDS as i64 * KEYS_PER_SHARD).collect();
        let begun = client.stage.tick();
        let Ok(found) = Self::read(client, &keys).await else {
            return;
        };
        let used = found.iter().filter(|(_, list)| !list.is_empty());
        let step = used.map(|(key, list)| MicroOp::List(*key, list.clone())).collect();
        self.log.push(client.statement(begun, step));
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(found.into_iter().collect());
    }

    fn verdict(&self, stage: &Stage) -> Verdict {
        let records = self.log.take();
        let mut verdict = Verdict::of(&records, |step| step.iter().any(MicroOp::is_read));
        for text in self.forgetful.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            verdict.violation("own write not seen", text);
        }
        cycles::check(&records, question(stage.level), &mut verdict);
        self.compare_with_the_end(&records, &mut verdict);
        verdict
    }
}

fn question(level: Level) -> Question {
    Question {
        workload: adya::Workload::ListAppend,
        model: match level {
            Level::RepeatableRead => "strong-snapshot-isolation",
            Level::ReadCommitted | Level::Serializable => "strict-serializable",
        },
        writes_follow_reads: true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::cycles::tests::step;
    use super::*;

    fn found(level: Level, records: Vec<Record<Step>>, end: &[(i64, Vec<i64>)]) -> Vec<String> {
        let lists = Lists::default();
        records.into_iter().for_each(|record| lists.log.push(record));
        *lists.end.lock().expect("end") = Some(end.iter().cloned().collect());
        lists
            .verdict(&Stage::new(level, 0, Vec::new()))
            .kinds
            .into_keys()
            .collect()
    }

    /// A SELECT that shows one half of a transaction, as one without a cut does.
    #[test]
    fn a_fractured_statement_makes_a_cycle() {
        use MicroOp::{Append, List};
        let end = [(1, vec![5]), (1001, vec![5])];
        let append = || step(1, 1, 9, Outcome::Ok, vec![Append(1, 5), Append(1001, 5)]);
        let read = |begun, lists: [Vec<i64>; 2]| {
            let [first, second] = lists;
            step(
                begun,
                begun,
                begun + 1,
                Outcome::Ok,
                vec![List(1, first), List(1001, second)],
            )
        };
        let whole = vec![append(), read(2, [vec![], vec![]]), read(10, [vec![5], vec![5]])];
        assert_eq!(found(Level::ReadCommitted, whole, &end), Vec::<String>::new());
        let fractured = vec![append(), read(2, [vec![5], vec![]]), read(10, [vec![5], vec![5]])];
        for level in [Level::ReadCommitted, Level::RepeatableRead] {
            assert_eq!(found(level, fractured.clone(), &end), ["G-single-item"], "{level}");
        }
    }

    /// What a coordinator without PREPARE leaves: one shard committed, the other did not.
    #[test]
    fn a_torn_or_lost_append_is_found() {
        use MicroOp::Append;
        let append = |outcome| vec![step(1, 1, 9, outcome, vec![Append(1, 5), Append(1001, 5)])];
        let half = [(1, vec![5]), (1001, vec![])];
        for (outcome, kind) in [
            (Outcome::Ok, "lost append"),
            (Outcome::Failed, "kept append"),
            (Outcome::Unknown, "torn append"),
        ] {
            let kinds = found(Level::ReadCommitted, append(outcome), &half);
            assert!(kinds.contains(&kind.to_owned()), "{kinds:?}");
        }
    }

    /// A reader after the acknowledgement that does not see it.
    #[test]
    fn a_stale_read_is_found() {
        use MicroOp::{Append, List};
        let records = vec![
            step(1, 1, 2, Outcome::Ok, vec![Append(1, 5), Append(1001, 5)]),
            step(2, 3, 4, Outcome::Ok, vec![List(1, vec![]), List(1001, vec![])]),
        ];
        let end = [(1, vec![5]), (1001, vec![5])];
        for level in [Level::ReadCommitted, Level::RepeatableRead] {
            let kinds = found(level, records.clone(), &end);
            assert!(kinds.iter().any(|kind| kind.contains("realtime")), "{level}: {kinds:?}");
        }
    }
}
