//! What a COPY into a sharded table asks the home shard while its own connections are busy with the stream: the value
//! of a key that only PostgreSQL's input functions understand, and defaults that must come from one place (sequences,
//! clocks).

use crate::session::Problem;
use bytes::Bytes;
use pgherd_model::{Column, KeyType, KeyValue, Name, ServerError, ShardId, SqlState, quote_identifier};
use pgherd_shards::{Backend, Identity, parse_data_row};
use pgherd_sql::copy_split::Unknown;
use pgherd_transaction::Coordinator;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use std::collections::HashMap;
use std::sync::Arc;

/// Values that were evaluated are kept up to this many: a load of dates repeats few of them.
const KEPT_VALUES: usize = 10_000;
/// Text.
const TEXT_OID: u32 = 25;

/// Evaluates on a connection of its own to the home shard, opened when first needed.
pub(super) struct Evaluator {
    coordinator: Arc<Coordinator>,
    home: ShardId,
    who: Identity,
    backend: Option<Backend>,
    /// in a transaction as long as the COPY, so that now() stands still
    for_defaults: Option<Backend>,
    /// the key's columns: how the type is written, and what it is
    key_types: Vec<(String, KeyType)>,
    values: HashMap<Unknown, Option<KeyValue>>,
    /// expressions of the supplied columns
    defaults: String,
    /// whether the values for rows are wanted in binary
    binary: bool,
}

impl Evaluator {
    pub(super) fn new(
        coordinator: Arc<Coordinator>,
        home: ShardId,
        who: &Identity,
        key_types: Vec<(String, KeyType)>,
        defaults: String,
        binary: bool,
    ) -> Self {
        // The session's own connection takes part in the transaction.
        let who = Identity {
            pin: None,
            ..who.clone()
        };
        Self {
            coordinator,
            home,
            who,
            backend: None,
            for_defaults: None,
            key_types,
            values: HashMap::new(),
            defaults,
            binary,
        }
    }

    async fn backend(&mut self) -> Result<&mut Backend, Problem> {
        if self.backend.is_none() {
            self.backend = Some(self.coordinator.autocommit(self.home, &self.who).await?);
        }
        self.backend
            .as_mut()
            .ok_or_else(|| ServerError::internal("a connection that was just made is missing").into())
    }

    /// The values; None when PostgreSQL refuses one of them, which the shard that gets the row will say. `in_block`: the
    /// transaction's own connection, where only that one sees the schema that the transaction has made.
    pub(super) async fn key_values(
        &mut self,
        unknown: &[Unknown],
        mut in_block: Option<&mut Backend>,
    ) -> Result<Option<Vec<KeyValue>>, Problem> {
        let mut values = Vec::with_capacity(unknown.len());
        for one in unknown {
            let value = match self.values.get(one) {
                Some(known) => known.clone(),
                None => {
                    let value = self.key_value(one, in_block.as_deref_mut()).await?;
                    if self.values.len() >= KEPT_VALUES {
                        self.values.clear();
                    }
                    self.values.insert(one.clone(), value.clone());
                    value
                }
            };
            let Some(value) = value else { return Ok(None) };
            values.push(value);
        }
        Ok(Some(values))
    }

    async fn key_value(
        &mut self,
        unknown: &Unknown,
        in_block: Option<&mut Backend>,
    ) -> Result<Option<KeyValue>, Problem> {
        let (type_name, key_type) = self.key_types[unknown.column].clone();
        let (sql, oid) = match unknown.binary {
            true => (format!("SELECT $1::{type_name}"), key_type.oid()),
            false => (format!("SELECT ($1::text)::{type_name}"), TEXT_OID),
        };
        let given = Some((oid, unknown.binary, unknown.bytes.as_slice()));
        match in_block {
            None => {
                let rows = ask(self.backend().await?, &sql, given, true).await;
                key_or_refused(rows, key_type)
            }
            // A refused value must not end the client's transaction before the shard has said so.
            Some(backend) => {
                backend.simple("SAVEPOINT pgherd_key").await?;
                let rows = ask(backend, &sql, given, true).await;
                backend
                    .simple("ROLLBACK TO SAVEPOINT pgherd_key; RELEASE SAVEPOINT pgherd_key")
                    .await?;
                key_or_refused(rows, key_type)
            }
        }
    }

    /// Values of the supplied columns for `count` rows; `in_block` as in [`Evaluator::key_values`].
    pub(super) async fn defaults(
        &mut self,
        count: usize,
        in_block: Option<&mut Backend>,
    ) -> Result<Vec<Vec<Option<Vec<u8>>>>, Problem> {
        let sql = format!("SELECT {} FROM generate_series(1, {count})", self.defaults);
        let backend = match in_block {
            Some(backend) => backend,
            None => {
                if self.for_defaults.is_none() {
                    let mut backend = self.coordinator.autocommit(self.home, &self.who).await?;
                    // A lock that this very transaction holds on the sequence would never be released while it waits.
                    backend.simple("BEGIN; SET LOCAL lock_timeout = '5s'").await?;
                    self.for_defaults = Some(backend);
                }
                let missing = || ServerError::internal("a connection that was just made is missing");
                self.for_defaults.as_mut().ok_or_else(missing)?
            }
        };
        let rows = ask(backend, &sql, None, self.binary).await??;
        let owned = |row: Vec<Option<Bytes>>| row.into_iter().map(|v| v.map(|b| b.to_vec())).collect();
        Ok(rows.into_iter().map(owned).collect())
    }
}

