//! What the home shard's catalogs say of a relation (`crates/catalog/sql/definition.sql`).

use pgherd_model::{KeyType, Name, quote_identifier};
use serde::Deserialize;

/// A relation as far as placing it needs.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// relkind
    pub kind: char,
    /// relpersistence
    pub persistence: char,
    pub typed: bool,
    pub row_security: bool,
    /// by its name, by its schema's, or with all tables
    pub published: bool,
    pub is_partition: bool,
    pub options: Vec<String>,
    pub method: Option<String>,
    pub bound: Option<String>,
    pub inherits: bool,
    /// partstrat
    pub strategy: Option<char>,
    pub usual_order: bool,
    /// the partition key, or else the primary key
    pub key: Option<Vec<KeyColumn>>,
    pub columns: Vec<KeyColumn>,
    pub primary_key: bool,
    /// a type in its columns that is a local relation's row, and so on the home shard only
    pub local_type: Option<String>,
    pub unique: Vec<Unique>,
    pub foreign_keys: Vec<ForeignKey>,
    pub triggers: Vec<String>,
    pub rules: Vec<String>,
    pub policies: Vec<String>,
    pub newest_index: Option<String>,
    pub table_of_index: Option<String>,
    pub is_unique_index: Option<bool>,
}

/// A column that may be a key's.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct KeyColumn {
    /// none for an expression
    pub name: Option<String>,
    #[serde(rename = "type")]
    pub type_oid: Option<u32>,
    pub type_name: Option<String>,
    #[serde(default)]
    pub generated: bool,
    pub ordered_by_bytes: Option<bool>,
}

/// A unique or exclusion constraint, or a unique index.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Unique {
    pub name: String,
    /// no expressions
    pub plain: bool,
    pub exclusion: bool,
    pub columns: Vec<String>,
}

/// A foreign key from or to the table.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ForeignKey {
    pub name: String,
    pub relation: u32,
    pub referenced: u32,
    pub referenced_name: String,
    pub relation_name: String,
    /// the referencing columns
    pub columns: Vec<String>,
    /// what they refer to
    pub referenced_columns: Vec<String>,
    /// not NOT VALID
    pub valid: bool,
    /// SET DEFAULT would draw from a sequence
    pub draws: bool,
    /// `FOREIGN KEY (…) REFERENCES …`, with full names
    pub definition: String,
    pub comment: Option<String>,
}

/// How to make a table like another one, as SQL with full names.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Definition {
    pub owner: String,
    pub partition_key: Option<String>,
    pub columns: Vec<String>,
    /// statements that give the columns their storage, compression and statistics, with `%s` for the table's name
    pub column_settings: Vec<String>,
    /// those that COPY fills: not the generated ones
    pub column_names: Vec<String>,
    pub builtin_types: bool,
    pub constraints: Vec<String>,
    /// statements that make unique constraints, with `%s` for the table's name
    pub unique_constraints: Vec<String>,
    /// statements that make constraints which are NOT VALID, for when the rows are there
    pub unchecked: Vec<String>,
    /// statements about what a partitioned table cannot have, with `%s` for the table's name
    pub plain_settings: Vec<String>,
    pub indexes: Vec<String>,
    pub index_names: Vec<String>,
    pub sequences: Vec<Sequence>,
    pub statistics: Vec<String>,
    pub statistics_names: Vec<String>,
    pub comments: Vec<String>,
    pub grants: Vec<String>,
    /// statements that take from the owner what it has taken from itself
    pub own_grants: Vec<String>,
    /// publications that name it
    pub publications: Vec<String>,
    pub views: Vec<View>,
    /// statements that make its triggers, and their comments
    pub triggers: Vec<String>,
    /// the same of its policies, and of row level security
    pub policies: Vec<String>,
    /// functions that depend on its columns or its rows' type
    pub functions: Vec<Routine>,
    /// policies of other tables that read it
    pub others_policies: Vec<String>,
    /// views, tables and types with a column of its rows' type
    pub row_columns: Vec<String>,
}

/// A function or procedure that depends on the table.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Routine {
    pub name: String,
    /// it cannot be made again: something depends on it, or it is an extension's or an aggregate
    pub stuck: bool,
    /// statements that make it again
    #[serde(default)]
    pub make: Option<Vec<String>>,
}

