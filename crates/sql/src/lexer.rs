//! PostgreSQL's lexical structure: text → tokens with byte offsets.
//!
//! Follows `scan.l` of PostgreSQL 15 under `standard_conforming_strings = on`: nested comments, dollar quotes,
//! `E''`, `U&''`, `B''`, `X''`, strings that go on after a newline, operators that end before `+` or `-` and
//! before a comment. It does not know the grammar; the splitting into statements is in [`crate::parse`].

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// an unquoted identifier or key word
    Word,
    /// `"…"` or `U&"…"`
    Quoted,
    /// a string constant of any form; see [`Token::string`]
    String,
    /// `B'…'` or `X'…'`
    Bits,
    /// a number without sign
    Number,
    /// `$1`
    Parameter,
    /// one of `( ) [ ] , ; . :` and `:=`, `::`, `=>`, `..`
    Symbol,
    /// an operator
    Operator,
}

/// A token: its kind and its bytes in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// what it is
    pub kind: TokenKind,
    /// the first byte
    pub start: u32,
    /// behind the last byte
    pub end: u32,
}

/// A text's tokens, asked by their number; where there is none, nothing stands.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) text: &'a str,
    pub(crate) tokens: &'a [Token],
}

impl Reader<'_> {
    /// Whether this symbol or operator stands there.
    pub(crate) fn is(&self, at: usize, symbol: &str) -> bool {
        self.tokens.get(at).is_some_and(|t| t.is(self.text, symbol))
    }

    /// Whether this unquoted word stands there, in any case.
    pub(crate) fn is_word(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|t| t.is_word(self.text, word))
    }
}

/// The text cannot be split into tokens: an unterminated string, comment or identifier. PostgreSQL makes
/// a better error of it than we could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unterminated;

/// The longest name PostgreSQL keeps, in bytes; longer ones are cut.
const NAME_BYTES: usize = 63;

impl Token {
    /// Its text as written.
    pub fn text<'a>(&self, text: &'a str) -> &'a str {
        &text[self.start as usize..self.end as usize]
    }

    /// Whether it is this unquoted word, in any case.
    pub fn is_word(&self, text: &str, word: &str) -> bool {
        self.kind == TokenKind::Word && self.text(text).eq_ignore_ascii_case(word)
    }

    /// Whether it names this, in quotes or without.
    pub fn names(&self, text: &str, name: &str) -> bool {
        self.identifier(text).is_some_and(|n| n == name)
    }

    /// Whether it is this symbol or operator.
    pub fn is(&self, text: &str, symbol: &str) -> bool {
        matches!(self.kind, TokenKind::Symbol | TokenKind::Operator) && self.text(text) == symbol
    }

    /// The identifier as the catalog stores it: folded or unquoted, cut at 63 bytes. None for other tokens,
    /// and for `U&"…"` with escapes that are not understood.
    pub fn identifier(&self, text: &str) -> Option<String> {
        let raw = self.text(text);
        let name = match self.kind {
            TokenKind::Word => raw.to_ascii_lowercase(),
            TokenKind::Quoted if raw.starts_with('"') => raw[1..raw.len() - 1].replace("\"\"", "\""),
            TokenKind::Quoted => unicode_escapes(&raw[3..raw.len() - 1].replace("\"\"", "\""))?,
            _ => return None,
        };
        Some(cut_name(name))
    }

    /// The value of a string constant; None for other tokens and for escapes that PostgreSQL would refuse.
    pub fn string(&self, text: &str) -> Option<String> {
        if self.kind != TokenKind::String {
            return None;
        }
        let raw = self.text(text);
        match raw.as_bytes()[0] {
            b'\'' => Some(pieces(raw, 1).replace("''", "'")),
            b'$' => {
                let tag = raw[1..].find('$')? + 2;
                Some(raw[tag..raw.len() - tag].to_owned())
            }
            b'e' | b'E' => backslash_escapes(&pieces(raw, 2)),
            b'n' | b'N' => Some(pieces(raw, 2).replace("''", "'")),
            _ => unicode_escapes(&pieces(raw, 3).replace("''", "'")),
        }
    }
}

/// Cuts a name as PostgreSQL does: at 63 bytes, not within a character.
pub fn cut_name(mut name: String) -> String {
    if name.len() > NAME_BYTES {
        let end = (0..=NAME_BYTES).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
        name.truncate(end);
    }
    name
}

