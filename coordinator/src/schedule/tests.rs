//! Tables for what a schedule names and decides, and properties against naive models.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;

/// Central European time, with summer time from the last Sunday of March to that of October.
fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn ms(text: &str) -> i64 {
    time(text).as_millisecond()
}

fn cron(text: &str) -> Cron {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// The first `count` times after `after`, as text.
fn times(text: &str, zone: &TimeZone, after: &str, count: usize) -> Vec<String> {
    let cron = cron(text);
    let first = cron.first_after(time(after), zone);
    let times = std::iter::successors(first, |time| cron.first_after(*time, zone));
    times.take(count).map(|time| time.to_string()).collect()
}

#[test]
fn expressions_name_the_times_that_crontab_says() {
    let cases = [
        ("30 2 * * *", "2026-01-31T02:30:00Z", ["2026-02-01T02:30:00Z", "2026-02-02T02:30:00Z"]),
        ("30 2 * * *", "2026-01-31T02:29:59Z", ["2026-01-31T02:30:00Z", "2026-02-01T02:30:00Z"]),
        ("*/20 9-10 * * *", "2026-01-31T09:40:00Z", ["2026-01-31T10:00:00Z", "2026-01-31T10:20:00Z"]),
        ("5,10-20/7 * * * *", "2026-01-31T09:05:00Z", ["2026-01-31T09:10:00Z", "2026-01-31T09:17:00Z"]),
        ("0 0 31 * *", "2026-01-31T00:00:00Z", ["2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z"]),
        ("0 0 29 2 *", "2026-01-01T00:00:00Z", ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
        ("0 0 29 2 *", "2096-03-01T00:00:00Z", ["2104-02-29T00:00:00Z", "2108-02-29T00:00:00Z"]),
        ("0 12 * jan,DEC fri", "2026-01-24T00:00:00Z", ["2026-01-30T12:00:00Z", "2026-12-04T12:00:00Z"]),
        ("0 12 * * 5-7", "2026-01-31T12:00:00Z", ["2026-02-01T12:00:00Z", "2026-02-06T12:00:00Z"]),
        ("0 12 * * 0", "2026-01-31T12:00:00Z", ["2026-02-01T12:00:00Z", "2026-02-08T12:00:00Z"]),
        // Either day is enough, unless one of the fields begins with a star.
        ("0 0 13 * fri", "2026-01-10T00:00:00Z", ["2026-01-13T00:00:00Z", "2026-01-16T00:00:00Z"]),
        ("0 0 */13 * fri", "2026-01-10T00:00:00Z", ["2026-02-27T00:00:00Z", "2026-03-27T00:00:00Z"]),
        ("0 0 29 2 */7", "2026-01-01T00:00:00Z", ["2032-02-29T00:00:00Z", "2060-02-29T00:00:00Z"]),
        ("@weekly", "2026-01-31T00:00:00Z", ["2026-02-01T00:00:00Z", "2026-02-08T00:00:00Z"]),
        ("@hourly", "2026-01-31T00:00:00Z", ["2026-01-31T01:00:00Z", "2026-01-31T02:00:00Z"]),
        ("@yearly", "2026-01-31T00:00:00Z", ["2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"]),
    ];
    for (text, after, expected) in cases {
        assert_eq!(times(text, &TimeZone::UTC, after, 2), expected, "{text} after {after}");
    }
}

#[test]
fn what_the_clock_leaps_over_counts_once_and_what_comes_twice_counts_once() {
    // On 29 March 2026 02:00 is followed by 03:00, at 01:00 UTC; on 25 October 03:00 by 02:00, at 01:00 UTC.
    let cases = [
        ("30 2 * * *", "2026-03-28T02:00:00Z", ["2026-03-29T01:30:00Z", "2026-03-30T00:30:00Z"]),
        ("30 2 * * *", "2026-10-24T01:00:00Z", ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]),
        ("0 2,3 * * *", "2026-03-28T03:00:00Z", ["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"]),
        ("0 4 * * *", "2026-03-28T12:00:00Z", ["2026-03-29T02:00:00Z", "2026-03-30T02:00:00Z"]),
    ];
    for (text, after, expected) in cases {
        assert_eq!(times(text, &berlin(), after, 2), expected, "{text} after {after}");
    }
}

#[test]
fn what_is_wanted_in_every_hour_does_not_mind_the_clock() {
    let spring = ["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"];
    assert_eq!(times("30 * * * *", &berlin(), "2026-03-29T00:00:00Z", 3), spring);
    let autumn = ["2026-10-24T23:45:00Z", "2026-10-25T00:00:00Z", "2026-10-25T00:15:00Z", "2026-10-25T00:30:00Z"];
    assert_eq!(times("*/15 * * * *", &berlin(), "2026-10-24T23:30:00Z", 4), autumn);
    let all = times("*/15 * * * *", &berlin(), "2026-10-24T22:00:00Z", 100);
    let steps = all.windows(2).map(|pair| time(&pair[1]).as_second() - time(&pair[0]).as_second());
    assert!(steps.into_iter().all(|step| step == 900), "{all:?}");
}

#[test]
fn a_clock_that_is_put_back_over_midnight_loses_nothing() {
    // From 00:01 back to 23:01 of the day before, as Newfoundland once did.
    let zone = TimeZone::posix("NST3:30NDT,M3.2.0/0:01,M11.1.0/0:01").unwrap();
    let all = times("*/15 * * * *", &zone, "2026-10-31T20:00:00Z", 60);
    let steps = all.windows(2).map(|pair| time(&pair[1]).as_second() - time(&pair[0]).as_second());
    assert!(steps.into_iter().all(|step| step == 900), "{all:?}");
    let cron = cron("*/15 * * * *");
    for pair in all.windows(2) {
        let before = time(&pair[1]).checked_sub(jiff::SignedDuration::from_millis(1)).unwrap();
        assert_eq!(cron.last_until(before, &zone), Some(time(&pair[0])));
    }
}

#[test]
fn a_bad_expression_is_refused_with_what_is_wrong() {
    let cases = [
        ("", "schedule \"\" has 0 fields and not five\nhint: minute, hour, day of month, month, day of week;"),
        ("0 30 2 * * *", "schedule \"0 30 2 * * *\" has 6 fields and not five"),
        ("60 2 * * *", "schedule \"60 2 * * *\": minute \"60\": must be 0 to 59"),
        ("0 24 * * *", "schedule \"0 24 * * *\": hour \"24\": must be 0 to 23"),
        ("0 0 0 * *", "schedule \"0 0 0 * *\": day of month \"0\": must be 1 to 31"),
        ("0 0 * foo *", "schedule \"0 0 * foo *\": month \"foo\": must be 1 to 12, or jan to dec"),
        ("0 0 * * 8", "schedule \"0 0 * * 8\": day of week \"8\": must be 0 to 7, or sun to sat"),
        ("+5 0 * * *", "schedule \"+5 0 * * *\": minute \"+5\": must be 0 to 59"),
        ("99999999999 0 * * *", "schedule \"99999999999 0 * * *\": minute \"99999999999\": must be 0 to 59"),
        ("1,,2 0 * * *", "schedule \"1,,2 0 * * *\": minute \"\": must be 0 to 59"),
        ("30-10 0 * * *", "schedule \"30-10 0 * * *\": minute \"30-10\": the range ends before it begins"),
        ("*/0 0 * * *", "schedule \"*/0 0 * * *\": minute \"*/0\": a step is a number from 1 to 59"),
        (
            "5/15 0 * * *",
            "schedule \"5/15 0 * * *\": minute \"5/15\": a step needs a range before it, such as */2 or 5-59/2",
        ),
        ("0 0 30 feb *", "schedule \"0 0 30 feb *\" names no day that there is"),
        ("@reboot", "schedule \"@reboot\" is not known\nhint: @hourly, @daily, @weekly, @monthly and @yearly are"),
        (&"1,".repeat(600), "a schedule of 1200 bytes is longer than any that makes sense (1024)"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<Cron>().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn words_and_zones_are_those_that_are_known() {
    assert_eq!("run-once".parse(), Ok(Missed::RunOnce));
    assert_eq!("skip".parse(), Ok(Missed::Skip));
    assert_eq!("queue".parse(), Ok(Overlap::Queue));
    assert_eq!("once".parse::<Missed>().unwrap_err().to_string(), "\"once\" is not one of \"run-once\" and \"skip\"");
    assert_eq!("Queue".parse::<Overlap>().unwrap_err().to_string(), "\"Queue\" is not one of \"skip\" and \"queue\"");
    assert_eq!("UTC".parse(), Ok(Zone::default()));
    let error = "Europe/Atlantis".parse::<Zone>().unwrap_err().to_string();
    assert!(error.starts_with("time zone \"Europe/Atlantis\" is not known on this host\nhint: "), "{error}");
}

fn schedule(text: &str) -> Schedule {
    let (missed, overlap) = (Missed::RunOnce, Overlap::Skip);
    Schedule { cron: cron(text), zone: Zone::default(), jitter_s: 0, missed, overlap }
}

/// What is decided on 1 February at `now`, `HH:MM`, of a schedule at 02:00 and 14:00. Committed points and what was
/// dealt with are given as hours of that day, -10 being 14:00 of the day before; `since` is when it was begun.
struct Case {
    since: i64,
    committed: Option<i64>,
    dealt_with: Option<i64>,
    running: bool,
    now: &'static str,
}

const DAY_MS: i64 = 1_769_904_000_000;
const HOUR_MS: i64 = 3_600_000;

impl Case {
    fn decide(&self, schedule: &Schedule) -> String {
        let (hour, minute) = self.now.split_once(':').unwrap();
        let now_ms = DAY_MS + hour.parse::<i64>().unwrap() * HOUR_MS + minute.parse::<i64>().unwrap() * 60_000;
        let hours = |hours: i64| DAY_MS + hours * HOUR_MS;
        let situation = Situation {
            since_ms: hours(self.since),
            last_committed_ms: self.committed.map(hours),
            dealt_with_ms: self.dealt_with.map(hours),
            is_running: self.running,
            now_ms,
        };
        let hour = |slot: Slot| (slot.at_ms - DAY_MS) / HOUR_MS;
        match schedule.decide("c", &situation) {
            Decision::Run(slot) => format!("run {}", hour(slot)),
            Decision::Skip(slot) => format!("skip {}", hour(slot)),
            Decision::Queue(slot) => format!("queue {}", hour(slot)),
            Decision::Wait(slot) => format!("wait {}", hour(slot)),
            Decision::Never => "never".to_owned(),
        }
    }
}

#[test]
fn decisions() {
    assert_eq!(DAY_MS, ms("2026-02-01T00:00:00Z"));
    let up = Case { since: -100, committed: Some(-10), dealt_with: Some(-10), running: false, now: "01:00" };
    let once = schedule("0 2,14 * * *");
    let skip = Schedule { missed: Missed::Skip, ..once.clone() };
    let queue = Schedule { overlap: Overlap::Queue, ..once.clone() };
    let cases = [
        ("before the time", Case { ..up }, &once, "wait 2"),
        ("at the time", Case { now: "02:00", ..up }, &once, "run 2"),
        ("a little late", Case { now: "02:10", ..up }, &once, "run 2"),
        ("begun, whatever became of it", Case { now: "02:10", dealt_with: Some(2), ..up }, &once, "wait 14"),
        ("somebody else has taken one", Case { now: "02:10", committed: Some(2), ..up }, &once, "wait 14"),
        ("one is being taken", Case { now: "02:00", running: true, ..up }, &once, "skip 2"),
        ("one is being taken, and this one waits", Case { now: "02:00", running: true, ..up }, &queue, "queue 2"),
        ("it waits no longer", Case { now: "05:00", ..up }, &queue, "run 2"),
        ("two have waited", Case { now: "14:00", ..up }, &queue, "run 14"),
        ("nothing is missed", Case { since: 1, ..up }, &once, "wait 2"),
        ("one is missed", Case { since: 3, dealt_with: None, now: "03:00", ..up }, &once, "run 2"),
        (
            "many are missed",
            Case { since: 3, committed: Some(-500), dealt_with: None, now: "03:00", ..up },
            &once,
            "run 2",
        ),
        ("it was made up for", Case { since: 3, dealt_with: Some(2), now: "03:10", ..up }, &once, "wait 14"),
        (
            "the missed one is not made up for",
            Case { since: 3, dealt_with: None, now: "03:00", ..up },
            &skip,
            "wait 14",
        ),
        ("not missed, only late", Case { since: 1, dealt_with: None, now: "03:00", ..up }, &skip, "run 2"),
        (
            "a new cluster has missed nothing",
            Case { since: 3, committed: None, dealt_with: None, now: "03:00", ..up },
            &once,
            "wait 14",
        ),
        (
            "and has its first point at the next time",
            Case { since: 3, committed: None, dealt_with: None, now: "14:00", ..up },
            &once,
            "run 14",
        ),
        (
            "a point of the future counts for nothing",
            Case { committed: Some(9_000), now: "02:00", ..up },
            &once,
            "run 2",
        ),
        (
            "and is not taken for one again and again",
            Case { committed: Some(9_000), dealt_with: Some(2), now: "02:10", ..up },
            &once,
            "wait 14",
        ),
    ];
    for (name, case, schedule, expected) in cases {
        assert_eq!(case.decide(schedule), expected, "{name}");
    }
}

#[test]
fn a_point_that_is_taken_before_a_slot_is_due_deals_with_it() {
    let schedule = Schedule { jitter_s: 3600, ..schedule("0 2 * * *") };
    let at_ms = ms("2026-02-01T02:00:00Z");
    let situation = Situation { since_ms: 0, last_committed_ms: Some(0), now_ms: at_ms, ..Situation::default() };
    let Decision::Run(yesterday) = schedule.decide("c", &situation) else { panic!("yesterday's was missed") };
    let situation = Situation { dealt_with_ms: Some(yesterday.at_ms), ..situation };
    let Decision::Wait(slot) = schedule.decide("c", &situation) else { panic!("the jitter lets it wait") };
    assert_eq!(slot.at_ms, at_ms);
    let situation = Situation { last_committed_ms: Some(at_ms), ..situation };
    let Decision::Wait(slot) = schedule.decide("c", &situation) else { panic!("there is nothing to do") };
    assert_eq!(slot.at_ms, ms("2026-02-02T02:00:00Z"));
}

#[test]
fn jitter_is_pinned() {
    // A change would move every fleet's points; there is no reason for one.
    let schedule = Schedule { jitter_s: 600, ..schedule("0 2 * * *") };
    let due = |cluster: &str| schedule.slot(cluster, time("2026-02-01T02:00:00Z")).due_ms / 1000;
    let at_s = ms("2026-02-01T02:00:00Z") / 1000;
    assert_eq!([due("a") - at_s, due("b") - at_s, due("c") - at_s], [585, 179, 492]);
}

/// A field's text.
fn field(min: u32, max: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("*".to_owned()),
        2 => (min..=max).prop_map(|value| value.to_string()),
        1 => (1..=max).prop_map(|step| format!("*/{step}")),
        1 => (min..=max, min..=max).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        1 => (min..=max, min..=max).prop_map(|(a, b)| format!("{a},{b}")),
    ]
}

fn expression() -> impl Strategy<Value = Cron> {
    let fields = (field(0, 59), field(0, 23), field(1, 31), field(1, 12), field(0, 6));
    let text =
        fields.prop_map(|(minute, hour, day, month, weekday)| format!("{minute} {hour} {day} {month} {weekday}"));
    text.prop_filter_map("it is never", |text| text.parse().ok())
}

fn zone() -> impl Strategy<Value = TimeZone> {
    prop_oneof![Just(TimeZone::UTC), Just(berlin()), Just(TimeZone::posix("LHST-10:30LHDT-11,M10.1.0,M4.1.0").unwrap()),]
}

/// Times of two years, to the second.
fn moment() -> impl Strategy<Value = Timestamp> {
    (1_767_000_000_i64..1_830_000_000).prop_map(|second| Timestamp::from_second(second).unwrap())
}

proptest! {
    #[test]
    fn the_next_time_is_the_first_minute_that_matches(cron in expression(), after in moment()) {
        let found = cron.first_after(after, &TimeZone::UTC).unwrap();
        prop_assert!(found > after && found.as_second() % 60 == 0);
        let fields: Vec<String> = cron.to_string().split(' ').map(str::to_owned).collect();
        let matches = |second: i64| {
            let time = TimeZone::UTC.to_datetime(Timestamp::from_second(second).unwrap());
            let has = |field: &str, min: i64, max: i64, value: i64| field.split(',').any(|part| {
                let (range, step) = part.split_once('/').unwrap_or((part, "1"));
                let (first, last) = if range == "*" { (min, max) } else {
                    let (first, last) = range.split_once('-').unwrap_or((range, range));
                    (first.parse().unwrap(), last.parse().unwrap())
                };
                value >= first && value <= last && (value - first) % step.parse::<i64>().unwrap() == 0
            });
            let day = has(&fields[2], 1, 31, time.day().into());
            let weekday = has(&fields[4], 0, 6, time.weekday().to_sunday_zero_offset().into());
            let star = fields[2].starts_with('*') || fields[4].starts_with('*');
            has(&fields[0], 0, 59, time.minute().into())
                && has(&fields[1], 0, 23, time.hour().into())
                && has(&fields[3], 1, 12, time.month().into())
                && if star { day && weekday } else { day || weekday }
        };
        prop_assert!(matches(found.as_second()), "{cron} at {found}");
        // All minutes of three days before it, as far as they are after `after`.
        let earliest = (found.as_second() - 3 * 86_400).max(after.as_second() + 1);
        let first_minute = earliest + (60 - earliest % 60) % 60;
        for second in (first_minute..found.as_second()).step_by(60) {
            prop_assert!(!matches(second), "{cron} is at {second} already");
        }
    }

    #[test]
    fn forwards_and_backwards_agree(cron in expression(), zone in zone(), after in moment()) {
        let next = cron.first_after(after, &zone).unwrap();
        prop_assert!(next > after);
        prop_assert_eq!(cron.last_until(next, &zone), Some(next));
        let before = cron.last_until(after, &zone);
        let just_before = next.checked_sub(jiff::SignedDuration::from_millis(1)).unwrap();
        prop_assert_eq!(cron.last_until(just_before, &zone), before, "nothing lies between");
        if let Some(before) = before {
            prop_assert_eq!(cron.first_after(before, &zone), Some(next));
        }
    }

    #[test]
    fn jitter_is_bounded_ordered_and_the_same_after_a_restart(
        cron in expression(), zone in zone(), after in moment(), jitter_s in 0..=JITTER_S_MAX, cluster in "[a-z]{0,8}",
    ) {
        let (missed, overlap) = (Missed::RunOnce, Overlap::Skip);
        let schedule = Schedule { cron: cron.clone(), zone: Zone(zone.clone()), jitter_s, missed, overlap };
        let again = Schedule { cron: cron.to_string().parse().unwrap(), ..schedule.clone() };
        let at = cron.first_after(after, &zone).unwrap();
        let slot = schedule.slot(&cluster, at);
        prop_assert_eq!(slot, again.slot(&cluster, at));
        prop_assert!(slot.due_ms >= slot.at_ms && slot.due_ms <= slot.at_ms + i64::from(jitter_s) * 1000);
        if let Some(next) = cron.first_after(at, &zone) {
            prop_assert!(slot.due_ms < next.as_millisecond());
        }
    }

    #[test]
    fn who_asks_when_told_to_runs_every_slot(
        cron in expression(), zone in zone(), jitter_s in 0_u32..10_000, begin in moment(),
    ) {
        let (missed, overlap) = (Missed::RunOnce, Overlap::Skip);
        let schedule = Schedule { cron: cron.clone(), zone: Zone(zone.clone()), jitter_s, missed, overlap };
        let begin_ms = begin.as_millisecond();
        let mut situation = Situation { since_ms: begin_ms, now_ms: begin_ms, ..Situation::default() };
        let mut ran = Vec::new();
        while ran.len() < 20 {
            match schedule.decide("c", &situation) {
                Decision::Run(slot) => {
                    prop_assert_eq!(slot.due_ms, situation.now_ms);
                    ran.push(slot.at_ms);
                    situation.dealt_with_ms = Some(slot.at_ms);
                }
                Decision::Wait(slot) => {
                    prop_assert!(slot.due_ms > situation.now_ms);
                    situation.now_ms = slot.due_ms;
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        let first = Timestamp::from_millisecond(ran[0]).unwrap();
        let all = std::iter::successors(Some(first), |time| cron.first_after(*time, &zone));
        prop_assert_eq!(&ran, &all.take(20).map(|time| time.as_millisecond()).collect::<Vec<_>>());
        prop_assert!(cron.first_after(begin, &zone) >= Some(first), "the first is not left out");
    }

    /// A coordinator that is asked at odd times, restarted now and then, and whose points take a while.
    #[test]
    fn a_slot_has_one_point_at_most_unless_a_restart_interrupts_it(
        minutes in 1_i64..50, jitter_s in 0_u32..3000, overlap in prop_oneof![Just(Overlap::Skip), Just(Overlap::Queue)],
        missed in prop_oneof![Just(Missed::RunOnce), Just(Missed::Skip)],
        begin in moment(), steps in proptest::collection::vec((1_i64..2000, 0_i64..5000, 0_u8..20), 1..150),
    ) {
        let cron = cron(&format!("*/{minutes} * * * *"));
        let schedule = Schedule { cron, zone: Zone::default(), jitter_s, missed, overlap };
        let mut situation = Situation { since_ms: begin.as_millisecond(), now_ms: begin.as_millisecond(), ..Situation::default() };
        // The end of the point that is being taken, and when it began.
        let mut running: Option<(i64, i64)> = None;
        let mut runs: Vec<Slot> = Vec::new();
        let mut restarts = 0;
        for (step_s, takes_s, chance) in steps {
            situation.now_ms += step_s * 1000;
            let now_ms = situation.now_ms;
            if let Some((_, began_ms)) = running.take_if(|(end_ms, _)| *end_ms <= now_ms) {
                situation.last_committed_ms = Some(began_ms);
            }
            if chance == 0 {
                restarts += 1;
                running = None;
                situation = Situation { since_ms: now_ms, dealt_with_ms: None, ..situation };
            }
            situation.is_running = running.is_some();
            match schedule.decide("c", &situation) {
                Decision::Run(slot) => {
                    prop_assert!(running.is_none());
                    prop_assert!(slot.due_ms <= now_ms);
                    runs.push(slot);
                    situation.dealt_with_ms = Some(slot.at_ms);
                    running = Some((now_ms + takes_s * 1000, now_ms));
                }
                Decision::Skip(slot) => {
                    prop_assert!(running.is_some() && overlap == Overlap::Skip && slot.due_ms <= now_ms);
                    situation.dealt_with_ms = Some(slot.at_ms);
                }
                Decision::Queue(slot) => {
                    prop_assert!(running.is_some() && overlap == Overlap::Queue && slot.due_ms <= now_ms);
                }
                Decision::Wait(slot) => {
                    prop_assert!(slot.due_ms > now_ms, "waits for what is due");
                    prop_assert!(slot.at_ms - now_ms <= 3_600_000);
                }
                Decision::Never => prop_assert!(false),
            }
        }
        let mut doubles = runs.windows(2).filter(|pair| pair[1].at_ms <= pair[0].at_ms);
        if restarts == 0 {
            prop_assert_eq!(doubles.next(), None, "a slot has one point");
        } else {
            // What a restart has interrupted is not committed, so it counts as missed.
            prop_assert!(doubles.count() <= restarts);
        }
        if missed == Missed::Skip {
            prop_assert!(runs.iter().all(|slot| slot.due_ms >= begin.as_millisecond()));
        }
    }
}
