//! Walks the batches of a file of any length in bounded memory, and goes on behind damage.
//!
//! The file is read in blocks with `pread`, never mapped: a broker may truncate it meanwhile. What the file's length
//! was at the start counts as its end, so a tail that a broker appends to is shown as it stood then. Where no batch
//! can be read, the bytes that follow are searched for the next one whose CRC is right; what lies between is reported
//! as one [`Damage`].

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use segvault_kafka_log::batch::{Batch, BatchError, BatchHeader, HEADER_LEN};

use super::InspectError;

/// Bytes read at once where all of the file is wanted.
const BLOCK_LEN: usize = 1 << 20;

/// Bytes read at once where only headers are wanted.
const HEADER_BLOCK_LEN: usize = 64 << 10;

/// The longest batch that is held in memory. Brokers accept 1 MiB by default (`message.max.bytes`).
const BATCH_LEN_MAX: usize = 128 << 20;

/// The search for the next batch gives up once it has summed this many times the file's length: a file may be
/// made of headers that all look right.
const SEARCH_FACTOR: u64 = 4;

/// Bytes of a message set before its own fields, and where the length in them stands (shared by all magics).
const LOG_OVERHEAD: u64 = 12;

/// What comes next in a file.
#[derive(Debug)]
pub enum Step<'a> {
    /// A whole batch, and whether its bytes are those that its CRC was computed over.
    Batch {
        /// Where it begins.
        position: u64,
        /// The batch.
        batch: Batch<'a>,
        /// Its CRC's verdict.
        crc: Result<(), BatchError>,
    },
    /// Bytes that are no batch, up to the next one or to the end of the file.
    Damage {
        /// Where they begin.
        position: u64,
        /// What they are.
        damage: Damage,
    },
}

/// Bytes that are no batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// How many.
    pub len: u64,
    /// What they are.
    pub what: String,
}

/// A walk over the batches of one file.
#[derive(Debug)]
pub struct Scan {
    path: PathBuf,
    file: File,
    len: u64,
    position: u64,
    block: Vec<u8>,
    block_start: u64,
    block_len: usize,
    /// Bytes that the search for batches may still sum.
    search_budget: u64,
}

impl Scan {
    /// Begins at the start of a file, to look at all of it.
    pub fn open(path: &Path) -> Result<Self, InspectError> {
        Scan::with_block(path, BLOCK_LEN)
    }

    /// Begins at the start of a file, to look at headers with [`Scan::next_header`].
    pub fn open_headers(path: &Path) -> Result<Self, InspectError> {
        Scan::with_block(path, HEADER_BLOCK_LEN)
    }

    fn with_block(path: &Path, block_len: usize) -> Result<Self, InspectError> {
        let (file, len) = super::open(path)?;
        Ok(Scan {
            path: path.to_owned(),
            file,
            len,
            position: 0,
            block: Vec::new(),
            block_start: 0,
            block_len,
            search_budget: len.saturating_mul(SEARCH_FACTOR),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's length when it was opened, in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where the next batch should begin.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on from `position`, which must be the start of a batch.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// The next batch, wholly read, or what stands in its place; `None` at the end of the file.
    pub fn step(&mut self) -> Result<Option<Step<'_>>, InspectError> {
        let position = self.position;
        if position >= self.len {
            return Ok(None);
        }
        let header = match self.header_at(position)? {
            Ok(header) if header.size() > BATCH_LEN_MAX => {
                return Ok(Some(self.skip(position, header.size() as u64)));
            }
            Ok(header) => header,
            Err(error) => return self.damage(position, error).map(Some),
        };
        let crc = self.batch_at(position, &header)?.check_crc();
        let end = position + header.size() as u64;
        // A length that leads to another batch is right even where the content is not.
        let length_is_right = crc.is_ok() || end == self.len || self.header_at(end)?.is_ok();
        self.position = if length_is_right { end } else { self.search(position + 1)?.unwrap_or(self.len) };
        let batch = self.batch_at(position, &header)?;
        Ok(Some(Step::Batch { position, batch, crc }))
    }

    /// The header of the next batch that is wholly there, without a look at its CRC; `None` at the end of the file and
    /// at anything that is no batch.
    pub fn next_header(&mut self) -> Result<Option<(u64, BatchHeader)>, InspectError> {
        let position = self.position;
        if position >= self.len {
            return Ok(None);
        }
        let header = self.header_at(position)?.ok();
        if let Some(header) = header {
            self.position += header.size() as u64;
        }
        Ok(header.map(|header| (position, header)))
    }

    /// What stands at the position where [`Scan::next_header`] ended; `None` at the end of the file.
    pub fn damage_here(&mut self) -> Result<Option<Damage>, InspectError> {
        match self.step()? {
            Some(Step::Damage { damage, .. }) => Ok(Some(damage)),
            _ => Ok(None),
        }
    }

    /// The batch at a position where [`Scan::next_header`] found one.
    pub fn batch_at(&mut self, position: u64, header: &BatchHeader) -> Result<Batch<'_>, InspectError> {
        let path = self.path.clone();
        let bytes = self.window(position, header.size())?;
        Batch::parse(bytes).map_err(|_| InspectError::Changed { path })
    }

    /// The CRC's verdict on a batch that [`Scan::next_header`] found; `None` if it is too long to be held.
    pub fn check_crc(
        &mut self,
        position: u64,
        header: &BatchHeader,
    ) -> Result<Option<Result<(), BatchError>>, InspectError> {
        if header.size() > BATCH_LEN_MAX {
            return Ok(None);
        }
        Ok(Some(self.batch_at(position, header)?.check_crc()))
    }

    /// The header of a batch that ends within the file.
    fn header_at(&mut self, position: u64) -> Result<Result<BatchHeader, BatchError>, InspectError> {
        let left = self.len - position;
        let header = BatchHeader::parse(self.window(position, HEADER_LEN)?);
        Ok(match header {
            Ok(header) if header.size() as u64 > left => Err(BatchError::Truncated { needed: header.size() }),
            other => other,
        })
    }

    fn damage(&mut self, position: u64, reason: BatchError) -> Result<Step<'_>, InspectError> {
        let left = self.len - position;
        let (len, what) = match reason {
            BatchError::LegacyMagic(magic) => {
                let written = "written before Kafka 0.11 or for its clients: not decoded";
                (self.legacy(position)?, format!("message sets of magic {magic}, {written}"))
            }
            BatchError::AllZero if self.is_zero_from(position)? => {
                (left, "zero tail: zero bytes to the end, preallocated or never written".to_owned())
            }
            reason => match (self.search(position + 1)?, reason) {
                (None, BatchError::Truncated { needed }) => {
                    let normal = "normal for an instant while a broker appends";
                    (left, format!("torn tail: {left} bytes of a batch of {needed} ({normal})"))
                }
                (found, reason) => (found.unwrap_or(self.len) - position, format!("no batch: {reason}")),
            },
        };
        self.position = position + len;
        Ok(Step::Damage { position, damage: Damage { len, what } })
    }

