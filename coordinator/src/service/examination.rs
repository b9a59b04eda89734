//! Agents look at their nodes when an operator asks; whatever run they are in goes on.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use segvault_proto::{Command, Finding, Report, Severity, rpc};
use tonic::Status;

use super::fleet::{Fleet, Introduction};

/// A node with thousands of replicas on slow disks has answered by then.
const DEADLINE: Duration = Duration::from_secs(120);

/// Has the agents of `nodes` look, or of all nodes if none is given. Whoever has an agent here, or had one a moment ago,
/// is in the answer; of those that do not answer it says so. Blocking.
pub(super) fn examine(
    fleet: &Fleet,
    cluster_id: &str,
    number: u64,
    nodes: &[i32],
) -> Result<Vec<rpc::NodeFindings>, Status> {
    let is_wanted = |node_id: i32| nodes.is_empty() || nodes.contains(&node_id);
    let agents = fleet.status(cluster_id, Instant::now());
    let absent: Vec<_> = nodes.iter().filter(|node| agents.iter().all(|agent| agent.node_id != **node)).collect();
    if agents.is_empty() || !absent.is_empty() {
        let of_nodes = if absent.is_empty() { String::new() } else { format!("the nodes {absent:?} of ") };
        return Err(Status::failed_precondition(format!(
            "no agent of {of_nodes}cluster {cluster_id} is connected\n\
             hint: segvault status shows who is here; to look without an agent, on the host: segvault doctor \
             --broker-config FILE"
        )));
    }
    let (answers, incoming) = mpsc::channel();
    let wanted = |hello: &Introduction| is_wanted(hello.facts.node_id);
    let mut waiting = fleet.ask(cluster_id, number, &Command::Examine, &answers, wanted);
    drop(answers);
    let mut found: BTreeMap<i32, rpc::NodeFindings> = agents
        .into_iter()
        .filter(|agent| is_wanted(agent.node_id) && !waiting.contains_key(&agent.node_id))
        .map(|agent| {
            let message = format!("its agent is not connected; it was heard {} s ago", agent.silent_ms / 1000);
            (agent.node_id, node_findings(agent.node_id, agent.host, vec![silent(message)]))
        })
        .collect();
    let deadline = Instant::now() + DEADLINE;
    while !waiting.is_empty() {
        let Ok((node_id, report)) = incoming.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
            break;
        };
        let Some(hello) = waiting.remove(&node_id) else { continue };
        let findings = match report {
            Report::Examined(findings) => findings,
            Report::Failed { reason } => vec![silent(reason)],
            _ => vec![silent("its agent answers something else: is it of the same version?".to_owned())],
        };
        found.insert(node_id, node_findings(node_id, hello.host, findings));
    }
    fleet.forget(cluster_id, number);
    for (node_id, hello) in waiting {
        let message = format!("its agent has not answered for {} s", DEADLINE.as_secs());
        found.insert(node_id, node_findings(node_id, hello.host, vec![silent(message)]));
    }
    Ok(found.into_values().collect())
}

fn node_findings(node_id: i32, host: String, findings: Vec<Finding>) -> rpc::NodeFindings {
    rpc::NodeFindings { node_id, host, findings: findings.into_iter().map(rpc::Finding::from).collect() }
}

/// What is found of a node that nothing is known of.
fn silent(message: String) -> Finding {
    let remedy = "look at the agent on its host: journalctl -u segvault-agent".to_owned();
    Finding { severity: Severity::Error, subject: "agent".to_owned(), message, remedy }
}

#[cfg(test)]
mod tests;
