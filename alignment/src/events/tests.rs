//! A model: one transactional id at work while phase A's samples are taken at any moment. The model knows what caused
//! what; the module must find the same, or say that it cannot tell. Stories with fixed outcomes are in `tests/tables`.

use proptest::prelude::*;

use super::*;
use crate::sample::ProducerEvent;

const PRODUCER: i64 = 7;

fn partition(number: i32) -> Partition {
    ("t".to_owned(), number)
}

/// What the model does next.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// The client or the coordinator goes one step on.
    Step,
    /// Phase A samples.
    Mark,
    Probe,
}

/// One id that runs transactions over two partitions, step by step, as the protocol orders them.
#[derive(Default)]
struct Model {
    /// Epochs rise with every decision (transaction version 2).
    epochs_rise: bool,
    /// The markers of every so manieth transaction are sent twice, as a new coordinator does; 0 for none.
    resends: u64,
    epoch: i16,
    records: Vec<TransactionRecord>,
    /// Per partition: the event, and the offset of the record that caused it.
    logs: [Vec<(ProducerEvent, i64)>; 2],
    /// Steps of the transaction under way that are still to come.
    script: Vec<Step>,
    transactions: u64,
    marks: Vec<i64>,
    probes: [Vec<Option<i64>>; 2],
    prepared: [usize; 2],
    listed: Vec<Partition>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Add(usize),
    Data(usize),
    Decide,
    Marker(usize),
    Complete,
}

impl Model {
    fn record(&mut self, state: TransactionState) {
        let (offset, partitions) = (self.records.len() as i64, self.listed.clone());
        self.records.push(TransactionRecord {
            offset,
            transactional_id: "id".to_owned(),
            producer_id: PRODUCER,
            producer_epoch: self.epoch,
            state: Some(state),
            partitions,
        });
    }

    fn append(&mut self, number: usize, is_marker: bool) {
        let wanted = |record: &&TransactionRecord| match record.state {
            Some(TransactionState::Ongoing) => !is_marker && record.partitions.contains(&partition(number as i32)),
            Some(TransactionState::PrepareCommit) => is_marker,
            _ => false,
        };
        let last_complete = self.records.iter().rposition(|r| r.state == Some(TransactionState::CompleteCommit));
        let current = &self.records[last_complete.map_or(0, |index| index + 1)..];
        let cause = current.iter().find(wanted).expect("effects follow causes").offset;
        let event = ProducerEvent {
            offset: self.logs[number].len() as i64,
            producer_id: PRODUCER,
            producer_epoch: self.epoch,
            is_marker,
        };
        self.logs[number].push((event, cause));
    }

    fn step(&mut self) {
        if self.script.is_empty() {
            self.transactions += 1;
            // Not every transaction goes to both partitions.
            let both: &[usize] = [&[0usize, 1][..], &[0], &[1]][(self.transactions % 3) as usize];
            let mut script: Vec<Step> =
                both.iter().flat_map(|&p| [Step::Add(p), Step::Data(p), Step::Data(p)]).collect();
            script.push(Step::Decide);
            script.extend(both.iter().rev().map(|&p| Step::Marker(p)));
            if self.resends > 0 && self.transactions.is_multiple_of(self.resends) {
                script.extend(both.iter().map(|&p| Step::Marker(p)));
            }
            script.push(Step::Complete);
            self.script = script.into_iter().rev().collect();
        }
        match self.script.pop().expect("just filled") {
            Step::Add(number) => {
                self.listed.push(partition(number as i32));
                self.record(TransactionState::Ongoing);
            }
            Step::Data(number) => self.append(number, false),
            Step::Decide => {
                self.epoch += i16::from(self.epochs_rise);
                self.record(TransactionState::PrepareCommit);
            }
            Step::Marker(number) => self.append(number, true),
            Step::Complete => {
                self.listed.clear();
                self.record(TransactionState::CompleteCommit);
            }
        }
    }

    fn do_op(&mut self, op: Op) {
        match op {
            Op::Step => self.step(),
            Op::Mark => self.marks.push(self.records.len() as i64),
            Op::Probe => {
                for (probes, log) in self.probes.iter_mut().zip(&self.logs) {
                    probes.push(Some(log.len() as i64));
                }
            }
        }
    }

    fn copy(&self) -> TransactionLogCopy {
        let first = self.marks[0];
        let (below, records): (Vec<_>, Vec<_>) = self.records.iter().cloned().partition(|r| r.offset < first);
        TransactionLogCopy {
            partition: 0,
            at_first: below.last().cloned().into_iter().collect(),
            records,
            max_producer_id: 7,
        }
    }
}

