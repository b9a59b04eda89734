//! Uploads of small logs on disk into a vault in a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::prelude::*;
use segvault_kafka_log::batch::{Batch, BatchBuilder, Batches, EndTxnMarker, end_txn_marker_batch};
use segvault_kafka_log::checkpoint::EpochEntry;
use segvault_kafka_log::ids::Uuid;
use segvault_kafka_log::index::AbortedTxn;
use segvault_kafka_log::producer::{ProducerSnapshot, ProducerState};
use segvault_proto::{
    CheckpointCopy, Gaps, LogPosition, MetadataCopy, MetadataOrder, Report, StoredMetadata, StoredPartition,
    UploadOrder,
};
use segvault_vault::{Config, LoadedStream, UploadOptions, Uploader, Vault, VaultLocation};
use segvault_vault_format::blob::BlobPlace;
use segvault_vault_format::ids::PackId;
use segvault_vault_format::keys::Key;
use segvault_vault_format::manifest::{AbortedTransaction, Stream, StreamRef};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{Cores, Upload, UploadError};
use crate::cache::{Cache, JOURNAL};
use crate::journal::Journal;
use crate::pinned::{Copied, CopiedBytes, FileIdentity, Pin, PinnedReplica, PinnedSegment, Tally};

const TOPIC: &str = "orders";
const TOPIC_ID: Uuid = Uuid([7; 16]);
const CLUSTER: &str = "uHkGuCQeSDWMbl4fVJgYtw";

/// A partition's log dir on disk, written as a broker would: closed files stay, the tail is appended to.
struct Log {
    folder: TempDir,
    segments: Vec<i64>,
    end: i64,
    epoch: i32,
    epochs: Vec<EpochEntry>,
    pins: usize,
}

impl Log {
    fn new() -> Self {
        let mut log = Self {
            folder: tempfile::tempdir().unwrap(),
            segments: Vec::new(),
            end: 0,
            epoch: 0,
            epochs: vec![EpochEntry { epoch: 0, start_offset: 0 }],
            pins: 0,
        };
        log.roll();
        log
    }

    fn file(&self, base_offset: i64) -> PathBuf {
        self.folder.path().join(format!("{base_offset:020}.log"))
    }

    fn roll(&mut self) {
        self.segments.push(self.end);
        fs::write(self.file(self.end), b"").unwrap();
    }

    fn append(&mut self, batch: &[u8]) {
        let tail = self.file(*self.segments.last().unwrap());
        OpenOptions::new().append(true).open(tail).unwrap().write_all(batch).unwrap();
        self.end = Batches::new(batch).last().unwrap().unwrap().1.next_offset();
    }

    /// A batch of one record with `len` bytes that do not compress.
    fn data(&mut self, len: usize) -> &mut Self {
        let batch = BatchBuilder::new(self.end, self.epoch).record(1000, None, Some(&noise(self.end, len))).build();
        self.append(&batch);
        self
    }

    fn transactional(&mut self, producer: i64, sequence: i32) {
        let batch = BatchBuilder::new(self.end, self.epoch).transactional().producer(producer, 0, sequence);
        self.append(&batch.record(1000, None, Some(b"payment")).build());
    }

    fn end_transaction(&mut self, producer: i64, commit: bool) {
        let marker = EndTxnMarker { commit, coordinator_epoch: 3 };
        self.append(&end_txn_marker_batch(self.end, self.epoch, 1000, producer, 0, marker));
    }

    fn elect(&mut self) {
        self.epoch += 1;
        self.epochs.retain(|entry| entry.start_offset < self.end);
        self.epochs.push(EpochEntry { epoch: self.epoch, start_offset: self.end });
    }

    fn delete_first(&mut self) {
        let first = self.segments.remove(0);
        fs::remove_file(self.file(first)).unwrap();
    }

    /// Compacts the closed segments: what is aborted in them goes, and its markers.
    fn clean(&mut self) {
        let closed = &self.segments[..self.segments.len() - 1];
        let bytes: Vec<Vec<u8>> = closed.iter().map(|base| fs::read(self.file(*base)).unwrap()).collect();
        let batches = |bytes| Batches::new(bytes).map(|batch| batch.unwrap().1);
        let mut state = ProducerState::new(0);
        let ended = bytes.iter().flat_map(|bytes| batches(bytes)).filter_map(|batch| state.apply(&batch).unwrap());
        let aborted: Vec<_> = ended.filter_map(|transaction| transaction.aborted()).collect();
        for (base, bytes) in closed.iter().zip(&bytes) {
            let is_kept = |batch: &Batch<'_>| {
                let offsets = |txn: &AbortedTxn| (txn.first_offset..=txn.last_offset).contains(&batch.base_offset());
                !aborted.iter().any(|txn| txn.producer_id == batch.producer_id() && offsets(txn))
            };
            let kept: Vec<u8> = batches(bytes).filter(is_kept).flat_map(|batch| batch.bytes().to_vec()).collect();
            let swap = self.folder.path().join("swap");
            fs::write(&swap, kept).unwrap();
            fs::rename(swap, self.file(*base)).unwrap();
        }
    }

    /// Another replica of the same log, with segments that end elsewhere.
    fn replica(&self, segment_batches: usize) -> Log {
        let mut other = Log { epoch: self.epoch, epochs: self.epochs.clone(), ..Log::new() };
        let bytes: Vec<u8> = self.segments.iter().flat_map(|base| fs::read(self.file(*base)).unwrap()).collect();
        for (index, batch) in Batches::new(&bytes).enumerate() {
            if index > 0 && index % segment_batches == 0 {
                other.roll();
            }
            other.append(batch.unwrap().1.bytes());
        }
        other
    }

    fn pin(&mut self) -> PinnedReplica {
        let segments = self.segments.clone().into_iter().map(|base_offset| self.pin_segment(base_offset)).collect();
        PinnedReplica {
            topic: TOPIC.into(),
            topic_id: TOPIC_ID,
            partition: 0,
            dir: self.folder.path().into(),
            log_start_offset: self.segments[0],
            position: LogPosition { last_epoch: self.epoch, end_offset: self.end },
            prepared_end_offset: self.end,
            epochs: self.epochs.iter().filter(|entry| entry.start_offset < self.end).copied().collect(),
            segments,
            producer_snapshot: None,
        }
    }

    fn pin_segment(&mut self, base_offset: i64) -> PinnedSegment {
        let source = self.file(base_offset);
        let identity = FileIdentity::of(&fs::metadata(&source).unwrap());
        let link = self.folder.path().join(format!("pin-{}", self.pins));
        self.pins += 1;
        fs::hard_link(&source, &link).unwrap();
        PinnedSegment {
            base_offset,
            source,
            pin: Pin::Link(link, Tally::default().hold(identity.size)),
            len: identity.size,
            copy: None,
            identity,
        }
    }
}

