//! Prepares a database on every shard for pgherd: schemas, functions, the catalog on the home shard. Idempotent.

use crate::Error;
use futures::future::join_all;
use pgherd_model::quote_literal;
use pgherd_shards::{ShardConfig, Shards};
use sha2::Digest;
use std::time::Duration;
use tokio_postgres::GenericClient;

/// Raise it when an older pgherd could not work with what is installed. Other changes of `sql/` are known by its digest.
const VERSION: i32 = 1;
/// Raise it with every change of `sql/`, so that gateways know which of two texts is the newer one: a test compares the digests.
const REVISION: i32 = 4;
/// How long it waits for a shard to say what it has: one may be down.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a gateway that brings a database up to date waits for those that use it.
const LOCK_TIMEOUT: &str = "3s";
const SHARD_SQL: &str = include_str!("../sql/shard.sql");
const MARKERS_SQL: &str = include_str!("../sql/markers.sql");
const PREPARED_SQL: &str = include_str!("../sql/prepared.sql");
const SCHEMA_VERSION_SQL: &str = include_str!("../sql/schema_version.sql");
const LOCKS_SQL: &str = include_str!("../sql/locks.sql");
const SHOWN_SQL: &str = include_str!("../sql/shown.sql");
const PLANNING_SQL: &str = include_str!("../sql/planning.sql");
/// VERB stands for ADD or DROP.
const MEMBERSHIP_SQL: &str = include_str!("../sql/membership.sql");
/// The last thing on the home shard.
const TRIGGERS_SQL: &str = include_str!("../sql/inner_change_triggers.sql");
const HOME_SQL: [&str; 6] = [
    include_str!("../sql/home.sql"),
    include_str!("../sql/prepared_home.sql"),
    include_str!("../sql/snapshot.sql"),
    include_str!("../sql/definition.sql"),
    include_str!("../sql/inner_changes.sql"),
    include_str!("../sql/views.sql"),
];

/// Makes or updates what pgherd needs in `database` on every shard; does nothing where it is up to date.
///
/// # Errors
/// A shard that cannot be reached, that belongs to another cluster, or whose catalog is newer.
pub async fn install(shards: &Shards, database: &str, cluster: &str, secret: &str) -> Result<(), Error> {
    for shard in shards.all() {
        install_within(shards, shard, (database, cluster, secret), None).await?;
    }
    Ok(())
}

/// Brings a database whose shards have an older gateway's functions up to this gateway's. Where the catalog is missing or newer, nothing is
/// changed: functions stay such that older gateways can use them too.
///
/// # Errors
/// A shard that cannot be reached, or a catalog that is in use for longer than a few seconds.
pub async fn bring_up_to_date(shards: &Shards, database: &str, cluster: &str, secret: &str) -> Result<(), Error> {
    let asked = shards.all().iter().map(async |shard| {
        let asked = tokio::time::timeout(CHECK_TIMEOUT, is_older(shards, shard, database)).await;
        // One that does not answer now is asked by the next gateway.
        asked.unwrap_or(Ok(false))
    });
    for (shard, is_older) in shards.all().iter().zip(join_all(asked).await) {
        if is_older? {
            tracing::info!(shard = %shard.name, "database \"{database}\" gets this gateway's functions");
            install_within(shards, shard, (database, cluster, secret), Some(LOCK_TIMEOUT)).await?;
        }
    }
    Ok(())
}

async fn is_older(shards: &Shards, shard: &ShardConfig, database: &str) -> Result<bool, Error> {
    let client = shards.connect_service(shard.id, database).await?;
    let installed = Installed::read(&client).await?;
    Ok(installed.is_some_and(|installed| installed.version <= VERSION && installed.may_be_replaced()))
}

/// What a shard's database says of its catalog.
struct Installed {
    version: i32,
    cluster: String,
    secret: String,
    digest: Option<String>,
    revision: i32,
}

impl Installed {
    /// None where there is no catalog.
    async fn read(client: &impl GenericClient) -> Result<Option<Self>, Error> {
        let exists = client
            .query_one("SELECT to_regclass('pgherd.installation') IS NOT NULL", &[])
            .await?;
        if !exists.get::<_, bool>(0) {
            return Ok(None);
        }
        let row = client
            .query_opt(
                "SELECT version, cluster, secret, to_jsonb(i) ->> 'digest', \
                 coalesce((to_jsonb(i) ->> 'revision')::integer, 0) FROM pgherd.installation i",
                &[],
            )
            .await?;
        Ok(row.map(|row| Self {
            version: row.get(0),
            cluster: row.get(1),
            secret: row.get(2),
            digest: row.get(3),
            revision: row.get(4),
        }))
    }

    /// What a newer gateway has installed serves this one as well.
    fn may_be_replaced(&self) -> bool {
        self.digest != Some(digest()) && self.revision <= REVISION
    }
}

/// Removes from a copied database what belongs to the gateways that had its original open, and not to what it holds: leases,
/// changes under way, markers.
///
/// # Errors
/// A shard that cannot be reached.
pub async fn forget_gateways(shards: &Shards, database: &str) -> Result<(), Error> {
    for shard in shards.all() {
        let client = shards.connect_service(shard.id, database).await?;
        let everywhere = "TRUNCATE pgherd.dtx, pgherd.dtx_sequence";
        let at_home = "TRUNCATE pgherd.gateway_lease, pgherd.change, pgherd.change_acknowledgement, pgherd.change_hold, \
             pgherd.waiting_transaction, pgherd.client_transaction";
        if Installed::read(&client).await?.is_none() {
            continue;
        }
        client.batch_execute(everywhere).await?;
        if shard.id == shards.home() {
            client.batch_execute(at_home).await?;
        }
    }
    Ok(())
}

