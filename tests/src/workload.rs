//! Real clients at work: producers of every kind, consumer groups, and a read-process-write loop.
//!
//! Each runs in a thread of its own until [`Workload::stop`], and writes every acknowledgement to the ledger. Every
//! record carries an `id` header of its own (so a duplicate is recognised), a `sum` header (so that a record whose
//! acknowledgement was never written can still be judged) and, in a transaction, its number in `x`.

use crate::{
    Cluster, PATIENCE, Result,
    ledger::{History, Ledger, Outcome, content_hash, key_hash},
};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The codecs of the idempotent producers that share the topic `events`.
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// Keys in the compacted topic `table`.
const TABLE_KEYS: u64 = 150;
/// The broker rolls a transaction back this long after its client went silent.
const TRANSACTION_TIMEOUT_MS: &str = "30000";
/// Records that a plain producer sends at once.
const BURST: u64 = 15;
/// How long the slow producer keeps each transaction open; well below the timeout, as tests share their machine.
const SLOW_TRANSACTION: Duration = Duration::from_secs(4);
/// Calls into a cluster that is gone end after this long.
const CALL_SECONDS_MAX: Duration = Duration::from_secs(20);

/// [`wait_for_work`] waits at least so long, for logs to roll and offsets to be committed.
const WORK_MIN: Duration = Duration::from_secs(12);

/// Topics that hold transactions of the workload, with their partitions.
pub const TRANSACTIONAL_TOPICS: [(&str, i32); 5] =
    [("payments", 3), ("receipts", 2), ("accounts", 2), ("slow", 2), ("invoices", 2)];
/// Of those, the one that is compacted.
const COMPACTED: &str = "accounts";
/// Input, output and group of the read-process-write loop.
pub const LOOP: (&str, &str, &str) = ("orders", "invoices", "billing");

/// A group of readers of the new protocol (KIP-848), where the cluster has it.
const NEW_PROTOCOL_GROUP: &str = "readers-2";

/// What the workload does, besides the default.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Records per second of each of the plain producers (there are eight); 0 means as fast as it goes.
    pub rate: u32,
    /// Adds Kafka's own transactional producer, which speaks transaction protocol 2 to brokers of 4.x.
    pub java: bool,
    /// A client that has failed begins anew, as services do.
    pub outlive: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { rate: 150, java: false, outlive: false }
    }
}

fn has_new_protocol(cluster: &Cluster) -> bool {
    cluster.is_at_least(4, 0)
}

fn is_transactional(topic: &str) -> bool {
    topic == "java-payments" || TRANSACTIONAL_TOPICS.iter().any(|(name, _)| *name == topic)
}

/// Creates the workload's topics and gives the cluster ACLs, SCRAM users, quotas and a dynamic broker config.
pub fn set_up(cluster: &Cluster) -> Result<()> {
    cluster.create_topic("events", 6, &[])?;
    // Compaction and retention as eager as Kafka lets them be.
    let compact = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "5000"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("delete.retention.ms", "3000"),
    ];
    cluster.create_topic("table", 3, &compact)?;
    let retained = [("retention.bytes", "2097152"), ("segment.bytes", "1048576"), ("file.delete.delay.ms", "1000")];
    cluster.create_topic("retained", 2, &retained)?;
    cluster.create_topic(LOOP.0, 2, &[])?;
    for (topic, partitions) in TRANSACTIONAL_TOPICS {
        cluster.create_topic(topic, partitions, if topic == COMPACTED { &compact } else { &[] })?;
    }
    cluster.create_topic("java-payments", 3, &[])?;
    cluster.create_topic("empty", 2, &[("retention.ms", "604800000")])?;
    cluster.create_topic_replicated("single", 2, 1, &[])?;
    let commands = ["acl User:alice READ events", "acl User:alice WRITE payments", "acl User:bob DESCRIBE table"];
    let others = [
        "scram alice wonderland",
        "scram bob builder",
        "quota alice 10485760",
        "quota bob 20971520",
        "broker-config log.cleaner.threads 1",
    ];
    cluster.java_admin(&[&commands[..], &others[..]].concat()).map(drop)
}

