//! What waits to be sent to a shard.

use bytes::{BufMut, BytesMut};
use pgherd_model::{ServerError, ShardId};

/// The most bytes that wait for the home shard where its COPY cannot begin before the client's data has ended.
const MOST_HELD_BYTES: usize = 256 << 20;

/// Room for the letter and length of a CopyData in front of its bytes.
const FRAME: [u8; 5] = [b'd', 0, 0, 0, 0];

/// A shard's stream.
pub(super) struct Outflow {
    pub shard: ShardId,
    /// a CopyData in the making: [`FRAME`] and its bytes; or nothing
    pub pending: BytesMut,
    pub open: bool,
}

impl Outflow {
    /// 0A000 when too much waits.
    pub fn check_held(&self) -> Result<(), ServerError> {
        if self.pending.len() <= MOST_HELD_BYTES {
            return Ok(());
        }
        Err(ServerError::unsupported(
            format!(
                "COPY of more than {} MB after a schema change in the same transaction is not supported",
                MOST_HELD_BYTES >> 20
            ),
            "Commit the schema change first.",
        ))
    }

    pub fn put(&mut self, bytes: &[u8]) {
        if self.pending.is_empty() {
            self.pending.put_slice(&FRAME);
        }
        self.pending.put_slice(bytes);
    }

    /// Completes the CopyData and appends it.
    pub fn move_to(&mut self, out: &mut BytesMut) {
        let length = (self.pending.len() as u32 - 1).to_be_bytes();
        self.pending[1..5].copy_from_slice(&length);
        out.unsplit(self.pending.split());
    }
}
