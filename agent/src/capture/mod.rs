//! Looking at replicas and pinning them.
//!
//! `survey` lists a node's replicas, `plan` decides from a partition's listing what to link and what to copy, `pin`
//! does so and holds the result against a second listing.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

pub(crate) mod events;
pub(crate) mod pin;
pub(crate) mod plan;
pub(crate) mod spill;
pub(crate) mod survey;
#[cfg(test)]
mod tests;
pub(crate) mod transactions;

/// Longest small file that is read whole: checkpoints of 100 000 partitions and snapshots of 300 000 producers fit.
const SMALL_FILE_LEN_MAX: u64 = 16 << 20;

/// Why a replica could not be looked at or pinned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicaError {
    /// The log changed under our eyes: look again.
    #[error("{}: {reason}", path.display())]
    Moved {
        /// Where.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl ReplicaError {
    /// An error of the operating system. A file that is gone, or shorter than a moment ago, has moved.
    pub fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotADirectory => {
                Self::Moved { path: path.into(), reason: source.to_string() }
            }
            _ => Self::Io { path: path.into(), source },
        }
    }

    /// A file that is not what it should be.
    pub fn damaged(path: &Path, what: impl ToString) -> Self {
        Self::Damaged { path: path.into(), what: what.to_string() }
    }

    /// Too many descriptors are open: no replica can be looked at any more.
    pub fn is_out_of_descriptors(&self) -> bool {
        use nix::libc::{EMFILE, ENFILE};
        matches!(self, Self::Io { source, .. } if matches!(source.raw_os_error(), Some(EMFILE | ENFILE)))
    }
}

/// Reads a small file whole.
pub(crate) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len > SMALL_FILE_LEN_MAX {
        return Err(io::Error::other(format!("{len} bytes, more than the {SMALL_FILE_LEN_MAX} that are read")));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(SMALL_FILE_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Calls `work` with every item, on all cores, and returns the results in the items' order.
pub(crate) fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    /// Items that a thread takes at once; spares it waiting for the others.
    const TAKEN: usize = 16;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        loop {
            let from = next.fetch_add(TAKEN, Ordering::Relaxed);
            let Some(taken) = items.get(from..items.len().min(from + TAKEN)).filter(|taken| !taken.is_empty()) else {
                return;
            };
            let results: Vec<_> = taken.iter().map(&work).collect();
            done.lock().expect("no thread panics while it holds the lock").push((from, results));
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(items.len().div_ceil(TAKEN));
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    let mut done = done.into_inner().expect("no thread panics while it holds the lock");
    done.sort_unstable_by_key(|(from, _)| *from);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        for count in [0, 1, 16, 17, 1000] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(on_all_cores(&items, |item| item * 2), items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }
}
