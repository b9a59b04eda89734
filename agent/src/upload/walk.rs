//! Walks the batches of one replica up to the cut: checks each, cuts them into chunks, and follows the producers.
//!
//! Every batch that is read is checked by its CRC once. The 17 bytes before it are not under the CRC, so offsets,
//! epochs and lengths are held against the segment's name, the neighbours, the epoch history and the cut. Chunks that
//! are taken over from the last point were checked when they were uploaded; their offsets are held against the
//! neighbours too.

use std::ops::RangeInclusive;

use segvault_kafka_log::batch::{Batch, BatchError, BatchHeader, Compression, HEADER_LEN};
use segvault_kafka_log::checkpoint::LeaderEpochs;
use segvault_kafka_log::producer::ProducerState;
use segvault_vault_format::chunker::{BatchShape, CHUNK_MAX, Chunker};
use segvault_vault_format::manifest::{AbortedTransaction, Chunk};

use super::plan::Step;
use super::source::{Source, SourceError};
use crate::cache::CachedBatch;
use crate::pinned::{PinnedReplica, PinnedSegment};

/// Bytes asked for at a time: enough for the kernel to read ahead, few enough to stay in the processor's cache.
const READ_LEN: usize = 256 << 10;

/// A batch that says it is longer is believed only if another one follows it: the length is not under the CRC, and a
/// flipped bit in it must not cost a gigabyte of memory. Ten times `message.max.bytes` by default.
const SUSPICIOUS_LEN: usize = 10 << 20;

/// Memory that one chunk is collected in.
pub(super) const BUFFER_LEN: usize = CHUNK_MAX as usize + READ_LEN;

/// Takes what the walk yields.
pub(super) trait Sink {
    /// A chunk that was read: the first `chunk.len` bytes of `bytes`, of which `packed_len` are batches that zstd or
    /// gzip compressed. `chunk.id` is still empty.
    fn put(&mut self, chunk: Chunk, packed_len: usize, bytes: Vec<u8>);
    /// Chunk `index` of the last point.
    fn take(&mut self, index: usize);
    /// [`BUFFER_LEN`] bytes of memory, whatever they are.
    fn buffer(&mut self) -> Vec<u8>;
    /// Nobody wants the rest any more.
    fn is_stopped(&self) -> bool;
}

/// What is known of the partition up to some offset.
pub(super) struct History {
    pub state: ProducerState,
    /// Aborted transactions, by rising marker offset.
    pub aborted: Vec<AbortedTransaction>,
    /// Those of the last point, alike. They count where their marker is met again: once the cleaner has taken it, an entry
    /// would make it take committed records of the producer as well (`CleanedTransactionMetadata`).
    pub inherited: Vec<AbortedTransaction>,
    pub epochs: LeaderEpochs,
    pub notes: Vec<String>,
    /// No offset may be missing from here on.
    pub contiguous_from: i64,
    /// The first offset that may follow.
    pub next_offset: i64,
    /// Greatest leader epoch so far; -1 if none.
    pub last_epoch: i32,
    /// The last batch that was read and where in its segment's file it is.
    pub last_batch: Option<(usize, CachedBatch)>,
}

/// What was found.
pub(super) struct Walked {
    pub history: History,
    /// A batch at or above the cut was seen, so nothing is missing below it.
    pub beyond: bool,
    pub read_bytes: u64,
}

