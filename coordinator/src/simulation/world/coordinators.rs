//! Coordinators: seats, runs, operators, and the store's answers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use segvault_proto::{NodeFacts, rpc};
use tokio::sync::mpsc::error::TryRecvError;

use super::super::board::{Handle, Owner, Slot};
use super::super::cluster::CLUSTER;
use super::super::mutation::Mutation;
use super::super::queue::{MILLISECOND, Micros, SECOND};
use super::super::run::{self, End, Running, Setup, View};
use super::super::store::{Answer, Ask};
use super::{Event, Part, World};
use crate::service::fleet::{Fleet, Introduction, NodeKey, Patience};

/// After the last point agents have so long to let go of everything.
const LETTING_GO: Micros = 30 * SECOND;

/// A coordinator's host.
#[derive(Default)]
pub struct Coordinator {
    /// Its process, while it runs.
    pub process: Option<Process>,
    /// Counts its processes.
    pub lives: u64,
    /// Until then the process stands still.
    pub paused_until: Micros,
}

/// A coordinator's process.
pub struct Process {
    life: u64,
    fleet: Arc<Fleet>,
    started: Micros,
    /// Counts its runs.
    runs: u64,
    /// The run under way; what it is polled for is taken out meanwhile.
    pub run: Option<Run>,
    /// Connections whose frames it has.
    lines: Vec<usize>,
}

/// A run under way.
pub struct Run {
    future: Running,
    /// What is known of it.
    pub view: Rc<RefCell<View>>,
    /// When it began.
    pub began: Micros,
    /// It takes the schedule's last point.
    is_last: bool,
}

impl Coordinator {
    /// The run under way.
    pub fn run(&self) -> Option<&Run> {
        self.process.as_ref()?.run.as_ref()
    }
}

impl World {
    pub(super) fn start_coordinator(&mut self, coordinator: usize) {
        let patience = Patience::default();
        let here = &mut self.coordinators[coordinator];
        if here.process.is_some() {
            return;
        }
        here.lives += 1;
        let life = here.lives;
        let fleet = Arc::new(Fleet::new(patience));
        here.process = Some(Process { life, fleet, started: self.now, runs: 0, run: None, lines: Vec::new() });
        self.note("start", [coordinator as u64, 1], || format!("coordinator {coordinator}"));
        self.arrange(self.now, Event::Tick(Owner { coordinator, life }));
    }

    pub(super) fn kill_coordinator(&mut self, coordinator: usize) {
        let Some(process) = self.coordinators[coordinator].process.take() else { return };
        self.note("kill", [coordinator as u64, 1], || format!("coordinator {coordinator}"));
        self.coordinators[coordinator].paused_until = 0;
        for line in process.lines {
            // The host may have died with it, and then nobody says so.
            if self.random.per_mille(700) {
                self.send_down_end(line, "the coordinator hung up");
            }
        }
    }

    /// The process, if it still is the one that is meant.
    fn process(&mut self, owner: Owner) -> Option<&mut Process> {
        self.coordinators[owner.coordinator].process.as_mut().filter(|process| process.life == owner.life)
    }

    fn key(&self, line: usize) -> NodeKey {
        (CLUSTER.to_owned(), self.hosts[self.lines[line].host].facts.node_id)
    }

    fn owner(&self, line: usize) -> Owner {
        Owner { coordinator: self.lines[line].coordinator, life: self.lines[line].coordinator_life }
    }

    /// A hello arrives.
    pub(super) fn arrive(&mut self, line: usize, hello: rpc::Hello) {
        let now = self.instant();
        let mut session = [0; 16];
        session[..8].copy_from_slice(&self.random.next().to_be_bytes());
        let coordinator = self.lines[line].coordinator;
        let Some(process) = self.coordinators[coordinator].process.as_mut() else {
            // A host that is down says nothing at all.
            if self.random.per_mille(800) {
                self.send_down_end(line, "connection refused");
            }
            return;
        };
        let owner = Owner { coordinator, life: process.life };
        let fleet = process.fleet.clone();
        match fleet.sit(introduce(hello), session, now) {
            Ok((number, frames)) => {
                process.lines.push(line);
                let line = &mut self.lines[line];
                (line.coordinator_life, line.number, line.frames) = (owner.life, number, Some(frames));
                self.go_on(owner);
            }
            Err(status) => {
                self.note("refused", [line as u64, 0], || status.message().to_owned());
                self.send_down_end(line, "refused");
            }
        }
    }

