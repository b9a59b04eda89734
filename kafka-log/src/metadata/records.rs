//! The records of the metadata log (`__cluster_metadata-0`) and of its snapshots.
//!
//! ```text
//! uvarint frame version = 1 | uvarint type | uvarint version | body in the flexible form
//! ```
//!
//! All types and versions of Kafka 3.3 to 4.4 are decoded (`metadata/src/main/resources/common/metadata/*.json`).
//! A record remembers its version, and tagged fields, types and versions that are newer than this code are carried
//! along byte for byte, so that reading and writing changes nothing.
//!
//! The log holds secrets: SCRAM keys, and passwords in configs (KRaft keeps them in plain text). `Debug` does not
//! show them.

use std::fmt;

use thiserror::Error;

use crate::{
    Uuid,
    wire::{Blob, Message, Reader, WireError, Writer, message},
};

/// The only frame version that Kafka writes (`MetadataRecordSerde`); 0 was that of the 2.8 preview.
const FRAME_VERSION: u32 = 1;

/// `PartitionChangeRecord.leader` that stands for "as it was" (`LeaderConstants.NO_LEADER_CHANGE`).
pub const NO_LEADER_CHANGE: i32 = -2;

/// `leader` of a partition that has none (`LeaderConstants.NO_LEADER`).
pub const NO_LEADER: i32 = -1;

/// What is wrong with a metadata record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The bytes before the body are malformed.
    #[error("malformed frame of a metadata record")]
    Frame(#[source] WireError),
    /// The frame has another version than 1.
    #[error("unknown frame version {0} of a metadata record")]
    FrameVersion(u32),
    /// The body is malformed.
    #[error("malformed {name} of version {version}")]
    Body {
        /// The record's type.
        name: &'static str,
        /// Its version.
        version: i16,
        /// What is wrong with it.
        source: WireError,
    },
}

/// Defines [`MetadataRecord`] over the structs of its types.
macro_rules! metadata_records {
    ($($key:literal $variant:ident($record:ident),)*) => {
        /// One record of the metadata log, by type (`MetadataRecordType`).
        #[derive(Clone, PartialEq)]
        pub enum MetadataRecord {
            $(
                #[doc = concat!("Type ", stringify!($key), ".")]
                $variant($record),
            )*
            /// A type or a version that this code does not know.
            Unknown {
                /// The type's number.
                api_key: u32,
                /// The record's version.
                version: u32,
                /// The body as it is.
                bytes: Vec<u8>,
            },
        }

        impl MetadataRecord {
            /// The type's number on disk.
            pub fn api_key(&self) -> u32 {
                match self {
                    $(MetadataRecord::$variant(_) => $key,)*
                    MetadataRecord::Unknown { api_key, .. } => *api_key,
                }
            }

            /// The type's name in Kafka's schemas.
            pub fn name(&self) -> &'static str {
                match self {
                    $(MetadataRecord::$variant(_) => stringify!($record),)*
                    MetadataRecord::Unknown { .. } => "unknown record",
                }
            }

            /// The record's version.
            pub fn version(&self) -> u32 {
                match self {
                    $(MetadataRecord::$variant(record) => record.version as u32,)*
                    MetadataRecord::Unknown { version, .. } => *version,
                }
            }

            fn decode_body(api_key: u32, version: u32, bytes: &[u8]) -> Result<Self, RecordError> {
                match (api_key, i16::try_from(version)) {
                    $(($key, Ok(version)) if $record::VERSIONS.contains(&version) => $record::decode(bytes, version)
                        .map(MetadataRecord::$variant)
                        .map_err(|source| RecordError::Body { name: stringify!($record), version, source }),)*
                    _ => Ok(MetadataRecord::Unknown { api_key, version, bytes: bytes.to_vec() }),
                }
            }

            fn encode_body(&self, frame: Vec<u8>) -> Vec<u8> {
                match self {
                    $(MetadataRecord::$variant(record) => record.encode_into(frame),)*
                    MetadataRecord::Unknown { bytes, .. } => [&frame[..], bytes].concat(),
                }
            }
        }

        impl fmt::Debug for MetadataRecord {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(MetadataRecord::$variant(record) => record.fmt(f),)*
                    MetadataRecord::Unknown { api_key, version, bytes } => {
                        write!(f, "record of unknown type {api_key}, version {version} [{} bytes]", bytes.len())
                    }
                }
            }
        }

        $(impl From<$record> for MetadataRecord {
            fn from(record: $record) -> Self {
                MetadataRecord::$variant(record)
            }
        })*
    };
}

