//! Carries a plan out: workers fetch and write partitions, one thread puts them on disk, then the nodes are finished.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use segvault_alignment::restore::{Finding, NodePlan, PartitionPlan, RestorePlan, Torn, TransactionIds, expired_bytes};
use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::checkpoint::encode_offsets;
use segvault_kafka_log::clean_shutdown::CleanShutdown;
use segvault_kafka_log::names::{
    CLEAN_SHUTDOWN, CLUSTER_METADATA_DIR, HIGH_WATERMARK_CHECKPOINT, LOG_START_CHECKPOINT, LogDirEntry,
    PARTITION_METADATA, RECOVERY_POINT_CHECKPOINT,
};
use segvault_kafka_log::partition_metadata::PartitionMetadata;
use segvault_vault::{Vault, VaultLocation};
use segvault_vault_format::manifest::Stream;

use super::files::{FileSystem, Owner, allocated, create_dir, remove_dir_all, sync, write_file};
use super::partition::{PartitionWriter, Written};
use super::segment::{ReplicaDir, put_everywhere};
use super::target::{Origin, Target, free_space};
use super::transactions;
use super::verify::{is_complete, log_facts, partitions_in, verify};
use super::{OnProgress, RestoreError, RestoreOptions, RestoreProgress, RestoreReport, now_ms};

/// Partitions at the same time. Each holds up to 20 MiB (requests under way to a store far away, one chunk).
const WORKERS_MAX: usize = 4;

/// More workers, for small partitions in a store far away, which take the time of a round trip or two each.
const SMALL_WORKERS: usize = 12;

/// Raw bytes of a small partition; that is what its worker holds at most, three times.
const SMALL_BYTES_MAX: u64 = 512 << 10;

/// The level of points whose transactions are whole or absent, every one.
const LEVEL_WHOLE: u32 = 3;

/// How long finished partitions wait for company before they are put on disk together.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run(
    plan: &RestorePlan,
    vault: &Vault,
    origin: &Origin,
    options: &RestoreOptions,
    progress: &OnProgress<'_>,
) -> Result<RestoreReport, RestoreError> {
    let began = Instant::now();
    let inspect = |node| Target::inspect(plan, node, origin);
    let targets: Vec<Target> = plan.nodes.iter().map(inspect).collect::<Result<_, _>>()?;
    check_space(plan, &targets)?;
    if options.dry_run {
        return Ok(RestoreReport { findings: plan.findings.clone(), ..RestoreReport::default() });
    }
    for (node, target) in plan.nodes.iter().zip(&targets) {
        target.begin(plan, node, origin)?;
    }
    for node in 0..plan.nodes.len() {
        remove_foreign(plan, node)?;
    }
    let dirs = plan.nodes.iter().flat_map(|node| &node.log_dirs).map(|dir| Path::new(&dir.path));
    let restore = Restore {
        plan,
        vault,
        progress,
        refuses_torn: plan.level >= LEVEL_WHOLE && !options.accept_torn,
        systems: FileSystem::of(dirs)?,
        resumed: targets.iter().map(|target| target.resumed).collect(),
        counts: Counts::default(),
        stop: AtomicBool::new(false),
        error: Mutex::new(None),
        findings: Mutex::new(plan.findings.clone()),
        expired: Mutex::new(BTreeMap::new()),
    };
    restore.write_partitions(options)?;
    for (node, node_plan) in plan.nodes.iter().enumerate() {
        finish_node(plan, node, node_plan)?;
    }
    restore.sync()?;
    for node in 0..plan.nodes.len() {
        let findings = verify(plan, node);
        if !findings.is_empty() {
            return Err(RestoreError::Damaged(findings));
        }
    }
    for (node, target) in plan.nodes.iter().zip(&targets) {
        target.finish(node)?;
    }
    Ok(restore.report(began))
}

