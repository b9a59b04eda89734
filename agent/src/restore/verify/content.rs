//! Reads every batch of a partition and holds what lies beside the log against it.

use std::collections::BTreeMap;
use std::path::Path;

use segvault_kafka_log::batch::Batch;
use segvault_kafka_log::checkpoint::LeaderEpochs;
use segvault_kafka_log::index::{AbortedTxn, OffsetEntry, decode_offset_index, decode_txn_index};
use segvault_kafka_log::names::{LEADER_EPOCH_CHECKPOINT, SegmentFile, SegmentFileKind, segment_file_name};
use segvault_kafka_log::producer::{ProducerSnapshot, ProducerState};

use super::batches::for_each_batch;
use super::{Findings, segment_files};

/// Checks the partition in `dir`. Gives up on it at the first batch that is wrong.
pub(super) fn check(dir: &Path, findings: &mut Findings) {
    // What is foreign has been found before.
    let files = segment_files(dir, &mut Findings::default());
    let mut bases = offsets_of(&files, SegmentFileKind::Log);
    bases.sort_unstable();
    let Some(first_base) = bases.first().copied() else {
        return;
    };
    let path = dir.join(LEADER_EPOCH_CHECKPOINT);
    let epochs = findings.decode(&path, LeaderEpochs::decode);
    let mut walk =
        Walk { end_offset: first_base, epochs: epochs.unwrap_or_default(), producers: ProducerState::new(first_base) };
    for base in bases {
        let log = dir.join(segment_file_name(base, SegmentFileKind::Log));
        let aborted = match walk.segment(dir, base, &log) {
            Ok(aborted) => aborted,
            Err(why) => return findings.add(&log, why),
        };
        check_aborted(dir, base, &aborted, &files, findings);
    }
    let snapshots = offsets_of(&files, SegmentFileKind::Snapshot);
    if snapshots.contains(&walk.end_offset) {
        check_producers(dir, &walk, findings);
    }
}

fn offsets_of(files: &[SegmentFile], kind: SegmentFileKind) -> Vec<i64> {
    let files = files.iter().filter(|file| file.kind == kind);
    files.map(|file| file.base_offset).collect()
}

struct Walk {
    end_offset: i64,
    epochs: LeaderEpochs,
    producers: ProducerState,
}

impl Walk {
    /// Goes through the segment's batches, and says which transactions are aborted in it.
    fn segment(&mut self, dir: &Path, base: i64, log: &Path) -> Result<Vec<AbortedTxn>, String> {
        let index = dir.join(segment_file_name(base, SegmentFileKind::OffsetIndex));
        let index = std::fs::read(&index).map_err(|error| error.to_string())?;
        // That the index itself makes sense is checked elsewhere.
        let mut index = decode_offset_index(base, &index).unwrap_or_default().into_iter().peekable();
        let mut aborted = Vec::new();
        for_each_batch(log, 0, |position, batch| {
            batch.check_crc().map_err(|error| error.to_string())?;
            self.batch(batch)?;
            let ended = self.producers.apply(batch).map_err(|error| error.to_string())?;
            aborted.extend(ended.and_then(|txn| txn.aborted()));
            match index.peek() {
                Some(OffsetEntry { position: at, .. }) if u64::from(at.unsigned_abs()) < position => {
                    Err(format!("its index names byte {at}, where no batch begins"))
                }
                Some(entry) if u64::from(entry.position.unsigned_abs()) == position => {
                    let offset = entry.offset;
                    index.next();
                    // Up to 3.9 an entry's offset may lie in a later batch, never in an earlier one.
                    if offset < batch.base_offset() {
                        return Err(format!("its index looks for offset {offset} behind it"));
                    }
                    Ok(())
                }
                _ => Ok(()),
            }
        })?;
        self.end_offset = self.end_offset.max(base);
        Ok(aborted)
    }

    fn batch(&mut self, batch: &Batch<'_>) -> Result<(), String> {
        let (offset, epoch) = (batch.base_offset(), batch.leader_epoch());
        if batch.last_offset() < self.end_offset {
            return Err(format!("offset {offset} does not rise"));
        }
        self.end_offset = batch.next_offset();
        if self.epochs.epoch_at(batch.last_offset()).is_some_and(|known| known < epoch) {
            return Err(format!("offset {offset} has epoch {epoch}, and the epoch checkpoint a lower one"));
        }
        Ok(())
    }
}

/// A missing entry makes aborted records visible, and Kafka does not notice.
fn check_aborted(dir: &Path, base: i64, aborted: &[AbortedTxn], files: &[SegmentFile], findings: &mut Findings) {
    let path = dir.join(segment_file_name(base, SegmentFileKind::TxnIndex));
    let mut entries = Vec::new();
    if offsets_of(files, SegmentFileKind::TxnIndex).contains(&base) {
        entries = findings.decode(&path, decode_txn_index).unwrap_or_default();
    }
    let known: BTreeMap<i64, AbortedTxn> = entries.into_iter().map(|txn| (txn.last_offset, txn)).collect();
    for txn in aborted {
        let same = known
            .get(&txn.last_offset)
            .is_some_and(|known| (known.producer_id, known.first_offset) == (txn.producer_id, txn.first_offset));
        if !same {
            findings.add(
                &path,
                format!(
                    "lacks the transaction of producer {} that was aborted at offset {}",
                    txn.producer_id, txn.last_offset
                ),
            );
        }
    }
}

/// Producers that the snapshot does not have may have expired; none may with an open transaction.
fn check_producers(dir: &Path, walk: &Walk, findings: &mut Findings) {
    let path = dir.join(segment_file_name(walk.end_offset, SegmentFileKind::Snapshot));
    let Some(snapshot) = findings.decode(&path, ProducerSnapshot::decode) else {
        return;
    };
    let known: BTreeMap<i64, _> = snapshot.entries.iter().map(|entry| (entry.producer_id, entry)).collect();
    for entry in walk.producers.producers() {
        let id = entry.producer_id;
        match known.get(&id) {
            None if entry.current_txn_first_offset.is_none() => {}
            Some(known)
                if (known.epoch, known.last_offset, known.current_txn_first_offset)
                    == (entry.epoch, entry.last_offset, entry.current_txn_first_offset) => {}
            _ => findings.add(&path, format!("what it says of producer {id} is not what the batches say")),
        }
    }
}
