//! Constants that PostgreSQL has read when a statement was prepared.
//!
//! `PREPARE p AS SELECT … WHERE d = '01/02/2020'` is about the day that DateStyle and TimeZone made of it then, and `'now'` is the
//! moment of the PREPARE. The gateway keeps the text, so it keeps the styles with it; where the session has other ones when the
//! statement runs, each such constant is written as PostgreSQL had read it. PostgreSQL reads constants anew when a table of the
//! statement has changed meanwhile; here they stay.

use super::exact_text::EXACT_STYLE;
use super::{Problem, Session};
use crate::client::Styles;
use crate::statements::Statement;
use parking_lot::Mutex;
use pgherd_model::quote_literal;
use pgherd_sql::lexer::{Token, TokenKind};
use std::sync::Arc;

/// Types whose constants mean the same under any style: `bool` to `oid`, text of all kinds, JSON, numbers, uuid.
const STYLELESS: [u32; 18] = [
    16, 17, 18, 19, 20, 21, 23, 25, 26, 114, 700, 701, 1042, 1043, 1700, 2950, 3802, 705,
];
/// What an interval's constant may be restricted by, behind it.
const FIELDS: [&str; 7] = ["year", "month", "day", "hour", "minute", "second", "to"];
/// Words that are moments.
const MOMENTS: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// Whether constants of a text may depend on the session's styles, or on the moment at which they are read.
#[derive(Clone, Copy, Default)]
pub(crate) struct Readings {
    pub(crate) by_style: bool,
    pub(crate) by_moment: bool,
}

impl Readings {
    /// What holds for a text. No date, time or interval is without a digit but for the moments.
    pub(crate) fn of(text: &str, tokens: &[Token]) -> Self {
        let mut found = Self::default();
        for constant in tokens.iter().filter(|token| token.kind == TokenKind::String) {
            let written = constant.text(text);
            found.by_style |= has_digit(written);
            found.by_moment |= names_moment(written);
        }
        found
    }

    fn concern(self, token: &Token, text: &str) -> bool {
        let written = token.text(text);
        let is_string = (self.by_style || self.by_moment) && token.kind == TokenKind::String;
        is_string && (has_digit(written) || names_moment(written))
    }
}

fn has_digit(written: &str) -> bool {
    written.bytes().any(|b| b.is_ascii_digit())
}

fn names_moment(value: &str) -> bool {
    let mut words = value.split(|c: char| !c.is_ascii_alphabetic());
    words.any(|word| MOMENTS.iter().any(|moment| word.eq_ignore_ascii_case(moment)))
}

/// Under which styles a statement was prepared, and its text for other ones.
pub(crate) struct Reading {
    under: Arc<Styles>,
    written: Mutex<Option<Arc<Statement>>>,
}

impl Session {
    /// What is to be kept with a statement that is prepared now.
    pub(super) fn reading(&self, statement: Option<&Arc<Statement>>) -> Option<Reading> {
        statement.filter(|s| s.readings.by_style).map(|_| Reading {
            under: self.client.styles.clone(),
            written: Mutex::default(),
        })
    }

    /// A statement that is prepared now, with the moments that it names.
    pub(super) async fn at_this_moment(&mut self, statement: Arc<Statement>, types: &[u32]) -> Arc<Statement> {
        if !statement.readings.by_moment || self.block.is_failed() {
            return statement;
        }
        let styles = self.client.styles.clone();
        match self.written(&statement, types, &styles).await {
            Ok(written) => written,
            // What is wrong with it is told where it runs.
            Err(_) => statement,
        }
    }

    /// The statement with its constants as they were read when it was prepared; None where its own text says the same now.
    pub(super) async fn as_read(
        &mut self,
        statement: &Arc<Statement>,
        types: &[u32],
        reading: Option<&Reading>,
    ) -> Result<Option<Arc<Statement>>, Problem> {
        let Some(reading) = reading else {
            return Ok(None);
        };
        if Arc::ptr_eq(&reading.under, &self.client.styles) || reading.under == self.client.styles {
            return Ok(None);
        }
        if let Some(written) = &*reading.written.lock() {
            return Ok(Some(written.clone()));
        }
        let written = self.written(statement, types, &reading.under).await?;
        *reading.written.lock() = Some(written.clone());
        Ok(Some(written))
    }

    /// The statement with the constants written out that depend on how they are read.
    async fn written(
        &mut self,
        statement: &Arc<Statement>,
        types: &[u32],
        under: &Styles,
    ) -> Result<Arc<Statement>, Problem> {
        let (text, tokens) = (&*statement.text, &statement.parsed.tokens);
        let (mut places, mut expressions) = (Vec::new(), Vec::new());
        for (i, token) in tokens.iter().enumerate() {
            if statement.readings.concern(token, text)
                && let Some(expression) = self.constant_of(text, tokens, i, types).await
            {
                places.push(token.start as usize..token.end as usize);
                expressions.push(expression);
            }
        }
        let Some(values) = self.read_under(&expressions, under).await else {
            return Ok(statement.clone());
        };
        let mut written = String::with_capacity(text.len());
        let mut done = 0;
        for (place, value) in places.into_iter().zip(values) {
            written.push_str(&text[done..place.start]);
            written.push_str(&quote_literal(&value));
            done = place.end;
        }
        written.push_str(&text[done..]);
        let statements = self.database.cache.parse(&written)?;
        Ok(statements.first().cloned().unwrap_or_else(|| statement.clone()))
    }

