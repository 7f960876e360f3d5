//! What goes to which stream; that cuts do not matter; that nothing is lost.

use super::*;
use pgherd_model::{Bound, KeyBound, KeyType, Name, Range, RangeId};
use proptest::prelude::*;

/// Shard 1: keys below 10 and from 100 to 200 (a gap before), shard 2: from 10 to 50.
fn ranges() -> RangeMap {
    let range = |id, from: Bound, to: Bound, shard| Range {
        id: RangeId(id),
        from: KeyBound(vec![from]),
        to: KeyBound(vec![to]),
        shard: ShardId(shard),
        child: Name::new("pgherd_data", &format!("t1_r{id}")),
        declared: false,
    };
    let int = |v| Bound::Value(KeyValue::Int(v));
    RangeMap::new(vec![
        range(1, Bound::Min, int(10), 1),
        range(2, int(10), int(50), 2),
        range(3, int(100), int(200), 1),
    ])
}

/// For rows of one field, behind the key that the caller supplies.
fn supplied(ranges: &RangeMap) -> Target<'_> {
    Target {
        relation: "t",
        fields: 1,
        supplied: vec!["id".into()],
        key: vec![key(KeySource::Supplied(0))],
        ranges,
        home: ShardId(1),
    }
}

pub(super) fn options(format: CopyFormat, header: Header) -> CopyOptions {
    let csv = format == CopyFormat::Csv;
    CopyOptions {
        format,
        delimiter: if csv { b',' } else { b'\t' },
        null: if csv { Vec::new() } else { b"\\N".to_vec() },
        header,
        quote: b'"',
        escape: b'"',
        utf8: true,
        force_null: ForcedColumns::default(),
        force_not_null: ForcedColumns::default(),
        force_quote: ForcedColumns::default(),
    }
}

fn key(source: KeySource) -> KeyColumn {
    KeyColumn {
        name: "k".into(),
        key_type: KeyType::Int,
        type_modifier: -1,
        source,
    }
}

pub(super) fn splitter(options: CopyOptions, position: usize, fields: usize) -> Splitter {
    let ranges = ranges();
    let target = Target {
        relation: "t",
        fields,
        supplied: Vec::new(),
        key: vec![key(KeySource::Field(position))],
        ranges: &ranges,
        home: ShardId(1),
    };
    Splitter::new(options, target).expect("valid options")
}

pub(super) type Streams = [Vec<u8>; 2];

/// Splits `input`, cut into pieces of `size`; keys that are not understood are taken as impossible.
pub(super) fn split(splitter: &mut Splitter, input: &[u8], size: usize) -> Result<Streams, ServerError> {
    let mut streams: Streams = Default::default();
    let mut sink = |stream: usize, bytes: &[u8]| streams[stream].extend_from_slice(bytes);
    for piece in input.chunks(size.max(1)) {
        let mut progress = splitter.push(piece, &mut sink)?;
        while let Progress::Undecided(_) = progress {
            progress = splitter.resolve(None, &mut sink)?;
        }
    }
    while splitter.finish(&mut sink)? != Progress::Done {
        splitter.resolve(None, &mut sink)?;
    }
    Ok(streams)
}

fn texts(format: CopyFormat, header: Header, position: usize, input: &str) -> Result<[String; 2], String> {
    let whole = split(
        &mut splitter(options(format, header), position, 2),
        input.as_bytes(),
        input.len(),
    );
    for size in [1, 2, 3, 7] {
        let cut = split(
            &mut splitter(options(format, header), position, 2),
            input.as_bytes(),
            size,
        );
        assert_eq!(cut, whole, "in pieces of {size}");
    }
    let context = |e: &ServerError| e.fields().other.iter().map(|(_, v)| v.clone()).collect::<String>();
    whole
        .map(|streams| streams.map(|s| String::from_utf8_lossy(&s).into_owned()))
        .map_err(|e| format!("{} ({})", e.fields().message, context(&e)))
}

