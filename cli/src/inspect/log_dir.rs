//! `inspect log-dir`: the partitions of a log dir, where they begin and end, and what a broker would stumble over.
//!
//! Cheap enough for a large, live log dir: of each partition the last segment is read from its index's last entry on, as a
//! broker does at a clean start, and headers only. CRCs are checked of the last batch alone; `inspect segment` reads all.
//! The offset checkpoints are read first, so that a log end never lies before what they say because of the order.

use std::{collections::BTreeMap, fmt::Display, os::unix::fs::FileExt, path::Path};

use segvault_kafka_log::{
    TopicPartition, Uuid,
    batch::BatchHeader,
    checkpoint::{LeaderEpochs, decode_offsets},
    clean_shutdown::CleanShutdown,
    index::{OFFSET_ENTRY_LEN, OffsetEntry, TIME_ENTRY_LEN, decode_offset_index},
    meta_properties::MetaProperties,
    names::{self, CheckpointName, LogDirEntry, SegmentFile, SegmentFileKind, SegmentFileState, segment_file_name},
    partition_metadata::PartitionMetadata,
};

use super::{
    Entry, InspectError, chain, entries, if_there,
    json::{Row, row},
    open, read_error, read_if_there,
    report::{Finding, Report},
    scan::Scan,
    segment_kind,
};

/// Shows a log dir.
pub fn inspect(path: &Path, report: &mut Report<'_>) -> Result<(), InspectError> {
    let mut inspection = Inspection::new(path)?;
    report.begin("log-dir", path)?;
    report.row("properties", &inspection.meta()?)?;
    let mut partitions = Vec::new();
    for entry in &entries(path)? {
        partitions.extend(inspection.entry(entry)?);
    }
    inspection.check_all(&partitions);
    let rows: Vec<Row> = partitions.iter().map(Partition::row).collect();
    report.table("partitions", &rows)?;
    for finding in inspection.findings {
        report.finding(finding)?;
    }
    let summary = row!["total",
        "partitions": partitions.len(),
        "segments": partitions.iter().map(|partition| partition.segments).sum::<usize>(),
        "bytes": partitions.iter().map(|partition| partition.bytes).sum::<u64>(),
    ];
    report.row("summary", &summary)?;
    Ok(report.end()?)
}

struct Inspection<'a> {
    dir: &'a Path,
    is_clean: bool,
    high_watermarks: BTreeMap<TopicPartition, i64>,
    recovery_points: BTreeMap<TopicPartition, i64>,
    log_starts: BTreeMap<TopicPartition, i64>,
    /// Indexes with zeros behind their last entry, without the marker of a clean stop.
    preallocated: usize,
    findings: Vec<Finding>,
}

impl<'a> Inspection<'a> {
    fn new(dir: &'a Path) -> Result<Self, InspectError> {
        let mut inspection = Inspection {
            dir,
            is_clean: dir.join(names::CLEAN_SHUTDOWN).exists(),
            high_watermarks: BTreeMap::new(),
            recovery_points: BTreeMap::new(),
            log_starts: BTreeMap::new(),
            preallocated: 0,
            findings: Vec::new(),
        };
        inspection.high_watermarks = inspection.offsets(names::HIGH_WATERMARK_CHECKPOINT)?;
        inspection.recovery_points = inspection.offsets(names::RECOVERY_POINT_CHECKPOINT)?;
        inspection.log_starts = inspection.offsets(names::LOG_START_CHECKPOINT)?;
        inspection.offsets(names::CLEANER_CHECKPOINT)?;
        Ok(inspection)
    }

    fn fault(&mut self, path: &Path, what: impl Display) {
        self.findings.push(Finding::fault(path, what));
    }

    fn note(&mut self, path: &Path, what: impl Display) {
        self.findings.push(Finding::note(path, what));
    }

