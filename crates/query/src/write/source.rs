//! The SELECT that finds the rows to write: each row's identity, the values that SET gives it, the columns that it keeps
//! where it may move, what RETURNING needs of other relations, and its new key as the target stores it.

use super::returning::{Carried, Returning};
use super::shape::{Shape, Value};
use super::target::Target;
use crate::Transaction;
use crate::carrier::{Carrier, TargetType, carriers};
use crate::gather::IDENTITY;
use crate::insert::{base_type, default_sql};
use crate::statement::{Statement, describe};
use pgherd_model::{ServerError, quote_identifier};
use pgherd_shards::Backend;
use std::ops::Range;

/// The SELECT, and what its columns are.
pub(super) struct Source {
    pub sql: String,
    /// the byte at which it names the target
    pub target_at: usize,
    /// result formats
    pub formats: Vec<i16>,
    /// SET: column or a part of one, as SQL, and the value that it gets; None for DEFAULT
    pub set: Vec<(String, Option<usize>)>,
    /// a moved row's columns: column and value
    pub inserted: Vec<(String, usize)>,
    /// how each value travels
    pub carriers: Vec<Carrier>,
    /// where each value is in a row
    pub places: Vec<usize>,
    /// the values of each carried entry of RETURNING
    pub carried: Vec<Range<usize>>,
    /// where the new key is in a row; empty where no row moves
    pub key: Vec<usize>,
}

/// A value of the SELECT's list: an expression, and the type of the column that it is for.
pub(super) type Item = (String, Option<TargetType>);

/// Builds the SELECT, and asks the home shard for its types.
pub(super) async fn build(
    statement: &Statement<'_>,
    shape: &Shape,
    target: &Target,
    returning: &mut Returning,
    transaction: &mut Transaction,
) -> Result<Source, ServerError> {
    let text = statement.text;
    let home_id = statement.snapshot.home();
    let mut body = Body::new(text, shape);
    for carried in &mut returning.carried {
        if let Carried::All { qualifier, width } = carried {
            let home = transaction.participant(home_id).await?;
            let star = qualifier.as_ref().map_or("*".to_owned(), |q| format!("{q}.*"));
            let described = describe(home, &body.select(&star), statement.parameter_types).await;
            let all = described
                .map_err(|e| e.with_position(None))?
                .columns
                .unwrap_or_default();
            *width = all.len() - if qualifier.is_none() { target.columns.len() } else { 0 };
        }
    }
    let is_key = |name: &String| target.sharded().is_some_and(|s| s.key.contains(name));
    let keyed = shape.set.iter().any(|(name, _)| is_key(name));
    let (mut items, mut set, mut inserted) = (Vec::<Item>::new(), Vec::new(), Vec::new());
    refuse_parts_with_key(&shape.set, keyed)?;
    let mut types = set_types(target, &shape.set, transaction.participant(home_id).await?)
        .await?
        .into_iter();
    for (name, value) in &shape.set {
        let (place, of_type) = (quote_identifier(name) + value.part(), types.next().flatten());
        let value = value_sql(target, name, value, keyed)?;
        set.push((place, value.is_some().then_some(items.len())));
        if let Some(sql) = value {
            inserted.push((name.clone(), items.len()));
            items.push((format!("({sql})"), of_type));
        }
    }
    if keyed {
        let table = target.table.as_ref();
        for column in &target.columns {
            let generated = table.and_then(|t| t.column(&column.name)).is_some_and(|c| c.generated);
            if generated || shape.set.iter().any(|(name, _)| *name == column.name) {
                continue;
            }
            inserted.push((column.name.clone(), items.len()));
            let alias = quote_identifier(&shape.alias);
            items.push((
                format!("{alias}.{}", quote_identifier(&column.name)),
                column_type(target, &column.name),
            ));
        }
    }
    body.keys = match target.sharded().filter(|_| keyed) {
        Some(sharded) => key_sql(sharded, &inserted, &items)?,
        None => Vec::new(),
    };
    let layout = Layout::new(&mut body, &items, &returning.carried, target.columns.len());
    let home = transaction.participant(home_id).await?;
    let described = describe(
        home,
        &body.whole("CAST('' AS pg_catalog.text)").0,
        statement.parameter_types,
    )
    .await;
    let described = described
        .map_err(|e| e.with_position(None))?
        .columns
        .unwrap_or_default();
    let type_at = |at: &usize| described.get(*at).map(|c| c.type_oid);
    let types: Option<Vec<u32>> = layout.described.iter().map(type_at).collect();
    let types =
        types.ok_or_else(|| ServerError::internal("the home shard described other columns than it was asked for"))?;
    let targets: Vec<_> = types
        .iter()
        .enumerate()
        .map(|(i, oid)| {
            let own = items.get(i).and_then(|(_, target)| target.clone());
            own.unwrap_or(TargetType {
                oid: *oid,
                sql: String::new(),
            })
        })
        .collect();
    let carriers = carriers(home, &types, &targets).await?;
    Carrier::check(&carriers)?;
    let mut formats = vec![0; layout.width];
    for (place, carrier) in layout.places.iter().zip(&carriers) {
        formats[*place] = carrier.format;
    }
    let key: Vec<_> = (layout.width..layout.width + body.keys.len()).collect();
    formats.extend(key.iter().map(|_| 1));
    let alias = quote_identifier(&shape.alias);
    let (sql, target_at) = body.whole(&format!("{alias}.{IDENTITY}"));
    Ok(Source {
        sql,
        target_at,
        formats,
        set,
        inserted,
        carriers,
        places: layout.places,
        carried: layout.carried,
        key,
    })
}

