//! Running one piece of SQL of a block, and what comes of it.

use super::not_run;
use super::run::Machine;
use crate::messages::Messages;
use crate::session::{Problem, Session, Unit};
use bytes::Bytes;
use pgherd_model::ServerError;
use pgherd_shards::{parse_data_row, parse_row_description};
use pgherd_sql::Kind;
use pgherd_sql::plpgsql::{Bound, NotUnderstood};

/// SQL of a block, for errors.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    /// `SQL statement`, `SQL expression` or `PL/pgSQL assignment`
    pub(super) what: &'static str,
    /// as the block has it
    pub(super) sql: &'a str,
    /// characters that stand before it in what is run, less those before it there that are shown
    pub(super) added: u32,
}

impl<'a> Words<'a> {
    pub(super) fn statement(sql: &'a str) -> Self {
        Self {
            what: "SQL statement",
            sql,
            added: 0,
        }
    }

    pub(super) fn expression(sql: &'a str) -> Self {
        Self {
            what: "SQL expression",
            sql,
            added: "SELECT ".len() as u32,
        }
    }

    /// As PostgreSQL tells it: with a position in the block's SQL, or with that in the context. The error's position counts in the
    /// statement that these words are of.
    pub(super) fn tell(&self, error: &mut ServerError) {
        match error.fields().position {
            Some(position) => {
                let fields = &mut error.fields_mut().other;
                fields.push((b'p', position.saturating_sub(self.added).to_string()));
                fields.push((b'q', self.sql.to_owned()));
            }
            None => add_line(error, format!("{} \"{}\"", self.what, self.sql)),
        }
    }
}

/// One more line of context, the outermost so far.
pub(super) fn add_line(error: &mut ServerError, line: String) {
    let fields = &mut error.fields_mut().other;
    match fields.iter_mut().find(|(letter, _)| *letter == b'W') {
        Some((_, context)) => *context = format!("{context}\n{line}"),
        None => fields.push((b'W', line)),
    }
}

/// Whether a statement may change the session's settings: by its own words, or in a function.
fn may_change_settings(text: &str) -> bool {
    let tokens = pgherd_sql::lexer::tokenize(text).unwrap_or_default();
    let words = ["set", "reset", "discard"];
    tokens
        .iter()
        .any(|token| token.is(text, "(") || words.iter().any(|word| token.is_word(text, word)))
}

/// What a statement gave.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// name and type's OID
    pub(super) columns: Vec<(String, u32)>,
    pub(super) rows: Vec<Vec<Option<String>>>,
    /// rows come with it, if only none
    pub(super) returns_rows: bool,
    pub(super) tag: String,
}

impl Answer {
    /// Whether it is about rows, and so says whether any were found.
    pub(super) fn handles_rows(&self) -> bool {
        self.returns_rows || self.tag.ends_with(|c: char| c.is_ascii_digit())
    }

    /// How many rows it returned or changed.
    pub(super) fn count(&self) -> u64 {
        let count = self.tag.rsplit(' ').next().and_then(|n| n.parse().ok());
        count.unwrap_or(self.rows.len() as u64)
    }
}

impl Session {
    /// Runs SQL of the block; what it says has the block's words.
    pub(super) async fn run_told(
        &mut self,
        machine: &mut Machine,
        bound: &Bound,
        words: Words<'_>,
    ) -> Result<Answer, Problem> {
        let mark = self.client.out.len();
        let run = self.run_inner(&bound.text).await;
        if may_change_settings(&bound.text) {
            machine.exact.clear();
        }
        let said = self.client.out.split_off(mark).freeze();
        self.put_said(machine, words, said);
        run.map_err(|problem| match problem {
            Problem::Error(error) => {
                let position = error.fields().position.map(|at| bound.map_position(at));
                let mut error = error.with_position(position);
                words.tell(&mut error);
                error.into()
            }
            other => other,
        })
    }

    /// What a statement said besides its answer goes to the client, with its place in the block.
    fn put_said(&mut self, machine: &Machine, words: Words<'_>, said: Bytes) {
        for (tag, message) in Messages(said) {
            match tag {
                b'N' => {
                    let mut notice = ServerError::from_body(&message[5..]).with_position(None);
                    words.tell(&mut notice);
                    machine.add_context(&mut notice);
                    self.client.put_notice(&notice);
                }
                _ => self.client.out.extend_from_slice(&message),
            }
        }
    }

    /// Runs SQL as the client's own would run, and keeps what it gives; what it says besides is put for the client.
    pub(super) async fn run_inner(&mut self, text: &str) -> Result<Answer, Problem> {
        let statements = self.database.cache.parse(text)?;
        let mut last = Answer::default();
        for statement in statements.iter() {
            let kind = &statement.parsed.kind;
            let ends = matches!(
                kind,
                Kind::Begin { .. }
                    | Kind::Commit { .. }
                    | Kind::Rollback { .. }
                    | Kind::Savepoint(_)
                    | Kind::RollbackTo(_)
                    | Kind::Release(_)
                    | Kind::PrepareTransaction(_)
            );
            if ends || matches!(kind, Kind::Copy(_) | Kind::Do) {
                let what = statement.text.split_whitespace().next().unwrap_or_default().to_owned();
                return Err(not_run(NotUnderstood(format!("It is {what}."))));
            }
            let unit = Unit::plain(statement);
            let (before, held) = (self.client.capture(), self.client.hold_tag());
            let run = Box::pin(self.run_by_kind(unit)).await;
            let run = self.end_statement(run).await;
            let tag = self.client.release_tag(held);
            let replies = self.client.captured(before).freeze();
            let mut answer = self.read_replies(replies);
            answer.tag = tag.unwrap_or_default();
            run?;
            last = answer;
        }
        Ok(last)
    }

    fn read_replies(&mut self, replies: Bytes) -> Answer {
        let mut answer = Answer::default();
        for (tag, message) in Messages(replies) {
            match tag {
                b'T' => {
                    answer.returns_rows = true;
                    let columns = parse_row_description(message.slice(5..));
                    answer.columns = columns.into_iter().map(|c| (c.name, c.type_oid)).collect();
                }
                b'D' => {
                    let text = |value: Bytes| String::from_utf8_lossy(&value).into_owned();
                    let row = parse_data_row(message.slice(5..));
                    answer.rows.push(row.into_iter().map(|value| value.map(text)).collect());
                }
                b'N' | b'S' | b'A' => self.client.out.extend_from_slice(&message),
                _ => {}
            }
        }
        answer
    }
}
