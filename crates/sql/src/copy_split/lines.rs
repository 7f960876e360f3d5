//! Where a row of the text and CSV formats ends, by the rules of PostgreSQL's `CopyReadLineText`: one kind of line
//! end per stream, `\.` as end marker, line ends inside of quotes. Fields are `fields`' business.

use pgherd_model::{ServerError, SqlState};

/// The line end that the stream's first line had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineEnd {
    Lf,
    Cr,
    CrLf,
}

/// What was found behind the present row's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// a row of `content` bytes; with its line end it takes `whole`
    Row { content: usize, whole: usize },
    /// the end, by marker or end of input; the bytes before it are a last row unless `content` is 0
    End { content: usize },
    /// more input is needed to tell
    More,
}

/// Finds row after row. Remembers how far it has looked, so that a long row that comes in many pieces is read once.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    /// None for the text format
    csv: Option<Csv>,
    line_end: Option<LineEnd>,
    /// bytes of the present row that were looked at
    at: usize,
    /// line feeds and carriage returns inside of quotes in the present row
    quoted: (u64, u64),
}

#[derive(Debug, Clone)]
struct Csv {
    quote: u8,
    /// None when it is the quote
    escape: Option<u8>,
    in_quote: bool,
    after_escape: bool,
    special: Box<[bool; 256]>,
}

impl Lines {
    pub(super) fn text() -> Self {
        Self {
            csv: None,
            line_end: None,
            at: 0,
            quoted: (0, 0),
        }
    }

    pub(super) fn csv(quote: u8, escape: u8) -> Self {
        let escape = (escape != quote).then_some(escape);
        let mut special = Box::new([false; 256]);
        for byte in [quote, escape.unwrap_or(quote), b'\n', b'\r', b'\\'] {
            special[usize::from(byte)] = true;
        }
        Self {
            csv: Some(Csv {
                quote,
                escape,
                in_quote: false,
                after_escape: false,
                special,
            }),
            ..Self::text()
        }
    }

    pub(super) fn line_end(&self) -> Option<LineEnd> {
        self.line_end
    }

    /// How many line ends inside of quotes PostgreSQL counts as lines in the row that was just found: those of the
    /// stream's kind, and carriage returns while the kind is not known (in a stream's first row).
    pub(super) fn quoted_lines(&self, known: Option<LineEnd>) -> u64 {
        if known == Some(LineEnd::Lf) {
            self.quoted.0
        } else {
            self.quoted.1
        }
    }

    /// Starts with the next row.
    pub(super) fn advance(&mut self) {
        self.at = 0;
        self.quoted = (0, 0);
        if let Some(csv) = &mut self.csv {
            csv.in_quote = false;
            csv.after_escape = false;
        }
    }

    /// Looks on in `input`, which starts where the present row does; `ended` when no more will come.
    pub(super) fn scan(&mut self, input: &[u8], ended: bool) -> Result<Scan, ServerError> {
        match self.csv {
            None => self.scan_text(input, ended),
            Some(_) => self.scan_csv(input, ended),
        }
    }

    fn scan_text(&mut self, input: &[u8], ended: bool) -> Result<Scan, ServerError> {
        loop {
            let rest = input.get(self.at..).unwrap_or_default();
            let Some(offset) = memchr::memchr3(b'\n', b'\r', b'\\', rest) else {
                self.at = input.len();
                return Ok(end_of_input(input, ended));
            };
            self.at += offset;
            if input[self.at] != b'\\' {
                return self.at_line_end(input, ended);
            }
            match input.get(self.at + 1) {
                None => return Ok(end_of_input(input, ended)),
                Some(b'.') => {
                    return Ok(match end_marker(input, self.at, self.line_end, false, ended)? {
                        Some(_) => Scan::End { content: self.at },
                        None => Scan::More,
                    });
                }
                // Whatever follows a backslash is data, a line end too.
                Some(_) => self.at += 2,
            }
        }
    }