    /// An offset checkpoint of the log dir.
    fn offsets(&mut self, name: &str) -> Result<BTreeMap<TopicPartition, i64>, InspectError> {
        let path = self.dir.join(name);
        let bytes = read_if_there(&path)?.unwrap_or_default();
        Ok(decode_offsets(&bytes).unwrap_or_else(|error| {
            self.fault(&path, format!("{error}; a broker takes the whole log dir offline for this"));
            BTreeMap::new()
        }))
    }

    /// Whose log dir it is, and how it was left.
    fn meta(&mut self) -> Result<Row, InspectError> {
        let path = self.dir.join(names::META_PROPERTIES);
        let meta = match read_if_there(&path)?.map(|bytes| MetaProperties::decode(&bytes)) {
            Some(Ok(meta)) => Some(meta),
            Some(Err(error)) => {
                self.fault(&path, chain(&error));
                None
            }
            None => {
                self.fault(&path, "it is missing: this is no formatted log dir, and a broker does not start on it");
                None
            }
        };
        let marker = read_if_there(&self.dir.join(names::CLEAN_SHUTDOWN))?;
        Ok(row!["",
            "cluster_id": meta.as_ref().and_then(|meta| meta.cluster_id.clone()),
            "node_id": meta.as_ref().and_then(|meta| meta.node_id),
            "directory_id": meta.and_then(|meta| meta.directory_id).map(|id| id.to_string()),
            "clean_shutdown": self.is_clean,
            "broker_epoch": marker.and_then(|bytes| CleanShutdown::decode(&bytes).broker_epoch),
        ])
    }

    /// A name in the log dir; a row if it is a partition.
    fn entry(&mut self, entry: &Entry) -> Result<Option<Partition>, InspectError> {
        let path = self.dir.join(&entry.name);
        if !entry.is_dir {
            if !is_known_file(&entry.name) {
                self.note(&path, "not one of Kafka's files; a broker ignores it");
            }
            return Ok(None);
        }
        let (kind, partition) = match LogDirEntry::parse(&entry.name) {
            LogDirEntry::Partition(partition) => ("live", partition),
            LogDirEntry::Deleted(partition) => ("deleted", partition),
            LogDirEntry::Future(partition) => ("future", partition),
            LogDirEntry::Stray(partition) => ("stray", partition),
            LogDirEntry::ClusterMetadata => ("metadata", TopicPartition::new(names::CLUSTER_METADATA_TOPIC, 0)),
            LogDirEntry::RemoteLogIndexCache => return Ok(None),
            LogDirEntry::Foreign => {
                self.fault(&path, "not one of Kafka's directories: a broker refuses to start on it");
                return Ok(None);
            }
        };
        if kind == "stray" {
            self.note(&path, "stray: unknown to the metadata, kept and not served");
        }
        match self.partition(&path, kind, &entry.name, partition) {
            Ok(row) => Ok(Some(row)),
            // Topics may be deleted while we look.
            Err(_) if !path.exists() => Ok(None),
            Err(error @ InspectError::Output(_)) => Err(error),
            Err(error) => {
                self.fault(&path, chain(&error));
                Ok(None)
            }
        }
    }

    fn partition(
        &mut self,
        dir: &Path,
        kind: &'static str,
        name: &str,
        partition: TopicPartition,
    ) -> Result<Partition, InspectError> {
        let files = self.segment_files(dir)?;
        let logs = &files[&SegmentFileKind::Log];
        let first_base = logs.keys().next().copied();
        let bytes = logs.values().sum();
        let end = match logs.last_key_value() {
            Some((base, len)) => self.log_end(dir, *base, *len)?,
            None => LogEnd::default(),
        };
        let is_live = kind == "live";
        let log_end = end.next_offset;
        let log_start = self.log_starts.get(&partition).copied().filter(|_| is_live).or(first_base);
        let row = Partition {
            directory: name.to_owned(),
            kind,
            topic_id: self.topic_id(dir, kind, bytes == 0)?,
            segments: logs.len(),
            log_start,
            log_end,
            last_epoch: self.last_epoch(dir, &end)?,
            bytes,
            high_watermark: self.high_watermarks.get(&partition).copied().filter(|_| is_live),
            recovery_point: self.recovery_points.get(&partition).copied().filter(|_| is_live),
            partition,
        };
        for (what, offset) in [
            ("the log start, by its checkpoint,", row.log_start),
            ("the high watermark", row.high_watermark),
            ("the recovery point", row.recovery_point),
        ] {
            if offset > log_end && log_end.is_some() {
                let offset = offset.unwrap_or_default();
                self.fault(dir, format!("{what} is {offset}, beyond the log's end {}", log_end.unwrap_or_default()));
            }
        }
        if kind == "metadata" {
            self.check_snapshots(dir, first_base)?;
        }
        Ok(row)
    }

