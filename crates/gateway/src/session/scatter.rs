//! One DML statement on several shards: sent to all, tags summed, RETURNING rows merged.

use super::enter::Entered;
use super::first_violation::earliest;
use super::forward::{enlist, lock_fences, lost_lease, naming, no_block, put_statement};
use super::lock_modes::before_snapshot;
use super::plan::canceled;
use super::{Mode, Problem, Session, Unit};
use crate::cancel::CancelSlot;
use crate::origins::Naming;
use crate::statements::StatementCache;
use crate::user_types::{Asking, holding};
use bytes::{BufMut, BytesMut};
use pgherd_model::{ServerError, ShardId, SqlState};
use pgherd_shards::{Backend, Row, SimpleResult, parse_data_row};
use pgherd_sql::{Kind, Merge, Part};
use pgherd_transaction::{ASK, Transaction, WriteCut};

/// How often a statement of its own that ends in deadlocks is run again.
const MOST_ORDERED_TRIES: u32 = 10;

/// What one shard answered.
#[derive(Default)]
struct Answer {
    /// RowDescription's body
    description: Option<bytes::Bytes>,
    /// whole DataRow messages
    rows: BytesMut,
    row_ends: Vec<usize>,
    tag: String,
    notices: Vec<ServerError>,
    error: Option<ServerError>,
    /// what was asked behind the statement
    asked: Option<Vec<SimpleResult>>,
}

impl Answer {
    /// Gives its description and its binary values the OIDs that clients know.
    async fn translate(
        &mut self,
        asking: &Asking<'_>,
        naming: Option<&Naming<'_>>,
        shard: ShardId,
    ) -> Result<(), ServerError> {
        // Behind a message's letter and its length.
        const BODY: usize = 5;
        if let Some(foreign) = asking.foreign(shard)
            && let Some(description) = self.description.take()
        {
            let columns = holding(&description);
            if !columns.is_empty() {
                let mut start = 0;
                for end in &self.row_ends {
                    let body = &mut self.rows[start + BODY..*end];
                    foreign.translate_row(shard, &columns, body).await?;
                    start = *end;
                }
            }
            let mut body = BytesMut::from(&description[..]);
            foreign.describe(shard, &mut body).await?;
            self.description = Some(body.freeze());
        }
        if let (Some(naming), Some(description)) = (naming, &mut self.description) {
            let mut body = BytesMut::from(&description[..]);
            naming.learn_and_put(shard, &mut body).await;
            *description = body.freeze();
        }
        Ok(())
    }
}

impl Session {
    /// Runs the parts in one transaction (the block's, or one of their own).
    pub(crate) async fn scatter(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        parts: &[Part],
        merge: &Merge,
    ) -> Result<(), Problem> {
        let made = self.ensure_block();
        // Readers of several shards take their locks in this order, too.
        let strict = self.is_strict();
        let mut result = self.scatter_in_block(unit, entered, parts, merge, strict).await;
        let tries = if made { MOST_ORDERED_TRIES } else { 1 };
        for _ in 0..tries {
            match self.undo_deadlock(made, result).await? {
                Some(ended) => {
                    result = ended;
                    break;
                }
                None => result = self.scatter_in_block(unit, entered, parts, merge, true).await,
            }
        }
        self.finish_statement(made, result).await
    }

    /// The lines that parts return as rows of one text column.
    pub(crate) async fn lines_of_parts(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        parts: &[Part],
    ) -> Result<Vec<Vec<String>>, Problem> {
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let run = Run {
            unit,
            entered,
            before: &[],
            cut: None,
            in_order: false,
            asking: Asking::new(&self.database, &self.who, self.gateway.shards.home()),
        };
        let work = run.on(
            parts.iter().collect(),
            &mut open.transaction,
            &self.cancel.slot,
            &self.database.cache,
        );
        let answers = work.await;
        self.cancel.slot.clear();
        let mut all = Vec::new();
        for (_, answer) in answers? {
            if let Some(error) = answer.error {
                return Err(error.into());
            }
            let rows = answer.rows.freeze();
            let starts = std::iter::once(0).chain(answer.row_ends.iter().copied());
            // Behind the letter and the length.
            let row = |(start, end): (usize, &usize)| parse_data_row(rows.slice(start + 5..*end));
            let line = |row: Row| row.into_iter().next().flatten().unwrap_or_default();
            let lines = starts.zip(&answer.row_ends).map(row).map(line);
            all.push(lines.map(|l| String::from_utf8_lossy(&l).into_owned()).collect());
        }
        Ok(all)
    }

