//! What the records of the metadata log add up to: the state of the cluster.
//!
//! Records are applied as Kafka's controllers do (`QuorumController.replay` and the `*ControlManager`s, which are
//! stricter than the brokers' `MetadataDelta`), so a log on which a controller would die is an error here, too.
//! Records between `BeginTransactionRecord` and `EndTransactionRecord` count together: until the end is seen they
//! are held back, and a transaction that is never ended leaves no trace, as the next active controller would
//! abort it.
//!
//! The image is plain data, made to be edited. Two things in it are for the reader to heed: `unknown` holds records
//! that this code does not understand, and `lost_tags` names records of which the image could not keep a newer
//! Kafka's tagged fields.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use thiserror::Error;

use super::{control::Voter, records::*};
use crate::{Uuid, wire::UnknownTag};

/// The feature that decides the versions of records (`MetadataVersion.FEATURE_NAME`).
pub const METADATA_VERSION: &str = "metadata.version";

/// The feature without which `MetadataImage.write` leaves eligible leader replicas out.
pub const ELR_VERSION: &str = "eligible.leader.replicas.version";

/// Kept in a control record instead of a `FeatureLevelRecord`, which is ignored (`FeaturesDelta`).
const KRAFT_VERSION: &str = "kraft.version";

/// `ConfigResource.Type.TOPIC`, whose configs go with the topic.
pub const TOPIC_CONFIG: i8 = 2;

/// `ConfigResource.Type.BROKER`.
pub const BROKER_CONFIG: i8 = 4;

/// The directory of replicas whose directory is not known (`DirectoryId.MIGRATING`).
pub const DIRECTORY_MIGRATING: Uuid = Uuid::ZERO;

/// Levels of `metadata.version` that change what a snapshot holds (`MetadataVersion`).
mod level {
    pub const MIGRATION_3_4_IV0: i16 = 8;
    pub const SCRAM_3_5_IV2: i16 = 11;
    pub const TOKENS_3_6_IV2: i16 = 14;
    pub const CONTROLLERS_3_7_IV0: i16 = 15;
    pub const DIRECTORIES_3_7_IV2: i16 = 17;
    pub const ELR_4_0_IV1: i16 = 23;
    pub const CORDONED_DIRECTORIES_4_3_IV0: i16 = 30;
}

/// Whom a quota limits: names by type (`user`, `client-id`, `ip`), `None` being the default of the type.
pub type QuotaEntityKey = BTreeMap<String, Option<String>>;

/// A cluster's state. See the fields of the records for what values mean.
#[derive(Clone, Default, PartialEq)]
pub struct MetadataImage {
    /// Levels of the features, `metadata.version` among them; never 0.
    pub features: BTreeMap<String, i16>,
    /// How far a migration from ZooKeeper has come, where the log says so (3.4 to 3.9).
    pub zk_migration_state: Option<i8>,
    /// Registrations by broker id.
    pub brokers: BTreeMap<i32, RegisterBrokerRecord>,
    /// Registrations by controller id.
    pub controllers: BTreeMap<i32, RegisterControllerRecord>,
    /// Topics by id. Their names differ.
    pub topics: BTreeMap<Uuid, TopicImage>,
    /// Configs by resource type and name; names of topics, ids of brokers, the empty name for all brokers.
    pub configs: BTreeMap<(i8, String), BTreeMap<String, String>>,
    /// Limits by entity and name.
    pub quotas: BTreeMap<QuotaEntityKey, BTreeMap<String, f64>>,
    /// The first producer id that was not handed out; `None` if none ever was.
    pub next_producer_id: Option<i64>,
    /// ACLs by id.
    pub acls: BTreeMap<Uuid, AccessControlEntryRecord>,
    /// Credentials by mechanism and user.
    pub scram: BTreeMap<(i8, String), UserScramCredentialRecord>,
    /// Delegation tokens by token id.
    pub tokens: BTreeMap<String, DelegationTokenRecord>,
    /// `kraft.version`: 0 for a static quorum, 1 or more for a dynamic one.
    pub kraft_version: i16,
    /// The voters of a dynamic quorum.
    pub voters: Option<Vec<Voter>>,
    /// Records of unknown types and versions, in the log's order. They are written back behind all others.
    pub unknown: Vec<MetadataRecord>,
    /// Names of known records that had unknown tagged fields which the image has no place for.
    pub lost_tags: BTreeSet<&'static str>,
    replay: Replay,
}

/// A topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopicImage {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: Uuid,
    /// Its partitions by number.
    pub partitions: BTreeMap<i32, PartitionImage>,
}

