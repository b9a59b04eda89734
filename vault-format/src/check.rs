//! What must hold inside a manifest: checked before it is written and again after it was read.
//!
//! Hashes prove that a manifest is what was written; these checks, that what was written makes sense.

use std::collections::BTreeSet;
use std::fmt::Display;

use crate::blob::{BLOB_LEN_MAX, BlobPlace, Codec, check_lens};
use crate::ids::{BlobId, PackId};
use crate::keys::check_cluster_id;
use crate::manifest::{
    BlobRef, Chunk, ChunkLocation, ManifestError, NodeEntry, Outcome, PartitionEntry, PointManifest, Segment, Stream,
    StreamIndex, StreamRef,
};
use crate::pack::PACK_HEADER_LEN;

/// Highest level a point can reach (L3).
const LEVEL_MAX: u32 = 3;

impl Chunk {
    /// The id, once the manifest was checked.
    ///
    /// # Panics
    /// If [`Stream::check`] would fail.
    pub fn blob_id(&self) -> BlobId {
        BlobId::from_slice(&self.id).expect("a checked manifest")
    }
}

impl Stream {
    /// Raw bytes of all chunks.
    pub fn len_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.len)).sum()
    }

    /// Says whether ids are ids, offsets and positions rise, and all lies below the cut.
    pub fn check(&self) -> Result<(), ManifestError> {
        let name = || format!("stream {}-{}", self.topic, self.partition);
        let fail = |why: String| Err(ManifestError::new(name(), why));
        if let Err(error) = check_cluster_id(&self.cluster_id) {
            return fail(error.to_string());
        }
        if self.topic_id.len() != 16 || self.topic.is_empty() || self.partition < -1 {
            return fail("impossible topic id, name or partition".into());
        }
        if self.log_start_offset < 0 || self.end_offset < self.log_start_offset {
            return fail(format!("ends at {} but starts at {}", self.end_offset, self.log_start_offset));
        }
        for (index, chunk) in self.chunks.iter().enumerate() {
            if let Err(why) = chunk.check() {
                return fail(format!("chunk {index}: {why}"));
            }
        }
        if let Some(index) = falls(&self.chunks, |before, after| before.last_offset < after.base_offset) {
            return fail(format!("chunk {index} does not begin above the one before it"));
        }
        if let Some(last) = self.chunks.last().filter(|last| last.last_offset >= self.end_offset) {
            return fail(format!("chunks reach to {}, past the end at {}", last.last_offset, self.end_offset));
        }
        check_segments(self).or_else(fail)?;
        if let Some(index) = falls(&self.epochs, |a, b| a.epoch < b.epoch && a.start_offset < b.start_offset) {
            return fail(format!("leader epoch {index} does not rise"));
        }
        Ok(())
    }
}

impl Chunk {
    fn check(&self) -> Result<(), String> {
        BlobId::from_slice(&self.id).map_err(|error| error.to_string())?;
        if self.base_offset < 0 || self.last_offset < self.base_offset {
            return Err(format!("offsets {} to {}", self.base_offset, self.last_offset));
        }
        if self.len == 0 || self.len > BLOB_LEN_MAX || self.batches == 0 {
            return Err(format!("{} bytes in {} batches", self.len, self.batches));
        }
        Ok(())
    }
}

fn check_segments(stream: &Stream) -> Result<(), String> {
    let segments = &stream.segments;
    match segments.first() {
        Some(first) if first.position != 0 => {
            return Err("the first segment does not begin at byte 0".into());
        }
        None if stream.partition >= 0 && !stream.chunks.is_empty() => {
            return Err("it has no segment".into());
        }
        _ => {}
    }
    let rises = |a: &Segment, b: &Segment| a.base_offset < b.base_offset && a.position <= b.position;
    if let Some(index) = falls(segments, rises) {
        return Err(format!("segment {index} does not begin above the one before it"));
    }
    if segments.last().is_some_and(|last| last.position > stream.len_bytes()) {
        return Err("the last segment begins past the last byte".into());
    }
    for segment in segments {
        if falls(&segment.aborted, |a, b| a.last_offset < b.last_offset).is_some() {
            return Err(format!("aborted transactions of segment {} do not rise", segment.base_offset));
        }
    }
    Ok(())
}

/// Index of the first item that does not `rise` above the one before it.
fn falls<T>(items: &[T], rises: impl Fn(&T, &T) -> bool) -> Option<usize> {
    items.windows(2).position(|pair| !rises(&pair[0], &pair[1])).map(|index| index + 1)
}

