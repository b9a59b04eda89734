//! The state machine, driven by hand: three brokers, one topic, the answers written out.

use std::collections::VecDeque;

use segvault_kafka_log::ids::Uuid;
use segvault_kafka_log::metadata::checkpoint::write_checkpoint;
use segvault_kafka_log::metadata::image::{PartitionImage, TopicImage};
use segvault_proto::{CheckpointCopy, LogDirFacts, Prepared, ProducerEvent, TransactionRecord, TransactionState};

use super::*;

const TOPIC: Uuid = Uuid([7; 16]);
const TRANSACTIONS: Uuid = Uuid([9; 16]);

fn facts(node_id: i32) -> NodeFacts {
    NodeFacts {
        node_id,
        cluster_id: "cluster".to_owned(),
        broker: true,
        controller: true,
        log_dirs: vec![LogDirFacts { path: "/data".to_owned(), directory_id: None }],
        metadata_log_dir: 0,
        static_voters: Some(vec![1, 2, 3]),
        compacts: false,
    }
}

fn metadata(isr: &[i32]) -> MetadataCopy {
    let mut image = MetadataImage::default();
    image.features.insert("metadata.version".to_owned(), 25);
    for (name, id) in [("t", TOPIC), (TRANSACTION_TOPIC, TRANSACTIONS)] {
        let partition = PartitionImage {
            replicas: vec![1, 2, 3],
            isr: isr.to_vec(),
            leader: isr[0],
            leader_epoch: 5,
            partition_epoch: 5,
            directories: vec![Uuid([1; 16]); 3],
            ..Default::default()
        };
        let topic = TopicImage { name: name.to_owned(), id, partitions: [(0, partition)].into() };
        image.topics.insert(id, topic);
    }
    let checkpoint = CheckpointCopy { end_offset: 100, epoch: 2, bytes: write_checkpoint(&image, 2, 0) };
    MetadataCopy { checkpoint: Some(checkpoint), log: Vec::new(), end_offset: 100, epoch: 2, remainder: None }
}

fn sample(topic: &str, end_offset: i64) -> ReplicaSample {
    ReplicaSample {
        topic: topic.to_owned(),
        topic_id: if topic == "t" { TOPIC } else { TRANSACTIONS },
        partition: 0,
        dir: format!("/data/{topic}-0"),
        log_start_offset: 0,
        high_watermark: 0,
        active_base_offset: 0,
        position: LogPosition { last_epoch: 5, end_offset },
        epochs: vec![(5, 0)],
        lost_from: None,
        unusable: None,
    }
}

/// Agents that answer at once. `t` ends at 100 + node id, so node 3 is its source.
struct Fleet {
    point: Point,
    /// Nodes that are lost when they get their command of this phase.
    lost: Vec<(i32, Phase)>,
    /// Nodes whose copy of `t` cannot be read.
    corrupt: Vec<i32>,
    isr: Vec<i32>,
    window: Vec<TransactionRecord>,
    event: Option<i64>,
    /// In how many barriers an event cannot be told from the one before.
    doubts: usize,
    /// In how many barriers `t` has closed a segment behind the event.
    rolled: usize,
    /// No agent can store the metadata.
    stores_no_metadata: bool,
    /// Who stored metadata that it had not read.
    stood_in: Option<i32>,
    /// A marker of a transaction that was complete before the point began.
    earlier_marker: Option<i64>,
    /// A node whose replica of `t` was far behind when it was probed.
    behind: Option<i32>,
    sent: Vec<(i32, String)>,
}

impl Fleet {
    fn new() -> Self {
        let options = Options {
            id: PointId { cluster_id: "cluster".to_owned(), number: 1 },
            began_ms: 1,
            closed_only: false,
            base: None,
        };
        Self {
            point: Point::new(options, vec![facts(1), facts(2), facts(3)]),
            lost: Vec::new(),
            corrupt: Vec::new(),
            isr: vec![1, 2, 3],
            window: Vec::new(),
            event: None,
            doubts: 0,
            rolled: 0,
            stores_no_metadata: false,
            stood_in: None,
            earlier_marker: None,
            behind: None,
            sent: Vec::new(),
        }
    }

