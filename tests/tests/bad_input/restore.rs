//! Targets that must not be written to, cannot be, or do not fit the point.

use crate::fixture::*;
use std::fs;

/// A restore onto log dirs of a broker that runs is refused, whatever is in them.
#[test]
fn log_dirs_of_a_running_broker_are_refused() {
    for ended in &FIXTURE.restores_onto_live {
        let error = ended.error();
        assert!(error.contains("node1/data0 is in use by process "), "{error}");
        assert!(error.contains("hint: stop the broker first"), "{error}");
    }
}

#[test]
fn plans_and_dry_runs_and_refusals_write_nothing() {
    let case = Case::restore();
    case.make_targets();
    let before = tree(case.dir());
    let planned = case.restore_to("plan", &NODES, &[]).ok().unwrap();
    assert_eq!((&planned["partitions"], planned["nodes"].as_array().unwrap().len()), (&10.into(), 3), "{planned}");
    case.restore_to("run", &NODES, &["--dry-run"]).ok().unwrap();
    assert_eq!(case.restore_to("verify", &NODES, &[]).code, FINDINGS);
    assert!(tree(case.dir()) == before);
}

#[test]
fn a_target_that_holds_something_is_refused_and_left_as_it_is() {
    type Deed = fn(&Case);
    let table: [(&str, Deed, &[&str]); 7] = [
        (
            "a node's log dir",
            |case| {
                fs::remove_dir(case.target(2)).unwrap();
                copy(&FIXTURE.nodes().join("node2/data0"), &case.target(2)).unwrap();
            },
            &["node2/data0 is not empty: ", " more", "hint: a restore only goes to empty log dirs"],
        ),
        ("a file", |case| fs::write(case.target(2).join("notes.txt"), "").unwrap(), &["is not empty: notes.txt"]),
        ("a hidden file", |case| fs::write(case.target(2).join(".notes"), "").unwrap(), &["is not empty: .notes"]),
        (
            "another cluster's formatted log dir",
            |case| {
                let text = "version=1\nnode.id=2\ncluster.id=AnotherClusterAltogeth\n";
                fs::write(case.target(2).join("meta.properties"), text).unwrap();
            },
            &["node2/data0/meta.properties says node 2 of cluster AnotherClusterAltogeth", "hint: check"],
        ),
        (
            "another node's formatted log dir",
            |case| {
                let meta = fs::read_to_string(FIXTURE.nodes().join("node3/data0/meta.properties")).unwrap();
                fs::write(case.target(2).join("meta.properties"), meta).unwrap();
            },
            &["node2/data0/meta.properties says node 3 of cluster", "hint: check"],
        ),
        (
            "a garbled meta.properties",
            |case| {
                fs::write(case.target(2).join("meta.properties"), "").unwrap();
                garble(&case.target(2).join("meta.properties"));
            },
            &["node2/data0/meta.properties", "hint: "],
        ),
        (
            "a file in place of the log dir",
            |case| {
                fs::remove_dir(case.target(2)).unwrap();
                fs::write(case.target(2), "").unwrap();
            },
            &["node2/data0", "Not a directory", "hint: "],
        ),
    ];
    for (what, deed, wanted) in table {
        let case = Case::restore();
        case.make_targets();
        deed(&case);
        let before = tree(case.dir());
        for options in [&["--dry-run"][..], &[]] {
            let ended = case.restore_to("run", &NODES, options);
            assert!(wanted.iter().all(|text| ended.error().contains(text)), "{what}: {ended:?}");
            assert!(tree(case.dir()) == before, "{what}: nothing was written, on no node");
        }
    }
}

