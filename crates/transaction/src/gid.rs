//! The name of a transaction that is prepared on several shards.
//!
//! A prepared transaction's rows can be read by nobody, but its name can (`pg_prepared_xacts`). So the name says all that
//! recovery must know:
//!
//! ```text
//! pgherd:<cluster>:<database>:<participants>:<gateway>:<incarnation>.<generation>:<number>[:<last>]
//! pgherd:prod:1f3a9c02:16:gw1:3.0:1742          participants 0x16: shards 1, 2 and 4
//! pgherd:prod:1f3a9c02:16:gw1:3.0:1742:1        shard 1 is not prepared: it commits last, and so decides
//! pgherd:prod:1f3a9c02:16:gw1:3.c7:1742         the same, prepared by a client under a name of its own (see [`crate::prepared`])
//! ```
//!
//! Cluster and gateway are labels (see [`label`]); the database is a hash of its name, as names of prepared transactions
//! are shared by all databases of a server. Gateway and incarnation are those of the catalog's lease. The generation counts
//! up when a gateway was taken for dead and goes on under a new sequence. PostgreSQL allows 200 bytes.

use pgherd_model::ShardId;
use sha2::{Digest, Sha256};
use std::fmt;

/// What every name starts with; clients may not prepare under it.
pub const PREFIX: &str = "pgherd:";
/// Shards with a number from here on do not fit into the participants' bitmap.
const SHARD_LIMIT: u32 = 256;
/// Generations from here on name a sequence of one transaction, which a client has prepared. Written as `c0`, `c1` and so on.
const OF_CLIENTS: u32 = 1 << 31;
/// Longer labels are shortened to a hash.
const LABEL_LENGTH: usize = 32;

/// The numbers of one life of a gateway's coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId {
    /// the gateway's label
    pub gateway: String,
    /// which of its lives
    pub incarnation: u64,
    /// counts up within a life
    pub generation: u32,
}

impl SequenceId {
    /// The sequence of one transaction that a client prepares: it may stay for as long as the client likes, and no other
    /// transaction's watermark must wait for it.
    pub(crate) fn of_client(&self, number: u64) -> Self {
        Self {
            generation: OF_CLIENTS | (number % u64::from(OF_CLIENTS)) as u32,
            ..self.clone()
        }
    }

    /// Whether a sequence's text is that of one transaction which a client has prepared.
    pub(crate) fn text_is_of_client(text: &str) -> bool {
        text.rsplit_once('.')
            .is_some_and(|(_, generation)| generation.starts_with('c'))
    }
}

/// A parsed name. Its text is made by `Display`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gid {
    /// the cluster's label
    pub cluster: String,
    /// the hash of the database's name
    pub database: String,
    /// the shards that must commit together, ascending
    pub participants: Vec<ShardId>,
    /// who commits it
    pub sequence: SequenceId,
    /// which of its transactions
    pub number: u64,
    /// the participant that commits last, without being prepared
    pub last: Option<ShardId>,
}

impl Gid {
    /// From its text; `None` when it is not of this form.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix(PREFIX)?.split(':');
        let mut next = || parts.next();
        let (cluster, database, bitmap) = (next()?.to_string(), next()?.to_string(), next()?);
        let (gateway, life, number) = (next()?.to_string(), next()?, next()?.parse().ok()?);
        let last = match next() {
            Some(shard) => Some(ShardId(shard.parse().ok()?)),
            None => None,
        };
        if next().is_some() {
            return None;
        }
        let participants = shards_of(bitmap)?;
        if last.is_some_and(|last| !participants.contains(&last)) {
            return None;
        }
        let (incarnation, generation) = life.split_once('.')?;
        Some(Self {
            cluster,
            database,
            participants,
            sequence: SequenceId {
                gateway,
                incarnation: incarnation.parse().ok()?,
                generation: match generation.strip_prefix('c') {
                    Some(of_client) => OF_CLIENTS.checked_add(of_client.parse().ok()?)?,
                    None => generation.parse().ok().filter(|g| *g < OF_CLIENTS)?,
                },
            },
            number,
            last,
        })
    }

    /// Whether a client has prepared it, and decides how it ends.
    pub fn is_of_client(&self) -> bool {
        self.sequence.generation >= OF_CLIENTS
    }

    /// Whether shards of this number can be told in a name.
    pub fn fits(shard: ShardId) -> bool {
        shard.0 < SHARD_LIMIT
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bitmap = bitmap_of(&self.participants);
        let (cluster, database, sequence) = (&self.cluster, &self.database, &self.sequence);
        write!(f, "{PREFIX}{cluster}:{database}:{bitmap}:{sequence}:{}", self.number)?;
        match self.last {
            Some(shard) => write!(f, ":{shard}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}.", self.gateway, self.incarnation)?;
        match self.generation.checked_sub(OF_CLIENTS) {
            Some(of_client) => write!(f, "c{of_client}"),
            None => write!(f, "{}", self.generation),
        }
    }
}