fn ok(first: &str, second: &str) -> Result<[String; 2], String> {
    Ok([first.to_owned(), second.to_owned()])
}

#[test]
fn text_rows_go_where_their_keys_lie() {
    let t = |input| texts(CopyFormat::Text, Header::None, 0, input);
    assert_eq!(t("1\ta\n10\tb\n150\tc\n49\td"), ok("1\ta\n150\tc\n", "10\tb\n49\td"));
    assert_eq!(t("1\ta\\\nb\n2\\x30\tc\\.\n3\te\n"), ok("1\ta\\\nb\n", "2\\x30\tc"));
    assert_eq!(t("\\N\ta\n70\tb\nx\tc\n\n"), ok("\\N\ta\n70\tb\nx\tc\n\n", ""));
    assert_eq!(t("12\ta\r\n1\tb\r\n\\.\r\n13\tc\r\n"), ok("1\tb\r\n", "12\ta\r\n"));
    assert_eq!(t("12\ta\r1\tb\r"), ok("1\tb\r", "12\ta\r"));
    assert_eq!(t("12\ta\\"), ok("", "12\ta\\"));
    assert_eq!(t(""), ok("", ""));
}

#[test]
fn lines_must_end_alike() {
    let t = |input| texts(CopyFormat::Text, Header::None, 0, input);
    let refused = |message: &str, line| Err(format!("{message} (COPY t, line {line})"));
    assert_eq!(t("1\ta\n2\tb\r\n"), refused("literal carriage return found in data", 2));
    assert_eq!(t("1\ta\r\n2\tb\n"), refused("literal newline found in data", 2));
    assert_eq!(
        t("1\ta\r\n2\tb\rc"),
        refused("literal carriage return found in data", 2)
    );
    assert_eq!(
        t("1\ta\n\\.\r\n"),
        refused("end-of-copy marker does not match previous newline style", 2)
    );
    assert_eq!(t("1\ta\n\\.x\n"), refused("end-of-copy marker corrupt", 2));
    // Of line ends inside of quotes PostgreSQL counts the stream's kind only, which the first row does not know yet.
    let csv = texts(CopyFormat::Csv, Header::None, 0, "1,\"a\n\"\n2,b\r\n");
    assert_eq!(csv, refused("unquoted carriage return found in data", 2));
}

#[test]
fn csv_rows_span_lines() {
    let t = |input| texts(CopyFormat::Csv, Header::None, 1, input);
    assert_eq!(
        t("\"a\n,b\",1\n\"c\"\"\",\"12\"\n"),
        ok("\"a\n,b\",1\n", "\"c\"\"\",\"12\"\n")
    );
    assert_eq!(t("\\.,12\nx,1\n\\.\ny,1\n"), ok("x,1\n", "\\.,12\n"));
    assert_eq!(t("a,\nb,\"\"\n"), ok("a,\nb,\"\"\n", ""));
    assert_eq!(t("a,12\n\\."), ok("\\.", "a,12\n"));
}

#[test]
fn every_stream_gets_the_header() {
    let input = "v,k\na,12\nb,13\nc,1\n";
    let t = |header| texts(CopyFormat::Csv, header, 1, input);
    assert_eq!(t(Header::Match), ok("v,k\nc,1\n", "v,k\na,12\nb,13\n"));
    assert_eq!(texts(CopyFormat::Csv, Header::Skip, 1, "v,k\n"), ok("v,k\n", ""));
}

#[test]
fn keys_not_understood_are_asked_for() {
    let mut splitter = splitter(options(CopyFormat::Text, Header::None), 0, 1);
    let mut streams: Streams = Default::default();
    let mut sink = |stream: usize, bytes: &[u8]| streams[stream].extend_from_slice(bytes);
    let progress = splitter.push(b"0x0c\n1\n0x0d\n", &mut sink).expect("no error");
    let asked = |bytes: &[u8]| {
        Progress::Undecided(vec![Unknown {
            column: 0,
            binary: false,
            bytes: bytes.to_vec(),
        }])
    };
    assert_eq!(progress, asked(b"0x0c"));
    let progress = splitter
        .resolve(Some(vec![KeyValue::Int(12)]), &mut sink)
        .expect("no error");
    assert_eq!(progress, asked(b"0x0d"));
    assert_eq!(splitter.resolve(None, &mut sink), Ok(Progress::Done));
    assert_eq!(streams, [b"1\n0x0d\n".to_vec(), b"0x0c\n".to_vec()]);
}

