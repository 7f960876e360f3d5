//! Numbers that an INSERT into a table of the home shard draws for its defaults.
//!
//! Such a statement runs on whatever connection is free, so what `currval()` and `lastval()` have to say afterwards is asked for in
//! the same message, and noted with the numbers of sharded tables ([`super::sequences`]). That is only done where the text and
//! the table leave no doubt that a number is drawn: what the connection said else might be another session's. What is in doubt
//! leaves nothing to be sure of. RETURNING gives the client its number, so nothing is asked for it.

use super::enter::Entered;
use super::{Problem, Session, Unit};
use crate::local_defaults::{Draws, LocalTable, Written};
use pgherd_model::{ServerError, quote_literal};
use pgherd_shards::{Backend, SimpleResult};
use pgherd_sql::lexer::Token;
use pgherd_sql::locks::names_called;
use pgherd_sql::{Kind, Part};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};

/// What to ask a connection for behind an INSERT.
pub(crate) struct Asked {
    sequences: Vec<String>,
    table: Arc<LocalTable>,
}

/// What is known of an INSERT before it runs.
enum Numbers {
    /// it draws none
    None,
    /// it draws these, and its triggers may draw others
    Of(Vec<String>),
    /// it may draw some
    Unsure,
}

impl Session {
    /// Before a statement: what may draw numbers that the session does not see leaves nothing to be sure of.
    pub(super) fn forget_what_may_be_drawn(&mut self, unit: Unit<'_>) {
        if !self.drawn.has_some() || self.who.pin.is_some() {
            return;
        }
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let word = |word: &str| tokens.iter().any(|t| t.is_word(text, word));
        let calls_others = || calls_others(text, tokens) && self.may_use_sequences(text, tokens);
        let may_draw = match &unit.statement.parsed.kind {
            Kind::Do | Kind::Call | Kind::Merge | Kind::Ddl(_) | Kind::Select { writes: true, .. } => true,
            Kind::Copy(shape) => shape.from,
            Kind::Explain { .. } => word("analyze"),
            Kind::Update => word("default") || calls_others(),
            Kind::Select { .. } | Kind::Insert | Kind::Delete | Kind::Declare { .. } => calls_others(),
            _ => false,
        };
        if may_draw {
            self.drawn.forget();
        }
    }

    /// Whether one of the functions called is not known to leave sequences alone. Where there are sharded tables, those that do not are known.
    fn may_use_sequences(&self, text: &str, tokens: &[Token]) -> bool {
        let snapshot = self.present_snapshot();
        let uses = |name: &String| {
            let of = [
                &snapshot.home_functions,
                &snapshot.watched_functions,
                &snapshot.unsafe_functions,
            ];
            of.iter().any(|names| names.contains(name))
        };
        snapshot.sharded().next().is_none() || names_called(text, tokens).is_none_or(|names| names.iter().any(uses))
    }

    /// What a change of a table of the home shard will have drawn; None where nothing is to be asked.
    pub(super) async fn numbers_of_change(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        part: &Part,
    ) -> Result<Option<Asked>, Problem> {
        let kind = &unit.statement.parsed.kind;
        let is_insert = *kind == Kind::Insert;
        let draws = is_insert || matches!(kind, Kind::Update | Kind::Delete) && self.drawn.has_some();
        let is_local = draws && !entered.analysis.touches_sharded && part.shard == self.gateway.shards.home();
        // On its own connection, PostgreSQL remembers.
        if !is_local || self.who.pin.is_some() {
            return Ok(None);
        }
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        if !is_insert {
            let named = changed_table(text, tokens);
            let table = match &named {
                Some(named) => self.local_table(entered, named).await?,
                None => None,
            };
            if table.is_none_or(|table| table.has_triggers) {
                self.drawn.forget();
            }
            return Ok(None);
        }
        let returns = entered.analysis.returning || tokens.iter().any(|t| t.is_word(text, "returning"));
        if returns && !self.drawn.has_some() {
            return Ok(None);
        }
        let Some(insert) = Insert::read(text, tokens) else {
            self.drawn.forget();
            return Ok(None);
        };
        let Some(table) = self.local_table(entered, &insert.table).await? else {
            return Ok(None);
        };
        let numbers = match insert.numbers(&table) {
            Numbers::None if table.has_triggers => Numbers::Unsure,
            numbers => numbers,
        };
        match numbers {
            Numbers::None => Ok(None),
            Numbers::Of(sequences) if !returns => Ok(Some(Asked { sequences, table })),
            Numbers::Of(_) | Numbers::Unsure => {
                self.drawn.forget();
                Ok(None)
            }
        }
    }

