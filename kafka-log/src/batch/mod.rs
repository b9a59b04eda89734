//! A read-only view of one Kafka record batch (magic 2, `DefaultRecordBatch`).
//!
//! The bytes are borrowed and never re-encoded: a snapshot keeps what Kafka wrote. The CRC starts at
//! `attributes`, so base offset, length, leader epoch and magic are *not* covered by it; callers hold those
//! against the segment's name, the neighbours and the leader-epoch checkpoint.
//!
//! ```text
//!  0  base offset             i64   set by the leader        \
//!  8  length after this field i32                             | not under the CRC
//! 12  partition leader epoch  i32   set by the leader         |
//! 16  magic = 2               i8                             /
//! 17  crc-32c of 21..         u32
//! 21  attributes              i16   0-2 codec, 3 LogAppendTime, 4 transactional, 5 control, 6 delete horizon
//! 23  last offset delta       i32
//! 27  base timestamp, ms      i64   the delete horizon if bit 6 is set
//! 35  max timestamp, ms       i64
//! 43  producer id             i64   -1 none
//! 51  producer epoch          i16   -1 none
//! 53  base sequence           i32   -1 none
//! 57  record count            i32   may be 0 after compaction
//! 61  records, compressed as one block
//! ```
//!
//! Message sets of magic 0 and 1 are recognised by the byte at 16, which all versions share, and reported as
//! [`BatchError::LegacyMagic`]: no supported broker writes them, but old logs may still hold them.

mod builder;
mod records;
#[cfg(test)]
mod tests;

use std::{fmt, ops::Deref};

use thiserror::Error;

pub use builder::{BatchBuilder, end_txn_marker_batch};
pub use records::{MAX_RECORDS_LEN, Record, RecordHeader, Records};

/// Bytes before the first record. Fixed since magic 2 (`DefaultRecordBatch.RECORD_BATCH_OVERHEAD`).
pub const HEADER_LEN: usize = 61;

/// Bytes of base offset and length, which the length does not count (`Records.LOG_OVERHEAD`).
pub const LOG_OVERHEAD: usize = 12;

/// Where the bytes under the CRC begin.
const CRC_START: usize = 21;

/// Bytes that show the magic, whatever it is.
const MAGIC_END: usize = 17;

/// The smallest length field of a magic 0 message set (`LegacyRecord.RECORD_OVERHEAD_V0`).
const LEGACY_LENGTH_MIN: i32 = 14;

/// The smallest length field of a batch: a header without records.
const LENGTH_MIN: i32 = (HEADER_LEN - LOG_OVERHEAD) as i32;

/// Producer id, epoch or sequence that stands for "none" (`RecordBatch.NO_PRODUCER_ID`, `NO_SEQUENCE`).
const NONE: i32 = -1;

const COMPRESSION_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const DELETE_HORIZON: i16 = 0x40;

/// What is wrong with the bytes of a batch. Positions are the caller's to add.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// The bytes end before the batch does. Normal at the tail of an active segment and damage anywhere else:
    /// only the caller knows which. `needed` comes from the length field, so hold it against the file's end
    /// before reading or allocating that much.
    #[error("batch is cut short: it needs {needed} bytes")]
    Truncated {
        /// Bytes from the batch's start to its end, or to the end of its header where that is not there yet.
        needed: usize,
    },
    /// The header is all zeros: the preallocated end of a segment, where no batch has been written.
    #[error("no batch here: the bytes are zero")]
    AllZero,
    /// A message set of magic 0 or 1.
    #[error("message set of magic {0}, the format before Kafka 0.11: only magic 2 is supported")]
    LegacyMagic(u8),
    /// No batch of any version begins here.
    #[error("unknown batch magic {0}")]
    BadMagic(u8),
    /// The length field is below the smallest legal one.
    #[error("impossible batch length {0}")]
    BadLength(i32),
    /// A header field has a value that no batch has.
    #[error("impossible {field} {value} in a batch header")]
    BadField {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The bytes are not those that the CRC was computed over.
    #[error("batch crc is {stored:#010x}, its bytes give {computed:#010x}")]
    BadCrc {
        /// The CRC in the header.
        stored: u32,
        /// The CRC of the bytes.
        computed: u32,
    },
    /// The codec in the attributes is none that Kafka knows.
    #[error("unknown compression codec {0}")]
    BadCompression(u8),
    /// The records do not decompress.
    #[error("{codec} records do not decompress: {reason}")]
    BadCompressed {
        /// The batch's codec.
        codec: Compression,
        /// What the codec said.
        reason: String,
    },
    /// The records are longer than the reader wanted to hold.
    #[error("records decompress to more than {limit} bytes")]
    TooLong {
        /// The limit that was given.
        limit: usize,
    },
    /// A record is malformed.
    #[error("record {index} of the batch is malformed: {reason}")]
    BadRecord {
        /// The record's place in the batch, from 0.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The record of a control batch is malformed.
    #[error("malformed control record: {0}")]
    BadControl(&'static str),
}

/// How the records of a batch are compressed (`CompressionType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Snappy, in the framing of xerial's snappy-java or raw.
    Snappy,
    /// LZ4 frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        })
    }
}