/// A partition (`PartitionRegistration`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PartitionImage {
    /// The brokers that hold it, the preferred leader first.
    pub replicas: Vec<i32>,
    /// Those in sync.
    pub isr: Vec<i32>,
    /// Those that a reassignment will remove.
    pub removing_replicas: Vec<i32>,
    /// Those that a reassignment adds.
    pub adding_replicas: Vec<i32>,
    /// The leader, -1 if there is none.
    pub leader: i32,
    /// 0 recovered, 1 recovering.
    pub leader_recovery_state: i8,
    /// Raised with every change of leader.
    pub leader_epoch: i32,
    /// Raised with every change.
    pub partition_epoch: i32,
    /// The log directory of each replica, in their order; all [`DIRECTORY_MIGRATING`] below `metadata.version`
    /// 3.7-IV2.
    pub directories: Vec<Uuid>,
    /// Replicas outside the ISR that hold every committed record.
    pub elr: Vec<i32>,
    /// Those that were in it last.
    pub last_known_elr: Vec<i32>,
    /// Unknown tagged fields of the last `PartitionRecord`.
    pub unknown_tags: Vec<UnknownTag>,
}

/// Bookkeeping of a replay. It is no part of what the image says, so images are equal whatever it is.
#[derive(Clone, Default)]
struct Replay {
    /// Ids by name. An entry counts only while the image has that topic, as the image may be edited.
    topic_ids: BTreeMap<String, Uuid>,
    open_transaction: Option<Vec<MetadataRecord>>,
}

impl PartialEq for Replay {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Counts instead of values, among which are secrets.
impl fmt::Debug for MetadataImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataImage")
            .field("features", &self.features)
            .field("brokers", &self.brokers.keys())
            .field("controllers", &self.controllers.keys())
            .field("topics", &self.topics.len())
            .field("configs", &self.configs.keys())
            .field("quotas", &self.quotas.len())
            .field("next_producer_id", &self.next_producer_id)
            .field("acls", &self.acls.len())
            .field("scram", &self.scram.len())
            .field("tokens", &self.tokens.len())
            .field("kraft_version", &self.kraft_version)
            .field("voters", &self.voters)
            .field("unknown", &self.unknown)
            .finish_non_exhaustive()
    }
}

/// A record that does not fit what came before it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{record} cannot be applied: {reason}")]
pub struct ImageError {
    /// The record's type.
    pub record: &'static str,
    /// Why it does not fit.
    pub reason: Misfit,
}

/// Why a record does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Misfit {
    /// It names an id that no topic has.
    #[error("there is no topic with id {0}")]
    NoTopic(Uuid),
    /// It names a topic that is not there.
    #[error("there is no topic {0}")]
    NoTopicName(String),
    /// It creates a topic whose name another one has.
    #[error("topic {name} exists already, with id {id}")]
    TopicExists {
        /// The name.
        name: String,
        /// The id of the topic that has it.
        id: Uuid,
    },
    /// It names a partition that is not there.
    #[error("topic {topic} has no partition {partition}")]
    NoPartition {
        /// The topic.
        topic: Uuid,
        /// The partition.
        partition: i32,
    },
    /// It has not one directory per replica.
    #[error("partition {partition} of topic {topic} has {directories} directories for {replicas} replicas")]
    Directories {
        /// The topic.
        topic: Uuid,
        /// The partition.
        partition: i32,
        /// How many directories it has.
        directories: usize,
        /// How many replicas it has.
        replicas: usize,
    },
    /// It names a broker that is not registered, or not with that epoch.
    #[error("broker {id} is not registered with epoch {epoch}")]
    NoBroker {
        /// The broker.
        id: i32,
        /// The epoch in the record.
        epoch: i64,
    },
    /// It deletes what is not there.
    #[error("{0} does not exist")]
    Absent(&'static str),
    /// A field has a value without a meaning.
    #[error("{field} is {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// It begins a transaction inside another one.
    #[error("the transaction before it was not ended")]
    InTransaction,
    /// It ends a transaction that was not begun.
    #[error("no transaction was begun")]
    NoTransaction,
}

impl MetadataImage {
    /// The level of `metadata.version`, if it is known.
    pub fn metadata_version(&self) -> Option<i16> {
        self.features.get(METADATA_VERSION).copied()
    }

    /// The topic of that name.
    pub fn topic_named(&self, name: &str) -> Option<&TopicImage> {
        let known = self.replay.topic_ids.get(name).and_then(|id| self.topics.get(id));
        known.filter(|topic| topic.name == name).or_else(|| self.topics.values().find(|topic| topic.name == name))
    }

    /// Whether a transaction of the metadata log is open, and records are held back that may never count.
    pub fn in_transaction(&self) -> bool {
        self.replay.open_transaction.is_some()
    }

