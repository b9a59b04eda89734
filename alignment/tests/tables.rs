//! What this crate decides, in text: each file of `tests/tables` tells what brokers had on disk as a restore point was
//! taken, and what the point makes of it. `tests/tables/README.md` says how to read and write one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::str::FromStr;

use segvault_alignment::events::{MarkedLog, first_events, to_find};
use segvault_alignment::line::{Ending, Partition, clamped, endings, mark_on_source, strict_line, unfinished};
use segvault_alignment::sample::{
    LogPosition, OpenTransaction, PartitionEvents, ProducerEvent, TransactionLogCopy, TransactionRecord,
    TransactionState,
};
use segvault_alignment::source::{Candidate, in_sync, rank};
use segvault_kafka_log::metadata::PartitionImage;
use segvault_kafka_log::share::{ShareSnapshotValue, StateBatch};

const TRANSACTION_LOG: &str = "__transaction_state";

/// The offset of the first record that follows.
const FIRST: i64 = i64::MIN;

macro_rules! tables {
    ($($name:ident),+) => {
        const TABLES: &[&str] = &[$(concat!(stringify!($name), ".txt")),+];

        $(#[test]
        fn $name() {
            let file = concat!(stringify!($name), ".txt");
            if let Err(why) = check(file, include_str!(concat!("tables/", stringify!($name), ".txt"))) {
                panic!("{why}");
            }
        })+
    };
}

tables!(sources, transactions_v1, transactions_v2, open_transactions, leader_changes, groups);

#[test]
#[allow(clippy::disallowed_methods, reason = "the test looks at its own folder")]
fn no_table_is_left_out() {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tables")).unwrap();
    let mut files: BTreeSet<String> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(files.remove("README.md"));
    assert_eq!(files, TABLES.iter().map(|file| (*file).to_owned()).collect());
}

#[test]
fn a_wrong_expectation_is_shown_beside_what_was_found() {
    let text = "case two replicas\n t-0:\n isr 1\n replica 1 4@0 end 9\n replica 2 4@0 end 8\n expect\n t-0: from 2, ends at 9\n";
    let why = "f.txt:1: two replicas\n  - t-0: from 2, ends at 9\n  + t-0: from 1, ends at 9\n";
    assert_eq!(check("f.txt", text), Err(why.to_owned()));
}

#[test]
fn what_cannot_be_read_is_named_by_file_and_line() {
    for (text, why) in [
        ("# nothing\n", "f.txt: no case"),
        ("case a\nt-0:\n7 data 1/0\n", "f.txt:1: a: nothing is expected"),
        ("case a\nt-0:\nprobe\nexpect\nt-0: ends at 0\n", "f.txt:1: a: a mark or probe stands nowhere"),
        ("t-0:\n", "f.txt:1: outside a case: t-0:"),
        ("case a\n7 data 1/0\n", "f.txt:2: outside a partition: 7 data 1/0"),
        ("case a\nt-0:\n7 date 1/0\n", "f.txt:3: not understood: 7 date 1/0"),
        ("case a\nt-0:\n7 data 1-0\n", "f.txt:3: not understood: 7 data 1-0"),
        ("case a\nt-0:\nreplica 1 4@0\n", "f.txt:3: not understood: replica 1 4@0"),
        ("case a\nt-0:\n7 data 1/0\n7 data 1/0\n", "f.txt:4: offsets do not rise: 7 data 1/0"),
    ] {
        assert_eq!(check("f.txt", text), Err(why.to_owned()));
    }
}

