//! The task that begins points when a cluster's [`Schedule`] says so.
//!
//! What to do is decided by the schedule; here is only asked and done. A point that cannot be begun, or that is given up
//! later, is logged and counted, and the next one comes at the next scheduled time: whatever is wrong is seldom better a
//! second later, and a fleet in trouble has other things to do than barriers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use segvault_transport::explain;
use tokio::sync::watch;
use tonic::{Code, Status};
use tracing::Level;

use super::fleet::Fleet;
use super::history::Histories;
use super::metrics::Metrics;
use super::runs::Runs;
use crate::drive::unix_ms;
use crate::schedule::{Decision, Schedule, Situation, Slot};

/// The clock is looked at this often: it may be put right, or the host have slept.
const NAP_MAX: Duration = Duration::from_secs(20);

/// What could not be asked is asked again after this time.
const RETRY_MS: i64 = 30_000;

/// The scheduled points of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterSchedule {
    /// Its id, or its name in the vault.
    pub cluster: String,
    /// When.
    pub schedule: Schedule,
    /// Cut data at the end of closed segments.
    pub closed_only: bool,
}

/// When the next point of each cluster begins.
#[derive(Debug, Default)]
pub(super) struct Timetable(Mutex<BTreeMap<String, i64>>);

impl Timetable {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.0.lock().expect("no thread panics while it holds the timetable")
    }

    /// When the next scheduled point of a cluster begins, milliseconds since 1970.
    pub fn next_ms(&self, cluster_id: &str) -> Option<i64> {
        self.lock().get(cluster_id).copied()
    }

    /// Ids of the clusters that have one.
    pub fn clusters(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Notes when the next one begins, if there is one.
    pub fn set(&self, cluster_id: &str, next_ms: Option<i64>) {
        match next_ms {
            Some(next_ms) => _ = self.lock().insert(cluster_id.to_owned(), next_ms),
            None => _ = self.lock().remove(cluster_id),
        }
    }
}

/// What a scheduler asks for. Errors are for people.
pub(super) trait Points: Send + Sync {
    /// The id of a cluster that is named by id or name; nothing while nobody knows it.
    fn find(&self, cluster: &str) -> impl Future<Output = Result<Option<String>, String>> + Send;
    /// When the newest committed point began.
    fn last_committed_ms(&self, cluster_id: &str) -> impl Future<Output = Result<Option<i64>, String>> + Send;
    /// Whether a point is being taken.
    fn is_running(&self, cluster_id: &str) -> bool;
    /// Begins a point.
    fn begin(&self, cluster_id: &str, closed_only: bool) -> Result<(), Status>;
    /// A point was due and could not be begun.
    fn note_failed(&self, cluster_id: &str);
    /// A point was due while another one was being taken.
    fn note_skipped(&self, cluster_id: &str);
}

/// The points of a service.
pub(super) struct ServicePoints {
    pub fleet: Arc<Fleet>,
    pub runs: Arc<Runs>,
    pub histories: Arc<Histories>,
    pub metrics: Arc<Metrics>,
}

impl Points for ServicePoints {
    async fn find(&self, cluster: &str) -> Result<Option<String>, String> {
        if self.fleet.clusters().iter().any(|id| id == cluster) {
            return Ok(Some(cluster.to_owned()));
        }
        let known = self.runs.vault().clusters().await.map_err(|error| explain(&error))?;
        Ok(known.into_iter().find(|known| known.id == cluster || known.name == cluster).map(|known| known.id))
    }

    async fn last_committed_ms(&self, cluster_id: &str) -> Result<Option<i64>, String> {
        let history = self.histories.refresh(cluster_id).await.map_err(|error| explain(&error))?;
        Ok(history.last.map(|last| last.began_ms))
    }

    fn is_running(&self, cluster_id: &str) -> bool {
        self.runs.status(cluster_id).0.is_some()
    }

    fn begin(&self, cluster_id: &str, closed_only: bool) -> Result<(), Status> {
        self.runs.begin(cluster_id, closed_only).map(drop)
    }