/// Whether the module found what the model knows; `false` if it said that it cannot tell.
fn agrees(model: &Model, pinned: [usize; 2]) -> bool {
    let copy = model.copy();
    let log = MarkedLog { copy: &copy, marks: &model.marks, end_offset: model.records.len() as i64 };
    let mark = *model.marks.last().unwrap();
    let furthest = |number: usize| model.probes[number].iter().flatten().max().copied().unwrap_or(i64::MIN);
    let events: Vec<_> = (0..2)
        .map(|number| PartitionEvents {
            topic: "t".to_owned(),
            partition: number as i32,
            probes: model.probes[number].clone(),
            probed_end: furthest(number),
            events: model.logs[number][model.prepared[number]..pinned[number]]
                .iter()
                .map(|(event, _)| *event)
                .collect(),
        })
        .collect();
    let (found, doubts) = first_events(&[log], &events);
    for (number, pinned) in pinned.into_iter().enumerate() {
        let truth = model.logs[number][..pinned].iter().find(|(_, cause)| *cause >= mark);
        let truth = truth.map(|(event, _)| event.offset);
        let found = found.get(&partition(number as i32)).copied();
        assert!(found.is_none_or(|found| found >= furthest(number)), "what was probed is never trimmed");
        if doubts.is_empty() {
            assert_eq!(found, truth, "partition {number}");
        } else if let Some(truth) = truth {
            assert!(found.is_some_and(|found| found <= truth), "a doubtful cut is never too late");
        }
    }
    doubts.is_empty()
}

/// `rests`: no transaction is under way when the barrier is prepared. (One that is being decided just then, and whose
/// marker is not there yet, may leave a doubt: its marker may as well lie below what is looked at.)
fn play(epochs_rise: bool, rests: bool, before: usize, rounds: &[[usize; 2]], pins: [usize; 2], after: usize) -> bool {
    play_with(Model { epochs_rise, ..Default::default() }, rests, before, rounds, pins, after)
}

fn play_with(
    mut model: Model,
    rests: bool,
    before: usize,
    rounds: &[[usize; 2]],
    pins: [usize; 2],
    after: usize,
) -> bool {
    (0..before).for_each(|_| model.step());
    while rests && !model.script.is_empty() {
        model.step();
    }
    for number in 0..2 {
        model.prepared[number] = model.logs[number].len();
    }
    for [before_probe, before_mark] in rounds {
        model.do_op(Op::Mark);
        (0..*before_probe).for_each(|_| model.do_op(Op::Step));
        model.do_op(Op::Probe);
        (0..*before_mark).for_each(|_| model.do_op(Op::Step));
    }
    model.do_op(Op::Mark);
    (0..pins[0]).for_each(|_| model.step());
    let first = model.logs[0].len();
    (0..pins[1]).for_each(|_| model.step());
    let second = model.logs[1].len();
    (0..after).for_each(|_| model.step());
    agrees(&model, [first, second])
}

proptest! {
    #[test]
    fn what_is_told_is_true_at_any_pace(
        epochs_rise in any::<bool>(),
        resends in 0u64..4,
        rests in any::<bool>(),
        before in 0usize..60,
        rounds in proptest::collection::vec([0usize..12, 0usize..12], 1..5),
        pins in [0usize..40, 0usize..40],
        after in 0usize..30,
    ) {
        let model = Model { epochs_rise, resends, ..Default::default() };
        play_with(model, rests, before, &rounds, pins, after);
    }

    #[test]
    fn epochs_that_rise_leave_no_doubt(
        before in 0usize..60,
        pins in [0usize..40, 0usize..40],
        after in 0usize..30,
        pace in 0usize..12,
    ) {
        prop_assert!(play(true, true, before, &[[pace, pace]], pins, after));
    }

    #[test]
    fn an_id_that_rests_during_one_round_leaves_no_doubt(
        before in 0usize..60,
        pins in [0usize..40, 0usize..40],
        after in 0usize..30,
        pace in 0usize..12,
    ) {
        prop_assert!(play(false, true, before, &[[0, 0], [pace, pace]], pins, after));
    }
}

#[test]
fn a_few_rounds_mostly_settle_a_fast_id() {
    let mut settled = 0;
    for before in 0..200 {
        settled += usize::from(play(false, false, before, &[[1, 2], [2, 1], [1, 1], [2, 2]], [20, 20], 10));
    }
    assert!(settled >= 190, "{settled} of 200");
}
