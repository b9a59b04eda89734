//! `segvault restore run`.

use std::fmt;
use std::ops::ControlFlow;

use anyhow::Result;
use segvault_agent::restore::{RestoreOptions, RestoreReport, restore_nodes};
use segvault_alignment::restore::RestorePlan;
use segvault_proto::RestoreDeed;
use serde::Serialize;

use super::FindingReport;
use super::plan::PlanReport;
use super::prepare::{Prepared, prepare};
use crate::args::RunArgs;
use crate::fleet;
use crate::output::{self, Ending};
use crate::progress;

/// What `restore run` prints.
#[derive(Serialize)]
struct RunReport {
    point: String,
    /// Number of the saved plan that was followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<u64>,
    nodes: Vec<i32>,
    partitions: usize,
    /// Of those, complete since an earlier run.
    kept: usize,
    fetched_bytes: u64,
    written_bytes: u64,
    seconds: f64,
    findings: Vec<FindingReport>,
    advice: Vec<String>,
}

impl RunReport {
    fn new(plan: &RestorePlan, saved: Option<u64>, report: &RestoreReport) -> Self {
        Self {
            point: plan.point.to_string(),
            plan: saved,
            nodes: plan.nodes.iter().map(|node| node.node_id).collect(),
            partitions: report.partitions,
            kept: report.kept,
            fetched_bytes: report.fetched_bytes,
            written_bytes: report.written_bytes,
            seconds: report.seconds,
            findings: report.findings.iter().map(FindingReport::from).collect(),
            advice: report.advice.clone(),
        }
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = self.plan.map_or_else(String::new, |plan| format!(" by plan {plan}"));
        writeln!(f, "restored point {}{by} on nodes {:?} in {:.1} s", self.point, self.nodes, self.seconds)?;
        writeln!(
            f,
            "  {} ({} from an earlier run), {} fetched, {} written",
            output::count(self.partitions, "partition"),
            self.kept,
            output::bytes(self.fetched_bytes),
            output::bytes(self.written_bytes)
        )?;
        self.findings.iter().try_for_each(|finding| finding.fmt(f))?;
        self.advice.iter().try_for_each(|advice| writeln!(f, "  next: {advice}"))
    }
}

/// `segvault restore run`.
pub fn run(args: &RunArgs, json: bool) -> Result<Ending> {
    if let Some(coordinator) = &args.restore.coordinator {
        let deed = if args.dry_run { RestoreDeed::Check } else { RestoreDeed::Run };
        return fleet::restore(coordinator, &args.restore, deed, json);
    }
    let Prepared { vault, root, plan, saved, _runtime } = prepare(&args.restore)?;
    let options = RestoreOptions { dry_run: args.dry_run, workers: args.workers, accept_torn: args.accept_torn };
    let line = progress::line();
    let report = restore_nodes(&plan, &vault, root, &options, &|progress| {
        line.set_message(format!(
            "restoring: {} of {} partitions, {} of {}",
            progress.partitions,
            progress.partitions_total,
            output::bytes(progress.bytes),
            output::bytes(progress.bytes_total)
        ));
        ControlFlow::Continue(())
    });
    line.finish_and_clear();
    let report = report?;
    if args.dry_run {
        output::print(&PlanReport::new(&plan), json)?;
    } else {
        output::print(&RunReport::new(&plan, saved, &report), json)?;
    }
    Ok(Ending::Done)
}
