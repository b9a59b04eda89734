//! Holds a cluster against the ledger and against what it said of itself before.
//!
//! The auditor is independent of Segvault: it knows what clients were told (the [ledger](crate::ledger)), what Kafka's
//! admin client said around the restore point (two [`State`]s, one before it began and one after it was done: what is
//! equal in both must come back; what changed meanwhile may be either), and what real consumers see now. It collects
//! findings and never stops at the first; a table of counts says how much was looked at, so that an empty audit cannot
//! pass for a clean one.
//!
//! What must hold:
//! - every record acknowledged before the mark is at its offset with equal content, unless the source's own retention
//!   had removed it; in a compacted topic a later record of its key may stand for it, or a tombstone have erased it;
//! - what is there of later records is a prefix (up to where a later leader went another way), and nothing is changed, or
//!   there twice but by its client's own doing ([`appended`](crate::appended));
//! - read_committed shows each transaction wholly or not at all: wholly if its commit was acknowledged before the mark,
//!   not at all if it was aborted or never asked to commit; no transaction hangs;
//! - a group's offset is at least what it was told before the mark and at most the partition's end, and a
//!   read-process-write loop has exactly one output for each input below its offset;
//! - topic ids, replicas, configs, ACLs, SCRAM users, quotas and features are as before; every partition is online
//!   with full ISR; the broker logs tell of no recovery, truncation, stray folder or index rebuild;
//! - new producers work, also under the old transactional ids, and their commits bring no old record to light.

use crate::{
    Cluster, PATIENCE, Result,
    appended::Appended,
    broker_log::{self, Kind},
    ledger::{History, Outcome, Record, Sequence},
    reader::{Isolation, Seen, read},
    state::{State, Topic},
    workload::{self, LOOP},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    fmt,
    thread::{self, sleep},
    time::{Duration, Instant},
};

/// How thorough to be, and what to tolerate.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the cluster may take until all partitions are in sync and no transaction is open.
    pub settle_seconds_max: u64,
    /// Look at the brokers' logs since their last start.
    pub logs: bool,
    /// Let new clients work, Kafka's own tools included. Not for a cluster that another audit shall see unchanged.
    pub clients: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { settle_seconds_max: PATIENCE.as_secs(), logs: true, clients: true }
    }
}

/// The outcome: counts, and what is wrong.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Audit {
    /// Rows of the table, in order.
    pub rows: Vec<Row>,
    /// What is wrong; empty means that the cluster passes.
    pub findings: Vec<Finding>,
    /// Seconds until the cluster had settled.
    pub settled_seconds: f64,
}

/// A line of the table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What was counted.
    pub name: String,
    /// How many.
    pub count: u64,
    /// Must it be zero?
    pub must_be_zero: bool,
}

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The row that counts it.
    pub kind: String,
    /// Where and what.
    pub detail: String,
}

/// Findings of one kind that are spelled out; the rest is only counted.
const DETAILS_MAX: u64 = 20;

type Partition = (String, i32);
type View = BTreeMap<Partition, BTreeMap<i64, Seen>>;

impl Audit {
    /// Did everything hold?
    pub fn passed(&self) -> bool {
        self.findings.is_empty()
    }

    /// Panics with the table unless everything held.
    pub fn assert_passed(&self) {
        assert!(self.passed(), "the audit found faults:\n{self}");
    }

    /// The count in a row, 0 if there is none.
    pub fn count(&self, name: &str) -> u64 {
        self.rows.iter().find(|row| row.name == name).map_or(0, |row| row.count)
    }

