//! Shards with the marker schema, a client role, and a bank whose accounts lie on all of them.
#![allow(dead_code, reason = "each test file uses its own part of this")]

pub mod hold;
pub mod wire;

use pgherd_local_cluster::{LocalCluster, SERVICE_ROLE, SUPERUSER};
use pgherd_model::ShardId;
use pgherd_shards::{Identity, Options, ShardConfig, Shards};
use pgherd_transaction::{CommitIdentity, Coordinator, Error, Fragment, Mode, Transaction};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const SECRET: &str = "not a very secret secret";
pub const CLUSTER: &str = "test";
/// Every account starts with this.
pub const BALANCE: i64 = 1000;

pub struct Bed {
    pub cluster: LocalCluster,
    pub shards: Arc<Shards>,
}

impl Bed {
    pub async fn start(shards: usize) -> Self {
        Self::start_with(shards, &[]).await
    }

    pub async fn start_with(shards: usize, settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let cluster = LocalCluster::ephemeral_with(shards, settings)
            .await
            .expect("shards start");
        for server in cluster.shards() {
            let client = server.connect(SUPERUSER, "postgres").await.expect("connect");
            let role = format!(
                "DO $$ BEGIN IF to_regrole('{SERVICE_ROLE}') IS NULL THEN CREATE ROLE {SERVICE_ROLE} SUPERUSER LOGIN; END IF; END $$"
            );
            client.batch_execute(&role).await.expect("service role");
            let bank = format!(
                "CREATE ROLE app LOGIN;
                 CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
                 INSERT INTO account SELECT n, {BALANCE} FROM generate_series(1, 8) n;
                 GRANT ALL ON account TO app; GRANT CREATE ON SCHEMA public TO app"
            );
            client.batch_execute(&bank).await.expect("bank");
        }
        let configs = cluster.shards().iter().enumerate().map(|(at, server)| ShardConfig {
            id: ShardId(at as u32 + 1),
            name: server.name().into(),
            host: server.socket_dir().to_string_lossy().into_owned(),
            port: server.port(),
            tls: None,
        });
        let shards = Shards::new(Options::new(configs.collect(), SERVICE_ROLE));
        pgherd_catalog::install(&shards, "postgres", CLUSTER, SECRET)
            .await
            .expect("install");
        Self { cluster, shards }
    }

    /// Opens a gateway's coordinator, with a lease.
    pub async fn gateway(&self, name: &str, incarnation: u64) -> Arc<Coordinator> {
        self.lease(name, incarnation, "1 hour").await;
        let identity = CommitIdentity {
            cluster: CLUSTER.into(),
            gateway: name.into(),
            incarnation,
            secret: SECRET.into(),
        };
        Coordinator::open(self.shards.clone(), "postgres", identity)
            .await
            .expect("coordinator")
    }

    /// Gives a lease, or with a negative time takes it.
    pub async fn lease(&self, name: &str, incarnation: u64, time: &str) {
        self.sql(
            1,
            &format!(
                "INSERT INTO pgherd.gateway_lease (incarnation, name, address, lease_until)
                 VALUES ('{incarnation}', '{name}', '', now() + interval '{time}')
                 ON CONFLICT (incarnation) DO UPDATE SET lease_until = excluded.lease_until"
            ),
        )
        .await;
    }

    /// Runs SQL on a shard as a superuser, on a connection of its own.
    pub async fn sql(&self, shard: u32, sql: &str) {
        let client = self
            .cluster
            .shard(shard)
            .connect(SUPERUSER, "postgres")
            .await
            .expect("connect");
        client.batch_execute(sql).await.expect(sql);
    }

    pub async fn number(&self, shard: u32, sql: &str) -> i64 {
        let client = self
            .cluster
            .shard(shard)
            .connect(SUPERUSER, "postgres")
            .await
            .expect("connect");
        client.query_one(sql, &[]).await.expect(sql).get(0)
    }

    pub fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        1..=self.shards.all().len() as u32
    }

    /// The names of what waits between the two phases on any shard, in order.
    pub async fn prepared_gids(&self) -> Vec<String> {
        let mut gids = std::collections::BTreeSet::new();
        for server in self.cluster.shards() {
            let client = server.connect(SUPERUSER, "postgres").await.expect("connect");
            let rows = client.query("SELECT gid FROM pgherd.prepared_here", &[]).await;
            gids.extend(rows.expect("a list").iter().map(|row| row.get::<_, String>(0)));
        }
        gids.into_iter().collect()
    }

    pub async fn prepared(&self) -> i64 {
        let mut count = 0;
        for shard in self.ids() {
            count += self.number(shard, "SELECT count(*) FROM pg_prepared_xacts").await;
        }
        count
    }

    /// Each shard's balance of one account.
    pub async fn balances(&self, account: i32) -> Vec<i64> {
        let mut balances = Vec::new();
        for shard in self.ids() {
            balances.push(
                self.number(shard, &format!("SELECT balance FROM account WHERE id = {account}"))
                    .await,
            );
        }
        balances
    }

    /// Waits until no shard has a prepared transaction.
    pub async fn until_nothing_is_prepared(&self, limit: Duration) {
        let begun = Instant::now();
        loop {
            let left = self.prepared().await;
            if left == 0 {
                return;
            }
            assert!(
                begun.elapsed() < limit,
                "{left} transactions are still prepared after {limit:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub fn app() -> Identity {
    Identity::new("app", "postgres")
}

pub fn begin(coordinator: &Arc<Coordinator>) -> Transaction {
    coordinator.begin(app(), Mode::default())
}

/// Runs SQL on one shard of a transaction; the first value of the last result.
pub async fn run(transaction: &mut Transaction, shard: u32, sql: &str) -> Result<Option<String>, Error> {
    let results = transaction.participant(ShardId(shard)).await?.simple(sql).await?;
    let last = results.last().expect("a result");
    let wrote = ["INSERT", "UPDATE", "DELETE"]
        .iter()
        .any(|verb| last.tag.starts_with(verb));
    let value = last.text(0, 0).map(str::to_owned);
    if wrote {
        transaction.wrote(ShardId(shard));
    }
    Ok(value)
}

/// Adds to one account on each of these shards.
pub async fn add(transaction: &mut Transaction, account: i32, changes: &[(u32, i64)]) -> Result<(), Error> {
    for (shard, change) in changes {
        let sql = format!("UPDATE account SET balance = balance + {change} WHERE id = {account}");
        run(transaction, *shard, &sql).await?;
    }
    Ok(())
}

pub fn state(error: &Error) -> String {
    error.sqlstate().to_string()
}

/// What is read on a shard, without parameters and fences.
pub fn fragment(shard: u32, portal: &str, sql: &str) -> Fragment {
    Fragment {
        shard: ShardId(shard),
        portal: portal.into(),
        sql: sql.into(),
        parameter_types: Vec::new(),
        parameters: Vec::new(),
        result_formats: Vec::new(),
        fences: Vec::new(),
    }
}
