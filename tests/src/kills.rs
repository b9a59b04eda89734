//! Random kills of a fleet's services while restore points are taken.
//!
//! Each round begins a point, does a deed at a random moment of it, and waits for the end: a committed point, or a clean
//! abort with a reason. Then whoever was killed is started again, and it must hold that no pin is left, that no point
//! is undecided, and that the next point is complete. The seed tells everything but the moments that the machine adds.

use crate::{
    PATIENCE, Result,
    fleet::{Fleet, wait_for_end},
    ledger::Ledger,
    segvault::{Ended, Segvault},
    workload::mix,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt, fs,
    thread::sleep,
    time::{Duration, Instant},
};

/// What is done to a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// Nothing, to know how long a point takes.
    Nothing,
    /// SIGKILL to an agent.
    KillAgent(i32),
    /// SIGKILL to an agent, and another process of it at once.
    RestartAgent(i32),
    /// SIGTERM to an agent.
    StopAgent(i32),
    /// SIGSTOP to an agent, for longer than the lease.
    PauseAgent(i32),
    /// SIGKILL to all agents.
    KillAllAgents,
    /// SIGKILL to the coordinator, and another process of it at once.
    RestartCoordinator,
    /// SIGSTOP to the coordinator, for longer than the lease.
    PauseCoordinator,
    /// SIGKILL to a broker.
    KillBroker(i32),
    /// An agent's cable is cut for less than the lease.
    CutShort(i32),
    /// An agent's cable is cut until the point has ended.
    CutLong(i32),
    /// All cables are cut for longer than the lease: the coordinator is alone.
    CutAll,
    /// The vault's folder is away for two seconds.
    HideVault,
    /// An operator cancels.
    Cancel,
}

/// What came of a round.
#[derive(Debug)]
pub struct Round {
    /// The number of the ledger's marks when the point began.
    pub marks: usize,
    /// The committed point, if there is one.
    pub point: Option<u64>,
    /// Whether it covers everything: a topic with one replica is lost with its broker's agent.
    pub is_complete: bool,
    /// Why there is none.
    reason: String,
}

/// What came of all rounds.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<&'static str, [usize; 2]>);

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {:20} {:>9} {:>9}", "", "committed", "aborted")?;
        for (deed, [aborted, committed]) in &self.0 {
            writeln!(f, "  {deed:20} {committed:>9} {aborted:>9}")?;
        }
        Ok(())
    }
}

impl Deed {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::KillAgent(_) => "kill an agent",
            Self::RestartAgent(_) => "restart an agent",
            Self::StopAgent(_) => "stop an agent",
            Self::PauseAgent(_) => "pause an agent",
            Self::KillAllAgents => "kill all agents",
            Self::RestartCoordinator => "restart coordinator",
            Self::PauseCoordinator => "pause coordinator",
            Self::KillBroker(_) => "kill a broker",
            Self::CutShort(_) => "cut for a moment",
            Self::CutLong(_) => "cut",
            Self::CutAll => "cut all",
            Self::HideVault => "hide the vault",
            Self::Cancel => "cancel",
        }
    }

    /// One of them; `number` says which. Cables cannot always be cut.
    fn nth(number: u64, node: i32, has_cables: bool) -> Self {
        match number % if has_cables { 17 } else { 12 } {
            12 | 13 => Self::CutShort(node),
            14 | 15 => Self::CutLong(node),
            16 => Self::CutAll,
            0 | 1 => Self::KillAgent(node),
            2 => Self::RestartAgent(node),
            3 => Self::StopAgent(node),
            4 => Self::PauseAgent(node),
            5 => Self::KillAllAgents,
            6 | 7 => Self::RestartCoordinator,
            8 => Self::PauseCoordinator,
            9 => Self::KillBroker(node),
            10 => Self::HideVault,
            _ => Self::Cancel,
        }
    }
}

/// Plays rounds; an error says which round broke what, and the seed.
pub fn play(
    fleet: &mut Fleet<'_>,
    segvault: &Segvault,
    ledger: &Ledger,
    rounds: usize,
    seed: u64,
) -> Result<(Vec<Round>, Tally)> {
    let nodes = fleet.cluster().nodes();
    let mut results = Vec::new();
    let mut tally = Tally::default();
    let began = Instant::now();
    let mut usual = Duration::ZERO;
    for round in 0..rounds as u64 {
        let random = |what: u64| mix(seed ^ mix(round * 16 + what));
        let node = nodes[usize::try_from(random(1) % nodes.len() as u64)?];
        let deed = if round == 0 { Deed::Nothing } else { Deed::nth(random(2), node, fleet.network().has_cables()) };
        let delay = usual * u32::try_from(random(3) % 120)? / 100;
        let played = play_one(fleet, segvault, ledger, deed, delay);
        let done = played.map_err(|error| {
            let logs = fleet.log_ends().unwrap_or_default();
            format!("seed {seed}, round {round}, {deed:?} after {delay:?}: {error}\n{logs}")
        })?;
        let at = began.elapsed().as_secs();
        let outcome = done.point.map_or_else(|| done.reason.clone(), |point| format!("point {point}"));
        println!("  [{at:3} s] {round:3} {deed:?} after {delay:?}: {outcome}");
        tally.0.entry(deed.name()).or_default()[usize::from(done.point.is_some())] += 1;
        if round == 0 {
            usual = began.elapsed() / 2; // It took a second point to see that the next one works.
        }
        results.push(done);
    }
    Ok((results, tally))
}

