//! What came out: the table for people, the same as Markdown, and every single run as JSON.

use super::side::Kind;
use super::statistics::Spread;
use super::workload::Workload;
use super::{Measurement, Options, plot};
use crate::Result;
use crate::files::write_page;
use crate::herd::file_error;
use comfy_table::{Table, presets};
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// What was compared, on what, and how.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Environment {
    /// The command that was run, options spelled out.
    pub command: String,
    /// Processor and operating system.
    pub machine: String,
    /// How many cores all of it shared: pgbench, servers and gateways.
    pub cores: usize,
    /// pgherd's own version.
    pub pgherd_version: String,
    /// Whether pgherd was built with optimisation; without it, its numbers mean nothing.
    pub optimised: bool,
    /// PostgreSQL's version.
    pub postgres_version: String,
    /// PgBouncer's version, where it took part.
    pub pgbouncer_version: Option<String>,
    /// Settings of PostgreSQL that matter, the same on all servers.
    pub settings: Vec<(String, String)>,
    /// The sides, in the order in which they took turns.
    pub sides: Vec<SideDescription>,
}

/// One side, as the report describes it.
#[derive(Debug, Clone, Serialize)]
pub struct SideDescription {
    /// Which one.
    pub kind: Kind,
    /// How its clients reach PostgreSQL.
    pub connection: String,
    /// The most memory that its gateway (or PgBouncer) used, in bytes.
    pub peak_memory_bytes: Option<u64>,
}

impl Environment {
    /// What can be known without asking a server.
    pub(crate) fn of_machine(options: &Options) -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let model = model.map_or(std::env::consts::ARCH, |(_, model)| model.trim());
        let mut command = format!(
            "pgherd bench --rounds {} --seconds {} --clients {} --scale {} --shards {}",
            options.rounds, options.seconds, options.clients, options.scale, options.shards
        );
        if !options.only.is_empty() {
            let _ = write!(command, " --only {}", options.only.join(","));
        }
        Self {
            command,
            machine: format!("{model}, {}", std::env::consts::OS),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            pgherd_version: env!("CARGO_PKG_VERSION").to_string(),
            optimised: !cfg!(debug_assertions),
            ..Self::default()
        }
    }
}

/// One workload on one side.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Which side.
    pub side: Kind,
    /// Transactions per second; `None` when no run succeeded, or when the side cannot do this.
    pub tps: Option<Spread>,
    /// Relative to PostgreSQL itself, round by round.
    pub to_postgres: Option<Spread>,
    /// Relative to PgBouncer, round by round.
    pub to_pgbouncer: Option<Spread>,
    /// The 99th percentile of the latency in milliseconds, where others worked beside.
    pub p99_ms: Option<Spread>,
    /// Failed transactions, and whole runs that failed.
    pub failed: u64,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The workload's name.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    /// One per side that took part, PostgreSQL first.
    pub cells: Vec<Cell>,
}

/// The outcome of a benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was compared.
    pub environment: Environment,
    /// The medians.
    pub rows: Vec<Row>,
    /// Sums over what was written that do not agree, in words; anything here means that a side lost or invented data.
    pub wrong_sums: Vec<String>,
    /// Every single run.
    pub measurements: Vec<Measurement>,
}

impl Report {
    pub(crate) fn new(
        environment: Environment,
        workloads: &[Workload],
        measurements: Vec<Measurement>,
        wrong_sums: Vec<String>,
    ) -> Self {
        let kinds: Vec<Kind> = environment.sides.iter().map(|side| side.kind).collect();
        let rows = workloads.iter().map(|workload| Row {
            name: workload.name,
            title: workload.title,
            cells: kinds.iter().map(|kind| cell(workload, *kind, &measurements)).collect(),
        });
        Self {
            rows: rows.collect(),
            environment,
            wrong_sums,
            measurements,
        }
    }

    /// Failed transactions and failed runs, all sides together.
    pub fn failed_transactions(&self) -> u64 {
        let cells = self.rows.iter().flat_map(|row| &row.cells);
        cells.map(|cell| cell.failed).sum()
    }

