//! Bytes that no decent client sends, and what a server answers to them.
//!
//! PostgreSQL is the reference: a test plays every [`Case`] against it and against a gateway, and compares the errors, the
//! states and whether the connection is ended. Where PostgreSQL just hangs up, which leaves a person to guess, a fatal error
//! in front of the end is as good: see [`agrees`].

use crate::{Error, Result};
use bytes::{BufMut, BytesMut};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// After this long without a byte, the server is taken to wait for more.
const SILENCE: Duration = Duration::from_millis(1500);

/// One way to misbehave.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it is, for a person.
    pub name: &'static str,
    /// Sent right after connecting, instead of after a log-in.
    pub before_login: bool,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The client then closes its side.
    pub hang_up: bool,
}

/// What came back, as far as it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// An `ErrorResponse`.
    Error {
        /// ERROR, FATAL or PANIC.
        severity: String,
        /// The SQLSTATE.
        code: String,
    },
    /// `ReadyForQuery` with its state: I, T or E.
    Ready(char),
    /// The server ended the connection.
    Closed,
    /// The server waits for more.
    Silent,
}

/// Plays one case against the server on that port of 127.0.0.1, as role and database `postgres`.
///
/// # Errors
/// The connection cannot be made, the log-in fails where there should be one, or the answer is not the protocol's.
pub async fn play(port: u16, case: &Case) -> Result<Vec<Seen>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    if !case.before_login {
        stream
            .write_all(&startup(&[("user", "postgres"), ("database", "postgres")]))
            .await?;
        let greeting = read(&mut stream, true).await?;
        if greeting != [Seen::Ready('I')] {
            return Err(Error::Protocol(format!("the log-in was answered with {greeting:?}")));
        }
    }
    // The server may hang up before it has read everything.
    let _ = stream.write_all(&case.bytes).await;
    if case.hang_up {
        let _ = stream.shutdown().await;
    }
    read(&mut stream, false).await
}

/// Whether a gateway's answer is as good as PostgreSQL's: the same; or that something is not supported (0A000) instead of
/// another error; or, where PostgreSQL ends the connection, an end as well, after the same first error or, where PostgreSQL
/// says nothing, after a fatal one.
pub fn agrees(gateway: &[Seen], postgres: &[Seen]) -> bool {
    let same = |(ours, theirs): (&Seen, &Seen)| match (ours, theirs) {
        (Seen::Error { severity, code }, Seen::Error { severity: other, .. }) if code == "0A000" => severity == other,
        _ => ours == theirs,
    };
    let first_error = |seen: &[Seen]| seen.iter().find(|seen| matches!(seen, Seen::Error { .. })).cloned();
    let ends = |seen: &[Seen]| seen.last() == Some(&Seen::Closed);
    let explained = match (first_error(gateway), first_error(postgres)) {
        (Some(Seen::Error { severity, .. }), None) => severity == "FATAL" && postgres.len() == 1,
        (ours, theirs) => ours == theirs,
    };
    gateway.len() == postgres.len() && gateway.iter().zip(postgres).all(same)
        || ends(gateway) && ends(postgres) && explained
}

/// Reads until the end, until the server is silent or, if asked to, until it is ready.
async fn read(stream: &mut TcpStream, until_ready: bool) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    let mut buffer = BytesMut::new();
    loop {
        while let Some(message) = take_message(&mut buffer)? {
            match message.first() {
                Some(b'E') => seen.push(read_error(&message[5..])),
                Some(b'Z') => seen.push(Seen::Ready(message.get(5).map_or('?', |state| char::from(*state)))),
                _ => {}
            }
        }
        if until_ready && matches!(seen.last(), Some(Seen::Ready(_))) {
            return Ok(seen);
        }
        match tokio::time::timeout(SILENCE, stream.read_buf(&mut buffer)).await {
            Err(_) => {
                seen.push(Seen::Silent);
                return Ok(seen);
            }
            // A server that hangs up with unread bytes resets the connection, which is an end as well.
            Ok(Ok(0) | Err(_)) => {
                seen.push(Seen::Closed);
                return Ok(seen);
            }
            Ok(Ok(_)) => {}
        }
    }
}

