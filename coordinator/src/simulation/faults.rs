//! What goes wrong in a schedule: how fast everything is, how often what fails, and what is done to whom and when.
//!
//! All of it is drawn from the seed before anything happens. Half of the probabilities are 0 in each schedule, so that
//! rare faults are also seen where nothing else is wrong.

use super::queue::{MILLISECOND, Micros, SECOND};
use super::random::Random;

/// How a schedule goes.
#[derive(Debug)]
pub struct Plan {
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Coordinators; agents may dial each.
    pub coordinators: usize,
    /// Agents begin with different ones.
    pub is_spread: bool,
    /// How long an agent may take for a command of the barrier.
    pub barrier_deadline: Micros,
    /// Only closed segments are wanted.
    pub closed_only: bool,
    /// How long a frame or a request typically takes, one way.
    pub latency: Micros,
    /// How long a command typically takes.
    pub command: Micros,
    /// How long it typically takes to upload a partition.
    pub piece: Micros,
    /// Between two attempts of an operator to begin a point.
    pub operator: Micros,
    /// How often something fails.
    pub often: Often,
    /// What is done.
    pub disturbances: Vec<(When, Deed)>,
    /// From then on nothing fails any more.
    pub quiet_from: Micros,
}

/// How often something fails, of a thousand times.
#[derive(Debug)]
pub struct Often {
    /// A frame or a request takes a hundred times as long.
    pub delayed: u64,
    /// A command takes seconds.
    pub slow_command: u64,
    /// A partition takes seconds to upload.
    pub slow_piece: u64,
    /// A command fails.
    pub command_fails: u64,
    /// A replica cannot be read.
    pub unreadable: u64,
    /// The metadata of a node cannot be read.
    pub no_metadata: u64,
    /// A piece of an upload fails, and with it the upload.
    pub piece_fails: u64,
    /// A request to the store fails and has done nothing.
    pub request_fails: u64,
    /// A request to the store has done what it should, and its answer is lost.
    pub answer_lost: u64,
    /// The same, but the store's client tries again by itself.
    pub request_repeated: u64,
    /// A hello is lost.
    pub hello_lost: u64,
    /// An operator cancels a point, each time he looks.
    pub cancelled: u64,
}

/// When something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At a time.
    At(Micros),
    /// Just before an agent carries out its share of so many commands.
    Command(u64),
    /// When so many requests have come to the store.
    Request(u64),
}

/// Something that is done to a fleet: to the agent or the coordinator that is just concerned, or to any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// An agent is killed, and started again after a while.
    KillAgent(Micros),
    /// An agent is stopped in order, and started again after a while.
    StopAgent(Micros),
    /// An agent stands still for a while.
    PauseAgent(Micros),
    /// An agent's connection breaks.
    Cut(Cut),
    /// An agent's host is cut off for a while.
    Isolate(Micros, Cut),
    /// A coordinator is killed, and started again after a while.
    KillCoordinator(Micros),
    /// A coordinator stands still for a while.
    PauseCoordinator(Micros),
    /// An operator cancels.
    Cancel,
    /// An operator begins a point at each coordinator.
    Begin,
}

impl Deed {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillAgent(_) => "KILL AGENT",
            Self::StopAgent(_) => "STOP AGENT",
            Self::PauseAgent(_) => "PAUSE AGENT",
            Self::Cut(_) => "CUT",
            Self::Isolate(..) => "ISOLATE",
            Self::KillCoordinator(_) => "KILL COORD.",
            Self::PauseCoordinator(_) => "PAUSE COORD.",
            Self::Cancel => "CANCEL",
            Self::Begin => "BEGIN",
        }
    }
}

/// How a connection breaks. What is under way vanishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// When the agent notices, if by itself.
    pub agent_notices: Option<Micros>,
    /// When the coordinator notices, if by itself.
    pub coordinator_notices: Option<Micros>,
    /// Or it does not vanish but arrives so much later.
    pub late: Option<Micros>,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(random: &mut Random) -> Self {
        // Long enough, every other time, for somebody to be away for longer than a lease.
        let quiet_from = random.within(5 * SECOND..40 * SECOND) + if random.coin() { 50 * SECOND } else { 0 };
        let count = random.below(9);
        Self {
            nodes: 3 + random.index(2),
            coordinators: 1 + random.index(2),
            is_spread: random.coin(),
            barrier_deadline: random.within(5 * SECOND..40 * SECOND),
            closed_only: random.per_mille(100),
            latency: random.scale(200..50 * MILLISECOND),
            command: random.scale(MILLISECOND..SECOND),
            piece: random.scale(10 * MILLISECOND..3 * SECOND),
            operator: random.within(3 * SECOND..30 * SECOND),
            often: Often::new(random),
            disturbances: (0..count).map(|_| (when(random, quiet_from), deed(random))).collect(),
            quiet_from,
        }
    }
}

impl Often {
    fn new(random: &mut Random) -> Self {
        let mut often = |most: u64| if random.coin() { 0 } else { random.below(most) };
        Self {
            delayed: often(60),
            slow_command: often(60),
            slow_piece: often(100),
            command_fails: often(20),
            unreadable: often(60),
            no_metadata: often(200),
            piece_fails: often(40),
            request_fails: often(60),
            answer_lost: often(60),
            request_repeated: often(100),
            hello_lost: often(300),
            cancelled: often(200),
        }
    }

    /// Nothing fails.
    pub fn never() -> Self {
        Self {
            delayed: 0,
            slow_command: 0,
            slow_piece: 0,
            command_fails: 0,
            unreadable: 0,
            no_metadata: 0,
            piece_fails: 0,
            request_fails: 0,
            answer_lost: 0,
            request_repeated: 0,
            hello_lost: 0,
            cancelled: 0,
        }
    }
}

fn when(random: &mut Random, end: Micros) -> When {
    match random.below(4) {
        0 => When::At(random.below(end)),
        1 => When::Request(random.scale(1..200)),
        _ => When::Command(random.scale(1..400)),
    }
}

fn deed(random: &mut Random) -> Deed {
    let down = if random.per_mille(300) {
        random.within(30 * SECOND..60 * SECOND)
    } else {
        random.scale(10 * MILLISECOND..30 * SECOND)
    };
    match random.below(12) {
        0 | 1 => Deed::KillAgent(down),
        2 => Deed::StopAgent(down),
        3 | 4 => Deed::PauseAgent(down),
        5 | 6 => Deed::Cut(cut(random)),
        7 => Deed::Isolate(down, cut(random)),
        8 => Deed::KillCoordinator(down),
        9 => Deed::PauseCoordinator(down),
        10 => Deed::Cancel,
        _ => Deed::Begin,
    }
}

fn cut(random: &mut Random) -> Cut {
    let mut notices = |of_four: u64| (random.below(4) < of_four).then(|| random.scale(MILLISECOND..20 * SECOND));
    Cut { agent_notices: notices(3), coordinator_notices: notices(3), late: notices(2) }
}