/// What a control record says (`ControlRecordType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControlType {
    /// A transaction ended and its records are void.
    Abort,
    /// A transaction ended and its records count.
    Commit,
    /// KRaft: a leader was elected.
    LeaderChange,
    /// KRaft: a metadata snapshot begins.
    SnapshotHeader,
    /// KRaft: a metadata snapshot ends.
    SnapshotFooter,
    /// KRaft: the version of the quorum's protocol.
    KraftVersion,
    /// KRaft: the voters.
    KraftVoters,
    /// One that this code does not know; Kafka skips these.
    Unknown(i16),
}

impl ControlType {
    /// Reads the key of a control record: version int16 (0 or more), type int16, maybe more from newer versions.
    pub fn parse(key: &[u8]) -> Result<Self, BatchError> {
        let [v0, v1, t0, t1, ..] = *key else {
            return Err(BatchError::BadControl("its key is shorter than 4 bytes"));
        };
        if i16::from_be_bytes([v0, v1]) < 0 {
            return Err(BatchError::BadControl("its key has a negative version"));
        }
        Ok(match i16::from_be_bytes([t0, t1]) {
            0 => ControlType::Abort,
            1 => ControlType::Commit,
            2 => ControlType::LeaderChange,
            3 => ControlType::SnapshotHeader,
            4 => ControlType::SnapshotFooter,
            5 => ControlType::KraftVersion,
            6 => ControlType::KraftVoters,
            other => ControlType::Unknown(other),
        })
    }

    /// The type's number on disk.
    pub fn id(self) -> i16 {
        match self {
            ControlType::Abort => 0,
            ControlType::Commit => 1,
            ControlType::LeaderChange => 2,
            ControlType::SnapshotHeader => 3,
            ControlType::SnapshotFooter => 4,
            ControlType::KraftVersion => 5,
            ControlType::KraftVoters => 6,
            ControlType::Unknown(id) => id,
        }
    }
}

/// The end of a producer's transaction in one partition (`EndTransactionMarker`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndTxnMarker {
    /// Whether the transaction was committed; aborted otherwise.
    pub commit: bool,
    /// Epoch of the transaction coordinator that decided it.
    pub coordinator_epoch: i32,
}

/// The 61 bytes before the records, checked by [`BatchHeader::parse`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    bytes: [u8; HEADER_LEN],
}