    /// Applies the next record of the log. After an error the image is of no use.
    pub fn apply(&mut self, record: MetadataRecord) -> Result<(), ImageError> {
        let name = record.name();
        let error = |reason| ImageError { record: name, reason };
        match (&record, &mut self.replay.open_transaction) {
            (MetadataRecord::BeginTransaction(_), None) => {
                self.replay.open_transaction = Some(Vec::new());
                Ok(())
            }
            (MetadataRecord::BeginTransaction(_), Some(_)) => Err(error(Misfit::InTransaction)),
            (MetadataRecord::AbortTransaction(_), Some(_)) => {
                self.replay.open_transaction = None;
                Ok(())
            }
            (MetadataRecord::EndTransaction(_), Some(_)) => {
                let records = self.replay.open_transaction.take().unwrap_or_default();
                records.into_iter().try_for_each(|record| self.apply_outside(record))
            }
            (MetadataRecord::EndTransaction(_) | MetadataRecord::AbortTransaction(_), None) => {
                Err(error(Misfit::NoTransaction))
            }
            (_, Some(held_back)) => {
                held_back.push(record);
                Ok(())
            }
            (_, None) => self.apply_outside(record),
        }
    }

    fn apply_outside(&mut self, record: MetadataRecord) -> Result<(), ImageError> {
        let name = record.name();
        self.note_lost_tags(&record);
        self.apply_one(record).map_err(|reason| ImageError { record: name, reason })
    }

    fn apply_one(&mut self, record: MetadataRecord) -> Result<(), Misfit> {
        match record {
            MetadataRecord::RegisterBroker(r) => {
                self.brokers.insert(r.broker_id, r);
            }
            MetadataRecord::UnregisterBroker(r) => {
                self.broker(r.broker_id, r.broker_epoch)?;
                self.brokers.remove(&r.broker_id);
            }
            MetadataRecord::Topic(r) => return self.create_topic(r),
            MetadataRecord::Partition(r) => return self.set_partition(r),
            MetadataRecord::Config(r) => self.set_config(r),
            MetadataRecord::PartitionChange(r) => return self.change_partition(r),
            MetadataRecord::FenceBroker(r) => self.broker(r.id, r.epoch)?.fenced = true,
            MetadataRecord::UnfenceBroker(r) => self.broker(r.id, r.epoch)?.fenced = false,
            MetadataRecord::RemoveTopic(r) => return self.remove_topic(r.topic_id),
            MetadataRecord::DelegationToken(r) => {
                self.tokens.insert(r.token_id.clone(), r);
            }
            MetadataRecord::UserScramCredential(r) => {
                self.scram.insert((r.mechanism, r.name.clone()), r);
            }
            MetadataRecord::FeatureLevel(r) => self.set_feature(r),
            MetadataRecord::ClientQuota(r) => self.set_quota(r),
            MetadataRecord::ProducerIds(r) => return self.set_next_producer_id(r.next_producer_id),
            MetadataRecord::BrokerRegistrationChange(r) => return self.change_broker(r),
            MetadataRecord::AccessControlEntry(r) => {
                self.acls.insert(r.id, r);
            }
            MetadataRecord::RemoveAccessControlEntry(r) => {
                self.acls.remove(&r.id).ok_or(Misfit::Absent("the ACL"))?;
            }
            MetadataRecord::ZkMigrationState(r) => self.zk_migration_state = Some(r.zk_migration_state),
            MetadataRecord::RemoveUserScramCredential(r) => {
                let removed = self.scram.remove(&(r.mechanism, r.name));
                removed.ok_or(Misfit::Absent("the credential"))?;
            }
            // Kafka deletes a token that is not there without complaint.
            MetadataRecord::RemoveDelegationToken(r) => {
                self.tokens.remove(&r.token_id);
            }
            MetadataRecord::RegisterController(r) => {
                self.controllers.insert(r.controller_id, r);
            }
            MetadataRecord::UnregisterController(r) => {
                self.controllers.remove(&r.controller_id);
            }
            MetadataRecord::ClearElr(r) => return self.clear_elr(&r.topic_name),
            MetadataRecord::NoOp(_)
            | MetadataRecord::BeginTransaction(_)
            | MetadataRecord::EndTransaction(_)
            | MetadataRecord::AbortTransaction(_) => {}
            unknown @ MetadataRecord::Unknown { .. } => self.unknown.push(unknown),
        }
        Ok(())
    }

    fn note_lost_tags(&mut self, record: &MetadataRecord) {
        let tags = match record {
            MetadataRecord::Topic(r) => &r.unknown_tags,
            MetadataRecord::Config(r) => &r.unknown_tags,
            MetadataRecord::PartitionChange(r) => &r.unknown_tags,
            MetadataRecord::FeatureLevel(r) => &r.unknown_tags,
            MetadataRecord::ClientQuota(r) => &r.unknown_tags,
            MetadataRecord::ProducerIds(r) => &r.unknown_tags,
            MetadataRecord::BrokerRegistrationChange(r) => &r.unknown_tags,
            _ => return,
        };
        if !tags.is_empty() {
            self.lost_tags.insert(record.name());
        }
    }

