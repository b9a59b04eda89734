//! Saved plans: made from what was planned, and turned back into what is planned from.
//!
//! What a host restores depends on the plan's targets, never on what its own `server.properties` says: that is only
//! held against the plan, and a difference is refused. An index may be denser or sparser than the file says, but not
//! longer: a broker would not start on it.

use std::collections::{BTreeMap, BTreeSet};

use segvault_kafka_log::metadata::MetadataImage;
use segvault_kafka_log::metadata::checkpoint::{LogError, replay_checkpoint};
use segvault_kafka_log::side_files::SideFileOptions;
use segvault_vault_format::ids::{BlobId, PlanId, PointId};
use segvault_vault_format::manifest::{NodeEntry, PartitionEntry, PointManifest};
use segvault_vault_format::plan::{LeftOut, Plan, PlanFinding, PlannedLogDir, PlannedNode, PlannedSource};

use super::{Checkpoint, PartitionPlan, PlanError, Replica, RestorePlan, Severity, Target, plan as make_plan};

/// A committed point, as far as a plan needs it.
#[derive(Clone, Debug)]
pub struct LoadedPoint {
    /// Its manifest, checked.
    pub manifest: PointManifest,
    /// Its metadata, replayed.
    pub image: MetadataImage,
    /// The root that its outcome names.
    pub root: BlobId,
}

/// Source of replicas that get an empty log.
pub const NO_SOURCE: i32 = -1;

/// Why a plan cannot be followed here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Misfit {
    /// Another cluster was asked for.
    #[error(
        "plan {plan} is of another cluster than {wanted}, which --cluster names\n\
         hint: leave --cluster out, or give a plan of that cluster; segvault restore plans lists them"
    )]
    Cluster {
        /// The plan.
        plan: PlanId,
        /// The cluster that was asked for.
        wanted: String,
    },
    /// The point of that number is not the one that was planned with.
    #[error(
        "plan {plan} was made for point {point} with the root {planned}, and the point of that number in this vault has \
         the root {found}\n\
         hint: use the vault that the plan was made in, or make a new plan here"
    )]
    Root {
        /// The plan.
        plan: PlanId,
        /// Its point.
        point: PointId,
        /// The root that it had.
        planned: String,
        /// The root that it has.
        found: String,
    },
    /// The node is not in the plan.
    #[error(
        "node {node} is not in plan {plan}, which has the nodes {nodes:?}\n\
         hint: make a plan with it: segvault restore plan --save, with the files of all nodes or --all-nodes"
    )]
    NoNode {
        /// The plan.
        plan: PlanId,
        /// The node.
        node: i32,
        /// Those that it has.
        nodes: Vec<i32>,
    },
    /// The node's file says something else than the plan.
    #[error(
        "node {node}: {what} is {found} in its server.properties and {planned} in plan {plan}\n\
         hint: give the file that the plan was made for, or make a new plan with this one"
    )]
    Differs {
        /// The plan.
        plan: PlanId,
        /// The node.
        node: i32,
        /// Which setting.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What the plan says.
        planned: String,
    },
    /// This program plans otherwise than the one that made the plan.
    #[error(
        "plan {plan} names the metadata checkpoint {planned}, and this segvault makes another one of the point: {found}\n\
         hint: use the version of segvault that made the plan ({made_by}) on all hosts, or make a new plan"
    )]
    Checkpoint {
        /// The plan.
        plan: PlanId,
        /// Its checkpoint.
        planned: String,
        /// Ours.
        found: String,
        /// Who made the plan.
        made_by: String,
    },
    /// What the plan asks for cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// What a saved plan says for some of its nodes, in their order: all of it is planned, as on every other host, and then
/// the rest is left to the others. Each node's own file was held against the plan before ([`check_target`]). `now_ms`
/// is in milliseconds since 1970.
pub fn follow(
    id: &PlanId,
    plan: &Plan,
    point: &LoadedPoint,
    node_ids: &[i32],
    now_ms: i64,
) -> Result<RestorePlan, Misfit> {
    check_root(id, plan, point.root)?;
    let restore = make_plan(&point.manifest, &point.image, &targets(plan), now_ms)?;
    check_checkpoint(id, plan, &restore.checkpoint)?;
    Ok(only(restore, node_ids))
}

