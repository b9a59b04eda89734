//! `inspect index`: the entries of the files beside a segment, held against the segment where it lies beside them.
//!
//! Entries are read one by one, so that those behind a bad one are shown, too. What must hold between an index and its
//! log is what all versions of Kafka keep: an offset index points at starts of batches, not behind the offset; a time
//! index has a batch's own greatest timestamp; a transaction index has every aborted transaction.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use segvault_kafka_log::{
    batch::BatchHeader,
    index::{
        IndexError, OFFSET_ENTRY_LEN, TIME_ENTRY_LEN, TXN_ENTRY_LEN, decode_offset_index, decode_time_index,
        decode_txn_index,
    },
    names::{SegmentFile, SegmentFileKind, segment_file_name},
    producer::{ProducerEntry, ProducerSnapshot, SnapshotError},
};

use super::{
    InspectError, chain,
    json::{Row, row},
    name_of, open, read_error, read_if_there, read_whole,
    report::{Finding, Report},
    scan::Scan,
    segment_kind,
};

/// Where a producer snapshot has its CRC and its count, and where its entries begin.
const SNAPSHOT_CRC: std::ops::Range<usize> = 2..6;
const SNAPSHOT_COUNT: std::ops::Range<usize> = 6..10;
const SNAPSHOT_ENTRY_LEN: usize = 46;

/// Shows an index or a producer snapshot.
pub fn inspect(path: &Path, report: &mut Report<'_>) -> Result<(), InspectError> {
    match segment_kind(name_of(path)) {
        Some(SegmentFileKind::OffsetIndex) => Inspection::begin("offset-index", path, report)?.offset_index(),
        Some(SegmentFileKind::TimeIndex) => Inspection::begin("time-index", path, report)?.time_index(),
        Some(SegmentFileKind::TxnIndex) => Inspection::begin("transaction-index", path, report)?.txn_index(),
        Some(SegmentFileKind::Snapshot) => snapshot(path, report),
        Some(SegmentFileKind::Log) | None => Err(InspectError::WrongKind {
            path: path.to_owned(),
            what: "no index by its name".to_owned(),
            hint: "names of indexes end in .index, .timeindex, .txnindex or .snapshot".to_owned(),
        }),
    }
}

/// An index being shown.
struct Inspection<'a, 'w> {
    path: &'a Path,
    base_offset: i64,
    /// The segment beside it.
    log: Option<Log>,
    report: &'a mut Report<'w>,
}

impl<'a, 'w> Inspection<'a, 'w> {
    fn begin(kind: &str, path: &'a Path, report: &'a mut Report<'w>) -> Result<Self, InspectError> {
        let file = SegmentFile::parse(name_of(path));
        let base_offset = file.map(|file| file.base_offset);
        let log_path = base_offset.map(|base| path.with_file_name(segment_file_name(base, SegmentFileKind::Log)));
        let log_path = log_path.filter(|log| log.is_file());
        report.begin(kind, path)?;
        report.field("base_offset", base_offset)?;
        report.field("log", log_path.as_ref().map(|log| log.display().to_string()))?;
        if base_offset.is_none() {
            let what = "its name is no base offset: offsets count from 0, and no segment is looked at";
            report.finding(Finding::note(path, what))?;
        }
        report.begin_list("entries")?;
        Ok(Inspection {
            path,
            base_offset: base_offset.unwrap_or(0),
            log: log_path.map(Log::open).transpose()?,
            report,
        })
    }

    fn offset_index(mut self) -> Result<(), InspectError> {
        let parse = |base: i64, raw: &[u8; OFFSET_ENTRY_LEN]| {
            let offset = base.saturating_add(i64::from(i32::from_be_bytes(*raw.first_chunk().expect("8 bytes"))));
            let position = i32::from_be_bytes(*raw.last_chunk().expect("8 bytes"));
            ((offset, position), row!["", "offset": offset, "position": position])
        };
        let check = |base, bytes: &[u8]| decode_offset_index(base, bytes).err();
        let entries = self.show(parse, check, |log, (offset, position)| {
            let position = position as u64; // `check` refuses those below 0.
            Ok(match log.find(|at, _| at >= position)? {
                None => Some("it points behind the last batch of the segment".to_owned()),
                Some((at, _)) if at != position => Some(format!("no batch begins at position {position}")),
                Some((_, batch)) if batch.base_offset() > offset => {
                    Some(format!("the batch at position {position} begins at offset {}", batch.base_offset()))
                }
                Some(_) => None,
            })
        })?;
        self.end(entries)
    }

