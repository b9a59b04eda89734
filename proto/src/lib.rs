//! What the coordinator and the agents say to each other, as checked values.
//!
//! An agent speaks for one node (the one whose `server.properties` it was given). It gets one [`Command`] at a time
//! and answers each with the [`Report`] named beside it; only an upload answers piece by piece. In one process these values
//! go through channels; over a network they become the messages of [`rpc`], and are checked when they arrive.
//!
//! The order is the barrier of `docs/consistency.md`, effects first, causes last:
//!
//! ```text
//! Prepare -> ReadMetadata -> Mark, Probe, Mark, ... Mark (A) -> PinProgress (B1) -> PinData (B2) -> Seal (C) -> ReadMetadata
//!         -> ReadTransactions -> FindEvents -> Upload -> Release
//! ```

pub mod session;

mod wire;

pub mod rpc {
    //! The messages as they are sent: generated from `proto/*.proto`, which document them, with the clients and servers
    //! of both services.
    //!
    //! [`Command`](crate::Command), [`Report`](crate::Report) and [`NodeFacts`](crate::NodeFacts) become these with
    //! `From`, and are made of these with `TryFrom`, which checks what arrived.
    #![allow(missing_docs, unused_qualifications)]

    tonic::include_proto!("segvault.fleet.v1");
}

// The transaction log: sampled in phase A, pinned in phase C.
pub use segvault_alignment::restore::TRANSACTION_TOPIC;
use segvault_alignment::restore::{GROUP_TOPIC, SHARE_TOPIC};
pub use segvault_alignment::sample::{
    LogPosition, OpenTransaction, ProducerEvent, ReplicaSample, TransactionLogCopy, TransactionRecord, TransactionState,
};
use segvault_kafka_log::ids::Uuid;
use segvault_vault_format::ids::{PlanId, PointId};
use segvault_vault_format::manifest::StreamRef;

pub use wire::WireError;

/// Version of what is said over the network, sent in the first frame of an agent and with every operator's call; another
/// one is refused. It rises with any change but an added field: see `proto/fleet.proto`.
pub const PROTOCOL_VERSION: u32 = 1;

/// Topics that hold groups' progress.
const GROUP_TOPICS: [&str; 2] = [GROUP_TOPIC, SHARE_TOPIC];
/// Topics that data refers to: pinned after the data (phase C).
pub const REFERENCE_TOPICS: [&str; 2] = ["_schemas", "__remote_log_metadata"];

/// Whether a topic holds progress: captured before the data that the progress speaks of (phase B1).
pub fn is_progress(topic: &str) -> bool {
    GROUP_TOPICS.contains(&topic) || is_connect_offsets(topic)
}

/// Whether a topic is named as those are where Kafka Connect keeps how far its source connectors are
/// (`offset.storage.topic`): `connect-offsets`, `<cluster>-offsets`, and MirrorMaker 2's `mm2-offsets.<alias>.internal`.
/// Taking other data early does it no harm.
pub fn is_connect_offsets(topic: &str) -> bool {
    let is_named = |stem: &str| stem.is_empty() || stem.ends_with(['-', '_', '.']);
    topic.strip_suffix("offsets").is_some_and(is_named) && !topic.starts_with("__") || topic.starts_with("mm2-offsets.")
}

