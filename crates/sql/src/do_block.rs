//! DO blocks that are no more than SQL statements one after the other: what migrations send to make a type or a constraint unless it
//! is there. Such a block need not run inside of a server, where it would reach that server only: its statements can be run by
//! themselves, each where it belongs.
//!
//! Read are statements that change the schema or rows, PERFORM, IF with ELSE, RAISE NOTICE of a constant, NULL, and blocks within with
//! handlers of errors. What has variables, loops, dynamic SQL or anything else is not of this kind.

use crate::cursor::Cursor;
use crate::lexer::{Token, tokenize};
use std::ops::Range;

/// BEGIN … EXCEPTION … END.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoBlock {
    /// what it does, in order
    pub steps: Vec<Step>,
    /// what it does instead of failing; with any, all steps are undone by an error
    pub handlers: Vec<Handler>,
}

/// WHEN … THEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    conditions: Vec<Condition>,
    /// what it does then
    pub steps: Vec<Step>,
}

/// One thing that a block does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// the line of the body where it begins, from 1
    pub line: usize,
    /// what it is
    pub action: Action,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// runs a statement without a result
    Run(String),
    /// runs a query and forgets its rows; the text begins with SELECT
    Perform(String),
    /// IF the expression THEN … ELSE …
    If(String, Vec<Step>, Vec<Step>),
    /// a NOTICE
    Notice(String),
    /// a block within
    Block(DoBlock),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    /// all but what is meant to end a block
    Others,
    /// an SQLSTATE
    Code(String),
}

/// Names of conditions that handlers in migrations have; PL/pgSQL's appendix has them all.
const CONDITIONS: [(&str, &str); 38] = [
    ("feature_not_supported", "0A000"),
    ("data_exception", "22000"),
    ("division_by_zero", "22012"),
    ("invalid_text_representation", "22P02"),
    ("integrity_constraint_violation", "23000"),
    ("not_null_violation", "23502"),
    ("foreign_key_violation", "23503"),
    ("unique_violation", "23505"),
    ("check_violation", "23514"),
    ("exclusion_violation", "23P01"),
    ("dependent_objects_still_exist", "2BP01"),
    ("invalid_schema_name", "3F000"),
    ("syntax_error_or_access_rule_violation", "42000"),
    ("insufficient_privilege", "42501"),
    ("syntax_error", "42601"),
    ("invalid_name", "42602"),
    ("duplicate_column", "42701"),
    ("undefined_column", "42703"),
    ("undefined_object", "42704"),
    ("duplicate_object", "42710"),
    ("duplicate_alias", "42712"),
    ("duplicate_function", "42723"),
    ("datatype_mismatch", "42804"),
    ("wrong_object_type", "42809"),
    ("invalid_foreign_key", "42830"),
    ("undefined_function", "42883"),
    ("undefined_table", "42P01"),
    ("undefined_parameter", "42P02"),
    ("duplicate_database", "42P04"),
    ("duplicate_schema", "42P06"),
    ("duplicate_table", "42P07"),
    ("invalid_table_definition", "42P16"),
    ("invalid_object_definition", "42P17"),
    ("object_not_in_prerequisite_state", "55000"),
    ("object_in_use", "55006"),
    ("lock_not_available", "55P03"),
    ("raise_exception", "P0001"),
    ("no_data_found", "P0002"),
];

/// Statements without a result that may stand in such a block, by their first word.
const STATEMENTS: [&str; 12] = [
    "create", "alter", "drop", "comment", "grant", "revoke", "insert", "update", "delete", "truncate", "security",
    "refresh",
];
/// Words that only mean something inside of PL/pgSQL, or that make a statement more than it looks like.
const OTHER_WORDS: [&str; 7] = [
    "found",
    "sqlerrm",
    "sqlstate",
    "declare",
    "returning",
    "atomic",
    "execute",
];

impl Handler {
    /// Whether it is for an error of this SQLSTATE.
    pub fn catches(&self, code: &str) -> bool {
        self.conditions.iter().any(|condition| match condition {
            // QUERY_CANCELED and ASSERT_FAILURE
            Condition::Others => !matches!(code, "57014" | "P0004"),
            Condition::Code(of) => match of.strip_suffix("000") {
                Some(class) => code.starts_with(class),
                None => of == code,
            },
        })
    }
}

