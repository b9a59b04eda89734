//! One partition: its stream cut into segments again, its side files built on the way, its repairs appended.
//!
//! All replicas are written at once from one pass over the bytes. `partition.metadata` is not written here: it comes
//! when everything else is on disk, and says so.

use std::collections::BTreeMap;

use segvault_alignment::line::clamped;
use segvault_alignment::restore::{
    Ended, Finding, GROUP_TOPIC, PartitionPlan, ProducerEnd, RestorePlan, SHARE_TOPIC, Torn, TransactionIds,
    judge_state,
};
use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::batch::{Batch, Batches, EndTxnMarker, end_txn_marker_batch};
use segvault_kafka_log::checkpoint::LeaderEpochs;
use segvault_kafka_log::groups::{Clamp, CommittedOffset, CommittedOffsets, OffsetCommitKey, clamp_batches};
use segvault_kafka_log::index::AbortedTxn;
use segvault_kafka_log::names::LEADER_EPOCH_CHECKPOINT;
use segvault_kafka_log::producer::{CompletedTxn, ProducerEntry, ProducerSnapshot, ProducerState};
use segvault_kafka_log::share::{ShareStates, snapshot_batches};
use segvault_vault_format::manifest::{AbortedTransaction, Chunk, Stream};

use super::RestoreError;
use super::segment::{ReplicaDir, Segment, put_everywhere, write_snapshot};

/// What became of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// Bytes of one replica's logs.
    pub bytes: u64,
    /// What an operator should know.
    pub findings: Vec<Finding>,
    /// Transactions that are not whole at its end.
    pub torn: Vec<Torn>,
}

/// Writes a partition's replicas into directories that are empty.
pub(super) struct PartitionWriter<'a> {
    restore: &'a RestorePlan,
    plan: &'a PartitionPlan,
    stream: &'a Stream,
    dirs: Vec<ReplicaDir>,
    segment: Option<Segment>,
    /// Index of the manifest's segment that begins next.
    next_segment: usize,
    next_chunk: usize,
    /// Bytes of the stream so far.
    position: u64,
    /// The offset after the last batch.
    next_offset: i64,
    epochs: LeaderEpochs,
    /// From the batches alone; `None` once it cannot be told any more.
    producers: Option<ProducerState>,
    /// The same where the manifest's last segment begins.
    producers_at_tail: Option<ProducerSnapshot>,
    /// The last transaction of each producer that a marker has ended, from the batches.
    ended: BTreeMap<i64, Ended>,
    /// What groups have committed, in a partition that holds that.
    groups: Option<CommittedOffsets>,
    /// How far share groups have come, in a partition that holds that.
    shares: Option<ShareStates>,
    written: Written,
}

impl<'a> PartitionWriter<'a> {
    /// For the partition `plan` of `restore`.
    pub fn new(restore: &'a RestorePlan, plan: &'a PartitionPlan, stream: &'a Stream, dirs: Vec<ReplicaDir>) -> Self {
        let first_base = stream.segments.first().map_or(stream.end_offset, |segment| segment.base_offset);
        Self {
            restore,
            plan,
            stream,
            dirs,
            segment: None,
            next_segment: 0,
            next_chunk: 0,
            position: 0,
            next_offset: first_base,
            epochs: LeaderEpochs::default(),
            producers: Some(ProducerState::new(first_base)),
            producers_at_tail: None,
            ended: BTreeMap::new(),
            groups: (plan.topic == GROUP_TOPIC).then(CommittedOffsets::default),
            shares: (plan.topic == SHARE_TOPIC).then(ShareStates::default),
            written: Written::default(),
        }
    }

    /// Takes in the stream's next chunk.
    pub fn add_chunk(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let index = self.next_chunk;
        let expected =
            self.stream.chunks.get(index).ok_or_else(|| self.mismatch("more chunks than its manifest names"))?;
        let mut found =
            Chunk { id: expected.id.clone(), base_offset: -1, max_timestamp: -1, max_epoch: -1, ..Chunk::default() };
        // Noted for the current segment and not written yet: `bytes[from..at]`.
        let mut from = 0;
        for item in Batches::new(bytes) {
            let (at, batch) = item.map_err(|error| self.mismatch(format!("chunk {index}: {error}")))?;
            if self.segment_begins() {
                self.write(&bytes[from..at])?;
                from = at;
                self.roll()?;
            }
            self.note(&batch)?;
            if found.batches == 0 {
                found.base_offset = batch.base_offset();
            }
            found.batches += 1;
            found.len += batch.size() as u32;
            found.last_offset = batch.last_offset();
            found.max_timestamp = found.max_timestamp.max(batch.max_timestamp());
            found.max_epoch = found.max_epoch.max(batch.leader_epoch());
        }
        if found != *expected {
            return Err(self.mismatch(format!("chunk {index} does not hold the batches that its manifest names")));
        }
        self.write(&bytes[from..])?;
        self.next_chunk += 1;
        Ok(())
    }