/// Carries out `steps` over the segments of `replica`.
pub(super) fn walk(
    replica: &PinnedReplica,
    cut: i64,
    steps: &[Step],
    known: &[Chunk],
    chunker: Chunker,
    history: History,
    sink: &mut dyn Sink,
) -> Result<Walked, SourceError> {
    let mut walk = Walk {
        replica,
        cut,
        chunker,
        history,
        buffer: Vec::new(),
        filled: 0,
        open: None,
        beyond: false,
        read_bytes: 0,
    };
    for step in steps {
        // What lies behind an end that is reached is not read, unless it must tell whether something is missing.
        if walk.beyond || walk.history.next_offset == cut {
            break;
        }
        match step {
            Step::Take { chunk } => {
                walk.close(sink);
                let base_offset = known[*chunk].base_offset;
                if walk.history.has_gap_before(base_offset) {
                    return Err(SourceError::gap(&replica.segments[0], 0, walk.history.next_offset, base_offset));
                }
                walk.take(&known[*chunk]).map_err(|why| walk.error(why))?;
                sink.take(*chunk);
            }
            Step::Read { segment, bytes } => {
                walk.read(*segment, bytes.start, bytes.end, sink)?;
                if bytes.end == replica.segments[*segment].len && walk.chunker.end_segment() {
                    walk.close(sink);
                }
            }
        }
    }
    walk.close(sink);
    Ok(Walked { history: walk.history, beyond: walk.beyond, read_bytes: walk.read_bytes })
}

struct Walk<'a> {
    replica: &'a PinnedReplica,
    cut: i64,
    chunker: Chunker,
    history: History,
    /// The open chunk, and what was read beyond it.
    buffer: Vec<u8>,
    filled: usize,
    open: Option<OpenChunk>,
    beyond: bool,
    read_bytes: u64,
}

struct OpenChunk {
    chunk: Chunk,
    packed_len: usize,
}