/// Clients at work in the background.
pub struct Workload {
    stop: Arc<AtomicBool>,
    threads: Vec<(String, JoinHandle<Result<()>>)>,
}

/// What every client thread holds.
#[derive(Clone)]
struct Client {
    bootstrap: String,
    ledger: Ledger,
    stop: Arc<AtomicBool>,
    numbers: Arc<Numbers>,
    rate: u32,
    outlive: bool,
    has_new_protocol: bool,
}

/// Numbers that never repeat, also not between two workloads on one ledger: they start at the clock.
struct Numbers(AtomicU64);

impl Numbers {
    fn new() -> Self {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_micros());
        Self(AtomicU64::new(u64::try_from(micros).expect("the year is before 586,000")))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

impl Workload {
    /// Starts all clients on topics that [`set_up`] made.
    pub fn start(cluster: &Cluster, ledger: &Ledger, options: Options) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = Client {
            bootstrap: cluster.bootstrap(),
            ledger: ledger.clone(),
            stop: stop.clone(),
            numbers: Arc::new(Numbers::new()),
            rate: options.rate,
            outlive: options.outlive,
            has_new_protocol: has_new_protocol(cluster),
        };
        let mut workload = Self { stop, threads: Vec::new() };
        for codec in CODECS {
            workload.spawn(&client, &format!("events-{codec}"), move |c| c.produce_plain("events", 6, codec, 400));
        }
        workload.spawn(&client, "orders", |c| c.produce_plain(LOOP.0, 2, "lz4", 120));
        workload.spawn(&client, "retained", |c| c.produce_plain("retained", 2, "none", 8000));
        workload.spawn(&client, "single", |c| c.produce_plain("single", 2, "zstd", 200));
        workload.spawn(&client, "table", Client::produce_table);
        workload.spawn(&client, "payments-a", |c| c.produce_transactions("payments-a", Duration::from_millis(10)));
        workload.spawn(&client, "payments-b", |c| c.produce_transactions("payments-b", Duration::from_millis(150)));
        workload.spawn(&client, "slow", Client::produce_slow_transactions);
        workload.spawn(&client, "billing", Client::process);
        workload.spawn(&client, "readers-1", |c| c.consume("readers-1"));
        workload.spawn(&client, NEW_PROTOCOL_GROUP, |c| c.consume(NEW_PROTOCOL_GROUP));
        if options.java {
            let dir = cluster.dir().to_owned();
            workload.spawn(&client, "java-payments", move |c| c.relay_java(Cluster::open(&dir)?.java_admin_command()));
        }
        workload
    }