/// What stands between the quotes of a string that begins after `prefix` bytes, with continuations
/// (`'a' newline 'b'`) joined. Quotes inside stay doubled.
fn pieces(raw: &str, prefix: usize) -> String {
    let bytes = raw.as_bytes();
    let escapes = matches!(bytes[0], b'e' | b'E');
    let (mut out, mut at) = (String::new(), prefix);
    loop {
        let end = quoted_end(bytes, at, b'\'', escapes).unwrap_or(raw.len());
        out.push_str(&raw[at..end - 1]);
        match bytes[end..].iter().position(|&b| b == b'\'') {
            Some(next) => at = end + next + 1,
            None => return out,
        }
    }
}

/// Undoes `\n`, `\x41`, `\u0041` … and `''` of an `E'…'` string.
fn backslash_escapes(body: &str) -> Option<String> {
    let bytes = body.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        at += 1;
        if byte == b'\'' {
            at += 1;
        }
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let escape = *bytes.get(at)?;
        at += 1;
        match escape {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'0'..=b'7' => {
                let length = digits(bytes, at - 1, 3, |b| (b'0'..=b'7').contains(&b));
                let value = u32::from_str_radix(&body[at - 1..at - 1 + length], 8).ok()?;
                out.push(value as u8);
                at += length - 1;
            }
            b'x' if digits(bytes, at, 2, |b| b.is_ascii_hexdigit()) > 0 => {
                let length = digits(bytes, at, 2, |b| b.is_ascii_hexdigit());
                out.push(u8::from_str_radix(&body[at..at + length], 16).ok()?);
                at += length;
            }
            b'u' | b'U' => {
                let length = if escape == b'u' { 4 } else { 8 };
                let value = u32::from_str_radix(body.get(at..at + length)?, 16).ok()?;
                // Surrogate pairs are left to PostgreSQL.
                out.extend(char::from_u32(value)?.to_string().bytes());
                at += length;
            }
            other => out.push(other),
        }
    }
    let value = String::from_utf8(out).ok()?;
    (!value.contains('\0')).then_some(value)
}

fn digits(bytes: &[u8], at: usize, most: usize, is: impl Fn(u8) -> bool) -> usize {
    bytes[at.min(bytes.len())..]
        .iter()
        .take(most)
        .take_while(|&&b| is(b))
        .count()
}

/// Undoes `\0041` and `\+000041` of `U&'…'` with the default escape character.
fn unicode_escapes(body: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('\\') {
            out.push('\\');
            rest = after;
            continue;
        }
        let (from, length) = if rest.starts_with('+') { (1, 6) } else { (0, 4) };
        let value = u32::from_str_radix(rest.get(from..from + length)?, 16).ok()?;
        out.push(char::from_u32(value).filter(|&c| c != '\0')?);
        rest = &rest[from + length..];
    }
    out.push_str(rest);
    Some(out)
}

/// Behind the closing quote of what is quoted from `at` on (behind the opening one).
fn quoted_end(bytes: &[u8], mut at: usize, quote: u8, escapes: bool) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            b if b == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            b if b == quote => return Some(at + 1),
            b'\\' if escapes => at += 2,
            _ => at += 1,
        }
    }
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0c)
}

fn is_word_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

fn is_word_part(b: u8) -> bool {
    is_word_start(b) || b.is_ascii_digit() || b == b'$'
}

fn is_operator(b: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&b)
}

/// All tokens of `text`, without white space and comments.
pub fn tokenize(text: &str) -> Result<Vec<Token>, Unterminated> {
    tokenize_under(text, false)
}

/// The same; with `escapes`, a backslash escapes in `'…'` too, as under `standard_conforming_strings = off`.
pub(crate) fn tokenize_under(text: &str, escapes: bool) -> Result<Vec<Token>, Unterminated> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(text.len() / 5 + 4);
    let mut at = 0;
    loop {
        at = skip_blank(bytes, at)?;
        if at >= bytes.len() {
            return Ok(tokens);
        }
        let (kind, end) = token(bytes, at, escapes)?;
        tokens.push(Token {
            kind,
            start: at as u32,
            end: end as u32,
        });
        at = end;
    }
}

