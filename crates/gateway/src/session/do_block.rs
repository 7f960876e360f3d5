//! DO blocks that are SQL statements only ([`pgherd_sql::do_block`]): run here one by one, so that each takes effect where it belongs, and
//! with PL/pgSQL's savepoints and error contexts. Other blocks run inside of the home shard.

use super::block::notice;
use super::{Mode, Problem, Session, Unit};
use bytes::Bytes;
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::{Action, DoBlock, Step};

/// What PL/pgSQL says about where in the block something happened.
struct Place<'a> {
    /// what the block has there
    sql: &'a str,
    /// how many characters stand before that in the statement that was run
    added: u32,
    /// `SQL statement` or `SQL expression`
    what: &'static str,
    line: usize,
    /// the name of the step
    at: &'static str,
}

impl Place<'_> {
    /// A position in the statement is one in a query inside of the block: the client's own text has none.
    fn tell(&self, mut error: ServerError) -> ServerError {
        let frame = format!("PL/pgSQL function inline_code_block line {} at {}", self.line, self.at);
        let position = error.fields().position;
        let inner = match position {
            Some(_) => frame,
            None => format!("{} \"{}\"\n{frame}", self.what, self.sql),
        };
        let fields = &mut error.fields_mut().other;
        match fields.iter_mut().find(|(letter, _)| *letter == b'W') {
            Some((_, context)) => *context = format!("{context}\n{inner}"),
            None => fields.push((b'W', inner)),
        }
        if let Some(position) = position {
            fields.push((b'p', position.saturating_sub(self.added).to_string()));
            fields.push((b'q', self.sql.to_owned()));
        }
        error.with_position(None)
    }
}

impl Session {
    /// Runs such a block; false where the DO is of another kind.
    pub(super) async fn do_block(&mut self, unit: Unit<'_>) -> Result<bool, Problem> {
        let Some(block) = pgherd_sql::do_block(&unit.statement.text, &unit.statement.parsed.tokens) else {
            return Ok(false);
        };
        if matches!(unit.mode, Mode::Extended { describe: true, .. }) {
            self.client.put(b'n', &[]);
        }
        let made = self.ensure_block();
        let result = self.run_do_block(&block).await.map(|()| Some("DO".to_owned()));
        self.finish_statement(made, result).await.map(|()| true)
    }

    async fn run_do_block(&mut self, block: &DoBlock) -> Result<(), Problem> {
        if block.handlers.is_empty() {
            return self.do_steps(&block.steps).await;
        }
        let savepoint = format!("pgherd block {}", self.block.open().map_or(0, |open| open.depth()));
        self.set_savepoint(&savepoint).await?;
        let error = match Box::pin(self.do_steps(&block.steps)).await {
            Ok(()) => return self.release_savepoint(&savepoint).await,
            Err(Problem::Error(error)) if error.fields().severity == "ERROR" => error,
            Err(other) => return Err(other),
        };
        let catches = |handler: &&pgherd_sql::Handler| handler.catches(error.sqlstate().code());
        let Some(handler) = block.handlers.iter().find(catches) else {
            return Err(error.into());
        };
        self.block.fail();
        if let Some(open) = self.block.open_mut() {
            open.transaction.fail().await;
        }
        self.back_to_savepoint(&savepoint).await?;
        self.release_savepoint(&savepoint).await?;
        Box::pin(self.do_steps(&handler.steps)).await
    }

    async fn do_steps(&mut self, steps: &[Step]) -> Result<(), Problem> {
        for Step { line, action } in steps {
            let place = |sql, at| Place {
                sql,
                added: 0,
                what: "SQL statement",
                line: *line,
                at,
            };
            match action {
                Action::Run(sql) => drop(self.do_statement(sql, &place(sql, "SQL statement")).await?),
                Action::Perform(sql) => drop(self.do_statement(sql, &place(sql, "PERFORM")).await?),
                Action::If(condition, then, otherwise) => {
                    let place = Place {
                        added: "SELECT ".len() as u32,
                        what: "SQL expression",
                        ..place(condition, "IF")
                    };
                    let value = self.do_statement(&format!("SELECT {condition}"), &place).await?;
                    let steps = if is_true(value.as_deref())? { then } else { otherwise };
                    Box::pin(self.do_steps(steps)).await?;
                }
                Action::Notice(message) => {
                    let mut told = notice("NOTICE", SqlState::SUCCESS, message);
                    let context = format!("PL/pgSQL function inline_code_block line {line} at RAISE");
                    told.fields_mut().other.push((b'W', context));
                    self.put_notice(&told);
                }
                Action::Block(block) => Box::pin(self.run_do_block(block)).await?,
            }
        }
        Ok(())
    }

    /// Runs one statement. Of its replies the client gets notices; the first value of the last row is returned.
    async fn do_statement(&mut self, sql: &str, place: &Place<'_>) -> Result<Option<Bytes>, Problem> {
        let statements = self.database.cache.parse(sql)?;
        let [statement] = &statements[..] else {
            return Err(ServerError::internal("a step of a DO block is not one statement").into());
        };
        let unit = Unit {
            statement,
            types: &[],
            parameters: &[],
            mode: Mode::Simple,
            template: None,
        };
        self.client.capture();
        let run = Box::pin(self.run_by_kind(unit)).await;
        let mut replies = self.client.captured().freeze();
        let run = self.end_statement(run).await;
        let mut value = None;
        while let [letter, a, b, c, d, ..] = replies[..] {
            let whole = 1 + u32::from_be_bytes([a, b, c, d]) as usize;
            let message = replies.split_to(whole.min(replies.len()));
            match letter {
                b'N' => self
                    .client
                    .put_notice(&place.tell(ServerError::from_body(&message[5..]))),
                b'D' => value = first_value(&message),
                _ => {}
            }
        }
        match run {
            Ok(()) => Ok(value),
            Err(Problem::Error(error)) => Err(place.tell(error).into()),
            Err(other) => Err(other),
        }
    }
}

/// The first value of a DataRow message; None for NULL.
fn first_value(message: &Bytes) -> Option<Bytes> {
    const START: usize = 11;
    let length = message.get(START - 4..START)?;
    let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
    let end = START + usize::try_from(length).ok()?;
    (end <= message.len()).then(|| message.slice(START..end))
}

/// What IF makes of a value.
fn is_true(value: Option<&[u8]>) -> Result<bool, ServerError> {
    match value {
        Some(b"t") => Ok(true),
        Some(b"f") | None => Ok(false),
        Some(_) => Err(ServerError::unsupported(
            "a condition of IF that is not boolean is not supported in a DO block here",
            "Cast it to boolean.",
        )),
    }
}