    fn note_failed(&self, cluster_id: &str) {
        self.metrics.count_given_up(&self.histories.name(cluster_id));
    }

    fn note_skipped(&self, cluster_id: &str) {
        self.metrics.count_skipped(&self.histories.name(cluster_id));
    }
}

/// Begins points when they are due.
pub(super) struct Scheduler<P> {
    points: P,
    entries: Vec<Entry>,
    timetable: Arc<Timetable>,
}

/// The schedule of a cluster, and how far it has come.
struct Entry {
    plan: ClusterSchedule,
    since_ms: i64,
    /// The cluster's id, once somebody knows it.
    cluster_id: Option<String>,
    /// What the vault has said of the newest committed point.
    last_committed_ms: Option<Option<i64>>,
    dealt_with_ms: Option<i64>,
    /// What was decided at last, and when.
    decided: Option<(Decision, i64)>,
    /// Nobody is asked before.
    retry_ms: i64,
    /// What was last said about why nothing can be decided.
    complaint: String,
}

impl Entry {
    fn new(plan: ClusterSchedule, since_ms: i64) -> Self {
        Self {
            plan,
            since_ms,
            cluster_id: None,
            last_committed_ms: None,
            dealt_with_ms: None,
            decided: None,
            retry_ms: 0,
            complaint: String::new(),
        }
    }

    /// Whether what was decided at last still stands: nothing changes before a slot is due, or while one waits.
    fn stands(&self, now_ms: i64, is_running: bool) -> bool {
        match self.decided {
            Some((_, at_ms)) if now_ms < at_ms => false, // The clock was put back.
            Some((Decision::Wait(slot), _)) => now_ms < slot.due_ms,
            Some((Decision::Queue(_), _)) => is_running,
            Some((Decision::Never, _)) => true,
            _ => false,
        }
    }

    fn decide(&mut self, cluster_id: &str, is_running: bool, now_ms: i64) -> Decision {
        let situation = Situation {
            since_ms: self.since_ms,
            last_committed_ms: self.last_committed_ms.flatten(),
            dealt_with_ms: self.dealt_with_ms,
            is_running,
            now_ms,
        };
        let decision = self.plan.schedule.decide(cluster_id, &situation);
        self.decided = Some((decision, now_ms));
        decision
    }

    fn complain(&mut self, level: Level, why: &str, now_ms: i64) {
        if self.complaint != why {
            match level {
                Level::WARN => tracing::warn!(cluster = self.plan.cluster, why, "its schedule waits"),
                _ => tracing::info!(cluster = self.plan.cluster, why, "its schedule waits"),
            }
            self.complaint = why.to_owned();
        }
        self.retry_ms = now_ms + RETRY_MS;
    }
}

impl<P: Points> Scheduler<P> {
    /// A scheduler that begins to look after `plans` now.
    pub fn new(points: P, plans: Vec<ClusterSchedule>, timetable: Arc<Timetable>, now_ms: i64) -> Self {
        let entries = plans.into_iter().map(|plan| Entry::new(plan, now_ms)).collect();
        Self { points, entries, timetable }
    }

    /// Begins points until dropped; `changed` says when a point has gone on.
    pub async fn run(mut self, mut changed: watch::Receiver<()>) {
        loop {
            let now_ms = unix_ms();
            let wake_ms = self.step(now_ms).await;
            let nap = Duration::from_millis(u64::try_from(wake_ms - now_ms).unwrap_or(0)).min(NAP_MAX);
            tokio::select! {
                () = tokio::time::sleep(nap) => {}
                // Gone with the service.
                Ok(()) = changed.changed() => {}
            }
        }
    }

    /// Does what is to be done now; returns when to ask again if nothing happens before.
    async fn step(&mut self, now_ms: i64) -> i64 {
        let mut wake_ms = i64::MAX;
        for entry in &mut self.entries {
            let next_ms = step_entry(&self.points, entry, now_ms).await;
            if let Some(cluster_id) = &entry.cluster_id {
                self.timetable.set(cluster_id, next_slot(entry).map(|slot| slot.due_ms));
            }
            wake_ms = wake_ms.min(next_ms);
        }
        wake_ms
    }
}

