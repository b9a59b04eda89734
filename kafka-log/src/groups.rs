//! `__consumer_offsets`: what groups have committed, and who is in them.
//!
//! Keys are an int16 type and a body in the old form, values an int16 version and a body, null deleting the key
//! (`group-coordinator/src/main/resources/common/message/*.json`, Kafka 0.8 to 4.3). Offsets are decoded in all
//! their versions, as are classic and consumer groups; of share and streams groups the keys are, while their values
//! are carried as they are.
//!
//! Offsets may be committed in a transaction: they count once its COMMIT marker stands in the same partition, and an
//! offset committed meanwhile outside a transaction is newer than they are (`OffsetMetadataManager`).

use std::collections::BTreeMap;

use crate::{
    TopicPartition, Uuid,
    batch::Batch,
    coordinator::{CoordinatorError, record_batches, records},
    wire::{Blob, Message, Reader, Wire, WireError, Writer, message},
};

pub use crate::coordinator::partition_for;

/// Types of keys that hold a committed offset; 0 is older than Kafka 0.9.
const OFFSET_COMMIT: std::ops::RangeInclusive<i16> = 0..=1;

/// Types of records about groups and their members (`CoordinatorRecordType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "named as in Kafka's schemas")]
pub enum GroupRecord {
    GroupMetadata = 2,
    ConsumerGroupMetadata = 3,
    ConsumerGroupPartitionMetadata = 4,
    ConsumerGroupMemberMetadata = 5,
    ConsumerGroupTargetAssignmentMetadata = 6,
    ConsumerGroupTargetAssignmentMember = 7,
    ConsumerGroupCurrentMemberAssignment = 8,
    ShareGroupPartitionMetadata = 9,
    ShareGroupMemberMetadata = 10,
    ShareGroupMetadata = 11,
    ShareGroupTargetAssignmentMetadata = 12,
    ShareGroupTargetAssignmentMember = 13,
    ShareGroupCurrentMemberAssignment = 14,
    ShareGroupStatePartitionMetadata = 15,
    ConsumerGroupRegularExpression = 16,
    StreamsGroupMetadata = 17,
    StreamsGroupMemberMetadata = 19,
    StreamsGroupTargetAssignmentMetadata = 20,
    StreamsGroupTargetAssignmentMember = 21,
    StreamsGroupCurrentMemberAssignment = 22,
    StreamsGroupTopology = 23,
}

impl GroupRecord {
    const ALL: [GroupRecord; 21] = {
        use GroupRecord::*;
        [
            GroupMetadata,
            ConsumerGroupMetadata,
            ConsumerGroupPartitionMetadata,
            ConsumerGroupMemberMetadata,
            ConsumerGroupTargetAssignmentMetadata,
            ConsumerGroupTargetAssignmentMember,
            ConsumerGroupCurrentMemberAssignment,
            ShareGroupPartitionMetadata,
            ShareGroupMemberMetadata,
            ShareGroupMetadata,
            ShareGroupTargetAssignmentMetadata,
            ShareGroupTargetAssignmentMember,
            ShareGroupCurrentMemberAssignment,
            ShareGroupStatePartitionMetadata,
            ConsumerGroupRegularExpression,
            StreamsGroupMetadata,
            StreamsGroupMemberMetadata,
            StreamsGroupTargetAssignmentMetadata,
            StreamsGroupTargetAssignmentMember,
            StreamsGroupCurrentMemberAssignment,
            StreamsGroupTopology,
        ]
    };

    /// Whether the key names something inside the group: a member's id, or a regular expression.
    fn has_member(self) -> bool {
        use GroupRecord::*;
        matches!(
            self,
            ConsumerGroupMemberMetadata
                | ConsumerGroupTargetAssignmentMember
                | ConsumerGroupCurrentMemberAssignment
                | ShareGroupMemberMetadata
                | ShareGroupTargetAssignmentMember
                | ShareGroupCurrentMemberAssignment
                | ConsumerGroupRegularExpression
                | StreamsGroupMemberMetadata
                | StreamsGroupTargetAssignmentMember
                | StreamsGroupCurrentMemberAssignment
        )
    }
}

