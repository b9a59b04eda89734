//! Looks at everything that could be in the way of a capture, before anything is done.
//!
//! Nothing is created and nothing locked. All findings are collected, so that one look tells everything.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::statfs::statfs;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, Uid, eaccess};

use segvault_kafka_log::batch::{BatchError, BatchHeader, HEADER_LEN};
use segvault_kafka_log::names::{CLUSTER_METADATA_DIR, LOCK, LogDirEntry, SegmentFileKind, segment_file_name};
use segvault_proto::{Finding, Severity};

use crate::agent::tiered;
use crate::capture::on_all_cores;
use crate::capture::pin::{Outcome, sample};
use crate::capture::plan::Listing;
use crate::capture::survey::{Replica, Survey};
use crate::metadata_copy;
use crate::node::{Node, user_name, who_may};
use crate::staging::{cannot_link, folder_for, log_dir_around, raise_descriptor_limit};

/// Below this part of a disk free, one in so many, a pinned segment that retention has removed may fill it.
const FREE_DIVISOR: u64 = 20;

/// Examines the node of a `server.properties`, with pins to go to `staging` or beside each log dir.
pub fn doctor(config: &Path, staging: Option<&Path>) -> Vec<Finding> {
    let mut findings = Findings::default();
    let (node, problems) = match Node::examine(config) {
        Ok(examined) => examined,
        Err(error) => {
            findings.error_with_hint(config, &error.to_string());
            return findings.0;
        }
    };
    problems.iter().for_each(|problem| findings.error_with_hint(config, &problem.to_string()));
    for (index, log_dir) in node.log_dirs.iter().enumerate().filter(|(_, log_dir)| log_dir.is_dir()) {
        findings.directory(&node, index, log_dir, staging);
    }
    let survey = Survey::read(&node.log_dirs);
    survey.problems.iter().for_each(|problem| {
        let remedy = "a broker takes the whole log dir offline for this; restore the file, or remove it";
        findings.add(Severity::Error, config.display(), problem, remedy);
    });
    survey.others.iter().for_each(|(dir, entry)| findings.other_directory(dir, entry));
    findings.links(&node, &survey.replicas);
    for (replica, found) in survey.replicas.iter().zip(on_all_cores(&survey.replicas, examine_replica)) {
        found.into_iter().for_each(|(severity, message, remedy)| {
            findings.add(severity, &replica.partition, message, remedy);
        });
    }
    findings.metadata(&node);
    findings.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, subject: impl ToString, message: impl ToString, remedy: impl ToString) {
        let (subject, message, remedy) = (subject.to_string(), message.to_string(), remedy.to_string());
        self.0.push(Finding { severity, subject, message, remedy });
    }

    /// An error whose text ends with its remedy.
    fn error_with_hint(&mut self, subject: &Path, text: &str) {
        let (message, remedy) = text.split_once("\nhint: ").unwrap_or((text, ""));
        self.add(Severity::Error, subject.display(), message, remedy);
    }

    /// One log dir: its disk, and where its pins would go.
    fn directory(&mut self, node: &Node, index: usize, log_dir: &Path, staging: Option<&Path>) {
        let subject = log_dir.display();
        match lock_holder(log_dir) {
            Ok(Some(_)) => self.add(Severity::Info, &subject, "its broker is running", ""),
            Ok(None) => self.add(Severity::Info, &subject, "its broker is not running", ""),
            Err(error) => {
                self.add(Severity::Warning, &subject, format!("{LOCK}: {error}"), who_may(&log_dir.join(LOCK)))
            }
        }
        if let Some(kind) = poor_file_system(log_dir) {
            let message = format!("it is on {kind}, where files cannot be told apart reliably");
            self.add(Severity::Warning, &subject, message, "keep log dirs on a local file system");
        }
        if let Ok(disk) = statvfs(log_dir) {
            let (free, all) = (disk.blocks_available(), disk.blocks());
            if free < all / FREE_DIVISOR {
                let percent = free * 100 / all.max(1);
                let message =
                    format!("only {percent} % of its disk is free; pinned segments keep their space until uploaded");
                self.add(Severity::Warning, &subject, message, "free some space, or take the point at a quiet time");
            }
        }
        if node.facts.broker {
            self.staging(node, index, log_dir, staging);
        }
    }

    fn staging(&mut self, node: &Node, index: usize, log_dir: &Path, staging: Option<&Path>) {
        let Some(folder) = folder_for(log_dir, staging) else {
            return self.no_links(log_dir, "the root of a file system has nothing beside it", index);
        };
        if let Some(around) = log_dir_around(&folder, &node.log_dirs) {
            let message = format!(
                "it lies in the log dir {}, where a foreign directory keeps the broker from starting",
                around.display()
            );
            let remedy = "give a staging folder on the same file system and outside every log dir";
            return self.add(Severity::Error, folder.display(), message, remedy);
        }
        let Some(there) = folder.ancestors().find(|ancestor| ancestor.exists()) else {
            return;
        };
        if let Some(reason) = cannot_link(log_dir, there) {
            return self.no_links(log_dir, &reason, index);
        }
        if eaccess(there, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
            let reason = format!("{} is not writable for {}", there.display(), us());
            self.no_links(log_dir, &reason, index);
        }
    }

    fn no_links(&mut self, log_dir: &Path, reason: &str, index: usize) {
        let message = format!("its files cannot be linked, so they are held open instead: {reason}");
        let limit = raise_descriptor_limit();
        let remedy = format!(
            "give a staging folder on its file system and outside every log dir; otherwise up to {limit} files can be held"
        );
        let severity = if index == 0 { Severity::Warning } else { Severity::Info };
        self.add(severity, log_dir.display(), message, remedy);
    }

    fn other_directory(&mut self, dir: &Path, entry: &LogDirEntry) {
        let (severity, message, remedy) = match entry {
            LogDirEntry::Foreign => (
                Severity::Error,
                "this directory is not Kafka's: a broker does not start with it in a log dir",
                "move it out of the log dir",
            ),
            LogDirEntry::Stray(_) => (
                Severity::Warning,
                "the metadata does not know this partition: it is left out",
                "look at it and remove it, or move it out of the log dir",
            ),
            LogDirEntry::Future(_) => (Severity::Info, "a replica on its way from another log dir: it is left out", ""),
            LogDirEntry::Deleted(_) => (Severity::Info, "a partition being deleted: it is left out", ""),
            LogDirEntry::RemoteLogIndexCache => (
                Severity::Warning,
                "tiered storage is on: only what is on local disk is captured",
                "keep the remote objects for as long as the points",
            ),
            LogDirEntry::Partition(_) | LogDirEntry::ClusterMetadata => return,
        };
        self.add(severity, dir.display(), message, remedy);
    }

    /// Whether we may link the broker's files, judged by one of each log dir.
    fn links(&mut self, node: &Node, replicas: &[Replica]) {
        if Uid::effective().is_root() || !hardlinks_are_protected() || may_act_as_any_owner() {
            return;
        }
        for index in 0..node.log_dirs.len() {
            let file = replicas.iter().filter(|replica| replica.log_dir == index).find_map(a_log_file);
            let Some((path, owner)) = file else { continue };
            let may =
                owner == Uid::effective().as_raw() || eaccess(&path, AccessFlags::R_OK | AccessFlags::W_OK).is_ok();
            if !may {
                let (owner, us) = (user_name(owner), us());
                let message = format!(
                    "it belongs to {owner} and this is {us}: fs.protected_hardlinks=1 forbids links, so files are held open"
                );
                self.add(Severity::Warning, path.display(), message, format!("run as {owner}, or as root"));
            }
        }
    }

    fn metadata(&mut self, node: &Node) {
        let dir = node.metadata_log_dir().join(CLUSTER_METADATA_DIR);
        match metadata_copy::copy(&dir) {
            Ok(_) => {}
            Err(_) if !dir.exists() => {
                let remedy = "start the node once; another node's metadata will be taken";
                self.add(Severity::Warning, dir.display(), "there is no metadata log yet", remedy);
            }
            Err(error) => {
                let remedy = "another node's metadata will be taken; the node itself repairs it at its next start";
                self.add(Severity::Warning, dir.display(), error, remedy);
            }
        }
    }
}

