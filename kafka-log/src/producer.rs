//! Producer state: what a partition knows of each idempotent producer, and its open transactions.
//!
//! [`ProducerSnapshot`] is the file `<offset>.snapshot` (`ProducerStateManager.writeSnapshot`), which holds the state
//! *before* that offset:
//!
//! ```text
//! 0 i16 version = 1 | 2 u32 crc-32c of 6.. | 6 i32 entry count | 10 entries of 46 bytes:
//! i64 producer id | i16 epoch | i32 last sequence | i64 last offset | i32 offset delta of the last batch
//! | i64 timestamp | i32 coordinator epoch | i64 first offset of the open transaction, -1 none
//! ```
//!
//! [`ProducerState`] is the state itself. Fed with a partition's batches in order it goes through what a broker's
//! does in recovery (`LogSegment.updateProducerState`), so a snapshot can be made at any offset, and each ABORT
//! marker yields its entry for the transaction index. Both matter because a broker does not notice that they are
//! missing: it then shows aborted records to readers of committed ones.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::{
    batch::{Batch, BatchError, EndTxnMarker, crc32c},
    index::AbortedTxn,
};

const VERSION: i16 = 1;
const CRC_START: usize = 6;
const ENTRIES_START: usize = 10;
const ENTRY_LEN: usize = 46;

/// What is wrong with a producer snapshot. Kafka deletes such a file and takes the one before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// The length fits no number of entries, or another number than the file states. Seen for a moment while
    /// a broker writes it.
    #[error("producer snapshot of {len} bytes cannot hold {count} entries")]
    BadLength {
        /// Bytes of the file.
        len: usize,
        /// The entry count that it states, 0 if it is too short to.
        count: i32,
    },
    /// Not version 1.
    #[error("unknown producer snapshot version {0}")]
    BadVersion(i16),
    /// The bytes are not those that the CRC was computed over.
    #[error("producer snapshot crc is {stored:#010x}, its bytes give {computed:#010x}")]
    BadCrc {
        /// The CRC in the file.
        stored: u32,
        /// The CRC of its bytes.
        computed: u32,
    },
}

/// What a partition knows of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerEntry {
    /// The producer's id.
    pub producer_id: i64,
    /// Its epoch, -1 if none was seen.
    pub epoch: i16,
    /// Sequence of its last record in this epoch, -1 if there is none.
    pub last_sequence: i32,
    /// Offset of that record, -1 if there is none.
    pub last_offset: i64,
    /// Last minus first offset of the batch with that record.
    pub offset_delta: i32,
    /// When it last wrote, or its transaction last ended, in milliseconds; -1 if never.
    pub timestamp: i64,
    /// Epoch of the coordinator that last ended a transaction of it, -1 if none did.
    pub coordinator_epoch: i32,
    /// Where its open transaction begins.
    pub current_txn_first_offset: Option<i64>,
}

impl ProducerEntry {
    fn new(producer_id: i64) -> Self {
        ProducerEntry {
            producer_id,
            epoch: -1,
            last_sequence: -1,
            last_offset: -1,
            offset_delta: 0,
            timestamp: -1,
            coordinator_epoch: -1,
            current_txn_first_offset: None,
        }
    }

    /// Another epoch, higher or lower, begins without a last batch (`maybeUpdateProducerEpoch`).
    fn set_epoch(&mut self, epoch: i16) {
        if self.epoch != epoch {
            self.epoch = epoch;
            (self.last_sequence, self.last_offset, self.offset_delta) = (-1, -1, 0);
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.producer_id.to_be_bytes());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.last_sequence.to_be_bytes());
        out.extend_from_slice(&self.last_offset.to_be_bytes());
        out.extend_from_slice(&self.offset_delta.to_be_bytes());
        out.extend_from_slice(&self.timestamp.to_be_bytes());
        out.extend_from_slice(&self.coordinator_epoch.to_be_bytes());
        out.extend_from_slice(&self.current_txn_first_offset.unwrap_or(-1).to_be_bytes());
    }

    fn decode(raw: &[u8; ENTRY_LEN]) -> Self {
        let i32_at = |at: usize| i32::from_be_bytes(*raw[at..].first_chunk().expect("46 bytes"));
        let i64_at = |at: usize| i64::from_be_bytes(*raw[at..].first_chunk().expect("46 bytes"));
        ProducerEntry {
            producer_id: i64_at(0),
            epoch: i16::from_be_bytes([raw[8], raw[9]]),
            last_sequence: i32_at(10),
            last_offset: i64_at(14),
            offset_delta: i32_at(22),
            timestamp: i64_at(26),
            coordinator_epoch: i32_at(34),
            current_txn_first_offset: Some(i64_at(38)).filter(|offset| *offset >= 0),
        }
    }
}

