//! Lets clients in: finds the [`rules`] line for a connection and has the client prove who it is by that line's method.
//!
//! The roles and their passwords are PostgreSQL's own ([`roles`]); `CREATE ROLE … PASSWORD` and `VALID UNTIL` take effect at
//! the next login. Afterwards every statement runs on the shards as that role, which PostgreSQL itself enforces.

pub(crate) mod limits;
mod roles;
mod rules;
mod scram;

pub(crate) use roles::Roles;
pub use rules::{DEFAULT_RULES, Rules};

use crate::client::{Client, Gone};
use bytes::BytesMut;
use md5::Md5;
use pgherd_model::{ServerError, SqlState};
use pgwire::messages::PgWireFrontendMessage;
use pgwire::messages::startup::PasswordMessageFamily;
use rules::{Attempt, ClientCertificate, Method, Rule};
use scram::{Exchange, Verifier};
use sha2::Digest;
use std::collections::HashSet;
use std::net::IpAddr;

/// The codes of AuthenticationRequest messages.
mod request {
    pub(super) const MD5_PASSWORD: i32 = 5;
    pub(super) const SASL: i32 = 10;
    pub(super) const SASL_CONTINUE: i32 = 11;
    pub(super) const SASL_FINAL: i32 = 12;
}

/// What the gateway knows for letting clients in.
pub(crate) struct Door {
    pub(crate) rules: Rules,
    pub(crate) roles: Roles,
    /// for what must be the same at every gateway and secret from clients
    pub(crate) secret: String,
}

/// Why a client is not let in.
pub(crate) enum Refused {
    /// it is told
    Told(ServerError),
    /// it left
    Gone,
}

impl From<ServerError> for Refused {
    fn from(error: ServerError) -> Self {
        Self::Told(error)
    }
}

impl From<Gone> for Refused {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Garbage(error) | Gone::Data(error) | Gone::Text((error, _)) => Self::Told(error),
            Gone::Closed | Gone::FunctionCall(_) => Self::Gone,
        }
    }
}

impl From<std::io::Error> for Refused {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

impl Door {
    /// Has a client prove that it may use a role. AuthenticationOk is left to the caller.
    pub(crate) async fn let_in(
        &self,
        client: &mut Client,
        from: IpAddr,
        user: &str,
        database: &str,
    ) -> Result<(), Refused> {
        let roles = match self.rules.name_groups() {
            true => self.roles.of(user).await?,
            false => HashSet::new(),
        };
        let attempt = Attempt {
            user,
            database,
            from: from.to_canonical(),
            encrypted: client.encrypted().is_some(),
            roles: &roles,
        };
        let Some(rule) = self.rules.find(&attempt) else {
            return Err(no_rule(&attempt).into());
        };
        check_certificate(client, rule, user)?;
        match rule.method {
            Method::Trust | Method::Certificate => Ok(()),
            Method::Reject => Err(rejected(&attempt).into()),
            Method::ScramSha256 | Method::Md5 => self.ask_password(client, rule.method, user).await,
        }
    }

