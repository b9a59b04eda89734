//! What is pinned of a replica and how: decided from a listing, carried out by `pin`.
//!
//! A segment whose end lies at or below the high watermark that the broker checkpointed *before* the listing cannot
//! be truncated (unless an unclean leader election happens): a link keeps its bytes. Above it truncation cuts the
//! inode that we linked, in the tail and in closed segments alike, so those bytes are copied as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::Path;

use segvault_kafka_log::checkpoint::EpochEntry;
use segvault_kafka_log::names::{SegmentFile, SegmentFileKind, SegmentFileState};
use segvault_proto::LogPosition;

/// The segments in a partition's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// Base offsets of the `.log` files, with their inode numbers.
    pub logs: BTreeMap<i64, u64>,
    /// Offsets of the producer snapshots.
    pub snapshots: BTreeSet<i64>,
    /// The cleaner is putting its output in place: some names are missing or are about to change.
    pub is_swapping: bool,
}

impl Listing {
    /// Lists `dir`.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let mut listing = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(file) = name.to_str().and_then(SegmentFile::parse) else {
                continue;
            };
            match (file.state, file.kind) {
                (SegmentFileState::Swap, _) => listing.is_swapping = true,
                (SegmentFileState::Live, SegmentFileKind::Log) if entry.file_type()?.is_file() => {
                    listing.logs.insert(file.base_offset, entry.ino());
                }
                (SegmentFileState::Live, SegmentFileKind::Snapshot) => {
                    listing.snapshots.insert(file.base_offset);
                }
                _ => {}
            }
        }
        Ok(listing)
    }

    /// The base offsets, rising.
    pub fn bases(&self) -> Vec<i64> {
        self.logs.keys().copied().collect()
    }
}

/// Why what was pinned after one listing and before another is not one state of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsettled {
    /// The cleaner was at work.
    #[error("compaction is replacing segments")]
    Swapping,
    /// No segment was there: the log is being made, emptied or moved.
    #[error("there is no segment")]
    Empty,
    /// A segment was there once, but not both times.
    #[error("segment {0} came or went")]
    CameOrWent(i64),
    /// A segment's name was given to another file.
    #[error("segment {0} was replaced")]
    Replaced(i64),
}

/// Whether links made between two listings are one state of the log. Segments may have been added behind those of
/// the first listing: then the log was rolled, and what the first one shows is where it ended before.
pub(crate) fn settled(before: &Listing, after: &Listing) -> Result<(), Unsettled> {
    if before.is_swapping || after.is_swapping {
        return Err(Unsettled::Swapping);
    }
    let (&tail, _) = before.logs.last_key_value().ok_or(Unsettled::Empty)?;
    if let Some(base) = before.logs.keys().find(|base| !after.logs.contains_key(base)) {
        return Err(Unsettled::CameOrWent(*base));
    }
    for (base, inode) in after.logs.range(..=tail) {
        match before.logs.get(base) {
            None => return Err(Unsettled::CameOrWent(*base)),
            Some(before) if before != inode => return Err(Unsettled::Replaced(*base)),
            Some(_) => {}
        }
    }
    Ok(())
}

/// What a segment is and how much of it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Closed: the whole file.
    Closed,
    /// Closed, and where a capture of closed segments ends.
    LastClosed,
    /// Active: up to the last whole batch.
    Tail,
    /// Active in a capture of closed segments that has no other: nothing.
    Nothing,
}

/// How one segment is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedSegment {
    /// The offset in its name.
    pub base_offset: i64,
    /// What is wanted of it.
    pub extent: Extent,
    /// Truncation can reach it: copy what lies at and above the high watermark.
    pub copy: bool,
}

/// Plans the pins of a replica whose segments begin at `bases` (rising, at least one).
pub(crate) fn plan(bases: &[i64], high_watermark: i64, closed_only: bool) -> Vec<PlannedSegment> {
    let closed = bases.windows(2).map(|pair| PlannedSegment {
        base_offset: pair[0],
        extent: Extent::Closed,
        copy: pair[1] > high_watermark,
    });
    let mut planned: Vec<_> = closed.collect();
    match planned.last_mut().filter(|_| closed_only) {
        Some(last) => last.extent = Extent::LastClosed,
        None => planned.extend(bases.last().map(|base| PlannedSegment {
            base_offset: *base,
            extent: if closed_only { Extent::Nothing } else { Extent::Tail },
            copy: !closed_only,
        })),
    }
    planned
}

/// The first offset that the replica serves. A checkpointed start beyond the end belongs to an earlier topic of the
/// same name.
pub(crate) fn log_start(checkpointed: Option<i64>, first_base: i64, end_offset: i64) -> i64 {
    checkpointed.filter(|start| *start <= end_offset).map_or(first_base, |start| start.max(first_base))
}