/// A producer snapshot file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerSnapshot {
    /// In the file's order, which has no meaning.
    pub entries: Vec<ProducerEntry>,
}

impl ProducerSnapshot {
    /// Reads a file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let len = bytes.len();
        let Some((header, entries)) = bytes.split_first_chunk::<ENTRIES_START>() else {
            return Err(SnapshotError::BadLength { len, count: 0 });
        };
        let version = i16::from_be_bytes([header[0], header[1]]);
        if version != VERSION {
            return Err(SnapshotError::BadVersion(version));
        }
        let stored = u32::from_be_bytes(*header[2..].first_chunk().expect("10 bytes"));
        let computed = crc32c(&bytes[CRC_START..]);
        if stored != computed {
            return Err(SnapshotError::BadCrc { stored, computed });
        }
        let count = i32::from_be_bytes(*header[6..].first_chunk().expect("10 bytes"));
        match entries.as_chunks() {
            (entries, []) if usize::try_from(count) == Ok(entries.len()) => {
                Ok(ProducerSnapshot { entries: entries.iter().map(ProducerEntry::decode).collect() })
            }
            _ => Err(SnapshotError::BadLength { len, count }),
        }
    }

    /// The file's bytes.
    ///
    /// # Panics
    /// With more than `i32::MAX` entries.
    pub fn encode(&self) -> Vec<u8> {
        let count = i32::try_from(self.entries.len()).expect("a count that fits the format");
        let mut out = Vec::with_capacity(ENTRIES_START + ENTRY_LEN * self.entries.len());
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&count.to_be_bytes());
        self.entries.iter().for_each(|entry| entry.encode(&mut out));
        let crc = crc32c(&out[CRC_START..]);
        out[2..CRC_START].copy_from_slice(&crc.to_be_bytes());
        out
    }
}

/// A batch that no broker would have appended after those before it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProducerError {
    /// The batch cannot be read.
    #[error("batch at offset {offset}")]
    Batch {
        /// The batch's base offset.
        offset: i64,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A producer has a transaction open and wrote outside it.
    #[error("producer {producer_id} wrote outside its open transaction at offset {offset}")]
    NotTransactional {
        /// Who wrote it.
        producer_id: i64,
        /// The batch's base offset.
        offset: i64,
    },
    /// A control batch of a producer that ends no transaction.
    #[error("control batch of producer {producer_id} at offset {offset} is no transaction marker")]
    NoMarker {
        /// Who wrote it.
        producer_id: i64,
        /// The batch's base offset.
        offset: i64,
    },
    /// Batches must be fed in the order of their offsets.
    #[error("batch at offset {offset} follows offset {end_offset}, out of order")]
    OutOfOrder {
        /// The batch's base offset.
        offset: i64,
        /// The first offset that may follow.
        end_offset: i64,
    },
}

/// A transaction that is neither committed nor aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTxn {
    /// Whose it is.
    pub producer_id: i64,
    /// The producer's current epoch, which a marker needs.
    pub producer_epoch: i16,
    /// Epoch of the coordinator that last ended a transaction of this producer here, -1 if none did.
    pub coordinator_epoch: i32,
    /// Its first offset.
    pub first_offset: i64,
    /// When the producer last wrote to it, in milliseconds.
    pub last_timestamp: i64,
}

/// A transaction that a marker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletedTxn {
    /// Whose it was.
    pub producer_id: i64,
    /// Its first offset.
    pub first_offset: i64,
    /// Offset of its marker.
    pub marker_offset: i64,
    /// Whether it was committed; aborted otherwise.
    pub commit: bool,
    /// The last stable offset after it.
    pub last_stable_offset: i64,
}

