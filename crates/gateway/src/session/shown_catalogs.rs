//! PostgreSQL's catalogs as a client is to see them: a sharded table whose ranges are pgherd's is one table.
//!
//! On the home shard, where catalogs are read, such a table is a partitioned one with a child for each range there. So where sharded
//! tables exist, the catalogs that would show the children, or the numbers of this one shard, are read through functions of schema
//! `pgherd` with the same names and columns (`shown.sql`). They are given what the gateway asked the shards for this statement: which
//! tables and indexes these are, and, if the statement reads numbers, their sums. A table that
//! `pgherd.default_distribution` has made sharded was made as a plain one, and is shown as that.
//!
//! Declared partitions are the user's own, and stay as they are, with the numbers of the shard where their rows are. What a function
//! or a view of a user reads, PostgreSQL answers alone.
//!
//! The schemas of the cluster's own catalog are there in every database, and are not the user's: a statement that lists what there is
//! does not see them. One that names schema `pgherd`, or asks for an object by its OID, does: `\d pgherd.ranges` works.

mod places;

use super::{Problem, Session, Unit};
use pgherd_model::{FIRST_OF_USERS, Name, ServerError, Sharded, Snapshot, quote_literal};
use pgherd_shards::SimpleResult;
use pgherd_sql::lexer::{Token, TokenKind};
use pgherd_sql::{DdlKind, Instead, Kind, LockStrength};
pub(crate) use places::reads_catalogs;
use places::{Place, Sampled, places};
use serde_json::{Map, Value, json};

/// Columns of `pg_class` that only ranges have values for: what counts something, and storage parameters.
const OF_RANGES: [&str; 4] = ["reltuples", "relpages", "relallvisible", "reloptions"];
/// Columns that PostgreSQL's relations have and functions have not.
const ROW_PLACES: [&str; 5] = ["ctid", "xmin", "xmax", "cmin", "cmax"];

/// What is to be known of tables and indexes, by its name in pgherd.shown_facts().
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Facts {
    /// nothing
    None,
    /// which they are
    Names,
    /// `pg_class`
    Class,
    Sizes,
    /// what PostgreSQL counts of tables
    Activity,
    /// and of indexes
    IndexActivity,
    /// blocks of tables that were read
    Blocks,
    IndexBlocks,
}

/// Those that are numbers of each shard.
const COUNTED: [&str; 6] = ["class", "sizes", "activity", "index_activity", "blocks", "index_blocks"];

impl Facts {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::None | Self::Names => None,
            Self::Class => Some("class"),
            Self::Sizes => Some("sizes"),
            Self::Activity => Some("activity"),
            Self::IndexActivity => Some("index_activity"),
            Self::Blocks => Some("blocks"),
            Self::IndexBlocks => Some("index_blocks"),
        }
    }
}

impl Session {
    /// What to run in the statement's place; None where PostgreSQL shows what there is.
    pub(crate) async fn with_shown_catalogs(&mut self, unit: Unit<'_>) -> Result<Option<Instead>, Problem> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let is_query = match &unit.statement.parsed.kind {
            Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge => true,
            Kind::Ddl(ddl) => ddl.kind == DdlKind::CreateTableAs,
            _ => false,
        };
        if !is_query {
            return Ok(None);
        }
        let mut places = places(text, tokens);
        if places.is_empty() || locks_rows(text, tokens) {
            return Ok(None);
        }
        let mentions = |word: &str| tokens.iter().any(|t| t.identifier(text).is_some_and(|n| n == word));
        if ROW_PLACES.iter().any(|column| mentions(column)) {
            return Ok(None);
        }
        let snapshot = self.present_snapshot();
        let tables = whole_tables(&snapshot);
        // PostgreSQL refuses a sample of a view, and of other methods nothing is known.
        places.retain(|place| place.sampled != Sampled::Otherwise);
        if places.is_empty() {
            return Ok(None);
        }
        let with_oid = mentions("tableoid");
        // The `tableoid` of rows may be a range's, and is looked up here.
        if with_oid && tables.iter().any(|table| table.name[1].as_str().is_some_and(mentions)) {
            return Ok(None);
        }
        // A star shows them as well.
        let counts = OF_RANGES.iter().any(|column| mentions(column)) || tokens.iter().any(|t| t.is(text, "*"));
        let wanted: Vec<Facts> = places
            .iter()
            .map(|place| place.facts)
            .filter(|facts| facts.name().is_some() && (*facts != Facts::Class || counts))
            .collect();
        let listed = !names_our_schema(unit) && !names_an_object(unit);
        let shown = match places.iter().all(|place| place.facts == Facts::None) || tables.is_empty() {
            true => json!({}),
            false => self.shown(&tables, listed, &wanted).await?,
        };
        let literal = format!("{}::pg_catalog.jsonb", quote_literal(&shown.to_string()));
        let replacement = |p: &Place| (p.span.clone(), p.instead(&literal, listed, with_oid));
        let left_out = |p: &Place| Some((p.left_out()?, String::new()));
        let edits = places.iter().flat_map(|p| [Some(replacement(p)), left_out(p)]);
        let instead = Instead::new(text, &edits.flatten().collect::<Vec<_>>());
        let groups = tokens.iter().any(|t| t.is_word(text, "group"));
        if groups && !self.may_group(unit, &instead).await? {
            return Ok(None);
        }
        Ok(Some(instead))
    }

    /// A catalog's primary key stands for all its columns in GROUP BY; a function has none, and 42803 is what comes of it.
    async fn may_group(&mut self, unit: Unit<'_>, instead: &Instead) -> Result<bool, Problem> {
        let described = pgherd_query::describe(&mut self.home_backend().await?, &instead.text, unit.types).await;
        Ok(described.map_or_else(|e| e.sqlstate().code() != "42803", |_| true))
    }

    /// What the functions of schema `pgherd` are given: the tables and their indexes by OID.
    async fn shown(&mut self, tables: &[Whole], listed: bool, wanted: &[Facts]) -> Result<Value, Problem> {
        let names = Value::Array(tables.iter().map(|table| table.name.clone()).collect());
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
            let is_index = facts["is_index"] == true;
            let plain = |table: &Whole| table.is_plain(listed, is_index) && table.name == facts["table"];
            let plain = tables.iter().any(plain);
            Some((facts["oid"].as_str()?.to_owned(), shown_relation(&facts, plain, wanted)))
        });
        Ok(Value::Object(shown.collect()))
    }
}