fn play_one(fleet: &mut Fleet<'_>, segvault: &Segvault, ledger: &Ledger, deed: Deed, delay: Duration) -> Result<Round> {
    ledger.mark("point");
    let marks = ledger.history()?.marks.len();
    let child = fleet.spawn_asking(&["snapshot", "create"])?;
    sleep(delay);
    let hidden = segvault.vault_dir().with_extension("hidden");
    match deed {
        Deed::Nothing => {}
        Deed::KillAgent(node) => fleet.kill_agent(node),
        Deed::RestartAgent(node) => {
            fleet.kill_agent(node);
            fleet.start_agent(node)?;
        }
        Deed::StopAgent(node) => {
            let code = fleet.stop_agent(node)?;
            if code != Some(0) {
                return Err(format!("the agent ended with {code:?} on SIGTERM").into());
            }
        }
        Deed::PauseAgent(node) => fleet.signal_agent(node, Signal::SIGSTOP)?,
        Deed::KillAllAgents => fleet.cluster().nodes().into_iter().for_each(|node| fleet.kill_agent(node)),
        Deed::RestartCoordinator => {
            fleet.kill_coordinator();
            fleet.start_coordinator()?;
        }
        Deed::PauseCoordinator => {
            fleet.signal_coordinator(Signal::SIGSTOP)?;
            sleep(2 * fleet.lease());
            fleet.signal_coordinator(Signal::SIGCONT)?;
        }
        Deed::KillBroker(node) => fleet.cluster().kill9_nodes(&[node])?,
        Deed::CutShort(node) => {
            fleet.network().set_cable(node, false)?;
            sleep(fleet.lease() / 2);
            fleet.network().set_cable(node, true)?;
        }
        Deed::CutLong(node) => fleet.network().set_cable(node, false)?,
        Deed::CutAll => {
            let nodes = fleet.cluster().nodes();
            nodes.iter().try_for_each(|node| fleet.network().set_cable(*node, false))?;
            sleep(2 * fleet.lease());
            nodes.iter().try_for_each(|node| fleet.network().set_cable(*node, true))?;
        }
        Deed::HideVault => {
            fs::rename(segvault.vault_dir(), &hidden)?;
            sleep(Duration::from_secs(2));
            // Whoever wanted to write meanwhile may have made some of its folders anew.
            let _ = fs::remove_dir_all(segvault.vault_dir());
            fs::rename(&hidden, segvault.vault_dir())?;
        }
        Deed::Cancel => drop(fleet.ask(&["snapshot", "cancel", "--reason", "a test"])?),
    }
    let Ended { code, json, stderr: said } = wait_for_end(child, PATIENCE)?;
    match deed {
        Deed::PauseAgent(node) => fleet.signal_agent(node, Signal::SIGCONT)?,
        Deed::KillAgent(node) | Deed::StopAgent(node) => fleet.start_agent(node)?,
        Deed::KillAllAgents => {
            for node in fleet.cluster().nodes() {
                fleet.start_agent(node)?;
            }
        }
        Deed::KillBroker(node) => fleet.cluster().start_nodes(&[node])?,
        Deed::CutLong(node) => fleet.network().set_cable(node, true)?,
        _ => {}
    }
    if code == 1 && said.trim().is_empty() {
        return Err("the point failed without a reason".into());
    }
    if ![0, 1, 3].contains(&code) {
        return Err(format!("exit code {code}: {said}").into());
    }
    fleet.wait_for_agents()?;
    fleet.wait_for("no pin is left", || fleet.pins().is_ok_and(|pins| pins == 0))?;
    // What was under way when the operator's connection broke may still end well.
    fleet.wait_for("nothing is under way", || fleet.status().is_ok_and(|status| status["running"].is_null()))?;
    ledger.mark("point");
    let next = fleet.ask(&["snapshot", "create"])?;
    if next.code != 0 || next.json["level"] != "L3" {
        return Err(format!("the next point is not as it should be: {next:?}").into());
    }
    let points = segvault.run(&["snapshot", "list"])?.ok()?;
    let undecided: Vec<&Value> =
        points["points"].as_array().into_iter().flatten().filter(|point| point["state"] == "undecided").collect();
    if !undecided.is_empty() {
        return Err(format!("points are undecided: {undecided:?}").into());
    }
    let point = json["number"].as_u64().filter(|_| code != 1);
    let reason = said.lines().next().unwrap_or_default().to_owned();
    Ok(Round { marks, point, is_complete: code == 0, reason })
}
