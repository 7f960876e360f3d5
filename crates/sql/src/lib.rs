//! From text to a routed statement: parse, classify, analyse against a catalog snapshot, route by key.
//! Pure: no I/O, no async. What runs where is decided here, once; nothing downstream reads SQL text
//! again to choose shards.
//!
//! 1. [`parse()`]: text → [`Parsed`] statements (byte span, [`Kind`], AST where sqlparser has the grammar).
//! 2. [`analyze`]: [`Parsed`] + snapshot + search path → [`Analysis`], cacheable per text, epoch and path.
//! 3. [`Analysis::route`]: + parameter values → [`Route`].

pub mod analysis;
mod blind;
mod classify;
mod classify_copy;
mod classify_ddl;
pub mod clock;
mod condition;
pub mod copy_split;
mod cursor;
mod explain;
mod facts;
mod functions;
mod insert;
mod insert_clock;
mod insert_place;
mod insert_text;
pub mod instead;
pub mod kind;
pub mod lexer;
mod literal;
mod lock_order;
mod lock_strength;
mod lock_table;
mod locked_inside;
mod locking_subqueries;
pub mod locks;
pub mod moment;
mod nested_joins;
mod noting;
pub mod parse;
mod placed;
pub mod plain_escapes;
pub mod plpgsql;
mod point;
pub mod position;
mod prepared_xacts;
mod prune;
pub mod relations;
mod restriction;
mod returning_query;
pub mod route;
mod sample;
mod scalar;
mod set_targets;
mod shown_level;
mod system_columns;
mod table_as;
mod tree;
mod walk;
mod with_queries;
mod written_rows;

pub use analysis::{Analysis, Clock, analyze, hidden_name, hides_a_name, level_hash, name_hash};
pub use explain::{ExplainFormat, ExplainOptions};
pub use functions::{calls_builtins_only, calls_set_returning};
pub use insert_text::next_identity;
pub use instead::Instead;
pub use kind::{
    CopyFormat, CopyShape, CopySource, CopyTarget, DatabaseChange, Ddl, DdlKind, Isolation, Kind, Literal, ObjectName,
    SetValue,
};
pub use lock_strength::LockStrength;
pub use locked_inside::locked_inside;
pub use locking_subqueries::{LockingSubquery, locking_subqueries};
pub use locks::{Locks, ShardLocks};
pub use parse::{Parsed, parse};
pub use point::Point;
pub use position::map_position;
pub use prune::ranges_of;
pub use returning_query::{ReturningQuery, returning_query};
pub use route::{Drawn, Forward, Merge, ParameterValue, Part, Replaced, Route, Watched};
pub use sample::Sample;
pub use table_as::{TableAs, table_as, with_constants};
pub use with_queries::{WithQueries, WithQuery, with_queries};
pub use written_rows::{passing_by, returning_also};

#[cfg(test)]
mod tests;
