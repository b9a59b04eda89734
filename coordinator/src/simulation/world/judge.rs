//! What must hold, after every event and in the end.

use super::super::queue::{MILLISECOND, Micros, SECOND};
use super::super::run::End;
use super::{EVENTS_MAX, Part, World};

/// Once nothing fails any more a run ends within this time: four barriers with all their samples, at the slowest pace,
/// and a few agents that are given up.
const RUN_MAX: Micros = 1200 * SECOND;
/// A run has ended: its agents let go within this time, at the slowest pace.
const LETTING_GO: Micros = 25 * SECOND;
/// What is due at an instant is done within this time.
const INSTANT: Micros = 10 * MILLISECOND;

impl World {
    /// Looks whether anything is as it must not be.
    pub(super) fn judge(&mut self) {
        for complaint in self.store.complaints() {
            self.complain(complaint);
        }
        if self.trace.events() > EVENTS_MAX {
            self.complain(format!("more than {EVENTS_MAX} events: something goes round in circles"));
        }
        self.judge_leases();
        if self.part == Part::Faults {
            return;
        }
        self.judge_patience();
        if self.part >= Part::Settled {
            self.judge_pins();
        }
    }

    /// Who has heard nothing for as long as the lease says, and has nothing left to do, holds nothing.
    fn judge_leases(&mut self) {
        let overdue = self.hosts.iter().find(|host| {
            host.process.as_ref().is_some_and(|process| {
                let since = process.session.overdue_since().map(|since| since.max(host.paused_until));
                let is_overdue = since.is_some_and(|since| self.now > since + INSTANT);
                is_overdue && process.worker.is_idle() && process.worker.agent.pins().next().is_some()
            })
        });
        if let Some(host) = overdue {
            self.complain(format!("node {} holds pins although its lease is over", host.facts.node_id));
        }
    }

    /// No run goes on for ever.
    fn judge_patience(&mut self) {
        let quiet_from = self.plan.quiet_from;
        let endless = self.coordinators.iter().filter_map(|coordinator| coordinator.run()).find_map(|run| {
            let view = run.view.borrow();
            (self.now > run.began.max(quiet_from) + RUN_MAX)
                .then(|| format!("point {:?} waits for ever: {:?}", view.number, view.progress))
        });
        if let Some(complaint) = endless {
            self.complain(complaint);
        }
    }

    /// Pins belong to a run that is under way, or one that has just ended.
    fn judge_pins(&mut self) {
        let live: Vec<u64> = self
            .coordinators
            .iter()
            .filter_map(|coordinator| coordinator.run())
            .filter_map(|run| run.view.borrow().number)
            .collect();
        let has_just_ended = self.now < self.last_run_ended + LETTING_GO;
        let left = self.hosts.iter().find_map(|host| {
            let pin = host.pins().find(|pin| !live.contains(&pin.point) && !has_just_ended)?;
            Some(format!("node {} still has pins of point {}", host.facts.node_id, pin.point))
        });
        if let Some(complaint) = left {
            self.complain(complaint);
        }
    }

    /// What a run says must be so.
    pub(super) fn judge_end(&mut self, number: u64, end: &End) {
        let is_committed = self.store.is_committed(number);
        match end {
            End::Committed(_) if is_committed => {}
            End::Committed(_) => self.complain(format!("point {number} is said to be committed, and is not")),
            End::Abandoned(_) if is_committed => {
                self.complain(format!("point {number} is said to be given up, and is committed"));
            }
            End::Abandoned(reason) if reason.contains("answered") => {
                self.complain(format!("point {number} did not understand an agent: {reason}"));
            }
            End::Abandoned(_) => {}
            End::Unknown(_) if is_committed => {
                self.note("unsure", [number, 0], || format!("point {number} is committed, and its run does not know"));
            }
            End::Unknown(_) => {}
        }
    }

    /// The last point must be complete.
    pub(super) fn judge_last(&mut self, end: &End) {
        let manifest = match end {
            End::Committed(manifest) => manifest,
            other => return self.complain(format!("the last point is not committed: {other:?}")),
        };
        let uncovered = manifest.partitions.iter().filter(|entry| entry.stream.is_none()).count();
        let nodes = manifest.nodes.len();
        if manifest.degraded || uncovered > 0 || nodes != self.hosts.len() {
            let findings = manifest.findings.join("; ");
            self.complain(format!(
                "the last point is not complete: {nodes} nodes, {uncovered} partitions not covered; {findings}"
            ));
        }
    }

    /// In the end nothing is held.
    pub(super) fn check_end(&mut self) {
        let left = self.hosts.iter().find_map(|host| Some((host.facts.node_id, host.pins().next()?.point)));
        if let Some((node_id, point)) = left {
            self.complain(format!("in the end node {node_id} still has pins of point {point}"));
        }
        if self.coordinators.iter().any(|coordinator| coordinator.run().is_some()) {
            self.complain("in the end a run is still under way".to_owned());
        }
    }
}
