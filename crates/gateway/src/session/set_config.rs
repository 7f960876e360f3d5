//! `set_config(name, value, is_local)` in a SELECT is SET by another name: the session takes the setting over before the
//! statement runs, so that all backends, and routing, know of it.
//!
//! Constants and parameters are read where they stand. Arguments that are computed are computed by the home shard, once: the
//! statement then runs with `current_setting(name)` in the call's place, since what was set may have been an argument.

use super::settings::set_statement;
use super::settings_statements::read_boolean;
use super::{Problem, Session, Unit};
use bytes::Bytes;
use pgherd_model::{ServerError, SqlState, quote_literal};
use pgherd_sql::lexer::{Token, TokenKind};
use pgherd_sql::{Instead, SetValue};
use std::ops::Range;
use std::sync::Arc;

/// A call in a text.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    /// from the name (with schema) to the closing parenthesis
    span: Range<usize>,
    /// it is a column of the result without a name of its own
    is_column: bool,
    arguments: Arguments,
}

#[derive(Debug, PartialEq, Eq)]
enum Arguments {
    /// name, value and is_local, all of them known
    Known(String, String, bool),
    /// where they stand
    Computed([Range<usize>; 3]),
    /// others than three
    Unclear,
}

impl Session {
    /// Takes over what the calls of a statement set; what to run in its place, where that must not set it again.
    pub(crate) async fn take_over_set_config(&mut self, unit: Unit<'_>) -> Result<Option<Instead>, Problem> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let mut replacements = Vec::new();
        for call in set_config_calls(text, tokens, unit.parameters) {
            match &call.arguments {
                Arguments::Known(name, value, local) => self.set_by_call(name, Some(value), *local).await?,
                Arguments::Computed(arguments) => {
                    for row in self.computed(unit, arguments).await? {
                        let [name, value, local] = &row;
                        let name = name.as_deref().ok_or_else(no_name)?;
                        let local = local.as_deref() == Some("t");
                        if local {
                            // It lasts until the statement's own transaction ends, and the statement reads it.
                            self.begin_for_one_at_home().await?;
                        }
                        self.set_by_call(name, value.as_deref(), local).await?;
                    }
                    replacements.push((call.span.clone(), shown(text, arguments, call.is_column)));
                }
                // PostgreSQL says what is wrong with it.
                Arguments::Unclear => {}
            }
        }
        if !replacements.is_empty() {
            return Ok(Some(Instead::new(text, &replacements)));
        }
        Ok(self.without_set_config(unit))
    }

