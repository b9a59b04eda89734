//! Snapshots and segments of the metadata log, replayed into an image; and an image written as a snapshot.
//!
//! ```text
//! control batch   SNAPSHOT_HEADER [KRAFT_VERSION] [KRAFT_VOTERS]     (the latter two for dynamic quorums)
//! data batches    metadata records, at most 8 MiB per batch          (none if there are no records)
//! control batch   SNAPSHOT_FOOTER
//! ```
//!
//! Offsets inside a snapshot count from 0, whatever the end offset in its name; `partitionLeaderEpoch` is the epoch of
//! its name in every batch; there are no producers, and nothing is compressed (`RecordsSnapshotWriter`).
//!
//! A snapshot is renamed into place when it is complete, so one that is cut short or damaged is an error. A segment
//! may end in a torn batch, which is reported; a batch that is damaged before the end is an error.

use thiserror::Error;

use super::{
    MetadataImage,
    control::{KraftVersionRecord, SnapshotFooter, SnapshotHeader, VotersRecord},
    image::ImageError,
    records::{MetadataRecord, RecordError},
};
use crate::{
    batch::{Batch, BatchBuilder, BatchError, Batches, ControlType, Record},
    wire::{Message, WireError},
};

/// Most bytes of a batch that Kafka reads from the metadata log (`KafkaRaftClient.MAX_BATCH_SIZE_BYTES`).
const BATCH_LEN_MAX: usize = 8 << 20;

/// More than what a record of a batch needs beside its value.
const RECORD_OVERHEAD_MAX: usize = 32;

/// What is wrong with a snapshot or a segment of the metadata log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LogError {
    /// A batch is damaged.
    #[error("bad batch at byte {position}")]
    Batch {
        /// Where it begins.
        position: usize,
        /// What is wrong with it.
        source: BatchError,
    },
    /// A data record cannot be read.
    #[error("bad metadata record at offset {offset}")]
    Record {
        /// The record's offset.
        offset: i64,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A control record cannot be read.
    #[error("bad control record at offset {offset}")]
    Control {
        /// The record's offset.
        offset: i64,
        /// What is wrong with it.
        source: WireError,
    },
    /// A record does not fit what came before it.
    #[error("metadata record at offset {offset}")]
    Image {
        /// The record's offset.
        offset: i64,
        /// Why it does not fit.
        source: ImageError,
    },
    /// Batches are missing.
    #[error("offset {expected} is missing: the next batch begins at {found}")]
    Gap {
        /// The offset that should come next.
        expected: i64,
        /// The one that does.
        found: i64,
    },
    /// The bytes are no whole snapshot.
    #[error("no whole metadata snapshot: {0}")]
    Layout(&'static str),
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The state of the cluster.
    pub image: MetadataImage,
    /// The epoch of the last record that it covers, which also stands in its file's name.
    pub epoch: i32,
    /// Append time of that record, in milliseconds.
    pub last_contained_log_timestamp: i64,
}

/// Where a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// The offset after the last whole batch.
    pub end_offset: i64,
    /// The epoch of that batch; `None` if nothing was there to replay.
    pub last_epoch: Option<i32>,
    /// When it was appended, in milliseconds.
    pub last_timestamp: Option<i64>,
    /// The torn batch at the end, if there is one.
    pub torn: Option<TornTail>,
}

/// A batch at the end of a segment that was not (or not wholly) written, and counts for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Where it begins.
    pub position: usize,
    /// What is wrong with it.
    pub reason: BatchError,
}

