//! The names that Kafka gives to directories and files, parsed and built in one place.
//!
//! Only names that Kafka itself would write are recognised: `parse` of a name and formatting of the result
//! give the same text. Whatever else lies in a log dir is [`LogDirEntry::Foreign`], and Kafka's own answer to a
//! foreign *directory* is to refuse to start (`LogManager.loadLogs`), so callers should say so.

use std::fmt;

use crate::ids::TopicPartition;

/// The KRaft metadata log's topic.
pub const CLUSTER_METADATA_TOPIC: &str = "__cluster_metadata";
/// The KRaft metadata log's directory.
pub const CLUSTER_METADATA_DIR: &str = "__cluster_metadata-0";
/// Cache of tiered storage, rebuilt by the broker.
pub const REMOTE_LOG_INDEX_CACHE_DIR: &str = "remote-log-index-cache";

/// Identity of a log dir.
pub const META_PROPERTIES: &str = "meta.properties";
/// Marker of a clean stop.
pub const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";
/// The lock that a running broker holds.
pub const LOCK: &str = ".lock";
/// First metadata of a formatted dir, up to 4.3.
pub const BOOTSTRAP_CHECKPOINT: &str = "bootstrap.checkpoint";
/// Offset checkpoint: first offset not known to be fsynced.
pub const RECOVERY_POINT_CHECKPOINT: &str = "recovery-point-offset-checkpoint";
/// Offset checkpoint: log starts above the first segment's base.
pub const LOG_START_CHECKPOINT: &str = "log-start-offset-checkpoint";
/// Offset checkpoint: high watermarks.
pub const HIGH_WATERMARK_CHECKPOINT: &str = "replication-offset-checkpoint";
/// Offset checkpoint: first offsets that are not compacted yet.
pub const CLEANER_CHECKPOINT: &str = "cleaner-offset-checkpoint";

/// Epoch history of a partition, in its directory.
pub const LEADER_EPOCH_CHECKPOINT: &str = "leader-epoch-checkpoint";
/// Topic id of a partition, in its directory.
pub const PARTITION_METADATA: &str = "partition.metadata";
/// State of the KRaft quorum as this node saw it, in the metadata log's directory.
pub const QUORUM_STATE: &str = "quorum-state";

/// Longest topic name (`Topic.MAX_NAME_LENGTH`).
const TOPIC_LEN_MAX: usize = 249;

/// Whether Kafka lets a topic have this name (`Topic.validate`).
pub fn is_topic_name(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=TOPIC_LEN_MAX).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(legal)
}

/// What a directory in a log dir is, by its name (`LocalLog.parseTopicPartitionName`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDirEntry {
    /// `<topic>-<p>`: a partition.
    Partition(TopicPartition),
    /// `<topic>-<p>.<32 hex>-delete`: being deleted. The topic may be cut short to fit 255 characters.
    Deleted(TopicPartition),
    /// `<topic>-<p>.<32 hex>-future`: moving in from another log dir.
    Future(TopicPartition),
    /// `<topic>-<p>.<32 hex>-stray`: unknown to the metadata, kept and not served.
    Stray(TopicPartition),
    /// `__cluster_metadata-0`: the KRaft metadata log.
    ClusterMetadata,
    /// `remote-log-index-cache`: a cache.
    RemoteLogIndexCache,
    /// Not Kafka's. As a directory it keeps the broker from starting; as a file it is ignored.
    Foreign,
}

impl LogDirEntry {
    /// Classifies a directory's name.
    pub fn parse(name: &str) -> Self {
        let entry = match name {
            CLUSTER_METADATA_DIR => return LogDirEntry::ClusterMetadata,
            REMOTE_LOG_INDEX_CACHE_DIR => return LogDirEntry::RemoteLogIndexCache,
            _ if name.ends_with("-delete") => LogDirEntry::Deleted,
            _ if name.ends_with("-future") => LogDirEntry::Future,
            _ if name.ends_with("-stray") => LogDirEntry::Stray,
            _ => {
                return parse_topic_partition(name).map_or(LogDirEntry::Foreign, LogDirEntry::Partition);
            }
        };
        let (partition, unique) = name.rsplit_once('.').unwrap_or_default();
        match parse_topic_partition(partition) {
            Some(partition) if !unique.starts_with('-') => entry(partition),
            _ => LogDirEntry::Foreign,
        }
    }
}

