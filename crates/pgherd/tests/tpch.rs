//! TPC-H's 22 queries give PostgreSQL's answers, with lineitem beside its orders and partsupp beside its parts, and with no
//! two tables on the same ranges.

use pgherd_testkit::tpch::{self, Options};

#[tokio::test(flavor = "multi_thread")]
async fn all_answers_are_postgresqls() {
    let options = Options::new(env!("CARGO_BIN_EXE_pgherd").into());
    let report = tpch::run(&options).await.expect("TPC-H runs");
    assert_eq!(report.problems(), Vec::<String>::new());
    assert_eq!(report.queries.len(), 22);
    let empty: Vec<_> = report
        .queries
        .iter()
        .filter(|q| q.rows == 0)
        .map(|q| q.number)
        .collect();
    assert!(
        empty.len() < 5,
        "at this scale few queries are expected to find nothing: {empty:?}"
    );
}
