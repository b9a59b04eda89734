//! What an agent captures of logs that do what Kafka's do.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::SystemTime;

use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::batch::{BatchBuilder, Batches, EndTxnMarker, end_txn_marker_batch};
use segvault_kafka_log::names::LOG_START_CHECKPOINT;
use segvault_kafka_log::transactions::{TransactionLogValue, TransactionPartitions, encode_key};
use segvault_kafka_log::wire::Message;
use segvault_proto::{
    Command, EventsRequest, LogPosition, Prepared, ReplicaSample, Report, TransactionState, TransactionsRequest,
};
use segvault_vault_format::ids::PointId;

use super::pin::{Outcome, Pinner, sample};
use super::spill::Spill;
use super::survey::{Replica, Survey};
use crate::agent::{Agent, AgentOptions};
use crate::node::Node;
use crate::pinned::{CopiedBytes, FileIdentity, Pin, PinnedReplica, PinnedSegment};
use crate::staging::Staging;
use crate::testing::{TestLog, TestNode};

fn replica_of(log: &TestLog, high_watermark: i64) -> Replica {
    let name = log.dir.file_name().unwrap().to_str().unwrap();
    let (topic, partition) = name.rsplit_once('-').unwrap();
    Replica {
        partition: TopicPartition::new(topic, partition.parse().unwrap()),
        log_dir: 0,
        dir: log.dir.clone(),
        high_watermark,
        log_start: None,
        twin: None,
    }
}

fn pin(log: &TestLog, high_watermark: i64, closed_only: bool) -> Outcome<(PinnedReplica, ReplicaSample)> {
    let log_dir = log.dir.parent().unwrap().to_owned();
    let staging = Staging::open(&[log_dir], None).unwrap();
    let spill = Spill::new(staging.folder(0).into());
    let pinner = Pinner { staging: &staging, spill: &spill, known: &|_, _, _, _, _| false, closed_only };
    pinner.pin(&replica_of(log, high_watermark), None).unwrap()
}

fn pinned(log: &TestLog, high_watermark: i64, closed_only: bool) -> PinnedReplica {
    match pin(log, high_watermark, closed_only) {
        Outcome::Done((replica, sample)) => {
            assert_eq!(replica.position, sample.position);
            replica
        }
        other => panic!("{other:?}"),
    }
}

fn sampled(log: &TestLog) -> ReplicaSample {
    match sample(&replica_of(log, 0)).unwrap() {
        Outcome::Done((sample, _)) | Outcome::Unusable(sample) => sample,
        Outcome::Gone => panic!("gone"),
    }
}

#[test]
fn a_known_end_holds_until_something_is_appended_or_rolled() {
    let node = TestNode::new();
    let log = node.log("t", 0).batches(3);
    let known = || match sample(&replica_of(&log, 0)).unwrap() {
        Outcome::Done((_, known)) => known,
        other => panic!("{other:?}"),
    };
    assert!(!known().holds(&replica_of(&log, 0)), "a change in the same step of the clock would not show");
    let rest = |path: &Path| File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    rest(&log.segment(0));
    rest(&log.dir);
    let settled = known();
    assert!(settled.holds(&replica_of(&log, 0)));
    log.write("00000000000000000003.log", "");
    assert!(!settled.holds(&replica_of(&log, 0)), "it rolled");
    rest(&log.segment(3));
    rest(&log.dir);
    let settled = known();
    assert!(settled.holds(&replica_of(&log, 0)));
    log.write("00000000000000000003.log", "a batch");
    assert!(!settled.holds(&replica_of(&log, 0)), "something was appended");
}

fn bytes_of(segment: &PinnedSegment) -> Vec<u8> {
    let mut bytes = vec![0; segment.len as usize];
    segment.open().unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// The base offsets of all batches, each CRC-checked.
fn offsets_of(replica: &PinnedReplica) -> Vec<i64> {
    let mut offsets = Vec::new();
    for segment in &replica.segments {
        for batch in Batches::new(&bytes_of(segment)) {
            let (_, batch) = batch.unwrap();
            batch.check_crc().unwrap();
            offsets.push(batch.base_offset());
        }
    }
    offsets
}

fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        paths.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            paths.extend(tree(&entry.path()));
        }
    }
    paths.sort();
    paths
}

