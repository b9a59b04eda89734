//! Pins one replica, or looks at where it ends.
//!
//! List, link, list again; what was linked in between counts if the log stood still (`plan::settled`). Otherwise the
//! links are dropped and it is tried anew, for a while: a cleaner needs milliseconds to swap its output in.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use segvault_kafka_log::Uuid;
use segvault_kafka_log::batch::{BatchHeader, HEADER_LEN};
use segvault_kafka_log::checkpoint::{EpochEntry, LeaderEpochs};
use segvault_kafka_log::names::{LEADER_EPOCH_CHECKPOINT, PARTITION_METADATA, SegmentFileKind, segment_file_name};
use segvault_kafka_log::partition_metadata::PartitionMetadata;
use segvault_kafka_log::producer::ProducerSnapshot;
use segvault_proto::{LogPosition, ReplicaSample};

use super::plan::{self, Extent, Listing, PlannedSegment};
use super::spill::Spill;
use super::survey::Replica;
use super::{ReplicaError, read_small};
use crate::pinned::{Copied, FileIdentity, Pin, PinnedReplica, PinnedSegment};
use crate::sample::{SegmentEnd, WalkError, position_of, segment_end};
use crate::staging::Staging;

/// How often a replica is tried before it is given up as too restless: for two seconds or so.
const TRIES: u32 = 25;
/// File systems take their times from a clock that advances in steps of up to 10 ms: two changes within one step may
/// leave the same time.
const TIME_STEP_MAX: Duration = Duration::from_millis(50);
/// How often an epoch history that begins below the first segment is looked at, and the time in between.
const HISTORY_LOOKS: u32 = 8;
const HISTORY_LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How many producer snapshots are tried, newest first; one that is being written has a wrong CRC.
const SNAPSHOTS: usize = 3;

/// What became of a replica.
#[derive(Debug)]
pub(crate) enum Outcome<T> {
    /// It was looked at.
    Done(T),
    /// It is not there any more: deleted, or moved to another log dir.
    Gone,
    /// It cannot be a source, and why.
    Unusable(ReplicaSample),
}

/// Tells whether the first `len` bytes of a segment (topic id, partition, base offset, `len`, identity) are in the
/// vault already.
pub(crate) type Known<'a> = &'a (dyn Fn(Uuid, i32, i64, u64, &FileIdentity) -> bool + Sync);

/// Pins replicas.
pub(crate) struct Pinner<'a> {
    /// Where pins go.
    pub staging: &'a Staging,
    /// Where copies go.
    pub spill: &'a Spill,
    /// What need not be pinned.
    pub known: Known<'a>,
    /// Leave out the active segment.
    pub closed_only: bool,
}

/// Says where a replica ends now.
pub(crate) fn sample(replica: &Replica) -> Result<Outcome<(ReplicaSample, KnownEnd)>, ReplicaError> {
    patiently(replica, || look(replica))
}

/// Where a replica ended when it was looked at, and what must not have changed for it to end there still.
#[derive(Debug)]
pub(crate) struct KnownEnd {
    /// Where that was.
    pub position: LogPosition,
    dir: (PathBuf, FileIdentity),
    tail: (PathBuf, FileIdentity),
    /// Both had stood still for so long that any later change must show.
    settled: bool,
}

impl KnownEnd {
    /// Whether it is still true of `replica`; asks for two files' times and sizes only.
    pub fn holds(&self, replica: &Replica) -> bool {
        let unchanged = |(path, identity): &(PathBuf, FileIdentity)| {
            fs::symlink_metadata(path).is_ok_and(|metadata| FileIdentity::of(&metadata) == *identity)
        };
        self.settled && self.dir.0 == replica.dir && unchanged(&self.tail) && unchanged(&self.dir)
    }
}