    /// The live files of a partition's segments: base offsets and bytes, by kind. All kinds are there.
    fn segment_files(&mut self, dir: &Path) -> Result<BTreeMap<SegmentFileKind, BTreeMap<i64, u64>>, InspectError> {
        let mut files: BTreeMap<_, BTreeMap<_, _>> =
            SegmentFileKind::ALL.into_iter().map(|kind| (kind, BTreeMap::new())).collect();
        let mut leftovers = 0;
        for entry in entries(dir)? {
            match SegmentFile::parse(&entry.name) {
                Some(file) if file.state == SegmentFileState::Live => {
                    files.entry(file.kind).or_default().insert(file.base_offset, entry.len);
                }
                Some(_) => leftovers += 1,
                None if segment_kind(&entry.name).is_some() => {
                    let what = "its name is no offset of 20 digits: a broker fails to load the partition";
                    self.fault(&dir.join(&entry.name), what);
                }
                None => {}
            }
        }
        if leftovers > 0 {
            self.note(
                dir,
                format!("{leftovers} files that a broker is about to remove or to swap in (.deleted, .cleaned, .swap)"),
            );
        }
        if files[&SegmentFileKind::Log].is_empty() {
            self.note(dir, "no segment");
        }
        for kind in [SegmentFileKind::OffsetIndex, SegmentFileKind::TimeIndex] {
            let missing = files[&SegmentFileKind::Log]
                .iter()
                .filter(|(base, len)| **len > 0 && !files[&kind].contains_key(base))
                .count();
            if missing > 0 {
                self.note(
                    dir,
                    format!("{missing} segments have no .{}: a broker builds it at its start", kind.extension()),
                );
            }
        }
        Ok(files)
    }

    fn topic_id(&mut self, dir: &Path, kind: &str, is_empty: bool) -> Result<Option<Uuid>, InspectError> {
        let path = dir.join(names::PARTITION_METADATA);
        match read_if_there(&path)?.map(|bytes| PartitionMetadata::decode(&bytes)) {
            Some(Ok(metadata)) => return Ok(Some(metadata.topic_id)),
            Some(Err(error)) => self.fault(&path, chain(&error)),
            // Kafka writes it before the first append at the latest.
            None if kind == "live" && !is_empty => {
                self.fault(&path, "it is missing: a broker takes the partition for a stray and begins an empty one");
            }
            None if kind == "live" => self.note(&path, "it is missing, and the partition is empty"),
            None => {}
        }
        Ok(None)
    }

    fn last_epoch(&mut self, dir: &Path, end: &LogEnd) -> Result<Option<i32>, InspectError> {
        let path = dir.join(names::LEADER_EPOCH_CHECKPOINT);
        let bytes = read_if_there(&path)?.unwrap_or_default();
        let epochs = LeaderEpochs::decode(&bytes).unwrap_or_else(|error| {
            self.fault(&path, format!("{error}; a broker takes the whole log dir offline for this"));
            LeaderEpochs::default()
        });
        let latest = epochs.latest().map(|entry| entry.epoch);
        if let (Some(epoch), false) = (end.epoch, end.epoch <= latest) {
            self.note(&path, format!("it does not know the epoch {epoch} of the last batch"));
        }
        Ok(end.epoch.or(latest))
    }

