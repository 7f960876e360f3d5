//! An `ErrorResponse` or `NoticeResponse` with all its fields.

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use std::collections::BTreeMap;
use std::fmt;

/// The fields of an error or a notice, by the one-letter codes of PostgreSQL's protocol (`S` severity, `C` SQLSTATE,
/// `M` message, `D` detail, `H` hint, `P` position, `n` constraint, and so on).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    fields: BTreeMap<char, String>,
}

impl ServerError {
    pub(super) fn read(mut fields: ErrorFields<'_>) -> std::io::Result<Self> {
        let mut read = BTreeMap::new();
        while let Some(field) = fields.next()? {
            read.insert(
                char::from(field.type_()),
                String::from_utf8_lossy(field.value_bytes()).into_owned(),
            );
        }
        Ok(ServerError { fields: read })
    }

    /// One field by its protocol letter.
    pub fn field(&self, letter: char) -> Option<&str> {
        self.fields.get(&letter).map(String::as_str)
    }

    /// The SQLSTATE; empty if the server sent none.
    pub fn code(&self) -> &str {
        self.field('C').unwrap_or_default()
    }

    /// The primary message.
    pub fn message(&self) -> &str {
        self.field('M').unwrap_or_default()
    }
}

/// As psql shows it, and with the SQLSTATE and the position on lines of their own, so that a regular expression can match any of them.
impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field('S').unwrap_or("ERROR"), self.message())?;
        for (letter, label) in [('D', "DETAIL"), ('H', "HINT"), ('C', "SQLSTATE"), ('P', "POSITION")] {
            if let Some(value) = self.field(letter) {
                write!(f, "\n{label}: {value}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}
