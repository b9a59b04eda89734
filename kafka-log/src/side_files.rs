//! Builds the files beside a segment from its batches, as recovery would (`LogSegment.recover`).
//!
//! The builder sees headers only, so it can run while a segment streams by. What it makes is correct for all
//! versions of Kafka; it equals what a broker of 4.0 or later wrote if that was not restarted meanwhile, since those
//! index each batch, while earlier ones index each append.
//!
//! A `.timeindex` always ends with the segment's greatest timestamp: retention goes by that entry. Sparse
//! indexes are correct, only slow, so once an index has reached its limit nothing is added but that last entry.

use thiserror::Error;

use crate::{
    batch::BatchHeader,
    index::{AbortedTxn, OFFSET_ENTRY_LEN, OffsetEntry, TIME_ENTRY_LEN, TimeEntry},
};

/// Bytes between index entries unless configured otherwise (`index.interval.bytes`).
pub const INDEX_INTERVAL_DEFAULT: u32 = 4096;

/// Bytes of an index at most, unless configured otherwise (`segment.index.bytes`). By its source a broker cannot load a
/// tail whose index is longer than configured (`AbstractIndex.resize`).
pub const INDEX_LEN_MAX_DEFAULT: u32 = 10 << 20;

/// How dense and how long the indexes may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideFileOptions {
    /// An entry is written once there are more bytes than this since the last one (`index.interval.bytes`).
    pub index_interval: u32,
    /// Bytes of each index at most (`segment.index.bytes`).
    pub index_len_max: u32,
}

impl Default for SideFileOptions {
    fn default() -> Self {
        SideFileOptions { index_interval: INDEX_INTERVAL_DEFAULT, index_len_max: INDEX_LEN_MAX_DEFAULT }
    }
}

/// A batch that cannot be where it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SideFileError {
    /// Offsets must rise.
    #[error("batch at position {position} ends at offset {last_offset}, and offset {previous} came before")]
    NotRising {
        /// Where the batch begins in the segment.
        position: u64,
        /// Its last offset.
        last_offset: i64,
        /// The last offset of the batch before it, or the one before the segment's base.
        previous: i64,
    },
    /// Indexes cannot point so far: Kafka would have begun another segment.
    #[error(
        "batch at position {position} with last offset {last_offset} is too far from the segment's base {base_offset}"
    )]
    TooFar {
        /// Where the batch begins in the segment.
        position: u64,
        /// Its last offset.
        last_offset: i64,
        /// The segment's base offset.
        base_offset: i64,
    },
}

/// The content of the files beside a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideFiles {
    /// The `.index`.
    pub offset_index: Vec<u8>,
    /// The `.timeindex`.
    pub time_index: Vec<u8>,
    /// The `.txnindex`; empty means that there is no such file.
    pub txn_index: Vec<u8>,
}

/// Builds the side files of one segment.
#[derive(Clone, Debug)]
pub struct SideFileBuilder {
    options: SideFileOptions,
    base_offset: i64,
    last_offset: i64,
    last_indexed: u64,
    /// The greatest timestamp so far.
    max: TimeEntry,
    /// The greatest timestamp in the time index.
    max_indexed: i64,
    files: SideFiles,
}

impl SideFileBuilder {
    /// Begins with an empty segment.
    pub fn new(base_offset: i64, options: SideFileOptions) -> Self {
        SideFileBuilder {
            options,
            base_offset,
            last_offset: base_offset - 1,
            last_indexed: 0,
            max: TimeEntry { timestamp: -1, offset: -1 },
            max_indexed: -1,
            files: SideFiles::default(),
        }
    }

    /// Takes in the segment's next batch, which begins at byte `position` of it.
    pub fn add(&mut self, position: u64, batch: &BatchHeader) -> Result<(), SideFileError> {
        let (base_offset, last_offset) = (self.base_offset, batch.last_offset());
        if last_offset <= self.last_offset {
            return Err(SideFileError::NotRising { position, last_offset, previous: self.last_offset });
        }
        let too_far = SideFileError::TooFar { position, last_offset, base_offset };
        let Ok(index_position) = i32::try_from(position) else {
            return Err(too_far);
        };
        if last_offset - base_offset > i32::MAX.into() {
            return Err(too_far);
        }
        self.last_offset = last_offset;
        if batch.max_timestamp() > self.max.timestamp {
            self.max = TimeEntry { timestamp: batch.max_timestamp(), offset: last_offset };
        }
        if position.saturating_sub(self.last_indexed) > self.options.index_interval.into() {
            self.last_indexed = position;
            let entry = OffsetEntry { offset: last_offset, position: index_position };
            if self.has_room(self.files.offset_index.len() + OFFSET_ENTRY_LEN) {
                self.files.offset_index.extend(entry.encode(base_offset));
            }
            // Leaves room for the last entry.
            if self.has_room(self.files.time_index.len() + 2 * TIME_ENTRY_LEN) {
                self.add_max_timestamp();
            }
        }
        Ok(())
    }

