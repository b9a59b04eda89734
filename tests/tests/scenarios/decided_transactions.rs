//! A transaction that is decided, and whose marker has not come everywhere as the point is taken. Kafka 4.3's transaction
//! coordinator, taking such a decision up, passes over partitions that have no leader at that moment and says that the
//! transaction is complete: a restore must not leave the markers to it.

use nix::sys::signal::Signal;
use rdkafka::{
    ClientConfig,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use segvault_tests::{
    Cluster, PATIENCE, broker_log,
    reader::{Isolation, read},
    segvault::Segvault,
    state::State,
};
use std::collections::BTreeSet;

const KAFKA: &str = "4.3.0";
const ID: &str = "pay";
/// Whose leaders are the coordinator, and twice the broker that is stopped.
const PARTITIONS: [(&str, i32); 3] = [("payments", 0), ("payments", 1), ("copies", 0)];

#[test]
fn what_is_decided_is_committed_where_no_leader_is_there_to_be_told() {
    let cluster = Cluster::builder()
        .version(KAFKA)
        .brokers(2)
        .separate_controllers(1)
        // A broker that is stopped soon leaves the in-sync sets, and goes on leading what it has alone.
        .set("replica.lag.time.max.ms", 1500)
        .set("broker.session.timeout.ms", 600_000)
        .set("transaction.state.log.num.partitions", 1)
        .set("transaction.state.log.min.isr", 1)
        .start()
        .unwrap();
    let producer: ThreadedProducer<DefaultProducerContext> =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap()).set("transactional.id", ID).create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    let coordinator = cluster.state().unwrap().partition("__transaction_state", 0).unwrap().leader;
    let other = cluster.brokers().into_iter().find(|broker| *broker != coordinator).unwrap();
    cluster.create_topic_on("payments", &[&[coordinator], &[other]], &[]).unwrap();
    cluster.create_topic_on("copies", &[&[other, coordinator]], &[("min.insync.replicas", "1")]).unwrap();
    producer.begin_transaction().unwrap();
    for (topic, partition) in PARTITIONS {
        producer.send(BaseRecord::<str, str>::to(topic).partition(partition).payload("10")).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    cluster.signal_node(other, Signal::SIGSTOP).unwrap();
    producer.commit_transaction(PATIENCE).unwrap();

    let segvault = Segvault::init(&cluster.scratch().join("vault")).unwrap();
    let point = segvault.snapshot(&cluster).unwrap();
    let told = ["state", "level", "commit_markers", "abort_markers"].map(|name| point[name].to_string());
    assert_eq!(told, ["\"complete\"", "\"L3\"", "2", "0"], "{point}");
    let number = point["number"].to_string();
    segvault.prove(&number).unwrap();
    drop(producer);
    cluster.kill9().unwrap();
    cluster.wipe().unwrap();
    segvault.restore(&cluster, &number).unwrap();

    // A partition has no leader until its coordinator has said that all is done. Another has one, and gets the marker once
    // more.
    let first: Vec<i32> = cluster.nodes().into_iter().filter(|node| *node != other).collect();
    cluster.start_nodes(&first).unwrap();
    let is_complete = |state: &State| state.transactions.get(ID).is_some_and(|state| state == "CompleteCommit");
    let state = cluster.wait_for("the transaction is complete", is_complete).unwrap();
    assert_eq!(state.partition("payments", 1).unwrap().leader, -1);
    cluster.start_nodes(&[other]).unwrap();
    let is_healthy = |state: &State| state.partitions().all(|(_, _, partition)| partition.is_healthy());
    let state = cluster.wait_for("all replicas are in sync", is_healthy).unwrap();
    for ((topic, index), end) in PARTITIONS.into_iter().zip([3, 2, 3]) {
        let partition = state.partition(topic, index).unwrap();
        assert_eq!((partition.end, partition.stable, partition.open), (end, end, 0), "{topic}-{index}");
    }
    let mut committed = BTreeSet::new();
    let partitions = PARTITIONS.map(|(topic, partition)| (topic.to_owned(), partition));
    read(&cluster.bootstrap(), Isolation::Committed, &partitions, |topic, partition, seen| {
        committed.insert((topic.to_owned(), partition, seen.offset));
    })
    .unwrap();
    assert_eq!(committed, partitions.into_iter().map(|(topic, partition)| (topic, partition, 0)).collect());
    assert_eq!(broker_log::examine_all(&cluster).unwrap(), []);
}
