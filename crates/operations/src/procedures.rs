//! `CALL pgherd.…`: distribute, undistribute, split; and what `resolve` is called with.

use crate::convert::{self, Target};
use crate::foreign_keys::Member;
use crate::work::Work;
use crate::{Outcome, Session, foreign_keys, split};
use pgherd_catalog::Change;
use pgherd_model::{Name, ServerError, ShardId, SqlState, Table, TableKind};
use pgherd_sql::{Literal, ObjectName};
use pgherd_transaction::Transaction;
use std::sync::Arc;

const DISTRIBUTE: [(&str, Takes); 3] = [
    ("table", Takes::Name),
    ("key", Takes::Names),
    ("colocate_with", Takes::Name),
];
const UNDISTRIBUTE: [(&str, Takes); 1] = [("table", Takes::Name)];
const SPLIT: [(&str, Takes); 3] = [("table", Takes::Name), ("at", Takes::Any), ("to", Takes::Any)];
const RESOLVE: [(&str, Takes); 1] = [("gid", Takes::Name)];

/// Runs a procedure of schema `pgherd` inside the transaction, under the rules of [`crate::schema_change`].
///
/// # Errors
/// 42883 for a procedure that does not exist with such parameters, 42P01 and 42703 for names that do not, 22023 for
/// values that cannot be, and why the table cannot be changed.
pub async fn call(
    session: &Session<'_>,
    transaction: &mut Transaction,
    procedure: &str,
    arguments: &[(Option<String>, Literal)],
    change: &mut Option<Change>,
) -> Result<Outcome, ServerError> {
    let mut work = Work::new(session, transaction, change);
    match procedure {
        "distribute" => {
            let taken = take(procedure, arguments, &DISTRIBUTE, 2)?;
            distribute(&mut work, &taken).await?;
        }
        "undistribute" => {
            let taken = take(procedure, arguments, &UNDISTRIBUTE, 1)?;
            undistribute(&mut work, &taken).await?;
        }
        "split" => {
            let taken = take(procedure, arguments, &SPLIT, 2)?;
            split_range(&mut work, &taken).await?;
        }
        other => {
            return Err(ServerError::new(
                SqlState::UNDEFINED_FUNCTION,
                format!("procedure pgherd.{other} does not exist"),
            )
            .with_hint("There are pgherd.distribute, pgherd.undistribute, pgherd.split and pgherd.resolve."));
        }
    }
    work.finish("CALL".into()).await
}

/// The transaction that `CALL pgherd.resolve` names. It runs outside of a transaction, so the session calls the
/// coordinator itself.
///
/// # Errors
/// 42883 and 22023, as for the others.
pub fn named_transaction(arguments: &[(Option<String>, Literal)]) -> Result<String, ServerError> {
    let taken = take("resolve", arguments, &RESOLVE, 1)?;
    Ok(first(&taken, 0).unwrap_or_default().to_owned())
}

/// What a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// a name: text
    Name,
    /// one name or several: text, or an array of it
    Names,
    /// a value of the key's type, or a shard's name or number
    Any,
}

