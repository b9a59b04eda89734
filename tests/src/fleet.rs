//! A coordinator (or two) and an agent per node as processes of their own, as a fleet runs them, to be killed and started
//! again.

use crate::{
    Cluster, PATIENCE, Result,
    cluster::segvault_binary,
    network::{Coordinator, Network},
    segvault::{Ended, Segvault},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Silence is noticed fast, so that tests need not wait for it.
pub const HEARTBEAT_MS: u32 = 300;
/// And the lease is short.
pub const LEASE_MS: u32 = 2500;

/// The daemons of a cluster.
pub struct Fleet<'a> {
    cluster: &'a Cluster,
    segvault: &'a Segvault,
    /// Logs and certificates.
    dir: PathBuf,
    coordinators: [Option<Daemon>; 2],
    agents: BTreeMap<i32, Daemon>,
    /// Last, as it ends after the daemons.
    network: Network,
}

/// A process that dies with this object.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // A stopped process dies as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Fleet<'a> {
    /// The network of a fleet; nothing runs yet. Coordinators use `segvault`.
    pub fn new(cluster: &'a Cluster, segvault: &'a Segvault) -> Result<Self> {
        let dir = cluster.scratch().join("fleet");
        fs::create_dir_all(&dir)?;
        let network = Network::new(cluster, &dir)?;
        Ok(Self { cluster, segvault, dir, coordinators: [None, None], agents: BTreeMap::new(), network })
    }

    /// Starts a coordinator and an agent for every node, and waits until all are connected.
    pub fn start(cluster: &'a Cluster, segvault: &'a Segvault) -> Result<Self> {
        let mut fleet = Self::new(cluster, segvault)?;
        fleet.start_coordinator()?;
        for node in cluster.nodes() {
            fleet.start_agent(node)?;
        }
        fleet.wait_for_agents()?;
        Ok(fleet)
    }

    /// The cluster that it serves.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// How long silence is borne.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(LEASE_MS.into())
    }

    /// Starts the coordinator.
    pub fn start_coordinator(&mut self) -> Result<()> {
        self.start_coordinator_at(Coordinator::First)
    }

    /// Starts one of two coordinators.
    pub fn start_coordinator_at(&mut self, which: Coordinator) -> Result<()> {
        let (heartbeat, lease) = (HEARTBEAT_MS.to_string(), LEASE_MS.to_string());
        let listen = self.network.listen(which);
        let args = ["coordinator", "--listen", &listen, "-v", "--barrier-deadline-ms", "20000"];
        let more = ["--heartbeat-ms", &heartbeat, "--lease-ms", &lease];
        let mut command = self.segvault.command(&[&args[..], &more[..]].concat());
        command.args(self.network.security("coordinator"));
        self.coordinators[which as usize] = Some(self.spawn(name_of(which), command)?);
        Ok(())
    }

    /// Starts a node's agent.
    pub fn start_agent(&mut self, node: i32) -> Result<()> {
        self.start_agent_with(node, self.segvault, &[Coordinator::First])
    }

    /// Starts a node's agent that uses `segvault`, and tries the coordinators in this order.
    pub fn start_agent_with(&mut self, node: i32, segvault: &Segvault, coordinators: &[Coordinator]) -> Result<()> {
        let config = self.cluster.properties_file(node).display().to_string();
        let id = self.cluster.id();
        let mut command = segvault.command(&["agent", "--broker-config", &config, "--cluster-id", id, "-v"]);
        for which in coordinators {
            command.args(["--coordinator", &self.network.address_from(node, *which)]);
        }
        command.args(self.network.security(&format!("agent-{node}")));
        let daemon = self.spawn(&format!("agent-{node}"), self.network.on_host(node, command))?;
        self.agents.insert(node, daemon);
        Ok(())
    }

    fn spawn(&self, name: &str, mut command: Command) -> Result<Daemon> {
        let log = File::options().create(true).append(true).open(self.log(name))?;
        Ok(Daemon(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?))
    }

    /// Where a daemon logs: `coordinator`, `coordinator-2` or `agent-NODE`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// SIGKILL to the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.kill_coordinator_at(Coordinator::First);
    }

    /// SIGKILL to one of two coordinators.
    pub fn kill_coordinator_at(&mut self, which: Coordinator) {
        self.coordinators[which as usize] = None;
    }

    /// SIGKILL to a node's agent.
    pub fn kill_agent(&mut self, node: i32) {
        self.agents.remove(&node);
    }

    /// SIGTERM to a node's agent; its exit code.
    pub fn stop_agent(&mut self, node: i32) -> Result<Option<i32>> {
        let mut daemon = self.agents.remove(&node).ok_or("there is no such agent")?;
        kill(pid(&daemon)?, Signal::SIGTERM)?;
        Ok(daemon.0.wait()?.code())
    }

    /// A signal to a node's agent (SIGSTOP, SIGCONT).
    pub fn signal_agent(&self, node: i32, signal: Signal) -> Result<()> {
        Ok(kill(pid(self.agents.get(&node).ok_or("there is no such agent")?)?, signal)?)
    }

    /// A signal to the coordinator.
    pub fn signal_coordinator(&self, signal: Signal) -> Result<()> {
        Ok(kill(pid(self.coordinators[0].as_ref().ok_or("there is no coordinator")?)?, signal)?)
    }

    /// The network, for cutting cables.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Runs a verb that asks the coordinator.
    pub fn ask(&self, args: &[&str]) -> Result<Ended> {
        self.ask_at(Coordinator::First, args)
    }

    /// Runs a verb that asks one of two coordinators.
    pub fn ask_at(&self, which: Coordinator, args: &[&str]) -> Result<Ended> {
        Ok(self.command(which, args).output()?.into())
    }

    /// Starts a verb that asks the coordinator.
    pub fn spawn_asking(&self, args: &[&str]) -> Result<Child> {
        self.spawn_asking_at(Coordinator::First, args)
    }

    /// Starts a verb that asks one of two coordinators.
    pub fn spawn_asking_at(&self, which: Coordinator, args: &[&str]) -> Result<Child> {
        Ok(self.command(which, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    fn command(&self, which: Coordinator, args: &[&str]) -> Command {
        let mut command = Command::new(segvault_binary());
        command.args(args).args(["--coordinator", &self.network.address(which), "--json"]).stdin(Stdio::null());
        command.args(self.network.security("operator-test"));
        command
    }

    /// What `segvault status` says of the only cluster.
    pub fn status(&self) -> Result<Value> {
        self.status_at(Coordinator::First)
    }

    /// What `segvault status` of one of two coordinators says of the only cluster.
    pub fn status_at(&self, which: Coordinator) -> Result<Value> {
        let status = self.ask_at(which, &["status"])?.ok()?;
        Ok(status["clusters"][0].clone())
    }

    /// Nodes whose agents are connected to a coordinator; none if it does not answer.
    pub fn connected_at(&self, which: Coordinator) -> Vec<i64> {
        let Ok(status) = self.status_at(which) else { return Vec::new() };
        let agents = status["agents"].as_array().into_iter().flatten();
        agents.filter(|agent| agent["connected"] == true).filter_map(|agent| agent["node_id"].as_i64()).collect()
    }

    /// Waits until the agents of all nodes that have one are connected.
    pub fn wait_for_agents(&self) -> Result<()> {
        self.wait_for_agents_at(Coordinator::First)
    }

    /// Waits until the agents of all nodes that have one are connected to this coordinator.
    pub fn wait_for_agents_at(&self, which: Coordinator) -> Result<()> {
        self.wait_for("all agents are connected", || {
            let nodes = self.connected_at(which);
            self.agents.keys().all(|node| nodes.contains(&i64::from(*node)))
        })
    }

    /// How long a daemon's log is by now, for [`wait_for_line`](Self::wait_for_line).
    pub fn log_len(&self, name: &str) -> Result<u64> {
        Ok(fs::metadata(self.log(name))?.len())
    }

    /// Waits until a daemon logs a line with all of `words`, behind the first `from` bytes of its log. Looks so often that
    /// the caller is there within milliseconds.
    pub fn wait_for_line(&self, name: &str, from: u64, words: &[&str]) -> Result<()> {
        let began = Instant::now();
        let mut file = File::open(self.log(name))?;
        loop {
            let mut text = String::new();
            file.seek(SeekFrom::Start(from))?;
            file.read_to_string(&mut text)?;
            if text.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("waited in vain until {name} says {words:?}\n{}", self.log_ends()?).into());
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// Waits until something is so; a failure shows the end of every log.
    pub fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        while !is_so() {
            if began.elapsed() > PATIENCE {
                return Err(format!("waited in vain until {what}\n{}", self.log_ends()?).into());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The last lines of every daemon's log.
    pub fn log_ends(&self) -> Result<String> {
        let mut text = String::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "log") {
                continue;
            }
            let log = fs::read_to_string(&path)?;
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            text += &format!("--- {}\n{}\n", path.display(), tail.join("\n"));
        }
        Ok(text)
    }

    /// Files pinned for points, on all nodes: what lies in the staging folders beside the log dirs.
    pub fn pins(&self) -> Result<usize> {
        let mut count = 0;
        for node in self.cluster.nodes() {
            for dir in self.cluster.log_dirs(node)? {
                count += pins_beside(&dir)?;
            }
        }
        Ok(count)
    }
}

/// Files in the staging folder of a log dir, but for the agent's own: lock, cache, and journal.
fn pins_beside(log_dir: &Path) -> Result<usize> {
    let mut count = 0;
    let parent = log_dir.parent().ok_or("a log dir has a parent")?;
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(".segvault") && path.is_dir() {
            count += files_below(&path)?;
        }
    }
    Ok(count)
}

fn files_below(dir: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        count += match entry.file_type()?.is_dir() {
            true => files_below(&entry.path())?,
            false => {
                usize::from(!["lock", "cache", "journal"].iter().any(|own| name.to_string_lossy().starts_with(own)))
            }
        };
    }
    Ok(count)
}

/// How a verb that was started has ended. One that has not within `limit` is killed, and an error.
pub fn wait_for_end(mut child: Child, limit: Duration) -> Result<Ended> {
    let began = Instant::now();
    while child.try_wait()?.is_none() {
        if began.elapsed() > limit {
            let _ = child.kill();
            return Err(format!("what was asked for has not ended within {limit:?}").into());
        }
        sleep(Duration::from_millis(20));
    }
    Ok(child.wait_with_output()?.into())
}

/// The stem of a coordinator's log.
fn name_of(which: Coordinator) -> &'static str {
    match which {
        Coordinator::First => "coordinator",
        Coordinator::Second => "coordinator-2",
    }
}

fn pid(daemon: &Daemon) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(daemon.0.id())?))
}
