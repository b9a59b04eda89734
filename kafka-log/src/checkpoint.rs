//! Kafka's checkpoint text files: the four offset checkpoints of a log dir and a partition's epoch history.
//!
//! ```text
//! 0                    version, always 0
//! 2                    how many entries follow
//! orders 0 1742        topic partition offset, or: epoch start-offset
//! orders 1 998
//! ```
//!
//! A broker that finds one malformed takes the whole log dir offline (`CheckpointFile`), so reading is as strict as
//! Kafka's, and what is written is exactly what Kafka writes. Zero bytes are a checkpoint without entries.

use std::{collections::BTreeMap, str::FromStr};

use thiserror::Error;

use crate::{batch::BatchHeader, ids::TopicPartition};

const VERSION: i32 = 0;

/// What is wrong with a checkpoint file. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CheckpointError {
    /// The bytes are not UTF-8.
    #[error("checkpoint is not text (byte {0})")]
    NotText(usize),
    /// Another version than 0.
    #[error("unknown checkpoint version {0}")]
    BadVersion(i32),
    /// A line that is no version, count or entry.
    #[error("malformed line {line} in checkpoint: {text:?}")]
    BadLine {
        /// Which line.
        line: usize,
        /// Its text, cut to a screen's width.
        text: String,
    },
    /// The count and the entries disagree: cut short, or edited.
    #[error("checkpoint says {expected} entries and has {found}")]
    BadCount {
        /// The count in the file.
        expected: i32,
        /// Entries in the file.
        found: usize,
    },
    /// Epochs and their start offsets must both rise.
    #[error("epoch {} at offset {} follows epoch {} at offset {}", .entry.epoch, .entry.start_offset, .previous.epoch, .previous.start_offset)]
    NotRising {
        /// The entry.
        entry: EpochEntry,
        /// The one before it.
        previous: EpochEntry,
    },
}

/// Reads an offset checkpoint (`OffsetCheckpointFile`). Where a partition has two lines the last one counts, as
/// in Kafka.
pub fn decode_offsets(bytes: &[u8]) -> Result<BTreeMap<TopicPartition, i64>, CheckpointError> {
    let entries = decode(bytes, |[topic, partition, offset]| {
        Some((TopicPartition::new(topic, not_negative(partition)?), not_negative(offset)?))
    })?;
    Ok(entries.into_iter().collect())
}

/// Writes an offset checkpoint.
pub fn encode_offsets(offsets: &BTreeMap<TopicPartition, i64>) -> String {
    let lines = offsets.iter().map(|(tp, offset)| format!("{} {} {offset}\n", tp.topic, tp.partition));
    encode(offsets.len(), lines)
}

/// Where a leader's term begins in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EpochEntry {
    /// The leader's epoch.
    pub epoch: i32,
    /// The first offset that was written in it.
    pub start_offset: i64,
}

/// The leader epochs of a partition with their start offsets (`LeaderEpochFileCache`). Both rise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderEpochs {
    entries: Vec<EpochEntry>,
}

