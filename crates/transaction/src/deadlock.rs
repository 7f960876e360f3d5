//! Deadlocks over several shards, as pure code: which transactions wait for each other in a circle that no single
//! PostgreSQL server can see, and which of them is to give way. Looking and cancelling is `deadlock_watch`'s work.
//!
//! A *node* is a transaction over several shards, with all its backends taken together, or a single backend of anybody
//! else. An *edge* is a wait on one shard. Gateways publish only those of their transactions that wait. Say T1 and T2
//! have each written on two shards:
//!
//! ```text
//! shard1: process 11 (T2) waits for process 10 (T1)        T2 --shard1--> T1
//! shard2: process 20 (T1) waits for process 21 (T2)        T1 --shard2--> T2
//! ```
//!
//! # Why what is found is a deadlock
//! Shards are looked at at different moments, and what is published may be old. A circle counts when it is in two looks
//! in a row, the second begun after the first had ended, with the same waits. PostgreSQL says since when a backend waits,
//! to the microsecond, so the same waiter with the same beginning is the same wait: it lasted through all that lay between. A
//! transaction is published with the beginnings of its own waits, which its gateway has seen while the statement
//! ran. As long as a shard still shows one of them, the statement has not ended, so the transaction still has all
//! its backends and what they hold. So there was a moment between the looks at which all the circle's waits existed.
//!
//! A circle with all its waits on one shard is left to that server's own `deadlock_timeout`. A lock that a prepared
//! transaction holds shows as process 0 and is no edge: it ends by itself, or by recovery.

use pgherd_model::ShardId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A transaction over several shards, named over all gateways of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// its gateway's
    pub incarnation: u64,
    /// unique in that gateway
    pub number: u64,
}

/// One backend of a published transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberBackend {
    /// where
    pub shard: ShardId,
    /// its process id there
    pub pid: i32,
    /// the beginning of its wait, in microseconds of that shard's clock, where its gateway saw it wait
    pub waits_since_us: Option<i64>,
}

/// A transaction over several shards that waits, as its gateway has published it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// which
    pub member: Member,
    /// which of its statements waits
    pub statement: u64,
    /// when it began, in microseconds of its gateway's clock
    pub started_us: i64,
    /// all its backends
    pub backends: Vec<MemberBackend>,
    /// it was found to be the one that gives way: what its client is told
    pub victim: Option<String>,
}

/// A backend that waits for a lock, as its shard shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// where
    pub shard: ShardId,
    /// who
    pub pid: i32,
    /// since when, in microseconds of the shard's clock
    pub since_us: i64,
    /// the lock, in PostgreSQL's words: `ShareLock on transaction 733`
    pub lock: String,
    /// `pg_blocking_pids`
    pub blockers: Vec<i32>,
}

/// Who waits or is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    /// with the number of its statement
    Transaction(Member, u64),
    Backend(ShardId, i32),
}

/// One wait of one node for another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: Node,
    to: Node,
    shard: ShardId,
    waiter: i32,
    blocker: i32,
    since_us: i64,
    lock: String,
}

/// A circle that was seen twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlock {
    /// who gives way: the youngest
    pub victim: Member,
    /// which of its statements
    pub statement: u64,
    /// each wait of the circle in a line, in PostgreSQL's words
    pub detail: String,
}

/// Remembers one look, so that the next can tell what lasts.
#[derive(Debug, Default)]
pub struct Detector {
    before: BTreeSet<Edge>,
}

impl Detector {
    /// Takes a look, begun after the one before had ended, and returns the circles that were in both. `name` gives a shard's
    /// name.
    pub fn look(&mut self, published: &[Published], waits: &[Wait], name: impl Fn(ShardId) -> String) -> Vec<Deadlock> {
        let now = edges(published, waits);
        let mut lasting: BTreeSet<Edge> = now.intersection(&self.before).cloned().collect();
        self.before = now;
        let mut found = Vec::new();
        while let Some(circle) = find_circle(&lasting) {
            let Some(victim) = youngest(&circle, published) else {
                break;
            };
            let node = Node::Transaction(victim.member, victim.statement);
            found.push(Deadlock {
                victim: victim.member,
                statement: victim.statement,
                detail: detail(&circle, &node, &name),
            });
            // What remains without it may hold another circle.
            lasting.retain(|e| e.from != node && e.to != node);
        }
        found
    }

