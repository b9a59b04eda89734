//! L3: every transaction is whole or absent, none hangs, and none is ended by a later one of the same id.
//!
//! The transaction log says which transactions were decided and which partitions they list; a partition's log says which
//! markers came, in order. Each decision gets its markers in every partition that it lists, one or several in a row (a new
//! coordinator sends them again), and the next transaction of the producer writes only after them. So the decisions and the
//! markers of a producer must fit together from their ends backwards, as far as both are still there. What is open at the
//! end must be known to the transaction log as undecided, or get an ABORT marker at restore.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::batch::Batch;
use segvault_kafka_log::transactions::{TransactionLogValue, TransactionRecord, TransactionState};

use crate::flaws::Flaws;

/// A decision that lists some partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decision {
    commit: bool,
    /// The epoch of its markers.
    epoch: i16,
    /// All markers are said to be written.
    is_complete: bool,
    timestamp: i64,
}

/// Decisions that list a partition, by producer id, in order.
type Decisions = BTreeMap<i64, Vec<Decision>>;

/// Where a transactional id stands at the cut.
#[derive(Clone, Debug)]
struct Standing {
    producer_id: i64,
    producer_epoch: i16,
    state: TransactionState,
    began_ms: i64,
    partitions: BTreeSet<TopicPartition>,
}

/// What the transaction log says, from its start to its cut.
#[derive(Clone, Debug, Default)]
pub struct TransactionIds {
    standing: HashMap<String, Standing>,
    /// The id that a producer id was given to last.
    owners: HashMap<i64, String>,
    /// Producer ids of which every decision is known: their first record is there.
    whole: BTreeSet<i64>,
    /// By partition and producer id: decisions that list the partition.
    decisions: HashMap<TopicPartition, Decisions>,
    /// Decisions of an id whose markers may be missing still.
    undecided: HashMap<String, (i64, Vec<TopicPartition>)>,
}

impl TransactionIds {
    /// Takes the next record of a partition of the transaction log.
    pub fn apply(&mut self, record: TransactionRecord, flaws: &mut Flaws) {
        let TransactionRecord { offset, timestamp, transactional_id: id, value } = record;
        let last = self.standing.get(&id);
        if last.zip(value.as_ref()).is_some_and(|(last, value)| last.is_repeated_by(value)) {
            return;
        }
        // The state machine of an id goes on only after all markers of a decision.
        if let Some((producer_id, partitions)) = self.undecided.remove(&id) {
            for partition in partitions {
                let decisions = self.decisions.get_mut(&partition).and_then(|all| all.get_mut(&producer_id));
                if let Some(last) = decisions.and_then(|decisions| decisions.last_mut()) {
                    last.is_complete = true;
                }
            }
        }
        let Some(value) = value else {
            self.standing.remove(&id);
            return;
        };
        let Some(state) = value.state() else {
            let what = format!("the record at offset {offset} has the unknown state {}", value.transaction_status);
            return flaws.add(3, format!("transactional id {id}"), what);
        };
        let (producer_id, producer_epoch) = (value.producer_id, value.producer_epoch);
        let is_first = self.owners.insert(producer_id, id.clone()).is_none();
        if is_first && producer_epoch == 0 && state == TransactionState::Empty {
            self.whole.insert(producer_id);
        }
        let partitions: BTreeSet<TopicPartition> = value.partitions().collect();
        if matches!(state, TransactionState::PrepareCommit | TransactionState::PrepareAbort) {
            let commit = state == TransactionState::PrepareCommit;
            let decision = Decision { commit, epoch: producer_epoch, is_complete: false, timestamp };
            for partition in &partitions {
                self.decisions.entry(partition.clone()).or_default().entry(producer_id).or_default().push(decision);
            }
            self.undecided.insert(id.clone(), (producer_id, partitions.iter().cloned().collect()));
        }
        let began_ms = value.transaction_start_timestamp_ms;
        self.standing.insert(id, Standing { producer_id, producer_epoch, state, began_ms, partitions });
    }

