//! The files of sql-tests/ on plain PostgreSQL, on one shard and on three: the same file, the same results.
//!
//! A statement that pgherd refuses with 0A000 is a gap, which the table shows; one that it answers otherwise than
//! PostgreSQL fails the test, unless sql-tests/known-differences.txt says that it is known.
//! With `PGHERD_WRITE_COMPATIBILITY` set, the table goes to docs/compatibility.md. With `PGHERD_RECORD_TRANSCRIPT` set, what plain
//! PostgreSQL answers goes into the transcript of that name; with `PGHERD_RECORD_OWN_TRANSCRIPT`, what pgherd answers into one of
//! sql-tests/pgherd.

use pgherd_local_cluster::PlainServer;
use pgherd_testkit::herd::Herd;
use pgherd_testkit::slt::{self, Options};
use pgherd_testkit::wire::Protocol;
use pgherd_testkit::{Comparison, Isolation, Summary, transcript};
use std::path::{Path, PathBuf};

/// Small bounds, so that a handful of rows lies on three shards. Plain PostgreSQL takes both settings for a user's own.
const SETTINGS: [(&str, &str); 2] = [
    ("pgherd.default_distribution", "primary_key"),
    (
        "pgherd.initial_bounds",
        "int 3,7; bigint 3,7; smallint 3,7; numeric 3,7; text h,q; varchar h,q; \
         uuid 55555555-5555-5555-5555-555555555555,aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa; date 2024-03-01,2024-07-01; \
         timestamp 2024-03-01 00:00:00,2024-07-01 00:00:00; timestamptz 2024-03-01 00:00:00+00,2024-07-01 00:00:00+00",
    ),
];

/// How many files may meet a refusal. Only ever goes down.
const MOST_REFUSED: usize = 3;

fn refused_files(summary: &Summary) -> usize {
    summary.files.iter().filter(|file| !file.refusals.is_empty()).count()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn options(url: String, folder: &str) -> Options {
    Options {
        isolation: Isolation::Schema,
        settings: SETTINGS
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        keep_going: true,
        accept_refusals: true,
        check_types: true,
        statement_limit: std::time::Duration::from_secs(20),
        show: false,
        ..Options::new(url, vec![repository().join("sql-tests").join(folder)])
    }
}

/// Where a cluster's gateway listens.
async fn herd(shards: usize) -> (Herd, pgherd_testkit::herd::Gateway, String) {
    let (herd, gateway) = Herd::with_gateway(Path::new(env!("CARGO_BIN_EXE_pgherd")), shards, "sql")
        .await
        .expect("a cluster");
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", gateway.port());
    (herd, gateway, url)
}

/// What is known to differ: file, how the statement begins.
fn known_differences() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(repository().join("sql-tests/known-differences.txt")).expect("the list");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parts = lines.filter_map(|line| line.split_once(" | "));
    parts
        .filter_map(|(file, rest)| Some((file.to_owned(), rest.rsplit_once(" | ")?.0.to_owned())))
        .collect()
}

/// The failures that are not known. Plain PostgreSQL has none to know.
fn failures(name: &str, summary: &Summary) -> String {
    let known = if name == "PostgreSQL" {
        Vec::new()
    } else {
        known_differences()
    };
    let mut text = String::new();
    for file in &summary.files {
        for failure in file.failures.iter().map(|failure| failure.text(false).trim_end()) {
            let is_known = |(path, begin): &(String, String)| file.path.ends_with(path) && failure.contains(begin);
            if !known.iter().any(is_known) {
                text.push_str(&format!("{name}: {}: {failure}\n\n", file.path.display()));
            }
        }
    }
    text
}

fn assert_no_failures(comparison: &Comparison) {
    println!("{comparison}");
    let most = comparison
        .targets
        .iter()
        .map(|(_, summary)| refused_files(summary))
        .max()
        .unwrap_or(0);
    assert!(
        most <= MOST_REFUSED,
        "{most} files meet something that is not supported\n{comparison}"
    );
    let wrong: String = comparison
        .targets
        .iter()
        .map(|(name, summary)| failures(name, summary))
        .collect();
    assert!(wrong.is_empty(), "{wrong}\n{comparison}");
}

