//! One partition: what is known of it before its bytes are read, and its manifest once they are.

use segvault_kafka_log::batch::{BatchHeader, HEADER_LEN};
use segvault_kafka_log::checkpoint::LeaderEpochs;
use segvault_kafka_log::producer::{ProducerSnapshot, ProducerState};
use segvault_proto::{Gaps, OpenTransaction, StoredPartition, UploadOrder};
use segvault_vault_format::chunker::{Chunker, known_cuts, plan_folds};
use segvault_vault_format::manifest::{Chunk, Epoch, Segment, Stream, StreamRef};

use super::plan::{Extent, plan};
use super::previous::Previous;
use super::source::{Source, SourceError};
use super::walk::{History, Sink, Walked, walk};
use crate::cache::{CachedBatch, CachedPartition, CachedSegment, CachedTail, manifest_id};
use crate::pinned::{PinnedReplica, PinnedSegment};

/// What is reported, and remembered, if the partition is as the last point has it; then nothing is read, not even the
/// last manifest.
pub(super) fn unchanged(
    order: &UploadOrder,
    replica: &PinnedReplica,
    cached: &CachedPartition,
) -> Option<StoredPartition> {
    let reference = order.previous.as_ref()?;
    let epochs = epochs_below(replica, order.cut);
    let same = cached.is_of(order)
        && cached.end_offset == order.cut
        && cached.log_start_offset == replica.log_start_offset.min(order.cut)
        && cached.epochs.iter().copied().eq(epochs.entries().iter().map(|epoch| (epoch.epoch, epoch.start_offset)))
        && cached
            .segments
            .iter()
            .map(|segment| (segment.base_offset, segment.identity))
            .eq(replica.segments[..segments_below(replica, order.cut)]
                .iter()
                .map(|segment| (segment.base_offset, Some(segment.identity))));
    same.then(|| stored(order, reference.clone(), cached, [0, 0], Vec::new()))
}

/// The report of a partition, from what is remembered of it, and how many bytes were read and stored.
pub(super) fn stored(
    order: &UploadOrder,
    stream: StreamRef,
    cached: &CachedPartition,
    [read_bytes, stored_bytes]: [u64; 2],
    notes: Vec<String>,
) -> StoredPartition {
    let open = cached.open.iter().map(|&(producer_id, producer_epoch, coordinator_epoch, first_offset)| {
        OpenTransaction { producer_id, producer_epoch, coordinator_epoch, first_offset }
    });
    StoredPartition {
        topic: order.topic.clone(),
        partition: order.partition,
        stream,
        log_start_offset: cached.log_start_offset,
        end_offset: cached.end_offset,
        bytes: cached.bytes,
        read_bytes,
        stored_bytes,
        max_epoch: cached.max_epoch,
        max_producer_id: cached.max_producer_id,
        open: open.collect(),
        notes,
    }
}

/// Walks a partition's batches into `sink`, guided by the last point's stream and by what is remembered of its files.
pub(super) fn read(
    order: &UploadOrder,
    replica: &PinnedReplica,
    previous: Option<&Previous>,
    cached: Option<&CachedPartition>,
    sink: &mut dyn Sink,
) -> Result<Walked, SourceError> {
    let segments = &replica.segments[..segments_below(replica, order.cut)];
    let start_offset = segments.first().map_or(order.cut, |segment| segment.base_offset);
    let epochs = epochs_below(replica, order.cut);
    // The state at the last point's end is of use only if this is the same history, and not cut below it.
    let base = previous.filter(|previous| {
        previous.end_offset() <= order.cut && previous.is_prefix_of(&epochs, replica.position.end_offset)
    });
    let history = History {
        state: match base {
            Some(base) => base.state(),
            None => forgotten_producers(replica, start_offset, order.cut),
        },
        aborted: Vec::new(),
        inherited: base.map(|base| base.aborted_from(start_offset)).unwrap_or_default(),
        epochs,
        notes: Vec::new(),
        contiguous_from: contiguous_from(order, replica),
        next_offset: start_offset,
        last_epoch: -1,
        last_batch: None,
    };

    let known: &[Chunk] = previous.map_or(&[], |previous| previous.chunks());
    let folds = plan_folds(known);
    let lens: Vec<u64> = known.iter().map(|chunk| chunk.len.into()).collect();
    let extents = extents(segments, base, cached);
    let steps = plan(&extents, &lens, &folds);
    let chunker = Chunker::new(known_cuts(known, &folds));
    let walked = walk(replica, order.cut, &steps, known, chunker, history, sink)?;
    check_end(order, replica, &walked)?;
    Ok(walked)
}