    /// The table's columns with what their defaults draw. Kept until a schema change that this gateway knows of.
    async fn local_table(
        &mut self,
        entered: &Entered,
        named: &Written,
    ) -> Result<Option<Arc<LocalTable>>, ServerError> {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let who = (&self.who.role, self.settings.fingerprint());
        let version = self.schema_version(entered.snapshot.epoch.0) ^ HASHER.hash_one(who);
        if let Some(known) = self.database.local_defaults.get(version, named) {
            return Ok(Some(known));
        }
        let results = self.ask_home(&LocalTable::question(named)).await?;
        let table = results.first().and_then(LocalTable::from_answer).map(Arc::new);
        let is_own = self.block.open().is_some_and(|open| open.has_changed_schema);
        if let Some(table) = table.as_ref().filter(|_| !is_own) {
            self.database.local_defaults.note(version, named.clone(), table.clone());
        }
        Ok(table)
    }

    /// Notes what the connection said behind the INSERT, which has succeeded.
    pub(super) fn note_local_numbers(&mut self, asked: &Asked, results: &[SimpleResult]) {
        let numbers = results.first().and_then(|r| r.text(0, 0)).unwrap_or_default();
        let numbers: Option<Vec<i64>> = numbers.split(' ').map(|number| number.parse().ok()).collect();
        // What triggers drew besides, nobody knows.
        if asked.table.has_triggers || numbers.is_none() {
            self.drawn.forget();
        }
        if let Some((last, numbers)) = numbers.as_deref().and_then(<[i64]>::split_first) {
            let of = asked.sequences.iter().cloned().zip(numbers.iter().copied());
            self.drawn.note_local(of, *last);
        }
    }
}

impl Asked {
    /// Puts the question behind the INSERT. In a block, an error of its own would fail what the client has begun.
    pub(super) fn put(&self, backend: &mut Backend, in_block: bool) -> Result<(), Problem> {
        let names: Vec<_> = self.sequences.iter().map(|name| quote_literal(name)).collect();
        let question = match in_block {
            true => format!("SELECT pgherd.drawn(ARRAY[{}]::pg_catalog.text[])", names.join(", ")),
            false => {
                let each = names.iter().map(|name| format!(", pg_catalog.currval({name})"));
                let each: String = each.collect();
                format!("SELECT pg_catalog.concat_ws(' ', pg_catalog.lastval(){each})")
            }
        };
        Ok(backend.queue_query(&question)?)
    }
}

/// What follows a column list, or stands in its place.
const SOURCES: [&str; 6] = ["values", "select", "default", "overriding", "with", "table"];

/// An INSERT's text, as far as it says which columns get values.
struct Insert {
    /// the table as written
    table: Written,
    columns: Option<Vec<String>>,
    source: Source,
}

enum Source {
    /// DEFAULT VALUES
    Defaults,
    /// VALUES: how many a row has, and the places where DEFAULT stands in one of them
    Values { width: usize, defaults: Vec<usize> },
    /// a query, which may have no rows
    Query,
}

impl Insert {
    fn read(text: &str, tokens: &[Token]) -> Option<Self> {
        let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
        let symbol = |at: usize, symbol: &str| tokens.get(at).is_some_and(|t| t.is(text, symbol));
        let identifier = |at: usize| tokens.get(at).and_then(|t| t.identifier(text));
        if !word(0, "insert") || !word(1, "into") {
            return None;
        }
        let (table, mut at) = read_name(text, tokens, 2)?;
        if word(at, "as") {
            at += 2;
        }
        let mut columns = None;
        let has_list = symbol(at, "(") && !SOURCES.iter().any(|w| word(at + 1, w)) && !symbol(at + 1, "(");
        if has_list {
            let mut names = Vec::new();
            loop {
                names.push(identifier(at + 1)?);
                at += 2;
                // Not a part of a column.
                if symbol(at, ")") {
                    break;
                } else if !symbol(at, ",") {
                    return None;
                }
            }
            columns = Some(names);
            at += 1;
        }
        let source = if word(at, "default") && word(at + 1, "values") {
            Source::Defaults
        } else if word(at, "values") {
            let (width, defaults) = rows_of_values(text, &tokens[at + 1..])?;
            Source::Values { width, defaults }
        } else if word(at, "overriding") {
            return None;
        } else {
            Source::Query
        };
        Some(Self { table, columns, source })
    }

    /// What it draws from this table's sequences.
    fn numbers(&self, table: &LocalTable) -> Numbers {
        let (width, defaults) = match &self.source {
            Source::Defaults => (0, &[][..]),
            Source::Values { width, defaults } => (*width, &defaults[..]),
            Source::Query => (table.columns.len(), &[][..]),
        };
        let mut sequences = Vec::new();
        for (i, (name, draws)) in table.columns.iter().enumerate() {
            let place = match &self.columns {
                Some(columns) => columns.iter().position(|column| column == name),
                None => Some(i).filter(|i| *i < width),
            };
            if place.is_some_and(|place| !defaults.contains(&place)) {
                continue;
            }
            match draws {
                Draws::Nothing => {}
                Draws::From(sequence) if !matches!(self.source, Source::Query) => sequences.push(sequence.clone()),
                Draws::From(_) | Draws::Perhaps => return Numbers::Unsure,
            }
        }
        match (sequences.is_empty(), &self.source, &self.columns) {
            // It may have fewer columns than the table.
            (_, Source::Query, None) if table.draws() => Numbers::Unsure,
            (true, ..) => Numbers::None,
            _ => Numbers::Of(sequences),
        }
    }
}