    fn broker(&mut self, id: i32, epoch: i64) -> Result<&mut RegisterBrokerRecord, Misfit> {
        let broker = self.brokers.get_mut(&id).filter(|broker| broker.broker_epoch == epoch);
        broker.ok_or(Misfit::NoBroker { id, epoch })
    }

    fn change_broker(&mut self, record: BrokerRegistrationChangeRecord) -> Result<(), Misfit> {
        let broker = self.broker(record.broker_id, record.broker_epoch)?;
        match record.fenced {
            0 => {}
            1 => broker.fenced = true,
            -1 => broker.fenced = false,
            other => return Err(field("fenced", other)),
        }
        match record.in_controlled_shutdown {
            0 => {}
            1 => broker.in_controlled_shutdown = true,
            other => return Err(field("in_controlled_shutdown", other)),
        }
        if !record.log_dirs.is_empty() {
            broker.log_dirs = record.log_dirs;
        }
        if record.cordoned_log_dirs.is_some() {
            broker.cordoned_log_dirs = record.cordoned_log_dirs;
        }
        Ok(())
    }

    fn topic(&mut self, id: Uuid) -> Result<&mut TopicImage, Misfit> {
        self.topics.get_mut(&id).ok_or(Misfit::NoTopic(id))
    }

    fn create_topic(&mut self, record: TopicRecord) -> Result<(), Misfit> {
        let TopicRecord { name, topic_id: id, .. } = record;
        let namesake = self.replay.topic_ids.get(&name).and_then(|id| self.topics.get(id));
        if let Some(topic) = namesake.filter(|topic| topic.name == name) {
            return Err(Misfit::TopicExists { name, id: topic.id });
        }
        self.replay.topic_ids.insert(name.clone(), id);
        self.topics.insert(id, TopicImage { name, id, ..TopicImage::default() });
        Ok(())
    }

    fn remove_topic(&mut self, id: Uuid) -> Result<(), Misfit> {
        let topic = self.topics.remove(&id).ok_or(Misfit::NoTopic(id))?;
        self.replay.topic_ids.remove(&topic.name);
        self.configs.remove(&(TOPIC_CONFIG, topic.name));
        Ok(())
    }

    fn set_partition(&mut self, record: PartitionRecord) -> Result<(), Misfit> {
        let (topic, partition) = (record.topic_id, record.partition_id);
        let image = PartitionImage::from_record(record)?;
        image.check_directories(topic, partition)?;
        self.topic(topic)?.partitions.insert(partition, image);
        Ok(())
    }

    fn change_partition(&mut self, record: PartitionChangeRecord) -> Result<(), Misfit> {
        let (topic, partition) = (record.topic_id, record.partition_id);
        let image = self.topic(topic)?.partitions.get_mut(&partition);
        let image = image.ok_or(Misfit::NoPartition { topic, partition })?;
        image.merge(record)?;
        image.check_directories(topic, partition)
    }

    fn clear_elr(&mut self, topic_name: &str) -> Result<(), Misfit> {
        if topic_name.is_empty() {
            self.topics.values_mut().for_each(TopicImage::clear_elr);
            return Ok(());
        }
        let id = self.topic_named(topic_name).map(|topic| topic.id);
        let id = id.ok_or_else(|| Misfit::NoTopicName(topic_name.to_owned()))?;
        self.topic(id)?.clear_elr();
        Ok(())
    }

    fn set_feature(&mut self, record: FeatureLevelRecord) {
        match (record.name, record.feature_level) {
            (name, _) if name == KRAFT_VERSION => {}
            (name, 0) => {
                self.features.remove(&name);
            }
            (name, level) => {
                self.features.insert(name, level);
            }
        }
    }

    fn set_config(&mut self, record: ConfigRecord) {
        let resource = (record.resource_type, record.resource_name);
        let configs = self.configs.entry(resource.clone()).or_default();
        match record.value {
            Some(value) => {
                configs.insert(record.name, value);
            }
            None => {
                configs.remove(&record.name);
            }
        }
        if configs.is_empty() {
            self.configs.remove(&resource);
        }
    }

    fn set_quota(&mut self, record: ClientQuotaRecord) {
        let parts = record.entity.into_iter();
        let entity: QuotaEntityKey = parts.map(|part| (part.entity_type, part.entity_name)).collect();
        let limits = self.quotas.entry(entity.clone()).or_default();
        if record.remove {
            limits.remove(&record.key);
        } else {
            limits.insert(record.key, record.value);
        }
        if limits.is_empty() {
            self.quotas.remove(&entity);
        }
    }

    fn set_next_producer_id(&mut self, next: i64) -> Result<(), Misfit> {
        if self.next_producer_id.is_some_and(|current| next <= current) {
            return Err(field("next_producer_id", next));
        }
        self.next_producer_id = Some(next);
        Ok(())
    }

