//! `segvault snapshot create --coordinator` and `segvault snapshot cancel`.

use std::fmt;

use anyhow::{Result, bail};
use clap::Args;
use segvault_proto::rpc::point_event::Event;
use segvault_proto::{PROTOCOL_VERSION, rpc};
use serde::Serialize;

use super::client::{ClientArgs, control, cut_off, failed};
use crate::output::{self, Ending};
use crate::{progress, vault};

/// Options of `snapshot cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The cluster's name or id, where the coordinator has agents of several.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Why, for the point's outcome.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

/// What is printed of a point that a coordinator has taken; `snapshot show` knows more.
#[derive(Serialize)]
struct Taken {
    /// CLUSTER_ID/NUMBER.
    id: String,
    cluster_id: String,
    number: u64,
    /// `complete` or `degraded`.
    state: &'static str,
    /// `L0` to `L3`.
    level: String,
    began_ms: i64,
    finished_ms: i64,
    /// From phase A to the end of phase C, microseconds.
    barrier_us: u64,
    nodes: Vec<i32>,
    topics: u32,
    partition_count: u32,
    bytes: u64,
    read_bytes: u64,
    stored_bytes: u64,
    findings: Vec<String>,
    /// Partitions that are not covered, and why; at most 100.
    uncovered: Vec<String>,
}

impl From<rpc::PointCommitted> for Taken {
    fn from(point: rpc::PointCommitted) -> Self {
        Self {
            id: format!("{}/{}", point.cluster_id, point.number),
            cluster_id: point.cluster_id,
            number: point.number,
            state: if point.degraded { "degraded" } else { "complete" },
            level: format!("L{}", point.level),
            began_ms: point.began_ms,
            finished_ms: point.finished_ms,
            barrier_us: point.barrier_us,
            nodes: point.nodes,
            topics: point.topics,
            partition_count: point.partitions,
            bytes: point.bytes,
            read_bytes: point.read_bytes,
            stored_bytes: point.stored_bytes,
            findings: point.findings,
            uncovered: point.uncovered,
        }
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "restore point {}: {} at level {}", self.id, self.state, self.level)?;
        writeln!(f, "  began {}, finished {}", output::time(self.began_ms), output::time(self.finished_ms))?;
        writeln!(f, "  barrier {:.1} ms over nodes {:?}", self.barrier_us as f64 / 1000.0, self.nodes)?;
        writeln!(
            f,
            "  {}, {}, {} (one replica)",
            output::count(self.topics, "topic"),
            output::count(self.partition_count, "partition"),
            output::bytes(self.bytes)
        )?;
        writeln!(f, "  read {}, stored {}", output::bytes(self.read_bytes), output::bytes(self.stored_bytes))?;
        for finding in &self.findings {
            writeln!(f, "  ! {finding}")?;
        }
        for partition in &self.uncovered {
            writeln!(f, "  NOT COVERED: {partition}")?;
        }
        Ok(())
    }
}

/// What to do when it is not known how a point ended.
const UNKNOWN_END: &str = "what became of the point: segvault snapshot list --vault URL; a coordinator that is started again \
                           decides it when it takes the next one";

/// `segvault snapshot create --coordinator`. Interrupted, the point goes on: `snapshot cancel` ends it.
pub fn create(client: ClientArgs, cluster: Option<&str>, closed_only: bool, json: bool) -> Result<Ending> {
    let request = rpc::TakePointRequest {
        protocol: PROTOCOL_VERSION,
        cluster: cluster.unwrap_or_default().to_owned(),
        closed_only,
    };
    let line = progress::line();
    let end = vault::runtime()?.block_on(async {
        let mut control = control(&client.coordinator, client.security).await?;
        let events = control.take_point(request).await.map_err(|status| failed(&client.coordinator, &status))?;
        let mut events = events.into_inner();
        loop {
            match events.message().await.map(|one| one.and_then(|one| one.event)) {
                Ok(Some(Event::Progress(progress))) => line.set_message(describe(&progress)),
                Ok(Some(end)) => return Ok(end),
                cut => return Err(cut_off(&client.coordinator, cut.err().as_ref(), UNKNOWN_END)),
            }
        }
    });
    line.finish_and_clear();
    match end? {
        Event::Committed(point) => {
            let degraded = point.degraded;
            output::print(&Taken::from(point), json)?;
            Ok(Ending::with_findings(degraded))
        }
        Event::Abandoned(point) if point.number > 0 => {
            bail!("restore point {}/{} was given up: {}", point.cluster_id, point.number, point.reason)
        }
        Event::Abandoned(point) => bail!("no restore point of cluster {}: {}", point.cluster_id, point.reason),
        Event::Progress(_) => unreachable!("progress is not the end"),
    }
}

/// One line of progress.
pub(super) fn describe(progress: &rpc::PointProgress) -> String {
    let waiting = match (progress.waiting.len(), progress.nodes.len()) {
        (0, _) => String::new(),
        (waiting, nodes) if waiting == nodes => ", waiting for all nodes".to_owned(),
        _ => format!(", waiting for nodes {:?}", progress.waiting),
    };
    let done = match progress.phase.as_str() {
        "Uploading" => {
            let (stored, to_store) = (progress.stored, progress.to_store);
            format!(": {stored} of {to_store} partitions, {}", output::bytes(progress.bytes))
        }
        _ => String::new(),
    };
    format!("point {}: {}{done}{waiting}", progress.number, progress.phase.to_lowercase())
}

/// What `snapshot cancel` prints.
#[derive(Serialize)]
struct Cancelled {
    cluster_id: String,
    number: u64,
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => writeln!(f, "cancelled the restore point of cluster {} before it had a number", self.cluster_id),
            number => writeln!(f, "cancelled restore point {}/{number}", self.cluster_id),
        }
    }
}

/// `segvault snapshot cancel`: returns once nothing of the point is held any more.
pub fn cancel(args: CancelArgs, json: bool) -> Result<Ending> {
    let request = rpc::CancelPointRequest {
        protocol: PROTOCOL_VERSION,
        cluster: args.cluster.unwrap_or_default(),
        reason: args.reason,
    };
    let reply = vault::runtime()?.block_on(async {
        let mut control = control(&args.client.coordinator, args.client.security).await?;
        control.cancel_point(request).await.map_err(|status| failed(&args.client.coordinator, &status))
    })?;
    let rpc::CancelPointReply { cluster_id, number } = reply.into_inner();
    output::print(&Cancelled { cluster_id, number }, json)?;
    Ok(Ending::Done)
}
