//! Performs what the state machine asks for: sends commands to agents, writes to the vault, feeds back what happens.
//!
//! Agents are reached through links. Whether one lies in this process or a network lies between makes no difference
//! here.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use segvault_proto::{Command, NodeFacts, Report};
use segvault_vault::{Vault, VaultError};
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::{Outcome, PointManifest, Totals};

use crate::point::{Action, Event, Now, Options, Phase, Point, Progress};

/// How often a run looks up from waiting: for progress, cancelling and deadlines.
const TICK: Duration = Duration::from_millis(100);
/// An agent that has not answered a command of the barrier by then is given up, unless the caller says otherwise.
/// Pinning thousands of partitions takes a second; uploads have no deadline.
pub const BARRIER_DEADLINE: Duration = Duration::from_secs(120);

/// Sends a command to an agent, if it is still there. Answers come through the shared receiver.
pub type SendCommand = Box<dyn Fn(Command) -> bool + Send>;

/// One agent.
pub struct Link {
    /// Its node.
    pub facts: NodeFacts,
    /// Where its commands go.
    pub send: SendCommand,
}

/// What to take.
pub struct Request<'a> {
    /// What to call the cluster, if the vault does not know it yet.
    pub cluster_name: Option<&'a str>,
    /// Cut data at the end of closed segments.
    pub closed_only: bool,
    /// Host and process, for the intent.
    pub taken_by: &'a str,
    /// An agent that has not answered a command of the barrier by then is given up.
    pub barrier_deadline: Duration,
}

/// A committed point.
#[derive(Debug)]
pub struct Committed {
    /// Its id.
    pub id: PointId,
    /// Its manifest.
    pub manifest: PointManifest,
    /// Its totals.
    pub totals: Totals,
}

/// Why there is no point.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The vault failed. Whether the point is committed nobody could be told, if that was when it was to be decided.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The point was given up, and its outcome says so.
    #[error("restore point {id} was given up: {reason}")]
    Abandoned {
        /// Which.
        id: PointId,
        /// Why.
        reason: String,
    },
}

/// What a run has around it: the vault, the agents, the operator and the time. In earnest each call blocks its thread
/// until it is done ([`Earnest`]); in the simulation virtual time goes by meanwhile, and much else happens.
pub(crate) trait Surroundings {
    /// [`Vault::register_cluster`].
    async fn register_cluster(&self, id: &str, name: &str) -> Result<(), VaultError>;
    /// [`Vault::latest_committed`].
    async fn latest_committed(&self, cluster_id: &str) -> Result<Option<PointId>, VaultError>;
    /// [`Vault::point_manifest`].
    async fn point_manifest(&self, id: &PointId) -> Result<PointManifest, VaultError>;
    /// [`Vault::begin_point`].
    async fn begin_point(&self, cluster_id: &str, base: u64, by: &str, now_ms: i64) -> Result<PointId, VaultError>;
    /// [`Vault::outcome`].
    async fn outcome(&self, id: &PointId) -> Result<Option<Outcome>, VaultError>;
    /// [`Vault::abort_point`].
    async fn abort_point(&self, id: &PointId, reason: &str) -> Result<Outcome, VaultError>;
    /// [`Vault::commit_point`].
    async fn commit_point(&self, manifest: &PointManifest, totals: Totals) -> Result<Outcome, VaultError>;
    /// Sends a command to an agent; false if it is not there any more.
    fn send(&self, node_id: i32, command: Command) -> bool;
    /// The next report of an agent, if one comes within a tick.
    async fn hear(&self) -> Result<(i32, Report), RecvTimeoutError>;
    /// Why the point is not wanted any more, if so.
    fn cancelled(&self) -> Option<String>;
    /// Shows how far the point is.
    fn observe(&mut self, progress: &Progress);
    /// What time it is.
    fn now(&self) -> Now;
}

