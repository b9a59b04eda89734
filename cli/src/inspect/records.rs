//! Kafka's records as JSON, with the names of their schemas as Kafka's own tools print them (`brokerId`).
//!
//! Secrets are left out: bytes are shown by their length only, which covers SCRAM keys, and the values of configs that
//! may be passwords and the ids of delegation tokens are replaced.

use segvault_kafka_log::{
    Uuid,
    groups::{self, GroupValue},
    metadata::{control, records::*},
    share::{self, ShareValue},
    transactions,
    wire::Blob,
};

use super::json::{Json, camel};

/// Stands for a value that may be a secret.
pub const HIDDEN: &str = "[hidden]";

/// A value with a JSON form.
pub trait ToJson {
    /// That form.
    fn to_json(&self) -> Json;
}

macro_rules! plain {
    ($($type:ty)*) => {$(
        impl ToJson for $type {
            fn to_json(&self) -> Json {
                self.clone().into()
            }
        }
    )*};
}

plain!(bool i8 i16 i32 i64 u16 f64 String);

impl ToJson for Uuid {
    fn to_json(&self) -> Json {
        self.to_string().into()
    }
}

impl ToJson for Blob {
    fn to_json(&self) -> Json {
        Json::object([("bytes", self.0.len().into())])
    }
}

impl<T: ToJson> ToJson for Vec<T> {
    fn to_json(&self) -> Json {
        Json::List(self.iter().map(ToJson::to_json).collect())
    }
}

impl<T: ToJson> ToJson for Option<T> {
    fn to_json(&self) -> Json {
        self.as_ref().map_or(Json::NULL, ToJson::to_json)
    }
}

/// A field as Kafka's schemas spell it.
fn schema_name(field: &str) -> String {
    let name = camel(field);
    name.strip_prefix("kraft").map_or_else(|| name.clone(), |rest| format!("kRaft{rest}"))
}

/// Structs as objects of the fields that are named.
macro_rules! objects {
    ($($type:path { $($field:ident),* })*) => {$(
        impl ToJson for $type {
            fn to_json(&self) -> Json {
                Json::Object(vec![$((schema_name(stringify!($field)), self.$field.to_json()),)*])
            }
        }
    )*};
}

objects! {
    Endpoint { name, host, port, security_protocol }
    SupportedFeature { name, min_supported_version, max_supported_version }
    RegisterBrokerRecord {
        broker_id, is_migrating_zk_broker, incarnation_id, broker_epoch, end_points, features, rack, fenced,
        in_controlled_shutdown, log_dirs, cordoned_log_dirs
    }
    UnregisterBrokerRecord { broker_id, broker_epoch }
    TopicRecord { name, topic_id }
    PartitionRecord {
        partition_id, topic_id, replicas, isr, removing_replicas, adding_replicas, leader, leader_epoch,
        partition_epoch, directories, leader_recovery_state, eligible_leader_replicas, last_known_elr
    }
    PartitionChangeRecord {
        partition_id, topic_id, isr, leader, replicas, removing_replicas, adding_replicas, leader_recovery_state,
        eligible_leader_replicas, last_known_elr, directories
    }
    FenceBrokerRecord { id, epoch }
    UnfenceBrokerRecord { id, epoch }
    RemoveTopicRecord { topic_id }
    FeatureLevelRecord { name, feature_level }
    ClientQuotaRecord { entity, key, value, remove }
    QuotaEntity { entity_type, entity_name }
    ProducerIdsRecord { broker_id, broker_epoch, next_producer_id }
    BrokerRegistrationChangeRecord {
        broker_id, broker_epoch, fenced, in_controlled_shutdown, log_dirs, cordoned_log_dirs
    }
    AccessControlEntryRecord {
        id, resource_type, resource_name, pattern_type, principal, host, operation, permission_type
    }
    RemoveAccessControlEntryRecord { id }
    NoOpRecord {}
    ZkMigrationStateRecord { zk_migration_state }
    UserScramCredentialRecord { name, mechanism, salt, stored_key, server_key, iterations }
    RemoveUserScramCredentialRecord { name, mechanism }
    BeginTransactionRecord { name }
    EndTransactionRecord {}
    AbortTransactionRecord { reason }
    RegisterControllerRecord { controller_id, incarnation_id, zk_migration_ready, end_points, features }
    ClearElrRecord { topic_name }
    UnregisterControllerRecord { controller_id }

    control::LeaderChange { leader_id, voters, granting_voters }
    control::LeaderVoter { voter_id, voter_directory_id }
    control::SnapshotHeader { last_contained_log_timestamp }
    control::SnapshotFooter {}
    control::KraftVersionRecord { kraft_version }
    control::VotersRecord { voters }
    control::Voter { voter_id, voter_directory_id, endpoints, kraft_version_feature }
    control::VoterEndpoint { name, host, port }
    control::KraftVersionRange { min_supported_version, max_supported_version }

    groups::OffsetCommitValue { offset, leader_epoch, metadata, commit_timestamp, expire_timestamp, topic_id }
    groups::GroupMetadataValue { protocol_type, generation, protocol, leader, current_state_timestamp, members }
    groups::GroupMember {
        member_id, group_instance_id, client_id, client_host, rebalance_timeout, session_timeout, subscription, assignment
    }
    groups::ConsumerGroupMetadataValue { epoch, metadata_hash }
    groups::ConsumerGroupPartitionMetadataValue { topics }
    groups::GroupTopic { topic_id, topic_name, num_partitions, partition_metadata }
    groups::GroupTopicRacks { partition, racks }
    groups::ConsumerGroupMemberMetadataValue {
        instance_id, rack_id, client_id, client_host, subscribed_topic_names, subscribed_topic_regex,
        rebalance_timeout_ms, server_assignor, classic_member_metadata
    }
    groups::ClassicMember { session_timeout_ms, supported_protocols }
    groups::ClassicProtocol { name, metadata }
    groups::ConsumerGroupTargetAssignmentMetadataValue { assignment_epoch, assignment_timestamp }
    groups::ConsumerGroupTargetAssignmentMemberValue { topic_partitions }
    groups::ConsumerGroupCurrentMemberAssignmentValue {
        member_epoch, previous_member_epoch, state, assigned_partitions, partitions_pending_revocation
    }
    groups::AssignedPartitions { topic_id, partitions, assignment_epochs }
    groups::ConsumerGroupRegularExpressionValue { topics, version, timestamp }
}

