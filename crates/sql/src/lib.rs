//! From text to a routed statement: parse, classify, analyse against a catalog snapshot, route by key.
//! Pure: no I/O, no async. What runs where is decided here, once; nothing downstream reads SQL text
//! again to choose shards.
//!
//! 1. [`parse`]: text → [`Parsed`] statements (byte span, [`Kind`], AST where sqlparser has the grammar).
//! 2. [`analyze`]: [`Parsed`] + snapshot + search path → [`Analysis`], cacheable per text, epoch and path.
//! 3. [`Analysis::route`]: + parameter values → [`Route`].

pub mod route;
pub use route::{Forward, Merge, ParameterValue, Part, Route};