    /// One call: a SET, or, without a value, a RESET.
    async fn set_by_call(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<(), Problem> {
        if name.eq_ignore_ascii_case("client_encoding") {
            return Ok(self.set_encoding(value.unwrap_or("UTF8")).await?);
        }
        let in_block = self.block.open().is_some();
        if local && !in_block {
            return Ok(());
        }
        let lower = name.to_ascii_lowercase();
        let (value, sql) = match value {
            Some(value) => (SetValue::Values(vec![value.to_owned()]), set_statement(name, value)),
            None => (
                SetValue::Default,
                format!("SET {} TO DEFAULT", pgherd_model::quote_identifier(&lower)),
            ),
        };
        if !local {
            return self.set(&lower, &value, &sql).await;
        }
        let home = self.gateway.shards.home();
        let sql: Arc<str> = sql.replacen("SET ", "SET LOCAL ", 1).into();
        if let Some(open) = self.block.open_mut() {
            open.transaction.participant(home).await?;
        }
        self.run_local_setting(sql).await?;
        self.after_setting(&lower).await
    }

    /// What the arguments of a call are for each row of the statement, as text.
    async fn computed(
        &mut self,
        unit: Unit<'_>,
        arguments: &[Range<usize>; 3],
    ) -> Result<Vec<[Option<String>; 3]>, Problem> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let entered = self.enter(unit).await?;
        let rest = behind_select_list(text, tokens, arguments[0].start).filter(|_| !entered.analysis.touches_sharded);
        let Some(rest) = rest else {
            return Err(ServerError::unsupported(
                "set_config with arguments that are computed is not supported here yet",
                "Use SET, or a SELECT of set_config alone, over no sharded table.",
            )
            .into());
        };
        let values: Option<Vec<String>> = unit.parameters.iter().map(as_constant).collect();
        let values = values.ok_or_else(|| {
            ServerError::unsupported(
                "set_config with binary parameters that are no text is not supported through a gateway yet",
                "Send the parameters as text.",
            )
        })?;
        let written = |span: Range<usize>| with_constants(text, tokens, span, &values);
        let [name, value, local] = arguments.clone().map(written);
        let sql = format!(
            "SELECT ({name})::text, ({value})::text, ({local})::boolean {}",
            with_constants(text, tokens, rest, &values)
        );
        // Not the client's text: its positions mean nothing.
        let results = self.ask_home(&sql).await.map_err(|error| error.with_position(None))?;
        let rows = results.into_iter().next_back().map(|r| r.rows).unwrap_or_default();
        let as_text = |value: Option<&Option<Bytes>>| {
            let value = value.and_then(Option::as_ref);
            value.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        Ok(rows.iter().map(|row| [0, 1, 2].map(|i| as_text(row.get(i)))).collect())
    }
}

fn no_name() -> ServerError {
    ServerError::new(SqlState::from_code("22004"), "SET requires parameter name")
}

/// What the call gives, once it was made. Its other arguments stay in it for the sake of the parameters in them.
fn shown(text: &str, [name, value, local]: &[Range<usize>; 3], is_column: bool) -> String {
    let [name, value, local] = [name, value, local].map(|span| &text[span.clone()]);
    let alias = if is_column { " AS set_config" } else { "" };
    format!(
        "pg_catalog.current_setting(CASE WHEN ({value})::text IS NULL OR ({local})::boolean THEN ({name})::text \
         ELSE ({name})::text END){alias}"
    )
}

/// What stands behind the select list that a call is in, where rows come from there one by one; None where they may not, or
/// where the call is in a query inside of the statement.
fn behind_select_list(text: &str, tokens: &[Token], call: usize) -> Option<Range<usize>> {
    let first = tokens.first().filter(|t| t.is_word(text, "select"))?;
    let (mut depth, mut end) = (0, None);
    for token in tokens {
        let at = token.start as usize;
        depth += i32::from(token.is(text, "(")) - i32::from(token.is(text, ")"));
        if token.is_word(text, "select") && at < call && token != first {
            return None;
        }
        if depth > 0 {
            continue;
        }
        let is = |words: &[&str]| words.iter().any(|word| token.is_word(text, word));
        if is(&[
            "group",
            "having",
            "union",
            "intersect",
            "except",
            "into",
            "window",
            "distinct",
            "limit",
            "fetch",
            "for",
        ]) {
            return None;
        }
        if end.is_none() && is(&["from", "where", "order"]) {
            end = Some(at);
        }
    }
    match end {
        Some(end) if call < end => Some(end..text.len()),
        Some(_) => None,
        None => Some(text.len()..text.len()),
    }
}

/// A piece of the text with constants in place of its parameters.
fn with_constants(text: &str, tokens: &[Token], span: Range<usize>, values: &[String]) -> String {
    let (mut out, mut done) = (String::new(), span.start);
    let inside = |t: &&Token| span.start <= t.start as usize && t.end as usize <= span.end;
    for token in tokens.iter().filter(inside).filter(|t| t.kind == TokenKind::Parameter) {
        let number: usize = token.text(text)[1..].parse().unwrap_or(0);
        let value = number.checked_sub(1).and_then(|i| values.get(i));
        out.push_str(&text[done..token.start as usize]);
        out.push_str(value.map_or("NULL", String::as_str));
        done = token.end as usize;
    }
    out.push_str(&text[done..span.end]);
    out
}

/// A parameter's value as a constant whose type follows from what is around it; None for binary values that may be no text.
fn as_constant((binary, value): &(bool, Option<Bytes>)) -> Option<String> {
    let Some(value) = value else {
        return Some("NULL".into());
    };
    let text = std::str::from_utf8(value).ok()?;
    match (binary, text.contains(|c: char| c.is_control())) {
        (true, true) => None,
        _ => Some(quote_literal(text)),
    }
}

/// All calls in a text, ascending.
fn set_config_calls(text: &str, tokens: &[Token], parameters: &[(bool, Option<Bytes>)]) -> Vec<Call> {
    let is = |i: usize, symbol: &str| tokens.get(i).is_some_and(|t| t.is(text, symbol));
    let named = |i: &usize| tokens[*i].identifier(text).is_some_and(|n| n == "set_config") && is(i + 1, "(");
    let call = |i: usize| {
        let (pieces, close) = argument_tokens(text, tokens, i + 1)?;
        let qualified = i > 1 && is(i - 1, ".");
        if qualified && !tokens[i - 2].names(text, "pg_catalog") {
            return None;
        }
        let first = if qualified { i - 2 } else { i };
        let begins = |t: &Token| t.is(text, ",") || t.is_word(text, "select");
        let ends = |t: &Token| t.is(text, ",") || ["from", "where", "order"].iter().any(|w| t.is_word(text, w));
        Some(Call {
            span: tokens[first].start as usize..tokens[close].end as usize,
            is_column: first > 0 && begins(&tokens[first - 1]) && tokens.get(close + 1).is_none_or(ends),
            arguments: arguments(text, tokens, &pieces, parameters),
        })
    };
    (0..tokens.len()).filter(named).filter_map(call).collect()
}

/// The tokens of each argument behind the parenthesis at `open`, and where that is closed.
fn argument_tokens(text: &str, tokens: &[Token], open: usize) -> Option<(Vec<Range<usize>>, usize)> {
    let (mut pieces, mut depth, mut start) = (Vec::new(), 0, open + 1);
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.text(text) {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "," if depth == 1 => {
                pieces.push(start..i);
                start = i + 1;
            }
            _ => {}
        }
        if depth == 0 {
            pieces.push(start..i);
            return Some((pieces, i));
        }
    }
    None
}

