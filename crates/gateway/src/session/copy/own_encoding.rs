//! COPY with an ENCODING of its own. Shards are asked for UTF-8, as always where the gateway converts, and for the time of the statement
//! the client's data is converted as if that encoding were its `client_encoding`.

use crate::encoding::Encoding;
use crate::session::{Problem, Session, Unit};
use pgherd_sql::lexer::{Token, TokenKind, depths};
use pgherd_sql::{CopyFormat, CopyShape, CopyTarget, Kind};
use std::sync::Arc;

impl Session {
    /// The encoding that its data has, where somebody has to convert it (None in it: nothing is to be converted); None where a shard
    /// alone does all of it right, or PostgreSQL says what is wrong with the name.
    pub(super) async fn encoding_of_copy(
        &mut self,
        shape: &CopyShape,
    ) -> Result<Option<Option<Arc<Encoding>>>, Problem> {
        let mut named = shape.option_list.iter().filter(|(name, _)| name == "encoding");
        let (Some((_, name)), None) = (named.next(), named.next()) else {
            return Ok(None);
        };
        if shape.target != CopyTarget::Client {
            return Ok(None);
        }
        let mut home = self.home_backend().await?;
        let Ok(encoding) = self.gateway.encodings.get(name, &mut home).await else {
            return Ok(None);
        };
        if shape.format == CopyFormat::Binary {
            // PostgreSQL sends and reads those values as any others.
            return Ok(Some(self.settings.encoding.clone()));
        }
        Ok((encoding.is_some() || self.converter().is_some()).then_some(encoding))
    }

    /// Runs it with data in this encoding.
    pub(super) async fn copy_in_encoding(
        &mut self,
        unit: Unit<'_>,
        shape: &CopyShape,
        encoding: Option<Arc<Encoding>>,
    ) -> Result<(), Problem> {
        let Some(text) = in_utf8(&unit.statement.text, &unit.statement.parsed.tokens, shape) else {
            return self.copy_as_client(unit, shape).await;
        };
        let statements = self.database.cache.parse(&text)?;
        let [statement] = &statements[..] else {
            return self.copy_as_client(unit, shape).await;
        };
        let Kind::Copy(shape) = &statement.parsed.kind else {
            return self.copy_as_client(unit, shape).await;
        };
        let of_session = self.settings.encoding.clone();
        self.convert_with(encoding)?;
        let copied = self.copy_as_client(Unit { statement, ..unit }, shape).await;
        // What the new encoding has no characters for is told here.
        let converted = self.convert_with(of_session);
        copied?;
        converted
    }

    fn convert_with(&mut self, encoding: Option<Arc<Encoding>>) -> Result<(), Problem> {
        let converter = encoding.clone().filter(|e| !e.is_identity);
        self.settings.encoding = encoding;
        let told = self.client.set_encoding(converter.clone());
        if told.is_err() {
            // What cannot be converted is gone now.
            self.client.set_encoding(converter)?;
        }
        Ok(told?)
    }
}

/// The statement's text with UTF8 for its encoding.
fn in_utf8(text: &str, tokens: &[Token], shape: &CopyShape) -> Option<String> {
    let depths = depths(text, tokens);
    let inside = |token: &Token| shape.options.contains(&(token.start as usize));
    let value = (1..tokens.len()).find(|&at| {
        let is_value = match depths[at] {
            // Without parentheses it is a string, and the word may be a column's name elsewhere.
            0 => tokens[at].kind == TokenKind::String,
            1 => !tokens[at].is(text, ",") && !tokens[at].is(text, ")"),
            _ => false,
        };
        is_value && inside(&tokens[at - 1]) && tokens[at - 1].is_word(text, "encoding")
    })?;
    let (start, end) = (tokens[value].start as usize, tokens[value].end as usize);
    Some(format!("{}'UTF8'{}", &text[..start], &text[end..]))
}
