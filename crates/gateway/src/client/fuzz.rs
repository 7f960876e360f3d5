//! Bytes that no decent client sends, to the decoder of messages: it ends, it never panics, it keeps no more than it got.
//!
//! `PGHERD_FUZZ_CASES=1000000 cargo test --release -p pgherd-gateway fuzz` is a long run.

use super::{Client, Gone};
use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::{TcpListener, TcpStream};

const SHORT: u64 = 20_000;

fn valid(random: &mut StdRng, out: &mut BytesMut) {
    let made = match random.random_range(0..9) {
        0 => frontend::query("SELECT 1", out),
        1 => frontend::parse("s", "SELECT $1", [23, 25], out),
        2 => {
            let values = [Some(b"5".as_slice()), None];
            let put = |value: Option<&[u8]>, buffer: &mut BytesMut| {
                buffer.extend_from_slice(value.unwrap_or_default());
                Ok(if value.is_some() { IsNull::No } else { IsNull::Yes })
            };
            frontend::bind("", "s", [0, 1], values, put, [1], out).map_err(|_| std::io::Error::other("bind"))
        }
        3 => frontend::describe(b'S', "s", out),
        4 => frontend::execute("", 7, out),
        5 => frontend::close(b'P', "", out),
        6 => frontend::copy_fail("no", out),
        7 => frontend::password_message(b"secret", out),
        _ => {
            frontend::sync(out);
            Ok(())
        }
    };
    made.expect("a message");
}

fn spoil(random: &mut StdRng, bytes: &mut BytesMut) {
    for _ in 0..random.random_range(0..6) {
        let at = random.random_range(0..bytes.len().max(1));
        match random.random_range(0..5) {
            0 if !bytes.is_empty() => bytes[at] = random.random(),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes.truncate(at),
            3 => {
                let rest = bytes.split_off(at.min(bytes.len()));
                bytes.extend_from_slice(&[random.random(), random.random()]);
                bytes.unsplit(rest);
            }
            _ if bytes.len() > at + 4 => {
                let odd = [0, 1, 3, 4, 5, 0x7fff_ffff, u32::MAX, 0x8000_0000];
                let odd: u32 = odd[random.random_range(0..odd.len())];
                bytes[at..at + 4].copy_from_slice(&odd.to_be_bytes());
            }
            _ => {}
        }
    }
}

/// Decodes what is there until more is wanted or the client is cut off.
fn decode_all(client: &mut Client) {
    let most = client.inbox.len() + 1;
    for _ in 0..=most {
        let text = client.check_length().and_then(|()| client.check_text());
        match text {
            Ok(()) | Err(Gone::Text(_) | Gone::Data(_) | Gone::FunctionCall(_)) => {}
            Err(_) => return,
        }
        match client.decode() {
            // What is no request to encrypt is the start-up message itself.
            Ok(Some(_)) => client.context.awaiting_frontend_ssl = false,
            Ok(None) | Err(_) => return,
        }
    }
    panic!("more messages than bytes");
}

#[tokio::test]
async fn any_bytes_are_messages_or_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let stream = TcpStream::connect(listener.local_addr().expect("bound"))
        .await
        .expect("a connection");
    let mut client = Client::new(stream);
    client.allow_messages_of(1 << 20);
    let cases = std::env::var("PGHERD_FUZZ_CASES").ok().and_then(|n| n.parse().ok());
    // What panics inside pgwire is caught, and would be told a million times.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for seed in 0..cases.unwrap_or(SHORT) {
            let mut random = StdRng::seed_from_u64(seed);
            client.inbox.clear();
            client.context.awaiting_frontend_ssl = seed % 7 == 0;
            client.context.awaiting_frontend_startup = seed % 7 < 2;
            let mut bytes = BytesMut::new();
            for _ in 0..random.random_range(1..4) {
                match client.context.awaiting_frontend_startup {
                    true => {
                        frontend::startup_message([("user", "u"), ("database", "d")], &mut bytes).expect("a message")
                    }
                    false => valid(&mut random, &mut bytes),
                }
            }
            spoil(&mut random, &mut bytes);
            client.inbox.extend_from_slice(&bytes);
            decode_all(&mut client);
            assert!(client.inbox.capacity() < 1 << 20, "seed {seed}");
        }
    }));
    std::panic::set_hook(hook);
    if let Err(panic) = run {
        std::panic::resume_unwind(panic);
    }
}
