//! PostgreSQL's catalogs as a client is to see them: a sharded table whose ranges are pgherd's is one table.
//!
//! On the home shard, where catalogs are read, such a table is a partitioned one with a child for each range there. So where sharded
//! tables exist, the catalogs that would show the children, or the numbers of this one shard, are read through functions of schema
//! `pgherd` with the same names and columns (`shown.sql`). They are given what the gateway asked the shards for this statement: which
//! tables and indexes these are, and, if the statement reads numbers, their sums. A table that
//! `pgherd.default_distribution` has made sharded was made as a plain one, and is shown as that.
//!
//! Declared partitions are the user's own, and stay as they are. What a function or a view of a user reads, PostgreSQL answers alone.

use super::{Problem, Session, Unit};
use pgherd_model::{ServerError, Snapshot, quote_literal};
use pgherd_shards::SimpleResult;
use pgherd_sql::lexer::{Token, TokenKind};
use pgherd_sql::{Instead, Kind};
use serde_json::{Map, Value, json};
use std::ops::Range;

/// Relations, and what of the tables' facts each of them needs.
const RELATIONS: [(&str, Facts); 6] = [
    ("pg_class", Facts::Class),
    ("pg_inherits", Facts::Names),
    ("pg_tables", Facts::Names),
    ("pg_indexes", Facts::Names),
    ("pg_stat_all_tables", Facts::Activity),
    ("pg_stat_user_tables", Facts::Activity),
];
/// Functions likewise.
const FUNCTIONS: [(&str, Facts); 5] = [
    ("pg_relation_size", Facts::Sizes),
    ("pg_table_size", Facts::Sizes),
    ("pg_indexes_size", Facts::Sizes),
    ("pg_total_relation_size", Facts::Sizes),
    ("pg_get_indexdef", Facts::Names),
];
/// Columns of `pg_class` that count something.
const COUNTS: [&str; 3] = ["reltuples", "relpages", "relallvisible"];
/// Columns that PostgreSQL's relations have and functions have not.
const ROW_PLACES: [&str; 5] = ["ctid", "xmin", "xmax", "cmin", "cmax"];

/// What is to be known of tables and indexes, by its name in pgherd.shown_facts().
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Facts {
    /// which they are
    Names,
    /// `pg_class`
    Class,
    Sizes,
    Activity,
}

impl Facts {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Names => None,
            Self::Class => Some("class"),
            Self::Sizes => Some("sizes"),
            Self::Activity => Some("activity"),
        }
    }
}

/// Whether a statement may have to be run in other words.
pub(crate) fn reads_catalogs(lower: &str) -> bool {
    lower.contains("pg_") && RELATIONS.iter().chain(&FUNCTIONS).any(|(name, _)| lower.contains(name))
}

/// Where a statement names one of these.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: &'static str,
    facts: Facts,
    /// a relation's name (with schema); a function's with its parenthesis
    span: Range<usize>,
    is_function: bool,
    /// a relation without an alias
    is_bare: bool,
}

impl Session {
    /// What to run in the statement's place; None where PostgreSQL shows what there is.
    pub(crate) async fn with_shown_catalogs(&mut self, unit: Unit<'_>) -> Result<Option<Instead>, Problem> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        if !matches!(unit.statement.parsed.kind, Kind::Select { .. }) {
            return Ok(None);
        }
        let overlay = self.block.open().and_then(|open| open.overlay.clone());
        let snapshot = overlay.unwrap_or_else(|| self.catalog().snapshot());
        let tables = whole_tables(&snapshot);
        let places = places(text, tokens);
        if tables.is_empty() || places.is_empty() {
            return Ok(None);
        }
        let mentions = |word: &str| tokens.iter().any(|t| t.identifier(text).is_some_and(|n| n == word));
        if ROW_PLACES.iter().any(|column| mentions(column)) {
            return Ok(None);
        }
        let with_oid = mentions("tableoid");
        // The `tableoid` of rows may be a range's, and is looked up here.
        if with_oid && tables.iter().any(|(name, _)| name[1].as_str().is_some_and(mentions)) {
            return Ok(None);
        }
        // A star shows them as well.
        let counts = COUNTS.iter().any(|column| mentions(column)) || tokens.iter().any(|t| t.is(text, "*"));
        let wanted: Vec<Facts> = places
            .iter()
            .map(|place| place.facts)
            .filter(|facts| *facts != Facts::Names && (*facts != Facts::Class || counts))
            .collect();
        let shown = self.shown(&tables, &wanted).await?;
        let literal = format!("{}::pg_catalog.jsonb", quote_literal(&shown.to_string()));
        let replacements: Vec<_> = places
            .iter()
            .map(|p| (p.span.clone(), p.instead(&literal, with_oid)))
            .collect();
        Ok(Some(Instead::new(text, &replacements)))
    }

    /// What the functions of schema `pgherd` are given: the tables and their indexes by OID.
    async fn shown(&mut self, tables: &[(Value, bool)], wanted: &[Facts]) -> Result<Value, Problem> {
        let names = Value::Array(tables.iter().map(|(name, _)| name.clone()).collect());
        let kinds: Vec<_> = wanted.iter().filter_map(|facts| facts.name()).collect();
        let asked = format!(
            "SELECT pgherd.shown_facts({}, '{{{}}}')",
            quote_literal(&names.to_string()),
            kinds.join(",")
        );
        let mut facts = read_facts(&self.ask_home(&asked).await?)?;
        if !wanted.is_empty() {
            let home = self.gateway.shards.home();
            let others: Vec<_> = self
                .gateway
                .shards
                .all()
                .iter()
                .map(|s| s.id)
                .filter(|id| *id != home)
                .collect();
            let asking = others.into_iter().map(|shard| {
                let (coordinator, who, asked) = (&self.database.coordinator, &self.who, &asked);
                async move { Ok::<_, ServerError>(coordinator.autocommit(shard, who).await?.simple(asked).await?) }
            });
            for told in futures::future::try_join_all(asking).await? {
                add(&mut facts, &read_facts(&told)?);
            }
        }
        let shown = facts.into_iter().filter_map(|(_, facts)| {
            let plain = tables.iter().any(|(name, plain)| *plain && *name == facts["table"]);
            Some((facts["oid"].as_str()?.to_owned(), shown_relation(&facts, plain, wanted)))
        });
        Ok(Value::Object(shown.collect()))
    }
}

