//! What is under way: at most one restore point or one restore per cluster, each driven by a thread of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use segvault_proto::rpc;
use segvault_transport::explain;
use segvault_vault::{Vault, VaultError};
use tokio::sync::watch;
use tonic::Status;

use super::fleet::Fleet;
use super::history::Histories;
use super::metrics::{Metrics, PhaseClock};
use super::restores::{FleetRestore, is_over};
use crate::drive::{self, Committed, DriveError, Request, unix_ms};
use crate::point::{Phase, Progress};

/// For so long after its start a coordinator waits for the nodes of the last point to connect before it begins one.
const GATHERING: Duration = Duration::from_secs(20);

/// How many uncovered partitions an operator is told at once; the point names all.
const UNCOVERED_MAX: usize = 100;

/// Takes restore points, and has them restored.
pub struct Runs {
    vault: Vault,
    pub(super) fleet: Arc<Fleet>,
    /// Host and process, for intents.
    name: String,
    barrier_deadline: Duration,
    histories: Arc<Histories>,
    metrics: Arc<Metrics>,
    started: Instant,
    numbers: AtomicU64,
    clusters: Mutex<BTreeMap<String, Cluster>>,
    pub(super) changed: watch::Sender<()>,
}

/// What is known of a cluster's points and restores.
#[derive(Default)]
pub(super) struct Cluster {
    pub running: Option<Running>,
    last: Option<rpc::LastPoint>,
    pub restore: Option<FleetRestore>,
}

/// A point under way.
pub(super) struct Running {
    cancel: Arc<OnceLock<String>>,
    events: watch::Receiver<rpc::PointEvent>,
}

