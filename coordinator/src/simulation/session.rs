//! A model of an agent's side of its session: the same steps as `agent/src/service/session.rs`, with frames in and out
//! as values and time as a parameter. What lies between the steps (connections, waiting) is the world's.

use segvault_proto::session::{Inbox, Outbox};
use segvault_proto::{Command, NodeFacts, PROTOCOL_VERSION, Report, rpc};

use super::mutation::Mutation;
use super::queue::{MILLISECOND, Micros, SECOND};
use super::random::Random;

/// Least and greatest pause before the next attempt to connect.
const PAUSE_MIN: Micros = 200 * MILLISECOND;
const PAUSE_MAX: Micros = 10 * SECOND;
/// Until a coordinator has said what its lease is.
const LEASE: Micros = 30 * SECOND;
/// A connection over which nothing has come for so many heartbeats is given up.
const SILENT_HEARTBEATS: u64 = 3;

/// Which session and run a command belongs to; its reports carry it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Counts the sessions of a process.
    pub session: u64,
    /// The coordinator's number of the run.
    pub run: u64,
}

/// What the session does just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It waits for a welcome on a connection.
    Connecting(usize),
    /// It has a connection.
    Attending(usize),
    /// It waits, not connected.
    Waiting,
}

/// An agent's side of its session.
pub struct Session {
    facts: NodeFacts,
    mutation: Option<Mutation>,
    incarnation: [u8; 16],
    /// Counts sessions.
    number: u64,
    held: Option<Vec<u8>>,
    outbox: Outbox<(u64, rpc::Report)>,
    inbox: Inbox,
    heard: Micros,
    lease: Micros,
    heartbeat: Micros,
    pause: Micros,
    attempts: usize,
    /// The run of the last command.
    newest_run: u64,
    /// What it does.
    pub doing: Doing,
    /// Since when.
    since: Micros,
    /// Counts what it has done; an alarm of an earlier doing is of no interest.
    pub stamp: u64,
}

