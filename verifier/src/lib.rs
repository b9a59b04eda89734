//! Proves what level a restore point has, from the vault alone: nothing of a cluster is asked, and no code is shared with
//! the capture beyond the formats of Kafka's bytes and of the vault's.
//!
//! Every byte of the point is read. What the levels promise is in `docs/consistency.md`; here
//!
//! - **L0** is [`log`]: hashes, CRCs, offsets, epochs, segments, and that the manifests say what the bytes say;
//! - **L1** is [`metadata`]: the metadata can be replayed, and agrees with the partitions;
//! - **L2** is [`offsets`] and [`shares`]: committed offsets and states of share groups can be read, and those beyond an end
//!   are known;
//! - **L3** is [`transactions`] and [`side_files`]: decisions and markers fit, and what is open is accounted for.
//!
//! What cannot be seen from the bytes of one point is whether all that was acknowledged before it began is in it: that is
//! what the scenarios on real clusters are for.

mod flaws;
mod log;
mod metadata;
mod offsets;
mod shares;
mod side_files;
mod transactions;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use segvault_kafka_log::batch::Batch;
use segvault_kafka_log::metadata::MetadataImage;
use segvault_kafka_log::transactions::transaction_records;
use segvault_kafka_log::{TopicPartition, Uuid};
use segvault_vault::{LoadedStream, Vault, VaultError};
use segvault_vault_format::manifest::{PartitionEntry, PointManifest, StreamRef};

pub use flaws::Flaw;
use flaws::Flaws;
use log::{Gaps, LogCheck};
use metadata::Greatest;
use offsets::Offsets;
use shares::Shares;
use transactions::{PlannedMarker, PlannedMarkers, Producers, TransactionIds};

/// The highest level.
pub const LEVEL_MAX: u8 = 3;

const TRANSACTION_LOG: &str = "__transaction_state";
const OFFSETS: &str = "__consumer_offsets";
const SHARES: &str = "__share_group_state";

/// Partitions that are read at the same time, at most.
const WORKERS_MAX: usize = 8;

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Partitions read.
    pub partitions: usize,
    /// Partitions in all.
    pub partitions_total: usize,
    /// Raw bytes of those that are read.
    pub bytes: u64,
    /// Raw bytes in all.
    pub bytes_total: u64,
}

/// What was proven of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The highest level that nothing breaks, of what the point covers; `None` if not even L0 holds.
    pub proven: Option<u8>,
    /// What breaks a level, the lowest first; of each level some are spelled out.
    pub flaws: Vec<Flaw>,
    /// How many flaws there are, by level.
    pub flaw_counts: BTreeMap<u8, u64>,
    /// What breaks nothing.
    pub notes: Vec<String>,
    /// Partitions whose bytes were read.
    pub partitions: usize,
    /// Record batches, those of the metadata included.
    pub batches: u64,
    /// Raw bytes.
    pub bytes: u64,
    /// Transactional ids.
    pub transactional_ids: usize,
    /// Transactions that are open at the cut.
    pub open_transactions: usize,
    /// Committed offsets.
    pub offsets: usize,
    /// Committed offsets beyond the end of their partition, which a restore clamps.
    pub offsets_beyond: usize,
    /// Partitions of share groups.
    pub share_partitions: usize,
    /// Those whose state reaches beyond the end of their partition, which a restore clamps.
    pub share_partitions_beyond: usize,
}

/// Reads all of a point and says what holds. Blocking: not to be called from asynchronous code.
///
/// # Errors
/// Where the vault cannot be asked. An object of it that is missing or damaged is a flaw.
pub fn verify(vault: &Vault, point: &PointManifest, progress: &(dyn Fn(Progress) + Sync)) -> Result<Proof, VaultError> {
    let covered: Vec<(usize, &PartitionEntry)> =
        point.partitions.iter().enumerate().filter(|(_, entry)| entry.stream.is_some()).collect();
    let total = Progress {
        partitions_total: covered.len(),
        bytes_total: covered.iter().map(|(_, entry)| entry.bytes).sum(),
        ..Progress::default()
    };
    let verification = Verification { vault, point, progress, done: Mutex::new(total) };
    progress(total);

    let mut found = Found::default();
    let image = verification.metadata(&mut found)?;
    let mut ids = TransactionIds::default();
    let (of_transactions, others): (Vec<_>, Vec<_>) =
        covered.into_iter().partition(|(_, entry)| entry.topic == TRANSACTION_LOG);
    for (_, entry) in of_transactions {
        verification.transaction_log(entry, image.as_ref(), &mut ids, &mut found)?;
    }
    found.merge(verification.partitions(&others, image.as_ref(), &ids)?);
    verification.uncovered(&mut found.flaws);
    if let Some(image) = &image {
        metadata::check_partitions(image, point, &mut found.flaws);
        metadata::check_greatest(image, point, ids.max_producer_id(), &found.greatest, &mut found.flaws);
    }
    Ok(verification.conclude(found, &ids))
}

