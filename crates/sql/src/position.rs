//! Mapping an error's position in a rewritten text back to the client's.

use crate::route::Part;

/// `position` counts characters from 1 in `part.text`, as PostgreSQL's errors do; the result counts the same
/// way in `original`, the client's statement. A place inside a replaced piece is the piece's beginning.
pub fn map_position(part: &Part, position: u32, original: &str) -> u32 {
    let character = position.saturating_sub(1) as usize;
    let byte = part
        .text
        .char_indices()
        .nth(character)
        .map_or(part.text.len(), |(byte, _)| byte);
    let mut at = byte;
    for piece in part.replaced.iter().rev() {
        let (start, length) = (piece.at as usize, piece.length as usize);
        if byte >= start {
            let behind = byte - start;
            at = piece.original_at as usize;
            if behind >= length {
                at += piece.original_length as usize + (behind - length);
            }
            break;
        }
    }
    let before = original.get(..at.min(original.len())).unwrap_or(original);
    before.chars().count() as u32 + 1
}
