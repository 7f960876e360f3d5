//! The shard key's columns in a COPY: where their values come from, and which of them are understood here.

use pgherd_model::{KeyType, KeyValue, Numeric};

/// Where a key column's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    /// this field of the client's rows, from 0
    Field(usize),
    /// this column of the values that the caller supplies, from 0
    Supplied(usize),
    /// nowhere: it is NULL
    Missing,
}

/// A column of the shard key.
#[derive(Debug, Clone)]
pub struct KeyColumn {
    /// its name
    pub name: String,
    /// its type
    pub key_type: KeyType,
    /// atttypmod: a value that it would change is not understood here
    pub type_modifier: i32,
    /// where its values come from
    pub source: KeySource,
}

impl KeyColumn {
    /// A value; None where it is not understood, or where the column's type would change it.
    pub(super) fn parse(&self, bytes: &[u8], binary: bool, utf8: bool) -> Option<KeyValue> {
        let value = match binary {
            true => self.key_type.parse_binary(bytes)?,
            false => {
                let text = std::str::from_utf8(bytes).ok()?;
                if !utf8 && !text.is_ascii() {
                    return None;
                }
                self.key_type.parse_text(text)?
            }
        };
        let unchanged = match (&value, self.key_type) {
            _ if self.type_modifier < 0 => true,
            // Blanks behind the length are cut off.
            (KeyValue::Text(text), _) => !text.ends_with(' '),
            (KeyValue::Numeric(Numeric::Finite(number)), _) => {
                // Rounded to the scale, which is a signed number of 11 bits (numeric_typmod_scale).
                let scale = (((self.type_modifier - 4) & 0x7ff) ^ 0x400) - 0x400;
                number.fractional_digit_count() <= i64::from(scale)
            }
            // Rounded to this many digits of a second.
            (KeyValue::Timestamp(us), _) => {
                let unit = 10_i64.pow(6_u32.saturating_sub(self.type_modifier as u32));
                us % unit == 0 || matches!(*us, i64::MIN | i64::MAX)
            }
            _ => true,
        };
        unchanged.then_some(value)
    }
}