    /// The next look is a first one: this detector was not the cluster's in between.
    pub fn forget(&mut self) {
        self.before.clear();
    }
}

/// The graph. Transactions that were told to give way are on their way out of it.
fn edges(published: &[Published], waits: &[Wait]) -> BTreeSet<Edge> {
    let mut owners = BTreeMap::new();
    for transaction in published {
        for backend in &transaction.backends {
            let owned = (transaction, backend.waits_since_us);
            let known = owners.entry((backend.shard, backend.pid)).or_insert(owned);
            // Of two that claim a backend one is over; a wait that was seen tells which.
            if known.1.is_none() {
                *known = owned;
            }
        }
    }
    let node = |shard: ShardId, pid: i32| match owners.get(&(shard, pid)) {
        Some((transaction, _)) => Node::Transaction(transaction.member, transaction.statement),
        None => Node::Backend(shard, pid),
    };
    let leaves = |shard: ShardId, pid: i32| owners.get(&(shard, pid)).is_some_and(|(t, _)| t.victim.is_some());
    let mut edges = BTreeSet::new();
    for wait in waits {
        if let Some((_, seen)) = owners.get(&(wait.shard, wait.pid))
            && *seen != Some(wait.since_us)
        {
            // Not the wait that was published: perhaps the backend is already another's.
            continue;
        }
        for &blocker in wait.blockers.iter().filter(|pid| **pid > 0) {
            if leaves(wait.shard, wait.pid) || leaves(wait.shard, blocker) {
                continue;
            }
            edges.insert(Edge {
                from: node(wait.shard, wait.pid),
                to: node(wait.shard, blocker),
                shard: wait.shard,
                waiter: wait.pid,
                blocker,
                since_us: wait.since_us,
                lock: wait.lock.clone(),
            });
        }
    }
    edges
}

/// A shortest circle with waits on at least two shards, from the smallest node that has one.
fn find_circle(edges: &BTreeSet<Edge>) -> Option<Vec<&Edge>> {
    let mut leaving: BTreeMap<Node, Vec<&Edge>> = BTreeMap::new();
    for edge in edges {
        leaving.entry(edge.from).or_default().push(edge);
    }
    let starts = edges.iter().filter(|e| matches!(e.from, Node::Transaction(..)));
    starts.filter_map(|first| circle_from(first, &leaving)).next()
}

/// A node, and whether a wait on a second shard lies on the way to it.
type Place = (Node, bool);

/// Breadth first over places.
fn circle_from<'e>(first: &'e Edge, leaving: &BTreeMap<Node, Vec<&'e Edge>>) -> Option<Vec<&'e Edge>> {
    let mut came_by: BTreeMap<Place, (&Edge, Option<Place>)> = BTreeMap::new();
    let mut queue = VecDeque::from([(first.to, false)]);
    came_by.insert((first.to, false), (first, None));
    while let Some(at) = queue.pop_front() {
        if at == (first.from, true) {
            let mut circle = Vec::new();
            let mut place = Some(at);
            while let Some((edge, before)) = place.and_then(|p| came_by.get(&p)) {
                circle.push(*edge);
                place = *before;
            }
            circle.reverse();
            return Some(circle);
        }
        for edge in leaving.get(&at.0).into_iter().flatten() {
            let next = (edge.to, at.1 || edge.shard != first.shard);
            came_by.entry(next).or_insert_with(|| {
                queue.push_back(next);
                (edge, Some(at))
            });
        }
    }
    None
}

/// The one that began last; of several, the one with the highest number.
fn youngest<'p>(circle: &[&Edge], published: &'p [Published]) -> Option<&'p Published> {
    let within = |p: &&Published| {
        let node = Node::Transaction(p.member, p.statement);
        circle.iter().any(|e| e.from == node)
    };
    published.iter().filter(within).max_by_key(|p| (p.started_us, p.member))
}

