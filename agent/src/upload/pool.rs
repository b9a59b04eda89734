//! The threads of an upload, and what goes on between them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use segvault_kafka_log::ids::Uuid;
use segvault_proto::{Report, StoredMetadata, StoredPartition, UploadOrder};
use segvault_vault::{BlobWriter, VaultError};
use segvault_vault_format::blob::{BlobKind, BlobPlace};
use segvault_vault_format::ids::BlobId;
use segvault_vault_format::manifest::Chunk;

use super::leftover::Leftover;
use super::partition;
use super::previous::Previous;
use super::walk::{Sink, Walked};
use super::{CHECKPOINT, Job, METADATA_TOPIC, Upload, UploadError};
use crate::cache::{Cache, CachedPartition, Released, release};
use crate::journal::Notes;
use crate::pinned::PinnedReplica;

/// How long finished partitions wait for others before they are flushed and reported.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// Carries out all jobs.
pub(super) fn run(
    upload: &Upload<'_>,
    mut jobs: Vec<Job>,
    cache: &mut Cache,
    reply: &(dyn Fn(Report) + Sync),
) -> Result<Vec<PinnedReplica>, UploadError> {
    // The largest is taken first, from the end.
    jobs.sort_by_key(|job| job.replica.segments.iter().map(|segment| segment.len).sum::<u64>());
    let workers = upload.cores.count();
    let (noted, mut notes) = cache.journal().open();
    let mut reporter = Reporter {
        metadata_left: jobs.iter().filter(|job| job.order.topic == METADATA_TOPIC).count(),
        metadata: StoredMetadata::default(),
        reply,
        learned: Vec::new(),
        gappy: Vec::new(),
    };
    let pool = Pool {
        upload,
        cache,
        leftover: Leftover::look(upload.vault, noted, upload.cancelled),
        workers,
        state: Mutex::new(State { jobs, running: workers, ..State::default() }),
        work: Condvar::new(),
        done: Condvar::new(),
        stopped: AtomicBool::new(false),
    };
    let result = thread::scope(|scope| {
        for index in 0..workers {
            thread::Builder::new()
                .name(format!("upload-{index}"))
                .spawn_scoped(scope, || pool.work())
                .expect("the system lets us start a thread");
        }
        let result = pool.report(&mut reporter, &mut notes);
        if result.is_err() {
            pool.stop(None);
        }
        result
    });
    // What was stored since the last round, also where the upload has failed.
    pool.note(&mut notes);
    pool.say_taken_over();
    let result = match upload.cancelled.load(Ordering::Relaxed) {
        true => result.and(Err(UploadError::Cancelled)),
        false => result,
    };
    for learned in reporter.learned {
        cache.learn(learned.topic_id, learned.partition, learned.cached, &learned.released);
    }
    result.map(|()| reporter.gappy)
}

/// What all threads share.
struct Pool<'a> {
    upload: &'a Upload<'a>,
    cache: &'a Cache,
    leftover: Leftover,
    workers: usize,
    state: Mutex<State>,
    /// Something to do for a worker, or nothing any more.
    work: Condvar,
    /// A worker has left.
    done: Condvar,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    /// By rising size.
    jobs: Vec<Job>,
    /// Chunks that no reader had time for; at most one per worker.
    chunks: VecDeque<Task>,
    /// Workers that read a partition, and so may add chunks.
    reading: usize,
    /// Workers that have not left.
    running: usize,
    finished: Vec<Finished>,
    failed: Option<VaultError>,
    /// Chunks that were stored and are not in the journal's hands yet.
    stored: Vec<BlobPlace>,
    /// Chunks of an unfinished upload that stood for storing, and their bytes in packs.
    taken_over: (u64, u64),
}

/// A chunk to hash, and to store if the vault does not have it.
struct Task {
    assembly: Arc<Assembly>,
    index: usize,
    chunk: Chunk,
    packed_len: usize,
    bytes: Vec<u8>,
}

/// A partition whose chunks come back in any order.
struct Assembly {
    previous: Option<Previous>,
    /// The partition cannot be read to its end: its chunks are of no use.
    cancelled: AtomicBool,
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    chunks: Vec<Option<(Chunk, BlobPlace)>>,
    /// Chunks in other hands.
    pending: usize,
    /// What its blobs take in packs.
    stored_bytes: u64,
    /// All but the chunks, once all is read.
    draft: Option<Draft>,
}

