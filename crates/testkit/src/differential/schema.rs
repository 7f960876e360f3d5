//! Random tables: sharded by every kind of key at random places, some of them colocated, and local ones; and their rows.

use super::chance::Chance;
use super::node::{literal, quoted};
use super::types::Type;

/// A table with its rows.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) name: String,
    /// The key's columns come first.
    pub(super) columns: Vec<Column>,
    /// How many columns the key has; none for a table without a primary key.
    pub(super) key: usize,
    /// Where pgherd splits it, as `pgherd.initial_bounds` wants it; `None` for a local table.
    bounds: Option<String>,
    /// As a cast takes them; `None` is NULL.
    rows: Vec<Vec<Option<&'static str>>>,
}

/// A column of a table.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) of: Type,
    not_null: bool,
    /// A CHECK, DEFAULT or COLLATE, with a blank before it.
    extra: &'static str,
    /// What it is generated from, where it is.
    generated: Option<String>,
}

impl Column {
    /// One with nothing to be said about it.
    pub(super) fn plain(name: &str, of: Type) -> Self {
        Self {
            name: name.to_owned(),
            of,
            not_null: false,
            extra: "",
            generated: None,
        }
    }

    /// GENERATED ALWAYS AS that expression.
    pub(super) fn generated(name: &str, of: Type, from: String) -> Self {
        Self {
            generated: Some(from),
            ..Self::plain(name, of)
        }
    }

    pub(super) fn is_generated(&self) -> bool {
        self.generated.is_some()
    }
}

/// All tables of a round, in a schema of their own.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    pub(super) name: String,
    pub(super) tables: Vec<Table>,
    /// Settings of the session on both sides, which change how values are printed.
    settings: Vec<String>,
}

const KEY_TYPES: &[Type] = &[
    Type::Int4,
    Type::Int4,
    Type::Int4,
    Type::Int8,
    Type::Text,
    Type::Int2,
    Type::Varchar,
    Type::Date,
    Type::Timestamp,
    Type::Timestamptz,
    Type::Uuid,
    Type::Numeric,
];

/// How `pgherd.initial_bounds` names a key's type.
fn bound_name(of: Type) -> &'static str {
    match of {
        Type::Int2 => "smallint",
        Type::Int4 => "int",
        Type::Int8 => "bigint",
        Type::Varchar => "varchar",
        other => other.sql(),
    }
}

impl Schema {
    /// The schema of a round.
    pub(super) fn random(seed: u64, round: u64) -> Self {
        let mut chance = Chance::new(seed, round);
        let mut tables: Vec<Table> = Vec::new();
        for number in 0..chance.between(5, 8) {
            // The second table lies with the first one as often as not, so that joins stay on a shard.
            let like = (number > 0 && chance.one_in(3)).then(|| tables[number - 1].clone());
            let is_local = number == 2 || chance.one_in(6);
            tables.push(table(&mut chance, number, like.as_ref(), is_local));
        }
        let zones = ["UTC", "America/New_York", "Asia/Kolkata", "Europe/Berlin"];
        // Where a style writes zones as abbreviations, or floats with fewer digits than they have, values cannot travel between shards
        // as text: those settings would only be refused.
        let styles = ["ISO, MDY", "ISO, DMY", "ISO, YMD"];
        let intervals = ["postgres", "postgres", "iso_8601", "sql_standard"];
        let settings = vec![
            format!("TimeZone = {}", quoted(chance.pick::<&str>(&zones))),
            format!("DateStyle = {}", quoted(chance.pick::<&str>(&styles))),
            format!("IntervalStyle = {}", chance.pick(&intervals)),
            format!("extra_float_digits = {}", chance.pick(&["1", "1", "3"])),
            format!("bytea_output = {}", chance.pick(&["hex", "escape"])),
        ];
        Self {
            name: format!("d{seed}_{round}"),
            tables,
            settings,
        }
    }

    /// Statements that make the types and the tables and fill them. `pgherd` tells whether its own settings are wanted.
    pub(super) fn script(&self, pgherd: bool, tables: &[&Table]) -> Vec<String> {
        let name = &self.name;
        let mut script = vec![
            format!("CREATE SCHEMA {name}"),
            format!("SET search_path = {name}, public"),
            "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'it''s fine')".to_owned(),
            "CREATE DOMAIN small AS int CHECK (VALUE BETWEEN 0 AND 99)".to_owned(),
            "CREATE TYPE pair AS (a int, b text)".to_owned(),
            "CREATE TYPE wide AS (m mood, n numeric[], t timestamptz)".to_owned(),
            "CREATE TYPE spread AS RANGE (subtype = float8)".to_owned(),
        ];
        script.extend(self.settings.iter().map(|setting| format!("SET {setting}")));
        for table in tables {
            if pgherd {
                script.extend(table.distribution());
            }
            script.push(table.create());
            script.extend(table.fill());
        }
        script
    }
}

