//! Client encodings other than UTF8.
//!
//! Inside, everything is UTF-8; what comes from a client and what goes to it is converted at its connection. The shards never
//! hear of it: their `client_encoding` stays UTF8. What bytes mean, [`tables`] knows from the home shard. Encodings in which a
//! code may be two characters, and GB18030, are refused.

pub(crate) mod binary_copy;
mod tables;
pub(crate) mod values;

use binary_copy::BinaryCopy;
use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use pgherd_model::{ServerError, SqlState, quote_literal};
use pgherd_shards::Backend;
use std::collections::HashMap;
use std::sync::Arc;
use tables::{Tables, Told};
use values::Shapes;

/// The encoding that asks for no conversion.
const SQL_ASCII: &str = "SQL_ASCII";
/// Types whose binary format is text: text, varchar, bpchar, name, unknown, json, xml, "char", cstring, citext has its own number.
const TEXT_TYPES: [u32; 9] = [25, 1043, 1042, 19, 705, 114, 142, 18, 2275];
/// Types whose binary format has no text in it, whatever their bytes: numbers, times, uuid, bytea, addresses, bits.
const PLAIN_TYPES: [u32; 24] = [
    16, 17, 20, 21, 23, 26, 28, 700, 701, 790, 829, 869, 650, 1082, 1083, 1114, 1184, 1186, 1266, 1560, 1562, 1700,
    2950, 2278,
];

/// A client's encoding.
pub(crate) struct Encoding {
    /// PostgreSQL's name
    pub(crate) name: Arc<str>,
    tables: Tables,
    /// SQL_ASCII: nothing is converted
    pub(crate) is_identity: bool,
}

/// How the values of a row are to be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// text
    Text,
    /// binary, without text in it
    Plain,
    /// binary, and perhaps with text in it: of this type
    Binary(u32),
}

impl Column {
    /// For a column of this format and type.
    pub(crate) fn new(format: i16, type_oid: u32) -> Self {
        match format {
            0 => Self::Text,
            _ if TEXT_TYPES.contains(&type_oid) => Self::Text,
            _ if PLAIN_TYPES.contains(&type_oid) => Self::Plain,
            _ => Self::Binary(type_oid),
        }
    }
}

/// The encodings that were asked for so far.
#[derive(Default)]
pub(crate) struct Encodings {
    known: Mutex<HashMap<String, Arc<Encoding>>>,
}

impl Encodings {
    /// The encoding of this name; None for UTF8 and what is the same here.
    ///
    /// # Errors
    /// 22023 for no encoding, 0A000 for one that is not converted here.
    pub(crate) async fn get(&self, name: &str, home: &mut Backend) -> Result<Option<Arc<Encoding>>, ServerError> {
        if is_utf8(name) {
            return Ok(None);
        }
        if let Some(known) = self.known.lock().get(name) {
            return Ok(Some(known.clone()));
        }
        let sql = format!(
            "SELECT pg_catalog.pg_encoding_to_char(n) FROM pg_catalog.pg_char_to_encoding({}) AS n WHERE n >= 0",
            quote_literal(name)
        );
        let results = home.simple(&sql).await?;
        let Some(canonical) = results.first().and_then(|r| r.text(0, 0)) else {
            return Err(ServerError::new(
                SqlState::from_code("22023"),
                format!("invalid value for parameter \"client_encoding\": \"{name}\""),
            ));
        };
        if is_utf8(canonical) {
            return Ok(None);
        }
        let told = match canonical {
            SQL_ASCII => Vec::new(),
            canonical if tables::is_known(canonical) => {
                let sql = format!("SELECT * FROM pgherd.encoding_tables({})", quote_literal(canonical));
                home.simple(&sql).await?
            }
            _ => {
                return Err(ServerError::unsupported(
                    format!("client_encoding \"{name}\" is not supported through a gateway yet"),
                    "Set client_encoding to UTF8 and let the client convert.",
                ));
            }
        };
        let text = |column| told.first().and_then(|r| r.text(0, column)).unwrap_or_default();
        let told = Told {
            incoming: (text(0), text(1)),
            unmapped: text(2),
            outgoing: (text(3), text(4)),
        };
        let encoding = Arc::new(Encoding::new(canonical, &told));
        self.known.lock().insert(name.to_owned(), encoding.clone());
        Ok(Some(encoding))
    }
}

