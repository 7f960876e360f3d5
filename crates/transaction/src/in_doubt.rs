//! Transactions that wait between the two phases: what is shown of them, and what an operator may do about one.
//!
//! Recovery finishes them by itself as soon as their outcome can be known. An operator asks for no other outcome than
//! recovery would find: [`Coordinator::resolve`] only says why it cannot be found, and what to do about that.

use crate::gid::{self, Gid};
use crate::resolver::{self, Listed, Resolution};
use crate::{Coordinator, Error};
use futures::future::join_all;
use pgherd_model::{ServerError, ShardId, SqlState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

/// From when on one is shown: commits take milliseconds.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// From when on one is worth a warning.
const WARNED_AFTER: Duration = Duration::from_secs(5);

/// Who asks.
#[derive(Debug, Clone)]
pub struct Requester {
    /// the role
    pub role: String,
    /// whether it may finish what others prepared
    pub is_superuser: bool,
}

/// How [`Coordinator::resolve`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// committed, or rolled back
    pub committed: bool,
    /// shards on which recovery has yet to finish it, since they do not answer
    pub outstanding: Vec<ShardId>,
}

/// Why a transaction was not finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// no shard has it
    #[error("prepared transaction with identifier \"{0}\" does not exist")]
    Unknown(String),
    /// neither a superuser nor the role that prepared it
    #[error("permission denied to finish prepared transaction")]
    NotAllowed,
    /// its own gateway is at work on it
    #[error("prepared transaction with identifier \"{gid}\" is busy")]
    Live {
        /// the transaction
        gid: String,
        /// the gateway's label
        gateway: String,
    },
    /// nobody can know its outcome before these shards answer
    #[error("the outcome of prepared transaction \"{gid}\" cannot be known yet")]
    Unreachable {
        /// the transaction
        gid: String,
        /// which do not answer
        shards: Vec<ShardId>,
    },
    /// it is committed on one shard and kept from being committed on another
    #[error("prepared transaction \"{gid}\" is committed on one shard and rolled back on another")]
    Torn {
        /// the transaction
        gid: String,
    },
    /// a client prepared it, and ends it
    #[error("prepared transaction with identifier \"{0}\" is a client's")]
    OfClient(String),
    /// others were at work on it all the time
    #[error("prepared transaction \"{gid}\" could not be finished in time")]
    Late {
        /// the transaction
        gid: String,
    },
}

impl Unresolved {
    pub(crate) fn sqlstate(&self) -> SqlState {
        match self {
            Unresolved::Unknown(_) => SqlState::UNDEFINED_OBJECT,
            Unresolved::NotAllowed => SqlState::INSUFFICIENT_PRIVILEGE,
            Unresolved::Live { .. }
            | Unresolved::Unreachable { .. }
            | Unresolved::OfClient(_)
            | Unresolved::Late { .. } => SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            Unresolved::Torn { .. } => SqlState::from_code("XX001"),
        }
    }

    pub(crate) fn explain(self, made: ServerError) -> ServerError {
        match self {
            Unresolved::Unknown(_) => made,
            Unresolved::NotAllowed => made.with_hint("Must be superuser or the user that prepared the transaction."),
            Unresolved::Live { gateway, .. } => made
                .with_detail(format!("Gateway \"{gateway}\" is alive and commits it."))
                .with_hint(
                    "It will be finished by that gateway. If that gateway hangs, stop it: others finish what it left when its lease is over.",
                ),
            Unresolved::Unreachable { shards, .. } => {
                let names: Vec<String> = shards.iter().map(ToString::to_string).collect();
                made.with_detail(format!("No answer from shard {}.", names.join(", "))).with_hint(
                    "Bring the shard back, or let its standby take over; the transaction is finished within seconds then.",
                )
            }
            Unresolved::Torn { .. } => made.with_hint(
                "One of the shards has lost what it had confirmed, as after a restore from an older backup. Compare the rows by hand, \
                 then COMMIT PREPARED or ROLLBACK PREPARED on the shard itself.",
            ),
            Unresolved::OfClient(_) => made.with_hint(
                "End it with COMMIT PREPARED or ROLLBACK PREPARED and its own name, which pg_prepared_xacts shows.",
            ),
            Unresolved::Late { .. } => made.with_hint("Try again."),
        }
    }
}

