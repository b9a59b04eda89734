//! What was captured and stored, as the point's manifest.

use std::collections::{BTreeMap, BTreeSet};

use segvault_alignment::events::MarkedLog;
use segvault_alignment::line::{Ending, Partition, endings, unfinished};
use segvault_alignment::sample::LogPosition;
use segvault_kafka_log::ids::Uuid;
use segvault_vault_format::manifest::{
    LogDirEntry, MetadataEntry, NodeEntry, PartitionEntry, PointManifest, Totals, TransactionMarker,
};

use super::{Now, Point, is_transaction_log};

impl Point {
    /// The manifest and its totals.
    pub(super) fn manifest(&mut self, now: Now) -> (PointManifest, Totals) {
        self.judge_metadata();
        let has_losses = self.note_losses();
        let partitions = self.partition_entries();
        let (commit_markers, abort_markers) = self.markers(&partitions);
        let level = self.level(has_losses);
        let metadata_bytes = self.stored_metadata.as_ref().map(|stored| (stored.read_bytes, stored.stored_bytes));
        let stored_bytes = self.stored.values().map(|(_, stored)| (stored.read_bytes, stored.stored_bytes));
        let (read_bytes, stored_bytes) =
            stored_bytes.chain(metadata_bytes).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let manifest = PointManifest {
            cluster_id: self.options.id.cluster_id.clone(),
            number: self.options.id.number,
            began_ms: self.options.began_ms,
            finished_ms: now.unix_ms,
            level,
            closed_only: self.options.closed_only,
            degraded: self.degraded || !self.uncovered.is_empty(),
            findings: std::mem::take(&mut self.findings),
            nodes: self.node_entries(),
            metadata: Some(self.metadata_entry()),
            max_producer_id: self.max_producer_id(),
            barrier_us: self.barrier_us,
            abort_markers,
            commit_markers,
            partitions,
        };
        let topics: BTreeSet<_> = manifest.partitions.iter().map(|entry| &entry.topic).collect();
        let totals = Totals {
            began_ms: manifest.began_ms,
            finished_ms: manifest.finished_ms,
            level,
            degraded: manifest.degraded,
            closed_only: manifest.closed_only,
            topics: topics.len() as u32,
            partitions: manifest.partitions.len() as u32,
            bytes: manifest.partitions.iter().map(|entry| entry.bytes).sum(),
            read_bytes,
            stored_bytes,
        };
        (manifest, totals)
    }

    /// A copy of the metadata is certain to hold every committed record only if a majority reaches no further.
    fn judge_metadata(&mut self) {
        let (_, image, copy) = self.last_metadata.as_ref().expect("phase LastMetadata has passed");
        let copied = LogPosition { last_epoch: copy.epoch, end_offset: copy.end_offset };
        let voters: BTreeSet<i32> = match &image.voters {
            Some(voters) if !voters.is_empty() => voters.iter().map(|voter| voter.voter_id).collect(),
            _ => self.agents.values().filter_map(|agent| agent.facts.static_voters.clone()).flatten().collect(),
        };
        let within = |(node_id, end): &(&i32, &LogPosition)| voters.contains(node_id) && **end <= copied;
        let captured = self.metadata_ends.iter().filter(within).count();
        if captured * 2 <= voters.len() {
            self.degraded = true;
            self.findings.push(format!(
                "cluster metadata: only {captured} of {} controllers are known to end where the copy does: without a \
                 majority the newest changes may be missing; give the server.properties of more controllers",
                voters.len()
            ));
        }
    }

    /// Notes what replicas have lost. What the source has lost, every replica has, and so the point: then true.
    fn note_losses(&mut self) -> bool {
        let losses = [self.lost_ends(), self.lost_starts(true), self.holes(), self.compacted()].concat();
        let has_losses = !losses.is_empty();
        self.degraded |= has_losses;
        for (partition, text) in losses.into_iter().chain(self.lost_starts(false)) {
            self.notes.entry(partition).or_default().push(text);
        }
        has_losses
    }

