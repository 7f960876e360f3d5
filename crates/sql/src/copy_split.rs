//! Splits the byte stream of a `COPY sharded_table FROM STDIN` by shard key: one stream per shard, each in the
//! client's own format, its rows copied as bytes.
//!
//! [`Splitter::push`] takes the client's bytes, cut anywhere, and hands each row on to the stream of the shard that
//! owns its key. It stops where it cannot go on alone ([`Progress`]): at a key whose text it does not understand
//! (`'1 Jan 2020'`), which the caller has a shard evaluate, and when it is out of values for columns that the
//! COPY leaves to defaults only the home shard can give.
//!
//! What is wrong with a row is said by PostgreSQL: a row with a NULL, missing or impossible key, or with a key that
//! no range holds, goes to the first stream, whose shard refuses it as plain PostgreSQL would. Only what concerns
//! the stream as a whole (mixed line ends, a corrupt end marker) is refused here. [`Splitter::client_line`] maps the
//! line numbers of a shard's errors back to the client's.
//!
//! It does not check the options, nor speak to anyone.

mod fields;
mod key;
mod line_map;
mod lines;
mod options;
mod tuples;

use crate::kind::CopyFormat;
use fields::Syntax;
pub use key::{KeyColumn, KeySource};
use line_map::LineMap;
use lines::{LineEnd, Lines};
pub use options::{CopyOptions, ForcedColumns, Header};
use pgherd_model::{KeyValue, RangeMap, ServerError, ShardId, SqlState};
use std::collections::VecDeque;
use tuples::Tuples;

/// A row larger than this is refused: it is held in memory until its key is known.
const MOST_ROW_BYTES: usize = 256 << 20;

/// What a COPY copies into.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// the table's unqualified name, for errors' contexts
    pub relation: &'a str,
    /// how many fields the client's rows have
    pub fields: usize,
    /// columns that the caller gives values for, in front of each row ([`Splitter::supply`])
    pub supplied: Vec<String>,
    /// the shard key
    pub key: Vec<KeyColumn>,
    /// who owns what
    pub ranges: &'a RangeMap,
    /// refuses the rows of a table without ranges
    pub home: ShardId,
}

/// Why [`Splitter::push`] stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// all rows that are complete have been handed on
    Done,
    /// a row's key is not understood: evaluate these and call [`Splitter::resolve`]
    Undecided(Vec<Unknown>),
    /// values for this many rows are needed: [`Splitter::supply`], then push again (also nothing)
    NeedValues(usize),
}

/// A key column's value that is not understood here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unknown {
    /// which key column, from 0
    pub column: usize,
    /// PostgreSQL's binary format rather than text
    pub binary: bool,
    /// the value
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
enum Rows {
    Lines(Lines, Syntax),
    Tuples(Tuples),
}

/// A row found in the buffer.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// its bytes without line end
    content: usize,
    /// all its bytes
    whole: usize,
    /// bytes that are handed on
    sent: usize,
    /// the input ends with it
    last: bool,
}

#[derive(Debug, Default)]
struct Stream {
    opened: bool,
    lines: LineMap,
    line_end: Option<LineEnd>,
}

/// The state of one COPY.
#[derive(Debug)]
pub struct Splitter {
    relation: String,
    options: CopyOptions,
    key: Vec<KeyColumn>,
    last_field: usize,
    ranges: RangeMap,
    shards: Vec<ShardId>,
    streams: Vec<Stream>,
    rows: Rows,
    /// the client's bytes from `start` on are not handed on yet
    buffer: Vec<u8>,
    start: usize,
    /// the first line (or the binary header), which each stream gets
    header: Option<Vec<u8>>,
    header_lines: u64,
    header_pending: bool,
    supplied_names: Vec<String>,
    supplied: VecDeque<Vec<Option<Vec<u8>>>>,
    /// a row that waits for [`Splitter::resolve`]
    waiting: Option<(Found, Vec<Option<KeyValue>>)>,
    /// the client's line number
    line: u64,
    ended: bool,
    finished: bool,
    /// everything from here on goes to the first stream as it is
    raw: bool,
}

