//! The plan of a restore: what each node's log dirs will hold, and the one metadata checkpoint for all controllers.
//!
//! A plan is a function of the point, the metadata replayed from it, and the `server.properties` of the nodes at hand.
//! So every host can plan and do its part alone, and the parts fit: whatever more than one host must agree on
//! (the checkpoint's bytes, directory ids, the placing of replicas) depends on the point alone.
//!
//! What the edit of the metadata must hold (`docs/consistency.md`; each was tried on real brokers):
//!
//! - Registrations of brokers stay, *fenced*: without them followers of 3.9 never fetch, and an unfenced one blocks
//!   the restarted broker for a session timeout and shrinks every ISR meanwhile.
//! - All replicas come from one source, so each may lead: all are in sync under the leader that was, or where the cluster
//!   has eligible leaders (KIP-966) all are those.
//! - Leader epochs rise above all that batches, epoch histories or live clients have seen.
//! - Directories are the ids that the nodes' `meta.properties` will have, so no replica is in an unknown place.

mod dirs;
mod edit;
mod risks;
pub mod saved;
mod transactions;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use segvault_kafka_log::metadata::checkpoint::write_checkpoint;
use segvault_kafka_log::metadata::image::TOPIC_CONFIG;
use segvault_kafka_log::metadata::{MetadataImage, PartitionImage, TopicImage};
use segvault_kafka_log::names::{CheckpointName, is_topic_name};
use segvault_kafka_log::server_properties::{Quorum, ServerProperties};
use segvault_kafka_log::side_files::SideFileOptions;
use segvault_kafka_log::{TopicPartition, Uuid};
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::{NodeEntry, PartitionEntry, PointManifest, StreamRef};

pub use dirs::DirError;
pub use edit::{EPOCH_JUMP, LEADER_EPOCH_JUMP, OFFSET_JUMP, PRODUCER_ID_MARGIN};
pub use risks::{Retention, expired_bytes};
pub use transactions::{Ended, ProducerEnd, Torn, TransactionIds, judge_state};

use dirs::KnownDir;

/// The topic with groups' committed offsets: a restore clamps those beyond a partition's end.
pub const GROUP_TOPIC: &str = "__consumer_offsets";

/// The topic that says of each transaction whether it is decided, and of which partitions it is.
pub const TRANSACTION_TOPIC: &str = "__transaction_state";

/// The topic with share groups' states: a restore clamps those beyond a partition's end.
pub const SHARE_TOPIC: &str = "__share_group_state";

/// A node that is to be restored, as its `server.properties` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `node.id`.
    pub node_id: i32,
    /// Has the broker role.
    pub broker: bool,
    /// Has the controller role.
    pub controller: bool,
    /// `log.dirs`, in its order.
    pub log_dirs: Vec<String>,
    /// `metadata.log.dir`, or the first of `log.dirs`.
    pub metadata_log_dir: String,
    /// Node ids of `controller.quorum.voters`; `None` where it is not set.
    pub static_voters: Option<Vec<i32>>,
    /// `log.index.interval.bytes` and `log.index.size.max.bytes`.
    pub side_files: SideFileOptions,
}

impl From<&ServerProperties> for Target {
    fn from(properties: &ServerProperties) -> Self {
        let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
        Self {
            node_id: properties.node_id,
            broker: properties.roles.broker,
            controller: properties.roles.controller,
            log_dirs: properties.log_dirs.iter().map(text).collect(),
            metadata_log_dir: text(&properties.metadata_log_dir),
            static_voters: match &properties.quorum {
                Quorum::Static(voters) => Some(voters.iter().map(|voter| voter.id).collect()),
                Quorum::Dynamic(_) => None,
            },
            side_files: SideFileOptions {
                index_interval: properties.index_interval,
                index_len_max: properties.index_len_max,
            },
        }
    }
}

