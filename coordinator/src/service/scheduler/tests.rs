//! A scheduler whose points are told and whose time is given.

use std::sync::MutexGuard;

use super::*;
use crate::schedule::{Missed, Overlap, Zone};

/// 02:00 of 1 February 2026.
const TWO_MS: i64 = 1_769_911_200_000;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// What is so, and what was asked for.
#[derive(Default)]
struct World {
    is_known: bool,
    is_vault_gone: bool,
    is_running: bool,
    last_committed_ms: Option<i64>,
    refuses: Option<Status>,
    begun: Vec<(String, bool)>,
    failed: usize,
    skipped: usize,
    asked: usize,
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<World>>);

impl Told {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

impl Points for Told {
    async fn find(&self, cluster: &str) -> Result<Option<String>, String> {
        assert_eq!(cluster, "name");
        Ok(self.world().is_known.then(|| "id".to_owned()))
    }

    async fn last_committed_ms(&self, cluster_id: &str) -> Result<Option<i64>, String> {
        assert_eq!(cluster_id, "id");
        let mut world = self.world();
        world.asked += 1;
        if world.is_vault_gone { Err("the vault is gone".to_owned()) } else { Ok(world.last_committed_ms) }
    }

    fn is_running(&self, _cluster_id: &str) -> bool {
        self.world().is_running
    }

    fn begin(&self, cluster_id: &str, closed_only: bool) -> Result<(), Status> {
        let mut world = self.world();
        if let Some(status) = world.refuses.clone() {
            world.is_running |= status.code() == Code::AlreadyExists;
            return Err(status);
        }
        world.begun.push((cluster_id.to_owned(), closed_only));
        world.is_running = true;
        Ok(())
    }

    fn note_failed(&self, _cluster_id: &str) {
        self.world().failed += 1;
    }

    fn note_skipped(&self, _cluster_id: &str) {
        self.world().skipped += 1;
    }
}

/// A schedule at 02:00 every day, begun at one o'clock.
struct Setting {
    told: Told,
    scheduler: Scheduler<Told>,
    timetable: Arc<Timetable>,
}

impl Setting {
    fn new(overlap: Overlap) -> Self {
        let told = Told::default();
        told.world().is_known = true;
        told.world().last_committed_ms = Some(TWO_MS - DAY_MS);
        let timetable = Arc::new(Timetable::default());
        let schedule = Schedule {
            cron: "0 2 * * *".parse().unwrap(),
            zone: Zone::default(),
            jitter_s: 0,
            missed: Missed::RunOnce,
            overlap,
        };
        let plan = ClusterSchedule { cluster: "name".to_owned(), schedule, closed_only: true };
        let scheduler = Scheduler::new(told.clone(), vec![plan], timetable.clone(), TWO_MS - HOUR_MS);
        Self { told, scheduler, timetable }
    }

    fn begun(&self) -> usize {
        self.told.world().begun.len()
    }

    fn failed(&self) -> usize {
        self.told.world().failed
    }

    fn skipped(&self) -> usize {
        self.told.world().skipped
    }

