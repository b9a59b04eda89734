//! Reads back what a restore wrote, without trusting whoever wrote it.
//!
//! Held against the plan and against each other are the relations that Kafka itself never checks and that lose data
//! when they are broken: topic ids, log ends, indexes, aborted transactions, producer snapshots, epochs, offset
//! checkpoints, directory ids, the metadata checkpoint, and that every replica is there and nothing else. Whatever is
//! wrong is collected; nothing is changed.
//!
//! [`verify`] looks at the ends of segments, which takes seconds, and replays the end of each log as the disk has it
//! ([`tail`]); [`verify_content`] reads every byte.

mod batches;
mod content;
mod tail;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use segvault_alignment::restore::{Finding, NodePlan, PartitionPlan, RestorePlan};
use segvault_kafka_log::batch::{Batch, BatchHeader, HEADER_LEN};
use segvault_kafka_log::checkpoint::{LeaderEpochs, decode_offsets};
use segvault_kafka_log::clean_shutdown::CleanShutdown;
use segvault_kafka_log::index::{
    OFFSET_ENTRY_LEN, TIME_ENTRY_LEN, decode_offset_index, decode_time_index, decode_txn_index,
};
use segvault_kafka_log::meta_properties::MetaProperties;
use segvault_kafka_log::metadata::checkpoint::replay_checkpoint;
use segvault_kafka_log::names::{
    CLEAN_SHUTDOWN, CLUSTER_METADATA_DIR, HIGH_WATERMARK_CHECKPOINT, LEADER_EPOCH_CHECKPOINT, LOCK,
    LOG_START_CHECKPOINT, META_PROPERTIES, PARTITION_METADATA, RECOVERY_POINT_CHECKPOINT, SegmentFile, SegmentFileKind,
    SegmentFileState, segment_file_name,
};
use segvault_kafka_log::partition_metadata::PartitionMetadata;
use segvault_kafka_log::producer::ProducerSnapshot;
use segvault_kafka_log::{TopicPartition, Uuid};

use super::files::forget_cached;
use super::target::RESTORE_MARKER;

/// Longest side file or checkpoint that is read whole.
const SIDE_FILE_LEN_MAX: u64 = 256 << 20;

/// Bytes at the end of a log that are read back, or somewhat more: what a disk or a file system loses at a time.
const TAIL_LEN: u64 = 64 << 10;

/// What a partition's log was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogFacts {
    /// Base of the first segment.
    pub first_base: i64,
    /// Log end offset, as a broker would find it.
    pub end_offset: i64,
}

/// Checks what `plan` says of `nodes[node]`; an empty answer means that all is well.
///
/// Both a node whose restore is finished and one that only lacks the last step pass. It must not have been started.
pub fn verify(plan: &RestorePlan, node: usize) -> Vec<Finding> {
    let mut findings = Findings::default();
    check_node(plan, node, &mut findings);
    findings.0
}

/// Like [`verify`], and reads every batch: CRCs, order and epochs, and whether indexes, aborted transactions and
/// producer state are what the batches say.
pub fn verify_content(plan: &RestorePlan, node: usize) -> Vec<Finding> {
    let mut findings = Findings::default();
    check_node(plan, node, &mut findings);
    for (index, dir) in plan.nodes[node].log_dirs.iter().enumerate() {
        for tp in partitions_in(plan, node, index).keys() {
            content::check(&Path::new(&dir.path).join(tp.to_string()), &mut findings);
        }
    }
    findings.0
}

