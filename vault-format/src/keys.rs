//! Object keys, built and parsed in this one place.
//!
//! Every name is used once: an object, once written, never changes, and a name that was deleted is never written
//! again. Numbers are padded so that names sort. **Do not change a name without a migration**: the test pins them.
//!
//! ```text
//! vault                                           the vault's header
//! clusters/<number>                               who has points here; dense from 1, never deleted
//! points/<cluster>/<number>/intent                dense from 1, never deleted
//! points/<cluster>/<number>/outcome               decides the point, never deleted
//! points/<cluster>/<number>/manifest-<root>       written before the outcome that names it
//! plans/<cluster>/<number>                        of restores; dense from 1, never deleted
//! packs/<first 2 digits of id>/<id>               blobs
//! probe/<nonce>/<round>                           left by a probe that was interrupted; may be deleted at any time
//! ```

use std::fmt;
use std::str::FromStr;

use crate::ids::{BlobId, IdError, PackId, PlanId, PointId};

/// Longest cluster id accepted, in bytes. Kafka's own are 22 characters; a local file name ends at 255 bytes.
pub const CLUSTER_ID_LEN_MAX: usize = 80;

/// Longest name of a cluster accepted, in bytes. Long enough to speak, short enough for a line of a listing.
pub const CLUSTER_NAME_LEN_MAX: usize = 80;

/// The name of an object in a vault, below the vault's own prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The vault's header.
    Vault,
    /// A cluster record; numbers are dense and start at 1.
    Cluster(u32),
    /// Who takes a point.
    Intent(PointId),
    /// The one key that decides a point.
    Outcome(PointId),
    /// A point's manifest, named by the hash of its encoded message.
    Manifest(PointId, BlobId),
    /// A plan of a restore; numbers are dense and start at 1.
    Plan(PlanId),
    /// A pack.
    Pack(PackId),
    /// A probe for create-if-absent: nonce and round.
    Probe([u8; 16], u32),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Vault => f.write_str("vault"),
            Key::Cluster(number) => write!(f, "clusters/{number:06}"),
            Key::Intent(point) => write_point(f, point).and_then(|()| f.write_str("intent")),
            Key::Outcome(point) => write_point(f, point).and_then(|()| f.write_str("outcome")),
            Key::Manifest(point, root) => write_point(f, point).and_then(|()| write!(f, "manifest-{root}")),
            Key::Plan(plan) => write_cluster(f, "plans", &plan.cluster_id, plan.number),
            Key::Pack(id) => write!(f, "packs/{:02x}/{id}", id.0[0]),
            Key::Probe(nonce, round) => write!(f, "probe/{}/{round}", PackId(*nonce)),
        }
    }
}

impl FromStr for Key {
    type Err = IdError;

    /// Accepts exactly what `Display` writes.
    fn from_str(text: &str) -> Result<Self, IdError> {
        parse(text)
            .filter(|key| key.to_string() == text)
            .ok_or_else(|| IdError::new(text, "the key of a vault's object"))
    }
}

/// Parses leniently: `from_str` compares with what would have been written.
fn parse(text: &str) -> Option<Key> {
    let parts: Vec<&str> = text.split('/').collect();
    match *parts {
        ["vault"] => Some(Key::Vault),
        ["clusters", number] => number.parse().ok().filter(|number| *number > 0).map(Key::Cluster),
        ["points", cluster, number, name] => {
            let number = number.parse().ok().filter(|number| *number > 0)?;
            let point = PointId { cluster_id: unescape(cluster)?, number };
            match name {
                "intent" => Some(Key::Intent(point)),
                "outcome" => Some(Key::Outcome(point)),
                _ => Some(Key::Manifest(point, name.strip_prefix("manifest-")?.parse().ok()?)),
            }
        }
        ["plans", cluster, number] => {
            let number = number.parse().ok().filter(|number| *number > 0)?;
            Some(Key::Plan(PlanId { cluster_id: unescape(cluster)?, number }))
        }
        ["packs", _, id] => id.parse().ok().map(Key::Pack),
        ["probe", nonce, round] => Some(Key::Probe(nonce.parse::<PackId>().ok()?.0, round.parse().ok()?)),
        _ => None,
    }
}

