//! What may befall a running cluster: two courses of deeds drawn from a seed, one of nodes and one of topics.
//!
//! At most one node is down or paused at a time, so that a cluster with three replicas and a quorum of three lives on. What
//! is changed about topics is changed once, so that an audit that knows the states before and after can judge what a restore
//! point has of it.

use crate::{Cluster, PATIENCE, Result, workload::mix};
use nix::sys::signal::Signal;
use rdkafka::admin::{AdminOptions, NewPartitions};
use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

/// Topics that the nemesis deletes, deletes and makes again, gives partitions to, and sets configs of.
const DOOMED: &str = "doomed";
const REBORN: &str = "reborn";
const GROWING: &str = "growing";
const RETUNED: &str = "retuned";

/// Partitions that get other replicas, and those whose replicas get another log dir.
const REASSIGNED: [(&str, i32); 6] = [
    ("events", 3),
    ("events", 4),
    ("payments", 1),
    ("orders", 0),
    ("__transaction_state", 2),
    ("__consumer_offsets", 5),
];
const MOVED: [(&str, i32); 5] =
    [("events", 0), ("payments", 2), ("invoices", 1), ("__transaction_state", 7), ("__consumer_offsets", 1)];

/// A deed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Deed {
    /// SIGKILL, and a start some seconds later.
    Kill(i32, Duration),
    /// SIGTERM, and a start.
    Restart(i32),
    /// SIGSTOP, for less or more than the broker's session.
    Pause(i32, Duration),
    /// Preferred leaders everywhere.
    Elect,
    /// Other replicas for a partition.
    Reassign(&'static str, i32, Vec<i32>),
    /// Another log dir of the same broker for a replica.
    Move(&'static str, i32, i32),
    /// All before an offset is deleted.
    DeleteRecords(i32, i64),
    Create(String),
    Delete,
    Recreate,
    AddPartitions,
    AlterConfig,
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node, down) => write!(f, "kill -9 {node} for {:.1} s", down.as_secs_f32()),
            Self::Restart(node) => write!(f, "restart {node}"),
            Self::Pause(node, still) => write!(f, "pause {node} for {:.1} s", still.as_secs_f32()),
            Self::Elect => f.write_str("elect"),
            Self::Reassign(topic, partition, replicas) => write!(f, "reassign {topic}-{partition} to {replicas:?}"),
            Self::Move(topic, partition, node) => write!(f, "move {topic}-{partition} on {node} to its other log dir"),
            Self::DeleteRecords(partition, offset) => write!(f, "delete events-{partition} below {offset}"),
            Self::Create(topic) => write!(f, "create {topic}"),
            Self::Delete => write!(f, "delete {DOOMED}"),
            Self::Recreate => write!(f, "delete and create {REBORN}"),
            Self::AddPartitions => write!(f, "partitions of {GROWING}"),
            Self::AlterConfig => write!(f, "configs of {RETUNED}"),
        }
    }
}

/// Numbers from a seed.
pub struct Random(u64);

impl Random {
    /// Equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// At least 0 and less than `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % limit
    }

    /// One of some things.
    pub fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).expect("within the slice")].clone()
    }

    /// At least `from` and less than `to` milliseconds.
    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// Makes the topics whose fate the nemesis decides; before the states that an audit compares are taken.
pub fn set_up(cluster: &Cluster) -> Result<()> {
    [DOOMED, REBORN, GROWING, RETUNED].iter().try_for_each(|topic| cluster.create_topic(topic, 2, &[]))
}

/// Does deeds until `stop` is set, and mends what it has broken. Returns what it did, with the second in which it began; a
/// cluster that is being haunted may refuse a change of its topics, and that is told as well.
pub fn haunt(cluster: &Cluster, seed: u64, stop: &AtomicBool) -> Result<Vec<String>> {
    let (began, done) = (Instant::now(), Mutex::new(Vec::new()));
    let note = |at: Duration, deed: String| done.lock().expect("no thread panicked").push((at, deed));
    let course = |seed, draw: &mut dyn FnMut(&mut Random, usize) -> Deed, is_serious: bool| -> Result<()> {
        let mut random = Random::new(seed);
        for number in 0.. {
            sleep(random.millis(100, 1500));
            if stop.load(Ordering::SeqCst) {
                break;
            }
            let (at, deed) = (began.elapsed(), draw(&mut random, number));
            match act(cluster, &deed) {
                Ok(()) => note(at, deed.to_string()),
                Err(error) if is_serious => return Err(format!("{deed}: {error}").into()),
                Err(error) => {
                    let error = error.to_string();
                    let why = error.lines().find(|line| line.contains("Exception")).unwrap_or(&error);
                    note(at, format!("{deed} (refused: {})", why.trim()));
                }
            }
        }
        Ok(())
    };
    scope(|scope| {
        let nodes = scope.spawn(|| {
            let draw = &mut |random: &mut Random, _| of_nodes(cluster, random);
            course(seed, draw, true).map_err(|error| error.to_string())
        });
        let mut once = vec![Deed::Delete, Deed::Recreate, Deed::AddPartitions, Deed::AlterConfig];
        once.extend(REASSIGNED.map(|(topic, partition)| Deed::Reassign(topic, partition, Vec::new())));
        let draw = &mut |random: &mut Random, number| of_topics(cluster, random, &mut once, number);
        let changed = course(seed.wrapping_add(1 << 32), draw, false);
        nodes.join().expect("no thread panicked")?;
        changed
    })?;
    let mut done = done.into_inner().expect("no thread panicked");
    done.sort();
    Ok(done.into_iter().map(|(at, deed)| format!("{:.1} s: {deed}", at.as_secs_f32())).collect())
}

