//! The state machine of one restore point.
//!
//! ```text
//! Preparing -> FirstMetadata -> Marking <-> Probing (A) -> PinningProgress (B1) -> PinningData (B2) -> Sealing (C)
//!   -> LastMetadata -> ReadingTransactions -> FindingEvents -> Uploading -> Committing -> Releasing -> Finished
//! ```
//!
//! If transactions cannot be told apart after `FindingEvents`, it begins anew with `Preparing`.
//!
//! Each phase waits for every agent that still takes part: that is what makes it a barrier. An agent that fails or is
//! lost leaves; its replicas are no longer candidates, and if another in-sync replica is pinned nothing is missing. The
//! point is given up only when no agent or no metadata is left. Nothing here knows a clock, a store or a network: time
//! comes in with the events.

use std::collections::{BTreeMap, BTreeSet};

use segvault_alignment::events::{self, MarkedLog};
use segvault_alignment::line::{self, Partition};
use segvault_alignment::sample::{LogPosition, ReplicaSample, TransactionLogCopy};
use segvault_alignment::source::Candidate;
use segvault_kafka_log::metadata::image::{BROKER_CONFIG, MetadataImage, TOPIC_CONFIG};
use segvault_proto::{
    Command, EventsRequest, Gaps, MetadataCopy, MetadataOrder, NodeFacts, ReplicaEvents, Report, StoredMetadata,
    StoredPartition, TRANSACTION_TOPIC, TransactionsRequest, Unreadable, UploadOrder,
};
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::{PointManifest, Totals};

mod manifest;
mod metadata;
mod sources;
#[cfg(test)]
mod tests;

/// How often phase A samples the transaction log before the mark, each time followed by a probe of all other replicas.
/// More of them tell the transactions of fast ids apart; each costs a look at every replica.
const ROUNDS: usize = 4;

/// How often the barrier is tried until all transactions can be told apart, each time with twice the rounds. Nothing
/// is uploaded before, so that another try costs no more than the barrier itself.
const ATTEMPTS: u32 = 4;

/// What the caller wants of a point.
#[derive(Clone, Debug)]
pub struct Options {
    /// The point's id, taken by an intent in the vault.
    pub id: PointId,
    /// When it began, milliseconds since 1970.
    pub began_ms: i64,
    /// Cut data at the end of closed segments.
    pub closed_only: bool,
    /// The last committed point of the cluster.
    pub base: Option<PointManifest>,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// The intent is in the vault.
    Begin,
    /// An agent answered.
    Report {
        /// Which.
        node_id: i32,
        /// What.
        report: Report,
    },
    /// An agent is gone, or has not answered in time.
    Lost {
        /// Which.
        node_id: i32,
        /// Why.
        reason: String,
    },
    /// The operator does not want the point any more.
    Cancel {
        /// For the outcome.
        reason: String,
    },
    /// The outcome is in the vault.
    Decided {
        /// As what.
        committed: bool,
    },
}

/// What must be done now.
#[derive(Debug)]
pub enum Action {
    /// Send a command to an agent.
    Send {
        /// To whom.
        node_id: i32,
        /// What.
        command: Command,
    },
    /// Write manifest and outcome; then [`Event::Decided`].
    Commit(Box<PointManifest>, Totals),
    /// Write an outcome that says why there is no point; then [`Event::Decided`].
    Abandon {
        /// Why.
        reason: String,
    },
    /// There is nothing left to do.
    Finish,
}

/// Where a point stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing was sent yet.
    Intent,
    /// Agents look at their replicas.
    Preparing,
    /// The metadata that says which replicas are in sync.
    FirstMetadata,
    /// Phase A: the transaction log.
    Marking,
    /// Phase A: everything else, between two samples of the transaction log.
    Probing,
    /// Phase B1.
    PinningProgress,
    /// Phase B2.
    PinningData,
    /// Phase C.
    Sealing,
    /// The metadata of the point.
    LastMetadata,
    /// Alignment: the transaction log.
    ReadingTransactions,
    /// Alignment: where its window had effects.
    FindingEvents,
    /// Sources upload.
    Uploading,
    /// The outcome is being written.
    Committing,
    /// Agents let go.
    Releasing,
    /// Done.
    Finished,
}

