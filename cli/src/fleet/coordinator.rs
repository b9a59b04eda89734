//! `segvault coordinator`: the service that drives restore points.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use segvault_coordinator::schedule::{Cron, JITTER_S_MAX, Missed, Overlap, Schedule, Zone};
use segvault_coordinator::service::{ClusterSchedule, Patience, ServiceOptions, serve};
use segvault_vault::Access;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::{SecurityArgs, SecuritySettings, host_name, read_toml, stop_signal};
use crate::args::VaultArgs;
use crate::output::Ending;
use crate::{supervisor, vault};

/// Where a coordinator listens unless it is told otherwise.
const LISTEN: &str = "127.0.0.1:9640";

/// Options of `coordinator`. Flags win over the file.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// TOML file with vault, vault_config, listen, heartbeat_ms, lease_ms, barrier_deadline_ms, metrics, a table [tls]
    /// with ca, cert and key, and a table [[cluster]] per cluster whose points are scheduled: cluster (name or id),
    /// schedule (cron), time_zone (UTC), jitter_s (0), missed (run-once, or skip), overlap (skip, or queue), closed_only.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    vault: VaultArgs,
    /// Where agents and operators connect [default: 127.0.0.1:9640]. Port 0 takes any that is free.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Writes the address it listens on to this file, once agents can connect.
    #[arg(long, value_name = "FILE")]
    address_file: Option<PathBuf>,
    /// Both sides say something at least this often [default: 5000].
    #[arg(long, value_name = "N")]
    heartbeat_ms: Option<u32>,
    /// Whoever hears nothing for so long lets go: an agent of its pins, the coordinator of the agent [default: 30000].
    #[arg(long, value_name = "N")]
    lease_ms: Option<u32>,
    /// An agent that has not answered a command of the barrier by then is given up [default: 30000].
    #[arg(long, value_name = "N")]
    barrier_deadline_ms: Option<u32>,
    /// Serves /metrics (Prometheus) and /health there, over plain HTTP [default: nowhere].
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    security: SecurityArgs,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CoordinatorSettings {
    vault: Option<String>,
    vault_config: Option<PathBuf>,
    listen: Option<SocketAddr>,
    heartbeat_ms: Option<u32>,
    lease_ms: Option<u32>,
    barrier_deadline_ms: Option<u32>,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    tls: SecuritySettings,
    #[serde(default)]
    cluster: Vec<ClusterSettings>,
}

/// The scheduled points of a cluster. What cannot be read is refused where it stands, so that the line can be named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterSettings {
    /// Its name in the vault, or its id.
    #[serde(deserialize_with = "name")]
    cluster: String,
    #[serde(deserialize_with = "parsed")]
    schedule: Cron,
    #[serde(default, deserialize_with = "parsed")]
    time_zone: Zone,
    #[serde(default, deserialize_with = "jitter_s")]
    jitter_s: u32,
    #[serde(default, deserialize_with = "parsed")]
    missed: Missed,
    #[serde(default, deserialize_with = "parsed")]
    overlap: Overlap,
    #[serde(default)]
    closed_only: bool,
}

fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.is_empty() { Err(D::Error::custom("a cluster has a name or an id")) } else { Ok(name) }
}

fn jitter_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        seconds if seconds > JITTER_S_MAX => {
            Err(D::Error::custom(format_args!("{seconds} s are more than a day ({JITTER_S_MAX} s)")))
        }
        seconds => Ok(seconds),
    }
}

impl From<ClusterSettings> for ClusterSchedule {
    fn from(settings: ClusterSettings) -> Self {
        let ClusterSettings { cluster, schedule, time_zone, jitter_s, missed, overlap, closed_only } = settings;
        let schedule = Schedule { cron: schedule, zone: time_zone, jitter_s, missed, overlap };
        Self { cluster, schedule, closed_only }
    }
}

/// Each cluster has one schedule.
fn schedules(clusters: Vec<ClusterSettings>) -> Result<Vec<ClusterSchedule>> {
    let mut named = BTreeSet::new();
    if let Some(again) = clusters.iter().find(|settings| !named.insert(settings.cluster.clone())) {
        bail!(
            "cluster {:?} has two schedules\nhint: lists and ranges say several times in one schedule",
            again.cluster
        );
    }
    Ok(clusters.into_iter().map(ClusterSchedule::from).collect())
}

