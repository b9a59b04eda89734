//! Small clusters of every kind take every step that Kafka could, and parts of what they wrote are captured at every
//! moment of its own. What is right is told twice, and not by the rules' own code: as rules over the whole truth, and as
//! what a restarted cluster makes of it.

use proptest::prelude::*;

use super::*;
use TransactionState::{CompleteAbort, CompleteCommit, Empty, Ongoing, PrepareAbort, PrepareCommit};

/// All that ever happened.
#[derive(Clone, Debug)]
struct History {
    ids: Vec<Vec<IdRecord>>,
    logs: Vec<Vec<Event>>,
    /// Where everything ended after each step.
    moments: Vec<Ends>,
    /// With transaction version 2 each decision has an epoch of its own.
    epochs_rise: bool,
}

/// How much there is, or is kept: records of each id, then events of each partition.
type Ends = Vec<usize>;

impl History {
    fn new(ids: usize, partitions: usize, epochs_rise: bool) -> Self {
        let born = IdRecord { state: Empty, epoch: 0, transaction: 0, partitions: vec![] };
        let mut history =
            Self { ids: vec![vec![born]; ids], logs: vec![vec![]; partitions], moments: vec![], epochs_rise };
        history.moments.push(history.ends());
        history
    }

    fn ends(&self) -> Ends {
        self.ids.iter().map(Vec::len).chain(self.logs.iter().map(Vec::len)).collect()
    }

    /// What could happen next to an id.
    fn successors(&self, id: usize) -> Vec<Self> {
        let last = self.ids[id].last().expect("an id is born with a record");
        let transaction = (id, last.transaction);
        let record = |state, epoch: i16, partitions: Vec<usize>| {
            let is_begun = state == Ongoing && matches!(last.state, CompleteCommit | CompleteAbort);
            let transaction = last.transaction + usize::from(is_begun);
            let mut next = self.clone();
            next.ids[id].push(IdRecord { state, epoch, transaction, partitions });
            next
        };
        let event = |partition: usize, kind| {
            let mut next = self.clone();
            let offset = next.logs[partition].len() as i64;
            next.logs[partition].push(Event { offset, transaction, epoch: last.epoch, kind });
            next
        };
        let all = 0..self.logs.len();
        let mut next: Vec<Self> = match last.state {
            Empty | CompleteCommit | CompleteAbort => {
                all.map(|partition| record(Ongoing, last.epoch, vec![partition])).collect()
            }
            Ongoing => {
                let listed = &last.partitions;
                let more = all.filter(|partition| !listed.contains(partition));
                let mut next: Vec<Self> =
                    more.map(|partition| record(Ongoing, last.epoch, [&listed[..], &[partition]].concat())).collect();
                next.extend(listed.iter().map(|partition| event(*partition, EventKind::Data)));
                let epoch = last.epoch + i16::from(self.epochs_rise);
                next.extend([PrepareCommit, PrepareAbort].map(|state| record(state, epoch, listed.clone())));
                next
            }
            PrepareCommit | PrepareAbort => {
                let commit = last.state == PrepareCommit;
                let kind = if commit { EventKind::Commit } else { EventKind::Abort };
                let is_marked = |partition: &usize| self.logs[*partition].iter().any(|it| it.is_marker_of(transaction));
                let left: Vec<usize> = last.partitions.iter().copied().filter(|it| !is_marked(it)).collect();
                if left.is_empty() {
                    vec![record(if commit { CompleteCommit } else { CompleteAbort }, last.epoch, vec![])]
                } else {
                    left.into_iter().map(|partition| event(partition, kind)).collect()
                }
            }
        };
        next.iter_mut().for_each(|it| it.moments.push(it.ends()));
        next
    }

    /// What is captured at these ends.
    fn captured(&self, ends: &Ends) -> Captured {
        let (of_ids, of_logs) = ends.split_at(self.ids.len());
        let id =
            |(records, end): (&Vec<IdRecord>, &usize)| TransactionalId { first: 0, records: records[..*end].to_vec() };
        let log = |(events, end): (&Vec<Event>, &usize)| {
            let mut written: BTreeMap<Transaction, i64> = BTreeMap::new();
            // An end that was sampled once a decision was there lies behind all of the transaction's data.
            for (id, records) in self.ids.iter().enumerate() {
                for record in records.iter().filter(|record| record.state == PrepareCommit) {
                    let transaction = (id, record.transaction);
                    let data = events.iter().rfind(|it| it.transaction == transaction && it.kind == EventKind::Data);
                    written.insert(transaction, data.map_or(0, |it| it.offset + 1));
                }
            }
            PartitionLog { end_offset: *end as i64, events: events[..*end].to_vec(), written }
        };
        Captured {
            ids: self.ids.iter().zip(of_ids).map(id).collect(),
            partitions: self.logs.iter().zip(of_logs).map(log).collect(),
        }
    }