    fn time_index(mut self) -> Result<(), InspectError> {
        let parse = |base: i64, raw: &[u8; TIME_ENTRY_LEN]| {
            let timestamp = i64::from_be_bytes(*raw.first_chunk().expect("12 bytes"));
            let offset = base.saturating_add(i64::from(i32::from_be_bytes(*raw.last_chunk().expect("12 bytes"))));
            ((timestamp, offset), row!["", "timestamp_ms": timestamp, "offset": offset])
        };
        let check = |base, bytes: &[u8]| decode_time_index(base, bytes).err();
        let entries = self.show(parse, check, |log, (timestamp, offset)| {
            let found = log.find(|_, batch| batch.last_offset() >= offset)?;
            let found = found.filter(|(_, batch)| batch.base_offset() <= offset);
            let Some((_, batch)) = found else {
                return Ok(Some(format!("the segment has no batch with offset {offset}")));
            };
            let greatest = batch.max_timestamp();
            Ok((greatest != timestamp)
                .then(|| format!("the batch with offset {offset} has the greatest timestamp {greatest}")))
        })?;
        self.end(entries)
    }

    /// Shows entries that rise, each held against the one before it, what is possible, and the segment.
    fn show<const N: usize, E>(
        &mut self,
        parse: impl Fn(i64, &[u8; N]) -> (E, Row),
        check: impl Fn(i64, &[u8]) -> Option<IndexError>,
        hold: impl Fn(&mut Log, E) -> Result<Option<String>, InspectError>,
    ) -> Result<Entries<N>, InspectError> {
        let mut entries = Entries::open(self.path)?;
        while let Some(raw) = entries.next()? {
            let (entry, row) = parse(self.base_offset, &raw);
            self.report.item(&row)?;
            let mut fault = entries.fault(raw, |bytes| check(self.base_offset, bytes));
            if let (Some(log), None) = (&mut self.log, &fault) {
                fault = hold(log, entry)?;
                // One bad entry is one finding: the next is not held against it.
                entries.previous = entries.previous.filter(|_| fault.is_none());
            }
            self.entry_fault(entries.last_position(), fault)?;
            entries.report_zeros(self.path, self.report)?;
        }
        Ok(entries)
    }

    fn txn_index(mut self) -> Result<(), InspectError> {
        let mut entries = Entries::<TXN_ENTRY_LEN>::open(self.path)?;
        entries.is_preallocated = false;
        let mut markers = BTreeSet::new();
        while let Some(raw) = entries.next()? {
            let field = |i: usize| i64::from_be_bytes(*raw[2 + 8 * i..].first_chunk().expect("34 bytes"));
            self.report.item(&row!["",
                "version": i16::from_be_bytes([raw[0], raw[1]]),
                "producer_id": field(0),
                "first_offset": field(1),
                "last_offset": field(2),
                "last_stable_offset": field(3),
            ])?;
            markers.insert((field(2), field(0)));
            let fault = entries.fault(raw, |bytes| decode_txn_index(bytes).err());
            self.entry_fault(entries.last_position(), fault)?;
        }
        self.check_markers(markers)?;
        self.end(entries)
    }

    /// Every entry has its ABORT marker, and every aborted transaction its entry.
    fn check_markers(&mut self, mut entries: BTreeSet<(i64, i64)>) -> Result<(), InspectError> {
        let mut open = self.open_at_start()?;
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        while let Some((position, batch)) = log.next()? {
            let (offset, producer_id) = (batch.base_offset(), batch.producer_id());
            if !batch.is_transactional() {
                continue;
            }
            if !batch.is_control() {
                open.insert(producer_id);
                continue;
            }
            let had_data = open.remove(&producer_id);
            let marker = log.scan.batch_at(position, &batch)?.end_txn_marker();
            let is_abort = matches!(marker, Ok(Some(marker)) if !marker.commit);
            let has_entry = is_abort && entries.remove(&(offset, producer_id));
            if is_abort && had_data && !has_entry {
                let what = format!(
                    "the transaction of producer {producer_id} that is aborted here has no entry: read_committed shows it"
                );
                self.report.finding(Finding::fault(self.path, what).offset(offset))?;
            }
        }
        for (offset, producer_id) in entries {
            let what = format!("the segment has no ABORT marker of producer {producer_id} here");
            self.report.finding(Finding::fault(self.path, what).offset(offset))?;
        }
        Ok(())
    }