/// Takes one restore point of the nodes behind `links`: different nodes of one cluster. Must be called from a plain
/// thread, not from asynchronous code.
pub fn take_point(
    vault: &Vault,
    links: Vec<Link>,
    reports: &Receiver<(i32, Report)>,
    request: &Request<'_>,
    cancelled: &OnceLock<String>,
    observe: &mut dyn FnMut(&Progress),
) -> Result<Committed, DriveError> {
    let nodes = links.iter().map(|link| link.facts.clone()).collect();
    let earnest = Earnest { vault, links, reports, cancelled, observe, started: Instant::now() };
    take(earnest, nodes, request).now_or_never().expect("in earnest every call blocks until it is done")
}

/// Takes one restore point of `nodes`.
pub(crate) async fn take(
    mut around: impl Surroundings,
    nodes: Vec<NodeFacts>,
    request: &Request<'_>,
) -> Result<Committed, DriveError> {
    let cluster_id = nodes.first().expect("a point is taken of at least one node").cluster_id.clone();
    assert!(nodes.iter().all(|facts| facts.cluster_id == cluster_id), "a point is taken of one cluster");
    around.register_cluster(&cluster_id, request.cluster_name.unwrap_or(&cluster_id)).await?;
    let base = match around.latest_committed(&cluster_id).await? {
        Some(id) => Some(around.point_manifest(&id).await?),
        None => None,
    };
    let began_ms = around.now().unix_ms;
    let base_number = base.as_ref().map_or(0, |base| base.number);
    let id = around.begin_point(&cluster_id, base_number, request.taken_by, began_ms).await?;
    tracing::info!(point = %id, base = base_number, "intent taken");
    supersede(&around, &id, base_number, request.taken_by).await?;
    let options = Options { id: id.clone(), began_ms, closed_only: request.closed_only, base };
    let run = Run { around: &mut around, point: Point::new(options, nodes), id, request };
    run.finish().await
}

