//! From a shard's line number to the client's: of each stream, which of the client's lines its rows were.
//!
//! Runs of neighbouring lines take one entry of about three bytes. A shard reports an error within the rows that it
//! has not stored yet, some buffers behind what was sent, so only the newest entries are kept.

use std::collections::VecDeque;

/// Entries of a stream beyond this many bytes are forgotten, oldest first.
const KEPT_BYTES: usize = 4 << 20;

/// One stream's map.
#[derive(Debug, Default)]
pub(super) struct LineMap {
    /// (stream's step, client's step, following rows that step by 1 on both sides), as varints
    entries: VecDeque<u8>,
    /// the lines before the first entry kept
    base: (u64, u64),
    /// the lines of the last row
    last: (u64, u64),
    /// not yet in `entries`
    open: Option<(u64, u64, u64)>,
}

impl LineMap {
    /// The stream's own line number after its last row.
    pub(super) fn line(&self) -> u64 {
        self.last.0
    }

    /// Notes a row by the line numbers of its last line.
    pub(super) fn add(&mut self, stream: u64, client: u64) {
        let step = (stream - self.last.0, client - self.last.1);
        self.last = (stream, client);
        match &mut self.open {
            Some((_, _, more)) if step == (1, 1) => *more += 1,
            open => {
                if let Some((a, b, more)) = open.replace((step.0, step.1, 0)) {
                    [a, b, more].into_iter().for_each(|v| put(&mut self.entries, v));
                }
            }
        }
        while self.entries.len() > KEPT_BYTES {
            let mut bytes = self.entries.iter().copied();
            let [a, b, more] = std::array::from_fn(|_| take(&mut bytes).unwrap_or(0));
            let used = self.entries.len() - bytes.len();
            self.entries.drain(..used);
            self.base = (self.base.0 + a + more, self.base.1 + b + more);
        }
    }

    /// The client's line for the stream's; None where that is forgotten or was never sent.
    pub(super) fn client_line(&self, line: u64) -> Option<u64> {
        let mut bytes = self.entries.iter().copied();
        let mut open = self.open;
        let (mut stream, mut client) = self.base;
        while stream < line {
            let entry = take(&mut bytes).map(|a| (a, take(&mut bytes).unwrap_or(0), take(&mut bytes).unwrap_or(0)));
            let (a, b, more) = entry.or_else(|| open.take())?;
            // A line inside of a row of several lines is that row's.
            let extra = line.saturating_sub(stream + a).min(more);
            (stream, client) = (stream + a + extra, client + b + extra);
        }
        (line > 0 && line > self.base.0).then_some(client)
    }
}

fn put(out: &mut VecDeque<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push_back(value as u8 | 0x80);
        value >>= 7;
    }
    out.push_back(value as u8);
}

fn take(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.next()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_map_back() {
        let mut map = LineMap::default();
        let rows = [
            (1, 1),
            (2, 2),
            (3, 3),
            (4, 7),
            (5, 8),
            (8, 300),
            (9, 301),
            (10, 100_000),
        ];
        rows.iter().for_each(|(s, c)| map.add(*s, *c));
        for (stream, client) in rows {
            assert_eq!(map.client_line(stream), Some(client), "{stream}");
        }
        assert_eq!(map.client_line(6), Some(300));
        assert_eq!(map.client_line(11), None);
        assert_eq!(map.client_line(0), None);
    }

    #[test]
    fn old_lines_are_forgotten_not_confused() {
        let mut map = LineMap::default();
        let rows = 3_000_000;
        (1..=rows).for_each(|i| map.add(i, 3 * i));
        assert_eq!(map.client_line(rows), Some(3 * rows));
        assert_eq!(map.client_line(rows - 1000), Some(3 * rows - 3000));
        assert_eq!(map.client_line(1), None);
        assert!(map.entries.len() <= KEPT_BYTES);
    }
}
