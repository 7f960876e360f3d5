//! What is in PostgreSQL's binary values: the formats of array_send, record_send, range_send and multirange_send.

/// Composite values whose types nobody has made: record, and record[].
pub(crate) const RECORD: u32 = 2249;
pub(crate) const RECORDS: u32 = 2287;
/// Flags of a range: it is empty; it has no lower bound, for two reasons; no upper one.
pub(crate) const EMPTY: u8 = 0x01;
pub(crate) const NO_LOWER: u8 = 0x08 | 0x20;
pub(crate) const NO_UPPER: u8 = 0x10 | 0x40;

#[cfg(test)]
pub(crate) mod tests {
    /// A value behind its length.
    pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    /// Numbers one behind the other.
    pub(crate) fn numbers(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
    }
}
