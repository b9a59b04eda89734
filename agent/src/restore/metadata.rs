//! A point as a plan needs it: its manifest and its cluster metadata, replayed.

use segvault_alignment::restore::saved::LoadedPoint;
use segvault_kafka_log::metadata::MetadataImage;
use segvault_kafka_log::metadata::checkpoint::{replay_checkpoint, replay_log};
use segvault_vault::Vault;
use segvault_vault_format::ids::{BlobId, PointId};
use segvault_vault_format::manifest::{PointManifest, StreamRef};

use super::RestoreError;

const WHAT: &str = "the cluster metadata";

/// Fetches a committed point. Blocking.
pub fn load_point(vault: &Vault, id: &PointId) -> Result<LoadedPoint, RestoreError> {
    let what = || format!("restore point {id}");
    let manifest = vault.wait(vault.point_manifest(id)).map_err(RestoreError::vault(what()))?;
    let outcome = vault.wait(vault.outcome(id)).map_err(RestoreError::vault(what()))?;
    // Checked when the manifest was found by it, a moment ago.
    let root = outcome.and_then(|outcome| BlobId::from_slice(&outcome.root).ok());
    let root = root.ok_or_else(|| RestoreError::Metadata(format!("the outcome of {} is gone", what())))?;
    let image = load_metadata(vault, &manifest)?;
    Ok(LoadedPoint { manifest, image, root })
}

/// Fetches the metadata of `point` and replays it. Blocking.
pub(super) fn load_metadata(vault: &Vault, point: &PointManifest) -> Result<MetadataImage, RestoreError> {
    let entry = point.metadata.as_ref().ok_or_else(|| RestoreError::Metadata("the point has none".into()))?;
    let mut image = MetadataImage::default();
    if let Some(stream) = &entry.checkpoint {
        let mut bytes = Vec::new();
        for_each_chunk(vault, stream, |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        image = replay_checkpoint(&bytes).map_err(|error| failed(&error))?.image;
    }
    let mut end_offset = entry.checkpoint_offset;
    if let Some(stream) = &entry.log {
        for_each_chunk(vault, stream, |chunk| {
            let end = replay_log(&mut image, chunk, end_offset).map_err(|error| failed(&error))?;
            end_offset = end.end_offset;
            Ok(())
        })?;
    }
    if end_offset != entry.end_offset {
        return Err(RestoreError::Metadata(format!("it ends at {end_offset} instead of {}", entry.end_offset)));
    }
    Ok(image)
}

fn for_each_chunk(
    vault: &Vault,
    stream: &StreamRef,
    mut take: impl FnMut(&[u8]) -> Result<(), RestoreError>,
) -> Result<(), RestoreError> {
    let loaded = vault.wait(vault.load_stream(stream)).map_err(RestoreError::vault(WHAT))?;
    let mut reader = vault.read_chunks(loaded.places);
    let mut chunk = Vec::new();
    while reader.next(&mut chunk).map_err(RestoreError::vault(WHAT))? {
        take(&chunk)?;
    }
    Ok(())
}

/// An error with its causes.
fn failed(error: &dyn std::error::Error) -> RestoreError {
    let causes = std::iter::successors(error.source(), |error| error.source());
    RestoreError::Metadata(causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}")))
}
