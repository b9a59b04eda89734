//! Restores of a fleet: the agents of a saved plan's nodes carry it out, each on its own, and may be told to again.
//!
//! What is restored is fixed by the plan, so nothing is decided here. Whatever fails on one node leaves the others alone:
//! the same request again goes on where it was, and is done where it is done.

use std::collections::BTreeSet;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use segvault_proto::rpc::node_restore::State;
use segvault_proto::{Command, Report, RestoreDeed, rpc};
use segvault_vault_format::ids::PlanId;
use segvault_vault_format::plan::Plan;
use tokio::sync::watch;
use tonic::Status;

use super::fleet::Introduction;
use super::runs::{Runs, refuse_while_restoring};
use crate::drive::unix_ms;

/// Agents are waited for this long: one that has just been restored comes back as another one.
const ARRIVAL: Duration = Duration::from_secs(15);

/// How often a restore looks up from waiting.
const TICK: Duration = Duration::from_millis(200);

/// A restore under way, or the last one.
pub(super) struct FleetRestore {
    cancel: Arc<OnceLock<()>>,
    status: watch::Receiver<rpc::RestoreStatus>,
}

impl FleetRestore {
    /// How far it is.
    pub fn status(&self) -> rpc::RestoreStatus {
        self.status.borrow().clone()
    }

    /// Whether it is still under way.
    pub fn is_under_way(&self) -> bool {
        !is_over(&self.status.borrow())
    }
}

/// Whether nothing comes after this.
pub(super) fn is_over(status: &rpc::RestoreStatus) -> bool {
    status.ended_ms > 0
}

impl Runs {
    /// Begins a restore of `nodes` by a plan of the vault; of all its nodes, if none is given. How it goes on comes
    /// through the receiver.
    pub async fn begin_restore(
        self: &Arc<Self>,
        plan: Plan,
        deed: RestoreDeed,
        nodes: &[i32],
    ) -> Result<watch::Receiver<rpc::RestoreStatus>, Status> {
        let id = PlanId { cluster_id: plan.cluster_id.clone(), number: plan.number };
        let planned: BTreeSet<i32> = plan.nodes.iter().map(|node| node.node_id).collect();
        if let Some(node) = nodes.iter().find(|node| !planned.contains(node)) {
            return Err(Status::invalid_argument(format!(
                "node {node} is not in plan {id}, which has the nodes {planned:?}\n\
                 hint: segvault restore plan --show {} tells what is in it",
                plan.number
            )));
        }
        let nodes = if nodes.is_empty() { planned } else { nodes.iter().copied().collect() };
        self.await_arrivals(&id, &nodes).await?;
        let hosts = self.fleet.hosts(&id.cluster_id);
        let host = |node: &i32| hosts.get(node).map(|hello| hello.host.clone()).unwrap_or_default();
        let status = rpc::RestoreStatus {
            cluster_id: id.cluster_id.clone(),
            plan: id.number,
            point: plan.point,
            deed: rpc::RestoreDeed::from(deed).into(),
            began_ms: unix_ms(),
            ended_ms: 0,
            nodes: nodes
                .iter()
                .map(|node| rpc::NodeRestore { node_id: *node, host: host(node), state: None })
                .collect(),
        };
        let (sender, receiver) = watch::channel(status);
        let cancel = Arc::new(OnceLock::new());
        {
            let mut clusters = self.lock();
            let cluster = clusters.entry(id.cluster_id.clone()).or_default();
            if cluster.running.is_some() {
                return Err(Status::already_exists(format!(
                    "a restore point of cluster {} is being taken\n\
                     hint: wait until it has ended, or end it: segvault snapshot cancel",
                    id.cluster_id
                )));
            }
            refuse_while_restoring(cluster)?;
            cluster.restore = Some(FleetRestore { cancel: cancel.clone(), status: receiver.clone() });
        }
        self.changed.send_replace(());
        let runs = self.clone();
        let thread = thread::Builder::new().name("restore".to_owned());
        let spawned = thread.spawn(move || runs.restore(&id, deed, &nodes, &sender, &cancel));
        spawned.expect("the system lets us start a thread");
        Ok(receiver)
    }