    /// Two such statements that change the same rows take them on several shards at once, each in another order, where on one
    /// server the second would just wait. So one that ended in a deadlock is undone, and None says that it may run again: shard
    /// by shard, in the order of shards. What it did cannot be undone alone where it has no savepoint in a longer block.
    async fn undo_deadlock(
        &mut self,
        made: bool,
        result: Result<Option<String>, Problem>,
    ) -> Result<Option<Result<Option<String>, Problem>>, Problem> {
        let Err(Problem::Error(error)) = result else {
            return Ok(Some(result));
        };
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let verdict = open.transaction.end_statement().await;
        let error = match &verdict {
            Some(detail) => pgherd_transaction::deadlock_error(error, detail),
            None => error,
        };
        let is_deadlock = error.sqlstate() == SqlState::DEADLOCK_DETECTED;
        let cancelled = self.cancel.slot.requested().is_some();
        if !is_deadlock || cancelled || open.transaction.is_strict() {
            return Ok(Some(Err(error.into())));
        }
        if open.transaction.is_in_statement() {
            open.transaction.undo_statement().await?;
        } else if made && self.portals.len() < 2 {
            self.rollback_block().await?;
            self.ensure_block();
        } else {
            return Ok(Some(Err(error.into())));
        }
        Ok(None)
    }

    async fn scatter_in_block(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        parts: &[Part],
        merge: &Merge,
        in_order: bool,
    ) -> Result<Option<String>, Problem> {
        let clock = match (unit.statement.shared_clock, parts.first()) {
            (true, Some(first)) => self.clock_setting(first.shard).await?,
            _ => None,
        };
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let reads = match unit.statement.parsed.kind {
            Kind::Update | Kind::Delete => true,
            _ => entered.analysis.copies_rows(),
        };
        let mut cut = match reads {
            true => open.transaction.write_cut(parts.iter().map(|p| p.shard)).await?,
            false => None,
        };
        let noting = cut.as_ref().map(|_| noting(entered, parts)).transpose()?;
        let parts = noting.as_deref().unwrap_or(parts);
        let mut answers: Vec<Answer> = parts.iter().map(|_| Answer::default()).collect();
        let mut first = true;
        loop {
            let shards = match &mut cut {
                Some(cut) => match cut.next(&mut open.transaction).await? {
                    Some(shards) => shards,
                    None => break,
                },
                None if first => parts.iter().map(|part| part.shard).collect(),
                None => break,
            };
            if !std::mem::take(&mut first) && self.cancel.slot.requested().is_some() {
                return Err(canceled().into());
            }
            let before: Vec<String> = clock
                .iter()
                .cloned()
                .chain(cut.as_ref().map(WriteCut::prelude))
                .collect();
            let run = Run {
                unit,
                asking: Asking::new(&self.database, &self.who, self.gateway.shards.home()),
                entered,
                before: &before,
                cut: cut.as_ref(),
                in_order,
            };
            let here = parts.iter().filter(|part| shards.contains(&part.shard)).collect();
            let work = run.on(here, &mut open.transaction, &self.cancel.slot, &self.database.cache);
            let read = match &cut {
                Some(cut) => cut.run(work).await?,
                None => work.await?,
            };
            if let Some((shard, error)) = first_error(unit, entered, &read) {
                self.cancel.slot.clear();
                let part = parts.iter().find(|part| part.shard == shard).ok_or_else(no_block)?;
                return Err(self.scattered_error(unit, part, cut.is_some(), error).await);
            }
            for (shard, answer) in read {
                let Some(i) = parts.iter().position(|part| part.shard == shard) else {
                    continue;
                };
                if let (Some(cut), Some(asked)) = (&mut cut, &answer.asked) {
                    cut.saw(shard, asked);
                }
                answers[i] = answer;
            }
        }
        self.cancel.slot.clear();
        if !entered.guard.holds().await {
            return Err(lost_lease().into());
        }
        let told = self.told_columns(unit, entered).await?;
        let asking = Asking::new(&self.database, &self.who, self.gateway.shards.home());
        for (n, (part, answer)) in parts.iter().zip(&mut answers).enumerate() {
            // The client is told what the first one says.
            let naming = naming(unit, entered, part.shard, &asking, told.as_deref()).filter(|_| n == 0);
            answer.translate(&asking, naming.as_ref(), part.shard).await?;
        }
        self.put_answers(unit, &answers, merge);
        Ok(Some(sum_tags(&answers)))
    }

