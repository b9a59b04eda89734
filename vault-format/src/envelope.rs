//! The frame around every object that is not a pack.
//!
//! It says what the object is, whose it is, and whether it is whole: absent, truncated, corrupt, too new, of another
//! kind and of another vault are different answers. The hash covers the header as well, so a flipped bit there is
//! corruption and not somebody else's object; and the payload as stored, so nothing damaged is ever decompressed.
//! Magic and version stay where they are in every version to come.
//!
//! ```text
//!  0  "SEGVAULT"                     8
//!  8  kind                           u8   1 vault, 2 cluster, 3 intent, 4 outcome, 5 point manifest, 6 plan
//!  9  format version = 1             u8
//! 10  codec                          u8   0 as is, 1 zstd
//! 11  reserved = 0                   u8
//! 12  vault id                       16
//! 28  length of the message          u32  big-endian, as all numbers here
//! 32  length of the payload          u32
//! 36  BLAKE3 of bytes 0..36 and the payload  32
//! 68  payload: the protobuf message, compressed as the codec says
//! ```

use prost::Message;

use crate::blob::{Codec, Squeezer, unsqueeze};
use crate::ids::{BlobId, VaultId};
use crate::manifest::{ClusterRecord, Intent, Outcome, PointManifest, VaultHeader};
use crate::plan::Plan;

/// Bytes before the payload.
pub const HEADER_LEN: usize = 68;

/// The only version there is.
pub const FORMAT_VERSION: u8 = 1;

const MAGIC: &[u8; 8] = b"SEGVAULT";
const HASHED_LEN: usize = 36;
const VERSION_AT: usize = 9;

/// A message that is an object of its own.
pub trait Object: Message + Default {
    /// The kind byte.
    const KIND: u8;
    /// What errors call it.
    const NAME: &'static str;
    /// Greatest length of the encoded message, in bytes. Held before anything is allocated.
    const LEN_MAX: u32;
}

macro_rules! object {
    ($message:ty, $kind:literal, $name:literal, $len_max:expr) => {
        impl Object for $message {
            const KIND: u8 = $kind;
            const NAME: &'static str = $name;
            const LEN_MAX: u32 = $len_max;
        }
    };
}

// Small ones hold a few names; the reason of an outcome is the longest.
const SMALL: u32 = 64 << 10;
object!(VaultHeader, 1, "vault header", SMALL);
object!(ClusterRecord, 2, "cluster record", SMALL);
object!(Intent, 3, "intent", SMALL);
object!(Outcome, 4, "outcome", SMALL);
// About 300 bytes a partition: a million partitions fit three times.
object!(PointManifest, 5, "point manifest", 1 << 30);
// Some 80 bytes for a partition that is left out: a plan for one node can leave out three million.
object!(Plan, 6, "plan", 1 << 28);

/// Why bytes are not the object that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The bytes end before the object does.
    #[error("{name} is cut short: {len} bytes, {needed} needed")]
    Truncated {
        /// Which kind was wanted.
        name: &'static str,
        /// Bytes there are.
        len: usize,
        /// Bytes there should be.
        needed: usize,
    },
    /// Not one of our objects, or damaged.
    #[error("{name} is corrupt: {why}")]
    Corrupt {
        /// Which kind was wanted.
        name: &'static str,
        /// What does not fit.
        why: String,
    },
    /// Written by a later version.
    #[error("{name} has format version {version}, this program reads up to {FORMAT_VERSION}")]
    TooNew {
        /// Which kind was wanted.
        name: &'static str,
        /// The version found.
        version: u8,
    },
    /// Whole, but of another vault.
    #[error("{name} belongs to vault {found}, not to {wanted}")]
    WrongVault {
        /// Which kind was wanted.
        name: &'static str,
        /// Whose it is.
        found: VaultId,
        /// Whose it should be.
        wanted: VaultId,
    },
    /// Whole, but another kind of object.
    #[error("expected a {name}, found kind {found}")]
    WrongKind {
        /// Which kind was wanted.
        name: &'static str,
        /// The kind byte found.
        found: u8,
    },
}

/// `message` as an object of `vault`.
///
/// # Panics
/// If the message is longer than its kind allows: whoever builds it keeps it within.
pub fn encode<M: Object>(vault: VaultId, message: &M) -> Vec<u8> {
    let raw = message.encode_to_vec();
    let raw_len = u32::try_from(raw.len()).ok().filter(|len| *len <= M::LEN_MAX);
    let raw_len = raw_len.expect("a message within its kind's limit");
    let mut squeezer = Squeezer::default();
    let (codec, payload) = squeezer.squeeze(&raw, 0);

    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[M::KIND, FORMAT_VERSION, codec as u8, 0]);
    bytes.extend_from_slice(&vault.0);
    bytes.extend_from_slice(&raw_len.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    let hash = digest(&bytes, payload);
    bytes.extend_from_slice(&hash);
    bytes.extend_from_slice(payload);
    bytes
}

/// What an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<M> {
    /// The vault it says it belongs to.
    pub vault: VaultId,
    /// The message.
    pub message: M,
    /// BLAKE3 of the message as it was encoded, so with fields that this program does not know.
    pub root: BlobId,
}

