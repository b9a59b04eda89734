//! Copies the cluster metadata: the newest checkpoint of the metadata log and the batches from there on.
//!
//! These files are copied, never linked: a broker writes into them at every start. A checkpoint never changes, but it
//! and the segments before it may be deleted while they are read, once a newer one is there; then it is tried anew.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::thread;
use std::time::Duration;

use segvault_kafka_log::batch::{Batch, BatchError, Batches};
use segvault_kafka_log::names::{CheckpointName, SegmentFileKind, segment_file_name};
use segvault_proto::{CheckpointCopy, LogPosition, MetadataCopy};

use crate::capture::ReplicaError;
use crate::capture::plan::Listing;
use crate::sample::{WalkError, position_of, segment_end};

/// Longest checkpoint, and longest log behind it, that is copied. 100 000 partitions are some 30 MiB, and a new
/// checkpoint is due after 20 MiB of log.
const LEN_MAX: u64 = 512 << 20;
/// How often it is tried if files vanish or a batch is being written.
const TRIES: u32 = 8;
/// Time between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Copies the metadata in `dir`, a `__cluster_metadata-0`.
pub(crate) fn copy(dir: &Path) -> Result<MetadataCopy, ReplicaError> {
    let mut tried = 0;
    patiently(|| {
        let seen = look(dir)?;
        let copy = try_copy(dir)?;
        tried += 1;
        if let Some(reason) = copy.remainder.clone().filter(|_| tried < TRIES) {
            return Err(ReplicaError::Moved { path: dir.into(), reason }); // It may just be being written.
        }
        let copied = LogPosition { last_epoch: copy.epoch, end_offset: copy.end_offset };
        match seen {
            // A batch whose length is damaged looks like one that is being written, and would end the copy.
            Some(seen) if seen > copied => {
                let (end, seen) = (copied.end_offset, seen.end_offset);
                let last = list(dir)?.1.bases().pop().unwrap_or(0);
                let path = dir.join(segment_file_name(last, SegmentFileKind::Log));
                let what = format!("no whole batch follows offset {end}, but the log goes on to offset {seen}");
                Err(ReplicaError::damaged(&path, what))
            }
            _ => Ok(copy),
        }
    })
}

/// Where the metadata log in `dir` ends; `None` if there is no such directory, or nothing in it.
pub(crate) fn position(dir: &Path) -> Result<Option<LogPosition>, ReplicaError> {
    if !dir.exists() {
        return Ok(None);
    }
    patiently(|| look(dir))
}

fn look(dir: &Path) -> Result<Option<LogPosition>, ReplicaError> {
    let (checkpoint, listing) = list(dir)?;
    let checkpoint = checkpoint.map(|name| LogPosition { last_epoch: name.epoch, end_offset: name.end_offset });
    let mut log = None;
    for base in listing.logs.keys().rev() {
        let path = dir.join(segment_file_name(*base, SegmentFileKind::Log));
        let (file, index) = (open(&path)?, File::open(path.with_extension("index")).ok());
        let end = segment_end(&file, index.as_ref(), *base).map_err(|error| walk_error(&path, error))?;
        if let Some((_, header)) = end.last {
            log = Some(LogPosition { last_epoch: header.leader_epoch(), end_offset: header.next_offset() });
            break;
        }
    }
    Ok(log.max(checkpoint))
}

fn patiently<T>(mut attempt: impl FnMut() -> Result<T, ReplicaError>) -> Result<T, ReplicaError> {
    for _ in 1..TRIES {
        match attempt() {
            Err(ReplicaError::Moved { .. } | ReplicaError::Damaged { .. }) => thread::sleep(TRY_AGAIN),
            done => return done,
        }
    }
    attempt()
}

/// The newest checkpoint and the segments.
fn list(dir: &Path) -> Result<(Option<CheckpointName>, Listing), ReplicaError> {
    let failed = |error| ReplicaError::io(dir, error);
    let mut newest = None;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        newest = newest.max(name.to_str().and_then(CheckpointName::parse));
    }
    Ok((newest, Listing::read(dir).map_err(failed)?))
}