/// `len` bytes that do not compress, always the same for the same seed.
fn noise(seed: i64, len: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn uploader(vault: &Vault) -> Uploader {
    Uploader::new(vault, UploadOptions { pack_bytes: 1 << 20, ..UploadOptions::default() })
}

/// A vault, and the last point of one partition in it.
struct Fixture {
    vault: Vault,
    uploader: Uploader,
    cache: Cache,
    previous: Option<StreamRef>,
    point: u64,
    cancelled: AtomicBool,
    folder: TempDir,
    _runtime: Runtime,
}

impl Fixture {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let location = VaultLocation::File(folder.path().join("vault"));
        let vault = runtime.block_on(Vault::init(&location, &Config::default(), 0)).unwrap();
        let uploader = uploader(&vault);
        let cache = Cache::open(folder.path().join("cache"), vault.id(), CLUSTER);
        Self {
            vault,
            uploader,
            cache,
            previous: None,
            point: 0,
            cancelled: AtomicBool::new(false),
            folder,
            _runtime: runtime,
        }
    }

    fn run(&mut self, order: UploadOrder, replica: PinnedReplica) -> Report {
        let (mut replica, reports) = (Some(replica), Mutex::new(Vec::new()));
        let upload = Upload {
            vault: &self.vault,
            uploader: &self.uploader,
            cluster_id: CLUSTER,
            cores: &Cores::new(2),
            cancelled: &self.cancelled,
        };
        let reply = |report| reports.lock().unwrap().push(report);
        upload.run(vec![order], None, &mut |_, _| replica.take(), &mut self.cache, &reply).unwrap();
        let mut reports = reports.into_inner().unwrap();
        assert_eq!(reports.len(), 1, "{reports:?}");
        reports.pop().unwrap()
    }

    fn order(&self, cut: i64) -> UploadOrder {
        let previous = self.previous.clone();
        UploadOrder { topic: TOPIC.into(), topic_id: TOPIC_ID, partition: 0, cut, gaps: Gaps::Anywhere, previous }
    }

    /// Takes a point of `log` up to its end.
    fn point(&mut self, log: &mut Log) -> Point {
        let cut = log.end;
        self.point_at(log, cut)
    }

    fn point_at(&mut self, log: &mut Log, cut: i64) -> Point {
        let before = self.uploader.stored_bytes();
        let stored = match self.run(self.order(cut), log.pin()) {
            Report::Stored(stored) => stored,
            other => panic!("{other:?}"),
        };
        assert!(
            !fs::read_dir(log.folder.path())
                .unwrap()
                .any(|entry| { entry.unwrap().file_name().to_string_lossy().starts_with("pin") }),
            "a pin is left"
        );
        self.point += 1;
        self.cache.commit(self.point);
        self.previous = Some(stored.stream.clone());
        let loaded = self.load(&stored.stream);
        loaded.stream.check().unwrap();
        Point { stored_bytes: self.uploader.stored_bytes() - before, bytes: self.bytes(&loaded), stored, loaded }
    }

    fn refusal(&mut self, order: UploadOrder, replica: PinnedReplica) -> String {
        match self.run(order, replica) {
            Report::NotStored { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn forget_files(&mut self) {
        self.cache = Cache::open(self.folder.path().join("none"), self.vault.id(), CLUSTER);
    }

    /// The agent is killed, and another one started on its staging folder.
    fn restart(&mut self) {
        self.cache = Cache::open(self.folder.path().join("cache"), self.vault.id(), CLUSTER);
        self.uploader = uploader(&self.vault);
        *self.cancelled.get_mut() = false;
    }

    /// Uploads `log` until some packs are durable. Then the point is given up, or the agent killed, which leaves the
    /// journal as it is while the upload goes on.
    fn break_off(&mut self, log: &mut Log, killed: bool) {
        let mut replica = log.pin();
        // Whoever opens a pipe to read it waits until it is opened at its other end: the last segment is not read before
        // the upload is cancelled.
        let pipe = log.folder.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        replica.segments.last_mut().unwrap().pin = Pin::Link(pipe.clone(), Tally::default().hold(0));
        let (order, mut replica, ended) = (self.order(log.end), Some(replica), AtomicBool::new(false));
        let journal_path = self.folder.path().join(JOURNAL);
        let journal = Journal::new(journal_path.clone(), self.vault.id());
        let Self { vault, uploader, cache, cancelled, .. } = self;
        let upload = Upload { vault, uploader, cluster_id: CLUSTER, cores: &Cores::new(2), cancelled };
        let until = |is_so: &dyn Fn() -> bool| {
            // Only a mistake takes so long, and is then found by what is asserted.
            let deadline = Instant::now() + Duration::from_secs(60);
            while !is_so() && !ended.load(Ordering::Relaxed) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        };
        let release = || OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&pipe).is_ok();
        let (result, left) = thread::scope(|scope| {
            let breaker = scope.spawn(|| {
                until(&|| uploader.stored_bytes() > SOME_PACKS);
                let left = killed.then(|| {
                    until(&|| packed_len(&journal.open().0) > SOME_PACKS_NOTED);
                    fs::read(&journal_path).unwrap_or_default()
                });
                cancelled.store(true, Ordering::Relaxed);
                until(&release);
                left
            });
            let result = upload.run(vec![order], None, &mut |_, _| replica.take(), cache, &|_| {});
            ended.store(true, Ordering::Relaxed);
            (result, breaker.join().unwrap())
        });
        assert!(matches!(result, Err(UploadError::Cancelled)), "{result:?}");
        match left {
            Some(left) => fs::write(journal_path, left).unwrap(),
            None => self.cache.abort(),
        }
        assert!(packed_len(&self.noted()) > SOME_PACKS_NOTED, "what was durable is noted");
        self.restart();
    }

    fn noted(&self) -> Vec<BlobPlace> {
        self.cache.journal().open().0
    }

    fn path(&self, pack: PackId) -> PathBuf {
        self.folder.path().join("vault").join(Key::Pack(pack).to_string())
    }

    fn load(&self, stream: &StreamRef) -> LoadedStream {
        self.vault.wait(self.vault.load_stream(stream)).unwrap()
    }

    /// All bytes of a stream.
    fn bytes(&self, loaded: &LoadedStream) -> Vec<u8> {
        let (mut reader, mut bytes, mut chunk) =
            (self.vault.read_chunks(loaded.places.clone()), Vec::new(), Vec::new());
        while reader.next(&mut chunk).unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        bytes
    }
}

struct Point {
    stored: StoredPartition,
    loaded: LoadedStream,
    bytes: Vec<u8>,
    stored_bytes: u64,
}

impl Point {
    fn segments(&self) -> Vec<(i64, u64)> {
        self.loaded.stream.segments.iter().map(|segment| (segment.base_offset, segment.position)).collect()
    }
}

fn log_bytes(log: &Log) -> Vec<u8> {
    log.segments.iter().flat_map(|base| fs::read(log.file(*base)).unwrap()).collect()
}

#[test]
fn first_point_has_every_byte_and_every_segment() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    for len in [100, 300_000, 700_000, 900_000] {
        log.data(len);
    }
    log.elect();
    log.roll();
    log.data(5_000_000).data(20);
    let point = fixture.point(&mut log);
    assert_eq!(point.bytes, log_bytes(&log));
    let first = fs::metadata(log.file(0)).unwrap().len();
    assert_eq!(point.segments(), [(0, 0), (4, first)]);
    assert_eq!(point.stored.read_bytes, point.bytes.len() as u64);
    assert_eq!((point.stored.end_offset, point.stored.max_epoch, point.stored.max_producer_id), (6, 1, -1));
    assert!(point.loaded.stream.chunks.iter().all(|chunk| chunk.len <= 4 << 20 || chunk.batches == 1));
    assert!(point.stored.notes.is_empty());
}

#[test]
fn unchanged_log_is_neither_read_nor_stored_again() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(300_000);
    log.roll();
    log.data(300_000);
    let first = fixture.point(&mut log);
    for _ in 0..2 {
        let again = fixture.point(&mut log);
        assert_eq!((again.stored.read_bytes, again.stored_bytes), (0, 0));
        assert_eq!(again.stored.stream, first.stored.stream);
        assert_eq!(again.stored.bytes, first.stored.bytes);
    }
    let identity = FileIdentity::of(&fs::metadata(log.file(0)).unwrap());
    assert!(fixture.cache.knows(3, TOPIC_ID, 0, 0, identity.size, &identity));
    assert!(!fixture.cache.knows(2, TOPIC_ID, 0, 0, identity.size, &identity));
    // Without what it remembers, it reads all and finds it all in the vault.
    fixture.forget_files();
    let again = fixture.point(&mut log);
    assert_eq!((again.stored.read_bytes, again.stored_bytes), (again.stored.bytes, 0));
    assert_eq!(again.stored.stream, first.stored.stream);
}

