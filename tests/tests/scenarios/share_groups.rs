//! A share group (KIP-932) that had come further than the point has: what it acknowledged beyond the end must not be taken
//! for done when other records come to lie there, nor must it wait for the log to grow that far again.

use segvault_tests::{Cluster, segvault::Segvault};
use std::{
    fs::{self, File},
    path::Path,
};

/// The newest release; since 4.2 share groups are there without more ado.
const KAFKA: &str = "4.3.0";

#[test]
fn a_share_group_that_was_ahead_of_the_point_gets_what_is_written_next() {
    let coordinator = |name: &str| format!("share.coordinator.state.topic.{name}");
    let cluster = Cluster::builder()
        .version(KAFKA)
        .brokers(1)
        .set(&coordinator("num.partitions"), 3)
        .set(&coordinator("replication.factor"), 1)
        .set(&coordinator("min.isr"), 1)
        .start()
        .unwrap();
    cluster.create_topic("queue", 1, &[]).unwrap();
    // The start offset is written with the next acknowledgement: it will be 20, and 20 to 24 acknowledged.
    let before = ["produce queue 0 20", "share workers queue 20", "produce queue 20 5", "share workers queue 5"];
    let got = cluster.java_share(&before).unwrap();
    assert_eq!(got.split_whitespace().count(), 25, "{got}");
    cluster.stop().unwrap();
    // As a cut would: of the records a few are left, of the group's state all is.
    let (_, queue) = cluster.replica_dirs("queue", 0).unwrap().swap_remove(0);
    keep_batches(&queue.join("00000000000000000000.log"), 10);

    let segvault = Segvault::init(&cluster.scratch().join("vault")).unwrap();
    let taken = segvault.run_on(&cluster, &cluster.nodes(), &["snapshot", "create"]).unwrap();
    // The broker had checkpointed a high watermark of 25: degraded.
    assert_eq!(taken.code, 3, "{taken:?}");
    let number = taken.json["number"].to_string();
    let proof = segvault.prove(&number).unwrap();
    assert_eq!((&proof["share_partitions"], &proof["share_partitions_beyond"]), (&1.into(), &1.into()), "{proof}");
    cluster.wipe().unwrap();
    segvault.restore(&cluster, &number).unwrap();
    cluster.start().unwrap();

    let got = cluster.java_share(&["produce queue 100 5", "share workers queue 5"]).unwrap();
    assert_eq!(got.trim(), "100 101 102 103 104");
}

/// Cuts a segment behind its first batches; each has its length at byte 8.
fn keep_batches(segment: &Path, count: usize) {
    let bytes = fs::read(segment).unwrap();
    let mut end = 0;
    for _ in 0..count {
        end += 12 + u32::from_be_bytes(bytes[end + 8..end + 12].try_into().unwrap()) as usize;
    }
    File::options().write(true).open(segment).unwrap().set_len(end as u64).unwrap();
}
