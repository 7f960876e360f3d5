//! Runs the files of a suite as PostgreSQL's drivers do: `pg_regress` (psql reads the script, and echoes it) and
//! `pg_isolation_regress` (isolationtester reads the spec).

use super::Options;
use crate::herd::{cannot_run, file_error};
use crate::wire::{Protocol, Target};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// What `pg_regress` sets for the databases that it makes (pg_regress.c, `create_database`).
const DATABASE_SETTINGS: [(&str, &str); 6] = [
    ("lc_messages", "C"),
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
    ("bytea_output", "hex"),
    ("timezone_abbreviations", "Default"),
];
/// How long making a database may take.
const DATABASE_LIMIT: Duration = Duration::from_secs(120);

/// A suite's tests, in the order of its schedule.
pub(super) struct Suite<'o> {
    options: &'o Options,
    /// `src/test/regress` or `src/test/isolation`
    folder: PathBuf,
    tests: Vec<String>,
}

impl<'o> Suite<'o> {
    pub(super) fn open(options: &'o Options) -> Result<Self> {
        let (folder, schedule) = match &options.isolationtester {
            Some(_) => ("isolation", "isolation_schedule"),
            None => ("regress", "parallel_schedule"),
        };
        let absolute = |path: &Path| std::path::absolute(path).map_err(file_error(path));
        let folder = absolute(&options.source)?.join("src/test").join(folder);
        let schedule = folder.join(schedule);
        let text = std::fs::read_to_string(&schedule).map_err(file_error(&schedule))?;
        let lines = text.lines().filter_map(|line| line.strip_prefix("test:"));
        let mut tests: Vec<String> = lines.flat_map(str::split_whitespace).map(str::to_owned).collect();
        if !options.only.is_empty() {
            tests.retain(|test| options.only.contains(test));
        }
        if tests.is_empty() {
            return Err(Error::Script(format!("{}: no such test in it", schedule.display())));
        }
        Ok(Self { options, folder, tests })
    }

    pub(super) fn tests(&self) -> &[String] {
        &self.tests
    }

    pub(super) fn name(&self) -> &'static str {
        match self.options.isolationtester {
            Some(_) => "isolation",
            None => "regression",
        }
    }

    /// The script, which its output echoes; None for specs.
    pub(super) fn script(&self, test: &str) -> Option<String> {
        let is_script = self.options.isolationtester.is_none();
        let read = || std::fs::read(self.input(test)).ok();
        is_script
            .then(read)
            .flatten()
            .map(|text| String::from_utf8_lossy(&text).into_owned())
    }

    fn input(&self, test: &str) -> PathBuf {
        match self.options.isolationtester {
            Some(_) => self.folder.join(format!("specs/{test}.spec")),
            None => self.folder.join(format!("sql/{test}.sql")),
        }
    }

    /// The outputs of all tests on one server.
    pub(super) async fn run(&self, url: &str, settings: &[(String, String)], name: &str) -> Result<Vec<String>> {
        if !self.options.keep_databases {
            make_database(url).await?;
        }
        let output = std::path::absolute(&self.options.output).map_err(file_error(&self.options.output))?;
        // Tests write there as the server, under the same name on both, since outputs show it.
        let scratch = output.join("results");
        let _ = std::fs::remove_dir_all(&scratch);
        for folder in [&scratch, &output.join(name)] {
            std::fs::create_dir_all(folder).map_err(file_error(folder))?;
        }
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&scratch, everybody).map_err(file_error(&scratch))?;
        let mut outputs = Vec::with_capacity(self.tests.len());
        for test in &self.tests {
            let path = output.join(name).join(format!("{test}.out"));
            self.run_one(test, url, settings, &output, &path).await?;
            outputs.push(read_output(&path)?);
        }
        Ok(outputs)
    }

    /// The outputs that an earlier run has left.
    pub(super) fn outputs(&self, name: &str) -> Result<Vec<String>> {
        let folder = self.options.output.join(name);
        let paths = self.tests.iter().map(|test| folder.join(format!("{test}.out")));
        paths.map(|path| read_output(&path)).collect()
    }

    async fn run_one(
        &self,
        test: &str,
        url: &str,
        settings: &[(String, String)],
        scratch: &Path,
        path: &Path,
    ) -> Result<()> {
        let file = std::fs::File::create(path).map_err(file_error(path))?;
        let errors = file.try_clone().map_err(file_error(path))?;
        let input = self.input(test);
        let stdin = std::fs::File::open(&input).map_err(file_error(&input))?;
        let mut command = match &self.options.isolationtester {
            Some(program) => {
                let mut command = Command::new(program);
                command.arg(url).env("PGAPPNAME", format!("isolation/{test}"));
                command
            }
            None => {
                let mut command = Command::new("psql");
                command
                    .args([
                        "-X",
                        "-a",
                        "-q",
                        "-v",
                        "HIDE_TABLEAM=on",
                        "-v",
                        "HIDE_TOAST_COMPRESSION=on",
                        "-d",
                    ])
                    .arg(url)
                    .env("PGAPPNAME", format!("pg_regress/{test}"));
                command
            }
        };
        for name in [
            "LANG",
            "LC_ALL",
            "LC_COLLATE",
            "LC_CTYPE",
            "LC_MONETARY",
            "LC_NUMERIC",
            "LC_TIME",
            "LANGUAGE",
        ] {
            command.env_remove(name);
        }
        let mut options = "-c intervalstyle=postgres_verbose".to_owned();
        for (name, value) in settings {
            options.push_str(&format!(
                " -c {name}={}",
                value.replace('\\', "\\\\").replace(' ', "\\ ")
            ));
        }
        command
            .env("LC_MESSAGES", "C")
            .env("PGTZ", "America/Los_Angeles")
            .env("PGDATESTYLE", "Postgres, MDY")
            .env("PGOPTIONS", options)
            .env("PG_ABS_SRCDIR", &self.folder)
            .env("PG_ABS_BUILDDIR", scratch)
            .env(
                "PG_LIBDIR",
                std::path::absolute(&self.options.modules).map_err(file_error(&self.options.modules))?,
            )
            .env("PG_DLSUFFIX", ".so")
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(file))
            .stderr(Stdio::from(errors))
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(cannot_run("psql or isolationtester"))?;
        // What it has written until then is compared.
        let _ = tokio::time::timeout(self.options.file_limit, child.wait()).await;
        Ok(())
    }
}

fn read_output(path: &Path) -> Result<String> {
    let text = std::fs::read(path).map_err(file_error(path))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Makes the URL's database anew, as `pg_regress` does.
async fn make_database(url: &str) -> Result<()> {
    let target: Target = url.parse()?;
    let name = target.database().to_owned();
    let quoted = format!("\"{}\"", name.replace('"', "\"\""));
    let mut session = target.with_database("postgres").connect().await?;
    let mut statements = vec![
        format!("DROP DATABASE IF EXISTS {quoted}"),
        format!("CREATE DATABASE {quoted} TEMPLATE = template0 LC_COLLATE = 'C' LC_CTYPE = 'C'"),
    ];
    let settings = DATABASE_SETTINGS.iter();
    statements.extend(settings.map(|(setting, value)| format!("ALTER DATABASE {quoted} SET {setting} TO '{value}'")));
    for statement in statements {
        let reply = session.run(&statement, Protocol::Simple, DATABASE_LIMIT).await?;
        if let Some(error) = reply.error {
            return Err(Error::Server(error));
        }
    }
    session.close().await;
    Ok(())
}