    /// Ends the log: appends what the plan says and writes what lies beside the segments. Then says which transactions
    /// are not whole, going by what `transactions` says of all.
    pub fn finish(mut self, transactions: &TransactionIds) -> Result<Written, RestoreError> {
        if self.next_chunk < self.stream.chunks.len() {
            return Err(self.mismatch("fewer chunks than its manifest names"));
        }
        while self.segment_begins() {
            self.roll()?;
        }
        if self.next_segment < self.stream.segments.len() {
            return Err(self.mismatch("a segment begins past its last byte"));
        }
        self.reach_end()?;
        let mut epochs = self.history();
        epochs.truncate_from_end(self.stream.end_offset);

        let at_cut = self.snapshot_at_cut()?;
        let at_tail = self.snapshot_at_tail(&at_cut);
        let mut producers = ProducerState::from_snapshot(&at_cut, self.stream.end_offset);
        self.append_markers(&mut producers, &mut epochs)?;
        self.append_clamps(&mut epochs)?;
        self.append_share_clamps(&mut epochs)?;
        let producers = self.judge(producers, transactions);

        let log_start = self.plan.log_start_offset.max(self.first_base());
        if let Some((base, snapshot)) = at_tail.filter(|(base, _)| *base > log_start) {
            write_snapshot(base, &snapshot.encode(), &self.dirs)?;
        }
        // Kafka deletes a snapshot that is not above the log's start; then there is nothing that it could tell.
        if self.next_offset > log_start {
            write_snapshot(self.next_offset, &producers.snapshot().encode(), &self.dirs)?;
        }
        put_everywhere(LEADER_EPOCH_CHECKPOINT, epochs.encode().as_bytes(), &self.dirs)?;
        self.finish_segment()?;
        Ok(self.written)
    }

    /// The log ends where the point says even where the last batches below are compacted away: then an empty segment
    /// begins there.
    fn reach_end(&mut self) -> Result<(), RestoreError> {
        let end_offset = self.stream.end_offset;
        let base_offset = self.segment.as_ref().map(Segment::base_offset);
        if self.next_offset > end_offset || base_offset.is_some_and(|base| base > end_offset) {
            return Err(self.mismatch(format!("its batches or segments reach past its end at {end_offset}")));
        }
        let reached = self.next_offset.max(base_offset.unwrap_or(-1));
        if base_offset.is_none() || reached < end_offset {
            self.begin_segment(end_offset)?;
        }
        self.next_offset = end_offset;
        Ok(())
    }

    fn append_markers(&mut self, producers: &mut ProducerState, epochs: &mut LeaderEpochs) -> Result<(), RestoreError> {
        for marker in &self.plan.markers {
            let epoch = epochs.latest().map_or(0, |latest| latest.epoch);
            let bytes = end_txn_marker_batch(
                self.next_offset,
                epoch,
                self.restore.timestamp_ms,
                marker.producer_id,
                marker.producer_epoch,
                EndTxnMarker { commit: marker.commit, coordinator_epoch: marker.coordinator_epoch },
            );
            let batch = Batch::parse(&bytes).expect("a batch that was just built");
            epochs.observe(&batch);
            let ended = producers.apply(&batch).map_err(|error| self.mismatch(error.to_string()))?;
            self.replay(&batch);
            if ended.is_none() {
                self.find(Finding::note, format!("producer {} has no open transaction to end", marker.producer_id));
            }
            self.note_progress(&batch);
            self.append(&batch)?;
            if let (Some(txn), Some(segment)) = (ended.and_then(|txn| txn.aborted()), &mut self.segment) {
                segment.note_aborted(txn);
            }
        }
        Ok(())
    }

