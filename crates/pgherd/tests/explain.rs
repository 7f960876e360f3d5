//! EXPLAIN over ranges, as a transcript that is kept in explain.txt: statements behind `> `, and what they tell. Times and sizes are
//! left out. PGHERD_RECORD_TRANSCRIPT=explain writes it anew.

use pgherd_testkit::herd::Herd;
use std::path::Path;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The lines that a statement returns.
async fn told(client: &Client, statement: &str) -> String {
    let messages = match client.simple_query(statement).await {
        Ok(messages) => messages,
        Err(error) => {
            let error = error.as_db_error().expect("an error of the database");
            return format!("{}: {}\n", error.code().code(), error.message());
        }
    };
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let values: Vec<_> = (0..row.len()).map(|i| row.get(i).unwrap_or("NULL")).collect();
            Some(values.join(" | ") + "\n")
        }
        _ => None,
    });
    without_measures(&rows.collect::<String>())
}

/// Numbers that differ from run to run, as `N`.
fn without_measures(text: &str) -> String {
    const MEASURED: [&str; 6] = ["Time:", "Memory", "Reply", "Received", "Bytes", "actual time="];
    let mut out = String::new();
    for line in text.lines() {
        let is_measured = MEASURED.iter().any(|word| line.contains(word));
        for letter in line.chars() {
            let is_number = is_measured && (letter.is_ascii_digit() || letter == '.');
            match is_number {
                true if out.ends_with('N') => {}
                true => out.push('N'),
                false => out.push(letter),
            }
        }
        out.push('\n');
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_read_as_in_the_transcript() {
    let (herd, gateway) = Herd::with_gateway(Path::new(env!("CARGO_BIN_EXE_pgherd")), 3, "explain")
        .await
        .expect("a cluster");
    let client = gateway.connect().await.expect("connect");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain.txt");
    let known = std::fs::read_to_string(&path).expect("the transcript");
    let mut now = String::new();
    for statement in known.lines().filter_map(|line| line.strip_prefix("> ")) {
        now.push_str(&format!("> {statement}\n{}", told(&client, statement).await));
    }
    gateway.stop().await;
    herd.stop().await;
    if std::env::var("PGHERD_RECORD_TRANSCRIPT").is_ok_and(|name| name == "explain") {
        std::fs::write(&path, &now).expect("write the transcript");
        return;
    }
    assert_same(&known, &now);
}

fn assert_same(known: &str, now: &str) {
    for (i, (known, now)) in known.lines().zip(now.lines()).enumerate() {
        assert_eq!(known, now, "line {}", i + 1);
    }
    assert_eq!(known.lines().count(), now.lines().count(), "{now}");
}