fn check_node(plan: &RestorePlan, node: usize, findings: &mut Findings) {
    let node_plan = &plan.nodes[node];
    let locks = node_plan.log_dirs.iter().map(|dir| Path::new(&dir.path).join(LOCK));
    if let Some(lock) = locks.into_iter().find(|lock| lock.exists()) {
        return findings.add(
            &lock,
            "Kafka has opened this log dir since it was restored: what is there now is its own business, and cannot be \
             held against the plan any more",
        );
    }
    let mut ids = BTreeSet::new();
    for (index, dir) in node_plan.log_dirs.iter().enumerate() {
        let path = Path::new(&dir.path);
        let partitions = partitions_in(plan, node, index);
        let metadata = node_plan.controller && index == node_plan.metadata_log_dir;
        check_identity(plan, node_plan, path, dir.directory_id, &mut ids, findings);
        check_names(path, &partitions, metadata, findings);
        let mut ends = BTreeMap::new();
        for (tp, partition) in &partitions {
            if let Some(facts) = check_partition(&path.join(tp.to_string()), partition, Read::FromDisk, findings) {
                ends.insert(tp.clone(), facts);
            }
        }
        if node_plan.broker && index < node_plan.data_dirs {
            check_offsets(path, &partitions, &ends, findings);
            check_clean_shutdown(path, node_plan, findings);
        }
    }
    if node_plan.controller {
        let path = &node_plan.log_dirs[node_plan.metadata_log_dir].path;
        let dir = Path::new(path).join(CLUSTER_METADATA_DIR);
        check_metadata(plan, node_plan, node, &dir, findings);
    }
}

/// The partitions that belong into a log dir.
pub(super) fn partitions_in(
    plan: &RestorePlan,
    node: usize,
    log_dir: usize,
) -> BTreeMap<TopicPartition, &PartitionPlan> {
    let here = |partition: &&PartitionPlan| {
        partition.replicas.iter().any(|replica| replica.node == node && replica.log_dir == log_dir)
    };
    let named =
        |partition| (TopicPartition::new(&PartitionPlan::clone(partition).topic, partition.partition), partition);
    plan.partitions.iter().filter(here).map(named).collect()
}

/// What is wrong so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, path: &Path, what: impl Display) {
        self.0.push(Finding::warning(format!("{}: {what}", path.display())));
    }

    /// The bytes of a file, which must be there.
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        let read = || {
            let len = fs::metadata(path)?.len();
            if len > SIDE_FILE_LEN_MAX {
                return Err(std::io::Error::other(format!("{len} bytes are too many")));
            }
            fs::read(path)
        };
        read().map_err(|error| self.add(path, error)).ok()
    }

    /// What `decode` makes of a file, which must be there and make sense.
    fn decode<T, E: Display>(&mut self, path: &Path, decode: impl FnOnce(&[u8]) -> Result<T, E>) -> Option<T> {
        let bytes = self.read(path)?;
        decode(&bytes).map_err(|error| self.add(path, error)).ok()
    }

    fn expect_eq<T: PartialEq + Display>(&mut self, path: &Path, what: &str, found: Option<T>, expected: Option<T>) {
        if found != expected {
            let show = |value: Option<T>| value.map_or("missing".to_owned(), |value| value.to_string());
            self.add(path, format!("{what} is {} and should be {}", show(found), show(expected)));
        }
    }
}

fn check_identity(
    plan: &RestorePlan,
    node: &NodePlan,
    dir: &Path,
    directory_id: Option<Uuid>,
    ids: &mut BTreeSet<Uuid>,
    findings: &mut Findings,
) {
    let marker = dir.join(RESTORE_MARKER);
    let path = if marker.exists() { marker } else { dir.join(META_PROPERTIES) };
    let Some(meta) = findings.decode(&path, MetaProperties::decode) else {
        return;
    };
    findings.expect_eq(&path, "cluster.id", meta.cluster_id.as_deref(), Some(plan.cluster_id.as_str()));
    findings.expect_eq(&path, "node.id", meta.node_id, Some(node.node_id));
    if directory_id.is_some() {
        findings.expect_eq(&path, "directory.id", meta.directory_id, directory_id);
    }
    if meta.directory_id.is_some_and(|id| !ids.insert(id)) {
        findings.add(&path, "another log dir of the node has the same directory.id");
    }
}