/// A table of which a shard sees a part: a sharded one whose ranges are pgherd's, or a declared partition, which the home shard has an empty
/// one of.
struct Whole {
    /// `[schema, name]`
    name: Value,
    is_partition: bool,
    was_made_plain: bool,
}

impl Whole {
    /// Whether it, or its index, is shown as a plain one. Programs look for the rows of a partitioned table in its partitions, and a
    /// dump would have none of these: so it is a plain table where tables are listed, and shows its key to who asks for this one.
    fn is_plain(&self, listed: bool, is_index: bool) -> bool {
        !self.is_partition && (self.was_made_plain || listed || is_index)
    }
}

fn whole_tables(snapshot: &Snapshot) -> Vec<Whole> {
    let sharded = snapshot
        .sharded()
        .filter_map(|table| Some((&table.name, table.sharded()?)));
    let whole = |name: &Name, is_partition, was_made_plain| Whole {
        name: json!([&*name.schema, &*name.name]),
        is_partition,
        was_made_plain,
    };
    let of_table = |(name, sharded): (_, &Sharded)| match sharded.automatic {
        true => vec![whole(name, false, sharded.by_default)],
        false => {
            let declared = sharded.ranges.ranges().iter().filter(|range| range.declared);
            declared.map(|range| whole(&range.child, true, false)).collect()
        }
    };
    sharded.flat_map(of_table).collect()
}

/// FOR UPDATE and its kin, which functions have not.
fn locks_rows(text: &str, tokens: &[Token]) -> bool {
    (0..tokens.len()).any(|at| LockStrength::at(text, tokens, at).is_some())
}

/// Whether the statement or one of its parameters has the name of pgherd's schema.
fn names_our_schema(unit: Unit<'_>) -> bool {
    let within = |bytes: &[u8]| bytes.windows(6).any(|part| part.eq_ignore_ascii_case(b"pgherd"));
    let mut values = unit.parameters.iter().filter_map(|(_, value)| value.as_deref());
    within(unit.statement.text.as_bytes()) || values.any(within)
}

/// Whether it asks for objects by their OIDs: a constant or parameter that can be one of a user's object, or a list of them.
fn names_an_object(unit: Unit<'_>) -> bool {
    let is_oid = |text: &str| {
        let first = text.trim().trim_start_matches('{').split(',').next();
        first
            .and_then(|number| number.parse::<u32>().ok())
            .is_some_and(|number| number >= FIRST_OF_USERS)
    };
    let text = &unit.statement.text;
    let mut constants = unit
        .statement
        .parsed
        .tokens
        .iter()
        .filter_map(|token| match token.kind {
            TokenKind::String => token.string(text),
            TokenKind::Number => Some(token.text(text).to_owned()),
            _ => None,
        });
    let mut values = unit.parameters.iter().filter_map(|(_, value)| value.as_deref());
    constants.any(|constant| is_oid(&constant)) || values.any(|value| std::str::from_utf8(value).is_ok_and(is_oid))
}

fn read_facts(results: &[SimpleResult]) -> Result<Map<String, Value>, ServerError> {
    let text = results.first().and_then(|r| r.text(0, 0)).unwrap_or("{}");
    serde_json::from_str(text).map_err(|e| ServerError::internal(format!("facts of tables are no JSON: {e}")))
}

/// Adds another shard's numbers to those of the home shard. Of times, the last one counts.
fn add(facts: &mut Map<String, Value>, others: &Map<String, Value>) {
    for (name, relation) in facts.iter_mut() {
        for kind in COUNTED {
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
        // Storage parameters are the same everywhere.
        (Value::Array(one), Value::Array(_)) => one.clone().into(),
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
    if class.is_null() {
        *class = json!({});
    }
    if !facts["checks"].is_null() {
        class["relchecks"] = facts["checks"].clone();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let options = json!({"s.t": {"class": {"reloptions": ["fillfactor=70"]}}});
        for _ in 0..2 {
            add(&mut sum, options.as_object().expect("object"));
        }
        assert_eq!(sum["s.t"]["class"]["reloptions"], json!(["fillfactor=70"]));
        assert_eq!(sum["s.t"]["class"]["reltuples"], 12);
        assert_eq!(sum["s.t"]["sizes"]["main"], 4 * 8192);
        assert_eq!(sum["s.t"]["activity"]["last_analyze"], "2026-01-02");
    }
}
