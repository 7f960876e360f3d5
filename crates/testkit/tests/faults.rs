//! The fault tests' own parts against plain PostgreSQL: they find nothing where nothing is wrong, and find what is.

use futures::StreamExt;
use pgherd_local_cluster::PlainServer;
use pgherd_testkit::faults::bank::{self, Bank};
use pgherd_testkit::faults::malformed::{self, Seen};
use pgherd_testkit::faults::whole_answers::{ROWS, Readers};
use std::time::Duration;

fn config(server: &PlainServer) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(server.port())
        .user("postgres")
        .dbname("postgres");
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_that_is_sound_and_one_that_was_tampered_with() {
    let server = PlainServer::ephemeral(true).await.expect("start");
    let client = server.connect("postgres", "postgres").await.expect("connect");
    bank::create(&client).await.expect("create");
    let bank = Bank::open(&config(&server), 8, 0);
    assert!(bank.wait_for(50, Duration::from_secs(30)).await);
    let cut_off =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE 'UPDATE%'";
    client.execute(cut_off, &[]).await.expect("terminate");
    assert!(bank.wait_for(bank.acknowledged() + 50, Duration::from_secs(30)).await);
    let mut told = bank.close().await;
    assert!(told.right_sums > 0 && told.acknowledged.len() >= 100, "{told:?}");
    let sound = bank::verify(&client, std::slice::from_ref(&told))
        .await
        .expect("verify");
    assert_eq!(sound, Vec::<String>::new());

    client
        .batch_execute("UPDATE account SET balance = balance - 7 WHERE id = 11")
        .await
        .expect("tamper");
    let half = bank::verify(&client, std::slice::from_ref(&told))
        .await
        .expect("verify");
    assert!(
        half.iter().any(|line| line.contains("account 11")),
        "half a transfer is seen: {half:?}"
    );
    assert!(
        half.iter().any(|line| line.contains("300 accounts hold 299993")),
        "{half:?}"
    );
    client
        .batch_execute("UPDATE account SET balance = balance + 7 WHERE id = 11")
        .await
        .expect("repair");

    told.acknowledged.insert(999_999);
    let lost = bank::verify(&client, std::slice::from_ref(&told))
        .await
        .expect("verify");
    assert_eq!(lost, ["transfer 999999 was acknowledged and is not there"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_tell_a_part_from_the_whole() {
    let server = PlainServer::ephemeral(true).await.expect("start");
    let client = server.connect("postgres", "postgres").await.expect("connect");
    let readers = Readers::start(&config(&server)).await.expect("readers");
    readers.wait_for(20).await;
    client
        .batch_execute("CREATE TABLE whole (k int PRIMARY KEY, x bigint)")
        .await
        .expect("create");
    readers.wait_for(20).await;
    let fill = format!("INSERT INTO whole SELECT k, k FROM generate_series(1, {ROWS}) k");
    client.batch_execute(&fill).await.expect("fill");
    readers.wait_for(20).await;
    let seen = readers.stop().await;
    assert!(
        seen.full > 0 && seen.empty > 0 && seen.errors.contains_key("42P01"),
        "{seen:?}"
    );
    assert_eq!(seen.partial, Vec::<String>::new());

    client
        .batch_execute("DELETE FROM whole WHERE k > 600")
        .await
        .expect("delete");
    let readers = Readers::start(&config(&server)).await.expect("readers");
    readers.wait_for(10).await;
    let seen = readers.stop().await;
    assert!(!seen.partial.is_empty() && seen.full == 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_never_waits_for_more_after_what_is_malformed() {
    let server = PlainServer::ephemeral(true).await.expect("start");
    let client = server.connect("postgres", "postgres").await.expect("connect");
    client
        .batch_execute("CREATE TABLE bad (k int PRIMARY KEY, t text)")
        .await
        .expect("create");
    client
        .batch_execute("INSERT INTO bad VALUES (1, 'one')")
        .await
        .expect("fill");
    let server_port = server.port();
    let plays = malformed::cases().into_iter().map(|case| async move {
        let answer = malformed::play(server_port, &case).await.expect(case.name);
        (case, answer)
    });
    let answers: Vec<_> = futures::stream::iter(plays).buffered(8).collect().await;
    for (case, answer) in answers {
        // A server that says nothing is waiting for more, which none of these cases means.
        assert!(answer != [Seen::Silent], "{}: {answer:?}", case.name);
        let ends = answer.last() == Some(&Seen::Closed);
        assert!(ends || !case.before_login, "{}: {answer:?}", case.name);
    }
}