/// Everything to do to some nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct RestorePlan {
    /// What is restored.
    pub point: PointId,
    /// The level that the point states, 0 to 3. One below 3 does not promise that transactions are whole.
    pub level: u32,
    /// `cluster.id` of every `meta.properties`.
    pub cluster_id: String,
    /// Timestamp of whatever is appended, milliseconds since 1970: when the point was finished, never a clock's.
    pub timestamp_ms: i64,
    /// For every controller, the same everywhere.
    pub checkpoint: Checkpoint,
    /// In the order of the targets.
    pub nodes: Vec<NodePlan>,
    /// Partitions with a replica on one of the nodes, by topic and partition.
    pub partitions: Vec<PartitionPlan>,
    /// All of the cluster's transaction log that the point has, wherever its replicas go: transactions are held against
    /// it. By partition.
    pub transaction_log: Vec<TransactionLogPart>,
    /// Where each partition of the cluster ends once its markers are appended. Committed offsets and share states beyond are
    /// clamped.
    pub end_offsets: BTreeMap<TopicPartition, i64>,
    /// Names of the cluster's topics: share states are those of ids.
    pub topic_names: BTreeMap<Uuid, String>,
    /// Time retention by topic, where it deletes.
    pub retention: BTreeMap<String, Retention>,
    /// What an operator should know before a broker starts.
    pub findings: Vec<Finding>,
}

impl RestorePlan {
    /// Where a partition of the topic with this id ends, if there is one.
    pub fn end_offset_by_id(&self, topic_id: Uuid, partition: i32) -> Option<i64> {
        let topic = self.topic_names.get(&topic_id)?;
        self.end_offsets.get(&TopicPartition::new(topic, partition)).copied()
    }
}

/// The metadata, as one snapshot.
#[derive(Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its file name; brokers' epochs go on rising from there.
    pub name: CheckpointName,
    /// The file.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes hold secrets.
        write!(f, "{} [{} bytes]", self.name, self.bytes.len())
    }
}

/// What one node gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// `node.id`.
    pub node_id: i32,
    /// Has the broker role.
    pub broker: bool,
    /// Has the controller role: gets the metadata checkpoint.
    pub controller: bool,
    /// `log.dirs` in their order, then the metadata log dir if it stands apart.
    pub log_dirs: Vec<LogDirPlan>,
    /// How many of `log_dirs` are `log.dirs`: only those hold partitions.
    pub data_dirs: usize,
    /// Index into `log_dirs`.
    pub metadata_log_dir: usize,
    /// Goes into `.kafka_cleanshutdown`: the epoch of the broker's registration in the checkpoint.
    pub broker_epoch: Option<i64>,
}

/// What one log dir gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDirPlan {
    /// As `server.properties` names it.
    pub path: String,
    /// For `meta.properties`; `None` where the source had none or it is not known, and nothing refers to it.
    pub directory_id: Option<Uuid>,
}

/// A partition that some node of the run gets.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionPlan {
    /// Topic name.
    pub topic: String,
    /// For `partition.metadata`.
    pub topic_id: Uuid,
    /// Partition.
    pub partition: i32,
    /// Where its bytes are; `None`: it gets an empty log at its end offset.
    pub stream: Option<StreamRef>,
    /// First offset served.
    pub log_start_offset: i64,
    /// The cut.
    pub end_offset: i64,
    /// Raw bytes of the stream.
    pub bytes: u64,
    /// Appended at the cut, in this order, before the first start.
    pub markers: Vec<Marker>,
    /// Older segments of its topic lie in tiered storage, so that its log start is never that of its first segment.
    pub tiered: bool,
    /// Leader epoch in the checkpoint: above all that the log has.
    pub leader_epoch: i32,
    /// How dense and how long its indexes may be.
    pub side_files: SideFileOptions,
    /// Where its replicas go, of those in this run.
    pub replicas: Vec<Replica>,
}

/// A partition of `__transaction_state` in the point.
#[derive(Clone, Debug, PartialEq)]
pub struct TransactionLogPart {
    /// Partition.
    pub partition: i32,
    /// Where its bytes are.
    pub stream: StreamRef,
    /// Its cut, which is the mark.
    pub end_offset: i64,
}

impl PartitionPlan {
    /// Where the log ends once its markers are appended.
    pub fn marked_end_offset(&self) -> i64 {
        self.end_offset + self.markers.len() as i64
    }

    /// Whether what it holds may be clamped, by records that are appended behind its markers.
    pub fn is_clamped(&self) -> bool {
        matches!(self.topic.as_str(), GROUP_TOPIC | SHARE_TOPIC)
    }
}

/// A transaction marker to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// COMMIT; else ABORT.
    pub commit: bool,
    /// Whose transaction it ends.
    pub producer_id: i64,
    /// Its epoch, at or above the producer's current one in the partition.
    pub producer_epoch: i16,
    /// Last coordinator epoch seen for it in the partition, at least 0.
    pub coordinator_epoch: i32,
}

