//! The table that a gathered write changes: what PostgreSQL would apply to it, and what the role may do.

use crate::metadata::{self, Column};
use crate::statement::Statement;
use pgherd_model::{
    ForeignKey, Name, Resolved, ServerError, ShardId, Sharded, SqlState, Table, TableKind, quote_identifier,
    quote_literal,
};
use pgherd_shards::Backend;
use std::sync::Arc;

/// The target.
pub(crate) struct Target {
    /// its name as the client knows it
    pub name: String,
    /// as the catalog has it; None for a table of the home shard
    pub table: Option<Arc<Table>>,
    /// its columns in order
    pub columns: Vec<Column>,
    /// where the statement is sent when no row is written
    pub any_shard: ShardId,
    /// row triggers may keep rows from being written
    pub has_row_triggers: bool,
    /// foreign keys refer to it
    pub is_referenced: bool,
    /// these, where they are of sharded tables, with the tables that have them
    pub referencing: Vec<(Name, ForeignKey)>,
    /// a foreign key of its own does: its rows are to be written in one statement on each shard, which checks them at its end
    pub refers_to_itself: bool,
    /// the role may lock rows
    pub may_lock: bool,
    /// the role may insert and delete rows
    pub may_move: bool,
}

impl Target {
    /// Finds the target, and refuses what would not be exact.
    pub async fn read(
        statement: &Statement<'_>,
        schema: Option<&str>,
        name: &str,
        verb: &str,
        home: &mut Backend,
    ) -> Result<Self, ServerError> {
        let resolved = statement.snapshot.resolve(schema, name, statement.search_path);
        let (lookup, table) = match resolved {
            Resolved::Known(table) => match &table.kind {
                TableKind::Sharded(_) => (table.name.to_string(), Some(table)),
                TableKind::Partition { parent, .. } => (parent.to_string(), Some(table)),
                _ => return Err(not_exact(name, "it is no table")),
            },
            Resolved::Home => {
                let schema = schema.map(|s| quote_identifier(s) + ".");
                (schema.unwrap_or_default() + &quote_identifier(name), None)
            }
        };
        let facts = Facts::read(&lookup, home).await?;
        if facts.read_only {
            return Err(ServerError::new(
                SqlState::from_code("25006"),
                format!("cannot execute {verb} in a read-only transaction"),
            ));
        }
        if let Some(reason) = facts.reason {
            return Err(not_exact(name, reason));
        }
        let acts_on_itself = |t: &Arc<Table>| t.sharded().is_none_or(|s| s.acts_on.contains(&t.name));
        if facts.refers_to_itself && verb == "MERGE" && table.as_ref().is_none_or(acts_on_itself) {
            return Err(not_exact(name, "it has a foreign key to itself, with actions"));
        }
        let metadata = metadata::read(home, &[lookup], &[]).await?;
        let relation = metadata.relations.into_iter().next().flatten();
        if relation.as_ref().is_some_and(crate::metadata::Relation::is_system) {
            return Err(not_exact(name, "it is one of PostgreSQL's own tables"));
        }
        let any_shard = match table.as_ref().map(|t| &t.kind) {
            Some(TableKind::Partition { parent, range }) => {
                let parent = statement.snapshot.table(parent).and_then(|t| t.sharded());
                parent.and_then(|s| s.ranges.get(*range)).map(|r| r.shard)
            }
            _ => None,
        };
        let root = table.as_ref().map(|t| match &t.kind {
            TableKind::Partition { parent, .. } => parent,
            _ => &t.name,
        });
        let keys = root.into_iter().flat_map(|root| statement.snapshot.referencing(root));
        let referencing = keys.map(|(t, key)| (t.name.clone(), key.clone())).collect();
        Ok(Self {
            name: name.to_owned(),
            referencing,
            table,
            columns: relation.map(|r| r.columns).unwrap_or_default(),
            any_shard: any_shard.unwrap_or(statement.snapshot.home()),
            has_row_triggers: facts.row_triggers,
            is_referenced: facts.referenced,
            refers_to_itself: facts.refers_to_itself,
            may_lock: facts.may_lock,
            may_move: facts.may_move,
        })
    }

    /// Its placement, if it is a sharded table.
    pub fn sharded(&self) -> Option<&Sharded> {
        self.table.as_ref().and_then(|t| t.sharded())
    }