/// Number of segments that begin below the cut.
fn segments_below(replica: &PinnedReplica, cut: i64) -> usize {
    replica.segments.partition_point(|segment| segment.base_offset < cut)
}

/// From where on offsets must follow each other.
fn contiguous_from(order: &UploadOrder, replica: &PinnedReplica) -> i64 {
    match order.gaps {
        Gaps::Nowhere => 0,
        Gaps::InClosed => replica.segments.last().map_or(0, |active| active.base_offset),
        Gaps::Anywhere => i64::MAX,
    }
}

fn epochs_below(replica: &PinnedReplica, cut: i64) -> LeaderEpochs {
    let mut epochs = LeaderEpochs::default();
    for epoch in replica.epochs.iter().filter(|epoch| epoch.start_offset < cut) {
        epochs.assign(epoch.epoch, epoch.start_offset);
    }
    epochs
}

/// The state before the first batch: producers whose batches retention has taken are known from a snapshot only.
/// One that is younger than the cut may have epochs that were given out after the mark.
fn forgotten_producers(replica: &PinnedReplica, start_offset: i64, cut: i64) -> ProducerState {
    let snapshot = replica.producer_snapshot.as_ref().filter(|(offset, _)| *offset <= cut);
    let snapshot = snapshot.and_then(|(_, bytes)| ProducerSnapshot::decode(bytes).ok());
    let entries = snapshot.unwrap_or_default().entries.into_iter();
    let entries = entries.filter(|entry| entry.last_offset < start_offset).collect();
    ProducerState::from_snapshot(&ProducerSnapshot { entries }, start_offset)
}

/// What is known of each segment: all of its first bytes that the last point has, if the file is the same, or if it
/// only grew.
fn extents(segments: &[PinnedSegment], base: Option<&Previous>, cached: Option<&CachedPartition>) -> Vec<Extent> {
    let known = |segment: &PinnedSegment| {
        let (base, cached) = (base?, cached?);
        let (position, len) = base.segment(segment.base_offset)?;
        let remembered =
            cached.segment(segment.base_offset).filter(|cached| cached.len == len && len <= segment.len)?;
        let same = remembered.identity == Some(segment.identity) || grew(segment, remembered, cached);
        same.then_some((len, position))
    };
    segments.iter().map(|segment| Extent { len: segment.len, known: known(segment) }).collect()
}

/// Whether a tail is the one that it was, with more batches behind the last one.
fn grew(segment: &PinnedSegment, remembered: &CachedSegment, cached: &CachedPartition) -> bool {
    let Some(tail) = cached.tail.filter(|_| cached.segments.last() == Some(remembered)) else { return false };
    let mut header = [0; HEADER_LEN];
    tail.file == (segment.identity.dev, segment.identity.ino)
        && Source::open(segment).and_then(|source| source.read_exact_at(&mut header, tail.batch.position)).is_ok()
        && BatchHeader::parse(&header).is_ok_and(|header| CachedBatch::new(&header, tail.batch.position) == tail.batch)
}