/// The type of a column of the target.
pub(super) fn column_type(target: &Target, name: &str) -> Option<TargetType> {
    let column = target.columns.iter().find(|c| c.name == name)?;
    Some(TargetType {
        oid: column.type_oid,
        sql: column.type_sql.clone(),
    })
}

/// A row that moves is inserted with whole columns.
pub(super) fn refuse_parts_with_key(set: &[(String, Value)], keyed: bool) -> Result<(), ServerError> {
    match keyed && set.iter().any(|(_, value)| matches!(value, Value::Part { .. })) {
        true => Err(ServerError::unsupported(
            "parts of columns cannot be set together with the shard key",
            "Set whole columns, or use a statement for each.",
        )),
        false => Ok(()),
    }
}

/// The types of what SET gives values: of columns, or of their parts.
pub(super) async fn set_types(
    target: &Target,
    set: &[(String, Value)],
    home: &mut Backend,
) -> Result<Vec<Option<TargetType>>, ServerError> {
    let mut types = Vec::with_capacity(set.len());
    for (name, value) in set {
        let column = column_type(target, name);
        let (Value::Part { alike, .. }, Some(column)) = (value, &column) else {
            types.push(column);
            continue;
        };
        let part = format!("(NULL::{}){alike}", column.sql);
        let asked = format!("SELECT pg_catalog.pg_typeof({part})::oid, pg_catalog.pg_typeof({part})");
        let told = home
            .simple(&asked)
            .await
            .map_err(|e| ServerError::from(e).with_position(None))?;
        let text = |at| told.first().and_then(|result| result.text(0, at));
        types.push(
            text(0)
                .and_then(|oid| oid.parse().ok())
                .zip(text(1))
                .map(|(oid, sql)| TargetType {
                    oid,
                    sql: sql.to_owned(),
                }),
        );
    }
    Ok(types)
}

/// What SET gives a column, as an expression; None for a DEFAULT that the shard takes itself.
pub(super) fn value_sql(
    target: &Target,
    name: &str,
    value: &Value,
    keyed: bool,
) -> Result<Option<String>, ServerError> {
    let sql = match value {
        Value::Expression(sql) | Value::Part { sql, .. } => return Ok(Some(sql.clone())),
        Value::Default => target.table.as_ref().and_then(|t| Some((&t.name, t.column(name)?))),
    };
    let Some((table, column)) = sql else { return Ok(None) };
    let computed = default_sql(table, column);
    if computed.is_some() || !keyed || column.generated {
        return Ok(computed);
    }
    match &column.default {
        Some(default) => Ok(Some(default.clone())),
        // A domain has a default of its own.
        None if column.type_oid >= 16384 => Err(ServerError::unsupported(
            format!("SET {name} = DEFAULT is not supported together with the shard key"),
            "Write the value.",
        )),
        None => Ok(Some(format!("CAST(NULL AS {})", column.type_name))),
    }
}

