//! One schema change at work: runs SQL on participants, gathers notices, and writes the catalog.

use crate::inspect::{Definition, Relation};
use crate::statement_text::StatementText;
use crate::{Outcome, Session};
use pgherd_catalog::{Change, restore_parent_names, sign};
use pgherd_model::{Epoch, Name, ServerError, ShardId, Sharded, Snapshot, SqlState, Table, TableKind, quote_literal};
use pgherd_shards::SimpleResult;
use pgherd_sql::{Ddl, DdlKind, ObjectName};
use pgherd_transaction::Transaction;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one attempt to lock a table waits on one shard. Then all that was locked is given up, so that whoever
/// holds the lock and waits for us can go on.
const LOCK_ATTEMPT: &str = "1s";
/// The same where nobody has been asked to stand back before: shorter than the search for deadlocks across shards waits, which would end
/// the statement.
const SHORT_ATTEMPT: &str = "300ms";
/// How long all attempts may take.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// The savepoint of this room's own.
const SAVEPOINT: &str = "pgherd_operation";

/// A statement's state.
pub(crate) struct Work<'w, 's> {
    pub session: &'w Session<'s>,
    pub transaction: &'w mut Transaction,
    change: &'w mut Option<Change>,
    pub snapshot: Arc<Snapshot>,
    notices: Vec<ServerError>,
    pub catalog_changed: bool,
    /// nobody else changes the statement's names any more
    held: bool,
    /// the role may not lock a table that it is to change: nothing has been done yet, and PostgreSQL has words of its own for it
    pub lock_refused: bool,
    writes: Vec<Value>,
}

impl<'w, 's> Work<'w, 's> {
    pub fn new(
        session: &'w Session<'s>,
        transaction: &'w mut Transaction,
        change: &'w mut Option<Change>,
    ) -> Work<'w, 's> {
        Work {
            snapshot: session.snapshot.clone().for_schema_change(),
            session,
            transaction,
            change,
            notices: Vec::new(),
            catalog_changed: false,
            held: false,
            lock_refused: false,
            writes: Vec::new(),
        }
    }

    pub fn home(&self) -> ShardId {
        self.session.shards.home()
    }

    pub fn shards(&self) -> Vec<ShardId> {
        self.session.shards.all().iter().map(|s| s.id).collect()
    }

    pub fn others(&self) -> Vec<ShardId> {
        let home = self.home();
        self.shards().into_iter().filter(|s| *s != home).collect()
    }

    /// Runs SQL on one shard. Notices of other shards than the home shard's are kept where the home shard did not say the same.
    pub async fn on(&mut self, shard: ShardId, sql: &str) -> Result<Vec<SimpleResult>, ServerError> {
        let home = self.home();
        let backend = self.transaction.participant(shard).await?;
        let result = backend.simple(sql).await;
        for mut notice in backend.take_notices() {
            restore_parent_names(&mut notice, &self.snapshot);
            let known = |n: &ServerError| say_the_same(n, &notice);
            if shard == home || !self.notices.iter().any(known) {
                self.notices.push(notice);
            }
        }
        self.transaction.wrote(shard);
        result.map_err(|e| {
            let mut error = self.worded(e.into());
            if sql
                .trim_start()
                .get(..5)
                .is_some_and(|word| word.eq_ignore_ascii_case("alter"))
            {
                name_dropped(&mut error);
            }
            error
        })
    }

    pub fn worded(&self, mut error: ServerError) -> ServerError {
        restore_parent_names(&mut error, &self.snapshot);
        error
    }

    /// Runs SQL on the home shard and returns the last command tag.
    pub async fn on_home(&mut self, sql: &str) -> Result<String, ServerError> {
        let results = self.on(self.home(), sql).await?;
        Ok(results.last().map(|r| r.tag.clone()).unwrap_or_default())
    }

    /// Runs SQL on these shards, one after the other in their order: all who lock several shards do it in that order.
    pub async fn on_each(&mut self, shards: &[ShardId], sql: &str) -> Result<(), ServerError> {
        for shard in shards {
            self.on(*shard, sql).await?;
        }
        Ok(())
    }

