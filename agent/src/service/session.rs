//! The connection to the coordinator, and what survives it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use segvault_proto::session::{Inbox, Outbox};
use segvault_proto::{Command, NodeFacts, PROTOCOL_VERSION, Report, rpc};
use segvault_transport::explain;
use segvault_vault_format::ids::VaultId;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use super::worker::{Reports, Ticket, Worker};
use super::{Ended, PAUSE_MAX, PAUSE_MIN, ServiceError, ServiceOptions, Standing};
use crate::node::Node;

/// Largest message of the coordinator, in bytes.
const MESSAGE_LEN_MAX: usize = 512 << 20;
/// The coordinator welcomes an agent within this time.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
/// Until a coordinator has said what its lease is.
const LEASE: Duration = Duration::from_secs(30);
/// A connection over which nothing has come for so many heartbeats is given up.
const SILENT_HEARTBEATS: u32 = 3;
/// A goodbye is waited for this long.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(2);

/// An agent's side of its session.
pub(super) struct Session<O> {
    facts: NodeFacts,
    /// The node's `server.properties`, if its log dirs are empty.
    vacant: Option<PathBuf>,
    vault: VaultId,
    options: ServiceOptions,
    worker: Worker,
    reports: Reports,
    observe: O,
    /// Tells this process from others.
    incarnation: [u8; 16],
    /// Counts sessions.
    number: u64,
    /// The session that is held.
    held: Option<Vec<u8>>,
    outbox: Outbox<(u64, rpc::Report)>,
    inbox: Inbox,
    /// When the coordinator was heard last.
    heard: Instant,
    lease: Duration,
    /// Why the last attempt to connect failed; it is said once.
    complaint: String,
}

/// An open connection.
struct Connection {
    frames: UnboundedSender<rpc::AgentFrame>,
    incoming: Streaming<rpc::CoordinatorFrame>,
    heartbeats: Interval,
    silence_max: Duration,
}

/// What ended a connection.
enum Parting {
    /// The service is over.
    Over(Ended),
    /// The connection broke, or was refused.
    Broken(String),
}

impl<O: FnMut(&Standing)> Session<O> {
    pub fn new(
        facts: NodeFacts,
        vacant: Option<PathBuf>,
        vault: VaultId,
        worker: Worker,
        reports: Reports,
        options: ServiceOptions,
        observe: O,
    ) -> Result<Self, ServiceError> {
        let mut incarnation = [0; 16];
        getrandom::fill(&mut incarnation).map_err(ServiceError::Randomness)?;
        Ok(Self {
            facts,
            vacant,
            vault,
            options,
            worker,
            reports,
            observe,
            incarnation,
            number: 0,
            held: None,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            heard: Instant::now(),
            lease: LEASE,
            complaint: String::new(),
        })
    }

    /// Connects again and again until `stop` is done, or a vacant node is none any more.
    pub async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<Ended, ServiceError> {
        tokio::pin!(stop);
        let mut pause = PAUSE_MIN;
        let mut next = 0;
        loop {
            let coordinator = self.options.coordinators[next].clone();
            let connected = tokio::select! {
                connected = self.connect(&coordinator) => connected,
                () = &mut stop => break,
            };
            match connected {
                Ok(mut connection) => {
                    pause = PAUSE_MIN;
                    self.complaint.clear();
                    (self.observe)(&Standing::Connected(coordinator.clone()));
                    tracing::info!(coordinator, "connected");
                    match self.attend(&mut connection, stop.as_mut()).await? {
                        Parting::Over(ended) => {
                            self.say_goodbye(connection, ended).await;
                            return Ok(ended);
                        }
                        Parting::Broken(why) => self.complain(&coordinator, why),
                    }
                }
                Err(why) => self.complain(&coordinator, why),
            }
            tokio::select! {
                over = self.wait(jittered(pause)) => over?,
                () = &mut stop => break,
            }
            pause = (pause * 2).min(PAUSE_MAX);
            // A session that is held goes on at its own coordinator only.
            if self.held.is_none() {
                next = (next + 1) % self.options.coordinators.len();
            }
        }
        self.worker.stop();
        Ok(Ended::Stopped)
    }

    fn complain(&mut self, coordinator: &str, why: String) {
        if self.complaint != why {
            tracing::warn!(coordinator, why, "not connected");
            self.complaint.clone_from(&why);
        }
        (self.observe)(&Standing::Searching(format!("{coordinator}: {why}")));
    }

