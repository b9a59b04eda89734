//! What an agent shows to a monitoring system; `docs/metrics.md` names everything.
//!
//! Bytes are counted when a partition is durable, from what the coordinator is told of it: what was read for a partition
//! that then failed is not in them.

use std::sync::{Arc, Mutex, MutexGuard};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use segvault_metrics::{CertificateEnd, Exposed, Health, encode, register};
use segvault_proto::{Command, NodeFacts, Report};
use segvault_transport::Security;

use super::Standing;
use crate::pinned::Tally;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCommand {
    command: &'static str,
}

/// All that an agent counts and shows.
pub(super) struct Metrics {
    registry: Registry,
    node: (String, i32),
    security: Security,
    standing: Mutex<Standing>,
    connected: Gauge,
    certificate: CertificateEnd,
    commands: Family<OfCommand, Counter>,
    failures: Counter,
    read_bytes: Counter,
    stored_bytes: Counter,
    skipped_bytes: Counter,
    tally: Tally,
    pinned_files: Gauge,
    pinned_bytes: Gauge,
}

impl Metrics {
    /// Nothing has happened yet.
    pub fn new(facts: &NodeFacts, tally: Tally, security: Security) -> Arc<Self> {
        let mut registry = Registry::default();
        let to = &mut registry;
        let node = (facts.cluster_id.clone(), facts.node_id);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let labels = vec![("version", version), ("cluster", node.0.clone()), ("node", node.1.to_string())];
        to.register("segvault_agent_up", "The agent, and whose it is", Info::new(labels));
        let skipped = "Bytes of stored partitions that were not read: the last point has them, and files are unchanged";
        Arc::new(Self {
            node,
            security,
            standing: Mutex::new(Standing::Searching("it has just started".to_owned())),
            connected: register(to, "segvault_agent_connected_to_coordinator", "1 if it is connected"),
            certificate: CertificateEnd::register(to),
            commands: register(to, "segvault_agent_commands", "Commands of the coordinator that were begun"),
            failures: register(to, "segvault_agent_failures", "Commands that failed: the node has left the point"),
            read_bytes: register(to, "segvault_agent_read_bytes", "Read from log dirs for stored partitions"),
            stored_bytes: register(to, "segvault_agent_stored_bytes", "Added to the vault for stored partitions"),
            skipped_bytes: register(to, "segvault_agent_skipped_bytes", skipped),
            pinned_files: register(to, "segvault_agent_pinned_files", "Files that are pinned now"),
            pinned_bytes: register(to, "segvault_agent_pinned_bytes", "Bytes of the files that are pinned now"),
            tally,
            registry,
        })
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().expect("no thread panics while it holds the standing")
    }

    /// Notes where the service stands.
    pub fn stands(&self, standing: &Standing) {
        self.connected.set(matches!(standing, Standing::Connected(_)).into());
        *self.standing() = standing.clone();
    }

    /// Counts a command that is begun.
    pub fn count_command(&self, command: &Command) {
        self.commands.get_or_create(&OfCommand { command: command.name() }).inc();
    }

    /// Counts what a report says that was done.
    pub fn count_report(&self, report: &Report) {
        let [bytes, read_bytes, stored_bytes] = match report {
            Report::Stored(stored) => [stored.bytes, stored.read_bytes, stored.stored_bytes],
            Report::MetadataStored(stored) => [0, stored.read_bytes, stored.stored_bytes],
            Report::Failed { .. } => {
                self.failures.inc();
                return;
            }
            _ => return,
        };
        self.read_bytes.inc_by(read_bytes);
        self.stored_bytes.inc_by(stored_bytes);
        self.skipped_bytes.inc_by(bytes.saturating_sub(read_bytes));
    }
}

impl Exposed for Metrics {
    fn metrics(&self) -> String {
        let not_after = self.security.not_after().map(|end| end.as_second());
        self.certificate.set(not_after);
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.pinned_files.set(gauge(self.tally.files()));
        self.pinned_bytes.set(gauge(self.tally.bytes()));
        encode(&self.registry)
    }

    /// An agent that is not connected serves: it does all it can, and a restart would not help.
    fn health(&self) -> Health {
        let (status, key, value) = match self.standing().clone() {
            Standing::Connected(coordinator) => ("connected", "coordinator", coordinator),
            Standing::Searching(why) => ("searching", "why", why),
        };
        let (cluster, node) = &self.node;
        let body = serde_json::json!({
            "status": status,
            key: value,
            "role": "agent",
            "version": env!("CARGO_PKG_VERSION"),
            "cluster": cluster,
            "node": node,
        });
        Health { is_serving: true, body }
    }
}

#[cfg(test)]
mod tests;