    /// Producers with an open transaction where the segment begins, as the snapshot there says.
    fn open_at_start(&self) -> Result<BTreeSet<i64>, InspectError> {
        let name = segment_file_name(self.base_offset, SegmentFileKind::Snapshot);
        let bytes = read_if_there(&self.path.with_file_name(name))?.unwrap_or_default();
        let entries = ProducerSnapshot::decode(&bytes).map(|snapshot| snapshot.entries).unwrap_or_default();
        let open = entries.iter().filter(|entry| entry.current_txn_first_offset.is_some());
        Ok(open.map(|entry| entry.producer_id).collect())
    }

    fn entry_fault(&mut self, position: u64, fault: Option<String>) -> io::Result<()> {
        match fault {
            Some(what) => self.report.finding(Finding::fault(self.path, what).at(position)),
            None => Ok(()),
        }
    }

    fn end<const N: usize>(self, mut entries: Entries<N>) -> Result<(), InspectError> {
        entries.report_zeros(self.path, self.report)?;
        self.report.end_list()?;
        let len = N as u64;
        let count = entries.count - entries.zeros;
        let zero_tail = entries.zeros * len;
        if zero_tail > 0 {
            let what = format!("{zero_tail} zero bytes follow the last entry");
            let finding = if entries.is_preallocated {
                Finding::note(self.path, format!("{what}: preallocated, as of an active segment"))
            } else {
                Finding::fault(self.path, what)
            };
            self.report.finding(finding.at(count * len))?;
        }
        if !entries.len.is_multiple_of(len) {
            let what =
                format!("{} bytes are no multiple of the {N} of an entry: later entries would be shifted", entries.len);
            self.report.finding(Finding::fault(self.path, what).at(entries.len - entries.len % len))?;
        }
        let summary = row!["total", "entries": count, "bytes": entries.len, "zero_tail_bytes": zero_tail];
        self.report.row("summary", &summary)?;
        Ok(self.report.end()?)
    }
}

/// The batches of a segment, forward only.
struct Log {
    scan: Scan,
    current: Option<(u64, BatchHeader)>,
    /// The last batch, once the end was reached.
    last: Option<(u64, BatchHeader)>,
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, InspectError> {
        let mut log = Log { scan: Scan::open_headers(&path)?, current: None, last: None };
        log.next()?;
        Ok(log)
    }

    /// The next batch, beyond damage if there is some.
    fn advance(&mut self) -> Result<(), InspectError> {
        loop {
            self.current = self.scan.next_header()?;
            if self.current.is_some() || self.scan.damage_here()?.is_none() {
                return Ok(());
            }
        }
    }

    /// Hands out the current batch and goes on.
    fn next(&mut self) -> Result<Option<(u64, BatchHeader)>, InspectError> {
        let current = self.current;
        self.advance()?;
        Ok(current)
    }

    /// The first batch from the current one on that is as wanted, as all behind it must be; it becomes the current one.
    /// Where there is none, the current one stays: one entry that points nowhere does not spoil those that follow.
    fn find(
        &mut self,
        is_wanted: impl Fn(u64, &BatchHeader) -> bool,
    ) -> Result<Option<(u64, BatchHeader)>, InspectError> {
        if self.last.is_some_and(|(position, batch)| !is_wanted(position, &batch)) {
            return Ok(None);
        }
        let (start, behind) = (self.current, self.scan.position());
        let mut last = None;
        while let Some((position, batch)) = self.current {
            if is_wanted(position, &batch) {
                return Ok(self.current);
            }
            last = self.current;
            self.advance()?;
        }
        (self.current, self.last) = (start, last);
        self.scan.seek(behind);
        Ok(None)
    }
}

/// The entries of an index, of `N` bytes each, without the zeros behind the last one.
struct Entries<const N: usize> {
    reader: BufReader<File>,
    path: PathBuf,
    len: u64,
    /// Entries read, zeros included.
    count: u64,
    /// Zero entries read since the last one that is not zero.
    zeros: u64,
    /// Zero entries before the last one that is not zero, which were not reported yet.
    zeros_amid: u64,
    previous: Option<[u8; N]>,
    /// Whether zeros at the end are what Kafka reserves for entries to come.
    is_preallocated: bool,
}

impl<const N: usize> Entries<N> {
    fn open(path: &Path) -> Result<Self, InspectError> {
        let (file, len) = open(path)?;
        Ok(Entries {
            reader: BufReader::with_capacity(1 << 16, file),
            path: path.to_owned(),
            len,
            count: 0,
            zeros: 0,
            zeros_amid: 0,
            previous: None,
            is_preallocated: true,
        })
    }

