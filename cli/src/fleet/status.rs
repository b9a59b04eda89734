//! `segvault status`: who is there, and what is being done.

use std::fmt;
use std::io::{IsTerminal, Write};

use anyhow::Result;
use clap::Args;
use segvault_proto::{PROTOCOL_VERSION, rpc};
use serde::Serialize;

use super::client::{ClientArgs, control, cut_off, failed};
use super::point::describe;
use super::restore::FleetRestoreReport;
use crate::output::{self, Ending};
use crate::vault;

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Only this cluster: its name or id.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Go on until interrupted: redrawn on a terminal, else one document after the other.
    #[arg(long)]
    follow: bool,
}

/// What `status` prints.
#[derive(Serialize)]
struct FleetReport {
    version: String,
    vault: String,
    clusters: Vec<ClusterReport>,
}

#[derive(Serialize)]
struct ClusterReport {
    id: String,
    name: String,
    agents: Vec<AgentReport>,
    /// The point under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<RunningReport>,
    /// The last point that this coordinator has taken or given up since its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<LastReport>,
    /// When the schedule begins the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_ms: Option<i64>,
    /// The restore under way, or the last one that this coordinator has driven.
    #[serde(skip_serializing_if = "Option::is_none")]
    restore: Option<FleetRestoreReport>,
}

#[derive(Serialize)]
struct AgentReport {
    node_id: i32,
    host: String,
    version: String,
    broker: bool,
    controller: bool,
    connected: bool,
    /// Its log dirs are empty: it can only be restored.
    vacant: bool,
    silent_ms: u64,
    /// Least free share of its log dirs' file systems, in percent.
    free_percent: u64,
}

#[derive(Serialize)]
struct RunningReport {
    number: u64,
    phase: String,
    nodes: Vec<i32>,
    waiting: Vec<i32>,
    stored: u64,
    to_store: u64,
    bytes: u64,
    began_ms: i64,
    #[serde(skip)]
    text: String,
}

#[derive(Serialize)]
struct LastReport {
    number: u64,
    /// `complete`, `degraded` or `given up`.
    state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    level: String,
    ended_ms: i64,
    took_ms: u64,
}

impl From<rpc::StatusReply> for FleetReport {
    fn from(reply: rpc::StatusReply) -> Self {
        let clusters = reply.clusters.into_iter().map(|cluster| ClusterReport {
            id: cluster.id,
            name: cluster.name,
            agents: cluster.agents.into_iter().map(AgentReport::from).collect(),
            running: cluster.running.map(RunningReport::from),
            last: cluster.last.map(LastReport::from),
            next_ms: Some(cluster.next_ms).filter(|next_ms| *next_ms > 0),
            restore: cluster.restore.map(FleetRestoreReport::from),
        });
        Self { version: reply.version, vault: reply.vault, clusters: clusters.collect() }
    }
}

impl From<rpc::AgentStatus> for AgentReport {
    fn from(agent: rpc::AgentStatus) -> Self {
        let free = agent.space.iter().filter(|space| space.total_bytes > 0);
        let free = free.map(|space| u128::from(space.free_bytes) * 100 / u128::from(space.total_bytes)).min();
        Self {
            node_id: agent.node_id,
            host: agent.host,
            version: agent.version,
            broker: agent.broker,
            controller: agent.controller,
            connected: agent.connected,
            vacant: agent.vacant,
            silent_ms: agent.silent_ms,
            free_percent: free.and_then(|percent| u64::try_from(percent).ok()).unwrap_or(0),
        }
    }
}

impl From<rpc::PointProgress> for RunningReport {
    fn from(progress: rpc::PointProgress) -> Self {
        Self {
            text: describe(&progress),
            number: progress.number,
            phase: progress.phase,
            nodes: progress.nodes,
            waiting: progress.waiting,
            stored: progress.stored,
            to_store: progress.to_store,
            bytes: progress.bytes,
            began_ms: progress.began_ms,
        }
    }
}

impl From<rpc::LastPoint> for LastReport {
    fn from(last: rpc::LastPoint) -> Self {
        let state = match (last.committed, last.degraded) {
            (false, _) => "given up",
            (true, true) => "degraded",
            (true, false) => "complete",
        };
        Self {
            number: last.number,
            state,
            reason: last.reason,
            level: format!("L{}", last.level),
            ended_ms: last.ended_ms,
            took_ms: last.took_ms,
        }
    }
}

impl fmt::Display for FleetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "coordinator {} on {}", self.version, self.vault)?;
        for cluster in &self.clusters {
            write!(f, "\n{cluster}")?;
        }
        if self.clusters.is_empty() {
            writeln!(f, "no agent has come yet")?;
        }
        Ok(())
    }
}

impl fmt::Display for ClusterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "cluster {}",
            if self.name == self.id { self.id.clone() } else { format!("{} ({})", self.name, self.id) }
        )?;
        if let Some(running) = &self.running {
            writeln!(f, "  now   {}", running.text)?;
        }
        if let Some(last) = &self.last {
            let (at, took) = (output::time(last.ended_ms), last.took_ms as f64 / 1000.0);
            match last.state {
                "given up" => writeln!(f, "  last  given up at {at} after {took:.1} s: {}", last.reason)?,
                state => {
                    writeln!(f, "  last  point {}: {state} at level {}, {at}, {took:.1} s", last.number, last.level)?
                }
            }
        }
        if let Some(next_ms) = self.next_ms {
            writeln!(f, "  next  {}", output::time(next_ms))?;
        }
        if let Some(restore) = &self.restore {
            restore.to_string().lines().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        let mut rows = vec![["  NODE", "ROLES", "HOST", "VERSION", "FREE", ""].map(str::to_owned).to_vec()];
        for agent in &self.agents {
            let roles = match (agent.broker, agent.controller) {
                (true, true) => "broker,controller",
                (true, false) => "broker",
                _ => "controller",
            };
            let state = match agent.connected {
                true if agent.vacant => "connected, log dirs are EMPTY".to_owned(),
                true => "connected".to_owned(),
                false => format!("NOT CONNECTED, silent for {} s", agent.silent_ms / 1000),
            };
            rows.push(vec![
                format!("  {}", agent.node_id),
                roles.to_owned(),
                agent.host.clone(),
                agent.version.clone(),
                format!("{} %", agent.free_percent),
                state,
            ]);
        }
        f.write_str(&output::table(&rows))
    }
}

/// `segvault status`.
pub fn status(args: StatusArgs, json: bool) -> Result<Ending> {
    let request = rpc::StatusRequest {
        protocol: PROTOCOL_VERSION,
        cluster: args.cluster.unwrap_or_default(),
        follow: args.follow,
    };
    vault::runtime()?.block_on(async {
        let coordinator = &args.client.coordinator;
        let mut control = control(coordinator, args.client.security).await?;
        let replies = control.status(request).await.map_err(|status| failed(coordinator, &status))?;
        let mut replies = replies.into_inner();
        let is_live = args.follow && !json && std::io::stdout().is_terminal();
        let cut = |status| cut_off(coordinator, Some(&status), "is it running? the same command again goes on");
        while let Some(reply) = replies.message().await.map_err(cut)? {
            if is_live {
                // Clears the screen and begins at its top.
                write!(std::io::stdout(), "\x1b[2J\x1b[H")?;
            }
            output::print(&FleetReport::from(reply), json)?;
        }
        Ok(Ending::Done)
    })
}