/// The targets that a plan was made for.
fn targets(plan: &Plan) -> Vec<Target> {
    plan.nodes.iter().map(target).collect()
}

fn target(node: &PlannedNode) -> Target {
    let path = |dir: &PlannedLogDir| dir.path.clone();
    Target {
        node_id: node.node_id,
        broker: node.broker,
        controller: node.controller,
        log_dirs: node.log_dirs[..node.data_dirs as usize].iter().map(path).collect(),
        metadata_log_dir: path(&node.log_dirs[node.metadata_log_dir as usize]),
        static_voters: Some(node.static_voters.clone()).filter(|voters| !voters.is_empty()),
        side_files: SideFileOptions { index_interval: node.index_interval, index_len_max: node.index_len_max },
    }
}

/// Holds what a node's file says against the plan.
pub fn check_target(id: &PlanId, plan: &Plan, found: &Target) -> Result<(), Misfit> {
    let node = found.node_id;
    let Some(planned) = plan.nodes.iter().find(|planned| planned.node_id == node).map(target) else {
        let nodes = plan.nodes.iter().map(|planned| planned.node_id).collect();
        return Err(Misfit::NoNode { plan: id.clone(), node, nodes });
    };
    let roles = |target: &Target| match (target.broker, target.controller) {
        (true, true) => "broker,controller",
        (true, false) => "broker",
        _ => "controller",
    };
    let voters = |target: &Target| match target.static_voters.iter().flatten().collect::<BTreeSet<_>>() {
        voters if voters.is_empty() => "not set".to_owned(),
        voters => format!("{voters:?}"),
    };
    let differs = |what, value: &dyn Fn(&Target) -> String| match (value(found), value(&planned)) {
        (found, planned) if found == planned => Ok(()),
        (found, planned) => Err(Misfit::Differs { plan: id.clone(), node, what, found, planned }),
    };
    differs("process.roles", &|target| roles(target).to_owned())?;
    differs("log.dirs", &|target| target.log_dirs.join(","))?;
    differs("metadata.log.dir", &|target| target.metadata_log_dir.clone())?;
    differs("controller.quorum.voters", &voters)?;
    if found.side_files.index_len_max < planned.side_files.index_len_max {
        differs("log.index.size.max.bytes", &|target| target.side_files.index_len_max.to_string())?;
    }
    Ok(())
}

/// Holds the root of the point's outcome against the plan.
fn check_root(id: &PlanId, plan: &Plan, found: BlobId) -> Result<(), Misfit> {
    let planned = plan.root_id();
    if planned == found {
        return Ok(());
    }
    let point = PointId { cluster_id: plan.cluster_id.clone(), number: plan.point };
    Err(Misfit::Root { plan: id.clone(), point, planned: planned.to_string(), found: found.to_string() })
}

/// Holds the checkpoint that was just made against the plan.
fn check_checkpoint(id: &PlanId, plan: &Plan, made: &Checkpoint) -> Result<(), Misfit> {
    let (name, sum) = (made.name.to_string(), BlobId::of(&made.bytes));
    if (&name, &sum.0[..]) == (&plan.checkpoint, &plan.checkpoint_sum[..]) {
        return Ok(());
    }
    let planned = BlobId::from_slice(&plan.checkpoint_sum)
        .map_or_else(|_| plan.checkpoint.clone(), |sum| format!("{} ({sum})", plan.checkpoint));
    let (found, made_by) = (format!("{name} ({sum})"), plan.made_by.clone());
    Err(Misfit::Checkpoint { plan: id.clone(), planned, found, made_by })
}

/// The part of `plan` that is for the nodes with these ids, in their order.
fn only(plan: RestorePlan, node_ids: &[i32]) -> RestorePlan {
    let at = |id: &i32| plan.nodes.iter().position(|node| node.node_id == *id);
    let kept: Vec<usize> = node_ids.iter().filter_map(at).collect();
    let replica = |replica: &Replica| {
        let node = kept.iter().position(|node| *node == replica.node)?;
        Some(Replica { node, ..*replica })
    };
    let partitions = plan.partitions.into_iter().map(|partition| PartitionPlan {
        replicas: partition.replicas.iter().filter_map(replica).collect(),
        ..partition
    });
    RestorePlan {
        partitions: partitions.filter(|partition| !partition.replicas.is_empty()).collect(),
        nodes: kept.iter().map(|node| plan.nodes[*node].clone()).collect(),
        ..plan
    }
}

