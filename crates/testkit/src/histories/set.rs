//! A set of elements, each of which is two or three rows on as many shards: inserted together, and some of them moving from shard
//! to shard. Whoever reads finds every element wholly or not at all, all that were acknowledged, none that was refused, and
//! none again missing that somebody has seen.
//!
//! Rows move by UPDATEs of the key, at READ COMMITTED only: above it these are refused.

use super::Level;
use super::client::{Client, Stop};
use super::order::{SHARDS, SPAN};
use super::record::{Log, Outcome, Record};
use super::round::Script;
use super::stage::Stage;
use super::verdict::Verdict;
use async_trait::async_trait;
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Readers look at the last so many elements.
const WINDOW: i64 = 300;

/// By element, how many of its rows were found.
type Found = BTreeMap<i64, usize>;

#[derive(Debug, Clone)]
enum Step {
    Insert(i64),
    Move,
    /// The elements from one on, and the same again where a transaction has looked twice.
    Look(i64, Vec<Found>),
}

#[derive(Default)]
pub(super) struct Set {
    log: Log<Step>,
    last: AtomicI64,
}

/// The shards of an element's rows. Where there are two, the first one's row may move to the third shard.
fn shards(element: i64) -> Vec<i64> {
    let count = if element % 2 == 0 { SHARDS as i64 } else { 2 };
    (0..count).map(|at| (element + at) % SHARDS as i64).collect()
}

fn key(shard: i64, element: i64) -> i64 {
    shard * SPAN + element
}

impl Set {
    async fn insert(&self, client: &mut Client, element: i64) -> Result<(), Stop> {
        let shards = shards(element);
        let row = |shard: &i64| format!("({}, {element})", key(*shard, element));
        client.begin().await?;
        if client.chance(0.5) {
            let rows: Vec<_> = shards.iter().map(row).collect();
            client
                .change(&format!("INSERT INTO elements VALUES {}", rows.join(", ")))
                .await?;
        } else {
            for shard in &shards {
                client
                    .change(&format!("INSERT INTO elements VALUES {}", row(shard)))
                    .await?;
            }
        }
        if client.chance(0.1) {
            return client.give_up().await;
        }
        client.commit().await
    }

    async fn shift(&self, client: &mut Client) -> Result<(), Stop> {
        let latest = self.last.load(Ordering::SeqCst);
        // Odd: one of those with two rows.
        let element = (latest - client.random.random_range(0..WINDOW / 2)).max(1) | 1;
        let (mut from, mut to) = (key(element % 3, element), key((element + 2) % 3, element));
        if client.chance(0.5) {
            std::mem::swap(&mut from, &mut to);
        }
        client.begin().await?;
        client
            .change(&format!("UPDATE elements SET k = {to} WHERE k = {from}"))
            .await?;
        client.commit().await
    }

    async fn look(client: &mut Client, first: i64) -> Result<Found, Stop> {
        let ranges: Vec<_> = (0..SHARDS as i64)
            .map(|shard| format!("(k >= {} AND k < {})", key(shard, first), key(shard + 1, 0)))
            .collect();
        let rows = client
            .pairs(&format!(
                "SELECT element, k FROM elements WHERE {}",
                ranges.join(" OR ")
            ))
            .await?;
        let mut found = Found::new();
        for (element, _) in rows {
            *found.entry(element).or_default() += 1;
        }
        Ok(found)
    }

    async fn read(&self, client: &mut Client, first: i64, looks: &mut Vec<Found>) -> Result<(), Stop> {
        if !client.stage.level.is_one_step() {
            looks.push(Self::look(client, first).await?);
            return Ok(());
        }
        client.begin().await?;
        looks.push(Self::look(client, first).await?);
        looks.push(Self::look(client, first).await?);
        client.commit().await
    }
}

