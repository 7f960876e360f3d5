//! SET, RESET, DISCARD, SET TRANSACTION and SET CONSTRAINTS.
//!
//! PostgreSQL judges each: it runs on the home shard (in a block, on every participant), and what it accepted enters
//! the session's list, from which other backends are brought in line.

use super::block::notice;
use super::serializable::level_for;
use super::settings::{Settings, set_statement};
use super::{Problem, Session, Unit};
use pgherd_model::{ServerError, SqlState};
use pgherd_shards::{SimpleResult, UNKNOWN_SETTINGS};
use pgherd_sql::{Kind, SetValue};
use pgherd_transaction::{Isolation, Mode};

impl Session {
    /// Runs a statement that changes settings.
    pub(crate) async fn change_settings(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let text = unit.statement.text.clone();
        if let Some(mode) = self.mode_set_by_name(&unit.statement.parsed.kind) {
            self.change_mode(&mode).await?;
            self.client.put_tag("SET");
            return Ok(());
        }
        match &unit.statement.parsed.kind {
            Kind::Set { name, local: true, .. } => {
                if self.block.open().is_none_or(|open| open.implicit) {
                    self.run_setting(&text).await?;
                    let warning = notice(
                        "WARNING",
                        SqlState::NO_ACTIVE_TRANSACTION,
                        "SET LOCAL can only be used in transaction blocks",
                    );
                    self.client.put_notice(&warning);
                } else {
                    // It holds within the transaction only, so the home shard must be in it to judge and to be asked.
                    let home = self.gateway.shards.home();
                    if let Some(open) = self.block.open_mut() {
                        open.transaction.participant_to_set(home).await?;
                    }
                    self.run_setting(&text).await?;
                    if let Some(open) = self.block.open_mut() {
                        open.transaction.replay_on_join(text.clone());
                        open.has_local_settings = true;
                    }
                    self.after_setting(name).await?;
                }
                self.client.put_tag("SET");
            }
            Kind::Set {
                name,
                value: SetValue::Values(values),
                ..
            } if name == "client_encoding" && !super::settings::is_utf8(values.first().map_or("", String::as_str)) => {
                return Err(super::settings::only_utf8(values.first().map_or("", String::as_str)).into());
            }
            Kind::Set { name, value, .. } => {
                self.set(name, value, &text).await?;
                self.client.put_tag("SET");
            }
            Kind::Reset(Some(name)) => {
                let sql = format!("{text}{}", self.settings.startup_sql(Some(name)));
                self.run_setting(&sql).await?;
                self.settings.reset(name);
                self.settings_changed();
                self.after_setting(name).await?;
                self.client.put_tag("RESET");
            }
            Kind::Reset(None) => {
                let sql = format!("{text}{}", self.settings.startup_sql(None));
                self.run_setting(&sql).await?;
                self.settings.reset_all();
                self.settings_changed();
                self.refresh_effective_settings().await?;
                self.client.put_tag("RESET");
            }
            Kind::SetTransaction { .. } => self.set_transaction(unit).await?,
            Kind::SetConstraints => {
                self.on_all_participants(&text).await?;
                if let Some(open) = self.block.open_mut() {
                    open.transaction.replay_on_join(text.clone());
                }
                self.client.put_tag("SET CONSTRAINTS");
            }
            Kind::Discard(what) => self.discard(what).await?,
            _ => return Err(ServerError::internal("not a setting").into()),
        }
        Ok(())
    }

    /// `SET transaction_isolation = …` in a block is SET TRANSACTION by another name, and so is `transaction_read_only` where
    /// the shards' blocks are not what the client's is.
    fn mode_set_by_name(&self, kind: &Kind) -> Option<Mode> {
        let Kind::Set {
            name,
            value: SetValue::Values(values),
            ..
        } = kind
        else {
            return None;
        };
        let open = self.block.open().filter(|open| !open.implicit)?;
        let value = values.first()?;
        let mut mode = Mode::default();
        match name.as_str() {
            "transaction_isolation" => mode.isolation = Some(Isolation::from_setting(value)?),
            "transaction_read_only" if open.transaction.is_strict() => mode.read_only = Some(read_boolean(value)?),
            _ => return None,
        }
        Some(mode)
    }

    /// SET for the session.
    async fn set(&mut self, name: &str, value: &SetValue, text: &str) -> Result<(), Problem> {
        let before = self.settings.clone();
        match value {
            SetValue::Default => {
                let sql = format!("{text}{}", self.settings.startup_sql(Some(name)));
                self.run_setting(&sql).await?;
            }
            SetValue::Values(_) => self.run_setting(text).await?,
        }
        match value {
            SetValue::Default => self.settings.reset(name),
            SetValue::Values(_) => self.settings.set(name, text),
        }
        self.settings_changed();
        self.after_setting(name).await?;
        if let Err(error) = self.check_own_settings() {
            self.settings = before;
            self.settings_changed();
            return Err(error.into());
        }
        Ok(())
    }

