//! The records of a batch, decompressed and read one by one (`DefaultRecord`).
//!
//! ```text
//! varint length | i8 attributes | varint timestamp delta | varint offset delta
//! | varint key length (-1 null), key | varint value length (-1 null), value
//! | varint header count, each: varint key length, key, varint value length (-1 null), value
//! ```
//!
//! Varints are zigzag. Decompression stops at a limit, so that a few damaged or evil bytes cannot fill memory,
//! and records are handed out one at a time for the same reason.

use std::{borrow::Cow, io::Read};

use super::{BatchError, BatchHeader, Compression};

/// Most bytes that the records of one batch may decompress to, unless the caller says otherwise. Batches are
/// bounded by `message.max.bytes` (1 MiB unless raised) before compression in the usual case.
pub const MAX_RECORDS_LEN: usize = 64 << 20;

/// The magic of snappy-java's stream format (xerial), followed by two version numbers, then blocks of
/// `i32 length | raw snappy`.
const XERIAL_MAGIC: &[u8; 8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_LEN: usize = 16;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The record's offset.
    pub offset: i64,
    /// In milliseconds; the broker's append time where the batch says so, -1 if there is none.
    pub timestamp: i64,
    /// The key; `None` is null.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is null, a tombstone in compacted topics.
    pub value: Option<Vec<u8>>,
    /// Headers in the producer's order; keys may repeat.
    pub headers: Vec<RecordHeader>,
}

/// One header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The name; UTF-8 by convention, which brokers do not check.
    pub key: Vec<u8>,
    /// The value; `None` is null.
    pub value: Option<Vec<u8>>,
}

/// The records of one batch. Ends with the first malformed one.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: BatchHeader,
    bytes: Cow<'a, [u8]>,
    position: usize,
    index: usize,
}

impl<'a> Records<'a> {
    pub(super) fn new(header: &BatchHeader, bytes: &'a [u8], limit: usize) -> Result<Self, BatchError> {
        let bytes = match header.compression()? {
            Compression::None => Cow::Borrowed(bytes),
            codec => Cow::Owned(decompress(codec, bytes, limit)?),
        };
        Ok(Records { header: *header, bytes, position: 0, index: 0 })
    }

    fn read(&mut self) -> Result<Record, &'static str> {
        let mut frame = Reader { bytes: &self.bytes[self.position..] };
        let len = frame.length()?.ok_or("its length is negative")?;
        let body = frame.take(len)?;
        let position = self.bytes.len() - frame.bytes.len();
        let record = read_record(&self.header, body)?;
        self.position = position;
        Ok(record)
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.index;
        let read = if index < self.header.record_count() {
            self.index += 1;
            self.read()
        } else if self.position < self.bytes.len() {
            Err("bytes follow the last record")
        } else {
            return None;
        };
        if read.is_err() {
            self.index = usize::MAX;
            self.position = self.bytes.len();
        }
        Some(read.map_err(|reason| BatchError::BadRecord { index, reason }))
    }
}

fn read_record(header: &BatchHeader, body: &[u8]) -> Result<Record, &'static str> {
    let mut body = Reader { bytes: body };
    body.take(1)?; // Attributes: no bit is in use.
    let timestamp = header.base_timestamp().wrapping_add(body.varlong()?);
    let delta = body.varint()?;
    if delta < 0 || delta > header.last_offset_delta() {
        return Err("its offset lies outside the batch");
    }
    let key = body.nullable_bytes()?;
    let value = body.nullable_bytes()?;
    let count = body.length()?.ok_or("its header count is negative")?;
    // Each header has at least two bytes, so a count beyond the bytes fails before memory does.
    let mut headers = Vec::with_capacity(count.min(body.bytes.len() / 2));
    for _ in 0..count {
        let key = body.nullable_bytes()?.ok_or("a header has no key")?;
        headers.push(RecordHeader { key, value: body.nullable_bytes()? });
    }
    if !body.bytes.is_empty() {
        return Err("bytes follow its last header");
    }
    Ok(Record {
        offset: header.base_offset() + i64::from(delta),
        timestamp: if header.is_log_append_time() { header.max_timestamp() } else { timestamp },
        key,
        value,
        headers,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or("it ends too early")?;
        self.bytes = rest;
        Ok(taken)
    }

    fn varlong(&mut self) -> Result<i64, &'static str> {
        let mut raw = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            raw |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok((raw >> 1) as i64 ^ -((raw & 1) as i64));
            }
        }
        Err("a varint is longer than 10 bytes")
    }

    fn varint(&mut self) -> Result<i32, &'static str> {
        i32::try_from(self.varlong()?).map_err(|_| "a varint is out of range")
    }

    /// A length or count; `None` if it is negative, which means null where that is legal.
    fn length(&mut self) -> Result<Option<usize>, &'static str> {
        Ok(usize::try_from(self.varint()?).ok())
    }

    fn nullable_bytes(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        match self.length()? {
            None => Ok(None),
            Some(len) => Ok(Some(self.take(len)?.to_vec())),
        }
    }
}

fn decompress(codec: Compression, bytes: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
    let bad = |reason: &dyn std::fmt::Display| BatchError::BadCompressed { codec, reason: reason.to_string() };
    let reader: Box<dyn Read + '_> = match codec {
        Compression::None => Box::new(bytes),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
        Compression::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(bytes)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(bytes).map_err(|e| bad(&e))?),
        Compression::Snappy => return unsnap(bytes, limit),
    };
    let mut out = Vec::new();
    reader.take(limit as u64 + 1).read_to_end(&mut out).map_err(|e| bad(&e))?;
    if out.len() > limit {
        return Err(BatchError::TooLong { limit });
    }
    Ok(out)
}

/// Java clients frame snappy as xerial does; others may send one raw block, which brokers pass on.
fn unsnap(bytes: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    if !bytes.starts_with(XERIAL_MAGIC) {
        unsnap_block(bytes, limit, &mut out)?;
        return Ok(out);
    }
    let cut = || BatchError::BadCompressed { codec: Compression::Snappy, reason: "a block is cut short".into() };
    let mut rest = bytes.get(XERIAL_HEADER_LEN..).ok_or_else(cut)?;
    while let Some((len, tail)) = rest.split_first_chunk() {
        let (block, tail) = tail.split_at_checked(u32::from_be_bytes(*len) as usize).ok_or_else(cut)?;
        unsnap_block(block, limit, &mut out)?;
        rest = tail;
    }
    if rest.is_empty() { Ok(out) } else { Err(cut()) }
}

fn unsnap_block(block: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), BatchError> {
    let bad = |e: snap::Error| BatchError::BadCompressed { codec: Compression::Snappy, reason: e.to_string() };
    let len = snap::raw::decompress_len(block).map_err(bad)?;
    if len > limit - out.len() {
        return Err(BatchError::TooLong { limit });
    }
    let start = out.len();
    out.resize(start + len, 0);
    snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(bad)?;
    Ok(())
}