/// A place in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Index into [`RestorePlan::nodes`].
    pub node: usize,
    /// Index into [`NodePlan::log_dirs`].
    pub log_dir: usize,
}

/// Something an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A warning asks for a decision before a broker starts; a note does not.
    pub severity: Severity,
    /// What is the matter, with the partitions or nodes it is about.
    pub what: String,
}

impl Finding {
    /// A warning.
    pub fn warning(what: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, what: what.into() }
    }

    /// A note.
    pub fn note(what: impl Into<String>) -> Self {
        Self { severity: Severity::Note, what: what.into() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

/// How much a [`Finding`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Good to know.
    Note,
    /// Something is lost, or will be unless somebody acts.
    Warning,
}

/// Why nothing can be planned. Each says what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// No node was named.
    #[error("no node to restore: name at least one server.properties")]
    NoTarget,
    /// Two of the files name the same node.
    #[error("node {0} is named twice\nhint: give each node's own server.properties, once")]
    SameNode(i32),
    /// The broker was never part of the cluster.
    #[error(
        "node {node} is no broker of the point's cluster (its brokers: {brokers:?})\n\
         hint: use the server.properties of the node that it replaces, with the same node.id"
    )]
    UnknownBroker {
        /// The target.
        node: i32,
        /// Brokers in the metadata.
        brokers: Vec<i32>,
    },
    /// The controller is no voter.
    #[error(
        "node {node} is no controller of the point's cluster (its voters: {voters:?})\n\
         hint: use the server.properties of a controller that it had, with the same node.id"
    )]
    UnknownController {
        /// The target.
        node: i32,
        /// Voters.
        voters: Vec<i32>,
    },
    /// The node had other roles.
    #[error(
        "node {node} has the roles {found} in its server.properties and had {expected} in the point\n\
         hint: set process.roles to what it was"
    )]
    Roles {
        /// The target.
        node: i32,
        /// What the file says.
        found: &'static str,
        /// What the point says.
        expected: &'static str,
    },
    /// A static quorum that the file does not name, or another than the other files name.
    #[error(
        "node {node}: the cluster has a static quorum, and controller.quorum.voters names {} where {expected} was \
         expected\nhint: set controller.quorum.voters to what it was, in every node's file", list(.found)
    )]
    StaticVoters {
        /// The target.
        node: i32,
        /// What the file says.
        found: Option<Vec<i32>>,
        /// What fits.
        expected: String,
    },
    /// The log dirs are not those of the source.
    #[error(transparent)]
    Dirs(#[from] DirError),
    /// The point has no metadata.
    #[error("point {0} has no cluster metadata, so no cluster can be made from it\nhint: restore another point")]
    NoMetadata(PointId),
    /// ZooKeeper holds part of the state.
    #[error(
        "the cluster was migrating from ZooKeeper, which the point does not hold\n\
         hint: finish the migration, then take another point"
    )]
    ZooKeeper,
    /// The metadata has no version.
    #[error("the metadata has no metadata.version, or one below 3.3 ({0:?}): no broker would start from it")]
    MetadataVersion(Option<i16>),
    /// A topic whose name no Kafka would accept, and no directory should get.
    #[error("the metadata has a topic with the impossible name {0:?}")]
    TopicName(String),
    /// The metadata or the point has a value that cannot be worked with.
    #[error("{what} of the point is out of range: {value}")]
    OutOfRange {
        /// Which value.
        what: String,
        /// Its value.
        value: i64,
    },
}

impl PlanError {
    /// The node whose `server.properties` does not fit, if it is one's.
    pub fn node(&self) -> Option<i32> {
        match self {
            Self::SameNode(node)
            | Self::UnknownBroker { node, .. }
            | Self::UnknownController { node, .. }
            | Self::Roles { node, .. }
            | Self::StaticVoters { node, .. }
            | Self::Dirs(DirError { node, .. }) => Some(*node),
            _ => None,
        }
    }
}

fn list(voters: &Option<Vec<i32>>) -> String {
    voters.as_ref().map_or_else(|| "none".to_owned(), |voters| format!("{voters:?}"))
}