fn try_copy(dir: &Path) -> Result<MetadataCopy, ReplicaError> {
    let (name, listing) = list(dir)?;
    let mut copy = MetadataCopy { epoch: -1, ..MetadataCopy::default() };
    if let Some(name) = name {
        let bytes = read_checkpoint(&dir.join(name.to_string()))?;
        (copy.end_offset, copy.epoch) = (name.end_offset, name.epoch);
        copy.checkpoint = Some(CheckpointCopy { end_offset: name.end_offset, epoch: name.epoch, bytes });
    }
    let bases = listing.bases();
    let first = bases.partition_point(|base| *base <= copy.end_offset);
    if first == 0 && !bases.is_empty() {
        let what = format!("the log begins at offset {}, behind the checkpoint's end {}", bases[0], copy.end_offset);
        return Err(ReplicaError::Moved { path: dir.into(), reason: what });
    }
    for (index, base) in bases.iter().enumerate().skip(first.saturating_sub(1)) {
        append_segment(dir, *base, index + 1 == bases.len(), &mut copy)?;
    }
    if copy.checkpoint.is_none() && copy.log.is_empty() {
        let what = "it has neither a checkpoint nor a batch".to_owned();
        return Err(ReplicaError::damaged(dir, copy.remainder.unwrap_or(what)));
    }
    Ok(copy)
}

fn read_checkpoint(path: &Path) -> Result<Vec<u8>, ReplicaError> {
    let bytes = read_from(path, &open(path)?, 0)?;
    for batch in Batches::new(&bytes) {
        let checked = batch.and_then(|(position, batch)| batch.check_crc().map(|()| position));
        checked.map_err(|error| ReplicaError::damaged(path, error))?;
    }
    Ok(bytes)
}

/// Appends the batches of a segment at and above the copy's end. Only the last segment may end within a batch.
fn append_segment(dir: &Path, base_offset: i64, is_last: bool, copy: &mut MetadataCopy) -> Result<(), ReplicaError> {
    let path = dir.join(segment_file_name(base_offset, SegmentFileKind::Log));
    let (file, index) = (open(&path)?, File::open(path.with_extension("index")).ok());
    let len = file.metadata().map_err(|error| ReplicaError::io(&path, error))?.len();
    let start = position_of(&file, len, index.as_ref(), base_offset, copy.end_offset);
    let start = start.map_err(|error| walk_error(&path, error))?;
    let bytes = read_from(&path, &file, start)?;
    let mut copied = 0;
    for batch in Batches::new(&bytes) {
        let (position, batch) = match batch {
            Err(BatchError::AllZero) if is_last => break,
            Err(BatchError::Truncated { .. }) if is_last => {
                let left = bytes.len() - copied;
                let what =
                    format!("{}: {left} bytes behind offset {} are no whole batch", path.display(), copy.end_offset);
                copy.remainder = bytes[copied..].iter().any(|byte| *byte != 0).then_some(what);
                break;
            }
            batch => batch.map_err(|error| ReplicaError::damaged(&path, error))?,
        };
        check_next(&batch, copy)
            .map_err(|what| ReplicaError::damaged(&path, format_args!("{what} at byte {}", start + position as u64)))?;
        if copy.log.len() as u64 + batch.size() as u64 > LEN_MAX {
            return Err(ReplicaError::damaged(&path, format_args!("more than {LEN_MAX} bytes follow the checkpoint")));
        }
        copied = position + batch.size();
        copy.log.extend_from_slice(batch.bytes());
        (copy.end_offset, copy.epoch) = (batch.next_offset(), batch.leader_epoch());
    }
    Ok(())
}

/// The metadata log has no gaps, and checkpoints end where batches do.
fn check_next(batch: &Batch<'_>, copy: &MetadataCopy) -> Result<(), String> {
    if batch.base_offset() != copy.end_offset {
        return Err(format!("offset {} follows offset {}", batch.base_offset(), copy.end_offset));
    }
    if batch.leader_epoch() < copy.epoch {
        return Err(format!("epoch {} follows epoch {}", batch.leader_epoch(), copy.epoch));
    }
    batch.check_crc().map_err(|error| error.to_string())
}

fn open(path: &Path) -> Result<File, ReplicaError> {
    File::open(path).map_err(|error| ReplicaError::io(path, error))
}

/// All bytes from `start` on.
fn read_from(path: &Path, mut file: &File, start: u64) -> Result<Vec<u8>, ReplicaError> {
    let failed = |error: io::Error| ReplicaError::io(path, error);
    let len = file.metadata().map_err(failed)?.len().saturating_sub(start);
    if len > LEN_MAX {
        return Err(ReplicaError::damaged(path, format_args!("{len} bytes, more than the {LEN_MAX} that are copied")));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.seek(SeekFrom::Start(start)).map_err(failed)?;
    file.take(LEN_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn walk_error(path: &Path, error: WalkError) -> ReplicaError {
    match error {
        WalkError::Io(error) => ReplicaError::io(path, error),
        error => ReplicaError::damaged(path, error),
    }
}
