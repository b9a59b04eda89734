//! Who appended a record, as Kafka's own dump tool says: producer, epoch and sequence number.
//!
//! A broker takes no sequence number twice from one producer epoch. But librdkafka begins a new epoch after some errors of a
//! broker that died, and sends again, under it, what was in flight and may have been written
//! (`rd_kafka_idemp_drain_epoch_bump`): then a record is in the log twice by its client's doing.

use crate::{Cluster, Result};
use std::{collections::BTreeMap, fs};

/// Where a record stands in what its producer wrote: producer id, epoch, sequence number.
pub type Sequence = (i64, i64, i64);

/// Batches of a partition, by base offset: last offset, and the first record's sequence.
pub struct Appended(BTreeMap<i64, (i64, Sequence)>);

impl Appended {
    /// Reads what a replica of a partition has on disk.
    pub fn read(cluster: &Cluster, topic: &str, partition: i32) -> Result<Self> {
        let (_, dir) = cluster.replica_dirs(topic, partition)?.pop().ok_or("there is no replica")?;
        let mut segments = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                segments.push(path.display().to_string());
            }
        }
        let package = if cluster.is_at_least(4, 3) { "org.apache.kafka.tools" } else { "kafka.tools" };
        let dumped = cluster.tool(&format!("{package}.DumpLogSegments"), &["--files", &segments.join(",")])?;
        Ok(Self(dumped.lines().filter_map(batch).collect()))
    }

    /// Where the record at an offset stands; nothing if it is not there, or of no producer with a state.
    pub fn sequence(&self, offset: i64) -> Option<Sequence> {
        let (base, (last, (producer_id, epoch, first))) = self.0.range(..=offset).next_back()?;
        (offset <= *last && *first >= 0).then_some((*producer_id, *epoch, first + offset - base))
    }
}

/// A line of the tool that tells of a batch.
fn batch(line: &str) -> Option<(i64, (i64, Sequence))> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let value = |name: &str| words.windows(2).find(|pair| pair[0] == name)?[1].parse::<i64>().ok();
    let sequence = (value("producerId:")?, value("producerEpoch:")?, value("baseSequence:")?);
    Some((value("baseOffset:")?, (value("lastOffset:")?, sequence)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stand_where_their_batches_say() {
        let dump = "Dumping /d/t-0/0.log\nLog starting offset: 0\n\
            baseOffset: 5 lastOffset: 7 count: 3 baseSequence: 10 lastSequence: 12 producerId: 4 producerEpoch: 1 partitionLeaderEpoch: 0 isTransactional: false\n\
            baseOffset: 8 lastOffset: 8 count: 1 baseSequence: -1 lastSequence: -1 producerId: -1 producerEpoch: -1 partitionLeaderEpoch: 0\n";
        let appended = Appended(dump.lines().filter_map(batch).collect());
        assert_eq!(
            [4, 5, 7, 8, 9].map(|offset| appended.sequence(offset)),
            [None, Some((4, 1, 10)), Some((4, 1, 12)), None, None]
        );
    }
}
