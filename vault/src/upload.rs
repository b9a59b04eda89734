//! Storing blobs: many threads compress, packs fill up, full ones go to the store in the background.
//!
//! Each [`BlobWriter`] belongs to one thread and appends to one of a few open packs. Manifests go to a pack of their
//! own, so that whoever reads all manifests of a point finds them side by side. Memory is bounded by counting packs:
//! whoever needs a new one waits until a full one has become durable.
//!
//! A [`BlobPlace`] is known as soon as the blob is in an open pack. It is *durable* only after [`Uploader::flush`], so
//! flush, then commit. A pack that could not be written fails every later call: what it held is lost.
//!
//! Packs of an upload that was broken off stay, and nothing refers to them. Who remembers what lies in one may refer to
//! it after a look whether it is still there ([`Vault::look_for_packs`]).

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use prost::Message;
use segvault_vault_format::blob::{BlobKind, BlobPlace, Squeezer};
use segvault_vault_format::ids::{BlobId, PackId};
use segvault_vault_format::keys::Key;
use segvault_vault_format::manifest::{BlobRef, Stream, StreamIndex, StreamRef};
use segvault_vault_format::pack::PackBuilder;

use crate::error::VaultError;
use crate::{Vault, random};

/// Packs that are looked for at the same time: the 65 000 of a terabyte take a minute if a look takes 30 ms.
const LOOKS_AT_ONCE: usize = 32;

/// How much is held in memory, and how big packs are.
#[derive(Clone, Copy, Debug)]
pub struct UploadOptions {
    /// A pack of this many bytes is full. Bigger ones cost fewer requests; all are held in memory.
    pub pack_bytes: usize,
    /// Packs that are filled at the same time, besides the one for manifests. About one per two threads.
    pub open_packs: usize,
    /// Full packs that are on their way. A store far away wants more of them.
    pub packs_in_flight: usize,
}

impl Default for UploadOptions {
    /// 64 MiB and the manifests; a second full pack is on its way while the disk or the network is busy with the first.
    fn default() -> Self {
        Self { pack_bytes: 16 << 20, open_packs: 2, packs_in_flight: 2 }
    }
}

/// Takes blobs of any number of threads. Cheap to clone.
#[derive(Clone)]
pub struct Uploader {
    shared: Arc<Shared>,
}

struct Shared {
    vault: Vault,
    options: UploadOptions,
    /// Open packs: the first is for manifests.
    open: Vec<Mutex<Option<PackBuilder>>>,
    writers: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Packs in memory, open or in flight.
    packs: usize,
    in_flight: usize,
    /// Packs that are not durable: open, in flight, or lost.
    volatile: HashSet<PackId>,
    stored_bytes: u64,
    /// Memory of packs that are durable. Given back and asked for anew by other threads, it would lie around several
    /// times over in an allocator that keeps memory by thread.
    memory: Vec<Vec<u8>>,
    failure: Option<VaultError>,
}

impl Uploader {
    /// An uploader into `vault`, which must be open for writing.
    pub fn new(vault: &Vault, options: UploadOptions) -> Self {
        let open = 1 + options.open_packs.max(1);
        let shared = Shared {
            vault: vault.clone(),
            options,
            open: (0..open).map(|_| Mutex::default()).collect(),
            writers: AtomicUsize::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A writer for one thread. Dropping it loses nothing: its blobs lie in packs that the uploader keeps.
    pub fn writer(&self) -> BlobWriter {
        let number = self.shared.writers.fetch_add(1, Ordering::Relaxed);
        let slot = 1 + number % (self.shared.open.len() - 1);
        BlobWriter { shared: self.shared.clone(), slot, squeezer: Squeezer::default(), written_bytes: 0 }
    }

    /// Waits until every blob that was stored before is durable. The uploader can be used further.
    pub fn flush(&self) -> Result<(), VaultError> {
        for slot in &self.shared.open {
            if let Some(pack) = lock(slot).take() {
                self.shared.send(pack)?;
            }
        }
        let mut state = self.shared.state();
        while state.in_flight > 0 && state.failure.is_none() {
            state = self.shared.wait(state);
        }
        state.check()
    }

    /// Whether a pack is durable by now in which a writer of this uploader has stored something. One that was lost never
    /// is. Does not wait.
    pub fn is_durable(&self, pack: &PackId) -> bool {
        !self.shared.state().volatile.contains(pack)
    }

    /// Bytes of all packs that are durable in the vault by now.
    pub fn stored_bytes(&self) -> u64 {
        self.shared.state().stored_bytes
    }
}

impl Vault {
    /// Looks whether `packs` are in the store: each with its length in bytes, or `None` if it is not there, in any order.
    /// Some are asked for at the same time; whoever drops the stream asks for no more.
    pub fn look_for_packs(
        &self,
        packs: Vec<PackId>,
    ) -> impl futures::Stream<Item = Result<(PackId, Option<u64>), VaultError>> + '_ {
        let store = self.store();
        let look = move |pack| async move { Ok((pack, store.len_bytes(&Key::Pack(pack)).await?)) };
        stream::iter(packs).map(look).buffer_unordered(LOOKS_AT_ONCE)
    }
}

impl State {
    fn check(&self) -> Result<(), VaultError> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty pack, as soon as there is room for it.
    ///
    /// Never waits for ever: there is at most one open pack per slot, so one of those it waits for is in flight.
    fn new_pack(&self) -> Result<PackBuilder, VaultError> {
        let limit = self.open.len() + self.options.packs_in_flight;
        let id = PackId(random()?);
        let mut state = self.state();
        while state.packs >= limit && state.failure.is_none() {
            state = self.wait(state);
        }
        state.check()?;
        state.packs += 1;
        state.volatile.insert(id);
        let used = state.memory.pop();
        drop(state);
        // Room for the directory of a pack of small blobs is found when it is needed.
        let capacity = self.options.pack_bytes + (self.options.pack_bytes >> 4);
        let memory = used.unwrap_or_else(|| Vec::with_capacity(capacity));
        Ok(PackBuilder::new(self.vault.id(), id, memory))
    }

