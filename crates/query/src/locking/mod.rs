//! FOR UPDATE and its kin where the rows of joins, or of queries that only PostgreSQL understands, lie on several shards.
//!
//! 1. PostgreSQL judges the statement on the home shard (EXPLAIN): what may be locked, and by whom.
//! 2. The statement runs by gathering, without its locking clauses. Beside each row of its result stands which rows of the locked
//!    relations it was made of: shard, table, place and version.
//! 3. Those rows are locked where they are, as many as LIMIT wants, in batches for each shard. What SKIP LOCKED could not lock is
//!    left out, and further rows of the result take their place.
//! 4. A row that somebody has changed since it was read is not there in its version any more. At READ COMMITTED its newest version
//!    is locked and the statement is run again, with all locks kept: PostgreSQL, too, looks at a changed row again once it has
//!    it. In one snapshot it is 40001, as in PostgreSQL.
//!
//! Simple queries on one table lock while they are read, see [`crate::plan`].

mod clauses;

use crate::gather::{self, Marked, Marks};
use crate::plan::row::{RowWriter, fields, messages};
use crate::relay::{self, RowBatch};
use crate::rows::Rows;
use crate::statement::Statement;
use crate::views::{self, ParsedQuery, Which};
use crate::{Fragment, Transaction};
use clauses::{Clauses, Policy};
use pgherd_model::{ServerError, ShardId, SqlState, quote_literal};
use pgherd_sql::LockStrength;
use sqlparser::ast::{Expr, LimitClause, SetExpr, TableFactor, TableWithJoins, Value};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How often a statement is run again because others changed its rows.
const MOST_TRIES: u32 = 100;
/// The rows of a result are kept until they are locked.
const MOST_BYTES: usize = 512 << 20;
/// Rows that are locked by one statement on a shard.
const BATCH_ROWS: usize = 5000;
/// How often a row may be changed between looking for it and locking it.
const FOLLOW_LIMIT: u32 = 100;

/// A relation whose rows are locked.
struct Lock {
    /// the byte at which the statement names it
    at: usize,
    /// what qualifies its columns
    alias: String,
    strength: LockStrength,
    policy: Policy,
}

/// A locking SELECT, taken apart.
pub(crate) struct Locking {
    locks: Vec<Lock>,
    /// the statement that is gathered
    text: String,
    list_end: usize,
    has_list: bool,
    skip: u64,
    limit: Option<u64>,
}

/// One version of a row of a relation: `shard/tableoid/ctid/xmin`.
type Identity = String;

fn not_supported(detail: &str) -> ServerError {
    ServerError::unsupported(
        "FOR UPDATE and FOR SHARE are not supported in this query over several shards",
        "Lock rows of the tables that the query itself names in FROM.",
    )
    .with_detail(detail)
}

/// Whether the statement's own tree locks rows.
pub(crate) fn is_locking(statement: &Statement<'_>) -> bool {
    match statement.ast {
        sqlparser::ast::Statement::Query(query) => !query.locks.is_empty(),
        _ => false,
    }
}

impl Locking {
    /// Reads the statement. Errors: 0A000 for what cannot be done exactly.
    pub fn read(statement: &Statement<'_>) -> Result<Self, ServerError> {
        let found = clauses::find(statement.text).ok_or_else(|| not_supported("A subquery of it locks rows."))?;
        let unlocked = Statement {
            text: &found.text,
            ..*statement
        };
        if views::expand(&unlocked, None, Which::All)?.has_views {
            return Err(not_supported("It reads a view over sharded tables."));
        }
        let parsed = views::parse_query(&found.text)?;
        let locks = locks(&parsed, &found)?;
        let skips = locks.iter().any(|lock| lock.policy == Policy::Skip);
        let (skip, limit) = bounds(&parsed, statement)?;
        // What LIMIT leaves out is not read at all, where no row is passed over before it.
        let counts = skips || skip.is_none_or(|skip| skip > 0);
        let (skip, limit) = match (counts, skip, limit) {
            (false, ..) => (0, None),
            (true, Some(skip), Some(limit)) => (skip, limit),
            _ => return Err(not_supported("Its LIMIT or OFFSET is no constant.")),
        };
        Ok(Self {
            locks,
            text: if counts { found.unlimited } else { found.text },
            list_end: found.list_end,
            has_list: found.has_list,
            skip,
            limit,
        })
    }

