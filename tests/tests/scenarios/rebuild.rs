//! A cluster is lost while clients write to it, and rebuilt from its last restore point.

use segvault_tests::{
    Cluster,
    audit::{Audit, Options, audit},
    cluster::Builder,
    ledger::Ledger,
    segvault::{Segvault, configs},
    state::{Partition, State},
    workload::{self, Clients},
};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

/// What happens to the cluster at some moment of a story.
type Deed<'a> = &'a dyn Fn(&Cluster);

/// A loss and a rebuild. The workload runs all the time until the loss.
struct Story<'a> {
    cluster: Builder,
    /// Before the point begins; the workload has been at work for some seconds.
    before: Deed<'a>,
    /// The cluster is killed before the point, not after it.
    killed_before: bool,
    /// Nodes that the point is taken from; all if empty.
    nodes: &'a [i32],
    /// Between the point and the restore, on the dead cluster's vault.
    rehearse: &'a dyn Fn(&Cluster, &Segvault),
    /// The restore follows a plan that was saved in the vault.
    by_plan: bool,
    /// A node that comes later than the others after the restore.
    late: Option<i32>,
    /// Nothing is asked after records of partitions that only this node had.
    only_on: Option<i32>,
}

impl Default for Story<'_> {
    fn default() -> Self {
        Self {
            cluster: Cluster::builder(),
            before: &|_| {},
            killed_before: false,
            nodes: &[],
            rehearse: &|_, _| {},
            by_plan: false,
            late: None,
            only_on: None,
        }
    }
}

impl Story<'_> {
    /// Plays the story: the rebuilt cluster (whose files are kept if what follows fails), its audit, and what was said of
    /// the point.
    fn play(self) -> (Cluster, Audit, Value) {
        let cluster = self.cluster.start().unwrap();
        let ledger = Ledger::open(cluster.scratch().join("ledger")).unwrap();
        let segvault = Segvault::init(&cluster.scratch().join("vault")).unwrap();
        workload::set_up(&cluster).unwrap();
        let rig = Path::new(env!("CARGO_BIN_EXE_segvault-rig"));
        let mut clients = Clients::start(rig, &cluster, &cluster.scratch().join("ledger")).unwrap();
        workload::wait_for_work(&ledger, || clients.check()).unwrap();

        let all = cluster.nodes();
        let nodes = if self.nodes.is_empty() { &all } else { self.nodes };
        let before = cluster.state().unwrap();
        (self.before)(&cluster);
        clients.check().unwrap();
        if self.killed_before {
            cluster.kill9().unwrap();
        }
        ledger.mark("point");
        let taken = segvault.run_on(&cluster, nodes, &["snapshot", "create"]).unwrap();
        // Exit code 3: degraded. Whether it may be is judged later.
        assert!(taken.code == 0 || taken.code == 3, "{taken:?}");
        let point = taken.json;
        sleep(Duration::from_secs(2)); // More is written that no restore can know of.

        clients.check().unwrap();
        cluster.kill9().unwrap();
        drop(clients);
        cluster.wipe().unwrap();
        (self.rehearse)(&cluster, &segvault);
        let number = point["number"].to_string();
        let proof = segvault.prove(&number).unwrap();
        assert!(proof["transactional_ids"].as_u64() >= Some(4), "too little to prove anything: {proof}");
        let restore = if self.by_plan { Segvault::restore_by_plan } else { Segvault::restore };
        restore(&segvault, &cluster, &number).unwrap();
        if let Some(late) = self.late {
            start_without(&cluster, late);
        }
        cluster.start().unwrap();
        let mut history = ledger.history().unwrap();
        history.records.retain(|(topic, partition), _| {
            let replicas = before.partition(topic, *partition).map(|partition| partition.replicas.as_slice());
            self.only_on.is_none_or(|node| replicas != Some(&[node]))
        });
        let outcome = audit(&cluster, &history, &before, &before, Options::default()).unwrap();
        println!("{outcome}");
        (cluster, outcome, point)
    }

    /// The same, with everything as it should be.
    fn ends_well(self) {
        let (_cluster, outcome, point) = self.play();
        assert_eq!((&point["state"], &point["level"]), (&"complete".into(), &"L3".into()), "{point}");
        looks_right(&outcome);
    }

    /// The same without a broker: what only it has is named, and nothing else is missing.
    fn loses_only_what_no_other_broker_has(mut self, node: i32) {
        self.only_on = Some(node);
        let (_cluster, outcome, point) = self.play();
        let partitions = point["partitions"].as_array().unwrap();
        let uncovered: Vec<_> = partitions.iter().filter(|partition| partition["uncovered"].is_string()).collect();
        assert!(uncovered.iter().all(|partition| partition["topic"] == "single"), "{uncovered:?}");
        let state = if uncovered.is_empty() { "complete" } else { "degraded" };
        assert_eq!(point["state"], state, "{point}");
        looks_right(&outcome);
    }
}

