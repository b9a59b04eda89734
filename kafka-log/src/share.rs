//! `__share_group_state`: how far share groups have come (KIP-932).
//!
//! A key is an int16 type (0 snapshot, 1 update), a group, a topic id and a partition; a value an int16 version and a body,
//! null deleting the share partition (`share-coordinator/src/main/resources/common/message/*.json`, Kafka 4.1 to 4.3). A
//! snapshot says all of a share partition; an update says what changed: a start offset that is not -1, and batches, which are
//! laid over those before (`ShareCoordinatorShard`, `PersisterStateBatchCombiner`).
//!
//! Kafka 4.0 had another layout under the same version, as early access, and no later version reads it. Lengths tell the two
//! apart: what lies around the batches, of 20 bytes each, never makes up for it.

use std::collections::BTreeMap;

use crate::{
    Uuid,
    batch::Batch,
    coordinator::{CoordinatorError, record_batches, records},
    wire::{Blob, Message, Reader, Wire, WireError, Writer, message},
};

/// Types of keys (`CoordinatorRecordType` of the share coordinator).
const SHARE_SNAPSHOT: i16 = 0;
const SHARE_UPDATE: i16 = 1;

/// Delivery states of records that no consumer gets any more (`RecordState`).
const ACKNOWLEDGED: i8 = 2;
const ARCHIVED: i8 = 4;

/// A start offset that says nothing: not initialized, or not changed (`PartitionFactory.UNINITIALIZED_START_OFFSET`).
const NO_START: i64 = -1;

/// A partition as a share group sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SharePartitionKey {
    /// The group's id.
    pub group: String,
    /// The topic's id.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: i32,
}

/// The key of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ShareKey {
    /// Of a [`ShareSnapshotValue`].
    Snapshot(SharePartitionKey),
    /// Of a [`ShareUpdateValue`].
    Update(SharePartitionKey),
    /// A type that this code does not know.
    Unknown {
        /// The type.
        record_type: i16,
        /// The body as it is.
        bytes: Vec<u8>,
    },
}

impl ShareKey {
    /// Reads a record's key.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes, 0, false);
        let record_type = i16::read(&mut reader)?;
        if !matches!(record_type, SHARE_SNAPSHOT | SHARE_UPDATE) {
            let bytes = reader.rest().to_vec();
            return Ok(ShareKey::Unknown { record_type, bytes });
        }
        let group = String::read(&mut reader)?;
        let (topic_id, partition) = (Uuid::read(&mut reader)?, i32::read(&mut reader)?);
        reader.finish()?;
        let key = SharePartitionKey { group, topic_id, partition };
        Ok(if record_type == SHARE_SNAPSHOT { ShareKey::Snapshot(key) } else { ShareKey::Update(key) })
    }

    /// The key's bytes.
    ///
    /// # Panics
    /// If a name is longer than 32 KiB.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), 0, false);
        let (record_type, key) = match self {
            ShareKey::Snapshot(key) => (SHARE_SNAPSHOT, key),
            ShareKey::Update(key) => (SHARE_UPDATE, key),
            ShareKey::Unknown { record_type, bytes } => {
                record_type.write(&mut writer);
                writer.put(bytes);
                return writer.into_bytes();
            }
        };
        record_type.write(&mut writer);
        key.group.write(&mut writer);
        key.topic_id.write(&mut writer);
        key.partition.write(&mut writer);
        writer.into_bytes()
    }
}

/// The value of a record.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "named after what they hold")]
pub enum ShareValue {
    Snapshot(ShareSnapshotValue),
    Update(ShareUpdateValue),
    /// As Kafka 4.0 wrote it; version included.
    EarlyAccess(Blob),
    /// Of types and versions that this code does not know; version included.
    Raw(Blob),
}

