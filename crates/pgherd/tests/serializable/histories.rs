//! Random transactions of many sessions on few keys, checked for cycles.
//!
//! Every row holds the list of the transactions that have written it, so a read shows in which order they came. From that
//! follow the three dependencies of Adya's graph: a transaction comes after those whose writes it read or overwrote, and before
//! those that overwrote what it read. A history is serializable if and only if some order agrees with all of them. Reads of whole
//! tables and of keys that are not there count too: an empty list was read where there was no row.

use super::{BEGIN, Bed, run};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, SimpleQueryMessage};

/// On three shards, with room between them for rows that come and go.
const KEYS: [i32; 9] = [1, 2, 3, 11, 12, 13, 21, 22, 23];
const SESSIONS: usize = 6;
/// How many transactions are to commit, and how long that may take on a busy machine.
const ENOUGH: usize = 90;
const RUN_LIMIT: Duration = Duration::from_secs(30);

type List = Vec<u32>;

/// What one committed transaction saw and wrote.
#[derive(Debug, Default)]
struct Done {
    id: u32,
    /// by key, the list before the transaction's own writes
    reads: BTreeMap<i32, List>,
    writes: BTreeSet<i32>,
}

/// A small generator, so that a failure can be told apart from another one's.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn list(text: &str) -> List {
    text.split(',').filter_map(|id| id.parse().ok()).collect()
}

/// Rows of two columns, or None where another transaction was in the way.
async fn rows(client: &Client, sql: &str) -> Option<Vec<(i32, String)>> {
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(error) => {
            let code = error.as_db_error().map(|e| e.code().code().to_owned());
            assert!(matches!(code.as_deref(), Some("40001" | "40P01")), "{sql}: {error:?}");
            return None;
        }
    };
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let key = row.get(0).and_then(|k| k.parse().ok()).expect("a key");
            Some((key, row.get(1).unwrap_or_default().to_owned()))
        }
        _ => None,
    };
    Some(messages.into_iter().filter_map(row).collect())
}

/// One transaction of two to four steps; None where it did not commit.
async fn transaction(client: &Client, begin: &str, id: u32, dice: &mut Dice) -> Option<Done> {
    rows(client, begin).await?;
    let mut done = Done { id, ..Done::default() };
    for step in 0..2 + dice.roll(3) {
        let key = KEYS[dice.roll(KEYS.len() as u64) as usize];
        // Tables are read first, since those who write before they read a table wait for each other.
        let kind = if step == 0 { dice.roll(10) } else { 2 + dice.roll(8) };
        let (asked, sql): (Vec<i32>, String) = match kind {
            0 => (KEYS.to_vec(), "SELECT k, l FROM h".into()),
            1 => (
                KEYS.iter().copied().filter(|k| *k > 10).collect(),
                "SELECT k, l FROM h WHERE k > 10 AND l <> ''".into(),
            ),
            2 if step == 0 => (
                vec![key],
                format!("SELECT h.k, h.l FROM h JOIN h o ON o.k = h.k WHERE h.k = {key}"),
            ),
            2..=5 => (vec![key], format!("SELECT k, l FROM h WHERE k = {key}")),
            // A write of a key that is there or not.
            _ => {
                let upsert = format!(
                    "INSERT INTO h VALUES ({key}, '{id}') ON CONFLICT (k) DO UPDATE SET l = h.l || ',{id}' RETURNING k, ''"
                );
                let update = format!("UPDATE h SET l = l || ',{id}' WHERE k = {key} RETURNING k, ''");
                let written = match dice.roll(2) {
                    0 => rows(client, &upsert).await?,
                    _ => rows(client, &update).await?,
                };
                match written.is_empty() {
                    // An UPDATE that finds nothing has read that there is nothing.
                    true => drop(done.reads.entry(key).or_default()),
                    false => drop(done.writes.insert(key)),
                }
                continue;
            }
        };
        let found: BTreeMap<i32, String> = rows(client, &sql).await?.into_iter().collect();
        for key in asked {
            let mut seen = found.get(&key).map(|text| list(text)).unwrap_or_default();
            if done.writes.contains(&key) {
                assert!(seen.contains(&id), "its own write is not seen: {sql}");
            }
            seen.retain(|other| *other != id);
            if !done.writes.contains(&key) {
                let before = done.reads.entry(key).or_insert_with(|| seen.clone());
                assert_eq!(before, &seen, "read twice, {key} differs: {sql}");
            }
        }
    }
    rows(client, "COMMIT").await?;
    Some(done)
}

