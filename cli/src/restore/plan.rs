//! `segvault restore plan`: what a restore would write where; shown, kept in the vault, or read back from there.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use segvault_agent::restore::{load_point, now_ms};
use segvault_alignment::restore::saved::{self, NO_SOURCE};
use segvault_alignment::restore::{RestorePlan, Target};
use segvault_vault::Access;
use segvault_vault_format::ids::PointId;
use segvault_vault_format::plan::{Plan, PlannedLogDir, PlannedNode};
use serde::Serialize;

use super::FindingReport;
use super::prepare::{find_plan, make_plan, read_configs};
use crate::args::PlanArgs;
use crate::output::{self, Ending};
use crate::vault;

/// What `restore plan` and `restore run --dry-run` print.
#[derive(Serialize)]
pub struct PlanReport {
    /// CLUSTER_ID/NUMBER.
    point: String,
    cluster_id: String,
    /// File that every controller gets in `__cluster_metadata-0`.
    checkpoint: String,
    nodes: Vec<NodeReport>,
    partitions: usize,
    /// Bytes of logs to write, all replicas on these nodes.
    bytes: u64,
    findings: Vec<FindingReport>,
}

#[derive(Serialize)]
struct NodeReport {
    node_id: i32,
    controller: bool,
    log_dirs: Vec<DirReport>,
}

#[derive(Serialize)]
struct DirReport {
    path: String,
    replicas: usize,
    bytes: u64,
}

impl PlanReport {
    pub fn new(plan: &RestorePlan) -> Self {
        let mut nodes: Vec<_> = plan
            .nodes
            .iter()
            .map(|node| NodeReport {
                node_id: node.node_id,
                controller: node.controller,
                log_dirs: node
                    .log_dirs
                    .iter()
                    .map(|dir| DirReport { path: dir.path.clone(), replicas: 0, bytes: 0 })
                    .collect(),
            })
            .collect();
        for partition in &plan.partitions {
            for replica in &partition.replicas {
                let dir = &mut nodes[replica.node].log_dirs[replica.log_dir];
                dir.replicas += 1;
                dir.bytes += partition.bytes;
            }
        }
        Self {
            point: plan.point.to_string(),
            cluster_id: plan.cluster_id.clone(),
            checkpoint: plan.checkpoint.name.to_string(),
            bytes: nodes.iter().flat_map(|node| &node.log_dirs).map(|dir| dir.bytes).sum(),
            nodes,
            partitions: plan.partitions.len(),
            findings: plan.findings.iter().map(FindingReport::from).collect(),
        }
    }
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "restore point {} on {}, {} of logs",
            self.point,
            output::count(self.nodes.len(), "node"),
            output::bytes(self.bytes)
        )?;
        for node in &self.nodes {
            let metadata = if node.controller { format!(", {}", self.checkpoint) } else { String::new() };
            writeln!(f, "  node {}{metadata}", node.node_id)?;
            for dir in &node.log_dirs {
                let replicas = output::count(dir.replicas, "replica");
                writeln!(f, "    {}: {replicas}, {}", dir.path, output::bytes(dir.bytes))?;
            }
        }
        self.findings.iter().try_for_each(|finding| finding.fmt(f))
    }
}

/// What `restore plan --save` and `--show` print: all of [`PlanReport`], and more.
#[derive(Serialize)]
struct SavedReport {
    /// Its number.
    plan: u64,
    /// CLUSTER_ID/NUMBER.
    point: String,
    cluster_id: String,
    /// The point's.
    root: String,
    /// Milliseconds since 1970.
    made_ms: i64,
    made_by: String,
    checkpoint: String,
    nodes: Vec<SavedNode>,
    partitions: u64,
    bytes: u64,
    left_out: Vec<LeftOutReport>,
    findings: Vec<FindingReport>,
}

#[derive(Serialize)]
struct SavedNode {
    node_id: i32,
    broker: bool,
    controller: bool,
    log_dirs: Vec<SavedDir>,
    /// Index into `log_dirs`.
    metadata_log_dir: u32,
    static_voters: Vec<i32>,
}

#[derive(Serialize)]
struct SavedDir {
    path: String,
    replicas: u64,
    bytes: u64,
    sources: Vec<SourceReport>,
}

