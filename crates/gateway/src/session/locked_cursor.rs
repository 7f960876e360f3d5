//! Cursors over several ranges that lock their rows (`DECLARE … FOR UPDATE`), and `WHERE CURRENT OF` them.
//!
//! The rows are locked and read when the cursor is declared, by the SELECT that it stands for; PostgreSQL locks them as they are fetched. They
//! become constants of a cursor on the home shard. A second one there has the keys of the same rows and is moved whenever the first one
//! is, so that it tells at which row that is. `WHERE CURRENT OF` becomes a condition on that row's key: its row is locked, so the key is
//! its own until this transaction changes it.

use super::forward::no_block;
use super::stored::with_position;
use super::{Mode, Problem, Session, Unit};
use pgherd_model::{Name, Resolved, ServerError, SqlState, Table, quote_identifier, quote_literal};
use pgherd_sql::lexer::{Token, TokenKind, depths};
use pgherd_sql::{Instead, Kind};
use std::ops::Range;
use std::sync::Arc;

/// Of which table the rows of such a cursor are, and the key that tells one from another.
pub(crate) struct LockedCursor {
    table: Name,
    key: Vec<(String, String)>,
    /// the row that it is at may have got another key
    rekeyed: bool,
}

/// The cursor that has the keys of another one's rows.
pub(super) fn of_keys(name: &str) -> String {
    format!("pgherd_at_{name}")
}

impl Session {
    /// DECLARE of a query that locks rows of several ranges; `query` is what stands behind `head`.
    pub(super) async fn declare_locked(
        &mut self,
        unit: Unit<'_>,
        query: Unit<'_>,
        name: &str,
        head: &str,
    ) -> Result<(), Problem> {
        // PostgreSQL knows which cursors cannot lock rows.
        if let Some(Err(error)) = self.read_apart(&unit.statement.text, unit.types).await {
            return Err(error.into());
        }
        let before = head.chars().count() as u32;
        let behind = |problem| with_position(problem, |position| position.map(|p| p + before));
        let snapshot = self.present_snapshot();
        let described = self.description(query, &snapshot).await.map_err(behind)?;
        let columns = described.columns.clone().unwrap_or_default();
        let keyed = self.with_keys(query);
        let statements = match &keyed {
            Some((text, ..)) => Some(self.database.cache.parse(text)?),
            None => None,
        };
        let statement = statements
            .as_ref()
            .and_then(|all| all.first())
            .unwrap_or(query.statement);
        let part = Unit {
            statement,
            types: &described.parameter_types,
            mode: Mode::HIDDEN,
            ..query
        };
        let all = self
            .description(part, &snapshot)
            .await?
            .columns
            .clone()
            .unwrap_or_default();
        let rows = self.rows_of(part).await.map_err(|p| with_position(p, |_| None))?;
        let rows = self.constants(&all, rows).await?;
        let names: Vec<_> = (0..all.len()).map(|i| format!("c{i}")).collect();
        let rows = format!("({rows}) AS pgherd_locked ({})", names.join(", "));
        let list: Vec<_> = columns
            .iter()
            .zip(&names)
            .map(|(column, own)| format!("{own} AS {}", quote_identifier(&column.name)))
            .collect();
        let binary = match head
            .split_ascii_whitespace()
            .any(|word| word.eq_ignore_ascii_case("binary"))
        {
            true => "BINARY ",
            false => "",
        };
        let mut sql = format!(
            "DECLARE {} {binary}NO SCROLL CURSOR FOR SELECT {} FROM {rows}",
            quote_identifier(name),
            list.join(", ")
        );
        if keyed.is_some() {
            sql.push_str(&format!(
                "; DECLARE {} SCROLL CURSOR FOR SELECT {} FROM {rows}",
                quote_identifier(&of_keys(name)),
                names[columns.len()..].join(", ")
            ));
        }
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        open.transaction.participant(home).await?.simple(&sql).await?;
        open.place_cursor(name, home);
        if let Some((_, table, key)) = keyed {
            let cursor = LockedCursor {
                table,
                key,
                rekeyed: false,
            };
            open.locked_cursors.insert(name.to_owned(), cursor);
        }
        if matches!(query.mode, Mode::Extended { .. }) && query.mode.describes() {
            self.client.put(b'n', &[]);
        }
        self.client.put_tag("DECLARE CURSOR");
        Ok(())
    }

