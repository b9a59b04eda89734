//! The KRaft metadata log: its records, the image they add up to, and its snapshots.
//!
//! The log lives in `__cluster_metadata-0/` as ordinary segments, and as snapshots `<end offset>-<epoch>.checkpoint`
//! that hold everything below an offset. A restore replays the newest snapshot and what follows it into a
//! [`MetadataImage`], edits it, and writes it as one new snapshot.

pub mod checkpoint;
pub mod control;
pub mod image;
pub mod records;

pub use checkpoint::{Checkpoint, LogEnd, LogError, TornTail, replay_checkpoint, replay_log, write_checkpoint};
pub use image::{ImageError, MetadataImage, PartitionImage, TopicImage};
pub use records::{MetadataRecord, RecordError};
