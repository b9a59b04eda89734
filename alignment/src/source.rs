//! Whose replica of a partition a restore point takes.
//!
//! Replicas are compared by (last leader epoch, log end): of two logs with the same last epoch one is a prefix of the
//! other, and a leader of a later epoch was elected with everything that was committed before. A partition is
//! *covered* if a replica that was in sync **when the point began** is among those pinned: whatever was acknowledged
//! before is in it, and so in every replica that compares greater. (The in-sync set is read after the point began and
//! before anything is pinned. A replica that joined it in between had caught up first.)

use std::cmp::Reverse;
use std::collections::BTreeSet;

use segvault_kafka_log::metadata::PartitionImage;

use crate::sample::LogPosition;

/// A pinned replica that could be the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Whose.
    pub node_id: i32,
    /// Where it ends.
    pub position: LogPosition,
    /// Where it begins.
    pub log_start_offset: i64,
    /// It has lost segments at its beginning.
    pub lost_start: bool,
}

/// The replicas to take, best first: the first is the source, the others stand in if it cannot be read.
///
/// Only replicas that hold everything acknowledged are listed: those at or above some replica of `in_sync`. Of equal
/// replicas one that has lost its beginning is the worst; the others are told apart by `previous`, the source of the
/// last point (what it knows need not be read again), then by where they begin, then by node id. Empty: the partition is
/// not covered.
pub fn rank(candidates: &[Candidate], in_sync: &BTreeSet<i32>, previous: Option<i32>) -> Vec<Candidate> {
    let complete_from = candidates
        .iter()
        .filter(|candidate| in_sync.contains(&candidate.node_id))
        .map(|candidate| candidate.position)
        .min();
    let Some(complete_from) = complete_from else {
        return Vec::new();
    };
    let mut ranked: Vec<_> =
        candidates.iter().filter(|candidate| candidate.position >= complete_from).cloned().collect();
    ranked.sort_by_key(|candidate| {
        let Candidate { node_id, position, log_start_offset, lost_start } = *candidate;
        (Reverse(position), lost_start, Some(node_id) != previous, log_start_offset, node_id)
    });
    ranked
}

/// Replicas that hold everything acknowledged: the in-sync ones and, while there are too few of them to acknowledge
/// anything, the eligible leaders (KIP-966).
pub fn in_sync(image: &PartitionImage) -> BTreeSet<i32> {
    match (&image.isr[..], &image.elr[..], &image.last_known_elr[..]) {
        // Its broker has come back from a kill: until it leads again it is in neither set, and Kafka elects no other one
        // (`PartitionChangeBuilder.canElectLastKnownLeader`).
        ([], [], [last]) => BTreeSet::from([*last]),
        (isr, elr, _) => isr.iter().chain(elr).copied().collect(),
    }
}
