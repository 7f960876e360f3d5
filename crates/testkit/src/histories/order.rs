//! The order of transactions, as readers of all shards see it: *long fork* and *causal reverse*.
//!
//! Transactions come in groups of three. A transaction inserts one row (a *single* one), or one on each of two shards (a *whole*
//! one); a reader looks for the rows of a group on all shards and finds some of the three.
//! - Long fork: the three run at the same time. Two readers that find different ones, neither all of the other's, have
//!   seen them in different orders.
//! - Causal reverse: each is sent after the one before was acknowledged. A reader that finds a later one without an earlier one
//!   has seen effects before their causes.
//!
//! Of whole ones any two share a shard, where they came one after the other, and leave markers: neither may happen. Of
//! single ones docs/isolation.md says that both can, below SERIALIZABLE.

use super::client::{Client, Stop};
use super::record::{Log, Outcome, Record};
use super::round::Script;
use super::stage::Stage;
use super::verdict::Verdict;
use super::{Level, Workload};
use async_trait::async_trait;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::Barrier;

/// The shards of a cluster that histories run on.
pub(super) const SHARDS: usize = 3;
/// Keys of one shard in these tables; the next shard's come right after.
pub(super) const SPAN: i64 = 1_000_000;
/// Transactions of a group, and how many keys a group has on each shard.
const MEMBERS: i64 = 3;

/// Three transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Group(i64);

impl Group {
    /// Whether its transactions write on two shards each.
    fn is_whole(self) -> bool {
        self.0 % 2 == 0
    }

    fn keys(self, member: i64) -> Vec<i64> {
        let key = |shard: i64| shard % SHARDS as i64 * SPAN + self.0 * MEMBERS + member;
        match self.is_whole() {
            true => vec![key(member), key(member + 1)],
            false => vec![key(member)],
        }
    }
}

/// A look at a group: the keys that were found.
#[derive(Debug, Clone)]
enum Step {
    Write,
    Look(Group, BTreeSet<i64>),
}

pub(super) struct Order {
    workload: Workload,
    log: Log<Step>,
    /// The last group that was begun.
    group: AtomicI64,
    /// Where the three that run at the same time wait for each other.
    barrier: Barrier,
    goes_on: AtomicBool,
}

impl Order {
    pub(super) fn new(workload: Workload) -> Self {
        Self {
            workload,
            log: Log::default(),
            group: AtomicI64::new(0),
            barrier: Barrier::new(MEMBERS as usize),
            goes_on: AtomicBool::new(true),
        }
    }