/// Reads a whole snapshot, `<end offset>-<epoch>.checkpoint`. A transaction that it leaves open does not count.
pub fn replay_checkpoint(bytes: &[u8]) -> Result<Checkpoint, LogError> {
    let mut image = MetadataImage::default();
    let mut header: Option<(i32, SnapshotHeader)> = None;
    let mut whole = false;
    let mut next_offset = 0;
    for item in positioned(bytes) {
        let (position, batch) = item?;
        batch.check_crc().map_err(|source| LogError::Batch { position, source })?;
        check_next(next_offset, &batch)?;
        if whole {
            return Err(LogError::Layout("batches follow its footer"));
        }
        for record in records(position, &batch)? {
            let record = record?;
            match control_type(position, &batch, &record)? {
                Some(ControlType::SnapshotHeader) if header.is_none() => {
                    header = Some((batch.leader_epoch(), control(&record)?));
                }
                _ if header.is_none() => {
                    return Err(LogError::Layout("it does not begin with a header"));
                }
                Some(ControlType::SnapshotFooter) => whole = true,
                Some(control) => apply_control(&mut image, control, &record)?,
                None => apply_data(&mut image, record)?,
            }
        }
        next_offset = batch.next_offset();
    }
    match header {
        None => Err(LogError::Layout("it is empty")),
        Some(_) if !whole => Err(LogError::Layout("its footer is missing")),
        Some((epoch, header)) => {
            Ok(Checkpoint { image, epoch, last_contained_log_timestamp: header.last_contained_log_timestamp })
        }
    }
}

/// Applies the records of one segment that lie at or above `from_offset`, the offset after what the image holds.
///
/// Call it for the segments of a log in order, each time with the end of the one before: a torn segment that others
/// follow then shows as a gap.
pub fn replay_log(image: &mut MetadataImage, segment: &[u8], from_offset: i64) -> Result<LogEnd, LogError> {
    let mut end = LogEnd { end_offset: from_offset, last_epoch: None, last_timestamp: None, torn: None };
    for item in positioned(segment) {
        let checked = item.and_then(|(position, batch)| match batch.check_crc() {
            Ok(()) => Ok((position, batch)),
            Err(source) => Err(LogError::Batch { position, source }),
        });
        let (position, batch) = match checked {
            Ok(item) => item,
            Err(LogError::Batch { position, source }) if is_torn(&segment[position..], &source) => {
                end.torn = Some(TornTail { position, reason: source });
                break;
            }
            Err(error) => return Err(error),
        };
        // A snapshot may end inside a batch; from then on each batch begins where the one before ended.
        let first = end.last_epoch.is_none();
        if first && batch.next_offset() <= from_offset {
            continue;
        }
        if !first || batch.base_offset() > from_offset {
            check_next(end.end_offset, &batch)?;
        }
        for record in records(position, &batch)? {
            let record = record?;
            if record.offset < from_offset {
                continue;
            }
            match control_type(position, &batch, &record)? {
                Some(control) => apply_control(image, control, &record)?,
                None => apply_data(image, record)?,
            }
        }
        end.end_offset = batch.next_offset();
        end.last_epoch = Some(batch.leader_epoch());
        end.last_timestamp = Some(batch.max_timestamp());
    }
    Ok(end)
}

/// The bytes of a snapshot of `image`, for a file `<end offset>-<epoch>.checkpoint` with any end offset above 0.
///
/// `epoch` is that of the name; `timestamp` (milliseconds) becomes the time of every batch and of the last record
/// that the snapshot covers.
pub fn write_checkpoint(image: &MetadataImage, epoch: i32, timestamp: i64) -> Vec<u8> {
    let header = SnapshotHeader { last_contained_log_timestamp: timestamp, ..Default::default() };
    let footer = (ControlType::SnapshotFooter, SnapshotFooter::default().encode_prefixed());
    let mut out = Vec::new();
    let next_offset = put_control_batch(&mut out, &header_records(image, &header), 0, epoch, timestamp);
    let next_offset = put_data_batches(&mut out, &image.to_records(), next_offset, epoch, timestamp);
    put_control_batch(&mut out, &[footer], next_offset, epoch, timestamp);
    out
}

/// Batches with their positions, errors with the position where they are.
fn positioned(bytes: &[u8]) -> impl Iterator<Item = Result<(usize, Batch<'_>), LogError>> {
    let mut batches = Batches::new(bytes);
    std::iter::from_fn(move || {
        let position = batches.position();
        let item = batches.next()?;
        Some(item.map_err(|source| LogError::Batch { position, source }))
    })
}

