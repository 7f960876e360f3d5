//! DO blocks that use sharded tables or change the schema: run here, statement by statement, each as if the client had sent it.
//!
//! PostgreSQL would run the whole block on one shard, which has a part of the rows, and would change the schema there alone. Here
//! PL/pgSQL's own part (variables, IF, loops, handlers of errors) is done by the gateway, and every expression and statement
//! is SQL that goes through routing. All of it is one statement of the client's, in one transaction. What is not understood is
//! refused before anything is run (`pgherd_sql::plpgsql`).

mod assigned;
mod elements;
mod inner;
mod loops;
mod raise;
mod records;
mod run;
mod values;

use super::stored::with_position;
use super::{Mode, Problem, Session, Unit};
use pgherd_model::ServerError;
use pgherd_sql::Route;
use pgherd_sql::plpgsql::{self, NotUnderstood};
use run::Machine;

impl Session {
    /// DO: here where one shard would not do, else on the home shard.
    pub(super) async fn do_block(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let Some(body) = plpgsql_body(unit) else {
            return self.routed(unit).await;
        };
        let entered = self.enter(unit).await?;
        let refused = match entered.analysis.route(&entered.snapshot, &[]) {
            Route::Refuse(error) => Some(error),
            _ => None,
        };
        drop(entered);
        let acts = super::own_state::acts_on_sessions(&body.to_ascii_lowercase());
        if refused.is_none() && !plpgsql::changes_schema(&body) && !acts {
            return self.routed(unit).await;
        }
        let block = match (plpgsql::parse(&body), refused) {
            (Ok(block), _) => block,
            (Err(NotUnderstood(why)), Some(error)) => return Err(told_why(error, &why).into()),
            (Err(_), None) => return self.routed(unit).await,
        };
        if matches!(unit.mode, Mode::Extended { describe: true, .. }) {
            self.client.put(b'n', &[]);
        }
        let made = self.ensure_block();
        // SET LOCAL holds inside of a DO, also where no BEGIN was said.
        let implicit = self.block.open_mut().map(|open| std::mem::take(&mut open.implicit));
        let mut machine = Machine::new(made);
        let run = self.run_whole(&mut machine, &block).await;
        if let (Some(open), Some(implicit)) = (self.block.open_mut(), implicit) {
            open.implicit = implicit;
        }
        let result = run
            .map(|()| Some("DO".to_owned()))
            .map_err(|problem| with_position(problem, |_| None));
        self.finish_statement(made, result).await
    }
}

/// The body, where it is PL/pgSQL.
fn plpgsql_body(unit: Unit<'_>) -> Option<String> {
    let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
    let at = tokens.iter().position(|token| token.is_word(text, "language"));
    if let Some(at) = at {
        let language = tokens.get(at + 1)?;
        let name = language.identifier(text).or_else(|| language.string(text))?;
        if !name.eq_ignore_ascii_case("plpgsql") {
            return None;
        }
    }
    let is_language = |i: usize| at.is_some_and(|at| i == at + 1);
    let mut strings = tokens
        .iter()
        .enumerate()
        .filter(|(i, _)| !is_language(*i))
        .filter_map(|(_, token)| token.string(text));
    let body = strings.next()?;
    strings.next().is_none().then_some(body)
}

fn told_why(error: ServerError, why: &str) -> ServerError {
    let detail = match &error.fields().detail {
        Some(detail) => format!("{detail} {why}"),
        None => why.to_owned(),
    };
    error.with_detail(detail)
}

/// What cannot be run although its block was understood.
fn not_run(why: NotUnderstood) -> Problem {
    ServerError::unsupported(
        "a statement of a DO block that uses sharded tables or changes the schema is not understood",
        "Send its statements one by one.",
    )
    .with_detail(why.0)
    .into()
}
