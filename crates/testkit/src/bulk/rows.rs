//! The rows, made on the fly: the same for every side and round.

use bytes::{BufMut, BytesMut};
use std::fmt::Write;

/// The order in which rows come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// by their key
    Key,
    /// all over the keys
    Shuffled,
}

impl Order {
    /// The key of the row that comes at this place: every number below `rows` once.
    pub(super) fn key(self, place: u64, rows: u64) -> u64 {
        match self {
            Self::Key => place,
            // A step without a common factor visits all; near the golden ratio it leaves no pattern.
            Self::Shuffled => (u128::from(place) * u128::from(step(rows)) % u128::from(rows)) as u64,
        }
    }
}

fn step(rows: u64) -> u64 {
    let mut step = (rows as f64 * 0.618_033_988) as u64 | 1;
    while greatest_common_divisor(step, rows) != 1 {
        step += 1;
    }
    step
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Appends the row of this key in COPY's text format: id, other, amount, label, at. About 75 bytes.
pub(super) fn put_row(out: &mut BytesMut, key: u64, rows: u64) {
    // Unlike the key's order, and every number below `rows` once as well: another table can have it for its key.
    let other = Order::Shuffled.key(key, rows);
    // Writing into memory does not fail.
    let _ = write!(
        out,
        "{key}\t{other}\t{}.{:02}\trow number {key} of a bulk load\t2026-{:02}-{:02} {:02}:{:02}:{:02}",
        key % 100_000,
        other % 100,
        key % 12 + 1,
        other % 28 + 1,
        key % 24,
        other % 60,
        (key / 7) % 60,
    );
    out.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn both_orders_visit_every_key_once() {
        for rows in [3, 10, 1000, 4096] {
            for order in [Order::Key, Order::Shuffled] {
                let keys: BTreeSet<u64> = (0..rows).map(|place| order.key(place, rows)).collect();
                assert_eq!(keys.len() as u64, rows, "{order:?} of {rows}");
                assert_eq!(keys.last(), Some(&(rows - 1)));
            }
        }
        let first: Vec<u64> = (0..4).map(|place| Order::Shuffled.key(place, 1000)).collect();
        assert_ne!(first, [0, 1, 2, 3]);
    }
}
