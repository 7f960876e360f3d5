//! Cursors over several ranges that lock their rows (`DECLARE … FOR UPDATE`), and `WHERE CURRENT OF` them.
//!
//! The rows are locked and read when the cursor is declared, by the SELECT that it stands for; PostgreSQL locks them as they are fetched. They
//! become constants of a cursor on the home shard. A second one there has the keys of the same rows and is moved whenever the first one
//! is, so that it tells at which row that is. `WHERE CURRENT OF` becomes a condition on that row's key: its row is locked, so the key is
//! its own until this transaction changes it.
//!
//! PostgreSQL leaves out rows that the transaction itself has changed, by other statements, before they were fetched. Such a cursor does not go
//! on after a statement that may have changed its tables otherwise.

use super::forward::no_block;
use super::stored::with_position;
use super::{Mode, Problem, Session, Unit};
use pgherd_model::{Name, Resolved, ServerError, SqlState, Table, quote_identifier, quote_literal};
use pgherd_sql::lexer::{Token, TokenKind, depths};
use pgherd_sql::{Instead, Kind};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// What is known of such a cursor.
pub(crate) struct LockedCursor {
    /// the sharded tables that it reads
    reads: Vec<Name>,
    /// all names in its query
    words: HashSet<String>,
    /// where its rows are plainly those of one table: that, and the key that tells one from another
    keyed: Option<(Name, Vec<(String, String)>)>,
    /// the row that it is at may have got another key
    rekeyed: bool,
    /// rows that were not fetched yet may have been changed
    changed: bool,
}

/// A query of one table with the keys of its rows behind its columns.
struct Keyed {
    text: String,
    table: Name,
    /// the key's columns with their types
    key: Vec<(String, String)>,
}

/// Rows that have been locked and read.
struct LockedRows {
    /// the names of the query's columns
    columns: Vec<String>,
    /// the rows as constants, with keys behind the query's columns
    relation: String,
    /// what its columns are called there
    names: Vec<String>,
    keyed: Option<Keyed>,
}

