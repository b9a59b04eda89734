//! `segvault agent`: the service on a broker's host.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use segvault_agent::agent::{Agent, AgentOptions};
use segvault_agent::node::{Found, Node};
use segvault_agent::service::{Charge, Ended, ServiceOptions, Standing, serve};
use segvault_transport::identity::Identity;
use segvault_vault::Access;
use serde::Deserialize;

use super::{SecurityArgs, SecuritySettings, host_name, read_toml, stop_signal};
use crate::args::VaultArgs;
use crate::output::Ending;
use crate::{supervisor, vault};

/// Options of `agent`. Flags win over the file.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// TOML file with vault, vault_config, broker_config, cluster_id, coordinator (a list), staging, workers, metrics,
    /// and a table [tls] with ca, cert and key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    vault: VaultArgs,
    /// The node's own server.properties.
    #[arg(long, value_name = "FILE")]
    broker_config: Option<PathBuf>,
    /// Kafka's cluster id, for a node whose log dirs are empty, to be restored [default: the certificate's].
    #[arg(long, value_name = "ID")]
    cluster_id: Option<String>,
    /// Where the coordinator listens; several are tried one after the other.
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: Vec<String>,
    /// Folder for pins, on the log dirs' file system and outside all of them [default: beside each log dir].
    #[arg(long, value_name = "DIR")]
    staging: Option<PathBuf>,
    /// Threads that compress and store [default: half of the cores].
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Serves /metrics (Prometheus) and /health there, over plain HTTP [default: nowhere].
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    security: SecurityArgs,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentSettings {
    vault: Option<String>,
    vault_config: Option<PathBuf>,
    broker_config: Option<PathBuf>,
    cluster_id: Option<String>,
    #[serde(default)]
    coordinator: Vec<String>,
    staging: Option<PathBuf>,
    workers: Option<usize>,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    tls: SecuritySettings,
}

/// `segvault agent`.
pub fn agent(args: AgentArgs) -> Result<Ending> {
    let file: AgentSettings = args.config.as_deref().map(read_toml).transpose()?.unwrap_or_default();
    let Some(broker_config) = args.broker_config.or(file.broker_config) else {
        bail!("no node is named\nhint: give --broker-config FILE, the node's own server.properties");
    };
    let coordinators = if args.coordinator.is_empty() { file.coordinator } else { args.coordinator };
    if coordinators.is_empty() {
        bail!("no coordinator is named\nhint: give --coordinator HOST:PORT");
    }
    let security = args.security.or(file.tls).resolve()?;
    let vault_args = args.vault.or(file.vault, file.vault_config);
    // A broker's host has other things to do.
    let half = || std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    let workers = args.workers.or(file.workers).unwrap_or_else(half).max(1);

    let runtime = vault::runtime()?;
    let vault = vault::open(&vault_args, Access::Write, &runtime)?;
    let of_certificate = || match security.identity() {
        Some(Identity::Agent { cluster_id, .. }) => Some(cluster_id),
        _ => None,
    };
    let cluster_id = args.cluster_id.or(file.cluster_id).or_else(of_certificate);
    let staging = args.staging.or(file.staging);
    let agent_options = AgentOptions { vault: vault.id(), staging: staging.clone() };
    let metrics = args.metrics.or(file.metrics);
    let service_options = ServiceOptions { coordinators, security, host: host_name(), staging, workers, metrics };
    let observe = |standing: &Standing| match standing {
        Standing::Searching(why) => supervisor::status(&format!("not connected: {why}")),
        Standing::Connected(coordinator) => supervisor::status(&format!("connected to {coordinator}")),
    };
    let open = || -> Result<Charge> {
        let found = Node::find(&broker_config, cluster_id.as_deref())?;
        let (Found::Formatted(node) | Found::Vacant(node)) = &found;
        tracing::info!(cluster = node.facts.cluster_id, node = node.facts.node_id, "agent of");
        Ok(match found {
            Found::Formatted(node) => Charge::Formatted(Agent::open(node, &agent_options)?),
            Found::Vacant(node) => {
                tracing::warn!("the log dirs are empty: nothing is captured until the node is restored");
                Charge::Vacant(node)
            }
        })
    };
    let mut charge = open()?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        tokio::pin!(stop);
        supervisor::ready();
        tokio::spawn(supervisor::watchdog());
        while serve(charge, vault.clone(), service_options.clone(), observe, stop.as_mut()).await? == Ended::Settled {
            charge = open()?;
        }
        supervisor::stopping();
        Ok(Ending::Done)
    })
}
