//! `inspect offsets`: `__consumer_offsets` as records, and what they add up to for each group.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use segvault_kafka_log::{
    batch::{Batch, Record},
    groups::{CommittedOffset, CommittedOffsets, GroupKey, GroupRecord, GroupValue, OffsetCommitKey},
    wire::WireError,
};

use super::{
    InspectError, chain,
    json::{Json, Row, row},
    records::ToJson,
    report::{Finding, Report},
    scan::{self, Scan},
    segment::{BatchFindings, Walk, control_row, record_rows},
};

/// The topic.
pub const TOPIC: &str = "__consumer_offsets";

/// Shows a segment, or all segments of a partition.
pub fn inspect(path: &Path, report: &mut Report<'_>) -> Result<(), InspectError> {
    let mut groups = Groups::default();
    report.begin("offsets", path)?;
    show_batches(path, report, |batch, findings| groups.apply(batch, findings))?;
    report.list("groups", groups.rows())?;
    Ok(report.end()?)
}

/// The batches of a segment, or of all segments of a partition's directory, and their records.
pub fn show_batches(
    path: &Path,
    report: &mut Report<'_>,
    mut rows: impl FnMut(&Batch<'_>, &mut BatchFindings) -> Vec<Row>,
) -> Result<(), InspectError> {
    let segments = if path.is_dir() {
        scan::segments(path)?.into_iter().map(|(_, path)| path).collect()
    } else {
        vec![path.to_owned()]
    };
    if segments.is_empty() {
        report.finding(Finding::fault(path, "no segment is in it"))?;
    }
    let mut walk = Walk::new(true);
    report.begin_list("batches")?;
    for segment in segments {
        walk.file(&mut Scan::open(&segment)?, report, |batch, findings| Some(rows(batch, findings)))?;
    }
    report.end_list()?;
    Ok(report.row("summary", &walk.summary())?)
}

/// What the records say so far.
#[derive(Default)]
struct Groups {
    offsets: CommittedOffsets,
    groups: BTreeMap<String, Group>,
}

#[derive(Default)]
struct Group {
    /// `classic`, `consumer`, `share` or `streams`.
    kind: Option<&'static str>,
    protocol_type: Option<String>,
    /// The generation of a classic group, the epoch of a consumer group.
    epoch: Option<i32>,
    members: BTreeSet<String>,
    offsets: Vec<Row>,
}

impl Groups {
    /// Takes in a batch whose CRC is right, and returns its records.
    fn apply(&mut self, batch: &Batch<'_>, findings: &mut BatchFindings) -> Vec<Row> {
        let before = findings.len();
        let rows = record_rows(batch, findings, |record, row| {
            if batch.is_control() {
                return Ok(control_row(record, row));
            }
            self.row(record, row).map_err(|error| chain(&error))
        });
        if findings.len() == before
            && let Err(error) = self.offsets.apply(batch)
        {
            findings.push((batch.base_offset(), chain(&error)));
        }
        rows
    }

    fn row(&mut self, record: &Record, row: Row) -> Result<Row, WireError> {
        let key = GroupKey::decode(record.key.as_deref().unwrap_or_default())?;
        let value = record.value.as_deref().map(|value| GroupValue::decode(&key, value)).transpose()?;
        self.note(&key, value.as_ref());
        let (kind, group, member, partition) = match key {
            GroupKey::OffsetCommit { record_type: 0, key } => {
                ("LegacyOffsetCommit".to_owned(), Some(key.group), None, Some(key.partition))
            }
            GroupKey::OffsetCommit { key, .. } => {
                ("OffsetCommit".to_owned(), Some(key.group), None, Some(key.partition))
            }
            GroupKey::Group { record, group } => (format!("{record:?}"), Some(group), None, None),
            GroupKey::Member { record, group, member } => (format!("{record:?}"), Some(group), Some(member), None),
            GroupKey::Unknown { record_type, .. } => (format!("unknown {record_type}"), None, None, None),
        };
        let version = record.value.as_deref().and_then(|value| value.first_chunk());
        Ok(row
            .with("type", kind)
            .with("group", group)
            .with("member", member)
            .with("topic", partition.as_ref().map(|partition| partition.topic.clone()))
            .with("partition", partition.map(|partition| partition.partition))
            .with("version", version.map(|version| i16::from_be_bytes(*version)))
            .with("value", value.map_or(Json::NULL, |value| value.to_json())))
    }

    /// Keeps what a record says about a group and its members.
    fn note(&mut self, key: &GroupKey, value: Option<&GroupValue>) {
        use GroupRecord::*;
        match key {
            GroupKey::Group { record, group } => {
                let kind = match record {
                    GroupMetadata => "classic",
                    ConsumerGroupMetadata => "consumer",
                    ShareGroupMetadata => "share",
                    StreamsGroupMetadata => "streams",
                    _ => return,
                };
                let Some(value) = value else {
                    self.groups.remove(group);
                    return;
                };
                let entry = self.groups.entry(group.clone()).or_default();
                entry.kind = Some(kind);
                match value {
                    GroupValue::GroupMetadata(value) => {
                        entry.protocol_type = Some(value.protocol_type.clone());
                        entry.epoch = Some(value.generation);
                        entry.members = value.members.iter().map(|member| member.member_id.clone()).collect();
                    }
                    GroupValue::ConsumerGroupMetadata(value) => entry.epoch = Some(value.epoch),
                    _ => {}
                }
            }
            GroupKey::Member {
                record: ConsumerGroupMemberMetadata | ShareGroupMemberMetadata | StreamsGroupMemberMetadata,
                group,
                member,
            } => {
                if value.is_some() {
                    self.groups.entry(group.clone()).or_default().members.insert(member.clone());
                } else if let Some(entry) = self.groups.get_mut(group) {
                    entry.members.remove(member);
                }
            }
            _ => {}
        }
    }

    /// Every group with what it has committed, by name.
    fn rows(self) -> impl Iterator<Item = Row> {
        let mut groups = self.groups;
        let mut add = |key: &OffsetCommitKey, committed: &CommittedOffset, producer: Option<i64>| {
            let group = groups.entry(key.group.clone()).or_default();
            group.offsets.push(committed_row(key, committed, producer));
        };
        self.offsets.offsets().iter().for_each(|(key, committed)| add(key, committed, None));
        self.offsets.pending().for_each(|(producer, key, committed)| add(key, committed, Some(producer)));
        groups.into_iter().map(|(name, group)| {
            let row = row!["",
                "group": name,
                "kind": group.kind,
                "protocol_type": group.protocol_type,
                "epoch": group.epoch,
                "members": group.members.len(),
            ];
            row.with_rows("offsets", group.offsets)
        })
    }
}

fn committed_row(key: &OffsetCommitKey, committed: &CommittedOffset, producer_id: Option<i64>) -> Row {
    let value = &committed.value;
    row!["",
        "topic": key.partition.topic.clone(),
        "partition": key.partition.partition,
        "offset": value.offset,
        "leader_epoch": value.leader_epoch,
        "metadata": value.metadata.clone(),
        "commit_timestamp_ms": value.commit_timestamp,
        "record_offset": committed.record_offset,
        "pending_in_transaction_of": producer_id,
    ]
}
