//! From the tokens of a body to its block: the reader of tokens, declarations and blocks. Statements are in `statements`.

use super::{Block, Condition, Declaration, Handler, Statement, Target, VariableKind};
use crate::lexer::{Token, TokenKind, tokenize};

/// Why a body is not run: what in it is not understood, for a DETAIL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotUnderstood(pub String);

/// Blocks and loops within each other.
const DEEPEST: usize = 100;

/// The words with which statements begin that change more than rows.
const SCHEMA_WORDS: [&str; 10] = [
    "create", "alter", "drop", "grant", "revoke", "comment", "reindex", "refresh", "truncate", "security",
];

/// Whether a body may change the schema: as its own statement, or by text that it makes.
pub fn changes_schema(body: &str) -> bool {
    let Ok(tokens) = tokenize(body) else { return false };
    tokens
        .iter()
        .any(|token| SCHEMA_WORDS.iter().any(|word| token.is_word(body, word)) || token.is_word(body, "execute"))
}

/// The block that is the body of a DO.
///
/// Errors: what of PL/pgSQL is not run by a gateway, or a mistake, which PostgreSQL's own compiler tells better.
pub fn parse(body: &str) -> Result<Block, NotUnderstood> {
    let tokens = tokenize(body).map_err(|_| NotUnderstood("A string in it does not end.".into()))?;
    let mut reader = Reader {
        text: body,
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    let label = reader.label()?;
    let block = reader.block(label)?;
    reader.take_symbol(";");
    match reader.peek() {
        None => Ok(block),
        Some(token) => Err(reader.unclear(token)),
    }
}

/// Reads tokens from left to right.
pub(super) struct Reader<'a> {
    pub(super) text: &'a str,
    pub(super) tokens: &'a [Token],
    pub(super) at: usize,
    depth: usize,
}

pub(super) type Parsed<T> = Result<T, NotUnderstood>;

impl<'a> Reader<'a> {
    pub(super) fn peek(&self) -> Option<Token> {
        self.tokens.get(self.at).copied()
    }

    pub(super) fn peek_is(&self, ahead: usize, word: &str) -> bool {
        self.tokens
            .get(self.at + ahead)
            .is_some_and(|token| token.is_word(self.text, word))
    }

    pub(super) fn peek_symbol(&self, ahead: usize, symbol: &str) -> bool {
        self.tokens
            .get(self.at + ahead)
            .is_some_and(|token| token.is(self.text, symbol))
    }

    pub(super) fn take_word(&mut self, word: &str) -> bool {
        let is = self.peek_is(0, word);
        self.at += usize::from(is);
        is
    }

