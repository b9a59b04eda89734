//! The log dirs of a node before, during and after a restore.
//!
//! While a restore is under way a log dir has no `meta.properties`, so Kafka refuses to start on it. In its place
//! lies `.segvault-restore`: the future `meta.properties`, with a comment in its first line that says which point is
//! being restored. The last step of a restore *renames* it. So a node is either being restored or whole, at every
//! instant, and a broker can never have run on a dir that still has the marker: whoever finds it may go on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use segvault_alignment::restore::{LogDirPlan, NodePlan, RestorePlan};
use segvault_kafka_log::meta_properties::{MetaProperties, MetaVersion};
use segvault_kafka_log::names::{
    BOOTSTRAP_CHECKPOINT, CLEAN_SHUTDOWN, CLUSTER_METADATA_DIR, CheckpointName, LOCK, META_PROPERTIES,
};
use segvault_vault_format::ids::{BlobId, PointId, VaultId};
use serde::{Deserialize, Serialize};

use super::RestoreError;
use super::files::{Owner, create_dir_all, read_small, remove_dir_all, remove_file, sync, write_file};
use crate::doctor::lock_holder;

/// The marker of a restore that is under way, in every log dir of the node.
pub const RESTORE_MARKER: &str = ".segvault-restore";

/// What introduces the marker's first line.
const COMMENT: &str = "#segvault restore ";

/// Longest marker or `meta.properties` that is read.
const META_LEN_MAX: u64 = 64 << 10;

/// Which point a log dir is restored from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The vault's id.
    pub vault: String,
    /// The point.
    pub point: String,
    /// Its Merkle root.
    pub root: String,
}

impl Origin {
    /// The origin of a restore of `point` with the root `root`.
    pub fn new(vault: VaultId, point: &PointId, root: BlobId) -> Self {
        Self { vault: vault.to_string(), point: point.to_string(), root: root.to_string() }
    }

    fn encode(&self) -> String {
        let json = serde_json::to_string(self).expect("strings are JSON");
        format!("{COMMENT}{json}\n")
    }

    /// Reads the first line of a marker, or of the `meta.properties` that it became.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let line = bytes.split(|byte| *byte == b'\n').next()?;
        serde_json::from_slice(line.strip_prefix(COMMENT.as_bytes())?).ok()
    }
}

/// How a log dir was found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing there, or only what `kafka-storage format` writes.
    Empty(Option<MetaProperties>),
    /// A restore was under way.
    UnderWay(Origin),
    /// A restore was finished.
    Whole(Origin),
}

/// The log dirs of a node, fit to be restored to.
#[derive(Debug)]
pub(super) struct Target {
    pub dirs: Vec<TargetDir>,
    /// A restore from the same point was interrupted.
    pub resumed: bool,
}

/// A log dir that is fit to be restored to.
#[derive(Debug)]
pub(super) struct TargetDir {
    pub path: PathBuf,
    found: Found,
}

impl Target {
    /// Looks at the log dirs of `node` and changes nothing. Refuses those that hold anything, those of a live broker,
    /// and those where another restore was interrupted.
    pub fn inspect(plan: &RestorePlan, node: &NodePlan, origin: &Origin) -> Result<Self, RestoreError> {
        let mut dirs = Vec::new();
        for dir in &node.log_dirs {
            let path = PathBuf::from(&dir.path);
            refuse_if_locked(&path)?;
            dirs.push(TargetDir { found: look(&path)?, path });
        }
        let resumed = dirs.iter().any(|dir| matches!(dir.found, Found::UnderWay(_)));
        for dir in &dirs {
            match &dir.found {
                Found::UnderWay(other) if other != origin => {
                    return Err(RestoreError::AnotherRestore { dir: dir.path.clone(), point: other.point.clone() });
                }
                Found::Whole(other) if !resumed || other != origin => {
                    return Err(RestoreError::AlreadyRestored { dir: dir.path.clone(), point: other.point.clone() });
                }
                Found::Empty(Some(meta)) => check_identity(plan, node, &dir.path, meta)?,
                _ => {}
            }
        }
        Ok(Self { dirs, resumed })
    }

    /// Removes what `kafka-storage format` wrote and puts the markers in place, in this order: a dir with both could be
    /// started on, and the marker would outlive what a broker writes then.
    pub fn begin(&self, plan: &RestorePlan, node: &NodePlan, origin: &Origin) -> Result<(), RestoreError> {
        for (dir, planned) in self.dirs.iter().zip(&node.log_dirs) {
            create_dir_all(&dir.path)?;
            let (meta, marker) = (dir.path.join(META_PROPERTIES), dir.path.join(RESTORE_MARKER));
            match dir.found {
                Found::UnderWay(_) => {}
                Found::Whole(_) => {
                    fs::rename(&meta, &marker).map_err(RestoreError::io("rename", &meta))?;
                }
                Found::Empty(_) => {
                    remove_file(&meta)?;
                    sync(&dir.path)?;
                    let text = [origin.encode(), self.meta(plan, node, dir, planned).encode()].concat();
                    write_file(&marker, text.as_bytes(), Owner::of(&dir.path)?)?;
                    sync(&marker)?;
                }
            }
            for name in [CLEAN_SHUTDOWN, LOCK] {
                remove_file(&dir.path.join(name))?;
            }
            remove_dir_all(&dir.path.join(CLUSTER_METADATA_DIR))?;
            sync(&dir.path)?;
        }
        Ok(())
    }

