//! Whether transactions are whole at the end of a restored log (L3), judged by the point's transaction log at its mark.
//!
//! A broker takes from a restored log's producer state which transactions are open, and nobody but the id's coordinator
//! ends one. So each must be one that the coordinator still ends once it has loaded the transaction log
//! (`TransactionStateManager.loadTransactionsForTxnTopicPartition`), or have got an ABORT marker by the plan. Where the
//! log has markers, or epochs, that the transaction log cannot have caused, the two are not of one state.
//!
//! Nothing here is taken from what the point says of transactions: both sides are replayed from bytes.

use std::collections::BTreeMap;

use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::transactions::{TransactionLogValue, TransactionRecord, TransactionState};

/// With this protocol (KIP-890) a decision has an epoch of its own, which its markers have and no other's.
const EPOCH_PER_TRANSACTION: i16 = 2;

/// What the transaction log says, by producer id: of the whole cluster, whichever partitions are asked about.
#[derive(Clone, Debug, Default)]
pub struct TransactionIds {
    standing: BTreeMap<i64, Standing>,
    /// Producer id of each transactional id with an undecided transaction.
    undecided: BTreeMap<String, i64>,
}

/// Where the transaction log leaves a producer id.
#[derive(Clone, Debug)]
struct Standing {
    epoch: i16,
    undecided: Option<Undecided>,
}

/// A transaction that the coordinator still ends.
#[derive(Clone, Debug)]
struct Undecided {
    /// What it has decided, if its markers can be told from those of other transactions: whether to commit.
    outcome: Option<bool>,
    /// Those that get its markers.
    partitions: Vec<TopicPartition>,
}

impl Undecided {
    fn of(value: &TransactionLogValue) -> Option<Self> {
        let commit = match value.state()? {
            TransactionState::Ongoing => None,
            TransactionState::PrepareCommit => Some(true),
            TransactionState::PrepareAbort => Some(false),
            _ => return None,
        };
        let outcome = commit.filter(|_| value.client_transaction_version >= EPOCH_PER_TRANSACTION);
        Some(Self { outcome, partitions: value.partitions().collect() })
    }
}

/// What the end of a partition's log says of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerEnd {
    /// Its id.
    pub producer_id: i64,
    /// Its newest epoch here.
    pub epoch: i16,
    /// First offset of its open transaction.
    pub open_since: Option<i64>,
    /// The last marker that ended a transaction of it.
    pub ended: Option<Ended>,
}

/// A marker that ended a transaction with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its offset.
    pub offset: i64,
    /// Its producer epoch.
    pub epoch: i16,
    /// COMMIT; else ABORT.
    pub commit: bool,
}

/// A transaction that is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Torn {
    /// Open, and no coordinator would end it.
    #[error(
        "the transaction of producer {producer_id}, epoch {epoch}, that is open since offset {first_offset} is \
         undecided nowhere in the transaction log and gets no ABORT marker: it would hang, and the next commit of its \
         id would commit it"
    )]
    Hanging {
        /// Whose it is.
        producer_id: i64,
        /// The producer's epoch.
        epoch: i16,
        /// Its first offset.
        first_offset: i64,
    },
    /// Batches or markers of an epoch that was never given out.
    #[error(
        "producer {producer_id} has epoch {epoch} here, and the transaction log knows {known} only: it is older than \
         the log, and its next markers would be refused"
    )]
    Epoch {
        /// Whose it is.
        producer_id: i64,
        /// Newest epoch in the partition.
        epoch: i16,
        /// Epoch of the producer's last record in the transaction log.
        known: i16,
    },
    /// Ended here in one way, and about to be ended elsewhere in the other.
    #[error(
        "the transaction of producer {producer_id} that the marker at offset {offset} has {} is about to be {} by the \
         transaction log",
        done(*.commit), done(!.commit)
    )]
    Outcome {
        /// Whose it is.
        producer_id: i64,
        /// The marker's.
        offset: i64,
        /// What the marker says.
        commit: bool,
    },
    /// The producer state that a broker would start with is not that of the batches.
    #[error(
        "by its batches producer {producer_id} has {} at the end of the log, and by the point's producer state {}",
        open(.by_batches), open(.by_state)
    )]
    State {
        /// Whose it is.
        producer_id: i64,
        /// First offset of its open transaction, by the batches.
        by_batches: Option<i64>,
        /// The same by the producer state.
        by_state: Option<i64>,
    },
    /// A part of the transaction log tells nothing.
    #[error("the transaction log cannot be read: {0}")]
    Unreadable(String),
}