impl Walk<'_> {
    /// Walks bytes `from..to` of a segment, which begin with a batch.
    fn read(&mut self, segment: usize, from: u64, to: u64, sink: &mut dyn Sink) -> Result<(), SourceError> {
        let pinned = &self.replica.segments[segment];
        let end_offset = self.replica.segments.get(segment + 1).map_or(i64::MAX, |next| next.base_offset);
        let source = Source::open(pinned).map_err(|error| SourceError::new(pinned, from, error))?;
        let mut position = from;
        while position < to {
            let fail = |error: BatchError| SourceError::new(pinned, position, error);
            let open_len = self.open_len();
            let header_len = usize::try_from(to - position).map_or(HEADER_LEN, |left| left.min(HEADER_LEN));
            self.fill(&source, pinned, position, to, header_len, sink)?;
            let header = BatchHeader::parse(&self.buffer[open_len..self.filled]).map_err(fail)?;
            if header.base_offset() >= self.cut {
                if self.history.next_offset < self.cut {
                    self.check_beyond(&source, pinned, position, end_offset, &header)?;
                }
                self.filled = open_len;
                self.beyond = true;
                return Ok(());
            }
            if self.chunker.before(&BatchShape::from(&header)) {
                self.close(sink);
            }
            if header.size() > SUSPICIOUS_LEN {
                self.check_length(&source, pinned, position, to, &header)?;
            }
            self.fill(&source, pinned, position, to, header.size(), sink)?;
            let open_len = self.open_len();
            let batch = Batch::parse(&self.buffer[open_len..self.filled]).map_err(fail)?;
            batch.check_crc().map_err(fail)?;
            if batch.base_offset() < pinned.base_offset || batch.next_offset() > end_offset.min(self.cut) {
                let (base, last) = (batch.base_offset(), batch.last_offset());
                let why = if last < end_offset {
                    format!("across the cut at {}", self.cut)
                } else {
                    "outside its segment".into()
                };
                return Err(SourceError::new(
                    pinned,
                    position,
                    format!("batch with offsets {base} to {last} lies {why}"),
                ));
            }
            // No index could point to it, and no restore could write one.
            if batch.last_offset() - pinned.base_offset > i64::from(i32::MAX) {
                let what = format!("batch with last offset {} is too far from its segment's base", batch.last_offset());
                return Err(SourceError::new(pinned, position, what));
            }
            if self.history.has_gap_before(batch.base_offset()) {
                return Err(SourceError::gap(pinned, position, self.history.next_offset, batch.base_offset()));
            }
            self.history.take(&batch).map_err(|why| SourceError::new(pinned, position, why))?;
            self.history.last_batch = Some((segment, CachedBatch::new(&header, position)));
            self.open.get_or_insert_with(|| OpenChunk::new(&header)).push(&header);
            position += header.size() as u64;
        }
        Ok(())
    }

    /// Whether a batch at or above the cut really lies there. Its offset is not under the CRC: one that was damaged
    /// upwards would make all that is missing below the cut look compacted away.
    fn check_beyond(
        &self,
        source: &Source<'_>,
        pinned: &PinnedSegment,
        position: u64,
        end_offset: i64,
        header: &BatchHeader,
    ) -> Result<(), SourceError> {
        let next_position = position + header.size() as u64;
        let mut next = [0; HEADER_LEN];
        let next_base = if next_position + HEADER_LEN as u64 <= pinned.len {
            let read = source.read_exact_at(&mut next, next_position);
            read.map_err(|error| SourceError::new(pinned, next_position, error))?;
            BatchHeader::parse(&next).map_err(|error| SourceError::new(pinned, next_position, error))?.base_offset()
        } else {
            end_offset.min(self.replica.position.end_offset)
        };
        if header.next_offset() <= next_base {
            return Ok(());
        }
        let what = format!("offset {} follows offset {}", next_base, header.last_offset());
        Err(SourceError::new(pinned, position, what))
    }

    /// Looks at what follows the batch that `header` begins.
    fn check_length(
        &self,
        source: &Source<'_>,
        pinned: &PinnedSegment,
        position: u64,
        to: u64,
        header: &BatchHeader,
    ) -> Result<(), SourceError> {
        let end = position + header.size() as u64;
        let mut next = [0; HEADER_LEN];
        let follows = end == to
            || end + HEADER_LEN as u64 <= to
                && source.read_exact_at(&mut next, end).is_ok()
                && BatchHeader::parse(&next).is_ok_and(|next| next.base_offset() >= header.next_offset());
        if follows {
            return Ok(());
        }
        Err(SourceError::new(pinned, position, format!("impossible batch length {}: no batch follows", header.size())))
    }

    /// Reads until `needed` bytes of the batch at `position` are in the buffer; the step's bytes end at `to`.
    fn fill(
        &mut self,
        source: &Source<'_>,
        pinned: &PinnedSegment,
        position: u64,
        to: u64,
        needed: usize,
        sink: &mut dyn Sink,
    ) -> Result<(), SourceError> {
        let open_len = self.open_len();
        let have = self.filled - open_len;
        if have >= needed {
            return Ok(());
        }
        let left = to - position;
        if needed as u64 > left {
            let what = format!("batch is cut short: it needs {needed} bytes, {left} are left");
            return Err(SourceError::new(pinned, position, what));
        }
        if sink.is_stopped() {
            return Err(SourceError::new(pinned, position, "the upload was given up"));
        }
        if self.buffer.is_empty() {
            self.buffer = sink.buffer();
        }
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(needed.max(READ_LEN));
        if self.buffer.len() < open_len + wanted {
            self.buffer.resize(open_len + wanted, 0);
        }
        let (from, to) = (self.filled, open_len + wanted);
        let at = position + have as u64;
        source.read_exact_at(&mut self.buffer[from..to], at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => SourceError::new(
                pinned,
                at,
                format!("file ends before byte {}, it was truncated", at + (to - from) as u64),
            ),
            _ => SourceError::new(pinned, at, error),
        })?;
        self.read_bytes += (to - from) as u64;
        self.filled = to;
        Ok(())
    }

    /// Ends the open chunk, if there is one. What was read beyond it moves to the next buffer.
    fn close(&mut self, sink: &mut dyn Sink) {
        let Some(open) = self.open.take() else { return };
        let len = open.chunk.len as usize;
        let rest = len..self.filled;
        let mut next = Vec::new();
        if !rest.is_empty() {
            next = sink.buffer();
            next[..rest.len()].copy_from_slice(&self.buffer[rest.clone()]);
        }
        self.filled = rest.len();
        sink.put(open.chunk, open.packed_len, std::mem::replace(&mut self.buffer, next));
    }

    /// A chunk of the last point follows.
    fn take(&mut self, chunk: &Chunk) -> Result<(), String> {
        let history = &mut self.history;
        history.follow(chunk.base_offset, chunk.max_epoch)?;
        history.inherit(chunk.base_offset..=chunk.last_offset);
        history.next_offset = chunk.last_offset + 1;
        history.last_batch = None;
        Ok(())
    }

    fn open_len(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.chunk.len as usize)
    }

    fn error(&self, why: String) -> SourceError {
        SourceError::new(&self.replica.segments[0], 0, why)
    }
}

