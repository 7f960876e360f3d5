//! What a server's configuration files say.
//!
//! Where a server listens is not in them but on its command line, so that a data folder can be moved.

use std::fmt::Write;

/// What pgherd needs of a shard.
const SHARD: &[(&str, &str, &str)] = &[
    (
        "max_prepared_transactions",
        "200",
        "multi-shard transactions commit in two phases",
    ),
    ("wal_level", "logical", "ranges move by logical replication"),
    (
        "max_connections",
        "300",
        "several gateways, each with pools per role and database",
    ),
    (
        "max_locks_per_transaction",
        "256",
        "a statement over many ranges locks many tables",
    ),
    (
        "deadlock_timeout",
        "200ms",
        "SERIALIZABLE over shards locks what is read, so two transactions may have to find soon that they wait for each other",
    ),
];

/// What keeps a server on a developer's machine small. Comments say what to change on a bigger one.
const MODEST: &[(&str, &str, &str)] = &[
    (
        "shared_buffers",
        "128MB",
        "about a quarter of the memory on a machine of its own",
    ),
    ("max_wal_size", "512MB", "larger: fewer checkpoints, longer recovery"),
    ("log_line_prefix", "%m [%p] %q%u@%d %a ", "who did what when"),
    (
        "unix_socket_permissions",
        "0700",
        "only the account that runs the servers (and root) gets in",
    ),
];

/// For tests: what they lose when the machine crashes, nobody misses.
const VOLATILE: &[(&str, &str, &str)] = &[
    ("fsync", "off", "thrown away after the test"),
    ("full_page_writes", "off", "thrown away after the test"),
    ("max_wal_size", "256MB", "little disk"),
];

/// What a shard has beside the defaults, for a plain server that is to be compared with one.
pub fn shard_settings() -> Vec<(String, String)> {
    SHARD
        .iter()
        .map(|(name, value, _)| (name.to_string(), value.to_string()))
        .collect()
}

/// The text of `pgherd.conf`, which `postgresql.conf` includes.
pub(crate) fn configuration(shard: bool, durable: bool, extra: &[(String, String)]) -> String {
    let mut text = String::from(
        "# Written once by pgherd when it made this server; yours to edit. Takes effect at the next start.\n",
    );
    let tables = [(SHARD, shard), (MODEST, true), (VOLATILE, !durable)];
    for (name, value, why) in tables
        .into_iter()
        .filter(|(_, wanted)| *wanted)
        .flat_map(|(table, _)| table)
    {
        let _ = writeln!(text, "{name} = {}  # {why}", quote(value));
    }
    for (name, value) in extra {
        let _ = writeln!(text, "{name} = {}", quote(value));
    }
    text
}

/// The text of `pg_hba.conf`.
pub(crate) fn client_authentication(tcp: bool) -> String {
    let mut text = String::from(
        "# The wall is the folder of the Unix socket: its mode is 0700, so only the account that runs this server (and\n\
         # root) can connect at all, and a gateway may log in as the role of its client.\n\
         local   all          all  trust\n\
         local   replication  all  trust\n",
    );
    if tcp {
        text.push_str("host    all          all  127.0.0.1/32  trust\n");
    }
    text
}

/// A value as `postgresql.conf` wants it.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_order() {
        let text = configuration(true, false, &[("search_path".into(), "o'x".into())]);
        assert!(text.contains("wal_level = 'logical'"));
        assert!(
            text.ends_with("search_path = 'o''x'\n"),
            "what the caller asks for comes last, and so wins: {text}"
        );
        assert!(
            !configuration(true, true, &[]).contains("fsync"),
            "a kept cluster is durable"
        );
    }
}