impl ShareValue {
    /// Reads the value that belongs to `key`.
    pub fn decode(key: &ShareKey, bytes: &[u8]) -> Result<Self, WireError> {
        let (read, early_access) = match key {
            ShareKey::Snapshot(_) => (
                ShareSnapshotValue::decode_prefixed(bytes).map(ShareValue::Snapshot),
                early_access::is_snapshot as fn(&[u8]) -> bool,
            ),
            ShareKey::Update(_) => (
                ShareUpdateValue::decode_prefixed(bytes).map(ShareValue::Update),
                early_access::is_update as fn(&[u8]) -> bool,
            ),
            ShareKey::Unknown { .. } => return Ok(ShareValue::Raw(Blob(bytes.to_vec()))),
        };
        match read {
            Err(WireError::Version { .. }) => Ok(ShareValue::Raw(Blob(bytes.to_vec()))),
            Err(_) if early_access(bytes) => Ok(ShareValue::EarlyAccess(Blob(bytes.to_vec()))),
            read => read,
        }
    }

    /// The value's bytes, version included.
    ///
    /// # Panics
    /// If its version is unknown.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ShareValue::Snapshot(value) => value.encode_prefixed(),
            ShareValue::Update(value) => value.encode_prefixed(),
            ShareValue::EarlyAccess(bytes) | ShareValue::Raw(bytes) => bytes.0.clone(),
        }
    }
}

message! {
    /// All of a share partition.
    #[derive(Debug)]
    ShareSnapshotValue [0..=0, flexible 0] {
        /// Raised with every snapshot.
        snapshot_epoch: i32;
        /// Raised when the group is initialized or its offsets are reset; writes of an older one are refused.
        state_epoch: i32;
        /// The partition's leader epoch as the state was written; writes of an older one are refused.
        leader_epoch: i32;
        /// The first offset that may still have to be delivered (the share-partition start offset).
        start_offset: i64;
        /// When the state was made, in milliseconds.
        create_timestamp: i64;
        /// When it was written, in milliseconds.
        write_timestamp: i64;
        /// What became of records at and above the start offset.
        state_batches: Vec<StateBatch>;
    }
    tagged {
        /// Offsets at and above the start that are done with, -1 if that is not known. Kafka 4.2 and later (KIP-1226).
        0 => delivery_complete_count: i32 = -1;
    }
}

message! {
    /// What changed of a share partition.
    #[derive(Debug)]
    ShareUpdateValue [0..=0, flexible 0] {
        /// That of the snapshot before.
        snapshot_epoch: i32;
        /// See [`ShareSnapshotValue::leader_epoch`]; -1 if it is as before.
        leader_epoch: i32;
        /// See [`ShareSnapshotValue::start_offset`]; -1 if it is as before.
        start_offset: i64;
        /// To be laid over those before.
        state_batches: Vec<StateBatch>;
    }
    tagged {
        /// See [`ShareSnapshotValue::delivery_complete_count`].
        0 => delivery_complete_count: i32 = -1;
    }
}

message! {
    /// Records of which the same is known.
    #[derive(Debug)]
    StateBatch {
        /// The first of them.
        first_offset: i64;
        /// The last of them.
        last_offset: i64;
        /// 0 available, 2 acknowledged, 4 archived (`RecordState`).
        delivery_state: i8;
        /// How often they were delivered.
        delivery_count: i16;
    }
}

/// Kafka 4.0's layouts, only to be recognised.
mod early_access {
    use super::{Message, StateBatch, message};

    message! {
        /// See [`super::ShareSnapshotValue`].
        Snapshot [0..=0, flexible 0] {
            /// See there.
            snapshot_epoch: u16;
            /// See there.
            state_epoch: i32;
            /// See there.
            leader_epoch: i32;
            /// See there.
            start_offset: i64;
            /// See there.
            state_batches: Vec<StateBatch>;
        }
    }

    message! {
        /// See [`super::ShareUpdateValue`].
        Update [0..=0, flexible 0] {
            /// See there.
            snapshot_epoch: u16;
            /// See there.
            leader_epoch: i32;
            /// See there.
            start_offset: i64;
            /// See there.
            state_batches: Vec<StateBatch>;
        }
    }

    pub fn is_snapshot(bytes: &[u8]) -> bool {
        Snapshot::decode_prefixed(bytes).is_ok()
    }

    pub fn is_update(bytes: &[u8]) -> bool {
        Update::decode_prefixed(bytes).is_ok()
    }
}

impl StateBatch {
    fn info(&self) -> (i16, i8) {
        (self.delivery_count, self.delivery_state)
    }

