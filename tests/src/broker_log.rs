//! What a broker's log must not say after a restore.
//!
//! A truncation counts only where it takes effect (`UnifiedLog.truncateTo` says so by `Truncating to offset`;
//! `ReplicaFetcherManager`'s `Truncating partition … with TruncationState` is also printed for empty followers, where it
//! has no effect), and only where it takes what was there when the node was started. The metadata log has no
//! clean-shutdown marker: Kafka recovers it at every start, and its truncations are raft's business.

use crate::{Cluster, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A line that tells of harm or of lost time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// What it tells of.
    pub kind: Kind,
    /// The line.
    pub line: String,
}

/// What a line tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A log or segment was recovered: the clean marker was missing or did not help.
    Recovery,
    /// An index was missing or wrong and was built again.
    IndexRebuild,
    /// Records were cut off.
    Truncation,
    /// A partition's folder was taken for a stranger's.
    Stray,
    /// A leader was elected that might have lacked records.
    UncleanElection,
    /// Any other line at level ERROR or FATAL.
    Error,
}

const SIGNS: [(Kind, &str); 13] = [
    (Kind::Recovery, "Recovering unflushed segment"),
    (Kind::Recovery, "no clean shutdown file was found"),
    (Kind::Recovery, "Recovering segment"),
    (Kind::IndexRebuild, "recovering segment and rebuilding index files"),
    (Kind::IndexRebuild, "Could not find offset index file"),
    (Kind::IndexRebuild, "Rebuilding index"),
    (Kind::Truncation, "Truncating to offset"),
    (Kind::Truncation, "Truncate fully and start at offset"),
    (Kind::Truncation, "Deleting segments as part of log truncation"),
    (Kind::Stray, "-stray"),
    (Kind::Stray, "Found stray log"),
    (Kind::UncleanElection, "UNCLEAN partition change"),
    (Kind::Error, "Encountered fatal fault"),
];

/// Lines at level ERROR that untouched clusters print as well.
const NOISE: [&str; 8] = [
    // One per start while the controllers elect.
    "NotControllerException",
    "Unexpected error handling request RequestHeader(apiKey=CONTROLLER_REGISTRATION",
    // A peer that is not up yet.
    "Connection to node",
    "DUPLICATE_BROKER_REGISTRATION",
    // A coordinator whose partition was elected away while it was loading; whoever leads now loads it.
    "NotLeaderOrFollowerException: Stopped loading records from",
    // Markers that a coordinator sends before all replicas are up; it sends them again.
    "NotEnoughReplicasException",
    // Kafka 4.3.0: a controller that loses the lead while it is asked for a snapshot fails at its own answer. The node asks
    // again; without the snapshot it would never be up.
    "\"this.unalignedRecords\" is null",
    "Unexpected error UNKNOWN_SERVER_ERROR in FETCH_SNAPSHOT response",
];

/// What a node says once it leads a partition of `__transaction_state` (`TransactionCoordinator.onElection`).
const ELECTED: &str = "Elected as the txn coordinator for partition ";
/// What a partition's leader says of a marker from a coordinator that another one has followed
/// (`ProducerAppendInfo.checkCoordinatorEpoch`), before `ZOMBIE (zombie), CURRENT (current)`.
const FENCED: &str = "TransactionCoordinatorFencedException: Invalid coordinator epoch for producerId ";

/// Epochs to which transaction coordinators were elected, as a node's log since its start says.
pub fn coordinator_epochs(log: &str) -> BTreeSet<i32> {
    let elections = log.lines().filter(|line| line.contains(ELECTED));
    elections.filter_map(|line| number_before(line.split_once(" at epoch ")?.1)).collect()
}

/// The number that a text begins with.
fn number_before(text: &str) -> Option<i32> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Was a marker refused because its coordinator had been followed by one of `elected`? The follower sends it again. A
/// marker that lost to an epoch nobody was elected to lost to what lay in the log before the cluster started: that is a
/// fault, and its transaction hangs.
fn is_followed(line: &str, elected: &BTreeSet<i32>) -> bool {
    let current = || number_before(line.split_once(FENCED)?.1.split_once("(zombie), ")?.1);
    current().is_some_and(|current| elected.contains(&current))
}

/// What a log was when it was loaded ends here (`UnifiedLog.rebuildProducerState`).
const LOADED: &str = "Loading producer state till offset ";
const TRUNCATED: &str = "Truncating to offset ";

/// Where each partition's log ended when the node was started.
fn loaded_ends(log: &str) -> BTreeMap<&str, i32> {
    let mut ends = BTreeMap::new();
    for line in log.lines() {
        if let Some((head, tail)) = line.split_once(LOADED)
            && let (Some(partition), Some(end)) = (partition_of(head), number_before(tail))
        {
            ends.entry(partition).or_insert(end);
        }
    }
    ends
}

/// The partition in `[Class partition=NAME, dir=...]`.
fn partition_of(line: &str) -> Option<&str> {
    line.split_once("partition=")?.1.split(',').next()
}

/// Does a truncation take only what was written since the start? A leader that another one followed before its first
/// records were replicated loses them.
fn keeps_what_was_loaded(line: &str, ends: &BTreeMap<&str, i32>) -> bool {
    let to = || {
        let (head, tail) = line.split_once(TRUNCATED)?;
        Some(number_before(tail)? >= *ends.get(partition_of(head)?)?)
    };
    to().unwrap_or(false)
}

