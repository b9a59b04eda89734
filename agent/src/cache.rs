//! What the agent remembers of the files that the last committed point has from it.
//!
//! With it a capture built on that point need not pin, read or hash a file that is still the one it was. Losing the
//! file costs reading the logs once more, never correctness: a segment counts as known only if its [`FileIdentity`] is
//! the remembered one, and the manifest that the coordinator names as the partition's last is the remembered one.
//!
//! An identity is remembered as it is *after* our pin was unlinked, for linking and unlinking change the ctime; and
//! only if size, mtime and inode are still what was pinned, so that the bytes are those that were uploaded.
//!
//! What was stored for points that were *not* committed is in the [journal](crate::journal) beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use segvault_kafka_log::batch::BatchHeader;
use segvault_kafka_log::ids::Uuid;
use segvault_proto::UploadOrder;
use segvault_vault_format::ids::{BlobId, VaultId};
use segvault_vault_format::manifest::StreamRef;
use serde::{Deserialize, Serialize};

use crate::journal::Journal;
use crate::pinned::{FileIdentity, PinnedReplica};

/// First line of the file, before the BLAKE3 hash of all that follows the line.
const MAGIC: &str = "segvault-agent-cache 1 ";

/// Longest cache that is written or read: half a million segments. A node with more starts from nothing each time.
const LEN_MAX: u64 = 128 << 20;

/// The journal's file, beside the cache's.
pub(crate) const JOURNAL: &str = "journal";

/// What one agent remembers, and what it learns while a point is taken.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    owner: Owner,
    point: u64,
    partitions: BTreeMap<(Uuid, i32), CachedPartition>,
    learned: BTreeMap<(Uuid, i32), CachedPartition>,
    journal: Journal,
}

/// Whose files, in which vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    vault: String,
    cluster: String,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    owner: Owner,
    point: u64,
    partitions: Vec<(String, i32, CachedPartition)>,
}

/// A partition as the point has it from this node. Enough to report it again without a look into the vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedPartition {
    /// Blob id of its manifest, in hex.
    pub manifest: String,
    pub log_start_offset: i64,
    pub end_offset: i64,
    /// (epoch, start offset) below the end, as the replica has them.
    pub epochs: Vec<(i32, i64)>,
    /// Those that begin below the end.
    pub segments: Vec<CachedSegment>,
    /// The last batch of the last segment, unless that is empty.
    pub tail: Option<CachedTail>,
    pub bytes: u64,
    pub max_epoch: i32,
    pub max_producer_id: i64,
    /// Open transactions: producer id, producer epoch, coordinator epoch, first offset.
    pub open: Vec<(i64, i16, i32, i64)>,
}

/// A segment of a cached partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedSegment {
    pub base_offset: i64,
    /// Bytes of the file that the point has; fewer than there were if it was cut.
    pub len: u64,
    /// The broker's file once our pin was gone; `None` if it was no longer the file that was read.
    pub identity: Option<FileIdentity>,
}

/// The end of a tail. The tail may have grown while it was uploaded, so that it has no identity any more; this still
/// tells whether it only grew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedTail {
    /// Device and inode number.
    pub file: (u64, u64),
    pub batch: CachedBatch,
}

/// The id of a stream's manifest, in hex; empty for a reference without one.
pub(crate) fn manifest_id(stream: &StreamRef) -> String {
    let id = stream.manifest.as_ref().and_then(|manifest| BlobId::from_slice(&manifest.id).ok());
    id.map(|id| id.to_string()).unwrap_or_default()
}

/// Where a batch was, and enough of it to see that it is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CachedBatch {
    pub position: u64,
    pub base_offset: i64,
    pub leader_epoch: i32,
    pub crc: u32,
}

impl CachedBatch {
    pub(crate) fn new(header: &BatchHeader, position: u64) -> Self {
        Self { position, base_offset: header.base_offset(), leader_epoch: header.leader_epoch(), crc: header.crc() }
    }
}

impl Cache {
    /// Reads the cache at `path`. One that is absent, damaged, of another vault, or of another cluster is an empty
    /// one; all but the first with a warning.
    pub fn open(path: PathBuf, vault: VaultId, cluster_id: &str) -> Self {
        let owner = Owner { vault: vault.to_string(), cluster: cluster_id.to_owned() };
        let journal = Journal::new(path.with_file_name(JOURNAL), vault);
        let mut cache = Self { path, owner, point: 0, partitions: BTreeMap::new(), learned: BTreeMap::new(), journal };
        match read(&cache.path) {
            Ok(Some(saved)) if saved.owner != cache.owner => {
                tracing::warn!(path = %cache.path.display(), "cache is of another vault or cluster, all logs are read again");
            }
            Ok(Some(saved)) => {
                cache.point = saved.point;
                for (topic_id, partition, cached) in saved.partitions {
                    if let Ok(topic_id) = topic_id.parse() {
                        cache.partitions.insert((topic_id, partition), cached);
                    }
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(path = %cache.path.display(), %error, "cache is not readable, all logs are read again");
            }
        }
        cache
    }

    /// The committed point that the cache speaks of; 0 if it is empty.
    pub fn point(&self) -> u64 {
        self.point
    }

    /// Whether the first `len` bytes of a segment are in point `base_number` from this node, and the file is still
    /// the same. Then it needs no pin ([`Pin::Known`](crate::pinned::Pin::Known)).
    pub fn knows(
        &self,
        base_number: u64,
        topic_id: Uuid,
        partition: i32,
        base_offset: i64,
        len: u64,
        identity: &FileIdentity,
    ) -> bool {
        base_number != 0
            && base_number == self.point
            && self.partition(topic_id, partition).is_some_and(|cached| {
                cached
                    .segment(base_offset)
                    .is_some_and(|segment| segment.len == len && segment.identity.as_ref() == Some(identity))
            })
    }

    /// Lets go of a replica's pins, and keeps up with what that does to the files' identities. For replicas that are
    /// not uploaded; [`upload`](crate::upload::upload) does it for the others.
    pub fn release(&mut self, replica: PinnedReplica) {
        let key = (replica.topic_id, replica.partition);
        let released = release(replica);
        if let Some(cached) = self.partitions.get_mut(&key) {
            cached.follow(&released);
        }
    }

    /// The point is committed under `number`: what was learned replaces what was known, also on disk. A failure to
    /// save costs reading the logs again, so it is only logged. The journal goes: the point has what it named.
    pub fn commit(&mut self, number: u64) {
        self.point = number;
        self.partitions = std::mem::take(&mut self.learned);
        self.save();
        self.journal.remove();
    }

    /// The point is not committed: what was learned is forgotten, but for the files' new ctimes. The journal stays: the
    /// next point takes over what was stored.
    pub fn abort(&mut self) {
        self.learned.clear();
        self.save();
    }

    /// What was stored for no committed point.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    pub(crate) fn partition(&self, topic_id: Uuid, partition: i32) -> Option<&CachedPartition> {
        self.partitions.get(&(topic_id, partition))
    }

