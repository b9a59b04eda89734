//! `segvault restore plans`.

use std::fmt;

use anyhow::Result;
use segvault_vault::{Access, Cluster};
use segvault_vault_format::ids::PointId;
use segvault_vault_format::plan::Plan;
use serde::Serialize;

use crate::args::ListArgs;
use crate::output::{self, Ending};
use crate::vault;

/// What `restore plans` prints: `{"plans": [...]}`, oldest first per cluster.
#[derive(Serialize)]
struct Listing {
    plans: Vec<Row>,
}

/// One plan.
#[derive(Serialize)]
struct Row {
    /// Its number.
    plan: u64,
    cluster_id: String,
    cluster_name: String,
    /// CLUSTER_ID/NUMBER.
    point: String,
    /// The point's.
    root: String,
    /// Milliseconds since 1970.
    made_ms: i64,
    made_by: String,
    nodes: Vec<i32>,
    partitions: u64,
    /// Bytes of logs to write, all replicas on these nodes.
    bytes: u64,
}

impl Row {
    fn new(plan: &Plan, cluster: &Cluster) -> Self {
        Self {
            plan: plan.number,
            cluster_id: cluster.id.clone(),
            cluster_name: cluster.name.clone(),
            point: PointId { cluster_id: plan.cluster_id.clone(), number: plan.point }.to_string(),
            root: plan.root_id().to_string(),
            made_ms: plan.made_ms,
            made_by: plan.made_by.clone(),
            nodes: plan.nodes.iter().map(|node| node.node_id).collect(),
            partitions: plan.partitions,
            bytes: plan.bytes(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let nodes: Vec<_> = self.nodes.iter().map(i32::to_string).collect();
        let point = self.point.rsplit('/').next().unwrap_or_default();
        vec![
            self.plan.to_string(),
            self.cluster_name.clone(),
            point.to_owned(),
            output::time(self.made_ms),
            nodes.join(","),
            self.partitions.to_string(),
            output::bytes(self.bytes),
        ]
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.plans.is_empty() {
            return writeln!(f, "no restore plans yet: segvault restore plan --save makes one");
        }
        let header = ["PLAN", "CLUSTER", "POINT", "MADE", "NODES", "PARTITIONS", "SIZE"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.plans.iter().map(Row::cells));
        f.write_str(&output::table(&rows))
    }
}

/// `segvault restore plans`.
pub fn plans(args: &ListArgs, json: bool) -> Result<Ending> {
    let runtime = vault::runtime()?;
    let vault = vault::open(&args.vault, Access::Read, &runtime)?;
    let clusters = match &args.cluster {
        Some(wanted) => vec![vault.wait(vault.find_cluster(Some(wanted)))?],
        None => vault.wait(vault.clusters())?,
    };
    let mut plans = Vec::new();
    for cluster in clusters {
        plans.extend(vault.wait(vault.list_plans(&cluster.id))?.iter().map(|plan| Row::new(plan, &cluster)));
    }
    output::print(&Listing { plans }, json)?;
    Ok(Ending::Done)
}
