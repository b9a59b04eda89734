use std::io::Write;

use proptest::prelude::*;

use super::{records::MAX_RECORDS_LEN, *};

fn one_record() -> Vec<u8> {
    BatchBuilder::new(7, 3).record(1000, Some(b"k"), Some(b"v")).build()
}

/// Replaces the records of an uncompressed batch by `compressed`, and sets the codec and the CRC.
fn with_records(batch: &[u8], codec: u8, compressed: &[u8]) -> Vec<u8> {
    let mut out = [&batch[..HEADER_LEN], compressed].concat();
    let length = (out.len() - LOG_OVERHEAD) as i32;
    out[8..12].copy_from_slice(&length.to_be_bytes());
    out[22] |= codec;
    seal(&mut out);
    out
}

fn seal(batch: &mut [u8]) {
    let crc = crc32c(&batch[CRC_START..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

fn compress(codec: u8, bytes: &[u8]) -> Vec<u8> {
    match codec {
        1 => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(bytes).unwrap();
            gzip.finish().unwrap()
        }
        2 => snap::raw::Encoder::new().compress_vec(bytes).unwrap(),
        3 => {
            let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
            lz4.write_all(bytes).unwrap();
            lz4.finish().unwrap()
        }
        4 => zstd::encode_all(bytes, 1).unwrap(),
        _ => bytes.to_vec(),
    }
}

/// As snappy-java frames it, in blocks of `block_len`.
fn xerial(bytes: &[u8], block_len: usize) -> Vec<u8> {
    let mut out = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for block in bytes.chunks(block_len) {
        let block = compress(2, block);
        out.extend((block.len() as u32).to_be_bytes());
        out.extend(block);
    }
    out
}

fn error(bytes: &[u8]) -> BatchError {
    Batch::parse(bytes).unwrap_err()
}

#[test]
fn torn_batch_says_what_it_needs() {
    let batch = one_record();
    assert_eq!(error(&[]), BatchError::Truncated { needed: HEADER_LEN });
    assert_eq!(error(&batch[..60]), BatchError::Truncated { needed: HEADER_LEN });
    assert_eq!(error(&batch[..61]), BatchError::Truncated { needed: batch.len() });
    assert_eq!(error(&batch[..batch.len() - 1]), BatchError::Truncated { needed: batch.len() });
}

#[test]
fn preallocated_zeros_are_not_damage() {
    assert_eq!(error(&[0; 12]), BatchError::AllZero);
    assert_eq!(error(&[0; 4096]), BatchError::AllZero);
    assert_eq!(error(&[0; 11]), BatchError::Truncated { needed: HEADER_LEN });
}

#[test]
fn old_message_sets_are_recognised() {
    let mut set = one_record();
    set[8..12].copy_from_slice(&14i32.to_be_bytes());
    for magic in [0, 1] {
        set[16] = magic;
        assert_eq!(error(&set), BatchError::LegacyMagic(magic));
        assert_eq!(error(&set[..17]), BatchError::LegacyMagic(magic));
    }
    set[11] = 13;
    assert_eq!(error(&set), BatchError::BadLength(13));
    set[16] = 3;
    assert_eq!(error(&set), BatchError::BadMagic(3));
}

#[test]
fn impossible_header_fields_are_refused() {
    let with = |at: usize, bytes: &[u8]| {
        let mut batch = one_record();
        batch[at..at + bytes.len()].copy_from_slice(bytes);
        error(&batch)
    };
    let bad = |field, value| BatchError::BadField { field, value };
    assert_eq!(with(8, &48i32.to_be_bytes()), BatchError::BadLength(48));
    assert_eq!(with(8, &(-1i32).to_be_bytes()), BatchError::BadLength(-1));
    assert_eq!(with(0, &(-1i64).to_be_bytes()), bad("base offset", -1));
    assert_eq!(with(0, &i64::MAX.to_be_bytes()), bad("base offset", i64::MAX));
    assert_eq!(with(23, &(-2i32).to_be_bytes()), bad("last offset delta", -2));
    assert_eq!(with(57, &(-1i32).to_be_bytes()), bad("record count", -1));
}

#[test]
fn sequences_wrap_to_zero() {
    let last = |base_sequence, records| {
        let mut batch = BatchBuilder::new(0, 0).producer(1, 0, base_sequence);
        (0..records).for_each(|_| batch.push(0, None, None, &[]));
        Batch::parse(&batch.build()).unwrap().last_sequence()
    };
    assert_eq!(last(5, 3), 7);
    assert_eq!(last(i32::MAX, 2), 0);
    assert_eq!(last(i32::MAX - 1, 4), 1);
    assert_eq!(last(-1, 3), -1);
}

#[test]
fn abort_marker_has_the_bytes_that_kafka_writes() {
    let marker = EndTxnMarker { commit: false, coordinator_epoch: 9 };
    let bytes = end_txn_marker_batch(16, 2, 1_750_000_000_000, 1000, 4, marker);
    let batch = Batch::parse(&bytes).unwrap();
    batch.check_crc().unwrap();
    assert_eq!((batch.attributes(), batch.base_sequence(), batch.size()), (0x30, -1, 78));
    assert_eq!((batch.base_offset(), batch.last_offset(), batch.leader_epoch()), (16, 16, 2));
    assert_eq!((batch.producer_id(), batch.producer_epoch()), (1000, 4));
    assert_eq!(bytes[61..], [32, 0, 0, 0, 8, 0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 9, 0]);
    assert_eq!(batch.control_type(), Ok(Some(ControlType::Abort)));
    assert_eq!(batch.end_txn_marker(), Ok(Some(marker)));
}

#[test]
fn other_batches_are_no_markers() {
    let plain = one_record();
    assert_eq!(Batch::parse(&plain).unwrap().control_type(), Ok(None));
    let leader_change = BatchBuilder::new(0, 0).control().record(0, Some(&[0, 0, 0, 2]), Some(&[0; 8])).build();
    let batch = Batch::parse(&leader_change).unwrap();
    assert_eq!(batch.control_type(), Ok(Some(ControlType::LeaderChange)));
    assert_eq!(batch.end_txn_marker(), Ok(None));
    let short = BatchBuilder::new(0, 0).control().record(0, Some(&[0, 0, 0, 1]), Some(&[0; 5])).build();
    assert!(matches!(Batch::parse(&short).unwrap().end_txn_marker(), Err(BatchError::BadControl(_))));
}

#[test]
fn log_append_time_is_every_record_s() {
    let mut batch = BatchBuilder::new(0, 0).record(5, None, None).record(6, None, None).build();
    batch[22] |= 0x08;
    batch[35..43].copy_from_slice(&99i64.to_be_bytes());
    let timestamps = Batch::parse(&batch).unwrap().records().unwrap().map(|r| r.unwrap().timestamp);
    assert_eq!(timestamps.collect::<Vec<_>>(), [99, 99]);
}

#[test]
fn decompression_stops_at_the_limit() {
    let zeros = vec![0; 1 << 20];
    for codec in 1..=4 {
        let batch = with_records(&one_record(), codec, &compress(codec, &zeros));
        let batch = Batch::parse(&batch).unwrap();
        assert_eq!(batch.records_within(1000).unwrap_err(), BatchError::TooLong { limit: 1000 });
    }
    let batch = with_records(&one_record(), 2, &xerial(&zeros, 600));
    let batch = Batch::parse(&batch).unwrap();
    assert_eq!(batch.records_within(1000).unwrap_err(), BatchError::TooLong { limit: 1000 });
}

#[test]
fn records_must_fill_the_batch() {
    let mut short = one_record();
    short[60] = 2;
    let found: Vec<_> = Batch::parse(&short).unwrap().records().unwrap().collect();
    assert!(matches!(found[..], [Ok(_), Err(BatchError::BadRecord { index: 1, .. })]));
    let long = with_records(&one_record(), 0, &[&one_record()[61..], b"x"].concat());
    let found: Vec<_> = Batch::parse(&long).unwrap().records().unwrap().collect();
    assert!(matches!(found[..], [Ok(_), Err(BatchError::BadRecord { index: 1, .. })]));
    let unknown = with_records(&one_record(), 5, b"");
    assert_eq!(Batch::parse(&unknown).unwrap().records().unwrap_err(), BatchError::BadCompression(5));
}

#[test]
fn iterator_stops_at_the_first_torn_batch() {
    let (a, b) = (one_record(), BatchBuilder::new(8, 3).record(0, None, None).build());
    let bytes = [&a[..], &b, &a[..30]].concat();
    let mut batches = Batches::new(&bytes);
    assert_eq!(batches.next().unwrap().unwrap().0, 0);
    assert_eq!(batches.next().unwrap().unwrap().0, a.len());
    assert!(batches.next().unwrap().is_err());
    assert!(batches.next().is_none());
    assert_eq!(batches.position(), a.len() + b.len());
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40)
}

prop_compose! {
    fn record()(
        offset in Just(0),
        timestamp in -1i64..2_000_000_000_000,
        key in prop::option::of(bytes()),
        value in prop::option::of(bytes()),
        headers in prop::collection::vec((bytes(), prop::option::of(bytes())), 0..3),
    ) -> Record {
        let headers = headers.into_iter().map(|(key, value)| RecordHeader { key, value }).collect();
        Record { offset, timestamp, key, value, headers }
    }
}

proptest! {
    #[test]
    fn records_read_back_from_every_codec(
        base_offset in 0i64..1 << 50, leader_epoch in 0i32.., producer in (0i64.., 0i16.., 0i32..),
        mut sent in prop::collection::vec(record(), 1..12),
        codec in 0u8..=4, block_len in 1usize..200,
    ) {
        let mut builder = BatchBuilder::new(base_offset, leader_epoch)
            .transactional()
            .producer(producer.0, producer.1, producer.2);
        for (i, record) in sent.iter_mut().enumerate() {
            record.offset = base_offset + i as i64;
            builder.push(record.timestamp, record.key.as_deref(), record.value.as_deref(), &record.headers);
        }
        let plain = builder.build();
        let mut encodings = vec![with_records(&plain, codec, &compress(codec, &plain[HEADER_LEN..]))];
        if codec == 2 {
            encodings.push(with_records(&plain, codec, &xerial(&plain[HEADER_LEN..], block_len)));
        }
        for bytes in encodings {
            let batch = Batch::parse(&bytes).unwrap();
            batch.check_crc().unwrap();
            prop_assert_eq!(batch.bytes(), &bytes[..]);
            prop_assert_eq!((batch.producer_id(), batch.producer_epoch(), batch.base_sequence()), producer);
            prop_assert_eq!(batch.next_offset(), base_offset + sent.len() as i64);
            prop_assert_eq!(batch.max_timestamp(), sent.iter().map(|r| r.timestamp).max().unwrap());
            prop_assert!(batch.is_transactional() && !batch.is_control() && !batch.is_log_append_time());
            let read: Result<Vec<_>, _> = batch.records().unwrap().collect();
            prop_assert_eq!(read.as_ref(), Ok(&sent));
        }
    }

    /// Bit flips are found by the CRC, but for the header bytes that are not under it.
    #[test]
    fn flipped_bits_are_noticed_and_never_panic(at: prop::sample::Index, bit in 0u8..8, codec in 0u8..=4) {
        let plain = one_record();
        let mut bytes = with_records(&plain, codec, &compress(codec, &plain[HEADER_LEN..]));
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(batch) = Batch::parse(&bytes) {
            prop_assert!(at < 16 || batch.check_crc().is_err());
        }
        seal(&mut bytes);
        if let Ok(batch) = Batch::parse(&bytes) {
            let _ = (batch.records().map(|r| r.count()), batch.control_type(), batch.end_txn_marker());
        }
    }

    #[test]
    fn any_records_decode_or_fail(codec in 0u8..8, count in 0i32..10, records in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = with_records(&one_record(), codec, &records);
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        if let Ok(records) = Batch::parse(&bytes).unwrap().records_within(MAX_RECORDS_LEN) {
            prop_assert!(records.count() <= 11);
        }
    }

    #[test]
    fn any_bytes_parse_or_fail(bytes: Vec<u8>) {
        prop_assert!(Batches::new(&bytes).filter(|found| found.is_err()).count() <= 1);
    }
}
