//! Time bombs: what the restored brokers would delete by the clock soon after their start.

use std::collections::BTreeMap;

use segvault_kafka_log::metadata::MetadataImage;
use segvault_kafka_log::metadata::image::{BROKER_CONFIG, TOPIC_CONFIG};
use segvault_vault_format::manifest::{PointManifest, Stream};

use super::Finding;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// `log.retention.hours`, `offsets.retention.minutes` and `transactional.id.expiration.ms` by default.
const DEFAULT_MS: i64 = 7 * DAY_MS;

/// Time retention of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Segments whose greatest timestamp is older go, milliseconds.
    pub retention_ms: i64,
    /// Neither the topic nor the metadata's broker configs say so: it is Kafka's default, and a `server.properties` may
    /// say otherwise.
    pub assumed: bool,
}

/// Time retention of the topics that have one: those that delete, and not for ever.
pub(super) fn retention(image: &MetadataImage) -> BTreeMap<String, Retention> {
    let broker = |name: &str| image.configs.get(&(BROKER_CONFIG, String::new()))?.get(name);
    let parse = |value: &String, unit: i64| value.parse::<i64>().ok().map(|value| value.saturating_mul(unit));
    let default_ms = [("log.retention.ms", 1), ("log.retention.minutes", 60_000), ("log.retention.hours", HOUR_MS)]
        .into_iter()
        .find_map(|(name, unit)| parse(broker(name)?, unit));
    let topics = image.topics.values().filter_map(|topic| {
        let configs = image.configs.get(&(TOPIC_CONFIG, topic.name.clone()));
        let config = |name: &str| configs?.get(name);
        let policy = config("cleanup.policy").or_else(|| broker("log.cleanup.policy"));
        if policy.is_some_and(|policy| !policy.contains("delete")) {
            return None;
        }
        let known = config("retention.ms").and_then(|value| parse(value, 1)).or(default_ms);
        let retention = Retention { retention_ms: known.unwrap_or(DEFAULT_MS), assumed: known.is_none() };
        (retention.retention_ms >= 0).then(|| (topic.name.clone(), retention))
    });
    topics.collect()
}

/// What the point's age alone tells.
pub(super) fn find(
    point: &PointManifest,
    image: &MetadataImage,
    retention: &BTreeMap<String, Retention>,
    now_ms: i64,
) -> Vec<Finding> {
    let age_ms = now_ms.saturating_sub(point.finished_ms);
    let age = age_ms / HOUR_MS;
    let mut findings = Vec::new();
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for partition in &point.partitions {
        *bytes.entry(&partition.topic).or_default() += partition.bytes;
    }
    for (topic, retention) in retention.iter().filter(|(_, retention)| retention.retention_ms < age_ms) {
        let bytes = bytes.get(topic.as_str()).copied().unwrap_or(0);
        if bytes > 0 {
            findings.push(Finding::warning(format!(
                "topic {topic}: the point is {age} h old and the topic keeps {} h{}: brokers delete all of its {bytes} \
                 bytes (per replica) minutes after they start, unless retention.ms is raised",
                retention.retention_ms / HOUR_MS,
                if retention.assumed { " (Kafka's default)" } else { "" },
            )));
        }
    }
    let minutes = broker_config(image, "offsets.retention.minutes");
    if age_ms > minutes.map_or(DEFAULT_MS, |minutes| minutes.saturating_mul(60_000)) {
        findings.push(Finding::warning(format!(
            "the point is {age} h old: committed offsets of groups without members expire (offsets.retention.minutes)"
        )));
    }
    if age_ms > broker_config(image, "transactional.id.expiration.ms").unwrap_or(DEFAULT_MS) {
        findings.push(Finding::note(format!(
            "the point is {age} h old: idle transactional ids expire (transactional.id.expiration.ms)"
        )));
    }
    findings
}

fn broker_config(image: &MetadataImage, name: &str) -> Option<i64> {
    image.configs.get(&(BROKER_CONFIG, String::new()))?.get(name)?.parse().ok()
}

/// Bytes of the segments that time retention would delete at `now_ms`: all of their records are older. Kafka judges
/// segments one by one from the oldest and stops at the first that stays.
pub fn expired_bytes(stream: &Stream, retention: Retention, now_ms: i64) -> u64 {
    let horizon = now_ms.saturating_sub(retention.retention_ms);
    let total: u64 = stream.chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
    let ends = stream.segments.iter().skip(1).map(|segment| segment.position).chain([total]);
    let mut chunks = Vec::with_capacity(stream.chunks.len());
    let mut position = 0u64;
    for chunk in &stream.chunks {
        chunks.push((position, chunk));
        position += u64::from(chunk.len);
    }
    let mut expired = 0;
    for (segment, end) in stream.segments.iter().zip(ends) {
        let first = chunks.partition_point(|(at, chunk)| at + u64::from(chunk.len) <= segment.position);
        let within = chunks[first..].iter().take_while(|(at, _)| *at < end);
        // A chunk that reaches into the next segment may lend it a later timestamp: then less is called expired.
        let newest = within.map(|(_, chunk)| chunk.max_timestamp).max();
        if newest.is_some_and(|newest| newest < 0 || newest >= horizon) {
            break;
        }
        expired += end.saturating_sub(segment.position);
    }
    expired
}

#[cfg(test)]
mod tests {
    use segvault_vault_format::manifest::{Chunk, Segment};

    use super::*;

    #[test]
    fn segments_expire_from_the_oldest_until_one_stays() {
        let chunk = |len, max_timestamp| Chunk { len, max_timestamp, ..Chunk::default() };
        let segment = |position| Segment { position, ..Segment::default() };
        let stream = Stream {
            chunks: vec![chunk(10, 100), chunk(20, 150), chunk(30, 500), chunk(5, 100)],
            segments: vec![segment(0), segment(30), segment(60)],
            ..Stream::default()
        };
        let expired = |retention_ms| expired_bytes(&stream, Retention { retention_ms, assumed: false }, 600);
        assert_eq!([expired(600), expired(450), expired(449), expired(100), expired(99)], [0, 0, 30, 30, 65]);
    }
}
