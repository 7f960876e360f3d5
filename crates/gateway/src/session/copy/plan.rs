//! What each shard is told for a COPY FROM STDIN into a sharded table, and where the key of a row is.

use super::evaluate::{computed_default, quote_list, without_modifier};
use crate::session::Unit;
use pgherd_model::{ServerError, Table};
use pgherd_sql::copy_split::{KeyColumn, KeySource};
use pgherd_sql::{CopyFormat, CopyShape};

/// The COPY as each shard gets it.
pub(super) struct Plan {
    pub sql: String,
    /// how many characters stand before the options, here and in the client's text
    options_at: (u32, u32),
    pub binary: bool,
    pub fence: String,
    pub relation: String,
    /// columns of the client's rows
    pub fields: usize,
    pub supplied: Vec<String>,
    pub defaults: String,
    pub key: Vec<KeyColumn>,
}

/// The columns that a COPY of a table has: those that it names, or all but the generated ones.
pub(super) fn columns<'a>(shape: &'a CopyShape, table: &'a Table) -> Vec<&'a str> {
    match &shape.columns {
        Some(named) => named.iter().map(String::as_str).collect(),
        None => table
            .columns
            .iter()
            .filter(|c| !c.generated)
            .map(|c| c.name.as_str())
            .collect(),
    }
}

impl Plan {
    /// An error of the shard's COPY, with its position in the client's.
    pub fn of_client(&self, error: ServerError) -> ServerError {
        let (own, client) = self.options_at;
        let position = error.fields().position.and_then(|at| at.checked_sub(own));
        error.with_position(position.map(|at| at + client))
    }

    pub fn new(unit: Unit<'_>, shape: &CopyShape, table: &Table) -> Result<Self, ServerError> {
        let sharded = table
            .sharded()
            .ok_or_else(|| ServerError::internal("COPY into a table that is not sharded"))?;
        let columns = columns(shape, table);
        let (mut supplied, mut defaults) = (Vec::new(), Vec::new());
        for column in table.columns.iter().filter(|c| !columns.contains(&c.name.as_str())) {
            let constant_key = || {
                column
                    .default
                    .clone()
                    .filter(|_| sharded.key.contains(&column.name) && !column.generated)
            };
            if let Some(default) = computed_default(&table.name, column).or_else(constant_key) {
                supplied.push(column.name.clone());
                // In text, the column's input function reads whatever the expression gives.
                defaults.push(match shape.format {
                    CopyFormat::Binary => format!("({default})::{}", without_modifier(&column.type_name)),
                    _ => default,
                });
            }
        }
        let key = sharded.key.iter().zip(&sharded.key_types).map(|(name, key_type)| {
            let field = columns.iter().position(|c| c == name).map(KeySource::Field);
            let source = || {
                supplied
                    .iter()
                    .position(|c| c == name)
                    .map_or(KeySource::Missing, KeySource::Supplied)
            };
            KeyColumn {
                name: name.clone(),
                key_type: *key_type,
                type_modifier: table.column(name).map_or(-1, |c| c.type_modifier),
                source: field.unwrap_or_else(source),
            }
        });
        let key = key.collect();
        let all = supplied.iter().map(String::as_str).chain(columns.iter().copied());
        let list = match quote_list(all) {
            list if list.is_empty() => list,
            list => format!(" ({list})"),
        };
        let options = unit.statement.text.get(shape.options.clone()).unwrap_or_default();
        let binary = if is_old_binary(unit, shape) { "BINARY " } else { "" };
        let head = format!("COPY {binary}{}{list} FROM STDIN ", table.name);
        let before = unit.statement.text.get(..shape.options.start).unwrap_or_default();
        Ok(Self {
            options_at: (head.chars().count() as u32, before.chars().count() as u32),
            sql: head + options,
            binary: shape.format == CopyFormat::Binary,
            fence: sharded.fence.to_string(),
            relation: table.name.name.to_string(),
            fields: columns.len(),
            defaults: defaults.join(", "),
            supplied,
            key,
        })
    }
}

/// `COPY BINARY t FROM STDIN`, from before 7.3.
fn is_old_binary(unit: Unit<'_>, shape: &CopyShape) -> bool {
    let second = unit.statement.text.split_whitespace().nth(1).unwrap_or_default();
    shape.format == CopyFormat::Binary
        && second.eq_ignore_ascii_case("binary")
        && !shape.option_list.iter().any(|(name, _)| name == "format")
}