/// Whether all batches up to the cut were there. In a compacted log offsets below the cut may have no batch; then a
/// batch or a segment at or above it must show that the log goes on.
fn check_end(order: &UploadOrder, replica: &PinnedReplica, walked: &Walked) -> Result<(), SourceError> {
    let end = walked.history.next_offset;
    let goes_on = walked.beyond || replica.segments.iter().any(|segment| segment.base_offset >= order.cut);
    let last = replica.segments.last().expect("a pinned replica has a segment");
    if end == order.cut {
        return Ok(());
    }
    if goes_on && order.cut <= replica.position.end_offset {
        return match order.cut > end.max(contiguous_from(order, replica)) {
            true => Err(SourceError::gap(last, last.len, end, order.cut)),
            false => Ok(()),
        };
    }
    Err(SourceError::new(last, last.len, format!("log ends at offset {end}, {} was expected", order.cut)))
}

/// The manifest of a partition whose chunks are all stored.
pub(super) fn manifest(
    cluster_id: &str,
    order: &UploadOrder,
    replica: &PinnedReplica,
    walked: &mut Walked,
    chunks: Vec<Chunk>,
) -> Stream {
    let history = &mut walked.history;
    let end = history.next_offset;
    let below = &replica.segments[..segments_below(replica, order.cut)];
    let mut position = 0;
    let mut segments = Vec::with_capacity(below.len() + 1);
    for segment in below {
        segments.push(Segment { base_offset: segment.base_offset, position, aborted: Vec::new() });
        position += segment.len;
    }
    // An empty segment makes the log end at the cut if no batch does.
    if below.is_empty() || end < order.cut {
        let position = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        segments.push(Segment { base_offset: order.cut, position, aborted: Vec::new() });
    }
    for aborted in history.aborted.drain(..) {
        let at = segments.partition_point(|segment| segment.base_offset <= aborted.last_offset);
        segments[at.saturating_sub(1)].aborted.push(aborted);
    }
    let epochs = history.epochs.entries().iter();
    Stream {
        cluster_id: cluster_id.to_owned(),
        topic_id: order.topic_id.0.to_vec(),
        topic: order.topic.clone(),
        partition: order.partition,
        log_start_offset: replica.log_start_offset.min(order.cut),
        end_offset: order.cut,
        chunks,
        segments,
        epochs: epochs.map(|entry| Epoch { epoch: entry.epoch, start_offset: entry.start_offset }).collect(),
        producer_snapshot: history.state.snapshot().encode(),
    }
}

/// What to remember of a partition, but for the identities of its files, which change when the pins are let go.
pub(super) fn remember(
    order: &UploadOrder,
    replica: &PinnedReplica,
    stream: &Stream,
    reference: &StreamRef,
    walked: &Walked,
    cached: Option<&CachedPartition>,
) -> CachedPartition {
    let bytes = stream.len_bytes();
    let below = segments_below(replica, order.cut);
    let segments: Vec<_> = (0..below)
        .map(|index| {
            let end = stream.segments.get(index + 1).map_or(bytes, |next| next.position);
            CachedSegment {
                base_offset: replica.segments[index].base_offset,
                len: end - stream.segments[index].position,
                identity: None,
            }
        })
        .collect();
    let tail = match &walked.history.last_batch {
        Some((segment, batch)) if segment + 1 == below => {
            let identity = replica.segments[*segment].identity;
            Some(CachedTail { file: (identity.dev, identity.ino), batch: *batch })
        }
        Some(_) => None,
        // Nothing was read behind what was known, so the tail is what it was.
        None => cached.and_then(|cached| cached.tail),
    };
    let open = walked.history.state.open_transactions();
    let max_epoch =
        stream.epochs.iter().map(|epoch| epoch.epoch).chain(stream.chunks.iter().map(|chunk| chunk.max_epoch));
    CachedPartition {
        manifest: manifest_id(reference),
        log_start_offset: stream.log_start_offset,
        end_offset: stream.end_offset,
        epochs: stream.epochs.iter().map(|epoch| (epoch.epoch, epoch.start_offset)).collect(),
        segments,
        tail,
        bytes,
        max_epoch: max_epoch.max().unwrap_or(-1),
        max_producer_id: walked.history.state.max_producer_id().unwrap_or(-1),
        open: open.map(|txn| (txn.producer_id, txn.producer_epoch, txn.coordinator_epoch, txn.first_offset)).collect(),
    }
}
