//! Damaged log dirs, and configurations that do not fit them.

use crate::fixture::*;
use segvault_tests::segvault::Ended;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Where the damage was done: text that must be said of it.
type Damage = fn(&Path) -> PathBuf;

/// The second of the closed segments.
fn closed(dir: &Path) -> PathBuf {
    segments(dir)[1].clone()
}

/// Where a batch in the middle of it begins.
fn middle(log: &Path) -> usize {
    let batches = batches(log);
    batches[batches.len() / 2]
}

fn flip_in_middle(dir: &Path, at: usize) -> PathBuf {
    let log = closed(dir);
    flip(&log, middle(&log) + at);
    log
}

fn garbled(dir: &Path, name: &str) -> PathBuf {
    garble(&dir.join(name));
    dir.join(name)
}

/// What can become of one replica's files that makes the replica useless.
const DAMAGES: [(&str, Damage); 17] = [
    ("a bit in a record", |dir| flip_in_middle(dir, 200)),
    ("a bit in a CRC", |dir| flip_in_middle(dir, 18)),
    ("an offset raised", |dir| flip_in_middle(dir, 6)),
    ("an offset raised far", |dir| flip_in_middle(dir, 1)),
    ("a length changed", |dir| flip_in_middle(dir, 10)),
    ("a length beyond all bounds", |dir| flip_in_middle(dir, 8)),
    ("a leader epoch raised", |dir| flip_in_middle(dir, 14)),
    ("a magic that is none", |dir| flip_in_middle(dir, 16)),
    ("cut within a batch", |dir| {
        let log = closed(dir);
        truncate(&log, middle(&log) + 100);
        log
    }),
    ("cut between batches", |dir| {
        let log = closed(dir);
        truncate(&log, middle(&log));
        segments(dir)[2].clone()
    }),
    ("emptied", |dir| {
        truncate(&closed(dir), 0);
        segments(dir)[2].clone()
    }),
    ("removed", |dir| {
        fs::remove_file(closed(dir)).unwrap();
        segments(dir)[1].clone()
    }),
    ("the first segment removed", |dir| {
        fs::remove_file(&segments(dir)[0]).unwrap();
        dir.to_owned()
    }),
    ("longer than it was", |dir| {
        let log = closed(dir);
        fs::write(&log, [fs::read(&log).unwrap(), vec![0x55; 300]].concat()).unwrap();
        log
    }),
    ("a bit in the last batch", |dir| {
        let log = segments(dir).pop().unwrap();
        flip(&log, *batches(&log).last().unwrap() + 80);
        log
    }),
    ("a garbled epoch history", |dir| garbled(dir, "leader-epoch-checkpoint")),
    ("a garbled topic id", |dir| garbled(dir, "partition.metadata")),
];

/// Takes a point, and sees that nothing was left behind or changed in any node's folder.
fn create(case: &Case) -> Ended {
    let before = NODES.map(|node| tree(&case.log_dir(node)));
    let ended = case.create();
    assert!(NODES.map(|node| tree(&case.log_dir(node))) == before, "log dirs are as they were");
    for node in NODES {
        let staging = case.log_dir(node).with_file_name(".segvault-data0");
        assert_eq!(fs::read_dir(staging.join("pins")).map_or(0, Iterator::count), 0, "no pin is left");
    }
    ended
}

/// What `create` says of a point, whose `show` must say the same, and whose level must hold.
fn taken(case: &Case, ended: Ended, code: i32, state: &str, level: &str) -> Value {
    assert_eq!(ended.code, code, "{ended:?}");
    assert_eq!((&ended.json["state"], &ended.json["level"]), (&state.into(), &level.into()), "{ended:?}");
    let mut shown = case.segvault.run(&["snapshot", "show", "--partitions"]).unwrap();
    assert_eq!(shown.code, code, "{shown:?}");
    for entry in shown.json["partitions"].as_array_mut().unwrap() {
        let fields = entry.as_object_mut().unwrap();
        let (newest, age) = (fields.remove("newest_ms"), fields.remove("newest_age_ms"));
        assert_eq!(newest.is_some(), age.is_some(), "{entry}");
        assert!(newest.is_some() || entry["end_offset"] == entry["log_start_offset"] || entry["bytes"] == 0, "{entry}");
    }
    for key in ["state", "level", "findings", "partitions"] {
        assert_eq!(shown.json[key], ended.json[key], "{key}");
    }
    case.segvault.prove("latest").unwrap();
    ended.json
}

