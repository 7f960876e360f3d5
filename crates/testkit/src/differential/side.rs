//! One of the two servers, and what it answers.

use super::node::Rendered;
use crate::wire::{Protocol, Reply, ServerError, Session, Target};
use crate::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// How a statement travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    /// The simple protocol.
    Simple,
    /// The extended protocol with parameters, results as text.
    Text,
    /// The extended protocol without parameters, results in binary format.
    Binary,
}

impl Carrier {
    pub(super) const ALL: [Carrier; 3] = [Carrier::Simple, Carrier::Text, Carrier::Binary];

    /// Whether constants travel as parameters.
    pub(super) fn has_parameters(self) -> bool {
        self == Carrier::Text
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Carrier::Simple => "simple protocol",
            Carrier::Text => "extended protocol, parameters, text results",
            Carrier::Binary => "extended protocol, binary results",
        })
    }
}

/// What came back for a statement.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// Rows, or a command that was done.
    Done(Table),
    /// An error.
    Failed(ServerError),
    /// The connection was lost, or nothing came in time; the session is a new one.
    Lost(String),
}

/// A result.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    /// Names and names of types; none for a command without rows.
    pub(super) columns: Option<Vec<(String, String)>>,
    pub(super) rows: Vec<Vec<Option<String>>>,
    pub(super) tag: String,
}

/// OIDs from here on are of what users have made.
const FIRST_OF_USERS: u32 = 16384;

/// What stands for a type that a script has made, or a table's that it has made anew: its OID is the server's own.
const NOT_FIXED: &str = "a user's";

/// What a binary value has OIDs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// Its elements.
    Elements,
    /// Its fields.
    Fields,
}

/// A session with one of the servers.
pub(super) struct Side {
    target: Target,
    session: Session,
    limit: Duration,
    /// What a new session runs first.
    settings: Vec<String>,
    /// Names of the types that users made, whose OIDs nobody fixes, and whether binary values of them have OIDs in them.
    types: HashMap<u32, (String, Holds)>,
}

impl Side {
    pub(super) async fn open(target: Target, limit: Duration) -> Result<Self> {
        Ok(Self {
            session: target.connect().await?,
            target,
            limit,
            settings: Vec::new(),
            types: HashMap::new(),
        })
    }

    /// Runs statements that must succeed. Those that set something are run again in each later session.
    pub(super) async fn prepare(&mut self, script: &[String]) -> Result<()> {
        for sql in script {
            let done = self.session.execute(sql, self.limit).await;
            done.map_err(|error| Error::Script(format!("{error}\nin: {sql}")))?;
            if sql.starts_with("SET ") {
                self.settings.push(sql.clone());
            }
        }
        // A table that a script makes local, or sharded, has another row type then.
        let types = "SELECT oid, CASE WHEN typtype = 'c' AND NOT EXISTS \
             (SELECT FROM pg_catalog.pg_class c WHERE c.oid = typrelid AND c.relkind = 'c') \
             THEN 'a user''s' ELSE typname END, typtype, typcategory FROM pg_catalog.pg_type WHERE oid >= 16384";
        for row in self.session.execute(types, self.limit).await?.remove(0).rows {
            if let [Some(oid), Some(name), Some(kind), Some(category)] = &row[..]
                && let Ok(oid) = oid.parse()
            {
                let holds = match (kind.as_str(), category.as_str()) {
                    (_, "A") => Holds::Elements,
                    ("c", _) => Holds::Fields,
                    _ => Holds::Nothing,
                };
                self.types.insert(oid, (name.clone(), holds));
            }
        }
        Ok(())
    }

    /// Runs one generated statement.
    pub(super) async fn answer(&mut self, statement: &Rendered, carrier: Carrier) -> Result<Answer> {
        let (sql, limit) = (&statement.sql, self.limit);
        if let Some(lines) = &statement.data {
            self.session.feed(lines);
        }
        let reply = match carrier {
            Carrier::Simple => self.session.run(sql, Protocol::Simple, limit).await,
            Carrier::Text => self.session.run_with(sql, &statement.parameters, false, limit).await,
            Carrier::Binary => self.session.run_with(sql, &statement.parameters, true, limit).await,
        };
        match reply {
            Ok(reply) => Ok(self.read(reply, carrier == Carrier::Binary)),
            Err(error) => {
                // Whoever is alone with a dead server has nothing to compare: that error is the run's.
                self.session = self.target.connect().await?;
                for setting in &self.settings {
                    self.session.execute(setting, self.limit).await?;
                }
                Ok(Answer::Lost(error.to_string()))
            }
        }
    }