/// Nodes of the point that are not among `given`, as their agents saw them. What only a file says (voters, index
/// options) is taken from the first of `given`.
///
/// An agent does not say whether a metadata log dir that comes last is one of `log.dirs`. It is if the broker
/// registered with it. A mistake is harmless: the node's own file is held against the plan before anything is written.
pub fn other_nodes(point: &LoadedPoint, given: &[Target]) -> Vec<Target> {
    let Some(first) = given.first() else { return Vec::new() };
    let others = point.manifest.nodes.iter();
    let others = others.filter(|entry| given.iter().all(|target| target.node_id != entry.node_id));
    others
        .map(|entry| {
            let paths: Vec<String> = entry.log_dirs.iter().map(|dir| dir.path.clone()).collect();
            let data_dirs = paths.len() - usize::from(has_metadata_apart(entry, &point.image));
            Target {
                node_id: entry.node_id,
                broker: entry.broker,
                controller: entry.controller,
                log_dirs: paths[..data_dirs].to_vec(),
                metadata_log_dir: paths[entry.metadata_log_dir as usize].clone(),
                ..first.clone()
            }
        })
        .collect()
}

fn has_metadata_apart(entry: &NodeEntry, image: &MetadataImage) -> bool {
    let metadata = entry.metadata_log_dir as usize;
    let registered = image.brokers.get(&entry.node_id).map_or(&[][..], |broker| &broker.log_dirs);
    let is_registered = registered.iter().any(|id| id.0[..] == entry.log_dirs[metadata].directory_id[..]);
    metadata > 0 && metadata + 1 == entry.log_dirs.len() && !is_registered
}

/// The plan to save: `restore` was planned from `point` for `targets`.
pub fn plan_to_save(
    point: &LoadedPoint,
    restore: &RestorePlan,
    targets: &[Target],
    made_by: String,
    made_ms: i64,
) -> Result<Plan, LogError> {
    let mut nodes = planned_nodes(&point.manifest, restore, targets);
    nodes.sort_by_key(|node| node.node_id);
    // The image as it was edited: there a partition has the replicas that it will have.
    let image = replay_checkpoint(&restore.checkpoint.bytes)?.image;
    let planned: BTreeSet<i32> = targets.iter().filter(|target| target.broker).map(|target| target.node_id).collect();
    let absent = absent_nodes(&image, targets).map(|what| PlanFinding { warning: true, what });
    let findings = restore
        .findings
        .iter()
        .map(|finding| PlanFinding { warning: finding.severity == Severity::Warning, what: finding.what.clone() })
        .chain(absent);
    Ok(Plan {
        cluster_id: restore.cluster_id.clone(),
        point: restore.point.number,
        root: point.root.0.to_vec(),
        made_ms,
        made_by,
        checkpoint: restore.checkpoint.name.to_string(),
        checkpoint_sum: BlobId::of(&restore.checkpoint.bytes).0.to_vec(),
        nodes,
        partitions: restore.partitions.len() as u64,
        left_out: left_out(&point.manifest, &image, &planned),
        findings: findings.collect(),
        ..Plan::default()
    })
}

/// Brokers and voters of the cluster that the plan lacks. Those without a replica are named nowhere else, and a fleet
/// that follows the plan would start without them.
fn absent_nodes(image: &MetadataImage, targets: &[Target]) -> Option<String> {
    let voters: BTreeSet<i32> = match &image.voters {
        Some(voters) => voters.iter().map(|voter| voter.voter_id).collect(),
        None => targets.iter().flat_map(|target| target.static_voters.iter().flatten()).copied().collect(),
    };
    let is_absent = |node: &i32| targets.iter().all(|target| target.node_id != *node);
    let absent: BTreeSet<i32> = image.brokers.keys().copied().chain(voters).filter(is_absent).collect();
    (!absent.is_empty()).then(|| {
        format!("nodes {absent:?} of the cluster are not in the plan: restore them, too, before any controller starts")
    })
}

