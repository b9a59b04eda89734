//! The vault's nouns: ids of vaults, packs, blobs, restore points and plans.
//!
//! A blob's id is the BLAKE3 hash of its *raw* bytes (before compression), so it says what the bytes are and
//! nothing about where they lie. Pack ids are random and never used again: a key that was deleted once can
//! therefore never be mistaken for a new one.

use std::fmt;
use std::str::FromStr;

/// A malformed id in a key, a message or on the command line.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not {expected}")]
pub struct IdError {
    text: String,
    expected: &'static str,
}

impl IdError {
    pub(crate) fn new(text: impl Into<String>, expected: &'static str) -> Self {
        Self { text: text.into(), expected }
    }
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The id in `bytes`, which must be exactly as long as the id.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
                let error = |_| IdError::new(format!("{} bytes", bytes.len()), $expected);
                bytes.try_into().map(Self).map_err(error)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError::new(text, $expected);
                if text.len() != 2 * $len || !text.is_ascii() {
                    return Err(error());
                }
                let mut bytes = [0; $len];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| error())?;
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

bytes_id!(
    /// Which vault: 16 random bytes, in every object's header.
    VaultId, 16, "a vault id (32 hex digits)"
);
bytes_id!(
    /// Which pack: 16 random bytes, never used again.
    PackId, 16, "a pack id (32 hex digits)"
);
bytes_id!(
    /// What a blob's raw bytes are: their BLAKE3 hash.
    BlobId, 32, "a blob id (64 hex digits)"
);

impl BlobId {
    /// The id of `raw`, hashed in one call (BLAKE3 needs 16 KiB or more at once to fill its lanes).
    pub fn of(raw: &[u8]) -> Self {
        Self(*blake3::hash(raw).as_bytes())
    }
}

/// Which restore point of which cluster. Numbers start at 1, are dense, and are never used again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId {
    /// Kafka's cluster id, as in `meta.properties`.
    pub cluster_id: String,
    /// 1 and up.
    pub number: u64,
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster_id, self.number)
    }
}

impl serde::Serialize for PointId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for PointId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::new(text, "a restore point (CLUSTER_ID/NUMBER)");
        let (cluster_id, number) = text.rsplit_once('/').ok_or_else(error)?;
        let number = number.parse().map_err(|_| error())?;
        if number == 0 || cluster_id.is_empty() {
            return Err(error());
        }
        Ok(Self { cluster_id: cluster_id.to_owned(), number })
    }
}

/// Which plan of a restore, of which cluster. Numbers start at 1, are dense, and are never used again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanId {
    /// Kafka's cluster id, as in `meta.properties`.
    pub cluster_id: String,
    /// 1 and up.
    pub number: u64,
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster_id, self.number)
    }
}

impl serde::Serialize for PlanId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for PlanId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::new(text, "a restore plan (CLUSTER_ID/NUMBER)");
        let (cluster_id, number) = text.rsplit_once('/').ok_or_else(error)?;
        let number = number.parse().map_err(|_| error())?;
        if number == 0 || cluster_id.is_empty() {
            return Err(error());
        }
        Ok(Self { cluster_id: cluster_id.to_owned(), number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_alike() {
        let id = BlobId::of(b"kafka");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("zz".parse::<PackId>().is_err());
        let point: PointId = "uHkGuCQeSDWMbl4fVJgYtw/17".parse().unwrap();
        assert_eq!(point.number, 17);
        assert_eq!(point.to_string(), "uHkGuCQeSDWMbl4fVJgYtw/17");
        assert!("x/0".parse::<PointId>().is_err());
        let plan: PlanId = "x/2".parse().unwrap();
        assert_eq!(plan.to_string(), "x/2");
        assert!("/2".parse::<PlanId>().is_err());
    }
}