/// From the coordinator to one agent.
#[derive(Clone, Debug)]
pub enum Command {
    /// Let go of whatever is held, look at every replica and note where it ends now, before phase A. →
    /// [`Report::Prepared`]
    Prepare {
        /// For staging names and logs.
        point: PointId,
        /// The committed point that this one builds on; 0 for none. What an agent remembers of that point's files it
        /// need not read again.
        base_number: u64,
        /// Cut data partitions at the end of their last closed segment.
        closed_only: bool,
    },
    /// Copy the cluster metadata as it is now; the last copy is the one that is uploaded. → [`Report::Metadata`] or
    /// [`Report::NoMetadata`]
    ReadMetadata,
    /// Phase A: where do the transaction log's replicas end? Asked several times; the last answer is the mark. →
    /// [`Report::Marked`]
    Mark,
    /// Between two marks: where do all other replicas end? Remembered by the agent, for `FindEvents`. →
    /// [`Report::Probed`]
    Probe,
    /// Phase B1: pin the progress topics ([`is_progress`]). → [`Report::Pinned`]
    PinProgress,
    /// Phase B2: pin everything else. → [`Report::Pinned`]
    PinData,
    /// Phase C: pin the transaction log, then reference topics. → [`Report::Sealed`]
    Seal,
    /// Read pinned partitions of the transaction log. → [`Report::Transactions`]
    ReadTransactions(Vec<TransactionsRequest>),
    /// Find what some producers appended after `Prepare`. → [`Report::Events`]
    FindEvents(Vec<EventsRequest>),
    /// Upload pinned partitions up to their cut. → any number of [`Report::Stored`] and [`Report::NotStored`], at most
    /// one [`Report::MetadataStored`], then [`Report::Uploaded`]
    Upload {
        /// Of which partitions this agent is the source.
        orders: Vec<UploadOrder>,
        /// Upload the metadata copy too.
        metadata: Option<MetadataOrder>,
    },
    /// Let go of everything. → [`Report::Released`]
    Release {
        /// The point was committed: what was learned of files may be remembered for the next one.
        committed: bool,
    },
    /// Put the node's part of a saved plan back. → any number of [`Report::Restoring`], then [`Report::Restored`].
    /// Whatever command comes next stops it; it can be given again and goes on.
    Restore {
        /// The plan in the vault.
        plan: PlanId,
        /// How far to go.
        deed: RestoreDeed,
    },
    /// Look at the node as `segvault doctor` does, beside whatever is being done: nothing is stopped by it. →
    /// [`Report::Examined`]
    Examine,
}

impl Command {
    /// What it is called on the wire, in metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepare { .. } => "prepare",
            Self::ReadMetadata => "read_metadata",
            Self::Mark => "mark",
            Self::Probe => "probe",
            Self::PinProgress => "pin_progress",
            Self::PinData => "pin_data",
            Self::Seal => "seal",
            Self::ReadTransactions(_) => "read_transactions",
            Self::FindEvents(_) => "find_events",
            Self::Upload { .. } => "upload",
            Self::Release { .. } => "release",
            Self::Restore { .. } => "restore",
            Self::Examine => "examine",
        }
    }
}

/// How far a restore goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreDeed {
    /// Look whether it could be done; nothing is written.
    Check,
    /// Write.
    Run,
    /// Read what was written back and hold it against the plan.
    Verify,
}

/// From an agent to the coordinator.
#[derive(Clone, Debug)]
pub enum Report {
    /// Answers [`Command::Prepare`].
    Prepared(Prepared),
    /// Answers [`Command::ReadMetadata`].
    Metadata(MetadataCopy),
    /// Answers [`Command::ReadMetadata`] where it cannot be read; the agent goes on without.
    NoMetadata {
        /// File, position and what is wrong.
        reason: String,
    },
    /// Answers [`Command::Mark`]: one per replica of the transaction log.
    Marked(Vec<ReplicaSample>),
    /// Answers [`Command::Probe`].
    Probed,
    /// Answers [`Command::PinProgress`] and [`Command::PinData`].
    Pinned(Vec<ReplicaSample>),
    /// Answers [`Command::Seal`].
    Sealed {
        /// What was pinned in this phase.
        replicas: Vec<ReplicaSample>,
        /// Where the metadata log ends now; `None` on a node without one.
        metadata: Option<LogPosition>,
    },
    /// Answers [`Command::ReadTransactions`].
    Transactions {
        /// What was read.
        copies: Vec<TransactionLogCopy>,
        /// What could not be read.
        unreadable: Vec<Unreadable>,
    },
    /// Answers [`Command::FindEvents`].
    Events {
        /// What was found.
        events: Vec<ReplicaEvents>,
        /// What could not be read.
        unreadable: Vec<Unreadable>,
    },
    /// A partition is durable in the vault.
    Stored(StoredPartition),
    /// A partition could not be read: the coordinator looks for another source.
    NotStored {
        /// Topic name.
        topic: String,
        /// Partition.
        partition: i32,
        /// File, position and what is wrong.
        reason: String,
        /// All that is wrong is that offsets are missing, see [`UploadOrder::gaps`].
        has_gap: bool,
    },
    /// The metadata copy is durable in the vault.
    MetadataStored(StoredMetadata),
    /// Answers [`Command::Upload`]: all orders are done.
    Uploaded,
    /// Answers [`Command::Release`].
    Released,
    /// The command could not be carried out at all; the agent holds nothing any more.
    Failed {
        /// What happened, with the remedy where one is known.
        reason: String,
    },
    /// How far a restore is.
    Restoring(Restoring),
    /// Answers [`Command::Restore`].
    Restored(Restored),
    /// Answers [`Command::Examine`].
    Examined(Vec<Finding>),
}

