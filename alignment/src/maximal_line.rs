//! The maximal recovery line: the latest cut in which every transaction is whole or absent, below *any* captured vector.
//!
//! The strict line ([`crate::line`]) needs a barrier: its samples say that whatever the transaction log asks for below the
//! mark is there. Where captures of several moments are put together nothing says so, and one thing that is missing may
//! take others along. What is in a cut and what must be there for it, along the order in which a coordinator, a producer and
//! brokers make one transaction T durable:
//!
//! | | if this is in the cut | this must be, too | or else, after a restart |
//! |---|---|---|---|
//! | I1 | a COMMIT marker of T | `PrepareCommit` of T | T is committed here and aborted elsewhere |
//! | I2 | `PrepareCommit` of T | all data of T | T is committed without part of it |
//! | I3 | `Complete…` of T, or a later record of its id | the marker of T in each partition that it lists | T hangs there |
//! | I4 | data of T in a partition | a record that lists the partition for T | T hangs there, or is ended by a later one |
//! | I5 | a batch with an epoch | a record of the id with that epoch, or a later one | markers and producers are refused |
//!
//! All of them say "the effect, so its cause". Cuts that keep them are closed under union, so there is one greatest: it is
//! found by taking away what breaks a rule until nothing does. Each step takes away what no such cut has, and the true
//! state at the earliest moment of the captures is one, so the line never lies below that.
//!
//! I6, that no committed offset lies beyond its partition's end, is a repair ([`crate::line::clamped`]).

use std::collections::BTreeMap;

use crate::sample::TransactionState;

#[cfg(test)]
mod tests;

/// A cause that must be in the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// I1.
    CommitIsDecided,
    /// I2.
    DecidedIsWritten,
    /// I3.
    CompleteIsMarked,
    /// I4.
    DataIsListed,
    /// I5.
    EpochIsKnown,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::CommitIsDecided, Self::DecidedIsWritten, Self::CompleteIsMarked, Self::DataIsListed, Self::EpochIsKnown];
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CommitIsDecided => "a COMMIT marker whose decision is not there",
            Self::DecidedIsWritten => "a decision to commit data that is not all there",
            Self::CompleteIsMarked => "a complete transaction whose markers are not all there",
            Self::DataIsListed => "data of a transaction that the transaction log does not know of here",
            Self::EpochIsKnown => "a producer epoch that the transaction log does not know",
        })
    }
}

/// A transaction: index of its id in [`Captured::ids`], and its number among those of the id.
pub type Transaction = (usize, usize);

/// What was captured, each part at a moment of its own.
#[derive(Clone, Debug, Default)]
pub struct Captured {
    /// Transactional ids.
    pub ids: Vec<TransactionalId>,
    /// Data partitions.
    pub partitions: Vec<PartitionLog>,
}

/// What the transaction log says of an id.
#[derive(Clone, Debug, Default)]
pub struct TransactionalId {
    /// The first transaction that `records` tell all of. Those before it are over.
    pub first: usize,
    /// Oldest first.
    pub records: Vec<IdRecord>,
}

/// A record of the transaction log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdRecord {
    /// Its state.
    pub state: TransactionState,
    /// The producer's epoch.
    pub epoch: i16,
    /// The number of the transaction that it is of; of `Empty` that of the next one.
    pub transaction: usize,
    /// Indexes of the partitions that it lists.
    pub partitions: Vec<usize>,
}

/// A data partition.
#[derive(Clone, Debug, Default)]
pub struct PartitionLog {
    /// Where it was captured.
    pub end_offset: i64,
    /// Batches and markers of the ids, by rising offset.
    pub events: Vec<Event>,
    /// Below which offset all data of a transaction is known to lie: an end that was sampled after its decision was seen.
    pub written: BTreeMap<Transaction, i64>,
}

/// A batch or a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its base offset.
    pub offset: i64,
    /// Whose it is ([`crate::events`] tells transactions of one epoch apart).
    pub transaction: Transaction,
    /// The producer's epoch.
    pub epoch: i16,
    /// What it is.
    pub kind: EventKind,
}

