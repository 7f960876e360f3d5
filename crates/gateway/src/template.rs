//! Statements that differ in their constants only are parsed and analysed once.
//!
//! `SELECT v FROM t WHERE k = 17` is looked up as `SELECT v FROM t WHERE k = $1` with `17` as an untyped value; what is
//! sent is the client's own text, constants and all, with relation names replaced. Only a forwarded statement can be run
//! this way: the constants serve for routing, and PostgreSQL reads the real ones. Anything unusual gives None, and the
//! statement is parsed as a whole.

use pgherd_sql::Part;
use std::ops::Range;

/// Longer texts are parsed as a whole.
const LONGEST: usize = 2048;
/// More constants than this, likewise.
const MOST_CONSTANTS: usize = 64;

const INT4: u32 = 23;
const NUMERIC: u32 = 1700;

/// A text without its constants.
pub(crate) struct Template<'t> {
    text: &'t str,
    /// with `$1`, `$2` … in place of the constants
    pub(crate) pattern: String,
    constants: Vec<Constant>,
}

struct Constant {
    /// bytes in the client's text
    source: Range<usize>,
    /// where its placeholder begins in the pattern
    at: usize,
    /// what it says, unquoted
    value: String,
}

impl<'t> Template<'t> {
    /// Takes the constants out of a plain SELECT, INSERT, UPDATE or DELETE.
    pub(crate) fn of(text: &'t str) -> Option<Self> {
        let word = text.split(|c: char| !c.is_ascii_alphabetic()).next()?;
        let known = ["select", "insert", "update", "delete"]
            .iter()
            .any(|k| word.eq_ignore_ascii_case(k));
        if text.len() > LONGEST || !known {
            return None;
        }
        let bytes = text.as_bytes();
        let mut this = Self {
            text,
            pattern: String::with_capacity(text.len()),
            constants: Vec::new(),
        };
        let (mut i, mut copied) = (0, 0);
        while i < bytes.len() {
            match bytes[i] {
                b'$' | b'\\' => return None,
                b'-' if bytes.get(i + 1) == Some(&b'-') => return None,
                b'/' if bytes.get(i + 1) == Some(&b'*') => return None,
                b';' if !text[i + 1..].trim_ascii().is_empty() => return None,
                b'"' => i += 2 + text[i + 1..].find('"')?,
                b'\'' => {
                    let end = string_end(bytes, i)?;
                    if i > 0 && (is_word(bytes[i - 1]) || bytes[i - 1] == b'&') {
                        return None;
                    }
                    this.pattern.push_str(&text[copied..i]);
                    this.take(i..end, text[i + 1..end - 1].replace("''", "'"));
                    (i, copied) = (end, end);
                }
                b'0'..=b'9' if i == 0 || !(is_word(bytes[i - 1]) || bytes[i - 1] == b'.') => {
                    let end = number_end(bytes, i)?;
                    let start = sign_before(bytes, i).unwrap_or(i).max(copied);
                    this.pattern.push_str(&text[copied..start]);
                    let value: String = text[start..end].split_ascii_whitespace().collect();
                    this.take(start..end, value);
                    (i, copied) = (end, end);
                }
                _ => i += 1,
            }
        }
        this.pattern.push_str(&text[copied..]);
        (!this.constants.is_empty() && this.constants.len() <= MOST_CONSTANTS).then_some(this)
    }

    fn take(&mut self, source: Range<usize>, value: String) {
        let at = self.pattern.len();
        self.constants.push(Constant { source, at, value });
        self.pattern.push('$');
        self.pattern.push_str(&self.constants.len().to_string());
    }

    /// The constants' values, in the order of their numbers.
    pub(crate) fn values(&self) -> impl Iterator<Item = &str> {
        self.constants.iter().map(|c| c.value.as_str())
    }

