//! Log dirs that real brokers wrote, one per version in `tests/data/<version>/log-dir` (made by
//! `tests/data/LogDir.java`): everything in them decodes, and what can be rebuilt comes out as Kafka wrote it.

#![allow(clippy::disallowed_methods, reason = "what is pure is the crate, not its tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use segvault_kafka_log::{
    TopicPartition,
    batch::{Batch, Batches, Compression, Record},
    checkpoint::{LeaderEpochs, decode_offsets, encode_offsets},
    clean_shutdown::CleanShutdown,
    index::{decode_offset_index, decode_time_index, decode_txn_index},
    meta_properties::{MetaProperties, MetaVersion},
    names::{self, LogDirEntry, SegmentFile, SegmentFileKind, SegmentFileState, segment_file_name},
    partition_metadata::PartitionMetadata,
    producer::{ProducerSnapshot, ProducerState},
    side_files::{SideFileBuilder, SideFileOptions, SideFiles},
};

/// The log dir of each version.
fn log_dirs() -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let versions = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path().join("log-dir"));
    let dirs: Vec<_> = versions.filter(|dir| dir.is_dir()).collect();
    assert!(dirs.len() >= 3, "a log dir of each supported version");
    dirs
}

/// The partitions of all log dirs.
fn partitions() -> Vec<(TopicPartition, PathBuf)> {
    let entries = log_dirs().into_iter().flat_map(|dir| fs::read_dir(dir).unwrap());
    let dirs = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    dirs.map(|dir| match LogDirEntry::parse(file_name(&dir)) {
        LogDirEntry::Partition(partition) => (partition, dir),
        other => panic!("{}: {other:?}", dir.display()),
    })
    .collect()
}

fn file_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn read(dir: &Path, name: &str) -> Vec<u8> {
    fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{}/{name}: {e}", dir.display()))
}

/// The files of one kind in a partition directory: base offset and bytes.
fn files(dir: &Path, kind: SegmentFileKind) -> BTreeMap<i64, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter_map(|path| SegmentFile::parse(file_name(&path)));
    files
        .filter(|file| file.kind == kind && file.state == SegmentFileState::Live)
        .map(|file| (file.base_offset, read(dir, &file.to_string())))
        .collect()
}

fn batches(segment: &[u8]) -> impl Iterator<Item = (usize, Batch<'_>)> {
    Batches::new(segment).map(|found| found.unwrap())
}

