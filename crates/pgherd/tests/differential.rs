//! A short run of the differential tester: random statements over random tables give the same on plain PostgreSQL and on three
//! shards. `pgherd differential` runs as many as one likes.

use pgherd_testkit::differential::{Kind, Options, run};
use std::path::Path;

const STATEMENTS: u64 = 160;

#[tokio::test(flavor = "multi_thread")]
async fn random_statements_give_the_same_as_on_plain_postgresql() {
    let mut options = Options::new(Path::new(env!("CARGO_BIN_EXE_pgherd")).into(), 20, STATEMENTS);
    // A script takes as long as ten statements; those are for longer runs.
    options.kinds = vec![Kind::Query, Kind::Write, Kind::Block, Kind::Error];
    let report = run(&options).await.expect("run");
    println!("{}", report.summary());
    assert_eq!(report.differences(), 0, "{report}");
    assert_eq!(report.statements, STATEMENTS, "{report}");
    // Statements that all fail or find nothing would agree as well.
    assert!(report.answers_with_rows() > STATEMENTS / 2, "{report}");
}