/// Refuses to begin where the space would not do.
fn check_space(plan: &RestorePlan, targets: &[Target]) -> Result<(), RestoreError> {
    let mut systems: BTreeMap<u64, (PathBuf, u64, u64)> = BTreeMap::new();
    for partition in &plan.partitions {
        for replica in &partition.replicas {
            let dir = &targets[replica.node].dirs[replica.log_dir].path;
            if is_complete(&partition_dir(dir, partition), partition.topic_id) {
                continue;
            }
            let (dev, free) = free_space(dir)?;
            let (_, needed, _) = systems.entry(dev).or_insert((dir.clone(), 0, free));
            // What an earlier run left half done is removed first.
            let there = allocated(&partition_dir(dir, partition));
            *needed += space(partition).saturating_sub(there);
        }
    }
    for (dir, needed, free) in systems.into_values() {
        if needed > free {
            return Err(RestoreError::NoSpace { dir, needed, free });
        }
    }
    Ok(())
}

/// Bytes that a replica takes, roughly: two indexes with an entry per 4 KiB, and a block for each small file.
fn space(partition: &PartitionPlan) -> u64 {
    partition.bytes + partition.bytes / 128 + (32 << 10)
}

fn name(partition: &PartitionPlan) -> String {
    format!("{}-{}", partition.topic, partition.partition)
}

fn partition_dir(log_dir: &Path, partition: &PartitionPlan) -> PathBuf {
    log_dir.join(name(partition))
}

/// Removes what an interrupted restore left and this one has no use for.
fn remove_foreign(plan: &RestorePlan, node: usize) -> Result<(), RestoreError> {
    for (index, dir) in plan.nodes[node].log_dirs.iter().enumerate() {
        let path = Path::new(&dir.path);
        let wanted = partitions_in(plan, node, index);
        for entry in std::fs::read_dir(path).map_err(RestoreError::io("list", path))? {
            let name = entry.map_err(RestoreError::io("list", path))?.file_name().to_string_lossy().into_owned();
            if let LogDirEntry::Partition(tp) = LogDirEntry::parse(&name)
                && !wanted.contains_key(&tp)
            {
                remove_dir_all(&path.join(name))?;
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Counts {
    partitions: AtomicUsize,
    kept: AtomicUsize,
    bytes: AtomicU64,
    fetched_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// A restore under way, shared by its threads.
struct Restore<'a> {
    plan: &'a RestorePlan,
    vault: &'a Vault,
    progress: &'a OnProgress<'a>,
    /// A transaction that is not whole ends the restore.
    refuses_torn: bool,
    systems: Vec<FileSystem>,
    /// By node: an earlier run may have left complete partitions.
    resumed: Vec<bool>,
    counts: Counts,
    stop: AtomicBool,
    /// The first one.
    error: Mutex<Option<RestoreError>>,
    findings: Mutex<Vec<Finding>>,
    /// Bytes by topic that retention would delete.
    expired: Mutex<BTreeMap<String, u64>>,
}

/// Partitions that nobody has begun with, the largest first, so that none is left over for one worker at the end.
struct Queue<'a>(Mutex<VecDeque<&'a PartitionPlan>>);

impl<'a> Queue<'a> {
    fn new(plan: &'a RestorePlan) -> Self {
        let mut order: Vec<&PartitionPlan> = plan.partitions.iter().collect();
        order.sort_by_key(|partition| std::cmp::Reverse(partition.bytes));
        Self(Mutex::new(order.into()))
    }

    fn largest(&self) -> Option<&'a PartitionPlan> {
        self.0.lock().expect("no thread panicked").pop_front()
    }

    fn small(&self) -> Option<&'a PartitionPlan> {
        let mut queue = self.0.lock().expect("no thread panicked");
        queue.pop_back_if(|partition| partition.bytes <= SMALL_BYTES_MAX)
    }
}

/// A partition whose bytes are written, on its way to the disk.
struct Done<'a> {
    partition: &'a PartitionPlan,
    dirs: Vec<ReplicaDir>,
}