    /// Runs SQL on a shard; an error with one of these states undoes it there and is not an error.
    pub async fn tolerating(&mut self, shard: ShardId, sql: &str, states: &[&str]) -> Result<bool, ServerError> {
        self.on(shard, &format!("SAVEPOINT {SAVEPOINT}")).await?;
        match self.on(shard, sql).await {
            Ok(_) => {
                self.on(shard, &format!("RELEASE SAVEPOINT {SAVEPOINT}")).await?;
                Ok(true)
            }
            Err(e) if states.contains(&e.sqlstate().code()) => {
                self.undo(shard).await?;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Opens what [`Self::undo`] undoes.
    pub async fn attempt(&mut self, shard: ShardId) -> Result<(), ServerError> {
        self.on(shard, &format!("SAVEPOINT {SAVEPOINT}")).await.map(drop)
    }

    pub async fn keep(&mut self, shard: ShardId) -> Result<(), ServerError> {
        self.on(shard, &format!("RELEASE SAVEPOINT {SAVEPOINT}"))
            .await
            .map(drop)
    }

    pub async fn undo(&mut self, shard: ShardId) -> Result<(), ServerError> {
        let sql = format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}");
        self.on(shard, &sql).await.map(drop)
    }

    /// One value of the home shard, as text.
    pub async fn value(&mut self, sql: &str) -> Result<Option<String>, ServerError> {
        let results = self.on(self.home(), sql).await?;
        Ok(results.last().and_then(|r| r.text(0, 0)).map(str::to_owned))
    }

    /// Calls one of the functions that only gateways may use.
    pub async fn signed(&mut self, shard: ShardId, function: &str, payload: &str) -> Result<(), ServerError> {
        let called = self.signed_reading(shard, function, payload).await;
        self.transaction.wrote(shard);
        called
    }

    /// The same where it writes nothing.
    pub async fn signed_reading(&mut self, shard: ShardId, function: &str, payload: &str) -> Result<(), ServerError> {
        let secret = self.session.catalog.secret().to_owned();
        let backend = self.transaction.participant(shard).await?;
        let proof = sign(&secret, function, payload, backend.process_id());
        let sql = format!("SELECT pgherd.{function}($1, $2)");
        let called = backend.query(&sql, &[Some(payload), Some(&proof)]).await;
        called.map_err(|e| self.worded(e.into())).map(drop)
    }

    /// Announces the change of these names to all gateways and waits for them; the catalog is read anew then. An empty
    /// name stands for all.
    pub async fn announce<'n>(
        &mut self,
        names: impl IntoIterator<Item = &'n str>,
        what: &str,
    ) -> Result<(), ServerError> {
        self.hold(names, what).await?;
        self.catalog_changed = true;
        self.snapshot = self.look().await?;
        self.check_shown_epoch().await
    }

    /// The same before what changes nothing that gateways route by: the catalog is read anew only if it is another than the statement's.
    pub async fn reserve<'n>(
        &mut self,
        names: impl IntoIterator<Item = &'n str>,
        what: &str,
    ) -> Result<(), ServerError> {
        self.hold(names, what).await?;
        if self.shown_epoch().await? != self.session.snapshot.epoch {
            self.snapshot = self.look().await?;
        }
        self.check_shown_epoch().await
    }

