//! Reads whole partitions back, under either isolation level.

use crate::{
    PATIENCE, Result,
    ledger::{content_hash, key_hash},
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

/// What a consumer may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Everything up to the high watermark, aborted records too.
    Uncommitted,
    /// Committed records up to the last stable offset.
    Committed,
}

/// A record as a consumer saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its offset.
    pub offset: i64,
    /// Hash of its key, if it has one.
    pub key: Option<u64>,
    /// Is its value null?
    pub tombstone: bool,
    /// [`content_hash`].
    pub hash: u64,
    /// The `x` header: its transaction's number.
    pub transaction: Option<u64>,
    /// The `src` header: partition and offset of the input that it answers.
    pub source: Option<(i32, i64)>,
    /// Does the content agree with the `sum` header, where there is one?
    pub intact: bool,
}

/// Reads the partitions from their start to their end, calling `each` with topic, partition and record.
///
/// The cluster should be quiet: a partition is done when its end is reached once.
pub fn read(
    bootstrap: &str,
    isolation: Isolation,
    partitions: &[(String, i32)],
    mut each: impl FnMut(&str, i32, Seen),
) -> Result<()> {
    let mut topics: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
    for (topic, partition) in partitions {
        topics.entry(topic).or_default().insert(*partition);
    }
    // A consumer each: the event that tells of a partition's end names no topic, and may come twice. At once, as each
    // waits for its brokers most of the time.
    let read = |topic: &str, partitions| {
        let mut found = Vec::new();
        let read = read_topic(bootstrap, isolation, topic, partitions, &mut |partition, seen| {
            found.push((partition, seen));
        });
        read.map(|()| found)
    };
    thread::scope(|scope| {
        let read = &read;
        let topics = topics.into_iter();
        let reading: Vec<_> =
            topics.map(|(topic, partitions)| (topic, scope.spawn(move || read(topic, partitions)))).collect();
        for (topic, thread) in reading {
            let found = thread.join().expect("no reader panics")?;
            found.into_iter().for_each(|(partition, seen)| each(topic, partition, seen));
        }
        Ok(())
    })
}

fn read_topic(
    bootstrap: &str,
    isolation: Isolation,
    topic: &str,
    mut left: BTreeSet<i32>,
    each: &mut impl FnMut(i32, Seen),
) -> Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "segvault-auditor")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "50")
        .set("check.crcs", "true")
        .set("isolation.level", if isolation == Isolation::Committed { "read_committed" } else { "read_uncommitted" })
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in &left {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let mut heard = Instant::now();
    while !left.is_empty() {
        let event = consumer.poll(Duration::from_millis(200));
        if heard.elapsed() > PATIENCE {
            let why =
                format!("nothing was heard for {PATIENCE:?}, the ends of {topic} {left:?} are missing; {event:?}");
            return Err(why.into());
        }
        match event {
            Some(Ok(message)) => each(message.partition(), seen(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(left.remove(&partition)),
            // Errors while brokers elect pass by themselves; silence is what counts.
            Some(Err(_)) | None => continue,
        }
        heard = Instant::now();
    }
    Ok(())
}

fn seen(message: &BorrowedMessage<'_>) -> Seen {
    let header = |name: &str| message.headers()?.iter().find(|h| h.key == name)?.value;
    let text = |name: &str| std::str::from_utf8(header(name)?).ok();
    let hash = content_hash(message.key(), message.payload(), header("id").unwrap_or_default());
    let source =
        text("src").and_then(|s| s.split_once('/')).and_then(|(p, o)| Some((p.parse().ok()?, o.parse().ok()?)));
    Seen {
        offset: message.offset(),
        key: message.key().map(key_hash),
        tombstone: message.payload().is_none(),
        hash,
        transaction: text("x").and_then(|x| x.parse().ok()),
        source,
        intact: text("sum").is_none_or(|sum| sum == format!("{hash:016x}")),
    }
}
