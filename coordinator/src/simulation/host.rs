//! A host with an agent: its process, which may be killed, and the pins on its disk, which outlive it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use segvault_proto::{Command, NodeFacts, Report};

use super::agent::{Agent, Here, Piece, Pin, Uploaded};
use super::mutation::Mutation;
use super::queue::{MILLISECOND, Micros, SECOND};
use super::random::Random;
use super::session::{Session, Ticket};

/// A command that is slow takes up to so long, and so does an upload of a partition.
const SLOW: Micros = 30 * SECOND;

/// A host.
pub struct Host {
    /// Its node.
    pub facts: NodeFacts,
    /// Its agent, while it runs.
    pub process: Option<Process>,
    /// Counts its processes.
    pub lives: u64,
    /// Pins of a process that was killed.
    pub orphans: Vec<Pin>,
    /// Until then the process stands still.
    pub paused_until: Micros,
    /// Until then nothing gets in or out.
    pub isolated_until: Micros,
}

/// An agent's process.
pub struct Process {
    /// Which of the host's processes it is.
    pub life: u64,
    /// Its session.
    pub session: Session,
    /// Its worker.
    pub worker: Worker,
    /// Reports that the session has not taken yet.
    pub reports: VecDeque<(Ticket, Report)>,
}

impl Host {
    /// A host without a process.
    pub fn new(facts: NodeFacts) -> Self {
        Self { facts, process: None, lives: 0, orphans: Vec::new(), paused_until: 0, isolated_until: 0 }
    }

    /// Starts a process; what one before it has left is removed.
    pub fn start(&mut self, mutation: Option<Mutation>, incarnation: [u8; 16], now: Micros) {
        self.lives += 1;
        if mutation != Some(Mutation::OrphansStay) {
            self.orphans.clear();
        }
        self.process = Some(Process {
            life: self.lives,
            session: Session::new(self.facts.clone(), mutation, incarnation, now),
            worker: Worker::new(self.facts.node_id),
            reports: VecDeque::new(),
        });
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            self.orphans.extend(process.worker.agent.pins());
        }
    }

    /// All pins on its disk.
    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        let held = self.process.iter().flat_map(|process| process.worker.agent.pins());
        held.chain(&self.orphans)
    }
}

/// The thread that does the work: one command after the other.
pub struct Worker {
    /// The agent that it owns.
    pub agent: Agent,
    jobs: VecDeque<Job>,
    busy: Option<Busy>,
    /// Of the last upload that was handed over.
    upload: Option<Rc<Cell<bool>>>,
    /// Counts its steps; one that was put off is of no interest.
    pub stamp: u64,
}

struct Job {
    ticket: Ticket,
    command: Command,
    cancelled: Rc<Cell<bool>>,
}

/// What the worker is at.
enum Busy {
    /// A command.
    Command(Job),
    /// An upload.
    Upload { ticket: Ticket, pieces: Vec<Piece>, cancelled: Rc<Cell<bool>> },
}

/// What a step of the worker has led to.
#[derive(Default)]
pub struct Step {
    /// Reports.
    pub said: Vec<(Ticket, Report)>,
    /// A blob that is not durable, though it was said.
    pub early: Option<usize>,
}

impl Worker {
    fn new(node_id: i32) -> Self {
        Self { agent: Agent::new(node_id), jobs: VecDeque::new(), busy: None, upload: None, stamp: 0 }
    }

    /// Hands a command over; whatever comes after an upload means that the upload is not wanted any more. Returns when
    /// the next step is to be done, if that has changed.
    pub fn hand_over(
        &mut self,
        ticket: Ticket,
        command: Command,
        paces: &Paces,
        random: &mut Random,
    ) -> Option<Micros> {
        let was_cancelled = self.upload.take().is_some_and(|upload| !upload.replace(true));
        let cancelled = Rc::new(Cell::new(false));
        if matches!(command, Command::Upload { .. }) {
            self.upload = Some(cancelled.clone());
        }
        self.jobs.push_back(Job { ticket, command, cancelled });
        match self.busy {
            None => self.next(paces, random),
            Some(Busy::Upload { .. }) if was_cancelled => Some(self.arrange(MILLISECOND)),
            Some(_) => None,
        }
    }

