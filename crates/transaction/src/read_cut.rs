//! A cut for one statement at READ COMMITTED: the I/O around [`crate::cut`].
//!
//! Every fragment of the statement is bound as a portal on its shard, between two portals that list markers; shards
//! whose snapshots turn out too old are bound again. Afterwards the caller executes the portals, as it likes: their
//! snapshots are taken. A statement on a single shard with a single fragment needs no markers and is only bound.

use crate::commit_gate::Gate;
use crate::cut::{self, Seen, stale};
use crate::gid::Gid;
use crate::transaction::Transaction;
use crate::{Coordinator, Error, housekeeping, resolver};
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use pgherd_model::{ServerError, ShardId};
use pgherd_shards::{Backend, parse_data_row};
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The markers that a snapshot shows, and which snapshot it is.
const MARKERS: &str = "SELECT pgherd.visible_markers($1, $2), pg_catalog.pg_current_snapshot()::text";
/// The number under which backends keep that statement; those of clients' statements begin at 1, a marker's own has 0.
const MARKERS_STATEMENT: u64 = u64::MAX;
const BEFORE: &str = "pgherd before";
const AFTER: &str = "pgherd after";
const TEXT_ARRAY: u32 = 1009;
const BIGINT_ARRAY: u32 = 1016;
/// How often single snapshots are taken again before commits are held off.
pub(crate) const EAGER_TRIES: u32 = 3;
/// How long a statement looks for a cut. A gateway that died in the middle of a commit is replaced in less.
pub(crate) const SEARCH_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a search begins anew because a round took longer than markers can be relied on: a gateway stood still, or waited for a lock.
pub(crate) const LATE_ROUNDS: u32 = 5;

/// What a statement reads on one shard.
#[derive(Debug, Clone)]
pub struct Fragment {
    /// the shard
    pub shard: ShardId,
    /// the portal to bind; names are unique on a shard
    pub portal: String,
    /// a SELECT; its snapshot is taken when the portal is bound
    pub sql: String,
    /// the parameters' types as OIDs of that shard, 0 or left out where it is to find out
    pub parameter_types: Vec<u32>,
    /// the parameters: whether binary, and the value
    pub parameters: Vec<(bool, Option<Bytes>)>,
    /// the results' formats as in Bind: none for text, one for all columns, or one per column
    pub result_formats: Vec<i16>,
    /// tables to lock IN ACCESS SHARE MODE first, as SQL: they are gone when the fragment's ranges have moved
    pub fences: Vec<Arc<str>>,
}

/// What is known to be settled as a cut begins, as parameters of [`MARKERS`].
pub(crate) struct Known {
    /// by sequence, the number up to which all are settled
    through: BTreeMap<String, i64>,
    sequences: String,
    settled: String,
}

impl Known {
    fn new(through: BTreeMap<String, i64>) -> Self {
        let list = |items: Vec<String>| format!("{{{}}}", items.join(","));
        Self {
            sequences: list(through.keys().cloned().collect()),
            settled: list(through.values().map(i64::to_string).collect()),
            through,
        }
    }

    /// The same as PostgreSQL writes arrays.
    pub(crate) fn as_arrays(&self) -> (&str, &str) {
        (&self.sequences, &self.settled)
    }

    /// The parameters of a query that lists markers.
    pub(crate) fn lists(&self) -> (Vec<&str>, Vec<i64>) {
        self.through
            .iter()
            .map(|(name, through)| (name.as_str(), *through))
            .unzip()
    }

    /// Whether it is visible in every snapshot taken from now on, and so left out of the lists.
    fn is_settled(&self, gid: &Gid) -> bool {
        let through = self.through.get(&gid.sequence.to_string());
        through.is_some_and(|through| gid.number as i64 <= *through)
    }

    /// Whether a transaction that was seen once is not known: its sequence is forgotten, since it is settled and no shard has markers
    /// of it any more, or it is younger than this knowledge.
    fn may_have_forgotten(&self, gid: &Gid) -> bool {
        !self.through.contains_key(&gid.sequence.to_string())
    }
}

impl Transaction {
    /// Binds the fragments so that together they see every transaction wholly or not at all, with this transaction's own
    /// writes. Portals of the same names are closed first.
    ///
    /// Errors: whatever a shard says to a fragment; 40001 when there was no cut to be had within 20 s.
    pub async fn open_cut(&mut self, fragments: &[Fragment]) -> Result<(), Error> {
        let mut by_shard: BTreeMap<ShardId, Vec<&Fragment>> = BTreeMap::new();
        for fragment in fragments {
            by_shard.entry(fragment.shard).or_default().push(fragment);
        }
        for (shard, fragments) in &by_shard {
            let fences: BTreeSet<&str> = fragments.iter().flat_map(|f| f.fences.iter().map(|f| &**f)).collect();
            self.participant(*shard).await?;
            self.catch_up_with(*shard, |other| by_shard.contains_key(&other));
            self.queue_before_fragment(*shard, &fences, by_shard.len());
        }
        if !self.needs_cuts() || (by_shard.len() <= 1 && fragments.len() <= 1) {
            let shards = by_shard.keys().copied().collect();
            return self.bind(&by_shard, &shards, None).await.map(|_| ());
        }
        self.search(&by_shard).await
    }