/// Runs sessions at `begin`'s level for a while; returns what committed, and each key's list in the end.
async fn history(bed: &Bed, begin: &'static str) -> (Vec<Done>, BTreeMap<i32, List>) {
    let observer = bed.client(0).await;
    run(
        &observer,
        "DELETE FROM h; INSERT INTO h SELECT k, '' FROM unnest(ARRAY[1, 2, 11, 12, 21, 22]) k",
    )
    .await;
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let client = bed.client(number).await;
        run(&client, "SET deadlock_timeout = '20ms'").await;
        sessions.push(tokio::spawn(async move {
            let (mut dice, mut done) = (Dice(number as u64 + 1), Vec::new());
            let (begun, mut count) = (Instant::now(), 0);
            while done.len() < ENOUGH / SESSIONS && begun.elapsed() < RUN_LIMIT {
                count += 1;
                match transaction(&client, begin, count * SESSIONS as u32 + number as u32, &mut dice).await {
                    Some(committed) => done.push(committed),
                    None => drop(client.simple_query("ROLLBACK").await),
                }
            }
            done
        }));
    }
    let mut all = Vec::new();
    for session in sessions {
        all.extend(session.await.expect("a session"));
    }
    let last = rows(&observer, "SELECT k, l FROM h")
        .await
        .expect("nobody is in the way");
    let lists = last.into_iter().map(|(key, text)| (key, list(&text))).collect();
    (all, lists)
}

/// A cycle of dependencies, if there is one.
fn cycle(all: &[Done], lists: &BTreeMap<i32, List>) -> Option<Vec<u32>> {
    let mut after: BTreeMap<u32, BTreeSet<u32>> = all.iter().map(|d| (d.id, BTreeSet::new())).collect();
    let mut edge = |from: u32, to: u32| {
        if from != to {
            after.get_mut(&from).expect("it committed").insert(to);
        }
    };
    for (key, list) in lists {
        for pair in list.windows(2) {
            edge(pair[0], pair[1]);
        }
        for reader in all.iter().filter_map(|d| Some((d.id, d.reads.get(key)?))) {
            let (id, seen) = reader;
            assert!(
                list.starts_with(seen),
                "{id} read {seen:?} of {key}, which was never so: {list:?}"
            );
            seen.last().into_iter().for_each(|writer| edge(*writer, id));
            // Its own write may come next: what counts is who overwrote what it read.
            list.get(seen.len()).into_iter().for_each(|next| edge(id, *next));
        }
    }
    // Whoever comes after nobody goes first, again and again: what is left over is in cycles, or behind one.
    let mut before: BTreeMap<u32, usize> = after.keys().map(|id| (*id, 0)).collect();
    after
        .values()
        .flatten()
        .for_each(|to| *before.get_mut(to).expect("known") += 1);
    let mut free: Vec<u32> = before.iter().filter(|(_, n)| **n == 0).map(|(id, _)| *id).collect();
    let mut sorted = 0;
    while let Some(id) = free.pop() {
        sorted += 1;
        for to in &after[&id] {
            let n = before.get_mut(to).expect("known");
            *n -= 1;
            if *n == 0 {
                free.push(*to);
            }
        }
    }
    (sorted < all.len()).then(|| before.into_iter().filter(|(_, n)| *n > 0).map(|(id, _)| id).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_have_no_cycle() {
    let bed = Bed::bare().await;
    let client = bed.client(0).await;
    run(&client, "SET pgherd.initial_bounds = 'int 10,20'").await;
    run(
        &client,
        "CREATE TABLE h (k int PRIMARY KEY, l text NOT NULL) PARTITION BY RANGE (k)",
    )
    .await;
    let (all, lists) = history(&bed, BEGIN).await;
    let found = cycle(&all, &lists);
    assert!(found.is_none(), "{found:?} of {all:?}");
    assert!(all.len() >= 30, "only {} transactions committed", all.len());
    println!("{} transactions at SERIALIZABLE, no cycle", all.len());
    // The same without the locks: the check does find what is there.
    let (all, lists) = history(&bed, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    let found = cycle(&all, &lists).expect("no write skew at REPEATABLE READ: the check cannot be trusted");
    println!(
        "{} transactions at REPEATABLE READ, {} in or behind cycles",
        all.len(),
        found.len()
    );
    bed.stop().await;
}
