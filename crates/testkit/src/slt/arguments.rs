//! The command line of `pgherd slt`, so that the binary only has to name it.

use super::{Isolation, Options};
use crate::files::parse_setting;
use crate::wire::Protocol;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Run sqllogictest files against any server that speaks PostgreSQL's protocol.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Files, or folders that are searched for *.slt.
    #[arg(required = true, value_name = "FILES")]
    files: Vec<PathBuf>,
    /// The server and the database.
    #[arg(
        long,
        env = "PGHERD_URL",
        default_value = "postgres://postgres@127.0.0.1:7432/postgres"
    )]
    url: String,
    /// How many files run at the same time; wants --isolation where they share table names.
    #[arg(long, short, default_value_t = 1)]
    jobs: usize,
    /// Send statements by the extended protocol (Parse, Bind, Execute), one statement per record.
    #[arg(long)]
    extended: bool,
    /// What each file gets of its own, dropped afterwards.
    #[arg(long, value_enum, default_value_t = Place::None)]
    isolation: Place,
    /// A setting for the start-up options of every session, such as pgherd.default_distribution=primary_key.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, String)>,
    /// A label for onlyif and skipif, next to postgres, postgresql and simple or extended.
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// Go on with a file after a failed record.
    #[arg(long)]
    keep_going: bool,
    /// Count what the server does not support (0A000) as refused instead of failed.
    #[arg(long)]
    accept_refusals: bool,
    /// Compare column types too: I integers, R other numbers, T the rest, ? anything.
    #[arg(long)]
    check_types: bool,
    /// Read SQLite's original dialect: a value per line, printed as the query's type letters say.
    #[arg(long, conflicts_with_all = ["check_types", "rewrite"])]
    classic: bool,
    /// Write what the server answers into the files as the expected results.
    #[arg(long = "override")]
    rewrite: bool,
    /// Seconds that one statement may take.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// Show only the summary.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Place {
    /// Run in the database as it is.
    None,
    /// A schema, first in search_path.
    Schema,
    /// A database.
    Database,
}

impl From<Arguments> for Options {
    fn from(arguments: Arguments) -> Self {
        Options {
            url: arguments.url,
            files: arguments.files,
            jobs: arguments.jobs,
            protocol: if arguments.extended {
                Protocol::Extended
            } else {
                Protocol::Simple
            },
            isolation: match arguments.isolation {
                Place::None => Isolation::None,
                Place::Schema => Isolation::Schema,
                Place::Database => Isolation::Database,
            },
            settings: arguments.settings,
            labels: arguments.labels,
            keep_going: arguments.keep_going,
            accept_refusals: arguments.accept_refusals,
            check_types: arguments.check_types,
            classic: arguments.classic,
            rewrite: arguments.rewrite,
            statement_limit: Duration::from_secs(arguments.timeout),
            show: !arguments.quiet,
        }
    }
}
