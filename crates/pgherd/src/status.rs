//! `pgherd status`: the cluster's shards, ranges and gateways as tables.

use crate::config::{self, Config};
use crate::{Error, Result};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use std::path::PathBuf;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Shows the shards, ranges and gateways of a cluster
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The configuration of the cluster [default: the one in --data]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder of a cluster that `pgherd up` runs
    #[arg(long, value_name = "FOLDER", default_value = ".pgherd")]
    data: PathBuf,
    /// The database
    #[arg(long, default_value = "postgres")]
    database: String,
}

/// Runs the command.
pub async fn run(args: StatusArgs) -> Result<()> {
    let config = Config::load(&args.config.unwrap_or_else(|| args.data.join(config::FILE_NAME)))?;
    let mut servers = new_table();
    servers.set_header(["shard", "address", "server"]);
    let mut home = None;
    for shard in &config.shards {
        let connected = connect(&config, shard, &args.database).await;
        let state = match &connected {
            Ok(client) => version(client).await.unwrap_or_else(|error| error.to_string()),
            Err(error) => error.to_string().lines().next().unwrap_or_default().to_string(),
        };
        servers.add_row([&shard.name, &format!("{}:{}", shard.host, shard.port), &state]);
        if home.as_ref().is_none_or(|(id, _)| *id > shard.id) {
            home = Some((shard.id, connected));
        }
    }
    println!("{servers}");
    let Some((_, home)) = home else { return Ok(()) };
    let home = home?;
    for view in ["shards", "ranges", "gateways"] {
        println!("\n{view}\n{}", read(&home, view).await?);
    }
    Ok(())
}

async fn connect(config: &Config, shard: &config::Shard, database: &str) -> Result<Client> {
    let role = &config.cluster.service_role;
    let connected = shard.connect(role, database).await?;
    connected.map_err(|source| Error::Connect {
        target: shard.name.clone(),
        role: role.clone(),
        source,
        remedy:
            "Start the server (`pgherd up` starts those of its folder), or correct its address in the configuration",
    })
}

async fn version(client: &Client) -> Result<String, tokio_postgres::Error> {
    let row = client
        .query_one("SELECT 'PostgreSQL ' || current_setting('server_version')", &[])
        .await?;
    Ok(row.get(0))
}

/// One of pgherd's views, as the home shard shows it.
async fn read(home: &Client, view: &str) -> Result<Table> {
    let refused = |source| Error::Query {
        target: "the home shard".into(),
        source,
    };
    let messages = home
        .simple_query(&format!("SELECT * FROM pgherd.{view} ORDER BY 1, 2"))
        .await
        .map_err(refused)?;
    let mut table = new_table();
    for message in &messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                table.set_header(columns.iter().map(|column| column.name().to_string()));
            }
            SimpleQueryMessage::Row(row) => {
                table.add_row((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_string()));
            }
            _ => {}
        }
    }
    Ok(table)
}

fn new_table() -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table
}
