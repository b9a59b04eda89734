//! Where a stream of record batches is cut into chunks.
//!
//! Three rules, in this order:
//!
//! 1. **Guided.** Where the vault knows the stream already, cut exactly where it has cuts: then chunks with the same
//!    bytes have the same hash, whoever the source is and wherever its segments end. The end of a tail at the last
//!    point is such a cut, so its growth becomes a *piece* of its own and nothing is stored twice.
//! 2. **Content.** Beyond, a batch closes a chunk of at least [`CHUNK_MIN`] if its CRC (already there, so no rolling
//!    hash) lies below a threshold in proportion to its length. A fixed mask would give chunks from 265 KiB to 3.5 MiB
//!    depending on the size of batches.
//! 3. **Forced.** A segment's end closes a chunk of new data, so that a segment's chunks depend on its own bytes alone.
//!
//! No chunk grows past [`CHUNK_MAX`], except that a longer batch is a chunk of its own. The rule is part of the format
//! only in so far as two vaults, or two sources, should cut alike: a reader never needs it.

use std::ops::Range;

use segvault_kafka_log::batch::BatchHeader;

use crate::manifest::Chunk;

/// Content closes no chunk shorter than this, in bytes.
pub const CHUNK_MIN: u32 = 256 << 10;
/// Mean length that the content rule aims at, in bytes.
pub const CHUNK_AVG: u32 = 1 << 20;
/// Length that a chunk of more than one batch does not exceed, in bytes.
pub const CHUNK_MAX: u32 = 4 << 20;

/// So many pieces in a row are left as they are: folding them at once would write 2 to 40 times what was appended.
pub const PIECES_MAX: usize = 8;

/// What the chunker needs to know of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Bytes of the whole batch.
    pub len: u32,
    /// The CRC in its header.
    pub crc: u32,
    /// First offset.
    pub base_offset: i64,
    /// Last offset.
    pub last_offset: i64,
}

impl From<&BatchHeader> for BatchShape {
    fn from(batch: &BatchHeader) -> Self {
        Self {
            len: u32::try_from(batch.size()).expect("a batch's length is an i32 plus 12"),
            crc: batch.crc(),
            base_offset: batch.base_offset(),
            last_offset: batch.last_offset(),
        }
    }
}

/// Decides, batch by batch, where the current chunk ends.
///
/// For each batch of the stream in order: [`Chunker::before`], and [`Chunker::end_segment`] after the last batch of each
/// segment. Where either says true, the bytes collected so far are a chunk. What is left at the end is a chunk too.
#[derive(Clone, Debug)]
pub struct Chunker {
    /// Offsets at which the vault has cuts, rising.
    cuts: Vec<i64>,
    /// How many of `cuts` lie at or below the last batch's end.
    passed: usize,
    /// Bytes in the current chunk.
    len: u32,
    /// The batch just taken closes the chunk by its content.
    closed: bool,
}

impl Chunker {
    /// `cuts`: the offsets at which the vault has cuts in this stream, from [`known_cuts`]; none for a new stream.
    pub fn new(mut cuts: Vec<i64>) -> Self {
        cuts.sort_unstable();
        Self { cuts, passed: 0, len: 0, closed: false }
    }

    /// Takes the next batch. True: the chunk ends before it, and it is the first of the next one.
    pub fn before(&mut self, batch: &BatchShape) -> bool {
        let at_cut = self.pass(batch.base_offset);
        let full = self.len.saturating_add(batch.len) > CHUNK_MAX;
        let ends = self.len > 0 && (at_cut || full || self.closed);
        let len = if ends { 0 } else { self.len };
        self.len = len.saturating_add(batch.len);
        self.closed = !self.guided() && self.len >= CHUNK_MIN && is_boundary(batch);
        // Cuts inside the batch are of no use any more: the bytes differ from what the vault has.
        self.pass(batch.last_offset);
        ends
    }

    /// The segment ends here. True: so does the chunk.
    pub fn end_segment(&mut self) -> bool {
        let ends = self.len > 0 && !self.guided();
        if ends {
            self.len = 0;
            self.closed = false;
        }
        ends
    }

    /// Moves past the cuts at or below `offset`; true if there were any.
    fn pass(&mut self, offset: i64) -> bool {
        let passed = self.cuts[self.passed..].iter().take_while(|cut| **cut <= offset).count();
        self.passed += passed;
        passed > 0
    }

    /// Between the first cut and the last one, the vault knows the stream.
    fn guided(&self) -> bool {
        (1..self.cuts.len()).contains(&self.passed)
    }
}

/// One chance in (avg − min) / length: the threshold goes with the batch's length, so the mean does not depend on it.
fn is_boundary(batch: &BatchShape) -> bool {
    u64::from(batch.crc) * u64::from(CHUNK_AVG - CHUNK_MIN) < u64::from(batch.len) << 32
}