#[tokio::test(flavor = "multi_thread")]
async fn compatibility_files_give_the_same_everywhere() {
    let mut comparison = Comparison::default();
    let plain = PlainServer::ephemeral_like_a_shard(false).await.expect("PostgreSQL");
    let mut add = async |name: &str, url: &str, protocol| {
        let options = Options {
            protocol,
            ..options(url.to_owned(), "compatibility")
        };
        comparison
            .targets
            .push((name.to_owned(), slt::run(options).await.expect(name)));
    };
    add("PostgreSQL", &plain.conninfo("postgres", "postgres"), Protocol::Simple).await;
    for (shards, name) in [(1, "1 shard"), (3, "3 shards")] {
        let (herd, gateway, url) = herd(shards).await;
        add(name, &url, Protocol::Simple).await;
        if shards == 3 {
            add("3 shards, extended protocol", &url, Protocol::Extended).await;
        }
        gateway.stop().await;
        herd.stop().await;
    }
    if std::env::var_os("PGHERD_WRITE_COMPATIBILITY").is_some() {
        write_compatibility(&comparison);
    }
    assert_no_failures(&comparison);
}

#[tokio::test(flavor = "multi_thread")]
async fn transcripts_give_the_same_everywhere() {
    let mut comparison = Comparison::default();
    let plain = PlainServer::ephemeral_like_a_shard(false).await.expect("PostgreSQL");
    if let Ok(name) = std::env::var("PGHERD_RECORD_TRANSCRIPT") {
        let mut options = options(plain.conninfo("postgres", "postgres"), "transcripts");
        options.files[0].push(name);
        options.rewrite = true;
        transcript::run(options).await.expect("record");
    }
    let on_plain = transcript::run(options(plain.conninfo("postgres", "postgres"), "transcripts")).await;
    comparison
        .targets
        .push(("PostgreSQL".to_owned(), on_plain.expect("PostgreSQL")));
    for (shards, name) in [(1, "1 shard"), (3, "3 shards")] {
        let (herd, gateway, url) = herd(shards).await;
        let summary = transcript::run(options(url, "transcripts")).await.expect(name);
        comparison.targets.push((name.to_owned(), summary));
        gateway.stop().await;
        herd.stop().await;
    }
    assert_no_failures(&comparison);
}

/// What only pgherd has; nothing here may be refused but what the files say.
#[tokio::test(flavor = "multi_thread")]
async fn pgherds_own_surface() {
    let (herd, gateway, url) = herd(3).await;
    let own = || Options {
        accept_refusals: false,
        ..options(url.clone(), "pgherd")
    };
    let files = Options {
        settings: Vec::new(),
        ..own()
    };
    let of_files = slt::run(files).await.expect("run");
    if let Ok(name) = std::env::var("PGHERD_RECORD_OWN_TRANSCRIPT") {
        let mut options = own();
        options.files[0].push(name);
        options.rewrite = true;
        transcript::run(options).await.expect("record");
    }
    let of_transcripts = transcript::run(own()).await.expect("run");
    gateway.stop().await;
    herd.stop().await;
    for summary in [of_files, of_transcripts] {
        assert_no_failures(&Comparison {
            targets: vec![("3 shards".to_owned(), summary)],
        });
    }
}

/// What is written here ends with it.
const END_OF_FILES: &str = "\n<!-- end of sql-tests -->\n";

fn write_compatibility(comparison: &Comparison) {
    let text = format!(
        "# Compatibility\n\nDrivers, ORMs and tools have [a page of their own](drivers.md).\n\nWhat the files of `sql-tests/compatibility` give, run by\n\
         `PGHERD_WRITE_COMPATIBILITY=1 cargo test -p pgherd --test sql`. `ok` is the result of PostgreSQL 15, to the \
         letter.\n*Refused* is a clear error (0A000) instead of it; *skipped* is what could not be run after that. \
         *Failed* is\na bug. Tables are split at small keys, so that a handful of rows lies on every shard.\n\n{comparison}\n"
    );
    let page = repository().join("docs/compatibility.md");
    let before = std::fs::read_to_string(&page).unwrap_or_default();
    // What others write stands behind it.
    let rest = before.split_once(END_OF_FILES).map_or("", |(_, rest)| rest);
    std::fs::write(&page, format!("{text}{END_OF_FILES}{rest}")).expect("docs/compatibility.md");
}