#[test]
fn modifiers_that_change_a_value_are_respected() {
    let column = |key_type, type_modifier| KeyColumn {
        key_type,
        type_modifier,
        ..key(KeySource::Field(0))
    };
    let understood = |c: KeyColumn, text: &str| c.parse(text.as_bytes(), false, true).is_some();
    // numeric(3,1)
    let numeric = || column(KeyType::Numeric, (3 << 16 | 1) + 4);
    assert!(understood(numeric(), "1.20") && !understood(numeric(), "1.25"));
    assert!(understood(column(KeyType::Timestamp, 1), "2020-01-01 00:00:00.1"));
    assert!(!understood(column(KeyType::Timestamp, 1), "2020-01-01 00:00:00.15"));
    assert!(!understood(column(KeyType::Varchar, 6), "ab   ") && understood(column(KeyType::Varchar, -1), "ab  "));
    assert!(column(KeyType::Text, -1).parse("é".as_bytes(), false, false).is_none());
}

#[test]
fn supplied_values_lead_the_row() {
    for (format, input, expected) in [
        (
            CopyFormat::Text,
            "v\na\nb\n\nc",
            ["id\tv\n9\ta\n", "id\tv\n10\tb\n11\t\n12\tc"],
        ),
        (
            CopyFormat::Csv,
            "v\na\n\"b\n\"\n\nc",
            ["\"id\",v\n\"9\",a\n", "\"id\",v\n\"10\",\"b\n\"\n\"11\",\n\"12\",c"],
        ),
    ] {
        let ranges = ranges();
        let target = supplied(&ranges);
        let mut splitter = Splitter::new(options(format, Header::Skip), target).expect("valid");
        let mut streams: Streams = Default::default();
        let mut sink = |stream: usize, bytes: &[u8]| streams[stream].extend_from_slice(bytes);
        let mut next = 9..;
        let mut give = |splitter: &mut Splitter, n: usize| {
            splitter.supply(next.by_ref().take(n).map(|v| vec![Some(v.to_string().into_bytes())]));
        };
        assert_eq!(splitter.push(input.as_bytes(), &mut sink), Ok(Progress::NeedValues(3)));
        give(&mut splitter, 3);
        assert_eq!(splitter.push(b"", &mut sink), Ok(Progress::Done));
        assert_eq!(splitter.finish(&mut sink), Ok(Progress::NeedValues(1)));
        give(&mut splitter, 1);
        assert_eq!(splitter.finish(&mut sink), Ok(Progress::Done));
        assert_eq!(
            streams.map(|s| String::from_utf8(s).expect("UTF-8")),
            expected.map(str::to_owned)
        );
    }
}

#[test]
fn supplied_values_lead_binary_tuples() {
    let ranges = ranges();
    let target = supplied(&ranges);
    let mut splitter = Splitter::new(options(CopyFormat::Binary, Header::None), target).expect("valid");
    let mut header = b"PGCOPY\n\xff\r\n\0".to_vec();
    header.extend([0; 8]);
    let number = |v: i32| v.to_be_bytes();
    let input = [&header[..], &tuple(&[Some(b"a")]), &tuple(&[None]), b"\xff\xff"].concat();
    let mut streams: Streams = Default::default();
    let mut sink = |stream: usize, bytes: &[u8]| streams[stream].extend_from_slice(bytes);
    assert_eq!(splitter.push(&input, &mut sink), Ok(Progress::NeedValues(2)));
    splitter.supply([9, 10].map(|v| vec![Some(number(v).to_vec())]));
    assert_eq!(splitter.push(b"", &mut sink), Ok(Progress::Done));
    assert_eq!(splitter.finish(&mut sink), Ok(Progress::Done));
    let stream = |id: i32, value| [&header[..], &tuple(&[Some(&number(id)), value]), b"\xff\xff"].concat();
    assert_eq!(streams, [stream(9, Some(b"a")), stream(10, None)]);
}