    async fn step(&mut self, now_ms: i64) -> i64 {
        self.scheduler.step(now_ms).await
    }
}

#[tokio::test]
async fn a_point_begins_when_it_is_due_and_not_again() {
    let mut setting = Setting::new(Overlap::Skip);
    assert_eq!(setting.step(TWO_MS - HOUR_MS).await, TWO_MS);
    assert_eq!((setting.begun(), setting.timetable.next_ms("id")), (0, Some(TWO_MS)));
    assert_eq!(setting.step(TWO_MS).await, TWO_MS + DAY_MS);
    assert_eq!(setting.told.world().begun, [("id".to_owned(), true)]);
    assert_eq!(setting.timetable.next_ms("id"), Some(TWO_MS + DAY_MS));
    // It is given up: nothing was committed.
    setting.told.world().is_running = false;
    setting.step(TWO_MS + HOUR_MS).await;
    assert_eq!(setting.begun(), 1);
    setting.step(TWO_MS + DAY_MS).await;
    assert_eq!(setting.begun(), 2);
}

#[tokio::test]
async fn a_point_that_cannot_begin_is_counted_and_the_next_time_is_waited_for() {
    let mut setting = Setting::new(Overlap::Skip);
    setting.told.world().refuses = Some(Status::failed_precondition("no agent"));
    setting.step(TWO_MS - HOUR_MS).await;
    assert_eq!(setting.step(TWO_MS).await, TWO_MS + DAY_MS);
    setting.told.world().refuses = None;
    setting.step(TWO_MS + HOUR_MS).await;
    assert_eq!((setting.failed(), setting.begun()), (1, 0));
}

#[tokio::test]
async fn the_vault_is_asked_again_before_a_point_begins() {
    let mut setting = Setting::new(Overlap::Skip);
    setting.step(TWO_MS - HOUR_MS).await;
    assert_eq!(setting.told.world().asked, 1);
    setting.step(TWO_MS - HOUR_MS / 2).await;
    assert_eq!(setting.told.world().asked, 1, "it is not asked while nothing is due");
    // Another process has taken one a moment ago.
    setting.told.world().last_committed_ms = Some(TWO_MS);
    assert_eq!(setting.step(TWO_MS + 500).await, TWO_MS + DAY_MS);
    assert_eq!(setting.begun(), 0);
}

#[tokio::test]
async fn a_point_that_is_due_meanwhile_is_left_out_or_waits() {
    let mut setting = Setting::new(Overlap::Skip);
    setting.told.world().is_running = true;
    assert_eq!(setting.step(TWO_MS).await, TWO_MS + DAY_MS);
    setting.told.world().is_running = false;
    setting.step(TWO_MS + 1000).await;
    assert_eq!((setting.skipped(), setting.begun()), (1, 0));

    let mut setting = Setting::new(Overlap::Queue);
    setting.told.world().is_running = true;
    assert_eq!(setting.step(TWO_MS).await, i64::MAX, "whoever runs wakes it");
    assert_eq!(setting.timetable.next_ms("id"), Some(TWO_MS), "it is next");
    setting.told.world().is_running = false;
    setting.step(TWO_MS + 1000).await;
    assert_eq!((setting.skipped(), setting.begun()), (0, 1));
}

#[tokio::test]
async fn an_operator_who_is_faster_by_a_moment_is_no_failure() {
    let mut setting = Setting::new(Overlap::Skip);
    setting.step(TWO_MS - HOUR_MS).await;
    setting.told.world().refuses = Some(Status::already_exists("a point is being taken"));
    setting.step(TWO_MS).await;
    assert_eq!((setting.failed(), setting.skipped()), (0, 1));
}

#[tokio::test]
async fn a_cluster_that_nobody_knows_yet_is_waited_for() {
    let mut setting = Setting::new(Overlap::Skip);
    setting.told.world().is_known = false;
    assert_eq!(setting.step(TWO_MS - HOUR_MS).await, TWO_MS - HOUR_MS + RETRY_MS);
    setting.told.world().is_known = true;
    assert_eq!(setting.step(TWO_MS - HOUR_MS + 1).await, TWO_MS - HOUR_MS + RETRY_MS, "it is not asked at once");
    assert_eq!(setting.step(TWO_MS - HOUR_MS + RETRY_MS).await, TWO_MS);
}

#[tokio::test]
async fn without_the_vault_nobody_knows_what_was_missed() {
    let mut setting = Setting::new(Overlap::Skip);
    setting.told.world().is_vault_gone = true;
    setting.step(TWO_MS - HOUR_MS).await;
    setting.step(TWO_MS).await;
    assert_eq!(setting.begun(), 0);
    setting.told.world().is_vault_gone = false;
    setting.step(TWO_MS + RETRY_MS).await;
    assert_eq!(setting.begun(), 1, "it is late, and not missed");
    // But when a point is due later, the point itself will tell what is wrong.
    setting.told.world().is_vault_gone = true;
    setting.told.world().is_running = false;
    setting.step(TWO_MS + DAY_MS).await;
    assert_eq!(setting.begun(), 2);
}

#[tokio::test]
async fn a_clock_that_is_put_back_is_noticed() {
    let mut setting = Setting::new(Overlap::Skip);
    setting.step(TWO_MS).await;
    setting.told.world().is_running = false;
    assert_eq!(setting.step(TWO_MS - 10 * HOUR_MS).await, TWO_MS, "what lies in the future was not yet");
}