impl StreamIndex {
    /// The index of a stream whose chunks lie at `places`.
    pub fn new(places: &[BlobPlace]) -> Self {
        let mut index = Self::default();
        for place in places {
            // Chunks that follow each other mostly share a pack, and a stream has few: look from the back.
            let known = index.packs.iter().rposition(|pack| pack[..] == place.pack.0);
            let pack = known.unwrap_or_else(|| {
                index.packs.push(place.pack.0.to_vec());
                index.packs.len() - 1
            });
            index.locations.push(ChunkLocation {
                pack: u32::try_from(pack).expect("fewer packs than chunks"),
                offset: place.offset,
                stored_len: place.stored_len,
                codec: place.codec as u32,
            });
        }
        index
    }

    /// Where the chunks of `stream` lie, one by one; an error if the index is not that of the stream.
    pub fn check(&self, stream: &Stream) -> Result<Vec<BlobPlace>, ManifestError> {
        let name = || format!("index of stream {}-{}", stream.topic, stream.partition);
        let error = |why: &dyn Display| ManifestError::new(name(), why.to_string());
        if self.locations.len() != stream.chunks.len() {
            return Err(error(&format_args!("{} locations, {} chunks", self.locations.len(), stream.chunks.len())));
        }
        let packs: Vec<PackId> = self
            .packs
            .iter()
            .map(|pack| PackId::from_slice(pack))
            .collect::<Result<_, _>>()
            .map_err(|why| error(&why))?;
        let place = |(location, chunk): (&ChunkLocation, &Chunk)| {
            place(&packs, location, chunk).map_err(|why| error(&format_args!("offset {}: {why}", chunk.base_offset)))
        };
        self.locations.iter().zip(&stream.chunks).map(place).collect()
    }
}

fn place(packs: &[PackId], location: &ChunkLocation, chunk: &Chunk) -> Result<BlobPlace, String> {
    let place = BlobPlace {
        id: BlobId::from_slice(&chunk.id).map_err(|error| error.to_string())?,
        pack: *packs.get(location.pack as usize).ok_or_else(|| format!("there is no pack {}", location.pack))?,
        offset: location.offset,
        stored_len: location.stored_len,
        raw_len: chunk.len,
        codec: u8::try_from(location.codec)
            .ok()
            .and_then(Codec::from_byte)
            .ok_or_else(|| format!("unknown codec {}", location.codec))?,
    };
    check_lens(place.codec, place.raw_len, place.stored_len)?;
    check_offset(&place)?;
    Ok(place)
}

/// A blob lies behind its pack's header, and its end can be counted.
pub(crate) fn check_offset(place: &BlobPlace) -> Result<(), String> {
    let end = place.offset.checked_add(place.len() as u64);
    if place.offset < PACK_HEADER_LEN as u64 || end.is_none() {
        return Err(format!("impossible offset {}", place.offset));
    }
    Ok(())
}

impl TryFrom<&BlobRef> for BlobPlace {
    type Error = ManifestError;

    fn try_from(blob: &BlobRef) -> Result<Self, ManifestError> {
        let error = |why: String| ManifestError::new("blob reference", why);
        let place = BlobPlace {
            id: BlobId::from_slice(&blob.id).map_err(|e| error(e.to_string()))?,
            pack: PackId::from_slice(&blob.pack).map_err(|e| error(e.to_string()))?,
            offset: blob.offset,
            stored_len: blob.stored_len,
            raw_len: blob.raw_len,
            codec: u8::try_from(blob.codec)
                .ok()
                .and_then(Codec::from_byte)
                .ok_or_else(|| error(format!("unknown codec {}", blob.codec)))?,
        };
        check_lens(place.codec, place.raw_len, place.stored_len).map_err(error)?;
        check_offset(&place).map_err(error)?;
        Ok(place)
    }
}

impl StreamRef {
    /// Where manifest and index lie; an error if one is missing or makes no sense.
    pub fn places(&self) -> Result<(BlobPlace, BlobPlace), ManifestError> {
        let place = |blob: &Option<BlobRef>, what: &str| {
            blob.as_ref().ok_or_else(|| ManifestError::new("stream reference", format!("no {what}")))?.try_into()
        };
        Ok((place(&self.manifest, "manifest")?, place(&self.index, "index")?))
    }
}