/// Every partition must have its directory, and no other directory may be there: Kafka would not start on it, or take
/// it for a stray.
fn check_names(
    dir: &Path,
    partitions: &BTreeMap<TopicPartition, &PartitionPlan>,
    metadata: bool,
    findings: &mut Findings,
) {
    let mut missing: BTreeSet<String> = partitions.keys().map(ToString::to_string).collect();
    if metadata {
        missing.insert(CLUSTER_METADATA_DIR.into());
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return findings.add(dir, error),
    };
    for entry in entries {
        match entry.and_then(|entry| Ok((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?))) {
            Ok((name, kind)) if kind.is_dir() && !missing.remove(&name) => {
                findings.add(&dir.join(name), "this directory belongs to no partition of the plan");
            }
            Ok(_) => {}
            Err(error) => findings.add(dir, error),
        }
    }
    for name in missing {
        findings.add(&dir.join(name), "is missing");
    }
}

/// Whether a directory holds a partition that was written to its end.
pub(super) fn is_complete(dir: &Path, topic_id: Uuid) -> bool {
    let bytes = fs::read(dir.join(PARTITION_METADATA)).unwrap_or_default();
    PartitionMetadata::decode(&bytes).is_ok_and(|metadata| metadata.topic_id == topic_id)
}

/// The end of a log whose partition was just written; findings say what is wrong with it.
pub(super) fn log_facts(dir: &Path, partition: &PartitionPlan) -> Result<LogFacts, Vec<Finding>> {
    let mut findings = Findings::default();
    match check_partition(dir, partition, Read::Cached, &mut findings) {
        Some(facts) if findings.0.is_empty() => Ok(facts),
        _ => Err(findings.0),
    }
}

/// Where the ends of logs are read from, if they were written a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Cached,
    /// What the kernel remembers is forgotten first, as far as it is on disk.
    FromDisk,
}

fn check_partition(dir: &Path, partition: &PartitionPlan, read: Read, findings: &mut Findings) -> Option<LogFacts> {
    if !dir.is_dir() {
        return None;
    }
    let path = dir.join(PARTITION_METADATA);
    if let Some(metadata) = findings.decode(&path, PartitionMetadata::decode) {
        findings.expect_eq(&path, "the topic id", Some(metadata.topic_id), Some(partition.topic_id));
    }
    let files = segment_files(dir, findings);
    let bases =
        |kind| files.iter().filter(move |file| file.kind == kind).map(|file| file.base_offset).collect::<BTreeSet<_>>();
    let logs = bases(SegmentFileKind::Log);
    for file in &files {
        if file.kind != SegmentFileKind::Snapshot && !logs.contains(&file.base_offset) {
            findings.add(&dir.join(file.to_string()), "there is no segment that it belongs to");
        }
    }
    let Some(first_base) = logs.first().copied() else {
        findings.add(dir, "there is no segment");
        return None;
    };
    let mut end = SegmentEnd { end_offset: first_base, epoch: -1 };
    let mut tail = 0;
    for (index, base) in logs.iter().enumerate() {
        if *base < end.end_offset {
            findings
                .add(&dir.join(segment_file_name(*base, SegmentFileKind::Log)), "begins before the one before it ends");
        }
        let last = index + 1 == logs.len();
        let read = if last { read } else { Read::Cached };
        let has_txn_index = bases(SegmentFileKind::TxnIndex).contains(base);
        let (begins, found) = check_segment(dir, *base, has_txn_index, read, findings)?;
        tail = begins;
        end.epoch = end.epoch.max(found.epoch);
        end.end_offset = if last { found.end_offset.max(*base) } else { found.end_offset.max(end.end_offset) };
    }
    let facts = LogFacts { first_base, end_offset: end.end_offset };
    let expected = partition.marked_end_offset();
    // Clamps come on top, and only there.
    if facts.end_offset < expected || (facts.end_offset > expected && !partition.is_clamped()) {
        findings.expect_eq(dir, "the log's end", Some(facts.end_offset), Some(expected));
    }
    let epochs = check_epochs(dir, partition, &end, findings);
    let snapshot = check_snapshots(dir, partition, facts, &bases(SegmentFileKind::Snapshot), findings);
    if let (Some(epochs), Some(base)) = (epochs, logs.last()) {
        let log = dir.join(segment_file_name(*base, SegmentFileKind::Log));
        match tail::check(&log, tail, &epochs, snapshot.as_ref()) {
            Ok(wrong) => {
                let snapshot = dir.join(segment_file_name(facts.end_offset, SegmentFileKind::Snapshot));
                wrong.into_iter().for_each(|what| findings.add(&snapshot, what));
            }
            Err(why) => findings.add(&log, why),
        }
    }
    Some(facts)
}

