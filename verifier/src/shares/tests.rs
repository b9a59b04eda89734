use segvault_kafka_log::batch::BatchBuilder;
use segvault_kafka_log::share::{ShareSnapshotValue, ShareUpdateValue};
use segvault_kafka_log::wire::Message;

use super::*;

const TOPIC: Uuid = Uuid([5; 16]);

fn place() -> TopicPartition {
    TopicPartition::new("__share_group_state", 0)
}

fn key(group: &str) -> SharePartitionKey {
    SharePartitionKey { group: group.to_owned(), topic_id: TOPIC, partition: 0 }
}

fn batches(last_offset: Option<i64>) -> Vec<StateBatch> {
    let batch = |last_offset| StateBatch { first_offset: last_offset - 1, last_offset, ..StateBatch::default() };
    last_offset.map(batch).into_iter().collect()
}

fn snapshot(group: &str, start_offset: i64, last_offset: Option<i64>) -> (ShareKey, Option<Vec<u8>>) {
    let value = ShareSnapshotValue { start_offset, state_batches: batches(last_offset), ..Default::default() };
    (ShareKey::Snapshot(key(group)), Some(value.encode_prefixed()))
}

fn update(group: &str, start_offset: i64, last_offset: Option<i64>) -> (ShareKey, Option<Vec<u8>>) {
    let value = ShareUpdateValue { start_offset, state_batches: batches(last_offset), ..Default::default() };
    (ShareKey::Update(key(group)), Some(value.encode_prefixed()))
}

fn applied(records: &[(ShareKey, Option<Vec<u8>>)]) -> (Shares, Flaws) {
    let (mut shares, mut flaws) = (Shares::default(), Flaws::default());
    let mut batch = BatchBuilder::new(0, 0);
    for (key, value) in records {
        batch = batch.record(0, Some(&key.encode()), value.as_deref());
    }
    shares.apply(&Batch::parse(&batch.build()).unwrap(), &place(), &mut flaws);
    (shares, flaws)
}

#[test]
fn states_that_reach_beyond_the_end_are_told() {
    let (shares, mut flaws) = applied(&[
        snapshot("a", 10, Some(9)), // old news
        snapshot("b", 11, None),    // beyond
        update("c", 8, Some(12)),   // knows of more
        snapshot("d", 5, Some(20)), // knew of more
        snapshot("d", 5, Some(9)),
        snapshot("e", 5, None),
        update("e", -1, Some(10)), // the first record beyond
        snapshot("f", 50, None),   // deleted
        (ShareKey::Snapshot(key("f")), None),
        snapshot("g", 50, None),
        update("g", 9, None), // went back
    ]);
    assert_eq!(shares.count(), 6);
    let ends = BTreeMap::from([((TOPIC, 0), (TopicPartition::new("t", 0), 10))]);
    assert_eq!(shares.judge(&ends, &mut flaws), 3);
    assert_eq!(shares.judge(&BTreeMap::new(), &mut flaws), 0, "the topic is gone");
    let (flaws, _, mut notes) = flaws.into_parts();
    notes.sort();
    assert_eq!(flaws, []);
    assert_eq!(
        notes,
        [
            "share group b is at offset 11 of t-0: a restore sets it to the end, 10",
            "share group c knows of records of t-0 up to offset 12: a restore takes back what lies beyond the end, 10",
            "share group e knows of records of t-0 up to offset 10: a restore takes back what lies beyond the end, 10",
        ]
    );
}

#[test]
fn what_cannot_be_read_is_a_flaw_of_l2() {
    let (_, flaws) = applied(&[
        (ShareKey::Snapshot(key("a")), Some(vec![0, 0, 1])),
        (ShareKey::Snapshot(key("a")), Some(vec![0, 1, 1])),
        (ShareKey::Unknown { record_type: 9, bytes: vec![] }, Some(vec![])),
    ]);
    let (flaws, _, _) = flaws.into_parts();
    let whats: Vec<_> = flaws.iter().map(|flaw| (flaw.level, flaw.what.as_str())).collect();
    let [(2, truncated), (2, version)] = whats[..] else { panic!("{whats:?}") };
    assert!(truncated.starts_with("the value at offset 0: "), "{truncated}");
    assert_eq!(version, "the value at offset 1 has a version that is not known");
}