fn records(batch: &Batch<'_>) -> Vec<Record> {
    batch.records().unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn every_batch_is_whole_and_its_records_decode() {
    let mut codecs = BTreeSet::new();
    for (partition, dir) in partitions() {
        let mut next_offset = 0;
        for (base_offset, segment) in files(&dir, SegmentFileKind::Log) {
            for (_, batch) in batches(&segment) {
                batch.check_crc().unwrap();
                assert!(batch.base_offset() >= next_offset.max(base_offset));
                next_offset = batch.next_offset();
                codecs.insert(batch.compression().unwrap());
                let records = records(&batch);
                assert_eq!(records.len(), batch.record_count());
                assert!(records.iter().all(|r| r.timestamp <= batch.max_timestamp()));
                if !batch.is_control() {
                    records.iter().for_each(|record| check_record(&partition, record));
                }
            }
        }
    }
    let all = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    assert_eq!(codecs, BTreeSet::from(all));
}

/// Holds a record against what LogDir.java sends: number n gives key, value and headers.
fn check_record(partition: &TopicPartition, record: &Record) {
    let number = |bytes: &[u8], prefix: &str, end| {
        let text = str::from_utf8(bytes).unwrap().strip_prefix(prefix).unwrap();
        text.split(end).next().unwrap().parse::<u32>().unwrap()
    };
    let key = record.key.as_deref().map(|key| number(key, "key-", ' '));
    let value = record.value.as_deref().map(|value| number(value, "{\"n\":", ','));
    let n = value.or(key);
    assert!(n.is_none_or(|n| {
        key.is_none_or(|key| key == n)
            && key.is_none() == (n % 5 == 4 && partition.topic != "compact")
            && value.is_none() == (n % 7 == 6)
            && record.headers.len() == if n % 3 == 0 { 3 } else { 0 }
    }));
    if let [source, null, again] = &record.headers[..] {
        assert_eq!((&source.key[..], source.value.as_deref()), (&b"source"[..], Some(&b"gen"[..])));
        assert_eq!((&null.key[..], &null.value), (&b"null"[..], &None));
        assert_eq!((&again.key[..], again.value.as_deref()), (&b"source"[..], Some(&b""[..])));
    }
}

#[test]
fn side_files_come_out_as_kafka_wrote_them() {
    let mut aborted = 0;
    for (partition, dir) in partitions() {
        let snapshots = files(&dir, SegmentFileKind::Snapshot);
        let mut state = ProducerState::new(0);
        for (base_offset, segment) in files(&dir, SegmentFileKind::Log) {
            check_snapshot(&snapshots, base_offset, &state);
            let mut builder = SideFileBuilder::new(base_offset, SideFileOptions::default());
            for (position, batch) in batches(&segment) {
                builder.add(position as u64, &batch).unwrap();
                if let Some(txn) = state.apply(&batch).unwrap().and_then(|txn| txn.aborted()) {
                    builder.add_aborted(&txn);
                    aborted += 1;
                }
            }
            let kafka = |kind: SegmentFileKind| fs::read(dir.join(segment_file_name(base_offset, kind)));
            let written = SideFiles {
                offset_index: kafka(SegmentFileKind::OffsetIndex).unwrap(),
                time_index: kafka(SegmentFileKind::TimeIndex).unwrap(),
                txn_index: kafka(SegmentFileKind::TxnIndex).unwrap_or_default(),
            };
            decode_offset_index(base_offset, &written.offset_index).unwrap();
            decode_time_index(base_offset, &written.time_index).unwrap();
            decode_txn_index(&written.txn_index).unwrap();
            // Before 4.0 the cleaner makes one index entry for many batches.
            if partition.topic != "compact" {
                assert_eq!(builder.finish(), written, "{} at {base_offset}", dir.display());
            }
        }
        check_snapshot(&snapshots, state.end_offset(), &state);
        let open = if partition.topic == "txn" { 1 } else { 0 };
        assert_eq!(state.open_transactions().count(), open);
    }
    assert!(aborted > 0);
}

/// Kafka's snapshot at an offset has the state before it, in any order. None is written at 0.
fn check_snapshot(snapshots: &BTreeMap<i64, Vec<u8>>, offset: i64, state: &ProducerState) {
    if offset > 0 {
        let mut kafka = ProducerSnapshot::decode(&snapshots[&offset]).unwrap();
        assert_eq!(kafka.encode(), snapshots[&offset]);
        kafka.entries.sort_by_key(|entry| entry.producer_id);
        assert_eq!(kafka, state.snapshot(), "at {offset}");
        let again = ProducerState::from_snapshot(&kafka, offset);
        assert_eq!(again.last_stable_offset(), state.last_stable_offset());
    }
}

#[test]
fn compacted_segments_have_gaps_and_delete_horizons() {
    for (_, dir) in partitions().iter().filter(|(partition, _)| partition.topic == "compact") {
        let segments = files(dir, SegmentFileKind::Log);
        let cleaned: Vec<_> = batches(&segments[&0]).map(|(_, batch)| batch).collect();
        assert!(cleaned.iter().any(|batch| batch.delete_horizon().is_some()));
        assert!(cleaned.windows(2).any(|pair| pair[0].next_offset() < pair[1].base_offset()));
        let kept: usize = cleaned.iter().map(|batch| batch.record_count()).sum();
        assert!(kept < 100, "{kept} records kept of 100");
    }
}

#[test]
fn epochs_and_topic_ids_read_back_byte_for_byte() {
    for (partition, dir) in partitions() {
        let text = read(&dir, names::LEADER_EPOCH_CHECKPOINT);
        let epochs = LeaderEpochs::decode(&text).unwrap();
        assert_eq!(epochs.encode().as_bytes(), text);
        let mut rebuilt = LeaderEpochs::default();
        for segment in files(&dir, SegmentFileKind::Log).values() {
            batches(segment).for_each(|(_, batch)| rebuilt.observe(&batch));
        }
        // Of the compacted topic the first batches are gone, and of the empty one there are none.
        if !["compact", "empty"].contains(&partition.topic.as_str()) {
            assert_eq!(rebuilt, epochs, "{}", dir.display());
        }
        let text = read(&dir, names::PARTITION_METADATA);
        assert_eq!(PartitionMetadata::decode(&text).unwrap().encode().as_bytes(), text);
    }
}

#[test]
fn files_of_the_log_dir_agree_with_its_partitions() {
    for dir in log_dirs() {
        let meta = MetaProperties::decode(&read(&dir, names::META_PROPERTIES)).unwrap();
        assert_eq!((meta.version, meta.node_id), (MetaVersion::V1, Some(1)));
        assert!(meta.directory_id.is_some());
        assert_eq!(MetaProperties::decode(meta.encode().as_bytes()), Ok(meta));

        let marker = read(&dir, names::CLEAN_SHUTDOWN);
        assert!(CleanShutdown::decode(&marker).broker_epoch.is_some());
        assert_eq!(CleanShutdown::decode(&marker).encode().as_bytes(), marker);

        for name in [names::LOG_START_CHECKPOINT, names::CLEANER_CHECKPOINT] {
            decode_offsets(&read(&dir, name)).unwrap();
        }
        for name in [names::HIGH_WATERMARK_CHECKPOINT, names::RECOVERY_POINT_CHECKPOINT] {
            let offsets = decode_offsets(&read(&dir, name)).unwrap();
            assert_eq!(decode_offsets(encode_offsets(&offsets).as_bytes()), Ok(offsets.clone()));
            for (partition, offset) in offsets.iter().filter(|(partition, _)| !partition.topic.starts_with("__")) {
                let segments = files(&dir.join(partition.to_string()), SegmentFileKind::Log);
                let last = segments.values().flat_map(|segment| batches(segment)).last();
                assert_eq!(last.map_or(0, |(_, batch)| batch.next_offset()), *offset, "{partition}");
            }
        }
    }
}