/// All text that a point says beside its numbers.
fn said(point: &Value) -> String {
    let notes = point["partitions"].as_array().unwrap().iter().map(|entry| entry["notes"].to_string());
    notes.chain([point["findings"].to_string()]).collect()
}

#[test]
fn a_damaged_replica_is_named_and_another_one_taken() {
    for (index, (what, damage)) in DAMAGES.into_iter().enumerate() {
        let case = Case::capture();
        let file = damage(&case.replica(1, ORDERS));
        let ended = create(&case);
        let point = taken(&case, ended, 0, "complete", "L3");
        let orders = partition(&point, ORDERS);
        assert_eq!((&orders["source_node"], &orders["end_offset"]), (&2.into(), &8000.into()), "{what}: {orders}");
        let notes = orders["notes"].to_string();
        assert!(notes.contains("replica of node 1: ") && notes.contains(&*file.to_string_lossy()), "{what}: {point}");
        // A restore of each would take long.
        if index % 5 == 0 {
            case.restores(ORDERS, 2);
        }
    }
}

/// What the vault has is not asked for again, from whichever replica: a segment that has changed since is.
#[test]
fn damage_after_a_point_is_seen_by_the_next_one() {
    let case = Case::capture();
    let first = create(&case).ok().unwrap();
    let log = flip_in_middle(&case.replica(1, ORDERS), 200);
    let ended = create(&case);
    let second = taken(&case, ended, 0, "complete", "L3");
    let source = |point| partition(point, ORDERS)["source_node"].clone();
    assert_eq!((source(&first), source(&second)), (1.into(), 2.into()));
    assert!(partition(&second, ORDERS)["notes"].to_string().contains(&*log.to_string_lossy()), "{second}");
    let stored = |point: &Value| point["stored_bytes"].as_u64().unwrap();
    assert!(stored(&second) * 20 < stored(&first), "{second}");
    case.restores(ORDERS, 2);
}

/// Shorter than what its broker knew to be replicated, or ahead of what the controllers know: no reason to prefer it.
#[test]
fn a_damaged_tail_is_not_the_source() {
    let damages: [(&str, Damage, &str); 3] = [
        (
            "cut within a batch",
            |dir| {
                let log = segments(dir).pop().unwrap();
                truncate(&log, fs::metadata(&log).unwrap().len() as usize - 100);
                log
            },
            "below its checkpointed high watermark 8000",
        ),
        (
            "emptied",
            |dir| {
                let log = segments(dir).pop().unwrap();
                truncate(&log, 0);
                log
            },
            "below its checkpointed high watermark 8000",
        ),
        (
            "the last leader epoch raised",
            |dir| {
                let log = segments(dir).pop().unwrap();
                flip(&log, *batches(&log).last().unwrap() + 12);
                log
            },
            "the log's last leader epoch is 268435456, and the metadata has only come to",
        ),
    ];
    for (what, damage, said_of_it) in damages {
        let case = Case::capture();
        damage(&case.replica(1, ORDERS));
        let ended = create(&case);
        let point = taken(&case, ended, 0, "complete", "L3");
        let orders = partition(&point, ORDERS);
        assert_eq!((&orders["source_node"], &orders["end_offset"]), (&2.into(), &8000.into()), "{what}: {orders}");
        assert!(said(&point).contains(said_of_it), "{what}: {point}");
    }
}

