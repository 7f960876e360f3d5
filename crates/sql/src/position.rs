//! Mapping an error's position in a rewritten text back to the client's.

use crate::route::{Part, Replaced};

/// `position` counts characters from 1 in `part.text`, as PostgreSQL's errors do; the result counts the same
/// way in the client's statement. A place inside a replaced piece is the piece's beginning.
pub fn map_position(part: &Part, position: u32) -> u32 {
    map_back(&part.text, &part.replaced, position)
}

/// The same for any text and what was put into it.
pub(crate) fn map_back(text: &str, replaced: &[Replaced], position: u32) -> u32 {
    let character = position.saturating_sub(1) as usize;
    let byte = text.char_indices().nth(character).map_or(text.len(), |(byte, _)| byte);
    let characters = |from: usize, to: usize| text.get(from..to).map_or(0, |t| t.chars().count() as u32);
    let (mut counted, mut at) = (0, 0);
    for piece in replaced {
        let (start, end) = (piece.at as usize, (piece.at + piece.length) as usize);
        if byte < start {
            break;
        }
        counted += characters(at, start);
        if byte < end {
            return counted + 1;
        }
        counted += piece.original_characters;
        at = end;
    }
    counted + characters(at, byte) + 1
}