    /// Adds an aborted transaction whose marker lies in this segment, in the markers' order.
    pub fn add_aborted(&mut self, txn: &AbortedTxn) {
        self.files.txn_index.extend(txn.encode());
    }

    /// The greatest timestamp so far and the last offset of the batch that has it; `None` if there is none.
    pub fn max_timestamp(&self) -> Option<TimeEntry> {
        (self.max.timestamp >= 0).then_some(self.max)
    }

    /// The files' content.
    pub fn finish(mut self) -> SideFiles {
        self.add_max_timestamp();
        self.files
    }

    fn has_room(&self, len: usize) -> bool {
        len as u64 <= self.options.index_len_max.into()
    }

    fn add_max_timestamp(&mut self) {
        if self.max.timestamp > self.max_indexed {
            self.max_indexed = self.max.timestamp;
            self.files.time_index.extend(self.max.encode(self.base_offset));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        batch::{BatchBuilder, Batches},
        index::{decode_offset_index, decode_time_index},
    };

    /// One batch per (value length, timestamp), each of one record, from offset 100.
    fn segment(batches: &[(usize, i64)]) -> Vec<u8> {
        let batch = |(i, &(len, timestamp)): (usize, &(usize, i64))| {
            BatchBuilder::new(100 + i as i64, 0).record(timestamp, None, Some(&vec![7; len])).build()
        };
        batches.iter().enumerate().flat_map(batch).collect()
    }

    fn build(segment: &[u8], options: SideFileOptions) -> SideFiles {
        let mut builder = SideFileBuilder::new(100, options);
        for found in Batches::new(segment) {
            let (position, batch) = found.unwrap();
            builder.add(position as u64, &batch).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn small_segment_has_only_its_greatest_timestamp() {
        let files = build(&segment(&[(10, 50), (10, 70), (10, 60)]), SideFileOptions::default());
        assert_eq!(decode_offset_index(100, &files.offset_index), Ok(vec![]));
        assert_eq!(decode_time_index(100, &files.time_index), Ok(vec![TimeEntry { timestamp: 70, offset: 101 }]));
    }

    #[test]
    fn entries_follow_more_than_an_interval_of_bytes() {
        let segment = segment(&[(4096, 50), (10, 40), (4096, 90), (10, 80)]);
        let starts: Vec<_> = Batches::new(&segment).map(|b| b.unwrap().0 as i32).collect();
        let files = build(&segment, SideFileOptions::default());
        let entries = decode_offset_index(100, &files.offset_index).unwrap();
        assert_eq!(
            entries,
            [OffsetEntry { offset: 101, position: starts[1] }, OffsetEntry { offset: 103, position: starts[3] }]
        );
        let times = decode_time_index(100, &files.time_index).unwrap();
        assert_eq!(times, [TimeEntry { timestamp: 50, offset: 100 }, TimeEntry { timestamp: 90, offset: 102 }]);
    }

    #[test]
    fn segment_without_timestamps_has_no_time_entry() {
        assert_eq!(build(&segment(&[(10, -1)]), SideFileOptions::default()), SideFiles::default());
    }

    #[test]
    fn batch_out_of_place_is_refused() {
        let header = |offset| BatchHeader::parse(&BatchBuilder::new(offset, 0).record(1, None, None).build()).unwrap();
        let mut builder = SideFileBuilder::new(100, SideFileOptions::default());
        let not_rising = |last_offset, previous| SideFileError::NotRising { position: 0, last_offset, previous };
        assert_eq!(builder.add(0, &header(99)), Err(not_rising(99, 99)));
        builder.add(0, &header(100)).unwrap();
        assert_eq!(builder.add(0, &header(100)), Err(not_rising(100, 100)));
        let too_far = SideFileError::TooFar { position: 80, last_offset: 1 << 40, base_offset: 100 };
        assert_eq!(builder.add(80, &header(1 << 40)), Err(too_far));
        assert!(builder.add(1 << 31, &header(101)).is_err());
    }

    proptest! {
        #[test]
        fn indexes_keep_their_limit_and_their_last_word(
            batches in prop::collection::vec((0usize..300, 0i64..1000), 1..60),
            index_interval in 0u32..500,
            index_len_max in 12u32..200,
        ) {
            let segment = segment(&batches);
            let files = build(&segment, SideFileOptions { index_interval, index_len_max });
            prop_assert!(files.offset_index.len() <= index_len_max as usize);
            prop_assert!(files.time_index.len() <= index_len_max as usize);
            for entry in decode_offset_index(100, &files.offset_index).unwrap() {
                let (_, batch) = Batches::new(&segment[entry.position as usize..]).next().unwrap().unwrap();
                prop_assert_eq!(batch.last_offset(), entry.offset);
            }
            let times = decode_time_index(100, &files.time_index).unwrap();
            prop_assert_eq!(times.last().map(|e| e.timestamp), batches.iter().map(|b| b.1).max());
        }
    }
}
