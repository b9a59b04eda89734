//! Points are taken at random moments while a nemesis is at work; each time the cluster is lost, rebuilt and audited.

use segvault_tests::{
    Cluster,
    chaos::{Plan, play},
};
use std::path::Path;

/// Three brokers with several log dirs, a dynamic quorum, a point to build on, kills, deleted records and other replicas.
const SEED: u64 = 25;

#[test]
fn whatever_befalls_a_cluster_its_points_are_whole() {
    let plan = Plan::new(SEED, &[Cluster::default_version()]);
    println!("{plan:?}");
    let outcome = play(&plan, Path::new(env!("CARGO_BIN_EXE_segvault-rig"))).unwrap();
    outcome.deeds.iter().for_each(|deed| println!("  {deed}"));
    println!("  {outcome}");
    outcome.judge();
}
