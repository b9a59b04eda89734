//! Writes one uncompressed batch, as Kafka's `MemoryRecordsBuilder` would.
//!
//! Used for what a restore has to add to a log (transaction markers, metadata snapshots), and by tests. The
//! result is byte for byte what Kafka writes for the same values.

use super::{CONTROL, CRC_START, EndTxnMarker, HEADER_LEN, LOG_OVERHEAD, NONE, RecordHeader, TRANSACTIONAL, crc32c};

/// A batch in the making: options first, then records, then [`BatchBuilder::build`].
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    base_offset: i64,
    leader_epoch: i32,
    attributes: i16,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    record_count: i32,
    records: Vec<u8>,
    scratch: Vec<u8>,
}

impl BatchBuilder {
    /// Begins a batch at `base_offset`, as the partition leader of `leader_epoch` would append it.
    pub fn new(base_offset: i64, leader_epoch: i32) -> Self {
        BatchBuilder {
            base_offset,
            leader_epoch,
            attributes: 0,
            producer_id: NONE.into(),
            producer_epoch: NONE as i16,
            base_sequence: NONE,
            base_timestamp: NONE.into(),
            max_timestamp: NONE.into(),
            record_count: 0,
            records: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Makes it part of a transaction.
    pub fn transactional(mut self) -> Self {
        self.attributes |= TRANSACTIONAL;
        self
    }

    /// Makes it a control batch.
    pub fn control(mut self) -> Self {
        self.attributes |= CONTROL;
        self
    }

    /// Names the producer; `base_sequence` is -1 for control batches.
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    /// Adds a record at the next offset, without headers. `timestamp` is in milliseconds.
    pub fn record(self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        self.record_with_headers(timestamp, key, value, &[])
    }

    /// Adds a record at the next offset.
    pub fn record_with_headers(
        mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[RecordHeader],
    ) -> Self {
        self.push(timestamp, key, value, headers);
        self
    }

    /// Adds a record at the next offset, for loops.
    pub fn push(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[RecordHeader]) {
        if self.record_count == 0 {
            self.base_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let body = &mut self.scratch;
        body.clear();
        body.push(0); // Attributes: no bit is in use.
        put_varint(body, timestamp.wrapping_sub(self.base_timestamp));
        put_varint(body, self.record_count.into());
        put_bytes(body, key);
        put_bytes(body, value);
        put_varint(body, headers.len() as i64);
        for header in headers {
            put_bytes(body, Some(&header.key));
            put_bytes(body, header.value.as_deref());
        }
        put_varint(&mut self.records, body.len() as i64);
        self.records.extend_from_slice(body);
        self.record_count += 1;
    }

    /// Records so far.
    pub fn record_count(&self) -> usize {
        self.record_count as usize
    }

    /// Bytes of the batch so far.
    pub fn size(&self) -> usize {
        HEADER_LEN + self.records.len()
    }

    /// The bytes of the batch.
    ///
    /// # Panics
    /// Without records (Kafka appends no such batch), or if they are longer than a batch can be (2 GiB).
    pub fn build(self) -> Vec<u8> {
        assert!(self.record_count > 0, "a batch has at least one record");
        let length = i32::try_from(self.size() - LOG_OVERHEAD).expect("a batch is below 2 GiB");
        let mut out = Vec::with_capacity(self.size());
        out.extend_from_slice(&self.base_offset.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.leader_epoch.to_be_bytes());
        out.push(2);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.attributes.to_be_bytes());
        out.extend_from_slice(&(self.record_count - 1).to_be_bytes());
        out.extend_from_slice(&self.base_timestamp.to_be_bytes());
        out.extend_from_slice(&self.max_timestamp.to_be_bytes());
        out.extend_from_slice(&self.producer_id.to_be_bytes());
        out.extend_from_slice(&self.producer_epoch.to_be_bytes());
        out.extend_from_slice(&self.base_sequence.to_be_bytes());
        out.extend_from_slice(&self.record_count.to_be_bytes());
        out.extend_from_slice(&self.records);
        let crc = crc32c(&out[CRC_START..]);
        out[CRC_START - 4..CRC_START].copy_from_slice(&crc.to_be_bytes());
        out
    }
}

/// The batch that ends the transaction of one producer (`MemoryRecords.withEndTransactionMarker`). `timestamp` is
/// in milliseconds; the producer's epoch is the current one, the coordinator's the last that the partition saw
/// for this producer.
pub fn end_txn_marker_batch(
    base_offset: i64,
    leader_epoch: i32,
    timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    marker: EndTxnMarker,
) -> Vec<u8> {
    let key = [0, 0, 0, u8::from(marker.commit)];
    let [e0, e1, e2, e3] = marker.coordinator_epoch.to_be_bytes();
    BatchBuilder::new(base_offset, leader_epoch)
        .transactional()
        .control()
        .producer(producer_id, producer_epoch, NONE)
        .record(timestamp, Some(&key), Some(&[0, 0, e0, e1, e2, e3]))
        .build()
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut raw = ((value << 1) ^ (value >> 63)) as u64;
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    put_varint(out, bytes.map_or(-1, |b| b.len() as i64));
    out.extend_from_slice(bytes.unwrap_or_default());
}
