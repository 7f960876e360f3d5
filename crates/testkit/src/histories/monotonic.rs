//! One counter on each of three shards, all incremented together, and never anything else.
//!
//! Whoever reads all of them finds the same number thrice; at least as many as were acknowledged before and as anybody has read
//! before, at most as many as were asked for. Within a transaction, a look at one shard shows no less than an earlier look at
//! all of them.

use super::client::{Client, Stop};
use super::order::SHARDS;
use super::record::{Grown, Log, Outcome, Record};
use super::round::Script;
use super::stage::Stage;
use super::verdict::Verdict;
use async_trait::async_trait;
use rand::Rng;
use std::sync::Arc;

#[derive(Debug, Clone)]
enum Step {
    Increment,
    /// What was found: all counters, and then one of them again in the same transaction.
    Look(Vec<i64>, Option<i64>),
}

#[derive(Default)]
pub(super) struct Monotonic {
    log: Log<Step>,
}

async fn increment(client: &mut Client) -> Result<(), Stop> {
    // One statement over several shards locks them side by side, and two such may meet in a circle: not too many of them.
    if client.chance(0.1) {
        return client.change_alone("UPDATE counters SET v = v + 1").await.map(drop);
    }
    client.begin().await?;
    if client.chance(0.1) {
        client.change("UPDATE counters SET v = v + 1").await?;
    } else {
        for shard in 0..SHARDS {
            client
                .change(&format!("UPDATE counters SET v = v + 1 WHERE k = {}", shard * 1000))
                .await?;
        }
    }
    if client.chance(0.05) {
        return client.give_up().await;
    }
    client.commit().await
}

async fn look(client: &mut Client, found: &mut Vec<i64>, again: &mut Option<i64>) -> Result<(), Stop> {
    client.begin().await?;
    let rows = client.pairs("SELECT k, v FROM counters").await?;
    found.extend(rows.into_iter().filter_map(|(_, v)| v));
    let shard = client.random.random_range(0..SHARDS);
    let row = client
        .pairs(&format!("SELECT k, v FROM counters WHERE k = {}", shard * 1000))
        .await?;
    *again = row.first().and_then(|(_, v)| *v);
    client.commit().await
}

fn check(is_one_step: bool, records: &[Record<Step>], verdict: &mut Verdict) {
    let mut asked = Vec::new();
    let mut acknowledged = Vec::new();
    let mut read = Vec::new();
    for record in records {
        match &record.what {
            Step::Increment if record.outcome.is_possible() => {
                asked.push(record.begun);
                if record.outcome == Outcome::Ok {
                    acknowledged.push(record.ended);
                }
            }
            Step::Look(found, _) if record.outcome == Outcome::Ok => {
                read.extend(found.iter().map(|v| (record.ended, *v)));
            }
            _ => {}
        }
    }
    asked.sort_unstable();
    acknowledged.sort_unstable();
    let read = Grown::new(read);
    let before = |moments: &[u64], moment: u64| moments.partition_point(|at| *at < moment) as i64;
    for record in records.iter().filter(|record| record.outcome == Outcome::Ok) {
        let Step::Look(found, again) = &record.what else {
            continue;
        };
        let (Some(least), Some(most)) = (found.iter().min(), found.iter().max()) else {
            verdict.violation("fractured read", "no counter was found");
            continue;
        };
        if least != most || found.len() != SHARDS {
            verdict.violation("fractured read", format!("the counters are {found:?}"));
        }
        let owed = before(&acknowledged, record.begun);
        if *least < owed {
            verdict.violation(
                "stale read",
                format!("{owed} were acknowledged before, {found:?} are there"),
            );
        }
        if let Some(earlier) = read.before(record.begun).filter(|earlier| least < earlier) {
            verdict.violation(
                "read went back",
                format!("somebody has read {earlier} before, now it is {found:?}"),
            );
        }
        let possible = before(&asked, record.ended);
        if *most > possible {
            verdict.violation(
                "invented increment",
                format!("{possible} were asked for, {found:?} are there"),
            );
        }
        match again {
            Some(again) if is_one_step && again != most => {
                verdict.violation(
                    "unrepeatable read",
                    format!("{again} after {found:?} in one transaction"),
                );
            }
            Some(again) if again < most => {
                verdict.violation(
                    "transaction went back",
                    format!("{again} after {found:?} in one transaction"),
                );
            }
            Some(_) | None => {}
        }
    }
}