    /// Moves committed offsets that lie beyond the end of their partition back to it. Offsets that are pending in a
    /// transaction stay as they are: what we append would outrank them even if the transaction is aborted.
    fn append_clamps(&mut self, epochs: &mut LeaderEpochs) -> Result<(), RestoreError> {
        let Some(groups) = self.groups.take() else {
            return Ok(());
        };
        let end_offsets = &self.restore.end_offsets;
        let beyond = |(key, committed): (&OffsetCommitKey, &CommittedOffset)| {
            let offset = clamped(committed.value.offset, *end_offsets.get(&key.partition)?)?;
            Some(Clamp { key: key.clone(), committed: committed.value.clone(), offset, leader_epoch: -1 })
        };
        let clamps: Vec<Clamp> = groups.offsets().iter().filter_map(beyond).collect();
        let pending = groups.pending().filter(|(_, key, committed)| beyond((key, committed)).is_some()).count();
        if pending > 0 {
            let what =
                format!("offsets beyond their partition's end that open transactions may still commit: {pending}");
            self.find(Finding::warning, what);
        }
        if !clamps.is_empty() {
            let what = format!("committed offsets beyond their partition's end, moved back to it: {}", clamps.len());
            self.find(Finding::note, what);
        }
        let epoch = epochs.latest().map_or(0, |latest| latest.epoch);
        let bytes = clamp_batches(self.next_offset, epoch, self.restore.timestamp_ms, &clamps);
        self.append_all(&bytes, epochs)
    }

    /// The same for share groups: what they know of records that are not there, and their start offsets, go back to the end.
    fn append_share_clamps(&mut self, epochs: &mut LeaderEpochs) -> Result<(), RestoreError> {
        let Some(shares) = self.shares.take() else {
            return Ok(());
        };
        if shares.early_access() > 0 {
            let what = format!(
                "records of Kafka 4.0's early access to share groups, not held against their partitions' ends: {}",
                shares.early_access()
            );
            self.find(Finding::warning, what);
        }
        let clamps: Vec<_> = shares
            .states()
            .iter()
            .filter_map(|(key, state)| {
                let end = self.restore.end_offset_by_id(key.topic_id, key.partition)?;
                Some((key.clone(), state.clamped(end)?))
            })
            .collect();
        if !clamps.is_empty() {
            let what = format!("share groups' states beyond their partition's end, moved back to it: {}", clamps.len());
            self.find(Finding::note, what);
        }
        let epoch = epochs.latest().map_or(0, |latest| latest.epoch);
        let bytes = snapshot_batches(self.next_offset, epoch, self.restore.timestamp_ms, clamps);
        self.append_all(&bytes, epochs)
    }

    /// Appends batches that were just built.
    fn append_all(&mut self, bytes: &[u8], epochs: &mut LeaderEpochs) -> Result<(), RestoreError> {
        for item in Batches::new(bytes) {
            let (_, batch) = item.expect("batches that were just built");
            epochs.observe(&batch);
            self.append(&batch)?;
        }
        Ok(())
    }

    /// An aborted transaction that the manifest does not know would become visible.
    fn note_producers(&mut self, batch: &Batch<'_>) {
        let aborted = self.replay(batch).and_then(|txn| txn.aborted());
        if let (Some(txn), Some(segment)) = (aborted, &mut self.segment)
            && segment.note_aborted(txn)
        {
            let what = format!(
                "the transaction aborted at offset {} is not in the manifest, and is noted all the same",
                txn.last_offset
            );
            self.find(Finding::warning, what);
        }
    }

    /// Goes on with what the batches alone say of producers.
    fn replay(&mut self, batch: &Batch<'_>) -> Option<CompletedTxn> {
        let txn = match self.producers.as_mut()?.apply(batch) {
            Ok(txn) => txn?,
            Err(error) => {
                self.producers = None;
                let what = format!("producers cannot be followed, so the point's producer state is believed: {error}");
                self.find(Finding::warning, what);
                return None;
            }
        };
        let ended = Ended { offset: txn.marker_offset, epoch: batch.producer_epoch(), commit: txn.commit };
        self.ended.insert(txn.producer_id, ended);
        Some(txn)
    }