#[test]
fn known_segments_need_no_pin() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(300_000);
    log.roll();
    log.data(1000);
    fixture.point(&mut log);
    log.data(1000);
    let mut replica = log.pin();
    replica.segments[0].pin = Pin::Known;
    // Its link is gone now, so another look at the file gives what the agent would see.
    replica.segments[0].identity = FileIdentity::of(&fs::metadata(log.file(0)).unwrap());
    match fixture.run(fixture.order(log.end), replica) {
        Report::Stored(stored) => assert_eq!(stored.end_offset, log.end),
        other => panic!("{other:?}"),
    }
}

#[test]
fn growth_costs_what_was_appended() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(2_000_000);
    fixture.point(&mut log);
    for grow in [10_000, 20_000] {
        log.data(grow);
        let point = fixture.point(&mut log);
        assert_eq!(point.bytes, log_bytes(&log));
        assert!((grow as u64..grow as u64 + 5000).contains(&point.stored.read_bytes), "{}", point.stored.read_bytes);
        assert!(point.stored_bytes < grow as u64 + 5000, "{}", point.stored_bytes);
    }
    // Also when the tail has rolled, and when it went on growing while it was uploaded.
    log.data(10_000);
    log.roll();
    let mut replica = log.pin();
    replica.segments[1].identity.size = 0;
    log.data(10_000);
    let report = fixture.run(fixture.order(log.end - 1), replica);
    let Report::Stored(stored) = report else { panic!("{report:?}") };
    assert!(stored.read_bytes < 11_000);
    fixture.cache.commit(4);
    fixture.previous = Some(stored.stream);
    let point = fixture.point(&mut log);
    assert_eq!(point.bytes, log_bytes(&log));
    assert!(point.stored.read_bytes < 11_000);
}

