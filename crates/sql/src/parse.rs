//! From a simple query's text to its statements: split as PostgreSQL's lexer and grammar would, classify,
//! and get sqlparser's tree for the statements that routing looks into.
//!
//! A tree's spans are byte offsets: the tokens that sqlparser gets are made from ours, all on line 1, with the
//! column `byte offset within the statement + 1`. So both agree on where every token begins, by construction.

use crate::classify::classify;
use crate::kind::Kind;
use crate::lexer::{self, Token, TokenKind};
use pgherd_model::ServerError;
use sqlparser::ast::Statement;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer as sp;
use std::ops::Range;
use std::sync::Arc;

/// One statement of a text.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// bytes in the text, from the first token to the last, without the `;`
    pub span: Range<usize>,
    /// what it is
    pub kind: Kind,
    /// the tree, where sqlparser has the grammar and routing or schema change want one. Spans are on line 1 with
    /// `column - 1` = bytes from the statement's first byte
    pub ast: Option<Arc<Statement>>,
    /// the tokens, with offsets from the statement's first byte
    pub tokens: Arc<[Token]>,
}

impl Parsed {
    /// The statement's own text.
    pub fn text<'a>(&self, text: &'a str) -> &'a str {
        &text[self.span.clone()]
    }

    /// All identifiers of the statement as the catalog would store them, key words among them.
    pub fn identifiers<'a>(&'a self, statement: &'a str) -> impl Iterator<Item = String> + 'a {
        self.tokens.iter().filter_map(|t| t.identifier(statement))
    }
}

/// Splits and parses a simple query's text. Text without a statement gives an empty list. Text that has no
/// tokens (an unterminated string, say) is one statement of [`Kind::Other`], for PostgreSQL to refuse.
///
/// # Errors
/// 54000 for a text over 4 GB, which no token offset reaches.
pub fn parse(text: &str) -> Result<Vec<Parsed>, ServerError> {
    if u32::try_from(text.len()).is_err() {
        let code = pgherd_model::SqlState::PROGRAM_LIMIT_EXCEEDED;
        return Err(ServerError::new(code, "query text is too long"));
    }
    let Ok(tokens) = lexer::tokenize(text) else {
        return Ok(vec![Parsed {
            span: 0..text.len(),
            kind: Kind::Other,
            ast: None,
            tokens: Arc::new([]),
        }]);
    };
    let statements = split(text, &tokens);
    Ok(statements
        .into_iter()
        .map(|range| statement(text, &tokens[range]))
        .collect())
}

fn statement(text: &str, tokens: &[Token]) -> Parsed {
    let (start, end) = (tokens[0].start, tokens[tokens.len() - 1].end);
    let span = start as usize..end as usize;
    let own = &text[span.clone()];
    let tokens: Arc<[Token]> = tokens
        .iter()
        .map(|t| Token {
            start: t.start - start,
            end: t.end - start,
            ..*t
        })
        .collect();
    let kind = shift(classify(own, &tokens), span.start);
    let ast = wants_tree(&kind).then(|| tree(own, &tokens)).flatten().map(Arc::new);
    Parsed {
        span,
        kind,
        ast,
        tokens,
    }
}

/// Inner statements are given in bytes of the whole text.
fn shift(mut kind: Kind, by: usize) -> Kind {
    if let Kind::Explain { inner, .. } | Kind::Prepare { inner, .. } | Kind::Declare { inner, .. } = &mut kind {
        *inner = inner.start + by..inner.end + by;
    }
    kind
}

fn wants_tree(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge | Kind::Ddl(_)
    )
}

/// Statements as ranges of tokens, none of them empty. A `;` inside parentheses (CREATE RULE) or inside the
/// BEGIN ATOMIC body of a function does not end a statement.
fn split(text: &str, tokens: &[Token]) -> Vec<Range<usize>> {
    let mut statements = Vec::new();
    let (mut start, mut parentheses, mut blocks) = (0, 0i32, 0i32);
    for (i, token) in tokens.iter().enumerate() {
        match token.kind {
            TokenKind::Symbol => match token.text(text) {
                "(" => parentheses += 1,
                ")" => parentheses -= 1,
                ";" if parentheses <= 0 && blocks == 0 => {
                    statements.push(start..i);
                    (start, parentheses) = (i + 1, 0);
                }
                _ => {}
            },
            TokenKind::Word if blocks > 0 => {
                if token.is_word(text, "case") {
                    blocks += 1;
                } else if token.is_word(text, "end") {
                    blocks -= 1;
                }
            }
            TokenKind::Word
                if token.is_word(text, "atomic")
                    && i > start
                    && tokens[i - 1].is_word(text, "begin")
                    && makes_routine(text, &tokens[start..i]) =>
            {
                blocks = 1;
            }
            _ => {}
        }
    }
    statements.push(start..tokens.len());
    statements.retain(|range| !range.is_empty());
    statements
}