impl<'a> Restore<'a> {
    fn write_partitions(&self, options: &RestoreOptions) -> Result<(), RestoreError> {
        let cpus = thread::available_parallelism().map_or(2, usize::from);
        let workers = options.workers.unwrap_or(cpus.clamp(2, WORKERS_MAX)).max(1);
        let remote = !matches!(self.vault.location(), VaultLocation::File(_));
        let ids = &self.load_transactions(workers)?;
        let (queue, (done, to_sync)) = (Queue::new(self.plan), channel());
        thread::scope(|scope| {
            for _ in 0..workers {
                let (done, queue) = (done.clone(), &queue);
                scope.spawn(move || self.catch(|| self.work(|| queue.largest(), ids, &done)));
            }
            for _ in 0..if remote { SMALL_WORKERS } else { 0 } {
                let (done, queue) = (done.clone(), &queue);
                scope.spawn(move || self.catch(|| self.work(|| queue.small(), ids, &done)));
            }
            drop(done);
            self.catch(|| self.put_on_disk(&to_sync));
        });
        let error = self.error.lock().expect("no thread panicked").take();
        error.map_or(Ok(()), Err)
    }

    /// Runs one thread's part; the first error stops all others.
    fn catch(&self, part: impl FnOnce() -> Result<(), RestoreError>) {
        if let Err(error) = part() {
            let mut first = self.error.lock().expect("no thread panicked");
            first.get_or_insert(error);
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn load_transactions(&self, workers: usize) -> Result<TransactionIds, RestoreError> {
        // A controller alone has none.
        if self.plan.partitions.is_empty() {
            return Ok(TransactionIds::default());
        }
        let log = transactions::load(self.vault, self.plan, workers, &|| self.report_progress())?;
        log.unreadable.into_iter().try_for_each(|(partition, torn)| self.find_torn(partition, vec![torn]))?;
        Ok(log.ids)
    }

    /// Refuses what a point that states L3 may not have; what lesser points have is told.
    fn find_torn(&self, partition: String, torn: Vec<Torn>) -> Result<(), RestoreError> {
        if self.refuses_torn && !torn.is_empty() {
            return Err(RestoreError::Torn { partition, torn });
        }
        let torn = torn.into_iter().map(|torn| Finding::warning(format!("{partition}: {torn}")));
        self.findings.lock().expect("no thread panicked").extend(torn);
        Ok(())
    }

    fn work(
        &self,
        next: impl Fn() -> Option<&'a PartitionPlan>,
        ids: &TransactionIds,
        done: &Sender<Done<'a>>,
    ) -> Result<(), RestoreError> {
        while let Some(partition) = next() {
            self.report_progress()?;
            let dirs = self.fresh_dirs(partition)?;
            let kept = partition.replicas.len() - dirs.len();
            self.counts.bytes.fetch_add(kept as u64 * partition.bytes, Ordering::Relaxed);
            if dirs.is_empty() {
                self.counts.kept.fetch_add(1, Ordering::Relaxed);
                self.counts.partitions.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let written = self.write(partition, ids, &dirs)?;
            self.find_torn(name(partition), written.torn)?;
            self.counts.written_bytes.fetch_add(written.bytes * dirs.len() as u64, Ordering::Relaxed);
            let mut findings = self.findings.lock().expect("no thread panicked");
            findings.extend(written.findings);
            drop(findings);
            // Nobody listens any more only if another thread has failed.
            let _ = done.send(Done { partition, dirs });
        }
        Ok(())
    }

    /// Empty directories for the replicas that are not complete yet.
    fn fresh_dirs(&self, partition: &PartitionPlan) -> Result<Vec<ReplicaDir>, RestoreError> {
        let mut dirs = Vec::new();
        for replica in &partition.replicas {
            let log_dir = Path::new(&self.plan.nodes[replica.node].log_dirs[replica.log_dir].path);
            let path = partition_dir(log_dir, partition);
            if self.resumed[replica.node] {
                if is_complete(&path, partition.topic_id) && log_facts(&path, partition).is_ok() {
                    continue;
                }
                remove_dir_all(&path)?;
            }
            let owner = Owner::of(log_dir)?;
            create_dir(&path, owner)?;
            dirs.push(ReplicaDir { path, owner });
        }
        Ok(dirs)
    }

    fn write(
        &self,
        partition: &PartitionPlan,
        ids: &TransactionIds,
        dirs: &[ReplicaDir],
    ) -> Result<Written, RestoreError> {
        let Some(stream) = &partition.stream else {
            let nothing = Stream { end_offset: partition.end_offset, ..Stream::default() };
            return PartitionWriter::new(self.plan, partition, &nothing, dirs.to_vec()).finish(ids);
        };
        let loaded = self.vault.wait(self.vault.load_stream(stream)).map_err(RestoreError::vault(name(partition)))?;
        self.check_stream(partition, &loaded.stream)?;
        let fetched: u64 = loaded.places.iter().map(|place| u64::from(place.stored_len)).sum();
        let mut reader = self.vault.read_chunks(loaded.places);
        let mut writer = PartitionWriter::new(self.plan, partition, &loaded.stream, dirs.to_vec());
        let mut chunk = Vec::new();
        while reader.next(&mut chunk).map_err(RestoreError::vault(name(partition)))? {
            writer.add_chunk(&chunk)?;
            self.counts.bytes.fetch_add((chunk.len() * dirs.len()) as u64, Ordering::Relaxed);
            self.report_progress()?;
        }
        self.counts.fetched_bytes.fetch_add(fetched, Ordering::Relaxed);
        writer.finish(ids)
    }

    /// The stream must be the one that the point means.
    fn check_stream(&self, partition: &PartitionPlan, stream: &Stream) -> Result<(), RestoreError> {
        let found = (&stream.cluster_id, &stream.topic_id[..], &stream.topic, stream.partition, stream.end_offset);
        let expected = (
            &self.plan.cluster_id,
            &partition.topic_id.0[..],
            &partition.topic,
            partition.partition,
            partition.end_offset,
        );
        if found != expected || stream.len_bytes() != partition.bytes {
            let partition = name(partition);
            return Err(RestoreError::Mismatch { partition, why: "its manifest is that of another stream".into() });
        }
        if let Some(retention) = self.plan.retention.get(&partition.topic) {
            let expired = expired_bytes(stream, *retention, now_ms());
            *self.expired.lock().expect("no thread panicked").entry(partition.topic.clone()).or_default() += expired;
        }
        Ok(())
    }

    /// Puts finished partitions on disk, some at a time, and then says in each that it is complete.
    fn put_on_disk(&self, finished: &Receiver<Done<'a>>) -> Result<(), RestoreError> {
        while let Ok(first) = finished.recv() {
            let mut batch = vec![first];
            let until = Instant::now() + SYNC_INTERVAL;
            let left = || until.saturating_duration_since(Instant::now());
            while let Ok(done) = finished.recv_timeout(left()) {
                batch.push(done);
            }
            self.sync()?;
            for Done { partition, dirs } in batch {
                let metadata = PartitionMetadata { topic_id: partition.topic_id }.encode();
                put_everywhere(PARTITION_METADATA, metadata.as_bytes(), &dirs)?;
                self.counts.partitions.fetch_add(1, Ordering::Relaxed);
                self.report_progress()?;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), RestoreError> {
        self.systems.iter().try_for_each(FileSystem::sync)
    }

    fn report_progress(&self) -> Result<(), RestoreError> {
        let progress = RestoreProgress {
            partitions: self.counts.partitions.load(Ordering::Relaxed),
            partitions_total: self.plan.partitions.len(),
            bytes: self.counts.bytes.load(Ordering::Relaxed),
            bytes_total: self.plan.partitions.iter().map(|p| p.bytes * p.replicas.len() as u64).sum(),
        };
        if self.stop.load(Ordering::Relaxed) || (self.progress)(progress).is_break() {
            return Err(RestoreError::Stopped);
        }
        Ok(())
    }

    fn report(self, began: Instant) -> RestoreReport {
        let mut findings = self.findings.into_inner().expect("no thread panicked");
        let expired = self.expired.into_inner().expect("no thread panicked");
        let named = |topic: &str| {
            let prefix = format!("topic {topic}: ");
            findings.iter().any(|finding| finding.what.starts_with(&prefix))
        };
        let expired = expired.into_iter().filter(|(topic, bytes)| *bytes > 0 && !named(topic));
        let expired: Vec<Finding> = expired
            .map(|(topic, bytes)| {
                Finding::warning(format!(
                    "topic {topic}: {bytes} bytes (per replica) are older than its retention.ms: brokers \
                     delete them minutes after they start, unless it is raised"
                ))
            })
            .collect();
        findings.extend(expired);
        RestoreReport {
            partitions: self.plan.partitions.len(),
            kept: self.counts.kept.into_inner(),
            fetched_bytes: self.counts.fetched_bytes.into_inner(),
            written_bytes: self.counts.written_bytes.into_inner(),
            seconds: began.elapsed().as_secs_f64(),
            findings,
            advice: advice(self.plan),
        }
    }
}

/// Writes what lies at the top of the log dirs, and the metadata checkpoint. All of it vouches for the partitions, so
/// their ends are read back first.
fn finish_node(plan: &RestorePlan, node: usize, node_plan: &NodePlan) -> Result<(), RestoreError> {
    for (index, dir) in node_plan.log_dirs.iter().enumerate() {
        let path = Path::new(&dir.path);
        let owner = Owner::of(path)?;
        if node_plan.broker && index < node_plan.data_dirs {
            let mut ends = BTreeMap::new();
            let mut starts = BTreeMap::new();
            for (tp, partition) in partitions_in(plan, node, index) {
                let facts = log_facts(&path.join(tp.to_string()), partition).map_err(RestoreError::Damaged)?;
                if partition.log_start_offset > facts.first_base || partition.tiered {
                    starts.insert(tp.clone(), partition.log_start_offset);
                }
                ends.insert(tp, facts.end_offset);
            }
            let put = |name, offsets: &BTreeMap<TopicPartition, i64>| {
                write_file(&path.join(name), encode_offsets(offsets).as_bytes(), owner)
            };
            put(HIGH_WATERMARK_CHECKPOINT, &ends)?;
            put(RECOVERY_POINT_CHECKPOINT, &ends)?;
            put(LOG_START_CHECKPOINT, &starts)?;
            let marker = CleanShutdown { broker_epoch: node_plan.broker_epoch };
            write_file(&path.join(CLEAN_SHUTDOWN), marker.encode().as_bytes(), owner)?;
        }
        if node_plan.controller && index == node_plan.metadata_log_dir {
            let metadata = path.join(CLUSTER_METADATA_DIR);
            remove_dir_all(&metadata)?;
            create_dir(&metadata, owner)?;
            write_file(&metadata.join(plan.checkpoint.name.to_string()), &plan.checkpoint.bytes, owner)?;
            sync(&metadata)?;
        }
    }
    Ok(())
}

fn advice(plan: &RestorePlan) -> Vec<String> {
    let mut advice = Vec::new();
    if plan.nodes.iter().any(|node| node.controller) {
        advice.push(
            "start no controller before all controllers are restored: two empty ones would found an empty cluster, and \
             every partition would be stray"
                .into(),
        );
    }
    advice.push("keep the old cluster stopped: an old node with the same cluster id could take over".into());
    advice
}