/// What a restore has finished it does not touch again; what it has begun only the same point may go on with.
#[test]
fn finished_and_begun_restores_are_not_mixed_up() {
    let case = Case::capture();
    case.create().ok().unwrap();
    case.create().ok().unwrap();
    case.restore_to("run", &[1], &[]).ok().unwrap();
    let before = tree(&case.target(1));
    for point in ["1", "2"] {
        let ended = case.restore_to("run", &[1], &["--point", point]);
        assert!(ended.error().contains("was restored already, from point"), "{ended:?}");
        assert!(ended.error().contains("hint: start the node"), "{ended:?}");
    }
    assert!(tree(&case.target(1)) == before);

    // Node 2's restore of point 2 fails half way: it has begun, and then a pack is missing.
    let hidden = case.dir().join("hidden");
    let packs: Vec<_> = tree(&case.vault().join("packs")).into_keys().filter(|path| path.is_file()).collect();
    let needed = packs.iter().find(|pack| {
        fs::rename(pack, &hidden).unwrap();
        let ended = case.restore_to("run", &[2], &["--point", "2"]);
        assert!(ended.code == 0 || ended.error().contains("is missing in file://"), "{ended:?}");
        let has_begun = ended.code == 1 && case.target(2).join(".segvault-restore").exists();
        if !has_begun {
            fs::rename(&hidden, pack).unwrap();
            // Without what the plan itself needs, the restore does not get as far as making its directories.
            if case.target(2).exists() {
                fs::remove_dir_all(case.target(2)).unwrap();
            }
        }
        has_begun
    });
    assert!(!case.target(2).join("meta.properties").exists());
    let ended = case.restore_to("run", &[2], &["--point", "1"]);
    assert!(ended.error().contains("holds an unfinished restore of point"), "{ended:?}");
    assert!(ended.error().contains("/2") && ended.error().contains("hint: finish that one"), "{ended:?}");
    fs::rename(&hidden, needed.expect("a pack with data of node 2, and no metadata")).unwrap();
    case.restore_to("run", &[2], &["--point", "2"]).ok().unwrap();
    case.restore_to("verify", &[1, 2], &["--point", "2"]).ok().unwrap();
}

#[test]
fn configurations_that_do_not_fit_the_point_are_refused_with_the_difference() {
    type Deed = fn(&Case);
    fn change(case: &Case, key: &str, value: &str) {
        let text = fs::read_to_string(case.target_config(2)).unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("{key}="))).unwrap().to_owned();
        let new = format!("{key}={}", value.replace("{old}", line.split_once('=').unwrap().1));
        fs::write(case.target_config(2), text.replace(&line, &new)).unwrap();
    }
    let table: [(&str, Deed, &[&str]); 9] = [
        ("an unknown node", |case| change(case, "node.id", "9"), &["node 9 is no broker", "[1, 2, 3]", "hint: "]),
        ("a node twice", |case| change(case, "node.id", "3"), &["node 3 is named twice", "hint: "]),
        ("another role", |case| change(case, "process.roles", "broker"), &["node 2 has the role", "hint: "]),
        (
            "more log dirs",
            |case| change(case, "log.dirs", "{old},{old}-2"),
            &["node 2: its log dirs", "hint: name as many"],
        ),
        (
            "another quorum",
            |case| change(case, "controller.quorum.voters", "2@127.0.0.1:9093"),
            &["node 2", "controller.quorum.voters names [2]", "hint: "],
        ),
        (
            "no such file",
            |case| fs::remove_file(case.target_config(2)).unwrap(),
            &["node2/server.properties", "hint: "],
        ),
        ("garbage", |case| garble(&case.target_config(2)), &["node2/server.properties", "hint: "]),
        (
            "a provider's value",
            |case| change(case, "log.dirs", "${file:/etc/secrets:dirs}"),
            &["node2/server.properties", "config provider", "hint: "],
        ),
        (
            "a folder",
            |case| {
                fs::remove_file(case.target_config(2)).unwrap();
                fs::create_dir(case.target_config(2)).unwrap();
            },
            &["node2/server.properties", "hint: "],
        ),
    ];
    for (what, deed, wanted) in table {
        let case = Case::restore();
        case.make_targets();
        deed(&case);
        for verb in ["plan", "run", "verify"] {
            let before = tree(&case.targets());
            let configs = NODES.map(|node| case.target_config(node).display().to_string());
            let args = configs.iter().flat_map(|config| ["--broker-config", config]);
            let args: Vec<&str> = ["restore", verb].into_iter().chain(args).collect();
            let ended = case.segvault.run(&args).unwrap();
            assert!(wanted.iter().all(|text| ended.error().contains(text)), "{what}, {verb}: {ended:?}");
            assert!(tree(&case.targets()) == before, "{what}: nothing was written");
        }
    }
}

