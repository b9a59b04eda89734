//! Agents and coordinator as processes of their own: what they do together, and what happens when one of them dies.

use segvault_tests::{
    Cluster, PATIENCE,
    audit::{self, audit},
    fleet::{Fleet, wait_for_end},
    from_environment, kills,
    ledger::Ledger,
    segvault::{Ended, Segvault},
    workload::{self, Clients},
};
use serde_json::Value;
use std::path::Path;

/// Rounds of random kills, unless `SEGVAULT_KILLS` says otherwise.
const KILLS: usize = 9;
/// The seed, unless `SEGVAULT_SEED` says otherwise.
const SEED: u64 = 20;

/// All agents come back to hosts whose disks are empty, and put back what a plan says; one of them is killed meanwhile.
fn restore_by_the_coordinator(fleet: &mut Fleet<'_>, segvault: &Segvault, point: &str) {
    let cluster = fleet.cluster();
    let nodes = cluster.nodes();
    for node in &nodes {
        fleet.start_agent(*node).unwrap();
    }
    fleet.wait_for_agents().unwrap();
    let is_vacant = |fleet: &Fleet<'_>, node: i32| {
        let status = fleet.status().unwrap();
        let agents = status["agents"].as_array().unwrap();
        agents.iter().any(|agent| agent["node_id"] == node && agent["connected"] == true && agent["vacant"] == true)
    };
    assert!(nodes.iter().all(|node| is_vacant(fleet, *node)));
    let ended = fleet.ask(&["snapshot", "create"]).unwrap();
    assert!(ended.error().contains("no agent of"), "there is nothing to capture: {ended:?}");

    // With all files: an agent may have been lost while the point was taken, and then the point does not know its node.
    let saved =
        segvault.run_on(cluster, &nodes, &["restore", "plan", "--save", "--point", point]).unwrap().ok().unwrap();
    let plan = saved["plan"].to_string();
    let ask = |fleet: &Fleet<'_>, verb: &str, options: &[&str]| {
        fleet.ask(&[&["restore", verb, "--plan", &plan], options].concat()).unwrap()
    };
    let states = |ended: &Ended| -> Vec<(i64, String)> {
        let nodes = ended.json["nodes"].as_array().unwrap_or_else(|| panic!("{ended:?}"));
        nodes.iter().map(|it| (it["node_id"].as_i64().unwrap(), it["state"].as_str().unwrap().to_owned())).collect()
    };
    let all = |state: &str| nodes.iter().map(|node| (i64::from(*node), state.to_owned())).collect::<Vec<_>>();

    let ended = ask(fleet, "run", &["--node", "77"]);
    assert!(ended.error().contains("node 77 is not in plan"), "{ended:?}");
    let ended = ask(fleet, "run", &["--dry-run"]);
    assert_eq!((ended.code, states(&ended)), (0, all("done")), "{ended:?}");
    let holds_nothing = |node: &i32| {
        let dirs = cluster.log_dirs(*node).unwrap();
        dirs.iter().all(|dir| std::fs::read_dir(dir).unwrap().next().is_none())
    };
    assert!(nodes.iter().all(holds_nothing), "a dry run writes nothing");

    // One node's agent dies as soon as it is told to restore; the others are restored all the same.
    let from = fleet.log_len("agent-2").unwrap();
    let asked = fleet.spawn_asking(&["restore", "run", "--plan", &plan]).unwrap();
    fleet.wait_for_line("agent-2", from, &["restore begins"]).unwrap();
    fleet.kill_agent(2);
    let ended = wait_for_end(asked, PATIENCE).unwrap();
    // It may have been done already.
    let expected: Vec<_> =
        all("done").into_iter().map(|it| if it.0 == 2 { (2, "failed".to_owned()) } else { it }).collect();
    assert!(states(&ended) == expected || states(&ended) == all("done"), "{ended:?}");
    assert_eq!(ended.code, i32::from(states(&ended) == expected), "{ended:?}");
    println!("the agent of node 2 was killed during its restore: exit code {}", ended.code);
    fleet.start_agent(2).unwrap();
    fleet.wait_for_agents().unwrap();
    let ended = ask(fleet, "run", &[]);
    assert_eq!((ended.code, states(&ended)), (0, all("done")), "{ended:?}");
    fleet.wait_for("no node is vacant", || nodes.iter().all(|node| !is_vacant(fleet, *node))).unwrap();
    let ended = ask(fleet, "verify", &[]);
    assert_eq!((ended.code, states(&ended)), (0, all("done")), "{ended:?}");
    let ended = fleet.ask(&["restore", "cancel"]).unwrap();
    assert!(ended.error().contains("no restore of cluster"), "{ended:?}");
    assert_eq!(fleet.pins().unwrap(), 0);
}

