//! Manifests: what a restore point consists of, as protobuf messages (the schema is in `docs/vault-format.md`).
//!
//! They form a Merkle tree. A [`Stream`] names its chunks by their hashes; the point names each stream by the hash
//! of its manifest; the outcome names the point's manifest by its hash. *Where* a chunk lies is kept apart, in a
//! [`StreamIndex`], so that the same stream has the same hash wherever its chunks lie.
//!
//! The messages are wire structs: [`Stream::check`] and [`PointManifest::check`] say whether the values make sense,
//! and whoever reads one from a vault calls them first.

/// Where a blob lies, and how it is stored.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BlobRef {
    /// [`BlobId`](crate::ids::BlobId) of the raw bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// [`PackId`](crate::ids::PackId) of the object that holds it.
    #[prost(bytes = "vec", tag = "2")]
    pub pack: Vec<u8>,
    /// First byte of the blob's header in the pack.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Bytes stored after the blob's header.
    #[prost(uint32, tag = "4")]
    pub stored_len: u32,
    /// Bytes after decompression.
    #[prost(uint32, tag = "5")]
    pub raw_len: u32,
    /// 0 stored as is, 1 zstd.
    #[prost(uint32, tag = "6")]
    pub codec: u32,
}

/// A run of whole record batches.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Chunk {
    /// [`BlobId`](crate::ids::BlobId) of the bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Base offset of the first batch.
    #[prost(int64, tag = "2")]
    pub base_offset: i64,
    /// Last offset of the last batch.
    #[prost(int64, tag = "3")]
    pub last_offset: i64,
    /// Raw bytes.
    #[prost(uint32, tag = "4")]
    pub len: u32,
    /// Number of batches.
    #[prost(uint32, tag = "5")]
    pub batches: u32,
    /// Greatest `maxTimestamp` of its batches, milliseconds; -1 if none has one.
    #[prost(sint64, tag = "6")]
    pub max_timestamp: i64,
    /// Greatest partition leader epoch of its batches; -1 if none has one.
    #[prost(sint32, tag = "7")]
    pub max_epoch: i32,
}

/// One aborted transaction: an entry of Kafka's `.txnindex` (`AbortedTxn`).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct AbortedTransaction {
    /// Whose.
    #[prost(int64, tag = "1")]
    pub producer_id: i64,
    /// First offset of the transaction in this partition.
    #[prost(int64, tag = "2")]
    pub first_offset: i64,
    /// Offset of the ABORT marker; decides which segment the entry belongs to.
    #[prost(int64, tag = "3")]
    pub last_offset: i64,
    /// Last stable offset after the abort.
    #[prost(int64, tag = "4")]
    pub last_stable_offset: i64,
}

/// Where a segment begins in the stream. It may begin and end inside a chunk.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Segment {
    /// The offset in the segment's file name.
    #[prost(int64, tag = "1")]
    pub base_offset: i64,
    /// Bytes of the stream before the segment.
    #[prost(uint64, tag = "2")]
    pub position: u64,
    /// Transactions whose ABORT marker lies in the segment, by rising marker offset.
    #[prost(message, repeated, tag = "3")]
    pub aborted: Vec<AbortedTransaction>,
}

/// An entry of Kafka's `leader-epoch-checkpoint`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Epoch {
    /// Leader epoch.
    #[prost(int32, tag = "1")]
    pub epoch: i32,
    /// First offset of the epoch.
    #[prost(int64, tag = "2")]
    pub start_offset: i64,
}

/// One stream of record batches as a restore point sees it: a partition cut at its end offset, the metadata log, or a
/// metadata checkpoint.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Stream {
    /// Kafka's cluster id.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// 16 bytes; Uuid(0,1) for the metadata log and its checkpoint.
    #[prost(bytes = "vec", tag = "2")]
    pub topic_id: Vec<u8>,
    /// Topic name.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// Partition; -1 for a metadata checkpoint, whose batch offsets count from 0 on their own.
    #[prost(sint32, tag = "4")]
    pub partition: i32,
    /// Log start offset: nothing below it is served, though bytes may lie there.
    #[prost(int64, tag = "5")]
    pub log_start_offset: i64,
    /// The cut: first offset that is *not* in the point.
    #[prost(int64, tag = "6")]
    pub end_offset: i64,
    /// In order; the stream is their concatenation.
    #[prost(message, repeated, tag = "7")]
    pub chunks: Vec<Chunk>,
    /// By rising base offset and position; at least one for a partition that has a log.
    #[prost(message, repeated, tag = "8")]
    pub segments: Vec<Segment>,
    /// Leader epochs below the cut, rising.
    #[prost(message, repeated, tag = "9")]
    pub epochs: Vec<Epoch>,
    /// Producer state at the cut, as Kafka's `.snapshot` file (`ProducerStateManager`, version 1).
    #[prost(bytes = "vec", tag = "10")]
    pub producer_snapshot: Vec<u8>,
}

/// Where the chunks of a [`Stream`] lie: `locations[i]` belongs to `chunks[i]`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StreamIndex {
    /// [`PackId`](crate::ids::PackId)s, each once.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub packs: Vec<Vec<u8>>,
    /// One per chunk, in the stream's order.
    #[prost(message, repeated, tag = "2")]
    pub locations: Vec<ChunkLocation>,
}