    /// Where the last segment ends, and whether its index and its tail are in order.
    fn log_end(&mut self, dir: &Path, base: i64, len: u64) -> Result<LogEnd, InspectError> {
        let file = |kind| dir.join(segment_file_name(base, kind));
        let path = file(SegmentFileKind::Log);
        let index = self.last_entry::<OFFSET_ENTRY_LEN>(&file(SegmentFileKind::OffsetIndex))?;
        let index = index.and_then(|raw| decode_offset_index(base, &raw).ok()?.pop());
        self.last_entry::<TIME_ENTRY_LEN>(&file(SegmentFileKind::TimeIndex))?;
        let mut end = LogEnd { next_offset: Some(base), ..LogEnd::default() };
        if len == 0 {
            return Ok(end);
        }
        let mut scan = Scan::open_headers(&path)?;
        if let Some((_, first)) = scan.next_header()?
            && first.base_offset() < base
        {
            let what = format!("its first batch begins at offset {}, before its name says", first.base_offset());
            self.fault(&path, what);
        }
        let entry = index.filter(|entry| scan.len() > entry.position as u64);
        let start = match entry {
            Some(entry) => self.seek(&mut scan, base, &entry)?,
            None => false,
        };
        if !start {
            scan.seek(0);
            if index.is_some() {
                self.fault(
                    &file(SegmentFileKind::OffsetIndex),
                    "its last entry points at no batch: a broker takes the segment for empty and writes behind it with used offsets",
                );
            }
        }
        let mut last = None;
        loop {
            if let Some(found) = scan.next_header()? {
                last = Some(found);
                continue;
            }
            let position = scan.position();
            match scan.damage_here()? {
                Some(damage) => self.findings.push(Finding::fault(&path, damage.what).at(position)),
                None => break,
            }
        }
        if let Some((position, header)) = last {
            self.check_last(&mut scan, position, &header)?;
            end.next_offset = Some(header.next_offset());
            end.epoch = Some(header.leader_epoch());
            if let Some(entry) = index.filter(|entry| start && entry.offset > header.last_offset()) {
                let what = format!(
                    "its last entry is of offset {}, beyond the log's end {}",
                    entry.offset,
                    header.next_offset()
                );
                self.fault(&file(SegmentFileKind::OffsetIndex), what);
            }
        }
        Ok(end)
    }

    /// Goes to the batch that an index entry points at; says whether there is one.
    fn seek(&self, scan: &mut Scan, base: i64, entry: &OffsetEntry) -> Result<bool, InspectError> {
        let position = entry.position as u64;
        scan.seek(position);
        let found = scan.next_header()?;
        scan.seek(position);
        Ok(found.is_some_and(|(_, header)| (base..=entry.offset).contains(&header.base_offset())))
    }

    fn check_last(&mut self, scan: &mut Scan, position: u64, header: &BatchHeader) -> Result<(), InspectError> {
        let path = scan.path().to_owned();
        if let Some(Err(error)) = scan.check_crc(position, header)? {
            self.findings.push(Finding::fault(&path, chain(&error)).at(position).offset(header.base_offset()));
        }
        Ok(())
    }

    /// The last entry of an index that is not zero. Zeros behind it are normal only while a broker runs, or after it
    /// was killed.
    fn last_entry<const N: usize>(&mut self, path: &Path) -> Result<Option<[u8; N]>, InspectError> {
        let Some((file, len)) = if_there(open(path))? else {
            return Ok(None);
        };
        let entry_at = |entry: u64| {
            let mut raw = [0; N];
            let read = file.read_exact_at(&mut raw, entry * N as u64);
            read.map(|()| raw).map_err(|source| read_error(path, source))
        };
        // Entries that are written stand before those that are not.
        let (mut written, mut zero) = (0, len / N as u64);
        let total = zero;
        while written < zero {
            let middle = written + (zero - written) / 2;
            if entry_at(middle)? == [0; N] { zero = middle } else { written = middle + 1 }
        }
        // A lone zero entry of a time index is one, too: a record of 1970.
        if written < total && !(total == 1 && N == TIME_ENTRY_LEN) {
            let what = format!("{} zero bytes follow its last entry", (total - written) * N as u64);
            if self.is_clean {
                self.fault(
                    path,
                    format!("{what}, and the broker is said to have stopped cleanly: it would trust them"),
                );
            } else {
                self.preallocated += 1;
            }
        }
        written.checked_sub(1).map(entry_at).transpose()
    }

