//! The barrier, explored: a small Kafka (one transactional id, two partitions of which one has followers that lag, a
//! group of readers) takes step after step, and the samples and pins of a restore point fall between them in every
//! possible way. What this crate makes of them is restored in thought and must keep the promise of level L3. Take one rule
//! out, and the exploration finds a point that breaks it: else it would prove nothing.

use std::collections::BTreeMap;

use segvault_alignment::events::{MarkedLog, first_events, to_find};
use segvault_alignment::line::{Partition, endings, strict_line, unfinished};
use segvault_alignment::sample::{
    LogPosition, OpenTransaction, PartitionEvents, ProducerEvent, TransactionLogCopy, TransactionRecord,
    TransactionState,
};
use segvault_alignment::source::{Candidate, rank};

const PRODUCER: i64 = 7;
/// The leader of partition 0, a follower in sync, and one that is not.
const NODES: [i32; 3] = [1, 2, 3];
const IN_SYNC: [i32; 2] = [1, 2];

/// A step of the cluster; transactions are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The transaction log lists a partition.
    Add(usize),
    /// A batch of the transaction under way.
    Data(usize),
    /// The follower of partition 0 catches up.
    Replicate,
    /// The client asks for the end, all data being acknowledged, and is told of it.
    Decide,
    Marker(usize),
    Complete,
    /// The readers commit the end of partition 0, as far as it is replicated.
    CommitOffset,
}

/// A transaction to be played.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    partitions: &'static [usize],
    commit: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Data { transaction: usize },
    Marker { transaction: usize },
}

/// The cluster after some steps: logs only grow, so lengths say all.
#[derive(Clone, Debug, Default)]
struct Moment {
    records: usize,
    logs: [usize; 2],
    follower: usize,
    committed_offset: usize,
    /// Transactions that clients were told are committed.
    told: usize,
}

/// Everything that ever happens, and where it stands after each step.
#[derive(Default)]
struct Course {
    records: Vec<(TransactionRecord, usize)>,
    logs: [Vec<(Entry, i16)>; 2],
    moments: Vec<Moment>,
    transactions: Vec<Transaction>,
}

fn partition(number: usize) -> Partition {
    ("t".to_owned(), number as i32)
}

/// The steps of some transactions, with a commit of the readers after so many of them.
fn steps(transactions: &[Transaction], readers_after: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for Transaction { partitions, .. } in transactions {
        steps.extend(partitions.iter().flat_map(|number| [Step::Add(*number), Step::Data(*number)]));
        steps.extend([Step::Replicate, Step::Decide]);
        steps.extend(partitions.iter().rev().map(|number| Step::Marker(*number)));
        steps.extend([Step::Replicate, Step::Complete]);
    }
    steps.insert(readers_after.min(steps.len()), Step::CommitOffset);
    steps
}

impl Course {
    /// Plays transactions; with `epochs_rise` every decision has an epoch of its own (transaction version 2).
    fn play(transactions: &[Transaction], epochs_rise: bool, readers_after: usize) -> Self {
        let mut course = Self { transactions: transactions.to_vec(), ..Self::default() };
        let (mut epoch, mut current, mut listed) = (0, 0, Vec::new());
        course.moments.push(Moment::default());
        for step in steps(transactions, readers_after) {
            let mut moment = course.moments.last().expect("the beginning").clone();
            let commit = transactions.get(current).is_some_and(|transaction| transaction.commit);
            let mut record = |state, producer_epoch, listed: &[Partition]| {
                let offset = course.records.len() as i64;
                let record = TransactionRecord {
                    offset,
                    transactional_id: "id".to_owned(),
                    producer_id: PRODUCER,
                    producer_epoch,
                    state: Some(state),
                    partitions: listed.to_vec(),
                };
                course.records.push((record, current));
            };
            match step {
                Step::Add(number) => {
                    listed.push(partition(number));
                    record(TransactionState::Ongoing, epoch, &listed);
                }
                Step::Data(number) => course.logs[number].push((Entry::Data { transaction: current }, epoch)),
                Step::Replicate => moment.follower = moment.logs[0],
                Step::Decide => {
                    epoch += i16::from(epochs_rise);
                    let state = if commit { TransactionState::PrepareCommit } else { TransactionState::PrepareAbort };
                    record(state, epoch, &listed);
                    moment.told = current + 1;
                }
                Step::Marker(number) => course.logs[number].push((Entry::Marker { transaction: current }, epoch)),
                Step::Complete => {
                    let state = if commit { TransactionState::CompleteCommit } else { TransactionState::CompleteAbort };
                    record(state, epoch, &[]);
                    listed.clear();
                    current += 1;
                }
                Step::CommitOffset => moment.committed_offset = moment.follower,
            }
            moment.records = course.records.len();
            moment.logs = [0, 1].map(|number| course.logs[number].len());
            course.moments.push(moment);
        }
        course
    }
}

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// The transaction log is read once, after the data.
    PhaseA,
    /// Data is not cut before what the transaction log said too late.
    Line,
    /// The readers' offsets are pinned after the data.
    OffsetsFirst,
    /// Any replica will do.
    FurthestReplica,
}

