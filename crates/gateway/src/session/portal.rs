//! Portals of the extended protocol: what was bound, and how far it was run.

use super::extended::Prepared;
use crate::user_types::Holding;
use bytes::{Bytes, BytesMut};
use pgherd_model::ShardId;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A bound portal.
pub(crate) struct Portal {
    pub(super) prepared: Arc<Prepared>,
    pub(super) parameters: Vec<(bool, Option<Bytes>)>,
    /// those of its rows
    pub(crate) formats: Vec<i16>,
    /// those that it was bound with, where FETCH was first to read from it and wanted others
    pub(crate) bound_formats: Option<Vec<i16>>,
    pub(crate) state: PortalState,
    /// when it was bound, where it has a name
    pub(super) bound_at: Option<SystemTime>,
}

impl Portal {
    /// A row of PostgreSQL's view of cursors, with the time in seconds.
    pub(crate) fn as_cursor(&self, name: &str) -> Value {
        // The one without is that of the statement which asks: just bound.
        let bound_at = self.bound_at.unwrap_or_else(SystemTime::now);
        let since = bound_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = self.prepared.statement.as_ref().map_or("", |s| &*s.text);
        json!({
            "name": name,
            "statement": text,
            "is_holdable": false,
            "is_binary": false,
            "is_scrollable": false,
            "bound_at": since.as_secs_f64(),
        })
    }
}

/// How far a portal was run.
#[derive(Clone, Default)]
pub(crate) enum PortalState {
    /// not yet
    #[default]
    Ready,
    /// suspended, open on that shard, with the columns whose values are translated
    OnShard(ShardId, Holding),
    /// suspended, with the remaining rows here: DataRow messages
    Rows(BytesMut),
    /// to its end; closed there where it is open on a shard still
    Done(Option<ShardId>),
}

impl PortalState {
    /// Where the portal is open.
    pub(crate) fn shard(&self) -> Option<ShardId> {
        match self {
            Self::OnShard(shard, _) | Self::Done(Some(shard)) => Some(*shard),
            _ => None,
        }
    }
}

/// The name on a backend of a portal that may be suspended.
pub(crate) fn backend_portal(name: &str) -> String {
    format!("p_{name}")
}