    async fn search(&mut self, by_shard: &BTreeMap<ShardId, Vec<&Fragment>>) -> Result<(), Error> {
        let coordinator = self.coordinator.clone();
        let all: BTreeSet<ShardId> = by_shard.keys().copied().collect();
        let (mut begun, mut late) = (Instant::now(), 0);
        let mut seen: BTreeMap<ShardId, Seen> = BTreeMap::new();
        let (mut known, mut known_since) = (coordinator.known().await?, Instant::now());
        for tries in 0_u32.. {
            // Alone, old snapshots are taken again. When that does not end, all are, while nobody commits.
            let step = tries % (EAGER_TRIES + 1);
            let refresh = if step == 0 || known_since.elapsed() > cut::TIME_LIMIT {
                all.clone()
            } else {
                let snapshots: Vec<_> = seen.iter().map(|(s, seen)| (*s, seen)).collect();
                stale(&snapshots, &self.seen_gids)
            };
            let gate = Gate::for_try(&coordinator, &all, tries).await;
            if refresh.len() == all.len() {
                (known, known_since) = self.settled_by_now(&coordinator).await?;
            }
            if tries > 0 && !refresh.is_empty() {
                metrics::counter!("pgherd_cut_retries_total").increment(1);
            }
            let bound = self.bind(by_shard, &refresh, Some(&known));
            seen.extend(Gate::hold_for(gate, bound).await?);
            if known_since.elapsed() > cut::TIME_LIMIT {
                // Markers that these lists lack may have been deleted since: they prove nothing.
                (begun, late) = (Instant::now(), late + 1);
                if late > LATE_ROUNDS {
                    return Err(coordinator.why_no_cut(&BTreeMap::new(), tries).await);
                }
                continue;
            }
            let snapshots: Vec<_> = seen.iter().map(|(s, seen)| (*s, seen)).collect();
            if stale(&snapshots, &self.seen_gids).is_empty() {
                break;
            }
            if begun.elapsed() > SEARCH_TIMEOUT {
                return Err(coordinator.why_no_cut(&seen, tries).await);
            }
            if tries > 3 * EAGER_TRIES {
                tokio::time::sleep(Duration::from_millis(rand::random_range(1..10))).await;
            }
        }
        // What was seen here must be seen by the statements that follow, too.
        self.seen_gids.extend(seen.into_values().flat_map(|s| s.before));
        Ok(())
    }

    /// What is known to be settled, and since when; what every snapshot shows from now on need not be looked for.
    pub(crate) async fn settled_by_now(&mut self, coordinator: &Coordinator) -> Result<(Known, Instant), Error> {
        let mut known = (coordinator.known().await?, Instant::now());
        let mut is_whole = false;
        if self.seen_gids.iter().any(|gid| known.0.may_have_forgotten(gid)) {
            // What is read now, after they were seen, tells.
            is_whole = housekeeping::learn_watermarks(coordinator).await?;
            known = (coordinator.known().await?, Instant::now());
        }
        self.seen_gids
            .retain(|gid| !(known.0.is_settled(gid) || is_whole && known.0.may_have_forgotten(gid)));
        Ok(known)
    }

    /// Binds the fragments of these shards, in parallel, and reads the markers around them.
    async fn bind(
        &mut self,
        by_shard: &BTreeMap<ShardId, Vec<&Fragment>>,
        shards: &BTreeSet<ShardId>,
        known: Option<&Known>,
    ) -> Result<BTreeMap<ShardId, Seen>, Error> {
        let backends = self.participants().filter(|(shard, _)| shards.contains(shard));
        let bound = join_all(backends.map(async |(shard, backend)| {
            let fragments = by_shard.get(&shard).map_or(&[][..], Vec::as_slice);
            let seen = bind_on(backend, fragments, known).await;
            // Every reply is read even after an error, so that the connection can be used for ROLLBACK.
            if seen.is_err() && !backend.is_broken() {
                let _ = backend.drain().await;
            }
            Ok((shard, seen?))
        }));
        bound.await.into_iter().collect()
    }
}

impl Coordinator {
    /// What this gateway knows to be settled by now, from itself and from others.
    pub(crate) async fn known(&self) -> Result<Known, Error> {
        let too_old = |at: Option<Instant>| at.is_none_or(|at| at.elapsed() > cut::KNOWLEDGE_LIMIT);
        if too_old(self.watermarks.read().read_at) {
            housekeeping::learn_watermarks(self).await?;
        }
        let mut through = self.watermarks.read().settled.clone();
        // Its own, this gateway knows best.
        let (own, settled) = self.sequence.watermark();
        through.insert(own.to_string(), settled);
        Ok(Known::new(through))
    }

