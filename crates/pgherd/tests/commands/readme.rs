//! What README.md promises: its first session, run as it is written, and its commands.

use crate::running::{Place, Running, output, pgherd, up};
use std::path::Path;
use tokio_postgres::SimpleQueryMessage;

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    std::fs::read_to_string(path).expect("README.md")
}

/// The text of the first block of that language.
fn block<'a>(text: &'a str, language: &str) -> &'a str {
    let start = format!("```{language}\n");
    let rest = text.split_once(&start).expect("a block").1;
    rest.split_once("```").expect("its end").0
}

/// Each statement's rows as text.
async fn run(client: &tokio_postgres::Client, statement: &str) -> Vec<Vec<String>> {
    let messages = client
        .simple_query(statement)
        .await
        .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| {
        (0..row.len())
            .map(|column| row.get(column).unwrap_or_default().to_string())
            .collect()
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_session_goes_as_written() {
    let text = readme();
    let place = Place::new();
    let pgherd = Running::start(up(&place, 3, true));
    let client = pgherd.connect().await;
    let mut answers = Vec::new();
    let session: String = block(&text, "sql")
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default())
        .collect();
    for statement in session.split_inclusive(';') {
        answers.push((statement, run(&client, statement).await));
    }
    let answer = |start: &str| {
        let found = answers
            .iter()
            .find(|(statement, _)| statement.trim().starts_with(start));
        found
            .map(|(_, rows)| rows.clone())
            .unwrap_or_else(|| panic!("README.md has no {start}"))
    };
    let ranges = answer("SELECT \"table\"");
    let shards: std::collections::BTreeSet<_> = ranges.iter().map(|row| row[3].as_str()).collect();
    assert_eq!(
        shards.into_iter().collect::<Vec<_>>(),
        ["shard1", "shard2", "shard3"],
        "{ranges:?}"
    );
    assert_eq!(answer("SELECT count"), [["3", "60"]]);
    let after = run(&client, "SELECT id, balance FROM account ORDER BY id").await;
    assert_eq!(
        after,
        [["7", "5"], ["150", "20"], ["250", "35"]],
        "the transfer over two shards"
    );
}

#[test]
fn the_commands_exist() {
    let text = readme();
    let shell = block(&text, "sh");
    assert!(shell.contains("cargo run --release -- up\n"), "{shell}");
    for command in ["up", "gateway", "status", "init", "slt", "bench"] {
        assert!(
            text.contains(&format!("pgherd {command}")) || text.contains(&format!("-- {command}")),
            "{command}"
        );
        let mut help = pgherd();
        help.args([command, "--help"]);
        assert!(output(help).status.success(), "{command}");
    }
}