fn parse_topic_partition(name: &str) -> Option<TopicPartition> {
    let (topic, partition) = name.rsplit_once('-')?;
    let partition = parse_digits(partition, 1)?;
    is_topic_name(topic).then(|| TopicPartition::new(topic, partition))
}

/// What a file of a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentFileKind {
    /// `.log`: record batches.
    Log,
    /// `.index`: offsets to positions.
    OffsetIndex,
    /// `.timeindex`: timestamps to offsets.
    TimeIndex,
    /// `.txnindex`: aborted transactions.
    TxnIndex,
    /// `.snapshot`: producer state *before* the offset in the name.
    Snapshot,
}

impl SegmentFileKind {
    /// All kinds.
    pub const ALL: [SegmentFileKind; 5] = [
        SegmentFileKind::Log,
        SegmentFileKind::OffsetIndex,
        SegmentFileKind::TimeIndex,
        SegmentFileKind::TxnIndex,
        SegmentFileKind::Snapshot,
    ];

    /// The ending of its names, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            SegmentFileKind::Log => "log",
            SegmentFileKind::OffsetIndex => "index",
            SegmentFileKind::TimeIndex => "timeindex",
            SegmentFileKind::TxnIndex => "txnindex",
            SegmentFileKind::Snapshot => "snapshot",
        }
    }
}

/// Where a file of a segment stands in its life (`LogFileUtils`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentFileState {
    /// No suffix: part of the log.
    Live,
    /// `.deleted`: about to be unlinked.
    Deleted,
    /// `.cleaned`: the cleaner's output in the making.
    Cleaned,
    /// `.swap`: the cleaner's whole output, about to take its place.
    Swap,
}

impl SegmentFileState {
    fn suffix(self) -> &'static str {
        match self {
            SegmentFileState::Live => "",
            SegmentFileState::Deleted => ".deleted",
            SegmentFileState::Cleaned => ".cleaned",
            SegmentFileState::Swap => ".swap",
        }
    }
}

/// A file of a segment, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentFile {
    /// First offset that the segment may hold; for snapshots the offset before which they hold.
    pub base_offset: i64,
    /// What it holds.
    pub kind: SegmentFileKind,
    /// Whether it is part of the log.
    pub state: SegmentFileState,
}

impl SegmentFile {
    /// Reads the name of a file in a partition directory; `None` if it is no segment's.
    pub fn parse(name: &str) -> Option<Self> {
        use SegmentFileState::{Cleaned, Deleted, Live, Swap};
        let (state, name) = [Deleted, Cleaned, Swap]
            .into_iter()
            .find_map(|state| Some((state, name.strip_suffix(state.suffix())?)))
            .unwrap_or((Live, name));
        let (base_offset, extension) = name.split_once('.')?;
        let kind = SegmentFileKind::ALL.into_iter().find(|kind| kind.extension() == extension)?;
        Some(SegmentFile { base_offset: parse_digits(base_offset, 20)?, kind, state })
    }
}

impl fmt::Display for SegmentFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}.{}{}", self.base_offset, self.kind.extension(), self.state.suffix())
    }
}

/// The name of a live file of the segment at `base_offset`.
pub fn segment_file_name(base_offset: i64, kind: SegmentFileKind) -> String {
    SegmentFile { base_offset, kind, state: SegmentFileState::Live }.to_string()
}

/// A metadata snapshot, by its name `<20 digits>-<10 digits>.checkpoint` (`Snapshots`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointName {
    /// The first offset of the metadata log that the snapshot does not cover.
    pub end_offset: i64,
    /// Epoch of the last record that it covers.
    pub epoch: i32,
}