impl BatchHeader {
    /// Looks at the header that starts `bytes`; what follows it need not be there.
    ///
    /// Checks length, magic and that offsets and counts are possible, so that the arithmetic of the methods
    /// cannot overflow. Whether the bytes are those that were written only [`Batch::check_crc`] can tell.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        if bytes.len() >= LOG_OVERHEAD && bytes.iter().take(HEADER_LEN).all(|b| *b == 0) {
            return Err(BatchError::AllZero);
        }
        if bytes.len() < MAGIC_END {
            return Err(BatchError::Truncated { needed: HEADER_LEN });
        }
        let length = i32::from_be_bytes(array(bytes, 8));
        let length_min = match bytes[16] {
            0 | 1 => LEGACY_LENGTH_MIN,
            2 => LENGTH_MIN,
            magic => return Err(BatchError::BadMagic(magic)),
        };
        if length < length_min {
            return Err(BatchError::BadLength(length));
        }
        if bytes[16] < 2 {
            return Err(BatchError::LegacyMagic(bytes[16]));
        }
        let Some(bytes) = bytes.first_chunk() else {
            return Err(BatchError::Truncated { needed: HEADER_LEN });
        };
        let header = BatchHeader { bytes: *bytes };
        header.check_fields()?;
        Ok(header)
    }

    fn check_fields(&self) -> Result<(), BatchError> {
        let bad = |field, value| Err(BatchError::BadField { field, value });
        let delta = self.last_offset_delta();
        if delta < 0 {
            return bad("last offset delta", delta.into());
        }
        if self.base_offset() < 0 || self.base_offset() > i64::MAX - i64::from(delta) - 1 {
            return bad("base offset", self.base_offset());
        }
        if self.i32_at(57) < 0 {
            return bad("record count", self.i32_at(57).into());
        }
        Ok(())
    }

    /// Offset of the first record that the producer sent in this batch; compaction may have removed it.
    pub fn base_offset(&self) -> i64 {
        self.i64_at(0)
    }

    /// Offset of the last record that the producer sent in this batch; compaction keeps it as it is.
    pub fn last_offset(&self) -> i64 {
        self.base_offset() + i64::from(self.last_offset_delta())
    }

    /// The first offset after this batch.
    pub fn next_offset(&self) -> i64 {
        self.last_offset() + 1
    }

    /// Last offset minus base offset.
    pub fn last_offset_delta(&self) -> i32 {
        self.i32_at(23)
    }

    /// Bytes of the whole batch, base offset and length included; 61 or more.
    pub fn size(&self) -> usize {
        LOG_OVERHEAD + usize::try_from(self.i32_at(8)).expect("checked by parse")
    }

    /// Epoch of the partition leader that appended the batch; not under the CRC.
    pub fn leader_epoch(&self) -> i32 {
        self.i32_at(12)
    }

    /// The CRC-32C that the header states.
    pub fn crc(&self) -> u32 {
        u32::from_be_bytes(array(&self.bytes, 17))
    }

    /// All attribute bits.
    pub fn attributes(&self) -> i16 {
        i16::from_be_bytes(array(&self.bytes, 21))
    }

    /// The codec of the records.
    pub fn compression(&self) -> Result<Compression, BatchError> {
        match self.attributes() & COMPRESSION_MASK {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Gzip),
            2 => Ok(Compression::Snappy),
            3 => Ok(Compression::Lz4),
            4 => Ok(Compression::Zstd),
            other => Err(BatchError::BadCompression(other as u8)),
        }
    }

    /// Whether timestamps are those of the broker's append; then [`Self::max_timestamp`] is every record's.
    pub fn is_log_append_time(&self) -> bool {
        self.attributes() & LOG_APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction; its end markers do, too.
    pub fn is_transactional(&self) -> bool {
        self.attributes() & TRANSACTIONAL != 0
    }

    /// Whether the records are Kafka's own and hidden from consumers.
    pub fn is_control(&self) -> bool {
        self.attributes() & CONTROL != 0
    }

    /// When the cleaner may drop this batch's tombstones or marker, in milliseconds, once it has decided.
    pub fn delete_horizon(&self) -> Option<i64> {
        (self.attributes() & DELETE_HORIZON != 0).then(|| self.base_timestamp())
    }

    /// What records' timestamps are counted from, in milliseconds; -1 in an emptied batch.
    pub fn base_timestamp(&self) -> i64 {
        self.i64_at(27)
    }

    /// The greatest timestamp of the records, in milliseconds; -1 if they have none.
    pub fn max_timestamp(&self) -> i64 {
        self.i64_at(35)
    }

    /// The producer's id, -1 if it has none.
    pub fn producer_id(&self) -> i64 {
        self.i64_at(43)
    }

    /// The producer's epoch, -1 if it has none.
    pub fn producer_epoch(&self) -> i16 {
        i16::from_be_bytes(array(&self.bytes, 51))
    }

    /// Sequence number of the first record, -1 if there is none (no idempotence, or a control batch).
    pub fn base_sequence(&self) -> i32 {
        self.i32_at(53)
    }

    /// Sequence number of the last record, -1 if there is none. After `i32::MAX` comes 0
    /// (`DefaultRecordBatch.incrementSequence`).
    pub fn last_sequence(&self) -> i32 {
        match self.base_sequence() {
            NONE => NONE,
            base => base.wrapping_add(self.last_offset_delta()) & i32::MAX,
        }
    }

    /// Records in the batch; 0 if compaction emptied it.
    pub fn record_count(&self) -> usize {
        usize::try_from(self.i32_at(57)).expect("checked by parse")
    }

    fn i32_at(&self, at: usize) -> i32 {
        i32::from_be_bytes(array(&self.bytes, at))
    }

    fn i64_at(&self, at: usize) -> i64 {
        i64::from_be_bytes(array(&self.bytes, at))
    }
}