impl OpenChunk {
    fn new(first: &BatchHeader) -> Self {
        let chunk = Chunk { base_offset: first.base_offset(), max_timestamp: -1, max_epoch: -1, ..Chunk::default() };
        Self { chunk, packed_len: 0 }
    }

    fn push(&mut self, batch: &BatchHeader) {
        let chunk = &mut self.chunk;
        chunk.last_offset = batch.last_offset();
        chunk.len += BatchShape::from(batch).len;
        chunk.batches += 1;
        chunk.max_timestamp = chunk.max_timestamp.max(batch.max_timestamp());
        chunk.max_epoch = chunk.max_epoch.max(batch.leader_epoch());
        if matches!(batch.compression(), Ok(Compression::Gzip | Compression::Zstd)) {
            self.packed_len += batch.size();
        }
    }
}

impl History {
    /// Takes in the next batch.
    fn take(&mut self, batch: &Batch<'_>) -> Result<(), String> {
        self.follow(batch.base_offset(), batch.leader_epoch())?;
        self.observe_epoch(batch);
        let known = self.state.end_offset();
        if batch.next_offset() <= known {
            // The state has it already. (A batch across that offset is refused as out of order.)
            if matches!(batch.end_txn_marker(), Ok(Some(_))) {
                self.inherit(batch.base_offset()..=batch.last_offset());
            }
        } else {
            let completed = self.state.apply(batch).map_err(|error| error.to_string())?;
            self.aborted.extend(completed.and_then(|transaction| transaction.aborted()).map(|aborted| {
                AbortedTransaction {
                    producer_id: aborted.producer_id,
                    first_offset: aborted.first_offset,
                    last_offset: aborted.last_offset,
                    last_stable_offset: aborted.last_stable_offset,
                }
            }));
        }
        self.next_offset = batch.next_offset();
        Ok(())
    }

    /// Markers at these offsets are there.
    fn inherit(&mut self, offsets: RangeInclusive<i64>) {
        let from = self.inherited.partition_point(|aborted| aborted.last_offset < *offsets.start());
        let there = self.inherited[from..].iter().take_while(|aborted| aborted.last_offset <= *offsets.end());
        self.aborted.extend(there);
    }

    fn has_gap_before(&self, base_offset: i64) -> bool {
        base_offset > self.next_offset.max(self.contiguous_from)
    }

    fn follow(&mut self, base_offset: i64, epoch: i32) -> Result<(), String> {
        if base_offset < self.next_offset {
            return Err(format!("offset {base_offset} follows offset {}", self.next_offset - 1));
        }
        if epoch < self.last_epoch {
            return Err(format!("leader epoch {epoch} at offset {base_offset} follows epoch {}", self.last_epoch));
        }
        self.last_epoch = epoch;
        Ok(())
    }

    /// Adds an epoch that the history does not have yet: the checkpoint was captured before the log.
    fn observe_epoch(&mut self, batch: &BatchHeader) {
        let (epoch, offset) = (batch.leader_epoch(), batch.base_offset());
        self.epochs.observe(batch);
        let expected = self.epochs.epoch_at(offset);
        if self.notes.is_empty() && expected.is_some_and(|expected| expected != epoch) {
            let expected = expected.unwrap_or(-1);
            self.notes.push(format!(
                "batch at offset {offset} has leader epoch {epoch}, the epoch history has {expected} there"
            ));
        }
    }
}
