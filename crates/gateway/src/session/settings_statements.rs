//! SET, RESET, DISCARD and SET TRANSACTION.
//!
//! PostgreSQL judges each: it runs on the home shard (in a block, on every participant), and what it accepted enters
//! the session's list, from which other backends are brought in line.

use super::block::notice;
use super::serializable::level_for;
use super::settings::{Settings, set_statement};
use super::{Mode as UnitMode, Problem, Session, Unit};
use pgherd_model::{ServerError, SqlState};
use pgherd_shards::UNKNOWN_SETTINGS;
use pgherd_sql::{Kind, SetValue};
use pgherd_transaction::{Isolation, Mode};
use std::sync::Arc;

impl Session {
    /// Runs a statement that changes settings.
    pub(crate) async fn change_settings(&mut self, unit: Unit<'_>) -> Result<(), Problem> {
        let text = unit.statement.text.clone();
        if let Some(mode) = self.mode_set_by_name(&unit.statement.parsed.kind) {
            self.change_mode(&mode).await?;
            self.client.put_tag("SET");
            return Ok(());
        }
        if self.sets_encoding(&unit.statement.parsed.kind).await? {
            return Ok(());
        }
        match &unit.statement.parsed.kind {
            Kind::Set { name, local, .. } if *local || self.is_of_open_transaction(name) => {
                if self.block.open().is_none() {
                    // The home shard warns that it does nothing.
                    self.run_setting(&text).await?;
                } else {
                    // The statements of one Query are a transaction block to PostgreSQL, those of a pipeline are not; it holds in both.
                    let is_pipeline = matches!(unit.mode, UnitMode::Extended { .. });
                    if is_pipeline && self.block.open().is_some_and(|open| open.implicit) {
                        let warning = notice(
                            "WARNING",
                            SqlState::NO_ACTIVE_TRANSACTION,
                            "SET LOCAL can only be used in transaction blocks",
                        );
                        self.put_notice(&warning);
                    }
                    // It holds within the transaction only, so the home shard must be in it to judge and to be asked.
                    let home = self.gateway.shards.home();
                    if let Some(open) = self.block.open_mut() {
                        open.transaction.participant_to_set(home).await?;
                    }
                    self.run_local_setting(text.clone()).await?;
                    self.after_setting(name).await?;
                }
                self.client.put_tag("SET");
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
                self.reset_encoding()?;
                self.client.put_tag("RESET");
            }
            Kind::SetTransaction { .. } => self.set_transaction(unit).await?,
            Kind::SetConstraints => self.set_constraints(unit).await?,
            Kind::Discard(what) => self.discard(what).await?,
            _ => return Err(ServerError::internal("not a setting").into()),
        }
        Ok(())
    }

    /// `SET transaction_isolation = …` in a block is SET TRANSACTION by another name, and so is `transaction_read_only`.
    fn mode_set_by_name(&self, kind: &Kind) -> Option<Mode> {
        let Kind::Set {
            name,
            value: SetValue::Values(values),
            ..
        } = kind
        else {
            return None;
        };
        self.block.open().filter(|open| !open.implicit)?;
        let value = values.first()?;
        let mut mode = Mode::default();
        match name.as_str() {
            "transaction_isolation" => mode.isolation = Some(Isolation::from_setting(value)?),
            "transaction_read_only" => mode.read_only = Some(read_boolean(value)?),
            _ => return None,
        }
        Some(mode)
    }

    /// Whether it is a setting that no transaction leaves to the next one, in a block.
    fn is_of_open_transaction(&self, name: &str) -> bool {
        let names = [
            "transaction_deferrable",
            "transaction_isolation",
            "transaction_read_only",
        ];
        self.block.open().is_some() && names.contains(&name)
    }

