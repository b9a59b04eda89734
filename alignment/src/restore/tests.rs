//! Plans of a small cluster: three combined nodes with a static quorum, node 1 with two log dirs; node 3's agent took
//! no part in the point.

use segvault_kafka_log::metadata::checkpoint::replay_checkpoint;
use segvault_kafka_log::metadata::control::Voter;
use segvault_kafka_log::metadata::image::{ELR_VERSION, METADATA_VERSION};
use segvault_kafka_log::metadata::records::{
    RegisterBrokerRecord, RegisterControllerRecord, UserScramCredentialRecord,
};
use segvault_vault_format::manifest::{LogDirEntry, MetadataEntry, TransactionMarker};

use super::*;

const FINISHED_MS: i64 = 1_790_000_000_000;

fn id(n: u8) -> Uuid {
    Uuid([n; 16])
}

/// Directory id `n` of a node.
fn dir(node: u8, n: u8) -> Uuid {
    id(100 + 10 * node + n)
}

fn partition(replicas: &[i32], directories: &[Uuid]) -> PartitionImage {
    PartitionImage {
        replicas: replicas.to_vec(),
        isr: replicas[..1].to_vec(),
        leader: replicas[0],
        leader_epoch: 4,
        partition_epoch: 9,
        directories: directories.to_vec(),
        ..PartitionImage::default()
    }
}

fn topic(name: &str, n: u8, partitions: Vec<PartitionImage>) -> TopicImage {
    let partitions = (0..).zip(partitions).collect();
    TopicImage { name: name.into(), id: id(n), partitions }
}

fn image() -> MetadataImage {
    let broker = |node: u8, dirs: &[u8]| RegisterBrokerRecord {
        broker_id: node.into(),
        broker_epoch: 10 + i64::from(node),
        fenced: false,
        in_controlled_shutdown: true,
        log_dirs: dirs.iter().map(|n| dir(node, *n)).collect(),
        ..RegisterBrokerRecord::default()
    };
    let orders = topic(
        "orders",
        1,
        vec![
            partition(&[1, 2, 3], &[dir(1, 1), dir(2, 0), dir(3, 0)]),
            partition(&[2, 3], &[dir(2, 0), dir(3, 0)]),
            // Not told yet, and not known.
            partition(&[3, 1], &[dirs::UNASSIGNED, id(99)]),
        ],
    );
    let empty = topic("empty", 2, vec![partition(&[1], &[dirs::UNASSIGNED])]);
    let mut image = MetadataImage::default();
    image.features = [("metadata.version".into(), 25)].into();
    image.brokers = [(1, broker(1, &[0, 1])), (2, broker(2, &[0])), (3, broker(3, &[0]))].into();
    image.controllers = [(1, RegisterControllerRecord::default())].into();
    image.topics = [(id(1), orders), (id(2), empty)].into();
    image.next_producer_id = Some(4000);
    let credential =
        UserScramCredentialRecord { name: "ann".into(), mechanism: 1, ..UserScramCredentialRecord::default() };
    image.scram = [((1, "ann".into()), credential)].into();
    image
}

fn node(node_id: u8, dirs: &[u8]) -> NodeEntry {
    let log_dirs = dirs
        .iter()
        .map(|n| LogDirEntry { path: format!("/k{node_id}/d{n}"), directory_id: dir(node_id, *n).0.to_vec() });
    NodeEntry {
        node_id: node_id.into(),
        broker: true,
        controller: true,
        log_dirs: log_dirs.collect(),
        metadata_log_dir: 0,
    }
}

fn entry(topic: &str, n: u8, partition: i32, end_offset: i64, bytes: u64) -> PartitionEntry {
    PartitionEntry {
        topic: topic.into(),
        topic_id: id(n).0.to_vec(),
        partition,
        end_offset,
        pinned_end_offset: end_offset,
        bytes,
        max_epoch: 4,
        ..PartitionEntry::default()
    }
}