/// In a compacted topic offsets may be missing, but not where its end was written last.
#[test]
fn an_offset_raised_in_a_compacted_tail_does_not_make_the_longest_log() {
    for name in ["table-0", "__consumer_offsets-0", "__transaction_state-0", "__transaction_state-1"] {
        let case = Case::capture();
        let log = segments(&case.replica(2, name)).pop().unwrap();
        let Some(last) = batches(&log).pop() else { continue };
        flip(&log, last + 5);
        let ended = create(&case);
        let point = taken(&case, ended, 0, "complete", "L3");
        let entry = partition(&point, name);
        assert_ne!(entry["source_node"], 2, "{entry}");
        let notes = entry["notes"].to_string();
        assert!(notes.contains(&*log.to_string_lossy()) && notes.contains("are missing"), "{entry}");
    }
}

#[test]
fn a_partition_that_is_damaged_everywhere_is_named_and_the_rest_is_whole() {
    let case = Case::capture();
    let single = NODES.into_iter().find(|node| case.replica(*node, "single-0").exists()).unwrap();
    let mut files: Vec<_> = NODES.iter().map(|node| flip_in_middle(&case.replica(*node, ORDERS), 200)).collect();
    files.push(segments(&case.replica(single, "single-0"))[0].clone());
    flip(&files[3], middle(&files[3]) + 90);
    let ended = create(&case);
    let point = taken(&case, ended, FINDINGS, "degraded", "L2");
    let uncovered = |name| partition(&point, name)["uncovered"].to_string();
    for (file, text) in files.iter().zip([ORDERS, ORDERS, ORDERS, "single-0"].map(uncovered)) {
        assert!(text.contains(&*file.to_string_lossy()) && text.contains("batch crc is"), "{text}");
    }
    let others = point["partitions"].as_array().unwrap().iter().filter(|entry| entry["source_node"].is_i64());
    assert_eq!(others.count(), 8, "{point}");

    let planned = case.restore_to("plan", &NODES, &[]).ok().unwrap();
    let warnings = planned["findings"].to_string();
    assert!(warnings.contains(ORDERS) && warnings.contains("single-0"), "{planned}");
    case.restores("table-0", 1);
    let listed = case.segvault.run(&["snapshot", "list"]).unwrap().ok().unwrap();
    assert_eq!(listed["points"][0]["state"], "degraded", "{listed}");
}

#[test]
fn what_all_replicas_have_lost_degrades_the_point_and_is_not_kept_quiet() {
    // A closed segment is gone everywhere: the rest is taken.
    let case = Case::capture();
    NODES.iter().for_each(|node| fs::remove_file(closed(&case.replica(*node, ORDERS))).unwrap());
    let ended = create(&case);
    let point = taken(&case, ended, FINDINGS, "degraded", "L2");
    let orders = partition(&point, ORDERS);
    assert_eq!(orders["end_offset"], 8000, "{orders}");
    assert!(orders["notes"].to_string().contains("offsets 2470 to 4939 are missing"), "{orders}");

    // So is the first one.
    let case = Case::capture();
    NODES.iter().for_each(|node| fs::remove_file(&segments(&case.replica(*node, ORDERS))[0]).unwrap());
    let ended = create(&case);
    let point = taken(&case, ended, FINDINGS, "degraded", "L2");
    let orders = partition(&point, ORDERS);
    assert_eq!((&orders["log_start_offset"], &orders["end_offset"]), (&2470.into(), &8000.into()), "{orders}");
    assert!(orders["notes"].to_string().contains("its epoch history at 0: segments were lost"), "{orders}");

    // The end is gone everywhere.
    let case = Case::capture();
    for log in NODES.iter().map(|node| segments(&case.replica(*node, ORDERS)).pop().unwrap()) {
        let batches = batches(&log);
        truncate(&log, batches[batches.len() - 2]);
    }
    let ended = create(&case);
    let point = taken(&case, ended, FINDINGS, "degraded", "L2");
    let orders = partition(&point, ORDERS);
    assert!(orders["end_offset"].as_i64().unwrap() < 8000, "{orders}");
    assert!(orders["notes"].to_string().contains("below the high watermark 8000"), "{orders}");
}