#[test]
fn tail_that_was_cut_and_written_anew_is_read_anew() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(100_000).data(100_000);
    fixture.point(&mut log);
    // A follower truncates its end, and gets another batch of the same length from the new leader.
    let tail = log.file(0);
    let len = fs::metadata(&tail).unwrap().len();
    OpenOptions::new().write(true).open(&tail).unwrap().set_len(len / 2).unwrap();
    log.end = 1;
    log.elect();
    log.data(100_000);
    let point = fixture.point(&mut log);
    assert_eq!(point.bytes, log_bytes(&log));
    assert_eq!(point.stored.max_epoch, 1);
}

#[test]
fn another_source_stores_nothing_again() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    for _ in 0..40 {
        log.data(150_000);
    }
    let first = fixture.point(&mut log);
    for segment_batches in [7, 11] {
        let mut other = log.replica(segment_batches);
        fixture.forget_files();
        let point = fixture.point(&mut other);
        assert_eq!(point.bytes, first.bytes);
        assert_eq!(point.loaded.stream.chunks, first.loaded.stream.chunks);
        assert_eq!(point.segments().len(), 40usize.div_ceil(segment_batches));
        assert!(point.stored_bytes < 10_000, "only manifests");
        // And it remembers its own files.
        let again = fixture.point(&mut other);
        assert_eq!((again.stored.read_bytes, again.stored_bytes), (0, 0));
    }
}

#[test]
fn retention_drops_whole_chunks_and_reads_the_rest_of_one() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    for _ in 0..40 {
        log.data(150_000);
    }
    fixture.point(&mut log);
    let mut other = log.replica(7);
    fixture.forget_files();
    fixture.point(&mut other);
    other.delete_first();
    let point = fixture.point(&mut other);
    assert_eq!(point.bytes, log_bytes(&other));
    assert_eq!((point.stored.log_start_offset, point.segments()[0]), (7, (7, 0)));
    assert!(point.stored.read_bytes < 5 << 20, "a chunk at most: {}", point.stored.read_bytes);
    // Boundaries of chunks and segments are the same now.
    other.delete_first();
    let point = fixture.point(&mut other);
    assert_eq!(point.bytes, log_bytes(&other));
}

#[test]
fn many_small_pieces_become_one_chunk() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    for _ in 0..12 {
        log.data(120_000);
        fixture.point(&mut log);
    }
    let point = fixture.point(&mut log);
    assert!(point.loaded.stream.chunks.len() < 8, "{}", point.loaded.stream.chunks.len());
    assert_eq!(point.bytes, log_bytes(&log));
}

#[test]
fn damage_is_named_by_file_and_position() {
    let mut log = Log::new();
    for _ in 0..3 {
        log.data(1000);
    }
    let good = fs::read(log.file(0)).unwrap();
    let batch = good.len() as u64 / 3;
    // (what is flipped, where the second batch begins plus, text)
    let cases = [
        ("offset", 0, "offset"),
        ("lower offset", 7, "follows offset"),
        ("length, higher", 8, "impossible batch length"),
        ("length, more than is left", 10, "cut short"),
        ("length, a little more", 11, "crc"),
        ("epoch", 12, "follows epoch"),
        ("magic", 16, "magic"),
        ("crc", 17, "crc"),
        ("record", 700, "crc"),
    ];
    for (name, at, text) in cases {
        let mut bad = good.clone();
        bad[batch as usize + at] ^= if at == 7 { 1 } else { 0x40 };
        fs::write(log.file(0), &bad).unwrap();
        let mut fixture = Fixture::new();
        let reason = fixture.refusal(fixture.order(log.end), log.pin());
        assert!(reason.contains("00000000000000000000.log at byte "), "{name}: {reason}");
        assert!(reason.contains(text), "{name}: {reason}");
    }
}

