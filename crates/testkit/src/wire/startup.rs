//! Where a server is, and how a session with it begins: the socket, the start-up message, authentication.

use super::{ServerError, Session};
use crate::{Error, Result};
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::{authentication, message::frontend};
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_postgres::config::Host;

const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// A bidirectional byte stream, TCP or a Unix socket.
pub(super) type Stream = Box<dyn Duplex>;

/// What a socket of either kind can do.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A server, a database in it, the role to log in as, and the start-up options to ask for.
#[derive(Debug, Clone)]
pub struct Target {
    host: Host,
    port: u16,
    user: String,
    password: Vec<u8>,
    database: String,
    options: String,
}

impl FromStr for Target {
    type Err = Error;

    /// Reads a `postgres://` URL or a `key=value` connection string, of which the first host counts.
    fn from_str(url: &str) -> Result<Self> {
        let config = tokio_postgres::Config::from_str(url).map_err(|error| Error::Url(error.to_string()))?;
        let user = config.get_user().unwrap_or("postgres").to_owned();
        Ok(Target {
            host: config
                .get_hosts()
                .first()
                .cloned()
                .unwrap_or_else(|| Host::Tcp("127.0.0.1".into())),
            port: config.get_ports().first().copied().unwrap_or(5432),
            password: config.get_password().unwrap_or_default().to_vec(),
            database: config.get_dbname().unwrap_or(&user).to_owned(),
            options: config.get_options().unwrap_or_default().to_owned(),
            user,
        })
    }
}

impl Target {
    /// The same server, another database.
    #[must_use]
    pub fn with_database(mut self, database: &str) -> Self {
        database.clone_into(&mut self.database);
        self
    }

    /// The same target with one more setting in the start-up options.
    #[must_use]
    pub fn with_setting(mut self, name: &str, value: &str) -> Self {
        if !self.options.is_empty() {
            self.options.push(' ');
        }
        self.options.push_str("-c ");
        self.options.push_str(name);
        self.options.push('=');
        // PostgreSQL splits the options at white space that no backslash precedes.
        for character in value.chars() {
            if character.is_whitespace() || character == '\\' {
                self.options.push('\\');
            }
            self.options.push(character);
        }
        self
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Opens a session.
    ///
    /// # Errors
    /// [`Error::Connect`] if nobody listens, [`Error::Server`] if the log-in is refused, [`Error::Timeout`] after 20 s.
    pub async fn connect(&self) -> Result<Session> {
        let opening = async {
            let stream = self.open_socket().await?;
            let mut session = Session {
                stream,
                incoming: BytesMut::new(),
                outgoing: BytesMut::new(),
                transaction_status: b'I',
                fed: None,
                usable: true,
            };
            self.log_in(&mut session).await?;
            Ok(session)
        };
        tokio::time::timeout(CONNECT_LIMIT, opening)
            .await
            .map_err(|_| Error::Timeout(CONNECT_LIMIT))?
    }

    async fn open_socket(&self) -> Result<Stream> {
        match &self.host {
            Host::Tcp(host) => match tokio::net::TcpStream::connect((host.as_str(), self.port)).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    Ok(Box::new(stream))
                }
                Err(source) => Err(Error::Connect {
                    target: format!("{host}:{}", self.port),
                    source,
                }),
            },
            #[cfg(unix)]
            Host::Unix(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", self.port));
                match tokio::net::UnixStream::connect(&path).await {
                    Ok(stream) => Ok(Box::new(stream)),
                    Err(source) => Err(Error::Connect {
                        target: path.display().to_string(),
                        source,
                    }),
                }
            }
        }
    }

    async fn log_in(&self, session: &mut Session) -> Result<()> {
        let mut parameters = vec![
            ("user", self.user.as_str()),
            ("database", self.database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", "pgherd-testkit"),
        ];
        if !self.options.is_empty() {
            parameters.push(("options", &self.options));
        }
        frontend::startup_message(parameters, &mut session.outgoing)?;
        flush(session).await?;
        loop {
            match session.next_message().await? {
                Message::AuthenticationOk
                | Message::BackendKeyData(_)
                | Message::ParameterStatus(_)
                | Message::NoticeResponse(_) => {}
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(&self.password, &mut session.outgoing)?;
                    flush(session).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = authentication::md5_hash(self.user.as_bytes(), &self.password, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut session.outgoing)?;
                    flush(session).await?;
                }
                Message::AuthenticationSasl(body) => self.prove_by_scram(session, &body).await?,
                Message::ErrorResponse(body) => return Err(Error::Server(ServerError::read(body.fields())?)),
                Message::ReadyForQuery(body) => {
                    session.transaction_status = body.status();
                    return Ok(());
                }
                _ => {
                    return Err(Error::Protocol(
                        "the server asks for an authentication that is not supported".into(),
                    ));
                }
            }
        }
    }

    async fn prove_by_scram(&self, session: &mut Session, body: &AuthenticationSaslBody) -> Result<()> {
        if !body.mechanisms().any(|mechanism| Ok(mechanism == SCRAM_SHA_256))? {
            return Err(Error::Protocol("the server does not offer SCRAM-SHA-256".into()));
        }
        let mut scram = ScramSha256::new(&self.password, ChannelBinding::unsupported());
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut session.outgoing)?;
        flush(session).await?;
        loop {
            match session.next_message().await? {
                Message::AuthenticationSaslContinue(body) => {
                    scram.update(body.data())?;
                    frontend::sasl_response(scram.message(), &mut session.outgoing)?;
                    flush(session).await?;
                }
                Message::AuthenticationSaslFinal(body) => return Ok(scram.finish(body.data())?),
                Message::ErrorResponse(body) => return Err(Error::Server(ServerError::read(body.fields())?)),
                _ => return Err(Error::Protocol("unexpected message during SCRAM".into())),
            }
        }
    }
}

async fn flush(session: &mut Session) -> Result<()> {
    session.stream.write_all(&session.outgoing).await?;
    session.outgoing.clear();
    Ok(())
}
