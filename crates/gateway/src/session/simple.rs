//! The simple protocol: a text of one or several statements, all of them one implicit transaction where several.

use super::syntax::is_doubtful;
use super::{Problem, Session, Unit};
use crate::template::Template;
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::Kind;
use pgherd_sql::plain_escapes::Explicit;

impl Session {
    /// Runs a Query message and ends with ReadyForQuery.
    pub(crate) async fn simple_query(&mut self, text: &str) -> Result<(), Problem> {
        self.cancel.standing.begin(text);
        self.close_portal("").await?;
        let explicit = self.explicit_escapes(text);
        let text = explicit.as_ref().map_or(text, |e| &e.text);
        match self.run_text(text).await {
            Ok(()) => {}
            Err(Problem::Error(error)) => {
                let position = error.fields().position;
                let of_client = explicit.as_ref().and_then(|e| Some(e.map_position(position?)));
                self.fail(error.with_position(of_client.or(position))).await?;
            }
            Err(other) => return Err(other),
        }
        // An implicit block ends with the message, like the portals of a session without a block.
        if let Err(problem) = self.end_implicit().await {
            match problem {
                Problem::Error(error) => self.client.put_error(&error),
                other => return Err(other),
            }
        }
        self.put_notifications();
        self.convert_replies().await?;
        self.put_ready();
        Ok(())
    }

    /// A client's text with the escapes of its strings made explicit, where they are not so by default. PostgreSQL's warnings are said.
    pub(crate) fn explicit_escapes(&mut self, text: &str) -> Option<Explicit> {
        if !self.settings.escapes_in_strings {
            return None;
        }
        let explicit = pgherd_sql::plain_escapes::explicit(text)?;
        if self.settings.warns_of_escapes {
            for warning in &explicit.warnings {
                self.put_notice(warning);
            }
        }
        Some(explicit)
    }

    /// Runs the text by its template, parsed and analysed for all texts alike; false where it takes the whole text.
    async fn run_by_template(&mut self, text: &str) -> Result<bool, Problem> {
        let Some(template) = Template::of(text) else {
            return Ok(false);
        };
        let Ok(statements) = self.database.cache.parse(&template.pattern) else {
            return Ok(false);
        };
        let [statement] = &statements[..] else { return Ok(false) };
        let plain = matches!(
            statement.parsed.kind,
            Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete
        );
        if !plain || statement.parsed.ast.is_none() || statement.is_about_session() {
            return Ok(false);
        }
        if self.block.is_failed() {
            return Ok(false);
        }
        let unit = Unit {
            template: Some(&template),
            ..Unit::plain(statement)
        };
        let mark = self.mark();
        self.note_changes(unit);
        let result = self.routed(unit).await;
        let result = self.end_statement(result).await;
        match self.end_block_for_one(result).await {
            Err(Problem::NeedsWholeText) => Ok(false),
            Err(Problem::Error(error)) if self.runs_without_setting(&error, mark) => Ok(false),
            other => other.map(|()| true),
        }
    }

    async fn run_text(&mut self, text: &str) -> Result<(), Problem> {
        if self.run_by_template(text).await? {
            return Ok(());
        }
        let statements = self.database.cache.parse(text)?;
        if statements.is_empty() {
            self.client.put(b'I', &[]);
            return Ok(());
        }
        let several = statements.len() > 1;
        if several && statements.iter().any(|s| is_doubtful(&s.parsed)) {
            self.check_syntax(text).await?;
        }
        for statement in statements.iter() {
            if several {
                self.begin_implicit(&statement.parsed.kind);
            }
            let unit = Unit::plain(statement);
            match self.run(unit).await {
                Err(Problem::Error(error)) => {
                    let error = at_semicolon(shift(error, statement.offset_chars), text);
                    return Err(Problem::Error(error));
                }
                other => other?,
            }
            self.client.flush_if_large().await?;
        }
        Ok(())
    }

    /// Puts the replies into the client's encoding. What has no equivalent there is the statement's error, in place of them.
    pub(crate) async fn convert_replies(&mut self) -> Result<(), Problem> {
        match self.client.convert() {
            Ok(()) => Ok(()),
            Err(error) => self.fail(error).await,
        }
    }

    /// An error ends what is implicit and fails what is explicit.
    pub(crate) async fn fail(&mut self, error: ServerError) -> Result<(), Problem> {
        let mut error = match self.cancel.slot.is_terminated() {
            true => super::own_state::terminated(),
            false => survive(error),
        };
        if self.block.open().is_some() && is_lost_shard(&error) {
            error = lost_in_block(&error);
        }
        hide_own_context(&mut error);
        metrics::counter!("pgherd_errors_total", "sqlstate" => error.sqlstate().to_string()).increment(1);
        let fatal = error.fields().severity == "FATAL";
        self.client.put_error(&error);
        self.block.fail();
        if let Some(open) = self.block.open_mut() {
            open.transaction.fail().await;
            // Nobody has to wait any more for what it was about to change.
            if open.transaction.is_lost() {
                super::block::finish_change(open.change.take()).await;
            }
        }
        self.undo_settings().await;
        if fatal {
            self.client.flush().await?;
            return Err(Problem::Gone);
        }
        Ok(())
    }
}