    /// The records of a snapshot of this image, in the order of `MetadataImage.write` and in the versions that its
    /// `metadata.version` asks for (the oldest ones if it has none, which no controller accepts). What that version
    /// has no place for is left out, as Kafka does. Voters are not among them: control records carry those.
    pub fn to_records(&self) -> Vec<MetadataRecord> {
        let level = self.metadata_version().unwrap_or_default();
        let mut records = Vec::new();
        self.put_features(level, &mut records);
        self.put_registrations(level, &mut records);
        self.put_topics(level, &mut records);
        self.put_configs(&mut records);
        self.put_quotas(&mut records);
        if let Some(next_producer_id) = self.next_producer_id {
            let record = ProducerIdsRecord { broker_id: -1, next_producer_id, ..Default::default() };
            records.push(record.into());
        }
        records.extend(self.acls.values().cloned().map(MetadataRecord::from));
        if level >= level::SCRAM_3_5_IV2 {
            records.extend(self.scram.values().cloned().map(MetadataRecord::from));
        }
        if level >= level::TOKENS_3_6_IV2 {
            records.extend(self.tokens.values().cloned().map(MetadataRecord::from));
        }
        records.extend(self.unknown.iter().cloned());
        records
    }

    fn put_features(&self, level: i16, records: &mut Vec<MetadataRecord>) {
        let metadata_version = self.features.iter().filter(|(name, _)| *name == METADATA_VERSION);
        let others = self.features.iter().filter(|(name, _)| *name != METADATA_VERSION);
        records.extend(metadata_version.chain(others).map(|(name, level)| {
            let record = FeatureLevelRecord { name: name.clone(), feature_level: *level, ..Default::default() };
            record.into()
        }));
        if let Some(zk_migration_state) = self.zk_migration_state
            && level >= level::MIGRATION_3_4_IV0
        {
            records.push(ZkMigrationStateRecord { zk_migration_state, ..Default::default() }.into());
        }
    }

    fn put_registrations(&self, level: i16, records: &mut Vec<MetadataRecord>) {
        let version = match level {
            level::CORDONED_DIRECTORIES_4_3_IV0.. => 4,
            level::DIRECTORIES_3_7_IV2.. => 3,
            level::MIGRATION_3_4_IV0.. => 2,
            _ => 1,
        };
        let brokers = self.brokers.values().cloned();
        records.extend(brokers.map(|record| RegisterBrokerRecord { version, ..record }.into()));
        if level >= level::CONTROLLERS_3_7_IV0 {
            records.extend(self.controllers.values().cloned().map(MetadataRecord::from));
        }
    }

    fn put_topics(&self, level: i16, records: &mut Vec<MetadataRecord>) {
        let version = match level {
            level::ELR_4_0_IV1.. => 2,
            level::DIRECTORIES_3_7_IV2.. => 1,
            _ => 0,
        };
        let elr = self.features.contains_key(ELR_VERSION);
        for topic in self.topics.values() {
            let (name, topic_id) = (topic.name.clone(), topic.id);
            records.push(TopicRecord { name, topic_id, ..Default::default() }.into());
            records.extend(topic.partitions.iter().map(|(partition_id, partition)| {
                let record = partition.to_record(topic_id, *partition_id, elr);
                PartitionRecord { version, ..record }.into()
            }));
        }
    }

    fn put_configs(&self, records: &mut Vec<MetadataRecord>) {
        for ((resource_type, resource_name), configs) in &self.configs {
            records.extend(configs.iter().map(|(name, value)| {
                let record = ConfigRecord {
                    resource_type: *resource_type,
                    resource_name: resource_name.clone(),
                    name: name.clone(),
                    value: Some(value.clone()),
                    ..Default::default()
                };
                record.into()
            }));
        }
    }

    fn put_quotas(&self, records: &mut Vec<MetadataRecord>) {
        for (entity, limits) in &self.quotas {
            let parts = entity.iter().map(|(entity_type, entity_name)| QuotaEntity {
                entity_type: entity_type.clone(),
                entity_name: entity_name.clone(),
                ..Default::default()
            });
            let entity: Vec<QuotaEntity> = parts.collect();
            records.extend(limits.iter().map(|(key, value)| {
                let (entity, key) = (entity.clone(), key.clone());
                ClientQuotaRecord { entity, key, value: *value, ..Default::default() }.into()
            }));
        }
    }
}

impl TopicImage {
    fn clear_elr(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.elr.clear();
            partition.last_known_elr.clear();
        }
    }
}

impl PartitionImage {
    fn from_record(record: PartitionRecord) -> Result<Self, Misfit> {
        let mut partition = PartitionImage {
            replicas: record.replicas,
            isr: record.isr,
            removing_replicas: record.removing_replicas,
            adding_replicas: record.adding_replicas,
            leader: record.leader,
            leader_recovery_state: recovery_state(record.leader_recovery_state)?,
            leader_epoch: record.leader_epoch,
            partition_epoch: record.partition_epoch,
            directories: record.directories,
            elr: record.eligible_leader_replicas.unwrap_or_default(),
            last_known_elr: record.last_known_elr.unwrap_or_default(),
            unknown_tags: record.unknown_tags,
        };
        partition.default_directories();
        Ok(partition)
    }

