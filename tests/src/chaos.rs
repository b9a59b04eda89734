//! A round of chaos: a cluster under load and a nemesis is saved at a random moment, lost, brought back, and audited.
//!
//! It is saved by Segvault, or for comparison by a plain copy of the brokers' directories, one broker after another.

use crate::{
    Cluster, PATIENCE, Result,
    audit::{Audit, Options, audit},
    fleet::{Fleet, wait_for_end},
    ledger::Ledger,
    nemesis::{self, Random},
    segvault::Segvault,
    workload::{self, Clients},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

/// Kills of agents and the coordinator in a round, so that a point is complete at last.
const KILLS: usize = 3;
/// Points begun in a round until one is complete.
const ATTEMPTS: usize = 12;

/// What a round is about.
#[derive(Debug)]
pub struct Plan {
    /// Decides all that is not told.
    pub seed: u64,
    /// How the cluster is saved.
    pub means: Means,
    /// Kafka's version.
    pub version: String,
    brokers: usize,
    separate_controllers: usize,
    dynamic_quorum: bool,
    log_dirs: usize,
    /// A point is taken before the nemesis begins, so that the one in question builds on it.
    has_base: bool,
    /// Whether there is a nemesis.
    pub haunted: bool,
    /// Records per second of each plain producer.
    pub rate: u32,
    /// From the nemesis' first deed to the point.
    delay: Duration,
    /// The nemesis goes on for so long after the point.
    after: Duration,
}

/// How a cluster is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// By one command for all nodes.
    Command,
    /// By services, some of which are killed meanwhile.
    Services,
    /// By a copy of each broker's directories, with a pause between two brokers.
    PlainCopy(Duration),
}

impl Plan {
    /// What a seed decides; one of `versions` is taken.
    pub fn new(seed: u64, versions: &[String]) -> Self {
        let mut random = Random::new(seed);
        let version = random.pick(versions);
        Self {
            seed,
            // A dynamic quorum is a matter of 3.9 and later.
            dynamic_quorum: random.below(2) == 0,
            version,
            brokers: random.pick(&[3, 3, 3, 5]),
            separate_controllers: random.pick(&[0, 0, 3]),
            log_dirs: random.pick(&[1, 2]),
            has_base: random.below(2) == 0,
            delay: random.millis(500, 20_000),
            after: random.millis(0, 5000),
            means: random.pick(&[Means::Command, Means::Services]),
            haunted: true,
            rate: workload::Options::default().rate,
        }
    }

    fn cluster(&self) -> Result<Cluster> {
        let builder = Cluster::builder().version(&self.version).brokers(self.brokers).log_dirs(self.log_dirs);
        let builder = builder.separate_controllers(self.separate_controllers);
        if self.dynamic_quorum { builder.dynamic_quorum() } else { builder }.start()
    }
}

