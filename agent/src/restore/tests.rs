//! Restores of a small cluster from a local vault: three combined nodes, node 1 with two log dirs.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use segvault_alignment::restore::{RestorePlan, Severity, Target, plan};
use segvault_kafka_log::batch::{Batch, BatchBuilder, Batches, EndTxnMarker, end_txn_marker_batch};
use segvault_kafka_log::checkpoint::{LeaderEpochs, decode_offsets};
use segvault_kafka_log::clean_shutdown::CleanShutdown;
use segvault_kafka_log::groups::{CommittedOffsets, GroupKey, OffsetCommitKey, OffsetCommitValue};
use segvault_kafka_log::index::{decode_offset_index, decode_time_index, decode_txn_index};
use segvault_kafka_log::meta_properties::MetaProperties;
use segvault_kafka_log::metadata::checkpoint::write_checkpoint;
use segvault_kafka_log::metadata::records::RegisterBrokerRecord;
use segvault_kafka_log::metadata::{MetadataImage, PartitionImage, TopicImage};
use segvault_kafka_log::producer::{ProducerEntry, ProducerSnapshot, ProducerState};
use segvault_kafka_log::share::{SharePartitionKey, ShareSnapshotValue, ShareStates, StateBatch, snapshot_batches};
use segvault_kafka_log::side_files::SideFileOptions;
use segvault_kafka_log::transactions::{TransactionLogValue, TransactionPartitions, TransactionState, encode_key};
use segvault_kafka_log::wire::Message;
use segvault_kafka_log::{TopicPartition, Uuid};
use segvault_vault::{Config, UploadOptions, Uploader, Vault, VaultLocation};
use segvault_vault_format::blob::BlobKind;
use segvault_vault_format::ids::BlobId;
use segvault_vault_format::manifest::{
    AbortedTransaction, Chunk, Epoch, LogDirEntry, MetadataEntry, NodeEntry, PartitionEntry, PointManifest, Segment,
    Stream, StreamRef, Totals, TransactionMarker,
};

use super::*;

const CLUSTER: &str = "uHkGuCQeSDWMbl4fVJgYtw";
const NOW_MS: i64 = 1_790_000_000_000;

fn id(n: u8) -> Uuid {
    Uuid([n; 16])
}

fn dir_id(node: i32, dir: usize) -> Uuid {
    id(100 + 10 * node as u8 + dir as u8)
}

/// A log to be put into the vault.
#[derive(Default)]
struct Log {
    segments: Vec<(i64, Vec<Vec<u8>>)>,
    log_start: i64,
    /// Where it ends, if not behind its last batch.
    end: Option<i64>,
    /// Changes what the manifest says of producers.
    producers: Option<fn(&mut ProducerSnapshot)>,
}

impl Log {
    fn segment(mut self, base: i64, batches: Vec<Vec<u8>>) -> Self {
        self.segments.push((base, batches));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        self.segments.iter().flat_map(|(_, batches)| batches.concat()).collect()
    }
}

fn data(offset: i64, records: i64) -> Vec<u8> {
    batch(BatchBuilder::new(offset, 0), offset, records)
}

fn batch(mut builder: BatchBuilder, offset: i64, records: i64) -> Vec<u8> {
    for n in 0..records {
        builder.push(NOW_MS - 100_000 + offset + n, None, Some(&[offset as u8; 700]), &[]);
    }
    builder.build()
}

fn of_txn(offset: i64, records: i64, producer: i64) -> Vec<u8> {
    batch(BatchBuilder::new(offset, 0).transactional().producer(producer, 3, 0), offset, records)
}

fn of_producer(offset: i64, records: i64, producer: i64) -> Vec<u8> {
    batch(BatchBuilder::new(offset, 0).producer(producer, 0, offset as i32), offset, records)
}

fn ends_txn(offset: i64, producer: i64, commit: bool) -> Vec<u8> {
    let marker = EndTxnMarker { commit, coordinator_epoch: 6 };
    end_txn_marker_batch(offset, 0, NOW_MS - 90_000, producer, 3, marker)
}

fn commit(offset: i64, group: &str, topic: &str, committed: i64) -> Vec<u8> {
    let partition = TopicPartition::new(topic, 0);
    let key = OffsetCommitKey { group: group.into(), partition };
    let key = GroupKey::OffsetCommit { record_type: 1, key };
    let value = OffsetCommitValue { version: 3, offset: committed, ..OffsetCommitValue::default() };
    BatchBuilder::new(offset, 0).record(NOW_MS, Some(&key.encode()), Some(&value.encode_prefixed())).build()
}

/// Three segments: an idempotent producer throughout, a committed and an aborted transaction, and one that is open.
fn orders() -> Log {
    Log::default()
        .segment(10, vec![data(10, 5), of_producer(15, 10, 5), of_txn(25, 2, 7), ends_txn(27, 7, true)])
        .segment(28, vec![of_producer(28, 9, 5), of_txn(37, 3, 8), ends_txn(40, 8, false)])
        .segment(41, vec![of_producer(41, 9, 5), of_txn(50, 4, 9), data(54, 20)])
}

fn groups() -> Log {
    let commits = vec![
        commit(0, "beyond", "orders", 99),
        commit(1, "within", "orders", 60),
        commit(2, "elsewhere", "unknown", 500),
        commit(3, "at the end", "orders", 75),
    ];
    Log::default().segment(0, commits)
}

/// Topics by name, each with one partition on nodes 1, 2 and 3; `None` has no log, an error is why it is not covered.
type Topics = BTreeMap<&'static str, Result<Option<Log>, &'static str>>;

fn topics() -> Topics {
    // Ends above its last batch, which compaction has taken.
    let compacted = Log { end: Some(60), ..Log::default().segment(0, vec![data(3, 2), data(40, 2)]) };
    let mut deleted = Log { log_start: 1000, ..Log::default() };
    deleted.segments.push((1000, vec![]));
    let started = Log { log_start: 3, ..Log::default().segment(0, vec![data(0, 6)]) };
    BTreeMap::from([
        ("__consumer_offsets", Ok(Some(groups()))),
        ("compacted", Ok(Some(compacted))),
        ("deleted", Ok(Some(deleted))),
        ("fresh", Ok(None)),
        ("lost", Err("all replicas down")),
        ("orders", Ok(Some(orders()))),
        ("started", Ok(Some(started))),
    ])
}