impl fmt::Debug for BatchHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchHeader")
            .field("offsets", &(self.base_offset()..=self.last_offset()))
            .field("size", &self.size())
            .field("leader_epoch", &self.leader_epoch())
            .field("attributes", &format_args!("{:#04x}", self.attributes()))
            .field("max_timestamp", &self.max_timestamp())
            .field("producer", &(self.producer_id(), self.producer_epoch(), self.base_sequence()))
            .field("records", &self.record_count())
            .finish_non_exhaustive()
    }
}

/// A whole batch whose length and magic have been checked, and whose CRC has not.
///
/// It is its header, too: all of [`BatchHeader`]'s methods can be called on it.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    header: BatchHeader,
    bytes: &'a [u8],
}

impl Deref for Batch<'_> {
    type Target = BatchHeader;

    fn deref(&self) -> &BatchHeader {
        &self.header
    }
}

impl<'a> Batch<'a> {
    /// Looks at the batch that starts `bytes`; more bytes may follow it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let needed = header.size();
        let bytes = bytes.get(..needed).ok_or(BatchError::Truncated { needed })?;
        Ok(Batch { header, bytes })
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// All bytes of the batch, as they are on disk.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Computes the CRC of the bytes and holds it against the header's.
    pub fn check_crc(&self) -> Result<(), BatchError> {
        let (stored, computed) = (self.crc(), crc32c(&self.bytes[CRC_START..]));
        if stored != computed {
            return Err(BatchError::BadCrc { stored, computed });
        }
        Ok(())
    }

    /// The records, decompressed into at most [`MAX_RECORDS_LEN`] bytes.
    pub fn records(&self) -> Result<Records<'a>, BatchError> {
        self.records_within(MAX_RECORDS_LEN)
    }

    /// The records, decompressed into at most `limit` bytes.
    pub fn records_within(&self, limit: usize) -> Result<Records<'a>, BatchError> {
        Records::new(&self.header, &self.bytes[HEADER_LEN..], limit)
    }

    /// What the first record of a control batch says; `None` for other batches and for emptied ones.
    pub fn control_type(&self) -> Result<Option<ControlType>, BatchError> {
        Ok(self.control_record()?.map(|(control, _)| control))
    }

    /// The transaction marker that this batch is, if it is one.
    pub fn end_txn_marker(&self) -> Result<Option<EndTxnMarker>, BatchError> {
        let Some((control @ (ControlType::Abort | ControlType::Commit), record)) = self.control_record()? else {
            return Ok(None);
        };
        let value = record.value.unwrap_or_default();
        let [v0, v1, e0, e1, e2, e3, ..] = value[..] else {
            return Err(BatchError::BadControl("its value is shorter than 6 bytes"));
        };
        if i16::from_be_bytes([v0, v1]) < 0 {
            return Err(BatchError::BadControl("its value has a negative version"));
        }
        Ok(Some(EndTxnMarker {
            commit: control == ControlType::Commit,
            coordinator_epoch: i32::from_be_bytes([e0, e1, e2, e3]),
        }))
    }

    fn control_record(&self) -> Result<Option<(ControlType, Record)>, BatchError> {
        if !self.is_control() {
            return Ok(None);
        }
        let Some(record) = self.records()?.next().transpose()? else {
            return Ok(None);
        };
        let key = record.key.as_deref().ok_or(BatchError::BadControl("it has no key"))?;
        Ok(Some((ControlType::parse(key)?, record)))
    }
}

/// The batches of a slice, each with its position.
///
/// Ends behind the last batch, or with the first error; [`Batches::position`] then says where that is.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    bytes: &'a [u8],
    position: usize,
    failed: bool,
}

impl<'a> Batches<'a> {
    /// Walks `bytes`, which begin with a batch.
    pub fn new(bytes: &'a [u8]) -> Self {
        Batches { bytes, position: 0, failed: false }
    }

    /// Where the next batch begins, or the one that failed.
    pub fn position(&self) -> usize {
        self.position
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<(usize, Batch<'a>), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.position..];
        if self.failed || rest.is_empty() {
            return None;
        }
        let parsed = Batch::parse(rest);
        let position = self.position;
        match &parsed {
            Ok(batch) => self.position += batch.size(),
            Err(_) => self.failed = true,
        }
        Some(parsed.map(|batch| (position, batch)))
    }
}

/// CRC-32C (Castagnoli), as batches and producer snapshots carry it.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The `N` bytes at `at`, which the caller knows to be there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("within the header")
}