/// Starts all nodes but one: where Kafka has eligible leaders, whatever is elsewhere too has a leader.
fn start_without(cluster: &Cluster, late: i32) {
    let others: Vec<i32> = cluster.nodes().into_iter().filter(|node| *node != late).collect();
    cluster.start_nodes(&others).unwrap();
    let has_leader = |partition: &Partition| partition.leader >= 0 || partition.replicas == [late];
    let is_up = |state: &State| {
        let has_elr = state.features.get("eligible.leader.replicas.version").is_some_and(|level| *level > 0);
        !has_elr || state.partitions().all(|(_, _, partition)| has_leader(partition))
    };
    cluster.wait_for("partitions have leaders", is_up).unwrap();
}

fn looks_right(outcome: &Audit) {
    outcome.assert_passed();
    for (row, least) in [
        ("found at their offset", 5000),
        ("transactions committed before the point", 50),
        ("inputs processed by the loop", 200),
        ("consumer groups", 3),
    ] {
        assert!(outcome.count(row) >= least, "the audit saw too little to prove anything: {row}\n{outcome}");
    }
}

/// The point is taken from two hosts, while the third is down, and restored to all three as one saved plan says. Another
/// one is late to start.
#[test]
fn one_broker_down_degrades_nothing() {
    Story {
        before: &|cluster| {
            cluster.kill9_nodes(&[3]).unwrap();
            // Its replicas leave the in-sync sets, and more is written without it.
            sleep(Duration::from_secs(12));
        },
        nodes: &[1, 2],
        by_plan: true,
        late: Some(2),
        ..Default::default()
    }
    .loses_only_what_no_other_broker_has(3);
}

/// No broker runs any more when the point is taken; controllers stand apart, and the quorum is dynamic. The restore is
/// killed again and again, each time a little later, and run again until it is done.
#[test]
fn a_cluster_that_was_killed_is_captured_as_it_lies_and_a_killed_restore_goes_on() {
    Story {
        cluster: Cluster::builder().separate_controllers(3).dynamic_quorum(),
        killed_before: true,
        rehearse: &|cluster, segvault| {
            let configs = configs(cluster, &cluster.nodes());
            let args: Vec<&str> = ["restore", "run"].into_iter().chain(configs.iter().map(String::as_str)).collect();
            for millis in [20, 60, 120, 200, 350] {
                let mut child = segvault.spawn(&args).unwrap();
                sleep(Duration::from_millis(millis));
                child.kill().unwrap();
                child.wait().unwrap();
                // A fast machine was done with some nodes before the kill: those are refused from then on, so they begin anew.
                let is_whole = |dir: &PathBuf| dir.join("meta.properties").exists();
                let mut nodes = cluster.nodes();
                nodes.retain(|node| cluster.log_dirs(*node).unwrap().iter().all(is_whole));
                if !nodes.is_empty() {
                    cluster.wipe_nodes(&nodes).unwrap();
                    break;
                }
            }
        },
        ..Default::default()
    }
    .ends_well();
}