    /// Opens a connection and brings both sides to where they were.
    async fn connect(&mut self, coordinator: &str) -> Result<Connection, String> {
        let channel =
            segvault_transport::connect(coordinator, &self.options.security).await.map_err(|error| explain(&error))?;
        let mut client = rpc::fleet_client::FleetClient::new(channel)
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX);
        let (frames, outgoing) = unbounded_channel();
        let _ = frames.send(self.hello());
        let attended = timeout(WELCOME_DEADLINE, client.attend(UnboundedReceiverStream::new(outgoing))).await;
        let attended = attended.map_err(|_| "the coordinator does not answer".to_owned())?;
        let mut incoming = attended.map_err(|status| self.refused(&status))?.into_inner();
        let first = timeout(WELCOME_DEADLINE, incoming.message()).await;
        let first = first.map_err(|_| "the coordinator does not answer".to_owned())?;
        let first = first.map_err(|status| self.refused(&status))?;
        let Some(rpc::CoordinatorFrame {
            received, body: Some(rpc::coordinator_frame::Body::Welcome(welcome)), ..
        }) = first
        else {
            return Err("the coordinator does not welcome us: is it a segvault coordinator?".to_owned());
        };
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms.max(1).into());
        self.lease = Duration::from_millis(welcome.lease_ms.into());
        self.heard = Instant::now();
        if self.held.as_ref() == Some(&welcome.session) {
            self.outbox.confirm(received);
        } else {
            self.let_go("another session has begun");
            self.held = Some(welcome.session);
        }
        for (number, (run, report)) in self.outbox.unconfirmed() {
            let _ = frames.send(self.frame(number, *run, Some(rpc::agent_frame::Body::Report(report.clone()))));
        }
        let mut heartbeats = interval(heartbeat);
        heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Connection { frames, incoming, heartbeats, silence_max: heartbeat * SILENT_HEARTBEATS })
    }

    /// Why the coordinator does not want us. It has told everything that is wrong with us in its own words.
    fn refused(&self, status: &Status) -> String {
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Internal => explain(status),
            _ => status.message().to_owned(),
        }
    }

    /// Takes commands in and sends reports until the connection ends.
    async fn attend(
        &mut self,
        connection: &mut Connection,
        mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Parting, ServiceError> {
        loop {
            tokio::select! {
                () = &mut stop => return Ok(Parting::Over(Ended::Stopped)),
                report = self.reports.recv() => {
                    let Some((ticket, report)) = report else { return Err(ServiceError::Worker) };
                    self.send_report(connection, ticket, report);
                }
                frame = connection.incoming.message() => match frame {
                    Ok(Some(frame)) => if let Err(why) = self.take_in(frame) {
                        return Ok(Parting::Broken(why));
                    },
                    Ok(None) => return Ok(Parting::Broken("the coordinator hung up".to_owned())),
                    Err(status) => return Ok(Parting::Broken(self.refused(&status))),
                },
                _ = connection.heartbeats.tick() => {
                    let silent = self.heard.elapsed();
                    if silent > connection.silence_max {
                        return Ok(Parting::Broken(format!("nothing was heard of it for {} s", silent.as_secs())));
                    }
                    let frame = rpc::AgentFrame { space: self.space(), ..self.frame(0, 0, None) };
                    let _ = connection.frames.send(frame);
                    if self.is_settled() {
                        while let Ok((ticket, report)) = self.reports.try_recv() {
                            self.send_report(connection, ticket, report);
                        }
                        return Ok(Parting::Over(Ended::Settled));
                    }
                }
            }
        }
    }

    /// Waits, not connected. Reports are kept; when the lease is over all is let go.
    async fn wait(&mut self, pause: Duration) -> Result<(), ServiceError> {
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            let lease_left = self.lease.saturating_sub(self.heard.elapsed());
            tokio::select! {
                () = &mut pause => return Ok(()),
                report = self.reports.recv() => {
                    let Some((ticket, report)) = report else { return Err(ServiceError::Worker) };
                    self.note(ticket, report);
                }
                () = sleep(lease_left), if self.held.is_some() => {
                    self.let_go("nothing was heard of the coordinator for as long as its lease says");
                }
            }
        }
    }

    /// Takes a frame in; an error ends the connection.
    fn take_in(&mut self, frame: rpc::CoordinatorFrame) -> Result<(), String> {
        self.heard = Instant::now();
        self.outbox.confirm(frame.received);
        let command = match frame.body {
            None => return Ok(()),
            Some(rpc::coordinator_frame::Body::Welcome(_)) => return Err("a second welcome came".to_owned()),
            Some(rpc::coordinator_frame::Body::Command(command)) => command,
        };
        if !self.inbox.accept(frame.number).map_err(|error| error.to_string())? {
            return Ok(());
        }
        let ticket = Ticket { session: self.number, run: frame.run };
        match Command::try_from(command) {
            Ok(command) => {
                tracing::debug!(run = frame.run, ?command, "command");
                self.worker.hand_over(ticket, command);
            }
            Err(error) => {
                tracing::warn!(%error, "command is not understood");
                self.worker.hand_over(ticket, Command::Release { committed: false });
                let report = Report::Failed { reason: format!("its agent does not understand a command: {error}") };
                self.outbox.push((frame.run, report.into()));
                return Err(format!("a command is not understood: {error}"));
            }
        }
        Ok(())
    }

    /// Whether the node was vacant, is none any more, and nothing is being done with it.
    fn is_settled(&self) -> bool {
        self.worker.is_idle() && self.vacant.as_ref().is_some_and(|config| Node::open(config).is_ok())
    }

    fn send_report(&mut self, connection: &Connection, ticket: Ticket, report: Report) {
        if let Some((number, run, report)) = self.note(ticket, report) {
            let _ = connection.frames.send(self.frame(number, run, Some(rpc::agent_frame::Body::Report(report))));
        }
    }

    /// Keeps a report until it is confirmed; one of another session is of no interest any more.
    fn note(&mut self, ticket: Ticket, report: Report) -> Option<(u64, u64, rpc::Report)> {
        if ticket.session != self.number {
            return None;
        }
        let report = rpc::Report::from(report);
        let number = self.outbox.push((ticket.run, report.clone()));
        Some((number, ticket.run, report))
    }

    /// Ends the session: whatever is held for it is let go.
    fn let_go(&mut self, why: &str) {
        if self.held.take().is_some() {
            tracing::info!(why, "session is over");
            self.worker.hand_over(Ticket { session: 0, run: 0 }, Command::Release { committed: false });
        }
        self.number += 1;
        self.outbox = Outbox::default();
        self.inbox = Inbox::default();
    }

    async fn say_goodbye(&mut self, mut connection: Connection, why: Ended) {
        self.worker.stop();
        let reason = match why {
            Ended::Stopped => "stopped",
            Ended::Settled => "the node is not vacant any more",
        };
        let goodbye = rpc::Goodbye { reason: reason.to_owned() };
        let _ = connection.frames.send(self.frame(0, 0, Some(rpc::agent_frame::Body::Goodbye(goodbye))));
        drop(connection.frames);
        // The stream ends once the coordinator has read it.
        let ended = async { while let Ok(Some(_)) = connection.incoming.message().await {} };
        let _ = timeout(GOODBYE_DEADLINE, ended).await;
    }

    fn hello(&self) -> rpc::AgentFrame {
        let hello = rpc::Hello {
            protocol: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.incarnation.to_vec(),
            session: self.held.clone().unwrap_or_default(),
            facts: Some(self.facts.clone().into()),
            host: self.options.host.clone(),
            space: self.space(),
            vault: self.vault.0.to_vec(),
            vacant: self.vacant.is_some(),
        };
        self.frame(0, 0, Some(rpc::agent_frame::Body::Hello(hello)))
    }

    fn frame(&self, number: u64, run: u64, body: Option<rpc::agent_frame::Body>) -> rpc::AgentFrame {
        rpc::AgentFrame { number, received: self.inbox.received(), run, body, space: Vec::new() }
    }

    /// Of the log dirs' file systems; zeros for one that cannot be asked.
    fn space(&self) -> Vec<rpc::Space> {
        let of = |path: &str| {
            let stat = statvfs(path).ok()?;
            let (block, free, total) = (stat.fragment_size(), stat.blocks_available(), stat.blocks());
            Some(rpc::Space { free_bytes: block * free, total_bytes: block * total })
        };
        self.facts.log_dirs.iter().map(|dir| of(&dir.path).unwrap_or_default()).collect()
    }
}

/// Between half of a pause and all of it, so that a fleet does not come back in one instant.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness the full pause is as good.
    let part = getrandom::fill(&mut byte).map_or(255, |()| byte[0]);
    pause / 2 + pause / 2 * u32::from(part) / 255
}
