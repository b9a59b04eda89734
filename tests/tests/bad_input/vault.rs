//! Vaults that are none, are full, or have lost or changed an object.

use crate::fixture::*;
use segvault_tests::segvault::Segvault;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Longest that a mistake may take to be noticed.
const NOTICE_MAX: Duration = Duration::from_secs(60);

/// All objects of a vault, by key.
fn objects(vault: &Path) -> Vec<String> {
    let files = tree(vault).into_keys().filter(|path| path.is_file());
    files.map(|path| path.strip_prefix(vault).unwrap().display().to_string()).collect()
}

type Damage = fn(&Path);

/// What can become of an object.
const DAMAGES: [(&str, Damage); 5] = [
    ("a bit flipped", |path| flip(path, fs::metadata(path).unwrap().len() as usize / 4)),
    ("another bit flipped", |path| flip(path, fs::metadata(path).unwrap().len() as usize / 3)),
    ("cut", |path| truncate(path, fs::metadata(path).unwrap().len() as usize / 2)),
    ("emptied", |path| truncate(path, 0)),
    ("deleted", |path| fs::remove_file(path).unwrap()),
];

#[test]
fn a_damaged_object_is_named_and_once_repaired_the_restore_goes_on() {
    for key in objects(&Case::restore().vault()) {
        let case = Case::restore();
        let path = case.vault().join(&key);
        let intact = fs::read(&path).unwrap();
        for (what, damage) in DAMAGES {
            damage(&path);
            if case.targets().exists() {
                fs::remove_dir_all(case.targets()).unwrap();
            }
            let (listed, shown) = (["snapshot", "list"], ["snapshot", "show"]);
            let commands = [listed, shown].map(|command| case.segvault.run(&command).unwrap());
            let ended = case.restore_to("run", &NODES, &[]);
            if key.ends_with("/intent") && what != "deleted" {
                // It says who takes a point and what he builds on: nothing that a restore needs.
                assert!(commands[0].error().contains(&key), "{key} {what}: {commands:?}");
                assert_eq!(ended.code, 0, "{ended:?}");
            } else {
                assert!(ended.error().contains(&key), "{key} {what}: {ended:?}");
                assert!(ended.error().contains("\nhint: "), "{key} {what}: {ended:?}");
                case.assert_not_startable();
                assert_ne!(case.restore_to("verify", &NODES, &[]).code, 0, "{key} {what}");
                let proof = case.segvault.run(&["snapshot", "verify"]).unwrap();
                let says = proof.code == 1 || proof.code == 3 && proof.json["proven"].is_null();
                let names = proof.stderr.contains(&key) || proof.json["flaws"].to_string().contains(&key);
                assert!(says && names, "{key} {what}: {proof:?}");
                // A point is shown from its manifest, without its data; a list is made from intents and outcomes.
                let [listed, shown] = &commands;
                let is_pack = key.starts_with("packs/");
                assert_eq!(shown.code, i32::from(!is_pack), "{key} {what}: {shown:?}");
                assert!(is_pack || shown.stderr.contains(&key), "{key} {what}: {shown:?}");
                let is_listed =
                    key == "vault" || (key.starts_with("clusters/") || key.ends_with("outcome")) && what != "deleted";
                assert!(!is_listed || listed.error().contains(&key), "{key} {what}: {listed:?}");
            }
            fs::write(&path, &intact).unwrap();
        }
        case.restores(ORDERS, 1);
    }
}

#[test]
fn a_later_version_is_not_called_damaged() {
    let case = Case::restore();
    for key in objects(&case.vault()).into_iter().filter(|key| !key.starts_with("packs/")) {
        let path = case.vault().join(&key);
        let intact = fs::read(&path).unwrap();
        let mut later = intact.clone();
        later[9] += 1;
        fs::write(&path, later).unwrap();
        let command = if key.ends_with("/intent") { "list" } else { "show" };
        let ended = case.segvault.run(&["snapshot", command]).unwrap();
        let error = ended.error();
        assert!(error.contains(&key) && error.contains("format version 2"), "{key}: {error}");
        assert!(error.contains("hint: use a newer segvault"), "{key}: {error}");
        fs::write(&path, intact).unwrap();
    }
}

/// Points are numbered, and the newest is the one that counts: a lost object must not make an older one the newest.
#[test]
fn a_lost_object_of_the_newest_point_does_not_quietly_bring_back_an_older_one() {
    for name in ["intent", "outcome"] {
        let case = Case::capture();
        (0..3).for_each(|_| _ = case.create().ok().unwrap());
        let key = objects(&case.vault()).into_iter().find(|key| key.ends_with(&format!("3/{name}"))).unwrap();
        fs::remove_file(case.vault().join(&key)).unwrap();
        let ended = case.restore_to("plan", &NODES, &[]);
        if name == "intent" {
            assert!(ended.error().contains(&key), "{ended:?}");
        } else {
            // As if it was never finished, so the one before is the newest.
            assert_eq!((ended.code, ended.json["point"].as_str().unwrap().ends_with("/2")), (0, true), "{ended:?}");
            assert!(ended.stderr.contains("/3") && ended.stderr.contains("not finished"), "{ended:?}");
        }
    }
}