/// Indexes, producer snapshots and the like are derived from batches: they are not even read for more than a hint.
#[test]
fn side_files_may_be_anything() {
    for damage in [garble as fn(&Path), |path| truncate(path, 3), |path| fs::remove_file(path).unwrap()] {
        let case = Case::capture();
        for node in NODES {
            for name in [ORDERS, "payments-0", "__consumer_offsets-0", "__transaction_state-0", "single-0"] {
                for extension in ["index", "timeindex", "txnindex", "snapshot"] {
                    let dir = case.replica(node, name);
                    let found = if dir.exists() { files(&dir, extension) } else { Vec::new() };
                    found.iter().for_each(|path| damage(path));
                }
            }
        }
        let ended = create(&case);
        let point = taken(&case, ended, 0, "complete", "L3");
        assert_eq!(partition(&point, ORDERS)["source_node"], 1, "{point}");
        case.restores(ORDERS, 1);
    }
}

#[test]
fn garbled_offset_checkpoints_are_named_and_cost_nothing_but_copies() {
    let case = Case::capture();
    let names = ["replication-offset-checkpoint", "log-start-offset-checkpoint", "recovery-point-offset-checkpoint"];
    for node in NODES {
        names.iter().chain(&["cleaner-offset-checkpoint"]).for_each(|name| _ = garbled(&case.log_dir(node), name));
    }
    let ended = create(&case);
    let point = taken(&case, ended, 0, "complete", "L3");
    for name in &names[..2] {
        let path = case.log_dir(3).join(name).display().to_string();
        assert!(point["findings"].to_string().contains(&path), "{name}: {point}");
    }
    case.restores(ORDERS, 1);
}

/// The transaction log is read while a point is taken, not only stored.
#[test]
fn a_damaged_transaction_log_or_group_log_is_named_like_any_other() {
    for topic in ["__transaction_state", "__consumer_offsets"] {
        for (nodes, code, state, level) in
            [(&NODES[..1], 0, "complete", "L3"), (&NODES[..], FINDINGS, "degraded", "L2")]
        {
            let case = Case::capture();
            let mut damaged = Vec::new();
            for node in nodes {
                for name in [0, 1].map(|number| format!("{topic}-{number}")) {
                    let log = segments(&case.replica(*node, &name)).remove(0);
                    if let Some(position) = batches(&log).first() {
                        flip(&log, position + 70);
                        damaged.push((name, log));
                    }
                }
            }
            assert!(!damaged.is_empty());
            let ended = create(&case);
            let point = taken(&case, ended, code, state, level);
            for (name, log) in damaged {
                let entry = partition(&point, &name);
                let text = if code == 0 { &entry["notes"] } else { &entry["uncovered"] };
                assert!(text.to_string().contains(&*log.to_string_lossy()), "{name}: {point}");
            }
            assert_eq!(partition(&point, ORDERS)["uncovered"], Value::Null, "{point}");
            assert_eq!(partition(&point, "single-0")["uncovered"], Value::Null, "{point}");
            case.restores(ORDERS, 1);
        }
    }
}

/// What counts is the end of each controller's log, and one log that can be read up to the greatest of a majority.
#[test]
fn damaged_metadata_is_taken_from_another_controller_as_long_as_a_majority_is_known() {
    /// Nodes whose logs are damaged where they begin, and where they end.
    type Row<'a> = (&'a [i32], &'a [i32], i32, &'a str);
    let table: [Row; 5] = [
        (&[3], &[], 0, "complete"),
        (&[], &[3], 0, "complete"),
        (&[2, 3], &[], 0, "complete"),
        (&[], &[2, 3], FINDINGS, "degraded"),
        (&[1], &[2, 3], 1, ""),
    ];
    for (starts, ends, code, state) in table {
        let case = Case::capture();
        let log = |node: &i32| segments(&case.replica(*node, "__cluster_metadata-0")).pop().unwrap();
        // Within the first batch's length, so that it seems to be the last one, and within the last one's header.
        starts.iter().map(log).for_each(|log| flip(&log, 9));
        ends.iter().map(log).for_each(|log| flip(&log, batches(&log).pop().unwrap() + 45));
        let damaged: Vec<_> = starts.iter().chain(ends).map(|node| log(node).display().to_string()).collect();
        let ended = create(&case);
        if code == 1 {
            let what = ended.error();
            assert!(what.contains("no node has readable cluster metadata"), "{ended:?}");
            assert!(damaged.iter().all(|path| what.contains(path)), "{ended:?}");
            let listed = case.segvault.run(&["snapshot", "list"]).unwrap().ok().unwrap();
            assert_eq!(listed["points"][0]["state"], "aborted", "{listed}");
            continue;
        }
        let point = taken(&case, ended, code, state, "L3");
        assert!(damaged.iter().all(|path| point["findings"].to_string().contains(path)), "{point}");
        assert!(point["partitions"].as_array().unwrap().iter().all(|entry| entry["uncovered"].is_null()), "{point}");
        case.restores(ORDERS, 1);
    }
}