    async fn ask_password(&self, client: &mut Client, method: Method, user: &str) -> Result<(), Refused> {
        let stored = self.roles.password(user).await?;
        if let (Method::Md5, Ok(hash)) = (method, &stored)
            && hash.len() == 35
            && hash.starts_with("md5")
        {
            return ask_md5(client, user, hash).await;
        }
        let verifier = stored.and_then(|p| Verifier::parse(&p).ok_or("the password is not kept as a SCRAM verifier"));
        let known = verifier.as_ref().err().copied();
        // Whoever asks cannot tell from the exchange which roles exist.
        let verifier = verifier.unwrap_or_else(|_| Verifier::unknown(&self.secret, user));
        match ask_scram(client, verifier).await? {
            true if known.is_none() => Ok(()),
            _ => {
                tracing::info!(
                    user,
                    reason = known.unwrap_or("wrong password"),
                    "password authentication failed"
                );
                Err(wrong_password(user).into())
            }
        }
    }
}

/// Whether the client knew the password.
async fn ask_scram(client: &mut Client, verifier: Verifier) -> Result<bool, Refused> {
    let end_point = client.encrypted().and_then(|e| e.end_point.clone());
    let exchange = Exchange::new(verifier, end_point);
    let mut offered = Vec::new();
    for mechanism in exchange.mechanisms() {
        offered.extend_from_slice(mechanism.as_bytes());
        offered.push(0);
    }
    offered.push(0);
    put_request(client, request::SASL, &offered);
    let first = answer(client).await?;
    let (mechanism, data) = sasl_initial_response(&first).ok_or_else(malformed)?;
    let (challenge, challenged) = exchange.challenge(mechanism, data)?;
    put_request(client, request::SASL_CONTINUE, challenge.as_bytes());
    let last = answer(client).await?;
    let Some(proof) = challenged.verify(&last)? else {
        return Ok(false);
    };
    put_request(client, request::SASL_FINAL, proof.as_bytes());
    Ok(true)
}

async fn ask_md5(client: &mut Client, user: &str, hash: &str) -> Result<(), Refused> {
    let salt: [u8; 4] = rand::random();
    put_request(client, request::MD5_PASSWORD, &salt);
    let given = answer(client).await?;
    let given = given.strip_suffix(b"\0").ok_or_else(malformed)?;
    let mut hasher = Md5::new();
    hasher.update(&hash.as_bytes()[3..]);
    hasher.update(salt);
    let digits: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match given.strip_prefix(b"md5") == Some(digits.as_bytes()) {
        true => Ok(()),
        false => Err(wrong_password(user).into()),
    }
}

fn check_certificate(client: &Client, rule: &Rule, user: &str) -> Result<(), ServerError> {
    let certificate = client.encrypted().filter(|e| e.signed);
    let failed = |message: String| Err(ServerError::new(SqlState::INVALID_AUTHORIZATION, message));
    match (rule.certificate, certificate) {
        (ClientCertificate::NotAsked, _) | (ClientCertificate::Signed, Some(_)) => Ok(()),
        (_, None) => failed("connection requires a valid client certificate".into()),
        (ClientCertificate::NamesTheRole, Some(certificate)) => match certificate.common_name.as_deref() {
            Some(name) if name == user => Ok(()),
            name => {
                tracing::info!(user, ?name, "the client's certificate names another role");
                failed(format!("certificate authentication failed for user \"{user}\""))
            }
        },
    }
}

/// The body of the client's answer to a request.
async fn answer(client: &mut Client) -> Result<BytesMut, Refused> {
    client.flush().await?;
    match client.next().await? {
        PgWireFrontendMessage::PasswordMessageFamily(PasswordMessageFamily::Raw(body)) => Ok(body),
        PgWireFrontendMessage::Terminate(_) => Err(Refused::Gone),
        _ => Err(ServerError::new(SqlState::PROTOCOL_VIOLATION, "expected password response").into()),
    }
}

/// The mechanism's name, and the mechanism's first message behind its length.
fn sasl_initial_response(body: &[u8]) -> Option<(&str, &[u8])> {
    let end = body.iter().position(|byte| *byte == 0)?;
    let (length, data) = body[end + 1..].split_first_chunk::<4>()?;
    let length = i32::from_be_bytes(*length);
    (usize::try_from(length) == Ok(data.len())).then_some(())?;
    Some((std::str::from_utf8(&body[..end]).ok()?, data))
}

fn put_request(client: &mut Client, code: i32, data: &[u8]) {
    let mut body = code.to_be_bytes().to_vec();
    body.extend_from_slice(data);
    client.put(b'R', &body);
}

fn malformed() -> Refused {
    Refused::Told(ServerError::new(
        SqlState::PROTOCOL_VIOLATION,
        "invalid password packet",
    ))
}

fn wrong_password(user: &str) -> ServerError {
    ServerError::new(
        SqlState::INVALID_PASSWORD,
        format!("password authentication failed for user \"{user}\""),
    )
}

fn describe(attempt: &Attempt<'_>) -> String {
    let encryption = match attempt.encrypted {
        true => "SSL encryption",
        false => "no encryption",
    };
    format!(
        "host \"{}\", user \"{}\", database \"{}\", {encryption}",
        attempt.from, attempt.user, attempt.database
    )
}

fn no_rule(attempt: &Attempt<'_>) -> ServerError {
    let message = format!("no pg_hba.conf entry for {}", describe(attempt));
    ServerError::new(SqlState::INVALID_AUTHORIZATION, message)
        .with_hint("The gateway's rules are the list \"access\" in pgherd.toml.")
}

fn rejected(attempt: &Attempt<'_>) -> ServerError {
    let message = format!("pg_hba.conf rejects connection for {}", describe(attempt));
    ServerError::new(SqlState::INVALID_AUTHORIZATION, message)
        .with_hint("The gateway's rules are the list \"access\" in pgherd.toml.")
}
