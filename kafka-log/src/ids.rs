//! Kafka's own names for things: ids and topic partitions.
//!
//! Node ids are plain `i32`, offsets `i64`, leader epochs `i32` and timestamps `i64` milliseconds, as in
//! Kafka's schemas.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// Kafka keeps the first hundred ids for itself (`Uuid.RESERVED`).
const RESERVED_IDS: u128 = 100;

/// The URL-safe alphabet of RFC 4648, as `java.util.Base64.getUrlEncoder` uses it.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A 128-bit id as Kafka writes it (`org.apache.kafka.common.Uuid`): 16 big-endian bytes on disk and 22
/// characters of URL-safe base64 without padding in text.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The id that stands for "none" (`Uuid.ZERO_UUID`).
    pub const ZERO: Uuid = Uuid([0; 16]);

    /// The topic id of `__cluster_metadata` (`Uuid.METADATA_TOPIC_ID`).
    pub const METADATA_TOPIC_ID: Uuid = Uuid(1u128.to_be_bytes());

    /// Whether Kafka keeps this id for its own use, so that it never names a topic or a directory.
    pub fn is_reserved(&self) -> bool {
        u128::from_be_bytes(self.0) < RESERVED_IDS
    }
}

/// Text that is no [`Uuid`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a Kafka uuid (22 characters of URL-safe base64)")]
pub struct UuidError(String);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 128 bits and four of padding are 22 sextets.
        let bits = u128::from_be_bytes(self.0);
        let text: String = (0..22)
            .map(|sextet| match sextet {
                21 => (bits << 4) & 63,
                _ => (bits >> (122 - 6 * sextet)) & 63,
            })
            .map(|index| char::from(ALPHABET[index as usize]))
            .collect();
        f.pad(&text)
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    /// Reads what `Uuid.fromString` reads: padding is optional, and the four bits beyond the last byte are
    /// ignored.
    fn from_str(text: &str) -> Result<Self, UuidError> {
        let error = || UuidError(text.chars().take(64).collect());
        let digits = text.strip_suffix("==").unwrap_or(text).as_bytes();
        if digits.len() != 22 {
            return Err(error());
        }
        let mut bits = 0u128;
        for (i, digit) in digits.iter().enumerate() {
            let value = ALPHABET.iter().position(|c| c == digit).ok_or_else(error)? as u128;
            bits = if i == 21 { bits << 2 | value >> 4 } else { bits << 6 | value };
        }
        Ok(Uuid(bits.to_be_bytes()))
    }
}

/// One partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// The partition's number, 0 or more.
    pub partition: i32,
}

impl TopicPartition {
    /// Names partition `partition` of `topic`.
    pub fn new(topic: impl Into<String>, partition: i32) -> Self {
        TopicPartition { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn metadata_topic_id_prints_as_kafka_prints_it() {
        assert_eq!(Uuid::METADATA_TOPIC_ID.to_string(), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!("AAAAAAAAAAAAAAAAAAAAAQ==".parse(), Ok(Uuid::METADATA_TOPIC_ID));
        assert!(Uuid::METADATA_TOPIC_ID.is_reserved());
    }

    #[test]
    fn text_of_another_length_or_alphabet_is_refused() {
        for text in ["", "AAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAQQ", "AAAAAAAAAAAAAAAAAAAA+Q", "ÄÄÄÄÄÄÄÄÄÄÄ"]
        {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_id_reads_back_from_its_text(bytes: [u8; 16]) {
            let id = Uuid(bytes);
            prop_assert_eq!(id.to_string().len(), 22);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }
    }
}
