//! Brings pinned replicas into the vault: reads each byte at most once, stores what the vault lacks, reports what is
//! durable.
//!
//! The order is what makes a crash harmless: chunks, then both manifests of a partition, then a flush of the vault's
//! uploader, and only then the report. Partitions that are finished wait for each other, so that many small ones share
//! packs and flushes. A replica's pins are let go as soon as it is durable.
//!
//! An upload may break off at any instant. What it has stored by then is in the agent's journal, a few seconds short, and
//! the next one takes it over ([`journal`](crate::journal)).
//!
//! All threads are alike. Each takes the largest partition left, reads it, and hashes, compresses and stores its chunks
//! itself, which keeps a chunk in the processor's cache. Only when no partition is left for the others does a reader
//! hand chunks to them, through a short queue, so that one large partition uses all cores as well. Memory is what the
//! chunks in hand take: per thread one being read and one being stored, and the queue.

mod cores;
mod leftover;
mod partition;
mod plan;
mod pool;
mod previous;
mod source;
mod walk;

#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicBool;

use segvault_kafka_log::batch::Batches;
use segvault_kafka_log::ids::Uuid;
use segvault_proto::{Gaps, LogPosition, MetadataCopy, MetadataOrder, Report, UploadOrder};
use segvault_vault::{Uploader, Vault, VaultError};
use segvault_vault_format::manifest::StreamRef;

pub use cores::Cores;

use crate::cache::Cache;
use crate::pinned::{Copied, CopiedBytes, FileIdentity, Pin, PinnedReplica, PinnedSegment};

/// Topic of the metadata log and its checkpoints.
const METADATA_TOPIC: &str = "__cluster_metadata";

/// Partition that stands for a metadata checkpoint.
const CHECKPOINT: i32 = -1;

/// Where to, for whom, and with how much of the machine.
#[derive(Clone, Copy)]
pub struct Upload<'a> {
    /// Where the last point's manifests are.
    pub vault: &'a Vault,
    /// Takes the blobs. Agents in one process share it.
    pub uploader: &'a Uploader,
    /// Kafka's cluster id.
    pub cluster_id: &'a str,
    /// Threads that read, hash and compress. Agents in one process share them.
    pub cores: &'a Cores,
    /// Nobody wants the point any more: an upload under way ends soon.
    pub cancelled: &'a AtomicBool,
}

/// Why an upload was given up.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// A blob could not be stored.
    #[error("store in the vault")]
    Vault(#[from] VaultError),
    /// It was cancelled.
    #[error("the upload was cancelled")]
    Cancelled,
}

/// What is uploaded: an order, and the bytes it is about.
struct Job {
    order: UploadOrder,
    replica: PinnedReplica,
}

impl Upload<'_> {
    /// Uploads what `orders` name, and the metadata if given, and replies with a [`Report`] for each. Returns when all
    /// that was reported is durable; on an error what was reported before still is, and nothing else will be. What comes
    /// back are replicas that lack offsets: they may be asked for once more.
    ///
    /// `take` hands over the pinned replica of a (topic, partition). What was learned of its files waits in `cache` for
    /// the point's [`commit`](Cache::commit).
    pub fn run(
        &self,
        orders: Vec<UploadOrder>,
        metadata: Option<(MetadataOrder, MetadataCopy)>,
        take: &mut dyn FnMut(&str, i32) -> Option<PinnedReplica>,
        cache: &mut Cache,
        reply: &(dyn Fn(Report) + Sync),
    ) -> Result<Vec<PinnedReplica>, UploadError> {
        let mut jobs: Vec<Job> = metadata.map(|(order, copy)| metadata_jobs(order, copy)).unwrap_or_default();
        for order in orders {
            match take(&order.topic, order.partition) {
                Some(replica) => jobs.push(Job { order, replica }),
                None => reply(Report::NotStored {
                    topic: order.topic,
                    partition: order.partition,
                    reason: "this node has not pinned the partition".into(),
                    has_gap: false,
                }),
            }
        }
        pool::run(self, jobs, cache, reply)
    }
}

/// The metadata copy as replicas whose bytes are all in memory.
fn metadata_jobs(order: MetadataOrder, copy: MetadataCopy) -> Vec<Job> {
    let mut jobs = Vec::new();
    if let Some(checkpoint) = copy.checkpoint {
        let name = format!("{:020}-{:010}.checkpoint", checkpoint.end_offset, checkpoint.epoch);
        let batches = Batches::new(&checkpoint.bytes).map_while(Result::ok);
        let end_offset = batches.last().map_or(0, |(_, batch)| batch.next_offset());
        jobs.push(memory_job(CHECKPOINT, &name, checkpoint.bytes, 0, end_offset, order.previous_checkpoint));
    }
    if let Some(Ok((_, first))) = Batches::new(&copy.log).next() {
        let base_offset = first.base_offset();
        jobs.push(memory_job(0, "log", copy.log, base_offset, copy.end_offset, order.previous_log));
    }
    jobs
}

fn memory_job(
    partition: i32,
    name: &str,
    bytes: Vec<u8>,
    base_offset: i64,
    end_offset: i64,
    previous: Option<StreamRef>,
) -> Job {
    let dir = std::path::PathBuf::from(format!("{METADATA_TOPIC}-0"));
    let segment = PinnedSegment {
        base_offset,
        source: dir.join(name),
        pin: Pin::Known,
        len: bytes.len() as u64,
        copy: Some(Copied { start: 0, bytes: CopiedBytes::Memory(bytes) }),
        identity: FileIdentity { dev: 0, ino: 0, size: 0, mtime_ns: 0, ctime_ns: 0 },
    };
    let replica = PinnedReplica {
        topic: METADATA_TOPIC.into(),
        topic_id: Uuid::METADATA_TOPIC_ID,
        partition,
        dir,
        log_start_offset: base_offset,
        position: LogPosition { last_epoch: -1, end_offset },
        prepared_end_offset: end_offset,
        epochs: Vec::new(),
        segments: vec![segment],
        producer_snapshot: None,
    };
    let order = UploadOrder {
        topic: METADATA_TOPIC.into(),
        topic_id: Uuid::METADATA_TOPIC_ID,
        partition,
        cut: end_offset,
        gaps: Gaps::Nowhere,
        previous,
    };
    Job { order, replica }
}