/// What comes next as far as it is decided.
fn next_slot(entry: &Entry) -> Option<Slot> {
    match entry.decided {
        Some((Decision::Wait(slot) | Decision::Queue(slot), _)) => Some(slot),
        _ => None,
    }
}

async fn step_entry<P: Points>(points: &P, entry: &mut Entry, now_ms: i64) -> i64 {
    if now_ms < entry.retry_ms && entry.retry_ms - now_ms <= RETRY_MS {
        return entry.retry_ms;
    }
    let Some(cluster_id) = find_cluster(points, entry, now_ms).await else { return entry.retry_ms };
    if entry.last_committed_ms.is_none() && !ask_vault(points, entry, &cluster_id, now_ms).await {
        return entry.retry_ms;
    }
    let mut is_fresh = false;
    loop {
        let is_running = points.is_running(&cluster_id);
        if !entry.stands(now_ms, is_running) {
            entry.decide(&cluster_id, is_running, now_ms);
        }
        match entry.decided.map(|(decision, _)| decision) {
            // Somebody else may have taken a point meanwhile. If the vault cannot be asked the point itself will tell.
            Some(Decision::Run(_)) if !is_fresh => {
                is_fresh = true;
                ask_vault(points, entry, &cluster_id, now_ms).await;
                entry.retry_ms = 0;
            }
            Some(Decision::Run(slot)) => begin(points, entry, &cluster_id, slot),
            Some(Decision::Skip(slot)) => {
                tracing::warn!(cluster = cluster_id, "a scheduled point is left out: another one is being taken");
                points.note_skipped(&cluster_id);
                entry.dealt_with_ms = Some(slot.at_ms);
            }
            Some(Decision::Wait(slot)) => return slot.due_ms,
            Some(Decision::Queue(_) | Decision::Never) | None => return i64::MAX,
        }
    }
}

async fn find_cluster<P: Points>(points: &P, entry: &mut Entry, now_ms: i64) -> Option<String> {
    if entry.cluster_id.is_none() {
        match points.find(&entry.plan.cluster).await {
            Ok(Some(cluster_id)) => {
                let (cluster, cron) = (&entry.plan.cluster, &entry.plan.schedule.cron);
                tracing::info!(cluster, cluster_id, %cron, "schedule");
                entry.cluster_id = Some(cluster_id);
            }
            // After a start that is as it should be: agents are on their way.
            Ok(None) => entry.complain(Level::INFO, "no agent of it has come, and the vault does not know it", now_ms),
            Err(why) => entry.complain(Level::WARN, &why, now_ms),
        }
    }
    entry.cluster_id.clone()
}

/// Asks the vault for the newest committed point; false if it does not answer.
async fn ask_vault<P: Points>(points: &P, entry: &mut Entry, cluster_id: &str, now_ms: i64) -> bool {
    match points.last_committed_ms(cluster_id).await {
        Ok(last_ms) => {
            entry.last_committed_ms = Some(last_ms);
            entry.complaint.clear();
            true
        }
        Err(why) => {
            entry.complain(Level::WARN, &why, now_ms);
            false
        }
    }
}

fn begin<P: Points>(points: &P, entry: &mut Entry, cluster_id: &str, slot: Slot) {
    match points.begin(cluster_id, entry.plan.closed_only) {
        Ok(()) => tracing::info!(cluster = cluster_id, "a scheduled point begins"),
        // An operator was faster by a moment: what becomes of ours is for the schedule to say.
        Err(status) if status.code() == Code::AlreadyExists && points.is_running(cluster_id) => return,
        Err(status) => {
            tracing::warn!(cluster = cluster_id, reason = status.message(), "a scheduled point cannot begin");
            points.note_failed(cluster_id);
        }
    }
    entry.dealt_with_ms = Some(slot.at_ms);
}

#[cfg(test)]
mod tests;
