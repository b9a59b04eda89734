//! What is done to a fleet.

use super::super::faults::{Deed, Often, When};
use super::super::queue::Micros;
use super::{Event, Part, SETTLING, World};

impl World {
    /// Does what is to be done just before an agent's work, to that agent if not to another one.
    pub(super) fn disturb_work(&mut self, host: usize) {
        for deed in self.due(When::Command(self.commands)) {
            let host = self.random.per_mille(800).then_some(host);
            self.perform(deed, host, None);
        }
    }

    /// Does what is to be done when a request comes to the store, to the coordinator that has asked if not to another
    /// one.
    pub(super) fn disturb_request(&mut self, coordinator: usize) {
        for deed in self.due(When::Request(self.requests)) {
            let coordinator = self.random.per_mille(800).then_some(coordinator);
            self.perform(deed, None, coordinator);
        }
    }

    fn due(&mut self, when: When) -> Vec<Deed> {
        if !self.disturbances.iter().any(|(at, _)| *at == when) {
            return Vec::new();
        }
        let (due, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.disturbances).into_iter().partition(|(at, _)| *at == when);
        self.disturbances = left;
        due.into_iter().map(|(_, deed)| deed).collect()
    }

    /// Does something to the agent or the coordinator that is concerned, or to any.
    pub(super) fn perform(&mut self, deed: Deed, host: Option<usize>, coordinator: Option<usize>) {
        if self.part > Part::Faults {
            return;
        }
        self.note(deed.name(), [host.map_or(u64::MAX, |host| host as u64), 0], || format!("{deed:?}"));
        let host = host.unwrap_or_else(|| self.random.index(self.hosts.len()));
        let of_host = self.line_of(host).map(|line| self.lines[line].coordinator);
        let coordinator = coordinator.or(of_host).unwrap_or_else(|| self.random.index(self.coordinators.len()));
        // Whatever is done is undone before the schedule calms down.
        let until = |micros: Micros| (self.now + micros).min(self.plan.quiet_from - 1);
        match deed {
            Deed::KillAgent(down) => {
                let until = until(down);
                self.kill_agent(host);
                self.arrange(until, Event::StartAgent(host));
            }
            Deed::StopAgent(down) => {
                let until = until(down);
                self.stop_agent(host);
                self.arrange(until, Event::StartAgent(host));
            }
            Deed::PauseAgent(pause) => self.hosts[host].paused_until = until(pause),
            Deed::Cut(cut) => {
                if let Some(line) = self.line_of(host) {
                    self.cut_line(line, cut);
                }
            }
            Deed::Isolate(pause, cut) => {
                self.hosts[host].isolated_until = until(pause);
                if let Some(line) = self.line_of(host) {
                    self.cut_line(line, cut);
                }
            }
            Deed::KillCoordinator(down) => {
                let until = until(down);
                self.kill_coordinator(coordinator);
                self.arrange(until, Event::StartCoordinator(coordinator));
            }
            Deed::PauseCoordinator(pause) => self.coordinators[coordinator].paused_until = until(pause),
            Deed::Cancel => self.cancel(coordinator),
            Deed::Begin => self.begin_everywhere(),
        }
    }

    /// From now on nothing fails any more, and one coordinator is left.
    pub(super) fn calm_down(&mut self) {
        self.note("QUIET", [0; 2], String::new);
        for host in 0..self.hosts.len() {
            self.start_agent(host);
        }
        let alive: Vec<usize> =
            (0..self.coordinators.len()).filter(|index| self.coordinators[*index].process.is_some()).collect();
        match alive.len() {
            0 => self.start_coordinator(0),
            len => {
                let stays = alive[self.random.index(len)];
                alive.into_iter().filter(|index| *index != stays).for_each(|index| self.kill_coordinator(index));
            }
        }
        self.part = Part::Quiet;
        self.often = Often::never();
        (self.paces.slow_command, self.paces.slow_piece) = (0, 0);
        self.disturbances.clear();
        self.arrange(self.now + SETTLING, Event::Settled);
    }
}
