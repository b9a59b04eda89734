//! The harness is tried on itself: a cluster that nothing happened to passes the audit, and each kind of loss is seen.

use segvault_tests::{
    Cluster,
    audit::{Audit, Options, audit},
    ledger::{History, Ledger, Outcome},
    state::State,
    workload::{self, Workload},
};
use std::{fs, path::PathBuf, thread::sleep, time::Duration};

#[test]
fn a_cluster_that_was_stopped_and_started_passes_the_audit_and_every_kind_of_loss_is_seen() {
    let cluster = Cluster::builder().log_dirs(2).start().unwrap();
    let ledger = Ledger::open(cluster.scratch().join("ledger")).unwrap();
    workload::set_up(&cluster).unwrap();
    let mut workload = Workload::start(&cluster, &ledger, workload::Options { java: true, ..Default::default() });
    workload::wait_for_work(&ledger, || workload.check()).unwrap();
    let before = cluster.state().unwrap();
    ledger.mark("point");
    sleep(Duration::from_secs(2));
    workload.stop().unwrap();
    let after = cluster.state().unwrap();
    cluster.stop().unwrap();
    cluster.start().unwrap();
    let quick = Options { clients: false, logs: false, ..Options::default() };
    let run = |history: &History, before: &State| audit(&cluster, history, before, before, quick).unwrap();
    let history = || ledger.history().unwrap();
    let seen = |outcome: &Audit, row: &str| {
        assert!(outcome.count(row) > 0 && !outcome.passed(), "the auditor missed: {row}\n{outcome}");
    };

    // Forged promises stand for what a restore might have lost: each is something the cluster does not hold.
    let mut forged = history();
    let events = forged.records.get_mut(&("events".to_owned(), 0)).unwrap();
    let (_, lost) = events.pop_first().unwrap();
    events.insert(i64::MAX, lost);
    events.first_entry().unwrap().get_mut().hash ^= 1;
    // Of a topic that is not compacted, so that what it wrote is there.
    let mut of_java = forged.transactions.values_mut().filter(|transaction| transaction.id == "java-payments");
    of_java.find(|t| matches!(t.outcome, Outcome::Aborted(_))).unwrap().outcome = Outcome::Committed(0);
    let mut of_java = forged.transactions.values_mut().filter(|transaction| transaction.id == "java-payments");
    of_java.find(|t| matches!(t.outcome, Outcome::Committed(at) if at > 0)).unwrap().outcome = Outcome::Aborted(0);
    forged.commits.push((0, ("readers-1".to_owned(), "events".to_owned(), 0), i64::MAX));
    let mut other = before.clone();
    other.topics.get_mut("table").unwrap().configs.insert("segment.ms".to_owned(), "1".to_owned());
    other.acls.pop();
    let outcome = run(&forged, &other);
    for row in [
        "records lost",
        "records changed",
        "transactions torn or lost",
        "transactions visible that never committed",
        "group offsets behind",
    ] {
        assert_eq!(outcome.count(row), 1, "{row}\n{outcome}");
    }
    assert_eq!(outcome.count("topics, configs, ACLs, users or quotas changed"), 2, "{outcome}");

    let outcome = audit(&cluster, &history(), &before, &after, Options::default()).unwrap();
    println!("{outcome}");
    outcome.assert_passed();
    for (row, least) in [
        ("found at their offset", 5000),
        ("transactions committed before the point", 50),
        ("inputs processed by the loop", 300),
        ("consumer groups", 3),
    ] {
        assert!(outcome.count(row) >= least, "the audit saw too little to prove anything: {row}\n{outcome}");
    }

    // And two real ones. A restore that forgets one kind of side file, the index of aborted transactions: Kafka starts
    // without a word, and readers see what never was.
    cluster.stop().unwrap();
    for (topic, partitions) in workload::TRANSACTIONAL_TOPICS {
        for path in (0..partitions).flat_map(|partition| files(&cluster, topic, partition, "txnindex")) {
            fs::remove_file(path).unwrap();
        }
    }
    cluster.start().unwrap();
    seen(&run(&history(), &before), "transactions visible that never committed");

    // Half of each segment is gone from disk, on all replicas. Kafka starts without a word.
    cluster.stop().unwrap();
    for path in files(&cluster, "events", 0, "log") {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
    for node in cluster.nodes() {
        for dir in cluster.log_dirs(node).unwrap() {
            fs::remove_file(dir.join(".kafka_cleanshutdown")).unwrap();
        }
    }
    cluster.start().unwrap();
    let outcome = audit(&cluster, &history(), &before, &after, Options { logs: true, ..quick }).unwrap();
    seen(&outcome, "records lost");
    seen(&outcome, "broker logs: recovery");
}

/// All replicas' files with this extension.
fn files(cluster: &Cluster, topic: &str, partition: i32, extension: &str) -> Vec<PathBuf> {
    let dirs = cluster.replica_dirs(topic, partition).unwrap();
    let files = dirs.iter().flat_map(|(_, dir)| fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}
