//! `pgherd init`: looks whether existing PostgreSQL servers can be shards, says what has to change, and prepares them.
//!
//! It changes no setting of a server and makes no role: those are the owner's to decide. What it makes is schema `pgherd`.

use crate::config::{Config, Shard};
use crate::error::explain;
use crate::{Error, Result};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use pgherd_local_cluster::OLDEST_POSTGRES;
use std::collections::HashSet;
use std::path::PathBuf;
use tokio_postgres::Client;

/// Collations that order by bytes, as pgherd does.
const BYTE_ORDER: [&str; 5] = ["C", "POSIX", "C.UTF-8", "C.utf8", "PG_UNICODE_FAST"];

/// Prepares existing PostgreSQL servers, and says what has to change on them
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The configuration that names the servers
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A role that clients will log in as; gateways log in to the shards as their client's role
    #[arg(long, default_value = "postgres")]
    role: String,
    /// The database that clients will use
    #[arg(long, default_value = "postgres")]
    database: String,
}

/// One thing that was looked at on one shard.
struct Finding {
    shard: String,
    what: &'static str,
    found: String,
    /// What to change; `None` when it is right.
    change: Option<String>,
}

/// Runs the command.
pub async fn run(args: InitArgs) -> Result<()> {
    let config = Config::load(&args.config)?;
    let mut findings = Vec::new();
    let mut identifiers = HashSet::new();
    let mut clients = Vec::new();
    for shard in &config.shards {
        let before = findings.len();
        if let Some(client) = check_shard(&config, shard, &args, &mut identifiers, &mut findings).await? {
            clients.push(client);
        }
        let failed = findings[before..]
            .iter()
            .filter(|finding| finding.change.is_some())
            .count();
        eprintln!(
            "{}: {}",
            shard.name,
            if failed == 0 {
                "checked".into()
            } else {
                format!("{failed} to change")
            }
        );
    }
    println!("{}", table(&findings));
    let failed = findings.iter().filter(|finding| finding.change.is_some()).count();
    if failed > 0 {
        return Err(Error::NotReady(failed));
    }
    crate::gateway::prepare(&config, &args.database).await?;
    println!("ready: pgherd gateway --config {}", args.config.display());
    Ok(())
}

async fn check_shard(
    config: &Config,
    shard: &Shard,
    args: &InitArgs,
    identifiers: &mut HashSet<String>,
    findings: &mut Vec<Finding>,
) -> Result<Option<Client>> {
    let service = &config.cluster.service_role;
    let mut note = |what, found: String, change: Option<String>| {
        findings.push(Finding {
            shard: shard.name.clone(),
            what,
            found,
            change,
        });
    };
    let client = match shard.connect(service, &args.database).await? {
        Ok(client) => client,
        Err(error) => {
            let change = format!(
                "let the gateways' machines in as {service}: CREATE ROLE {service} SUPERUSER LOGIN, and a line in pg_hba.conf"
            );
            note("log-in of the service role", explain(&error), Some(change));
            return Ok(None);
        }
    };
    let facts = Facts::ask(&client).await.map_err(|source| Error::Query {
        target: shard.name.clone(),
        source,
    })?;
    facts.judge(config, &mut note);
    let again = !identifiers.insert(facts.system_identifier.clone());
    let change = again.then(|| "name another server: this one is already a shard under another name".to_string());
    note(
        "server",
        format!("system identifier {}", facts.system_identifier),
        change,
    );

    let login = shard.connect(&args.role, &args.database).await?;
    let change = login.as_ref().err().map(|_| {
        let role = &args.role;
        format!(
            "CREATE ROLE {role} LOGIN where it is missing, and let the gateways' machines in as {role} in pg_hba.conf"
        )
    });
    let found = login.map_or_else(|error| explain(&error), |_| args.role.clone());
    note("log-in of a client's role", found, change);
    Ok(Some(client))
}

/// What a server says about itself.
struct Facts {
    version: u32,
    prepared: i64,
    connections: i64,
    wal_level: String,
    encoding: String,
    collation: String,
    superuser: bool,
    system_identifier: String,
}

impl Facts {
    async fn ask(client: &Client) -> Result<Self, tokio_postgres::Error> {
        // PostgreSQL 17 renamed daticulocale; a row as JSON has whichever there is.
        let row = client
            .query_one(
                "SELECT current_setting('server_version_num')::int / 10000,
                        current_setting('max_prepared_transactions')::bigint,
                        current_setting('max_connections')::bigint,
                        current_setting('wal_level'),
                        pg_encoding_to_char(d.encoding)::text,
                        coalesce(CASE d.datlocprovider WHEN 'c' THEN d.datcollate::text
                            ELSE coalesce(to_jsonb(d)->>'datlocale', to_jsonb(d)->>'daticulocale') END, ''),
                        (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
                        (SELECT system_identifier::text FROM pg_control_system())
                 FROM pg_database d WHERE d.datname = current_database()",
                &[],
            )
            .await?;
        Ok(Self {
            version: row.get::<_, i32>(0) as u32,
            prepared: row.get(1),
            connections: row.get(2),
            wal_level: row.get(3),
            encoding: row.get(4),
            collation: row.get(5),
            superuser: row.get(6),
            system_identifier: row.get(7),
        })
    }

    fn judge(&self, config: &Config, note: &mut impl FnMut(&'static str, String, Option<String>)) {
        let unless = |right: bool, change: &str| (!right).then(|| change.to_string());
        let upgrade = format!("upgrade to PostgreSQL {OLDEST_POSTGRES} or newer");
        note(
            "version",
            self.version.to_string(),
            unless(self.version >= OLDEST_POSTGRES, &upgrade),
        );
        note(
            "max_prepared_transactions",
            self.prepared.to_string(),
            unless(
                self.prepared >= 20,
                "ALTER SYSTEM SET max_prepared_transactions = 200, and restart the server",
            ),
        );
        // One gateway's pool for one role and database, its own connections, and somebody who looks what is wrong.
        let wanted = config.gateway.pool_size as i64 + 20;
        let change = format!(
            "ALTER SYSTEM SET max_connections = {}, and restart the server",
            wanted.max(300)
        );
        note(
            "max_connections",
            self.connections.to_string(),
            unless(self.connections >= wanted, &change),
        );
        note(
            "wal_level",
            self.wal_level.clone(),
            unless(
                self.wal_level == "logical",
                "ALTER SYSTEM SET wal_level = 'logical', and restart the server",
            ),
        );
        note(
            "encoding",
            self.encoding.clone(),
            unless(
                self.encoding == "UTF8",
                "make the database with ENCODING 'UTF8' TEMPLATE template0",
            ),
        );
        note(
            "collation",
            self.collation.clone(),
            unless(
                BYTE_ORDER.contains(&self.collation.as_str()),
                "make the database with LOCALE 'C.UTF-8' TEMPLATE template0: ranges of text keys are in the order of bytes",
            ),
        );
        let service = &config.cluster.service_role;
        let grant = format!("ALTER ROLE {service} SUPERUSER");
        note("service role", service.clone(), unless(self.superuser, &grant));
    }
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["shard", "checked", "found", "to change"]);
    for Finding {
        shard,
        what,
        found,
        change,
    } in findings
    {
        table.add_row([shard.as_str(), what, found, change.as_deref().unwrap_or("nothing")]);
    }
    table
}
