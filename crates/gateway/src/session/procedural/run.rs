//! The statements of a block, one by one.

use super::inner::{Answer, Words, add_line};
use super::not_run;
use super::values::{NULL_VALUE, Scope, Value};
use crate::session::{Problem, Session};
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::plpgsql::{Action, Block, Bound, Expression, Into, NotUnderstood, Over, Statement, Target, parameters};
use std::collections::{HashMap, HashSet};

const NO_DATA: SqlState = SqlState::from_bytes(b"P0002");
const TOO_MANY_ROWS: SqlState = SqlState::from_bytes(b"P0003");
const INVALID_TERMINATION: SqlState = SqlState::from_bytes(b"2D000");
const NO_CASE: SqlState = SqlState::from_bytes(b"20000");

/// What a block has while it runs.
pub(super) struct Machine {
    /// the innermost last
    pub(super) scopes: Vec<Scope>,
    /// FOUND
    pub(super) found: bool,
    /// errors that are being handled, the innermost last
    pub(super) handled: Vec<ServerError>,
    pub(super) type_names: HashMap<u32, String>,
    row_count: u64,
    savepoints: usize,
    /// COMMIT and ROLLBACK may be said: nothing of the client's is around it
    may_end: bool,
    /// blocks with handlers that are under way
    guarded: usize,
    /// loops over the rows of what writes
    pub(super) writing_loops: usize,
    pub(super) line: u32,
    /// what the statement is, in PL/pgSQL's words
    pub(super) at: &'static str,
    /// statements whose variables are known to be no columns
    pub(super) clear: HashSet<String>,
    /// types whose text is exact under the settings as they are
    pub(super) exact: HashSet<u32>,
}

/// Where it goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Exit(Option<String>),
    Continue(Option<String>),
    Return,
}

impl Machine {
    /// `may_end`: whether the transaction is the block's own.
    pub(super) fn new(may_end: bool) -> Self {
        Self {
            scopes: Vec::new(),
            found: false,
            handled: Vec::new(),
            type_names: HashMap::new(),
            row_count: 0,
            savepoints: 0,
            may_end,
            guarded: 0,
            writing_loops: 0,
            line: 0,
            at: "",
            clear: HashSet::new(),
            exact: HashSet::new(),
        }
    }

    /// Says where in the block it came about.
    pub(super) fn add_context(&self, error: &mut ServerError) {
        let place = format!("PL/pgSQL function inline_code_block line {} at {}", self.line, self.at);
        add_line(error, place);
    }
}

impl Session {
    /// The body of a DO.
    pub(super) async fn run_whole(&mut self, machine: &mut Machine, block: &Block) -> Result<(), Problem> {
        match self.run_block(machine, block).await? {
            Flow::Next | Flow::Return => Ok(()),
            Flow::Exit(_) | Flow::Continue(_) => {
                let message = "EXIT cannot be used outside a loop, unless it has a label";
                Err(ServerError::new(SqlState::SYNTAX_ERROR, message).into())
            }
        }
    }

    async fn run_block(&mut self, machine: &mut Machine, block: &Block) -> Result<Flow, Problem> {
        let depth = machine.scopes.len();
        machine.scopes.push(Scope {
            label: block.label.clone(),
            ..Scope::default()
        });
        let result = match block.handlers.is_empty() {
            true => self.run_plainly(machine, block).await,
            false => self.run_with_handlers(machine, block).await,
        };
        machine.scopes.truncate(depth);
        Ok(match result? {
            Flow::Exit(Some(label)) if block.label.as_ref() == Some(&label) => Flow::Next,
            other => other,
        })
    }

    async fn run_plainly(&mut self, machine: &mut Machine, block: &Block) -> Result<Flow, Problem> {
        for declaration in &block.variables {
            machine.line = declaration.line;
            machine.at = "assignment";
            let declared = self.declare_variable(machine, declaration).await;
            told(machine, declared)?;
        }
        self.run_statements(machine, &block.statements).await
    }

