//! What a shard says against its part of a COPY, as PostgreSQL would have said it of the client's stream: with the client's line
//! number and number of fields.

use pgherd_model::ServerError;

/// A binary COPY counts fields; those that were put in front are not the client's.
pub(super) fn without_supplied_fields(error: &mut ServerError, supplied: usize) {
    let message = &error.fields().message;
    let expected = message
        .strip_prefix("row field count is ")
        .and_then(|rest| rest.split_once(", expected "));
    let Some((count, expected)) = expected.filter(|_| supplied > 0) else {
        return;
    };
    if let Ok(expected) = expected.parse::<usize>() {
        let expected = expected.saturating_sub(supplied);
        error.fields_mut().message = format!("row field count is {count}, expected {expected}");
    }
}

/// Replaces the line number in the error's context (`COPY t, line 5, column x: …`) by the client's.
pub(super) fn with_client_line(
    mut error: ServerError,
    client_line: impl Fn(u64) -> Option<u64>,
    relation: &str,
) -> (ServerError, Option<u64>) {
    let start = format!("COPY {relation}, line ");
    let mut found = None;
    for (_, context) in error
        .fields_mut()
        .other
        .iter_mut()
        .filter(|(letter, _)| *letter == b'W')
    {
        let Some(at) = context.find(&start) else { continue };
        let digits = at + start.len()..context.len();
        let digits =
            digits.start..digits.start + context[digits.clone()].bytes().take_while(u8::is_ascii_digit).count();
        let Ok(line) = context[digits.clone()].parse() else {
            continue;
        };
        if let Some(line) = client_line(line) {
            found = Some(line);
            context.replace_range(digits, &line.to_string());
        }
    }
    (error, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_model::SqlState;

    #[test]
    fn contexts_get_the_clients_line() {
        let mut error = ServerError::new(SqlState::INVALID_TEXT_REPRESENTATION, "x");
        error
            .fields_mut()
            .other
            .push((b'W', "PL/pgSQL function f()\nCOPY t, line 12, column a: \"1\"".into()));
        let (error, line) = with_client_line(error, |line| Some(line * 10), "t");
        assert_eq!(line, Some(120));
        assert_eq!(
            error.fields().other[0].1,
            "PL/pgSQL function f()\nCOPY t, line 120, column a: \"1\""
        );
    }
}
