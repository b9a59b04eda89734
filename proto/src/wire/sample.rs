//! What agents see of replicas and of the transaction log: the values of `segvault_alignment::sample`.

use super::{Problem, WireError, all, each, not_empty, not_negative, required, short, uuid};
use crate::rpc;
use crate::{
    LogPosition, OpenTransaction, ProducerEvent, ReplicaSample, TransactionLogCopy, TransactionRecord, TransactionState,
};

impl From<LogPosition> for rpc::LogPosition {
    fn from(LogPosition { last_epoch, end_offset }: LogPosition) -> Self {
        Self { last_epoch, end_offset }
    }
}

impl TryFrom<rpc::LogPosition> for LogPosition {
    type Error = WireError;

    fn try_from(rpc::LogPosition { last_epoch, end_offset }: rpc::LogPosition) -> Result<Self, WireError> {
        Ok(Self { last_epoch, end_offset: not_negative("LogPosition.end_offset", end_offset)? })
    }
}

impl From<ReplicaSample> for rpc::ReplicaSample {
    fn from(sample: ReplicaSample) -> Self {
        let epoch_start = |(epoch, start_offset)| rpc::EpochStart { epoch, start_offset };
        Self {
            topic: sample.topic,
            topic_id: sample.topic_id.0.to_vec(),
            partition: sample.partition,
            dir: sample.dir,
            log_start_offset: sample.log_start_offset,
            high_watermark: sample.high_watermark,
            active_base_offset: sample.active_base_offset,
            position: Some(sample.position.into()),
            epochs: sample.epochs.into_iter().map(epoch_start).collect(),
            lost_from: sample.lost_from,
            unusable: sample.unusable,
        }
    }
}

impl TryFrom<rpc::ReplicaSample> for ReplicaSample {
    type Error = WireError;

    fn try_from(sample: rpc::ReplicaSample) -> Result<Self, WireError> {
        let lost_from = sample.lost_from.map(|offset| not_negative("ReplicaSample.lost_from", offset));
        Ok(Self {
            topic: not_empty("ReplicaSample.topic", sample.topic)?,
            topic_id: uuid("ReplicaSample.topic_id", &sample.topic_id)?,
            partition: not_negative("ReplicaSample.partition", sample.partition)?,
            dir: sample.dir,
            log_start_offset: not_negative("ReplicaSample.log_start_offset", sample.log_start_offset)?,
            high_watermark: not_negative("ReplicaSample.high_watermark", sample.high_watermark)?,
            active_base_offset: not_negative("ReplicaSample.active_base_offset", sample.active_base_offset)?,
            position: required("ReplicaSample.position", sample.position)?,
            epochs: epochs(&sample.epochs)?,
            lost_from: lost_from.transpose()?,
            unusable: sample.unusable,
        })
    }
}

/// An epoch history, in which others search as in an ordered list.
fn epochs(entries: &[rpc::EpochStart]) -> Result<Vec<(i32, i64)>, WireError> {
    if let Some(first) = entries.first() {
        not_negative("EpochStart.start_offset", first.start_offset)?;
    }
    let rises = |pair: &[rpc::EpochStart]| pair[0].epoch < pair[1].epoch && pair[0].start_offset < pair[1].start_offset;
    match entries.windows(2).position(|pair| !rises(pair)) {
        Some(index) => Err(WireError::new("ReplicaSample.epochs", Problem::NotRising(index + 1))),
        None => Ok(entries.iter().map(|entry| (entry.epoch, entry.start_offset)).collect()),
    }
}

impl From<TransactionLogCopy> for rpc::TransactionLogCopy {
    fn from(copy: TransactionLogCopy) -> Self {
        Self {
            partition: copy.partition,
            at_first: all(copy.at_first),
            records: all(copy.records),
            max_producer_id: copy.max_producer_id,
        }
    }
}

impl TryFrom<rpc::TransactionLogCopy> for TransactionLogCopy {
    type Error = WireError;

    fn try_from(copy: rpc::TransactionLogCopy) -> Result<Self, WireError> {
        Ok(Self {
            partition: not_negative("TransactionLogCopy.partition", copy.partition)?,
            at_first: each(copy.at_first)?,
            records: each(copy.records)?,
            max_producer_id: copy.max_producer_id,
        })
    }
}

