//! The store under a vault: object keys in, bytes out, errors that name the vault and the key.
//!
//! On a local file system every write is durable when it returns: the object's bytes, its name, and the names of all
//! folders above it. The client syncs the folders that it makes itself, but one made a moment ago by another task may
//! not be durable yet, so each process syncs the way down to a folder once before it first writes there.
//!
//! A local vault may lie on a file system that is unmounted while a process has it open; what is written then lands
//! beneath, in a folder that only looks like the vault, and vanishes from sight when the file system is back. So after
//! each write it is made sure that the folder is the vault and has the object.
//!
//! Local reads of blobs go past the client, straight to `pread`.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig};
use segvault_vault_format::envelope::{self, Decoded, EnvelopeError, HEADER_LEN, Object};
use segvault_vault_format::ids::{PackId, VaultId};
use segvault_vault_format::keys::Key;
use segvault_vault_format::manifest::VaultHeader;

use crate::Access;
use crate::config::{Config, ConfigError};
use crate::error::VaultError;
use crate::location::VaultLocation;

/// For the connection to be made. A store that needs longer is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// For one request with its bytes: a pack of 16 MiB at a quarter of a megabyte per second.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a failing request is tried again, once the vault is open.
const RETRY_TIMEOUT: Duration = Duration::from_secs(120);
/// The same for the first request, where a mistake in the settings is more likely than a hiccup.
const FIRST_TIMEOUT: Duration = Duration::from_secs(6);
/// Whatever happens, opening takes no longer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// A store and where in it the vault is.
#[derive(Debug)]
pub(crate) struct Store {
    location: VaultLocation,
    access: Access,
    lacks_credentials: bool,
    objects: Arc<dyn ObjectStore>,
    /// The same place with less patience, and without syncing: for the first request and for probes.
    hasty: Arc<dyn ObjectStore>,
    prefix: String,
    local: Option<Arc<LocalDir>>,
}

impl Store {
    /// The store at `location`; makes the folder of a `file://` vault.
    pub(crate) fn create(location: &VaultLocation, config: &Config) -> Result<Self, VaultError> {
        if let VaultLocation::File(path) = location {
            let io = |source| VaultError::io(location, "create", path.display(), source);
            create_dir_durably(path).map_err(io)?;
        }
        Self::open(location, config, Access::Write)
    }

