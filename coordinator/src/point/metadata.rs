//! From a copy of the metadata log to an image.

use segvault_kafka_log::metadata::checkpoint::{replay_checkpoint, replay_log};
use segvault_kafka_log::metadata::image::MetadataImage;
use segvault_proto::MetadataCopy;

/// Replays the copy.
pub(super) fn replay(copy: &MetadataCopy) -> Result<MetadataImage, String> {
    let (mut image, from) = match &copy.checkpoint {
        Some(checkpoint) => {
            let replayed = replay_checkpoint(&checkpoint.bytes).map_err(|error| error.to_string())?;
            (replayed.image, checkpoint.end_offset)
        }
        None => (MetadataImage::default(), 0),
    };
    replay_log(&mut image, &copy.log, from).map_err(|error| error.to_string())?;
    if image.features.is_empty() {
        return Err("holds no feature level: the cluster was formatted but never started".to_owned());
    }
    Ok(image)
}