impl CompletedTxn {
    /// Its entry in the transaction index, which only aborted ones have.
    pub fn aborted(&self) -> Option<AbortedTxn> {
        (!self.commit).then_some(AbortedTxn {
            producer_id: self.producer_id,
            first_offset: self.first_offset,
            last_offset: self.marker_offset,
            last_stable_offset: self.last_stable_offset,
        })
    }
}

/// The producers and open transactions of a partition before its end offset.
#[derive(Clone, Debug)]
pub struct ProducerState {
    producers: BTreeMap<i64, ProducerEntry>,
    /// First offset to producer id.
    open: BTreeMap<i64, i64>,
    end_offset: i64,
    max_producer_id: Option<i64>,
}

impl ProducerState {
    /// The state of a partition that begins at `start_offset`.
    pub fn new(start_offset: i64) -> Self {
        ProducerState {
            producers: BTreeMap::new(),
            open: BTreeMap::new(),
            end_offset: start_offset,
            max_producer_id: None,
        }
    }

    /// The state in a snapshot; `offset` is the one in the file's name.
    pub fn from_snapshot(snapshot: &ProducerSnapshot, offset: i64) -> Self {
        let mut state = ProducerState::new(offset);
        for entry in &snapshot.entries {
            if let Some(first_offset) = entry.current_txn_first_offset {
                state.open.insert(first_offset, entry.producer_id);
            }
            state.producers.insert(entry.producer_id, entry.clone());
            state.max_producer_id = state.max_producer_id.max(Some(entry.producer_id));
        }
        state
    }

    /// Takes in the partition's next batch, as recovery does. Returns the transaction that it ends, if it does.
    ///
    /// Sequence numbers and epochs are not judged: the leader that appended the batch has done so. On an error the
    /// state is as it was before.
    pub fn apply(&mut self, batch: &Batch<'_>) -> Result<Option<CompletedTxn>, ProducerError> {
        let (producer_id, offset) = (batch.producer_id(), batch.base_offset());
        // The first batch may begin before the log's start.
        if batch.last_offset() < self.end_offset {
            return Err(ProducerError::OutOfOrder { offset, end_offset: self.end_offset });
        }
        let completed = if producer_id < 0 {
            None
        } else if batch.is_control() {
            let marker = read_marker(batch)?;
            self.touch(producer_id);
            marker.and_then(|marker| self.end_txn(batch, marker))
        } else {
            self.append(batch)?;
            None
        };
        self.end_offset = batch.next_offset();
        Ok(completed)
    }

    fn touch(&mut self, producer_id: i64) -> &mut ProducerEntry {
        self.max_producer_id = self.max_producer_id.max(Some(producer_id));
        self.producers.entry(producer_id).or_insert_with(|| ProducerEntry::new(producer_id))
    }

    fn append(&mut self, batch: &Batch<'_>) -> Result<(), ProducerError> {
        let (producer_id, offset) = (batch.producer_id(), batch.base_offset());
        let entry = self.touch(producer_id);
        if entry.current_txn_first_offset.is_some() && !batch.is_transactional() {
            return Err(ProducerError::NotTransactional { producer_id, offset });
        }
        entry.set_epoch(batch.producer_epoch());
        entry.last_sequence = batch.last_sequence();
        entry.last_offset = batch.last_offset();
        entry.offset_delta = batch.last_offset_delta();
        entry.timestamp = batch.max_timestamp();
        if batch.is_transactional() && entry.current_txn_first_offset.is_none() {
            entry.current_txn_first_offset = Some(offset);
            self.open.insert(offset, producer_id);
        }
        Ok(())
    }

    fn end_txn(&mut self, batch: &Batch<'_>, marker: EndTxnMarker) -> Option<CompletedTxn> {
        let (producer_id, marker_offset) = (batch.producer_id(), batch.base_offset());
        let entry = self.touch(producer_id);
        entry.set_epoch(batch.producer_epoch());
        entry.coordinator_epoch = marker.coordinator_epoch;
        // A marker batch has one record, so this is its timestamp.
        entry.timestamp = batch.max_timestamp();
        // A marker without data before it changes nothing for readers.
        let first_offset = entry.current_txn_first_offset.take()?;
        self.open.remove(&first_offset);
        Some(CompletedTxn {
            producer_id,
            first_offset,
            marker_offset,
            commit: marker.commit,
            last_stable_offset: self.open.keys().next().copied().unwrap_or(marker_offset + 1),
        })
    }