/// What an [`Event`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Records.
    Data,
    /// A COMMIT marker.
    Commit,
    /// An ABORT marker. It asks for nothing.
    Abort,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Of each partition the first offset that is not in it, and what broke a rule there.
    pub ends: Vec<(i64, Option<Rule>)>,
    /// Of each id how many of its records are in it, and which rule the next one would break. An id is rolled back by
    /// appending its last kept record again.
    pub kept: Vec<(usize, Option<Rule>)>,
}

/// The maximal line.
pub fn maximal_line(captured: &Captured) -> Line {
    line_by(captured, &Rule::ALL)
}

/// The greatest cut that keeps some of the rules.
fn line_by(captured: &Captured, rules: &[Rule]) -> Line {
    let mut line = Line {
        ends: captured.partitions.iter().map(|log| (log.end_offset, None)).collect(),
        kept: captured.ids.iter().map(|id| (id.records.len(), None)).collect(),
    };
    // Everything only moves down, so it ends.
    loop {
        let before = line.clone();
        for id in 0..captured.ids.len() {
            if let Some((kept, rule)) = captured.first_unfounded_record(&line, id, rules) {
                line.kept[id] = (kept, Some(rule));
            }
        }
        for partition in 0..captured.partitions.len() {
            if let Some((offset, rule)) = captured.first_unfounded_event(&line, partition, rules) {
                line.ends[partition] = (offset, Some(rule));
            }
        }
        if line == before {
            return line;
        }
    }
}

impl Captured {
    /// The first record of an id in the line that must not be there.
    fn first_unfounded_record(&self, line: &Line, id: usize, rules: &[Rule]) -> Option<(usize, Rule)> {
        let kept = &self.ids[id].records[..line.kept[id].0];
        kept.iter().enumerate().find_map(|(index, record)| {
            let transaction = (id, record.transaction);
            let is_marked = |partition: &usize| self.events(line, *partition).any(|it| it.is_marker_of(transaction));
            match record.state {
                TransactionState::PrepareCommit | TransactionState::PrepareAbort => {
                    let is_written = |partition: &usize| {
                        let proof = self.partitions[*partition].written.get(&transaction);
                        is_marked(partition) || proof.is_some_and(|end| *end <= line.ends[*partition].0)
                    };
                    let commits = record.state == TransactionState::PrepareCommit;
                    if commits && rules.contains(&Rule::DecidedIsWritten) && !record.partitions.iter().all(is_written) {
                        return Some((index, Rule::DecidedIsWritten));
                    }
                    let goes_on = index + 1 < kept.len() && rules.contains(&Rule::CompleteIsMarked);
                    (goes_on && !record.partitions.iter().all(is_marked)).then_some((index + 1, Rule::CompleteIsMarked))
                }
                _ => None,
            }
        })
    }

    /// The first event of a partition in the line that must not be there.
    fn first_unfounded_event(&self, line: &Line, partition: usize, rules: &[Rule]) -> Option<(i64, Rule)> {
        self.events(line, partition).find_map(|event| {
            let (id, number) = event.transaction;
            let kept = &self.ids[id].records[..line.kept[id].0];
            let is_known = number >= self.ids[id].first;
            let mut of_transaction = kept.iter().filter(|record| record.transaction == number);
            let (rule, is_founded) = match event.kind {
                EventKind::Commit => {
                    let decided = |record: &IdRecord| record.state == TransactionState::PrepareCommit;
                    (Rule::CommitIsDecided, of_transaction.any(decided))
                }
                EventKind::Data => {
                    (Rule::DataIsListed, of_transaction.any(|record| record.partitions.contains(&partition)))
                }
                EventKind::Abort => (Rule::EpochIsKnown, true),
            };
            let is_epoch_known = kept.iter().any(|record| record.epoch >= event.epoch);
            let broken = [(rule, is_known && !is_founded), (Rule::EpochIsKnown, !is_epoch_known)];
            let broken = broken.into_iter().find(|(rule, is_broken)| *is_broken && rules.contains(rule));
            broken.map(|(rule, _)| (event.offset, rule))
        })
    }

    fn events<'a>(&'a self, line: &Line, partition: usize) -> impl Iterator<Item = &'a Event> + use<'a> {
        let (end, _) = line.ends[partition];
        self.partitions[partition].events.iter().take_while(move |event| event.offset < end)
    }
}

impl Event {
    fn is_marker_of(&self, transaction: Transaction) -> bool {
        self.transaction == transaction && self.kind != EventKind::Data
    }
}