    /// Notes what was uploaded; `released` are its files, pins gone.
    pub(crate) fn learn(&mut self, topic_id: Uuid, partition: i32, learned: CachedPartition, released: &[Released]) {
        let key = (topic_id, partition);
        if let Some(cached) = self.partitions.get_mut(&key) {
            cached.follow(released);
        }
        self.learned.insert(key, learned);
    }

    fn save(&self) {
        if let Err(error) = write(&self.path, &self.saved()) {
            tracing::warn!(path = %self.path.display(), %error, "cache is not saved, the next point reads all logs");
            // An old one would be of no use, for its files have other ctimes now.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn saved(&self) -> Saved {
        let partitions = self.partitions.iter();
        Saved {
            owner: self.owner.clone(),
            point: self.point,
            partitions: partitions
                .map(|((id, partition), cached)| (id.to_string(), *partition, cached.clone()))
                .collect(),
        }
    }
}

impl CachedPartition {
    pub(crate) fn segment(&self, base_offset: i64) -> Option<&CachedSegment> {
        let at = self.segments.binary_search_by_key(&base_offset, |segment| segment.base_offset).ok()?;
        Some(&self.segments[at])
    }

    /// Whether the point that the order builds on has this manifest.
    pub(crate) fn is_of(&self, order: &UploadOrder) -> bool {
        order.previous.as_ref().is_some_and(|previous| self.manifest == manifest_id(previous))
    }

    /// Replaces identities that our own link and unlink have changed.
    fn follow(&mut self, released: &[Released]) {
        for released in released {
            let Ok(at) = self.segments.binary_search_by_key(&released.base_offset, |segment| segment.base_offset)
            else {
                continue;
            };
            let segment = &mut self.segments[at];
            if segment.identity == Some(released.pinned) {
                segment.identity = released.now;
            }
        }
    }
}

/// A segment's file before its pin and after.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Released {
    pub base_offset: i64,
    pub pinned: FileIdentity,
    /// `None` if it is not the same file, or was written to.
    pub now: Option<FileIdentity>,
}

/// Drops the pins and looks at the broker's files again.
pub(crate) fn release(replica: PinnedReplica) -> Vec<Released> {
    let look = |(base_offset, pinned, source): (i64, FileIdentity, PathBuf)| Released {
        base_offset,
        pinned,
        now: identity(&source).ok().filter(|now| {
            (now.dev, now.ino, now.size, now.mtime_ns) == (pinned.dev, pinned.ino, pinned.size, pinned.mtime_ns)
        }),
    };
    // All pins first: unlinking is what they wait for.
    let files: Vec<_> =
        replica.segments.into_iter().map(|segment| (segment.base_offset, segment.identity, segment.source)).collect();
    files.into_iter().map(look).collect()
}

fn identity(path: &Path) -> io::Result<FileIdentity> {
    Ok(FileIdentity::of(&fs::metadata(path)?))
}

fn read(path: &Path) -> io::Result<Option<Saved>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(LEN_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LEN_MAX {
        return Err(io::Error::other(format!("longer than {LEN_MAX} bytes")));
    }
    let line = text.iter().position(|byte| *byte == b'\n').ok_or_else(|| io::Error::other("no first line"))?;
    let (line, body) = (&text[..line], &text[line + 1..]);
    let hash = line.strip_prefix(MAGIC.as_bytes()).ok_or_else(|| io::Error::other("another format"))?;
    if hash != BlobId::of(body).to_string().as_bytes() {
        return Err(io::Error::other("hash mismatch"));
    }
    Ok(Some(serde_json::from_slice(body)?))
}

/// Replaces the file: written and synced beside it, renamed, directory synced.
fn write(path: &Path, saved: &Saved) -> io::Result<()> {
    let body = serde_json::to_vec(saved)?;
    let line = format!("{MAGIC}{}\n", BlobId::of(&body));
    if (line.len() + body.len()) as u64 > LEN_MAX {
        return Err(io::Error::other(format!("longer than {LEN_MAX} bytes")));
    }
    let directory = path.parent().ok_or_else(|| io::Error::other("no directory"))?;
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(line.as_bytes())?;
    file.write_all(&body)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}
