//! COPY.

use super::{Problem, Session, Unit};
use pgherd_model::ServerError;

impl Session {
    /// COPY FROM and TO.
    pub(crate) async fn copy(&mut self, _unit: Unit<'_>) -> Result<(), Problem> {
        Err(ServerError::unsupported("COPY is not supported yet", "Use INSERT.").into())
    }
}
