//! From a start-up message to a session that can serve: the role logs in on the home shard, which also judges the
//! start-up options and reports the parameters that the client is told.
//!
//! With `pgherd.pool_mode = session` in the start-up options, or set for the role or the database, the session keeps one
//! connection to the home shard from its start to its end, and its process id is that connection's. What looks at processes
//! from outside (pg_locks, pg_blocking_pids(), pg_stat_activity) sees the session as it sees those of a PostgreSQL server.
//! It costs what a PostgreSQL session costs: nobody else uses the connection.

use super::block::{Block, notice};
use super::settings::{Settings, parse_options};
use super::{Problem, Session};
use crate::authentication::limits;
use crate::client::Client;
use crate::encoding::is_utf8;
use crate::listener::Shared;
use crate::standing::{Keeps, Standing};
use pgherd_model::{ServerError, SqlState};
use pgherd_shards::Identity;
use std::sync::Arc;

/// What a start-up message asks for.
pub(crate) struct StartUp {
    /// the role and the database
    pub(crate) who: Identity,
    settings: Settings,
    /// client_encoding, where it is not UTF8
    encoding: Option<String>,
}

impl StartUp {
    /// Reads the parameters of the message.
    pub(crate) fn read(parameters: Vec<(String, String)>, gateway: &Shared) -> Result<Self, ServerError> {
        let (who, settings, encoding) = read_parameters(parameters, gateway)?;
        Ok(Self {
            who,
            settings,
            encoding,
        })
    }
}

impl Session {
    /// Begins the session of a client that may use the role; gives the client back with the reason where the role may not
    /// log in or the database does not exist.
    pub(crate) async fn start(
        mut client: Client,
        StartUp {
            who,
            settings,
            encoding,
        }: StartUp,
        gateway: Arc<Shared>,
    ) -> Result<Self, (Box<Client>, ServerError)> {
        // Authenticated, whatever else there is against it: before this a client takes an error for one of its way to connect, and tries another.
        client.put(b'R', &0i32.to_be_bytes());
        // Before all else, so that nobody closes the database meanwhile.
        let cancel = gateway.cancels.register(
            &who,
            client.socket(),
            Standing::new(client.ends().map(|(client, _)| client)),
        );
        let roles = &gateway.door.roles;
        if let Err(error) = limits::check(roles, &gateway.cancels, &who, gateway.options.max_clients_per_role).await {
            return Err((Box::new(client), error));
        }
        let database = match gateway.databases.get(&who.database).await {
            Ok(database) => database,
            Err(error) => return Err((Box::new(client), error)),
        };
        client.out.reserve(1024);
        let mut session = Self {
            gateway,
            client,
            who,
            database,
            settings,
            prepared: Default::default(),
            portals: Default::default(),
            block: Block::default(),
            cancel,
            listening: None,
            temporary: Default::default(),
            temporary_changed: false,
            told_in_block: Default::default(),
            drawn: Default::default(),
            row_locks: Default::default(),
            gathered: Vec::new(),
            skip_to_sync: false,
            copy_took_sync: false,
            used: None,
            explains_alone: false,
            explaining: None,
            held_cursors: Default::default(),
            cursor_texts: Default::default(),
        };
        match session.log_in(encoding).await {
            Ok(()) => Ok(session),
            Err(error) => Err((Box::new(session.client), error)),
        }
    }

    async fn log_in(&mut self, encoding: Option<String>) -> Result<(), ServerError> {
        self.who.login_defaults = self.login_defaults().await?;
        self.who.settings = self.settings.for_backends();
        let reported = self.home_backend().await?.parameters().to_vec();
        self.refresh_effective_settings().await?;
        let defaults = [
            (
                "pgherd.default_distribution",
                &self.gateway.options.default_distribution,
            ),
            ("pgherd.initial_bounds", &self.gateway.options.initial_bounds),
        ];
        self.settings
            .add_defaults(defaults.map(|(name, value)| (name, value.as_deref())));
        self.who.settings = self.settings.for_backends();
        self.check_own_settings()?;
        if self.settings.keeps_backend {
            self.keep_backend().await?;
        }
        self.tell_of_cut_name();
        for (name, value) in &reported {
            self.client.put_parameter(name, value);
        }
        if let Some(name) = encoding {
            self.set_encoding(&name).await?;
            self.settings.startup_encoding = self.settings.encoding.clone();
        }
        let mut key = self.cancel.process_id.to_be_bytes().to_vec();
        key.extend_from_slice(&self.cancel.secret.to_be_bytes());
        self.client.put(b'K', &key);
        let (name, fingerprint) = (self.settings.application_name(), self.settings.fingerprint());
        self.cancel.standing.set_name(name, fingerprint);
        self.client.put_ready(b'I');
        metrics::counter!("pgherd_sessions_total").increment(1);
        Ok(())
    }
}

