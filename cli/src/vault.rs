//! Opening the vault that the command line, the environment or a file names.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use segvault_agent::restore::now_ms;
use segvault_vault::{Access, Config, Settings, Vault, VaultLocation};
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::PointManifest;
use serde::Serialize;

use crate::args::{PointArgs, VaultArgs};
use crate::output::{self, Ending};

/// Where the vault is and how it is reached.
fn resolve(args: &VaultArgs) -> Result<(VaultLocation, Config)> {
    let file = args.vault_config.as_deref().map(read_settings).transpose()?;
    let in_file = file.as_ref().and_then(|(_, settings)| settings.vault.clone());
    let Some(url) = args.vault.clone().or(in_file) else {
        bail!("no vault was named: give --vault URL, set SEGVAULT_VAULT, or `vault` in the file of --vault-config");
    };
    let flags = Settings { endpoint: args.endpoint.clone(), region: args.region.clone(), ..Settings::default() };
    let config = Config::resolve(flags, |name| std::env::var(name).ok(), file)?;
    Ok((url.parse()?, config))
}

fn read_settings(path: &Path) -> Result<(&Path, Settings)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok((path, Settings::from_toml(path, &text)?))
}

/// A runtime for the vault's IO. Two threads are plenty: what is heavy runs on threads of its own.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start the runtime")
}

/// Opens the vault.
pub fn open(args: &VaultArgs, access: Access, runtime: &tokio::runtime::Runtime) -> Result<Vault> {
    let (location, config) = resolve(args)?;
    Ok(runtime.block_on(Vault::open(&location, &config, access))?)
}

/// `latest`, a number, or CLUSTER_ID/NUMBER.
pub fn find_point(vault: &Vault, point: &str, cluster: Option<&str>) -> Result<PointId> {
    if point.contains('/') {
        return point.parse().context("no restore point\nhint: say latest, a number, or CLUSTER_ID/NUMBER");
    }
    let cluster = vault.wait(vault.find_cluster(cluster))?;
    if point == "latest" {
        return Ok(vault.wait(vault.require_committed(&cluster))?);
    }
    match point.parse() {
        Ok(number) if number > 0 => Ok(PointId { cluster_id: cluster.id, number }),
        _ => bail!("{point:?} is no restore point\nhint: say latest, a number, or CLUSTER_ID/NUMBER"),
    }
}

/// Opens a vault to look at one of its points.
pub fn open_point(args: &PointArgs, runtime: &tokio::runtime::Runtime) -> Result<(Vault, PointId, PointManifest)> {
    let vault = open(&args.vault, Access::Read, runtime)?;
    let id = find_point(&vault, &args.point, args.cluster.as_deref())?;
    let manifest = vault.wait(vault.point_manifest(&id))?;
    Ok((vault, id, manifest))
}

/// What `vault init` prints.
#[derive(Serialize)]
struct Made {
    vault: String,
    id: String,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "made vault {} at {}", self.id, self.vault)
    }
}

/// `segvault vault init`.
pub fn init(args: &VaultArgs, json: bool) -> Result<Ending> {
    let (location, config) = resolve(args)?;
    let runtime = runtime()?;
    let vault = runtime.block_on(Vault::init(&location, &config, now_ms()))?;
    output::print(&Made { vault: location.to_string(), id: vault.id().to_string() }, json)?;
    Ok(Ending::Done)
}