    fn line(&self, ends: &Ends, rules: &[Rule]) -> Ends {
        let line = line_by(&self.captured(ends), rules);
        line.kept.iter().map(|(kept, _)| *kept).chain(line.ends.iter().map(|(end, _)| *end as usize)).collect()
    }

    fn kept<'a>(&'a self, cut: &Ends, id: usize) -> &'a [IdRecord] {
        &self.ids[id][..cut[id]]
    }

    fn log<'a>(&'a self, cut: &Ends, partition: usize) -> &'a [Event] {
        &self.logs[partition][..cut[self.ids.len() + partition]]
    }

    /// Whether a cut keeps all rules, by all that ever happened.
    fn is_closed(&self, cut: &Ends) -> bool {
        let is_marked =
            |transaction, partition: usize| self.log(cut, partition).iter().any(|it| it.is_marker_of(transaction));
        let records_are_founded = (0..self.ids.len()).all(|id| {
            let kept = self.kept(cut, id);
            kept.iter().enumerate().all(|(index, record)| {
                let transaction = (id, record.transaction);
                let is_data = |it: &&Event| it.transaction == transaction && it.kind == EventKind::Data;
                let all_data = |partition: &usize| {
                    let there = self.log(cut, *partition).iter().filter(is_data).count();
                    there == self.logs[*partition].iter().filter(is_data).count()
                };
                match record.state {
                    PrepareCommit if !record.partitions.iter().all(all_data) => false,
                    PrepareCommit | PrepareAbort if index + 1 < kept.len() => {
                        record.partitions.iter().all(|partition| is_marked(transaction, *partition))
                    }
                    _ => true,
                }
            })
        });
        let events_are_founded = (0..self.logs.len()).all(|partition| {
            self.log(cut, partition).iter().all(|event| {
                let (id, number) = event.transaction;
                let kept = self.kept(cut, id);
                let mut of_transaction = kept.iter().filter(|record| record.transaction == number);
                let is_caused = match event.kind {
                    EventKind::Data => of_transaction.any(|record| record.partitions.contains(&partition)),
                    EventKind::Commit => of_transaction.any(|record| record.state == PrepareCommit),
                    EventKind::Abort => true,
                };
                is_caused && kept.iter().any(|record| record.epoch >= event.epoch)
            })
        });
        records_are_founded && events_are_founded
    }

    /// What is wrong with a cluster that starts from a cut: its coordinators end what they know of, and nothing else.
    fn restart(&self, cut: &Ends) -> Result<(), String> {
        for id in 0..self.ids.len() {
            let kept = self.kept(cut, id);
            let known = kept.last().map_or(-1, |record| record.epoch);
            let all = || (0..self.logs.len()).map(|partition| self.log(cut, partition));
            if all().flatten().any(|event| event.transaction.0 == id && event.epoch > known) {
                return Err(format!("an epoch of id {id} is above {known}"));
            }
            let last_transaction = self.ids[id].last().expect("an id is born with a record").transaction;
            for number in 0..=last_transaction {
                self.restart_transaction(cut, (id, number))
                    .map_err(|why| format!("transaction {number} of id {id}: {why}"))?;
            }
        }
        Ok(())
    }

    fn restart_transaction(&self, cut: &Ends, transaction: Transaction) -> Result<(), String> {
        let (id, number) = transaction;
        let kept = self.kept(cut, id);
        let mut is_committed = kept.iter().any(|it| it.transaction == number && it.state == PrepareCommit);
        let mut is_whole = true;
        let is_data = |it: &&Event| it.transaction == transaction && it.kind == EventKind::Data;
        for partition in 0..self.logs.len() {
            let log = self.log(cut, partition);
            let written = self.logs[partition].iter().filter(is_data).count();
            let there = log.iter().filter(is_data).count();
            let marker = log.iter().find(|it| it.is_marker_of(transaction)).map(|it| it.kind == EventKind::Commit);
            let by_coordinator = || match kept.last() {
                Some(last) if last.transaction == number && last.partitions.contains(&partition) => {
                    Ok(last.state == PrepareCommit)
                }
                _ => Err(format!("it hangs in partition {partition}")),
            };
            let commits = match marker {
                Some(commits) => commits,
                None if there == 0 => {
                    is_whole &= written == 0;
                    continue;
                }
                None => by_coordinator()?,
            };
            is_committed |= commits;
            is_whole &= written == there && (written == 0 || commits);
        }
        if is_committed && !is_whole { Err("it is committed in part".to_owned()) } else { Ok(()) }
    }
}

fn is_below(a: &Ends, b: &Ends) -> bool {
    a.iter().zip(b).all(|(a, b)| a <= b)
}

/// All vectors below one.
fn vectors(most: &Ends) -> Vec<Ends> {
    most.iter().fold(vec![vec![]], |vectors, most| {
        vectors.iter().flat_map(|it: &Ends| (0..=*most).map(move |end| [&it[..], &[end]].concat())).collect()
    })
}

