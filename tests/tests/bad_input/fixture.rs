//! A killed cluster's node folders, a vault with one point of them, and what a test does to its copies.

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    producer::{BaseProducer, BaseRecord, Producer},
};
use segvault_tests::{
    Cluster, PATIENCE, Result,
    segvault::{Ended, Segvault},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    thread::sleep,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

/// Several closed segments in its one partition, on three brokers.
pub const ORDERS: &str = "orders-0";
/// The nodes of the cluster: all are broker and controller, with one log dir each.
pub const NODES: [i32; 3] = [1, 2, 3];
/// Exit code of a command that is done, with something to look at.
pub const FINDINGS: i32 = 3;

const NONE: Option<&str> = None;

/// What the tests of this binary share, in a folder that the next run removes.
pub struct Fixture {
    dir: PathBuf,
    /// What the running cluster said to a restore onto its own log dirs.
    pub restores_onto_live: Vec<Ended>,
}

pub static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| Fixture::make().expect("a cluster with data, and a point"));

impl Fixture {
    fn make() -> Result<Self> {
        let dir = own_dir()?;
        let restores_onto_live = {
            let cluster = Cluster::builder()
                .set("offsets.topic.num.partitions", 2)
                .set("transaction.state.log.num.partitions", 2)
                .set("replica.high.watermark.checkpoint.interval.ms", 300)
                .start()?;
            fill(&cluster)?;
            let segvault = Segvault::init(&cluster.scratch().join("vault"))?;
            segvault.snapshot(&cluster)?;
            let run = |args: &[&str]| segvault.run_on(&cluster, &[1], args);
            let refused = vec![run(&["restore", "run", "--dry-run"])?, run(&["restore", "run"])?];
            sleep(Duration::from_secs(1)); // The high watermarks are on disk.
            cluster.kill9()?;
            for node in NODES {
                fs::remove_dir_all(cluster.node_dir(node).join("log"))?;
            }
            copy_nodes(cluster.dir(), &dir)?;
            refused
        };
        let fixture = Self { dir, restores_onto_live };
        let vault = Segvault::init(&fixture.vault())?;
        let point = vault.run(&create(&fixture.configs(&NODES)))?.ok()?;
        assert_eq!((&point["state"], &point["level"]), (&"complete".into(), &"L3".into()), "{point}");
        for node in NODES {
            fs::remove_dir_all(fixture.dir.join(format!("node{node}/.segvault-data0")))?;
        }
        Ok(fixture)
    }

    fn vault(&self) -> PathBuf {
        self.dir.join("vault")
    }

    /// Where the undamaged node folders are.
    pub fn nodes(&self) -> &Path {
        &self.dir
    }

    fn configs(&self, nodes: &[i32]) -> Vec<String> {
        configs(&self.dir, nodes)
    }
}

/// A folder of this process; those of earlier ones go.
fn own_dir() -> Result<PathBuf> {
    const PREFIX: &str = "segvault-bad-input-";
    let base = std::env::var_os("SEGVAULT_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    for entry in fs::read_dir(&base)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.strip_prefix(PREFIX).is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            fs::remove_dir_all(path)?;
        }
    }
    let dir = base.join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir(&dir)?;
    Ok(dir)
}

/// Records in three closed segments and a tail, one replica of some, transactions of all kinds, and a group.
fn fill(cluster: &Cluster) -> Result<()> {
    cluster.create_topic("orders", 1, &[])?;
    cluster.create_topic("payments", 2, &[])?;
    cluster.create_topic("table", 1, &[("cleanup.policy", "compact")])?;
    cluster.create_topic_replicated("single", 2, 1, &[])?;
    let bootstrap = cluster.bootstrap();
    let producer = |settings: &[(&str, &str)]| -> Result<BaseProducer> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &bootstrap).set("enable.idempotence", "true").set("batch.size", "16384");
        settings.iter().for_each(|(key, value)| _ = config.set(*key, *value));
        Ok(config.create()?)
    };
    let send = |producer: &BaseProducer, topic: &str, partition: i32, number: usize| -> Result<()> {
        let key = format!("{topic}-{number}");
        let value = noise(number as u64);
        let record = BaseRecord::to(topic).partition(partition).key(&key).payload(&value);
        producer.send(record).map_err(|(error, _)| error)?;
        producer.poll(Duration::ZERO);
        Ok(())
    };
    let plain = producer(&[])?;
    (0..8000).try_for_each(|number| send(&plain, "orders", 0, number))?;
    (0..8000).try_for_each(|number| send(&plain, "single", number as i32 % 2, number))?;
    (0..500).try_for_each(|number| send(&plain, "table", 0, number))?;
    plain.flush(PATIENCE)?;

    let transactional = producer(&[("transactional.id", "payer")])?;
    transactional.init_transactions(PATIENCE)?;
    for round in 0..8 {
        transactional.begin_transaction()?;
        (0..40).try_for_each(|number| send(&transactional, "payments", number % 2, number as usize))?;
        transactional.flush(PATIENCE)?;
        match round {
            3 => transactional.abort_transaction(PATIENCE)?,
            7 => {} // It stays open.
            _ => transactional.commit_transaction(PATIENCE)?,
        }
    }

    let mut config = ClientConfig::new();
    let consumer: BaseConsumer = config.set("bootstrap.servers", &bootstrap).set("group.id", "readers").create()?;
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset("orders", 0, Offset::Offset(8000))?;
    offsets.add_partition_offset("single", 0, Offset::Offset(1234))?;
    Ok(consumer.commit(&offsets, CommitMode::Sync)?)
}