    /// Under a savepoint: an error undoes what the block did, and a handler goes on behind it.
    async fn run_with_handlers(&mut self, machine: &mut Machine, block: &Block) -> Result<Flow, Problem> {
        let (depth, handled) = (machine.scopes.len(), machine.handled.len());
        // PostgreSQL gives the variables their first values outside of what handlers see.
        for declaration in &block.variables {
            machine.line = declaration.line;
            machine.at = "assignment";
            let declared = self.declare_variable(machine, declaration).await;
            told(machine, declared)?;
        }
        machine.savepoints += 1;
        let savepoint = format!("pgherd handler {}", machine.savepoints);
        self.set_savepoint(&savepoint).await?;
        machine.guarded += 1;
        let writing_loops = machine.writing_loops;
        let run = self.run_statements(machine, &block.statements).await;
        machine.guarded -= 1;
        machine.writing_loops = writing_loops;
        let error = match run {
            Ok(flow) => {
                self.release_savepoint(&savepoint).await?;
                return Ok(flow);
            }
            // What a handler asks of it is what the client would be told.
            Err(Problem::Error(error)) if error.fields().severity == "ERROR" => self.as_client_sees(error),
            Err(other) => return Err(other),
        };
        machine.scopes.truncate(depth);
        machine.handled.truncate(handled);
        self.back_to_savepoint(&savepoint).await?;
        self.release_savepoint(&savepoint).await?;
        for handler in &block.handlers {
            if self.catches(&handler.conditions, &error).await? {
                machine.handled.push(error);
                let flow = self.run_statements(machine, &handler.statements).await;
                machine.handled.truncate(handled);
                return flow;
            }
        }
        Err(error.into())
    }

    pub(super) async fn run_statements(
        &mut self,
        machine: &mut Machine,
        statements: &[Statement],
    ) -> Result<Flow, Problem> {
        for statement in statements {
            machine.line = statement.line;
            if self.cancel.slot.requested().is_some() {
                let message = "canceling statement due to user request";
                return Err(ServerError::new(SqlState::QUERY_CANCELED, message).into());
            }
            match Box::pin(self.act(machine, &statement.action)).await? {
                Flow::Next => {}
                other => return Ok(other),
            }
        }
        Ok(Flow::Next)
    }

    async fn act(&mut self, machine: &mut Machine, action: &Action) -> Result<Flow, Problem> {
        machine.at = name_of(action);
        match action {
            Action::Block(block) => return self.run_block(machine, block).await,
            Action::If(branches, otherwise) => {
                for (condition, statements) in branches {
                    let holds = self.is_true(machine, condition).await;
                    if told(machine, holds)? {
                        return self.run_statements(machine, statements).await;
                    }
                }
                return self.run_statements(machine, otherwise).await;
            }
            Action::Case(subject, branches, otherwise) => {
                let chosen = self.chosen_case(machine, subject.as_deref(), branches).await;
                let statements = match (told(machine, chosen)?, otherwise) {
                    (Some(at), _) => &branches[at].1,
                    (None, Some(otherwise)) => otherwise,
                    (None, None) => {
                        let error = ServerError::new(NO_CASE, "case not found")
                            .with_hint("CASE statement is missing ELSE part.");
                        return told(machine, Err(error.into()));
                    }
                };
                return self.run_statements(machine, statements).await;
            }
            Action::Loop { label, over, body } => return self.repeat(machine, label.as_ref(), over, body).await,
            Action::Exit(label, when) | Action::Continue(label, when) => {
                let holds = match when {
                    Some(condition) => self.is_true(machine, condition).await,
                    None => Ok(true),
                };
                return Ok(match (told(machine, holds)?, action) {
                    (false, _) => Flow::Next,
                    (true, Action::Exit(..)) => Flow::Exit(label.clone()),
                    (true, _) => Flow::Continue(label.clone()),
                });
            }
            Action::Return => return Ok(Flow::Return),
            Action::Nothing => {}
            Action::End { commits, chain } => {
                let ended = self.end_within(machine, *commits, *chain).await;
                told(machine, ended)?;
            }
            Action::Assign(target, expression) => {
                let done = self.assign_from(machine, target, expression).await;
                told(machine, done)?;
            }
            Action::AssignPart(target, part, expression) => {
                let done = self.assign_part(machine, target, part, expression).await;
                told(machine, done)?;
            }
            Action::Raise(raise) => {
                let done = self.raise(machine, raise).await;
                told(machine, done)?;
            }
            Action::Assert(condition, message) => {
                let done = self.assert(machine, condition, message.as_ref()).await;
                told(machine, done)?;
            }
            Action::Perform(query) => {
                let done = self.perform(machine, query).await;
                told(machine, done)?;
            }
            Action::Execute { text, into, using } => {
                let done = self.execute_dynamic(machine, text, into.as_ref(), using).await;
                told(machine, done)?;
            }
            Action::Sql(text, into) => {
                let done = self.run_sql(machine, text, into.as_ref()).await;
                told(machine, done)?;
            }
            Action::Diagnostics(stacked, items) => {
                let done = self.diagnose(machine, *stacked, items).await;
                told(machine, done)?;
            }
        }
        Ok(Flow::Next)
    }