/// A table's cases, each held against what the crate makes of it.
fn check(file: &str, text: &str) -> Result<(), String> {
    let cases = parse(text).map_err(|why| format!("{file}:{why}"))?;
    if cases.is_empty() {
        return Err(format!("{file}: no case"));
    }
    let mut wrong = String::new();
    for case in cases {
        if case.expected.is_empty() {
            return Err(format!("{file}:{}: {}: nothing is expected", case.line, case.name));
        }
        if case.logs.iter().flat_map(|log| &log.samples).any(|sample| sample.position.end_offset == FIRST) {
            return Err(format!("{file}:{}: {}: a mark or probe stands nowhere", case.line, case.name));
        }
        let found = outcome(&case.logs);
        if found != case.expected {
            let _ = writeln!(wrong, "{file}:{}: {}", case.line, case.name);
            for line in &case.expected {
                let _ = writeln!(wrong, "  {} {line}", if found.contains(line) { ' ' } else { '-' });
            }
            for line in found.iter().filter(|line| !case.expected.contains(line)) {
                let _ = writeln!(wrong, "  + {line}");
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

// ---------------------------------------------------------------- the text

#[derive(Debug, Default)]
struct Case {
    name: String,
    line: usize,
    logs: Vec<Log>,
    /// As they stand there, one space between words.
    expected: Vec<String>,
}

/// A partition, as the lines below its name tell it.
#[derive(Debug, Default)]
struct Log {
    partition: Partition,
    image: PartitionImage,
    previous: Option<i32>,
    replicas: Vec<(Candidate, Vec<(i32, i64)>)>,
    records: Vec<TransactionRecord>,
    events: Vec<ProducerEvent>,
    samples: Vec<Sample>,
    /// What groups have committed of the partition.
    committed: Vec<(String, i64)>,
    /// What share groups know of it.
    shared: Vec<(String, ShareSnapshotValue)>,
    /// Where it ends, without replicas that say so.
    end_offset: i64,
}

/// A `mark` of the transaction log or a `probe` of another partition.
#[derive(Debug)]
struct Sample {
    position: LogPosition,
    /// A replica that was in sync all the time was looked at.
    in_sync: bool,
}

/// The cases of a text; an error is a line's number and what is wrong with it.
fn parse(text: &str) -> Result<Vec<Case>, String> {
    let mut cases: Vec<Case> = Vec::new();
    let mut is_expected = false;
    for (index, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let wrong = |why: &str| format!("{}: {why}: {}", index + 1, words.join(" "));
        match (&words[..], cases.last_mut()) {
            ([], _) => {}
            (["case", name @ ..], _) => {
                is_expected = false;
                cases.push(Case { name: name.join(" "), line: index + 1, ..Case::default() });
            }
            (_, None) => return Err(wrong("outside a case")),
            (["expect"], _) => is_expected = true,
            (words, Some(case)) if is_expected => case.expected.push(words.join(" ")),
            ([name], Some(case)) if name.ends_with(':') => {
                let partition = partition(name.trim_end_matches(':')).ok_or_else(|| wrong("no partition"))?;
                case.logs.push(Log { partition, ..Log::default() });
            }
            (words, Some(case)) => {
                let log = case.logs.last_mut().ok_or_else(|| wrong("outside a partition"))?;
                let end_offset = log.end_offset;
                log.read(words).ok_or_else(|| wrong("not understood"))?;
                if log.end_offset < end_offset {
                    return Err(wrong("offsets do not rise"));
                }
            }
        }
    }
    Ok(cases)
}

impl Log {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.events.is_empty()
    }

    /// Takes in a line.
    fn read(&mut self, words: &[&str]) -> Option<()> {
        match words {
            ["isr", nodes @ ..] => self.image.isr = all(nodes)?,
            ["elr", nodes @ ..] => self.image.elr = all(nodes)?,
            ["last", "known", "elr", nodes @ ..] => self.image.last_known_elr = all(nodes)?,
            ["previous", "source", node] => self.previous = Some(node.parse().ok()?),
            ["replica", node, rest @ ..] => self.read_replica(node.parse().ok()?, rest)?,
            ["mark" | "probe", rest @ ..] => {
                let (rest, in_sync) = match rest {
                    ["out", "of", "sync", rest @ ..] => (rest, false),
                    _ => (rest, true),
                };
                let position = match rest {
                    [] if self.is_empty() => LogPosition { last_epoch: i32::MAX, end_offset: FIRST },
                    [] => LogPosition { last_epoch: i32::MAX, end_offset: self.end_offset },
                    ["at", offset] => LogPosition { last_epoch: i32::MAX, end_offset: offset.parse().ok()? },
                    ["at", offset, "of", "epoch", epoch] => {
                        LogPosition { last_epoch: epoch.parse().ok()?, end_offset: offset.parse().ok()? }
                    }
                    _ => return None,
                };
                self.samples.push(Sample { position, in_sync });
            }
            ["committed", group, offset] => self.committed.push(((*group).to_owned(), offset.parse().ok()?)),
            ["shared", group, "start", start, known @ ..] => {
                let batch = |known: &&str| {
                    let (first_offset, last_offset) = pair(known, '-')?;
                    Some(StateBatch { first_offset, last_offset, delivery_state: 2, ..StateBatch::default() })
                };
                let state_batches = known.iter().map(batch).collect::<Option<_>>()?;
                let start_offset = start.parse().ok()?;
                let state = ShareSnapshotValue { start_offset, state_batches, ..ShareSnapshotValue::default() };
                self.shared.push(((*group).to_owned(), state));
            }
            ["end", offset] => self.end_offset = offset.parse().ok()?,
            [offset, rest @ ..] => {
                let offset = offset.parse().ok()?;
                for sample in self.samples.iter_mut().filter(|sample| sample.position.end_offset == FIRST) {
                    sample.position.end_offset = offset;
                }
                match (self.partition.0.as_str(), rest) {
                    (TRANSACTION_LOG, [id, producer, state, partitions @ ..]) => {
                        let ((producer_id, producer_epoch), transactional_id) =
                            (pair(producer, '/')?, (*id).to_owned());
                        let partitions = partitions.iter().map(|name| partition(name)).collect::<Option<_>>()?;
                        let state = transaction_state(state)?;
                        self.records.push(TransactionRecord {
                            offset,
                            transactional_id,
                            producer_id,
                            producer_epoch,
                            state,
                            partitions,
                        });
                    }
                    (_, [kind @ ("data" | "COMMIT" | "ABORT"), producer]) => {
                        let (producer_id, producer_epoch) = pair(producer, '/')?;
                        let is_marker = *kind != "data";
                        self.events.push(ProducerEvent { offset, producer_id, producer_epoch, is_marker });
                    }
                    _ => return None,
                }
                // Found by the caller, who knows the end before.
                self.end_offset = if offset < self.end_offset { -1 } else { offset + 1 };
            }
            [] => return None,
        }
        Some(())
    }

    fn read_replica(&mut self, node_id: i32, words: &[&str]) -> Option<()> {
        let split = words.iter().position(|word| *word == "end")?;
        let epochs: Vec<(i32, i64)> = words[..split].iter().map(|word| pair(word, '@')).collect::<Option<_>>()?;
        let (end_offset, rest) = words[split + 1..].split_first()?;
        let (log_start_offset, lost_start) = match rest {
            [] => (0, false),
            ["start", offset] => (offset.parse().ok()?, false),
            ["start", offset, "lost"] => (offset.parse().ok()?, true),
            _ => return None,
        };
        let position =
            LogPosition { last_epoch: epochs.last().map_or(-1, |last| last.0), end_offset: end_offset.parse().ok()? };
        self.replicas.push((Candidate { node_id, position, log_start_offset, lost_start }, epochs));
        Some(())
    }
}

fn partition(name: &str) -> Option<Partition> {
    let (topic, number) = name.rsplit_once('-')?;
    Some((topic.to_owned(), number.parse().ok()?))
}

fn pair<A: FromStr, B: FromStr>(word: &str, between: char) -> Option<(A, B)> {
    let (one, other) = word.split_once(between)?;
    Some((one.parse().ok()?, other.parse().ok()?))
}

fn all<T: FromStr>(words: &[&str]) -> Option<Vec<T>> {
    words.iter().map(|word| word.parse().ok()).collect()
}

/// `Some(None)` is a tombstone.
fn transaction_state(word: &str) -> Option<Option<TransactionState>> {
    use TransactionState::*;
    let all = [Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit, CompleteAbort];
    match word {
        "deleted" => Some(None),
        _ => all.into_iter().find(|state| format!("{state:?}") == word).map(Some),
    }
}

// ---------------------------------------------------------------- what comes of it

/// The decisions, in the order in which a coordinator makes them: sources, marks on them, the line, the repairs.
fn outcome(logs: &[Log]) -> Vec<String> {
    let sources: BTreeMap<&Partition, Vec<Candidate>> = logs
        .iter()
        .filter(|log| !log.replicas.is_empty())
        .map(|log| {
            let candidates: Vec<Candidate> = log.replicas.iter().map(|(candidate, _)| candidate.clone()).collect();
            (&log.partition, rank(&candidates, &in_sync(&log.image), log.previous))
        })
        .collect();
    let end_of = |log: &Log| match sources.get(&log.partition) {
        Some(ranked) => ranked.first().map(|source| source.position.end_offset),
        None => Some(log.end_offset),
    };
    let on_source = |log: &Log, sample: &Sample| {
        let source = sources.get(&log.partition).and_then(|ranked| ranked.first());
        let is_source = |(candidate, _): &&(Candidate, _)| Some(candidate) == source;
        let epochs = log.replicas.iter().find(is_source).map_or(&[][..], |(_, epochs)| epochs);
        mark_on_source(sample.position, epochs, end_of(log).unwrap_or(0))
    };

    let (of_transactions, data): (Vec<&Log>, Vec<&Log>) =
        logs.iter().partition(|log| log.partition.0 == TRANSACTION_LOG);
    let marks: Vec<Vec<i64>> =
        of_transactions.iter().map(|log| log.samples.iter().map(|sample| on_source(log, sample)).collect()).collect();
    let copies: Vec<TransactionLogCopy> =
        of_transactions.iter().zip(&marks).map(|(log, marks)| copy(log, marks)).collect();
    let marked: Vec<MarkedLog<'_>> = copies
        .iter()
        .zip(&marks)
        .zip(&of_transactions)
        .map(|((copy, marks), log)| MarkedLog { copy, marks, end_offset: end_of(log).unwrap_or(0) })
        .collect();

    let wanted = to_find(&marked);
    let events: Vec<PartitionEvents> = data
        .iter()
        .filter_map(|log| {
            let producers = wanted.get(&log.partition)?;
            let probe = |sample: &Sample| on_source(log, sample);
            Some(PartitionEvents {
                topic: log.partition.0.clone(),
                partition: log.partition.1,
                probes: log.samples.iter().map(|sample| sample.in_sync.then(|| probe(sample))).collect(),
                probed_end: log.samples.iter().map(probe).max().unwrap_or(i64::MIN),
                events: log.events.iter().filter(|event| producers.contains(&event.producer_id)).copied().collect(),
            })
        })
        .collect();
    let (first, doubts) = first_events(&marked, &events);
    let pinned = logs.iter().filter_map(|log| Some((log.partition.clone(), end_of(log)?))).collect();
    let last_marks = of_transactions.iter().zip(&marks).filter_map(|(log, marks)| Some((log, marks.last()?)));
    let marks = last_marks.map(|(log, mark)| (log.partition.clone(), *mark)).collect();
    let line = strict_line(&pinned, &marks, &first);
    let unfinished = unfinished(marked.iter().flat_map(MarkedLog::at_mark));

    let mut told = Vec::new();
    for log in logs {
        let name = format!("{}-{}", log.partition.0, log.partition.1);
        let Some(cut) = line.get(&log.partition) else {
            told.push(format!("{name}: not covered"));
            continue;
        };
        let nodes = sources.get(&log.partition).map(|ranked| ranked.iter().map(|source| source.node_id.to_string()));
        let from = nodes.map(|nodes| format!("from {}, ", nodes.collect::<Vec<_>>().join(" or ")));
        let end = match &cut.trimmed {
            None => format!("ends at {}", cut.end_offset),
            Some(reason) => format!("is cut at {} of {}: {reason}", cut.end_offset, pinned[&log.partition]),
        };
        told.push(format!("{name}: {}{end}", from.unwrap_or_default()));
        let open = open_at(&log.events, cut.end_offset);
        let endings = endings(&log.partition, &open, &unfinished);
        for Ending { open: OpenTransaction { producer_id, first_offset, .. }, commit, producer_epoch } in &endings {
            let marker = if *commit { "COMMIT" } else { "ABORT" };
            told.push(format!("{name}: {marker} of {producer_id}/{producer_epoch}, open since {first_offset}"));
        }
        told.extend(clamps(log, &name, cut.end_offset + endings.len() as i64));
    }
    told.extend(doubts.into_iter().map(|what| format!("cannot be told: {what}")));
    told
}

/// What a restore moves back to the partition's end.
fn clamps(log: &Log, name: &str, end_offset: i64) -> Vec<String> {
    let of_groups = log.committed.iter().filter_map(|(group, offset)| {
        let to = clamped(*offset, end_offset)?;
        Some(format!("{name}: group {group} goes back from {offset} to {to}"))
    });
    let of_share_groups = log.shared.iter().filter_map(|(group, state)| {
        let state = state.clamped(end_offset)?;
        let known = state.state_batches.iter().map(|batch| format!(" {}-{}", batch.first_offset, batch.last_offset));
        Some(format!(
            "{name}: share group {group} starts at {}, knows{}",
            state.start_offset,
            known.collect::<String>()
        ))
    });
    of_groups.chain(of_share_groups).collect()
}

fn copy(log: &Log, marks: &[i64]) -> TransactionLogCopy {
    let first_mark = marks.first().copied().unwrap_or(i64::MAX);
    let (below, records): (Vec<_>, Vec<_>) = log.records.iter().cloned().partition(|record| record.offset < first_mark);
    let last: BTreeMap<String, TransactionRecord> =
        below.into_iter().map(|record| (record.transactional_id.clone(), record)).collect();
    let max_producer_id = log.records.iter().map(|record| record.producer_id).max().unwrap_or(-1);
    TransactionLogCopy { partition: log.partition.1, at_first: last.into_values().collect(), records, max_producer_id }
}

/// What an agent finds open below the cut, as a broker's producer state would have it.
fn open_at(events: &[ProducerEvent], end_offset: i64) -> Vec<OpenTransaction> {
    let mut open: BTreeMap<i64, OpenTransaction> = BTreeMap::new();
    for event in events.iter().filter(|event| event.offset < end_offset) {
        let ProducerEvent { offset, producer_id, producer_epoch, is_marker } = *event;
        if is_marker {
            open.remove(&producer_id);
            continue;
        }
        let since = open.get(&producer_id).map_or(offset, |open| open.first_offset);
        let open_now = OpenTransaction { producer_id, producer_epoch, coordinator_epoch: -1, first_offset: since };
        open.insert(producer_id, open_now);
    }
    open.into_values().collect()
}