    /// Logs that end below what their broker knew to be replicated, while no other one goes on.
    fn lost_ends(&self) -> Vec<(Partition, String)> {
        let mut lost = Vec::new();
        for (partition, (node_id, stored)) in self.stored.iter().filter(|(partition, _)| !self.is_cut_short(partition))
        {
            let pinned_end = self.pinned_end(partition, *node_id).unwrap_or(stored.end_offset);
            for sample in self.pinned.get(partition).into_iter().flat_map(BTreeMap::values) {
                let (end, promised) = (sample.position.end_offset, sample.high_watermark);
                if sample.unusable.is_none() && promised > end.max(pinned_end) {
                    let text = format!(
                        "{}: the log ends at offset {end}, below the high watermark {promised} that its broker had \
                         checkpointed, and so does every other replica: it lost its end in a crash or by damage",
                        sample.dir
                    );
                    lost.push((partition.clone(), text));
                }
            }
        }
        lost
    }

    /// Logs that lack their first segments: those of sources, or those that were passed over.
    fn lost_starts(&self, of_sources: bool) -> Vec<(Partition, String)> {
        let mut lost = Vec::new();
        for (partition, (source, _)) in &self.stored {
            let replicas = self.pinned.get(partition).into_iter().flatten();
            for (node_id, sample) in replicas.filter(|(node_id, _)| (*node_id == source) == of_sources) {
                let Some(from) = sample.lost_from else { continue };
                let text = format!(
                    "replica of node {node_id}: {}: the log begins at offset {}, but its epoch history at {from}: segments \
                     were lost or removed by hand",
                    sample.dir, sample.log_start_offset
                );
                lost.push((partition.clone(), text));
            }
        }
        lost
    }

    /// Logs with holes that were taken for want of others.
    fn holes(&self) -> Vec<(Partition, String)> {
        let text = "offsets are missing in every replica that can be read, unless the topic was compacted once";
        let taken = self.has_gaps.iter().filter(|partition| !self.is_compacted(&partition.0));
        taken.map(|partition| (partition.clone(), text.to_owned())).collect()
    }

    /// Logs of which the cleaner may have taken records for the sake of others that are cut off.
    fn compacted(&self) -> Vec<(Partition, String)> {
        let compacted = self.stored.iter().filter_map(|(partition, (node_id, stored))| {
            let cleaned = self.cleaned_beyond_cut(partition, *node_id)?;
            let text = format!(
                "records below offset {} may have been compacted away because of later ones of their key below {cleaned}, \
                 which are not in the point: take another point",
                stored.end_offset
            );
            Some((partition.clone(), text))
        });
        compacted.collect()
    }

    /// Whether only closed segments of a partition are wanted.
    fn is_cut_short(&self, partition: &Partition) -> bool {
        self.options.closed_only && !is_transaction_log(partition)
    }

    fn partition_entries(&self) -> Vec<PartitionEntry> {
        let (_, image, _) = self.last_metadata.as_ref().expect("phase LastMetadata has passed");
        let mut entries: Vec<_> = image
            .topics
            .values()
            .flat_map(|topic| {
                topic.partitions.keys().map(|number| self.partition_entry((topic.name.clone(), *number), topic.id))
            })
            .collect();
        entries.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        entries
    }

    fn partition_entry(&self, partition: Partition, topic_id: Uuid) -> PartitionEntry {
        let mut entry = PartitionEntry {
            topic_id: topic_id.0.to_vec(),
            topic: partition.0.clone(),
            partition: partition.1,
            source_node: -1,
            max_epoch: -1,
            uncovered: self.uncovered.get(&partition).cloned().unwrap_or_default(),
            notes: [&self.refused, &self.notes]
                .iter()
                .filter_map(|notes| notes.get(&partition))
                .flatten()
                .cloned()
                .collect(),
            ..Default::default()
        };
        if let Some((node_id, stored)) = self.stored.get(&partition) {
            let pinned_end = self.pinned_end(&partition, *node_id).unwrap_or(stored.end_offset);
            entry.source_node = *node_id;
            entry.stream = Some(stored.stream.clone());
            entry.log_start_offset = stored.log_start_offset;
            entry.end_offset = stored.end_offset;
            entry.pinned_end_offset = pinned_end;
            entry.bytes = stored.bytes;
            entry.max_epoch = stored.max_epoch;
            entry.trimmed = self.cuts.get(&partition).and_then(|cut| cut.trimmed.clone()).unwrap_or_default();
            entry.notes.extend(stored.notes.iter().cloned());
        }
        entry
    }

