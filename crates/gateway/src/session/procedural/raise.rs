//! RAISE and ASSERT, and the names of errors.

use super::run::Machine;
use super::values::Value;
use crate::session::{Problem, Session};
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::plpgsql::{Condition, Raise, Raised};

const SUCCESS: SqlState = SqlState::from_bytes(b"00000");
const RAISED: SqlState = SqlState::from_bytes(b"P0001");
const ASSERTION: SqlState = SqlState::from_bytes(b"P0004");
const NO_HANDLER: SqlState = SqlState::from_bytes(b"0Z002");
impl Session {
    /// RAISE: an error, or a message to the client.
    pub(super) async fn raise(&mut self, machine: &mut Machine, raise: &Raise) -> Result<(), Problem> {
        let is_error = raise.level == "EXCEPTION";
        let (mut code, mut message) = (None, None);
        match &raise.what {
            Raised::Again => {
                let again = machine.handled.last().cloned().ok_or_else(|| {
                    let message = "RAISE without parameters cannot be used outside an exception handler";
                    ServerError::new(NO_HANDLER, message)
                })?;
                return Err(again.into());
            }
            Raised::Text(format, values) => message = Some(self.formatted(machine, format, values).await?),
            Raised::Condition(condition) => {
                code = Some(self.code_of(condition).await?);
                message = Some(match condition {
                    Condition::Name(name) => name.clone(),
                    Condition::Code(code) => code.clone(),
                });
            }
            Raised::Options => {}
        }
        let mut told = ServerError::new(SUCCESS, "");
        for (option, expression) in &raise.options {
            let value =
                self.value_of(machine, expression).await?.text.ok_or_else(|| {
                    ServerError::new(super::values::NULL_VALUE, "RAISE statement option cannot be null")
                })?;
            match option.as_str() {
                "errcode" => code = Some(self.code_written(&value).await?),
                "message" => message = Some(value),
                "detail" => told.fields_mut().detail = Some(value),
                "hint" => told.fields_mut().hint = Some(value),
                other => {
                    let letter = match other {
                        "column" => b'c',
                        "constraint" => b'n',
                        "datatype" => b'd',
                        "table" => b't',
                        "schema" => b's',
                        _ => {
                            let message = format!("unrecognized RAISE statement option \"{other}\"");
                            return Err(ServerError::new(SqlState::SYNTAX_ERROR, message).into());
                        }
                    };
                    told.fields_mut().other.push((letter, value));
                }
            }
        }
        let fields = told.fields_mut();
        fields.code = match (code, raise.level.as_str()) {
            (Some(code), _) => code,
            (None, "EXCEPTION") => RAISED,
            (None, "WARNING") => SqlState::from_bytes(b"01000"),
            (None, _) => SUCCESS,
        };
        fields.message = message.unwrap_or_else(|| fields.code.code().to_owned());
        fields.severity = if is_error { "ERROR".into() } else { raise.level.clone() };
        if is_error {
            return Err(told.into());
        }
        machine.add_context(&mut told);
        self.put_notice(&told);
        Ok(())
    }

    /// ASSERT.
    pub(super) async fn assert(
        &mut self,
        machine: &mut Machine,
        condition: &str,
        message: Option<&String>,
    ) -> Result<(), Problem> {
        let checks = self.run_inner("SHOW plpgsql.check_asserts").await;
        let is_off = checks.is_ok_and(|answer| answer.rows.first().is_some_and(|row| row[0].as_deref() == Some("off")));
        if is_off || self.is_true(machine, condition).await? {
            return Ok(());
        }
        let message = match message {
            Some(expression) => self.value_of(machine, expression).await?.text,
            None => None,
        };
        let message = message.unwrap_or_else(|| "assertion failed".to_owned());
        Err(ServerError::new(ASSERTION, message).into())
    }

    /// The text with its values in place of `%`.
    async fn formatted(&mut self, machine: &mut Machine, format: &str, values: &[String]) -> Result<String, Problem> {
        let count = format.replace("%%", "").matches('%').count();
        if count != values.len() {
            let many = if count > values.len() { "few" } else { "many" };
            let message = format!("too {many} parameters specified for RAISE");
            return Err(ServerError::new(SqlState::SYNTAX_ERROR, message).into());
        }
        let mut texts = Vec::with_capacity(values.len());
        for value in values {
            let Value { text, .. } = self.value_of(machine, value).await?;
            texts.push(text.unwrap_or_else(|| "<NULL>".to_owned()));
        }
        let (mut out, mut texts) = (String::with_capacity(format.len()), texts.into_iter());
        let mut letters = format.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '%' if letters.peek() == Some(&'%') => {
                    letters.next();
                    out.push('%');
                }
                '%' => out.extend(texts.next()),
                other => out.push(other),
            }
        }
        Ok(out)
    }

    /// What ERRCODE says: five letters, or a name.
    async fn code_written(&mut self, written: &str) -> Result<SqlState, Problem> {
        let is_code = written.len() == 5 && written.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        match is_code {
            true => Ok(SqlState::from_code(written)),
            false => self.code_of(&Condition::Name(written.to_owned())).await,
        }
    }

    /// The code of an error's name: PostgreSQL, asked to raise it, says so.
    pub(super) async fn code_of(&mut self, condition: &Condition) -> Result<SqlState, Problem> {
        let name = match condition {
            Condition::Code(code) => return Ok(SqlState::from_code(code)),
            Condition::Name(name) => name,
        };
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            let message = format!("unrecognized exception condition \"{name}\"");
            return Err(ServerError::new(SqlState::UNDEFINED_OBJECT, message).into());
        }
        let sql = format!("DO 'BEGIN RAISE {name}; END'");
        let mut backend = self.home_backend().await?;
        match backend.simple(&sql).await {
            Err(pgherd_shards::Error::Server(error)) => {
                // It says that it knows no such condition, or is the condition.
                match error.fields().message == *name {
                    true => Ok(error.sqlstate()),
                    false => Err(error.with_position(None).into()),
                }
            }
            Err(other) => Err(other.into()),
            Ok(_) => Err(ServerError::internal(format!("{name} was raised, and nothing came")).into()),
        }
    }

    /// Whether a handler catches an error.
    pub(super) async fn catches(&mut self, conditions: &[Condition], error: &ServerError) -> Result<bool, Problem> {
        let code = error.sqlstate();
        for condition in conditions {
            if matches!(condition, Condition::Name(name) if name == "others") {
                if ![SqlState::QUERY_CANCELED, ASSERTION].contains(&code) {
                    return Ok(true);
                }
                continue;
            }
            let wanted = self.code_of(condition).await?;
            let is_class = wanted.code().ends_with("000") && wanted.code()[..2] == code.code()[..2];
            if wanted == code || is_class {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