/// Decides the points before this one that nobody has decided: whoever took them is dead, or must not go on beside us.
/// The outcome is the fence: a coordinator that still lives cannot commit its point any more.
async fn supersede(
    around: &impl Surroundings,
    id: &PointId,
    base_number: u64,
    taken_by: &str,
) -> Result<(), VaultError> {
    for number in base_number + 1..id.number {
        let older = PointId { number, ..id.clone() };
        if around.outcome(&older).await?.is_some() {
            continue;
        }
        let reason = format!("undecided when point {} was begun by {taken_by}", id.number);
        match around.abort_point(&older, &reason).await {
            Ok(_) => tracing::warn!(point = %older, reason, "given up"),
            Err(VaultError::AlreadyDecided { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One point under way.
struct Run<'a, S> {
    around: &'a mut S,
    point: Point,
    id: PointId,
    request: &'a Request<'a>,
}

impl<S: Surroundings> Run<'_, S> {
    async fn finish(mut self) -> Result<Committed, DriveError> {
        let mut outcome: Option<Result<Committed, DriveError>> = None;
        let mut events = vec![Event::Begin];
        let mut phase = Phase::Intent;
        // When agents were last asked for something: a phase that is entered again gives them all the time again.
        let mut asked_us = self.around.now().monotonic_us;
        loop {
            while let Some(event) = events.pop() {
                let now = self.around.now();
                for action in self.point.step(event, now) {
                    match action {
                        Action::Send { node_id, command } => {
                            asked_us = now.monotonic_us;
                            events.extend(self.send(node_id, command));
                        }
                        Action::Commit(manifest, totals) => {
                            self.around.observe(&self.point.progress());
                            let committed = self.commit(*manifest, totals).await;
                            events.push(Event::Decided { committed: committed.is_ok() });
                            outcome = Some(committed);
                        }
                        Action::Abandon { reason } => {
                            outcome = Some(Err(self.abandon(reason).await));
                            events.push(Event::Decided { committed: false });
                        }
                        Action::Finish => return outcome.expect("a point is decided before it finishes"),
                    }
                }
            }
            let progress = self.point.progress();
            self.around.observe(&progress);
            if progress.phase != phase {
                tracing::info!(point = %self.id, phase = ?progress.phase, "phase");
                phase = progress.phase;
            }
            if let Some(reason) = self.around.cancelled().filter(|_| progress.phase < Phase::Committing) {
                events.push(Event::Cancel { reason });
                continue;
            }
            match self.around.hear().await {
                Ok((node_id, report)) => events.push(Event::Report { node_id, report }),
                Err(RecvTimeoutError::Timeout) => {
                    let waited = Duration::from_micros(self.around.now().monotonic_us - asked_us);
                    if phase != Phase::Uploading && waited > self.request.barrier_deadline {
                        events.extend(self.lose_waiting("no answer in time"));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => events.extend(self.lose_waiting("the agent is gone")),
            }
        }
    }

    fn send(&self, node_id: i32, command: Command) -> Option<Event> {
        let sent = self.around.send(node_id, command);
        (!sent).then(|| Event::Lost { node_id, reason: "the agent is gone".to_owned() })
    }

    fn lose_waiting(&self, reason: &str) -> Vec<Event> {
        self.point.waiting().map(|node_id| Event::Lost { node_id, reason: reason.to_owned() }).collect()
    }

    async fn commit(&self, manifest: PointManifest, totals: Totals) -> Result<Committed, DriveError> {
        match self.around.commit_point(&manifest, totals).await {
            Ok(_) => {}
            Err(error @ VaultError::AlreadyDecided { .. }) => return Err(error.into()),
            // An answer that was lost may have been a yes; to ask twice is the same as to ask once.
            Err(error) => {
                tracing::warn!(point = %self.id, %error, "commit; once more");
                self.around.commit_point(&manifest, totals).await?;
            }
        }
        tracing::info!(point = %self.id, level = manifest.level, degraded = manifest.degraded, "committed");
        Ok(Committed { id: self.id.clone(), manifest, totals })
    }

    /// The outcome that says why. If even that cannot be written the point stays undecided, which commits nothing.
    async fn abandon(&self, reason: String) -> DriveError {
        if let Err(error) = self.around.abort_point(&self.id, &reason).await {
            tracing::warn!(point = %self.id, %error, "write outcome of the abandoned point");
        }
        DriveError::Abandoned { id: self.id.clone(), reason }
    }
}

/// The real surroundings.
struct Earnest<'a> {
    vault: &'a Vault,
    links: Vec<Link>,
    reports: &'a Receiver<(i32, Report)>,
    cancelled: &'a OnceLock<String>,
    observe: &'a mut dyn FnMut(&Progress),
    started: Instant,
}

impl Surroundings for Earnest<'_> {
    async fn register_cluster(&self, id: &str, name: &str) -> Result<(), VaultError> {
        self.vault.wait(self.vault.register_cluster(id, name)).map(drop)
    }

    async fn latest_committed(&self, cluster_id: &str) -> Result<Option<PointId>, VaultError> {
        self.vault.wait(self.vault.latest_committed(cluster_id))
    }

    async fn point_manifest(&self, id: &PointId) -> Result<PointManifest, VaultError> {
        self.vault.wait(self.vault.point_manifest(id))
    }

    async fn begin_point(&self, cluster_id: &str, base: u64, by: &str, now_ms: i64) -> Result<PointId, VaultError> {
        self.vault.wait(self.vault.begin_point(cluster_id, base, by, now_ms))
    }

    async fn outcome(&self, id: &PointId) -> Result<Option<Outcome>, VaultError> {
        self.vault.wait(self.vault.outcome(id))
    }

    async fn abort_point(&self, id: &PointId, reason: &str) -> Result<Outcome, VaultError> {
        self.vault.wait(self.vault.abort_point(id, reason))
    }

    async fn commit_point(&self, manifest: &PointManifest, totals: Totals) -> Result<Outcome, VaultError> {
        self.vault.wait(self.vault.commit_point(manifest, totals))
    }

    fn send(&self, node_id: i32, command: Command) -> bool {
        let link = self.links.iter().find(|link| link.facts.node_id == node_id);
        link.is_some_and(|link| (link.send)(command))
    }

    async fn hear(&self) -> Result<(i32, Report), RecvTimeoutError> {
        self.reports.recv_timeout(TICK)
    }

    fn cancelled(&self) -> Option<String> {
        self.cancelled.get().cloned()
    }

    fn observe(&mut self, progress: &Progress) {
        (self.observe)(progress);
    }

    fn now(&self) -> Now {
        let monotonic_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now { unix_ms: unix_ms(), monotonic_us }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