fn prepare(agent: &mut Agent, closed_only: bool) -> Prepared {
    let point = PointId { cluster_id: "test".into(), number: 5 };
    match agent.answer(Command::Prepare { point, base_number: 0, closed_only }).unwrap() {
        Report::Prepared(prepared) => prepared,
        other => panic!("{other:?}"),
    }
}

fn pinned_by(agent: &mut Agent, command: Command) -> Vec<(String, i64)> {
    let (Report::Pinned(samples) | Report::Sealed { replicas: samples, .. }) = agent.answer(command).unwrap() else {
        panic!("nothing was pinned");
    };
    let mut ends: Vec<_> = samples
        .into_iter()
        .map(|sample| (format!("{}-{}", sample.topic, sample.partition), sample.position.end_offset))
        .collect();
    ends.sort();
    ends
}

#[test]
fn a_log_ends_behind_its_last_whole_batch() {
    let node = TestNode::new();
    let whole = BatchBuilder::new(12, 0).record(1, None, Some(&[1; 500])).build();
    let cases: [(&str, TestLog, i64); 7] = [
        ("empty", node.log("empty", 0), 0),
        ("one segment", node.log("one", 0).batches(12), 12),
        ("nothing rolled into the tail yet", node.log("rolled", 0).batches(12).roll(), 12),
        ("torn header", node.log("header", 0).batches(12).torn(&whole[..40]), 12),
        ("torn records", node.log("records", 0).batches(12).torn(&whole[..300]), 12),
        ("preallocated", node.log("zeros", 0).batches(12).torn(&[0; 100_000]), 12),
        ("a few zeros", node.log("few", 0).batches(12).torn(&[0; 5]), 12),
    ];
    for (what, log, end_offset) in cases {
        let sample = sampled(&log);
        assert_eq!((sample.position, sample.unusable), (LogPosition { last_epoch: 0, end_offset }, None), "{what}");
        assert_eq!(pinned(&log, 0, false).position.end_offset, end_offset, "{what}");
    }
}

#[test]
fn damage_at_the_end_makes_a_replica_unusable() {
    let node = TestNode::new();
    let mut flipped = BatchBuilder::new(12, 0).record(1, None, Some(&[1; 500])).build();
    *flipped.last_mut().unwrap() ^= 1;
    let mut legacy = BatchBuilder::new(12, 0).record(1, None, Some(&[1; 500])).build();
    legacy[16] = 1;
    let again = BatchBuilder::new(3, 0).record(1, None, Some(&[1; 500])).build();
    let cases = [
        (node.log("flipped", 0).batches(12).torn(&flipped), "crc"),
        (node.log("legacy", 0).batches(12).torn(&legacy), "magic 1"),
        (node.log("garbage", 0).batches(12).torn(&[0xff; 100]), "unknown batch magic"),
        (node.log("again", 0).batches(12).torn(&again), "offset 3 follows offset 12"),
    ];
    for (log, part) in cases {
        let reason = sampled(&log).unusable.unwrap();
        assert!(reason.contains(part) && reason.contains(".log"), "{reason}");
        assert!(matches!(pin(&log, 0, false), Outcome::Unusable(_)));
    }
}

#[test]
fn index_entries_are_hints_and_nothing_more() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(3000);
    let index = log.segment(0).with_extension("index");
    let good = fs::read(&index).unwrap();
    assert!(good.len() > 512 * 8, "more entries than one look takes in");
    let mut preallocated = good.clone();
    preallocated.resize(10 << 20, 0);
    let mut beyond = good.clone();
    beyond.extend([0, 0, 0x0c, 0, 0x7f, 0, 0, 0]);
    let mut between = good.clone();
    let last = between.len() - 1;
    between[last] ^= 1;
    for bytes in [good, preallocated, beyond, between, vec![0xff; 800], vec![1; 3], Vec::new()] {
        fs::write(&index, bytes).unwrap();
        assert_eq!(sampled(&log).position.end_offset, 3000);
        let replica = pinned(&log, 2990, false);
        let copy = replica.segments[0].copy.as_ref().unwrap();
        let bytes = bytes_of(&replica.segments[0]);
        let (_, batch) = Batches::new(&bytes[copy.start as usize..]).next().unwrap().unwrap();
        assert_eq!(batch.base_offset(), 2990);
    }
}