    /// How many ids there are.
    pub fn count(&self) -> usize {
        self.standing.len()
    }

    /// The greatest producer id.
    pub fn max_producer_id(&self) -> i64 {
        self.owners.keys().copied().max().unwrap_or(-1)
    }

    fn standing_of(&self, producer_id: i64) -> Option<&Standing> {
        self.standing.get(self.owners.get(&producer_id)?).filter(|standing| standing.producer_id == producer_id)
    }
}

impl Standing {
    fn is_undecided(&self) -> bool {
        use TransactionState::{Ongoing, PrepareAbort, PrepareCommit};
        matches!(self.state, Ongoing | PrepareCommit | PrepareAbort)
    }

    /// A decision is appended again where it was not known whether the first time had worked.
    fn is_repeated_by(&self, next: &TransactionLogValue) -> bool {
        let is_decision = matches!(self.state, TransactionState::PrepareCommit | TransactionState::PrepareAbort);
        is_decision
            && next.state() == Some(self.state)
            && (next.producer_id, next.producer_epoch) == (self.producer_id, self.producer_epoch)
            && next.transaction_start_timestamp_ms == self.began_ms
    }
}

/// A marker that a restore appends to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedMarker {
    /// COMMIT; else ABORT.
    pub commit: bool,
    /// Its producer epoch.
    pub epoch: i32,
}

/// By producer id.
pub type PlannedMarkers = BTreeMap<i64, PlannedMarker>;

/// What a producer did in a partition; data between two markers counts once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Data,
    Marker { commit: bool, epoch: i16 },
}

/// Follows the producers of one partition.
pub struct Producers<'a> {
    ids: &'a TransactionIds,
    /// Those that list the partition.
    decisions: Option<&'a Decisions>,
    partition: TopicPartition,
    events: HashMap<i64, VecDeque<Event>>,
    /// Producers whose oldest events were forgotten.
    cut_short: BTreeSet<i64>,
    /// All that was ever written is there.
    is_whole: bool,
    first_timestamp: Option<i64>,
    /// First offsets of open transactions, by producer id.
    pub open: BTreeMap<i64, i64>,
    /// Newest epoch of each producer id.
    pub epochs: HashMap<i64, i16>,
    /// Transactions that ended with an ABORT marker: its offset, and whose since where.
    pub aborted: BTreeMap<i64, (i64, i64)>,
    /// Offsets of ABORT markers that ended nothing that is there.
    pub idle_aborts: BTreeSet<i64>,
}

impl<'a> Producers<'a> {
    /// Of a partition whose log begins at `start`.
    pub fn new(ids: &'a TransactionIds, partition: TopicPartition, start: i64) -> Self {
        Self {
            ids,
            decisions: ids.decisions.get(&partition),
            partition,
            events: HashMap::new(),
            cut_short: BTreeSet::new(),
            is_whole: start == 0,
            first_timestamp: None,
            open: BTreeMap::new(),
            epochs: HashMap::new(),
            aborted: BTreeMap::new(),
            idle_aborts: BTreeSet::new(),
        }
    }

    /// The next batch. `after_gap`: offsets are missing before it, and with them perhaps markers.
    pub fn apply(&mut self, batch: &Batch<'_>, after_gap: bool, flaws: &mut Flaws) {
        if after_gap {
            self.events.clear();
            self.is_whole = false;
        }
        self.first_timestamp.get_or_insert(batch.max_timestamp());
        let (producer_id, base) = (batch.producer_id(), batch.base_offset());
        if producer_id < 0 {
            return;
        }
        if !batch.is_control() {
            self.epochs.insert(producer_id, batch.producer_epoch());
            if batch.is_transactional() {
                self.open.entry(producer_id).or_insert(base);
                self.event(producer_id, Event::Data);
            }
            return;
        }
        match batch.end_txn_marker() {
            Ok(Some(marker)) => {
                self.epochs.insert(producer_id, batch.producer_epoch());
                self.event(producer_id, Event::Marker { commit: marker.commit, epoch: batch.producer_epoch() });
                match (self.open.remove(&producer_id), marker.commit) {
                    (Some(first), false) => drop(self.aborted.insert(base, (producer_id, first))),
                    (None, false) => drop(self.idle_aborts.insert(base)),
                    _ => {}
                }
            }
            // The cleaner has emptied it: the transaction is gone as a whole.
            Ok(None) => {}
            Err(error) => flaws.add(3, &self.partition, format!("the marker at offset {base}: {error}")),
        }
    }