fn segment_files(dir: &Path, findings: &mut Findings) -> Vec<SegmentFile> {
    let mut files = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            findings.add(dir, error);
            return files;
        }
    };
    for entry in entries {
        let name = match entry {
            Ok(entry) => entry.file_name().to_string_lossy().into_owned(),
            Err(error) => {
                findings.add(dir, error);
                continue;
            }
        };
        match SegmentFile::parse(&name) {
            Some(file) if file.state == SegmentFileState::Live => files.push(file),
            None if name == PARTITION_METADATA || name == LEADER_EPOCH_CHECKPOINT => {}
            _ => findings.add(&dir.join(name), "does not belong here"),
        }
    }
    files
}

/// Where a segment ends: offset after its last batch (its base without one) and that batch's epoch.
struct SegmentEnd {
    end_offset: i64,
    epoch: i32,
}

/// Where the tail of the segment begins, by its offset index, and where the segment ends.
fn check_segment(
    dir: &Path,
    base: i64,
    has_txn_index: bool,
    read: Read,
    findings: &mut Findings,
) -> Option<(u64, SegmentEnd)> {
    let path = |kind| dir.join(segment_file_name(base, kind));
    let log = path(SegmentFileKind::Log);
    let file = File::open(&log).map_err(|error| findings.add(&log, error)).ok()?;
    let len = file.metadata().map_err(|error| findings.add(&log, error)).ok()?.len();

    let index = path(SegmentFileKind::OffsetIndex);
    let entries = findings.decode(&index, |bytes| {
        decode_offset_index(base, bytes).map(|entries| (bytes.len() / OFFSET_ENTRY_LEN - entries.len(), entries))
    });
    let (zeros, entries) = entries.unwrap_or_default();
    if zeros > 0 {
        findings.add(&index, format!("{zeros} empty entries at its end"));
    }
    let from = entries.last().map_or(0, |entry| entry.position as u64);
    let before_tail = entries.partition_point(|entry| (entry.position as u64).saturating_add(TAIL_LEN) <= len);
    let tail = before_tail.checked_sub(1).map_or(0, |index| entries[index].position as u64);
    if read == Read::FromDisk {
        forget_cached(&file, tail);
    }
    let end = match walk(&file, from, len, base) {
        Ok(end) => end,
        Err(why) => {
            findings.add(&log, why);
            return None;
        }
    };
    if entries.last().is_some_and(|entry| entry.offset >= end.end_offset) {
        findings.add(&index, "its last entry lies past the segment's end");
    }

    let time = path(SegmentFileKind::TimeIndex);
    let entries = findings.decode(&time, |bytes| {
        decode_time_index(base, bytes).map(|entries| (bytes.len() / TIME_ENTRY_LEN - entries.len(), entries))
    });
    let (zeros, entries) = entries.unwrap_or_default();
    if zeros > 0 {
        findings.add(&time, format!("{zeros} empty entries at its end"));
    }
    if entries.last().is_some_and(|entry| entry.offset >= end.end_offset) {
        findings.add(&time, "its last entry lies past the segment's end");
    }

    if has_txn_index {
        let txns = path(SegmentFileKind::TxnIndex);
        let entries = findings.decode(&txns, decode_txn_index).unwrap_or_default();
        if entries.is_empty() || entries.iter().any(|txn| !(base..end.end_offset).contains(&txn.last_offset)) {
            findings.add(&txns, "it has no entries, or some whose marker lies elsewhere");
        }
    }
    Some((tail, end))
}