/// Something that was found at a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file, directory or partition that it is about.
    pub subject: String,
    /// What it is.
    pub message: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Info,
    /// A capture works, but not as well as it could, or without something.
    Warning,
    /// A capture is impossible, or the broker will not start.
    Error,
}

/// How far a node's restore is. What an earlier run has completed counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restoring {
    /// Partitions that are on disk.
    pub partitions: u64,
    /// Partitions in all.
    pub partitions_total: u64,
    /// Bytes of logs written.
    pub bytes: u64,
    /// Bytes of logs in all.
    pub bytes_total: u64,
}

/// What a node's restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Partitions of the node.
    pub partitions: u64,
    /// Of those, complete since an earlier run.
    pub kept: u64,
    /// Bytes read from the vault.
    pub fetched_bytes: u64,
    /// Bytes of logs written.
    pub written_bytes: u64,
    /// What an operator should know.
    pub findings: Vec<RestoreFinding>,
    /// What to do next.
    pub advice: Vec<String>,
}

/// Something that an operator should know of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreFinding {
    /// Something is not as it should be.
    pub is_warning: bool,
    /// What.
    pub what: String,
}

/// What an agent knows of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// `node.id`.
    pub node_id: i32,
    /// From `meta.properties`.
    pub cluster_id: String,
    /// Has the broker role.
    pub broker: bool,
    /// Has the controller role.
    pub controller: bool,
    /// In the order of `log.dirs`; the metadata log dir is among them or last.
    pub log_dirs: Vec<LogDirFacts>,
    /// Index into `log_dirs`.
    pub metadata_log_dir: usize,
    /// Node ids of `controller.quorum.voters`; `None` for a dynamic quorum.
    pub static_voters: Option<Vec<i32>>,
    /// `log.cleanup.policy` has `compact`: so do topics that do not say otherwise.
    pub compacts: bool,
}

/// A log dir of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDirFacts {
    /// As the configuration names it.
    pub path: String,
    /// `directory.id`, if there is one.
    pub directory_id: Option<Uuid>,
}

/// Answer to [`Command::Prepare`].
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The node.
    pub facts: NodeFacts,
    /// Where its metadata log ends.
    pub metadata: Option<LogPosition>,
    /// Replicas seen.
    pub replicas: usize,
    /// What an operator should know but what does not stop the capture.
    pub warnings: Vec<String>,
}

/// The newest checkpoint of the metadata log and the batches from there on, as raw bytes.
#[derive(Clone, Debug, Default)]
pub struct MetadataCopy {
    /// `N-E.checkpoint`, if there is one.
    pub checkpoint: Option<CheckpointCopy>,
    /// Whole batches at and above the checkpoint's offset, one after the other.
    pub log: Vec<u8>,
    /// First offset not in the copy.
    pub end_offset: i64,
    /// Epoch of the last batch, or of the checkpoint.
    pub epoch: i32,
    /// What lies behind the last batch and is none: cut off by a crash while it was written, or damage that hides more.
    pub remainder: Option<String>,
}

/// A metadata checkpoint file.
#[derive(Clone, Debug)]
pub struct CheckpointCopy {
    /// N: first offset not contained.
    pub end_offset: i64,
    /// E.
    pub epoch: i32,
    /// The file.
    pub bytes: Vec<u8>,
}

