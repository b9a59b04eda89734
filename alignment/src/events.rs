//! Which batches of a partition were caused by which records of the transaction log.
//!
//! Below transaction version 2 a transactional id uses the same (producer id, epoch) for all its transactions, so a
//! batch does not say which one it belongs to. What is certain is the order: an id has one transaction at a time, and
//! the markers of an id in a partition are, one after the other, those of the decisions (`Prepare*` records) that list
//! it. A decision has one marker in each partition, or several if the coordinator sent it again (it does when a broker
//! did not answer, and a new coordinator does so always); then they follow each other, with no data between, as the next
//! transaction only begins once all of them are acknowledged. Where the counting begins is unknown, as both logs began
//! long ago. It is pinned down by alternating samples: if the transaction log was read before and after the partition
//! was, then
//!
//! - a transaction that was complete in the reading before has its markers below the partition's sampled end;
//! - one that was not decided in the reading after has not.
//!
//! Each pair of samples bounds which markers may be whose by the transactions that were under way just then. A few
//! pairs leave one answer; transaction version 2 marks every decision with an epoch of its own, which settles it at
//! once. If several answers are left and do not lead to the same cut, or none fits at all, the caller is told.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::line::Partition;
use crate::sample::{PartitionEvents, TransactionLogCopy, TransactionRecord, TransactionState};

/// A partition of the transaction log with phase A's samples of it.
#[derive(Clone, Copy, Debug)]
pub struct MarkedLog<'a> {
    /// What it says.
    pub copy: &'a TransactionLogCopy,
    /// Its ends as sampled in phase A, in order. The last one is the mark.
    pub marks: &'a [i64],
    /// Its end in phase C.
    pub end_offset: i64,
}

/// A transactional id as far as the transaction log says since phase A's first sample.
struct History<'a> {
    log: MarkedLog<'a>,
    /// The last record below the first sample, then all from there on.
    records: Vec<&'a TransactionRecord>,
}

/// A marker in the partition in question.
struct Marker {
    offset: i64,
    producer_epoch: i16,
    /// The producer has data between the marker before and this one.
    follows_data: bool,
}

/// A decision that lists the partition in question.
struct Decision {
    /// Offset of the `Prepare*` record.
    prepared: i64,
    /// Offset of the `Complete*` record, `i64::MAX` if there is none.
    completed: i64,
    /// Epoch of the marker.
    producer_epoch: i16,
}

impl<'a> MarkedLog<'a> {
    fn mark(&self) -> i64 {
        self.marks.last().copied().unwrap_or(self.end_offset)
    }

    /// The last record of each id below the mark.
    pub fn at_mark(&self) -> impl Iterator<Item = &'a TransactionRecord> + use<'a> {
        let mark = self.mark();
        let below = self.copy.records.iter().filter(move |record| record.offset < mark);
        let mut last = BTreeMap::new();
        for record in self.copy.at_first.iter().chain(below) {
            last.insert(record.transactional_id.as_str(), record);
        }
        last.into_values()
    }

    fn histories(&self) -> BTreeMap<&'a str, History<'a>> {
        let mut histories = BTreeMap::new();
        for record in self.copy.at_first.iter().chain(&self.copy.records) {
            histories
                .entry(record.transactional_id.as_str())
                .or_insert_with(|| History { log: *self, records: Vec::new() })
                .records
                .push(record);
        }
        histories.retain(|_, history| history.records.last().is_some_and(|record| record.offset >= self.mark()));
        histories
    }
}