impl Torn {
    /// Whose it is; `None` if it is of the whole partition.
    pub fn producer_id(&self) -> Option<i64> {
        match self {
            Self::Hanging { producer_id, .. }
            | Self::Epoch { producer_id, .. }
            | Self::Outcome { producer_id, .. }
            | Self::State { producer_id, .. } => Some(*producer_id),
            Self::Unreadable(_) => None,
        }
    }
}

fn done(commit: bool) -> &'static str {
    if commit { "committed" } else { "aborted" }
}

fn open(since: &Option<i64>) -> String {
    since.map_or_else(|| "no open transaction".into(), |since| format!("one open since offset {since}"))
}

impl TransactionIds {
    /// Takes the next record of a partition of the transaction log.
    pub fn apply(&mut self, record: TransactionRecord) {
        let TransactionRecord { transactional_id, value, .. } = record;
        // The last record of an id counts, also where it went on to another producer id.
        let before = self.undecided.remove(&transactional_id);
        if let Some(standing) = before.and_then(|producer_id| self.standing.get_mut(&producer_id)) {
            standing.undecided = None;
        }
        let Some(value) = value else { return };
        let undecided = Undecided::of(&value);
        if undecided.is_some() {
            self.undecided.insert(transactional_id, value.producer_id);
        }
        self.standing.insert(value.producer_id, Standing { epoch: value.producer_epoch, undecided });
    }

    /// Takes what other partitions of the transaction log say; an id has its records in one.
    pub fn merge(&mut self, other: Self) {
        self.standing.extend(other.standing);
        self.undecided.extend(other.undecided);
    }

    /// What is not whole at the end of `partition`, of the producers that it knows; at most one thing of each.
    pub fn judge(
        &self,
        partition: &TopicPartition,
        producers: impl IntoIterator<Item = ProducerEnd>,
    ) -> impl Iterator<Item = Torn> {
        producers.into_iter().filter_map(|producer| self.judge_producer(partition, producer))
    }

    fn judge_producer(&self, partition: &TopicPartition, producer: ProducerEnd) -> Option<Torn> {
        let ProducerEnd { producer_id, epoch, open_since, ended } = producer;
        let standing = self.standing.get(&producer_id);
        let undecided = standing.and_then(|standing| standing.undecided.as_ref());
        if let Some(first_offset) = open_since {
            let is_listed = undecided.is_some_and(|it| it.partitions.contains(partition));
            if !is_listed || standing.is_some_and(|standing| standing.epoch < epoch) {
                return Some(Torn::Hanging { producer_id, epoch, first_offset });
            }
        }
        let standing = standing?;
        if standing.epoch < epoch {
            return Some(Torn::Epoch { producer_id, epoch, known: standing.epoch });
        }
        let ended = ended.filter(|ended| ended.epoch == standing.epoch)?;
        let outcome = undecided?.outcome?;
        (ended.commit != outcome).then_some(Torn::Outcome { producer_id, offset: ended.offset, commit: ended.commit })
    }
}

/// Holds what is open by a partition's producer state (producer id to first offset) against what is by its batches,
/// which begin at offset `start`: of a transaction that began before they show a part only, or nothing.
pub fn judge_state(by_state: &BTreeMap<i64, i64>, by_batches: &BTreeMap<i64, i64>, start: i64) -> Vec<Torn> {
    let ids = by_state.keys().chain(by_batches.keys().filter(|id| !by_state.contains_key(*id)));
    let differs = |producer_id: &&i64| {
        let began_before = by_state.get(*producer_id).is_some_and(|first_offset| *first_offset < start);
        !began_before && by_state.get(*producer_id) != by_batches.get(*producer_id)
    };
    let torn = |producer_id: &i64| Torn::State {
        producer_id: *producer_id,
        by_batches: by_batches.get(producer_id).copied(),
        by_state: by_state.get(producer_id).copied(),
    };
    ids.filter(differs).map(torn).collect()
}

