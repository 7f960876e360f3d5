//! The catalog lets a statement in: its analysis under the present catalog, and its registration there.

use super::block::Open;
use super::execute::statement_timeout;
use super::row_locks::ended_waiting;
use super::{Problem, Session, Unit};
use crate::statements::Context;
use pgherd_catalog::{ChangeId, StatementGuard};
use pgherd_model::{ServerError, Snapshot, SqlState, quote_literal};
use pgherd_query::Description;
use pgherd_sql::{Analysis, Kind};
use pgherd_transaction::Isolation;
use std::sync::Arc;
use std::time::Duration;

/// How often a statement that is refused looks whether it still is, while the catalog lacks texts.
const MOST_LOOKS: u32 = 100;
/// How long it waits in between where it is not known for whom.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A statement that the catalog has let in.
pub(crate) struct Entered {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) analysis: Arc<Analysis>,
    /// held until the statement has finished on its shards
    pub(crate) guard: StatementGuard,
}

impl Session {
    /// Analyses the statement under the present catalog and registers it there: until the result is dropped, none of
    /// its tables changes kind, key or ranges unseen.
    pub(crate) async fn enter(&mut self, unit: Unit<'_>) -> Result<Entered, Problem> {
        let mut looks = 0;
        loop {
            let overlay = self.block.open().and_then(|open| open.overlay.clone());
            let own = self.block.open().and_then(|open| open.change_id());
            let catalog = self.catalog().clone();
            let snapshot = overlay.clone().unwrap_or_else(|| catalog.snapshot());
            let analysis = match self.analysis(unit, &snapshot) {
                Err(_) if unit.template.is_some() => return Err(Problem::NeedsWholeText),
                analysis => analysis?,
            };
            let names = &analysis.names;
            // A transaction that already holds locks on these tables must not wait for a change that waits for it.
            let touched = self
                .block
                .open()
                .is_some_and(|open| names.iter().all(|n| open.touched.contains(n)));
            let with_level: Vec<u64>;
            let entered_names = match snapshot.ever_sharded || !self.is_at_own_serializable() {
                true => &names[..],
                // What SERIALIZABLE is may just be changing, with the first sharded table.
                false => {
                    with_level = names.iter().copied().chain([pgherd_sql::level_hash()]).collect();
                    &with_level[..]
                }
            };
            let guard = if touched && self.has_own_serializable() {
                catalog.try_enter(entered_names).ok_or_else(changed_under_transaction)?
            } else if touched && !names.is_empty() {
                catalog.has_lease().await;
                catalog.enter_touched(names, snapshot.clone())?
            } else if let Some(guard) = catalog.try_enter(entered_names) {
                guard
            } else {
                let limit = self.settings.timeouts.statement;
                let entering = self.wait_to_enter(unit, entered_names, own);
                match limit {
                    Some(limit) => tokio::time::timeout(limit, entering)
                        .await
                        .map_err(|_| statement_timeout())??,
                    None => entering.await?,
                }
            };
            match overlay {
                None if guard.snapshot.epoch != snapshot.epoch => continue,
                _ => {}
            }
            if snapshot.incomplete && analysis.is_refused() && looks < MOST_LOOKS {
                looks += 1;
                drop(guard);
                Box::pin(self.wait_for_texts(&analysis)).await?;
                continue;
            }
            if self.block.open().is_some_and(|open| open.first_catalog.is_some()) {
                match unit.statement.parsed.kind {
                    Kind::Lock(_) | Kind::Show { .. } => {
                        if let Some(open) = self.block.open_mut() {
                            stay_alone_if_local(open, &snapshot);
                        }
                    }
                    _ => {
                        let sharded = analysis.touches_sharded || self.was_sharded(unit);
                        self.check_catalog_is_shown(sharded)?;
                    }
                }
            }
            if let Some(open) = self.block.open_mut() {
                open.touched.extend(names.iter().copied());
            }
            return Ok(Entered {
                snapshot,
                analysis,
                guard,
            });
        }
    }

