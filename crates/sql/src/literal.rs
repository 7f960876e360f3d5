//! Constants as arguments of `CALL pgherd.…`, and lists between commas.

use crate::cursor::Cursor;
use crate::kind::Literal;
use crate::lexer::TokenKind;
use std::ops::Range;

/// The pieces of `tokens` between commas outside of parentheses and brackets; none for an empty list.
pub(crate) fn split_commas(c: &Cursor, tokens: Range<usize>) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let (mut depth, mut start) = (0, tokens.start);
    for i in tokens.clone() {
        let token = &c.tokens[i];
        if token.kind != TokenKind::Symbol {
            continue;
        }
        match token.text(c.text) {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "," if depth == 0 => {
                pieces.push(start..i);
                start = i + 1;
            }
            _ => {}
        }
    }
    if !tokens.is_empty() {
        pieces.push(start..tokens.end);
    }
    pieces
}

/// The arguments of a CALL between its parentheses.
pub(crate) fn arguments(c: &Cursor, inside: Range<usize>) -> Vec<(Option<String>, Literal)> {
    let one = |range: Range<usize>| {
        let named = range.len() > 2 && ["=>", ":="].iter().any(|s| c.tokens[range.start + 1].is(c.text, s));
        match named {
            true => {
                let name = c.tokens[range.start].identifier(c.text);
                (name, literal(c, range.start + 2..range.end))
            }
            false => (None, literal(c, range)),
        }
    };
    split_commas(c, inside).into_iter().map(one).collect()
}

/// One constant; casts are dropped, since the procedure knows what it wants.
fn literal(c: &Cursor, range: Range<usize>) -> Literal {
    let other = || Literal::Other(c.text[c.bytes(range.clone())].to_owned());
    let mut here = Cursor { at: range.start, ..*c };
    here.tokens = &here.tokens[..range.end];
    let Some(first) = here.peek() else { return other() };
    let negative = (first.is(c.text, "-") || first.is(c.text, "+")) && {
        here.at += 1;
        true
    };
    let Some(token) = here.peek() else { return other() };
    let value = match token.kind {
        TokenKind::Number => {
            let sign = if negative && first.is(c.text, "-") { "-" } else { "" };
            here.at += 1;
            Literal::Number(format!("{sign}{}", token.text(c.text)))
        }
        _ if negative => return other(),
        TokenKind::String => match here.string() {
            Some(text) => Literal::Text(text),
            None => return other(),
        },
        TokenKind::Parameter => {
            here.at += 1;
            match token.text(c.text)[1..].parse() {
                Ok(number) => Literal::Parameter(number),
                Err(_) => return other(),
            }
        }
        TokenKind::Symbol if here.is_symbol("(") => Literal::Row(list(&mut here)),
        TokenKind::Word if here.accept("null") => Literal::Null,
        TokenKind::Word if here.accept("true") => Literal::Boolean(true),
        TokenKind::Word if here.accept("false") => Literal::Boolean(false),
        TokenKind::Word if here.is("row") && here.tokens.get(here.at + 1).is_some_and(|t| t.is(c.text, "(")) => {
            here.at += 1;
            Literal::Row(list(&mut here))
        }
        TokenKind::Word if here.is("array") && here.tokens.get(here.at + 1).is_some_and(|t| t.is(c.text, "[")) => {
            let inside = here.at + 2..here.tokens.len() - 1;
            here.at = here.tokens.len();
            Literal::Array(split_commas(c, inside).into_iter().map(|r| literal(c, r)).collect())
        }
        // `date '2024-01-01'`
        TokenKind::Word
            if here
                .tokens
                .get(here.at + 1)
                .is_some_and(|t| t.kind == TokenKind::String) =>
        {
            here.at += 1;
            match here.string() {
                Some(text) => Literal::Text(text),
                None => return other(),
            }
        }
        _ => return other(),
    };
    if here.done() || here.is_symbol("::") {
        value
    } else {
        other()
    }
}

fn list(here: &mut Cursor) -> Vec<Literal> {
    let inside = here.skip_parentheses();
    split_commas(here, inside)
        .into_iter()
        .map(|r| literal(here, r))
        .collect()
}
