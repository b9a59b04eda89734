//! L2: committed offsets can be read, and those beyond the end of their partition are known, so that a restore clamps
//! them.

use std::collections::{BTreeMap, HashMap};

use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::batch::Batch;
use segvault_kafka_log::groups::{GroupKey, GroupValue, OffsetCommitKey};

use crate::flaws::Flaws;

/// Follows one partition of `__consumer_offsets`.
#[derive(Debug, Default)]
pub struct Offsets {
    committed: HashMap<OffsetCommitKey, Commit>,
    /// Commits of open transactions, by producer.
    pending: HashMap<i64, Vec<(OffsetCommitKey, Commit)>>,
}

/// An offset, and where it was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Commit {
    offset: i64,
    at: i64,
}

impl Offsets {
    /// The next batch.
    pub fn apply(&mut self, batch: &Batch<'_>, place: &TopicPartition, flaws: &mut Flaws) {
        if batch.is_control() {
            if let Ok(Some(marker)) = batch.end_txn_marker() {
                let pending = self.pending.remove(&batch.producer_id()).unwrap_or_default();
                pending.into_iter().filter(|_| marker.commit).for_each(|(key, commit)| self.commit(key, commit));
            }
            return;
        }
        let records = match batch.records() {
            Ok(records) => records,
            Err(error) => return flaws.add(2, place, format!("the batch at offset {}: {error}", batch.base_offset())),
        };
        for record in records {
            let taken = record.map_err(|error| error.to_string()).and_then(|record| {
                let at = record.offset;
                let key = GroupKey::decode(record.key.as_deref().unwrap_or_default());
                let key = key.map_err(|error| format!("the key at offset {at}: {error}"))?;
                let value = record.value.as_deref().map(|bytes| GroupValue::decode(&key, bytes)).transpose();
                let value = value.map_err(|error| format!("the value at offset {at}: {error}"))?;
                Ok((at, key, value))
            });
            match taken {
                Ok((at, GroupKey::OffsetCommit { key, .. }, Some(GroupValue::OffsetCommit(value)))) => {
                    let commit = Commit { offset: value.offset, at };
                    if batch.is_transactional() {
                        self.pending.entry(batch.producer_id()).or_default().push((key, commit));
                    } else {
                        self.commit(key, commit);
                    }
                }
                Ok((_, GroupKey::OffsetCommit { key, .. }, _)) => {
                    self.committed.remove(&key);
                    self.pending.values_mut().for_each(|commits| commits.retain(|(pending, _)| *pending != key));
                }
                Ok(_) => {}
                Err(what) => flaws.add(2, place, what),
            }
        }
    }

    /// What was committed later stands, also where a transaction that began before ends after it.
    fn commit(&mut self, key: OffsetCommitKey, commit: Commit) {
        let newest = self.committed.entry(key).or_insert(commit);
        if newest.at <= commit.at {
            *newest = commit;
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.committed.len()
    }

    /// Says which offsets lie beyond the ends of their partitions; how many there are.
    pub fn judge(&self, ends: &BTreeMap<TopicPartition, i64>, flaws: &mut Flaws) -> usize {
        let beyond = self.committed.iter().filter_map(|(key, commit)| {
            let end = *ends.get(&key.partition)?;
            (commit.offset > end).then_some((key, commit.offset, end))
        });
        let mut count = 0;
        for (key, offset, end) in beyond {
            count += 1;
            let OffsetCommitKey { group, partition } = key;
            flaws.note(format!(
                "group {group} is at offset {offset} of {partition}: a restore sets it to the end, {end}"
            ));
        }
        count
    }
}

#[cfg(test)]
mod tests;