/// Judges the logs of all nodes since their starts.
pub fn examine_all(cluster: &Cluster) -> Result<Vec<(i32, Alarm)>> {
    let log = |node| Ok((node, cluster.broker_log_since_start(node)?));
    let logs = cluster.nodes().into_iter().map(log).collect::<Result<Vec<(i32, String)>>>()?;
    let elected = logs.iter().flat_map(|(_, log)| coordinator_epochs(log)).collect();
    Ok(logs.iter().flat_map(|(node, log)| examine(log, &elected).into_iter().map(|alarm| (*node, alarm))).collect())
}

/// Judges one node's log since its start. `elected` are the [`coordinator_epochs`] of all nodes.
pub fn examine(log: &str, elected: &BTreeSet<i32>) -> Vec<Alarm> {
    let ends = loaded_ends(log);
    // What an error was stands in the line after it.
    let next = log.lines().skip(1).map(Some).chain([None]);
    let alarm = |(line, next): (&str, Option<&str>)| {
        let cause = next.filter(|next| !next.starts_with('[')).unwrap_or_default();
        let line = [line, cause].join(" ").trim_end().to_owned();
        let kind = judge(&line).filter(|_| !is_followed(&line, elected) && !keeps_what_was_loaded(&line, &ends));
        kind.map(|kind| Alarm { kind, line })
    };
    log.lines().zip(next).filter_map(alarm).collect()
}

fn judge(line: &str) -> Option<Kind> {
    // The startup listing of the config may contain anything.
    if line.starts_with('\t') {
        return None;
    }
    let metadata_log = line.contains("__cluster_metadata");
    let expected = |kind: Kind| metadata_log && matches!(kind, Kind::Truncation | Kind::Recovery);
    let sign = SIGNS.iter().find(|(kind, sign)| line.contains(sign) && !expected(*kind));
    let error =
        || (line.contains("] ERROR ") || line.contains("] FATAL ")) && !NOISE.iter().any(|noise| line.contains(noise));
    sign.map(|(kind, _)| *kind).or_else(|| error().then_some(Kind::Error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_truncations_with_an_effect_on_data_count() {
        let harmless = [
            "INFO Truncating partition t-0 with TruncationState(offset=0, completed=true) due to local high watermark 0 (kafka.server.ReplicaFetcherThread)",
            "INFO [UnifiedLog partition=t-0, dir=/d] Truncating to 0 has no effect as the largest offset in the log is -1 (kafka.log.UnifiedLog)",
            "INFO [MetadataLog partition=__cluster_metadata-0] Truncate fully and start at offset 7 (x)",
            "INFO [LogLoader partition=__cluster_metadata-0, dir=/d] Recovering unflushed segment 0. 0 recovered for __cluster_metadata-0. (x)",
            "[d] ERROR [ControllerApis nodeId=1] Unexpected error handling request RequestHeader(apiKey=CONTROLLER_REGISTRATION, ... NotControllerException (x)",
        ];
        let examine = |log: &str| examine(log, &BTreeSet::new());
        assert!(harmless.iter().all(|line| examine(line).is_empty()), "{:?}", examine(&harmless.join("\n")));
        let harm = [
            ("[UnifiedLog partition=t-0, dir=/d] Truncating to offset 492 (x)", Kind::Truncation),
            ("INFO Log in /d/j-1 marked stray and renamed to /d/j-1.bba7-stray (x)", Kind::Stray),
            (
                "[d] ERROR [LogLoader t-0] Could not find offset index file for 0.log, recovering segment and rebuilding index files... (x)",
                Kind::IndexRebuild,
            ),
            ("[d] ERROR something new (x)", Kind::Error),
        ];
        for (line, kind) in harm {
            assert_eq!(examine(line).first().map(|alarm| alarm.kind), Some(kind), "{line}");
        }
    }

    #[test]
    fn a_truncation_may_take_what_was_written_since_the_start_and_nothing_else() {
        let loaded = "[d] INFO [LogLoader partition=t-0, dir=/d] Loading producer state till offset 38 (x)\n";
        let truncated = |partition, offset| {
            format!("{loaded}[d] INFO [UnifiedLog partition={partition}, dir=/d] Truncating to offset {offset} (x)")
        };
        let kinds = |log: &str| examine(log, &BTreeSet::new()).iter().map(|alarm| alarm.kind).collect::<Vec<_>>();
        assert_eq!(kinds(&truncated("t-0", 38)), []);
        assert_eq!(kinds(&truncated("t-0", 37)), [Kind::Truncation]);
        assert_eq!(kinds(&truncated("t-1", 38)), [Kind::Truncation], "it is not known what was loaded of it");
    }

    #[test]
    fn a_marker_may_lose_to_a_coordinator_of_this_cluster_only() {
        let elections = "[d] INFO [TransactionCoordinator id=2] Elected as the txn coordinator for partition 4 at epoch 1002 (x)\n[d] INFO other at epoch 7 (x)";
        let elected = coordinator_epochs(elections);
        assert_eq!(elected, BTreeSet::from([1002]));
        let fenced = |current| {
            format!(
                "[d] ERROR [ReplicaManager broker=2] Error processing append operation on partition id:payments-1 (x)\n\
                 org.apache.kafka.common.errors.TransactionCoordinatorFencedException: Invalid coordinator epoch for \
                 producerId 1003 at offset 171 in partition payments-1: 1000 (zombie), {current} (current)"
            )
        };
        assert_eq!(examine(&fenced(1002), &elected), []);
        assert_eq!(examine(&fenced(1007), &elected).len(), 1);
    }
}
