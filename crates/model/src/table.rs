//! What a gateway knows of a table.

use crate::{KeyType, RangeMap, ServerError, TableId};
use std::fmt;
use std::sync::Arc;

/// A schema-qualified name, as in the catalog: case as stored, without quotes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// the schema
    pub schema: Arc<str>,
    /// the relation
    pub name: Arc<str>,
}

impl Name {
    /// From its two parts.
    pub fn new(schema: &str, name: &str) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Name {
    /// Quoted always, so that it can stand in SQL: `"public"."t"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

/// `a"b` → `"a""b"`.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `it's` → `'it''s'`; with a backslash inside, an `E'…'` string, so that it is right under either
/// setting of standard_conforming_strings.
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// Below are the OIDs of PostgreSQL's own objects, the same everywhere (FirstNormalObjectId of access/transam.h).
pub const FIRST_OF_USERS: u32 = 16384;

/// A column as the home shard's pg_attribute has it. Dropped columns are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// its name
    pub name: String,
    /// attnum, from 1, with holes where columns were dropped
    pub number: i16,
    /// the type's OID on the home shard
    pub type_oid: u32,
    /// atttypmod, -1 where there is none
    pub type_modifier: i32,
    /// the type as `format_type` writes it, usable in SQL
    pub type_name: String,
    /// NOT NULL
    pub not_null: bool,
    /// the DEFAULT's expression as `pg_get_expr` writes it; not for generated columns
    pub default: Option<String>,
    /// GENERATED ALWAYS AS (…) STORED
    pub generated: bool,
    /// GENERATED … AS IDENTITY: `Some(true)` for ALWAYS
    pub identity: Option<bool>,
}

/// A table that the catalog knows. Tables that it does not know are local (or do not exist); the home
/// shard judges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// its name
    pub name: Name,
    /// its columns in order
    pub columns: Vec<Column>,
    /// what it is
    pub kind: TableKind,
}

/// How a table is placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableKind {
    /// split by range
    Sharded(Box<Sharded>),
    /// a view whose definition reaches a sharded table; the text is pg_get_viewdef's
    View {
        /// the defining SELECT
        definition: String,
        /// a sharded table with the view's columns, where every shard has the view and its rows are those of one sharded table,
        /// row by row; statements are routed by it, and name the view
        stand_in: Option<Arc<Table>>,
        /// PostgreSQL refuses all changes through it
        read_only: bool,
    },
    /// a declared partition of a sharded table, usable under its own name
    Partition {
        /// the sharded table
        parent: Name,
        /// the range it is
        range: crate::RangeId,
    },
    /// something through which a statement would see one shard's part only (a materialised view, a table
    /// with a trigger or rule over sharded tables …): refused with this reason
    Refused {
        /// said in the error's detail
        reason: String,
        /// only changes would reach other tables, by a trigger: its rows are all on the home shard, where they can be read
        readable: bool,
        /// can be changed as well where it is looked at afterwards whether a sharded table was used: the trigger's function builds its SQL
        watched: bool,
        /// what it is to schema changes all the same, where it is a sharded table
        sharded: Option<Box<Sharded>>,
    },
}

/// The reason of a view that is [`TableKind::Refused`] for a while only.
pub const UNREAD_DEFINITION: &str = "Its definition cannot be read while another transaction changes what it reads.";

/// A sharded table's placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharded {
    /// its number
    pub id: TableId,
    /// the key columns' names, in key order
    pub key: Vec<String>,
    /// the key columns' types, in key order
    pub key_types: Vec<KeyType>,
    /// who owns what
    pub ranges: RangeMap,
    /// the name of the fence table that every shard of this table has: `pgherd_data.fence_<table>_<epoch>`
    pub fence: Name,
    /// tables with the same number have equal bounds on equal shards and stay so
    pub colocation: u32,
    /// a statement for one range may address its child: nothing that PostgreSQL would apply changes
    /// (no row level security, statement triggers, rules … on the parent)
    pub direct: bool,
    /// ranges were made by pgherd and cover all keys; false after the first PARTITION OF
    pub automatic: bool,
    /// `pgherd.default_distribution` made it sharded, so that a constraint which cannot hold makes it local again
    pub by_default: bool,
    /// the fence's number, which grows when ranges change
    pub fence_number: u32,
    /// the number of the next range
    pub next_range: u32,
    /// the parent's OID on the home shard
    pub relation: u32,
    /// unique constraints' and the primary key's names and columns
    pub unique: Vec<(String, Vec<String>)>,
    /// its foreign keys, all of them to sharded tables whose rows of the same key are on the same shard
    pub foreign_keys: Vec<ForeignKey>,
    /// it has foreign keys, or some refer to it
    pub is_linked: bool,
    /// the tables that a DELETE or UPDATE of this one may write through foreign keys' actions, at any depth
    pub acts_on: Vec<Name>,
    /// it is no table, but stands for a view of one
    pub through_view: Option<ThroughView>,
}

/// A foreign key between two sharded tables. Each shard's PostgreSQL checks it among that shard's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// the constraint's name
    pub name: String,
    /// the start of the name's md5, which stands for it where names of the shards' own would be too long
    pub digest: String,
    /// the table that it refers to
    pub referenced: Name,
    /// the referencing columns
    pub columns: Vec<String>,
    /// the columns that these refer to, in the same order
    pub referenced_columns: Vec<String>,
    /// ON DELETE, as pg_constraint has it: `a` NO ACTION, `r` RESTRICT, `c` CASCADE, `n` SET NULL, `d` SET DEFAULT
    pub on_delete: char,
    /// ON UPDATE likewise
    pub on_update: char,
    /// DEFERRABLE
    pub deferrable: bool,
}