impl Coordinator {
    /// Finishes one transaction as recovery would.
    ///
    /// Errors: [`Error::Unresolved`].
    pub async fn resolve(&self, name: &str, by: &Requester) -> Result<Resolved, Error> {
        let unknown = || Unresolved::Unknown(name.to_owned());
        let gid = Gid::parse(name).filter(|g| self.is_ours(g)).ok_or_else(unknown)?;
        let listed_at = Instant::now();
        let looks = gid.participants.iter().map(async |shard| {
            let listed = async { resolver::list(self, self.state(*shard)?).await };
            (*shard, listed.await)
        });
        let (mut found, mut unreachable) = (Vec::new(), Vec::new());
        for (shard, listed) in join_all(looks).await {
            match listed {
                Ok(listed) => found.extend(listed.into_iter().filter(|l| l.gid == gid)),
                Err(_) => unreachable.push(shard),
            }
        }
        let out_of_reach = |shards| Unresolved::Unreachable {
            gid: name.to_owned(),
            shards,
        };
        if found.is_empty() && !unreachable.is_empty() && by.is_superuser {
            return Err(out_of_reach(unreachable).into());
        }
        // To others nothing is told of what may not be theirs.
        if found.is_empty() {
            return Err(unknown().into());
        }
        if !by.is_superuser && found.iter().any(|l| l.role != by.role) {
            return Err(Unresolved::NotAllowed.into());
        }
        if gid.is_of_client() {
            return Err(Unresolved::OfClient(name.to_owned()).into());
        }
        let live = resolver::live_gateways(self).await;
        if live.is_none() && !resolver::is_own(self, &gid) {
            return Err(out_of_reach(vec![self.shards.home()]).into());
        }
        if resolver::is_live(self, live.as_deref(), &gid) {
            let gateway = gid.sequence.gateway.clone();
            let gid = name.to_owned();
            return Err(Unresolved::Live { gid, gateway }.into());
        }
        let name = name.to_owned();
        match resolver::resolve(self, &gid, listed_at).await {
            Resolution::Settled { committed } => Ok(Resolved {
                committed,
                outstanding: Vec::new(),
            }),
            Resolution::Waits {
                shards,
                decided: Some(committed),
            } => Ok(Resolved {
                committed,
                outstanding: shards,
            }),
            Resolution::Waits { shards, decided: None } => Err(out_of_reach(shards).into()),
            Resolution::Torn => Err(Unresolved::Torn { gid: name }.into()),
            Resolution::Late => Err(Unresolved::Late { gid: name }.into()),
        }
    }

    fn is_ours(&self, gid: &Gid) -> bool {
        gid.cluster == gid::label(&self.identity.cluster)
            && gid.database == gid::database_hash(&self.database)
            && gid.participants.iter().all(|s| self.state(*s).is_ok())
    }
}

/// One transaction, as its shards list it.
pub(crate) struct Waiting {
    role: String,
    prepared_on: Vec<ShardId>,
    since: SystemTime,
}

/// Puts together what the shards listed.
pub(crate) fn by_transaction(listed: impl IntoIterator<Item = Listed>) -> BTreeMap<Gid, Waiting> {
    let mut all: BTreeMap<Gid, Waiting> = BTreeMap::new();
    for one in listed {
        let entry = all.entry(one.gid).or_insert_with(|| Waiting {
            role: one.role,
            prepared_on: Vec::new(),
            since: one.since,
        });
        entry.prepared_on.push(one.shard);
        entry.since = entry.since.min(one.since);
    }
    all
}

