//! Few rows need no temporary tables: they travel as arrays with the statement itself, in one round trip, and nothing has to be
//! made or dropped. In place of a relation's name stands
//!
//! ```sql
//! (SELECT u.c0 AS "id", u.c1::character varying(30) AS "name", NULL::date AS "made" FROM unnest($1, $2) AS u(c0, c1)) AS t
//! ```
//!
//! which has the relation's columns with their types, modifiers and collations. It has no primary key, no row type and no
//! statistics: what may need a row type is not tried ([`Plan::suits_arrays`]), and a statement that PostgreSQL refuses in this form, as one
//! that relies on the key for its GROUP BY, is run over temporary tables like one with many rows.

use super::source::{ANALYZE_ROWS, Gathered};
use super::{Plan, source};
use crate::Transaction;
use crate::carrier::{Batch, Carrier};
use crate::edit::Edited;
use crate::metadata::Column;
use crate::plan::row::{fields, messages};
use crate::read_ahead::ReadAhead;
use crate::relay;
use crate::rows::Scratch;
use crate::statement::Statement;
use bytes::Bytes;
use pgherd_model::{ServerError, quote_identifier};
use postgres_protocol::message::frontend;

/// More bytes than this are cheaper in a temporary table, which PostgreSQL does not have to read again for each mention.
pub(super) const MOST_BYTES: usize = 256 * 1024;
/// A relation of more rows is analysed, which takes a table.
pub(super) const MOST_ROWS: usize = ANALYZE_ROWS as usize - 1;

/// The statement over arrays, and the arrays.
pub(super) struct Inlined {
    pub edited: Edited,
    arrays: Vec<(u32, Bytes)>,
}

impl Plan {
    /// Whether rows of all its relations may travel as arrays to a connection that others use next.
    pub(super) fn suits_arrays(&self) -> bool {
        let is_binary = self.sources.iter().all(|source| source.binary);
        !self.read_only && !self.leaves_traces && !self.reading.parsed.dotted_star && is_binary && self.has_arrays()
    }

    /// Whether rows of all its relations may travel as arrays. A row that is named as a whole by `.*` is a record then.
    pub(super) fn has_arrays(&self) -> bool {
        !self.has_marks
            && self
                .sources
                .iter()
                .all(|source| (!source.whole_rows || source.has_typed_rows()) && carriers(source).is_some())
    }

    /// The statement with these rows in it.
    pub(super) fn inline(&self, statement: &Statement<'_>, rows: &ReadAhead) -> Result<Inlined, ServerError> {
        let mut arrays = Vec::new();
        let mut tables = Vec::new();
        for source in &self.sources {
            let carriers = carriers(source).unwrap_or_default();
            let first = statement.parameters.len() + arrays.len() + 1;
            tables.push(source.arrays_sql(first));
            let mut batch = Batch::new(carriers.len());
            let mut values = Vec::new();
            let portals = source.first_portal..source.first_portal + source.portals();
            for piece in portals.flat_map(|portal| rows.of(portal)) {
                for message in messages(&piece.bytes) {
                    fields(message, &mut values).ok_or_else(crate::plan::merge::garbled)?;
                    batch.add(values.iter().map(|v| v.clone().map(|v| &message[v])));
                }
            }
            let (types, values) = batch.take(&carriers);
            arrays.extend(types.into_iter().zip(values));
        }
        let parsed = &self.reading.parsed;
        let mut edits = source::edits(parsed, &self.reading.resolutions, &self.sources, &|at| {
            tables[at].clone()
        });
        edits.extend(self.more_edits.iter().cloned());
        Ok(Inlined {
            edited: Edited::new(&parsed.text, edits),
            arrays,
        })
    }
}

impl Inlined {
    /// The arrays' types, and their values in binary.
    pub(super) fn arrays(&self) -> &[(u32, Bytes)] {
        &self.arrays
    }
}

/// How the columns travel; None where one cannot be an array's element. Where one of them has to be text, all are: each is cast to its
/// type then.
fn carriers(source: &Gathered) -> Option<Vec<Carrier>> {
    const TEXT: (u32, u32) = (25, 1009);
    let columns = source.wanted.iter().map(|&c| &source.relation.columns[c]);
    let mut carriers = columns
        .map(|c| match source.binary {
            true => Some(Carrier::binary(c.type_oid, c.array_oid?)),
            false => Some(Carrier::binary(TEXT.0, TEXT.1)),
        })
        .collect::<Option<Vec<_>>>()?;
    carriers.extend(source.has_identity().then(|| Carrier::binary(TEXT.0, TEXT.1)));
    (!carriers.is_empty()).then_some(carriers)
}

