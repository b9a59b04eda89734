//! `inspect metadata`: the metadata log as records, and the image of the cluster that they add up to.
//!
//! A `.checkpoint` is a whole image, a directory is the newest checkpoint and the log behind it; a lone segment has no
//! image, so its records are shown. Batches are applied one by one as they are read, so memory holds the image and
//! one batch. Where the replay fails the image is shown as it was until then, with a finding.

use std::{io, path::Path};

use segvault_kafka_log::{
    batch::{Batch, ControlType},
    metadata::{
        MetadataImage, MetadataRecord, TopicImage,
        control::{KraftVersionRecord, LeaderChange, SnapshotFooter, SnapshotHeader, VotersRecord},
        records::AccessControlEntryRecord,
        replay_log,
    },
    names::CheckpointName,
    wire::{Message, WireError},
};

use super::{
    InspectError, chain, entries,
    json::{Json, Row, row},
    name_of,
    records::{ToJson, shown_config},
    report::{Finding, Report},
    scan::{self, Scan},
    segment::{BatchFindings, Walk, record_rows},
};

/// `ConfigResource.Type` and its names.
const RESOURCE_TYPES: [(i8, &str); 4] = [(2, "topic"), (4, "broker"), (16, "client-metrics"), (32, "group")];
/// `org.apache.kafka.common.resource.ResourceType`.
const ACL_RESOURCES: [&str; 8] =
    ["unknown", "any", "topic", "group", "cluster", "transactional-id", "delegation-token", "user"];
