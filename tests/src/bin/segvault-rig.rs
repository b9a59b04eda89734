//! The harness for shell scripts: real clients around a cluster that `scripts/kafka` made, and the audit.
//!
//! ```text
//! segvault-rig setup   DIR                             topics, ACLs, users, quotas
//! segvault-rig produce DIR --ledger FILE [--rate N] [--java] [--outlive]   clients at work until `stop`; with --outlive
//!                                                      one that has failed begins anew; with --tie PID all of them
//!                                                      and their session die with that process
//! segvault-rig haunt   DIR --seed N --seconds N        kills, pauses, elections, changes of topics; prints what it did
//! segvault-rig stop    --ledger FILE                   ends `produce` and waits for it
//! segvault-rig mark    --ledger FILE                   a restore point is about to begin
//! segvault-rig state   DIR --out FILE                  what the cluster says of itself
//! segvault-rig count   --ledger FILE                   number of acknowledged records
//! segvault-rig audit   DIR --ledger FILE --before FILE --after FILE [--json FILE] [--no-clients] [--no-logs]
//! segvault-rig chaos --seed N [--rounds N] --versions A,B [--table FILE] [--plain-copy SECONDS] [--calm] [--rate N]
//!                                                      rounds of chaos, each with the next seed; a plain copy of the
//!                                                      brokers' directories is only looked at, not judged
//! ```
//!
//! `audit` prints its table and ends with 1 if anything is wrong; errors end with 2.

use segvault_tests::{
    Cluster, Result,
    audit::{Options, audit},
    chaos::{self, Means, Plan},
    ledger::Ledger,
    nemesis,
    state::State,
    workload::{self, Workload},
};
use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::Duration,
};

/// How long `stop` waits for `produce`.
const STOP_SECONDS_MAX: u64 = 120;

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("segvault-rig: {error}");
            ExitCode::from(2)
        }
    }
}

/// The command line: positional arguments, and `--name value` or `--switch`.
struct Arguments<'a>(&'a [String]);

impl Arguments<'_> {
    fn positional(&self, index: usize, what: &str) -> Result<&str> {
        self.0
            .get(index)
            .map(String::as_str)
            .filter(|a| !a.starts_with("--"))
            .ok_or_else(|| format!("{what} is missing").into())
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().position(|a| a == name).and_then(|at| self.0.get(at + 1)).map(String::as_str)
    }

    fn required(&self, name: &str) -> Result<&str> {
        self.value(name).ok_or_else(|| format!("{name} is missing").into())
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|a| a == name)
    }

    fn cluster(&self) -> Result<Cluster> {
        Cluster::open(self.positional(1, "the cluster's folder")?)
    }

    fn ledger(&self) -> Result<Ledger> {
        Ledger::open(self.required("--ledger")?)
    }

    fn beside_ledger(&self, suffix: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("{}.{suffix}", self.required("--ledger")?)))
    }

    fn state(&self, name: &str) -> Result<State> {
        let path = self.required(name)?;
        Ok(serde_json::from_str(&fs::read_to_string(path).map_err(|e| format!("read {path}: {e}"))?)?)
    }
}

/// A number.
fn number(name: &str, value: &str) -> Result<u64> {
    value.parse().map_err(|error| format!("{name} {value}: {error}").into())
}

fn run(args: &[String]) -> Result<bool> {
    let arguments = Arguments(args);
    match arguments.positional(0, "a command (setup, produce, haunt, stop, mark, state, count, audit, chaos)")? {
        "setup" => workload::set_up(&arguments.cluster()?)?,
        "produce" => produce(&arguments)?,
        "haunt" => haunt(&arguments)?,
        "stop" => stop(&arguments)?,
        "mark" => arguments.ledger()?.mark("point"),
        "state" => fs::write(arguments.required("--out")?, serde_json::to_string(&arguments.cluster()?.state()?)?)?,
        "count" => println!("{}", arguments.ledger()?.history()?.record_count()),
        "audit" => return run_audit(&arguments),
        "chaos" => play_chaos(&arguments)?,
        other => return Err(format!("unknown command {other}").into()),
    }
    Ok(true)
}

