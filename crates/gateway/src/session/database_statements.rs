//! CREATE, ALTER and DROP DATABASE: a database is one on every shard, with a catalog on the home shard.
//!
//! PostgreSQL does none of them in a transaction, so the shards are asked one after the other, the home shard first: it
//! judges. What CREATE or RENAME could not finish, they take back; what a gateway that died has left on other shards, DROP DATABASE IF
//! EXISTS removes.

use super::{Problem, Session, Unit};
use crate::cancel::Why;
use pgherd_model::{ServerError, ShardId, SqlState, quote_identifier, quote_literal};
use pgherd_sql::DatabaseChange;
use std::time::Duration;

/// How long sessions and gateways that were told to leave a database may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether they have.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

impl Session {
    /// Runs one of them.
    pub(crate) async fn change_database(&mut self, unit: Unit<'_>, change: &DatabaseChange) -> Result<(), Problem> {
        let tag = match change {
            DatabaseChange::Create { .. } => "CREATE DATABASE",
            DatabaseChange::Alter { .. } | DatabaseChange::Move { .. } => "ALTER DATABASE",
            DatabaseChange::Drop { .. } => "DROP DATABASE",
        };
        // ALTER DATABASE … OWNER TO may be part of one for PostgreSQL; over several shards it is not undone.
        if self.block.open().is_some() {
            let message = format!("{tag} cannot run inside a transaction block");
            return Err(ServerError::new(SqlState::ACTIVE_TRANSACTION, message).into());
        }
        // Only a gateway with a lease acts.
        let entered = self.enter(unit).await?;
        drop(entered);
        let text = unit.statement.text.clone();
        match change {
            DatabaseChange::Create { name, template } => self.create_database(&text, name, template.as_deref()).await?,
            DatabaseChange::Alter { .. } => {
                for shard in self.shard_ids() {
                    self.on_shard(shard, &text, true).await?;
                }
            }
            DatabaseChange::Move { name, to } => self.move_database(&text, name, to.as_deref()).await?,
            DatabaseChange::Drop { name, if_exists, force } => {
                self.drop_database(&text, name, *if_exists, *force).await?;
            }
        }
        self.client.put_tag(tag);
        Ok(())
    }

    /// All shards, the home shard first.
    pub(super) fn shard_ids(&self) -> Vec<ShardId> {
        self.gateway.shards.all().iter().map(|shard| shard.id).collect()
    }

    /// Runs it there as the session's role; notices are the client's to see where `told`.
    async fn on_shard(&mut self, shard: ShardId, sql: &str, told: bool) -> Result<(), ServerError> {
        let who = pgherd_shards::Identity {
            pin: None,
            ..self.who.clone()
        };
        let mut backend = self.database.coordinator.autocommit(shard, &who).await?;
        let result = backend.simple(sql).await;
        if told && shard == self.gateway.shards.home() {
            for notice in backend.take_notices() {
                self.client.put_notice(&notice);
            }
        }
        Ok(result.map(|_| ())?)
    }

    async fn create_database(&mut self, text: &str, name: &str, template: Option<&str>) -> Result<(), Problem> {
        let mut made = Vec::new();
        let template = template.filter(|t| !["template0", "template1"].contains(t));
        let mut result = match template {
            Some(template) => self.copy_database(text, name, template, &mut made).await,
            None => self.create_on_shards(text, &mut made).await,
        };
        if result.is_ok() {
            let (cluster, secret) = (&self.gateway.options.cluster, &self.gateway.options.secret);
            let installed = pgherd_catalog::install(&self.gateway.shards, name, cluster, secret).await;
            result = installed.map_err(Problem::from);
        }
        if result.is_err() {
            self.take_back(&made, name).await;
        }
        result
    }

    /// Makes it on all shards; those that have it by now are in `made`, also where one fails.
    pub(super) async fn create_on_shards(&mut self, text: &str, made: &mut Vec<ShardId>) -> Result<(), Problem> {
        for shard in self.shard_ids() {
            if let Err(error) = self.on_shard(shard, text, true).await {
                let of_another = !made.is_empty() && error.sqlstate().code() == "42P04";
                let hint = "It is left from a CREATE or DROP DATABASE that was not finished: DROP DATABASE IF EXISTS removes it.";
                return Err(if of_another { error.with_hint(hint) } else { error }.into());
            }
            made.push(shard);
        }
        Ok(())
    }

