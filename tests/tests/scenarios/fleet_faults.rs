//! What befalls a fleet's surroundings: a broker that stands still, a disk that is full, a vault that is away, and two
//! coordinators at once.
//!
//! One cluster for all of it, with clients at work. Its vault is on an S3 store that everybody reaches by a relay, which
//! can be taken away. Each mishap ends alike: no pin is left, no point is undecided, what operators were told of points is
//! what the vault says, and the next point is complete. The last one is restored and held against the ledger.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
    unistd::geteuid,
};
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use segvault_tests::{
    Cluster, PATIENCE, Result,
    audit::{self, audit},
    fleet::{Fleet, wait_for_end},
    from_environment,
    ledger::{Ledger, content_hash},
    network::{Coordinator, Relay},
    segvault::{Ended, Segvault},
    state::State,
    store::Store,
    workload::{self, Clients},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Child, Command},
    rc::Rc,
    thread::sleep,
    time::{Duration, Instant},
};

use Coordinator::{First, Second};

/// Seconds that the vault is away, unless `SEGVAULT_VAULT_AWAY_S` says otherwise. Requests are tried again for a while; an
/// absence that outlasts that ends the point.
const VAULT_AWAY_S: u64 = 3;
/// A point ends within this time, once nothing keeps it from that. Trying again may take two minutes each time.
const END_DEADLINE: Duration = Duration::from_secs(400);

/// The node whose disk is full.
const FULL_NODE: i32 = 3;
/// Its disk: large enough for all that clients write, and sparse.
const DISK_LEN: u64 = 1 << 30;
/// Topics of one partition, whose tail is longer than what an agent copies into memory: one is everywhere, one on
/// [`FULL_NODE`] only.
const TALL: &str = "tall";
const TALL_ALONE: &str = "tall-alone";
/// Records of each: 3 MiB.
const TALL_RECORDS: i64 = 64;
const TALL_RECORD_LEN: usize = 48 << 10;

/// Rounds in which two coordinators are asked for a point at once.
const RACES: usize = 3;

/// A broker that stands still is noticed before its clients lose patience.
const IMPATIENCE: (&str, u32) = ("broker.session.timeout.ms", 5000);

const NONE: Option<&str> = None;

/// All that a scenario needs.
struct Site<'a> {
    cluster: &'a Cluster,
    segvault: &'a Segvault,
    ledger: &'a Ledger,
    fleet: Fleet<'a>,
    relay: Relay,
    clients: Clients,
    began: Instant,
    /// What operators were told.
    told: Vec<Rc<Ended>>,
    /// The last complete point, and the number of the ledger's marks when it began.
    last: Option<(u64, usize)>,
}