    /// A frame arrives.
    pub(super) fn frame_up(&mut self, line: usize, frame: rpc::AgentFrame) {
        let (key, owner, number, now) = (self.key(line), self.owner(line), self.lines[line].number, self.instant());
        let Some(process) = self.process(owner) else {
            if owner.life > 0 && self.coordinators[owner.coordinator].process.is_some() {
                // Another process, or its host, says that this connection does not exist.
                self.send_down_end(line, "connection reset");
            }
            return;
        };
        let fleet = process.fleet.clone();
        if let Err(status) = fleet.receive(&key, number, frame, now) {
            self.note("hang up", [line as u64, 0], || status.message().to_owned());
            fleet.hang_up(&key, number, status.message());
            if self.lines[line].frames.take().is_some() {
                self.send_down_end(line, "the coordinator hung up");
            }
        }
        self.go_on(owner);
    }

    /// The end of an agent's stream arrives, or the coordinator notices that the connection is broken.
    pub(super) fn end_up(&mut self, line: usize, why: &'static str) {
        let (key, owner, number) = (self.key(line), self.owner(line), self.lines[line].number);
        if let Some(process) = self.process(owner) {
            process.fleet.hang_up(&key, number, why);
            self.go_on(owner);
        }
    }

    pub(super) fn tick(&mut self, owner: Owner) {
        let now = self.instant();
        let Some(process) = self.process(owner) else { return };
        let fleet = process.fleet.clone();
        fleet.tick(now);
        let heartbeat = Micros::try_from(fleet.patience().heartbeat.as_micros()).expect("seconds");
        self.arrange(self.now + heartbeat, Event::Tick(owner));
        self.go_on(owner);
    }

    pub(super) fn wake(&mut self, owner: Owner) {
        if self.process(owner).is_some() {
            self.go_on(owner);
        }
    }

    /// Polls the run, and puts what the seats have to say on its way.
    fn go_on(&mut self, owner: Owner) {
        self.poll(owner);
        let Some(process) = self.process(owner) else { return };
        let lines = std::mem::take(&mut process.lines);
        let lines: Vec<usize> = lines.into_iter().filter(|line| self.pump(*line)).collect();
        if let Some(process) = self.process(owner) {
            process.lines = lines;
        }
    }

    /// Sends what the seats have for a connection; false if they have given it up.
    fn pump(&mut self, line: usize) -> bool {
        while let Some(frames) = &mut self.lines[line].frames {
            match frames.try_recv() {
                Ok(Ok(frame)) => self.send_down(line, frame),
                Err(TryRecvError::Empty) => return true,
                Ok(Err(_)) | Err(TryRecvError::Disconnected) => {
                    self.lines[line].frames = None;
                    self.send_down_end(line, "the coordinator hung up");
                }
            }
        }
        false
    }

