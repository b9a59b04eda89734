//! What `__consumer_offsets`, `__share_group_state` and `__transaction_state` have in common.
//!
//! All are topics of a coordinator: which partition an id belongs to follows from its hash, and the last
//! record of a key counts. Keys begin with an int16 that says what the record is, values with their version.

use thiserror::Error;

use crate::{
    batch::{Batch, BatchBuilder, BatchError, Record},
    wire::WireError,
};

/// Bytes after which appended records go into another batch; brokers accept 1 MiB by default (`message.max.bytes`).
const APPENDED_BATCH_LEN_MAX: usize = 512 << 10;

/// What is wrong with a batch of a coordinator's topic.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CoordinatorError {
    /// The batch is damaged.
    #[error("bad batch at offset {base_offset}")]
    Batch {
        /// Where the batch begins.
        base_offset: i64,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A record is none of the coordinator's.
    #[error("bad record at offset {offset}")]
    Record {
        /// The record's offset.
        offset: i64,
        /// What is wrong with it.
        source: WireError,
    },
}

/// The partition, of `count`, that keeps the state of a group or transactional id: `abs(id.hashCode()) % count`
/// (`GroupCoordinatorService.partitionFor`, `TransactionStateManager.partitionFor`).
///
/// # Panics
/// If `count` is 0.
pub fn partition_for(id: &str, count: u32) -> u32 {
    let hash = id.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(unit.into()));
    // Kafka's `Utils.abs` turns the one number without a counterpart into 0.
    hash.checked_abs().unwrap_or(0).unsigned_abs() % count
}

/// The records of a batch.
pub(crate) fn records<'a>(
    batch: &Batch<'a>,
) -> Result<impl Iterator<Item = Result<Record, CoordinatorError>> + use<'a>, CoordinatorError> {
    let base_offset = batch.base_offset();
    let at = move |source| CoordinatorError::Batch { base_offset, source };
    Ok(batch.records().map_err(at)?.map(move |record| record.map_err(at)))
}

/// Batches of no transaction with `records` (keys and values), as many as it takes; empty without any.
pub(crate) fn record_batches(
    base_offset: i64,
    leader_epoch: i32,
    now: i64,
    records: impl Iterator<Item = (Vec<u8>, Vec<u8>)>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut next_offset = base_offset;
    let mut batch = BatchBuilder::new(next_offset, leader_epoch);
    for (key, value) in records {
        batch.push(now, Some(&key), Some(&value), &[]);
        next_offset += 1;
        if batch.size() > APPENDED_BATCH_LEN_MAX {
            let full = std::mem::replace(&mut batch, BatchBuilder::new(next_offset, leader_epoch));
            out.extend(full.build());
        }
    }
    if batch.record_count() > 0 {
        out.extend(batch.build());
    }
    out
}

/// Files that the tests of groups and transactions read.
#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests read real files")]
pub(crate) mod test_util {
    /// Keys and values of a file of `tests/data/records`: each behind its length as an int32.
    pub(crate) fn every_record(file: &'static [u8]) -> Vec<(&'static [u8], &'static [u8])> {
        let mut rest = file;
        let mut next = || {
            let (len, tail) = rest.split_first_chunk()?;
            let (bytes, tail) = tail.split_at(u32::from_be_bytes(*len) as usize);
            rest = tail;
            Some(bytes)
        };
        std::iter::from_fn(|| Some((next()?, next()?))).collect()
    }

    /// A segment of a real broker.
    pub(crate) fn real_batches(path: &str) -> Vec<u8> {
        let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        std::fs::read(data.join(path)).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes as `String.hashCode` gives them.
    #[test]
    fn ids_belong_to_the_partitions_that_java_gives_them() {
        for (id, partition) in [
            ("", 0),
            ("a", 47),
            ("group-classic", 24),
            ("hällo wörld", 18),
            ("\u{1F600}", 49),
            ("polygenelubricants", 0), // hash i32::MIN
        ] {
            assert_eq!(partition_for(id, 50), partition, "{id}");
        }
    }
}