impl Site<'_> {
    /// Starts an agent that tries the coordinators in this order. It reaches the vault by the relay, as all do.
    fn start_agent(&mut self, node: i32, coordinators: &[Coordinator]) {
        let endpoint = format!("http://{}:{}", self.fleet.network().host_from(node), self.relay.port());
        let segvault = self.segvault.clone().with("AWS_ENDPOINT_URL", &endpoint);
        self.fleet.start_agent_with(node, &segvault, coordinators).unwrap();
    }

    /// Asks for a point.
    fn begin(&self, at: Coordinator) -> Child {
        self.ledger.mark("point");
        self.fleet.spawn_asking_at(at, &["snapshot", "create"]).unwrap()
    }

    /// Waits for what became of it: a committed point, or none and why.
    fn end(&mut self, child: Child) -> Rc<Ended> {
        let ended = wait_for_end(child, END_DEADLINE);
        let ended = ended.unwrap_or_else(|error| panic!("{error}\n{}", self.fleet.log_ends().unwrap_or_default()));
        match ended.code {
            0 | 3 => assert!(ended.json["number"].is_u64(), "{ended:?}"),
            1 => assert!(!ended.stderr.trim().is_empty(), "a point failed without a reason"),
            _ => panic!("{ended:?}"),
        }
        println!("  [{:3} s] {}", self.began.elapsed().as_secs(), summary(&ended));
        let ended = Rc::new(ended);
        self.told.push(ended.clone());
        ended
    }

    fn take(&mut self, at: Coordinator) -> Rc<Ended> {
        let child = self.begin(at);
        self.end(child)
    }

    /// The end of each mishap, with all agents at one coordinator.
    fn all_is_well_at(&mut self, at: Coordinator) {
        self.clients.check().unwrap();
        self.fleet.wait_for_agents_at(at).unwrap();
        let is_idle = || self.fleet.status_at(at).is_ok_and(|status| status["running"].is_null());
        self.fleet.wait_for("nothing is under way", is_idle).unwrap();
        self.fleet.wait_for("no pin is left", || self.fleet.pins().is_ok_and(|pins| pins == 0)).unwrap();
        let next = self.take(at);
        assert_eq!((next.code, &next.json["level"]), (0, &"L3".into()), "the next point is as it should be: {next:?}");
        assert_eq!(next.json["nodes"], serde_json::json!(self.cluster.nodes()), "{next:?}");
        self.last = Some((number_of(&next), self.ledger.history().unwrap().marks.len()));
        self.fleet.wait_for("no pin is left", || self.fleet.pins().is_ok_and(|pins| pins == 0)).unwrap();
        self.vault_says_what_was_told();
    }

    /// What the vault says of all points, by number.
    fn points(&self) -> BTreeMap<u64, Value> {
        let listed = self.segvault.run(&["snapshot", "list"]).unwrap().ok().unwrap();
        let points = listed["points"].as_array().unwrap().iter();
        points.map(|point| (point["number"].as_u64().unwrap(), point.clone())).collect()
    }

    /// What the vault says of a committed point.
    fn show(&self, number: u64) -> Value {
        let shown = self.segvault.run(&["snapshot", "show", &number.to_string()]).unwrap();
        let code = if shown.json["state"] == "complete" { 0 } else { 3 };
        assert_eq!(shown.code, code, "{shown:?}");
        shown.json
    }

    /// Every point has one outcome, and it is the one that operators were told.
    fn vault_says_what_was_told(&self) {
        let points = self.points();
        for point in points.values() {
            match point["state"].as_str().unwrap() {
                "complete" | "degraded" => {}
                "aborted" => assert!(point["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{point}"),
                _ => panic!("a point is undecided: {point}"),
            }
        }
        for told in &self.told {
            if let Some(number) = told.json["number"].as_u64() {
                let shown = self.show(number);
                for key in ["id", "state", "level", "began_ms", "finished_ms", "nodes"] {
                    assert_eq!(shown[key], told.json[key], "{key} of point {number}");
                }
                assert_eq!(points[&number]["state"], told.json["state"]);
            }
            if let Some(number) = given_up(told) {
                assert_eq!(points[&number]["state"], "aborted", "{told:?}");
            }
        }
    }

    /// A broker stands still, for so long that the others go on without it.
    fn a_broker_is_stopped(&mut self) {
        // The only one that has this partition.
        let (node, _) = self.cluster.replica_dirs("single", 0).unwrap()[0];
        self.cluster.signal_node(node, Signal::SIGSTOP).unwrap();
        let in_sync = self.take(First);
        let cluster = self.cluster;
        let is_alive = || cluster.brokers_alive().map(|alive| alive.contains(&node));
        self.fleet.wait_for("the stopped broker is fenced", || is_alive().is_ok_and(|is_alive| !is_alive)).unwrap();
        let fenced = self.take(First);
        let written = || self.ledger.history().unwrap().records[&("single".to_owned(), 0)].len();
        let before = written();
        self.cluster.signal_node(node, Signal::SIGCONT).unwrap();
        for point in [in_sync, fenced] {
            assert_eq!(point.code, 0, "{point:?}");
            let shown = self.show(number_of(&point));
            assert_eq!(partition(&shown, "single", 0)["source_node"], node, "its own disk has it");
        }
        self.fleet.wait_for("the broker is back", || is_alive().is_ok_and(|is_alive| is_alive)).unwrap();
        self.fleet.wait_for("its clients go on", || written() > before).unwrap();
        self.all_is_well_at(First);
    }

    /// The disk of a node is full: its log dir and, beside it, its agent's staging folder. That is the end of the broker,
    /// as it is of every broker that cannot write. What is left is a log dir whose high watermarks are some seconds old and
    /// an agent that can link and open files but has no room to copy what lies above.
    fn a_disk_is_full(&mut self, disk: &Disk) {
        let log_dir = self.cluster.log_dirs(FULL_NODE).unwrap().remove(0);
        let checkpoint = log_dir.join("replication-offset-checkpoint");
        let staging = log_dir.parent().unwrap().join(".segvault-data0").display().to_string();
        // Right behind a checkpoint there is time until the next one, and none can be written to a full disk.
        let written_at = || fs::metadata(&checkpoint).and_then(|metadata| metadata.modified()).unwrap();
        let before = written_at();
        self.fleet.wait_for("high watermarks are checkpointed", || written_at() > before).unwrap();
        produce_tall(self.cluster, self.ledger).unwrap();
        let filler = disk.path.join("filler");
        let dies = || {
            // What the broker still deletes is taken, too.
            fill(&filler).unwrap();
            self.cluster.is_running(FULL_NODE).is_ok_and(|is_running| !is_running)
        };
        self.fleet.wait_for("the broker cannot go on", dies).unwrap();
        fill(&filler).unwrap();

        let point = self.take(First);
        assert_eq!(point.code, 3, "no other node has {TALL_ALONE}: {point:?}");
        let uncovered: Vec<_> = point.json["uncovered"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(uncovered.iter().any(|text| text.starts_with(&format!("{TALL_ALONE}-0: "))), "{uncovered:?}");
        for text in &uncovered {
            assert!(text.starts_with(TALL_ALONE) || text.starts_with("single-"), "{text}");
            assert!(text.contains(&staging) && text.contains(&log_dir.display().to_string()), "{text}");
        }
        let shown = self.show(number_of(&point));
        let everywhere = partition(&shown, TALL, 0);
        assert!(everywhere["notes"].to_string().contains(&staging), "{everywhere}");
        assert_eq!(everywhere["end_offset"], TALL_RECORDS, "others have it: {everywhere}");
        assert_ne!(everywhere["source_node"], FULL_NODE, "{everywhere}");
        assert_eq!(self.fleet.pins().unwrap(), 0);

        fs::remove_file(&filler).unwrap();
        self.cluster.start_nodes(&[FULL_NODE]).unwrap();
        self.all_is_well_at(First);
        let shown = self.show(self.last.unwrap().0);
        assert_eq!(partition(&shown, TALL_ALONE, 0)["end_offset"], TALL_RECORDS);
    }

    /// Nobody reaches the vault for a while, from the moment at which agents upload.
    fn the_vault_is_away(&mut self) {
        let away = Duration::from_secs(from_environment("SEGVAULT_VAULT_AWAY_S").unwrap_or(VAULT_AWAY_S));
        let logged = self.fleet.log_len("coordinator").unwrap();
        let mut child = self.begin(First);
        self.fleet.wait_for_line("coordinator", logged, &["phase", "Uploading"]).unwrap();
        self.relay.go_down();
        sleep(away);
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(1), "no point can be committed in a vault that is away");
        }
        self.relay.come_up().unwrap();
        let point = self.end(child);
        assert!(point.code != 1 || point.stderr.contains("s3://segvault/kafka"), "{point:?}");
        self.all_is_well_at(First);
    }

    /// Two coordinators take points of one cluster in one vault: with some agents each, and one after the other with all.
    fn there_are_two_coordinators(&mut self) {
        for node in self.cluster.nodes() {
            assert_eq!(self.fleet.stop_agent(node).unwrap(), Some(0));
            self.start_agent(node, if node == FULL_NODE { &[Second, First] } else { &[First, Second] });
        }
        let is_divided = || self.fleet.connected_at(First).len() == 2 && self.fleet.connected_at(Second).len() == 1;
        self.fleet.wait_for("each has its agents", is_divided).unwrap();
        let mut committed = 0;
        for _ in 0..RACES {
            let children = [First, Second].map(|at| self.begin(at));
            committed += children.map(|child| self.end(child)).iter().filter(|point| point.code != 1).count();
        }
        assert!(committed > 0, "whoever begins last can commit: {:?}", self.told);
        self.vault_says_what_was_told();

        // The first one dies over a point, and its agents go to the second, which decides that there is none.
        let logged = self.fleet.log_len("coordinator").unwrap();
        let orphan = self.begin(First);
        self.fleet.wait_for_line("coordinator", logged, &["phase", "Uploading"]).unwrap();
        self.fleet.kill_coordinator_at(First);
        assert_eq!(self.end(orphan).code, 1);
        self.all_is_well_at(Second);
        let (next, points) = (self.last.unwrap().0, self.points());
        let reason = points[&(next - 1)]["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with(&format!("undecided when point {next} was begun by ")), "{points:?}");

        // It is there again, and has no agents until the second one dies as well.
        self.fleet.start_coordinator_at(First).unwrap();
        self.all_is_well_at(Second);
        self.fleet.kill_coordinator_at(Second);
        self.all_is_well_at(First);
    }

    /// All is lost but the vault. `before`: what the cluster said of itself.
    fn comes_back(self, before: &State) {
        let Self { cluster, segvault, ledger, fleet, relay, mut clients, last, .. } = self;
        let (point, marks) = last.unwrap();
        drop(fleet);
        clients.check().unwrap();
        cluster.kill9().unwrap();
        drop(clients);
        cluster.wipe().unwrap();
        segvault.restore(cluster, &point.to_string()).unwrap();
        drop(relay);
        // On a busy machine brokers with little patience complain of each other, and the audit of their complaints.
        for file in cluster.properties_files() {
            let text = fs::read_to_string(&file).unwrap();
            fs::write(&file, text.replace(&format!("{}={}\n", IMPATIENCE.0, IMPATIENCE.1), "")).unwrap();
        }
        cluster.start().unwrap();
        let mut history = ledger.history().unwrap();
        history.marks.truncate(marks);
        let outcome = audit(cluster, &history, before, before, audit::Options::default()).unwrap();
        println!("{outcome}");
        outcome.assert_passed();
        assert!(
            outcome.count("found at their offset") >= 5000,
            "the audit saw too little to prove anything\n{outcome}"
        );
    }
}

