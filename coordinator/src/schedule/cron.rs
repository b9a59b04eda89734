//! Cron expressions, as crontab(5) has them: `MINUTE HOUR DAY-OF-MONTH MONTH DAY-OF-WEEK`.
//!
//! This is ours because the libraries that can do without chrono (cronexpr, croner, jiff-cron) stand on an older jiff,
//! which would link a second calendar with time zones of its own; what is needed of them is this page.
//!
//! A time zone's clock is not always what a schedule expects. A time that the clock leaps over in spring counts as the
//! time as much later, and of a time that comes twice in autumn the first one counts (RFC 5545 says the same), so that
//! `30 2 * * *` is once on every day. If every hour is wanted the clock does not matter: what comes twice counts twice,
//! and what does not come does not count.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::{AmbiguousOffset, TimeZone};

/// Longest expression: far more than lists of everything take.
const LEN_MAX: usize = 1024;

/// Days that are looked at for a match. The 29th of February on one day of the week comes every 40 years at least.
const DAYS_MAX: usize = 41 * 366;

/// All hours of a day.
const EVERY_HOUR: u64 = (1 << 24) - 1;

/// A cron expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    text: String,
    /// One bit per value, in all five.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// From Sunday on.
    weekdays: u64,
    /// Both day fields say something: then either of them is enough.
    either_day: bool,
}

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// It does not have five fields.
    #[error(
        "schedule {text:?} has {found} fields and not five\n\
         hint: minute, hour, day of month, month, day of week; \"30 2 * * *\" is at half past two every day"
    )]
    Fields {
        /// The expression.
        text: String,
        /// How many it has.
        found: usize,
    },
    /// One of the fields cannot be read.
    #[error("schedule {text:?}: {field} {part:?}: {why}")]
    Field {
        /// The expression.
        text: String,
        /// Which field.
        field: &'static str,
        /// Which part of it.
        part: String,
        /// Why.
        why: String,
    },
    /// A name that stands for no expression.
    #[error("schedule {text:?} is not known\nhint: @hourly, @daily, @weekly, @monthly and @yearly are")]
    Nickname {
        /// The name.
        text: String,
    },
    /// It is longer than any that makes sense.
    #[error("a schedule of {len} bytes is longer than any that makes sense ({LEN_MAX})")]
    Length {
        /// How long.
        len: usize,
    },
    /// No year has such a day.
    #[error("schedule {text:?} names no day that there is")]
    Never {
        /// The expression.
        text: String,
    },
}