    fn marks(&self) -> Marks {
        let marked = self.locks.iter().map(|lock| (lock.at, lock.alias.clone()));
        Marks {
            relations: marked.collect(),
            list_end: self.list_end,
            has_list: self.has_list,
        }
    }
}

/// The relations in FROM that the clauses lock.
fn locks(parsed: &ParsedQuery, found: &Clauses) -> Result<Vec<Lock>, ServerError> {
    let SetExpr::Select(select) = &*parsed.query.body else {
        return Err(not_supported("It is no plain SELECT."));
    };
    let mut items = Vec::new();
    for tree in &select.from {
        collect(tree, parsed, &mut items)?;
    }
    let mut locks: Vec<Lock> = Vec::new();
    for clause in &found.locks {
        for item in &items {
            let named = clause.of.contains(&item.alias);
            if !named && !clause.of.is_empty() {
                continue;
            }
            let Some(at) = item.at else {
                match item.reads_tables {
                    true => return Err(not_supported("A subquery in FROM would have its rows locked.")),
                    false => continue,
                }
            };
            match locks.iter_mut().find(|lock| lock.at == at) {
                Some(lock) => {
                    lock.strength = lock.strength.max(clause.strength);
                    lock.policy = lock.policy.max(clause.policy);
                }
                None => locks.push(Lock {
                    at,
                    alias: item.alias.clone(),
                    strength: clause.strength,
                    policy: clause.policy,
                }),
            }
        }
    }
    Ok(locks)
}

/// Something in FROM.
struct Item {
    /// where its name begins; None for what is no table
    at: Option<usize>,
    alias: String,
    /// a subquery over tables
    reads_tables: bool,
}

