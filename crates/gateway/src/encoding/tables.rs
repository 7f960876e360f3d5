//! The characters of an encoding, as PostgreSQL converts them: the home shard tries every code and every character once
//! (`pgherd.encoding_tables()`), and what it says is kept.
//!
//! A code is the bytes of one character as one number, the first byte highest. Which codes come in and which go out is not the same
//! table read in two directions: several codes may mean one character.

use bytes::{BufMut, BytesMut};
use pgherd_model::{ServerError, SqlState};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How many bytes a character has that begins with this byte (wchar.c, `pg_*_mblen`).
type Length = fn(u8) -> usize;

fn one(_: u8) -> usize {
    1
}

fn two(lead: u8) -> usize {
    if lead < 0x80 { 1 } else { 2 }
}

fn sjis(lead: u8) -> usize {
    match lead {
        0xa1..=0xdf => 1,
        lead => two(lead),
    }
}

fn euc(lead: u8) -> usize {
    if lead == 0x8f { 3 } else { two(lead) }
}

fn euc_tw(lead: u8) -> usize {
    if lead == 0x8e { 4 } else { euc(lead) }
}

/// By PostgreSQL's name; None for encodings that are not converted here: two characters in one code, or a million codes.
fn length_of(name: &str) -> Option<Length> {
    Some(match name {
        "SJIS" => sjis,
        "BIG5" | "GBK" | "UHC" | "EUC_CN" => two,
        "EUC_JP" | "EUC_KR" | "JOHAB" => euc,
        "EUC_TW" => euc_tw,
        "GB18030" | "SHIFT_JIS_2004" | "EUC_JIS_2004" | "MULE_INTERNAL" => return None,
        _ => one,
    })
}

/// Whether texts in this encoding can be converted.
pub(super) fn is_known(name: &str) -> bool {
    length_of(name).is_some()
}

/// What the home shard says of an encoding.
pub(super) struct Told<'a> {
    /// codes in hexadecimal, with spaces between, and their characters
    pub(super) incoming: (&'a str, &'a str),
    /// codes that are well formed, but mean no character of Unicode
    pub(super) unmapped: &'a str,
    /// characters, and their codes
    pub(super) outgoing: (&'a str, &'a str),
}

/// See the module.
pub(super) struct Tables {
    name: Arc<str>,
    length: Length,
    characters: HashMap<u32, char>,
    unmapped: HashSet<u32>,
    codes: HashMap<char, u32>,
}

impl Tables {
    /// For an encoding that is known here.
    pub(super) fn new(name: &str, told: &Told<'_>) -> Self {
        let codes = |list: &str| -> Vec<u32> {
            let words = list.split(' ').filter(|word| !word.is_empty());
            words.filter_map(|word| u32::from_str_radix(word, 16).ok()).collect()
        };
        let (incoming, outgoing) = (told.incoming, told.outgoing);
        Self {
            name: name.into(),
            length: length_of(name).unwrap_or(one),
            characters: codes(incoming.0).into_iter().zip(incoming.1.chars()).collect(),
            unmapped: codes(told.unmapped).into_iter().collect(),
            codes: outgoing.0.chars().zip(codes(outgoing.1)).collect(),
        }
    }

    /// How many bytes at the end are the beginning of a character.
    pub(super) fn incomplete(&self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while let [lead, ..] = rest {
            match rest.get((self.length)(*lead)..) {
                Some(behind) => rest = behind,
                None => break,
            }
        }
        rest.len()
    }

