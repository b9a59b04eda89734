//! Where a segment's bytes are read from, and what is said when they are not what they should be.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::pinned::{Copied, FileIdentity, Pin, PinnedSegment, SegmentReader};

/// Why a replica cannot be the source: file, position and what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{} at byte {position}: {what}", path.display())]
pub(super) struct SourceError {
    path: PathBuf,
    position: u64,
    what: String,
    is_gap: bool,
}

impl SourceError {
    pub fn new(segment: &PinnedSegment, position: u64, what: impl fmt::Display) -> Self {
        Self { path: segment.source.clone(), position, what: what.to_string(), is_gap: false }
    }

    /// Offsets are missing before `offset`, where `expected` should follow.
    pub fn gap(segment: &PinnedSegment, position: u64, expected: i64, offset: i64) -> Self {
        let what = format!("offsets {expected} to {} are missing, and no compaction explains it", offset - 1);
        Self { is_gap: true, ..Self::new(segment, position, what) }
    }

    /// All that is wrong is that offsets are missing.
    pub fn is_gap(&self) -> bool {
        self.is_gap
    }
}

/// The bytes of one segment.
pub(super) enum Source<'a> {
    /// Pinned.
    Pinned(SegmentReader<'a>),
    /// All of it was copied.
    Copied(&'a Copied),
    /// Not pinned, for its bytes are in the vault; they are needed again, and it is still the same file.
    Known(File),
}

impl<'a> Source<'a> {
    pub fn open(segment: &'a PinnedSegment) -> io::Result<Self> {
        match (&segment.copy, &segment.pin) {
            (Some(copy), _) if copy.start == 0 => Ok(Self::Copied(copy)),
            (_, Pin::Known) => {
                let file = File::open(&segment.source)?;
                if FileIdentity::of(&file.metadata()?) != segment.identity {
                    return Err(io::Error::other("the file has changed since it was captured"));
                }
                Ok(Self::Known(file))
            }
            _ => segment.open().map(Self::Pinned),
        }
    }

    /// Fills `buf` with the bytes at `position`.
    pub fn read_exact_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        match self {
            Self::Pinned(reader) => reader.read_exact_at(buf, position),
            Self::Known(file) => file.read_exact_at(buf, position),
            Self::Copied(copy) => copy.read_exact_at(buf, position),
        }
    }
}