/// Whether an error in the batch that starts `rest` may come from a write that was caught half way: it reaches the
/// end of the file, or nothing but zeros do.
fn is_torn(rest: &[u8], error: &BatchError) -> bool {
    match error {
        BatchError::Truncated { .. } => true,
        BatchError::AllZero => rest.iter().all(|byte| *byte == 0),
        BatchError::BadCrc { .. } => Batch::parse(rest).is_ok_and(|batch| batch.size() == rest.len()),
        _ => false,
    }
}

fn check_next(expected: i64, batch: &Batch<'_>) -> Result<(), LogError> {
    match batch.base_offset() {
        found if found == expected => Ok(()),
        found => Err(LogError::Gap { expected, found }),
    }
}

fn records<'a>(
    position: usize,
    batch: &Batch<'a>,
) -> Result<impl Iterator<Item = Result<Record, LogError>> + use<'a>, LogError> {
    let at = move |source| LogError::Batch { position, source };
    Ok(batch.records().map_err(at)?.map(move |record| record.map_err(at)))
}

fn control_type(position: usize, batch: &Batch<'_>, record: &Record) -> Result<Option<ControlType>, LogError> {
    if !batch.is_control() {
        return Ok(None);
    }
    let key = record.key.as_deref().unwrap_or_default();
    ControlType::parse(key).map(Some).map_err(|source| LogError::Batch { position, source })
}

fn control<T: Message>(record: &Record) -> Result<T, LogError> {
    let offset = record.offset;
    T::decode_prefixed(record.value.as_deref().unwrap_or_default())
        .map_err(|source| LogError::Control { offset, source })
}

/// Kafka, too, passes over types that it does not know.
fn apply_control(image: &mut MetadataImage, control_type: ControlType, record: &Record) -> Result<(), LogError> {
    match control_type {
        ControlType::KraftVersion => image.kraft_version = control::<KraftVersionRecord>(record)?.kraft_version,
        ControlType::KraftVoters => image.voters = Some(control::<VotersRecord>(record)?.voters),
        _ => {}
    }
    Ok(())
}

fn apply_data(image: &mut MetadataImage, record: Record) -> Result<(), LogError> {
    let offset = record.offset;
    let decoded = MetadataRecord::decode(record.value.as_deref().unwrap_or_default());
    let decoded = decoded.map_err(|source| LogError::Record { offset, source })?;
    image.apply(decoded).map_err(|source| LogError::Image { offset, source })
}

/// The control records at the start of a snapshot of `image`.
fn header_records(image: &MetadataImage, header: &SnapshotHeader) -> Vec<(ControlType, Vec<u8>)> {
    let mut records = vec![(ControlType::SnapshotHeader, header.encode_prefixed())];
    if image.kraft_version >= 1 {
        let version = KraftVersionRecord { kraft_version: image.kraft_version, ..Default::default() };
        records.push((ControlType::KraftVersion, version.encode_prefixed()));
        if let Some(voters) = image.voters.clone() {
            let voters = VotersRecord { voters, ..Default::default() };
            records.push((ControlType::KraftVoters, voters.encode_prefixed()));
        }
    }
    records
}

/// The control batch of `records`; returns the offset after it.
fn put_control_batch(
    out: &mut Vec<u8>,
    records: &[(ControlType, Vec<u8>)],
    base_offset: i64,
    epoch: i32,
    timestamp: i64,
) -> i64 {
    let mut batch = BatchBuilder::new(base_offset, epoch).control();
    for (control_type, value) in records {
        let [hi, lo] = control_type.id().to_be_bytes();
        batch.push(timestamp, Some(&[0, 0, hi, lo]), Some(value), &[]);
    }
    out.extend(batch.build());
    base_offset + records.len() as i64
}

