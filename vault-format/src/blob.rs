//! Blobs: what a pack is made of, how they are compressed, and how one is checked when it is read.
//!
//! A blob says itself what it is, so that an index can be rebuilt from packs alone and a misdirected read is noticed:
//!
//! ```text
//!  0  "SVB1"             4   the last byte is the format version
//!  4  kind               u8  1 chunk, 2 stream manifest, 3 stream index
//!  5  codec              u8  0 as is, 1 zstd
//!  6  reserved = 0       u16
//!  8  vault id           16
//! 24  raw length         u32 big-endian
//! 28  stored length      u32 at most the raw length; equal if and only if stored as is
//! 32  blob id            32  BLAKE3 of the raw bytes
//! 64  stored bytes
//! ```

use zstd::bulk::{Compressor, Decompressor};

use crate::ids::{BlobId, PackId, VaultId};
use crate::manifest::BlobRef;

/// Bytes before the stored bytes.
pub const BLOB_HEADER_LEN: usize = 64;

/// Longest blob, raw. A chunk is at least one record batch, and a batch may be as long as its length field can say.
pub const BLOB_LEN_MAX: u32 = i32::MAX as u32 + 12;

/// zstd's level: level 3 is twice as slow and hardly smaller on record batches (`docs/performance.md`).
const LEVEL: i32 = 1;

/// A blob is stored as is unless compression takes off at least this share: what it saves would not pay the restore's
/// time to decompress.
const SAVING_MIN_PERCENT: usize = 5;

/// From this share of zstd or gzip batches on, nothing is tried.
const PACKED_MAX_PERCENT: usize = 90;

/// From this share on, a probe is made first.
const DOUBTFUL_PERCENT: usize = 10;

/// Bytes at the start of a doubtful blob that are tried first: they predict the whole within 5 %.
const PROBE_LEN: usize = 64 << 10;

const MAGIC: &[u8; 3] = b"SVB";
const VERSION: u8 = b'1';

/// What a blob holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlobKind {
    /// Record batches.
    Chunk = 1,
    /// An encoded [`Stream`](crate::manifest::Stream).
    StreamManifest = 2,
    /// An encoded [`StreamIndex`](crate::manifest::StreamIndex).
    StreamIndex = 3,
}

impl BlobKind {
    /// The kind of this byte, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Chunk, Self::StreamManifest, Self::StreamIndex].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// How bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    /// The codec of this byte, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Raw, Self::Zstd].into_iter().find(|codec| *codec as u8 == byte)
    }
}

/// Where a blob lies, checked: [`BlobRef`] is its wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlobPlace {
    /// Hash of the raw bytes.
    pub id: BlobId,
    /// The object that holds it.
    pub pack: PackId,
    /// First byte of the blob's header in the pack.
    pub offset: u64,
    /// Bytes stored after the header.
    pub stored_len: u32,
    /// Bytes after decompression.
    pub raw_len: u32,
    /// How it is stored.
    pub codec: Codec,
}

impl BlobPlace {
    /// First byte after the blob in its pack.
    pub fn end(&self) -> u64 {
        self.offset + self.len() as u64
    }

    /// Header and stored bytes.
    #[allow(clippy::len_without_is_empty, reason = "a blob has a header, so it is never empty")]
    pub fn len(&self) -> usize {
        BLOB_HEADER_LEN + self.stored_len as usize
    }
}

impl From<BlobPlace> for BlobRef {
    fn from(place: BlobPlace) -> Self {
        BlobRef {
            id: place.id.0.to_vec(),
            pack: place.pack.0.to_vec(),
            offset: place.offset,
            stored_len: place.stored_len,
            raw_len: place.raw_len,
            codec: place.codec as u32,
        }
    }
}

/// Holds the lengths of a blob against each other and against [`BLOB_LEN_MAX`].
pub(crate) fn check_lens(codec: Codec, raw_len: u32, stored_len: u32) -> Result<(), String> {
    let fit = match codec {
        Codec::Raw => stored_len == raw_len,
        Codec::Zstd => stored_len < raw_len,
    };
    if fit && raw_len <= BLOB_LEN_MAX {
        return Ok(());
    }
    Err(format!("impossible lengths: {raw_len} bytes stored in {stored_len} ({codec:?})"))
}