#[async_trait]
impl Script for Monotonic {
    fn tables(&self) -> String {
        format!(
            "CREATE TABLE counters (k int PRIMARY KEY, v bigint NOT NULL) PARTITION BY RANGE (k);
             INSERT INTO counters SELECT n * 1000, 0 FROM generate_series(0, {}) n",
            SHARDS - 1
        )
    }

    async fn work(self: Arc<Self>, mut client: Client, _: usize) {
        while client.stage.is_open() {
            let begun = client.stage.tick();
            let (result, step) = if client.chance(0.3) {
                (increment(&mut client).await, Step::Increment)
            } else {
                let (mut found, mut again) = (Vec::new(), None);
                let result = look(&mut client, &mut found, &mut again).await;
                (result, Step::Look(found, again))
            };
            let record = client.settle(begun, result, step).await;
            self.log.push(record);
        }
    }

    async fn last_look(&self, client: &mut Client) {
        let begun = client.stage.tick();
        let (mut found, mut again) = (Vec::new(), None);
        let result = look(client, &mut found, &mut again).await;
        let record = client.settle(begun, result, Step::Look(found, again)).await;
        self.log.push(record);
    }

    fn verdict(&self, stage: &Stage) -> Verdict {
        let records = self.log.take();
        let mut verdict = Verdict::of(&records, |step| matches!(step, Step::Look(..)));
        check(stage.level.is_one_step(), &records, &mut verdict);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(begun: u64, outcome: Outcome, what: Step) -> Record<Step> {
        Record {
            process: begun,
            begun,
            ended: begun + 1,
            outcome,
            what,
        }
    }

    fn look(begun: u64, found: &[i64], again: i64) -> Record<Step> {
        record(begun, Outcome::Ok, Step::Look(found.to_vec(), Some(again)))
    }

    fn kinds(is_one_step: bool, records: &[Record<Step>]) -> Vec<String> {
        let mut verdict = Verdict::default();
        check(is_one_step, records, &mut verdict);
        verdict.kinds.into_keys().collect()
    }

    #[test]
    fn what_goes_back_is_found() {
        let increment = |begun, outcome| record(begun, outcome, Step::Increment);
        let one = increment(1, Outcome::Ok);
        assert_eq!(
            kinds(true, &[one.clone(), look(3, &[1, 1, 1], 1)]),
            Vec::<String>::new()
        );
        assert_eq!(
            kinds(false, &[one.clone(), look(3, &[1, 1, 0], 1)]),
            ["fractured read", "stale read"]
        );
        assert_eq!(kinds(false, &[one.clone(), look(3, &[0, 0, 0], 0)]), ["stale read"]);
        assert_eq!(
            kinds(false, &[one.clone(), look(3, &[2, 2, 2], 2)]),
            ["invented increment"]
        );
        let unknown = increment(1, Outcome::Unknown);
        let back = [unknown, look(3, &[1, 1, 1], 1), look(5, &[0, 0, 0], 0)];
        assert_eq!(kinds(false, &back), ["read went back"]);
        let failed = increment(1, Outcome::Failed);
        assert_eq!(kinds(false, &[failed, look(3, &[1, 1, 1], 1)]), ["invented increment"]);
        assert_eq!(
            kinds(false, &[one.clone(), look(3, &[1, 1, 1], 0)]),
            ["transaction went back"]
        );
        assert_eq!(kinds(true, &[one, look(3, &[1, 1, 1], 0)]), ["unrepeatable read"]);
    }
}