    /// Runs to the end: the committed manifest, or why there is none.
    fn run(&mut self) -> Result<PointManifest, String> {
        let mut outcome = Err("never decided".to_owned());
        let mut actions: VecDeque<_> = self.point.step(Event::Begin, Now::default()).into();
        while let Some(action) = actions.pop_front() {
            let events = match action {
                Action::Send { node_id, command } => self.answer(node_id, command),
                Action::Commit(manifest, _) => {
                    outcome = Ok(*manifest);
                    vec![Event::Decided { committed: true }]
                }
                Action::Abandon { reason } => {
                    outcome = Err(reason);
                    vec![Event::Decided { committed: false }]
                }
                Action::Finish => {
                    assert!(actions.is_empty(), "nothing follows the end");
                    assert_eq!(self.point.progress().phase, Phase::Finished);
                    return outcome;
                }
            };
            for event in events {
                actions.extend(self.point.step(event, Now::default()));
            }
        }
        panic!("stuck in {:?}", self.point.progress());
    }

    fn answer(&mut self, node_id: i32, command: Command) -> Vec<Event> {
        let phase = self.point.progress().phase;
        let text = format!("{command:?}");
        let verb = text.split([' ', '(', '{']).next().expect("a name").to_owned();
        self.sent.push((node_id, verb));
        if self.lost.contains(&(node_id, phase)) {
            return vec![Event::Lost { node_id, reason: "gone".to_owned() }];
        }
        let reports = match command {
            Command::Prepare { .. } => vec![Report::Prepared(Prepared {
                facts: facts(node_id),
                metadata: Some(LogPosition { last_epoch: 2, end_offset: 90 + i64::from(node_id) }),
                replicas: 2,
                warnings: Vec::new(),
            })],
            Command::ReadMetadata => vec![Report::Metadata(metadata(&self.isr))],
            Command::Mark => vec![Report::Marked(vec![sample(TRANSACTION_TOPIC, 10)])],
            Command::Probe => vec![Report::Probed],
            Command::PinProgress => vec![Report::Pinned(Vec::new())],
            Command::PinData => {
                let mut replica = sample("t", 100 + i64::from(node_id));
                replica.active_base_offset = if self.barriers() <= self.rolled { 100 } else { 99 };
                vec![Report::Pinned(vec![replica])]
            }
            Command::Seal => vec![Report::Sealed {
                replicas: vec![sample(TRANSACTION_TOPIC, 10 + self.window.len() as i64)],
                metadata: Some(LogPosition { last_epoch: 2, end_offset: 100 }),
            }],
            Command::ReadTransactions(_) => vec![Report::Transactions {
                copies: vec![TransactionLogCopy {
                    partition: 0,
                    at_first: Vec::new(),
                    records: self.window.clone(),
                    max_producer_id: 41,
                }],
                unreadable: Vec::new(),
            }],
            Command::FindEvents(requests) => {
                let in_doubt = self.barriers() <= self.doubts;
                let events = requests.into_iter().map(|request| self.events(node_id, request, in_doubt)).collect();
                vec![Report::Events { events, unreadable: Vec::new() }]
            }
            Command::Upload { orders, metadata } => {
                if metadata.as_ref().is_some_and(|order| order.copy.is_some()) {
                    self.stood_in = Some(node_id);
                }
                self.upload(node_id, orders, metadata.is_some() && !self.stores_no_metadata)
            }
            Command::Release { .. } => vec![Report::Released],
            Command::Restore { .. } | Command::Examine => unreachable!("no point asks for it"),
        };
        reports.into_iter().map(|report| Event::Report { node_id, report }).collect()
    }

    fn barriers(&self) -> usize {
        self.sent.iter().filter(|(node_id, verb)| *node_id == 1 && verb == "Prepare").count()
    }

