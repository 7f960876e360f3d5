//! Plays a transcript against a server and writes down what each session saw.
//!
//! Whether a statement waits can only be told by the clock. A statement that the script says waits must not answer for
//! a while; one that the script says answers has all the time of the statement limit. So a slow machine never
//! turns a right server into a failure.

use super::script::{Item, Script, Step, WAITS};
use crate::wire::{Protocol, Reply, ServerError, Session, Target};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Long enough for a server to answer a statement that does not wait, on most days.
const WAIT: Duration = Duration::from_millis(300);

/// While rewriting, nothing says yet which statements wait.
const WAIT_REWRITING: Duration = Duration::from_millis(1000);

/// What a session is doing.
enum Actor {
    Idle(Session),
    Busy(JoinHandle<(Session, Result<Reply>)>),
}

/// Returns the script with the answers that came. Sessions are opened at their first turn.
///
/// # Errors
/// A connection that breaks, or a script that gives a session a second statement before the first has answered.
pub(super) async fn play(script: &Script, target: &Target, limit: Duration, rewriting: bool) -> Result<Script> {
    let mut actors = BTreeMap::new();
    let mut played = Vec::new();
    for item in &script.items {
        let Item::Step(step) = item else {
            played.push(item.clone());
            continue;
        };
        let patience = match (rewriting, step.answer.first().map(String::as_str)) {
            (true, _) => WAIT_REWRITING,
            (false, Some(WAITS)) => WAIT,
            (false, _) => limit,
        };
        let turn = take_turn(step, &mut actors, target, limit, patience).await;
        played.push(Item::Step(
            turn.map_err(|error| Error::Script(format!("{error}\n{}", so_far(&played))))?,
        ));
    }
    let unanswered: Vec<String> = actors
        .iter()
        .filter(|(_, actor)| matches!(actor, Actor::Busy(_)))
        .map(|(name, _)| name.clone())
        .collect();
    for actor in actors.into_values() {
        match actor {
            Actor::Idle(mut session) => session.close().await,
            // Dropping the session's socket is all that can be done for a statement that never answered.
            Actor::Busy(task) => task.abort(),
        }
    }
    if unanswered.is_empty() {
        return Ok(Script { items: played });
    }
    Err(Error::Script(format!(
        "at the end still waiting: {}\n{}",
        unanswered.join(", "),
        so_far(&played)
    )))
}

fn so_far(played: &[Item]) -> Script {
    Script { items: played.to_vec() }
}

async fn take_turn(
    step: &Step,
    actors: &mut BTreeMap<String, Actor>,
    target: &Target,
    limit: Duration,
    patience: Duration,
) -> Result<Step> {
    let mut task = match (actors.remove(&step.session), step.sql.is_empty()) {
        (Some(Actor::Busy(task)), true) => task,
        (Some(Actor::Busy(_)), false) => return Err(misused(step, "has not answered its last statement yet")),
        (_, true) => return Err(misused(step, "has no statement that waits")),
        (Some(Actor::Idle(session)), false) => send(session, &step.sql, limit),
        (None, false) => send(target.connect().await?, &step.sql, limit),
    };
    let mut answered = step.clone();
    match tokio::time::timeout(patience, &mut task).await {
        Err(_) => {
            answered.answer = vec![WAITS.to_owned()];
            actors.insert(step.session.clone(), Actor::Busy(task));
        }
        Ok(joined) => {
            let (session, reply) = joined.map_err(|error| Error::Script(error.to_string()))?;
            answered.answer = describe(&reply?);
            actors.insert(step.session.clone(), Actor::Idle(session));
        }
    }
    Ok(answered)
}

fn send(mut session: Session, sql: &str, limit: Duration) -> JoinHandle<(Session, Result<Reply>)> {
    let sql = sql.strip_suffix(';').unwrap_or(sql).to_owned();
    // Twice the limit: a statement may wait for as long as other sessions take to answer theirs.
    tokio::spawn(async move {
        let reply = session.run(&sql, Protocol::Simple, limit * 2).await;
        (session, reply)
    })
}

fn misused(step: &Step, problem: &str) -> Error {
    Error::Script(format!("session {} {problem}, at: {}", step.session, step.sql))
}

fn describe(reply: &Reply) -> Vec<String> {
    let mut lines: Vec<String> = reply.notices.iter().map(message_line).collect();
    for result in &reply.results {
        for row in &result.rows {
            let values: Vec<&str> = row.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
            lines.push(values.join(" | "));
        }
        lines.push(result.tag.clone());
    }
    lines.extend(reply.error.as_ref().map(message_line));
    lines
}

/// Details are left out: they hold process ids and transaction ids.
fn message_line(message: &ServerError) -> String {
    format!(
        "{} {}: {}",
        message.field('S').unwrap_or("ERROR"),
        message.code(),
        message.message()
    )
}