#[test]
fn the_newest_epoch_is_the_history_s_or_the_last_batch_s() {
    let node = TestNode::new();
    let elected = node.log("elected", 0).batches(3).epoch(4);
    assert_eq!(sampled(&elected).position, LogPosition { last_epoch: 4, end_offset: 3 });
    let written = node.log("written", 0).batches(3).epoch(4).batches(1);
    written.write("leader-epoch-checkpoint", "0\n1\n0 0\n");
    assert_eq!(sampled(&written).position, LogPosition { last_epoch: 4, end_offset: 4 });
    let rolled = node.log("rolled", 0).batches(3).epoch(6).batches(1).roll();
    rolled.write("leader-epoch-checkpoint", "");
    assert_eq!(sampled(&rolled).position, LogPosition { last_epoch: 6, end_offset: 4 });
}

/// A follower that diverged truncates in place: our links see it.
#[test]
fn copied_bytes_survive_a_truncation_of_the_linked_files() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(10).roll().batches(10).roll().batches(10);
    let replica = pinned(&log, 14, false);
    let copied: Vec<_> = replica.segments.iter().map(|segment| segment.copy.as_ref().map(|copy| copy.start)).collect();
    let batch_len = replica.segments[0].len / 10;
    assert_eq!(copied, [None, Some(4 * batch_len), Some(0)], "from the high watermark on");
    log.truncate(10, 4 * batch_len);
    log.truncate(20, 0);
    assert_eq!(offsets_of(&replica), (0..30).collect::<Vec<_>>());
    // Below the high watermark nothing is truncated; should it be, reading fails instead of giving other bytes.
    log.truncate(0, 10);
    assert!(replica.segments[0].open().unwrap().read_exact_at(&mut [0; 20], 0).is_err());
}

#[test]
fn long_copies_are_spilled_and_leave_nothing_behind() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(1500);
    let replica = pinned(&log, 0, false);
    let copy = replica.segments[0].copy.as_ref().unwrap();
    assert!(matches!(copy.bytes, CopiedBytes::Spilled { .. }));
    log.truncate(0, 0);
    assert_eq!(offsets_of(&replica).len(), 1500);
    assert_eq!(node.pins().len(), 1);
    drop(replica);
    assert!(node.pins().is_empty());
    assert_eq!(tree(&node.path(".segvault-logs")).len(), 2, "the lock and the folder of pins");
}

#[test]
fn a_capture_of_closed_segments_ends_with_the_last_of_them() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(10).roll().batches(5).roll().batches(3);
    let replica = pinned(&log, 18, true);
    assert_eq!((replica.position.end_offset, replica.segments.len()), (15, 2));
    assert_eq!(offsets_of(&replica), (0..15).collect::<Vec<_>>());
    let never_rolled = node.log("young", 0).batches(10);
    let replica = pinned(&never_rolled, 10, true);
    assert_eq!((replica.position.end_offset, replica.segments[0].len), (0, 0));
}

#[test]
fn known_files_are_not_linked() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(10).roll().batches(5);
    let identity = FileIdentity::of(&fs::metadata(log.segment(0)).unwrap());
    let staging = Staging::open(&[node.path("logs")], None).unwrap();
    let spill = Spill::new(staging.folder(0).into());
    let known = |_, _, base: i64, len: u64, found: &FileIdentity| base == 0 && *found == identity && len == found.size;
    let pinner = Pinner { staging: &staging, spill: &spill, known: &known, closed_only: false };
    let Outcome::Done((replica, _)) = pinner.pin(&replica_of(&log, 0), None).unwrap() else { panic!() };
    assert!(matches!(replica.segments[0].pin, Pin::Known) && replica.segments[0].copy.is_none());
    assert!(matches!(replica.segments[1].pin, Pin::Link(..)));
    assert_eq!(FileIdentity::of(&fs::metadata(log.segment(0)).unwrap()), identity);
}