/// Whose offset was committed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetCommitKey {
    /// The group's id.
    pub group: String,
    /// The partition.
    pub partition: TopicPartition,
}

/// The key of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKey {
    /// A committed offset (types 0 and 1).
    OffsetCommit {
        /// 0 in records older than Kafka 0.9, 1 since.
        record_type: i16,
        /// Whose offset.
        key: OffsetCommitKey,
    },
    /// Something about a group.
    Group {
        /// What it is.
        record: GroupRecord,
        /// The group's id.
        group: String,
    },
    /// Something about a member of a group.
    Member {
        /// What it is.
        record: GroupRecord,
        /// The group's id.
        group: String,
        /// The member's id; a regular expression for [`GroupRecord::ConsumerGroupRegularExpression`].
        member: String,
    },
    /// A type that this code does not know.
    Unknown {
        /// The type.
        record_type: i16,
        /// The body as it is.
        bytes: Vec<u8>,
    },
}

impl GroupKey {
    /// Reads a record's key.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes, 0, false);
        let record_type = i16::read(&mut reader)?;
        let record = GroupRecord::ALL.into_iter().find(|record| *record as i16 == record_type);
        let key = match record {
            _ if OFFSET_COMMIT.contains(&record_type) => {
                let group = String::read(&mut reader)?;
                let partition = TopicPartition::new(String::read(&mut reader)?, i32::read(&mut reader)?);
                GroupKey::OffsetCommit { record_type, key: OffsetCommitKey { group, partition } }
            }
            Some(record) if record.has_member() => {
                let (group, member) = (String::read(&mut reader)?, String::read(&mut reader)?);
                GroupKey::Member { record, group, member }
            }
            Some(record) => GroupKey::Group { record, group: String::read(&mut reader)? },
            None => {
                let bytes = reader.rest().to_vec();
                return Ok(GroupKey::Unknown { record_type, bytes });
            }
        };
        reader.finish()?;
        Ok(key)
    }

    /// The key's bytes.
    ///
    /// # Panics
    /// If a name is longer than 32 KiB.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), 0, false);
        match self {
            GroupKey::OffsetCommit { record_type, key } => {
                record_type.write(&mut writer);
                key.group.write(&mut writer);
                key.partition.topic.write(&mut writer);
                key.partition.partition.write(&mut writer);
            }
            GroupKey::Group { record, group } => {
                (*record as i16).write(&mut writer);
                group.write(&mut writer);
            }
            GroupKey::Member { record, group, member } => {
                (*record as i16).write(&mut writer);
                group.write(&mut writer);
                member.write(&mut writer);
            }
            GroupKey::Unknown { record_type, bytes } => {
                record_type.write(&mut writer);
                writer.put(bytes);
            }
        }
        writer.into_bytes()
    }
}

/// The value of a record.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "named after what they hold")]
pub enum GroupValue {
    OffsetCommit(OffsetCommitValue),
    GroupMetadata(GroupMetadataValue),
    ConsumerGroupMetadata(ConsumerGroupMetadataValue),
    ConsumerGroupPartitionMetadata(ConsumerGroupPartitionMetadataValue),
    ConsumerGroupMemberMetadata(ConsumerGroupMemberMetadataValue),
    ConsumerGroupTargetAssignmentMetadata(ConsumerGroupTargetAssignmentMetadataValue),
    ConsumerGroupTargetAssignmentMember(ConsumerGroupTargetAssignmentMemberValue),
    ConsumerGroupCurrentMemberAssignment(ConsumerGroupCurrentMemberAssignmentValue),
    ConsumerGroupRegularExpression(ConsumerGroupRegularExpressionValue),
    /// Of share and streams groups, and of types and versions that this code does not know; version included.
    Raw(Blob),
}