fn point() -> PointManifest {
    PointManifest {
        cluster_id: "cluster".into(),
        number: 7,
        began_ms: FINISHED_MS - 1000,
        finished_ms: FINISHED_MS,
        nodes: vec![node(1, &[0, 1]), node(2, &[0])],
        metadata: Some(MetadataEntry { end_offset: 500, epoch: 3, ..MetadataEntry::default() }),
        partitions: vec![
            entry("empty", 2, 0, 0, 0),
            entry("orders", 1, 0, 100, 1000),
            entry("orders", 1, 1, 50, 500),
            entry("orders", 1, 2, 70, 700),
        ],
        max_producer_id: 4242,
        ..PointManifest::default()
    }
}

fn target(node_id: i32, log_dirs: &[&str]) -> Target {
    Target {
        node_id,
        broker: true,
        controller: true,
        log_dirs: log_dirs.iter().map(ToString::to_string).collect(),
        metadata_log_dir: log_dirs[0].into(),
        static_voters: Some(vec![1, 2, 3]),
        side_files: SideFileOptions::default(),
    }
}

fn targets() -> Vec<Target> {
    vec![target(1, &["/k1/d0", "/k1/d1"]), target(2, &["/k2/d0"]), target(3, &["/k3/d0"])]
}

fn planned() -> RestorePlan {
    plan(&point(), &image(), &targets(), FINISHED_MS).unwrap()
}

/// The metadata that the planned checkpoint holds.
fn edited(plan: &RestorePlan) -> MetadataImage {
    replay_checkpoint(&plan.checkpoint.bytes).unwrap().image
}

fn find<'a>(plan: &'a RestorePlan, topic: &str, number: i32) -> &'a PartitionPlan {
    plan.partitions.iter().find(|p| p.topic == topic && p.partition == number).unwrap()
}

#[test]
fn the_checkpoint_stands_above_everything_captured() {
    let plan = planned();
    assert_eq!(plan.checkpoint.name.end_offset, 500 + OFFSET_JUMP);
    assert_eq!(plan.checkpoint.name.epoch, 3 + EPOCH_JUMP);
    let checkpoint = replay_checkpoint(&plan.checkpoint.bytes).unwrap();
    assert_eq!(checkpoint.epoch, plan.checkpoint.name.epoch);
    assert_eq!(checkpoint.last_contained_log_timestamp, FINISHED_MS);
}

#[test]
fn registrations_of_brokers_stay_and_are_fenced() {
    let plan = planned();
    let image = edited(&plan);
    assert_eq!(image.brokers.len(), 3);
    for broker in image.brokers.values() {
        assert!(broker.fenced && !broker.in_controlled_shutdown);
    }
    assert!(image.controllers.is_empty());
    let epochs: Vec<_> = plan.nodes.iter().map(|node| node.broker_epoch).collect();
    assert_eq!(epochs, [Some(11), Some(12), Some(13)]);
}

#[test]
fn everybody_is_in_sync_under_the_old_leader() {
    let mut before = image();
    let orders = before.topics.get_mut(&id(1)).unwrap();
    let first = orders.partitions.get_mut(&0).unwrap();
    (first.leader, first.isr, first.elr, first.last_known_elr) = (2, vec![2], vec![3], vec![1]);
    first.leader_recovery_state = 1;
    orders.partitions.get_mut(&1).unwrap().leader = -1;
    let image = edited(&plan(&point(), &before, &targets(), FINISHED_MS).unwrap());

    let orders = &image.topics[&id(1)];
    assert_eq!((orders.partitions[&0].leader, &orders.partitions[&0].isr), (2, &vec![1, 2, 3]));
    assert_eq!(orders.partitions[&0].leader_recovery_state, 0);
    assert!(orders.partitions[&0].elr.is_empty() && orders.partitions[&0].last_known_elr.is_empty());
    assert_eq!((orders.partitions[&1].leader, &orders.partitions[&1].isr), (2, &vec![2, 3]));
    assert_eq!(orders.partitions[&0].partition_epoch, 10);
}