/// A procedure's parameters by name; the first `required` must be given.
type Parameters = [(&'static str, Takes)];

/// Arguments by parameter, as text: positional ones first, then `name => value`. As PostgreSQL does, one that fits no
/// parameter makes the procedure one that does not exist.
fn take(
    procedure: &str,
    arguments: &[(Option<String>, Literal)],
    parameters: &Parameters,
    required: usize,
) -> Result<Vec<Option<Vec<String>>>, ServerError> {
    let no_match = || no_such_procedure(procedure, arguments, parameters);
    let mut given: Vec<Option<&Literal>> = vec![None; parameters.len()];
    for (i, (name, value)) in arguments.iter().enumerate() {
        let at = match name {
            Some(name) => parameters.iter().position(|(n, _)| n == name),
            None => Some(i).filter(|i| *i < parameters.len()),
        };
        let at = at.ok_or_else(no_match)?;
        if !fits(parameters[at].1, value) || given[at].replace(value).is_some() {
            return Err(no_match());
        }
    }
    if given[..required].iter().any(Option::is_none) {
        return Err(no_match());
    }
    let invalid = |why: String| {
        ServerError::new(SqlState::INVALID_PARAMETER_VALUE, format!("pgherd.{procedure}: {why}"))
            .with_hint(format!("Its parameters are: {}.", names(parameters)))
    };
    let taken = given.into_iter().map(|value| value.map_or(Ok(None), texts));
    let taken = taken.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
    match taken[..required].iter().position(Option::is_none) {
        Some(null) => Err(invalid(format!("\"{}\" must not be NULL", parameters[null].0))),
        None => Ok(taken),
    }
}

/// Whether a constant is of a type that the parameter takes without a cast.
fn fits(takes: Takes, value: &Literal) -> bool {
    match (takes, value) {
        (Takes::Any, _) | (_, Literal::Null | Literal::Text(_) | Literal::Parameter(_) | Literal::Other(_)) => true,
        (Takes::Names, Literal::Array(items)) => items.iter().all(|item| fits(Takes::Name, item)),
        _ => false,
    }
}

fn names(parameters: &Parameters) -> String {
    let names: Vec<_> = parameters.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

/// 42883 in PostgreSQL's words, with the types that the constants would have.
fn no_such_procedure(procedure: &str, arguments: &[(Option<String>, Literal)], parameters: &Parameters) -> ServerError {
    let written = arguments.iter().map(|(name, value)| match name {
        Some(name) => format!("{name} => {}", type_of(value)),
        None => type_of(value).to_owned(),
    });
    let written: Vec<_> = written.collect();
    ServerError::new(
        SqlState::UNDEFINED_FUNCTION,
        format!("procedure pgherd.{procedure}({}) does not exist", written.join(", ")),
    )
    .with_hint(format!(
        "The parameters of pgherd.{procedure} are: {}.",
        names(parameters)
    ))
}

/// A constant's type as PostgreSQL names it in such an error.
fn type_of(value: &Literal) -> &'static str {
    match value {
        Literal::Boolean(_) => "boolean",
        Literal::Number(n) if n.parse::<i32>().is_ok() => "integer",
        Literal::Number(n) if n.parse::<i64>().is_ok() => "bigint",
        Literal::Number(_) => "numeric",
        Literal::Array(items) => match items.first() {
            Some(Literal::Number(_)) => "integer[]",
            Some(Literal::Boolean(_)) => "boolean[]",
            _ => "text[]",
        },
        Literal::Row(_) => "record",
        Literal::Null | Literal::Text(_) | Literal::Parameter(_) | Literal::Other(_) => "unknown",
    }
}

/// A constant as one or more texts; None for NULL.
fn texts(value: &Literal) -> Result<Option<Vec<String>>, String> {
    Ok(match value {
        Literal::Null => None,
        Literal::Number(n) | Literal::Text(n) => Some(vec![n.clone()]),
        Literal::Boolean(b) => Some(vec![b.to_string()]),
        Literal::Array(items) | Literal::Row(items) => {
            let mut all = Vec::new();
            for item in items {
                all.extend(texts(item)?.ok_or("NULL is no key")?);
            }
            Some(all)
        }
        Literal::Parameter(_) => return Err("give constants, not parameters".into()),
        Literal::Other(text) => return Err(format!("{text} is not a constant")),
    })
}

/// `'public.t'`, `'"My table"'` → a name.
fn object_name(text: &str) -> Result<ObjectName, ServerError> {
    let invalid = || ServerError::new(SqlState::from_code("42602"), format!("invalid name syntax: {text:?}"));
    let tokens = pgherd_sql::lexer::tokenize(text).map_err(|_| invalid())?;
    let identifier = |i: usize| {
        tokens
            .get(i)
            .and_then(|t: &pgherd_sql::lexer::Token| t.identifier(text))
    };
    let (schema, name) = match tokens.len() {
        1 => (None, identifier(0)),
        3 if tokens[1].is(text, ".") => (Some(identifier(0).ok_or_else(invalid)?), identifier(2)),
        _ => return Err(invalid()),
    };
    Ok(ObjectName {
        schema,
        name: name.ok_or_else(invalid)?,
        span: 0..text.len(),
    })
}

fn first(taken: &[Option<Vec<String>>], i: usize) -> Option<&str> {
    taken[i].as_ref().and_then(|v| v.first()).map(String::as_str)
}

async fn distribute(work: &mut Work<'_, '_>, taken: &[Option<Vec<String>>]) -> Result<(), ServerError> {
    let written = first(taken, 0).unwrap_or_default().to_owned();
    let name = object_name(&written)?;
    let key = key_columns(taken[1].as_deref().unwrap_or_default())?;
    if let Some(table) = work.resolve(&name) {
        return match &table.kind {
            TableKind::Sharded(_) => Err(wrong_kind(&name, "is already sharded")),
            _ => Err(wrong_kind(&name, "is not a plain table")),
        };
    }
    work.announce([name.name.as_str()], &format!("distribute {written}"))
        .await?;
    let Some(relation) = work.inspect(&written).await? else {
        return Err(no_relation(&written));
    };
    // Only a column of the table itself: a system column orders nothing that can be kept.
    if let Some(missing) = key.iter().find(|k| !relation.has_column(k)) {
        return Err(ServerError::new(
            SqlState::UNDEFINED_COLUMN,
            format!("column \"{missing}\" of relation \"{}\" does not exist", relation.name),
        ));
    }
    let home = work.home();
    work.lock(&[home], &[relation.full_name().to_string()], "ACCESS EXCLUSIVE")
        .await?;
    let cannot = |why: String| {
        ServerError::unsupported(
            format!("table \"{}\" cannot be distributed: {why}", relation.name),
            "Drop or change what is in the way first.",
        )
    };
    // As it is now that it is locked.
    let relation = work.inspect(&written).await?.unwrap_or_else(|| relation.clone());
    let found = foreign_keys::members(work, relation.clone(), key.clone()).await?;
    let seen = found.map_err(cannot)?;
    announce_linked(work, &seen, &written).await?;
    // As they are now that they are locked.
    let found = foreign_keys::members(work, relation.clone(), key.clone()).await?;
    let members = found.map_err(cannot)?;
    if members
        .iter()
        .any(|m| !seen.iter().any(|s| s.relation.oid == m.relation.oid))
    {
        return Err(ServerError::new(
            SqlState::SERIALIZATION_FAILURE,
            "could not serialize access: a foreign key was added meanwhile",
        ));
    }
    let key_types = &members[0].key_types;
    let like = match first(taken, 2) {
        Some(other) => {
            let table = sharded(work, other).await?;
            if table
                .sharded()
                .is_some_and(|s| s.key_types != *key_types || !s.automatic)
            {
                return Err(cannot(format!("its key does not match the ranges of \"{other}\"")));
            }
            Some(table)
        }
        None => None,
    };
    let target = Target {
        like: like.as_deref(),
        by_default: false,
    };
    convert::distribute(work, &members, target).await
}

/// Tables that foreign keys link with the one that was named go with it.
async fn announce_linked(work: &mut Work<'_, '_>, members: &[Member], named: &str) -> Result<(), ServerError> {
    let others = &members[1..];
    if others.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = others.iter().map(|m| m.relation.name.as_str()).collect();
    work.announce(names.iter().copied(), &format!("distribute {named}"))
        .await?;
    let locked: Vec<_> = others.iter().map(|m| m.relation.full_name().to_string()).collect();
    let home = work.home();
    work.lock(&[home], &locked, "ACCESS EXCLUSIVE").await?;
    for member in others {
        work.notice(format!(
            "table \"{}\" is distributed by {} along with \"{}\", with which foreign keys link it",
            member.relation.name,
            member.key.join(", "),
            members[0].relation.name
        ));
    }
    Ok(())
}

/// `'id'`, `'a,b'` or an array of names.
fn key_columns(given: &[String]) -> Result<Vec<String>, ServerError> {
    let mut columns = Vec::new();
    for text in given {
        for part in text.split(',') {
            columns.push(object_name(part.trim())?.name);
        }
    }
    Ok(columns)
}

/// The sharded table of this name. Errors: 42P01 where nothing has it, 42809 for something else.
async fn sharded(work: &mut Work<'_, '_>, written: &str) -> Result<Arc<Table>, ServerError> {
    let name = object_name(written)?;
    if let Some(table) = work.sharded(&name) {
        return Ok(table);
    }
    if work.resolve(&name).is_none() && work.inspect(written).await?.is_none() {
        return Err(no_relation(written));
    }
    Err(wrong_kind(&name, "is not a sharded table"))
}

fn no_relation(written: &str) -> ServerError {
    ServerError::new(
        SqlState::UNDEFINED_TABLE,
        format!("relation \"{written}\" does not exist"),
    )
}

fn wrong_kind(name: &ObjectName, why: &str) -> ServerError {
    ServerError::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" {why}", name.name))
}