/// `org.apache.kafka.common.resource.PatternType`.
const ACL_PATTERNS: [&str; 5] = ["unknown", "any", "match", "literal", "prefixed"];
/// `org.apache.kafka.common.acl.AclOperation`.
const ACL_OPERATIONS: [&str; 16] = [
    "unknown",
    "any",
    "all",
    "read",
    "write",
    "create",
    "delete",
    "alter",
    "describe",
    "cluster-action",
    "describe-configs",
    "alter-configs",
    "idempotent-write",
    "create-tokens",
    "describe-tokens",
    "two-phase-commit",
];
/// `org.apache.kafka.common.acl.AclPermissionType`.
const ACL_PERMISSIONS: [&str; 4] = ["unknown", "any", "deny", "allow"];
/// `ScramMechanism`.
const SCRAM_MECHANISMS: [&str; 3] = ["unknown", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Shows a metadata snapshot, a segment of the metadata log, or the directory of both.
pub fn inspect(path: &Path, records: bool, report: &mut Report<'_>) -> Result<(), InspectError> {
    if path.is_dir() {
        return inspect_dir(path, records, report);
    }
    if !name_of(path).ends_with(".checkpoint") {
        report.begin("metadata-segment", path)?;
        let mut walk = Walk::new(true);
        report.begin_list("batches")?;
        walk_file(path, true, None, &mut walk, report)?;
        report.end_list()?;
        report.row("summary", &walk.summary())?;
        return Ok(report.end()?);
    }
    report.begin("metadata-snapshot", path)?;
    let end_offset = CheckpointName::parse(name_of(path)).map(|name| name.end_offset);
    let replay = replay_snapshot("batches", path, end_offset, records, report)?;
    show_image(&replay, report)?;
    Ok(report.end()?)
}

fn inspect_dir(dir: &Path, records: bool, report: &mut Report<'_>) -> Result<(), InspectError> {
    let names = entries(dir)?;
    let snapshot = names.iter().filter_map(|entry| CheckpointName::parse(&entry.name)).max();
    let segments = scan::segments(dir)?;
    if snapshot.is_none() && segments.is_empty() {
        return Err(InspectError::WrongKind {
            path: dir.to_owned(),
            what: "without any metadata snapshot or segment".to_owned(),
            hint: "give __cluster_metadata-0, which is in metadata.log.dir or the first log dir".to_owned(),
        });
    }
    report.begin("metadata", dir)?;
    report.field("snapshot", snapshot.map(|name| name.to_string()))?;
    let mut replay = Replay::default();
    if let Some(name) = snapshot {
        report.line(format_args!("newest snapshot: {name}"))?;
        replay =
            replay_snapshot("snapshot_batches", &dir.join(name.to_string()), Some(name.end_offset), records, report)?;
    }
    // Of the log only what the snapshot does not hold.
    let begins = replay.next_offset;
    let behind = segments.partition_point(|(base, _)| *base <= begins).saturating_sub(1);
    let segments = &segments[behind..];
    if let Some((base, path)) = segments.first().filter(|(base, _)| *base > begins) {
        let what = format!("the log begins at offset {base}, and no snapshot holds what is before it");
        report.finding(Finding::fault(path, what).offset(*base))?;
        replay.failed = true;
    }
    let mut walk = Walk::new(records);
    report.begin_list("batches")?;
    for (_, path) in segments {
        walk_file(path, records, Some(&mut replay), &mut walk, report)?;
    }
    report.end_list()?;
    report.row("summary", &walk.summary())?;
    show_image(&replay, report)?;
    Ok(report.end()?)
}

/// The image of a snapshot, whose own offsets count from 0 wherever it ends.
fn replay_snapshot(
    list: &str,
    path: &Path,
    end_offset: Option<i64>,
    records: bool,
    report: &mut Report<'_>,
) -> Result<Replay, InspectError> {
    let (mut replay, mut walk) = (Replay::default(), Walk::new(records));
    report.begin_list(list)?;
    walk_file(path, records, Some(&mut replay), &mut walk, report)?;
    report.end_list()?;
    report.row(&list.replace("batches", "summary"), &walk.summary())?;
    if !replay.header {
        report.finding(Finding::fault(path, "no whole snapshot: it does not begin with a header"))?;
    }
    if !replay.footer {
        report.finding(Finding::fault(path, "no whole snapshot: its footer is missing"))?;
    }
    replay.next_offset = end_offset.unwrap_or(0);
    Ok(replay)
}

fn walk_file(
    path: &Path,
    records: bool,
    mut replay: Option<&mut Replay>,
    walk: &mut Walk,
    report: &mut Report<'_>,
) -> Result<(), InspectError> {
    let mut scan = Scan::open(path)?;
    walk.file(&mut scan, report, |batch, findings| {
        if let Some(replay) = &mut replay {
            replay.apply(batch, findings);
        }
        records.then(|| metadata_rows(batch, findings))
    })
}

/// The records of a batch of the metadata log.
fn metadata_rows(batch: &Batch<'_>, findings: &mut BatchFindings) -> Vec<Row> {
    record_rows(batch, findings, |record, row| {
        let value = record.value.as_deref().unwrap_or_default();
        let (name, version, data) = if batch.is_control() {
            let key = record.key.as_deref().unwrap_or_default();
            let control = ControlType::parse(key).map_err(|error| chain(&error))?;
            let version = value.first_chunk().map_or(0, |version| u16::from_be_bytes(*version));
            (format!("{control:?}"), version.into(), control_data(control, value).map_err(|error| chain(&error))?)
        } else {
            let decoded = MetadataRecord::decode(value).map_err(|error| chain(&error))?;
            (decoded.name().to_owned(), decoded.version(), decoded.to_json())
        };
        Ok(row.with("type", name).with("version", version).with("data", data))
    })
}

fn control_data(control: ControlType, value: &[u8]) -> Result<Json, WireError> {
    fn decoded<T: Message + ToJson>(bytes: &[u8]) -> Result<Json, WireError> {
        T::decode_prefixed(bytes).map(|message| message.to_json())
    }
    match control {
        ControlType::LeaderChange => decoded::<LeaderChange>(value),
        ControlType::SnapshotHeader => decoded::<SnapshotHeader>(value),
        ControlType::SnapshotFooter => decoded::<SnapshotFooter>(value),
        ControlType::KraftVersion => decoded::<KraftVersionRecord>(value),
        ControlType::KraftVoters => decoded::<VotersRecord>(value),
        other => Ok(Json::object([("type", other.id().into())])),
    }
}

/// An image in the making.
#[derive(Default)]
struct Replay {
    image: MetadataImage,
    /// The offset after what the image holds.
    next_offset: i64,
    /// Something could not be applied: what follows is not, either.
    failed: bool,
    header: bool,
    footer: bool,
}

impl Replay {
    /// Applies a batch whose CRC is right.
    fn apply(&mut self, batch: &Batch<'_>, findings: &mut BatchFindings) {
        match batch.control_type() {
            Ok(Some(ControlType::SnapshotHeader)) => self.header = true,
            Ok(Some(ControlType::SnapshotFooter)) => self.footer = true,
            _ => {}
        }
        if self.failed {
            return;
        }
        match replay_log(&mut self.image, batch.bytes(), self.next_offset) {
            Ok(end) => self.next_offset = end.end_offset,
            Err(error) => {
                let what = format!("{}; the image holds what is before this", chain(&error));
                findings.push((batch.base_offset(), what));
                self.failed = true;
            }
        }
    }
}

fn show_image(replay: &Replay, report: &mut Report<'_>) -> io::Result<()> {
    let image = &replay.image;
    let about = row!["image",
        "end_offset": replay.next_offset,
        "is_complete": !replay.failed,
        "kraft_version": image.kraft_version,
        "next_producer_id": image.next_producer_id,
        "in_transaction": image.in_transaction(),
    ];
    report.row("image", &about)?;
    let features = image.features.iter();
    report.list("features", features.map(|(name, level)| row!["feature", "name": name.clone(), "level": *level]))?;
    report.list("voters", image.voters.iter().flatten().map(|voter| Row::of("voter", voter.to_json())))?;
    report.list("brokers", image.brokers.values().map(|broker| Row::of("broker", broker.to_json())))?;
    let controllers = image.controllers.values();
    report.list("controllers", controllers.map(|controller| Row::of("controller", controller.to_json())))?;
    let mut topics: Vec<&TopicImage> = image.topics.values().collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    report.list("topics", topics.into_iter().map(topic))?;
    let configs = image.configs.iter().map(|((kind, name), configs)| {
        let shown = configs.iter().map(|(key, value)| (key.clone(), shown_config(key, value).into()));
        row!["config", "resource_type": resource_type(*kind), "resource_name": name.clone()]
            .with("configs", Json::Object(shown.collect()))
    });
    report.list("configs", configs)?;
    let quotas = image.quotas.iter().map(|(entity, limits)| {
        let entity = entity.iter().map(|(kind, name)| (kind.clone(), name.to_json()));
        let limits = limits.iter().map(|(name, limit)| (name.clone(), limit.to_json()));
        row!["quota"].with("entity", Json::Object(entity.collect())).with("limits", Json::Object(limits.collect()))
    });
    report.list("quotas", quotas)?;
    report.list("acls", image.acls.values().map(acl))?;
    let scram = image.scram.values().map(|credential| {
        row!["scram credential",
            "user": credential.name.clone(),
            "mechanism": named(&SCRAM_MECHANISMS, credential.mechanism),
            "iterations": credential.iterations,
        ]
    });
    report.list("scram_credentials", scram)?;
    let tokens = image.tokens.values();
    report.list("delegation_tokens", tokens.map(|token| Row::of("delegation token", token.to_json())))?;
    let unknown = image.unknown.iter();
    let unknown = unknown.map(|record| row!["unknown record", "type": record.api_key(), "version": record.version()]);
    report.list("unknown_records", unknown)
}

fn topic(topic: &TopicImage) -> Row {
    let partitions = topic.partitions.iter().map(|(number, partition)| {
        let directories = partition.directories.iter().map(ToString::to_string);
        row!["",
            "partition": *number,
            "leader": partition.leader,
            "leader_epoch": partition.leader_epoch,
            "partition_epoch": partition.partition_epoch,
            "leader_recovery_state": partition.leader_recovery_state,
            "replicas": partition.replicas.clone(),
            "isr": partition.isr.clone(),
            "adding_replicas": partition.adding_replicas.clone(),
            "removing_replicas": partition.removing_replicas.clone(),
            "elr": partition.elr.clone(),
            "last_known_elr": partition.last_known_elr.clone(),
            "directories": directories.collect::<Vec<_>>(),
        ]
    });
    row!["topic", "name": topic.name.clone(), "id": topic.id.to_string()].with_rows("partitions", partitions.collect())
}

fn acl(record: &AccessControlEntryRecord) -> Row {
    row!["acl",
        "principal": record.principal.clone(),
        "host": record.host.clone(),
        "permission": named(&ACL_PERMISSIONS, record.permission_type),
        "operation": named(&ACL_OPERATIONS, record.operation),
        "resource_type": named(&ACL_RESOURCES, record.resource_type),
        "resource_name": record.resource_name.clone(),
        "pattern": named(&ACL_PATTERNS, record.pattern_type),
        "id": record.id.to_string(),
    ]
}

fn resource_type(id: i8) -> String {
    let known = RESOURCE_TYPES.iter().find(|(known, _)| *known == id);
    known.map_or_else(|| id.to_string(), |(_, name)| (*name).to_owned())
}

/// The name of a number in Kafka's enums, or the number.
fn named(names: &[&str], id: i8) -> String {
    let name = usize::try_from(id).ok().and_then(|id| names.get(id));
    name.map_or_else(|| id.to_string(), |name| (*name).to_owned())
}