    fn table(&self) -> &'static str {
        match self.workload {
            Workload::LongFork => "forks",
            _ => "causes",
        }
    }

    async fn write(&self, client: &mut Client, group: Group, member: i64) -> Result<(), Stop> {
        let rows: Vec<_> = group.keys(member).iter().map(|key| format!("({key})")).collect();
        client.begin().await?;
        let sql = format!("INSERT INTO {} VALUES {}", self.table(), rows.join(", "));
        client.change(&sql).await?;
        client.commit().await
    }

    /// One of the three writers of long forks.
    async fn fork(&self, client: &mut Client, member: i64) {
        loop {
            if self.barrier.wait().await.is_leader() {
                self.goes_on.store(client.stage.is_open(), Ordering::SeqCst);
                self.group.fetch_add(1, Ordering::SeqCst);
            }
            self.barrier.wait().await;
            if !self.goes_on.load(Ordering::SeqCst) {
                return;
            }
            let group = Group(self.group.load(Ordering::SeqCst));
            // Not all in the same moment: what a reader sees in between is the point.
            let pause = client.random.random_range(0..2000);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            let begun = client.stage.tick();
            let result = self.write(client, group, member).await;
            let record = client.settle(begun, result, Step::Write).await;
            self.log.push(record);
        }
    }

    /// One of the writers of causes and effects.
    async fn cause(&self, client: &mut Client) {
        while client.stage.is_open() {
            let group = Group(self.group.fetch_add(1, Ordering::SeqCst) + 1);
            for member in 0..MEMBERS {
                let begun = client.stage.tick();
                let result = self.write(client, group, member).await;
                let record = client.settle(begun, result, Step::Write).await;
                let outcome = record.outcome;
                self.log.push(record);
                if outcome != Outcome::Ok {
                    break;
                }
            }
        }
    }

    async fn look(&self, client: &mut Client, group: Group, found: &mut BTreeSet<i64>) -> Result<(), Stop> {
        let between = |shard: i64| {
            let first = shard * SPAN + group.0 * MEMBERS;
            format!("k BETWEEN {first} AND {}", first + MEMBERS - 1)
        };
        let select = |condition: &str| format!("SELECT k, k FROM {} WHERE {condition}", self.table());
        let shards: Vec<String> = (0..SHARDS as i64).map(between).collect();
        let one_statement = [shards.join(" OR ")];
        if !client.stage.level.is_one_step() {
            let rows = client.pairs(&select(&one_statement[0])).await?;
            found.extend(rows.into_iter().map(|(key, _)| key));
            return Ok(());
        }
        client.begin().await?;
        let conditions = match client.chance(0.5) {
            true => &one_statement[..],
            false => &shards[..],
        };
        for condition in conditions {
            let rows = client.pairs(&select(condition)).await?;
            found.extend(rows.into_iter().map(|(key, _)| key));
        }
        client.commit().await
    }

    async fn watch(&self, client: &mut Client) {
        while client.stage.is_open() {
            let latest = self.group.load(Ordering::SeqCst);
            // Of causes, several writers have begun one.
            let back = match self.workload {
                Workload::LongFork => 0,
                _ => client.random.random_range(0..3),
            };
            let group = Group((latest - back).max(1));
            let begun = client.stage.tick();
            let mut found = BTreeSet::new();
            let result = self.look(client, group, &mut found).await;
            let record = client.settle(begun, result, Step::Look(group, found)).await;
            self.log.push(record);
        }
    }
}

/// Which of the three a look has found; `None` when it found one half of one.
fn members(group: Group, found: &BTreeSet<i64>) -> Option<BTreeSet<i64>> {
    let mut members = BTreeSet::new();
    for member in 0..MEMBERS {
        let keys = group.keys(member);
        match keys.iter().filter(|key| found.contains(key)).count() {
            0 => {}
            count if count == keys.len() => drop(members.insert(member)),
            _ => return None,
        }
    }
    Some(members)
}

fn check(workload: Workload, level: Level, records: &[Record<Step>], verdict: &mut Verdict) {
    let mut seen: BTreeMap<Group, BTreeSet<BTreeSet<i64>>> = BTreeMap::new();
    for record in records {
        let Step::Look(group, found) = &record.what else {
            continue;
        };
        if record.outcome != Outcome::Ok {
            continue;
        }
        match members(*group, found) {
            Some(members) => drop(seen.entry(*group).or_default().insert(members)),
            None => verdict.violation("fractured read", format!("of group {} these keys: {found:?}", group.0)),
        }
    }
    for (group, looks) in seen {
        let looks: Vec<_> = looks.into_iter().collect();
        let wrong = match workload {
            Workload::LongFork => looks.iter().enumerate().find_map(|(at, one)| {
                let other = looks[at + 1..]
                    .iter()
                    .find(|other| !one.is_subset(other) && !other.is_subset(one))?;
                Some(format!(
                    "one reader saw {one:?}, another one {other:?} of group {}",
                    group.0
                ))
            }),
            _ => looks.iter().find_map(|look| {
                let earlier = (0..look.len() as i64).all(|member| look.contains(&member));
                (!earlier).then(|| format!("a reader saw {look:?} of group {}, which came as 0, 1, 2", group.0))
            }),
        };
        let Some(text) = wrong else { continue };
        if group.is_whole() || level == Level::Serializable {
            verdict.violation(&workload.to_string(), text);
        } else {
            verdict.named(&format!("{workload} of transactions on one shard each"));
        }
    }
}