    /// Forgets producers that have no transaction open and wrote last before `timestamp`, in milliseconds, as
    /// brokers do after `producer.id.expiration.ms`.
    pub fn expire(&mut self, timestamp: i64) {
        self.producers.retain(|_, entry| entry.current_txn_first_offset.is_some() || entry.timestamp >= timestamp);
    }

    /// The first offset that is not taken in.
    pub fn end_offset(&self) -> i64 {
        self.end_offset
    }

    /// The offset before which every transaction is decided; the end offset if none is open.
    pub fn last_stable_offset(&self) -> i64 {
        self.open.keys().next().copied().unwrap_or(self.end_offset)
    }

    /// The open transactions, in the order in which they began.
    pub fn open_transactions(&self) -> impl Iterator<Item = OpenTxn> + '_ {
        self.open.iter().map(|(&first_offset, producer_id)| {
            let entry = &self.producers[producer_id];
            OpenTxn {
                producer_id: entry.producer_id,
                producer_epoch: entry.epoch,
                coordinator_epoch: entry.coordinator_epoch,
                first_offset,
                last_timestamp: entry.timestamp,
            }
        })
    }

    /// What is known of each producer, by id.
    pub fn producers(&self) -> impl ExactSizeIterator<Item = &ProducerEntry> {
        self.producers.values()
    }

    /// What is known of one producer.
    pub fn producer(&self, producer_id: i64) -> Option<&ProducerEntry> {
        self.producers.get(&producer_id)
    }

    /// The greatest producer id seen, forgotten ones included.
    pub fn max_producer_id(&self) -> Option<i64> {
        self.max_producer_id
    }

    /// The snapshot that belongs at the end offset.
    pub fn snapshot(&self) -> ProducerSnapshot {
        ProducerSnapshot { entries: self.producers.values().cloned().collect() }
    }
}

