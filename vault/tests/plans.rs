//! What a vault promises about plans, on a local folder: numbered from 1, never changed, read only if they make sense.

use std::path::PathBuf;

use segvault_vault::{Access, Config, Vault, VaultError, VaultLocation};
use segvault_vault_format::ids::PlanId;
use segvault_vault_format::keys::Key;
use segvault_vault_format::plan::{Plan, PlannedLogDir, PlannedNode};

/// Runs `test` on a new vault in a folder of its own.
fn on_a_vault(test: impl AsyncFnOnce(Vault, PathBuf)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let vault = Vault::init(&VaultLocation::File(path.clone()), &Config::default(), 0).await.unwrap();
        test(vault, path).await;
    });
}

fn plan(cluster_id: &str, point: u64) -> Plan {
    Plan {
        cluster_id: cluster_id.into(),
        point,
        root: vec![1; 32],
        checkpoint: "a checkpoint".into(),
        checkpoint_sum: vec![2; 32],
        nodes: vec![PlannedNode {
            node_id: 1,
            broker: true,
            log_dirs: vec![PlannedLogDir { path: "/data".into(), ..PlannedLogDir::default() }],
            data_dirs: 1,
            ..PlannedNode::default()
        }],
        ..Plan::default()
    }
}

fn id(cluster_id: &str, number: u64) -> PlanId {
    PlanId { cluster_id: cluster_id.into(), number }
}

#[test]
fn plans_are_numbered_by_cluster_and_stay_what_they_were() {
    on_a_vault(async |vault, _| {
        assert_eq!(vault.newest_plan("a").await.unwrap(), 0);
        for (cluster, point, number) in [("a", 5, 1), ("a", 6, 2), ("b", 1, 1), ("a", 5, 3)] {
            let saved = vault.save_plan(plan(cluster, point)).await.unwrap();
            assert_eq!((saved.number, saved.point), (number, point));
            assert_eq!(vault.plan(&id(cluster, number)).await.unwrap(), saved);
        }
        assert_eq!(vault.newest_plan("a").await.unwrap(), 3);
        let points: Vec<_> = vault.list_plans("a").await.unwrap().iter().map(|plan| plan.point).collect();
        assert_eq!(points, [5, 6, 5]);
        let missing = vault.plan(&id("a", 4)).await;
        assert!(matches!(missing, Err(VaultError::NoPlan { .. })), "{missing:?}");
    });
}

#[test]
fn plans_that_are_saved_at_once_get_numbers_of_their_own() {
    on_a_vault(async |vault, _| {
        let saves = (0..8).map(|_| {
            let vault = vault.clone();
            tokio::spawn(async move { vault.save_plan(plan("a", 1)).await.unwrap().number })
        });
        let mut numbers = Vec::new();
        for save in saves.collect::<Vec<_>>() {
            numbers.push(save.await.unwrap());
        }
        numbers.sort();
        assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
    });
}

#[test]
fn a_plan_that_makes_no_sense_is_not_saved() {
    on_a_vault(async |vault, _| {
        let bad = vault.save_plan(Plan { nodes: Vec::new(), ..plan("a", 1) }).await;
        assert!(matches!(bad, Err(VaultError::Manifest(_))), "{bad:?}");
        assert_eq!(vault.newest_plan("a").await.unwrap(), 0);
    });
}

#[test]
fn damaged_and_misplaced_plans_are_refused_by_name() {
    on_a_vault(async |vault, path| {
        vault.save_plan(plan("a", 1)).await.unwrap();
        vault.save_plan(plan("b", 1)).await.unwrap();
        let (key, other) = (Key::Plan(id("a", 1)), Key::Plan(id("b", 1)));
        std::fs::copy(path.join(other.to_string()), path.join(key.to_string())).unwrap();
        let error = vault.plan(&id("a", 1)).await.unwrap_err().to_string();
        assert!(error.contains(&key.to_string()) && error.contains("another cluster"), "{error}");

        let mut bytes = std::fs::read(path.join(other.to_string())).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path.join(other.to_string()), bytes).unwrap();
        let error = vault.list_plans("b").await.unwrap_err();
        assert!(
            matches!(error, VaultError::Corrupt { .. }) && error.to_string().contains(&other.to_string()),
            "{error}"
        );
    });
}

#[test]
fn plans_are_read_without_leave_to_write() {
    on_a_vault(async |vault, _| {
        vault.save_plan(plan("a", 1)).await.unwrap();
        let reader = Vault::open(vault.location(), &Config::default(), Access::Read).await.unwrap();
        assert_eq!(reader.list_plans("a").await.unwrap().len(), 1);
    });
}