    /// `set_config(name, value, is_local)` in a SELECT is SET by another name: the session takes the setting over before the
    /// statement runs, so that all backends, and routing, know of it. Arguments that are no constants are refused, since
    /// one backend alone would have the setting then.
    pub(crate) async fn take_over_set_config(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        for call in set_config_calls(&unit.statement.text) {
            let Some((name, value, local)) = call else {
                return Err(ServerError::unsupported(
                    "set_config with arguments that are not constants is not supported through a gateway yet",
                    "Use SET, or write the name, the value and true or false as constants.",
                )
                .into());
            };
            let in_block = self.block.open().is_some_and(|open| !open.implicit);
            if local && !in_block {
                continue;
            }
            let sql = set_statement(&name, &value);
            if !local {
                self.set(&name.to_ascii_lowercase(), &SetValue::Values(vec![value]), &sql)
                    .await?;
                continue;
            }
            let home = self.gateway.shards.home();
            let sql: std::sync::Arc<str> = sql.replacen("SET ", "SET LOCAL ", 1).into();
            if let Some(open) = self.block.open_mut() {
                open.transaction.participant(home).await?;
                open.transaction.replay_on_join(sql.clone());
                open.has_local_settings = true;
            }
            self.run_setting(&sql).await?;
            self.after_setting(&name.to_ascii_lowercase()).await?;
        }
        Ok(())
    }

    /// Runs it where PostgreSQL can judge it, and on all that the session holds now.
    async fn run_setting(&mut self, text: &str) -> Result<(), Problem> {
        self.on_all_participants(text).await?;
        let home = self.gateway.shards.home();
        if self.block.open().is_some_and(|open| open.transaction.enlisted(home)) {
            return Ok(());
        }
        let mut backend = self.home_backend().await?;
        backend.set_settings(UNKNOWN_SETTINGS);
        let before = backend.parameters().to_vec();
        backend.simple(text).await?;
        let told: Vec<_> = backend
            .parameters()
            .iter()
            .filter(|p| !before.contains(p))
            .cloned()
            .collect();
        self.tell_parameters(&told);
        Ok(())
    }

    fn tell_parameters(&mut self, parameters: &[(String, String)]) {
        for (name, value) in parameters {
            self.client.put_parameter(name, value);
        }
    }

    /// On every participant of the block; the client is told of the parameters that one of them reports anew.
    async fn on_all_participants(&mut self, text: &str) -> Result<Vec<SimpleResult>, Problem> {
        let mut results = Vec::new();
        let mut told = Vec::new();
        if let Some(open) = self.block.open_mut() {
            for (_, backend) in open.transaction.participants() {
                let before = backend.parameters().to_vec();
                // Whether it stays depends on the block's end.
                backend.set_settings(UNKNOWN_SETTINGS);
                results = backend.simple(text).await?;
                told = backend
                    .parameters()
                    .iter()
                    .filter(|p| !before.contains(p))
                    .cloned()
                    .collect();
            }
        }
        self.tell_parameters(&told);
        Ok(results)
    }

    /// The session's identity carries the settings to every checkout from now on.
    pub(crate) fn settings_changed(&mut self) {
        self.who.settings = self.settings.for_backends();
        let settings = self.who.settings.clone();
        if let Some(open) = self.block.open_mut() {
            open.transaction.set_settings(settings);
        }
    }

    /// Back to the settings of an earlier moment.
    pub(crate) fn restore_settings(&mut self, settings: Settings) {
        if settings.fingerprint() != self.settings.fingerprint()
            || settings.search_path_id != self.settings.search_path_id
            || settings.timeouts != self.settings.timeouts
        {
            self.settings = settings;
            self.settings_changed();
        }
    }

    /// Routing and the gateway's own time limits depend on few settings; only those are asked for again.
    async fn after_setting(&mut self, name: &str) -> Result<(), Problem> {
        const CONCERNS_GATEWAY: [&str; 8] = [
            "search_path",
            "role",
            "session_authorization",
            "default_transaction_isolation",
            "default_transaction_read_only",
            "statement_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
        ];
        if CONCERNS_GATEWAY.contains(&name) || name.starts_with("pgherd.") {
            self.refresh_effective_settings().await?;
        }
        Ok(())
    }

    async fn set_transaction(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let Kind::SetTransaction {
            isolation,
            read_only,
            deferrable,
            session,
            snapshot,
        } = &unit.statement.parsed.kind
        else {
            return Err(ServerError::internal("not SET TRANSACTION").into());
        };
        let text = unit.statement.text.clone();
        if snapshot.is_some() {
            return Err(ServerError::unsupported(
                "SET TRANSACTION SNAPSHOT is not supported through a gateway yet",
                "A snapshot belongs to one shard; connect to the shard itself.",
            )
            .into());
        }
        if *session {
            self.run_setting(&text).await?;
            self.settings.set("session characteristics", &text);
            self.settings_changed();
            self.after_setting("default_transaction_isolation").await?;
        } else if self.block.open().is_none_or(|open| open.implicit) {
            let warning = notice(
                "WARNING",
                SqlState::NO_ACTIVE_TRANSACTION,
                "SET TRANSACTION can only be used in transaction blocks",
            );
            self.client.put_notice(&warning);
        } else {
            let mode = Mode {
                isolation: isolation.map(super::block::isolation_of),
                read_only: *read_only,
                deferrable: *deferrable,
                implicit: false,
            };
            self.change_mode(&mode).await?;
        }
        self.client.put_tag("SET");
        Ok(())
    }

