//! The world of one schedule: hosts with agents, coordinators, connections and the store; and what happens to them.
//!
//! One event after the other is taken from the queue and carried out. Then runs are polled, frames are put on their
//! way, and it is looked whether anything is as it must not be. A schedule has three parts: things fail, things are left
//! alone, and one more point is taken, which must be complete.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use segvault_proto::rpc;

use self::agents::Alarm;
use self::coordinators::Coordinator;
use self::lines::{Line, Side};
use super::board::{Board, Owner, Slot, Wish};
use super::cluster::Cluster;
use super::faults::{Deed, Often, Plan, When};
use super::host::{Host, Paces};
use super::mutation::Mutation;
use super::queue::{MILLISECOND, Micros, Queue, SECOND};
use super::random::Random;
use super::store::{Answer, Ask, Store};
use super::trace::Trace;

mod agents;
mod coordinators;
mod deeds;
mod judge;
mod lines;

/// For so long after the last fault the fleet may need to find together again: a lease, attempts to connect, pauses
/// between them, and a command that was slow.
const SETTLING: Micros = 120 * SECOND;
/// No schedule has more events than this, or something goes round in circles.
const EVENTS_MAX: u64 = 400_000;

/// Something that happens.
enum Event {
    /// A hello arrives at a coordinator.
    Arrive { line: usize, is_late: bool, hello: Box<rpc::Hello> },
    /// A frame arrives at a coordinator.
    Up { line: usize, is_late: bool, frame: Box<rpc::AgentFrame> },
    /// The end of an agent's stream arrives.
    UpEnd { line: usize, is_late: bool },
    /// A frame arrives at an agent.
    Down { line: usize, is_late: bool, frame: Box<rpc::CoordinatorFrame> },
    /// The end of a coordinator's stream arrives.
    DownEnd { line: usize, is_late: bool, why: &'static str },
    /// Somebody notices that a connection is broken.
    Notice { line: usize, side: Side },
    /// An agent has waited for something.
    Alarm { host: usize, life: u64, stamp: u64, alarm: Alarm },
    /// An agent's worker has done something.
    Work { host: usize, life: u64, stamp: u64 },
    /// What an agent has uploaded becomes durable, if the agent still runs.
    Durable { host: usize, life: u64, blob: usize },
    /// A coordinator's heartbeat.
    Tick(Owner),
    /// A run looks up.
    Wake(Owner),
    /// A request arrives at the store.
    Ask { owner: Owner, ask: Ask, slot: Slot },
    /// Its answer arrives at the coordinator.
    Answer { owner: Owner, slot: Slot, answer: Answer },
    /// A process is started.
    StartAgent(usize),
    /// A process is started.
    StartCoordinator(usize),
    /// An operator looks whether a point should be taken.
    Operator,
    /// Something is done.
    Do(Deed),
    /// Nothing fails any more.
    Quiet,
    /// All must be well again.
    Settled,
    /// The schedule is over.
    Over,
}

/// How far the schedule is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Things fail.
    Faults,
    /// Nothing fails any more.
    Quiet,
    /// All must be well: the last point is begun as soon as no other is under way.
    Settled,
    /// The last point is under way.
    Last,
    /// It has ended.
    Over,
}

/// What came of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Stands for all that has happened.
    pub hash: u64,
    /// How often what has happened.
    pub tally: BTreeMap<&'static str, u64>,
    /// What must not be, if anything.
    pub complaint: Option<String>,
}

impl Course {
    /// Both together, but for what only one can have.
    pub fn with(mut self, other: &Self) -> Self {
        for (what, often) in &other.tally {
            *self.tally.entry(what).or_default() += often;
        }
        self
    }

    /// How often something has happened.
    pub fn count(&self, what: &str) -> u64 {
        self.tally.get(what).copied().unwrap_or(0)
    }
}