/// `segvault coordinator`.
pub fn coordinator(args: CoordinatorArgs) -> Result<Ending> {
    let file: CoordinatorSettings = args.config.as_deref().map(read_toml).transpose()?.unwrap_or_default();
    let security = args.security.or(file.tls).resolve()?;
    let vault_args = args.vault.or(file.vault, file.vault_config);
    let millis = |flag: Option<u32>, file: Option<u32>, default: Duration| {
        flag.or(file).map_or(default, |millis| Duration::from_millis(millis.max(1).into()))
    };
    let usual = Patience::default();
    let patience = Patience {
        heartbeat: millis(args.heartbeat_ms, file.heartbeat_ms, usual.heartbeat),
        lease: millis(args.lease_ms, file.lease_ms, usual.lease),
    };
    let barrier_deadline = millis(args.barrier_deadline_ms, file.barrier_deadline_ms, Duration::from_secs(30));
    let listen = args.listen.or(file.listen).unwrap_or_else(|| LISTEN.parse().expect("a constant address"));
    let schedules = schedules(file.cluster)?;
    let name = format!("coordinator {} on {}, process {}", env!("CARGO_PKG_VERSION"), host_name(), std::process::id());

    let runtime = vault::runtime()?;
    let vault = vault::open(&vault_args, Access::Write, &runtime)?;
    let metrics = args.metrics.or(file.metrics);
    let options = ServiceOptions { listen, security, name, patience, barrier_deadline, schedules, metrics };
    let ready = |address: SocketAddr| {
        tracing::info!(%address, "listening");
        if let Some(path) = &args.address_file
            && let Err(error) = write_whole(path, &address.to_string())
        {
            tracing::error!(path = %path.display(), %error, "write the address");
        }
        supervisor::status(&format!("listening on {address}"));
        supervisor::ready();
    };
    runtime.block_on(async {
        let stop = stop_signal()?;
        tokio::spawn(supervisor::watchdog());
        serve(vault, options, ready, stop).await?;
        supervisor::stopping();
        Ok(Ending::Done)
    })
}

/// Whoever waits for the file finds all of it.
fn write_whole(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let draft = path.with_extension("tmp");
    std::fs::write(&draft, text)?;
    std::fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::super::parse_toml;
    use super::*;

    /// What is said of a file.
    fn refused(text: &str) -> String {
        let settings = parse_toml::<CoordinatorSettings>("coordinator.toml".as_ref(), text);
        let error = settings.and_then(|settings| schedules(settings.cluster)).unwrap_err().to_string();
        error.strip_prefix("coordinator.toml: ").unwrap_or(&error).to_owned()
    }

    #[test]
    fn schedules_are_read_with_their_defaults() {
        let text = "[[cluster]]\ncluster = \"a\"\nschedule = \"30 2 * * *\"\n\n[[cluster]]\ncluster = \"b\"\n\
                    schedule = \"@hourly\"\ntime_zone = \"UTC\"\njitter_s = 300\nmissed = \"skip\"\noverlap = \"queue\"\n\
                    closed_only = true\n";
        let settings: CoordinatorSettings = toml::from_str(text).unwrap();
        let schedules = schedules(settings.cluster).unwrap();
        let [a, b] = &schedules[..] else { panic!("{schedules:?}") };
        let usual = Schedule {
            cron: "30 2 * * *".parse().unwrap(),
            zone: Zone::default(),
            jitter_s: 0,
            missed: Missed::RunOnce,
            overlap: Overlap::Skip,
        };
        assert_eq!((&a.cluster[..], &a.schedule, a.closed_only), ("a", &usual, false));
        let (missed, overlap) = (Missed::Skip, Overlap::Queue);
        let hourly = Schedule { cron: "@hourly".parse().unwrap(), jitter_s: 300, missed, overlap, ..usual };
        assert_eq!((&b.cluster[..], &b.schedule, b.closed_only), ("b", &hourly, true));
    }

    #[test]
    fn what_is_wrong_with_a_schedule_is_said_with_its_line() {
        let cases = [
            ("schedule = \"61 * * * *\"", "line 4: schedule \"61 * * * *\": minute \"61\": must be 0 to 59"),
            ("schedule = 5", "line 4: invalid type: integer `5`, expected a string"),
            (
                "schedule = \"@daily\"\ntime_zone = \"Mars\"",
                "line 5: time zone \"Mars\" is not known on this host\nhint: ",
            ),
            ("schedule = \"@daily\"\njitter_s = 86401", "line 5: 86401 s are more than a day (86400 s)"),
            ("schedule = \"@daily\"\nmissed = \"run\"", "line 5: \"run\" is not one of \"run-once\" and \"skip\""),
            ("schedule = \"@daily\"\njitter = 5", "line 5: unknown field `jitter`, expected one of `cluster`"),
            ("", "line 2: missing field `schedule`"),
        ];
        for (lines, expected) in cases {
            let error = refused(&format!("listen = \"127.0.0.1:1\"\n[[cluster]]\ncluster = \"a\"\n{lines}\n"));
            assert!(error.starts_with(expected), "{error}");
        }
        let nameless = "[[cluster]]\ncluster = \"\"\nschedule = \"@daily\"\n";
        assert_eq!(refused(nameless), "line 2: a cluster has a name or an id");
        let twice = "[[cluster]]\ncluster = \"a\"\nschedule = \"@daily\"\n".repeat(2);
        assert!(refused(&twice).starts_with("cluster \"a\" has two schedules\nhint: "));
    }
}