/// Bit n is shard n; hexadecimal, without leading zeros.
fn bitmap_of(shards: &[ShardId]) -> String {
    let highest = shards.iter().map(|s| s.0).max().unwrap_or(0);
    let mut digits = vec![0u8; highest as usize / 4 + 1];
    for shard in shards {
        digits[shard.0 as usize / 4] |= 1 << (shard.0 % 4);
    }
    digits
        .iter()
        .rev()
        .map(|d| char::from_digit((*d).into(), 16).unwrap_or('0'))
        .collect()
}

fn shards_of(bitmap: &str) -> Option<Vec<ShardId>> {
    let mut shards = Vec::new();
    for (at, digit) in bitmap.chars().rev().enumerate() {
        let digit = digit.to_digit(16)?;
        shards.extend(
            (0..4)
                .filter(|bit| digit & (1 << bit) != 0)
                .map(|bit| ShardId(at as u32 * 4 + bit)),
        );
    }
    (!shards.is_empty()).then_some(shards)
}

/// A name that is safe inside a gid: itself where it is short and plain, else a hash of it.
pub fn label(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !name.is_empty() && name.len() <= LABEL_LENGTH && name.chars().all(plain) {
        return name.to_string();
    }
    let mut hash = hex::encode(Sha256::digest(name));
    hash.truncate(LABEL_LENGTH);
    hash
}

/// The hash of a database's name that its gids carry.
pub fn database_hash(database: &str) -> String {
    let mut hash = hex::encode(Sha256::digest(database));
    hash.truncate(8);
    hash
}

/// What shows a shard that a gateway of this cluster writes the marker: `sha256(secret || sha256(secret || gid))`. Nested,
/// since with a single hash one could prove longer gids from a shorter one.
pub fn proof(secret: &str, gid: &str) -> String {
    let inner = Sha256::new().chain_update(secret).chain_update(gid).finalize();
    hex::encode(Sha256::new().chain_update(secret).chain_update(inner).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(participants: &[u32]) -> Gid {
        Gid {
            cluster: "prod".into(),
            database: database_hash("postgres"),
            participants: participants.iter().map(|n| ShardId(*n)).collect(),
            sequence: SequenceId {
                gateway: "gw1".into(),
                incarnation: 3,
                generation: 0,
            },
            number: 1742,
            last: None,
        }
    }

    #[test]
    fn text_and_back() {
        for participants in [&[1, 2, 4][..], &[1], &[3, 255], &[0, 7, 8, 63, 64]] {
            let gid = sample(participants);
            assert_eq!(Gid::parse(&gid.to_string()), Some(gid));
        }
        let mut with_last = sample(&[1, 12]);
        with_last.last = Some(ShardId(12));
        assert!(with_last.to_string().ends_with(":1742:12"), "{with_last}");
        assert_eq!(Gid::parse(&with_last.to_string()), Some(with_last));
        let mut of_client = sample(&[1, 2]);
        of_client.sequence = of_client.sequence.of_client(7);
        assert!(of_client.is_of_client() && !sample(&[1, 2]).is_of_client());
        assert!(SequenceId::text_is_of_client(&of_client.sequence.to_string()));
        assert!(of_client.to_string().ends_with(":6:gw1:3.c7:1742"), "{of_client}");
        assert_eq!(Gid::parse(&of_client.to_string()), Some(of_client));
        let all: Vec<u32> = (0..SHARD_LIMIT).collect();
        let mut longest = sample(&all);
        longest.cluster = label(&"x".repeat(500));
        longest.last = Some(ShardId(255));
        longest.sequence = SequenceId {
            gateway: label(&"ü".repeat(60)),
            incarnation: u64::MAX / 1_000_000,
            generation: 9999,
        };
        assert!(longest.to_string().len() < 200, "{} bytes", longest.to_string().len());
        assert_eq!(
            sample(&[1, 2, 4]).to_string(),
            format!("pgherd:prod:{}:16:gw1:3.0:1742", database_hash("postgres"))
        );
    }

    #[test]
    fn other_names_are_not_ours() {
        for text in [
            "",
            "pgherd:",
            "mine",
            "pgherd:a:b:c",
            "pgherd:a:b:0:g:1.0:1",
            "pgherd:a:b:2:g:1:1",
            "pgherd:a:b:2:g:1.0:1:2",
            "pgherd:a:b:2:g:1.0:1:1:1",
            "pgherd:a:b:2:g:1.0:1:",
            "pgherd:a:b:2:g:1.2147483648:1",
            "pgherd:a:b:2:g:1.c2147483648:1",
            "pgherd:a:b:zz:g:1.0:1",
        ] {
            assert_eq!(Gid::parse(text), None, "{text}");
        }
    }

    #[test]
    fn labels_hold_no_separator() {
        assert_eq!(label("gw-1.eu_west"), "gw-1.eu_west");
        for name in ["", "a:b", "a'b", "ä", &"long".repeat(20)] {
            let label = label(name);
            assert!(
                !label.is_empty() && label.len() <= LABEL_LENGTH && label.chars().all(|c| c.is_ascii_alphanumeric())
            );
        }
    }
}