/// Compresses blobs. Keeps its tables and buffer, so make one per thread; it holds about as much memory as the longest
/// blob so far, and 1 MiB.
#[derive(Default)]
pub struct Squeezer {
    zstd: Option<Compressor<'static>>,
    buffer: Vec<u8>,
}

impl Squeezer {
    /// `raw` as it should be stored, of which `packed_len` bytes are batches that zstd or gzip compressed already.
    ///
    /// Those are not tried again; lz4 and snappy batches are, for they still shrink by a fifth.
    pub fn squeeze<'a>(&'a mut self, raw: &'a [u8], packed_len: usize) -> (Codec, &'a [u8]) {
        let packed_percent = packed_len.saturating_mul(100) / raw.len().max(1);
        if packed_percent >= PACKED_MAX_PERCENT {
            return (Codec::Raw, raw);
        }
        let doubtful = packed_percent >= DOUBTFUL_PERCENT && raw.len() >= 4 * PROBE_LEN;
        if (!doubtful || self.shrinks(&raw[..PROBE_LEN])) && self.shrinks(raw) {
            return (Codec::Zstd, &self.buffer);
        }
        (Codec::Raw, raw)
    }

    /// Compresses `raw` into the buffer; false if that does not save enough, or nothing fits.
    fn shrinks(&mut self, raw: &[u8]) -> bool {
        let limit = raw.len() - raw.len().saturating_mul(SAVING_MIN_PERCENT).div_ceil(100);
        let zstd = self.zstd.get_or_insert_with(|| Compressor::new(LEVEL).expect("memory for zstd's tables"));
        self.buffer.clear();
        self.buffer.reserve_exact(limit);
        // What does not fit is an error, and the only one there can be.
        matches!(zstd.compress_to_buffer(raw, &mut self.buffer), Ok(len) if len <= limit)
    }
}

/// `stored` decompressed; an error text if it is not exactly `raw_len` bytes. The caller has bounded `raw_len`.
pub(crate) fn unsqueeze(codec: Codec, stored: &[u8], raw_len: u32) -> Result<Vec<u8>, String> {
    let mut raw = Vec::new();
    Unsqueezer::default().unsqueeze(codec, stored, raw_len, &mut raw)?;
    Ok(raw)
}

/// Why bytes are not the blob that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The bytes end before the blob does.
    #[error("blob is cut short: {len} bytes, {needed} needed")]
    Truncated {
        /// Bytes there are.
        len: usize,
        /// Bytes there should be.
        needed: usize,
    },
    /// Damaged, or not a blob at all.
    #[error("blob is corrupt: {0}")]
    Corrupt(String),
    /// Written by a later version.
    #[error("blob has format version {0:?}, this program reads '1'")]
    TooNew(char),
    /// A blob of another vault.
    #[error("blob belongs to vault {found}, not to {wanted}")]
    WrongVault {
        /// Whose it is.
        found: VaultId,
        /// Whose it should be.
        wanted: VaultId,
    },
    /// A blob, but not the one that was referred to.
    #[error("expected blob {wanted}, found {found}")]
    Other {
        /// The blob there is.
        found: BlobId,
        /// The blob that was referred to.
        wanted: BlobId,
    },
}

/// What a blob's header says, with lengths that fit each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobHeader {
    /// What it holds.
    pub kind: BlobKind,
    /// How it is stored.
    pub codec: Codec,
    /// Whose it is.
    pub vault: VaultId,
    /// Bytes after decompression.
    pub raw_len: u32,
    /// Bytes stored after the header.
    pub stored_len: u32,
    /// Hash of the raw bytes.
    pub id: BlobId,
}

