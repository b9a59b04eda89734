//! Looks for what some producers appended after `Prepare`.

use std::collections::HashSet;
use std::fs::File;

use segvault_kafka_log::batch::BatchHeader;
use segvault_proto::ProducerEvent;

use super::ReplicaError;
use crate::pinned::{Pin, PinnedReplica};
use crate::sample::{WalkError, seek};

/// Batches and markers of `producer_ids` at or above the offset where the replica ended at `Prepare`; of several data
/// batches of a producer between two of its markers only the first.
pub(crate) fn since_prepared(
    replica: &PinnedReplica,
    producer_ids: &[i64],
) -> Result<Vec<ProducerEvent>, ReplicaError> {
    let producer_ids: HashSet<_> = producer_ids.iter().copied().collect();
    let from = replica.prepared_end_offset;
    let ends = replica.segments.iter().skip(1).map(|segment| segment.base_offset).chain([replica.position.end_offset]);
    let mut events = Vec::new();
    // Producers whose newest event is data: more data says nothing new.
    let mut has_data = HashSet::new();
    for (segment, end) in replica.segments.iter().zip(ends) {
        // A known segment is unchanged since the last point, so all of it was there at `Prepare`.
        if end <= from || segment.len == 0 || matches!(segment.pin, Pin::Known) {
            continue;
        }
        let path = &segment.source;
        let failed = |error: WalkError| match error {
            WalkError::Io(source) => ReplicaError::Io { path: path.clone(), source },
            error => ReplicaError::damaged(path, error),
        };
        let reader = segment.open().map_err(|error| failed(error.into()))?;
        // The index may be another file's by now; it is only a hint.
        let index = File::open(path.with_extension("index")).ok();
        let read = |buf: &mut [u8], at| reader.read_exact_at(buf, at);
        let mut headers = seek(read, segment.len, index.as_ref(), segment.base_offset, from).map_err(failed)?;
        while let Some((_, header)) = headers.next().map_err(failed)? {
            let counts = header.base_offset() >= from && producer_ids.contains(&header.producer_id());
            if counts && (header.is_control() || has_data.insert((header.producer_id(), header.producer_epoch()))) {
                events.push(event(&header));
            }
            if counts && header.is_control() {
                has_data.retain(|(producer_id, _)| *producer_id != header.producer_id());
            }
        }
    }
    Ok(events)
}

fn event(header: &BatchHeader) -> ProducerEvent {
    ProducerEvent {
        offset: header.base_offset(),
        producer_id: header.producer_id(),
        producer_epoch: header.producer_epoch(),
        is_marker: header.is_control(),
    }
}