/// What a field may say.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    /// Of the values from `min` on.
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", min: 0, max: 59, names: &[] };
const HOUR: Field = Field { name: "hour", min: 0, max: 23, names: &[] };
const DAY: Field = Field { name: "day of month", min: 1, max: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
/// 7 is Sunday, too.
const WEEKDAY: Field =
    Field { name: "day of week", min: 0, max: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Field {
    /// The bits of a list of ranges; an error is (part, why).
    fn parse(&self, text: &str) -> Result<u64, (String, String)> {
        text.split(',').try_fold(0, |bits, part| match self.range(part) {
            Ok(range) => Ok(bits | range),
            Err(why) => Err((part.to_owned(), why)),
        })
    }

    /// The bits of `*`, `N`, `N-N`, `*/STEP` or `N-N/STEP`.
    fn range(&self, part: &str) -> Result<u64, String> {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (self.min, self.max),
            Some((first, last)) => (self.value(first)?, self.value(last)?),
            None if step.is_some() => {
                return Err(format!("a step needs a range before it, such as */2 or {range}-{}/2", self.max));
            }
            None => (self.value(range)?, self.value(range)?),
        };
        if first > last {
            return Err("the range ends before it begins".to_owned());
        }
        let step = step.map_or(Ok(1), |step| {
            let step = digits(step).filter(|step| (1..=self.max).contains(step));
            step.ok_or_else(|| format!("a step is a number from 1 to {}", self.max))
        })?;
        Ok((first..=last).step_by(step as usize).fold(0, |bits, value| bits | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u32, String> {
        let named = self.names.iter().zip(self.min..).find(|(name, _)| name.eq_ignore_ascii_case(text));
        let value = named.map(|(_, value)| value).or_else(|| digits(text));
        value.filter(|value| (self.min..=self.max).contains(value)).ok_or_else(|| {
            let names = match (self.names.first(), self.names.last()) {
                (Some(first), Some(last)) => format!(", or {first} to {last}"),
                _ => String::new(),
            };
            format!("must be {} to {}{names}", self.min, self.max)
        })
    }
}

/// A number of digits only.
fn digits(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        if text.len() > LEN_MAX {
            return Err(CronError::Length { len: text.len() });
        }
        let expression = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => return Err(CronError::Nickname { text: text.to_owned() }),
            other => other,
        };
        let fields: Vec<&str> = expression.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(CronError::Fields { text: text.to_owned(), found: fields.len() });
        };
        let parse = |field: &Field, value: &str| {
            let failed = |(part, why)| CronError::Field { text: text.to_owned(), field: field.name, part, why };
            field.parse(value).map_err(failed)
        };
        let weekdays = parse(&WEEKDAY, weekday)?;
        let cron = Self {
            text: text.to_owned(),
            minutes: parse(&MINUTE, minute)?,
            hours: parse(&HOUR, hour)?,
            days: parse(&DAY, day)?,
            months: parse(&MONTH, month)?,
            weekdays: weekdays | weekdays >> 7 & 1,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        let is_ever = cron.first_after(Timestamp::UNIX_EPOCH, &TimeZone::UTC).is_some();
        if is_ever { Ok(cron) } else { Err(CronError::Never { text: text.to_owned() }) }
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Cron {
    /// The first time after `after`.
    pub fn first_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        // Where the clock is put back at midnight a day's last times come after the next day's first: so it begins a
        // day early, and where something is found the next day is looked at, too.
        let begin = zone.to_datetime(after).date().yesterday().ok()?;
        let days = std::iter::successors(Some(begin), |date| date.tomorrow().ok()).take(DAYS_MAX);
        let mut on_day = days.map(|date| self.times(date, zone).filter(|time| *time > after).min());
        let first = on_day.find_map(|found| found)?;
        Some(on_day.next().flatten().map_or(first, |other| other.min(first)))
    }

    /// The last time up to `until`.
    pub fn last_until(&self, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let begin = zone.to_datetime(until).date().tomorrow().ok()?;
        let days = std::iter::successors(Some(begin), |date| date.yesterday().ok()).take(DAYS_MAX);
        let mut on_day = days.map(|date| self.times(date, zone).filter(|time| *time <= until).max());
        let last = on_day.find_map(|found| found)?;
        Some(on_day.next().flatten().map_or(last, |other| other.max(last)))
    }

    /// All times of a day of the calendar, in no particular order.
    fn times<'a>(&'a self, date: Date, zone: &'a TimeZone) -> impl Iterator<Item = Timestamp> + 'a {
        let hours = bits(if self.is_on(date) { self.hours } else { 0 });
        let clock = hours.flat_map(|hour| bits(self.minutes).map(move |minute| (hour, minute)));
        clock.flat_map(move |(hour, minute)| {
            let time = zone.to_ambiguous_timestamp(date.at(hour, minute, 0, 0));
            let is_every_hour = self.hours == EVERY_HOUR;
            let times = match time.offset() {
                AmbiguousOffset::Gap { .. } if is_every_hour => [None, None],
                AmbiguousOffset::Fold { .. } if is_every_hour => [time.earlier().ok(), time.later().ok()],
                _ => [time.compatible().ok(), None],
            };
            times.into_iter().flatten()
        })
    }

    fn is_on(&self, date: Date) -> bool {
        let has = |set: u64, value: i8| set >> value & 1 == 1;
        let is_day = has(self.days, date.day());
        let is_weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        let is_either = if self.either_day { is_day || is_weekday } else { is_day && is_weekday };
        has(self.months, date.month()) && is_either
    }
}

/// The positions of the bits that are set.
fn bits(set: u64) -> impl Iterator<Item = i8> {
    (0..60).filter(move |bit| set >> bit & 1 == 1)
}
