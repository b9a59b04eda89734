//! How long the coordinator's own work takes in a fleet of a hundred brokers, and how much memory.
//!
//! A real [`Point`] is led through all its phases by agents that are functions: each answers at once, with a report
//! that is made when it is due and goes through the types of the wire. So what is measured is what a coordinator does
//! with what it is told; what agents, network and store take comes on top, and most of that is elsewhere or at the same
//! time.
//!
//! Two points are taken, as the second one builds on the first. Of each is printed, by phase, how long the state
//! machine took, then how large the manifest is, and in the end the greatest resident memory so far, the models of the
//! cluster and its agents included. Segments do not appear: they are in the streams' manifests, which agents write.
//!
//! ```text
//! cargo run --release -p segvault-coordinator --example scale -- [brokers] [partitions]
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use segvault_alignment::line::Partition;
use segvault_coordinator::point::{Action, Event, Now, Options, Phase, Point};
use segvault_kafka_log::ids::Uuid;
use segvault_kafka_log::metadata::checkpoint::write_checkpoint;
use segvault_kafka_log::metadata::image::{MetadataImage, PartitionImage, TopicImage};
use segvault_proto::{
    CheckpointCopy, Command, EventsRequest, LogDirFacts, LogPosition, MetadataCopy, NodeFacts, Prepared, ProducerEvent,
    ReplicaEvents, ReplicaSample, Report, StoredMetadata, StoredPartition, TRANSACTION_TOPIC, TransactionLogCopy,
    TransactionRecord, TransactionState, TransactionsRequest, UploadOrder, rpc,
};
use segvault_vault_format::envelope;
use segvault_vault_format::ids::{PointId, VaultId};
use segvault_vault_format::manifest::{BlobRef, PointManifest, StreamRef};
use segvault_vault_format::pack::PACK_HEADER_LEN;

const CLUSTER: &str = "a-cluster-of-some-size";
/// Replicas of each partition.
const REPLICATION: usize = 3;
/// Partitions of a topic.
const TOPIC_PARTITIONS: i32 = 100;
/// Partitions of the transaction log, Kafka's default.
const TRANSACTION_PARTITIONS: i32 = 50;
/// Partitions of `__consumer_offsets`, Kafka's default.
const OFFSETS_PARTITIONS: i32 = 50;
/// Log dirs of a broker.
const LOG_DIRS: usize = 4;
/// Transactional ids per partition of the transaction log that are at work during the barrier, and how many partitions
/// each writes to.
const IDS: i64 = 20;
const LISTED: usize = 5;
/// Offsets where logs end.
const END: i64 = 1_000_000;
const EPOCH: i32 = 7;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let brokers = arguments.next().unwrap_or(100);
    let partitions = arguments.next().unwrap_or(brokers * 4000 / REPLICATION);
    let fleet = Fleet::new(brokers, partitions);
    let replicas = fleet.partitions.len() * REPLICATION;
    println!("{brokers} brokers, {} partitions, {replicas} replicas", fleet.partitions.len());
    println!("cluster metadata: {}", mebibytes(fleet.checkpoint.len() as u64));
    println!("before any point: {}", peak_memory());
    let first = take_point(&fleet, 1, None);
    take_point(&fleet, 2, Some(first));
}

/// A cluster and its agents.
struct Fleet {
    nodes: Vec<i32>,
    partitions: Vec<(Partition, Uuid)>,
    /// By node, indexes into `partitions`.
    replicas: Vec<Vec<usize>>,
    checkpoint: Vec<u8>,
}

