//! Real shards, a catalog and a coordinator; statements run as a gateway would run them.
#![allow(dead_code, reason = "each test file uses a part of it")]

use pgherd_catalog::{Catalog, Change, Options, install};
use pgherd_local_cluster::LocalCluster;
use pgherd_model::{ServerError, ShardId};
use pgherd_operations::{Distribution, Outcome, Session, call, maintenance, schema_change};
use pgherd_shards::{Identity, ShardConfig, Shards};
use pgherd_sql::Kind;
use pgherd_transaction::{CommitIdentity, Coordinator, Mode, Transaction};
use std::sync::Arc;

const SECRET: &str = "secret";

pub struct Cluster {
    pub local: LocalCluster,
    pub shards: Arc<Shards>,
    pub catalog: Arc<Catalog>,
    pub coordinator: Arc<Coordinator>,
    pub path: Vec<Arc<str>>,
    pub distribution: Distribution,
    pub role: String,
}

impl Cluster {
    pub async fn start(count: usize) -> Self {
        let local = LocalCluster::ephemeral(count).await.expect("the shards start");
        let configs = local.shards().iter().enumerate().map(|(i, s)| ShardConfig {
            id: ShardId(i as u32 + 1),
            name: s.name().to_owned(),
            host: s.socket_dir().display().to_string(),
            port: s.port(),
            tls: None,
        });
        let options = pgherd_shards::Options::new(configs.collect(), pgherd_local_cluster::SERVICE_ROLE);
        let shards = Shards::new(options);
        install(&shards, "postgres", "test", SECRET)
            .await
            .expect("the catalog installs");
        let options = Options::new("test", "one", "127.0.0.1:1", SECRET);
        let catalog = Catalog::open(shards.clone(), "postgres", options)
            .await
            .expect("a lease");
        let identity = CommitIdentity {
            cluster: "test".into(),
            gateway: "one".into(),
            incarnation: catalog.identity().1,
            secret: SECRET.into(),
        };
        let coordinator = Coordinator::open(shards.clone(), "postgres", identity).await.unwrap();
        Self {
            local,
            shards,
            catalog,
            coordinator,
            path: vec!["pg_catalog".into(), "public".into()],
            distribution: Distribution::from_settings(None, Some("int 3,7; text h,q")).unwrap(),
            role: "postgres".into(),
        }
    }

    pub fn by_primary_key(&mut self) {
        self.distribution = Distribution::from_settings(Some("primary_key"), Some("int 3,7; text h,q")).unwrap();
    }

    pub fn begin(&self) -> Transaction {
        let mode = Mode {
            implicit: true,
            ..Mode::default()
        };
        self.coordinator.begin(Identity::new(&self.role, "postgres"), mode)
    }

    /// One statement inside a transaction.
    pub async fn within(
        &self,
        transaction: &mut Transaction,
        change: &mut Option<Change>,
        sql: &str,
    ) -> Result<Outcome, ServerError> {
        let statement = pgherd_sql::parse(sql).unwrap().remove(0);
        let snapshot = match change {
            Some(_) => {
                let home = transaction.participant(ShardId(1)).await?;
                self.catalog.load_through(home).await?
            }
            None => self.catalog.snapshot(),
        };
        let session = Session {
            catalog: &self.catalog,
            shards: &self.shards,
            search_path: &self.path,
            distribution: self.distribution.clone(),
            snapshot,
        };
        match &statement.kind {
            Kind::CallPgherd { procedure, arguments } => {
                call(&session, transaction, procedure, arguments, change).await
            }
            Kind::Ddl(_) => {
                let changed = schema_change(&session, transaction, &statement, sql, change).await;
                changed.map_err(|failure| failure.error)
            }
            other => panic!("{sql}: {other:?}"),
        }
    }

    /// A statement in a transaction of its own.
    pub async fn run(&self, sql: &str) -> Result<Outcome, ServerError> {
        let (mut transaction, mut change) = (self.begin(), None);
        let outcome = self.within(&mut transaction, &mut change, sql).await;
        let ended = match outcome {
            Ok(_) => transaction.commit().await.map(drop),
            Err(_) => transaction.rollback().await,
        };
        if let Some(change) = change {
            change.finish().await?;
        }
        ended?;
        outcome
    }

    pub async fn ok(&self, sql: &str) -> Outcome {
        match self.run(sql).await {
            Ok(outcome) => outcome,
            Err(e) => panic!("{sql}\n{e}"),
        }
    }

    /// The SQLSTATE that a statement fails with.
    pub async fn refused(&self, sql: &str) -> String {
        match self.run(sql).await {
            Ok(outcome) => panic!("{sql} gave {}", outcome.tag),
            Err(e) => e.sqlstate().code().to_owned(),
        }
    }

    pub async fn maintain(&self, sql: &str) -> Result<Outcome, ServerError> {
        let statement = pgherd_sql::parse(sql).unwrap().remove(0);
        let session = Session {
            catalog: &self.catalog,
            shards: &self.shards,
            search_path: &self.path,
            distribution: self.distribution.clone(),
            snapshot: self.catalog.snapshot(),
        };
        let who = Identity::new(&self.role, "postgres");
        maintenance(&session, &self.coordinator, &who, &statement, sql).await
    }

    /// Rows of one shard, columns joined by `|`, rows by newline.
    pub async fn on(&self, shard: u32, sql: &str) -> String {
        let who = Identity::new(&self.role, "postgres");
        let mut backend = self.shards.checkout(ShardId(shard), &who).await.unwrap();
        let results = match backend.simple(sql).await {
            Ok(results) => results,
            Err(e) => return format!("{} {e}", e.sqlstate()),
        };
        let rows = results.last().map(|r| r.rows.clone()).unwrap_or_default();
        let text = |v: &Option<bytes::Bytes>| {
            v.as_ref()
                .map_or("NULL".into(), |b| String::from_utf8_lossy(b).into_owned())
        };
        let lines: Vec<String> = rows
            .iter()
            .map(|r| r.iter().map(text).collect::<Vec<_>>().join("|"))
            .collect();
        lines.join("\n")
    }

    /// The same on every shard, one line for each.
    pub async fn on_all(&self, sql: &str) -> Vec<String> {
        let mut all = Vec::new();
        for shard in 1..=self.shards.all().len() as u32 {
            all.push(self.on(shard, sql).await);
        }
        all
    }

    /// `pgherd.ranges` of a table: from, to, shard.
    pub async fn ranges(&self, table: &str) -> String {
        let sql = format!(
            "SELECT string_agg(\"from\" || '..' || \"to\" || ' ' || shard, ', ' ORDER BY range) FROM pgherd.ranges WHERE \"table\" = '{table}'"
        );
        self.on(1, &sql).await
    }

    pub async fn stop(self) {
        drop(self.coordinator);
        self.catalog.close().await;
        drop(self.catalog);
        self.local.stop().await;
    }
}
