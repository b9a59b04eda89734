//! One transaction is committed, one aborted, one open.

use segvault_kafka_log::TopicPartition;
use segvault_kafka_log::batch::{Batch, BatchBuilder, EndTxnMarker, end_txn_marker_batch};
use segvault_kafka_log::producer::{ProducerEntry, ProducerState};
use segvault_vault_format::manifest::{AbortedTransaction, Segment};

use super::*;
use crate::transactions::TransactionIds;

fn data(offset: i64, producer: i64) -> Vec<u8> {
    BatchBuilder::new(offset, 0).transactional().producer(producer, 0, 0).record(1, None, Some(b"v")).build()
}

fn marker(offset: i64, producer: i64, commit: bool) -> Vec<u8> {
    end_txn_marker_batch(offset, 0, 1, producer, 0, EndTxnMarker { commit, coordinator_epoch: 0 })
}

/// What is found wrong with side files that `change` has changed.
fn flaws(has_gaps: bool, change: impl Fn(&mut Vec<AbortedTransaction>, &mut Vec<ProducerEntry>)) -> Vec<String> {
    let batches = [data(0, 1), data(1, 2), data(2, 3), marker(3, 1, true), marker(4, 2, false), marker(5, 9, false)];
    let ids = TransactionIds::default();
    let mut found = Flaws::default();
    let mut producers = Producers::new(&ids, TopicPartition::new("t", 0), 0);
    // As Kafka's own rules have it, by code that the verifier does not use.
    let mut state = ProducerState::new(0);
    for bytes in &batches {
        let batch = Batch::parse(bytes).unwrap();
        producers.apply(&batch, false, &mut found);
        state.apply(&batch).unwrap();
    }
    let mut aborted =
        vec![AbortedTransaction { producer_id: 2, first_offset: 1, last_offset: 4, last_stable_offset: 2 }];
    let mut entries: Vec<ProducerEntry> = state.producers().cloned().collect();
    change(&mut aborted, &mut entries);
    let snapshot = ProducerSnapshot { entries }.encode();
    let segments = vec![Segment { base_offset: 0, position: 0, aborted }];
    let stream = Stream { topic: "t".to_owned(), segments, producer_snapshot: snapshot, ..Stream::default() };
    check(&stream, &producers, 0, has_gaps, &mut found);
    let (flaws, _, _) = found.into_parts();
    flaws.into_iter().map(|flaw| flaw.what).collect()
}

#[test]
fn what_follows_from_the_bytes_has_no_flaw() {
    assert_eq!(flaws(false, |_, _| ()), [""; 0]);
}

#[test]
fn an_aborted_transaction_that_readers_would_see_is_a_flaw_and_so_is_one_that_they_would_miss() {
    let found = flaws(false, |aborted, _| aborted.clear());
    assert!(found.len() == 1 && found[0].contains("aborted at 4, is not listed as such"), "{found:?}");
    let found = flaws(false, |aborted, _| aborted[0].first_offset = 0);
    assert!(found.len() == 1 && found[0].contains("is not listed as such"), "{found:?}");
    // The first records may have been cleaned away.
    assert_eq!(flaws(true, |aborted, _| aborted[0].first_offset = 0), [""; 0]);
    let committed = AbortedTransaction { producer_id: 1, first_offset: 0, last_offset: 3, last_stable_offset: 1 };
    let found = flaws(false, |aborted, _| aborted.insert(0, committed));
    assert!(found.len() == 1 && found[0].contains("from 0 to 3 is listed as aborted, and is none"), "{found:?}");
    // It began before the log's first batch.
    let before = AbortedTransaction { producer_id: 9, first_offset: -3, last_offset: 5, last_stable_offset: 2 };
    assert_eq!(flaws(false, |aborted, _| aborted.push(before)), [""; 0]);
    // Its batches were cleaned away, and its marker is there yet; then that went, too.
    let cleaned = AbortedTransaction { producer_id: 9, first_offset: 3, last_offset: 5, last_stable_offset: 2 };
    assert_eq!(flaws(true, |aborted, _| aborted.push(cleaned)), [""; 0]);
    let gone = AbortedTransaction { producer_id: 1, first_offset: 0, last_offset: 2, last_stable_offset: 1 };
    let found = flaws(true, |aborted, _| aborted.insert(0, gone));
    assert!(found.len() == 1 && found[0].contains("from 0 to 2 is listed as aborted, and is none"), "{found:?}");
}

#[test]
fn the_producer_state_is_that_of_the_batches() {
    let found = flaws(false, |_, entries| entries[2].current_txn_first_offset = None);
    assert!(found.len() == 1 && found[0].contains("producer 3 is open since offset 2"), "{found:?}");
    let found = flaws(false, |_, entries| entries[0].current_txn_first_offset = Some(0));
    assert!(found.len() == 1 && found[0].contains("no transaction of producer 1 is open"), "{found:?}");
    let found = flaws(false, |_, entries| entries[1].epoch = 7);
    assert!(found.len() == 1 && found[0].contains("producer 2 has epoch 0, by the producer state 7"), "{found:?}");
    // A producer without an open transaction may be forgotten, as the last one is.
    assert_eq!(flaws(false, |_, entries| entries.truncate(3)), [""; 0]);
}
