//! Where pins live: one folder per log dir, on the same file system and outside every log dir.
//!
//! ```text
//! <log dir's parent>/.segvault-<log dir's name>/
//!   lock        held with flock(2) while an agent of the node runs
//!   pins/       hardlinks, one per pinned file; whatever is here at a start is left over from a crash
//! ```
//!
//! Any foreign directory inside a log dir keeps the broker from starting, so a folder that would lie in one is
//! refused. Where links are impossible (the log dir is a mount point of its own, files belong to somebody else and
//! `fs.protected_hardlinks` is on, ...) an open descriptor does the same service for as long as we live.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{AccessFlags, Uid, eaccess};

use segvault_kafka_log::names::META_PROPERTIES;

use crate::pinned::{Pin, Tally};

/// Where folders go that cannot be made beside their log dir. Survives a restart, unlike `/tmp`.
const ELSEWHERE: &str = "/var/tmp";
const LOCK: &str = "lock";
const PINS: &str = "pins";

/// Why there is no place for pins.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The folder would lie in a log dir.
    #[error(
        "staging folder {} lies in the log dir {}, where a foreign directory keeps the broker from starting\n\
         hint: give another one, on the same file system and outside every log dir",
        folder.display(), log_dir.display()
    )]
    InsideLogDir {
        /// The folder.
        folder: PathBuf,
        /// The log dir.
        log_dir: PathBuf,
    },
    /// Another agent of this node runs.
    #[error(
        "another agent for this node is running: it holds {}\nhint: wait for it, or end it", lock.display()
    )]
    Locked {
        /// The file that it has locked.
        lock: PathBuf,
    },
    /// The folder cannot be made or used.
    #[error("staging folder {}: {source}\nhint: {hint}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
        /// What to do.
        hint: &'static str,
    },
}

/// The places for a node's pins. Exclusively ours until dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    folders: Vec<Folder>,
    next_pin: AtomicU64,
    tally: Tally,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Links were possible so far; otherwise why not has been said.
    can_link: AtomicBool,
    _lock: File,
}

impl Staging {
    /// Makes and locks a folder for each of `log_dirs`, inside `parent` or beside the log dir, and removes what an
    /// earlier agent has left pinned.
    pub fn open(log_dirs: &[PathBuf], parent: Option<&Path>) -> Result<Self, StagingError> {
        let folders =
            log_dirs.iter().map(|log_dir| Folder::open(log_dir, log_dirs, parent)).collect::<Result<_, _>>()?;
        Ok(Self { folders, next_pin: AtomicU64::new(0), tally: Tally::default() })
    }

    /// How much is pinned at the moment.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The folder of a log dir, for other files of ours.
    pub fn folder(&self, log_dir: usize) -> &Path {
        &self.folders[log_dir].path
    }

    /// Pins the file at `source`, which is in the log dir numbered `log_dir`.
    pub fn pin(&self, log_dir: usize, source: &Path) -> io::Result<Pin> {
        let folder = &self.folders[log_dir];
        if folder.can_link.load(Ordering::Relaxed) {
            let number = self.next_pin.fetch_add(1, Ordering::Relaxed);
            let path = folder.path.join(PINS).join(format!("{number}.log"));
            match fs::hard_link(source, &path) {
                Ok(()) => {
                    let bytes = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
                    return Ok(Pin::Link(path, self.tally.hold(bytes)));
                }
                Err(error) if is_no_link(&error) => folder.say_no_link(source, &error),
                Err(error) => return Err(error),
            }
        }
        let file = File::open(source)?;
        let bytes = file.metadata()?.len();
        Ok(Pin::Descriptor(file, self.tally.hold(bytes)))
    }
}

/// Whether linking fails for a reason that does not keep us from reading.
fn is_no_link(error: &io::Error) -> bool {
    use libc::{EACCES, EDQUOT, EMLINK, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EROFS, EXDEV};
    let reasons = [EXDEV, EPERM, EMLINK, EACCES, ENOSPC, EDQUOT, EROFS, EOPNOTSUPP, ENOSYS];
    error.raw_os_error().is_some_and(|errno| reasons.contains(&errno))
}