impl Session {
    /// What a backend for this session must have logged in under. Backends of the pool may have logged in before the role's own
    /// settings were changed; those of a role that was dropped and made again are of no use, and closed.
    async fn login_defaults(&self) -> Result<i64, ServerError> {
        loop {
            let mut backend = self.home_backend().await?;
            match backend.login_defaults().await.map_err(ServerError::from) {
                Err(error) if error.sqlstate() == SqlState::UNDEFINED_OBJECT => backend.taint(),
                result => return result,
            }
        }
    }

    /// What PostgreSQL says where it cuts the start-up's application_name; a pooled backend has it already, or says so to nobody.
    fn tell_of_cut_name(&mut self) {
        let Some(name) = self.settings.startup_value("application_name") else {
            return;
        };
        let cut = pgherd_sql::lexer::cut_name(name.to_owned());
        if cut != name {
            let message = format!("identifier \"{name}\" will be truncated to \"{cut}\"");
            let told = notice("NOTICE", SqlState::from_code("42622"), &message);
            self.put_notice(&told);
        }
    }

    /// From now on one home-shard connection belongs to the session, which takes its process id.
    async fn keep_backend(&mut self) -> Result<(), ServerError> {
        match self.pin_home(Keeps::Always).await {
            Ok(()) => {}
            Err(Problem::Error(error)) => return Err(error),
            Err(_) => return Err(ServerError::internal("a connection to the home shard was lost")),
        }
        let process_id = self.home_backend().await?.process_id();
        self.cancel.take_process_id(process_id);
        Ok(())
    }
}

/// Splits the start-up message into who, where and settings.
fn read_parameters(
    parameters: Vec<(String, String)>,
    gateway: &Shared,
) -> Result<(Identity, Settings, Option<String>), ServerError> {
    let (mut user, mut database, mut startup, mut encoding) = (None, None, Vec::new(), None);
    for (name, value) in parameters {
        match name.as_str() {
            "user" => user = Some(value),
            "database" => database = Some(value),
            "options" => startup.extend(parse_options(&value)),
            "replication" if !matches!(value.as_str(), "false" | "off" | "no" | "0") => {
                return Err(ServerError::unsupported(
                    "replication connections are not available through a gateway",
                    "Connect to the shard itself; `pgherd status` shows where it is.",
                ));
            }
            "replication" => {}
            name if name.starts_with("_pq_.") => {}
            "client_encoding" if !is_utf8(&value) => encoding = Some(value),
            _ => startup.push((name, value)),
        }
    }
    let user = user.filter(|u| !u.is_empty()).ok_or_else(|| {
        ServerError::new(
            SqlState::INVALID_AUTHORIZATION,
            "no PostgreSQL user name specified in startup packet",
        )
    })?;
    if user == gateway.options.service_role {
        return Err(ServerError::new(
            SqlState::INVALID_AUTHORIZATION,
            format!("role \"{user}\" is the gateways' own and cannot log in through a gateway"),
        )
        .with_hint("Connect as another role."));
    }
    let database = database.filter(|d| !d.is_empty()).unwrap_or_else(|| user.clone());
    startup.retain(|(name, value): &(String, String)| {
        let other = name.eq_ignore_ascii_case("client_encoding") && !is_utf8(value);
        if other {
            encoding = Some(value.clone());
        }
        !other
    });
    Ok((
        Identity::new(&user, &database),
        Settings::from_startup(startup),
        encoding,
    ))
}