/// Plans the restore of `point` on `targets`.
///
/// `image` is the metadata replayed from the point; `now_ms` (milliseconds since 1970) only serves to find what
/// retention would delete, and changes nothing but findings.
pub fn plan(
    point: &PointManifest,
    image: &MetadataImage,
    targets: &[Target],
    now_ms: i64,
) -> Result<RestorePlan, PlanError> {
    let id = PointId { cluster_id: point.cluster_id.clone(), number: point.number };
    let metadata = point.metadata.as_ref().ok_or_else(|| PlanError::NoMetadata(id.clone()))?;
    check_cluster(image)?;
    check_targets(point, image, targets)?;

    let mut image = image.clone();
    let mut findings = Vec::new();
    edit::resolve_reassignments(&mut image);
    let entries = covered_entries(point, &image, &mut findings);
    let dirs: BTreeMap<i32, (Vec<KnownDir>, Option<usize>)> = brokers_and_targets(&image, targets)
        .map(|node| (node, dirs::known_dirs(node, entry_of(point, node), &image)))
        .collect();
    let known: BTreeMap<i32, Vec<KnownDir>> = dirs.iter().map(|(node, (dirs, _))| (*node, dirs.clone())).collect();
    let partitions = partitions_of(&image);
    let loads =
        partitions.iter().map(|(tp, _, partition)| (*partition, entries.get(tp).map_or(0, |entry| entry.bytes)));
    let places = dirs::place(loads, &known);
    let places: BTreeMap<TopicPartition, Vec<Option<usize>>> =
        partitions.iter().map(|(tp, ..)| tp.clone()).zip(places).collect();
    edit::edit(&mut image, point, &entries, &places, &known)?;

    let name = edit::checkpoint_name(metadata)?;
    let bytes = write_checkpoint(&image, name.epoch, point.finished_ms);
    let markers = markers(point)?;
    let matched = targets
        .iter()
        .map(|target| {
            let (known, metadata) = &dirs[&target.node_id];
            dirs::match_dirs(target, known, *metadata)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut planner = Partitions { image: &image, targets, matched: &matched, loads: Vec::new() };
    let partitions = planner.plan(&entries, &markers, &places);
    let nodes = targets.iter().zip(&matched).map(|(target, matched)| NodePlan {
        node_id: target.node_id,
        broker: target.broker,
        controller: target.controller,
        log_dirs: matched.log_dirs.clone(),
        data_dirs: matched.data,
        metadata_log_dir: matched.metadata_log_dir,
        broker_epoch: image.brokers.get(&target.node_id).filter(|_| target.broker).map(|broker| broker.broker_epoch),
    });
    let retention = risks::retention(&image);
    note_the_unknown(&image, &mut findings);
    note_tiered(&image, &mut findings);
    note_voters(&image, &dirs, &mut findings);
    findings.extend(risks::find(point, &image, &retention, now_ms));
    Ok(RestorePlan {
        cluster_id: point.cluster_id.clone(),
        timestamp_ms: point.finished_ms,
        checkpoint: Checkpoint { name, bytes },
        nodes: nodes.collect(),
        partitions,
        level: point.level,
        transaction_log: transaction_log(point),
        end_offsets: end_offsets(&image, &entries, &markers),
        topic_names: image.topics.values().map(|topic| (topic.id, topic.name.clone())).collect(),
        retention,
        findings,
        point: id,
    })
}

fn check_cluster(image: &MetadataImage) -> Result<(), PlanError> {
    /// `metadata.version` of 3.3-IV3, the first that production clusters may have.
    const LEVEL_MIN: i16 = 7;
    let level = image.metadata_version();
    if level.is_none_or(|level| level < LEVEL_MIN) {
        return Err(PlanError::MetadataVersion(level));
    }
    // 1 is a migration under way, 2 one about to begin.
    let migrating = matches!(image.zk_migration_state, Some(1 | 2));
    if migrating || image.brokers.values().any(|broker| broker.is_migrating_zk_broker) {
        return Err(PlanError::ZooKeeper);
    }
    match image.topics.values().find(|topic| !is_topic_name(&topic.name)) {
        Some(topic) => Err(PlanError::TopicName(topic.name.clone())),
        None => Ok(()),
    }
}

fn check_targets(point: &PointManifest, image: &MetadataImage, targets: &[Target]) -> Result<(), PlanError> {
    let first = targets.first().ok_or(PlanError::NoTarget)?;
    let mut seen = BTreeSet::new();
    for target in targets {
        let node = target.node_id;
        if !seen.insert(node) {
            return Err(PlanError::SameNode(node));
        }
        if let Some(entry) = entry_of(point, node) {
            let (found, expected) = (roles(target.broker, target.controller), roles(entry.broker, entry.controller));
            if found != expected {
                return Err(PlanError::Roles { node, found, expected });
            }
        }
        if target.broker && !image.brokers.contains_key(&node) {
            return Err(PlanError::UnknownBroker { node, brokers: image.brokers.keys().copied().collect() });
        }
        check_quorum(point, image, target, first)?;
    }
    Ok(())
}

fn check_quorum(
    point: &PointManifest,
    image: &MetadataImage,
    target: &Target,
    first: &Target,
) -> Result<(), PlanError> {
    let node = target.node_id;
    // The voters of a dynamic quorum stand in the metadata and overrule the file.
    let voters: Vec<i32> = if image.kraft_version > 0 {
        image.voters.iter().flatten().map(|voter| voter.voter_id).collect()
    } else {
        let found = target.static_voters.clone();
        let error = |expected: String| PlanError::StaticVoters { node, found: found.clone(), expected };
        let voters: BTreeSet<i32> = found.iter().flatten().copied().collect();
        let controllers: BTreeSet<i32> =
            point.nodes.iter().filter(|entry| entry.controller).map(|entry| entry.node_id).collect();
        if !voters.is_superset(&controllers) || voters.is_empty() {
            return Err(error(format!("at least {controllers:?}")));
        }
        let others: BTreeSet<i32> = first.static_voters.iter().flatten().copied().collect();
        if voters != others {
            return Err(error(format!("{others:?}, as for node {},", first.node_id)));
        }
        voters.into_iter().collect()
    };
    if target.controller && !voters.contains(&node) {
        return Err(PlanError::UnknownController { node, voters });
    }
    Ok(())
}

fn roles(broker: bool, controller: bool) -> &'static str {
    match (broker, controller) {
        (true, true) => "broker,controller",
        (true, false) => "broker",
        (false, true) => "controller",
        (false, false) => "(none)",
    }
}

fn entry_of(point: &PointManifest, node: i32) -> Option<&NodeEntry> {
    point.nodes.iter().find(|entry| entry.node_id == node)
}

fn brokers_and_targets(image: &MetadataImage, targets: &[Target]) -> impl Iterator<Item = i32> {
    let nodes: BTreeSet<i32> = image.brokers.keys().copied().chain(targets.iter().map(|t| t.node_id)).collect();
    nodes.into_iter()
}

/// The partitions of the image by topic and number.
fn partitions_of(image: &MetadataImage) -> Vec<(TopicPartition, &TopicImage, &PartitionImage)> {
    let mut partitions: Vec<_> = image
        .topics
        .values()
        .flat_map(|topic| {
            topic
                .partitions
                .iter()
                .map(move |(number, partition)| (TopicPartition::new(&topic.name, *number), topic, partition))
        })
        .collect();
    partitions.sort_by(|a, b| a.0.cmp(&b.0));
    partitions
}

/// The point's partitions that the image has, too, under the same topic id; the rest becomes findings.
fn covered_entries<'a>(
    point: &'a PointManifest,
    image: &MetadataImage,
    findings: &mut Vec<Finding>,
) -> BTreeMap<TopicPartition, &'a PartitionEntry> {
    if point.degraded {
        let what = "the point is degraded: something was lost or not covered when it was taken; segvault snapshot show tells what";
        findings.push(Finding::warning(what));
    }
    let mut entries = BTreeMap::new();
    for entry in &point.partitions {
        let tp = TopicPartition::new(&entry.topic, entry.partition);
        let topic = image.topic_named(&entry.topic).filter(|topic| topic.partitions.contains_key(&entry.partition));
        match topic {
            Some(topic) if topic.id.0[..] == entry.topic_id[..] => {
                if !entry.uncovered.is_empty() {
                    findings.push(Finding::warning(format!("{tp} will be empty: {}", entry.uncovered)));
                }
                entries.insert(tp, entry);
            }
            Some(_) => findings.push(Finding::warning(format!(
                "{tp} will be empty: the point's bytes are those of an older topic of that name"
            ))),
            None => findings.push(Finding::note(format!("{tp} is not restored: it is not in the metadata"))),
        }
    }
    for (tp, ..) in partitions_of(image).into_iter().filter(|(tp, ..)| !entries.contains_key(tp)) {
        findings.push(Finding::warning(format!("{tp} will be empty: the point does not know it")));
    }
    entries
}

