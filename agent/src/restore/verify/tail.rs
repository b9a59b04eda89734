//! The end of a log, replayed: its last batches, what the epoch checkpoint says of them, and the producer snapshot that
//! a broker begins with.
//!
//! Some 64 KiB of a log are read for it, from a batch on that its offset index names. Of producers that wrote nothing
//! there the snapshot is believed: it has a CRC of its own.

use std::collections::BTreeMap;
use std::path::Path;

use segvault_kafka_log::batch::Batch;
use segvault_kafka_log::checkpoint::LeaderEpochs;
use segvault_kafka_log::producer::{ProducerEntry, ProducerSnapshot, ProducerState};

use super::batches::for_each_batch;

/// Replays `log` from byte `from` on, where a batch begins. An error says what is wrong with the log or with `epochs`;
/// the answer, what `snapshot` says wrongly of producers.
pub(super) fn check(
    log: &Path,
    from: u64,
    epochs: &LeaderEpochs,
    snapshot: Option<&ProducerSnapshot>,
) -> Result<Vec<String>, String> {
    let mut tail = Tail::default();
    for_each_batch(log, from, |_, batch| tail.batch(batch, epochs))?;
    Ok(snapshot.map_or_else(Vec::new, |snapshot| tail.judge(snapshot)))
}

/// What the batches say, up to the last one.
#[derive(Default)]
struct Tail {
    /// Offset of the first batch, and the producers from there on; those as long as they can be followed.
    replayed: Option<(i64, Option<ProducerState>)>,
}

impl Tail {
    fn batch(&mut self, batch: &Batch<'_>, epochs: &LeaderEpochs) -> Result<(), String> {
        batch.check_crc().map_err(|error| error.to_string())?;
        let (offset, epoch) = (batch.base_offset(), batch.leader_epoch());
        if epochs.epoch_at(batch.last_offset()).unwrap_or(-1) < epoch {
            return Err(format!("offset {offset} has epoch {epoch}, and the epoch checkpoint a lower one or none"));
        }
        let (_, producers) = self.replayed.get_or_insert_with(|| (offset, Some(ProducerState::new(offset))));
        // A log that no broker would have written was told of when it was.
        producers.take_if(|producers| producers.apply(batch).is_err());
        Ok(())
    }

    fn judge(&self, snapshot: &ProducerSnapshot) -> Vec<String> {
        let Some((start, Some(producers))) = &self.replayed else { return Vec::new() };
        let known: BTreeMap<i64, &ProducerEntry> =
            snapshot.entries.iter().map(|entry| (entry.producer_id, entry)).collect();
        let seen = producers.producers().filter(|seen| !fits(seen, known.get(&seen.producer_id).copied(), *start));
        let unseen = known.values().filter(|known| producers.producer(known.producer_id).is_none());
        let unseen = unseen.filter(|known| known.last_offset >= *start);
        let wrong = seen.chain(unseen.copied());
        let wrong = wrong
            .map(|entry| format!("what it says of producer {} is not what the last batches say", entry.producer_id));
        wrong.collect()
    }
}

/// Whether a producer stands in the snapshot as its batches from offset `start` on leave it.
fn fits(seen: &ProducerEntry, known: Option<&ProducerEntry>, start: i64) -> bool {
    let Some(known) = known else {
        // It may have expired; not so with an open transaction.
        return seen.current_txn_first_offset.is_none();
    };
    let same_end = match seen.last_offset {
        // Markers only.
        -1 => known.last_offset < start,
        last_offset => known.last_offset == last_offset,
    };
    let same_open = match (known.current_txn_first_offset, seen.current_txn_first_offset) {
        (Some(first), Some(seen)) => first <= seen,
        (first, seen) => first == seen,
    };
    known.epoch == seen.epoch && same_end && same_open
}

#[cfg(test)]
mod tests {
    use segvault_kafka_log::batch::{BatchBuilder, EndTxnMarker, end_txn_marker_batch};

    use super::*;

    fn of_txn(offset: i64, epoch: i16) -> Vec<u8> {
        let batch = BatchBuilder::new(offset, 0).transactional().producer(7, epoch, 0);
        batch.record(1, None, Some(b"v")).build()
    }