#[cfg(test)]
mod tests {
    use segvault_kafka_log::transactions::TransactionPartitions;
    use segvault_kafka_log::transactions::TransactionState::*;

    use super::*;

    fn record(
        id: &str,
        producer_id: i64,
        epoch: i16,
        state: TransactionState,
        partitions: &[i32],
    ) -> TransactionRecord {
        record_of(2, id, producer_id, epoch, state, partitions)
    }

    fn record_of(
        client: i16,
        id: &str,
        producer_id: i64,
        epoch: i16,
        state: TransactionState,
        partitions: &[i32],
    ) -> TransactionRecord {
        let partitions =
            TransactionPartitions { topic: "t".into(), partition_ids: partitions.to_vec(), ..Default::default() };
        let value = TransactionLogValue {
            producer_id,
            producer_epoch: epoch,
            transaction_status: state as i8,
            transaction_partitions: Some(vec![partitions]),
            client_transaction_version: client,
            ..Default::default()
        };
        TransactionRecord { offset: 0, timestamp: 0, transactional_id: id.into(), value: Some(value) }
    }

    fn ids(records: Vec<TransactionRecord>) -> TransactionIds {
        let mut ids = TransactionIds::default();
        records.into_iter().for_each(|record| ids.apply(record));
        ids
    }

    fn judge(ids: &TransactionIds, producer: ProducerEnd) -> Option<Torn> {
        ids.judge(&TopicPartition::new("t", 0), [producer]).next()
    }

    fn open(producer_id: i64, epoch: i16) -> ProducerEnd {
        ProducerEnd { producer_id, epoch, open_since: Some(50), ended: None }
    }

    fn ended(epoch: i16, commit: bool) -> ProducerEnd {
        ProducerEnd { producer_id: 7, epoch, open_since: None, ended: Some(Ended { offset: 60, epoch, commit }) }
    }

    #[test]
    fn an_open_transaction_must_be_one_that_its_coordinator_still_ends() {
        let hanging = |epoch| Some(Torn::Hanging { producer_id: 7, epoch, first_offset: 50 });
        let last = |state, epoch, partitions: &[i32]| ids(vec![record("a", 7, epoch, state, partitions)]);
        let cases = [
            ("ongoing", last(Ongoing, 3, &[0, 1]), None),
            ("committing", last(PrepareCommit, 4, &[0]), None),
            ("aborting, fenced", last(PrepareAbort, 4, &[0]), None),
            ("another partition", last(Ongoing, 3, &[1]), hanging(3)),
            ("an older epoch", last(Ongoing, 2, &[0]), hanging(3)),
            ("committed", last(CompleteCommit, 4, &[0]), hanging(3)),
            ("aborted", last(CompleteAbort, 4, &[0]), hanging(3)),
            ("never begun", last(Empty, 3, &[0]), hanging(3)),
            ("an id that is unknown", ids(vec![record("a", 8, 3, Ongoing, &[0])]), hanging(3)),
            ("nothing at all", ids(vec![]), hanging(3)),
        ];
        for (what, ids, expected) in cases {
            assert_eq!(judge(&ids, open(7, 3)), expected, "{what}");
        }
    }

    #[test]
    fn the_last_record_of_an_id_counts() {
        let ongoing = record("a", 7, 3, Ongoing, &[0]);
        let deleted = TransactionRecord { value: None, ..ongoing.clone() };
        let cases = [
            ("goes on", vec![record("a", 7, 2, CompleteCommit, &[]), ongoing.clone()], true),
            ("is over", vec![ongoing.clone(), record("a", 7, 3, CompleteCommit, &[])], false),
            // The epochs of producer 7 were used up.
            ("has another producer id", vec![ongoing.clone(), record("a", 9, 0, CompleteCommit, &[])], false),
            ("is deleted", vec![ongoing.clone(), deleted], false),
            ("is another's", vec![ongoing, record("b", 9, 0, CompleteCommit, &[])], true),
        ];
        for (what, records, is_whole) in cases {
            assert_eq!(judge(&ids(records), open(7, 3)).is_none(), is_whole, "{what}");
        }
    }

