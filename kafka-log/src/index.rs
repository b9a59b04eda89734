//! The three indexes beside a segment (`OffsetIndex`, `TimeIndex`, `TransactionIndex`).
//!
//! ```text
//! .index      8 bytes each  i32 offset - base | i32 position of a batch
//! .timeindex 12 bytes each  i64 largest timestamp so far, ms | i32 offset - base of the batch that has it
//! .txnindex  34 bytes each  i16 version = 0 | i64 producer id | i64 first offset | i64 offset of the ABORT marker
//!                           | i64 last stable offset after it
//! ```
//!
//! They have no header and no checksum, so all that can be checked is that sizes fit and values rise. While a
//! segment is active Kafka keeps the first two preallocated, zero behind the last entry: decoding leaves those
//! zeros out. A reader may trust an offset index only this far: a position is the start of a batch, and the batch
//! that holds the offset begins there or later (entries differ between versions, replicas and restarts).

use thiserror::Error;

/// Bytes of an offset index entry.
pub const OFFSET_ENTRY_LEN: usize = 8;
/// Bytes of a time index entry.
pub const TIME_ENTRY_LEN: usize = 12;
/// Bytes of a transaction index entry.
pub const TXN_ENTRY_LEN: usize = 34;

/// The only version of a transaction index entry (`AbortedTxn.CURRENT_VERSION`).
const TXN_VERSION: i16 = 0;

/// What is wrong with an index. Entries are counted from 0.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IndexError {
    /// The file cannot be cut into entries.
    #[error("{len} bytes are no multiple of the {entry_len} of an entry")]
    BadLength {
        /// Bytes of the file.
        len: usize,
        /// Bytes of an entry.
        entry_len: usize,
    },
    /// An entry has an impossible value.
    #[error("entry {entry} has the impossible {field} {value}")]
    BadValue {
        /// Which entry.
        entry: usize,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// Entries must rise and this one does not.
    #[error("entry {entry} has the {field} {value} after {previous}")]
    NotRising {
        /// Which entry.
        entry: usize,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: i64,
        /// Its value in the entry before.
        previous: i64,
    },
}

/// Where to look for an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetEntry {
    /// An offset; the batch that holds it begins at `position` or later.
    pub offset: i64,
    /// Start of a batch in the segment, in bytes.
    pub position: i32,
}

impl OffsetEntry {
    /// The entry in the index of the segment at `base_offset`.
    ///
    /// # Panics
    /// If the offset does not lie within `i32::MAX` of the base.
    pub fn encode(&self, base_offset: i64) -> [u8; OFFSET_ENTRY_LEN] {
        let mut out = [0; OFFSET_ENTRY_LEN];
        out[..4].copy_from_slice(&relative(self.offset, base_offset).to_be_bytes());
        out[4..].copy_from_slice(&self.position.to_be_bytes());
        out
    }
}

/// The largest timestamp up to an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeEntry {
    /// Largest timestamp of all records up to `offset`, in milliseconds.
    pub timestamp: i64,
    /// Last offset of the batch that has it.
    pub offset: i64,
}

impl TimeEntry {
    /// The entry in the index of the segment at `base_offset`.
    ///
    /// # Panics
    /// If the offset does not lie within `i32::MAX` of the base.
    pub fn encode(&self, base_offset: i64) -> [u8; TIME_ENTRY_LEN] {
        let mut out = [0; TIME_ENTRY_LEN];
        out[..8].copy_from_slice(&self.timestamp.to_be_bytes());
        out[8..].copy_from_slice(&relative(self.offset, base_offset).to_be_bytes());
        out
    }
}

/// A transaction that was aborted; consumers of committed records skip what it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTxn {
    /// Who wrote it.
    pub producer_id: i64,
    /// Its first offset in the partition.
    pub first_offset: i64,
    /// Offset of its ABORT marker; decides in which segment's index the entry belongs.
    pub last_offset: i64,
    /// The last stable offset once it was aborted: where the next transaction began that was open then, or
    /// the offset behind the marker.
    pub last_stable_offset: i64,
}

impl AbortedTxn {
    /// The entry as it is in a transaction index.
    pub fn encode(&self) -> [u8; TXN_ENTRY_LEN] {
        let mut out = [0; TXN_ENTRY_LEN];
        out[..2].copy_from_slice(&TXN_VERSION.to_be_bytes());
        let fields = [self.producer_id, self.first_offset, self.last_offset, self.last_stable_offset];
        for (slot, field) in out[2..].chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_be_bytes());
        }
        out
    }
}