fn planned_nodes(manifest: &PointManifest, restore: &RestorePlan, targets: &[Target]) -> Vec<PlannedNode> {
    let mut loads: BTreeMap<(usize, usize), BTreeMap<i32, PlannedSource>> = BTreeMap::new();
    for partition in &restore.partitions {
        let entry = entry_of(manifest, &partition.topic, partition.partition);
        let node_id = entry.filter(|_| partition.stream.is_some()).map_or(NO_SOURCE, |entry| entry.source_node);
        for Replica { node, log_dir } in &partition.replicas {
            let sources = loads.entry((*node, *log_dir)).or_default();
            let source = sources.entry(node_id).or_insert(PlannedSource { node_id, ..PlannedSource::default() });
            source.replicas += 1;
            source.bytes += partition.bytes;
        }
    }
    let planned = restore.nodes.iter().zip(targets).enumerate().map(|(index, (node, target))| {
        let log_dirs = node.log_dirs.iter().enumerate().map(|(log_dir, dir)| {
            let sources: Vec<PlannedSource> =
                loads.remove(&(index, log_dir)).unwrap_or_default().into_values().collect();
            PlannedLogDir {
                path: dir.path.clone(),
                replicas: sources.iter().map(|source| source.replicas).sum(),
                bytes: sources.iter().map(|source| source.bytes).sum(),
                sources,
            }
        });
        PlannedNode {
            node_id: node.node_id,
            broker: node.broker,
            controller: node.controller,
            log_dirs: log_dirs.collect(),
            data_dirs: node.data_dirs as u32,
            metadata_log_dir: node.metadata_log_dir as u32,
            static_voters: target.static_voters.clone().unwrap_or_default(),
            index_interval: target.side_files.index_interval,
            index_len_max: target.side_files.index_len_max,
        }
    });
    planned.collect()
}

/// The entries of a checked manifest rise by topic and partition.
fn entry_of<'a>(manifest: &'a PointManifest, topic: &str, partition: i32) -> Option<&'a PartitionEntry> {
    let place = |entry: &PartitionEntry| (entry.topic.as_str(), entry.partition).cmp(&(topic, partition));
    manifest.partitions.binary_search_by(place).ok().map(|index| &manifest.partitions[index])
}