/// One field too many is as many as the shard expects.
#[test]
fn fields_beside_supplied_ones_are_counted() {
    let ranges = ranges();
    let mut splitter = Splitter::new(options(CopyFormat::Binary, Header::None), supplied(&ranges)).expect("valid");
    let mut header = b"PGCOPY\n\xff\r\n\0".to_vec();
    header.extend([0; 8]);
    let input = [
        &header[..],
        &tuple(&[Some(b"a")]),
        &tuple(&[Some(b"0007"), Some(b"b")]),
        b"\xff\xff",
    ]
    .concat();
    let mut ignored = |_: usize, _: &[u8]| {};
    assert_eq!(splitter.push(&input, &mut ignored), Ok(Progress::NeedValues(1)));
    splitter.supply([vec![Some(9i32.to_be_bytes().to_vec())]]);
    let error = splitter.push(b"", &mut ignored).expect_err("refused");
    let told = (error.sqlstate(), error.fields().message.as_str());
    assert_eq!(
        told,
        (SqlState::BAD_COPY_FILE_FORMAT, "row field count is 2, expected 1")
    );
}

#[test]
fn supplied_text_cannot_be_mistaken() {
    let mut splitter = splitter(
        CopyOptions {
            null: b"7".to_vec(),
            ..options(CopyFormat::Text, Header::None)
        },
        0,
        1,
    );
    let mut out = Vec::new();
    splitter.supplied_names = vec!["id".into()];
    splitter.write_supplied(&[Some("7".into()), Some("a\t\\N".into()), None], &mut out);
    assert_eq!(out, b"\\x37\ta\\x09\\x5cN\t7\t");
}

fn tuple(fields: &[Option<&[u8]>]) -> Vec<u8> {
    let mut out = (fields.len() as i16).to_be_bytes().to_vec();
    for field in fields {
        out.extend(field.map_or(-1, |f| f.len() as i32).to_be_bytes());
        out.extend(field.unwrap_or_default());
    }
    out
}

#[test]
fn binary_streams_are_whole() {
    let header = [b"PGCOPY\n\xff\r\n\0".as_slice(), &[0; 4], &[0, 0, 0, 2], b"xy"].concat();
    let row = |k: i32| tuple(&[Some(b"v"), Some(&k.to_be_bytes())]);
    let trailer = [0xff, 0xff];
    let input = [
        &header[..],
        &row(1),
        &row(12),
        &tuple(&[None, None]),
        &row(13),
        &trailer,
    ]
    .concat();
    for size in [1, 2, 5, 1000] {
        let mut splitter = splitter(options(CopyFormat::Binary, Header::None), 1, 2);
        let streams = split(&mut splitter, &input, size).expect("well-formed");
        assert_eq!(
            streams[0],
            [&header[..], &row(1), &tuple(&[None, None]), &trailer].concat()
        );
        assert_eq!(streams[1], [&header[..], &row(12), &row(13), &trailer].concat());
        assert_eq!(splitter.client_line(1, 2), Some(4));
    }
    // What is not well-formed comes whole to the first stream.
    for bad in [
        &b"\0\x01\xff\xff\xff\xffrest"[..],
        b"\0\x02\xff\xff\xff\xf0",
        b"\0\x02\0",
        b"\xff\xffx",
    ] {
        for size in [1, 3, 1000] {
            let mut splitter = splitter(options(CopyFormat::Binary, Header::None), 1, 2);
            let streams = split(&mut splitter, &[&header[..], &row(12), bad].concat(), size).expect("a shard judges");
            assert_eq!(streams[0], [&header[..], bad].concat());
        }
    }
    let mut splitter = splitter(options(CopyFormat::Binary, Header::None), 1, 2);
    assert_eq!(
        split(&mut splitter, b"1\ta\n", 3).expect("a shard judges")[0],
        b"1\ta\n"
    );
}