    /// `in_doubt`: nothing tells which decision the marker belongs to.
    fn events(&self, node_id: i32, request: EventsRequest, in_doubt: bool) -> ReplicaEvents {
        let event = |offset, is_marker| ProducerEvent { offset, producer_id: 4, producer_epoch: 0, is_marker };
        let marker = in_doubt.then_some(98).or(self.earlier_marker).map(|offset| event(offset, true));
        let is_source = !request.producer_ids.is_empty();
        let probe = LogPosition { last_epoch: 5, end_offset: if self.behind == Some(node_id) { 50 } else { 90 } };
        ReplicaEvents {
            probes: vec![(!in_doubt).then_some(probe); self.point.marked.len() - 1],
            events: marker
                .into_iter()
                .chain(self.event.map(|offset| event(offset, false)))
                .filter(|_| is_source)
                .collect(),
            topic: request.topic,
            partition: request.partition,
        }
    }

    fn upload(&self, node_id: i32, orders: Vec<UploadOrder>, metadata: bool) -> Vec<Report> {
        let mut reports: Vec<_> = orders
            .into_iter()
            .map(|order| {
                if order.topic == "t" && self.corrupt.contains(&node_id) {
                    let reason = "bad CRC at 17".to_owned();
                    return Report::NotStored { topic: order.topic, partition: 0, reason, has_gap: false };
                }
                Report::Stored(StoredPartition {
                    topic: order.topic,
                    partition: 0,
                    stream: Default::default(),
                    log_start_offset: 0,
                    end_offset: order.cut,
                    bytes: 1,
                    read_bytes: 1,
                    stored_bytes: 1,
                    max_epoch: 5,
                    max_producer_id: 7,
                    open: Vec::new(),
                    notes: Vec::new(),
                })
            })
            .collect();
        if metadata {
            reports.push(Report::MetadataStored(StoredMetadata::default()));
        }
        reports.push(Report::Uploaded);
        reports
    }
}

fn entry<'a>(manifest: &'a PointManifest, topic: &str) -> &'a segvault_vault_format::manifest::PartitionEntry {
    manifest.partitions.iter().find(|entry| entry.topic == topic).expect("every topic has an entry")
}

#[test]
fn the_longest_replica_is_the_source_and_the_point_is_complete() {
    let manifest = Fleet::new().run().unwrap();
    assert_eq!((manifest.level, manifest.degraded), (3, false));
    assert_eq!(entry(&manifest, "t").source_node, 3);
    assert_eq!(entry(&manifest, "t").end_offset, 103);
    assert_eq!(manifest.max_producer_id, 41);
    assert_eq!(manifest.nodes.len(), 3);
}

#[test]
fn phases_go_in_the_order_of_the_barrier() {
    let mut fleet = Fleet::new();
    fleet.run().unwrap();
    let mut verbs: Vec<_> = fleet.sent.iter().map(|(_, verb)| verb.as_str()).collect();
    verbs.dedup();
    assert_eq!(
        verbs,
        [
            "Prepare",
            "ReadMetadata",
            "Mark",
            "Probe",
            "Mark",
            "Probe",
            "Mark",
            "Probe",
            "Mark",
            "Probe",
            "Mark",
            "PinProgress",
            "PinData",
            "Seal",
            "ReadMetadata",
            "ReadTransactions",
            "Upload",
            "Release"
        ]
    );
}

#[test]
fn one_node_lost_in_any_phase_leaves_a_complete_point() {
    for phase in [
        Phase::Preparing,
        Phase::FirstMetadata,
        Phase::Marking,
        Phase::Probing,
        Phase::PinningProgress,
        Phase::PinningData,
        Phase::Sealing,
        Phase::LastMetadata,
        Phase::ReadingTransactions,
        Phase::Releasing,
    ] {
        for node_id in [1, 2, 3] {
            let mut fleet = Fleet::new();
            fleet.lost = vec![(node_id, phase)];
            let manifest = fleet.run().unwrap_or_else(|reason| panic!("{node_id} in {phase:?}: {reason}"));
            assert_eq!((manifest.level, manifest.degraded), (3, false), "{node_id} lost in {phase:?}");
        }
    }
}

