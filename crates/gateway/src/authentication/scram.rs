//! The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it: the role's name is that of the start-up
//! message, and the server knows a verifier, never the password. No I/O.
//!
//! Written here because of what there is: pgwire's own brings a dependency under a licence that is not permissive, and
//! other crates panic on short messages, which anybody can send before they have logged in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use pgherd_model::{ServerError, SqlState};
use sha2::{Digest, Sha256};

/// The mechanism without channel binding.
pub(crate) const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism that binds the exchange to the TLS connection's certificate.
pub(crate) const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The only channel binding that PostgreSQL's clients know.
const END_POINT: &str = "tls-server-end-point";
/// PostgreSQL's number of iterations for new passwords, for the salts of roles that do not exist.
const ITERATIONS: u32 = 4096;

/// What is stored of a password: `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>` in `pg_authid`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

impl Verifier {
    /// Reads `rolpassword`; `None` where that is something else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some(Self {
            iterations: iterations.parse().ok()?,
            salt: BASE64.decode(salt).ok()?,
            stored_key: BASE64.decode(stored_key).ok()?.try_into().ok()?,
            server_key: BASE64.decode(server_key).ok()?.try_into().ok()?,
        })
    }

    /// One that no password meets. A role without a usable password, or none at all, looks from outside like any other: its
    /// salt stays the same from one attempt to the next, and across gateways.
    pub(crate) fn unknown(secret: &str, role: &str) -> Self {
        let salt = hmac(
            secret.as_bytes(),
            &[b"salt of a role without a password: ", role.as_bytes()],
        );
        Self {
            iterations: ITERATIONS,
            salt: salt[..16].to_vec(),
            stored_key: rand::random(),
            server_key: rand::random(),
        }
    }
}

/// An exchange that waits for the client's first message.
pub(crate) struct Exchange {
    verifier: Verifier,
    /// what binds to the TLS connection; offered to the client as [`SCRAM_SHA_256_PLUS`]
    end_point: Option<Vec<u8>>,
}

/// An exchange that waits for the client's second message.
pub(crate) struct Challenged {
    verifier: Verifier,
    /// what `c=` must say, decoded
    binding: Vec<u8>,
    nonce: String,
    client_first_bare: String,
    server_first: String,
}

impl Exchange {
    pub(crate) fn new(verifier: Verifier, end_point: Option<Vec<u8>>) -> Self {
        Self { verifier, end_point }
    }