    /// Waits for a change of these tables to end. A table that is only being made is not there for others: so PostgreSQL is asked
    /// meanwhile, where it knows all that this transaction does.
    async fn wait_to_enter(
        &self,
        unit: Unit<'_>,
        names: &[u64],
        own: Option<ChangeId>,
    ) -> Result<StatementGuard, Problem> {
        if unit.template.is_some() {
            return Err(Problem::NeedsWholeText);
        }
        let catalog = self.catalog().clone();
        let home = self.gateway.shards.home();
        let entering = catalog.enter(names, own);
        tokio::pin!(entering);
        let is_query = matches!(
            unit.statement.parsed.kind,
            Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge
        );
        let is_known = self.block.open().is_none_or(|open| !open.transaction.enlisted(home));
        if is_query && is_known && self.temporary.is_empty() {
            let asking = async {
                let mut backend = self.home_backend().await?;
                pgherd_query::describe(&mut backend, &unit.statement.text, unit.types).await
            };
            tokio::select! {
                guard = &mut entering => return Ok(guard?),
                described = asking => match described {
                    Err(e) if e.sqlstate() == SqlState::UNDEFINED_TABLE => return Err(e.into()),
                    _ => {}
                }
            }
        }
        Ok(entering.await?)
    }

    /// The catalog lacks texts that another transaction was changing when it was read, and the statement may be refused for that alone.
    /// PostgreSQL waits for the other transaction, so the statement does, and the catalog is read anew.
    async fn wait_for_texts(&mut self, analysis: &Analysis) -> Result<(), Problem> {
        let views: Vec<_> = analysis.unread_views().cloned().collect();
        let slot = self.cancel.slot.clone();
        if views.is_empty() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        for view in views {
            let sql = format!(
                "SELECT pg_catalog.pg_get_viewdef({}::pg_catalog.regclass)",
                quote_literal(&view.to_string())
            );
            match self.ask_home_under(&sql, Some(&slot)).await {
                Err(error) if ended_waiting(&error) => return Err(error.into()),
                // Where it is not there any more, or not for this role, routing says so.
                _ => {}
            }
        }
        self.catalog().refresh().await?;
        Ok(())
    }

    /// Whether the statement used sharded tables when the transaction's snapshot was taken.
    fn was_sharded(&self, unit: Unit<'_>) -> bool {
        let Some(first) = self.block.open().and_then(|open| open.first_catalog.clone()) else {
            return false;
        };
        first.epoch != self.catalog().snapshot().epoch
            && self
                .analysis(unit, &first)
                .is_ok_and(|analysis| analysis.touches_sharded)
    }

    /// Where one snapshot serves the whole transaction: the first statement that takes it notes the catalog, and later ones that
    /// depend on ranges are refused when they have changed. Rows that a split or a move has copied since are in none of
    /// the places where that snapshot shows them.
    pub(crate) fn check_catalog_is_shown(&mut self, depends_on_ranges: bool) -> Result<(), ServerError> {
        let catalog = self.catalog().snapshot();
        let default_read_only = self.settings.default_read_only.then_some(true);
        let Some(open) = self.block.open_mut() else {
            return Ok(());
        };
        let is_open = match open.transaction.mode().isolation {
            Some(Isolation::RepeatableRead) => open.transaction.is_open_repeatable_read(),
            Some(Isolation::Serializable) if catalog.ever_sharded && open.overlay.is_none() => {
                if open.transaction.participants().next().is_some() {
                    return Err(changed_under_transaction());
                }
                open.transaction.set_mode(pgherd_transaction::Mode {
                    isolation: Some(Isolation::StrictLocking),
                    read_only: open.transaction.mode().read_only.or(default_read_only),
                    ..open.transaction.mode().clone()
                });
                true
            }
            Some(Isolation::Serializable | Isolation::StrictLocking) => {
                open.transaction.participants().next().is_none()
            }
            _ => return Ok(()),
        };
        if is_open {
            stay_alone_if_local(open, &catalog);
            open.first_catalog = Some(catalog);
            return Ok(());
        }
        let is_same = open
            .first_catalog
            .as_ref()
            .is_some_and(|first| first.epoch == catalog.epoch);
        // Own changes hide others' from this transaction's view of the catalog.
        if is_same || !(depends_on_ranges || open.overlay.is_some()) {
            return Ok(());
        }
        Err(changed_under_transaction())
    }