impl BlobHeader {
    pub(crate) fn encode(&self) -> [u8; BLOB_HEADER_LEN] {
        let mut bytes = [0; BLOB_HEADER_LEN];
        bytes[..3].copy_from_slice(MAGIC);
        bytes[3] = VERSION;
        bytes[4] = self.kind as u8;
        bytes[5] = self.codec as u8;
        bytes[8..24].copy_from_slice(&self.vault.0);
        bytes[24..28].copy_from_slice(&self.raw_len.to_be_bytes());
        bytes[28..32].copy_from_slice(&self.stored_len.to_be_bytes());
        bytes[32..].copy_from_slice(&self.id.0);
        bytes
    }

    /// The header at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, BlobError> {
        let corrupt = |why: &str| BlobError::Corrupt(why.to_owned());
        let bytes: &[u8; BLOB_HEADER_LEN] =
            bytes.first_chunk().ok_or(BlobError::Truncated { len: bytes.len(), needed: BLOB_HEADER_LEN })?;
        if &bytes[..3] != MAGIC || bytes[3] < VERSION {
            return Err(corrupt("it does not begin with SVB"));
        }
        if bytes[3] > VERSION {
            return Err(BlobError::TooNew(char::from(bytes[3])));
        }
        if bytes[6..8] != [0, 0] {
            return Err(corrupt("reserved bytes"));
        }
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let header = Self {
            kind: BlobKind::from_byte(bytes[4]).ok_or_else(|| corrupt("unknown kind"))?,
            codec: Codec::from_byte(bytes[5]).ok_or_else(|| corrupt("unknown codec"))?,
            vault: VaultId::from_slice(&bytes[8..24]).expect("16 bytes"),
            raw_len: number(24),
            stored_len: number(28),
            id: BlobId::from_slice(&bytes[32..]).expect("32 bytes"),
        };
        check_lens(header.codec, header.raw_len, header.stored_len).map_err(BlobError::Corrupt)?;
        Ok(header)
    }
}

/// Reads blobs. Keeps its tables, so make one per thread.
#[derive(Default)]
pub struct Unsqueezer {
    zstd: Option<Decompressor<'static>>,
}

impl Unsqueezer {
    /// The raw bytes of the blob at `place` into `raw` (whose memory is used again), given header and stored bytes as
    /// they lie there. Header, lengths and hash are checked; `raw` is worth nothing after an error.
    pub fn read(
        &mut self,
        place: &BlobPlace,
        kind: BlobKind,
        vault: VaultId,
        bytes: &[u8],
        raw: &mut Vec<u8>,
    ) -> Result<(), BlobError> {
        if bytes.len() < place.len() {
            return Err(BlobError::Truncated { len: bytes.len(), needed: place.len() });
        }
        let header = BlobHeader::decode(bytes)?;
        if header.vault != vault {
            return Err(BlobError::WrongVault { found: header.vault, wanted: vault });
        }
        if header.id != place.id {
            return Err(BlobError::Other { found: header.id, wanted: place.id });
        }
        let wanted = (kind, place.codec, place.raw_len, place.stored_len);
        if (header.kind, header.codec, header.raw_len, header.stored_len) != wanted {
            return Err(BlobError::Corrupt("header and reference disagree".into()));
        }
        let stored = &bytes[BLOB_HEADER_LEN..place.len()];
        self.unsqueeze(place.codec, stored, place.raw_len, raw).map_err(BlobError::Corrupt)?;
        if BlobId::of(raw) != place.id {
            return Err(BlobError::Corrupt("hash mismatch".into()));
        }
        Ok(())
    }

    fn unsqueeze(&mut self, codec: Codec, stored: &[u8], raw_len: u32, raw: &mut Vec<u8>) -> Result<(), String> {
        raw.clear();
        let len = match codec {
            Codec::Raw => {
                raw.extend_from_slice(stored);
                stored.len()
            }
            Codec::Zstd => {
                raw.reserve_exact(raw_len as usize);
                let zstd = self.zstd.get_or_insert_with(|| Decompressor::new().expect("memory for zstd's tables"));
                zstd.decompress_to_buffer(stored, raw).map_err(|error| format!("it does not decompress: {error}"))?
            }
        };
        if len != raw_len as usize {
            return Err(format!("it has {len} bytes, not {raw_len}"));
        }
        Ok(())
    }
}

