//! What the query room is told of a statement: its tree and parameters, and what of the session it is to be run with.

use super::{Session, Unit};
use crate::user_types::Asking;
use pgherd_model::{ServerError, ShardId, Snapshot};
use pgherd_query::Statement;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What of the session a statement is run with in the query room.
pub(super) struct Surroundings {
    settings_sql: String,
    search_path: Arc<[Arc<str>]>,
    types_elsewhere: BTreeMap<(ShardId, u32), u32>,
}

impl Session {
    /// For a statement whose parameters have these types.
    pub(super) async fn surroundings(&self, types: &[u32], snapshot: &Snapshot) -> Result<Surroundings, ServerError> {
        Ok(Surroundings {
            settings_sql: self.settings_sql(),
            search_path: self.settings.search_path.clone(),
            types_elsewhere: self.types_elsewhere(types, snapshot).await?,
        })
    }

    /// What gives a connection that is not of the transaction its settings, those of SET LOCAL too.
    fn settings_sql(&self) -> String {
        let mut sql = self.settings.set_sql();
        let replays = self
            .block
            .open()
            .into_iter()
            .flat_map(|open| open.transaction.replays());
        let is_setting = |text: &&str| {
            let second = text.split_whitespace().nth(1);
            second.is_none_or(|word| !word.eq_ignore_ascii_case("constraints"))
        };
        for local in replays.filter(is_setting) {
            sql.push_str(local);
            sql.push(';');
        }
        sql
    }

    /// What the parameters' types are on other shards than the home shard, where users made them.
    async fn types_elsewhere(
        &self,
        types: &[u32],
        snapshot: &Snapshot,
    ) -> Result<BTreeMap<(ShardId, u32), u32>, ServerError> {
        let asking = Asking::new(&self.database, &self.who, self.gateway.shards.home());
        let mut elsewhere = BTreeMap::new();
        for shard in &snapshot.shards {
            if let Some(there) = asking.on_shard(*shard, types).await? {
                let pairs = types.iter().zip(there);
                elsewhere.extend(pairs.map(|(here, there)| ((*shard, *here), there)));
            }
        }
        Ok(elsewhere)
    }
}

impl Surroundings {
    /// The statement, with results in text and something before or behind it in its transaction; callers say otherwise.
    /// `not_known` and its remedy are said of grammar that only PostgreSQL knows.
    pub(super) fn statement<'a>(
        &'a self,
        unit: Unit<'a>,
        types: &'a [u32],
        snapshot: &'a Snapshot,
        (not_known, remedy): (&str, &str),
    ) -> Result<Statement<'a>, ServerError> {
        let ast = unit.statement.parsed.ast.as_deref();
        Ok(Statement {
            text: &unit.statement.text,
            ast: ast.ok_or_else(|| ServerError::unsupported(not_known, remedy))?,
            parameter_types: types,
            types_elsewhere: &self.types_elsewhere,
            parameters: unit.parameters,
            result_formats: &[],
            search_path: &self.search_path,
            snapshot,
            settings_sql: &self.settings_sql,
            alone: false,
            ends: false,
            told_by_epoch: false,
            schema_is_own: false,
        })
    }
}
