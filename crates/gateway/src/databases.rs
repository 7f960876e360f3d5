//! What a gateway holds per database: its catalog and its transaction coordinator, opened at first use.

use pgherd_catalog::Catalog;
use pgherd_model::{ServerError, SqlState};
use pgherd_shards::Shards;
use pgherd_transaction::{CommitIdentity, Coordinator};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Mutex;

/// One database's parts.
pub(crate) struct Database {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) coordinator: Arc<Coordinator>,
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
        let catalog = Catalog::open(self.shards.clone(), name, self.options.clone())
            .await
            .map_err(|error| {
                let error = ServerError::from(error);
                match error.sqlstate() {
                    SqlState::UNDEFINED_TABLE => ServerError::new(
                        SqlState::INVALID_CATALOG_NAME,
                        format!("database \"{name}\" is not part of the cluster"),
                    )
                    .with_hint("Run `pgherd init` with this database's name, or connect to another database."),
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
        let database = Arc::new(Database { catalog, coordinator });
        open.insert(name.to_owned(), database.clone());
        Ok(database)
    }
}