    /// The query with its rows' keys behind its columns, the table that they are of, and the key's columns with their types. None where it is
    /// not plainly a query of one table with such a key.
    fn with_keys(&self, query: Unit<'_>) -> Option<(String, Name, Vec<(String, String)>)> {
        let (text, tokens) = (&*query.statement.text, &query.statement.parsed.tokens);
        let depths = depths(text, tokens);
        tokens.first().filter(|t| t.is_word(text, "select"))?;
        let from = (1..tokens.len())
            .find(|&i| depths[i] == 0 && tokens[i].is_word(text, "from") && !tokens[i - 1].is_word(text, "distinct"))?;
        let named = Named::read(text, tokens, from + 1)?;
        let behind = ["where", "order", "limit", "offset", "fetch", "for"];
        let next = tokens.get(named.end)?;
        behind.iter().any(|word| next.is_word(text, word)).then_some(())?;
        let table = self.sharded_table(&named)?;
        let key = key_of(&table)?;
        let list: Vec<_> = key
            .iter()
            .map(|(name, _)| format!(", {}.{}", quote_identifier(&named.alias), quote_identifier(name)))
            .collect();
        let at = tokens[from].start as usize;
        let text = format!("{} {} {}", &text[..at], list.concat(), &text[at..]);
        Some((text, table.name.clone(), key))
    }

    fn sharded_table(&self, named: &Named) -> Option<Arc<Table>> {
        let snapshot = self.present_snapshot();
        let path = &self.settings.search_path;
        match snapshot.resolve(named.schema.as_deref(), &named.name, path) {
            Resolved::Known(table) if table.sharded().is_some() && !self.temporary.contains(&named.name) => Some(table),
            _ => None,
        }
    }

    /// FETCH, MOVE or CLOSE was run on such a cursor: the one with the keys follows.
    pub(super) async fn follow_cursor(&mut self, unit: Unit<'_>, name: &str) -> Result<(), Problem> {
        let home = self.gateway.shards.home();
        let Some(open) = self.block.open_mut() else {
            return Ok(());
        };
        let Some(cursor) = open.locked_cursors.get_mut(name) else {
            return Ok(());
        };
        cursor.rekeyed = false;
        let own = quote_identifier(&of_keys(name));
        let sql = match &unit.statement.parsed.kind {
            Kind::Close(_) => {
                open.locked_cursors.remove(name);
                format!("CLOSE {own}")
            }
            _ => {
                let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
                let is_name = |t: &&Token| matches!(t.kind, TokenKind::Word | TokenKind::Quoted);
                let named = tokens.iter().rfind(is_name).ok_or_else(no_block)?;
                format!("MOVE {} {own}", &text[tokens[0].end as usize..named.start as usize])
            }
        };
        open.transaction.participant(home).await?.simple(&sql).await?;
        Ok(())
    }

    /// An UPDATE or DELETE with `WHERE CURRENT OF` a cursor over several ranges, with a condition on the row's key. None for other cursors.
    pub(super) async fn at_cursor(&mut self, unit: Unit<'_>) -> Result<Option<Instead>, Problem> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let Some((place, name)) = current_of(text, tokens) else {
            return Ok(None);
        };
        let home = self.gateway.shards.home();
        let Some(open) = self.block.open() else {
            return Ok(None);
        };
        if open.gathered_cursors.contains_key(&name) {
            return Err(not_here("The cursor locks no rows.").into());
        }
        let Some(cursor) = open.locked_cursors.get(&name) else {
            return Ok(None);
        };
        if cursor.rekeyed {
            return Err(not_here("The row may have got another key since it was fetched.").into());
        }
        let (of, key) = (cursor.table.clone(), cursor.key.clone());
        let first = 1 + usize::from(tokens.get(1).is_some_and(|t| t.is_word(text, "from")));
        let named = Named::read(text, tokens, first).ok_or_else(|| not_here("Its form is not understood."))?;
        if self.sharded_table(&named).is_none_or(|table| table.name != of) {
            return Err(ServerError::new(
                SqlState::from_code("24000"),
                format!(
                    "cursor \"{name}\" does not have a FOR UPDATE/SHARE reference to table \"{}\"",
                    named.name
                ),
            )
            .into());
        }
        let sql = format!("FETCH RELATIVE 0 FROM {}", quote_identifier(&of_keys(&name)));
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let row = open.transaction.participant(home).await?.simple(&sql).await?;
        let at = row.first().filter(|r| !r.rows.is_empty());
        let Some(at) = at else {
            let told = format!("cursor \"{name}\" is not positioned on a row");
            return Err(ServerError::new(SqlState::from_code("24000"), told).into());
        };
        let alias = quote_identifier(&named.alias);
        let of_column = |(i, (column, type_name)): (usize, &(String, String))| {
            let value = quote_literal(at.text(0, i).unwrap_or_default());
            format!("{alias}.{} = CAST({value} AS {type_name})", quote_identifier(column))
        };
        let condition: Vec<_> = key.iter().enumerate().map(of_column).collect();
        let sets = &tokens[named.end..];
        let mentions = |column: &String| sets.iter().any(|t| t.identifier(text).as_ref() == Some(column));
        if key.iter().any(|(column, _)| mentions(column))
            && let Some(cursor) = open.locked_cursors.get_mut(&name)
        {
            cursor.rekeyed = true;
        }
        Ok(Some(Instead::new(text, &[(place, condition.join(" AND "))])))
    }
}