impl CheckpointName {
    /// Reads the name of a finished snapshot; `None` for others, unfinished (`.part`) and deleted ones.
    pub fn parse(name: &str) -> Option<Self> {
        let (end_offset, epoch) = name.strip_suffix(".checkpoint")?.split_once('-')?;
        Some(CheckpointName { end_offset: parse_digits(end_offset, 20)?, epoch: parse_digits(epoch, 10)? })
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{:010}.checkpoint", self.end_offset, self.epoch)
    }
}

/// Reads a number of 0 or more as Kafka formats it, zero-padded to `width`.
fn parse_digits<T: TryFrom<i64>>(text: &str, width: usize) -> Option<T> {
    let canonical = text.len() == width || (text.len() > width && !text.starts_with('0'));
    if !canonical || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    T::try_from(text.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn directories_are_told_apart_by_name() {
        let tp = |topic: &str, partition| TopicPartition::new(topic, partition);
        let hex = "0123456789abcdef0123456789abcdef";
        let cases = [
            ("orders-0", LogDirEntry::Partition(tp("orders", 0))),
            ("a-b.c_d-12", LogDirEntry::Partition(tp("a-b.c_d", 12))),
            ("x-delete-3", LogDirEntry::Partition(tp("x-delete", 3))),
            ("__cluster_metadata-0", LogDirEntry::ClusterMetadata),
            ("__consumer_offsets-49", LogDirEntry::Partition(tp("__consumer_offsets", 49))),
            (&format!("orders-0.{hex}-delete"), LogDirEntry::Deleted(tp("orders", 0))),
            (&format!("a.b-7.{hex}-future"), LogDirEntry::Future(tp("a.b", 7))),
            (&format!("orders-0.{hex}-stray"), LogDirEntry::Stray(tp("orders", 0))),
            ("remote-log-index-cache", LogDirEntry::RemoteLogIndexCache),
        ];
        for (name, entry) in cases {
            assert_eq!(LogDirEntry::parse(name), entry, "{name}");
        }
    }

    #[test]
    fn names_that_kafka_would_not_write_are_foreign() {
        for name in [
            "",
            "-",
            "-0",
            "orders",
            "orders-",
            "orders-x",
            "orders-00",
            "orders--",
            "orders-2147483648",
            "lost+found",
            ".agent",
            "snap-dir",
            "x-delete",
            "orders-0-delete",
            "orders-0.-stray",
            "a b-0",
            ".-0",
        ] {
            assert_eq!(LogDirEntry::parse(name), LogDirEntry::Foreign, "{name}");
        }
    }

    #[test]
    fn segment_file_names_are_stable() {
        assert_eq!(segment_file_name(33687, SegmentFileKind::Log), "00000000000000033687.log");
        assert_eq!(
            CheckpointName { end_offset: 222, epoch: 2 }.to_string(),
            "00000000000000000222-0000000002.checkpoint"
        );
        let swap = SegmentFile::parse("00000000000000000023.timeindex.swap").unwrap();
        assert_eq!((swap.base_offset, swap.kind, swap.state), (23, SegmentFileKind::TimeIndex, SegmentFileState::Swap));
    }

    #[test]
    fn other_names_are_no_segment_files() {
        for name in ["23.log", "leader-epoch-checkpoint", "00000000000000000023.log.bak", "99999999999999999999.log"] {
            assert_eq!(SegmentFile::parse(name), None, "{name}");
        }
        for name in ["0-0.checkpoint", "00000000000000000222-0000000002.checkpoint.part", "bootstrap.checkpoint"] {
            assert_eq!(CheckpointName::parse(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_name_reads_back(base_offset in 0i64.., epoch in 0i32.., kind in 0usize..5) {
            let name = segment_file_name(base_offset, SegmentFileKind::ALL[kind]);
            prop_assert_eq!(SegmentFile::parse(&name).map(|f| f.to_string()), Some(name));
            let checkpoint = CheckpointName { end_offset: base_offset, epoch };
            prop_assert_eq!(CheckpointName::parse(&checkpoint.to_string()), Some(checkpoint));
        }

        #[test]
        fn any_text_is_classified(name: String) {
            LogDirEntry::parse(&name);
            SegmentFile::parse(&name);
            CheckpointName::parse(&name);
        }
    }
}
