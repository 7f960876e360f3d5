//! The programs of `driver-tests/`, as its command runs them: psql and pgbench, and SQLAlchemy and Django where Python has them.

use pgherd_testkit::herd;
use std::path::Path;
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn programs_print_on_pgherd_what_they_print_on_postgresql() {
    let python = std::env::var("PGHERD_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../driver-tests/programs.py");
    let mut command = Command::new(&python);
    command
        .arg(script)
        .args([
            "--only",
            "psql,sqlalchemy,django",
            "--shards",
            "3",
            "--pgherd",
            env!("CARGO_BIN_EXE_pgherd"),
        ])
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let said = herd::run("driver-tests/programs.py", command)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(said.contains("| same |") || said.contains("lines differ"), "{said}");
    println!("{said}");
}
