//! Packs: one object that holds many blobs.
//!
//! Written once and whole, with a directory at the end, so that an index can be rebuilt from packs alone by reading
//! their ends; and if the end is lost, by walking the blobs from the front.
//!
//! ```text
//! header     "SVPACK\0\1" 8 (the last byte is the format version) | vault id 16 | pack id 16
//! blobs      each a 64 byte header and its stored bytes (see `blob`)
//! directory  one entry per blob:
//!            offset u64 | stored length u32 | raw length u32 | kind u8 | codec u8 | reserved = 0 u16 | blob id 32
//! trailer    number of blobs u32 | BLAKE3 of header and directory 32 | "SVPACKE\1" 8
//! ```

use crate::blob::{BLOB_HEADER_LEN, BlobError, BlobHeader, BlobKind, BlobPlace, Codec, check_lens};
use crate::check::check_offset;
use crate::ids::{BlobId, PackId, VaultId};

/// Bytes before the first blob.
pub const PACK_HEADER_LEN: usize = 40;

/// Bytes of a directory entry.
pub const ENTRY_LEN: usize = 52;

/// Bytes of the trailer.
pub const TRAILER_LEN: usize = 44;

const HEADER_MAGIC: &[u8; 7] = b"SVPACK\0";
const TRAILER_MAGIC: &[u8; 7] = b"SVPACKE";
const VERSION: u8 = 1;

/// Fills a pack in memory.
pub struct PackBuilder {
    vault: VaultId,
    id: PackId,
    bytes: Vec<u8>,
    directory: Vec<u8>,
}

impl PackBuilder {
    /// An empty pack. `memory` is what it is built in, whatever it holds.
    pub fn new(vault: VaultId, id: PackId, memory: Vec<u8>) -> Self {
        let mut bytes = memory;
        bytes.clear();
        bytes.extend_from_slice(&header(vault, id));
        Self { vault, id, bytes, directory: Vec::new() }
    }

    /// Appends a blob that [`Squeezer`](crate::blob::Squeezer) made ready.
    ///
    /// # Panics
    /// If the lengths do not fit each other or exceed [`BLOB_LEN_MAX`](crate::blob::BLOB_LEN_MAX).
    pub fn push(&mut self, kind: BlobKind, codec: Codec, id: BlobId, raw_len: usize, stored: &[u8]) -> BlobPlace {
        let [raw_len, stored_len] =
            [raw_len, stored.len()].map(|len| u32::try_from(len).expect("a blob within BLOB_LEN_MAX"));
        check_lens(codec, raw_len, stored_len).expect("lengths of a blob that was just made");
        let offset = self.bytes.len() as u64;
        let header = BlobHeader { kind, codec, vault: self.vault, raw_len, stored_len, id };
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(stored);

        self.directory.extend_from_slice(&offset.to_be_bytes());
        self.directory.extend_from_slice(&stored_len.to_be_bytes());
        self.directory.extend_from_slice(&raw_len.to_be_bytes());
        self.directory.extend_from_slice(&[kind as u8, codec as u8, 0, 0]);
        self.directory.extend_from_slice(&id.0);
        BlobPlace { id, pack: self.id, offset, stored_len, raw_len, codec }
    }

    /// The pack's id.
    pub fn id(&self) -> PackId {
        self.id
    }

    /// Bytes of the finished pack.
    #[allow(clippy::len_without_is_empty, reason = "see `blobs`")]
    pub fn len(&self) -> usize {
        self.bytes.len() + self.directory.len() + TRAILER_LEN
    }

    /// Number of blobs.
    pub fn blobs(&self) -> usize {
        self.directory.len() / ENTRY_LEN
    }

    /// The whole object.
    pub fn finish(mut self) -> Vec<u8> {
        let count = u32::try_from(self.blobs()).expect("fewer blobs than bytes in memory");
        let hash = digest(&self.bytes[..PACK_HEADER_LEN], &self.directory);
        self.bytes.extend_from_slice(&self.directory);
        self.bytes.extend_from_slice(&count.to_be_bytes());
        self.bytes.extend_from_slice(&hash);
        self.bytes.extend_from_slice(TRAILER_MAGIC);
        self.bytes.push(VERSION);
        self.bytes
    }
}

