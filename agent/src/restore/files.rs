//! Files and directories as Kafka wants them: fresh inodes, the log dir's owner, mode 0644 and 0755.
//!
//! Nothing is synced file by file. A restore makes thousands of small files, and one `syncfs` puts all of them on
//! disk in a fraction of the time; it reports failed write-back since Linux 5.8. Large files are handed to the disk
//! while they grow, so that it has little left to do.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::RestoreError;

/// No page is longer, on any machine that Linux runs on.
const PAGE_LEN_MAX: u64 = 64 << 10;

const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// Whose the files are to be: the log dir's owner, which is the broker's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The owner of `path`.
    pub fn of(path: &Path) -> Result<Self, RestoreError> {
        let metadata = fs::metadata(path).map_err(RestoreError::io("look at", path))?;
        Ok(Self { uid: metadata.uid(), gid: metadata.gid() })
    }

    fn take(self, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        if (metadata.uid(), metadata.gid()) != (self.uid, self.gid) {
            fchown(file, Some(self.uid), Some(self.gid))?;
        }
        let mode = if metadata.is_dir() { DIR_MODE } else { FILE_MODE };
        if metadata.mode() & 0o777 != mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// Creates a file that must not be there yet.
pub(super) fn create_file(path: &Path, owner: Owner) -> Result<File, RestoreError> {
    let create = || {
        let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
        owner.take(&file)?;
        Ok(file)
    };
    create().map_err(RestoreError::io("create", path))
}

/// Writes a whole small file, in place of one that may be there.
pub(super) fn write_file(path: &Path, bytes: &[u8], owner: Owner) -> Result<(), RestoreError> {
    remove_file(path)?;
    create_file(path, owner)?.write_all(bytes).map_err(RestoreError::io("write", path))
}

/// Creates a directory that must not be there yet.
pub(super) fn create_dir(path: &Path, owner: Owner) -> Result<(), RestoreError> {
    let create = || {
        DirBuilder::new().mode(DIR_MODE).create(path)?;
        owner.take(&File::open(path)?)
    };
    create().map_err(RestoreError::io("create", path))
}

/// Creates a directory and those above it that are missing; they get the owner of the one above them all.
pub(super) fn create_dir_all(path: &Path) -> Result<(), RestoreError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    let Some(top) = missing.last() else {
        return Ok(());
    };
    let parent = top.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let owner = Owner::of(parent)?;
    missing.iter().rev().try_for_each(|path| create_dir(path, owner))
}

/// Removes a file; one that is not there is fine.
pub(super) fn remove_file(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RestoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory with what is in it; one that is not there is fine.
pub(super) fn remove_dir_all(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RestoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Puts a file on disk, or a directory's entries.
pub(super) fn sync(path: &Path) -> Result<(), RestoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(RestoreError::io("sync", path))
}

/// Bytes that a directory's files take; 0 if it is not there.
pub(super) fn allocated(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let blocks = files.filter_map(|file| Some(file.metadata().ok()?.blocks()));
    blocks.sum::<u64>() * 512
}

/// Reads a small file whole; `None` if it is not there. One longer than `len_max` is an error.
pub(super) fn read_small(path: &Path, len_max: u64) -> Result<Option<Vec<u8>>, RestoreError> {
    let read = || {
        if fs::metadata(path)?.len() > len_max {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {len_max} bytes")));
        }
        fs::read(path)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(RestoreError::io("read", path)),
    }
}

/// Begins to write a file's bytes in `[offset, offset + len)` back to disk, without waiting. Only a hint: if it cannot
/// be done the sync at the end has more to do.
pub(super) fn start_write_back(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return;
    };
    // SAFETY: a system call on a descriptor that `file` keeps open; it touches no memory of ours.
    unsafe { nix::libc::sync_file_range(file.as_raw_fd(), offset, len, nix::libc::SYNC_FILE_RANGE_WRITE) };
}

/// Makes the next read of a file's bytes from `offset` on come from the disk, where they are there already. Only a
/// hint, as some file systems have nothing but memory.
pub(super) fn forget_cached(file: &File, offset: u64) {
    // The kernel keeps pages that are in part outside.
    let page_start = offset - offset % PAGE_LEN_MAX;
    let Ok(from) = i64::try_from(page_start) else { return };
    let _ = posix_fadvise(file, from, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// A file system with something to sync, kept open from before anything is written to it, since `syncfs` reports what
/// went wrong since then.
pub(super) struct FileSystem {
    path: PathBuf,
    dir: File,
    dev: u64,
}

impl FileSystem {
    /// The file systems that hold `paths`, each once.
    pub fn of<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<Vec<Self>, RestoreError> {
        let mut systems: Vec<Self> = Vec::new();
        for path in paths {
            let dir = File::open(path).map_err(RestoreError::io("open", path))?;
            let dev = dir.metadata().map_err(RestoreError::io("look at", path))?.dev();
            if systems.iter().all(|system| system.dev != dev) {
                systems.push(Self { path: path.to_owned(), dir, dev });
            }
        }
        Ok(systems)
    }

    /// Puts everything on disk that was written to it.
    pub fn sync(&self) -> Result<(), RestoreError> {
        nix::unistd::syncfs(&self.dir)
            .map_err(|error| RestoreError::io("sync the file system of", &self.path)(error.into()))
    }
}