impl Fleet {
    fn new(brokers: usize, partitions: usize) -> Self {
        let nodes: Vec<i32> = (1..).take(brokers).collect();
        let mut topics = vec![
            (TRANSACTION_TOPIC.to_owned(), TRANSACTION_PARTITIONS),
            ("__consumer_offsets".to_owned(), OFFSETS_PARTITIONS),
        ];
        let mut left = partitions.saturating_sub((TRANSACTION_PARTITIONS + OFFSETS_PARTITIONS) as usize);
        for number in 0.. {
            let taken = left.min(TOPIC_PARTITIONS as usize);
            left -= taken;
            match i32::try_from(taken).expect("at most what a topic has") {
                0 => break,
                taken => topics.push((format!("team-{:02}.events-{number:05}", number % 40), taken)),
            }
        }
        let mut all = Vec::new();
        let mut image = MetadataImage::default();
        image.features.insert("metadata.version".to_owned(), 25);
        let mut replicas = vec![Vec::new(); brokers];
        for (index, (name, count)) in topics.iter().enumerate() {
            let mut id = [7; 16];
            id[..8].copy_from_slice(&(index as u64).to_be_bytes());
            let mut topic = TopicImage { name: name.clone(), id: Uuid(id), ..TopicImage::default() };
            for number in 0..*count {
                let holders: Vec<usize> = (0..REPLICATION).map(|offset| (all.len() + offset * 7) % brokers).collect();
                holders.iter().for_each(|holder| replicas[*holder].push(all.len()));
                topic.partitions.insert(number, partition_image(holders.iter().map(|holder| nodes[*holder]).collect()));
                all.push(((name.clone(), number), Uuid(id)));
            }
            image.topics.insert(Uuid(id), topic);
        }
        let checkpoint = write_checkpoint(&image, 3, 0);
        Self { nodes, partitions: all, replicas, checkpoint }
    }

    fn facts(&self, node_id: i32) -> NodeFacts {
        let dir = |index: usize| LogDirFacts {
            path: format!("/var/lib/kafka/data{index}"),
            directory_id: Some(Uuid([index as u8; 16])),
        };
        NodeFacts {
            node_id,
            cluster_id: CLUSTER.to_owned(),
            broker: true,
            controller: node_id <= 3,
            log_dirs: (0..LOG_DIRS).map(dir).collect(),
            metadata_log_dir: 0,
            static_voters: Some(vec![1, 2, 3]),
            compacts: false,
        }
    }

    /// What a node says to a command: one report, or many of an upload.
    fn answer(&self, node_id: i32, command: Command) -> Vec<Report> {
        let end = Some(LogPosition { last_epoch: 3, end_offset: 5000 });
        match command {
            Command::Prepare { .. } => {
                let replicas = self.replicas_of(node_id).count();
                let (facts, warnings) = (self.facts(node_id), Vec::new());
                vec![Report::Prepared(Prepared { facts, metadata: end, replicas, warnings })]
            }
            Command::ReadMetadata => vec![Report::Metadata(MetadataCopy {
                checkpoint: Some(CheckpointCopy { end_offset: 5000, epoch: 3, bytes: self.checkpoint.clone() }),
                log: Vec::new(),
                end_offset: 5000,
                epoch: 3,
                remainder: None,
            })],
            Command::Mark => vec![Report::Marked(self.samples(node_id, END - 100, |topic| topic == TRANSACTION_TOPIC))],
            Command::Probe => vec![Report::Probed],
            Command::PinProgress => {
                vec![Report::Pinned(self.samples(node_id, END, |topic| topic == "__consumer_offsets"))]
            }
            Command::PinData => vec![Report::Pinned(self.samples(node_id, END, |topic| !topic.starts_with("__")))],
            Command::Seal => vec![Report::Sealed {
                replicas: self.samples(node_id, END, |topic| topic == TRANSACTION_TOPIC),
                metadata: end,
            }],
            Command::ReadTransactions(requests) => {
                let copies = requests.iter().map(|request| self.transactions(request)).collect();
                vec![Report::Transactions { copies, unreadable: Vec::new() }]
            }
            Command::FindEvents(requests) => {
                vec![Report::Events { events: requests.into_iter().map(events).collect(), unreadable: Vec::new() }]
            }
            Command::Upload { orders, metadata } => {
                let stored = orders.into_iter().map(stored);
                let metadata = metadata.map(|_| {
                    let checkpoint = Some(stream(u64::MAX));
                    Report::MetadataStored(StoredMetadata { checkpoint, ..StoredMetadata::default() })
                });
                stored.chain(metadata).chain([Report::Uploaded]).collect()
            }
            Command::Release { .. } => vec![Report::Released],
            Command::Restore { .. } | Command::Examine => unreachable!("no point asks for it"),
        }
    }

