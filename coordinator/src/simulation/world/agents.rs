//! Agents: what goes on between the steps of their sessions, and their work.

use segvault_proto::{Command, rpc};

use super::super::agent::Here;
use super::super::mutation::Mutation;
use super::super::queue::{Micros, SECOND};
use super::super::session::{Doing, Ticket};
use super::{Event, World};

/// An agent gives up waiting for a welcome after this time, or after twice of it: to connect may take as long.
const WELCOME_DEADLINE: Micros = 10 * SECOND;
/// What is said to be durable and is not becomes so within this time.
const DURABLE_LATER: Micros = 20 * SECOND;

/// What an agent waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// No welcome has come.
    NoWelcome,
    /// The pause between two attempts to connect is over.
    PauseOver,
    /// The lease is over.
    LeaseOver,
    /// A heartbeat is due.
    Heartbeat,
}

impl World {
    pub(super) fn start_agent(&mut self, host: usize) {
        if self.hosts[host].process.is_some() {
            return;
        }
        let mut incarnation = [0; 16];
        incarnation[..8].copy_from_slice(&self.random.next().to_be_bytes());
        self.hosts[host].start(self.mutation, incarnation, self.now);
        let node_id = self.hosts[host].facts.node_id;
        self.note("start", [host as u64, 0], || format!("agent of node {node_id}"));
        self.connect(host);
    }

    /// Ends an agent's process at once.
    pub(super) fn kill_agent(&mut self, host: usize) {
        let line = self.line_of(host);
        let node_id = self.hosts[host].facts.node_id;
        self.note("kill", [host as u64, 0], || format!("agent of node {node_id}"));
        self.hosts[host].kill();
        self.hosts[host].paused_until = 0;
        // The host may have died with it, and then nobody says so.
        if let Some(line) = line.filter(|_| self.random.per_mille(700)) {
            self.leave_line(line);
        }
    }

    /// Ends an agent's process in order: it lets go and says goodbye.
    pub(super) fn stop_agent(&mut self, host: usize) {
        let line = self.line_of(host);
        let Some(process) = self.hosts[host].process.take() else { return };
        let node_id = self.hosts[host].facts.node_id;
        self.note("stop", [host as u64, 0], || format!("agent of node {node_id}"));
        if let Doing::Attending(line) = process.session.doing {
            self.send_up(line, process.session.goodbye());
        }
        if let Some(line) = line {
            self.leave_line(line);
        }
    }

    /// The connection that an agent has or waits for.
    pub(super) fn line_of(&self, host: usize) -> Option<usize> {
        match self.hosts[host].process.as_ref()?.session.doing {
            Doing::Connecting(line) | Doing::Attending(line) => Some(line),
            Doing::Waiting => None,
        }
    }

    fn set_alarm(&mut self, host: usize, at: Micros, alarm: Alarm) {
        let Some(process) = &self.hosts[host].process else { return };
        let (life, stamp) = (process.life, process.session.stamp);
        self.arrange(at, Event::Alarm { host, life, stamp, alarm });
    }

    fn connect(&mut self, host: usize) {
        let coordinators = self.coordinators.len();
        let Some(process) = &mut self.hosts[host].process else { return };
        let first = if self.plan.is_spread { host } else { 0 };
        let coordinator = (first + process.session.next_attempt()) % coordinators;
        let hello = process.session.hello();
        let line = self.open_line(host, coordinator);
        let process = self.hosts[host].process.as_mut().expect("it was there just now");
        process.session.turn_to(Doing::Connecting(line), self.now);
        self.note("connect", [host as u64, line as u64], || format!("host {host} to {coordinator}: line {line}"));
        self.send_hello(line, hello);
        let deadline = if self.random.coin() { WELCOME_DEADLINE } else { 2 * WELCOME_DEADLINE };
        self.set_alarm(host, self.now + deadline, Alarm::NoWelcome);
    }

    pub(super) fn alarm(&mut self, host: usize, life: u64, stamp: u64, alarm: Alarm) {
        let process = self.hosts[host].process.as_mut();
        let Some(process) = process.filter(|process| process.life == life && process.session.stamp == stamp) else {
            return;
        };
        match alarm {
            Alarm::NoWelcome => self.part_with(host, "the coordinator does not answer"),
            Alarm::PauseOver => self.connect(host),
            Alarm::LeaseOver => {
                let holds = process.worker.agent.pins().next().is_some();
                if process.session.let_go() {
                    let what = if holds { "lease" } else { "idle lease" };
                    self.note(what, [host as u64, 0], || format!("of host {host} is over"));
                    self.let_go(host);
                }
            }
            Alarm::Heartbeat => match (process.session.heartbeat(self.now), process.session.doing) {
                (Ok((frame, next)), Doing::Attending(line)) => {
                    self.send_up(line, frame);
                    self.set_alarm(host, self.now + next, Alarm::Heartbeat);
                }
                _ => self.part_with(host, "nothing was heard of the coordinator"),
            },
        }
    }

    /// A frame arrives at an agent.
    pub(super) fn frame_down(&mut self, line: usize, frame: rpc::CoordinatorFrame) {
        let (host, life) = (self.lines[line].host, self.lines[line].host_life);
        let Some(process) = self.hosts[host].process.as_mut().filter(|process| process.life == life) else {
            // The host says that nobody is there.
            return self.leave_line(line);
        };
        match process.session.doing {
            Doing::Connecting(current) if current == line => self.welcome(host, line, frame),
            Doing::Attending(current) if current == line => match process.session.take_in(frame, self.now) {
                Ok(None) => {}
                Ok(Some((ticket, command))) => self.hand_over(host, ticket, command),
                Err(_) => self.part_with(host, "the coordinator does not keep the order"),
            },
            _ => {}
        }
    }