impl LeaderEpochs {
    /// Reads a `leader-epoch-checkpoint`.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let entries = decode(bytes, |[epoch, start_offset]| {
            Some(EpochEntry { epoch: not_negative(epoch)?, start_offset: not_negative(start_offset)? })
        })?;
        for pair in entries.windows(2) {
            let (previous, entry) = (pair[0], pair[1]);
            if entry.epoch <= previous.epoch || entry.start_offset <= previous.start_offset {
                return Err(CheckpointError::NotRising { entry, previous });
            }
        }
        Ok(LeaderEpochs { entries })
    }

    /// Writes a `leader-epoch-checkpoint`.
    pub fn encode(&self) -> String {
        let lines = self.entries.iter().map(|e| format!("{} {}\n", e.epoch, e.start_offset));
        encode(self.entries.len(), lines)
    }

    /// The entries, rising.
    pub fn entries(&self) -> &[EpochEntry] {
        &self.entries
    }

    /// The newest entry.
    pub fn latest(&self) -> Option<EpochEntry> {
        self.entries.last().copied()
    }

    /// Begins `epoch` at `start_offset`, which removes all entries that are not below it in both. Does nothing
    /// if it is the newest epoch already and began no later. Says whether something changed.
    pub fn assign(&mut self, epoch: i32, start_offset: i64) -> bool {
        if self.latest().is_some_and(|latest| latest.epoch == epoch && latest.start_offset <= start_offset) {
            return false;
        }
        while self.latest().is_some_and(|e| e.epoch >= epoch || e.start_offset >= start_offset) {
            self.entries.pop();
        }
        self.entries.push(EpochEntry { epoch, start_offset });
        true
    }

    /// Takes in a batch as recovery does (`LogSegment.recover`): a higher epoch than all before begins with it. So
    /// the history can be rebuilt from batches; in compacted logs an epoch may then begin later than it did.
    pub fn observe(&mut self, batch: &BatchHeader) {
        let epoch = batch.leader_epoch();
        if epoch >= 0 && self.latest().is_none_or(|latest| epoch > latest.epoch) {
            self.assign(epoch, batch.base_offset());
        }
    }

    /// The greatest known epoch that is not above `epoch`, with the offset at which the next one begins or, for
    /// the newest, with the partition's end; `epoch` itself if all known ones are above it. `None` if it is above
    /// all known ones.
    pub fn end_offset_for(&self, epoch: i32, log_end_offset: i64) -> Option<(i32, i64)> {
        let above = self.entries.partition_point(|e| e.epoch <= epoch);
        match (self.entries[..above].last(), self.entries.get(above)) {
            (Some(floor), Some(next)) => Some((floor.epoch, next.start_offset)),
            (None, Some(next)) => Some((epoch, next.start_offset)),
            (Some(latest), None) if latest.epoch == epoch => Some((epoch, log_end_offset)),
            _ => None,
        }
    }

    /// The epoch in which the record at `offset` was written; `None` if that was before the oldest entry.
    pub fn epoch_at(&self, offset: i64) -> Option<i32> {
        let after = self.entries.partition_point(|e| e.start_offset <= offset);
        self.entries[..after].last().map(|e| e.epoch)
    }

    /// Removes the entries that begin at `end_offset` or later.
    pub fn truncate_from_end(&mut self, end_offset: i64) {
        self.entries.retain(|e| e.start_offset < end_offset);
    }

    /// Makes `start_offset` the log's start: of the entries that begin there or earlier the newest remains, and
    /// begins there.
    pub fn truncate_from_start(&mut self, start_offset: i64) {
        let after = self.entries.partition_point(|e| e.start_offset <= start_offset);
        if after > 0 {
            self.entries.drain(..after - 1);
            self.entries[0].start_offset = start_offset;
        }
    }
}

fn decode<T, const N: usize>(bytes: &[u8], entry: impl Fn([&str; N]) -> Option<T>) -> Result<Vec<T>, CheckpointError> {
    let text = str::from_utf8(bytes).map_err(|e| CheckpointError::NotText(e.valid_up_to()))?;
    let mut lines = text.lines().enumerate().map(|(i, text)| (i + 1, text));
    let Some((line, version)) = lines.next() else {
        return Ok(Vec::new());
    };
    let version = version.parse().map_err(|_| bad_line(line, version))?;
    if version != VERSION {
        return Err(CheckpointError::BadVersion(version));
    }
    let (line, expected) = lines.next().unwrap_or((2, ""));
    let expected: i32 = expected.parse().map_err(|_| bad_line(line, expected))?;
    let parsed = lines.map(|(line, text)| fields(text).and_then(&entry).ok_or_else(|| bad_line(line, text)));
    let entries: Vec<T> = parsed.collect::<Result<_, _>>()?;
    if usize::try_from(expected) != Ok(entries.len()) {
        return Err(CheckpointError::BadCount { expected, found: entries.len() });
    }
    Ok(entries)
}

/// Splits as Java's `split("\\s+")` does: space at the front makes an empty first field.
fn fields<const N: usize>(line: &str) -> Option<[&str; N]> {
    if line.starts_with(|c: char| c.is_ascii_whitespace()) {
        return None;
    }
    let fields: Vec<&str> = line.split_ascii_whitespace().take(N + 1).collect();
    fields.try_into().ok()
}

fn not_negative<T: FromStr + PartialOrd + Default>(text: &str) -> Option<T> {
    text.parse().ok().filter(|value| *value >= T::default())
}

fn bad_line(line: usize, text: &str) -> CheckpointError {
    CheckpointError::BadLine { line, text: text.chars().take(100).collect() }
}

