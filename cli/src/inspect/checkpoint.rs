//! `inspect checkpoint`: the small text files of a log dir and of a partition, told apart by their names.
//!
//! A file that Kafka would refuse is a finding, and those of its lines that can be read are shown all the same.

use std::{collections::BTreeMap, io, path::Path};

use segvault_kafka_log::{
    TopicPartition,
    checkpoint::{CheckpointError, EpochEntry, LeaderEpochs, decode_offsets},
    clean_shutdown::CleanShutdown,
    meta_properties::{MetaProperties, MetaVersion},
    names,
    partition_metadata::PartitionMetadata,
};

use super::{
    InspectError, chain,
    json::{Json, Row, row},
    name_of, read_whole,
    report::{Finding, Report},
};

/// Lines of a checkpoint before its entries.
const HEADER_LINES: usize = 2;

type Show = fn(&Path, &[u8], &mut Report<'_>) -> io::Result<()>;

/// The small files: their names, what they are, and how they are shown.
const FILES: [(&str, &str, Show); 9] = [
    (names::RECOVERY_POINT_CHECKPOINT, "offset-checkpoint", offsets),
    (names::LOG_START_CHECKPOINT, "offset-checkpoint", offsets),
    (names::HIGH_WATERMARK_CHECKPOINT, "offset-checkpoint", offsets),
    (names::CLEANER_CHECKPOINT, "offset-checkpoint", offsets),
    (names::LEADER_EPOCH_CHECKPOINT, "leader-epoch-checkpoint", leader_epochs),
    (names::PARTITION_METADATA, "partition-metadata", partition_metadata),
    (names::META_PROPERTIES, "meta-properties", meta_properties),
    (names::CLEAN_SHUTDOWN, "clean-shutdown", clean_shutdown),
    (names::QUORUM_STATE, "quorum-state", quorum_state),
];

/// What a name stands for; a `.tmp` is a file that was about to be renamed into place.
fn file(name: &str) -> Option<(&'static str, Show)> {
    let name = name.strip_suffix(".tmp").unwrap_or(name);
    FILES.into_iter().find(|(known, ..)| *known == name).map(|(_, kind, show)| (kind, show))
}

/// Whether a file of that name is shown here.
pub fn is_checkpoint(name: &str) -> bool {
    file(name).is_some()
}

/// Shows one of the small files.
pub fn inspect(path: &Path, report: &mut Report<'_>) -> Result<(), InspectError> {
    let Some((kind, show)) = file(name_of(path)) else {
        return Err(InspectError::WrongKind {
            path: path.to_owned(),
            what: "no checkpoint by its name".to_owned(),
            hint: format!("files are known by their names: {}", FILES.map(|(name, ..)| name).join(", ")),
        });
    };
    let bytes = read_whole(path)?;
    report.begin(kind, path)?;
    show(path, &bytes, report)?;
    Ok(report.end()?)
}

fn offsets(path: &Path, bytes: &[u8], report: &mut Report<'_>) -> io::Result<()> {
    let offsets: BTreeMap<TopicPartition, i64> = match decode_offsets(bytes) {
        Ok(offsets) => offsets,
        Err(error) => {
            report_refused(path, &error, report)?;
            single_lines(bytes).filter_map(|line| decode_offsets(&line).ok()).flatten().collect()
        }
    };
    let row =
        |(tp, offset): (TopicPartition, i64)| row!["", "topic": tp.topic, "partition": tp.partition, "offset": offset];
    report.list("entries", offsets.into_iter().map(row))
}

fn leader_epochs(path: &Path, bytes: &[u8], report: &mut Report<'_>) -> io::Result<()> {
    let decoded = LeaderEpochs::decode(bytes).map(|epochs| epochs.entries().to_vec());
    let entries = match decoded {
        Ok(entries) => entries,
        Err(error) => {
            report_refused(path, &error, report)?;
            single_lines(bytes).filter_map(|line| LeaderEpochs::decode(&line).ok()?.latest()).collect()
        }
    };
    let row = |entry: EpochEntry| row!["", "epoch": entry.epoch, "start_offset": entry.start_offset];
    report.list("entries", entries.into_iter().map(row))
}

fn report_refused(path: &Path, error: &CheckpointError, report: &mut Report<'_>) -> io::Result<()> {
    let what = format!("{error}; a broker takes the whole log dir offline for this");
    report.finding(Finding::fault(path, what))
}

/// Each line behind the header as a checkpoint of its own.
fn single_lines(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let lines = bytes.split(|byte| *byte == b'\n').skip(HEADER_LINES);
    lines.map(|line| [b"0\n1\n", line, b"\n"].concat())
}

fn partition_metadata(path: &Path, bytes: &[u8], report: &mut Report<'_>) -> io::Result<()> {
    let row = |metadata: PartitionMetadata| row!["", "topic_id": metadata.topic_id.to_string()];
    content(path, PartitionMetadata::decode(bytes).map(row), report)
}

fn meta_properties(path: &Path, bytes: &[u8], report: &mut Report<'_>) -> io::Result<()> {
    let row = |meta: MetaProperties| {
        row!["",
            "version": match meta.version {
                MetaVersion::V0 => 0,
                MetaVersion::V1 => 1,
            },
            "cluster_id": meta.cluster_id,
            "node_id": meta.node_id,
            "directory_id": meta.directory_id.map(|id| id.to_string()),
        ]
    };
    content(path, MetaProperties::decode(bytes).map(row), report)
}

fn clean_shutdown(_: &Path, bytes: &[u8], report: &mut Report<'_>) -> io::Result<()> {
    report.row("content", &row!["clean stop", "broker_epoch": CleanShutdown::decode(bytes).broker_epoch])
}

/// It is JSON, whose fields are shown as they are.
fn quorum_state(path: &Path, bytes: &[u8], report: &mut Report<'_>) -> io::Result<()> {
    let row = |state: serde_json::Map<String, serde_json::Value>| {
        Row::of("", Json::Object(state.into_iter().map(|(name, value)| (name, value.into())).collect()))
    };
    content(path, serde_json::from_slice(bytes).map(row), report)
}

fn content<E: std::error::Error>(path: &Path, content: Result<Row, E>, report: &mut Report<'_>) -> io::Result<()> {
    match content {
        Ok(row) => report.row("content", &row),
        Err(error) => {
            report.field("content", Json::NULL)?;
            report.finding(Finding::fault(path, chain(&error)))
        }
    }
}