#[test]
fn the_newest_readable_producer_snapshot_is_taken() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(10).roll().batches(5);
    let empty = segvault_kafka_log::producer::ProducerSnapshot::default().encode();
    log.write("00000000000000000010.snapshot", &empty);
    log.write("00000000000000000014.snapshot", &empty[..7]);
    log.write("00000000000000000099.snapshot", &empty);
    assert_eq!(pinned(&log, 0, false).producer_snapshot, Some((10, empty)));
}

#[test]
fn swaps_that_never_end_make_a_replica_unusable_and_unlink_everything() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(10).roll().batches(5);
    log.write("00000000000000000000.log.swap", "");
    let Outcome::Unusable(sample) = pin(&log, 15, false) else { panic!("it was pinned") };
    assert!(sample.unusable.unwrap().contains("compaction"));
    assert!(node.pins().is_empty());
}

#[test]
fn phases_pin_effects_before_causes_and_ignore_what_is_no_partition() {
    let node = TestNode::new();
    let progress = [("__consumer_offsets", 3), ("connect-offsets", 0)];
    let others = [("orders", 0), ("orders", 1), ("__transaction_state", 7), ("_schemas", 0)];
    for (topic, partition) in progress.into_iter().chain(others) {
        node.log(topic, partition).batches(4);
    }
    let hex = "0123456789abcdef0123456789abcdef";
    for suffix in ["delete", "future", "stray"] {
        TestLog::create(&node.path("logs"), &format!("gone-0.{hex}-{suffix}")).batches(4);
    }
    fs::create_dir(node.path("logs/lost+found")).unwrap();
    let before = tree(&node.path("logs"));

    let mut agent = node.agent();
    let prepared = prepare(&mut agent, false);
    assert_eq!((prepared.replicas, prepared.metadata), (6, None));
    assert_eq!(prepared.warnings.len(), 2, "the stray and the foreign one: {:?}", prepared.warnings);
    let Report::Marked(marked) = agent.answer(Command::Mark).unwrap() else { panic!() };
    assert_eq!((marked.len(), marked[0].partition, marked[0].position.end_offset), (1, 7, 4));
    let pinned = pinned_by(&mut agent, Command::PinProgress);
    assert_eq!(pinned, [("__consumer_offsets-3".into(), 4), ("connect-offsets-0".into(), 4)]);
    assert_eq!(pinned_by(&mut agent, Command::PinData), [("orders-0".into(), 4), ("orders-1".into(), 4)]);
    assert_eq!(pinned_by(&mut agent, Command::Seal), [("__transaction_state-7".into(), 4), ("_schemas-0".into(), 4)]);
    assert_eq!(node.pins().len(), 6);
    assert_eq!(tree(&node.path("logs")), before, "nothing is created in a log dir");
    agent.answer(Command::Release { committed: false }).unwrap();
    assert!(node.pins().is_empty());
    assert!(agent.answer(Command::PinData).is_err(), "nothing is prepared");
}

#[test]
fn an_agent_that_was_killed_leaves_nothing_for_long() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(4);
    let mut agent = node.agent();
    prepare(&mut agent, false);
    agent.answer(Command::PinData).unwrap();
    // A kill runs no destructors.
    let orphan = node.path(".segvault-logs/pins/999.log");
    fs::hard_link(log.segment(0), orphan).unwrap();
    drop(agent);
    assert_eq!(fs::metadata(log.segment(0)).unwrap().nlink(), 2);
    let _agent = node.agent();
    assert_eq!(fs::metadata(log.segment(0)).unwrap().nlink(), 1);
}

#[test]
fn only_data_topics_are_cut_at_closed_segments() {
    let node = TestNode::new();
    node.log("orders", 0).batches(4).roll().batches(2);
    node.log("__consumer_offsets", 0).batches(4).roll().batches(2);
    // What Connect has done is in such topics.
    node.log("connect-offsets", 0).batches(4).roll().batches(2);
    let mut agent = node.agent();
    prepare(&mut agent, true);
    let pinned = pinned_by(&mut agent, Command::PinProgress);
    assert_eq!(pinned, [("__consumer_offsets-0".into(), 6), ("connect-offsets-0".into(), 4)]);
    assert_eq!(pinned_by(&mut agent, Command::PinData)[0].1, 4);
}