#[test]
fn everybody_may_lead_where_there_are_eligible_leaders() {
    let mut before = image();
    before.features.extend([(METADATA_VERSION.into(), 27), (ELR_VERSION.into(), 1)]);
    let first = before.topics.get_mut(&id(1)).unwrap().partitions.get_mut(&0).unwrap();
    (first.leader, first.isr) = (2, vec![2, 3]);
    let image = edited(&plan(&point(), &before, &targets(), FINISHED_MS).unwrap());
    let first = &image.topics[&id(1)].partitions[&0];
    assert_eq!((first.leader, &first.isr, &first.elr), (-1, &vec![], &vec![1, 2, 3]));
    assert_eq!(first.last_known_elr, [2]);
}

#[test]
fn leader_epochs_rise_above_the_logs() {
    let mut point = point();
    point.partitions[1].max_epoch = 20;
    let plan = plan(&point, &image(), &targets(), FINISHED_MS).unwrap();
    assert_eq!(find(&plan, "orders", 0).leader_epoch, 20 + LEADER_EPOCH_JUMP);
    assert_eq!(find(&plan, "orders", 1).leader_epoch, 4 + LEADER_EPOCH_JUMP);
    assert_eq!(edited(&plan).topics[&id(1)].partitions[&0].leader_epoch, 20 + LEADER_EPOCH_JUMP);
}

#[test]
fn reassignments_are_resolved() {
    let mut before = image();
    let first = before.topics.get_mut(&id(1)).unwrap().partitions.get_mut(&0).unwrap();
    (first.removing_replicas, first.adding_replicas) = (vec![1], vec![3]);
    let plan = plan(&point(), &before, &targets(), FINISHED_MS).unwrap();
    let image = edited(&plan);
    let first = &image.topics[&id(1)].partitions[&0];
    assert_eq!((&first.replicas, first.leader), (&vec![2, 3], 2));
    assert_eq!(first.directories, [dir(2, 0), dir(3, 0)]);
    assert!(first.removing_replicas.is_empty() && first.adding_replicas.is_empty());
    assert_eq!(find(&plan, "orders", 0).replicas.len(), 2);
}

#[test]
fn producer_ids_and_everything_else_are_carried_over() {
    let image = edited(&planned());
    assert_eq!(image.next_producer_id, Some(5000 + PRODUCER_ID_MARGIN));
    assert_eq!(image.scram, self::image().scram);
    assert_eq!(image.features, self::image().features);
}

#[test]
fn replicas_go_where_the_metadata_says_and_else_where_there_is_room() {
    let plan = planned();
    let place = |topic, number| -> Vec<(usize, usize)> {
        find(&plan, topic, number).replicas.iter().map(|r| (r.node, r.log_dir)).collect()
    };
    assert_eq!(place("orders", 0), [(0, 1), (1, 0), (2, 0)]);
    // Dir 0 of node 1 has nothing yet, dir 1 has orders-0: "empty" and orders-2 go to dir 0.
    assert_eq!(place("empty", 0), [(0, 0)]);
    assert_eq!(place("orders", 2), [(2, 0), (0, 0)]);
    let image = edited(&plan);
    assert_eq!(image.topics[&id(1)].partitions[&2].directories, [dir(3, 0), dir(1, 0)]);
    assert_eq!(image.topics[&id(2)].partitions[&0].directories, [dir(1, 0)]);
    // Node 3's agent took no part, so its dir is known by its registration alone.
    assert_eq!(plan.nodes[2].log_dirs[0].directory_id, Some(dir(3, 0)));
    assert_eq!(plan.nodes[0].log_dirs[1].directory_id, Some(dir(1, 1)));
}