#[test]
fn truncated_files_are_named() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(1000).data(1000);
    let replica = log.pin();
    OpenOptions::new().write(true).open(log.file(0)).unwrap().set_len(1500).unwrap();
    let reason = fixture.refusal(fixture.order(2), replica);
    assert!(reason.contains("00000000000000000000.log") && reason.contains("truncated"), "{reason}");
    let reason = fixture.refusal(fixture.order(3), Log::new().data(10).pin());
    assert!(reason.contains("log ends at offset 1, 3 was expected"), "{reason}");
}

#[test]
fn copied_bytes_replace_those_of_the_file() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(1000).data(2000);
    let bytes = log_bytes(&log);
    let mut replica = log.pin();
    replica.segments[0].copy = Some(Copied { start: 900, bytes: CopiedBytes::Memory(bytes[900..].to_vec()) });
    OpenOptions::new().write(true).open(log.file(0)).unwrap().set_len(900).unwrap();
    let report = fixture.run(fixture.order(2), replica);
    let Report::Stored(stored) = report else { panic!("{report:?}") };
    assert_eq!(fixture.bytes(&fixture.load(&stored.stream)), bytes);
}

#[test]
fn cut_below_the_end_is_a_boundary_or_refused() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    let two = BatchBuilder::new(0, 0).record(1, None, Some(b"a")).record(1, None, Some(b"b")).build();
    log.append(&two);
    log.data(100);
    log.roll();
    log.data(100);
    let reason = fixture.refusal(fixture.order(1), log.pin());
    assert!(reason.contains("across the cut at 1"), "{reason}");

    let point = fixture.point_at(&mut log, 2);
    assert_eq!((point.bytes, point.stored.end_offset), (two, 2));
    let point = fixture.point_at(&mut log, 3);
    assert_eq!((point.segments().len(), point.stored.bytes), (1, fs::metadata(log.file(0)).unwrap().len()));
    let point = fixture.point(&mut log);
    assert_eq!(point.bytes, log_bytes(&log));
    // Below everything there is: an empty log that ends at the cut.
    log.delete_first();
    let point = fixture.point_at(&mut log, 2);
    assert_eq!((point.segments(), point.stored.log_start_offset, point.bytes.len()), (vec![(2, 0)], 2, 0));
}

#[test]
fn empty_log_is_one_empty_segment() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    let point = fixture.point(&mut log);
    assert_eq!((point.segments(), point.stored.max_epoch), (vec![(0, 0)], -1));
    let again = fixture.point(&mut log);
    assert_eq!(again.stored.stream, point.stored.stream);
    log.data(10);
    assert_eq!(fixture.point(&mut log).bytes, log_bytes(&log));
}

#[test]
fn gap_before_the_cut_ends_with_an_empty_segment() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(100);
    // The cleaner has taken what was at offsets 1 to 4.
    log.end = 5;
    log.roll();
    let point = fixture.point(&mut log);
    assert_eq!(point.segments(), [(0, 0), (5, point.bytes.len() as u64)]);
    log.data(100);
    let point = fixture.point_at(&mut log, 4);
    assert_eq!(point.segments(), [(0, 0), (4, point.bytes.len() as u64)]);
}

#[test]
fn producers_whose_batches_are_gone_come_from_the_snapshot() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.transactional(5, 0);
    log.end_transaction(5, true);
    log.transactional(6, 0);
    let mut state = ProducerState::new(0);
    for batch in Batches::new(&log_bytes(&log)) {
        state.apply(&batch.unwrap().1).unwrap();
    }
    log.roll();
    log.transactional(6, 1);
    log.delete_first();
    let mut store = |cut, snapshot_offset| {
        let mut replica = log.pin();
        replica.producer_snapshot = Some((snapshot_offset, state.snapshot().encode()));
        let report = fixture.run(fixture.order(cut), replica);
        let Report::Stored(stored) = report else { panic!("{report:?}") };
        let snapshot = ProducerSnapshot::decode(&fixture.load(&stored.stream).stream.producer_snapshot).unwrap();
        (stored, snapshot.entries.iter().map(|entry| entry.producer_id).collect::<Vec<_>>())
    };
    let (stored, known) = store(4, 3);
    assert_eq!((stored.max_producer_id, stored.open.len(), stored.open[0].first_offset), (6, 1, 2));
    assert_eq!(known, [5, 6]);
    // What it knows may have come after the cut.
    assert_eq!(store(3, 4).1, [0; 0]);
}

/// Retention takes the last batch there is; what comes later is checked against what its producer did before.
#[test]
fn an_emptied_log_still_knows_its_producers() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.transactional(1, 0);
    log.roll();
    fixture.point(&mut log);
    log.delete_first();
    let emptied = fixture.point(&mut log).loaded.stream;
    log.data(1);
    let refilled = fixture.point(&mut log).loaded.stream;
    let producers = |stream: &Stream| ProducerSnapshot::decode(&stream.producer_snapshot).unwrap().entries;
    assert_eq!(producers(&emptied).len(), 1);
    assert_eq!(producers(&refilled), producers(&emptied));
}