fn encode(count: usize, lines: impl Iterator<Item = String>) -> String {
    let mut out = format!("{VERSION}\n{count}\n");
    lines.for_each(|line| out.push_str(&line));
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epochs(entries: &[(i32, i64)]) -> LeaderEpochs {
        let entries = entries.iter().map(|&(epoch, start_offset)| EpochEntry { epoch, start_offset });
        LeaderEpochs { entries: entries.collect() }
    }

    #[test]
    fn kafka_s_own_text_is_read_and_written() {
        let text = "0\n2\norders 0 1742\norders 1 998\n";
        let offsets = decode_offsets(text.as_bytes()).unwrap();
        assert_eq!(offsets[&TopicPartition::new("orders", 0)], 1742);
        assert_eq!(encode_offsets(&offsets), text);
        assert_eq!(decode_offsets(b""), Ok(BTreeMap::new()));
        assert_eq!(decode_offsets(b"0\n0\n"), Ok(BTreeMap::new()));
        assert_eq!(decode_offsets(b"0\r\n1\r\na  0\t7  ").unwrap().len(), 1);
    }

    #[test]
    fn what_would_take_a_log_dir_offline_is_refused() {
        let bad = |line, text: &str| CheckpointError::BadLine { line, text: text.into() };
        let cases: [(&[u8], CheckpointError); 10] = [
            (b"1\n0\n", CheckpointError::BadVersion(1)),
            (b"x\n0\n", bad(1, "x")),
            (b"0\n", bad(2, "")),
            (b"0\n1\n\norders 0 1\n", bad(3, "")),
            (b"0\n1\n orders 0 1\n", bad(3, " orders 0 1")),
            (b"0\n1\norders 0\n", bad(3, "orders 0")),
            (b"0\n1\norders 0 1 2\n", bad(3, "orders 0 1 2")),
            (b"0\n1\norders 0 -1\n", bad(3, "orders 0 -1")),
            (b"0\n2\norders 0 1\n", CheckpointError::BadCount { expected: 2, found: 1 }),
            (b"0\n\xff\n", CheckpointError::NotText(2)),
        ];
        for (bytes, error) in cases {
            assert_eq!(decode_offsets(bytes), Err(error));
        }
        let [entry, previous] = [EpochEntry { epoch: 2, start_offset: 5 }, EpochEntry { epoch: 1, start_offset: 5 }];
        assert_eq!(LeaderEpochs::decode(b"0\n2\n1 5\n2 5\n"), Err(CheckpointError::NotRising { entry, previous }));
    }

    #[test]
    fn a_low_epoch_removes_what_it_contradicts() {
        type Entries = &'static [(i32, i64)];
        let cases: [(Entries, (i32, i64), Entries); 5] = [
            (&[], (0, 0), &[(0, 0)]),
            (&[(1, 0), (2, 60)], (1, 73), &[(1, 73)]),
            (&[(1, 0)], (1, 5), &[(1, 0)]),
            (&[(1, 0), (2, 60)], (3, 60), &[(1, 0), (3, 60)]),
            (&[(1, 10)], (1, 5), &[(1, 5)]),
        ];
        for (before, (epoch, start_offset), after) in cases {
            let mut history = epochs(before);
            assert_eq!(history.assign(epoch, start_offset), before != after);
            assert_eq!(history, epochs(after), "{before:?} + {epoch}@{start_offset}");
        }
    }

    #[test]
    fn end_of_an_epoch_is_the_start_of_the_next() {
        let history = epochs(&[(2, 10), (4, 30), (7, 50)]);
        let cases = [(1, Some((1, 10))), (2, Some((2, 30))), (3, Some((2, 30))), (7, Some((7, 99))), (8, None)];
        for (epoch, end) in cases {
            assert_eq!(history.end_offset_for(epoch, 99), end, "epoch {epoch}");
        }
        assert_eq!(
            [9, 10, 29, 30, 60].map(|offset| history.epoch_at(offset)),
            [None, Some(2), Some(2), Some(4), Some(7)]
        );
        assert_eq!(LeaderEpochs::default().end_offset_for(0, 99), None);
    }

    #[test]
    fn truncation_keeps_what_is_left_true() {
        let mut history = epochs(&[(2, 10), (4, 30), (7, 50)]);
        history.truncate_from_end(50);
        assert_eq!(history, epochs(&[(2, 10), (4, 30)]));
        history.truncate_from_start(35);
        assert_eq!(history, epochs(&[(4, 35)]));
        history.truncate_from_start(20);
        assert_eq!(history, epochs(&[(4, 35)]));
    }

    proptest! {
        #[test]
        fn offsets_read_back(lines in prop::collection::btree_map(("[a-zA-Z0-9._-]{1,20}", 0i32..), 0i64.., 0..20)) {
            let offsets = lines.into_iter().map(|((topic, p), offset)| (TopicPartition::new(topic, p), offset)).collect();
            prop_assert_eq!(decode_offsets(encode_offsets(&offsets).as_bytes()), Ok(offsets));
        }

        #[test]
        fn epochs_stay_rising_and_read_back(assigned in prop::collection::vec((0i32..50, 0i64..500), 0..40)) {
            let mut history = LeaderEpochs::default();
            for (epoch, start_offset) in assigned {
                history.assign(epoch, start_offset);
                prop_assert_eq!(LeaderEpochs::decode(history.encode().as_bytes()), Ok(history.clone()));
            }
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>, text: String) {
            let _ = (decode_offsets(&bytes), LeaderEpochs::decode(&bytes), decode_offsets(text.as_bytes()));
        }
    }
}
