//! What agents see of their replicas: the values that the decisions of this crate are made from.

use segvault_kafka_log::ids::Uuid;

/// Where a log ends: replicas are compared by the epoch first, then the offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Newest leader epoch in the epoch history or the last batch; -1 if there is none.
    pub last_epoch: i32,
    /// Log end offset.
    pub end_offset: i64,
}

/// One replica, as sampled or pinned.
#[derive(Clone, Debug)]
pub struct ReplicaSample {
    /// Topic name.
    pub topic: String,
    /// From `partition.metadata`.
    pub topic_id: Uuid,
    /// Partition.
    pub partition: i32,
    /// Its directory, for messages.
    pub dir: String,
    /// First offset served.
    pub log_start_offset: i64,
    /// The high watermark that the node had checkpointed before; 0 if none. A log that ends below has lost its end.
    pub high_watermark: i64,
    /// Where the active segment begins. The cleaner reads none of it (`LogCleanerManager.cleanableOffsets`), so no record
    /// is missing because of one that lies there.
    pub active_base_offset: i64,
    /// Where the log ends: whole batches only. With `closed_only`, where the last closed segment ends.
    pub position: LogPosition,
    /// Epoch history: (epoch, start offset), rising.
    pub epochs: Vec<(i32, i64)>,
    /// Where the epoch history begins, if that is below the first segment: retention moves it along, so segments were
    /// lost or removed by hand.
    pub lost_from: Option<i64>,
    /// The replica cannot be a source, and why (v0/v1 message sets, damage seen while sampling, ...).
    pub unusable: Option<String>,
}

/// A partition of the transaction log, replayed.
#[derive(Clone, Debug)]
pub struct TransactionLogCopy {
    /// Partition of `__transaction_state`.
    pub partition: i32,
    /// The last record of each transactional id below the first mark.
    pub at_first: Vec<TransactionRecord>,
    /// Every record at and above the first mark, in order.
    pub records: Vec<TransactionRecord>,
    /// Greatest producer id in any record; -1 if none.
    pub max_producer_id: i64,
}

/// A record of the transaction log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionRecord {
    /// Its offset.
    pub offset: i64,
    /// Key.
    pub transactional_id: String,
    /// Producer id.
    pub producer_id: i64,
    /// Producer epoch.
    pub producer_epoch: i16,
    /// State; `None` for a tombstone.
    pub state: Option<TransactionState>,
    /// Partitions the transaction has listed so far.
    pub partitions: Vec<(String, i32)>,
}

/// `TransactionState`, as far as the log holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionState {
    /// No transaction yet.
    Empty,
    /// Open.
    Ongoing,
    /// Decided to commit, markers under way.
    PrepareCommit,
    /// Decided to abort, markers under way.
    PrepareAbort,
    /// Committed everywhere.
    CompleteCommit,
    /// Aborted everywhere.
    CompleteAbort,
}

/// A transaction that is open at the end of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Producer id.
    pub producer_id: i64,
    /// Its current epoch in the partition.
    pub producer_epoch: i16,
    /// Last coordinator epoch seen for it in the partition; -1 if none.
    pub coordinator_epoch: i32,
    /// First offset of the transaction.
    pub first_offset: i64,
}

/// What some producers appended to a partition since `Prepare`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionEvents {
    /// Topic name.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// How far the partition went at each probe, as offsets of the source; `None` where no replica that was in sync all
    /// the time was looked at.
    pub probes: Vec<Option<i64>>,
    /// Where the furthest replica ended at any probe, in sync or not, as an offset of the source; `i64::MIN` if none was
    /// looked at. What lies below was appended before the mark.
    pub probed_end: i64,
    /// In the order of their offsets. Of several data batches of a producer between two of its markers only the first.
    pub events: Vec<ProducerEvent>,
}

/// A batch of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerEvent {
    /// Base offset.
    pub offset: i64,
    /// Producer id.
    pub producer_id: i64,
    /// Producer epoch.
    pub producer_epoch: i16,
    /// A COMMIT or ABORT marker.
    pub is_marker: bool,
}
