//! What a capture holds of one replica: enough to read its bytes later, whatever the broker does meanwhile.
//!
//! A closed segment is a hardlink outside every log dir (or, where links are impossible, an open descriptor). Of the
//! tail, and of anything above the checkpointed high watermark, the bytes that a truncation could take away are
//! copied as well; below the high watermark the linked inode keeps them. Dropping a value lets go of its pins.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use segvault_kafka_log::checkpoint::EpochEntry;
use segvault_kafka_log::ids::Uuid;
use segvault_proto::LogPosition;

/// One replica, pinned.
#[derive(Debug)]
pub struct PinnedReplica {
    /// Topic name.
    pub topic: String,
    /// From `partition.metadata`.
    pub topic_id: Uuid,
    /// Partition.
    pub partition: i32,
    /// The partition's directory in the log dir; for messages only.
    pub dir: PathBuf,
    /// First offset served.
    pub log_start_offset: i64,
    /// Where the pinned bytes end.
    pub position: LogPosition,
    /// Where the log ended at `Prepare`, before phase A: whatever was acknowledged before the point lies below.
    pub prepared_end_offset: i64,
    /// Leader epochs with a start below the end, rising.
    pub epochs: Vec<EpochEntry>,
    /// By rising base offset; never empty.
    pub segments: Vec<PinnedSegment>,
    /// The newest readable producer snapshot at or below the end: (its offset, the file's bytes). Only for producers
    /// whose batches retention has taken; the state itself is built from batches.
    pub producer_snapshot: Option<(i64, Vec<u8>)>,
}

/// One segment of a pinned replica.
#[derive(Debug)]
pub struct PinnedSegment {
    /// The offset in its name.
    pub base_offset: i64,
    /// The broker's file; for messages, and for asking after the identity again.
    pub source: PathBuf,
    /// Where to read `[0, len)`, except what `copy` has.
    pub pin: Pin,
    /// Bytes wanted: up to the last whole batch when it was pinned.
    pub len: u64,
    /// The last bytes, copied because a truncation could reach them: `[copy.start, len)`.
    pub copy: Option<Copied>,
    /// The broker's file when it was pinned, before our link changed its ctime.
    pub identity: FileIdentity,
}

impl PinnedSegment {
    /// Opens the pinned bytes. Fails for [`Pin::Known`], which pins none.
    pub fn open(&self) -> io::Result<SegmentReader<'_>> {
        let file = match &self.pin {
            Pin::Link(path, _) => File::open(path)?,
            Pin::Descriptor(file, _) => file.try_clone()?,
            Pin::Known => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "segment is known, not pinned"));
            }
        };
        Ok(SegmentReader { file, copy: self.copy.as_ref(), len: self.len })
    }
}

/// The bytes of a pinned segment, wherever they are kept.
#[derive(Debug)]
pub struct SegmentReader<'a> {
    /// The linked file: for advice to the kernel. What `copy` has may be gone from it.
    pub file: File,
    copy: Option<&'a Copied>,
    len: u64,
}

impl SegmentReader<'_> {
    /// Fills `buf` with the bytes at `position`; `UnexpectedEof` if they go beyond the segment's `len`, or if the
    /// broker has truncated the file below its high watermark.
    pub fn read_exact_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        if position.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let copy_start = self.copy.map_or(self.len, |copy| copy.start);
        let linked = usize::try_from(copy_start.saturating_sub(position)).map_or(buf.len(), |n| n.min(buf.len()));
        let (linked, copied) = buf.split_at_mut(linked);
        self.file.read_exact_at(linked, position)?;
        match self.copy {
            Some(copy) if !copied.is_empty() => copy.read_exact_at(copied, position + linked.len() as u64 - copy.start),
            _ => Ok(()),
        }
    }
}

/// Bytes of a segment that were copied when it was pinned.
#[derive(Debug)]
pub struct Copied {
    /// Where in the segment they begin; they end at the segment's `len`.
    pub start: u64,
    /// Where they are.
    pub bytes: CopiedBytes,
}

/// Where copied bytes are: few in memory, many in a file without a name.
#[derive(Debug)]
pub enum CopiedBytes {
    /// Here.
    Memory(Vec<u8>),
    /// In a file of ours that many share, from `position` on.
    Spilled {
        /// The file; already unlinked, so that the last owner's drop frees its space.
        file: Arc<File>,
        /// Where in it they begin.
        position: u64,
    },
}

impl Copied {
    /// Fills `buf` with copied bytes, from the `offset`th on.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.bytes {
            CopiedBytes::Memory(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                let bytes = from.and_then(|bytes| bytes.get(..buf.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
                buf.copy_from_slice(bytes);
                Ok(())
            }
            CopiedBytes::Spilled { file, position } => file.read_exact_at(buf, position + offset),
        }
    }
}

/// What keeps a segment's bytes.
#[derive(Debug)]
pub enum Pin {
    /// A hardlink of ours, unlinked on drop.
    Link(PathBuf, Held),
    /// An open descriptor.
    Descriptor(File, Held),
    /// Nothing: the bytes are known to be in the vault already (same identity as in the base point).
    Known,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Self::Link(path, _) = self
            && let Err(error) = std::fs::remove_file(&*path)
        {
            tracing::warn!(path = %path.display(), %error, "unlink pin; the next start of the agent reaps it");
        }
    }
}

/// How much is pinned at the moment. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    files: AtomicU64,
    bytes: AtomicU64,
}

/// Counts one pinned file until it is dropped.
#[derive(Debug)]
pub struct Held {
    tally: Tally,
    bytes: u64,
}

impl Tally {
    /// Pinned files.
    pub fn files(&self) -> u64 {
        self.0.files.load(Ordering::Relaxed)
    }

    /// Their bytes when they were pinned.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Counts a file of `bytes`.
    pub(crate) fn hold(&self, bytes: u64) -> Held {
        self.0.files.fetch_add(1, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Held { tally: self.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tally.0.files.fetch_sub(1, Ordering::Relaxed);
        self.tally.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Tells whether a file is the one seen before. The ctime cannot be set by anybody, so equal identities mean equal
/// bytes; a number that the file system used again has another ctime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileIdentity {
    /// Device.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Modification time, nanoseconds.
    pub mtime_ns: i128,
    /// Change time, nanoseconds.
    pub ctime_ns: i128,
}

impl FileIdentity {
    /// The identity that `metadata` shows.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}