    fn spawn(&mut self, client: &Client, name: &str, run: impl Fn(&Client) -> Result<()> + Send + 'static) {
        let client = client.clone();
        let work = move || loop {
            match run(&client) {
                Err(error) if client.outlive && !client.stopped() => {
                    eprintln!("{}: {error}; it begins anew", thread::current().name().unwrap_or_default());
                    thread::sleep(Duration::from_millis(500));
                }
                end => return end,
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started");
        self.threads.push((name.to_owned(), thread));
    }

    /// Ends all clients, in order: what they have in flight is flushed; `slow` leaves its last transaction open.
    pub fn stop(mut self) -> Result<()> {
        self.join()
    }

    /// Whether all clients still work, as they should.
    pub fn check(&mut self) -> Result<()> {
        match self.threads.iter().position(|(_, thread)| thread.is_finished()) {
            Some(ended) => {
                let (name, thread) = self.threads.swap_remove(ended);
                join(vec![(name.clone(), thread)])?;
                Err(format!("client {name} has ended").into())
            }
            None => Ok(()),
        }
    }

    fn join(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        join(self.threads.drain(..).collect())
    }
}

/// Waits until clients have done so much that the audit of it can prove something, however slow the machine is. `check`
/// says whether they still work.
pub fn wait_for_work(ledger: &Ledger, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    loop {
        thread::sleep(Duration::from_secs(2));
        check()?;
        let history = ledger.history()?;
        let committed = history.transactions.values().filter(|t| matches!(t.outcome, Outcome::Committed(_))).count();
        let offsets = history.committed_before(history.mark()).into_iter();
        let inputs: i64 = offsets.filter(|((group, ..), _)| group == LOOP.2).map(|(_, offset)| offset).sum();
        let records = history.record_count();
        if records > 6000 && committed > 80 && inputs > 400 && began.elapsed() > WORK_MIN {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            let mut ids: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
            for transaction in history.transactions.values() {
                let is_committed = matches!(transaction.outcome, Outcome::Committed(_));
                ids.entry(&transaction.id).or_default()[usize::from(is_committed)] += 1;
            }
            return Err(format!(
                "clients hardly get on: {records} records, {inputs} inputs, transactions not committed and committed \
                 by id: {ids:?}"
            )
            .into());
        }
    }
}

/// All clients in a process of their own (`segvault-rig produce`), to die together with their cluster: librdkafka waits
/// for ever for some answers of a cluster that is gone, and a client must not go on with what it was about once the
/// cluster is back.
pub struct Clients(Child);

impl Clients {
    /// Starts them with the program `rig`, on topics that [`set_up`] made.
    pub fn start(rig: &Path, cluster: &Cluster, ledger: &Path) -> Result<Self> {
        Self::start_with(rig, cluster, ledger, &[])
    }

    /// The same with more options of `produce`.
    pub fn start_with(rig: &Path, cluster: &Cluster, ledger: &Path, options: &[&str]) -> Result<Self> {
        // A session, so that Java's process, which has a group of its own, is found as well.
        let mut command = Command::new("setsid");
        command.arg(rig).arg("produce").arg(cluster.dir()).arg("--ledger").arg(ledger).arg("--java").args(options);
        command.arg("--tie").arg(std::process::id().to_string());
        Ok(Self(command.stdin(Stdio::null()).spawn()?))
    }

    /// Whether they still work, as they should.
    pub fn check(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            Some(status) => Err(format!("the clients ended: {status}").into()),
            None => Ok(()),
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        kill_session(self.0.id());
        let _ = self.0.wait();
    }
}

/// SIGKILL to all processes of a session; the one that asks for it, if it is of them, comes last.
pub fn kill_session(session: u32) {
    let (session, own) = (session.to_string(), std::process::id());
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything; behind it: state, parent, group, session.
        let is_ours = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3)) == Some(&session);
        if let (true, Some(Ok(pid))) = (is_ours, process.file_name().to_str().map(str::parse::<u32>)) {
            found.push(pid);
        }
    }
    found.sort_by_key(|pid| *pid == own);
    for pid in found {
        let _ = kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), Signal::SIGKILL);
    }
}

fn join(threads: Vec<(String, JoinHandle<Result<()>>)>) -> Result<()> {
    let mut failures = String::new();
    for (name, thread) in threads {
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => writeln!(failures, "client {name}: {error}")?,
            Err(_) => writeln!(failures, "client {name} panicked")?,
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.into()) }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

/// Writes a producer's acknowledgements to the ledger.
struct Acknowledge {
    ledger: Ledger,
}

/// What must be known of a record when its acknowledgement arrives.
struct Sent {
    key: Option<u64>,
    tombstone: bool,
    hash: u64,
    transaction: Option<u64>,
}

impl ClientContext for Acknowledge {}

impl ProducerContext for Acknowledge {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        // A record that failed was never acknowledged: nothing is promised of it.
        let Ok(message) = result else { return };
        let key = sent.key.map_or_else(|| "-".to_owned(), |k| format!("{k:016x}"));
        let kind = if sent.tombstone { 't' } else { 'v' };
        let transaction = sent.transaction.map_or_else(|| "-".to_owned(), |x| x.to_string());
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        self.ledger.append(&format!("r {topic} {partition} {offset} {key} {kind} {:016x} {transaction}\n", sent.hash));
    }
}

/// A record to be sent.
struct Draft<'a> {
    topic: &'a str,
    partition: i32,
    key: Option<String>,
    value: Option<String>,
    transaction: Option<u64>,
    source: Option<(i32, i64)>,
}

type Sender = BaseProducer<Acknowledge>;