/// Whether it may call a function of a user's, which may draw.
fn calls_others(text: &str, tokens: &[Token]) -> bool {
    let is_insert = tokens.first().is_some_and(|t| t.is_word(text, "insert"));
    // The table of an INSERT stands before its columns as a function before its arguments.
    let behind = match read_name(text, tokens, 2) {
        Some((_, behind)) if is_insert => behind,
        _ => 0,
    };
    !pgherd_sql::calls_builtins_only(text, &tokens[behind..])
}

/// A table's name at a place, and the place behind it.
fn read_name(text: &str, tokens: &[Token], at: usize) -> Option<(Written, usize)> {
    let identifier = |at: usize| tokens.get(at).and_then(|t| t.identifier(text));
    let name = identifier(at)?;
    match tokens.get(at + 1).is_some_and(|t| t.is(text, ".")) {
        true => Some(((Some(name), identifier(at + 2)?), at + 3)),
        false => Some(((None, name), at + 1)),
    }
}

/// The table that an UPDATE or DELETE without WITH names.
fn changed_table(text: &str, tokens: &[Token]) -> Option<Written> {
    let word = |at: usize, word: &str| tokens.get(at).is_some_and(|t| t.is_word(text, word));
    let mut at = match (word(0, "update"), word(0, "delete") && word(1, "from")) {
        (true, _) => 1,
        (_, true) => 2,
        _ => return None,
    };
    if word(at, "only") {
        at += 1;
    }
    read_name(text, tokens, at).map(|(table, _)| table)
}

/// The number of values in a row, and the places of those that are DEFAULT in any.
fn rows_of_values(text: &str, tokens: &[Token]) -> Option<(usize, Vec<usize>)> {
    let (mut depth, mut place, mut width, mut defaults) = (0_usize, 0, 0, Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match depth {
            0 if token.is(text, "(") => (depth, place) = (1, 0),
            0 if token.is(text, ",") => {}
            0 => break,
            _ if token.is(text, "(") || token.is(text, "[") => depth += 1,
            _ if token.is(text, ")") || token.is(text, "]") => {
                depth -= 1;
                if depth == 0 {
                    width = place + 1;
                }
            }
            1 if token.is(text, ",") => place += 1,
            1 if token.is_word(text, "default")
                && tokens.get(i + 1).is_some_and(|t| t.is(text, ",") || t.is(text, ")")) =>
            {
                defaults.push(place);
            }
            _ => {}
        }
    }
    (width > 0).then_some((width, defaults))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Option<Vec<String>> {
        let columns = [
            ("id", Draws::From("s".into())),
            ("n", Draws::Nothing),
            ("other", Draws::From("o".into())),
        ];
        let table = LocalTable {
            has_triggers: false,
            columns: columns.map(|(name, draws)| (name.to_owned(), draws)).into(),
        };
        let tokens = pgherd_sql::lexer::tokenize(text).unwrap();
        match Insert::read(text, &tokens)?.numbers(&table) {
            Numbers::None => Some(Vec::new()),
            Numbers::Of(sequences) => Some(sequences),
            Numbers::Unsure => None,
        }
    }

    #[test]
    fn columns_without_a_value_draw() {
        assert_eq!(numbers("INSERT INTO t DEFAULT VALUES").unwrap(), ["s", "o"]);
        assert_eq!(
            numbers("INSERT INTO a.t AS b (n) VALUES (1), (f(1, 2))").unwrap(),
            ["s", "o"]
        );
        assert_eq!(
            numbers("INSERT INTO t VALUES (DEFAULT, ARRAY[1, 2]) ON CONFLICT DO NOTHING").unwrap(),
            ["s", "o"]
        );
        assert_eq!(
            numbers("INSERT INTO t VALUES (1, 2, 3), (1, 2, DEFAULT)").unwrap(),
            ["o"]
        );
        assert_eq!(numbers("INSERT INTO t (other, id) VALUES (1, $1)").unwrap(), [""; 0]);
    }

    #[test]
    fn queries_are_not_sure_to_draw() {
        assert_eq!(numbers("INSERT INTO t (n) SELECT 1"), None);
        assert_eq!(numbers("INSERT INTO t SELECT 1"), None);
        assert_eq!(numbers("INSERT INTO t (id, n, other) SELECT 1, 2, 3").unwrap(), [""; 0]);
        assert_eq!(
            numbers("INSERT INTO t (id, n, other) OVERRIDING USER VALUE VALUES (1, 2, 3)"),
            None
        );
        assert_eq!(numbers("WITH x AS (SELECT 1) INSERT INTO t DEFAULT VALUES"), None);
    }
}
