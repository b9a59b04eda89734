//! What operators ask.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use segvault_proto::{RestoreDeed, rpc};
use segvault_transport::{authorize_operator, peer_of};
use segvault_vault::VaultError;
use segvault_vault_format::ids::PlanId;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::check_protocol;
use super::examination::examine;
use super::fleet::Fleet;
use super::restores::is_over;
use super::runs::{Runs, is_end};
use super::scheduler::Timetable;

/// A status that is followed comes at most this often.
const STATUS_STEP: Duration = Duration::from_millis(200);

/// A status waits for the names of clusters this long.
const NAMES_DEADLINE: Duration = Duration::from_secs(2);

/// Answers operators.
pub(super) struct Control {
    fleet: Arc<Fleet>,
    runs: Arc<Runs>,
    timetable: Arc<Timetable>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl rpc::control_server::Control for Control {
    type TakePointStream = Answers<rpc::PointEvent>;
    type RunRestoreStream = Answers<rpc::RestoreStatus>;
    type StatusStream = Answers<rpc::StatusReply>;

    async fn take_point(
        &self,
        request: Request<rpc::TakePointRequest>,
    ) -> Result<Response<Answers<rpc::PointEvent>>, Status> {
        authorize_operator(&peer_of(&request)?)?;
        let request = request.into_inner();
        check_protocol(request.protocol, "the caller")?;
        let cluster_id = self.find_cluster(&request.cluster).await?;
        let events = self.runs.begin(&cluster_id, request.closed_only)?;
        Ok(Response::new(until(events, is_end)))
    }

    async fn cancel_point(
        &self,
        request: Request<rpc::CancelPointRequest>,
    ) -> Result<Response<rpc::CancelPointReply>, Status> {
        let peer = peer_of(&request)?;
        authorize_operator(&peer)?;
        let request = request.into_inner();
        check_protocol(request.protocol, "the caller")?;
        let cluster_id = self.find_cluster(&request.cluster).await?;
        let who = peer.identity.map_or_else(|| peer.addr.to_string(), |identity| identity.to_string());
        let reason = match request.reason.trim() {
            "" => format!("cancelled by {who}"),
            reason => format!("cancelled by {who}: {reason}"),
        };
        let mut events = self.runs.cancel(&cluster_id, &reason)?;
        let end = events.wait_for(is_end).await.map_err(|_| Status::internal("the point's thread has ended"))?.clone();
        match end.event {
            Some(rpc::point_event::Event::Committed(committed)) => Err(Status::failed_precondition(format!(
                "too late: point {} of cluster {cluster_id} was committed",
                committed.number
            ))),
            Some(rpc::point_event::Event::Abandoned(abandoned)) => {
                Ok(Response::new(rpc::CancelPointReply { cluster_id, number: abandoned.number }))
            }
            _ => Err(Status::internal("the point has ended without an end")),
        }
    }

    async fn run_restore(
        &self,
        request: Request<rpc::RunRestoreRequest>,
    ) -> Result<Response<Answers<rpc::RestoreStatus>>, Status> {
        authorize_operator(&peer_of(&request)?)?;
        let request = request.into_inner();
        check_protocol(request.protocol, "the caller")?;
        let deed = RestoreDeed::try_from(request.deed).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let cluster_id = self.find_cluster(&request.cluster).await?;
        let plan = self.runs.vault().plan(&PlanId { cluster_id, number: request.plan }).await.map_err(refuse)?;
        let statuses = self.runs.begin_restore(plan, deed, &request.nodes).await?;
        Ok(Response::new(until(statuses, is_over)))
    }

    async fn cancel_restore(
        &self,
        request: Request<rpc::CancelRestoreRequest>,
    ) -> Result<Response<rpc::RestoreStatus>, Status> {
        authorize_operator(&peer_of(&request)?)?;
        let request = request.into_inner();
        check_protocol(request.protocol, "the caller")?;
        let cluster_id = self.find_cluster(&request.cluster).await?;
        let mut statuses = self.runs.cancel_restore(&cluster_id)?;
        let end = statuses.wait_for(is_over).await.map_err(|_| Status::internal("the restore's thread has ended"))?;
        Ok(Response::new(end.clone()))
    }

    async fn examine(&self, request: Request<rpc::ExamineRequest>) -> Result<Response<rpc::ExamineReply>, Status> {
        authorize_operator(&peer_of(&request)?)?;
        let request = request.into_inner();
        check_protocol(request.protocol, "the caller")?;
        let cluster_id = self.find_cluster(&request.cluster).await?;
        let (fleet, number, id) = (self.fleet.clone(), self.runs.next_number(), cluster_id.clone());
        let examine = move || examine(&fleet, &id, number, &request.nodes);
        let nodes =
            tokio::task::spawn_blocking(examine).await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(rpc::ExamineReply { cluster_id, nodes }))
    }

