//! One DML statement on several shards: sent to all, tags summed, RETURNING rows merged.

use super::execute::Entered;
use super::forward::{enlist, lock_fences, lost_lease, no_block, put_statement};
use super::{Mode, Problem, Session, Unit};
use bytes::{BufMut, BytesMut};
use pgherd_model::ServerError;
use pgherd_shards::Backend;
use pgherd_sql::{Merge, Part};

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
        let result = self.scatter_in_block(unit, entered, parts, merge).await;
        self.finish_statement(made, result).await
    }

    async fn scatter_in_block(
        &mut self,
        unit: Unit<'_>,
        entered: &Entered,
        parts: &[Part],
        merge: &Merge,
    ) -> Result<Option<String>, Problem> {
        let clock = match (unit.statement.shared_clock, parts.first()) {
            (true, Some(first)) => self.clock_setting(first.shard).await?,
            _ => None,
        };
        let open = self.block.open_mut().ok_or_else(no_block)?;
        for (i, part) in parts.iter().enumerate() {
            enlist(&mut open.transaction, unit, part.shard).await?;
            if !entered.analysis.read_only {
                open.transaction.wrote(part.shard);
            }
            let backend = enlist(&mut open.transaction, unit, part.shard).await?;
            match i {
                0 => self.cancel.slot.start(backend.cancel_token()),
                _ => self.cancel.slot.add(backend.cancel_token()),
            }
            clock.iter().for_each(|setting| backend.queue_silent(setting));
            lock_fences(backend, part);
            // Parsed anew: which of several prepared statements came through is not worth following.
            put_statement(backend, &self.gateway.cache, part, without_limit(unit), None)?;
            backend.flush().await?;
        }
        let mut answers = Vec::with_capacity(parts.len());
        for part in parts {
            answers.push(read_answer(enlist(&mut open.transaction, unit, part.shard).await?).await?);
        }
        self.cancel.slot.clear();
        for (part, answer) in parts.iter().zip(&mut answers) {
            if let Some(error) = answer.error.take() {
                return Err(self.shard_error(part, unit, error).into());
            }
        }
        if !entered.guard.is_valid() {
            return Err(lost_lease().into());
        }
        self.put_answers(unit, &answers, merge);
        Ok(Some(sum_tags(&answers)))
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

/// Reads one shard's whole answer: the statement's ReadyForQuery and those of what was queued with it.
async fn read_answer(backend: &mut Backend) -> Result<Answer, Problem> {
    let mut answer = Answer::default();
    match backend.skip_silent().await {
        // The statement behind the failed one fails with it (25P02); this is the error that says why.
        Err(pgherd_shards::Error::Server(error)) => answer.error = Some(error),
        other => other?,
    }
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
                return Ok(answer);
            }
            _ => {}
        }
    }
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
