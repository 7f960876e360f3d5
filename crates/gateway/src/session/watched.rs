//! Statements whose functions build their SQL while they run. They run on the home shard in a transaction, and their answer is kept back until
//! the locks there have shown that no sharded table was used; otherwise it is thrown away, and the statement has failed
//! (`catalog::load::watched` says which functions these are).

use super::enter::Entered;
use super::forward::no_block;
use super::{Mode, Problem, Session, Unit};
use pgherd_model::ServerError;
use pgherd_sql::{ParameterValue, Route, Watched};

impl Session {
    pub(crate) async fn forward_watched(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        values: &[ParameterValue<'_>],
        watched: Watched,
    ) -> Result<(), Problem> {
        // What comes later through a portal, nobody would look at.
        if matches!(unit.mode, Mode::Extended { max_rows: 1.., .. }) {
            return Err(watched.refusal.into());
        }
        let made = self.ensure_block();
        let run = self.run_watched(unit, entered, values, watched).await;
        self.finish_statement(made, run).await
    }

    /// Runs it in the block, and returns its tag.
    async fn run_watched(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        values: &[ParameterValue<'_>],
        watched: Watched,
    ) -> Result<Option<String>, Problem> {
        let name = watched.name;
        let known = self.used_tables().await?;
        if let Some(table) = known.iter().find(|used| !used.is_range).map(|used| &used.name) {
            let detail = format!(
                "This transaction has used sharded table \"{table}\" on the home shard, so that it would not show whether \"{name}\" uses it."
            );
            return Err(watched
                .refusal
                .with_detail(detail)
                .with_hint("Call it in a transaction of its own.")
                .into());
        }
        let (before, held) = (self.client.capture(), self.client.hold_tag());
        let route = Route::Forward(watched.part.clone());
        let run = self.forward_locked(unit, entered, values, &route, &watched.part).await;
        let tag = self.client.release_tag(held);
        let replies = self.client.captured(before);
        match run {
            // Locks are gone with an error, which names the table where it is about a row of one.
            Err(Problem::Error(error)) => {
                let table = error.fields().other.iter().find(|(letter, _)| *letter == b't');
                let sharded = table.filter(|(_, table)| entered.snapshot.sharded().any(|t| *t.name.name == **table));
                return Err(match sharded {
                    Some((_, table)) => used(&name, table).into(),
                    None => error.into(),
                });
            }
            other => other?,
        }
        let mut now = self.used_tables().await?;
        now.retain(|used| !known.contains(used));
        now.sort_by_key(|used| used.is_range);
        if let Some(table) = now.first() {
            return Err(used(&name, &table.name).into());
        }
        self.client.out.extend_from_slice(&replies);
        Ok(tag)
    }

    /// What the transaction has used on the home shard.
    async fn used_tables(&mut self) -> Result<Vec<Used>, Problem> {
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let backend = open.transaction.participant(home).await?;
        let results = backend
            .simple("SELECT name, is_range FROM pgherd.used_tables()")
            .await?;
        let Some(told) = results.last() else {
            return Ok(Vec::new());
        };
        let used = |row| {
            Some(Used {
                name: told.text(row, 0)?.to_owned(),
                is_range: told.text(row, 1) == Some("t"),
            })
        };
        Ok((0..told.rows.len()).filter_map(used).collect())
    }
}

/// A sharded table or declared partition, or a range of one, that is locked.
#[derive(PartialEq, Eq)]
struct Used {
    name: String,
    is_range: bool,
}

fn used(name: &str, table: &str) -> ServerError {
    ServerError::unsupported(
        format!("\"{name}\" has used sharded table \"{table}\" inside of a shard"),
        "It saw one shard's rows only, and its effects are undone. Send its statements one by one, or make the table local with CALL \
         pgherd.undistribute(…).",
    )
}
