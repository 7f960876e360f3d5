//! Replaces pieces of a statement and maps error positions back.

use pgherd_model::ServerError;
use pgherd_sql::route::Replaced;
use std::ops::Range;

/// A text with some pieces replaced.
#[derive(Debug, Clone)]
pub(crate) struct Edited {
    pub text: String,
    replaced: Vec<Replaced>,
}

impl Edited {
    /// Applies edits, which must not overlap.
    pub fn new(original: &str, mut edits: Vec<(Range<usize>, String)>) -> Self {
        edits.sort_by_key(|(span, _)| span.start);
        edits.dedup_by(|later, earlier| later.0 == earlier.0);
        let mut this = Self {
            text: String::with_capacity(original.len() + 64),
            replaced: Vec::with_capacity(edits.len()),
        };
        let mut at = 0;
        for (span, with) in edits {
            this.text.push_str(&original[at..span.start]);
            this.replaced.push(Replaced {
                at: this.text.len() as u32,
                length: with.len() as u32,
                original_at: span.start as u32,
                original_length: (span.end - span.start) as u32,
                original_characters: original[span.clone()].chars().count() as u32,
            });
            this.text.push_str(&with);
            at = span.end;
        }
        this.text.push_str(&original[at..]);
        this
    }

    /// The error with its position counted in the original text.
    pub fn map_back(&self, original: &str, error: ServerError) -> ServerError {
        let Some(position) = error.fields().position else {
            return error;
        };
        let characters = (position as usize).saturating_sub(1);
        let at = self
            .text
            .char_indices()
            .nth(characters)
            .map_or(self.text.len(), |(at, _)| at);
        let mapped = match self.replaced.iter().rev().find(|r| r.at as usize <= at) {
            None => at,
            Some(r) if at < (r.at + r.length) as usize => r.original_at as usize,
            Some(r) => at - (r.at + r.length) as usize + (r.original_at + r.original_length) as usize,
        };
        let characters = original.get(..mapped).map(|before| before.chars().count() as u32 + 1);
        error.with_position(characters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgherd_model::SqlState;

    #[test]
    fn positions_count_in_the_original() {
        let original = "SELECT é, x FROM t WHERE y";
        let edited = Edited::new(original, vec![(18..19, "long_name".into())]);
        assert_eq!(edited.text, "SELECT é, x FROM long_name WHERE y");
        let map = |position| {
            let error = ServerError::new(SqlState::SYNTAX_ERROR, "").with_position(Some(position));
            edited.map_back(original, error).fields().position
        };
        assert_eq!(map(8), Some(8));
        assert_eq!(map(20), Some(18));
        assert_eq!(map(34), Some(26));
    }
}