    fn context<'a>(
        &'a self,
        unit: Unit<'a>,
        snapshot: &'a Snapshot,
        temporary: &'a dyn Fn(&str) -> bool,
    ) -> Context<'a> {
        Context {
            snapshot,
            search_path: &self.settings.search_path,
            search_path_id: self.settings.search_path_id,
            temporary,
            types: unit.types,
            database: &self.who.database,
            // One that is loaded again has the same number then.
            cacheable: self.is_cacheable() && !snapshot.incomplete,
        }
    }

    /// The statement's analysis, cached with the statement.
    pub(crate) fn analysis(&self, unit: Unit<'_>, snapshot: &Snapshot) -> Result<Arc<Analysis>, ServerError> {
        let temporary = |name: &str| self.temporary.contains(name);
        unit.statement.analysis(&self.context(unit, snapshot, &temporary))
    }

    /// The statement's description by the home shard, cached with the statement.
    pub(crate) async fn description(
        &mut self,
        unit: Unit<'_>,
        snapshot: &Snapshot,
    ) -> Result<Arc<Description>, Problem> {
        let temporary_names = self.temporary.clone();
        let temporary = |name: &str| temporary_names.contains(name);
        if let Some(description) = unit.statement.description(&self.context(unit, snapshot, &temporary)) {
            return Ok(description);
        }
        let home = self.gateway.shards.home();
        let (text, types) = (&unit.statement.text, unit.types);
        let described = match self.block.open_mut() {
            Some(open) if open.transaction.enlisted(home) => {
                pgherd_query::describe(open.transaction.participant(home).await?, text, types).await
            }
            _ => pgherd_query::describe(&mut self.home_backend().await?, text, types).await,
        };
        let description = Arc::new(described?);
        let analysis = unit.statement.analysis(&self.context(unit, snapshot, &temporary))?;
        if self.is_told_by_epoch(unit, &analysis) && !description.has_user_types() {
            unit.statement
                .keep_description(&self.context(unit, snapshot, &temporary), &description);
        }
        Ok(description)
    }

    /// Whether a new epoch tells when something changes that the statement depends on. What it does not tell, nothing that was
    /// learned for the statement must outlive: local tables, functions of users, what the transaction itself has changed.
    pub(crate) fn is_told_by_epoch(&self, unit: Unit<'_>, analysis: &Analysis) -> bool {
        self.is_cacheable() && analysis.is_told_by_epoch() && unit.statement.calls_builtins_only
    }

    /// Whether the session sees the catalog as all do: no temporary tables, no schema of its transaction's own.
    fn is_cacheable(&self) -> bool {
        self.temporary.is_empty() && self.block.open().is_none_or(|o| o.overlay.is_none())
    }

    /// The catalog as the session sees it: with what its open transaction has changed.
    pub(super) fn present_snapshot(&self) -> Arc<Snapshot> {
        let overlay = self.block.open().and_then(|open| open.overlay.clone());
        overlay.unwrap_or_else(|| self.catalog().snapshot())
    }
}

/// At REPEATABLE READ, no cut is needed while no other shard has rows.
fn stay_alone_if_local(open: &mut Open, catalog: &Snapshot) {
    if open.overlay.is_none() && (catalog.shards.len() <= 1 || catalog.sharded().next().is_none()) {
        open.transaction.stay_alone();
    }
}

pub(crate) fn changed_under_transaction() -> ServerError {
    ServerError::new(
        pgherd_model::SqlState::SERIALIZATION_FAILURE,
        "could not serialize access due to a concurrent change of sharded tables",
    )
    .with_detail("Ranges or columns of sharded tables have changed since the transaction's snapshot was taken.")
    .with_hint("Repeat the transaction.")
}