/// Markers by partition: those that abort, then those that commit, in the point's order.
fn markers(point: &PointManifest) -> Result<BTreeMap<TopicPartition, Vec<Marker>>, PlanError> {
    let mut markers: BTreeMap<TopicPartition, Vec<Marker>> = BTreeMap::new();
    let aborts = point.abort_markers.iter().map(|marker| (false, marker));
    for (commit, marker) in aborts.chain(point.commit_markers.iter().map(|marker| (true, marker))) {
        let out_of_range = |what: &str, value: i64| PlanError::OutOfRange { what: what.into(), value };
        let entry = point
            .partitions
            .get(marker.partition_index as usize)
            .ok_or_else(|| out_of_range("the partition of a transaction marker", marker.partition_index.into()))?;
        let producer_epoch = i16::try_from(marker.producer_epoch)
            .map_err(|_| out_of_range("the producer epoch of a transaction marker", marker.producer_epoch.into()))?;
        markers.entry(TopicPartition::new(&entry.topic, entry.partition)).or_default().push(Marker {
            commit,
            producer_id: marker.producer_id,
            producer_epoch,
            coordinator_epoch: marker.coordinator_epoch.max(0),
        });
    }
    Ok(markers)
}

/// The parts of the transaction log, also those that the metadata does not know: what they say was so.
fn transaction_log(point: &PointManifest) -> Vec<TransactionLogPart> {
    let entries = point.partitions.iter().filter(|entry| entry.topic == TRANSACTION_TOPIC);
    let parts = entries.filter_map(|entry| {
        let stream = entry.stream.clone()?;
        Some(TransactionLogPart { partition: entry.partition, stream, end_offset: entry.end_offset })
    });
    parts.collect()
}