/// The sharded tables whose ranges are pgherd's: `[schema, name]`, and whether it was made as a plain table.
fn whole_tables(snapshot: &Snapshot) -> Vec<(Value, bool)> {
    let sharded = snapshot
        .sharded()
        .filter_map(|table| Some((&table.name, table.sharded()?)));
    let whole = sharded.filter(|(_, sharded)| sharded.automatic);
    whole
        .map(|(name, sharded)| (json!([&*name.schema, &*name.name]), sharded.by_default))
        .collect()
}

fn read_facts(results: &[SimpleResult]) -> Result<Map<String, Value>, ServerError> {
    let text = results.first().and_then(|r| r.text(0, 0)).unwrap_or("{}");
    serde_json::from_str(text).map_err(|e| ServerError::internal(format!("facts of tables are no JSON: {e}")))
}

/// Adds another shard's numbers to those of the home shard. Of times, the last one counts.
fn add(facts: &mut Map<String, Value>, others: &Map<String, Value>) {
    for (name, relation) in facts.iter_mut() {
        for kind in ["class", "sizes", "activity"] {
            let Some(more) = others.get(name).and_then(|other| other[kind].as_object()) else {
                continue;
            };
            let Some(sums) = relation[kind].as_object_mut() else {
                continue;
            };
            for (field, value) in more {
                let sum = sums.entry(field.clone()).or_insert(Value::Null);
                *sum = added(field, sum, value);
            }
        }
    }
}

fn added(field: &str, one: &Value, other: &Value) -> Value {
    match (one, other) {
        (Value::Null, value) | (value, Value::Null) => value.clone(),
        // -1: never analysed.
        (one, other) if field == "reltuples" && one.as_f64() < Some(0.0) => other.clone(),
        (one, other) if field == "reltuples" && other.as_f64() < Some(0.0) => one.clone(),
        (Value::String(one), Value::String(other)) => one.max(other).clone().into(),
        (one, other) => match (one.as_i64(), other.as_i64()) {
            (Some(one), Some(other)) => (one + other).into(),
            _ => (one.as_f64().unwrap_or(0.0) + other.as_f64().unwrap_or(0.0)).into(),
        },
    }
}

/// One table or index, as the functions of `shown.sql` read it.
fn shown_relation(facts: &Value, plain: bool, wanted: &[Facts]) -> Value {
    let is_index = facts["is_index"] == true;
    let mut shown = Map::new();
    for name in wanted.iter().filter_map(|facts| facts.name()) {
        shown.insert(name.to_owned(), facts[name].clone());
    }
    let class = shown.entry("class").or_insert_with(|| json!({}));
    // No ranges, so no children.
    class["relhassubclass"] = false.into();
    if plain {
        class["relkind"] = if is_index { "i" } else { "r" }.into();
    }
    if plain && !is_index {
        // heap
        class["relam"] = "2".into();
    }
    shown.insert("plain".to_owned(), plain.into());
    Value::Object(shown)
}

impl Place {
    fn instead(&self, literal: &str, with_oid: bool) -> String {
        let name = self.name;
        match (self.is_function, with_oid) {
            (true, _) => format!("pgherd.{name}({literal}, "),
            (false, false) => format!("pgherd.{name}({literal})"),
            (false, true) => format!(
                "(SELECT 'pg_catalog.{name}'::pg_catalog.regclass::pg_catalog.oid AS tableoid, f.* FROM pgherd.{name}({literal}) f){}",
                if self.is_bare {
                    format!(" AS {name}")
                } else {
                    String::new()
                }
            ),
        }
    }
}