    fn replicas_of(&self, node_id: i32) -> impl Iterator<Item = &(Partition, Uuid)> {
        let index = usize::try_from(node_id - 1).expect("node ids begin at 1");
        self.replicas[index].iter().map(|index| &self.partitions[*index])
    }

    fn samples(&self, node_id: i32, end_offset: i64, is_wanted: impl Fn(&str) -> bool) -> Vec<ReplicaSample> {
        let wanted = self.replicas_of(node_id).filter(|((topic, _), _)| is_wanted(topic));
        let sample = |((topic, partition), topic_id): &(Partition, Uuid)| ReplicaSample {
            topic: topic.clone(),
            topic_id: *topic_id,
            partition: *partition,
            dir: format!("/var/lib/kafka/data{}/{topic}-{partition}", *partition as usize % LOG_DIRS),
            log_start_offset: 0,
            high_watermark: end_offset - 10,
            active_base_offset: 0,
            // Some replica is a little ahead, each of another partition.
            position: LogPosition { last_epoch: EPOCH, end_offset: end_offset + i64::from((node_id + partition) % 3) },
            epochs: vec![(EPOCH - 2, 0), (EPOCH - 1, 1000), (EPOCH, 2000)],
            lost_from: None,
            unusable: None,
        };
        wanted.map(sample).collect()
    }

    /// Some ids began a transaction after the mark.
    fn transactions(&self, request: &TransactionsRequest) -> TransactionLogCopy {
        let record = |number: i64| {
            let producer_id = i64::from(request.partition) * IDS + number;
            let first = (producer_id as usize * 31) % self.partitions.len();
            let listed = self.partitions.iter().cycle().skip(first).filter(|((topic, _), _)| !topic.starts_with("__"));
            TransactionRecord {
                offset: END - IDS + number,
                transactional_id: format!("service-{producer_id}"),
                producer_id,
                producer_epoch: 0,
                state: Some(TransactionState::Ongoing),
                partitions: listed.take(LISTED).map(|(partition, _)| partition.clone()).collect(),
            }
        };
        TransactionLogCopy {
            partition: request.partition,
            at_first: Vec::new(),
            records: (0..IDS).map(record).collect(),
            max_producer_id: 1_000_000,
        }
    }
}

fn partition_image(replicas: Vec<i32>) -> PartitionImage {
    PartitionImage {
        isr: replicas.clone(),
        leader: replicas[0],
        leader_epoch: EPOCH,
        partition_epoch: 9,
        directories: vec![Uuid([1; 16]); replicas.len()],
        replicas,
        ..PartitionImage::default()
    }
}

fn events(request: EventsRequest) -> ReplicaEvents {
    let probe = LogPosition { last_epoch: EPOCH, end_offset: END - 50 };
    let event = |producer_id: &i64| ProducerEvent {
        offset: END - 10,
        producer_id: *producer_id,
        producer_epoch: 0,
        is_marker: false,
    };
    ReplicaEvents {
        events: request.producer_ids.iter().map(event).collect(),
        topic: request.topic,
        partition: request.partition,
        probes: vec![Some(probe); 4],
    }
}

fn stored(order: UploadOrder) -> Report {
    let name = order.topic.bytes().fold(order.partition as u64, |hash, byte| mix(hash ^ u64::from(byte)));
    Report::Stored(StoredPartition {
        stream: stream(name),
        topic: order.topic,
        partition: order.partition,
        log_start_offset: 0,
        end_offset: order.cut,
        bytes: 3 << 30,
        read_bytes: 3 << 30,
        stored_bytes: 1 << 30,
        max_epoch: EPOCH,
        max_producer_id: 5,
        open: Vec::new(),
        notes: Vec::new(),
    })
}

/// A reference to a stream: its hashes must look like hashes, as they do not compress.
fn stream(seed: u64) -> StreamRef {
    let bytes = |salt: u64, len: usize| (0..len as u64).map(|index| mix(seed ^ mix(salt + index)) as u8).collect();
    let blob = |salt| BlobRef {
        id: bytes(salt, 32),
        pack: bytes(salt + 100, 16),
        offset: PACK_HEADER_LEN as u64 + seed % (16 << 20),
        stored_len: 900,
        raw_len: 900,
        codec: 0,
    };
    StreamRef { manifest: Some(blob(1000)), index: Some(blob(2000)) }
}