    /// `PartitionRegistration.merge`: each change raises the partition epoch, and a named leader, even the same
    /// one, the leader epoch.
    fn merge(&mut self, change: PartitionChangeRecord) -> Result<(), Misfit> {
        replace(&mut self.replicas, change.replicas);
        replace(&mut self.isr, change.isr);
        replace(&mut self.removing_replicas, change.removing_replicas);
        replace(&mut self.adding_replicas, change.adding_replicas);
        replace(&mut self.directories, change.directories);
        replace(&mut self.elr, change.eligible_leader_replicas);
        replace(&mut self.last_known_elr, change.last_known_elr);
        if change.leader != NO_LEADER_CHANGE {
            self.leader = change.leader;
            self.leader_epoch = self.leader_epoch.wrapping_add(1);
        }
        if change.leader_recovery_state != -1 {
            self.leader_recovery_state = recovery_state(change.leader_recovery_state)?;
        }
        self.partition_epoch = self.partition_epoch.wrapping_add(1);
        self.default_directories();
        Ok(())
    }

    /// `PartitionRegistration.defaultToMigrating`: as long as no directory is known there is one entry per replica.
    fn default_directories(&mut self) {
        if self.directories.iter().all(|directory| *directory == DIRECTORY_MIGRATING) {
            self.directories = vec![DIRECTORY_MIGRATING; self.replicas.len()];
        }
    }

    fn check_directories(&self, topic: Uuid, partition: i32) -> Result<(), Misfit> {
        let (directories, replicas) = (self.directories.len(), self.replicas.len());
        if directories != replicas {
            return Err(Misfit::Directories { topic, partition, directories, replicas });
        }
        Ok(())
    }

    fn to_record(&self, topic_id: Uuid, partition_id: i32, elr: bool) -> PartitionRecord {
        let given = |replicas: &Vec<i32>| (elr && !replicas.is_empty()).then(|| replicas.clone());
        PartitionRecord {
            version: 0,
            partition_id,
            topic_id,
            replicas: self.replicas.clone(),
            isr: self.isr.clone(),
            removing_replicas: self.removing_replicas.clone(),
            adding_replicas: self.adding_replicas.clone(),
            leader: self.leader,
            leader_recovery_state: self.leader_recovery_state,
            leader_epoch: self.leader_epoch,
            partition_epoch: self.partition_epoch,
            directories: self.directories.clone(),
            eligible_leader_replicas: given(&self.elr),
            last_known_elr: given(&self.last_known_elr),
            unknown_tags: self.unknown_tags.clone(),
        }
    }
}

fn replace<T>(value: &mut T, new: Option<T>) {
    if let Some(new) = new {
        *value = new;
    }
}

fn recovery_state(value: i8) -> Result<i8, Misfit> {
    match value {
        0 | 1 => Ok(value),
        other => Err(field("leader_recovery_state", other)),
    }
}

