//! Compares two outputs of the same test, statement by statement.

use similar::{Algorithm, DiffOp, capture_diff_slices};

/// How many statements of a file gave what, and the statements that differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Score {
    /// the outputs are the same, to the byte
    pub identical: bool,
    /// statements with the same lines
    pub same: usize,
    /// statements with the same lines in another order
    pub reordered: usize,
    /// the others: the statement, what was expected, what came
    pub differences: Vec<Difference>,
}

/// A statement with another result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// the statement, or the permutation
    pub statement: String,
    /// PostgreSQL's lines
    pub expected: String,
    /// pgherd's lines
    pub actual: String,
}

impl Score {
    fn add(&mut self, statement: &str, expected: &[&str], actual: &[&str]) {
        if expected == actual {
            self.same += 1;
        } else if same_but_order(expected, actual) {
            self.reordered += 1;
        } else {
            self.differences.push(Difference {
                statement: statement.to_owned(),
                expected: expected.join("\n"),
                actual: actual.join("\n"),
            });
        }
    }

    /// How many statements there are.
    pub fn statements(&self) -> usize {
        self.same + self.reordered + self.differences.len()
    }
}

fn same_but_order(expected: &[&str], actual: &[&str]) -> bool {
    let (mut expected, mut actual) = (expected.to_vec(), actual.to_vec());
    expected.sort_unstable();
    actual.sort_unstable();
    expected == actual
}

/// Outputs of psql that echo the script's lines (`psql -a`): what stands behind the last line of a statement is its result.
pub(super) fn statements(script: &str, expected: &str, actual: &str) -> Score {
    let lines: Vec<&str> = script.lines().collect();
    let (of_expected, of_actual) = (results(&lines, expected), results(&lines, actual));
    let mut score = Score {
        identical: expected == actual,
        ..Score::default()
    };
    let mut start = 0;
    for end in 0..lines.len() {
        if !ends_statement(lines[end]) && end + 1 < lines.len() {
            continue;
        }
        let (expected, actual) = (of_expected[start..=end].concat(), of_actual[start..=end].concat());
        let statement = lines[start..=end].join("\n");
        start = end + 1;
        if !statement.trim().is_empty() {
            score.add(&statement, &expected, &actual);
        }
    }
    score
}

/// By its last character, or as a command of psql. A `;` inside of a function's body makes two statements of one, in both outputs.
fn ends_statement(line: &str) -> bool {
    let code = line.split(" --").next().unwrap_or_default().trim_end();
    code.ends_with(';') || line.starts_with('\\') || code.contains(" \\g")
}

/// For each line of the script, the lines of the output that stand between it and the next line.
fn results<'o>(script: &[&str], output: &'o str) -> Vec<Vec<&'o str>> {
    let output: Vec<&str> = output.lines().collect();
    let mut results = vec![Vec::new(); script.len()];
    for op in capture_diff_slices(Algorithm::Myers, script, &output) {
        let (before, lines) = match op {
            DiffOp::Insert {
                old_index,
                new_index,
                new_len,
            } => (old_index, new_index..new_index + new_len),
            DiffOp::Replace {
                old_index,
                new_index,
                new_len,
                ..
            } => (old_index, new_index..new_index + new_len),
            _ => continue,
        };
        if let Some(result) = results.get_mut(before.saturating_sub(1)) {
            // Whether an empty line is the script's or the result's cannot be told.
            result.extend(output[lines].iter().filter(|line| !line.is_empty()));
        }
    }
    results
}

/// Outputs of isolationtester: a permutation of steps is the unit.
pub(super) fn permutations(expected: &str, actual: &str) -> Score {
    const HEAD: &str = "\nstarting permutation: ";
    let split = |text: &str| -> Vec<String> { format!("\n{text}").split(HEAD).map(str::to_owned).collect() };
    let (of_expected, of_actual) = (split(expected), split(actual));
    let mut score = Score {
        identical: expected == actual,
        ..Score::default()
    };
    for (i, block) in of_expected.iter().enumerate().skip(1) {
        let expected: Vec<&str> = block.lines().collect();
        let actual: Vec<&str> = of_actual.get(i).map_or("", String::as_str).lines().collect();
        score.add(expected.first().copied().unwrap_or_default(), &expected, &actual);
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "-- two statements\nSELECT a\n  FROM t;\n\nSELECT b FROM t; -- last\n";

    fn output(first: &str, second: &str) -> String {
        format!("-- two statements\nSELECT a\n  FROM t;\n{first}\n\nSELECT b FROM t; -- last\n{second}\n\n")
    }

    #[test]
    fn statements_are_compared_one_by_one() {
        let expected = output(" a \n---\n 1\n 2\n(2 rows)", "ERROR:  b");
        let same = statements(SCRIPT, &expected, &expected);
        assert_eq!((same.identical, same.same, same.statements()), (true, 2, 2));

        let actual = output(" a \n---\n 2\n 1\n(2 rows)", "ERROR:  c");
        let score = statements(SCRIPT, &expected, &actual);
        assert_eq!((score.identical, score.same, score.reordered), (false, 0, 1));
        let [difference] = &score.differences[..] else {
            panic!("one difference")
        };
        assert_eq!(
            (difference.statement.trim(), difference.actual.as_str()),
            ("SELECT b FROM t; -- last", "ERROR:  c")
        );
    }

    #[test]
    fn what_is_missing_differs() {
        let expected = output("1", "2");
        let score = statements(SCRIPT, &expected, "-- two statements\nSELECT a\n  FROM t;\n1\n");
        assert_eq!((score.same, score.differences.len()), (1, 1));
    }

    #[test]
    fn permutations_are_compared_one_by_one() {
        let expected = "Parsed test spec with 2 sessions\n\nstarting permutation: a b\nstep a: x\n\nstarting permutation: b a\nstep b: y\n";
        let actual = expected.replace("step b: y", "step b: z");
        let score = permutations(expected, &actual);
        assert_eq!((score.same, score.differences.len()), (1, 1));
        assert_eq!(score.differences[0].statement, "b a");
    }
}
