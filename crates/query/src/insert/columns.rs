//! The columns of an INSERT's target as the home shard has them, with what stands for DEFAULT in each.

use pgherd_model::{ServerError, quote_literal};
use pgherd_shards::Backend;

/// A column.
#[derive(Debug, Clone)]
pub(super) struct TargetColumn {
    pub name: String,
    /// its type, with its modifier, as SQL
    pub type_sql: String,
    /// its type without, so that a cast cuts nothing that an assignment would refuse
    pub base_sql: String,
    /// what DEFAULT means, its domain's default and its identity's sequence among that
    pub default: Option<String>,
    /// it is computed from others
    pub generated: bool,
}

/// Reads the columns of a table, by its name as SQL, in order.
pub(super) async fn read(lookup: &str, home: &mut Backend) -> Result<Vec<TargetColumn>, ServerError> {
    let lookup = quote_literal(lookup);
    let sql = format!(
        "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), format_type(a.atttypid, -1), \
         CASE WHEN a.attidentity <> '' THEN format('CASE WHEN pg_catalog.has_sequence_privilege(%1$L::pg_catalog.regclass, ''USAGE, UPDATE'') \
           THEN pg_catalog.nextval(%1$L::pg_catalog.regclass) ELSE pgherd.next_identity(%2$L, %3$L) END', \
           pg_catalog.pg_get_serial_sequence({lookup}, a.attname), {lookup}, a.attname) \
         ELSE COALESCE(pg_get_expr(d.adbin, d.adrelid), pg_get_expr(t.typdefaultbin, 0)) END, \
         (a.attgenerated <> '')::text \
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated = '' \
         WHERE a.attrelid = to_regclass({lookup}) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    );
    let results = home.simple(&sql).await?;
    let unknown = || ServerError::internal("the home shard described a table's columns in an unknown way");
    let rows = results.first().ok_or_else(unknown)?;
    let column = |row| {
        let text = |column| rows.text(row, column).map(str::to_owned);
        Some(TargetColumn {
            name: text(0)?,
            type_sql: text(1)?,
            base_sql: text(2)?,
            default: text(3),
            generated: rows.text(row, 4) == Some("true"),
        })
    };
    (0..rows.rows.len())
        .map(|row| column(row).ok_or_else(unknown))
        .collect()
}