    fn row(&mut self, name: &str, must_be_zero: bool) -> &mut Row {
        let at = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            self.rows.push(Row { name: name.to_owned(), count: 0, must_be_zero });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    fn tally(&mut self, name: &str, count: usize) {
        self.row(name, false).count += count as u64;
    }

    /// Makes sure that a row which must be zero is shown even when it is.
    fn none_of(&mut self, names: &[&str]) {
        for name in names {
            self.row(name, true);
        }
    }

    fn fault(&mut self, kind: &str, detail: impl fmt::Display) {
        let row = self.row(kind, true);
        row.count += 1;
        if row.count <= DETAILS_MAX {
            self.findings.push(Finding { kind: kind.to_owned(), detail: detail.to_string() });
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        for row in &self.rows {
            let verdict = match (row.must_be_zero, row.count) {
                (true, 0) => "ok",
                (true, _) => "FAULT",
                _ => "",
            };
            writeln!(f, "  {:width$}  {:>9}  {verdict}", row.name, row.count)?;
        }
        writeln!(f, "  {:width$}  {:>8.1}s", "in sync and settled after", self.settled_seconds)?;
        for finding in &self.findings {
            writeln!(f, "  ! {}: {}", finding.kind, finding.detail)?;
        }
        write!(f, "  {}", if self.passed() { "PASSED: nothing lost, nothing torn" } else { "FAILED" })
    }
}

/// Audits a running cluster. `before` and `after` are the source's states around the restore point.
pub fn audit(cluster: &Cluster, history: &History, before: &State, after: &State, options: Options) -> Result<Audit> {
    let mut audit = Audit::default();
    let now = settle(cluster, options, &mut audit)?;
    compare_metadata(before, after, &now, &mut audit);
    let partitions: Vec<Partition> = now
        .partitions()
        .filter(|(t, _, p)| !t.starts_with("__") && p.leader >= 0)
        .map(|(t, p, _)| (t.to_owned(), p))
        .collect();
    let all = view(cluster, Isolation::Uncommitted, &partitions)?;
    let committed = view(cluster, Isolation::Committed, &partitions)?;
    let compaction = Compaction::of(history, after, &now, &committed);
    check_records(cluster, history, after, &now, &all, &compaction, &mut audit)?;
    check_transactions(history, &now, &committed, &compaction, &mut audit);
    check_groups(history, &now, &mut audit);
    check_loop(&now, &all, &committed, &mut audit);
    if options.clients {
        check_clients(cluster, history, &now, &committed, &compaction, &mut audit)?;
    }
    if options.logs {
        check_logs(cluster, &mut audit)?;
    }
    Ok(audit)
}

/// Waits until every partition is in sync and every transaction decided; what is not by then is a fault.
fn settle(cluster: &Cluster, options: Options, audit: &mut Audit) -> Result<State> {
    let began = Instant::now();
    let settled =
        |state: &State| state.partitions().all(|(_, _, p)| p.is_healthy() && p.stable == p.end && p.open == 0);
    let mut state = cluster.state();
    while !state.as_ref().is_ok_and(settled) && began.elapsed() < Duration::from_secs(options.settle_seconds_max) {
        sleep(Duration::from_millis(500));
        state = cluster.state();
    }
    let state = state?;
    audit.settled_seconds = began.elapsed().as_secs_f64();
    audit.tally("partitions", state.partitions().count());
    audit.none_of(&["partitions offline or out of sync", "partitions with a hanging transaction"]);
    for (topic, index, partition) in state.partitions() {
        if !partition.is_healthy() {
            audit.fault(
                "partitions offline or out of sync",
                format_args!(
                    "{topic}-{index}: leader {}, isr {:?} of {:?}",
                    partition.leader, partition.isr, partition.replicas
                ),
            );
        }
        if partition.stable != partition.end || partition.open > 0 {
            audit.fault(
                "partitions with a hanging transaction",
                format_args!(
                    "{topic}-{index}: stable {}, end {}, {} open",
                    partition.stable, partition.end, partition.open
                ),
            );
        }
    }
    Ok(state)
}

fn view(cluster: &Cluster, isolation: Isolation, partitions: &[Partition]) -> Result<View> {
    let mut view = View::new();
    read(&cluster.bootstrap(), isolation, partitions, |topic, partition, seen| {
        view.entry((topic.to_owned(), partition)).or_default().insert(seen.offset, seen);
    })?;
    Ok(view)
}

// ---------------------------------------------------------------- metadata

fn compare_metadata(before: &State, after: &State, now: &State, audit: &mut Audit) {
    audit.none_of(&["topics, configs, ACLs, users or quotas changed"]);
    let mut same = |what: &str, equal: bool, detail: String| {
        if !equal {
            audit.fault("topics, configs, ACLs, users or quotas changed", format_args!("{what}: {detail}"));
        }
    };
    let either = |a: bool, b: bool| a || b;
    same(
        "brokers",
        either(now.brokers == before.brokers, now.brokers == after.brokers),
        format!("{:?}, was {:?}", now.brokers, before.brokers),
    );
    same(
        "ACLs",
        either(now.acls == before.acls, now.acls == after.acls),
        format!("{:?}, was {:?}", now.acls, before.acls),
    );
    same(
        "SCRAM users",
        either(now.scram == before.scram, now.scram == after.scram),
        format!("{:?}, was {:?}", now.scram, before.scram),
    );
    same(
        "quotas",
        either(now.quotas == before.quotas, now.quotas == after.quotas),
        format!("{:?}, was {:?}", now.quotas, before.quotas),
    );
    same(
        "features",
        either(now.features == before.features, now.features == after.features),
        format!("{:?}, was {:?}", now.features, before.features),
    );
    let (b, a, n) = (&before.broker_configs, &after.broker_configs, &now.broker_configs);
    same("broker configs", either(n == b, n == a), format!("{n:?}, was {b:?}"));
    let names: BTreeSet<&String> = before.topics.keys().chain(after.topics.keys()).chain(now.topics.keys()).collect();
    for name in names {
        let [b, a, n] = [before, after, now].map(|state| state.topics.get(name));
        let fits = topic_fits(n, b, a);
        let [b, a, n] = [b, a, n].map(|topic| topic.map(identity));
        same(&format!("topic {name}"), fits, format!("{n:?}, was {b:?}, then {a:?}"));
    }
    audit.tally("topics", now.topics.len());
    audit.tally(
        "topic and broker configs",
        now.topics.values().map(|t| t.configs.len()).sum::<usize>()
            + now.broker_configs.values().map(BTreeMap::len).sum::<usize>(),
    );
    audit.tally("ACLs, SCRAM users and quotas", now.acls.len() + now.scram.len() + now.quotas.len());
}

/// Is a topic as it was before or after, or as it may have been on the way from the one to the other?
fn topic_fits(now: Option<&Topic>, before: Option<&Topic>, after: Option<&Topic>) -> bool {
    let is_same = |other: Option<&Topic>| now.map(identity) == other.map(identity);
    if is_same(before) || is_same(after) {
        return true;
    }
    let (Some(before), Some(after)) = (before, after) else { return false };
    let Some(now) = now else {
        return before.id != after.id; // It was deleted, and made again.
    };
    let replicas_fit = |index: usize, now: &[i32]| {
        let [b, a] = [before, after].map(|topic| topic.partitions.get(index).map(|p| &p.replicas[..]));
        // While replicas are exchanged there are both.
        b == Some(now)
            || a == Some(now)
            || b != a && now.iter().all(|id| [b, a].iter().flatten().any(|some| some.contains(id)))
    };
    [&before.id, &after.id] == [&now.id; 2]
        && (now.configs == before.configs || now.configs == after.configs)
        && (before.partitions.len()..=after.partitions.len()).contains(&now.partitions.len())
        && now.partitions.iter().enumerate().all(|(index, p)| replicas_fit(index, &p.replicas))
}

/// What must not change about a topic: id, configs, replicas in their order.
fn identity(topic: &Topic) -> (&str, &BTreeMap<String, String>, Vec<&[i32]>) {
    (&topic.id, &topic.configs, topic.partitions.iter().map(|p| &p.replicas[..]).collect())
}

// ---------------------------------------------------------------- records

const LOST: &str = "records lost";
const CHANGED: &str = "records changed";
const TWICE: &str = "records twice";

fn check_records(
    cluster: &Cluster,
    history: &History,
    after: &State,
    now: &State,
    all: &View,
    compaction: &Compaction,
    audit: &mut Audit,
) -> Result<()> {
    for name in [
        "records acknowledged before the point",
        "found at their offset",
        "removed by retention or compaction",
        "acknowledged later and found",
        "acknowledged later, in place of others",
    ] {
        audit.tally(name, 0);
    }
    audit.none_of(&[LOST, CHANGED, TWICE]);
    let nothing = BTreeMap::new();
    let mut twice = Vec::new();
    for ((topic, partition), records) in &history.records {
        // A topic that was deleted around the point may be gone; compare_metadata judges whether it should be.
        if !after.topics.contains_key(topic) && !now.topics.contains_key(topic) {
            continue;
        }
        let seen = all.get(&(topic.clone(), *partition)).unwrap_or(&nothing);
        let explains = |offset: i64, record: &Record| {
            offset < expired_below(topic, *partition, after, now)
                || compaction.explains(&(topic.clone(), *partition), offset, record)
        };
        check_partition(&format!("{topic}-{partition}"), history.mark(), records, seen, explains, audit);
    }
    for (topic, partitions) in group_by_topic(all) {
        let mut places = HashMap::new();
        for (partition, record) in partitions {
            if let Some(first) = places.insert(record.hash, (partition, record.offset)) {
                twice.push((topic.to_owned(), [first, (partition, record.offset)]));
            }
            if !record.intact {
                audit.fault(
                    CHANGED,
                    format_args!("{topic}-{partition} at {}: content and its own sum differ", record.offset),
                );
            }
        }
    }
    audit.tally("records read back", all.values().map(BTreeMap::len).sum());
    check_twice(cluster, &twice, audit)
}

/// A record that is there twice is a fault, unless its client sent it again under another producer epoch.
fn check_twice(cluster: &Cluster, twice: &[(String, [(i32, i64); 2])], audit: &mut Audit) -> Result<()> {
    let mut logs: HashMap<Partition, Appended> = HashMap::new();
    for (topic, places) in twice {
        let mut sequences = Vec::new();
        for (partition, offset) in places {
            let log = match logs.entry((topic.clone(), *partition)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(Appended::read(cluster, topic, *partition)?),
            };
            sequences.push(log.sequence(*offset));
        }
        match sequences[..] {
            [Some(first), Some(second)] if (first.0, first.1) != (second.0, second.1) => {
                audit.tally("sent again by their client in a new epoch", 1)
            }
            _ => audit.fault(TWICE, format_args!("{topic} at (partition, offset) {places:?}, from {sequences:?}")),
        }
    }
    Ok(())
}

fn group_by_topic(view: &View) -> BTreeMap<&str, Vec<(i32, &Seen)>> {
    let mut topics: BTreeMap<&str, Vec<(i32, &Seen)>> = BTreeMap::new();
    for ((topic, partition), records) in view {
        topics.entry(topic).or_default().extend(records.values().map(|seen| (*partition, seen)));
    }
    topics
}

/// The offset below which absence is the source's retention.
fn expired_below(topic: &str, partition: i32, after: &State, now: &State) -> i64 {
    let start_now = now.partition(topic, partition).map_or(0, |p| p.start);
    let start_then = after.partition(topic, partition).map_or(0, |p| p.start);
    // Retention by size goes on by itself once the brokers run again.
    if config(topic, "retention.bytes", after, now).is_some() { start_now } else { start_then.min(start_now) }
}

fn config<'a>(topic: &str, name: &str, after: &'a State, now: &'a State) -> Option<&'a str> {
    let topic = after.topics.get(topic).or_else(|| now.topics.get(topic))?;
    topic.configs.get(name).map(String::as_str)
}

fn check_partition(
    name: &str,
    mark: Sequence,
    records: &BTreeMap<i64, Record>,
    seen: &BTreeMap<i64, Seen>,
    explains: impl Fn(i64, &Record) -> bool,
    audit: &mut Audit,
) {
    // Whatever came back of the records after the mark must be a prefix: no hole below the last of them.
    let last = records.keys().rev().find(|offset| seen.contains_key(offset)).copied().unwrap_or(-1);
    for (offset, record) in records {
        let promised = record.sequence < mark;
        audit.tally("records acknowledged before the point", usize::from(promised));
        match seen.get(offset) {
            Some(found) if found.hash == record.hash => {
                audit.tally(if promised { "found at their offset" } else { "acknowledged later and found" }, 1)
            }
            Some(_) if promised => audit.fault(CHANGED, format_args!("{name} at {offset}")),
            // The point holds what a leader had appended before it was killed and nobody was promised; the next leader
            // wrote this record in its place.
            Some(_) => audit.tally("acknowledged later, in place of others", 1),
            None if explains(*offset, record) => {
                audit.tally("removed by retention or compaction", usize::from(promised));
            }
            None if promised || *offset < last => {
                let when = if promised { "acknowledged before the point" } else { "a hole below later records" };
                audit.fault(LOST, format_args!("{name} at {offset} ({when})"));
            }
            None => {}
        }
    }
}

/// What the cleaner may have taken from compacted partitions.
struct Compaction {
    partitions: BTreeMap<Partition, Survivors>,
    /// Transactions of which nothing is visible, and need not be.
    rolled_back: BTreeSet<u64>,
}

/// Of a compacted partition: the last offset that is left of each key, and from where tombstones erase it.
struct Survivors {
    last: HashMap<u64, i64>,
    erased: HashMap<u64, i64>,
}

impl Compaction {
    fn of(history: &History, after: &State, now: &State, committed: &View) -> Self {
        let nothing = BTreeMap::new();
        let is_compacted =
            |topic: &str| config(topic, "cleanup.policy", after, now).is_some_and(|p| p.contains("compact"));
        let compacted = history.records.iter().filter(|((topic, _), _)| is_compacted(topic));
        let partitions = compacted.map(|(partition, records)| {
            let seen = committed.get(partition).unwrap_or(&nothing);
            // Ascending, so the last insert wins.
            let last = seen.iter().filter_map(|(offset, s)| Some((s.key?, *offset))).collect();
            let end = seen.keys().next_back().copied().unwrap_or(i64::MAX);
            let tombstones = records.iter().filter(|(offset, r)| r.tombstone && **offset <= end);
            let erased = tombstones.filter_map(|(offset, r)| Some((r.key?, *offset))).collect();
            (partition.clone(), Survivors { last, erased })
        });
        let visible = visible(committed);
        let is_promised = |outcome| matches!(outcome, Outcome::Committed(at) if at < history.mark());
        let transactions = history.transactions.iter();
        let hidden = transactions.filter(|(x, t)| !is_promised(t.outcome) && !visible.contains_key(x));
        Self { partitions: partitions.collect(), rolled_back: hidden.map(|(x, _)| *x).collect() }
    }

    /// Does a later record of the key, a tombstone at or after it, or the end of its transaction explain the record's
    /// absence?
    fn explains(&self, partition: &Partition, offset: i64, record: &Record) -> bool {
        let Some(survivors) = self.partitions.get(partition) else { return false };
        let is_at = |places: &HashMap<u64, i64>, least| {
            record.key.and_then(|key| places.get(&key)).is_some_and(|place| *place >= least)
        };
        is_at(&survivors.last, offset + 1)
            || is_at(&survivors.erased, offset)
            || record.transaction.is_some_and(|x| self.rolled_back.contains(&x))
    }
}

// ---------------------------------------------------------------- transactions

const TORN: &str = "transactions torn or lost";
const REVIVED: &str = "transactions visible that never committed";

/// What is visible of each transaction: its records' partitions and offsets.
type Visible = HashMap<u64, BTreeSet<(Partition, i64)>>;

fn visible(committed: &View) -> Visible {
    let mut visible = Visible::new();
    for (partition, records) in committed {
        for seen in records.values() {
            if let Some(x) = seen.transaction {
                visible.entry(x).or_default().insert((partition.clone(), seen.offset));
            }
        }
    }
    visible
}

fn check_transactions(history: &History, now: &State, committed: &View, compaction: &Compaction, audit: &mut Audit) {
    audit.tally("transactions committed before the point", 0);
    audit.tally("transactions under way at the point", 0);
    audit.none_of(&[TORN, REVIVED]);
    let mut expected = Visible::new();
    for (partition, records) in &history.records {
        // A topic that is rightly gone took its part of the transactions with it.
        if now.partition(&partition.0, partition.1).is_none() {
            continue;
        }
        let seen = committed.get(partition);
        for (offset, record) in records {
            let is_seen = seen.is_some_and(|seen| seen.contains_key(offset));
            if let Some(x) = record.transaction
                && (is_seen || !compaction.explains(partition, *offset, record))
            {
                expected.entry(x).or_default().insert((partition.clone(), *offset));
            }
        }
    }
    let (visible, nothing) = (visible(committed), BTreeSet::new());
    for (x, transaction) in &history.transactions {
        let (shown, all) = (visible.get(x).unwrap_or(&nothing), expected.get(x).unwrap_or(&nothing));
        let label = || {
            format!(
                "{x} of {}: {} of {} records visible, e.g. {:?}",
                transaction.id,
                shown.len(),
                all.len(),
                all.symmetric_difference(shown).next()
            )
        };
        match transaction.outcome {
            Outcome::Committed(at) if at < history.mark() => {
                audit.tally("transactions committed before the point", 1);
                if shown != all {
                    audit.fault(TORN, label());
                }
            }
            Outcome::Committed(_) | Outcome::Unknown => {
                audit.tally("transactions under way at the point", 1);
                // An unknown one may show records whose acknowledgement nobody wrote down.
                let whole = if transaction.outcome == Outcome::Unknown { shown.is_superset(all) } else { shown == all };
                if !shown.is_empty() && !whole {
                    audit.fault(TORN, label());
                }
            }
            Outcome::Aborted(_) | Outcome::Open if shown.is_empty() => {}
            Outcome::Aborted(_) | Outcome::Open => audit.fault(REVIVED, label()),
        }
    }
    for x in visible.keys().filter(|x| !history.transactions.contains_key(x)) {
        audit.fault(REVIVED, format_args!("{x}, which is not in the ledger"));
    }
}

// ---------------------------------------------------------------- groups

fn check_groups(history: &History, now: &State, audit: &mut Audit) {
    audit.none_of(&["group offsets behind", "group offsets beyond the end"]);
    let promised = history.committed_before(history.mark());
    audit.tally("consumer groups", promised.keys().map(|(group, ..)| group).collect::<BTreeSet<_>>().len());
    audit.tally("group offsets committed before the point", promised.len());
    for ((group, topic, partition), offset) in promised {
        let found = now.groups.get(&group).and_then(|g| g.get(&format!("{topic}-{partition}")));
        if found.is_none_or(|found| *found < offset) && now.topics.contains_key(&topic) {
            audit.fault(
                "group offsets behind",
                format_args!("{group} on {topic}-{partition}: {found:?}, was told {offset}"),
            );
        }
    }
    for (group, offsets) in &now.groups {
        for (partition, offset) in offsets {
            let end = partition
                .rsplit_once('-')
                .and_then(|(topic, index)| now.partition(topic, index.parse().ok()?))
                .map(|p| p.end);
            if end.is_some_and(|end| *offset > end) {
                audit.fault(
                    "group offsets beyond the end",
                    format_args!("{group} on {partition}: {offset}, end {end:?}"),
                );
            }
        }
    }
}

fn check_loop(now: &State, all: &View, committed: &View, audit: &mut Audit) {
    let (input, output, group) = LOOP;
    if !now.topics.contains_key(input) {
        return;
    }
    audit.none_of(&["inputs not processed exactly once"]);
    let mut outputs: HashMap<(i32, i64), usize> = HashMap::new();
    for (_, records) in committed.iter().filter(|((topic, _), _)| topic == output) {
        for source in records.values().filter_map(|seen| seen.source) {
            *outputs.entry(source).or_default() += 1;
        }
    }
    for ((_, partition), records) in all.iter().filter(|((topic, _), _)| topic == input) {
        let offset = now.groups.get(group).and_then(|g| g.get(&format!("{input}-{partition}"))).copied().unwrap_or(0);
        for at in records.keys() {
            let (found, wanted) = (outputs.remove(&(*partition, *at)).unwrap_or(0), usize::from(*at < offset));
            audit.tally("inputs processed by the loop", found.min(1));
            if found != wanted {
                audit.fault(
                    "inputs not processed exactly once",
                    format_args!("{input}-{partition} at {at}: {found} outputs, {group} stands at {offset}"),
                );
            }
        }
    }
    for ((partition, at), _) in outputs {
        audit.fault(
            "inputs not processed exactly once",
            format_args!("{input}-{partition} at {at}: an output without its input"),
        );
    }
}

// ---------------------------------------------------------------- afterwards

/// New clients, also under old names, work, and change nothing of what was there.
fn check_clients(
    cluster: &Cluster,
    history: &History,
    now: &State,
    committed: &View,
    compaction: &Compaction,
    audit: &mut Audit,
) -> Result<()> {
    const FAULT: &str = "new clients hindered";
    audit.none_of(&[FAULT]);
    // Groups wait for their old members to expire; meanwhile Kafka's own tool looks for hanging transactions.
    let (hanging, resumed) = thread::scope(|scope| {
        let groups = now.groups.iter().filter(|(group, _)| group.starts_with("readers-"));
        let resume = |group: &str, offsets| {
            workload::resume(cluster, group, "events", offsets).map_err(|error| error.to_string())
        };
        let resuming: Vec<_> = groups.map(|(group, offsets)| scope.spawn(move || resume(group, offsets))).collect();
        let find = |broker: i32| {
            let args = ["find-hanging", "--broker-id", &broker.to_string(), "--max-transaction-timeout", "0"];
            cluster.tool("TransactionsCommand", &args).map_err(|error| error.to_string())
        };
        let finding: Vec<_> = cluster.brokers().into_iter().map(|broker| scope.spawn(move || find(broker))).collect();
        let hanging = finding.into_iter().map(|thread| thread.join().expect("no tool's thread panics"));
        let hanging = hanging.collect::<std::result::Result<Vec<String>, _>>();
        let resumed = resuming.into_iter().map(|thread| thread.join().expect("no group's thread panics"));
        (hanging, resumed.collect::<std::result::Result<Vec<_>, _>>())
    });
    for line in hanging?.iter().flat_map(|told| told.lines().skip(1)).filter(|line| !line.trim().is_empty()) {
        audit.fault("partitions with a hanging transaction", format_args!("find-hanging: {line}"));
    }
    resumed?.concat().iter().for_each(|problem| audit.fault(FAULT, problem));
    let ids: BTreeSet<&str> = history.transactions.values().map(|t| t.id.as_str()).collect();
    let topics: Vec<(&str, i32)> = now
        .topics
        .iter()
        .filter(|(name, _)| !name.starts_with("__"))
        .map(|(name, t)| (name.as_str(), t.partitions.len() as i32))
        .collect();
    let news = match workload::probe(cluster, &ids, &topics) {
        Ok(news) => news,
        Err(error) => {
            audit.fault(FAULT, error);
            return Ok(());
        }
    };
    audit.tally("records of new producers", news.record_count());
    let partitions: Vec<Partition> = news.records.keys().cloned().collect();
    let again = view(cluster, Isolation::Committed, &partitions)?;
    let (old, new) = (visible(committed), visible(&again));
    let is_compacted = |partition: &Partition| compaction.partitions.contains_key(partition);
    for (x, records) in &new {
        match (old.get(x), news.transactions.get(x)) {
            // The cleaner goes on, and new records stand for old ones.
            (Some(before), _)
                if before.symmetric_difference(records).all(|(p, _)| is_compacted(p)) && records.is_subset(before) => {}
            (None, Some(_)) => {}
            (before, _) => audit.fault(
                REVIVED,
                format_args!(
                    "{x}: {} records after new commits, {} before",
                    records.len(),
                    before.map_or(0, BTreeSet::len)
                ),
            ),
        }
    }
    for (partition, records) in &news.records {
        for (offset, record) in records {
            let found = again.get(partition).and_then(|seen| seen.get(offset));
            let is_replaced = || {
                is_compacted(partition)
                    && again
                        .get(partition)
                        .is_some_and(|seen| seen.range(offset..).any(|(_, later)| later.key == record.key))
            };
            if found.map_or_else(|| !is_replaced(), |seen| seen.hash != record.hash) {
                audit.fault(
                    FAULT,
                    format_args!("{}-{} at {offset}: a new record is not there", partition.0, partition.1),
                );
            }
        }
    }
    Ok(())
}

fn check_logs(cluster: &Cluster, audit: &mut Audit) -> Result<()> {
    audit.none_of(
        &[Kind::Recovery, Kind::IndexRebuild, Kind::Truncation, Kind::Stray, Kind::UncleanElection, Kind::Error]
            .map(log_row),
    );
    for (node, alarm) in broker_log::examine_all(cluster)? {
        audit.fault(log_row(alarm.kind), format_args!("node {node}: {}", alarm.line));
    }
    Ok(())
}

fn log_row(kind: Kind) -> &'static str {
    match kind {
        Kind::Recovery => "broker logs: recovery",
        Kind::IndexRebuild => "broker logs: index rebuild",
        Kind::Truncation => "broker logs: truncation",
        Kind::Stray => "broker logs: stray",
        Kind::UncleanElection => "broker logs: unclean election",
        Kind::Error => "broker logs: error",
    }
}