#[test]
fn line_numbers_are_the_clients() {
    let mut splitter = splitter(options(CopyFormat::Csv, Header::Skip), 1, 2);
    split(&mut splitter, b"v,k\na,1\n\"b\nb\",12\nc,2\n\"d\n\n\",3\ne,13\n", 4).expect("no error");
    let first: Vec<_> = (1..=6).map(|l| splitter.client_line(0, l)).collect();
    assert_eq!(first, [Some(1), Some(2), Some(5), Some(8), Some(8), Some(8)]);
    let second: Vec<_> = (1..=5).map(|l| splitter.client_line(1, l)).collect();
    assert_eq!(second, [Some(1), Some(4), Some(4), Some(9), None]);
}

proptest! {
    /// Every row arrives once, where its key lies, however the input is cut.
    #[test]
    fn rows_arrive_once(
        rows in prop::collection::vec((-5..60i32, "[a-z\"\\\\\n\r,\t.é]{0,8}"), 0..40),
        csv: bool,
        size in 1..50usize,
    ) {
        let format = if csv { CopyFormat::Csv } else { CopyFormat::Text };
        let encode = |(k, v): &(i32, String)| if csv {
            format!("\"{}\",{k}\n", v.replace('"', "\"\""))
        } else {
            let v = v.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\\r").replace('\t', "\\t");
            format!("{v}\t{k}\n")
        };
        let input: String = rows.iter().map(encode).collect();
        let mut splitter = splitter(options(format, Header::None), 1, 2);
        let streams = split(&mut splitter, input.as_bytes(), size).expect("well-formed");
        let of = |second: bool| -> String {
            rows.iter().filter(|(k, _)| (10..50).contains(k) == second).map(encode).collect()
        };
        prop_assert_eq!(String::from_utf8_lossy(&streams[0]).into_owned(), of(false));
        prop_assert_eq!(String::from_utf8_lossy(&streams[1]).into_owned(), of(true));
    }

    /// Any bytes: no panic, no hang, the same result for every cut, nothing added and nothing lost.
    #[test]
    fn any_bytes_do(
        input in prop::collection::vec(prop_oneof![
            Just(b'\n'), Just(b'\r'), Just(b'\\'), Just(b'.'), Just(b'"'), Just(b','), Just(b'\t'), Just(b'1'), Just(b'2'),
            Just(b'N'), Just(b'x'), Just(0u8), any::<u8>(),
        ], 0..80),
        kind in 0..4usize,
        size in 1..20usize,
    ) {
        let start = [b"PGCOPY\n\xff\r\n\0".as_slice(), &[0; 8]].concat();
        let (format, input) = match kind {
            0 => (CopyFormat::Text, input),
            1 | 2 => (CopyFormat::Csv, input),
            _ => (CopyFormat::Binary, [start, input].concat()),
        };
        let make = || {
            let escape = if kind == 2 { b'\\' } else { b'"' };
            splitter(CopyOptions { escape, ..options(format, Header::None) }, 0, 2)
        };
        let whole = split(&mut make(), &input, input.len());
        let cut = split(&mut make(), &input, size);
        if let (Ok(whole), Ok(cut)) = (&whole, &cut) {
            prop_assert_eq!(whole, cut);
            if kind != 3 {
                let sent = whole[0].len() + whole[1].len();
                let marker = input.windows(2).any(|w| w == b"\\.");
                prop_assert!(sent == input.len() || (marker && sent < input.len()));
            }
        }
        prop_assert_eq!(whole.is_ok(), cut.is_ok());
    }
}