/// The rows of a query with at most one parameter (type, binary or not, value), in binary or in text; or what PostgreSQL
/// says against it.
async fn ask(
    backend: &mut Backend,
    sql: &str,
    parameter: Option<(u32, bool, &[u8])>,
    binary: bool,
) -> Result<Result<Vec<Vec<Option<Bytes>>>, ServerError>, Problem> {
    let out = backend.outbox();
    frontend::parse("", sql, parameter.map(|(oid, ..)| oid), out)?;
    let bound = frontend::bind(
        "",
        "",
        parameter.map(|(_, binary, _)| i16::from(binary)),
        parameter.map(|(.., value)| value),
        |value, buffer| {
            buffer.extend_from_slice(value);
            Ok(IsNull::No)
        },
        [i16::from(binary)],
        out,
    );
    bound.map_err(|_| ServerError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "a shard key is too large"))?;
    frontend::execute("", 0, out)?;
    frontend::sync(out);
    backend.expect_ready();
    backend.flush().await?;
    let (mut rows, mut refused) = (Vec::new(), None);
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            b'D' => rows.push(parse_data_row(message.body)),
            b'E' => refused = Some(ServerError::from_body(&message.body)),
            b'Z' => return Ok(refused.map_or(Ok(rows), Err)),
            _ => {}
        }
    }
}

/// The rows that were asked for, or why there are none.
type Asked = Result<Vec<Vec<Option<Bytes>>>, ServerError>;

/// The value that was asked for; None where it is the row's fault that there is none.
fn key_or_refused(rows: Result<Asked, Problem>, key_type: KeyType) -> Result<Option<KeyValue>, Problem> {
    match rows? {
        // Data exceptions are the row's.
        Err(error) if error.sqlstate().code().starts_with("22") => Ok(None),
        Err(error) => Err(error.into()),
        Ok(rows) => {
            let value = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
            Ok(value.and_then(|v| key_type.parse_binary(&v)))
        }
    }
}

impl Evaluator {
    /// Gives the connections back.
    pub(super) async fn finish(&mut self) {
        if let Some(mut backend) = self.for_defaults.take() {
            // One that cannot commit is closed; it wrote nothing but sequences.
            let _ = backend.simple("COMMIT").await;
        }
        self.backend = None;
    }
}

/// The expression that gives a column's value where a COPY leaves it out, if it must be evaluated in one place; None
/// for a constant, or nothing.
pub(super) fn computed_default(table: &Name, column: &Column) -> Option<String> {
    if column.generated {
        return None;
    }
    if column.identity.is_some() {
        return Some(pgherd_sql::next_identity(table, column));
    }
    column.default.clone().filter(|default| !is_constant(default))
}

/// `'x'::text`, `42`, `true`, `NULL::numeric`: the same on every shard.
fn is_constant(default: &str) -> bool {
    let mut outside = String::new();
    let mut in_string = false;
    for c in default.chars() {
        match c {
            '\'' => in_string = !in_string,
            c if !in_string => outside.push(c.to_ascii_lowercase()),
            _ => {}
        }
    }
    if outside.contains('(') {
        return false;
    }
    let clocks = ["current", "localtime", "session_user", "user", "system_user"];
    !outside.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| clocks.iter().any(|c| word.starts_with(c)))
        // Text that is read at run time: 'now'::date and the like are folded by PostgreSQL, but not under ::text::date.
        && outside.matches("::").count() <= 1
}

/// A type's name without length, precision and the like, which a cast would apply by cutting off; as COPY applies them, they
/// are an error.
pub(super) fn without_modifier(type_name: &str) -> String {
    // A user's type, whose name may have anything in it.
    if type_name.contains('"') {
        return type_name.to_owned();
    }
    let mut depth = 0;
    let outside = type_name.chars().filter(|c| {
        let inside = depth > 0 || *c == '(';
        depth += i32::from(*c == '(') - i32::from(*c == ')');
        !inside
    });
    let bare: String = outside.collect();
    let name = bare.trim_end_matches("[]");
    let array = &bare[name.len()..];
    let name = match name {
        // Without a length, these mean a length of 1.
        "character" => "pg_catalog.bpchar",
        "bit" => "pg_catalog.\"bit\"",
        name if name.starts_with("interval") => "interval",
        name => name,
    };
    format!("{name}{array}")
}

/// `"a", "b"`.
pub(super) fn quote_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quote_identifier).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_told_from_computed_defaults() {
        for constant in [
            "42",
            "'a(b)'::text",
            "true",
            "NULL::numeric",
            "'it''s'::character varying",
            "'-1'::integer",
        ] {
            assert!(is_constant(constant), "{constant}");
        }
        for computed in [
            "nextval('s'::regclass)",
            "now()",
            "CURRENT_DATE",
            "'now'::text::date",
            "(1 + 2)",
        ] {
            assert!(!is_constant(computed), "{computed}");
        }
    }

    #[test]
    fn modifiers_are_left_out_of_types() {
        for (type_name, bare) in [
            ("integer", "integer"),
            ("character varying(10)", "character varying"),
            ("character(5)[]", "pg_catalog.bpchar[]"),
            ("timestamp(3) without time zone", "timestamp without time zone"),
            ("numeric(10,2)", "numeric"),
            ("s.\"(x)\"", "s.\"(x)\""),
        ] {
            assert_eq!(without_modifier(type_name), bare);
        }
    }
}