    /// The first of these words that is next.
    pub(super) fn take_any(&mut self, words: &[&'static str]) -> Option<&'static str> {
        let found = words.iter().copied().find(|word| self.peek_is(0, word));
        self.at += usize::from(found.is_some());
        found
    }

    pub(super) fn take_symbol(&mut self, symbol: &str) -> bool {
        let is = self.peek_symbol(0, symbol);
        self.at += usize::from(is);
        is
    }

    pub(super) fn expect_word(&mut self, word: &str) -> Parsed<()> {
        match self.take_word(word) {
            true => Ok(()),
            false => Err(self.wanted(word)),
        }
    }

    pub(super) fn expect_symbol(&mut self, symbol: &str) -> Parsed<()> {
        match self.take_symbol(symbol) {
            true => Ok(()),
            false => Err(self.wanted(symbol)),
        }
    }

    pub(super) fn wanted(&self, what: &str) -> NotUnderstood {
        match self.peek() {
            Some(token) => NotUnderstood(format!(
                "There is \"{}\" in line {} where \"{what}\" is expected.",
                token.text(self.text),
                self.line_of(token)
            )),
            None => NotUnderstood(format!("It ends where \"{what}\" is expected.")),
        }
    }

    pub(super) fn unclear(&self, token: Token) -> NotUnderstood {
        NotUnderstood(format!(
            "\"{}\" in line {} is not understood.",
            token.text(self.text),
            self.line_of(token)
        ))
    }

    pub(super) fn line_of(&self, token: Token) -> u32 {
        let before = &self.text.as_bytes()[..token.start as usize];
        before.iter().filter(|b| **b == b'\n').count() as u32 + 1
    }

    /// The line of what is next.
    pub(super) fn line(&self) -> u32 {
        self.peek().map_or(0, |token| self.line_of(token))
    }

    pub(super) fn name(&mut self) -> Parsed<String> {
        let token = self.peek().ok_or_else(|| self.wanted("a name"))?;
        let name = token.identifier(self.text).ok_or_else(|| self.wanted("a name"))?;
        self.at += 1;
        Ok(name)
    }

    /// `a`, `a.b` or `a.b.c`
    pub(super) fn target(&mut self) -> Parsed<Target> {
        let mut target = vec![self.name()?];
        while self.take_symbol(".") {
            target.push(self.name()?);
        }
        Ok(target)
    }

    /// `target [, target …]`
    pub(super) fn targets(&mut self) -> Parsed<Vec<Target>> {
        let mut targets = vec![self.target()?];
        while self.take_symbol(",") {
            targets.push(self.target()?);
        }
        Ok(targets)
    }

    /// The text of these tokens.
    pub(super) fn text_of(&self, from: usize, to: usize) -> String {
        match (
            self.tokens.get(from),
            to.checked_sub(1).and_then(|last| self.tokens.get(last)),
        ) {
            (Some(first), Some(last)) if from < to => self.text[first.start as usize..last.end as usize].to_owned(),
            _ => String::new(),
        }
    }

    /// What stands before the first of these words or symbols outside of parentheses, which is left to be read. Like PostgreSQL, it
    /// takes no notice of what the words mean there.
    pub(super) fn until(&mut self, ends: &[&str]) -> Parsed<String> {
        let from = self.at;
        let mut open = 0_usize;
        while let Some(token) = self.peek() {
            if token.is(self.text, "(") || token.is(self.text, "[") {
                open += 1;
            } else if token.is(self.text, ")") || token.is(self.text, "]") {
                open = open.saturating_sub(1);
            } else if open == 0
                && ends
                    .iter()
                    .any(|end| token.is(self.text, end) || token.is_word(self.text, end))
            {
                if self.at == from {
                    return Err(self.wanted("an expression"));
                }
                return Ok(self.text_of(from, self.at));
            }
            self.at += 1;
        }
        Err(self.wanted(ends.last().copied().unwrap_or(";")))
    }

    /// An expression for each comma outside of parentheses, up to one of these ends.
    pub(super) fn list_until(&mut self, ends: &[&str]) -> Parsed<Vec<String>> {
        let mut with_comma = ends.to_vec();
        with_comma.push(",");
        let mut list = vec![self.until(&with_comma)?];
        while self.take_symbol(",") {
            list.push(self.until(&with_comma)?);
        }
        Ok(list)
    }

    /// `<<label>>`
    pub(super) fn label(&mut self) -> Parsed<Option<String>> {
        if !self.take_symbol("<<") {
            return Ok(None);
        }
        let label = self.name()?;
        self.expect_symbol(">>")?;
        Ok(Some(label))
    }

    /// From DECLARE or BEGIN to END and its label.
    pub(super) fn block(&mut self, label: Option<String>) -> Parsed<Block> {
        let mut variables = Vec::new();
        if self.take_word("declare") {
            while !self.peek_is(0, "begin") {
                if !self.take_word("declare") {
                    variables.push(self.declaration()?);
                }
            }
        }
        self.expect_word("begin")?;
        let statements = self.statements(&["exception", "end"])?;
        let mut handlers = Vec::new();
        if self.take_word("exception") {
            while self.take_word("when") {
                handlers.push(self.handler()?);
            }
        }
        self.expect_word("end")?;
        self.end_label()?;
        Ok(Block {
            label,
            variables,
            statements,
            handlers,
        })
    }

    pub(super) fn end_label(&mut self) -> Parsed<()> {
        if self.peek().is_some() && !self.peek_symbol(0, ";") {
            self.name()?;
        }
        Ok(())
    }

    fn handler(&mut self) -> Parsed<Handler> {
        let mut conditions = vec![self.condition()?];
        while self.take_word("or") {
            conditions.push(self.condition()?);
        }
        self.expect_word("then")?;
        let statements = self.statements(&["when", "end"])?;
        Ok(Handler { conditions, statements })
    }

    pub(super) fn condition(&mut self) -> Parsed<Condition> {
        if self.take_word("sqlstate") {
            let code = self.peek().and_then(|token| token.string(self.text));
            let code = code.ok_or_else(|| self.wanted("a code"))?;
            self.at += 1;
            return Ok(Condition::Code(code));
        }
        Ok(Condition::Name(self.name()?))
    }

    /// `name [CONSTANT] type [COLLATE …] [NOT NULL] [{DEFAULT | := | =} expression];`
    fn declaration(&mut self) -> Parsed<Declaration> {
        let line = self.line();
        let name = self.name()?;
        for word in ["alias", "cursor", "scroll"] {
            if self.peek_is(0, word) {
                return Err(self.unclear(self.tokens[self.at]));
            }
        }
        let constant = self.take_word("constant");
        let kind = self.variable_kind()?;
        if self.peek_is(0, "collate") {
            return Err(self.unclear(self.tokens[self.at]));
        }
        let not_null = self.take_word("not");
        if not_null {
            self.expect_word("null")?;
        }
        let has_default = self.take_word("default") || self.take_symbol(":=") || self.take_symbol("=");
        let default = match has_default {
            true => Some(self.until(&[";"])?),
            false => None,
        };
        self.expect_symbol(";")?;
        Ok(Declaration {
            name,
            kind,
            constant,
            not_null,
            default,
            line,
        })
    }

    fn variable_kind(&mut self) -> Parsed<VariableKind> {
        if self.peek_is(0, "record") {
            self.at += 1;
            return Ok(VariableKind::Record);
        }
        let from = self.at;
        let ends = ["not", "default", "collate"];
        while let Some(token) = self.peek() {
            let is_end = [";", ":=", "="].iter().any(|end| token.is(self.text, end))
                || ends.iter().any(|end| token.is_word(self.text, end));
            if is_end {
                break;
            }
            if token.is(self.text, "%") {
                return self.like_column(from);
            }
            self.at += 1;
        }
        match self.text_of(from, self.at) {
            empty if empty.is_empty() => Err(self.wanted("a type")),
            written => Ok(VariableKind::Of(written)),
        }
    }

    /// `table.column%TYPE`, `schema.table.column%TYPE`, `table%ROWTYPE`
    fn like_column(&mut self, from: usize) -> Parsed<VariableKind> {
        let percent = self.at;
        self.at += 1;
        if self.take_word("rowtype") {
            return Ok(VariableKind::Row(self.text_of(from, percent)));
        }
        self.expect_word("type")?;
        if percent < from + 3 || !self.tokens[percent - 2].is(self.text, ".") {
            return Err(NotUnderstood(format!(
                "\"{}%TYPE\" is the type of no column.",
                self.text_of(from, percent)
            )));
        }
        let column = self.tokens[percent - 1].identifier(self.text);
        let column = column.ok_or_else(|| self.unclear(self.tokens[percent - 1]))?;
        Ok(VariableKind::OfColumn(self.text_of(from, percent - 2), column))
    }

    /// Up to one of these words, which is left to be read.
    pub(super) fn statements(&mut self, ends: &[&str]) -> Parsed<Vec<Statement>> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(NotUnderstood("Its blocks are nested too deeply.".into()));
        }
        let mut statements = Vec::new();
        while !ends.iter().any(|end| self.peek_is(0, end)) {
            if self.peek().is_none() {
                return Err(self.wanted("end"));
            }
            let line = self.line();
            let action = self.action()?;
            statements.push(Statement { line, action });
        }
        self.depth -= 1;
        Ok(statements)
    }

    pub(super) fn is_name(&self, ahead: usize) -> bool {
        let token = self.tokens.get(self.at + ahead);
        token.is_some_and(|t| matches!(t.kind, TokenKind::Word | TokenKind::Quoted))
    }
}
