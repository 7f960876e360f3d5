//! COPY TO STDOUT of a statement that writes, or of a query that has to be taken apart to run: it runs as it would alone, with its rows
//! kept back, which are then written in COPY's format. Nothing of them is sent before they are committed, where no block is open.

use super::describes;
use super::format::Writer;
use super::out_of::{Prologue, prologue};
use super::words::Words;
use crate::messages::{Messages, put_copy_data};
use crate::session::forward::no_block;
use crate::session::{Mode, Problem, Session, Unit};
use bytes::{Bytes, BytesMut};
use pgherd_model::{ServerError, ShardId, SqlState, quote_identifier};
use pgherd_sql::copy_split::CopyOptions;
use pgherd_sql::{CopyFormat, Part};

/// What is known before the statement runs.
struct Judged {
    prologue: Prologue,
    writer: Writer,
    binary: bool,
}

impl Session {
    /// Runs it.
    pub(super) async fn copy_written(&mut self, words: Words<'_>, inner: Unit<'_>) -> Result<(), Problem> {
        let made = self.ensure_block();
        let judged = self.judge_written(words, inner).await;
        let (judged, result) = match judged {
            Ok(judged) => (Some(judged), Ok(None)),
            Err(problem) => (None, Err(problem)),
        };
        self.finish_statement(made, result).await?;
        let Some(judged) = judged else { return Ok(()) };
        let formats: &[i16] = if judged.binary { &[1] } else { &[] };
        let mode = Mode::Extended {
            formats,
            describe: false,
            looks: false,
            max_rows: 0,
            named: false,
            portal: "",
        };
        let held = self.client.hold_tag();
        let replies = Box::pin(self.rows_of(Unit { mode, ..inner })).await;
        self.client.release_tag(held);
        let replies = replies.map_err(|problem| words.told(problem))?;
        let count = self.put_copied(words.unit, judged, replies);
        self.client.put_tag(&format!("COPY {count}"));
        Ok(())
    }

    /// What PostgreSQL says of the options, for as many columns, of the same names.
    async fn judge_written(&mut self, words: Words<'_>, inner: Unit<'_>) -> Result<Judged, Problem> {
        let snapshot = self.present_snapshot();
        let description = match self.description(inner, &snapshot).await {
            Ok(description) => description,
            Err(problem) => return Err(self.unless_of_options(words, words.told(problem)).await),
        };
        let Some(columns) = description.columns.as_deref() else {
            let merges = inner.statement.parsed.tokens.first();
            let message = match merges.is_some_and(|t| t.is_word(&inner.statement.text, "merge")) {
                true => "MERGE not supported in COPY",
                false => "COPY query must have a RETURNING clause",
            };
            let error = ServerError::new(SqlState::FEATURE_NOT_SUPPORTED, message);
            return Err(self.unless_of_options(words, error.into()).await);
        };
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        let home = self.gateway.shards.home();
        let judged = no_rows(words, &names, home);
        let open = self.block.open_mut().ok_or_else(no_block)?;
        let prologue = prologue(open.transaction.participant(home).await?, &judged.text).await?;
        let prologue = prologue.map_err(|error| self.shard_error(&judged, words.unit, error))?;
        super::out_of::check_encoding(words.shape, &prologue)?;
        let options = CopyOptions::from_shape(words.shape, &prologue.encoding)?;
        Ok(Judged {
            binary: options.format == CopyFormat::Binary,
            writer: Writer::new(options, &names),
            prologue,
        })
    }

    /// An error of the query, unless PostgreSQL refuses the options, which it does before it looks at the query.
    async fn unless_of_options(&mut self, words: Words<'_>, problem: Problem) -> Problem {
        let judged = no_rows(words, &["pgherd_any"], self.gateway.shards.home());
        // The block may have failed with the query.
        let Ok(mut backend) = self.home_backend().await else {
            return problem;
        };
        match prologue(&mut backend, &judged.text).await {
            // Names of columns are looked at behind the query.
            Ok(Err(error)) if error.sqlstate() != SqlState::UNDEFINED_COLUMN => {
                self.shard_error(&judged, words.unit, error).into()
            }
            _ => problem,
        }
    }

    /// The rows among what the statement gave, as COPY gives them; their number. What it said besides goes to the client as well.
    fn put_copied(&mut self, unit: Unit<'_>, judged: Judged, replies: Bytes) -> usize {
        let Judged {
            prologue,
            mut writer,
            binary,
        } = judged;
        let client = &mut self.client;
        if describes(unit) {
            client.put(b'n', &[]);
        }
        client.put(b'H', &prologue.response);
        // Of the binary format, the response to no rows is header and trailer; the writer knows where they go.
        if !binary && !prologue.header.is_empty() {
            put_copy_data(&mut client.out, &prologue.header);
        }
        let (mut count, mut others) = (0, BytesMut::new());
        for (tag, message) in Messages(replies) {
            match tag {
                b'D' => {
                    count += 1;
                    writer.write(BytesMut::from(&message[..]), &mut client.out);
                }
                b'N' | b'S' | b'A' => others.extend_from_slice(&message),
                _ => {}
            }
        }
        writer.finish(&mut client.out);
        client.put(b'c', &[]);
        client.out.extend_from_slice(&others);
        count
    }
}

/// The COPY, of no rows with columns of these names.
fn no_rows(words: Words<'_>, names: &[&str], home: ShardId) -> Part {
    let list: Vec<_> = names
        .iter()
        .map(|name| format!("NULL AS {}", quote_identifier(name)))
        .collect();
    let no_rows = Part {
        shard: home,
        text: format!("SELECT {} LIMIT 0", list.join(", ")).into(),
        parameters: None,
        fences: Vec::new(),
        replaced: [].into(),
    };
    Words { query: None, ..words }.put_around(no_rows, "COPY (", ") TO STDOUT ")
}
