//! The edit of the metadata: from the cluster as it was to one whose brokers have just been given their logs.

use std::collections::BTreeMap;

use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::metadata::image::ELR_VERSION;
use segvault_kafka_log::metadata::{MetadataImage, PartitionImage};
use segvault_kafka_log::names::CheckpointName;
use segvault_vault_format::manifest::{MetadataEntry, PartitionEntry, PointManifest};

use super::PlanError;
use super::dirs::{DIRECTORIES_LEVEL, KnownDir, UNASSIGNED};

/// The checkpoint's end offset lies this far above the captured one, so that brokers' epochs, which are offsets of
/// this log, go on rising above those of the lost cluster's last hours.
pub const OFFSET_JUMP: i64 = 1_000_000;

/// The checkpoint's epoch lies this far above the captured one: above the elections of the lost cluster's last hours,
/// so that no node of it that still lives outranks the new quorum.
pub const EPOCH_JUMP: i32 = 1_000;

/// Leader epochs rise by this: live clients have seen later ones than the point has, and refuse lower ones.
pub const LEADER_EPOCH_JUMP: i32 = 1_000;

/// Producer ids that are skipped: the lost cluster may have handed out more after the point.
pub const PRODUCER_ID_MARGIN: i64 = 1_000_000;

/// Producer ids are handed out in blocks of this many (`ProducerIdsBlock.PRODUCER_ID_BLOCK_SIZE`).
const PRODUCER_ID_BLOCK: u64 = 1_000;

/// The name of the checkpoint.
pub(super) fn checkpoint_name(metadata: &MetadataEntry) -> Result<CheckpointName, PlanError> {
    let out_of_range = |what: &str, value| PlanError::OutOfRange { what: what.into(), value };
    let end_offset = Some(metadata.end_offset).filter(|offset| *offset >= 0);
    let epoch = Some(metadata.epoch).filter(|epoch| *epoch >= 0);
    Ok(CheckpointName {
        end_offset: end_offset
            .and_then(|offset| offset.checked_add(OFFSET_JUMP))
            .ok_or_else(|| out_of_range("the metadata's end offset", metadata.end_offset))?,
        epoch: epoch
            .and_then(|epoch| epoch.checked_add(EPOCH_JUMP))
            .ok_or_else(|| out_of_range("the metadata's epoch", metadata.epoch.into()))?,
    })
}

/// Edits `image`; `places` are the known dirs of each replica, by topic id and partition.
pub(super) fn edit(
    image: &mut MetadataImage,
    point: &PointManifest,
    entries: &BTreeMap<TopicPartition, &PartitionEntry>,
    places: &BTreeMap<TopicPartition, Vec<Option<usize>>>,
    dirs: &BTreeMap<i32, Vec<KnownDir>>,
) -> Result<(), PlanError> {
    image.controllers.clear();
    for broker in image.brokers.values_mut() {
        broker.fenced = true;
        broker.in_controlled_shutdown = false;
    }
    image.next_producer_id = Some(next_producer_id(image.next_producer_id, point.max_producer_id)?);
    let has_elr = image.features.get(ELR_VERSION).is_some_and(|level| *level >= 1);
    let with_directories = image.metadata_version().is_some_and(|level| level >= DIRECTORIES_LEVEL);
    for topic in image.topics.values_mut() {
        for (number, partition) in &mut topic.partitions {
            let tp = TopicPartition::new(&topic.name, *number);
            let max_epoch = entries.get(&tp).map_or(-1, |entry| entry.max_epoch);
            raise_epochs(partition, max_epoch).ok_or_else(|| PlanError::OutOfRange {
                what: format!("the leader epoch of {tp}"),
                value: i64::from(partition.leader_epoch.max(max_epoch)),
            })?;
            all_may_lead(partition, has_elr);
            if with_directories {
                set_directories(partition, places.get(&tp).map_or(&[], Vec::as_slice), dirs);
            }
        }
    }
    Ok(())
}

/// Ends reassignments: the replicas that were to go are gone, and their directories with them.
pub(super) fn resolve_reassignments(image: &mut MetadataImage) {
    for partition in image.topics.values_mut().flat_map(|topic| topic.partitions.values_mut()) {
        let removing = std::mem::take(&mut partition.removing_replicas);
        partition.adding_replicas.clear();
        if removing.is_empty() {
            continue;
        }
        let directories = std::mem::take(&mut partition.directories);
        let replicas = std::mem::take(&mut partition.replicas);
        let mut directories = directories.into_iter();
        for replica in replicas {
            let directory = directories.next();
            if !removing.contains(&replica) {
                partition.replicas.push(replica);
                partition.directories.extend(directory);
            }
        }
    }
}

fn raise_epochs(partition: &mut PartitionImage, max_epoch: i32) -> Option<()> {
    partition.leader_epoch = partition.leader_epoch.max(max_epoch).checked_add(LEADER_EPOCH_JUMP)?;
    partition.partition_epoch = partition.partition_epoch.checked_add(1)?;
    Some(())
}

/// Every replica has all of the log.
///
/// From 4.0 on a broker leaves the in-sync sets as it registers, so that a partition with all replicas in sync would have no
/// leader until the last of their brokers is there (`ReplicationControlManager.handleBrokerShutdown`). One that stopped cleanly
/// stays among the eligible leaders (KIP-966), and of those the first to come leads. Without that feature there is no such choice.
fn all_may_lead(partition: &mut PartitionImage, has_elr: bool) {
    partition.isr = partition.replicas.clone();
    partition.elr.clear();
    partition.last_known_elr.clear();
    partition.leader_recovery_state = 0;
    if !partition.replicas.contains(&partition.leader) {
        partition.leader = partition.replicas.first().copied().unwrap_or(-1);
    }
    if has_elr {
        // Whom Kafka elects if the last eligible one registers without its clean-shutdown file.
        partition.last_known_elr = vec![partition.leader];
        partition.elr = std::mem::take(&mut partition.isr);
        partition.leader = -1;
    }
}

fn set_directories(partition: &mut PartitionImage, places: &[Option<usize>], dirs: &BTreeMap<i32, Vec<KnownDir>>) {
    let id_of = |(slot, node): (usize, &i32)| {
        let place = places.get(slot).copied().flatten()?;
        dirs.get(node)?.get(place)?.id
    };
    let ids = partition.replicas.iter().enumerate().map(|replica| id_of(replica).unwrap_or(UNASSIGNED));
    partition.directories = ids.collect();
}

fn next_producer_id(next: Option<i64>, max_producer_id: i64) -> Result<i64, PlanError> {
    let seen = next.unwrap_or(0).max(max_producer_id.saturating_add(1)).max(0);
    (seen as u64)
        .checked_next_multiple_of(PRODUCER_ID_BLOCK)
        .and_then(|next| i64::try_from(next).ok()?.checked_add(PRODUCER_ID_MARGIN))
        .ok_or_else(|| PlanError::OutOfRange { what: "the next producer id".into(), value: seen })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producer_ids_go_on_above_whatever_was_seen() {
        for (next, max, expected) in [
            (None, -1, PRODUCER_ID_MARGIN),
            (Some(2000), 1005, 2000 + PRODUCER_ID_MARGIN),
            (Some(2000), 2000, 3000 + PRODUCER_ID_MARGIN),
            (None, 999, 1000 + PRODUCER_ID_MARGIN),
        ] {
            assert_eq!(next_producer_id(next, max), Ok(expected));
        }
        assert!(next_producer_id(Some(i64::MAX), -1).is_err());
    }
}