impl ForeignKey {
    /// Whether its actions write rows of the referencing table.
    pub fn writes(&self) -> bool {
        [self.on_delete, self.on_update]
            .iter()
            .any(|action| matches!(action, 'c' | 'n' | 'd'))
    }

    /// The referencing columns that stand for these referenced ones, in their order; None where one is not part of the key.
    pub fn standing_for(&self, referenced: &[String]) -> Option<Vec<String>> {
        columns_for(&self.columns, &self.referenced_columns, referenced)
    }
}

/// Those of `columns` whose fellows in `others` are `wanted`, in that order.
pub fn columns_for(columns: &[String], others: &[String], wanted: &[String]) -> Option<Vec<String>> {
    let fellow = |name: &String| columns.get(others.iter().position(|o| o == name)?).cloned();
    wanted.iter().map(fellow).collect()
}

impl Sharded {
    /// Whether rows of equal keys are on the same shard, and stay there: in tables whose ranges are pgherd's, because these are
    /// split together; else because ranges that overlap have one owner.
    pub fn lies_with(&self, other: &Self) -> bool {
        if self.key_types != other.key_types {
            return false;
        }
        if self.automatic && other.automatic {
            return self.colocation == other.colocation;
        }
        let theirs = other.ranges.ranges();
        let mut ours = self.ranges.ranges().iter();
        ours.all(|a| {
            theirs
                .iter()
                .all(|b| a.shard == b.shard || a.to <= b.from || b.to <= a.from)
        })
    }

    /// The place among the ranges of one whose child can tell of a row whose key has a NULL in a column that is NOT NULL: any child
    /// says so, with the whole row, before it looks at its bounds, where the parent only knows that there is no partition. None where
    /// the partitions are the user's, who is told of these.
    pub fn tells_of_nulls(&self, home: crate::ShardId) -> Option<usize> {
        let ranges = self.ranges.ranges();
        let at_home = || ranges.iter().position(|range| range.shard == home);
        let any = || (!ranges.is_empty()).then_some(0);
        self.automatic.then(|| at_home().or_else(any)).flatten()
    }

    /// The place in the key of the column that has this name.
    pub fn place_in_key(&self, name: &str) -> Option<usize> {
        let own = self.key.iter().position(|k| k == name);
        own.or_else(|| self.other_name_of_key(name))
    }

    /// The same for names that a view has besides the first.
    pub fn other_name_of_key(&self, name: &str) -> Option<usize> {
        let view = self.through_view.as_ref()?;
        view.other_names
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, place)| *place)
    }
}

/// What a view shows of a sharded table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThroughView {
    /// the table
    pub table: Name,
    /// more names that the view has for columns of the key: the name, and the column's place in the key
    pub other_names: Vec<(String, usize)>,
    /// why rows that are inserted through it would not be placed or filled in exactly, if so
    pub no_insert: Option<String>,
}

impl Table {
    /// Refuses values for these columns of a view where one of them is the shard key by another name than the first: a row's place is
    /// read from that one.
    ///
    /// # Errors
    /// 0A000
    pub fn refuse_other_names<'a>(&self, mut columns: impl Iterator<Item = &'a str>) -> Result<(), ServerError> {
        let Some(sharded) = self.sharded() else {
            return Ok(());
        };
        let other = columns.find_map(|name| Some((name, sharded.other_name_of_key(name)?)));
        match other {
            None => Ok(()),
            Some((name, place)) => Err(ServerError::unsupported(
                format!(
                    "column \"{name}\" of view \"{}\", which is the shard key by another name, cannot be given values",
                    self.name.name
                ),
                format!("Give them to column \"{}\", which is the same.", sharded.key[place]),
            )),
        }
    }

    /// The sharded placement, if it is one.
    pub fn sharded(&self) -> Option<&Sharded> {
        match &self.kind {
            TableKind::Sharded(sharded) => Some(sharded.as_ref()),
            _ => None,
        }
    }

    /// Whether it was made as a plain table, which `pgherd.default_distribution` made sharded.
    pub fn is_by_default(&self) -> bool {
        self.sharded().is_some_and(|s| s.by_default && s.automatic)
    }

    /// Whether it may become local by itself: a plain table that was made sharded, or one of declared partitions that was made while plain
    /// tables were. With another setting, declaring partitions by range is asking for a sharded table.
    pub fn may_yield(&self) -> bool {
        self.sharded().is_some_and(|s| s.by_default)
    }

    /// Whether reading it is as with any local table, although it cannot be changed.
    pub fn is_readable_only(&self) -> bool {
        matches!(self.kind, TableKind::Refused { readable: true, .. })
    }

    /// Whether it is a local table with a trigger that is to be watched.
    pub fn is_watched(&self) -> bool {
        matches!(self.kind, TableKind::Refused { watched: true, .. })
    }

    /// What is routed as a table: the table itself, or what stands for a view.
    pub fn placed(self: Arc<Self>) -> Arc<Self> {
        match &self.kind {
            TableKind::View {
                stand_in: Some(table), ..
            } => table.clone(),
            _ => self,
        }
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }
}