/// What this gateway has said of transactions that wait.
#[derive(Default)]
pub(crate) struct Watch {
    warned: BTreeSet<Gid>,
    /// the home shard's list may hold something of ours
    published: bool,
}

impl Watch {
    /// Tells of what recovery could not finish: by metrics, in the log (each of them once), and in `pgherd.transactions`.
    pub(crate) async fn tell(
        &mut self,
        coordinator: &Coordinator,
        listed: &BTreeMap<Gid, Waiting>,
        live: &[Gid],
        is_whole: bool,
    ) {
        let now = SystemTime::now();
        let age = |w: &Waiting| now.duration_since(w.since).unwrap_or_default();
        let shown: Vec<(&Gid, &Waiting)> = listed.iter().filter(|(_, w)| age(w) >= SHOWN_AFTER).collect();
        let of_live = shown.iter().filter(|(gid, _)| live.contains(gid)).count();
        let database = &coordinator.database;
        for (gateway, count) in [("live", of_live), ("dead", shown.len() - of_live)] {
            metrics::gauge!("pgherd_transactions_in_doubt", "database" => database.clone(), "gateway" => gateway)
                .set(count as f64);
        }
        let oldest = shown.iter().map(|(_, w)| age(w)).max().unwrap_or_default();
        metrics::gauge!("pgherd_transactions_in_doubt_oldest_seconds", "database" => database.clone())
            .set(oldest.as_secs_f64());
        self.warned.retain(|gid| listed.contains_key(gid));
        for (gid, waiting) in shown.iter().filter(|(_, w)| age(w) >= WARNED_AFTER) {
            if self.warned.insert((*gid).clone()) {
                let numbers = |shards: &[ShardId]| shards.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                tracing::warn!(
                    %gid,
                    gateway = gid.sequence.gateway,
                    gateway_is_alive = live.contains(gid),
                    participants = numbers(&gid.participants),
                    prepared_on = numbers(&waiting.prepared_on),
                    seconds = age(waiting).as_secs(),
                    "a transaction waits between the two phases of its commit, and holds its locks until it is finished"
                );
            }
        }
        if shown.is_empty() && !self.published {
            return;
        }
        match publish(coordinator, &shown, live, is_whole).await {
            Ok(()) => self.published = !shown.is_empty(),
            Err(e) => tracing::debug!("cannot show what waits between the two phases: {e}"),
        }
    }
}

/// Lets everybody see it, on the home shard. What other gateways found stays where this one could not look everywhere.
async fn publish(
    coordinator: &Coordinator,
    shown: &[(&Gid, &Waiting)],
    live: &[Gid],
    is_whole: bool,
) -> Result<(), Error> {
    let home = coordinator.state(coordinator.shards.home())?;
    let client = home.client(&coordinator.shards, &coordinator.database).await?;
    let names: Vec<String> = shown.iter().map(|(gid, _)| gid.to_string()).collect();
    if is_whole {
        let sql = "DELETE FROM pgherd.in_doubt WHERE gid <> ALL ($1)";
        home.within(client.execute(sql, &[&names])).await?;
    }
    let numbers = |shards: &[ShardId]| shards.iter().map(|s| s.0 as i32).collect::<Vec<i32>>();
    for (gid, waiting) in shown {
        let sql = "INSERT INTO pgherd.in_doubt (gid, gateway, role, participants, prepared_on, since, live) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (gid) DO UPDATE SET \
                   prepared_on = excluded.prepared_on, live = excluded.live, seen_at = clock_timestamp()";
        let (name, gateway) = (gid.to_string(), &gid.sequence.gateway);
        let (participants, prepared_on) = (numbers(&gid.participants), numbers(&waiting.prepared_on));
        let live = live.contains(gid);
        home.within(client.execute(
            sql,
            &[
                &name,
                gateway,
                &waiting.role,
                &participants,
                &prepared_on,
                &waiting.since,
                &live,
            ],
        ))
        .await?;
    }
    Ok(())
}