/// A file system in a file, mounted for this thread and its children only.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Puts a file system below what is in `dir`. None of it is reserved for root.
    fn below(dir: &Path) -> Self {
        let (image, moved) = (dir.with_extension("image"), dir.with_extension("moved"));
        File::create(&image).unwrap().set_len(DISK_LEN).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        fs::rename(dir, &moved).unwrap();
        fs::create_dir(dir).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).args([&image, dir]));
        run(Command::new("cp").arg("-a").arg(moved.join(".")).arg(dir));
        Self { path: dir.to_owned() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; scripts/setup installs it"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Has a file take all the space that is left on its disk.
fn fill(filler: &Path) -> Result<()> {
    let dir = filler.parent().ok_or("a file has a folder")?;
    let free = Command::new("df").args(["--output=avail", "-B1"]).arg(dir).output()?.stdout;
    let free = String::from_utf8(free)?.split_whitespace().last().ok_or("df says nothing")?.to_owned();
    let mut file = OpenOptions::new().create(true).append(true).open(filler)?;
    // Most of it without writing, as fast as can be. What this does not get is written.
    let offset = file.metadata()?.len().to_string();
    Command::new("fallocate").args(["--offset", &offset, "--length", &free]).arg(filler).output()?;
    loop {
        match file.write(&[0; 4 << 10]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes all records of [`TALL`] and [`TALL_ALONE`], and notes them once all are acknowledged.
fn produce_tall(cluster: &Cluster, ledger: &Ledger) -> Result<()> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap()).set("enable.idempotence", "true").create()?;
    let mut noted = String::new();
    for (topic, offset) in
        [TALL, TALL_ALONE].into_iter().flat_map(|topic| (0..TALL_RECORDS).map(move |offset| (topic, offset)))
    {
        let (id, value) = (format!("{topic}-{offset}"), format!("{offset:0TALL_RECORD_LEN$}"));
        let hash = content_hash(None, Some(value.as_bytes()), id.as_bytes());
        let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(&id) });
        let record: BaseRecord<'_, str, str> =
            BaseRecord::to(topic).partition(0).payload(value.as_str()).headers(headers);
        producer.send(record).map_err(|(error, _)| error)?;
        noted += &format!("r {topic} 0 {offset} - v {hash:016x} -\n");
    }
    producer.flush(PATIENCE)?;
    for topic in [TALL, TALL_ALONE] {
        let (_, end) = producer.client().fetch_watermarks(topic, 0, PATIENCE)?;
        if end != TALL_RECORDS {
            return Err(format!("{end} records of {topic} were acknowledged").into());
        }
    }
    ledger.append(&noted);
    Ok(())
}