/// Decodes the `.index` of the segment at `base_offset`, without the zeros behind the last entry.
///
/// Offsets must rise; positions must rise, too, and none is 0, since an entry is written only once there are
/// bytes before its batch.
pub fn decode_offset_index(base_offset: i64, bytes: &[u8]) -> Result<Vec<OffsetEntry>, IndexError> {
    let mut entries: Vec<OffsetEntry> = Vec::new();
    for (entry, raw) in without_zero_tail(entries_of::<OFFSET_ENTRY_LEN>(bytes)?).iter().enumerate() {
        let offset = i32::from_be_bytes(*raw.first_chunk().expect("8 bytes"));
        let position = i32::from_be_bytes(*raw.last_chunk().expect("8 bytes"));
        let found = OffsetEntry { offset: absolute(entry, offset, base_offset)?, position };
        if position <= 0 {
            return Err(IndexError::BadValue { entry, field: "position", value: position.into() });
        }
        if let Some(previous) = entries.last() {
            check_rising(entry, "offset", previous.offset, found.offset)?;
            check_rising(entry, "position", previous.position.into(), position.into())?;
        }
        entries.push(found);
    }
    Ok(entries)
}

/// Decodes the `.timeindex` of the segment at `base_offset`, without the zeros behind the last entry.
///
/// Timestamps must rise and offsets must not fall. A file of one entry that is all zeros is that entry: one
/// record of 1970.
pub fn decode_time_index(base_offset: i64, bytes: &[u8]) -> Result<Vec<TimeEntry>, IndexError> {
    let raw = entries_of::<TIME_ENTRY_LEN>(bytes)?;
    let raw = if raw.len() == 1 { raw } else { without_zero_tail(raw) };
    let mut entries: Vec<TimeEntry> = Vec::new();
    for (entry, raw) in raw.iter().enumerate() {
        let timestamp = i64::from_be_bytes(*raw.first_chunk().expect("12 bytes"));
        let offset = absolute(entry, i32::from_be_bytes(*raw.last_chunk().expect("12 bytes")), base_offset)?;
        if timestamp < 0 {
            return Err(IndexError::BadValue { entry, field: "timestamp", value: timestamp });
        }
        if let Some(previous) = entries.last() {
            check_rising(entry, "timestamp", previous.timestamp, timestamp)?;
            if offset < previous.offset {
                check_rising(entry, "offset", previous.offset, offset)?;
            }
        }
        entries.push(TimeEntry { timestamp, offset });
    }
    Ok(entries)
}

/// Decodes a `.txnindex`. The offsets of the ABORT markers must rise.
pub fn decode_txn_index(bytes: &[u8]) -> Result<Vec<AbortedTxn>, IndexError> {
    let mut entries: Vec<AbortedTxn> = Vec::new();
    for (entry, raw) in entries_of::<TXN_ENTRY_LEN>(bytes)?.iter().enumerate() {
        let version = i16::from_be_bytes([raw[0], raw[1]]);
        if version != TXN_VERSION {
            return Err(IndexError::BadValue { entry, field: "version", value: version.into() });
        }
        let field = |i: usize| i64::from_be_bytes(*raw[2 + 8 * i..].first_chunk().expect("34 bytes"));
        let txn = AbortedTxn {
            producer_id: field(0),
            first_offset: field(1),
            last_offset: field(2),
            last_stable_offset: field(3),
        };
        for (field, value) in [
            ("producer id", txn.producer_id),
            ("first offset", txn.first_offset),
            ("last stable offset", txn.last_stable_offset),
        ] {
            if value < 0 {
                return Err(IndexError::BadValue { entry, field, value });
            }
        }
        if txn.last_offset <= txn.first_offset {
            return Err(IndexError::BadValue { entry, field: "last offset", value: txn.last_offset });
        }
        if let Some(previous) = entries.last() {
            check_rising(entry, "last offset", previous.last_offset, txn.last_offset)?;
        }
        entries.push(txn);
    }
    Ok(entries)
}

fn entries_of<const N: usize>(bytes: &[u8]) -> Result<&[[u8; N]], IndexError> {
    match bytes.as_chunks() {
        (entries, []) => Ok(entries),
        _ => Err(IndexError::BadLength { len: bytes.len(), entry_len: N }),
    }
}

fn without_zero_tail<const N: usize>(entries: &[[u8; N]]) -> &[[u8; N]] {
    let len = entries.iter().rposition(|entry| *entry != [0; N]).map_or(0, |last| last + 1);
    &entries[..len]
}

fn absolute(entry: usize, relative: i32, base_offset: i64) -> Result<i64, IndexError> {
    let value = i64::from(relative);
    base_offset.checked_add(value).filter(|_| value >= 0).ok_or(IndexError::BadValue {
        entry,
        field: "relative offset",
        value,
    })
}

