//! The coordinator as a service: agents attend to it, operators ask it, and it takes restore points.
//!
//! It remembers nothing that counts: points are what the vault says. So it may be killed, moved, or started twice by
//! mistake at any moment. Whoever begins a point decides the older undecided ones (see [`crate::drive`]), agents let go
//! of what they hold for a coordinator that is gone, and the next point works.

mod control;
mod examination;
pub(crate) mod fleet;
mod history;
mod metrics;
mod restores;
mod runs;
mod scheduler;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use segvault_proto::{NodeFacts, PROTOCOL_VERSION, rpc};
use segvault_transport::{Peer, Security, authorize_agent, listen, peer_of};
use segvault_vault::Vault;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub use fleet::Patience;
use fleet::{Fleet, Introduction, NodeKey};
use history::Histories;
use metrics::{Metrics, Showcase};
use runs::Runs;
pub use scheduler::ClusterSchedule;
use scheduler::{Scheduler, ServicePoints, Timetable};

use crate::drive::unix_ms;

/// Largest message of an agent, in bytes: the metadata of a cluster travels as one.
const MESSAGE_LEN_MAX: usize = 512 << 20;
/// An agent that has connected says hello within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Answers that are under way when the service stops may still go out.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How a coordinator is set up.
pub struct ServiceOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who may speak to it.
    pub security: Security,
    /// Host and process, for people.
    pub name: String,
    /// How fast silence is noticed.
    pub patience: Patience,
    /// An agent that has not answered a command of the barrier by then is given up.
    pub barrier_deadline: Duration,
    /// Points that it begins by itself.
    pub schedules: Vec<ClusterSchedule>,
    /// Where it serves metrics and health, if it does.
    pub metrics: Option<SocketAddr>,
}

