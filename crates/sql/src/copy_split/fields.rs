//! Fields of one row in the text and CSV formats, as `CopyReadAttributesText` and `CopyReadAttributesCSV` read them.
//! Only the fields asked for are decoded.

use std::borrow::Cow;

/// A field's value: None for NULL.
pub(super) type Field<'a> = Option<Cow<'a, [u8]>>;

/// The characters that matter.
#[derive(Debug, Clone)]
pub(super) struct Syntax {
    pub(super) delimiter: u8,
    pub(super) null: Vec<u8>,
    /// CSV's quote and escape; None for the text format
    pub(super) csv: Option<(u8, u8)>,
}

impl Syntax {
    /// Calls `found(position, value)` for each position that `wanted` names, up to `last`. False when the row has
    /// fewer fields or is malformed before that: a shard will say so.
    pub(super) fn read<'a>(
        &self,
        row: &'a [u8],
        last: usize,
        wanted: impl Fn(usize) -> bool,
        mut found: impl FnMut(usize, Field<'a>),
    ) -> bool {
        let mut start = 0;
        for position in 0..=last {
            let wanted = wanted(position);
            let field = match self.csv {
                None => Some(self.text_field(row, start, wanted)),
                Some((quote, escape)) => self.csv_field(row, start, quote, escape, wanted),
            };
            let Some((end, value)) = field else { return false };
            if wanted {
                found(position, value);
            }
            if end >= row.len() && position < last {
                return false;
            }
            start = end + 1;
        }
        true
    }

    /// The field from `start`: where its delimiter (or the row's end) is, and its value if `wanted`.
    fn text_field<'a>(&self, row: &'a [u8], start: usize, wanted: bool) -> (usize, Field<'a>) {
        let (mut end, mut escaped) = (start, false);
        loop {
            match memchr::memchr2(self.delimiter, b'\\', &row[end..]) {
                None => end = row.len(),
                Some(offset) if row[end + offset] == b'\\' => {
                    escaped = true;
                    end = (end + offset + 2).min(row.len());
                    continue;
                }
                Some(offset) => end += offset,
            }
            break;
        }
        let raw = &row[start..end];
        let value = match () {
            () if !wanted || raw == self.null => None,
            () if escaped => Some(Cow::Owned(unescape(raw))),
            () => Some(Cow::Borrowed(raw)),
        };
        (end, value)
    }

    /// The same for CSV; None for a quote that is not closed.
    fn csv_field<'a>(
        &self,
        row: &'a [u8],
        start: usize,
        quote: u8,
        escape: u8,
        wanted: bool,
    ) -> Option<(usize, Field<'a>)> {
        let (mut at, mut in_quote, mut quoted) = (start, false, false);
        let mut value = Vec::new();
        while let Some(&byte) = row.get(at) {
            if !in_quote && byte == self.delimiter {
                break;
            }
            at += 1;
            let mut keep = byte;
            if !in_quote && byte == quote {
                if !quoted && wanted {
                    value.extend_from_slice(&row[start..at - 1]);
                }
                (in_quote, quoted) = (true, true);
                continue;
            }
            if in_quote {
                match row.get(at) {
                    Some(&next) if byte == escape && (next == escape || next == quote) => {
                        keep = next;
                        at += 1;
                    }
                    _ if byte == quote => {
                        in_quote = false;
                        continue;
                    }
                    _ => {}
                }
            }
            if quoted && wanted {
                value.push(keep);
            }
        }
        if in_quote {
            return None;
        }
        let raw = &row[start..at];
        let field = match () {
            () if !wanted || (!quoted && raw == self.null) => None,
            () if quoted => Some(Cow::Owned(value)),
            () => Some(Cow::Borrowed(raw)),
        };
        Some((at, field))
    }
}

/// The text format's backslash sequences.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        // A backslash that ends the row stands for nothing.
        let [escaped, after @ ..] = rest else { break };
        rest = after;
        let digits = |rest: &[u8], radix: u32, most: usize| {
            rest.iter()
                .take(most)
                .take_while(|b| char::from(**b).is_digit(radix))
                .count()
        };
        let number = |text: &[u8], radix: u32| {
            text.iter()
                .fold(0, |sum, b| sum * radix + char::from(*b).to_digit(radix).unwrap_or(0)) as u8
        };
        let hex = digits(rest, 16, 2);
        out.push(match escaped {
            b'0'..=b'7' => {
                let more = digits(rest, 8, 2);
                let value = number(&[std::slice::from_ref(escaped), &rest[..more]].concat(), 8);
                rest = &rest[more..];
                value
            }
            b'x' if hex > 0 => {
                let value = number(&rest[..hex], 16);
                rest = &rest[hex..];
                value
            }
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            other => *other,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(syntax: &Syntax, row: &str) -> Vec<Option<String>> {
        let mut out = Vec::new();
        let last = 9;
        let _ = syntax.read(
            row.as_bytes(),
            last,
            |_| true,
            |_, v| {
                out.push(v.map(|v| String::from_utf8_lossy(&v).into_owned()));
            },
        );
        out
    }

    fn some(values: &[&str]) -> Vec<Option<String>> {
        values.iter().map(|v| (*v != "NULL").then(|| (*v).to_owned())).collect()
    }

    #[test]
    fn text_fields_are_unescaped() {
        let text = Syntax {
            delimiter: b'\t',
            null: b"\\N".to_vec(),
            csv: None,
        };
        assert_eq!(texts(&text, "a\t\\N\t\\\\N"), some(&["a", "NULL", "\\N"]));
        assert_eq!(texts(&text, "\\x41\\x4a1\\101\\0601\\t\\q"), some(&["AJ1A01\tq"]));
        assert_eq!(texts(&text, "a\\\tb\tc\\"), some(&["a\tb", "c"]));
        assert_eq!(texts(&text, ""), some(&[""]));
        assert_eq!(texts(&text, "\\xg\\8"), some(&["xg8"]));
    }

    #[test]
    fn csv_fields_are_unquoted() {
        let csv = Syntax {
            delimiter: b',',
            null: Vec::new(),
            csv: Some((b'"', b'"')),
        };
        assert_eq!(texts(&csv, "a,,\"\",\"b,\"\"c\""), some(&["a", "NULL", "", "b,\"c"]));
        assert!(texts(&csv, "a\"b,c").is_empty());
        assert_eq!(texts(&csv, "a\"b,\"c,d"), some(&["ab,c", "d"]));
        let escaped = Syntax {
            csv: Some((b'"', b'\\')),
            ..csv
        };
        assert_eq!(texts(&escaped, "\"a\\\"b\\\\c\\d\",e"), some(&["a\"b\\c\\d", "e"]));
    }
}