/// Text of 400 bytes that compresses to half, so that a vault has something to store.
fn noise(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{state:016x}")
    };
    (0..25).map(|_| next()).collect()
}

/// Copies all node folders; their configurations name the copies.
fn copy_nodes(from: &Path, to: &Path) -> Result<()> {
    for node in NODES.map(|node| format!("node{node}")) {
        copy(&from.join(&node), &to.join(&node))?;
        let config = to.join(&node).join("server.properties");
        let text = fs::read_to_string(&config)?;
        fs::write(config, text.replace(&*from.to_string_lossy(), &to.to_string_lossy()))?;
    }
    Ok(())
}

/// Copies a folder with everything that a file has.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(format!("cp -a {} {}", from.display(), to.display()).into()) }
}

/// The command line that takes a point.
fn create(configs: &[String]) -> Vec<&str> {
    ["snapshot", "create"].into_iter().chain(configs.iter().map(String::as_str)).collect()
}

fn configs(dir: &Path, nodes: &[i32]) -> Vec<String> {
    let config = |node: &i32| dir.join(format!("node{node}/server.properties")).display().to_string();
    nodes.iter().flat_map(|node| ["--broker-config".to_owned(), config(node)]).collect()
}

/// A test's own folder: copies of the node folders, a vault, and targets to restore to.
pub struct Case {
    dir: TempDir,
    pub segvault: Segvault,
}

impl Case {
    /// With copies of the node folders and an empty vault.
    pub fn capture() -> Self {
        let case = Self::bare();
        copy_nodes(&FIXTURE.dir, case.dir()).unwrap();
        case.segvault.run(&["vault", "init"]).unwrap().ok().unwrap();
        case
    }

    /// With a copy of a vault that has one point.
    pub fn restore() -> Self {
        let case = Self::bare();
        copy(&FIXTURE.vault(), &case.vault()).unwrap();
        case
    }

    /// With nothing.
    pub fn bare() -> Self {
        let dir = tempfile::Builder::new().prefix("case-").tempdir_in(&FIXTURE.dir).unwrap();
        let segvault = Segvault::at(format!("file://{}", dir.path().join("vault").display()));
        Self { dir, segvault }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn vault(&self) -> PathBuf {
        self.dir().join("vault")
    }

    pub fn config(&self, node: i32) -> PathBuf {
        self.dir().join(format!("node{node}/server.properties"))
    }

    pub fn log_dir(&self, node: i32) -> PathBuf {
        self.dir().join(format!("node{node}/data0"))
    }

    /// The folder of a node's replica.
    pub fn replica(&self, node: i32, partition: &str) -> PathBuf {
        self.log_dir(node).join(partition)
    }

    /// Rewrites a line of a node's configuration.
    pub fn set(&self, node: i32, key: &str, value: &str) {
        let text = fs::read_to_string(self.config(node)).unwrap();
        let line = |line: &str| match line.split_once('=') {
            Some((found, _)) if found == key => format!("{key}={value}\n"),
            _ => format!("{line}\n"),
        };
        let changed: String = text.lines().map(line).collect();
        assert_ne!(text, changed, "{key} is there, and another");
        fs::write(self.config(node), changed).unwrap();
    }

    /// `snapshot create` of all nodes.
    pub fn create(&self) -> Ended {
        self.create_of(&NODES, &[])
    }

    /// `snapshot create` of some nodes.
    pub fn create_of(&self, nodes: &[i32], options: &[&str]) -> Ended {
        let configs = configs(self.dir(), nodes);
        let args: Vec<&str> = create(&configs).into_iter().chain(options.iter().copied()).collect();
        self.segvault.run(&args).unwrap()
    }

    /// A restore verb for some nodes' targets: empty log dirs in `targets`, unless something is there already.
    pub fn restore_to(&self, verb: &str, nodes: &[i32], options: &[&str]) -> Ended {
        self.make_targets();
        let configs = configs(&self.targets(), nodes);
        let args = ["restore", verb].into_iter().chain(configs.iter().map(String::as_str));
        let args: Vec<&str> = args.chain(options.iter().copied()).collect();
        self.segvault.run(&args).unwrap()
    }

    pub fn targets(&self) -> PathBuf {
        self.dir().join("targets")
    }

    pub fn target(&self, node: i32) -> PathBuf {
        self.targets().join(format!("node{node}/data0"))
    }

    pub fn target_config(&self, node: i32) -> PathBuf {
        self.targets().join(format!("node{node}/server.properties"))
    }

    /// Configurations whose log dirs are in `targets`.
    pub fn make_targets(&self) {
        for node in NODES.into_iter().filter(|node| !self.target_config(*node).exists()) {
            fs::create_dir_all(self.target(node)).unwrap();
            let text = fs::read_to_string(FIXTURE.dir.join(format!("node{node}/server.properties"))).unwrap();
            let text = text.replace(&*FIXTURE.dir.to_string_lossy(), &self.targets().to_string_lossy());
            fs::write(self.target_config(node), text).unwrap();
        }
    }

    /// Restores all nodes and holds the logs of a partition against the undamaged ones of `source`.
    pub fn restores(&self, partition: &str, source: i32) {
        self.restore_to("run", &NODES, &[]).ok().unwrap();
        self.restore_to("verify", &NODES, &[]).ok().unwrap();
        let clean = logs(&FIXTURE.dir.join(format!("node{source}/data0")).join(partition));
        for node in NODES.into_iter().filter(|node| self.target(*node).join(partition).exists()) {
            assert!(logs(&self.target(node).join(partition)) == clean, "{partition} of node {node} is another");
        }
    }

    /// No broker could start on any target.
    pub fn assert_not_startable(&self) {
        for node in NODES {
            for name in ["meta.properties", ".kafka_cleanshutdown"] {
                assert!(!self.target(node).join(name).exists(), "node {node} has {name}");
            }
        }
    }
}

/// What is said of a partition in a point.
pub fn partition<'a>(point: &'a Value, name: &str) -> &'a Value {
    let partitions = point["partitions"].as_array().unwrap_or_else(|| panic!("{point}"));
    let is_it = |entry: &&Value| format!("{}-{}", entry["topic"].as_str().unwrap(), entry["partition"]) == name;
    partitions.iter().find(is_it).unwrap_or_else(|| panic!("no {name} in {point}"))
}