    /// Where a replica ended when it was pinned.
    fn pinned_end(&self, partition: &Partition, node_id: i32) -> Option<i64> {
        self.pinned.get(partition)?.get(&node_id).map(|sample| sample.position.end_offset)
    }

    /// COMMIT and ABORT markers for a restore to append.
    fn markers(&self, entries: &[PartitionEntry]) -> (Vec<TransactionMarker>, Vec<TransactionMarker>) {
        let logs = self.marked_logs();
        let unfinished = unfinished(logs.iter().flat_map(MarkedLog::at_mark));
        let (mut commits, mut aborts) = (Vec::new(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            let partition = (entry.topic.clone(), entry.partition);
            let Some((_, stored)) = self.stored.get(&partition).filter(|_| !is_transaction_log(&partition)) else {
                continue;
            };
            for Ending { open, commit, producer_epoch } in endings(&partition, &stored.open, &unfinished) {
                let markers = if commit { &mut commits } else { &mut aborts };
                markers.push(TransactionMarker {
                    partition_index: index as u32,
                    producer_id: open.producer_id,
                    producer_epoch: i32::from(producer_epoch),
                    coordinator_epoch: open.coordinator_epoch.max(0),
                });
            }
        }
        (commits, aborts)
    }

    /// L3 needs the barrier over all of the transaction log and every partition, whole; else the offsets still fit (L2),
    /// as a restore clamps them.
    fn level(&mut self, has_losses: bool) -> u32 {
        if self.options.closed_only {
            self.findings.push(
                "closed segments only: records in active segments are missing, and with them parts of transactions"
                    .to_owned(),
            );
            2
        } else if !self.doubts.is_empty() {
            let doubts = self.doubts.join(", ");
            self.findings.push(format!(
                "transactions of one producer epoch could not be told apart, so one may be torn: {doubts}; take \
                 another point"
            ));
            2
        } else if self.uncovered.is_empty() && !has_losses {
            3
        } else {
            2
        }
    }

    fn max_producer_id(&self) -> i64 {
        let of_partitions = self.stored.values().map(|(_, stored)| stored.max_producer_id);
        let of_transactions = self.transactions.iter().map(|log| log.max_producer_id);
        let of_base = self.options.base.iter().map(|base| base.max_producer_id);
        of_partitions.chain(of_transactions).chain(of_base).max().unwrap_or(-1)
    }

    fn node_entries(&self) -> Vec<NodeEntry> {
        self.agents
            .values()
            .map(|agent| NodeEntry {
                node_id: agent.facts.node_id,
                broker: agent.facts.broker,
                controller: agent.facts.controller,
                log_dirs: agent
                    .facts
                    .log_dirs
                    .iter()
                    .map(|dir| LogDirEntry {
                        path: dir.path.clone(),
                        directory_id: dir.directory_id.map(|id| id.0.to_vec()).unwrap_or_default(),
                    })
                    .collect(),
                metadata_log_dir: agent.facts.metadata_log_dir as u32,
            })
            .collect()
    }

    fn metadata_entry(&self) -> MetadataEntry {
        let (source_node, _, copy) = self.last_metadata.as_ref().expect("phase LastMetadata has passed");
        let stored = self.stored_metadata.clone().unwrap_or_default();
        MetadataEntry {
            source_node: *source_node,
            checkpoint: stored.checkpoint,
            checkpoint_offset: copy.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.end_offset),
            checkpoint_epoch: copy.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.epoch),
            log: stored.log,
            end_offset: copy.end_offset,
            epoch: copy.epoch,
        }
    }
}