    /// Takes the next job; returns how long it takes.
    fn next(&mut self, paces: &Paces, random: &mut Random) -> Option<Micros> {
        self.busy = Some(Busy::Command(self.jobs.pop_front()?));
        let takes = paces.of_command(random);
        Some(self.arrange(takes))
    }

    fn arrange(&mut self, takes: Micros) -> Micros {
        self.stamp += 1;
        takes
    }

    /// Whether it has nothing to do.
    pub fn is_idle(&self) -> bool {
        self.busy.is_none()
    }

    /// The verb of the command at hand.
    pub fn verb(&self) -> &'static str {
        match &self.busy {
            Some(Busy::Command(job)) => job.command.name(),
            Some(Busy::Upload { .. }) => "a piece of an upload",
            None => "nothing",
        }
    }

    /// Does what is at hand; returns how long the next step takes, if there is one.
    pub fn step(&mut self, here: &mut Here<'_>, paces: &Paces) -> (Step, Option<Micros>) {
        let step = match self.busy.take() {
            Some(Busy::Command(Job { ticket, command: Command::Upload { orders, metadata }, cancelled })) => {
                match self.agent.begin_upload(orders, metadata.map(|order| order.copy)) {
                    Ok((pieces, said)) => {
                        self.busy = Some(Busy::Upload { ticket, pieces, cancelled });
                        Step { said: said.into_iter().map(|report| (ticket, report)).collect(), early: None }
                    }
                    Err(reason) => Step { said: vec![(ticket, self.agent.give_up(reason))], early: None },
                }
            }
            Some(Busy::Command(Job { ticket, command, .. })) => {
                Step { said: vec![(ticket, self.agent.answer(command, here))], early: None }
            }
            Some(Busy::Upload { ticket, pieces, cancelled }) => self.upload(ticket, pieces, cancelled, here),
            None => Step::default(),
        };
        let takes = match &self.busy {
            Some(Busy::Upload { cancelled, .. }) if cancelled.get() => Some(self.arrange(MILLISECOND)),
            Some(Busy::Upload { pieces, .. }) => {
                let takes = if pieces.is_empty() { MILLISECOND } else { paces.of_piece(here.random) };
                Some(self.arrange(takes))
            }
            _ => self.next(paces, here.random),
        };
        (step, takes)
    }

    fn upload(
        &mut self,
        ticket: Ticket,
        mut pieces: Vec<Piece>,
        cancelled: Rc<Cell<bool>>,
        here: &mut Here<'_>,
    ) -> Step {
        if cancelled.get() {
            return Step {
                said: vec![(ticket, self.agent.give_up("the upload was cancelled".to_owned()))],
                early: None,
            };
        }
        if pieces.is_empty() {
            return Step { said: vec![(ticket, Report::Uploaded)], early: None };
        }
        let piece = pieces.swap_remove(here.random.index(pieces.len()));
        let step = match self.agent.upload(piece, here) {
            Uploaded::Said(report) => Step { said: vec![(ticket, report)], early: None },
            Uploaded::Early(report, blob) => Step { said: vec![(ticket, report)], early: Some(blob) },
            Uploaded::Failed(reason) => {
                return Step { said: vec![(ticket, self.agent.give_up(reason))], early: None };
            }
        };
        self.busy = Some(Busy::Upload { ticket, pieces, cancelled });
        step
    }
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Paces {
    /// A command, typically.
    pub command: Micros,
    /// A partition's upload, typically.
    pub piece: Micros,
    /// How often a command is slow, of a thousand times.
    pub slow_command: u64,
    /// How often a partition's upload is slow, of a thousand times.
    pub slow_piece: u64,
}

impl Paces {
    fn of_command(&self, random: &mut Random) -> Micros {
        if random.per_mille(self.slow_command) { random.below(SLOW) } else { random.about(self.command) }
    }

    fn of_piece(&self, random: &mut Random) -> Micros {
        if random.per_mille(self.slow_piece) { random.below(SLOW) } else { random.about(self.piece) }
    }
}
