//! A run of a coordinator: what `service/runs.rs` does around [`crate::drive::take`], and what that has around it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::task::Poll;
use std::time::Duration;

use segvault_proto::{Command, Report};
use segvault_vault::VaultError;
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::{Outcome, PointManifest, Totals};

use super::board::Handle;
use super::cluster::CLUSTER;
use super::mutation::Mutation;
use super::queue::{MILLISECOND, Micros, SECOND};
use super::vault::Vault;
use crate::drive::{self, DriveError, Link, Request, Surroundings};
use crate::point::{Now, Progress};
use crate::service::fleet::Fleet;

/// How often a run looks up from waiting. In earnest it does so more often.
const TICK: Micros = 500 * MILLISECOND;
/// `service/runs.rs`.
const GATHERING: Micros = 20 * SECOND;
/// How often it looks; in earnest it hears who comes.
const GATHERING_STEP: Micros = SECOND;

/// How a run ended.
#[derive(Clone, Debug)]
pub enum End {
    /// The point is committed.
    Committed(Box<PointManifest>),
    /// The point was given up.
    Abandoned(String),
    /// The vault failed, and it is not known what became of the point; or there was nobody to take it of. The reason is
    /// for those who read the trace.
    Unknown(#[allow(dead_code, reason = "read in its Debug text only")] String),
}

/// What the world may know of a run.
#[derive(Default)]
pub struct View {
    /// Why an operator does not want it any more.
    pub cancelled: Option<String>,
    /// The point's number, once there is one.
    pub number: Option<u64>,
    /// What it last said of itself.
    pub progress: Option<Progress>,
    /// When each node was sent the commands that it has not answered.
    unanswered: BTreeMap<i32, VecDeque<Micros>>,
    /// Nodes that may be given up: they have failed, or are gone.
    gone: BTreeSet<i32>,
}

impl View {
    /// An agent has said something.
    fn hear(&mut self, node_id: i32, report: &Report) {
        match report {
            Report::Stored(_) | Report::NotStored { .. } | Report::MetadataStored(_) => {}
            Report::Failed { .. } => _ = self.gone.insert(node_id),
            _ => _ = self.unanswered.entry(node_id).or_default().pop_front(),
        }
    }
}

/// How a run is set up.
pub struct Setup {
    /// Where it says what it waits for.
    pub handle: Handle,
    /// The coordinator's seats.
    pub fleet: Arc<Fleet>,
    /// The number of the run.
    pub run: u64,
    /// When its coordinator was started.
    pub started: Micros,
    /// What is wrong.
    pub mutation: Option<Mutation>,
    /// How long an agent may take.
    pub barrier_deadline: Micros,
    /// Only closed segments.
    pub closed_only: bool,
    /// What nobody else has.
    pub nonce: [u8; 16],
}

/// A run under way.
pub type Running = Pin<Box<dyn Future<Output = End>>>;

/// Begins a run.
pub fn begin(setup: Setup, view: Rc<RefCell<View>>) -> Running {
    Box::pin(async move {
        let end = take(&setup, view).await;
        setup.fleet.end_run(CLUSTER, setup.run);
        end
    })
}

async fn take(setup: &Setup, view: Rc<RefCell<View>>) -> End {
    let vault = Vault::new(setup.handle.clone(), setup.mutation, setup.nonce);
    if let Err(error) = gather(setup, &vault, &view).await {
        return End::Unknown(error.to_string());
    }
    let (sender, reports) = mpsc::channel();
    let links = setup.fleet.begin_run(CLUSTER, setup.run, &sender, |_| true);
    drop(sender);
    if links.is_empty() {
        return End::Unknown("no agent of the cluster is connected".to_owned());
    }
    let nodes = links.iter().map(|link| link.facts.clone()).collect();
    let deadline = setup.barrier_deadline;
    let around = Around { handle: setup.handle.clone(), vault, links, reports, view, deadline };
    let taken_by = format!("run {}", setup.run);
    let request = Request {
        cluster_name: None,
        closed_only: setup.closed_only,
        taken_by: &taken_by,
        barrier_deadline: Duration::from_micros(setup.barrier_deadline),
    };
    match drive::take(around, nodes, &request).await {
        Ok(committed) => End::Committed(Box::new(committed.manifest)),
        Err(DriveError::Abandoned { reason, .. }) => End::Abandoned(reason),
        Err(DriveError::Vault(error)) => End::Unknown(error.to_string()),
    }
}

/// After a restart the nodes of the last point are waited for, a while.
async fn gather(setup: &Setup, vault: &Vault, view: &RefCell<View>) -> Result<(), VaultError> {
    let until = setup.started + GATHERING;
    if setup.handle.now() > until {
        return Ok(());
    }
    let expected: Vec<i32> = match vault.latest_committed().await? {
        Some(id) => vault.point_manifest(id.number).await?.nodes.iter().map(|node| node.node_id).collect(),
        None => Vec::new(),
    };
    let is_complete = || {
        let connected = setup.fleet.connected(CLUSTER);
        !connected.is_empty() && expected.iter().all(|node_id| connected.contains(node_id))
    };
    while !is_complete() && setup.handle.now() < until && view.borrow().cancelled.is_none() {
        setup.handle.sleep_until(setup.handle.now() + GATHERING_STEP).await;
    }
    Ok(())
}

/// What [`crate::drive::take`] has around it.
struct Around {
    handle: Handle,
    vault: Vault,
    links: Vec<Link>,
    reports: Receiver<(i32, Report)>,
    view: Rc<RefCell<View>>,
    deadline: Micros,
}

impl Around {
    /// Nobody is given up but for a reason: an agent that answers in time is asked on.
    fn check_leaving(&self, before: &Progress, now: &Progress) {
        let view = self.view.borrow();
        for node_id in before.nodes.iter().filter(|node_id| !now.nodes.contains(node_id)) {
            let unanswered = view.unanswered.get(node_id).and_then(|sent| sent.front());
            let waited = unanswered.map_or(0, |sent| self.handle.now() - sent);
            let is_late = before.waiting.contains(node_id) && waited > self.deadline;
            if !view.gone.contains(node_id) && !is_late {
                self.handle.complain(format!(
                    "point {}: node {node_id} was given up between {:?} and {:?} after {} ms, and had done nothing \
                     wrong",
                    now.number,
                    before.phase,
                    now.phase,
                    waited / MILLISECOND
                ));
            }
        }
    }
}

impl Surroundings for Around {
    async fn register_cluster(&self, _id: &str, _name: &str) -> Result<(), VaultError> {
        Ok(())
    }