#[test]
fn a_partition_in_two_log_dirs_is_no_source() {
    let node = TestNode::with_log_dirs(&["logs", "more"]);
    node.log("orders", 0).batches(4);
    TestLog::create(&node.path("more"), "orders-0").batches(6);
    let mut agent = node.agent();
    prepare(&mut agent, false);
    let Report::Pinned(samples) = agent.answer(Command::PinData).unwrap() else { panic!() };
    assert!(samples[0].unusable.as_ref().unwrap().contains("two log dirs"), "{samples:?}");
}

#[test]
fn a_deleted_partition_is_dropped_and_one_without_topic_id_is_named() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(4);
    let hidden = node.log("hidden", 0).batches(4);
    fs::remove_file(hidden.dir.join("partition.metadata")).unwrap();
    assert!(sampled(&hidden).unusable.unwrap().contains("partition.metadata"));
    fs::rename(&log.dir, log.dir.with_extension("0123456789abcdef0123456789abcdef-delete")).unwrap();
    assert!(matches!(pin(&log, 0, false), Outcome::Gone));
}

#[test]
fn checkpoints_say_where_a_log_starts_and_damaged_ones_are_warned_of() {
    let node = TestNode::new();
    node.log("orders", 0).batches(10);
    fs::write(node.path("logs").join(LOG_START_CHECKPOINT), "0\n1\norders 0 6\n").unwrap();
    node.high_watermarks(&[("orders", 0, 12)]);
    let mut agent = node.agent();
    let warnings = prepare(&mut agent, false).warnings;
    assert!(warnings[0].contains("below its checkpointed high watermark 12"), "{warnings:?}");
    let Report::Pinned(samples) = agent.answer(Command::PinData).unwrap() else { panic!() };
    assert_eq!(samples[0].log_start_offset, 6);
    fs::write(node.path("logs").join(LOG_START_CHECKPOINT), "0\n1\n\n").unwrap();
    let warnings = prepare(&mut agent, false).warnings;
    assert!(warnings.iter().any(|warning| warning.contains(LOG_START_CHECKPOINT)), "{warnings:?}");
}

#[test]
fn events_are_found_only_behind_the_prepared_end() {
    let node = TestNode::new();
    let log = node.log("orders", 0).batches(3).batch_of(7, 1).roll().batch_of(8, 0);
    let mut agent = node.agent();
    prepare(&mut agent, false);
    let marker = |offset, epoch| {
        end_txn_marker_batch(offset, 0, 1, 8, epoch, EndTxnMarker { commit: true, coordinator_epoch: 0 })
    };
    // Offsets 5..: another producer, then a marker of 8 with the next epoch, in another segment data of 7.
    let log = log.batch_of(9, 0).append(&marker(6, 1)).roll().batch_of(7, 1);
    assert_eq!(log.next, 8);
    agent.answer(Command::Probe).unwrap();
    let log = log.batch_of(9, 0);
    assert_eq!(log.next, 9);
    agent.answer(Command::PinData).unwrap();
    for (producer_ids, expected) in [
        (vec![7], vec![(7, false)]),
        (vec![8], vec![(6, true)]),
        // Of two data batches without a marker between them the first one says it all.
        (vec![7, 9], vec![(5, false), (7, false)]),
        (vec![10], vec![]),
    ] {
        let request = EventsRequest { topic: "orders".into(), partition: 0, producer_ids: producer_ids.clone() };
        let answer = agent.answer(Command::FindEvents(vec![request])).unwrap();
        let Report::Events { events: found, .. } = answer else { panic!() };
        let events: Vec<_> = found[0].events.iter().map(|event| (event.offset, event.is_marker)).collect();
        assert_eq!(events, expected, "{producer_ids:?}");
        assert_eq!(found[0].probes, [Some(LogPosition { last_epoch: 0, end_offset: 8 })]);
    }
    let elsewhere = EventsRequest { topic: "orders".into(), partition: 1, producer_ids: vec![7] };
    assert!(agent.answer(Command::FindEvents(vec![elsewhere])).is_err());
}