/// The raw bytes of one blob: [`Unsqueezer::read`] for those who read only one.
pub fn read_blob(place: &BlobPlace, kind: BlobKind, vault: VaultId, bytes: &[u8]) -> Result<Vec<u8>, BlobError> {
    let mut raw = Vec::new();
    Unsqueezer::default().read(place, kind, vault, bytes, &mut raw)?;
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::PackBuilder;

    const VAULT: VaultId = VaultId([1; 16]);

    /// Bytes without any pattern, always the same.
    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn stored(raw: &[u8]) -> (BlobPlace, Vec<u8>) {
        let mut pack = PackBuilder::new(VAULT, PackId([2; 16]), Vec::new());
        let mut squeezer = Squeezer::default();
        let (codec, bytes) = squeezer.squeeze(raw, 0);
        let place = pack.push(BlobKind::Chunk, codec, BlobId::of(raw), raw.len(), bytes);
        let bytes = pack.finish()[place.offset as usize..place.end() as usize].to_vec();
        (place, bytes)
    }

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_is_kept() {
        let text = b"offset=17 partition=3 ".repeat(40_000);
        let mut mixed = noise(text.len());
        mixed.extend_from_slice(&text);
        let mut squeezer = Squeezer::default();
        let table: [(&[u8], usize, Codec); 7] = [
            (&text, 0, Codec::Zstd),
            (&text, text.len() * 95 / 100, Codec::Raw), // Said to be packed: not tried.
            (&noise(1 << 20), 0, Codec::Raw),
            (&mixed, 0, Codec::Zstd),
            (&mixed, mixed.len() / 2, Codec::Raw), // Doubtful, and the probe says no.
            (b"", 0, Codec::Raw),
            (b"x", 0, Codec::Raw),
        ];
        for (raw, packed, wanted) in table {
            let (codec, stored) = squeezer.squeeze(raw, packed);
            assert_eq!(codec, wanted, "{} bytes, {packed} packed", raw.len());
            assert_eq!(codec == Codec::Raw, stored.len() == raw.len());
        }
    }

    #[test]
    fn blobs_come_back_as_they_were() {
        for raw in [b"text ".repeat(1000), noise(5000), Vec::new()] {
            let (place, bytes) = stored(&raw);
            assert_eq!(read_blob(&place, BlobKind::Chunk, VAULT, &bytes), Ok(raw));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_noticed() {
        for raw in [b"text ".repeat(50), noise(90)] {
            let (place, bytes) = stored(&raw);
            let read = |bytes: &[u8]| read_blob(&place, BlobKind::Chunk, VAULT, bytes);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                // zstd has bits that change nothing: what comes back must then still be the same.
                assert!(read(&bad).is_err() || read(&bad).as_ref() == Ok(&raw), "bit {bit}");
            }
            for len in 0..bytes.len() {
                assert!(matches!(read(&bytes[..len]), Err(BlobError::Truncated { .. })), "{len}");
            }
        }
    }

    #[test]
    fn a_blob_that_is_not_the_one_referred_to_is_refused() {
        let (place, bytes) = stored(b"one");
        let (other, _) = stored(b"two");
        let read = |place, kind, vault| read_blob(place, kind, vault, &bytes).unwrap_err();
        assert!(matches!(read(&other, BlobKind::Chunk, VAULT), BlobError::Other { .. }));
        assert!(matches!(read(&place, BlobKind::StreamIndex, VAULT), BlobError::Corrupt(_)));
        let elsewhere = VaultId([9; 16]);
        assert!(matches!(read(&place, BlobKind::Chunk, elsewhere), BlobError::WrongVault { .. }));
    }

    #[test]
    fn a_frame_longer_than_it_says_is_refused() {
        let raw = b"text ".repeat(1000);
        let mut squeezer = Squeezer::default();
        let (codec, stored) = squeezer.squeeze(&raw, 0);
        assert!(unsqueeze(codec, stored, 4999).is_err());
        assert!(unsqueeze(codec, stored, 5001).is_err());
        assert_eq!(unsqueeze(codec, stored, 5000), Ok(raw));
    }
}