impl Pinner<'_> {
    /// Pins a replica. `prepared_end_offset` is where it ended at `Prepare`, if it was there.
    pub fn pin(
        &self,
        replica: &Replica,
        prepared_end_offset: Option<i64>,
    ) -> Result<Outcome<(PinnedReplica, ReplicaSample)>, ReplicaError> {
        patiently(replica, || self.try_pin(replica, prepared_end_offset))
    }

    fn try_pin(
        &self,
        replica: &Replica,
        prepared_end_offset: Option<i64>,
    ) -> Result<(PinnedReplica, ReplicaSample), ReplicaError> {
        let dir = &replica.dir;
        let listing = list(dir)?;
        let bases = listing.bases();
        let topic_id = topic_id(dir)?;
        let planned = plan::plan(&bases, replica.high_watermark, self.closed_only);
        let mut pinned = Vec::with_capacity(planned.len());
        let mut end = None;
        for segment in &planned {
            let (segment, found) = self.pin_segment(replica, topic_id, *segment)?;
            pinned.push(segment);
            end = found;
        }
        let after = Listing::read(dir).map_err(|error| ReplicaError::io(dir, error))?;
        let moved =
            |unsettled: plan::Unsettled| ReplicaError::Moved { path: dir.clone(), reason: unsettled.to_string() };
        plan::settled(&listing, &after).map_err(moved)?;

        let last = planned.last().expect("a plan has a segment");
        let end = log_end(dir, last, &bases, end)?;
        let epochs = settled_epochs(replica, bases[0])?;
        let position = plan::position(end.batch_epoch, &epochs, end.offset);
        let sample = report(replica, topic_id, &bases, position, &epochs);
        let pinned = PinnedReplica {
            topic: sample.topic.clone(),
            topic_id,
            partition: sample.partition,
            dir: dir.clone(),
            log_start_offset: sample.log_start_offset,
            position,
            prepared_end_offset: prepared_end_offset.unwrap_or(sample.log_start_offset),
            epochs: epochs.into_iter().filter(|entry| entry.start_offset < end.offset).collect(),
            segments: pinned,
            producer_snapshot: producer_snapshot(dir, &listing, end.offset),
        };
        Ok((pinned, sample))
    }

    /// Pins one segment. Its end is returned where it had to be found.
    fn pin_segment(
        &self,
        replica: &Replica,
        topic_id: Uuid,
        planned: PlannedSegment,
    ) -> Result<(PinnedSegment, Option<SegmentEnd>), ReplicaError> {
        let base_offset = planned.base_offset;
        let source = segment_path(&replica.dir, base_offset, SegmentFileKind::Log);
        let failed = |error| ReplicaError::io(&source, error);
        let wants_end = matches!(planned.extent, Extent::Tail | Extent::LastClosed);
        let files = if wants_end || planned.copy { Some(SegmentFiles::open(&source)?) } else { None };
        let identity = match &files {
            Some(files) => files.log.metadata(),
            None => fs::symlink_metadata(&source),
        };
        let identity = FileIdentity::of(&identity.map_err(failed)?);
        let end = match &files {
            Some(files) if wants_end => Some(files.end(&source, base_offset)?),
            _ => None,
        };
        let len = match (planned.extent, &end) {
            (Extent::Nothing, _) => 0,
            (Extent::Tail, Some(end)) => end.len,
            (_, Some(end)) if end.len != identity.size => {
                return Err(ReplicaError::damaged(&source, format_args!("no batch begins at byte {}", end.len)));
            }
            _ => identity.size,
        };
        let mut segment = PinnedSegment { base_offset, source, pin: Pin::Known, len, copy: None, identity };
        if (self.known)(topic_id, replica.partition.partition, base_offset, len, &identity) {
            return Ok((segment, end));
        }
        segment.pin = self.pin_file(replica, &segment, planned.extent == Extent::Tail)?;
        if let Some(files) = files.filter(|_| planned.copy) {
            segment.copy = self.copy(&files, &segment, replica.high_watermark, end.as_ref())?;
        }
        Ok((segment, end))
    }

    /// Links the file, and makes sure that the link is what was looked at.
    fn pin_file(&self, replica: &Replica, segment: &PinnedSegment, is_tail: bool) -> Result<Pin, ReplicaError> {
        let failed = |error| ReplicaError::io(&segment.source, error);
        let pin = self.staging.pin(replica.log_dir, &segment.source).map_err(failed)?;
        let linked = match &pin {
            Pin::Link(path, _) => fs::symlink_metadata(path),
            Pin::Descriptor(file, _) => file.metadata(),
            Pin::Known => return Ok(pin),
        };
        let (linked, seen) = (FileIdentity::of(&linked.map_err(failed)?), segment.identity);
        let is_same_file = (linked.dev, linked.ino) == (seen.dev, seen.ino);
        let is_same = is_tail || (linked.size, linked.mtime_ns) == (seen.size, seen.mtime_ns);
        if !is_same_file || !is_same {
            let reason = "the file changed while it was linked".to_owned();
            return Err(ReplicaError::Moved { path: segment.source.clone(), reason });
        }
        Ok(pin)
    }

    /// Copies what lies at and above the high watermark; `None` if nothing does.
    fn copy(
        &self,
        files: &SegmentFiles,
        segment: &PinnedSegment,
        high_watermark: i64,
        end: Option<&SegmentEnd>,
    ) -> Result<Option<Copied>, ReplicaError> {
        let index = files.index.as_ref();
        let start = position_of(&files.log, segment.len, index, segment.base_offset, high_watermark);
        let start = start.map_err(|error| walk_error(&segment.source, error))?;
        if start >= segment.len {
            return Ok(None);
        }
        let failed = |error| ReplicaError::io(&segment.source, error);
        let copied = self.spill.copy(&files.log, start, segment.len).map_err(failed)?;
        // Truncated and written again meanwhile, the file can be as long as before.
        if let Some((position, header)) = end.and_then(|end| end.last).filter(|(position, _)| *position >= start) {
            let mut bytes = [0; HEADER_LEN];
            copied.read_exact_at(&mut bytes, position - start).map_err(failed)?;
            if BatchHeader::parse(&bytes) != Ok(header) {
                let reason = "the log was truncated while it was copied".to_owned();
                return Err(ReplicaError::Moved { path: segment.source.clone(), reason });
            }
        }
        Ok(Some(copied))
    }
}

