//! The stream that the last committed point has of a partition: what it knows need not be stored, or even read, again.

use segvault_kafka_log::checkpoint::LeaderEpochs;
use segvault_kafka_log::ids::Uuid;
use segvault_kafka_log::producer::{ProducerSnapshot, ProducerState};
use segvault_vault::{LoadedStream, Vault};
use segvault_vault_format::blob::BlobPlace;
use segvault_vault_format::ids::BlobId;
use segvault_vault_format::manifest::{AbortedTransaction, Chunk, Stream, StreamRef};

/// A stream of the last point, checked.
pub(super) struct Previous {
    pub stream: Stream,
    /// Where its chunks lie.
    pub places: Vec<BlobPlace>,
    /// Producer state at its end.
    state: ProducerState,
}

impl Previous {
    /// Reads the stream of a partition; an error text if it is not there or not that of the partition.
    pub fn load(vault: &Vault, reference: &StreamRef, topic_id: Uuid, partition: i32) -> Result<Self, String> {
        let loaded = vault.wait(vault.load_stream(reference)).map_err(|error| error.to_string())?;
        let LoadedStream { stream, places } = loaded;
        if (&stream.topic_id[..], stream.partition) != (&topic_id.0[..], partition) {
            return Err(format!("its manifest is that of {}-{}", stream.topic, stream.partition));
        }
        let snapshot = ProducerSnapshot::decode(&stream.producer_snapshot).map_err(|error| error.to_string())?;
        let state = ProducerState::from_snapshot(&snapshot, stream.end_offset);
        Ok(Self { stream, places, state })
    }

    /// Where the chunk with these bytes lies, if the stream has it. Offsets are part of the bytes, so it is at the same
    /// offset or nowhere.
    pub fn find(&self, base_offset: i64, id: &BlobId) -> Option<BlobPlace> {
        let at = self.stream.chunks.binary_search_by_key(&base_offset, |chunk| chunk.base_offset).ok()?;
        Some(self.places[at]).filter(|place| place.id == *id)
    }

    /// Whether a replica with these epochs and this end has the same history up to the stream's end (log matching: a
    /// leader's epoch and an offset in it decide everything below).
    pub fn is_prefix_of(&self, epochs: &LeaderEpochs, end_offset: i64) -> bool {
        let in_chunks = self.stream.chunks.iter().map(|chunk| chunk.max_epoch).max();
        let Some(epoch) = in_chunks.or(self.stream.epochs.last().map(|epoch| epoch.epoch)) else {
            return false;
        };
        epochs.end_offset_for(epoch, end_offset).is_some_and(|(found, end)| found == epoch && end >= self.end_offset())
    }

    pub fn end_offset(&self) -> i64 {
        self.stream.end_offset
    }

    pub fn chunks(&self) -> &[Chunk] {
        &self.stream.chunks
    }

    /// Where segment `base_offset` begins in the stream, and how many bytes it has there.
    pub fn segment(&self, base_offset: i64) -> Option<(u64, u64)> {
        let segments = &self.stream.segments;
        let at = segments.binary_search_by_key(&base_offset, |segment| segment.base_offset).ok()?;
        let end = segments.get(at + 1).map_or_else(|| self.stream.len_bytes(), |next| next.position);
        Some((segments[at].position, end - segments[at].position))
    }

    pub fn state(&self) -> ProducerState {
        self.state.clone()
    }

    /// Aborted transactions whose marker lies at or above `offset`.
    pub fn aborted_from(&self, offset: i64) -> Vec<AbortedTransaction> {
        let all = self.stream.segments.iter().flat_map(|segment| &segment.aborted);
        all.filter(|aborted| aborted.last_offset >= offset).copied().collect()
    }
}
