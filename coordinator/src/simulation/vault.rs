//! What `vault/src/points.rs` does, over the model of the store: the same steps, one request after the other.

use segvault_vault::VaultError;
use segvault_vault_format::ids::{BlobId, PointId};
use segvault_vault_format::manifest::{Intent, Outcome, PointManifest, Totals};

use super::board::Handle;
use super::cluster::CLUSTER;
use super::mutation::Mutation;
use super::store::{Answer, Ask, Name, Object};

/// The vault, as one run sees it.
pub struct Vault {
    handle: Handle,
    mutation: Option<Mutation>,
    /// Tells this run's intents and manifests from others'.
    nonce: [u8; 16],
}

impl Vault {
    /// For a run.
    pub fn new(handle: Handle, mutation: Option<Mutation>, nonce: [u8; 16]) -> Self {
        Self { handle, mutation, nonce }
    }

    /// Whether this is what is wrong.
    pub fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    async fn exists(&self, name: Name) -> Result<bool, VaultError> {
        match self.handle.ask(Ask::Exists(name)).await {
            Answer::Is(is) => Ok(is),
            _ => Err(unreachable_store()),
        }
    }

    async fn load(&self, name: Name) -> Result<Option<Object>, VaultError> {
        match self.handle.ask(Ask::Load(name)).await {
            Answer::Object(object) => Ok(object),
            _ => Err(unreachable_store()),
        }
    }

    /// Creates an object, and returns what is there now.
    async fn create(&self, name: Name, object: Object) -> Result<Object, VaultError> {
        match self.handle.ask(Ask::Create(name, object.clone())).await {
            Answer::Is(true) => return Ok(object),
            Answer::Is(false) => {}
            _ => return Err(unreachable_store()),
        }
        Ok(self.load(name).await?.expect("what exists is not deleted"))
    }

    /// The greatest number of an intent: doubles, then halves.
    async fn newest_point(&self) -> Result<u64, VaultError> {
        let (mut present, mut absent) = (0, 1);
        while self.exists(Name::Intent(absent)).await? {
            (present, absent) = (absent, absent * 2);
        }
        while absent - present > 1 {
            let middle = present + (absent - present) / 2;
            if self.exists(Name::Intent(middle)).await? {
                present = middle;
            } else {
                absent = middle;
            }
        }
        assert!(!self.exists(Name::Outcome(present + 1)).await? || self.exists(Name::Intent(present + 1)).await?);
        Ok(present)
    }

    /// `Vault::begin_point`.
    pub async fn begin_point(&self, base: u64, taken_by: &str, now_ms: i64) -> Result<PointId, VaultError> {
        let mut number = self.newest_point().await?;
        loop {
            number += 1;
            let intent = Intent {
                cluster_id: CLUSTER.to_owned(),
                number,
                began_ms: now_ms,
                base_number: base,
                taken_by: taken_by.to_owned(),
                nonce: self.nonce.to_vec(),
            };
            let ours = Object::Intent(Box::new(intent));
            if self.create(Name::Intent(number), ours.clone()).await? == ours {
                return Ok(point(number));
            }
        }
    }

    /// `Vault::latest_committed`.
    pub async fn latest_committed(&self) -> Result<Option<PointId>, VaultError> {
        for number in (1..=self.newest_point().await?).rev() {
            if self.outcome(number).await?.is_some_and(|outcome| outcome.committed) {
                return Ok(Some(point(number)));
            }
        }
        Ok(None)
    }

    /// `Vault::outcome`.
    pub async fn outcome(&self, number: u64) -> Result<Option<Outcome>, VaultError> {
        match self.load(Name::Outcome(number)).await? {
            Some(Object::Outcome(outcome)) => Ok(Some(*outcome)),
            _ => Ok(None),
        }
    }

    /// `Vault::point_manifest` of a committed point.
    pub async fn point_manifest(&self, number: u64) -> Result<PointManifest, VaultError> {
        let outcome = self.outcome(number).await?.expect("the point is committed");
        let root = outcome.root()?.expect("the point is committed");
        match self.load(Name::Manifest(number, root)).await? {
            Some(Object::Manifest(manifest)) => Ok(*manifest),
            _ => Err(unreachable_store()),
        }
    }

    /// `Vault::commit_point`.
    pub async fn commit_point(&self, manifest: &PointManifest, totals: Totals) -> Result<Outcome, VaultError> {
        manifest.check()?;
        // Two runs never have the same manifest, so whose it is may stand for its hash.
        let root = BlobId::of(&self.nonce);
        let number = manifest.number;
        let object = Object::Manifest(Box::new(manifest.clone()));
        let outcome = Outcome { committed: true, root: root.0.to_vec(), totals: Some(totals), ..Outcome::default() };
        if self.is(Mutation::OutcomeComesFirst) {
            let outcome = self.decide(number, outcome).await?;
            self.create(Name::Manifest(number, root), object).await?;
            return Ok(outcome);
        }
        self.create(Name::Manifest(number, root), object).await?;
        self.decide(number, outcome).await
    }

    /// `Vault::abort_point`.
    pub async fn abort_point(&self, number: u64, reason: &str) -> Result<Outcome, VaultError> {
        self.decide(number, Outcome { reason: reason.to_owned(), ..Outcome::default() }).await
    }

    async fn decide(&self, number: u64, outcome: Outcome) -> Result<Outcome, VaultError> {
        let ours = Box::new(Outcome { cluster_id: CLUSTER.to_owned(), number, ..outcome });
        match self.create(Name::Outcome(number), Object::Outcome(ours.clone())).await? {
            Object::Outcome(outcome) if outcome == ours => Ok(*outcome),
            Object::Outcome(outcome) => Err(VaultError::AlreadyDecided { point: point(number), outcome }),
            _ => unreachable!("an outcome lies where outcomes lie"),
        }
    }
}

fn point(number: u64) -> PointId {
    PointId { cluster_id: CLUSTER.to_owned(), number }
}

fn unreachable_store() -> VaultError {
    let location = "file:///model".parse().expect("a location");
    VaultError::Unreachable { location, why: "the model says so".to_owned() }
}
