//! What can go wrong, and what to do about it.

use std::fmt::{Display, Write};
use std::io;
use std::path::{Path, PathBuf};

use segvault_alignment::restore::{Finding, Torn};
use segvault_vault::VaultError;

/// Why a restore was refused or has failed. After a failure the same command may be run again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The operating system said no.
    #[error("{action} {}: {error}{}", .path.display(), hint(.error))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said. Not a source, as the hint comes last.
        error: io::Error,
    },
    /// The log dir is not empty.
    #[error(
        "log dir {} is not empty: {first}{}\n\
         hint: a restore only goes to empty log dirs (a fresh kafka-storage format is fine). Move what is there away, \
         or empty the log dir if it is not needed any more",
        .dir.display(), others(.count)
    )]
    NotEmpty {
        /// The log dir.
        dir: PathBuf,
        /// Files and directories that are in the way.
        count: usize,
        /// One of them.
        first: String,
    },
    /// The log dir is a mount point with `lost+found`.
    #[error(
        "log dir {} has lost+found in it, on which Kafka itself does not start\n\
         hint: use a directory below the mount point as log dir",
        .dir.display()
    )]
    MountRoot {
        /// The log dir.
        dir: PathBuf,
    },
    /// A broker runs on the log dir.
    #[error("log dir {} is in use{}\nhint: stop the broker first", .dir.display(), by(.pid))]
    Live {
        /// The log dir.
        dir: PathBuf,
        /// Who holds its lock; 0 or less if that is not to be known (another container or host).
        pid: i32,
    },
    /// A restore from another point was interrupted here.
    #[error(
        "log dir {} holds an unfinished restore of point {point}\n\
         hint: finish that one (--point {point}), or empty the node's log dirs",
        .dir.display()
    )]
    AnotherRestore {
        /// The log dir.
        dir: PathBuf,
        /// The other point.
        point: String,
    },
    /// A restore was finished here.
    #[error(
        "log dir {} was restored already, from point {point}\n\
         hint: start the node; or empty its log dirs if it is to be restored again",
        .dir.display()
    )]
    AlreadyRestored {
        /// The log dir.
        dir: PathBuf,
        /// The point.
        point: String,
    },
    /// The log dir belongs to another node.
    #[error(
        "{} says {found}, and the restore is for {expected}\n\
         hint: check that the server.properties is the right one; if the log dir is to be taken over, remove the file",
        .file.display()
    )]
    AnotherIdentity {
        /// The `meta.properties`.
        file: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// A file that nothing can be made of.
    #[error("{}: {why}\nhint: remove it if the log dir is empty otherwise", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Too little space.
    #[error(
        "the file system of {} has {free} bytes free, and the restore needs {needed}\n\
         hint: free space, or restore to another file system",
        .dir.display()
    )]
    NoSpace {
        /// A log dir on it.
        dir: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The vault does not give what it should.
    #[error("read {what} from the vault")]
    Vault {
        /// A partition, or the metadata.
        what: String,
        /// What is wrong.
        source: Box<VaultError>,
    },
    /// The bytes are not what the manifest says, though their hash is right: written by a faulty program.
    #[error("the vault's bytes of {partition} do not fit its manifest: {why}\nhint: restore another point")]
    Mismatch {
        /// The partition.
        partition: String,
        /// What is wrong.
        why: String,
    },
    /// Transactions of a partition are not what the point promises of them.
    #[error(
        "{partition}: the point states L3, but not every transaction is whole or absent:{}\n\
         hint: restore another point (segvault snapshot verify proves it beforehand). If there is none, segvault \
         restore run --accept-torn on this host goes on and names all of them; those that hang are to be ended with \
         kafka-transactions.sh before producers start",
        list(.torn)
    )]
    Torn {
        /// The partition.
        partition: String,
        /// What is not whole.
        torn: Vec<Torn>,
    },
    /// The metadata cannot be replayed.
    #[error("replay the point's cluster metadata: {0}\nhint: restore another point")]
    Metadata(String),
    /// Something that was written does not read back as planned.
    #[error(
        "what was written does not read back as planned, so the node must not start:{}\n\
         hint: run the same command again, which writes anew what is damaged; if it comes back, look after the disk \
         (dmesg)",
        list(.0)
    )]
    Damaged(Vec<Finding>),
    /// The caller wanted it.
    #[error("stopped; run the same command again to go on")]
    Stopped,
}

impl RestoreError {
    /// For `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { action, path: path.to_owned(), error }
    }

    /// For `map_err`.
    pub(super) fn vault(what: impl Into<String>) -> impl FnOnce(VaultError) -> Self {
        move |source| Self::Vault { what: what.into(), source: Box::new(source) }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\nhint: free space on that file system and run the same command again: it goes on where it was"
        }
        io::ErrorKind::NotADirectory => "\nhint: log.dirs must name directories",
        io::ErrorKind::ReadOnlyFilesystem => {
            "\nhint: mount it so that it can be written to; an error of the disk may have made it read-only (dmesg)"
        }
        io::ErrorKind::PermissionDenied => "\nhint: run as the broker's user, or as root",
        _ => "",
    }
}

fn by(pid: &i32) -> String {
    match pid {
        1.. => format!(" by process {pid}"),
        _ => String::new(),
    }
}

fn others(count: &usize) -> String {
    match count {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    }
}

fn list<T: Display>(findings: &[T]) -> String {
    const SHOWN: usize = 20;
    let mut text = String::new();
    for finding in findings.iter().take(SHOWN) {
        let _ = write!(text, "\n- {finding}");
    }
    if findings.len() > SHOWN {
        let _ = write!(text, "\n- and {} more", findings.len() - SHOWN);
    }
    text
}
