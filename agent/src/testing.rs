//! Builds nodes and logs for tests, as Kafka would have left them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use segvault_kafka_log::Uuid;
use segvault_kafka_log::batch::BatchBuilder;
use segvault_kafka_log::index::OffsetEntry;
use segvault_kafka_log::names::{
    HIGH_WATERMARK_CHECKPOINT, LEADER_EPOCH_CHECKPOINT, META_PROPERTIES, PARTITION_METADATA, SegmentFileKind,
    segment_file_name,
};
use segvault_kafka_log::partition_metadata::PartitionMetadata;
use segvault_vault_format::ids::VaultId;

use crate::agent::{Agent, AgentOptions};
use crate::node::Node;

/// A node with its `server.properties` and formatted log dirs.
pub(crate) struct TestNode {
    root: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl TestNode {
    /// With one log dir.
    pub fn new() -> Self {
        Self::with_log_dirs(&["logs"])
    }

    /// With log dirs of these names.
    pub fn with_log_dirs(names: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().to_owned();
        Self::at(&root, names, Some(temporary))
    }

    /// Under a directory of the test's.
    pub fn at(root: &Path, names: &[&str], temporary: Option<tempfile::TempDir>) -> Self {
        let node = Self { root: root.to_owned(), _temporary: temporary };
        let dirs: Vec<_> = names.iter().map(|name| node.path(name).display().to_string()).collect();
        for (index, dir) in dirs.iter().enumerate() {
            fs::create_dir_all(dir).unwrap();
            let id = Uuid([100 + index as u8; 16]);
            let meta = format!("version=1\ncluster.id=test\nnode.id=1\ndirectory.id={id}\n");
            fs::write(Path::new(dir).join(META_PROPERTIES), meta).unwrap();
        }
        let config = format!(
            "process.roles=broker,controller\nnode.id=1\nlog.dirs={}\ncontroller.quorum.voters=1@localhost:9093\n\
             controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://localhost:9092,CONTROLLER://localhost:9093\n",
            dirs.join(",")
        );
        fs::write(node.config(), config).unwrap();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("server.properties")
    }

    pub fn options() -> AgentOptions {
        AgentOptions { vault: VaultId([7; 16]), staging: None }
    }

    pub fn agent(&self) -> Agent {
        Agent::open(Node::open(&self.config()).unwrap(), &Self::options()).unwrap()
    }

    /// An empty log in the first log dir.
    pub fn log(&self, topic: &str, partition: i32) -> TestLog {
        TestLog::create(&self.path("logs"), &format!("{topic}-{partition}"))
    }

    /// Checkpoints high watermarks in the first log dir.
    pub fn high_watermarks(&self, entries: &[(&str, i32, i64)]) {
        let lines: String =
            entries.iter().map(|(topic, partition, offset)| format!("{topic} {partition} {offset}\n")).collect();
        let text = format!("0\n{}\n{lines}", entries.len());
        fs::write(self.path("logs").join(HIGH_WATERMARK_CHECKPOINT), text).unwrap();
    }

    /// The names of all pins.
    pub fn pins(&self) -> Vec<PathBuf> {
        let folder = self.path(".segvault-logs/pins");
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

/// A partition's log. Batches have one record each, so offsets count batches.
pub(crate) struct TestLog {
    pub dir: PathBuf,
    pub base: i64,
    pub next: i64,
    epoch: i32,
}

impl TestLog {
    pub fn create(log_dir: &Path, name: &str) -> Self {
        let dir = log_dir.join(name);
        fs::create_dir(&dir).unwrap();
        let log = Self { dir, base: 0, next: 0, epoch: 0 };
        let metadata = PartitionMetadata { topic_id: Uuid([9; 16]) };
        log.write(PARTITION_METADATA, metadata.encode());
        log.write(LEADER_EPOCH_CHECKPOINT, "0\n1\n0 0\n");
        log.write(&segment_file_name(0, SegmentFileKind::Log), "");
        log
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.dir.join(name), bytes).unwrap();
    }

    pub fn segment(&self, base: i64) -> PathBuf {
        self.dir.join(segment_file_name(base, SegmentFileKind::Log))
    }

    /// Appends `count` batches, and index entries as Kafka 4 does after every 4 KiB.
    pub fn batches(self, count: usize) -> Self {
        (0..count).fold(self, |log, _| log.batch_of(-1, -1))
    }

    /// Appends a batch of a producer.
    pub fn batch_of(self, producer_id: i64, producer_epoch: i16) -> Self {
        let sequence = if producer_id < 0 { -1 } else { 0 };
        let batch = BatchBuilder::new(self.next, self.epoch).producer(producer_id, producer_epoch, sequence).record(
            1_000 + self.next,
            None,
            Some(&[self.next as u8; 1000]),
        );
        self.append(&batch.build())
    }

    /// Appends the bytes of a batch at the next offset.
    pub fn append(mut self, batch: &[u8]) -> Self {
        let path = self.segment(self.base);
        let position = fs::metadata(&path).unwrap().len();
        if position > 0 && self.next % 5 == 0 {
            let entry = OffsetEntry { offset: self.next, position: position as i32 };
            append(&path.with_extension("index"), &entry.encode(self.base));
        }
        append(&path, batch);
        self.next += 1;
        self
    }

    /// Appends bytes that are no batch.
    pub fn torn(self, bytes: &[u8]) -> Self {
        append(&self.segment(self.base), bytes);
        self
    }

    /// Begins a new segment.
    pub fn roll(mut self) -> Self {
        self.base = self.next;
        self.write(&segment_file_name(self.base, SegmentFileKind::Log), "");
        self
    }

    /// A new leader.
    pub fn epoch(mut self, epoch: i32) -> Self {
        self.epoch = epoch;
        let path = self.dir.join(LEADER_EPOCH_CHECKPOINT);
        let text = fs::read_to_string(&path).unwrap();
        let entries: Vec<_> =
            text.lines().skip(2).map(str::to_owned).chain([format!("{epoch} {}", self.next)]).collect();
        fs::write(path, format!("0\n{}\n{}\n", entries.len(), entries.join("\n"))).unwrap();
        self
    }

    /// Does what a follower does that diverged: cuts a segment in place.
    pub fn truncate(&self, base: i64, len: u64) {
        OpenOptions::new().write(true).open(self.segment(base)).unwrap().set_len(len).unwrap();
    }
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
}
