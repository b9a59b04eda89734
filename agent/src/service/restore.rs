//! A node's part of a saved restore plan, as the coordinator orders it.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use segvault_alignment::restore::saved::{self, Misfit};
use segvault_alignment::restore::{Finding, RestorePlan, Severity, Target};
use segvault_proto::{Report, RestoreDeed, RestoreFinding, Restored, Restoring};
use segvault_vault::{Vault, VaultError};
use segvault_vault_format::ids::{BlobId, PlanId, PointId};

use crate::node::Node;
use crate::restore::{
    RestoreError, RestoreOptions, RestoreProgress, RestoreReport, load_point, now_ms, restore_nodes, verify,
};

/// Progress is reported at most this often.
const PROGRESS_STEP: Duration = Duration::from_millis(500);

/// Why a plan is not carried out here.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// The plan cannot be read.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// It is not for this node, or not as it is set up.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The restore was refused or has failed.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Does `deed` with what plan `id` says of `node`. Blocking; ends soon once it is cancelled, and can be run again.
pub(super) fn carry_out(
    node: &Node,
    vault: &Vault,
    id: &PlanId,
    deed: RestoreDeed,
    cancelled: &AtomicBool,
    reply: &(dyn Fn(Report) + Sync),
) -> Result<Restored, OrderError> {
    let (root, plan) = prepare(node, vault, id)?;
    tracing::info!(plan = %id, ?deed, point = %plan.point, "restore begins");
    if deed == RestoreDeed::Verify {
        return Ok(verified(&plan));
    }
    let reported = Mutex::new(None::<Instant>);
    let progress = |progress: RestoreProgress| {
        if cancelled.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        let mut reported = reported.lock().expect("no thread panics while it holds the time");
        if reported.is_none_or(|at| at.elapsed() >= PROGRESS_STEP) {
            *reported = Some(Instant::now());
            reply(Report::Restoring(restoring(progress)));
        }
        ControlFlow::Continue(())
    };
    let options = RestoreOptions { dry_run: deed == RestoreDeed::Check, ..RestoreOptions::default() };
    match restore_nodes(&plan, vault, root, &options, &progress) {
        Ok(report) => Ok(restored(report)),
        // An order that is given again, because of other nodes, is done where it is done.
        Err(RestoreError::AlreadyRestored { .. }) if verify(&plan, 0).is_empty() => {
            let partitions = plan.partitions.len() as u64;
            let what = "it was restored before, and all is as planned".to_owned();
            let findings = vec![RestoreFinding { is_warning: false, what }];
            Ok(Restored { partitions, kept: partitions, findings, ..Restored::default() })
        }
        Err(error) => Err(error.into()),
    }
}

/// The root of the plan's point, and what the plan says of the node alone.
fn prepare(node: &Node, vault: &Vault, id: &PlanId) -> Result<(BlobId, RestorePlan), OrderError> {
    let saved = vault.wait(vault.plan(id))?;
    let target = Target::from(&node.properties);
    saved::check_target(id, &saved, &target)?;
    let point = load_point(vault, &PointId { cluster_id: saved.cluster_id.clone(), number: saved.point })?;
    let plan = saved::follow(id, &saved, &point, &[target.node_id], now_ms())?;
    Ok((point.root, plan))
}

fn restoring(progress: RestoreProgress) -> Restoring {
    Restoring {
        partitions: progress.partitions as u64,
        partitions_total: progress.partitions_total as u64,
        bytes: progress.bytes,
        bytes_total: progress.bytes_total,
    }
}

fn restored(report: RestoreReport) -> Restored {
    Restored {
        partitions: report.partitions as u64,
        kept: report.kept as u64,
        fetched_bytes: report.fetched_bytes,
        written_bytes: report.written_bytes,
        findings: report.findings.into_iter().map(finding).collect(),
        advice: report.advice,
    }
}

fn verified(plan: &RestorePlan) -> Restored {
    let findings = verify(plan, 0).into_iter().map(finding).collect();
    Restored { partitions: plan.partitions.len() as u64, findings, ..Restored::default() }
}

fn finding(finding: Finding) -> RestoreFinding {
    RestoreFinding { is_warning: finding.severity == Severity::Warning, what: finding.what }
}