#[test]
fn what_is_no_vault_is_told_soon_and_left_alone() {
    let case = Case::bare();
    let dir = |name: &str| {
        let dir = case.dir().join(name);
        fs::create_dir(&dir).unwrap();
        dir
    };
    let empty = dir("empty");
    let other = dir("other");
    fs::write(other.join("data"), "somebody else's").unwrap();
    let garbage = dir("garbage");
    fs::write(garbage.join("vault"), [0x81; 93]).unwrap();
    let file = empty.with_file_name("file");
    fs::write(&file, "").unwrap();
    let url = |path: &PathBuf| format!("file://{}", path.display());
    let refused = Segvault::at("s3://bucket/prefix".into())
        .with("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        .with("AWS_ALLOW_HTTP", "true")
        .with("AWS_ACCESS_KEY_ID", "id")
        .with("AWS_SECRET_ACCESS_KEY", "hunter2");
    let table: [(Segvault, &[&str]); 10] = [
        (Segvault::at("file:///nowhere/vault".into()), &["there is no vault at file:///nowhere/vault"]),
        (Segvault::at(url(&empty)), &["there is no vault at", "vault init"]),
        (Segvault::at(url(&other)), &["there is no vault at", "vault init"]),
        (Segvault::at(url(&garbage)), &["vault in file://", "is damaged", "does not begin with SEGVAULT"]),
        (Segvault::at(url(&file)), &["there is no vault at"]),
        (Segvault::at("/srv/vault".into()), &["/srv/vault", "file:///"]),
        (Segvault::at("ftp://host/vault".into()), &["ftp://", "s3://"]),
        (Segvault::at("s3://".into()), &["s3://", "bucket"]),
        (Segvault::at(String::new()), &["file:///", "s3://"]),
        (refused, &["cannot be reached", "hint: check endpoint"]),
    ];
    let before = tree(case.dir());
    for (segvault, wanted) in &table {
        for command in [&["snapshot", "list"][..], &["snapshot", "show"]] {
            let began = Instant::now();
            let ended = segvault.run(command).unwrap();
            assert!(wanted.iter().all(|text| ended.error().contains(text)), "{wanted:?}: {ended:?}");
            assert!(ended.error().contains("hint: "), "{ended:?}");
            assert!(began.elapsed() < NOTICE_MAX, "{ended:?}");
        }
    }
    assert!(tree(case.dir()) == before, "nothing was written");
}

#[test]
fn a_vault_is_made_once_and_not_over_what_is_left_of_one() {
    let case = Case::restore();
    let before = tree(&case.vault());
    let ended = case.segvault.run(&["vault", "init"]).unwrap();
    assert!(ended.error().contains("is a vault already") && ended.error().contains("hint: "), "{ended:?}");
    fs::remove_file(case.vault().join("vault")).unwrap();
    let ended = case.segvault.run(&["vault", "init"]).unwrap();
    assert!(ended.error().contains("vault is missing") && ended.error().contains("hint: bring"), "{ended:?}");
    assert!(!case.vault().join("vault").exists());
    assert_eq!(tree(&case.vault()).len(), before.len() - 1, "no probe is left");
}

#[test]
fn a_vault_on_a_full_disk_loses_nothing_and_goes_on_once_there_is_space() {
    let case = Case::capture();
    let Some(disk) = Disk::mount(&case.dir().join("disk"), "size=2m") else { return };
    let segvault = Segvault::at(format!("file://{}/vault", disk.path().display()));
    let mut case = case;
    case.segvault = segvault;
    let vault = disk.path().join("vault");
    case.segvault.run(&["vault", "init"]).unwrap().ok().unwrap();

    // Too little for the first point.
    let failed = |ended: segvault_tests::segvault::Ended| {
        let error = ended.error();
        assert!(error.contains("no space left at file://") && error.contains("hint: free some space"), "{error}");
        let listed = case.segvault.run(&["snapshot", "list"]).unwrap().ok().unwrap();
        let points = listed["points"].as_array().unwrap();
        assert!(objects(&vault).iter().all(|key| !key.contains('#')), "no half of an object is left");
        points.iter().filter(|point| point["state"] == "complete").count()
    };
    assert_eq!(failed(case.create()), 0);
    disk.change("size=7m");
    case.create().ok().unwrap();

    // And none for another one.
    let filler = disk.fill();
    assert_eq!(failed(case.create()), 1);
    fs::remove_file(filler).unwrap();
    let point = case.create().ok().unwrap();
    assert!(point["read_bytes"].as_u64().unwrap() < point["bytes"].as_u64().unwrap() / 10, "{point}");
    case.restores(ORDERS, 1);
    let listed = case.segvault.run(&["snapshot", "list"]).unwrap().ok().unwrap();
    let complete = listed["points"].as_array().unwrap().iter().filter(|point| point["state"] == "complete");
    assert_eq!(complete.count(), 2, "{listed}");

    // Not even for a vault.
    disk.fill();
    let other = Segvault::at(format!("file://{}/other", disk.path().display()));
    let ended = other.run(&["vault", "init"]).unwrap();
    assert!(ended.error().contains("no space left"), "{ended:?}");
    assert!(!disk.path().join("other/vault").exists());
}
