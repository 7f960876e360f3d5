//! From an analysis to the route of one execution.

use super::refusals::unsafe_function;
use super::{Analysis, Decision};
use crate::lock_table::LockTable;
use crate::noting::noting;
use crate::route::{Merge, ParameterValue, Part, Route, Watched};
use crate::scalar::Parameters;
use pgherd_model::{ServerError, Snapshot};
use std::sync::Arc;

impl Analysis {
    /// Where the statement goes with these parameters. With none given, a predicate over a parameter does not
    /// restrict.
    pub fn route(&self, snapshot: &Snapshot, parameters: &[ParameterValue]) -> Route {
        let parameters = Parameters {
            values: parameters,
            types: &self.types,
        };
        let route = match &self.decision {
            Decision::Home => return Route::Forward(self.unchanged(snapshot)),
            Decision::Refuse(error) => Route::Refuse(error.clone()),
            Decision::Watched(name) => Route::Refuse(unsafe_function(name)),
            Decision::Plan => Route::Plan,
            Decision::GatherWrite => Route::GatherWrite,
            Decision::Placed(placed) => placed.route(&self.text, snapshot, parameters),
            Decision::Insert(plan) => plan.route(&self.text, snapshot, parameters, None),
            Decision::Lock(lock) => self.route_lock(lock, snapshot),
        };
        self.on_one_shard(route, snapshot)
    }

    /// What is refused unless somebody watches it.
    pub fn watched(&self, snapshot: &Snapshot) -> Option<Watched> {
        match &self.decision {
            Decision::Watched(name) => Some(Watched {
                refusal: unsafe_function(name),
                name: name.clone(),
                part: self.unchanged(snapshot),
            }),
            _ => None,
        }
    }

    /// The same for an INSERT for which [`Analysis::route`] said [`Route::Defaults`], with the rows that its
    /// query gave. The parameters must be the same.
    pub fn route_with_defaults(
        &self,
        snapshot: &Snapshot,
        parameters: &[ParameterValue],
        rows: &[Vec<Option<String>>],
    ) -> Route {
        let parameters = Parameters {
            values: parameters,
            types: &self.types,
        };
        match &self.decision {
            Decision::Insert(plan) => plan.route(&self.text, snapshot, parameters, Some(rows)),
            _ => Route::Refuse(ServerError::internal(
                "defaults were given to a statement that asked for none",
            )),
        }
    }

    /// A part of a scattered UPDATE or DELETE, so that it notes which commits its own snapshot shows (`pgherd.note_markers`);
    /// None where that cannot be added.
    pub fn noting(&self, part: &Part) -> Option<Part> {
        noting(&self.text, &self.tokens, part)
    }

    /// A cluster of one shard is a plain PostgreSQL: whatever is not for one range goes there as it came.
    fn on_one_shard(&self, route: Route, snapshot: &Snapshot) -> Route {
        match route {
            // The numbers that it draws are remembered for the session.
            Route::Forward(_) | Route::Defaults { .. } => route,
            _ if snapshot.shards.len() > 1 => route,
            _ => Route::Forward(Part::new(snapshot.home(), &self.text, &[], self.fences())),
        }
    }

    fn fences(&self) -> Vec<Arc<str>> {
        let fences = self.sharded.iter().filter_map(|t| t.sharded());
        fences.map(|s| s.fence.to_string().into()).collect()
    }

    /// The client's text, for the home shard.
    fn unchanged(&self, snapshot: &Snapshot) -> Part {
        Part::new(snapshot.home(), &self.text, &[], Vec::new())
    }

    fn route_lock(&self, lock: &LockTable, snapshot: &Snapshot) -> Route {
        let mut parts = lock.parts(&self.text, snapshot);
        match parts.len() {
            0 => Route::Forward(self.unchanged(snapshot)),
            1 => Route::Forward(parts.remove(0)),
            _ => Route::Scatter {
                parts,
                merge: Merge::Concatenate,
            },
        }
    }
}