    /// Waits a while for the agents of `nodes`; says who has not come.
    async fn await_arrivals(&self, plan: &PlanId, nodes: &BTreeSet<i32>) -> Result<(), Status> {
        let mut arrivals = self.fleet.watch();
        let absent = || -> Vec<i32> {
            let hosts = self.fleet.hosts(&plan.cluster_id);
            nodes.iter().filter(|node| !hosts.contains_key(node)).copied().collect()
        };
        let all_here = async { while !absent().is_empty() && arrivals.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(ARRIVAL, all_here).await;
        let absent = absent();
        if absent.is_empty() {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "no agent of the nodes {absent:?} of plan {plan} is connected\n\
             hint: start their agents (segvault status shows who is here); or name the other nodes with --node, and \
             restore these on their hosts: segvault restore run --plan {} --broker-config FILE",
            plan.number
        )))
    }

    fn restore(
        &self,
        plan: &PlanId,
        deed: RestoreDeed,
        nodes: &BTreeSet<i32>,
        status: &watch::Sender<rpc::RestoreStatus>,
        cancel: &OnceLock<()>,
    ) {
        let run = self.next_number();
        tracing::info!(%plan, ?deed, ?nodes, "restore begins");
        let (reports, incoming) = mpsc::channel();
        let is_wanted = |hello: &Introduction| nodes.contains(&hello.facts.node_id);
        let links = self.fleet.begin_run(&plan.cluster_id, run, &reports, is_wanted);
        drop(reports);
        for node in nodes {
            let link = links.iter().find(|link| link.facts.node_id == *node);
            let command = Command::Restore { plan: plan.clone(), deed };
            if !link.is_some_and(|link| (link.send)(command)) {
                self.take_in(status, *node, failed("its agent is gone"));
            }
        }
        let mut is_cancelled = false;
        while !has_ended(&status.borrow()) {
            match incoming.recv_timeout(TICK) {
                Ok((node, report)) => self.take_in(status, node, report),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if cancel.get().is_some() && !std::mem::replace(&mut is_cancelled, true) {
                // Each agent that is still at it fails now, and says so.
                for link in &links {
                    (link.send)(Command::Release { committed: false });
                }
            }
        }
        self.fleet.end_run(&plan.cluster_id, run);
        status.send_modify(|status| {
            let unended = status.nodes.iter_mut().filter(|node| !is_end(node));
            unended.for_each(|node| node.state = state_of(failed("its agent is gone")));
            status.ended_ms = unix_ms().max(1);
        });
        let failures: Vec<i32> = failures(&status.borrow());
        tracing::info!(%plan, ?deed, ?failures, "restore has ended");
        self.changed.send_replace(());
    }

    /// Notes what an agent reports; what has ended stays as it has.
    fn take_in(&self, status: &watch::Sender<rpc::RestoreStatus>, node_id: i32, report: Report) {
        let Some(state) = state_of(report) else { return };
        status.send_modify(|status| {
            if let Some(node) = status.nodes.iter_mut().find(|node| node.node_id == node_id && !is_end(node)) {
                node.state = Some(state);
            }
        });
        self.changed.send_replace(());
    }

    /// Stops the restore under way; how it ends comes through the receiver.
    pub fn cancel_restore(&self, cluster_id: &str) -> Result<watch::Receiver<rpc::RestoreStatus>, Status> {
        let clusters = self.lock();
        let restore = clusters.get(cluster_id).and_then(|cluster| cluster.restore.as_ref());
        let restore = restore.filter(|restore| restore.is_under_way());
        let restore = restore
            .ok_or_else(|| Status::failed_precondition(format!("no restore of cluster {cluster_id} is under way")))?;
        restore.cancel.get_or_init(|| ());
        Ok(restore.status.clone())
    }
}

fn failed(reason: &str) -> Report {
    Report::Failed { reason: reason.to_owned() }
}

/// What a report makes of a node's restore; nothing if it says nothing of it.
fn state_of(report: Report) -> Option<State> {
    match report {
        Report::Restoring(restoring) => Some(State::Restoring(restoring.into())),
        Report::Restored(restored) => Some(State::Restored(restored.into())),
        Report::Failed { reason } => Some(State::Failed(rpc::report::Failed { reason })),
        _ => None,
    }
}

fn is_end(node: &rpc::NodeRestore) -> bool {
    matches!(node.state, Some(State::Restored(_) | State::Failed(_)))
}

fn has_ended(status: &rpc::RestoreStatus) -> bool {
    status.nodes.iter().all(is_end)
}

fn failures(status: &rpc::RestoreStatus) -> Vec<i32> {
    let failed = status.nodes.iter().filter(|node| matches!(node.state, Some(State::Failed(_))));
    failed.map(|node| node.node_id).collect()
}

#[cfg(test)]
mod tests;
