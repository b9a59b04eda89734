//! A real Kafka cluster on loopback, started by `scripts/kafka`.
//!
//! The script ties the brokers' lives to this process, so they die with a test that is killed; a [`Cluster`] that is
//! dropped kills them itself. At most one cluster runs on the machine at a time (two make a small one crawl): starting
//! a second waits on a file lock, unless it is asked to run [beside](Builder::beside) the first.

use crate::{PATIENCE, Result, state::State};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
};
use serde::Deserialize;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The version that tests run unless they or `SEGVAULT_KAFKA_VERSION` say otherwise.
pub const DEFAULT_VERSION: &str = "4.1.1";

/// The repository's root.
pub fn project_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// The `segvault` binary of the profile under test: it lies beside the tests' own binaries.
pub fn segvault_binary() -> PathBuf {
    let own = std::env::current_exe().expect("a running program has a path");
    let dir = own.ancestors().find(|p| p.join("segvault").is_file());
    dir.unwrap_or_else(|| panic!("no segvault binary above {}: run `cargo build -p segvault-cli` first", own.display()))
        .join("segvault")
}

/// A running or stopped cluster.
pub struct Cluster {
    dir: PathBuf,
    description: Description,
    /// Present when this object made the folder and removes it.
    temporary: Option<TempDir>,
    /// Held while brokers of this object may run.
    _turn: Option<File>,
}

/// `cluster.json` as `scripts/kafka` writes it.
#[derive(Debug, Deserialize)]
struct Description {
    version: String,
    cluster_id: String,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: i32,
    /// The client port; controllers that stand apart have none.
    port: Option<u16>,
}

/// Says what kind of cluster to start; the defaults are three combined nodes with one log dir each and a static quorum.
#[derive(Debug, Clone)]
pub struct Builder {
    version: String,
    brokers: usize,
    log_dirs: usize,
    separate_controllers: usize,
    dynamic_quorum: bool,
    settings: Vec<(String, String)>,
    beside: bool,
}

impl Builder {
    /// Kafka's version, such as `3.9.1`.
    pub fn version(mut self, version: &str) -> Self {
        self.version = version.into();
        self
    }

    /// Number of brokers, with ids from 1.
    pub fn brokers(mut self, count: usize) -> Self {
        self.brokers = count;
        self
    }

    /// Log dirs per broker.
    pub fn log_dirs(mut self, count: usize) -> Self {
        self.log_dirs = count;
        self
    }

    /// Controllers that stand apart, with ids from 101.
    pub fn separate_controllers(mut self, count: usize) -> Self {
        self.separate_controllers = count;
        self
    }

    /// A dynamic (KIP-853) quorum in place of a static one; 3.9 and newer.
    pub fn dynamic_quorum(mut self) -> Self {
        self.dynamic_quorum = true;
        self
    }

    /// A line of every node's `server.properties`; `{node}` stands for the node's folder, `{id}` for its id.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.into(), value.to_string()));
        self
    }

    /// Does not wait for other clusters on this machine to end: for a second cluster in the same test.
    pub fn beside(mut self) -> Self {
        self.beside = true;
        self
    }

    /// Makes, formats and starts the cluster in a temporary folder, and waits until every broker answers.
    pub fn start(self) -> Result<Cluster> {
        self.make(true)
    }

    /// As [`start`](Self::start), but leaves the formatted nodes stopped.
    pub fn stopped(self) -> Result<Cluster> {
        self.make(false)
    }

    fn make(self, running: bool) -> Result<Cluster> {
        let turn = if self.beside { None } else { Some(take_turn()?) };
        let base = std::env::var_os("SEGVAULT_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let temporary = tempfile::Builder::new().prefix("segvault-cluster-").tempdir_in(base)?;
        let dir = temporary.path().join("kafka");
        let mut command = script();
        command.arg("up").arg(&dir).args(["--version", &self.version]);
        command.args(["--brokers", &self.brokers.to_string(), "--log-dirs", &self.log_dirs.to_string()]);
        command.args(["--tie", &std::process::id().to_string()]);
        if self.separate_controllers > 0 {
            command.arg("--controllers").arg(format!("separate:{}", self.separate_controllers));
        }
        if self.dynamic_quorum {
            command.args(["--quorum", "dynamic"]);
        }
        if !running {
            command.arg("--no-start");
        }
        for (key, value) in &self.settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        run(&mut command)?;
        let description = read_description(&dir)?;
        Ok(Cluster { dir, description, temporary: Some(temporary), _turn: turn })
    }
}

