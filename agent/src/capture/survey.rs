//! Which replicas a node has now, and what the checkpoints of its log dirs say of them.
//!
//! Checkpoints are read before directories are listed: a high watermark read first never exceeds what a log holds
//! that is looked at later.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::checkpoint::decode_offsets;
use segvault_kafka_log::names::{HIGH_WATERMARK_CHECKPOINT, LOG_START_CHECKPOINT, LogDirEntry};

use super::read_small;

/// How often log dirs are listed anew if a partition is in two of them. At the end of a move between log dirs both
/// have it for a moment.
const LOOKS: u32 = 5;
/// Time between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A directory with a partition.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// Which partition.
    pub partition: TopicPartition,
    /// Index of the log dir.
    pub log_dir: usize,
    /// Its directory.
    pub dir: PathBuf,
    /// Checkpointed high watermark; 0 if there is none.
    pub high_watermark: i64,
    /// Checkpointed log start.
    pub log_start: Option<i64>,
    /// Another log dir that has the partition, too: which of both counts only the broker knows.
    pub twin: Option<PathBuf>,
}

/// All log dirs of a node, as they are now.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// By partition.
    pub replicas: Vec<Replica>,
    /// Other directories.
    pub others: Vec<(PathBuf, LogDirEntry)>,
    /// What could not be read, and what has to be done without.
    pub problems: Vec<String>,
}

impl Survey {
    /// Reads the checkpoints of `log_dirs` and lists them. A log dir that cannot be read is a problem, not an error:
    /// its replicas are missing here and other nodes have them.
    pub fn read(log_dirs: &[PathBuf]) -> Self {
        for _ in 1..LOOKS {
            let survey = Self::look(log_dirs);
            if survey.replicas.iter().all(|replica| replica.twin.is_none()) {
                return survey;
            }
            thread::sleep(LOOK_AGAIN);
        }
        Self::look(log_dirs)
    }

    fn look(log_dirs: &[PathBuf]) -> Self {
        let mut survey = Self::default();
        let mut found: BTreeMap<TopicPartition, Replica> = BTreeMap::new();
        for (index, log_dir) in log_dirs.iter().enumerate() {
            let high_watermarks = survey.offsets(log_dir, HIGH_WATERMARK_CHECKPOINT);
            let log_starts = survey.offsets(log_dir, LOG_START_CHECKPOINT);
            let entries = match list(log_dir) {
                Ok(entries) => entries,
                Err(error) => {
                    survey.problems.push(format!("log dir {}: {error}", log_dir.display()));
                    continue;
                }
            };
            for (dir, entry) in entries {
                let LogDirEntry::Partition(partition) = entry else {
                    survey.others.push((dir, entry));
                    continue;
                };
                if let Some(twin) = found.get_mut(&partition) {
                    twin.twin = Some(dir);
                    continue;
                }
                let replica = Replica {
                    log_dir: index,
                    dir,
                    high_watermark: high_watermarks.get(&partition).copied().unwrap_or(0),
                    log_start: log_starts.get(&partition).copied(),
                    twin: None,
                    partition: partition.clone(),
                };
                found.insert(partition, replica);
            }
        }
        survey.replicas = found.into_values().collect();
        survey
    }

    fn offsets(&mut self, log_dir: &Path, name: &str) -> BTreeMap<TopicPartition, i64> {
        let path = log_dir.join(name);
        let problem = match read_small(&path) {
            Ok(bytes) => match decode_offsets(&bytes) {
                Ok(offsets) => return offsets,
                Err(error) => error.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
            Err(error) => error.to_string(),
        };
        self.problems.push(format!("{}: {problem}; taken as empty", path.display()));
        BTreeMap::new()
    }
}

/// The directories in a log dir, by what they are.
fn list(log_dir: &Path) -> io::Result<Vec<(PathBuf, LogDirEntry)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(log_dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let path = entry.path();
        // Kafka follows symbolic links to directories.
        if kind.is_dir() || (kind.is_symlink() && path.is_dir()) {
            let parsed = entry.file_name().to_str().map_or(LogDirEntry::Foreign, LogDirEntry::parse);
            entries.push((path, parsed));
        }
    }
    Ok(entries)
}
