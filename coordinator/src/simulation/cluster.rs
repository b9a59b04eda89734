//! The cluster that is captured: logs that grow with time, and its metadata.
//!
//! Every log grows by a record every so often. A replica that is in sync holds at least what is acknowledged, and some
//! hold a little more; one that is not lags. So each can be asked where it ends at any time, and it can be told what a
//! point must hold.

use std::collections::BTreeMap;

use segvault_alignment::line::Partition;
use segvault_kafka_log::ids::Uuid;
use segvault_kafka_log::metadata::checkpoint::write_checkpoint;
use segvault_kafka_log::metadata::image::{MetadataImage, PartitionImage, TopicImage};
use segvault_proto::{
    CheckpointCopy, LogDirFacts, LogPosition, MetadataCopy, NodeFacts, ReplicaSample, TRANSACTION_TOPIC,
};

use super::queue::{MILLISECOND, Micros};
use super::random::Random;

/// Kafka's cluster id.
pub const CLUSTER: &str = "cluster";
/// The leader epoch of every partition, for ever.
const EPOCH: i32 = 5;
/// The epoch of the metadata log.
const METADATA_EPOCH: i32 = 2;
/// Where the metadata log ends in the beginning.
const METADATA_END: i64 = 100;

/// The topics with how many partitions they have and after how many microseconds they grow by a record.
const TOPICS: [(&str, i32, Micros); 4] = [
    ("__consumer_offsets", 1, 20 * MILLISECOND),
    ("_schemas", 1, 500 * MILLISECOND),
    ("orders", 2, 2 * MILLISECOND),
    (TRANSACTION_TOPIC, 2, MILLISECOND),
];

/// When a partition is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Phase B1.
    Progress,
    /// Phase B2.
    Data,
    /// Phase C, first half.
    Transactions,
    /// Phase C, second half.
    Reference,
}

impl Stage {
    /// The stage of a topic.
    pub fn of(topic: &str) -> Self {
        match topic {
            "__consumer_offsets" => Self::Progress,
            "_schemas" => Self::Reference,
            TRANSACTION_TOPIC => Self::Transactions,
            _ => Self::Data,
        }
    }
}

/// What the transaction log says around a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// No transaction was under way.
    Quiet,
    /// One began after the mark: its partitions are trimmed.
    Busy,
    /// It cannot be told from the one before: the barrier is raised again.
    Doubtful,
}

/// A cluster.
pub struct Cluster {
    moods: u64,
    nodes: Vec<i32>,
    logs: BTreeMap<Partition, Log>,
    checkpoint: Vec<u8>,
}

/// A partition.
struct Log {
    topic_id: Uuid,
    growth: Micros,
    in_sync: Vec<i32>,
    /// How many records each replica is ahead of what is acknowledged.
    ahead: BTreeMap<i32, i64>,
}

impl Cluster {
    /// Some cluster of so many nodes, each partition with three replicas.
    pub fn new(nodes: usize, random: &mut Random) -> Self {
        let nodes: Vec<i32> = (1..).take(nodes).collect();
        let mut logs = BTreeMap::new();
        for (index, (topic, partitions, growth)) in TOPICS.iter().enumerate() {
            for partition in 0..*partitions {
                let topic_id = Uuid([index as u8 + 1; 16]);
                let log = Log::new(&nodes, topic_id, *growth, random);
                logs.insert(((*topic).to_owned(), partition), log);
            }
        }
        let checkpoint = write_checkpoint(&image(&logs), METADATA_EPOCH, 0);
        Self { moods: random.next(), nodes, logs, checkpoint }
    }

    /// What the transaction log says around a point's barrier; a point may raise several.
    pub fn mood(&self, point: u64, attempt: u64) -> Mood {
        let mut of_point = Random::new(self.moods ^ (point << 8));
        // Of some points all barriers are alike.
        let attempt = if of_point.coin() { attempt } else { 0 };
        match Random::new(of_point.next() ^ attempt).below(4) {
            0 => Mood::Busy,
            1 => Mood::Doubtful,
            _ => Mood::Quiet,
        }
    }

    /// The ids of the nodes.
    pub fn nodes(&self) -> &[i32] {
        &self.nodes
    }

    /// What the agent of a node knows of it.
    pub fn facts(&self, node_id: i32) -> NodeFacts {
        NodeFacts {
            node_id,
            cluster_id: CLUSTER.to_owned(),
            broker: true,
            controller: true,
            log_dirs: vec![LogDirFacts { path: "/data".to_owned(), directory_id: None }],
            metadata_log_dir: 0,
            static_voters: Some(self.nodes.clone()),
            compacts: false,
        }
    }