/// Whether the home shard's database has no catalog yet.
pub async fn uninstalled(shards: &Shards, database: &str) -> Result<bool, Error> {
    let client = shards.connect_service(shards.home(), database).await?;
    let row = client
        .query_one("SELECT to_regclass('pgherd.installation') IS NULL", &[])
        .await?;
    Ok(row.get(0))
}

async fn install_within(
    shards: &Shards,
    shard: &ShardConfig,
    (database, cluster, secret): (&str, &str, &str),
    lock_timeout: Option<&str>,
) -> Result<(), Error> {
    let mut client = shards.connect_service(shard.id, database).await?;
    let transaction = client.transaction().await?;
    // Several gateways may start at once.
    transaction
        .batch_execute("SELECT pg_advisory_xact_lock(hashtextextended('pgherd.install', 0)); SET LOCAL client_min_messages = warning; SET LOCAL check_function_bodies = off")
        .await?;
    if let Some(limit) = lock_timeout {
        transaction
            .batch_execute(&format!("SET LOCAL lock_timeout = {}", quote_literal(limit)))
            .await?;
    }
    if let Some(installed) = Installed::read(&transaction).await? {
        if installed.cluster != cluster {
            return Err(Error::OtherCluster {
                database: database.into(),
                shard: shard.name.clone(),
                found: installed.cluster,
            });
        }
        if installed.version > VERSION {
            return Err(Error::NewerVersion {
                database: database.into(),
                found: installed.version,
                known: VERSION,
            });
        }
        let current = installed.version == VERSION && installed.secret == secret && !installed.may_be_replaced();
        if current && shard.id != shards.home() {
            return Ok(());
        }
        if current {
            transaction.batch_execute(&shard_rows(shards)).await?;
            transaction.commit().await?;
            return Ok(());
        }
    }
    transaction
        .batch_execute(&MEMBERSHIP_SQL.replace("VERB", "DROP"))
        .await?;
    // They are about what users do, and would refuse what is done here.
    transaction
        .batch_execute(
            "DROP EVENT TRIGGER IF EXISTS pgherd_inner_change; DROP EVENT TRIGGER IF EXISTS pgherd_inner_change_begins; \
             DROP EVENT TRIGGER IF EXISTS pgherd_inner_drop",
        )
        .await?;
    transaction.batch_execute(SHARD_SQL).await?;
    transaction.batch_execute(MARKERS_SQL).await?;
    transaction.batch_execute(PREPARED_SQL).await?;
    transaction.batch_execute(SCHEMA_VERSION_SQL).await?;
    transaction.batch_execute(LOCKS_SQL).await?;
    transaction.batch_execute(SHOWN_SQL).await?;
    transaction
        .execute("SELECT pgherd.set_commit_secret($1)", &[&secret])
        .await?;
    if shard.id == shards.home() {
        for sql in HOME_SQL {
            transaction.batch_execute(sql).await?;
        }
        transaction.batch_execute(&shard_rows(shards)).await?;
    }
    transaction.batch_execute(PLANNING_SQL).await?;
    if shard.id == shards.home() {
        transaction.batch_execute(TRIGGERS_SQL).await?;
    }
    let installation = format!(
        "INSERT INTO pgherd.installation (version, cluster, secret, shard, digest, revision) VALUES ({VERSION}, {}, {}, {}, '{}', {REVISION})
         ON CONFLICT (one) DO UPDATE SET version = excluded.version, digest = excluded.digest, revision = excluded.revision, cluster = excluded.cluster, secret = excluded.secret, shard = excluded.shard",
        quote_literal(cluster),
        quote_literal(secret),
        shard.id,
        digest()
    );
    transaction.batch_execute(&installation).await?;
    transaction
        .batch_execute(&MEMBERSHIP_SQL.replace("VERB", "ADD"))
        .await?;
    transaction.commit().await?;
    Ok(())
}

/// Tells one text of `sql/` from another.
fn digest() -> String {
    let texts = [
        SHARD_SQL,
        MARKERS_SQL,
        PREPARED_SQL,
        SCHEMA_VERSION_SQL,
        LOCKS_SQL,
        SHOWN_SQL,
        PLANNING_SQL,
        MEMBERSHIP_SQL,
        TRIGGERS_SQL,
    ]
    .into_iter()
    .chain(HOME_SQL);
    let hasher = texts.fold(sha2::Sha256::new(), |hasher, text| hasher.chain_update(text));
    hex::encode(hasher.finalize())
}

/// The rows of `pgherd.shard`, as the configuration has them.
fn shard_rows(shards: &Shards) -> String {
    let rows: Vec<_> = shards
        .all()
        .iter()
        .map(|s| {
            let (name, host) = (quote_literal(&s.name), quote_literal(&s.host));
            format!("({}, {name}, {host}, {}, {})", s.id, s.port, s.id == shards.home())
        })
        .collect();
    format!(
        "INSERT INTO pgherd.shard AS s (id, name, host, port, home) VALUES {}
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, host = excluded.host, port = excluded.port, home = excluded.home
         WHERE (s.name, s.host, s.port, s.home) IS DISTINCT FROM (excluded.name, excluded.host, excluded.port, excluded.home)",
        rows.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_text_is_another_revision() {
        assert_eq!(
            (REVISION, &digest()[..16]),
            (4, "7843d5f912f3df69"),
            "sql/ has changed: raise REVISION, and write both here"
        );
    }
}
