//! Which bytes of a replica have to be read, and which chunks of the last point stand for the others.
//!
//! Pure. Bytes are known where a segment's first bytes are those that the last point has of it; a chunk of that point
//! is taken over if all of it is known, whether it lies in one segment or reaches over the ends of several.

use std::ops::Range;

/// A segment below the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes of the segment.
    pub len: u64,
    /// How many of its first bytes the last point has, and where in its stream they begin.
    pub known: Option<(u64, u64)>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The next bytes are those of a chunk of the last point.
    Take {
        /// Index into the last point's chunks.
        chunk: usize,
    },
    /// Read `bytes` of a segment.
    Read {
        /// Index of the segment.
        segment: usize,
        /// From where to where.
        bytes: Range<u64>,
    },
}

/// The steps that yield all `segments`, in order. `chunks` are the lengths of the last point's chunks, `again` those
/// (by index, rising) that are read again although they are known.
pub(super) fn plan(segments: &[Extent], chunks: &[u64], again: &[Range<usize>]) -> Vec<Step> {
    let mut starts = Vec::with_capacity(chunks.len());
    let mut end = 0;
    for len in chunks {
        starts.push(end);
        end += len;
    }
    let folded = |chunk: usize| {
        let fold = again.partition_point(|fold| fold.end <= chunk);
        again.get(fold).is_some_and(|fold| fold.contains(&chunk))
    };
    let usable = |chunk: usize, at: (usize, u64)| match folded(chunk) {
        true => None,
        false => advance(segments, at, chunks[chunk]),
    };

    let mut steps = Vec::new();
    let mut at = (0, 0);
    while let Some(extent) = segments.get(at.0) {
        let (segment, from) = at;
        if from >= extent.len {
            at = (segment + 1, 0);
            continue;
        }
        // The first usable chunk that begins at or after `from` in this segment's known bytes.
        let found = extent.known.filter(|(len, _)| from < *len).and_then(|(len, position)| {
            let first = starts.partition_point(|start| *start < position + from);
            let candidates = starts[first..].iter().take_while(|start| **start < position + len);
            candidates.enumerate().find_map(|(index, start)| {
                let begin = start - position;
                usable(first + index, (segment, begin)).map(|end| (first + index, begin, end))
            })
        });
        let read_to = found.map_or(extent.len, |(_, begin, _)| begin);
        if read_to > from {
            steps.push(Step::Read { segment, bytes: from..read_to });
        }
        match found {
            Some((chunk, _, end)) => {
                steps.push(Step::Take { chunk });
                at = end;
            }
            None => at = (segment + 1, 0),
        }
    }
    steps
}

/// Where `len` bytes from `at` on end, if all of them are known and follow each other in the last point's stream.
fn advance(segments: &[Extent], (mut segment, mut from): (usize, u64), mut len: u64) -> Option<(usize, u64)> {
    loop {
        let extent = &segments[segment];
        let (known, position) = extent.known?;
        if from + len <= known {
            return Some((segment, from + len));
        }
        // Over the end of the segment: it must be known to its end, and the next must be what followed it.
        if known < extent.len {
            return None;
        }
        len -= known - from;
        segment += 1;
        from = 0;
        let (_, next) = segments.get(segment)?.known?;
        if next != position + known {
            return None;
        }
    }
}