#[test]
fn a_node_whose_files_do_not_belong_together_is_refused_before_anything_is_done() {
    type Deed = fn(&Case) -> PathBuf;
    let table: [(&str, Deed, &[&str]); 12] = [
        (
            "no server.properties",
            |case| {
                fs::remove_file(case.config(2)).unwrap();
                case.config(2)
            },
            &["No such file", "hint: give the node's own server.properties"],
        ),
        (
            "a folder instead",
            |case| {
                fs::remove_file(case.config(2)).unwrap();
                fs::create_dir(case.config(2)).unwrap();
                case.config(2)
            },
            &["Is a directory", "hint: give the node's own server.properties"],
        ),
        (
            "no properties",
            |case| {
                fs::write(case.config(2), [0xde, 0xad, 0x5c, 0x75, 0xbe, 0xef]).unwrap();
                case.config(2)
            },
            &["hint: "],
        ),
        (
            "those of something else",
            |case| {
                fs::write(case.config(2), "bootstrap.servers=localhost:9092\ngroup.id=readers\n").unwrap();
                case.config(2)
            },
            &["process.roles is not set", "hint: give the server.properties of a KRaft node"],
        ),
        (
            "a log dir that is not there",
            |case| {
                case.set(2, "log.dirs", "/nowhere/data");
                case.config(2)
            },
            &["log dir /nowhere/data: there is no such directory", "hint: mount its disk"],
        ),
        (
            "a log dir that is a file",
            |case| {
                let file = case.config(1).display().to_string();
                case.set(2, "log.dirs", &file);
                case.config(2)
            },
            &["there is no such directory", "hint: mount its disk"],
        ),
        (
            "another node id",
            |case| {
                case.set(2, "node.id", "7");
                case.config(2)
            },
            &["meta.properties is of node 2, but", "has node.id=7", "hint: the two belong to different nodes"],
        ),
        (
            "another node's log dir",
            |case| {
                let other = case.log_dir(3).display().to_string();
                case.set(2, "log.dirs", &other);
                case.config(2)
            },
            &["meta.properties is of node 3, but", "has node.id=2"],
        ),
        (
            "one node twice",
            |case| {
                let text = fs::read(case.config(1)).unwrap();
                fs::write(case.config(2), text).unwrap();
                case.config(2)
            },
            &["node 1", "hint: "],
        ),
        (
            "another cluster's node",
            |case| {
                let meta = case.log_dir(2).join("meta.properties");
                let text = fs::read_to_string(&meta).unwrap();
                let line = text.lines().find(|line| line.starts_with("cluster.id=")).unwrap();
                fs::write(&meta, text.replace(line, "cluster.id=AnotherClusterAltogeth")).unwrap();
                case.config(2)
            },
            &["cluster AnotherClusterAltogeth", "give the nodes of one cluster"],
        ),
        (
            "no meta.properties",
            |case| {
                fs::remove_file(case.log_dir(2).join("meta.properties")).unwrap();
                case.log_dir(2)
            },
            &["is not formatted: it has no meta.properties", "hint: check log.dirs"],
        ),
        (
            "a garbled meta.properties",
            |case| garbled(&case.log_dir(2), "meta.properties"),
            &["meta.properties: ", "hint: "],
        ),
    ];
    for (what, deed, wanted) in table {
        let case = Case::capture();
        let path = deed(&case);
        let before = tree(&case.vault());
        let ended = create(&case);
        let said = ended.error();
        assert!(said.contains(&*path.to_string_lossy()), "{what}: the file is named: {said}");
        assert!(wanted.iter().all(|text| said.contains(text)), "{what}: {said}");
        assert!(ended.json["error"].is_string(), "{what}: {ended:?}");
        assert!(tree(&case.vault()) == before, "{what}: the vault has not changed");
    }
}