impl PointManifest {
    /// Says whether the parts fit together; streams are only referred to, see [`Stream::check`].
    pub fn check(&self) -> Result<(), ManifestError> {
        let name = || format!("point {}/{}", self.cluster_id, self.number);
        let fail = |why: String| Err(ManifestError::new(name(), why));
        if let Err(error) = check_cluster_id(&self.cluster_id) {
            return fail(error.to_string());
        }
        // Times are a wall clock's, which may be set back: a point is not lost for that.
        if self.number == 0 || self.level > LEVEL_MAX {
            return fail("impossible number or level".into());
        }
        for node in &self.nodes {
            node.check().or_else(fail)?;
        }
        let Some(metadata) = &self.metadata else {
            return fail("it has no cluster metadata".into());
        };
        if metadata.checkpoint.is_none() && metadata.log.is_none() {
            return fail("its metadata is neither checkpoint nor log".into());
        }
        for stream in metadata.checkpoint.iter().chain(&metadata.log) {
            stream.places()?;
        }
        for partition in &self.partitions {
            let place = format!("partition {}-{}", partition.topic, partition.partition);
            partition.check().map_err(|why| ManifestError::new(place, why))?;
        }
        let key = |entry: &PartitionEntry| (entry.topic.clone(), entry.partition);
        if let Some(index) = falls(&self.partitions, |a, b| key(a) < key(b)) {
            let (topic, partition) = key(&self.partitions[index]);
            return fail(format!("partition {topic}-{partition} is out of order"));
        }
        if !self.degraded && self.partitions.iter().any(|entry| !entry.uncovered.is_empty()) {
            return fail("a partition is not covered, but it is not marked degraded".into());
        }
        let partitions = self.partitions.len();
        let mut markers = BTreeSet::new();
        for marker in self.abort_markers.iter().chain(&self.commit_markers) {
            if marker.partition_index as usize >= partitions {
                return fail("a transaction marker for a partition that is not there".into());
            }
            if !markers.insert((marker.partition_index, marker.producer_id)) {
                return fail(format!("two transaction markers for producer {} in a partition", marker.producer_id));
            }
        }
        Ok(())
    }
}

impl NodeEntry {
    fn check(&self) -> Result<(), String> {
        if self.metadata_log_dir as usize >= self.log_dirs.len() {
            return Err(format!("node {} has no log dir {}", self.node_id, self.metadata_log_dir));
        }
        match self.log_dirs.iter().find(|dir| !matches!(dir.directory_id.len(), 0 | 16)) {
            Some(dir) => Err(format!("node {}: impossible directory id of {}", self.node_id, dir.path)),
            None => Ok(()),
        }
    }
}

impl PartitionEntry {
    fn check(&self) -> Result<(), String> {
        if self.topic_id.len() != 16 || self.topic.is_empty() || self.partition < 0 {
            return Err("impossible topic id, name or partition".into());
        }
        let Some(stream) = &self.stream else {
            return if self.bytes == 0 { Ok(()) } else { Err(format!("{} bytes, but no stream", self.bytes)) };
        };
        stream.places().map_err(|error| error.to_string())?;
        if !self.uncovered.is_empty() {
            return Err("it has a stream, but is said to be uncovered".into());
        }
        let offsets = [self.log_start_offset, self.end_offset, self.pinned_end_offset];
        if offsets[0] < 0 || !offsets.is_sorted() {
            return Err(format!("start, end and pinned end {offsets:?} are out of order"));
        }
        Ok(())
    }
}

