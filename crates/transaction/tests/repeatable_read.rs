//! REPEATABLE READ over several shards, while money moves through two gateways: one cut for the whole transaction, whenever
//! its shards join; the first updater wins; nothing that was acknowledged before is missed; nothing is left behind.

mod bed;

use bed::{BALANCE, Bed, add, app, begin, run, state};
use pgherd_model::ShardId;
use pgherd_transaction::{Coordinator, Error, Isolation, Mode, Transaction};
use rand::seq::SliceRandom;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

const ACCOUNTS: i64 = 8;
const TOTAL: i64 = 3 * ACCOUNTS * BALANCE;
const SUM: &str = "SELECT sum(balance)::bigint FROM account";

fn repeatable_read(coordinator: &Arc<Coordinator>) -> Transaction {
    let mode = Mode {
        isolation: Some(Isolation::RepeatableRead),
        ..Mode::default()
    };
    coordinator.begin(app(), mode)
}

async fn number(transaction: &mut Transaction, shard: u32, sql: &str) -> i64 {
    let value = run(transaction, shard, sql).await.expect(sql);
    value.and_then(|v| v.parse().ok()).expect("a number")
}

async fn sum(transaction: &mut Transaction, shards: &[u32]) -> i64 {
    let mut sum = 0;
    for shard in shards {
        sum += number(transaction, *shard, SUM).await;
    }
    sum
}

/// What a gateway would see that let each shard take its own snapshot: three blocks that know nothing of each other.
async fn sum_naively(bed: &Bed) -> i64 {
    let mut sum = 0;
    let mut blocks = Vec::new();
    for shard in bed.ids() {
        let mut backend = bed.shards.checkout(ShardId(shard), &app()).await.expect("connection");
        let sql = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {SUM}");
        let results = backend.simple(&sql).await.expect("sum");
        sum += results[1]
            .text(0, 0)
            .and_then(|v| v.parse::<i64>().ok())
            .expect("a number");
        blocks.push(backend);
    }
    for mut block in blocks {
        block.simple("ROLLBACK").await.expect("rollback");
    }
    sum
}

/// Moves money between two shards until told to stop; how many transfers there were.
async fn transfer(gateway: Arc<Coordinator>, stop: Arc<AtomicBool>) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let (mut shards, account) = ([1, 2, 3], rand::random_range(1..=ACCOUNTS) as i32);
        shards.shuffle(&mut rand::rng());
        // In one order of locks, so that transfers do not wait for each other in a circle.
        let mut changes = vec![(shards[0], -1), (shards[1], 1)];
        changes.sort();
        let mut transaction = begin(&gateway);
        match add(&mut transaction, account, &changes).await {
            Ok(()) => count += u64::from(transaction.commit().await.is_ok()),
            Err(_) => transaction.rollback().await.expect("rollback"),
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sums_are_right_and_stay_the_same() {
    let bed = Bed::start(3).await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6)
        .map(|n| tokio::spawn(transfer(gateways[n % 2].clone(), stop.clone())))
        .collect();
    let (begun, mut naive, mut reads, mut wrong) = (Instant::now(), 0, 0, Vec::new());
    let is_enough = |naive, reads, begun: Instant| naive > 0 && reads > 20 && begun.elapsed() > Duration::from_secs(6);
    while !is_enough(naive, reads, begun) && begun.elapsed() < Duration::from_secs(60) {
        naive += u64::from(sum_naively(&bed).await != TOTAL);

        let mut transaction = repeatable_read(&gateways[reads % 2]);
        // A third of them write; their own writes are in every later sum.
        let mut own = 0;
        let order: &[u32] = [&[1, 2, 3], &[3, 1, 2], &[2, 3, 1]][reads % 3];
        for round in 0..3 {
            let found = sum(&mut transaction, order).await;
            if found != TOTAL + own {
                wrong.push(found - own);
            }
            if round == 0 && reads % 3 == 0 {
                let insert = "INSERT INTO account VALUES (1000, 1)";
                run(&mut transaction, 2, insert).await.expect(insert);
                own = 1;
            }
        }
        reads += 1;
        transaction.rollback().await.expect("rollback");
    }
    stop.store(true, Ordering::Relaxed);
    let mut transfers = 0;
    for writer in writers {
        transfers += writer.await.expect("writer");
    }
    eprintln!("{transfers} transfers, {reads} transactions, {naive} naive sums wrong");
    assert!(wrong.is_empty(), "{} sums wrong: {wrong:?}", wrong.len());
    assert!(transfers > 50 && reads > 20);
    assert!(
        naive > 0,
        "without a cut some sums are wrong, or this test shows nothing"
    );
    no_holder_is_left(&bed).await;
    bed.until_nothing_is_prepared(Duration::from_secs(5)).await;
}