/// For a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which point; 0 while it has no number.
    pub number: u64,
    /// When it began, milliseconds since 1970.
    pub began_ms: i64,
    /// Where the point stands.
    pub phase: Phase,
    /// Barriers before this one, after which transactions could not be told apart.
    pub failed_attempts: u32,
    /// Nodes that take part.
    pub nodes: Vec<i32>,
    /// Nodes whose answer is awaited.
    pub waiting: Vec<i32>,
    /// Partitions uploaded.
    pub stored: usize,
    /// Partitions to upload.
    pub to_store: usize,
    /// Raw bytes uploaded or found in the vault.
    pub bytes: u64,
}

/// One restore point under way.
pub struct Point {
    options: Options,
    /// Barriers before this one.
    failed_attempts: u32,
    phase: Phase,
    agents: BTreeMap<i32, Agent>,
    /// Agents whose answer the phase waits for.
    waiting: BTreeSet<i32>,
    /// Answers to commands that are of no interest any more; an agent answers in order, so they come first.
    owed: BTreeMap<i32, usize>,
    first_metadata: Option<MetadataImage>,
    last_metadata: Option<(i32, MetadataImage, MetadataCopy)>,
    /// Where each node's metadata log ended in phase C; still true of nodes that were lost since.
    metadata_ends: BTreeMap<i32, LogPosition>,
    /// Phase A's samples in order: the best replica of each partition of the transaction log.
    marked: Vec<BTreeMap<i32, LogPosition>>,
    /// Pinned replicas, by partition and node; in boxes, as a map keeps room for more of them than there are replicas.
    pinned: BTreeMap<Partition, BTreeMap<i32, Box<ReplicaSample>>>,
    /// Per partition, the sources left to try, best first.
    ranked: BTreeMap<Partition, Vec<Candidate>>,
    /// The same as offsets of the source.
    marks: BTreeMap<Partition, Vec<i64>>,
    transactions: Vec<TransactionLogCopy>,
    /// By partition and node; only the source's have batches, of the others the probes count.
    events: BTreeMap<Partition, BTreeMap<i32, ReplicaEvents>>,
    /// Transactions that could not be told apart.
    doubts: Vec<String>,
    cuts: BTreeMap<Partition, line::Cut>,
    /// Which partitions each agent still has to upload.
    orders: BTreeMap<i32, BTreeSet<Partition>>,
    stored: BTreeMap<Partition, (i32, StoredPartition)>,
    /// Raw bytes of those: progress is asked for after every event.
    bytes: u64,
    stored_metadata: Option<StoredMetadata>,
    /// Who was asked to store the metadata last, and who could not.
    metadata_from: Option<i32>,
    metadata_refused: BTreeSet<i32>,
    uncovered: BTreeMap<Partition, String>,
    /// Pinned replicas that cannot be sources, and why.
    refused: BTreeMap<Partition, Vec<String>>,
    /// Sources that turned out to be unreadable, and why.
    unreadable: BTreeMap<Partition, BTreeMap<i32, String>>,
    /// Sources that can be read but lack offsets: the best there is if no other replica can be read.
    gappy: BTreeMap<Partition, Vec<Candidate>>,
    /// Partitions where those are taken.
    has_gaps: BTreeSet<Partition>,
    notes: BTreeMap<Partition, Vec<String>>,
    findings: Vec<String>,
    degraded: bool,
    to_store: usize,
    barrier_began_us: u64,
    barrier_us: u64,
    committed: bool,
}

/// An agent that takes part.
struct Agent {
    facts: NodeFacts,
    /// Where its metadata log ended when last asked.
    metadata: Option<LogPosition>,
    /// Its metadata could not be read, though its end may be known.
    metadata_unreadable: bool,
}

impl Agent {
    fn new(facts: NodeFacts) -> Self {
        Self { facts, metadata: None, metadata_unreadable: false }
    }
}

/// When an event happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Milliseconds since 1970.
    pub unix_ms: i64,
    /// A clock that never goes back, microseconds.
    pub monotonic_us: u64,
}

