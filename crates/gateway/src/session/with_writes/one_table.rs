//! Parts of one statement that write the same table. Each row is written once, by the earlier part that finds it: a later UPDATE or
//! DELETE passes by what earlier ones have written, which return the keys of their rows for that. A later INSERT only adds rows, among
//! which one may take the place of a row that is gone, where PostgreSQL, going row by row, may still find that in its way.

use super::super::constants::data_rows;
use super::{Step, not_in_parts};
use bytes::Bytes;
use pgherd_model::{ServerError, Table, quote_literal};
use pgherd_shards::ColumnDescription;
use pgherd_sql::{passing_by, relations::Role, returning_also};
use std::collections::BTreeMap;

/// What the parts do to tables that several of them write.
#[derive(Default)]
pub(super) struct OneTable {
    /// the key by which a part tells which rows it has written
    tells: BTreeMap<usize, Vec<String>>,
    /// the parts whose rows a part passes by
    passes: BTreeMap<usize, Vec<usize>>,
}

/// The rows that parts have written, as constants by part.
pub(super) type Written = BTreeMap<usize, Vec<String>>;

impl OneTable {
    /// Looks at the parts, in the order in which they run. Errors: 0A000 where two of them cannot be told apart.
    pub fn of(steps: &[Step]) -> Result<Self, ServerError> {
        let mut this = Self::default();
        for (later, step) in steps.iter().enumerate() {
            for (earlier, before) in steps[..later].iter().enumerate() {
                let both: Vec<&String> = before.writes.intersection(&step.writes).collect();
                if both.is_empty() {
                    continue;
                }
                if both.iter().any(|name| step.mentions.contains(*name)) {
                    return Err(not_in_parts(
                        "One part of it reads a table that it writes, as another part does.",
                    ));
                }
                // Else an action of a foreign key writes it.
                let named = both.iter().all(|name| before.writes_to(name) && step.writes_to(name));
                match (before.role, step.role) {
                    (_, Role::Insert) if step.only_adds => {}
                    // What is gone is not found.
                    (Role::Delete, Role::Update | Role::Delete) if named => {}
                    (Role::Insert | Role::Update, Role::Update | Role::Delete) if named => {
                        this.pass_by(earlier, before, later, step)?;
                    }
                    _ => return Err(not_in_parts("Two parts of it write the same table.")),
                }
            }
        }
        Ok(this)
    }

    fn pass_by(&mut self, earlier: usize, before: &Step, later: usize, step: &Step) -> Result<(), ServerError> {
        let table = |step: &Step| step.target.as_ref().and_then(|(_, table)| table.clone());
        let both = table(before).zip(table(step)).filter(|(a, b)| a.name == b.name);
        let key = both.and_then(|(table, _)| key(&table)).ok_or_else(|| {
            not_in_parts(
                "Two parts of it write the same table, whose rows have no key by which they could be told apart.",
            )
        })?;
        if returning_also(&before.body, &key).is_none() || passing_by(&step.body, &key, &[]).is_none() {
            return Err(not_in_parts(
                "Two parts of it write the same table, and one is of a form that is not known, or sets the key.",
            ));
        }
        self.tells.insert(earlier, key);
        self.passes.entry(later).or_default().push(earlier);
        Ok(())
    }

    /// The text of a part, with what it tells and what it passes by.
    pub fn body(&self, part: usize, body: &str, written: &Written) -> String {
        let mut text = body.to_owned();
        for earlier in self.passes.get(&part).into_iter().flatten() {
            if let (Some(key), Some(rows)) = (self.tells.get(earlier), written.get(earlier)) {
                text = passing_by(&text, key, rows).unwrap_or(text);
            }
        }
        match self.tells.get(&part) {
            Some(key) => returning_also(&text, key).unwrap_or(text),
            None => text,
        }
    }

    /// Takes the keys off what a part has returned: the columns and rows that are the client's.
    pub fn take_keys(
        &self,
        part: usize,
        columns: &mut Vec<ColumnDescription>,
        rows: &Bytes,
        types: &[(String, String)],
        written: &mut Written,
    ) {
        let Some(key) = self.tells.get(&part) else { return };
        let first = columns.len() - key.len();
        let constant = |(i, value): (usize, Option<Bytes>)| match value {
            Some(value) => format!(
                "{}::{}",
                quote_literal(&String::from_utf8_lossy(&value)),
                types[first + i].0
            ),
            None => "NULL".to_owned(),
        };
        let keys = data_rows(rows.clone()).into_iter().map(|row| {
            let values: Vec<_> = row.into_iter().skip(first).enumerate().map(constant).collect();
            match values.len() {
                1 => values.concat(),
                _ => format!("({})", values.join(", ")),
            }
        });
        written.insert(part, keys.collect());
        columns.truncate(first);
    }
}

/// Columns that tell the rows of a table apart, none of which is ever NULL.
fn key(table: &Table) -> Option<Vec<String>> {
    let certain = |columns: &&Vec<String>| columns.iter().all(|c| table.column(c).is_some_and(|c| c.not_null));
    let unique = table.sharded()?.unique.iter().map(|(_, columns)| columns);
    unique.filter(certain).min_by_key(|columns| columns.len()).cloned()
}