/// Where one chunk lies.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ChunkLocation {
    /// Index into [`StreamIndex::packs`].
    #[prost(uint32, tag = "1")]
    pub pack: u32,
    /// First byte of the blob's header in the pack.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Bytes stored after the blob's header.
    #[prost(uint32, tag = "3")]
    pub stored_len: u32,
    /// 0 stored as is, 1 zstd.
    #[prost(uint32, tag = "4")]
    pub codec: u32,
}

/// A stream in the vault: its manifest and where its chunks lie.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct StreamRef {
    /// Blob that holds the [`Stream`].
    #[prost(message, optional, tag = "1")]
    pub manifest: Option<BlobRef>,
    /// Blob that holds the [`StreamIndex`].
    #[prost(message, optional, tag = "2")]
    pub index: Option<BlobRef>,
}

/// A partition in a restore point.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PartitionEntry {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub topic_id: Vec<u8>,
    /// Topic name.
    #[prost(string, tag = "2")]
    pub topic: String,
    /// Partition.
    #[prost(int32, tag = "3")]
    pub partition: i32,
    /// Node whose replica is in the vault.
    #[prost(int32, tag = "4")]
    pub source_node: i32,
    /// The stream; absent for a partition that has no log yet, or that could not be covered.
    #[prost(message, optional, tag = "5")]
    pub stream: Option<StreamRef>,
    /// Log start offset.
    #[prost(int64, tag = "6")]
    pub log_start_offset: i64,
    /// The cut.
    #[prost(int64, tag = "7")]
    pub end_offset: i64,
    /// Log end offset of the source when it was pinned; above the cut where the recovery line trimmed.
    #[prost(int64, tag = "8")]
    pub pinned_end_offset: i64,
    /// Raw bytes of the stream.
    #[prost(uint64, tag = "9")]
    pub bytes: u64,
    /// Greatest leader epoch in batches and epoch history; -1 if none.
    #[prost(sint32, tag = "10")]
    pub max_epoch: i32,
    /// Why the cut lies below the pinned end; empty if it does not.
    #[prost(string, tag = "11")]
    pub trimmed: String,
    /// Why the partition is not covered; empty if it is.
    #[prost(string, tag = "12")]
    pub uncovered: String,
    /// What happened that an operator should know (another source after a corrupt batch, ...).
    #[prost(string, repeated, tag = "13")]
    pub notes: Vec<String>,
}

/// A log directory of a node.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LogDirEntry {
    /// As `log.dirs` names it.
    #[prost(string, tag = "1")]
    pub path: String,
    /// 16 bytes: `directory.id` of its `meta.properties`; empty where there is none.
    #[prost(bytes = "vec", tag = "2")]
    pub directory_id: Vec<u8>,
}

/// A node whose agent took part.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NodeEntry {
    /// `node.id`.
    #[prost(int32, tag = "1")]
    pub node_id: i32,
    /// Has the broker role.
    #[prost(bool, tag = "2")]
    pub broker: bool,
    /// Has the controller role.
    #[prost(bool, tag = "3")]
    pub controller: bool,
    /// Log dirs in the order of `log.dirs`, the metadata log dir among them or last.
    #[prost(message, repeated, tag = "4")]
    pub log_dirs: Vec<LogDirEntry>,
    /// Index into `log_dirs` of the metadata log dir.
    #[prost(uint32, tag = "5")]
    pub metadata_log_dir: u32,
}

/// The captured cluster metadata: the newest checkpoint and the log from there on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetadataEntry {
    /// The node whose copy it is.
    #[prost(int32, tag = "1")]
    pub source_node: i32,
    /// `N-E.checkpoint`, if there was one.
    #[prost(message, optional, tag = "2")]
    pub checkpoint: Option<StreamRef>,
    /// N of the checkpoint; 0 without one.
    #[prost(int64, tag = "3")]
    pub checkpoint_offset: i64,
    /// E of the checkpoint.
    #[prost(int32, tag = "4")]
    pub checkpoint_epoch: i32,
    /// Log batches at and above the checkpoint's offset.
    #[prost(message, optional, tag = "5")]
    pub log: Option<StreamRef>,
    /// First metadata offset that is not in the point.
    #[prost(int64, tag = "6")]
    pub end_offset: i64,
    /// Epoch of the last batch (or of the checkpoint).
    #[prost(int32, tag = "7")]
    pub epoch: i32,
}

/// The end of a transaction that the cut leaves open: a restore appends the marker at the end of the partition, before
/// the first start.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct TransactionMarker {
    /// Index into [`PointManifest::partitions`].
    #[prost(uint32, tag = "1")]
    pub partition_index: u32,
    /// Whose.
    #[prost(int64, tag = "2")]
    pub producer_id: i64,
    /// The marker's: that of the decision, or the producer's current one in that partition.
    #[prost(int32, tag = "3")]
    pub producer_epoch: i32,
    /// Last coordinator epoch seen for the producer in that partition, at least 0.
    #[prost(int32, tag = "4")]
    pub coordinator_epoch: i32,
}

