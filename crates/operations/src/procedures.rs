//! `CALL pgherd.…`: distribute, undistribute, split.

use crate::convert::{self, Target, distributable};
use crate::work::Work;
use crate::{Outcome, Session, split};
use pgherd_catalog::Change;
use pgherd_model::{Name, ServerError, ShardId, SqlState, TableKind};
use pgherd_sql::{Literal, ObjectName};
use pgherd_transaction::Transaction;

/// Runs a procedure of schema `pgherd` inside the transaction, under the rules of [`crate::schema_change`].
///
/// # Errors
/// 42883 for a procedure that does not exist, 22023 for wrong arguments, and why the table cannot be changed.
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
            let taken = take(procedure, arguments, &["table", "key", "colocate_with"], 2)?;
            distribute(&mut work, &taken).await?;
        }
        "undistribute" => {
            let taken = take(procedure, arguments, &["table"], 1)?;
            undistribute(&mut work, &taken).await?;
        }
        "split" => {
            let taken = take(procedure, arguments, &["table", "at", "to"], 2)?;
            split_range(&mut work, &taken).await?;
        }
        other => {
            return Err(ServerError::new(
                SqlState::from_code("42883"),
                format!("procedure pgherd.{other} does not exist"),
            )
            .with_hint("There are pgherd.distribute, pgherd.undistribute and pgherd.split."));
        }
    }
    work.finish("CALL".into()).await
}

/// Arguments by parameter, as text: positional ones first, then `name => value`.
fn take(
    procedure: &str,
    arguments: &[(Option<String>, Literal)],
    names: &[&str],
    required: usize,
) -> Result<Vec<Option<Vec<String>>>, ServerError> {
    let invalid = |why: String| {
        ServerError::new(SqlState::INVALID_PARAMETER_VALUE, format!("pgherd.{procedure}: {why}"))
            .with_hint(format!("Its parameters are: {}.", names.join(", ")))
    };
    let mut taken = vec![None; names.len()];
    for (i, (name, value)) in arguments.iter().enumerate() {
        let at = match name {
            Some(name) => names.iter().position(|n| n == name),
            None => Some(i).filter(|i| *i < names.len()),
        };
        let at = at.ok_or_else(|| match name {
            Some(name) => invalid(format!("there is no parameter \"{name}\"")),
            None => invalid("too many arguments".into()),
        })?;
        taken[at] = texts(value).map_err(invalid)?;
    }
    match taken[..required].iter().position(Option::is_none) {
        Some(missing) => Err(invalid(format!("\"{}\" is missing", names[missing]))),
        None => Ok(taken),
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
        return Err(ServerError::new(
            SqlState::UNDEFINED_TABLE,
            format!("relation \"{written}\" does not exist"),
        ));
    };
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
    let key_types = distributable(&relation, &key).map_err(cannot)?;
    let like = match first(taken, 2) {
        Some(other) => {
            let table = work.sharded(&object_name(other)?);
            let table = table.ok_or_else(|| wrong_kind_text(other, "is not a sharded table"))?;
            if table
                .sharded()
                .is_some_and(|s| s.key_types != key_types || !s.automatic)
            {
                return Err(cannot(format!("its key does not match the ranges of \"{other}\"")));
            }
            Some(table)
        }
        None => None,
    };
    let target = Target {
        key: &key,
        key_types,
        like: like.as_deref(),
        by_default: false,
    };
    convert::distribute(work, &relation, target).await
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

fn wrong_kind(name: &ObjectName, why: &str) -> ServerError {
    wrong_kind_text(&name.name, why)
}

fn wrong_kind_text(name: &str, why: &str) -> ServerError {
    ServerError::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{name}\" {why}"))
}

async fn undistribute(work: &mut Work<'_, '_>, taken: &[Option<Vec<String>>]) -> Result<(), ServerError> {
    let name = object_name(first(taken, 0).unwrap_or_default())?;
    let table = work
        .sharded(&name)
        .ok_or_else(|| wrong_kind(&name, "is not a sharded table"))?;
    let full: Name = table.name.clone();
    convert::undistribute(work, &full).await
}

async fn split_range(work: &mut Work<'_, '_>, taken: &[Option<Vec<String>>]) -> Result<(), ServerError> {
    let name = object_name(first(taken, 0).unwrap_or_default())?;
    let table = work
        .sharded(&name)
        .ok_or_else(|| wrong_kind(&name, "is not a sharded table"))?;
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
