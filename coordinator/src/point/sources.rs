//! Which replica each partition is taken from, and where the transaction log is marked.

use std::collections::BTreeSet;

use segvault_alignment::line::{Partition, mark_on_source};
use segvault_alignment::sample::PartitionEvents;
use segvault_alignment::source::{self, Candidate};
use segvault_kafka_log::ids::Uuid;
use segvault_kafka_log::metadata::image::{MetadataImage, PartitionImage};
use segvault_vault_format::manifest::PartitionEntry;

use super::{Point, is_transaction_log, joined};

impl Point {
    /// Ranks the sources of every partition in the metadata; those without one are uncovered, or new and empty.
    pub(super) fn choose_sources(&mut self) {
        self.transactions.clear();
        self.events.clear();
        self.ranked.clear();
        self.marks.clear();
        self.uncovered.clear();
        self.refused.clear();
        let (_, last, _) = self.last_metadata.as_ref().expect("phase LastMetadata has passed");
        let mut ranked = Vec::new();
        let mut uncovered = Vec::new();
        let mut refused = Vec::new();
        for topic in last.topics.values() {
            for (number, image) in &topic.partitions {
                let partition = (topic.name.clone(), *number);
                let mut reasons = Vec::new();
                match self.rank(&partition, topic.id, image, &mut reasons) {
                    Ok(candidates) if candidates.is_empty() => {}
                    Ok(candidates) => {
                        if !reasons.is_empty() {
                            refused.push((partition.clone(), reasons));
                        }
                        ranked.push((partition, candidates));
                    }
                    Err(reason) => uncovered.push((partition, reason)),
                }
            }
        }
        self.ranked.extend(ranked);
        self.uncovered.extend(uncovered);
        self.refused.extend(refused);
        self.mark_sources();
    }

    /// The candidates of one partition, best first; none for a partition that is new and has no log yet. `refused` is
    /// told of replicas that cannot be one.
    fn rank(
        &self,
        partition: &Partition,
        topic_id: Uuid,
        last: &PartitionImage,
        refused: &mut Vec<String>,
    ) -> Result<Vec<Candidate>, String> {
        let mut candidates = Vec::new();
        let mut ahead = Vec::new();
        for (node_id, sample) in self.pinned.get(partition).into_iter().flatten() {
            // Of a replica that cannot say whose it is, the directory's name says so.
            if sample.topic_id != topic_id && sample.topic_id != Uuid::ZERO {
                continue; // The topic was deleted and created again: another log.
            }
            let unreadable = self.unreadable.get(partition).and_then(|nodes| nodes.get(node_id));
            if let Some(reason) = sample.unusable.as_ref().or(unreadable) {
                refused.push(format!("replica of node {node_id}: {reason}"));
                continue;
            }
            let (position, log_start_offset) = (sample.position, sample.log_start_offset);
            let lost_start = sample.lost_from.is_some();
            let candidate = Candidate { node_id: *node_id, position, log_start_offset, lost_start };
            // An epoch is in the metadata before its leader writes. The CRC does not cover it.
            if position.last_epoch > last.leader_epoch {
                let what = format!(
                    "{}: the log's last leader epoch is {}, and the metadata has only come to {}",
                    sample.dir, position.last_epoch, last.leader_epoch
                );
                ahead.push((candidate, format!("replica of node {node_id}: {what}")));
            } else {
                candidates.push(candidate);
            }
        }
        // If that is so everywhere it is the metadata that is old.
        match candidates.is_empty() {
            true => candidates.extend(ahead.into_iter().map(|(candidate, _)| candidate)),
            false => refused.extend(ahead.into_iter().map(|(_, reason)| reason)),
        }
        // The in-sync set as it was before anything was pinned. A topic made since then has only acknowledged what
        // came after the point began.
        let first = self.first_metadata.as_ref().and_then(|image| partition_of(image, topic_id, partition.1));
        let in_sync: BTreeSet<i32> = match first {
            Some(first) => source::in_sync(first),
            None => candidates.iter().map(|candidate| candidate.node_id).collect(),
        };
        let previous = self.previous(partition, topic_id).map(|entry| entry.source_node);
        let ranked = source::rank(&candidates, &in_sync, previous);
        let is_new = first.is_none() || (last.leader_epoch == 0 && last.partition_epoch == 0);
        let replica_seen = in_sync.iter().any(|node_id| self.agents.contains_key(node_id));
        if !ranked.is_empty()
            || (candidates.is_empty() && refused.is_empty() && is_new && (first.is_none() || replica_seen))
        {
            return Ok(ranked);
        }
        Err(if refused.is_empty() {
            format!(
                "no in-sync replica was captured (in sync when the point began: {:?}; captured: {:?})",
                in_sync,
                candidates.iter().map(|candidate| candidate.node_id).collect::<Vec<_>>()
            )
        } else {
            joined(refused)
        })
    }

