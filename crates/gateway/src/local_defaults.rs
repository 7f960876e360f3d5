//! What the defaults of tables on the home shard draw from sequences, as the home shard's catalogs tell it: the gateway's own catalog
//! knows sharded tables only.

use parking_lot::Mutex;
use pgherd_model::{quote_identifier, quote_literal};
use pgherd_shards::SimpleResult;
use std::collections::HashMap;
use std::sync::Arc;

/// More tables than this, and all are forgotten.
const MOST_TABLES: usize = 10_000;

/// A name as a statement has it: perhaps a schema, and the table.
pub(crate) type Written = (Option<String>, String);

/// What a column's default draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Draws {
    Nothing,
    /// the next number of this sequence, whose name is written with its schema
    From(String),
    /// it names a sequence, but is more than its next number, or the role may not ask for what it gave
    Perhaps,
}

/// A table, as far as it draws numbers.
#[derive(Debug)]
pub(crate) struct LocalTable {
    /// triggers of users' or rules, which may draw numbers as well
    pub(crate) has_triggers: bool,
    pub(crate) columns: Vec<(String, Draws)>,
}

impl LocalTable {
    /// SQL that gives a row for each column.
    pub(crate) fn question((schema, name): &Written) -> String {
        let schema = schema.iter().map(|s| format!("{}.", quote_identifier(s)));
        let name = quote_literal(&(schema.collect::<String>() + &quote_identifier(name)));
        format!(
            "SELECT c.relkind NOT IN ('r', 'p') OR c.relhasrules OR EXISTS (SELECT FROM pg_catalog.pg_trigger t \
             WHERE t.tgrelid = c.oid AND NOT t.tgisinternal), a.attname, s.oid IS NOT NULL, \
             CASE WHEN pg_catalog.has_sequence_privilege(s.oid, 'USAGE, SELECT') AND (a.attidentity <> '' \
             OR pg_catalog.pg_get_expr(d.adbin, d.adrelid) ~ '^nextval\\(''[^'']*''::regclass\\)$') \
             THEN pg_catalog.format('%I.%I', n.nspname, s.relname) END \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum AND a.attgenerated = '' \
             LEFT JOIN LATERAL (SELECT q.oid, q.relname, q.relnamespace FROM pg_catalog.pg_depend p, pg_catalog.pg_class q \
             WHERE q.relkind = 'S' AND CASE WHEN a.attidentity <> '' THEN p.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
             AND p.objid = q.oid AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND p.refobjid = c.oid \
             AND p.refobjsubid = a.attnum AND p.deptype = 'i' \
             ELSE p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND p.objid = d.oid \
             AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND p.refobjid = q.oid END LIMIT 1) s ON true \
             LEFT JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace \
             WHERE c.oid = pg_catalog.to_regclass({name}) ORDER BY a.attnum"
        )
    }

    /// None where there is no such table, or none with columns.
    pub(crate) fn from_answer(answer: &SimpleResult) -> Option<Self> {
        let text = |row: usize, column: usize| answer.text(row, column);
        let columns = (0..answer.rows.len()).map(|row| {
            let draws = match (text(row, 3), text(row, 2)) {
                (Some(sequence), _) => Draws::From(sequence.to_owned()),
                (None, Some("t")) => Draws::Perhaps,
                _ => Draws::Nothing,
            };
            (text(row, 1).unwrap_or_default().to_owned(), draws)
        });
        Some(Self {
            has_triggers: text(0, 0)? == "t",
            columns: columns.collect(),
        })
    }

    /// Whether one of its columns may draw.
    pub(crate) fn draws(&self) -> bool {
        self.columns.iter().any(|(_, draws)| *draws != Draws::Nothing)
    }
}

/// What was asked in one database, each for a version of the schema and the settings under which names were looked up.
#[derive(Default)]
pub(crate) struct LocalDefaults(Mutex<HashMap<Written, (u64, Arc<LocalTable>)>>);

impl LocalDefaults {
    pub(crate) fn get(&self, version: u64, name: &Written) -> Option<Arc<LocalTable>> {
        let tables = self.0.lock();
        tables
            .get(name)
            .filter(|(of, _)| *of == version)
            .map(|(_, table)| table.clone())
    }

    pub(crate) fn note(&self, version: u64, name: Written, table: Arc<LocalTable>) {
        let mut tables = self.0.lock();
        if tables.len() > MOST_TABLES {
            tables.clear();
        }
        tables.insert(name, (version, table));
    }
}
