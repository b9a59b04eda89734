//! The repository in object storage: put, get, commit.
//!
//! Write order: packs, until all are durable; the point's manifest; its outcome. Read in the opposite order. So a crash
//! at any instant leaves objects that nothing refers to, and never a point that lacks something. Objects are written
//! once; the few that decide something are created with create-if-absent, which is tried out on the very vault before
//! anything is written to it. Nothing here ever lists a bucket. `docs/vault-format.md` says it in full.
//!
//! Whoever only reads (restore, list, show) opens with [`Access::Read`] and needs no permission to write.
//!
//! Functions are `async`; what moves many bytes ([`Uploader`], [`ChunkReader`]) is blocking, made for plain threads that
//! compress and hash, and does its waiting on the runtime that the vault was opened on.

mod config;
mod error;
mod location;
mod plans;
mod points;
mod probe;
mod read;
mod store;
mod upload;

use std::future::Future;
use std::sync::Arc;

use segvault_vault_format::envelope;
use segvault_vault_format::ids::VaultId;
use segvault_vault_format::keys::Key;
use segvault_vault_format::manifest::VaultHeader;
use tokio::runtime::Handle;

pub use config::{Config, ConfigError, Secret, Setting, Settings};
pub use error::VaultError;
pub use location::{LocationError, VaultLocation};
pub use points::{Cluster, Point, PointState};
pub use read::{ChunkReader, LoadedStream};
pub use upload::{BlobWriter, UploadOptions, Uploader};

use probe::{INIT_RACERS, OPEN_RACERS};
use store::Store;

/// What a vault is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even a probe.
    Read,
    /// The store is made to prove that create-if-absent has one winner.
    Write,
}

/// An open vault. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vault {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: VaultId,
    header: VaultHeader,
    store: Store,
    runtime: Handle,
}

impl Vault {
    /// Makes a new, empty vault at `location` (for `file://`, its folder as well) and opens it for writing.
    ///
    /// Must be called on a tokio runtime with IO and time enabled, which the vault goes on using. `now_ms` is written
    /// into the header. Fails with [`VaultError::AlreadyExists`] where a vault is.
    pub async fn init(location: &VaultLocation, config: &Config, now_ms: i64) -> Result<Self, VaultError> {
        let store = Store::create(location, config)?;
        if let Some((id, _)) = store.check().await? {
            return Err(VaultError::AlreadyExists { location: location.clone(), id });
        }
        refuse_remains(&store).await?;
        probe::race(&store, INIT_RACERS).await?;
        let id = VaultId(random()?);
        let header = VaultHeader { id: id.0.to_vec(), created_ms: now_ms };
        store.create_if_absent(&Key::Vault, envelope::encode(id, &header)).await?;
        // What is there now decides, whoever wrote it: after an unclear answer it may still be ours.
        match store.check().await? {
            Some((found, header)) if found == id => Ok(Self::new(id, header, store)),
            Some((id, _)) => Err(VaultError::AlreadyExists { location: location.clone(), id }),
            None => Err(VaultError::NotAVault { location: location.clone() }),
        }
    }

    /// Opens the vault at `location`. On a tokio runtime, as [`Vault::init`].
    pub async fn open(location: &VaultLocation, config: &Config, access: Access) -> Result<Self, VaultError> {
        let store = Store::open(location, config, access)?;
        let Some((id, header)) = store.check().await? else {
            refuse_remains(&store).await?;
            return Err(VaultError::NotAVault { location: location.clone() });
        };
        if access == Access::Write {
            probe::race(&store, OPEN_RACERS).await?;
        }
        Ok(Self::new(id, header, store))
    }

    fn new(id: VaultId, header: VaultHeader, store: Store) -> Self {
        Self { inner: Arc::new(Inner { id, header, store, runtime: Handle::current() }) }
    }

    /// The vault's id.
    pub fn id(&self) -> VaultId {
        self.inner.id
    }

    /// When it was made, milliseconds since 1970.
    pub fn created_ms(&self) -> i64 {
        self.inner.header.created_ms
    }

    /// Where it is.
    pub fn location(&self) -> &VaultLocation {
        self.store().location()
    }

    /// Waits for `future` from a plain thread, on the runtime that the vault was opened on.
    ///
    /// # Panics
    /// When called from asynchronous code.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.inner.runtime.block_on(future)
    }

    fn store(&self) -> &Store {
        &self.inner.store
    }
}

/// Where a vault has lost its header, another one would make all that is left in it somebody else's.
async fn refuse_remains(store: &Store) -> Result<(), VaultError> {
    match store.exists(&Key::Cluster(1)).await? {
        true => Err(VaultError::missing(store.location(), &Key::Vault)),
        false => Ok(()),
    }
}

/// Random bytes from the operating system.
fn random<const N: usize>() -> Result<[u8; N], VaultError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| VaultError::Random(error.to_string()))?;
    Ok(bytes)
}