metadata_records! {
    0 RegisterBroker(RegisterBrokerRecord),
    1 UnregisterBroker(UnregisterBrokerRecord),
    2 Topic(TopicRecord),
    3 Partition(PartitionRecord),
    4 Config(ConfigRecord),
    5 PartitionChange(PartitionChangeRecord),
    7 FenceBroker(FenceBrokerRecord),
    8 UnfenceBroker(UnfenceBrokerRecord),
    9 RemoveTopic(RemoveTopicRecord),
    10 DelegationToken(DelegationTokenRecord),
    11 UserScramCredential(UserScramCredentialRecord),
    12 FeatureLevel(FeatureLevelRecord),
    14 ClientQuota(ClientQuotaRecord),
    15 ProducerIds(ProducerIdsRecord),
    17 BrokerRegistrationChange(BrokerRegistrationChangeRecord),
    18 AccessControlEntry(AccessControlEntryRecord),
    19 RemoveAccessControlEntry(RemoveAccessControlEntryRecord),
    20 NoOp(NoOpRecord),
    21 ZkMigrationState(ZkMigrationStateRecord),
    22 RemoveUserScramCredential(RemoveUserScramCredentialRecord),
    23 BeginTransaction(BeginTransactionRecord),
    24 EndTransaction(EndTransactionRecord),
    25 AbortTransaction(AbortTransactionRecord),
    26 RemoveDelegationToken(RemoveDelegationTokenRecord),
    27 RegisterController(RegisterControllerRecord),
    28 ClearElr(ClearElrRecord),
    29 UnregisterController(UnregisterControllerRecord),
}

impl MetadataRecord {
    /// Reads the value of a data record of the metadata log, frame included.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes, 0, true);
        let mut next = || reader.uvarint().map_err(RecordError::Frame);
        let (frame, api_key, version) = (next()?, next()?, next()?);
        if frame != FRAME_VERSION {
            return Err(RecordError::FrameVersion(frame));
        }
        MetadataRecord::decode_body(api_key, version, reader.rest())
    }

    /// The value of a data record of the metadata log, frame included.
    ///
    /// # Panics
    /// If the version of a known record is none of its type's.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = Writer::new(Vec::new(), 0, true);
        frame.put_uvarint(FRAME_VERSION);
        frame.put_uvarint(self.api_key());
        frame.put_uvarint(self.version());
        self.encode_body(frame.into_bytes())
    }
}

message! {
    /// A listener of a broker or controller.
    #[derive(Debug)]
    Endpoint {
        /// The listener's name.
        name: String;
        /// The advertised host.
        host: String;
        /// The advertised port.
        port: u16;
        /// The security protocol: 0 PLAINTEXT, 1 SSL, 2 SASL_PLAINTEXT, 3 SASL_SSL (`SecurityProtocol`).
        security_protocol: i16;
    }
}

message! {
    /// A feature that a node supports, and in which versions.
    #[derive(Debug)]
    SupportedFeature {
        /// The feature's name.
        name: String;
        /// The lowest level.
        min_supported_version: i16;
        /// The highest level.
        max_supported_version: i16;
    }
}

message! {
    /// A broker's registration: one per start of the broker, and one per broker in a snapshot.
    #[derive(Debug)]
    RegisterBrokerRecord [0..=4, flexible 0] {
        /// The broker's id.
        broker_id: i32;
        /// Whether it is a ZooKeeper-mode broker during a migration.
        is_migrating_zk_broker: bool, since 2;
        /// Random per start of the broker.
        incarnation_id: Uuid;
        /// Offset of the log at which this registration was appended.
        broker_epoch: i64;
        /// Its listeners.
        end_points: Vec<Endpoint>;
        /// The features that it supports.
        features: Vec<SupportedFeature>;
        /// The rack, if it has one.
        rack: Option<String>;
        /// Whether it is fenced: it gets no leadership and is no live session to a controller.
        fenced: bool = true;
        /// Whether it is about to stop.
        in_controlled_shutdown: bool, since 1;
    }
    tagged {
        /// The `directory.id`s of its log directories that are online.
        0 => log_dirs: Vec<Uuid>, since 3;
        /// Those of them that take no new replicas; `None` is unknown.
        1 => cordoned_log_dirs: Option<Vec<Uuid>>, since 4;
    }
}