fn arguments(text: &str, tokens: &[Token], pieces: &[Range<usize>], parameters: &[(bool, Option<Bytes>)]) -> Arguments {
    let [name, value, local] = pieces else {
        return Arguments::Unclear;
    };
    if pieces.iter().any(Range::is_empty) {
        return Arguments::Unclear;
    }
    let known = |piece: &Range<usize>| constant(text, &tokens[piece.clone()], parameters);
    let all_known = || {
        let local = match known(local)? {
            // A boolean in binary is one byte.
            Constant::Binary(bytes) => *bytes.first()? != 0,
            Constant::Text(word) => read_boolean(&word)?,
        };
        Some(Arguments::Known(known(name)?.text()?, known(value)?.text()?, local))
    };
    let span = |p: &Range<usize>| tokens[p.start].start as usize..tokens[p.end - 1].end as usize;
    all_known().unwrap_or_else(|| Arguments::Computed([name, value, local].map(span)))
}

/// An argument whose value is known.
enum Constant {
    Text(String),
    /// a parameter in PostgreSQL's binary format
    Binary(Bytes),
}

impl Constant {
    /// The value as text; the binary format of text is the same.
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Binary(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        }
    }
}

/// An argument that is a string, a word or a parameter, with a cast behind it or not.
fn constant(text: &str, tokens: &[Token], parameters: &[(bool, Option<Bytes>)]) -> Option<Constant> {
    let (token, cast) = tokens.split_first()?;
    let is_type = |t: &Token| {
        let name = t.identifier(text);
        name.is_some_and(|n| ["text", "varchar", "bool", "boolean"].contains(&n.as_str()))
    };
    match cast {
        [] => {}
        [sign, name] if sign.is(text, "::") && is_type(name) => {}
        _ => return None,
    }
    Some(match token.kind {
        TokenKind::Parameter => {
            let number: usize = token.text(text).trim_start_matches('$').parse().ok()?;
            let (binary, value) = parameters.get(number.checked_sub(1)?)?;
            match (binary, value.clone()?) {
                (true, bytes) => Constant::Binary(bytes),
                (false, bytes) => Constant::Text(String::from_utf8(bytes.to_vec()).ok()?),
            }
        }
        TokenKind::String => Constant::Text(token.string(text)?),
        TokenKind::Word if token.is_word(text, "true") || token.is_word(text, "false") => {
            Constant::Text(token.text(text).to_ascii_lowercase())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(text: &str, parameters: &[(bool, Option<Bytes>)]) -> Vec<Call> {
        let parsed = pgherd_sql::parse(text).expect("SQL").remove(0);
        set_config_calls(text, &parsed.tokens, parameters)
    }

    fn known(name: &str, value: &str, local: bool) -> Arguments {
        Arguments::Known(name.into(), value.into(), local)
    }

    #[test]
    fn constants_and_parameters_are_read() {
        let one = |text: &str| calls(text, &[]).remove(0).arguments;
        assert_eq!(
            one("SELECT pg_catalog.set_config('search_path', '', false);"),
            known("search_path", "", false)
        );
        assert_eq!(
            one("select Set_Config ( 'a.b' , 'it''s', TRUE )"),
            known("a.b", "it's", true)
        );
        assert!(calls("select 1", &[]).is_empty());
        let given = |binary, value: &'static [u8]| (binary, Some(Bytes::from_static(value)));
        let parameters = [given(false, b"a.b"), given(true, b"x"), given(true, b"\x01")];
        let call = calls("select set_config($1, $2::text, $3)", &parameters).remove(0);
        assert_eq!(call.arguments, known("a.b", "x", true));
    }

    #[test]
    fn other_arguments_are_computed() {
        let text = "SELECT set_config('a.b', f(1, 2) || $1, false), 1";
        let call = calls(text, &[]).remove(0);
        let Arguments::Computed(spans) = &call.arguments else {
            panic!("computed: {call:?}")
        };
        assert_eq!(spans.clone().map(|s| &text[s]), ["'a.b'", "f(1, 2) || $1", "false"]);
        assert!(call.is_column);
        assert_eq!(&text[call.span], "set_config('a.b', f(1, 2) || $1, false)");
        assert_eq!(calls("SELECT set_config('a')", &[])[0].arguments, Arguments::Unclear);
    }

    #[test]
    fn what_follows_the_select_list_gives_the_rows() {
        let rest = |text: &str| {
            let tokens = pgherd_sql::lexer::tokenize(text).expect("tokens");
            let call = text.find("set_config").expect("a call");
            behind_select_list(text, &tokens, call).map(|span| text[span].to_owned())
        };
        assert_eq!(rest("SELECT set_config(a, b, c)"), Some(String::new()));
        let of_dump = "SELECT set_config(name, 'view', false) FROM pg_settings WHERE name = 'x'";
        assert_eq!(rest(of_dump).as_deref(), Some("FROM pg_settings WHERE name = 'x'"));
        assert_eq!(rest("SELECT (SELECT set_config(a, b, c) FROM t)"), None);
        assert_eq!(rest("SELECT 1 FROM t WHERE set_config(a, b, c) = ''"), None);
        assert_eq!(rest("SELECT set_config(a, b, c) FROM t LIMIT 1"), None);
    }

    #[test]
    fn parameters_become_constants() {
        let text = "a || $1 || $2";
        let tokens = pgherd_sql::lexer::tokenize(text).expect("tokens");
        let values = ["'x'".to_owned(), "NULL".to_owned()];
        assert_eq!(with_constants(text, &tokens, 5..text.len(), &values), "'x' || NULL");
        assert_eq!(as_constant(&(true, Some(Bytes::from_static(b"\x00\x01")))), None);
        assert_eq!(
            as_constant(&(false, Some(Bytes::from_static(b"it's")))),
            Some("'it''s'".into())
        );
    }
}