    fn between(&self, first_offset: i64, last_offset: i64) -> Self {
        Self { first_offset, last_offset, ..self.clone() }
    }

    fn len(&self) -> i64 {
        self.last_offset.saturating_sub(self.first_offset).saturating_add(1)
    }

    fn is_complete(&self) -> bool {
        matches!(self.delivery_state, ACKNOWLEDGED | ARCHIVED)
    }
}

impl ShareSnapshotValue {
    /// The state after an update. One without a snapshot before is taken for one (`ShareGroupOffset.fromRecord`).
    fn update(before: Option<Self>, update: ShareUpdateValue) -> Self {
        let before = before.unwrap_or_else(|| Self {
            snapshot_epoch: update.snapshot_epoch,
            leader_epoch: update.leader_epoch,
            start_offset: update.start_offset,
            ..Self::default()
        });
        let changed = |new: i64, old: i64| if new == NO_START { old } else { new };
        let start_offset = changed(update.start_offset, before.start_offset);
        let leader_epoch = if update.leader_epoch == -1 { before.leader_epoch } else { update.leader_epoch };
        let batches = before.state_batches.into_iter().chain(update.state_batches);
        let state_batches = combined(batches, start_offset);
        let delivery_complete_count = update.delivery_complete_count;
        Self { start_offset, leader_epoch, state_batches, delivery_complete_count, ..before }
    }

    /// The state of a share partition whose log ends at `end_offset`: `None` if that is what it is. Nothing is known of records
    /// that are not there, and it begins at the end at the latest: Kafka would wait until the log has come to the start
    /// offset, and deliver nothing of what comes before (`SharePartition`; it only mends a start below the log's).
    pub fn clamped(&self, end_offset: i64) -> Option<Self> {
        let is_beyond = |batch: &StateBatch| batch.last_offset >= end_offset;
        if self.start_offset <= end_offset && !self.state_batches.iter().any(is_beyond) {
            return None;
        }
        let starts_below = self.start_offset < end_offset;
        let below = self.state_batches.iter().filter(|batch| starts_below && batch.first_offset < end_offset);
        let state_batches: Vec<StateBatch> =
            below.map(|batch| batch.between(batch.first_offset, batch.last_offset.min(end_offset - 1))).collect();
        let complete = state_batches.iter().filter(|batch| batch.is_complete());
        let count = complete.fold(0i64, |sum, batch| sum.saturating_add(batch.len()));
        Some(Self {
            snapshot_epoch: self.snapshot_epoch.saturating_add(1),
            start_offset: self.start_offset.min(end_offset),
            delivery_complete_count: match self.delivery_complete_count {
                -1 => -1,
                _ => i32::try_from(count).unwrap_or(-1),
            },
            state_batches,
            ..self.clone()
        })
    }
}

/// Batches over each other: of every offset the greatest (delivery count, delivery state) counts, and nothing below
/// `start_offset` (`PersisterStateBatchCombiner`). They come out in order, without overlaps, equal neighbours joined.
fn combined(batches: impl Iterator<Item = StateBatch>, start_offset: i64) -> Vec<StateBatch> {
    let mut apart: BTreeMap<i64, StateBatch> = BTreeMap::new();
    for batch in batches {
        let first = batch.first_offset.max(start_offset).max(0);
        // The upper end keeps offsets countable; no log comes to it.
        if first <= batch.last_offset && batch.last_offset < i64::MAX {
            lay_over(&mut apart, &batch.between(first, batch.last_offset));
        }
    }
    let mut joined: Vec<StateBatch> = Vec::new();
    for batch in apart.into_values() {
        match joined.last_mut() {
            Some(last) if last.info() == batch.info() && last.last_offset + 1 == batch.first_offset => {
                last.last_offset = batch.last_offset;
            }
            _ => joined.push(batch),
        }
    }
    joined
}