    /// The metadata log needs a snapshot of what is before it.
    fn check_snapshots(&mut self, dir: &Path, first_base: Option<i64>) -> Result<(), InspectError> {
        let snapshots = entries(dir)?;
        let newest = snapshots.iter().filter_map(|entry| CheckpointName::parse(&entry.name)).max();
        let begins = first_base.unwrap_or(0);
        if begins > 0 && newest.is_none_or(|newest| newest.end_offset < begins) {
            self.fault(dir, format!("the metadata log begins at offset {begins}, and no snapshot reaches it"));
        }
        Ok(())
    }

    /// What can be said only of all partitions together.
    fn check_all(&mut self, rows: &[Partition]) {
        let mut ids: BTreeMap<&str, (Uuid, &str)> = BTreeMap::new();
        let mut seen: BTreeMap<(&str, &TopicPartition), &str> = BTreeMap::new();
        for row in rows.iter().filter(|row| matches!(row.kind, "live" | "future")) {
            let path = self.dir.join(&row.directory);
            if let Some(other) = seen.insert((row.kind, &row.partition), &row.directory) {
                self.fault(&path, format!("the same partition as {other}: a broker refuses to start on both"));
            }
            let Some(id) = row.topic_id else {
                continue;
            };
            match ids.get(row.partition.topic.as_str()) {
                Some((other, of)) if *other != id => {
                    self.fault(&path, format!("topic id {id}, while {of} has {other}"));
                }
                _ => {
                    ids.insert(&row.partition.topic, (id, &row.directory));
                }
            }
        }
        if self.preallocated > 0 {
            let what =
                format!("{} indexes are preallocated, as of a broker that runs or was killed", self.preallocated);
            self.note(self.dir, what);
        }
    }
}

/// Where a log ends.
#[derive(Clone, Copy, Debug, Default)]
struct LogEnd {
    /// The offset after its last batch; `None` without any segment.
    next_offset: Option<i64>,
    /// That batch's epoch.
    epoch: Option<i32>,
}

fn is_known_file(name: &str) -> bool {
    let name = name.strip_suffix(".tmp").unwrap_or(name);
    super::checkpoint::is_checkpoint(name) || matches!(name, names::LOCK | names::BOOTSTRAP_CHECKPOINT)
}

/// A partition's directory.
#[derive(Debug)]
struct Partition {
    directory: String,
    /// `live`, `future`, `deleted`, `stray` or `metadata`.
    kind: &'static str,
    partition: TopicPartition,
    topic_id: Option<Uuid>,
    segments: usize,
    log_start: Option<i64>,
    log_end: Option<i64>,
    last_epoch: Option<i32>,
    /// Of the `.log` files, as `kafka-log-dirs.sh` counts.
    bytes: u64,
    high_watermark: Option<i64>,
    recovery_point: Option<i64>,
}

impl Partition {
    fn row(&self) -> Row {
        row!["",
            "directory": self.directory.clone(),
            "kind": self.kind,
            "topic": self.partition.topic.clone(),
            "partition": self.partition.partition,
            "topic_id": self.topic_id.map(|id| id.to_string()),
            "segments": self.segments,
            "log_start": self.log_start,
            "log_end": self.log_end,
            "last_epoch": self.last_epoch,
            "bytes": self.bytes,
            "high_watermark": self.high_watermark,
            "recovery_point": self.recovery_point,
        ]
    }
}
