//! What is refused, in which words.

use super::{Analysis, Decision};
use crate::kind::{Kind, ObjectName};
use crate::lexer::{self, Token};
use crate::relations::{Reference, Role};
use pgherd_model::{Name, ServerError, Table, TableKind, UNREAD_DEFINITION};

/// Whether a name is written with escapes of another letter than the backslash: `U&"d!0061t" UESCAPE '!'`.
pub fn hides_a_name(text: &str, tokens: &[Token]) -> bool {
    let hides = |pair: &[Token]| pair[0].kind == lexer::TokenKind::Quoted && pair[1].is_word(text, "uescape");
    tokens.windows(2).any(hides)
}

/// The refusal of such a statement, where the name could be a sharded table's.
pub fn hidden_name() -> ServerError {
    ServerError::unsupported(
        "UESCAPE of a name is not supported in a database with sharded tables",
        "Write the name's letters themselves, or escape them with a backslash.",
    )
}

/// Whether it names what holds a range on this shard. A tool that copies databases table by table would find the home shard's
/// ranges there, and take them for all.
pub(super) fn holds_a_range(name: &ObjectName) -> bool {
    name.schema.as_deref() == Some("pgherd_data")
}

pub(super) fn one_range() -> ServerError {
    ServerError::unsupported(
        "relations of schema \"pgherd_data\" hold ranges of one shard only",
        "Name the sharded table, which has the rows of all shards.",
    )
}

impl Analysis {
    /// Whether it is refused whatever its parameters are.
    pub fn is_refused(&self) -> bool {
        matches!(self.decision, Decision::Refuse(_))
    }

    /// The views that it reads and whose definition could not be read, since another transaction changes what they read.
    pub fn unread_views(&self) -> impl Iterator<Item = &Name> {
        let tables = self.references.iter().flatten().filter_map(|r| r.table.as_deref());
        let unread = |t: &&Table| matches!(&t.kind, TableKind::Refused { reason, .. } if reason == UNREAD_DEFINITION);
        tables.filter(unread).map(|t| &t.name)
    }
}

/// Why a statement that refers to these cannot be run.
pub(super) fn refused(references: &[Reference]) -> Option<ServerError> {
    references.iter().find_map(|reference| {
        let table = reference.table.as_ref()?;
        match &table.kind {
            TableKind::Refused { reason, .. } => Some(
                ServerError::unsupported(
                    format!(
                        "\"{}\" cannot be used while its data lies on several shards",
                        table.name.name
                    ),
                    "It would see one shard's rows only.",
                )
                .with_detail(reason.clone()),
            ),
            TableKind::View { read_only: false, .. } if reference.role != Role::Read => Some(ServerError::unsupported(
                format!("view \"{}\" over a sharded table cannot be changed", table.name.name),
                "Change the table itself.",
            )),
            TableKind::Sharded(sharded) if reference.role == Role::Insert => {
                let reason = sharded.through_view.as_ref()?.no_insert.clone()?;
                Some(
                    ServerError::unsupported(
                        format!("rows cannot be inserted through view \"{}\" yet", table.name.name),
                        "Insert into the table itself.",
                    )
                    .with_detail(reason),
                )
            }
            _ => None,
        }
    })
}

/// The refusal of a call of this function or operator, or of a change of a table with a trigger.
pub(super) fn unsafe_function(name: &str) -> ServerError {
    ServerError::unsupported(
        match name.starts_with(|c: char| c.is_alphabetic() || c == '_') {
            true => format!("function \"{name}\" may read or change sharded tables and cannot be called yet"),
            false => format!("operator {name} calls a function that may read or change sharded tables"),
        },
        "It would run on one shard and see only that shard's rows. Send its statements one by one.",
    )
}

pub(super) fn not_understood(kind: &Kind) -> ServerError {
    let what = match kind {
        Kind::Ddl(_) | Kind::Vacuum(_) | Kind::Analyze(_) | Kind::Reindex(..) | Kind::Cluster(_) => {
            "this command cannot be run on a sharded table yet"
        }
        _ => "this statement's form is not supported on sharded tables yet",
    };
    ServerError::unsupported(what, "Write it in a simpler form, or use a table that is not sharded.")
}