/// When each part of the capture happens: numbers of moments, not falling.
#[derive(Clone, Copy, Debug)]
struct Capture {
    marks: [usize; 2],
    probe: usize,
    offsets: usize,
    data: [usize; 2],
    seal: usize,
}

/// What is restored.
struct Point {
    records: usize,
    cuts: [usize; 2],
    offset: usize,
    /// Where the source of partition 0 ended.
    pinned: usize,
    /// What the open transaction of each partition gets: COMMIT, or else ABORT.
    markers: [Option<bool>; 2],
}

/// The point that a capture makes; nothing if the module says that it cannot tell.
fn take(course: &Course, capture: Capture, without: Without) -> Option<Point> {
    let at = |moment: usize| &course.moments[moment];
    let seal = at(capture.seal);
    let marks: Vec<i64> = match without {
        Without::PhaseA => vec![seal.records as i64],
        _ => capture.marks.iter().map(|moment| at(*moment).records as i64).collect(),
    };
    let candidates: Vec<Candidate> = NODES
        .into_iter()
        .zip([at(capture.data[0]).logs[0], at(capture.data[0]).follower, 0])
        .map(|(node_id, end)| Candidate {
            node_id,
            position: LogPosition { last_epoch: 0, end_offset: end as i64 },
            log_start_offset: 0,
            lost_start: false,
        })
        .collect();
    let source = match without {
        Without::FurthestReplica => candidates[2].clone(),
        _ => rank(&candidates, &IN_SYNC.into(), None).swap_remove(0),
    };
    let pinned = [source.position.end_offset as usize, at(capture.data[1]).logs[1]];

    let (below, records): (Vec<_>, Vec<_>) =
        course.records[..seal.records].iter().map(|(record, _)| record.clone()).partition(|it| it.offset < marks[0]);
    let copy = TransactionLogCopy {
        partition: 0,
        at_first: below.last().cloned().into_iter().collect(),
        records,
        max_producer_id: PRODUCER,
    };
    let log = MarkedLog { copy: &copy, marks: &marks, end_offset: seal.records as i64 };
    let wanted = to_find(&[log]);
    let probes: &[usize] = if marks.len() > 1 { &[capture.probe] } else { &[] };
    let events: Vec<PartitionEvents> = (0..2)
        .filter(|number| wanted.contains_key(&partition(*number)))
        .map(|number| PartitionEvents {
            topic: "t".to_owned(),
            partition: number as i32,
            probes: probes.iter().map(|probe| Some(at(*probe).logs[number].min(pinned[number]) as i64)).collect(),
            probed_end: probes.iter().map(|probe| at(*probe).logs[number] as i64).max().unwrap_or(i64::MIN),
            events: producer_events(&course.logs[number][..pinned[number]]),
        })
        .collect();
    let (mut first, doubts) = first_events(&[log], &events);
    if !doubts.is_empty() {
        return None; // The barrier is raised again.
    }
    if without == Without::Line {
        first.clear();
    }
    let ends = [0, 1].map(|number| (partition(number), pinned[number] as i64)).into();
    let line = strict_line(&ends, &BTreeMap::new(), &first);
    let cuts = [0, 1].map(|number| line[&partition(number)].end_offset as usize);
    let unfinished = unfinished(log.at_mark());
    let markers = [0, 1].map(|number| {
        let open = open_transaction(&course.logs[number][..cuts[number]]);
        endings(&partition(number), open.as_slice(), &unfinished).first().map(|ending| ending.commit)
    });
    let offsets = if without == Without::OffsetsFirst { capture.seal } else { capture.offsets };
    Some(Point {
        records: *marks.last().expect("at least one") as usize,
        cuts,
        offset: at(offsets).committed_offset,
        pinned: pinned[0],
        markers,
    })
}