/// A pinned partition that cannot be read; another replica of it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Topic name.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// File, position and what is wrong.
    pub reason: String,
}

/// Which part of the transaction log to read.
#[derive(Clone, Debug)]
pub struct TransactionsRequest {
    /// Partition of `__transaction_state`.
    pub partition: i32,
    /// The first of phase A's samples: records from there on are wanted one by one.
    pub first_mark_offset: i64,
}

/// Which batches to look for in a replica, and where it ended at the probes.
#[derive(Clone, Debug)]
pub struct EventsRequest {
    /// Topic name.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Whose batches and markers count; none if only the probes are asked for.
    pub producer_ids: Vec<i64>,
}

/// What some producers appended to a replica since `Prepare`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaEvents {
    /// Topic name.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Where the replica ended at each probe; `None` if it was not there.
    pub probes: Vec<Option<LogPosition>>,
    /// In the order of their offsets. Of several data batches of a producer between two of its markers only the first.
    pub events: Vec<ProducerEvent>,
}

/// Where offsets may be missing between batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gaps {
    /// Nowhere: the topic is not compacted.
    Nowhere,
    /// In closed segments, which the cleaner rewrites; never in the active one.
    InClosed,
    /// Anywhere: the best replica there is has some.
    Anywhere,
}

/// What to upload of a partition.
#[derive(Clone, Debug)]
pub struct UploadOrder {
    /// Topic name.
    pub topic: String,
    /// Topic id.
    pub topic_id: Uuid,
    /// Partition.
    pub partition: i32,
    /// First offset not wanted; a batch boundary of the source.
    pub cut: i64,
    /// Where an offset without a batch is a loss.
    pub gaps: Gaps,
    /// The stream in the last committed point: guides the cutting, and what it has is not stored again.
    pub previous: Option<StreamRef>,
}

/// What the last committed point holds of the metadata.
#[derive(Clone, Debug, Default)]
pub struct MetadataOrder {
    /// Its checkpoint.
    pub previous_checkpoint: Option<StreamRef>,
    /// Its log.
    pub previous_log: Option<StreamRef>,
    /// What to store, for an agent that stands in for the one that has read it.
    pub copy: Option<MetadataCopy>,
}

/// A partition that is durable in the vault.
#[derive(Clone, Debug)]
pub struct StoredPartition {
    /// Topic name.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Where it is.
    pub stream: StreamRef,
    /// First offset served.
    pub log_start_offset: i64,
    /// The cut.
    pub end_offset: i64,
    /// Raw bytes of the stream.
    pub bytes: u64,
    /// Bytes read from the log dir for it.
    pub read_bytes: u64,
    /// Bytes that its blobs take in the vault's packs; what was there before does not count.
    pub stored_bytes: u64,
    /// Greatest leader epoch in batches and epoch history below the cut; -1 if none.
    pub max_epoch: i32,
    /// Greatest producer id seen; -1 if none.
    pub max_producer_id: i64,
    /// Transactions open at the cut.
    pub open: Vec<OpenTransaction>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// The metadata copy, durable in the vault.
#[derive(Clone, Debug, Default)]
pub struct StoredMetadata {
    /// The checkpoint.
    pub checkpoint: Option<StreamRef>,
    /// The log.
    pub log: Option<StreamRef>,
    /// Bytes read for both.
    pub read_bytes: u64,
    /// Bytes that their blobs take in the vault's packs; what was there before does not count.
    pub stored_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_by_name() {
        for topic in ["__consumer_offsets", "__share_group_state"] {
            assert!(is_progress(topic) && !is_connect_offsets(topic), "{topic}");
        }
        for topic in ["connect-offsets", "docker_connect_offsets", "offsets", "mm2-offsets.a.internal"] {
            assert!(is_progress(topic) && is_connect_offsets(topic), "{topic}");
        }
        for topic in ["orders", "connect-configs", "mm2-offset-syncs.a.internal", "setoffsets", "__transaction_state"] {
            assert!(!is_progress(topic), "{topic}");
        }
    }
}