/// Behind white space and comments.
fn skip_blank(bytes: &[u8], mut at: usize) -> Result<usize, Unterminated> {
    loop {
        match bytes.get(at) {
            Some(&b) if is_space(b) => at += 1,
            Some(b'-') if bytes.get(at + 1) == Some(&b'-') => {
                while at < bytes.len() && !matches!(bytes[at], b'\n' | b'\r') {
                    at += 1;
                }
            }
            Some(b'/') if bytes.get(at + 1) == Some(&b'*') => at = comment_end(bytes, at + 2)?,
            _ => return Ok(at),
        }
    }
}

fn comment_end(bytes: &[u8], mut at: usize) -> Result<usize, Unterminated> {
    let mut depth = 1;
    while depth > 0 {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b'/'), Some(b'*')) => (depth, at) = (depth + 1, at + 2),
            (Some(b'*'), Some(b'/')) => (depth, at) = (depth - 1, at + 2),
            (Some(_), Some(_)) => at += 1,
            _ => return Err(Unterminated),
        }
    }
    Ok(at)
}

fn token(bytes: &[u8], at: usize, escapes: bool) -> Result<(TokenKind, usize), Unterminated> {
    use TokenKind::{Bits, Number, Operator, Parameter, Quoted, String, Symbol, Word};
    let next = |i: usize| bytes.get(at + i).copied().unwrap_or(0);
    let quoted = |from, quote| quoted_end(bytes, from, quote, false).ok_or(Unterminated);
    let first = bytes[at];
    Ok(match first {
        b'\'' => (String, string_end(bytes, at + 1, escapes)?),
        b'"' => (Quoted, quoted(at + 1, b'"')?),
        b'e' | b'E' if next(1) == b'\'' => (String, string_end(bytes, at + 2, true)?),
        b'n' | b'N' if next(1) == b'\'' => (String, string_end(bytes, at + 2, escapes)?),
        b'b' | b'B' | b'x' | b'X' if next(1) == b'\'' => (Bits, string_end(bytes, at + 2, false)?),
        b'u' | b'U' if next(1) == b'&' && next(2) == b'\'' => (String, string_end(bytes, at + 3, false)?),
        b'u' | b'U' if next(1) == b'&' && next(2) == b'"' => (Quoted, quoted(at + 3, b'"')?),
        b'$' if next(1).is_ascii_digit() => (
            Parameter,
            at + 1 + digits(bytes, at + 1, usize::MAX, |b| b.is_ascii_digit()),
        ),
        b'$' => match dollar_end(bytes, at) {
            Some(end) => (String, end?),
            None => (Operator, at + 1),
        },
        b if is_word_start(b) => (Word, at + digits(bytes, at, usize::MAX, is_word_part)),
        b if b.is_ascii_digit() || (b == b'.' && next(1).is_ascii_digit()) => (Number, number_end(bytes, at)),
        b':' if matches!(next(1), b':' | b'=') => (Symbol, at + 2),
        b'.' if next(1) == b'.' => (Symbol, at + 2),
        b'=' if next(1) == b'>' && !is_operator(next(2)) => (Symbol, at + 2),
        b'(' | b')' | b'[' | b']' | b',' | b';' | b'.' | b':' => (Symbol, at + 1),
        b if is_operator(b) => (Operator, operator_end(bytes, at)),
        _ => (Operator, at + 1),
    })
}

/// The end of a string, with its continuations: another quote behind white space that has a newline.
fn string_end(bytes: &[u8], at: usize, escapes: bool) -> Result<usize, Unterminated> {
    let mut end = quoted_end(bytes, at, b'\'', escapes).ok_or(Unterminated)?;
    loop {
        let blank = digits(bytes, end, usize::MAX, is_space);
        let newline = bytes[end..end + blank].iter().any(|b| matches!(b, b'\n' | b'\r'));
        if !newline || bytes.get(end + blank) != Some(&b'\'') {
            return Ok(end);
        }
        end = quoted_end(bytes, end + blank + 1, b'\'', escapes).ok_or(Unterminated)?;
    }
}

/// The end of a dollar-quoted string; None when `$` does not open one.
fn dollar_end(bytes: &[u8], at: usize) -> Option<Result<usize, Unterminated>> {
    let tag = digits(bytes, at + 1, usize::MAX, |b| is_word_part(b) && b != b'$');
    if bytes.get(at + 1 + tag) != Some(&b'$') {
        return None;
    }
    let delimiter = &bytes[at..at + tag + 2];
    let body = at + delimiter.len();
    let found = bytes[body..].windows(delimiter.len()).position(|w| w == delimiter);
    Some(found.map(|i| body + i + delimiter.len()).ok_or(Unterminated))
}

