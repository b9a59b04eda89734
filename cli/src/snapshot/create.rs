//! `segvault snapshot create`: agents and coordinator in one process, each agent on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::Scope;

use anyhow::{Context, Result, bail};
use segvault_agent::agent::{Agent, AgentOptions};
use segvault_agent::node::Node;
use segvault_agent::upload::{Cores, Upload};
use segvault_coordinator::drive::{self, BARRIER_DEADLINE, Committed, Link, Request};
use segvault_coordinator::point::{Phase, Progress};
use segvault_proto::{Command, Report};
use segvault_vault::{Access, UploadOptions, Uploader, Vault};

use super::show::PointReport;
use crate::args::CreateArgs;
use crate::fleet::{self, ClientArgs};
use crate::output::{self, Ending};
use crate::{progress, vault};

/// Set by SIGINT and SIGTERM: the point is given up cleanly, and every pin let go.
static CANCELLED: OnceLock<String> = OnceLock::new();
/// The same, for uploads under way.
static UPLOADS_CANCELLED: AtomicBool = AtomicBool::new(false);

/// `segvault snapshot create`.
pub fn create(args: &CreateArgs, json: bool) -> Result<Ending> {
    if let Some(coordinator) = args.coordinator.clone() {
        let client = ClientArgs { coordinator, security: args.security.clone() };
        return fleet::create(client, args.cluster.as_deref(), args.closed_only, json);
    }
    let runtime = vault::runtime()?;
    let vault = vault::open(&args.vault, Access::Write, &runtime)?;
    let agents = open_agents(args, &vault)?;
    cancel_on_signals(&runtime)?;
    let committed = take(args, &vault, agents)?;
    let degraded = committed.manifest.degraded;
    output::print(&PointReport::new(&committed.id, &committed.manifest, false).with_totals(&committed.totals), json)?;
    Ok(Ending::with_findings(degraded))
}

fn open_agents(args: &CreateArgs, vault: &Vault) -> Result<Vec<Agent>> {
    let options = AgentOptions { vault: vault.id(), staging: args.staging.clone() };
    let nodes = open_nodes(&args.broker_configs)?;
    nodes.into_iter().map(|node| Ok(Agent::open(node, &options)?)).collect()
}

/// All nodes; an error if they are not different nodes of one cluster.
fn open_nodes(configs: &[PathBuf]) -> Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for config in configs {
        let node = Node::open(config)?;
        if let Some(twin) = nodes.iter().find(|other| other.facts.node_id == node.facts.node_id) {
            let (id, twin, config) = (node.facts.node_id, twin.config.display(), config.display());
            bail!("node {id} is given twice: {twin}, {config}\nhint: give each node's own server.properties, once");
        }
        if let Some(other) = nodes.first().filter(|other| other.facts.cluster_id != node.facts.cluster_id) {
            bail!(
                "{} is of a node of cluster {}, but {} of one of cluster {}\nhint: give the nodes of one cluster",
                config.display(),
                node.facts.cluster_id,
                other.config.display(),
                other.facts.cluster_id
            );
        }
        nodes.push(node);
    }
    Ok(nodes)
}

fn take(args: &CreateArgs, vault: &Vault, agents: Vec<Agent>) -> Result<Committed> {
    let workers = args.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from));
    let uploader = Uploader::new(vault, UploadOptions { open_packs: workers.div_ceil(2), ..UploadOptions::default() });
    let cores = Cores::new(workers);
    let cluster_id = agents[0].facts().cluster_id.clone();
    let cancelled = &UPLOADS_CANCELLED;
    let upload = Upload { vault, uploader: &uploader, cluster_id: &cluster_id, cores: &cores, cancelled };
    let taken_by = format!("segvault {} process {}", env!("CARGO_PKG_VERSION"), std::process::id());
    let request = Request {
        cluster_name: args.cluster.as_deref(),
        closed_only: args.closed_only,
        taken_by: &taken_by,
        barrier_deadline: BARRIER_DEADLINE,
    };
    let line = progress::line();
    let committed = std::thread::scope(|scope| {
        let (reports, incoming) = mpsc::channel();
        let links = agents.into_iter().map(|agent| start(scope, agent, upload, reports.clone())).collect();
        drop(reports);
        let mut observe = |progress: &Progress| line.set_message(describe(progress));
        drive::take_point(vault, links, &incoming, &request, &CANCELLED, &mut observe)
    });
    line.finish_and_clear();
    Ok(committed?)
}

/// Starts an agent's thread. It ends when its commands end; a panic in it is a failure of the agent, not of the point.
fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    mut agent: Agent,
    upload: Upload<'scope>,
    reports: Sender<(i32, Report)>,
) -> Link {
    let facts = agent.facts().clone();
    let node_id = facts.node_id;
    let (commands, incoming): (_, Receiver<Command>) = mpsc::channel();
    scope.spawn(move || {
        for command in incoming {
            // The receiver may be gone: then the point is over, and the next turn of the loop ends it here, too.
            let reply = |report| drop(reports.send((node_id, report)));
            let handled = catch_unwind(AssertUnwindSafe(|| agent.handle(command, &upload, &reply)));
            if handled.is_err() {
                reply(Report::Failed { reason: "the agent panicked; please report this with its output".to_owned() });
                return;
            }
        }
    });
    Link { facts, send: Box::new(move |command| commands.send(command).is_ok()) }
}

fn cancel_on_signals(runtime: &tokio::runtime::Runtime) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let _guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    runtime.spawn(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        UPLOADS_CANCELLED.store(true, Ordering::Relaxed);
        CANCELLED.get_or_init(|| "cancelled by the operator".to_owned());
    });
    Ok(())
}

fn describe(progress: &Progress) -> String {
    match progress.phase {
        Phase::Intent | Phase::Preparing => {
            format!("looking at the replicas of {}", output::count(progress.nodes.len(), "node"))
        }
        Phase::FirstMetadata | Phase::LastMetadata => "reading cluster metadata".to_owned(),
        Phase::Marking | Phase::Probing | Phase::PinningProgress | Phase::PinningData | Phase::Sealing => {
            format!("barrier: {:?}", progress.phase)
        }
        Phase::ReadingTransactions | Phase::FindingEvents => "aligning transactions".to_owned(),
        Phase::Uploading => format!(
            "uploading: {} of {} partitions, {}",
            progress.stored,
            progress.to_store,
            output::bytes(progress.bytes)
        ),
        Phase::Committing => "committing".to_owned(),
        Phase::Releasing | Phase::Finished => "letting go".to_owned(),
    }
}