/// Walks the batches of a segment from a batch's `position` to its end. The last one is read whole.
fn walk(file: &File, mut position: u64, len: u64, base: i64) -> Result<SegmentEnd, String> {
    let mut end = SegmentEnd { end_offset: base, epoch: -1 };
    let mut last = None;
    while position < len {
        let at = |why: &dyn Display| format!("at byte {position}: {why}");
        let mut header = [0; HEADER_LEN];
        let there = usize::try_from(len - position).unwrap_or(HEADER_LEN).min(HEADER_LEN);
        file.read_exact_at(&mut header[..there], position).map_err(|error| at(&error))?;
        let batch = BatchHeader::parse(&header[..there]).map_err(|error| at(&error))?;
        let size = batch.size() as u64;
        if size > len - position {
            return Err(at(&"the batch is cut short"));
        }
        if batch.last_offset() < end.end_offset {
            return Err(at(&"offsets do not rise"));
        }
        end = SegmentEnd { end_offset: batch.next_offset(), epoch: batch.leader_epoch() };
        last = Some((position, batch.size()));
        position += size;
    }
    if let Some((position, size)) = last {
        let mut bytes = vec![0; size];
        let read = file.read_exact_at(&mut bytes, position).map_err(|error| error.to_string());
        let checked = read
            .and_then(|()| Batch::parse(&bytes).and_then(|batch| batch.check_crc()).map_err(|error| error.to_string()));
        checked.map_err(|why| format!("the last batch, at byte {position}: {why}"))?;
    }
    Ok(end)
}

fn check_epochs(
    dir: &Path,
    partition: &PartitionPlan,
    end: &SegmentEnd,
    findings: &mut Findings,
) -> Option<LeaderEpochs> {
    let path = dir.join(LEADER_EPOCH_CHECKPOINT);
    let epochs = findings.decode(&path, LeaderEpochs::decode)?;
    let latest = epochs.latest().map_or(-1, |entry| entry.epoch);
    if latest < end.epoch {
        findings.add(&path, format!("the last batch has epoch {}, above all that are listed", end.epoch));
    }
    if latest.max(end.epoch) > partition.leader_epoch {
        findings.add(&path, format!("epoch {latest} lies above the one in the metadata, {}", partition.leader_epoch));
    }
    if epochs.latest().is_some_and(|entry| entry.start_offset >= end.end_offset) {
        findings.add(&path, "its last epoch begins past the log's end");
    }
    Some(epochs)
}

/// The producer snapshot of the log's end.
fn check_snapshots(
    dir: &Path,
    partition: &PartitionPlan,
    facts: LogFacts,
    offsets: &BTreeSet<i64>,
    findings: &mut Findings,
) -> Option<ProducerSnapshot> {
    let path = |offset| dir.join(segment_file_name(offset, SegmentFileKind::Snapshot));
    let end_offset = facts.end_offset;
    if end_offset > partition.log_start_offset.max(facts.first_base) && !offsets.contains(&end_offset) {
        findings.add(&path(end_offset), "is missing: open transactions would be forgotten");
    }
    let mut at_end = None;
    for offset in offsets {
        if *offset > end_offset {
            findings.add(&path(*offset), "lies past the log's end");
        }
        let snapshot = findings.decode(&path(*offset), ProducerSnapshot::decode);
        at_end = snapshot.filter(|_| *offset == end_offset).or(at_end);
    }
    at_end
}

