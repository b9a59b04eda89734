//! A model of the agent of one node: answers commands as `agent/src/agent.rs` does, with logs that are numbers.
//!
//! A pin remembers for which point it was made and at which moment, and an upload hands that on to what it stores, so
//! that the vault can tell whether a point consists of what was captured for it, in the right order.

use std::collections::BTreeMap;

use segvault_alignment::line::Partition;
use segvault_proto::{
    Command, EventsRequest, MetadataCopy, Prepared, ProducerEvent, ReplicaEvents, ReplicaSample, Report,
    StoredMetadata, StoredPartition, TRANSACTION_TOPIC, TransactionLogCopy, TransactionRecord, TransactionState,
    TransactionsRequest, Unreadable, UploadOrder,
};

use super::cluster::{Cluster, Mood, Stage, position};
use super::faults::Often;
use super::mutation::Mutation;
use super::queue::Micros;
use super::random::Random;
use super::store::{Blob, Store};

/// Whose transactions the cluster has.
const PRODUCER: i64 = 7;

/// What is around an agent while it works.
pub struct Here<'a> {
    /// Whose node is captured.
    pub cluster: &'a Cluster,
    /// The vault.
    pub store: &'a mut Store,
    /// What time it is.
    pub now: Micros,
    /// Counts what happens in the whole fleet.
    pub moments: &'a mut u64,
    /// Chance.
    pub random: &'a mut Random,
    /// How often what fails.
    pub often: &'a Often,
    /// What is wrong with the agent.
    pub mutation: Option<Mutation>,
}

