//! `inspect segment`: the batches of a `.log`, and its records if asked for.
//!
//! [`Walk`] is what all inspections of batches share: it shows each batch with the records that a caller makes of it,
//! and reports what is wrong with their order.

use std::path::Path;

use segvault_kafka_log::{
    batch::{Batch, BatchError, BatchHeader, ControlType, Record, RecordHeader},
    names::{LogDirEntry, SegmentFile},
};

use super::{
    InspectError, chain,
    json::{Json, Row, row},
    name_of,
    report::{Finding, Report},
    scan::{Scan, Step},
};

/// Shows a segment.
pub fn inspect(path: &Path, records: bool, report: &mut Report<'_>) -> Result<(), InspectError> {
    let mut scan = Scan::open(path)?;
    report.begin("segment", path)?;
    let dir = path.parent().and_then(|dir| std::path::absolute(dir).ok());
    let is_metadata = dir.is_some_and(|dir| LogDirEntry::parse(name_of(&dir)) == LogDirEntry::ClusterMetadata);
    if records && is_metadata {
        let what =
            "keys and values are not shown, since the metadata log holds secrets: use `segvault inspect metadata`";
        report.finding(Finding::note(path, what))?;
    }
    let mut walk = Walk::new(true);
    report.begin_list("batches")?;
    walk.file(&mut scan, report, |batch, findings| {
        records.then(|| record_rows(batch, findings, |record, row| Ok(data_row(batch, record, row, !is_metadata))))
    })?;
    report.end_list()?;
    report.row("summary", &walk.summary())?;
    Ok(report.end()?)
}

/// What is wrong inside a batch: the offset, and what it is.
pub type BatchFindings = Vec<(i64, String)>;

/// The records of a batch, up to the first that cannot be read. `show` adds to what all records have; where it cannot, the
/// record is shown as malformed.
pub fn record_rows(
    batch: &Batch<'_>,
    findings: &mut BatchFindings,
    mut show: impl FnMut(&Record, Row) -> Result<Row, String>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut read = || -> Result<(), BatchError> {
        for record in batch.records()? {
            let record = record?;
            rows.push(show(&record, record_row(batch, &record)).unwrap_or_else(|what| {
                findings.push((record.offset, what));
                record_row(batch, &record).with("type", "malformed")
            }));
        }
        Ok(())
    };
    if let Err(error) = read() {
        findings.push((batch.base_offset(), chain(&error)));
    }
    rows
}

fn record_row(batch: &BatchHeader, record: &Record) -> Row {
    let delta = (record.offset - batch.base_offset()) as i32;
    let sequence = match batch.base_sequence() {
        -1 => -1,
        base => base.wrapping_add(delta) & i32::MAX,
    };
    row!["",
        "offset": record.offset,
        "timestamp_ms": record.timestamp,
        "sequence": sequence,
        "key_size": record.key.as_ref().map(Vec::len),
        "value_size": record.value.as_ref().map(Vec::len),
    ]
}

fn data_row(batch: &BatchHeader, record: &Record, row: Row, is_shown: bool) -> Row {
    let text = |bytes: &Option<Vec<u8>>| bytes.clone().map_or(Json::NULL, Json::text);
    let header =
        |header: &RecordHeader| Json::object([("key", Json::text(header.key.clone())), ("value", text(&header.value))]);
    match () {
        () if batch.is_control() => control_row(record, row),
        () if is_shown => row
            .with("key", text(&record.key))
            .with("value", text(&record.value))
            .with("headers", Json::List(record.headers.iter().map(header).collect())),
        () => row,
    }
}

/// A record of a control batch: its type and, of transaction markers, the coordinator's epoch.
pub fn control_row(record: &Record, row: Row) -> Row {
    let control = ControlType::parse(record.key.as_deref().unwrap_or_default());
    let row = row.with(
        "control",
        match &control {
            Ok(ControlType::Abort) => "ABORT".to_owned(),
            Ok(ControlType::Commit) => "COMMIT".to_owned(),
            Ok(ControlType::Unknown(id)) => format!("unknown {id}"),
            Ok(kraft) => format!("{kraft:?}"),
            Err(_) => "malformed".to_owned(),
        },
    );
    let epoch = record.value.as_deref().and_then(|value| value.get(2..6)?.try_into().ok());
    match (control, epoch) {
        (Ok(ControlType::Abort | ControlType::Commit), Some(epoch)) => {
            row.with("coordinator_epoch", i32::from_be_bytes(epoch))
        }
        _ => row,
    }
}

/// A walk over the batches of one or more segments of a log, and what it has seen.
#[derive(Debug)]
pub struct Walk {
    is_shown: bool,
    batches: u64,
    records: u64,
    bytes: u64,
    damaged_bytes: u64,
    base_offset: Option<i64>,
    /// The greatest timestamps of the batches: the least and the greatest of them.
    min_timestamp: Option<i64>,
    max_timestamp: Option<i64>,
    /// The offset after the last batch, and its epoch.
    end: Option<(i64, i32)>,
}

