//! Where a log ends, found with a few reads and without disturbing anybody.
//!
//! The last entry of the tail's `.index` says where to begin; it is only a hint and counts if a batch is there. From
//! there on headers are walked, in large reads, up to the last batch that is whole: behind it an active segment may
//! have the beginning of one that is being written, or preallocated zeros. Whatever else follows is damage, and so is
//! a last batch with a wrong CRC, unless a second look finds it gone: then a write was under way.
//!
//! Files are read with `pread` only. Kafka may truncate them, and a mapped page that is gone kills the reader.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use segvault_kafka_log::batch::{Batch, BatchError, BatchHeader, HEADER_LEN};
use segvault_kafka_log::index::{OFFSET_ENTRY_LEN, OffsetEntry};

/// Bytes of a read while walking: enough for many headers of small batches, little enough not to be felt by a broker.
const READ_LEN: u64 = 64 << 10;
/// Entries in the first look at an index. Most indexes of active segments end within it.
const FIRST_ENTRIES: u64 = 512;
/// How often an end that looks damaged is looked at.
const LOOKS: u32 = 3;
/// Time between two looks: a `write` of the broker takes far less.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Longest last batch whose CRC is checked here; the upload checks every batch whatever its length.
const CHECKED_LEN_MAX: usize = 64 << 20;

/// Why a segment's end could not be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    /// The file cannot be read. `UnexpectedEof`: it was truncated meanwhile.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No batch begins where one must, or it is not what was written.
    #[error("{source} at byte {position}")]
    Batch {
        /// Where it should begin.
        position: u64,
        /// What is wrong.
        source: BatchError,
    },
    /// Offsets must rise.
    #[error("offset {offset} follows offset {end_offset} at byte {position}")]
    OutOfOrder {
        /// Where the batch begins.
        position: u64,
        /// Its base offset.
        offset: i64,
        /// The first that may follow.
        end_offset: i64,
    },
}

impl WalkError {
    fn is_damage(&self) -> bool {
        !matches!(self, Self::Io(_))
    }
}

/// Fills a buffer with the bytes at a position.
pub(crate) trait Read: Fn(&mut [u8], u64) -> io::Result<()> {}
impl<R: Fn(&mut [u8], u64) -> io::Result<()>> Read for R {}

/// The batch headers of a segment, one after the other.
pub(crate) struct Headers<R> {
    read: R,
    /// Bytes that may be read.
    len: u64,
    position: u64,
    end_offset: i64,
    buffer: Vec<u8>,
    buffer_start: u64,
}

impl<R: Read> Headers<R> {
    /// Walks from the batch at `position`; `len` bytes of the segment are there.
    pub fn new(read: R, position: u64, len: u64) -> Self {
        Self { read, len, position, end_offset: 0, buffer: Vec::new(), buffer_start: 0 }
    }

    /// Where the next batch begins; behind the last whole one after [`Headers::next`] gave `None`.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next whole batch's position and header.
    pub fn next(&mut self) -> Result<Option<(u64, BatchHeader)>, WalkError> {
        let (position, rest) = (self.position, self.len - self.position);
        let header = match BatchHeader::parse(self.peek()?) {
            Ok(header) if header.size() as u64 <= rest => header,
            Ok(_) | Err(BatchError::Truncated { .. } | BatchError::AllZero) => return Ok(None),
            Err(source) => return Err(WalkError::Batch { position, source }),
        };
        if header.base_offset() < self.end_offset {
            let (offset, end_offset) = (header.base_offset(), self.end_offset);
            return Err(WalkError::OutOfOrder { position, offset, end_offset });
        }
        self.position += header.size() as u64;
        self.end_offset = header.next_offset();
        Ok(Some((position, header)))
    }

    /// The bytes at the position: a header's, or all that are left.
    fn peek(&mut self) -> io::Result<&[u8]> {
        let rest = self.len - self.position;
        let wanted = rest.min(HEADER_LEN as u64);
        let buffer_end = self.buffer_start + self.buffer.len() as u64;
        if self.position < self.buffer_start || self.position + wanted > buffer_end {
            self.buffer.resize(rest.min(READ_LEN) as usize, 0);
            self.buffer_start = self.position;
            (self.read)(&mut self.buffer, self.position)?;
        }
        let from = (self.position - self.buffer_start) as usize;
        Ok(&self.buffer[from..from + wanted as usize])
    }
}

