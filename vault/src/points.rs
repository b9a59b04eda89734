//! Clusters and their restore points: taking a number, deciding a point, finding one.
//!
//! Numbers are dense and their intents are never deleted, so the newest is found with a few look-ups and no list.
//! A point is what its outcome says, and there is one outcome, for ever: whoever creates it first has decided. Until
//! then, whatever was written for it is nothing but objects that nobody refers to.

use std::fmt;

use futures::stream::{self, StreamExt, TryStreamExt};
use prost::Message;
use segvault_vault_format::envelope::{self, Decoded, Object};
use segvault_vault_format::ids::{BlobId, PointId};
use segvault_vault_format::keys::{Key, check_cluster_id, check_cluster_name};
use segvault_vault_format::manifest::{ClusterRecord, Intent, Outcome, PointManifest, Totals};

use crate::error::VaultError;
use crate::{Vault, random};

/// Objects of a listing that are read at the same time.
pub(crate) const READS_AT_ONCE: usize = 16;

/// Longest reason that an outcome keeps, in bytes.
const REASON_LEN_MAX: usize = 4 << 10;

/// A cluster that the vault holds points of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Kafka's cluster id.
    pub id: String,
    /// What the operator calls it.
    pub name: String,
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name == self.id { f.write_str(&self.id) } else { write!(f, "{} ({})", self.name, self.id) }
    }
}

/// A point in a listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Which.
    pub id: PointId,
    /// Who took it, and when.
    pub intent: Intent,
    /// What has become of it.
    pub state: PointState,
}

/// What has become of a point.
#[derive(Clone, Debug, PartialEq)]
pub enum PointState {
    /// Being taken, or whoever took it is dead.
    Undecided,
    /// Can be restored; the outcome says what it holds.
    Committed(Totals),
    /// Given up, and why.
    Aborted(String),
}

impl From<Option<Outcome>> for PointState {
    fn from(outcome: Option<Outcome>) -> Self {
        match outcome {
            None => Self::Undecided,
            Some(outcome) if outcome.committed => Self::Committed(outcome.totals.unwrap_or_default()),
            Some(outcome) => Self::Aborted(outcome.reason),
        }
    }
}

impl Vault {
    /// Notes that the vault holds points of cluster `id`. One that is known keeps the name it has.
    pub async fn register_cluster(&self, id: &str, name: &str) -> Result<Cluster, VaultError> {
        check_cluster_id(id)?;
        let name = if name.is_empty() { id } else { name };
        check_cluster_name(name)?;
        let record = ClusterRecord { cluster_id: id.to_owned(), name: name.to_owned() };
        loop {
            let clusters = self.clusters().await?;
            if let Some(known) = clusters.iter().find(|cluster| cluster.id == id) {
                return Ok(known.clone());
            }
            let taken = |cluster: &&Cluster| cluster.name == name || cluster.id == name || cluster.name == id;
            if let Some(other) = clusters.iter().find(taken) {
                let (location, known) = (self.location().clone(), other.to_string());
                return Err(VaultError::ClusterNameTaken { location, name: name.to_owned(), known });
            }
            let number = u32::try_from(clusters.len() + 1).expect("fewer clusters than that");
            // Somebody else may be faster, then look again: it may be the same cluster.
            self.create(&Key::Cluster(number), &record).await?;
        }
    }

    /// All clusters, in the order in which they came.
    pub async fn clusters(&self) -> Result<Vec<Cluster>, VaultError> {
        let key = |number| Key::Cluster(u32::try_from(number).unwrap_or(u32::MAX));
        let newest = self.newest(key).await?;
        let load = |number| async move {
            let record: ClusterRecord = self.load_existing(&key(number)).await?.message;
            check_cluster_id(&record.cluster_id)
                .map_err(|error| VaultError::corrupt(self.location(), &key(number), error))?;
            Ok(Cluster { id: record.cluster_id, name: record.name })
        };
        stream::iter(1..=newest).map(load).buffered(READS_AT_ONCE).try_collect().await
    }

    /// The cluster with this id or name; without one, the only cluster there is.
    pub async fn find_cluster(&self, wanted: Option<&str>) -> Result<Cluster, VaultError> {
        let clusters = self.clusters().await?;
        let location = self.location().clone();
        if clusters.is_empty() {
            return Err(VaultError::NoClusters { location, key: Key::Cluster(1).to_string() });
        }
        let known = || clusters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match wanted {
            None if clusters.len() == 1 => Ok(clusters[0].clone()),
            None => {
                let wanted = "it is not said which cluster is meant".to_owned();
                Err(VaultError::WhichCluster { location, wanted, known: known() })
            }
            Some(wanted) => {
                let found = clusters.iter().find(|cluster| cluster.id == wanted || cluster.name == wanted);
                let wanted = format!("there is no cluster {wanted:?}");
                found.cloned().ok_or_else(|| VaultError::WhichCluster { location, wanted, known: known() })
            }
        }
    }