impl Here<'_> {
    fn moment(&mut self) -> u64 {
        *self.moments += 1;
        *self.moments
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

/// A pinned replica.
#[derive(Clone, Copy, Debug)]
pub struct Pin {
    /// For which point; the agent knows no more of it than its number.
    pub point: u64,
    /// When, among all that happens.
    pub moment: u64,
    /// Where the replica ended.
    pub end_offset: i64,
}

/// What is held for a point.
struct Capture {
    point: u64,
    attempt: u64,
    /// Where the furthest replica of each partition ended at `Prepare`: what was acknowledged by then lies below.
    prepared: BTreeMap<Partition, i64>,
    probes: Vec<BTreeMap<Partition, i64>>,
    pinned: BTreeMap<Partition, Pin>,
    metadata: Option<MetadataCopy>,
}

/// Something to upload.
pub enum Piece {
    /// A pinned replica.
    Partition(UploadOrder, Pin),
    /// The metadata.
    Metadata(MetadataCopy),
}

/// What came of a piece.
pub enum Uploaded {
    /// It is durable, or cannot be read.
    Said(Report),
    /// It was said to be durable, and this blob is not.
    Early(Report, usize),
    /// The vault does not take it: the upload is over.
    Failed(String),
}

/// An agent.
pub struct Agent {
    node_id: i32,
    capture: Option<Capture>,
    /// How often each point was prepared.
    attempts: BTreeMap<u64, u64>,
    /// Of [`Mutation::EarlierPinsAreUsed`].
    earlier: BTreeMap<Partition, Pin>,
}

impl Agent {
    /// The agent of a node; it holds nothing.
    pub fn new(node_id: i32) -> Self {
        Self { node_id, capture: None, attempts: BTreeMap::new(), earlier: BTreeMap::new() }
    }

    /// What it holds.
    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.capture.iter().flat_map(|capture| capture.pinned.values())
    }

    /// Answers any command but an upload. An error has ended the capture.
    pub fn answer(&mut self, command: Command, here: &mut Here<'_>) -> Report {
        let answer = match here.random.per_mille(here.often.command_fails) {
            true => Err("too many open files".to_owned()),
            false => self.try_answer(command, here),
        };
        answer.unwrap_or_else(|reason| {
            self.release();
            Report::Failed { reason }
        })
    }

    fn try_answer(&mut self, command: Command, here: &mut Here<'_>) -> Result<Report, String> {
        Ok(match command {
            Command::Prepare { point, .. } => self.prepare(point.number, here),
            Command::ReadMetadata => self.read_metadata(here),
            Command::Mark => Report::Marked(self.mark(here)),
            Command::Probe => self.probe(here)?,
            Command::PinProgress => Report::Pinned(self.pin(Stage::Progress, here)?),
            Command::PinData => Report::Pinned(self.pin(Stage::Data, here)?),
            Command::Seal => {
                let mut replicas = self.pin(Stage::Transactions, here)?;
                replicas.extend(self.pin(Stage::Reference, here)?);
                Report::Sealed { replicas, metadata: Some(Cluster::metadata_position(here.moment())) }
            }
            Command::ReadTransactions(requests) => self.read_transactions(&requests, here)?,
            Command::FindEvents(requests) => self.find_events(requests, here)?,
            Command::Release { committed } => {
                if let Some(capture) = self.capture.as_ref().filter(|_| committed) {
                    here.store.expect_committed(capture.point);
                }
                self.release();
                Report::Released
            }
            Command::Upload { .. } => unreachable!("uploads are carried out piece by piece"),
            Command::Restore { .. } | Command::Examine => unreachable!("no point asks for it"),
        })
    }

    fn capture(&mut self) -> Result<&mut Capture, String> {
        self.capture.as_mut().ok_or_else(|| "nothing is prepared".to_owned())
    }

    fn release(&mut self) {
        if let Some(capture) = self.capture.take() {
            self.earlier = capture.pinned;
        }
    }

    fn prepare(&mut self, point: u64, here: &mut Here<'_>) -> Report {
        self.release();
        let attempt = self.attempts.entry(point).or_default();
        *attempt += 1;
        let attempt = *attempt;
        let replicas = here.cluster.replicas(self.node_id);
        let prepared: BTreeMap<_, _> =
            replicas.map(|partition| (partition.clone(), here.cluster.furthest_end(partition, here.now))).collect();
        let replicas = prepared.len();
        self.capture =
            Some(Capture { point, attempt, prepared, probes: Vec::new(), pinned: BTreeMap::new(), metadata: None });
        let metadata = Some(Cluster::metadata_position(here.moment()));
        Report::Prepared(Prepared { facts: here.cluster.facts(self.node_id), metadata, replicas, warnings: Vec::new() })
    }

    /// Where the replicas of some topics end now.
    fn ends(&self, here: &Here<'_>, is_wanted: impl Fn(&str) -> bool) -> BTreeMap<Partition, i64> {
        let wanted = here.cluster.replicas(self.node_id).filter(|partition| is_wanted(&partition.0));
        wanted.map(|partition| (partition.clone(), here.cluster.end(partition, self.node_id, here.now))).collect()
    }

    fn read_metadata(&mut self, here: &mut Here<'_>) -> Report {
        if here.random.per_mille(here.often.no_metadata) {
            return Report::NoMetadata { reason: "bad CRC".to_owned() };
        }
        let copy = here.cluster.metadata(here.moment());
        if let Some(capture) = &mut self.capture {
            capture.metadata = Some(copy.clone());
        }
        Report::Metadata(copy)
    }

    fn mark(&self, here: &Here<'_>) -> Vec<ReplicaSample> {
        let ends = self.ends(here, |topic| topic == TRANSACTION_TOPIC);
        ends.iter().map(|(partition, end)| here.cluster.sample(partition, *end)).collect()
    }

    fn probe(&mut self, here: &Here<'_>) -> Result<Report, String> {
        let ends = self.ends(here, |topic| topic != TRANSACTION_TOPIC);
        self.capture()?.probes.push(ends);
        Ok(Report::Probed)
    }

    fn pin(&mut self, stage: Stage, here: &mut Here<'_>) -> Result<Vec<ReplicaSample>, String> {
        let ends = self.ends(here, |topic| Stage::of(topic) == stage);
        let point = self.capture()?.point;
        let mut samples = Vec::new();
        for (partition, end_offset) in ends {
            let mut sample = here.cluster.sample(&partition, end_offset);
            if here.random.per_mille(here.often.unreadable) {
                sample.unusable = Some("bad CRC".to_owned());
                samples.push(sample);
                continue;
            }
            let mut pin = Pin { point, moment: here.moment(), end_offset };
            if let Some(earlier) = self.earlier.get(&partition).filter(|_| here.is(Mutation::EarlierPinsAreUsed)) {
                pin = *earlier;
                sample.position = position(pin.end_offset);
            }
            samples.push(sample);
            self.capture()?.pinned.insert(partition, pin);
        }
        Ok(samples)
    }

    fn pinned(&mut self, topic: &str, partition: i32) -> Result<Pin, String> {
        let pin = self.capture()?.pinned.get(&(topic.to_owned(), partition)).copied();
        pin.ok_or_else(|| format!("{topic}-{partition}: it is not pinned here"))
    }

    fn read_transactions(&mut self, requests: &[TransactionsRequest], here: &mut Here<'_>) -> Result<Report, String> {
        let (mut copies, mut unreadable) = (Vec::new(), Vec::new());
        for request in requests {
            let pin = self.pinned(TRANSACTION_TOPIC, request.partition)?;
            if here.random.per_mille(here.often.unreadable) {
                unreadable.push(unreadable_replica(TRANSACTION_TOPIC, request.partition));
                continue;
            }
            let Capture { point, attempt, .. } = *self.capture()?;
            let records = match request.partition {
                0 => records(here.cluster, here.cluster.mood(point, attempt), pin.end_offset),
                _ => Vec::new(),
            };
            let is_known = records.first().is_none_or(|first| first.offset >= request.first_mark_offset);
            copies.push(TransactionLogCopy {
                partition: request.partition,
                at_first: Vec::new(),
                records: if is_known { records } else { Vec::new() },
                max_producer_id: PRODUCER,
            });
        }
        Ok(Report::Transactions { copies, unreadable })
    }

    fn find_events(&mut self, requests: Vec<EventsRequest>, here: &mut Here<'_>) -> Result<Report, String> {
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        for EventsRequest { topic, partition, producer_ids } in requests {
            let is_source = !producer_ids.is_empty();
            let pin = if is_source { Some(self.pinned(&topic, partition)?) } else { None };
            if is_source && here.random.per_mille(here.often.unreadable) {
                unreadable.push(unreadable_replica(&topic, partition));
                continue;
            }
            let capture = self.capture()?;
            let key = (topic.clone(), partition);
            let mood = here.cluster.mood(capture.point, capture.attempt);
            let prepared = capture.prepared.get(&key).copied().unwrap_or(0);
            let events = pin.map(|pin| events(mood, prepared, pin.end_offset)).unwrap_or_default();
            let probed = |ends: &BTreeMap<Partition, i64>| {
                ends.get(&key).filter(|_| mood != Mood::Doubtful).map(|end_offset| position(*end_offset))
            };
            found.push(ReplicaEvents { topic, partition, probes: capture.probes.iter().map(probed).collect(), events });
        }
        Ok(Report::Events { events: found, unreadable })
    }

    /// What an upload consists of, and what is said of it at once.
    pub fn begin_upload(
        &mut self,
        orders: Vec<UploadOrder>,
        metadata: Option<Option<MetadataCopy>>,
    ) -> Result<(Vec<Piece>, Vec<Report>), String> {
        let capture = self.capture()?;
        let (mut pieces, mut said) = (Vec::new(), Vec::new());
        if let Some(copy) = metadata {
            let copy = copy.or_else(|| capture.metadata.take()).ok_or("metadata log: it was not read before")?;
            pieces.push(Piece::Metadata(copy));
        }
        for order in orders {
            match capture.pinned.get(&(order.topic.clone(), order.partition)).copied() {
                Some(pin) => pieces.push(Piece::Partition(order, pin)),
                None => said.push(not_stored(order, "this node has not pinned the partition", false)),
            }
        }
        Ok((pieces, said))
    }

    /// Uploads a piece. A pin is let go once its replica is durable; one of a replica that lacks offsets is kept.
    pub fn upload(&mut self, piece: Piece, here: &mut Here<'_>) -> Uploaded {
        if here.random.per_mille(here.often.piece_fails) {
            return Uploaded::Failed("the store cannot be reached".to_owned());
        }
        let (order, mut pin) = match piece {
            Piece::Partition(order, pin) => (order, pin),
            Piece::Metadata(copy) => return self.upload_metadata(&copy, here),
        };
        let partition = (order.topic.clone(), order.partition);
        let has_gap = here.random.coin();
        let keeps = order.gaps == segvault_proto::Gaps::Anywhere;
        if !keeps && here.random.per_mille(here.often.unreadable) {
            if !has_gap {
                self.forget(&partition);
            }
            return Uploaded::Said(not_stored(order, "bad CRC at 17", has_gap));
        }
        if here.is(Mutation::AnswersBeforePinning) {
            pin.moment = here.moment();
        }
        self.forget(&partition);
        let blob = self.blob(Some(partition), pin, order.cut, here);
        let report = Report::Stored(StoredPartition {
            topic: order.topic,
            partition: order.partition,
            stream: Store::reference(blob),
            log_start_offset: 0,
            end_offset: order.cut,
            bytes: 10,
            read_bytes: 10,
            stored_bytes: 10,
            max_epoch: 5,
            max_producer_id: PRODUCER,
            open: Vec::new(),
            notes: Vec::new(),
        });
        settled(report, blob, here)
    }

    fn upload_metadata(&self, copy: &MetadataCopy, here: &mut Here<'_>) -> Uploaded {
        let point = self.capture.as_ref().map_or(0, |capture| capture.point);
        let pin = Pin { point, moment: Cluster::moment_of(copy), end_offset: copy.end_offset };
        let blob = self.blob(None, pin, copy.end_offset, here);
        let checkpoint = Some(Store::reference(blob));
        let stored = StoredMetadata { checkpoint, log: None, read_bytes: 10, stored_bytes: 10 };
        settled(Report::MetadataStored(stored), blob, here)
    }

    fn blob(&self, partition: Option<Partition>, pin: Pin, end_offset: i64, here: &mut Here<'_>) -> usize {
        let is_durable = !here.is(Mutation::StoredBeforeDurable);
        here.store.add_blob(Blob { partition, node_id: self.node_id, pin, end_offset, is_durable })
    }

    fn forget(&mut self, partition: &Partition) {
        if let Some(capture) = &mut self.capture {
            capture.pinned.remove(partition);
        }
    }

    /// Ends a capture that cannot go on.
    pub fn give_up(&mut self, reason: String) -> Report {
        self.release();
        Report::Failed { reason }
    }
}