/// Partitions of the point and of the image that are not restored, or not to all of their replicas.
fn left_out(manifest: &PointManifest, image: &MetadataImage, planned: &BTreeSet<i32>) -> Vec<LeftOut> {
    let mut all: BTreeMap<(String, i32), LeftOut> = BTreeMap::new();
    let mut put = |topic: &str, partition: i32, reason: &str, nodes: Vec<i32>| {
        if !(reason.is_empty() && nodes.is_empty()) {
            let (topic, reason) = (topic.to_owned(), reason.to_owned());
            all.insert((topic.clone(), partition), LeftOut { topic, partition, reason, nodes });
        }
    };
    for topic in image.topics.values() {
        for (number, partition) in &topic.partitions {
            let reason = match entry_of(manifest, &topic.name, *number) {
                None => "the point does not know it",
                Some(entry) if entry.topic_id[..] != topic.id.0[..] => {
                    "the point's bytes are those of an older topic of that name"
                }
                Some(entry) => &entry.uncovered,
            };
            let missing: BTreeSet<i32> =
                partition.replicas.iter().copied().filter(|node| !planned.contains(node)).collect();
            put(&topic.name, *number, reason, missing.into_iter().collect());
        }
    }
    for entry in &manifest.partitions {
        let topic = image.topic_named(&entry.topic);
        if topic.is_none_or(|topic| !topic.partitions.contains_key(&entry.partition)) {
            put(&entry.topic, entry.partition, "it is not in the metadata", Vec::new());
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use segvault_kafka_log::metadata::records::RegisterBrokerRecord;
    use segvault_kafka_log::metadata::{PartitionImage, TopicImage};
    use segvault_kafka_log::{Uuid, names::CheckpointName};
    use segvault_vault_format::manifest::LogDirEntry;

    use super::super::{LogDirPlan, NodePlan};
    use super::*;

    fn target(node_id: i32) -> Target {
        Target {
            node_id,
            broker: true,
            controller: true,
            log_dirs: vec!["/a".into(), "/b".into()],
            metadata_log_dir: "/m".into(),
            static_voters: Some(vec![2, 1]),
            side_files: SideFileOptions { index_interval: 4096, index_len_max: 1000 },
        }
    }

    fn restore(targets: &[Target], replicas: &[(usize, usize)]) -> RestorePlan {
        let log_dirs = ["/a", "/b", "/m"].map(|path| LogDirPlan { path: path.into(), directory_id: None });
        let node = |target: &Target| NodePlan {
            node_id: target.node_id,
            broker: true,
            controller: true,
            log_dirs: log_dirs.to_vec(),
            data_dirs: 2,
            metadata_log_dir: 2,
            broker_epoch: None,
        };
        let partition = |(number, (node, log_dir)): (i32, &(usize, usize))| PartitionPlan {
            topic: "t".into(),
            topic_id: Uuid([1; 16]),
            partition: number,
            stream: None,
            log_start_offset: 0,
            end_offset: 0,
            bytes: 0,
            markers: Vec::new(),
            tiered: false,
            leader_epoch: 0,
            side_files: SideFileOptions::default(),
            replicas: vec![Replica { node: *node, log_dir: *log_dir }],
        };
        RestorePlan {
            point: PointId { cluster_id: "c".into(), number: 1 },
            cluster_id: "c".into(),
            timestamp_ms: 0,
            checkpoint: Checkpoint { name: CheckpointName { end_offset: 1, epoch: 1 }, bytes: Vec::new() },
            nodes: targets.iter().map(node).collect(),
            partitions: (0..).zip(replicas).map(partition).collect(),
            level: 3,
            transaction_log: Vec::new(),
            end_offsets: BTreeMap::new(),
            topic_names: BTreeMap::new(),
            retention: BTreeMap::new(),
            findings: Vec::new(),
        }
    }

    fn saved(targets: &[Target], restore: &RestorePlan) -> Plan {
        Plan { nodes: planned_nodes(&PointManifest::default(), restore, targets), ..Plan::default() }
    }

    fn id() -> PlanId {
        PlanId { cluster_id: "c".into(), number: 3 }
    }

    #[test]
    fn the_targets_of_a_plan_are_those_it_was_made_for() {
        let all = [target(1), Target { static_voters: None, ..target(2) }];
        let plan = saved(&all, &restore(&all, &[(0, 1), (0, 1), (1, 0)]));
        assert_eq!(targets(&plan), all);
        let replicas: Vec<_> = plan.nodes[0].log_dirs.iter().map(|dir| dir.replicas).collect();
        assert_eq!(replicas, [0, 2, 0]);
    }

    #[test]
    fn a_file_may_only_differ_where_it_does_no_harm() {
        let plan = saved(&[target(1)], &restore(&[target(1)], &[]));
        let harmless = Target {
            static_voters: Some(vec![1, 2]),
            side_files: SideFileOptions { index_interval: 1, index_len_max: 1001 },
            ..target(1)
        };
        assert_eq!(check_target(&id(), &plan, &harmless), Ok(()));
        let short = SideFileOptions { index_len_max: 999, ..target(1).side_files };
        let table = [
            (Target { broker: false, ..target(1) }, "process.roles is controller in"),
            (
                Target { log_dirs: vec!["/b".into(), "/a".into()], ..target(1) },
                "log.dirs is /b,/a in its server.properties and /a,/b in plan c/3",
            ),
            (
                Target { metadata_log_dir: "/a".into(), ..target(1) },
                "metadata.log.dir is /a in its server.properties and /m",
            ),
            (
                Target { static_voters: None, ..target(1) },
                "controller.quorum.voters is not set in its server.properties and {1, 2}",
            ),
            (Target { side_files: short, ..target(1) }, "log.index.size.max.bytes is 999"),
            (target(2), "node 2 is not in plan c/3, which has the nodes [1]"),
        ];
        for (found, expected) in table {
            let error = check_target(&id(), &plan, &found).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
    }

    #[test]
    fn a_hosts_part_has_its_nodes_and_their_replicas_only() {
        let all = [target(1), target(2), target(3)];
        let part = only(restore(&all, &[(0, 0), (1, 1), (2, 0), (2, 1)]), &[3, 1]);
        assert_eq!(part.nodes.iter().map(|node| node.node_id).collect::<Vec<_>>(), [3, 1]);
        let places = part.partitions.iter().map(|it| (it.partition, it.replicas[0].node, it.replicas[0].log_dir));
        assert_eq!(places.collect::<Vec<_>>(), [(0, 1, 0), (2, 0, 0), (3, 0, 1)]);
    }

    #[test]
    fn a_nodes_target_is_what_its_agent_saw() {
        let entry = |node_id: i32, dirs: &[u8], metadata_log_dir| {
            let dir = |n: &u8| LogDirEntry { path: format!("/d{n}"), directory_id: vec![*n; 16] };
            let log_dirs = dirs.iter().map(dir).collect();
            NodeEntry { node_id, broker: true, controller: node_id == 2, log_dirs, metadata_log_dir }
        };
        let mut image = MetadataImage::default();
        let log_dirs = [1, 2].map(|n| Uuid([n; 16])).to_vec();
        for broker_id in 1..=4 {
            let log_dirs = log_dirs.clone();
            image.brokers.insert(broker_id, RegisterBrokerRecord { broker_id, log_dirs, ..Default::default() });
        }
        // Node 2's metadata log dir stands apart, those of 3 and 4 are log.dirs.
        let nodes = vec![entry(1, &[1], 0), entry(2, &[1, 2, 3], 2), entry(3, &[1, 2], 1), entry(4, &[1, 2], 0)];
        let manifest = PointManifest { nodes, ..PointManifest::default() };
        let point = LoadedPoint { manifest, image, root: BlobId([0; 32]) };
        let others = other_nodes(&point, &[target(1)]);
        let seen = others.iter().map(|it| (it.node_id, it.controller, it.log_dirs.join(","), &it.metadata_log_dir[..]));
        let expected = [(2, true, "/d1,/d2", "/d3"), (3, false, "/d1,/d2", "/d2"), (4, false, "/d1,/d2", "/d1")];
        assert!(seen.eq(expected.map(|(id, controller, dirs, metadata)| (id, controller, dirs.to_owned(), metadata))));
        assert!(others.iter().all(|other| other.static_voters == target(1).static_voters));
    }

    #[test]
    fn brokers_and_voters_that_a_plan_lacks_are_named() {
        let mut image = MetadataImage::default();
        for broker_id in [1, 5] {
            image.brokers.insert(broker_id, RegisterBrokerRecord { broker_id, ..Default::default() });
        }
        let absent = absent_nodes(&image, &[target(1)]).unwrap();
        assert!(absent.starts_with("nodes {2, 5} of the cluster are not in the plan"), "{absent}");
        assert_eq!(absent_nodes(&image, &[target(1), target(2), target(5)]), None);
        image.voters = Some(Vec::new());
        assert_eq!(absent_nodes(&image, &[target(1), target(5)]), None);
    }

    #[test]
    fn what_is_left_out_is_named_with_its_reason_or_its_nodes() {
        let entry = |topic: &str, partition, uncovered: &str| PartitionEntry {
            topic_id: vec![1; 16],
            topic: topic.into(),
            partition,
            uncovered: uncovered.into(),
            ..PartitionEntry::default()
        };
        let partitions =
            vec![entry("gone", 0, ""), entry("t", 0, ""), entry("t", 1, ""), entry("t", 2, "all are down")];
        let manifest = PointManifest { partitions, ..PointManifest::default() };
        let partition = |replicas: &[i32]| PartitionImage { replicas: replicas.to_vec(), ..PartitionImage::default() };
        let replicas = [&[1, 2][..], &[3, 1], &[1], &[2]];
        let partitions = (0..).zip(replicas.map(partition)).collect();
        let topic = TopicImage { name: "t".into(), id: Uuid([1; 16]), partitions };
        let older = TopicImage { name: "u".into(), id: Uuid([2; 16]), partitions: [(0, partition(&[1]))].into() };
        let mut image = MetadataImage::default();
        image.topics = [(topic.id, topic), (older.id, older)].into();
        let manifest = PointManifest {
            partitions: manifest.partitions.into_iter().chain([entry("u", 0, "")]).collect(),
            ..manifest
        };
        let left_out = left_out(&manifest, &image, &[1, 2].into());
        let said = left_out.iter().map(|it| (&it.topic[..], it.partition, &it.reason[..], &it.nodes[..]));
        let expected: [(&str, i32, &str, &[i32]); 5] = [
            ("gone", 0, "it is not in the metadata", &[]),
            ("t", 1, "", &[3]),
            ("t", 2, "all are down", &[]),
            ("t", 3, "the point does not know it", &[]),
            ("u", 0, "the point's bytes are those of an older topic of that name", &[]),
        ];
        assert_eq!(said.collect::<Vec<_>>(), expected);
    }
}