    async fn status(
        &self,
        request: Request<rpc::StatusRequest>,
    ) -> Result<Response<Answers<rpc::StatusReply>>, Status> {
        authorize_operator(&peer_of(&request)?)?;
        let request = request.into_inner();
        check_protocol(request.protocol, "the caller")?;
        let wanted = match request.cluster.as_str() {
            "" => None,
            cluster => Some(self.find_cluster(cluster).await?),
        };
        let (fleet, runs, timetable) = (self.fleet.clone(), self.runs.clone(), self.timetable.clone());
        let changes = futures::stream::select(WatchStream::new(fleet.watch()), WatchStream::from_changes(runs.watch()));
        let changes = tokio_stream::StreamExt::throttle(changes, STATUS_STEP);
        let reply = move |()| {
            let (fleet, runs, timetable, wanted) = (fleet.clone(), runs.clone(), timetable.clone(), wanted.clone());
            async move { report(&fleet, &runs, &timetable, wanted.as_deref()).await }
        };
        let replies = changes.then(reply);
        Ok(Response::new(if request.follow { replies.boxed() } else { replies.take(1).boxed() }))
    }
}

impl Control {
    pub(super) fn new(fleet: Arc<Fleet>, runs: Arc<Runs>, timetable: Arc<Timetable>) -> Self {
        Self { fleet, runs, timetable }
    }

    /// The id of the cluster that is meant: by its id or by its name in the vault; the only one that has agents here,
    /// if none is named.
    async fn find_cluster(&self, wanted: &str) -> Result<String, Status> {
        let here = self.fleet.clusters();
        if let Some(id) = here.iter().find(|id| *id == wanted) {
            return Ok(id.clone());
        }
        if wanted.is_empty() {
            return match &here[..] {
                [only] => Ok(only.clone()),
                // Just after a start agents are on their way; the vault may know of one cluster only.
                [] => Ok(self.runs.vault().find_cluster(None).await.map_err(refuse)?.id),
                several => Err(Status::invalid_argument(format!(
                    "there are agents of several clusters: {}\nhint: say which with --cluster",
                    several.join(", ")
                ))),
            };
        }
        Ok(self.runs.vault().find_cluster(Some(wanted)).await.map_err(refuse)?.id)
    }
}

fn refuse(error: VaultError) -> Status {
    match error {
        VaultError::WhichCluster { .. } | VaultError::NoClusters { .. } | VaultError::NoPlan { .. } => {
            Status::not_found(error.to_string())
        }
        error => Status::unavailable(segvault_transport::explain(&error)),
    }
}

/// Progress, whatever of it the caller is fast enough to see, and the end.
fn until<T: Clone + Send + Sync + 'static>(
    events: watch::Receiver<T>,
    is_end: impl Fn(&T) -> bool + Send + 'static,
) -> Answers<T> {
    let events = WatchStream::new(events);
    let mut has_ended = false;
    let until_end = events.take_while(move |event| {
        let goes_on = !has_ended;
        has_ended = is_end(event);
        std::future::ready(goes_on)
    });
    until_end.map(Ok).boxed()
}

async fn report(
    fleet: &Fleet,
    runs: &Runs,
    timetable: &Timetable,
    wanted: Option<&str>,
) -> Result<rpc::StatusReply, Status> {
    // While the vault is away there is the more to be seen here; only names are not known then.
    let known = match tokio::time::timeout(NAMES_DEADLINE, runs.vault().clusters()).await {
        Ok(known) => known.map_err(refuse)?,
        Err(_) => Vec::new(),
    };
    let mut ids = fleet.clusters();
    ids.extend(known.iter().map(|cluster| cluster.id.clone()));
    ids.sort();
    ids.dedup();
    let clusters = ids.into_iter().filter(|id| wanted.is_none_or(|wanted| wanted == id)).map(|id| {
        let (running, last) = runs.status(&id);
        rpc::ClusterStatus {
            name: known.iter().find(|cluster| cluster.id == id).map_or_else(|| id.clone(), |c| c.name.clone()),
            agents: fleet.status(&id, Instant::now()),
            running,
            last,
            next_ms: timetable.next_ms(&id).unwrap_or(0),
            restore: runs.restore_status(&id),
            id,
        }
    });
    Ok(rpc::StatusReply {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        vault: runs.vault().location().to_string(),
        clusters: clusters.collect(),
    })
}