fn field(field: &'static str, value: impl Into<i64>) -> Misfit {
    Misfit::Field { field, value: value.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: Uuid = Uuid([7; 16]);

    fn apply(image: &mut MetadataImage, record: impl Into<MetadataRecord>) -> Result<(), Misfit> {
        image.apply(record.into()).map_err(|error| error.reason)
    }

    fn topic(name: &str, id: Uuid) -> TopicRecord {
        TopicRecord { name: name.into(), topic_id: id, ..Default::default() }
    }

    fn partition() -> PartitionRecord {
        PartitionRecord {
            version: 2,
            partition_id: 0,
            topic_id: TOPIC,
            replicas: vec![1, 2],
            isr: vec![1, 2],
            leader: 1,
            leader_epoch: 5,
            partition_epoch: 9,
            ..Default::default()
        }
    }

    fn change() -> PartitionChangeRecord {
        PartitionChangeRecord { version: 2, partition_id: 0, topic_id: TOPIC, ..Default::default() }
    }

    fn image() -> MetadataImage {
        let mut image = MetadataImage::default();
        apply(&mut image, topic("t", TOPIC)).unwrap();
        apply(&mut image, partition()).unwrap();
        image
    }

    #[test]
    fn every_change_raises_the_partition_epoch_and_a_named_leader_the_leader_epoch() {
        for (change, epochs, leader) in [
            (PartitionChangeRecord { isr: Some(vec![1]), ..change() }, (5, 10), 1),
            (PartitionChangeRecord { leader: 2, ..change() }, (6, 10), 2),
            (PartitionChangeRecord { leader: 1, ..change() }, (6, 10), 1),
            (PartitionChangeRecord { leader: NO_LEADER, ..change() }, (6, 10), NO_LEADER),
            (change(), (5, 10), 1),
        ] {
            let mut image = image();
            apply(&mut image, change).unwrap();
            let partition = &image.topics[&TOPIC].partitions[&0];
            assert_eq!((partition.leader_epoch, partition.partition_epoch), epochs);
            assert_eq!(partition.leader, leader);
        }
    }

    #[test]
    fn unknown_directories_follow_the_number_of_replicas_and_known_ones_must_match() {
        let mut image = image();
        let more = PartitionChangeRecord { replicas: Some(vec![1, 2, 3]), ..change() };
        apply(&mut image, more.clone()).unwrap();
        assert_eq!(image.topics[&TOPIC].partitions[&0].directories, [DIRECTORY_MIGRATING; 3]);

        let known = PartitionRecord { directories: vec![TOPIC; 2], ..partition() };
        apply(&mut image, known).unwrap();
        assert!(matches!(apply(&mut image, more), Err(Misfit::Directories { directories: 2, replicas: 3, .. })));
    }

    #[test]
    fn a_removed_topic_takes_its_configs_along_and_frees_its_name() {
        let mut image = image();
        for (resource_type, name) in [(TOPIC_CONFIG, "t"), (TOPIC_CONFIG, "other"), (BROKER_CONFIG, "t")] {
            let resource_name = name.to_owned();
            let value = Some("1".to_owned());
            let config = ConfigRecord { resource_type, resource_name, name: "x".into(), value, ..Default::default() };
            apply(&mut image, config).unwrap();
        }
        let again = topic("t", Uuid([8; 16]));
        let exists = Misfit::TopicExists { name: "t".into(), id: TOPIC };
        assert_eq!(apply(&mut image, again.clone()), Err(exists));
        apply(&mut image, RemoveTopicRecord { topic_id: TOPIC, ..Default::default() }).unwrap();
        assert_eq!(image.configs.keys().map(|(t, n)| (*t, n.as_str())).collect::<Vec<_>>(), [(2, "other"), (4, "t")]);
        apply(&mut image, again).unwrap();
        assert_eq!(image.topic_named("t").unwrap().id, Uuid([8; 16]));
    }

    #[test]
    fn the_last_config_or_limit_of_a_thing_takes_the_thing_along() {
        let mut image = MetadataImage::default();
        let config = ConfigRecord { name: "a".into(), value: Some("1".into()), ..Default::default() };
        let quota = ClientQuotaRecord { key: "rate".into(), value: 1.5, ..Default::default() };
        apply(&mut image, config.clone()).unwrap();
        apply(&mut image, quota.clone()).unwrap();
        assert_eq!((image.configs.len(), image.quotas.len()), (1, 1));
        apply(&mut image, ConfigRecord { value: None, ..config }).unwrap();
        apply(&mut image, ClientQuotaRecord { remove: true, ..quota }).unwrap();
        assert_eq!(image, MetadataImage::default());
    }

    #[test]
    fn registrations_change_only_with_their_own_epoch() {
        let mut image = MetadataImage::default();
        let broker = RegisterBrokerRecord { broker_id: 3, broker_epoch: 40, ..Default::default() };
        apply(&mut image, broker).unwrap();
        let change = BrokerRegistrationChangeRecord {
            version: 3,
            broker_id: 3,
            broker_epoch: 40,
            fenced: -1,
            log_dirs: vec![TOPIC],
            ..Default::default()
        };
        apply(&mut image, change.clone()).unwrap();
        assert!(!image.brokers[&3].fenced && image.brokers[&3].log_dirs == [TOPIC]);
        let stale = BrokerRegistrationChangeRecord { broker_epoch: 39, ..change.clone() };
        assert_eq!(apply(&mut image, stale), Err(Misfit::NoBroker { id: 3, epoch: 39 }));
        let odd = BrokerRegistrationChangeRecord { fenced: 5, ..change };
        assert_eq!(apply(&mut image, odd), Err(Misfit::Field { field: "fenced", value: 5 }));
        apply(&mut image, FenceBrokerRecord { id: 3, epoch: 40, ..Default::default() }).unwrap();
        assert!(image.brokers[&3].fenced);
        apply(&mut image, UnregisterBrokerRecord { broker_id: 3, broker_epoch: 40, ..Default::default() }).unwrap();
        assert!(image.brokers.is_empty());
    }

    #[test]
    fn what_no_controller_would_accept_is_an_error() {
        let mut image = image();
        apply(&mut image, ProducerIdsRecord { next_producer_id: 1000, ..Default::default() }).unwrap();
        let no_topic = PartitionRecord { topic_id: Uuid([1; 16]), ..partition() };
        let no_partition = PartitionChangeRecord { partition_id: 4, ..change() };
        let records: [(MetadataRecord, &str); 9] = [
            (no_topic.into(), "there is no topic with id AQEBAQEBAQEBAQEBAQEBAQ"),
            (no_partition.into(), "topic BwcHBwcHBwcHBwcHBwcHBw has no partition 4"),
            (RemoveTopicRecord::default().into(), "there is no topic with id AAAAAAAAAAAAAAAAAAAAAA"),
            (RemoveAccessControlEntryRecord::default().into(), "the ACL does not exist"),
            (RemoveUserScramCredentialRecord::default().into(), "the credential does not exist"),
            (ProducerIdsRecord { next_producer_id: 1000, ..Default::default() }.into(), "next_producer_id is 1000"),
            (ClearElrRecord { topic_name: "x".into(), ..Default::default() }.into(), "there is no topic x"),
            (EndTransactionRecord::default().into(), "no transaction was begun"),
            (PartitionChangeRecord { leader_recovery_state: 2, ..change() }.into(), "leader_recovery_state is 2"),
        ];
        for (record, reason) in records {
            assert_eq!(apply(&mut image, record).unwrap_err().to_string(), reason);
        }
    }

    #[test]
    fn a_transaction_counts_when_it_ends_and_not_when_it_aborts() {
        let mut image = image();
        let remove = RemoveTopicRecord { topic_id: TOPIC, ..Default::default() };
        apply(&mut image, BeginTransactionRecord::default()).unwrap();
        apply(&mut image, remove.clone()).unwrap();
        assert_eq!(apply(&mut image, BeginTransactionRecord::default()), Err(Misfit::InTransaction));
        apply(&mut image, AbortTransactionRecord::default()).unwrap();
        assert_eq!(image.topics.len(), 1);

        apply(&mut image, BeginTransactionRecord::default()).unwrap();
        apply(&mut image, remove).unwrap();
        assert_eq!(image.topics.len(), 1);
        apply(&mut image, EndTransactionRecord::default()).unwrap();
        assert!(image.topics.is_empty() && !image.in_transaction());
    }

    /// Versions of the records of broker and partition, and which other types there are.
    #[test]
    fn versions_follow_metadata_version() {
        for (level, broker, partition, others) in [
            (7, 1, 0, &[][..]),
            (8, 2, 0, &[21]),
            (11, 2, 0, &[21, 11]),
            (14, 2, 0, &[21, 11, 10]),
            (15, 2, 0, &[21, 27, 11, 10]),
            (17, 3, 1, &[21, 27, 11, 10]),
            (23, 3, 2, &[21, 27, 11, 10]),
            (30, 4, 2, &[21, 27, 11, 10]),
        ] {
            let mut image = image();
            image.features.insert(METADATA_VERSION.into(), level);
            image.zk_migration_state = Some(0);
            image.brokers.insert(1, RegisterBrokerRecord::default());
            image.controllers.insert(1, RegisterControllerRecord::default());
            image.scram.insert((1, "u".into()), UserScramCredentialRecord::default());
            image.tokens.insert("t".into(), DelegationTokenRecord::default());
            let records = image.to_records();
            let version = |key| records.iter().find(|r| r.api_key() == key).unwrap().version();
            assert_eq!((version(0), version(3)), (broker, partition), "level {level}");
            let keys = records.iter().map(MetadataRecord::api_key);
            assert_eq!(keys.filter(|key| ![0, 2, 3, 12].contains(key)).collect::<Vec<_>>(), others, "level {level}");
            assert_eq!(records[0].api_key(), 12);
        }
    }

    #[test]
    fn eligible_replicas_are_written_only_with_their_feature() {
        let mut image = image();
        image.features.insert(METADATA_VERSION.into(), 27);
        image.topics.get_mut(&TOPIC).unwrap().partitions.get_mut(&0).unwrap().elr = vec![2];
        let elr = |image: &MetadataImage| match image.to_records().pop() {
            Some(MetadataRecord::Partition(record)) => record.eligible_leader_replicas,
            other => panic!("{other:?}"),
        };
        assert_eq!(elr(&image), None);
        image.features.insert(ELR_VERSION.into(), 1);
        assert_eq!(elr(&image), Some(vec![2]));
    }

    #[test]
    fn newer_records_are_carried_and_newer_fields_that_get_lost_are_named() {
        let mut image = MetadataImage::default();
        let newer = MetadataRecord::Unknown { api_key: 99, version: 3, bytes: vec![1, 2] };
        image.apply(newer.clone()).unwrap();
        let unknown_tags = vec![UnknownTag { tag: 9, bytes: vec![1] }];
        let broker = RegisterBrokerRecord { unknown_tags: unknown_tags.clone(), ..Default::default() };
        apply(&mut image, broker).unwrap();
        assert!(image.lost_tags.is_empty());
        apply(&mut image, TopicRecord { unknown_tags, ..Default::default() }).unwrap();
        assert_eq!(image.lost_tags.iter().collect::<Vec<_>>(), [&"TopicRecord"]);
        assert_eq!(image.to_records().pop(), Some(newer));
    }
}