struct Draft {
    job: Job,
    walked: Walked,
}

/// A partition that is done, and durable after the next flush.
struct Finished {
    job: Job,
    result: Result<(StoredPartition, CachedPartition), Failure>,
    /// Nothing was stored for it.
    durable: bool,
}

/// Why a replica cannot be the source.
struct Failure {
    reason: String,
    has_gap: bool,
}

/// What is left to do for a worker.
enum Next {
    Read(Job),
    Store(Task),
}

impl Pool<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }

    fn work(&self) {
        let _leaving = Leaving(self);
        let mut writer = self.upload.uploader.writer();
        while let Some(next) = self.next() {
            let _core = self.upload.cores.take();
            match next {
                Next::Store(task) => self.store(task, &mut writer),
                Next::Read(job) => {
                    self.read(job, &mut writer);
                    self.lock().reading -= 1;
                    self.work.notify_all();
                }
            }
        }
    }

    /// Waits for something to do; `None` if nothing will come any more.
    fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        loop {
            if self.is_stopped() {
                return None;
            }
            if let Some(task) = state.chunks.pop_front() {
                return Some(Next::Store(task));
            }
            if let Some(job) = state.jobs.pop() {
                state.reading += 1;
                return Some(Next::Read(job));
            }
            if state.reading == 0 {
                return None;
            }
            state = self.work.wait(state).expect("no thread panics while it holds the state");
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.upload.cancelled.load(Ordering::Relaxed)
    }

    /// Makes all workers leave.
    fn stop(&self, error: Option<VaultError>) {
        let mut state = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        if state.failed.is_none() {
            state.failed = error;
        }
        self.work.notify_all();
    }

    /// Reads a partition; its chunks are stored by this thread or by others.
    fn read(&self, job: Job, writer: &mut BlobWriter) {
        let Job { order, replica } = &job;
        let cached = self.cache.partition(order.topic_id, order.partition);
        if let Some(cached) = cached
            && let Some(stored) = partition::unchanged(order, replica, cached)
        {
            let result = Ok((stored, cached.clone()));
            return self.finish(Finished { job, result, durable: true });
        }
        let (previous, note) = self.load_previous(order);
        let assembly = Arc::new(Assembly { previous, cancelled: AtomicBool::new(false), parts: Mutex::default() });
        let mut reader = Reader { pool: self, assembly: &assembly, writer };
        let cached = cached.filter(|cached| cached.is_of(order));
        match partition::read(order, replica, assembly.previous.as_ref(), cached, &mut reader) {
            Ok(mut walked) => {
                walked.history.notes.extend(note);
                let mut parts = assembly.parts();
                parts.draft = Some(Draft { job, walked });
                self.assemble(parts, writer);
            }
            Err(error) => {
                assembly.cancelled.store(true, Ordering::Relaxed);
                let failure = Failure { reason: error.to_string(), has_gap: error.is_gap() };
                self.finish(Finished { job, result: Err(failure), durable: true });
            }
        }
    }

    /// What the last point has of the partition. If that cannot be read, all is stored anew: a point that stands on
    /// its own is worth more than the space.
    fn load_previous(&self, order: &UploadOrder) -> (Option<Previous>, Option<String>) {
        let Some(reference) = &order.previous else { return (None, None) };
        match Previous::load(self.upload.vault, reference, order.topic_id, order.partition) {
            Ok(previous) => (Some(previous), None),
            Err(error) => {
                let (topic, partition) = (&order.topic, order.partition);
                tracing::warn!(topic, partition, error, "last point's manifest is not readable, all is stored anew");
                (None, Some(format!("the last point's manifest is not readable ({error}): all was stored anew")))
            }
        }
    }

    /// Hashes a chunk, and stores it unless the last point has it, or an unfinished upload has left it.
    fn store(&self, task: Task, writer: &mut BlobWriter) {
        let Task { assembly, index, mut chunk, packed_len, bytes } = task;
        if assembly.cancelled.load(Ordering::Relaxed) || self.is_stopped() {
            return;
        }
        let raw = &bytes[..chunk.len as usize];
        let id = BlobId::of(raw);
        let before = writer.written_bytes();
        let known = assembly.previous.as_ref().and_then(|previous| previous.find(chunk.base_offset, &id));
        let place = match known.or_else(|| self.take_over(&id, raw.len())) {
            Some(place) => place,
            None => match writer.store(BlobKind::Chunk, id, raw, packed_len) {
                Ok(place) => {
                    self.lock().stored.push(place);
                    place
                }
                Err(error) => return self.stop(Some(error)),
            },
        };
        self.upload.cores.recycle(bytes);
        chunk.id = id.0.to_vec();
        let mut parts = assembly.parts();
        parts.chunks[index] = Some((chunk, place));
        parts.pending -= 1;
        parts.stored_bytes += writer.written_bytes() - before;
        self.assemble(parts, writer);
    }

    /// Where an unfinished upload has left a chunk.
    fn take_over(&self, id: &BlobId, raw_len: usize) -> Option<BlobPlace> {
        let place = self.leftover.find(id, raw_len)?;
        let (chunks, bytes) = &mut self.lock().taken_over;
        (*chunks, *bytes) = (*chunks + 1, *bytes + place.len() as u64);
        Some(place)
    }

    fn say_taken_over(&self) {
        let (chunks, bytes) = self.lock().taken_over;
        if chunks > 0 {
            tracing::info!(chunks, bytes, "taken over from an unfinished upload");
        }
    }

    /// Puts down what would be left should the upload break off. Whatever is not durable yet waits for the next time.
    fn note(&self, notes: &mut Notes) {
        let stored = std::mem::take(&mut self.lock().stored);
        notes.note(stored, |pack| self.upload.uploader.is_durable(pack));
    }

    /// Writes the partition's manifests if all is there.
    fn assemble(&self, mut parts: MutexGuard<'_, Parts>, writer: &mut BlobWriter) {
        if parts.pending > 0 {
            return;
        }
        let Some(Draft { job, mut walked }) = parts.draft.take() else { return };
        let (chunks, chunk_bytes) = (std::mem::take(&mut parts.chunks), parts.stored_bytes);
        drop(parts);
        let (chunks, places): (Vec<_>, Vec<_>) = chunks.into_iter().flatten().unzip();
        let Job { order, replica } = &job;
        let stream = partition::manifest(self.upload.cluster_id, order, replica, &mut walked, chunks);
        if let Err(error) = stream.check() {
            let failure = Failure { reason: error.to_string(), has_gap: false };
            return self.finish(Finished { job, result: Err(failure), durable: true });
        }
        let before = writer.written_bytes();
        let reference = match writer.store_stream(&stream, &places, order.previous.as_ref()) {
            Ok(reference) => reference,
            Err(error) => return self.stop(Some(error)),
        };
        let cached = self.cache.partition(order.topic_id, order.partition).filter(|cached| cached.is_of(order));
        let learned = partition::remember(order, replica, &stream, &reference, &walked, cached);
        let notes = walked.history.notes;
        let stored_bytes = chunk_bytes + writer.written_bytes() - before;
        let stored = partition::stored(order, reference, &learned, [walked.read_bytes, stored_bytes], notes);
        self.finish(Finished { job, result: Ok((stored, learned)), durable: false });
    }

    fn finish(&self, finished: Finished) {
        self.lock().finished.push(finished);
    }

    /// Makes finished partitions durable and reports them, until all workers have left. Puts down in the journal what has
    /// become durable meanwhile.
    fn report(&self, reporter: &mut Reporter<'_>, notes: &mut Notes) -> Result<(), UploadError> {
        loop {
            let (finished, last) = self.wait_finished()?;
            if finished.iter().any(|finished| !finished.durable) {
                self.upload.uploader.flush()?;
            }
            for finished in finished {
                reporter.settle(finished);
            }
            if last {
                return Ok(());
            }
            self.note(notes);
        }
    }

    /// What has finished by the next flush; true if that is all.
    fn wait_finished(&self) -> Result<(Vec<Finished>, bool), VaultError> {
        let flush_at = Instant::now() + FLUSH_EVERY;
        let mut state = self.lock();
        loop {
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            let left = flush_at.saturating_duration_since(Instant::now());
            if state.running == 0 || left.is_zero() {
                return Ok((std::mem::take(&mut state.finished), state.running == 0));
            }
            state = self.done.wait_timeout(state, left).expect("no thread panics while it holds the state").0;
        }
    }
}

