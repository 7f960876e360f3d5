//! What the home shard says about the relations and functions of a statement: columns with types and collations,
//! whether their binary format means the same on every server, the primary key.

use pgherd_model::{FIRST_OF_USERS, ServerError, quote_identifier, quote_literal};
use pgherd_shards::Backend;

/// A column as a temporary table needs it.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub name: String,
    pub type_oid: u32,
    /// the type, with its modifier, as SQL
    pub type_sql: String,
    /// COLLATE …, or empty
    pub collation_sql: String,
    /// its binary format can be copied to another server
    pub binary: bool,
    /// in the primary key, which holds at any moment
    pub primary: bool,
    /// the type's array, where values can be its elements: an array's cannot, and a domain has checks of its own
    pub array_oid: Option<u32>,
}

/// A relation as the home shard has it.
#[derive(Debug, Clone)]
pub(crate) struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    pub columns: Vec<Column>,
    pub column_names: Vec<String>,
}

impl Relation {
    /// Belongs to PostgreSQL itself: it stays in the statement.
    pub fn is_system(&self) -> bool {
        matches!(self.schema.as_str(), "pg_catalog" | "information_schema")
    }

    /// Whether nothing in it can change while the relation itself stays as it is: all types and collations are PostgreSQL's own.
    pub fn is_self_contained(&self) -> bool {
        let own = |c: &Column| c.binary && c.type_oid < FIRST_OF_USERS && c.collation_sql.is_empty();
        self.columns.iter().all(own)
    }

    /// The full name as SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

/// What the home shard knows.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// one per name asked for; None when there is no such relation
    pub relations: Vec<Option<Relation>>,
    /// users' functions among the words asked for
    pub functions: Vec<UserFunction>,
    /// users' functions among the words asked for that take a row of a relation or composite type
    pub row_functions: Vec<String>,
    /// this connection's transaction has changed something
    pub wrote: bool,
    /// under the session's settings, a value that is written as text is read as the same value
    pub text_is_exact: bool,
}

/// SQL for whether a value that is written as text is read as the same value. Other styles of dates abbreviate time zones, which
/// are read as others of the same name, and floats lose digits.
pub(crate) const TEXT_IS_EXACT: &str = "(current_setting('DateStyle') ILIKE 'ISO%' \
     AND current_setting('extra_float_digits')::integer > 0 AND current_setting('array_nulls')::boolean)::text";

/// OIDs of types whose text is read as the same value under any settings: numbers but for floats, strings, JSON, dates and times
/// without a zone's name, ranges of those.
pub const EXACT_TEXT: &[u32] = &[
    16, 17, 18, 19, 20, 21, 23, 25, 26, 114, 142, 650, 774, 790, 829, 869, 1042, 1043, 1082, 1083, 1114, 1186, 1266,
    1560, 1562, 1700, 2950, 3614, 3615, 3802, 3904, 3906, 3908, 3912, 3926, 4072,
];

