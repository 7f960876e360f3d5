//! An error as PostgreSQL reports it: every field of ErrorResponse, made by a shard or by a gateway.

use crate::SqlState;

/// All fields of PostgreSQL's ErrorResponse and NoticeResponse
/// (<https://www.postgresql.org/docs/15/protocol-error-fields.html>).
///
/// A shard's error passes through whole; the gateway's own are made with [`ServerError::new`] and the
/// builder methods. Boxed inside, so that a `Result` stays small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError(Box<Fields>);

/// The fields, by the letters of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// V: ERROR, FATAL, PANIC, WARNING, NOTICE …
    pub severity: String,
    /// C
    pub code: SqlState,
    /// M
    pub message: String,
    /// D
    pub detail: Option<String>,
    /// H
    pub hint: Option<String>,
    /// P: counted in characters from 1, in the text the client sent
    pub position: Option<u32>,
    /// All other fields (p, q, W, s, t, c, d, n, F, L, R), in the order they came.
    pub other: Vec<(u8, String)>,
}

impl ServerError {
    /// An ERROR of the gateway's own.
    pub fn new(code: SqlState, message: impl Into<String>) -> Self {
        Self(Box::new(Fields {
            severity: "ERROR".into(),
            code,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            other: Vec::new(),
        }))
    }

    /// 0A000 with a hint that says what to do instead.
    pub fn unsupported(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(SqlState::FEATURE_NOT_SUPPORTED, message).with_hint(hint)
    }

    /// XX000: a bug of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlState::INTERNAL_ERROR, message).with_hint("This is a bug in pgherd; please report it.")
    }

    /// The same with severity FATAL: the session ends.
    pub fn fatal(mut self) -> Self {
        self.0.severity = "FATAL".into();
        self
    }

    /// The same with another severity.
    pub fn with_severity(mut self, severity: &str) -> Self {
        self.0.severity = severity.into();
        self
    }

    /// The same with a detail line.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// The same with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same with a position, in characters from 1.
    pub fn with_position(mut self, position: Option<u32>) -> Self {
        self.0.position = position;
        self
    }

    /// The SQLSTATE.
    pub fn sqlstate(&self) -> SqlState {
        self.0.code
    }

    /// All fields.
    pub fn fields(&self) -> &Fields {
        &self.0
    }

    /// All fields, to change.
    pub fn fields_mut(&mut self) -> &mut Fields {
        &mut self.0
    }

    /// From the body of an ErrorResponse or NoticeResponse: letter, text, NUL, …, NUL.
    pub fn from_body(body: &[u8]) -> Self {
        let mut error = Self::new(SqlState::INTERNAL_ERROR, "");
        for field in body.split(|&b| b == 0).filter(|f| !f.is_empty()) {
            let text = String::from_utf8_lossy(&field[1..]).into_owned();
            let fields = error.fields_mut();
            match field[0] {
                b'S' => {}
                b'V' => fields.severity = text,
                b'C' => fields.code = SqlState::from_code(&text),
                b'M' => fields.message = text,
                b'D' => fields.detail = Some(text),
                b'H' => fields.hint = Some(text),
                b'P' => fields.position = text.parse().ok(),
                letter => fields.other.push((letter, text)),
            }
        }
        error
    }

    /// Appends a whole protocol message: tag (`b'E'` or `b'N'`), length, fields.
    pub fn write_message(&self, tag: u8, out: &mut bytes::BytesMut) {
        use bytes::BufMut;
        let start = out.len();
        out.put_u8(tag);
        out.put_i32(0);
        let f = &*self.0;
        let mut put = |letter: u8, text: &str| {
            out.put_u8(letter);
            out.extend(text.bytes().filter(|&b| b != 0));
            out.put_u8(0);
        };
        put(b'S', &f.severity);
        put(b'V', &f.severity);
        put(b'C', f.code.code());
        put(b'M', &f.message);
        if let Some(detail) = &f.detail {
            put(b'D', detail);
        }
        if let Some(hint) = &f.hint {
            put(b'H', hint);
        }
        if let Some(position) = f.position {
            put(b'P', &position.to_string());
        }
        for (letter, text) in &f.other {
            put(*letter, text);
        }
        out.put_u8(0);
        let length = (out.len() - start - 1) as i32;
        out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.0.severity, self.0.message, self.0.code)?;
        if let Some(detail) = &self.0.detail {
            write!(f, "\nDETAIL: {detail}")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, "\nHINT: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}