#[derive(Serialize)]
struct SourceReport {
    /// Nothing for replicas that get an empty log.
    node_id: Option<i32>,
    replicas: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct LeftOutReport {
    topic: String,
    partition: i32,
    /// Why it is restored to no node; nothing if it is.
    reason: Option<String>,
    /// Nodes with a replica of it that are not in the plan.
    nodes: Vec<i32>,
}

impl From<&PlannedNode> for SavedNode {
    fn from(node: &PlannedNode) -> Self {
        Self {
            node_id: node.node_id,
            broker: node.broker,
            controller: node.controller,
            log_dirs: node.log_dirs.iter().map(SavedDir::from).collect(),
            metadata_log_dir: node.metadata_log_dir,
            static_voters: node.static_voters.clone(),
        }
    }
}

impl From<&PlannedLogDir> for SavedDir {
    fn from(dir: &PlannedLogDir) -> Self {
        let sources = dir.sources.iter().map(|source| SourceReport {
            node_id: Some(source.node_id).filter(|node| *node != NO_SOURCE),
            replicas: source.replicas,
            bytes: source.bytes,
        });
        Self { path: dir.path.clone(), replicas: dir.replicas, bytes: dir.bytes, sources: sources.collect() }
    }
}

impl From<&Plan> for SavedReport {
    fn from(plan: &Plan) -> Self {
        let left_out = plan.left_out.iter().map(|entry| LeftOutReport {
            topic: entry.topic.clone(),
            partition: entry.partition,
            reason: Some(entry.reason.clone()).filter(|reason| !reason.is_empty()),
            nodes: entry.nodes.clone(),
        });
        Self {
            plan: plan.number,
            point: PointId { cluster_id: plan.cluster_id.clone(), number: plan.point }.to_string(),
            cluster_id: plan.cluster_id.clone(),
            root: plan.root_id().to_string(),
            made_ms: plan.made_ms,
            made_by: plan.made_by.clone(),
            checkpoint: plan.checkpoint.clone(),
            nodes: plan.nodes.iter().map(SavedNode::from).collect(),
            partitions: plan.partitions,
            bytes: plan.bytes(),
            left_out: left_out.collect(),
            findings: plan.findings.iter().map(|it| FindingReport::new(it.warning, &it.what)).collect(),
        }
    }
}

impl fmt::Display for SavedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "plan {}: restore point {} on {}, {} of logs",
            self.plan,
            self.point,
            output::count(self.nodes.len(), "node"),
            output::bytes(self.bytes)
        )?;
        writeln!(f, "  made {} by {}", output::time(self.made_ms), self.made_by)?;
        writeln!(f, "  root {}", self.root)?;
        for node in &self.nodes {
            let metadata = if node.controller { format!(", {}", self.checkpoint) } else { String::new() };
            writeln!(f, "  node {}{metadata}", node.node_id)?;
            node.log_dirs.iter().try_for_each(|dir| dir.fmt(f))?;
        }
        self.fmt_left_out(f)?;
        self.findings.iter().try_for_each(|finding| finding.fmt(f))?;
        writeln!(f, "  next: segvault restore run --plan {} --broker-config FILE, on every host", self.plan)
    }
}

impl fmt::Display for SavedDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources: Vec<_> = self.sources.iter().map(SourceReport::to_string).collect();
        let sources = if sources.is_empty() { String::new() } else { format!(" ({})", sources.join("; ")) };
        let replicas = output::count(i64::try_from(self.replicas).unwrap_or(i64::MAX), "replica");
        writeln!(f, "    {}: {replicas}, {}{sources}", self.path, output::bytes(self.bytes))
    }
}

impl fmt::Display for SourceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node_id {
            Some(node) => write!(f, "{} from node {node}, {}", self.replicas, output::bytes(self.bytes)),
            None => write!(f, "{} empty", self.replicas),
        }
    }
}

impl SavedReport {
    /// Partitions one by one where nothing of them is restored, else summed up by node: those may be very many.
    fn fmt_left_out(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut replicas: BTreeMap<i32, usize> = BTreeMap::new();
        for node in self.left_out.iter().flat_map(|entry| &entry.nodes) {
            *replicas.entry(*node).or_default() += 1;
        }
        for (node, count) in replicas {
            writeln!(f, "  left out: {} on node {node}, which is not in the plan", output::count(count, "replica"))?;
        }
        for entry in &self.left_out {
            if let Some(reason) = &entry.reason {
                writeln!(f, "  left out: {}-{}: {reason}", entry.topic, entry.partition)?;
            }
        }
        Ok(())
    }
}

/// `segvault restore plan`.
pub fn plan(args: &PlanArgs, json: bool) -> Result<Ending> {
    let configs = read_configs(&args.broker_configs)?;
    let access = if args.save { Access::Write } else { Access::Read };
    let runtime = vault::runtime()?;
    let vault = vault::open(&args.vault, access, &runtime)?;
    let cluster = args.cluster.as_deref();
    if let Some(shown) = &args.show {
        let id = find_plan(&vault, shown, cluster)?;
        output::print(&SavedReport::from(&vault.wait(vault.plan(&id))?), json)?;
        return Ok(Ending::Done);
    }
    let id = vault::find_point(&vault, &args.point, cluster)?;
    let point = load_point(&vault, &id)?;
    let mut targets: Vec<Target> = configs.iter().map(|config| config.target.clone()).collect();
    if args.all_nodes {
        targets.extend(saved::other_nodes(&point, &targets));
    }
    let restore = make_plan(&point, &targets, &configs)?;
    if args.save {
        let made_by = format!("segvault {} process {}", env!("CARGO_PKG_VERSION"), std::process::id());
        let plan = saved::plan_to_save(&point, &restore, &targets, made_by, now_ms())?;
        let plan = vault.wait(vault.save_plan(plan))?;
        output::print(&SavedReport::from(&plan), json)?;
    } else {
        output::print(&PlanReport::new(&restore), json)?;
    }
    Ok(Ending::Done)
}
