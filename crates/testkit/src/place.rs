//! A clean place for each file, so that files cannot see each other's tables.

use crate::Result;
use crate::wire::Target;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What each file gets of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Nothing: files run in the database that the URL names, as they stand.
    #[default]
    None,
    /// A schema first in `search_path`, dropped afterwards.
    Schema,
    /// A database, dropped afterwards.
    Database,
}

/// Where one file runs.
pub(crate) struct Place {
    /// Connect here.
    pub(crate) target: Target,
    admin: Target,
    undo: Option<String>,
}

// Making and dropping databases can wait for a checkpoint.
const LIMIT: Duration = Duration::from_secs(120);

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Place {
    pub(crate) async fn make(target: &Target, isolation: Isolation) -> Result<Place> {
        let admin = target.clone();
        let name = format!("slt_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (make, undo, target) = match isolation {
            Isolation::None => {
                return Ok(Place {
                    target: target.clone(),
                    admin,
                    undo: None,
                });
            }
            Isolation::Schema => (
                format!("CREATE SCHEMA {name}"),
                format!("DROP SCHEMA {name} CASCADE"),
                target.clone().with_setting("search_path", &format!("{name},public")),
            ),
            Isolation::Database => (
                format!("CREATE DATABASE {name}"),
                format!("DROP DATABASE {name} WITH (FORCE)"),
                target.clone().with_database(&name),
            ),
        };
        let place = Place {
            target,
            admin,
            undo: Some(undo),
        };
        place.administrate(&make).await?;
        Ok(place)
    }

    pub(crate) async fn remove(self) -> Result<()> {
        match &self.undo {
            Some(undo) => self.administrate(undo).await,
            None => Ok(()),
        }
    }

    async fn administrate(&self, sql: &str) -> Result<()> {
        let mut session = self.admin.connect().await?;
        let outcome = session.execute(sql, LIMIT).await.map(|_| ());
        session.close().await;
        outcome
    }
}