/// Adds a batch to others that do not overlap, which stays so.
fn lay_over(apart: &mut BTreeMap<i64, StateBatch>, new: &StateBatch) {
    let (first, last) = (new.first_offset, new.last_offset);
    let overlapping = apart.range(..=last).rev().take_while(|(_, old)| old.last_offset >= first);
    let mut overlapping: Vec<i64> = overlapping.map(|(first, _)| *first).collect();
    overlapping.reverse();
    let put = |apart: &mut BTreeMap<i64, StateBatch>, of: &StateBatch, first: i64, last: i64| {
        if first <= last {
            apart.insert(first, of.between(first, last));
        }
    };
    let mut next = first;
    for key in overlapping {
        let Some(old) = apart.remove(&key) else { continue };
        put(apart, &old, old.first_offset, first - 1);
        put(apart, new, next, old.first_offset - 1);
        let greater = if new.info() > old.info() { new } else { &old };
        put(apart, greater, old.first_offset.max(first), old.last_offset.min(last));
        put(apart, &old, last + 1, old.last_offset);
        next = old.last_offset + 1;
    }
    put(apart, new, next, last);
}

/// What one partition of `__share_group_state` says, as a coordinator sees it after loading it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShareStates {
    states: BTreeMap<SharePartitionKey, ShareSnapshotValue>,
    early_access: u64,
}

impl ShareStates {
    /// Applies the next batch of the partition. Its CRC is the caller's to check.
    ///
    /// A state of a version that this code does not know is an error: it must not be taken for absent.
    pub fn apply(&mut self, batch: &Batch<'_>) -> Result<(), CoordinatorError> {
        if batch.is_control() {
            return Ok(());
        }
        for record in records(batch)? {
            let record = record?;
            let offset = record.offset;
            let bad = |source| CoordinatorError::Record { offset, source };
            let key = ShareKey::decode(record.key.as_deref().unwrap_or_default()).map_err(bad)?;
            let value =
                record.value.as_deref().map(|value| ShareValue::decode(&key, value)).transpose().map_err(bad)?;
            let (ShareKey::Snapshot(key) | ShareKey::Update(key)) = key else { continue };
            match value {
                Some(ShareValue::Snapshot(value)) => _ = self.states.insert(key, value),
                Some(ShareValue::Update(update)) => {
                    let before = self.states.remove(&key);
                    self.states.insert(key, ShareSnapshotValue::update(before, update));
                }
                Some(ShareValue::EarlyAccess(_)) => self.early_access += 1,
                Some(ShareValue::Raw(bytes)) => {
                    let version = i16::from_be_bytes(bytes.0.first_chunk().copied().unwrap_or_default());
                    return Err(bad(WireError::Version { version }));
                }
                None => _ = self.states.remove(&key),
            }
        }
        Ok(())
    }

    /// The share partitions that were not deleted.
    pub fn states(&self) -> &BTreeMap<SharePartitionKey, ShareSnapshotValue> {
        &self.states
    }

    /// Records of Kafka 4.0, which no later version reads; they were passed over.
    pub fn early_access(&self) -> u64 {
        self.early_access
    }
}