impl Assembly {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().expect("no thread panics while it holds the parts")
    }
}

/// A worker counts as running until it is dropped, also by a panic: nobody may wait for it then.
struct Leaving<'a, 'b>(&'a Pool<'b>);

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop(None);
        }
        self.0.lock().running -= 1;
        self.0.done.notify_all();
    }
}

/// Sends what is read on.
struct Reader<'a, 'b> {
    pool: &'a Pool<'b>,
    assembly: &'a Arc<Assembly>,
    writer: &'a mut BlobWriter,
}

impl Sink for Reader<'_, '_> {
    fn put(&mut self, chunk: Chunk, packed_len: usize, bytes: Vec<u8>) {
        let index = {
            let mut parts = self.assembly.parts();
            parts.chunks.push(None);
            parts.pending += 1;
            parts.chunks.len() - 1
        };
        let task = Task { assembly: self.assembly.clone(), index, chunk, packed_len, bytes };
        let mut state = self.pool.lock();
        if state.jobs.is_empty() && self.pool.workers > 1 && state.chunks.len() < self.pool.workers {
            state.chunks.push_back(task);
            self.pool.work.notify_one();
            return;
        }
        drop(state);
        self.pool.store(task, self.writer);
    }

    fn take(&mut self, index: usize) {
        let previous = self.assembly.previous.as_ref().expect("what is taken over comes from there");
        let known = (previous.chunks()[index].clone(), previous.places[index]);
        self.assembly.parts().chunks.push(Some(known));
    }