    /// SET for the session.
    pub(super) async fn set(&mut self, name: &str, value: &SetValue, text: &str) -> Result<(), Problem> {
        let before = self.settings.clone();
        let mut told = Vec::new();
        match value {
            SetValue::Default => {
                let sql = format!("{text}{}", self.settings.startup_sql(Some(name)));
                self.run_setting(&sql).await?;
            }
            SetValue::Values(_) => told = self.run_setting(text).await?,
        }
        match value {
            SetValue::Default => self.settings.reset(name),
            // `SET datestyle TO dmy` leaves the style as it is: what counts is the sum of all that were said.
            SetValue::Values(_) if name == "datestyle" => {
                if let Some((_, whole)) = told.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
                    self.settings.set(name, &set_statement(name, whole));
                }
            }
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

    /// Runs it where PostgreSQL can judge it, and on all that the session holds now. Returns what it changed of the parameters
    /// that PostgreSQL reports.
    pub(super) async fn run_setting(&mut self, text: &str) -> Result<Vec<(String, String)>, Problem> {
        let told = self.run_setting_now(text).await?;
        // A shard that joins from now on is told behind the savepoint, which undoes it there as well.
        if let Some(open) = self.block.open_mut().filter(|open| open.transaction.is_told_in_order()) {
            open.transaction.replay_on_join(text.into());
        }
        Ok(told)
    }

    /// The same for SET LOCAL in a block, which every shard that joins is told.
    pub(super) async fn run_local_setting(&mut self, text: Arc<str>) -> Result<(), Problem> {
        self.run_setting_now(&text).await?;
        if let Some(open) = self.block.open_mut() {
            open.transaction.replay_on_join(text);
            open.has_local_settings = true;
        }
        Ok(())
    }

    async fn run_setting_now(&mut self, text: &str) -> Result<Vec<(String, String)>, Problem> {
        let told = self.on_all_participants(text).await?;
        let home = self.gateway.shards.home();
        if self.block.open().is_some_and(|open| open.transaction.enlisted(home)) {
            return Ok(told);
        }
        let mut backend = self.home_backend().await?;
        backend.set_settings(UNKNOWN_SETTINGS);
        let before = backend.parameters().to_vec();
        // What was said when it was brought in line with the session is nothing new.
        backend.take_notices();
        let set = backend.simple(text).await;
        let notices = backend.take_notices();
        let told: Vec<_> = backend
            .parameters()
            .iter()
            .filter(|p| !before.contains(p))
            .cloned()
            .collect();
        notices.iter().for_each(|notice| self.client.put_notice(notice));
        set?;
        self.tell_parameters(&told);
        Ok(told)
    }

    fn tell_parameters(&mut self, parameters: &[(String, String)]) {
        for (name, value) in parameters {
            self.client.put_parameter(name, value);
            if self.block.open().is_some() {
                self.told_in_block.insert(name.clone(), value.clone());
            }
        }
    }

    /// The block, or a part of it, has ended, and SET LOCAL or what was undone with it: tells what parameters are again.
    pub(super) async fn tell_parameters_again(&mut self) {
        if self.told_in_block.is_empty() {
            return;
        }
        let in_block = self.block.open().is_some();
        // Whoever joins is given the session's settings outside of its transaction, and keeps them when that is undone as a whole. Behind
        // a savepoint they are told inside, so that all participants have the same.
        let undone = self.block.is_failed();
        let open = self
            .block
            .open_mut()
            .filter(|open| !undone || !open.transaction.is_lost());
        let participant = open.and_then(|open| {
            let (_, backend) = open.transaction.participants().next()?;
            Some(backend.parameters().to_vec())
        });
        let now = match participant {
            Some(now) => Ok(now),
            None => self.home_backend().await.map(|backend| backend.parameters().to_vec()),
        };
        let Ok(now) = now else { return };
        for (name, value) in now {
            if let Some(told) = self.told_in_block.get_mut(&name).filter(|told| **told != value) {
                self.client.put_parameter(&name, &value);
                *told = value;
            }
        }
        if !in_block {
            self.told_in_block.clear();
        }
    }

    /// On every participant of the block; the client is told of the parameters that one of them reports anew.
    async fn on_all_participants(&mut self, text: &str) -> Result<Vec<(String, String)>, Problem> {
        let mut told = Vec::new();
        if let Some(open) = self.block.open_mut() {
            for (_, backend) in open.transaction.participants() {
                let before = backend.parameters().to_vec();
                // Whether it stays depends on the block's end.
                backend.set_settings(UNKNOWN_SETTINGS);
                backend.simple(text).await?;
                told = backend
                    .parameters()
                    .iter()
                    .filter(|p| !before.contains(p))
                    .cloned()
                    .collect();
            }
        }
        self.tell_parameters(&told);
        Ok(told)
    }

    /// The session's identity carries the settings to every checkout from now on.
    pub(crate) fn settings_changed(&mut self) {
        self.who.settings = self.settings.for_backends();
        let settings = self.who.settings.clone();
        if let Some(open) = self.block.open_mut()
            && !open.transaction.is_told_in_order()
        {
            open.transaction.set_settings(settings);
        }
    }

    /// A block has failed: what was set since its last savepoint, or since it began, is undone with the rest.
    pub(crate) async fn undo_settings(&mut self) {
        let Some(open) = self.block.open() else { return };
        let before = open.settings_before_last_savepoint().clone();
        self.restore_settings(before);
        self.tell_parameters_again().await;
    }

    /// Back to the settings of an earlier moment.
    pub(crate) fn restore_settings(&mut self, mut settings: Settings) {
        let encoding = std::mem::replace(&mut settings.encoding, self.settings.encoding.clone());
        self.settings.encoding_afterwards = settings.encoding_afterwards.take();
        if settings.fingerprint() != self.settings.fingerprint()
            || settings.search_path_id != self.settings.search_path_id
            || settings.timeouts != self.settings.timeouts
            || settings.least_severity != self.settings.least_severity
            || settings.escapes_in_strings != self.settings.escapes_in_strings
            || settings.warns_of_escapes != self.settings.warns_of_escapes
        {
            self.settings = settings;
            self.settings_changed();
        }
        // Replies that the encoding has no characters for are told as an error when they are sent.
        let _ = self.take_encoding(encoding);
    }

    /// Routing and the gateway's own time limits depend on few settings; only those are asked for again.
    pub(super) async fn after_setting(&mut self, name: &str) -> Result<(), Problem> {
        const CONCERNS_GATEWAY: [&str; 11] = [
            "search_path",
            "role",
            "session_authorization",
            "default_transaction_isolation",
            "default_transaction_read_only",
            "statement_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
            "client_min_messages",
            "standard_conforming_strings",
            "escape_string_warning",
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
        // As for SET LOCAL: the statements of one Query are a block.
        let is_pipeline = matches!(unit.mode, UnitMode::Extended { .. });
        let in_block = self.block.open().is_some_and(|open| !(open.implicit && is_pipeline));
        if *session {
            self.run_setting(&text).await?;
            self.settings.set("session characteristics", &text);
            self.settings_changed();
            self.after_setting("default_transaction_isolation").await?;
        } else if !in_block {
            let warning = notice(
                "WARNING",
                SqlState::NO_ACTIVE_TRANSACTION,
                "SET TRANSACTION can only be used in transaction blocks",
            );
            self.put_notice(&warning);
        } else if snapshot.is_none() {
            let mode = Mode {
                isolation: isolation.map(super::block::isolation_of),
                read_only: *read_only,
                deferrable: *deferrable,
                implicit: false,
            };
            self.change_mode(&mode).await?;
        }
        if let Some(name) = snapshot {
            self.import_snapshot(name).await?;
        }
        self.client.put_tag("SET");
        Ok(())
    }

    /// Gives the open block what `wanted` says of its mode. PostgreSQL judges whether it is not too late.
    pub(crate) async fn change_mode(&mut self, wanted: &Mode) -> Result<(), Problem> {
        let catalog = self.database.catalog.snapshot();
        let level = wanted.isolation.map(|level| level_for(level, &catalog));
        let asked = self.mode_to_ask_for(wanted, level)?.set_sql();
        if wanted.read_only == Some(true)
            && level.is_none()
            && let Some(open) = self.block.open_mut()
        {
            open.transaction.close_for_writes();
        }
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
        if what == "ALL" && self.settings.keeps_backend {
            self.clean_pinned().await?;
        } else if what == "ALL" {
            self.drop_pinned();
        } else if what.starts_with("TEMP") {
            self.discard_temporary().await?;
        }
        if what == "ALL" {
            self.held_cursors.clear();
            self.prepared.clear();
            self.portals.clear();
            self.settings.discard();
            self.settings_changed();
            self.refresh_effective_settings().await?;
            self.reset_encoding()?;
        }
        self.client.put_tag(&format!("DISCARD {what}"));
        Ok(())
    }

    /// Takes all state of the session from a backend that stays with it.
    async fn clean_pinned(&mut self) -> Result<(), Problem> {
        let sql = "CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP";
        self.ask_home(sql).await?;
        self.listening = None;
        self.temporary.clear();
        Ok(())
    }

    /// DISCARD TEMP; other state stays.
    async fn discard_temporary(&mut self) -> Result<(), Problem> {
        if self.who.pin.is_some() {
            self.ask_home("DISCARD TEMP").await?;
        }
        self.temporary.clear();
        Ok(())
    }

    /// Gives up the pinned backend, and with it temporary tables and other state of the session.
    pub(crate) fn drop_pinned(&mut self) {
        self.who.pin = None;
        self.cancel.standing.keeps_nothing();
        self.listening = None;
        self.temporary.clear();
    }
}

/// A boolean setting's value; None for what PostgreSQL would refuse, or understands in more ways.
pub(super) fn read_boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "on" | "true" | "t" | "yes" | "1" => Some(true),
        "off" | "false" | "f" | "no" | "0" => Some(false),
        _ => None,
    }
}