    /// Number of the newest point of a cluster, decided or not; 0 if there is none.
    ///
    /// [`VaultError::Missing`] if the next one was decided but has no intent: a lost one must not hide newer points.
    pub async fn newest_point(&self, cluster_id: &str) -> Result<u64, VaultError> {
        loop {
            let newest = self.newest(|number| Key::Intent(point(cluster_id, number))).await?;
            let next = point(cluster_id, newest + 1);
            if !self.store().exists(&Key::Outcome(next.clone())).await? {
                return Ok(newest);
            }
            let intent = Key::Intent(next);
            if !self.store().exists(&intent).await? {
                return Err(VaultError::missing(self.location(), &intent));
            }
        }
    }

    /// Takes the next free number of a cluster. `base` is the number of the committed point whose chunks this one may
    /// refer to, 0 for none; `taken_by` is for people; `now_ms` is when the point begins.
    pub async fn begin_point(
        &self,
        cluster_id: &str,
        base: u64,
        taken_by: &str,
        now_ms: i64,
    ) -> Result<PointId, VaultError> {
        check_cluster_id(cluster_id)?;
        let nonce = random::<16>()?.to_vec();
        let mut number = self.newest_point(cluster_id).await?;
        loop {
            number += 1;
            let id = point(cluster_id, number);
            let intent = Intent {
                cluster_id: cluster_id.to_owned(),
                number,
                began_ms: now_ms,
                base_number: base,
                taken_by: taken_by.to_owned(),
                nonce: nonce.clone(),
            };
            if self.create(&Key::Intent(id.clone()), &intent).await? == intent {
                return Ok(id);
            }
        }
    }

    /// Commits a point: writes its manifest, then the outcome that names it. All it refers to must be durable.
    ///
    /// Repeating it with the same manifest and totals is fine; [`VaultError::AlreadyDecided`] if somebody has decided
    /// otherwise.
    pub async fn commit_point(&self, manifest: &PointManifest, totals: Totals) -> Result<Outcome, VaultError> {
        manifest.check()?;
        let id = point(&manifest.cluster_id, manifest.number);
        let root = BlobId::of(&manifest.encode_to_vec());
        self.create(&Key::Manifest(id.clone(), root), manifest).await?;
        self.decide(id, Outcome { committed: true, root: root.0.to_vec(), totals: Some(totals), ..Outcome::default() })
            .await
    }

    /// Gives a point up, for ever. [`VaultError::AlreadyDecided`] if it was committed, or aborted for another reason.
    pub async fn abort_point(&self, id: &PointId, reason: &str) -> Result<Outcome, VaultError> {
        let reason = reason[..reason.floor_char_boundary(REASON_LEN_MAX)].to_owned();
        self.decide(id.clone(), Outcome { reason, ..Outcome::default() }).await
    }

    async fn decide(&self, point: PointId, outcome: Outcome) -> Result<Outcome, VaultError> {
        let ours = Outcome { cluster_id: point.cluster_id.clone(), number: point.number, ..outcome };
        let outcome = self.create(&Key::Outcome(point.clone()), &ours).await?;
        if outcome == ours {
            return Ok(outcome);
        }
        Err(VaultError::AlreadyDecided { point, outcome: Box::new(outcome) })
    }

    /// The outcome of a point; nothing while it is undecided, or if there is no such point.
    pub async fn outcome(&self, id: &PointId) -> Result<Option<Outcome>, VaultError> {
        let key = Key::Outcome(id.clone());
        let Some(outcome) = self.load::<Outcome>(&key).await? else {
            return Ok(None);
        };
        self.check_point(id, &key, &outcome.cluster_id, outcome.number)?;
        outcome.root().map_err(|error| VaultError::corrupt(self.location(), &key, error))?;
        Ok(Some(outcome))
    }

    /// The manifest of a committed point: held against the outcome's root, and checked.
    pub async fn point_manifest(&self, id: &PointId) -> Result<PointManifest, VaultError> {
        let not_committed =
            |why: String| Err(VaultError::NotCommitted { location: self.location().clone(), point: id.clone(), why });
        let root = match self.outcome(id).await? {
            Some(outcome) if outcome.committed => outcome.root().ok().flatten().expect("a checked outcome"),
            Some(outcome) => return not_committed(format!("was aborted: {}", outcome.reason)),
            None => {
                self.intent(id).await?;
                return Err(self.unfinished(id));
            }
        };
        let key = Key::Manifest(id.clone(), root);
        let Decoded { message: manifest, root: found, .. } = self.load_existing::<PointManifest>(&key).await?;
        let corrupt = |why: &dyn fmt::Display| VaultError::corrupt(self.location(), &key, why);
        if found != root {
            return Err(corrupt(&"its hash is not the one in the outcome"));
        }
        self.check_point(id, &key, &manifest.cluster_id, manifest.number)?;
        manifest.check().map_err(|error| corrupt(&error))?;
        Ok(manifest)
    }

