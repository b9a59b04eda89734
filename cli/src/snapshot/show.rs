//! `segvault snapshot show`.

use std::fmt;

use anyhow::Result;
use segvault_kafka_log::ids::Uuid;
use segvault_vault::Vault;
use segvault_vault_format::ids::PointId;
use segvault_vault_format::manifest::{PartitionEntry, PointManifest, StreamRef, Totals};
use serde::Serialize;

use crate::args::ShowArgs;
use crate::output::{self, Ending};
use crate::vault;

/// Manifests of streams that are in memory at the same time.
const MANIFESTS_AT_ONCE: usize = 256;

/// What `snapshot show` and `snapshot create` print of a point.
#[derive(Serialize)]
pub struct PointReport {
    /// CLUSTER_ID/NUMBER.
    id: String,
    cluster_id: String,
    number: u64,
    /// `complete` or `degraded`.
    state: &'static str,
    /// `L0` to `L3`.
    level: String,
    closed_only: bool,
    began_ms: i64,
    finished_ms: i64,
    /// From phase A to the end of phase C, microseconds.
    barrier_us: u64,
    /// First metadata offset that is not in the point.
    metadata_end_offset: i64,
    nodes: Vec<i32>,
    topics: usize,
    /// Raw bytes of one replica of everything.
    bytes: u64,
    abort_markers: usize,
    commit_markers: usize,
    findings: Vec<String>,
    partitions: Vec<PartitionReport>,
    /// `snapshot create` only: bytes read from log dirs, and added to the vault.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_bytes: Option<u64>,
    /// Text only: show partitions that nothing is to be said about, too.
    #[serde(skip)]
    all_partitions: bool,
}

#[derive(Serialize)]
struct PartitionReport {
    topic: String,
    partition: i32,
    topic_id: String,
    /// Node whose replica is in the vault; absent where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_node: Option<i32>,
    log_start_offset: i64,
    /// The cut: first offset that is not in the point.
    end_offset: i64,
    /// Offsets between the cut and the source's log end when it was pinned.
    trimmed_offsets: i64,
    /// How long before the source's log end the cut lies, milliseconds, at most; see [`behind_ms_max`].
    #[serde(skip_serializing_if = "Option::is_none")]
    behind_ms_max: Option<u64>,
    /// Newest timestamp of a record in the point, milliseconds; with `--partitions` only, and where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    newest_ms: Option<i64>,
    /// How old that record was when the point began, milliseconds, by the clock of whoever gave it its timestamp; below
    /// 0 if it came later, or from a clock that is ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    newest_age_ms: Option<i64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    trimmed: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uncovered: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// The level of points in which whatever was trimmed came after the mark.
const LEVEL_MAX: u32 = 3;

/// How long before the source's log end, as it was pinned, a partition's cut lies: milliseconds, at most. `None` where
/// the point cannot tell.
///
/// The cut is the log end, unless something was trimmed: that was appended after the mark and before the end of phase C,
/// so within the barrier. With closed segments only nobody has looked how far the active one reaches. Below L3 it may
/// have been older (transactions that could not be told apart).
fn behind_ms_max(point: &PointManifest, entry: &PartitionEntry) -> Option<u64> {
    let is_known = entry.stream.is_some() && !point.closed_only;
    match entry.pinned_end_offset.saturating_sub(entry.end_offset) {
        0 if is_known => Some(0),
        _ if is_known && point.level >= LEVEL_MAX => Some(point.barrier_us.div_ceil(1000)),
        _ => None,
    }
}

impl PartitionReport {
    fn new(point: &PointManifest, entry: &PartitionEntry) -> Self {
        let topic_id = entry.topic_id.as_slice().try_into().map(Uuid).unwrap_or(Uuid::ZERO);
        Self {
            topic: entry.topic.clone(),
            partition: entry.partition,
            topic_id: topic_id.to_string(),
            source_node: entry.stream.is_some().then_some(entry.source_node),
            log_start_offset: entry.log_start_offset,
            end_offset: entry.end_offset,
            trimmed_offsets: entry.pinned_end_offset.saturating_sub(entry.end_offset),
            behind_ms_max: behind_ms_max(point, entry),
            newest_ms: None,
            newest_age_ms: None,
            trimmed: entry.trimmed.clone(),
            uncovered: entry.uncovered.clone(),
            bytes: entry.bytes,
            notes: entry.notes.clone(),
        }
    }

    fn set_newest(&mut self, newest_ms: Option<i64>, began_ms: i64) {
        self.newest_ms = newest_ms.filter(|newest| *newest >= 0);
        self.newest_age_ms = self.newest_ms.map(|newest| began_ms.saturating_sub(newest));
    }

