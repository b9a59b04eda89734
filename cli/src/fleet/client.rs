//! A connection to the coordinator.

use std::error::Error;

use anyhow::{Result, anyhow};
use clap::Args;
use segvault_proto::rpc::control_client::ControlClient;
use segvault_transport::{connect, explain};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::SecurityArgs;

/// Which coordinator is asked.
#[derive(Debug, Clone, Args)]
pub struct ClientArgs {
    /// Where the coordinator listens.
    #[arg(long, value_name = "HOST:PORT", env = "SEGVAULT_COORDINATOR", default_value = "127.0.0.1:9640")]
    pub coordinator: String,
    #[command(flatten)]
    pub security: SecurityArgs,
}

/// Connects to a coordinator.
pub async fn control(coordinator: &str, security: SecurityArgs) -> Result<ControlClient<Channel>> {
    let security = security.resolve()?;
    let channel = connect(coordinator, &security).await.map_err(|error| anyhow!(explain(&error)))?;
    Ok(ControlClient::new(channel))
}

/// A stream of the coordinator's that ended before it was done, by its own doing or because the connection broke.
pub fn cut_off(coordinator: &str, status: Option<&Status>, hint: &str) -> anyhow::Error {
    let why = match status {
        None => "it hung up".to_owned(),
        // A status that the coordinator has sent has no cause on this side.
        Some(status) if status.source().is_none() => status.message().to_owned(),
        Some(_) => "the connection to it broke: it has died, or the network between was cut".to_owned(),
    };
    anyhow!("coordinator {coordinator}: {why}\nhint: {hint}")
}

/// What a coordinator's refusal says, or what is wrong with the connection to it.
pub fn failed(coordinator: &str, status: &Status) -> anyhow::Error {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled => {
            anyhow!("coordinator {coordinator}: {}", explain(status))
        }
        _ => anyhow!(status.message().to_owned()),
    }
}
