//! Two transactions read the same two rows, on two shards, and each turns another one of them off, if both are on.
//!
//! One after the other, the second would find only one on. At READ COMMITTED and REPEATABLE READ both may go through, as in
//! PostgreSQL; that is counted. At SERIALIZABLE it is a violation. At every level the rows must be as the clients were told.

use super::Level;
use super::client::{Client, Stop};
use super::order::{SHARDS, SPAN};
use super::record::{Log, Outcome, Record};
use super::round::Script;
use super::stage::Stage;
use super::verdict::Verdict;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Barrier;

/// One of the two transactions on a pair of rows.
#[derive(Debug, Clone)]
struct Step {
    pair: i64,
    /// Which row it turns off: 0 or 1.
    side: i64,
    /// Whether it turned its row off, or found that it may not.
    turned_off: bool,
}

/// Two clients that meet again and again.
struct Meeting {
    barrier: Barrier,
    pair: AtomicI64,
    goes_on: AtomicBool,
}

#[derive(Default)]
pub(super) struct WriteSkew {
    log: Log<Step>,
    meetings: Mutex<BTreeMap<usize, Arc<Meeting>>>,
    pairs: AtomicI64,
    /// The rows that are off at the end; `None` when they could not be read.
    off: Mutex<Option<Vec<i64>>>,
}

/// The row of a pair: the two lie on different shards.
fn row(pair: i64, side: i64) -> i64 {
    (pair + side) % SHARDS as i64 * SPAN + pair
}

impl WriteSkew {
    fn meeting(&self, number: usize) -> Arc<Meeting> {
        let mut meetings = self.meetings.lock().unwrap_or_else(PoisonError::into_inner);
        let meeting = meetings.entry(number).or_insert_with(|| {
            Arc::new(Meeting {
                barrier: Barrier::new(2),
                pair: AtomicI64::new(0),
                goes_on: AtomicBool::new(true),
            })
        });
        meeting.clone()
    }

    /// A new pair of rows, both on; `false` when that did not work.
    async fn new_pair(&self, client: &mut Client, pair: i64) -> bool {
        let sql = format!("INSERT INTO skews VALUES ({}, 1), ({}, 1)", row(pair, 0), row(pair, 1));
        let inserted = async {
            client.begin().await?;
            client.change(&sql).await?;
            client.commit().await
        };
        let result = inserted.await;
        let done = result.is_ok();
        // Not a step that is checked: it is only settled.
        client.settle(0, result, ()).await;
        done
    }

    async fn turn_off(&self, client: &mut Client, step: &mut Step) -> Result<(), Stop> {
        let rows = [row(step.pair, 0), row(step.pair, 1)];
        client.begin().await?;
        let sql = format!("SELECT k, v FROM skews WHERE k IN ({}, {})", rows[0], rows[1]);
        let on = client.pairs(&sql).await?.iter().filter(|(_, v)| *v == Some(1)).count();
        if on == rows.len() {
            step.turned_off = true;
            let own = rows[step.side as usize];
            client
                .change(&format!("UPDATE skews SET v = 0 WHERE k = {own}"))
                .await?;
        }
        client.commit().await
    }
}

fn check(level: Level, records: &[Record<Step>], off: &[i64], verdict: &mut Verdict) {
    let mut pairs: BTreeMap<i64, i64> = BTreeMap::new();
    for record in records {
        let step = &record.what;
        let own = row(step.pair, step.side);
        let is_off = off.contains(&own);
        match record.outcome {
            Outcome::Ok if step.turned_off && !is_off => {
                verdict.violation(
                    "lost update",
                    format!("row {own} was turned off and acknowledged, and is on"),
                );
            }
            outcome if is_off && (outcome == Outcome::Failed || !step.turned_off) => {
                verdict.violation("kept update", format!("row {own} is off, and nobody could turn it off"));
            }
            _ => {}
        }
        *pairs.entry(step.pair).or_default() += i64::from(is_off);
    }
    for (pair, off) in pairs {
        match (off, level) {
            (2, Level::Serializable) => verdict.violation("write skew", format!("both rows of pair {pair} are off")),
            (2, _) => verdict.named("write skew"),
            _ => {}
        }
    }
}