/// What came of a round. The cluster's files are kept as long as it is.
pub struct Outcome {
    /// What the nemesis did.
    pub deeds: Vec<String>,
    /// What was said of the point, and of its proof; null of a plain copy.
    pub point: Value,
    proof: Value,
    /// The auditor's findings, or why there is nothing to audit.
    pub audit: Result<Audit>,
    /// What took how long, in seconds.
    times: Vec<(&'static str, f64)>,
    _cluster: Cluster,
}

impl Outcome {
    /// Holds a round against what Segvault promises.
    ///
    /// # Panics
    /// If it is not kept.
    pub fn judge(&self) {
        let Self { point, proof, audit, .. } = self;
        let audit = audit.as_ref().unwrap();
        audit.assert_passed();
        // Every node's files are read, so whatever was acknowledged is in some of them.
        assert_eq!((&point["state"], &point["level"]), (&"complete".into(), &"L3".into()), "{point}");
        assert_eq!((&proof["proven"], &proof["ok"]), (&"L3".into(), &true.into()), "{proof}");
        for (row, least) in [("found at their offset", 3000), ("transactions committed before the point", 50)] {
            assert!(audit.count(row) >= least, "the audit saw too little to prove anything: {row}\n{audit}");
        }
    }
}

/// Heads of the table that [`Outcome::row`] makes rows of.
pub const HEADS: &str = "| seed | Kafka | brokers | controllers | saved by | what befell it | records acknowledged | found | expired | transactions acknowledged | faults |\n|---|---|---|---|---|---|---|---|---|---|---|";

impl Plan {
    fn saved_by(&self) -> String {
        match self.means {
            Means::Command => "command".to_owned(),
            Means::Services => "services".to_owned(),
            Means::PlainCopy(skew) => format!("copies, {} s apart", skew.as_secs()),
        }
    }
}

impl Outcome {
    /// A row of a table in Markdown.
    pub fn row(&self, plan: &Plan) -> String {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for deed in &self.deeds {
            // Behind the second in which it began; what was refused did not befall it.
            let kind = deed.split_whitespace().nth(2).filter(|_| !deed.contains("(refused")).unwrap_or("refused");
            *kinds.entry(kind).or_default() += 1;
        }
        let deeds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let controllers = if plan.separate_controllers > 0 { "apart" } else { "combined" };
        let found = match &self.audit {
            Err(error) => format!("| | | | | {} |", error.to_string().lines().next().unwrap_or_default()),
            Ok(audit) => format!(
                "| {} | {} | {} | {} | {} |",
                audit.count("records acknowledged before the point"),
                audit.count("found at their offset"),
                audit.count("removed by retention or compaction"),
                audit.count("transactions committed before the point"),
                faults(audit),
            ),
        };
        format!(
            "| {} | {} | {} | {controllers} | {} | {} {found}",
            plan.seed,
            plan.version,
            plan.brokers,
            plan.saved_by(),
            deeds.join(", "),
        )
    }
}

fn faults(audit: &Audit) -> String {
    let faults = audit.rows.iter().filter(|row| row.must_be_zero && row.count > 0);
    let faults: Vec<String> = faults.map(|row| format!("{}: {}", row.name, row.count)).collect();
    if faults.is_empty() { "0".to_owned() } else { faults.join(", ") }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (point, proof) = (&self.point, &self.proof);
        if let (Some(state), Some(level), Some(proven)) =
            (point["state"].as_str(), point["level"].as_str(), proof["proven"].as_str())
        {
            write!(f, "{state} {level}, proven {proven}; ")?;
        }
        match &self.audit {
            Err(error) => write!(f, "not there again: {}", error.to_string().lines().next().unwrap_or_default())?,
            Ok(audit) => {
                write!(
                    f,
                    "{} records and {} transactions acknowledged before, {} found, {} expired; ",
                    audit.count("records acknowledged before the point"),
                    audit.count("transactions committed before the point"),
                    audit.count("found at their offset"),
                    audit.count("removed by retention or compaction"),
                )?;
                write!(f, "faults: {}", faults(audit))?;
            }
        }
        f.write_str("; seconds:")?;
        self.times.iter().try_for_each(|(name, seconds)| write!(f, " {name} {seconds:.0}"))
    }
}

/// Plays a round; clients are started with the program `rig`.
pub fn play(plan: &Plan, rig: &Path) -> Result<Outcome> {
    let (mut times, mut last) = (Vec::new(), Instant::now());
    let mut lap = |name| times.push((name, std::mem::replace(&mut last, Instant::now()).elapsed().as_secs_f64()));
    let cluster = plan.cluster()?;
    let written = cluster.scratch().join("ledger");
    let ledger = Ledger::open(&written)?;
    let segvault = Segvault::init(&cluster.scratch().join("vault"))?;
    workload::set_up(&cluster)?;
    nemesis::set_up(&cluster)?;
    lap("start");
    let rate = plan.rate.to_string();
    let mut clients = Clients::start_with(rig, &cluster, &written, &["--outlive", "--rate", &rate])?;
    workload::wait_for_work(&ledger, || clients.check())?;
    lap("work");
    let before = cluster.state()?;
    let saver = Saver::new(plan, &cluster, &segvault)?;
    if plan.has_base {
        saver.base()?;
    }
    let stop = AtomicBool::new(!plan.haunted);
    let (deeds, saved) = scope(|scope| -> Result<_> {
        let nemesis = scope.spawn(|| nemesis::haunt(&cluster, plan.seed, &stop));
        sleep(plan.delay);
        let saved = saver.save(&ledger, plan.seed);
        sleep(plan.after);
        stop.store(true, Ordering::SeqCst);
        let deeds = nemesis.join().expect("the nemesis does not panic")?;
        Ok((deeds, saved?))
    })?;
    lap("chaos");
    clients.check()?;
    let after = cluster.state()?;
    drop(saver);
    cluster.kill9()?;
    drop(clients);
    cluster.wipe()?;
    let mut proof = Value::Null;
    match &saved {
        Saved::Point { point, .. } => {
            let number = point["number"].to_string();
            proof = segvault.run(&["snapshot", "verify", &number])?.json;
            segvault.restore(&cluster, &number)?;
        }
        Saved::Copies(copies) => put_back(copies)?,
    }
    lap("lose and restore");
    let started = cluster.start();
    lap("start again");
    let mut history = ledger.history()?;
    let (point, options) = match saved {
        Saved::Point { point, marks } => {
            history.marks.truncate(marks);
            (point, Options::default())
        }
        // Nobody promised that a copy needs no recovery, and new clients might wait for ever.
        Saved::Copies(_) => (Value::Null, Options { logs: false, clients: false, settle_seconds_max: 60 }),
    };
    let audit = started.and_then(|()| audit(&cluster, &history, &before, &after, options));
    lap("audit");
    Ok(Outcome { deeds, point, proof, audit, times, _cluster: cluster })
}

