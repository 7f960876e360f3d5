//! `pgherd.default_distribution` and `pgherd.initial_bounds`: how new tables are split.

use pgherd_model::{Bound, KeyBound, KeyType, KeyValue, ServerError, SqlState};

/// Which new tables are sharded of themselves: the values of `pgherd.default_distribution`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Automatic {
    /// `none`: no table; PARTITION BY RANGE is PostgreSQL's own, on the home shard, as LIST and HASH are
    Nothing,
    /// `local`: those that say PARTITION BY RANGE
    #[default]
    Declared,
    /// `primary_key`: these, and every table with a primary key, which is split by its first column
    PrimaryKey,
}

/// How new tables are distributed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    /// which of them
    pub automatic: Automatic,
    /// where new tables are split, by key type
    bounds: Vec<(KeyType, Vec<KeyValue>)>,
}

impl Distribution {
    /// From the two settings; empty and absent are the same.
    ///
    /// # Errors
    /// 22023 for what they cannot be.
    pub fn from_settings(
        default_distribution: Option<&str>,
        initial_bounds: Option<&str>,
    ) -> Result<Self, ServerError> {
        let automatic = match default_distribution.unwrap_or_default() {
            "none" => Automatic::Nothing,
            "" | "local" => Automatic::Declared,
            "primary_key" => Automatic::PrimaryKey,
            other => {
                let text = format!("invalid value for parameter \"pgherd.default_distribution\": \"{other}\"");
                return Err(ServerError::new(SqlState::INVALID_PARAMETER_VALUE, text)
                    .with_hint("Available values: none, local, primary_key."));
            }
        };
        Ok(Self {
            automatic,
            bounds: parse_bounds(initial_bounds.unwrap_or_default())?,
        })
    }

    /// The values at which a table with this first key column is split; empty when none are set for the type.
    /// `int` also serves smallint and bigint, `text` varchar, `timestamp` timestamptz (as UTC), where they have none.
    pub(crate) fn splits(&self, key_type: KeyType) -> Vec<KeyValue> {
        use KeyType::*;
        let stand_ins: &[KeyType] = match key_type {
            SmallInt => &[SmallInt, Int],
            BigInt => &[BigInt, Int],
            Varchar => &[Varchar, Text],
            TimestampTz => &[TimestampTz, Timestamp],
            _ => &[key_type],
        };
        let found = stand_ins
            .iter()
            .find_map(|t| self.bounds.iter().find(|(of, _)| of == t));
        let mut values = found.map(|(_, values)| values.clone()).unwrap_or_default();
        if key_type == SmallInt {
            values.retain(|v| matches!(v, KeyValue::Int(i) if i16::try_from(*i).is_ok()));
        }
        values
    }
}

/// The bounds of ranges that cover all keys: one more than there are splits.
pub(crate) fn covering(splits: &[KeyValue], columns: usize) -> Vec<(KeyBound, KeyBound)> {
    let mut edges = vec![KeyBound::min(columns)];
    for split in splits {
        let mut bound = vec![Bound::Value(split.clone())];
        bound.resize(columns, Bound::Min);
        edges.push(KeyBound(bound));
    }
    edges.push(KeyBound::max(columns));
    edges.windows(2).map(|w| (w[0].clone(), w[1].clone())).collect()
}

/// `int 3,7; text h,'q;r'`
fn parse_bounds(text: &str) -> Result<Vec<(KeyType, Vec<KeyValue>)>, ServerError> {
    let invalid = |why: String| {
        ServerError::new(
            SqlState::INVALID_PARAMETER_VALUE,
            "invalid value for parameter \"pgherd.initial_bounds\"",
        )
        .with_detail(why)
        .with_hint("Give split points by key type, such as: int 3,7; text h,q")
    };
    let mut bounds: Vec<(KeyType, Vec<KeyValue>)> = Vec::new();
    for entry in split_outside_quotes(text, ';') {
        let entry = entry.trim();
        if entry.is_empty() {
            continue;
        }
        let (name, rest) = entry.split_once(char::is_whitespace).unwrap_or((entry, ""));
        let key_type = type_of(name).ok_or_else(|| invalid(format!("\"{name}\" is not a key type.")))?;
        let mut values = Vec::new();
        for part in split_outside_quotes(rest, ',') {
            let value = unquote(part.trim());
            let parsed = match key_type {
                // A timestamptz without an offset depends on a setting that shards may not share.
                KeyType::TimestampTz => key_type
                    .parse_text(&value)
                    .or_else(|| key_type.parse_text(&format!("{value}+00"))),
                _ => key_type.parse_text(&value),
            };
            values.push(parsed.ok_or_else(|| invalid(format!("\"{value}\" is not a value of type {name}.")))?);
        }
        values.sort();
        values.dedup();
        if values.is_empty() {
            return Err(invalid(format!("No values are given for {name}.")));
        }
        bounds.push((key_type, values));
    }
    Ok(bounds)
}

fn type_of(name: &str) -> Option<KeyType> {
    Some(match name.to_ascii_lowercase().as_str() {
        "int" | "integer" | "int4" => KeyType::Int,
        "bigint" | "int8" => KeyType::BigInt,
        "smallint" | "int2" => KeyType::SmallInt,
        "text" => KeyType::Text,
        "varchar" => KeyType::Varchar,
        "uuid" => KeyType::Uuid,
        "date" => KeyType::Date,
        "timestamp" => KeyType::Timestamp,
        "timestamptz" => KeyType::TimestampTz,
        "numeric" | "decimal" => KeyType::Numeric,
        _ => return None,
    })
}

fn split_outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut quoted) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        if c == '\'' {
            quoted = !quoted;
        } else if c == separator && !quoted {
            parts.push(&text[start..at]);
            start = at + c.len_utf8();
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unquote(text: &str) -> String {
    match text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        Some(inner) => inner.replace("''", "'"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bounds: &str) -> Distribution {
        Distribution::from_settings(Some("primary_key"), Some(bounds)).unwrap()
    }

    #[test]
    fn bounds_are_sorted_and_serve_related_types() {
        let distribution = of("int 7,3,7; text h,'q;r'; timestamp 2020-01-01 00:00:00");
        assert_eq!(
            distribution.splits(KeyType::BigInt),
            [KeyValue::Int(3), KeyValue::Int(7)]
        );
        assert_eq!(
            distribution.splits(KeyType::Varchar),
            [KeyValue::Text("h".into()), KeyValue::Text("q;r".into())]
        );
        assert_eq!(distribution.splits(KeyType::TimestampTz).len(), 1);
        assert!(distribution.splits(KeyType::Uuid).is_empty());
        assert_eq!(of("int 100000, 5").splits(KeyType::SmallInt), [KeyValue::Int(5)]);
    }

    #[test]
    fn ranges_cover_all_keys_and_composite_keys_split_on_the_first_column() {
        let ranges = covering(&[KeyValue::Int(3)], 2);
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[0].0, KeyBound::min(2));
        assert_eq!(ranges[0].1, KeyBound(vec![Bound::Value(KeyValue::Int(3)), Bound::Min]));
        assert_eq!(ranges[1].1, KeyBound::max(2));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["int x", "box 1,2", "int", "date 2020-13-01"] {
            let error = Distribution::from_settings(None, Some(bad)).unwrap_err();
            assert_eq!(error.sqlstate().code(), "22023", "{bad}");
        }
        assert!(Distribution::from_settings(Some("somehow"), None).is_err());
        assert_eq!(
            Distribution::from_settings(None, None).unwrap(),
            Distribution::default()
        );
    }
}