    fn meta(&self, plan: &RestorePlan, node: &NodePlan, dir: &TargetDir, planned: &LogDirPlan) -> MetaProperties {
        let formatted = match &dir.found {
            Found::Empty(Some(meta)) => meta.directory_id,
            _ => None,
        };
        MetaProperties {
            version: MetaVersion::V1,
            cluster_id: Some(plan.cluster_id.clone()),
            node_id: Some(node.node_id),
            directory_id: planned.directory_id.or(formatted),
        }
    }

    /// The last step: from here on Kafka may start on the dirs. The metadata log dir comes last.
    pub fn finish(&self, node: &NodePlan) -> Result<(), RestoreError> {
        let last = |index: &usize| *index == node.metadata_log_dir;
        let order = (0..self.dirs.len()).filter(|index| !last(index)).chain((0..self.dirs.len()).filter(last));
        for dir in order.map(|index| &self.dirs[index]) {
            let marker = dir.path.join(RESTORE_MARKER);
            fs::rename(&marker, dir.path.join(META_PROPERTIES)).map_err(RestoreError::io("rename", &marker))?;
            sync(&dir.path)?;
        }
        Ok(())
    }
}

fn check_identity(plan: &RestorePlan, node: &NodePlan, dir: &Path, meta: &MetaProperties) -> Result<(), RestoreError> {
    let found_cluster = meta.cluster_id.as_deref().unwrap_or("(none)");
    let found_node = meta.node_id.unwrap_or(-1);
    if (found_cluster, found_node) == (&plan.cluster_id, node.node_id) {
        return Ok(());
    }
    Err(RestoreError::AnotherIdentity {
        file: dir.join(META_PROPERTIES),
        found: format!("node {found_node} of cluster {found_cluster}"),
        expected: format!("node {} of cluster {}", node.node_id, plan.cluster_id),
    })
}

/// Says what is in a log dir; an error if it holds anything that a restore would destroy or Kafka would choke on.
fn look(dir: &Path) -> Result<Found, RestoreError> {
    let read_dir = RestoreError::io("list", dir);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Found::Empty(None));
        }
        other => other.and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).map_err(read_dir)?,
    };
    if entries.iter().any(|entry| entry.file_name() == "lost+found") {
        return Err(RestoreError::MountRoot { dir: dir.to_owned() });
    }
    if let Some(marker) = read_small(&dir.join(RESTORE_MARKER), META_LEN_MAX)? {
        // One that is not whole was caught while it was written, before anything else: nothing else is there yet.
        if let Some(origin) = Origin::decode(&marker).filter(|_| MetaProperties::decode(&marker).is_ok()) {
            return Ok(Found::UnderWay(origin));
        }
    }
    let path = dir.join(META_PROPERTIES);
    let meta = read_small(&path, META_LEN_MAX)?;
    if let Some(origin) = meta.as_deref().and_then(Origin::decode) {
        return Ok(Found::Whole(origin));
    }
    let meta = meta
        .map(|bytes| MetaProperties::decode(&bytes))
        .transpose()
        .map_err(|error| RestoreError::Unreadable { file: path, why: error.to_string() })?;
    let mut foreign = Vec::new();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_formatted(dir, &name)? {
            foreign.push(name);
        }
    }
    if foreign.is_empty() {
        return Ok(Found::Empty(meta));
    }
    foreign.sort();
    Err(RestoreError::NotEmpty { dir: dir.to_owned(), count: foreign.len(), first: foreign.swap_remove(0) })
}

/// Whether `kafka-storage format` may have written it.
fn is_formatted(dir: &Path, name: &str) -> Result<bool, RestoreError> {
    if name != CLUSTER_METADATA_DIR {
        return Ok([META_PROPERTIES, BOOTSTRAP_CHECKPOINT, LOCK, RESTORE_MARKER].contains(&name));
    }
    let path = dir.join(name);
    let names = fs::read_dir(&path).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>, std::io::Error>>()
    });
    let bootstrap = CheckpointName { end_offset: 0, epoch: 0 };
    Ok(names
        .map_err(RestoreError::io("list", &path))?
        .iter()
        .all(|name| CheckpointName::parse(name) == Some(bootstrap)))
}

/// Refuses the log dir of a live broker: that one holds a lock on `.lock`. It is only asked after, never taken.
fn refuse_if_locked(dir: &Path) -> Result<(), RestoreError> {
    let holder = lock_holder(dir).map_err(RestoreError::io("ask for the lock of", &dir.join(LOCK)))?;
    holder.map_or(Ok(()), |pid| Err(RestoreError::Live { dir: dir.to_owned(), pid }))
}

/// Device of the file system that holds `path`, or will once it is created, and bytes free on it for us.
pub(super) fn free_space(path: &Path) -> Result<(u64, u64), RestoreError> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let dev = fs::metadata(existing).map_err(RestoreError::io("look at", existing))?.dev();
    let stat = nix::sys::statvfs::statvfs(existing)
        .map_err(|error| RestoreError::io("ask for the free space of", existing)(error.into()))?;
    Ok((dev, stat.blocks_available().saturating_mul(stat.fragment_size())))
}
