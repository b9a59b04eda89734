//! `inspect transactions`: `__transaction_state` as records, and where each transactional id stands.

use std::path::Path;

use segvault_kafka_log::{
    batch::{Batch, Record},
    transactions::{TransactionLog, TransactionLogValue, TransactionRecord, TransactionState, decode_key},
    wire::Message,
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
pub const TOPIC: &str = "__transaction_state";

/// Shows a segment, or all segments of a partition.
pub fn inspect(path: &Path, report: &mut Report<'_>) -> Result<(), InspectError> {
    let mut log = TransactionLog::default();
    report.begin("transactions", path)?;
    show_batches(path, report, |batch, findings| rows(&mut log, batch, findings))?;
    let last = log.last().values().map(|record| {
        let row = row!["", "offset": record.offset, "timestamp_ms": record.timestamp];
        with_state(row, &record.transactional_id, record.value.as_ref())
    });
    report.list("transactional_ids", last)?;
    Ok(report.end()?)
}

/// Takes in a batch whose CRC is right, and returns its records.
fn rows(log: &mut TransactionLog, batch: &Batch<'_>, findings: &mut BatchFindings) -> Vec<Row> {
    let mut unknown = BatchFindings::new();
    let rows = record_rows(batch, findings, |record, row| {
        if batch.is_control() {
            return Ok(control_row(record, row));
        }
        let decoded = decode(record).map_err(|error| chain(&error))?;
        // Kafka passes over a key of an unknown version, too.
        let Some(decoded) = decoded else {
            return Ok(row.with("type", "unknown"));
        };
        let value = decoded.value.as_ref();
        if let Some(value) = value.filter(|value| value.state().is_none()) {
            let what = format!("unknown state {} of a transactional id", value.transaction_status);
            unknown.push((record.offset, what));
        }
        let row = with_state(row, &decoded.transactional_id, value);
        log.apply_record(decoded);
        Ok(row)
    });
    findings.extend(unknown);
    rows
}

fn decode(record: &Record) -> Result<Option<TransactionRecord>, segvault_kafka_log::wire::WireError> {
    let id = decode_key(record.key.as_deref().unwrap_or_default())?;
    let value = record.value.as_deref().map(TransactionLogValue::decode_prefixed).transpose()?;
    Ok(id.map(|transactional_id| TransactionRecord {
        offset: record.offset,
        timestamp: record.timestamp,
        transactional_id,
        value,
    }))
}

/// State and value are null where a record deletes the id.
fn with_state(row: Row, transactional_id: &str, value: Option<&TransactionLogValue>) -> Row {
    row.with("transactional_id", transactional_id)
        .with("state", value.map(|value| value.state().map_or("unknown", state_name)))
        .with("value", value.map_or(Json::NULL, ToJson::to_json))
}

/// `org.apache.kafka.coordinator.transaction.TransactionState`.
fn state_name(state: TransactionState) -> &'static str {
    use TransactionState::*;
    match state {
        Empty => "Empty",
        Ongoing => "Ongoing",
        PrepareCommit => "PrepareCommit",
        PrepareAbort => "PrepareAbort",
        CompleteCommit => "CompleteCommit",
        CompleteAbort => "CompleteAbort",
    }
}
