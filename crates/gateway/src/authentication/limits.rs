//! How many sessions a role and a database may have: what `CONNECTION LIMIT` says, and the gateway's own limit per role.
//!
//! PostgreSQL counts connections, which sessions share here. So the gateway counts its sessions, and does not count those of
//! other gateways. Superusers are exempt, as in PostgreSQL, from what roles and databases say.

use super::Roles;
use crate::cancel::CancelRegistry;
use pgherd_model::{ServerError, SqlState};
use pgherd_shards::Identity;

/// -1: no limit.
const LIMITS: &str = "SELECT r.rolsuper, r.rolconnlimit, d.datconnlimit FROM pg_catalog.pg_roles r, pg_catalog.pg_database d \
     WHERE r.rolname = $1 AND d.datname = $2";

/// Refuses a session that is one too many; it is counted already.
///
/// # Errors
/// 53300.
pub(crate) async fn check(
    roles: &Roles,
    sessions: &CancelRegistry,
    who: &Identity,
    per_role: Option<usize>,
) -> Result<(), ServerError> {
    let of_role = sessions.sessions_where(|role, _| role == &*who.role);
    if per_role.is_some_and(|most| of_role > most) {
        return Err(too_many("role", &who.role)
            .with_hint("Raise max_clients_per_role in the gateway's configuration, or connect to another gateway."));
    }
    let rows = roles.query(LIMITS, &[&&*who.role, &&*who.database]).await?;
    let Some((false, role_limit, database_limit)) = rows
        .first()
        .map(|row| (row.get(0), row.get::<_, i32>(1), row.get::<_, i32>(2)))
    else {
        return Ok(());
    };
    let exceeds = |count: usize, limit: i32| usize::try_from(limit).is_ok_and(|limit| count > limit);
    if exceeds(of_role, role_limit) {
        return Err(too_many("role", &who.role));
    }
    if exceeds(sessions.sessions_of(&who.database), database_limit) {
        return Err(too_many("database", &who.database));
    }
    Ok(())
}

/// In PostgreSQL's words.
fn too_many(what: &str, name: &str) -> ServerError {
    ServerError::new(
        SqlState::TOO_MANY_CONNECTIONS,
        format!("too many connections for {what} \"{name}\""),
    )
}
