//! Text that nobody means: whatever a client sends, parsing, analysing and routing it ends, soon, and without a panic.
//!
//! Cases are made of the statements in `corpus/`, by taking tokens and bytes out, putting others in, and nesting. A short run
//! belongs to the tests; `PGHERD_FUZZ_CASES=1000000 cargo test --release -p pgherd-sql fuzz` is a long one.

use super::fixture::{path, snapshot};
use crate::{Route, analyze, lexer, parse};
use pgherd_model::Snapshot;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::time::{Duration, Instant};

const CORPUS: &str = include_str!("../../corpus/statements.sql");

/// What one case may take, in a debug build on a busy machine.
const LONGEST: Duration = Duration::from_secs(10);
/// A statement's texts for the shards together, in relation to its own.
const MOST_GROWTH: usize = 200;

/// One change of a text; the numbers choose where and what.
type Edit = (u8, u16, u16);

/// How many cases a run has, and random numbers that are the same in each.
pub(crate) fn runner(short: u32) -> TestRunner {
    let cases = std::env::var("PGHERD_FUZZ_CASES").ok().and_then(|n| n.parse().ok());
    let config = Config {
        cases: cases.unwrap_or(short),
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn pieces(text: &str) -> Vec<String> {
    let Ok(tokens) = lexer::tokenize(text) else {
        return vec![text.to_owned()];
    };
    tokens.iter().map(|t| t.text(text).to_owned()).collect()
}

fn edited(statement: usize, edits: &[Edit]) -> String {
    let corpus: Vec<&str> = CORPUS.lines().collect();
    let mut tokens = pieces(corpus[statement % corpus.len()]);
    let mut glue = " ";
    for (kind, a, b) in edits {
        let (a, b) = (usize::from(*a), usize::from(*b));
        let at = a % tokens.len().max(1);
        match kind % 8 {
            0 if !tokens.is_empty() => {
                tokens.remove(at);
            }
            1 => {
                // A token of another statement.
                let other = pieces(corpus[b % corpus.len()]);
                tokens.insert(at.min(tokens.len()), other[a % other.len()].clone());
            }
            2 if !tokens.is_empty() => {
                let with = b % tokens.len();
                tokens.swap(at, with);
            }
            3 => {
                // The rest of another statement.
                let other = pieces(corpus[b % corpus.len()]);
                tokens.truncate(at);
                tokens.extend(other.into_iter().skip(a % 7));
            }
            4 if !tokens.is_empty() => {
                let depth = b % 40;
                tokens[at] = format!("{}{}{}", "(".repeat(depth), tokens[at], ")".repeat(depth));
            }
            5 if !tokens.is_empty() => {
                let end = (at + b % 12).min(tokens.len());
                let repeated: Vec<_> = tokens[at..end].to_vec();
                for _ in 0..b % 20 {
                    drop(tokens.splice(at..at, repeated.iter().cloned()));
                }
            }
            6 if !tokens.is_empty() => {
                let odd = [
                    "'", "\"", "$$", "/*", "--", "\\", "\u{0}", "é", "$1", "::", "U&\"", ";", "]",
                ];
                let odd = odd[b % odd.len()];
                let token = &mut tokens[at];
                let inside = (0..=token.len()).filter(|i| token.is_char_boundary(*i)).nth(a % 3);
                token.insert_str(inside.unwrap_or(0), odd);
            }
            _ => glue = if glue == " " { "" } else { " " },
        }
        tokens.truncate(4000);
    }
    tokens.join(glue)
}

fn check(text: &str, snapshot: &Snapshot) {
    let begun = Instant::now();
    let Ok(statements) = parse(text) else { return };
    for parsed in &statements {
        let own = parsed.text(text);
        // As gateways do: each on its own, so that offsets count from its start.
        let Some(alone) = parse(own).ok().and_then(|all| all.into_iter().next()) else {
            continue;
        };
        let Ok(analysis) = analyze(&alone, own, snapshot, &path(), &|_| false, &[]) else {
            continue;
        };
        let sent: usize = match analysis.route(snapshot, &[]) {
            Route::Forward(part) => part.text.len(),
            Route::Scatter { parts, .. } => parts.iter().map(|p| p.text.len()).sum(),
            _ => 0,
        };
        assert!(sent <= (own.len() + 100) * MOST_GROWTH, "{sent} bytes of {own:?}");
    }
    assert!(begun.elapsed() < LONGEST, "{:?} for {text:?}", begun.elapsed());
}

#[test]
fn any_text_is_routed_or_refused() {
    let edits = prop::collection::vec((any::<u8>(), any::<u16>(), any::<u16>()), 0..8);
    let run = move || {
        let snapshot = snapshot();
        let checked = runner(10_000).run(&(any::<usize>(), edits), |(statement, edits)| {
            check(&edited(statement, &edits), &snapshot);
            Ok(())
        });
        checked.unwrap_or_else(|failure| panic!("{failure}"));
    };
    // Gateways' threads have as much.
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(run);
    thread.expect("a thread").join().expect("no panic");
}

/// What a long run has found.
#[test]
fn one_parenthesis_closes_several_onlys() {
    check("SELECT a FROM ONLY (ONLY (t)) WHERE k = 5", &snapshot());
}

#[test]
fn any_bytes_are_routed_or_refused() {
    let snapshot = snapshot();
    let checked = runner(1000).run(&prop::collection::vec(any::<u8>(), 0..200), |bytes| {
        check(&String::from_utf8_lossy(&bytes), &snapshot);
        Ok(())
    });
    checked.unwrap_or_else(|failure| panic!("{failure}"));
}