struct Verification<'a> {
    vault: &'a Vault,
    point: &'a PointManifest,
    progress: &'a (dyn Fn(Progress) + Sync),
    done: Mutex<Progress>,
}

/// What was found, by one thread.
#[derive(Default)]
struct Found {
    flaws: Flaws,
    greatest: BTreeMap<TopicPartition, Greatest>,
    offsets: Vec<Offsets>,
    shares: Vec<Shares>,
    batches: u64,
    open: usize,
}

impl Found {
    fn merge(&mut self, other: Self) {
        self.flaws.merge(other.flaws);
        self.greatest.extend(other.greatest);
        self.offsets.extend(other.offsets);
        self.shares.extend(other.shares);
        self.batches += other.batches;
        self.open += other.open;
    }
}

impl Verification<'_> {
    /// The metadata, replayed. A point without it is none that a cluster can be made of.
    fn metadata(&self, found: &mut Found) -> Result<Option<MetadataImage>, VaultError> {
        let Some(entry) = &self.point.metadata else {
            found.flaws.add(1, metadata::PLACE, "the point has none");
            return Ok(None);
        };
        let mut read = |stream: &Option<StreamRef>, name: &str| -> Result<Option<Vec<u8>>, VaultError> {
            let Some(stream) = stream else { return Ok(Some(Vec::new())) };
            let place = format!("{}: {name}", metadata::PLACE);
            let Some(loaded) = self.load(stream, &place, &mut found.flaws)? else { return Ok(None) };
            let mut bytes = Vec::new();
            let mut check = LogCheck::new(&loaded.stream, place, Gaps::Unexplained);
            let take = |chunk: &[u8], check: &mut LogCheck<'_>, flaws: &mut Flaws| {
                bytes.extend_from_slice(chunk);
                check.chunk(chunk, flaws, |_, _, _| ());
            };
            let is_whole = self.read(&loaded, &mut check, &mut found.flaws, take)?;
            found.batches += check.batches;
            Ok(is_whole.then_some(bytes))
        };
        let (checkpoint, log) = (read(&entry.checkpoint, "checkpoint")?, read(&entry.log, "log")?);
        let (Some(checkpoint), Some(log)) = (checkpoint, log) else { return Ok(None) };
        let checkpoint = entry.checkpoint.is_some().then_some(&checkpoint[..]);
        Ok(metadata::replay(entry, checkpoint, &log, &mut found.flaws))
    }

    fn transaction_log(
        &self,
        entry: &PartitionEntry,
        image: Option<&MetadataImage>,
        ids: &mut TransactionIds,
        found: &mut Found,
    ) -> Result<(), VaultError> {
        let place = partition(entry);
        self.partition(entry, image, found, |batch, _, flaws| match transaction_records(batch) {
            Ok(records) => records.into_iter().for_each(|record| ids.apply(record, flaws)),
            Err(error) => flaws.add(3, &place, error.to_string()),
        })?;
        Ok(())
    }

    /// All other partitions, by several threads.
    fn partitions(
        &self,
        entries: &[(usize, &PartitionEntry)],
        image: Option<&MetadataImage>,
        ids: &TransactionIds,
    ) -> Result<Found, VaultError> {
        let mut planned: BTreeMap<usize, PlannedMarkers> = BTreeMap::new();
        for (commit, markers) in [(false, &self.point.abort_markers), (true, &self.point.commit_markers)] {
            for marker in markers {
                let of_partition = planned.entry(marker.partition_index as usize).or_default();
                of_partition.insert(marker.producer_id, PlannedMarker { commit, epoch: marker.producer_epoch });
            }
        }
        let (next, none) = (AtomicUsize::new(0), PlannedMarkers::new());
        let work = || -> Result<Found, VaultError> {
            let mut found = Found::default();
            while let Some((index, entry)) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.data_partition(entry, image, ids, planned.get(index).unwrap_or(&none), &mut found)?;
            }
            Ok(found)
        };
        let workers = thread::available_parallelism().map_or(1, |cores| cores.get()).min(WORKERS_MAX);
        thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let mut all = Found::default();
            for thread in threads {
                let found = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                all.merge(found?);
            }
            Ok(all)
        })
    }

    fn data_partition(
        &self,
        entry: &PartitionEntry,
        image: Option<&MetadataImage>,
        ids: &TransactionIds,
        planned: &PlannedMarkers,
        found: &mut Found,
    ) -> Result<(), VaultError> {
        let place = partition(entry);
        let mut producers = Producers::new(ids, place.clone(), entry.log_start_offset);
        let mut offsets = (entry.topic == OFFSETS).then(Offsets::default);
        let mut shares = (entry.topic == SHARES).then(Shares::default);
        let mut begins_at = None;
        let read = self.partition(entry, image, found, |batch, after_gap, flaws| {
            begins_at.get_or_insert(batch.base_offset());
            producers.apply(batch, after_gap, flaws);
            if let Some(offsets) = &mut offsets {
                offsets.apply(batch, &place, flaws);
            }
            if let Some(shares) = &mut shares {
                shares.apply(batch, &place, flaws);
            }
        })?;
        if let Some((loaded, has_gaps)) = read {
            producers.judge(planned, &mut found.flaws);
            let begins_at = begins_at.unwrap_or(entry.end_offset);
            side_files::check(&loaded.stream, &producers, begins_at, has_gaps, &mut found.flaws);
            found.open += producers.open.len();
            found.offsets.extend(offsets);
            found.shares.extend(shares);
        }
        Ok(())
    }

    /// Reads a partition and checks it for itself; nothing if some of it cannot be read.
    fn partition(
        &self,
        entry: &PartitionEntry,
        image: Option<&MetadataImage>,
        found: &mut Found,
        mut look: impl FnMut(&Batch<'_>, bool, &mut Flaws),
    ) -> Result<Option<(LoadedStream, bool)>, VaultError> {
        let (name, place) = (partition(entry), partition(entry).to_string());
        let stream = entry.stream.as_ref().expect("only what is covered is read");
        let loaded = self.load(stream, &place, &mut found.flaws)?;
        let result = match loaded {
            None => None,
            Some(loaded) => {
                self.belongs(entry, &loaded, &place, &mut found.flaws);
                let gaps = image.map_or(Gaps::Expected, |image| metadata::gaps(image, self.point, entry));
                let mut check = LogCheck::new(&loaded.stream, place, gaps);
                let mut greatest = Greatest { epoch: -1, producer_id: -1 };
                let take = |chunk: &[u8], check: &mut LogCheck<'_>, flaws: &mut Flaws| {
                    check.chunk(chunk, flaws, |batch, after_gap, flaws| {
                        greatest.epoch = greatest.epoch.max(batch.leader_epoch());
                        greatest.producer_id = greatest.producer_id.max(batch.producer_id());
                        look(batch, after_gap, flaws);
                    });
                };
                let is_whole = self.read(&loaded, &mut check, &mut found.flaws, take)?;
                check.finish(&mut found.flaws);
                let has_gap = check.has_gap;
                found.batches += check.batches;
                found.greatest.insert(name, greatest);
                is_whole.then_some((loaded, has_gap))
            }
        };
        let mut done = self.done.lock().expect("no thread panics while it holds the progress");
        done.partitions += 1;
        done.bytes += entry.bytes;
        (self.progress)(*done);
        Ok(result)
    }

    /// The stream is that of the entry.
    fn belongs(&self, entry: &PartitionEntry, loaded: &LoadedStream, place: &str, flaws: &mut Flaws) {
        let stream = &loaded.stream;
        let of_stream = (&stream.cluster_id, &stream.topic_id, &stream.topic, stream.partition);
        if of_stream != (&self.point.cluster_id, &entry.topic_id, &entry.topic, entry.partition) {
            flaws.add(0, place, format!("its stream is that of {}-{}", stream.topic, stream.partition));
        }
        let of_stream = (stream.log_start_offset, stream.end_offset, stream.len_bytes());
        let of_entry = (entry.log_start_offset, entry.end_offset, entry.bytes);
        if of_stream != of_entry {
            flaws.add(0, place, format!("start, end and bytes are {of_stream:?}, the point says {of_entry:?}"));
        }
    }

    fn load(&self, stream: &StreamRef, place: &str, flaws: &mut Flaws) -> Result<Option<LoadedStream>, VaultError> {
        told(self.vault.wait(self.vault.load_stream(stream)), place, flaws)
    }

    /// Reads all chunks; false if one cannot be read.
    fn read(
        &self,
        loaded: &LoadedStream,
        check: &mut LogCheck<'_>,
        flaws: &mut Flaws,
        mut take: impl FnMut(&[u8], &mut LogCheck<'_>, &mut Flaws),
    ) -> Result<bool, VaultError> {
        let mut reader = self.vault.read_chunks(loaded.places.clone());
        let mut chunk = Vec::new();
        loop {
            match told(reader.next(&mut chunk), check.place(), flaws)? {
                Some(true) => take(&chunk, check, flaws),
                Some(false) => return Ok(true),
                None => return Ok(false),
            }
        }
    }

    /// Nothing is proven of what is not there; without a part of the transaction log, nothing of transactions.
    fn uncovered(&self, flaws: &mut Flaws) {
        for entry in self.point.partitions.iter().filter(|entry| !entry.uncovered.is_empty()) {
            let what = format!("not covered: {}", entry.uncovered);
            if entry.topic == TRANSACTION_LOG {
                flaws.add(3, partition(entry), what);
            } else {
                flaws.note(format!("{}: {what}", partition(entry)));
            }
        }
    }

    fn conclude(self, mut found: Found, ids: &TransactionIds) -> Proof {
        let covered = || self.point.partitions.iter().filter(|entry| entry.uncovered.is_empty());
        let ends: BTreeMap<TopicPartition, i64> = covered().map(|entry| (partition(entry), entry.end_offset)).collect();
        let by_id = |entry: &PartitionEntry| {
            let topic_id = Uuid(entry.topic_id[..].try_into().ok()?);
            Some(((topic_id, entry.partition), (partition(entry), entry.end_offset)))
        };
        let ends_by_id = covered().filter_map(by_id).collect();
        let flaws = &mut found.flaws;
        let offsets_beyond = found.offsets.iter().map(|offsets| offsets.judge(&ends, flaws)).sum();
        let share_partitions_beyond = found.shares.iter().map(|shares| shares.judge(&ends_by_id, flaws)).sum();
        let done = self.done.into_inner().expect("no thread panics while it holds the progress");
        let proven = found.flaws.proven();
        let (flaws, flaw_counts, notes) = found.flaws.into_parts();
        Proof {
            proven,
            flaws,
            flaw_counts,
            notes,
            partitions: done.partitions,
            batches: found.batches,
            bytes: done.bytes,
            transactional_ids: ids.count(),
            open_transactions: found.open,
            offsets: found.offsets.iter().map(Offsets::count).sum(),
            offsets_beyond,
            share_partitions: found.shares.iter().map(Shares::count).sum(),
            share_partitions_beyond,
        }
    }
}

fn partition(entry: &PartitionEntry) -> TopicPartition {
    TopicPartition::new(&entry.topic, entry.partition)
}

/// An object that is missing or damaged is a flaw of what needs it; any other failure says nothing of the point.
fn told<T>(result: Result<T, VaultError>, place: &str, flaws: &mut Flaws) -> Result<Option<T>, VaultError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ (VaultError::Missing { .. } | VaultError::Corrupt { .. } | VaultError::TooNew { .. })) => {
            let text = error.to_string();
            flaws.add(0, place, text.split("\nhint: ").next().unwrap_or_default());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
