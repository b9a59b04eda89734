//! `partition.metadata`: the topic id of a partition (`PartitionMetadata`).
//!
//! A broker that finds another id here than in its metadata, or no file, takes the partition for a stray and makes
//! an empty one in its place; as a leader it then empties the other replicas, too.

use thiserror::Error;

use crate::ids::{Uuid, UuidError};

/// What is wrong with a `partition.metadata`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PartitionMetadataError {
    /// It is not the two lines `version: 0` and `topic_id: ...`.
    #[error("malformed partition.metadata: {0}")]
    Malformed(&'static str),
    /// Another version than 0.
    #[error("unknown partition.metadata version {0}")]
    BadVersion(i32),
    /// A topic id that is none.
    #[error("partition.metadata has a bad topic id")]
    BadTopicId(#[source] UuidError),
    /// The id that stands for "none", which Kafka refuses.
    #[error("partition.metadata has the zero topic id")]
    ZeroTopicId,
}

/// A `partition.metadata`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// The topic's id, not zero.
    pub topic_id: Uuid,
}

impl PartitionMetadata {
    /// Reads a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, PartitionMetadataError> {
        use PartitionMetadataError::Malformed;
        let text = str::from_utf8(bytes).map_err(|_| Malformed("it is not text"))?;
        let mut lines = text.lines();
        let mut field = |name| lines.next()?.strip_prefix(name)?.strip_prefix(':').map(str::trim);
        let version = field("version").ok_or(Malformed("its first line is no version"))?;
        let version = version.parse().map_err(|_| Malformed("its version is no number"))?;
        if version != 0 {
            return Err(PartitionMetadataError::BadVersion(version));
        }
        let topic_id = field("topic_id").ok_or(Malformed("its second line is no topic id"))?;
        let topic_id = topic_id.parse().map_err(PartitionMetadataError::BadTopicId)?;
        if lines.next().is_some() {
            return Err(Malformed("it has more than two lines"));
        }
        if topic_id == Uuid::ZERO {
            return Err(PartitionMetadataError::ZeroTopicId);
        }
        Ok(PartitionMetadata { topic_id })
    }

    /// The file's text.
    pub fn encode(&self) -> String {
        format!("version: 0\ntopic_id: {}", self.topic_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_the_43_bytes_that_kafka_writes() {
        let metadata = PartitionMetadata { topic_id: "5L6g3nShT-eMCtK--X86sw".parse().unwrap() };
        assert_eq!(metadata.encode(), "version: 0\ntopic_id: 5L6g3nShT-eMCtK--X86sw");
        assert_eq!(PartitionMetadata::decode(metadata.encode().as_bytes()), Ok(metadata));
        assert_eq!(PartitionMetadata::decode(format!("{}\n", metadata.encode()).as_bytes()), Ok(metadata));
    }

    #[test]
    fn anything_else_is_refused() {
        use PartitionMetadataError::*;
        let cases: [(&[u8], PartitionMetadataError); 7] = [
            (b"", Malformed("its first line is no version")),
            (b"version: x", Malformed("its version is no number")),
            (b"version: 1\ntopic_id: AAAAAAAAAAAAAAAAAAAAAQ", BadVersion(1)),
            (b"version: 0", Malformed("its second line is no topic id")),
            (b"version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAA", ZeroTopicId),
            (b"version: 0\ntopic_id: AAAAAAAAAAAAAAAAAAAAAQ\nx: y", Malformed("it has more than two lines")),
            (b"\xff", Malformed("it is not text")),
        ];
        for (bytes, error) in cases {
            assert_eq!(PartitionMetadata::decode(bytes), Err(error));
        }
        assert!(matches!(PartitionMetadata::decode(b"version: 0\ntopic_id: x"), Err(BadTopicId(_))));
    }
}
