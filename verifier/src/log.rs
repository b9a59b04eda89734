//! L0: one stream is a prefix of its partition's history, and its manifest says what its bytes say.

use segvault_kafka_log::batch::{Batch, Batches};
use segvault_vault_format::manifest::{Chunk, Stream};

use crate::flaws::Flaws;

/// Whether offsets may be missing between batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gaps {
    /// The cleaner removes records of the topic.
    Expected,
    /// The point says that it has a hole: no replica had more.
    Told,
    /// Nothing explains one.
    Unexplained,
}

/// Goes through a stream, chunk by chunk.
pub struct LogCheck<'a> {
    stream: &'a Stream,
    place: String,
    gaps: Gaps,
    chunk: usize,
    position: u64,
    segment: usize,
    /// First offset that has not been seen.
    next: Option<i64>,
    last_epoch: i32,
    last_epoch_entry: Option<usize>,
    /// Whether offsets are missing anywhere.
    pub has_gap: bool,
    /// Batches seen.
    pub batches: u64,
}

/// What a chunk's entry in the manifest says of its batches.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    base_offset: i64,
    last_offset: i64,
    batches: u32,
    max_timestamp: i64,
    max_epoch: i32,
}

impl From<&Chunk> for Contents {
    fn from(chunk: &Chunk) -> Self {
        let Chunk { base_offset, last_offset, batches, max_timestamp, max_epoch, .. } = *chunk;
        Self { base_offset, last_offset, batches, max_timestamp, max_epoch }
    }
}

impl<'a> LogCheck<'a> {
    /// At the beginning of `stream`, whose manifest is consistent in itself.
    pub fn new(stream: &'a Stream, place: String, gaps: Gaps) -> Self {
        Self {
            stream,
            place,
            gaps,
            chunk: 0,
            position: 0,
            segment: 0,
            next: None,
            last_epoch: -1,
            last_epoch_entry: None,
            has_gap: false,
            batches: 0,
        }
    }