    /// COMMIT and ROLLBACK: the block goes on in a new transaction.
    async fn end_within(&mut self, machine: &mut Machine, commits: bool, chain: bool) -> Result<(), Problem> {
        let in_loop = SqlState::from_bytes(b"55000");
        let (code, forbidden) = match (machine.may_end, machine.guarded, machine.writing_loops, commits) {
            (false, ..) => (INVALID_TERMINATION, "invalid transaction termination"),
            (_, 1.., _, true) => (INVALID_TERMINATION, "cannot commit while a subtransaction is active"),
            (_, 1.., _, false) => (INVALID_TERMINATION, "cannot roll back while a subtransaction is active"),
            (_, _, 1.., _) => (
                in_loop,
                "cannot perform transaction commands inside a cursor loop that is not read-only",
            ),
            _ => return self.end_and_begin(commits, chain).await,
        };
        Err(ServerError::new(code, forbidden).into())
    }

    async fn assign_from(&mut self, machine: &mut Machine, target: &Target, text: &str) -> Result<(), Problem> {
        let name = target.join(".");
        let written = format!("{name} := {text}");
        let words = Words {
            what: "PL/pgSQL assignment",
            sql: &written,
            added: ("SELECT ".len() as u32).saturating_sub(name.chars().count() as u32 + 4),
        };
        if machine.record(target).is_some() {
            return self.assign_row(machine, target, text, words).await;
        }
        let value = self.value_in(machine, text, words).await?;
        self.assign(machine, target, value).await
    }

    async fn perform(&mut self, machine: &mut Machine, query: &str) -> Result<(), Problem> {
        let query = format!("SELECT {query}");
        let answer = self.query(machine, &query, Words::statement(&query)).await?;
        machine.row_count = answer.count();
        machine.found = machine.row_count > 0;
        Ok(())
    }

    async fn chosen_case(
        &mut self,
        machine: &mut Machine,
        subject: Option<&str>,
        branches: &[(Vec<Expression>, Vec<Statement>)],
    ) -> Result<Option<usize>, Problem> {
        let subject = match subject {
            Some(expression) => Some(self.value_of(machine, expression).await?.literal()),
            None => None,
        };
        for (at, (values, _)) in branches.iter().enumerate() {
            for value in values {
                let condition = match &subject {
                    Some(subject) => format!("{subject} IN ({value})"),
                    None => value.clone(),
                };
                if self.is_true(machine, &condition).await? {
                    return Ok(Some(at));
                }
            }
        }
        Ok(None)
    }

    /// An SQL statement of the block.
    async fn run_sql(&mut self, machine: &mut Machine, text: &str, into: Option<&Into>) -> Result<(), Problem> {
        let answer = self.query(machine, text, Words::statement(text)).await?;
        machine.row_count = answer.count();
        if answer.handles_rows() {
            machine.found = machine.row_count > 0;
        }
        match into {
            Some(into) => self.put_into(machine, into, &answer).await,
            None if answer.returns_rows => {
                let error = ServerError::new(SqlState::SYNTAX_ERROR, "query has no destination for result data");
                let selects = answer.tag.starts_with("SELECT");
                Err(match selects {
                    true => error.with_hint("If you want to discard the results of a SELECT, use PERFORM instead."),
                    false => error,
                }
                .into())
            }
            None => Ok(()),
        }
    }

    /// EXECUTE, whose statement may be several.
    async fn execute_dynamic(
        &mut self,
        machine: &mut Machine,
        text: &str,
        into: Option<&Into>,
        using: &[Expression],
    ) -> Result<(), Problem> {
        let (text, bound) = self.dynamic_text(machine, text, using).await?;
        let answer = self.run_told(machine, &bound, Words::statement(&text)).await?;
        machine.row_count = answer.count();
        match into {
            Some(into) => self.put_into(machine, into, &answer).await,
            None => Ok(()),
        }
    }

    /// What EXECUTE is to run, and the same with its parameters' values in it.
    pub(super) async fn dynamic_text(
        &mut self,
        machine: &mut Machine,
        text: &str,
        using: &[Expression],
    ) -> Result<(String, Bound), Problem> {
        let value = self.value_of(machine, text).await?;
        let text = value
            .text
            .ok_or_else(|| ServerError::new(NULL_VALUE, "query string argument of EXECUTE is null"))?;
        let mut values = Vec::with_capacity(using.len());
        for expression in using {
            values.push(self.value_of(machine, expression).await?.literal());
        }
        let bound = parameters(&text, &values).map_err(not_run)?;
        Ok((text, bound))
    }

