//! Which restore points a policy keeps. A decision only: nothing is deleted here.
//!
//! As backup tools do it: of each hour, day, week, month and year the newest point counts, for as many of them as the
//! policy says that have a point at all. A degraded point stands for its hour or day only where no complete one does.
//! Whatever the policy says, the newest complete point is kept, and every point that began after it: until another
//! complete one is there they are all that is left of that time.

/// How many of what to keep. Each rule adds to what is kept; one that is 0 adds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest ones.
    pub last: u32,
    /// Those that began within this many milliseconds before the newest.
    pub within_ms: i64,
    /// One per hour.
    pub hourly: u32,
    /// One per day.
    pub daily: u32,
    /// One per week, from Monday on.
    pub weekly: u32,
    /// One per month.
    pub monthly: u32,
    /// One per year.
    pub yearly: u32,
}

/// A committed point, as far as retention looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub number: u64,
    /// When it began, milliseconds since 1970.
    pub began_ms: i64,
    /// The same on the wall of whoever made the policy.
    pub wall: WallTime,
    /// Something is not covered.
    pub degraded: bool,
}

/// Where a time lies in the calendar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallTime {
    /// Year.
    pub year: i16,
    /// 1 to 12.
    pub month: i8,
    /// 1 to 31.
    pub day: i8,
    /// 0 to 23.
    pub hour: i8,
    /// The year that its week belongs to (ISO 8601).
    pub week_year: i16,
    /// 1 to 53.
    pub week: i8,
}

/// Why a point is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is the newest complete one, or younger.
    Newest,
    /// [`Policy::last`].
    Last,
    /// [`Policy::within_ms`].
    Within,
    /// [`Policy::hourly`].
    Hourly,
    /// [`Policy::daily`].
    Daily,
    /// [`Policy::weekly`].
    Weekly,
    /// [`Policy::monthly`].
    Monthly,
    /// [`Policy::yearly`].
    Yearly,
}

