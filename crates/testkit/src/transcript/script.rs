//! The text of a transcript as steps, and back: reading and writing again gives the same text.

use std::fmt;

/// A whole transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    pub(super) items: Vec<Item>,
}

/// A part of a transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// A comment or an empty line.
    Remark(String),
    /// A statement, or the collection of an answer.
    Step(Step),
}

/// One turn of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) session: String,
    /// With its `;`. Empty: collect the answer to the statement that waits.
    pub(super) sql: String,
    /// The answer, without the indentation.
    pub(super) answer: Vec<String>,
}

const INDENT: &str = "    ";

/// The answer of a statement that has none yet.
pub(super) const WAITS: &str = "waits";

impl Script {
    /// Reads a transcript, or says on which line it is not one.
    pub(super) fn read(text: &str) -> Result<Script, (usize, String)> {
        let mut items = Vec::new();
        let mut lines = text.lines().enumerate();
        while let Some((index, line)) = lines.next() {
            if let Some(answer) = line.strip_prefix(INDENT) {
                match items.last_mut() {
                    Some(Item::Step(step)) => step.answer.push(answer.to_owned()),
                    _ => return Err((index + 1, "an answer without a statement".into())),
                }
            } else if line.is_empty() || line.starts_with('#') {
                items.push(Item::Remark(line.to_owned()));
            } else {
                let (session, sql) =
                    split_session(line).ok_or((index + 1, "neither `NAME: statement;` nor #".into()))?;
                let mut sql = sql.to_owned();
                while !sql.is_empty() && !sql.ends_with(';') {
                    let (_, more) = lines.next().ok_or((index + 1, "a statement without `;`".to_owned()))?;
                    sql = format!("{sql}\n{more}");
                }
                items.push(Item::Step(Step {
                    session: session.to_owned(),
                    sql,
                    answer: Vec::new(),
                }));
            }
        }
        Ok(Script { items })
    }

    /// How many turns it has.
    pub(super) fn steps(&self) -> usize {
        self.items.iter().filter(|item| matches!(item, Item::Step(_))).count()
    }
}

fn split_session(line: &str) -> Option<(&str, &str)> {
    let (name, sql) = line.split_once(':')?;
    let is_name = !name.is_empty()
        && name
            .chars()
            .all(|character| character.is_alphanumeric() || character == '_');
    is_name.then_some((name, sql.trim()))
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in &self.items {
            match item {
                Item::Remark(line) => writeln!(f, "{line}")?,
                Item::Step(step) => {
                    writeln!(f, "{}", format!("{}: {}", step.session, step.sql).trim_end())?;
                    for line in &step.answer {
                        writeln!(f, "{INDENT}{line}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Two sessions.\n\nA: SELECT k,\n       v FROM t;\n    1 | a\n    SELECT 1\nB: COMMIT;\n    waits\nB:\n    COMMIT\n";

    #[test]
    fn reading_and_writing_gives_the_same_text() {
        let script = Script::read(TEXT).expect("well-formed");
        assert_eq!(script.to_string(), TEXT);
        assert_eq!(script.steps(), 3);
        let Item::Step(step) = &script.items[2] else {
            panic!("a step")
        };
        assert_eq!(step.sql, "SELECT k,\n       v FROM t;");
        assert_eq!(step.answer, ["1 | a", "SELECT 1"]);
    }

    #[test]
    fn what_is_no_transcript_is_refused_with_its_line() {
        for (text, line) in [
            ("    answer\n", 1),
            ("# fine\nhello\n", 2),
            ("A: SELECT 1\n", 1),
            ("A b: SELECT 1;\n", 1),
        ] {
            assert_eq!(Script::read(text).map_err(|(line, _)| line), Err(line), "{text}");
        }
    }
}
