//! The thread that does the work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use segvault_proto::{Command, Report};
use segvault_transport::explain;
use segvault_vault::{UploadOptions, Uploader, Vault};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel};

use super::examination::Examiner;
use super::metrics::Metrics;
use super::{Charge, restore};
use crate::agent::Agent;
use crate::upload::{Cores, Upload};

/// What is said of a bug.
const PANICKED: &str = "the agent panicked; please report this with its output";

/// Which session and run a command belongs to; its reports carry it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Counts the sessions of this process.
    pub session: u64,
    /// The coordinator's number of the run.
    pub run: u64,
}

/// A command on its way to the worker.
struct Job {
    ticket: Ticket,
    command: Command,
    /// Set when it is not wanted any more.
    cancelled: Arc<AtomicBool>,
}

/// The worker, from outside.
pub(super) struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    examiner: Examiner,
    /// For examinations; that the worker is gone is noticed all the same.
    reports: WeakUnboundedSender<(Ticket, Report)>,
    metrics: Arc<Metrics>,
    /// Cancels the last command that takes long.
    long: Option<Arc<AtomicBool>>,
    /// Commands that were handed over, and those that were answered.
    handed: u64,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// What comes back.
pub(super) type Reports = UnboundedReceiver<(Ticket, Report)>;

/// Starts the worker.
pub(super) fn start(
    charge: Charge,
    vault: Vault,
    examiner: Examiner,
    workers: usize,
    metrics: Arc<Metrics>,
) -> (Worker, Reports) {
    let (jobs, incoming) = mpsc::channel();
    let (reports, outgoing) = unbounded_channel();
    let for_examinations = reports.downgrade();
    let answered = Arc::new(AtomicU64::new(0));
    let (count, counted) = (answered.clone(), metrics.clone());
    let work = move || work(charge, &vault, workers, &counted, &count, &incoming, &reports);
    let thread = thread::Builder::new().name("worker".to_owned()).spawn(work);
    let thread = Some(thread.expect("the system lets us start a thread"));
    let reports = for_examinations;
    (Worker { jobs: Some(jobs), examiner, reports, metrics, long: None, handed: 0, answered, thread }, outgoing)
}

impl Worker {
    /// Hands a command over. Whatever comes after an upload or a restore means that it is not wanted any more.
    pub fn hand_over(&mut self, ticket: Ticket, command: Command) {
        if matches!(command, Command::Examine) {
            return self.examine(ticket);
        }
        if let Some(long) = self.long.take() {
            long.store(true, Ordering::Relaxed);
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        if matches!(command, Command::Upload { .. } | Command::Restore { .. }) {
            self.long = Some(cancelled.clone());
        }
        if let Some(jobs) = &self.jobs {
            self.handed += 1;
            // A worker that is gone is noticed when its reports end.
            let _ = jobs.send(Job { ticket, command, cancelled });
        }
    }

    /// Looks at the node in a thread of its own.
    fn examine(&self, ticket: Ticket) {
        self.metrics.count_command(&Command::Examine);
        let (examiner, reports) = (self.examiner.clone(), self.reports.clone());
        let examine = move || {
            let report = match catch_unwind(AssertUnwindSafe(|| examiner.examine())) {
                Ok(findings) => Report::Examined(findings),
                Err(_) => Report::Failed { reason: PANICKED.to_owned() },
            };
            // Nobody wants it any more if the worker is gone.
            if let Some(reports) = reports.upgrade() {
                let _ = reports.send((ticket, report));
            }
        };
        let spawned = thread::Builder::new().name("examination".to_owned()).spawn(examine);
        spawned.expect("the system lets us start a thread");
    }

    /// Whether all that was handed over is answered; then all reports of it have been sent.
    pub fn is_idle(&self) -> bool {
        self.answered.load(Ordering::Acquire) == self.handed
    }

    /// Lets go of everything and ends the thread.
    pub fn stop(&mut self) {
        self.hand_over(Ticket { session: 0, run: 0 }, Command::Release { committed: false });
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

fn work(
    mut charge: Charge,
    vault: &Vault,
    workers: usize,
    metrics: &Metrics,
    answered: &AtomicU64,
    jobs: &mpsc::Receiver<Job>,
    reports: &UnboundedSender<(Ticket, Report)>,
) {
    let cores = Cores::new(workers);
    for Job { ticket, command, cancelled } in jobs {
        metrics.count_command(&command);
        let reply = |report| {
            metrics.count_report(&report);
            drop(reports.send((ticket, report)));
        };
        let handled =
            catch_unwind(AssertUnwindSafe(|| handle(&mut charge, command, vault, &cores, &cancelled, &reply)));
        if handled.is_err() {
            reply(Report::Failed { reason: PANICKED.to_owned() });
            return;
        }
        answered.fetch_add(1, Ordering::Release);
    }
}

fn handle(
    charge: &mut Charge,
    command: Command,
    vault: &Vault,
    cores: &Cores,
    cancelled: &AtomicBool,
    reply: &(dyn Fn(Report) + Sync),
) {
    match (charge, command) {
        (charge, Command::Restore { plan, deed }) => {
            reply(match restore::carry_out(charge.node(), vault, &plan, deed, cancelled, reply) {
                Ok(restored) => Report::Restored(restored),
                Err(error) => Report::Failed { reason: explain(&error) },
            });
        }
        (Charge::Formatted(agent), command) => capture(agent, command, vault, cores, cancelled, reply),
        (Charge::Vacant(_), Command::Release { .. }) => reply(Report::Released),
        (Charge::Vacant(_), _) => {
            reply(Report::Failed { reason: "the node's log dirs are empty: there is nothing to capture".to_owned() });
        }
    }
}

/// Carries out a command of a restore point.
fn capture(
    agent: &mut Agent,
    command: Command,
    vault: &Vault,
    cores: &Cores,
    cancelled: &AtomicBool,
    reply: &(dyn Fn(Report) + Sync),
) {
    let cluster_id = agent.facts().cluster_id.clone();
    // An uploader that has failed once stays so: each upload has one of its own.
    let options = UploadOptions { open_packs: cores.count().div_ceil(2), ..UploadOptions::default() };
    let uploader = Uploader::new(vault, options);
    let upload = Upload { vault, uploader: &uploader, cluster_id: &cluster_id, cores, cancelled };
    agent.handle(command, &upload, reply);
}