    async fn hold<'n>(&mut self, names: impl IntoIterator<Item = &'n str>, what: &str) -> Result<(), ServerError> {
        let hash = |n: &str| if n.is_empty() { 0 } else { name_hash(n) };
        let mut names: Vec<u64> = names.into_iter().map(hash).collect();
        if !self.snapshot.ever_sharded {
            // SERIALIZABLE means another thing afterwards: nothing may run at it while some gateways know and others do not.
            names.push(pgherd_sql::level_hash());
        }
        let what: String = what.chars().take(200).collect();
        match self.change.as_mut() {
            Some(change) => change.extend(&names, &what).await?,
            None => *self.change = Some(self.session.catalog.begin_change(&names, &what).await?),
        }
        let payload = self.change.as_ref().map(Change::hold_payload);
        if let Some(payload) = payload {
            self.signed(self.home(), "hold_changes", &payload).await?;
        }
        self.held = true;
        Ok(())
    }

    /// Whether a statement that has held no names met the tables that it took them for. On the home shard it has seen, and locked, the newest; what
    /// it was told of them is as old as its snapshot, and a table that was sharded meanwhile lies on other shards as well.
    ///
    /// Errors: 40001, where another transaction has made, or dropped, a sharded table that the statement names or has dropped.
    pub async fn check_same_tables(&mut self, ddl: &Ddl, text: &StatementText<'_>) -> Result<(), ServerError> {
        let epoch = self.session.snapshot.epoch;
        if self.held || pgherd_catalog::is_of_open_transaction(epoch) {
            return Ok(());
        }
        let shown = match self.shows_one_snapshot() {
            true => self.session.catalog.refresh().await?.epoch,
            false => self.shown_epoch().await?,
        };
        if shown == epoch {
            return Ok(());
        }
        let latest = self.session.catalog.reach(shown).await?;
        let (before, now) = (places(&self.session.snapshot), places(&latest));
        let is_other = |name: &&Name| before.get(*name) != now.get(*name);
        let mut others = before.keys().chain(now.keys()).copied().filter(is_other);
        // An index does not tell its table's name.
        let may_mean_any = matches!(ddl.kind, DdlKind::AlterIndex | DdlKind::DropIndex);
        match !self.writes.is_empty() || others.any(|name| may_mean_any || text.mentions(&name.name)) {
            true => Err(met_another_change()),
            false => Ok(()),
        }
    }

    /// Nobody changes the held names any more. Where one snapshot serves the whole transaction, it must show who did before.
    async fn check_shown_epoch(&mut self) -> Result<(), ServerError> {
        if self.shows_one_snapshot() {
            let latest = self.session.catalog.refresh().await?.epoch;
            if self.shown_epoch().await? != latest {
                return Err(met_another_change());
            }
        }
        Ok(())
    }

    /// The epoch of the catalog that the transaction sees; the gateway may not have come so far.
    async fn shown_epoch(&mut self) -> Result<Epoch, ServerError> {
        let shown = self.value(SHOWN_EPOCH).await?;
        read_epoch(shown.as_deref())
    }

    /// Whether the transaction shows rows as they were before this statement.
    pub fn shows_one_snapshot(&self) -> bool {
        self.transaction.shows_one_snapshot()
    }

    /// What the catalog says by now, for comparing.
    pub async fn look(&mut self) -> Result<Arc<pgherd_model::Snapshot>, ServerError> {
        let (catalog, home) = (self.session.catalog.clone(), self.home());
        let loaded = catalog.load_through(self.transaction.participant(home).await?).await?;
        Ok(loaded.for_schema_change())
    }

    /// Reads the catalog again after own writes.
    pub async fn reload(&mut self) -> Result<(), ServerError> {
        self.write_catalog().await?;
        self.snapshot = self.look().await?;
        Ok(())
    }

    /// What a name is.
    pub fn resolve(&self, name: &ObjectName) -> Option<Arc<Table>> {
        self.resolve_name(name.schema.as_deref(), &name.name)
    }

    /// What a name with a schema, or without, is.
    pub fn resolve_name(&self, schema: Option<&str>, name: &str) -> Option<Arc<Table>> {
        match self.snapshot.resolve(schema, name, self.session.search_path) {
            pgherd_model::Resolved::Known(table) => Some(table),
            pgherd_model::Resolved::Home => None,
        }
    }

    /// The sharded table of this name.
    pub fn sharded(&self, name: &ObjectName) -> Option<Arc<Table>> {
        self.resolve(name).filter(|t| t.sharded().is_some())
    }

    /// The sharded table of this name, or that it is a partition of, if it may become local by itself.
    pub fn yielding(&self, name: &ObjectName) -> Option<Arc<Table>> {
        self.yielding_name(name.schema.as_deref(), &name.name)
    }

    /// The same by a name with a schema, or without.
    pub fn yielding_name(&self, schema: Option<&str>, name: &str) -> Option<Arc<Table>> {
        let table = self.resolve_name(schema, name)?;
        self.snapshot.whole(&table).filter(|t| t.may_yield()).cloned()
    }

    /// Locks these tables on these shards, shard by shard, and gives all locks up and tries again where one is not to be had soon.
    pub async fn lock(&mut self, shards: &[ShardId], tables: &[String], mode: &str) -> Result<(), ServerError> {
        if tables.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let sql = format!(
            "SET LOCAL lock_timeout = '{LOCK_ATTEMPT}'; LOCK TABLE {} IN {mode} MODE",
            tables.join(", ")
        );
        let configured = self.value("SELECT pg_catalog.current_setting('lock_timeout')").await?;
        let restore = format!(
            "SET LOCAL lock_timeout = {}",
            quote_literal(configured.as_deref().unwrap_or("0"))
        );
        loop {
            let mut opened = Vec::new();
            let mut failed = None;
            for shard in shards {
                self.attempt(*shard).await?;
                opened.push(*shard);
                if let Err(e) = self.on(*shard, &sql).await {
                    failed = Some(e);
                    break;
                }
            }
            for shard in &opened {
                match failed {
                    None => {
                        self.on(*shard, &restore).await?;
                        self.keep(*shard).await?;
                    }
                    Some(_) => self.undo(*shard).await?,
                }
            }
            match failed {
                None => return Ok(()),
                Some(e) if !yields(&e) || started.elapsed() > LOCK_PATIENCE => {
                    self.lock_refused = e.sqlstate() == SqlState::INSUFFICIENT_PRIVILEGE;
                    return Err(e);
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(rand::random_range(20..200))).await,
            }
        }
    }

    /// A catalog write, done together with the others at the end.
    pub fn write(&mut self, value: Value) {
        self.catalog_changed = true;
        self.writes.push(value);
    }

    pub async fn write_catalog(&mut self) -> Result<(), ServerError> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let payload = Value::Array(std::mem::take(&mut self.writes)).to_string();
        self.signed(self.home(), "write_catalog", &payload).await
    }

    /// Calls a function that locks tables on these shards, one after the other, and gives all locks up and tries again where one is not to be
    /// had soon. Writes nothing.
    pub async fn lock_by(&mut self, function: &str, payloads: &[(ShardId, String)]) -> Result<(), ServerError> {
        let started = Instant::now();
        let configured = self.value("SELECT pg_catalog.current_setting('lock_timeout')").await?;
        let restore = quote_literal(configured.as_deref().unwrap_or("0"));
        let open = format!("SAVEPOINT {SAVEPOINT}; SET LOCAL lock_timeout = '{SHORT_ATTEMPT}'");
        let keep = format!("SET LOCAL lock_timeout = {restore}; RELEASE SAVEPOINT {SAVEPOINT}");
        let undo = format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}");
        loop {
            let (mut opened, mut failed) = (Vec::new(), None);
            for (shard, payload) in payloads {
                self.control(*shard, &open).await?;
                opened.push(*shard);
                if let Err(e) = self.signed_reading(*shard, function, payload).await {
                    failed = Some(e);
                    break;
                }
            }
            for shard in opened {
                let end = if failed.is_none() { &keep } else { &undo };
                self.control(shard, end).await?;
            }
            match failed {
                None => return Ok(()),
                Some(e) if !yields(&e) || started.elapsed() > LOCK_PATIENCE => return Err(e),
                Some(_) => tokio::time::sleep(Duration::from_millis(rand::random_range(20..200))).await,
            }
        }
    }

    /// Runs what changes nothing but the transaction's own state.
    async fn control(&mut self, shard: ShardId, sql: &str) -> Result<(), ServerError> {
        let backend = self.transaction.participant(shard).await?;
        let done = backend.simple(sql).await;
        done.map(drop).map_err(|e| self.worded(e.into()))
    }

    /// Replaces a table's fence on every shard, so that statements with an older range map fail.
    pub async fn renew_fence(&mut self, sharded: &Sharded) -> Result<(), ServerError> {
        let next = sharded.fence_number + 1;
        let payload = json!({
            "drop": [*sharded.fence.name],
            "create": [*pgherd_catalog::fence_name(sharded.id, next).name],
        });
        for shard in self.shards() {
            self.signed(shard, "change_fences", &payload.to_string()).await?;
        }
        self.write(json!({"do": "set", "id": sharded.id.0, "fence": next}));
        Ok(())
    }

    /// Lets the role make indexes beside its tables' ranges on these shards, or no longer. Undone with what fails.
    pub async fn open_children(&mut self, shards: &[ShardId], open: bool) -> Result<(), ServerError> {
        let payload = json!({"open": open}).to_string();
        for shard in shards {
            self.signed(*shard, "open_children", &payload).await?;
        }
        Ok(())
    }

    /// Children get the owner, grants and index names that follow from their parents.
    pub async fn keep_children(&mut self, shards: &[ShardId], tables: &[Name]) -> Result<(), ServerError> {
        if tables.is_empty() {
            return Ok(());
        }
        let payload = json!(tables.iter().map(Name::to_string).collect::<Vec<_>>()).to_string();
        for shard in shards {
            self.signed(*shard, "keep_children", &payload).await?;
        }
        Ok(())
    }

    /// Where these tables' sequences are, which a statement is going to give other bounds: what [`Work::open_sequences`] takes.
    pub async fn sequence_values(&mut self, names: &[String]) -> Result<Option<String>, ServerError> {
        let names = quote_literal(&json!(names).to_string());
        self.value(&format!("SELECT pgherd.sequence_values({names})")).await
    }

    /// On all shards but the home shard, sequences have values that such bounds allow, until they are closed again.
    pub async fn open_sequences(&mut self, values: Option<&str>) -> Result<(), ServerError> {
        let Some(values) = values else { return Ok(()) };
        for shard in self.others() {
            self.signed(shard, "open_sequences", values).await?;
        }
        Ok(())
    }

    /// On all shards but the home shard, these tables' sequences give no values.
    pub async fn close_sequences(&mut self, names: &[String]) -> Result<(), ServerError> {
        let payload = json!(names).to_string();
        for shard in self.others() {
            self.signed(shard, "close_sequences", &payload).await?;
        }
        Ok(())
    }

    /// What the home shard knows of a relation, by a name as SQL writes it.
    pub async fn inspect(&mut self, name: &str) -> Result<Option<Relation>, ServerError> {
        let sql = format!("SELECT pgherd.inspect(pg_catalog.to_regclass({}))", quote_literal(name));
        match self.value(&sql).await? {
            Some(text) => serde_json::from_str(&text).map(Some).map_err(unreadable),
            None => Ok(None),
        }
    }

    /// How to make a table like this one.
    pub async fn definition(&mut self, name: &Name) -> Result<Definition, ServerError> {
        let sql = format!(
            "SELECT pgherd.definition({}::pg_catalog.regclass)",
            quote_literal(&name.to_string())
        );
        let text = self.value(&sql).await?.unwrap_or_default();
        serde_json::from_str(&text).map_err(unreadable)
    }

    pub fn notice(&mut self, text: impl Into<String>) {
        self.notices
            .push(ServerError::new(SqlState::SUCCESS, text).with_severity("NOTICE"));
    }

    /// Forgets notices of an attempt that was undone.
    pub fn truncate_notices(&mut self, count: usize) {
        self.notices.truncate(count);
    }

    /// Forgets notices since `from` that repeat an earlier one of these.
    pub fn say_once(&mut self, from: usize) {
        let mut said = std::collections::HashSet::new();
        let mut at = 0;
        self.notices.retain(|notice| {
            at += 1;
            at <= from || said.insert(notice.fields().message.clone())
        });
    }

    /// Whether anything has changed that gateways route by.
    pub fn has_changed_catalog(&self) -> bool {
        self.catalog_changed
    }

    pub fn into_notices(self) -> Vec<ServerError> {
        self.notices
    }

    pub fn notice_count(&self) -> usize {
        self.notices.len()
    }

    /// The end: writes the catalog.
    pub async fn finish(mut self, tag: String) -> Result<Outcome, ServerError> {
        self.write_catalog().await?;
        self.keep_views().await?;
        Ok(Outcome {
            tag,
            notices: self.notices,
            catalog_changed: self.catalog_changed,
            ..Outcome::default()
        })
    }

    /// Refuses what would show one shard's part only.
    pub fn refuse_refused(&self, table: &Table) -> Result<(), ServerError> {
        match &table.kind {
            TableKind::Refused { reason, .. } => Err(ServerError::unsupported(
                format!(
                    "relation \"{}\" cannot be used while it reaches sharded tables",
                    table.name.name
                ),
                "Drop what is named in the detail, or make the sharded table local with CALL pgherd.undistribute(…).",
            )
            .with_detail(reason.clone())),
            _ => Ok(()),
        }
    }
}

