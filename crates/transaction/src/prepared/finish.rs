//! COMMIT PREPARED and ROLLBACK PREPARED of a client, through any gateway.

use super::decide::Record;
use super::recovery::{Ending, resolve};
use super::{Step, busy, not_allowed, pass, record, unknown_name};
use crate::gid::Gid;
use crate::local_gate::Group;
use crate::recovery::Observation;
use crate::{Coordinator, Error, resolver};
use std::sync::Arc;

/// How a client ends what it prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// COMMIT PREPARED
    Commit,
    /// ROLLBACK PREPARED
    RollBack,
}

impl Coordinator {
    /// Ends a transaction that was prepared under this name, by whatever session and gateway, as `role`.
    ///
    /// Once it is called the outcome no longer depends on the caller.
    ///
    /// Errors: 42704 where there is none, 55000 while somebody ends it, 42501 where the role may not; 57P03 when one of its shards
    /// does not answer before it is decided; 08007 where nobody can say whether it is.
    pub async fn end_prepared(self: &Arc<Self>, name: &str, role: &str, end: End) -> Result<(), Error> {
        let (this, name, role) = (self.clone(), name.to_owned(), role.to_owned());
        let task = tokio::spawn(async move { end_by_name(&this, &name, &role, end).await });
        task.await.map_err(|e| Error::OutcomeUnknown { cause: e.to_string() })?
    }
}

async fn end_by_name(coordinator: &Coordinator, name: &str, role: &str, end: End) -> Result<(), Error> {
    let found = match record::find(coordinator, name, role).await? {
        None => return Err(unknown_name(name)),
        Some(found) => found,
    };
    match found.record {
        Record::Prepared => {}
        // PostgreSQL, too, shows one only when it is prepared.
        Record::Preparing | Record::Missing => return Err(unknown_name(name)),
        Record::Commit | Record::RollBack => return Err(busy(name)),
    }
    if !found.may_be_ended {
        return Err(not_allowed());
    }
    let (gid, decided) = (found.gid, record_for(end));
    let text = gid.to_string();
    let (_, marked) = record::read(coordinator, &text).await?;
    if end == End::Commit {
        check_all_have_it(coordinator, &gid, &text).await?;
    }
    if !record::change(coordinator, &text, Record::Prepared, decided).await? {
        return Err(match record::find(coordinator, name, role).await? {
            Some(_) => busy(name),
            None => unknown_name(name),
        });
    }
    pass(coordinator, Step::Decided)?;
    // As a commit in two phases: a cut that is being taken keeps it out for a moment.
    let passage = coordinator
        .gate
        .enter(Group::Commit, gid.participants.iter().copied().collect(), None);
    let passage = passage.await;
    let ending = resolve(coordinator, &gid, false, Some((decided, marked))).await?;
    drop(passage);
    if let Ending::Stuck(shards) = ending {
        // It is decided. Nobody may look at a shard that does not show it yet.
        for shard in shards {
            if end == End::Commit {
                coordinator.state(shard)?.owe(&gid);
            }
        }
        coordinator.wake.notify_one();
    }
    Ok(())
}

fn record_for(end: End) -> Record {
    match end {
        End::Commit => Record::Commit,
        End::RollBack => Record::RollBack,
    }
}

/// Before it is decided: a shard that has lost it would be the one that lacks it afterwards.
async fn check_all_have_it(coordinator: &Coordinator, gid: &Gid, text: &str) -> Result<(), Error> {
    for (shard, seen) in resolver::observe(coordinator, gid, text).await {
        match seen {
            Observation::Prepared => {}
            Observation::Unreachable => {
                let cause = "it does not answer".into();
                return Err(Error::NotReady { shard, cause });
            }
            // Somebody else has decided; his decision is met below.
            Observation::Committed => {}
            Observation::Missing | Observation::Fenced => {
                // It may have ended since its row was read.
                if record::read(coordinator, text).await?.0 == Record::Prepared {
                    let gid = text.to_owned();
                    return Err(Error::LostTransaction { shard, gid });
                }
            }
        }
    }
    Ok(())
}
