//! Bytes that are no decent COPY stream: splitting them ends, without a panic, and hands on no more than came.

use super::tests::{options, split, splitter};
use super::{CopyFormat, Header};
use crate::tests::fuzz::runner;
use proptest::prelude::*;

const FORMATS: [CopyFormat; 3] = [CopyFormat::Text, CopyFormat::Csv, CopyFormat::Binary];
const HEADERS: [Header; 3] = [Header::None, Header::Skip, Header::Match];
const BINARY: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\x04\0\0\0\x05\0\0\0\x01a\xff\xff";

/// Pieces of streams, and bytes of any kind.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&[u8]> = vec![
        b"5\ta\n",
        b"15,\"a\"\"\nb\"\r\n",
        b"\\.",
        b"\\.\n",
        b"\\N\t\\x41\\101\\",
        b"\"",
        b"\r",
        b"\n",
        b"\xff\xfe",
        BINARY,
        b"\0\x02\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"9999999999999999999999\tx\n",
    ];
    prop_oneof![
        3 => prop::sample::select(known).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}

#[test]
fn any_bytes_are_split_or_refused() {
    let strategy = (
        0..FORMATS.len(),
        0..HEADERS.len(),
        0..2usize,
        prop::collection::vec(piece(), 0..20),
        1..40usize,
    );
    let checked = runner(3000).run(&strategy, |(format, header, position, pieces, size)| {
        let input = pieces.concat();
        let mut splitter = splitter(options(FORMATS[format], HEADERS[header]), position, 2);
        if let Ok(streams) = split(&mut splitter, &input, size) {
            let sent: usize = streams.iter().map(Vec::len).sum();
            // Each stream gets the header, and an end.
            assert!(sent <= 2 * input.len() + 100, "{sent} bytes of {}", input.len());
        }
        Ok(())
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
}
