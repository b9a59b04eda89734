//! Chunks that an unfinished upload has left in the vault: what it has stored need not be stored again.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use segvault_transport::explain;
use segvault_vault::{Vault, VaultError};
use segvault_vault_format::blob::BlobPlace;
use segvault_vault_format::ids::{BlobId, PackId};
use tokio_stream::StreamExt;

/// Where they lie. Takes 72 bytes a chunk.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// By rising id, each once.
    places: Vec<BlobPlace>,
}

impl Leftover {
    /// Those of the journal's `places` whose packs are in the vault now, with all that is said to lie in them. Where the
    /// store gives no answer the rest counts as gone: the upload will tell what is wrong. Ends soon once `cancelled`.
    pub fn look(vault: &Vault, mut places: Vec<BlobPlace>, cancelled: &AtomicBool) -> Self {
        if places.is_empty() {
            return Self::default();
        }
        let mut packs: HashMap<PackId, u64> = HashMap::new();
        for place in &places {
            let end = packs.entry(place.pack).or_default();
            *end = place.end().max(*end);
        }
        let (noted_packs, noted_chunks) = (packs.len(), places.len());
        let looked = vault.wait(keep_existing(vault, &mut packs, cancelled));
        places.retain(|place| packs.contains_key(&place.pack));
        let (lost_packs, lost_chunks) = (noted_packs - packs.len(), noted_chunks - places.len());
        if let Err(error) = looked {
            let error = explain(&error);
            tracing::warn!(
                error,
                lost_chunks,
                "look for what an unfinished upload has stored: the rest is stored again"
            );
        } else if lost_packs > 0 && !cancelled.load(Ordering::Relaxed) {
            tracing::warn!(lost_packs, lost_chunks, "what an unfinished upload has stored is gone: it is stored again");
        }
        places.sort_unstable_by_key(|place| place.id);
        places.dedup_by_key(|place| place.id);
        Self { places }
    }

    /// Where the chunk with these many bytes and this hash lies, if it was left.
    pub fn find(&self, id: &BlobId, raw_len: usize) -> Option<BlobPlace> {
        let at = self.places.binary_search_by_key(id, |place| place.id).ok()?;
        Some(self.places[at]).filter(|place| place.raw_len as usize == raw_len)
    }
}

/// Keeps those of `packs` that are in the store and have at least so many bytes.
async fn keep_existing(
    vault: &Vault,
    packs: &mut HashMap<PackId, u64>,
    cancelled: &AtomicBool,
) -> Result<(), VaultError> {
    let wanted = std::mem::take(packs);
    let mut looks = pin!(vault.look_for_packs(wanted.keys().copied().collect()));
    while let Some(look) = looks.next().await {
        let (pack, len) = look?;
        if len.is_some_and(|len| len >= wanted[&pack]) {
            packs.insert(pack, wanted[&pack]);
        }
        if cancelled.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}