impl Client {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn sender(&self, settings: &[(&str, &str)]) -> Result<Sender> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("enable.idempotence", "true").set("linger.ms", "20");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        Ok(config.create_with_context(Acknowledge { ledger: self.ledger.clone() })?)
    }

    /// Hands a record to librdkafka, waiting while its queue is full.
    fn send(&self, sender: &Sender, draft: &Draft<'_>) -> Result<()> {
        let id = self.numbers.next().to_string();
        let (key, value) = (draft.key.as_deref(), draft.value.as_deref());
        let hash = content_hash(key.map(str::as_bytes), value.map(str::as_bytes), id.as_bytes());
        let mut headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(&id) });
        headers = headers.insert(Header { key: "sum", value: Some(&format!("{hash:016x}")) });
        if let Some(x) = draft.transaction {
            headers = headers.insert(Header { key: "x", value: Some(&x.to_string()) });
        }
        if let Some((partition, offset)) = draft.source {
            headers = headers.insert(Header { key: "src", value: Some(&format!("{partition}/{offset}")) });
        }
        let sent = Sent {
            key: key.map(|k| key_hash(k.as_bytes())),
            tombstone: value.is_none(),
            hash,
            transaction: draft.transaction,
        };
        let mut record = BaseRecord::<str, str, Box<Sent>>::with_opaque_to(draft.topic, Box::new(sent))
            .partition(draft.partition)
            .headers(headers);
        record.key = key;
        record.payload = value;
        loop {
            match sender.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    sender.poll(Duration::from_millis(20));
                    record = back;
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
        sender.poll(Duration::ZERO);
        Ok(())
    }

    /// Keeps the rate in bursts, as a client thread that wakes for every record would cost more than the brokers do.
    fn pause(&self, sender: &Sender, sent: u64) {
        if self.rate > 0 && sent.is_multiple_of(BURST) {
            sender.poll(Duration::from_micros(BURST * 1_000_000 / u64::from(self.rate)));
        }
    }

    fn produce_plain(&self, topic: &str, partitions: i32, codec: &str, len: usize) -> Result<()> {
        let sender = self.sender(&[("compression.type", codec)])?;
        for n in 0u64.. {
            if self.stopped() {
                break;
            }
            let partition = (n % u64::from(partitions.unsigned_abs())) as i32;
            let key = (n % 3 != 0).then(|| format!("{codec}-{}", n % 50));
            self.send(
                &sender,
                &Draft {
                    topic,
                    partition,
                    key,
                    value: Some(text(self.numbers.next(), len)),
                    transaction: None,
                    source: None,
                },
            )?;
            self.pause(&sender, n);
        }
        Ok(patiently(|| sender.flush(CALL_SECONDS_MAX))?)
    }

    fn produce_table(&self) -> Result<()> {
        let sender = self.sender(&[("compression.type", "lz4")])?;
        for n in 0.. {
            if self.stopped() {
                break;
            }
            let number = self.numbers.next();
            let key = mix(number) % TABLE_KEYS;
            let value = (!mix(number ^ 1).is_multiple_of(8)).then(|| text(number, 300));
            let partition = i32::try_from(key % 3).expect("there are three partitions");
            self.send(
                &sender,
                &Draft {
                    topic: "table",
                    partition,
                    key: Some(format!("row-{key}")),
                    value,
                    transaction: None,
                    source: None,
                },
            )?;
            self.pause(&sender, n);
        }
        Ok(patiently(|| sender.flush(CALL_SECONDS_MAX))?)
    }

    fn transactional(&self, id: &str) -> Result<Sender> {
        let sender = self.sender(&[
            ("transactional.id", id),
            ("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS),
            ("compression.type", "snappy"),
        ])?;
        patiently(|| sender.init_transactions(CALL_SECONDS_MAX))?;
        Ok(sender)
    }

    /// Does a transaction and ends it as `work` says; `None` leaves it open. What fails on the way is aborted, as clients
    /// do; an error means that it could not be. Returns how it ended.
    fn transact(
        &self,
        sender: &Sender,
        id: &str,
        work: impl FnOnce(u64) -> Result<Option<bool>>,
    ) -> Result<Option<bool>> {
        sender.begin_transaction()?;
        let x = self.numbers.next();
        self.ledger.append(&format!("b {x} {id}\n"));
        let worked = work(x).and_then(|end| {
            // Its records are flushed first, so that all acknowledgements stand above its outcome.
            patiently(|| sender.flush(CALL_SECONDS_MAX))?;
            if end == Some(true) {
                self.ledger.append(&format!("s {x}\n"));
                patiently(|| sender.commit_transaction(CALL_SECONDS_MAX))?;
                self.ledger.append(&format!("c {x}\n"));
            }
            Ok(end)
        });
        if matches!(worked, Ok(None | Some(true))) {
            return worked;
        }
        let aborted = patiently(|| sender.abort_transaction(CALL_SECONDS_MAX));
        if let (Err(failure), Err(error)) = (&worked, &aborted) {
            return Err(format!("{failure}; and to abort it: {error}").into());
        }
        aborted?;
        self.ledger.append(&format!("a {x}\n"));
        Ok(Some(false))
    }

    fn send_in(&self, sender: &Sender, transaction: u64, topic: &str, partition: i32) -> Result<()> {
        let number = self.numbers.next();
        let draft = Draft {
            topic,
            partition,
            key: Some(format!("account-{}", number % 40)),
            value: Some(text(number, 250)),
            transaction: Some(transaction),
            source: None,
        };
        self.send(sender, &draft)
    }

    /// Short transactions over several partitions of three topics; one in four is aborted.
    fn produce_transactions(&self, id: &str, pause: Duration) -> Result<()> {
        let sender = self.transactional(id)?;
        while !self.stopped() {
            self.transact(&sender, id, |x| {
                for (topic, partitions) in &TRANSACTIONAL_TOPICS[..3] {
                    for n in 0..1 + mix(x) % 6 {
                        self.send_in(&sender, x, topic, i32::try_from(mix(x + n) % 8).expect("small") % partitions)?;
                    }
                }
                Ok(Some(!mix(x).is_multiple_of(4)))
            })?;
            thread::sleep(pause);
        }
        Ok(())
    }

    /// One transaction is open here at any moment; the last one is left so.
    fn produce_slow_transactions(&self) -> Result<()> {
        let sender = self.transactional("slow")?;
        let mut round = 0;
        while !self.stopped() {
            self.transact(&sender, "slow", |x| {
                let began = Instant::now();
                while began.elapsed() < SLOW_TRANSACTION {
                    self.send_in(&sender, x, "slow", 0)?;
                    self.send_in(&sender, x, "slow", 1)?;
                    patiently(|| sender.flush(CALL_SECONDS_MAX))?;
                    if self.stopped() {
                        return Ok(None);
                    }
                    thread::sleep(Duration::from_millis(150));
                }
                Ok(Some(round % 2 == 0))
            })?;
            round += 1;
        }
        Ok(())
    }

    /// The read-process-write loop: it reads orders, writes one invoice for each, and commits the input's offsets in the
    /// same transaction.
    fn process(&self) -> Result<()> {
        let sender = self.transactional("billing")?;
        while !self.stopped() {
            self.process_as_member(&sender)?;
        }
        Ok(())
    }

    /// Until a transaction was aborted: the next member of the group goes back to what is committed.
    fn process_as_member(&self, sender: &Sender) -> Result<()> {
        let (input, output, group) = LOOP;
        let consumer = self.consumer(group)?;
        consumer.subscribe(&[input])?;
        while !self.stopped() {
            let Some(Ok(first)) = consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let ended = self.transact(sender, "billing", |x| {
                let mut offsets = TopicPartitionList::new();
                let mut next = Some(first);
                for _ in 0..40 {
                    let Some(message) = next else { break };
                    let source = Some((message.partition(), message.offset()));
                    let partition = message.partition();
                    let value = Some(text(self.numbers.next(), 150));
                    self.send(
                        sender,
                        &Draft { topic: output, partition, key: None, value, transaction: Some(x), source },
                    )?;
                    note_offset(&mut offsets, input, partition, message.offset() + 1)?;
                    next = consumer.poll(Duration::ZERO).and_then(std::result::Result::ok);
                }
                if let Some(message) = next {
                    // Taken but not processed: read it again.
                    consumer.seek(input, message.partition(), Offset::Offset(message.offset()), CALL_SECONDS_MAX)?;
                }
                let metadata = consumer.group_metadata().ok_or("the consumer has no group")?;
                patiently(|| sender.send_offsets_to_transaction(&offsets, &metadata, CALL_SECONDS_MAX))?;
                for element in offsets.elements() {
                    if let Offset::Offset(offset) = element.offset() {
                        self.ledger.append(&format!("o {x} {group} {input} {} {offset}\n", element.partition()));
                    }
                }
                Ok(Some(true))
            })?;
            if ended == Some(false) {
                break;
            }
        }
        Ok(())
    }

    fn consumer(&self, group: &str) -> Result<BaseConsumer> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("group.id", group).set("enable.auto.commit", "false");
        // A restored group still counts the members of its last hour; whoever comes next waits until they are expired.
        if self.has_new_protocol && group == NEW_PROTOCOL_GROUP {
            config.set("group.protocol", "consumer"); // Its sessions are the broker's to set.
        } else {
            config.set("session.timeout.ms", "6000");
        }
        config.set("fetch.min.bytes", "65536").set("fetch.wait.max.ms", "100");
        config.set("auto.offset.reset", "earliest").set("isolation.level", "read_committed");
        Ok(config.create()?)
    }

    /// Reads `events` and commits now and then.
    fn consume(&self, group: &str) -> Result<()> {
        let consumer = self.consumer(group)?;
        consumer.subscribe(&["events"])?;
        let mut offsets = TopicPartitionList::new();
        while !self.stopped() {
            for _ in 0..200 {
                let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) else {
                    break;
                };
                note_offset(&mut offsets, "events", message.partition(), message.offset() + 1)?;
            }
            // A commit may be refused while the group rebalances; the next one counts.
            if offsets.count() > 0 && consumer.commit(&offsets, CommitMode::Sync).is_ok() {
                for element in offsets.elements() {
                    if let Offset::Offset(offset) = element.offset() {
                        self.ledger.append(&format!("g {group} events {} {offset}\n", element.partition()));
                    }
                }
                offsets = TopicPartitionList::new();
            }
        }
        Ok(())
    }

    /// Runs Kafka's own transactional producer, which writes ledger lines to its standard output.
    fn relay_java(&self, mut command: Command) -> Result<()> {
        let start = format!("transactions java-payments {} java-payments 3", self.numbers.next() << 8);
        // A group of its own, so that a JVM whose cluster is gone can be killed with the script that started it.
        let mut child = command.arg(start).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn()?;
        let group = i32::try_from(child.id()).expect("a process id");
        let mut stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
        let (sender, incoming) = mpsc::channel();
        thread::spawn(move || lines.map_while(std::io::Result::ok).try_for_each(|line| sender.send(line)));
        let mut told = None;
        loop {
            match incoming.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => self.ledger.append(&format!("{line}\n")),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.stopped()
                && let Some(mut pipe) = stdin.take()
            {
                // It ends after its current transaction.
                let _ = std::io::Write::write_all(&mut pipe, b"\n");
                told = Some(Instant::now());
            }
            if told.is_some_and(|told| told.elapsed() > CALL_SECONDS_MAX / 2) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
        }
        let status = child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("Java's producer: {status}").into()) }
    }
}