fn producer_events(log: &[(Entry, i16)]) -> Vec<ProducerEvent> {
    let event = |(offset, (entry, producer_epoch)): (usize, &(Entry, i16))| ProducerEvent {
        offset: offset as i64,
        producer_id: PRODUCER,
        producer_epoch: *producer_epoch,
        is_marker: matches!(entry, Entry::Marker { .. }),
    };
    log.iter().enumerate().map(event).collect()
}

fn open_transaction(log: &[(Entry, i16)]) -> Option<OpenTransaction> {
    let ended = log.iter().rposition(|(entry, _)| matches!(entry, Entry::Marker { .. })).map_or(0, |last| last + 1);
    let (_, epoch) = log.get(ended)?;
    Some(OpenTransaction {
        producer_id: PRODUCER,
        producer_epoch: *epoch,
        coordinator_epoch: -1,
        first_offset: ended as i64,
    })
}

/// What became of a transaction's data in a partition, once the restored coordinator has done its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    Aborted,
}

/// What is wrong with a restored point.
fn judge(course: &Course, capture: Capture, point: &Point) -> Result<(), String> {
    let begun = &course.moments[capture.marks[0]];
    // What was acknowledged before the point began is there.
    for (number, acknowledged) in [begun.follower, begun.logs[1]].into_iter().enumerate() {
        if point.cuts[number] < acknowledged {
            return Err(format!("partition {number} is cut at {}, acknowledged is {acknowledged}", point.cuts[number]));
        }
    }
    if point.offset > point.pinned {
        return Err(format!("the readers are at {}, the partition ended at {}", point.offset, point.pinned));
    }
    if point.offset < begun.committed_offset {
        return Err("the readers are behind what they had committed".to_owned());
    }
    let last = point.records.checked_sub(1).map(|last| &course.records[last]);
    for (index, transaction) in course.transactions.iter().enumerate() {
        let decision = last.and_then(|(record, of)| match record.state {
            _ if *of > index => Some(true),
            Some(TransactionState::Ongoing) | None => None,
            _ if *of == index => Some(true),
            _ => None,
        });
        let is_committed = decision.is_some() && transaction.commit;
        let fates: Vec<Result<Option<Fate>, String>> = transaction
            .partitions
            .iter()
            .map(|number| fate(course, point, *number, index, last).map_err(|why| format!("partition {number}: {why}")))
            .collect();
        let fates =
            fates.into_iter().collect::<Result<Vec<_>, _>>().map_err(|why| format!("transaction {index}: {why}"))?;
        let all = |fate| fates.iter().all(|found| *found == Some(fate));
        if fates.contains(&Some(Fate::Committed)) && !all(Fate::Committed) {
            return Err(format!("transaction {index} is torn: {fates:?}"));
        }
        if is_committed && !all(Fate::Committed) {
            return Err(format!("transaction {index} is committed by the transaction log: {fates:?}"));
        }
        if index < begun.told && transaction.commit && !all(Fate::Committed) {
            return Err(format!("transaction {index} had been acknowledged: {fates:?}"));
        }
    }
    Ok(())
}