const MET_ANOTHER_CHANGE: &str = "could not serialize access due to a concurrent change of sharded tables";

pub(crate) fn met_another_change() -> ServerError {
    ServerError::new(SqlState::SERIALIZATION_FAILURE, MET_ANOTHER_CHANGE).with_hint("Repeat the transaction.")
}

/// Asks the home shard for the epoch that the transaction sees.
pub const SHOWN_EPOCH: &str = "SELECT pgherd.shown_epoch()";

/// The answer to [`SHOWN_EPOCH`].
///
/// # Errors
/// XX000 for anything but a number.
pub fn read_epoch(shown: Option<&str>) -> Result<Epoch, ServerError> {
    let epoch = shown.and_then(|shown| shown.parse().ok()).map(Epoch);
    epoch.ok_or_else(|| ServerError::internal("the home shard tells no epoch"))
}

/// Whether a schema change failed since another was in its way, and may do when it is run again.
pub fn has_met_another_change(error: &ServerError) -> bool {
    error.sqlstate() == SqlState::SERIALIZATION_FAILURE && error.fields().message == MET_ANOTHER_CHANGE
}

/// The sharded tables, and the declared partitions, each with the number of its table.
fn places(snapshot: &Snapshot) -> HashMap<&Name, u32> {
    let tables = snapshot
        .relations
        .values()
        .flatten()
        .filter_map(|(_, table)| table.as_ref());
    let placed = tables.filter_map(|table| {
        let whole = match &table.kind {
            TableKind::Sharded(sharded) => Some(&**sharded),
            TableKind::Partition { parent, .. } => snapshot.table(parent)?.sharded(),
            _ => None,
        };
        Some((&table.name, whole?.id.0))
    });
    placed.collect()
}