    /// For people: offsets, and how long that is at most.
    fn behind(&self) -> String {
        match (self.trimmed_offsets, self.behind_ms_max) {
            (0, Some(_)) => "0".to_owned(),
            (0, None) => "-".to_owned(),
            (offsets, Some(ms)) => format!("{offsets} (< {})", output::duration(ms as i64)),
            (offsets, None) => offsets.to_string(),
        }
    }

    fn is_plain(&self) -> bool {
        self.trimmed.is_empty() && self.uncovered.is_empty() && self.notes.is_empty()
    }

    fn remark(&self) -> String {
        let mut remarks = Vec::new();
        if !self.uncovered.is_empty() {
            remarks.push(format!("NOT COVERED: {}", self.uncovered));
        }
        if !self.trimmed.is_empty() {
            remarks.push(format!("{} trimmed: {}", output::count(self.trimmed_offsets, "offset"), self.trimmed));
        }
        remarks.extend(self.notes.iter().cloned());
        remarks.join("; ")
    }
}

impl PointReport {
    /// The report of a committed point.
    pub fn new(id: &PointId, manifest: &PointManifest, all_partitions: bool) -> Self {
        let mut topics: Vec<_> = manifest.partitions.iter().map(|entry| &entry.topic).collect();
        topics.dedup();
        Self {
            id: id.to_string(),
            cluster_id: id.cluster_id.clone(),
            number: id.number,
            state: if manifest.degraded { "degraded" } else { "complete" },
            level: format!("L{}", manifest.level),
            closed_only: manifest.closed_only,
            began_ms: manifest.began_ms,
            finished_ms: manifest.finished_ms,
            barrier_us: manifest.barrier_us,
            metadata_end_offset: manifest.metadata.as_ref().map_or(0, |metadata| metadata.end_offset),
            nodes: manifest.nodes.iter().map(|node| node.node_id).collect(),
            topics: topics.len(),
            bytes: manifest.partitions.iter().map(|entry| entry.bytes).sum(),
            abort_markers: manifest.abort_markers.len(),
            commit_markers: manifest.commit_markers.len(),
            findings: manifest.findings.clone(),
            partitions: manifest.partitions.iter().map(|entry| PartitionReport::new(manifest, entry)).collect(),
            read_bytes: None,
            stored_bytes: None,
            all_partitions,
        }
    }

    /// The same, with the newest record of each partition: their manifests are read for it.
    fn with_newest(mut self, vault: &Vault, manifest: &PointManifest) -> Result<Self> {
        let covered: Vec<(usize, StreamRef)> = manifest
            .partitions
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| Some((index, entry.stream.clone()?)))
            .collect();
        for some in covered.chunks(MANIFESTS_AT_ONCE) {
            let streams: Vec<StreamRef> = some.iter().map(|(_, stream)| stream.clone()).collect();
            for ((index, _), loaded) in some.iter().zip(vault.wait(vault.load_streams(&streams))?) {
                let newest = loaded.stream.chunks.iter().map(|chunk| chunk.max_timestamp).max();
                self.partitions[*index].set_newest(newest, self.began_ms);
            }
        }
        Ok(self)
    }

    /// The same, with what taking it cost.
    pub fn with_totals(mut self, totals: &Totals) -> Self {
        self.read_bytes = Some(totals.read_bytes);
        self.stored_bytes = Some(totals.stored_bytes);
        self
    }
}

impl fmt::Display for PointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "restore point {}: {} at level {}", self.id, self.state, self.level)?;
        writeln!(f, "  began {}, finished {}", output::time(self.began_ms), output::time(self.finished_ms))?;
        writeln!(f, "  barrier {:.1} ms over nodes {:?}", self.barrier_us as f64 / 1000.0, self.nodes)?;
        writeln!(
            f,
            "  {}, {}, {} (one replica), metadata to offset {}",
            output::count(self.topics, "topic"),
            output::count(self.partitions.len(), "partition"),
            output::bytes(self.bytes),
            self.metadata_end_offset
        )?;
        if let (Some(read), Some(stored)) = (self.read_bytes, self.stored_bytes) {
            writeln!(f, "  read {}, stored {}", output::bytes(read), output::bytes(stored))?;
        }
        for (count, marker) in [(self.abort_markers, "an ABORT"), (self.commit_markers, "a COMMIT")] {
            if count > 0 {
                writeln!(f, "  {count} open transactions get {marker} marker at restore")?;
            }
        }
        for finding in &self.findings {
            writeln!(f, "  ! {finding}")?;
        }
        let titles = ["PARTITION", "START", "END", "BEHIND", "NEWEST", "AGE", "SIZE", "SOURCE", ""];
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        // How fresh they are is known only where all partitions are shown.
        let freshness = 3..6;
        for partition in self.partitions.iter().filter(|partition| self.all_partitions || !partition.is_plain()) {
            rows.push(vec![
                format!("{}-{}", partition.topic, partition.partition),
                partition.log_start_offset.to_string(),
                partition.end_offset.to_string(),
                partition.behind(),
                partition.newest_ms.map_or("-".to_owned(), output::time),
                partition.newest_age_ms.map_or("-".to_owned(), output::duration),
                output::bytes(partition.bytes),
                partition.source_node.map_or("-".to_owned(), |node| node.to_string()),
                partition.remark(),
            ]);
        }
        if !self.all_partitions {
            rows.iter_mut().for_each(|row| drop(row.drain(freshness.clone())));
        }
        if rows.len() > 1 { f.write_str(&output::table(&rows)) } else { Ok(()) }
    }
}

