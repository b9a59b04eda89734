//! L1: the cluster's metadata can be replayed, and what it says of partitions agrees with their bytes.

use std::collections::{BTreeMap, BTreeSet};

use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::ids::Uuid;
use segvault_kafka_log::metadata::MetadataImage;
use segvault_kafka_log::metadata::checkpoint::{replay_checkpoint, replay_log};
use segvault_kafka_log::metadata::image::{BROKER_CONFIG, TOPIC_CONFIG};
use segvault_vault_format::manifest::{MetadataEntry, PartitionEntry, PointManifest};

use crate::flaws::Flaws;
use crate::log::Gaps;

/// Where flaws of the metadata are.
pub const PLACE: &str = "cluster metadata";

/// Replays the captured checkpoint and log; nothing where that is impossible.
pub fn replay(
    entry: &MetadataEntry,
    checkpoint: Option<&[u8]>,
    log: &[u8],
    flaws: &mut Flaws,
) -> Option<MetadataImage> {
    let mut image = MetadataImage::default();
    let mut end = 0;
    if let Some(bytes) = checkpoint {
        match replay_checkpoint(bytes) {
            Ok(checkpoint) => (image, end) = (checkpoint.image, entry.checkpoint_offset),
            Err(error) => {
                flaws.add(1, PLACE, chain(&error));
                return None;
            }
        }
    }
    if !log.is_empty() {
        match replay_log(&mut image, log, end) {
            Ok(replayed) if replayed.torn.is_none() => end = replayed.end_offset,
            Ok(_) => flaws.add(1, PLACE, "its log ends with something that is no batch"),
            Err(error) => {
                flaws.add(1, PLACE, chain(&error));
                return None;
            }
        }
    }
    if end != entry.end_offset {
        flaws.add(1, PLACE, format!("it ends at offset {end}, the point promises {}", entry.end_offset));
    }
    Some(image)
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Whether offsets of a partition may be missing.
pub fn gaps(image: &MetadataImage, point: &PointManifest, entry: &PartitionEntry) -> Gaps {
    let config = |kind, name: &str, key| image.configs.get(&(kind, name.to_owned())).and_then(|all| all.get(key));
    let policy = config(TOPIC_CONFIG, &entry.topic, "cleanup.policy");
    let policy = policy.or_else(|| config(BROKER_CONFIG, "", "log.cleanup.policy"));
    if policy.is_some_and(|policy| policy.contains("compact")) {
        Gaps::Expected
    } else if point.degraded && !entry.notes.is_empty() {
        Gaps::Told
    } else {
        Gaps::Unexplained
    }
}

/// What the bytes of all partitions say, for the metadata to be held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greatest {
    /// Leader epoch in batches.
    pub epoch: i32,
    /// Producer id in batches.
    pub producer_id: i64,
}

/// Every partition of the metadata is in the point, with its topic id, and the other way round.
pub fn check_partitions(image: &MetadataImage, point: &PointManifest, flaws: &mut Flaws) {
    let known: BTreeMap<(&str, i32), Uuid> = image
        .topics
        .values()
        .flat_map(|topic| topic.partitions.keys().map(|partition| ((&topic.name[..], *partition), topic.id)))
        .collect();
    let mut seen = BTreeSet::new();
    for entry in &point.partitions {
        let key = (&entry.topic[..], entry.partition);
        let place = format!("{}-{}", entry.topic, entry.partition);
        seen.insert(key);
        match known.get(&key) {
            Some(id) if id.0[..] == entry.topic_id[..] => {}
            Some(id) => flaws.add(1, &place, format!("its topic id is not that of the metadata, {id}")),
            None => flaws.add(1, &place, "the metadata does not know it"),
        }
        if entry.stream.is_none() && entry.uncovered.is_empty() && entry.end_offset > 0 {
            flaws.add(1, &place, format!("it ends at offset {} and has no bytes", entry.end_offset));
        }
    }
    for (topic, partition) in known.keys().filter(|key| !seen.contains(*key)) {
        flaws.add(1, format!("{topic}-{partition}"), "it is in the metadata and not in the point");
    }
}

/// Epochs and producer ids of the metadata are at least those of the bytes. `of_transactions` is the greatest producer id
/// of the transaction log.
pub fn check_greatest(
    image: &MetadataImage,
    point: &PointManifest,
    of_transactions: i64,
    partitions: &BTreeMap<TopicPartition, Greatest>,
    flaws: &mut Flaws,
) {
    for entry in &point.partitions {
        let place = TopicPartition::new(&entry.topic, entry.partition);
        let Some(greatest) = partitions.get(&place) else { continue };
        if greatest.epoch > entry.max_epoch {
            let what = format!("a batch has leader epoch {}, the point says {}", greatest.epoch, entry.max_epoch);
            flaws.add(1, &place, what);
        }
        let known = image.topic_named(&entry.topic).and_then(|topic| topic.partitions.get(&entry.partition));
        if let Some(known) = known.filter(|known| known.leader_epoch < greatest.epoch) {
            let what = format!("a batch has leader epoch {}, the metadata {}", greatest.epoch, known.leader_epoch);
            flaws.add(1, &place, what);
        }
    }
    let greatest = partitions.values().map(|greatest| greatest.producer_id).max().unwrap_or(-1).max(of_transactions);
    if greatest > point.max_producer_id {
        let what =
            format!("producer id {greatest} is in use, the point says that {} is the last", point.max_producer_id);
        flaws.add(1, PLACE, what);
    }
    if let Some(next) = image.next_producer_id.filter(|next| *next <= greatest) {
        flaws.add(1, PLACE, format!("producer id {greatest} is in use, and {next} is to be given away next"));
    }
}

#[cfg(test)]
mod tests;