/// Makes a call until it is done, or for [`PATIENCE`], as librdkafka says which may be made again: a new cluster on a busy
/// disk needs half a minute until it has made the partitions of `__transaction_state`.
fn patiently(mut call: impl FnMut() -> KafkaResult<()>) -> KafkaResult<()> {
    let began = Instant::now();
    loop {
        let done = call();
        let again = match &done {
            Err(KafkaError::Transaction(error)) => error.is_retriable(),
            Err(KafkaError::Flush(code)) => *code == RDKafkaErrorCode::OperationTimedOut,
            _ => false,
        };
        if !again || began.elapsed() > PATIENCE {
            return done;
        }
    }
}

fn note_offset(offsets: &mut TopicPartitionList, topic: &str, partition: i32, offset: i64) -> Result<()> {
    match offsets.find_partition(topic, partition) {
        Some(mut element) => element.set_offset(Offset::Offset(offset))?,
        None => offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?,
    }
    Ok(())
}

/// SplitMix64: a number that looks random and is the same every time.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// JSON-like text of about `len` bytes: it compresses as events do, to a third or so.
pub fn text(number: u64, len: usize) -> String {
    let mut text = format!("{{\"number\":{number}");
    let len = len / 2 + usize::try_from(mix(number)).unwrap_or(0) % len.max(1);
    for n in 1.. {
        if text.len() >= len {
            break;
        }
        let _ = write!(text, ",\"field{}\":\"{:x}\"", n % 10, mix(number ^ n) >> 24);
    }
    text + "}"
}