#[async_trait]
impl Script for Order {
    fn tables(&self) -> String {
        format!(
            "CREATE TABLE {} (k int PRIMARY KEY) PARTITION BY RANGE (k)",
            self.table()
        )
    }

    fn is_wide(&self) -> bool {
        true
    }

    fn sessions(&self, asked: usize) -> usize {
        asked.max(MEMBERS as usize + 2)
    }

    async fn work(self: Arc<Self>, mut client: Client, number: usize) {
        match self.workload {
            Workload::LongFork if number < MEMBERS as usize => self.fork(&mut client, number as i64).await,
            Workload::CausalReverse if number.is_multiple_of(2) => self.cause(&mut client).await,
            _ => self.watch(&mut client).await,
        }
    }

    async fn last_look(&self, _: &mut Client) {}

    fn verdict(&self, stage: &Stage) -> Verdict {
        let records = self.log.take();
        let mut verdict = Verdict::of(&records, |step| matches!(step, Step::Look(..)));
        check(self.workload, stage.level, &records, &mut verdict);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: Group = Group(2);
    const SINGLE: Group = Group(3);

    /// What is found when readers see these members of a group.
    fn found(workload: Workload, level: Level, group: Group, looks: &[&[i64]]) -> (u64, u64) {
        let records: Vec<_> = looks
            .iter()
            .map(|members| Record {
                process: 1,
                begun: 1,
                ended: 2,
                outcome: Outcome::Ok,
                what: Step::Look(group, members.iter().flat_map(|member| group.keys(*member)).collect()),
            })
            .collect();
        let mut verdict = Verdict::default();
        check(workload, level, &records, &mut verdict);
        (verdict.violation_count(), verdict.named.values().sum())
    }

    #[test]
    fn readers_who_disagree_are_found() {
        use Level::{ReadCommitted, RepeatableRead, Serializable};
        let fork = |level, group, looks| found(Workload::LongFork, level, group, looks);
        assert_eq!(fork(RepeatableRead, WHOLE, &[&[], &[0], &[0, 2], &[0, 1, 2]]), (0, 0));
        assert_eq!(fork(ReadCommitted, WHOLE, &[&[0], &[1]]), (1, 0));
        assert_eq!(fork(RepeatableRead, WHOLE, &[&[0, 1], &[1, 2]]), (1, 0));
        assert_eq!(fork(RepeatableRead, SINGLE, &[&[0, 1], &[1, 2]]), (0, 1));
        assert_eq!(fork(Serializable, SINGLE, &[&[0, 1], &[1, 2]]), (1, 0));
    }

    #[test]
    fn an_effect_without_its_cause_is_found() {
        use Level::{RepeatableRead, Serializable};
        let causal = |level, group, looks| found(Workload::CausalReverse, level, group, looks);
        assert_eq!(causal(RepeatableRead, WHOLE, &[&[], &[0], &[0, 1], &[0, 1, 2]]), (0, 0));
        assert_eq!(causal(RepeatableRead, WHOLE, &[&[1]]), (1, 0));
        assert_eq!(causal(RepeatableRead, WHOLE, &[&[0, 2]]), (1, 0));
        assert_eq!(causal(RepeatableRead, SINGLE, &[&[1]]), (0, 1));
        assert_eq!(causal(Serializable, SINGLE, &[&[1]]), (1, 0));
    }

    #[test]
    fn a_half_of_a_transaction_is_found() {
        let half = BTreeSet::from([WHOLE.keys(1)[0]]);
        assert_eq!(members(WHOLE, &half), None);
        let keys = BTreeSet::from_iter(WHOLE.keys(1));
        assert_eq!(members(WHOLE, &keys), Some(BTreeSet::from([1])));
    }

    #[test]
    fn any_two_of_a_whole_group_share_a_shard() {
        let shards = |member| WHOLE.keys(member).iter().map(|key| key / SPAN).collect::<BTreeSet<_>>();
        for (one, other) in [(0, 1), (1, 2), (0, 2)] {
            assert!(!shards(one).is_disjoint(&shards(other)));
        }
    }
}