message! {
    /// A broker is forgotten.
    #[derive(Debug)]
    UnregisterBrokerRecord [0..=0, flexible 0] {
        /// The broker's id.
        broker_id: i32;
        /// The epoch of its registration.
        broker_epoch: i64;
    }
}

message! {
    /// A topic is created. Its partitions follow.
    #[derive(Debug)]
    TopicRecord [0..=0, flexible 0] {
        /// The topic's name.
        name: String;
        /// The topic's id, never used again.
        topic_id: Uuid;
    }
}

message! {
    /// A partition's whole state.
    #[derive(Debug)]
    PartitionRecord [0..=2, flexible 0] {
        /// The partition's number.
        partition_id: i32 = -1;
        /// The topic.
        topic_id: Uuid;
        /// The brokers that hold it, the preferred leader first.
        replicas: Vec<i32>;
        /// Those in sync.
        isr: Vec<i32>;
        /// Those that a reassignment will remove.
        removing_replicas: Vec<i32>;
        /// Those that a reassignment adds.
        adding_replicas: Vec<i32>;
        /// The leader, -1 if there is none.
        leader: i32 = NO_LEADER;
        /// Raised with every change of leader.
        leader_epoch: i32 = -1;
        /// Raised with every change.
        partition_epoch: i32 = -1;
        /// The log directory of each replica, in the order of `replicas`.
        directories: Vec<Uuid>, since 1;
    }
    tagged {
        /// 0 recovered, 1 recovering from an unclean election.
        0 => leader_recovery_state: i8;
        /// Replicas outside the ISR that hold every committed record; `None` like empty.
        1 => eligible_leader_replicas: Option<Vec<i32>>, since 2;
        /// Those that were in it last; `None` like empty.
        2 => last_known_elr: Option<Vec<i32>>, since 2;
    }
}

message! {
    /// A dynamic config of a topic, broker, group or client-metrics subscription.
    ConfigRecord [0..=0, flexible 0] {
        /// 2 topic, 4 broker, 16 client metrics, 32 group (`ConfigResource.Type`).
        resource_type: i8;
        /// The resource's name; empty for the default of all brokers.
        resource_name: String;
        /// The config's name.
        name: String;
        /// Its value; `None` deletes it.
        value: Option<String>;
    }
}

impl fmt::Debug for ConfigRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = self.value.is_some() && is_sensitive_config(&self.name);
        f.debug_struct("ConfigRecord")
            .field("version", &self.version)
            .field("resource_type", &self.resource_type)
            .field("resource_name", &self.resource_name)
            .field("name", &self.name)
            .field("value", if hidden { &"[hidden]" } else { &self.value })
            .field("unknown_tags", &self.unknown_tags)
            .finish()
    }
}

/// Whether a config's value may be a secret, to judge by its name. Kafka marks its own such configs
/// (`ConfigDef.Type.PASSWORD`: SSL passwords and keys, `sasl.jaas.config`); plugins may add others.
pub fn is_sensitive_config(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "secret", "jaas", "credential", "token", "private", "keystore.key", "certificate"]
        .iter()
        .any(|word| name.contains(word))
}

message! {
    /// Some of a partition's state changes; `None` and the defaults stand for "as it was".
    #[derive(Debug)]
    PartitionChangeRecord [0..=2, flexible 0] {
        /// The partition's number.
        partition_id: i32 = -1;
        /// The topic.
        topic_id: Uuid;
    }
    tagged {
        /// The new ISR.
        0 => isr: Option<Vec<i32>>;
        /// The new leader, -1 for none, -2 for no change; anything but -2 raises the leader epoch.
        1 => leader: i32 = NO_LEADER_CHANGE;
        /// The new replicas.
        2 => replicas: Option<Vec<i32>>;
        /// The replicas to be removed.
        3 => removing_replicas: Option<Vec<i32>>;
        /// The replicas being added.
        4 => adding_replicas: Option<Vec<i32>>;
        /// 0 recovered, 1 recovering, -1 no change.
        5 => leader_recovery_state: i8 = -1;
        /// The new eligible leader replicas.
        6 => eligible_leader_replicas: Option<Vec<i32>>, since 2;
        /// The new last known ones.
        7 => last_known_elr: Option<Vec<i32>>, since 2;
        /// The new directories, in the order of the replicas.
        8 => directories: Option<Vec<Uuid>>, since 1;
    }
}

