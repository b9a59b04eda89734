//! The agent of one node: answers the coordinator's commands, one at a time.
//!
//! Between `Prepare` and `Release` it holds a *capture*: pins, copies and positions. A command that cannot be carried
//! out ends the capture and is answered with `Failed`; what concerns one replica only makes that one unusable.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use segvault_kafka_log::names::{CLUSTER_METADATA_DIR, LogDirEntry};
use segvault_proto::{
    Command, EventsRequest, LogPosition, MetadataCopy, NodeFacts, Prepared, REFERENCE_TOPICS, ReplicaEvents,
    ReplicaSample, Report, TRANSACTION_TOPIC, TransactionLogCopy, TransactionsRequest, Unreadable, is_connect_offsets,
    is_progress,
};
use segvault_transport::explain;
use segvault_vault_format::ids::{PointId, VaultId};

use crate::cache::Cache;
use crate::capture::pin::{self, KnownEnd, Outcome, Pinner};
use crate::capture::spill::Spill;
use crate::capture::survey::{Replica, Survey};
use crate::capture::{ReplicaError, events, on_all_cores, transactions};
use crate::metadata_copy;
use crate::node::{Node, NodeError};
use crate::pinned::{PinnedReplica, Tally};
use crate::staging::{Staging, StagingError, raise_descriptor_limit};
use crate::upload::{Upload, UploadError};

/// The cache's file, in the staging folder of the first log dir.
const CACHE: &str = "cache";
/// How often partitions that vanished are looked for in another log dir.
const ROUNDS: usize = 3;
/// How many warnings of a kind are written out.
const WARNINGS: usize = 20;

/// What an agent may be told beyond its node.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The vault that points go to: what is remembered of files is remembered for it.
    pub vault: VaultId,
    /// Where pins go, instead of beside each log dir. Must lie outside every log dir, on their file system.
    pub staging: Option<PathBuf>,
}

/// Why an agent cannot start, or not carry out a command.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// There is no place for pins.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// A command that needs a capture came without one.
    #[error("nothing is prepared")]
    NotPrepared,
    /// Files are held open, and there are too many.
    #[error(
        "too many open files: {limit} are allowed, and files that cannot be linked are held open\n\
         hint: raise the limit (LimitNOFILE, ulimit -n), or let files be linked: segvault doctor tells why they are not"
    )]
    Descriptors {
        /// The limit.
        limit: u64,
    },
    /// The metadata log cannot be read.
    #[error("metadata log: {0}")]
    Metadata(String),
    /// A pinned partition cannot be read.
    #[error("{topic}-{partition}: {reason}")]
    Partition {
        /// Topic name.
        topic: String,
        /// Partition.
        partition: i32,
        /// What is wrong.
        reason: String,
    },
    /// The log dirs are not the node's any more.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The vault does not take the bytes.
    #[error("{}", explain(.0))]
    Upload(#[from] UploadError),
}

type Key = (String, i32);

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    staging: Staging,
    cache: Cache,
    descriptor_limit: u64,
    capture: Option<Capture>,
}

/// What is held for one point.
#[derive(Debug)]
struct Capture {
    point: PointId,
    base_number: u64,
    closed_only: bool,
    spill: Spill,
    /// Where replicas ended at `Prepare`.
    prepared: HashMap<Key, i64>,
    /// Where they ended when last looked at.
    known_ends: HashMap<Key, KnownEnd>,
    /// Where replicas ended at each `Probe`.
    probes: Vec<HashMap<Key, LogPosition>>,
    pinned: HashMap<Key, PinnedReplica>,
    metadata: Option<MetadataCopy>,
}

impl Agent {
    /// Opens the agent of a node. Refuses if another one of the node runs; removes the pins of one that was killed.
    pub fn open(node: Node, options: &AgentOptions) -> Result<Self, AgentError> {
        let staging = Staging::open(&node.log_dirs, options.staging.as_deref())?;
        let cache = Cache::open(staging.folder(0).join(CACHE), options.vault, &node.facts.cluster_id);
        Ok(Self { node, staging, cache, descriptor_limit: raise_descriptor_limit(), capture: None })
    }