/// Whether this process has `CAP_FOWNER`, with which it may link files of others as their owner may.
fn may_act_as_any_owner() -> bool {
    const CAP_FOWNER: u32 = 3;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|set| set >> CAP_FOWNER & 1 == 1)
}

/// What is to be said of one replica.
fn examine_replica(replica: &Replica) -> Vec<(Severity, String, &'static str)> {
    let remedy = "another in-sync replica is taken; without one the partition is missing from the point";
    match sample(replica) {
        Err(error) => vec![(Severity::Error, error.to_string(), "raise the limit of open files (ulimit -n)")],
        Ok(Outcome::Gone) => Vec::new(),
        Ok(Outcome::Unusable(sample)) => {
            let (severity, remedy) = match &replica.twin {
                Some(_) => (Severity::Error, "the broker does not start like this: remove the shorter one"),
                None => (Severity::Warning, remedy),
            };
            vec![(severity, sample.unusable.unwrap_or_default(), remedy)]
        }
        Ok(Outcome::Done((sample, _))) => {
            let mut found = Vec::new();
            if replica.log_start.is_some_and(|start| start < sample.log_start_offset) {
                found.push((
                    Severity::Warning,
                    tiered(replica, &sample),
                    "keep the remote objects for as long as the points",
                ));
            }
            if let Some(magic) = legacy_magic(replica) {
                let message = format!("its oldest segment has message sets of magic {magic}, which are not supported");
                found.push((
                    Severity::Warning,
                    message,
                    "Kafka 4.0 and later rewrite them as they compact; retention removes them",
                ));
            }
            found
        }
    }
}