/// A shard that goes down ends its own connection (FATAL), not the client's: that one can roll back and go on. Only a
/// session that is idle in its transaction for too long is ended, whoever notices. Errors of
/// shards say in which source file they were raised; those of the gateway do not.
fn survive(error: ServerError) -> ServerError {
    let fields = error.fields();
    let of_session = fields.code == SqlState::IDLE_IN_TRANSACTION_TIMEOUT;
    if fields.severity == "ERROR" || fields.other.is_empty() || of_session {
        return error;
    }
    ServerError::new(SqlState::CONNECTION_FAILURE, "a shard ended its connection")
        .with_detail(format!(
            "It said: {}: {} ({})",
            fields.severity, fields.message, fields.code
        ))
        .with_hint("Roll back and try again; pgherd.shards shows the shards.")
}

/// Whether it says, in our words, that the connection to a shard was lost.
fn is_lost_shard(error: &ServerError) -> bool {
    let fields = error.fields();
    fields.code == SqlState::CONNECTION_FAILURE && fields.severity == "ERROR" && fields.other.is_empty()
}

/// In a block nothing of it has been committed, and nothing can be: the client, whose own connection is as good as ever, may
/// repeat it. Outside of one, nobody knows whether the statement took effect.
fn lost_in_block(error: &ServerError) -> ServerError {
    let cause = error.fields().detail.as_deref().unwrap_or(&error.fields().message);
    ServerError::new(
        SqlState::SERIALIZATION_FAILURE,
        "the connection to a shard was lost; the transaction was rolled back on all shards",
    )
    .with_detail(cause)
    .with_hint("Run the transaction again; pgherd.shards shows the shards.")
}

/// The functions of schema `pgherd` that stand for PostgreSQL's own are no part of what the client called: an error's
/// context, the innermost first, begins behind them.
fn hide_own_context(error: &mut ServerError) {
    let fields = &mut error.fields_mut().other;
    for (_, context) in fields.iter_mut().filter(|(letter, _)| *letter == b'W') {
        let lines: Vec<_> = context.split('\n').collect();
        let is_own = |line: &&str| line.starts_with("PL/pgSQL function pgherd.");
        if let Some(last) = lines.iter().rposition(is_own) {
            *context = lines[last + 1..].join("\n");
        }
    }
    fields.retain(|(letter, text)| *letter != b'W' || !text.is_empty());
}

/// A position within a statement becomes one within the whole text.
pub(crate) fn shift(error: ServerError, characters: u32) -> ServerError {
    let position = error.fields().position.map(|p| p + characters);
    error.with_position(position)
}

/// Statements go to shards without the `;` and the blanks behind them. Where one is incomplete, PostgreSQL would have come across
/// them.
pub(crate) fn at_semicolon(mut error: ServerError, text: &str) -> ServerError {
    const AT_END: &str = "syntax error at end of input";
    if error.sqlstate() != SqlState::SYNTAX_ERROR || error.fields().message != AT_END {
        return error;
    }
    let before = error.fields().position.map_or(0, |p| p.saturating_sub(1) as usize);
    let at = text.char_indices().nth(before).map_or(text.len(), |(at, _)| at);
    let next = pgherd_sql::lexer::tokenize(&text[at..])
        .ok()
        .and_then(|tokens| tokens.first().copied());
    if let Some(semicolon) = next.filter(|token| token.is(&text[at..], ";")) {
        let skipped = text[at..at + semicolon.start as usize].chars().count();
        error.fields_mut().message = "syntax error at or near \";\"".to_owned();
        error = error.with_position(Some((before + skipped + 1) as u32));
    } else if next.is_none() && error.fields().position.is_some() {
        error = error.with_position(Some(text.chars().count() as u32 + 1));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incomplete_statement_ends_at_its_semicolon() {
        let at_end = |position| {
            ServerError::new(SqlState::SYNTAX_ERROR, "syntax error at end of input").with_position(Some(position))
        };
        let told = at_semicolon(at_end(12), "delete from /* ä; */ ; select 1");
        assert_eq!(
            (told.fields().message.as_str(), told.fields().position),
            ("syntax error at or near \";\"", Some(22))
        );
        assert_eq!(at_semicolon(at_end(12), "delete from"), at_end(12));
        assert_eq!(at_semicolon(at_end(12), "delete from \n"), at_end(14));
    }

    #[test]
    fn functions_of_pgherd_are_no_context() {
        let of = |context: &str| {
            let body = format!("SERROR\0C55000\0Mlastval is not yet defined\0W{context}\0\0");
            let mut error = ServerError::from_body(body.as_bytes());
            hide_own_context(&mut error);
            let left = error.fields().other.iter().find(|(letter, _)| *letter == b'W');
            left.map(|(_, text)| text.clone())
        };
        assert_eq!(of("PL/pgSQL function pgherd.lastval() line 5 at RETURN"), None);
        let inside = "PL/pgSQL function pgherd.lastval() line 5 at RETURN\nPL/pgSQL function f() line 2 at RETURN";
        assert_eq!(of(inside).as_deref(), Some("PL/pgSQL function f() line 2 at RETURN"));
        let of_user = "PL/pgSQL function f() line 2 at RETURN";
        assert_eq!(of(of_user).as_deref(), Some(of_user));
    }

    #[test]
    fn a_shards_end_is_not_the_sessions() {
        let body = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0Fpostgres.c\0\0";
        let told = survive(ServerError::from_body(body));
        assert_eq!(
            (told.fields().severity.as_str(), told.sqlstate()),
            ("ERROR", SqlState::CONNECTION_FAILURE)
        );
        let ours = ServerError::new(SqlState::CANNOT_CONNECT_NOW, "lease").fatal();
        assert_eq!(survive(ours.clone()), ours);
    }
}