/// Begins a walk at a batch that starts at or before `offset`, as near as the index knows.
pub(crate) fn seek<R: Read>(
    read: R,
    len: u64,
    index: Option<&File>,
    base_offset: i64,
    offset: i64,
) -> Result<Headers<R>, WalkError> {
    let mut headers = Headers::new(read, 0, len);
    let Some(hint) = index.and_then(|index| index_floor(index, base_offset, offset).ok().flatten()) else {
        return Ok(headers);
    };
    let position = u64::try_from(hint.position).unwrap_or(0);
    if position >= len {
        return Ok(headers);
    }
    headers.position = position;
    let is_there = match headers.next() {
        Ok(Some((_, header))) => (base_offset..=hint.offset).contains(&header.base_offset()),
        Err(WalkError::Io(error)) => return Err(error.into()),
        _ => false,
    };
    headers.position = if is_there { position } else { 0 };
    headers.end_offset = 0;
    Ok(headers)
}

/// The last entry of an offset index for an offset of at most `offset`; `None` if there is none. An index of an
/// active segment ends in zeros.
fn index_floor(index: &File, base_offset: i64, offset: i64) -> io::Result<Option<OffsetEntry>> {
    let count = index.metadata()?.len() / OFFSET_ENTRY_LEN as u64;
    let mut page = vec![0; count.min(FIRST_ENTRIES) as usize * OFFSET_ENTRY_LEN];
    index.read_exact_at(&mut page, 0)?;
    let entry = |raw: &[u8; OFFSET_ENTRY_LEN]| {
        let relative = u32::from_be_bytes(*raw.first_chunk().expect("8 bytes"));
        let position = i32::from_be_bytes(*raw.last_chunk().expect("8 bytes"));
        let entry = OffsetEntry { offset: base_offset.saturating_add(relative.into()), position };
        (position > 0 && entry.offset <= offset).then_some(entry)
    };
    let (page, _) = page.as_chunks();
    let in_page = page.partition_point(|raw| entry(raw).is_some());
    if in_page < page.len() || in_page == 0 {
        return Ok(in_page.checked_sub(1).and_then(|last| entry(&page[last])));
    }
    let mut floor = entry(&page[in_page - 1]);
    let (mut low, mut high) = (in_page as u64, count);
    while low < high {
        let middle = low + (high - low) / 2;
        let mut raw = [0; OFFSET_ENTRY_LEN];
        index.read_exact_at(&mut raw, middle * OFFSET_ENTRY_LEN as u64)?;
        match entry(&raw) {
            Some(entry) => (floor, low) = (Some(entry), middle + 1),
            None => high = middle,
        }
    }
    Ok(floor)
}

/// Where the whole batches of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentEnd {
    /// Bytes up to there.
    pub len: u64,
    /// Position and header of the last batch; `None` in an empty segment.
    pub last: Option<(u64, BatchHeader)>,
}

/// Finds the end of the segment at `base_offset`.
pub(crate) fn segment_end(log: &File, index: Option<&File>, base_offset: i64) -> Result<SegmentEnd, WalkError> {
    for _ in 1..LOOKS {
        match look(log, index, base_offset) {
            Err(error) if error.is_damage() => thread::sleep(LOOK_AGAIN),
            found => return found,
        }
    }
    look(log, index, base_offset)
}

fn look(log: &File, index: Option<&File>, base_offset: i64) -> Result<SegmentEnd, WalkError> {
    let len = log.metadata()?.len();
    let mut headers = seek(|buf: &mut [u8], at| log.read_exact_at(buf, at), len, index, base_offset, i64::MAX)?;
    let mut last = None;
    while let Some(found) = headers.next()? {
        last = Some(found);
    }
    if let Some((position, header)) = last
        && header.size() <= CHECKED_LEN_MAX
    {
        let mut bytes = vec![0; header.size()];
        log.read_exact_at(&mut bytes, position)?;
        let checked = Batch::parse(&bytes).and_then(|batch| batch.check_crc());
        checked.map_err(|source| WalkError::Batch { position, source })?;
    }
    Ok(SegmentEnd { len: headers.position(), last })
}

/// Where the first batch begins that has `offset` or a later one; the end of the whole batches if there is none.
pub(crate) fn position_of(
    log: &File,
    len: u64,
    index: Option<&File>,
    base_offset: i64,
    offset: i64,
) -> Result<u64, WalkError> {
    if offset <= base_offset {
        return Ok(0);
    }
    let mut headers = seek(|buf: &mut [u8], at| log.read_exact_at(buf, at), len, index, base_offset, offset)?;
    while let Some((position, header)) = headers.next()? {
        if header.next_offset() > offset {
            return Ok(position);
        }
    }
    Ok(headers.position())
}