impl Folder {
    fn open(log_dir: &Path, log_dirs: &[PathBuf], parent: Option<&Path>) -> Result<Self, StagingError> {
        let path = make(log_dir, log_dirs, parent)?;
        let failed = |source, hint| StagingError::Io { folder: path.clone(), source, hint };
        let usual = "it must be a folder that the agent's user may write to";
        let lock = path.join(LOCK);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let file = file.map_err(|source| {
            let hint = match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "it was made by another user: run the agent as that user, or give another folder"
                }
                _ => usual,
            };
            failed(source, hint)
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StagingError::Locked { lock }),
            Err(TryLockError::Error(source)) => return Err(failed(source, usual)),
        }
        reap(&path.join(PINS)).map_err(|source| failed(source, usual))?;
        let reason = cannot_link(log_dir, &path);
        if let Some(reason) = &reason {
            tracing::info!(log_dir = %log_dir.display(), reason, "files are held open instead of linked");
        }
        Ok(Self { path, can_link: AtomicBool::new(reason.is_none()), _lock: file })
    }

    fn say_no_link(&self, source: &Path, error: &io::Error) {
        // Another user's file or a full disk may concern some files only, another mount concerns all.
        if error.raw_os_error() == Some(libc::EXDEV) {
            self.can_link.store(false, Ordering::Relaxed);
        }
        tracing::debug!(path = %source.display(), %error, "file is held open instead of linked");
    }
}