fn write_point(f: &mut fmt::Formatter<'_>, point: &PointId) -> fmt::Result {
    write_cluster(f, "points", &point.cluster_id, point.number)?;
    f.write_str("/")
}

/// `<kind>/<cluster>/<number>`.
fn write_cluster(f: &mut fmt::Formatter<'_>, kind: &str, cluster_id: &str, number: u64) -> fmt::Result {
    write!(f, "{kind}/")?;
    for byte in cluster_id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => write!(f, "{}", char::from(byte))?,
            _ => write!(f, "={byte:02x}")?,
        }
    }
    write!(f, "/{number:016}")
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'=' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Refuses a cluster id that cannot be part of a key: empty, or longer than [`CLUSTER_ID_LEN_MAX`].
pub fn check_cluster_id(cluster_id: &str) -> Result<(), IdError> {
    match cluster_id.len() {
        1..=CLUSTER_ID_LEN_MAX => Ok(()),
        _ => Err(IdError::new(cluster_id, "a cluster id (1 to 80 bytes)")),
    }
}

/// Refuses a name of a cluster that a listing could not show: empty, longer than [`CLUSTER_NAME_LEN_MAX`], or with
/// control characters.
pub fn check_cluster_name(name: &str) -> Result<(), IdError> {
    if (1..=CLUSTER_NAME_LEN_MAX).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(());
    }
    Err(IdError::new(name, "a cluster name (1 to 80 bytes, no control characters)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Do not change these without a migration.
    #[test]
    fn names_are_pinned() {
        let point = |number| PointId { cluster_id: "uHkGuCQeSDWMbl4fVJgYtw".into(), number };
        let odd = PointId { cluster_id: "a/b=c é".into(), number: 1 };
        let table = [
            (Key::Vault, "vault"),
            (Key::Cluster(7), "clusters/000007"),
            (Key::Intent(point(17)), "points/uHkGuCQeSDWMbl4fVJgYtw/0000000000000017/intent"),
            (Key::Outcome(point(u64::MAX)), "points/uHkGuCQeSDWMbl4fVJgYtw/18446744073709551615/outcome"),
            (
                Key::Manifest(point(1), BlobId([0xab; 32])),
                "points/uHkGuCQeSDWMbl4fVJgYtw/0000000000000001/manifest-\
                 abababababababababababababababababababababababababababababababab",
            ),
            (Key::Outcome(odd), "points/a=2fb=3dc=20=c3=a9/0000000000000001/outcome"),
            (
                Key::Plan(PlanId { cluster_id: "a/b=c é".into(), number: 17 }),
                "plans/a=2fb=3dc=20=c3=a9/0000000000000017",
            ),
            (Key::Pack(PackId([0x0f; 16])), "packs/0f/0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"),
            (Key::Probe([1; 16], 3), "probe/01010101010101010101010101010101/3"),
        ];
        for (key, name) in table {
            assert_eq!(key.to_string(), name);
            assert_eq!(name.parse(), Ok(key));
        }
    }

    #[test]
    fn nothing_else_parses() {
        for name in [
            "",
            "vault/",
            "clusters/7",
            "clusters/000000",
            "points/a/1/intent",
            "points/a/0000000000000000/intent",
            "points/a=/0000000000000001/intent",
            "points/a=2D/0000000000000001/intent",
            "points/a/0000000000000001/manifest-00",
            "plans/a/1",
            "plans/a/0000000000000000",
            "plans/a=2D/0000000000000001",
            "packs/00/0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",
            "packs/0f/0F0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",
        ] {
            assert!(name.parse::<Key>().is_err(), "{name}");
        }
    }
}
