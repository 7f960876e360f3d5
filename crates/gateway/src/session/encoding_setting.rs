//! `client_encoding`: the gateway's own to keep, since the shards always speak UTF-8 with it.

use super::{Mode, Problem, Session, Unit};
use crate::encoding::values::{SHAPES, Shapes};
use crate::encoding::{Column, Encoding};
use pgherd_model::ServerError;
use pgherd_sql::{Instead, Kind, SetValue};
use std::sync::Arc;

const NAME: &str = "client_encoding";

impl Session {
    /// SET and RESET of the setting. `Ok(false)`: of another one.
    pub(crate) async fn sets_encoding(&mut self, kind: &Kind) -> Result<bool, Problem> {
        let tag = match kind {
            Kind::Set { name, value, local } if name == NAME => {
                match value {
                    SetValue::Default => self.reset_encoding()?,
                    SetValue::Values(values) => {
                        let before = self.settings.encoding.clone();
                        self.set_encoding(values.first().map_or("", String::as_str)).await?;
                        if *local && self.block.open().is_none_or(|open| open.implicit) {
                            self.take_encoding(before)?;
                        } else if *local {
                            self.settings.encoding_afterwards.get_or_insert(before);
                        } else {
                            self.settings.encoding_afterwards = None;
                        }
                    }
                }
                "SET"
            }
            Kind::Reset(Some(name)) if name == NAME => {
                self.reset_encoding()?;
                "RESET"
            }
            _ => return Ok(false),
        };
        self.client.put_tag(tag);
        Ok(true)
    }

    /// Sets it to the encoding of that name.
    pub(crate) async fn set_encoding(&mut self, name: &str) -> Result<(), ServerError> {
        let mut home = self.home_backend().await?;
        let encoding = self.gateway.encodings.get(name, &mut home).await?;
        drop(home);
        self.take_encoding(encoding)
    }

    /// The transaction has committed: SET LOCAL is over.
    pub(crate) fn end_local_encoding(&mut self) -> Result<(), ServerError> {
        match self.settings.encoding_afterwards.take() {
            Some(encoding) => self.take_encoding(encoding),
            None => Ok(()),
        }
    }

    /// Back to what the start-up message said.
    pub(crate) fn reset_encoding(&mut self) -> Result<(), ServerError> {
        self.settings.encoding_afterwards = None;
        self.take_encoding(self.settings.startup_encoding.clone())
    }

    /// Makes it the session's, and tells the client where it is another.
    pub(crate) fn take_encoding(&mut self, encoding: Option<Arc<Encoding>>) -> Result<(), ServerError> {
        let name = |e: &Option<Arc<Encoding>>| e.as_ref().map(|e| e.name.clone());
        if name(&encoding) == name(&self.settings.encoding) {
            return Ok(());
        }
        self.client.set_encoding(encoding.clone().filter(|e| !e.is_identity))?;
        self.settings.encoding = encoding;
        let name = self.encoding_name();
        self.client.put_parameter(NAME, &name);
        Ok(())
    }

    /// The client's encoding, where text must be converted.
    pub(crate) fn converter(&self) -> Option<&Arc<Encoding>> {
        self.settings.encoding.as_ref().filter(|e| !e.is_identity)
    }

    fn encoding_name(&self) -> Arc<str> {
        self.settings
            .encoding
            .as_ref()
            .map_or("UTF8".into(), |e| e.name.clone())
    }

    /// SHOW client_encoding. False: a SHOW of something else.
    pub(crate) fn show_encoding(&mut self, unit: Unit<'_>) -> bool {
        let asked = matches!(&unit.statement.parsed.kind, Kind::Show { name: Some(name) } if name == NAME);
        if asked {
            let name = self.encoding_name();
            let shown = bytes::Bytes::copy_from_slice(name.as_bytes());
            self.put_shown(unit, &[NAME], &[vec![Some(shown)]]);
        }
        asked
    }

    /// SHOW ssl, which is about the connections that clients have: those to shards are their own. False: a SHOW of something else.
    pub(crate) fn show_ssl(&mut self, unit: Unit<'_>) -> bool {
        let asked = matches!(&unit.statement.parsed.kind, Kind::Show { name: Some(name) } if name == "ssl");
        let is_on = self.gateway.options.tls.is_some();
        if asked {
            let shown = bytes::Bytes::from_static(if is_on { b"on" } else { b"off" });
            self.put_shown(unit, &["ssl"], &[vec![Some(shown)]]);
        }
        asked
    }

    /// `set_config('client_encoding', …)` that the gateway has done already must not reach a shard: the call of a function
    /// that gives its second argument stands for it.
    pub(crate) fn without_set_config(&self, unit: Unit<'_>) -> Option<Instead> {
        let (text, tokens) = (&unit.statement.text, &unit.statement.parsed.tokens);
        let mentioned = |value: &[u8]| value.eq_ignore_ascii_case(NAME.as_bytes());
        let by_parameter = unit.parameters.iter().any(|(_, v)| v.as_deref().is_some_and(mentioned));
        if !by_parameter && !text.to_ascii_lowercase().contains(NAME) {
            return None;
        }
        let mut replacements = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            if token.identifier(text).is_none_or(|n| n != "set_config") {
                continue;
            }
            let named = i > 1 && tokens[i - 1].is(text, ".");
            let qualified = named && tokens[i - 2].names(text, "pg_catalog");
            if named && !qualified {
                continue;
            }
            let start = if qualified { tokens[i - 2].start } else { token.start };
            replacements.push((start as usize..token.end as usize, "pgherd.set_config".to_owned()));
        }
        (!replacements.is_empty()).then(|| Instead::new(text, &replacements))
    }

    /// Reads what the binary values of types are, where one of these is not known.
    pub(super) async fn know_shapes(&mut self, types: impl Iterator<Item = u32>) -> Result<(), ServerError> {
        let lacking = types
            .filter(|oid| matches!(Column::new(1, *oid), Column::Binary(_)))
            .any(|oid| self.client.shapes.lacks(oid));
        if lacking {
            let told = self.ask_home(SHAPES).await?;
            self.client.shapes = told.first().map(Shapes::read).unwrap_or_default();
        }
        Ok(())
    }

    /// Where the client has another encoding: what the rows of a statement that is not described now will be like.
    pub(crate) async fn expect_columns(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let formats = match unit.mode {
            Mode::Extended { formats, .. } if self.converter().is_some() => formats,
            _ => return Ok(()),
        };
        let rows = matches!(
            unit.statement.parsed.kind,
            Kind::Select { .. } | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge | Kind::Explain { .. }
        );
        // Only with formats that differ, or are binary, the types matter.
        if !rows || formats.iter().all(|f| *f == 0) {
            return Ok(self.client.expect_columns(vec![Column::Text; 1664])?);
        }
        let entered = self.enter(unit).await?;
        let described = self.description(unit, &entered.snapshot).await?;
        let binary = described.columns.iter().flatten().map(|c| c.type_oid);
        self.know_shapes(binary).await?;
        let columns = described.columns.iter().flatten().enumerate();
        let columns = columns.map(|(i, c)| Column::new(crate::client::format_of(formats, i), c.type_oid));
        Ok(self.client.expect_columns(columns.collect())?)
    }
}
