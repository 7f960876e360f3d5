//! What the home shard says of roles: their passwords' verifiers, how long they are valid, and which roles they are in.

use pgherd_model::{ServerError, SqlState};
use pgherd_shards::Shards;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;

/// How long the home shard may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The roles that a role is in, itself among them; a superuser is in those only that it was put in, as in pg_hba.conf.
const ROLES_OF: &str = "WITH RECURSIVE is_in(oid) AS (\
        SELECT oid FROM pg_roles WHERE rolname = $1 \
        UNION SELECT m.roleid FROM pg_auth_members AS m JOIN is_in ON m.member = is_in.oid) \
    SELECT r.rolname::text FROM pg_roles AS r JOIN is_in USING (oid)";

/// Asks the home shard on a service connection of its own, made when it is first needed and when it was lost.
pub(crate) struct Roles {
    shards: Arc<Shards>,
    client: Mutex<Option<Arc<tokio_postgres::Client>>>,
}

impl Roles {
    pub(crate) fn new(shards: Arc<Shards>) -> Self {
        Self {
            shards,
            client: Mutex::default(),
        }
    }

    /// The password of a role as PostgreSQL keeps it; `None` for a role that has none, whose password's time is over, or that
    /// does not exist, with the reason for the log.
    pub(crate) async fn password(&self, role: &str) -> Result<Result<String, &'static str>, ServerError> {
        let sql = "SELECT rolpassword, coalesce(rolvaliduntil < now(), false) FROM pg_authid WHERE rolname = $1";
        let rows = self.query(sql, &[&role]).await?;
        Ok(match rows.first() {
            None => Err("the role does not exist"),
            Some(row) => match (row.get(0), row.get(1)) {
                (None, _) => Err("the role has no password"),
                (Some(_), true) => Err("the password is valid no longer"),
                (Some(password), false) => Ok(password),
            },
        })
    }

    /// The roles that a role is in, itself among them.
    pub(crate) async fn of(&self, role: &str) -> Result<HashSet<String>, ServerError> {
        let rows = self.query(ROLES_OF, &[&role]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Rows of a query on the home shard.
    pub(super) async fn query(
        &self,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, ServerError> {
        let client = within(async { Ok(self.connected().await?) }).await?;
        let asked = async { client.query(sql, parameters).await.map_err(pgherd_catalog::Error::from) };
        within(async { Ok(asked.await?) }).await
    }

    async fn connected(&self) -> Result<Arc<tokio_postgres::Client>, pgherd_shards::Error> {
        let mut kept = self.client.lock().await;
        if let Some(client) = kept.as_ref().filter(|c| !c.is_closed()) {
            return Ok(client.clone());
        }
        let client = Arc::new(self.shards.connect_service(self.shards.home(), "postgres").await?);
        *kept = Some(client.clone());
        Ok(client)
    }
}

async fn within<T>(work: impl Future<Output = Result<T, ServerError>>) -> Result<T, ServerError> {
    tokio::time::timeout(TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(unreachable("no answer in time")))
}

fn unreachable(cause: &str) -> ServerError {
    ServerError::new(
        SqlState::CANNOT_CONNECT_NOW,
        "the home shard, which knows the roles' passwords, does not answer",
    )
    .with_detail(cause)
    .with_hint("Try again; `pgherd status` shows which servers are up.")
}
