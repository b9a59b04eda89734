//! The `segvault` binary: the operator's verbs, in one process with the agents and the coordinator.

mod args;
mod cert;
mod doctor;
mod fleet;
mod inspect;
mod manual;
mod output;
mod progress;
mod restore;
mod snapshot;
mod supervisor;
mod vault;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use args::{Cli, Command, RestoreCommand, SnapshotCommand, VaultCommand};
use output::Ending;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose);
    let json = cli.json;
    match run(cli) {
        Ok(ending) => ending.into(),
        Err(error) => {
            report(&error, json);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<Ending> {
    match cli.command {
        Command::Vault(VaultCommand::Init(args)) => vault::init(&args, cli.json),
        Command::Snapshot(SnapshotCommand::Create(args)) => snapshot::create(&args, cli.json),
        Command::Snapshot(SnapshotCommand::Cancel(args)) => fleet::cancel(args, cli.json),
        Command::Snapshot(SnapshotCommand::List(args)) => snapshot::list(&args, cli.json),
        Command::Snapshot(SnapshotCommand::Show(args)) => snapshot::show(&args, cli.json),
        Command::Snapshot(SnapshotCommand::Retention(args)) => snapshot::retention(&args, cli.json),
        Command::Snapshot(SnapshotCommand::Verify(args)) => snapshot::verify(&args, cli.json),
        Command::Restore(RestoreCommand::Plan(args)) => restore::plan(&args, cli.json),
        Command::Restore(RestoreCommand::Plans(args)) => restore::plans(&args, cli.json),
        Command::Restore(RestoreCommand::Run(args)) => restore::run(&args, cli.json),
        Command::Restore(RestoreCommand::Verify(args)) => restore::verify(&args, cli.json),
        Command::Restore(RestoreCommand::Cancel(args)) => fleet::cancel_restore(args, cli.json),
        Command::Inspect(args) => Ok(inspect::run(&args, cli.json)?),
        Command::Doctor(args) => doctor::run(&args, cli.json),
        Command::Agent(args) => fleet::agent(args),
        Command::Coordinator(args) => fleet::coordinator(args),
        Command::Cert(command) => cert::run(&command, cli.json),
        Command::Status(args) => fleet::status(args, cli.json),
        Command::Manual(args) => manual::write_pages(&args),
        Command::Completions(args) => manual::print_completions(&args),
    }
}

/// One line per failure, its causes after colons, then what to do; as JSON on standard output where JSON was asked for.
fn report(error: &anyhow::Error, json: bool) {
    let text = segvault_transport::explain(error.as_ref());
    if json {
        println!("{}", serde_json::json!({ "error": text }));
    }
    eprintln!("segvault: {text}");
}

fn log_to_stderr(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = tracing_subscriber::EnvFilter::try_from_env("SEGVAULT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("warn,segvault={level}")));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
