//! `__transaction_state`: how far each transactional id has come.
//!
//! A key is an int16 0 and the transactional id, a value an int16 version and a `TransactionLogValue`; null deletes
//! the id. The last record of an id counts. While a transaction is open its record lists every partition that may
//! hold its data; the one that decides it (`Prepare*`) repeats them; the one that says that all markers are written
//! (`Complete*`) lists none.

use std::collections::BTreeMap;

use crate::{
    TopicPartition,
    batch::Batch,
    coordinator::{CoordinatorError, records},
    wire::{Message, Reader, Wire, WireError, Writer, message},
};

pub use crate::coordinator::partition_for;

/// The only version of keys.
const KEY_VERSION: i16 = 0;

/// Where a transactional id stands (`TransactionState`). Two more exist in memory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionState {
    /// It has a producer id, and has had no transaction since it got it.
    Empty = 0,
    /// A transaction is open.
    Ongoing = 1,
    /// It is decided that the transaction commits; markers may be missing.
    PrepareCommit = 2,
    /// It is decided that the transaction aborts; markers may be missing.
    PrepareAbort = 3,
    /// The transaction is committed, and all markers are written.
    CompleteCommit = 4,
    /// The transaction is aborted, and all markers are written.
    CompleteAbort = 5,
}

impl TransactionState {
    /// The state of that number on disk.
    pub fn from_id(id: i8) -> Option<Self> {
        use TransactionState::*;
        let all = [Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit, CompleteAbort];
        all.into_iter().find(|state| *state as i8 == id)
    }
}

message! {
    /// What is known of a transactional id. Version 1 is written with `transaction.version` 1 and later (Kafka 4.0).
    #[derive(Debug)]
    TransactionLogValue [0..=1, flexible 1] {
        /// Its producer id.
        producer_id: i64;
        /// The producer's epoch.
        producer_epoch: i16;
        /// After how long an open transaction is aborted, in milliseconds.
        transaction_timeout_ms: i32;
        /// See [`TransactionLogValue::state`].
        transaction_status: i8;
        /// The partitions of the transaction; `None` in the state Empty.
        transaction_partitions: Option<Vec<TransactionPartitions>>;
        /// When this record was made, in milliseconds.
        transaction_last_update_timestamp_ms: i64;
        /// When the transaction began, in milliseconds; -1 if there is none.
        transaction_start_timestamp_ms: i64;
    }
    tagged {
        /// The producer id before this one, -1 if there was none.
        0 => previous_producer_id: i64 = -1, since 1;
        /// The producer id that is to follow as the epochs are used up, -1 if none is.
        1 => next_producer_id: i64 = -1, since 1;
        /// The protocol of the client that made the transaction: 0, 1 or 2 (KIP-890).
        2 => client_transaction_version: i16, since 1;
        /// The epoch that is to follow. Not written up to Kafka 4.4.
        3 => next_producer_epoch: i16 = -1, since 1;
    }
}

message! {
    /// Partitions of a topic that belong to a transaction.
    #[derive(Debug)]
    TransactionPartitions {
        /// The topic's name.
        topic: String;
        /// The partitions.
        partition_ids: Vec<i32>;
    }
}

impl TransactionLogValue {
    /// The state, or `None` if the number is none that Kafka writes.
    pub fn state(&self) -> Option<TransactionState> {
        TransactionState::from_id(self.transaction_status)
    }

    /// The partitions that the record lists.
    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> {
        let topics = self.transaction_partitions.iter().flatten();
        topics.flat_map(|t| t.partition_ids.iter().map(|partition| TopicPartition::new(&t.topic, *partition)))
    }
}

/// The key of the records of a transactional id.
///
/// # Panics
/// If it is longer than 32 KiB.
pub fn encode_key(transactional_id: &str) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), 0, false);
    KEY_VERSION.write(&mut writer);
    transactional_id.to_owned().write(&mut writer);
    writer.into_bytes()
}

/// Reads a key. `None` is one of a version that this code does not know, over which Kafka passes, too.
pub fn decode_key(bytes: &[u8]) -> Result<Option<String>, WireError> {
    let mut reader = Reader::new(bytes, 0, false);
    if i16::read(&mut reader)? != KEY_VERSION {
        return Ok(None);
    }
    let transactional_id = String::read(&mut reader)?;
    reader.finish()?;
    Ok(Some(transactional_id))
}

/// A record of `__transaction_state`.
#[derive(Clone, Debug, PartialEq)]
pub struct TransactionRecord {
    /// The record's offset.
    pub offset: i64,
    /// When it was appended, in milliseconds by the coordinator's clock.
    pub timestamp: i64,
    /// The transactional id.
    pub transactional_id: String,
    /// What it says; `None` deletes the id.
    pub value: Option<TransactionLogValue>,
}

/// The records of a batch, in order. Its CRC is the caller's to check.
pub fn transaction_records(batch: &Batch<'_>) -> Result<Vec<TransactionRecord>, CoordinatorError> {
    if batch.is_control() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for record in records(batch)? {
        let record = record?;
        let offset = record.offset;
        let bad = |source| CoordinatorError::Record { offset, source };
        let Some(transactional_id) = decode_key(record.key.as_deref().unwrap_or_default()).map_err(bad)? else {
            continue;
        };
        let value = record.value.as_deref().map(TransactionLogValue::decode_prefixed);
        found.push(TransactionRecord {
            offset,
            timestamp: record.timestamp,
            transactional_id,
            value: value.transpose().map_err(bad)?,
        });
    }
    Ok(found)
}