/// All places, ascending. None at all where a column is named with its relation and schema, which a function has not.
fn places(text: &str, tokens: &[Token]) -> Vec<Place> {
    const CLAUSES: [&str; 14] = [
        "select",
        "from",
        "join",
        "where",
        "group",
        "order",
        "having",
        "limit",
        "union",
        "except",
        "intersect",
        "window",
        "returning",
        "offset",
    ];
    let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
    let mut found = Vec::new();
    // In which clause each open parenthesis stands, and the present one.
    let (mut around, mut clause) = (Vec::new(), "");
    for (i, token) in tokens.iter().enumerate() {
        if token.is(text, "(") {
            // `FROM (a JOIN b)`: still FROM, until a SELECT says otherwise.
            around.push(clause);
        } else if token.is(text, ")") {
            clause = around.pop().unwrap_or_default();
        } else if let Some(word) = CLAUSES.iter().find(|word| token.is_word(text, word)) {
            clause = word;
        }
        let Some(name) = token.identifier(text) else { continue };
        let schema = i > 0 && is(i - 1, ".");
        if schema && !(i > 1 && tokens[i - 2].is_word(text, "pg_catalog")) {
            continue;
        }
        let first = if schema { i - 2 } else { i };
        let start = tokens[first].start as usize;
        let function = FUNCTIONS.iter().find(|(known, _)| *known == name);
        if let Some((name, facts)) = function.filter(|_| is(i + 1, "(")) {
            found.push(Place {
                name,
                facts: *facts,
                span: start..tokens[i + 1].end as usize,
                is_function: true,
                is_bare: false,
            });
        }
        let Some((name, facts)) = RELATIONS.iter().find(|(known, _)| *known == name) else {
            continue;
        };
        if schema && is(i + 1, ".") {
            return Vec::new();
        }
        let begins = first > 0
            && (["from", "join", "lateral"]
                .iter()
                .any(|word| tokens[first - 1].is_word(text, word))
                || is(first - 1, ",")
                || is(first - 1, "("));
        if begins && matches!(clause, "from" | "join") && !is(i + 1, ".") && !is(i + 1, "(") {
            found.push(Place {
                name,
                facts: *facts,
                span: start..token.end as usize,
                is_function: false,
                is_bare: !tokens.get(i + 1).is_some_and(|t| is_alias(text, t)),
            });
        }
    }
    found
}

/// Whether the token behind a relation's name begins an alias.
fn is_alias(text: &str, token: &Token) -> bool {
    const OTHERS: [&str; 22] = [
        "where",
        "join",
        "left",
        "right",
        "full",
        "inner",
        "cross",
        "natural",
        "on",
        "using",
        "group",
        "order",
        "having",
        "limit",
        "offset",
        "fetch",
        "for",
        "union",
        "except",
        "intersect",
        "window",
        "tablesample",
    ];
    matches!(token.kind, TokenKind::Word | TokenKind::Quoted) && !OTHERS.iter().any(|word| token.is_word(text, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, bool)> {
        let tokens = pgherd_sql::lexer::tokenize(text).expect("tokens");
        let places = places(text, &tokens).into_iter();
        places
            .map(|place| (text[place.span].to_owned(), place.is_bare))
            .collect()
    }

    fn place(text: &str, bare: bool) -> (String, bool) {
        (text.to_owned(), bare)
    }

    #[test]
    fn relations_are_found_where_rows_come_from() {
        assert_eq!(
            found(
                "SELECT c.oid, pg_class FROM pg_catalog.pg_class c JOIN pg_inherits ON inhparent = c.oid, pg_tables AS t"
            ),
            [
                place("pg_catalog.pg_class", false),
                place("pg_inherits", true),
                place("pg_tables", false)
            ]
        );
        assert_eq!(found("SELECT 'pg_class'::regclass, pg_class.x FROM t AS pg_class"), []);
        assert_eq!(found("SELECT 1 FROM mine.pg_class, x"), []);
        assert_eq!(
            found("SELECT (SELECT 1 FROM (pg_class CROSS JOIN t)) FROM u"),
            [place("pg_class", true)]
        );
        assert_eq!(found("SELECT 1 FROM pg_class WHERE pg_catalog.pg_class.oid = 1"), []);
    }

    #[test]
    fn functions_are_found_with_their_parenthesis() {
        assert_eq!(
            found("SELECT pg_catalog.pg_table_size(c.oid), mine.pg_table_size(1), pg_table_size FROM t"),
            [place("pg_catalog.pg_table_size(", false)]
        );
    }

    #[test]
    fn numbers_of_shards_are_added() {
        let shard = |tuples: i64, last: Value| {
            let facts = json!({"s.t": {"class": {"reltuples": tuples}, "sizes": {"main": 8192}, "activity": {"last_analyze": last}}});
            facts.as_object().expect("object").clone()
        };
        let mut sum = shard(-1, Value::Null);
        add(&mut sum, &shard(-1, "2026-01-02".into()));
        assert_eq!(sum["s.t"]["class"]["reltuples"], -1);
        add(&mut sum, &shard(5, "2026-01-01".into()));
        add(&mut sum, &shard(7, Value::Null));
        assert_eq!(sum["s.t"]["class"]["reltuples"], 12);
        assert_eq!(sum["s.t"]["sizes"]["main"], 4 * 8192);
        assert_eq!(sum["s.t"]["activity"]["last_analyze"], "2026-01-02");
    }
}