    /// A shard's error as the client is to see it. Of a condition that is no condition PostgreSQL says it in other words
    /// where something stands beside it: the home shard judges the client's own text.
    async fn scattered_error(&mut self, unit: Unit<'_>, part: &Part, noting: bool, error: ServerError) -> Problem {
        if noting
            && error.sqlstate() == SqlState::from_code("42804")
            && let Some(Err(own)) = self.read_apart(&unit.statement.text, unit.types).await
        {
            return own.into();
        }
        self.shard_error(part, unit, error).into()
    }

    fn put_answers(&mut self, unit: Unit<'_>, answers: &[Answer], merge: &Merge) {
        for notice in answers.iter().flat_map(|a| &a.notices) {
            self.client.put_notice(notice);
        }
        match answers.first().and_then(|a| a.description.as_ref()) {
            Some(body) if unit.mode.describes() => self.client.put(b'T', body),
            None if unit.mode.describes() && matches!(unit.mode, Mode::Extended { .. }) => {
                self.client.put(b'n', &[]);
            }
            _ => {}
        }
        if let Merge::Interleave(order) = merge
            && interleaves(order, answers)
        {
            let mut next = vec![0usize; answers.len()];
            for &part in order {
                let (answer, at) = (&answers[usize::from(part)], &mut next[usize::from(part)]);
                let start = if *at == 0 { 0 } else { answer.row_ends[*at - 1] };
                self.client.out.put_slice(&answer.rows[start..answer.row_ends[*at]]);
                *at += 1;
            }
            return;
        }
        for answer in answers {
            self.client.out.put_slice(&answer.rows);
        }
    }
}

/// The error to give, and of which shard, where there are some.
fn first_error(unit: Unit<'_>, entered: &Entered, read: &[(ShardId, Answer)]) -> Option<(ShardId, ServerError)> {
    let failed: Vec<_> = read
        .iter()
        .filter_map(|(shard, answer)| Some((*shard, answer.error.as_ref()?)))
        .collect();
    let place = match failed.len() {
        0 => return None,
        1 => 0,
        // PostgreSQL judges names and types of the whole before any row is looked at.
        _ => match failed
            .iter()
            .position(|(_, error)| error.sqlstate().code().starts_with("42"))
        {
            Some(place) => place,
            None => {
                let errors: Vec<_> = failed.iter().map(|(_, error)| *error).collect();
                earliest(&entered.analysis, &unit.values(unit.types), &errors)
            }
        },
    };
    failed.get(place).map(|(shard, error)| (*shard, (*error).clone()))
}

/// The rows of all parts are put together before the client's row limit could count.
fn without_limit(unit: Unit<'_>) -> Unit<'_> {
    let mut unit = unit;
    if let Mode::Extended { max_rows, .. } = &mut unit.mode {
        *max_rows = 0;
    }
    unit
}

/// Whether each part returned as many rows as it was given.
fn interleaves(order: &[u16], answers: &[Answer]) -> bool {
    let mut counts = vec![0usize; answers.len()];
    for &part in order {
        match counts.get_mut(usize::from(part)) {
            Some(count) => *count += 1,
            None => return false,
        }
    }
    counts
        .iter()
        .zip(answers)
        .all(|(count, answer)| *count == answer.row_ends.len())
}

/// A statement that is sent to several shards at once.
struct Run<'a> {
    unit: Unit<'a>,
    asking: Asking<'a>,
    entered: &'a Entered,
    /// what goes before it
    before: &'a [String],
    /// it is asked behind it what it saw
    cut: Option<&'a WriteCut>,
    /// one shard after the other, in the order of shards
    in_order: bool,
}