    /// The mechanisms to offer, the better one first.
    pub(crate) fn mechanisms(&self) -> &'static [&'static str] {
        match self.end_point {
            Some(_) => &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256],
            None => &[SCRAM_SHA_256],
        }
    }

    /// Takes the client's first message; returns the server's.
    pub(crate) fn challenge(self, mechanism: &str, message: &[u8]) -> Result<(String, Challenged), ServerError> {
        let server_nonce = BASE64.encode(rand::random::<[u8; 18]>());
        self.challenge_with(mechanism, message, &server_nonce)
    }

    fn challenge_with(
        self,
        mechanism: &str,
        message: &[u8],
        server_nonce: &str,
    ) -> Result<(String, Challenged), ServerError> {
        if !self.mechanisms().contains(&mechanism) {
            return Err(ServerError::new(
                SqlState::PROTOCOL_VIOLATION,
                "client selected an invalid SASL authentication mechanism",
            ));
        }
        let message = std::str::from_utf8(message).map_err(|_| malformed("The message is no UTF-8."))?;
        let mut parts = message.splitn(3, ',');
        let (flag, authorization) = (parts.next().unwrap_or(""), parts.next());
        let (Some(authorization), Some(bare)) = (authorization, parts.next()) else {
            return Err(malformed("The message is too short."));
        };
        let is_plus = mechanism == SCRAM_SHA_256_PLUS;
        let mut binding = format!("{flag},{authorization},").into_bytes();
        match flag {
            "n" if !is_plus => {}
            "y" if !is_plus && self.end_point.is_none() => {}
            // Somebody between the two may have hidden the better mechanism.
            "y" if !is_plus => {
                return Err(ServerError::new(
                    SqlState::INVALID_AUTHORIZATION,
                    "SCRAM channel binding negotiation error",
                )
                .with_detail(
                    "The client supports SCRAM channel binding but thinks the server does not. However, this server does support channel binding.",
                ));
            }
            flag if is_plus && flag.strip_prefix("p=") == Some(END_POINT) => {
                binding.extend_from_slice(self.end_point.as_deref().unwrap_or_default());
            }
            flag if is_plus && flag.starts_with("p=") => {
                return Err(ServerError::new(
                    SqlState::PROTOCOL_VIOLATION,
                    format!("unsupported SCRAM channel-binding type \"{}\"", &flag[2..]),
                ));
            }
            _ => return Err(malformed("The channel-binding flag does not fit the mechanism.")),
        }
        if !authorization.is_empty() {
            return Err(ServerError::new(
                SqlState::FEATURE_NOT_SUPPORTED,
                "client uses authorization identity, but it is not supported",
            ));
        }
        // The name is not looked at: it is that of the start-up message, and libpq leaves it out.
        let mut attributes = bare.split(',');
        match attributes.next() {
            Some(name) if name.starts_with("n=") => {}
            Some(extension) if extension.starts_with("m=") => {
                return Err(ServerError::new(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "client requires an unsupported SCRAM extension",
                ));
            }
            _ => return Err(malformed("The user name is missing.")),
        }
        let is_printable = |nonce: &&str| !nonce.is_empty() && nonce.bytes().all(|b| matches!(b, 0x21..=0x7e));
        let client_nonce = attributes
            .next()
            .and_then(|a| a.strip_prefix("r="))
            .filter(is_printable)
            .ok_or_else(|| malformed("The nonce is missing or not printable."))?;
        let nonce = format!("{client_nonce}{server_nonce}");
        let salt = BASE64.encode(&self.verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", self.verifier.iterations);
        let challenged = Challenged {
            verifier: self.verifier,
            binding,
            nonce,
            client_first_bare: bare.to_owned(),
            server_first: server_first.clone(),
        };
        Ok((server_first, challenged))
    }
}

impl Challenged {
    /// Takes the client's second message; returns the server's last one, or `None` where the password was wrong.
    pub(crate) fn verify(self, message: &[u8]) -> Result<Option<String>, ServerError> {
        let message = std::str::from_utf8(message).map_err(|_| malformed("The message is no UTF-8."))?;
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or_else(|| malformed("The proof is missing."))?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c="));
        let binding = binding.and_then(|b| BASE64.decode(b).ok());
        if binding.as_deref() != Some(&self.binding) {
            return Err(ServerError::new(
                SqlState::INVALID_AUTHORIZATION,
                "SCRAM channel binding check failed",
            ));
        }
        if attributes.next().and_then(|a| a.strip_prefix("r=")) != Some(&self.nonce) {
            return Err(ServerError::new(SqlState::PROTOCOL_VIOLATION, "invalid SCRAM response")
                .with_detail("Nonce does not match."));
        }
        let proof = BASE64.decode(proof).ok().and_then(|p| <[u8; 32]>::try_from(p).ok());
        let proof = proof.ok_or_else(|| malformed("The proof is not 32 bytes in base64."))?;
        let said = [
            self.client_first_bare.as_bytes(),
            b",",
            self.server_first.as_bytes(),
            b",",
            without_proof.as_bytes(),
        ];
        let signature = hmac(&self.verifier.stored_key, &said);
        let mut client_key = [0; 32];
        for (key, (proof, signature)) in client_key.iter_mut().zip(proof.iter().zip(signature)) {
            *key = proof ^ signature;
        }
        if Sha256::digest(client_key)[..] != self.verifier.stored_key {
            return Ok(None);
        }
        let signature = hmac(&self.verifier.server_key, &said);
        Ok(Some(format!("v={}", BASE64.encode(signature))))
    }
}

