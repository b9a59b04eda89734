//! What needs the network: the daemons, and the verbs that ask a coordinator.

mod agent;
mod client;
mod coordinator;
mod point;
mod restore;
mod status;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use segvault_transport::{Reloading, Security, TlsFiles};
use serde::Deserialize;

pub use agent::{AgentArgs, agent};
pub use client::{ClientArgs, control, failed};
pub use coordinator::{CoordinatorArgs, coordinator};
pub use point::{CancelArgs, cancel, create};
pub use restore::{CancelRestoreArgs, cancel_restore, restore};
pub use status::{StatusArgs, status};

/// How connections are made: with certificates, or in plain text on the loopback device.
#[derive(Debug, Clone, Default, Args)]
pub struct SecurityArgs {
    /// Certificate of the fleet's authority (PEM) that peers are believed by.
    #[arg(long, value_name = "FILE", env = "SEGVAULT_CA")]
    pub ca: Option<PathBuf>,
    /// Own certificate (PEM): `segvault cert` makes one.
    #[arg(long, value_name = "FILE", env = "SEGVAULT_CERT")]
    pub cert: Option<PathBuf>,
    /// Own key (PEM).
    #[arg(long, value_name = "FILE", env = "SEGVAULT_KEY")]
    pub key: Option<PathBuf>,
    /// No TLS; only on the loopback device.
    #[arg(long, conflicts_with_all = ["ca", "cert", "key"])]
    pub plain_text: bool,
}

/// The same in a configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecuritySettings {
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    #[serde(default)]
    plain_text: bool,
}

impl SecurityArgs {
    /// What the flags say, and where they say nothing, the file.
    fn or(self, file: SecuritySettings) -> Self {
        if self.plain_text {
            return self;
        }
        let (ca, cert, key) = (self.ca.or(file.ca), self.cert.or(file.cert), self.key.or(file.key));
        let plain_text = file.plain_text && ca.is_none() && cert.is_none() && key.is_none();
        Self { ca, cert, key, plain_text }
    }

    /// Loads the files.
    fn resolve(self) -> Result<Security> {
        match self {
            Self { plain_text: true, .. } => Ok(Security::Plain),
            Self { ca: Some(ca), cert: Some(cert), key: Some(key), .. } => {
                Ok(Security::Tls(Arc::new(Reloading::open(TlsFiles { ca, cert, key })?)))
            }
            Self { ca: None, cert: None, key: None, .. } => bail!(
                "no certificates are given\nhint: give --ca, --cert and --key (segvault cert makes them), or \
                 --plain-text on the loopback device"
            ),
            _ => bail!("--ca, --cert and --key belong together, and one of them is missing"),
        }
    }
}

/// Reads a TOML file; what it must not say is an error that names the line.
fn read_toml<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse_toml(path, &text)
}

fn parse_toml<T: serde::de::DeserializeOwned>(path: &std::path::Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let line = 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count());
        anyhow::anyhow!("{}: line {line}: {}", path.display(), error.message())
    })
}

/// The name of this host, for people.
fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "unknown".to_owned())
}

/// Done when SIGINT or SIGTERM comes. Must be called within the runtime.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    Ok(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    })
}