    /// The table for a terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table
            .load_preset(presets::UTF8_FULL_CONDENSED)
            .set_header(self.header());
        for row in self.lines() {
            table.add_row(row);
        }
        format!("{table}\n{}", self.notes())
    }

    /// The table and how it was made, as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "# Benchmark results\n\nWritten by `pgherd bench`; [benchmark.md](../benchmark.md) says how it works.\n\n",
        );
        let header = self.header();
        let _ = writeln!(text, "| {} |\n|{}", header.join(" | "), "---|".repeat(header.len()));
        for row in self.lines() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        let _ = write!(
            text,
            "\n![Throughput relative to PostgreSQL](ratios.svg)\n\n{}",
            self.notes()
        );
        text
    }

    /// Writes `results.md`, `ratios.svg` and `results.json` into the folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        write_page(folder, "results", &self.markdown(), self)?;
        let path = folder.join("ratios.svg");
        std::fs::write(&path, plot::svg(self)).map_err(file_error(&path))
    }

    fn header(&self) -> Vec<String> {
        let mut header = vec!["work".to_string()];
        for side in &self.environment.sides {
            header.push(match side.kind {
                Kind::Postgres => "PostgreSQL, transactions/s".into(),
                kind => format!("{kind}, to PostgreSQL"),
            });
        }
        let bouncer = self.has_bouncer();
        let herds = self
            .environment
            .sides
            .iter()
            .filter(|side| bouncer && is_pgherd(side.kind));
        header.extend(herds.map(|side| format!("{}, to PgBouncer", side.kind)));
        header.push("failed".into());
        header
    }

    fn lines(&self) -> impl Iterator<Item = Vec<String>> {
        let bouncer = self.has_bouncer();
        self.rows.iter().map(move |row| {
            let mut line = vec![row.title.to_string()];
            line.extend(row.cells.iter().map(|cell| match cell.side {
                Kind::Postgres => Spread::show(cell.tps, 0),
                _ => Spread::show(cell.to_postgres, 2),
            }));
            let herds = row.cells.iter().filter(|cell| bouncer && is_pgherd(cell.side));
            line.extend(herds.map(|cell| Spread::show(cell.to_pgbouncer, 2)));
            let failed: Vec<_> = row.cells.iter().filter(|cell| cell.failed > 0).collect();
            line.push(match failed.as_slice() {
                [] => "0".into(),
                cells => {
                    let cells = cells.iter().map(|cell| format!("{}: {}", cell.side, cell.failed));
                    cells.collect::<Vec<_>>().join("; ")
                }
            });
            line
        })
    }

    fn has_bouncer(&self) -> bool {
        self.environment.sides.iter().any(|side| side.kind == Kind::Pgbouncer)
    }

    /// What one has to know to read the table.
    fn notes(&self) -> String {
        let environment = &self.environment;
        let mut text =
            String::from("Medians over the rounds, (smallest–largest); – where a side cannot do it or has no run.\n\n");
        let _ = writeln!(text, "- Made with: `{}`", environment.command);
        let _ = writeln!(
            text,
            "- On: {}, {} cores for everything together",
            environment.machine, environment.cores
        );
        let build = if environment.optimised {
            ""
        } else {
            " (built without optimisation: its numbers mean nothing)"
        };
        let bouncer = environment.pgbouncer_version.as_ref();
        let bouncer = bouncer.map_or(String::new(), |version| format!(", PgBouncer {version}"));
        let _ = writeln!(
            text,
            "- Versions: pgherd {}{build}, PostgreSQL {}{bouncer}",
            environment.pgherd_version, environment.postgres_version
        );
        let settings: Vec<_> = environment
            .settings
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        let _ = writeln!(text, "- Settings of every PostgreSQL: {}", settings.join(", "));
        for row in &self.rows {
            let of = |cell: &Cell| Some(format!("{} {} ms", cell.side, Spread::show(Some(cell.p99_ms?), 1)));
            let p99: Vec<_> = row.cells.iter().filter_map(of).collect();
            if !p99.is_empty() {
                let _ = writeln!(
                    text,
                    "- Latency, 99th percentile, of \"{}\": {}",
                    row.title,
                    p99.join("; ")
                );
            }
        }
        for side in &environment.sides {
            let memory = side.peak_memory_bytes.filter(|bytes| *bytes > 0);
            let memory = memory.map_or(String::new(), |bytes| {
                let what = if is_pgherd(side.kind) { "gateway" } else { "process" };
                format!("; peak memory of the {what} {:.1} MiB", bytes as f64 / (1 << 20) as f64)
            });
            let _ = writeln!(text, "- {}: {}{memory}", side.kind, side.connection);
        }
        let _ = writeln!(text, "- Failed transactions: {}", self.failed_transactions());
        let mut errors: Vec<_> = self
            .measurements
            .iter()
            .filter_map(|run| {
                let error = run.error.as_ref()?;
                Some(format!(
                    "- {} on {} failed: {}",
                    run.workload,
                    run.side,
                    error.replace('\n', " ")
                ))
            })
            .collect();
        errors.dedup();
        for line in errors {
            let _ = writeln!(text, "{line}");
        }
        match self.wrong_sums.as_slice() {
            [] => text
                .push_str("- Afterwards, on every side: sum(abalance) = sum(tbalance) = sum(bbalance) = sum(delta)\n"),
            wrong => wrong.iter().for_each(|line| {
                let _ = writeln!(text, "- WRONG: {line}");
            }),
        }
        text
    }
}

