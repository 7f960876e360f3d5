//! Walking over a statement's tokens, for the parts of grammar that are read without sqlparser.

use crate::kind::ObjectName;
use crate::lexer::{Token, TokenKind};
use std::ops::Range;

/// A place among the tokens of a statement.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    pub text: &'a str,
    pub tokens: &'a [Token],
    pub at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str, tokens: &'a [Token]) -> Self {
        Self { text, tokens, at: 0 }
    }

    pub fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    pub fn done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// Whether the next token is this word.
    pub fn is(&self, word: &str) -> bool {
        self.peek().is_some_and(|t| t.is_word(self.text, word))
    }

    /// Whether the token `ahead` of the next one is this word.
    pub fn is_ahead(&self, ahead: usize, word: &str) -> bool {
        self.tokens
            .get(self.at + ahead)
            .is_some_and(|t| t.is_word(self.text, word))
    }

    pub fn is_symbol(&self, symbol: &str) -> bool {
        self.peek().is_some_and(|t| t.is(self.text, symbol))
    }

    /// Takes these words, all or none.
    pub fn accept(&mut self, words: &str) -> bool {
        let mut count = 0;
        for word in words.split(' ') {
            if !self.is_ahead(count, word) {
                return false;
            }
            count += 1;
        }
        self.at += count;
        true
    }

    /// Takes the first of these that comes next.
    pub fn accept_any(&mut self, words: &[&str]) -> bool {
        words.iter().any(|w| self.accept(w))
    }

    pub fn accept_symbol(&mut self, symbol: &str) -> bool {
        let yes = self.is_symbol(symbol);
        self.at += usize::from(yes);
        yes
    }

    /// Takes an identifier.
    pub fn identifier(&mut self) -> Option<String> {
        let name = self.peek()?.identifier(self.text)?;
        self.at += 1;
        Some(name)
    }

    /// Takes a string constant.
    pub fn string(&mut self) -> Option<String> {
        let value = self.peek()?.string(self.text)?;
        self.at += 1;
        Some(value)
    }

    /// Takes `a`, `a.b` or `a.b.c`, of which the last two count.
    pub fn object_name(&mut self) -> Option<ObjectName> {
        let start = self.peek()?.start as usize;
        let (mut schema, mut name) = (None, self.identifier()?);
        while self.is_symbol(".") {
            let mut ahead = *self;
            ahead.at += 1;
            let Some(next) = ahead.identifier() else { break };
            self.at = ahead.at;
            schema = Some(std::mem::replace(&mut name, next));
        }
        let end = self.tokens[self.at - 1].end as usize;
        Some(ObjectName {
            schema,
            name,
            span: start..end,
        })
    }

    /// Takes `[ONLY] name [*], …`, skipping a parenthesised list behind each (columns, arguments).
    pub fn object_names(&mut self) -> Vec<ObjectName> {
        let mut names = Vec::new();
        loop {
            self.accept("only");
            let Some(name) = self.object_name() else { return names };
            names.push(name);
            self.accept_symbol("*");
            if self.is_symbol("(") {
                self.skip_parentheses();
            }
            if !self.accept_symbol(",") {
                return names;
            }
        }
    }

    /// Takes `( … )` and gives what is between, in tokens.
    pub fn skip_parentheses(&mut self) -> Range<usize> {
        let start = self.at + 1;
        let mut depth = 0;
        while let Some(token) = self.peek() {
            self.at += 1;
            if token.is(self.text, "(") {
                depth += 1;
            } else if token.is(self.text, ")") {
                depth -= 1;
                if depth == 0 {
                    return start..self.at - 1;
                }
            }
        }
        start.min(self.tokens.len())..self.tokens.len()
    }

    /// The bytes from here to the end of the statement.
    pub fn rest(&self) -> Range<usize> {
        let end = self.tokens.last().map_or(0, |t| t.end as usize);
        self.peek().map_or(end, |t| t.start as usize)..end
    }

    /// The bytes of these tokens.
    pub fn bytes(&self, tokens: Range<usize>) -> Range<usize> {
        if tokens.is_empty() {
            let at = self.tokens.get(tokens.start).map_or(0, |t| t.start as usize);
            return at..at;
        }
        self.tokens[tokens.start].start as usize..self.tokens[tokens.end - 1].end as usize
    }

    /// The token index of the next of these words outside of parentheses, from here on.
    pub fn find_outside(&self, words: &[&str]) -> Option<usize> {
        let mut depth = 0;
        for (i, token) in self.tokens.iter().enumerate().skip(self.at) {
            match token.kind {
                TokenKind::Symbol => match token.text(self.text) {
                    "(" | "[" => depth += 1,
                    ")" | "]" => depth -= 1,
                    _ => {}
                },
                TokenKind::Word if depth == 0 && words.iter().any(|w| token.is_word(self.text, w)) => return Some(i),
                _ => {}
            }
        }
        None
    }
}