impl GroupValue {
    /// Reads the value that belongs to `key`.
    pub fn decode(key: &GroupKey, bytes: &[u8]) -> Result<Self, WireError> {
        use GroupRecord::*;
        let (GroupKey::Group { record, .. } | GroupKey::Member { record, .. }) = key else {
            return match key {
                GroupKey::OffsetCommit { .. } => typed(bytes, GroupValue::OffsetCommit),
                _ => Ok(raw(bytes)),
            };
        };
        match record {
            GroupMetadata => typed(bytes, GroupValue::GroupMetadata),
            ConsumerGroupMetadata => typed(bytes, GroupValue::ConsumerGroupMetadata),
            ConsumerGroupPartitionMetadata => typed(bytes, GroupValue::ConsumerGroupPartitionMetadata),
            ConsumerGroupMemberMetadata => typed(bytes, GroupValue::ConsumerGroupMemberMetadata),
            ConsumerGroupTargetAssignmentMetadata => typed(bytes, GroupValue::ConsumerGroupTargetAssignmentMetadata),
            ConsumerGroupTargetAssignmentMember => typed(bytes, GroupValue::ConsumerGroupTargetAssignmentMember),
            ConsumerGroupCurrentMemberAssignment => typed(bytes, GroupValue::ConsumerGroupCurrentMemberAssignment),
            ConsumerGroupRegularExpression => typed(bytes, GroupValue::ConsumerGroupRegularExpression),
            _ => Ok(raw(bytes)),
        }
    }

    /// The value's bytes, version included.
    ///
    /// # Panics
    /// If its version is unknown.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            GroupValue::OffsetCommit(value) => value.encode_prefixed(),
            GroupValue::GroupMetadata(value) => value.encode_prefixed(),
            GroupValue::ConsumerGroupMetadata(value) => value.encode_prefixed(),
            GroupValue::ConsumerGroupPartitionMetadata(value) => value.encode_prefixed(),
            GroupValue::ConsumerGroupMemberMetadata(value) => value.encode_prefixed(),
            GroupValue::ConsumerGroupTargetAssignmentMetadata(value) => value.encode_prefixed(),
            GroupValue::ConsumerGroupTargetAssignmentMember(value) => value.encode_prefixed(),
            GroupValue::ConsumerGroupCurrentMemberAssignment(value) => value.encode_prefixed(),
            GroupValue::ConsumerGroupRegularExpression(value) => value.encode_prefixed(),
            GroupValue::Raw(bytes) => bytes.0.clone(),
        }
    }
}

fn typed<T: Message>(bytes: &[u8], wrap: fn(T) -> GroupValue) -> Result<GroupValue, WireError> {
    match T::decode_prefixed(bytes) {
        Err(WireError::Version { .. }) => Ok(raw(bytes)),
        read => read.map(wrap),
    }
}

fn raw(bytes: &[u8]) -> GroupValue {
    GroupValue::Raw(Blob(bytes.to_vec()))
}

message! {
    /// A committed offset. Version 4 is written by Kafka 4.1 and later, 3 before, 1 where an expiry was asked for.
    #[derive(Debug)]
    OffsetCommitValue [0..=4, flexible 4] {
        /// The offset of the next record to read.
        offset: i64;
        /// The leader epoch of the record before it, -1 if the client did not say.
        leader_epoch: i32 = -1, since 3;
        /// Whatever the client wished to remember.
        metadata: String;
        /// When it was committed, in milliseconds.
        commit_timestamp: i64;
        /// When it expires, in milliseconds; -1 if that is left to the group.
        expire_timestamp: i64 = -1, since 1, until 1;
    }
    tagged {
        /// The topic's id; zero if it is not known. An offset whose topic now has another id does not count.
        0 => topic_id: Uuid, since 4;
    }
}

message! {
    /// A classic group.
    #[derive(Debug)]
    GroupMetadataValue [0..=4, flexible 4] {
        /// `consumer`, `connect` or the like; empty for a group that only commits.
        protocol_type: String;
        /// Raised with every rebalance.
        generation: i32;
        /// The assignor.
        protocol: Option<String>;
        /// The member that assigns.
        leader: Option<String>;
        /// Since when the group is in its state, in milliseconds; -1 if that is not known.
        current_state_timestamp: i64 = -1, since 2;
        /// The members.
        members: Vec<GroupMember>;
    }
}