/// The magic of the first message set, if it is of an old version.
fn legacy_magic(replica: &Replica) -> Option<u8> {
    let base = *Listing::read(&replica.dir).ok()?.logs.keys().next()?;
    let file = File::open(replica.dir.join(segment_file_name(base, SegmentFileKind::Log))).ok()?;
    let mut header = [0; HEADER_LEN];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, 0).ok()?;
    match BatchHeader::parse(&header) {
        Err(BatchError::LegacyMagic(magic)) => Some(magic),
        _ => None,
    }
}

fn a_log_file(replica: &Replica) -> Option<(PathBuf, u32)> {
    let base = *Listing::read(&replica.dir).ok()?.logs.keys().next()?;
    let path = replica.dir.join(segment_file_name(base, SegmentFileKind::Log));
    let owner = fs::metadata(&path).ok()?.uid();
    Some((path, owner))
}

/// Who holds a log dir's lock: a broker that runs. Only asks; the lock is never taken. `Some(0)` is a process that
/// cannot be seen from here.
pub fn lock_holder(log_dir: &Path) -> io::Result<Option<i32>> {
    let file = match File::open(log_dir.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Java's `FileChannel.tryLock` is a POSIX record lock over all of the file.
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid.max(0)))
}

/// The name of a file system that has no reliable inode numbers, change times or links.
fn poor_file_system(path: &Path) -> Option<&'static str> {
    let poor = [
        (libc::NFS_SUPER_MAGIC, "NFS"),
        (libc::SMB_SUPER_MAGIC, "SMB"),
        (0xff53_4d42, "CIFS"),
        (0x6573_5546, "FUSE"),
        (0x0102_1997, "9p"),
    ];
    let kind = statfs(path).ok()?.filesystem_type().0;
    poor.into_iter().find(|(magic, _)| *magic == kind).map(|(_, name)| name)
}

fn hardlinks_are_protected() -> bool {
    fs::read_to_string("/proc/sys/fs/protected_hardlinks").is_ok_and(|text| text.trim() == "1")
}

fn us() -> String {
    user_name(Uid::effective().as_raw())
}