/// Batches that, appended to a partition of `__share_group_state` at `base_offset`, put other states in place; empty without
/// any. `now` (in milliseconds) becomes the time at which they were written.
pub fn snapshot_batches(
    base_offset: i64,
    leader_epoch: i32,
    now: i64,
    states: impl IntoIterator<Item = (SharePartitionKey, ShareSnapshotValue)>,
) -> Vec<u8> {
    let records = states.into_iter().map(|(key, state)| {
        let value = ShareSnapshotValue { write_timestamp: now, ..state };
        (ShareKey::Snapshot(key).encode(), value.encode_prefixed())
    });
    record_batches(base_offset, leader_epoch, now, records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        batch::{BatchBuilder, Batches},
        coordinator::test_util::{every_record, real_batches},
    };

    fn key(partition: i32) -> SharePartitionKey {
        SharePartitionKey { group: "g".into(), topic_id: Uuid([5; 16]), partition }
    }

    fn batch(first_offset: i64, last_offset: i64, delivery_state: i8, delivery_count: i16) -> StateBatch {
        StateBatch { first_offset, last_offset, delivery_state, delivery_count, unknown_tags: vec![] }
    }

    fn short(batches: &[StateBatch]) -> Vec<(i64, i64, i8, i16)> {
        batches.iter().map(|b| (b.first_offset, b.last_offset, b.delivery_state, b.delivery_count)).collect()
    }

    #[test]
    fn kafkas_records_are_written_back_byte_for_byte() {
        let records = every_record(include_bytes!("../tests/data/records/share-records.bin"));
        for (key_bytes, bytes) in &records {
            let key = ShareKey::decode(key_bytes).unwrap();
            assert_eq!(key.encode(), *key_bytes);
            let value = ShareValue::decode(&key, bytes).unwrap();
            assert_eq!(value.encode(), *bytes);
            assert!(matches!(
                (key, value),
                (ShareKey::Snapshot(_), ShareValue::Snapshot(_)) | (ShareKey::Update(_), ShareValue::Update(_))
            ));
        }
        assert_eq!(records.len(), 4);
        let filled = ShareSnapshotValue::decode_prefixed(records[1].1).unwrap();
        let ShareKey::Snapshot(key) = ShareKey::decode(records[1].0).unwrap() else { panic!() };
        assert!(key.group.starts_with("text-") && key.partition > 0 && key.topic_id != Uuid::ZERO);
        assert_eq!(filled.state_batches.len(), 2);
        assert!(filled.delivery_complete_count > 0 && filled.start_offset > filled.snapshot_epoch.into());
    }

    #[test]
    fn a_real_partition_is_written_back_and_replays_to_what_was_acknowledged() {
        let mut states = ShareStates::default();
        let bytes = real_batches("4.3.0/shares/__share_group_state-0.log");
        for (_, batch) in Batches::new(&bytes).map(Result::unwrap) {
            states.apply(&batch).unwrap();
            for record in batch.records().unwrap().map(Result::unwrap) {
                let key = ShareKey::decode(record.key.as_ref().unwrap()).unwrap();
                assert_eq!(Some(key.encode()), record.key);
                let value = record.value.as_ref().map(|value| ShareValue::decode(&key, value).unwrap());
                assert_eq!(value.map(|value| value.encode()), record.value);
            }
        }
        let [(key, state)] = &states.states().iter().collect::<Vec<_>>()[..] else { panic!("{states:?}") };
        assert_eq!((key.group.as_str(), key.partition), ("workers", 0));
        assert_eq!((state.start_offset, state.state_epoch, state.delivery_complete_count), (20, 2, 5));
        assert_eq!(short(&state.state_batches), [(20, 24, 2, 1)]);
    }

    #[test]
    fn values_of_early_access_are_recognised_and_carried() {
        for count in [0, 1, 2, 130] {
            let state_batches: Vec<_> = (0..count).map(|n| batch(n * 10, n * 10 + 9, 2, 1)).collect();
            let snapshot =
                early_access::Snapshot { start_offset: 7, state_batches: state_batches.clone(), ..Default::default() };
            let update = early_access::Update { start_offset: 7, state_batches, ..Default::default() };
            for (key, bytes) in [
                (ShareKey::Snapshot(key(0)), snapshot.encode_prefixed()),
                (ShareKey::Update(key(0)), update.encode_prefixed()),
            ] {
                let value = ShareValue::decode(&key, &bytes).unwrap();
                assert_eq!(value, ShareValue::EarlyAccess(Blob(bytes.clone())));
                assert_eq!(value.encode(), bytes);
                let log = BatchBuilder::new(0, 0).record(0, Some(&key.encode()), Some(&bytes)).build();
                let mut states = ShareStates::default();
                states.apply(&Batch::parse(&log).unwrap()).unwrap();
                assert_eq!((states.early_access(), states.states().len()), (1, 0));
            }
        }
    }

    /// Records of one partition, as a coordinator would write them.
    fn log(records: &[(ShareKey, Option<Vec<u8>>)]) -> Vec<u8> {
        let mut batch = BatchBuilder::new(0, 0);
        for (key, value) in records {
            batch = batch.record(0, Some(&key.encode()), value.as_deref());
        }
        batch.build()
    }

    #[test]
    fn snapshots_updates_and_deletions_replay_to_what_is_known() {
        let snapshot = |start_offset, state_batches| {
            ShareSnapshotValue {
                snapshot_epoch: 3,
                state_epoch: 9,
                leader_epoch: 4,
                start_offset,
                state_batches,
                ..Default::default()
            }
            .encode_prefixed()
        };
        let update = |start_offset, leader_epoch, delivery_complete_count, state_batches| {
            ShareUpdateValue {
                snapshot_epoch: 3,
                leader_epoch,
                start_offset,
                delivery_complete_count,
                state_batches,
                ..Default::default()
            }
            .encode_prefixed()
        };
        let (of_snapshot, of_update) = (|n| ShareKey::Snapshot(key(n)), |n| ShareKey::Update(key(n)));
        let bytes = log(&[
            (of_snapshot(0), Some(snapshot(10, vec![batch(10, 19, 0, 1)]))),
            (of_update(0), Some(update(-1, -1, 3, vec![batch(15, 17, 2, 1)]))),
            (of_update(0), Some(update(12, 6, 4, vec![batch(20, 20, 4, 5)]))),
            (of_snapshot(1), Some(snapshot(0, vec![]))),
            (of_snapshot(1), None),
            (of_update(2), Some(update(8, 2, -1, vec![]))),
            (ShareKey::Unknown { record_type: 7, bytes: vec![1] }, Some(vec![])),
        ]);
        let mut states = ShareStates::default();
        states.apply(&Batch::parse(&bytes).unwrap()).unwrap();
        assert_eq!(states.states().keys().map(|key| key.partition).collect::<Vec<_>>(), [0, 2]);
        let state = &states.states()[&key(0)];
        assert_eq!((state.start_offset, state.leader_epoch, state.state_epoch), (12, 6, 9));
        assert_eq!(state.delivery_complete_count, 4);
        assert_eq!(short(&state.state_batches), [(12, 14, 0, 1), (15, 17, 2, 1), (18, 19, 0, 1), (20, 20, 4, 5)]);
        assert_eq!(states.states()[&key(2)].start_offset, 8);
    }

    #[test]
    fn a_newer_version_is_an_error() {
        let bytes = log(&[(ShareKey::Snapshot(key(0)), Some(vec![0, 1, 9]))]);
        let error = CoordinatorError::Record { offset: 0, source: WireError::Version { version: 1 } };
        assert_eq!(ShareStates::default().apply(&Batch::parse(&bytes).unwrap()), Err(error));
    }

    #[test]
    fn nothing_is_known_beyond_the_end() {
        let state = ShareSnapshotValue {
            snapshot_epoch: 3,
            state_epoch: 9,
            leader_epoch: 4,
            start_offset: 100,
            create_timestamp: 5,
            delivery_complete_count: 15,
            state_batches: vec![batch(101, 105, 2, 1), batch(106, 107, 0, 2), batch(108, 117, 4, 5)],
            ..Default::default()
        };
        for (end, start, complete, batches) in [
            (117, 100, 14, vec![(101, 105, 2, 1), (106, 107, 0, 2), (108, 116, 4, 5)]),
            (108, 100, 5, vec![(101, 105, 2, 1), (106, 107, 0, 2)]),
            (103, 100, 2, vec![(101, 102, 2, 1)]),
            (100, 100, 0, vec![]),
            (40, 40, 0, vec![]),
        ] {
            let clamped = state.clamped(end).unwrap();
            assert_eq!((clamped.start_offset, clamped.delivery_complete_count), (start, complete), "{end}");
            assert_eq!(short(&clamped.state_batches), batches);
            assert_eq!((clamped.snapshot_epoch, clamped.state_epoch, clamped.leader_epoch), (4, 9, 4));
            assert_eq!((clamped.create_timestamp, clamped.clamped(end)), (5, None));
        }
        assert_eq!(state.clamped(118), None);
        let unknown = ShareSnapshotValue { delivery_complete_count: -1, ..state };
        assert_eq!(unknown.clamped(103).unwrap().delivery_complete_count, -1);
        let uninitialized = ShareSnapshotValue { start_offset: -1, ..Default::default() };
        assert_eq!(uninitialized.clamped(0), None);
    }

    #[test]
    fn appended_snapshots_replace_what_was_known() {
        let state = |n| ShareSnapshotValue { start_offset: n, ..Default::default() };
        let bytes = snapshot_batches(50, 3, 99, (0..20_000).map(|n| (key(n), state(n.into()))));
        let (mut states, mut next_offset) = (ShareStates::default(), 50);
        for (_, batch) in Batches::new(&bytes).map(Result::unwrap) {
            batch.check_crc().unwrap();
            assert_eq!((batch.base_offset(), batch.leader_epoch(), batch.attributes()), (next_offset, 3, 0));
            assert!(batch.size() < 1 << 20);
            next_offset = batch.next_offset();
            states.apply(&batch).unwrap();
        }
        assert_eq!(next_offset, 20_050);
        assert_eq!(states.states()[&key(17)], ShareSnapshotValue { write_timestamp: 99, ..state(17) });
        assert!(snapshot_batches(50, 3, 99, []).is_empty());
    }

    fn some_batch() -> impl Strategy<Value = StateBatch> {
        (0..60i64, 0..20i64, prop::sample::select(vec![0i8, 2, 4]), 1..4i16)
            .prop_map(|(first, len, state, count)| batch(first, first + len, state, count))
    }

    proptest! {
        #[test]
        fn batches_over_each_other_are_what_they_are_offset_by_offset(
            batches in prop::collection::vec(some_batch(), 0..12),
            start in -1..40i64,
        ) {
            let found = combined(batches.clone().into_iter(), start);
            let at = |batches: &[StateBatch], offset: i64| {
                let here = batches.iter().filter(|b| (b.first_offset..=b.last_offset).contains(&offset));
                here.map(StateBatch::info).max()
            };
            for offset in 0..90 {
                let expected = at(&batches, offset).filter(|_| offset >= start);
                prop_assert_eq!(at(&found, offset), expected, "offset {}", offset);
            }
            for pair in found.windows(2) {
                prop_assert!(pair[0].last_offset < pair[1].first_offset);
                let joins = pair[0].last_offset + 1 == pair[1].first_offset && pair[0].info() == pair[1].info();
                prop_assert!(!joins, "{pair:?}");
            }
        }

        #[test]
        fn what_is_written_reads_back(
            epochs: [i32; 3], offsets: [i64; 3], count: i32, batches in prop::collection::vec(some_batch(), 0..5),
        ) {
            let [snapshot_epoch, state_epoch, leader_epoch] = epochs;
            let [start_offset, create_timestamp, write_timestamp] = offsets;
            let value = ShareValue::Snapshot(ShareSnapshotValue {
                snapshot_epoch, state_epoch, leader_epoch, start_offset, create_timestamp, write_timestamp,
                state_batches: batches.clone(), delivery_complete_count: count, ..Default::default()
            });
            prop_assert_eq!(ShareValue::decode(&ShareKey::Snapshot(key(0)), &value.encode()), Ok(value));
            let value = ShareValue::Update(ShareUpdateValue {
                snapshot_epoch, leader_epoch, start_offset, state_batches: batches, delivery_complete_count: count,
                ..Default::default()
            });
            prop_assert_eq!(ShareValue::decode(&ShareKey::Update(key(0)), &value.encode()), Ok(value));
        }

        #[test]
        fn damaged_records_are_read_or_refused(which: prop::sample::Index, at: prop::sample::Index, byte: u8, end in 0..30i64) {
            let records = every_record(include_bytes!("../tests/data/records/share-records.bin"));
            let (key, value) = which.get(&records);
            let mut damaged = [*key, *value].concat();
            let at = at.index(damaged.len());
            damaged[at] = byte;
            let (key, value) = damaged.split_at(key.len());
            if let Ok(key) = ShareKey::decode(key) {
                let again = ShareKey::decode(&key.encode());
                prop_assert_eq!(again.as_ref(), Ok(&key));
                let bytes = BatchBuilder::new(0, 0).record(0, Some(&key.encode()), Some(value)).build();
                let mut states = ShareStates::default();
                if states.apply(&Batch::parse(&bytes).unwrap()).is_ok() {
                    let clamped = states.states().values().filter_map(|state| state.clamped(end));
                    prop_assert!(clamped.into_iter().all(|state| state.start_offset <= end));
                }
            }
        }
    }
}
