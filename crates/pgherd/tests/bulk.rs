//! `pgherd bulk` with few rows: what every piece of work writes through a gateway is what it writes on plain PostgreSQL.

use pgherd_testkit::bulk::{self, Options};

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_where_they_belong() {
    let options = Options {
        rows: 10_001,
        rounds: 2,
        program: env!("CARGO_BIN_EXE_pgherd").into(),
        show: false,
    };
    let report = bulk::run(&options).await.expect("bulk runs");
    assert_eq!(report.problems(), Vec::<String>::new());
    assert_eq!(report.works.len(), 5);
    for work in &report.works {
        let ratio = work.sides[1].ratio.expect("measured on both sides");
        assert!(ratio.min > 0.0, "{work:?}");
    }
    let folder = tempfile::tempdir().expect("folder");
    report.write(folder.path()).expect("written");
    let page = std::fs::read_to_string(folder.path().join("bulk.md")).expect("the page");
    assert!(page.contains("| COPY TO |"), "{page}");
}
