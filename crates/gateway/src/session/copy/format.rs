//! Rows in COPY's formats, from DataRow messages: text and CSV as PostgreSQL's `CopyAttributeOutText` and
//! `CopyAttributeOutCSV` write them; a binary tuple has the very layout of a DataRow's body.

use crate::messages::put_copy_data;
use bytes::{Buf, BufMut, BytesMut};
use pgherd_sql::CopyFormat;
use pgherd_sql::copy_split::CopyOptions;

/// The binary format's header: signature, no flags, no extension.
const BINARY_HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The binary format's trailer.
const BINARY_TRAILER: [u8; 2] = [0xff, 0xff];

/// Writes rows as CopyData messages.
pub(super) struct Writer {
    options: CopyOptions,
    /// FORCE_QUOTE, by column
    forced: Vec<bool>,
    /// the binary header, which drivers expect in the first row's message, where PostgreSQL puts it
    header: &'static [u8],
}

impl Writer {
    pub(super) fn new(options: CopyOptions, columns: &[&str]) -> Self {
        let forced = columns
            .iter()
            .map(|c| options.force_quote.names(c) || options.force_quote.names("*"))
            .collect();
        let binary = options.format == CopyFormat::Binary;
        let header = if binary { BINARY_HEADER.as_slice() } else { &[] };
        Self {
            options,
            forced,
            header,
        }
    }

    /// Appends one CopyData for each of the DataRow messages.
    pub(super) fn write(&mut self, mut rows: BytesMut, out: &mut BytesMut) {
        while rows.len() >= 5 {
            let whole = 1 + u32::from_be_bytes([rows[1], rows[2], rows[3], rows[4]]) as usize;
            let mut row = rows.split_to(whole.min(rows.len()));
            row.advance(5);
            let start = out.len();
            out.put_slice(&[b'd', 0, 0, 0, 0]);
            out.put_slice(std::mem::take(&mut self.header));
            match self.options.format {
                CopyFormat::Binary => out.put_slice(&row),
                _ => self.write_line(&row, out),
            }
            let length = (out.len() - start - 1) as u32;
            out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// Appends what follows the last row: the binary format's trailer.
    pub(super) fn finish(&mut self, out: &mut BytesMut) {
        if self.options.format == CopyFormat::Binary {
            put_copy_data(out, &[std::mem::take(&mut self.header), &BINARY_TRAILER].concat());
        }
    }

    fn write_line(&self, mut row: &[u8], out: &mut BytesMut) {
        let count = if row.len() >= 2 { row.get_i16() } else { 0 };
        for i in 0..count.max(0) as usize {
            if i > 0 {
                out.put_u8(self.options.delimiter);
            }
            let length = if row.len() >= 4 { row.get_i32() } else { -1 };
            let Ok(length) = usize::try_from(length) else {
                out.put_slice(&self.options.null);
                continue;
            };
            let (value, rest) = row.split_at(length.min(row.len()));
            row = rest;
            match self.options.format {
                CopyFormat::Csv => {
                    self.write_csv(value, count == 1, self.forced.get(i).copied().unwrap_or(false), out);
                }
                _ => self.write_text(value, out),
            }
        }
        out.put_u8(b'\n');
    }

    fn write_text(&self, value: &[u8], out: &mut BytesMut) {
        let special = |b: &u8| *b < 0x20 || *b == b'\\' || *b == self.options.delimiter;
        let mut rest = value;
        while let Some(at) = rest.iter().position(special) {
            out.put_slice(&rest[..at]);
            let byte = rest[at];
            rest = &rest[at + 1..];
            match byte {
                0x08 => out.put_slice(b"\\b"),
                0x0c => out.put_slice(b"\\f"),
                b'\n' => out.put_slice(b"\\n"),
                b'\r' => out.put_slice(b"\\r"),
                b'\t' => out.put_slice(b"\\t"),
                0x0b => out.put_slice(b"\\v"),
                byte if byte == b'\\' || byte == self.options.delimiter => out.put_slice(&[b'\\', byte]),
                byte => out.put_u8(byte),
            }
        }
        out.put_slice(rest);
    }

    fn write_csv(&self, value: &[u8], single: bool, forced: bool, out: &mut BytesMut) {
        let (quote, escape) = (self.options.quote, self.options.escape);
        let needs_quote = |b: &u8| [self.options.delimiter, quote, b'\n', b'\r'].contains(b);
        let quoted =
            forced || value == self.options.null || (single && value == b"\\.") || value.iter().any(needs_quote);
        if !quoted {
            out.put_slice(value);
            return;
        }
        out.put_u8(quote);
        for &byte in value {
            if byte == quote || byte == escape {
                out.put_u8(escape);
            }
            out.put_u8(byte);
        }
        out.put_u8(quote);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_sql::{Kind, parse};

    fn written(sql: &str, columns: &[&str], rows: &[&[Option<&str>]]) -> String {
        let parsed = parse(sql).expect("SQL").remove(0);
        let Kind::Copy(shape) = parsed.kind else {
            panic!("not a COPY")
        };
        let options = CopyOptions::from_shape(&shape, "UTF8").expect("options");
        let mut messages = BytesMut::new();
        for row in rows {
            let mut body = BytesMut::new();
            body.put_i16(row.len() as i16);
            for value in *row {
                body.put_i32(value.map_or(-1, |v| v.len() as i32));
                body.put_slice(value.unwrap_or_default().as_bytes());
            }
            messages.put_u8(b'D');
            messages.put_i32(body.len() as i32 + 4);
            messages.put_slice(&body);
        }
        let mut out = BytesMut::new();
        Writer::new(options, columns).write(messages, &mut out);
        let mut text = String::new();
        while !out.is_empty() {
            out.advance(1);
            let length = out.get_u32() as usize - 4;
            text += &String::from_utf8_lossy(&out.split_to(length));
        }
        text
    }

    #[test]
    fn rows_are_written_as_postgresql_does() {
        let text = written(
            "COPY t TO STDOUT",
            &["a", "b"],
            &[&[Some("a\tb\\\n\u{1}é"), None], &[Some(""), Some("\\N")]],
        );
        assert_eq!(text, "a\\tb\\\\\\n\u{1}é\t\\N\n\t\\\\N\n");
        let text = written(
            "COPY t TO STDOUT (DELIMITER '|', NULL 'x')",
            &["a", "b"],
            &[&[Some("1|2"), None]],
        );
        assert_eq!(text, "1\\|2|x\n");
        let csv = "COPY t TO STDOUT (FORMAT csv, FORCE_QUOTE (b))";
        let text = written(csv, &["a", "b"], &[&[Some("a,\"b\""), Some("1")], &[Some(""), None]]);
        assert_eq!(text, "\"a,\"\"b\"\"\",\"1\"\n\"\",\n");
        assert_eq!(written("COPY t TO STDOUT CSV", &["a"], &[&[Some("\\.")]]), "\"\\.\"\n");
        let text = written(
            "COPY t TO STDOUT CSV ESCAPE '\\' FORCE QUOTE *",
            &["a"],
            &[&[Some("a\"\\")]],
        );
        assert_eq!(text, "\"a\\\"\\\\\"\n");
    }
}