/// As PostgreSQL describes a deadlock, beginning with the one that gives way.
fn detail(circle: &[&Edge], victim: &Node, name: &impl Fn(ShardId) -> String) -> String {
    let first = circle.iter().position(|e| e.from == *victim).unwrap_or(0);
    let in_order = circle[first..].iter().chain(&circle[..first]);
    let lines: Vec<String> = in_order
        .map(|e| {
            format!(
                "Process {} on shard {} waits for {}; blocked by process {}.",
                e.waiter,
                name(e.shard),
                e.lock,
                e.blocker
            )
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transaction: its number, when it began, and its backends as (shard, pid, since).
    fn published(number: u64, started_us: i64, backends: &[(u32, i32, Option<i64>)]) -> Published {
        let backend = |&(shard, pid, waits_since_us): &(u32, i32, Option<i64>)| MemberBackend {
            shard: ShardId(shard),
            pid,
            waits_since_us,
        };
        Published {
            member: Member { incarnation: 1, number },
            statement: 1,
            started_us,
            backends: backends.iter().map(backend).collect(),
            victim: None,
        }
    }

    fn wait(shard: u32, pid: i32, since_us: i64, blockers: &[i32]) -> Wait {
        Wait {
            shard: ShardId(shard),
            pid,
            since_us,
            lock: format!("ShareLock on transaction {}", 700 + blockers.first().unwrap_or(&0)),
            blockers: blockers.to_vec(),
        }
    }

    fn name(shard: ShardId) -> String {
        format!("shard{shard}")
    }

    fn victims(found: &[Deadlock]) -> Vec<u64> {
        found.iter().map(|d| d.victim.number).collect()
    }

    /// Two looks at the same.
    fn look_twice(published: &[Published], waits: &[Wait]) -> Vec<Deadlock> {
        let mut detector = Detector::default();
        assert_eq!(detector.look(published, waits, name), [], "one look tells nothing");
        detector.look(published, waits, name)
    }

    /// T1 is older and waits on shard 2, T2 waits on shard 1.
    fn two() -> (Vec<Published>, Vec<Wait>) {
        let transactions = vec![
            published(1, 1000, &[(1, 10, None), (2, 20, Some(5))]),
            published(2, 2000, &[(1, 11, Some(7)), (2, 21, None)]),
        ];
        (transactions, vec![wait(2, 20, 5, &[21]), wait(1, 11, 7, &[10])])
    }

    #[test]
    fn the_youngest_of_two_gives_way_and_both_sides_are_named() {
        let (transactions, waits) = two();
        let found = look_twice(&transactions, &waits);
        assert_eq!(victims(&found), [2]);
        assert_eq!(
            found[0].detail,
            "Process 11 on shard shard1 waits for ShareLock on transaction 710; blocked by process 10.\n\
             Process 20 on shard shard2 waits for ShareLock on transaction 721; blocked by process 21."
        );
        let same_age: Vec<_> = transactions
            .into_iter()
            .map(|t| Published { started_us: 1, ..t })
            .collect();
        assert_eq!(victims(&look_twice(&same_age, &waits)), [2], "the higher number");
    }

    #[test]
    fn waits_must_last() {
        let (transactions, waits) = two();
        let mut detector = Detector::default();
        detector.look(&transactions, &waits, name);
        let mut later = waits.clone();
        later[0].since_us = 6;
        let mut republished = transactions.clone();
        republished[0].backends[1].waits_since_us = Some(6);
        assert_eq!(detector.look(&republished, &later, name), [], "a new wait of T1");
        assert_eq!(victims(&detector.look(&republished, &later, name)), [2]);
        detector.forget();
        assert_eq!(detector.look(&republished, &later, name), []);
        let mut next_statement = republished.clone();
        next_statement[0].statement = 2;
        assert_eq!(detector.look(&next_statement, &later, name), []);
    }

    #[test]
    fn what_was_published_of_a_backend_must_still_be_so() {
        let (mut transactions, waits) = two();
        transactions[0].backends[1].waits_since_us = Some(4);
        assert_eq!(look_twice(&transactions, &waits), [], "the wait is somebody else's");
        transactions[0].backends[1].waits_since_us = None;
        assert_eq!(look_twice(&transactions, &waits), []);
    }

    #[test]
    fn three_over_three_shards() {
        let transactions = [
            published(1, 3000, &[(1, 10, None), (2, 20, Some(1))]),
            published(2, 2000, &[(2, 21, None), (3, 31, Some(1))]),
            published(3, 1000, &[(3, 32, None), (1, 12, Some(1))]),
        ];
        let waits = [wait(2, 20, 1, &[21]), wait(3, 31, 1, &[32]), wait(1, 12, 1, &[10])];
        let found = look_twice(&transactions, &waits);
        assert_eq!(victims(&found), [1], "not the last, but the youngest");
        assert_eq!(found[0].detail.lines().count(), 3);
        assert_eq!(look_twice(&transactions, &waits[..2]), [], "an open chain");
    }

    #[test]
    fn a_chain_through_a_transaction_of_one_shard() {
        // On shard 1, process 15 is nobody's: it waits for T1 and T2 waits for it.
        let (transactions, mut waits) = two();
        waits[1].blockers = vec![15];
        waits.push(wait(1, 15, 3, &[10]));
        let found = look_twice(&transactions, &waits);
        assert_eq!(victims(&found), [2]);
        assert_eq!(found[0].detail.lines().count(), 3);
    }

    #[test]
    fn a_circle_on_one_shard_is_postgresqls() {
        let transactions = [
            published(1, 1, &[(1, 10, Some(1)), (2, 20, None)]),
            published(2, 2, &[(1, 11, Some(1)), (2, 21, None)]),
        ];
        assert_eq!(
            look_twice(&transactions, &[wait(1, 10, 1, &[11]), wait(1, 11, 1, &[10])]),
            []
        );
    }

    #[test]
    fn prepared_holders_are_no_edge() {
        let (transactions, mut waits) = two();
        waits[0].blockers = vec![0];
        assert_eq!(look_twice(&transactions, &waits), []);
    }

    #[test]
    fn each_circle_loses_one() {
        // T1 and T2 as before, T3 and T4 alike on other rows; and T5, which only waits for T1.
        let (mut transactions, mut waits) = two();
        transactions.push(published(3, 4000, &[(1, 12, None), (2, 22, Some(5))]));
        transactions.push(published(4, 3000, &[(1, 13, Some(7)), (2, 23, None)]));
        transactions.push(published(5, 9000, &[(1, 14, Some(8)), (2, 24, None)]));
        waits.extend([wait(2, 22, 5, &[23]), wait(1, 13, 7, &[12]), wait(1, 14, 8, &[10, 11])]);
        assert_eq!(victims(&look_twice(&transactions, &waits)), [2, 3]);
    }

    #[test]
    fn a_victim_is_not_followed_by_another() {
        let (mut transactions, waits) = two();
        let mut detector = Detector::default();
        detector.look(&transactions, &waits, name);
        let found = detector.look(&transactions, &waits, name);
        transactions[1].victim = Some(found[0].detail.clone());
        assert_eq!(detector.look(&transactions, &waits, name), []);
        assert_eq!(detector.look(&transactions, &waits, name), []);
    }

    #[test]
    fn a_statement_that_waits_on_two_shards_at_once() {
        // T1's UPDATE over two shards waits for T2 and T3; T3 waits for T1 on a third shard.
        let transactions = [
            published(1, 1, &[(1, 10, Some(1)), (2, 20, Some(2)), (3, 30, None)]),
            published(3, 2, &[(2, 22, None), (3, 32, Some(3))]),
        ];
        let waits = [wait(1, 10, 1, &[11]), wait(2, 20, 2, &[22]), wait(3, 32, 3, &[30])];
        assert_eq!(victims(&look_twice(&transactions, &waits)), [3]);
    }
}