fn relative(offset: i64, base_offset: i64) -> i32 {
    let relative = offset.checked_sub(base_offset).filter(|relative| *relative >= 0);
    relative.and_then(|relative| i32::try_from(relative).ok()).expect("an offset within the segment")
}

fn check_rising(entry: usize, field: &'static str, previous: i64, value: i64) -> Result<(), IndexError> {
    if value <= previous {
        return Err(IndexError::NotRising { entry, field, value, previous });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offset_index(entries: &[(i64, i32)]) -> Vec<u8> {
        entries.iter().flat_map(|&(offset, position)| OffsetEntry { offset, position }.encode(100)).collect()
    }

    fn time_index(entries: &[(i64, i64)]) -> Vec<u8> {
        entries.iter().flat_map(|&(timestamp, offset)| TimeEntry { timestamp, offset }.encode(100)).collect()
    }

    #[test]
    fn preallocated_zeros_are_no_entries() {
        let mut index = offset_index(&[(110, 5000), (120, 9000)]);
        index.resize(8 * 1000, 0);
        assert_eq!(decode_offset_index(100, &index).unwrap().len(), 2);
        assert_eq!(decode_time_index(100, &[0; 12 * 1000]), Ok(vec![]));
        assert_eq!(decode_offset_index(100, &[]), Ok(vec![]));
    }

    #[test]
    fn one_zero_time_entry_is_a_record_of_1970() {
        assert_eq!(decode_time_index(7, &[0; 12]), Ok(vec![TimeEntry { timestamp: 0, offset: 7 }]));
    }

    #[test]
    fn damage_is_named_with_its_entry() {
        let bad = |entry, field, value| IndexError::BadValue { entry, field, value };
        let falls = |field, value, previous| IndexError::NotRising { entry: 1, field, value, previous };
        assert_eq!(decode_offset_index(100, &[1; 9]), Err(IndexError::BadLength { len: 9, entry_len: 8 }));
        assert_eq!(decode_offset_index(100, &offset_index(&[(105, 0)])), Err(bad(0, "position", 0)));
        assert_eq!(
            decode_offset_index(100, &offset_index(&[(110, 5000), (110, 6000)])),
            Err(falls("offset", 110, 110))
        );
        assert_eq!(
            decode_offset_index(100, &offset_index(&[(110, 5000), (111, 4000)])),
            Err(falls("position", 4000, 5000))
        );
        assert_eq!(decode_time_index(100, &time_index(&[(5, 110), (4, 120)])), Err(falls("timestamp", 4, 5)));
        assert_eq!(decode_time_index(100, &time_index(&[(5, 110), (6, 109)])), Err(falls("offset", 109, 110)));
        assert_eq!(decode_offset_index(i64::MAX, &[255; 8]), Err(bad(0, "relative offset", -1)));
        let mut txn = AbortedTxn { producer_id: 1, first_offset: 2, last_offset: 3, last_stable_offset: 4 }.encode();
        txn[1] = 1;
        assert_eq!(decode_txn_index(&txn), Err(bad(0, "version", 1)));
    }

    proptest! {
        #[test]
        fn entries_read_back(base in 0i64..1 << 40, gaps in prop::collection::vec((1i64..1000, 1i32..100_000), 0..50)) {
            let (mut offset, mut position) = (base, 0);
            let entries: Vec<_> = gaps.iter().map(|gap| {
                offset += gap.0;
                position += gap.1;
                (OffsetEntry { offset, position }, TimeEntry { timestamp: position.into(), offset })
            }).collect();
            let txns: Vec<_> = entries.iter().map(|(e, _)| AbortedTxn {
                producer_id: e.position.into(), first_offset: e.offset - 1, last_offset: e.offset, last_stable_offset: e.offset + 1,
            }).collect();
            let index: Vec<u8> = entries.iter().flat_map(|e| e.0.encode(base)).collect();
            let times: Vec<u8> = entries.iter().flat_map(|e| e.1.encode(base)).collect();
            let aborted: Vec<u8> = txns.iter().flat_map(AbortedTxn::encode).collect();
            prop_assert_eq!(decode_offset_index(base, &index), Ok(entries.iter().map(|e| e.0).collect()));
            prop_assert_eq!(decode_time_index(base, &times), Ok(entries.iter().map(|e| e.1).collect()));
            prop_assert_eq!(decode_txn_index(&aborted), Ok(txns));
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes: Vec<u8>, base: i64) {
            let _ = (decode_offset_index(base, &bytes), decode_time_index(base, &bytes), decode_txn_index(&bytes));
        }
    }
}