fn collect(tree: &TableWithJoins, parsed: &ParsedQuery, items: &mut Vec<Item>) -> Result<(), ServerError> {
    let factors = std::iter::once(&tree.relation).chain(tree.joins.iter().map(|join| &join.relation));
    for factor in factors {
        match factor {
            TableFactor::NestedJoin {
                table_with_joins,
                alias: None,
            } => collect(table_with_joins, parsed, items)?,
            TableFactor::NestedJoin { .. } => return Err(not_supported("A join in FROM has a name of its own.")),
            TableFactor::Derived { subquery, alias, .. } => items.push(Item {
                at: None,
                alias: alias
                    .as_ref()
                    .map(|a| crate::relations::fold(&a.name))
                    .unwrap_or_default(),
                reads_tables: !crate::relations::Relations::of(subquery)?.mentions.is_empty(),
            }),
            TableFactor::Table { name, args: None, .. } => {
                let first = name.0.first().and_then(|p| p.as_ident());
                let at = first.and_then(|i| (i.span.start.column as usize).checked_sub(1));
                let mention = parsed.relations.mentions.iter().find(|m| Some(m.span.start) == at);
                // Names of WITH are not locked, which PostgreSQL passes over too.
                if let Some(mention) = mention {
                    items.push(Item {
                        at,
                        alias: mention.alias.clone().unwrap_or_else(|| mention.name.clone()),
                        reads_tables: true,
                    });
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// OFFSET and LIMIT; None for what is no constant.
fn bounds(parsed: &ParsedQuery, statement: &Statement<'_>) -> Result<(Option<u64>, Option<Option<u64>>), ServerError> {
    let query = &parsed.query;
    let count = |expr: &Expr| row_count(expr, statement);
    let (mut skip, mut limit) = (Some(0), Some(None));
    if let Some(clause) = &query.limit_clause {
        let LimitClause::LimitOffset {
            limit: rows, offset, ..
        } = clause
        else {
            return Err(not_supported("Its LIMIT is not understood."));
        };
        if let Some(offset) = offset {
            skip = count(&offset.value).map(Option::unwrap_or_default);
        }
        if let Some(rows) = rows {
            limit = count(rows);
        }
    }
    if let Some(fetch) = &query.fetch {
        limit = match &fetch.quantity {
            _ if fetch.with_ties || fetch.percent => None,
            Some(rows) => count(rows),
            None => Some(Some(1)),
        };
    }
    Ok((skip, limit))
}

/// A constant or a parameter; Some(None) for NULL.
fn row_count(expr: &Expr, statement: &Statement<'_>) -> Option<Option<u64>> {
    let Expr::Value(value) = expr else { return None };
    match &value.value {
        Value::Number(number, _) => number.parse().ok().map(Some),
        Value::Null => Some(None),
        Value::Placeholder(name) => {
            let number: usize = name.strip_prefix('$')?.parse().ok()?;
            match statement.parameters.get(number.checked_sub(1)?)? {
                (_, None) => Some(None),
                (true, Some(bytes)) => u64::try_from(i64::from_be_bytes(bytes[..].try_into().ok()?))
                    .ok()
                    .map(Some),
                (false, Some(bytes)) => std::str::from_utf8(bytes).ok()?.trim().parse().ok().map(Some),
            }
        }
        _ => None,
    }
}

/// What a locking SELECT reads of which shard, for EXPLAIN.
pub(crate) async fn fragments(
    statement: &Statement<'_>,
    transaction: &mut Transaction,
) -> Result<Vec<(Option<String>, Fragment)>, ServerError> {
    let locking = Locking::read(statement)?;
    let gathered = Statement {
        text: &locking.text,
        ..*statement
    };
    gather::fragments(&gathered, None, transaction).await
}

/// Runs a locking SELECT. `columns` are those of its result.
pub(crate) async fn select(
    statement: &Statement<'_>,
    columns: usize,
    transaction: &mut Transaction,
) -> Result<Rows<'static>, ServerError> {
    let locking = Locking::read(statement)?;
    judge(statement, transaction).await?;
    let follows = !transaction.shows_one_snapshot();
    for _ in 0..MOST_TRIES {
        let mut attempt = Attempt {
            statement,
            locking: &locking,
            columns,
            relations: Vec::new(),
            changed: false,
        };
        let rows = attempt.run(transaction).await?;
        if !attempt.changed {
            return Ok(Rows::ready(rows));
        }
        if !follows {
            break;
        }
    }
    Err(ServerError::new(
        SqlState::SERIALIZATION_FAILURE,
        "could not serialize access due to concurrent update",
    ))
}

/// What PostgreSQL says against the statement: of outer joins, of aggregates, of the role's rights.
async fn judge(statement: &Statement<'_>, transaction: &mut Transaction) -> Result<(), ServerError> {
    let home = transaction.participant(statement.snapshot.home()).await?;
    let head = "EXPLAIN ";
    let text = format!("{head}{}", statement.text);
    relay::send(home, &text, statement.parameter_types, statement.parameters, &[]).await?;
    let position = |error: ServerError| {
        let at = error.fields().position.map(|at| at - (head.len() as u32).min(at));
        error.with_position(at)
    };
    let judged = home.drain().await;
    judged.map_err(|error| position(error.into()))
}

/// One try.
struct Attempt<'a> {
    statement: &'a Statement<'a>,
    locking: &'a Locking,
    columns: usize,
    /// as gathered, in the order of the locks
    relations: Vec<Marked>,
    /// somebody has changed a row since it was read
    changed: bool,
}

impl Attempt<'_> {
    async fn run(&mut self, transaction: &mut Transaction) -> Result<RowBatch, ServerError> {
        let locks = self.locking.locks.len();
        let mut formats: Vec<i16> = match self.statement.result_formats {
            [] => vec![0; self.columns],
            [one] => vec![*one; self.columns],
            all => all.to_vec(),
        };
        formats.extend((0..locks).map(|_| 0));
        let gathered = Statement {
            text: &self.locking.text,
            result_formats: &formats,
            ..*self.statement
        };
        let (mut rows, relations) = gather::select_marked(&gathered, &self.locking.marks(), transaction).await?;
        self.relations = relations;
        self.check(transaction).await?;
        let (mut messages_read, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = rows.next().await? {
            bytes += batch.bytes.len();
            messages_read.extend(messages(&batch.bytes).map(<[u8]>::to_vec));
            if bytes > MOST_BYTES {
                return Err(not_supported("It has too many rows."));
            }
        }
        transaction.note_notices(rows.take_notices());
        drop(rows);
        self.lock_and_return(&messages_read, transaction).await
    }

    /// Rows are read where they are, with columns that the client's statement did not name.
    async fn check(&self, transaction: &mut Transaction) -> Result<(), ServerError> {
        let home = transaction.participant(self.statement.snapshot.home()).await?;
        let names: Vec<_> = self.relations.iter().map(|r| quote_literal(&r.name)).collect();
        let sql = format!(
            "SELECT pg_catalog.bool_and(c.relkind IN ('r', 'p') AND NOT c.relrowsecurity \
             AND pg_catalog.has_table_privilege(c.oid, 'SELECT'))::text \
             FROM pg_catalog.unnest(ARRAY[{}]::text[]) AS n(n) JOIN pg_catalog.pg_class c ON c.oid = n.n::regclass",
            names.join(", ")
        );
        let answer = home.simple(&sql).await?;
        match answer.first().and_then(|r| r.text(0, 0)) {
            Some("true") => Ok(()),
            _ if self.relations.is_empty() => Ok(()),
            _ => Err(not_supported(
                "A relation of it is no table, has row level security, or may be read in parts only.",
            )),
        }
    }

    async fn lock_and_return(
        &mut self,
        rows: &[Vec<u8>],
        transaction: &mut Transaction,
    ) -> Result<RowBatch, ServerError> {
        let mut out = RowBatch::default();
        let (mut skip, mut left, mut rest) = (self.locking.skip, self.locking.limit, rows);
        loop {
            let wanted = left.map_or(rest.len() as u64, |left| left.saturating_add(skip));
            let (next, behind) = rest.split_at(rest.len().min(usize::try_from(wanted).unwrap_or(usize::MAX)));
            rest = behind;
            let locked = self.lock(next, transaction).await?;
            if self.changed {
                return Ok(out);
            }
            for row in next {
                let (row, identities) = self.take_apart(row)?;
                let held = |(n, id): (usize, &Option<Identity>)| id.as_ref().is_some_and(|id| locked[n].contains(id));
                if !identities.iter().enumerate().all(held) {
                    continue;
                }
                // As in PostgreSQL, what OFFSET leaves out was locked.
                if skip > 0 {
                    skip -= 1;
                    continue;
                }
                left = left.map(|left| left.saturating_sub(1));
                out.rows += 1;
                out.bytes.extend_from_slice(&row);
            }
            if rest.is_empty() || left == Some(0) {
                return Ok(out);
            }
        }
    }

    /// The row as the client gets it, and the identities behind it.
    fn take_apart(&self, message: &[u8]) -> Result<(bytes::BytesMut, Vec<Option<Identity>>), ServerError> {
        let garbled = || ServerError::internal("a row to lock does not fit its description");
        let mut values = Vec::new();
        fields(message, &mut values).ok_or_else(garbled)?;
        let own = values.len().checked_sub(self.locking.locks.len()).ok_or_else(garbled)?;
        let mut out = bytes::BytesMut::with_capacity(message.len());
        let mut writer = RowWriter::new(&mut out);
        values[..own]
            .iter()
            .for_each(|value| writer.value(value.clone().map(|v| &message[v])));
        writer.finish();
        let identity = |value: &Option<std::ops::Range<usize>>| {
            let place = value.clone()?;
            Some(String::from_utf8_lossy(&message[place]).into_owned())
        };
        Ok((out, values[own..].iter().map(identity).collect()))
    }

    /// Locks what these rows of the result are made of; for each relation, what is locked now.
    async fn lock(
        &mut self,
        rows: &[Vec<u8>],
        transaction: &mut Transaction,
    ) -> Result<Vec<HashSet<Identity>>, ServerError> {
        let mut wanted: Vec<BTreeMap<ShardId, BTreeSet<Identity>>> = vec![BTreeMap::new(); self.relations.len()];
        for row in rows {
            for (n, identity) in self.take_apart(row)?.1.into_iter().enumerate() {
                if let Some(identity) = identity {
                    let shard = shard_of(&identity)?;
                    wanted[n].entry(shard).or_default().insert(identity);
                }
            }
        }
        let mut locked = vec![HashSet::new(); self.relations.len()];
        for (n, by_shard) in wanted.into_iter().enumerate() {
            // Whether rows may be locked is an error even where there are none.
            if by_shard.is_empty() {
                let home = self.statement.snapshot.home();
                let shard = self.relations[n].places.keys().next().copied().unwrap_or(home);
                self.lock_on(n, shard, &[], transaction).await?;
            }
            for (shard, identities) in by_shard {
                let identities: Vec<_> = identities.into_iter().collect();
                for batch in identities.chunks(BATCH_ROWS) {
                    let held = self.lock_on(n, shard, batch, transaction).await?;
                    let missing: Vec<_> = batch.iter().filter(|id| !held.contains(*id)).cloned().collect();
                    locked[n].extend(held);
                    if !missing.is_empty() {
                        self.look_at(n, shard, &missing, transaction).await?;
                    }
                }
            }
        }
        Ok(locked)
    }

    async fn lock_on(
        &self,
        relation: usize,
        shard: ShardId,
        identities: &[Identity],
        transaction: &mut Transaction,
    ) -> Result<HashSet<Identity>, ServerError> {
        let lock = &self.locking.locks[relation];
        let tail = format!("{} OF pgherd_l{}", lock.strength.sql(), lock.policy.sql());
        self.find(relation, shard, identities, &tail, transaction).await
    }

    /// Those of these versions that are there, and what else the statement does with them.
    async fn find(
        &self,
        relation: usize,
        shard: ShardId,
        identities: &[Identity],
        tail: &str,
        transaction: &mut Transaction,
    ) -> Result<HashSet<Identity>, ServerError> {
        let Some(place) = self.relations[relation].places.get(&shard) else {
            return Err(ServerError::internal("a row to lock is where its table is not"));
        };
        let mut arrays = vec![String::new(); 3];
        for identity in identities {
            for (array, part) in arrays.iter_mut().zip(identity.split('/').skip(1)) {
                array.push_str(if array.is_empty() { "" } else { "," });
                array.push_str(&format!("\"{part}\""));
            }
        }
        let [tables, places, versions] = &arrays[..] else {
            return Ok(HashSet::new());
        };
        let sql = format!(
            "SELECT pgherd_n.n FROM {place} AS pgherd_l \
             JOIN ROWS FROM (pg_catalog.unnest('{{{tables}}}'::oid[]), pg_catalog.unnest('{{{places}}}'::tid[]), \
             pg_catalog.unnest('{{{versions}}}'::xid[])) WITH ORDINALITY AS pgherd_n (t, c, x, n) \
             ON pgherd_l.tableoid = pgherd_n.t AND pgherd_l.ctid = pgherd_n.c AND pgherd_l.xmin = pgherd_n.x {tail}"
        );
        let backend = transaction.participant(shard).await?;
        let answer = backend.simple(&sql).await?;
        let rows = answer.last().map(|r| r.rows.len()).unwrap_or(0);
        let mut found = HashSet::new();
        for row in 0..rows {
            let number = answer.last().and_then(|r| r.text(row, 0)?.parse::<usize>().ok());
            found.extend(number.and_then(|n| identities.get(n.checked_sub(1)?)).cloned());
        }
        Ok(found)
    }

    /// Rows that could not be locked: with SKIP LOCKED others hold them, unless they have been changed. The newest versions of what
    /// was changed are locked, so that the statement finds them as they are when it is run again.
    async fn look_at(
        &mut self,
        relation: usize,
        shard: ShardId,
        missing: &[Identity],
        transaction: &mut Transaction,
    ) -> Result<(), ServerError> {
        let unchanged = match self.locking.locks[relation].policy {
            Policy::Skip => self.find(relation, shard, missing, "", transaction).await?,
            _ => HashSet::new(),
        };
        for identity in missing.iter().filter(|id| !unchanged.contains(*id)) {
            self.changed = true;
            self.follow(relation, shard, identity, transaction).await?;
        }
        Ok(())
    }

    async fn follow(
        &self,
        relation: usize,
        shard: ShardId,
        identity: &str,
        transaction: &mut Transaction,
    ) -> Result<(), ServerError> {
        let parts: Vec<&str> = identity.split('/').collect();
        let (Some(place), [_, table, first, _]) = (self.relations[relation].places.get(&shard), &parts[..]) else {
            return Ok(());
        };
        if transaction.shows_one_snapshot() {
            return Ok(());
        }
        let lock = &self.locking.locks[relation];
        let mut at = (*first).to_owned();
        for _ in 0..FOLLOW_LIMIT {
            let backend = transaction.participant(shard).await?;
            let newest = backend
                .simple(&format!("SELECT pgherd.newest_version({table}, '{at}')"))
                .await?;
            match newest.first().and_then(|r| r.text(0, 0)) {
                Some(newest) if newest != at => at = newest.to_owned(),
                _ => return Ok(()),
            }
            let sql = format!(
                "SELECT FROM {place} WHERE tableoid = {table} AND ctid = '{at}' {}{}",
                lock.strength.sql(),
                lock.policy.sql()
            );
            let answer = backend.simple(&sql).await?;
            if answer.first().is_some_and(|r| !r.rows.is_empty()) {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn shard_of(identity: &str) -> Result<ShardId, ServerError> {
    let shard = identity.split('/').next().and_then(|shard| shard.parse().ok());
    shard
        .map(ShardId)
        .ok_or_else(|| ServerError::internal("a row to lock does not say where it is"))
}