    /// All partitions.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.logs.keys()
    }

    /// The partitions of which a node has a replica.
    pub fn replicas(&self, node_id: i32) -> impl Iterator<Item = &Partition> {
        self.logs.iter().filter(move |(_, log)| log.ahead.contains_key(&node_id)).map(|(partition, _)| partition)
    }

    /// Where a replica ends.
    pub fn end(&self, partition: &Partition, node_id: i32, now: Micros) -> i64 {
        let log = &self.logs[partition];
        (log.acknowledged(now) + log.ahead[&node_id]).max(0)
    }

    /// Where the furthest replica ends.
    pub fn furthest_end(&self, partition: &Partition, now: Micros) -> i64 {
        let log = &self.logs[partition];
        log.ahead.keys().map(|node_id| self.end(partition, *node_id, now)).max().unwrap_or(0)
    }

    /// The first offset that is not acknowledged.
    pub fn acknowledged(&self, partition: &Partition, now: Micros) -> i64 {
        self.logs[partition].acknowledged(now)
    }

    /// What is seen of a replica that ends at `end_offset`.
    pub fn sample(&self, partition: &Partition, end_offset: i64) -> ReplicaSample {
        ReplicaSample {
            topic: partition.0.clone(),
            topic_id: self.logs[partition].topic_id,
            partition: partition.1,
            dir: "/data".to_owned(),
            log_start_offset: 0,
            high_watermark: 0,
            active_base_offset: 0,
            position: position(end_offset),
            epochs: vec![(EPOCH, 0)],
            lost_from: None,
            unusable: None,
        }
    }

    /// Where a node's metadata log ends. It grows whenever something happens, so its end says when it was read.
    pub fn metadata_position(moment: u64) -> LogPosition {
        LogPosition { last_epoch: METADATA_EPOCH, end_offset: METADATA_END + moment as i64 }
    }

    /// A copy of the metadata, as it was at a moment.
    pub fn metadata(&self, moment: u64) -> MetadataCopy {
        let checkpoint =
            CheckpointCopy { end_offset: METADATA_END, epoch: METADATA_EPOCH, bytes: self.checkpoint.clone() };
        MetadataCopy {
            checkpoint: Some(checkpoint),
            log: Vec::new(),
            end_offset: Self::metadata_position(moment).end_offset,
            epoch: METADATA_EPOCH,
            remainder: None,
        }
    }

    /// When a copy was read.
    pub fn moment_of(copy: &MetadataCopy) -> u64 {
        u64::try_from(copy.end_offset - METADATA_END).expect("no copy ends before the log did in the beginning")
    }
}

/// Where a log ends.
pub fn position(end_offset: i64) -> LogPosition {
    LogPosition { last_epoch: EPOCH, end_offset }
}

impl Log {
    fn new(nodes: &[i32], topic_id: Uuid, growth: Micros, random: &mut Random) -> Self {
        let first = random.index(nodes.len());
        let replicas: Vec<i32> = nodes.iter().cycle().skip(first).take(3).copied().collect();
        let mut in_sync: Vec<i32> = replicas.iter().copied().filter(|_| random.per_mille(850)).collect();
        if in_sync.is_empty() {
            in_sync.push(replicas[0]);
        }
        let mut ahead = |node_id| match in_sync.contains(&node_id) {
            true => random.below(4) as i64,
            false => -(random.within(1..50) as i64),
        };
        let ahead = replicas.iter().map(|node_id| (*node_id, ahead(*node_id))).collect();
        Self { topic_id, growth, in_sync, ahead }
    }

    fn acknowledged(&self, now: Micros) -> i64 {
        100 + (now / self.growth) as i64
    }
}

fn image(logs: &BTreeMap<Partition, Log>) -> MetadataImage {
    let mut image = MetadataImage::default();
    image.features.insert("metadata.version".to_owned(), 25);
    for ((name, number), log) in logs {
        let partition = PartitionImage {
            replicas: log.ahead.keys().copied().collect(),
            isr: log.in_sync.clone(),
            leader: log.in_sync[0],
            leader_epoch: EPOCH,
            partition_epoch: 5,
            directories: vec![Uuid([1; 16]); log.ahead.len()],
            ..Default::default()
        };
        let topic = image.topics.entry(log.topic_id).or_insert_with(|| TopicImage {
            name: name.clone(),
            id: log.topic_id,
            partitions: BTreeMap::new(),
        });
        topic.partitions.insert(*number, partition);
    }
    image
}