async fn undistribute(work: &mut Work<'_, '_>, taken: &[Option<Vec<String>>]) -> Result<(), ServerError> {
    let table = sharded(work, first(taken, 0).unwrap_or_default()).await?;
    let full: Name = table.name.clone();
    let linked = convert::undistribute(work, &full).await?;
    convert::notice_linked(work, &linked, &full);
    Ok(())
}

async fn split_range(work: &mut Work<'_, '_>, taken: &[Option<Vec<String>>]) -> Result<(), ServerError> {
    let table = sharded(work, first(taken, 0).unwrap_or_default()).await?;
    let to = match first(taken, 2) {
        Some(wanted) => Some(shard(work, wanted)?),
        None => None,
    };
    let full: Name = table.name.clone();
    split::split(work, &full, taken[1].as_deref().unwrap_or_default(), to).await
}

/// A shard by its name or number.
fn shard(work: &Work<'_, '_>, wanted: &str) -> Result<ShardId, ServerError> {
    let all = work.session.shards.all();
    let found = all.iter().find(|s| s.name == wanted || s.id.to_string() == wanted);
    found.map(|s| s.id).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|s| s.name.as_str()).collect();
        ServerError::new(SqlState::UNDEFINED_OBJECT, format!("shard \"{wanted}\" does not exist"))
            .with_hint(format!("There are {}.", names.join(", ")))
    })
}
