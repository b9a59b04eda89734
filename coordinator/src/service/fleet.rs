//! Who is there: agents that are connected, or were a moment ago.
//!
//! Each agent has a *seat*, by cluster and node. A seat outlives its connection: while the lease runs, commands wait in
//! its outbox and go on where they were once the agent is back. A seat is given up when its agent says goodbye, when
//! another process of it takes the seat, or when the lease is over; a run that has the seat is told that the agent
//! failed. Only one process may sit: another one is refused as long as the first one is heard.
//!
//! Nothing here touches the network: frames come in as values and go out through channels, and time is a parameter.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use segvault_proto::session::{Inbox, Outbox};
use segvault_proto::{Command, NodeFacts, Report, rpc};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tonic::Status;

use crate::drive::Link;

/// A connection over which nothing has come for so many heartbeats is hung up.
const SILENT_HEARTBEATS: u32 = 3;

/// How fast silence is noticed.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Both sides say something at least this often.
    pub heartbeat: Duration,
    /// Whoever hears nothing for so long lets go.
    pub lease: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(5), lease: Duration::from_secs(30) }
    }
}

/// Cluster id and node id.
pub type NodeKey = (String, i32);

/// What goes to an agent's stream.
pub type Frames = UnboundedReceiver<Result<rpc::CoordinatorFrame, Status>>;

/// All seats.
#[derive(Debug)]
pub struct Fleet {
    patience: Patience,
    seats: Mutex<Seats>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Seats {
    by_node: BTreeMap<NodeKey, Seat>,
    connections: u64,
}

/// One agent.
#[derive(Debug)]
struct Seat {
    session: [u8; 16],
    hello: Introduction,
    outbox: Outbox<(u64, rpc::Command)>,
    inbox: Inbox,
    connection: Option<Connection>,
    heard: Instant,
    run: Option<SeatInRun>,
    /// Questions that wait for an answer, beside the run.
    questions: Vec<SeatInRun>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    frames: UnboundedSender<Result<rpc::CoordinatorFrame, Status>>,
}

/// A run that a seat takes part in, or a question that it was asked.
#[derive(Debug)]
struct SeatInRun {
    number: u64,
    reports: mpsc::Sender<(i32, Report)>,
}

/// What an agent says of itself, checked.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Another process is another incarnation.
    pub incarnation: Vec<u8>,
    /// The session that it holds; empty if none.
    pub session: Vec<u8>,
    /// Its node.
    pub facts: NodeFacts,
    /// Its host's name, for people.
    pub host: String,
    /// Its software, for people.
    pub version: String,
    /// Of its log dirs.
    pub space: Vec<rpc::Space>,
    /// Its log dirs are empty: it takes part in restores only.
    pub vacant: bool,
}

/// A seat, for whoever watches over the fleet.
#[derive(Clone, Debug)]
pub struct SeatView {
    /// Whose.
    pub key: NodeKey,
    /// Its agent is connected.
    pub is_connected: bool,
    /// When it was heard last.
    pub heard: Instant,
    /// Its log dirs and their file systems, as it said with its last heartbeat.
    pub log_dirs: Vec<(String, rpc::Space)>,
}

impl Introduction {
    fn key(&self) -> NodeKey {
        (self.facts.cluster_id.clone(), self.facts.node_id)
    }
}

impl Seat {
    fn send(&self, number: u64, run: u64, body: Option<rpc::coordinator_frame::Body>) {
        if let Some(connection) = &self.connection {
            let frame = rpc::CoordinatorFrame { number, received: self.inbox.received(), run, body };
            // A stream that has ended is noticed by whoever reads from it.
            let _ = connection.frames.send(Ok(frame));
        }
    }

    fn send_command(&self, number: u64, run: u64, command: rpc::Command) {
        self.send(number, run, Some(rpc::coordinator_frame::Body::Command(command)));
    }

    fn is_on(&self, connection: u64) -> bool {
        self.connection.as_ref().is_some_and(|current| current.number == connection)
    }