/// Everything needed to rebuild a cluster at one cut.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PointManifest {
    /// Kafka's cluster id.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// The point's number.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// When the point began, milliseconds since 1970. Whatever was acknowledged before is in it.
    #[prost(int64, tag = "3")]
    pub began_ms: i64,
    /// When all was uploaded.
    #[prost(int64, tag = "4")]
    pub finished_ms: i64,
    /// Level reached, 0 to 3 (L0 to L3).
    #[prost(uint32, tag = "5")]
    pub level: u32,
    /// The cut is the end of the last closed segment.
    #[prost(bool, tag = "6")]
    pub closed_only: bool,
    /// Something is not covered; `findings` and the partitions say what.
    #[prost(bool, tag = "7")]
    pub degraded: bool,
    /// What kept the point from a higher level or from being complete.
    #[prost(string, repeated, tag = "8")]
    pub findings: Vec<String>,
    /// Nodes that took part.
    #[prost(message, repeated, tag = "9")]
    pub nodes: Vec<NodeEntry>,
    /// Cluster metadata.
    #[prost(message, optional, tag = "10")]
    pub metadata: Option<MetadataEntry>,
    /// Every partition of every topic in the metadata, by topic name and partition.
    #[prost(message, repeated, tag = "11")]
    pub partitions: Vec<PartitionEntry>,
    /// ABORT markers to append at restore: for what the transaction log does not know, or has decided to abort.
    #[prost(message, repeated, tag = "12")]
    pub abort_markers: Vec<TransactionMarker>,
    /// Greatest producer id in any log, producer snapshot or transaction log; -1 if none.
    #[prost(sint64, tag = "13")]
    pub max_producer_id: i64,
    /// From phase A to the end of phase C, microseconds.
    #[prost(uint64, tag = "14")]
    pub barrier_us: u64,
    /// COMMIT markers to append at restore: for what the transaction log has decided to commit.
    #[prost(message, repeated, tag = "15")]
    pub commit_markers: Vec<TransactionMarker>,
}

/// `intent` of a point: who takes it, and what it may rely on.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Intent {
    /// Kafka's cluster id.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// The point's number.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// When it was taken, milliseconds since 1970. For people; no decision rests on it.
    #[prost(int64, tag = "3")]
    pub began_ms: i64,
    /// The committed point whose chunks this one may refer to; 0 for none.
    #[prost(uint64, tag = "4")]
    pub base_number: u64,
    /// Host and process, for people.
    #[prost(string, tag = "5")]
    pub taken_by: String,
    /// 16 random bytes: whoever reads back an intent after an unclear answer knows by them whether it is its own.
    #[prost(bytes = "vec", tag = "6")]
    pub nonce: Vec<u8>,
}

/// `outcome` of a point: the one key that decides it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Outcome {
    /// Kafka's cluster id.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// The point's number.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// True: committed. False: aborted, for ever.
    #[prost(bool, tag = "3")]
    pub committed: bool,
    /// Committed: BLAKE3 of the point's encoded [`PointManifest`], the Merkle root.
    #[prost(bytes = "vec", tag = "4")]
    pub root: Vec<u8>,
    /// Aborted: why.
    #[prost(string, tag = "5")]
    pub reason: String,
    /// Committed: totals, so that a listing reads no manifest.
    #[prost(message, optional, tag = "6")]
    pub totals: Option<Totals>,
}

/// What a listing shows of a committed point.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Totals {
    /// When the point began, milliseconds since 1970.
    #[prost(int64, tag = "1")]
    pub began_ms: i64,
    /// When all was uploaded.
    #[prost(int64, tag = "2")]
    pub finished_ms: i64,
    /// Level reached.
    #[prost(uint32, tag = "3")]
    pub level: u32,
    /// Something is not covered.
    #[prost(bool, tag = "4")]
    pub degraded: bool,
    /// Cut at closed segments.
    #[prost(bool, tag = "5")]
    pub closed_only: bool,
    /// Topics.
    #[prost(uint32, tag = "6")]
    pub topics: u32,
    /// Partitions.
    #[prost(uint32, tag = "7")]
    pub partitions: u32,
    /// Raw bytes of one replica of everything.
    #[prost(uint64, tag = "8")]
    pub bytes: u64,
    /// Bytes read from log dirs for this point.
    #[prost(uint64, tag = "9")]
    pub read_bytes: u64,
    /// Bytes added to the vault for this point.
    #[prost(uint64, tag = "10")]
    pub stored_bytes: u64,
}

/// The vault's own header, written once.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VaultHeader {
    /// [`crate::ids::VaultId`].
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// When it was made, milliseconds since 1970.
    #[prost(int64, tag = "2")]
    pub created_ms: i64,
}

/// A cluster that the vault holds points of; numbered keys, dense from 1.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ClusterRecord {
    /// Kafka's cluster id.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// What the operator calls it; the cluster id if nothing was given.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// A manifest whose values do not fit together.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: {why}")]
pub struct ManifestError {
    what: String,
    why: String,
}

impl ManifestError {
    pub(crate) fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}
