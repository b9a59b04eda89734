//! One segment, written to all replicas at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, FileTimes};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use segvault_kafka_log::batch::{Batch, BatchHeader, EndTxnMarker};
use segvault_kafka_log::index::AbortedTxn;
use segvault_kafka_log::names::{SegmentFileKind, segment_file_name};
use segvault_kafka_log::side_files::{SideFileBuilder, SideFileOptions};

use super::RestoreError;
use super::files::{Owner, create_file, start_write_back, write_file};

/// Bytes of a file after which they are handed to the disk: enough for long sequential writes, little to wait for at
/// the end.
const WRITE_BACK_LEN: u64 = 8 << 20;

/// The directory of a replica, and whose files are to be in it.
#[derive(Clone, Debug)]
pub(super) struct ReplicaDir {
    pub path: PathBuf,
    pub owner: Owner,
}

/// A segment that grows in every replica.
pub(super) struct Segment {
    base_offset: i64,
    logs: Vec<(File, PathBuf)>,
    len: u64,
    written_back: u64,
    side_files: SideFileBuilder,
    /// By the offsets of their markers.
    aborted: BTreeMap<i64, AbortedTxn>,
    /// Offsets of ABORT markers.
    aborts: BTreeSet<i64>,
}

impl Segment {
    pub fn create(base_offset: i64, dirs: &[ReplicaDir], options: SideFileOptions) -> Result<Self, RestoreError> {
        let create = |dir: &ReplicaDir| {
            let path = dir.path.join(segment_file_name(base_offset, SegmentFileKind::Log));
            Ok((create_file(&path, dir.owner)?, path))
        };
        Ok(Self {
            base_offset,
            logs: dirs.iter().map(create).collect::<Result<_, RestoreError>>()?,
            len: 0,
            written_back: 0,
            side_files: SideFileBuilder::new(base_offset, options),
            aborted: BTreeMap::new(),
            aborts: BTreeSet::new(),
        })
    }

    pub fn base_offset(&self) -> i64 {
        self.base_offset
    }

    /// Notes the next batch, whose bytes follow by [`Self::write`].
    pub fn note(&mut self, batch: &Batch<'_>) -> Result<(), String> {
        self.side_files.add(self.len, batch).map_err(|error| error.to_string())?;
        if matches!(batch.end_txn_marker(), Ok(Some(EndTxnMarker { commit: false, .. }))) {
            self.aborts.insert(batch.base_offset());
        }
        self.len += batch.size() as u64;
        Ok(())
    }

    /// Notes an aborted transaction whose marker lies in this segment; false if it was known.
    pub fn note_aborted(&mut self, txn: AbortedTxn) -> bool {
        let known = self.aborted.contains_key(&txn.last_offset);
        self.aborted.entry(txn.last_offset).or_insert(txn);
        !known
    }

    /// Whether a batch can go here: indexes cannot point beyond 2 GiB or 2^31 offsets.
    pub fn has_room_for(&self, batch: &BatchHeader) -> bool {
        let within = |value: i64| i32::try_from(value).is_ok();
        within(self.len as i64 + batch.size() as i64) && within(batch.last_offset() - self.base_offset)
    }

    /// Appends the bytes of noted batches to every replica.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        for (log, path) in &mut self.logs {
            log.write_all(bytes).map_err(RestoreError::io("write", path))?;
        }
        if self.len - self.written_back >= WRITE_BACK_LEN {
            self.write_back();
        }
        Ok(())
    }

    fn write_back(&mut self) {
        for (log, _) in &self.logs {
            start_write_back(log, self.written_back, self.len - self.written_back);
        }
        self.written_back = self.len;
    }

    /// Writes the side files. The log's mtime becomes its greatest timestamp if that is not above `mtime_max_ms`
    /// (milliseconds), which retention goes by where nothing better is known.
    pub fn finish(mut self, dirs: &[ReplicaDir], mtime_max_ms: i64) -> Result<(), RestoreError> {
        self.write_back();
        let newest = self.side_files.max_timestamp().map(|entry| entry.timestamp);
        let mtime_ms = newest.filter(|newest| *newest <= mtime_max_ms).unwrap_or(mtime_max_ms);
        let mtime = UNIX_EPOCH + Duration::from_millis(mtime_ms.max(0) as u64);
        for (log, path) in &self.logs {
            log.set_times(FileTimes::new().set_modified(mtime)).map_err(RestoreError::io("set the time of", path))?;
        }
        // Without its marker an entry would make the cleaner take committed records of the producer, too
        // (`CleanedTransactionMetadata`).
        for txn in self.aborted.values().filter(|txn| self.aborts.contains(&txn.last_offset)) {
            self.side_files.add_aborted(txn);
        }
        let files = self.side_files.finish();
        for dir in dirs {
            let put = |kind, bytes: &[u8]| {
                write_file(&dir.path.join(segment_file_name(self.base_offset, kind)), bytes, dir.owner)
            };
            put(SegmentFileKind::OffsetIndex, &files.offset_index)?;
            put(SegmentFileKind::TimeIndex, &files.time_index)?;
            if !files.txn_index.is_empty() {
                put(SegmentFileKind::TxnIndex, &files.txn_index)?;
            }
        }
        Ok(())
    }
}

/// Writes the producer snapshot of `offset` to every replica.
pub(super) fn write_snapshot(offset: i64, bytes: &[u8], dirs: &[ReplicaDir]) -> Result<(), RestoreError> {
    put_everywhere(segment_file_name(offset, SegmentFileKind::Snapshot), bytes, dirs)
}

/// Writes a small file to every replica.
pub(super) fn put_everywhere(name: impl AsRef<Path>, bytes: &[u8], dirs: &[ReplicaDir]) -> Result<(), RestoreError> {
    dirs.iter().try_for_each(|dir| write_file(&dir.path.join(name.as_ref()), bytes, dir.owner))
}