/// What a reader saw of two writers: how far each had come.
type Progress = (i64, i64);

/// A pair of observations of which each shows something that the other does not.
fn forked(seen: &[Progress]) -> Option<(Progress, Progress)> {
    let mut sorted = seen.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).map(|w| (w[0], w[1])).find(|(a, b)| a.1 > b.1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_agree_on_the_order_of_writers() {
    assert_eq!(forked(&[(0, 0), (1, 0), (1, 1), (2, 1)]), None);
    assert!(forked(&[(0, 0), (1, 0), (0, 1)]).is_some(), "the checker finds a fork");
    let bed = Bed::start(3).await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let stop = Arc::new(AtomicBool::new(false));
    // Writer 1 counts in account 1 of shards 1 and 2, writer 2 in account 2 of shards 2 and 3.
    let writers: Vec<_> = [(1, [1, 2]), (2, [2, 3])]
        .into_iter()
        .map(|(account, shards)| {
            let (gateway, stop) = (gateways[account as usize - 1].clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let mut transaction = begin(&gateway);
                    let changes = shards.map(|s| (s, 1));
                    add(&mut transaction, account, &changes).await.expect("count");
                    transaction.commit().await.expect("commit");
                }
            })
        })
        .collect();
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let (gateway, stop) = (gateways[n % 2].clone(), stop.clone());
            tokio::spawn(async move {
                let (mut seen, mut torn) = (Vec::new(), Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let mut transaction = repeatable_read(&gateway);
                    let mut counts = [0; 4];
                    // In both orders of shards.
                    let mut places = [(1, 1), (1, 2), (2, 2), (2, 3)];
                    if n > 1 {
                        places.reverse();
                    }
                    for (at, (account, shard)) in places.into_iter().enumerate() {
                        let sql = format!("SELECT balance FROM account WHERE id = {account}");
                        counts[at] = number(&mut transaction, shard, &sql).await - BALANCE;
                    }
                    if n > 1 {
                        counts.reverse();
                    }
                    match counts {
                        [a, b, c, d] if a == b && c == d => seen.push((a, c)),
                        _ => torn.push(counts),
                    }
                    transaction.rollback().await.expect("rollback");
                }
                (seen, torn)
            })
        })
        .collect();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        if bed.balances(1).await[0] > BALANCE + 30 && bed.balances(2).await[2] > BALANCE + 30 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("writer");
    }
    let mut all = Vec::new();
    for reader in readers {
        let (seen, torn) = reader.await.expect("reader");
        assert!(torn.is_empty(), "half a transaction was seen: {torn:?}");
        // A reader's own transactions follow each other.
        assert!(
            seen.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1),
            "back in time"
        );
        all.extend(seen);
    }
    assert_eq!(forked(&all), None);
    let last = all.iter().max().copied().unwrap_or_default();
    eprintln!("{} observations, up to {last:?}", all.len());
    assert!(all.len() > 20 && last.0 > 10 && last.1 > 10);
}

/// Whatever joins later shows the first statement's moment, also of transactions on one shard.
#[tokio::test]
async fn a_shard_that_joins_late_shows_the_first_statements_moment() {
    let bed = Bed::start(3).await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let balance = "SELECT balance FROM account WHERE id = 1";
    let mut reader = repeatable_read(&gateways[0]);
    let mut later = repeatable_read(&gateways[0]);
    assert_eq!(number(&mut reader, 1, balance).await, BALANCE);
    for shards in [&[(2, 5)][..], &[(1, -7), (3, 7)]] {
        let mut writer = begin(&gateways[1]);
        add(&mut writer, 1, shards).await.expect("updates");
        writer.commit().await.expect("commit");
    }
    for shard in [2, 3, 1] {
        assert_eq!(number(&mut reader, shard, balance).await, BALANCE);
    }
    // BEGIN alone decides nothing.
    assert_eq!(number(&mut later, 2, balance).await, BALANCE + 5);
    assert_eq!(number(&mut later, 1, balance).await, BALANCE - 7);
    assert_eq!(reader.commit().await.expect("commit").tag, "COMMIT");
    later.rollback().await.expect("rollback");
    no_holder_is_left(&bed).await;
}

