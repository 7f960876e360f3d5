//! Assignments to elements of arrays. What an array becomes by one (its bounds, its dimensions, the value's type) PL/pgSQL itself knows, so
//! a block of its own on the home shard does the assignment, with constants for all that takes part in it.

use super::not_run;
use super::run::Machine;
use super::values::{Value, unknown};
use crate::session::{Problem, Session};
use pgherd_model::ServerError;
use pgherd_sql::plpgsql::{NotUnderstood, Subscript};

impl Session {
    /// `target[…] := expression`
    pub(super) async fn assign_part(
        &mut self,
        machine: &mut Machine,
        target: &[String],
        part: &[Subscript],
        expression: &str,
    ) -> Result<(), Problem> {
        let held = machine.value_held(target).ok_or_else(|| unknown(target))?;
        let mut place = String::new();
        for subscript in part {
            place.push_str(&match subscript {
                Subscript::At(at) => format!("[{}]", self.bound_of(machine, Some(at)).await?),
                Subscript::Slice(from, to) => {
                    let from = self.bound_of(machine, from.as_ref()).await?;
                    let to = self.bound_of(machine, to.as_ref()).await?;
                    format!("[{from}:{to}]")
                }
            });
        }
        let value = self.value_of(machine, expression).await?;
        let (array, type_name, value) = (held.literal(), &held.type_name, value.literal());
        let body = format!(
            "DECLARE held {type_name} := {array}; BEGIN held{place} := {value}; \
             PERFORM pg_catalog.set_config('pgherd.held', held::pg_catalog.text, true); END"
        );
        let tag = ["$pgherd$", "$pgherd_held$"]
            .into_iter()
            .find(|tag| !body.contains(tag));
        let tag = tag.ok_or_else(|| not_run(NotUnderstood("A value has dollar quotes in it.".into())))?;
        let sql = format!("DO {tag}{body}{tag}; SELECT pg_catalog.current_setting('pgherd.held')");
        let results = self.ask_home_in_block(&sql).await?;
        let text = results.last().and_then(|result| result.text(0, 0)).map(str::to_owned);
        let text = text.ok_or_else(|| ServerError::internal("an element was assigned to nothing"))?;
        let assigned = Value::of(held.type_oid, type_name, Some(text));
        self.assign(machine, target, assigned).await
    }

    /// A bound's value as SQL; nothing for one that is left out.
    async fn bound_of(&mut self, machine: &mut Machine, expression: Option<&String>) -> Result<String, Problem> {
        let Some(expression) = expression else {
            return Ok(String::new());
        };
        let value = self.value_of(machine, expression).await?;
        Ok(match value.text {
            Some(_) => value.literal(),
            // Whatever type it is of, that it is NULL is what is wrong.
            None => "NULL".to_owned(),
        })
    }

    /// Runs SQL of the gateway's own on the home shard, in the block's transaction.
    async fn ask_home_in_block(&mut self, sql: &str) -> Result<Vec<pgherd_shards::SimpleResult>, Problem> {
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(crate::session::forward::no_block)?;
        let backend = open.transaction.participant(home).await?;
        Ok(backend.simple(sql).await?)
    }
}
