//! The protocol's function call, by which libpq reads and writes large objects (`PQfn`). It becomes a SELECT of that function, so
//! that it goes where the function belongs, in the session's transaction, and is refused where a SELECT would be.

use super::{Mode, Problem, Session, Unit};
use crate::client::format_of;
use crate::messages::Messages;
use bytes::{Buf, Bytes};
use pgherd_model::{ServerError, SqlState};

/// A FunctionCall message (PostgreSQL's documentation, "Message Formats").
struct Call {
    /// the function's OID
    function: u32,
    /// binary or not, value
    arguments: Vec<(bool, Option<Bytes>)>,
    /// 0 for text, 1 for binary
    format: i16,
}

/// What the catalog says of a function.
struct Function {
    /// its name and schema, quoted
    name: String,
    /// the OIDs of its arguments' types
    types: Vec<u32>,
    is_variadic: bool,
}

impl Session {
    /// Calls the function and ends with ReadyForQuery.
    pub(crate) async fn function_call(&mut self, body: Bytes) -> Result<(), Problem> {
        match self.call(body).await {
            Ok(()) => {}
            Err(Problem::Error(error)) => self.fail(error).await?,
            Err(other) => return Err(other),
        }
        self.put_notifications();
        self.convert_replies().await?;
        self.put_ready();
        Ok(())
    }

    async fn call(&mut self, body: Bytes) -> Result<(), Problem> {
        self.check_not_failed()?;
        let call = Call::read(body).ok_or_else(|| violation("insufficient data left in message".into()))?;
        let function = self.function(call.function).await?;
        let (given, required) = (call.arguments.len(), function.types.len());
        if given != required {
            let message = format!("function call message contains {given} arguments but function requires {required}");
            return Err(violation(message).into());
        }
        let texts = call.arguments.iter().filter(|(binary, _)| !binary);
        for value in texts.filter_map(|(_, value)| value.as_deref()) {
            self.check_encoding(value)?;
        }
        let statements = self.database.cache.parse(&function.select())?;
        let statement = statements
            .first()
            .ok_or_else(|| ServerError::internal("a function's call is no statement"))?;
        let unit = Unit {
            statement,
            types: &function.types,
            parameters: &call.arguments,
            template: None,
            mode: Mode::Extended {
                formats: &[call.format],
                describe: false,
                looks: call.format == 1,
                max_rows: 0,
                named: false,
                portal: "",
            },
        };
        let before = self.client.capture();
        let run = Box::pin(self.run(unit)).await;
        let replies = self.client.captured(before).freeze();
        self.answer(replies, call.format == 0)?;
        run
    }

    /// The row becomes the function's result; what else there was (notices) goes to the client as it is.
    fn answer(&mut self, replies: Bytes, is_text: bool) -> Result<(), Problem> {
        for (tag, message) in Messages(replies) {
            match tag {
                b'D' => {
                    // Behind the number of columns, which is one, lies what FunctionCallResponse has: length and value.
                    let value = message.slice(7.min(message.len())..);
                    if is_text {
                        self.check_encoding(&value[4.min(value.len())..])?;
                    }
                    self.client.put(b'V', &value);
                }
                b'C' | b'T' => {}
                _ => self.client.out.extend_from_slice(&message),
            }
        }
        Ok(())
    }

    /// The values of a function call are not converted.
    fn check_encoding(&self, value: &[u8]) -> Result<(), ServerError> {
        if self.settings.encoding.is_none() || value.is_ascii() {
            return Ok(());
        }
        Err(ServerError::unsupported(
            "function calls of the protocol with text are not available while client_encoding is not UTF8",
            "Call the function in a SELECT.",
        ))
    }

    /// Looks the function up, where OIDs are what the client knows: on the home shard.
    async fn function(&mut self, oid: u32) -> Result<Function, ServerError> {
        let sql = format!(
            "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(p.proname), p.proname, \
             p.proargtypes::pg_catalog.text, (p.prokind = 'f' AND NOT p.proretset)::pg_catalog.text, \
             (p.provariadic <> 0)::pg_catalog.text \
             FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace WHERE p.oid = {oid}"
        );
        let results = self.ask_home(&sql).await?;
        let value = |column| results.first().and_then(|r| r.text(0, column));
        let Some(name) = value(0) else {
            return Err(ServerError::new(
                SqlState::UNDEFINED_FUNCTION,
                format!("function with OID {oid} does not exist"),
            ));
        };
        if value(3) != Some("true") {
            let plain = value(1).unwrap_or_default();
            return Err(ServerError::new(
                SqlState::FEATURE_NOT_SUPPORTED,
                format!("cannot call function \"{plain}\" via fastpath interface"),
            ));
        }
        let types = value(2).unwrap_or_default().split_whitespace();
        Ok(Function {
            name: name.to_owned(),
            types: types.filter_map(|oid| oid.parse().ok()).collect(),
            is_variadic: value(4) == Some("true"),
        })
    }
}

impl Function {
    /// `SELECT f($1, $2)`
    fn select(&self) -> String {
        let last = self.types.len();
        let argument = |n: usize| match self.is_variadic && n == last {
            true => format!("VARIADIC ${n}"),
            false => format!("${n}"),
        };
        let arguments: Vec<_> = (1..=last).map(argument).collect();
        format!("SELECT {}({})", self.name, arguments.join(", "))
    }
}

impl Call {
    /// None where the message ends too early.
    fn read(mut body: Bytes) -> Option<Self> {
        let function = body.try_get_u32().ok()?;
        let count = body.try_get_u16().ok()?;
        let formats: Vec<i16> = (0..count).map_while(|_| body.try_get_i16().ok()).collect();
        let mut arguments = Vec::new();
        for i in 0..body.try_get_u16().ok()? {
            let length = body.try_get_i32().ok()?;
            let value = match usize::try_from(length) {
                Ok(length) if length > body.len() => return None,
                Ok(length) => Some(body.split_to(length)),
                Err(_) => None,
            };
            arguments.push((format_of(&formats, i.into()) == 1, value));
        }
        let format = body.try_get_i16().ok()?;
        Some(Self {
            function,
            arguments,
            format,
        })
    }
}

fn violation(message: String) -> ServerError {
    ServerError::new(SqlState::PROTOCOL_VIOLATION, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_and_a_short_one_is_none() {
        // loread(descriptor 0, 16 bytes), arguments and result in binary
        let body: &[u8] = &[
            0, 0, 3, 186, 0, 1, 0, 1, 0, 2, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 16, 0, 1,
        ];
        let call = Call::read(Bytes::from_static(body)).expect("whole");
        assert_eq!((call.function, call.format, call.arguments.len()), (954, 1, 2));
        assert_eq!(call.arguments[1], (true, Some(Bytes::from_static(&[0, 0, 0, 16]))));
        for end in 0..body.len() {
            assert!(
                Call::read(Bytes::copy_from_slice(&body[..end])).is_none(),
                "{end} bytes"
            );
        }
    }

    #[test]
    fn the_last_of_a_variadic_function_is_an_array() {
        let function = Function {
            name: "pg_catalog.format".into(),
            types: vec![25, 2276],
            is_variadic: true,
        };
        assert_eq!(function.select(), "SELECT pg_catalog.format($1, VARIADIC $2)");
    }
}