/// A hole in a log that nothing compacts is a loss, wherever it is; in one that is compacted it is none.
#[test]
fn missing_offsets_are_told_from_compaction() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    (0..6).for_each(|number| {
        log.data(100);
        if number % 2 == 1 {
            log.roll();
        }
    });
    let order = |fixture: &Fixture, log: &Log, gaps| UploadOrder { gaps, ..fixture.order(log.end) };
    for base in [0, 2, 4] {
        let intact = fs::read(log.file(base)).unwrap();
        fs::write(log.file(base), b"").unwrap();
        let refusal = fixture.refusal(order(&fixture, &log, Gaps::Nowhere), log.pin());
        assert!(refusal.contains(&format!("offsets {base} to {} are missing", base + 1)), "{refusal}");
        assert!(matches!(fixture.run(order(&fixture, &log, Gaps::InClosed), log.pin()), Report::Stored(_)));
        fs::write(log.file(base), intact).unwrap();
    }
    // The active segment was never compacted: an offset that was damaged upwards is no gap of the cleaner's.
    log.end += 300;
    log.data(100);
    let refusal = fixture.refusal(order(&fixture, &log, Gaps::InClosed), log.pin());
    assert!(refusal.contains("offsets 6 to 305 are missing"), "{refusal}");
    assert!(matches!(fixture.run(order(&fixture, &log, Gaps::Anywhere), log.pin()), Report::Stored(_)));
    log.end += 1 << 31;
    log.data(100);
    let refusal = fixture.refusal(order(&fixture, &log, Gaps::Anywhere), log.pin());
    assert!(refusal.contains("too far from its segment's base"), "{refusal}");
}

/// An entry without a marker makes Kafka's cleaner take all that the producer wrote behind it for aborted.
#[test]
fn an_aborted_transaction_is_forgotten_once_its_marker_is_compacted_away() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    for commit in [false, true, false] {
        log.transactional(1, log.end as i32 / 3);
        log.end_transaction(1, commit);
        log.data(100);
    }
    let aborted = |point: &Point| -> Vec<i64> {
        let segments = point.loaded.stream.segments.iter();
        segments.flat_map(|segment| &segment.aborted).map(|aborted| aborted.last_offset).collect()
    };
    assert_eq!(aborted(&fixture.point(&mut log)), [1, 7]);
    log.roll();
    log.transactional(1, 3);
    log.end_transaction(1, false);
    log.clean();
    assert_eq!(aborted(&fixture.point(&mut log)), [10]);
}

#[test]
fn lost_manifest_of_the_last_point_stores_all_anew() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(100_000);
    let first = fixture.point(&mut log);
    let place = &first.loaded.places[0];
    let mut previous = first.stored.stream.clone();
    previous.manifest.as_mut().unwrap().id = place.id.0.to_vec();
    fixture.previous = Some(previous);
    let point = fixture.point(&mut log);
    assert_eq!(point.bytes, first.bytes);
    assert!(point.stored.notes[0].contains("not readable"), "{:?}", point.stored.notes);
}

#[test]
fn metadata_becomes_two_streams() {
    let mut fixture = Fixture::new();
    let batch = |offset, epoch| BatchBuilder::new(offset, epoch).record(1, None, Some(&[1, 2, 3])).build();
    let checkpoint = CheckpointCopy { end_offset: 40, epoch: 2, bytes: [batch(0, 2), batch(1, 2)].concat() };
    let copy = MetadataCopy {
        checkpoint: Some(checkpoint),
        log: [batch(40, 2), batch(41, 3)].concat(),
        end_offset: 42,
        epoch: 3,
        remainder: None,
    };
    let upload = |fixture: &mut Fixture, order, copy| -> StoredMetadata {
        let reports = Mutex::new(Vec::new());
        let upload = Upload {
            vault: &fixture.vault,
            uploader: &fixture.uploader,
            cluster_id: CLUSTER,
            cores: &Cores::new(1),
            cancelled: &fixture.cancelled,
        };
        let reply = |report| reports.lock().unwrap().push(report);
        upload.run(Vec::new(), Some((order, copy)), &mut |_, _| None, &mut fixture.cache, &reply).unwrap();
        match reports.into_inner().unwrap().pop() {
            Some(Report::MetadataStored(stored)) => stored,
            other => panic!("{other:?}"),
        }
    };
    let first = upload(&mut fixture, MetadataOrder::default(), copy.clone());
    let [checkpoint, log] = [&first.checkpoint, &first.log].map(|stream| fixture.load(stream.as_ref().unwrap()));
    assert_eq!((checkpoint.stream.partition, checkpoint.stream.end_offset), (-1, 2));
    assert_eq!((log.stream.partition, log.stream.log_start_offset, log.stream.end_offset), (0, 40, 42));
    assert_eq!(log.stream.epochs.len(), 2);
    assert_eq!(fixture.bytes(&log), copy.log);

    let order =
        MetadataOrder { previous_checkpoint: first.checkpoint.clone(), previous_log: first.log.clone(), copy: None };
    let again = upload(&mut fixture, order, copy);
    assert_eq!((again.checkpoint, again.log), (first.checkpoint, first.log));
}

#[test]
fn a_cancelled_upload_ends_and_reports_nothing_as_stored() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(100_000);
    *fixture.cancelled.get_mut() = true;
    let Fixture { vault, uploader, cache, cancelled, .. } = &mut fixture;
    let upload = Upload { vault, uploader, cluster_id: CLUSTER, cores: &Cores::new(2), cancelled };
    let order = UploadOrder {
        topic: TOPIC.into(),
        topic_id: TOPIC_ID,
        partition: 0,
        cut: log.end,
        gaps: Gaps::Anywhere,
        previous: None,
    };
    let (mut replica, stored) = (Some(log.pin()), AtomicBool::new(false));
    let reply = |report| stored.store(matches!(report, Report::Stored(_)), Ordering::Relaxed);
    let ended = upload.run(vec![order], None, &mut |_, _| replica.take(), cache, &reply);
    assert!(matches!(ended, Err(UploadError::Cancelled)) && !stored.into_inner());
}