    /// Holds what a broker will read of producers at the end of the log against the batches that were just written, and
    /// then against the transaction log. Where the batches say otherwise, theirs is what the broker gets.
    fn judge(&mut self, mut at_end: ProducerState, transactions: &TransactionIds) -> ProducerState {
        if let Some(replayed) = &self.producers {
            let open = |state: &ProducerState| -> BTreeMap<i64, i64> {
                state.open_transactions().map(|txn| (txn.producer_id, txn.first_offset)).collect()
            };
            let wrong = judge_state(&open(&at_end), &open(replayed), self.first_base());
            let mut snapshot = at_end.snapshot();
            for producer_id in wrong.iter().filter_map(Torn::producer_id) {
                snapshot.entries.retain(|entry| entry.producer_id != producer_id);
                snapshot.entries.extend(replayed.producer(producer_id).cloned());
            }
            at_end = ProducerState::from_snapshot(&snapshot, self.next_offset);
            self.written.torn.extend(wrong);
        }
        // Who wrote nothing that is here is known from a broker's snapshot, which may be younger than the cut.
        let wrote = |id: i64| self.producers.as_ref().is_some_and(|replayed| replayed.producer(id).is_some());
        let judged =
            at_end.producers().filter(|entry| entry.current_txn_first_offset.is_some() || wrote(entry.producer_id));
        let ends = judged.map(|entry| ProducerEnd {
            producer_id: entry.producer_id,
            epoch: entry.epoch,
            open_since: entry.current_txn_first_offset,
            ended: self.ended.get(&entry.producer_id).copied(),
        });
        let partition = TopicPartition::new(&self.plan.topic, self.plan.partition);
        self.written.torn.extend(transactions.judge(&partition, ends));
        at_end
    }

    fn note_progress(&mut self, batch: &Batch<'_>) {
        if let Some(Err(error)) = self.groups.as_mut().map(|groups| groups.apply(batch)) {
            self.find(
                Finding::warning,
                format!("committed offsets cannot be read, so none is held against its partition's end: {error}"),
            );
            self.groups = None;
        }
        if let Some(Err(error)) = self.shares.as_mut().map(|shares| shares.apply(batch)) {
            self.find(
                Finding::warning,
                format!("share groups' states cannot be read, so none is held against its partition's end: {error}"),
            );
            self.shares = None;
        }
    }

    fn find(&mut self, severity: fn(String) -> Finding, what: String) {
        self.written.findings.push(severity(format!("{}-{}: {what}", self.plan.topic, self.plan.partition)));
    }

    /// Appends a batch of our own to the last segment, or to a new one if that is full.
    fn append(&mut self, batch: &Batch<'_>) -> Result<(), RestoreError> {
        if !self.segment.as_ref().is_some_and(|segment| segment.has_room_for(batch)) {
            self.begin_segment(batch.base_offset())?;
        }
        self.note_in_segment(batch)?;
        self.write(batch.bytes())?;
        self.next_offset = batch.next_offset();
        Ok(())
    }

    fn note(&mut self, batch: &Batch<'_>) -> Result<(), RestoreError> {
        let base_offset = batch.base_offset();
        if batch.last_offset() < self.next_offset {
            return Err(self.mismatch(format!("the batch at offset {base_offset} lies below {}", self.next_offset)));
        }
        self.note_in_segment(batch)?;
        self.epochs.observe(batch);
        self.note_producers(batch);
        self.note_progress(batch);
        self.position += batch.size() as u64;
        self.next_offset = batch.next_offset();
        Ok(())
    }

    fn note_in_segment(&mut self, batch: &Batch<'_>) -> Result<(), RestoreError> {
        let noted = match &mut self.segment {
            Some(segment) => segment.note(batch),
            None => Err("its first byte lies in no segment".into()),
        };
        noted.map_err(|why| self.mismatch(why))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        match &mut self.segment {
            Some(segment) if !bytes.is_empty() => {
                self.written.bytes += bytes.len() as u64;
                segment.write(bytes)
            }
            _ => Ok(()),
        }
    }

    /// Whether the manifest's next segment begins where the stream has come to.
    fn segment_begins(&self) -> bool {
        self.stream.segments.get(self.next_segment).is_some_and(|segment| segment.position <= self.position)
    }