/// Lets new producers work on a cluster: an idempotent one, and one transaction under each of `ids`, on every partition
/// of `topics`. Returns the ledger of what they were told.
pub fn probe(cluster: &Cluster, ids: &BTreeSet<&str>, topics: &[(&str, i32)]) -> Result<History> {
    let dir = tempfile::tempdir()?;
    let ledger = Ledger::open(dir.path().join("probe"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let client = Client {
        bootstrap: cluster.bootstrap(),
        ledger: ledger.clone(),
        stop,
        numbers: Arc::new(Numbers::new()),
        rate: 0,
        outlive: false,
        has_new_protocol: has_new_protocol(cluster),
    };
    let partitions = || topics.iter().flat_map(|(topic, count)| (0..*count).map(move |partition| (*topic, partition)));
    let plain = client.sender(&[])?;
    for (topic, partition) in partitions() {
        let value = Some(text(client.numbers.next(), 60));
        client.send(
            &plain,
            &Draft { topic, partition, key: Some("probe".into()), value, transaction: None, source: None },
        )?;
    }
    patiently(|| plain.flush(CALL_SECONDS_MAX)).map_err(|e| format!("a new idempotent producer: {e}"))?;
    let mut expected = partitions().count();
    for id in ids.iter().chain(&["probe"]) {
        let transaction = || -> Result<()> {
            let sender = client.transactional(id)?;
            let ended = client.transact(&sender, id, |x| {
                let mut transactional = partitions().filter(|(topic, _)| is_transactional(topic));
                transactional.try_for_each(|(topic, partition)| client.send_in(&sender, x, topic, partition))?;
                Ok(Some(true))
            })?;
            if ended == Some(true) { Ok(()) } else { Err("it was aborted".into()) }
        };
        transaction().map_err(|e| format!("a new transaction of {id}: {e}"))?;
        expected += partitions().filter(|(topic, _)| is_transactional(topic)).count();
    }
    let history = ledger.history()?;
    if history.record_count() == expected {
        Ok(history)
    } else {
        Err(format!("{} of {expected} new records were acknowledged", history.record_count()).into())
    }
}

/// Joins a group on a topic and tells where it does not resume at its committed offsets.
pub fn resume(cluster: &Cluster, group: &str, topic: &str, committed: &BTreeMap<String, i64>) -> Result<Vec<String>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap()).set("group.id", group).set("enable.auto.commit", "false");
    config.set("auto.offset.reset", "error").set("enable.partition.eof", "true");
    if has_new_protocol(cluster) && group == NEW_PROTOCOL_GROUP {
        config.set("group.protocol", "consumer");
    }
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic])?;
    let mut left: BTreeMap<i32, i64> = committed
        .iter()
        .filter_map(|(p, offset)| Some((p.strip_prefix(topic)?.strip_prefix('-')?.parse().ok()?, *offset)))
        .collect();
    let (mut problems, began) = (Vec::new(), Instant::now());
    while !left.is_empty() && began.elapsed() < PATIENCE {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                if let Some(offset) = left.remove(&message.partition())
                    && message.offset() != offset
                {
                    problems.push(format!(
                        "{group} resumed {topic}-{} at {} in place of {offset}",
                        message.partition(),
                        message.offset()
                    ));
                }
            }
            // Caught up: there is nothing at or after its offset.
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(left.remove(&partition)),
            _ => {}
        }
    }
    problems
        .extend(left.keys().map(|partition| format!("{group} did not resume {topic}-{partition} within {PATIENCE:?}")));
    Ok(problems)
}
