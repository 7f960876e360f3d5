//! A COPY's options, as far as splitting needs them. They are taken for valid: the first shard that the COPY is
//! opened on has judged them by then.

use crate::kind::{CopyFormat, CopyShape};
use pgherd_model::ServerError;

/// The first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// is data
    None,
    /// is skipped
    Skip,
    /// must name the columns
    Match,
}

/// Which columns FORCE_NULL, FORCE_NOT_NULL or FORCE_QUOTE names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForcedColumns(pub Vec<String>);

/// The options that say how the stream is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOptions {
    /// FORMAT
    pub format: CopyFormat,
    /// DELIMITER
    pub delimiter: u8,
    /// NULL, as raw text
    pub null: Vec<u8>,
    /// HEADER
    pub header: Header,
    /// QUOTE
    pub quote: u8,
    /// ESCAPE
    pub escape: u8,
    /// whether the stream is UTF-8; else text keys must be ASCII
    pub utf8: bool,
    /// FORCE_NULL
    pub force_null: ForcedColumns,
    /// FORCE_NOT_NULL
    pub force_not_null: ForcedColumns,
    /// FORCE_QUOTE, for the way out; `*` stands for all columns
    pub force_quote: ForcedColumns,
}

impl CopyOptions {
    /// From the options as parsed, in a session whose client_encoding is given.
    ///
    /// # Errors
    /// 0A000 for an encoding whose characters may hold ASCII bytes, so that delimiters cannot be told.
    pub fn from_shape(shape: &CopyShape, client_encoding: &str) -> Result<Self, ServerError> {
        let csv = shape.format == CopyFormat::Csv;
        let mut options = Self {
            format: shape.format,
            delimiter: if csv { b',' } else { b'\t' },
            null: if csv { Vec::new() } else { b"\\N".to_vec() },
            header: Header::None,
            quote: b'"',
            escape: b'"',
            utf8: true,
            force_null: ForcedColumns::default(),
            force_not_null: ForcedColumns::default(),
            force_quote: ForcedColumns::default(),
        };
        let (mut escape, mut encoding) = (None, client_encoding);
        let first = |value: &str, default| value.bytes().next().unwrap_or(default);
        for (name, value) in &shape.option_list {
            match name.as_str() {
                "delimiter" => options.delimiter = first(value, options.delimiter),
                "null" => options.null = value.as_bytes().to_vec(),
                "header" => {
                    options.header = match value.to_ascii_lowercase().as_str() {
                        "match" => Header::Match,
                        "false" | "off" | "0" => Header::None,
                        _ => Header::Skip,
                    }
                }
                "quote" => options.quote = first(value, options.quote),
                "escape" => escape = Some(first(value, b'"')),
                "encoding" => encoding = value,
                "force_null" => options.force_null = ForcedColumns::parse(value),
                "force_not_null" => options.force_not_null = ForcedColumns::parse(value),
                "force_quote" => options.force_quote = ForcedColumns::parse(value),
                "force" => options.old_style_force(value),
                _ => {}
            }
        }
        options.escape = escape.unwrap_or(options.quote);
        options.utf8 = check_encoding(encoding)?;
        Ok(options)
    }

    /// `FORCE NOT NULL a, b`, `FORCE NULL a, b` and `FORCE QUOTE a, b`, kept by the parser as the words behind FORCE.
    fn old_style_force(&mut self, value: &str) {
        let words: Vec<_> = value
            .splitn(3, char::is_whitespace)
            .map(str::to_ascii_lowercase)
            .collect();
        let after = |skip: usize| {
            value
                .splitn(skip + 1, char::is_whitespace)
                .nth(skip)
                .unwrap_or_default()
        };
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["not", "null", ..] | ["not", ..] => self.force_not_null = ForcedColumns::parse(after(2)),
            ["quote", ..] => self.force_quote = ForcedColumns::parse(after(1)),
            ["null", ..] => self.force_null = ForcedColumns::parse(after(1)),
            _ => {}
        }
    }
}

/// Whether the encoding is UTF-8 (or taken as such by the server).
fn check_encoding(name: &str) -> Result<bool, ServerError> {
    let plain: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_ascii_uppercase();
    // Names and aliases of pg_encname_tbl for the encodings that only clients may use.
    let embeds_ascii = [
        "BIG5",
        "WIN950",
        "WINDOWS950",
        "GBK",
        "WIN936",
        "WINDOWS936",
        "GB18030",
        "JOHAB",
        "SJIS",
        "SHIFTJIS",
        "MSKANJI",
        "WIN932",
        "WINDOWS932",
        "SHIFTJIS2004",
        "UHC",
        "WIN949",
        "WINDOWS949",
    ];
    if embeds_ascii.contains(&plain.as_str()) {
        return Err(ServerError::unsupported(
            format!("COPY of a sharded table in encoding {name} is not supported"),
            "Use UTF8, or convert the file first.",
        ));
    }
    Ok(matches!(plain.as_str(), "UTF8" | "UNICODE" | "SQLASCII"))
}

impl ForcedColumns {
    /// `(a, "B")`, with or without the parentheses; `*` stands for itself.
    fn parse(text: &str) -> Self {
        let text = text.trim();
        let inside = text.strip_prefix('(').and_then(|t| t.strip_suffix(')')).unwrap_or(text);
        let name = |item: &str| {
            let item = item.trim();
            match item.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
                Some(quoted) => quoted.replace("\"\"", "\""),
                None => item.to_lowercase(),
            }
        };
        Self(inside.split(',').map(name).collect())
    }

    /// Whether it names this column.
    pub fn names(&self, column: &str) -> bool {
        self.0.iter().any(|c| c == column)
    }
}