impl Point {
    /// A point over the given nodes, of which none has been asked yet.
    pub fn new(options: Options, nodes: Vec<NodeFacts>) -> Self {
        let agents = nodes.into_iter().map(|facts| (facts.node_id, Agent::new(facts))).collect();
        Self {
            options,
            failed_attempts: 0,
            phase: Phase::Intent,
            agents,
            waiting: BTreeSet::new(),
            owed: BTreeMap::new(),
            first_metadata: None,
            last_metadata: None,
            metadata_ends: BTreeMap::new(),
            marked: Vec::new(),
            pinned: BTreeMap::new(),
            ranked: BTreeMap::new(),
            marks: BTreeMap::new(),
            transactions: Vec::new(),
            events: BTreeMap::new(),
            doubts: Vec::new(),
            cuts: BTreeMap::new(),
            orders: BTreeMap::new(),
            stored: BTreeMap::new(),
            bytes: 0,
            stored_metadata: None,
            metadata_from: None,
            metadata_refused: BTreeSet::new(),
            uncovered: BTreeMap::new(),
            refused: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            gappy: BTreeMap::new(),
            has_gaps: BTreeSet::new(),
            notes: BTreeMap::new(),
            findings: Vec::new(),
            degraded: false,
            to_store: 0,
            barrier_began_us: 0,
            barrier_us: 0,
            committed: false,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress {
            number: self.options.id.number,
            began_ms: self.options.began_ms,
            phase: self.phase,
            failed_attempts: self.failed_attempts,
            nodes: self.agents.keys().copied().collect(),
            waiting: self.waiting.iter().copied().collect(),
            stored: self.stored.len(),
            to_store: self.to_store,
            bytes: self.bytes,
        }
    }

    /// Agents whose answer is awaited, for deadlines.
    pub fn waiting(&self) -> impl Iterator<Item = i32> + '_ {
        self.waiting.iter().copied()
    }