#[async_trait]
impl Script for WriteSkew {
    fn tables(&self) -> String {
        "CREATE TABLE skews (k int PRIMARY KEY, v int NOT NULL) PARTITION BY RANGE (k)".into()
    }

    fn is_wide(&self) -> bool {
        true
    }

    fn sessions(&self, asked: usize) -> usize {
        asked.next_multiple_of(2)
    }

    async fn work(self: Arc<Self>, mut client: Client, number: usize) {
        let meeting = self.meeting(number / 2);
        let side = number as i64 % 2;
        loop {
            if side == 0 {
                let pair = self.pairs.fetch_add(1, Ordering::SeqCst);
                let goes_on = client.stage.is_open();
                if goes_on && !self.new_pair(&mut client, pair).await {
                    continue;
                }
                meeting.goes_on.store(goes_on, Ordering::SeqCst);
                meeting.pair.store(pair, Ordering::SeqCst);
            }
            meeting.barrier.wait().await;
            if !meeting.goes_on.load(Ordering::SeqCst) {
                return;
            }
            let pair = meeting.pair.load(Ordering::SeqCst);
            let mut step = Step {
                pair,
                side,
                turned_off: false,
            };
            let begun = client.stage.tick();
            let result = self.turn_off(&mut client, &mut step).await;
            let record = client.settle(begun, result, step).await;
            self.log.push(record);
            meeting.barrier.wait().await;
        }
    }

    async fn last_look(&self, client: &mut Client) {
        let found = client.pairs("SELECT k, v FROM skews WHERE v = 0").await;
        let off = found.ok().map(|rows| rows.into_iter().map(|(key, _)| key).collect());
        *self.off.lock().unwrap_or_else(PoisonError::into_inner) = off;
    }

    fn verdict(&self, stage: &Stage) -> Verdict {
        let records = self.log.take();
        let mut verdict = Verdict::of(&records, |_| true);
        match self.off.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(off) => check(stage.level, &records, &off, &mut verdict),
            None => verdict.violation("no end", "the rows could not be read after the run"),
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(level: Level, outcomes: [Outcome; 2], off: &[i64]) -> (Vec<String>, u64) {
        let records: Vec<_> = outcomes
            .into_iter()
            .zip(0..)
            .map(|(outcome, side)| Record {
                process: 1,
                begun: 1,
                ended: 2,
                outcome,
                what: Step {
                    pair: 7,
                    side,
                    turned_off: true,
                },
            })
            .collect();
        let off: Vec<i64> = off.iter().map(|side| row(7, *side)).collect();
        let mut verdict = Verdict::default();
        check(level, &records, &off, &mut verdict);
        (verdict.kinds.into_keys().collect(), verdict.named.values().sum())
    }

    #[test]
    fn write_skew_is_counted_or_a_violation() {
        let both = [Outcome::Ok, Outcome::Ok];
        assert_eq!(found(Level::RepeatableRead, both, &[0, 1]), (vec![], 1));
        assert_eq!(
            found(Level::Serializable, both, &[0, 1]),
            (vec!["write skew".into()], 0)
        );
        assert_eq!(
            found(Level::Serializable, [Outcome::Ok, Outcome::Failed], &[0]),
            (vec![], 0)
        );
    }

    #[test]
    fn lost_and_kept_updates_are_found() {
        let lost = found(Level::ReadCommitted, [Outcome::Ok, Outcome::Failed], &[]);
        assert_eq!(lost.0, ["lost update"]);
        let kept = found(Level::ReadCommitted, [Outcome::Ok, Outcome::Failed], &[0, 1]);
        assert_eq!(kept.0, ["kept update"]);
        let unknown = found(Level::ReadCommitted, [Outcome::Unknown, Outcome::Failed], &[0]);
        assert!(unknown.0.is_empty());
    }
}
