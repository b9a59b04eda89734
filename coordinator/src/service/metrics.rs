//! What a coordinator shows to a monitoring system; `docs/metrics.md` names everything.
//!
//! What happens is counted when it happens. What is so is looked up when somebody asks: who is connected from the fleet,
//! what comes next from the timetable, and the newest points from the vault's histories. So a coordinator that has just
//! started shows the same newest points as the one before it, and a value that it does not know yet is not shown.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use segvault_metrics::{CertificateEnd, Exposed, Health, encode, register};
use segvault_transport::{Security, explain};
use tokio::sync::watch;

use super::fleet::{Fleet, NodeKey, SeatView};
use super::history::{Histories, LastPoint};
use super::scheduler::Timetable;
use crate::drive::Committed;
use crate::point::Phase;

/// The vault is asked this often for points that others have taken, and this often again if it does not answer.
const LOOK_INTERVAL: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A node that is not heard any more is shown as not connected for so long: until somebody has seen to it, or it is
/// certain that it is gone for good. Nodes of the newest point are shown however long it takes.
const NODE_MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long points take: from a small fleet whose bytes are all in the vault to a day of uploading.
const DURATIONS_S: [f64; 14] =
    [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10_800.0, 28_800.0, 86_400.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Cluster {
    cluster: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClusterOutcome {
    cluster: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ClusterPhase {
    cluster: String,
    phase: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Node {
    cluster: String,
    node: i32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LogDir {
    cluster: String,
    node: i32,
    dir: String,
}

type Numbers<L> = Family<L, Gauge>;
type Fractions<L> = Family<L, Gauge<f64, AtomicU64>>;

/// The outcomes of a point.
const COMPLETE: &str = "complete";
const DEGRADED: &str = "degraded";
const GIVEN_UP: &str = "given_up";

/// All that is counted, and the registry of everything that is shown.
pub(super) struct Metrics {
    registry: Registry,
    points: Family<ClusterOutcome, Counter>,
    durations: Family<Cluster, Histogram, fn() -> Histogram>,
    read_bytes: Family<Cluster, Counter>,
    stored_bytes: Family<Cluster, Counter>,
    skipped: Family<Cluster, Counter>,
    phases: Fractions<ClusterPhase>,
    /// The phases of the last point, by cluster.
    last_phases: Mutex<BTreeMap<String, Vec<String>>>,
    state: State,
}

/// What is so, as gauges that are set anew for every page.
struct State {
    last_complete: Fractions<Cluster>,
    last_committed: Fractions<Cluster>,
    last_level: Numbers<Cluster>,
    last_degraded: Numbers<Cluster>,
    barrier: Fractions<Cluster>,
    uncovered: Numbers<Cluster>,
    connected: Numbers<Node>,
    silent: Fractions<Node>,
    free: Numbers<LogDir>,
    size: Numbers<LogDir>,
    next: Fractions<Cluster>,
    certificate: CertificateEnd,
}

impl State {
    fn register(registry: &mut Registry) -> Self {
        let to = registry;
        Self {
            last_complete: register(
                to,
                "segvault_point_last_complete_timestamp_seconds",
                "When the newest complete point began: what was acknowledged before is in it",
            ),
            last_committed: register(
                to,
                "segvault_point_last_committed_timestamp_seconds",
                "When the newest committed point began, complete or degraded",
            ),
            last_level: register(to, "segvault_point_last_level", "Level of the newest committed point, 0 to 3"),
            last_degraded: register(to, "segvault_point_last_degraded", "1 if the newest committed point is degraded"),
            barrier: register(
                to,
                "segvault_point_barrier_seconds",
                "How long the barrier of the newest committed point was, from phase A to the end of phase C",
            ),
            uncovered: register(
                to,
                "segvault_point_uncovered_partitions",
                "Partitions that the newest committed point does not cover",
            ),
            connected: register(to, "segvault_agent_connected", "1 if the node's agent is connected"),
            silent: register(to, "segvault_agent_silent_seconds", "Since something was heard of the node's agent"),
            free: register(to, "segvault_agent_log_dir_free_bytes", "Free on the log dir's file system"),
            size: register(to, "segvault_agent_log_dir_size_bytes", "Size of the log dir's file system"),
            next: register(
                to,
                "segvault_schedule_next_timestamp_seconds",
                "When the next scheduled point begins; in the past while it waits for the end of another one",
            ),
            certificate: CertificateEnd::register(to),
        }
    }

    fn clear(&self) {
        let clusters = [&self.last_complete, &self.last_committed, &self.barrier, &self.next];
        clusters.into_iter().for_each(Family::clear);
        [&self.last_level, &self.last_degraded, &self.uncovered].into_iter().for_each(Family::clear);
        [&self.free, &self.size].into_iter().for_each(Family::clear);
        self.connected.clear();
        self.silent.clear();
    }

    fn set_last(&self, cluster: &Cluster, last: &LastPoint) {
        self.last_level.get_or_create(cluster).set(last.level.into());
        self.last_degraded.get_or_create(cluster).set(last.degraded.into());
        self.barrier.get_or_create(cluster).set(last.barrier_us as f64 / 1e6);
        self.uncovered.get_or_create(cluster).set(i64::try_from(last.uncovered).unwrap_or(i64::MAX));
    }

    fn set_log_dirs(&self, node: &Node, seat: &SeatView) {
        // A file system that cannot be asked has no size.
        for (dir, space) in seat.log_dirs.iter().filter(|(_, space)| space.total_bytes > 0) {
            let labels = LogDir { cluster: node.cluster.clone(), node: node.node, dir: dir.clone() };
            self.free.get_or_create(&labels).set(i64::try_from(space.free_bytes).unwrap_or(i64::MAX));
            self.size.get_or_create(&labels).set(i64::try_from(space.total_bytes).unwrap_or(i64::MAX));
        }
    }
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let to = &mut registry;
        to.register(
            "segvault_build",
            "The coordinator's version",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        let state = State::register(to);
        let points = register(to, "segvault_point", "Points that have ended, since the start of the coordinator");
        let durations = Family::new_with_constructor((|| Histogram::new(DURATIONS_S)) as fn() -> Histogram);
        to.register("segvault_point_duration_seconds", "How long committed points took", durations.clone());
        Self {
            points,
            durations,
            read_bytes: register(to, "segvault_point_read_bytes", "Read from log dirs for committed points"),
            stored_bytes: register(to, "segvault_point_stored_bytes", "Added to the vault by committed points"),
            skipped: register(
                to,
                "segvault_schedule_skipped",
                "Scheduled points that were left out because another one was being taken",
            ),
            phases: register(to, "segvault_point_phase_seconds", "How long the phases of the last point took"),
            last_phases: Mutex::default(),
            state,
            registry,
        }
    }

    /// Counts a committed point.
    pub fn count_committed(&self, cluster: &str, committed: &Committed, took: Duration) {
        self.count(cluster, if committed.manifest.degraded { DEGRADED } else { COMPLETE });
        let cluster = Cluster { cluster: cluster.to_owned() };
        self.durations.get_or_create(&cluster).observe(took.as_secs_f64());
        self.read_bytes.get_or_create(&cluster).inc_by(committed.totals.read_bytes);
        self.stored_bytes.get_or_create(&cluster).inc_by(committed.totals.stored_bytes);
    }

    /// Counts a point that was given up, or could not even be begun.
    pub fn count_given_up(&self, cluster: &str) {
        self.count(cluster, GIVEN_UP);
    }

    /// Counts a scheduled point that was left out.
    pub fn count_skipped(&self, cluster: &str) {
        self.skipped.get_or_create(&Cluster { cluster: cluster.to_owned() }).inc();
    }

    fn count(&self, cluster: &str, outcome: &'static str) {
        self.points.get_or_create(&ClusterOutcome { cluster: cluster.to_owned(), outcome }).inc();
    }

    /// Shows how long the phases of a point took that has ended, instead of those of the one before.
    pub fn show_phases(&self, cluster: &str, phases: BTreeMap<String, Duration>) {
        let mut last = self.last_phases.lock().expect("no thread panics while it holds the phases");
        let labels = |phase: &str| ClusterPhase { cluster: cluster.to_owned(), phase: phase.to_owned() };
        for phase in last.remove(cluster).unwrap_or_default() {
            self.phases.remove(&labels(&phase));
        }
        for (phase, took) in &phases {
            self.phases.get_or_create(&labels(phase)).set(took.as_secs_f64());
        }
        last.insert(cluster.to_owned(), phases.into_keys().collect());
    }

    /// Counters begin at 0 before anything happens, so that the first time is a change.
    fn begin_counting(&self, cluster: &str) {
        for outcome in [COMPLETE, DEGRADED, GIVEN_UP] {
            drop(self.points.get_or_create(&ClusterOutcome { cluster: cluster.to_owned(), outcome }));
        }
        let cluster = Cluster { cluster: cluster.to_owned() };
        for bytes in [&self.read_bytes, &self.stored_bytes, &self.skipped] {
            drop(bytes.get_or_create(&cluster));
        }
        drop(self.durations.get_or_create(&cluster));
    }
}

/// Measures the phases of a point as they go by.
pub(super) struct PhaseClock {
    phase: String,
    since: Instant,
    took: BTreeMap<String, Duration>,
}

impl PhaseClock {
    /// Before the first phase the coordinator waits for agents.
    pub fn new(now: Instant) -> Self {
        Self { phase: "gathering".to_owned(), since: now, took: BTreeMap::new() }
    }

    /// The point is in this phase now. One that comes again, because the barrier is raised anew, is added to.
    pub fn enter(&mut self, phase: Phase, now: Instant) {
        let phase = label(phase);
        if phase != self.phase {
            self.close(now);
            self.phase = phase;
        }
    }

    /// The point has ended.
    pub fn finish(mut self, now: Instant) -> BTreeMap<String, Duration> {
        self.close(now);
        self.took
    }

    fn close(&mut self, now: Instant) {
        *self.took.entry(std::mem::take(&mut self.phase)).or_default() += now.saturating_duration_since(self.since);
        self.since = now;
    }
}

/// `PinningData` is `pinning_data`.
fn label(phase: Phase) -> String {
    let mut label = String::new();
    for character in format!("{phase:?}").chars() {
        if character.is_ascii_uppercase() && !label.is_empty() {
            label.push('_');
        }
        label.push(character.to_ascii_lowercase());
    }
    label
}

/// A coordinator, for whoever asks over HTTP.
pub(super) struct Showcase {
    metrics: Arc<Metrics>,
    fleet: Arc<Fleet>,
    histories: Arc<Histories>,
    timetable: Arc<Timetable>,
    security: Security,
    started: Instant,
    /// When agents were heard, also those that are not there any more.
    seen: Mutex<BTreeMap<NodeKey, Instant>>,
    is_stopping: AtomicBool,
}

impl Exposed for Showcase {
    fn metrics(&self) -> String {
        self.refresh(Instant::now());
        encode(&self.metrics.registry)
    }

    fn health(&self) -> Health {
        let is_serving = !self.is_stopping.load(Ordering::Relaxed);
        let seats = self.fleet.seats();
        let body = serde_json::json!({
            "status": if is_serving { "serving" } else { "stopping" },
            "role": "coordinator",
            "version": env!("CARGO_PKG_VERSION"),
            "agents_connected": seats.iter().filter(|seat| seat.is_connected).count(),
        });
        Health { is_serving, body }
    }
}

impl Showcase {
    /// A coordinator that has just started.
    pub fn new(
        metrics: Arc<Metrics>,
        fleet: Arc<Fleet>,
        histories: Arc<Histories>,
        timetable: Arc<Timetable>,
        security: Security,
    ) -> Self {
        let (started, seen, is_stopping) = (Instant::now(), Mutex::default(), AtomicBool::new(false));
        Self { metrics, fleet, histories, timetable, security, started, seen, is_stopping }
    }

    /// From now on it says that it stops.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    fn refresh(&self, now: Instant) {
        let state = &self.metrics.state;
        state.clear();
        let mut ids = [self.histories.clusters(), self.fleet.clusters(), self.timetable.clusters()].concat();
        ids.sort();
        ids.dedup();
        for id in &ids {
            self.refresh_cluster(id);
        }
        self.refresh_nodes(&ids, now);
        let not_after = self.security.not_after().map(|end| end.as_second());
        state.certificate.set(not_after);
    }

    fn refresh_cluster(&self, id: &str) {
        let (state, cluster) = (&self.metrics.state, Cluster { cluster: self.histories.name(id) });
        self.metrics.begin_counting(&cluster.cluster);
        if let Some(next_ms) = self.timetable.next_ms(id) {
            state.next.get_or_create(&cluster).set(next_ms as f64 / 1000.0);
        }
        // Nothing is known: nothing is said. It is known that there is no point: it is as old as can be.
        let Some(history) = self.histories.of(id) else { return };
        state.last_complete.get_or_create(&cluster).set(history.complete_ms.unwrap_or(0) as f64 / 1000.0);
        let committed_ms = history.last.as_ref().map_or(0, |last| last.began_ms);
        state.last_committed.get_or_create(&cluster).set(committed_ms as f64 / 1000.0);
        if let Some(last) = &history.last {
            state.set_last(&cluster, last);
        }
    }

    fn refresh_nodes(&self, clusters: &[String], now: Instant) {
        let mut seen = self.seen.lock().expect("no thread panics while it holds the nodes");
        let seats: BTreeMap<NodeKey, SeatView> =
            self.fleet.seats().into_iter().map(|seat| (seat.key.clone(), seat)).collect();
        seen.extend(seats.iter().map(|(key, seat)| (key.clone(), seat.heard)));
        seen.retain(|_, heard| now.saturating_duration_since(*heard) < NODE_MEMORY);
        let mut nodes: BTreeMap<NodeKey, Option<Instant>> =
            seen.iter().map(|(key, heard)| (key.clone(), Some(*heard))).collect();
        for id in clusters {
            let last = self.histories.of(id).and_then(|history| history.last);
            for node_id in last.map(|last| last.nodes).unwrap_or_default() {
                nodes.entry((id.clone(), node_id)).or_insert(None);
            }
        }
        let state = &self.metrics.state;
        for (key, heard) in nodes {
            let (seat, node) = (seats.get(&key), Node { cluster: self.histories.name(&key.0), node: key.1 });
            state.connected.get_or_create(&node).set(seat.is_some_and(|seat| seat.is_connected).into());
            let silent = now.saturating_duration_since(heard.unwrap_or(self.started));
            state.silent.get_or_create(&node).set(silent.as_secs_f64());
            if let Some(seat) = seat {
                state.set_log_dirs(&node, seat);
            }
        }
    }

    /// Asks the vault again and again, so that the histories are those of the vault, whoever takes points.
    pub async fn keep_histories(self: Arc<Self>) {
        let (mut changes, mut complaint) = (self.fleet.watch(), String::new());
        loop {
            let pause = match self.histories.refresh_all(self.fleet.clusters()).await {
                Ok(()) => {
                    complaint.clear();
                    LOOK_INTERVAL
                }
                Err(error) => {
                    let why = explain(&error);
                    if complaint != why {
                        tracing::warn!(why, "the newest points are not known");
                        complaint = why;
                    }
                    LOOK_AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.new_cluster(&mut changes), if complaint.is_empty() => {}
            }
        }
    }

    /// Done when an agent comes of a cluster after which nobody has asked.
    async fn new_cluster(&self, changes: &mut watch::Receiver<()>) {
        let is_new = |id: &String| self.histories.of(id).is_none();
        while !self.fleet.clusters().iter().any(is_new) {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