    /// The store at `location`. Asks it nothing yet.
    pub(crate) fn open(location: &VaultLocation, config: &Config, access: Access) -> Result<Self, VaultError> {
        let lacks_credentials = config.lacks_credentials();
        let (location, prefix) = (location.clone(), String::new());
        match &location {
            VaultLocation::File(path) => {
                let root = match std::fs::canonicalize(path) {
                    Ok(root) if !root.is_dir() => return Err(VaultError::NotAVault { location }),
                    Ok(root) => root,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        return Err(VaultError::NotAVault { location });
                    }
                    Err(error) => {
                        return Err(VaultError::io(&location, "open", path.display(), error));
                    }
                };
                let files = || {
                    LocalFileSystem::new_with_prefix(&root)
                        .map_err(|error| VaultError::store(&location, "open", path.display(), error))
                };
                let objects = Arc::new(files()?.with_fsync(true));
                let hasty = Arc::new(files()?.with_automatic_cleanup(true));
                let local = Some(Arc::new(LocalDir { root, synced: Mutex::default(), vault: Mutex::default() }));
                Ok(Self { objects, hasty, local, prefix, lacks_credentials, access, location: location.clone() })
            }
            VaultLocation::S3 { bucket, prefix } => {
                if let Some(why) = config.credentials_are_hopeless() {
                    return Err(VaultError::NoCredentials { location, why: why.to_owned() });
                }
                let client = |request, tries, retry_timeout| {
                    let options = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(request);
                    let backoff = BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() };
                    let retry = RetryConfig { backoff, max_retries: tries, retry_timeout };
                    let built = config.s3(bucket, options).with_retry(retry).build();
                    built.map_err(|error| VaultError::Config(ConfigError::Client(error.to_string())))
                };
                // Tries are not what is limited: twenty of them, with their jitter, are over in some seconds.
                let objects = Arc::new(client(REQUEST_TIMEOUT, usize::MAX, RETRY_TIMEOUT)?);
                let hasty = Arc::new(client(FIRST_TIMEOUT, 2, FIRST_TIMEOUT)?);
                let prefix = prefix.clone();
                Ok(Self { objects, hasty, local: None, prefix, lacks_credentials, access, location: location.clone() })
            }
        }
    }

    pub(crate) fn location(&self) -> &VaultLocation {
        &self.location
    }

    /// The vault's header, if there is a vault. The first request to a store: it answers soon, or is unreachable.
    pub(crate) async fn check(&self) -> Result<Option<(VaultId, VaultHeader)>, VaultError> {
        let get = self.get_from(&*self.hasty, &Key::Vault, limit::<VaultHeader>());
        let timed_out = || VaultError::Unreachable {
            location: self.location.clone(),
            why: format!("no answer in {} seconds", OPEN_TIMEOUT.as_secs()),
        };
        let bytes = match tokio::time::timeout(OPEN_TIMEOUT, get).await.map_err(|_| timed_out()).flatten() {
            Ok(bytes) => bytes,
            Err(VaultError::Unreachable { location, why }) if self.lacks_credentials => {
                return Err(VaultError::NoCredentials { location, why });
            }
            Err(error) => return Err(error),
        };
        let Some(bytes) = bytes else { return Ok(None) };
        if let Some(local) = &self.local {
            *local.vault() = Some(bytes.to_vec());
        }
        let Decoded { vault: id, message: header, .. } = self.decode::<VaultHeader>(None, &Key::Vault, &bytes)?;
        if header.id != id.0 {
            return Err(VaultError::corrupt(&self.location, &Key::Vault, "its ids differ"));
        }
        Ok(Some((id, header)))
    }

    /// The message at `key` of the vault `id`; nothing if there is no such object.
    pub(crate) async fn load<M: Object>(&self, id: VaultId, key: &Key) -> Result<Option<Decoded<M>>, VaultError> {
        let Some(bytes) = self.get_from(&*self.objects, key, limit::<M>()).await? else {
            return Ok(None);
        };
        self.decode(Some(id), key, &bytes).map(Some)
    }

    fn decode<M: Object>(&self, id: Option<VaultId>, key: &Key, bytes: &[u8]) -> Result<Decoded<M>, VaultError> {
        envelope::decode(id, bytes).map_err(|error| match error {
            EnvelopeError::TooNew { .. } => VaultError::too_new(&self.location, key, error),
            _ => VaultError::corrupt(&self.location, key, error),
        })
    }

    /// A whole object of at most `limit` bytes.
    async fn get_from(&self, objects: &dyn ObjectStore, key: &Key, limit: u64) -> Result<Option<Bytes>, VaultError> {
        let error = |error| VaultError::store(&self.location, "read", key, error);
        let object = match objects.get(&self.path(key)).await.map_err(error) {
            Ok(object) => object,
            Err(VaultError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if object.meta.size > limit {
            let why = format!("it has {} bytes, more than any such object", object.meta.size);
            return Err(VaultError::corrupt(&self.location, key, why));
        }
        object.bytes().await.map(Some).map_err(error)
    }

    /// True if there is an object at `key`.
    pub(crate) async fn exists(&self, key: &Key) -> Result<bool, VaultError> {
        Ok(self.len_bytes(key).await?.is_some())
    }

    /// How long the object at `key` is; nothing if there is none.
    pub(crate) async fn len_bytes(&self, key: &Key) -> Result<Option<u64>, VaultError> {
        match self.objects.head(&self.path(key)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) => match VaultError::store(&self.location, "look for", key, error) {
                VaultError::Missing { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Creates the object at `key`; false if there is one, which is then left alone. Durable when it returns true.
    ///
    /// After a lost answer a store may say "exists" of what this very call has written: who must know reads it back.
    pub(crate) async fn create_if_absent(&self, key: &Key, bytes: Vec<u8>) -> Result<bool, VaultError> {
        match self.put(key, bytes.into(), PutMode::Create).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(VaultError::store(&self.location, "create", key, error)),
        }
    }

    /// Writes a pack. Its name is new, so nothing is ever overwritten but by a repeated request of our own.
    pub(crate) async fn put_pack(&self, id: PackId, bytes: Bytes) -> Result<(), VaultError> {
        let key = Key::Pack(id);
        let put = self.put(&key, bytes.into(), PutMode::Overwrite).await;
        put.map_err(|error| VaultError::store(&self.location, "write", &key, error))
    }

    async fn put(&self, key: &Key, payload: PutPayload, mode: PutMode) -> object_store::Result<()> {
        assert_eq!(self.access, Access::Write, "a vault that is written to was opened for it");
        let path = self.path(key);
        if let Some(local) = self.local.clone() {
            let folder = PathBuf::from(key.to_string()).parent().map(Path::to_owned).unwrap_or_default();
            let synced = tokio::task::spawn_blocking(move || local.sync_down_to(&folder)).await;
            synced
                .map_err(io::Error::other)
                .flatten()
                .map_err(|source| object_store::Error::Generic { store: "LocalFileSystem", source: source.into() })?;
        }
        self.objects.put_opts(&path, payload, mode.into()).await?;
        if let Some(local) = self.local.clone() {
            let key = key.to_string();
            let confirmed = tokio::task::spawn_blocking(move || local.confirm(&key)).await;
            confirmed
                .map_err(io::Error::other)
                .flatten()
                .map_err(|source| object_store::Error::Generic { store: "LocalFileSystem", source: source.into() })?;
        }
        Ok(())
    }

    /// Creates a probe's object, quickly and without syncing. True if it did.
    pub(crate) async fn create_probe(&self, key: &Key, bytes: Vec<u8>) -> Result<bool, VaultError> {
        match self.hasty.put_opts(&self.path(key), bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(VaultError::store(&self.location, "create", key, error)),
        }
    }

    /// A probe's object.
    pub(crate) async fn get_probe(&self, key: &Key) -> Result<Option<Bytes>, VaultError> {
        self.get_from(&*self.hasty, key, 1 << 10).await
    }

    /// Deletes a probe's object, if that is allowed.
    pub(crate) async fn delete_probe(&self, key: &Key) {
        if let Err(error) = self.hasty.delete(&self.path(key)).await {
            tracing::debug!(%key, %error, "a probe stays behind");
        }
    }

    /// The bytes `range` of a pack; an error if it is shorter.
    pub(crate) async fn read(&self, pack: PackId, range: Range<u64>) -> Result<Bytes, VaultError> {
        if let Some(local) = self.local.clone() {
            let location = self.location.clone();
            let read = move || LocalPack::open(local, &location, pack)?.read(&location, range);
            let read = tokio::task::spawn_blocking(read).await;
            return read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())).map(Bytes::from);
        }
        let (key, wanted) = (Key::Pack(pack), range.end - range.start);
        let path = self.path(&key);
        match self.objects.get_range(&path, range.clone()).await {
            Ok(bytes) if bytes.len() as u64 == wanted => Ok(bytes),
            Ok(bytes) => Err(self.short(&key, range.start + bytes.len() as u64, range.end)),
            Err(error) => match VaultError::store(&self.location, "read", &key, error) {
                // A range past the end is refused in many ways: ask how long the object is.
                error @ VaultError::Store { .. } => match self.objects.head(&path).await {
                    Ok(meta) if meta.size < range.end => Err(self.short(&key, meta.size, range.end)),
                    _ => Err(error),
                },
                error => Err(error),
            },
        }
    }

    fn short(&self, key: &Key, len: u64, needed: u64) -> VaultError {
        VaultError::corrupt(&self.location, key, format!("it ends at byte {len}, {needed} are needed"))
    }

    /// The pack as a local file, if the vault is on a local file system.
    pub(crate) fn local_pack(&self, pack: PackId) -> Option<Result<LocalPack, VaultError>> {
        self.local.clone().map(|local| LocalPack::open(local, &self.location, pack))
    }

    /// True if the vault is on a local file system.
    pub(crate) fn is_local(&self) -> bool {
        self.local.is_some()
    }

    fn path(&self, key: &Key) -> object_store::path::Path {
        object_store::path::Path::from(format!("{}/{key}", self.prefix))
    }
}

/// Longest object that holds an `M`.
fn limit<M: Object>() -> u64 {
    HEADER_LEN as u64 + u64::from(M::LEN_MAX)
}

impl VaultError {
    fn io(location: &VaultLocation, action: &'static str, key: impl std::fmt::Display, source: io::Error) -> Self {
        let wrapped = object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(source) };
        Self::store(location, action, key, wrapped)
    }
}

