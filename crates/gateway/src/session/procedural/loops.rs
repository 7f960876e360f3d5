//! LOOP, WHILE, FOR and FOREACH.

use super::inner::{Answer, Words};
use super::run::{Flow, Machine, told};
use super::values::{NULL_VALUE, Scope, Value, Variable};
use crate::session::{Problem, Session};
use pgherd_model::{ServerError, SqlState};
use pgherd_sql::plpgsql::{Over, Statement, Target};

const INVALID_STEP: SqlState = SqlState::from_bytes(b"22023");

/// What is left to go through.
enum Turns<'a> {
    Forever,
    While(&'a str),
    /// the next value, the last one, and how far it is to the one behind
    Range {
        variable: &'a str,
        next: i64,
        last: i64,
        step: i64,
    },
    /// a query's rows
    Rows(&'a [Target], Answer, usize),
    /// an array's elements
    Elements(&'a Target, Answer, usize),
}

/// Whether a query that gives rows is no SELECT alone.
fn is_write(query: &str) -> bool {
    let first = query
        .split(|c: char| !c.is_ascii_alphabetic())
        .find(|word| !word.is_empty());
    let writes = ["insert", "update", "delete"];
    first.is_some_and(|first| writes.iter().any(|word| first.eq_ignore_ascii_case(word)))
}

impl Session {
    pub(super) async fn repeat(
        &mut self,
        machine: &mut Machine,
        label: Option<&String>,
        over: &Over,
        body: &[Statement],
    ) -> Result<Flow, Problem> {
        let line = machine.line;
        let at = machine.at;
        let turns = self.turns(machine, over).await;
        let mut turns = told(machine, turns)?;
        let depth = machine.scopes.len();
        let writes = matches!(over, Over::Query(_, query) if is_write(query));
        machine.writing_loops += usize::from(writes);
        let mut has_turned = false;
        let flow = loop {
            // A loop without SQL lets others on.
            tokio::task::yield_now().await;
            (machine.line, machine.at) = (line, at);
            machine.scopes.truncate(depth);
            let begun = self.next_turn(machine, &mut turns).await;
            if !told(machine, begun)? {
                break Flow::Next;
            }
            has_turned = true;
            match self.run_statements(machine, body).await? {
                Flow::Next | Flow::Continue(None) => {}
                Flow::Continue(Some(other)) if Some(&other) == label => {}
                Flow::Exit(None) => break Flow::Next,
                Flow::Exit(Some(other)) if Some(&other) == label => break Flow::Next,
                other => break other,
            }
        };
        machine.scopes.truncate(depth);
        machine.writing_loops -= usize::from(writes);
        if !matches!(over, Over::Forever | Over::While(_)) {
            machine.found = has_turned;
        }
        Ok(flow)
    }

    async fn turns<'a>(&mut self, machine: &mut Machine, over: &'a Over) -> Result<Turns<'a>, Problem> {
        Ok(match over {
            Over::Forever => Turns::Forever,
            Over::While(condition) => Turns::While(condition),
            Over::Range {
                variable,
                reverse,
                from,
                to,
                step,
            } => {
                let not_null = |what: &str, value: Option<i64>| {
                    value.ok_or_else(|| ServerError::new(NULL_VALUE, format!("{what} of FOR loop cannot be null")))
                };
                let next = not_null("lower bound", self.integer(machine, from).await?)?;
                let last = not_null("upper bound", self.integer(machine, to).await?)?;
                let step = match step {
                    Some(step) => not_null("BY value", self.integer(machine, step).await?)?,
                    None => 1,
                };
                if step <= 0 {
                    let message = "BY value of FOR loop must be greater than zero";
                    return Err(ServerError::new(INVALID_STEP, message).into());
                }
                let step = if *reverse { -step } else { step };
                Turns::Range {
                    variable,
                    next,
                    last,
                    step,
                }
            }
            Over::Query(targets, query) => {
                let answer = self.query(machine, query, Words::statement(query)).await?;
                Turns::Rows(targets, answer, 0)
            }
            Over::Dynamic(targets, text, using) => {
                let (text, bound) = self.dynamic_text(machine, text, using).await?;
                let answer = self.run_told(machine, &bound, Words::statement(&text)).await?;
                Turns::Rows(targets, answer, 0)
            }
            Over::Array(target, expression) => {
                let is_null = self.is_true(machine, &format!("({expression}) IS NULL")).await?;
                if is_null {
                    return Err(ServerError::new(NULL_VALUE, "FOREACH expression must not be null").into());
                }
                let query = format!("SELECT pg_catalog.unnest({expression})");
                Turns::Elements(
                    target,
                    self.query(machine, &query, Words::expression(expression)).await?,
                    0,
                )
            }
        })
    }

    /// Sets the loop's variables; false at the end.
    async fn next_turn(&mut self, machine: &mut Machine, turns: &mut Turns<'_>) -> Result<bool, Problem> {
        match turns {
            Turns::Forever => Ok(true),
            Turns::While(condition) => self.is_true(machine, condition).await,
            Turns::Range {
                variable,
                next,
                last,
                step,
            } => {
                if (*step > 0 && *next > *last) || (*step < 0 && *next < *last) {
                    return Ok(false);
                }
                let value = Variable::Scalar {
                    value: Value::of(23, "integer", Some(next.to_string())),
                    constant: false,
                    not_null: false,
                };
                machine.scopes.push(Scope {
                    label: None,
                    variables: vec![((*variable).to_owned(), value)],
                });
                *next += *step;
                Ok(true)
            }
            Turns::Rows(targets, answer, at) => {
                let row = answer.rows.get(*at);
                *at += 1;
                if let Some(row) = row {
                    self.put_row(machine, targets, answer, Some(row)).await?;
                }
                Ok(row.is_some())
            }
            Turns::Elements(target, answer, at) => {
                let row = answer.rows.get(*at);
                *at += 1;
                if let Some(row) = row {
                    self.put_row(machine, std::slice::from_ref(target), answer, Some(row))
                        .await?;
                }
                Ok(row.is_some())
            }
        }
    }
}
