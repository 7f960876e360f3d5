//! Rows that foreign keys refer to, and that a new key would take to another shard: they go where no row refers to them, since
//! then PostgreSQL would do nothing about them either.

use super::Found;
use super::apply::{Done, Step, Texts, Writer, read_reply};
use crate::Transaction;
use crate::plan::row;
use crate::relay::RowBatch;
use pgherd_model::{ForeignKey, Name, ServerError, ShardId, SqlState, quote_identifier, quote_literal};

impl Writer<'_> {
    /// Rows that other rows refer to stay. Those that leave are locked, so that none comes to refer to them; false where one was not
    /// there any more. `alone` is a row that no other of the statement could replace.
    pub(super) async fn may_leave(
        &self,
        shard: ShardId,
        rows: &[&Found],
        alone: bool,
        done: &mut Done,
        transaction: &mut Transaction,
    ) -> Result<bool, ServerError> {
        if rows.is_empty() || self.referred.is_empty() {
            return Ok(true);
        }
        if !self.run(&self.hold, shard, rows, done, transaction).await? {
            return Ok(false);
        }
        for (step, (other, key)) in self.referred.iter().zip(&self.target.referencing) {
            let (mut told, mut rest) = (RowBatch::default(), rows);
            while !rest.is_empty() {
                let sent = self.send(step, shard, rest, done, transaction).await?;
                let backend = transaction.participant(shard).await?;
                match read_reply(backend, true, &mut told).await {
                    Err(e) if e.sqlstate() == SqlState::INSUFFICIENT_PRIVILEGE => {
                        return Err(self.target.stays("Foreign keys refer to its rows."));
                    }
                    read => read?,
                };
                rest = &rest[sent..];
            }
            if let Some(detail) = row::messages(&told.bytes).next() {
                return Err(self.still_referenced(other, key, alone, detail));
            }
        }
        Ok(true)
    }

    /// PostgreSQL's error, where nothing that the statement does later could make it good.
    fn still_referenced(&self, other: &Name, key: &ForeignKey, alone: bool, detail: &[u8]) -> ServerError {
        let own = self.target.table.as_ref().map(|t| &t.name);
        let restricts = matches!(key.on_update, 'a' | 'r') && !key.deferrable;
        if !alone || !restricts || own == Some(other) {
            return self
                .target
                .stays("Rows of other tables refer to these by foreign keys.");
        }
        let mut fields = Vec::new();
        let place = row::fields(detail, &mut fields).and_then(|()| fields.first().cloned().flatten());
        let detail = place.map(|place| String::from_utf8_lossy(&detail[place]).into_owned());
        let mut error = ServerError::new(
            SqlState::FOREIGN_KEY_VIOLATION,
            format!(
                "update or delete on table \"{}\" violates foreign key constraint \"{}\" on table \"{}\"",
                self.target.name, key.name, other.name
            ),
        )
        .with_detail(detail.unwrap_or_default());
        error.fields_mut().other = vec![
            (b's', other.schema.to_string()),
            (b't', other.name.to_string()),
            (b'n', key.name.clone()),
        ];
        error
    }
}

impl Texts<'_> {
    /// Tells of the first row that others refer to by a foreign key, in PostgreSQL's words.
    pub(super) fn referred(&self, other: &Name, key: &ForeignKey) -> Step {
        let alias = self.alias();
        let columns = key.columns.iter().zip(&key.referenced_columns);
        let equal: Vec<_> = columns
            .map(|(column, own)| {
                format!(
                    "pgherd_f.{} = {alias}.{}",
                    quote_identifier(column),
                    quote_identifier(own)
                )
            })
            .collect();
        let places = vec!["%s"; key.referenced_columns.len()].join(", ");
        let names = key.referenced_columns.join(", ").replace('%', "%%");
        let told = format!(
            "Key ({names})=({places}) is still referenced from table \"{}\".",
            other.name.replace('%', "%%")
        );
        let values = key
            .referenced_columns
            .iter()
            .map(|c| format!(", {alias}.{}", quote_identifier(c)));
        let (told, values) = (quote_literal(&told), values.collect::<String>());
        let mut step = self.step(true, Vec::new(), false, |rows| {
            format!(
                "SELECT pg_catalog.format({told}{values}) FROM {} CROSS JOIN {rows} WHERE {} \
                 AND EXISTS (SELECT FROM {other} AS pgherd_f WHERE {}) LIMIT 1",
                self.named(),
                self.is_row(),
                equal.join(" AND ")
            )
        });
        step.exact = false;
        step
    }
}
