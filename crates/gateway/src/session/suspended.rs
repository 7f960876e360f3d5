//! Portals that a row limit has suspended: open on the shard that runs them, or as the rows that are left. SQL may use
//! them as cursors.

use super::forward::{no_block, settle};
use super::portal::{PortalState, backend_portal};
use super::relay::{Filter, Fresh, relay};
use super::{Mode, Problem, Session, Unit};
use crate::messages::Messages;
use crate::user_types::{Asking, Holding};
use bytes::{Bytes, BytesMut};
use pgherd_model::{ServerError, ShardId};
use pgherd_sql::Kind;
use pgherd_sql::lexer::Token;
use pgwire::messages::extendedquery::{Describe, Execute};
use postgres_protocol::message::frontend;

impl Session {
    /// Notes how far a portal has come.
    pub(crate) fn suspend(&mut self, name: &str, state: PortalState) {
        if let Some(portal) = self.portals.get_mut(name) {
            portal.state = state;
        }
    }

    /// Runs on a portal that is open on a shard; OIDs in the values of some of its columns are translated.
    pub(crate) async fn resume_on_shard(
        &mut self,
        name: &str,
        (shard, holding): (ShardId, Holding),
        max_rows: i32,
    ) -> Result<(), Problem> {
        let asking = Asking::new(&self.database, &self.who, self.gateway.shards.home());
        let catalog = self.database.catalog.clone();
        let fresh = Fresh::Lease(&catalog);
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let backend = open.transaction.participant(shard).await?;
        self.cancel.slot.start(backend.cancel_token());
        frontend::execute(&backend_portal(name), max_rows.max(0), backend.outbox())?;
        frontend::sync(backend.outbox());
        backend.expect_ready();
        backend.flush().await?;
        let filter = Filter {
            hide_preparation: true,
            foreign: asking.foreign(shard),
            holding: &holding,
            ..Filter::default()
        };
        let end = relay(backend, &mut self.client, filter, fresh).await;
        let reply = settle(backend, None, end)?;
        self.cancel.slot.clear();
        if reply.suspended {
            self.suspend(name, PortalState::OnShard(shard, holding));
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

    /// Forgets a portal, and closes it where it is open.
    pub(crate) async fn close_portal(&mut self, name: &str) -> Result<(), Problem> {
        if let Some(shard) = self.portals.remove(name).and_then(|portal| portal.state.shard())
            && let Some(open) = self.block.open_mut()
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

    /// FETCH, MOVE and CLOSE in SQL of a portal that the protocol has opened, which is a cursor like any other.
    pub(crate) async fn portal_as_cursor(&mut self, unit: Unit<'_>, name: &str) -> Result<(), Problem> {
        let moves = match unit.statement.parsed.kind {
            Kind::Fetch { moves, .. } => moves,
            _ => {
                self.close_portal(name).await?;
                self.client.put_tag("CLOSE CURSOR");
                return Ok(());
            }
        };
        let Some(count) = forward_count(&unit.statement.text, &unit.statement.parsed.tokens) else {
            return Err(ServerError::unsupported(
                "FETCH and MOVE of a portal of the protocol are supported only forward, by a positive number of rows or ALL",
                "Use DECLARE to make a cursor for other directions.",
            )
            .into());
        };
        if moves {
            if matches!(unit.mode, Mode::Extended { describe: true, .. }) {
                self.client.put(b'n', &[]);
            }
        } else {
            self.fetch_in_formats(name, unit.mode.formats())?;
            if !matches!(unit.mode, Mode::Extended { describe: false, .. }) {
                self.describe(&Describe::new(b'P', Some(name.to_owned()))).await?;
            }
        }
        let bound_formats = self.portals.get_mut(name).and_then(|p| p.bound_formats.take());
        let before = self.client.capture();
        let run = Box::pin(self.execute(&Execute::new(Some(name.to_owned()), count), false, false)).await;
        let replies = self.client.captured(before).freeze();
        if let Some(portal) = self.portals.get_mut(name) {
            portal.bound_formats = bound_formats;
        }
        run?;
        let rows = self.put_rows(replies, moves);
        self.client
            .put_tag(&format!("{} {rows}", if moves { "MOVE" } else { "FETCH" }));
        Ok(())
    }

    /// FETCH gives a portal's rows in the formats that its own result has, whatever the portal was bound with. A shard was told these
    /// when the portal was first run.
    fn fetch_in_formats(&mut self, name: &str, wanted: &[i16]) -> Result<(), ServerError> {
        let Some(portal) = self.portals.get_mut(name) else {
            return Ok(());
        };
        let are_same = uniform(wanted) == uniform(&portal.formats);
        match portal.state {
            _ if are_same => Ok(()),
            PortalState::Ready => {
                let bound = std::mem::replace(&mut portal.formats, wanted.to_vec());
                portal.bound_formats = Some(bound);
                Ok(())
            }
            // No row is left to be shown in any format.
            PortalState::Done(_) => Ok(()),
            PortalState::OnShard(..) | PortalState::Rows(_) => Err(in_other_formats()),
        }
    }

    /// Puts a portal's rows, or only counts them; notices go to the client in any case.
    fn put_rows(&mut self, replies: Bytes, only_count: bool) -> usize {
        let mut rows = 0;
        for (tag, message) in Messages(replies) {
            rows += usize::from(tag == b'D');
            if tag == b'N' || (tag == b'D' && !only_count) {
                self.client.out.extend_from_slice(&message);
            }
        }
        rows
    }
}

/// A portal that has stopped goes on in the formats that it began with.
pub(super) fn in_other_formats() -> ServerError {
    ServerError::unsupported(
        "reading the rows of a portal partly in one format and partly in another is not supported",
        "Use either Execute or FETCH for all of them, or DECLARE to make a cursor.",
    )
}

/// Formats as Bind may have them, in the shortest form: none where all are text.
fn uniform(formats: &[i16]) -> &[i16] {
    match formats {
        all if all.iter().all(|format| *format == 0) => &[],
        [first, rest @ ..] if rest.iter().all(|format| format == first) => &formats[..1],
        mixed => mixed,
    }
}

/// How far FETCH or MOVE goes on, 0 for all that is left; None for another direction, and for no row.
fn forward_count(text: &str, tokens: &[Token]) -> Option<i32> {
    // Behind the verb: direction, count, FROM or IN, the cursor.
    let mut words = &tokens[1..tokens.len() - 1];
    if let [rest @ .., last] = words
        && (last.is_word(text, "from") || last.is_word(text, "in"))
    {
        words = rest;
    }
    if let [first, rest @ ..] = words
        && (first.is_word(text, "forward") || (rest.is_empty() && first.is_word(text, "next")))
    {
        words = rest;
    }
    match words {
        [] => Some(1),
        [all] if all.is_word(text, "all") => Some(0),
        [count] => count.text(text).parse().ok().filter(|count| *count > 0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::forward_count;

    #[test]
    fn only_forward_has_a_count() {
        let count = |text: &str| {
            let parsed = pgherd_sql::parse(text).expect("SQL").remove(0);
            forward_count(text, &parsed.tokens)
        };
        for (text, expected) in [
            ("FETCH c", Some(1)),
            ("MOVE FORWARD 5 c", Some(5)),
            ("fetch next from c", Some(1)),
            ("MOVE FORWARD ALL IN c", Some(0)),
            ("FETCH 7 FROM \"next\"", Some(7)),
            ("FETCH all c", Some(0)),
            ("FETCH FORWARD c", Some(1)),
            ("FETCH BACKWARD 2 FROM c", None),
            ("FETCH 0 c", None),
            ("FETCH -1 c", None),
            ("MOVE ABSOLUTE 3 c", None),
            ("FETCH LAST c", None),
        ] {
            assert_eq!(count(text), expected, "{text}");
        }
    }
}