/// The block of a DO statement of this kind; None for any other.
pub fn do_block(text: &str, tokens: &[Token]) -> Option<DoBlock> {
    let mut c = Cursor::new(text, tokens);
    c.accept("do").then_some(())?;
    let language = |c: &mut Cursor<'_>| match c.accept("language") {
        true => (c.identifier()? == "plpgsql").then_some(()),
        false => Some(()),
    };
    language(&mut c)?;
    let body = c.string()?;
    language(&mut c)?;
    c.done().then_some(())?;
    let tokens = tokenize(&body).ok()?;
    let mut reader = Reader {
        c: Cursor::new(&body, &tokens),
    };
    let block = reader.block()?;
    reader.c.accept_symbol(";");
    (reader.c.done() && !is_empty(&block)).then_some(block)
}

fn is_empty(block: &DoBlock) -> bool {
    block.steps.is_empty()
}

struct Reader<'a> {
    c: Cursor<'a>,
}

impl Reader<'_> {
    /// BEGIN … END, without the semicolon behind it.
    fn block(&mut self) -> Option<DoBlock> {
        self.c.accept("begin").then_some(())?;
        let steps = self.steps(&["exception", "end"])?;
        let mut handlers = Vec::new();
        if self.c.accept("exception") {
            while self.c.accept("when") {
                handlers.push(self.handler()?);
            }
            (!handlers.is_empty()).then_some(())?;
        }
        self.c.accept("end").then_some(DoBlock { steps, handlers })
    }

    fn handler(&mut self) -> Option<Handler> {
        let mut conditions = Vec::new();
        loop {
            if self.c.accept("sqlstate") {
                conditions.push(Condition::Code(self.c.string()?));
            } else {
                let name = self.c.identifier()?;
                conditions.push(match name.as_str() {
                    "others" => Condition::Others,
                    name => {
                        let known = CONDITIONS.iter().find(|(known, _)| *known == name)?;
                        Condition::Code(known.1.to_owned())
                    }
                });
            }
            if self.c.accept("then") {
                break;
            }
            self.c.accept("or").then_some(())?;
        }
        let steps = self.steps(&["when", "end"])?;
        Some(Handler { conditions, steps })
    }

    /// Steps up to one of these words, which is left.
    fn steps(&mut self, until: &[&str]) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        while !until.iter().any(|word| self.c.is(word)) {
            steps.extend(self.step()?);
        }
        Some(steps)
    }

    /// One step with its semicolon; nothing for NULL.
    fn step(&mut self) -> Option<Option<Step>> {
        let first = self.c.peek()?;
        let line = 1 + self.c.text[..first.start as usize].matches('\n').count();
        if self.c.accept("null") {
            return self.c.accept_symbol(";").then_some(None);
        }
        let action = if self.c.is("begin") {
            Action::Block(self.block()?)
        } else if self.c.accept("if") {
            self.condition()?
        } else if self.c.accept("raise notice") {
            let message = self.c.string()?;
            (!message.contains('%')).then_some(())?;
            Action::Notice(message)
        } else if self.c.accept("perform") {
            Action::Perform(format!("SELECT {}", &self.c.text[self.statement()?]))
        } else {
            STATEMENTS.iter().any(|word| self.c.is(word)).then_some(())?;
            Action::Run(self.c.text[self.statement()?].to_owned())
        };
        self.c.accept_symbol(";").then_some(Some(Step { line, action }))
    }

    /// What stands between IF and the semicolon behind END IF.
    fn condition(&mut self) -> Option<Action> {
        let start = self.c.at;
        let then = self.c.find_outside(&["then"])?;
        // Its own THEN would be taken for the one behind the condition.
        let has_case = self.c.tokens[start..then]
            .iter()
            .any(|t| t.is_word(self.c.text, "case"));
        let condition = self.plain(start..then).filter(|_| !has_case)?;
        self.c.at = then + 1;
        let steps = self.steps(&["else", "elsif", "elseif", "end"])?;
        let otherwise = match self.c.accept("else") {
            true => self.steps(&["end"])?,
            false => Vec::new(),
        };
        let condition = self.c.text[condition].to_owned();
        self.c
            .accept("end if")
            .then_some(Action::If(condition, steps, otherwise))
    }

    /// The bytes up to the next semicolon, where there is nothing else than SQL in them.
    fn statement(&mut self) -> Option<Range<usize>> {
        let start = self.c.at;
        let rest = &self.c.tokens[start..];
        let end = start + rest.iter().position(|t| t.is(self.c.text, ";"))?;
        let span = self.plain(start..end)?;
        self.c.at = end;
        Some(span)
    }

    fn plain(&self, tokens: Range<usize>) -> Option<Range<usize>> {
        let inside = &self.c.tokens[tokens.clone()];
        let other = |t: &Token| t.is(self.c.text, ":=") || OTHER_WORDS.iter().any(|word| t.is_word(self.c.text, word));
        // `CREATE TRIGGER … EXECUTE FUNCTION` is SQL.
        let runs_function = |at: usize| {
            inside[at].is_word(self.c.text, "execute")
                && inside
                    .get(at + 1)
                    .is_some_and(|t| t.is_word(self.c.text, "function") || t.is_word(self.c.text, "procedure"))
        };
        let is_plain = !inside.is_empty() && (0..inside.len()).all(|at| !other(&inside[at]) || runs_function(at));
        is_plain.then(|| self.c.bytes(tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<DoBlock> {
        do_block(text, &tokenize(text).expect("tokens"))
    }

    fn run(line: usize, sql: &str) -> Step {
        let action = Action::Run(sql.to_owned());
        Step { line, action }
    }

    #[test]
    fn statements_with_a_handler() {
        let text = "DO $$ BEGIN\n CREATE TYPE mood AS ENUM ('a', 'b;');\nEXCEPTION WHEN duplicate_object OR SQLSTATE '42P07' THEN null; END $$";
        let block = read(text).expect("a block");
        assert_eq!(block.steps, [run(2, "CREATE TYPE mood AS ENUM ('a', 'b;')")]);
        let [handler] = &block.handlers[..] else {
            panic!("{block:?}")
        };
        assert!(handler.steps.is_empty());
        let caught = ["42710", "42P07", "42P01"].map(|code| handler.catches(code));
        assert_eq!(caught, [true, true, false]);
    }

    #[test]
    fn conditions_and_blocks_within() {
        let text = "do language plpgsql 'begin if not exists (select 1 from pg_type where typname = ''a'') then create domain a as int; \
                    else perform f(1); end if; begin drop table b; exception when others then raise notice ''none''; end; end;'";
        let block = read(text).expect("a block");
        let condition = "not exists (select 1 from pg_type where typname = 'a')".to_owned();
        let perform = Step {
            line: 1,
            action: Action::Perform("SELECT f(1)".to_owned()),
        };
        let expected = Action::If(condition, vec![run(1, "create domain a as int")], vec![perform]);
        assert_eq!(block.steps[0].action, expected);
        let Action::Block(inner) = &block.steps[1].action else {
            panic!("{block:?}")
        };
        assert_eq!(inner.handlers[0].steps[0].action, Action::Notice("none".to_owned()));
        assert!(inner.handlers[0].catches("42P01") && !inner.handlers[0].catches("57014"));
    }

    #[test]
    fn what_is_more_than_statements_is_not_read() {
        for body in [
            "DECLARE n int; BEGIN DROP TABLE a; END",
            "BEGIN EXECUTE 'DROP TABLE a'; END",
            "BEGIN FOR i IN 1..3 LOOP DROP TABLE a; END LOOP; END",
            "BEGIN SELECT 1; END",
            "BEGIN INSERT INTO a VALUES (1) RETURNING b; END",
            "BEGIN IF found THEN DROP TABLE a; END IF; END",
            "BEGIN IF a THEN DROP TABLE a; ELSIF b THEN NULL; END IF; END",
            "BEGIN DROP TABLE a; EXCEPTION WHEN no_such_condition THEN NULL; END",
            "BEGIN RAISE NOTICE '%', 1; DROP TABLE a; END",
            "BEGIN NULL; END",
            "BEGIN DROP TABLE a END",
        ] {
            assert_eq!(read(&format!("DO $x${body}$x$")), None, "{body}");
        }
        let trigger = "BEGIN CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION f(); END";
        assert!(read(&format!("DO $x${trigger}$x$")).is_some());
    }
}
