//! A client with another encoding than the shards': what comes from it is converted message by message, what goes to it when it is sent.

use super::{Client, Gone};
use crate::encoding::binary_copy::BinaryCopy;
use crate::encoding::values::Shapes;
use crate::encoding::{Column, Encoding};
use crate::messages::put_copy_data;
use bytes::{BufMut, BytesMut};
use pgherd_model::ServerError;
use std::sync::Arc;

/// How a client with another encoding is spoken to.
pub(super) struct Converter {
    pub(super) encoding: Arc<Encoding>,
    /// so much of `out` is converted already
    pub(super) done: usize,
    /// what the present rows are like
    columns: Vec<Column>,
    /// COPY FROM STDIN: the beginning of a character at the end of the last message
    begun: Vec<u8>,
    /// a COPY in binary is under way
    binary_copy: Option<BinaryCopy>,
}

impl Converter {
    /// A message of COPY data without the beginning of a character at its end, which goes to the next one; where the data ends
    /// in the middle of a character, it is left for the conversion to refuse.
    fn completed(&mut self, message: BytesMut) -> BytesMut {
        if self.binary_copy.is_some() {
            return message;
        }
        let body = match message.first() {
            Some(b'd') => &message[5..],
            Some(b'c') if !self.begun.is_empty() => &[],
            _ => {
                self.begun.clear();
                return message;
            }
        };
        let is_last = message[0] == b'c';
        let mut data = std::mem::take(&mut self.begun);
        data.extend_from_slice(body);
        if !is_last {
            self.begun = data.split_off(data.len() - self.encoding.incomplete(&data));
        }
        let mut whole = BytesMut::with_capacity(data.len() + 10);
        put_copy_data(&mut whole, &data);
        whole
    }

    /// A message of a COPY in binary, or what was left where its data ends; None for another message.
    fn of_binary_copy(&mut self, message: &[u8], shapes: &Shapes) -> Option<Result<BytesMut, ServerError>> {
        let copy = self.binary_copy.as_mut()?;
        let (data, end) = match message[0] {
            b'd' => match self.encoding.incoming_binary(copy, &message[5..], shapes) {
                Ok(data) => (data, &[][..]),
                Err(error) => return Some(Err(error)),
            },
            b'c' => (copy.rest(), message),
            _ => return None,
        };
        let mut converted = BytesMut::with_capacity(data.len() + 10);
        if end.is_empty() || !data.is_empty() {
            put_copy_data(&mut converted, &data);
        }
        converted.put_slice(end);
        Some(Ok(converted))
    }
}

impl Client {
    /// From now on, this is the client's encoding.
    pub(crate) fn set_encoding(&mut self, encoding: Option<Arc<Encoding>>) -> Result<(), ServerError> {
        self.convert()?;
        self.encoding = encoding.map(|encoding| Converter {
            encoding,
            done: self.out.len(),
            columns: Vec::new(),
            begun: Vec::new(),
            binary_copy: None,
        });
        Ok(())
    }

    /// What the next rows are like that come without a RowDescription.
    pub(crate) fn expect_columns(&mut self, columns: Vec<Column>) -> Result<(), ServerError> {
        self.convert()?;
        if let Some(converter) = &mut self.encoding {
            converter.columns = columns;
        }
        Ok(())
    }

    /// From now on, data of COPY is in binary, and of columns of these types; None: no longer.
    pub(crate) fn expect_binary_copy(&mut self, types: Option<Vec<u32>>) -> Result<(), ServerError> {
        self.convert()?;
        if let Some(converter) = &mut self.encoding {
            converter.binary_copy = types.map(BinaryCopy::new);
        }
        Ok(())
    }

    /// Puts what has gathered into the client's encoding. What has no equivalent there is an error: the replies before
    /// it are left, and nothing from there on.
    pub(crate) fn convert(&mut self) -> Result<(), ServerError> {
        // What is a part's is read here.
        let is_captured = self.discarding.as_ref().is_some_and(|d| d.wanted);
        let Some(converter) = self.encoding.as_mut().filter(|_| !is_captured) else {
            return Ok(());
        };
        let from = converter.done.min(self.out.len());
        let result = converter.encoding.outgoing(
            &mut self.out,
            from,
            &mut converter.columns,
            &self.shapes,
            converter.binary_copy.as_mut(),
        );
        converter.done = self.out.len();
        result
    }

    /// The message that comes next, with its strings as UTF-8. One whose strings are none in the client's encoding is taken
    /// out and refused.
    pub(super) fn convert_message(&mut self) -> Result<(), Gone> {
        if self.encoding.is_none() || !self.has_whole_message() {
            return Ok(());
        }
        let Some(converter) = &mut self.encoding else {
            return Ok(());
        };
        let length = u32::from_be_bytes([self.inbox[1], self.inbox[2], self.inbox[3], self.inbox[4]]) as usize;
        let message = converter.completed(self.inbox.split_to(1 + length));
        let tag = message[0];
        let converted = match converter.of_binary_copy(&message, &self.shapes) {
            Some(converted) => converted,
            None => converter.encoding.incoming(message),
        };
        let mut converted = converted.map_err(|error| match tag {
            b'd' => Gone::Data(error),
            _ => Gone::Text((error, tag == b'Q')),
        })?;
        converted.unsplit(self.inbox.split());
        self.inbox = converted;
        Ok(())
    }
}
