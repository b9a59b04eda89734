//! What the vault says of each cluster's points, as far as it was asked.
//!
//! A coordinator remembers nothing, so whoever wants to know how old the newest point is asks the vault, also for points
//! that others have taken. What is decided once is decided for ever, so that each time only newer points are looked at.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use segvault_vault::{Vault, VaultError};
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::PointManifest;

/// How far back a complete point is looked for, in points. Behind so many degraded ones it would be of no use to say
/// how old it is.
const LOOK_BACK_MAX: usize = 1000;

/// All clusters.
pub(super) struct Histories {
    vault: Vault,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    names: BTreeMap<String, String>,
    histories: BTreeMap<String, History>,
}

/// The points of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History {
    /// All points up to this number are decided, and none of them need be looked at again.
    settled: u64,
    /// The newest committed point.
    pub last: Option<LastPoint>,
    /// When the newest complete point began, milliseconds since 1970.
    pub complete_ms: Option<i64>,
}

/// The newest committed point of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LastPoint {
    /// Its number.
    pub number: u64,
    /// When it began, milliseconds since 1970.
    pub began_ms: i64,
    /// Level reached.
    pub level: u32,
    /// Something is not covered.
    pub degraded: bool,
    /// From phase A to the end of phase C, microseconds.
    pub barrier_us: u64,
    /// Partitions that are not covered.
    pub uncovered: usize,
    /// Nodes that took part.
    pub nodes: Vec<i32>,
}

impl LastPoint {
    fn of(manifest: &PointManifest) -> Self {
        Self {
            number: manifest.number,
            began_ms: manifest.began_ms,
            level: manifest.level,
            degraded: manifest.degraded,
            barrier_us: manifest.barrier_us,
            uncovered: manifest.partitions.iter().filter(|entry| !entry.uncovered.is_empty()).count(),
            nodes: manifest.nodes.iter().map(|node| node.node_id).collect(),
        }
    }
}

impl History {
    /// Takes in what was found out by another look, which may be older.
    fn merge(&mut self, other: Self) {
        self.settled = self.settled.max(other.settled);
        self.complete_ms = self.complete_ms.max(other.complete_ms);
        let number = |history: &Self| history.last.as_ref().map_or(0, |last| last.number);
        if number(&other) > number(self) {
            self.last = other.last;
        }
    }
}

impl Histories {
    /// Nothing is known yet.
    pub fn new(vault: Vault) -> Self {
        Self { vault, known: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no thread panics while it holds the histories")
    }

    /// Asks after a cluster's points, and returns what is known of them now.
    pub async fn refresh(&self, cluster_id: &str) -> Result<History, VaultError> {
        let known = self.lock().histories.get(cluster_id).cloned().unwrap_or_default();
        let found = self.look(cluster_id, &known).await?;
        let mut known = self.lock();
        let history = known.histories.entry(cluster_id.to_owned()).or_default();
        history.merge(found);
        Ok(history.clone())
    }

    /// Asks after all clusters that the vault knows, and `others`.
    pub async fn refresh_all(&self, others: Vec<String>) -> Result<(), VaultError> {
        let clusters = self.vault.clusters().await?;
        let mut ids: Vec<String> = clusters.iter().map(|cluster| cluster.id.clone()).chain(others).collect();
        self.lock().names.extend(clusters.into_iter().map(|cluster| (cluster.id, cluster.name)));
        ids.sort();
        ids.dedup();
        for id in ids {
            self.refresh(&id).await?;
        }
        Ok(())
    }

    async fn look(&self, cluster_id: &str, known: &History) -> Result<History, VaultError> {
        let newest = self.vault.newest_point(cluster_id).await?;
        let (mut found, mut last) = (History { settled: newest, ..History::default() }, None);
        for number in (known.settled + 1..=newest).rev().take(LOOK_BACK_MAX) {
            let id = PointId { cluster_id: cluster_id.to_owned(), number };
            match self.vault.outcome(&id).await? {
                None => found.settled = number - 1,
                Some(outcome) if outcome.committed => {
                    last = last.or(Some(id));
                    let totals = outcome.totals.unwrap_or_default();
                    if !totals.degraded {
                        found.complete_ms = Some(totals.began_ms);
                        break;
                    }
                }
                Some(_) => {}
            }
        }
        let known_number = known.last.as_ref().map_or(0, |last| last.number);
        if let Some(id) = last.filter(|id| id.number > known_number) {
            found.last = Some(LastPoint::of(&self.vault.point_manifest(&id).await?));
        }
        Ok(found)
    }

    /// Takes in a point that was just committed.
    pub fn add(&self, manifest: &PointManifest) {
        let last = LastPoint::of(manifest);
        let complete_ms = (!last.degraded).then_some(last.began_ms);
        let mut known = self.lock();
        let history = known.histories.entry(manifest.cluster_id.clone()).or_default();
        history.merge(History { settled: 0, last: Some(last), complete_ms });
    }

    /// What is known of a cluster; nothing before the vault was asked.
    pub fn of(&self, cluster_id: &str) -> Option<History> {
        self.lock().histories.get(cluster_id).cloned()
    }

    /// Ids of the clusters of which something is known.
    pub fn clusters(&self) -> Vec<String> {
        let known = self.lock();
        known.names.keys().chain(known.histories.keys().filter(|id| !known.names.contains_key(*id))).cloned().collect()
    }

    /// What the vault calls a cluster; its id as long as that is not known.
    pub fn name(&self, cluster_id: &str) -> String {
        self.lock().names.get(cluster_id).cloned().unwrap_or_else(|| cluster_id.to_owned())
    }

    /// The same, but the vault is asked if it has not been. Must be called from a plain thread.
    pub fn learn_name(&self, cluster_id: &str) -> String {
        if !self.lock().names.contains_key(cluster_id) {
            match self.vault.wait(self.vault.clusters()) {
                Ok(clusters) => {
                    self.lock().names.extend(clusters.into_iter().map(|cluster| (cluster.id, cluster.name)));
                }
                Err(error) => tracing::debug!(%error, "names of clusters are not known yet"),
            }
        }
        self.name(cluster_id)
    }
}

#[cfg(test)]
pub(super) mod tests;
