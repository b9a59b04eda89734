//! What the point's transaction log says at its mark, read from the vault.
//!
//! The transactions of a partition belong to ids anywhere in `__transaction_state`, so all of it is read, on every host:
//! once, by several threads, before anything is written. The topic is compacted: beside one record of each id there are
//! the active segments, up to `transaction.state.log.segment.bytes` (100 MiB) for each of
//! `transaction.state.log.num.partitions` (50). What stays in memory is a few numbers per producer id.

use std::sync::Mutex;
use std::thread;

use segvault_alignment::restore::{RestorePlan, TRANSACTION_TOPIC, Torn, TransactionIds, TransactionLogPart};
use segvault_kafka_log::batch::Batches;
use segvault_kafka_log::transactions::transaction_records;
use segvault_vault::Vault;

use super::RestoreError;

/// What the transaction log says, and which partitions of it cannot be read.
#[derive(Debug, Default)]
pub(super) struct TransactionLog {
    pub ids: TransactionIds,
    /// Partitions by name.
    pub unreadable: Vec<(String, Torn)>,
}

/// Reads it with some threads. `go_on` is asked now and then; its error ends all.
pub(super) fn load(
    vault: &Vault,
    plan: &RestorePlan,
    workers: usize,
    go_on: &(dyn Fn() -> Result<(), RestoreError> + Sync),
) -> Result<TransactionLog, RestoreError> {
    let parts = Mutex::new(plan.transaction_log.iter());
    let work = || {
        let mut log = TransactionLog::default();
        loop {
            let next = parts.lock().expect("no thread panicked").next();
            let Some(part) = next else { return Ok(log) };
            read(vault, plan, part, &mut log, go_on)?;
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.min(plan.transaction_log.len())).map(|_| scope.spawn(work)).collect();
        let mut all = TransactionLog::default();
        for thread in threads {
            let TransactionLog { ids, unreadable } = thread.join().expect("no thread panicked")?;
            all.ids.merge(ids);
            all.unreadable.extend(unreadable);
        }
        Ok(all)
    })
}

fn read(
    vault: &Vault,
    plan: &RestorePlan,
    part: &TransactionLogPart,
    log: &mut TransactionLog,
    go_on: &(dyn Fn() -> Result<(), RestoreError> + Sync),
) -> Result<(), RestoreError> {
    let name = || format!("{TRANSACTION_TOPIC}-{}", part.partition);
    let loaded = vault.wait(vault.load_stream(&part.stream)).map_err(RestoreError::vault(name()))?;
    let stream = &loaded.stream;
    let found = (&stream.cluster_id, &stream.topic[..], stream.partition, stream.end_offset);
    if found != (&plan.cluster_id, TRANSACTION_TOPIC, part.partition, part.end_offset) {
        let why = "its manifest is that of another stream".into();
        return Err(RestoreError::Mismatch { partition: name(), why });
    }
    let mut reader = vault.read_chunks(loaded.places);
    let mut chunk = Vec::new();
    while reader.next(&mut chunk).map_err(RestoreError::vault(name()))? {
        go_on()?;
        if let Err(why) = apply(&chunk, &mut log.ids) {
            log.unreadable.push((name(), Torn::Unreadable(why)));
            break;
        }
    }
    Ok(())
}

fn apply(chunk: &[u8], ids: &mut TransactionIds) -> Result<(), String> {
    for item in Batches::new(chunk) {
        let (_, batch) = item.map_err(|error| error.to_string())?;
        transaction_records(&batch)
            .map_err(|error| with_cause(&error))?
            .into_iter()
            .for_each(|record| ids.apply(record));
    }
    Ok(())
}

fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
