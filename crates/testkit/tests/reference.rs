//! PostgreSQL is the oracle: every file in sql-tests/compatibility and every transcript holds on a plain one, whichever
//! protocol carries the statements. The same files on pgherd: `crates/pgherd/tests/sql.rs`.

use pgherd_local_cluster::PlainServer;
use pgherd_testkit::slt::{self, Options};
use pgherd_testkit::wire::Protocol;
use pgherd_testkit::{Isolation, Summary, transcript};
use std::path::{Path, PathBuf};

fn sql_tests(folder: &str) -> Vec<PathBuf> {
    vec![
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../sql-tests")
            .join(folder),
    ]
}

fn options(server: &PlainServer, files: Vec<PathBuf>) -> Options {
    Options {
        isolation: Isolation::Database,
        keep_going: true,
        show: false,
        ..Options::new(server.conninfo("postgres", "postgres"), files)
    }
}

fn assert_passed(summary: &Summary, least: usize) {
    let failures: Vec<&str> = summary
        .files
        .iter()
        .flat_map(|file| &file.failures)
        .map(|failure| failure.text(false))
        .collect();
    assert!(summary.all_passed(), "{}\n{summary}", failures.join("\n"));
    assert!(
        summary.files.len() >= least,
        "only {} files were found",
        summary.files.len()
    );
}

#[tokio::test]
async fn compatibility_files_hold_on_postgresql() {
    let server = PlainServer::ephemeral_like_a_shard(false).await.expect("PostgreSQL");
    for protocol in [Protocol::Simple, Protocol::Extended] {
        let options = Options {
            protocol,
            check_types: true,
            jobs: 4,
            ..options(&server, sql_tests("compatibility"))
        };
        assert_passed(&slt::run(options).await.expect("run"), 60);
    }
}

#[tokio::test]
async fn transcripts_hold_on_postgresql() {
    let server = PlainServer::ephemeral_like_a_shard(false).await.expect("PostgreSQL");
    let summary = transcript::run(options(&server, sql_tests("transcripts")))
        .await
        .expect("run");
    assert_passed(&summary, 8);
}

/// Runs a text as a file and returns what is reported.
async fn run_text(server: &PlainServer, text: &str, change: impl FnOnce(&mut Options)) -> (Summary, String) {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.slt");
    std::fs::write(&path, text).expect("write");
    let mut options = options(server, vec![path.clone()]);
    change(&mut options);
    let summary = slt::run(options).await.expect("run");
    (summary, std::fs::read_to_string(path).expect("read"))
}

#[tokio::test]
async fn what_is_wrong_is_found() {
    let server = PlainServer::ephemeral(false).await.expect("PostgreSQL");
    let wrong = [
        ("query I\nSELECT 1\n----\n2\n", "-   2"),
        ("query II\nSELECT 1\n----\n1\n", "columns mismatch"),
        ("query T\nSELECT 1\n----\n1\n", "columns mismatch"),
        ("query T\nSELECT NULL\n----\n(empty)\n", "+   NULL"),
        ("query I\nSELECT 1 WHERE false\n----\n1\n", "-   1"),
        ("statement ok\nSELEC\n", "42601"),
        ("statement error (42601)\nSELECT 1 / 0\n", "22012"),
        ("statement error multiplication\nSELECT 1 / 0\n", "division by zero"),
        ("statement error\nSELECT 1\n", "expected to fail"),
        ("statement count 2\nCREATE TABLE t AS SELECT 1\n", "affected 1 rows"),
        ("query I\nSELECT pg_sleep(60)\n----\n1\n", "no answer within 0.5 s"),
        ("nonsense\n", "invalid line"),
    ];
    for (text, said) in wrong {
        let (summary, _) = run_text(&server, text, |options| {
            options.check_types = true;
            options.statement_limit = std::time::Duration::from_millis(500);
        })
        .await;
        let failures = &summary.files[0].failures;
        assert_eq!(failures.len(), 1, "{text}");
        assert!(
            failures[0].text(false).contains(said),
            "{text}\n{}",
            failures[0].text(false)
        );
        assert!(!summary.all_passed());
    }
}

#[tokio::test]
async fn what_postgresql_corpora_use_works() {
    let server = PlainServer::ephemeral(false).await.expect("PostgreSQL");
    let text = "statement ok\nCREATE TABLE t (a int, b text)\n\nstatement count 2\nINSERT INTO t VALUES (2, ''), (1, NULL)\n\n\
        query IT rowsort\nSELECT * FROM t\n----\n1 NULL\n2 (empty)\n\n\
        query I valuesort\nSELECT a FROM t\n----\n1\n2\n\n\
        skipif postgresql\nstatement ok\nPRAGMA nothing\n\n\
        onlyif extra\nquery I\nSELECT count(*) FROM t\n----\n2\n\n\
        statement ok\nBEGIN\n\nstatement ok\nDELETE FROM t\n\n\
        connection second\nquery I\nSELECT count(*) FROM t\n----\n2\n\n\
        statement error 22P02\nSELECT 'x'::int\n\n\
        statement error\nCOMMIT; SELECT 1 / 0\n----\ndb error: ERROR: division by zero\n\n\n\
        query error does not exist\nSELECT * FROM missing\n\nhalt\n\nquery I\nSELECT 1\n----\n2\n";
    let (summary, _) = run_text(&server, text, |options| options.labels.push("extra".into())).await;
    assert_passed(&summary, 1);
    assert_eq!(summary.files[0].records, 12);
}

#[tokio::test]
async fn rewriting_writes_what_the_server_answers() {
    let server = PlainServer::ephemeral(false).await.expect("PostgreSQL");
    let before = "# Kept.\n\nquery I rowsort\nSELECT 2 UNION SELECT 1\n----\n9\n\n\
        statement error division by zero\nSELECT 1 / 0\n\nstatement ok\nSELECT * FROM missing\n";
    let after = "# Kept.\n\nquery I rowsort\nSELECT 2 UNION SELECT 1\n----\n1\n2\n\n\
        statement error division by zero\nSELECT 1 / 0\n\nstatement error (42P01)\nSELECT * FROM missing\n";
    let (_, text) = run_text(&server, before, |options| options.rewrite = true).await;
    assert_eq!(text, after);
    let (summary, _) = run_text(&server, &text, |_| {}).await;
    assert_passed(&summary, 1);
}

#[tokio::test]
async fn a_refusal_is_told_from_a_wrong_answer() {
    let server = PlainServer::ephemeral(false).await.expect("PostgreSQL");
    // PostgreSQL itself refuses these with 0A000.
    let refused = "SELECT 'NaN'::numeric::int";
    let text = format!("query I\n{refused}\n----\n1\n\nquery I\nSELECT 1\n----\n1\n\nquery I\nSELECT 1\n----\n2\n");
    let (summary, _) = run_text(&server, &text, |options| options.accept_refusals = true).await;
    assert_eq!(summary.files[0].to_string(), "1 failed, 1 refused");

    // After a refused statement, what follows says nothing.
    let text = "statement ok\nCREATE TABLE p (a int, b int UNIQUE) PARTITION BY RANGE (a)\n\n\
        query I\nSELECT count(*) FROM p\n----\n0\n";
    let (summary, _) = run_text(&server, text, |options| options.accept_refusals = true).await;
    assert_eq!(summary.files[0].to_string(), "1 refused, 1 skipped");
    let (summary, _) = run_text(&server, text, |_| {}).await;
    assert_eq!(summary.files[0].to_string(), "2 failed");
}