impl Runs {
    /// Nothing is under way yet.
    pub fn new(
        vault: Vault,
        fleet: Arc<Fleet>,
        name: String,
        barrier_deadline: Duration,
        histories: Arc<Histories>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            vault,
            fleet,
            name,
            barrier_deadline,
            histories,
            metrics,
            started: Instant::now(),
            numbers: AtomicU64::new(1),
            clusters: Mutex::default(),
            changed: watch::Sender::default(),
        }
    }

    /// Where points go.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Says when a point has gone on.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Cluster>> {
        self.clusters.lock().expect("no thread panics while it holds the runs")
    }

    /// A number for the next run.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins a point of a cluster; what becomes of it comes through the receiver.
    pub fn begin(
        self: &Arc<Self>,
        cluster_id: &str,
        closed_only: bool,
    ) -> Result<watch::Receiver<rpc::PointEvent>, Status> {
        if self.fleet.connected(cluster_id).is_empty() && self.started.elapsed() > GATHERING {
            return Err(Status::failed_precondition(format!(
                "no agent of cluster {cluster_id} is connected\nhint: segvault status shows who is"
            )));
        }
        let (sender, events) = watch::channel(progress_event(cluster_id, &nothing_yet(), "Gathering"));
        let cancel = Arc::new(OnceLock::new());
        {
            let mut clusters = self.lock();
            let cluster = clusters.entry(cluster_id.to_owned()).or_default();
            if cluster.running.is_some() {
                return Err(Status::already_exists(format!(
                    "a restore point of cluster {cluster_id} is being taken\nhint: segvault status shows how far it is; \
                     segvault snapshot cancel ends it"
                )));
            }
            refuse_while_restoring(cluster)?;
            cluster.running = Some(Running { cancel: cancel.clone(), events: events.clone() });
        }
        self.changed.send_replace(());
        let (runs, cluster_id) = (self.clone(), cluster_id.to_owned());
        let thread = thread::Builder::new().name("point".to_owned());
        let spawned = thread.spawn(move || runs.run(&cluster_id, closed_only, &sender, &cancel));
        spawned.expect("the system lets us start a thread");
        Ok(events)
    }

    fn run(
        &self,
        cluster_id: &str,
        closed_only: bool,
        events: &watch::Sender<rpc::PointEvent>,
        cancel: &OnceLock<String>,
    ) {
        let began = Instant::now();
        let mut phases = PhaseClock::new(began);
        let cluster_name = self.histories.learn_name(cluster_id);
        let number = self.next_number();
        let outcome = self.take(cluster_id, number, closed_only, events, cancel, &mut phases);
        self.fleet.end_run(cluster_id, number);
        self.metrics.show_phases(&cluster_name, phases.finish(Instant::now()));
        match &outcome {
            Ok(committed) => {
                self.histories.add(&committed.manifest);
                self.metrics.count_committed(&cluster_name, committed, began.elapsed());
            }
            Err(_) => self.metrics.count_given_up(&cluster_name),
        }
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (last, event) = conclude(cluster_id, &outcome, took_ms);
        if let Err(error) = &outcome {
            tracing::warn!(cluster = cluster_id, error = error as &dyn std::error::Error, "no restore point");
        }
        {
            let mut clusters = self.lock();
            let cluster = clusters.entry(cluster_id.to_owned()).or_default();
            cluster.running = None;
            cluster.last = Some(last);
        }
        events.send_replace(event);
        self.changed.send_replace(());
    }

    fn take(
        &self,
        cluster_id: &str,
        run: u64,
        closed_only: bool,
        events: &watch::Sender<rpc::PointEvent>,
        cancel: &OnceLock<String>,
        phases: &mut PhaseClock,
    ) -> Result<Committed, RunError> {
        self.gather(cluster_id, cancel)?;
        let (reports, incoming) = mpsc::channel();
        let links = self.fleet.begin_run(cluster_id, run, &reports, |hello| !hello.vacant);
        drop(reports);
        if links.is_empty() {
            return Err(RunError::Nobody);
        }
        let request =
            Request { cluster_name: None, closed_only, taken_by: &self.name, barrier_deadline: self.barrier_deadline };
        phases.enter(Phase::Intent, Instant::now());
        let mut observe = |progress: &Progress| {
            phases.enter(progress.phase, Instant::now());
            let event = progress_event(cluster_id, progress, &format!("{:?}", progress.phase));
            let is_new = events.send_if_modified(|current| std::mem::replace(current, event.clone()) != event);
            if is_new {
                self.changed.send_replace(());
            }
        };
        Ok(drive::take_point(&self.vault, links, &incoming, &request, cancel, &mut observe)?)
    }

    /// After a restart agents come back one after the other: the nodes of the last point are waited for, a while.
    fn gather(&self, cluster_id: &str, cancel: &OnceLock<String>) -> Result<(), RunError> {
        if self.started.elapsed() > GATHERING {
            return Ok(());
        }
        let last = self.vault.wait(self.histories.refresh(cluster_id))?.last;
        let expected = last.map(|last| last.nodes).unwrap_or_default();
        let (mut arrivals, mut cancels) = (self.fleet.watch(), self.watch());
        let is_complete = || {
            let connected = self.fleet.connected(cluster_id);
            !connected.is_empty() && expected.iter().all(|node_id| connected.contains(node_id))
        };
        let gathered = async {
            while !is_complete() && cancel.get().is_none() {
                tokio::select! { _ = arrivals.changed() => {}, _ = cancels.changed() => {} }
            }
        };
        // Whoever has not come by then is done without.
        let left = GATHERING.saturating_sub(self.started.elapsed());
        let _ = self.vault.wait(async { tokio::time::timeout(left, gathered).await });
        Ok(())
    }

    /// Ends the point under way; how it ends comes through the receiver.
    pub fn cancel(&self, cluster_id: &str, reason: &str) -> Result<watch::Receiver<rpc::PointEvent>, Status> {
        let clusters = self.lock();
        let running = clusters.get(cluster_id).and_then(|cluster| cluster.running.as_ref());
        let running = running.ok_or_else(|| {
            Status::failed_precondition(format!("no restore point of cluster {cluster_id} is being taken"))
        })?;
        running.cancel.get_or_init(|| reason.to_owned());
        self.changed.send_replace(());
        Ok(running.events.clone())
    }

    /// Ends all that is under way, and waits until it has ended.
    pub async fn stop(&self, reason: &str) {
        let clusters: Vec<String> = self.lock().keys().cloned().collect();
        let running: Vec<_> = clusters.iter().filter_map(|id| self.cancel(id, reason).ok()).collect();
        let restores: Vec<_> = clusters.iter().filter_map(|id| self.cancel_restore(id).ok()).collect();
        for mut events in running {
            let _ = events.wait_for(is_end).await;
        }
        for mut status in restores {
            let _ = status.wait_for(is_over).await;
        }
    }

    /// The restore under way, or the last one.
    pub fn restore_status(&self, cluster_id: &str) -> Option<rpc::RestoreStatus> {
        self.lock().get(cluster_id)?.restore.as_ref().map(FleetRestore::status)
    }

    /// The point under way, and what became of the last one.
    pub fn status(&self, cluster_id: &str) -> (Option<rpc::PointProgress>, Option<rpc::LastPoint>) {
        let clusters = self.lock();
        let Some(cluster) = clusters.get(cluster_id) else { return (None, None) };
        let running = cluster.running.as_ref().and_then(|running| match running.events.borrow().event.clone() {
            Some(rpc::point_event::Event::Progress(progress)) => Some(progress),
            _ => None,
        });
        (running, cluster.last.clone())
    }
}