/// Why the coordinator cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] segvault_transport::server::ListenError),
    /// The address for metrics cannot be listened on.
    #[error(transparent)]
    Metrics(#[from] segvault_metrics::ListenError),
    /// The server failed.
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves until `stop` is done; then points under way are given up and agents are told so. `ready` is called with the
/// address once agents can connect.
pub async fn serve(
    vault: Vault,
    options: ServiceOptions,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<(), ServiceError> {
    let incoming = listen(options.listen, options.security.clone()).await?;
    let fleet = Arc::new(Fleet::new(options.patience));
    let (histories, metrics) = (Arc::new(Histories::new(vault.clone())), Arc::new(Metrics::new()));
    let (deadline, known) = (options.barrier_deadline, histories.clone());
    let runs = Arc::new(Runs::new(vault, fleet.clone(), options.name, deadline, known, metrics.clone()));
    let timetable = Arc::new(Timetable::default());
    let shown = Showcase::new(metrics.clone(), fleet.clone(), histories.clone(), timetable.clone(), options.security);
    let showcase = Arc::new(shown);
    // What goes on beside the server ends with the service.
    let (mut tasks, mut scheduling) = (JoinSet::new(), JoinSet::new());
    tasks.spawn(tick(fleet.clone()));
    if let Some(addr) = options.metrics {
        expose(addr, showcase.clone(), &mut tasks).await?;
    }
    let points = ServicePoints { fleet: fleet.clone(), runs: runs.clone(), histories, metrics };
    let scheduler = Scheduler::new(points, options.schedules, timetable.clone(), unix_ms());
    scheduling.spawn(scheduler.run(runs.watch()));
    let attendance = Attendance { fleet: fleet.clone(), vault: runs.vault().id().0.to_vec() };
    let attendance = rpc::fleet_server::FleetServer::new(attendance)
        .max_decoding_message_size(MESSAGE_LEN_MAX)
        .max_encoding_message_size(MESSAGE_LEN_MAX);
    let control =
        rpc::control_server::ControlServer::new(control::Control::new(fleet.clone(), runs.clone(), timetable));
    ready(incoming.local_addr());
    let (stopped, when_stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(options.patience.heartbeat))
        .add_service(attendance)
        .add_service(control)
        .serve_with_incoming_shutdown(incoming, async { drop(when_stopped.await) });
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => ended?,
        () = stop => {
            showcase.stop();
            scheduling.shutdown().await;
            runs.stop("the coordinator was stopped").await;
            fleet.dismiss();
            let _ = stopped.send(());
            // Whoever follows a status may keep its stream open for ever.
            if let Ok(ended) = tokio::time::timeout(STOP_DEADLINE, server).await {
                ended?;
            }
        }
    }
    Ok(())
}

/// Serves metrics and health.
async fn expose(addr: SocketAddr, showcase: Arc<Showcase>, tasks: &mut JoinSet<()>) -> Result<(), ServiceError> {
    let listener = segvault_metrics::listen(addr).await?;
    tracing::info!(address = %listener.local_addr(), "metrics");
    tasks.spawn(showcase.clone().keep_histories());
    tasks.spawn(async move { match listener.serve(showcase).await {} });
    Ok(())
}

async fn tick(fleet: Arc<Fleet>) {
    let mut ticks = tokio::time::interval(fleet.patience().heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        fleet.tick(Instant::now());
    }
}

/// What agents attend to.
struct Attendance {
    fleet: Arc<Fleet>,
    vault: Vec<u8>,
}

/// Frames to an agent.
type ToAgent = Pin<Box<dyn Stream<Item = Result<rpc::CoordinatorFrame, Status>> + Send>>;

#[tonic::async_trait]
impl rpc::fleet_server::Fleet for Attendance {
    type AttendStream = ToAgent;

    async fn attend(&self, request: Request<Streaming<rpc::AgentFrame>>) -> Result<Response<ToAgent>, Status> {
        let peer = peer_of(&request)?;
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(rpc::agent_frame::Body::Hello(hello)) = first.and_then(|frame| frame.body) else {
            return Err(Status::invalid_argument("the first frame is a hello"));
        };
        let hello = self.admit(&peer, hello).inspect_err(|status| {
            tracing::warn!(peer = %peer.addr, reason = status.message(), "agent refused");
        })?;
        let key: NodeKey = (hello.facts.cluster_id.clone(), hello.facts.node_id);
        let session = random()?;
        let (connection, outgoing) = self.fleet.sit(hello, session, Instant::now())?;
        tokio::spawn(listen_to(self.fleet.clone(), key, connection, frames));
        Ok(Response::new(UnboundedReceiverStream::new(outgoing).boxed()))
    }
}

impl Attendance {
    /// Whether an agent may sit where it wants to.
    fn admit(&self, peer: &Peer, hello: rpc::Hello) -> Result<Introduction, Status> {
        check_protocol(hello.protocol, &format!("agent {}", hello.version))?;
        let facts = hello.facts.ok_or_else(|| Status::invalid_argument("the hello has no facts"))?;
        let facts = NodeFacts::try_from(facts).map_err(|error| Status::invalid_argument(error.to_string()))?;
        authorize_agent(peer, &facts.cluster_id, facts.node_id)?;
        if hello.incarnation.len() != 16 {
            return Err(Status::invalid_argument("the hello has no incarnation of 16 bytes"));
        }
        if hello.vault != self.vault {
            return Err(Status::failed_precondition(
                "the agent uploads to another vault than the coordinator's\nhint: give both the same --vault",
            ));
        }
        let (incarnation, session) = (hello.incarnation, hello.session);
        let (host, version, space, vacant) = (hello.host, hello.version, hello.space, hello.vacant);
        Ok(Introduction { incarnation, session, facts, host, version, space, vacant })
    }
}

/// Hands the agent's frames to the fleet until its stream ends.
async fn listen_to(fleet: Arc<Fleet>, key: NodeKey, connection: u64, mut frames: Streaming<rpc::AgentFrame>) {
    let why = loop {
        match frames.message().await {
            Ok(Some(frame)) => {
                if let Err(status) = fleet.receive(&key, connection, frame, Instant::now()) {
                    break status.message().to_owned();
                }
            }
            Ok(None) => break "the agent hung up".to_owned(),
            Err(status) => break segvault_transport::explain(&status),
        }
    };
    fleet.hang_up(&key, connection, &why);
}

/// Refuses another version of the protocol; `who` speaks it.
fn check_protocol(protocol: u32, who: &str) -> Result<(), Status> {
    if protocol == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "{who} speaks protocol {protocol}, the coordinator (version {}) protocol {PROTOCOL_VERSION}\n\
         hint: install the same version of segvault on both hosts",
        env!("CARGO_PKG_VERSION")
    )))
}

fn random() -> Result<[u8; 16], Status> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Status::internal(format!("no randomness: {error}")))?;
    Ok(bytes)
}