impl From<TransactionRecord> for rpc::TransactionRecord {
    fn from(record: TransactionRecord) -> Self {
        let topic_partition = |(topic, partition)| rpc::TopicPartition { topic, partition };
        Self {
            offset: record.offset,
            transactional_id: record.transactional_id,
            producer_id: record.producer_id,
            producer_epoch: record.producer_epoch.into(),
            state: record.state.map(|state| from_state(state).into()),
            partitions: record.partitions.into_iter().map(topic_partition).collect(),
        }
    }
}

impl TryFrom<rpc::TransactionRecord> for TransactionRecord {
    type Error = WireError;

    fn try_from(record: rpc::TransactionRecord) -> Result<Self, WireError> {
        Ok(Self {
            offset: not_negative("TransactionRecord.offset", record.offset)?,
            transactional_id: record.transactional_id,
            producer_id: record.producer_id,
            producer_epoch: short("TransactionRecord.producer_epoch", record.producer_epoch)?,
            state: record.state.map(to_state).transpose()?,
            partitions: record.partitions.into_iter().map(topic_partition).collect::<Result<_, _>>()?,
        })
    }
}

fn topic_partition(partition: rpc::TopicPartition) -> Result<(String, i32), WireError> {
    let number = not_negative("TopicPartition.partition", partition.partition)?;
    Ok((not_empty("TopicPartition.topic", partition.topic)?, number))
}

fn from_state(state: TransactionState) -> rpc::TransactionState {
    match state {
        TransactionState::Empty => rpc::TransactionState::Empty,
        TransactionState::Ongoing => rpc::TransactionState::Ongoing,
        TransactionState::PrepareCommit => rpc::TransactionState::PrepareCommit,
        TransactionState::PrepareAbort => rpc::TransactionState::PrepareAbort,
        TransactionState::CompleteCommit => rpc::TransactionState::CompleteCommit,
        TransactionState::CompleteAbort => rpc::TransactionState::CompleteAbort,
    }
}

fn to_state(value: i32) -> Result<TransactionState, WireError> {
    match rpc::TransactionState::try_from(value) {
        Ok(rpc::TransactionState::Empty) => Ok(TransactionState::Empty),
        Ok(rpc::TransactionState::Ongoing) => Ok(TransactionState::Ongoing),
        Ok(rpc::TransactionState::PrepareCommit) => Ok(TransactionState::PrepareCommit),
        Ok(rpc::TransactionState::PrepareAbort) => Ok(TransactionState::PrepareAbort),
        Ok(rpc::TransactionState::CompleteCommit) => Ok(TransactionState::CompleteCommit),
        Ok(rpc::TransactionState::CompleteAbort) => Ok(TransactionState::CompleteAbort),
        Ok(rpc::TransactionState::Unspecified) | Err(_) => {
            Err(WireError::new("TransactionRecord.state", Problem::UnknownValue(value)))
        }
    }
}

impl From<ProducerEvent> for rpc::ProducerEvent {
    fn from(event: ProducerEvent) -> Self {
        Self {
            offset: event.offset,
            producer_id: event.producer_id,
            producer_epoch: event.producer_epoch.into(),
            is_marker: event.is_marker,
        }
    }
}

impl TryFrom<rpc::ProducerEvent> for ProducerEvent {
    type Error = WireError;

    fn try_from(event: rpc::ProducerEvent) -> Result<Self, WireError> {
        Ok(Self {
            offset: not_negative("ProducerEvent.offset", event.offset)?,
            producer_id: event.producer_id,
            producer_epoch: short("ProducerEvent.producer_epoch", event.producer_epoch)?,
            is_marker: event.is_marker,
        })
    }
}

impl From<OpenTransaction> for rpc::OpenTransaction {
    fn from(open: OpenTransaction) -> Self {
        Self {
            producer_id: open.producer_id,
            producer_epoch: open.producer_epoch.into(),
            coordinator_epoch: open.coordinator_epoch,
            first_offset: open.first_offset,
        }
    }
}

impl TryFrom<rpc::OpenTransaction> for OpenTransaction {
    type Error = WireError;

    fn try_from(open: rpc::OpenTransaction) -> Result<Self, WireError> {
        Ok(Self {
            producer_id: open.producer_id,
            producer_epoch: short("OpenTransaction.producer_epoch", open.producer_epoch)?,
            coordinator_epoch: open.coordinator_epoch,
            first_offset: not_negative("OpenTransaction.first_offset", open.first_offset)?,
        })
    }
}
