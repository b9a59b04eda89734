//! What a restore verb needs before it can begin: the nodes' configurations, the point, and what is to be written.
//!
//! Configurations are read first, then the vault; nothing is written, and whatever does not fit is refused here.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use segvault_agent::restore::{load_point, now_ms};
use segvault_alignment::restore::saved::{self, LoadedPoint, Misfit};
use segvault_alignment::restore::{PlanError, RestorePlan, Target, plan};
use segvault_kafka_log::server_properties::ServerProperties;
use segvault_vault::{Access, Vault};
use segvault_vault_format::ids::{BlobId, PlanId, PointId};
use segvault_vault_format::plan::Plan;

use crate::args::RestoreArgs;
use crate::vault;

/// A node as a file says.
pub struct Config {
    pub file: PathBuf,
    pub target: Target,
}

/// Reads `server.properties` files.
pub fn read_configs(files: &[PathBuf]) -> Result<Vec<Config>> {
    let configs = files.iter().map(|file| {
        let hint = "give the node's own server.properties";
        let bytes = std::fs::read(file).with_context(|| format!("read {}\nhint: {hint}", file.display()))?;
        let properties = ServerProperties::decode(&bytes).with_context(|| file.display().to_string())?;
        Ok(Config { file: file.clone(), target: Target::from(&properties) })
    });
    configs.collect()
}

/// Plans the restore of `point` on `targets`. An error names the file among `configs` that it is about.
pub fn make_plan(point: &LoadedPoint, targets: &[Target], configs: &[Config]) -> Result<RestorePlan> {
    plan(&point.manifest, &point.image, targets, now_ms()).map_err(|error| {
        let of_node = |node| configs.iter().rfind(|config| config.target.node_id == node);
        match error.node().and_then(of_node) {
            Some(config) => anyhow!("{}: {error}", config.file.display()),
            None => error.into(),
        }
    })
}

/// A plan as it is said: a number, or CLUSTER_ID/NUMBER. Returns the cluster's id, if it is there, and the number.
pub fn parse_plan(plan: &str) -> Result<(Option<String>, u64)> {
    const HINT: &str = "say its number, or CLUSTER_ID/NUMBER; segvault restore plans lists them";
    if plan.contains('/') {
        let id: PlanId = plan.parse().with_context(|| format!("no restore plan\nhint: {HINT}"))?;
        return Ok((Some(id.cluster_id), id.number));
    }
    match plan.parse() {
        Ok(number) if number > 0 => Ok((None, number)),
        _ => bail!("{plan:?} is no restore plan\nhint: {HINT}"),
    }
}

/// The plan that is meant.
pub fn find_plan(vault: &Vault, plan: &str, cluster: Option<&str>) -> Result<PlanId> {
    let id = match parse_plan(plan)? {
        (None, number) => return Ok(PlanId { cluster_id: vault.wait(vault.find_cluster(cluster))?.id, number }),
        (Some(cluster_id), number) => PlanId { cluster_id, number },
    };
    if let Some(wanted) = cluster {
        let cluster = vault.wait(vault.find_cluster(Some(wanted)))?;
        if cluster.id != id.cluster_id {
            return Err(Misfit::Cluster { plan: id, wanted: cluster.to_string() }.into());
        }
    }
    Ok(id)
}

/// Everything that `restore run` and `restore verify` need.
pub struct Prepared {
    pub vault: Vault,
    pub root: BlobId,
    /// For the nodes of this command alone.
    pub plan: RestorePlan,
    /// Number of the saved plan that it follows.
    pub saved: Option<u64>,
    /// Keeps the vault's IO going.
    pub _runtime: tokio::runtime::Runtime,
}

/// Reads the configurations, opens the vault, and plans.
pub fn prepare(args: &RestoreArgs) -> Result<Prepared> {
    let configs = read_configs(&args.broker_configs)?;
    let runtime = vault::runtime()?;
    let vault = vault::open(&args.vault, Access::Read, &runtime)?;
    let (root, plan, saved) = match &args.plan {
        None => {
            let id = vault::find_point(&vault, &args.point, args.cluster.as_deref())?;
            let point = load_point(&vault, &id)?;
            let targets: Vec<_> = configs.iter().map(|config| config.target.clone()).collect();
            (point.root, make_plan(&point, &targets, &configs)?, None)
        }
        Some(plan) => {
            let id = find_plan(&vault, plan, args.cluster.as_deref())?;
            let saved = vault.wait(vault.plan(&id))?;
            (saved.root_id(), follow(&vault, &id, &saved, &configs)?, Some(id.number))
        }
    };
    Ok(Prepared { vault, root, plan, saved, _runtime: runtime })
}

/// What a saved plan says for the nodes of `configs`.
fn follow(vault: &Vault, id: &PlanId, saved: &Plan, configs: &[Config]) -> Result<RestorePlan> {
    let mut nodes = Vec::new();
    for Config { file, target } in configs {
        saved::check_target(id, saved, target).map_err(|error| anyhow!("{}: {error}", file.display()))?;
        if nodes.contains(&target.node_id) {
            bail!("{}: {}", file.display(), PlanError::SameNode(target.node_id));
        }
        nodes.push(target.node_id);
    }
    let point = load_point(vault, &PointId { cluster_id: saved.cluster_id.clone(), number: saved.point })?;
    Ok(saved::follow(id, saved, &point, &nodes, now_ms())?)
}