fn of_nodes(cluster: &Cluster, random: &mut Random) -> Deed {
    let node = random.pick(&cluster.nodes());
    match random.below(7) {
        0..=3 => Deed::Kill(node, random.millis(0, 5000)),
        4 => Deed::Restart(node),
        _ => Deed::Pause(node, random.millis(500, 12_000)),
    }
}

fn of_topics(cluster: &Cluster, random: &mut Random, once: &mut Vec<Deed>, number: usize) -> Deed {
    let brokers = cluster.brokers();
    match random.below(8) {
        0 => Deed::Elect,
        1 | 2 => {
            let (topic, partition) = random.pick(&MOVED);
            Deed::Move(topic, partition, random.pick(&brokers))
        }
        3 => Deed::DeleteRecords(random.below(6) as i32, 1 + random.below(300) as i64),
        _ if once.is_empty() => Deed::Create(format!("newcomer-{number}")),
        _ => match once.swap_remove(usize::try_from(random.below(once.len() as u64)).expect("a few")) {
            Deed::Reassign(topic, partition, _) => {
                // Three of the brokers, beginning anywhere; with three brokers another leader.
                let first = usize::try_from(random.below(brokers.len() as u64)).expect("a few");
                Deed::Reassign(topic, partition, brokers.iter().cycle().skip(first).take(3).copied().collect())
            }
            deed => deed,
        },
    }
}

fn act(cluster: &Cluster, deed: &Deed) -> Result<()> {
    match deed {
        Deed::Kill(node, down) => {
            cluster.kill9_nodes(&[*node])?;
            sleep(*down);
            cluster.start_nodes(&[*node])
        }
        Deed::Restart(node) => {
            cluster.stop_nodes(&[*node])?;
            cluster.start_nodes(&[*node])
        }
        Deed::Pause(node, still) => {
            cluster.signal_node(*node, Signal::SIGSTOP)?;
            sleep(*still);
            cluster.signal_node(*node, Signal::SIGCONT)
        }
        Deed::Elect => cluster.java_admin(&["elect"]).map(drop),
        Deed::Reassign(topic, partition, replicas) => {
            let replicas = replicas.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
            cluster.java_admin(&[&format!("reassign {topic} {partition} {replicas}")]).map(drop)
        }
        Deed::Move(topic, partition, node) => {
            cluster.java_admin(&[&format!("move {topic} {partition} {node}")]).map(drop)
        }
        Deed::DeleteRecords(partition, offset) => {
            cluster.java_admin(&[&format!("delete-records events {partition} {offset}")]).map(drop)
        }
        Deed::Create(topic) => cluster.create_topic(topic, 2, &[]),
        Deed::Delete => cluster.delete_topic(DOOMED),
        Deed::Recreate => {
            cluster.delete_topic(REBORN)?;
            // The name is free once the controller has said so to the broker that is asked.
            let began = Instant::now();
            loop {
                match cluster.create_topic(REBORN, 3, &[]) {
                    Err(error) if began.elapsed() > PATIENCE => return Err(error),
                    Err(_) => sleep(Duration::from_millis(100)),
                    Ok(()) => return Ok(()),
                }
            }
        }
        Deed::AddPartitions => {
            // Without its client an answer never comes.
            let (admin, partitions) = (cluster.admin()?, NewPartitions::new(GROWING, 5));
            let done = admin.create_partitions([&partitions], &AdminOptions::new());
            for result in futures::executor::block_on(done)? {
                result.map_err(|(name, code)| format!("{name}: {code}"))?;
            }
            Ok(())
        }
        Deed::AlterConfig => cluster.java_admin(&[&format!("topic-config {RETUNED} retention.ms 86400000")]).map(drop),
    }
}
