//! Connections: frames that are under way, in order in each direction, and how they break.

use segvault_proto::rpc;

use super::super::faults::Cut;
use super::super::queue::Micros;
use super::{Event, World};
use crate::service::fleet::Frames;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// That of the agent.
    Agent,
    /// That of the coordinator.
    Coordinator,
}

/// A connection.
pub struct Line {
    /// Whose agent.
    pub host: usize,
    /// Which of its processes.
    pub host_life: u64,
    /// To which coordinator.
    pub coordinator: usize,
    /// Which of its processes; 0 as long as no hello has arrived.
    pub coordinator_life: u64,
    /// What the coordinator's seats call it.
    pub number: u64,
    /// What the coordinator sends.
    pub frames: Option<Frames>,
    /// When the last frame arrives that is under way.
    up_last: Micros,
    down_last: Micros,
    /// It is broken: nothing gets through any more.
    is_cut: bool,
    /// What was under way when it broke arrives so much later; else it has vanished.
    late: Option<Micros>,
    /// The agent has left it.
    pub agent_left: bool,
}

impl World {
    /// A connection from a host to a coordinator. It may be broken from the beginning.
    pub(super) fn open_line(&mut self, host: usize, coordinator: usize) -> usize {
        let is_cut = self.hosts[host].isolated_until > self.now || self.random.per_mille(self.often.hello_lost);
        self.lines.push(Line {
            host,
            host_life: self.hosts[host].lives,
            coordinator,
            coordinator_life: 0,
            number: 0,
            frames: None,
            up_last: self.now,
            down_last: self.now,
            is_cut,
            late: None,
            agent_left: false,
        });
        self.lines.len() - 1
    }

    /// When something arrives that is sent now; never, if the connection is broken.
    fn arrival(&mut self, line: usize, side: Side) -> Option<Micros> {
        let latency = self.latency();
        let line = &mut self.lines[line];
        let last = if side == Side::Agent { &mut line.up_last } else { &mut line.down_last };
        *last = (self.now + latency).max(*last);
        (!line.is_cut).then_some(*last)
    }

    pub(super) fn send_hello(&mut self, line: usize, hello: rpc::Hello) {
        if let Some(at) = self.arrival(line, Side::Agent) {
            self.arrange(at, Event::Arrive { line, is_late: false, hello: Box::new(hello) });
        }
    }

    pub(super) fn send_up(&mut self, line: usize, frame: rpc::AgentFrame) {
        if let Some(at) = self.arrival(line, Side::Agent) {
            self.arrange(at, Event::Up { line, is_late: false, frame: Box::new(frame) });
        }
    }

    /// The agent leaves the connection.
    pub(super) fn leave_line(&mut self, line: usize) {
        self.lines[line].agent_left = true;
        if let Some(at) = self.arrival(line, Side::Agent) {
            self.arrange(at, Event::UpEnd { line, is_late: false });
        }
    }

    pub(super) fn send_down(&mut self, line: usize, frame: rpc::CoordinatorFrame) {
        if let Some(at) = self.arrival(line, Side::Coordinator) {
            self.arrange(at, Event::Down { line, is_late: false, frame: Box::new(frame) });
        }
    }

    /// The coordinator leaves the connection, or its host refuses it.
    pub(super) fn send_down_end(&mut self, line: usize, why: &'static str) {
        if let Some(at) = self.arrival(line, Side::Coordinator) {
            self.arrange(at, Event::DownEnd { line, is_late: false, why });
        }
    }

    /// Whether something that was under way gets through. If not it may come later.
    pub(super) fn gets_through(&mut self, line: usize, is_late: bool, event: impl FnOnce(bool) -> Event) -> bool {
        let Line { is_cut, late, .. } = self.lines[line];
        if !is_cut {
            return true;
        }
        if is_late {
            self.note("come late", [line as u64, 0], || format!("line {line}"));
            return true;
        }
        if let Some(later) = late {
            self.arrange(self.now + later, event(true));
        }
        false
    }

    /// A connection breaks.
    pub(super) fn cut_line(&mut self, line: usize, cut: Cut) {
        if self.lines[line].is_cut {
            return;
        }
        self.note("cut", [line as u64, 0], || format!("line {line}: {cut:?}"));
        self.lines[line].is_cut = true;
        self.lines[line].late = cut.late;
        for (side, after) in [(Side::Agent, cut.agent_notices), (Side::Coordinator, cut.coordinator_notices)] {
            if let Some(after) = after {
                self.arrange(self.now + after, Event::Notice { line, side });
            }
        }
    }
}