#[test]
fn answers_to_what_was_asked_before_an_agent_was_lost_are_passed_over() {
    // Each loss makes the alignment begin again while the other agents still work on what they were asked before.
    for lost in
        [vec![(1, Phase::FindingEvents)], vec![(2, Phase::FindingEvents)], vec![(3, Phase::ReadingTransactions)]]
    {
        let mut fleet = Fleet::new();
        fleet.window = vec![transaction(10, TransactionState::Ongoing)];
        (fleet.event, fleet.lost) = (Some(99), lost.clone());
        let manifest = fleet.run().unwrap_or_else(|reason| panic!("{lost:?}: {reason}"));
        assert_eq!((manifest.level, manifest.degraded), (3, false), "{lost:?}: {:?}", manifest.findings);
        assert_eq!(entry(&manifest, "t").end_offset, 99);
    }
}

#[test]
fn a_source_lost_while_uploading_is_replaced_and_so_is_who_has_read_the_metadata() {
    for lost in [vec![3], vec![3, 2]] {
        let mut fleet = Fleet::new();
        fleet.lost = lost.iter().map(|node_id| (*node_id, Phase::Uploading)).collect();
        let manifest = fleet.run().unwrap();
        assert_eq!((manifest.level, manifest.degraded), (3, false));
        assert_eq!(entry(&manifest, "t").source_node, 3 - lost.len() as i32);
        assert_eq!(fleet.stood_in, Some(1), "the metadata came along with the order");
    }
}

#[test]
fn metadata_that_nobody_can_store_ends_the_point() {
    let mut fleet = Fleet::new();
    fleet.stores_no_metadata = true;
    assert!(fleet.run().unwrap_err().contains("the cluster metadata was not stored"));
}

#[test]
fn a_corrupt_replica_makes_another_the_source_and_the_point_says_so() {
    let mut fleet = Fleet::new();
    fleet.corrupt = vec![3];
    let manifest = fleet.run().unwrap();
    let entry = entry(&manifest, "t");
    assert_eq!((entry.source_node, entry.end_offset), (2, 102));
    assert_eq!(entry.notes, ["replica of node 3: bad CRC at 17"]);
    assert!(!manifest.degraded);
}

#[test]
fn a_partition_that_no_in_sync_replica_can_give_is_named_and_degrades_the_point() {
    let mut fleet = Fleet::new();
    fleet.corrupt = vec![1, 2, 3];
    let manifest = fleet.run().unwrap();
    assert!(manifest.degraded);
    assert!(entry(&manifest, "t").uncovered.contains("bad CRC at 17"));
    assert_eq!(manifest.level, 2);
}

#[test]
fn without_the_only_in_sync_replica_the_partition_is_uncovered() {
    let mut fleet = Fleet::new();
    fleet.isr = vec![3];
    fleet.lost = vec![(3, Phase::PinningData)];
    let manifest = fleet.run().unwrap();
    assert!(manifest.degraded);
    assert!(entry(&manifest, "t").uncovered.contains("no in-sync replica was captured"));
}

#[test]
fn two_of_three_controllers_lost_degrade_the_metadata() {
    let mut fleet = Fleet::new();
    fleet.lost = vec![(1, Phase::Preparing), (2, Phase::Preparing)];
    let manifest = fleet.run().unwrap();
    assert!(manifest.degraded);
    assert!(manifest.findings.iter().any(|finding| finding.contains("only 1 of 3 controllers")));
}

#[test]
fn all_lost_is_a_clean_abort_with_the_reason() {
    let mut fleet = Fleet::new();
    fleet.lost = vec![(1, Phase::Marking), (2, Phase::Marking), (3, Phase::Marking)];
    assert!(fleet.run().unwrap_err().contains("no agent is left"));
}

/// A record of the transaction log for `t`.
fn transaction(offset: i64, state: TransactionState) -> TransactionRecord {
    TransactionRecord {
        offset,
        transactional_id: "pay".to_owned(),
        producer_id: 4,
        producer_epoch: 0,
        state: Some(state),
        partitions: vec![("t".to_owned(), 0)],
    }
}

