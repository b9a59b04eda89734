//! A stream of two segments and three chunks, and what can be wrong with it.

use segvault_kafka_log::batch::BatchBuilder;
use segvault_vault_format::manifest::{Epoch, Segment};

use super::*;

/// A batch of `records` records.
fn batch(base: i64, epoch: i32, records: i64) -> Vec<u8> {
    let mut batch = BatchBuilder::new(base, epoch);
    (0..records).for_each(|n| batch.push(1000 + base + n, None, Some(b"value"), &[]));
    batch.build()
}

/// Offsets 10 to 39, four batches in three chunks; a segment begins at 10 and one at 20, inside the second chunk.
struct Case {
    chunks: Vec<Vec<u8>>,
    stream: Stream,
}

impl Case {
    fn new() -> Self {
        let batches = [batch(10, 1, 5), batch(15, 1, 5), batch(20, 2, 10), batch(30, 4, 10)];
        let lens: Vec<u64> = batches.iter().map(|batch| batch.len() as u64).collect();
        let [first, second, third, fourth] = batches;
        let chunks = vec![first, [second, third].concat(), fourth];
        let entry = |index: usize, base_offset, last_offset, batches, max_epoch| Chunk {
            base_offset,
            last_offset,
            len: chunks[index].len() as u32,
            batches,
            max_timestamp: 1000 + last_offset,
            max_epoch,
            ..Chunk::default()
        };
        let segment = |base_offset, position| Segment { base_offset, position, aborted: Vec::new() };
        let epoch = |epoch, start_offset| Epoch { epoch, start_offset };
        let stream = Stream {
            topic: "t".to_owned(),
            log_start_offset: 12,
            end_offset: 40,
            chunks: vec![entry(0, 10, 14, 1, 1), entry(1, 15, 29, 2, 2), entry(2, 30, 39, 1, 4)],
            segments: vec![segment(10, 0), segment(20, lens[0] + lens[1])],
            epochs: vec![epoch(1, 5), epoch(2, 20), epoch(4, 30)],
            ..Stream::default()
        };
        Self { chunks, stream }
    }

    /// What is wrong, and by which level.
    fn flaws(&self, gaps: Gaps) -> Vec<(u8, String)> {
        let mut flaws = Flaws::default();
        let mut check = LogCheck::new(&self.stream, "t-0".to_owned(), gaps);
        let mut seen = 0;
        for chunk in &self.chunks {
            check.chunk(chunk, &mut flaws, |_, _, _| seen += 1);
        }
        check.finish(&mut flaws);
        assert_eq!(check.batches, seen);
        let (flaws, _, _) = flaws.into_parts();
        flaws.into_iter().map(|flaw| (flaw.level, flaw.what)).collect()
    }
}

#[test]
fn a_stream_that_is_as_its_manifest_says_has_no_flaw() {
    assert_eq!(Case::new().flaws(Gaps::Unexplained), []);
}

#[test]
fn every_difference_is_seen() {
    type Change = fn(&mut Case);
    let changes: [(Change, &str); 13] = [
        (|case| *case.chunks[1].last_mut().unwrap() ^= 1, "the batch at offset 20: "),
        (|case| case.chunks[1].truncate(80), "chunk 1: "),
        (|case| case.stream.chunks[0].base_offset = 11, "chunk 0 has"),
        (|case| case.stream.chunks[1].batches = 3, "chunk 1 has"),
        (|case| case.stream.chunks[2].max_timestamp += 1, "chunk 2 has"),
        (|case| case.stream.chunks[2].max_epoch = 5, "chunk 2 has"),
        (|case| case.chunks[2] = batch(29, 4, 11), "offset 29 follows offset 29"),
        (|case| case.chunks[2] = batch(30, 1, 10), "leader epoch 1 at offset 30 follows 2"),
        (|case| case.stream.epochs[2].start_offset = 31, "leader epoch 4 at offset 30 is Some(2) in the epoch history"),
        (|case| case.stream.segments[1].position += 1, "inside a batch"),
        (|case| case.stream.segments[1].base_offset = 19, "offset 19 lies in the segment before its own"),
        (|case| case.stream.segments[1].base_offset = 21, "offset 20 lies in segment 21"),
        (|case| case.stream.end_offset = 39, "it reaches offset 39, past its cut at 39"),
    ];
    for (change, expected) in changes {
        let mut case = Case::new();
        change(&mut case);
        let flaws = case.flaws(Gaps::Unexplained);
        assert!(flaws.iter().any(|(level, what)| *level == 0 && what.contains(expected)), "{expected}: {flaws:?}");
    }
}

#[test]
fn offsets_may_be_missing_only_where_that_is_explained() {
    let gaps: [fn(&mut Case); 3] = [
        |case| case.stream.log_start_offset = 8,
        |case| case.stream.end_offset = 41,
        |case| {
            case.chunks[2] = batch(31, 4, 9);
            case.stream.chunks[2].base_offset = 31;
        },
    ];
    for gap in gaps {
        let mut case = Case::new();
        gap(&mut case);
        case.stream.chunks[2].len = case.chunks[2].len() as u32;
        let levels = |gaps| case.flaws(gaps).into_iter().map(|(level, _)| level).collect::<Vec<_>>();
        assert_eq!((levels(Gaps::Unexplained), levels(Gaps::Told), levels(Gaps::Expected)), (vec![0], vec![3], vec![]));
    }
}