/// A pack on a local file system, open for reading.
pub(crate) struct LocalPack {
    id: PackId,
    file: File,
}

impl LocalPack {
    fn open(local: Arc<LocalDir>, location: &VaultLocation, id: PackId) -> Result<Self, VaultError> {
        let key = Key::Pack(id);
        match File::open(local.root.join(key.to_string())) {
            Ok(file) => Ok(Self { id, file }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(VaultError::missing(location, &key)),
            Err(error) => Err(VaultError::io(location, "read", key, error)),
        }
    }

    pub(crate) fn id(&self) -> PackId {
        self.id
    }

    fn read(&self, location: &VaultLocation, range: Range<u64>) -> Result<Vec<u8>, VaultError> {
        let mut bytes = Vec::new();
        self.read_into(location, range, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes `range` of the pack into `bytes`, whose memory is used again.
    pub(crate) fn read_into(
        &self,
        location: &VaultLocation,
        range: Range<u64>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), VaultError> {
        let len = usize::try_from(range.end - range.start).expect("a range of a blob or a few");
        // Grows to the longest blob and is then only ever cut: what it held is overwritten below.
        bytes.resize(len, 0);
        let key = Key::Pack(self.id);
        match self.file.read_exact_at(bytes, range.start) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let why = format!("it ends before byte {}", range.end);
                Err(VaultError::corrupt(location, &key, why))
            }
            Err(error) => Err(VaultError::io(location, "read", key, error)),
        }
    }
}

/// The folder of a local vault.
#[derive(Debug)]
struct LocalDir {
    root: PathBuf,
    /// Folders below `root` whose names are known to be durable.
    synced: Mutex<HashSet<PathBuf>>,
    /// The vault's header, once it was read.
    vault: Mutex<Option<Vec<u8>>>,
}

impl LocalDir {
    /// Makes sure that an object was written to the vault, not to a folder that was in its place meanwhile. The header is
    /// looked at first: should the vault come back in between, it does not have the object.
    fn confirm(&self, key: &str) -> io::Result<()> {
        let is_vault = match self.vault().as_ref() {
            Some(header) => std::fs::read(self.root.join(Key::Vault.to_string())).is_ok_and(|now| now == *header),
            None => true, // It is just being made.
        };
        if is_vault && self.root.join(key).exists() {
            return Ok(());
        }
        self.synced().clear();
        let root = self.root.display();
        Err(io::Error::other(format!(
            "{root} was not the vault while {key} was written\nhint: was its file system unmounted?"
        )))
    }

    fn vault(&self) -> std::sync::MutexGuard<'_, Option<Vec<u8>>> {
        self.vault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the folder `root/folder`, and makes sure that its name and those above it are durable.
    fn sync_down_to(&self, folder: &Path) -> io::Result<()> {
        if folder.as_os_str().is_empty() || self.synced().contains(folder) {
            return Ok(());
        }
        let parent = folder.parent().unwrap_or(Path::new(""));
        self.sync_down_to(parent)?;
        std::fs::create_dir(self.root.join(folder)).or_else(ignore_existing)?;
        File::open(self.root.join(parent))?.sync_all()?;
        self.synced().insert(folder.to_owned());
        Ok(())
    }

    fn synced(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.synced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ignore_existing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

/// Makes `path` and what is missing above it, and their names durable.
fn create_dir_durably(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_dir_durably(parent)?;
        std::fs::create_dir(path).or_else(ignore_existing)?;
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}