impl Splitter {
    /// A COPY at its start. The streams are those of [`Splitter::shards`].
    ///
    /// # Errors
    /// 0A000 where supplied values would have to go with HEADER MATCH.
    pub fn new(options: CopyOptions, target: Target<'_>) -> Result<Self, ServerError> {
        let Target {
            relation,
            fields,
            supplied,
            key,
            ranges,
            home,
        } = target;
        if !supplied.is_empty() && options.header == Header::Match {
            return Err(ServerError::unsupported(
                "COPY that leaves columns with sequences out is not supported with HEADER MATCH",
                "Name all columns and give their values, or say HEADER without MATCH.",
            ));
        }
        let rows = match options.format {
            CopyFormat::Text => Rows::Lines(Lines::text(), syntax(&options)),
            CopyFormat::Csv => Rows::Lines(Lines::csv(options.quote, options.escape), syntax(&options)),
            CopyFormat::Binary => Rows::Tuples(Tuples::new(fields)),
        };
        let mut shards = ranges.shards();
        if shards.is_empty() {
            shards.push(home);
        }
        let field = |k: &KeyColumn| {
            if let KeySource::Field(i) = k.source {
                Some(i)
            } else {
                None
            }
        };
        Ok(Self {
            last_field: key.iter().filter_map(field).max().unwrap_or(0),
            header_pending: options.header != Header::None || options.format == CopyFormat::Binary,
            streams: shards.iter().map(|_| Stream::default()).collect(),
            ranges: ranges.clone(),
            relation: relation.to_owned(),
            options,
            key,
            shards,
            rows,
            buffer: Vec::new(),
            start: 0,
            header: None,
            header_lines: 0,
            supplied_names: supplied,
            supplied: VecDeque::new(),
            waiting: None,
            line: 0,
            ended: false,
            finished: false,
            raw: false,
        })
    }

    /// The shard of each stream.
    pub fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// Takes the client's next bytes. `sink(stream, bytes)` gets what belongs to a stream, in order; a row may come in
    /// several calls. After [`Progress::NeedValues`] call it again, with no bytes.
    ///
    /// # Errors
    /// 22P04 and its context as PostgreSQL's; 54000 for a row beyond all measure.
    pub fn push(&mut self, bytes: &[u8], sink: &mut impl FnMut(usize, &[u8])) -> Result<Progress, ServerError> {
        if self.finished {
            return Ok(Progress::Done);
        }
        if self.raw {
            sink(0, bytes);
            return Ok(Progress::Done);
        }
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
        self.proceed(sink)
    }

    /// The input is complete: the rest is handed on, trailers included. Like [`Splitter::push`] it may stop; it is
    /// called again after that.
    ///
    /// # Errors
    /// As [`Splitter::push`].
    pub fn finish(&mut self, sink: &mut impl FnMut(usize, &[u8])) -> Result<Progress, ServerError> {
        self.ended = true;
        if self.finished {
            return Ok(Progress::Done);
        }
        let progress = self.proceed(sink)?;
        if progress != Progress::Done {
            return Ok(progress);
        }
        self.finished = true;
        if matches!(self.rows, Rows::Tuples(_)) && !self.raw {
            // What is left is a trailer, or something that a shard must refuse.
            let rest = &self.buffer[self.start..];
            if !rest.is_empty() && (rest != [0xff, 0xff] || self.header_pending) {
                sink(0, rest);
            } else {
                let open = (0..self.streams.len()).filter(|&i| self.streams[i].opened);
                open.for_each(|stream| sink(stream, &[0xff, 0xff]));
            }
        }
        self.buffer = Vec::new();
        self.start = 0;
        Ok(Progress::Done)
    }

    /// Values of the supplied columns, one row for each of the client's next rows: as text, or in PostgreSQL's binary
    /// format where the COPY is binary.
    pub fn supply(&mut self, rows: impl IntoIterator<Item = Vec<Option<Vec<u8>>>>) {
        self.supplied.extend(rows);
    }