    async fn put_into(&mut self, machine: &mut Machine, into: &Into, answer: &Answer) -> Result<(), Problem> {
        if into.strict {
            match answer.rows.len() {
                0 => return Err(ServerError::new(NO_DATA, "query returned no rows").into()),
                1 => {}
                _ => {
                    return Err(ServerError::new(TOO_MANY_ROWS, "query returned more than one row")
                        .with_hint("Make sure the query returns a single row, or use LIMIT 1.")
                        .into());
                }
            }
        }
        let row = answer.rows.first().map(Vec::as_slice);
        self.put_row(machine, &into.targets, answer, row).await
    }

    /// GET DIAGNOSTICS.
    async fn diagnose(
        &mut self,
        machine: &mut Machine,
        stacked: bool,
        items: &[(Target, String)],
    ) -> Result<(), Problem> {
        for (target, item) in items {
            let value = match (stacked, item.as_str()) {
                (false, "row_count") => Value::of(20, "bigint", Some(machine.row_count.to_string())),
                (true, item) => {
                    let error = machine.handled.last().ok_or_else(|| {
                        let message = "GET STACKED DIAGNOSTICS cannot be used outside an exception handler";
                        ServerError::new(SqlState::from_bytes(b"0Z002"), message)
                    })?;
                    let text = error_item(error, item);
                    Value::text(text.ok_or_else(|| not_diagnosed(item))?)
                }
                (false, item) => return Err(not_diagnosed(item)),
            };
            self.assign(machine, target, value).await?;
        }
        Ok(())
    }
}

fn not_diagnosed(item: &str) -> Problem {
    not_run(NotUnderstood(format!("It asks for {}.", item.to_ascii_uppercase())))
}

/// What GET STACKED DIAGNOSTICS tells of an error.
fn error_item(error: &ServerError, item: &str) -> Option<String> {
    let fields = error.fields();
    let other = |letter: u8| {
        let found = fields.other.iter().find(|(l, _)| *l == letter);
        Some(found.map(|(_, text)| text.clone()).unwrap_or_default())
    };
    match item {
        "returned_sqlstate" => Some(fields.code.code().to_owned()),
        "message_text" => Some(fields.message.clone()),
        "pg_exception_detail" => Some(fields.detail.clone().unwrap_or_default()),
        "pg_exception_hint" => Some(fields.hint.clone().unwrap_or_default()),
        "pg_exception_context" => other(b'W'),
        "column_name" => other(b'c'),
        "constraint_name" => other(b'n'),
        "pg_datatype_name" => other(b'd'),
        "table_name" => other(b't'),
        "schema_name" => other(b's'),
        _ => None,
    }
}

/// What PL/pgSQL calls it.
fn name_of(action: &Action) -> &'static str {
    match action {
        Action::Block(_) => "statement block",
        Action::Assign(..) | Action::AssignPart(..) => "assignment",
        Action::If(..) => "IF",
        Action::Case(..) => "CASE",
        Action::Loop { over, .. } => match over {
            Over::Forever => "LOOP",
            Over::While(_) => "WHILE",
            Over::Range { .. } => "FOR with integer loop variable",
            Over::Query(..) => "FOR over SELECT rows",
            Over::Dynamic(..) => "FOR over EXECUTE statement",
            Over::Array(..) => "FOREACH over array",
        },
        Action::Exit(..) => "EXIT",
        Action::Continue(..) => "CONTINUE",
        Action::Return => "RETURN",
        Action::Raise(_) => "RAISE",
        Action::Assert(..) => "ASSERT",
        Action::Perform(_) => "PERFORM",
        Action::Execute { .. } => "EXECUTE",
        Action::Sql(..) => "SQL statement",
        Action::Diagnostics(..) => "GET DIAGNOSTICS",
        Action::End { commits: true, .. } => "COMMIT",
        Action::End { commits: false, .. } => "ROLLBACK",
        Action::Nothing => "NULL",
    }
}

/// An error says where in the block it came about. Positions are of texts that the client does not know.
pub(super) fn told<T>(machine: &Machine, result: Result<T, Problem>) -> Result<T, Problem> {
    result.map_err(|problem| match problem {
        Problem::Error(error) => {
            let mut error = error.with_position(None);
            machine.add_context(&mut error);
            error.into()
        }
        other => other,
    })
}
