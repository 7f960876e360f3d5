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

/// A session with one of the servers.
pub(super) struct Side {
    target: Target,
    session: Session,
    limit: Duration,
    /// What a new session runs first.
    settings: Vec<String>,
    /// Names of the types that users made, whose OIDs nobody fixes.
    types: HashMap<u32, String>,
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
        let types = "SELECT oid, typname FROM pg_catalog.pg_type WHERE oid >= 16384";
        for row in self.session.execute(types, self.limit).await?.remove(0).rows {
            if let [Some(oid), Some(name)] = &row[..]
                && let Ok(oid) = oid.parse()
            {
                self.types.insert(oid, name.clone());
            }
        }
        Ok(())
    }

    /// Runs one generated statement.
    pub(super) async fn answer(&mut self, statement: &Rendered, carrier: Carrier) -> Result<Answer> {
        let (sql, limit) = (&statement.sql, self.limit);
        let reply = match carrier {
            Carrier::Simple => self.session.run(sql, Protocol::Simple, limit).await,
            Carrier::Text => self.session.run_with(sql, &statement.parameters, false, limit).await,
            Carrier::Binary => self.session.run_with(sql, &statement.parameters, true, limit).await,
        };
        match reply {
            Ok(reply) => Ok(self.read(reply)),
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

    fn read(&self, reply: Reply) -> Answer {
        if let Some(error) = reply.error {
            return Answer::Failed(error);
        }
        let Some(result) = reply.results.into_iter().last() else {
            return Answer::Done(Table::default());
        };
        let name = |oid: u32| self.types.get(&oid).cloned().unwrap_or_else(|| oid.to_string());
        let columns = result.columns.map(|columns| {
            let named = columns.into_iter().map(|column| (column.name, name(column.type_oid)));
            named.collect()
        });
        Answer::Done(Table {
            columns,
            rows: result.rows,
            tag: result.tag,
        })
    }
}