/// SET LOCAL and LOCK TABLE come before the snapshot, and savepoints before the shards that join.
#[tokio::test]
async fn settings_locks_and_savepoints_decide_nothing() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    let balance = "SELECT balance FROM account WHERE id = 1";
    let deposit = async |shard| {
        let mut writer = begin(&gateway);
        add(&mut writer, 1, &[(shard, 1)]).await.expect("update");
        writer.commit().await.expect("commit");
    };

    let mut set = repeatable_read(&gateway);
    let local = "SET LOCAL work_mem = '7MB'";
    let home = set.participant_to_set(ShardId(1)).await.expect("participant");
    home.simple(local).await.expect(local);
    home.simple("SELECT current_setting('work_mem')").await.expect("ask");
    set.replay_on_join(local.into());
    set.savepoint("s").await.expect("savepoint");
    deposit(1).await;
    assert_eq!(number(&mut set, 1, balance).await, BALANCE + 1);
    deposit(2).await;
    for shard in [1, 2] {
        let work_mem = run(&mut set, shard, "SELECT current_setting('work_mem')").await;
        assert_eq!(work_mem.expect("setting").as_deref(), Some("7MB"));
    }
    assert_eq!(number(&mut set, 2, balance).await, BALANCE);
    set.rollback_to("s").await.expect("rollback to");
    assert_eq!(
        number(&mut set, 2, balance).await,
        BALANCE,
        "the snapshot outlives the savepoint"
    );
    set.rollback().await.expect("rollback");

    let mut lock = repeatable_read(&gateway);
    for shard in [1, 2] {
        deposit(shard).await;
        let backend = lock.participant_to_lock(ShardId(shard)).await.expect("participant");
        let sql = "LOCK TABLE account IN SHARE MODE";
        backend.simple(sql).await.expect(sql);
    }
    assert_eq!(number(&mut lock, 1, balance).await, BALANCE + 2);
    assert_eq!(number(&mut lock, 2, balance).await, BALANCE + 2);
    lock.rollback().await.expect("rollback");

    let mut within = repeatable_read(&gateway);
    within.savepoint("s").await.expect("savepoint");
    for shard in [1, 2] {
        let backend = within.participant_to_lock(ShardId(shard)).await.expect("participant");
        let sql = "LOCK TABLE account IN EXCLUSIVE MODE";
        backend.simple(sql).await.expect(sql);
        within.with_the_snapshot(ShardId(shard), "LOCK TABLE account".into());
    }
    within.savepoint("t").await.expect("savepoint");
    assert_eq!(number(&mut within, 1, balance).await, BALANCE + 2);
    let held = "SELECT count(*)::int FROM pg_locks WHERE relation = 'account'::regclass AND mode = 'AccessExclusiveLock' AND pid = pg_backend_pid()";
    assert_eq!(number(&mut within, 2, held).await, 1, "asked for with the snapshot");
    within.rollback_to("t").await.expect("rollback to");
    assert_eq!(number(&mut within, 2, held).await, 1);
    within.rollback_to("s").await.expect("rollback to");
    assert_eq!(number(&mut within, 2, held).await, 0);
    within.rollback().await.expect("rollback");

    let mut late = repeatable_read(&gateway);
    late.savepoint("s").await.expect("savepoint");
    late.replay_on_join(local.into());
    late.participant_to_lock(ShardId(1)).await.expect("participant");
    let error = late
        .participant(ShardId(2))
        .await
        .map(drop)
        .expect_err("settings would stay");
    assert_eq!(state(&error), "0A000", "{error}");
    late.rollback().await.expect("rollback");
}