    /// What flaws are said to be in.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Takes the next chunk's bytes, and shows each batch that is whole to `look`, with whether offsets are missing before
    /// it.
    pub fn chunk(&mut self, bytes: &[u8], flaws: &mut Flaws, mut look: impl FnMut(&Batch<'_>, bool, &mut Flaws)) {
        let chunk = &self.stream.chunks[self.chunk];
        let mut contents = Contents { base_offset: -1, last_offset: -1, batches: 0, max_timestamp: -1, max_epoch: -1 };
        for batch in Batches::new(bytes) {
            let (at, batch) = match batch {
                Ok(found) => found,
                Err(error) => {
                    flaws.add(0, &self.place, format!("chunk {}: {error}", self.chunk));
                    break;
                }
            };
            let base = batch.base_offset();
            if let Err(error) = batch.check_crc() {
                flaws.add(0, &self.place, format!("the batch at offset {base}: {error}"));
            }
            let after_gap = self.order(&batch, flaws);
            self.segments(self.position + at as u64, &batch, flaws);
            self.epoch(&batch, flaws);
            self.next = Some(batch.next_offset());
            if contents.batches == 0 {
                contents.base_offset = base;
            }
            contents.last_offset = batch.last_offset();
            contents.batches += 1;
            contents.max_timestamp = contents.max_timestamp.max(batch.max_timestamp());
            contents.max_epoch = contents.max_epoch.max(batch.leader_epoch());
            self.batches += 1;
            look(&batch, after_gap, flaws);
        }
        if contents != Contents::from(chunk) || bytes.len() != chunk.len as usize {
            let said = Contents::from(chunk);
            flaws.add(0, &self.place, format!("chunk {} has {contents:?}, its manifest says {said:?}", self.chunk));
        }
        self.position += u64::from(chunk.len);
        self.chunk += 1;
    }

    /// Whether offsets are missing before the batch.
    fn order(&mut self, batch: &Batch<'_>, flaws: &mut Flaws) -> bool {
        let base = batch.base_offset();
        // Nothing below the log's start is served; its segment may begin lower.
        let expected = self.next.unwrap_or(self.stream.log_start_offset);
        if self.next.is_some() && base < expected {
            flaws.add(0, &self.place, format!("offset {base} follows offset {}", expected - 1));
        }
        let is_gap = base > expected;
        if is_gap {
            self.gap(expected, base, flaws);
        }
        is_gap
    }

    fn gap(&mut self, from: i64, to: i64, flaws: &mut Flaws) {
        self.has_gap = true;
        let what = || format!("offsets {from} to {} are missing", to - 1);
        match self.gaps {
            Gaps::Expected => {}
            // The point says so, and promises less.
            Gaps::Told => flaws.add(3, &self.place, what() + ", as the point says"),
            Gaps::Unexplained => flaws.add(0, &self.place, what() + ", and the topic is not known to be compacted"),
        }
    }

    /// Segments begin between batches, and hold what their names say.
    fn segments(&mut self, position: u64, batch: &Batch<'_>, flaws: &mut Flaws) {
        while let Some(segment) = self.stream.segments.get(self.segment).filter(|next| next.position <= position) {
            let base = segment.base_offset;
            if segment.position < position {
                let what = format!("segment {base} begins at byte {}, inside a batch", segment.position);
                flaws.add(0, &self.place, what);
            } else if self.next.is_some_and(|next| next > base) {
                flaws.add(0, &self.place, format!("offset {base} lies in the segment before its own"));
            }
            self.segment += 1;
        }
        let current = self.segment.checked_sub(1).and_then(|index| self.stream.segments.get(index));
        if let Some(segment) = current.filter(|segment| batch.base_offset() < segment.base_offset) {
            let what = format!("offset {} lies in segment {}", batch.base_offset(), segment.base_offset);
            flaws.add(0, &self.place, what);
        }
    }

    /// Epochs do not fall, and are those of the epoch history.
    fn epoch(&mut self, batch: &Batch<'_>, flaws: &mut Flaws) {
        let (epoch, base) = (batch.leader_epoch(), batch.base_offset());
        if epoch < self.last_epoch {
            flaws.add(0, &self.place, format!("leader epoch {epoch} at offset {base} follows {}", self.last_epoch));
        }
        self.last_epoch = self.last_epoch.max(epoch);
        // The metadata log has no history of epochs, and what lies below the log's start has none any more. What a history
        // lacks a restore makes from the batches; what it has must be so.
        if self.stream.partition < 0 || self.stream.epochs.is_empty() || base < self.stream.log_start_offset {
            return;
        }
        let mut entry = self.last_epoch_entry;
        let first = entry.map_or(0, |entry| entry + 1);
        for (index, next) in self.stream.epochs.iter().enumerate().skip(first) {
            if next.start_offset > base {
                break;
            }
            entry = Some(index);
        }
        self.last_epoch_entry = entry;
        let known = entry.map(|entry| self.stream.epochs[entry].epoch);
        if known.is_some_and(|known| known != epoch) {
            let what = format!("leader epoch {epoch} at offset {base} is {known:?} in the epoch history");
            flaws.add(0, &self.place, what);
        }
    }

    /// After the last chunk: the stream reaches the cut.
    pub fn finish(&mut self, flaws: &mut Flaws) {
        if self.chunk != self.stream.chunks.len() {
            return; // A chunk could not be read, and that is told.
        }
        let end = self.stream.end_offset;
        let next = self.next.unwrap_or(self.stream.log_start_offset);
        if next > end {
            flaws.add(0, &self.place, format!("it reaches offset {}, past its cut at {end}", next - 1));
        } else if next < end {
            self.gap(next, end, flaws);
        }
        for segment in &self.stream.segments[self.segment..] {
            if segment.position != self.position {
                let (base, position) = (segment.base_offset, segment.position);
                flaws.add(0, &self.place, format!("segment {base} begins at byte {position}, past the end"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