/// Why bytes are not a pack, or not all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Not the end of a pack: it was cut short, or its end is damaged.
    #[error("pack has no directory at its end")]
    NoDirectory,
    /// Damaged.
    #[error("pack is corrupt: {0}")]
    Corrupt(&'static str),
    /// Written by a later version.
    #[error("pack has format version {0}, this program reads up to {VERSION}")]
    TooNew(u8),
    /// A pack of another vault.
    #[error("pack belongs to vault {found}, not to {wanted}")]
    WrongVault {
        /// Whose it is.
        found: VaultId,
        /// Whose it should be.
        wanted: VaultId,
    },
    /// A blob in it.
    #[error("at byte {offset}")]
    Blob {
        /// Where.
        offset: u64,
        /// What is wrong.
        source: BlobError,
    },
}

/// The blobs of a whole pack, by its directory. Each has its kind; the blobs' own bytes are not looked at.
pub fn directory(vault: VaultId, bytes: &[u8]) -> Result<Vec<(BlobKind, BlobPlace)>, PackError> {
    let pack = check_header(vault, bytes)?;
    let (rest, trailer) = bytes.split_last_chunk::<TRAILER_LEN>().ok_or(PackError::NoDirectory)?;
    if &trailer[36..43] != TRAILER_MAGIC {
        return Err(PackError::NoDirectory);
    }
    match trailer[43] {
        VERSION => {}
        0 => return Err(PackError::Corrupt("version of the directory")),
        later => return Err(PackError::TooNew(later)),
    }
    let count = u32::from_be_bytes(trailer[..4].try_into().expect("4 bytes")) as usize;
    let blobs_end = count
        .checked_mul(ENTRY_LEN)
        .and_then(|len| rest.len().checked_sub(len))
        .filter(|end| *end >= PACK_HEADER_LEN)
        .ok_or(PackError::Corrupt("directory is longer than the pack"))?;
    let directory = &rest[blobs_end..];
    if digest(&bytes[..PACK_HEADER_LEN], directory) != trailer[4..36] {
        return Err(PackError::Corrupt("hash of the directory"));
    }
    directory
        .chunks_exact(ENTRY_LEN)
        .map(|entry| decode_entry(pack, entry))
        .map(|entry| entry.filter(|(_, place)| place.end() <= blobs_end as u64))
        .collect::<Option<_>>()
        .ok_or(PackError::Corrupt("directory entry"))
}

fn decode_entry(pack: PackId, entry: &[u8]) -> Option<(BlobKind, BlobPlace)> {
    let number = |at: usize| u32::from_be_bytes(entry[at..at + 4].try_into().expect("4 bytes"));
    let place = BlobPlace {
        offset: u64::from_be_bytes(entry[..8].try_into().expect("8 bytes")),
        stored_len: number(8),
        raw_len: number(12),
        codec: Codec::from_byte(entry[17])?,
        id: BlobId::from_slice(&entry[20..]).ok()?,
        pack,
    };
    check_lens(place.codec, place.raw_len, place.stored_len).ok()?;
    check_offset(&place).ok()?;
    let kind = BlobKind::from_byte(entry[16])?;
    (entry[18..20] == [0, 0]).then_some((kind, place))
}

/// Walks the blobs of a pack from its front, for a pack whose end is lost. Ends without an error at a directory or at
/// the end of the bytes, and with one where a blob is damaged or cut short.
pub fn scan(vault: VaultId, bytes: &[u8]) -> impl Iterator<Item = Result<(BlobKind, BlobPlace), PackError>> + '_ {
    let mut offset = PACK_HEADER_LEN;
    let mut pack = Some(check_header(vault, bytes));
    std::iter::from_fn(move || {
        let id = match pack.take()? {
            Ok(id) => id,
            Err(error) => return Some(Err(error)),
        };
        // An entry's first bytes are those of an offset, so a directory never begins like a blob.
        let rest = bytes.get(offset..).filter(|rest| !rest.is_empty() && rest.first() != Some(&0))?;
        let place = match blob_at(vault, id, offset as u64, rest) {
            Ok(place) => place,
            Err(source) => {
                return Some(Err(PackError::Blob { offset: offset as u64, source }));
            }
        };
        offset += place.1.len();
        pack = Some(Ok(id));
        Some(Ok(place))
    })
}