    /// The constants' types as parameters (0: what PostgreSQL makes of it), when each of them stands in one of these
    /// `places` (its number, and whether a quoted constant may stand there): a parameter then means what the constant does.
    pub(crate) fn types(&self, places: &[(usize, bool)]) -> Option<Vec<u32>> {
        if places.len() != self.constants.len() {
            return None;
        }
        let of = |(i, (constant, (number, may_be_text))): (usize, (&Constant, &(usize, bool)))| {
            let quoted = self.text.as_bytes()[constant.source.start] == b'\'';
            match () {
                () if *number != i + 1 => None,
                () if quoted => may_be_text.then_some(0),
                () if constant.value.contains('.') => Some(NUMERIC),
                // A longer number is a bigint, and the least int4 is one that was negated.
                () => constant
                    .value
                    .parse::<i32>()
                    .ok()
                    .filter(|v| *v > i32::MIN)
                    .map(|_| INT4),
            }
        };
        self.constants.iter().zip(places).enumerate().map(of).collect()
    }

    /// A position in the pattern, in characters from 1, becomes one in the client's text.
    pub(crate) fn position(&self, in_pattern: u32) -> u32 {
        let (mut position, mut done) = (i64::from(in_pattern), 0);
        let mut characters = 0;
        for (i, constant) in self.constants.iter().enumerate() {
            characters += self.pattern[done..constant.at].chars().count();
            if characters as i64 + 1 >= i64::from(in_pattern) {
                break;
            }
            let placeholder = 1 + (i + 1).to_string().len();
            position += self.text[constant.source.clone()].chars().count() as i64 - placeholder as i64;
            done = constant.at;
        }
        u32::try_from(position).unwrap_or(in_pattern)
    }

    /// The part with the client's constants in place of the placeholders; None where it does not use each in its place.
    pub(crate) fn render(&self, part: &Part) -> Option<Part> {
        if part.parameters.is_some() {
            return None;
        }
        let mut text =
            String::with_capacity(part.text.len() + self.text.len() - self.pattern.len().min(self.text.len()));
        let mut replaced = part.replaced.to_vec();
        let mut rest: &str = &part.text;
        while let Some(at) = rest.find('$') {
            let digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
            let number: usize = rest[at + 1..at + 1 + digits].parse().ok()?;
            let constant = self.constants.get(number.checked_sub(1)?)?;
            text.push_str(&rest[..at]);
            let (here, source) = (part.text.len() - rest.len() + at, &self.text[constant.source.clone()]);
            let growth = source.len() as i64 - (1 + digits) as i64;
            for (piece, of_part) in replaced.iter_mut().zip(part.replaced.iter()) {
                shift(&mut piece.at, of_part.at as usize > here, growth);
                shift(
                    &mut piece.original_at,
                    of_part.original_at as usize > constant.at,
                    growth,
                );
            }
            text.push_str(source);
            rest = &rest[at + 1 + digits..];
        }
        text.push_str(rest);
        Some(Part {
            shard: part.shard,
            text: text.into(),
            parameters: None,
            fences: part.fences.clone(),
            replaced: replaced.into(),
        })
    }
}

fn shift(position: &mut u32, applies: bool, growth: i64) {
    if applies {
        *position = u32::try_from(i64::from(*position) + growth).unwrap_or(*position);
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Past the closing quote.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut i = start + 1;
    loop {
        match (bytes.get(i)?, bytes.get(i + 1)) {
            (b'\'', Some(b'\'')) => i += 2,
            (b'\'', _) => return Some(i + 1),
            // What it means depends on standard_conforming_strings.
            (b'\\', _) => return None,
            _ => i += 1,
        }
    }
}

/// Past an integer or decimal; None for what only looks like one.
fn number_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut i = start;
    while bytes.get(i).is_some_and(|b| b.is_ascii_digit() || *b == b'.') {
        i += 1;
    }
    // Cast to text, 007 is '7' and 1. is '1': what is written is not what it says.
    let plain = bytes[i - 1] != b'.' && !(bytes[start] == b'0' && bytes.get(start + 1).is_some_and(u8::is_ascii_digit));
    (plain && !bytes.get(i).is_some_and(|b| is_word(*b))).then_some(i)
}