impl Cluster {
    /// The version that a cluster has if nothing else is asked for.
    pub fn default_version() -> String {
        std::env::var("SEGVAULT_KAFKA_VERSION").unwrap_or_else(|_| DEFAULT_VERSION.into())
    }

    /// Starts describing a cluster.
    pub fn builder() -> Builder {
        Builder {
            version: Self::default_version(),
            brokers: 3,
            log_dirs: 1,
            separate_controllers: 0,
            dynamic_quorum: false,
            settings: Vec::new(),
            beside: false,
        }
    }

    /// A cluster that `scripts/kafka up` made; it is left as it is when this object goes.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let description = read_description(&dir)?;
        Ok(Self { dir, description, temporary: None, _turn: None })
    }

    /// The folder that holds `cluster.json` and the nodes' folders.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A folder for a test's other files (a vault, a staging area), on the same file system as the log dirs.
    pub fn scratch(&self) -> &Path {
        self.dir.parent().expect("a cluster's folder has a parent")
    }

    /// Kafka's cluster id.
    pub fn id(&self) -> &str {
        &self.description.cluster_id
    }

    /// Kafka's version.
    pub fn version(&self) -> &str {
        &self.description.version
    }

    /// Is Kafka's version `major.minor` or newer?
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.version().split('.').map(|p| p.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }

    /// Bootstrap servers for clients.
    pub fn bootstrap(&self) -> String {
        let servers: Vec<_> =
            self.description.nodes.iter().filter_map(|n| n.port).map(|p| format!("127.0.0.1:{p}")).collect();
        servers.join(",")
    }

    /// Ids of all nodes, controllers that stand apart included.
    pub fn nodes(&self) -> Vec<i32> {
        self.description.nodes.iter().map(|n| n.id).collect()
    }

    /// Ids of the nodes with the broker's role.
    pub fn brokers(&self) -> Vec<i32> {
        self.description.nodes.iter().filter(|n| n.port.is_some()).map(|n| n.id).collect()
    }

    /// A node's own folder.
    pub fn node_dir(&self, node: i32) -> PathBuf {
        self.dir.join(format!("node{node}"))
    }

    /// A node's `server.properties`, as `--broker-config` wants it.
    pub fn properties_file(&self, node: i32) -> PathBuf {
        self.node_dir(node).join("server.properties")
    }

    /// Every node's `server.properties`.
    pub fn properties_files(&self) -> Vec<PathBuf> {
        self.nodes().into_iter().map(|node| self.properties_file(node)).collect()
    }

    /// A node's log dirs, in the order of `log.dirs`.
    pub fn log_dirs(&self, node: i32) -> Result<Vec<PathBuf>> {
        let text = fs::read_to_string(self.properties_file(node))?;
        let dirs =
            text.lines().find_map(|line| line.strip_prefix("log.dirs=")).ok_or("server.properties has no log.dirs")?;
        Ok(dirs.split(',').map(PathBuf::from).collect())
    }

    /// Every folder of a partition, one per replica found on disk: `(node, path)`.
    pub fn replica_dirs(&self, topic: &str, partition: i32) -> Result<Vec<(i32, PathBuf)>> {
        let mut found = Vec::new();
        for node in self.brokers() {
            let dirs = self.log_dirs(node)?.into_iter().map(|dir| dir.join(format!("{topic}-{partition}")));
            found.extend(dirs.filter(|dir| dir.is_dir()).map(|dir| (node, dir)));
        }
        Ok(found)
    }

    /// Starts all nodes and waits until every broker answers.
    pub fn start(&self) -> Result<()> {
        self.start_nodes(&[])
    }

    /// Starts the given nodes, all if none is given.
    pub fn start_nodes(&self, nodes: &[i32]) -> Result<()> {
        self.script("start", nodes)
    }

    /// SIGTERM to all nodes, and waits for their clean end.
    pub fn stop(&self) -> Result<()> {
        self.stop_nodes(&[])
    }

    /// As [`stop`](Self::stop) for the given nodes.
    pub fn stop_nodes(&self, nodes: &[i32]) -> Result<()> {
        self.script("stop", nodes)
    }

    /// SIGKILL to all nodes.
    pub fn kill9(&self) -> Result<()> {
        self.kill9_nodes(&[])
    }

    /// As [`kill9`](Self::kill9) for the given nodes.
    pub fn kill9_nodes(&self, nodes: &[i32]) -> Result<()> {
        self.script("kill", nodes)
    }

    /// A signal to a running node (SIGSTOP, SIGCONT).
    pub fn signal_node(&self, node: i32, signal: Signal) -> Result<()> {
        let path = self.node_dir(node).join("pid");
        let text = fs::read_to_string(&path)?;
        let pid = text.split_whitespace().next().ok_or_else(|| format!("{} is empty", path.display()))?;
        Ok(kill(Pid::from_raw(pid.parse()?), signal)?)
    }

    /// Whether a node's process is there.
    pub fn is_running(&self, node: i32) -> Result<bool> {
        let status = run(script().arg("status").arg(&self.dir))?;
        let line = status.lines().find(|line| line.starts_with(&format!("node{node}\t")));
        Ok(line.ok_or_else(|| format!("there is no node {node}"))?.contains("running"))
    }

    /// Ids of the brokers that the controller counts as alive, as a broker that answers says.
    pub fn brokers_alive(&self) -> Result<Vec<i32>> {
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", self.bootstrap()).create()?;
        let metadata = client.fetch_metadata(None, Duration::from_secs(5))?;
        Ok(metadata.brokers().iter().map(|broker| broker.id()).collect())
    }

    /// Empties every log dir of all (stopped) nodes.
    pub fn wipe(&self) -> Result<()> {
        self.script("wipe", &[])
    }

    /// As [`wipe`](Self::wipe) for the given nodes.
    pub fn wipe_nodes(&self, nodes: &[i32]) -> Result<()> {
        self.script("wipe", nodes)
    }

    fn script(&self, verb: &str, nodes: &[i32]) -> Result<()> {
        run(script().arg(verb).arg(&self.dir).args(nodes.iter().map(i32::to_string))).map(drop)
    }

    /// What a node logged since its last start.
    pub fn broker_log_since_start(&self, node: i32) -> Result<String> {
        let bytes = fs::read(self.node_dir(node).join("log/server.log"))?;
        let text = String::from_utf8_lossy(&bytes);
        let start = text.rfind("=== start").ok_or("the broker's log has no start marker")?;
        Ok(text[start..].to_owned())
    }

    /// Runs one of Kafka's tools (such as `TransactionsCommand`) and returns its standard output.
    pub fn tool(&self, class: &str, args: &[&str]) -> Result<String> {
        run(script().arg("tool").arg(&self.dir).arg(class).args(args))
    }

    /// Runs commands of `tests/java/Admin.java` in one JVM and returns their standard output.
    pub fn java_admin(&self, commands: &[&str]) -> Result<String> {
        run(self.java_admin_command().args(commands))
    }

    /// The command line that [`java_admin`](Self::java_admin) runs, for those who want its pipes.
    pub fn java_admin_command(&self) -> Command {
        self.java_command("Admin.java")
    }

    /// Runs commands of `tests/java/Share.java`, as [`java_admin`](Self::java_admin) does; 4.2 and newer.
    pub fn java_share(&self, commands: &[&str]) -> Result<String> {
        run(self.java_command("Share.java").args(commands))
    }

    fn java_command(&self, file: &str) -> Command {
        let mut command = script();
        command.arg("java").arg(&self.dir).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("java").join(file));
        command
    }

    /// What the cluster says of itself, through Kafka's own client.
    pub fn state(&self) -> Result<State> {
        Ok(serde_json::from_str(&self.java_admin(&["state"])?)?)
    }

    /// Creates a topic with one replica per broker, three at most.
    pub fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) -> Result<()> {
        self.create_topic_replicated(name, partitions, self.brokers().len().min(3), configs)
    }

    /// Waits until the cluster says something of itself. While its coordinators are elected it may say nothing at all.
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&State) -> bool) -> Result<State> {
        let began = Instant::now();
        loop {
            let said = match self.state() {
                Ok(state) if is_so(&state) => return Ok(state),
                said => said.err(),
            };
            if began.elapsed() > PATIENCE {
                return Err(format!("waited in vain until {what}; at last: {said:?}").into());
            }
            sleep(Duration::from_millis(200));
        }
    }

    /// Creates a topic with the given number of replicas.
    pub fn create_topic_replicated(
        &self,
        name: &str,
        partitions: i32,
        replicas: usize,
        configs: &[(&str, &str)],
    ) -> Result<()> {
        self.create(NewTopic::new(name, partitions, TopicReplication::Fixed(i32::try_from(replicas)?)), configs)
    }

    /// Creates a topic whose partitions have their replicas on these nodes, leaders first.
    pub fn create_topic_on(&self, name: &str, replicas: &[&[i32]], configs: &[(&str, &str)]) -> Result<()> {
        self.create(NewTopic::new(name, i32::try_from(replicas.len())?, TopicReplication::Variable(replicas)), configs)
    }

    fn create<'a>(&self, mut topic: NewTopic<'a>, configs: &'a [(&str, &str)]) -> Result<()> {
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        for result in futures::executor::block_on(self.admin()?.create_topics([&topic], &admin_options()))? {
            result.map_err(|(name, code)| format!("create topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// Deletes a topic.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        for result in futures::executor::block_on(self.admin()?.delete_topics(&[name], &admin_options()))? {
            result.map_err(|(name, code)| format!("delete topic {name}: {code}"))?;
        }
        Ok(())
    }

    /// rdkafka's admin client.
    pub fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(ClientConfig::new().set("bootstrap.servers", self.bootstrap()).create()?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(temporary) = self.temporary.take() else {
            return;
        };
        if let Err(error) = self.kill9() {
            eprintln!("killing the cluster in {}: {error}", self.dir.display());
        }
        if std::thread::panicking() {
            eprintln!("the cluster's files are kept in {}", temporary.keep().display());
        }
    }
}

fn admin_options() -> AdminOptions {
    let timeout = Some(PATIENCE);
    AdminOptions::new().request_timeout(timeout).operation_timeout(timeout)
}

fn read_description(dir: &Path) -> Result<Description> {
    let path = dir.join("cluster.json");
    let text = fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

fn script() -> Command {
    let mut command = Command::new(project_root().join("scripts/kafka"));
    command.stdin(Stdio::null());
    command
}

/// Runs to the end and returns standard output; a failure carries both streams.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(out.into_owned())
    } else {
        Err(format!("{command:?}: {}\n{out}{err}", output.status).into())
    }
}

fn take_turn() -> Result<File> {
    let cache = project_root().join(".cache");
    fs::create_dir_all(&cache)?;
    let file = File::create(cache.join("one-cluster-at-a-time.lock"))?;
    file.lock()?;
    Ok(file)
}