    fn decisions_of(&self, producer_id: i64) -> &'a [Decision] {
        self.decisions.and_then(|all| all.get(&producer_id)).map_or(&[], |decisions| decisions)
    }

    fn event(&mut self, producer_id: i64, event: Event) {
        let wanted = self.decisions_of(producer_id).len();
        if wanted == 0 && !self.ids.whole.contains(&producer_id) {
            return;
        }
        let events = self.events.entry(producer_id).or_default();
        if event == Event::Data && events.back() == Some(&Event::Data) {
            return;
        }
        events.push_back(event);
        // Some decisions have several markers; what came long before counts no more.
        if events.len() > 4 * wanted + 64 {
            events.pop_front();
            self.cut_short.insert(producer_id);
        }
    }

    /// At the cut: says what does not fit. `planned` are the markers that a restore appends here.
    pub fn judge(&self, planned: &PlannedMarkers, flaws: &mut Flaws) {
        for (producer_id, first_offset) in &self.open {
            self.judge_open(*producer_id, *first_offset, planned.get(producer_id), flaws);
        }
        for (producer_id, epoch) in &self.epochs {
            if let Some(standing) = self.ids.standing_of(*producer_id).filter(|it| it.producer_epoch < *epoch) {
                let known = standing.producer_epoch;
                let what = format!(
                    "producer {producer_id} has epoch {epoch} here, and the transaction log knows {known} only"
                );
                flaws.add(3, &self.partition, what);
            }
        }
        let decided = self.decisions.into_iter().flat_map(BTreeMap::keys);
        let producers: BTreeSet<i64> = decided.chain(self.events.keys()).copied().collect();
        for producer_id in producers {
            self.judge_markers(producer_id, flaws);
        }
    }

    fn judge_open(&self, producer_id: i64, first_offset: i64, planned: Option<&PlannedMarker>, flaws: &mut Flaws) {
        use TransactionState::{PrepareAbort, PrepareCommit};
        let since = format!("the transaction of producer {producer_id} that is open since offset {first_offset}");
        let standing = self.ids.standing_of(producer_id).filter(|it| it.is_undecided());
        let standing = standing.filter(|it| it.partitions.contains(&self.partition));
        let decision = standing.map(|it| (it.state, i32::from(it.producer_epoch)));
        let what = match (decision, planned) {
            // Its coordinator has its markers to write, too.
            (Some(_), None) => return,
            (Some((PrepareCommit, epoch)), Some(marker)) if *marker == (PlannedMarker { commit: true, epoch }) => {
                return flaws.note(format!("{}: {since} gets its COMMIT marker at restore", self.partition));
            }
            (Some((PrepareAbort, epoch)), Some(marker)) if *marker == (PlannedMarker { commit: false, epoch }) => {
                return flaws.note(format!("{}: {since} gets its ABORT marker at restore", self.partition));
            }
            (None, Some(PlannedMarker { commit: false, .. })) => {
                return flaws.note(format!("{}: {since} gets an ABORT marker at restore", self.partition));
            }
            (Some((state, epoch)), Some(marker)) => format!(
                "{since} is {state:?} with epoch {epoch}, and a restore would end it by {} with epoch {}",
                if marker.commit { "COMMIT" } else { "ABORT" },
                marker.epoch
            ),
            (None, Some(_)) => format!("{since} was committed nowhere, and a restore would commit it"),
            (None, None) => {
                format!("{since} is unknown to the transaction log: it would hang, or end with the id's next one")
            }
        };
        flaws.add(3, &self.partition, what);
    }

    fn judge_markers(&self, producer_id: i64, flaws: &mut Flaws) {
        let decisions = self.decisions_of(producer_id);
        let none = VecDeque::new();
        let events = self.events.get(&producer_id).unwrap_or(&none);
        let has_all_decisions = self.ids.whole.contains(&producer_id);
        let has_all_markers = self.is_whole && !self.cut_short.contains(&producer_id);
        let events: Vec<Event> = events.iter().copied().collect();
        let Err(unmarked) = fit(decisions, &events, has_all_decisions, has_all_markers) else { return };
        let what = match unmarked {
            Misfit::Unmarked(count) => {
                // A topic that was made anew under its old name has nothing of the older one.
                let made = self.first_timestamp;
                if made.is_none_or(|made| decisions[count - 1].timestamp < made) {
                    return flaws.note(format!(
                        "{}: {count} decided transactions of producer {producer_id} are older than its first record",
                        self.partition
                    ));
                }
                format!("{count} complete transactions of producer {producer_id} have no marker here")
            }
            Misfit::Mixed => format!(
                "the markers of producer {producer_id} are not those of its decided transactions: {} decided, {} markers",
                decisions.len(),
                events.iter().filter(|event| matches!(event, Event::Marker { .. })).count()
            ),
        };
        flaws.add(3, &self.partition, what);
    }
}

