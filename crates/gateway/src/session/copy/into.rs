//! COPY FROM STDIN into a sharded table: one COPY per shard into the parent there (which holds just that shard's
//! ranges), all in one transaction, each opened at its first row and behind the table's fence. The first shard's is
//! opened before the client is asked for data, so that PostgreSQL has judged names, options and privileges by then.

use super::describes;
use super::evaluate::Evaluator;
use super::on_shard::{begin_copy, end, try_copy};
use super::outflow::Outflow;
use super::plan::Plan;
use super::running::Running;
use crate::session::enter::Entered;
use crate::session::execute::{names_missing_child, stale_route};
use crate::session::forward::{lost_lease, no_block};
use crate::session::{Mode, Problem, Session, Unit};
use bytes::BytesMut;
use pgherd_model::{ServerError, ShardId, Table};
use pgherd_sql::CopyShape;
use pgherd_sql::copy_split::{CopyOptions, Splitter, Target};

impl Session {
    /// Runs the COPY in the block, or in one of its own.
    pub(super) async fn copy_into(
        &mut self,
        unit: Unit<'_>,
        shape: &CopyShape,
        entered: &Entered,
        table: &Table,
    ) -> Result<(), Problem> {
        let plan = Plan::new(unit, shape, table)?;
        let made = self.ensure_block();
        let result = self.copy_into_block(unit, shape, entered, table, &plan).await;
        let result = result.map(|count| Some(format!("COPY {count}")));
        self.finish_statement(made, result).await
    }

    async fn copy_into_block(
        &mut self,
        unit: Unit<'_>,
        shape: &CopyShape,
        entered: &Entered,
        table: &Table,
        plan: &Plan,
    ) -> Result<u64, Problem> {
        let sharded = table
            .sharded()
            .ok_or_else(|| ServerError::internal("COPY into a table that is not sharded"))?;
        let home = self.gateway.shards.home();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let first = sharded.ranges.shards().first().copied().unwrap_or(home);
        let held = open.overlay.is_some().then_some(home);
        let backend = open.transaction.participant(first).await?;
        self.cancel.slot.start(backend.cancel_token());
        let began = match held == Some(first) {
            true => try_copy(backend, plan).await?,
            false => begin_copy(backend, plan).await?,
        };
        let response = match began {
            Ok(response) => response,
            Err(error) => return Err(self.copy_error(plan.of_client(error)).into()),
        };
        let encoding = backend.parameter("client_encoding").unwrap_or("UTF8").to_owned();
        open.transaction.wrote(first);
        let target = Target {
            relation: &plan.relation,
            fields: plan.fields,
            supplied: plan.supplied.clone(),
            key: plan.key.clone(),
            ranges: &sharded.ranges,
            home,
        };
        let splitter = CopyOptions::from_shape(shape, &encoding).and_then(|options| Splitter::new(options, target));
        let key_types = plan
            .key
            .iter()
            .map(|k| (type_name(table, &k.name), k.key_type))
            .collect();
        let evaluator = Evaluator::new(
            self.database.coordinator.clone(),
            home,
            &self.who,
            key_types,
            plan.defaults.clone(),
            plan.binary,
        );
        let splitter = match splitter {
            Ok(splitter) => splitter,
            Err(error) => {
                if held != Some(first) {
                    let _ = end(open.transaction.participant(first).await?, Some("")).await;
                }
                return Err(error.into());
            }
        };
        if describes(unit) {
            self.client.put(b'n', &[]);
        }
        self.client.put(b'G', &response);
        self.copy_took_sync |= matches!(unit.mode, Mode::Extended { .. });
        let outflow = |&shard: &ShardId| Outflow {
            shard,
            pending: BytesMut::new(),
            open: shard == first && held != Some(first),
        };
        let outflows = splitter.shards().iter().map(outflow).collect();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let cancel = &self.cancel.slot;
        let client = &mut self.client;
        let mut running = Running {
            client,
            open,
            plan,
            splitter,
            evaluator,
            outflows,
            ended: false,
            held,
            cancel,
        };
        let result = running.run().await;
        running.evaluator.finish().await;
        self.cancel.slot.clear();
        if !entered.guard.holds().await {
            return Err(lost_lease().into());
        }
        result.map_err(|problem| match problem {
            // The client's data is gone: there is no second try.
            Problem::Error(error) if names_missing_child(&error) => stale_route(error).into(),
            Problem::Error(error) => self.as_client_sees(error).into(),
            gone => gone,
        })
    }

    /// A shard's error with the parent's names; one that says the route was stale as it is.
    fn copy_error(&self, error: ServerError) -> ServerError {
        match names_missing_child(&error) {
            true => error,
            false => self.as_client_sees(error),
        }
    }
}

fn type_name(table: &Table, column: &str) -> String {
    table
        .column(column)
        .map_or_else(|| "text".into(), |c| c.type_name.clone())
}