impl Walk {
    /// Begins before any batch. Batches are shown, or only what is wrong with them.
    pub fn new(is_shown: bool) -> Self {
        Walk {
            is_shown,
            batches: 0,
            records: 0,
            bytes: 0,
            damaged_bytes: 0,
            base_offset: None,
            min_timestamp: None,
            max_timestamp: None,
            end: None,
        }
    }

    /// Shows all batches of a file with the records that `rows` makes of those whose CRC is right; `None` are not shown.
    pub fn file(
        &mut self,
        scan: &mut Scan,
        report: &mut Report<'_>,
        mut rows: impl FnMut(&Batch<'_>, &mut BatchFindings) -> Option<Vec<Row>>,
    ) -> Result<(), InspectError> {
        let path = scan.path().to_owned();
        let base_offset = SegmentFile::parse(name_of(&path)).map(|file| file.base_offset);
        self.bytes += scan.len();
        while let Some(step) = scan.step()? {
            let (position, batch, crc) = match step {
                Step::Batch { position, batch, crc } => (position, batch, crc),
                Step::Damage { position, damage } => {
                    self.damaged_bytes += damage.len;
                    let what = format!("{} bytes: {}", damage.len, damage.what);
                    report.finding(Finding::fault(&path, what).at(position))?;
                    continue;
                }
            };
            let mut findings = BatchFindings::new();
            let records = if crc.is_ok() { rows(&batch, &mut findings) } else { None };
            if self.is_shown {
                let row = batch_row(position, &batch, crc.is_ok());
                report.item(&records.into_iter().fold(row, |row, records| row.with_rows("records", records)))?;
            }
            if let Err(error) = crc {
                findings.push((batch.base_offset(), chain(&error)));
                self.damaged_bytes += batch.size() as u64;
            }
            self.check_order(&batch, base_offset, &mut findings);
            self.count(&batch);
            for (offset, what) in findings {
                report.finding(Finding::fault(&path, what).at(position).offset(offset))?;
            }
        }
        Ok(())
    }

    /// Offsets rise from the segment's base and stay where indexes can point; leader epochs do not fall.
    fn check_order(&self, batch: &BatchHeader, base_offset: Option<i64>, findings: &mut BatchFindings) {
        let offset = batch.base_offset();
        let mut fault = |what: String| findings.push((offset, what));
        if let Some((next, epoch)) = self.end {
            if offset < next {
                fault(format!("offsets do not rise: the batch before ends at {}", next - 1));
            }
            if batch.leader_epoch() < epoch {
                fault(format!("leader epochs fall: {} follows {epoch}", batch.leader_epoch()));
            }
        }
        match base_offset {
            Some(base) if offset < base => fault(format!("the batch begins before the segment's base offset {base}")),
            Some(base) if batch.last_offset() - base > i32::MAX.into() => {
                fault(format!("the batch is too far from the segment's base offset {base} to be indexed"));
            }
            _ => {}
        }
    }

    fn count(&mut self, batch: &BatchHeader) {
        self.batches += 1;
        self.records += batch.record_count() as u64;
        self.base_offset.get_or_insert(batch.base_offset());
        let timestamp = Some(batch.max_timestamp()).filter(|timestamp| *timestamp >= 0);
        self.min_timestamp = self.min_timestamp.into_iter().chain(timestamp).min();
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.end = Some((batch.next_offset(), batch.leader_epoch()));
    }

    /// What was seen.
    pub fn summary(&self) -> Row {
        row!["total",
            "batches": self.batches,
            "records": self.records,
            "bytes": self.bytes,
            "damaged_bytes": self.damaged_bytes,
            "base_offset": self.base_offset,
            "last_offset": self.end.map(|(next, _)| next - 1),
            "min_timestamp_ms": self.min_timestamp,
            "max_timestamp_ms": self.max_timestamp,
        ]
    }
}

fn batch_row(position: u64, batch: &BatchHeader, is_valid: bool) -> Row {
    row!["",
        "base_offset": batch.base_offset(),
        "last_offset": batch.last_offset(),
        "count": batch.record_count(),
        "position": position,
        "size": batch.size(),
        "partition_leader_epoch": batch.leader_epoch(),
        "producer_id": batch.producer_id(),
        "producer_epoch": batch.producer_epoch(),
        "base_sequence": batch.base_sequence(),
        "last_sequence": batch.last_sequence(),
        "is_transactional": batch.is_transactional(),
        "is_control": batch.is_control(),
        "delete_horizon_ms": batch.delete_horizon(),
        "timestamp_type": if batch.is_log_append_time() { "LogAppendTime" } else { "CreateTime" },
        "max_timestamp_ms": batch.max_timestamp(),
        "magic": 2,
        "codec": batch.compression().map_or_else(|_| "unknown".to_owned(), |codec| codec.to_string()),
        "crc": batch.crc(),
        "is_valid": is_valid,
    ]
}
