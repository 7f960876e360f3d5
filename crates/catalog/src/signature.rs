//! The keyed hash by which a shard knows that a catalog write comes from a gateway of its cluster.

use sha2::{Digest, Sha256};

/// The proof for `SELECT pgherd.<function>($1, $2)` with `payload` and this as its parameters, on the backend with
/// this process id: `sha256(secret || sha256(secret || pid || '/' || function || ' ' || payload))` in hexadecimal. Send it as
/// a parameter, never in the text: others of the same role can read the text in `pg_stat_activity`.
pub fn sign(secret: &str, function: &str, payload: &str, process_id: i32) -> String {
    let inner = Sha256::digest(format!("{secret}{process_id}/{function} {payload}"));
    hex::encode(Sha256::new().chain_update(secret).chain_update(inner).finalize())
}
