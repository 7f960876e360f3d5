//! What a gateway holds per database: its catalog and its transaction coordinator, opened at first use.

use crate::judged::Judged;
use crate::local_defaults::LocalDefaults;
use crate::origins::Origins;
use crate::statements::StatementCache;
use crate::user_types::UserTypes;
use pgherd_catalog::Catalog;
use pgherd_model::{ServerError, SqlState};
use pgherd_shards::Shards;
use pgherd_transaction::{CommitIdentity, Coordinator};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::Mutex;

/// The database that a gateway opens at its start.
pub(crate) const ALWAYS_OPEN: &str = "postgres";

/// One database's parts.
pub(crate) struct Database {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) coordinator: Arc<Coordinator>,
    pub(crate) judged: Judged,
    /// what its statements mean here: the same text names other tables in another database
    pub(crate) cache: StatementCache,
    pub(crate) types: UserTypes,
    pub(crate) origins: Origins,
    pub(crate) local_defaults: LocalDefaults,
}

/// All databases in use.
pub(crate) struct Databases {
    shards: Arc<Shards>,
    options: pgherd_catalog::Options,
    open: Mutex<HashMap<String, Arc<Database>>>,
}

impl Databases {
    pub(crate) fn new(shards: Arc<Shards>, options: pgherd_catalog::Options) -> Self {
        Self {
            shards,
            options,
            open: Mutex::default(),
        }
    }

    /// The database of this name, opened (recovery runs once before this returns) if it was not.
    pub(crate) async fn get(&self, name: &str) -> Result<Arc<Database>, ServerError> {
        let mut open = self.open.lock().await;
        if let Some(database) = open.get(name) {
            return Ok(database.clone());
        }
        let (cluster, secret) = (&self.options.cluster, &self.options.secret);
        if let Err(error) = pgherd_catalog::bring_up_to_date(&self.shards, name, cluster, secret).await {
            // Opening says what is wrong, if that keeps it from being used.
            tracing::warn!("database \"{name}\" may keep an older gateway's functions: {error}");
        }
        let catalog = Catalog::open(self.shards.clone(), name, self.options.clone())
            .await
            .map_err(|error| {
                let error = ServerError::from(error);
                match error.sqlstate() {
                    SqlState::UNDEFINED_TABLE => ServerError::new(
                        SqlState::INVALID_CATALOG_NAME,
                        format!("database \"{name}\" is not part of the cluster"),
                    )
                    .with_hint(
                        "CREATE DATABASE through a gateway makes one; `pgherd init` prepares one that the shards have.",
                    ),
                    _ => error,
                }
            })?;
        let (gateway, incarnation) = catalog.identity();
        let identity = CommitIdentity {
            cluster: catalog.cluster().to_owned(),
            gateway: gateway.to_owned(),
            incarnation,
            secret: catalog.secret().to_owned(),
        };
        let coordinator = Coordinator::open(self.shards.clone(), name, identity)
            .await
            .map_err(ServerError::from)?;
        let database = Arc::new(Database {
            catalog,
            coordinator,
            judged: Judged::default(),
            cache: StatementCache::default(),
            types: UserTypes::default(),
            origins: Origins::default(),
            local_defaults: LocalDefaults::default(),
        });
        open.insert(name.to_owned(), database.clone());
        Ok(database)
    }

    /// Gives up a database that has no sessions: its lease, and its connections but for those of the pools.
    pub(crate) async fn close(&self, name: &str) {
        let database = self.open.lock().await.remove(name);
        if let Some(database) = database {
            give_up(database).await;
        }
    }

    /// Gives up the databases in `candidates` that have no sessions, and returns all others that have none: the candidates
    /// of the next time, which have been without for a while then.
    pub(crate) async fn close_unused(&self, candidates: &HashSet<String>) -> HashSet<String> {
        // A session that is about to begin has the database from under the same lock.
        let mut open = self.open.lock().await;
        let unused = open
            .iter()
            .filter(|(name, database)| *name != ALWAYS_OPEN && Arc::strong_count(database) == 1);
        let unused: HashSet<String> = unused.map(|(name, _)| name.clone()).collect();
        let (old, new): (HashSet<_>, HashSet<_>) = unused.into_iter().partition(|name| candidates.contains(name));
        for name in old {
            if let Some(database) = open.remove(&name) {
                give_up(database).await;
                self.shards.close_idle(Some(&name));
            }
        }
        new
    }
}

/// Ends its transactions' sequence, where no session goes on with it, and its lease.
async fn give_up(database: Arc<Database>) {
    if Arc::strong_count(&database) == 1 {
        database.coordinator.end().await;
    }
    database.catalog.close().await;
}
