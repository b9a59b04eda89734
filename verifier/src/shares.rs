//! L2: the states of share groups can be read, and those that reach beyond the end of their partition are known, so that a
//! restore clamps them.

use std::collections::{BTreeMap, HashMap};

use segvault_kafka_log::batch::Batch;
use segvault_kafka_log::share::{ShareKey, SharePartitionKey, ShareValue, StateBatch};
use segvault_kafka_log::{TopicPartition, Uuid};

use crate::flaws::Flaws;

/// Follows one partition of `__share_group_state`.
#[derive(Debug, Default)]
pub struct Shares {
    states: HashMap<SharePartitionKey, State>,
    early_access: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// The first offset that may still be delivered.
    start_offset: i64,
    /// The last offset of which something is known; -1 if there is none.
    last_offset: i64,
}

impl Shares {
    /// The next batch.
    pub fn apply(&mut self, batch: &Batch<'_>, place: &TopicPartition, flaws: &mut Flaws) {
        if batch.is_control() {
            return;
        }
        let records = match batch.records() {
            Ok(records) => records,
            Err(error) => return flaws.add(2, place, format!("the batch at offset {}: {error}", batch.base_offset())),
        };
        for record in records {
            let taken = record.map_err(|error| error.to_string()).and_then(|record| {
                let at = record.offset;
                let key = ShareKey::decode(record.key.as_deref().unwrap_or_default());
                let key = key.map_err(|error| format!("the key at offset {at}: {error}"))?;
                let value = record.value.as_deref().map(|bytes| ShareValue::decode(&key, bytes)).transpose();
                let value = value.map_err(|error| format!("the value at offset {at}: {error}"))?;
                self.take(key, value).map_err(|what| format!("the value at offset {at} {what}"))
            });
            if let Err(what) = taken {
                flaws.add(2, place, what);
            }
        }
    }

    fn take(&mut self, key: ShareKey, value: Option<ShareValue>) -> Result<(), &'static str> {
        let (ShareKey::Snapshot(key) | ShareKey::Update(key)) = key else { return Ok(()) };
        let last = |batches: &[StateBatch]| batches.iter().map(|batch| batch.last_offset).max().unwrap_or(-1);
        match value {
            Some(ShareValue::Snapshot(value)) => {
                let state = State { start_offset: value.start_offset, last_offset: last(&value.state_batches) };
                self.states.insert(key, state);
            }
            Some(ShareValue::Update(value)) => {
                let state = self.states.entry(key).or_insert(State { start_offset: -1, last_offset: -1 });
                if value.start_offset != -1 {
                    state.start_offset = value.start_offset;
                }
                state.last_offset = state.last_offset.max(last(&value.state_batches));
            }
            Some(ShareValue::EarlyAccess(_)) => self.early_access += 1,
            Some(ShareValue::Raw(_)) => return Err("has a version that is not known"),
            None => _ = self.states.remove(&key),
        }
        Ok(())
    }

    /// How many share partitions there are.
    pub fn count(&self) -> usize {
        self.states.len()
    }

    /// Says which states reach beyond the ends of their partitions; how many there are.
    pub fn judge(&self, ends: &BTreeMap<(Uuid, i32), (TopicPartition, i64)>, flaws: &mut Flaws) -> usize {
        if self.early_access > 0 {
            let count = self.early_access;
            flaws.note(format!(
                "{count} records of share groups are of Kafka 4.0's early access, and were not looked at"
            ));
        }
        let mut count = 0;
        for (SharePartitionKey { group, topic_id, partition }, state) in &self.states {
            let Some((name, end)) = ends.get(&(*topic_id, *partition)) else { continue };
            let State { start_offset, last_offset } = state;
            if start_offset > end {
                flaws.note(format!(
                    "share group {group} is at offset {start_offset} of {name}: a restore sets it to the end, {end}"
                ));
            } else if last_offset >= end && last_offset >= start_offset {
                flaws.note(format!(
                    "share group {group} knows of records of {name} up to offset {last_offset}: a restore takes back \
                     what lies beyond the end, {end}"
                ));
            } else {
                continue;
            }
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests;
