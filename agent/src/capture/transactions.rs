//! Replays a pinned partition of the transaction log.

use std::collections::BTreeMap;

use segvault_kafka_log::batch::{Batch, BatchHeader};
use segvault_kafka_log::transactions::{
    TransactionLogValue, TransactionRecord as LogRecord, TransactionState as LogState, transaction_records,
};
use segvault_proto::{TransactionLogCopy, TransactionRecord, TransactionState};

use super::ReplicaError;
use crate::pinned::{PinnedReplica, PinnedSegment, SegmentReader};
use crate::sample::{Headers, WalkError};

/// Reads all of `replica`. What lies below `first_mark_offset` is reduced to the last record of each id.
pub(crate) fn read(replica: &PinnedReplica, first_mark_offset: i64) -> Result<TransactionLogCopy, ReplicaError> {
    let mut at_first = BTreeMap::new();
    let mut copy = TransactionLogCopy {
        partition: replica.partition,
        at_first: Vec::new(),
        records: Vec::new(),
        max_producer_id: -1,
    };
    for segment in &replica.segments {
        each_batch(segment, |batch| {
            let records = transaction_records(batch).map_err(|error| error.to_string())?;
            for record in records {
                let max = record.value.as_ref().map_or(-1, max_producer_id);
                copy.max_producer_id = copy.max_producer_id.max(max);
                let record = convert(record)?;
                if record.offset < first_mark_offset {
                    at_first.insert(record.transactional_id.clone(), record);
                } else {
                    copy.records.push(record);
                }
            }
            Ok(())
        })?;
    }
    copy.at_first = at_first.into_values().collect();
    Ok(copy)
}

fn each_batch(
    segment: &PinnedSegment,
    mut visit: impl FnMut(&Batch<'_>) -> Result<(), String>,
) -> Result<(), ReplicaError> {
    let path = &segment.source;
    let failed = |error: WalkError| match error {
        WalkError::Io(source) => ReplicaError::Io { path: path.clone(), source },
        error => ReplicaError::damaged(path, error),
    };
    let reader = segment.open().map_err(|error| failed(error.into()))?;
    let mut headers = Headers::new(|buf: &mut [u8], at| reader.read_exact_at(buf, at), 0, segment.len);
    let mut bytes = Vec::new();
    while let Some((position, header)) = headers.next().map_err(failed)? {
        let visited = read_batch(&reader, position, &header, &mut bytes).and_then(|batch| visit(&batch));
        visited.map_err(|what| ReplicaError::damaged(path, format_args!("{what} in the batch at byte {position}")))?;
    }
    if headers.position() != segment.len {
        return Err(ReplicaError::damaged(path, format_args!("no batch begins at byte {}", headers.position())));
    }
    Ok(())
}

fn read_batch<'a>(
    reader: &SegmentReader<'_>,
    position: u64,
    header: &BatchHeader,
    bytes: &'a mut Vec<u8>,
) -> Result<Batch<'a>, String> {
    bytes.resize(header.size(), 0);
    reader.read_exact_at(bytes, position).map_err(|error| error.to_string())?;
    let batch = Batch::parse(bytes).map_err(|error| error.to_string())?;
    batch.check_crc().map_err(|error| error.to_string())?;
    Ok(batch)
}

fn max_producer_id(value: &TransactionLogValue) -> i64 {
    value.producer_id.max(value.previous_producer_id).max(value.next_producer_id)
}

fn convert(record: LogRecord) -> Result<TransactionRecord, String> {
    let LogRecord { offset, transactional_id, value, .. } = record;
    let Some(value) = value else {
        let partitions = Vec::new();
        let (producer_id, producer_epoch, state) = (-1, -1, None);
        return Ok(TransactionRecord { offset, transactional_id, producer_id, producer_epoch, state, partitions });
    };
    let state = match value.state() {
        Some(LogState::Empty) => TransactionState::Empty,
        Some(LogState::Ongoing) => TransactionState::Ongoing,
        Some(LogState::PrepareCommit) => TransactionState::PrepareCommit,
        Some(LogState::PrepareAbort) => TransactionState::PrepareAbort,
        Some(LogState::CompleteCommit) => TransactionState::CompleteCommit,
        Some(LogState::CompleteAbort) => TransactionState::CompleteAbort,
        None => {
            return Err(format!("unknown transaction state {} of {transactional_id}", value.transaction_status));
        }
    };
    Ok(TransactionRecord {
        offset,
        producer_id: value.producer_id,
        producer_epoch: value.producer_epoch,
        state: Some(state),
        partitions: value.partitions().map(|partition| (partition.topic, partition.partition)).collect(),
        transactional_id,
    })
}