impl LockedRows {
    /// The cursor over the rows, and that over their keys.
    fn declare_sql(&self, name: &str, head: &str) -> String {
        let (columns, keys) = self.names.split_at(self.columns.len());
        let list = self.columns.iter().zip(columns);
        let list: Vec<_> = list
            .map(|(column, own)| format!("{own} AS {}", quote_identifier(column)))
            .collect();
        let is_binary = |word: &str| word.eq_ignore_ascii_case("binary");
        let binary = match head.split_ascii_whitespace().any(is_binary) {
            true => "BINARY ",
            false => "",
        };
        let rows = &self.relation;
        let mut sql = format!(
            "DECLARE {} {binary}NO SCROLL CURSOR FOR SELECT {} FROM {rows}",
            quote_identifier(name),
            list.join(", ")
        );
        if self.keyed.is_some() {
            sql.push_str(&format!(
                "; DECLARE {} SCROLL CURSOR FOR SELECT {} FROM {rows}",
                quote_identifier(&of_keys(name)),
                keys.join(", ")
            ));
        }
        sql
    }
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
        (name, head): (&str, &str),
        reads: Vec<Name>,
    ) -> Result<(), Problem> {
        // PostgreSQL knows which cursors cannot lock rows.
        if let Some(Err(error)) = self.read_apart(&unit.statement.text, unit.types).await {
            return Err(error.into());
        }
        let before = head.chars().count() as u32;
        let behind = |problem| with_position(problem, |position| position.map(|p| p + before));
        let locked = self.lock_and_read(query).await.map_err(behind)?;
        let sql = locked.declare_sql(name, head);
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        open.transaction.participant(home).await?.simple(&sql).await?;
        open.place_cursor(name, home);
        let tokens = query.statement.parsed.tokens.iter();
        let words = tokens.filter_map(|t| t.identifier(&query.statement.text)).collect();
        let cursor = LockedCursor {
            reads,
            words,
            keyed: locked.keyed.map(|keyed| (keyed.table, keyed.key)),
            rekeyed: false,
            changed: false,
        };
        open.locked_cursors.insert(name.to_owned(), cursor);
        if matches!(query.mode, Mode::Extended { .. }) && query.mode.describes() {
            self.client.put(b'n', &[]);
        }
        self.client.put_tag("DECLARE CURSOR");
        Ok(())
    }

    /// Locks the rows of such a query, and reads them with their keys.
    async fn lock_and_read(&mut self, query: Unit<'_>) -> Result<LockedRows, Problem> {
        let snapshot = self.present_snapshot();
        let described = self.description(query, &snapshot).await?;
        let columns = described.columns.iter().flatten().map(|c| c.name.clone()).collect();
        let keyed = self.with_keys(query);
        let statements = match &keyed {
            Some(keyed) => Some(self.database.cache.parse(&keyed.text)?),
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
        let elsewhere = |problem| with_position(problem, |_| None);
        let all = self.description(part, &snapshot).await.map_err(elsewhere)?;
        let all = all.columns.clone().unwrap_or_default();
        let rows = self.rows_of(part).await.map_err(elsewhere)?;
        let rows = self.constants(&all, rows).await?;
        let names: Vec<_> = (0..all.len()).map(|i| format!("c{i}")).collect();
        Ok(LockedRows {
            columns,
            relation: format!("({rows}) AS pgherd_locked ({})", names.join(", ")),
            names,
            keyed,
        })
    }

    /// None where it is not plainly a query of one table with such a key.
    fn with_keys(&self, query: Unit<'_>) -> Option<Keyed> {
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
        Some(Keyed {
            text,
            table: table.name.clone(),
            key,
        })
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
        let has_keys = cursor.keyed.is_some();
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
        if has_keys {
            open.transaction.participant(home).await?.simple(&sql).await?;
        }
        Ok(())
    }

    /// Refuses to go on with a cursor some of whose rows PostgreSQL would leave out.
    pub(super) fn check_unchanged(&self, unit: Unit<'_>, name: &str) -> Result<(), ServerError> {
        let closes = matches!(unit.statement.parsed.kind, Kind::Close(_));
        let cursor = self.block.open().and_then(|open| open.locked_cursors.get(name));
        match cursor.is_some_and(|cursor| cursor.changed) && !closes {
            true => Err(ServerError::unsupported(
                "this cursor over several ranges, which locks its rows, cannot go on after its tables were changed",
                "Change the row that it is at with WHERE CURRENT OF.",
            )),
            false => Ok(()),
        }
    }

    /// Before a statement: notes which cursors it may change the rows of, and what is not sure any more.
    pub(super) fn note_changes(&mut self, unit: Unit<'_>) {
        self.forget_what_may_be_drawn(unit);
        let none = |open: &super::block::Open| open.locked_cursors.is_empty();
        if self.block.open().is_none_or(none) {
            return;
        }
        let changed = self.changed_by(unit);
        let Some(open) = self.block.open_mut() else { return };
        for cursor in open.locked_cursors.values_mut() {
            cursor.changed |= match &changed {
                Changed::Nothing => false,
                Changed::Anything => true,
                Changed::Table(table) => {
                    let acts_on = table.sharded().map_or(&[][..], |s| &s.acts_on);
                    cursor.reads.contains(&table.name) || acts_on.iter().any(|acted| cursor.reads.contains(acted))
                }
                Changed::Local(name) => cursor.words.contains(name),
            };
        }
    }

    fn changed_by(&self, unit: Unit<'_>) -> Changed {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
        let at = match &unit.statement.parsed.kind {
            Kind::Insert if word(0, "insert") => {
                // New rows are none of a cursor's.
                if !tokens.iter().any(|t| t.is_word(text, "conflict")) {
                    return Changed::Nothing;
                }
                2
            }
            Kind::Update if word(0, "update") => 1,
            Kind::Delete if word(0, "delete") => 2,
            Kind::Merge if word(0, "merge") => 2,
            Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge | Kind::Ddl(_) | Kind::Do => {
                return Changed::Anything;
            }
            Kind::Select { writes: true, .. } | Kind::CallPgherd { .. } => return Changed::Anything,
            _ => return Changed::Nothing,
        };
        let Some(named) = Named::read(text, tokens, at) else {
            return Changed::Anything;
        };
        let path = &self.settings.search_path;
        let snapshot = self.present_snapshot();
        match snapshot.resolve(named.schema.as_deref(), &named.name, path) {
            _ if self.temporary.contains(&named.name) => Changed::Local(named.name),
            Resolved::Known(table) if table.sharded().is_some() => Changed::Table(table),
            Resolved::Known(_) => Changed::Anything,
            Resolved::Home => Changed::Local(named.name),
        }
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
            let is_open = open.cursors.contains_key(&name) || self.portals.contains_key(&name);
            let is_open = is_open || self.held_cursors.contains_key(&name);
            return match target_of(text, tokens) {
                Some(named) if !is_open && self.sharded_table(&named).is_some() => Err(ServerError::new(
                    SqlState::from_code("34000"),
                    format!("cursor \"{name}\" does not exist"),
                )
                .into()),
                _ => Ok(None),
            };
        };
        let Some((of, key)) = cursor.keyed.clone() else {
            return Err(not_here("Its rows are not those of one table with a key.").into());
        };
        if cursor.rekeyed || cursor.changed {
            return Err(not_here("The row may have been changed in another way since it was fetched.").into());
        }
        let named = target_of(text, tokens).ok_or_else(|| not_here("Its form is not understood."))?;
        let table = self.sharded_table(&named).filter(|table| table.name == of);
        let Some(table) = table else {
            return Err(ServerError::new(
                SqlState::from_code("24000"),
                format!(
                    "cursor \"{name}\" does not have a FOR UPDATE/SHARE reference to table \"{}\"",
                    named.name
                ),
            )
            .into());
        };
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
        let acts_on = table.sharded().map_or(&[][..], |s| &s.acts_on);
        for (own, cursor) in &mut open.locked_cursors {
            let is_it = *own == name;
            cursor.rekeyed |= is_it && key.iter().any(|(column, _)| mentions(column));
            // Of this one's own rows, only the one that was fetched is changed.
            cursor.changed |= !is_it && cursor.reads.contains(&table.name);
            cursor.changed |= acts_on.iter().any(|acted| cursor.reads.contains(acted));
        }
        Ok(Some(Instead::new(text, &[(place, condition.join(" AND "))])))
    }
}

/// What a statement may change.
enum Changed {
    Nothing,
    Anything,
    /// a sharded table
    Table(Arc<Table>),
    /// a relation of the home shard, by its name
    Local(String),
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

/// What an UPDATE or DELETE without WITH changes.
fn target_of(text: &str, tokens: &[Token]) -> Option<Named> {
    let first = 1 + usize::from(tokens.get(1).is_some_and(|t| t.is_word(text, "from")));
    Named::read(text, tokens, first)
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