/// The data batches of `records`; returns the offset after them.
fn put_data_batches(
    out: &mut Vec<u8>,
    records: &[MetadataRecord],
    base_offset: i64,
    epoch: i32,
    timestamp: i64,
) -> i64 {
    let mut next_offset = base_offset;
    let mut batch = BatchBuilder::new(next_offset, epoch);
    for record in records {
        let value = record.encode();
        if batch.record_count() > 0 && batch.size() + value.len() + RECORD_OVERHEAD_MAX > BATCH_LEN_MAX {
            let full = std::mem::replace(&mut batch, BatchBuilder::new(next_offset, epoch));
            out.extend(full.build());
        }
        batch.push(timestamp, None, Some(&value), &[]);
        next_offset += 1;
    }
    if batch.record_count() > 0 {
        out.extend(batch.build());
    }
    next_offset
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests read real files")]
mod tests {
    use std::{fs, path::PathBuf};

    use proptest::prelude::*;

    use super::*;
    use crate::metadata::records::*;

    const VERSIONS: [&str; 3] = ["3.9.1", "4.1.1", "4.3.0"];

    /// The snapshots of a real broker, with their end offsets, in order.
    fn real_checkpoints(kafka: &str) -> Vec<(i64, Vec<u8>)> {
        let mut files: Vec<PathBuf> = fs::read_dir(data(kafka))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "checkpoint"))
            .collect();
        files.sort();
        let end_offset = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap()[..20].parse().unwrap();
        files.iter().map(|path| (end_offset(path), fs::read(path).unwrap())).collect()
    }

    fn real_log(kafka: &str) -> Vec<u8> {
        fs::read(data(kafka).join("00000000000000000000.log")).unwrap()
    }

    fn data(kafka: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(kafka).join("metadata")
    }

    /// The same image with each node's features in one order: Kafka keeps them in a hash map.
    fn ordered(mut image: MetadataImage) -> MetadataImage {
        let brokers = image.brokers.values_mut().map(|broker| &mut broker.features);
        let controllers = image.controllers.values_mut().map(|controller| &mut controller.features);
        for features in brokers.chain(controllers) {
            features.sort_by(|a, b| a.name.cmp(&b.name));
        }
        image
    }

    fn newest(kafka: &str) -> Vec<u8> {
        real_checkpoints(kafka).pop().unwrap().1
    }

    /// Decodes and encodes everything in `bytes`, batch by batch.
    fn rewritten(bytes: &[u8]) -> Vec<u8> {
        let (mut out, mut next_offset) = (Vec::new(), 0);
        for (position, batch) in positioned(bytes).map(Result::unwrap) {
            let (epoch, timestamp) = (batch.leader_epoch(), batch.max_timestamp());
            let records: Vec<Record> = records(position, &batch).unwrap().map(Result::unwrap).collect();
            next_offset = if batch.is_control() {
                let controls: Vec<_> = records
                    .iter()
                    .map(|record| control_type(position, &batch, record).unwrap().unwrap())
                    .zip(&records)
                    .map(|(control_type, record)| (control_type, rewritten_control(control_type, record)))
                    .collect();
                put_control_batch(&mut out, &controls, next_offset, epoch, timestamp)
            } else {
                let decoded = records.iter().map(|r| MetadataRecord::decode(r.value.as_ref().unwrap()).unwrap());
                put_data_batches(&mut out, &decoded.collect::<Vec<_>>(), next_offset, epoch, timestamp)
            };
        }
        out
    }

    fn rewritten_control(control_type: ControlType, record: &Record) -> Vec<u8> {
        match control_type {
            ControlType::SnapshotHeader => control::<SnapshotHeader>(record).unwrap().encode_prefixed(),
            ControlType::SnapshotFooter => control::<SnapshotFooter>(record).unwrap().encode_prefixed(),
            ControlType::KraftVersion => control::<KraftVersionRecord>(record).unwrap().encode_prefixed(),
            ControlType::KraftVoters => control::<VotersRecord>(record).unwrap().encode_prefixed(),
            other => panic!("{other:?} in a snapshot"),
        }
    }

    #[test]
    fn real_checkpoints_are_written_back_byte_for_byte() {
        for kafka in VERSIONS {
            for (end_offset, bytes) in real_checkpoints(kafka) {
                assert_eq!(rewritten(&bytes), bytes, "{kafka} {end_offset}");
            }
        }
    }

    #[test]
    fn a_log_replayed_up_to_a_checkpoint_gives_the_same_image() {
        for kafka in VERSIONS {
            let log = real_log(kafka);
            for (end_offset, bytes) in real_checkpoints(kafka).into_iter().filter(|(end, _)| *end > 0) {
                let mut batches = positioned(&log).map(Result::unwrap);
                let cut = batches
                    .find(|(_, batch)| batch.base_offset() >= end_offset)
                    .map_or(log.len(), |(position, _)| position);
                let mut image = MetadataImage::default();
                let end = replay_log(&mut image, &log[..cut], 0).unwrap();
                let checkpoint = replay_checkpoint(&bytes).unwrap();
                assert_eq!(end.end_offset, end_offset);
                assert_eq!(end.last_epoch, Some(checkpoint.epoch));
                assert_eq!(end.last_timestamp, Some(checkpoint.last_contained_log_timestamp));
                let (image, expected) = (ordered(image), ordered(checkpoint.image));
                assert_eq!(image.to_records(), expected.to_records(), "{kafka} {end_offset}");
                assert!(image == expected);
            }
        }
    }

    #[test]
    fn the_log_goes_on_where_a_checkpoint_ends() {
        for kafka in VERSIONS {
            let log = real_log(kafka);
            let mut whole = MetadataImage::default();
            let end = replay_log(&mut whole, &log, 0).unwrap();
            for (end_offset, bytes) in real_checkpoints(kafka).into_iter().filter(|(end, _)| *end > 0) {
                let mut image = replay_checkpoint(&bytes).unwrap().image;
                let resumed = replay_log(&mut image, &log, end_offset).unwrap();
                assert_eq!(resumed.end_offset, end.end_offset);
                assert!(ordered(image) == ordered(whole.clone()), "{kafka} {end_offset}");
            }
        }
    }

    #[test]
    fn an_image_survives_being_written() {
        for kafka in VERSIONS {
            let checkpoint = replay_checkpoint(&newest(kafka)).unwrap();
            let bytes = write_checkpoint(&checkpoint.image, 77, 1_700_000_000_000);
            let again = replay_checkpoint(&bytes).unwrap();
            assert!(again.image == checkpoint.image);
            assert_eq!((again.epoch, again.last_contained_log_timestamp), (77, 1_700_000_000_000));
            // Kafka's own records, but for their order and that of a quota's entity.
            let sorted = |bytes: &[u8]| {
                let mut values = Vec::new();
                for (position, batch) in positioned(bytes).map(Result::unwrap).filter(|(_, b)| !b.is_control()) {
                    values.extend(records(position, &batch).unwrap().map(|record| record.unwrap().value.unwrap()));
                }
                values.retain(|value| !matches!(MetadataRecord::decode(value), Ok(MetadataRecord::ClientQuota(_))));
                values.sort();
                values
            };
            assert_eq!(sorted(&bytes), sorted(&newest(kafka)), "{kafka}");
        }
    }

    #[test]
    fn real_checkpoints_hold_what_was_configured() {
        for kafka in VERSIONS {
            let image = replay_checkpoint(&newest(kafka)).unwrap().image;
            assert_eq!(image.topic_named("wide").unwrap().partitions.len(), 14);
            assert!(image.topic_named("gone").is_none());
            assert_eq!(image.configs[&(2, "orders".into())]["max.message.bytes"], "2000000");
            assert!(!image.configs.contains_key(&(2, "gone".into())));
            assert_eq!(image.acls.len(), 2);
            assert_eq!(image.scram.keys().collect::<Vec<_>>(), [&(1, "alice".to_owned())]);
            assert_eq!(image.quotas.len(), 2);
            assert!(image.next_producer_id.unwrap() >= 1000);
            assert!(image.unknown.is_empty() && image.lost_tags.is_empty());
            assert_eq!(image.voters.is_some(), kafka != "3.9.1");
            assert!(!format!("{image:?} {:?}", image.to_records()).contains("secret"));
        }
    }

    #[test]
    fn big_images_are_split_into_batches_that_kafka_reads() {
        let mut image = MetadataImage::default();
        for id in 0..40 {
            let (name, value) = (format!("config-{id}"), "v".repeat(500_000));
            image.configs.entry((2, "t".into())).or_default().insert(name, value);
        }
        let bytes = write_checkpoint(&image, 1, 0);
        assert!(positioned(&bytes).count() > 4);
        assert!(positioned(&bytes).all(|item| item.unwrap().1.size() <= BATCH_LEN_MAX));
        assert!(replay_checkpoint(&bytes).unwrap().image == image);
    }

    #[test]
    fn an_open_transaction_leaves_no_trace() {
        let topic = |id| TopicRecord { name: format!("t{id}"), topic_id: crate::Uuid([id; 16]), ..Default::default() };
        let mut log = Vec::new();
        let begin = || MetadataRecord::from(BeginTransactionRecord::default());
        let next = put_data_batches(&mut log, &[topic(1).into(), begin(), topic(2).into()], 0, 1, 0);
        let end = [EndTransactionRecord::default().into(), begin(), topic(3).into()];
        put_data_batches(&mut log, &end, next, 1, 0);
        let mut image = MetadataImage::default();
        replay_log(&mut image, &log, 0).unwrap();
        assert!(image.in_transaction());
        assert_eq!(image.topics.len(), 2);
        assert!(image.topic_named("t3").is_none());
    }

    #[test]
    fn torn_tails_are_reported_and_damage_before_the_end_is_an_error() {
        let log = real_log("4.1.1");
        let mut image = MetadataImage::default();
        let end = replay_log(&mut image, &log, 0).unwrap();
        let last = positioned(&log).map(Result::unwrap).last().unwrap();
        let replay = |bytes: &[u8]| replay_log(&mut MetadataImage::default(), bytes, 0);

        for tail in [&log[..log.len() - 1], &[&log[..last.0], &[0; 100][..]].concat()[..], &flip(&log, log.len() - 1)] {
            let torn = replay(tail).unwrap();
            assert_eq!(torn.end_offset, last.1.base_offset());
            assert_eq!(torn.torn.unwrap().position, last.0);
        }
        let damaged = replay(&flip(&log, last.0 - 1));
        assert!(matches!(damaged, Err(LogError::Batch { source: BatchError::BadCrc { .. }, .. })));
        let gap = replay_log(&mut image, &log[last.0..], end.end_offset - 2);
        assert!(matches!(gap, Err(LogError::Gap { .. })), "{gap:?}");
    }

    #[test]
    fn a_checkpoint_that_is_not_whole_is_refused() {
        let bytes = newest("4.3.0");
        let footer = positioned(&bytes).map(Result::unwrap).last().unwrap().0;
        for (bytes, error) in [
            (&bytes[..footer], LogError::Layout("its footer is missing")),
            (&bytes[..0], LogError::Layout("it is empty")),
            (&real_log("4.3.0"), LogError::Layout("it does not begin with a header")),
        ] {
            assert_eq!(replay_checkpoint(bytes), Err(error));
        }
        assert!(replay_checkpoint(&bytes[..bytes.len() - 1]).is_err());
    }

    fn flip(bytes: &[u8], at: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 0x10;
        bytes
    }

    proptest! {
        /// With the CRCs made right again, so that the damage reaches the records.
        #[test]
        fn damaged_records_never_panic(at: prop::sample::Index, byte: u8) {
            let mut bytes = newest("4.3.0");
            let (start, batch) = positioned(&bytes).map(Result::unwrap).nth(1).unwrap();
            let end = start + batch.size();
            let at = start + crate::batch::HEADER_LEN + at.index(end - start - crate::batch::HEADER_LEN);
            bytes[at] = byte;
            let crc = crate::batch::crc32c(&bytes[start + 21..end]);
            bytes[start + 17..start + 21].copy_from_slice(&crc.to_be_bytes());
            if let Ok(checkpoint) = replay_checkpoint(&bytes) {
                write_checkpoint(&checkpoint.image, 1, 0);
            }
        }

        #[test]
        fn any_bytes_are_a_log_or_an_error(bytes: Vec<u8>) {
            let _ = replay_log(&mut MetadataImage::default(), &bytes, 0);
            prop_assert!(replay_checkpoint(&bytes).is_err());
        }
    }
}