/// One id and two partitions, whatever happens in so many steps.
fn explored(epochs_rise: bool) -> Vec<History> {
    const STEPS: usize = 10;
    let mut histories = vec![History::new(1, 2, epochs_rise)];
    for _ in 0..STEPS {
        histories = histories.iter().flat_map(|history| history.successors(0)).collect();
    }
    assert!(histories.len() > 5_000, "{}", histories.len());
    histories
}

#[test]
fn whatever_is_captured_the_line_is_the_greatest_cut_that_keeps_the_rules_and_is_safe() {
    for history in [false, true].into_iter().flat_map(explored) {
        let vectors = vectors(&history.ends());
        let closed: Vec<&Ends> = vectors.iter().filter(|cut| history.is_closed(cut)).collect();
        for captured in &vectors {
            let line = history.line(captured, &Rule::ALL);
            assert!(is_below(&line, captured) && history.is_closed(&line), "{history:?} at {captured:?}: {line:?}");
            assert_eq!(history.restart(&line), Ok(()), "{history:?} at {captured:?}: {line:?}");
            let greater = closed.iter().find(|cut| is_below(cut, captured) && !is_below(cut, &line));
            assert_eq!(greater, None, "{history:?} at {captured:?}: {line:?}");
        }
    }
}

#[test]
fn without_any_one_rule_a_cut_is_found_that_breaks_its_promise() {
    let histories: Vec<History> = [false, true].into_iter().flat_map(explored).collect();
    for without in Rule::ALL {
        let rules: Vec<Rule> = Rule::ALL.into_iter().filter(|rule| *rule != without).collect();
        let breaks = |history: &History| {
            vectors(&history.ends()).iter().any(|captured| history.restart(&history.line(captured, &rules)).is_err())
        };
        assert!(histories.iter().any(breaks), "{without:?} is not needed");
    }
}

#[test]
fn what_broke_a_rule_is_told() {
    // Data, a commit in two partitions; the transaction log was captured before the decision, partition 1 before its data.
    let mut history = History::new(1, 2, false);
    for step in [0, 0, 0, 1, 2, 0, 0, 0] {
        history = history.successors(0).swap_remove(step);
    }
    assert_eq!(history.ends(), [5, 2, 2], "{history:?}");
    let line = maximal_line(&history.captured(&vec![3, 2, 2]));
    let ends = [(1, Some(Rule::CommitIsDecided)), (1, Some(Rule::CommitIsDecided))];
    assert_eq!((line.kept, line.ends), (vec![(3, None)], ends.to_vec()));
    let line = maximal_line(&history.captured(&vec![5, 2, 0]));
    let ends = [(1, Some(Rule::CommitIsDecided)), (0, None)];
    assert_eq!((line.kept, line.ends), (vec![(3, Some(Rule::DecidedIsWritten))], ends.to_vec()));
    let line = maximal_line(&history.captured(&vec![5, 1, 2]));
    assert_eq!((line.kept, line.ends), (vec![(4, Some(Rule::CompleteIsMarked))], vec![(1, None), (2, None)]));
}

fn histories() -> impl Strategy<Value = History> {
    let steps = proptest::collection::vec((0..2_usize, any::<prop::sample::Index>()), 1..40);
    (steps, any::<bool>()).prop_map(|(steps, epochs_rise)| {
        steps.into_iter().fold(History::new(2, 3, epochs_rise), |history, (id, which)| {
            let mut next = history.successors(id);
            next.swap_remove(which.index(next.len()))
        })
    })
}

proptest! {
    /// Several ids, partitions captured one after the other: nothing that was there when the first was is lost, later
    /// captures never have less, and the cut is safe.
    #[test]
    fn no_line_lies_below_the_state_at_the_first_capture_or_falls(
        history in histories(),
        moments in proptest::collection::vec(any::<prop::sample::Index>(), 5),
        later in proptest::collection::vec(any::<prop::sample::Index>(), 5),
    ) {
        let index = |it: &prop::sample::Index| it.index(history.moments.len());
        let at = |moments: &[usize]| -> Ends { moments.iter().enumerate().map(|(part, at)| history.moments[*at][part]).collect() };
        let moments: Vec<usize> = moments.iter().map(index).collect();
        let line = history.line(&at(&moments), &Rule::ALL);
        prop_assert!(history.is_closed(&line));
        prop_assert_eq!(history.restart(&line), Ok(()));
        let first = *moments.iter().min().expect("five");
        prop_assert!(is_below(&history.moments[first], &line), "{:?} at {:?}: {:?}", history, moments, line);
        let later: Vec<usize> = later.iter().map(index).zip(&moments).map(|(at, moment)| at.max(*moment)).collect();
        prop_assert!(is_below(&line, &history.line(&at(&later), &Rule::ALL)));
    }
}