#[tokio::test]
async fn the_first_updater_wins() {
    let bed = Bed::start(3).await;
    let gateways = [bed.gateway("gw1", 1).await, bed.gateway("gw2", 2).await];
    let mut first = repeatable_read(&gateways[0]);
    let mut second = repeatable_read(&gateways[1]);
    for transaction in [&mut first, &mut second] {
        assert_eq!(sum(transaction, &[1, 2, 3]).await, TOTAL);
    }
    // Both would write back what they read, the lost update.
    add(&mut first, 1, &[(1, -10), (2, 10)]).await.expect("updates");
    assert_eq!(sum(&mut first, &[1, 2]).await, 2 * ACCOUNTS * BALANCE, "own writes");
    assert_eq!(first.commit().await.expect("two importers are prepared").tag, "COMMIT");
    add(&mut second, 1, &[(3, -10)]).await.expect("nobody wrote there");
    let error = add(&mut second, 1, &[(2, 10)]).await.expect_err("overtaken");
    assert_eq!(state(&error), "40001", "{error}");
    assert_eq!(second.commit().await.expect("commit").tag, "ROLLBACK");
    assert_eq!(bed.balances(1).await, [BALANCE - 10, BALANCE + 10, BALANCE]);

    // Of counters that many add to, no addition is lost.
    let clients: Vec<_> = (0..6)
        .map(|n| {
            let gateway = gateways[n % 2].clone();
            tokio::spawn(async move {
                let (mut done, mut refused) = (0, 0);
                while done < 10 {
                    match read_then_write(&gateway).await {
                        Ok(()) => done += 1,
                        Err(e) if state(&e) == "40001" => refused += 1,
                        Err(e) => panic!("{e}"),
                    }
                }
                refused
            })
        })
        .collect();
    let mut refused = 0;
    for client in clients {
        refused += client.await.expect("client");
    }
    eprintln!("60 additions, {refused} refused");
    assert_eq!(bed.balances(2).await, [BALANCE + 60, BALANCE + 60, BALANCE]);
    assert!(refused > 0, "nobody met anybody, and this shows nothing");
    bed.until_nothing_is_prepared(Duration::from_secs(5)).await;
}

/// Adds one on two shards as a client does that computes in its own language.
async fn read_then_write(gateway: &Arc<Coordinator>) -> Result<(), Error> {
    let mut transaction = repeatable_read(gateway);
    for shard in [1, 2] {
        let value = number(&mut transaction, shard, "SELECT balance FROM account WHERE id = 2").await;
        let sql = format!("UPDATE account SET balance = {} WHERE id = 2", value + 1);
        if let Err(e) = run(&mut transaction, shard, &sql).await {
            transaction.rollback().await?;
            return Err(e);
        }
    }
    transaction.commit().await.map(|_| ())
}

/// Transactions that ask at the same moment share a cut, and still none misses what was acknowledged before it asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_cuts_miss_nothing_that_was_acknowledged() {
    let bed = Bed::start(2).await;
    let gateway = bed.gateway("gw1", 1).await;
    let acknowledged = Arc::new(AtomicI64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (gateway, acknowledged, stop) = (gateway.clone(), acknowledged.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let mut transaction = begin(&gateway);
                add(&mut transaction, 1, &[(1, 1), (2, 1)]).await.expect("count");
                transaction.commit().await.expect("commit");
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let readers: Vec<_> = (0..12)
        .map(|_| {
            let (gateway, acknowledged) = (gateway.clone(), acknowledged.clone());
            tokio::spawn(async move {
                for _ in 0..15 {
                    let at_least = acknowledged.load(Ordering::SeqCst);
                    let mut transaction = repeatable_read(&gateway);
                    for shard in [2, 1] {
                        let sql = "SELECT balance FROM account WHERE id = 1";
                        let seen = number(&mut transaction, shard, sql).await - BALANCE;
                        assert!(seen >= at_least, "{at_least} were acknowledged, {seen} are seen");
                    }
                    transaction.rollback().await.expect("rollback");
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.expect("reader");
    }
    stop.store(true, Ordering::SeqCst);
    writer.await.expect("writer");
    assert!(acknowledged.load(Ordering::SeqCst) > 5);
    no_holder_is_left(&bed).await;
}

/// A transaction that does not use the shard that is down is not kept from running by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_down_is_left_out() {
    let bed = Bed::start(3).await;
    let gateway = bed.gateway("gw1", 1).await;
    bed.cluster.kill_shard(3).await;
    let mut transaction = repeatable_read(&gateway);
    assert_eq!(sum(&mut transaction, &[1, 2]).await, 2 * ACCOUNTS * BALANCE);
    add(&mut transaction, 1, &[(1, -1), (2, 1)]).await.expect("updates");
    assert_eq!(transaction.commit().await.expect("commit").tag, "COMMIT");
    let mut transaction = repeatable_read(&gateway);
    assert_eq!(sum(&mut transaction, &[1, 2]).await, 2 * ACCOUNTS * BALANCE);
    let error = run(&mut transaction, 3, SUM).await.expect_err("it is down");
    assert!(state(&error).starts_with("08"), "{error}");
    transaction.rollback().await.expect("rollback");
}

/// Holders pin old row versions: none may stay in a block when nobody needs it.
async fn no_holder_is_left(bed: &Bed) {
    let idle = "SELECT count(*) FROM pg_stat_activity \
                WHERE application_name = 'pgherd service' AND state LIKE 'idle in transaction%'";
    let begun = Instant::now();
    for shard in bed.ids() {
        while bed.number(shard, idle).await > 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "a holder's block stays open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