impl Gathered {
    /// Lets all columns travel as text where one of them has no array type.
    pub(super) fn suit_arrays(&mut self) {
        let columns = &self.relation.columns;
        self.binary &= self.wanted.iter().all(|&c| columns[c].array_oid.is_some());
    }

    /// The relation as a subquery over arrays, of which this is the first parameter's number.
    fn arrays_sql(&self, first: usize) -> String {
        let value = |(at, column): (usize, &Column)| {
            let Some(place) = self.wanted.iter().position(|&c| c == at) else {
                return format!("NULL::{}{}", column.type_sql, column.collation_sql);
            };
            // An element has its type but no modifier.
            match column.type_sql.contains('(') || !self.binary {
                true => format!("u.c{place}::{}{}", column.type_sql, column.collation_sql),
                false => format!("u.c{place}{}", column.collation_sql),
            }
        };
        let columns = &self.relation.columns;
        let mut names: Vec<_> = columns.iter().map(|c| quote_identifier(&c.name)).collect();
        let mut values: Vec<String> = columns.iter().enumerate().map(value).collect();
        let mut width = self.wanted.len();
        if self.has_identity() {
            names.push(source::IDENTITY.to_owned());
            values.push(format!("u.c{width} COLLATE \"C\""));
            width += 1;
        }
        let numbered = |prefix: &str, from: usize| {
            let all: Vec<_> = (from..from + width).map(|i| format!("{prefix}{i}")).collect();
            all.join(", ")
        };
        // Of several arrays, only the bare name is the form that walks them side by side; it is always PostgreSQL's own.
        let schema = if width == 1 { "pg_catalog." } else { "" };
        let arrays = format!(
            "FROM {schema}unnest({}) AS u({})",
            numbered("$", first),
            numbered("c", 0)
        );
        if self.has_typed_rows() {
            return self.typed_rows_sql(&values, &arrays);
        }
        let named = names.iter().zip(&values);
        let columns: Vec<_> = named.map(|(name, value)| format!("{value} AS {name}")).collect();
        format!("(SELECT {} {arrays})", columns.join(", "))
    }
}

/// Sends the statement in a transaction of its own. False where PostgreSQL will not have it in this form; the connection is free
/// again then.
pub(super) async fn start(
    statement: &Statement<'_>,
    plan: &Plan,
    inlined: &Inlined,
    scratch: &mut Scratch,
) -> Result<bool, ServerError> {
    let backend = scratch.backend();
    backend.queue_silent(&super::begin_arrays_sql(statement, plan.reading.resolutions.len()));
    super::bind(statement, &inlined.edited.text, &inlined.arrays, backend)?;
    // Whether it is bound is told before it runs: the caller sees to it that it can be cancelled then.
    frontend::flush(backend.outbox());
    relay::queue_execute(backend, "")?;
    frontend::sync(backend.outbox());
    backend.expect_ready();
    backend.queue_query("ROLLBACK")?;
    backend.flush().await?;
    loop {
        let message = match backend.next_message().await {
            Ok(message) => message,
            Err(pgherd_shards::Error::Server(_)) => break,
            Err(error) => return Err(error.into()),
        };
        match message.tag {
            // BindComplete: it is parsed, planned and started.
            b'2' => return Ok(true),
            b'E' => break,
            _ => {}
        }
    }
    // The same error comes again, and in the client's words, where it is not this form's.
    let _ = backend.drain().await;
    Ok(false)
}

/// Reads rows ahead until all are there (true), or they are too many: of one relation, or in bytes.
pub(super) async fn read(
    plan: &Plan,
    fragments: &[crate::Fragment],
    ahead: &mut ReadAhead,
    transaction: &mut Transaction,
    (most_rows, most_bytes): (usize, usize),
) -> Result<bool, ServerError> {
    let mut bytes = 0;
    for source in &plan.sources {
        let mut rows = 0;
        for portal in source.first_portal..source.first_portal + source.portals() {
            while let Some(batch) = ahead.more(portal, fragments, transaction).await? {
                (rows, bytes) = (rows + batch.rows, bytes + batch.bytes.len());
                ahead.keep(portal, batch);
                if rows > most_rows || bytes > most_bytes {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}
