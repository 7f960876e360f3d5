//! Money moves between accounts on three shards; whoever reads all accounts finds all the money.
//!
//! At READ COMMITTED the sum is that of one SELECT, and a transfer adds to what is there. At the levels above, a transfer
//! writes what it has computed from what it has read, and a reader looks at one shard after the other in statements of
//! their own: a lost update or a second snapshot shows as wrong money.

use super::client::{Client, Stop};
use super::order::SHARDS;
use super::record::{Log, Outcome, Record};
use super::round::Script;
use super::stage::Stage;
use super::verdict::Verdict;
use async_trait::async_trait;
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

const ACCOUNTS_PER_SHARD: i64 = 4;
const OPENING_BALANCE: i64 = 1000;
/// What lies in all accounts, always.
const TOTAL: i64 = SHARDS as i64 * ACCOUNTS_PER_SHARD * OPENING_BALANCE;

#[derive(Debug, Clone)]
enum Step {
    Transfer,
    /// The sums over all accounts that one statement, or one transaction, has seen.
    Sums(Vec<i64>),
}

#[derive(Default)]
pub(super) struct Bank {
    log: Log<Step>,
}

fn account(shard: i64, number: i64) -> i64 {
    shard * 1000 + number
}

async fn transfer(client: &mut Client) -> Result<(), Stop> {
    let mut pick = || {
        let shard = client.random.random_range(0..SHARDS as i64);
        account(shard, client.random.random_range(0..ACCOUNTS_PER_SHARD))
    };
    let (from, mut to) = (pick(), pick());
    while to == from {
        to = pick();
    }
    let amount = client.random.random_range(1..=20_i64);
    let mut changes = [(from, -amount), (to, amount)];
    if client.chance(0.95) {
        // In one order of locks, so that transfers rarely wait for each other in a circle.
        changes.sort_unstable();
    }
    client.begin().await?;
    if client.stage.level.is_one_step() {
        let found = client
            .pairs(&format!("SELECT id, balance FROM bank WHERE id IN ({from}, {to})"))
            .await?;
        let balances: BTreeMap<i64, i64> = found.into_iter().filter_map(|(id, b)| Some((id, b?))).collect();
        for (id, change) in changes {
            // A row that is not found shows as wrong money.
            let balance = balances.get(&id).copied().unwrap_or_default() + change;
            client
                .change(&format!("UPDATE bank SET balance = {balance} WHERE id = {id}"))
                .await?;
        }
    } else if client.chance(0.5) {
        for (id, change) in changes {
            client
                .change(&format!("UPDATE bank SET balance = balance + {change} WHERE id = {id}"))
                .await?;
        }
    } else {
        let sql = format!(
            "UPDATE bank SET balance = balance + CASE id WHEN {from} THEN {} ELSE {amount} END WHERE id IN ({from}, {to})",
            -amount
        );
        client.change(&sql).await?;
    }
    if client.chance(0.05) {
        return client.give_up().await;
    }
    client.commit().await
}

async fn sum(client: &mut Client) -> Result<i64, Stop> {
    // Added up by the shards, or by the client.
    if client.chance(0.5) {
        let row = client.pairs("SELECT count(*), sum(balance)::bigint FROM bank").await?;
        return Ok(row.first().and_then(|(_, sum)| *sum).unwrap_or_default());
    }
    let rows = client.pairs("SELECT id, balance FROM bank").await?;
    Ok(rows.into_iter().filter_map(|(_, balance)| balance).sum())
}

async fn read(client: &mut Client, sums: &mut Vec<i64>) -> Result<(), Stop> {
    if !client.stage.level.is_one_step() {
        sums.push(sum(client).await?);
        return Ok(());
    }
    client.begin().await?;
    let mut by_shard = 0;
    for shard in 0..SHARDS as i64 {
        let sql = format!(
            "SELECT id, balance FROM bank WHERE id >= {} AND id < {}",
            account(shard, 0),
            account(shard + 1, 0)
        );
        by_shard += client
            .pairs(&sql)
            .await?
            .into_iter()
            .filter_map(|(_, balance)| balance)
            .sum::<i64>();
    }
    sums.push(by_shard);
    sums.push(sum(client).await?);
    client.commit().await
}

fn check(records: &[Record<Step>], verdict: &mut Verdict) {
    for record in records {
        let Step::Sums(sums) = &record.what else { continue };
        if record.outcome == Outcome::Ok && sums.iter().any(|sum| *sum != TOTAL) {
            verdict.violation("wrong sum", format!("{sums:?} instead of {TOTAL}"));
        }
    }
}

#[async_trait]
impl Script for Bank {
    fn tables(&self) -> String {
        let shards = SHARDS as i64 - 1;
        let accounts = ACCOUNTS_PER_SHARD - 1;
        format!(
            "CREATE TABLE bank (id int PRIMARY KEY, balance bigint NOT NULL) PARTITION BY RANGE (id);
             INSERT INTO bank SELECT s * 1000 + n, {OPENING_BALANCE}
             FROM generate_series(0, {shards}) s, generate_series(0, {accounts}) n"
        )
    }

    async fn work(self: Arc<Self>, mut client: Client, _: usize) {
        while client.stage.is_open() {
            let begun = client.stage.tick();
            let (result, step) = if client.chance(0.6) {
                (transfer(&mut client).await, Step::Transfer)
            } else {
                let mut sums = Vec::new();
                (read(&mut client, &mut sums).await, Step::Sums(sums))
            };
            let record = client.settle(begun, result, step).await;
            self.log.push(record);
        }
    }

    async fn last_look(&self, client: &mut Client) {
        let begun = client.stage.tick();
        if let Ok(sum) = sum(client).await {
            self.log.push(client.statement(begun, Step::Sums(vec![sum])));
        }
    }

    fn verdict(&self, _: &Stage) -> Verdict {
        let records = self.log.take();
        let mut verdict = Verdict::of(&records, |step| matches!(step, Step::Sums(_)));
        check(&records, &mut verdict);
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_sum_is_found() {
        let record = |outcome, sums| Record {
            process: 1,
            begun: 1,
            ended: 2,
            outcome,
            what: Step::Sums(sums),
        };
        let mut verdict = Verdict::default();
        check(&[record(Outcome::Ok, vec![TOTAL])], &mut verdict);
        // What a transaction saw that could not be committed says nothing.
        check(&[record(Outcome::Failed, vec![TOTAL - 5])], &mut verdict);
        assert_eq!(verdict.violation_count(), 0);
        check(&[record(Outcome::Ok, vec![TOTAL, TOTAL - 5])], &mut verdict);
        assert_eq!(verdict.violation_count(), 1);
    }
}