/// A partition in what `snapshot show` says.
fn partition<'a>(point: &'a Value, topic: &str, index: i64) -> &'a Value {
    let mut partitions = point["partitions"].as_array().unwrap().iter();
    let found = partitions.find(|partition| partition["topic"] == topic && partition["partition"] == index);
    found.unwrap_or_else(|| panic!("{topic}-{index} is not in point {}", point["number"]))
}

/// The number of a committed point.
fn number_of(told: &Ended) -> u64 {
    told.json["number"].as_u64().unwrap_or_else(|| panic!("there is no point: {told:?}"))
}

/// The number of the point that is not to be, according to what was said.
fn given_up(told: &Ended) -> Option<u64> {
    let points = told.stderr.split("restore point ").skip(1).filter_map(|text| text.split_once(" was "));
    points.filter_map(|(id, _)| id.rsplit_once('/')?.1.parse().ok()).next()
}

fn summary(told: &Ended) -> String {
    match told.json["number"].as_u64() {
        Some(number) => {
            format!("point {number}: {} {} of nodes {}", told.json["state"], told.json["level"], told.json["nodes"])
        }
        None => told.stderr.lines().next().unwrap_or_default().to_owned(),
    }
}

/// The port of the store behind a vault.
fn store_port(vault: &Segvault) -> u16 {
    let command = vault.command(&[]);
    let endpoint =
        command.get_envs().find(|(name, _)| *name == "AWS_ENDPOINT_URL").and_then(|(_, value)| value?.to_str());
    endpoint
        .and_then(|url| url.rsplit_once(':')?.1.parse().ok())
        .expect("a store is reached by an endpoint with a port")
}