    /// Takes in what happened; returns what to do.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Action> {
        match event {
            Event::Begin => self.enter(Phase::Preparing, now),
            Event::Report { node_id, report } => self.report(node_id, report, now),
            Event::Lost { node_id, reason } => self.lose(node_id, &reason, now),
            Event::Cancel { reason } => self.abandon(reason),
            Event::Decided { committed } => {
                self.committed = committed;
                self.enter(Phase::Releasing, now)
            }
        }
    }

    fn report(&mut self, node_id: i32, report: Report, now: Now) -> Vec<Action> {
        if self.takes_for_owed(node_id, &report) {
            return Vec::new();
        }
        if !self.agents.contains_key(&node_id) || !self.waiting.contains(&node_id) {
            return Vec::new(); // A late answer of an agent that was given up, or a duplicate.
        }
        match (self.phase, report) {
            (_, Report::Failed { reason }) => return self.lose(node_id, &reason, now),
            (Phase::Preparing, Report::Prepared(prepared)) => {
                prepared.warnings.into_iter().for_each(|text| self.find(format!("node {node_id}: {text}")));
                self.agent(node_id).metadata = prepared.metadata;
            }
            (Phase::FirstMetadata, Report::Metadata(copy)) => match metadata::replay(&copy) {
                Ok(image) => self.first_metadata = Some(image),
                Err(reason) => return self.skip_metadata_of(node_id, &reason, now),
            },
            (Phase::FirstMetadata | Phase::LastMetadata, Report::NoMetadata { reason }) => {
                return self.skip_metadata_of(node_id, &reason, now);
            }
            (Phase::Marking, Report::Marked(samples)) => {
                let marked = self.marked.last_mut().expect("entering the phase adds a round");
                for sample in samples.into_iter().filter(|sample| sample.unusable.is_none()) {
                    let best = marked.entry(sample.partition).or_insert(sample.position);
                    *best = sample.position.max(*best);
                }
            }
            (Phase::Probing, Report::Probed) => {}
            (Phase::PinningProgress | Phase::PinningData, Report::Pinned(samples)) => self.pin(node_id, samples),
            (Phase::Sealing, Report::Sealed { replicas, metadata }) => {
                self.pin(node_id, replicas);
                self.agent(node_id).metadata = metadata;
            }
            (Phase::LastMetadata, Report::Metadata(copy)) => match metadata::replay(&copy) {
                Ok(image) => {
                    if let Some(remainder) = &copy.remainder {
                        self.degraded = true;
                        self.find(format!("metadata of node {node_id}: {remainder}: newer changes may be lost"));
                    }
                    self.last_metadata = Some((node_id, image, copy));
                }
                Err(reason) => return self.skip_metadata_of(node_id, &reason, now),
            },
            (Phase::ReadingTransactions, Report::Transactions { copies, unreadable }) => {
                self.transactions.extend(copies);
                self.refuse(node_id, unreadable);
            }
            (Phase::FindingEvents, Report::Events { events, unreadable }) => {
                for events in events {
                    let partition = (events.topic.clone(), events.partition);
                    self.events.entry(partition).or_default().insert(node_id, events);
                }
                self.refuse(node_id, unreadable);
            }
            (Phase::Uploading, report) => return self.upload_report(node_id, report, now),
            (Phase::Releasing, Report::Released) => {}
            (Phase::Releasing, _) => return Vec::new(), // The answer to a command from before it was given up.
            (phase, report) => {
                let reason = format!("answered {} in phase {phase:?}", name_of(&report));
                return self.lose(node_id, &reason, now);
            }
        }
        self.waiting.remove(&node_id);
        self.go_on_if_complete(now)
    }

    /// Whether a report belongs to a command that is of no interest any more.
    fn takes_for_owed(&mut self, node_id: i32, report: &Report) -> bool {
        let Some(owed) = self.owed.get_mut(&node_id) else { return false };
        match report {
            Report::Failed { .. } => return false, // Nothing else comes of this agent.
            Report::Stored(_) | Report::NotStored { .. } | Report::MetadataStored(_) => return true,
            _ => *owed -= 1,
        }
        if *owed == 0 {
            self.owed.remove(&node_id);
        }
        true
    }

    /// The answers that are awaited are of no interest any more.
    fn stop_waiting(&mut self) {
        for node_id in std::mem::take(&mut self.waiting) {
            *self.owed.entry(node_id).or_default() += 1;
        }
    }

    fn upload_report(&mut self, node_id: i32, report: Report, now: Now) -> Vec<Action> {
        match report {
            Report::Stored(stored) => {
                let partition = (stored.topic.clone(), stored.partition);
                if self.take_order(node_id, &partition) {
                    self.bytes += stored.bytes;
                    self.stored.insert(partition, (node_id, stored));
                }
                Vec::new()
            }
            Report::NotStored { topic, partition, reason, has_gap } => {
                let partition = (topic, partition);
                if self.take_order(node_id, &partition) {
                    if has_gap {
                        let ranked = self.ranked.get(&partition).into_iter().flatten();
                        let candidate = ranked.filter(|candidate| candidate.node_id == node_id).cloned();
                        self.gappy.entry(partition.clone()).or_default().extend(candidate);
                    }
                    self.source_failed(&partition, node_id, &reason);
                }
                Vec::new()
            }
            Report::MetadataStored(stored) => {
                self.stored_metadata = Some(stored);
                Vec::new()
            }
            Report::Uploaded => {
                for partition in self.orders.remove(&node_id).unwrap_or_default() {
                    self.source_failed(&partition, node_id, "the agent did not say what became of it");
                }
                if self.metadata_from == Some(node_id) && self.stored_metadata.is_none() {
                    self.metadata_refused.insert(node_id);
                }
                self.waiting.remove(&node_id);
                self.go_on_if_complete(now)
            }
            other => self.lose(node_id, &format!("answered {} while uploading", name_of(&other)), now),
        }
    }

    fn take_order(&mut self, node_id: i32, partition: &Partition) -> bool {
        self.orders.get_mut(&node_id).is_some_and(|orders| orders.remove(partition))
    }

    /// The agent could not give `partition`: the next candidate becomes its source.
    fn source_failed(&mut self, partition: &Partition, node_id: i32, reason: &str) {
        let note = format!("replica of node {node_id}: {reason}");
        self.notes.entry(partition.clone()).or_default().push(note);
        self.drop_candidate(partition, node_id);
    }

    /// Sources of the alignment that cannot be read: it begins again without them once all have answered.
    fn refuse(&mut self, node_id: i32, unreadable: Vec<Unreadable>) {
        for Unreadable { topic, partition, reason } in unreadable {
            self.unreadable.entry((topic, partition)).or_default().insert(node_id, reason);
        }
    }

    fn drop_candidate(&mut self, partition: &Partition, node_id: i32) {
        let Some(ranked) = self.ranked.get_mut(partition) else {
            return;
        };
        ranked.retain(|candidate| candidate.node_id != node_id);
        if ranked.is_empty()
            && let Some(gappy) = self.gappy.remove(partition)
        {
            ranked.extend(gappy.into_iter().filter(|candidate| self.agents.contains_key(&candidate.node_id)));
            self.has_gaps.insert(partition.clone());
        }
        if ranked.is_empty() && !self.stored.contains_key(partition) {
            let tried = self.notes.get(partition).map(|notes| joined(notes)).unwrap_or_default();
            self.uncovered.insert(partition.clone(), format!("no in-sync replica could be read: {tried}"));
        }
    }

    fn pin(&mut self, node_id: i32, samples: Vec<ReplicaSample>) {
        for mut sample in samples {
            // The name is kept once, as the key: there are as many samples as replicas in the cluster.
            let partition = (std::mem::take(&mut sample.topic), sample.partition);
            self.pinned.entry(partition).or_default().insert(node_id, Box::new(sample));
        }
    }

    fn agent(&mut self, node_id: i32) -> &mut Agent {
        self.agents.get_mut(&node_id).expect("checked on entry of `report`")
    }

    /// An agent leaves. What it pinned is gone; what it has stored stays stored.
    fn lose(&mut self, node_id: i32, reason: &str, now: Now) -> Vec<Action> {
        if self.agents.remove(&node_id).is_none() {
            return Vec::new();
        }
        self.waiting.remove(&node_id);
        self.owed.remove(&node_id);
        self.find(format!("node {node_id} left in phase {:?}: {reason}", self.phase));
        for replicas in self.pinned.values_mut() {
            replicas.remove(&node_id);
        }
        if self.phase >= Phase::Committing {
            return self.go_on_if_complete(now);
        }
        if self.agents.is_empty() {
            let reason = format!("no agent is left; {}", joined(&self.findings));
            return self.abandon(reason);
        }
        match self.phase {
            Phase::FirstMetadata | Phase::LastMetadata if self.waiting.is_empty() => self.enter(self.phase, now),
            // What was read of the transaction log may have been the lost agent's: align again without it.
            Phase::ReadingTransactions | Phase::FindingEvents => self.enter(Phase::ReadingTransactions, now),
            Phase::Uploading => {
                self.orders.remove(&node_id);
                for partition in self.ranked.keys().cloned().collect::<Vec<_>>() {
                    if !self.stored.contains_key(&partition) {
                        self.drop_candidate(&partition, node_id);
                    }
                }
                self.go_on_if_complete(now)
            }
            _ => self.go_on_if_complete(now),
        }
    }

    /// The agent's metadata cannot be used; the agent itself stays.
    fn skip_metadata_of(&mut self, node_id: i32, reason: &str, now: Now) -> Vec<Action> {
        self.find(format!("metadata of node {node_id}: {reason}"));
        self.agent(node_id).metadata_unreadable = true;
        self.waiting.remove(&node_id);
        self.enter(self.phase, now)
    }

    fn go_on_if_complete(&mut self, now: Now) -> Vec<Action> {
        if !self.waiting.is_empty() {
            return Vec::new();
        }
        let next = match self.phase {
            Phase::Preparing => Phase::FirstMetadata,
            Phase::FirstMetadata => Phase::Marking,
            Phase::Marking if self.marked.len() <= ROUNDS << self.failed_attempts => Phase::Probing,
            Phase::Marking => Phase::PinningProgress,
            Phase::Probing => Phase::Marking,
            Phase::PinningProgress => Phase::PinningData,
            Phase::PinningData => Phase::Sealing,
            Phase::Sealing => {
                self.barrier_us = now.monotonic_us.saturating_sub(self.barrier_began_us);
                let ends = self.agents.iter().filter_map(|(node_id, agent)| Some((*node_id, agent.metadata?)));
                self.metadata_ends = ends.collect();
                Phase::LastMetadata
            }
            Phase::LastMetadata => Phase::ReadingTransactions,
            Phase::ReadingTransactions | Phase::FindingEvents if self.is_source_unreadable() => {
                Phase::ReadingTransactions
            }
            Phase::ReadingTransactions => Phase::FindingEvents,
            Phase::FindingEvents => {
                self.cut();
                if !(self.doubts.is_empty() && self.are_cuts_clean()) && self.failed_attempts + 1 < ATTEMPTS {
                    return self.start_over(now);
                }
                Phase::Uploading
            }
            Phase::Uploading if self.is_work_left() => Phase::Uploading,
            Phase::Uploading => return self.commit(now),
            Phase::Releasing => Phase::Finished,
            Phase::Intent | Phase::Committing | Phase::Finished => return Vec::new(),
        };
        self.enter(next, now)
    }

    /// Raises another barrier with the agents that are left.
    fn start_over(&mut self, now: Now) -> Vec<Action> {
        let nodes = self.agents.values().map(|agent| agent.facts.clone()).collect();
        // The base is as large as all that is known of this point: it is handed on, not copied.
        let base = self.options.base.take();
        let options = Options { base, ..self.options.clone() };
        *self = Self {
            failed_attempts: self.failed_attempts + 1,
            findings: std::mem::take(&mut self.findings),
            owed: std::mem::take(&mut self.owed),
            ..Self::new(options, nodes)
        };
        self.enter(Phase::Preparing, now)
    }

    /// Notes what an operator should know, once.
    fn find(&mut self, text: String) {
        if !self.findings.contains(&text) {
            self.findings.push(text);
        }
    }

    /// Enters a phase: asks whom it needs, or goes on at once if it needs nobody.
    fn enter(&mut self, phase: Phase, now: Now) -> Vec<Action> {
        self.phase = phase;
        let commands: Vec<(i32, Command)> = match phase {
            Phase::Preparing => {
                let base_number = self.options.base.as_ref().map_or(0, |base| base.number);
                self.to_all(|point| Command::Prepare {
                    point: point.options.id.clone(),
                    base_number,
                    closed_only: point.options.closed_only,
                })
            }
            Phase::FirstMetadata | Phase::LastMetadata => match self.best_metadata() {
                Some(node_id) => vec![(node_id, Command::ReadMetadata)],
                None => {
                    let reason = format!("no node has readable cluster metadata; {}", joined(&self.findings));
                    return self.abandon(reason);
                }
            },
            Phase::Marking => {
                self.marked.push(BTreeMap::new());
                self.barrier_began_us = now.monotonic_us;
                self.to_all(|_| Command::Mark)
            }
            Phase::Probing => self.to_all(|_| Command::Probe),
            Phase::PinningProgress => self.to_all(|_| Command::PinProgress),
            Phase::PinningData => self.to_all(|_| Command::PinData),
            Phase::Sealing => self.to_all(|_| Command::Seal),
            Phase::ReadingTransactions => {
                self.choose_sources();
                self.transaction_requests()
            }
            Phase::FindingEvents => self.event_requests(),
            Phase::Uploading => self.upload_orders(),
            Phase::Releasing => {
                let committed = self.committed;
                self.to_all(|_| Command::Release { committed })
            }
            Phase::Finished => return vec![Action::Finish],
            Phase::Intent | Phase::Committing => Vec::new(),
        };
        self.stop_waiting();
        self.waiting = commands.iter().map(|(node_id, _)| *node_id).collect();
        if self.waiting.is_empty() {
            return self.go_on_if_complete(now);
        }
        commands.into_iter().map(|(node_id, command)| Action::Send { node_id, command }).collect()
    }

    /// Whether a source that was chosen has turned out to be unreadable.
    fn is_source_unreadable(&self) -> bool {
        self.unreadable.iter().any(|(partition, nodes)| {
            let source = self.ranked.get(partition).and_then(|ranked| ranked.first());
            source.is_some_and(|source| nodes.contains_key(&source.node_id))
        })
    }

    fn to_all(&self, command: impl Fn(&Self) -> Command) -> Vec<(i32, Command)> {
        self.agents.keys().map(|node_id| (*node_id, command(self))).collect()
    }

    /// Raft's rule: the greatest (epoch, end) is the log to believe. Controllers fsync theirs, so they go first.
    fn best_metadata(&self) -> Option<i32> {
        self.agents
            .iter()
            .filter(|(_, agent)| !agent.metadata_unreadable)
            .filter_map(|(node_id, agent)| Some((agent.metadata?, agent.facts.controller, *node_id)))
            .max()
            .map(|(_, _, node_id)| node_id)
    }

    fn transaction_requests(&mut self) -> Vec<(i32, Command)> {
        let mut requests: BTreeMap<i32, Vec<TransactionsRequest>> = BTreeMap::new();
        for (partition, marks) in &self.marks {
            let node_id = self.ranked[partition][0].node_id;
            requests
                .entry(node_id)
                .or_default()
                .push(TransactionsRequest { partition: partition.1, first_mark_offset: marks[0] });
        }
        requests.into_iter().map(|(node_id, requests)| (node_id, Command::ReadTransactions(requests))).collect()
    }

    fn event_requests(&mut self) -> Vec<(i32, Command)> {
        let mut requests: BTreeMap<i32, Vec<EventsRequest>> = BTreeMap::new();
        for (partition, producer_ids) in events::to_find(&self.marked_logs()) {
            let Some(source) = self.ranked.get(&partition).and_then(|ranked| ranked.first()) else { continue };
            for node_id in self.pinned[&partition].keys() {
                let is_source = *node_id == source.node_id;
                requests.entry(*node_id).or_default().push(EventsRequest {
                    topic: partition.0.clone(),
                    partition: partition.1,
                    producer_ids: if is_source { producer_ids.iter().copied().collect() } else { Vec::new() },
                });
            }
        }
        requests.into_iter().map(|(node_id, requests)| (node_id, Command::FindEvents(requests))).collect()
    }

    /// The strict line over what the sources pinned.
    fn cut(&mut self) {
        let pinned = self
            .ranked
            .iter()
            .filter_map(|(partition, ranked)| Some((partition.clone(), ranked.first()?.position.end_offset)))
            .collect();
        let (events, doubts) = events::first_events(&self.marked_logs(), &self.source_events());
        let marks = self.marks.iter().filter_map(|(partition, marks)| Some((partition.clone(), *marks.last()?)));
        self.cuts = line::strict_line(&pinned, &marks.collect(), &events);
        self.doubts = doubts;
        self.to_store = self.cuts.len();
    }

    /// Whether no source was compacted because of records that are cut off.
    fn are_cuts_clean(&self) -> bool {
        let mut sources =
            self.ranked.iter().filter_map(|(partition, ranked)| Some((partition, ranked.first()?.node_id)));
        sources.all(|(partition, node_id)| self.cleaned_beyond_cut(partition, node_id).is_none())
    }

    /// How far a replica may have been compacted, if that is beyond its cut: the cleaner may have removed records below
    /// it that a later one of their key stood for, and that one is not in the point.
    fn cleaned_beyond_cut(&self, partition: &Partition, node_id: i32) -> Option<i64> {
        let cut = self.cuts.get(partition).filter(|cut| cut.trimmed.is_some())?;
        let cleaned = self.pinned.get(partition)?.get(&node_id)?.active_base_offset;
        (cleaned > cut.end_offset && self.is_compacted(&partition.0)).then_some(cleaned)
    }

    /// The transaction log as its sources told it, with phase A's samples.
    fn marked_logs(&self) -> Vec<MarkedLog<'_>> {
        let logs = self.transactions.iter().filter_map(|copy| {
            let partition = (TRANSACTION_TOPIC.to_owned(), copy.partition);
            let end_offset = self.ranked.get(&partition)?.first()?.position.end_offset;
            Some(MarkedLog { copy, marks: self.marks.get(&partition)?, end_offset })
        });
        logs.collect()
    }

    fn is_work_left(&self) -> bool {
        let is_open =
            |(partition, ranked): (_, &Vec<Candidate>)| !ranked.is_empty() && !self.stored.contains_key(partition);
        self.ranked.iter().any(is_open) || (self.stored_metadata.is_none() && self.metadata_storer().is_some())
    }

    /// Who stores the metadata: the agent that has read it, or any other one while it cannot.
    fn metadata_storer(&self) -> Option<i32> {
        let reader = self.last_metadata.as_ref().map(|(node_id, ..)| *node_id);
        let mut able = self.agents.keys().copied().filter(|node_id| !self.metadata_refused.contains(node_id));
        able.clone().find(|node_id| Some(*node_id) == reader).or_else(|| able.next())
    }

    fn upload_orders(&mut self) -> Vec<(i32, Command)> {
        let mut orders: BTreeMap<i32, Vec<UploadOrder>> = BTreeMap::new();
        for (partition, ranked) in &self.ranked {
            let Some(source) = ranked.first().filter(|_| !self.stored.contains_key(partition)) else {
                continue;
            };
            let sample = &self.pinned[partition][&source.node_id];
            orders.entry(source.node_id).or_default().push(UploadOrder {
                topic: partition.0.clone(),
                topic_id: sample.topic_id,
                partition: partition.1,
                // A stand-in may end before the line; it holds all that was acknowledged.
                cut: self.cuts[partition].end_offset.min(source.position.end_offset),
                gaps: self.gaps(partition),
                previous: self.previous(partition, sample.topic_id).and_then(|entry| entry.stream.clone()),
            });
        }
        self.orders = orders
            .iter()
            .map(|(node_id, orders)| {
                (*node_id, orders.iter().map(|order| (order.topic.clone(), order.partition)).collect())
            })
            .collect();
        self.metadata_from = self.metadata_storer().filter(|_| self.stored_metadata.is_none());
        if let Some(node_id) = self.metadata_from {
            orders.entry(node_id).or_default();
        }
        orders
            .into_iter()
            .map(|(node_id, orders)| {
                let metadata = (self.metadata_from == Some(node_id)).then(|| self.metadata_order(node_id));
                (node_id, Command::Upload { orders, metadata })
            })
            .collect()
    }

    fn gaps(&self, partition: &Partition) -> Gaps {
        match self.is_compacted(&partition.0) {
            _ if self.has_gaps.contains(partition) => Gaps::Anywhere,
            false => Gaps::Nowhere,
            // The last segment of such a capture may have been compacted.
            true if self.options.closed_only => Gaps::Anywhere,
            true => Gaps::InClosed,
        }
    }

    /// Whether the cleaner may remove records of a topic, as far as its config, the brokers' dynamic default and the
    /// nodes' configurations say.
    fn is_compacted(&self, topic: &str) -> bool {
        let (_, image, _) = self.last_metadata.as_ref().expect("phase LastMetadata has passed");
        let config = |kind, name: &str, key| image.configs.get(&(kind, name.to_owned()))?.get(key);
        let policy = config(TOPIC_CONFIG, topic, "cleanup.policy").or(config(BROKER_CONFIG, "", "log.cleanup.policy"));
        match policy {
            Some(policy) => policy.contains("compact"),
            None => self.agents.values().any(|agent| agent.facts.compacts),
        }
    }

    fn metadata_order(&self, node_id: i32) -> MetadataOrder {
        let (reader, _, copy) = self.last_metadata.as_ref().expect("phase LastMetadata has passed");
        let previous = self.options.base.as_ref().and_then(|base| base.metadata.as_ref());
        MetadataOrder {
            previous_checkpoint: previous.and_then(|metadata| metadata.checkpoint.clone()),
            previous_log: previous.and_then(|metadata| metadata.log.clone()),
            copy: (*reader != node_id).then(|| copy.clone()),
        }
    }

    fn commit(&mut self, now: Now) -> Vec<Action> {
        if self.stored_metadata.is_none() {
            return self.abandon("the cluster metadata was not stored".to_owned());
        }
        self.phase = Phase::Committing;
        let (manifest, totals) = self.manifest(now);
        vec![Action::Commit(Box::new(manifest), totals)]
    }

    fn abandon(&mut self, reason: String) -> Vec<Action> {
        if self.phase >= Phase::Committing {
            return Vec::new();
        }
        self.phase = Phase::Committing;
        self.stop_waiting();
        vec![Action::Abandon { reason }]
    }
}