/// A vault with one point, and nodes to restore to.
struct Fixture {
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
    vault: Vault,
    point: PointManifest,
    root: BlobId,
}

impl Fixture {
    fn new() -> Self {
        Self::of(topics(), |_| ())
    }

    /// Of other topics; `adapt` changes the point before it is committed.
    fn of(topics: Topics, adapt: impl FnOnce(&mut PointManifest)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let location = VaultLocation::File(folder.path().join("vault"));
        let vault = runtime.block_on(Vault::init(&location, &Config::default(), NOW_MS)).unwrap();
        runtime.block_on(vault.register_cluster(CLUSTER, "")).unwrap();
        let id = runtime.block_on(vault.begin_point(CLUSTER, 0, "test", NOW_MS - 1000)).unwrap();
        let uploader = Uploader::new(&vault, UploadOptions::default());
        let mut point = PointManifest {
            cluster_id: CLUSTER.into(),
            number: id.number,
            began_ms: NOW_MS - 1000,
            finished_ms: NOW_MS,
            degraded: true,
            max_producer_id: 9,
            ..PointManifest::default()
        };
        let names: Vec<&str> = topics.keys().copied().collect();
        for (index, (topic, log)) in topics.into_iter().enumerate() {
            let entry = upload(&uploader, topic, index as u8 + 1, log);
            point.partitions.push(entry);
        }
        let orders = point.partitions.iter().position(|entry| entry.topic == "orders").unwrap();
        point.abort_markers.push(TransactionMarker {
            partition_index: orders as u32,
            producer_id: 9,
            producer_epoch: 3,
            coordinator_epoch: 6,
        });
        point.metadata = Some(upload_metadata(&uploader, &names));
        point.nodes = (1..=3).map(|node| node_entry(node, folder.path())).collect();
        adapt(&mut point);
        uploader.flush().unwrap();
        let outcome = runtime.block_on(vault.commit_point(&point, Totals::default())).unwrap();
        let root = BlobId::from_slice(&outcome.root).unwrap();
        Self { folder, _runtime: runtime, vault, point, root }
    }

    fn targets(&self) -> Vec<Target> {
        (1..=3).map(|node| target(node, self.folder.path())).collect()
    }

    fn plan(&self) -> RestorePlan {
        self.plan_for(&self.targets())
    }

    fn plan_for(&self, targets: &[Target]) -> RestorePlan {
        let image = metadata::load_metadata(&self.vault, &self.point).unwrap();
        plan(&self.point, &image, targets, NOW_MS).unwrap()
    }

    fn restore(&self, plan: &RestorePlan) -> Result<RestoreReport, RestoreError> {
        self.restore_until(plan, |_| ControlFlow::Continue(()))
    }

    fn restore_until(
        &self,
        plan: &RestorePlan,
        progress: impl Fn(RestoreProgress) -> ControlFlow<()> + Sync,
    ) -> Result<RestoreReport, RestoreError> {
        restore_nodes(plan, &self.vault, self.root, &RestoreOptions::default(), &progress)
    }

    fn dir(&self, node: i32, dir: usize) -> PathBuf {
        log_dir(self.folder.path(), node, dir)
    }

    /// Everything in the nodes' log dirs.
    fn tree(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        for node in 1..=3 {
            let root = self.folder.path().join(format!("node{node}"));
            if root.exists() {
                read_tree(&root, self.folder.path(), &mut files);
            }
        }
        files
    }
}

fn read_tree(dir: &Path, root: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_tree(&path, root, files);
        } else {
            files.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
        }
    }
}

fn log_dir(root: &Path, node: i32, dir: usize) -> PathBuf {
    root.join(format!("node{node}/d{dir}"))
}

fn dirs_of(node: i32) -> usize {
    if node == 1 { 2 } else { 1 }
}

fn target(node: i32, root: &Path) -> Target {
    let path = |dir| log_dir(root, node, dir).display().to_string();
    Target {
        node_id: node,
        broker: true,
        controller: true,
        log_dirs: (0..dirs_of(node)).map(path).collect(),
        metadata_log_dir: path(0),
        static_voters: Some(vec![1, 2, 3]),
        side_files: SideFileOptions { index_interval: 1000, ..SideFileOptions::default() },
    }
}

fn node_entry(node: i32, root: &Path) -> NodeEntry {
    let dirs = (0..dirs_of(node)).map(|dir| LogDirEntry {
        path: log_dir(root, node, dir).display().to_string(),
        directory_id: dir_id(node, dir).0.to_vec(),
    });
    NodeEntry { node_id: node, broker: true, controller: true, log_dirs: dirs.collect(), metadata_log_dir: 0 }
}

fn upload(uploader: &Uploader, topic: &str, n: u8, log: Result<Option<Log>, &str>) -> PartitionEntry {
    let entry = PartitionEntry {
        topic: topic.into(),
        topic_id: id(n).0.to_vec(),
        source_node: 1,
        max_epoch: 0,
        ..PartitionEntry::default()
    };
    let log = match log {
        Ok(Some(log)) => log,
        Ok(None) => return entry,
        Err(why) => {
            return PartitionEntry { uncovered: why.into(), ..entry };
        }
    };
    let (stream, chunks) = stream(topic, id(n), &log);
    let reference = store(uploader, &stream, &chunks);
    PartitionEntry {
        stream: Some(reference),
        log_start_offset: stream.log_start_offset,
        end_offset: stream.end_offset,
        pinned_end_offset: stream.end_offset,
        bytes: stream.len_bytes(),
        ..entry
    }
}

fn store(uploader: &Uploader, stream: &Stream, chunks: &[Vec<u8>]) -> StreamRef {
    let mut writer = uploader.writer();
    let put = |chunk: &Vec<u8>| writer.store(BlobKind::Chunk, BlobId::of(chunk), chunk, 0).unwrap();
    let places: Vec<_> = chunks.iter().map(put).collect();
    uploader.writer().store_stream(stream, &places, None).unwrap()
}