impl Session {
    /// A process has started.
    pub fn new(facts: NodeFacts, mutation: Option<Mutation>, incarnation: [u8; 16], now: Micros) -> Self {
        Self {
            facts,
            mutation,
            incarnation,
            number: 0,
            held: None,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            heard: now,
            lease: LEASE,
            heartbeat: SECOND,
            pause: PAUSE_MIN,
            attempts: 0,
            newest_run: 0,
            doing: Doing::Waiting,
            since: now,
            stamp: 0,
        }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Something else is done now.
    pub fn turn_to(&mut self, doing: Doing, now: Micros) {
        (self.doing, self.since) = (doing, now);
        self.stamp += 1;
    }

    /// Since when nothing may be held any more, if that is so: nothing was heard for as long as the lease says.
    pub fn overdue_since(&self) -> Option<Micros> {
        (self.doing == Doing::Waiting).then_some((self.heard + self.lease).max(self.since))
    }

    /// Counts attempts to connect.
    pub fn next_attempt(&mut self) -> usize {
        self.attempts += 1;
        self.attempts - 1
    }

    /// The first frame of a connection.
    pub fn hello(&self) -> rpc::Hello {
        rpc::Hello {
            protocol: PROTOCOL_VERSION,
            version: String::new(),
            incarnation: self.incarnation.to_vec(),
            session: self.held.clone().unwrap_or_default(),
            facts: Some(self.facts.clone().into()),
            host: String::new(),
            space: Vec::new(),
            vault: Vec::new(),
            vacant: false,
        }
    }

    fn frame(&self, number: u64, run: u64, body: Option<rpc::agent_frame::Body>) -> rpc::AgentFrame {
        rpc::AgentFrame { number, received: self.inbox.received(), run, body, space: Vec::new() }
    }

    fn report_frame(&self, number: u64, run: u64, report: rpc::Report) -> rpc::AgentFrame {
        let run = if self.is(Mutation::NewestRunIsStamped) { self.newest_run } else { run };
        self.frame(number, run, Some(rpc::agent_frame::Body::Report(report)))
    }

    /// A heartbeat, or an error if the coordinator has been silent for too long.
    pub fn heartbeat(&self, now: Micros) -> Result<(rpc::AgentFrame, Micros), String> {
        if now - self.heard > self.heartbeat * SILENT_HEARTBEATS {
            return Err("nothing was heard of it".to_owned());
        }
        Ok((self.frame(0, 0, None), self.heartbeat))
    }

    /// A goodbye.
    pub fn goodbye(&self) -> rpc::AgentFrame {
        let goodbye = rpc::Goodbye { reason: "stopped".to_owned() };
        self.frame(0, 0, Some(rpc::agent_frame::Body::Goodbye(goodbye)))
    }

    /// The first frame of the coordinator: both sides are brought to where they were. Returns whether what is held must
    /// be let go, and the frames to send.
    pub fn welcomed(
        &mut self,
        frame: rpc::CoordinatorFrame,
        now: Micros,
    ) -> Result<(bool, Vec<rpc::AgentFrame>), String> {
        let Some(rpc::coordinator_frame::Body::Welcome(welcome)) = frame.body else {
            return Err("the coordinator does not welcome us".to_owned());
        };
        self.pause = PAUSE_MIN;
        self.heartbeat = Micros::from(welcome.heartbeat_ms.max(1)) * MILLISECOND;
        self.lease = Micros::from(welcome.lease_ms) * MILLISECOND;
        self.heard = now;
        let mut lets_go = false;
        if self.held.as_ref() == Some(&welcome.session) {
            self.outbox.confirm(frame.received);
        } else {
            if self.held.is_none() || !self.is(Mutation::SessionsAreMixed) {
                lets_go = self.let_go();
            }
            self.held = Some(welcome.session);
        }
        let again = self.outbox.unconfirmed().filter(|_| !self.is(Mutation::NothingIsSentAgain));
        Ok((lets_go, again.map(|(number, (run, report))| self.report_frame(number, *run, report.clone())).collect()))
    }

    /// Takes a frame in; an error ends the connection.
    pub fn take_in(&mut self, frame: rpc::CoordinatorFrame, now: Micros) -> Result<Option<(Ticket, Command)>, String> {
        self.heard = now;
        self.outbox.confirm(frame.received);
        let command = match frame.body {
            None => return Ok(None),
            Some(rpc::coordinator_frame::Body::Welcome(_)) => return Err("a second welcome came".to_owned()),
            Some(rpc::coordinator_frame::Body::Command(command)) => command,
        };
        let is_new = self.inbox.accept(frame.number).map_err(|error| error.to_string())?;
        if !is_new && !self.is(Mutation::RepeatsAreTakenTwice) {
            return Ok(None);
        }
        self.newest_run = frame.run;
        let command = Command::try_from(command).expect("both sides are of the same version");
        Ok(Some((Ticket { session: self.number, run: frame.run }, command)))
    }

    /// Keeps a report until it is confirmed; one of another session is of no interest any more.
    pub fn note(&mut self, ticket: Ticket, report: Report) -> Option<rpc::AgentFrame> {
        if ticket.session != self.number {
            return None;
        }
        let report = rpc::Report::from(report);
        let number = self.outbox.push((ticket.run, report.clone()));
        Some(self.report_frame(number, ticket.run, report))
    }

    /// Ends the session; true if something may be held for it.
    pub fn let_go(&mut self) -> bool {
        let held = self.held.take().is_some();
        self.number += 1;
        self.outbox = Outbox::default();
        self.inbox = Inbox::default();
        held
    }

    /// When the lease is over, if anything is held.
    pub fn lease_over(&self, now: Micros) -> Option<Micros> {
        let over = (self.heard + self.lease).max(now);
        (self.held.is_some() && !self.is(Mutation::LeaseIsIgnored)).then_some(over)
    }

    /// How long to wait for the next attempt to connect.
    pub fn next_pause(&mut self, random: &mut Random) -> Micros {
        let pause = self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        pause / 2 + random.below(pause / 2 + 1)
    }
}
