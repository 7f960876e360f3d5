//! Golden transcripts: what several sessions say to each other's locks, in an order that is written down.
//!
//! A transcript reads like a protocol of a meeting:
//!
//! ```text
//! A: BEGIN;
//!     BEGIN
//! A: UPDATE bank SET balance = 0 WHERE id = 1;
//!     UPDATE 1
//! B: UPDATE bank SET balance = 9 WHERE id = 1;
//!     waits
//! A: COMMIT;
//!     COMMIT
//! B:
//!     UPDATE 1
//! ```
//!
//! A line that begins with a name and a colon sends a statement, which ends with the `;` at the end of a line; without a
//! statement it collects the answer of one that waited. Lines with four blanks are the answer: rows as `a | b`,
//! then the command tag, or `ERROR` with SQLSTATE and message; notices come first. The runner plays the statements,
//! writes down what it sees, and compares the two texts. `script` reads, `play` talks.

mod play;
mod script;

use crate::place::Place;
use crate::report::Progress;
use crate::slt::Options;
use crate::wire::Target;
use crate::{Error, Failure, FileOutcome, Result, Summary, files};
use console::style;
use script::Script;
use similar::{ChangeTag, TextDiff};
use std::path::PathBuf;
use std::time::Instant;

/// A transcript with this in it is refused as a whole: what follows a refusal says nothing.
const REFUSED: &str = "ERROR 0A000";

/// Plays all transcripts (`*.txt` below folders), one after the other, and compares. Of the options, `jobs`,
/// `protocol`, `labels` and `check_types` do not apply.
///
/// # Errors
/// As [`crate::slt::run`].
pub async fn run(options: Options) -> Result<Summary> {
    let target = options.target()?;
    let files = files::find(&options.files, "txt")?;
    target.connect().await?.close().await;
    let progress = Progress::new(files.len(), options.show);
    let mut summary = Summary::default();
    for path in files {
        progress.started(&path);
        let outcome = run_file(path, &target, &options).await;
        progress.finished(&outcome);
        summary.files.push(outcome);
    }
    progress.done();
    Ok(summary)
}

async fn run_file(path: PathBuf, target: &Target, options: &Options) -> FileOutcome {
    let start = Instant::now();
    let mut outcome = FileOutcome::new(path);
    if let Err(error) = run_in_place(&mut outcome, target, options).await {
        outcome.failures.push(Failure::from(error));
    }
    outcome.elapsed = start.elapsed();
    outcome
}

async fn run_in_place(outcome: &mut FileOutcome, target: &Target, options: &Options) -> Result<()> {
    let failed = |source| Error::File {
        path: outcome.path.clone(),
        source,
    };
    let text = std::fs::read_to_string(&outcome.path).map_err(failed)?;
    let script = Script::read(&text)
        .map_err(|(line, problem)| Error::Script(format!("{}:{line}: {problem}", outcome.path.display())))?;
    let place = Place::make(target, options.isolation).await?;
    let played = play::play(&script, &place.target, options.statement_limit, options.rewrite).await;
    place.remove().await?;
    let played = played?;
    outcome.records = played.steps();
    let actual = played.to_string();
    if options.rewrite {
        std::fs::write(&outcome.path, actual).map_err(failed)?;
    } else if let Some(failure) = compare(&script.to_string(), &actual) {
        let refused = options.accept_refusals && actual.contains(REFUSED) && !script.to_string().contains(REFUSED);
        if refused {
            &mut outcome.refusals
        } else {
            &mut outcome.failures
        }
        .push(failure);
    }
    Ok(())
}

/// The whole transcript with the lines that differ marked; `None` if the two are the same.
fn compare(expected: &str, actual: &str) -> Option<Failure> {
    if expected == actual {
        return None;
    }
    let mut failure = Failure {
        plain: String::new(),
        coloured: String::new(),
    };
    for change in TextDiff::from_lines(expected, actual).iter_all_changes() {
        let line = change.value().trim_end();
        let (mark, coloured) = match change.tag() {
            ChangeTag::Equal => (' ', style(line)),
            ChangeTag::Delete => ('-', style(line).red()),
            ChangeTag::Insert => ('+', style(line).green()),
        };
        failure.plain.push_str(&format!("{mark} {line}\n"));
        failure
            .coloured
            .push_str(&format!("{mark} {}\n", coloured.force_styling(true)));
    }
    Some(failure)
}