#[test]
fn the_transaction_log_is_replayed_around_the_mark() {
    let node = TestNode::new();
    let record = |offset, id: &str, producer_id, status, partitions: &[i32]| {
        let value = TransactionLogValue {
            producer_id,
            producer_epoch: 2,
            transaction_status: status,
            transaction_partitions: Some(vec![TransactionPartitions {
                topic: "orders".into(),
                partition_ids: partitions.to_vec(),
                ..Default::default()
            }]),
            ..Default::default()
        };
        BatchBuilder::new(offset, 0).record(1, Some(&encode_key(id)), Some(&value.encode_prefixed())).build()
    };
    node.log("__transaction_state", 0)
        .append(&record(0, "a", 1, 1, &[0]))
        .append(&record(1, "b", 2, 1, &[4]))
        .append(&record(2, "a", 1, 2, &[0, 1]))
        .roll()
        .append(&record(3, "a", 1, 4, &[]))
        .append(&BatchBuilder::new(4, 0).record(1, Some(&encode_key("b")), None).build());
    let mut agent = node.agent();
    prepare(&mut agent, false);
    agent.answer(Command::Seal).unwrap();
    let request = TransactionsRequest { partition: 0, first_mark_offset: 3 };
    let Report::Transactions { copies, .. } = agent.answer(Command::ReadTransactions(vec![request])).unwrap() else {
        panic!()
    };
    let copy = &copies[0];
    let last: Vec<_> = copy.at_first.iter().map(|record| (record.transactional_id.as_str(), record.state)).collect();
    assert_eq!(last, [("a", Some(TransactionState::PrepareCommit)), ("b", Some(TransactionState::Ongoing))]);
    assert_eq!(copy.at_first[0].partitions, [("orders".into(), 0), ("orders".into(), 1)]);
    let window: Vec<_> = copy.records.iter().map(|record| (record.offset, record.state)).collect();
    assert_eq!(window, [(3, Some(TransactionState::CompleteCommit)), (4, None)]);
    assert_eq!(copy.max_producer_id, 2);
}

/// A log dir that is a mount point has nothing beside it on its file system.
#[test]
fn files_of_a_mount_root_are_held_open() {
    let root = tempfile::tempdir().unwrap();
    let mount = root.path().join("logs");
    fs::create_dir(&mount).unwrap();
    let mounted = Process::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount).output();
    if !mounted.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: files_of_a_mount_root_are_held_open may not mount: {mounted:?}");
        return;
    }
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Process::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let _unmount = Unmount(&mount);
    let node = TestNode::at(root.path(), &["logs"], None);
    let log = node.log("orders", 0).batches(4).roll().batches(2);
    let replica = pinned(&log, 4, false);
    assert!(replica.segments.iter().all(|segment| matches!(segment.pin, Pin::Descriptor(..))));
    fs::remove_file(log.segment(0)).unwrap();
    log.truncate(4, 0);
    assert_eq!(offsets_of(&replica), (0..6).collect::<Vec<_>>());
}

#[test]
fn staging_on_another_file_system_falls_back_to_descriptors() {
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: staging_on_another_file_system_falls_back_to_descriptors needs /dev/shm");
        return;
    };
    let node = TestNode::new();
    node.log("orders", 0).batches(4).roll().batches(2);
    let options = AgentOptions { staging: Some(other.path().join("staging")), ..TestNode::options() };
    let mut agent = Agent::open(Node::open(&node.config()).unwrap(), &options).unwrap();
    prepare(&mut agent, false);
    assert_eq!(pinned_by(&mut agent, Command::PinData), [("orders-0".into(), 6)]);
    let pins = tree(other.path()).into_iter().filter(|path| path.extension().is_some_and(|e| e == "log"));
    assert_eq!(pins.count(), 0);
}

#[test]
fn a_survey_reads_checkpoints_before_it_lists() {
    let node = TestNode::new();
    node.log("orders", 0).batches(10);
    node.high_watermarks(&[("orders", 0, 8), ("deleted", 0, 3)]);
    let survey = Survey::read(&[node.path("logs"), node.path("absent")]);
    assert_eq!((survey.replicas.len(), survey.replicas[0].high_watermark), (1, 8));
    assert!(survey.problems.iter().any(|problem| problem.contains("absent")));
}