/// The doctor says the same beforehand, all of it at once, and changes nothing.
#[test]
fn the_doctor_finds_what_would_be_in_the_way() {
    let case = Case::capture();
    let configs: Vec<_> = NODES.iter().map(|node| case.config(*node).display().to_string()).collect();
    let args = configs.iter().flat_map(|config| ["--broker-config", config]);
    let args: Vec<&str> = ["doctor"].into_iter().chain(args).collect();
    let examined = case.segvault.run(&args).unwrap();
    assert_eq!((examined.code, &examined.json["ok"]), (0, &true.into()), "{examined:?}");

    let mut damaged = vec![
        garbled(&case.log_dir(1), "replication-offset-checkpoint"),
        garbled(&case.replica(1, "table-0"), "leader-epoch-checkpoint"),
        segments(&case.replica(1, "__cluster_metadata-0")).remove(0),
        case.log_dir(1).join("lost+found"),
        segments(&case.replica(1, ORDERS)).pop().unwrap(),
    ];
    flip(&damaged[2], batches(&damaged[2]).pop().unwrap() + 45);
    fs::create_dir(&damaged[3]).unwrap();
    flip(&damaged[4], batches(&damaged[4]).pop().unwrap() + 80);
    case.set(2, "log.dirs", "/nowhere/data");
    damaged.push("/nowhere/data".into());
    fs::remove_file(case.config(3)).unwrap();
    damaged.push(case.config(3));
    let nodes = || NODES.map(|node| tree(&case.dir().join(format!("node{node}"))));
    let before = nodes();
    let examined = case.segvault.run(&args).unwrap();
    assert_eq!((examined.code, &examined.json["ok"]), (FINDINGS, &false.into()), "{examined:?}");
    let findings = examined.json["findings"].as_array().unwrap();
    for path in damaged {
        let named = |finding: &&Value| finding.to_string().contains(&*path.to_string_lossy());
        let found = findings.iter().find(named).unwrap_or_else(|| panic!("{}: {findings:?}", path.display()));
        assert_ne!(found["remedy"], "", "{found}");
    }
    assert!(nodes() == before);
}

#[test]
fn what_is_not_a_partition_is_left_alone_and_mentioned() {
    let case = Case::capture();
    let log_dir = case.log_dir(1);
    let id = "0123456789abcdef0123456789abcdef";
    copy(&log_dir.join("table-0"), &log_dir.join(format!("gone-0.{id}-delete"))).unwrap();
    copy(&log_dir.join("table-0"), &log_dir.join(format!("table-0.{id}-future"))).unwrap();
    copy(&log_dir.join("table-0"), &log_dir.join(format!("old-0.{id}-stray"))).unwrap();
    fs::create_dir(log_dir.join("lost+found")).unwrap();
    fs::write(log_dir.join("notes.txt"), "not Kafka's").unwrap();
    fs::write(log_dir.join("table-0/notes.txt"), "not Kafka's").unwrap();
    let ended = create(&case);
    let point = taken(&case, ended, 0, "complete", "L3");
    let findings = point["findings"].to_string();
    assert!(findings.contains(&format!("old-0.{id}-stray")) && findings.contains("lost+found"), "{point}");
    let names: Vec<_> = point["partitions"].as_array().unwrap().iter().map(|entry| &entry["topic"]).collect();
    assert!(!names.iter().any(|name| *name == "gone" || *name == "old"), "{names:?}");
    case.restores("table-0", 1);
}

