//! What a cluster says of itself, through Kafka's own admin client (`tests/java/Admin.java`, command `state`).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A whole cluster at one moment. Maps are sorted, so equal clusters are equal values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The cluster's id.
    pub cluster_id: String,
    /// Ids of the brokers that are up.
    pub brokers: Vec<i32>,
    /// All topics by name, internal ones included.
    pub topics: BTreeMap<String, Topic>,
    /// Dynamic configs (own and cluster-wide) per broker id.
    pub broker_configs: BTreeMap<String, BTreeMap<String, String>>,
    /// All ACL bindings, printed by Kafka.
    pub acls: Vec<String>,
    /// SCRAM credentials per user: `MECHANISM:ITERATIONS`.
    pub scram: BTreeMap<String, Vec<String>>,
    /// Client quotas: entity to values.
    pub quotas: BTreeMap<String, String>,
    /// Committed offsets: group to `topic-partition` to offset.
    pub groups: BTreeMap<String, BTreeMap<String, i64>>,
    /// Transactional ids and their coordinator's state.
    pub transactions: BTreeMap<String, String>,
    /// Finalized feature levels.
    pub features: BTreeMap<String, i16>,
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Kafka's topic id.
    pub id: String,
    /// Configs set on the topic itself.
    pub configs: BTreeMap<String, String>,
    /// Partitions in order.
    pub partitions: Vec<Partition>,
}

/// A partition. Offsets are −1 where no leader could be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// The leader's id, −1 if there is none.
    pub leader: i32,
    /// Replicas in Kafka's order.
    pub replicas: Vec<i32>,
    /// In-sync replicas, sorted.
    pub isr: Vec<i32>,
    /// Log start offset.
    pub start: i64,
    /// High watermark.
    pub end: i64,
    /// Last stable offset.
    pub stable: i64,
    /// Producers with an open transaction here.
    pub open: usize,
}

impl State {
    /// All partitions: `(topic, index, partition)`.
    pub fn partitions(&self) -> impl Iterator<Item = (&str, i32, &Partition)> {
        self.topics
            .iter()
            .flat_map(|(name, topic)| (0..).zip(&topic.partitions).map(|(index, p)| (name.as_str(), index, p)))
    }

    /// One partition, if it exists.
    pub fn partition(&self, topic: &str, index: i32) -> Option<&Partition> {
        self.topics.get(topic)?.partitions.get(usize::try_from(index).ok()?)
    }
}

impl Partition {
    /// Does it have a leader and all its replicas in sync?
    pub fn is_healthy(&self) -> bool {
        let mut replicas = self.replicas.clone();
        replicas.sort_unstable();
        self.leader >= 0 && self.isr == replicas
    }
}