#[test]
fn a_transaction_of_the_window_trims_its_partition() {
    let mut fleet = Fleet::new();
    fleet.window = vec![transaction(10, TransactionState::Ongoing)];
    fleet.event = Some(99);
    let manifest = fleet.run().unwrap();
    assert_eq!(entry(&manifest, "t").end_offset, 99);
    assert!(!entry(&manifest, "t").trimmed.is_empty());
    assert_eq!(entry(&manifest, TRANSACTION_TOPIC).end_offset, 10);
}

#[test]
fn a_source_that_was_behind_when_it_was_probed_is_judged_by_those_that_were_not() {
    let mut fleet = Fleet::new();
    fleet.window = vec![transaction(10, TransactionState::Ongoing)];
    // Complete before the first sample, its marker must lie below the first probe: and it does, in nodes 1 and 2.
    (fleet.earlier_marker, fleet.event, fleet.behind) = (Some(80), Some(95), Some(3));
    let manifest = fleet.run().unwrap();
    assert_eq!((entry(&manifest, "t").source_node, entry(&manifest, "t").end_offset, manifest.level), (3, 95, 3));
    assert_eq!(fleet.barriers(), 1);
}

#[test]
fn the_barrier_is_raised_again_until_transactions_can_be_told_apart() {
    for (doubts, level) in [(1, 3), (ATTEMPTS as usize, 2)] {
        let mut fleet = Fleet::new();
        fleet.window = vec![
            transaction(10, TransactionState::PrepareCommit),
            transaction(11, TransactionState::CompleteCommit),
            transaction(12, TransactionState::Ongoing),
        ];
        fleet.event = Some(99);
        fleet.doubts = doubts;
        let manifest = fleet.run().unwrap();
        assert_eq!(manifest.level, level, "{:?}", manifest.findings);
        assert_eq!(fleet.barriers(), (doubts + 1).min(ATTEMPTS as usize));
    }
}

#[test]
fn the_barrier_is_raised_again_if_the_cleaner_may_have_seen_what_is_cut_off() {
    for (rolled, level, barriers) in [(0, 3, 1), (1, 3, 2), (ATTEMPTS as usize, 2, ATTEMPTS as usize)] {
        let mut fleet = Fleet::new();
        fleet.window = vec![transaction(10, TransactionState::Ongoing)];
        (fleet.event, fleet.rolled) = (Some(99), rolled);
        fleet.point.agents.values_mut().for_each(|agent| agent.facts.compacts = true);
        let manifest = fleet.run().unwrap();
        assert_eq!((manifest.level, fleet.barriers()), (level, barriers), "{:?}", manifest.findings);
        let notes = &entry(&manifest, "t").notes;
        assert_eq!((manifest.degraded, notes.len()), (level == 2, usize::from(level == 2)), "{notes:?}");
        let text = "records below offset 99 may have been compacted away because of later ones of their key below 100";
        assert!(notes.iter().all(|note| note.starts_with(text)), "{notes:?}");
    }
}

#[test]
fn cancelling_releases_every_agent_and_commits_nothing() {
    let mut fleet = Fleet::new();
    fleet.point.step(Event::Begin, Now::default());
    let actions = fleet.point.step(Event::Cancel { reason: "enough".to_owned() }, Now::default());
    assert!(matches!(&actions[..], [Action::Abandon { reason }] if reason == "enough"));
    let released = fleet.point.step(Event::Decided { committed: false }, Now::default());
    assert_eq!(released.len(), 3);
    let stale = Event::Report { node_id: 1, report: Report::Marked(Vec::new()) };
    assert!(fleet.point.step(stale, Now::default()).is_empty());
}

#[test]
fn hints_of_joined_reasons_come_last_and_once() {
    let reasons = ["a\nhint: x", "b", "c\nhint: y\nhint: x"].map(str::to_owned);
    assert_eq!(joined(&reasons), "a; b; c\nhint: x\nhint: y");
    assert_eq!(joined(&[]), "");
}
