//! Nonsense on the wire and wrong statements: the answer is PostgreSQL's, and everybody else goes on.

use super::{run, three_shards, value};
use futures::StreamExt;
use pgherd_local_cluster::PlainServer;
use pgherd_testkit::faults::malformed::{self, Case, Seen};
use tokio::io::AsyncWriteExt;
use tokio_postgres::Client;

/// Where a gateway's answer differs from PostgreSQL's, and that is accepted. It must still end what it cannot go on with,
/// or wait as for the rest of a message, and nobody else may notice.
const KNOWN_DIFFERENCES: [(&str, &str); 13] = [
    ("half a copy, then the end", "nothing is said to a client that is gone"),
    (
        "a start-up message of length 0",
        "taken for one whose rest is still to come",
    ),
    (
        "a start-up message that is only a length",
        "taken for one whose rest is still to come",
    ),
    ("a request for encryption, twice", "the second is answered as the first"),
    ("a Sync of 16 MB", "its rest is waited for"),
    ("protocol 4.0", "08P01 instead of 0A000"),
    (
        "a start-up message without its end",
        "the end of the message is taken for it",
    ),
    ("a query without its end", "the end of the message is taken for it"),
    (
        "a query with something behind its end",
        "what is behind is not looked at",
    ),
    (
        "a Parse without its end",
        "ends the session, which PostgreSQL goes on with",
    ),
    (
        "a Bind that is cut short",
        "ends the session, which PostgreSQL goes on with",
    ),
    ("a Describe of neither", "34000 instead of 08P01"),
    (
        "a query during a copy",
        "goes on with the session, which PostgreSQL ends",
    ),
];

/// The same table on both, with keys on three shards of the cluster.
async fn fill(client: &Client) {
    run(
        client,
        "CREATE TABLE bad (k int PRIMARY KEY, t text) PARTITION BY RANGE (k);
         CREATE TABLE bad_1 PARTITION OF bad FOR VALUES FROM (MINVALUE) TO (5);
         CREATE TABLE bad_2 PARTITION OF bad FOR VALUES FROM (5) TO (9);
         CREATE TABLE bad_3 PARTITION OF bad FOR VALUES FROM (9) TO (MAXVALUE)",
    )
    .await;
    run(client, "INSERT INTO bad VALUES (1, 'one'), (6, 'six'), (12, 'twelve')").await;
}

async fn play_all(port: u16) -> Vec<(Case, Vec<Seen>)> {
    let plays = malformed::cases().into_iter().map(|case| async move {
        let seen = malformed::play(port, &case)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        (case, seen)
    });
    futures::stream::iter(plays).buffered(8).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_answered_as_postgresql_does() {
    let plain = PlainServer::ephemeral(true).await.expect("start");
    let reference = plain.connect("postgres", "postgres").await.expect("connect");
    fill(&reference).await;
    let herd = three_shards().await;
    let mut gateway = herd.gateway("one").await.expect("gateway");
    let client = gateway.connect().await.expect("connect");
    fill(&client).await;
    let before = value(&reference, "SELECT string_agg(k || t, ',' ORDER BY k) FROM bad").await;
    // Two sessions that must not notice anything: one in a block over two shards, one with state of its own.
    let in_a_block = gateway.connect().await.expect("connect");
    run(&in_a_block, "CREATE TABLE aside (k int PRIMARY KEY, v int)").await;
    run(
        &in_a_block,
        "BEGIN; UPDATE bad SET t = t || '+' WHERE k = 6; UPDATE bad SET t = t || '+' WHERE k = 12",
    )
    .await;
    run(
        &client,
        "SET application_name = 'quiet'; PREPARE p AS SELECT t FROM bad WHERE k = 1",
    )
    .await;

    let expected = play_all(plain.port()).await;
    let answers = play_all(gateway.port()).await;
    let mut wrong = Vec::new();
    for ((case, seen), (_, reference)) in answers.iter().zip(&expected) {
        let known = KNOWN_DIFFERENCES.iter().find(|(name, _)| *name == case.name);
        match (malformed::agrees(seen, reference), known) {
            (true, None) => {}
            (true, Some((name, _))) => eprintln!("{name}: no difference any more"),
            (false, Some((name, difference))) => eprintln!("{name}: {difference}"),
            (false, None) => wrong.push(format!("{}: {seen:?}\n    PostgreSQL: {reference:?}", case.name)),
        }
    }
    assert!(gateway.is_running(), "{}", gateway.errors());
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        answers.len(),
        wrong.join("\n")
    );
    run(&in_a_block, "ROLLBACK").await;
    assert_eq!(value(&client, "SHOW application_name").await, "quiet");
    assert_eq!(value(&client, "EXECUTE p").await, "one");
    let after = value(&client, "SELECT string_agg(k || t, ',' ORDER BY k) FROM bad").await;
    assert_eq!(after, before, "nothing was written by what failed");
    assert!(gateway.stop().await);
}

/// Clients that announce a lot and send little, or never finish, cost neither memory nor others' service.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_announce_much_and_send_little_cost_nothing() {
    let herd = three_shards().await;
    let gateway = herd.gateway("one").await.expect("gateway");
    let before = gateway.peak_memory_bytes();
    let mut idle = Vec::new();
    for number in 0..100_u32 {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", gateway.port()))
            .await
            .expect("connect");
        if number % 2 == 0 {
            let mut message = b"\0\0\0\x27\0\x03\0\0user\0postgres\0database\0postgres\0\0".to_vec();
            message[3] = message.len() as u8;
            stream.write_all(&message).await.expect("log in");
            // A query of 1 GB less one byte, of which 9 bytes come: PostgreSQL waits for the rest as well.
            stream.write_all(b"Q\x3f\xff\xff\xffSELECT 1").await.expect("announce");
        } else {
            stream.write_all(&[0, 0]).await.expect("half a length");
        }
        idle.push(stream);
    }
    let client = gateway.connect().await.expect("connect");
    assert_eq!(value(&client, "SELECT 1").await, "1");
    let grown = gateway.peak_memory_bytes().saturating_sub(before);
    assert!(grown < 200 << 20, "100 idle clients cost {} MiB", grown >> 20);
    drop(idle);
    let long = "x".repeat(8 << 20);
    assert_eq!(
        value(&client, &format!("SELECT length('{long}')")).await,
        (8 << 20).to_string()
    );
    assert!(gateway.stop().await);
}