objects! {
    transactions::TransactionLogValue {
        producer_id, producer_epoch, transaction_timeout_ms, transaction_status, transaction_partitions,
        transaction_last_update_timestamp_ms, transaction_start_timestamp_ms, previous_producer_id, next_producer_id,
        client_transaction_version, next_producer_epoch
    }
    transactions::TransactionPartitions { topic, partition_ids }

    share::ShareSnapshotValue {
        snapshot_epoch, state_epoch, leader_epoch, start_offset, delivery_complete_count, create_timestamp,
        write_timestamp, state_batches
    }
    share::ShareUpdateValue { snapshot_epoch, leader_epoch, start_offset, delivery_complete_count, state_batches }
    share::StateBatch { first_offset, last_offset, delivery_state, delivery_count }
}

impl ToJson for ShareValue {
    fn to_json(&self) -> Json {
        match self {
            ShareValue::Snapshot(value) => value.to_json(),
            ShareValue::Update(value) => value.to_json(),
            ShareValue::EarlyAccess(bytes) | ShareValue::Raw(bytes) => bytes.to_json(),
        }
    }
}

impl ToJson for ConfigRecord {
    fn to_json(&self) -> Json {
        Json::object([
            ("resourceType", self.resource_type.into()),
            ("resourceName", self.resource_name.to_json()),
            ("name", self.name.to_json()),
            ("value", self.value.as_deref().map(|value| shown_config(&self.name, value)).into()),
        ])
    }
}

/// A config's value, unless it may be a secret.
pub fn shown_config<'a>(name: &str, value: &'a str) -> &'a str {
    if is_sensitive_config(name) { HIDDEN } else { value }
}

impl ToJson for DelegationTokenRecord {
    fn to_json(&self) -> Json {
        Json::object([
            ("owner", self.owner.to_json()),
            ("requester", self.requester.to_json()),
            ("renewers", self.renewers.to_json()),
            ("issueTimestamp", self.issue_timestamp.into()),
            ("maxTimestamp", self.max_timestamp.into()),
            ("expirationTimestamp", self.expiration_timestamp.into()),
            ("tokenId", HIDDEN.into()),
        ])
    }
}

impl ToJson for RemoveDelegationTokenRecord {
    fn to_json(&self) -> Json {
        Json::object([("tokenId", HIDDEN.into())])
    }
}

impl ToJson for MetadataRecord {
    fn to_json(&self) -> Json {
        use MetadataRecord::*;
        match self {
            RegisterBroker(r) => r.to_json(),
            UnregisterBroker(r) => r.to_json(),
            Topic(r) => r.to_json(),
            Partition(r) => r.to_json(),
            Config(r) => r.to_json(),
            PartitionChange(r) => r.to_json(),
            FenceBroker(r) => r.to_json(),
            UnfenceBroker(r) => r.to_json(),
            RemoveTopic(r) => r.to_json(),
            DelegationToken(r) => r.to_json(),
            UserScramCredential(r) => r.to_json(),
            FeatureLevel(r) => r.to_json(),
            ClientQuota(r) => r.to_json(),
            ProducerIds(r) => r.to_json(),
            BrokerRegistrationChange(r) => r.to_json(),
            AccessControlEntry(r) => r.to_json(),
            RemoveAccessControlEntry(r) => r.to_json(),
            NoOp(r) => r.to_json(),
            ZkMigrationState(r) => r.to_json(),
            RemoveUserScramCredential(r) => r.to_json(),
            BeginTransaction(r) => r.to_json(),
            EndTransaction(r) => r.to_json(),
            AbortTransaction(r) => r.to_json(),
            RemoveDelegationToken(r) => r.to_json(),
            RegisterController(r) => r.to_json(),
            ClearElr(r) => r.to_json(),
            UnregisterController(r) => r.to_json(),
            Unknown { api_key, bytes, .. } => {
                Json::object([("type", (*api_key).into()), ("bytes", bytes.len().into())])
            }
        }
    }
}

impl ToJson for GroupValue {
    fn to_json(&self) -> Json {
        use GroupValue::*;
        match self {
            OffsetCommit(value) => value.to_json(),
            GroupMetadata(value) => value.to_json(),
            ConsumerGroupMetadata(value) => value.to_json(),
            ConsumerGroupPartitionMetadata(value) => value.to_json(),
            ConsumerGroupMemberMetadata(value) => value.to_json(),
            ConsumerGroupTargetAssignmentMetadata(value) => value.to_json(),
            ConsumerGroupTargetAssignmentMember(value) => value.to_json(),
            ConsumerGroupCurrentMemberAssignment(value) => value.to_json(),
            ConsumerGroupRegularExpression(value) => value.to_json(),
            Raw(bytes) => bytes.to_json(),
        }
    }
}
