//! Portals that a row limit has suspended: open on the shard that runs them, or as the rows that are left.

use super::extended::{PortalState, backend_portal};
use super::forward::{no_block, settle};
use super::relay::{Filter, relay};
use super::{Problem, Session};
use bytes::BytesMut;
use pgherd_model::ShardId;
use postgres_protocol::message::frontend;

impl Session {
    /// Notes how far a portal has come.
    pub(crate) fn suspend(&mut self, name: &str, state: PortalState) {
        if let Some(portal) = self.portals.get_mut(name) {
            portal.state = state;
        }
    }

    /// Runs on a portal that is open on a shard.
    pub(crate) async fn resume_on_shard(&mut self, name: &str, shard: ShardId, max_rows: i32) -> Result<(), Problem> {
        let catalog = self.database.catalog.clone();
        let fresh = || catalog.lease_is_valid();
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let backend = open.transaction.participant(shard).await?;
        self.cancel.slot.start(backend.cancel_token());
        frontend::execute(&backend_portal(name), max_rows.max(0), backend.outbox())?;
        frontend::sync(backend.outbox());
        backend.expect_ready();
        backend.flush().await?;
        let filter = Filter {
            hide_preparation: true,
            ..Filter::default()
        };
        let end = relay(backend, &mut self.client, filter, &fresh).await;
        let reply = settle(backend, None, end)?;
        self.cancel.slot.clear();
        if reply.suspended {
            self.suspend(name, PortalState::OnShard(shard));
        }
        reply
            .error
            .map_or(Ok(()), |error| Err(self.as_client_sees(error).into()))
    }

    /// Delivers more of the rows that are left.
    pub(crate) async fn resume_rows(&mut self, name: &str, rows: BytesMut, max_rows: i32) -> Result<(), Problem> {
        let delivered = self.deliver_rows(name, rows, max_rows);
        if let Some(count) = delivered {
            self.client.put_tag(&format!("SELECT {count}"));
        }
        Ok(())
    }

    /// Puts up to `max_rows` rows (0: all) into the client's buffer and keeps the rest with the portal. The count, where
    /// the portal has come to its end; else PortalSuspended was put.
    pub(crate) fn deliver_rows(&mut self, name: &str, mut rows: BytesMut, max_rows: i32) -> Option<usize> {
        let (mut end, mut count) = (0, 0);
        while end < rows.len() && (max_rows <= 0 || count < max_rows as usize) {
            let length = u32::from_be_bytes([rows[end + 1], rows[end + 2], rows[end + 3], rows[end + 4]]);
            end += 1 + length as usize;
            count += 1;
        }
        let now = rows.split_to(end);
        self.client.out.extend_from_slice(&now);
        // As PostgreSQL: a limit that is reached suspends, even when no row is left.
        if max_rows > 0 && count == max_rows as usize {
            self.suspend(name, PortalState::Rows(rows));
            self.client.put(b's', &[]);
            return None;
        }
        Some(count)
    }

    /// Closes a suspended portal on its shard.
    pub(crate) async fn close_on_shard(&mut self, shard: ShardId, name: &str) -> Result<(), Problem> {
        if let Some(open) = self.block.open_mut()
            && open.transaction.enlisted(shard)
        {
            let backend = open.transaction.participant(shard).await?;
            frontend::close(b'P', &backend_portal(name), backend.outbox())?;
            frontend::sync(backend.outbox());
            backend.expect_ready();
            backend.flush().await?;
            backend.drain().await?;
        }
        Ok(())
    }
}