impl Run<'_> {
    async fn on(
        &self,
        mut parts: Vec<&Part>,
        transaction: &mut Transaction,
        slot: &CancelSlot,
        cache: &StatementCache,
    ) -> Result<Vec<(ShardId, Answer)>, Problem> {
        if !self.in_order {
            return self.at_once(parts, transaction, slot, cache).await;
        }
        parts.sort_by_key(|part| part.shard);
        let mut answers = Vec::with_capacity(parts.len());
        for part in parts {
            let answered = self.at_once(vec![part], transaction, slot, cache).await?;
            let failed = answered.iter().any(|(_, answer)| answer.error.is_some());
            answers.extend(answered);
            if failed {
                break;
            }
        }
        Ok(answers)
    }

    /// Sends the parts, and then reads what each shard answers.
    async fn at_once(
        &self,
        parts: Vec<&Part>,
        transaction: &mut Transaction,
        slot: &CancelSlot,
        cache: &StatementCache,
    ) -> Result<Vec<(ShardId, Answer)>, Problem> {
        for (n, part) in parts.iter().enumerate() {
            enlist(transaction, self.unit, part.shard).await?;
            let locks = matches!(self.unit.statement.parsed.kind, Kind::Lock(_));
            if !self.entered.analysis.read_only && !locks {
                transaction.wrote(part.shard);
            }
            if let Some(cut) = self.cut {
                cut.catch_up(transaction, part.shard);
            }
            let types = self.asking.on_shard(part.shard, self.unit.types).await?;
            let lower = before_snapshot(self.unit, part, transaction);
            let part = lower.as_ref().unwrap_or(part);
            let backend = enlist(transaction, self.unit, part.shard).await?;
            match n {
                0 => slot.start(backend.cancel_token()),
                _ => slot.add(backend.cancel_token()),
            }
            self.before.iter().for_each(|setting| backend.queue_silent(setting));
            lock_fences(backend, part);
            // Parsed anew: which of several prepared statements came through is not worth following.
            let unit = without_limit(self.unit).with_types(types.as_deref());
            put_statement(backend, cache, part, unit, None)?;
            if self.cut.is_some() {
                backend.queue_query(ASK)?;
            }
            backend.flush().await?;
        }
        let mut answers = Vec::with_capacity(parts.len());
        for part in parts {
            let backend = enlist(transaction, self.unit, part.shard).await?;
            answers.push((part.shard, read_answer(backend, self.cut.is_some()).await?));
        }
        Ok(answers)
    }
}

/// The parts of a statement that reads what it writes, so that they note what their snapshots show.
fn noting(entered: &Entered, parts: &[Part]) -> Result<Vec<Part>, ServerError> {
    let parts: Option<Vec<Part>> = parts.iter().map(|part| entered.analysis.noting(part)).collect();
    parts.ok_or_else(|| {
        ServerError::unsupported(
            "this form of the statement is not supported where it needs rows of more than one shard",
            "Write an ordinary condition, or name the shard key in WHERE.",
        )
    })
}

/// Reads one shard's whole answer: the statement's ReadyForQuery and those of what was queued with it.
async fn read_answer(backend: &mut Backend, asked: bool) -> Result<Answer, Problem> {
    let mut answer = Answer {
        error: backend.silent_error().await?,
        ..Answer::default()
    };
    loop {
        let message = backend.next_message().await?;
        match message.tag {
            b'T' => answer.description = Some(message.body),
            b'D' => {
                answer.rows.put_u8(b'D');
                answer.rows.put_i32(message.body.len() as i32 + 4);
                answer.rows.put_slice(&message.body);
                answer.row_ends.push(answer.rows.len());
            }
            b'C' => answer.tag = String::from_utf8_lossy(&message.body[..message.body.len() - 1]).into_owned(),
            b'E' => {
                answer
                    .error
                    .get_or_insert_with(|| ServerError::from_body(&message.body));
            }
            b'Z' => {
                answer.notices = backend.take_notices();
                break;
            }
            _ => {}
        }
    }
    if asked {
        match backend.read_simple().await {
            Ok(results) => answer.asked = Some(results),
            // Behind an error of the statement, this one says nothing.
            Err(pgherd_shards::Error::Server(error)) => {
                answer.error.get_or_insert(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(answer)
}

/// `UPDATE 2` + `UPDATE 3` = `UPDATE 5`; tags without a count stay as they are.
fn sum_tags(answers: &[Answer]) -> String {
    let first = answers.first().map(|a| a.tag.as_str()).unwrap_or_default();
    let Some((word, count)) = first.rsplit_once(' ').filter(|(_, n)| n.parse::<u64>().is_ok()) else {
        return first.to_owned();
    };
    let count_of = |tag: &str| {
        tag.rsplit_once(' ')
            .and_then(|(_, n)| n.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let rest: u64 = answers[1..].iter().map(|a| count_of(&a.tag)).sum();
    format!("{word} {}", count.parse::<u64>().unwrap_or(0) + rest)
}