    /// The same for a plain text.
    pub(super) async fn simple(&mut self, sql: &str) -> Result<Answer> {
        let statement = Rendered {
            sql: sql.to_owned(),
            ..Rendered::default()
        };
        self.answer(&statement, Carrier::Simple).await
    }

    fn read(&self, reply: Reply, binary: bool) -> Answer {
        if let Some(error) = reply.error {
            return Answer::Failed(error);
        }
        let Some(result) = reply.results.into_iter().last() else {
            return Answer::Done(Table::default());
        };
        if let Some(lines) = result.copied {
            return Answer::Done(Table {
                columns: Some(vec![("lines of COPY".to_owned(), String::new())]),
                rows: lines.into_iter().map(|line| vec![Some(line)]).collect(),
                tag: result.tag,
            });
        }
        let mut rows = result.rows;
        if let Some(columns) = result.columns.as_ref().filter(|_| binary) {
            for (position, column) in columns.iter().enumerate() {
                // A value of a type that was made anew has OIDs in it that are not known here.
                if self.name(column.type_oid) == NOT_FIXED {
                    rows.iter_mut()
                        .filter_map(|row| row[position].as_mut())
                        .for_each(|cell| *cell = NOT_FIXED.to_owned());
                    continue;
                }
                if !matches!(
                    self.types.get(&column.type_oid),
                    Some((_, Holds::Elements | Holds::Fields))
                ) {
                    continue;
                }
                for cell in rows.iter_mut().filter_map(|row| row[position].as_mut()) {
                    *cell = self.with_names(column.type_oid, cell);
                }
            }
        }
        let columns = result.columns.map(|columns| {
            let named = columns
                .into_iter()
                .map(|column| (column.name, self.name(column.type_oid)));
            named.collect()
        });
        Answer::Done(Table {
            columns,
            rows,
            tag: result.tag,
        })
    }

    fn name(&self, oid: u32) -> String {
        self.types.get(&oid).map_or_else(
            // A type that a script has made, or a table's that it has made anew, has an OID of the server's own.
            || {
                if oid < FIRST_OF_USERS {
                    oid.to_string()
                } else {
                    NOT_FIXED.to_owned()
                }
            },
            |(name, _)| name.clone(),
        )
    }

    /// A binary value's digits, with the names of types in place of their OIDs: of an array's elements (array_send), of a
    /// composite's fields (record_send), at any depth.
    fn with_names(&self, of: u32, cell: &str) -> String {
        let holds = match self.types.get(&of) {
            Some((_, holds)) => *holds,
            None => Holds::Nothing,
        };
        let number = |at: usize| {
            cell.get(at..at + 8)
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        };
        let (mut out, mut at, element) = match (holds, number(0), number(16)) {
            // Dimensions, whether it has NULLs, the type, and a length and a lower bound for each dimension.
            (Holds::Elements, Some(dimensions), Some(element)) => {
                let at = 24 + dimensions as usize * 16;
                let Some(head) = cell.get(24..at) else {
                    return cell.to_owned();
                };
                let out = format!("{}{}{head}", &cell[..16], self.name(element));
                (out, at, Some(element))
            }
            (Holds::Fields, Some(_), _) => (cell[..8].to_owned(), 8, None),
            _ => return cell.to_owned(),
        };
        while at < cell.len() {
            let of = match element {
                Some(element) => element,
                None => {
                    let of = number(at).unwrap_or_default();
                    out.push_str(&self.name(of));
                    at += 8;
                    of
                }
            };
            let length = number(at).unwrap_or_default();
            let digits = if length == u32::MAX { 0 } else { length as usize * 2 };
            let Some(value) = cell.get(at + 8..at + 8 + digits) else {
                return cell.to_owned();
            };
            out.push_str(&format!("({length}){}", self.with_names(of, value)));
            at += 8 + digits;
        }
        out
    }
}