/// The world.
pub struct World {
    plan: Plan,
    often: Often,
    paces: Paces,
    mutation: Option<Mutation>,
    part: Part,
    random: Random,
    queue: Queue<Event>,
    board: Rc<RefCell<Board>>,
    /// What time it is.
    now: Micros,
    /// What time it would be by the clock that [`crate::service::fleet`] knows.
    epoch: Instant,
    cluster: Cluster,
    store: Store,
    hosts: Vec<Host>,
    coordinators: Vec<Coordinator>,
    lines: Vec<Line>,
    disturbances: Vec<(When, Deed)>,
    /// Counts what agents have done.
    commands: u64,
    /// Counts requests to the store.
    requests: u64,
    /// Counts what is looked at or pinned.
    moments: u64,
    last_run_ended: Micros,
    trace: Trace,
    complaints: Vec<String>,
}

impl World {
    /// The world of a seed, with something wrong or not; told, if somebody wants to read it.
    pub fn new(seed: u64, mutation: Option<Mutation>, is_told: bool) -> Self {
        let mut random = Random::new(seed);
        let mut plan = Plan::new(&mut random);
        let cluster = Cluster::new(plan.nodes, &mut random);
        let hosts = cluster.nodes().iter().map(|node_id| Host::new(cluster.facts(*node_id))).collect();
        let coordinators = (0..plan.coordinators).map(|_| Coordinator::default()).collect();
        let often = std::mem::replace(&mut plan.often, Often::never());
        if is_told {
            println!("{plan:#?}\n{often:#?}");
        }
        let (command, piece) = (plan.command, plan.piece);
        let paces = Paces { command, piece, slow_command: often.slow_command, slow_piece: often.slow_piece };
        Self {
            disturbances: std::mem::take(&mut plan.disturbances),
            plan,
            often,
            paces,
            mutation,
            part: Part::Faults,
            random,
            queue: Queue::default(),
            board: Rc::default(),
            now: 0,
            epoch: Instant::now(),
            cluster,
            store: Store::default(),
            hosts,
            coordinators,
            lines: Vec::new(),
            commands: 0,
            requests: 0,
            moments: 0,
            last_run_ended: 0,
            trace: Trace::new(is_told),
            complaints: Vec::new(),
        }
    }

    /// Lets everything happen, until the end or until something is as it must not be.
    pub fn run(mut self) -> Course {
        for coordinator in 0..self.coordinators.len() {
            self.arrange(self.now, Event::StartCoordinator(coordinator));
        }
        for host in 0..self.hosts.len() {
            let at = self.random.below(SECOND);
            self.arrange(at, Event::StartAgent(host));
        }
        self.arrange(SECOND, Event::Operator);
        self.arrange(self.plan.quiet_from, Event::Quiet);
        for (when, deed) in std::mem::take(&mut self.disturbances) {
            match when {
                When::At(at) => self.arrange(at, Event::Do(deed)),
                _ => self.disturbances.push((when, deed)),
            }
        }
        while self.complaints.is_empty() {
            let Some((at, event)) = self.queue.pop() else {
                self.complain("nothing happens any more".to_owned());
                break;
            };
            self.now = at;
            self.board.borrow_mut().now = at;
            if matches!(event, Event::Over) {
                self.check_end();
                break;
            }
            self.happen(event);
            self.take_up_wishes();
            self.judge();
        }
        Course {
            hash: self.trace.hash(),
            tally: self.trace.tally().clone(),
            complaint: self.complaints.into_iter().next(),
        }
    }

    fn arrange(&mut self, at: Micros, event: Event) {
        self.queue.push(at, event);
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn complain(&mut self, complaint: String) {
        self.note("COMPLAINT", [0; 2], || complaint.clone());
        self.complaints.push(complaint);
    }

    fn note(&mut self, what: &'static str, numbers: [u64; 2], text: impl FnOnce() -> String) {
        self.trace.note(self.now, what, numbers, text);
    }

    /// The same time by the clock that seats are judged by.
    fn instant(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now)
    }

    /// How long a frame or a request is under way.
    fn latency(&mut self) -> Micros {
        let latency = self.random.about(self.plan.latency);
        if self.random.per_mille(self.often.delayed) { latency * 100 } else { latency }
    }

