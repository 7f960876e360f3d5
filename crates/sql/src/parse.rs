//! From a simple query's text to its statements: split as PostgreSQL's lexer and grammar would, classify,
//! and get sqlparser's tree ([`crate::tree`]) for the statements that routing looks into.

use crate::classify::classify;
use crate::kind::Kind;
use crate::lexer::{self, Token, TokenKind};
use crate::tree::tree;
use pgherd_model::ServerError;
use sqlparser::ast::Statement;
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

#[cfg(test)]
mod tests;