/// A stable hash of a relation's name; the same that statements enter with.
fn name_hash(name: &str) -> u64 {
    pgherd_sql::name_hash(name)
}

/// A lock that somebody else holds, perhaps waiting for one of ours.
pub(crate) fn yields(error: &ServerError) -> bool {
    matches!(
        error.sqlstate(),
        SqlState::LOCK_NOT_AVAILABLE | SqlState::DEADLOCK_DETECTED
    )
}

fn unreadable(error: serde_json::Error) -> ServerError {
    ServerError::internal(format!("the catalog's description cannot be read: {error}"))
}

/// Whether the home shard has said what this notice of another shard says. What goes along with a CASCADE is counted and listed
/// in one notice, in which the home shard has more: local tables and their views.
fn say_the_same(home: &ServerError, other: &ServerError) -> bool {
    let lists_dependents = |n: &ServerError| {
        let reporter = (b'R', "reportDependentObjects");
        n.fields()
            .other
            .iter()
            .any(|(field, value)| (*field, value.as_str()) == reporter)
    };
    home.fields().message == other.fields().message || lists_dependents(home) && lists_dependents(other)
}

/// A column of a table with partitions is several columns, of which PostgreSQL tells no name; its user knows one.
fn name_dropped(error: &mut ServerError) {
    const UNNAMED: &str = "cannot drop desired object(s) because other objects depend on them";
    let fields = error.fields_mut();
    if fields.message != UNNAMED {
        return;
    }
    let first = fields.detail.as_deref().and_then(|detail| detail.lines().next());
    if let Some((_, dropped)) = first.and_then(|line| line.rsplit_once(" depends on ")) {
        fields.message = format!("cannot drop {dropped} because other objects depend on it");
    }
}
