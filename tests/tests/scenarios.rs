//! Whole-system scenarios, one module each, in one binary. They need Java and Maven (`scripts/kafka` says what is
//! missing) and run one cluster at a time.

#[path = "scenarios/chaos.rs"]
mod chaos;
#[path = "scenarios/decided_transactions.rs"]
mod decided_transactions;
#[path = "scenarios/fleet.rs"]
mod fleet;
#[path = "scenarios/fleet_faults.rs"]
mod fleet_faults;
#[path = "scenarios/harness.rs"]
mod harness;
#[path = "scenarios/rebuild.rs"]
mod rebuild;
#[path = "scenarios/share_groups.rs"]
mod share_groups;

/// A scenario that nobody declared above would never run.
#[test]
fn every_scenario_file_is_declared() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let declared = std::fs::read_to_string(dir.join("scenarios.rs")).expect("this file is there");
    for entry in std::fs::read_dir(dir.join("scenarios")).expect("the folder is there") {
        let name = entry.expect("a readable folder").file_name().into_string().expect("plain names");
        assert!(declared.contains(&format!("scenarios/{name}")), "{name} is not declared in scenarios.rs");
    }
}