    fn welcome(&mut self, host: usize, line: usize, frame: rpc::CoordinatorFrame) {
        let process = self.hosts[host].process.as_mut().expect("a frame has come for it");
        match process.session.welcomed(frame, self.now) {
            Ok((lets_go, again)) => {
                process.session.turn_to(Doing::Attending(line), self.now);
                let what = if lets_go { "begin anew" } else { "welcome" };
                self.note(what, [host as u64, line as u64], || {
                    format!("host {host}, line {line}: {} reports are sent again", again.len())
                });
                if !again.is_empty() {
                    self.note("send again", [host as u64, again.len() as u64], || format!("host {host}"));
                }
                if lets_go {
                    self.let_go(host);
                }
                again.into_iter().for_each(|frame| self.send_up(line, frame));
                self.set_alarm(host, self.now, Alarm::Heartbeat);
                self.take_reports(host);
            }
            Err(_) => self.part_with(host, "the coordinator does not welcome us"),
        }
    }

    /// The end of a coordinator's stream arrives, or the agent notices that the connection is broken.
    pub(super) fn end_down(&mut self, line: usize, why: &'static str) {
        let (host, life) = (self.lines[line].host, self.lines[line].host_life);
        let is_current = self.line_of(host) == Some(line);
        if is_current && self.hosts[host].process.as_ref().is_some_and(|process| process.life == life) {
            self.part_with(host, why);
        }
    }

    /// The agent gives its connection up and waits.
    fn part_with(&mut self, host: usize, why: &'static str) {
        if let Some(line) = self.line_of(host) {
            self.leave_line(line);
        }
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        process.session.turn_to(Doing::Waiting, self.now);
        let pause = process.session.next_pause(&mut self.random);
        let lease_over = process.session.lease_over(self.now);
        self.note("part", [host as u64, pause], || format!("host {host}: {why}"));
        self.set_alarm(host, self.now + pause, Alarm::PauseOver);
        if let Some(at) = lease_over {
            self.set_alarm(host, at, Alarm::LeaseOver);
        }
        self.take_reports(host);
    }

    /// Whatever is held for the session that has ended is let go.
    fn let_go(&mut self, host: usize) {
        self.hand_over(host, Ticket { session: 0, run: 0 }, Command::Release { committed: false });
    }

    fn hand_over(&mut self, host: usize, ticket: Ticket, command: Command) {
        let what = command.name();
        self.note("command", [host as u64, ticket.run], || format!("host {host}, run {}: {what}", ticket.run));
        let Some(process) = &mut self.hosts[host].process else { return };
        let takes = process.worker.hand_over(ticket, command, &self.paces, &mut self.random);
        self.arrange_work(host, takes);
    }

    fn arrange_work(&mut self, host: usize, takes: Option<Micros>) {
        let Some(process) = &self.hosts[host].process else { return };
        let (life, stamp) = (process.life, process.worker.stamp);
        if let Some(takes) = takes {
            self.arrange(self.now + takes, Event::Work { host, life, stamp });
        }
    }

    fn is_at_work(&self, host: usize, life: u64, stamp: u64) -> bool {
        let process = self.hosts[host].process.as_ref();
        process.is_some_and(|process| process.life == life && process.worker.stamp == stamp)
    }

    /// The worker has done what it was at.
    pub(super) fn work(&mut self, host: usize, life: u64, stamp: u64) {
        if !self.is_at_work(host, life, stamp) {
            return;
        }
        self.commands += 1;
        self.disturb_work(host);
        if !self.is_at_work(host, life, stamp) {
            return;
        }
        if self.hosts[host].paused_until > self.now {
            self.commands -= 1;
            return self.arrange(self.now, Event::Work { host, life, stamp });
        }
        let process = self.hosts[host].process.as_mut().expect("it is at work");
        let what = process.worker.verb();
        let mut here = Here {
            cluster: &self.cluster,
            store: &mut self.store,
            now: self.now,
            moments: &mut self.moments,
            random: &mut self.random,
            often: &self.often,
            mutation: self.mutation,
        };
        let (step, takes) = process.worker.step(&mut here, &self.paces);
        process.reports.extend(step.said);
        self.note("work", [host as u64, self.commands], || format!("host {host}: {what}"));
        self.arrange_work(host, takes);
        if let Some(blob) = step.early {
            let at = self.now + self.random.below(DURABLE_LATER);
            self.arrange(at, Event::Durable { host, life, blob });
        }
        self.take_reports(host);
    }

    pub(super) fn make_durable(&mut self, host: usize, life: u64, blob: usize) {
        if self.is(Mutation::StoredBeforeDurable) && self.hosts[host].lives == life {
            self.store.make_durable(blob);
        }
    }

    /// The session takes the reports that have come, unless it waits for a welcome.
    fn take_reports(&mut self, host: usize) {
        let Some(process) = &mut self.hosts[host].process else { return };
        let line = match process.session.doing {
            Doing::Connecting(_) => return,
            Doing::Attending(line) => Some(line),
            Doing::Waiting => None,
        };
        let mut frames = Vec::new();
        while let Some((ticket, report)) = process.reports.pop_front() {
            frames.extend(process.session.note(ticket, report));
        }
        if let Some(line) = line {
            frames.into_iter().for_each(|frame| self.send_up(line, frame));
        }
    }
}