/// Which of these types have text that is read as another value under the session's settings, where those are not exact (see
/// [`TEXT_IS_EXACT`]): those made of something that the settings concern. `home` is asked only if it may be one that is.
pub(crate) async fn inexact_types(home: &mut Backend, types: &[u32]) -> Result<Vec<u32>, ServerError> {
    let numbers = |oids: &mut dyn Iterator<Item = &u32>| oids.map(u32::to_string).collect::<Vec<_>>().join(", ");
    let asked = numbers(&mut types.iter().filter(|oid| !EXACT_TEXT.contains(oid)));
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "WITH RECURSIVE pgherd_part (whole, oid) AS \
           (SELECT t.oid, t.oid FROM pg_catalog.pg_type t WHERE t.oid IN ({asked}) UNION \
           SELECT p.whole, i.oid FROM pgherd_part p JOIN pg_catalog.pg_type w ON w.oid = p.oid CROSS JOIN LATERAL \
             (SELECT w.typelem WHERE w.typcategory = 'A' UNION ALL SELECT w.typbasetype WHERE w.typtype = 'd' \
              UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = w.oid \
              UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = w.oid \
              UNION ALL SELECT b.atttypid FROM pg_catalog.pg_attribute b \
                WHERE w.typtype = 'c' AND b.attrelid = w.typrelid AND b.attnum > 0 AND NOT b.attisdropped) i (oid)) \
         SELECT p.whole::text FROM pgherd_part p JOIN pg_catalog.pg_type w ON w.oid = p.oid GROUP BY p.whole \
         HAVING NOT bool_and(w.typtype IN ('e', 'd', 'r', 'm', 'c') OR w.oid IN ({exact}) OR w.typname ~ '^reg' \
           OR w.typcategory = 'A' AND w.typelem <> 0 AND current_setting('array_nulls')::boolean)",
        exact = numbers(&mut EXACT_TEXT.iter()),
    );
    let results = home.simple(&sql).await?;
    let found = results
        .first()
        .into_iter()
        .flat_map(|r| (0..r.rows.len()).filter_map(|row| r.text(row, 0)));
    Ok(found.filter_map(|oid| oid.parse().ok()).collect())
}

/// 0A000, where text is not exact and values would travel so.
pub fn text_is_not_exact() -> ServerError {
    ServerError::unsupported(
        "values of these types cannot be passed between shards under the session's DateStyle, extra_float_digits or array_nulls",
        "SET DateStyle = ISO, extra_float_digits = 1 and array_nulls = on, which are the defaults.",
    )
}

/// A function of a user's that is not immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserFunction {
    /// its name, without its schema
    pub name: String,
    /// VOLATILE, not STABLE
    pub volatile: bool,
    /// in a language that the catalog judges: what it reads is known
    pub shows_body: bool,
}

/// Asks the home shard, in one round trip, for relations by name (quoted, with or without a schema) and for users'
/// functions that are not immutable and have one of `words` as their name.
pub(crate) async fn read(home: &mut Backend, names: &[String], words: &[String]) -> Result<Metadata, ServerError> {
    let sql = format!(
        "SELECT r.n::text, c.oid::text, s.nspname::text, c.relname::text, a.attname::text, \
         format_type(a.atttypid, a.atttypmod), \
         CASE WHEN a.attcollation <> t.typcollation THEN \
           (SELECT quote_ident(cn.nspname) || '.' || quote_ident(l.collname) FROM pg_catalog.pg_collation l \
            JOIN pg_catalog.pg_namespace cn ON cn.oid = l.collnamespace WHERE l.oid = a.attcollation) END, \
         (t.oid < 16384 AND t.typsend <> 0 AND t.typreceive <> 0 AND t.typname !~ '^_?reg' \
          AND t.typname NOT IN ('record', '_record', 'pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list') \
          AND (e.oid IS NULL OR e.typsend <> 0 AND e.typreceive <> 0))::text, \
         (a.attnum = ANY (p.conkey) AND NOT p.condeferrable)::text, a.atttypid::text, \
         CASE WHEN t.typtype = 'b' AND t.typcategory <> 'A' AND t.typarray <> 0 THEN t.typarray END::text \
         FROM unnest({names}::text[]) WITH ORDINALITY r(name, n) \
         JOIN pg_catalog.pg_class c ON c.oid = to_regclass(r.name) \
         JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typelem <> 0 \
         LEFT JOIN pg_catalog.pg_constraint p ON p.conrelid = c.oid AND p.contype = 'p' \
         ORDER BY r.n, a.attnum; \
         SELECT f.proname::text, (f.provolatile = 'v')::text, (l.lanname IN ('sql', 'plpgsql'))::text \
         FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_language l ON l.oid = f.prolang \
         WHERE f.proname = ANY ({words}::text[]) AND f.provolatile <> 'i' AND f.oid >= 16384 \
         AND f.pronamespace IS DISTINCT FROM to_regnamespace('pgherd')::oid; \
         SELECT DISTINCT f.proname::text FROM pg_catalog.pg_proc f WHERE f.proname = ANY ({words}::text[]) AND f.oid >= 16384 \
         AND EXISTS (SELECT FROM unnest(f.proargtypes) AS a(oid) JOIN pg_catalog.pg_type t ON t.oid = a.oid \
         WHERE t.typtype = 'c'); \
         SELECT (pg_current_xact_id_if_assigned() IS NOT NULL)::text, {TEXT_IS_EXACT}",
        names = array_literal(names),
        words = array_literal(words),
    );
    let results = home.simple(&sql).await?;
    let mut metadata = Metadata {
        relations: vec![None; names.len()],
        ..Metadata::default()
    };
    let [relations, functions, row_functions, wrote] = results.as_slice() else {
        return Err(ServerError::internal(
            "the home shard described the relations in an unknown way",
        ));
    };
    for row in 0..relations.rows.len() {
        add_row(&mut metadata.relations, |column| relations.text(row, column))
            .ok_or_else(|| ServerError::internal("the home shard described a relation in an unknown way"))?;
    }
    for row in 0..functions.rows.len() {
        let name = functions.text(row, 0).unwrap_or_default();
        metadata.functions.push(UserFunction {
            name: name.to_owned(),
            volatile: functions.text(row, 1) == Some("true"),
            shows_body: functions.text(row, 2) == Some("true"),
        });
    }
    let names = (0..row_functions.rows.len()).filter_map(|row| row_functions.text(row, 0));
    metadata.row_functions = names.map(str::to_owned).collect();
    metadata.wrote = wrote.text(0, 0) == Some("true");
    metadata.text_is_exact = wrote.text(0, 1) == Some("true");
    Ok(metadata)
}