impl Encoding {
    fn new(name: &str, told: &Told<'_>) -> Self {
        Self {
            name: name.into(),
            tables: Tables::new(name, told),
            is_identity: name == SQL_ASCII,
        }
    }

    /// The client's bytes as UTF-8.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, ServerError> {
        self.tables.decode(bytes)
    }

    /// How many bytes at the end are the beginning of a character that a later message completes.
    pub(crate) fn incomplete(&self, bytes: &[u8]) -> usize {
        self.tables.incomplete(bytes)
    }

    /// A client's whole message (letter, length, body) with its strings as UTF-8. Parameters in binary are left to
    /// [`Encoding::decode_parameter`].
    pub(crate) fn incoming(&self, message: BytesMut) -> Result<BytesMut, ServerError> {
        let body = &message[5..];
        if body.is_ascii() {
            return Ok(message);
        }
        let converted = match message[0] {
            b'Q' | b'd' | b'f' | b'D' | b'C' | b'E' | b'P' => {
                // What is no text (numbers) comes last, or is ASCII (letters).
                let strings = match message[0] {
                    b'Q' | b'f' | b'D' | b'C' | b'E' => 1,
                    b'P' => 2,
                    _ => 0,
                };
                let end = end_of_strings(body, strings);
                [self.decode(&body[..end])?, body[end..].to_vec()].concat()
            }
            b'B' => self.incoming_bind(body)?,
            _ => return Ok(message),
        };
        let mut out = BytesMut::with_capacity(converted.len() + 5);
        out.put_u8(message[0]);
        out.put_u32(converted.len() as u32 + 4);
        out.put_slice(&converted);
        Ok(out)
    }

    /// Bind: two names, formats, then the values.
    fn incoming_bind(&self, body: &[u8]) -> Result<Vec<u8>, ServerError> {
        let names = end_of_strings(body, 2);
        let mut out = self.decode(&body[..names])?;
        let mut rest = &body[names..];
        let malformed = || ServerError::new(SqlState::PROTOCOL_VIOLATION, "insufficient data left in message");
        let mut take = |n: usize| -> Result<&[u8], ServerError> {
            let (piece, behind) = rest.split_at_checked(n).ok_or_else(malformed)?;
            rest = behind;
            Ok(piece)
        };
        let number = |piece: &[u8]| usize::from(u16::from_be_bytes([piece[0], piece[1]]));
        let count = take(2)?;
        out.extend_from_slice(count);
        let formats = take(2 * number(count))?;
        out.extend_from_slice(formats);
        let formats: Vec<i16> = formats.chunks(2).map(|f| i16::from_be_bytes([f[0], f[1]])).collect();
        let count = take(2)?;
        out.extend_from_slice(count);
        for i in 0..number(count) {
            let length = take(4)?;
            let Ok(length) = usize::try_from(i32::from_be_bytes([length[0], length[1], length[2], length[3]])) else {
                out.extend_from_slice(&(-1i32).to_be_bytes());
                continue;
            };
            let value = take(length)?;
            match crate::client::format_of(&formats, i) {
                0 => {
                    let value = self.decode(value)?;
                    out.extend_from_slice(&(value.len() as i32).to_be_bytes());
                    out.extend_from_slice(&value);
                }
                _ => {
                    out.extend_from_slice(&(length as i32).to_be_bytes());
                    out.extend_from_slice(value);
                }
            }
        }
        out.extend_from_slice(rest);
        Ok(out)
    }

    /// A parameter that came in binary, by its type.
    pub(crate) fn decode_parameter(&self, value: &Bytes, type_oid: u32, shapes: &Shapes) -> Result<Bytes, ServerError> {
        match Column::new(1, type_oid) {
            _ if value.is_ascii() => Ok(value.clone()),
            Column::Plain => Ok(value.clone()),
            Column::Text => Ok(self.decode(value)?.into()),
            Column::Binary(type_oid) => {
                let mut out = BytesMut::with_capacity(value.len());
                shapes.write(type_oid, value, &|text, out| self.decode_into(text, out), &mut out)?;
                Ok(out.freeze())
            }
        }
    }

    fn decode_into(&self, text: &[u8], out: &mut BytesMut) -> Result<(), ServerError> {
        out.put_slice(&self.decode(text)?);
        Ok(())
    }

    /// A piece of a COPY in binary that comes from the client, as the shards are to have it.
    pub(crate) fn incoming_binary(
        &self,
        copy: &mut BinaryCopy,
        data: &[u8],
        shapes: &Shapes,
    ) -> Result<BytesMut, ServerError> {
        let mut out = BytesMut::with_capacity(data.len());
        copy.convert(data, shapes, &|text, out| self.decode_into(text, out), &mut out)?;
        Ok(out)
    }

    /// The messages in `out` from `from` on as the client has them. `columns` is what the present rows are like: it is taken
    /// from each RowDescription that is passed. `shapes`: what their types' binary values are. `copy`: its data is a COPY's in binary.
    ///
    /// # Errors
    /// 22P05 for a character that the encoding has not; the messages before it are left, and nothing from there on.
    pub(crate) fn outgoing(
        &self,
        out: &mut BytesMut,
        from: usize,
        columns: &mut Vec<Column>,
        shapes: &Shapes,
        copy: Option<&mut BinaryCopy>,
    ) -> Result<(), ServerError> {
        let messages = out.split_off(from);
        self.convert(&messages, out, columns, shapes, copy)
    }

    fn convert(
        &self,
        messages: &[u8],
        out: &mut BytesMut,
        columns: &mut Vec<Column>,
        shapes: &Shapes,
        mut copy: Option<&mut BinaryCopy>,
    ) -> Result<(), ServerError> {
        let encode = |text: &[u8], out: &mut BytesMut| self.tables.encode(text, out);
        let mut rest = messages;
        while let [tag, a, b, c, d, ..] = rest {
            let whole = 1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let (message, behind) = rest.split_at(whole.min(rest.len()));
            rest = behind;
            let body = &message[5..];
            if *tag == b'T' {
                *columns = described(body);
            }
            let copied = copy.as_deref_mut().filter(|_| *tag == b'd');
            if body.is_ascii() && copied.is_none() {
                out.put_slice(message);
                continue;
            }
            let start = out.len();
            out.put_slice(&message[..5]);
            let converted = match tag {
                b'D' => self.convert_row(body, columns, shapes, out),
                b'T' => self.convert_description(body, out),
                b'E' | b'N' => {
                    self.tables.encode_lossy(body, out);
                    Ok(())
                }
                b'd' => match copied {
                    Some(copy) => copy.convert(body, shapes, &encode, out),
                    None => self.tables.encode_copy(body, out),
                },
                b'C' | b'S' => self.tables.encode(body, out),
                b'A' => {
                    out.put_slice(&body[..4]);
                    self.tables.encode(&body[4..], out)
                }
                _ => {
                    out.put_slice(body);
                    Ok(())
                }
            };
            if let Err(error) = converted {
                out.truncate(start);
                return Err(error);
            }
            if *tag == b'd' && out.len() == start + 5 {
                // Nothing of it is whole yet.
                out.truncate(start);
                continue;
            }
            let length = (out.len() - start - 1) as u32;
            out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    fn convert_row(
        &self,
        body: &[u8],
        columns: &[Column],
        shapes: &Shapes,
        out: &mut BytesMut,
    ) -> Result<(), ServerError> {
        let encode = |text: &[u8], out: &mut BytesMut| self.tables.encode(text, out);
        out.put_slice(&body[..2]);
        let (mut rest, mut at) = (&body[2..], 0);
        while let [a, b, c, d, behind @ ..] = rest {
            let length = i32::from_be_bytes([*a, *b, *c, *d]);
            let value = &behind[..usize::try_from(length).unwrap_or(0).min(behind.len())];
            rest = &behind[value.len()..];
            let start = out.len();
            out.put_i32(length);
            match columns.get(at).copied().unwrap_or(Column::Binary(0)) {
                _ if value.is_ascii() => out.put_slice(value),
                Column::Plain => out.put_slice(value),
                Column::Text => self.tables.encode(value, out)?,
                Column::Binary(type_oid) => shapes.write(type_oid, value, &encode, out)?,
            }
            // That of NULL stays.
            if length >= 0 {
                let length = (out.len() - start - 4) as i32;
                out[start..start + 4].copy_from_slice(&length.to_be_bytes());
            }
            at += 1;
        }
        Ok(())
    }

    fn convert_description(&self, body: &[u8], out: &mut BytesMut) -> Result<(), ServerError> {
        out.put_slice(&body[..2]);
        let mut rest = &body[2..];
        while let Some(end) = rest.iter().position(|b| *b == 0) {
            self.tables.encode(&rest[..end], out)?;
            let numbers = (end + 19).min(rest.len());
            out.put_slice(&rest[end..numbers]);
            rest = &rest[numbers..];
        }
        Ok(())
    }
}

/// Where the first `strings` strings of a body end; all of it where there are none to count.
fn end_of_strings(body: &[u8], strings: usize) -> usize {
    let mut ends = body.iter().enumerate().filter(|(_, b)| **b == 0).map(|(i, _)| i + 1);
    match strings {
        0 => body.len(),
        n => ends.nth(n - 1).unwrap_or(body.len()),
    }
}

/// What the columns of a RowDescription are like.
fn described(body: &[u8]) -> Vec<Column> {
    let mut columns = Vec::new();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some(end) = rest.iter().position(|b| *b == 0) {
        let Some(numbers) = rest.get(end + 1..end + 19) else {
            break;
        };
        let type_oid = u32::from_be_bytes([numbers[6], numbers[7], numbers[8], numbers[9]]);
        let format = i16::from_be_bytes([numbers[16], numbers[17]]);
        columns.push(Column::new(format, type_oid));
        rest = &rest[end + 19..];
    }
    columns
}

/// Whether an encoding's name means UTF8.
pub(crate) fn is_utf8(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    matches!(plain.to_ascii_uppercase().as_str(), "UTF8" | "UNICODE" | "DEFAULT")
}

fn binary_text() -> ServerError {
    ServerError::unsupported(
        "binary values with text in them are not supported with this client_encoding",
        "Use the text format for values of such types, or set client_encoding to UTF8.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte 128 is nothing, 129 an e with an acute accent, 130 the euro.
    fn encoding() -> Encoding {
        let told = Told {
            incoming: ("81 82", "\u{e9}\u{20ac}"),
            unmapped: "80",
            outgoing: ("\u{e9}\u{20ac}", "81 82"),
        };
        Encoding::new("TEST", &told)
    }

    fn message(tag: u8, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u8(tag);
        out.put_u32(body.len() as u32 + 4);
        out.put_slice(body);
        out
    }

    #[test]
    fn strings_come_and_go() {
        let encoding = encoding();
        let came = encoding.incoming(message(b'Q', b"SELECT '\x81'\0")).expect("convert");
        assert_eq!(came, message(b'Q', "SELECT '\u{e9}'\0".as_bytes()));
        let error = encoding.incoming(message(b'Q', b"\x80\0")).expect_err("nothing");
        assert_eq!(error.sqlstate().code(), "22P05");

        let mut row = BytesMut::new();
        row.put_i16(2);
        row.put_i32(2);
        row.put_slice("\u{e9}".as_bytes());
        row.put_i32(-1);
        let mut out = message(b'D', &row);
        encoding
            .outgoing(&mut out, 0, &mut vec![Column::Text; 2], &Shapes::default(), None)
            .expect("convert");
        let mut expected = BytesMut::new();
        expected.put_i16(2);
        expected.put_i32(1);
        expected.put_u8(0x81);
        expected.put_i32(-1);
        assert_eq!(out, message(b'D', &expected));

        let mut out = message(b'D', &row);
        let error = encoding
            .outgoing(
                &mut out,
                0,
                &mut vec![Column::Binary(20_000); 2],
                &Shapes::default(),
                None,
            )
            .expect_err("binary");
        assert_eq!((error.sqlstate(), out.len()), (SqlState::FEATURE_NOT_SUPPORTED, 0));
    }

    #[test]
    fn parameters_are_converted_by_their_format() {
        let encoding = encoding();
        let bind = |value: &[u8], length: i32| {
            let mut body = BytesMut::from(&b"p\0s\0"[..]);
            body.put_i16(0);
            body.put_i16(1);
            body.put_i32(length);
            body.put_slice(value);
            body.put_i16(0);
            message(b'B', &body)
        };
        let came = encoding.incoming(bind(b"\x82", 1)).expect("convert");
        assert_eq!(came, bind("\u{20ac}".as_bytes(), 3));
        let binary = Bytes::from_static(b"\x81");
        assert_eq!(
            encoding
                .decode_parameter(&binary, 25, &Shapes::default())
                .expect("text"),
            "\u{e9}".as_bytes()
        );
        assert_eq!(
            encoding
                .decode_parameter(&binary, 17, &Shapes::default())
                .expect("bytea"),
            binary
        );
    }
}