    fn skip(&mut self, position: u64, len: u64) -> Step<'_> {
        self.position = position + len;
        let what = format!("batch longer than the {BATCH_LEN_MAX} bytes that are looked at: not checked");
        Step::Damage { position, damage: Damage { len, what } }
    }

    /// The length of a run of old message sets, which say their length in the place where batches do.
    fn legacy(&mut self, position: u64) -> Result<u64, InspectError> {
        let mut end = position;
        while end < self.len && matches!(self.header_at(end)?, Err(BatchError::LegacyMagic(_))) {
            let field = self.window(end + 8, 4)?;
            let field = field.try_into().map_or(0, u32::from_be_bytes);
            end = self.len.min(end + LOG_OVERHEAD + u64::from(field));
        }
        Ok(end - position)
    }

    fn is_zero_from(&mut self, mut position: u64) -> Result<bool, InspectError> {
        while position < self.len {
            let block = self.window(position, self.block_len)?;
            if block.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            position += block.len().max(1) as u64;
        }
        Ok(true)
    }

    /// The first position at or behind `from` where a batch begins whose CRC is right.
    fn search(&mut self, from: u64) -> Result<Option<u64>, InspectError> {
        let mut position = from;
        while position + HEADER_LEN as u64 <= self.len {
            let block = self.window(position, self.block_len)?;
            let candidate = (0..block.len().saturating_sub(HEADER_LEN - 1)).find(|at| is_plausible(&block[*at..]));
            let Some(at) = candidate else {
                position += block.len().saturating_sub(HEADER_LEN - 1).max(1) as u64;
                continue;
            };
            position += at as u64;
            if let Ok(header) = self.header_at(position)? {
                match self.search_budget.checked_sub(header.size() as u64) {
                    Some(left) => self.search_budget = left,
                    None => return Ok(None),
                }
                if self.batch_at(position, &header)?.check_crc().is_ok() {
                    return Ok(Some(position));
                }
            }
            position += 1;
        }
        Ok(None)
    }

    /// Up to `len` bytes from `position`, fewer only at the end of the file.
    fn window(&mut self, position: u64, len: usize) -> Result<&[u8], InspectError> {
        let left = usize::try_from(self.len.saturating_sub(position)).unwrap_or(usize::MAX);
        let len = len.min(left);
        let is_held =
            position >= self.block_start && position + len as u64 <= self.block_start + self.block.len() as u64;
        if !is_held {
            self.block.resize(len.max(self.block_len).min(left), 0);
            self.block_start = position;
            let read = self.file.read_exact_at(&mut self.block, position);
            read.map_err(|source| super::read_error(&self.path, source))?;
        }
        let start = (position - self.block_start) as usize;
        Ok(&self.block[start..start + len])
    }
}

/// Whether a header may be one, to judge by fields that have few legal values.
fn is_plausible(bytes: &[u8]) -> bool {
    bytes[16] == 2
        && BatchHeader::parse(bytes).is_ok_and(|header| {
            header.size() <= BATCH_LEN_MAX
                && header.attributes() & !0x7f == 0
                && header.compression().is_ok()
                && header.leader_epoch() >= -1
                && header.record_count() as i64 <= i64::from(header.last_offset_delta()) + 1
        })
}

/// The segments of a partition directory: base offsets and paths, in order.
pub fn segments(dir: &Path) -> Result<Vec<(i64, PathBuf)>, InspectError> {
    use segvault_kafka_log::names::{SegmentFile, SegmentFileKind, SegmentFileState};
    let mut found: Vec<(i64, PathBuf)> = super::entries(dir)?
        .into_iter()
        .filter_map(|entry| {
            let file = SegmentFile::parse(&entry.name)?;
            let is_log = file.kind == SegmentFileKind::Log && file.state == SegmentFileState::Live;
            is_log.then(|| (file.base_offset, dir.join(&entry.name)))
        })
        .collect();
    found.sort();
    Ok(found)
}