/// Whether all text columns of a relation (its name as SQL) have the database's collation or C, so that they compare by
/// bytes.
pub(crate) async fn is_bytewise(home: &mut Backend, name: &str) -> Result<bool, ServerError> {
    let sql = format!(
        "SELECT (NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = to_regclass({}) AND a.attnum > 0 \
         AND NOT a.attisdropped AND a.attcollation NOT IN \
         (0, 'pg_catalog.\"default\"'::regcollation, 'pg_catalog.\"C\"'::regcollation, 'pg_catalog.\"POSIX\"'::regcollation)) \
         AND EXISTS (SELECT FROM pg_catalog.pg_database d WHERE d.datname = current_database() \
         AND d.datlocprovider <> 'i' AND d.datcollate ~* '^(C|POSIX)($|\\.)'))::text",
        quote_literal(name)
    );
    let results = home.simple(&sql).await?;
    Ok(results.first().and_then(|r| r.text(0, 0)) == Some("true"))
}

fn add_row<'a>(relations: &mut [Option<Relation>], value: impl Fn(usize) -> Option<&'a str>) -> Option<()> {
    let place: usize = value(0)?.parse().ok()?;
    let entry = relations.get_mut(place.checked_sub(1)?)?;
    if entry.is_none() {
        *entry = Some(Relation {
            oid: value(1)?.parse().ok()?,
            schema: value(2)?.to_owned(),
            name: value(3)?.to_owned(),
            columns: Vec::new(),
            column_names: Vec::new(),
        });
    }
    let relation = entry.as_mut()?;
    if let Some(name) = value(4) {
        relation.column_names.push(name.to_owned());
        relation.columns.push(Column {
            name: name.to_owned(),
            type_sql: value(5)?.to_owned(),
            collation_sql: value(6).map_or(String::new(), |c| format!(" COLLATE {c}")),
            binary: value(7) == Some("true"),
            primary: value(8) == Some("true"),
            type_oid: value(9)?.parse().ok()?,
            array_oid: value(10).and_then(|oid| oid.parse().ok()),
        });
    }
    Some(())
}

/// `'{"a","b"}'`
fn array_literal(texts: &[String]) -> String {
    let items: Vec<_> = texts
        .iter()
        .map(|t| format!("\"{}\"", t.replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    quote_literal(&format!("{{{}}}", items.join(",")))
}
