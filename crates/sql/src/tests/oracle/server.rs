//! A PostgreSQL server for one test, spoken to through psql.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a statement gave: its rows as sorted text, or its error.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Rows(Vec<String>),
    Error(String),
}

pub struct Server {
    bin: PathBuf,
    data: PathBuf,
    user: Option<(u32, u32)>,
}

/// PostgreSQL refuses to run as root: then it runs as the user `postgres`.
fn user() -> Option<(u32, u32)> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root = status.lines().any(|l| l.starts_with("Uid:\t0\t"));
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|l| l.starts_with("postgres:")).filter(|_| root)?;
    let fields: Vec<_> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

fn binaries() -> PathBuf {
    let mut found: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|e| Some(e.ok()?.path().join("bin")))
        .filter(|p| p.join("initdb").exists())
        .collect();
    found.sort();
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&in_path).filter(|p| p.join("initdb").exists()));
    found
        .into_iter()
        .next_back()
        .expect("this test needs an installed PostgreSQL")
}

impl Server {
    pub fn start() -> Self {
        let data = std::env::temp_dir().join(format!("pgherd-sql-oracle-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&data);
        std::fs::create_dir(&data).unwrap();
        let server = Self {
            bin: binaries(),
            data,
            user: user(),
        };
        if let Some((uid, gid)) = server.user {
            std::os::unix::fs::chown(&server.data, Some(uid), Some(gid)).unwrap();
        }
        let db = server.data.join("db");
        let run = |program: &str, arguments: &[&str]| {
            let output = server.command(program).args(arguments).output().unwrap();
            assert!(
                output.status.success(),
                "{program}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        let db = db.to_str().unwrap();
        run(
            "initdb",
            &[
                "-D",
                db,
                "-A",
                "trust",
                "-U",
                "postgres",
                "--no-sync",
                "--locale",
                "C",
                "-E",
                "UTF8",
            ],
        );
        let options = format!("-c listen_addresses='' -c fsync=off -k {}", server.data.display());
        let log = server.data.join("log");
        let started = server
            .command("pg_ctl")
            .args(["-w", "-D", db, "-o", &options, "-l", log.to_str().unwrap(), "start"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(
            started.unwrap().success(),
            "{}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
        server
    }

    fn command(&self, program: &str) -> Command {
        let own = self.bin.join(program);
        let mut command = if own.exists() {
            Command::new(own)
        } else {
            Command::new(program)
        };
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
            .current_dir(Path::new("/"))
            .env("PGHOST", &self.data)
            .env("PGUSER", "postgres");
        command
    }

    fn psql(&self, database: &str, script: &str) -> (String, String) {
        let mut child = self
            .command("psql")
            .args(["-XqAt", "-d", database])
            .env("PGOPTIONS", "-c client_min_messages=error -c statement_timeout=20s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let script = script.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(script.as_bytes()));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    }

    /// A new database, filled by `sql`.
    pub fn database(&self, name: &str, sql: &str) {
        let (_, error) = self.psql("postgres", &format!("CREATE DATABASE {name};"));
        assert_eq!(error, "");
        let (_, error) = self.psql(name, sql);
        assert_eq!(error, "", "{name}");
    }

    /// Runs statements one after the other.
    pub fn run(&self, database: &str, statements: &[String]) -> Vec<Answer> {
        let mut script = String::from("\\set VERBOSITY sqlstate\n");
        for statement in statements {
            let lines = statement.replace("; ", ";\n");
            let ends = lines.matches(";\n").count();
            // Between BEGIN and ROLLBACK the statement in the middle counts.
            script += &match ends {
                0 => format!("{lines}\n\\echo =:SQLSTATE\n"),
                _ => {
                    let (body, rollback) = lines.rsplit_once(";\n").unwrap();
                    format!("{body};\n\\echo =:SQLSTATE\n{rollback}\n")
                }
            };
        }
        let (output, errors) = self.psql(database, &script);
        let mut answers = Vec::new();
        let mut rows = Vec::new();
        for line in output.lines() {
            match line.strip_prefix('=') {
                Some("00000") => {
                    rows.retain(|r: &String| !r.is_empty());
                    rows.sort();
                    answers.push(Answer::Rows(std::mem::take(&mut rows)));
                }
                Some(state) => {
                    rows.clear();
                    answers.push(Answer::Error(state.to_owned()));
                }
                None => rows.push(line.to_owned()),
            }
        }
        assert_eq!(answers.len(), statements.len(), "{errors}");
        answers
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let db = self.data.join("db");
        let stop = self
            .command("pg_ctl")
            .arg("-D")
            .arg(db)
            .args(["-m", "immediate", "-w", "stop"])
            .output();
        if stop.is_ok() {
            let _ = std::fs::remove_dir_all(&self.data);
        }
    }
}
