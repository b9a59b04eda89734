//! Plans that are saved in the vault: what follows one restores the same, and what does not fit one is refused.

use crate::fixture::*;
use segvault_tests::segvault::Ended;
use segvault_vault::{Access, Config, Vault, VaultLocation};
use segvault_vault_format::ids::PlanId;
use segvault_vault_format::plan::Plan;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// Saves a plan for the targets of `nodes`.
fn save(case: &Case, nodes: &[i32]) -> Value {
    case.restore_to("plan", nodes, &["--save"]).ok().unwrap()
}

/// All files of a folder and their bytes, by path within.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = tree(dir).into_keys().filter(|path| path.is_file());
    files.map(|path| (path.strip_prefix(dir).unwrap().display().to_string(), fs::read(&path).unwrap())).collect()
}

/// Saves a changed copy of plan 1; returns its number.
fn forge(case: &Case, cluster_id: &str, change: fn(&mut Plan)) -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let location = VaultLocation::File(case.vault());
        let vault = Vault::open(&location, &Config::default(), Access::Write).await.unwrap();
        let id = PlanId { cluster_id: cluster_id.to_owned(), number: 1 };
        let mut plan = vault.plan(&id).await.unwrap();
        change(&mut plan);
        vault.save_plan(plan).await.unwrap().number.to_string()
    })
}

/// Replaces a value of node 2's target configuration.
fn change(case: &Case, key: &str, value: &str) {
    let file = case.target_config(2);
    let text = fs::read_to_string(&file).unwrap();
    let others = text.lines().filter(|line| line.split_once('=').is_none_or(|(found, _)| found != key));
    let text: String = others.map(|line| format!("{line}\n")).collect();
    fs::write(file, format!("{text}{key}={value}\n")).unwrap();
}

#[test]
fn hosts_that_follow_a_plan_restore_what_they_would_without() {
    let (planned, plain) = (Case::restore(), Case::restore());
    assert_eq!(save(&planned, &NODES)["plan"], 1);
    for node in NODES {
        let ended = planned.restore_to("run", &[node], &["--plan", "1"]).ok().unwrap();
        assert_eq!((&ended["plan"], &ended["nodes"]), (&1.into(), &vec![node].into()), "{ended}");
        plain.restore_to("run", &[node], &[]).ok().unwrap();
        planned.restore_to("verify", &[node], &["--plan", "1"]).ok().unwrap();
        assert!(contents(&planned.target(node)) == contents(&plain.target(node)), "node {node}");
    }
    // In another order than the plan's, all at once.
    fs::remove_dir_all(planned.targets()).unwrap();
    planned.restore_to("run", &[3, 1], &["--plan", "1"]).ok().unwrap();
    for node in [1, 3] {
        assert!(contents(&planned.target(node)) == contents(&plain.target(node)), "node {node}");
    }
    assert!(contents(&planned.target(2)).is_empty());
}

#[test]
fn a_plan_says_what_goes_where_from_which_source_and_what_is_left_out() {
    let case = Case::restore();
    let unsaved = case.restore_to("plan", &[2], &[]).ok().unwrap();
    assert_eq!(unsaved["plan"], Value::Null);
    assert!(!case.vault().join("plans").exists());
    let saved = save(&case, &[2]);
    for field in ["point", "cluster_id", "checkpoint", "partitions", "bytes"] {
        assert_eq!(saved[field], unsaved[field], "{field}");
    }
    assert!(saved["findings"].to_string().contains("nodes {1, 3} of the cluster are not in the plan"), "{saved}");
    let dir = &saved["nodes"][0]["log_dirs"][0];
    let sum = |field| dir["sources"].as_array().unwrap().iter().map(|it| it[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("replicas"), sum("bytes")), (dir["replicas"].as_u64().unwrap(), saved["bytes"].as_u64().unwrap()));
    let left_out = saved["left_out"].as_array().unwrap();
    let orders = left_out.iter().find(|it| it["topic"] == "orders").unwrap();
    assert_eq!((&orders["reason"], &orders["nodes"]), (&Value::Null, &vec![1, 3].into()), "{orders}");

    let all = save(&case, &NODES);
    assert_eq!((&all["plan"], &all["left_out"]), (&2.into(), &Value::Array(Vec::new())), "{all}");
    assert_eq!(all["findings"], unsaved["findings"]);
    for (number, plan) in [("1", &saved), ("2", &all)] {
        let shown = case.segvault.run(&["restore", "plan", "--show", number]).unwrap().ok().unwrap();
        assert_eq!(&shown, plan);
    }
    let listed = case.segvault.run(&["restore", "plans"]).unwrap().ok().unwrap();
    let rows: Vec<_> = listed["plans"].as_array().unwrap().iter().map(|row| (&row["plan"], &row["nodes"])).collect();
    assert_eq!(rows, [(&1.into(), &vec![2].into()), (&2.into(), &vec![1, 2, 3].into())]);
    assert_eq!(listed["plans"][1]["bytes"], all["bytes"]);
}