impl Outcome {
    /// The root of a committed point; nothing for an aborted one.
    pub fn root(&self) -> Result<Option<BlobId>, ManifestError> {
        let name = || format!("outcome of point {}/{}", self.cluster_id, self.number);
        if !self.committed {
            return Ok(None);
        }
        BlobId::from_slice(&self.root).map(Some).map_err(|error| ManifestError::new(name(), error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{AbortedTransaction, Epoch, MetadataEntry};

    fn chunk(base_offset: i64, last_offset: i64) -> Chunk {
        let id = BlobId::of(&base_offset.to_be_bytes()).0.to_vec();
        Chunk { id, base_offset, last_offset, len: 100, batches: 1, max_timestamp: -1, max_epoch: 0 }
    }

    fn stream() -> Stream {
        Stream {
            cluster_id: "c".into(),
            topic_id: vec![1; 16],
            topic: "t".into(),
            partition: 0,
            log_start_offset: 3,
            end_offset: 30,
            chunks: vec![chunk(0, 9), chunk(12, 19)],
            segments: vec![Segment::default(), Segment { base_offset: 15, position: 150, aborted: vec![] }],
            epochs: vec![Epoch { epoch: 0, start_offset: 0 }, Epoch { epoch: 4, start_offset: 12 }],
            producer_snapshot: vec![],
        }
    }

    fn place(offset: u64) -> BlobPlace {
        let (id, pack) = (BlobId([1; 32]), PackId([2; 16]));
        BlobPlace { id, pack, offset, stored_len: 50, raw_len: 100, codec: Codec::Zstd }
    }

    fn point() -> PointManifest {
        let stream = StreamRef { manifest: Some(place(40).into()), index: Some(place(200).into()) };
        let entry = |topic: &str, partition| PartitionEntry {
            topic_id: vec![1; 16],
            topic: topic.into(),
            partition,
            stream: Some(stream.clone()),
            bytes: 100,
            end_offset: 5,
            pinned_end_offset: 6,
            ..Default::default()
        };
        PointManifest {
            cluster_id: "c".into(),
            number: 1,
            metadata: Some(MetadataEntry { log: Some(stream.clone()), ..Default::default() }),
            partitions: vec![entry("a", 0), entry("a", 1), entry("b", 0)],
            ..Default::default()
        }
    }

    #[test]
    fn a_sound_stream_passes_and_each_defect_is_named() {
        assert_eq!(stream().check(), Ok(()));
        type Defect = fn(&mut Stream);
        let table: [(Defect, &str); 12] = [
            (|s| s.cluster_id.clear(), "cluster id"),
            (|s| s.topic_id.truncate(15), "topic id"),
            (|s| s.end_offset = 19, "past the end"),
            (|s| s.end_offset = 2, "starts at 3"),
            (|s| s.chunks[1].id.truncate(31), "chunk 1"),
            (|s| s.chunks[1].base_offset = 9, "above the one before"),
            (|s| s.chunks[0].len = 0, "0 bytes"),
            (|s| s.segments[0].position = 1, "byte 0"),
            (|s| s.segments.clear(), "no segment"),
            (|s| s.segments[1].position = 201, "past the last byte"),
            (|s| s.segments[1].aborted = vec![AbortedTransaction::default(); 2], "do not rise"),
            (|s| s.epochs[1].epoch = 0, "epoch 1"),
        ];
        for (defect, expected) in table {
            let mut bad = stream();
            defect(&mut bad);
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
    }

    #[test]
    fn an_index_gives_back_the_places_it_was_made_of() {
        let stream = stream();
        let places: Vec<_> = stream
            .chunks
            .iter()
            .zip([40, 154])
            .map(|(chunk, offset)| BlobPlace { id: chunk.blob_id(), ..place(offset) })
            .collect();
        let index = StreamIndex::new(&places);
        assert_eq!(index.packs.len(), 1);
        assert_eq!(index.check(&stream), Ok(places));

        type Defect = fn(&mut StreamIndex);
        let defects: [Defect; 6] = [
            |i| i.locations.truncate(1),
            |i| i.locations[0].pack = 1,
            |i| i.locations[0].codec = 2,
            |i| i.locations[0].stored_len = 101,
            |i| i.locations[0].offset = 39,
            |i| i.packs[0].truncate(3),
        ];
        for (number, defect) in defects.into_iter().enumerate() {
            let mut bad = index.clone();
            defect(&mut bad);
            assert!(bad.check(&stream).is_err(), "defect {number}");
        }
    }

    #[test]
    fn a_sound_point_passes_and_each_defect_is_named() {
        assert_eq!(point().check(), Ok(()));
        assert_eq!(PointManifest { began_ms: 1, ..point() }.check(), Ok(()), "the clock was set back");
        type Defect = fn(&mut PointManifest);
        let table: [(Defect, &str); 10] = [
            (|p| p.number = 0, "number"),
            (|p| p.metadata = None, "no cluster metadata"),
            (|p| p.partitions.swap(0, 1), "partition a-0 is out of order"),
            (|p| p.partitions[0].pinned_end_offset = 4, "out of order"),
            (|p| p.partitions[0].stream.as_mut().unwrap().index = None, "no index"),
            (|p| p.partitions[2].stream = None, "no stream"),
            (|p| p.nodes.push(NodeEntry::default()), "no log dir"),
            (|p| p.abort_markers.push(Default::default()), "transaction marker"),
            (|p| p.commit_markers.push(Default::default()), "transaction marker"),
            (|p| p.commit_markers.resize(2, Default::default()), "two transaction markers"),
        ];
        for (defect, expected) in table {
            let mut bad = point();
            if expected == "transaction marker" {
                bad.partitions.clear();
            }
            defect(&mut bad);
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
        let mut uncovered = point();
        let entry = &mut uncovered.partitions[0];
        (entry.stream, entry.bytes, entry.uncovered) = (None, 0, "every replica is down".into());
        assert!(uncovered.check().is_err());
        uncovered.degraded = true;
        assert_eq!(uncovered.check(), Ok(()));
    }
}
