//! Functions whose answer depends on the server that they run on, by their names.

/// Functions of PostgreSQL and its extensions that run or read what a string argument names; they would read one
/// shard's part of a sharded table.
pub const READ_WHAT_IS_NAMED: [&str; 29] = [
    "query_to_xml",
    "query_to_xmlschema",
    "query_to_xml_and_xmlschema",
    "table_to_xml",
    "table_to_xmlschema",
    "table_to_xml_and_xmlschema",
    "schema_to_xml",
    "schema_to_xmlschema",
    "schema_to_xml_and_xmlschema",
    "database_to_xml",
    "database_to_xmlschema",
    "database_to_xml_and_xmlschema",
    "cursor_to_xml",
    "cursor_to_xmlschema",
    "ts_stat",
    "ts_rewrite",
    "crosstab",
    "crosstab2",
    "crosstab3",
    "crosstab4",
    "crosstabN",
    "crosstab_hash",
    "connectby",
    "dblink",
    "dblink_exec",
    "xpath_table",
    "xml_is_well_formed_table",
    "check_primary_key",
    "check_foreign_key",
];

/// Whether such a function runs its SQL on the connection that called it, so that its locks show afterwards what it has used.
pub fn reads_on_own_connection(name: &str) -> bool {
    READ_WHAT_IS_NAMED.contains(&name) && !name.starts_with("dblink")
}

/// Functions of PostgreSQL whose meaning is one server's state, which the home shard keeps for the database.
pub const HOME_STATE: [&str; 18] = [
    "nextval",
    "currval",
    "lastval",
    "setval",
    "set_config",
    "pg_notify",
    "pg_export_snapshot",
    "txid_current",
    "pg_current_xact_id",
    "pg_backend_pid",
    "pg_cancel_backend",
    "pg_terminate_backend",
    "lo_create",
    "lo_creat",
    "lo_import",
    "lo_export",
    "lo_unlink",
    "pg_get_serial_sequence",
];

/// Functions that take an advisory lock which the session keeps beyond its transaction.
pub const SESSION_LOCKS: [&str; 4] = [
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
];

/// Whether this function takes or gives an advisory lock, which the home shard keeps for the database.
pub fn is_advisory_lock(name: &str) -> bool {
    name.starts_with("pg_advisory") || name.starts_with("pg_try_advisory")
}