fn settled(report: Report, blob: usize, here: &Here<'_>) -> Uploaded {
    match here.is(Mutation::StoredBeforeDurable) {
        true => Uploaded::Early(report, blob),
        false => Uploaded::Said(report),
    }
}

fn not_stored(order: UploadOrder, reason: &str, has_gap: bool) -> Report {
    Report::NotStored { topic: order.topic, partition: order.partition, reason: reason.to_owned(), has_gap }
}

fn unreadable_replica(topic: &str, partition: i32) -> Unreadable {
    Unreadable { topic: topic.to_owned(), partition, reason: "bad CRC".to_owned() }
}

/// What the transaction log says just below its end.
fn records(cluster: &Cluster, mood: Mood, end_offset: i64) -> Vec<TransactionRecord> {
    let states: &[TransactionState] = match mood {
        Mood::Quiet => &[],
        Mood::Busy => &[TransactionState::Ongoing],
        Mood::Doubtful => {
            &[TransactionState::PrepareCommit, TransactionState::CompleteCommit, TransactionState::Ongoing]
        }
    };
    let data = cluster.partitions().filter(|(topic, _)| Stage::of(topic) == Stage::Data);
    let partitions: Vec<Partition> = data.cloned().collect();
    let first = end_offset - states.len() as i64;
    let record = |(offset, state): (i64, &TransactionState)| TransactionRecord {
        offset,
        transactional_id: "pay".to_owned(),
        producer_id: PRODUCER,
        producer_epoch: 0,
        state: Some(*state),
        partitions: partitions.clone(),
    };
    (first..).zip(states).map(record).collect()
}

/// What the producer has appended between `Prepare` and the pin: nothing of it was acknowledged before.
fn events(mood: Mood, prepared: i64, end_offset: i64) -> Vec<ProducerEvent> {
    let event = |offset, is_marker| ProducerEvent { offset, producer_id: PRODUCER, producer_epoch: 0, is_marker };
    let events = match mood {
        Mood::Quiet => Vec::new(),
        Mood::Busy => vec![event(prepared, false)],
        Mood::Doubtful => vec![event(prepared, true), event(prepared + 1, false)],
    };
    events.into_iter().filter(|event| event.offset < end_offset).collect()
}
