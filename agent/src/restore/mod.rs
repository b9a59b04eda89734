//! Puts the log dirs of some nodes back as a plan says.
//!
//! The order is what keeps a half restored node from starting, and a restore that was killed from being lost:
//!
//! 1. Every log dir is looked at, and nothing is touched if any holds something, belongs to a live broker, or has too
//!    little space.
//! 2. The point's transaction log is replayed; a marker goes into each log dir; `meta.properties` goes away.
//! 3. Partitions are fetched, each once, and written to all their replicas; several at a time. What is written goes
//!    to disk, and only then each partition gets its `partition.metadata`: a later run keeps those that have it. One
//!    with a transaction that is not whole, by its batches and the transaction log, does not get it, if the point
//!    states that all are (L3).
//! 4. Offset checkpoints, the metadata checkpoint, `.kafka_cleanshutdown`.
//! 5. All of it is read back and held against the plan ([`verify`]), the end of each log from the disk.
//! 6. The marker is renamed to `meta.properties`: from then on Kafka may start.

mod error;
mod files;
mod metadata;
mod partition;
mod run;
mod segment;
mod target;
mod transactions;
mod verify;

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::time::{SystemTime, UNIX_EPOCH};

use segvault_alignment::restore::{Finding, RestorePlan};
use segvault_vault::Vault;
use segvault_vault_format::ids::BlobId;

pub use error::RestoreError;
pub use metadata::load_point;
pub use target::{Origin, RESTORE_MARKER};
pub use verify::{verify, verify_content};

/// How to restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Only look whether the restore could be done: steps 1.
    pub dry_run: bool,
    /// Partitions that are written at the same time; by default as many as there are processors, 2 to 4.
    pub workers: Option<usize>,
    /// Transactions that are not whole, in a point that states that all are, become warnings.
    pub accept_torn: bool,
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Partitions that are on disk, those of an earlier run included.
    pub partitions: usize,
    /// Partitions in all.
    pub partitions_total: usize,
    /// Bytes of logs written, all replicas, those of an earlier run included.
    pub bytes: u64,
    /// Bytes of logs in all.
    pub bytes_total: u64,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestoreReport {
    /// Partitions restored, each counted once.
    pub partitions: usize,
    /// Of those, how many an earlier run had completed.
    pub kept: usize,
    /// Bytes read from the vault.
    pub fetched_bytes: u64,
    /// Bytes of logs written, all replicas.
    pub written_bytes: u64,
    /// From beginning to end.
    pub seconds: f64,
    /// What an operator should know: those of the plan, and what came to light on the way.
    pub findings: Vec<Finding>,
    /// What to do next.
    pub advice: Vec<String>,
}

/// What the clock says, in milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// Told how far a restore is; `Break` stops it as a kill would.
pub type OnProgress<'a> = dyn Fn(RestoreProgress) -> ControlFlow<()> + Sync + 'a;

/// Does what `plan` says on the nodes that it was made for; `root` is the point's (its outcome has it).
///
/// Blocking: not to be called from asynchronous code. Uses some threads of its own and up to 96 MiB, and some 50 bytes
/// per producer id in the transaction log. If it fails or is killed it can be run again with the same plan, and goes on;
/// until it has succeeded Kafka does not start on any of the log dirs.
pub fn restore_nodes(
    plan: &RestorePlan,
    vault: &Vault,
    root: BlobId,
    options: &RestoreOptions,
    progress: &OnProgress<'_>,
) -> Result<RestoreReport, RestoreError> {
    run::run(plan, vault, &Origin::new(vault.id(), &plan.point, root), options, progress)
}
