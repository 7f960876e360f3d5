//! CREATE DATABASE … TEMPLATE of a database of the cluster: every shard copies its own part, and nobody may change any of them
//! until the last copy is made.
//!
//! PostgreSQL keeps sessions away from a template while it copies it, but each shard does so at a time of its own: a transaction
//! between two copies would be in one of them only. So nobody may be connected to the template on any shard before the first copy, and if somebody
//! came before the last one was made, which the shards count, the copies are dropped again.

use super::database_statements::{LOOK_INTERVAL, PATIENCE, in_use, others_use_it};
use super::{Problem, Session};
use pgherd_model::{ShardId, quote_literal};
use tokio_postgres::Client;

/// What PostgreSQL calls a template in its messages.
const SOURCE: &str = "source database";

/// A connection per shard, to another database than the template.
struct Watch<'a> {
    template: &'a str,
    clients: Vec<Client>,
}

impl Session {
    /// Makes it on every shard; the caller takes back what was made (`made`) if this fails.
    pub(super) async fn copy_database(
        &mut self,
        text: &str,
        name: &str,
        template: &str,
        made: &mut Vec<ShardId>,
    ) -> Result<(), Problem> {
        if !self.may_be_copied(name, template).await? {
            // PostgreSQL says why.
            return self.create_on_shards(text, made).await;
        }
        if template == &*self.who.database {
            let hint = format!("Connect to another database than \"{template}\" to copy it.");
            return Err(in_use(SOURCE, template, "The gateway has it open for this session.")
                .with_hint(hint)
                .into());
        }
        let watch = self.watch(template).await?;
        // Copies of one template are made one after the other: what each looks at would be taken for somebody's session by the others. Until the
        // connection ends.
        let home = &watch.clients[0];
        home.execute(
            "SELECT pg_advisory_lock(hashtextextended('pgherd.copied_database', 0))",
            &[],
        )
        .await
        .map_err(pgherd_catalog::Error::from)?;
        self.leave_database(template, false, SOURCE).await?;
        let before = watch.sessions_so_far().await?;
        self.create_on_shards(text, made).await?;
        if watch.sessions_so_far().await? != before {
            return Err(in_use(SOURCE, template, "A session used it while it was copied.").into());
        }
        pgherd_catalog::forget_gateways(&self.gateway.shards, name).await?;
        Ok(())
    }

    /// Whether there is such a template, which the session's role may copy, and no such database yet.
    async fn may_be_copied(&mut self, name: &str, template: &str) -> Result<bool, Problem> {
        let sql = format!(
            "SELECT (d.datistemplate OR pg_catalog.pg_has_role(d.datdba, 'USAGE')) AND (r.rolcreatedb OR r.rolsuper) \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_database o WHERE o.datname = {}) \
             FROM pg_catalog.pg_database d, pg_catalog.pg_roles r WHERE d.datname = {} AND r.rolname = current_user",
            quote_literal(name),
            quote_literal(template)
        );
        let results = self.ask_home(&sql).await?;
        Ok(results.first().and_then(|r| r.text(0, 0)) == Some("t"))
    }

    async fn watch<'a>(&self, template: &'a str) -> Result<Watch<'a>, Problem> {
        let shards = &self.gateway.shards;
        let mut clients = Vec::new();
        for shard in self.shard_ids() {
            clients.push(shards.connect_service(shard, &self.who.database).await?);
        }
        Ok(Watch { template, clients })
    }
}

impl Watch<'_> {
    /// How many sessions the template has had on each shard, when it has none: they are counted when they end at the latest.
    async fn sessions_so_far(&self) -> Result<Vec<i64>, Problem> {
        let sql = "SELECT pg_stat_get_db_sessions(d.oid), (SELECT count(*) FROM pg_stat_activity a \
                     WHERE a.datid = d.oid AND a.backend_type = 'client backend') \
                   FROM pg_database d WHERE d.datname = $1";
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut counts = Vec::new();
        for client in &self.clients {
            loop {
                let row = client
                    .query_opt(sql, &[&self.template])
                    .await
                    .map_err(pgherd_catalog::Error::from)?;
                let Some(row) = row else {
                    // The shard's own CREATE DATABASE says that it is not there.
                    break;
                };
                match row.get(1) {
                    0_i64 => {
                        counts.push(row.get(0));
                        break;
                    }
                    others if tokio::time::Instant::now() > deadline => {
                        return Err(in_use(SOURCE, self.template, &others_use_it(others as usize)).into());
                    }
                    _ => tokio::time::sleep(LOOK_INTERVAL).await,
                }
            }
        }
        Ok(counts)
    }
}