/// Tries until the log stands still. Damage makes the replica unusable; only what concerns every replica is an error.
fn patiently<T>(
    replica: &Replica,
    mut attempt: impl FnMut() -> Result<T, ReplicaError>,
) -> Result<Outcome<T>, ReplicaError> {
    if let Some(twin) = &replica.twin {
        let reason = format!("it is in two log dirs: {} and {}", replica.dir.display(), twin.display());
        return Ok(Outcome::Unusable(unusable(replica, reason)));
    }
    let mut last_reason = String::new();
    for tried in 0..TRIES {
        match attempt() {
            Ok(done) => return Ok(Outcome::Done(done)),
            Err(ReplicaError::Moved { .. }) if !replica.dir.exists() => return Ok(Outcome::Gone),
            Err(error @ ReplicaError::Moved { .. }) => last_reason = error.to_string(),
            Err(error) if error.is_out_of_descriptors() => return Err(error),
            Err(error) => return Ok(Outcome::Unusable(unusable(replica, error.to_string()))),
        }
        thread::sleep(Duration::from_millis(u64::from(tried) * 5 + 2));
    }
    let reason = format!("its segments did not stand still; at last: {last_reason}");
    Ok(Outcome::Unusable(unusable(replica, reason)))
}

fn look(replica: &Replica) -> Result<(ReplicaSample, KnownEnd), ReplicaError> {
    let dir = &replica.dir;
    let identify = |path: &Path| {
        let metadata = fs::symlink_metadata(path).map_err(|error| ReplicaError::io(path, error))?;
        let still = metadata.modified().is_ok_and(|at| at.elapsed().is_ok_and(|since| since > TIME_STEP_MAX));
        Ok((still, (path.to_owned(), FileIdentity::of(&metadata))))
    };
    let (dir_settled, dir_identity) = identify(dir)?;
    let bases = list(dir)?.bases();
    let base = *bases.last().expect("there is at least one");
    let (tail_settled, tail) = identify(&segment_path(dir, base, SegmentFileKind::Log))?;
    let topic_id = topic_id(dir)?;
    let last = PlannedSegment { base_offset: base, extent: Extent::Tail, copy: true };
    let end = log_end(dir, &last, &bases, Some(end_of(dir, base)?))?;
    let epochs = epochs(dir)?;
    let position = plan::position(end.batch_epoch, &epochs, end.offset);
    let settled = dir_settled && tail_settled;
    let known = KnownEnd { position, dir: dir_identity, tail, settled };
    Ok((report(replica, topic_id, &bases, position, &epochs), known))
}