message! {
    /// A broker is fenced. Historic: [`BrokerRegistrationChangeRecord`] took its place.
    #[derive(Debug)]
    FenceBrokerRecord [0..=0, flexible 0] {
        /// The broker's id.
        id: i32;
        /// The epoch of its registration.
        epoch: i64;
    }
}

message! {
    /// A broker is unfenced. Historic, as [`FenceBrokerRecord`].
    #[derive(Debug)]
    UnfenceBrokerRecord [0..=0, flexible 0] {
        /// The broker's id.
        id: i32;
        /// The epoch of its registration.
        epoch: i64;
    }
}

message! {
    /// A topic is deleted, with its configs.
    #[derive(Debug)]
    RemoveTopicRecord [0..=0, flexible 0] {
        /// The topic.
        topic_id: Uuid;
    }
}

message! {
    /// A delegation token, without its HMAC, which brokers compute from their `delegation.token.secret.key`.
    DelegationTokenRecord [0..=0, flexible 0] {
        /// The principal that owns it.
        owner: String;
        /// The principal that asked for it.
        requester: String;
        /// Principals that may renew it.
        renewers: Vec<String>;
        /// When it was issued, in milliseconds.
        issue_timestamp: i64;
        /// Up to when it may be renewed, in milliseconds.
        max_timestamp: i64;
        /// When it expires, in milliseconds.
        expiration_timestamp: i64;
        /// The token's id.
        token_id: String;
    }
}

impl fmt::Debug for DelegationTokenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelegationTokenRecord")
            .field("owner", &self.owner)
            .field("expiration_timestamp", &self.expiration_timestamp)
            .field("token_id", &"[hidden]")
            .finish_non_exhaustive()
    }
}

message! {
    /// What a broker needs to check a user's SCRAM password.
    #[derive(Debug)]
    UserScramCredentialRecord [0..=0, flexible 0] {
        /// The user's name.
        name: String;
        /// 1 SCRAM-SHA-256, 2 SCRAM-SHA-512 (`ScramMechanism`).
        mechanism: i8;
        /// The salt.
        salt: Blob;
        /// The stored key.
        stored_key: Blob;
        /// The server key.
        server_key: Blob;
        /// Rounds of hashing.
        iterations: i32;
    }
}

message! {
    /// The level of a feature of the cluster, `metadata.version` among them.
    #[derive(Debug)]
    FeatureLevelRecord [0..=0, flexible 0] {
        /// The feature's name.
        name: String;
        /// Its level; 0 takes the feature away.
        feature_level: i16;
    }
}

message! {
    /// A limit for a client.
    #[derive(Debug)]
    ClientQuotaRecord [0..=0, flexible 0] {
        /// Whom it limits.
        entity: Vec<QuotaEntity>;
        /// What it limits, for instance `producer_byte_rate`.
        key: String;
        /// The limit.
        value: f64;
        /// Whether the limit is taken away.
        remove: bool;
    }
}

message! {
    /// One part of a quota's entity.
    #[derive(Debug)]
    QuotaEntity {
        /// `user`, `client-id` or `ip`.
        entity_type: String;
        /// Its name; `None` is the default of its type.
        entity_name: Option<String>;
    }
}

message! {
    /// A block of producer ids is handed out.
    #[derive(Debug)]
    ProducerIdsRecord [0..=0, flexible 0] {
        /// The broker that got it; -1 in snapshots.
        broker_id: i32;
        /// The epoch of its registration; -1 in snapshots.
        broker_epoch: i64 = -1;
        /// The first id that was not handed out.
        next_producer_id: i64;
    }
}

message! {
    /// Some of a broker's registration changes.
    #[derive(Debug)]
    BrokerRegistrationChangeRecord [0..=3, flexible 0] {
        /// The broker's id.
        broker_id: i32;
        /// The epoch of its registration.
        broker_epoch: i64;
    }
    tagged {
        /// 1 fenced, -1 unfenced, 0 no change.
        0 => fenced: i8;
        /// 1 in controlled shutdown, 0 no change.
        1 => in_controlled_shutdown: i8, since 1;
        /// The new log directories; empty for no change.
        2 => log_dirs: Vec<Uuid>, since 2;
        /// The new cordoned log directories; `None` for no change.
        3 => cordoned_log_dirs: Option<Vec<Uuid>>, since 3;
    }
}