impl History<'_> {
    /// Partitions where the window may have had effects, with the producer ids that may have written there: newly
    /// listed ones may have data, those of a decided transaction markers.
    fn affected(&self) -> BTreeSet<(&Partition, i64)> {
        let mut affected = BTreeSet::new();
        for (index, record) in self.records.iter().enumerate().filter(|(_, r)| r.offset >= self.log.mark()) {
            let listed_before = |partition: &Partition| {
                index.checked_sub(1).map(|before| self.records[before]).is_some_and(|before| {
                    before.state == Some(TransactionState::Ongoing)
                        && before.producer_id == record.producer_id
                        && before.partitions.contains(partition)
                })
            };
            let partitions = record.partitions.iter().filter(|partition| match record.state {
                Some(TransactionState::Ongoing) => !listed_before(partition),
                Some(TransactionState::PrepareCommit | TransactionState::PrepareAbort) => true,
                _ => false,
            });
            affected.extend(partitions.map(|partition| (partition, record.producer_id)));
        }
        affected
    }

    /// The decisions of `producer_id` that list `partition`, in order.
    fn decisions(&self, partition: &Partition, producer_id: i64) -> Vec<Decision> {
        let mut decisions: Vec<Decision> = Vec::new();
        for record in &self.records {
            match record.state {
                Some(TransactionState::PrepareCommit | TransactionState::PrepareAbort)
                    if record.producer_id == producer_id && record.partitions.contains(partition) =>
                {
                    decisions.push(Decision {
                        prepared: record.offset,
                        completed: i64::MAX,
                        producer_epoch: record.producer_epoch,
                    });
                }
                Some(TransactionState::CompleteCommit | TransactionState::CompleteAbort) => {
                    if let Some(last) = decisions.last_mut().filter(|last| last.completed == i64::MAX) {
                        last.completed = record.offset;
                    }
                }
                _ => {}
            }
        }
        decisions
    }

    /// Whether, at the mark, the id has an undecided transaction of `producer_id` that lists `partition`.
    fn is_open_at_mark(&self, partition: &Partition, producer_id: i64) -> bool {
        let below = self.records.iter().rev().find(|record| record.offset < self.log.mark());
        below.is_some_and(|record| {
            record.state == Some(TransactionState::Ongoing)
                && record.producer_id == producer_id
                && record.partitions.contains(partition)
        })
    }

    /// How many of the markers were decided before the mark: all values that nothing contradicts. `None`: a decision
    /// before the mark has no marker yet, so that nothing later can be there.
    fn boundaries(
        &self,
        decisions: &[Decision],
        markers: &[Marker],
        probes: &[Option<i64>],
    ) -> BTreeSet<Option<usize>> {
        let (first_mark, mark) = (self.log.marks.first().copied().unwrap_or(0), self.log.mark());
        let before_mark = decisions.iter().filter(|decision| decision.prepared < mark).count();
        // What is complete at the mark has its markers in the data, which was pinned later.
        let least_end = decisions.iter().filter(|decision| decision.completed < mark).count();
        // Decided before the first sample, the first decision's markers may lie below what was looked at.
        let first_may_lie_below = decisions.first().is_some_and(|first| first.prepared < first_mark);
        let below_max = usize::from(first_may_lie_below);
        let at_end = |number: usize| (number == before_mark).then_some(markers.len());
        let Some(last) = markers.len().checked_sub(1) else {
            return (least_end..=below_max).map(at_end).collect();
        };
        // From here on a decision's number is 1 and up; 0 stands for all that were complete before the first sample.
        let bounds = self.bounds(decisions, probes);
        let fits = |number: usize, marker: &Marker| {
            bounds[number].contains(&marker.offset)
                && (number == 0 || decisions[number - 1].producer_epoch == marker.producer_epoch)
        };
        let reached = |numbers: &BTreeSet<usize>, marker: &Marker| -> BTreeSet<usize> {
            let again = numbers.iter().copied().filter(|number| *number == 0 || !marker.follows_data);
            let next = numbers.iter().map(|number| number + 1).filter(|number| *number <= decisions.len());
            again.chain(next).filter(|number| fits(*number, marker)).collect()
        };
        let starts = (0..=decisions.len().min(below_max + 1)).filter(|number| fits(*number, &markers[0])).collect();
        let mut forward: Vec<BTreeSet<usize>> = vec![starts];
        for marker in &markers[1..] {
            forward.push(reached(&forward[forward.len() - 1], marker));
        }
        forward[last].retain(|number| *number >= least_end);
        for index in (0..last).rev() {
            let (here, beyond) = forward.split_at_mut(index + 1);
            let marker = &markers[index + 1];
            here[index].retain(|number| {
                let stays = (*number == 0 || !marker.follows_data) && beyond[0].contains(number);
                stays || beyond[0].contains(&(number + 1))
            });
        }
        let between = (1..=last)
            .filter(|index| forward[index - 1].contains(&before_mark) && forward[*index].contains(&(before_mark + 1)));
        let before_all = forward[0].iter().any(|number| *number > before_mark).then_some(0);
        let behind_all = forward[last].iter().filter(|number| **number <= before_mark).map(|number| at_end(*number));
        between.chain(before_all).map(Some).chain(behind_all).collect()
    }

    /// Between which offsets the markers of each decision lie, as far as the samples tell; before them, of all that
    /// were complete before the first sample.
    fn bounds(&self, decisions: &[Decision], probes: &[Option<i64>]) -> Vec<Range<i64>> {
        let rounds = || {
            let marks = self.log.marks.iter().zip(self.log.marks.iter().skip(1));
            marks.zip(probes).filter_map(|((before, after), end)| Some((*before, (*end)?, *after)))
        };
        let earlier = i64::MIN..rounds().map(|(_, end, _)| end).min().unwrap_or(i64::MAX);
        let of_decision = |decision: &Decision| {
            let undecided = rounds().filter(|(.., after)| decision.prepared >= *after).map(|(_, end, _)| end);
            let complete = rounds().filter(|(before, ..)| decision.completed < *before).map(|(_, end, _)| end);
            undecided.max().unwrap_or(i64::MIN)..complete.min().unwrap_or(i64::MAX)
        };
        std::iter::once(earlier).chain(decisions.iter().map(of_decision)).collect()
    }

    /// The offset of the first batch in `partition` whose cause lies in the window. If that cannot be told it is an error
    /// with the first batch for which it may be so.
    fn first_event(
        &self,
        events: &PartitionEvents,
        partition: &Partition,
        producer_id: i64,
    ) -> Result<Option<i64>, Option<i64>> {
        let own: Vec<_> = events.events.iter().filter(|event| event.producer_id == producer_id).collect();
        let mut markers: Vec<Marker> = Vec::new();
        let mut follows_data = false;
        for event in &own {
            if event.is_marker {
                let (offset, producer_epoch) = (event.offset, event.producer_epoch);
                markers.push(Marker { offset, producer_epoch, follows_data });
            }
            follows_data = !event.is_marker;
        }
        let is_open = self.is_open_at_mark(partition, producer_id);
        let first = |boundary: Option<usize>| -> Option<i64> {
            let boundary = boundary?;
            if is_open {
                return markers.get(boundary).map(|marker| marker.offset);
            }
            let after = boundary.checked_sub(1).map_or(i64::MIN, |last| markers[last].offset);
            own.iter().find(|event| event.offset > after).map(|event| event.offset)
        };
        let decisions = self.decisions(partition, producer_id);
        let boundaries = self.boundaries(&decisions, &markers, &events.probes);
        // What was there when it was probed has no cause in the window, and may have been acknowledged.
        let may_be = |offset: i64| offset >= events.probed_end;
        let outcomes: BTreeSet<Option<i64>> =
            boundaries.into_iter().map(first).filter(|offset| offset.is_none_or(may_be)).collect();
        match outcomes.len() {
            1 => Ok(outcomes.into_iter().next().flatten()),
            _ => Err(own.iter().map(|event| event.offset).filter(|offset| may_be(*offset)).min()),
        }
    }
}