    /// Goes on to the manifest's next segment, or past those without bytes.
    fn roll(&mut self) -> Result<(), RestoreError> {
        while self.segment_begins() {
            let segment = &self.stream.segments[self.next_segment];
            let (base_offset, position) = (segment.base_offset, segment.position);
            if position < self.position || base_offset < self.next_offset {
                return Err(self.mismatch(format!("segment {base_offset} begins inside a batch")));
            }
            self.begin_segment(base_offset)?;
            if let Some(current) = &mut self.segment {
                segment.aborted.iter().for_each(|txn| _ = current.note_aborted(aborted_txn(txn)));
            }
            self.next_segment += 1;
            if self.next_segment == self.stream.segments.len() {
                self.producers_at_tail = self.producers.as_ref().map(ProducerState::snapshot);
            }
        }
        Ok(())
    }

    fn begin_segment(&mut self, base_offset: i64) -> Result<(), RestoreError> {
        self.finish_segment()?;
        self.segment = Some(Segment::create(base_offset, &self.dirs, self.plan.side_files)?);
        Ok(())
    }

    fn finish_segment(&mut self) -> Result<(), RestoreError> {
        self.segment.take().map_or(Ok(()), |segment| segment.finish(&self.dirs, self.restore.timestamp_ms))
    }

    fn first_base(&self) -> i64 {
        self.stream.segments.first().map_or(self.stream.end_offset, |segment| segment.base_offset)
    }

    /// The epoch history: the manifest's, with whatever the batches know better.
    fn history(&self) -> LeaderEpochs {
        let mut starts: BTreeMap<i32, i64> = BTreeMap::new();
        let known = self.stream.epochs.iter().map(|epoch| (epoch.epoch, epoch.start_offset));
        let seen = self.epochs.entries().iter().map(|entry| (entry.epoch, entry.start_offset));
        for (epoch, start_offset) in known.chain(seen) {
            let start = starts.entry(epoch).or_insert(start_offset);
            *start = (*start).min(start_offset);
        }
        let mut epochs = LeaderEpochs::default();
        for (epoch, start_offset) in starts {
            epochs.assign(epoch, start_offset);
        }
        epochs
    }

    fn snapshot_at_cut(&self) -> Result<ProducerSnapshot, RestoreError> {
        if self.stream.producer_snapshot.is_empty() && self.stream.chunks.is_empty() {
            return Ok(ProducerSnapshot::default());
        }
        ProducerSnapshot::decode(&self.stream.producer_snapshot).map_err(|error| self.mismatch(error.to_string()))
    }

    /// The producer state where the tail begins: a crash of the restored broker would otherwise make it read the whole
    /// partition. `None` where it cannot be told.
    fn snapshot_at_tail(&self, at_cut: &ProducerSnapshot) -> Option<(i64, ProducerSnapshot)> {
        let base = self.stream.segments.last()?.base_offset;
        let by_id = |snapshot: &ProducerSnapshot| -> BTreeMap<i64, ProducerEntry> {
            snapshot.entries.iter().map(|entry| (entry.producer_id, entry.clone())).collect()
        };
        let at_tail = by_id(self.producers_at_tail.as_ref()?);
        let at_end = by_id(&self.producers.as_ref()?.snapshot());
        let mut entries = Vec::new();
        for entry in &at_cut.entries {
            match (at_tail.get(&entry.producer_id), at_end.get(&entry.producer_id)) {
                // The tail has nothing of this producer.
                (_, None) => entries.push(entry.clone()),
                (Some(before), Some(after)) if before == after => entries.push(entry.clone()),
                (Some(before), Some(_)) => entries.push(before.clone()),
                // Its transaction began in a segment that retention has taken since: unknown.
                (None, Some(_)) if entry.current_txn_first_offset.is_some_and(|first| first < base) => {
                    return None;
                }
                // It began in the tail, or retention has taken what it wrote before: nothing to compare with.
                (None, Some(_)) => {}
            }
        }
        Some((base, ProducerSnapshot { entries }))
    }

    fn mismatch(&self, why: impl Into<String>) -> RestoreError {
        RestoreError::Mismatch { partition: format!("{}-{}", self.plan.topic, self.plan.partition), why: why.into() }
    }
}

fn aborted_txn(txn: &AbortedTransaction) -> AbortedTxn {
    AbortedTxn {
        producer_id: txn.producer_id,
        first_offset: txn.first_offset,
        last_offset: txn.last_offset,
        last_stable_offset: txn.last_stable_offset,
    }
}