fn check_offsets(
    dir: &Path,
    partitions: &BTreeMap<TopicPartition, &PartitionPlan>,
    ends: &BTreeMap<TopicPartition, LogFacts>,
    findings: &mut Findings,
) {
    let log_ends: BTreeMap<TopicPartition, i64> =
        ends.iter().map(|(tp, facts)| (tp.clone(), facts.end_offset)).collect();
    for name in [HIGH_WATERMARK_CHECKPOINT, RECOVERY_POINT_CHECKPOINT] {
        let path = dir.join(name);
        let Some(offsets) = findings.decode(&path, decode_offsets) else {
            continue;
        };
        if offsets != log_ends {
            let wrong = log_ends.iter().find(|(tp, end)| offsets.get(*tp) != Some(*end));
            let wrong = wrong.map_or_else(|| "a partition that is not here".into(), |(tp, _)| tp.to_string());
            findings.add(&path, format!("does not name the logs' ends: see {wrong}"));
        }
    }
    let path = dir.join(LOG_START_CHECKPOINT);
    let starts = findings.decode(&path, decode_offsets).unwrap_or_default();
    for (tp, facts) in ends {
        let Some(partition) = partitions.get(tp) else {
            continue;
        };
        let start = partition.log_start_offset;
        let expected = Some(start).filter(|start| *start > facts.first_base || partition.tiered);
        findings.expect_eq(&path, &format!("the start of {tp}"), starts.get(tp).copied(), expected);
        if start > facts.end_offset {
            findings.add(&path, format!("{tp} starts past its end: Kafka would delete all of it"));
        }
    }
}

fn check_clean_shutdown(dir: &Path, node: &NodePlan, findings: &mut Findings) {
    let path = dir.join(CLEAN_SHUTDOWN);
    if let Some(bytes) = findings.read(&path) {
        findings.expect_eq(&path, "the broker epoch", CleanShutdown::decode(&bytes).broker_epoch, node.broker_epoch);
    }
}

/// The metadata checkpoint must be alone, hold the plan's bytes, and say of this node what its log dirs are.
fn check_metadata(plan: &RestorePlan, node_plan: &NodePlan, node: usize, dir: &Path, findings: &mut Findings) {
    let path = dir.join(plan.checkpoint.name.to_string());
    let names = fs::read_dir(dir).map(|entries| entries.flatten().count()).unwrap_or(0);
    if names != 1 {
        findings.add(dir, format!("holds {names} files instead of the checkpoint alone"));
    }
    let Some(bytes) = findings.read(&path) else {
        return;
    };
    if bytes != plan.checkpoint.bytes {
        return findings.add(&path, "is not the checkpoint of the plan");
    }
    let image = match replay_checkpoint(&bytes) {
        Ok(checkpoint) => checkpoint.image,
        Err(error) => return findings.add(&path, error),
    };
    for broker in image.brokers.values().filter(|broker| !broker.fenced) {
        findings.add(&path, format!("broker {} is not fenced", broker.broker_id));
    }
    if !node_plan.broker {
        return;
    }
    let mut planned: BTreeMap<(Uuid, i32), (&PartitionPlan, Option<Uuid>)> = BTreeMap::new();
    for partition in &plan.partitions {
        for replica in partition.replicas.iter().filter(|replica| replica.node == node) {
            let id = node_plan.log_dirs[replica.log_dir].directory_id;
            planned.insert((partition.topic_id, partition.partition), (partition, id));
        }
    }
    for topic in image.topics.values() {
        for (number, partition) in &topic.partitions {
            let slot = partition.replicas.iter().position(|replica| *replica == node_plan.node_id);
            let (Some(slot), tp) = (slot, TopicPartition::new(&topic.name, *number)) else {
                continue;
            };
            let Some((planned, id)) = planned.remove(&(topic.id, *number)) else {
                findings.add(&path, format!("{tp} has a replica on node {} that is not planned", node_plan.node_id));
                continue;
            };
            findings.expect_eq(
                &path,
                &format!("the leader epoch of {tp}"),
                Some(partition.leader_epoch),
                Some(planned.leader_epoch),
            );
            let named = partition.directories.get(slot).copied().filter(|named| !named.is_reserved());
            if named.is_some() {
                findings.expect_eq(&path, &format!("the directory of {tp}"), named, id);
            }
        }
    }
    for (partition, _) in planned.into_values() {
        findings.add(
            &path,
            format!("{}-{} is not assigned to node {}", partition.topic, partition.partition, node_plan.node_id),
        );
    }
}