/// Whose batches must be looked for in which partitions: those of ids that the window speaks of.
pub fn to_find(logs: &[MarkedLog<'_>]) -> BTreeMap<Partition, BTreeSet<i64>> {
    let mut wanted: BTreeMap<Partition, BTreeSet<i64>> = BTreeMap::new();
    for history in logs.iter().flat_map(|log| log.histories().into_values()) {
        for (partition, producer_id) in history.affected() {
            wanted.entry(partition.clone()).or_default().insert(producer_id);
        }
    }
    wanted
}

/// The first batch of each partition whose cause lies in the window, and what could not be told for certain: there the
/// earliest batch that may be one is taken, and the point must not claim that its transactions are whole.
pub fn first_events(logs: &[MarkedLog<'_>], events: &[PartitionEvents]) -> (BTreeMap<Partition, i64>, Vec<String>) {
    let by_partition: BTreeMap<Partition, &PartitionEvents> =
        events.iter().map(|events| ((events.topic.clone(), events.partition), events)).collect();
    let mut first: BTreeMap<Partition, i64> = BTreeMap::new();
    let mut doubts = Vec::new();
    for (id, history) in logs.iter().flat_map(MarkedLog::histories) {
        for (partition, producer_id) in history.affected() {
            let Some(events) = by_partition.get(partition) else { continue };
            let offset = history.first_event(events, partition, producer_id).unwrap_or_else(|earliest| {
                doubts.push(format!("transactional id {id} in {}-{}", partition.0, partition.1));
                earliest
            });
            if let Some(offset) = offset {
                let least = first.entry(partition.clone()).or_insert(offset);
                *least = offset.min(*least);
            }
        }
    }
    (first, doubts)
}

#[cfg(test)]
mod tests;
