//! The `pgherd` command: configuration, and one module per subcommand. What the subcommands do lies in the other crates.

mod config;
mod error;
mod gateway;
mod init;
mod progress;
mod status;
mod terminated;
mod up;

use clap::{Parser, Subcommand};
use error::{Error, Result};
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Many PostgreSQL servers behave as one database
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Gateway(gateway::GatewayArgs),
    Init(init::InitArgs),
    Status(status::StatusArgs),
    Slt(pgherd_testkit::slt::Arguments),
    Bench(pgherd_testkit::bench::Arguments),
    Faults(pgherd_testkit::faults::matrix::Arguments),
    Soak(pgherd_testkit::histories::Arguments),
    Tpch(pgherd_testkit::tpch::Arguments),
    Bulk(pgherd_testkit::bulk::Arguments),
    Regress(pgherd_testkit::regress::Arguments),
    Differential(pgherd_testkit::differential::Arguments),
}

/// The stack of a thread that runs sessions. Statements are trees, which parsing, analysis and planning walk by recursion; how
/// deep a tree may be is limited, and the deepest must fit. Only what is used takes memory.
const STACK_BYTES: usize = 64 << 20;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => {
            eprintln!("pgherd: no threads can be started: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> ExitCode {
    // A download's retries are told by its error, in the end.
    let filter = EnvFilter::try_from_env("PGHERD_LOG").unwrap_or_else(|_| EnvFilter::new("warn,reqwest_retry=error"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
    let outcome = match Cli::parse().command {
        Command::Up(args) => up::run(args).await,
        Command::Gateway(args) => gateway::run(args).await,
        Command::Init(args) => init::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Slt(arguments) => return slt(arguments).await,
        Command::Bench(arguments) => return bench(arguments).await,
        Command::Faults(arguments) => return faults(arguments).await,
        Command::Soak(arguments) => return soak(arguments).await,
        Command::Tpch(arguments) => return tpch(arguments).await,
        Command::Bulk(arguments) => return bulk(arguments).await,
        Command::Regress(arguments) => return regress(arguments).await,
        Command::Differential(arguments) => return differential(arguments).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Failed files are reported by the runner itself; here they only become the exit status.
async fn slt(arguments: pgherd_testkit::slt::Arguments) -> ExitCode {
    match pgherd_testkit::slt::run(arguments.into()).await {
        Ok(summary) if summary.all_passed() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => failed(&error.into()),
    }
}

/// A benchmark in which transactions failed has measured something else than it says.
async fn bench(arguments: pgherd_testkit::bench::Arguments) -> ExitCode {
    let measured = async { pgherd_testkit::bench::run(arguments.options()?).await };
    match measured.await {
        Ok(report) => {
            println!("{}", report.table());
            match report.failed_transactions() {
                0 => ExitCode::SUCCESS,
                count => {
                    eprintln!("pgherd: {count} transactions failed\nThe table says on which side; its log says why");
                    ExitCode::FAILURE
                }
            }
        }
        Err(error) => failed(&error.into()),
    }
}

/// The page is written whatever was found; what is wrong becomes the exit status.
async fn faults(arguments: pgherd_testkit::faults::matrix::Arguments) -> ExitCode {
    let tried = async {
        let report = pgherd_testkit::faults::matrix::run(&arguments.options()?).await?;
        report.write(&arguments.output)?;
        Ok::<_, pgherd_testkit::Error>(report.wrong())
    };
    exit_of(tried.await, "cases are wrong")
}

/// What went wrong, one line each, is told and becomes the exit status.
fn exit_of(found: Result<Vec<String>, pgherd_testkit::Error>, what: &str) -> ExitCode {
    match found {
        Ok(wrong) if wrong.is_empty() => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("pgherd: {} {what}\n{}", wrong.len(), wrong.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => failed(&error.into()),
    }
}

/// Violations are told by the soak itself; here they only become the exit status.
async fn soak(arguments: pgherd_testkit::histories::Arguments) -> ExitCode {
    let ran = async { pgherd_testkit::histories::soak(arguments.options()?).await };
    match ran.await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error.into()),
    }
}

/// The page is written whatever was found; wrong answers become the exit status.
async fn tpch(arguments: pgherd_testkit::tpch::Arguments) -> ExitCode {
    let ran = async {
        let report = pgherd_testkit::tpch::run(&arguments.options()?).await?;
        if !report.queries.is_empty() {
            report.write(&arguments.output)?;
            println!("{}", report.markdown());
        }
        Ok::<_, pgherd_testkit::Error>(report.problems())
    };
    exit_of(ran.await, "answers are wrong")
}

/// The page is written whatever was found; work that failed or wrote something else becomes the exit status.
async fn bulk(arguments: pgherd_testkit::bulk::Arguments) -> ExitCode {
    let ran = async {
        let report = pgherd_testkit::bulk::run(&arguments.options()?).await?;
        report.write(&arguments.output)?;
        println!("{}", report.markdown());
        Ok::<_, pgherd_testkit::Error>(report.problems())
    };
    exit_of(ran.await, "pieces of work went wrong")
}

/// The table goes to standard output, every difference into a file beside the outputs.
async fn regress(arguments: pgherd_testkit::regress::Arguments) -> ExitCode {
    let compared = async {
        let options = arguments.options();
        let report = pgherd_testkit::regress::run(&options).await?;
        report.write_differences(&options.output)?;
        if let Some(page) = &arguments.write {
            report.write(page)?;
        }
        Ok::<_, pgherd_testkit::Error>(report)
    };
    match compared.await {
        Ok(report) => {
            println!("{report}");
            match report.percent_identical() >= arguments.least {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Err(error) => failed(&error.into()),
    }
}

/// Differences have been shown; here they only become the exit status.
async fn differential(arguments: pgherd_testkit::differential::Arguments) -> ExitCode {
    let ran = async { pgherd_testkit::differential::run(&arguments.options()?).await };
    match ran.await {
        Ok(report) => {
            println!("{}", report.summary());
            if report.differences() == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => failed(&error.into()),
    }
}

fn failed(error: &Error) -> ExitCode {
    eprintln!("pgherd: {error}");
    ExitCode::FAILURE
}
