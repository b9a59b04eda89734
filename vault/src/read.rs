//! Reading blobs back: each is checked by its header, its lengths and its hash.
//!
//! [`ChunkReader`] streams the chunks of a stream in order. From a store far away, neighbours in a pack come in one
//! request, and the next requests are under way while the caller works; from a local file system each blob is read
//! when it is wanted, for the kernel reads ahead by itself.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use prost::Message;
use segvault_vault_format::blob::{BlobError, BlobKind, BlobPlace, Unsqueezer};
use segvault_vault_format::ids::PackId;
use segvault_vault_format::keys::Key;
use segvault_vault_format::manifest::{ManifestError, Stream, StreamIndex, StreamRef};
use tokio::task::JoinHandle;

use crate::Vault;
use crate::error::VaultError;
use crate::store::LocalPack;

/// Neighbours are read in one request up to this many bytes. A longer blob is a request of its own.
const REQUEST_BYTES_MAX: u64 = 4 << 20;

/// Bytes between two blobs that are read and thrown away rather than asked around.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// Requests of a [`ChunkReader`] that are under way or waiting for its caller.
const REQUESTS_AHEAD: usize = 2;

/// Requests for small blobs at the same time.
const REQUESTS_AT_ONCE: usize = 8;

/// A stream as the vault knows it, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedStream {
    /// Its manifest.
    pub stream: Stream,
    /// Where its chunks lie, one by one.
    pub places: Vec<BlobPlace>,
}

impl Vault {
    /// The raw bytes of one blob.
    pub async fn get_blob(&self, kind: BlobKind, place: &BlobPlace) -> Result<Vec<u8>, VaultError> {
        let mut blobs = self.get_blobs(&[(kind, *place)]).await?;
        Ok(blobs.pop().expect("as many as were asked for"))
    }

    /// The raw bytes of some blobs, all in memory at once; neighbours come in one request.
    pub async fn get_blobs(&self, blobs: &[(BlobKind, BlobPlace)]) -> Result<Vec<Vec<u8>>, VaultError> {
        let mut order: Vec<usize> = (0..blobs.len()).collect();
        order.sort_unstable_by_key(|index| (blobs[*index].1.pack, blobs[*index].1.offset));
        let places: Vec<BlobPlace> = order.iter().map(|index| blobs[*index].1).collect();
        let fetch = |request: Request| async move {
            let bytes = self.fetch(&request).await?;
            Ok::<_, VaultError>((request, bytes))
        };
        let mut fetched = stream::iter(coalesce(&places)).map(fetch).buffered(REQUESTS_AT_ONCE);

        let mut raws = vec![Vec::new(); blobs.len()];
        let mut unsqueezer = Unsqueezer::default();
        while let Some((request, bytes)) = fetched.try_next().await? {
            for index in &order[request.blobs.clone()] {
                let (kind, place) = &blobs[*index];
                self.unsqueeze(&mut unsqueezer, *kind, place, request.slice(&bytes, place), &mut raws[*index])?;
            }
        }
        Ok(raws)
    }

    /// A stream's manifest and where its chunks lie.
    pub async fn load_stream(&self, stream: &StreamRef) -> Result<LoadedStream, VaultError> {
        let mut streams = self.load_streams(std::slice::from_ref(stream)).await?;
        Ok(streams.pop().expect("as many as were asked for"))
    }

    /// Several streams, in the same order. All are in memory at once, about 130 bytes a chunk.
    pub async fn load_streams(&self, streams: &[StreamRef]) -> Result<Vec<LoadedStream>, VaultError> {
        let mut blobs = Vec::with_capacity(streams.len() * 2);
        for stream in streams {
            let (manifest, index) = stream.places()?;
            blobs.push((BlobKind::StreamManifest, manifest));
            blobs.push((BlobKind::StreamIndex, index));
        }
        let raws = self.get_blobs(&blobs).await?;
        let decode = |(raws, places): (&[Vec<u8>], &[(BlobKind, BlobPlace)])| {
            let load = || {
                let stream = Stream::decode(&*raws[0]).map_err(|error| error.to_string())?;
                let index = StreamIndex::decode(&*raws[1]).map_err(|error| error.to_string())?;
                stream.check().map_err(|error| error.to_string())?;
                let places = index.check(&stream).map_err(|error: ManifestError| error.to_string())?;
                Ok(LoadedStream { stream, places })
            };
            load().map_err(|why: String| self.damaged(&places[0].1, why))
        };
        raws.chunks_exact(2).zip(blobs.chunks_exact(2)).map(decode).collect()
    }

    /// A reader of the chunks at `places`, in this order.
    pub fn read_chunks(&self, places: Vec<BlobPlace>) -> ChunkReader {
        let requests = if self.store().is_local() { Vec::new() } else { coalesce(&places) };
        ChunkReader {
            vault: self.clone(),
            places: places.into_iter().enumerate().collect(),
            requests: requests.into(),
            under_way: VecDeque::new(),
            current: None,
            pack: None,
            buffer: Vec::new(),
            unsqueezer: Unsqueezer::default(),
        }
    }

