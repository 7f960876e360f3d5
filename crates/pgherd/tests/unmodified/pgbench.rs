//! pgbench makes its tables and runs its transactions through the gateway; nothing may fail, and its sums must agree.

use super::{cluster, program};
use pgherd_testkit::herd::{self, Gateway, Herd};
use tokio_postgres::Client;

async fn number(client: &Client, sql: &str) -> i64 {
    let row = client
        .query_one(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {:?}", error.as_db_error()));
    row.get(0)
}

async fn pgbench(herd: &Herd, gateway: &Gateway, arguments: &[&str]) -> String {
    let mut command = program(herd, gateway, "pgbench");
    command.args(arguments);
    let outcome = herd::run(&format!("pgbench {}", arguments.join(" ")), command).await;
    outcome.unwrap_or_else(|error| panic!("{error}\n{}", gateway.errors()))
}

/// Runs the TPC-B-like and the read-only script in each query mode; after each, the sums must agree.
async fn play(herd: &Herd, gateway: &Gateway, client: &Client) {
    let mut transactions = 0;
    for mode in ["simple", "extended", "prepared"] {
        for script in ["tpcb-like", "select-only"] {
            let arguments = ["-n", "-c", "4", "-j", "2", "-T", "3", "-M", mode, "-b", script];
            let said = pgbench(herd, gateway, &arguments).await;
            assert!(
                said.contains("number of failed transactions: 0 "),
                "{mode} {script}: {said}"
            );
            let done = said
                .lines()
                .find_map(|line| line.strip_prefix("number of transactions actually processed: "));
            let done: i64 = done
                .and_then(|text| text.parse().ok())
                .expect("a number of transactions");
            assert!(done > 0, "{mode} {script}: {said}");
            transactions += if script == "tpcb-like" { done } else { 0 };
        }
        let mut sums = Vec::new();
        for (column, table) in [
            ("abalance", "accounts"),
            ("tbalance", "tellers"),
            ("bbalance", "branches"),
            ("delta", "history"),
        ] {
            sums.push(
                number(
                    client,
                    &format!("SELECT coalesce(sum({column}), 0)::bigint FROM pgbench_{table}"),
                )
                .await,
            );
        }
        assert!(
            sums.iter().all(|sum| *sum == sums[0]),
            "{mode}: accounts, tellers, branches, history: {sums:?}"
        );
        let history = number(client, "SELECT count(*) FROM pgbench_history").await;
        assert_eq!(
            history, transactions,
            "{mode}: every acknowledged transaction is in the history, once"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitioned_accounts_lie_on_three_shards() {
    let (herd, gateway) = cluster().await;
    pgbench(&herd, &gateway, &["-i", "-q", "-s", "1", "--partitions=6"]).await;
    let client = gateway.connect().await.expect("connect");
    let shards = "SELECT count(DISTINCT shard) FROM pgherd.ranges WHERE \"table\" = 'pgbench_accounts'";
    assert_eq!(number(&client, shards).await, 3);
    assert_eq!(number(&client, "SELECT count(*) FROM pgbench_accounts").await, 100_000);
    // Seen from behind: the rows are there, on each shard a part, all of them together once.
    let mut rows = Vec::new();
    for shard in herd.cluster().shards() {
        let direct = shard
            .connect("postgres", "postgres")
            .await
            .expect("connect to the shard");
        rows.push(number(&direct, "SELECT count(*) FROM pgbench_accounts").await);
    }
    assert!(
        rows.iter().all(|rows| *rows > 0) && rows.iter().sum::<i64>() == 100_000,
        "{rows:?}"
    );
    play(&herd, &gateway, &client).await;
    assert!(gateway.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_tables_are_local() {
    let (herd, gateway) = cluster().await;
    pgbench(&herd, &gateway, &["-i", "-q", "-s", "1"]).await;
    let client = gateway.connect().await.expect("connect");
    assert_eq!(number(&client, "SELECT count(*) FROM pgherd.ranges").await, 0);
    play(&herd, &gateway, &client).await;
    // With foreign keys and data made on the server, the other ways in which pgbench initialises.
    pgbench(&herd, &gateway, &["-i", "-q", "-s", "1", "-I", "dtGvpf"]).await;
    assert_eq!(number(&client, "SELECT count(*) FROM pgbench_accounts").await, 100_000);
    assert!(gateway.stop().await);
}