    fn fail_run(&mut self, reason: &str) {
        for run in self.run.take().into_iter().chain(self.questions.drain(..)) {
            let _ = run.reports.send((self.hello.facts.node_id, Report::Failed { reason: reason.to_owned() }));
        }
    }
}

impl Fleet {
    /// Nobody is there yet.
    pub fn new(patience: Patience) -> Self {
        Self { patience, seats: Mutex::default(), changed: watch::Sender::default() }
    }

    /// How fast silence is noticed.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Says when somebody has come or gone.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().expect("no thread panics while it holds the seats")
    }

    /// Gives an agent its seat. Returns the number of the connection, and the frames that go to it: a welcome, then
    /// whatever it has missed. `session` is the id of a new session, if one is needed.
    pub fn sit(&self, hello: Introduction, session: [u8; 16], now: Instant) -> Result<(u64, Frames), Status> {
        let (key, node_id) = (hello.key(), hello.facts.node_id);
        let mut seats = self.lock();
        seats.connections += 1;
        let number = seats.connections;
        let (frames, outgoing) = unbounded_channel();
        let connection = Some(Connection { number, frames });
        let resumed = match seats.by_node.get_mut(&key) {
            Some(seat) if seat.hello.incarnation == hello.incarnation && hello.session == seat.session => true,
            // The same process without its session has let go of everything meanwhile.
            Some(seat) if seat.hello.incarnation == hello.incarnation || seat.connection.is_none() => {
                seat.fail_run("its agent has begun anew");
                false
            }
            Some(seat) => {
                return Err(Status::already_exists(format!(
                    "an agent of node {node_id} is connected already, from {} (version {}, heard {} ms ago): there can \
                     be only one\nhint: stop the other one, or give this one the server.properties of its own broker",
                    seat.hello.host,
                    seat.hello.version,
                    now.saturating_duration_since(seat.heard).as_millis()
                )));
            }
            None => false,
        };
        match seats.by_node.get_mut(&key).filter(|_| resumed) {
            Some(seat) => (seat.connection, seat.heard, seat.hello) = (connection, now, hello),
            None => {
                let (outbox, inbox) = (Outbox::default(), Inbox::default());
                let seat =
                    Seat { session, hello, outbox, inbox, connection, heard: now, run: None, questions: Vec::new() };
                seats.by_node.insert(key.clone(), seat);
            }
        }
        let seat = &seats.by_node[&key];
        let welcome = rpc::Welcome {
            session: seat.session.to_vec(),
            heartbeat_ms: millis(self.patience.heartbeat),
            lease_ms: millis(self.patience.lease),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        seat.send(0, 0, Some(rpc::coordinator_frame::Body::Welcome(welcome)));
        for (number, (run, command)) in seat.outbox.unconfirmed() {
            seat.send_command(number, *run, command.clone());
        }
        drop(seats);
        tracing::info!(cluster = key.0, node = key.1, resumed, "agent connected");
        self.changed.send_replace(());
        Ok((number, outgoing))
    }

    /// Takes in a frame of an agent. An error ends its connection.
    pub fn receive(&self, key: &NodeKey, connection: u64, frame: rpc::AgentFrame, now: Instant) -> Result<(), Status> {
        let mut seats = self.lock();
        let seat = seats.by_node.get_mut(key).filter(|seat| seat.is_on(connection));
        let seat = seat.ok_or_else(|| Status::aborted("the session is over"))?;
        seat.heard = now;
        seat.outbox.confirm(frame.received);
        if !frame.space.is_empty() {
            seat.hello.space = frame.space;
        }
        match frame.body {
            None => Ok(()),
            Some(rpc::agent_frame::Body::Hello(_)) => Err(Status::invalid_argument("a second hello")),
            Some(rpc::agent_frame::Body::Goodbye(goodbye)) => {
                seat.fail_run(&format!("its agent was stopped: {}", goodbye.reason));
                seats.by_node.remove(key);
                drop(seats);
                tracing::info!(cluster = key.0, node = key.1, reason = goodbye.reason, "agent said goodbye");
                self.changed.send_replace(());
                Ok(())
            }
            Some(rpc::agent_frame::Body::Report(report)) => {
                if !seat.inbox.accept(frame.number).map_err(|error| Status::data_loss(error.to_string()))? {
                    return Ok(());
                }
                let is_meant = |run: &SeatInRun| run.number == frame.run;
                let question = seat.questions.iter().position(is_meant).map(|at| seat.questions.swap_remove(at));
                let Some(run) = question.as_ref().or(seat.run.as_ref().filter(|run| is_meant(run))) else {
                    return Ok(()); // An answer that nobody waits for any more.
                };
                let report = Report::try_from(report).unwrap_or_else(|error| {
                    tracing::warn!(cluster = key.0, node = key.1, %error, "report is not understood");
                    Report::Failed { reason: format!("its report is not understood: {error}") }
                });
                let _ = run.reports.send((key.1, report));
                Ok(())
            }
        }
    }

    /// The agent's stream has ended; the seat is kept for the lease.
    pub fn hang_up(&self, key: &NodeKey, connection: u64, why: &str) {
        let mut seats = self.lock();
        if let Some(seat) = seats.by_node.get_mut(key).filter(|seat| seat.is_on(connection)) {
            seat.connection = None;
            drop(seats);
            tracing::info!(cluster = key.0, node = key.1, why, "agent disconnected");
            self.changed.send_replace(());
        }
    }

    /// Sends heartbeats, hangs up on the silent, and gives up seats whose lease is over. To be called every heartbeat.
    pub fn tick(&self, now: Instant) {
        let mut seats = self.lock();
        let mut is_changed = false;
        for (key, seat) in &mut seats.by_node {
            let silent = now.saturating_duration_since(seat.heard);
            if seat.connection.is_some() && silent > self.patience.heartbeat * SILENT_HEARTBEATS {
                tracing::warn!(cluster = key.0, node = key.1, ?silent, "agent is silent: hung up");
                seat.connection = None;
                is_changed = true;
            }
            seat.send(0, 0, None);
        }
        seats.by_node.retain(|key, seat| {
            let silent = now.saturating_duration_since(seat.heard);
            let stays = seat.connection.is_some() || silent <= self.patience.lease;
            if !stays {
                tracing::warn!(cluster = key.0, node = key.1, "agent is gone");
                seat.fail_run(&format!("nothing was heard of its agent for {} s", silent.as_secs()));
                is_changed = true;
            }
            stays
        });
        drop(seats);
        if is_changed {
            self.changed.send_replace(());
        }
    }

    /// Ends all connections: the service stops.
    pub fn dismiss(&self) {
        self.lock().by_node.clear();
    }

    /// Takes those of a cluster's connected agents into a run that `is_wanted`.
    pub fn begin_run(
        self: &Arc<Self>,
        cluster_id: &str,
        run: u64,
        reports: &mpsc::Sender<(i32, Report)>,
        is_wanted: impl Fn(&Introduction) -> bool,
    ) -> Vec<Link> {
        let mut seats = self.lock();
        let members = seats.by_node.iter_mut().filter(|((id, _), seat)| id == cluster_id && seat.connection.is_some());
        members
            .filter(|(_, seat)| is_wanted(&seat.hello))
            .map(|(key, seat)| {
                seat.run = Some(SeatInRun { number: run, reports: reports.clone() });
                let (fleet, key, session) = (self.clone(), key.clone(), seat.session);
                let send = Box::new(move |command| fleet.command(&key, &session, run, command));
                Link { facts: seat.hello.facts.clone(), send }
            })
            .collect()
    }

    /// Asks those of a cluster's connected agents that `is_wanted` something that has one answer, beside whatever run
    /// they are in. Returns them, by node.
    pub fn ask(
        &self,
        cluster_id: &str,
        number: u64,
        question: &Command,
        answers: &mpsc::Sender<(i32, Report)>,
        is_wanted: impl Fn(&Introduction) -> bool,
    ) -> BTreeMap<i32, Introduction> {
        let mut seats = self.lock();
        let members = seats.by_node.iter_mut().filter(|((id, _), seat)| id == cluster_id && seat.connection.is_some());
        let wanted = members.filter(|(_, seat)| is_wanted(&seat.hello));
        wanted
            .map(|((_, node_id), seat)| {
                seat.questions.push(SeatInRun { number, reports: answers.clone() });
                push(seat, number, question.clone());
                (*node_id, seat.hello.clone())
            })
            .collect()
    }

    /// Answers to a question are not waited for any more.
    pub fn forget(&self, cluster_id: &str, number: u64) {
        let mut seats = self.lock();
        let members = seats.by_node.iter_mut().filter(|((id, _), _)| id == cluster_id);
        members.for_each(|(_, seat)| seat.questions.retain(|question| question.number != number));
    }

    /// Lets the agents of a run go: whoever holds something still, because it was given up meanwhile, lets go of it.
    pub fn end_run(&self, cluster_id: &str, run: u64) {
        let mut seats = self.lock();
        let members = seats.by_node.iter_mut().filter(|((id, _), _)| id == cluster_id);
        for (_, seat) in members {
            if seat.run.as_ref().is_some_and(|current| current.number == run) {
                seat.run = None;
                push(seat, run, Command::Release { committed: false });
            }
        }
    }

    /// Sends a command; false if the agent's session is over.
    fn command(&self, key: &NodeKey, session: &[u8; 16], run: u64, command: Command) -> bool {
        let mut seats = self.lock();
        let Some(seat) = seats.by_node.get_mut(key).filter(|seat| seat.session == *session && seat.run.is_some())
        else {
            return false;
        };
        push(seat, run, command);
        true
    }

    /// Clusters of which somebody is there.
    pub fn clusters(&self) -> Vec<String> {
        let mut clusters: Vec<String> = self.lock().by_node.keys().map(|(cluster, _)| cluster.clone()).collect();
        clusters.dedup();
        clusters
    }

    /// Connected nodes of a cluster that can be captured.
    pub fn connected(&self, cluster_id: &str) -> Vec<i32> {
        let hosts = self.hosts(cluster_id);
        hosts.into_iter().filter(|(_, hello)| !hello.vacant).map(|(node_id, _)| node_id).collect()
    }

    /// Connected agents of a cluster, by node.
    pub fn hosts(&self, cluster_id: &str) -> BTreeMap<i32, Introduction> {
        let seats = self.lock();
        let members = seats.by_node.iter().filter(|((id, _), seat)| id == cluster_id && seat.connection.is_some());
        members.map(|((_, node_id), seat)| (*node_id, seat.hello.clone())).collect()
    }

    /// All seats.
    pub fn seats(&self) -> Vec<SeatView> {
        let seats = self.lock();
        let view = |(key, seat): (&NodeKey, &Seat)| {
            let dirs = seat.hello.facts.log_dirs.iter().map(|dir| dir.path.clone());
            let log_dirs = dirs.zip(seat.hello.space.iter().cloned()).collect();
            SeatView { key: key.clone(), is_connected: seat.connection.is_some(), heard: seat.heard, log_dirs }
        };
        seats.by_node.iter().map(view).collect()
    }

    /// What an operator wants to know of a cluster's agents.
    pub fn status(&self, cluster_id: &str, now: Instant) -> Vec<rpc::AgentStatus> {
        let seats = self.lock();
        let members = seats.by_node.iter().filter(|((id, _), _)| id == cluster_id);
        members
            .map(|((_, node_id), seat)| rpc::AgentStatus {
                node_id: *node_id,
                host: seat.hello.host.clone(),
                version: seat.hello.version.clone(),
                broker: seat.hello.facts.broker,
                controller: seat.hello.facts.controller,
                connected: seat.connection.is_some(),
                silent_ms: u64::from(millis(now.saturating_duration_since(seat.heard))),
                space: seat.hello.space.clone(),
                vacant: seat.hello.vacant,
            })
            .collect()
    }
}

fn push(seat: &mut Seat, run: u64, command: Command) {
    let command = rpc::Command::from(command);
    let number = seat.outbox.push((run, command.clone()));
    seat.send_command(number, run, command);
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests;