    async fn fetch(&self, request: &Request) -> Result<Bytes, VaultError> {
        self.store().read(request.pack, request.bytes.clone()).await
    }

    fn unsqueeze(
        &self,
        unsqueezer: &mut Unsqueezer,
        kind: BlobKind,
        place: &BlobPlace,
        bytes: &[u8],
        raw: &mut Vec<u8>,
    ) -> Result<(), VaultError> {
        unsqueezer.read(place, kind, self.id(), bytes, raw).map_err(|error| match error {
            BlobError::TooNew(_) => VaultError::too_new(self.location(), &Key::Pack(place.pack), error),
            _ => self.damaged(place, error),
        })
    }

    fn damaged(&self, place: &BlobPlace, why: impl std::fmt::Display) -> VaultError {
        let why = format!("at byte {}: {why}", place.offset);
        VaultError::corrupt(self.location(), &Key::Pack(place.pack), why)
    }
}

/// One ranged read of some blobs.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    pack: PackId,
    bytes: Range<u64>,
    /// Which of the places.
    blobs: Range<usize>,
}

impl Request {
    /// The bytes of the blob at `place` among those of this request.
    fn slice<'a>(&self, bytes: &'a [u8], place: &BlobPlace) -> &'a [u8] {
        let start = usize::try_from(place.offset - self.bytes.start).expect("within a request");
        &bytes[start..start + place.len()]
    }
}

/// Ranged reads for `places` in their order: one for each run of neighbours.
fn coalesce(places: &[BlobPlace]) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for (index, place) in places.iter().enumerate() {
        if let Some(last) = requests.last_mut()
            && last.pack == place.pack
            && (last.bytes.end..=last.bytes.end + GAP_BYTES_MAX).contains(&place.offset)
            && place.end() - last.bytes.start <= REQUEST_BYTES_MAX
        {
            last.bytes.end = place.end();
            last.blobs.end = index + 1;
        } else {
            requests.push(Request { pack: place.pack, bytes: place.offset..place.end(), blobs: index..index + 1 });
        }
    }
    requests
}

/// Streams chunks in order. Blocking: for one plain thread. Holds a few requests' bytes, so about 16 MiB.
pub struct ChunkReader {
    vault: Vault,
    places: VecDeque<(usize, BlobPlace)>,
    requests: VecDeque<Request>,
    under_way: VecDeque<(Request, JoinHandle<Result<Bytes, VaultError>>)>,
    current: Option<(Request, Bytes)>,
    pack: Option<LocalPack>,
    buffer: Vec<u8>,
    unsqueezer: Unsqueezer,
}

impl ChunkReader {
    /// The next chunk's raw bytes into `raw`, whose memory is used again; false at the end. After an error the reader is
    /// of no more use.
    pub fn next(&mut self, raw: &mut Vec<u8>) -> Result<bool, VaultError> {
        let Some((index, place)) = self.places.pop_front() else {
            return Ok(false);
        };
        if self.vault.store().is_local() {
            self.read_local(&place)?;
            self.vault.unsqueeze(&mut self.unsqueezer, BlobKind::Chunk, &place, &self.buffer, raw)?;
            return Ok(true);
        }
        while self.current.as_ref().is_none_or(|(request, _)| !request.blobs.contains(&index)) {
            self.current = None;
            self.current = Some(self.next_request()?);
        }
        let (request, bytes) = self.current.as_ref().expect("the request that has this blob");
        let bytes = request.slice(bytes, &place);
        self.vault.unsqueeze(&mut self.unsqueezer, BlobKind::Chunk, &place, bytes, raw)?;
        Ok(true)
    }

    fn read_local(&mut self, place: &BlobPlace) -> Result<(), VaultError> {
        if self.pack.as_ref().is_none_or(|pack| pack.id() != place.pack) {
            self.pack = self.vault.store().local_pack(place.pack).transpose()?;
        }
        let pack = self.pack.as_ref().expect("a local vault has local packs");
        pack.read_into(self.vault.location(), place.offset..place.end(), &mut self.buffer)
    }

    /// Waits for the next request, and keeps some more under way.
    fn next_request(&mut self) -> Result<(Request, Bytes), VaultError> {
        while self.under_way.len() < REQUESTS_AHEAD {
            let Some(request) = self.requests.pop_front() else {
                break;
            };
            let (vault, wanted) = (self.vault.clone(), request.clone());
            let task = self.vault.inner.runtime.spawn(async move { vault.fetch(&wanted).await });
            self.under_way.push_back((request, task));
        }
        let (request, task) = self.under_way.pop_front().expect("a request for each blob");
        let bytes = self.vault.wait(task).unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        Ok((request, bytes?))
    }
}

impl Drop for ChunkReader {
    fn drop(&mut self) {
        self.under_way.iter().for_each(|(_, task)| task.abort());
    }
}