/// What one partition of `__transaction_state` says, as a coordinator sees it after loading it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TransactionLog {
    last: BTreeMap<String, TransactionRecord>,
}

impl TransactionLog {
    /// Applies the next batch of the partition.
    pub fn apply(&mut self, batch: &Batch<'_>) -> Result<(), CoordinatorError> {
        transaction_records(batch)?.into_iter().for_each(|record| self.apply_record(record));
        Ok(())
    }

    /// Applies the next record of the partition.
    pub fn apply_record(&mut self, record: TransactionRecord) {
        if record.value.is_some() {
            self.last.insert(record.transactional_id.clone(), record);
        } else {
            self.last.remove(&record.transactional_id);
        }
    }

    /// The last record of each id that was not deleted; all have a value.
    pub fn last(&self) -> &BTreeMap<String, TransactionRecord> {
        &self.last
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        batch::{BatchBuilder, Batches},
        coordinator::test_util::{every_record, real_batches},
    };

    #[test]
    fn kafkas_records_are_written_back_byte_for_byte() {
        let records = every_record(include_bytes!("../tests/data/records/transaction-records.bin"));
        for (key, value) in &records {
            let id = decode_key(key).unwrap().unwrap();
            assert_eq!(encode_key(&id), *key);
            assert_eq!(TransactionLogValue::decode_prefixed(value).unwrap().encode_prefixed(), *value);
        }
        assert_eq!(records.len(), 4);
        let filled = TransactionLogValue::decode_prefixed(records[3].1).unwrap();
        assert_eq!((filled.version, filled.producer_id, filled.producer_epoch), (1, 9_820_000_000_000, 1281));
        assert_eq!((filled.previous_producer_id, filled.next_producer_id), (9_800_000_000_000, 9_790_000_000_000));
        assert_eq!((filled.next_producer_epoch, filled.transaction_timeout_ms), (1278, 993));
        assert_eq!(filled.state(), None);
    }

    #[test]
    fn real_partitions_replay_to_where_their_ids_stand() {
        use TransactionState::*;
        for kafka in ["3.9.1", "4.1.1", "4.3.0"] {
            let mut log = TransactionLog::default();
            let mut states = Vec::new();
            for partition in [0, 2] {
                let bytes = real_batches(&format!("{kafka}/transactions/__transaction_state-{partition}.log"));
                for (_, batch) in Batches::new(&bytes).map(Result::unwrap) {
                    log.apply(&batch).unwrap();
                    for (record, raw) in transaction_records(&batch).unwrap().iter().zip(batch.records().unwrap()) {
                        let raw = raw.unwrap();
                        assert_eq!(partition_for(&record.transactional_id, 3), partition);
                        assert_eq!(Some(encode_key(&record.transactional_id)), raw.key);
                        let value = record.value.as_ref().unwrap();
                        assert_eq!(Some(value.encode_prefixed()), raw.value);
                        states.push(value.state().unwrap());
                    }
                }
            }
            for state in [Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit, CompleteAbort] {
                assert!(states.contains(&state), "{kafka} {state:?}");
            }
            let last = |id: &str| log.last()[id].value.clone().unwrap();
            assert_eq!(last("tx-0").state(), Some(CompleteCommit));
            assert_eq!(last("tx-1").state(), Some(Ongoing));
            let open: Vec<String> = last("tx-1").partitions().map(|p| p.to_string()).collect();
            assert!(open.contains(&"wide-3".into()) && open.iter().any(|p| p.starts_with("__consumer_offsets-")));
            assert_eq!(last("tx-0").version, i16::from(kafka != "3.9.1"));
        }
    }

    #[test]
    fn the_last_record_of_an_id_counts_and_null_deletes_it() {
        let value = |producer_id| TransactionLogValue { producer_id, ..Default::default() }.encode_prefixed();
        let (key, unknown) = (encode_key("a"), [0, 5, 1]);
        let batch = BatchBuilder::new(10, 0)
            .record(3, Some(&key), Some(&value(1)))
            .record(4, Some(&unknown), Some(&[9]))
            .record(5, Some(&key), Some(&value(2)))
            .build();
        let mut log = TransactionLog::default();
        log.apply(&Batch::parse(&batch).unwrap()).unwrap();
        let last = &log.last()["a"];
        assert_eq!((last.offset, last.timestamp, last.value.as_ref().unwrap().producer_id), (12, 5, 2));
        let batch = BatchBuilder::new(13, 0).record(6, Some(&key), None).build();
        log.apply(&Batch::parse(&batch).unwrap()).unwrap();
        assert!(log.last().is_empty());
    }

    #[test]
    fn a_value_of_an_unknown_version_is_an_error() {
        let batch = BatchBuilder::new(10, 0).record(3, Some(&encode_key("a")), Some(&[0, 2, 0])).build();
        let error = CoordinatorError::Record { offset: 10, source: WireError::Version { version: 2 } };
        assert_eq!(transaction_records(&Batch::parse(&batch).unwrap()), Err(error));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_value_or_an_error(version in 0..2u8, bytes: Vec<u8>) {
            if let Ok(value) = TransactionLogValue::decode_prefixed(&[&[0, version], &bytes[..]].concat()) {
                prop_assert_eq!(TransactionLogValue::decode_prefixed(&value.encode_prefixed()), Ok(value));
            }
        }
    }
}