fn malformed(detail: &str) -> ServerError {
    ServerError::new(SqlState::PROTOCOL_VIOLATION, "malformed SCRAM message").with_detail(detail)
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677's example: user "user", password "pencil".
    fn verifier() -> Verifier {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("base64");
        let mut salted = hmac(b"pencil", &[&salt, &1u32.to_be_bytes()]);
        let mut last = salted;
        for _ in 1..4096 {
            last = hmac(b"pencil", &[&last]);
            salted.iter_mut().zip(last).for_each(|(s, l)| *s ^= l);
        }
        Verifier {
            iterations: 4096,
            salt,
            stored_key: Sha256::digest(hmac(&salted, &[b"Client Key"])).into(),
            server_key: hmac(&salted, &[b"Server Key"]),
        }
    }

    const FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

    fn challenged(first: &[u8]) -> Result<(String, Challenged), ServerError> {
        Exchange::new(verifier(), None).challenge_with(SCRAM_SHA_256, first, SERVER_NONCE)
    }

    #[test]
    fn the_example_of_rfc_7677() {
        let (server_first, challenged) = challenged(FIRST).expect("first");
        assert_eq!(
            server_first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(
            challenged.verify(last).expect("well formed").expect("right"),
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
    }

    #[test]
    fn wrong_proofs_and_malformed_messages() {
        let last = |text: &str| {
            let (_, challenged) = challenged(FIRST).expect("first");
            challenged.verify(text.as_bytes())
        };
        let wrong = format!(
            "c=biws,r=rOprNGfwEbeRWgbNEkqO{SERVER_NONCE},p={}",
            BASE64.encode([7; 32])
        );
        assert!(last(&wrong).expect("well formed").is_none());
        let refused = |text: &str| last(text).expect_err(text).sqlstate().code().to_owned();
        assert_eq!(
            refused(&wrong.replace("biws", "eSws")),
            "28000",
            "another flag than in the first message"
        );
        assert_eq!(refused(&wrong.replace("rOprN", "xOprN")), "08P01");
        for text in ["", "c", ",p=", "c=biws,r=x", "c=biws,r=,p=AA=="] {
            assert!(last(text).is_err(), "{text}");
        }
        for text in [
            "",
            "n",
            "n,",
            "n,,",
            "n,,n=",
            "n,,n=,r=",
            "n,,r=x",
            "q,,n=,r=x",
            "p=tls-unique,,n=,r=x",
            "y,a=x,n=,r=x",
        ] {
            assert!(challenged(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(
            challenged(b"n,a=bob,n=,r=x")
                .err()
                .expect("authorization identity")
                .sqlstate()
                .code(),
            "0A000"
        );
    }

    #[test]
    fn channel_binding() {
        let start = |mechanism: &str, message: &str| {
            Exchange::new(verifier(), Some(b"hash".to_vec())).challenge(mechanism, message.as_bytes())
        };
        assert!(start(SCRAM_SHA_256_PLUS, "p=tls-server-end-point,,n=,r=x").is_ok());
        assert!(start(SCRAM_SHA_256_PLUS, "n,,n=,r=x").is_err());
        assert!(start(SCRAM_SHA_256, "n,,n=,r=x").is_ok());
        let hidden = start(SCRAM_SHA_256, "y,,n=,r=x")
            .err()
            .expect("somebody hid the better mechanism");
        assert!(hidden.to_string().contains("negotiation"), "{hidden}");
        assert!(start(SCRAM_SHA_256, "p=tls-server-end-point,,n=,r=x").is_err());
        let without = Exchange::new(verifier(), None);
        assert!(
            without
                .challenge(SCRAM_SHA_256_PLUS, b"p=tls-server-end-point,,n=,r=x")
                .is_err()
        );
    }

    #[test]
    fn verifiers() {
        let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert!(Verifier::parse(text).expect("verifier") == verifier());
        assert!(Verifier::parse("md5f2ff6d31ca8b2ea71fec8e6ae03ed5f5").is_none());
        assert!(Verifier::parse("SCRAM-SHA-256$4096:x").is_none());
        let salt = |role| Verifier::unknown("secret", role).salt;
        assert_eq!(salt("bob"), salt("bob"));
        assert_ne!(salt("bob"), salt("eve"));
    }
}