/// Works until `FILE.stop` appears, then leaves `FILE.done`.
fn produce(arguments: &Arguments<'_>) -> Result<()> {
    let (stop, done) = (arguments.beside_ledger("stop")?, arguments.beside_ledger("done")?);
    for old in [&stop, &done] {
        let _ = fs::remove_file(old);
    }
    let (java, outlive) = (arguments.has("--java"), arguments.has("--outlive"));
    let mut options = workload::Options { java, outlive, ..Default::default() };
    if let Some(rate) = arguments.value("--rate") {
        options.rate = rate.parse().map_err(|e| format!("--rate {rate}: {e}"))?;
    }
    let workload = Workload::start(&arguments.cluster()?, &arguments.ledger()?, options);
    let tied = arguments.value("--tie").map(|pid| PathBuf::from(format!("/proc/{pid}")));
    while !stop.exists() {
        if tied.as_ref().is_some_and(|process| !process.exists()) {
            workload::kill_session(std::process::id());
        }
        sleep(Duration::from_millis(100));
    }
    let outcome = workload.stop();
    fs::write(done, "")?;
    outcome
}

/// A nemesis at work for some seconds.
fn haunt(arguments: &Arguments<'_>) -> Result<()> {
    let number = |name| number(name, arguments.required(name)?);
    let (cluster, seed, seconds) = (arguments.cluster()?, number("--seed")?, number("--seconds")?);
    nemesis::set_up(&cluster)?;
    let end = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            sleep(Duration::from_secs(seconds));
            end.store(true, Ordering::SeqCst);
        });
        nemesis::haunt(&cluster, seed, &end)
    })?;
    done.iter().for_each(|deed| println!("{deed}"));
    Ok(())
}

fn stop(arguments: &Arguments<'_>) -> Result<()> {
    fs::write(arguments.beside_ledger("stop")?, "")?;
    let done = arguments.beside_ledger("done")?;
    for _ in 0..STOP_SECONDS_MAX * 10 {
        if done.exists() {
            return Ok(());
        }
        sleep(Duration::from_millis(100));
    }
    Err(format!("the clients still run after {STOP_SECONDS_MAX} s").into())
}

fn play_chaos(arguments: &Arguments<'_>) -> Result<()> {
    let optional = |name| arguments.value(name).map(|value| number(name, value)).transpose();
    let versions: Vec<String> = arguments.required("--versions")?.split(',').map(str::to_owned).collect();
    let first = number("--seed", arguments.required("--seed")?)?;
    let rig = std::env::current_exe()?;
    for seed in first..first + optional("--rounds")?.unwrap_or(1) {
        let mut plan = Plan::new(seed, &versions);
        if let Some(skew) = optional("--plain-copy")? {
            plan.means = Means::PlainCopy(Duration::from_secs(skew));
        }
        if let Some(rate) = optional("--rate")? {
            plan.rate = u32::try_from(rate)?;
        }
        plan.haunted = !arguments.has("--calm");
        println!("{plan:?}");
        let outcome = chaos::play(&plan, &rig)?;
        outcome.deeds.iter().for_each(|deed| println!("  {deed}"));
        println!("  {outcome}");
        if let Some(path) = arguments.value("--table") {
            let mut file = fs::OpenOptions::new().append(true).create(true).open(path)?;
            if file.metadata()?.len() == 0 {
                writeln!(file, "{}", chaos::HEADS)?;
            }
            writeln!(file, "{}", outcome.row(&plan))?;
        }
        if !matches!(plan.means, Means::PlainCopy(_)) {
            outcome.judge();
        }
    }
    Ok(())
}

fn run_audit(arguments: &Arguments<'_>) -> Result<bool> {
    let options =
        Options { clients: !arguments.has("--no-clients"), logs: !arguments.has("--no-logs"), ..Default::default() };
    let (before, after) = (arguments.state("--before")?, arguments.state("--after")?);
    let outcome = audit(&arguments.cluster()?, &arguments.ledger()?.history()?, &before, &after, options)?;
    println!("{outcome}");
    if let Some(path) = arguments.value("--json") {
        fs::write(path, serde_json::to_string_pretty(&outcome)?)?;
    }
    Ok(outcome.passed())
}