/// The stream of a log, in chunks of two batches, whatever the segments.
fn stream(topic: &str, topic_id: Uuid, log: &Log) -> (Stream, Vec<Vec<u8>>) {
    let first_base = log.segments[0].0;
    let (mut producers, mut epochs) = (ProducerState::new(first_base), LeaderEpochs::default());
    let mut next = first_base;
    let mut segments = Vec::new();
    let mut position = 0;
    for (base_offset, batches) in &log.segments {
        let mut segment = Segment { base_offset: *base_offset, position, aborted: vec![] };
        if *base_offset == 10 {
            // Its marker was compacted away; the index that is restored must not have it.
            let (first_offset, last_offset) = (10, 12);
            segment.aborted.push(AbortedTransaction {
                producer_id: 7,
                first_offset,
                last_offset,
                last_stable_offset: 10,
            });
        }
        for bytes in batches {
            let batch = Batch::parse(bytes).unwrap();
            let ended = producers.apply(&batch).unwrap();
            segment.aborted.extend(ended.and_then(|txn| txn.aborted()).map(|txn| AbortedTransaction {
                producer_id: txn.producer_id,
                first_offset: txn.first_offset,
                last_offset: txn.last_offset,
                last_stable_offset: txn.last_stable_offset,
            }));
            epochs.observe(&batch);
            position += bytes.len() as u64;
            next = batch.next_offset();
        }
        segments.push(segment);
    }
    let all: Vec<&Vec<u8>> = log.segments.iter().flat_map(|(_, batches)| batches).collect();
    let chunks: Vec<Vec<u8>> =
        all.chunks(2).map(|pair| pair.iter().flat_map(|batch| batch.iter().copied()).collect()).collect();
    let mut snapshot = producers.snapshot();
    log.producers.iter().for_each(|change| change(&mut snapshot));
    let stream = Stream {
        cluster_id: CLUSTER.into(),
        topic_id: topic_id.0.to_vec(),
        topic: topic.into(),
        partition: 0,
        log_start_offset: log.log_start.max(first_base),
        end_offset: log.end.unwrap_or(next),
        chunks: chunks.iter().map(|bytes| describe(bytes)).collect(),
        segments,
        epochs: epochs
            .entries()
            .iter()
            .map(|entry| Epoch { epoch: entry.epoch, start_offset: entry.start_offset })
            .collect(),
        producer_snapshot: snapshot.encode(),
    };
    (stream, chunks)
}

fn describe(bytes: &[u8]) -> Chunk {
    let batches: Vec<Batch<'_>> = Batches::new(bytes).map(|item| item.unwrap().1).collect();
    Chunk {
        id: BlobId::of(bytes).0.to_vec(),
        base_offset: batches[0].base_offset(),
        last_offset: batches[batches.len() - 1].last_offset(),
        len: bytes.len() as u32,
        batches: batches.len() as u32,
        max_timestamp: batches.iter().map(|batch| batch.max_timestamp()).max().unwrap(),
        max_epoch: batches.iter().map(|batch| batch.leader_epoch()).max().unwrap(),
    }
}

/// `orders` lies in the second log dir of node 1.
fn upload_metadata(uploader: &Uploader, topics: &[&str]) -> MetadataEntry {
    let mut image = MetadataImage::default();
    image.features = [("metadata.version".into(), 25)].into();
    for node in 1..=3 {
        let broker = RegisterBrokerRecord {
            broker_id: node,
            broker_epoch: 20 + i64::from(node),
            fenced: false,
            log_dirs: (0..dirs_of(node)).map(|dir| dir_id(node, dir)).collect(),
            ..RegisterBrokerRecord::default()
        };
        image.brokers.insert(node, broker);
    }
    for (index, topic) in topics.iter().enumerate() {
        let partition = PartitionImage {
            replicas: vec![1, 2, 3],
            isr: vec![1],
            leader: 1,
            directories: vec![dir_id(1, usize::from(*topic == "orders")), dir_id(2, 0), dir_id(3, 0)],
            ..PartitionImage::default()
        };
        let topic_id = id(index as u8 + 1);
        let topic = TopicImage { name: (*topic).into(), id: topic_id, partitions: [(0, partition)].into() };
        image.topics.insert(topic_id, topic);
    }
    let bytes = write_checkpoint(&image, 2, NOW_MS);
    let chunk = describe(&bytes);
    let stream = Stream {
        cluster_id: CLUSTER.into(),
        topic_id: Uuid::METADATA_TOPIC_ID.0.to_vec(),
        topic: "__cluster_metadata".into(),
        partition: -1,
        end_offset: chunk.last_offset + 1,
        chunks: vec![chunk],
        ..Stream::default()
    };
    MetadataEntry {
        source_node: 1,
        checkpoint: Some(store(uploader, &stream, &[bytes])),
        checkpoint_offset: 300,
        checkpoint_epoch: 2,
        end_offset: 300,
        epoch: 2,
        ..MetadataEntry::default()
    }
}

