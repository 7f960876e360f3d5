//! Where a statement goes: the result of routing, trusted by all later stages.

use crate::relations::substitute;
use pgherd_model::{ServerError, ShardId};
use std::ops::Range;
use std::sync::Arc;

/// A bound parameter as the client sent it.
#[derive(Debug, Clone, Copy)]
pub struct ParameterValue<'a> {
    /// None for NULL
    pub bytes: Option<&'a [u8]>,
    /// PostgreSQL's binary format rather than text
    pub binary: bool,
    /// the type's OID as declared in Parse or inferred by the home shard; 0 when not known
    pub type_oid: u32,
}

/// A statement for one shard.
#[derive(Debug, Clone)]
pub struct Part {
    /// who runs it
    pub shard: ShardId,
    /// the text to send: the client's, but for relation names, or a rewritten INSERT
    pub text: Arc<str>,
    /// which of the client's parameters the text uses, in its order (`$1` of the text is
    /// `parameters[0]`, counted from 0); None when they are the client's own numbers
    pub parameters: Option<Vec<u16>>,
    /// fences to open with (`LOCK TABLE … IN ACCESS SHARE MODE`), as quoted names, when the text goes through a parent
    pub fences: Vec<Arc<str>>,
    /// for mapping error positions back: (byte offset in `text`, length there, byte offset in the
    /// client's statement, length there) of each replaced piece, ascending
    pub replaced: Arc<[Replaced]>,
}

impl Part {
    /// The client's text, its parameters by their own numbers, with these pieces replaced: bytes, ascending.
    pub(crate) fn new(
        shard: ShardId,
        text: &Arc<str>,
        replacements: &[(Range<usize>, String)],
        fences: Vec<Arc<str>>,
    ) -> Self {
        let (text, replaced) = match replacements.is_empty() {
            true => (text.clone(), Vec::new()),
            false => {
                let (text, replaced) = substitute(text, replacements);
                (text.into(), replaced)
            }
        };
        Self {
            shard,
            text,
            parameters: None,
            fences,
            replaced: replaced.into(),
        }
    }
}

/// A piece of text that was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replaced {
    /// byte offset in the rewritten text
    pub at: u32,
    /// its length there, bytes
    pub length: u32,
    /// byte offset in the client's statement
    pub original_at: u32,
    /// its length there, bytes
    pub original_length: u32,
    /// its length there, characters, which is what errors count
    pub original_characters: u32,
}

/// How the rows that the parts return become one result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merge {
    /// part after part, in order
    Concatenate,
    /// row `i` of the result is the next row of part `order[i]` (a multi-row INSERT's RETURNING); falls back
    /// to concatenation when a part returns another number of rows than it was given
    Interleave(Vec<u16>),
}

/// A column of the answer to [`Route::Defaults`] for which a sequence is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// the column's place in the answer
    pub column: usize,
    /// the sequence, as text that regclass takes; None where the default is more than a number of a sequence
    pub sequence: Option<String>,
}

/// A whole statement on one shard.
pub type Forward = Part;

/// A statement that the home shard may run where it is looked at, in the same transaction, that it has used no sharded table.
#[derive(Debug)]
pub struct Watched {
    /// the function that builds its SQL while it runs, or the table with a trigger that calls one
    pub name: String,
    /// what to run
    pub part: Part,
    /// the error where nobody can look
    pub refusal: ServerError,
}

/// Where a statement goes.
#[derive(Debug, Clone)]
pub enum Route {
    /// One shard runs it whole; reply relayed as bytes.
    Forward(Forward),
    /// DML on several shards: one transaction, tags summed.
    Scatter {
        /// one per shard
        parts: Vec<Part>,
        /// for RETURNING
        merge: Merge,
    },
    /// An INSERT needs values of defaults (sequences) that only the home shard can give: run
    /// `query` there (one row per inserted row, text format) and call [`crate::Analysis::route_with_defaults`].
    Defaults {
        /// `SELECT nextval(…), … FROM generate_series(1, n)`
        query: String,
        /// the columns of its rows that are numbers drawn from sequences, in the order in which they are drawn
        drawn: Vec<Drawn>,
    },
    /// A SELECT (or the SELECT of INSERT … SELECT) over several ranges: the query crate plans it.
    Plan,
    /// An UPDATE, DELETE or MERGE that needs rows of several shards, or moves rows between them: the query crate finds the rows
    /// first and then writes them where they are.
    GatherWrite,
    /// Refused; nothing was done.
    Refuse(ServerError),
}
