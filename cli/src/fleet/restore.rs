//! `segvault restore run | verify --coordinator` and `segvault restore cancel`.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};
use clap::Args;
use segvault_proto::rpc::node_restore::State;
use segvault_proto::rpc::report::{Restored, Restoring};
use segvault_proto::{PROTOCOL_VERSION, RestoreDeed, rpc};
use serde::Serialize;

use super::client::{ClientArgs, control, cut_off, failed};
use crate::args::RestoreArgs;
use crate::output::{self, Ending};
use crate::restore::{FindingReport, parse_plan};
use crate::{progress, vault};

/// Options of `restore cancel`.
#[derive(Debug, Args)]
pub struct CancelRestoreArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The cluster's name or id, where the coordinator has agents of several.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

/// What is printed of a fleet's restore.
#[derive(Serialize)]
pub(super) struct FleetRestoreReport {
    /// Number of the plan that was followed.
    plan: u64,
    /// CLUSTER_ID/NUMBER.
    point: String,
    cluster_id: String,
    /// `check`, `run` or `verify`.
    deed: &'static str,
    began_ms: i64,
    /// Nothing as long as it is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_ms: Option<i64>,
    /// It has ended, on every node, and all is as planned.
    ok: bool,
    /// Of all nodes.
    fetched_bytes: u64,
    written_bytes: u64,
    seconds: f64,
    nodes: Vec<NodeReport>,
    advice: Vec<String>,
}

#[derive(Serialize)]
struct NodeReport {
    node_id: i32,
    host: String,
    /// `waiting`, `under way`, `done` or `failed`.
    state: &'static str,
    partitions: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions_total: Option<u64>,
    /// Of those, complete since an earlier run.
    kept: u64,
    fetched_bytes: u64,
    written_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_total: Option<u64>,
    findings: Vec<FindingReport>,
    /// Why it has failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl From<rpc::RestoreStatus> for FleetRestoreReport {
    fn from(status: rpc::RestoreStatus) -> Self {
        let deed = match status.deed() {
            rpc::RestoreDeed::Check => "check",
            rpc::RestoreDeed::Verify => "verify",
            rpc::RestoreDeed::Run | rpc::RestoreDeed::Unspecified => "run",
        };
        let mut advice: Vec<String> = Vec::new();
        for node in &status.nodes {
            if let Some(State::Restored(restored)) = &node.state {
                let new = restored.advice.iter().filter(|text| !advice.contains(text));
                advice.extend(new.cloned().collect::<Vec<_>>());
            }
        }
        let nodes: Vec<_> = status.nodes.into_iter().map(NodeReport::from).collect();
        Self {
            plan: status.plan,
            point: format!("{}/{}", status.cluster_id, status.point),
            cluster_id: status.cluster_id,
            deed,
            began_ms: status.began_ms,
            ended_ms: Some(status.ended_ms).filter(|ended_ms| *ended_ms > 0),
            ok: nodes.iter().all(|node| node.state == "done" && (deed != "verify" || node.is_as_planned())),
            fetched_bytes: nodes.iter().map(|node| node.fetched_bytes).sum(),
            written_bytes: nodes.iter().map(|node| node.written_bytes).sum(),
            seconds: (status.ended_ms - status.began_ms).max(0) as f64 / 1000.0,
            nodes,
            advice,
        }
    }
}

impl From<rpc::NodeRestore> for NodeReport {
    fn from(node: rpc::NodeRestore) -> Self {
        let new = Self {
            node_id: node.node_id,
            host: node.host,
            state: "waiting",
            partitions: 0,
            partitions_total: None,
            kept: 0,
            fetched_bytes: 0,
            written_bytes: 0,
            bytes_total: None,
            findings: Vec::new(),
            reason: String::new(),
        };
        match node.state {
            None => new,
            Some(State::Restoring(Restoring { partitions, partitions_total, bytes, bytes_total })) => Self {
                state: "under way",
                partitions,
                partitions_total: Some(partitions_total),
                written_bytes: bytes,
                bytes_total: Some(bytes_total),
                ..new
            },
            Some(State::Restored(Restored { partitions, kept, fetched_bytes, written_bytes, findings, .. })) => Self {
                state: "done",
                partitions,
                kept,
                fetched_bytes,
                written_bytes,
                findings: findings.iter().map(|it| FindingReport::new(it.warning, &it.what)).collect(),
                ..new
            },
            Some(State::Failed(rpc::report::Failed { reason })) => Self { state: "failed", reason, ..new },
        }
    }
}

impl NodeReport {
    /// One line of progress.
    fn describe(&self, deed: &str) -> String {
        let name = format!("node {} ({})", self.node_id, self.host);
        match self.state {
            "under way" => {
                let (written, total) = (self.written_bytes, self.bytes_total.unwrap_or(0));
                let all = self.partitions_total.unwrap_or(0);
                let (written, total) = (output::bytes(written), output::bytes(total));
                format!("{name}: {} of {all} partitions, {written} of {total}", self.partitions)
            }
            "failed" => format!("{name}: FAILED: {}", self.reason.lines().next().unwrap_or_default()),
            "done" => format!("{name}: {}", self.done(deed)),
            state => format!("{name}: {state}"),
        }
    }