fn number_end(bytes: &[u8], at: usize) -> usize {
    let run = |from| from + digits(bytes, from, usize::MAX, |b| b.is_ascii_digit());
    let mut end = run(at);
    // `1..10` is two numbers around `..`.
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1) != Some(&b'.') {
        end = run(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            end = run(end + 1 + sign);
        }
    }
    end
}

/// An operator ends before a comment; one of several characters does not end in `+` or `-` unless it
/// has one of `~ ! @ # ^ & | ` ? %` (so that `=-1` is `=` and `-1`).
fn operator_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + digits(bytes, at, usize::MAX, is_operator);
    for i in at + 1..end {
        if matches!(&bytes[i..(i + 2).min(end)], b"--" | b"/*") {
            end = i;
            break;
        }
    }
    let special = bytes[at..end].iter().any(|b| b"~!@#^&|`?%".contains(b));
    while !special && end > at + 1 && matches!(bytes[end - 1], b'+' | b'-') {
        end -= 1;
    }
    end
}

/// How many parentheses and brackets are open before each token.
pub fn depths(text: &str, tokens: &[Token]) -> Vec<i32> {
    let mut depth = 0;
    let of = |token: &Token| {
        let before = depth;
        if token.kind == TokenKind::Symbol {
            match token.text(text) {
                "(" | "[" => depth += 1,
                ")" | "]" => depth -= 1,
                _ => {}
            }
        }
        before
    };
    tokens.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let tokens = match tokenize(text) {
            Ok(tokens) => tokens.iter().map(|t| t.text(text)).collect::<Vec<_>>().join("|"),
            Err(Unterminated) => "unterminated".into(),
        };
        assert_eq!(tokens, expected, "{text}");
    }

    #[test]
    fn tokens() {
        check("select a.b, \"x\"\"y\" from t", "select|a|.|b|,|\"x\"\"y\"|from|t");
        check("a=-1", "a|=|-|1");
        check("a@-1", "a|@-|1");
        check("a<=-1 --x", "a|<=|-|1");
        check("a/*x/*y*/*/b", "a|b");
        check("a -/*x*/ b", "a|-|b");
        check("'it''s' E'a\\'b'", "'it''s'|E'a\\'b'");
        check("'a'\n'b' 'c' 'd'", "'a'\n'b'|'c'|'d'");
        check("$$a;b$$ $q$ $$ $q$ $1 a$b$c", "$$a;b$$|$q$ $$ $q$|$1|a$b$c");
        check("1.5e-3 .5 1..2 x'1f' U&'a'", "1.5e-3|.5|1|..|2|x'1f'|U&'a'");
        check("f(a => 1, b := 2)::int[1:2]", "f|(|a|=>|1|,|b|:=|2|)|::|int|[|1|:|2|]");
        check("'abc", "unterminated");
        check("/* /* */", "unterminated");
        check("$a$ $b$", "unterminated");
        check("\"x", "unterminated");
        check("größe = 'ä'", "größe|=|'ä'");
    }

    #[test]
    fn values() {
        let string = |text: &str| tokenize(text).unwrap()[0].string(text);
        assert_eq!(string("'it''s'").as_deref(), Some("it's"));
        assert_eq!(string("'a'\n  'b'").as_deref(), Some("ab"));
        assert_eq!(string("E'a\\n\\'\\x41\\101\\u00e4'''").as_deref(), Some("a\n'AAä'"));
        assert_eq!(string("e'\\xe9'"), None);
        assert_eq!(string("$x$a'b$x$").as_deref(), Some("a'b"));
        assert_eq!(string("U&'d\\0061t\\+000061'").as_deref(), Some("data"));
        let name = |text: &str| tokenize(text).unwrap()[0].identifier(text);
        assert_eq!(name("FooÄ").as_deref(), Some("fooÄ"));
        assert_eq!(name("\"Foo\"\"x\"").as_deref(), Some("Foo\"x"));
        assert_eq!(name("U&\"d\\0061ta\"").as_deref(), Some("data"));
        assert_eq!(name(&"a".repeat(70)).map(|n| n.len()), Some(63));
    }
}