/// Several reasons as one; the lines that begin with `hint: ` come last, each once.
fn joined(reasons: &[String]) -> String {
    let (mut whats, mut hints) = (Vec::new(), Vec::new());
    for reason in reasons {
        let mut parts = reason.split("\nhint: ");
        whats.extend(parts.next());
        let new: Vec<_> = parts.filter(|hint| !hints.contains(hint)).collect();
        hints.extend(new);
    }
    whats.join("; ") + &hints.iter().map(|hint| format!("\nhint: {hint}")).collect::<String>()
}

fn name_of(report: &Report) -> &'static str {
    match report {
        Report::Prepared(_) => "Prepared",
        Report::Metadata(_) => "Metadata",
        Report::NoMetadata { .. } => "NoMetadata",
        Report::Marked(_) => "Marked",
        Report::Probed => "Probed",
        Report::Pinned(_) => "Pinned",
        Report::Sealed { .. } => "Sealed",
        Report::Transactions { .. } => "Transactions",
        Report::Events { .. } => "Events",
        Report::Stored(_) => "Stored",
        Report::NotStored { .. } => "NotStored",
        Report::MetadataStored(_) => "MetadataStored",
        Report::Uploaded => "Uploaded",
        Report::Released => "Released",
        Report::Failed { .. } => "Failed",
        Report::Restoring(_) => "Restoring",
        Report::Restored(_) => "Restored",
        Report::Examined(_) => "Examined",
    }
}

/// Is this a partition of the transaction log?
fn is_transaction_log(partition: &Partition) -> bool {
    partition.0 == TRANSACTION_TOPIC
}