    fn marker(offset: i64, epoch: i16) -> Vec<u8> {
        end_txn_marker_batch(offset, 0, 1, 7, epoch, EndTxnMarker { commit: true, coordinator_epoch: 1 })
    }

    fn plain(offset: i64) -> Vec<u8> {
        BatchBuilder::new(offset, 0).record(1, None, Some(b"v")).build()
    }

    /// A snapshot of producer 7.
    fn of_7(epoch: i16, last_offset: i64, open: Option<i64>) -> ProducerSnapshot {
        let entry = ProducerEntry {
            producer_id: 7,
            epoch,
            last_sequence: 0,
            last_offset,
            offset_delta: 0,
            timestamp: 1,
            coordinator_epoch: 1,
            current_txn_first_offset: open,
        };
        ProducerSnapshot { entries: vec![entry] }
    }

    fn epochs(text: &str) -> LeaderEpochs {
        LeaderEpochs::decode(text.as_bytes()).unwrap()
    }

    fn replay(batches: &[Vec<u8>], epochs: &LeaderEpochs) -> Result<Tail, String> {
        let mut tail = Tail::default();
        batches.iter().try_for_each(|bytes| tail.batch(&Batch::parse(bytes).unwrap(), epochs))?;
        Ok(tail)
    }

    #[test]
    fn the_snapshot_is_what_the_last_batches_leave() {
        let none = ProducerSnapshot::default();
        let cases = [
            ("open", vec![of_txn(20, 3)], of_7(3, 20, Some(20)), true),
            ("open since before", vec![of_txn(20, 3)], of_7(3, 20, Some(4)), true),
            ("open since later", vec![of_txn(20, 3)], of_7(3, 20, Some(21)), false),
            ("open and not known to be", vec![of_txn(20, 3)], of_7(3, 20, None), false),
            ("open and forgotten", vec![of_txn(20, 3)], none.clone(), false),
            ("another epoch", vec![of_txn(20, 3)], of_7(2, 20, Some(20)), false),
            ("an older batch", vec![of_txn(20, 3)], of_7(3, 9, Some(9)), false),
            ("ended", vec![of_txn(20, 3), marker(21, 3)], of_7(3, 20, None), true),
            ("ended and said to be open", vec![of_txn(20, 3), marker(21, 3)], of_7(3, 20, Some(20)), false),
            ("ended and expired", vec![of_txn(20, 3), marker(21, 3)], none.clone(), true),
            ("the end alone", vec![marker(20, 3)], of_7(3, 9, None), true),
            ("the end alone, fenced", vec![marker(20, 4)], of_7(4, -1, None), true),
            ("the end alone and said to be open", vec![marker(20, 3)], of_7(3, 9, Some(9)), false),
            ("wrote before", vec![plain(20)], of_7(3, 9, Some(9)), true),
            ("a batch that is not there", vec![plain(20)], of_7(3, 20, None), false),
            ("no batches", vec![], of_7(3, 9, Some(9)), true),
            ("nobody", vec![plain(20)], none, true),
        ];
        for (what, batches, snapshot, is_right) in cases {
            let tail = replay(&batches, &epochs("0\n1\n0 0\n")).unwrap();
            assert_eq!(tail.judge(&snapshot).is_empty(), is_right, "{what}");
        }
    }

    #[test]
    fn the_epoch_checkpoint_knows_the_epochs_of_the_last_batches() {
        let batch = BatchBuilder::new(20, 5).record(1, None, Some(b"v")).build();
        for (text, is_right) in [
            ("0\n2\n3 0\n5 20\n", true),
            ("0\n1\n5 0\n", true),
            ("0\n1\n3 0\n", false),
            ("0\n2\n3 0\n5 21\n", false),
            ("0\n0\n", false),
        ] {
            assert_eq!(replay(std::slice::from_ref(&batch), &epochs(text)).is_ok(), is_right, "{text:?}");
        }
    }

    #[test]
    fn every_batch_of_the_tail_is_checked() {
        let mut first = plain(20);
        *first.last_mut().unwrap() ^= 1;
        let error = replay(&[first, plain(21)], &epochs("0\n1\n0 0\n")).err().unwrap();
        assert!(error.contains("crc"), "{error}");
    }
}