    /// How much is pinned at the moment.
    pub fn tally(&self) -> &Tally {
        self.staging.tally()
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What is known of the node.
    pub fn facts(&self) -> &NodeFacts {
        &self.node.facts
    }

    /// Carries out a command of a restore point and replies as [`Command`] says; `upload` is where [`Command::Upload`]
    /// uploads to.
    pub fn handle(&mut self, command: Command, upload: &Upload<'_>, reply: &(dyn Fn(Report) + Sync)) {
        let answer = match command {
            Command::Upload { orders, metadata } => self.upload(upload, orders, metadata, reply),
            command => self.answer(command),
        };
        match answer {
            Ok(report) => reply(report),
            Err(error) => {
                self.release(false);
                reply(Report::Failed { reason: error.to_string() });
            }
        }
    }

    /// Answers any command but an upload.
    pub(crate) fn answer(&mut self, command: Command) -> Result<Report, AgentError> {
        Ok(match command {
            Command::Prepare { point, base_number, closed_only } => {
                Report::Prepared(self.prepare(point, base_number, closed_only)?)
            }
            Command::ReadMetadata => match self.read_metadata() {
                Ok(copy) => Report::Metadata(copy),
                Err(error) => Report::NoMetadata { reason: error.to_string() },
            },
            Command::Mark => Report::Marked(self.mark()?),
            Command::Probe => {
                self.probe()?;
                Report::Probed
            }
            Command::PinProgress => Report::Pinned(self.pin(is_progress)?),
            Command::PinData => Report::Pinned(self.pin(is_data)?),
            Command::Seal => {
                let mut replicas = self.pin(|topic| topic == TRANSACTION_TOPIC)?;
                replicas.extend(self.pin(|topic| REFERENCE_TOPICS.contains(&topic))?);
                let metadata = self.metadata_position().unwrap_or_else(|error| {
                    tracing::warn!(%error, "where the metadata log ends now is not known");
                    None
                });
                Report::Sealed { replicas, metadata }
            }
            Command::ReadTransactions(requests) => {
                let (copies, unreadable) = self.read_transactions(&requests)?;
                Report::Transactions { copies, unreadable }
            }
            Command::FindEvents(requests) => {
                let (events, unreadable) = self.find_events(&requests)?;
                Report::Events { events, unreadable }
            }
            Command::Release { committed } => {
                self.release(committed);
                Report::Released
            }
            Command::Upload { .. } | Command::Restore { .. } | Command::Examine => unreachable!("handled apart"),
        })
    }

    fn prepare(&mut self, point: PointId, base_number: u64, closed_only: bool) -> Result<Prepared, AgentError> {
        self.release(false);
        self.node.recheck()?;
        let survey = Survey::read(&self.node.log_dirs);
        let looked_at = on_all_cores(&survey.replicas, pin::sample);
        let mut warnings = Warnings::default();
        survey.problems.iter().for_each(|problem| warnings.add("checkpoint", problem.clone()));
        survey.others.iter().for_each(|(dir, entry)| warnings.add_directory(dir, entry));
        let (mut prepared, mut known_ends) = (HashMap::new(), HashMap::new());
        for (replica, outcome) in survey.replicas.iter().zip(looked_at) {
            match outcome.map_err(|error| self.fatal(&error))? {
                Outcome::Done((sample, end)) => {
                    warnings.add_sample(replica, &sample);
                    prepared.insert(key(replica), end.position.end_offset);
                    known_ends.insert(key(replica), end);
                }
                // The point says of it what is still true when it is pinned.
                Outcome::Unusable(_) | Outcome::Gone => {}
            }
        }
        let metadata = self.metadata_position().unwrap_or_else(|error| {
            warnings.add("metadata", error.to_string());
            None
        });
        self.capture = Some(Capture {
            point,
            base_number,
            closed_only,
            spill: Spill::new(self.staging.folder(0).into()),
            prepared,
            known_ends,
            probes: Vec::new(),
            pinned: HashMap::new(),
            metadata: None,
        });
        let replicas = survey.replicas.len();
        Ok(Prepared { facts: self.node.facts.clone(), metadata, replicas, warnings: warnings.finish() })
    }

    /// Where the transaction log's replicas end.
    fn mark(&self) -> Result<Vec<ReplicaSample>, AgentError> {
        let mut survey = Survey::read(&self.node.log_dirs);
        survey.replicas.retain(|replica| replica.partition.topic == TRANSACTION_TOPIC);
        let mut samples = Vec::new();
        for outcome in on_all_cores(&survey.replicas, pin::sample) {
            match outcome.map_err(|error| self.fatal(&error))? {
                Outcome::Done((sample, _)) | Outcome::Unusable(sample) => samples.push(sample),
                Outcome::Gone => {}
            }
        }
        Ok(samples)
    }

    /// Pins the replicas of the wanted topics. One that vanishes is looked for again, since it may have moved to
    /// another log dir; if it is nowhere its topic was deleted, or it was reassigned.
    fn pin(&mut self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<ReplicaSample>, AgentError> {
        let capture = self.capture.as_ref().ok_or(AgentError::NotPrepared)?;
        let known = |topic_id, partition, base_offset, len, identity: &_| {
            self.cache.knows(capture.base_number, topic_id, partition, base_offset, len, identity)
        };
        let pin_one = |replica: &Replica| {
            let topic = replica.partition.topic.as_str();
            let pinner = Pinner {
                staging: &self.staging,
                spill: &capture.spill,
                // The transaction log is read here, so all of it must be pinned.
                known: if topic == TRANSACTION_TOPIC { &|_, _, _, _, _| false } else { &known },
                closed_only: capture.closed_only && (is_data(topic) || is_connect_offsets(topic)),
            };
            pinner.pin(replica, capture.prepared.get(&(topic.to_owned(), replica.partition.partition)).copied())
        };
        let mut samples: HashMap<Key, ReplicaSample> = HashMap::new();
        let mut pinned = Vec::new();
        for round in 1..=ROUNDS {
            let mut survey = Survey::read(&self.node.log_dirs);
            survey.problems.iter().for_each(|problem| tracing::warn!(problem, "while pinning"));
            survey.replicas.retain(|Replica { partition, .. }| {
                is_wanted(&partition.topic) && !samples.contains_key(&(partition.topic.clone(), partition.partition))
            });
            let mut is_complete = true;
            for (replica, outcome) in survey.replicas.iter().zip(on_all_cores(&survey.replicas, pin_one)) {
                let (sample, replica) = match outcome.map_err(|error| self.fatal(&error))? {
                    Outcome::Done((replica, sample)) => (sample, Some(replica)),
                    Outcome::Unusable(sample) => (sample, None),
                    Outcome::Gone => {
                        tracing::warn!(partition = %replica.partition, round, "partition vanished while it was pinned");
                        is_complete = false;
                        continue;
                    }
                };
                let key = (sample.topic.clone(), sample.partition);
                pinned.extend(replica.map(|replica| (key.clone(), replica)));
                samples.insert(key, sample);
            }
            if is_complete {
                break;
            }
        }
        self.capture.as_mut().ok_or(AgentError::NotPrepared)?.pinned.extend(pinned);
        Ok(samples.into_values().collect())
    }

    fn read_metadata(&mut self) -> Result<MetadataCopy, AgentError> {
        let dir = self.node.metadata_log_dir().join(CLUSTER_METADATA_DIR);
        let copy = metadata_copy::copy(&dir).map_err(|error| AgentError::Metadata(error.to_string()))?;
        if let Some(capture) = &mut self.capture {
            capture.metadata = Some(copy.clone());
        }
        Ok(copy)
    }

    fn metadata_position(&self) -> Result<Option<LogPosition>, AgentError> {
        let dir = self.node.metadata_log_dir().join(CLUSTER_METADATA_DIR);
        metadata_copy::position(&dir).map_err(|error| AgentError::Metadata(error.to_string()))
    }

    fn read_transactions(
        &self,
        requests: &[TransactionsRequest],
    ) -> Result<(Vec<TransactionLogCopy>, Vec<Unreadable>), AgentError> {
        let read = |request: &TransactionsRequest| {
            let replica = self.pinned(TRANSACTION_TOPIC, request.partition)?;
            let copy = transactions::read(replica, request.first_mark_offset);
            Ok(copy.map_err(|error| unreadable(TRANSACTION_TOPIC, request.partition, &error)))
        };
        sort_out(on_all_cores(requests, read))
    }

    /// Notes where all replicas but those of the transaction log end. Only those that have changed are looked at.
    fn probe(&mut self) -> Result<(), AgentError> {
        let mut survey = Survey::read(&self.node.log_dirs);
        survey.replicas.retain(|replica| replica.partition.topic != TRANSACTION_TOPIC);
        let known_ends = &self.capture.as_ref().ok_or(AgentError::NotPrepared)?.known_ends;
        let look = |replica: &Replica| match known_ends.get(&key(replica)) {
            Some(known) if known.holds(replica) => Ok(None),
            _ => pin::sample(replica).map(Some),
        };
        let looked_at = on_all_cores(&survey.replicas, look);
        let fatal = |error| self.fatal(&error);
        let looked_at = looked_at.into_iter().collect::<Result<Vec<_>, _>>().map_err(fatal)?;
        let capture = self.capture.as_mut().ok_or(AgentError::NotPrepared)?;
        for (replica, outcome) in survey.replicas.iter().zip(looked_at) {
            match outcome {
                None => {}
                Some(Outcome::Done((_, end))) => _ = capture.known_ends.insert(key(replica), end),
                Some(Outcome::Unusable(_) | Outcome::Gone) => _ = capture.known_ends.remove(&key(replica)),
            }
        }
        let known = |replica| Some((key(replica), capture.known_ends.get(&key(replica))?.position));
        capture.probes.push(survey.replicas.iter().filter_map(known).collect());
        Ok(())
    }

    fn find_events(&self, requests: &[EventsRequest]) -> Result<(Vec<ReplicaEvents>, Vec<Unreadable>), AgentError> {
        let probes = &self.capture.as_ref().ok_or(AgentError::NotPrepared)?.probes;
        let find = |request: &EventsRequest| {
            let key = (request.topic.clone(), request.partition);
            let found = match &request.producer_ids[..] {
                [] => Ok(Vec::new()),
                producer_ids => events::since_prepared(self.pinned(&key.0, key.1)?, producer_ids),
            };
            Ok(match found {
                Err(error) => Err(unreadable(&key.0, key.1, &error)),
                Ok(events) => Ok(ReplicaEvents {
                    probes: probes.iter().map(|probe| probe.get(&key).copied()).collect(),
                    events,
                    topic: key.0,
                    partition: key.1,
                }),
            })
        };
        sort_out(on_all_cores(requests, find))
    }

    fn pinned(&self, topic: &str, partition: i32) -> Result<&PinnedReplica, AgentError> {
        let capture = self.capture.as_ref().ok_or(AgentError::NotPrepared)?;
        capture.pinned.get(&(topic.to_owned(), partition)).ok_or_else(|| AgentError::Partition {
            topic: topic.to_owned(),
            partition,
            reason: "it is not pinned here".to_owned(),
        })
    }

    fn upload(
        &mut self,
        upload: &Upload<'_>,
        orders: Vec<segvault_proto::UploadOrder>,
        metadata: Option<segvault_proto::MetadataOrder>,
        reply: &(dyn Fn(Report) + Sync),
    ) -> Result<Report, AgentError> {
        let capture = self.capture.as_mut().ok_or(AgentError::NotPrepared)?;
        let metadata = match metadata {
            Some(mut order) => {
                let copy = order.copy.take().or_else(|| capture.metadata.take());
                Some((order, copy.ok_or_else(|| AgentError::Metadata("it was not read before".to_owned()))?))
            }
            None => None,
        };
        let pinned = &mut capture.pinned;
        let mut take = |topic: &str, partition| pinned.remove(&(topic.to_owned(), partition));
        let back = upload.run(orders, metadata, &mut take, &mut self.cache, reply)?;
        pinned.extend(back.into_iter().map(|replica| ((replica.topic.clone(), replica.partition), replica)));
        Ok(Report::Uploaded)
    }

    /// Lets go of everything.
    fn release(&mut self, committed: bool) {
        let Some(capture) = self.capture.take() else {
            return;
        };
        capture.pinned.into_values().for_each(|replica| self.cache.release(replica));
        if committed {
            self.cache.commit(capture.point.number);
        } else {
            self.cache.abort();
        }
    }

    /// What keeps every replica from being looked at.
    fn fatal(&self, error: &ReplicaError) -> AgentError {
        tracing::warn!(%error, "too many open files");
        AgentError::Descriptors { limit: self.descriptor_limit }
    }
}

fn unreadable(topic: &str, partition: i32, error: &ReplicaError) -> Unreadable {
    Unreadable { topic: topic.to_owned(), partition, reason: error.to_string() }
}

/// What could be read and what could not; an error if one concerns more than its partition.
fn sort_out<T>(read: Vec<Result<Result<T, Unreadable>, AgentError>>) -> Result<(Vec<T>, Vec<Unreadable>), AgentError> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for item in read {
        match item? {
            Ok(item) => good.push(item),
            Err(item) => bad.push(item),
        }
    }
    Ok((good, bad))
}

fn key(replica: &Replica) -> Key {
    (replica.partition.topic.clone(), replica.partition.partition)
}

/// Whether a topic is neither progress nor transactions nor what data refers to.
fn is_data(topic: &str) -> bool {
    topic != TRANSACTION_TOPIC && !is_progress(topic) && !REFERENCE_TOPICS.contains(&topic)
}

/// Warnings by kind, so that a thousand of one do not hide the others.
#[derive(Debug, Default)]
struct Warnings {
    kinds: Vec<(&'static str, Vec<String>)>,
}

impl Warnings {
    fn add(&mut self, kind: &'static str, text: String) {
        match self.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, texts)) => texts.push(text),
            None => self.kinds.push((kind, vec![text])),
        }
    }

    fn add_directory(&mut self, dir: &Path, entry: &LogDirEntry) {
        let dir = dir.display();
        match entry {
            LogDirEntry::Stray(_) => self.add("stray", format!("{dir} is a stray partition: it is left out")),
            LogDirEntry::Foreign => {
                self.add("foreign", format!("{dir} is not Kafka's and keeps a broker from starting: it is left out"));
            }
            _ => {}
        }
    }

    fn add_sample(&mut self, replica: &Replica, sample: &ReplicaSample) {
        let (partition, end) = (&replica.partition, sample.position.end_offset);
        if replica.high_watermark > end {
            let text = format!(
                "{partition} ends at offset {end}, below its checkpointed high watermark {}: its topic was made anew, \
                 or it lost its end in a crash or by damage",
                replica.high_watermark
            );
            self.add("end", text);
        }
        if replica.log_start.is_some_and(|start| start < sample.log_start_offset) {
            self.add("tiered", tiered(replica, sample));
        }
    }

    fn finish(self) -> Vec<String> {
        let mut all = Vec::new();
        for (_, mut texts) in self.kinds {
            let more = texts.len().saturating_sub(WARNINGS);
            texts.truncate(WARNINGS);
            all.extend(texts);
            if more > 0 {
                all.push(format!("and {more} more of this kind"));
            }
        }
        all
    }
}

/// What is said of a log whose start lies below its first segment.
pub(crate) fn tiered(replica: &Replica, sample: &ReplicaSample) -> String {
    format!(
        "{} starts at offset {} but its first local segment is at {}: what lies between is in tiered storage (or was \
         just deleted) and is left out",
        replica.partition,
        replica.log_start.unwrap_or(0),
        sample.log_start_offset
    )
}