#[test]
fn pins_go_where_they_can_and_never_into_a_log_dir() {
    // Into a log dir, or where something else is: refused.
    let case = Case::capture();
    let inside = case.log_dir(2).join("pins");
    let file = case.config(1);
    for (staging, wanted) in [(&inside, "lies in the log dir"), (&file, "Not a directory")] {
        let staging = staging.display().to_string();
        let before = tree(&case.log_dir(2));
        let ended = case.create_of(&NODES, &["--staging", &staging]);
        assert!(ended.error().contains(wanted) && ended.error().contains(&staging), "{ended:?}");
        assert!(ended.error().contains("hint: "), "{ended:?}");
        assert!(tree(&case.log_dir(2)) == before);
    }
    // On another file system: files are held open instead.
    let Some(disk) = Disk::mount(&case.dir().join("disk"), "size=4m") else { return };
    let staging = disk.path().display().to_string();
    let ended = case.create_of(&NODES, &["--staging", &staging]);
    let point = taken(&case, ended, 0, "complete", "L3");
    assert_eq!(partition(&point, ORDERS)["end_offset"], 8000);

    // On one that is full: nothing needs space there, unless there is much to copy.
    disk.fill();
    let ended = case.create_of(&NODES, &["--staging", &staging]);
    taken(&case, ended, 0, "complete", "L3");
    NODES.iter().for_each(|node| fs::remove_file(case.log_dir(*node).join("replication-offset-checkpoint")).unwrap());
    disk.read_only();
    let ended = case.create_of(&NODES, &["--staging", &disk.path().join("new").display().to_string()]);
    assert!(ended.error().contains("Read-only file system") && ended.error().contains("hint: "), "{ended:?}");
}

/// Nothing can be made beside the log dir, so pins go to another place: as when its disk was remounted after an error.
#[test]
fn log_dirs_that_cannot_be_written_to_are_captured_all_the_same() {
    for was_captured_before in [false, true] {
        let case = Case::capture();
        let Some(disk) = Disk::mount(&case.dir().join("disk"), "size=64m") else { return };
        copy(&case.dir().join("node1"), disk.path()).unwrap();
        let moved = disk.path().join("node1/data0").display().to_string();
        case.set(1, "log.dirs", &moved);
        if was_captured_before {
            case.create().ok().unwrap();
        }
        disk.read_only();
        let elsewhere = || -> BTreeSet<_> {
            let paths = fs::read_dir("/var/tmp").unwrap().map(|entry| entry.unwrap().path());
            paths.filter(|path| path.to_string_lossy().contains("/segvault-")).collect()
        };
        let before = elsewhere();
        let ended = case.create();
        for made in elsewhere().difference(&before) {
            assert_eq!(fs::read_dir(made.join("pins")).unwrap().count(), 0);
            fs::remove_dir_all(made).unwrap();
        }
        let point = taken(&case, ended, 0, "complete", "L3");
        assert_eq!(partition(&point, ORDERS)["source_node"], 1);
    }
}

/// The cut is where the last closed segment ends.
#[test]
fn closed_segments_alone_make_a_point_that_says_so() {
    let case = Case::capture();
    let ended = case.create_of(&NODES, &["--closed-only"]);
    let point = taken(&case, ended, 0, "complete", "L2");
    assert_eq!((&point["closed_only"], &partition(&point, ORDERS)["end_offset"]), (&true.into(), &7410.into()));
    assert!(point["findings"].to_string().contains("closed segments only"), "{point}");
    case.restore_to("run", &NODES, &[]).ok().unwrap();
    case.restore_to("verify", &NODES, &[]).ok().unwrap();
    for node in NODES {
        let (found, all) = (segments(&case.target(node).join(ORDERS)), segments(&case.replica(node, ORDERS)));
        for (found, expected) in found.iter().zip(&all[..3]) {
            assert!(fs::read(found).unwrap() == fs::read(expected).unwrap(), "{}", found.display());
        }
        let beyond: u64 = found[3..].iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!(beyond, 0, "nothing of the tail");
    }
}