/// `None`: nothing of it is there.
fn fate(
    course: &Course,
    point: &Point,
    number: usize,
    index: usize,
    last: Option<&(TransactionRecord, usize)>,
) -> Result<Option<Fate>, String> {
    let log = &course.logs[number][..point.cuts[number]];
    let of_kind = |wanted: Entry| log.iter().any(|(entry, _)| *entry == wanted);
    let by_decision = |of: usize| if course.transactions[of].commit { Fate::Committed } else { Fate::Aborted };
    if !of_kind(Entry::Data { transaction: index }) {
        return Ok(None);
    }
    if of_kind(Entry::Marker { transaction: index }) {
        return Ok(Some(by_decision(index)));
    }
    let ended = point.markers[number].map(|commit| if commit { Fate::Committed } else { Fate::Aborted });
    match last.filter(|(record, _)| record.partitions.contains(&partition(number))) {
        Some((_, of)) if *of != index => Err(format!("transaction {of} ends it")),
        Some((record, _)) if record.state == Some(TransactionState::Ongoing) => match ended {
            None => Ok(Some(Fate::Aborted)),
            Some(_) => Err("it is ended, and its producer may go on with it".to_owned()),
        },
        Some(_) if ended.is_none() => Err("its marker is left to a coordinator that may pass over it".to_owned()),
        None if ended.is_none() => Err("it hangs, or is ended by a later one".to_owned()),
        _ => Ok(ended),
    }
}

/// All ways in which the parts of a capture fall between the steps, until `look` says false.
fn captures(moments: usize, mut look: impl FnMut(Capture) -> bool) -> bool {
    let all = || 0..moments;
    all().all(|first| {
        (first..moments).all(|probe| {
            (probe..moments).all(|second| {
                (second..moments).all(|offsets| {
                    (offsets..moments).all(|one| {
                        (one..moments).all(|other| {
                            (other..moments).all(|seal| {
                                // Which partition is pinned first makes a difference.
                                [[one, other], [other, one]]
                                    .into_iter()
                                    .all(|data| look(Capture { marks: [first, second], probe, offsets, data, seal }))
                            })
                        })
                    })
                })
            })
        })
    })
}

/// Explores every capture of some courses: how many points were taken and judged, and the first that is not as promised.
fn explore(without: Without) -> (u64, Option<String>) {
    let both = |commit| Transaction { partitions: &[0, 1], commit };
    let one = |partitions, commit| Transaction { partitions, commit };
    let stories: [&[Transaction]; 4] =
        [&[both(true)], &[both(false)], &[one(&[0], true), one(&[0], true)], &[one(&[1], true), one(&[1], false)]];
    let mut judged = 0;
    for story in stories {
        for (epochs_rise, readers_after) in [(false, 3), (true, 6)] {
            let course = Course::play(story, epochs_rise, readers_after);
            let mut broken = None;
            captures(course.moments.len(), |capture| {
                let Some(point) = take(&course, capture, without) else { return true };
                judged += 1;
                broken = judge(&course, capture, &point).err();
                broken.is_none()
            });
            if let Some(why) = broken {
                return (judged, Some(format!("{story:?}, epochs rise: {epochs_rise}: {why}")));
            }
        }
    }
    (judged, None)
}

#[test]
fn no_capture_of_a_small_cluster_breaks_the_promise() {
    let (judged, broken) = explore(Without::Nothing);
    assert_eq!(broken, None);
    println!("{judged} points");
    assert!(judged > 500_000, "{judged} points prove little");
}

#[test]
fn without_any_one_rule_a_point_is_found_that_breaks_it() {
    let rules = [
        (Without::PhaseA, "is committed by the transaction log"),
        (Without::Line, "is torn"),
        (Without::OffsetsFirst, "the readers are at"),
        (Without::FurthestReplica, "is torn"),
    ];
    for (without, expected) in rules {
        let (_, broken) = explore(without);
        let broken = broken.unwrap_or_else(|| panic!("{without:?}: every point is as promised"));
        println!("{without:?}: {broken}");
        assert!(broken.contains(expected), "{without:?}: {broken}");
    }
}