/// Where a sign before the number begins, if it can only be a sign: after an operator, a comma or a parenthesis.
fn sign_before(bytes: &[u8], number: usize) -> Option<usize> {
    let blank = |b: u8| b == b' ';
    let sign = (0..number)
        .rev()
        .find(|i| !blank(bytes[*i]))
        .filter(|i| bytes[*i] == b'-')?;
    let before = (0..sign).rev().find(|i| !blank(bytes[*i]))?;
    matches!(bytes[before], b'=' | b',' | b'(' | b'<' | b'>').then_some(sign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_model::ShardId;
    use pgherd_sql::route::Replaced;

    fn check(text: &str, expected: Option<(&str, &[&str])>) {
        let found = Template::of(text);
        let found = found
            .as_ref()
            .map(|t| (t.pattern.as_str(), t.values().collect::<Vec<_>>()));
        assert_eq!(found, expected.map(|(p, v)| (p, v.to_vec())), "{text}");
    }

    #[test]
    fn constants_are_taken_out() {
        check(
            "SELECT v FROM t WHERE k = 17;",
            Some(("SELECT v FROM t WHERE k = $1;", &["17"])),
        );
        check(
            "update t set a = a + -5, b='it''s' where k in (1,-2)",
            Some((
                "update t set a = a + -$1, b=$2 where k in ($3,$4)",
                &["5", "it's", "1", "-2"],
            )),
        );
        check(
            "select t1.x2 from t1 where \"c3\" = 1.5",
            Some(("select t1.x2 from t1 where \"c3\" = $1", &["1.5"])),
        );
    }

    #[test]
    fn the_unusual_is_left_alone() {
        for text in [
            "select 1 -- x",
            "select 1 /* x */",
            "select 1; select 2",
            "select E'a'",
            "select e'a'",
            "select $1, 2",
            "select 'a\\b'",
            "select 1e5",
            "select 007::text",
            "select 1.::text",
            "select 0x1F",
            "begin",
            "select v from t",
            "select 'open",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn constants_have_the_types_they_had_in_the_text() {
        let types = |text: &str, places: &[(usize, bool)]| Template::of(text).expect(text).types(places);
        let text = "update t set a = a + 5, b = 'x' where k = -1.5";
        assert_eq!(
            types(text, &[(1, false), (2, true), (3, true)]),
            Some(vec![INT4, 0, NUMERIC])
        );
        assert_eq!(
            types(text, &[(1, false), (2, false), (3, true)]),
            None,
            "a quoted constant"
        );
        assert_eq!(types(text, &[(1, false), (2, true)]), None, "a constant elsewhere");
        for (number, expected) in [
            ("2147483647", Some(vec![INT4])),
            ("2147483648", None),
            ("-2147483648", None),
        ] {
            let text = format!("select v from t where k = {number}");
            assert_eq!(types(&text, &[(1, true)]), expected, "{number}");
        }
    }

    #[test]
    fn positions_are_those_of_the_clients_text() {
        let text = "select 'é' || x from t where k = 123456 and nosuch = 1";
        let template = Template::of(text).expect("has constants");
        for word in ["x from", "k =", "nosuch"] {
            let at = |text: &str| text[..text.find(word).expect(word)].chars().count() as u32 + 1;
            assert_eq!(template.position(at(&template.pattern)), at(text), "{word}");
        }
    }

    #[test]
    fn rendering_restores_the_text_and_its_positions() {
        let text = "select 'long constant', x from t where k = 7";
        let template = Template::of(text).expect("has constants");
        let at = template.pattern.find("t where").expect("there") as u32;
        let part = Part {
            shard: ShardId(1),
            text: template.pattern.replace("from t ", "from child ").into(),
            parameters: None,
            fences: Vec::new(),
            replaced: [Replaced {
                at,
                length: 5,
                original_at: at,
                original_length: 1,
                original_characters: 1,
            }]
            .into(),
        };
        let rendered = template.render(&part).expect("plain");
        assert_eq!(&*rendered.text, "select 'long constant', x from child where k = 7");
        let at = text.find("t where").expect("there") as u32;
        assert_eq!(
            rendered.replaced[..],
            [Replaced {
                at,
                length: 5,
                original_at: at,
                original_length: 1,
                original_characters: 1,
            }]
        );
    }
}