fn read_offsets(path: PathBuf) -> BTreeMap<TopicPartition, i64> {
    decode_offsets(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_replica_gets_the_bytes_of_the_point() {
    let fixture = Fixture::new();
    let plan = fixture.plan();
    let report = fixture.restore(&plan).unwrap();
    assert_eq!((report.partitions, report.kept), (7, 0));
    for (node, dir) in [(1, 1), (2, 0), (3, 0)] {
        let partition = fixture.dir(node, dir).join("orders-0");
        let read = |name: &str| fs::read(partition.join(name)).unwrap();
        let mut log = [10, 28, 41].map(|base| read(&format!("{base:020}.log"))).concat();
        let marker = log.split_off(orders().bytes().len());
        assert_eq!(log, orders().bytes());
        let marker = Batch::parse(&marker).unwrap();
        assert_eq!((marker.base_offset(), marker.producer_id(), marker.producer_epoch()), (74, 9, 3));
        assert_eq!(marker.max_timestamp(), NOW_MS);
        let expected = EndTxnMarker { commit: false, coordinator_epoch: 6 };
        assert_eq!(marker.end_txn_marker().unwrap(), Some(expected));
        marker.check_crc().unwrap();
    }
    for node in 0..3 {
        assert_eq!(verify_content(&plan, node), []);
    }
}

#[test]
fn side_files_are_built_from_what_passes_by() {
    let fixture = Fixture::new();
    fixture.restore(&fixture.plan()).unwrap();
    let partition = fixture.dir(2, 0).join("orders-0");
    let read = |name: String| fs::read(partition.join(name)).unwrap();
    let index = decode_offset_index(28, &read(format!("{:020}.index", 28))).unwrap();
    assert_eq!(index[0].position as usize, of_producer(28, 9, 5).len());
    let times = decode_time_index(41, &read(format!("{:020}.timeindex", 41))).unwrap();
    assert_eq!(times.last().unwrap().timestamp, NOW_MS);

    // The aborted transaction of the manifest, and the one that the restore has aborted.
    let closed = decode_txn_index(&read(format!("{:020}.txnindex", 28))).unwrap();
    assert_eq!((closed[0].producer_id, closed[0].first_offset, closed[0].last_offset), (8, 37, 40));
    let tail = decode_txn_index(&read(format!("{:020}.txnindex", 41))).unwrap();
    assert_eq!((tail[0].producer_id, tail[0].first_offset, tail[0].last_offset), (9, 50, 74));
    assert_eq!(tail[0].last_stable_offset, 75);
    assert!(!partition.join(format!("{:020}.txnindex", 10)).exists());

    // Producer state at the end has no open transaction; at the tail's base it is what it was then.
    let at_end = ProducerSnapshot::decode(&read(format!("{:020}.snapshot", 75))).unwrap();
    assert!(at_end.entries.iter().all(|entry| entry.current_txn_first_offset.is_none()));
    assert_eq!(at_end.entries.len(), 4);
    let at_tail = ProducerSnapshot::decode(&read(format!("{:020}.snapshot", 41))).unwrap();
    let last = |id| at_tail.entries.iter().find(|entry| entry.producer_id == id).map(|entry| entry.last_offset);
    assert_eq!([last(5), last(7), last(8), last(9)], [Some(36), Some(26), Some(39), None]);
    assert_eq!(read("leader-epoch-checkpoint".into()), b"0\n1\n0 10\n");
}

#[test]
fn logs_end_where_the_point_says_whatever_they_hold() {
    let fixture = Fixture::new();
    fixture.restore(&fixture.plan()).unwrap();
    let ends = read_offsets(fixture.dir(2, 0).join("replication-offset-checkpoint"));
    let end = |topic| ends[&TopicPartition::new(topic, 0)];
    let topics = ["compacted", "deleted", "fresh", "lost", "orders", "started"];
    assert_eq!(topics.map(end), [60, 1000, 0, 0, 75, 6]);
    assert_eq!(read_offsets(fixture.dir(2, 0).join("recovery-point-offset-checkpoint")), ends);
    let starts = read_offsets(fixture.dir(2, 0).join("log-start-offset-checkpoint"));
    assert_eq!(starts, BTreeMap::from([(TopicPartition::new("started", 0), 3)]));
    assert!(fixture.dir(2, 0).join(format!("compacted-0/{:020}.log", 60)).exists());
}

#[test]
fn committed_offsets_beyond_the_end_are_clamped() {
    let fixture = Fixture::new();
    let report = fixture.restore(&fixture.plan()).unwrap();
    let mut offsets = CommittedOffsets::default();
    let log = fs::read(fixture.dir(3, 0).join(format!("__consumer_offsets-0/{:020}.log", 0))).unwrap();
    Batches::new(&log).for_each(|item| offsets.apply(&item.unwrap().1).unwrap());
    let committed: Vec<_> = offsets.offsets().iter().map(|(key, at)| (key.group.as_str(), at.value.offset)).collect();
    assert_eq!(committed, [("at the end", 75), ("beyond", 75), ("elsewhere", 500), ("within", 60)]);
    assert!(report.findings.iter().any(|finding| finding.what.contains("moved back to it: 1")));
    let ends = read_offsets(fixture.dir(3, 0).join("replication-offset-checkpoint"));
    assert_eq!(ends[&TopicPartition::new("__consumer_offsets", 0)], 5);
}

/// A record of the transaction log, of a client that uses an epoch per transaction.
fn of_id(producer: i64, epoch: i16, state: TransactionState, topics: &[&str]) -> Vec<u8> {
    let list = |topic: &&str| TransactionPartitions {
        topic: (*topic).into(),
        partition_ids: vec![0],
        ..TransactionPartitions::default()
    };
    let value = TransactionLogValue {
        version: 1,
        producer_id: producer,
        producer_epoch: epoch,
        transaction_status: state as i8,
        transaction_partitions: Some(topics.iter().map(list).collect()),
        client_transaction_version: 2,
        ..TransactionLogValue::default()
    };
    value.encode_prefixed()
}

/// The usual topics, and a transaction log of ids `a`, `b`, … with these values.
fn with_transactions(values: &[Vec<u8>]) -> Topics {
    let record = |(offset, value): (i64, &Vec<u8>)| {
        let key = encode_key(&char::from(b'a' + offset as u8).to_string());
        BatchBuilder::new(offset, 0).record(NOW_MS, Some(&key), Some(value)).build()
    };
    let log = Log::default().segment(0, (0..).zip(values).map(record).collect());
    let mut topics = topics();
    topics.insert("__transaction_state", Ok(Some(log)));
    topics
}

/// A point that states L3 and commits the transaction that is open in `orders`, with the epoch of the decision.
fn decided(point: &mut PointManifest) {
    let markers = std::mem::take(&mut point.abort_markers);
    let committed = markers.into_iter().map(|marker| TransactionMarker { producer_epoch: 4, ..marker });
    (point.level, point.commit_markers) = (3, committed.collect());
}

/// A point that states L3 and plans no marker for the transaction that is open in `orders`.
fn whole(point: &mut PointManifest) {
    (point.level, point.abort_markers) = (3, vec![]);
}

#[test]
fn transactions_that_are_whole_let_a_restore_be_done() {
    use TransactionState::*;
    let with_marker = |point: &mut PointManifest| point.level = 3;
    type Adapt = fn(&mut PointManifest);
    let cases: [(&str, Vec<Vec<u8>>, Adapt); 6] = [
        ("open, and the coordinator ends it", vec![of_id(9, 3, Ongoing, &["fresh", "orders"])], whole),
        ("open, and its markers are to be sent", vec![of_id(9, 4, PrepareCommit, &["orders"])], whole),
        ("open, and gets the marker of its decision here", vec![of_id(9, 4, PrepareCommit, &["orders"])], decided),
        ("open, and gets its marker here", vec![of_id(9, 4, CompleteCommit, &[])], with_marker),
        ("open, gets its marker, and the id is gone", vec![], with_marker),
        ("younger than the cut, of a producer without batches", vec![of_id(4, 8, CompleteAbort, &[])], with_marker),
    ];
    // Producer 4 has no batch in the log, and an epoch that was given out after the mark.
    let forgotten: fn(&mut ProducerSnapshot) = |all| {
        let like = all.entries[0].clone();
        let entry = ProducerEntry { producer_id: 4, epoch: 9, last_offset: -1, current_txn_first_offset: None, ..like };
        all.entries.push(entry);
    };
    for (what, values, adapt) in cases {
        let mut topics = with_transactions(&values);
        topics.insert("orders", Ok(Some(Log { producers: Some(forgotten), ..orders() })));
        let fixture = Fixture::of(topics, adapt);
        let plan = fixture.plan();
        let report = fixture.restore(&plan).unwrap_or_else(|error| panic!("{what}: {error}"));
        let told = report.findings.iter().any(|finding| finding.what.contains("transaction of producer"));
        assert!(!told, "{what}: {:?}", report.findings);
        assert_eq!(verify_content(&plan, 0), [], "{what}");
    }
}

#[test]
fn a_decided_transaction_is_committed_before_any_coordinator_runs() {
    let listed = of_id(9, 4, TransactionState::PrepareCommit, &["orders"]);
    let fixture = Fixture::of(with_transactions(&[listed]), decided);
    fixture.restore(&fixture.plan()).unwrap();
    let partition = fixture.dir(2, 0).join("orders-0");
    let log = fs::read(partition.join(format!("{:020}.log", 41))).unwrap();
    let last = Batches::new(&log).last().unwrap().unwrap().1;
    assert_eq!((last.base_offset(), last.producer_id(), last.producer_epoch()), (74, 9, 4));
    assert_eq!(last.end_txn_marker().unwrap(), Some(EndTxnMarker { commit: true, coordinator_epoch: 6 }));
    assert!(!partition.join(format!("{:020}.txnindex", 41)).exists());
    let snapshot = fs::read(partition.join(format!("{:020}.snapshot", 75))).unwrap();
    let snapshot = ProducerSnapshot::decode(&snapshot).unwrap();
    let producer = snapshot.entries.iter().find(|entry| entry.producer_id == 9).unwrap();
    assert_eq!((producer.epoch, producer.current_txn_first_offset), (4, None));
}

#[test]
fn a_point_that_states_l3_and_has_a_torn_transaction_is_refused() {
    use TransactionState::*;
    let hanging = "producer 9, epoch 3, that is open since offset 50 is undecided nowhere";
    let forgetful = || {
        let mut topics = with_transactions(&[of_id(9, 3, Ongoing, &["orders"])]);
        let producers: fn(&mut ProducerSnapshot) = |all| all.entries.retain(|entry| entry.producer_id != 9);
        topics.insert("orders", Ok(Some(Log { producers: Some(producers), ..orders() })));
        topics
    };
    let listed = of_id(9, 3, Ongoing, &["orders"]);
    let cases = [
        ("orders-0", hanging, topics()),
        ("orders-0", hanging, with_transactions(&[of_id(9, 3, Ongoing, &["fresh"])])),
        ("orders-0", hanging, with_transactions(&[of_id(9, 2, Ongoing, &["orders"])])),
        ("orders-0", hanging, with_transactions(&[of_id(9, 4, CompleteCommit, &[])])),
        ("orders-0", "producer 9 has one open since offset 50 at the end of the log", forgetful()),
        (
            "orders-0",
            "producer 7 has epoch 3 here, and the transaction log knows 2",
            with_transactions(&[listed.clone(), of_id(7, 2, CompleteCommit, &[])]),
        ),
        (
            "orders-0",
            "producer 7 that the marker at offset 27 has committed is about to be aborted",
            with_transactions(&[listed.clone(), of_id(7, 3, PrepareAbort, &["orders", "fresh"])]),
        ),
        ("__transaction_state-0", "bad record at offset 1", with_transactions(&[listed, vec![0, 9, 0]])),
    ];
    for (partition, expected, topics) in cases {
        let fixture = Fixture::of(topics, whole);
        let mut plan = fixture.plan();
        let error = fixture.restore(&plan).unwrap_err();
        assert!(matches!(&error, RestoreError::Torn { partition: named, .. } if named == partition), "{error}");
        let error = error.to_string();
        assert!(error.contains(expected) && error.contains("hint: restore another point"), "{error}");
        for (node, dir) in [(1, 0), (1, 1), (2, 0), (3, 0)] {
            assert!(!fixture.dir(node, dir).join("meta.properties").exists(), "{expected}");
        }

        // For want of another one it is taken all the same; so is one that promises less. Both are told.
        let options = RestoreOptions { accept_torn: true, ..RestoreOptions::default() };
        let go_on = |_| ControlFlow::Continue(());
        let accepted = restore_nodes(&plan, &fixture.vault, fixture.root, &options, &go_on).unwrap();
        (1..=3).for_each(|node| fs::remove_dir_all(fixture.folder.path().join(format!("node{node}"))).unwrap());
        plan.level = 2;
        let lesser = fixture.restore(&plan).unwrap();
        for report in [accepted, lesser] {
            let mut told = report.findings.iter().filter(|finding| finding.what.contains(expected));
            let told = told.next().unwrap_or_else(|| panic!("{expected}: {:?}", report.findings));
            assert!(told.severity == Severity::Warning && told.what.starts_with(partition), "{told:?}");
        }
        assert_eq!(verify_content(&plan, 0), [], "{expected}");
    }
}

#[test]
fn states_of_share_groups_beyond_the_end_are_clamped() {
    let orders = topics().keys().filter(|topic| **topic < "orders").count() as u8 + 2; // after this topic
    let key = |group: &str, topic_id| SharePartitionKey { group: group.into(), topic_id, partition: 0 };
    let state = |start_offset, last_offset| {
        let batch =
            StateBatch { first_offset: 70, last_offset, delivery_state: 2, delivery_count: 1, ..Default::default() };
        ShareSnapshotValue {
            snapshot_epoch: 6,
            state_epoch: 2,
            leader_epoch: 3,
            start_offset,
            state_batches: vec![batch],
            ..Default::default()
        }
    };
    let states = [
        (key("beyond", id(orders)), state(99, 120)),
        (key("elsewhere", id(200)), state(500, 600)),
        (key("knows more", id(orders)), state(69, 79)),
        (key("within", id(orders)), state(60, 74)),
    ];
    let log = Log::default().segment(0, vec![snapshot_batches(0, 0, NOW_MS - 500, states.clone())]);
    let mut topics = topics();
    topics.insert("__share_group_state", Ok(Some(log)));
    let fixture = Fixture::of(topics, |_| ());
    let plan = fixture.plan();
    let report = fixture.restore(&plan).unwrap();

    let mut shares = ShareStates::default();
    let log = fs::read(fixture.dir(3, 0).join(format!("__share_group_state-0/{:020}.log", 0))).unwrap();
    Batches::new(&log).for_each(|item| shares.apply(&item.unwrap().1).unwrap());
    let mut expected: BTreeMap<_, _> = states.into_iter().collect();
    expected.values_mut().for_each(|state| state.write_timestamp = NOW_MS - 500);
    for (group, start_offset, last_offset) in [("beyond", 75, None), ("knows more", 69, Some(74))] {
        let state = expected.get_mut(&key(group, id(orders))).unwrap();
        (state.snapshot_epoch, state.start_offset, state.write_timestamp) = (7, start_offset, NOW_MS);
        state.state_batches.retain_mut(|batch| last_offset.map(|last| batch.last_offset = last).is_some());
    }
    assert_eq!(*shares.states(), expected);
    assert!(report.findings.iter().any(|finding| {
        finding.what.contains("share groups' states beyond their partition's end, moved back to it: 2")
    }));
    let ends = read_offsets(fixture.dir(3, 0).join("replication-offset-checkpoint"));
    assert_eq!(ends[&TopicPartition::new("__share_group_state", 0)], 6);
    assert_eq!(verify_content(&plan, 2), []);
}

#[test]
fn nodes_get_their_identity_and_the_same_metadata() {
    let fixture = Fixture::new();
    let plan = fixture.plan();
    fixture.restore(&plan).unwrap();
    for (node, dir) in [(1, 0), (1, 1), (2, 0), (3, 0)] {
        let path = fixture.dir(node, dir);
        let meta = MetaProperties::decode(&fs::read(path.join("meta.properties")).unwrap()).unwrap();
        assert_eq!(meta.cluster_id.as_deref(), Some(CLUSTER));
        assert_eq!((meta.node_id, meta.directory_id), (Some(node), Some(dir_id(node, dir))));
        let marker = CleanShutdown::decode(&fs::read(path.join(".kafka_cleanshutdown")).unwrap());
        assert_eq!(marker.broker_epoch, Some(20 + i64::from(node)));
        assert!(!path.join(RESTORE_MARKER).exists());
        let metadata = path.join("__cluster_metadata-0");
        if dir > 0 {
            assert!(!metadata.exists());
            continue;
        }
        let names: Vec<_> = fs::read_dir(&metadata).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["00000000000001000300-0000001002.checkpoint"]);
        assert_eq!(fs::read(metadata.join(&names[0])).unwrap(), plan.checkpoint.bytes);
    }
}

#[test]
fn a_restore_that_was_killed_goes_on_and_ends_the_same() {
    let whole = Fixture::new();
    whole.restore(&whole.plan()).unwrap();
    let fixture = whole;
    let expected = fixture.tree();
    let plan = fixture.plan();
    for partitions in 0..=7 {
        (1..=3).for_each(|node| fs::remove_dir_all(fixture.folder.path().join(format!("node{node}"))).unwrap());
        let reached = AtomicUsize::new(0);
        let killed = fixture.restore_until(&plan, |progress| {
            reached.store(progress.partitions, Ordering::Relaxed);
            if progress.partitions >= partitions { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(killed, Err(RestoreError::Stopped)), "{killed:?}");
        for (node, dir) in [(1, 0), (1, 1), (2, 0), (3, 0)] {
            assert!(!fixture.dir(node, dir).join("meta.properties").exists());
            assert!(fixture.dir(node, dir).join(RESTORE_MARKER).exists());
        }
        let report = fixture.restore(&plan).unwrap();
        assert!(report.kept >= reached.load(Ordering::Relaxed).min(partitions), "{report:?}");
        assert_eq!(fixture.tree(), expected, "killed after {partitions} partitions");
    }
}

#[test]
fn what_an_earlier_run_left_damaged_is_written_again() {
    let fixture = Fixture::new();
    let plan = fixture.plan();
    fixture.restore(&plan).unwrap();
    let expected = fixture.tree();
    // As if the last step had not been taken for any dir, and a file had lost its end since.
    for (node, dir) in [(1, 0), (1, 1), (2, 0), (3, 0)] {
        let path = fixture.dir(node, dir);
        fs::rename(path.join("meta.properties"), path.join(RESTORE_MARKER)).unwrap();
    }
    let log = fixture.dir(2, 0).join(format!("orders-0/{:020}.log", 41));
    OpenOptions::new().write(true).open(log).unwrap().set_len(1000).unwrap();
    fs::create_dir(fixture.dir(3, 0).join("foreign-0")).unwrap();
    let report = fixture.restore(&plan).unwrap();
    assert_eq!(report.kept, 6);
    assert_eq!(fixture.tree(), expected);
}

#[test]
fn a_last_step_that_was_cut_short_is_taken_again() {
    let fixture = Fixture::new();
    let plan = fixture.plan();
    fixture.restore(&plan).unwrap();
    let expected = fixture.tree();
    // Node 1 got one of its two files.
    let path = fixture.dir(1, 0);
    fs::rename(path.join("meta.properties"), path.join(RESTORE_MARKER)).unwrap();
    let plan = fixture.plan_for(&fixture.targets()[..1]);
    assert_eq!(fixture.restore(&plan).unwrap().kept, 7);
    assert_eq!(fixture.tree(), expected);
}

#[test]
fn hosts_alone_write_what_all_write_together() {
    let fixture = Fixture::new();
    fixture.restore(&fixture.plan()).unwrap();
    let together = fixture.tree();
    for node in 1..=3 {
        fs::remove_dir_all(fixture.folder.path().join(format!("node{node}"))).unwrap();
    }
    for target in fixture.targets() {
        fixture.restore(&fixture.plan_for(&[target])).unwrap();
    }
    assert_eq!(fixture.tree(), together);
}

#[test]
fn a_formatted_node_is_taken_over() {
    let fixture = Fixture::new();
    let dir = fixture.dir(2, 0);
    fs::create_dir_all(dir.join("__cluster_metadata-0")).unwrap();
    let meta = format!("#\n#date\nversion=1\ncluster.id={CLUSTER}\nnode.id=2\ndirectory.id={}\n", id(66));
    fs::write(dir.join("meta.properties"), meta).unwrap();
    fs::write(dir.join("bootstrap.checkpoint"), "x").unwrap();
    fs::write(dir.join(".lock"), "").unwrap();
    let zero = "__cluster_metadata-0/00000000000000000000-0000000000.checkpoint";
    fs::write(dir.join(zero), "x").unwrap();
    let plan = fixture.plan();
    fixture.restore(&plan).unwrap();
    assert!(!dir.join(zero).exists());
    assert_eq!(verify(&plan, 1), []);
}

#[test]
fn targets_that_hold_something_are_refused_untouched() {
    let fixture = Fixture::new();
    let dir = fixture.dir(2, 0);
    let plan = fixture.plan();
    fs::create_dir_all(&dir).unwrap();
    let meta = |cluster: &str, node: i32| format!("version=1\ncluster.id={cluster}\nnode.id={node}\n");
    let other = Origin { vault: "v".into(), point: "p/1".into(), root: "r".into() };
    let marker =
        |origin: &Origin| format!("#segvault restore {}\n{}", serde_json::to_string(origin).unwrap(), meta(CLUSTER, 2));
    let cases: [(&str, String, &str); 7] = [
        ("orders-0", String::new(), "is not empty: orders-0"),
        ("notes.txt", String::new(), "is not empty: notes.txt"),
        ("lost+found", String::new(), "lost+found"),
        ("meta.properties", meta("AAAAAAAAAAAAAAAAAAAAAA", 2), "node 2 of cluster AAAAAAAAAAAAAAAAAAAAAA"),
        ("meta.properties", meta(CLUSTER, 3), "says node 3 of cluster"),
        (RESTORE_MARKER, marker(&other), "unfinished restore of point p/1"),
        ("meta.properties", marker(&other), "restored already, from point p/1"),
    ];
    for (name, content, expected) in cases {
        let path = dir.join(name);
        fs::write(&path, &content).unwrap();
        let error = fixture.restore(&plan).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        assert!(!fixture.dir(1, 0).exists() && !fixture.dir(3, 0).exists());
        fs::remove_file(path).unwrap();
    }
    fixture.restore(&plan).unwrap();
    let again = fixture.restore(&plan).unwrap_err();
    assert!(matches!(again, RestoreError::AlreadyRestored { .. }), "{again}");
}

#[test]
fn the_dir_of_a_live_broker_is_refused() {
    let fixture = Fixture::new();
    let dir = fixture.dir(2, 0);
    fs::create_dir_all(&dir).unwrap();
    let lock = fs::File::create(dir.join(".lock")).unwrap();
    // A lock that even the process that holds it sees as another's; Java's are seen by all others.
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as _,
        l_whence: nix::libc::SEEK_SET as _,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&lock, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
    let error = fixture.restore(&fixture.plan()).unwrap_err();
    assert!(matches!(error, RestoreError::Live { .. }), "{error}");
    drop(lock);
    fixture.restore(&fixture.plan()).unwrap();
}

#[test]
fn a_dry_run_writes_nothing_and_tells_what_would_be_refused() {
    let fixture = Fixture::new();
    let mut plan = fixture.plan();
    let options = RestoreOptions { dry_run: true, ..RestoreOptions::default() };
    let dry = |plan: &RestorePlan| {
        restore_nodes(plan, &fixture.vault, fixture.root, &options, &|_| ControlFlow::Continue(()))
    };
    dry(&plan).unwrap();
    assert!(fixture.tree().is_empty());
    plan.partitions[0].bytes = u64::MAX / 8;
    let error = dry(&plan).unwrap_err();
    assert!(matches!(error, RestoreError::NoSpace { .. }), "{error}");
    assert!(fixture.tree().is_empty());
}

#[test]
fn damage_in_the_vault_is_named_and_no_node_can_start() {
    let fixture = Fixture::new();
    let plan = fixture.plan();
    let mut objects = BTreeMap::new();
    read_tree(&fixture.folder.path().join("vault"), fixture.folder.path(), &mut objects);
    for partition in plan.partitions.iter().filter(|partition| partition.bytes > 0) {
        let stream = partition.stream.as_ref().unwrap();
        let place = fixture.vault.wait(fixture.vault.load_stream(stream)).unwrap().places[0];
        let pack = place.pack.to_string();
        let (path, bytes) = objects.iter().find(|(path, _)| path.to_string_lossy().contains(&pack)).unwrap();
        let path = fixture.folder.path().join(path);
        let blob = place.offset as usize..place.end() as usize;
        // Its header, and what it stores.
        for at in [blob.start, blob.start + 8, blob.end - 9] {
            let mut damaged = bytes.clone();
            damaged[at] = !damaged[at];
            fs::write(&path, damaged).unwrap();
            let error = fixture.restore(&plan).unwrap_err();
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(error.to_string().contains(&format!("{}-0", partition.topic)), "{error}");
            assert!(cause.contains(&pack), "{error}: {cause}");
            assert!(!fixture.dir(1, 0).join("meta.properties").exists());
        }
        fs::write(&path, bytes).unwrap();
        for node in 1..=3 {
            fs::remove_dir_all(fixture.folder.path().join(format!("node{node}"))).unwrap();
        }
    }
    fixture.restore(&plan).unwrap();
}

/// Damage that only shows when all is read: in the middle of segments, and what Kafka never notices is missing.
#[test]
fn verify_content_finds_what_lies_deeper() {
    let fixture = Fixture::new();
    let plan = fixture.plan();
    fixture.restore(&plan).unwrap();
    let dir = fixture.dir(2, 0).join("orders-0");
    let snapshot = fs::read(dir.join(format!("{:020}.snapshot", 75))).unwrap();
    let mut wrong = ProducerSnapshot::decode(&snapshot).unwrap();
    wrong.entries.iter_mut().filter(|entry| entry.producer_id == 5).for_each(|entry| entry.last_offset = 1);
    let wrong = wrong.encode();
    let log = fs::read(dir.join(format!("{:020}.log", 28))).unwrap();
    let mut flipped = log.clone();
    flipped[300] ^= 1;
    let mut epoch = log.clone();
    epoch[15] = 7;
    let index = fs::read(dir.join(format!("{:020}.index", 28))).unwrap();
    let mut shifted = index.clone();
    shifted[7] += 1;
    let damages: [(&str, String, Option<&[u8]>); 5] = [
        ("crc", format!("{:020}.log", 28), Some(&flipped)),
        ("has epoch 7", format!("{:020}.log", 28), Some(&epoch)),
        ("where no batch begins", format!("{:020}.index", 28), Some(&shifted)),
        ("aborted at offset 40", format!("{:020}.txnindex", 28), None),
        ("producer 5", format!("{:020}.snapshot", 75), Some(&wrong)),
    ];
    for (expected, name, bytes) in damages {
        let path = dir.join(name);
        let before = fs::read(&path).unwrap();
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let findings = verify_content(&plan, 1);
        assert!(findings.iter().any(|finding| finding.what.contains(expected)), "{expected}: {findings:?}");
        fs::write(&path, before).unwrap();
        assert_eq!(verify_content(&plan, 1), []);
    }
}

#[test]
fn a_controller_gets_the_metadata_alone() {
    let mut fixture = Fixture::new();
    let mut controller = target(9, fixture.folder.path());
    (controller.broker, controller.static_voters) = (false, Some(vec![1, 2, 3, 9]));
    let entry = NodeEntry { broker: false, ..node_entry(9, fixture.folder.path()) };
    fixture.point.nodes.push(entry);
    let plan = fixture.plan_for(&[controller]);
    let report = fixture.restore(&plan).unwrap();
    assert_eq!(report.partitions, 0);
    assert_eq!(verify(&plan, 0), []);
    let mut files = BTreeMap::new();
    read_tree(&fixture.dir(9, 0), &fixture.dir(9, 0), &mut files);
    let names: Vec<_> = files.keys().map(|path| path.display().to_string()).collect();
    let checkpoint = "__cluster_metadata-0/00000000000001000300-0000001002.checkpoint";
    assert_eq!(names, [checkpoint, "meta.properties"]);
}

#[test]
fn verify_finds_whatever_is_wrong() {
    let fixture = Fixture::new();
    let plan = fixture.plan();
    fixture.restore(&plan).unwrap();
    let dir = fixture.dir(2, 0);
    let flip = |name: &str, from_end: u64| {
        let path = dir.join(name);
        let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = file.metadata().unwrap().len() - from_end;
        let mut byte = [0];
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[!byte[0]]).unwrap();
    };
    let resize = |name: &str, by: i64| {
        let file = OpenOptions::new().write(true).open(dir.join(name)).unwrap();
        file.set_len((file.metadata().unwrap().len() as i64 + by) as u64).unwrap();
    };
    let set = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    let other_topic = format!("version: 0\ntopic_id: {}", id(200));
    let remove = |name: &str| fs::remove_file(dir.join(name)).unwrap();
    let tail = format!("orders-0/{:020}", 41);
    let closed = format!("orders-0/{:020}", 28);
    let checkpoint = "__cluster_metadata-0/00000000000001000300-0000001002.checkpoint";
    let marker = ends_txn(74, 9, false);
    let before_last = marker.len() as u64 + 3;
    let at_end = format!("orders-0/{:020}.snapshot", 75);
    let mut forgetful = ProducerSnapshot::decode(&fs::read(dir.join(&at_end)).unwrap()).unwrap();
    forgetful.entries.iter_mut().filter(|entry| entry.producer_id == 9).for_each(|entry| entry.epoch = 2);
    let forgetful = forgetful.encode();
    type Damage<'a> = (&'static str, Box<dyn Fn() + 'a>);
    let damages: Vec<Damage<'_>> = vec![
        ("the topic id is", Box::new(|| set("orders-0/partition.metadata", &other_topic))),
        ("partition.metadata", Box::new(|| remove("fresh-0/partition.metadata"))),
        ("cut short", Box::new(|| resize(&format!("{tail}.log"), -1))),
        ("41.log", Box::new(|| resize(&format!("{tail}.log"), 20))),
        ("the last batch", Box::new(|| flip(&format!("{tail}.log"), 3))),
        ("28.index", Box::new(|| remove(&format!("{closed}.index")))),
        ("empty entries", Box::new(|| resize(&format!("{tail}.index"), 80))),
        ("empty entries", Box::new(|| resize(&format!("{tail}.timeindex"), 120))),
        ("multiple", Box::new(|| resize(&format!("{tail}.txnindex"), -1))),
        // Batches that only the end's replay looks into.
        ("crc", Box::new(|| flip(&format!("{tail}.log"), before_last))),
        ("what it says of producer 9", Box::new(|| fs::write(dir.join(&at_end), &forgetful).unwrap())),
        ("offset 41 has epoch 0", Box::new(|| set("orders-0/leader-epoch-checkpoint", "0\n1\n0 60\n"))),
        ("75.snapshot: is missing", Box::new(|| remove(&format!("orders-0/{:020}.snapshot", 75)))),
        ("crc", Box::new(|| flip(&format!("orders-0/{:020}.snapshot", 75), 1))),
        ("above the one in the metadata", Box::new(|| set("orders-0/leader-epoch-checkpoint", "0\n1\n5000 10\n"))),
        ("does not belong here", Box::new(|| set("orders-0/x.txt", ""))),
        ("belongs to no partition", Box::new(|| fs::create_dir(dir.join("stray-0")).unwrap())),
        ("is missing", Box::new(|| fs::remove_dir_all(dir.join("started-0")).unwrap())),
        ("does not name the logs' ends", Box::new(|| set("replication-offset-checkpoint", "0\n1\norders 0 74\n"))),
        ("the start of started-0", Box::new(|| set("log-start-offset-checkpoint", "0\n0\n"))),
        ("the broker epoch", Box::new(|| set(".kafka_cleanshutdown", "{\"version\":0,\"brokerEpoch\":7}"))),
        ("node.id", Box::new(|| set("meta.properties", &format!("version=1\ncluster.id={CLUSTER}\nnode.id=9\n")))),
        ("is not the checkpoint of the plan", Box::new(|| flip(checkpoint, 9))),
        ("instead of the checkpoint alone", Box::new(|| set("__cluster_metadata-0/quorum-state", "{}"))),
        ("Kafka has opened this log dir since", Box::new(|| set(".lock", ""))),
    ];
    let whole = fixture.tree();
    for (expected, damage) in damages {
        damage();
        let findings = verify(&plan, 1);
        assert!(findings.iter().any(|finding| finding.what.contains(expected)), "{expected}: {findings:?}");
        assert!(findings.iter().all(|finding| finding.severity == Severity::Warning));
        fs::remove_dir_all(&dir).unwrap();
        for (path, bytes) in whole.iter().filter(|(path, _)| path.starts_with("node2")) {
            let path = fixture.folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        assert_eq!(verify(&plan, 1), []);
    }
}