fn table(chance: &mut Chance, number: usize, like: Option<&Table>, is_local: bool) -> Table {
    let key = match like {
        Some(like) if like.key > 0 => like.key,
        _ => *chance.pick(&[1, 1, 1, 2, 3]),
    };
    let every: Vec<Type> = Type::every().collect();
    let mut columns: Vec<Column> = Vec::new();
    for position in 0..key {
        let of = match like {
            Some(like) if position < like.key => like.columns[position].of,
            _ => *chance.pick(KEY_TYPES),
        };
        columns.push(Column {
            name: format!("k{position}"),
            of,
            not_null: true,
            ..Column::plain("", of)
        });
    }
    for position in 0..chance.between(3, 8) {
        // The plain types are what most operators take.
        let common = [
            Type::Int4,
            Type::Text,
            Type::Numeric,
            Type::Int8,
            Type::Date,
            Type::Timestamptz,
        ];
        let is_common = chance.one_in(2);
        let of = *chance.pick(if is_common { &common[..] } else { &every });
        let not_null = chance.one_in(5);
        columns.push(Column {
            name: format!("c{position}"),
            of,
            not_null,
            extra: match of {
                Type::Int4 if chance.one_in(3) => " DEFAULT 7 CHECK (VALUE <> 13)",
                Type::Text if chance.one_in(8) => " COLLATE \"en-x-icu\"",
                _ => "",
            },
            generated: None,
        });
    }
    let bounds = (!is_local).then(|| match like.and_then(|like| like.bounds.clone()) {
        Some(bounds) => bounds,
        None => random_bounds(chance, columns[0].of),
    });
    let rows = rows(chance, &columns, key);
    // A local table may do without a key.
    let key = if is_local && chance.one_in(3) { 0 } else { key };
    let mut table = Table {
        name: format!("t{number}"),
        columns,
        key,
        bounds,
        rows,
    };
    if chance.one_in(4)
        && let Some((of, from)) = super::script_schema::generated(&table)
    {
        table.columns.push(Column::generated("g", of, from));
    }
    table
}

fn random_bounds(chance: &mut Chance, of: Type) -> String {
    let finite = |value: &&&str| {
        !matches!(**value, "" | "NaN") && !value.contains("inf") && !value.contains("Inf") && !value.contains("BC")
    };
    let values: Vec<_> = of.values().iter().filter(finite).collect();
    let splits: Vec<_> = (0..chance.between(2, 4))
        .map(|_| quoted(chance.pick::<&&str>(&values)))
        .collect();
    format!("{} {}", bound_name(of), splits.join(","))
}

fn rows(chance: &mut Chance, columns: &[Column], key: usize) -> Vec<Vec<Option<&'static str>>> {
    let mut rows: Vec<Vec<Option<&'static str>>> = Vec::new();
    for _ in 0..*chance.pick(&[0, 3, 8, 15, 15, 25, 40]) {
        let row: Vec<_> = columns
            .iter()
            .map(|column| {
                let is_null = !column.not_null && chance.one_in(5);
                (!is_null).then(|| *chance.pick(column.of.values()))
            })
            .collect();
        // Texts of keys are equal when the keys are, but for the case that both are zero.
        if !rows.iter().any(|other| other[..key] == row[..key]) {
            rows.push(row);
        }
    }
    rows
}

impl Table {
    /// The key's columns.
    pub(super) fn key_columns(&self) -> &[Column] {
        &self.columns[..self.key]
    }

    /// The same with one more column at the end.
    pub(super) fn with_column(&self, column: Column) -> Self {
        let mut table = self.clone();
        table.columns.push(column);
        table
    }

    /// A local table whose key is the first of these columns.
    pub(super) fn keyed(name: &str, columns: Vec<Column>) -> Self {
        Self {
            name: name.to_owned(),
            columns,
            key: 1,
            bounds: None,
            rows: Vec::new(),
        }
    }

    /// Another relation with some of the columns, the key among them and first.
    pub(super) fn seen_as(&self, name: &str, mut columns: Vec<Column>) -> Self {
        let position = |column: &Column| self.key_columns().iter().position(|key| key.name == column.name);
        columns.sort_by_key(|column| position(column).unwrap_or(self.key));
        Self {
            name: name.to_owned(),
            columns,
            ..self.clone()
        }
    }

    /// Settings under which pgherd places a table of the same key type as it has placed this one.
    pub(super) fn distribution(&self) -> Vec<String> {
        match &self.bounds {
            Some(bounds) => vec![
                "SET pgherd.default_distribution = 'primary_key'".to_owned(),
                format!("SET pgherd.initial_bounds = {}", quoted(bounds)),
            ],
            None => vec!["SET pgherd.default_distribution = 'local'".to_owned()],
        }
    }

    fn create(&self) -> String {
        let mut parts: Vec<_> = self
            .columns
            .iter()
            .map(|column| {
                let not_null = if column.not_null { " NOT NULL" } else { "" };
                let extra = match &column.generated {
                    Some(from) => format!(" GENERATED ALWAYS AS ({from}) STORED"),
                    None => column.extra.replace("VALUE", &column.name),
                };
                format!("{} {}{extra}{not_null}", column.name, column.of.sql())
            })
            .collect();
        if self.key > 0 {
            let key: Vec<_> = self.key_columns().iter().map(|column| column.name.as_str()).collect();
            parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
        }
        format!("CREATE TABLE {} ({})", self.name, parts.join(", "))
    }

    /// The same with its rows in another order.
    pub(super) fn shuffled(&self, chance: &mut Chance) -> Self {
        let mut table = self.clone();
        for last in (1..table.rows.len()).rev() {
            table.rows.swap(last, chance.below(last + 1));
        }
        table
    }

    /// The rows as they are at first; nothing for an empty table.
    pub(super) fn fill(&self) -> Option<String> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let values: Vec<_> = row
                    .iter()
                    .zip(&self.columns)
                    .map(|(value, column)| literal(column.of, *value, true))
                    .collect();
                format!("({})", values.join(", "))
            })
            .collect();
        (!rows.is_empty()).then(|| format!("INSERT INTO {} VALUES {}", self.name, rows.join(", ")))
    }
}
