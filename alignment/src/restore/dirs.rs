//! Which log dir gets which replica.
//!
//! What every host must agree on is decided from the point alone: for each broker its *known* dirs (those that its
//! agent saw, or else those it registered with) and, for each replica, which of them it lies in. The dirs that a
//! `server.properties` names are then matched with the known ones, by path where the paths are the same, else by
//! position.

use std::collections::BTreeMap;

use segvault_kafka_log::Uuid;
use segvault_kafka_log::metadata::{MetadataImage, PartitionImage};
use segvault_vault_format::manifest::NodeEntry;

use super::{LogDirPlan, Target};

/// The directory of a replica that the controller has not been told yet (`DirectoryId.UNASSIGNED`).
pub(super) const UNASSIGNED: Uuid = Uuid(1u128.to_be_bytes());

/// `metadata.version` 3.7-IV2: from there on partitions name their directories.
pub(super) const DIRECTORIES_LEVEL: i16 = 17;

/// Log dirs of a target that are not those of the source.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "node {node}: its log dirs {found:?} cannot be matched with those of the point, {expected:?}: {why}\n\
     hint: name as many log.dirs as the source had, in the same order, and the same one as metadata.log.dir"
)]
pub struct DirError {
    pub(super) node: i32,
    found: Vec<String>,
    expected: Vec<String>,
    why: &'static str,
}

/// A log dir of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownDir {
    /// `None` for a node that no agent spoke for.
    path: Option<String>,
    /// `None` where the source had none.
    pub id: Option<Uuid>,
    /// May get replicas that name no dir: one of `log.dirs`, and online when the point was taken.
    data: bool,
}

/// The dirs of a node, from what its agent saw, or else from its registration and (for the metadata log dir) the
/// voters. The metadata log dir's index comes second; `None` where it is not known.
pub(super) fn known_dirs(
    node_id: i32,
    entry: Option<&NodeEntry>,
    image: &MetadataImage,
) -> (Vec<KnownDir>, Option<usize>) {
    let registered = image.brokers.get(&node_id).map_or(&[][..], |broker| &broker.log_dirs);
    if let Some(entry) = entry {
        let id_of = |bytes: &[u8]| bytes.try_into().ok().map(Uuid);
        let dirs = entry.log_dirs.iter().enumerate().map(|(index, dir)| {
            let id = id_of(&dir.directory_id);
            // Before directory ids a broker had one log dir, the first.
            let data = if registered.is_empty() { index == 0 } else { id.is_some_and(|id| registered.contains(&id)) };
            KnownDir { path: Some(dir.path.clone()), id, data }
        });
        return (dirs.collect(), Some(entry.metadata_log_dir as usize));
    }
    let mut dirs: Vec<_> = registered.iter().map(|id| KnownDir { path: None, id: Some(*id), data: true }).collect();
    let voters = image.voters.iter().flatten();
    let Some(voter) = voters.into_iter().find(|voter| voter.voter_id == node_id) else {
        return (dirs, None);
    };
    let id = Some(voter.voter_directory_id);
    let index = dirs.iter().position(|dir| dir.id == id).unwrap_or_else(|| {
        dirs.push(KnownDir { path: None, id, data: false });
        dirs.len() - 1
    });
    (dirs, Some(index))
}