    /// Waited long enough: a shard that has neither the marker nor the prepared transaction has lost it.
    pub(crate) async fn why_no_cut(&self, seen: &BTreeMap<ShardId, Seen>, tries: u32) -> Error {
        for gid in seen.values().flat_map(|s| &s.before) {
            let lacking = seen
                .iter()
                .filter(|(s, there)| gid.participants.contains(s) && !there.before.contains(gid));
            for (shard, _) in lacking {
                let name = gid.to_string();
                let prepared = resolver::is_prepared(self, *shard, &name).await;
                let marker = resolver::marker(self, *shard, &name).await;
                if matches!((prepared, marker), (Ok(false), Ok(None))) {
                    return Error::LostTransaction {
                        shard: *shard,
                        gid: name,
                    };
                }
            }
        }
        Error::NoCut { tries }
    }
}

/// One shard: markers, fragments, markers, in this order, in one pipeline.
async fn bind_on(backend: &mut Backend, fragments: &[&Fragment], known: Option<&Known>) -> Result<Seen, Error> {
    let prepares = known.is_some() && !backend.has_statement(MARKERS_STATEMENT);
    let out = backend.outbox();
    write_pipeline(out, fragments, known, prepares)
        .map_err(|e| Error::Internal(format!("a statement cannot be sent: {e}")))?;
    backend.expect_ready();
    backend.flush().await?;
    let mut lists = Vec::new();
    let mut failed = None;
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            // ParseComplete: the markers' comes first.
            b'1' if prepares => backend.add_statement(MARKERS_STATEMENT),
            b'D' => lists.push(parse_data_row(message.body)),
            b'E' if failed.is_none() => failed = Some(ServerError::from_body(&message.body)),
            b'Z' => break,
            _ => {}
        }
    }
    if let Some(e) = failed {
        return Err(e.into());
    }
    let mut lists = lists.into_iter().map(|row| {
        let text = |at: usize| {
            row.get(at)
                .and_then(|v: &Option<Bytes>| v.as_deref())
                .unwrap_or_default()
                .to_vec()
        };
        (parse_gids(&text(0)), text(1))
    });
    let (Some((before, first)), Some((after, last))) = (lists.next(), lists.next()) else {
        return Ok(Seen {
            is_one: true,
            ..Seen::default()
        });
    };
    Ok(Seen {
        is_one: fragments.len() <= 1 || first == last,
        before,
        after,
    })
}

type Wrong = Box<dyn std::error::Error + Send + Sync>;

fn write_pipeline(
    out: &mut BytesMut,
    fragments: &[&Fragment],
    known: Option<&Known>,
    prepares: bool,
) -> Result<(), Wrong> {
    let markers = format!("s{MARKERS_STATEMENT}");
    if prepares {
        frontend::parse(&markers, MARKERS, [TEXT_ARRAY, BIGINT_ARRAY], out)?;
    }
    if known.is_some() {
        frontend::close(b'P', BEFORE, out)?;
        frontend::close(b'P', AFTER, out)?;
    }
    for fragment in fragments {
        frontend::close(b'P', &fragment.portal, out)?;
    }
    if let Some(known) = known {
        write_markers(out, &markers, BEFORE, known)?;
    }
    for fragment in fragments {
        frontend::parse("", &fragment.sql, fragment.parameter_types.iter().copied(), out)?;
        let put = |value: &Option<Bytes>, out: &mut BytesMut| match value {
            Some(value) => {
                out.extend_from_slice(value);
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        };
        let formats = fragment.parameters.iter().map(|(binary, _)| i16::from(*binary));
        let values = fragment.parameters.iter().map(|(_, value)| value);
        let results = fragment.result_formats.iter().copied();
        frontend::bind(&fragment.portal, "", formats, values, put, results, out).map_err(bind_error)?;
    }
    if let Some(known) = known {
        write_markers(out, &markers, AFTER, known)?;
        for portal in [BEFORE, AFTER] {
            frontend::execute(portal, 0, out)?;
            frontend::close(b'P', portal, out)?;
        }
    }
    frontend::sync(out);
    Ok(())
}

fn write_markers(out: &mut BytesMut, statement: &str, portal: &str, known: &Known) -> Result<(), Wrong> {
    let put = |value: &String, out: &mut BytesMut| {
        out.extend_from_slice(value.as_bytes());
        Ok(IsNull::No)
    };
    frontend::bind(portal, statement, [], [&known.sequences, &known.settled], put, [0], out).map_err(bind_error)
}

fn bind_error(error: frontend::BindError) -> Wrong {
    match error {
        frontend::BindError::Conversion(e) => e,
        frontend::BindError::Serialization(e) => e.into(),
    }
}

/// An array of gids in PostgreSQL's text form; gids need no quotes.
pub(crate) fn parse_gids(array: &[u8]) -> BTreeSet<Gid> {
    let text = String::from_utf8_lossy(array);
    let inner = text
        .strip_prefix('{')
        .and_then(|t| t.strip_suffix('}'))
        .unwrap_or_default();
    inner.split(',').filter_map(Gid::parse).collect()
}
