//! The statements of PL/pgSQL.

use super::parse::{NotUnderstood, Parsed, Reader};
use super::{Action, Into, Over, Raise, Raised, Subscript, Target};
use crate::lexer::TokenKind;

const LEVELS: [&str; 6] = ["debug", "log", "info", "notice", "warning", "exception"];

/// What a gateway does not do in the middle of a DO.
const NOT_RUN: [&str; 7] = ["open", "fetch", "move", "close", "copy", "do", "savepoint"];

impl Reader<'_> {
    /// One statement with its `;`.
    pub(super) fn action(&mut self) -> Parsed<Action> {
        let label = self.label()?;
        if self.peek_is(0, "declare") || self.peek_is(0, "begin") {
            let block = self.block(label)?;
            self.expect_symbol(";")?;
            return Ok(Action::Block(block));
        }
        let is_loop = ["loop", "while", "for", "foreach"]
            .iter()
            .any(|word| self.peek_is(0, word));
        if is_loop {
            return self.repeated(label);
        }
        if label.is_some() {
            return Err(self.wanted("loop"));
        }
        if let Some(action) = self.assignment()? {
            return Ok(action);
        }
        if NOT_RUN.iter().any(|word| self.peek_is(0, word)) {
            return Err(self.unclear(self.tokens[self.at]));
        }
        let words = [
            "if", "case", "exit", "continue", "return", "raise", "assert", "perform", "execute", "get", "null",
            "commit", "rollback",
        ];
        let action = match self.take_any(&words) {
            Some("if") => self.condition_chain(),
            Some("case") => self.cases(),
            Some(word @ ("exit" | "continue")) => self.leave(word == "exit"),
            Some("return") => Ok(Action::Return),
            Some("raise") => self.raise(),
            Some("assert") => self.assertion(),
            Some("perform") => Ok(Action::Perform(self.until(&[";"])?)),
            Some("execute") => self.dynamic(),
            Some("get") => self.diagnostics(),
            Some(word @ ("commit" | "rollback")) => self.end_of_transaction(word == "commit"),
            Some(_) => Ok(Action::Nothing),
            None => self.sql(),
        }?;
        self.expect_symbol(";")?;
        Ok(action)
    }

    fn assignment(&mut self) -> Parsed<Option<Action>> {
        let mut ahead = 1;
        while self.is_name(0) && self.peek_symbol(ahead, ".") && self.is_name(ahead + 1) {
            ahead += 2;
        }
        let assigns = self.peek_symbol(ahead, ":=") || self.peek_symbol(ahead, "=");
        if !self.is_name(0) || !(assigns || self.peek_symbol(ahead, "[")) {
            return Ok(None);
        }
        let target = self.target()?;
        let mut part = Vec::new();
        while self.take_symbol("[") {
            part.push(self.subscript()?);
        }
        if !self.take_symbol(":=") && !self.take_symbol("=") {
            return Err(self.wanted(":="));
        }
        let value = self.until(&[";"])?;
        self.expect_symbol(";")?;
        Ok(Some(match part.is_empty() {
            true => Action::Assign(target, value),
            false => Action::AssignPart(target, part, value),
        }))
    }

    /// Up to the bracket that closes it.
    fn subscript(&mut self) -> Parsed<Subscript> {
        let (from, mut open, mut colon) = (self.at, 0_usize, None);
        loop {
            let token = self.peek().ok_or_else(|| self.wanted("]"))?;
            match token.text(self.text) {
                "(" | "[" => open += 1,
                "]" if open == 0 => break,
                ")" | "]" => open = open.saturating_sub(1),
                ":" if open == 0 => colon = Some(self.at),
                _ => {}
            }
            self.at += 1;
        }
        let to = self.at;
        self.at += 1;
        let bound = |from: usize, to: usize| (from < to).then(|| self.text_of(from, to));
        match (colon, bound(from, to)) {
            (Some(colon), _) => Ok(Subscript::Slice(bound(from, colon), bound(colon + 1, to))),
            (None, Some(at)) => Ok(Subscript::At(at)),
            (None, None) => Err(self.wanted("a subscript")),
        }
    }

    fn condition_chain(&mut self) -> Parsed<Action> {
        let mut branches = Vec::new();
        loop {
            let condition = self.until(&["then"])?;
            self.expect_word("then")?;
            let statements = self.statements(&["elsif", "elseif", "else", "end"])?;
            branches.push((condition, statements));
            if self.take_any(&["elsif", "elseif"]).is_none() {
                break;
            }
        }
        let otherwise = match self.take_word("else") {
            true => self.statements(&["end"])?,
            false => Vec::new(),
        };
        self.expect_word("end")?;
        self.expect_word("if")?;
        Ok(Action::If(branches, otherwise))
    }

    fn cases(&mut self) -> Parsed<Action> {
        let subject = match self.peek_is(0, "when") {
            true => None,
            false => Some(self.until(&["when"])?),
        };
        let mut branches = Vec::new();
        while self.take_word("when") {
            let values = match subject {
                Some(_) => self.list_until(&["then"])?,
                None => vec![self.until(&["then"])?],
            };
            self.expect_word("then")?;
            branches.push((values, self.statements(&["when", "else", "end"])?));
        }
        let otherwise = match self.take_word("else") {
            true => Some(self.statements(&["end"])?),
            false => None,
        };
        self.expect_word("end")?;
        self.expect_word("case")?;
        Ok(Action::Case(subject, branches, otherwise))
    }

    fn repeated(&mut self, label: Option<String>) -> Parsed<Action> {
        let over = if self.take_word("while") {
            Over::While(self.until(&["loop"])?)
        } else if self.take_word("for") {
            self.for_over()?
        } else if self.take_word("foreach") {
            let target = self.target()?;
            self.expect_word("in")?;
            self.expect_word("array")?;
            Over::Array(target, self.until(&["loop"])?)
        } else {
            Over::Forever
        };
        self.expect_word("loop")?;
        let body = self.statements(&["end"])?;
        self.expect_word("end")?;
        self.expect_word("loop")?;
        self.end_label()?;
        self.expect_symbol(";")?;
        Ok(Action::Loop { label, over, body })
    }

    fn for_over(&mut self) -> Parsed<Over> {
        let targets = self.targets()?;
        self.expect_word("in")?;
        if self.take_word("execute") {
            let text = self.until(&["using", "loop"])?;
            let using = match self.take_word("using") {
                true => self.list_until(&["loop"])?,
                false => Vec::new(),
            };
            return Ok(Over::Dynamic(targets, text, using));
        }
        let start = self.at;
        let reverse = self.take_word("reverse");
        let from = self.until(&["..", "loop"])?;
        if !self.take_symbol("..") {
            // A name alone is a cursor's.
            self.at = start;
            if self.is_name(0) && (self.peek_is(1, "loop") || (self.peek_symbol(1, "(") && !self.peek_is(0, "values")))
            {
                return Err(self.unclear(self.tokens[start]));
            }
            return Ok(Over::Query(targets, self.until(&["loop"])?));
        }
        let to = self.until(&["by", "loop"])?;
        let step = match self.take_word("by") {
            true => Some(self.until(&["loop"])?),
            false => None,
        };
        match &targets[..] {
            [target] if target.len() == 1 => Ok(Over::Range {
                variable: target[0].clone(),
                reverse,
                from,
                to,
                step,
            }),
            _ => Err(self.wanted("one variable")),
        }
    }

    fn leave(&mut self, exits: bool) -> Parsed<Action> {
        let label = match self.peek_symbol(0, ";") || self.peek_is(0, "when") {
            true => None,
            false => Some(self.name()?),
        };
        let when = match self.take_word("when") {
            true => Some(self.until(&[";"])?),
            false => None,
        };
        Ok(match exits {
            true => Action::Exit(label, when),
            false => Action::Continue(label, when),
        })
    }

    fn raise(&mut self) -> Parsed<Action> {
        let level = self.take_any(&LEVELS);
        let is_again = level.is_none() && self.peek_symbol(0, ";");
        let literal = self.peek().and_then(|token| token.string(self.text));
        let what = if is_again {
            Raised::Again
        } else if let Some(format) = literal {
            self.at += 1;
            let values = match self.take_symbol(",") {
                true => self.list_until(&["using", ";"])?,
                false => Vec::new(),
            };
            Raised::Text(format, values)
        } else if self.peek_is(0, "using") {
            Raised::Options
        } else {
            Raised::Condition(self.condition()?)
        };
        let mut options = Vec::new();
        if self.take_word("using") {
            loop {
                let option = self.name()?;
                if !(self.take_symbol("=") || self.take_symbol(":=")) {
                    return Err(self.wanted("="));
                }
                options.push((option, self.until(&[",", ";"])?));
                if !self.take_symbol(",") {
                    break;
                }
            }
        }
        let level = level.unwrap_or("exception").to_ascii_uppercase();
        Ok(Action::Raise(Raise { level, what, options }))
    }

    fn assertion(&mut self) -> Parsed<Action> {
        let condition = self.until(&[",", ";"])?;
        let message = match self.take_symbol(",") {
            true => Some(self.until(&[";"])?),
            false => None,
        };
        Ok(Action::Assert(condition, message))
    }

    fn into(&mut self) -> Parsed<Into> {
        let strict = self.take_word("strict");
        let targets = self.targets()?;
        Ok(Into { strict, targets })
    }

    /// INTO and USING come in either order.
    fn dynamic(&mut self) -> Parsed<Action> {
        let text = self.until(&["into", "using", ";"])?;
        let (mut into, mut using) = (None, Vec::new());
        loop {
            if into.is_none() && self.take_word("into") {
                into = Some(self.into()?);
            } else if using.is_empty() && self.take_word("using") {
                using = self.list_until(&["into", ";"])?;
            } else {
                return Ok(Action::Execute { text, into, using });
            }
        }
    }

    fn end_of_transaction(&mut self, commits: bool) -> Parsed<Action> {
        let mut chain = false;
        if self.take_word("and") {
            chain = !self.take_word("no");
            self.expect_word("chain")?;
        }
        Ok(Action::End { commits, chain })
    }

    fn diagnostics(&mut self) -> Parsed<Action> {
        let stacked = self.take_any(&["current", "stacked"]) == Some("stacked");
        self.expect_word("diagnostics")?;
        let mut items: Vec<(Target, String)> = Vec::new();
        loop {
            let target = self.target()?;
            if !(self.take_symbol("=") || self.take_symbol(":=")) {
                return Err(self.wanted("="));
            }
            items.push((target, self.name()?));
            if !self.take_symbol(",") {
                return Ok(Action::Diagnostics(stacked, items));
            }
        }
    }

    /// An SQL statement, without its INTO for variables.
    fn sql(&mut self) -> Parsed<Action> {
        let from = self.at;
        let mut into = None;
        let (mut into_from, mut into_to) = (0, 0);
        let mut open = 0_usize;
        while let Some(token) = self.peek() {
            if token.is(self.text, "(") {
                open += 1;
            } else if token.is(self.text, ")") {
                open = open.saturating_sub(1);
            } else if open == 0 && token.is(self.text, ";") {
                break;
            } else if token.is_word(self.text, "into") && self.at > from && self.is_for_variables(from) {
                if into.is_some() {
                    return Err(self.unclear(token));
                }
                into_from = token.start as usize;
                self.at += 1;
                into = Some(self.into()?);
                into_to = self.tokens[self.at - 1].end as usize;
                continue;
            }
            self.at += 1;
        }
        if self.at == from {
            return Err(self.wanted("a statement"));
        }
        let first = self.tokens[from];
        if first.kind != TokenKind::Word && !first.is(self.text, "(") {
            return Err(self.unclear(first));
        }
        // Blanks in its place, as PostgreSQL has it, so that positions are what they were; none at the end.
        let mut text = self.text_of(from, self.at);
        if into.is_some() {
            let start = first.start as usize;
            let (from, to) = (into_from - start, into_to - start);
            text.replace_range(from..to, &" ".repeat(to - from));
            text.truncate(text.trim_end().len());
        }
        match self.peek() {
            Some(_) => Ok(Action::Sql(text, into)),
            None => Err(NotUnderstood("Its last statement has no end.".into())),
        }
    }

    /// Not that of INSERT INTO, MERGE INTO or IMPORT FOREIGN SCHEMA … INTO, nor what belongs to DDL.
    fn is_for_variables(&self, from: usize) -> bool {
        let before = self.tokens[self.at - 1];
        let takes_rows = [
            "select", "with", "insert", "update", "delete", "merge", "values", "table",
        ]
        .iter()
        .any(|word| self.tokens[from].is_word(self.text, word));
        let is_part = before.is_word(self.text, "insert") || before.is_word(self.text, "merge");
        takes_rows && !is_part
    }
}