/// More bytes than one pack may have: 1 MiB and a chunk.
const SOME_PACKS: u64 = 6 << 20;
/// What is noted of them at least: not what frames packs.
const SOME_PACKS_NOTED: u64 = SOME_PACKS - 100_000;

/// A log of a closed segment with some more packs of chunks, and a short tail.
fn long_log() -> Log {
    let mut log = Log::new();
    for _ in 0..40 {
        log.data(400_000);
    }
    log.roll();
    log.data(70_000);
    log
}

fn packed_len(places: &[BlobPlace]) -> u64 {
    places.iter().map(|place| place.len() as u64).sum()
}

/// What manifest and index of a stream take in packs.
fn manifests_len(StreamRef { manifest, index }: &StreamRef) -> u64 {
    packed_len(&[manifest, index].map(|blob| BlobPlace::try_from(blob.as_ref().unwrap()).unwrap()))
}

#[test]
fn an_upload_that_was_broken_off_is_continued() {
    for killed in [true, false] {
        let (mut fixture, mut log) = (Fixture::new(), long_log());
        fixture.break_off(&mut log, killed);
        let noted = fixture.noted();
        let point = fixture.point(&mut log);
        assert_eq!(point.bytes, log_bytes(&log));
        let (old, new): (Vec<BlobPlace>, Vec<BlobPlace>) =
            point.loaded.places.iter().partition(|place| noted.contains(place));
        assert_eq!(old.len(), noted.len());
        assert!(!new.is_empty(), "the tail, if nothing else");
        let stored = packed_len(&new) + manifests_len(&point.stored.stream);
        assert_eq!(point.stored.stored_bytes, stored);
        assert!(
            (stored..stored + 10_000).contains(&point.stored_bytes),
            "and what frames packs: {}",
            point.stored_bytes
        );
        assert!(!fixture.folder.path().join(JOURNAL).exists(), "all of it is in the point now");
    }
}

#[test]
fn an_upload_that_nobody_commits_is_not_stored_twice() {
    let (mut fixture, mut log) = (Fixture::new(), long_log());
    let report = fixture.run(fixture.order(log.end), log.pin());
    let Report::Stored(first) = report else { panic!("{report:?}") };
    for _ in 0..2 {
        fixture.restart();
        let report = fixture.run(fixture.order(log.end), log.pin());
        let Report::Stored(again) = report else { panic!("{report:?}") };
        assert_eq!((again.read_bytes, again.stored_bytes), (first.read_bytes, manifests_len(&again.stream)));
        assert_eq!(fixture.load(&again.stream), fixture.load(&first.stream));
    }
    // It is of no use for other bytes.
    log.data(70_000);
    let point = fixture.point(&mut log);
    assert_eq!(point.bytes, log_bytes(&log));
    assert!((140_000..150_000).contains(&point.stored.stored_bytes), "the tail: {}", point.stored.stored_bytes);
}

#[test]
fn chunks_of_a_pack_that_is_gone_or_cut_short_are_stored_again() {
    let damages: [fn(&Path); 2] = [
        |pack| fs::remove_file(pack).unwrap(),
        |pack| OpenOptions::new().write(true).open(pack).unwrap().set_len(100_000).unwrap(),
    ];
    for damage in damages {
        let (mut fixture, mut log) = (Fixture::new(), long_log());
        fixture.break_off(&mut log, false);
        let noted = fixture.noted();
        let lost = noted[0].pack;
        damage(&fixture.path(lost));

        let point = fixture.point(&mut log);
        assert_eq!(point.bytes, log_bytes(&log));
        let left: Vec<_> = noted.iter().filter(|place| place.pack != lost).collect();
        assert!(!left.is_empty());
        assert!(left.iter().all(|place| point.loaded.places.contains(place)));
        assert!(point.loaded.places.iter().all(|place| place.pack != lost));
    }
}

#[test]
fn damaged_cache_is_an_empty_one() {
    let (mut fixture, mut log) = (Fixture::new(), Log::new());
    log.data(100_000);
    fixture.point(&mut log);
    let path = fixture.folder.path().join("cache");
    let open = |vault| Cache::open(path.clone(), vault, CLUSTER);
    assert_eq!(open(fixture.vault.id()).point(), 1);
    assert_eq!(open(Fixture::new().vault.id()).point(), 0);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(open(fixture.vault.id()).point(), 0);
}

/// What happens to a log between two points.
#[derive(Clone, Debug)]
enum Event {
    Data(usize),
    Transactional(i64),
    End(i64, bool),
    Elect,
    Roll,
    Point,
    PointOfAnotherReplica(usize),
    Retention,
    Clean,
    CutBelow(i64),
    ForgetFiles,
    /// An upload whose point is given up.
    Abandoned,
    /// An upload, after which the agent is killed.
    Killed,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1usize..400_000).prop_map(Event::Data),
        4 => (1i64..4).prop_map(Event::Transactional),
        3 => (1i64..4, any::<bool>()).prop_map(|(producer, commit)| Event::End(producer, commit)),
        1 => Just(Event::Elect),
        2 => Just(Event::Roll),
        3 => Just(Event::Point),
        1 => (1usize..6).prop_map(Event::PointOfAnotherReplica),
        1 => Just(Event::Retention),
        1 => Just(Event::Clean),
        1 => (1i64..5).prop_map(Event::CutBelow),
        1 => Just(Event::ForgetFiles),
        1 => Just(Event::Abandoned),
        1 => Just(Event::Killed),
    ]
}

