//! Log dirs on the file systems that brokers use, ext4 and XFS, as a folder on them and as the root of a mount: written
//! by a restore of the golden vault, and captured again from there. Only root can mount; whoever is not is told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use segvault_tests::segvault::{Segvault, golden_node};
use serde_json::Value;

/// The smallest that `mkfs.xfs` takes.
const DISK_LEN: u64 = 304 << 20;
const NONE: Option<&str> = None;

/// A file system in a file, mounted for this thread and its children only.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn make(dir: &Path, mkfs: &[&str]) -> Self {
        let (image, path) = (dir.join("image"), dir.join("disk"));
        fs::File::create(&image).unwrap().set_len(DISK_LEN).unwrap();
        fs::create_dir(&path).unwrap();
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &path]));
        Self { path }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; scripts/setup installs it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Everything below a log dir: path, inode, links, bytes.
fn tree(dir: &Path) -> Vec<(PathBuf, u64, u64, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(tree(&entry.path()));
        }
        let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
        found.push((entry.path(), metadata.ino(), links, metadata.len()));
    }
    found.sort();
    found
}

/// Where each partition of a point ends, and its bytes.
fn ends(point: &Value) -> BTreeMap<(String, i64), (i64, u64)> {
    let partitions = point["partitions"].as_array().unwrap().iter();
    let number = |partition: &Value, name: &str| partition[name].as_i64().unwrap();
    let end = |partition: &Value| (number(partition, "end_offset"), partition["bytes"].as_u64().unwrap());
    partitions
        .map(|partition| {
            ((partition["topic"].as_str().unwrap().to_owned(), number(partition, "partition")), end(partition))
        })
        .collect()
}

/// Restores the golden vault's point 2 to log dirs on `disk`, takes a point from there, and compares both.
/// `is_root`: node 1's log dir is the root of the mount.
fn comes_back(scratch: &Path, disk: &Disk, is_root: bool) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/vault");
    let golden = Segvault::at(format!("file://{}", golden.display()));
    let log_dir = |id: i32| match id {
        1 if is_root => disk.path.clone(),
        id => {
            let parent = if is_root { scratch } else { &disk.path };
            parent.join(format!("node{id}/data"))
        }
    };
    let configs: Vec<String> = (1..=3).flat_map(|id| golden_node(scratch, id, &log_dir(id)).unwrap()).collect();
    let command = |verb: &[&str]| {
        let args: Vec<String> = verb.iter().map(|arg| (*arg).to_owned()).chain(configs.iter().cloned()).collect();
        move |segvault: &Segvault| segvault.run(&args.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
    };
    let restore = command(&["restore", "run", "--point", "2"]);
    let lost_and_found = disk.path.join("lost+found");
    if is_root && lost_and_found.exists() {
        let refused = restore(&golden);
        assert!(refused.error().contains("lost+found"), "{refused:?}");
        fs::remove_dir(lost_and_found).unwrap();
    }
    restore(&golden).ok().unwrap();
    let verified = command(&["restore", "verify", "--point", "2"])(&golden).ok().unwrap();
    assert_eq!(verified["ok"], true, "{verified}");

    let doctor = command(&["doctor"])(&golden);
    let findings = doctor.json["findings"].to_string();
    assert_eq!(findings.contains("is on another file system"), is_root, "{findings}");

    let before: Vec<_> = (1..=3).map(|id| tree(&log_dir(id))).collect();
    let vault = Segvault::init(&scratch.join("vault")).unwrap();
    let create = command(&["snapshot", "create"]);
    for again in [false, true] {
        let point = create(&vault).ok().unwrap();
        assert_eq!((&point["state"], &point["level"]), (&"complete".into(), &"L3".into()), "{point}");
        assert_eq!(point["stored_bytes"] == 0, again, "{point}");
        let expected = golden.run(&["snapshot", "show", "2"]).unwrap().ok().unwrap();
        assert_eq!(ends(&point), ends(&expected));
    }
    let after: Vec<_> = (1..=3).map(|id| tree(&log_dir(id))).collect();
    assert_eq!(before, after, "nothing is created in a log dir, and every link is gone");
}

#[test]
fn log_dirs_on_ext4_and_xfs_come_back_as_folders_and_as_roots_of_mounts() {
    if !geteuid().is_root() {
        println!("SKIPPED: only root can mount; run the tests as root to try ext4 and XFS");
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
    for mkfs in [&["mkfs.ext4", "-q"][..], &["mkfs.xfs", "-q", "-m", "reflink=1"]] {
        for is_root in [false, true] {
            let scratch = tempfile::tempdir().unwrap();
            let disk = Disk::make(scratch.path(), mkfs);
            comes_back(scratch.path(), &disk, is_root);
            drop(disk);
        }
    }
}
