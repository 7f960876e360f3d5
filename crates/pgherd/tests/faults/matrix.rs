//! A sample of the fault matrix; `cargo run -- faults` runs all of it.

use pgherd_testkit::faults::matrix::{Options, run};

/// How many cases run by default: each takes three to ten seconds.
const SAMPLE: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_of_faults_at_every_step_tears_nothing() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().expect("a number"))
    };
    let options = Options {
        program: env!("CARGO_BIN_EXE_pgherd").into(),
        sample: Some(number("PGHERD_FAULTS").map_or(SAMPLE, |n| n as usize)),
        seed: number("PGHERD_FAULTS_SEED").unwrap_or(1),
        only: None,
        state: None,
        limit: None,
    };
    let report = run(&options).await.expect("the stage stands");
    assert_eq!(report.wrong(), Vec::<String>::new());
}