message! {
    /// An ACL.
    #[derive(Debug)]
    AccessControlEntryRecord [0..=0, flexible 0] {
        /// The ACL's id.
        id: Uuid;
        /// `org.apache.kafka.common.resource.ResourceType`.
        resource_type: i8;
        /// The resource's name, or a pattern.
        resource_name: String;
        /// `org.apache.kafka.common.resource.PatternType`.
        pattern_type: i8;
        /// The principal, with its type.
        principal: String;
        /// The client's host, `*` for any.
        host: String;
        /// `org.apache.kafka.common.acl.AclOperation`.
        operation: i8;
        /// `org.apache.kafka.common.acl.AclPermissionType`.
        permission_type: i8;
    }
}

message! {
    /// An ACL is deleted.
    #[derive(Debug)]
    RemoveAccessControlEntryRecord [0..=0, flexible 0] {
        /// The ACL's id.
        id: Uuid;
    }
}

message! {
    /// Nothing: the active controller writes one when it is idle, by default every half second.
    #[derive(Debug)]
    NoOpRecord [0..=0, flexible 0] {}
}

message! {
    /// How far a migration from ZooKeeper has come.
    #[derive(Debug)]
    ZkMigrationStateRecord [0..=0, flexible 0] {
        /// 0 none, 1 migration, 2 pre-migration, 3 post-migration (`ZkMigrationState`).
        zk_migration_state: i8;
    }
}

message! {
    /// A user's SCRAM credential is deleted.
    #[derive(Debug)]
    RemoveUserScramCredentialRecord [0..=0, flexible 0] {
        /// The user's name.
        name: String;
        /// 1 SCRAM-SHA-256, 2 SCRAM-SHA-512.
        mechanism: i8;
    }
}

message! {
    /// The records up to the next end or abort count together or not at all.
    #[derive(Debug)]
    BeginTransactionRecord [0..=0, flexible 0] {}
    tagged {
        /// What it is for.
        0 => name: Option<String>;
    }
}

message! {
    /// A transaction of the metadata log ends, and its records count.
    #[derive(Debug)]
    EndTransactionRecord [0..=0, flexible 0] {}
}

message! {
    /// A transaction of the metadata log ends, and its records are void.
    #[derive(Debug)]
    AbortTransactionRecord [0..=0, flexible 0] {}
    tagged {
        /// Why.
        0 => reason: Option<String>;
    }
}

message! {
    /// A delegation token is deleted.
    RemoveDelegationTokenRecord [0..=0, flexible 0] {
        /// The token's id.
        token_id: String;
    }
}

impl fmt::Debug for RemoveDelegationTokenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoveDelegationTokenRecord").finish_non_exhaustive()
    }
}

message! {
    /// A controller's registration.
    #[derive(Debug)]
    RegisterControllerRecord [0..=0, flexible 0] {
        /// The controller's id.
        controller_id: i32;
        /// Random per start of the controller.
        incarnation_id: Uuid;
        /// Whether it can take part in a migration from ZooKeeper.
        zk_migration_ready: bool;
        /// Its listeners.
        end_points: Vec<Endpoint>;
        /// The features that it supports.
        features: Vec<SupportedFeature>;
    }
}

message! {
    /// The eligible leader replicas of a topic are forgotten.
    #[derive(Debug)]
    ClearElrRecord [0..=0, flexible 0] {
        /// The topic's name; empty for all topics.
        topic_name: String;
    }
}