/// For each partition, in order, the known dir of each replica; `None` for brokers without known dirs.
///
/// A replica goes where the image says. Those that name no known dir follow in order, each to the dir with the
/// fewest bytes so far.
pub(super) fn place<'a>(
    partitions: impl Iterator<Item = (&'a PartitionImage, u64)> + Clone,
    dirs: &BTreeMap<i32, Vec<KnownDir>>,
) -> Vec<Vec<Option<usize>>> {
    let mut loads: BTreeMap<i32, Vec<u64>> = dirs.iter().map(|(node, dirs)| (*node, vec![0; dirs.len()])).collect();
    let mut places: Vec<Vec<Option<usize>>> = Vec::new();
    for (partition, bytes) in partitions.clone() {
        let named = |(slot, node): (usize, &i32)| {
            let id = partition.directories.get(slot).copied().filter(|id| !id.is_reserved());
            let dir = dirs.get(node)?.iter().position(|dir| id.is_some() && dir.id == id)?;
            loads.get_mut(node)?[dir] += bytes;
            Some(dir)
        };
        places.push(partition.replicas.iter().enumerate().map(named).collect());
    }
    for ((partition, bytes), places) in partitions.zip(&mut places) {
        for (node, place) in partition.replicas.iter().zip(places).filter(|(_, place)| place.is_none()) {
            let (Some(dirs), Some(loads)) = (dirs.get(node), loads.get_mut(node)) else {
                continue;
            };
            *place = (0..dirs.len()).filter(|dir| dirs[*dir].data).min_by_key(|dir| loads[*dir]);
            if let Some(dir) = *place {
                loads[dir] += bytes;
            }
        }
    }
    places
}

/// The log dirs of a target, and for each known dir its index among them.
pub(super) struct Matched {
    pub log_dirs: Vec<LogDirPlan>,
    pub metadata_log_dir: usize,
    /// Indices into `log_dirs`, by known dir.
    pub places: Vec<usize>,
    /// How many of `log_dirs` are `log.dirs`.
    pub data: usize,
}

/// Matches the log dirs of a target with the known ones.
pub(super) fn match_dirs(
    target: &Target,
    known: &[KnownDir],
    known_metadata: Option<usize>,
) -> Result<Matched, DirError> {
    let mut paths = target.log_dirs.clone();
    let metadata_log_dir = paths.iter().position(|path| *path == target.metadata_log_dir).unwrap_or_else(|| {
        paths.push(target.metadata_log_dir.clone());
        paths.len() - 1
    });
    let error = |why| DirError {
        node: target.node_id,
        found: paths.clone(),
        expected: known.iter().map(|dir| dir.path.clone().unwrap_or_else(|| "(not known)".into())).collect(),
        why,
    };
    let by_path = |dir: &KnownDir| paths.iter().position(|path| dir.path.as_ref() == Some(path));
    let places = match known.iter().map(by_path).collect::<Option<Vec<_>>>() {
        Some(places) if known.len() == paths.len() => places,
        _ if known.is_empty() => Vec::new(),
        // The dirs that were registered come in no order that means anything, but the metadata log dir's is known.
        _ if known[0].path.is_none() => {
            in_any_order(target, paths.len(), metadata_log_dir, known.len(), known_metadata)
                .ok_or_else(|| error("another number of dirs"))?
        }
        _ if known.len() != paths.len() => {
            return Err(error("neither the paths nor their number are the same"));
        }
        _ => (0..paths.len()).collect(),
    };
    if let Some(known_metadata) = known_metadata
        && target.controller
        && places.get(known_metadata) != Some(&metadata_log_dir)
    {
        return Err(error("another one of them is the metadata log dir"));
    }
    let id_of = |index| places.iter().position(|place| *place == index).and_then(|dir| known[dir].id);
    let log_dirs =
        paths.iter().enumerate().map(|(index, path)| LogDirPlan { path: path.clone(), directory_id: id_of(index) });
    Ok(Matched { log_dirs: log_dirs.collect(), metadata_log_dir, places, data: target.log_dirs.len() })
}

/// Positions for `known` dirs among `count`, such that the metadata log dir (if known) is the target's.
fn in_any_order(
    target: &Target,
    count: usize,
    metadata: usize,
    known: usize,
    known_metadata: Option<usize>,
) -> Option<Vec<usize>> {
    let Some(known_metadata) = known_metadata else {
        // A broker does not register a metadata log dir that stands apart.
        return (known == target.log_dirs.len()).then(|| (0..known).collect());
    };
    let mut others = (0..count).filter(|index| *index != metadata);
    let places = (0..known).map(|dir| if dir == known_metadata { Some(metadata) } else { others.next() });
    places.collect::<Option<Vec<_>>>().filter(|_| known == count)
}