#[test]
fn a_fleet_outlives_what_befalls_its_surroundings() {
    let is_root = geteuid().is_root();
    if is_root {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
    }
    let store = Store::versitygw().unwrap();
    let cluster = Cluster::builder()
        .set("log.dirs", "{node}/disk/data0")
        .set(IMPATIENCE.0, IMPATIENCE.1)
        .set("broker.heartbeat.interval.ms", 1000)
        // Time to fill a disk between two checkpoints.
        .set("replica.high.watermark.checkpoint.interval.ms", 10_000)
        .stopped()
        .unwrap();
    let disk = is_root.then(|| Disk::below(&cluster.node_dir(FULL_NODE).join("disk")));
    cluster.start().unwrap();
    let ledger = Ledger::open(cluster.scratch().join("ledger")).unwrap();
    let relay = Relay::to(store_port(&store.vault("kafka"))).unwrap();
    let segvault = store.vault("kafka").with("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", relay.port()));
    segvault.run(&["vault", "init"]).unwrap().ok().unwrap();
    workload::set_up(&cluster).unwrap();
    let tall = [("segment.bytes", "67108864")];
    cluster.create_topic_on(TALL, &[&[FULL_NODE, 1, 2]], &tall).unwrap();
    cluster.create_topic_on(TALL_ALONE, &[&[FULL_NODE]], &tall).unwrap();
    let rig = Path::new(env!("CARGO_BIN_EXE_segvault-rig"));
    let mut clients = Clients::start(rig, &cluster, &cluster.scratch().join("ledger")).unwrap();
    workload::wait_for_work(&ledger, || clients.check()).unwrap();
    let before = cluster.state().unwrap();

    let mut fleet = Fleet::new(&cluster, &segvault).unwrap();
    fleet.start_coordinator_at(First).unwrap();
    // The second one has no agents yet.
    fleet.start_coordinator_at(Second).unwrap();
    let (told, began) = (Vec::new(), Instant::now());
    let mut site = Site {
        cluster: &cluster,
        segvault: &segvault,
        ledger: &ledger,
        fleet,
        relay,
        clients,
        began,
        told,
        last: None,
    };
    for node in cluster.nodes() {
        site.start_agent(node, &[First]);
    }
    site.all_is_well_at(First);
    site.a_broker_is_stopped();
    match &disk {
        Some(disk) => site.a_disk_is_full(disk),
        None => println!("SKIPPED: only root can mount; run the tests as root to fill a disk"),
    }
    site.the_vault_is_away();
    site.there_are_two_coordinators();
    site.comes_back(&before);
}
