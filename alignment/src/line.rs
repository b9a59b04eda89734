//! The strict recovery line: where each partition is cut so that every transaction is whole or absent.
//!
//! The barrier samples the transaction log (phase A, its end is the *mark*), then pins all data, and samples the
//! transaction log again (phase C). What the transaction log says below its mark was caused by, or has caused, only
//! things that were durable before the data was pinned. What it says at or above the mark, the *window*, may have
//! effects in the data without all of its causes: so the transaction log is cut at the mark, and each data partition
//! before the first batch whose cause lies in the window (`docs/consistency.md`). No propagation is needed, and
//! nothing that was acknowledged before the mark is ever trimmed: the batches in question were appended after it.
//!
//! Which batches those are is a question of its own, as a transactional id uses one (producer id, epoch) for many
//! transactions in a row: see [`crate::events`].

use std::collections::BTreeMap;

use crate::sample::{LogPosition, OpenTransaction, TransactionRecord, TransactionState};

/// Topic name and partition.
pub type Partition = (String, i32);

/// A sample of phase A, as it holds for the replica that became the source: the best replica's, but not beyond what
/// the source kept of that epoch (the rest was never committed).
///
/// `marked` is the sample and `epochs`, `end_offset` are the source's in phase C.
pub fn mark_on_source(marked: LogPosition, epochs: &[(i32, i64)], end_offset: i64) -> i64 {
    let end_of_epoch = epochs
        .iter()
        .find(|(epoch, _)| *epoch > marked.last_epoch)
        .map_or(end_offset, |(_, start_offset)| *start_offset);
    marked.end_offset.min(end_of_epoch).min(end_offset)
}

/// Where a partition is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// First offset that is not in the point.
    pub end_offset: i64,
    /// Why it lies below the pinned end.
    pub trimmed: Option<String>,
}

/// The strict line over `pinned` ends: the transaction log at its `marks`, data before its first event (`events`).
pub fn strict_line(
    pinned: &BTreeMap<Partition, i64>,
    marks: &BTreeMap<Partition, i64>,
    events: &BTreeMap<Partition, i64>,
) -> BTreeMap<Partition, Cut> {
    let mut line: BTreeMap<Partition, Cut> =
        pinned.iter().map(|(partition, end)| (partition.clone(), Cut { end_offset: *end, trimmed: None })).collect();
    let mut lower = |offsets: &BTreeMap<Partition, i64>, reason: &str| {
        for (partition, offset) in offsets {
            if let Some(cut) = line.get_mut(partition)
                && *offset < cut.end_offset
            {
                *cut = Cut { end_offset: *offset, trimmed: Some(reason.to_owned()) };
            }
        }
    };
    lower(marks, "transaction log after phase A");
    lower(events, "transaction that phase A had not seen");
    line
}

/// Where a committed offset goes that lies beyond its partition's end; `None` if it stays.
pub fn clamped(committed: i64, end_offset: i64) -> Option<i64> {
    (committed > end_offset).then_some(end_offset)
}

/// A marker that ends an open transaction in its partition, appended before the first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending<'a> {
    /// What it ends.
    pub open: &'a OpenTransaction,
    /// COMMIT; else ABORT.
    pub commit: bool,
    /// The marker's epoch, at or above that of the transaction.
    pub producer_epoch: i16,
}

/// The markers for those open transactions of a partition that no coordinator can be left to end, given what is
/// [`unfinished`] at the mark (both dangers were seen on real brokers: `docs/kafka-notes.md`):
///
/// - What the transaction log does not know is aborted: the next commit of the same id would commit it.
/// - What is decided gets the marker of the decision: a coordinator that loads a `Prepare…` record sends it too, but
///   may pass over a partition without a leader, and then takes the transaction for complete.
///
/// What is `Ongoing` stays open: it is its producer's, or its coordinator's once its time is over.
pub fn endings<'a>(
    partition: &Partition,
    open: &'a [OpenTransaction],
    unfinished: &BTreeMap<i64, &TransactionRecord>,
) -> Vec<Ending<'a>> {
    let ending = |open: &'a OpenTransaction| {
        let record = unfinished
            .get(&open.producer_id)
            .filter(|record| record.partitions.contains(partition) && record.producer_epoch >= open.producer_epoch);
        let (commit, producer_epoch) = match record.map(|record| (record.state, record.producer_epoch)) {
            None => (false, open.producer_epoch),
            Some((Some(TransactionState::PrepareCommit), epoch)) => (true, epoch),
            Some((Some(TransactionState::PrepareAbort), epoch)) => (false, epoch),
            Some(_) => return None,
        };
        Some(Ending { open, commit, producer_epoch })
    };
    open.iter().filter_map(ending).collect()
}

/// By producer id: the transactions that have no end yet by the transaction log at its marks, given the last record of
/// each id below them.
pub fn unfinished<'a>(at_mark: impl Iterator<Item = &'a TransactionRecord>) -> BTreeMap<i64, &'a TransactionRecord> {
    let has_no_end = |state| {
        matches!(state, TransactionState::Ongoing | TransactionState::PrepareCommit | TransactionState::PrepareAbort)
    };
    at_mark.filter(|record| record.state.is_some_and(has_no_end)).map(|record| (record.producer_id, record)).collect()
}