/// Empties the folder of pins.
fn reap(pins: &Path) -> io::Result<()> {
    match fs::remove_dir_all(pins) {
        Ok(()) => tracing::debug!(path = %pins.display(), "pins of an earlier run are removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    DirBuilder::new().mode(0o700).create(pins)
}

/// Where the pins of `log_dir` belong: inside `parent`, or beside the log dir.
pub(crate) fn folder_for(log_dir: &Path, parent: Option<&Path>) -> Option<PathBuf> {
    let log_dir = resolve(log_dir);
    let name = log_dir.file_name()?.to_string_lossy().into_owned();
    Some(match parent {
        Some(parent) => resolve(parent).join(unique(&log_dir, &name)),
        None => log_dir.parent()?.join(format!(".segvault-{name}")),
    })
}

/// The log dir that `folder` lies in, if it does: one of `log_dirs`, or any that has a `meta.properties`.
pub(crate) fn log_dir_around(folder: &Path, log_dirs: &[PathBuf]) -> Option<PathBuf> {
    let folder = resolve(folder);
    let ours = log_dirs.iter().find(|log_dir| folder.starts_with(resolve(log_dir)));
    let foreign = || folder.ancestors().skip(1).find(|dir| dir.join(META_PROPERTIES).exists()).map(Path::to_owned);
    ours.cloned().or_else(foreign)
}

/// Why files of `log_dir` cannot be linked into `folder`, if that is known beforehand.
pub(crate) fn cannot_link(log_dir: &Path, folder: &Path) -> Option<String> {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let (ours, theirs) = (device(folder), device(log_dir));
    (ours != theirs).then(|| format!("{} is on another file system", folder.display()))
}

/// Makes the folder for `log_dir`, or one elsewhere if nothing can be made beside the log dir.
fn make(log_dir: &Path, log_dirs: &[PathBuf], parent: Option<&Path>) -> Result<PathBuf, StagingError> {
    let folder = folder_for(log_dir, parent);
    let error = match &folder {
        Some(folder) => match make_folder(folder, log_dirs)?.and_then(|()| refuse_read_only(folder)) {
            Ok(()) => return Ok(folder.clone()),
            Err(error) => error,
        },
        None => io::Error::other("the root of the file system has nothing beside it"),
    };
    let read_only = error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    if parent.is_some() || !read_only && folder.as_ref().is_some_and(|folder| folder.exists()) {
        let hint = "it must be a folder that the agent's user may write to";
        return Err(StagingError::Io { folder: folder.unwrap_or_default(), source: error, hint });
    }
    let elsewhere = elsewhere(log_dir);
    tracing::info!(log_dir = %log_dir.display(), %error, staging = %elsewhere.display(), "nothing can be made beside the log dir");
    let failed = |source| StagingError::Io {
        folder: elsewhere.clone(),
        source,
        hint: "give a folder on the log dir's file system, outside every log dir, that the agent's user may write to",
    };
    make_folder(&elsewhere, log_dirs)?.map_err(failed)?;
    let ours = fs::symlink_metadata(&elsewhere).map_err(failed)?;
    if !ours.is_dir() || ours.uid() != Uid::effective().as_raw() {
        return Err(failed(io::Error::other("it belongs to another user")));
    }
    Ok(elsewhere)
}

fn make_folder(folder: &Path, log_dirs: &[PathBuf]) -> Result<io::Result<()>, StagingError> {
    if let Some(log_dir) = log_dir_around(folder, log_dirs) {
        return Err(StagingError::InsideLogDir { folder: folder.into(), log_dir });
    }
    Ok(DirBuilder::new().mode(0o700).recursive(true).create(folder))
}

/// Nothing can be linked into a folder on a file system that is mounted read-only, even if it is there already.
fn refuse_read_only(folder: &Path) -> io::Result<()> {
    match eaccess(folder, AccessFlags::W_OK) {
        Err(Errno::EROFS) => Err(Errno::EROFS.into()),
        _ => Ok(()),
    }
}

/// A folder of our user's for a log dir that nothing can be made beside.
fn elsewhere(log_dir: &Path) -> PathBuf {
    let log_dir = resolve(log_dir);
    let name = log_dir.file_name().map_or("root".into(), |name| name.to_string_lossy().into_owned());
    Path::new(ELSEWHERE).join(format!("segvault-{}-{}", Uid::effective(), unique(&log_dir, &name)))
}

/// A name for a log dir that no other log dir of the host has.
fn unique(log_dir: &Path, name: &str) -> String {
    let hash = blake3::hash(log_dir.as_os_str().as_encoded_bytes()).to_hex();
    format!("{name}-{}", &hash[..12])
}

/// The path without symbolic links, as far as it exists.
fn resolve(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let mut missing = Vec::new();
    for ancestor in absolute.ancestors() {
        if let Ok(real) = fs::canonicalize(ancestor) {
            return missing.into_iter().rev().fold(real, |path, name| path.join(name));
        }
        missing.extend(ancestor.file_name());
    }
    absolute
}

/// Raises the number of files that may be open to what the system allows. Returns that number.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 0;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_dir(root: &Path, name: &str) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(META_PROPERTIES), "").unwrap();
        dir
    }

    #[test]
    fn folder_is_beside_the_log_dir_and_nothing_is_made_inside() {
        let root = tempfile::tempdir().unwrap();
        let logs = log_dir(root.path(), "logs");
        fs::write(logs.join("0.log"), "bytes").unwrap();
        let staging = Staging::open(std::slice::from_ref(&logs), None).unwrap();
        assert_eq!(staging.folder(0), resolve(root.path()).join(".segvault-logs"));
        let pin = staging.pin(0, &logs.join("0.log")).unwrap();
        let Pin::Link(ref path, _) = pin else { panic!("not linked") };
        assert_eq!(fs::metadata(path).unwrap().ino(), fs::metadata(logs.join("0.log")).unwrap().ino());
        assert_eq!(fs::read_dir(&logs).unwrap().count(), 2);
        assert_eq!((staging.tally().files(), staging.tally().bytes()), (1, 5));
        drop(pin);
        assert_eq!((staging.tally().files(), staging.tally().bytes()), (0, 0));
    }

    #[test]
    fn orphan_pins_are_reaped_and_a_second_agent_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let logs = [log_dir(root.path(), "logs")];
        fs::write(logs[0].join("0.log"), "bytes").unwrap();
        let staging = Staging::open(&logs, None).unwrap();
        std::mem::forget(staging.pin(0, &logs[0].join("0.log")).unwrap());
        assert!(matches!(Staging::open(&logs, None), Err(StagingError::Locked { .. })));
        assert_eq!(fs::metadata(logs[0].join("0.log")).unwrap().nlink(), 2);
        drop(staging);
        let _staging = Staging::open(&logs, None).unwrap();
        assert_eq!(fs::metadata(logs[0].join("0.log")).unwrap().nlink(), 1);
    }

    #[test]
    fn a_folder_inside_any_log_dir_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let logs = [log_dir(root.path(), "logs"), log_dir(root.path(), "more")];
        let foreign = log_dir(root.path(), "other-node");
        std::os::unix::fs::symlink(&logs[1], root.path().join("link")).unwrap();
        for parent in [logs[1].clone(), root.path().join("link/x/y"), foreign.clone(), root.path().join("logs/../logs")]
        {
            let refused = Staging::open(&logs, Some(&parent));
            assert!(matches!(refused, Err(StagingError::InsideLogDir { .. })), "{}", parent.display());
        }
        // A log dir inside another one.
        let nested = [foreign.clone(), log_dir(&foreign, "nested")];
        assert!(matches!(Staging::open(&nested[1..], None), Err(StagingError::InsideLogDir { .. })));
        for dir in logs.iter().chain(&nested) {
            assert!(
                fs::read_dir(dir)
                    .unwrap()
                    .all(|entry| { !entry.unwrap().file_name().to_string_lossy().contains("segvault") })
            );
        }
        assert!(!logs[1].join("x").exists());
    }

    #[test]
    fn log_dirs_of_one_name_do_not_share_a_folder() {
        let root = tempfile::tempdir().unwrap();
        let logs = [log_dir(root.path(), "a/logs"), log_dir(root.path(), "b/logs")];
        let staging = Staging::open(&logs, Some(&root.path().join("staging"))).unwrap();
        assert_ne!(staging.folder(0), staging.folder(1));
    }
}