message! {
    /// A member of a classic group.
    #[derive(Debug)]
    GroupMember {
        /// The member's id.
        member_id: String;
        /// The id of a static member.
        group_instance_id: Option<String>, since 3;
        /// The client's id.
        client_id: String;
        /// The client's host.
        client_host: String;
        /// In milliseconds.
        rebalance_timeout: i32 = -1, since 1;
        /// In milliseconds.
        session_timeout: i32;
        /// What it subscribes to, in the protocol's own form.
        subscription: Blob;
        /// What it was assigned, in the protocol's own form.
        assignment: Blob;
    }
}

message! {
    /// A consumer group (KIP-848).
    #[derive(Debug)]
    ConsumerGroupMetadataValue [0..=0, flexible 0] {
        /// Raised with every change of members, subscriptions or topics.
        epoch: i32;
    }
    tagged {
        /// Hash of what the group knows of its topics.
        0 => metadata_hash: i64;
    }
}

message! {
    /// What a consumer group knows of its topics. Up to Kafka 4.0.
    #[derive(Debug)]
    ConsumerGroupPartitionMetadataValue [0..=0, flexible 0] {
        /// The topics.
        topics: Vec<GroupTopic>;
    }
}

message! {
    /// A topic that a consumer group subscribes to.
    #[derive(Debug)]
    GroupTopic {
        /// The topic's id.
        topic_id: Uuid;
        /// The topic's name.
        topic_name: String;
        /// How many partitions it has.
        num_partitions: i32;
        /// Where they are.
        partition_metadata: Vec<GroupTopicRacks>;
    }
}

message! {
    /// The racks of a partition.
    #[derive(Debug)]
    GroupTopicRacks {
        /// The partition.
        partition: i32;
        /// The racks of its replicas.
        racks: Vec<String>;
    }
}

message! {
    /// A member of a consumer group.
    #[derive(Debug)]
    ConsumerGroupMemberMetadataValue [0..=0, flexible 0] {
        /// The id of a static member.
        instance_id: Option<String>;
        /// The member's rack.
        rack_id: Option<String>;
        /// The client's id.
        client_id: String;
        /// The client's host.
        client_host: String;
        /// The topics that it subscribes to by name.
        subscribed_topic_names: Vec<String>;
        /// The expression by which it subscribes.
        subscribed_topic_regex: Option<String>;
        /// In milliseconds.
        rebalance_timeout_ms: i32 = -1;
        /// The assignor that it wants.
        server_assignor: Option<String>;
    }
    tagged {
        /// Set if the member speaks the classic protocol. The default is empty, not `None`.
        0 => classic_member_metadata: Option<ClassicMember> = Some(ClassicMember::default());
    }
}

message! {
    /// What a member of the classic protocol has beside.
    #[derive(Debug)]
    ClassicMember {
        /// In milliseconds.
        session_timeout_ms: i32;
        /// The assignors that it supports.
        supported_protocols: Vec<ClassicProtocol>;
    }
}

message! {
    /// An assignor that a classic member supports.
    #[derive(Debug)]
    ClassicProtocol {
        /// Its name.
        name: String;
        /// The subscription, in the protocol's own form.
        metadata: Blob;
    }
}

message! {
    /// The epoch of a consumer group's assignment.
    #[derive(Debug)]
    ConsumerGroupTargetAssignmentMetadataValue [0..=0, flexible 0] {
        /// The group epoch for which it was made.
        assignment_epoch: i32;
    }
    tagged {
        /// When it was made, in milliseconds; 0 if that is not known.
        0 => assignment_timestamp: i64;
    }
}

message! {
    /// What a member is to get.
    #[derive(Debug)]
    ConsumerGroupTargetAssignmentMemberValue [0..=0, flexible 0] {
        /// The partitions.
        topic_partitions: Vec<AssignedPartitions>;
    }
}