fn check(records: &[Record<Step>], verdict: &mut Verdict) {
    // By element, what became of its INSERT, and the moment from which on it must be found.
    let mut outcomes = BTreeMap::new();
    let mut known: BTreeMap<i64, u64> = BTreeMap::new();
    for record in records {
        match &record.what {
            Step::Insert(element) => {
                outcomes.insert(*element, record.outcome);
                if record.outcome == Outcome::Ok {
                    let since = known.entry(*element).or_insert(u64::MAX);
                    *since = record.ended.min(*since);
                }
            }
            Step::Look(_, looks) if record.outcome == Outcome::Ok => {
                for element in looks.iter().flat_map(BTreeMap::keys) {
                    let since = known.entry(*element).or_insert(u64::MAX);
                    *since = record.ended.min(*since);
                }
            }
            _ => {}
        }
    }
    for record in records.iter().filter(|record| record.outcome == Outcome::Ok) {
        let Step::Look(first, looks) = &record.what else {
            continue;
        };
        for found in looks {
            for (element, count) in found {
                if !outcomes.get(element).is_some_and(|outcome| outcome.is_possible()) {
                    verdict.violation(
                        "invented element",
                        format!("{element} is there, and its INSERT was refused"),
                    );
                }
                if *count != shards(*element).len() {
                    let rows = shards(*element).len();
                    verdict.violation("fractured read", format!("{count} of {rows} rows of element {element}"));
                }
            }
            let expected = known.range(first..).filter(|(_, since)| **since < record.begun);
            for (element, _) in expected.filter(|(element, _)| !found.contains_key(element)) {
                let text = format!("{element} was acknowledged or seen, and is not found by a later read");
                verdict.violation("lost element", text);
            }
        }
        if looks.windows(2).any(|two| two[0] != two[1]) {
            verdict.violation(
                "unrepeatable read",
                format!("two looks of one transaction differ from {first} on"),
            );
        }
    }
}

#[async_trait]
impl Script for Set {
    fn tables(&self) -> String {
        "CREATE TABLE elements (k int PRIMARY KEY, element bigint NOT NULL) PARTITION BY RANGE (k)".into()
    }

    fn is_wide(&self) -> bool {
        true
    }

    async fn work(self: Arc<Self>, mut client: Client, _: usize) {
        while client.stage.is_open() {
            let begun = client.stage.tick();
            let moves = client.stage.level == Level::ReadCommitted;
            let (result, step) = match client.random.random_range(0..10) {
                0..4 => {
                    let element = self.last.fetch_add(1, Ordering::SeqCst) + 1;
                    (self.insert(&mut client, element).await, Step::Insert(element))
                }
                4..6 if moves => (self.shift(&mut client).await, Step::Move),
                _ => {
                    let first = (self.last.load(Ordering::SeqCst) - WINDOW).max(0);
                    let mut looks = Vec::new();
                    (
                        self.read(&mut client, first, &mut looks).await,
                        Step::Look(first, looks),
                    )
                }
            };
            let record = client.settle(begun, result, step).await;
            self.log.push(record);
        }
    }

    async fn last_look(&self, client: &mut Client) {
        let begun = client.stage.tick();
        if let Ok(found) = Self::look(client, 0).await {
            self.log.push(client.statement(begun, Step::Look(0, vec![found])));
        }
    }

    fn verdict(&self, _: &Stage) -> Verdict {
        let records = self.log.take();
        let mut verdict = Verdict::of(&records, |step| matches!(step, Step::Look(..)));
        check(&records, &mut verdict);
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

    fn look(begun: u64, found: &[(i64, usize)]) -> Record<Step> {
        record(begun, Outcome::Ok, Step::Look(0, vec![found.iter().copied().collect()]))
    }

    fn kinds(records: &[Record<Step>]) -> Vec<String> {
        let mut verdict = Verdict::default();
        check(records, &mut verdict);
        verdict.kinds.into_keys().collect()
    }

    #[test]
    fn what_is_lost_torn_or_invented_is_found() {
        let insert = |outcome| record(1, outcome, Step::Insert(2));
        assert!(kinds(&[insert(Outcome::Ok), look(3, &[(2, 3)])]).is_empty());
        assert!(kinds(&[insert(Outcome::Unknown), look(3, &[]), look(5, &[(2, 3)])]).is_empty());
        assert_eq!(kinds(&[insert(Outcome::Ok), look(3, &[])]), ["lost element"]);
        assert_eq!(kinds(&[insert(Outcome::Ok), look(3, &[(2, 1)])]), ["fractured read"]);
        assert_eq!(
            kinds(&[insert(Outcome::Failed), look(3, &[(2, 3)])]),
            ["invented element"]
        );
        let flickers = [insert(Outcome::Unknown), look(3, &[(2, 3)]), look(5, &[])];
        assert_eq!(kinds(&flickers), ["lost element"]);
        let twice = vec![BTreeMap::new(), BTreeMap::from([(2, 3)])];
        let torn = [insert(Outcome::Ok), record(1, Outcome::Ok, Step::Look(0, twice))];
        assert_eq!(kinds(&torn), ["unrepeatable read"]);
    }

    #[test]
    fn rows_lie_on_different_shards() {
        assert_eq!(shards(2), [2, 0, 1]);
        assert_eq!(shards(3), [0, 1]);
        assert_eq!(shards(5), [2, 0]);
    }
}
