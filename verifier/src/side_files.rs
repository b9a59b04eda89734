//! What a restore writes beside the bytes is what follows from them: aborted transactions and producer state.

use std::collections::BTreeMap;

use segvault_kafka_log::producer::ProducerSnapshot;
use segvault_vault_format::manifest::Stream;

use crate::flaws::Flaws;
use crate::transactions::Producers;

/// Holds the manifest against what `producers` has seen of the stream. `begins_at` is the first offset whose batch is
/// there; `has_gaps`: the cleaner may have removed batches in between.
pub fn check(stream: &Stream, producers: &Producers<'_>, begins_at: i64, has_gaps: bool, flaws: &mut Flaws) {
    let place = format!("{}-{}", stream.topic, stream.partition);
    aborted(stream, producers, &place, begins_at, has_gaps, flaws);
    snapshot(stream, producers, &place, begins_at, flaws);
}

/// Readers of committed records pass over what the index of aborted transactions names, and over nothing else. An entry
/// whose ABORT marker is gone makes Kafka's cleaner take what its producer wrote later for aborted
/// (`CleanedTransactionMetadata`).
fn aborted(stream: &Stream, producers: &Producers<'_>, place: &str, begins_at: i64, has_gaps: bool, flaws: &mut Flaws) {
    let entries = stream.segments.iter().flat_map(|segment| &segment.aborted);
    let mut listed: BTreeMap<i64, (i64, i64)> =
        entries.map(|entry| (entry.last_offset, (entry.producer_id, entry.first_offset))).collect();
    for (marker, (producer_id, first)) in &producers.aborted {
        // The cleaner may have removed the first records.
        let is_same = |(id, from): (i64, i64)| id == *producer_id && (from == *first || has_gaps && from <= *first);
        if !listed.remove(marker).is_some_and(is_same) {
            let what = format!(
                "the transaction of producer {producer_id} from offset {first} on, aborted at {marker}, is not listed as such"
            );
            flaws.add(3, place, what);
        }
    }
    for (marker, (producer_id, first)) in listed {
        let may_be_gone = first < begins_at || has_gaps;
        if !may_be_gone || !producers.idle_aborts.contains(&marker) {
            let what = format!(
                "a transaction of producer {producer_id} from {first} to {marker} is listed as aborted, and is none"
            );
            flaws.add(3, place, what);
        }
    }
}

/// A broker takes producers from the snapshot, without a look at the log.
fn snapshot(stream: &Stream, producers: &Producers<'_>, place: &str, begins_at: i64, flaws: &mut Flaws) {
    if stream.producer_snapshot.is_empty() {
        if !producers.open.is_empty() {
            flaws.add(3, place, "transactions are open, and there is no producer state");
        }
        return;
    }
    let entries = match ProducerSnapshot::decode(&stream.producer_snapshot) {
        Ok(snapshot) => snapshot.entries,
        Err(error) => return flaws.add(0, place, format!("the producer state: {error}")),
    };
    let listed: BTreeMap<i64, _> = entries.iter().map(|entry| (entry.producer_id, entry)).collect();
    for (producer_id, first) in &producers.open {
        let known = listed.get(producer_id).and_then(|entry| entry.current_txn_first_offset);
        if known.is_none_or(|known| known != *first && known >= begins_at) {
            let what = format!(
                "the transaction of producer {producer_id} is open since offset {first}, by the producer state since {known:?}"
            );
            flaws.add(3, place, what);
        }
    }
    for entry in &entries {
        let (id, since) = (entry.producer_id, entry.current_txn_first_offset);
        if since.is_some_and(|since| since >= begins_at && !producers.open.contains_key(&id)) {
            flaws.add(3, place, format!("no transaction of producer {id} is open since {since:?}"));
        }
        // One that has written nothing for long is forgotten; one whose batches are gone may be remembered.
        if let Some(epoch) = producers.epochs.get(&id).filter(|epoch| **epoch != entry.epoch) {
            flaws.add(3, place, format!("producer {id} has epoch {epoch}, by the producer state {}", entry.epoch));
        }
    }
}

#[cfg(test)]
mod tests;