    /// Whether a column is computed from others.
    pub fn is_generated(&self, column: &str) -> bool {
        self.column(column).is_some_and(|c| c.generated)
    }

    /// Whether a column's values come from a sequence of its own.
    pub fn has_identity(&self, column: &str) -> bool {
        self.column(column).is_some_and(|c| c.identity.is_some())
    }

    fn column(&self, name: &str) -> Option<&pgherd_model::Column> {
        self.table.as_ref()?.column(name)
    }

    /// Why a row cannot be taken from one shard to another as PostgreSQL would do it between partitions.
    pub fn keeps_rows(&self) -> Option<ServerError> {
        let reason = if self.has_row_triggers {
            "It has row triggers, which PostgreSQL fires in a way that two shards cannot."
        } else if self.is_referenced && (self.referencing.is_empty() || !self.may_lock) {
            "Foreign keys refer to its rows."
        } else if !self.may_move {
            "Moving a row wants the privileges INSERT and DELETE."
        } else {
            return None;
        };
        Some(self.stays(reason))
    }

    /// An error of one part of the statement as that of the whole: PostgreSQL looks at foreign keys when all of it is done, and what
    /// one part breaks another may make good.
    pub fn unless_broken(&self, error: ServerError) -> ServerError {
        match error.sqlstate() == SqlState::FOREIGN_KEY_VIOLATION {
            true => not_exact(
                &self.name,
                "foreign keys refer to its rows, and would be checked after each part",
            ),
            false => error,
        }
    }

    /// The refusal to take rows to another shard.
    pub fn stays(&self, reason: &str) -> ServerError {
        ServerError::unsupported(
            format!(
                "updating the shard key of \"{}\" is not supported where it moves rows to another shard",
                self.name
            ),
            "Delete the row and insert it with its new key, in one transaction.",
        )
        .with_detail(reason)
    }
}

fn not_exact(name: &str, reason: &str) -> ServerError {
    ServerError::unsupported(
        format!("this statement on table \"{name}\" needs rows of more than one shard"),
        "Name the shard key in WHERE with constants or parameters, or read first and then write.",
    )
    .with_detail(format!("It cannot be run in parts because {reason}."))
}

#[derive(Default)]
struct Facts {
    read_only: bool,
    /// why it is not exact
    reason: Option<&'static str>,
    row_triggers: bool,
    referenced: bool,
    refers_to_itself: bool,
    may_lock: bool,
    may_move: bool,
}

impl Facts {
    async fn read(lookup: &str, home: &mut Backend) -> Result<Self, ServerError> {
        let sql = format!(
            "SELECT current_setting('transaction_read_only'), c.relkind::text, c.relrowsecurity::text, \
             EXISTS (SELECT FROM pg_catalog.pg_rewrite w WHERE w.ev_class = c.oid)::text, \
             EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 1 = 0)::text, \
             EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 1 = 1)::text, \
             EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.confrelid = c.oid)::text, \
             has_table_privilege(c.oid, 'SELECT')::text, has_any_column_privilege(c.oid, 'UPDATE')::text, \
             (has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'DELETE'))::text, \
             EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.confrelid = c.oid)::text, c.relname \
             FROM pg_catalog.pg_class c WHERE c.oid = to_regclass({})",
            quote_literal(lookup)
        );
        let results = home.simple(&sql).await?;
        let Some(row) = results.first().filter(|r| !r.rows.is_empty()) else {
            return Err(ServerError::internal(
                "the home shard does not know a table it described",
            ));
        };
        if row.text(0, 1) == Some("m") {
            let name = row.text(0, 11).unwrap_or_default();
            let message = format!("cannot change materialized view \"{name}\"");
            return Err(ServerError::new(SqlState::from_code("42809"), message));
        }
        let is = |column| row.text(0, column) == Some("true");
        let reason = if !matches!(row.text(0, 1), Some("r" | "p")) {
            Some("it is no plain table")
        } else if is(2) {
            Some("it has row level security")
        } else if is(3) {
            Some("it has rules")
        } else if is(4) {
            Some("it has statement triggers")
        } else if !is(7) {
            Some("the role may not read all its columns")
        } else {
            None
        };
        Ok(Self {
            read_only: row.text(0, 0) == Some("on"),
            reason,
            row_triggers: is(5),
            referenced: is(6),
            may_lock: is(8),
            may_move: is(9),
            refers_to_itself: is(10),
        })
    }
}
