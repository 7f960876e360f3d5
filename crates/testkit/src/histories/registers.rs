//! Transactions that overwrite registers on several shards, and read registers of all shards.
//!
//! As `lists`, with less to infer from a read and other statements: a register is overwritten, by one UPDATE over several
//! shards or by one for each. The same few keys are used all the time: `adya` follows each until somebody uses it again. At REPEATABLE READ a transaction reads what it overwrites, so a lost update shows.

use super::client::{Client, Stop};
use super::cycles::{self, MicroOp, Question, Step};
use super::lists::{KEYS_PER_SHARD, comma_separated, keys_in_use, some_of};
use super::record::Log;
use super::round::Script;
use super::stage::Stage;
use super::verdict::Verdict;
use super::{Level, order::SHARDS};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Default)]
pub(super) struct Registers {
    log: Log<Step>,
    value: AtomicI64,
    forgetful: Mutex<Vec<String>>,
}

impl Registers {
    async fn look(&self, client: &mut Client, keys: &[i64], step: &mut Step) -> Result<(), Stop> {
        let begun = client.stage.tick();
        let sql = format!("SELECT k, v FROM registers WHERE k IN ({})", comma_separated(keys));
        let found = client.pairs(&sql).await?;
        if client.stage.level.is_one_step() {
            step.extend(found.into_iter().map(|(key, value)| MicroOp::Value(key, value)));
            return Ok(());
        }
        let own: BTreeMap<i64, i64> = step
            .iter()
            .filter_map(|op| match op {
                MicroOp::Write(key, value) => Some((*key, *value)),
                _ => None,
            })
            .collect();
        let mut seen = Step::new();
        for (key, value) in found {
            match own.get(&key) {
                Some(written) if value == Some(*written) => {}
                Some(written) => {
                    let text = format!(
                        "register {key} is read as {value:?} by the transaction that has just written {written}"
                    );
                    self.forgetful.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                }
                None => seen.push(MicroOp::Value(key, value)),
            }
        }
        if !seen.is_empty() {
            self.log.push(client.statement(begun, seen));
        }
        Ok(())
    }

    async fn write(&self, client: &mut Client, keys: &[i64], step: &mut Step) -> Result<(), Stop> {
        let value = self.value.fetch_add(1, Ordering::Relaxed) + 1;
        step.extend(keys.iter().map(|key| MicroOp::Write(*key, value)));
        let sql = format!(
            "UPDATE registers SET v = {value} WHERE k IN ({})",
            comma_separated(keys)
        );
        client.change(&sql).await.map(drop)
    }

    async fn transaction(&self, client: &mut Client, step: &mut Step) -> Result<(), Stop> {
        let keys = keys_in_use(client, 0, 1);
        let written = some_of(client, keys);
        client.begin().await?;
        if client.chance(0.8) {
            self.look(client, &keys, step).await?;
        }
        // One statement over several shards locks them side by side, and two such may meet in a circle: not too many of them.
        if client.chance(0.15) {
            self.write(client, &written, step).await?;
        } else {
            for key in &written {
                self.write(client, &[*key], step).await?;
            }
        }
        if client.chance(0.2) {
            self.look(client, &keys, step).await?;
        }
        if client.chance(0.05) {
            return client.give_up().await;
        }
        client.commit().await
    }

    async fn reading(&self, client: &mut Client, step: &mut Step) -> Result<(), Stop> {
        let keys = keys_in_use(client, 0, 1);
        if !client.stage.level.is_one_step() {
            return self.look(client, &keys, step).await;
        }
        client.begin().await?;
        for key in keys {
            self.look(client, &[key], step).await?;
        }
        client.commit().await
    }
}

#[async_trait]
impl Script for Registers {
    fn tables(&self) -> String {
        format!(
            "CREATE TABLE registers (k int PRIMARY KEY, v bigint) PARTITION BY RANGE (k);
             INSERT INTO registers SELECT n, NULL FROM generate_series(0, {}) n",
            SHARDS as i64 * KEYS_PER_SHARD - 1
        )
    }

    async fn work(self: Arc<Self>, mut client: Client, _: usize) {
        while client.stage.is_open() {
            let begun = client.stage.tick();
            let mut step = Step::new();
            let result = match client.chance(0.6) {
                true => self.transaction(&mut client, &mut step).await,
                false => self.reading(&mut client, &mut step).await,
            };
            let record = client.settle(begun, result, step).await;
            if !record.what.is_empty() {
                self.log.push(record);
            }
        }
    }

    async fn last_look(&self, client: &mut Client) {
        let begun = client.stage.tick();
        let Ok(found) = client.pairs("SELECT k, v FROM registers WHERE v IS NOT NULL").await else {
            return;
        };
        let step = found
            .into_iter()
            .map(|(key, value)| MicroOp::Value(key, value))
            .collect();
        self.log.push(client.statement(begun, step));
    }

    fn verdict(&self, stage: &Stage) -> Verdict {
        let records = self.log.take();
        let mut verdict = Verdict::of(&records, |step| step.iter().any(MicroOp::is_read));
        for text in self.forgetful.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            verdict.violation("own write not seen", text);
        }
        cycles::check(&records, question(stage.level), &mut verdict);
        verdict
    }
}

fn question(level: Level) -> Question {
    Question {
        workload: adya::Workload::RwRegister,
        model: match level {
            Level::RepeatableRead => "strong-snapshot-isolation",
            Level::ReadCommitted | Level::Serializable => "strict-serializable",
        },
        writes_follow_reads: level.is_one_step(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cycles::tests::step;
    use super::super::record::{Outcome, Record};
    use super::*;

    fn found(level: Level, records: Vec<Record<Step>>) -> Vec<String> {
        let registers = Registers::default();
        records.into_iter().for_each(|record| registers.log.push(record));
        registers
            .verdict(&Stage::new(level, 0, Vec::new()))
            .kinds
            .into_keys()
            .collect()
    }

    #[test]
    fn a_fractured_or_stale_read_is_found() {
        use MicroOp::{Value, Write};
        let first = || step(1, 1, 2, Outcome::Ok, vec![Write(1, 5), Write(1001, 5)]);
        let second = || step(1, 3, 9, Outcome::Ok, vec![Write(1, 6), Write(1001, 6)]);
        let read = |a, b| step(2, 4, 5, Outcome::Ok, vec![Value(1, Some(a)), Value(1001, Some(b))]);
        for level in [Level::ReadCommitted, Level::RepeatableRead] {
            assert_eq!(found(level, vec![first(), second(), read(5, 5)]), Vec::<String>::new());
            assert_eq!(found(level, vec![first(), second(), read(6, 6)]), Vec::<String>::new());
            let kinds = found(level, vec![first(), second(), read(6, 5)]);
            assert!(kinds.iter().any(|kind| kind.starts_with('G')), "{level}: {kinds:?}");
            let late = step(2, 10, 11, Outcome::Ok, vec![Value(1, Some(5)), Value(1001, Some(5))]);
            let kinds = found(level, vec![first(), second(), late]);
            assert!(!kinds.is_empty(), "{level}");
        }
    }
}