/// Lists the segments; at least one.
fn list(dir: &Path) -> Result<Listing, ReplicaError> {
    let listing = Listing::read(dir).map_err(|error| ReplicaError::io(dir, error))?;
    if listing.logs.is_empty() {
        return Err(ReplicaError::Moved { path: dir.into(), reason: plan::Unsettled::Empty.to_string() });
    }
    Ok(listing)
}

/// A segment's open files.
struct SegmentFiles {
    log: File,
    /// A hint; it may be missing.
    index: Option<File>,
}

impl SegmentFiles {
    fn open(log: &Path) -> Result<Self, ReplicaError> {
        let file = File::open(log).map_err(|error| ReplicaError::io(log, error))?;
        Ok(Self { log: file, index: File::open(log.with_extension("index")).ok() })
    }

    fn end(&self, path: &Path, base_offset: i64) -> Result<SegmentEnd, ReplicaError> {
        segment_end(&self.log, self.index.as_ref(), base_offset).map_err(|error| walk_error(path, error))
    }
}

fn walk_error(path: &Path, error: WalkError) -> ReplicaError {
    match error {
        WalkError::Io(error) => ReplicaError::io(path, error),
        error => ReplicaError::damaged(path, error),
    }
}

/// Where a log ends.
struct LogEnd {
    offset: i64,
    batch_epoch: i32,
}

fn end_of(dir: &Path, base_offset: i64) -> Result<SegmentEnd, ReplicaError> {
    let path = segment_path(dir, base_offset, SegmentFileKind::Log);
    SegmentFiles::open(&path)?.end(&path, base_offset)
}

/// Where the log ends whose last wanted segment is `last` and ends with `end`. An active segment without batches ends
/// at its base, and the last batch is in the segment before.
fn log_end(dir: &Path, last: &PlannedSegment, bases: &[i64], end: Option<SegmentEnd>) -> Result<LogEnd, ReplicaError> {
    let at = |header: BatchHeader| LogEnd { offset: header.next_offset(), batch_epoch: header.leader_epoch() };
    if let Some((_, header)) = end.and_then(|end| end.last) {
        return Ok(at(header));
    }
    let before = bases[..bases.partition_point(|base| *base < last.base_offset)].last();
    let before = before.map(|base| end_of(dir, *base)).transpose()?.and_then(|end| end.last);
    Ok(match before {
        Some((_, header)) if last.extent == Extent::LastClosed => at(header),
        Some((_, header)) => LogEnd { offset: last.base_offset, ..at(header) },
        None => LogEnd { offset: last.base_offset, batch_epoch: -1 },
    })
}

fn report(
    replica: &Replica,
    topic_id: Uuid,
    bases: &[i64],
    position: LogPosition,
    epochs: &[EpochEntry],
) -> ReplicaSample {
    let known = epochs.iter().filter(|entry| entry.start_offset <= position.end_offset);
    ReplicaSample {
        topic: replica.partition.topic.clone(),
        topic_id,
        partition: replica.partition.partition,
        dir: replica.dir.display().to_string(),
        high_watermark: replica.high_watermark,
        log_start_offset: plan::log_start(replica.log_start, bases[0], position.end_offset),
        active_base_offset: *bases.last().expect("a replica has a segment"),
        position,
        epochs: known.map(|entry| (entry.epoch, entry.start_offset)).collect(),
        lost_from: lost_from(replica, epochs, bases[0]),
        unusable: None,
    }
}