/// The segments of a partition's folder, by name.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    files(dir, "log")
}

/// Files of a folder with an extension, in their order.
pub fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}

/// Names and bytes of the segments of a partition's folder.
fn logs(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    segments(dir).iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

/// All that is in a folder: paths with lengths and times of change.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut tree = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))).unwrap();
        if metadata.is_dir() {
            tree.extend(self::tree(&path));
        }
        tree.insert(path, (metadata.len(), metadata.modified().unwrap()));
    }
    tree
}

/// Where the batches of a segment begin.
pub fn batches(log: &Path) -> Vec<usize> {
    let bytes = fs::read(log).unwrap();
    let mut positions = Vec::new();
    let mut at = 0;
    while at + 12 <= bytes.len() {
        positions.push(at);
        let len = i32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap());
        at += 12 + usize::try_from(len).unwrap();
    }
    positions
}

/// Flips a bit.
pub fn flip(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Cuts a file.
pub fn truncate(path: &Path, len: usize) {
    fs::File::options().write(true).open(path).unwrap().set_len(len as u64).unwrap();
}

/// Fills a file with as many bytes that mean nothing.
pub fn garble(path: &Path) {
    let len = fs::metadata(path).unwrap().len().clamp(64, 4096) as usize;
    fs::write(path, (0..len).map(|index| (index * 37 + 11) as u8 | 0x81).collect::<Vec<_>>()).unwrap();
}

/// A small file system in memory, seen by this thread and the commands it runs; it goes with the thread.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// With tmpfs options such as `size=4m`. Says so and gives nothing where mounting is not allowed.
    pub fn mount(path: &Path, options: &str) -> Option<Self> {
        let disk = Self { path: path.to_owned() };
        fs::create_dir_all(path).unwrap();
        let own = unshare(CloneFlags::CLONE_NEWNS);
        let apart = own.and_then(|()| mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE));
        let mounted = apart.and_then(|()| mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options)));
        match mounted {
            Ok(()) => Some(disk),
            Err(Errno::EPERM) => {
                eprintln!("SKIPPED: a test of full disks, as only root may mount one");
                std::mem::forget(disk);
                None
            }
            Err(error) => panic!("mount {}: {error}", path.display()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Other options from now on.
    pub fn change(&self, options: &str) {
        mount(NONE, &self.path, NONE, MsFlags::MS_REMOUNT, Some(options)).unwrap();
    }

    pub fn read_only(&self) {
        mount(NONE, &self.path, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE).unwrap();
    }

    /// Leaves no byte free. Removing the file that is returned frees all of them.
    pub fn fill(&self) -> PathBuf {
        let path = self.path.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}