/// One host plans for all, from its own file and what the point knows of the others.
#[test]
fn all_nodes_of_a_point_can_be_planned_for_with_one_file() {
    let case = Case::capture();
    case.create().ok().unwrap();
    let run = |node: i32, verb: &str, options: &[&str]| -> Ended {
        let config = case.config(node).display().to_string();
        let args: Vec<&str> =
            ["restore", verb, "--broker-config", &config].into_iter().chain(options.iter().copied()).collect();
        case.segvault.run(&args).unwrap()
    };
    let saved = run(3, "plan", &["--save", "--all-nodes"]).ok().unwrap();
    let dirs = saved["nodes"].as_array().unwrap().iter().map(|node| node["log_dirs"][0]["path"].as_str().unwrap());
    assert!(dirs.eq(NODES.map(|node| case.log_dir(node).display().to_string())), "{saved}");
    for node in NODES {
        fs::remove_dir_all(case.log_dir(node)).unwrap();
        run(node, "run", &["--plan", "1"]).ok().unwrap();
        run(node, "verify", &["--plan", "1"]).ok().unwrap();
    }
}

#[test]
fn what_does_not_fit_a_plan_is_refused_with_the_difference() {
    type Deed = fn(&Case);
    let table: [(&str, Deed, &[&str]); 7] = [
        (
            "another node",
            |case| change(case, "node.id", "9"),
            &["node 9 is not in plan", "/1, which has the nodes [1, 2]"],
        ),
        ("another node's id", |case| change(case, "node.id", "1"), &["node 1: log.dirs is "]),
        (
            "other log dirs",
            |case| change(case, "log.dirs", "/elsewhere/data"),
            &["log.dirs is /elsewhere/data in its server.properties and ", "targets/node2/data0 in plan "],
        ),
        (
            "another metadata log dir",
            |case| change(case, "metadata.log.dir", "/elsewhere/metadata"),
            &["metadata.log.dir is /elsewhere/metadata in its server.properties and ", "targets/node2/data0 in plan "],
        ),
        (
            "another role",
            |case| change(case, "process.roles", "broker"),
            &["process.roles is broker in its server.properties and broker,controller in plan "],
        ),
        (
            "another quorum",
            |case| change(case, "controller.quorum.voters", "2@127.0.0.1:9093"),
            &["controller.quorum.voters is {2} in its server.properties and {1, 2, 3} in plan "],
        ),
        (
            "shorter indexes",
            |case| change(case, "log.index.size.max.bytes", "4096"),
            &["log.index.size.max.bytes is 4096 in its server.properties and 10485760 in plan "],
        ),
    ];
    for (what, deed, wanted) in table {
        let case = Case::restore();
        save(&case, &[1, 2]);
        deed(&case);
        let before = tree(case.dir());
        for verb in ["run", "verify"] {
            let ended = case.restore_to(verb, &[1, 2], &["--plan", "1"]);
            assert!(wanted.iter().all(|text| ended.error().contains(text)), "{what}, {verb}: {ended:?}");
            assert!(ended.error().contains("node2/server.properties: node "), "{what}: {ended:?}");
            assert!(ended.error().contains("\nhint: "), "{what}: {ended:?}");
            assert!(tree(case.dir()) == before, "{what}: nothing was written");
        }
    }
}

#[test]
fn plans_that_are_not_there_or_not_of_this_vault_are_refused() {
    let case = Case::restore();
    let saved = save(&case, &NODES);
    let cluster = saved["cluster_id"].as_str().unwrap();
    let forged_root = forge(&case, cluster, |plan| plan.root[0] ^= 1);
    let forged_checkpoint = forge(&case, cluster, |plan| plan.checkpoint_sum[0] ^= 1);
    let forged_point = forge(&case, cluster, |plan| plan.point = 9);
    let forged_cluster = case.vault().join("plans/elsewhere/0000000000000001");
    fs::create_dir_all(forged_cluster.parent().unwrap()).unwrap();
    fs::copy(case.vault().join(format!("plans/{cluster}/0000000000000001")), &forged_cluster).unwrap();
    let before = tree(case.dir());
    for (plan, wanted) in [
        ("17", "there is no restore plan"),
        ("0", "is no restore plan"),
        ("first", "is no restore plan"),
        ("a/b", "no restore plan"),
        ("nowhere/1", "there is no restore plan nowhere/1"),
        ("elsewhere/1", "plans/elsewhere/0000000000000001 in file://"),
        (&forged_root, "and the point of that number in this vault has the root"),
        (&forged_checkpoint, "this segvault makes another one of the point"),
        (&forged_point, "there is no restore point"),
    ] {
        for verb in ["run", "verify"] {
            let ended = case.restore_to(verb, &NODES, &["--plan", plan]);
            assert!(ended.error().contains(wanted) && ended.error().contains("\nhint: "), "{plan}: {ended:?}");
        }
    }
    let ended = case.restore_to("run", &NODES, &["--plan", "elsewhere/1", "--cluster", cluster]);
    assert!(ended.error().contains("plan elsewhere/1 is of another cluster than "), "{ended:?}");
    let ended = case.restore_to("run", &[1, 1], &["--plan", "1"]);
    assert!(ended.error().contains("node 1 is named twice"), "{ended:?}");
    for options in [&["--plan", "1", "--point", "1"][..], &["--plan", "1", "--point", "latest"]] {
        assert_eq!(case.restore_to("run", &NODES, options).code, 2);
    }
    assert_eq!(case.restore_to("plan", &NODES, &["--show", "1"]).code, 2);
    assert_eq!(case.segvault.run(&["restore", "plan", "--save"]).unwrap().code, 2);
    assert!(tree(case.dir()) == before, "nothing was written");
}
