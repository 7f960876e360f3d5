//! COPY of a query: what runs is another text, and what is said of it is said of the client's.

use crate::session::{Problem, Unit};
use pgherd_sql::{CopyShape, Part, Replaced};

/// The client's COPY, and where its query stands in it.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    pub unit: Unit<'a>,
    pub shape: &'a CopyShape,
    /// the byte at which the query begins; None where it is not the client's
    pub query: Option<usize>,
}

impl Words<'_> {
    /// The same, where the statement begins so many characters behind the query's beginning.
    pub fn behind(self, characters: u32) -> Self {
        let text = &self.unit.statement.text;
        let bytes = |at: usize| {
            let mut characters_of = text.get(at..).unwrap_or_default().char_indices();
            characters_of.nth(characters as usize).map_or(0, |(bytes, _)| bytes)
        };
        Self {
            query: self.query.map(|at| at + bytes(at)),
            ..self
        }
    }

    fn characters_before(&self, at: usize) -> u32 {
        let text = self.unit.statement.text.get(..at).unwrap_or_default();
        text.chars().count() as u32
    }

    /// What was said of the query alone.
    pub fn told(&self, problem: Problem) -> Problem {
        let Problem::Error(error) = problem else {
            return problem;
        };
        let position = error.fields().position;
        let shifted = self
            .query
            .and_then(|at| position.map(|position| position + self.characters_before(at)));
        error.with_position(shifted).into()
    }

    /// The COPY of a query that stands for the client's: positions in it are mapped to the client's text.
    pub fn put_around(&self, part: Part, before: &str, behind: &str) -> Part {
        let whole = &self.unit.statement.text;
        let options = &self.shape.options;
        let text = format!(
            "{before}{}{behind}{}",
            part.text,
            whole.get(options.clone()).unwrap_or_default()
        );
        let length = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let piece = |at: usize, end: usize, original: std::ops::Range<usize>| Replaced {
            at: length(at),
            length: length(end - at),
            original_at: length(original.start),
            original_length: length(original.len()),
            original_characters: whole.get(original).map_or(0, |t| t.chars().count() as u32),
        };
        let (begins, ends) = (before.len(), before.len() + part.text.len());
        let replaced = match self.query {
            None => vec![piece(0, ends + behind.len(), 0..options.start)],
            Some(query) => {
                let inner = part.replaced.iter().map(|r| Replaced {
                    at: r.at + length(begins),
                    original_at: r.original_at + length(query),
                    ..*r
                });
                let tail = query + original_length(&part) as usize;
                let mut all = vec![piece(0, begins, 0..query)];
                all.extend(inner);
                all.push(piece(ends, ends + behind.len(), tail..options.start.max(tail)));
                all
            }
        };
        Part {
            text: text.into(),
            replaced: replaced.into(),
            ..part
        }
    }
}

/// How many bytes the part's text was before it was rewritten.
fn original_length(part: &Part) -> u32 {
    let added: i64 = part
        .replaced
        .iter()
        .map(|r| i64::from(r.length) - i64::from(r.original_length))
        .sum();
    u32::try_from(part.text.len() as i64 - added).unwrap_or(0)
}