fn cell(workload: &Workload, kind: Kind, measurements: &[Measurement]) -> Cell {
    let runs = |kind: Kind| -> Vec<(usize, f64)> {
        let runs = measurements
            .iter()
            .filter(|run| run.workload == workload.name && run.side == kind);
        runs.filter(|run| run.error.is_none())
            .map(|run| (run.round, run.tps))
            .collect()
    };
    let own = runs(kind);
    let mine = measurements
        .iter()
        .filter(|run| run.workload == workload.name && run.side == kind);
    Cell {
        side: kind,
        tps: Spread::of(own.iter().map(|(_, tps)| *tps)),
        to_postgres: Spread::of_ratios(&own, &runs(Kind::Postgres)),
        to_pgbouncer: Spread::of_ratios(&own, &runs(Kind::Pgbouncer)),
        p99_ms: Spread::of(mine.clone().filter_map(|run| run.p99_ms)),
        failed: mine.map(|run| run.failed + u64::from(run.error.is_some())).sum(),
    }
}

pub(crate) fn is_pgherd(kind: Kind) -> bool {
    matches!(kind, Kind::PgherdLocal | Kind::PgherdSharded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload;

    fn run(side: Kind, round: usize, tps: f64, error: Option<&str>) -> Measurement {
        Measurement {
            workload: "transfer",
            side,
            round,
            tps,
            latency_ms: 1.0,
            p99_ms: None,
            transactions: 100,
            failed: 0,
            error: error.map(str::to_string),
        }
    }

    fn report(runs: Vec<Measurement>) -> Report {
        let kinds = [Kind::Postgres, Kind::Pgbouncer, Kind::PgherdSharded];
        let sides = kinds.map(|kind| SideDescription {
            kind,
            connection: "TCP".into(),
            peak_memory_bytes: is_pgherd(kind).then_some(50 << 20),
        });
        let environment = Environment {
            sides: sides.to_vec(),
            ..Environment::default()
        };
        let workloads = workload::chosen(&["transfer".into()]).expect("known");
        Report::new(environment, &workloads, runs, Vec::new())
    }

    #[test]
    fn ratios_stand_beside_what_they_refer_to() {
        let runs = vec![
            run(Kind::Postgres, 1, 1000.0, None),
            run(Kind::Pgbouncer, 1, 500.0, None),
            run(Kind::PgherdSharded, 1, 400.0, None),
        ];
        let report = report(runs);
        let text = report.markdown();
        let line = "| transfer between two accounts | 1000 (1000–1000) | 0.50 (0.50–0.50) | 0.40 (0.40–0.40) | 0.80 (0.80–0.80) | 0 |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("peak memory of the gateway 50.0 MiB"), "{text}");
        assert_eq!(report.failed_transactions(), 0);
    }

    #[test]
    fn a_failed_run_is_shown_and_not_counted_as_speed() {
        let runs = vec![
            run(Kind::Postgres, 1, 1000.0, None),
            run(Kind::PgherdSharded, 1, 0.0, Some("server closed the connection")),
        ];
        let report = report(runs);
        assert_eq!(report.failed_transactions(), 1);
        let text = report.table();
        assert!(
            text.contains("pgherd, on shards: 1") && text.contains("closed the connection"),
            "{text}"
        );
        assert_eq!(report.rows[0].cells[2].tps, None);
    }
}