    fn mark_sources(&mut self) {
        for (partition, candidates) in &self.ranked {
            if !is_transaction_log(partition) {
                continue;
            }
            let source = &self.pinned[partition][&candidates[0].node_id];
            // Without a sample the partition is new: all of it is window.
            let marks = self.marked.iter().map(|marked| {
                marked.get(&partition.1).map_or(source.log_start_offset, |marked| {
                    mark_on_source(*marked, &source.epochs, source.position.end_offset)
                })
            });
            self.marks.insert(partition.clone(), marks.collect());
        }
    }

    /// What was found in the sources, with the probes of all replicas: a source may have been behind when it was probed.
    pub(super) fn source_events(&self) -> Vec<PartitionEvents> {
        let of_source = self.events.iter().filter_map(|(partition, found)| {
            let source = self.ranked.get(partition)?.first()?;
            let events = found.get(&source.node_id)?;
            let sample = &self.pinned[partition][&source.node_id];
            let in_sync = self.in_sync_throughout(partition, sample.topic_id);
            let probed = |round: usize| {
                found.iter().filter_map(move |(node_id, events)| Some((node_id, (*events.probes.get(round)?)?)))
            };
            let furthest = |round: usize| {
                let position = probed(round).map(|(_, position)| position).max()?;
                Some(mark_on_source(position, &sample.epochs, sample.position.end_offset))
            };
            let rounds = || 0..events.probes.len();
            let is_known = |round: usize| probed(round).any(|(node_id, _)| in_sync.contains(node_id));
            Some(PartitionEvents {
                topic: partition.0.clone(),
                partition: partition.1,
                probes: rounds().map(|round| furthest(round).filter(|_| is_known(round))).collect(),
                probed_end: rounds().filter_map(furthest).max().unwrap_or(i64::MIN),
                events: events.events.clone(),
            })
        });
        of_source.collect()
    }

    /// Replicas that were in sync when the point began and still are.
    fn in_sync_throughout(&self, partition: &Partition, topic_id: Uuid) -> BTreeSet<i32> {
        let last = self.last_metadata.as_ref().and_then(|(_, image, _)| partition_of(image, topic_id, partition.1));
        let first = self.first_metadata.as_ref().and_then(|image| partition_of(image, topic_id, partition.1));
        let last = last.into_iter().flat_map(|image| image.isr.iter().copied());
        last.filter(|node_id| first.is_none_or(|first| first.isr.contains(node_id))).collect()
    }

    /// The partition in the base point, whose entries are in order.
    pub(super) fn previous(&self, (topic, partition): &Partition, topic_id: Uuid) -> Option<&PartitionEntry> {
        let entries = &self.options.base.as_ref()?.partitions;
        let key = (topic.as_str(), *partition);
        let found = entries.binary_search_by(|entry| (entry.topic.as_str(), entry.partition).cmp(&key)).ok()?;
        // A topic that was deleted and made again is another one.
        Some(&entries[found]).filter(|entry| entry.topic_id == topic_id.0)
    }
}

fn partition_of(image: &MetadataImage, topic_id: Uuid, partition: i32) -> Option<&PartitionImage> {
    image.topics.get(&topic_id)?.partitions.get(&partition)
}