/// The producer state and aborted transactions that all batches ever appended give.
struct Model {
    bytes: Vec<u8>,
}

impl Model {
    fn at(&self, cut: i64) -> (ProducerSnapshot, Vec<AbortedTransaction>) {
        let (mut state, mut aborted) = (ProducerState::new(0), Vec::new());
        for batch in
            Batches::new(&self.bytes).map(|batch| batch.unwrap().1).take_while(|batch| batch.base_offset() < cut)
        {
            aborted.extend(state.apply(&batch).unwrap().and_then(|txn| txn.aborted()).map(|txn| AbortedTransaction {
                producer_id: txn.producer_id,
                first_offset: txn.first_offset,
                last_offset: txn.last_offset,
                last_stable_offset: txn.last_stable_offset,
            }));
        }
        (state.snapshot(), aborted)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever happened, and whatever was taken over from earlier points: bytes, segments, producer state and aborted
    /// transactions are those of the log.
    #[test]
    fn every_point_is_the_log_at_its_cut(events in prop::collection::vec(event(), 1..40)) {
        let (mut fixture, mut log) = (Fixture::new(), Log::new());
        let mut model = Model { bytes: Vec::new() };
        let mut open: BTreeMap<i64, i32> = BTreeMap::new();
        let mut is_cleaned = false;
        for event in events.into_iter().chain([Event::Point]) {
            let before = log_bytes(&log).len();
            match event {
                Event::Data(len) => _ = log.data(len),
                Event::Transactional(producer) => {
                    let sequence = open.entry(producer).or_default();
                    log.transactional(producer, *sequence);
                    *sequence += 1;
                }
                Event::End(producer, commit) => log.end_transaction(producer, commit),
                Event::Elect => log.elect(),
                Event::Roll if *log.segments.last().unwrap() < log.end => log.roll(),
                Event::Roll => {}
                Event::ForgetFiles => fixture.forget_files(),
                Event::Abandoned | Event::Killed => {
                    let report = fixture.run(fixture.order(log.end), log.pin());
                    prop_assert!(matches!(report, Report::Stored(_)), "{:?}", report);
                    match event {
                        Event::Abandoned => fixture.cache.abort(),
                        _ => fixture.restart(),
                    }
                }
                Event::Point => {
                    let cut = log.end;
                    check(&mut fixture, &mut log, &model, cut)?;
                }
                Event::PointOfAnotherReplica(batches) if log.segments[0] == 0 && log.end > 0 => {
                    log = log.replica(batches);
                    let cut = log.end;
                    check(&mut fixture, &mut log, &model, cut)?;
                }
                Event::PointOfAnotherReplica(_) => {}
                // What goes before any point has seen it, only a snapshot would tell.
                Event::Retention if log.segments.len() > 1 => {
                    let cut = log.end;
                    check(&mut fixture, &mut log, &model, cut)?;
                    log.delete_first();
                }
                Event::Retention => {}
                Event::Clean => {
                    let cut = log.end;
                    check(&mut fixture, &mut log, &model, cut)?;
                    log.clean();
                    is_cleaned = true;
                }
                Event::CutBelow(below) => {
                    let cut = (log.end - below).max(log.segments[0]);
                    if log.segments[0] == 0 && !is_cleaned {
                        check(&mut fixture, &mut log, &model, cut)?;
                    }
                }
            }
            let after = log_bytes(&log);
            if after.len() > before {
                model.bytes.extend_from_slice(&after[before..]);
            }
        }
    }
}

fn check(fixture: &mut Fixture, log: &mut Log, model: &Model, cut: i64) -> Result<(), TestCaseError> {
    let point = fixture.point_at(log, cut);
    let all = log_bytes(log);
    let end = Batches::new(&all).map(|batch| batch.unwrap()).find(|(_, batch)| batch.base_offset() >= cut);
    prop_assert_eq!(&point.bytes[..], &all[..end.map_or(all.len(), |(position, _)| position)]);
    let stream = &point.loaded.stream;
    let (snapshot, aborted) = model.at(cut);
    prop_assert_eq!(ProducerSnapshot::decode(&stream.producer_snapshot).unwrap(), snapshot);
    let first = log.segments[0];
    let offsets: BTreeSet<i64> = Batches::new(&all).map(|batch| batch.unwrap().1.base_offset()).collect();
    let is_there =
        |aborted: &AbortedTransaction| aborted.last_offset >= first && offsets.contains(&aborted.last_offset);
    let aborted: Vec<_> = aborted.into_iter().filter(is_there).collect();
    let found: Vec<_> = stream.segments.iter().flat_map(|segment| segment.aborted.clone()).collect();
    prop_assert_eq!(found, aborted);
    for (segment, base_offset) in stream.segments.iter().zip(&log.segments) {
        prop_assert_eq!(segment.base_offset, *base_offset);
        let bytes = &point.bytes[segment.position as usize..];
        if let Some(Ok((_, batch))) = Batches::new(bytes).next() {
            prop_assert!(batch.base_offset() >= segment.base_offset);
        }
    }
    Ok(())
}
