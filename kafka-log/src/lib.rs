//! Kafka's bytes on disk: pure, slices in, values out.
//!
//! Nothing here opens a file, waits, looks at a clock or rolls dice. Every length and count that comes from
//! bytes is held against what is there, or against a named limit, before anything is allocated for it.
//! Where Kafka keeps bytes (record batches) they are borrowed and never re-encoded; where it keeps values
//! (checkpoints, properties, indexes) they are decoded, and encoded again as Kafka would.

pub mod ids;

pub mod batch;
pub mod index;
pub mod names;
pub mod producer;
pub mod side_files;

pub mod checkpoint;
pub mod clean_shutdown;
pub mod meta_properties;
pub mod partition_metadata;
pub mod properties;
pub mod server_properties;

pub mod wire;

pub mod metadata;

pub mod coordinator;
pub mod groups;
pub mod share;
pub mod transactions;

pub use ids::{TopicPartition, Uuid};
