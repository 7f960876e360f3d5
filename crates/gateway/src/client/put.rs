//! Messages that are put for the client.

use super::{Client, Styles};
use bytes::BufMut;
use pgherd_model::ServerError;

impl Client {
    /// A message of a letter and a body.
    pub(crate) fn put(&mut self, tag: u8, body: &[u8]) {
        self.out.put_u8(tag);
        self.out.put_i32(body.len() as i32 + 4);
        self.out.put_slice(body);
    }

    /// CommandComplete.
    pub(crate) fn put_tag(&mut self, tag: &str) {
        if let Some(discarded) = &mut self.discarding {
            discarded.tag = tag.to_owned();
        }
        if let Some(held) = &mut self.held_tag {
            *held = Some(tag.to_owned());
            return;
        }
        self.out.put_u8(b'C');
        self.out.put_i32(tag.len() as i32 + 5);
        self.out.put_slice(tag.as_bytes());
        self.out.put_u8(0);
    }

    /// Whether what is to be sent ends with ReadyForQuery.
    pub(crate) fn has_whole_answer(&self) -> bool {
        let end = self.out.len().checked_sub(6).map(|at| &self.out[at..]);
        end.is_some_and(|end| end.starts_with(b"Z\0\0\0\x05"))
    }

    /// ReadyForQuery with its status letter.
    pub(crate) fn put_ready(&mut self, status: u8) {
        self.put(b'Z', &[status]);
    }

    /// ErrorResponse.
    pub(crate) fn put_error(&mut self, error: &ServerError) {
        error.write_message(b'E', &mut self.out);
    }

    /// NoticeResponse.
    pub(crate) fn put_notice(&mut self, notice: &ServerError) {
        if self.signals.as_ref().is_some_and(|signals| signals.take(notice)) {
            return;
        }
        notice.write_message(b'N', &mut self.out);
    }

    /// ParameterStatus.
    pub(crate) fn put_parameter(&mut self, name: &str, value: &str) {
        let mut body = Vec::with_capacity(name.len() + value.len() + 2);
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
        self.relay_parameter(&body);
    }

    /// ParameterStatus, as a shard has sent it.
    pub(crate) fn relay_parameter(&mut self, body: &[u8]) {
        let mut strings = body.split(|b| *b == 0).map(String::from_utf8_lossy);
        if let (Some(name), Some(value)) = (strings.next(), strings.next()) {
            Styles::set(&mut self.styles, &name, &value);
        }
        self.put(b'S', body);
    }

    /// RowDescription with the formats given.
    pub(crate) fn put_row_description(&mut self, columns: &[pgherd_shards::ColumnDescription], formats: &[i16]) {
        let start = self.out.len();
        self.out.put_u8(b'T');
        self.out.put_i32(0);
        self.out.put_i16(columns.len() as i16);
        for (i, column) in columns.iter().enumerate() {
            self.out.put_slice(column.name.as_bytes());
            self.out.put_u8(0);
            self.out.put_u32(column.table_oid);
            self.out.put_i16(column.column_number);
            self.out.put_u32(column.type_oid);
            self.out.put_i16(column.type_size);
            self.out.put_i32(column.type_modifier);
            self.out.put_i16(format_of(formats, i));
        }
        let length = (self.out.len() - start - 1) as i32;
        self.out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }

    /// DataRow of text values.
    pub(crate) fn put_row(&mut self, values: &[Option<&[u8]>]) {
        let start = self.out.len();
        self.out.put_u8(b'D');
        self.out.put_i32(0);
        self.out.put_i16(values.len() as i16);
        for value in values {
            match value {
                Some(bytes) => {
                    self.out.put_i32(bytes.len() as i32);
                    self.out.put_slice(bytes);
                }
                None => self.out.put_i32(-1),
            }
        }
        let length = (self.out.len() - start - 1) as i32;
        self.out[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
    }
}

/// The format of column `i`, from Bind's list: none (text), one for all, or one each.
pub(crate) fn format_of(formats: &[i16], i: usize) -> i16 {
    match formats {
        [] => 0,
        [one] => *one,
        many => many.get(i).copied().unwrap_or(0),
    }
}
