//! The benchmark against real servers, with tiny numbers: that it runs, writes its files and leaves nothing behind.

use pgherd_testkit::bench::{self, Kind, Options};

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_writes_a_table_and_a_plot() {
    let folder = tempfile::tempdir().expect("folder");
    let options = Options {
        rounds: 2,
        seconds: 1,
        clients: 2,
        scale: 1,
        only: vec![
            "select-simple".into(),
            "tpcb-simple".into(),
            "transfer".into(),
            "select-prepared".into(),
            "read-two-shards".into(),
        ],
        sides: vec![Kind::Postgres],
        output: folder.path().join("results"),
        show: false,
        ..Options::new("pgherd".into())
    };
    let report = bench::run(options).await.expect("bench");
    assert_eq!(report.failed_transactions(), 0, "{}", report.table());
    assert_eq!(report.wrong_sums, Vec::<String>::new());
    assert_eq!(report.measurements.len(), 10);
    for row in &report.rows {
        let tps = row.cells[0].tps.expect("measured");
        assert!(
            tps.min > 0.0 && row.cells[0].to_postgres.expect("a ratio").median == 1.0,
            "{row:?}"
        );
    }
    let p99 = report.rows.iter().find_map(|row| row.cells[0].p99_ms);
    assert!(
        p99.is_some_and(|p99| p99.min > 0.0),
        "reads beside writers tell their latency"
    );
    let read = |name: &str| std::fs::read_to_string(folder.path().join("results").join(name)).expect(name);
    assert!(read("results.md").contains("| point SELECT, simple |"));
    assert!(read("ratios.svg").starts_with("<svg"));
    assert!(read("results.json").contains("\"round\": 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbouncer_stands_beside_postgresql() {
    if !bench::pgbouncer_is_installed() {
        eprintln!("not run: PgBouncer is not installed (apt-get install pgbouncer)");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let options = Options {
        rounds: 1,
        seconds: 1,
        clients: 2,
        scale: 1,
        only: vec!["select-simple".into(), "tpcb-simple".into()],
        sides: vec![Kind::Pgbouncer],
        output: folder.path().to_path_buf(),
        show: false,
        ..Options::new("pgherd".into())
    };
    let report = bench::run(options).await.expect("bench");
    assert_eq!(report.failed_transactions(), 0, "{}", report.table());
    assert_eq!(report.wrong_sums, Vec::<String>::new());
    let bouncer = &report.environment.sides[1];
    assert!(bouncer.kind == Kind::Pgbouncer && bouncer.peak_memory_bytes.is_some_and(|bytes| bytes > 0));
    assert!(
        report.rows[0].cells[1]
            .to_postgres
            .is_some_and(|ratio| ratio.median > 0.0)
    );
}