    #[test]
    fn partitions_of_the_transaction_log_add_up() {
        let mut all = ids(vec![record("a", 7, 3, Ongoing, &[0])]);
        all.merge(ids(vec![record("b", 8, 0, Ongoing, &[0])]));
        assert_eq!((judge(&all, open(7, 3)), judge(&all, open(8, 0))), (None, None));
        all.apply(record("b", 8, 0, CompleteAbort, &[]));
        assert!(judge(&all, open(8, 0)).is_some());
    }

    #[test]
    fn no_partition_has_an_epoch_that_the_transaction_log_does_not_know() {
        let idle = |epoch| ProducerEnd { producer_id: 7, epoch, open_since: None, ended: None };
        let ids = ids(vec![record("a", 7, 3, CompleteCommit, &[])]);
        assert_eq!(judge(&ids, idle(3)), None);
        assert_eq!(judge(&ids, idle(4)), Some(Torn::Epoch { producer_id: 7, epoch: 4, known: 3 }));
        // Idempotent producers have no id.
        assert_eq!(judge(&ids, ProducerEnd { producer_id: 8, ..idle(4) }), None);
    }

    #[test]
    fn markers_do_not_contradict_what_is_decided() {
        let torn = |commit| Some(Torn::Outcome { producer_id: 7, offset: 60, commit });
        let cases = [
            (2, PrepareCommit, ended(4, true), None),
            (2, PrepareCommit, ended(4, false), torn(false)),
            (2, PrepareAbort, ended(4, true), torn(true)),
            (2, PrepareAbort, ended(4, false), None),
            // The transaction before.
            (2, PrepareAbort, ended(3, true), None),
            (2, Ongoing, ended(4, true), None),
            (2, CompleteAbort, ended(4, true), None),
            // One epoch for many transactions: the marker may be an earlier one's.
            (1, PrepareAbort, ended(4, true), None),
            (0, PrepareAbort, ended(4, true), None),
        ];
        for (client, state, end, expected) in cases {
            let ids = ids(vec![record_of(client, "a", 7, 4, state, &[0])]);
            assert_eq!(judge(&ids, end), expected, "{client} {state:?} {end:?}");
        }
    }

    #[test]
    fn producer_state_and_batches_agree_on_what_is_open() {
        let open = |pairs: &[(i64, i64)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
        let torn = |producer_id, by_batches, by_state| vec![Torn::State { producer_id, by_batches, by_state }];
        let cases = [
            (open(&[]), open(&[]), vec![]),
            (open(&[(7, 50)]), open(&[(7, 50)]), vec![]),
            (open(&[]), open(&[(7, 50)]), torn(7, Some(50), None)),
            (open(&[(7, 50)]), open(&[]), torn(7, None, Some(50))),
            (open(&[(7, 50)]), open(&[(7, 51)]), torn(7, Some(51), Some(50))),
            // Retention has taken its beginning, or all of it.
            (open(&[(7, 9)]), open(&[(7, 50)]), vec![]),
            (open(&[(7, 9)]), open(&[]), vec![]),
        ];
        for (by_state, by_batches, expected) in cases {
            assert_eq!(judge_state(&by_state, &by_batches, 10), expected, "{by_state:?} {by_batches:?}");
        }
    }

    #[test]
    fn what_is_torn_is_told_in_the_operators_words() {
        let state = Torn::State { producer_id: 7, by_batches: Some(50), by_state: None };
        let expected = "by its batches producer 7 has one open since offset 50 at the end of the log, and by the \
                        point's producer state no open transaction";
        assert_eq!(state.to_string(), expected);
        let outcome = Torn::Outcome { producer_id: 7, offset: 60, commit: true };
        let expected = "the transaction of producer 7 that the marker at offset 60 has committed is about to be aborted \
                        by the transaction log";
        assert_eq!(outcome.to_string(), expected);
    }
}