    /// The client's bytes as UTF-8.
    ///
    /// # Errors
    /// 22021 for what is no text in this encoding, 22P05 for a character that Unicode has not.
    pub(super) fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, ServerError> {
        let mut out = String::with_capacity(bytes.len() + bytes.len() / 2);
        let mut rest = bytes;
        while let [lead, ..] = rest {
            if lead.is_ascii() {
                out.push(*lead as char);
                rest = &rest[1..];
                continue;
            }
            let length = (self.length)(*lead);
            let (character, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            let code = character.iter().fold(0, |code, byte| code << 8 | u32::from(*byte));
            match self.characters.get(&code) {
                Some(c) if character.len() == length => out.push(*c),
                _ if length == 1 || self.unmapped.contains(&code) => {
                    return Err(no_equivalent(character, &self.name, "UTF8"));
                }
                _ => return Err(invalid(character, &self.name)),
            }
            rest = behind;
        }
        Ok(out.into_bytes())
    }

    /// UTF-8 as the client has it.
    ///
    /// # Errors
    /// 22P05 for a character that the encoding has not.
    pub(super) fn encode(&self, utf8: &[u8], out: &mut BytesMut) -> Result<(), ServerError> {
        if utf8.is_ascii() {
            out.put_slice(utf8);
            return Ok(());
        }
        let text = std::str::from_utf8(utf8).map_err(|_| ServerError::internal("a shard's text is no UTF-8"))?;
        for c in text.chars() {
            if !self.put(c, out) {
                return Err(no_equivalent(c.encode_utf8(&mut [0; 4]).as_bytes(), "UTF8", &self.name));
            }
        }
        Ok(())
    }

    /// The same for COPY data. PostgreSQL converts first and then quotes what has a meaning there; the shards have quoted already,
    /// so a character that becomes ASCII (the yen sign of SJIS is its backslash) cannot be given right.
    ///
    /// # Errors
    /// 0A000 for such a character.
    pub(super) fn encode_copy(&self, utf8: &[u8], out: &mut BytesMut) -> Result<(), ServerError> {
        let becomes_ascii = |c: char| !c.is_ascii() && self.codes.get(&c).is_some_and(|code| *code < 0x80);
        if !utf8.is_ascii() && String::from_utf8_lossy(utf8).chars().any(becomes_ascii) {
            return Err(ServerError::unsupported(
                format!(
                    "COPY of a character that is ASCII in client_encoding \"{}\" is not supported through a gateway",
                    self.name
                ),
                "Set client_encoding to UTF8, or use SELECT.",
            ));
        }
        self.encode(utf8, out)
    }

    /// The same where nothing may go wrong: messages of errors.
    pub(super) fn encode_lossy(&self, utf8: &[u8], out: &mut BytesMut) {
        for c in String::from_utf8_lossy(utf8).chars() {
            if !self.put(c, out) {
                out.put_u8(b'?');
            }
        }
    }

    fn put(&self, c: char, out: &mut BytesMut) -> bool {
        if c.is_ascii() {
            out.put_u8(c as u8);
            return true;
        }
        let Some(code) = self.codes.get(&c) else { return false };
        let bytes = code.to_be_bytes();
        let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(3);
        out.put_slice(&bytes[first..]);
        true
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|b| format!("0x{b:02x}")).collect();
    bytes.join(" ")
}

fn no_equivalent(bytes: &[u8], from: &str, to: &str) -> ServerError {
    let bytes = hexadecimal(bytes);
    ServerError::new(
        SqlState::from_code("22P05"),
        format!("character with byte sequence {bytes} in encoding \"{from}\" has no equivalent in encoding \"{to}\""),
    )
}

fn invalid(bytes: &[u8], encoding: &str) -> ServerError {
    let bytes = hexadecimal(bytes);
    ServerError::new(
        SqlState::from_code("22021"),
        format!("invalid byte sequence for encoding \"{encoding}\": {bytes}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_of_several_bytes() {
        let told = Told {
            incoming: ("b1 8160 817c ed40", "\u{ff71}\u{301c}\u{2212}\u{7e8a}"),
            unmapped: "8540",
            outgoing: ("\u{ff71}\u{301c}\u{7e8a}", "b1 8160 fa5c"),
        };
        let sjis = Tables::new("SJIS", &told);
        let text = sjis.decode(b"a\xb1\x81\x60\xed\x40\\").expect("text");
        assert_eq!(text, "a\u{ff71}\u{301c}\u{7e8a}\\".as_bytes());
        let mut out = BytesMut::new();
        sjis.encode(&text, &mut out).expect("codes");
        assert_eq!(
            &out[..],
            b"a\xb1\x81\x60\xfa\x5c\\",
            "the code that goes out is another one"
        );

        let error = |bytes: &[u8]| sjis.decode(bytes).expect_err("none").fields().message.clone();
        assert_eq!(
            error(b"\x85\x40"),
            "character with byte sequence 0x85 0x40 in encoding \"SJIS\" has no equivalent in encoding \"UTF8\""
        );
        assert_eq!(
            error(b"\x81 "),
            "invalid byte sequence for encoding \"SJIS\": 0x81 0x20"
        );
        assert_eq!(error(b"\x81"), "invalid byte sequence for encoding \"SJIS\": 0x81");
        assert_eq!(sjis.incomplete(b"a\xb1\x81"), 1);
        assert_eq!(sjis.incomplete(b"a\x81\x60"), 0);
        let mut out = BytesMut::new();
        assert!(sjis.encode("\u{2212}".as_bytes(), &mut out).is_err());
        sjis.encode_lossy("\u{2212}".as_bytes(), &mut out);
        assert_eq!(&out[..], b"?");
    }
}
