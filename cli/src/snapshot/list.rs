//! `segvault snapshot list`.

use std::fmt;

use anyhow::Result;
use segvault_vault::{Access, Point, PointState};
use serde::Serialize;

use crate::args::ListArgs;
use crate::output::{self, Ending};
use crate::vault;

/// What `snapshot list` prints: `{"points": [...]}`, oldest first per cluster.
#[derive(Serialize)]
struct Listing {
    points: Vec<Row>,
}

/// One point.
#[derive(Serialize)]
struct Row {
    /// CLUSTER_ID/NUMBER.
    id: String,
    cluster_id: String,
    cluster_name: String,
    number: u64,
    /// `complete`, `degraded`, `aborted` or `undecided`.
    state: &'static str,
    /// Why it was aborted.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Milliseconds since 1970.
    began_ms: i64,
    #[serde(flatten)]
    totals: Option<RowTotals>,
}

#[derive(Serialize)]
struct RowTotals {
    finished_ms: i64,
    /// `L0` to `L3`.
    level: String,
    closed_only: bool,
    topics: u32,
    partitions: u32,
    /// Raw bytes of one replica of everything.
    bytes: u64,
    read_bytes: u64,
    stored_bytes: u64,
}

impl Row {
    fn new(point: Point, cluster_name: &str) -> Self {
        let mut row = Self {
            id: point.id.to_string(),
            cluster_id: point.id.cluster_id,
            cluster_name: cluster_name.to_owned(),
            number: point.id.number,
            state: "undecided",
            reason: None,
            began_ms: point.intent.began_ms,
            totals: None,
        };
        match point.state {
            PointState::Undecided => {}
            PointState::Aborted(reason) => {
                row.state = "aborted";
                row.reason = Some(reason);
            }
            PointState::Committed(totals) => {
                row.state = if totals.degraded { "degraded" } else { "complete" };
                row.totals = Some(RowTotals {
                    finished_ms: totals.finished_ms,
                    level: format!("L{}", totals.level),
                    closed_only: totals.closed_only,
                    topics: totals.topics,
                    partitions: totals.partitions,
                    bytes: totals.bytes,
                    read_bytes: totals.read_bytes,
                    stored_bytes: totals.stored_bytes,
                });
            }
        }
        row
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![
            self.number.to_string(),
            self.cluster_name.clone(),
            output::time(self.began_ms),
            self.state.to_owned(),
        ];
        if let Some(totals) = &self.totals {
            cells.extend([
                totals.level.clone() + if totals.closed_only { " closed-only" } else { "" },
                totals.topics.to_string(),
                totals.partitions.to_string(),
                output::bytes(totals.bytes),
                output::bytes(totals.stored_bytes),
            ]);
        }
        cells.extend(self.reason.clone());
        cells
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.points.is_empty() {
            return writeln!(f, "no restore points yet: segvault snapshot create takes one");
        }
        let header = ["POINT", "CLUSTER", "BEGAN", "STATE", "LEVEL", "TOPICS", "PARTITIONS", "SIZE", "STORED"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.points.iter().map(Row::cells));
        f.write_str(&output::table(&rows))
    }
}

/// `segvault snapshot list`.
pub fn list(args: &ListArgs, json: bool) -> Result<Ending> {
    let runtime = vault::runtime()?;
    let vault = vault::open(&args.vault, Access::Read, &runtime)?;
    let clusters = match &args.cluster {
        Some(wanted) => vec![vault.wait(vault.find_cluster(Some(wanted)))?],
        None => vault.wait(vault.clusters())?,
    };
    let mut points = Vec::new();
    for cluster in clusters {
        let of_cluster = vault.wait(vault.list_points(&cluster.id))?;
        points.extend(of_cluster.into_iter().map(|point| Row::new(point, &cluster.name)));
    }
    output::print(&Listing { points }, json)?;
    Ok(Ending::Done)
}
