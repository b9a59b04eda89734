//! `segvault snapshot retention`: which points a policy would keep. A plan only: nothing is deleted.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use segvault_alignment::retention::{Candidate, Policy, Reason, WallTime, plan};
use segvault_vault::{Access, Cluster, Point, PointState};
use serde::Serialize;

use crate::args::VaultArgs;
use crate::output::{self, Ending};
use crate::vault;

/// Options of `snapshot retention`.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    #[command(flatten)]
    vault: VaultArgs,
    /// Only this cluster: its name or id.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Keep the newest N points.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_last: u32,
    /// Keep all points that began within this time before the newest: 36h, 14d.
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    keep_within: Option<Duration>,
    /// Keep the newest point of each of N hours.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_hourly: u32,
    /// The same of N days.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_daily: u32,
    /// The same of N weeks; they begin on Mondays.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_weekly: u32,
    /// The same of N months.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_monthly: u32,
    /// The same of N years.
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_yearly: u32,
    /// Whose hours and days: a name such as Europe/Vienna.
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    time_zone: String,
}

/// A number and h, d or w.
fn parse_span(text: &str) -> Result<Duration, String> {
    let unit = text.chars().last().unwrap_or_default();
    let hours = match unit {
        'h' => 1,
        'd' => 24,
        'w' => 24 * 7,
        _ => return Err("say a number and h, d or w: 36h, 14d".to_owned()),
    };
    let count: u64 =
        text.trim_end_matches(unit).parse().map_err(|_| format!("{text:?} has no number before its unit"))?;
    let seconds = count.checked_mul(hours * 3600).filter(|seconds| *seconds < 1 << 40);
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text} is too long"))
}

/// What is printed: oldest first per cluster.
#[derive(Serialize)]
struct RetentionReport {
    /// Committed points that stay, and those that would go.
    kept: usize,
    dropped: usize,
    points: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// CLUSTER_ID/NUMBER.
    id: String,
    cluster_id: String,
    cluster_name: String,
    number: u64,
    /// `complete` or `degraded`.
    state: &'static str,
    /// Milliseconds since 1970.
    began_ms: i64,
    keep: bool,
    /// `newest`, `last`, `within`, `hourly`, `daily`, `weekly`, `monthly`, `yearly`.
    reasons: Vec<&'static str>,
}

impl Row {
    fn new(cluster: &Cluster, point: &Candidate, reasons: &[Reason]) -> Self {
        Self {
            id: format!("{}/{}", cluster.id, point.number),
            cluster_id: cluster.id.clone(),
            cluster_name: cluster.name.clone(),
            number: point.number,
            state: if point.degraded { "degraded" } else { "complete" },
            began_ms: point.began_ms,
            keep: !reasons.is_empty(),
            reasons: reasons.iter().copied().map(name).collect(),
        }
    }

    fn cells(&self) -> Vec<String> {
        let verdict = if self.keep { "keep" } else { "drop" };
        vec![
            self.number.to_string(),
            self.cluster_name.clone(),
            output::time(self.began_ms),
            self.state.to_owned(),
            verdict.to_owned(),
            self.reasons.join(", "),
        ]
    }
}

fn name(reason: Reason) -> &'static str {
    match reason {
        Reason::Newest => "newest",
        Reason::Last => "last",
        Reason::Within => "within",
        Reason::Hourly => "hourly",
        Reason::Daily => "daily",
        Reason::Weekly => "weekly",
        Reason::Monthly => "monthly",
        Reason::Yearly => "yearly",
    }
}

impl fmt::Display for RetentionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["POINT", "CLUSTER", "BEGAN", "STATE", "", "WHY"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.points.iter().map(Row::cells));
        f.write_str(&output::table(&rows))?;
        writeln!(f, "would keep {} and drop {}; nothing is deleted", output::count(self.kept, "point"), self.dropped)
    }
}

/// `segvault snapshot retention`.
pub fn retention(args: &RetentionArgs, json: bool) -> Result<Ending> {
    let policy = Policy {
        last: args.keep_last,
        within_ms: args.keep_within.map_or(0, |within| i64::try_from(within.as_millis()).unwrap_or(i64::MAX)),
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        monthly: args.keep_monthly,
        yearly: args.keep_yearly,
    };
    if policy.is_empty() {
        bail!("no rule is given\nhint: say what to keep, such as --keep-last 10 --keep-daily 14 --keep-monthly 12");
    }
    let zone = TimeZone::get(&args.time_zone)
        .with_context(|| format!("{:?} is no time zone that this host knows", args.time_zone))?;
    let runtime = vault::runtime()?;
    let vault = vault::open(&args.vault, Access::Read, &runtime)?;
    let clusters = match &args.cluster {
        Some(wanted) => vec![vault.wait(vault.find_cluster(Some(wanted)))?],
        None => vault.wait(vault.clusters())?,
    };
    let mut points = Vec::new();
    for cluster in clusters {
        let of_cluster = vault.wait(vault.list_points(&cluster.id))?;
        let candidates: Vec<_> = of_cluster
            .iter()
            .map(|point| candidate(point, &zone))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let reasons = plan(&candidates, &policy);
        points.extend(candidates.iter().zip(&reasons).map(|(point, reasons)| Row::new(&cluster, point, reasons)));
    }
    let kept = points.iter().filter(|row| row.keep).count();
    output::print(&RetentionReport { kept, dropped: points.len() - kept, points }, json)?;
    Ok(Ending::Done)
}

/// A point that retention looks at: a committed one.
fn candidate(point: &Point, zone: &TimeZone) -> Result<Option<Candidate>> {
    let PointState::Committed(totals) = &point.state else { return Ok(None) };
    let (number, began_ms) = (point.id.number, point.intent.began_ms);
    let began = Timestamp::from_millisecond(began_ms).with_context(|| format!("when point {} began", point.id))?;
    let began = zone.to_datetime(began);
    let week = began.date().iso_week_date();
    let wall = WallTime {
        year: began.year(),
        month: began.month(),
        day: began.day(),
        hour: began.hour(),
        week_year: week.year(),
        week: week.week(),
    };
    Ok(Some(Candidate { number, began_ms, wall, degraded: totals.degraded }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_hours_days_and_weeks() {
        let hours = |text| parse_span(text).map(|span| span.as_secs() / 3600);
        assert_eq!((hours("36h"), hours("14d"), hours("2w")), (Ok(36), Ok(336), Ok(336)));
        for text in ["", "h", "7", "7m", "-1d", "1.5h", "99999999999999999999w", "9999999999999999w", "7ü"] {
            assert!(hours(text).is_err(), "{text}");
        }
    }
}
