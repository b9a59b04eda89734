//! The agent as a service: it dials the coordinator, says which node it speaks for, and does what it is told.
//!
//! Two things go on side by side. A *worker* thread owns the [`Charge`] and carries out one command after the other; an
//! examination, which only looks, has a thread of its own. The *session* keeps a connection: it numbers reports until the
//! coordinator has confirmed them, and takes commands in. A connection that breaks is made anew, with growing pauses, and
//! the session goes on where it was. Only if the coordinator is another process by then, or nothing was heard of it for as
//! long as its lease says, the agent lets go of everything: pins never outlive the point that they are for.

mod examination;
mod metrics;
mod restore;
mod session;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use segvault_transport::Security;
use segvault_vault::Vault;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::node::Node;
use crate::pinned::Tally;
use examination::Examiner;
use metrics::Metrics;

/// Least and greatest pause before the next attempt to connect.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How an agent's service is set up.
#[derive(Clone)]
pub struct ServiceOptions {
    /// Where coordinators listen, `HOST:PORT`; tried one after the other.
    pub coordinators: Vec<String>,
    /// Who may speak to it.
    pub security: Security,
    /// This host's name, for people.
    pub host: String,
    /// Folder for pins, if one was given.
    pub staging: Option<PathBuf>,
    /// Threads that compress and store.
    pub workers: usize,
    /// Where it serves metrics and health, if it does.
    pub metrics: Option<SocketAddr>,
}

/// What the service looks after.
#[derive(Debug)]
pub enum Charge {
    /// A node that can be captured.
    Formatted(Agent),
    /// A node with empty log dirs: it can only be restored.
    Vacant(Node),
}

impl Charge {
    fn node(&self) -> &Node {
        match self {
            Self::Formatted(agent) => agent.node(),
            Self::Vacant(node) => node,
        }
    }
}

/// Why the service has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The node was vacant and is not any more: it is to be served as a formatted one.
    Settled,
}

/// Where the service stands, for people and for `sd_notify`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not connected, and why.
    Searching(String),
    /// Connected to this coordinator.
    Connected(String),
}

/// Why the service ended, if it was not told to.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no randomness, so nothing that tells this process from others.
    #[error("get random bytes: {0}")]
    Randomness(getrandom::Error),
    /// The address for metrics cannot be listened on.
    #[error(transparent)]
    Metrics(#[from] segvault_metrics::ListenError),
    /// The worker thread has panicked.
    #[error("the agent's worker panicked; please report this with its output")]
    Worker,
}

/// Serves until `stop` is done or a vacant node has been restored, then lets go of everything and says goodbye.
/// `observe` hears where it stands.
pub async fn serve(
    charge: Charge,
    vault: Vault,
    options: ServiceOptions,
    mut observe: impl FnMut(&Standing),
    stop: impl Future<Output = ()>,
) -> Result<Ended, ServiceError> {
    let vault_id = vault.id();
    let facts = charge.node().facts.clone();
    let (vacant, tally) = match &charge {
        Charge::Formatted(agent) => (None, agent.tally().clone()),
        Charge::Vacant(node) => (Some(node.config.clone()), Tally::default()),
    };
    let metrics = Metrics::new(&facts, tally, options.security.clone());
    // Ends with the service.
    let mut pages = JoinSet::new();
    if let Some(addr) = options.metrics {
        let listener = segvault_metrics::listen(addr).await?;
        tracing::info!(address = %listener.local_addr(), "metrics");
        pages.spawn(listener.serve(metrics.clone()));
    }
    let examiner = Examiner {
        config: charge.node().config.clone(),
        staging: options.staging.clone(),
        vault: vault.clone(),
        turn: Arc::default(),
    };
    let (worker, reports) = worker::start(charge, vault, examiner, options.workers, metrics.clone());
    let observe = |standing: &Standing| {
        metrics.stands(standing);
        observe(standing);
    };
    let mut session = session::Session::new(facts, vacant, vault_id, worker, reports, options, observe)?;
    let ended = session.run(stop).await;
    pages.shutdown().await;
    ended
}