/// Where the log ends: the newest epoch in its last batch or its history. Entries beyond the end are left over from
/// before a truncation (Kafka 3.8 and later write the file some time after it); one *at* the end is a leader that has
/// not written yet.
pub(crate) fn position(batch_epoch: i32, epochs: &[EpochEntry], end_offset: i64) -> LogPosition {
    let newest = epochs.iter().rfind(|entry| entry.start_offset <= end_offset);
    LogPosition { last_epoch: newest.map_or(-1, |entry| entry.epoch).max(batch_epoch), end_offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(logs: &[(i64, u64)]) -> Listing {
        Listing { logs: logs.iter().copied().collect(), ..Listing::default() }
    }

    #[test]
    fn only_what_truncation_can_reach_is_copied() {
        use Extent::{Closed, LastClosed, Nothing, Tail};
        type Case<'a> = (&'a [i64], i64, bool, &'a [(i64, Extent, bool)]);
        let cases: [Case; 8] = [
            // One segment: the tail is always linked and copied from the high watermark on.
            (&[0], 0, false, &[(0, Tail, true)]),
            (&[7], 100, false, &[(7, Tail, true)]),
            // A closed segment that ends at the high watermark is safe.
            (&[0, 10, 20], 20, false, &[(0, Closed, false), (10, Closed, false), (20, Tail, true)]),
            // One that ends above is not.
            (&[0, 10, 20], 19, false, &[(0, Closed, false), (10, Closed, true), (20, Tail, true)]),
            // No checkpointed high watermark: nothing is safe.
            (&[0, 10, 20], 0, false, &[(0, Closed, true), (10, Closed, true), (20, Tail, true)]),
            // Closed segments only.
            (&[0, 10, 20], 30, true, &[(0, Closed, false), (10, LastClosed, false)]),
            (&[0, 10, 20], 15, true, &[(0, Closed, false), (10, LastClosed, true)]),
            (&[5], 30, true, &[(5, Nothing, false)]),
        ];
        for (bases, high_watermark, closed_only, expected) in cases {
            let planned: Vec<_> = plan(bases, high_watermark, closed_only)
                .into_iter()
                .map(|segment| (segment.base_offset, segment.extent, segment.copy))
                .collect();
            assert_eq!(planned, expected, "{bases:?}, high watermark {high_watermark}, closed only: {closed_only}");
        }
    }

    #[test]
    fn links_count_only_if_the_log_stood_still() {
        let before = listing(&[(0, 1), (23, 2), (46, 3)]);
        let swapping = Listing { is_swapping: true, ..before.clone() };
        let cases = [
            ("nothing happened", before.clone(), Ok(())),
            ("the log was rolled", listing(&[(0, 1), (23, 2), (46, 3), (60, 4), (70, 5)]), Ok(())),
            ("the cleaner is at work", swapping, Err(Unsettled::Swapping)),
            ("compaction replaced a file", listing(&[(0, 1), (23, 9), (46, 3)]), Err(Unsettled::Replaced(23))),
            ("compaction merged two", listing(&[(0, 9), (46, 3)]), Err(Unsettled::CameOrWent(23))),
            ("retention took the first", listing(&[(23, 2), (46, 3)]), Err(Unsettled::CameOrWent(0))),
            (
                "the first listing had a hole",
                listing(&[(0, 1), (12, 7), (23, 2), (46, 3)]),
                Err(Unsettled::CameOrWent(12)),
            ),
            ("truncation took the tail", listing(&[(0, 1), (23, 2)]), Err(Unsettled::CameOrWent(46))),
            ("all is gone", listing(&[]), Err(Unsettled::CameOrWent(0))),
        ];
        for (what, after, expected) in cases {
            assert_eq!(settled(&before, &after), expected, "{what}");
        }
        assert_eq!(settled(&listing(&[]), &before), Err(Unsettled::Empty));
    }

    #[test]
    fn log_start_is_never_beyond_the_end() {
        for (checkpointed, first_base, end_offset, expected) in [
            (None, 10, 50, 10),
            (Some(5), 10, 50, 10),
            (Some(20), 10, 50, 20),
            (Some(50), 10, 50, 50),
            (Some(51), 10, 50, 10),
        ] {
            assert_eq!(log_start(checkpointed, first_base, end_offset), expected);
        }
    }

    #[test]
    fn the_newest_epoch_counts_even_before_its_leader_writes() {
        let epochs = [(1, 0), (4, 20), (7, 30)].map(|(epoch, start_offset)| EpochEntry { epoch, start_offset });
        for (batch_epoch, end_offset, last_epoch) in [(4, 30, 7), (4, 29, 4), (9, 40, 9), (-1, 0, 1)] {
            let expected = LogPosition { last_epoch, end_offset };
            assert_eq!(position(batch_epoch, &epochs, end_offset), expected, "end {end_offset}");
        }
        assert_eq!(position(-1, &[], 0).last_epoch, -1);
    }
}