message! {
    /// What a member has.
    #[derive(Debug)]
    ConsumerGroupCurrentMemberAssignmentValue [0..=0, flexible 0] {
        /// The assignment's epoch that the member has reached.
        member_epoch: i32;
        /// The one before, or -1.
        previous_member_epoch: i32;
        /// `MemberState`.
        state: i8;
        /// The partitions that it has.
        assigned_partitions: Vec<AssignedPartitions>;
        /// The partitions that it has yet to give up.
        partitions_pending_revocation: Vec<AssignedPartitions>;
    }
}

message! {
    /// Partitions of a topic.
    #[derive(Debug)]
    AssignedPartitions {
        /// The topic's id.
        topic_id: Uuid;
        /// The partitions.
        partitions: Vec<i32>;
    }
    tagged {
        /// The epochs in which they were assigned (4.3 and later, of current assignments).
        0 => assignment_epochs: Option<Vec<i32>> = Some(Vec::new());
    }
}

message! {
    /// The topics that match an expression.
    #[derive(Debug)]
    ConsumerGroupRegularExpressionValue [0..=0, flexible 0] {
        /// The topics' names.
        topics: Vec<String>;
        /// The metadata offset at which they were looked up.
        metadata_version: i64;
        /// When they were, in milliseconds.
        timestamp: i64;
    }
}

/// A committed offset and where it was committed.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedOffset {
    /// What was committed.
    pub value: OffsetCommitValue,
    /// The offset of the record in its partition of `__consumer_offsets`.
    pub record_offset: i64,
}

/// The offsets that one partition of `__consumer_offsets` holds, as a coordinator sees them after loading it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CommittedOffsets {
    offsets: BTreeMap<OffsetCommitKey, CommittedOffset>,
    pending: BTreeMap<i64, BTreeMap<OffsetCommitKey, CommittedOffset>>,
}

impl CommittedOffsets {
    /// Applies the next batch of the partition. Its CRC is the caller's to check.
    ///
    /// An offset of a version that this code does not know is an error: it must not be taken for absent.
    pub fn apply(&mut self, batch: &Batch<'_>) -> Result<(), CoordinatorError> {
        if batch.is_control() {
            let base_offset = batch.base_offset();
            let marker = batch.end_txn_marker();
            let marker = marker.map_err(|source| CoordinatorError::Batch { base_offset, source })?;
            if let Some(marker) = marker {
                self.end_transaction(batch.producer_id(), marker.commit);
            }
            return Ok(());
        }
        let producer = batch.is_transactional().then(|| batch.producer_id());
        for record in records(batch)? {
            let record = record?;
            let offset = record.offset;
            let bad = |source| CoordinatorError::Record { offset, source };
            let key = GroupKey::decode(record.key.as_deref().unwrap_or_default()).map_err(bad)?;
            let GroupKey::OffsetCommit { key, .. } = key else {
                continue;
            };
            match record.value {
                Some(value) => {
                    let value = OffsetCommitValue::decode_prefixed(&value).map_err(bad)?;
                    self.commit(producer, key, CommittedOffset { value, record_offset: offset });
                }
                None => self.delete(&key),
            }
        }
        Ok(())
    }

    fn commit(&mut self, producer: Option<i64>, key: OffsetCommitKey, committed: CommittedOffset) {
        match producer {
            Some(id) => self.pending.entry(id).or_default().insert(key, committed),
            None => self.offsets.insert(key, committed),
        };
    }

    /// A tombstone takes commits along that are pending.
    fn delete(&mut self, key: &OffsetCommitKey) {
        self.offsets.remove(key);
        for pending in self.pending.values_mut() {
            pending.remove(key);
        }
    }

    fn end_transaction(&mut self, producer: i64, commit: bool) {
        let pending = self.pending.remove(&producer).unwrap_or_default();
        for (key, committed) in pending.into_iter().filter(|_| commit) {
            let newer = self.offsets.get(&key).is_some_and(|o| o.record_offset > committed.record_offset);
            if !newer {
                self.offsets.insert(key, committed);
            }
        }
    }