    fn poll(&mut self, owner: Owner) {
        let Some(mut run) = self.process(owner).and_then(|process| process.run.take()) else { return };
        match run.future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => {
                if let Some(process) = self.process(owner) {
                    process.run = Some(run);
                }
            }
            Poll::Ready(end) => self.end_run(owner, &run, end),
        }
    }

    /// Begins a point at a coordinator; false if it cannot.
    fn begin(&mut self, coordinator: usize, is_last: bool) -> bool {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.random.next().to_be_bytes());
        let Some(process) = self.coordinators[coordinator].process.as_mut().filter(|process| process.run.is_none())
        else {
            return false;
        };
        process.runs += 1;
        let owner = Owner { coordinator, life: process.life };
        let view = Rc::<RefCell<View>>::default();
        let setup = Setup {
            handle: Handle::new(self.board.clone(), owner),
            fleet: process.fleet.clone(),
            run: process.runs,
            started: process.started,
            mutation: self.mutation,
            barrier_deadline: self.plan.barrier_deadline,
            closed_only: self.plan.closed_only,
            nonce,
        };
        let future = run::begin(setup, view.clone());
        process.run = Some(Run { future, view, began: self.now, is_last });
        self.note("begin", [coordinator as u64, is_last.into()], || format!("coordinator {coordinator}"));
        self.wake(owner);
        true
    }

    /// A run has ended.
    fn end_run(&mut self, owner: Owner, run: &Run, end: End) {
        let number = run.view.borrow().number.unwrap_or(0);
        self.last_run_ended = self.now;
        let what = match &end {
            End::Committed(_) => "committed",
            End::Abandoned(_) => "given up",
            End::Unknown(_) => "unknown",
        };
        self.note(what, [number, 0], || format!("coordinator {}: point {number}: {end:?}", owner.coordinator));
        self.judge_end(number, &end);
        if run.is_last {
            self.judge_last(&end);
            self.part = Part::Over;
            self.arrange(self.now + LETTING_GO, Event::Over);
        } else if self.part == Part::Settled {
            self.begin_last();
        }
    }

    /// Begins the last point at the coordinator that is left, as soon as no other one is under way there.
    pub(super) fn begin_last(&mut self) {
        let Some(coordinator) = self.coordinators.iter().position(|here| here.process.is_some()) else {
            return self.complain("no coordinator is left".to_owned());
        };
        if self.begin(coordinator, true) && self.part == Part::Settled {
            self.part = Part::Last;
        }
    }

    /// An operator looks: a point is begun where none is under way, and sometimes one is cancelled.
    pub(super) fn operate(&mut self) {
        if self.part > Part::Quiet {
            return;
        }
        let coordinator = self.random.index(self.coordinators.len());
        if !self.begin(coordinator, false) && self.random.per_mille(self.often.cancelled) {
            self.cancel(coordinator);
        }
        // While the fleet finds together again a few points are enough.
        let pace = if self.part == Part::Faults { 1 } else { 5 };
        let next = self.random.about(self.plan.operator * pace).max(MILLISECOND);
        self.arrange(self.now + next, Event::Operator);
    }

    /// Begins a point at each coordinator.
    pub(super) fn begin_everywhere(&mut self) {
        for coordinator in 0..self.coordinators.len() {
            self.begin(coordinator, false);
        }
    }

    pub(super) fn cancel(&mut self, coordinator: usize) {
        if let Some(run) = self.coordinators[coordinator].run() {
            run.view.borrow_mut().cancelled.get_or_insert_with(|| "cancelled by an operator".to_owned());
            self.note("cancel", [coordinator as u64, 0], || format!("coordinator {coordinator}"));
        }
    }

    /// A request arrives at the store.
    pub(super) fn ask(&mut self, owner: Owner, ask: Ask, slot: Slot) {
        self.requests += 1;
        let is_before = self.random.coin();
        if is_before {
            self.disturb_request(owner.coordinator);
        }
        let replaces = self.is(Mutation::OutcomesAreReplaced);
        let often = &self.often;
        let (what, answer) = if self.random.per_mille(often.request_fails) {
            ("fail", Answer::Failed)
        } else if self.random.per_mille(often.answer_lost) {
            self.store.ask(ask.clone(), &self.cluster, replaces);
            ("lose answer", Answer::Failed)
        } else if self.random.per_mille(often.request_repeated) {
            self.store.ask(ask.clone(), &self.cluster, replaces);
            ("ask again", self.store.ask(ask.clone(), &self.cluster, replaces))
        } else {
            ("ask", self.store.ask(ask.clone(), &self.cluster, replaces))
        };
        self.note(what, [owner.coordinator as u64, self.requests], || {
            format!("coordinator {}: {ask:?}: {answer:?}", owner.coordinator)
        });
        let at = self.now + self.latency();
        self.arrange(at, Event::Answer { owner, slot, answer });
        if !is_before {
            self.disturb_request(owner.coordinator);
        }
    }

    /// Its answer arrives.
    pub(super) fn answer(&mut self, owner: Owner, slot: &Slot, answer: Answer) {
        slot.replace(Some(answer));
        self.wake(owner);
    }
}

/// What `service/mod.rs` makes of a hello.
fn introduce(hello: rpc::Hello) -> Introduction {
    let facts = hello.facts.expect("agents say which node they speak for");
    let facts = NodeFacts::try_from(facts).expect("both sides are of the same version");
    let (incarnation, session) = (hello.incarnation, hello.session);
    let (host, version, space, vacant) = (hello.host, hello.version, hello.space, hello.vacant);
    Introduction { incarnation, session, facts, host, version, space, vacant }
}
