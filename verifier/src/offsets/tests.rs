use segvault_kafka_log::batch::{BatchBuilder, EndTxnMarker, end_txn_marker_batch};
use segvault_kafka_log::groups::OffsetCommitValue;
use segvault_kafka_log::wire::Message;

use super::*;

fn place() -> TopicPartition {
    TopicPartition::new("__consumer_offsets", 0)
}

/// A commit of `group`, in a transaction of a producer if one is given; a tombstone without an offset.
fn commit(at: i64, group: &str, offset: Option<i64>, producer: Option<i64>) -> Vec<u8> {
    let partition = TopicPartition::new("t", 0);
    let key = GroupKey::OffsetCommit { record_type: 1, key: OffsetCommitKey { group: group.to_owned(), partition } };
    let value = offset.map(|offset| OffsetCommitValue { offset, ..OffsetCommitValue::default() }.encode_prefixed());
    let mut batch = BatchBuilder::new(at, 0);
    if let Some(producer) = producer {
        batch = batch.transactional().producer(producer, 0, 0);
    }
    batch.record(1, Some(&key.encode()), value.as_deref()).build()
}

fn marker(at: i64, producer: i64, commit: bool) -> Vec<u8> {
    end_txn_marker_batch(at, 0, 1, producer, 0, EndTxnMarker { commit, coordinator_epoch: 0 })
}

#[test]
fn offsets_that_count_and_lie_beyond_the_end_are_told() {
    let batches = [
        commit(0, "a", Some(10), None),
        commit(1, "b", Some(11), None),
        commit(2, "b", Some(9), None),     // went back
        commit(3, "c", Some(50), Some(7)), // aborted
        marker(4, 7, false),
        commit(5, "d", Some(51), Some(7)), // committed
        marker(6, 7, true),
        commit(7, "e", Some(52), Some(8)), // open
        commit(8, "f", Some(60), None),
        commit(9, "f", None, None),        // deleted
        commit(10, "g", Some(5), Some(9)), // committed after a later plain commit
        commit(11, "g", Some(70), None),
        marker(12, 9, true),
    ];
    let (mut offsets, mut flaws) = (Offsets::default(), Flaws::default());
    for bytes in &batches {
        offsets.apply(&Batch::parse(bytes).unwrap(), &place(), &mut flaws);
    }
    assert_eq!(offsets.count(), 4, "a, b, d, g");
    assert_eq!(offsets.judge(&BTreeMap::from([(TopicPartition::new("t", 0), 10)]), &mut flaws), 2, "d and g");
    assert_eq!(offsets.judge(&BTreeMap::new(), &mut flaws), 0, "the topic is gone");
    let (flaws, _, mut notes) = flaws.into_parts();
    notes.sort();
    assert_eq!(flaws, []);
    assert_eq!(
        notes,
        ["d is at offset 51", "g is at offset 70"]
            .map(|text| { format!("group {text} of t-0: a restore sets it to the end, 10") })
    );
}

#[test]
fn what_cannot_be_read_is_a_flaw_of_l2() {
    let (mut offsets, mut flaws) = (Offsets::default(), Flaws::default());
    let bytes = BatchBuilder::new(3, 0).record(1, Some(b"\0\x01\0"), Some(b"")).build();
    offsets.apply(&Batch::parse(&bytes).unwrap(), &place(), &mut flaws);
    let (flaws, _, _) = flaws.into_parts();
    assert!(flaws.len() == 1 && flaws[0].level == 2 && flaws[0].what.contains("the key at offset 3"), "{flaws:?}");
}