/// A relation's name, with or without a schema and an alias.
struct Named {
    schema: Option<String>,
    name: String,
    alias: String,
    /// the token behind
    end: usize,
}

impl Named {
    fn read(text: &str, tokens: &[Token], at: usize) -> Option<Self> {
        let identifier = |at: usize| tokens.get(at).and_then(|t: &Token| t.identifier(text));
        let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
        if tokens.get(at)?.is_word(text, "only") {
            return None;
        }
        let (mut schema, mut name, mut end) = (None, identifier(at)?, at + 1);
        if symbol(end, ".") {
            schema = Some(std::mem::replace(&mut name, identifier(end + 1)?));
            end += 2;
        }
        let mut alias = name.clone();
        let clauses = ["where", "order", "limit", "offset", "fetch", "for", "set", "using"];
        let is_clause = |at: usize| {
            clauses
                .iter()
                .any(|w| tokens.get(at).is_some_and(|t| t.is_word(text, w)))
        };
        if tokens.get(end).is_some_and(|t| t.is_word(text, "as")) {
            alias = identifier(end + 1)?;
            end += 2;
        } else if !is_clause(end)
            && let Some(own) = identifier(end)
        {
            alias = own;
            end += 1;
        }
        Some(Self {
            schema,
            name,
            alias,
            end,
        })
    }
}

/// The columns of a unique key without NULLs, with their types.
fn key_of(table: &Table) -> Option<Vec<(String, String)>> {
    let columns = |names: &Vec<String>| -> Option<Vec<(String, String)>> {
        let column = |name: &String| table.column(name).filter(|c| c.not_null);
        let own = |c: &pgherd_model::Column| (c.name.clone(), c.type_name.clone());
        names.iter().map(|name| column(name).map(own)).collect()
    };
    table.sharded()?.unique.iter().find_map(|(_, names)| columns(names))
}

/// `CURRENT OF name`: its bytes, and the cursor's name.
fn current_of(text: &str, tokens: &[Token]) -> Option<(Range<usize>, String)> {
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let at = (0..tokens.len()).find(|&i| word(i, "where") && word(i + 1, "current") && word(i + 2, "of"))?;
    let cursor = tokens.get(at + 3)?;
    let place = tokens[at + 1].start as usize..cursor.end as usize;
    Some((place, cursor.identifier(text)?))
}

fn not_here(detail: &str) -> ServerError {
    ServerError::unsupported(
        "WHERE CURRENT OF is not supported for this cursor over several ranges",
        "Declare the cursor FOR UPDATE over one table with a primary key, or name the row's key.",
    )
    .with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_sql::lexer::tokenize;

    #[test]
    fn the_cursor_and_the_table_are_found() {
        let text = "UPDATE s.t AS x SET a = 1 WHERE CURRENT OF \"C\" RETURNING *";
        let tokens = tokenize(text).expect("tokens");
        let (place, name) = current_of(text, &tokens).expect("is there");
        assert_eq!((&text[place], name.as_str()), ("CURRENT OF \"C\"", "C"));
        let named = Named::read(text, &tokens, 1).expect("a name");
        assert_eq!(
            (
                named.schema.as_deref(),
                named.name.as_str(),
                named.alias.as_str(),
                named.end
            ),
            (Some("s"), "t", "x", 6)
        );
        let text = "DELETE FROM t WHERE current_of = 1";
        let tokens = tokenize(text).expect("tokens");
        assert_eq!(current_of(text, &tokens), None);
        assert_eq!(Named::read(text, &tokens, 2).expect("a name").alias, "t");
    }
}