#[test]
fn every_host_alone_plans_what_all_plan_together() {
    let together = planned();
    for (index, target) in targets().into_iter().enumerate() {
        let alone = plan(&point(), &image(), &[target], FINISHED_MS).unwrap();
        assert_eq!(alone.checkpoint, together.checkpoint);
        assert_eq!(alone.nodes[0], together.nodes[index]);
        assert_eq!(alone.end_offsets, together.end_offsets);
        for partition in &alone.partitions {
            let other = find(&together, &partition.topic, partition.partition);
            let mine = other.replicas.iter().filter(|replica| replica.node == index);
            let dirs: Vec<_> = mine.map(|replica| replica.log_dir).collect();
            assert_eq!(partition.replicas.iter().map(|r| r.log_dir).collect::<Vec<_>>(), dirs);
            assert_eq!(
                PartitionPlan { replicas: vec![], ..partition.clone() },
                PartitionPlan { replicas: vec![], ..other.clone() }
            );
        }
    }
}

#[test]
fn markers_raise_the_end_of_their_partition() {
    let mut point = point();
    let marker = |partition_index, producer_id| TransactionMarker {
        partition_index,
        producer_id,
        producer_epoch: 2,
        coordinator_epoch: -1,
    };
    (point.abort_markers, point.commit_markers) = (vec![marker(1, 6)], vec![marker(1, 5)]);
    let plan = plan(&point, &image(), &targets(), FINISHED_MS).unwrap();
    let first = find(&plan, "orders", 0);
    assert_eq!((first.end_offset, first.marked_end_offset()), (100, 102));
    let marker = |producer_id, commit| Marker { commit, producer_id, producer_epoch: 2, coordinator_epoch: 0 };
    assert_eq!(first.markers, [marker(6, false), marker(5, true)]);
    assert_eq!(plan.end_offsets[&TopicPartition::new("orders", 0)], 102);
    point.commit_markers[0].producer_epoch = 40_000;
    assert!(super::plan(&point, &image(), &targets(), FINISHED_MS).is_err());
}

#[test]
fn log_dirs_are_matched_by_path_or_else_by_position() {
    let plan_for = |target| plan(&point(), &image(), &[target], FINISHED_MS);
    let ids =
        |plan: &RestorePlan| -> Vec<_> { plan.nodes[0].log_dirs.iter().map(|dir| dir.directory_id.unwrap()).collect() };
    // The same paths in another order, the metadata log dir still the same one.
    let mut swapped = target(1, &["/k1/d1", "/k1/d0"]);
    swapped.metadata_log_dir = "/k1/d0".into();
    assert_eq!(ids(&plan_for(swapped).unwrap()), [dir(1, 1), dir(1, 0)]);
    assert_eq!(ids(&plan_for(target(1, &["/new/a", "/new/b"])).unwrap()), [dir(1, 0), dir(1, 1)]);

    let error = plan_for(target(1, &["/k1/d0"])).unwrap_err().to_string();
    assert!(error.contains("[\"/k1/d0\"]") && error.contains("[\"/k1/d0\", \"/k1/d1\"]"), "{error}");
    assert!(plan_for(target(3, &["/a", "/b"])).is_err());
    let mut elsewhere = target(1, &["/k1/d0", "/k1/d1"]);
    elsewhere.metadata_log_dir = "/k1/d1".into();
    assert!(plan_for(elsewhere).unwrap_err().to_string().contains("metadata log dir"));
}