impl Policy {
    /// Keeps nothing that [`plan`] does not keep anyway.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why each of `points` is kept; one without a reason is not. They are a cluster's committed points by rising number.
pub fn plan(points: &[Candidate], policy: &Policy) -> Vec<Vec<Reason>> {
    let mut reasons = vec![Vec::new(); points.len()];
    let mut keep = |index: usize, reason| reasons[index].push(reason);
    let newest_complete = points.iter().rposition(|point| !point.degraded).unwrap_or(0);
    (newest_complete..points.len()).for_each(|index| keep(index, Reason::Newest));
    let last = usize::try_from(policy.last).unwrap_or(usize::MAX);
    (points.len().saturating_sub(last)..points.len()).for_each(|index| keep(index, Reason::Last));
    if let Some(newest) = points.iter().map(|point| point.began_ms).max().filter(|_| policy.within_ms > 0) {
        let from = newest.saturating_sub(policy.within_ms);
        let within = (0..points.len()).filter(|index| points[*index].began_ms >= from);
        within.for_each(|index| keep(index, Reason::Within));
    }
    type Period = fn(&WallTime) -> (i16, i8, i8, i8);
    let rules: [(u32, Reason, Period); 5] = [
        (policy.hourly, Reason::Hourly, |at| (at.year, at.month, at.day, at.hour)),
        (policy.daily, Reason::Daily, |at| (at.year, at.month, at.day, 0)),
        (policy.weekly, Reason::Weekly, |at| (at.week_year, at.week, 0, 0)),
        (policy.monthly, Reason::Monthly, |at| (at.year, at.month, 0, 0)),
        (policy.yearly, Reason::Yearly, |at| (at.year, 0, 0, 0)),
    ];
    for (count, reason, period) in rules {
        for index in newest_of_each(points, count, |point| period(&point.wall)) {
            keep(index, reason);
        }
    }
    reasons
}

/// The newest point of each of the last `count` periods that have one, a complete one where there is one.
fn newest_of_each<P: Ord>(points: &[Candidate], count: u32, period: impl Fn(&Candidate) -> P) -> Vec<usize> {
    let mut newest = std::collections::BTreeMap::new();
    for (index, point) in points.iter().enumerate() {
        let rank = (!point.degraded, index);
        let best = newest.entry(period(point)).or_insert(rank);
        *best = rank.max(*best);
    }
    newest.into_values().rev().take(count as usize).map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A point that began at an hour counted from the first of January 2024, a Monday; months have 30 days here.
    fn at(number: u64, hour: u32, degraded: bool) -> Candidate {
        let (day, month) = (hour / 24, hour / 24 / 30);
        let wall = WallTime {
            year: 2024 + (month / 12) as i16,
            month: (month % 12) as i8 + 1,
            day: (day % 30) as i8 + 1,
            hour: (hour % 24) as i8,
            week_year: 2024 + (day / 364) as i16,
            week: (day / 7 % 52) as i8 + 1,
        };
        Candidate { number, began_ms: i64::from(hour) * 3_600_000, wall, degraded }
    }

    fn kept(points: &[Candidate], policy: &Policy) -> Vec<u64> {
        let plan = plan(points, policy);
        points.iter().zip(plan).filter(|(_, reasons)| !reasons.is_empty()).map(|(point, _)| point.number).collect()
    }

    #[test]
    fn each_rule_keeps_the_newest_of_its_periods() {
        // Every six hours of 20 days: points 1 to 80.
        let points: Vec<_> = (0..80).map(|n| at(u64::from(n) + 1, n * 6, false)).collect();
        let none = Policy::default();
        let table: [(Policy, &[u64]); 8] = [
            (none, &[80]),
            (Policy { last: 3, ..none }, &[78, 79, 80]),
            (Policy { within_ms: 12 * 3_600_000, ..none }, &[78, 79, 80]),
            (Policy { hourly: 2, ..none }, &[79, 80]),
            (Policy { daily: 3, ..none }, &[72, 76, 80]),
            (Policy { weekly: 2, ..none }, &[56, 80]),
            (Policy { weekly: 9, monthly: 9, yearly: 9, ..none }, &[28, 56, 80]),
            (Policy { last: 2, daily: 2, weekly: 2, ..none }, &[56, 76, 79, 80]),
        ];
        for (policy, expected) in table {
            assert_eq!(kept(&points, &policy), expected, "{policy:?}");
        }
        assert_eq!(
            plan(&points, &Policy { last: 1, daily: 1, ..none })[79],
            [Reason::Newest, Reason::Last, Reason::Daily]
        );
        assert_eq!(plan(&[], &Policy { last: 1, within_ms: 1, daily: 1, ..none }), Vec::<Vec<Reason>>::new());
    }

    #[test]
    fn a_degraded_point_stands_only_where_no_complete_one_does() {
        let points =
            [at(1, 0, false), at(2, 1, true), at(3, 30, true), at(4, 31, true), at(5, 50, false), at(6, 51, true)];
        let none = Policy::default();
        // The first day has a complete point, the second has none, and of the third the newest complete one is kept anyway.
        assert_eq!(kept(&points, &Policy { daily: 3, ..none }), [1, 4, 5, 6]);
        assert_eq!(
            kept(&points, &none),
            [5, 6],
            "what came after the newest complete point is all there is of that time"
        );
        let degraded = [at(1, 0, true), at(2, 30, true)];
        assert_eq!(kept(&degraded, &none), [1, 2], "nothing is complete, so nothing is given away");
    }

    fn points() -> impl Strategy<Value = Vec<Candidate>> {
        proptest::collection::vec((0..200_u32, any::<bool>()), 0..40).prop_map(|steps| {
            let rising = steps.into_iter().scan((0, 0), |(number, hour), (step, degraded)| {
                (*number, *hour) = (*number + 1, *hour + step);
                Some(at(*number, *hour, degraded))
            });
            rising.collect()
        })
    }

    fn policy() -> impl Strategy<Value = Policy> {
        let counts = proptest::collection::vec(0..5_u32, 6);
        (counts, 0..1_000_000_000_i64).prop_map(|(counts, within_ms)| Policy {
            last: counts[0],
            within_ms,
            hourly: counts[1],
            daily: counts[2],
            weekly: counts[3],
            monthly: counts[4],
            yearly: counts[5],
        })
    }

    proptest! {
        #[test]
        fn the_newest_complete_point_and_all_after_it_are_kept(points in points(), policy in policy()) {
            let kept = kept(&points, &policy);
            let from = points.iter().rposition(|point| !point.degraded).unwrap_or(0);
            prop_assert!(points[from.min(points.len())..].iter().all(|point| kept.contains(&point.number)));
        }

        #[test]
        fn a_greater_policy_keeps_no_less(points in points(), policy in policy(), more in 0..3_u32) {
            let greater = Policy { last: policy.last + more, daily: policy.daily + more, weekly: policy.weekly + more, ..policy };
            let (less, all) = (kept(&points, &policy), kept(&points, &greater));
            prop_assert!(less.iter().all(|number| all.contains(number)));
        }

        /// Whoever carries the plan out and plans again gives nothing more away.
        #[test]
        fn what_is_kept_is_kept_the_next_time(points in points(), policy in policy()) {
            let first = kept(&points, &policy);
            let left: Vec<_> = points.iter().copied().filter(|point| first.contains(&point.number)).collect();
            prop_assert_eq!(kept(&left, &policy), first);
        }
    }
}