    /// The next entry that is not zero; a lone zero entry is one, too: a record of 1970.
    fn next(&mut self) -> Result<Option<[u8; N]>, InspectError> {
        let whole = self.len / N as u64;
        while self.count < whole {
            let mut raw = [0; N];
            self.reader.read_exact(&mut raw).map_err(|source| read_error(&self.path, source))?;
            self.count += 1;
            if raw == [0; N] && (whole > 1 || N != TIME_ENTRY_LEN) {
                self.zeros += 1;
                continue;
            }
            self.zeros_amid = std::mem::take(&mut self.zeros);
            return Ok(Some(raw));
        }
        Ok(None)
    }

    /// Where the last entry begins.
    fn last_position(&self) -> u64 {
        (self.count - 1) * N as u64
    }

    /// What is wrong with an entry, on its own or behind the one before it.
    fn fault(&mut self, raw: [u8; N], check: impl Fn(&[u8]) -> Option<IndexError>) -> Option<String> {
        let pair = self.previous.map(|previous| [previous, raw]);
        let error = check(pair.as_ref().map_or(&raw[..], |pair| pair.as_flattened()));
        // One bad entry is one finding: the next is held against what is possible.
        if !matches!(error, Some(IndexError::BadValue { .. })) {
            self.previous = Some(raw);
        }
        error.map(|error| match error {
            IndexError::BadValue { field, value, .. } => format!("impossible {field} {value}"),
            IndexError::NotRising { field, value, previous, .. } => {
                format!("{field} does not rise: {value} follows {previous}")
            }
            error => chain(&error),
        })
    }

    fn report_zeros(&mut self, path: &Path, report: &mut Report<'_>) -> io::Result<()> {
        match std::mem::take(&mut self.zeros_amid) {
            0 => Ok(()),
            zeros => {
                let what = format!("{zeros} zero entries stand before this one");
                report.finding(Finding::fault(path, what).at(self.last_position()))
            }
        }
    }
}

fn snapshot(path: &Path, report: &mut Report<'_>) -> Result<(), InspectError> {
    let mut bytes = read_whole(path)?;
    let file_len = bytes.len();
    report.begin("producer-snapshot", path)?;
    report.field("offset", SegmentFile::parse(name_of(path)).map(|file| file.base_offset))?;
    let mut snapshot = ProducerSnapshot::decode(&bytes);
    // Each pass repairs one thing, so that what can be read of a damaged file is shown.
    for _ in 0..3 {
        let Err(error) = &snapshot else {
            break;
        };
        let what = format!("{error}; Kafka deletes such a file and takes the one before it");
        report.finding(Finding::fault(path, what))?;
        if !repair(&mut bytes, error) {
            break;
        }
        snapshot = match ProducerSnapshot::decode(&bytes) {
            // The repair itself made the CRC wrong.
            Err(error @ SnapshotError::BadCrc { .. }) => {
                repair(&mut bytes, &error);
                ProducerSnapshot::decode(&bytes)
            }
            other => other,
        };
    }
    let entries = snapshot.map(|snapshot| snapshot.entries).unwrap_or_default();
    let count = entries.len();
    report.list("entries", entries.iter().map(producer_row))?;
    report.row("summary", &row!["total", "entries": count, "bytes": file_len])?;
    Ok(report.end()?)
}

/// Makes the bytes of a snapshot such that they do not fail in the same way again, if that is possible.
fn repair(bytes: &mut Vec<u8>, error: &SnapshotError) -> bool {
    match *error {
        SnapshotError::BadCrc { computed, .. } => bytes[SNAPSHOT_CRC].copy_from_slice(&computed.to_be_bytes()),
        SnapshotError::BadLength { len, .. } if len >= SNAPSHOT_COUNT.end => {
            let entries = (len - SNAPSHOT_COUNT.end) / SNAPSHOT_ENTRY_LEN;
            let Ok(count) = i32::try_from(entries) else {
                return false;
            };
            bytes.truncate(SNAPSHOT_COUNT.end + entries * SNAPSHOT_ENTRY_LEN);
            bytes[SNAPSHOT_COUNT].copy_from_slice(&count.to_be_bytes());
        }
        SnapshotError::BadLength { .. } | SnapshotError::BadVersion(_) => return false,
    }
    true
}

fn producer_row(entry: &ProducerEntry) -> Row {
    row!["",
        "producer_id": entry.producer_id,
        "producer_epoch": entry.epoch,
        "coordinator_epoch": entry.coordinator_epoch,
        "current_txn_first_offset": entry.current_txn_first_offset,
        "last_sequence": entry.last_sequence,
        "last_offset": entry.last_offset,
        "offset_delta": entry.offset_delta,
        "timestamp_ms": entry.timestamp,
    ]
}