    fn done(&self, deed: &str) -> String {
        let partitions = output::count(i64::try_from(self.partitions).unwrap_or(i64::MAX), "partition");
        match deed {
            "check" => "can be restored".to_owned(),
            "verify" if self.is_as_planned() => format!("{partitions}, as planned"),
            "verify" => "NOT as planned".to_owned(),
            _ => format!(
                "{partitions} ({} from an earlier run), {} fetched, {} written",
                self.kept,
                output::bytes(self.fetched_bytes),
                output::bytes(self.written_bytes)
            ),
        }
    }

    fn is_as_planned(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != "warning")
    }
}

impl FleetRestoreReport {
    /// Nodes by what they say, since most of it is the same on all of them.
    fn findings(&self) -> BTreeMap<(&'static str, &str), Vec<i32>> {
        let mut nodes: BTreeMap<_, Vec<i32>> = BTreeMap::new();
        for node in &self.nodes {
            for finding in &node.findings {
                nodes.entry((finding.severity, &finding.what[..])).or_default().push(node.node_id);
            }
        }
        nodes
    }
}

impl fmt::Display for FleetRestoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.deed {
            "check" => "dry run of the restore of",
            "verify" => "what was written for",
            _ => "restore of",
        };
        writeln!(f, "{what} point {} by plan {}", self.point, self.plan)?;
        for node in &self.nodes {
            writeln!(f, "  {}", node.describe(self.deed))?;
            // What follows the first line is the remedy.
            node.reason.lines().skip(1).try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        for ((severity, what), nodes) in self.findings() {
            let mark = if severity == "warning" { "!" } else { "-" };
            let on = if nodes.len() == self.nodes.len() { String::new() } else { format!("nodes {nodes:?}: ") };
            writeln!(f, "  {mark} {on}{what}")?;
        }
        self.advice.iter().try_for_each(|advice| writeln!(f, "  next: {advice}"))
    }
}

/// What to do when it is not known how far a restore is.
const UNKNOWN_END: &str = "segvault status tells how far it is; the same command again goes on where it was";

/// `restore run | verify --coordinator`. Interrupted, the restore goes on: `restore cancel` ends it.
pub fn restore(coordinator: &str, args: &RestoreArgs, deed: RestoreDeed, json: bool) -> Result<Ending> {
    let plan = args.plan.as_deref().context("a coordinator restores by a saved plan\nhint: give --plan")?;
    let (cluster, plan) = match (parse_plan(plan)?, args.cluster.clone()) {
        ((None, plan), cluster) => (cluster.unwrap_or_default(), plan),
        ((Some(cluster_id), plan), None) => (cluster_id, plan),
        ((Some(cluster_id), _), Some(cluster)) => bail!(
            "--plan names cluster {cluster_id} and --cluster {cluster}\nhint: leave --cluster out, or give the plan's number only"
        ),
    };
    let request = rpc::RunRestoreRequest {
        protocol: PROTOCOL_VERSION,
        cluster,
        plan,
        deed: rpc::RestoreDeed::from(deed).into(),
        nodes: args.only.clone(),
    };
    let mut lines = progress::Lines::default();
    let end = vault::runtime()?.block_on(async {
        let mut control = control(coordinator, args.security.clone()).await?;
        let statuses = control.run_restore(request).await.map_err(|status| failed(coordinator, &status))?;
        let mut statuses = statuses.into_inner();
        loop {
            let report = match statuses.message().await {
                Ok(Some(status)) => FleetRestoreReport::from(status),
                cut => return Err(cut_off(coordinator, cut.err().as_ref(), UNKNOWN_END)),
            };
            if report.ended_ms.is_some() {
                return Ok(report);
            }
            lines.show(report.nodes.iter().map(|node| node.describe(report.deed)));
        }
    });
    lines.clear();
    conclude(&end?, json)
}

/// Prints how it ended.
fn conclude(report: &FleetRestoreReport, json: bool) -> Result<Ending> {
    output::print(report, json)?;
    if report.nodes.iter().any(|node| node.state == "failed") {
        eprintln!("hint: the same command again goes on where it was, and leaves alone what is done");
        return Ok(Ending::Failed);
    }
    Ok(Ending::with_findings(!report.ok))
}

/// `segvault restore cancel`: returns once no agent writes any more.
pub fn cancel_restore(args: CancelRestoreArgs, json: bool) -> Result<Ending> {
    let request = rpc::CancelRestoreRequest { protocol: PROTOCOL_VERSION, cluster: args.cluster.unwrap_or_default() };
    let status = vault::runtime()?.block_on(async {
        let mut control = control(&args.client.coordinator, args.client.security).await?;
        control.cancel_restore(request).await.map_err(|status| failed(&args.client.coordinator, &status))
    })?;
    output::print(&FleetRestoreReport::from(status.into_inner()), json)?;
    Ok(Ending::Done)
}