/// SplitMix64's last step.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Time spent, by phase in the order in which they came.
#[derive(Default)]
struct Spent(Vec<(Phase, Duration, usize)>);

impl Spent {
    fn add(&mut self, phase: Phase, time: Duration) {
        match self.0.iter_mut().find(|(known, ..)| *known == phase) {
            Some((_, sum, events)) => (*sum, *events) = (*sum + time, *events + 1),
            None => self.0.push((phase, time, 1)),
        }
    }
}

/// Takes a point as [`segvault_coordinator::drive`] does, and prints what it took.
fn take_point(fleet: &Fleet, number: u64, base: Option<PointManifest>) -> PointManifest {
    println!("\npoint {number}");
    let began = Instant::now();
    let id = PointId { cluster_id: CLUSTER.to_owned(), number };
    let options = Options { id, began_ms: 1, closed_only: false, base };
    let mut point = Point::new(options, fleet.nodes.iter().map(|node_id| fleet.facts(*node_id)).collect());
    let mut commands: VecDeque<(i32, rpc::Command)> = VecDeque::new();
    let mut events = vec![Event::Begin];
    let (mut spent, mut outcome) = (Spent::default(), None);
    loop {
        for event in std::mem::take(&mut events) {
            let (at, phase) = (Instant::now(), point.progress().phase);
            let actions = point.step(event, Now::default());
            std::hint::black_box(point.progress());
            spent.add(phase, at.elapsed());
            for action in actions {
                match action {
                    Action::Send { node_id, command } => commands.push_back((node_id, command.into())),
                    Action::Commit(manifest, _) => {
                        events.push(Event::Decided { committed: true });
                        outcome = Some(*manifest);
                    }
                    Action::Abandon { reason } => panic!("the point was given up: {reason}"),
                    Action::Finish => {
                        let manifest = outcome.expect("it was committed before");
                        print(&manifest, &spent, began.elapsed());
                        return manifest;
                    }
                }
            }
        }
        if events.is_empty() {
            let (node_id, command) = commands.pop_front().expect("a point that waits has sent commands");
            let command = Command::try_from(command).expect("we have made it");
            for report in fleet.answer(node_id, command) {
                let report = Report::try_from(rpc::Report::from(report)).expect("we have made it");
                events.push(Event::Report { node_id, report });
            }
        }
    }
}

fn print(manifest: &PointManifest, spent: &Spent, whole: Duration) {
    for (phase, time, events) in &spent.0 {
        println!("  {:20} {:9.3} s   {events} events", format!("{phase:?}"), time.as_secs_f64());
    }
    let sum: Duration = spent.0.iter().map(|(_, time, _)| *time).sum();
    println!("  {:20} {:9.3} s   of {:.1} s with the agents' part", "together", sum.as_secs_f64(), whole.as_secs_f64());
    let at = Instant::now();
    manifest.check().expect("a point has a manifest that makes sense");
    println!("  {:20} {:9.3} s", "check", at.elapsed().as_secs_f64());
    let at = Instant::now();
    let bytes = envelope::encode(VaultId([1; 16]), manifest);
    println!("  {:20} {:9.3} s   {}", "encode", at.elapsed().as_secs_f64(), mebibytes(bytes.len() as u64));
    let covered = manifest.partitions.iter().filter(|entry| entry.stream.is_some()).count();
    let trimmed = manifest.partitions.iter().filter(|entry| !entry.trimmed.is_empty()).count();
    println!("  level {}, {covered} partitions, {trimmed} of them trimmed; {}", manifest.level, peak_memory());
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The greatest resident memory so far.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or(" unknown").trim();
    match peak.strip_suffix(" kB").and_then(|kibibytes| kibibytes.parse::<u64>().ok()) {
        Some(kibibytes) => format!("peak memory {}", mebibytes(kibibytes << 10)),
        None => format!("peak memory {peak}"),
    }
}