/// The message in `bytes`, whose vault is held against `vault` if that is known.
pub fn decode<M: Object>(vault: Option<VaultId>, bytes: &[u8]) -> Result<Decoded<M>, EnvelopeError> {
    let name = M::NAME;
    let corrupt = |why: &str| EnvelopeError::Corrupt { name, why: why.to_owned() };
    let short = |needed| EnvelopeError::Truncated { name, len: bytes.len(), needed };

    if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
        return Err(corrupt("it does not begin with SEGVAULT"));
    }
    if let Some(&version) = bytes.get(VERSION_AT).filter(|version| **version > FORMAT_VERSION) {
        return Err(EnvelopeError::TooNew { name, version });
    }
    let (header, payload) = bytes.split_at_checked(HEADER_LEN).ok_or_else(|| short(HEADER_LEN))?;
    let raw_len = be_u32(header, 28);
    let payload_len = be_u32(header, 32) as usize;
    if header[VERSION_AT] != FORMAT_VERSION || header[11] != 0 {
        return Err(corrupt("version or reserved byte"));
    }
    // Limits of the kind that was wanted: an object of another kind and longer is not worth the memory.
    if raw_len > M::LEN_MAX || payload_len > raw_len as usize {
        return Err(corrupt("impossible length"));
    }
    if payload.len() < payload_len {
        return Err(short(HEADER_LEN + payload_len));
    }
    if payload.len() > payload_len {
        return Err(corrupt("bytes after the end"));
    }
    if digest(&header[..HASHED_LEN], payload) != header[HASHED_LEN..] {
        return Err(corrupt("hash mismatch"));
    }

    if header[8] != M::KIND {
        return Err(EnvelopeError::WrongKind { name, found: header[8] });
    }
    let found = VaultId::from_slice(&header[12..28]).expect("16 bytes");
    if let Some(wanted) = vault.filter(|wanted| *wanted != found) {
        return Err(EnvelopeError::WrongVault { name, found, wanted });
    }
    let codec = Codec::from_byte(header[10]).ok_or_else(|| corrupt("unknown codec"))?;
    let raw = unsqueeze(codec, payload, raw_len).map_err(|why| corrupt(&why))?;
    let message = M::decode(&*raw).map_err(|error| corrupt(&error.to_string()))?;
    Ok(Decoded { vault: found, message, root: BlobId::of(&raw) })
}

fn digest(header: &[u8], payload: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(header).update(payload).finalize().as_bytes()
}

fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: VaultId = VaultId([7; 16]);

    fn outcome() -> Outcome {
        Outcome {
            cluster_id: "c".into(),
            number: 3,
            reason: "the coordinator was stopped, ".repeat(40),
            ..Default::default()
        }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let bytes = encode(VAULT, &outcome());
        assert_eq!(bytes[10], 1, "a repetitive message is compressed");
        let root = BlobId::of(&outcome().encode_to_vec());
        let decoded = Decoded { vault: VAULT, message: outcome(), root };
        assert_eq!(decode(Some(VAULT), &bytes).as_ref(), Ok(&decoded));
        assert_eq!(decode(None, &bytes), Ok(decoded));
        let empty = decode::<Outcome>(None, &encode(VAULT, &Outcome::default())).unwrap();
        assert_eq!(empty.message, Outcome::default());
    }

    /// A cluster record with a field that this program does not know.
    #[derive(Clone, PartialEq, Message)]
    struct LaterRecord {
        #[prost(string, tag = "1")]
        cluster_id: String,
        #[prost(uint32, tag = "99")]
        later: u32,
    }
    object!(LaterRecord, 2, "cluster record", SMALL);

    #[test]
    fn an_unknown_field_is_passed_over_and_part_of_the_root() {
        let later = LaterRecord { cluster_id: "c".into(), later: 7 };
        let decoded = decode::<ClusterRecord>(None, &encode(VAULT, &later)).unwrap();
        assert_eq!(decoded.message, ClusterRecord { cluster_id: "c".into(), name: String::new() });
        assert_eq!(decoded.root, BlobId::of(&later.encode_to_vec()));
    }

    #[test]
    fn every_flipped_bit_is_corruption_or_a_newer_version() {
        let bytes = encode(VAULT, &outcome());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match decode::<Outcome>(Some(VAULT), &bad).unwrap_err() {
                EnvelopeError::Corrupt { .. } => {}
                EnvelopeError::TooNew { .. } => assert_eq!(bit / 8, VERSION_AT),
                EnvelopeError::Truncated { .. } => assert!((32..36).contains(&(bit / 8))),
                other => panic!("bit {bit}: {other}"),
            }
        }
    }

    #[test]
    fn every_prefix_is_truncated() {
        let bytes = encode(VAULT, &outcome());
        for len in 0..bytes.len() {
            let error = decode::<Outcome>(Some(VAULT), &bytes[..len]).unwrap_err();
            assert!(matches!(error, EnvelopeError::Truncated { .. }), "{len}: {error}");
        }
    }

    #[test]
    fn another_kind_another_vault_and_a_later_version_are_told_apart() {
        let mut bytes = encode(VAULT, &outcome());
        assert_eq!(decode::<Intent>(Some(VAULT), &bytes), Err(EnvelopeError::WrongKind { name: "intent", found: 4 }));
        let other = VaultId([8; 16]);
        assert_eq!(
            decode::<Outcome>(Some(other), &bytes),
            Err(EnvelopeError::WrongVault { name: "outcome", found: VAULT, wanted: other })
        );
        bytes[VERSION_AT] = 2;
        assert_eq!(decode::<Outcome>(None, &bytes[..20]), Err(EnvelopeError::TooNew { name: "outcome", version: 2 }));
    }
}