#[test]
fn points_that_are_not_there_are_told_from_those_that_are() {
    let case = Case::restore();
    for (point, wanted) in [
        ("7", "there is no restore point"),
        ("0", "is no restore point"),
        ("newest", "is no restore point"),
        ("elsewhere/1", "there is no restore point elsewhere/1"),
        ("a/b/c", "no restore point"),
    ] {
        for verb in ["plan", "run"] {
            let ended = case.restore_to(verb, &NODES, &["--point", point]);
            assert!(ended.error().contains(wanted) && ended.error().contains("hint: "), "{point}: {ended:?}");
        }
    }
    let ended = case.restore_to("plan", &NODES, &["--cluster", "elsewhere"]);
    assert!(
        ended.error().contains("there is no cluster \"elsewhere\"") && ended.error().contains("hint: "),
        "{ended:?}"
    );
}

#[test]
fn a_full_disk_is_seen_before_or_survived_and_the_restore_goes_on() {
    let case = Case::restore();
    let Some(disk) = Disk::mount(&case.targets(), "size=4m") else { return };
    let before = tree(&case.targets());
    case.make_targets();
    let made = tree(&case.targets());
    assert!(made.len() > before.len());

    // Too small, and known to be.
    for options in [&["--dry-run"][..], &[]] {
        let ended = case.restore_to("run", &NODES, options);
        let error = ended.error();
        assert!(error.contains("bytes free, and the restore needs") && error.contains("hint: free space"), "{error}");
        assert!(tree(&case.targets()) == made, "nothing was written");
    }

    // Space for the bytes, but not for as many files.
    disk.change("size=64m,nr_inodes=60");
    let ended = case.restore_to("run", &NODES, &[]);
    let error = ended.error();
    assert!(error.contains("No space left on device") && error.contains("targets/node"), "{error}");
    assert!(error.contains("hint: free space on that file system and run the same command again"), "{error}");
    case.assert_not_startable();
    assert_ne!(case.restore_to("verify", &NODES, &[]).code, 0);

    disk.change("size=64m,nr_inodes=6000");
    case.restores(ORDERS, 1);
}

#[test]
fn a_target_that_cannot_be_written_to_is_named() {
    let case = Case::restore();
    let Some(disk) = Disk::mount(&case.targets(), "size=64m") else { return };
    case.make_targets();
    disk.read_only();
    let ended = case.restore_to("run", &NODES, &[]);
    assert!(ended.error().contains("Read-only file system"), "{ended:?}");
    assert!(ended.error().contains("targets/node1/data0") && ended.error().contains("hint: "), "{ended:?}");
}

/// A byte that changes after a restore is seen by `verify`.
#[test]
fn verify_sees_what_was_changed_since() {
    type Deed = fn(&Case);
    let table: [(&str, Deed); 7] = [
        ("meta.properties", |case| fs::remove_file(case.target(2).join("meta.properties")).unwrap()),
        ("orders-0", |case| fs::remove_dir_all(case.target(2).join("orders-0")).unwrap()),
        ("00000000000000007410.log", |case| {
            let log = segments(&case.target(2).join(ORDERS)).pop().unwrap();
            truncate(&log, fs::metadata(&log).unwrap().len() as usize - 10);
        }),
        ("00000000000000002470.index", |case| garble(&case.target(2).join("orders-0/00000000000000002470.index"))),
        ("replication-offset-checkpoint", |case| garble(&case.target(2).join("replication-offset-checkpoint"))),
        ("partition.metadata", |case| garble(&case.target(2).join("table-0/partition.metadata"))),
        ("lost", |case| fs::create_dir(case.target(2).join("lost")).unwrap()),
    ];
    let case = Case::restore();
    case.restore_to("run", &NODES, &[]).ok().unwrap();
    let intact = case.dir().join("intact");
    copy(&case.targets(), &intact).unwrap();
    for (name, deed) in table {
        deed(&case);
        let ended = case.restore_to("verify", &NODES, &[]);
        assert_eq!((ended.code, &ended.json["ok"]), (FINDINGS, &false.into()), "{name}: {ended:?}");
        let findings = ended.json["findings"].to_string();
        assert!(findings.contains("node2/data0") && findings.contains(name), "{name}: {findings}");
        fs::remove_dir_all(case.targets()).unwrap();
        copy(&intact, &case.targets()).unwrap();
    }
    case.restore_to("verify", &NODES, &[]).ok().unwrap();
}