/// The offsets at which a stream with these chunks has cuts, without those inside a run to fold (see [`plan_folds`]).
pub fn known_cuts(chunks: &[Chunk], folds: &[Range<usize>]) -> Vec<i64> {
    let folded = |index: &usize| folds.iter().any(|fold| fold.start < *index && *index < fold.end);
    let mut cuts: Vec<i64> = (0..chunks.len())
        .filter(|index| !folded(index))
        // A gap in the offsets makes two cuts, so that what another source has in it is a chunk of its own.
        .flat_map(|index| [chunks[..index].last().map(|chunk| chunk.last_offset + 1), Some(chunks[index].base_offset)])
        .flatten()
        .chain(chunks.last().map(|chunk| chunk.last_offset + 1))
        .collect();
    cuts.dedup();
    cuts
}

/// Runs of more than [`PIECES_MAX`] chunks shorter than [`CHUNK_MIN`] that should become one chunk each.
///
/// A run ends when it has grown to [`CHUNK_AVG`] or a longer chunk follows; before, it is still open and left alone.
/// Whoever takes the next point re-reads those chunks as one, which costs each byte one more write in its life and
/// bounds what a restore has to look up. Ranges are indices into `chunks`.
pub fn plan_folds(chunks: &[Chunk]) -> Vec<Range<usize>> {
    let mut folds = Vec::new();
    let (mut start, mut len) = (0, 0);
    let mut close = |run: Range<usize>| {
        if run.len() > PIECES_MAX {
            folds.push(run);
        }
    };
    for (index, chunk) in chunks.iter().enumerate() {
        if chunk.len >= CHUNK_MIN {
            close(start..index);
            (start, len) = (index + 1, 0);
            continue;
        }
        len += chunk.len;
        if len >= CHUNK_AVG {
            close(start..index + 1);
            (start, len) = (index + 1, 0);
        }
    }
    folds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Chunks that the chunker makes of `batches`, with a segment's end after each index in `ends`.
    fn cut(mut chunker: Chunker, batches: &[BatchShape], ends: &[usize]) -> Vec<Chunk> {
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut open = false;
        for (index, batch) in batches.iter().enumerate() {
            if chunker.before(batch) || !open {
                chunks.push(Chunk { base_offset: batch.base_offset, ..Chunk::default() });
            }
            let chunk = chunks.last_mut().unwrap();
            chunk.len += batch.len;
            chunk.batches += 1;
            chunk.last_offset = batch.last_offset;
            open = !(ends.contains(&index) && chunker.end_segment());
        }
        chunks
    }

    fn fresh() -> Chunker {
        Chunker::new(Vec::new())
    }

    fn guided(chunks: &[Chunk]) -> Chunker {
        Chunker::new(known_cuts(chunks, &[]))
    }

    /// Batches of some lengths, with gaps in the offsets here and there.
    fn batches(lens: Range<u32>, count: usize) -> impl Strategy<Value = Vec<BatchShape>> {
        prop::collection::vec((lens, any::<u32>(), 0..50_i64, 0..3_i64), 1..count).prop_map(|shapes| {
            let mut offset = 0;
            let mut batches = Vec::new();
            for (len, crc, delta, gap) in shapes {
                let base_offset = offset + gap / 2;
                let last_offset = base_offset + delta;
                batches.push(BatchShape { len, crc, base_offset, last_offset });
                offset = last_offset + 1;
            }
            batches
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn sizes_are_in_bounds(batches in batches(61..600_000, 200)) {
            let chunks = cut(fresh(), &batches, &[]);
            prop_assert_eq!(chunks.iter().map(|c| c.batches as usize).sum::<usize>(), batches.len());
            for (index, chunk) in chunks.iter().enumerate() {
                prop_assert!(chunk.len <= CHUNK_MAX);
                prop_assert!(chunk.len >= CHUNK_MIN || index + 1 == chunks.len());
            }
        }

        #[test]
        fn content_alone_decides_after_a_common_cut(batches in batches(61..300_000, 300), drop in 0..40_usize) {
            let whole = cut(fresh(), &batches, &[]);
            let skipped = whole.iter().take(drop % whole.len()).map(|c| c.batches as usize).sum::<usize>();
            let rest = cut(fresh(), &batches[skipped..], &[]);
            prop_assert!(whole.ends_with(&rest));
        }

        #[test]
        fn guided_cuts_repeat_the_previous_chunks_whatever_the_segments(
            batches in batches(61..300_000, 300),
            known in 1..300_usize,
            ends in prop::collection::vec(0..300_usize, 0..20),
            other_ends in prop::collection::vec(0..300_usize, 0..20),
            start in 0..300_usize,
        ) {
            let known = known.min(batches.len());
            let previous = cut(fresh(), &batches[..known], &ends);
            let next = cut(guided(&previous), &batches, &other_ends);
            prop_assert!(next.starts_with(&previous), "{:?}", next);
            // A source that begins later has all known chunks but the ones it begins within.
            let start = start.min(known - 1);
            let later = cut(guided(&previous), &batches[start..], &[]);
            let first = previous.iter().position(|c| c.base_offset >= batches[start].base_offset);
            if let Some(first) = first {
                let skip = usize::from(later[0] != previous[first]);
                prop_assert!(later[skip..].starts_with(&previous[first..]));
            }
            // And one that begins earlier cuts there too.
            let (head, tail) = previous.split_at(previous.len() / 2);
            let longer = cut(guided(tail), &batches, &[]);
            prop_assert!(head.is_empty() || longer.windows(tail.len()).any(|window| window == tail));
        }

        #[test]
        fn growth_is_a_piece_and_nothing_else_changes(
            batches in batches(61..9_000, 200),
            points in prop::collection::btree_set(1..200_usize, 1..30),
        ) {
            let mut known: Vec<Chunk> = Vec::new();
            for end in points.into_iter().map(|end| end.min(batches.len())) {
                let next = cut(guided(&known), &batches[..end], &[]);
                prop_assert!(next.starts_with(&known));
                known = next;
            }
        }
    }

    #[test]
    fn the_mean_does_not_depend_on_the_length_of_batches() {
        for len in [239, 16 << 10, 218 << 10] {
            let count = (512 << 20) / len;
            // The golden ratio spreads the CRCs evenly.
            let batch = |i: u32| BatchShape {
                len,
                crc: i.wrapping_mul(0x9e37_79b9) ^ (i << 7),
                base_offset: i64::from(i),
                last_offset: i64::from(i),
            };
            let batches: Vec<_> = (0..count).map(batch).collect();
            let mean = 512.0 / cut(fresh(), &batches, &[]).len() as f64;
            assert!((0.7..1.4).contains(&mean), "batches of {len} bytes give chunks of {mean:.2} MiB");
        }
    }

    #[test]
    fn a_batch_longer_than_the_maximum_is_a_chunk_of_its_own() {
        let batch = |len, offset| BatchShape { len, crc: u32::MAX, base_offset: offset, last_offset: offset };
        let batches = [batch(1000, 0), batch(CHUNK_MAX + 1, 1), batch(1000, 2), batch(1000, 3)];
        let lens: Vec<u32> = cut(fresh(), &batches, &[]).iter().map(|chunk| chunk.len).collect();
        assert_eq!(lens, [1000, CHUNK_MAX + 1, 2000]);
    }

    #[test]
    fn a_segments_end_closes_new_chunks_only() {
        let batch = |offset| BatchShape { len: 1000, crc: u32::MAX, base_offset: offset, last_offset: offset };
        let batches: Vec<_> = (0..6).map(batch).collect();
        let batches_of = |chunks: &[Chunk]| chunks.iter().map(|chunk| chunk.batches).collect::<Vec<_>>();
        let first = cut(fresh(), &batches[..4], &[1]);
        assert_eq!(batches_of(&first), [2, 2]);
        assert_eq!(batches_of(&cut(guided(&first), &batches, &[0, 2, 4])), [2, 2, 1, 1]);
    }

    #[test]
    fn runs_of_pieces_fold_once_they_are_closed() {
        let chunks = |lens: &[(u32, usize)]| -> Vec<Chunk> {
            let lens = lens.iter().flat_map(|(len, count)| vec![*len; *count]);
            let chunk = |(i, len)| Chunk { len, base_offset: i as i64, last_offset: i as i64, ..Chunk::default() };
            lens.enumerate().map(chunk).collect()
        };
        let k = 1 << 10;
        for (lens, folds) in [
            (vec![(16 * k, 30)], None),                     // Still open.
            (vec![(16 * k, 70)], Some(0..64)),              // Grown to 1 MiB.
            (vec![(4 * k, 9), (CHUNK_MIN, 1)], Some(0..9)), // Closed by a longer chunk.
            (vec![(4 * k, 8), (CHUNK_MIN, 1)], None),       // Too few to be worth it.
            (vec![(200 * k, 20)], None),
        ] {
            assert_eq!(plan_folds(&chunks(&lens)), Vec::from_iter(folds), "{lens:?}");
        }
        let pieces = chunks(&[(4 * k, 9), (CHUNK_MIN, 1)]);
        assert_eq!(known_cuts(&pieces, &plan_folds(&pieces)), [0, 9, 10]);
    }
}
