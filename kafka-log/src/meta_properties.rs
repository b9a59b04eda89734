//! `meta.properties`: whose a log dir is (`MetaProperties`).
//!
//! | key | version 0 (ZooKeeper) | version 1 (KRaft) |
//! |---|---|---|
//! | `version` | 0 or absent | 1 |
//! | `cluster.id` | optional | required |
//! | `broker.id` | optional | – |
//! | `node.id` | – | required |
//! | `directory.id` | optional | since 3.7 |

use thiserror::Error;

use crate::{
    ids::{Uuid, UuidError},
    properties::{Properties, PropertiesError},
};

/// What is wrong with a `meta.properties`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MetaPropertiesError {
    /// It is no properties file.
    #[error(transparent)]
    Properties(#[from] PropertiesError),
    /// Neither version 0 nor 1.
    #[error("unknown meta.properties version {0:?}")]
    BadVersion(String),
    /// A key that its version requires is not there.
    #[error("meta.properties has no {0}")]
    Missing(&'static str),
    /// A node id that is no number of 0 or more.
    #[error("meta.properties has the impossible {key}={value}")]
    BadNodeId {
        /// `node.id` or `broker.id`.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A directory id that is none.
    #[error("meta.properties has a bad directory.id")]
    BadDirectoryId(#[source] UuidError),
    /// A directory id that Kafka keeps for other uses (`DirectoryId.reserved`).
    #[error("meta.properties has the reserved directory.id {0}")]
    ReservedDirectoryId(Uuid),
}

/// Which kind of cluster a log dir was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaVersion {
    /// ZooKeeper.
    V0,
    /// KRaft.
    V1,
}

/// A `meta.properties`. In version 1 cluster and node id are always there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaProperties {
    /// The version.
    pub version: MetaVersion,
    /// The cluster's id, 22 characters of base64 in all but the oldest clusters.
    pub cluster_id: Option<String>,
    /// The node's id: `node.id`, in version 0 `broker.id`.
    pub node_id: Option<i32>,
    /// The log dir's own id, which the metadata assigns replicas to.
    pub directory_id: Option<Uuid>,
}

impl MetaProperties {
    /// Reads a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetaPropertiesError> {
        let properties = Properties::decode(bytes)?;
        let version = match properties.get("version").map(str::trim) {
            None | Some("0") => MetaVersion::V0,
            Some("1") => MetaVersion::V1,
            Some(other) => return Err(MetaPropertiesError::BadVersion(other.into())),
        };
        let meta = MetaProperties {
            version,
            cluster_id: properties.get("cluster.id").map(Into::into),
            node_id: node_id(&properties, node_key(version))?,
            directory_id: directory_id(&properties)?,
        };
        if version == MetaVersion::V1 {
            meta.cluster_id.as_ref().ok_or(MetaPropertiesError::Missing("cluster.id"))?;
            meta.node_id.ok_or(MetaPropertiesError::Missing("node.id"))?;
        }
        Ok(meta)
    }

    /// The file's text, without the comment that Java puts first.
    pub fn encode(&self) -> String {
        let mut properties = Properties::default();
        properties.set("version", if self.version == MetaVersion::V0 { "0" } else { "1" });
        if let Some(id) = &self.cluster_id {
            properties.set("cluster.id", id);
        }
        if let Some(id) = self.node_id {
            properties.set(node_key(self.version), id.to_string());
        }
        if let Some(id) = self.directory_id {
            properties.set("directory.id", id.to_string());
        }
        properties.encode()
    }
}

fn node_key(version: MetaVersion) -> &'static str {
    match version {
        MetaVersion::V0 => "broker.id",
        MetaVersion::V1 => "node.id",
    }
}

fn node_id(properties: &Properties, key: &'static str) -> Result<Option<i32>, MetaPropertiesError> {
    let Some(value) = properties.get(key) else {
        return Ok(None);
    };
    match value.trim().parse() {
        Ok(id) if id >= 0 => Ok(Some(id)),
        _ => Err(MetaPropertiesError::BadNodeId { key, value: value.into() }),
    }
}

fn directory_id(properties: &Properties) -> Result<Option<Uuid>, MetaPropertiesError> {
    let Some(text) = properties.get("directory.id") else {
        return Ok(None);
    };
    let id: Uuid = text.parse().map_err(MetaPropertiesError::BadDirectoryId)?;
    if id.is_reserved() {
        return Err(MetaPropertiesError::ReservedDirectoryId(id));
    }
    Ok(Some(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KRAFT: &str = "#\n#Sun Nov 23 14:39:10 UTC 2025\ncluster.id=5L6g3nShT-eMCtK--X86sw\n\
                         directory.id=qn5bEgTnSVWpTTo4rmwlOQ\nnode.id=1\nversion=1\n";

    #[test]
    fn kraft_file_reads_and_writes() {
        let meta = MetaProperties::decode(KRAFT.as_bytes()).unwrap();
        assert_eq!((meta.version, meta.node_id), (MetaVersion::V1, Some(1)));
        assert_eq!(meta.directory_id.unwrap().to_string(), "qn5bEgTnSVWpTTo4rmwlOQ");
        assert_eq!(MetaProperties::decode(meta.encode().as_bytes()), Ok(meta));
    }

    #[test]
    fn zookeeper_file_needs_nothing() {
        let meta = MetaProperties::decode(b"version=0\nbroker.id=3\n").unwrap();
        assert_eq!((meta.version, meta.node_id, meta.cluster_id), (MetaVersion::V0, Some(3), None));
        assert_eq!(MetaProperties::decode(b"").unwrap().version, MetaVersion::V0);
    }

    #[test]
    fn what_is_missing_or_impossible_is_named() {
        let id = |value: &str| MetaPropertiesError::BadNodeId { key: "node.id", value: value.into() };
        let cases = [
            ("version=2", MetaPropertiesError::BadVersion("2".into())),
            ("version=1\nnode.id=1", MetaPropertiesError::Missing("cluster.id")),
            ("version=1\ncluster.id=x", MetaPropertiesError::Missing("node.id")),
            ("version=1\ncluster.id=x\nnode.id=-1", id("-1")),
            ("version=1\ncluster.id=x\nnode.id=one", id("one")),
            (
                "version=1\ncluster.id=x\nnode.id=1\ndirectory.id=AAAAAAAAAAAAAAAAAAAAAA",
                MetaPropertiesError::ReservedDirectoryId(Uuid::ZERO),
            ),
        ];
        for (text, error) in cases {
            assert_eq!(MetaProperties::decode(text.as_bytes()), Err(error), "{text}");
        }
        let bad = MetaProperties::decode(b"directory.id=nonsense");
        assert!(matches!(bad, Err(MetaPropertiesError::BadDirectoryId(_))));
    }
}
