//! What comes in: a statement that needs several ranges, and what PostgreSQL says about its parameters and columns.

use bytes::{Buf, Bytes};
use pgherd_model::{FIRST_OF_USERS, ServerError, ShardId, Snapshot};
use pgherd_shards::{Backend, ColumnDescription, parse_row_description};
use postgres_protocol::message::frontend;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A client's statement with everything that decides its result.
#[derive(Clone, Copy)]
pub struct Statement<'a> {
    /// one statement's text, without `;`
    pub text: &'a str,
    /// its tree; spans are on line 1 with `column - 1` = bytes from the start of `text`
    pub ast: &'a sqlparser::ast::Statement,
    /// OIDs as the home shard numbers them, one per parameter; all known (from [`describe`])
    pub parameter_types: &'a [u32],
    /// (binary, value) as in Bind
    pub parameters: &'a [(bool, Option<Bytes>)],
    /// as in Bind: none, one for all, or one per column; 0 text, 1 binary
    pub result_formats: &'a [i16],
    /// the session's, resolved
    pub search_path: &'a [Arc<str>],
    /// the catalog it is planned with
    pub snapshot: &'a Snapshot,
    /// the OIDs of parameters' types on other shards than the home shard, where they are not the same: (shard, home's OID)
    pub types_elsewhere: &'a BTreeMap<(ShardId, u32), u32>,
    /// SETs that another connection must run first to have the session's settings; may be empty
    pub settings_sql: &'a str,
    /// its transaction is its own: nothing was read before it, and nothing comes behind it
    pub alone: bool,
    /// its transaction was begun for it, and ends with it
    pub ends: bool,
    /// its relations are all known to the catalog and its functions are PostgreSQL's own, so that a new epoch tells when one of
    /// them changes
    pub told_by_epoch: bool,
    /// its transaction has changed the schema, which no other connection sees
    pub schema_is_own: bool,
}

impl Statement<'_> {
    /// Whether it may be run with fewer parallel workers than a shard would start: nobody has asked for a number, or asks which it is, and
    /// nothing comes behind it in its transaction.
    pub(crate) fn leaves_workers_to_us(&self) -> bool {
        self.alone && !self.settings_sql.contains("max_parallel_workers_per_gather") && !self.may_ask_settings()
    }

    /// Whether it may ask what a setting is.
    pub(crate) fn may_ask_settings(&self) -> bool {
        self.text.contains("current_setting")
    }
}

/// What PostgreSQL says about a statement before it runs.
#[derive(Debug, Clone, Default)]
pub struct Description {
    /// the parameters' types, as the home shard numbers them
    pub parameter_types: Vec<u32>,
    /// the columns; None when it returns no rows
    pub columns: Option<Vec<ColumnDescription>>,
}

impl Description {
    /// Whether a parameter or column has a type that a user has made.
    pub fn has_user_types(&self) -> bool {
        let columns = self.columns.iter().flatten().map(|c| c.type_oid);
        let mut types = columns.chain(self.parameter_types.iter().copied());
        types.any(|oid| oid >= FIRST_OF_USERS)
    }
}

/// Prepares `text` on a connection to the home shard, which has every table's parent, and returns its types and
/// columns. PostgreSQL's own error, position included, is returned for what is wrong with the text. The
/// unnamed statement of the connection is replaced.
pub async fn describe(backend: &mut Backend, text: &str, parameter_types: &[u32]) -> Result<Description, ServerError> {
    let out = backend.outbox();
    let nul = |_| ServerError::internal("a statement's text holds a NUL");
    frontend::parse("", text, parameter_types.iter().copied(), out).map_err(nul)?;
    frontend::describe(b'S', "", out).map_err(nul)?;
    frontend::sync(out);
    backend.expect_ready();
    backend.flush().await?;
    let mut description = Description::default();
    let mut failed = None;
    loop {
        let mut message = backend.next_message().await?;
        match message.tag {
            b't' if message.body.len() >= 2 => {
                message.body.advance(2);
                while message.body.len() >= 4 {
                    description.parameter_types.push(message.body.get_u32());
                }
            }
            b'T' => description.columns = Some(parse_row_description(message.body)),
            b'E' => failed = Some(ServerError::from_body(&message.body)),
            b'Z' => return failed.map_or(Ok(description), Err),
            _ => {}
        }
    }
}