/// The new key's columns as the target stores them.
pub(super) fn key_sql(
    sharded: &pgherd_model::Sharded,
    inserted: &[(String, usize)],
    items: &[Item],
) -> Result<Vec<String>, ServerError> {
    let cast = |(name, key_type): (&String, &pgherd_model::KeyType)| {
        let (_, value) = inserted.iter().find(|(n, _)| n == name)?;
        let stored = &items[*value].1.as_ref()?.sql;
        Some(format!(
            "CAST(CAST(pgherd_rows.pgherd_v{value} AS {stored}) AS {})",
            base_type(*key_type)
        ))
    };
    let key: Option<Vec<_>> = sharded.key.iter().zip(&sharded.key_types).map(cast).collect();
    key.ok_or_else(|| ServerError::internal("a shard key has a column that the table does not have"))
}

/// The SELECT's pieces.
struct Body {
    with: String,
    distinct: bool,
    list: Vec<String>,
    from_target: String,
    behind_target: String,
    keys: Vec<String>,
}

impl Body {
    fn new(text: &str, shape: &Shape) -> Self {
        let mut behind = text[shape.target.clone()][shape.name_span.len()..].to_owned();
        if let Some(from) = &shape.from {
            behind.push_str(", ");
            behind.push_str(&text[from.clone()]);
        }
        if let Some(condition) = &shape.condition {
            behind.push_str(" WHERE ");
            behind.push_str(&text[condition.clone()]);
        }
        Self {
            with: text[shape.with.clone()].to_owned(),
            distinct: shape.from.is_some(),
            list: Vec::new(),
            from_target: text[shape.name_span.clone()].to_owned(),
            behind_target: behind,
            keys: Vec::new(),
        }
    }

    /// `WITH … SELECT list FROM …`
    fn select(&self, list: &str) -> String {
        format!(
            "{} SELECT {list} FROM {}{}",
            self.with, self.from_target, self.behind_target
        )
    }

    /// The whole SELECT with this expression as the identity, and where it names the target.
    fn whole(&self, identity: &str) -> (String, usize) {
        let mut sql = String::new();
        if !self.keys.is_empty() {
            sql = format!("SELECT pgherd_rows.*, {} FROM (", self.keys.join(", "));
        }
        if !self.with.is_empty() {
            sql.push_str(&self.with);
            sql.push(' ');
        }
        sql.push_str("SELECT ");
        if self.distinct {
            // Of several matches for one row, one is taken.
            sql.push_str(&format!("DISTINCT ON ({identity}) "));
        }
        sql.push_str(&format!("{identity} AS {IDENTITY}"));
        for item in &self.list {
            sql.push_str(", ");
            sql.push_str(item);
        }
        sql.push_str(" FROM ");
        let at = sql.len();
        sql.push_str(&self.from_target);
        sql.push_str(&self.behind_target);
        if !self.keys.is_empty() {
            sql.push_str(") AS pgherd_rows");
        }
        (sql, at)
    }
}

/// Where the values are among the columns.
struct Layout {
    /// in a row
    places: Vec<usize>,
    /// in the description, whose `*` lacks the identity
    described: Vec<usize>,
    carried: Vec<Range<usize>>,
    /// columns but for the key
    width: usize,
}

impl Layout {
    fn new(body: &mut Body, items: &[Item], carried: &[Carried], target_columns: usize) -> Self {
        let mut this = Self {
            places: Vec::new(),
            described: Vec::new(),
            carried: Vec::new(),
            width: 1,
        };
        let mut described = 1;
        let take = |this: &mut Self, described: &mut usize, count: usize| {
            for _ in 0..count {
                this.places.push(this.width);
                this.described.push(*described);
                this.width += 1;
                *described += 1;
            }
        };
        for (sql, _) in items {
            body.list.push(format!("{sql} AS pgherd_v{}", this.places.len()));
            take(&mut this, &mut described, 1);
        }
        for entry in carried {
            let first = this.places.len();
            match entry {
                Carried::Expression(sql) => body.list.push(format!("{sql} AS pgherd_v{first}")),
                Carried::All { qualifier: Some(q), .. } => body.list.push(format!("{q}.*")),
                Carried::All { qualifier: None, .. } => {
                    body.list.push("*".to_owned());
                    this.width += target_columns + 1;
                    described += target_columns;
                }
            }
            take(&mut this, &mut described, entry.width());
            this.carried.push(first..this.places.len());
        }
        this
    }
}