/// The marker in a control batch; `None` if the cleaner has removed it with its whole transaction.
fn read_marker(batch: &Batch<'_>) -> Result<Option<EndTxnMarker>, ProducerError> {
    let (producer_id, offset) = (batch.producer_id(), batch.base_offset());
    if batch.record_count() == 0 {
        return Ok(None);
    }
    let marker = batch.end_txn_marker().map_err(|source| ProducerError::Batch { offset, source })?;
    marker.map(Some).ok_or(ProducerError::NoMarker { producer_id, offset })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{BatchBuilder, end_txn_marker_batch};

    fn data(offset: i64, producer_id: i64, records: i64) -> Vec<u8> {
        let mut batch = BatchBuilder::new(offset, 0).transactional().producer(producer_id, 0, 0);
        (0..records).for_each(|i| batch.push(1000 + offset + i, None, Some(b"v"), &[]));
        batch.build()
    }

    fn marker(offset: i64, producer_id: i64, producer_epoch: i16, commit: bool) -> Vec<u8> {
        let marker = EndTxnMarker { commit, coordinator_epoch: 5 };
        end_txn_marker_batch(offset, 0, 1000 + offset, producer_id, producer_epoch, marker)
    }

    fn apply(state: &mut ProducerState, batch: &[u8]) -> Result<Option<CompletedTxn>, ProducerError> {
        state.apply(&Batch::parse(batch).unwrap())
    }

    #[test]
    fn abort_gives_the_next_open_transaction_as_last_stable_offset() {
        let mut state = ProducerState::new(0);
        assert_eq!(apply(&mut state, &data(0, 1, 3)), Ok(None));
        assert_eq!(apply(&mut state, &data(3, 2, 2)), Ok(None));
        assert_eq!(state.last_stable_offset(), 0);
        let first = apply(&mut state, &marker(5, 1, 0, false)).unwrap().unwrap();
        let entry = AbortedTxn { producer_id: 1, first_offset: 0, last_offset: 5, last_stable_offset: 3 };
        assert_eq!(first.aborted(), Some(entry));
        let second = apply(&mut state, &marker(6, 2, 0, true)).unwrap().unwrap();
        assert_eq!((second.aborted(), second.last_stable_offset), (None, 7));
        assert_eq!((state.last_stable_offset(), state.max_producer_id()), (7, Some(2)));
    }

    #[test]
    fn open_transaction_tells_what_a_marker_needs() {
        let mut state = ProducerState::new(10);
        apply(&mut state, &marker(10, 7, 3, true)).unwrap();
        apply(&mut state, &data(11, 7, 2)).unwrap();
        let open =
            OpenTxn { producer_id: 7, producer_epoch: 0, coordinator_epoch: 5, first_offset: 11, last_timestamp: 1012 };
        assert_eq!(state.open_transactions().collect::<Vec<_>>(), [open]);
        let again = ProducerState::from_snapshot(&state.snapshot(), state.end_offset());
        assert_eq!(again.open_transactions().collect::<Vec<_>>(), [open]);
    }

    #[test]
    fn marker_of_a_new_epoch_forgets_the_last_sequence() {
        let mut state = ProducerState::new(0);
        apply(&mut state, &data(0, 1, 3)).unwrap();
        assert_eq!(state.producer(1).unwrap().last_sequence, 2);
        apply(&mut state, &marker(3, 1, 1, true)).unwrap();
        let entry = state.producer(1).unwrap();
        assert_eq!((entry.epoch, entry.last_sequence, entry.last_offset, entry.timestamp), (1, -1, -1, 1003));
    }

    #[test]
    fn marker_without_data_ends_nothing() {
        let mut state = ProducerState::new(0);
        assert_eq!(apply(&mut state, &marker(0, 1, 0, false)), Ok(None));
        assert_eq!(state.end_offset(), 1);
    }

    #[test]
    fn plain_write_inside_a_transaction_is_refused() {
        let mut state = ProducerState::new(0);
        apply(&mut state, &data(0, 1, 1)).unwrap();
        let plain = BatchBuilder::new(1, 0).producer(1, 0, 1).record(5, None, None).build();
        assert_eq!(apply(&mut state, &plain), Err(ProducerError::NotTransactional { producer_id: 1, offset: 1 }));
        assert_eq!(state.end_offset(), 1);
        assert_eq!(apply(&mut state, &data(0, 1, 1)), Err(ProducerError::OutOfOrder { offset: 0, end_offset: 1 }));
    }

    #[test]
    fn idle_producers_expire_unless_in_a_transaction() {
        let mut state = ProducerState::new(0);
        apply(&mut state, &data(0, 1, 1)).unwrap();
        apply(&mut state, &marker(1, 2, 0, true)).unwrap();
        state.expire(1_000_000);
        assert_eq!(state.producers().map(|p| p.producer_id).collect::<Vec<_>>(), [1]);
        assert_eq!(state.max_producer_id(), Some(2));
    }

    #[test]
    fn snapshot_without_producers_has_ten_bytes() {
        let bytes = ProducerSnapshot::default().encode();
        assert_eq!(bytes.len(), 10);
        assert_eq!(ProducerSnapshot::decode(&bytes), Ok(ProducerSnapshot::default()));
        assert_eq!(ProducerSnapshot::decode(&bytes[..9]), Err(SnapshotError::BadLength { len: 9, count: 0 }));
    }

    prop_compose! {
        fn entry()(
            producer_id: i64, epoch: i16, last_sequence: i32, last_offset: i64, offset_delta: i32, timestamp: i64,
            coordinator_epoch: i32, current_txn_first_offset in prop::option::of(0i64..),
        ) -> ProducerEntry {
            ProducerEntry {
                producer_id, epoch, last_sequence, last_offset, offset_delta, timestamp, coordinator_epoch,
                current_txn_first_offset,
            }
        }
    }

    proptest! {
        #[test]
        fn snapshots_read_back_and_flips_are_noticed(
            entries in prop::collection::vec(entry(), 0..20), at: prop::sample::Index, bit in 0u8..8,
        ) {
            let snapshot = ProducerSnapshot { entries };
            let mut bytes = snapshot.encode();
            prop_assert_eq!(ProducerSnapshot::decode(&bytes), Ok(snapshot));
            let at = at.index(bytes.len());
            prop_assert!(ProducerSnapshot::decode(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(ProducerSnapshot::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
            let _ = ProducerSnapshot::decode(&bytes);
        }
    }
}