/// The next whole message, or the single byte that answers a request for encryption.
fn take_message(buffer: &mut BytesMut) -> Result<Option<BytesMut>> {
    match buffer.first() {
        None => return Ok(None),
        // A notice has a length behind it, whose first byte is 0.
        Some(b'N') if buffer.get(1) != Some(&0) => return Ok(Some(buffer.split_to(1))),
        Some(_) => {}
    }
    let Some(length) = buffer.get(1..5) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if !(4..1 << 28).contains(&length) {
        return Err(Error::Protocol(format!("a message of {length} bytes")));
    }
    Ok((buffer.len() > length).then(|| buffer.split_to(length + 1)))
}

fn read_error(fields: &[u8]) -> Seen {
    let field = |tag: u8| {
        let mut fields = fields.split(|byte| *byte == 0);
        let found = fields.find(|field| field.first() == Some(&tag));
        found.map_or(String::new(), |field| String::from_utf8_lossy(&field[1..]).into_owned())
    };
    Seen::Error {
        severity: field(b'V'),
        code: field(b'C'),
    }
}

/// A start-up message of protocol 3.0.
fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    untyped(&body)
}

fn untyped(body: &[u8]) -> Vec<u8> {
    let mut message = (body.len() as u32 + 4).to_be_bytes().to_vec();
    message.extend_from_slice(body);
    message
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend_from_slice(&untyped(body));
    message
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

/// Binds the unnamed portal to the unnamed statement.
fn bind(statement: &str, binary: bool, parameters: &[&[u8]]) -> Vec<u8> {
    let mut body = BytesMut::new();
    body.put_slice(format!("\0{statement}\0").as_bytes());
    body.put_i16(1);
    body.put_i16(i16::from(binary));
    body.put_i16(parameters.len() as i16);
    for parameter in parameters {
        body.put_i32(parameter.len() as i32);
        body.put_slice(parameter);
    }
    body.put_i16(0);
    message(b'B', &body)
}

const SYNC: [u8; 5] = [b'S', 0, 0, 0, 4];
/// Executes the unnamed portal.
const EXECUTE: [u8; 10] = [b'E', 0, 0, 0, 9, 0, 0, 0, 0, 0];

/// All cases. Those after log-in use table `bad (k int PRIMARY KEY, t text)`, which the caller makes.
pub fn cases() -> Vec<Case> {
    let mut cases = before_login();
    cases.extend(broken_messages());
    cases.extend(wrong_requests());
    cases
}

fn case(name: &'static str, bytes: Vec<u8>) -> Case {
    Case {
        name,
        before_login: false,
        bytes,
        hang_up: false,
    }
}

fn before_login() -> Vec<Case> {
    let noise: Vec<u8> = (0..1000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80)
        .collect();
    let user = ("user", "postgres");
    let unterminated = untyped(b"\0\x03\0\0user\0postgres\0");
    let cases = [
        ("noise instead of a start-up message", noise),
        ("a web browser", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a start-up message of length 0", vec![0, 0, 0, 0]),
        (
            "a start-up message of negative length",
            vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        ),
        ("a start-up message of 2 GB", vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("a start-up message that is only a length", vec![0, 0, 0, 4]),
        ("protocol 4.0", untyped(&[0, 4, 0, 0, 0])),
        ("a start-up message without its end", unterminated),
        (
            "a start-up message without a user",
            startup(&[("database", "postgres")]),
        ),
        (
            "a database that does not exist",
            startup(&[user, ("database", "nowhere")]),
        ),
        (
            "a role that does not exist",
            startup(&[("user", "nobody_knows"), ("database", "postgres")]),
        ),
        (
            "a setting that does not exist",
            startup(&[user, ("database", "postgres"), ("no_such_setting", "1")]),
        ),
        (
            "a bad value of a setting",
            startup(&[user, ("database", "postgres"), ("work_mem", "lots")]),
        ),
        (
            "a bad encoding",
            startup(&[user, ("database", "postgres"), ("client_encoding", "KLINGON")]),
        ),
        (
            "a cancel request with the wrong key",
            untyped(&[4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2]),
        ),
        (
            "a request for encryption, twice",
            [untyped(&[4, 210, 22, 47]), untyped(&[4, 210, 22, 47])].concat(),
        ),
    ];
    let mut cases: Vec<_> = cases
        .into_iter()
        .map(|(name, bytes)| Case {
            before_login: true,
            ..case(name, bytes)
        })
        .collect();
    let half = startup(&[user])[..12].to_vec();
    cases.push(Case {
        before_login: true,
        hang_up: true,
        ..case("half a start-up message, then the end", half)
    });
    cases
}

fn broken_messages() -> Vec<Case> {
    let good = query("SELECT 1");
    let mut cases = vec![
        case("an unknown type of message", message(b'y', b"what")),
        case("a message of length 3", vec![b'Q', 0, 0, 0, 3]),
        case("a message of negative length", vec![b'Q', 0xff, 0xff, 0xff, 0xff]),
        case("a message of 2 GB", vec![b'Q', 0x7f, 0xff, 0xff, 0xff, b'S']),
        case("a Sync of 16 MB", vec![b'S', 1, 0, 0, 0, 0]),
        case(
            "a query without its end",
            [message(b'Q', b"SELECT 1"), good.clone()].concat(),
        ),
        case(
            "a query with something behind its end",
            [message(b'Q', b"SELECT 1\0more"), good.clone()].concat(),
        ),
        case(
            "a query that is not UTF-8",
            [message(b'Q', b"SELECT '\xff\xfe'\0"), good.clone()].concat(),
        ),
        case("an empty query", query("")),
        case(
            "a Parse without its end",
            [message(b'P', b"name"), SYNC.to_vec(), good.clone()].concat(),
        ),
        case(
            "a Bind that is cut short",
            [
                parse("", "SELECT 1"),
                message(b'B', b"\0\0\0"),
                SYNC.to_vec(),
                good.clone(),
            ]
            .concat(),
        ),
        case("a Describe of neither", [message(b'D', b"X\0"), SYNC.to_vec()].concat()),
        case(
            "copy data outside of a copy",
            [message(b'd', b"1\tx\n"), message(b'c', b""), good.clone()].concat(),
        ),
        case(
            "a query during a copy",
            [query("COPY bad FROM STDIN"), query("SELECT 1"), good.clone()].concat(),
        ),
        case(
            "a copy that the client gives up",
            [query("COPY bad FROM STDIN"), message(b'f', b"no more\0"), good.clone()].concat(),
        ),
        case(
            "a copy of bad data",
            [
                query("COPY bad FROM STDIN"),
                message(b'd', b"x\ty\n"),
                message(b'c', b""),
                good,
            ]
            .concat(),
        ),
    ];
    cases.push(Case {
        hang_up: true,
        ..case("half a query, then the end", query("SELECT 1")[..8].to_vec())
    });
    cases.push(Case {
        hang_up: true,
        ..case(
            "half a copy, then the end",
            [query("COPY bad FROM STDIN"), message(b'd', b"7777\tx\n")].concat(),
        )
    });
    cases
}

fn wrong_requests() -> Vec<Case> {
    let sync = || SYNC.to_vec();
    let execute = || EXECUTE.to_vec();
    let by_key = "SELECT t FROM bad WHERE k = $1";
    vec![
        case("not SQL", query("HELLO WORLD")),
        case("an unterminated string", query("SELECT 'abc")),
        case("an unknown table", query("SELECT * FROM nowhere")),
        case("an unknown column", query("SELECT nothing FROM bad WHERE k = 1")),
        case("an unknown function", query("SELECT no_such_function(k) FROM bad")),
        case("a key of the wrong type", query("SELECT t FROM bad WHERE k = 'abc'")),
        case("a key out of range", query("INSERT INTO bad VALUES (99999999999, 'x')")),
        case(
            "a value of the wrong type",
            query("UPDATE bad SET k = now() WHERE k = 1"),
        ),
        case("a key twice", query("INSERT INTO bad VALUES (1, 'a'), (1, 'b')")),
        case("a NULL key", query("INSERT INTO bad VALUES (NULL, 'a')")),
        case(
            "a division by zero in every shard",
            query("SELECT k / (k - k) FROM bad"),
        ),
        case(
            "an error in a block, and what follows",
            query("BEGIN; SELECT 1/0; SELECT 1"),
        ),
        case(
            "an error, then a statement in the failed block",
            [
                query("BEGIN"),
                query("SELECT 1/0"),
                query("SELECT 1"),
                query("ROLLBACK"),
            ]
            .concat(),
        ),
        case(
            "an unknown prepared statement",
            [bind("nope", false, &[]), execute(), sync()].concat(),
        ),
        case("an unknown portal", [execute(), sync()].concat()),
        case("an EXECUTE of nothing", query("EXECUTE nope")),
        case(
            "two statements in a Parse",
            [parse("", "SELECT 1; SELECT 2"), sync()].concat(),
        ),
        case(
            "a syntax error in a Parse, then a good one",
            [
                parse("", "SELEC 1"),
                bind("", false, &[]),
                execute(),
                sync(),
                query("SELECT 1"),
            ]
            .concat(),
        ),
        case(
            "too few parameters",
            [parse("", by_key), bind("", false, &[]), execute(), sync()].concat(),
        ),
        case(
            "too many parameters",
            [parse("", by_key), bind("", false, &[b"1", b"2"]), execute(), sync()].concat(),
        ),
        case(
            "a parameter that is no number",
            [parse("", by_key), bind("", false, &[b"one"]), execute(), sync()].concat(),
        ),
        case(
            "a binary parameter of the wrong size",
            [parse("", by_key), bind("", true, &[b"123"]), execute(), sync()].concat(),
        ),
        case(
            "a prepared statement's name twice",
            [parse("a", "SELECT 1"), parse("a", "SELECT 2"), sync()].concat(),
        ),
        case("a savepoint outside of a block", query("SAVEPOINT a")),
        case(
            "a ROLLBACK TO of nothing",
            [query("BEGIN"), query("ROLLBACK TO nothing"), query("ROLLBACK")].concat(),
        ),
        case("a setting that does not exist", query("SET no_such_setting = 1")),
        case("a bad value of a setting", query("SET work_mem = 'lots'")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_as_good_as_hanging_up() {
        let error = |severity: &str, code: &str| Seen::Error {
            severity: severity.into(),
            code: code.into(),
        };
        let explained = [error("FATAL", "08P01"), Seen::Closed];
        assert!(agrees(&explained, &[Seen::Closed]));
        assert!(
            !agrees(&[Seen::Silent], &[Seen::Closed]),
            "a client would wait for ever"
        );
        assert!(!agrees(&[Seen::Closed], &explained), "PostgreSQL says why");
        assert!(
            !agrees(&[error("FATAL", "XX000"), Seen::Closed], &explained),
            "another reason"
        );
        let refused = [error("ERROR", "0A000"), Seen::Ready('I')];
        assert!(agrees(&refused, &[error("ERROR", "42804"), Seen::Ready('I')]));
        assert!(!agrees(&refused, &[Seen::Ready('I')]), "PostgreSQL does it");
        assert!(
            !agrees(&explained, &[error("ERROR", "08P01"), Seen::Ready('I')]),
            "the session should live on"
        );
    }
}