/// The cut of a partition: 0 where there is none to be had, so that its log begins anew.
fn cut(entry: Option<&PartitionEntry>) -> i64 {
    entry.map_or(0, |entry| entry.end_offset.max(entry.log_start_offset).max(0))
}

fn end_offsets(
    image: &MetadataImage,
    entries: &BTreeMap<TopicPartition, &PartitionEntry>,
    markers: &BTreeMap<TopicPartition, Vec<Marker>>,
) -> BTreeMap<TopicPartition, i64> {
    let ends = partitions_of(image).into_iter().map(|(tp, ..)| {
        let appended = markers.get(&tp).map_or(0, Vec::len) as i64;
        let end = cut(entries.get(&tp).copied()) + appended;
        (tp, end)
    });
    ends.collect()
}

/// Makes the partitions' part of the plan.
struct Partitions<'a> {
    image: &'a MetadataImage,
    targets: &'a [Target],
    matched: &'a [dirs::Matched],
    /// Bytes by target and log dir of replicas that no known dir was found for.
    loads: Vec<Vec<u64>>,
}

impl Partitions<'_> {
    fn plan(
        &mut self,
        entries: &BTreeMap<TopicPartition, &PartitionEntry>,
        markers: &BTreeMap<TopicPartition, Vec<Marker>>,
        places: &BTreeMap<TopicPartition, Vec<Option<usize>>>,
    ) -> Vec<PartitionPlan> {
        self.loads = self.matched.iter().map(|matched| vec![0; matched.data]).collect();
        let image = self.image;
        let partitions = partitions_of(image).into_iter().map(|(tp, topic, partition)| {
            let entry = entries.get(&tp).copied();
            let bytes = entry.map_or(0, |entry| entry.bytes);
            let end_offset = cut(entry);
            PartitionPlan {
                topic_id: topic.id,
                stream: entry.and_then(|entry| entry.stream.clone()),
                log_start_offset: entry.map_or(0, |entry| entry.log_start_offset.clamp(0, end_offset)),
                end_offset,
                bytes,
                markers: markers.get(&tp).cloned().unwrap_or_default(),
                tiered: is_tiered(image, &tp.topic),
                leader_epoch: partition.leader_epoch,
                side_files: self.side_files(&tp.topic),
                replicas: self.replicas(partition, &places[&tp], bytes),
                topic: tp.topic,
                partition: tp.partition,
            }
        });
        partitions.filter(|partition| !partition.replicas.is_empty()).collect()
    }

    /// The replicas that lie on a target.
    fn replicas(&mut self, partition: &PartitionImage, places: &[Option<usize>], bytes: u64) -> Vec<Replica> {
        let mut replicas = Vec::new();
        for (node_id, place) in partition.replicas.iter().zip(places) {
            let node = self.targets.iter().position(|target| target.broker && target.node_id == *node_id);
            let Some(node) = node else { continue };
            let known = place.and_then(|place| self.matched[node].places.get(place).copied());
            let log_dir = known.unwrap_or_else(|| {
                let loads = &mut self.loads[node];
                let log_dir = (0..loads.len()).min_by_key(|dir| loads[*dir]).unwrap_or(0);
                if let Some(load) = loads.get_mut(log_dir) {
                    *load += bytes;
                }
                log_dir
            });
            replicas.push(Replica { node, log_dir });
        }
        replicas
    }

    /// As the topic says, or else the targets: an index that is longer than a broker allows keeps it from starting.
    fn side_files(&self, topic: &str) -> SideFileOptions {
        let configs = self.image.configs.get(&(TOPIC_CONFIG, topic.to_owned()));
        let config = |name: &str| configs?.get(name)?.parse::<u32>().ok();
        let targets = || self.targets.iter().map(|target| target.side_files);
        let default = SideFileOptions::default();
        SideFileOptions {
            index_interval: config("index.interval.bytes")
                .or_else(|| targets().map(|options| options.index_interval).min())
                .unwrap_or(default.index_interval),
            index_len_max: config("segment.index.bytes")
                .or_else(|| targets().map(|options| options.index_len_max).min())
                .unwrap_or(default.index_len_max),
        }
    }
}