    fn scan_csv(&mut self, input: &[u8], ended: bool) -> Result<Scan, ServerError> {
        let Some(csv) = &mut self.csv else {
            return Ok(Scan::More);
        };
        loop {
            let rest = input.get(self.at..).unwrap_or_default();
            let ordinary = rest.iter().take_while(|&&b| !csv.special[usize::from(b)]).count();
            self.at += ordinary;
            csv.after_escape &= ordinary == 0;
            let Some(&byte) = input.get(self.at) else {
                return Ok(end_of_input(input, ended));
            };
            // PostgreSQL fetches the byte behind these before it looks at them.
            if matches!(byte, b'\\' | b'\r') && self.at + 1 >= input.len() && !ended {
                return Ok(Scan::More);
            }
            let before = (csv.in_quote, csv.after_escape);
            if csv.in_quote && Some(byte) == csv.escape {
                csv.after_escape = !csv.after_escape;
            }
            if byte == csv.quote && !csv.after_escape {
                csv.in_quote = !csv.in_quote;
            }
            if Some(byte) != csv.escape {
                csv.after_escape = false;
            }
            match byte {
                b'\n' if csv.in_quote => self.quoted.0 += 1,
                b'\r' if csv.in_quote => self.quoted.1 += 1,
                b'\n' | b'\r' => return self.at_line_end(input, ended),
                b'\\' if self.at == 0 => match input.get(1) {
                    None => return Ok(end_of_input(input, ended)),
                    Some(b'.') => match end_marker(input, self.at, self.line_end, true, ended)? {
                        Some(true) => return Ok(Scan::End { content: 0 }),
                        Some(false) => {}
                        None => {
                            // Looked at once more when the next bytes are there.
                            (csv.in_quote, csv.after_escape) = before;
                            return Ok(Scan::More);
                        }
                    },
                    Some(_) => {}
                },
                _ => {}
            }
            self.at += 1;
        }
    }

    /// At a line feed or carriage return that ends the row.
    fn at_line_end(&mut self, input: &[u8], ended: bool) -> Result<Scan, ServerError> {
        let content = self.at;
        let row = |length| {
            Ok(Scan::Row {
                content,
                whole: content + length,
            })
        };
        if input[content] == b'\n' {
            if matches!(self.line_end, Some(LineEnd::Cr | LineEnd::CrLf)) {
                return Err(self.stray("newline", "\\n"));
            }
            self.line_end = Some(LineEnd::Lf);
            return row(1);
        }
        match (self.line_end, input.get(content + 1)) {
            (Some(LineEnd::Lf), _) => Err(self.stray("carriage return", "\\r")),
            (Some(LineEnd::Cr), _) => row(1),
            (_, None) if !ended => Ok(Scan::More),
            (_, Some(b'\n')) => {
                self.line_end = Some(LineEnd::CrLf);
                row(2)
            }
            (Some(LineEnd::CrLf), _) => Err(self.stray("carriage return", "\\r")),
            (None, _) => {
                self.line_end = Some(LineEnd::Cr);
                row(1)
            }
        }
    }

    fn stray(&self, name: &str, escape: &str) -> ServerError {
        match self.csv {
            None => bad_format(&format!("literal {name} found in data"))
                .with_hint(format!("Use \"{escape}\" to represent {name}.")),
            Some(_) => bad_format(&format!("unquoted {name} found in data"))
                .with_hint(format!("Use quoted CSV field to represent {name}.")),
        }
    }
}

/// At `\.`: Some(true) for an end marker, Some(false) for CSV data that only starts like one, None for more input.
fn end_marker(
    input: &[u8],
    at: usize,
    line_end: Option<LineEnd>,
    csv: bool,
    ended: bool,
) -> Result<Option<bool>, ServerError> {
    let corrupt = || match csv {
        true => Ok(Some(false)),
        false => Err(bad_format("end-of-copy marker corrupt")),
    };
    let other_style = || bad_format("end-of-copy marker does not match previous newline style");
    let mut next = at + 2;
    if line_end == Some(LineEnd::CrLf) {
        match input.get(next) {
            None if !ended => return Ok(None),
            Some(b'\n') if csv => return Ok(Some(false)),
            Some(b'\n') => return Err(other_style()),
            Some(b'\r') => next += 1,
            _ => return corrupt(),
        }
    }
    let byte = match input.get(next) {
        None if !ended => return Ok(None),
        Some(byte @ (b'\r' | b'\n')) => *byte,
        _ => return corrupt(),
    };
    match (line_end, byte) {
        (Some(LineEnd::Lf | LineEnd::CrLf), b'\r') | (Some(LineEnd::Cr), b'\n') => Err(other_style()),
        _ => Ok(Some(true)),
    }
}

fn end_of_input(input: &[u8], ended: bool) -> Scan {
    match ended {
        true => Scan::End { content: input.len() },
        false => Scan::More,
    }
}

fn bad_format(message: &str) -> ServerError {
    ServerError::new(SqlState::BAD_COPY_FILE_FORMAT, message)
}