    /// The offsets that groups see.
    pub fn offsets(&self) -> &BTreeMap<OffsetCommitKey, CommittedOffset> {
        &self.offsets
    }

    /// Offsets that are committed in transactions without an end, with the producer ids of those.
    pub fn pending(&self) -> impl Iterator<Item = (i64, &OffsetCommitKey, &CommittedOffset)> {
        self.pending.iter().flat_map(|(producer, offsets)| offsets.iter().map(|(key, offset)| (*producer, key, offset)))
    }
}

/// A committed offset that is to be moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Clamp {
    /// Whose offset.
    pub key: OffsetCommitKey,
    /// What is committed now; its version, metadata and topic id are kept.
    pub committed: OffsetCommitValue,
    /// The offset to be committed instead.
    pub offset: i64,
    /// The leader epoch of the record before it, -1 if it is not known.
    pub leader_epoch: i32,
}

/// Batches that, appended to a partition of `__consumer_offsets` at `base_offset`, commit other offsets; empty
/// without clamps.
///
/// They belong to no transaction, so they outrank what is pending in one: resolve open transactions first. `now` (in
/// milliseconds) becomes the time of the commits, from which they expire.
pub fn clamp_batches(base_offset: i64, leader_epoch: i32, now: i64, clamps: &[Clamp]) -> Vec<u8> {
    let records = clamps.iter().map(|clamp| {
        let key = GroupKey::OffsetCommit { record_type: *OFFSET_COMMIT.end(), key: clamp.key.clone() };
        let value = OffsetCommitValue {
            offset: clamp.offset,
            leader_epoch: clamp.leader_epoch,
            commit_timestamp: now,
            ..clamp.committed.clone()
        };
        (key.encode(), value.encode_prefixed())
    });
    record_batches(base_offset, leader_epoch, now, records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        batch::{BatchBuilder, Batches, EndTxnMarker, end_txn_marker_batch},
        coordinator::test_util::{every_record, real_batches},
    };

    #[test]
    fn kafkas_records_of_every_type_and_version_are_written_back_byte_for_byte() {
        let records = every_record(include_bytes!("../tests/data/records/group-records.bin"));
        let mut typed = 0;
        for (key_bytes, bytes) in &records {
            let key = GroupKey::decode(key_bytes).unwrap();
            assert_eq!(key.encode(), *key_bytes, "{key:?}");
            assert!(!matches!(key, GroupKey::Unknown { .. }), "{key:?}");
            let value = GroupValue::decode(&key, bytes).unwrap();
            assert_eq!(value.encode(), *bytes, "{key:?} {value:?}");
            typed += usize::from(!matches!(value, GroupValue::Raw(_)));
        }
        assert_eq!((records.len(), typed), (60, 36));
    }

    #[test]
    fn fields_are_read_into_their_places() {
        let records = every_record(include_bytes!("../tests/data/records/group-records.bin"));
        let filled = |record_type: i16, version: u8| {
            let mut found = records.iter().filter(|(k, v)| k[1] == record_type as u8 && v[1] == version);
            let (key, value) = found.next_back().unwrap();
            let key = GroupKey::decode(key).unwrap();
            let value = GroupValue::decode(&key, value).unwrap();
            (key, value)
        };
        let (key, GroupValue::OffsetCommit(value)) = filled(1, 4) else { panic!() };
        let GroupKey::OffsetCommit { record_type: 1, key } = key else { panic!() };
        assert_eq!((key.group.as_str(), key.partition.to_string()), ("text-415", "text-417-416".into()));
        assert_eq!((value.offset, value.leader_epoch), (4_220_000_000_000, 420));
        assert_eq!((value.metadata.as_str(), value.commit_timestamp), ("text-421", 4_180_000_000_000));
        assert_eq!((value.expire_timestamp, value.topic_id.to_string()), (-1, "AAAAAAAAAaf________-WQ".into()));
        let (_, GroupValue::OffsetCommit(value)) = filled(1, 1) else { panic!() };
        assert_eq!(value.expire_timestamp, 3_920_000_000_000);
        let (key, _) = filled(16, 0);
        let (group, member) = ("text-701".into(), "text-702".into());
        assert_eq!(key, GroupKey::Member { record: GroupRecord::ConsumerGroupRegularExpression, group, member });
    }

    #[test]
    fn real_partitions_are_written_back_and_replay_to_what_was_committed() {
        for kafka in ["3.9.1", "4.1.1", "4.3.0"] {
            let mut offsets = CommittedOffsets::default();
            for partition in [0, 1] {
                let bytes = real_batches(&format!("{kafka}/offsets/__consumer_offsets-{partition}.log"));
                for (_, batch) in Batches::new(&bytes).map(Result::unwrap) {
                    offsets.apply(&batch).unwrap();
                    for record in batch.records().unwrap().filter(|_| !batch.is_control()).map(Result::unwrap) {
                        let key = GroupKey::decode(record.key.as_ref().unwrap()).unwrap();
                        assert_eq!(Some(key.encode()), record.key);
                        let value = record.value.as_ref().map(|value| GroupValue::decode(&key, value).unwrap());
                        assert_eq!(value.map(|value| value.encode()), record.value);
                    }
                }
            }
            // Both producers committed wide-0 and wide-2 and aborted wide-1; one left wide-3 open.
            let visible = |group: &str| {
                let of_group = offsets.offsets().iter().filter(|(key, _)| key.group == group);
                of_group.map(|(key, o)| (key.partition.to_string(), o.value.offset)).collect::<Vec<_>>()
            };
            let expected = [("wide-0", 10), ("wide-2", 12), ("wide-3", 13)].map(|(p, o)| (p.to_owned(), o));
            assert_eq!(visible("txgroup"), expected, "{kafka}");
            let pending: Vec<_> = offsets.pending().map(|(_, key, _)| key.partition.to_string()).collect();
            assert_eq!(pending, ["wide-3"]);
            let version = if kafka == "3.9.1" { 3 } else { 4 };
            assert!(offsets.offsets().values().all(|offset| offset.value.version == version));
            // In 3.9.1 the static member was still there, so Kafka refused to delete the offset.
            let by_hand = visible("group-classic").contains(&("wide-0".to_owned(), 1));
            assert_eq!(by_hand, kafka == "3.9.1");
        }
    }

    fn key(partition: i32) -> OffsetCommitKey {
        OffsetCommitKey { group: "g".into(), partition: TopicPartition::new("t", partition) }
    }

    fn value(offset: i64) -> OffsetCommitValue {
        OffsetCommitValue { version: 4, offset, metadata: "m".into(), topic_id: Uuid([5; 16]), ..Default::default() }
    }

    /// A batch with one commit (or, without an offset, deletion) of partition 0, by a transaction if `producer` is.
    fn commit(base_offset: i64, producer: Option<i64>, offset: Option<i64>) -> Vec<u8> {
        let mut batch = BatchBuilder::new(base_offset, 0);
        if let Some(producer) = producer {
            batch = batch.transactional().producer(producer, 0, -1);
        }
        let key = GroupKey::OffsetCommit { record_type: 1, key: key(0) }.encode();
        let value = offset.map(|offset| value(offset).encode_prefixed());
        batch.record(0, Some(&key), value.as_deref()).build()
    }

    fn marker(base_offset: i64, producer: i64, commit: bool) -> Vec<u8> {
        end_txn_marker_batch(base_offset, 0, 0, producer, 0, EndTxnMarker { commit, coordinator_epoch: 0 })
    }

    #[test]
    fn transactional_commits_count_when_their_marker_comes() {
        for (batches, visible, pending) in [
            (vec![commit(0, Some(7), Some(3))], None, 1),
            (vec![commit(0, Some(7), Some(3)), marker(1, 7, true)], Some(3), 0),
            (vec![commit(0, Some(7), Some(3)), marker(1, 7, false)], None, 0),
            (vec![commit(0, Some(7), Some(3)), marker(1, 8, true)], None, 1),
            // The later commit wins, whatever happens to the earlier one.
            (vec![commit(0, Some(7), Some(3)), commit(1, None, Some(9)), marker(2, 7, true)], Some(9), 0),
            (vec![commit(0, None, Some(9)), commit(1, Some(7), Some(3)), marker(2, 7, true)], Some(3), 0),
            (vec![commit(0, None, Some(9)), commit(1, Some(7), Some(3)), marker(2, 7, false)], Some(9), 0),
            // A deletion takes both along.
            (vec![commit(0, None, Some(9)), commit(1, None, None)], None, 0),
            (vec![commit(0, Some(7), Some(3)), commit(1, None, None), marker(2, 7, true)], None, 0),
        ] {
            let mut offsets = CommittedOffsets::default();
            for batch in &batches {
                offsets.apply(&Batch::parse(batch).unwrap()).unwrap();
            }
            assert_eq!(offsets.offsets().get(&key(0)).map(|o| o.value.offset), visible);
            assert_eq!(offsets.pending().count(), pending);
        }
    }

    #[test]
    fn an_offset_of_a_newer_version_is_an_error_and_other_newer_records_are_not() {
        let offset = GroupKey::OffsetCommit { record_type: 1, key: key(0) };
        let newer = GroupKey::Unknown { record_type: 99, bytes: vec![1] };
        let group = GroupKey::Group { record: GroupRecord::GroupMetadata, group: "g".into() };
        for (key, refused) in [(offset, true), (newer, false), (group, false)] {
            let batch = BatchBuilder::new(5, 0).record(0, Some(&key.encode()), Some(&[0, 9, 1])).build();
            let applied = CommittedOffsets::default().apply(&Batch::parse(&batch).unwrap());
            let error = CoordinatorError::Record { offset: 5, source: WireError::Version { version: 9 } };
            assert_eq!(applied, if refused { Err(error) } else { Ok(()) });
        }
    }

    #[test]
    fn clamps_move_offsets_and_keep_the_rest() {
        let clamps: Vec<Clamp> = (0..6000)
            .map(|i| Clamp { key: key(i), committed: value(1000), offset: i.into(), leader_epoch: 4 })
            .collect();
        let bytes = clamp_batches(50, 3, 99, &clamps);
        let mut offsets = CommittedOffsets::default();
        let mut next_offset = 50;
        for (_, batch) in Batches::new(&bytes).map(Result::unwrap) {
            batch.check_crc().unwrap();
            assert_eq!((batch.base_offset(), batch.leader_epoch(), batch.attributes()), (next_offset, 3, 0));
            assert!(batch.size() < 1 << 20);
            next_offset = batch.next_offset();
            offsets.apply(&batch).unwrap();
        }
        assert_eq!(next_offset, 6050);
        let expected = OffsetCommitValue { leader_epoch: 4, commit_timestamp: 99, ..value(17) };
        assert_eq!(offsets.offsets()[&key(17)], CommittedOffset { value: expected, record_offset: 67 });
        assert!(clamp_batches(50, 3, 99, &[]).is_empty());
    }

    proptest! {
        #[test]
        fn damaged_records_are_read_or_refused(which: prop::sample::Index, at: prop::sample::Index, byte: u8, cut: bool) {
            let records = every_record(include_bytes!("../tests/data/records/group-records.bin"));
            let (key, value) = which.get(&records);
            let mut damaged = [*key, *value].concat();
            let at = at.index(damaged.len());
            damaged[at] = byte;
            let end = if cut { at.max(key.len()) } else { damaged.len() };
            if let Ok(key) = GroupKey::decode(&damaged[..key.len()]) {
                let again = GroupKey::decode(&key.encode());
                prop_assert_eq!(again.as_ref(), Ok(&key));
                let _ = GroupValue::decode(&key, &damaged[key.encode().len().min(end)..end]);
            }
        }
    }
}