    fn buffer(&mut self) -> Vec<u8> {
        self.pool.upload.cores.buffer()
    }

    fn is_stopped(&self) -> bool {
        self.pool.is_stopped()
    }
}

/// What the cache will learn.
struct Learned {
    topic_id: Uuid,
    partition: i32,
    cached: CachedPartition,
    released: Vec<Released>,
}

/// Lets go of what is durable, and says so.
struct Reporter<'a> {
    /// Metadata streams that are not settled yet.
    metadata_left: usize,
    metadata: StoredMetadata,
    reply: &'a (dyn Fn(Report) + Sync),
    learned: Vec<Learned>,
    /// Replicas that lack offsets.
    gappy: Vec<PinnedReplica>,
}

impl Reporter<'_> {
    fn settle(&mut self, finished: Finished) {
        let Finished { job: Job { order, replica }, result, .. } = finished;
        let (topic, partition) = (order.topic, order.partition);
        match result {
            Err(Failure { reason, has_gap }) => {
                self.gappy.extend(has_gap.then_some(replica));
                (self.reply)(Report::NotStored { topic, partition, reason, has_gap });
            }
            Ok((stored, _)) if topic == METADATA_TOPIC => self.settle_metadata(stored),
            Ok((stored, cached)) => {
                self.learned.push(learn(replica, cached));
                (self.reply)(Report::Stored(stored));
            }
        }
    }

    /// Checkpoint and log are reported as one.
    fn settle_metadata(&mut self, stored: StoredPartition) {
        let stream = match stored.partition {
            CHECKPOINT => &mut self.metadata.checkpoint,
            _ => &mut self.metadata.log,
        };
        *stream = Some(stored.stream);
        self.metadata.read_bytes += stored.read_bytes;
        self.metadata.stored_bytes += stored.stored_bytes;
        self.metadata_left -= 1;
        if self.metadata_left == 0 {
            (self.reply)(Report::MetadataStored(std::mem::take(&mut self.metadata)));
        }
    }
}

/// Lets go of the pins; then the files are what they will be at the next point.
fn learn(replica: PinnedReplica, mut cached: CachedPartition) -> Learned {
    let (topic_id, partition) = (replica.topic_id, replica.partition);
    let released = release(replica);
    for segment in &mut cached.segments {
        let at = released.binary_search_by_key(&segment.base_offset, |released| released.base_offset);
        segment.identity = at.ok().and_then(|at| released[at].now);
    }
    Learned { topic_id, partition, cached, released }
}