/// What is reported of a replica that cannot be a source.
fn unusable(replica: &Replica, reason: String) -> ReplicaSample {
    ReplicaSample {
        topic: replica.partition.topic.clone(),
        topic_id: topic_id(&replica.dir).unwrap_or_default(),
        partition: replica.partition.partition,
        dir: replica.dir.display().to_string(),
        high_watermark: replica.high_watermark,
        log_start_offset: 0,
        active_base_offset: 0,
        position: LogPosition { last_epoch: -1, end_offset: 0 },
        epochs: Vec::new(),
        lost_from: None,
        unusable: Some(reason),
    }
}

/// Reads the topic id. Kafka writes it before the first batch, but not at once.
pub(crate) fn topic_id(dir: &Path) -> Result<Uuid, ReplicaError> {
    let path = dir.join(PARTITION_METADATA);
    let bytes = match read_small(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound && has_batches(dir) => {
            return Err(ReplicaError::damaged(&path, "it is missing, so nobody knows which topic this is"));
        }
        Err(error) => return Err(ReplicaError::io(&path, error)),
    };
    let metadata = PartitionMetadata::decode(&bytes).map_err(|error| ReplicaError::damaged(&path, error))?;
    Ok(metadata.topic_id)
}

fn has_batches(dir: &Path) -> bool {
    let bases = Listing::read(dir).map(|listing| listing.bases()).unwrap_or_default();
    bases.iter().any(|base| {
        fs::metadata(segment_path(dir, *base, SegmentFileKind::Log)).is_ok_and(|metadata| metadata.len() > 0)
    })
}

/// Reads the epoch history. Without the file it is empty, as for Kafka.
fn epochs(dir: &Path) -> Result<Vec<EpochEntry>, ReplicaError> {
    let path = dir.join(LEADER_EPOCH_CHECKPOINT);
    let bytes = match read_small(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(ReplicaError::io(&path, error)),
    };
    let epochs = LeaderEpochs::decode(&bytes).map_err(|error| ReplicaError::damaged(&path, error))?;
    Ok(epochs.entries().to_vec())
}

/// Reads the epoch history; for a while again if it seems that segments were lost: retention removes them first, and
/// the history is written a little later.
fn settled_epochs(replica: &Replica, first_base: i64) -> Result<Vec<EpochEntry>, ReplicaError> {
    for _ in 1..HISTORY_LOOKS {
        let epochs = epochs(&replica.dir)?;
        if lost_from(replica, &epochs, first_base).is_none() {
            return Ok(epochs);
        }
        thread::sleep(HISTORY_LOOK_AGAIN);
    }
    epochs(&replica.dir)
}

/// Where the epoch history begins, if segments are missing behind that. Those of a tiered topic are in remote storage.
fn lost_from(replica: &Replica, epochs: &[EpochEntry], first_base: i64) -> Option<i64> {
    let is_tiered = replica.log_start.is_some_and(|start| start < first_base);
    epochs.first().map(|entry| entry.start_offset).filter(|start| *start < first_base && !is_tiered)
}

/// The newest readable producer snapshot at or below `end_offset`.
fn producer_snapshot(dir: &Path, listing: &Listing, end_offset: i64) -> Option<(i64, Vec<u8>)> {
    let candidates = listing.snapshots.range(..=end_offset).rev().take(SNAPSHOTS);
    candidates.copied().find_map(|offset| {
        let bytes = read_small(&segment_path(dir, offset, SegmentFileKind::Snapshot)).ok()?;
        ProducerSnapshot::decode(&bytes).is_ok().then_some((offset, bytes))
    })
}

fn segment_path(dir: &Path, base_offset: i64, kind: SegmentFileKind) -> PathBuf {
    dir.join(segment_file_name(base_offset, kind))
}