    /// Gives the open block what `wanted` says of its mode. PostgreSQL judges whether it is not too late.
    pub(crate) async fn change_mode(&mut self, wanted: &Mode) -> Result<(), Problem> {
        let catalog = self.database.catalog.snapshot();
        let level = wanted.isolation.map(|level| level_for(level, &catalog));
        let asked = self.mode_to_ask_for(wanted, level)?.set_sql();
        if !asked.is_empty() {
            self.on_all_participants(&asked).await?;
        }
        if level == Some(Isolation::StrictLocking) {
            // Judged as what the client asked for, it becomes what the shards are to be.
            let isolation = Some(Isolation::ReadCommitted);
            let of_shards = Mode {
                isolation,
                ..Mode::default()
            };
            self.on_all_participants(&of_shards.set_sql()).await?;
        }
        if let Some(open) = self.block.open_mut() {
            let mut mode = open.transaction.mode().clone();
            mode.isolation = level.or(mode.isolation);
            mode.read_only = wanted.read_only.or(mode.read_only);
            mode.deferrable = wanted.deferrable.or(mode.deferrable);
            open.transaction.set_mode(mode);
            open.first_catalog.get_or_insert(catalog);
        }
        Ok(())
    }

    async fn discard(&mut self, what: &str) -> Result<(), Problem> {
        if what == "ALL" && !self.block.is_none() {
            let error = ServerError::new(
                SqlState::ACTIVE_TRANSACTION,
                "DISCARD ALL cannot run inside a transaction block",
            );
            return Err(error.into());
        }
        if what == "ALL" || what == "SEQUENCES" {
            self.drawn.forget();
        }
        if what == "SEQUENCES" && self.who.pin.is_some() {
            self.ask_home("DISCARD SEQUENCES").await?;
        }
        if what == "ALL" || what.starts_with("TEMP") {
            match self.settings.keeps_backend {
                true => self.clean_pinned(what).await?,
                false => self.drop_pinned(),
            }
        }
        if what == "ALL" {
            self.prepared.clear();
            self.portals.clear();
            self.settings.discard();
            self.settings_changed();
            self.refresh_effective_settings().await?;
        }
        self.client.put_tag(&format!("DISCARD {what}"));
        Ok(())
    }

    /// Takes temporary tables, or all state of the session, from a backend that stays with it.
    async fn clean_pinned(&mut self, what: &str) -> Result<(), Problem> {
        let sql = match what {
            "ALL" => "CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP",
            _ => "DISCARD TEMP",
        };
        self.ask_home(sql).await?;
        self.temporary.clear();
        Ok(())
    }

    /// Gives up the pinned backend, and with it temporary tables and other state of the session.
    pub(crate) fn drop_pinned(&mut self) {
        self.who.pin = None;
        self.temporary.clear();
    }
}

/// A boolean setting's value; None for what PostgreSQL would refuse, or understands in more ways.
fn read_boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// The arguments of each `set_config(…)` in a text; None for those that are not constants.
fn set_config_calls(text: &str) -> Vec<Option<(String, String, bool)>> {
    let lower = text.to_ascii_lowercase();
    lower
        .match_indices("set_config")
        .map(|(at, word)| {
            let rest = text.get(at + word.len()..)?.trim_start().strip_prefix('(')?;
            let (name, rest) = string_argument(rest)?;
            let (value, rest) = string_argument(rest.trim_start().strip_prefix(',')?)?;
            let flag = rest
                .trim_start()
                .strip_prefix(',')?
                .split(')')
                .next()?
                .trim()
                .to_ascii_lowercase();
            let local = match flag.as_str() {
                "true" | "'t'" | "'true'" => true,
                "false" | "'f'" | "'false'" => false,
                _ => return None,
            };
            Some((name, value, local))
        })
        .collect()
}

/// A plain string constant, and what follows it.
fn string_argument(text: &str) -> Option<(String, &str)> {
    let inside = text.trim_start().strip_prefix('\'')?;
    let mut end = inside.find('\'')?;
    while inside[end + 1..].starts_with('\'') {
        end = end + 2 + inside[end + 2..].find('\'')?;
    }
    let value = &inside[..end];
    (!value.contains('\\')).then(|| (value.replace("''", "'"), &inside[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::set_config_calls;

    #[test]
    fn calls_of_set_config_are_read() {
        let one = |text: &str| set_config_calls(text).remove(0);
        assert_eq!(
            one("SELECT pg_catalog.set_config('search_path', '', false);"),
            Some(("search_path".into(), String::new(), false))
        );
        assert_eq!(
            one("select Set_Config ( 'a.b' , 'it''s', TRUE )"),
            Some(("a.b".into(), "it's".into(), true))
        );
        assert_eq!(one("select set_config(n, v, false) from t"), None);
        assert!(set_config_calls("select 1").is_empty());
    }
}