/// What was saved.
enum Saved {
    Point {
        point: Value,
        /// The ledger's marks when it began, its own included.
        marks: usize,
    },
    /// Copies of log dirs, and where they belong.
    Copies(Vec<(PathBuf, PathBuf)>),
}

/// Whoever saves the cluster.
enum Saver<'a> {
    Command(&'a Cluster, &'a Segvault),
    Services(&'a Cluster, Box<Mutex<Fleet<'a>>>),
    PlainCopy(&'a Cluster, Duration),
}

impl<'a> Saver<'a> {
    fn new(plan: &Plan, cluster: &'a Cluster, segvault: &'a Segvault) -> Result<Self> {
        Ok(match plan.means {
            Means::Command => Self::Command(cluster, segvault),
            Means::Services => Self::Services(cluster, Box::new(Mutex::new(Fleet::start(cluster, segvault)?))),
            Means::PlainCopy(skew) => Self::PlainCopy(cluster, skew),
        })
    }

    /// A point to build on.
    fn base(&self) -> Result<()> {
        match self {
            Self::Command(cluster, segvault) => segvault.snapshot(cluster).map(drop),
            Self::Services(_, fleet) => {
                let child = lock(fleet).spawn_asking(&["snapshot", "create"])?;
                wait_for_end(child, PATIENCE)?.ok().map(drop)
            }
            Self::PlainCopy(..) => Ok(()),
        }
    }

    fn save(&self, ledger: &Ledger, seed: u64) -> Result<Saved> {
        let stop = AtomicBool::new(false);
        match self {
            Self::Command(cluster, segvault) => {
                ledger.mark("point");
                let taken = segvault.run_on(cluster, &cluster.nodes(), &["snapshot", "create"])?;
                // Exit code 3: degraded, which is judged later.
                let point = if taken.code == 3 { taken.json } else { taken.ok()? };
                Ok(Saved::Point { point, marks: 1 })
            }
            Self::Services(cluster, fleet) => scope(|scope| {
                let killer = scope.spawn(|| kill_services(cluster, fleet, seed, &stop));
                let taken = take(fleet, ledger);
                stop.store(true, Ordering::SeqCst);
                killer.join().expect("it does not panic")?;
                taken
            }),
            Self::PlainCopy(cluster, skew) => {
                ledger.mark("point");
                copy(cluster, *skew).map(Saved::Copies)
            }
        }
    }
}

fn lock<'a, 'b>(fleet: &'b Mutex<Fleet<'a>>) -> std::sync::MutexGuard<'b, Fleet<'a>> {
    fleet.lock().expect("no thread panicked")
}

/// Takes points until one is complete.
fn take(fleet: &Mutex<Fleet<'_>>, ledger: &Ledger) -> Result<Saved> {
    let mut last = String::new();
    for marks in 1..=ATTEMPTS {
        ledger.mark("point");
        let child = lock(fleet).spawn_asking(&["snapshot", "create"])?;
        let taken = wait_for_end(child, PATIENCE)?;
        if taken.code == 0 {
            return Ok(Saved::Point { point: taken.json, marks });
        }
        last = format!("{taken:?}");
        sleep(Duration::from_millis(500)); // A coordinator that was killed is there again soon.
    }
    Err(format!("none of {ATTEMPTS} points is complete; the last: {last}").into())
}

/// Kills agents and the coordinator, and starts them again at once.
fn kill_services(cluster: &Cluster, fleet: &Mutex<Fleet<'_>>, seed: u64, stop: &AtomicBool) -> Result<()> {
    let mut random = Random::new(seed.wrapping_add(2 << 32));
    for _ in 0..KILLS {
        sleep(random.millis(0, 3000));
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (node, mut fleet) = (random.pick(&cluster.nodes()), lock(fleet));
        if random.below(3) == 0 {
            fleet.kill_coordinator();
            fleet.start_coordinator()?;
        } else {
            fleet.kill_agent(node);
            fleet.start_agent(node)?;
        }
    }
    Ok(())
}

/// Copies the log dirs of one node after another. What vanishes meanwhile is left out, as `cp` does.
fn copy(cluster: &Cluster, skew: Duration) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut copies = Vec::new();
    for (nth, node) in cluster.nodes().into_iter().enumerate() {
        if nth > 0 {
            sleep(skew);
        }
        for dir in cluster.log_dirs(node)? {
            let to = cluster.scratch().join(format!("copy{}", copies.len()));
            Command::new("cp").arg("-a").args([&dir, &to]).output()?;
            copies.push((to, dir));
        }
    }
    Ok(copies)
}

fn put_back(copies: &[(PathBuf, PathBuf)]) -> Result<()> {
    for (copied, dir) in copies {
        fs::remove_dir_all(dir)?;
        fs::rename(copied, dir)?;
    }
    Ok(())
}