    /// Puts a pack into the store in the background, as soon as one of few places is free.
    fn send(self: &Arc<Self>, pack: PackBuilder) -> Result<(), VaultError> {
        let mut state = self.state();
        while state.in_flight >= self.options.packs_in_flight.max(1) && state.failure.is_none() {
            state = self.wait(state);
        }
        state.check()?;
        state.in_flight += 1;
        drop(state);
        let shared = self.clone();
        self.vault.inner.runtime.spawn(async move {
            let (id, bytes) = (pack.id(), Bytes::from(pack.finish()));
            let len = bytes.len() as u64;
            let put = shared.vault.store().put_pack(id, bytes.clone()).await;
            let mut state = shared.state();
            state.memory.extend(bytes.try_into_mut().ok().map(Vec::from));
            state.packs -= 1;
            state.in_flight -= 1;
            match put {
                Ok(()) => {
                    state.stored_bytes += len;
                    state.volatile.remove(&id);
                }
                Err(error) => _ = state.failure.get_or_insert(error),
            }
            drop(state);
            shared.changed.notify_all();
        });
        Ok(())
    }
}

/// Compresses and stores blobs; one per thread. Blocks while the store is slower than the threads.
pub struct BlobWriter {
    shared: Arc<Shared>,
    slot: usize,
    squeezer: Squeezer,
    written_bytes: u64,
}

impl BlobWriter {
    /// Bytes that the blobs stored so far take in packs.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Stores `raw`, whose hash is `id`, and says where it will lie. `packed_len` bytes of it are batches that zstd or
    /// gzip compressed already (see [`Squeezer::squeeze`]).
    pub fn store(
        &mut self,
        kind: BlobKind,
        id: BlobId,
        raw: &[u8],
        packed_len: usize,
    ) -> Result<BlobPlace, VaultError> {
        debug_assert_eq!(id, BlobId::of(raw), "a blob is stored under the hash of its bytes");
        let (codec, stored) = self.squeezer.squeeze(raw, packed_len);
        let shared = &self.shared;
        let slot = if kind == BlobKind::Chunk { self.slot } else { 0 };
        let mut open = lock(&shared.open[slot]);
        if open.is_none() {
            *open = Some(shared.new_pack()?);
        }
        let pack = open.as_mut().expect("just made");
        let place = pack.push(kind, codec, id, raw.len(), stored);
        self.written_bytes += place.len() as u64;
        if pack.len() >= shared.options.pack_bytes {
            let full = open.take().expect("just filled");
            // While this one waits for its turn, other writers of the slot should wait too: they could only fill more.
            shared.send(full)?;
        }
        Ok(place)
    }

    /// Stores the manifest and the index of a stream whose chunks lie at `places`.
    ///
    /// `previous` is what an earlier point knows the same stream by: if nothing has changed, it is returned and nothing
    /// is stored.
    pub fn store_stream(
        &mut self,
        stream: &Stream,
        places: &[BlobPlace],
        previous: Option<&StreamRef>,
    ) -> Result<StreamRef, VaultError> {
        stream.check()?;
        let index = StreamIndex::new(places);
        let checked = index.check(stream)?;
        assert_eq!(checked, places, "the places of a stream's chunks belong to its chunks");
        let (manifest, index) = (stream.encode_to_vec(), index.encode_to_vec());
        let ids = [&manifest, &index].map(|bytes| BlobId::of(bytes));
        if let Some(previous) = previous.filter(|previous| refers_to(previous, &ids)) {
            return Ok(previous.clone());
        }
        let manifest = self.store(BlobKind::StreamManifest, ids[0], &manifest, 0)?;
        let index = self.store(BlobKind::StreamIndex, ids[1], &index, 0)?;
        Ok(StreamRef { manifest: Some(manifest.into()), index: Some(index.into()) })
    }
}

fn refers_to(stream: &StreamRef, [manifest, index]: &[BlobId; 2]) -> bool {
    let is = |blob: &Option<BlobRef>, id: &BlobId| blob.as_ref().is_some_and(|blob| blob.id == id.0);
    is(&stream.manifest, manifest) && is(&stream.index, index)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
