//! When the next restore point of a cluster begins: a pure function of its schedule, of what has happened, and of now.
//!
//! A *slot* is a time that the cron expression names. It is *due* a little later, by a jitter that follows from the
//! cluster and the time alone, so that clusters with the same schedule do not begin in the same second, and a restart
//! changes nothing. A point that began at or after a slot's time has dealt with the slot, whoever took it.
//!
//! Nothing is remembered across a restart: what was missed meanwhile is told from when the newest committed point began,
//! which is in the vault. Of all missed slots only the newest counts; a point covers everything up to its own time.

mod cron;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub use cron::{Cron, CronError};

/// Longest jitter: a day, of which nothing is left to spread over but the time until the next slot.
pub const JITTER_S_MAX: u32 = 86_400;

/// The schedule of a cluster's restore points.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// At which times.
    pub cron: Cron,
    /// Of which clock.
    pub zone: Zone,
    /// A slot is due up to so many seconds after its time, and always before the next slot.
    pub jitter_s: u32,
    /// What becomes of slots that came due while no coordinator ran.
    pub missed: Missed,
    /// What becomes of a slot that comes due while a point is being taken.
    pub overlap: Overlap,
}

/// What becomes of slots that came due while no coordinator ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missed {
    /// One point makes up for all of them. A cluster without any point has missed none.
    #[default]
    RunOnce,
    /// The next slot is waited for.
    Skip,
}

/// What becomes of a slot that comes due while a point is being taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// There is no point for it.
    #[default]
    Skip,
    /// It waits for the end of the other one; of several only the newest.
    Queue,
}

/// A word that is none of those that can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not one of {known}")]
pub struct WordError {
    given: String,
    known: &'static str,
}

impl FromStr for Missed {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "run-once" => Ok(Self::RunOnce),
            "skip" => Ok(Self::Skip),
            _ => Err(WordError { given: word.to_owned(), known: "\"run-once\" and \"skip\"" }),
        }
    }
}

impl FromStr for Overlap {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "skip" => Ok(Self::Skip),
            "queue" => Ok(Self::Queue),
            _ => Err(WordError { given: word.to_owned(), known: "\"skip\" and \"queue\"" }),
        }
    }
}

/// The clock that a schedule is read by.
#[derive(Clone, PartialEq)]
pub struct Zone(TimeZone);

/// A time zone that this host does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "time zone {name:?} is not known on this host\n\
     hint: give a name of the IANA database, such as Europe/Berlin; Debian's package tzdata has them"
)]
pub struct ZoneError {
    name: String,
}

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Zone").field(&self.0.iana_name().unwrap_or("?")).finish()
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(name: &str) -> Result<Self, ZoneError> {
        if name == "UTC" {
            return Ok(Self::default());
        }
        TimeZone::get(name).map(Self).map_err(|_| ZoneError { name: name.to_owned() })
    }
}

/// What has happened. Times are milliseconds since 1970; those that lie in the future, because a clock was wrong, count
/// for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// Since when somebody has looked after this schedule.
    pub since_ms: i64,
    /// When the newest committed point began.
    pub last_committed_ms: Option<i64>,
    /// The time of the newest slot for which a point was begun, or not begun on purpose, since then.
    pub dealt_with_ms: Option<i64>,
    /// A point is being taken.
    pub is_running: bool,
    /// Now.
    pub now_ms: i64,
}

/// A time that the schedule names. Milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The time that the cron expression names.
    pub at_ms: i64,
    /// When the point begins: before the next slot's time.
    pub due_ms: i64,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Begin a point.
    Run(Slot),
    /// Do not begin one although it is due: another one is being taken.
    Skip(Slot),
    /// Ask again when the point that is being taken has ended: one is due.
    Queue(Slot),
    /// Ask again when this one is due.
    Wait(Slot),
    /// There will be none before the calendar ends.
    Never,
}

impl Schedule {
    /// What is to be done now for a cluster. A slot that was run or skipped must be in `dealt_with_ms` from then on.
    pub fn decide(&self, cluster_id: &str, situation: &Situation) -> Decision {
        let now_ms = situation.now_ms;
        let newest = self.newest_until(cluster_id, now_ms);
        let pending = newest.filter(|slot| slot.due_ms > now_ms);
        let due = match pending {
            Some(pending) => self.newest_until(cluster_id, pending.at_ms - 1),
            None => newest,
        };
        match due.filter(|slot| situation.wants(slot, self.missed)) {
            Some(slot) if !situation.is_running => Decision::Run(slot),
            Some(slot) if self.overlap == Overlap::Queue => Decision::Queue(slot),
            Some(slot) => Decision::Skip(slot),
            None => {
                let pending = pending.filter(|slot| !situation.has_dealt_with(slot));
                pending.or_else(|| self.first_after(cluster_id, now_ms)).map_or(Decision::Never, Decision::Wait)
            }
        }
    }

    fn newest_until(&self, cluster_id: &str, until_ms: i64) -> Option<Slot> {
        let at = self.cron.last_until(Timestamp::from_millisecond(until_ms).ok()?, &self.zone.0)?;
        Some(self.slot(cluster_id, at))
    }

    fn first_after(&self, cluster_id: &str, after_ms: i64) -> Option<Slot> {
        let at = self.cron.first_after(Timestamp::from_millisecond(after_ms).ok()?, &self.zone.0)?;
        Some(self.slot(cluster_id, at))
    }

    /// The jitter never reaches the next slot, so that slots come due in order.
    fn slot(&self, cluster_id: &str, at: Timestamp) -> Slot {
        let next = self.cron.first_after(at, &self.zone.0);
        let until_next_s = next.map_or(i64::from(JITTER_S_MAX), |next| next.as_second() - at.as_second());
        let limit_s = i64::from(self.jitter_s.min(JITTER_S_MAX)).min(until_next_s - 1);
        let at_ms = at.as_millisecond();
        Slot { at_ms, due_ms: at_ms + 1000 * jitter_s(cluster_id, at.as_second(), limit_s) }
    }
}

impl Situation {
    /// Whether a slot that is due calls for a point.
    fn wants(&self, slot: &Slot, missed: Missed) -> bool {
        let was_missed = slot.due_ms < self.since_ms;
        let makes_up = missed == Missed::RunOnce && self.last_committed_ms.is_some();
        !self.has_dealt_with(slot) && (!was_missed || makes_up)
    }

    fn has_dealt_with(&self, slot: &Slot) -> bool {
        let known = [self.last_committed_ms, self.dealt_with_ms].into_iter().flatten();
        known.filter(|time_ms| *time_ms <= self.now_ms).any(|time_ms| time_ms >= slot.at_ms)
    }
}

/// Between 0 and `limit_s`, the same for the same cluster and time for ever.
fn jitter_s(cluster_id: &str, at_s: i64, limit_s: i64) -> i64 {
    let Ok(limit_s) = u64::try_from(limit_s) else { return 0 };
    let hash = blake3::Hasher::new().update(&at_s.to_le_bytes()).update(cluster_id.as_bytes()).finalize();
    let number = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
    i64::try_from(number % (limit_s + 1)).expect("no more than the limit")
}