/// A sequence that a column uses.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sequence {
    pub name: String,
    pub create: String,
    pub owned_by: Option<String>,
    pub identity: bool,
}

/// A view that depends on the table.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct View {
    pub name: String,
    pub kind: char,
    pub options: Option<String>,
    pub definition: String,
}

impl Relation {
    pub fn full_name(&self) -> Name {
        Name::new(&self.schema, &self.name)
    }

    /// Its own foreign keys, not those of tables that refer to it.
    pub fn own_foreign_keys(&self) -> impl Iterator<Item = &ForeignKey> {
        self.foreign_keys.iter().filter(|key| key.relation == self.oid)
    }

    /// Whether it has a column of this name.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|c| c.name.as_deref() == Some(name))
    }

    /// The column's key type, or why it has none.
    pub fn key_type(&self, column: &str) -> Result<KeyType, String> {
        let found = self.columns.iter().find(|c| c.name.as_deref() == Some(column));
        match found {
            Some(column) => column.key_type(),
            None => Err(format!("there is no column \"{column}\"")),
        }
    }
}

impl KeyColumn {
    /// Its key type, or why it has none.
    pub fn key_type(&self) -> Result<KeyType, String> {
        let (Some(name), Some(oid)) = (&self.name, self.type_oid) else {
            return Err("its key is an expression".into());
        };
        let Some(key_type) = KeyType::from_oid(oid) else {
            let type_name = self.type_name.as_deref().unwrap_or("unknown");
            return Err(format!(
                "its key column \"{name}\" has type {type_name}, which ranges cannot be made of"
            ));
        };
        if self.generated {
            return Err(format!("its key column \"{name}\" is generated"));
        }
        if self.ordered_by_bytes == Some(false) {
            return Err(format!(
                "its key column \"{name}\" has a collation that does not order by bytes, as C and C.UTF-8 do"
            ));
        }
        Ok(key_type)
    }
}

impl Definition {
    /// The statements that make the table under `name`. `partitioned` is `RANGE (…)`.
    pub fn create(&self, name: &Name, partitioned: Option<&str>) -> Vec<String> {
        let parts: Vec<_> = self.columns.iter().chain(&self.constraints).cloned().collect();
        let by = partitioned.map_or(String::new(), |key| format!(" PARTITION BY {key}"));
        let mut statements = vec![format!("CREATE TABLE {name} ({}){by}", parts.join(", "))];
        let named = |sql: &String| sql.replacen("%s", &name.to_string(), 1);
        statements.extend(self.unique_constraints.iter().map(named));
        statements.extend(self.column_settings.iter().map(named));
        statements.extend(self.indexes.iter().map(|i| {
            // pg_get_indexdef says ON ONLY of a partitioned table's index.
            i.replacen(" ON ONLY ", " ON ", 1)
        }));
        if partitioned.is_none() {
            statements.extend(self.plain_settings.iter().map(named));
        }
        statements.extend(self.statistics.iter().cloned());
        statements
    }

    /// The statements that give others their privileges on it, and itself to its owner; `role` is who makes it.
    pub fn grant(&self, name: &Name, role: &str) -> Vec<String> {
        let mut statements = self.grants.clone();
        if *role != *self.owner {
            let owner = quote_identifier(&self.owner);
            statements.push(format!("ALTER TABLE {name} OWNER TO {owner}"));
        }
        statements.extend(self.own_grants.iter().cloned());
        statements
    }

    /// The statements that make the sequences which its defaults use; identity columns make their own.
    pub fn create_sequences(&self) -> Vec<String> {
        let plain = self.sequences.iter().filter(|s| !s.identity);
        plain.map(|s| s.create.clone()).collect()
    }

    /// The statements that let serial columns own their sequences.
    pub fn own_sequences(&self, name: &Name) -> Vec<String> {
        self.sequences
            .iter()
            .filter(|s| !s.identity)
            .filter_map(|s| {
                let column = quote_identifier(s.owned_by.as_deref()?);
                Some(format!("ALTER SEQUENCE {} OWNED BY {name}.{column}", s.name))
            })
            .collect()
    }

    /// The columns to copy, quoted.
    pub fn copied_columns(&self) -> String {
        let quoted: Vec<_> = self.column_names.iter().map(|c| quote_identifier(c)).collect();
        quoted.join(", ")
    }
}
