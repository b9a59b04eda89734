//! Many schedules, the same schedule twice, and damaged fleets.

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::mutation::Mutation;
use super::world::{Course, World};

/// Schedules of an ordinary test run.
const SCHEDULES: u64 = 4000;
/// Within so many schedules a damaged fleet must be noticed.
const DAMAGED_SCHEDULES: u64 = 400;
/// What must happen now and then, or the schedules prove little.
const HAPPENS: [&str; 21] = [
    "KILL AGENT",
    "STOP AGENT",
    "PAUSE AGENT",
    "CUT",
    "ISOLATE",
    "KILL COORD.",
    "PAUSE COORD.",
    "CANCEL",
    "BEGIN",
    "committed",
    "given up",
    "unknown",
    "begin anew",
    "send again",
    "come late",
    "lease",
    "refused",
    "hang up",
    "fail",
    "lose answer",
    "ask again",
];
/// How many wrong schedules are written out.
const WRONG_MAX: usize = 50;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")))
}

/// How to see what happens in a schedule.
fn replay(seed: u64) -> String {
    format!("scripts/simulate --seed {seed}")
}

/// A schedule in which something was as it must not be.
type Wrong = (u64, String);

/// Runs schedules on all cores; returns those that are wrong, of a damaged fleet only the first, and all added up.
fn run(first: u64, count: u64, mutation: Option<Mutation>) -> (Vec<Wrong>, Course) {
    let next = AtomicU64::new(first);
    let work = || {
        let (mut sum, mut wrong) = (Course::default(), Vec::new());
        while mutation.is_none() || wrong.is_empty() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return (wrong, sum);
            }
            let course = World::new(seed, mutation, false).run();
            wrong.extend(course.complaint.clone().map(|complaint| (seed, complaint)));
            sum = sum.with(&course);
        }
        next.store(first + count, Ordering::Relaxed);
        (wrong, sum)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let done: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a schedule panicked")).collect()
    });
    let sum = done.iter().fold(Course::default(), |sum, (_, course)| sum.with(course));
    let mut wrong: Vec<_> = done.into_iter().flat_map(|(wrong, _)| wrong).collect();
    wrong.sort();
    (wrong, sum)
}

#[test]
fn schedules_keep_every_promise_whatever_fails() {
    if let Some(seed) = number("SEGVAULT_SEED") {
        let course = World::new(seed, None, true).run();
        println!("{course:#?}");
        assert_eq!(course.complaint, None);
        return;
    }
    let first = number("SEGVAULT_FIRST_SEED").unwrap_or(1);
    let count = number("SEGVAULT_SCHEDULES").unwrap_or(SCHEDULES);
    let (wrong, sum) = run(first, count, None);
    println!("{count} schedules from {first} on: {sum:#?}");
    for (seed, complaint) in wrong.iter().take(WRONG_MAX) {
        println!("schedule {seed}: {complaint}\n  to see it happen: {}", replay(*seed));
    }
    assert!(wrong.is_empty(), "{} of {count} schedules are wrong; the first is {:?}", wrong.len(), wrong.first());
    let missing: Vec<_> =
        HAPPENS.into_iter().filter(|what| count >= SCHEDULES && sum.count(what) < count / 500).collect();
    assert!(missing.is_empty(), "{missing:?} hardly ever happens: {sum:#?}");
}

#[test]
fn the_same_seed_is_the_same_course() {
    for seed in 1..=50 {
        assert_eq!(World::new(seed, None, false).run(), World::new(seed, None, false).run(), "{}", replay(seed));
    }
}

#[test]
fn other_seeds_are_other_courses() {
    assert_ne!(World::new(1, None, false).run().hash, World::new(2, None, false).run().hash);
}

#[test]
fn every_damage_is_noticed() {
    let unnoticed: Vec<Mutation> = Mutation::ALL
        .into_iter()
        .filter(|mutation| {
            let (wrong, sum) = run(1, DAMAGED_SCHEDULES, Some(*mutation));
            println!("{mutation:?}: {wrong:?} among {} points", sum.count("begin"));
            wrong.is_empty()
        })
        .collect();
    assert_eq!(unnoticed, [], "damage that nothing notices");
}