/// `segvault snapshot show`.
pub fn show(args: &ShowArgs, json: bool) -> Result<Ending> {
    let runtime = vault::runtime()?;
    let (vault, id, manifest) = vault::open_point(&args.point, &runtime)?;
    let degraded = manifest.degraded;
    let mut report = PointReport::new(&id, &manifest, args.partitions);
    if args.partitions {
        report = report.with_newest(&vault, &manifest)?;
    }
    output::print(&report, json)?;
    Ok(Ending::with_findings(degraded))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN_MS: i64 = 1_790_000_000_000;

    fn point(level: u32, closed_only: bool) -> PointManifest {
        PointManifest { level, closed_only, began_ms: BEGAN_MS, barrier_us: 462_400, ..PointManifest::default() }
    }

    fn entry(stream: Option<StreamRef>, end_offset: i64, pinned_end_offset: i64) -> PartitionEntry {
        PartitionEntry { topic: "t".into(), stream, end_offset, pinned_end_offset, ..PartitionEntry::default() }
    }

    #[test]
    fn a_cut_is_behind_by_what_was_trimmed_and_by_no_more_than_the_barrier() {
        let stored = || Some(StreamRef::default());
        let cases = [
            ("the log end", point(3, false), entry(stored(), 100, 100), Some(0), "0"),
            ("trimmed", point(3, false), entry(stored(), 60, 100), Some(463), "40 (< 463 ms)"),
            ("the log end of a degraded point", point(2, false), entry(stored(), 100, 100), Some(0), "0"),
            ("trimmed by guess", point(2, false), entry(stored(), 60, 100), None, "40"),
            ("closed segments only", point(2, true), entry(stored(), 100, 100), None, "-"),
            ("no log", point(3, false), entry(None, 0, 0), None, "-"),
        ];
        for (what, point, entry, ms_max, shown) in cases {
            let report = PartitionReport::new(&point, &entry);
            assert_eq!((report.behind_ms_max, &report.behind()[..]), (ms_max, shown), "{what}");
        }
    }

    #[test]
    fn the_newest_record_is_so_old_when_the_point_begins() {
        let (point, entry) = (point(3, false), entry(Some(StreamRef::default()), 100, 100));
        for (newest_ms, expected) in [
            (Some(BEGAN_MS - 1500), Some(1500)),
            // Written while the barrier was up, or by a clock that is ahead.
            (Some(BEGAN_MS + 20), Some(-20)),
            (Some(-1), None),
            (None, None),
        ] {
            let mut report = PartitionReport::new(&point, &entry);
            report.set_newest(newest_ms, BEGAN_MS);
            assert_eq!(report.newest_age_ms, expected, "{newest_ms:?}");
        }
    }

    #[test]
    fn freshness_is_shown_where_all_partitions_are() {
        let mut manifest = point(3, false);
        let trimmed = PartitionEntry { trimmed: "why".into(), ..entry(Some(StreamRef::default()), 60, 100) };
        manifest.partitions = vec![trimmed];
        let id = PointId { cluster_id: "c".into(), number: 1 };
        let mut all = PointReport::new(&id, &manifest, true);
        all.partitions[0].set_newest(Some(BEGAN_MS - 1500), BEGAN_MS);
        let all = all.to_string();
        assert!(all.contains("END  BEHIND         NEWEST                AGE    SIZE"), "{all}");
        assert!(all.contains("60   40 (< 463 ms)  2026-09-21T14:13:18Z  1.5 s  0 B"), "{all}");
        let some = PointReport::new(&id, &manifest, false).to_string();
        assert!(some.contains("END  SIZE") && some.contains("40 offsets trimmed: why"), "{some}");
    }
}