#[test]
fn voters_name_the_metadata_log_dir_of_a_node_that_took_no_part() {
    let mut image = image();
    image.kraft_version = 1;
    let voter = |node: u8, n| Voter { voter_id: node.into(), voter_directory_id: dir(node, n), ..Voter::default() };
    image.voters = Some(vec![voter(1, 0), voter(2, 0), voter(3, 5)]);
    image.brokers.get_mut(&3).unwrap().log_dirs = vec![dir(3, 1), dir(3, 5)];
    let mut target = target(3, &["/a", "/b"]);
    target.static_voters = None;
    let plan = plan(&point(), &image, &[target], FINISHED_MS).unwrap();
    let ids: Vec<_> = plan.nodes[0].log_dirs.iter().map(|dir| dir.directory_id.unwrap()).collect();
    assert_eq!(ids, [dir(3, 5), dir(3, 1)]);
    assert_eq!(edited(&plan).voters, image.voters);
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = |targets: &[Target]| plan(&point(), &image(), targets, FINISHED_MS).unwrap_err();
    let mut wrong = targets();
    wrong[1].controller = false;
    assert!(matches!(error(&wrong), PlanError::Roles { node: 2, .. }));
    assert!(matches!(error(&[target(4, &["/d"])]), PlanError::UnknownBroker { node: 4, .. }));
    let twice = [target(2, &["/k2/d0"]), target(2, &["/k2/d0"])];
    assert_eq!(error(&twice), PlanError::SameNode(2));
    assert_eq!(error(&[]), PlanError::NoTarget);
    for voters in [None, Some(vec![2, 3]), Some(vec![])] {
        let mut target = target(1, &["/k1/d0", "/k1/d1"]);
        target.static_voters = voters;
        assert!(matches!(error(&[target]), PlanError::StaticVoters { node: 1, .. }));
    }
    let mut other = targets();
    other[2].static_voters = Some(vec![1, 2, 3, 4]);
    assert!(matches!(error(&other), PlanError::StaticVoters { node: 3, .. }));
    let mut controller = target(9, &["/d"]);
    (controller.broker, controller.static_voters) = (false, Some(vec![1, 2, 3]));
    assert!(matches!(error(&[controller]), PlanError::UnknownController { node: 9, .. }));

    let with = |change: fn(&mut MetadataImage)| {
        let mut image = image();
        change(&mut image);
        plan(&point(), &image, &targets(), FINISHED_MS).unwrap_err()
    };
    assert_eq!(with(|image| image.zk_migration_state = Some(1)), PlanError::ZooKeeper);
    assert_eq!(with(|image| image.features.clear()), PlanError::MetadataVersion(None));
    let evil = with(|image| image.topics.get_mut(&id(2)).unwrap().name = "../x".into());
    assert_eq!(evil, PlanError::TopicName("../x".into()));
}

#[test]
fn what_is_not_covered_is_named_and_becomes_empty() {
    let mut point = point();
    point.degraded = true;
    point.partitions[1] = PartitionEntry { uncovered: "all replicas down".into(), ..entry("orders", 1, 0, 0, 0) };
    point.partitions[2].topic_id = id(77).0.to_vec();
    point.partitions.remove(3);
    let plan = plan(&point, &image(), &targets(), FINISHED_MS).unwrap();
    let warnings: Vec<_> = plan.findings.iter().map(|finding| finding.what.as_str()).collect();
    assert_eq!(
        warnings,
        [
            "the point is degraded: something was lost or not covered when it was taken; segvault snapshot show tells \
             what",
            "orders-0 will be empty: all replicas down",
            "orders-1 will be empty: the point's bytes are those of an older topic of that name",
            "orders-1 will be empty: the point does not know it",
            "orders-2 will be empty: the point does not know it",
        ]
    );
    for number in 0..3 {
        let partition = find(&plan, "orders", number);
        assert!(partition.stream.is_none());
        assert_eq!(partition.end_offset, 0);
    }
}

#[test]
fn age_brings_time_bombs_to_light() {
    let day_ms = 86_400_000;
    let mut image = image();
    let short = [("retention.ms".to_owned(), "3600000".to_owned())].into();
    image.configs.insert((TOPIC_CONFIG, "orders".into()), short);
    let findings = |days: i64| {
        let plan = plan(&point(), &image, &targets(), FINISHED_MS + days * day_ms).unwrap();
        plan.findings.into_iter().map(|finding| finding.what).collect::<Vec<_>>()
    };
    assert!(findings(0).is_empty());
    let day = findings(1);
    assert_eq!(day.len(), 1);
    assert!(day[0].starts_with("topic orders: the point is 24 h old and the topic keeps 1 h"), "{day:?}");
    let week = findings(8);
    assert!(week.iter().any(|what| what.contains("offsets.retention.minutes")), "{week:?}");
    assert!(week.iter().any(|what| what.contains("transactional.id.expiration.ms")), "{week:?}");
    // There is nothing in it to lose.
    assert!(week.iter().all(|what| !what.contains("topic empty")));
}