/// All agents look at their nodes while they take a point, which is committed all the same.
fn examine_beside_a_point(fleet: &Fleet<'_>) {
    let creating = fleet.spawn_asking(&["snapshot", "create"]).unwrap();
    let examined = fleet.ask(&["doctor"]).unwrap();
    assert_eq!((examined.code, &examined.json["ok"]), (0, &true.into()), "{examined:?}");
    let findings = examined.json["findings"].as_array().unwrap();
    for node in fleet.cluster().nodes() {
        for message in ["its broker is running", "answers"] {
            let says = |finding: &&Value| finding["message"].as_str().unwrap().contains(message);
            assert!(findings.iter().filter(says).any(|finding| finding["node_id"] == node), "{message}: {examined:?}");
        }
    }
    let created = wait_for_end(creating, PATIENCE).unwrap();
    assert_eq!(created.code, 0, "{created:?}");
    let one = fleet.ask(&["doctor", "--node", "2"]).unwrap().ok().unwrap();
    assert!(one["findings"].as_array().unwrap().iter().all(|finding| finding["node_id"] == 2), "{one}");
    let ended = fleet.ask(&["doctor", "--node", "77"]).unwrap();
    assert!(ended.code == 1 && ended.error().contains("no agent of the nodes [77]"), "{ended:?}");
}

/// The whole loop through the services, and in order: points, status, stop; the fleet's last point is restored.
#[test]
fn a_fleet_is_rebuilt_from_what_its_services_took_however_they_were_killed() {
    let cluster = Cluster::builder().start().unwrap();
    let ledger = Ledger::open(cluster.scratch().join("ledger")).unwrap();
    let segvault = Segvault::init(&cluster.scratch().join("vault")).unwrap();
    workload::set_up(&cluster).unwrap();
    let rig = Path::new(env!("CARGO_BIN_EXE_segvault-rig"));
    let mut clients = Clients::start(rig, &cluster, &cluster.scratch().join("ledger")).unwrap();
    workload::wait_for_work(&ledger, || clients.check()).unwrap();
    let before = cluster.state().unwrap();

    let mut fleet = Fleet::start(&cluster, &segvault).unwrap();
    let status = fleet.status().unwrap();
    assert_eq!(status["agents"].as_array().unwrap().len(), 3, "{status}");
    examine_beside_a_point(&fleet);
    let rounds = from_environment("SEGVAULT_KILLS").unwrap_or(KILLS);
    let seed = from_environment("SEGVAULT_SEED").unwrap_or(SEED);
    let (rounds, tally) = kills::play(&mut fleet, &segvault, &ledger, rounds, seed).unwrap();
    println!("{tally}");
    let last = rounds.iter().rev().find(|round| round.is_complete).expect("some points are complete");
    for node in cluster.nodes() {
        assert_eq!(fleet.stop_agent(node).unwrap(), Some(0));
    }
    let status = fleet.status().unwrap();
    assert_eq!(status["agents"].as_array().map(Vec::len), Some(0), "goodbye was said: {status}");

    clients.check().unwrap();
    cluster.kill9().unwrap();
    drop(clients);
    cluster.wipe().unwrap();
    for round in &rounds {
        round.point.iter().for_each(|point| drop(segvault.prove(&point.to_string()).unwrap()));
    }
    restore_by_the_coordinator(&mut fleet, &segvault, &last.point.unwrap().to_string());
    drop(fleet);
    cluster.start().unwrap();
    let mut history = ledger.history().unwrap();
    history.marks.truncate(last.marks);
    let outcome = audit(&cluster, &history, &before, &before, audit::Options::default()).unwrap();
    println!("{outcome}");
    outcome.assert_passed();
    assert!(outcome.count("found at their offset") >= 5000, "the audit saw too little to prove anything\n{outcome}");
}