    /// An expression that is the constant alone, with its type; None where it depends on no style, or nobody knows what it is.
    async fn constant_of(&mut self, text: &str, tokens: &[Token], at: usize, types: &[u32]) -> Option<String> {
        let token = &tokens[at];
        let (start, end) = (token.start as usize, token.end as usize);
        // PostgreSQL finds a parameter's type as it finds a constant's.
        let highest = tokens.iter().filter(|t| t.kind == TokenKind::Parameter);
        let highest = highest
            .filter_map(|t| t.text(text)[1..].parse().ok())
            .max()
            .unwrap_or(0);
        let number = highest.max(types.len());
        let mut types = types.to_vec();
        types.resize(number, 0);
        let probe = format!("{}${}{}", &text[..start], number + 1, &text[end..]);
        match self.read_apart(&probe, &types).await? {
            Ok(described) => {
                let type_oid = *described.parameter_types.get(number)?;
                if STYLELESS.contains(&type_oid) {
                    return None;
                }
                let names = self.type_names(&[type_oid]).await.ok()?;
                Some(format!("CAST({} AS {})", &text[start..end], names[0]))
            }
            // `date '…'` takes a constant only.
            Err(_) => typed_constant(text, tokens, at).map(str::to_owned),
        }
    }

    /// Constant expressions, read under these styles at one moment, and written so that any style reads them the same.
    async fn read_under(&mut self, expressions: &[String], under: &Styles) -> Option<Vec<String>> {
        if expressions.is_empty() {
            return None;
        }
        let settings = under.named().map(|(name, value)| {
            format!(
                "pg_catalog.set_config({}, {}, true)",
                quote_literal(name),
                quote_literal(value)
            )
        });
        let sql = format!(
            "SELECT {}; SELECT {EXACT_STYLE}, {}",
            settings.join(", "),
            expressions.join(", ")
        );
        let results = self.home_backend().await.ok()?.simple(&sql).await.ok()?;
        let row = results.last()?;
        let first = row.columns.len().checked_sub(expressions.len())?;
        (first..row.columns.len())
            .map(|i| row.text(0, i).map(str::to_owned))
            .collect()
    }
}

/// `type 'constant'`, with what restricts an interval behind it.
fn typed_constant<'t>(text: &'t str, tokens: &[Token], at: usize) -> Option<&'t str> {
    let is_name = |t: &Token| matches!(t.kind, TokenKind::Word | TokenKind::Quoted);
    let mut first = at.checked_sub(1)?;
    if tokens[first].is(text, ")") {
        first = (0..first).rev().find(|&i| tokens[i].is(text, "("))?.checked_sub(1)?;
    }
    // `timestamp with time zone '…'`, `timestamp (3) with time zone '…'`
    if tokens[first].is_word(text, "zone") {
        first = (0..first).rev().find(|&i| {
            tokens[i].is_word(text, "timestamp")
                || (tokens[i].is_word(text, "time") && !(i > 0 && is_with(text, &tokens[i - 1])))
        })?;
    }
    while first >= 2 && tokens[first - 1].is(text, ".") {
        first -= 2;
    }
    is_name(&tokens[first]).then_some(())?;
    let mut last = at;
    if tokens[first].is_word(text, "interval") {
        while tokens
            .get(last + 1)
            .is_some_and(|t| FIELDS.iter().any(|f| t.is_word(text, f)))
        {
            last += 1;
        }
        if last > at && tokens.get(last + 1).is_some_and(|t| t.is(text, "(")) {
            last += 3;
        }
    }
    let last = tokens.get(last)?;
    Some(&text[tokens[first].start as usize..last.end as usize])
}

fn is_with(text: &str, token: &Token) -> bool {
    token.is_word(text, "with") || token.is_word(text, "without")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_sql::lexer::tokenize;

    #[test]
    fn constants_with_their_types() {
        for (text, expected) in [
            ("SELECT date '1/2/2020', 1", Some("date '1/2/2020'")),
            ("SELECT pg_catalog.date '1/2/2020'", Some("pg_catalog.date '1/2/2020'")),
            (
                "SELECT timestamp (3) with time zone '1/2/2020' FROM t",
                Some("timestamp (3) with time zone '1/2/2020'"),
            ),
            (
                "SELECT time without time zone '10:00'",
                Some("time without time zone '10:00'"),
            ),
            (
                "SELECT interval '-1 2' day to second (2), 3",
                Some("interval '-1 2' day to second (2)"),
            ),
            ("SELECT (1) + '1/2/2020'", None),
        ] {
            let tokens = tokenize(text).expect("tokens");
            let at = tokens
                .iter()
                .position(|t| t.kind == TokenKind::String)
                .expect("a constant");
            assert_eq!(typed_constant(text, &tokens, at), expected, "{text}");
        }
    }

    #[test]
    fn what_depends_on_how_it_is_read() {
        let of = |text: &str| {
            let readings = Readings::of(text, &tokenize(text).expect("tokens"));
            (readings.by_style, readings.by_moment)
        };
        assert_eq!(of("SELECT 1 FROM t WHERE a = 'x' AND b = 2"), (false, false));
        assert_eq!(of("SELECT 1 FROM t WHERE d = '1/2/2020'"), (true, false));
        assert_eq!(of("SELECT '[Today,tomorrow)'::daterange"), (false, true));
        assert_eq!(of("SELECT 'nowhere'"), (false, false));
    }
}