    /// The values of the key columns that [`Progress::Undecided`] named, in its order; None when PostgreSQL does not
    /// take them either (or they are NULL after all). The row is handed on, then the rest as by [`Splitter::push`].
    ///
    /// # Errors
    /// As [`Splitter::push`].
    pub fn resolve(
        &mut self,
        values: Option<Vec<KeyValue>>,
        sink: &mut impl FnMut(usize, &[u8]),
    ) -> Result<Progress, ServerError> {
        if let Some((found, known)) = self.waiting.take() {
            let mut given = values.unwrap_or_default().into_iter();
            let key: Option<Vec<_>> = known.into_iter().map(|k| k.or_else(|| given.next())).collect();
            let stream = key.map_or(0, |k| self.stream_of(&k));
            self.hand_on(found, stream, sink);
        }
        if self.ended {
            self.finish(sink)
        } else {
            self.proceed(sink)
        }
    }

    /// The client's line number for one that the shard of `stream` reports.
    pub fn client_line(&self, stream: usize, line: u64) -> Option<u64> {
        self.streams.get(stream)?.lines.client_line(line)
    }

    /// The client's line number that was reached.
    pub fn line(&self) -> u64 {
        self.line
    }

    fn proceed(&mut self, sink: &mut impl FnMut(usize, &[u8])) -> Result<Progress, ServerError> {
        while self.waiting.is_none() && !self.finished && !self.raw {
            let Some(found) = self.find()? else { break };
            if self.raw {
                // The row is the first stream's to refuse.
                self.hand_on(found, 0, sink);
                sink(0, &self.buffer[self.start..]);
                self.start = self.buffer.len();
                break;
            }
            if self.header_pending {
                self.take_header(found, sink);
                continue;
            }
            if !self.supplied_names.is_empty() && self.supplied.is_empty() {
                return Ok(Progress::NeedValues(self.count_rows(found)));
            }
            match self.decide(found) {
                Ok(stream) => self.hand_on(found, stream, sink),
                Err((known, unknown)) => {
                    self.waiting = Some((found, known));
                    return Ok(Progress::Undecided(unknown));
                }
            }
        }
        if self.buffer.len() - self.start > MOST_ROW_BYTES {
            let message = format!("a row of this COPY has more than {MOST_ROW_BYTES} bytes");
            return Err(self.at_line(ServerError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)));
        }
        Ok(Progress::Done)
    }

    /// The next complete row in the buffer, header lines included.
    fn find(&mut self) -> Result<Option<Found>, ServerError> {
        let input = &self.buffer[self.start..];
        let row = |content, whole| Found {
            content,
            whole,
            sent: whole,
            last: false,
        };
        match &mut self.rows {
            Rows::Lines(lines, _) => match lines.scan(input, self.ended) {
                Ok(lines::Scan::Row { content, whole }) => Ok(Some(row(content, whole))),
                Ok(lines::Scan::End { content: 0 }) => {
                    self.finished = true;
                    Ok(None)
                }
                // What is behind an end marker is ignored.
                Ok(lines::Scan::End { content }) => Ok(Some(Found {
                    content,
                    whole: input.len(),
                    sent: content,
                    last: true,
                })),
                Ok(lines::Scan::More) => Ok(None),
                Err(error) => {
                    let known = if self.line == 0 { None } else { lines.line_end() };
                    self.line += 1 + lines.quoted_lines(known);
                    Err(self.at_line(error))
                }
            },
            Rows::Tuples(tuples) => match tuples.scan(input) {
                tuples::Scan::Header(length) | tuples::Scan::Tuple(length) => Ok(Some(row(length, length))),
                tuples::Scan::Trailer | tuples::Scan::More => Ok(None),
                // With fields that are put in front of the others, the shard expects another number.
                tuples::Scan::FieldCount(count) if !self.supplied_names.is_empty() => {
                    let message = format!("row field count is {count}, expected {}", tuples.fields());
                    self.line += 1;
                    Err(self.at_line(ServerError::new(SqlState::BAD_COPY_FILE_FORMAT, message)))
                }
                tuples::Scan::FieldCount(_) | tuples::Scan::Malformed => {
                    self.raw = true;
                    Ok(Some(row(0, 0)))
                }
            },
        }
    }

    /// Which stream a row belongs to; for a key that is not understood, what is known and what is not.
    fn decide(&self, found: Found) -> Result<usize, (Vec<Option<KeyValue>>, Vec<Unknown>)> {
        let row = &self.buffer[self.start..self.start + found.content];
        let mut known: Vec<Option<KeyValue>> = vec![None; self.key.len()];
        let (mut unknown, mut nulls) = (Vec::new(), 0);
        let mut put = |column: usize, bytes: Option<&[u8]>, binary: bool| {
            let Some(bytes) = bytes else {
                nulls += 1;
                return;
            };
            known[column] = self.key[column].parse(bytes, binary, self.options.utf8);
            if known[column].is_none() {
                unknown.push(Unknown {
                    column,
                    binary,
                    bytes: bytes.to_vec(),
                });
            }
        };
        let mut complete = true;
        for (column, key) in self.key.iter().enumerate() {
            match key.source {
                KeySource::Field(_) => {}
                KeySource::Supplied(i) => {
                    let value = self.supplied.front().and_then(|values| values.get(i)?.as_deref());
                    put(column, value, matches!(self.rows, Rows::Tuples(_)));
                }
                KeySource::Missing => complete = false,
            }
        }
        let column_of = |field| self.key.iter().position(|k| k.source == KeySource::Field(field));
        match &self.rows {
            Rows::Tuples(tuples) => {
                for (column, key) in self.key.iter().enumerate() {
                    if let KeySource::Field(field) = key.source {
                        put(column, tuples.field(&self.buffer[self.start..], field), true);
                    }
                }
            }
            Rows::Lines(_, syntax) => {
                let wanted = |field| column_of(field).is_some();
                complete &= syntax.read(row, self.last_field, wanted, |field, value| {
                    let Some(column) = column_of(field) else { return };
                    put(column, self.forced(column, value.as_deref()), false);
                });
            }
        }
        if nulls > 0 || !complete {
            return Ok(0);
        }
        if unknown.is_empty() {
            let key: Vec<_> = known.into_iter().flatten().collect();
            return Ok(self.stream_of(&key));
        }
        unknown.sort_by_key(|u| u.column);
        Err((known, unknown))
    }

    /// FORCE_NULL and FORCE_NOT_NULL.
    fn forced<'a>(&'a self, column: usize, value: Option<&'a [u8]>) -> Option<&'a [u8]> {
        let (options, name) = (&self.options, &self.key[column].name);
        match value {
            _ if options.format != CopyFormat::Csv => value,
            None if options.force_not_null.names(name) => Some(&options.null),
            Some(text) if text == options.null && options.force_null.names(name) => None,
            _ => value,
        }
    }

    fn stream_of(&self, key: &[KeyValue]) -> usize {
        let range = self.ranges.find(key);
        range
            .and_then(|r| self.shards.iter().position(|s| *s == r.shard))
            .unwrap_or(0)
    }

    /// Keeps the header for every stream; the first one gets it at once, so that a shard judges it.
    fn take_header(&mut self, found: Found, sink: &mut impl FnMut(usize, &[u8])) {
        let mut header = Vec::new();
        if !self.supplied_names.is_empty() && matches!(self.rows, Rows::Lines(..)) {
            let names: Vec<_> = self
                .supplied_names
                .iter()
                .map(|n| Some(n.clone().into_bytes()))
                .collect();
            self.write_supplied(&names, &mut header);
        }
        header.extend_from_slice(&self.buffer[self.start..self.start + found.sent]);
        self.header = Some(header);
        self.header_pending = false;
        if let Rows::Lines(lines, _) = &self.rows {
            self.header_lines = 1 + lines.quoted_lines(None);
            self.line = self.header_lines;
        }
        self.open(0, sink);
        self.consume(found);
    }

    fn open(&mut self, stream: usize, sink: &mut impl FnMut(usize, &[u8])) {
        let this = &mut self.streams[stream];
        if std::mem::replace(&mut this.opened, true) {
            return;
        }
        let Some(header) = &self.header else { return };
        sink(stream, header);
        if let Rows::Lines(lines, _) = &self.rows {
            let this = &mut self.streams[stream];
            this.line_end = lines.line_end();
            this.lines.add(self.header_lines, self.header_lines);
        }
    }

    /// Gives a row to its stream and goes on behind it.
    fn hand_on(&mut self, found: Found, stream: usize, sink: &mut impl FnMut(usize, &[u8])) {
        self.open(stream, sink);
        let this = &self.streams[stream];
        let (mut client, mut own) = (self.line + 1, this.lines.line() + 1);
        let mut line_end = None;
        if let Rows::Lines(lines, _) = &self.rows {
            let known = if self.line == 0 { None } else { lines.line_end() };
            client += lines.quoted_lines(known);
            own += lines.quoted_lines(this.line_end);
            line_end = lines.line_end();
        }
        self.line = client;
        let this = &mut self.streams[stream];
        this.line_end = line_end;
        this.lines.add(own, client);
        let mut own = self.start..self.start + found.sent;
        if !self.raw
            && let Some(values) = self.supplied.pop_front()
        {
            let mut prefix = Vec::new();
            match self.rows {
                Rows::Lines(..) => self.write_supplied(&values, &mut prefix),
                Rows::Tuples(_) => {
                    tuples::write_supplied(&self.buffer[own.clone()], &values, &mut prefix);
                    own.start += tuples::COUNT;
                }
            }
            sink(stream, &prefix);
        }
        sink(stream, &self.buffer[own]);
        self.consume(found);
    }

    fn consume(&mut self, found: Found) {
        self.start += found.whole;
        self.finished |= found.last;
        match &mut self.rows {
            Rows::Lines(lines, _) => lines.advance(),
            Rows::Tuples(tuples) => tuples.advance(),
        }
    }

    /// The values as leading fields of a row, each with its delimiter.
    fn write_supplied(&self, values: &[Option<Vec<u8>>], out: &mut Vec<u8>) {
        for value in values {
            match value {
                None => out.extend_from_slice(&self.options.null),
                Some(value) if self.options.format == CopyFormat::Csv => {
                    out.push(self.options.quote);
                    for &byte in value {
                        if byte == self.options.quote || byte == self.options.escape {
                            out.push(self.options.escape);
                        }
                        out.push(byte);
                    }
                    out.push(self.options.quote);
                }
                Some(value) => {
                    // In hexadecimal, so that it can be neither a delimiter nor the null string.
                    let plain = |b: u8| b.is_ascii_alphanumeric() && b != self.options.delimiter;
                    let is_null = *value == self.options.null;
                    for &byte in value {
                        match plain(byte) && !is_null {
                            true => out.push(byte),
                            false => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
                        }
                    }
                }
            }
            out.push(self.options.delimiter);
        }
    }

    /// How many complete rows the buffer has from the one found on: exactly so many values are fetched, as
    /// PostgreSQL would take them from a sequence.
    fn count_rows(&self, found: Found) -> usize {
        let lines = match &self.rows {
            Rows::Lines(lines, _) => lines,
            Rows::Tuples(tuples) => return tuples.count(&self.buffer[self.start..], found.whole),
        };
        let (mut lines, mut at, mut count, mut last) = (lines.clone(), self.start + found.whole, 1, found.last);
        while !last {
            lines.advance();
            match lines.scan(&self.buffer[at..], self.ended) {
                Ok(lines::Scan::Row { whole, .. }) => at += whole,
                Ok(lines::Scan::End { content }) if content > 0 => last = true,
                _ => break,
            }
            count += 1;
        }
        count
    }

    fn at_line(&self, mut error: ServerError) -> ServerError {
        error
            .fields_mut()
            .other
            .push((b'W', format!("COPY {}, line {}", self.relation, self.line)));
        error
    }
}

fn syntax(options: &CopyOptions) -> Syntax {
    Syntax {
        delimiter: options.delimiter,
        null: options.null.clone(),
        csv: (options.format == CopyFormat::Csv).then_some((options.quote, options.escape)),
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