    /// Carries an event out, unless whom it concerns stands still: then it waits.
    fn happen(&mut self, event: Event) {
        let paused_until = self.paused_until(&event);
        if paused_until > self.now {
            // Who wakes up finds frames in their order, and alarms among them somewhere.
            let after = if matches!(event, Event::Alarm { .. }) { self.random.below(MILLISECOND) } else { 0 };
            return self.arrange(paused_until + after, event);
        }
        match event {
            Event::Arrive { line, is_late, hello } => {
                if self.gets_through(line, is_late, |is_late| Event::Arrive { line, is_late, hello: hello.clone() }) {
                    self.arrive(line, *hello);
                }
            }
            Event::Up { line, is_late, frame } => {
                if self.gets_through(line, is_late, |is_late| Event::Up { line, is_late, frame: frame.clone() }) {
                    self.frame_up(line, *frame);
                }
            }
            Event::UpEnd { line, is_late } => {
                if self.gets_through(line, is_late, |is_late| Event::UpEnd { line, is_late }) {
                    self.end_up(line, "the agent hung up");
                }
            }
            Event::Down { line, is_late, frame } => {
                if self.gets_through(line, is_late, |is_late| Event::Down { line, is_late, frame: frame.clone() }) {
                    self.frame_down(line, *frame);
                }
            }
            Event::DownEnd { line, is_late, why } => {
                if self.gets_through(line, is_late, |is_late| Event::DownEnd { line, is_late, why }) {
                    self.end_down(line, why);
                }
            }
            Event::Notice { line, side: Side::Agent } => self.end_down(line, "the connection is broken"),
            Event::Notice { line, side: Side::Coordinator } => self.end_up(line, "the connection is broken"),
            Event::Alarm { host, life, stamp, alarm } => self.alarm(host, life, stamp, alarm),
            Event::Work { host, life, stamp } => self.work(host, life, stamp),
            Event::Durable { host, life, blob } => self.make_durable(host, life, blob),
            Event::Tick(owner) => self.tick(owner),
            Event::Wake(owner) => self.wake(owner),
            Event::Ask { owner, ask, slot } => self.ask(owner, ask, slot),
            Event::Answer { owner, slot, answer } => self.answer(owner, &slot, answer),
            Event::StartAgent(host) => self.start_agent(host),
            Event::StartCoordinator(coordinator) => self.start_coordinator(coordinator),
            Event::Operator => self.operate(),
            Event::Do(deed) => self.perform(deed, None, None),
            Event::Quiet => self.calm_down(),
            Event::Settled => {
                self.part = Part::Settled;
                self.note("SETTLED", [0; 2], String::new);
                self.begin_last();
            }
            Event::Over => unreachable!("the loop ends before"),
        }
    }

    /// Until when the process stands still that an event concerns.
    fn paused_until(&self, event: &Event) -> Micros {
        match event {
            Event::Arrive { line, .. }
            | Event::Up { line, .. }
            | Event::UpEnd { line, .. }
            | Event::Notice { line, side: Side::Coordinator } => {
                self.coordinators[self.lines[*line].coordinator].paused_until
            }
            Event::Tick(owner) | Event::Wake(owner) | Event::Answer { owner, .. } => {
                self.coordinators[owner.coordinator].paused_until
            }
            Event::Down { line, .. } | Event::DownEnd { line, .. } | Event::Notice { line, side: Side::Agent } => {
                self.hosts[self.lines[*line].host].paused_until
            }
            Event::Alarm { host, .. } | Event::Work { host, .. } | Event::Durable { host, .. } => {
                self.hosts[*host].paused_until
            }
            _ => 0,
        }
    }

    fn take_up_wishes(&mut self) {
        let Board { wishes, begun, complaints, .. } = {
            let now = self.now;
            std::mem::replace(&mut *self.board.borrow_mut(), Board { now, ..Board::default() })
        };
        complaints.into_iter().for_each(|complaint| self.complain(complaint));
        for number in begun {
            self.store.begin(number);
        }
        for wish in wishes {
            match wish {
                Wish::Wake(owner, at) => self.arrange(at, Event::Wake(owner)),
                Wish::Ask(owner, ask, slot) => {
                    let at = self.now + self.latency();
                    self.arrange(at, Event::Ask { owner, ask, slot });
                }
            }
        }
    }
}