/// Why decisions and markers do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misfit {
    /// So many of the oldest decisions have no marker, though all markers are there.
    Unmarked(usize),
    /// Markers of another kind, number or order.
    Mixed,
}

/// Fits decisions and events together from the end backwards.
fn fit(decisions: &[Decision], events: &[Event], has_all_decisions: bool, has_all_markers: bool) -> Result<(), Misfit> {
    // Positions between events that what is left may end at.
    let skip_data = |at: usize| if at > 0 && events[at - 1] == Event::Data { at - 1 } else { at };
    let end = events.len();
    let mut places = BTreeSet::from([skip_data(end)]);
    let mut rest = decisions;
    if let Some((last, before)) = decisions.split_last().filter(|(last, _)| !last.is_complete) {
        // Its markers may have come already, and then nothing may follow them.
        let mut unmarked = places.clone();
        places = BTreeSet::from([end]);
        unmarked.extend(before_markers(*last, events, &places).into_iter().map(skip_data));
        (places, rest) = (unmarked, before);
    }
    let mut fewest_unmarked = None;
    loop {
        // All is used up on one side at least.
        let is_used_up = |at: &usize| *at == 0;
        if rest.is_empty() {
            if !has_all_decisions || places.iter().any(is_used_up) {
                return Ok(());
            }
            break;
        }
        if places.iter().any(is_used_up) {
            if !has_all_markers {
                return Ok(());
            }
            fewest_unmarked = Some(rest.len());
        }
        let (decision, before) = rest.split_last().expect("it is not empty");
        places = before_markers(*decision, events, &places).into_iter().map(skip_data).collect();
        rest = before;
        if places.is_empty() {
            break;
        }
    }
    Err(fewest_unmarked.map_or(Misfit::Mixed, Misfit::Unmarked))
}

/// Where one or several markers of `decision` may begin that end at one of `places`.
fn before_markers(decision: Decision, events: &[Event], places: &BTreeSet<usize>) -> BTreeSet<usize> {
    let marker = Event::Marker { commit: decision.commit, epoch: decision.epoch };
    let mut found = BTreeSet::new();
    for place in places {
        let run = events[..*place].iter().rev().take_while(|event| **event == marker).count();
        found.extend(place - run..*place);
    }
    found
}

#[cfg(test)]
mod tests;