fn blob_at(vault: VaultId, pack: PackId, offset: u64, bytes: &[u8]) -> Result<(BlobKind, BlobPlace), BlobError> {
    let BlobHeader { kind, codec, vault: found, raw_len, stored_len, id } = BlobHeader::decode(bytes)?;
    if found != vault {
        return Err(BlobError::WrongVault { found, wanted: vault });
    }
    let needed = BLOB_HEADER_LEN + stored_len as usize;
    if bytes.len() < needed {
        return Err(BlobError::Truncated { len: bytes.len(), needed });
    }
    Ok((kind, BlobPlace { id, pack, offset, stored_len, raw_len, codec }))
}

fn header(vault: VaultId, id: PackId) -> [u8; PACK_HEADER_LEN] {
    let mut bytes = [0; PACK_HEADER_LEN];
    bytes[..7].copy_from_slice(HEADER_MAGIC);
    bytes[7] = VERSION;
    bytes[8..24].copy_from_slice(&vault.0);
    bytes[24..].copy_from_slice(&id.0);
    bytes
}

fn check_header(wanted: VaultId, bytes: &[u8]) -> Result<PackId, PackError> {
    let bytes: &[u8; PACK_HEADER_LEN] = bytes.first_chunk().ok_or(PackError::Corrupt("shorter than a header"))?;
    if &bytes[..7] != HEADER_MAGIC || bytes[7] == 0 {
        return Err(PackError::Corrupt("it does not begin with SVPACK"));
    }
    if bytes[7] > VERSION {
        return Err(PackError::TooNew(bytes[7]));
    }
    let found = VaultId::from_slice(&bytes[8..24]).expect("16 bytes");
    if found != wanted {
        return Err(PackError::WrongVault { found, wanted });
    }
    Ok(PackId::from_slice(&bytes[24..]).expect("16 bytes"))
}

fn digest(header: &[u8], directory: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(header).update(directory).finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{Squeezer, read_blob};

    const VAULT: VaultId = VaultId([1; 16]);

    fn pack() -> (Vec<(BlobKind, BlobPlace)>, Vec<u8>) {
        let mut pack = PackBuilder::new(VAULT, PackId([2; 16]), vec![9; 100]);
        let mut squeezer = Squeezer::default();
        let raws = [(BlobKind::Chunk, b"text ".repeat(100)), (BlobKind::StreamManifest, vec![3; 7])];
        let places = raws.map(|(kind, raw)| {
            let (codec, stored) = squeezer.squeeze(&raw, 0);
            (kind, pack.push(kind, codec, BlobId::of(&raw), raw.len(), stored))
        });
        let len = pack.len();
        let bytes = pack.finish();
        assert_eq!(bytes.len(), len);
        (places.to_vec(), bytes)
    }

    #[test]
    fn directory_and_scan_find_what_was_pushed() {
        let (places, bytes) = pack();
        assert_eq!(directory(VAULT, &bytes).as_ref(), Ok(&places));
        let scanned: Result<Vec<_>, _> = scan(VAULT, &bytes).collect();
        assert_eq!(scanned.as_ref(), Ok(&places));
        let (kind, place) = places[1];
        let blob = &bytes[place.offset as usize..place.end() as usize];
        assert_eq!(read_blob(&place, kind, VAULT, blob), Ok(vec![3; 7]));
        let empty = PackBuilder::new(VAULT, PackId([2; 16]), Vec::new()).finish();
        assert_eq!(directory(VAULT, &empty), Ok(vec![]));
        assert_eq!(scan(VAULT, &empty).count(), 0);
    }

    #[test]
    fn without_its_end_a_pack_still_yields_its_whole_blobs() {
        let (places, bytes) = pack();
        let cut = &bytes[..places[1].1.end() as usize - 1];
        assert_eq!(directory(VAULT, cut), Err(PackError::NoDirectory));
        let found: Vec<_> = scan(VAULT, cut).collect();
        assert_eq!(found[0], Ok(places[0]));
        assert!(matches!(found[1], Err(PackError::Blob { source: BlobError::Truncated { .. }, .. })));
    }

    #[test]
    fn damage_to_header_or_directory_is_noticed() {
        let (places, bytes) = pack();
        let blobs = PACK_HEADER_LEN..places[1].1.end() as usize;
        for at in (0..bytes.len()).filter(|at| !blobs.contains(at)) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(directory(VAULT, &bad).is_err(), "byte {at}");
        }
        for len in 0..bytes.len() {
            assert!(directory(VAULT, &bytes[..len]).is_err());
            assert!(scan(VAULT, &bytes[..len]).count() <= 3);
        }
        assert!(matches!(directory(VaultId([9; 16]), &bytes), Err(PackError::WrongVault { .. })));
    }
}
