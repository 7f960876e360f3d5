//! The rows of `pgherd.client_transaction`, on the home shard: which transactions clients have prepared, and how they end.

use super::decide::Record;
use crate::gid::Gid;
use crate::shard_state::ShardState;
use crate::{Coordinator, Error};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::Client;

/// A row, as one who would end the transaction sees it.
pub(super) struct Found {
    pub gid: Gid,
    pub record: Record,
    /// by this role
    pub may_be_ended: bool,
}

async fn home(coordinator: &Coordinator) -> Result<(&ShardState, Arc<Client>), Error> {
    let state = coordinator.state(coordinator.shards.home())?;
    let client = state.client(&coordinator.shards, &coordinator.database).await?;
    Ok((state, client))
}

fn record_of(state: &str) -> Record {
    match state {
        "preparing" => Record::Preparing,
        "prepared" => Record::Prepared,
        "commit" => Record::Commit,
        _ => Record::RollBack,
    }
}

fn state_of(record: Record) -> &'static str {
    match record {
        Record::Preparing => "preparing",
        Record::Prepared => "prepared",
        Record::Commit => "commit",
        Record::RollBack | Record::Missing => "rollback",
    }
}

/// Takes a name for a transaction of this role; false where it is in use.
pub(super) async fn insert(
    coordinator: &Coordinator,
    name: &str,
    gid: &str,
    role: &str,
    marked: bool,
) -> Result<bool, Error> {
    let (state, client) = home(coordinator).await?;
    let sql = "INSERT INTO pgherd.client_transaction (name, gid, owner, state, marked) \
               VALUES ($1, $2, (SELECT oid FROM pg_roles WHERE rolname = $3), 'preparing', $4) \
               ON CONFLICT (name) DO NOTHING";
    let inserted = state
        .within(client.execute(sql, &[&name, &gid, &role, &marked]))
        .await?;
    Ok(inserted == 1)
}

/// The row of that name.
pub(super) async fn find(coordinator: &Coordinator, name: &str, role: &str) -> Result<Option<Found>, Error> {
    let (state, client) = home(coordinator).await?;
    let sql = "SELECT t.gid, t.state, coalesce(r.rolsuper OR r.oid = t.owner, false) \
               FROM pgherd.client_transaction t LEFT JOIN pg_roles r ON r.rolname = $2 WHERE t.name = $1";
    let row = state.within(client.query_opt(sql, &[&name, &role])).await?;
    row.map(|row| {
        let gid: &str = row.get(0);
        Ok(Found {
            gid: Gid::parse(gid).ok_or_else(|| Error::Internal(format!("\"{gid}\" is no gid")))?,
            record: record_of(row.get(1)),
            may_be_ended: row.get(2),
        })
    })
    .transpose()
}

/// What the row of that gid says, and whether it wrote markers.
pub(super) async fn read(coordinator: &Coordinator, gid: &str) -> Result<(Record, bool), Error> {
    let (state, client) = home(coordinator).await?;
    let sql = "SELECT state, marked FROM pgherd.client_transaction WHERE gid = $1";
    let row = state.within(client.query_opt(sql, &[&gid])).await?;
    Ok(row.map_or((Record::Missing, true), |row| (record_of(row.get(0)), row.get(1))))
}

/// All rows.
pub(super) async fn all(coordinator: &Coordinator) -> Result<HashMap<Gid, Record>, Error> {
    let (state, client) = home(coordinator).await?;
    let sql = "SELECT gid, state FROM pgherd.client_transaction";
    let rows = state.within(client.query(sql, &[])).await?;
    let rows = rows
        .iter()
        .filter_map(|row| Some((Gid::parse(row.get(0))?, record_of(row.get(1)))));
    Ok(rows.collect())
}

/// From one state to another; false where the row is not in that state, or gone. When this returns true it is as durable as
/// the home shard makes things. 08007 where nobody can say.
pub(super) async fn change(coordinator: &Coordinator, gid: &str, from: Record, to: Record) -> Result<bool, Error> {
    let (state, client) = home(coordinator).await?;
    let sql = "UPDATE pgherd.client_transaction SET state = $3, \
               prepared_at = CASE WHEN $3 = 'prepared' THEN clock_timestamp() ELSE prepared_at END \
               WHERE gid = $1 AND state = $2";
    let changed = state
        .within(client.execute(sql, &[&gid, &state_of(from), &state_of(to)]))
        .await;
    match changed {
        Ok(rows) => Ok(rows == 1),
        // A server that goes down says so with a FATAL, whatever became of the statement.
        Err(Error::Shard(pgherd_shards::Error::Server(e))) if e.fields().severity == "ERROR" => Err(e.into()),
        Err(e) => Err(Error::OutcomeUnknown { cause: e.to_string() }),
    }
}

/// It has ended everywhere, and its name is free again.
pub(super) async fn delete(coordinator: &Coordinator, gid: &str) -> Result<(), Error> {
    let (state, client) = home(coordinator).await?;
    let sql = "DELETE FROM pgherd.client_transaction WHERE gid = $1 AND state IN ('commit', 'rollback')";
    state.within(client.execute(sql, &[&gid])).await.map(|_| ())
}