    /// Drops a database that could not be finished from these shards; what cannot be done is told in the log.
    async fn take_back(&mut self, shards: &[ShardId], name: &str) {
        let sql = format!("DROP DATABASE IF EXISTS {}", quote_identifier(name));
        for &shard in shards {
            if let Err(error) = self.on_shard(shard, &sql, false).await {
                tracing::warn!(%shard, "an unfinished database \"{name}\" is left: {error}");
            }
        }
    }

    /// RENAME and SET TABLESPACE: of a database that nobody uses.
    async fn move_database(&mut self, text: &str, name: &str, to: Option<&str>) -> Result<(), Problem> {
        if self.may_be_left(name).await? {
            self.leave_database(name, false, "database").await?;
        }
        let mut moved = Vec::new();
        for shard in self.shard_ids() {
            if let Err(error) = self.on_shard(shard, text, true).await {
                let back = to.map(|to| {
                    let (from, to) = (quote_identifier(to), quote_identifier(name));
                    format!("ALTER DATABASE {from} RENAME TO {to}")
                });
                for (shard, sql) in moved.into_iter().zip(back.iter().cycle()) {
                    if let Err(error) = self.on_shard(shard, sql, false).await {
                        tracing::warn!(%shard, "{sql}: {error}");
                    }
                }
                return Err(error.into());
            }
            moved.push(shard);
        }
        Ok(())
    }

    /// Whether there is such a database, another than the session's, that its role may change. Else PostgreSQL says what is wrong.
    async fn may_be_left(&mut self, name: &str) -> Result<bool, Problem> {
        let sql = format!(
            "SELECT pg_catalog.pg_has_role(datdba, 'USAGE') FROM pg_catalog.pg_database WHERE datname = {}",
            quote_literal(name)
        );
        let results = self.ask_home(&sql).await?;
        let may = results.first().and_then(|r| r.text(0, 0)) == Some("t");
        Ok(may && name != &*self.who.database)
    }

    async fn drop_database(&mut self, text: &str, name: &str, if_exists: bool, force: bool) -> Result<(), Problem> {
        let home = self.gateway.shards.home();
        if self.may_be_left(name).await? {
            self.leave_database(name, force, "database").await?;
        }
        self.on_shard(home, text, true).await?;
        let others = self.shard_ids().into_iter().filter(|shard| *shard != home);
        let sql = match if_exists {
            true => text.to_owned(),
            false => format!("DROP DATABASE IF EXISTS {}", quote_identifier(name)),
        };
        for shard in others {
            self.on_shard(shard, &sql, false).await?;
        }
        Ok(())
    }

    /// Nobody uses the database any more: sessions have ended (by force, or else it is 55006), this gateway has closed its
    /// connections, and others have closed theirs, which they do when they have no sessions left. `what` it is in messages.
    pub(super) async fn leave_database(&mut self, name: &str, force: bool, what: &str) -> Result<(), Problem> {
        let gateway = self.gateway.clone();
        if force {
            gateway.cancels.signal_database(name, Why::Terminated).await;
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let sessions = gateway.cancels.sessions_of(name);
            if sessions == 0 {
                break;
            }
            // As PostgreSQL: those that are just leaving are waited for.
            if tokio::time::Instant::now() > deadline {
                return Err(in_use(what, name, &others_use_it(sessions)).into());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        gateway.databases.close(name).await;
        gateway.shards.close_idle(Some(name));
        if force {
            return Ok(());
        }
        while self.is_leased(name).await? {
            if tokio::time::Instant::now() > deadline {
                return Err(in_use(what, name, "Other gateways have it open.").into());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Whether a gateway has the database open.
    async fn is_leased(&self, name: &str) -> Result<bool, Problem> {
        let shards = &self.gateway.shards;
        let client = match shards.connect_service(shards.home(), name).await {
            Ok(client) => client,
            // It allows no connections.
            Err(pgherd_shards::Error::Server(error)) if error.sqlstate().code() == "55000" => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let sql = "SELECT EXISTS (SELECT FROM pgherd.gateway_lease WHERE lease_until > clock_timestamp())";
        match client.query_one(sql, &[]).await {
            Ok(row) => Ok(row.get(0)),
            // Not a database of the cluster's.
            Err(_) => Ok(false),
        }
    }
}

/// 55006 about a database, or a source database.
pub(super) fn in_use(what: &str, name: &str, detail: &str) -> ServerError {
    ServerError::new(
        SqlState::from_code("55006"),
        format!("{what} \"{name}\" is being accessed by other users"),
    )
    .with_detail(detail)
}

/// PostgreSQL's detail of 55006.
pub(super) fn others_use_it(sessions: usize) -> String {
    match sessions {
        1 => "There is 1 other session using the database.".to_owned(),
        n => format!("There are {n} other sessions using the database."),
    }
}