message! {
    /// A controller is forgotten.
    #[derive(Debug)]
    UnregisterControllerRecord [0..=0, flexible 0] {
        /// The controller's id.
        controller_id: i32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every type in every version, once with defaults and once with all fields filled, as Kafka 4.3.0 wrote it.
    fn every_record() -> Vec<&'static [u8]> {
        let mut rest: &[u8] = include_bytes!("../../tests/data/records/metadata-records.bin");
        std::iter::from_fn(|| {
            let (len, tail) = rest.split_first_chunk()?;
            let (record, tail) = tail.split_at(u32::from_be_bytes(*len) as usize);
            rest = tail;
            Some(record)
        })
        .collect()
    }

    #[test]
    fn kafkas_records_of_every_type_and_version_are_written_back_byte_for_byte() {
        let mut seen = std::collections::BTreeSet::new();
        for bytes in every_record() {
            let record = MetadataRecord::decode(bytes).unwrap();
            assert_eq!(record.encode(), bytes, "{record:?}");
            assert!(!matches!(record, MetadataRecord::Unknown { .. }), "{record:?}");
            seen.insert((record.api_key(), record.version()));
        }
        assert_eq!(seen.len(), 37);
    }

    #[test]
    fn fields_are_read_into_their_places() {
        let records: Vec<_> = every_record().into_iter().map(|r| MetadataRecord::decode(r).unwrap()).collect();
        let filled = |key, version| {
            let mut found = records.iter().filter(|r| r.api_key() == key && r.version() == version);
            found.next_back().unwrap()
        };
        let MetadataRecord::Partition(r) = filled(3, 2) else { panic!() };
        assert_eq!((r.partition_id, r.leader, r.leader_epoch, r.partition_epoch), (212, 208, 209, 211));
        assert_eq!((&r.replicas[..], &r.isr[..]), (&[214, 215][..], &[206, 207][..]));
        assert_eq!((&r.adding_replicas[..], &r.removing_replicas[..]), (&[201, 202][..], &[213, 214][..]));
        assert_eq!((r.leader_recovery_state, r.directories[0].to_string()), (11, "AAAAAAAAAMv_________NQ".into()));
        let MetadataRecord::PartitionChange(r) = filled(5, 2) else { panic!() };
        assert_eq!((r.leader, r.leader_recovery_state), (253, 55));
        assert_eq!(r.replicas, Some(vec![257, 258]));
        let MetadataRecord::Config(r) = filled(4, 0) else { panic!() };
        assert_eq!((r.resource_name.as_str(), r.value.as_deref()), ("text-217", Some("text-219")));
        let MetadataRecord::ClientQuota(r) = filled(14, 0) else { panic!() };
        assert_eq!((r.key.as_str(), r.value, r.remove), ("text-288", 435.0, true));
    }

    #[test]
    fn what_is_not_known_is_carried_along() {
        for bytes in [
            &[1, 30, 0, 9, 9][..],                        // a newer type
            &[1, 2, 7, 1, 2, 3],                          // a newer version of TopicRecord
            &[1, 0x84, 0x80, 8, 0],                       // a type with a number of three bytes
            &[1, 20, 0, 1, 0xc8, 1, 2, 7, 7],             // a tagged field of NoOpRecord
            &[1, 23, 0, 2, 0, 3, 3, b'a', b'b', 5, 1, 1], // one behind a known one
        ] {
            assert_eq!(MetadataRecord::decode(bytes).unwrap().encode(), bytes);
        }
    }

    #[test]
    fn frames_that_are_not_version_1_are_refused() {
        assert_eq!(MetadataRecord::decode(&[0, 2, 0]), Err(RecordError::FrameVersion(0)));
        assert!(matches!(MetadataRecord::decode(&[]), Err(RecordError::Frame(_))));
    }

    #[test]
    fn debug_shows_no_secrets() {
        let config = |name: &str| ConfigRecord { name: name.into(), value: Some("shown".into()), ..Default::default() };
        assert!(format!("{:?}", config("retention.ms")).contains("shown"));
        for name in ["ssl.key.password", "listener.name.x.scram-sha-256.sasl.jaas.config", "ssl.keystore.key"] {
            assert!(!format!("{:?}", config(name)).contains("shown"), "{name}");
        }
        let token = DelegationTokenRecord { token_id: "shown".into(), ..Default::default() };
        assert!(!format!("{:?}", MetadataRecord::from(token)).contains("shown"));
        let blob = Blob(b"shown".to_vec());
        let scram = UserScramCredentialRecord { salt: blob.clone(), stored_key: blob, ..Default::default() };
        assert!(!format!("{scram:?}").contains(&format!("{:?}", b"shown")[1..4]));
    }

    proptest! {
        #[test]
        fn damaged_records_read_back_as_they_were_read(which: prop::sample::Index, at: prop::sample::Index, byte: u8) {
            let mut bytes = which.get(&every_record()).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(record) = MetadataRecord::decode(&bytes) {
                let encoded = record.encode();
                prop_assert_eq!(MetadataRecord::decode(&encoded).unwrap().encode(), encoded);
            }
        }

        #[test]
        fn records_cut_short_are_errors(which: prop::sample::Index, at: prop::sample::Index) {
            let bytes = *which.get(&every_record());
            let cut = &bytes[..at.index(bytes.len())];
            let known = !matches!(MetadataRecord::decode(cut), Ok(MetadataRecord::Unknown { .. }));
            prop_assert!(known && MetadataRecord::decode(cut).is_err());
        }
    }
}
