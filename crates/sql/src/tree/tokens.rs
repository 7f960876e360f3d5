//! One of our tokens as one of sqlparser's.

use crate::lexer::{Token, TokenKind};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::tokenizer as sp;

/// Where it is: its bytes within the statement, as columns from 1.
pub(super) fn place(token: &Token) -> sp::Span {
    let column = |offset: u32| sp::Location::new(1, u64::from(offset) + 1);
    sp::Span::new(column(token.start), column(token.end))
}

/// The same token; None where sqlparser has none.
pub(super) fn convert(token: &Token, text: &str, dialect: &PostgreSqlDialect) -> Option<sp::Token> {
    let raw = token.text(text);
    Some(match token.kind {
        TokenKind::Word => sp::Token::make_word(raw, None),
        TokenKind::Quoted if raw.starts_with('"') => {
            sp::Token::make_word(&raw[1..raw.len() - 1].replace("\"\"", "\""), Some('"'))
        }
        TokenKind::Quoted => sp::Token::make_word(&token.identifier(text)?, Some('"')),
        TokenKind::String => sp::Token::SingleQuotedString(token.string(text)?),
        TokenKind::Number => sp::Token::Number(raw.to_owned(), false),
        TokenKind::Parameter => sp::Token::Placeholder(raw.to_owned()),
        TokenKind::Bits => {
            let body = raw[2..raw.len() - 1].to_owned();
            match raw.as_bytes()[0] {
                b'x' | b'X' => sp::Token::HexStringLiteral(body),
                _ => sp::Token::SingleQuotedByteStringLiteral(body),
            }
        }
        TokenKind::Symbol | TokenKind::Operator => match symbol(raw) {
            Some(known) => known,
            // Operators of other systems, to which sqlparser gives their meaning.
            None if matches!(raw, "==" | "<=>" | "//") => sp::Token::CustomBinaryOperator(raw.to_owned()),
            None => {
                let pieces = sp::Tokenizer::new(dialect, raw).tokenize().ok();
                match pieces.map(|mut pieces| (pieces.pop(), pieces.pop())) {
                    Some((Some(one), None)) => one,
                    // An operator that sqlparser does not know, which it would read as others.
                    _ => sp::Token::CustomBinaryOperator(raw.to_owned()),
                }
            }
        },
    })
}

/// The symbols that nearly every statement has, without a second tokenizer's allocations.
fn symbol(raw: &str) -> Option<sp::Token> {
    Some(match raw {
        "(" => sp::Token::LParen,
        ")" => sp::Token::RParen,
        "," => sp::Token::Comma,
        "." => sp::Token::Period,
        "=" => sp::Token::Eq,
        "<" => sp::Token::Lt,
        ">" => sp::Token::Gt,
        "<=" => sp::Token::LtEq,
        ">=" => sp::Token::GtEq,
        "<>" | "!=" => sp::Token::Neq,
        "+" => sp::Token::Plus,
        "-" => sp::Token::Minus,
        "*" => sp::Token::Mul,
        "/" => sp::Token::Div,
        "%" => sp::Token::Mod,
        "||" => sp::Token::StringConcat,
        "::" => sp::Token::DoubleColon,
        ":" => sp::Token::Colon,
        "[" => sp::Token::LBracket,
        "]" => sp::Token::RBracket,
        "=>" => sp::Token::RArrow,
        ":=" => sp::Token::Assignment,
        _ => return None,
    })
}