/// Refuses whatever a restore would be disturbed by.
pub(super) fn refuse_while_restoring(cluster: &Cluster) -> Result<(), Status> {
    match cluster.restore.as_ref().filter(|restore| restore.is_under_way()).map(FleetRestore::status) {
        None => Ok(()),
        Some(status) => Err(Status::already_exists(format!(
            "cluster {} is being restored by plan {}\n\
             hint: segvault status shows how far it is; segvault restore cancel ends it",
            status.cluster_id, status.plan
        ))),
    }
}

/// Why there is no point.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("no agent of the cluster is connected")]
    Nobody,
    #[error(transparent)]
    Drive(#[from] DriveError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// Whether nothing comes after this event.
pub fn is_end(event: &rpc::PointEvent) -> bool {
    !matches!(event.event, Some(rpc::point_event::Event::Progress(_)))
}

fn nothing_yet() -> Progress {
    Progress {
        number: 0,
        began_ms: unix_ms(),
        phase: Phase::Intent,
        failed_attempts: 0,
        nodes: Vec::new(),
        waiting: Vec::new(),
        stored: 0,
        to_store: 0,
        bytes: 0,
    }
}

fn progress_event(cluster_id: &str, progress: &Progress, phase: &str) -> rpc::PointEvent {
    let progress = rpc::PointProgress {
        cluster_id: cluster_id.to_owned(),
        number: progress.number,
        phase: phase.to_owned(),
        nodes: progress.nodes.clone(),
        waiting: progress.waiting.clone(),
        stored: progress.stored as u64,
        to_store: progress.to_store as u64,
        bytes: progress.bytes,
        began_ms: progress.began_ms,
        failed_attempts: progress.failed_attempts,
    };
    rpc::PointEvent { event: Some(rpc::point_event::Event::Progress(progress)) }
}

/// How a run ended, for whoever asks later and for whoever waits.
fn conclude(
    cluster_id: &str,
    outcome: &Result<Committed, RunError>,
    took_ms: u64,
) -> (rpc::LastPoint, rpc::PointEvent) {
    let cluster_id = cluster_id.to_owned();
    let last = rpc::LastPoint { ended_ms: unix_ms(), took_ms, ..rpc::LastPoint::default() };
    match outcome {
        Ok(committed) => {
            let number = committed.id.number;
            let (degraded, level) = (committed.manifest.degraded, committed.manifest.level);
            let end = rpc::point_event::Event::Committed(summary(committed));
            (rpc::LastPoint { number, committed: true, degraded, level, ..last }, rpc::PointEvent { event: Some(end) })
        }
        Err(error) => {
            let number = match error {
                RunError::Drive(DriveError::Abandoned { id, .. }) => id.number,
                _ => 0,
            };
            let reason = match error {
                RunError::Drive(DriveError::Abandoned { reason, .. }) => reason.clone(),
                error => explain(error),
            };
            let end = rpc::PointAbandoned { cluster_id, number, reason: reason.clone() };
            let event = rpc::PointEvent { event: Some(rpc::point_event::Event::Abandoned(end)) };
            (rpc::LastPoint { number, reason, ..last }, event)
        }
    }
}

fn summary(committed: &Committed) -> rpc::PointCommitted {
    let Committed { id, manifest, totals } = committed;
    let uncovered = manifest.partitions.iter().filter(|entry| !entry.uncovered.is_empty());
    let uncovered = uncovered.map(|entry| format!("{}-{}: {}", entry.topic, entry.partition, entry.uncovered));
    rpc::PointCommitted {
        cluster_id: id.cluster_id.clone(),
        number: id.number,
        level: manifest.level,
        degraded: manifest.degraded,
        began_ms: manifest.began_ms,
        finished_ms: manifest.finished_ms,
        barrier_us: manifest.barrier_us,
        nodes: manifest.nodes.iter().map(|node| node.node_id).collect(),
        topics: totals.topics,
        partitions: totals.partitions,
        bytes: totals.bytes,
        read_bytes: totals.read_bytes,
        stored_bytes: totals.stored_bytes,
        findings: manifest.findings.clone(),
        uncovered: uncovered.take(UNCOVERED_MAX).collect(),
    }
}