/// Whether `remote.storage.enable` is set (KIP-405).
fn is_tiered(image: &MetadataImage, topic: &str) -> bool {
    let configs = image.configs.get(&(TOPIC_CONFIG, topic.to_owned()));
    let enabled = configs.and_then(|configs| configs.get("remote.storage.enable"));
    enabled.is_some_and(|enabled| enabled == "true")
}

fn note_tiered(image: &MetadataImage, findings: &mut Vec<Finding>) {
    for topic in image.topics.values().filter(|topic| is_tiered(image, &topic.name)) {
        findings.push(Finding::warning(format!(
            "topic {}: only the segments that brokers held themselves are in the point; older ones are \
             served as long as they are in tiered storage",
            topic.name
        )));
    }
}

fn note_the_unknown(image: &MetadataImage, findings: &mut Vec<Finding>) {
    /// `metadata.version` of 4.4-IV2, the newest that this code knows.
    const LEVEL_MAX: i16 = 33;
    let level = image.metadata_version().unwrap_or_default();
    if level > LEVEL_MAX {
        findings.push(Finding::warning(format!(
            "metadata.version {level} is newer than this program knows ({LEVEL_MAX}): try the restore aside first"
        )));
    }
    if !image.unknown.is_empty() {
        findings.push(Finding::warning(format!(
            "{} metadata records of unknown types are carried over as they are",
            image.unknown.len()
        )));
    }
    if !image.lost_tags.is_empty() {
        findings.push(Finding::warning(format!(
            "fields of a newer Kafka are not carried over, of records {:?}",
            image.lost_tags
        )));
    }
}

/// A voter whose metadata log dir has another id than the quorum knows is none to the others.
fn note_voters(
    image: &MetadataImage,
    dirs: &BTreeMap<i32, (Vec<KnownDir>, Option<usize>)>,
    findings: &mut Vec<Finding>,
) {
    for voter in image.voters.iter().flatten() {
        let Some((known, Some(metadata))) = dirs.get(&voter.voter_id) else {
            continue;
        };
        let id = known.get(*metadata).and_then(|dir| dir.id);
        if id.is_some_and(|id| id != voter.voter_directory_id) {
            findings.push(Finding::warning(format!(
                "node {} was an observer of the quorum, not a voter: its metadata log dir had another directory.id",
                voter.voter_id
            )));
        }
    }
}