fn makes_routine(text: &str, tokens: &[Token]) -> bool {
    let mut words = tokens.iter().take(4);
    words.next().is_some_and(|t| t.is_word(text, "create"))
        && words.any(|t| t.is_word(text, "function") || t.is_word(text, "procedure"))
}

/// sqlparser's tree of one statement; None where it lacks the grammar or would read something differently.
pub(crate) fn tree(text: &str, tokens: &[Token]) -> Option<Statement> {
    let dialect = PostgreSqlDialect {};
    let tokens = convert(text, tokens, &dialect)?;
    let mut parser = Parser::new(&dialect).with_tokens_with_locations(tokens);
    let statement = parser.parse_statement().ok()?;
    (parser.peek_token().token == sp::Token::EOF).then_some(statement)
}

fn convert(text: &str, tokens: &[Token], dialect: &PostgreSqlDialect) -> Option<Vec<sp::TokenWithSpan>> {
    let mut converted = Vec::with_capacity(tokens.len() + 1);
    let word = |i: usize, word: &str| tokens.get(i).is_some_and(|t| t.is_word(text, word));
    for (i, token) in tokens.iter().enumerate() {
        let raw = token.text(text);
        // sqlparser takes FROM ONLY t for a table `only` with the alias t; behind ROWS it means FETCH.
        if word(i, "only") && !(i > 0 && (word(i - 1, "row") || word(i - 1, "rows"))) {
            return None;
        }
        // FOR NO KEY UPDATE and FOR KEY SHARE, which sqlparser lacks, look like FOR UPDATE and FOR SHARE to it.
        let lock = |at: usize| {
            at > 0 && word(at - 1, "for") && word(at, "no") && word(at + 1, "key") && word(at + 2, "update")
        };
        let key_share = i > 0 && word(i - 1, "for") && word(i, "key") && word(i + 1, "share");
        // The same for OVERRIDING SYSTEM VALUE: it says nothing about where a row belongs.
        let overriding = |at: usize| word(at, "overriding") && word(at + 1, "system") && word(at + 2, "value");
        if key_share || lock(i) || (i > 0 && lock(i - 1)) || (0..3).any(|back| i >= back && overriding(i - back)) {
            continue;
        }
        // TABLE t is SELECT * FROM t, whose name sqlparser keeps without its place.
        if word(i, "table") && starts_query(text, tokens, i) {
            let span = place_span(token);
            for word in ["SELECT", "*", "FROM"] {
                let made = if word == "*" {
                    sp::Token::Mul
                } else {
                    sp::Token::make_word(word, None)
                };
                converted.push(sp::TokenWithSpan::new(made, span));
            }
            continue;
        }
        let one = match token.kind {
            TokenKind::Word => sp::Token::make_word(raw, None),
            TokenKind::Quoted if raw.starts_with('"') => {
                sp::Token::make_word(&raw[1..raw.len() - 1].replace("\"\"", "\""), Some('"'))
            }
            TokenKind::Quoted => return None,
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
                None if matches!(raw, "==" | "<=>" | "//") => return None,
                None => {
                    let mut pieces = sp::Tokenizer::new(dialect, raw).tokenize().ok()?;
                    // Several pieces: an operator that sqlparser does not know, which it would read as others.
                    if pieces.len() != 1 {
                        return None;
                    }
                    pieces.pop()?
                }
            },
        };
        converted.push(sp::TokenWithSpan::new(one, place_span(token)));
    }
    Some(converted)
}

fn place_span(token: &Token) -> sp::Span {
    let place = |offset: u32| sp::Location::new(1, u64::from(offset) + 1);
    sp::Span::new(place(token.start), place(token.end))
}

/// Whether a query can begin at token `i`.
fn starts_query(text: &str, tokens: &[Token], i: usize) -> bool {
    let Some(before) = i.checked_sub(1).map(|b| &tokens[b]) else {
        return true;
    };
    let words = ["union", "all", "distinct", "intersect", "except", "as"];
    before.is(text, "(") || words.iter().any(|w| before.is_word(text, w))
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

#[cfg(test)]
mod tests;