    /// The intent of a point, or [`VaultError::NoPoint`].
    async fn intent(&self, id: &PointId) -> Result<Intent, VaultError> {
        let key = Key::Intent(id.clone());
        let missing = || VaultError::NoPoint { location: self.location().clone(), point: id.clone() };
        let intent: Intent = self.load(&key).await?.ok_or_else(missing)?;
        self.check_point(id, &key, &intent.cluster_id, intent.number)?;
        Ok(intent)
    }

    /// What lies at a point's key must say that it is of this point.
    fn check_point(&self, id: &PointId, key: &Key, cluster_id: &str, number: u64) -> Result<(), VaultError> {
        if (cluster_id, number) == (&id.cluster_id, id.number) {
            return Ok(());
        }
        Err(VaultError::corrupt(self.location(), key, "it is that of another point"))
    }

    /// The newest committed point of a cluster, if there is one.
    pub async fn latest_committed(&self, cluster_id: &str) -> Result<Option<PointId>, VaultError> {
        for number in (1..=self.newest_point(cluster_id).await?).rev() {
            let id = point(cluster_id, number);
            match self.outcome(&id).await? {
                Some(outcome) if outcome.committed => return Ok(Some(id)),
                Some(_) => {}
                None => {
                    tracing::warn!(point = %id, "it is not finished, or its outcome is lost: an older one is looked for")
                }
            }
        }
        Ok(None)
    }

    /// The newest committed point. [`VaultError::NotCommitted`] if there is none and the newest one is undecided, else
    /// [`VaultError::NoCommittedPoint`].
    pub async fn require_committed(&self, cluster: &Cluster) -> Result<PointId, VaultError> {
        if let Some(latest) = self.latest_committed(&cluster.id).await? {
            return Ok(latest);
        }
        let newest = point(&cluster.id, self.newest_point(&cluster.id).await?);
        if newest.number > 0 && self.outcome(&newest).await?.is_none() {
            return Err(self.unfinished(&newest));
        }
        Err(VaultError::NoCommittedPoint { location: self.location().clone(), cluster: cluster.to_string() })
    }

    fn unfinished(&self, id: &PointId) -> VaultError {
        let why = format!("is not finished: there is no {}", Key::Outcome(id.clone()));
        VaultError::NotCommitted { location: self.location().clone(), point: id.clone(), why }
    }

    /// One point with what has become of it.
    pub async fn point(&self, id: &PointId) -> Result<Point, VaultError> {
        Ok(Point { id: id.clone(), intent: self.intent(id).await?, state: self.outcome(id).await?.into() })
    }

    /// All points of a cluster, oldest first.
    pub async fn list_points(&self, cluster_id: &str) -> Result<Vec<Point>, VaultError> {
        let newest = self.newest_point(cluster_id).await?;
        let load = |number| async move { self.point(&point(cluster_id, number)).await };
        stream::iter(1..=newest).map(load).buffered(READS_AT_ONCE).try_collect().await
    }

    /// The greatest number whose key exists, given that numbers are dense from 1: doubles, then halves.
    pub(crate) async fn newest(&self, key: impl Fn(u64) -> Key) -> Result<u64, VaultError> {
        let (mut present, mut absent) = (0, 1);
        while self.store().exists(&key(absent)).await? {
            let doubled = absent.checked_mul(2);
            let endless = || {
                VaultError::corrupt(self.location(), &key(absent), "the store says of every such key that it exists")
            };
            (present, absent) = (absent, doubled.ok_or_else(endless)?);
        }
        while absent - present > 1 {
            let middle = present + (absent - present) / 2;
            if self.store().exists(&key(middle)).await? {
                present = middle;
            } else {
                absent = middle;
            }
        }
        Ok(present)
    }

    /// Creates an object, and returns what is there now: the message, or what somebody else has created before.
    ///
    /// Reading back is what makes a lost answer harmless: the store says "exists" of our own object.
    pub(crate) async fn create<M: Object + Clone>(&self, key: &Key, message: &M) -> Result<M, VaultError> {
        if self.store().create_if_absent(key, envelope::encode(self.id(), message)).await? {
            return Ok(message.clone());
        }
        Ok(self.load_existing(key).await?.message)
    }

    pub(crate) async fn load<M: Object>(&self, key: &Key) -> Result<Option<M>, VaultError> {
        Ok(self.store().load(self.id(), key).await?.map(|decoded| decoded.message))
    }

    async fn load_existing<M: Object>(&self, key: &Key) -> Result<Decoded<M>, VaultError> {
        self.store().load(self.id(), key).await?.ok_or_else(|| VaultError::missing(self.location(), key))
    }
}

fn point(cluster_id: &str, number: u64) -> PointId {
    PointId { cluster_id: cluster_id.to_owned(), number }
}