    async fn latest_committed(&self, _cluster_id: &str) -> Result<Option<PointId>, VaultError> {
        self.vault.latest_committed().await
    }

    async fn point_manifest(&self, id: &PointId) -> Result<PointManifest, VaultError> {
        self.vault.point_manifest(id.number).await
    }

    async fn begin_point(&self, _cluster_id: &str, base: u64, by: &str, now_ms: i64) -> Result<PointId, VaultError> {
        let id = self.vault.begin_point(base, by, now_ms).await?;
        self.view.borrow_mut().number = Some(id.number);
        Ok(id)
    }

    async fn outcome(&self, id: &PointId) -> Result<Option<Outcome>, VaultError> {
        if self.vault.is(Mutation::NothingIsSuperseded) {
            return Ok(Some(Outcome::default()));
        }
        self.vault.outcome(id.number).await
    }

    async fn abort_point(&self, id: &PointId, reason: &str) -> Result<Outcome, VaultError> {
        self.vault.abort_point(id.number, reason).await
    }

    async fn commit_point(&self, manifest: &PointManifest, totals: Totals) -> Result<Outcome, VaultError> {
        self.vault.commit_point(manifest, totals).await
    }

    fn send(&self, node_id: i32, command: Command) -> bool {
        let mut view = self.view.borrow_mut();
        if let Command::Prepare { point, .. } = &command {
            self.handle.begun(point.number);
        }
        view.unanswered.entry(node_id).or_default().push_back(self.handle.now());
        let link = self.links.iter().find(|link| link.facts.node_id == node_id);
        let sent = link.is_some_and(|link| (link.send)(command));
        if !sent {
            view.gone.insert(node_id);
        }
        sent
    }

    async fn hear(&self) -> Result<(i32, Report), RecvTimeoutError> {
        let until = self.handle.now() + TICK;
        self.handle.wake(until);
        let heard = poll_fn(|_| match self.reports.try_recv() {
            Ok(report) => Poll::Ready(Ok(report)),
            Err(TryRecvError::Disconnected) => Poll::Ready(Err(RecvTimeoutError::Disconnected)),
            Err(TryRecvError::Empty) if self.handle.now() >= until => Poll::Ready(Err(RecvTimeoutError::Timeout)),
            Err(TryRecvError::Empty) => Poll::Pending,
        })
        .await;
        if let Ok((node_id, report)) = &heard {
            self.view.borrow_mut().hear(*node_id, report);
        }
        heard
    }

    fn cancelled(&self) -> Option<String> {
        self.view.borrow().cancelled.clone()
    }

    fn observe(&mut self, progress: &Progress) {
        let before = self.view.borrow_mut().progress.replace(progress.clone());
        if let Some(before) = before {
            self.check_leaving(&before, progress);
        }
    }

    fn now(&self) -> Now {
        let now = self.handle.now();
        Now { unix_ms: (now / MILLISECOND) as i64, monotonic_us: now }
    }
}
