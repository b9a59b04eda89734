//! `inspect shares`: `__share_group_state` as records, and how far each share group is with each partition.

use std::path::Path;

use segvault_kafka_log::{
    batch::{Batch, Record},
    share::{ShareKey, ShareStates, ShareValue},
    wire::WireError,
};

use super::{
    InspectError, chain,
    json::{Json, Row, row},
    offsets::show_batches,
    records::ToJson,
    report::Report,
    segment::{BatchFindings, control_row, record_rows},
};

/// The topic.
pub const TOPIC: &str = "__share_group_state";

/// Shows a segment, or all segments of a partition.
pub fn inspect(path: &Path, report: &mut Report<'_>) -> Result<(), InspectError> {
    let mut states = ShareStates::default();
    report.begin("shares", path)?;
    show_batches(path, report, |batch, findings| rows(&mut states, batch, findings))?;
    let last = states.states().iter().map(|(key, state)| {
        let row = row!["",
            "group": key.group.clone(),
            "topic_id": key.topic_id.to_string(),
            "partition": key.partition,
        ];
        row.with("state", state.to_json())
    });
    report.list("share_partitions", last)?;
    Ok(report.end()?)
}

/// Takes in a batch whose CRC is right, and returns its records.
fn rows(states: &mut ShareStates, batch: &Batch<'_>, findings: &mut BatchFindings) -> Vec<Row> {
    let before = findings.len();
    let rows = record_rows(batch, findings, |record, row| {
        if batch.is_control() {
            return Ok(control_row(record, row));
        }
        record_row(record, row).map_err(|error| chain(&error))
    });
    if findings.len() == before
        && let Err(error) = states.apply(batch)
    {
        findings.push((batch.base_offset(), chain(&error)));
    }
    rows
}

fn record_row(record: &Record, row: Row) -> Result<Row, WireError> {
    let key = ShareKey::decode(record.key.as_deref().unwrap_or_default())?;
    let value = record.value.as_deref().map(|value| ShareValue::decode(&key, value)).transpose()?;
    let (kind, key) = match key {
        ShareKey::Snapshot(key) => ("ShareSnapshot".to_owned(), Some(key)),
        ShareKey::Update(key) => ("ShareUpdate".to_owned(), Some(key)),
        ShareKey::Unknown { record_type, .. } => (format!("unknown {record_type}"), None),
    };
    let version = record.value.as_deref().and_then(|value| value.first_chunk());
    Ok(row
        .with("type", kind)
        .with("group", key.as_ref().map(|key| key.group.clone()))
        .with("topic_id", key.as_ref().map(|key| key.topic_id.to_string()))
        .with("partition", key.map(|key| key.partition))
        .with("version", version.map(|version| i16::from_be_bytes(*version)))
        .with("value", value.map_or(Json::NULL, |value| value.to_json())))
}
