//! A model of the object store: create-if-absent, and what has been uploaded. It judges every outcome that is written.
//!
//! A committed point must consist of what was captured for it, in the order of the barrier, durable before; and no
//! point is committed once a later one has begun.

use std::collections::BTreeMap;

use segvault_alignment::line::Partition;
use segvault_vault_format::ids::{BlobId, PackId};
use segvault_vault_format::manifest::{BlobRef, Intent, Outcome, PartitionEntry, PointManifest, StreamRef};
use segvault_vault_format::pack::PACK_HEADER_LEN;

use super::agent::Pin;
use super::cluster::{Cluster, Stage};
use super::queue::MILLISECOND;

/// The name of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Of a point.
    Intent(u64),
    /// Of a point.
    Outcome(u64),
    /// Of a point, with the root that the outcome names.
    Manifest(u64, BlobId),
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Who takes a point.
    Intent(Box<Intent>),
    /// What has become of it.
    Outcome(Box<Outcome>),
    /// What it consists of.
    Manifest(Box<PointManifest>),
}

/// A request.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Is it there?
    Exists(Name),
    /// What is there?
    Load(Name),
    /// Create it, unless something is there.
    Create(Name, Object),
}

/// The answer to a request; an error is one without a reason that counts.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To [`Ask::Exists`]; to [`Ask::Create`] whether it was created.
    Is(bool),
    /// To [`Ask::Load`].
    Object(Option<Object>),
    /// The request has failed, or its answer was lost.
    Failed,
}

/// Something uploaded.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Of which partition; none for the metadata.
    pub partition: Option<Partition>,
    /// By whom.
    pub node_id: i32,
    /// From what.
    pub pin: Pin,
    /// Up to where.
    pub end_offset: i64,
    /// Nothing can undo it any more.
    pub is_durable: bool,
}

/// The store.
#[derive(Default)]
pub struct Store {
    objects: BTreeMap<Name, Object>,
    blobs: Vec<Blob>,
    /// The greatest number of a point that has sent a command.
    begun: u64,
    /// The number of the last committed point.
    committed: u64,
    /// What must not be.
    complaints: Vec<String>,
}

impl Store {
    /// Carries out a request. `replaces`: a second outcome replaces the first one.
    pub fn ask(&mut self, ask: Ask, cluster: &Cluster, replaces: bool) -> Answer {
        match ask {
            Ask::Exists(name) => Answer::Is(self.objects.contains_key(&name)),
            Ask::Load(name) => Answer::Object(self.objects.get(&name).cloned()),
            Ask::Create(name, object) => {
                let replaces = replaces && matches!(name, Name::Outcome(_));
                if self.objects.contains_key(&name) && !replaces {
                    return Answer::Is(false);
                }
                if let Object::Outcome(outcome) = &object {
                    self.judge(outcome, cluster);
                }
                self.objects.insert(name, object);
                Answer::Is(true)
            }
        }
    }

    /// Notes something uploaded; returns its number.
    pub fn add_blob(&mut self, blob: Blob) -> usize {
        self.blobs.push(blob);
        self.blobs.len() - 1
    }

    /// Nothing can undo a blob any more.
    pub fn make_durable(&mut self, blob: usize) {
        self.blobs[blob].is_durable = true;
    }

    /// A point has sent its first command, so all before it must be decided.
    pub fn begin(&mut self, number: u64) {
        self.begun = self.begun.max(number);
    }

    /// An agent was told that a point is committed.
    pub fn expect_committed(&mut self, number: u64) {
        if !self.is_committed(number) {
            self.complain(format!("an agent was told that point {number} is committed"));
        }
    }

    /// Whether a point is committed.
    pub fn is_committed(&self, number: u64) -> bool {
        matches!(self.objects.get(&Name::Outcome(number)), Some(Object::Outcome(outcome)) if outcome.committed)
    }

    /// What must not be, since the last time.
    pub fn complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }

    fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
    }

    /// A reference to a blob, as a manifest has it.
    pub fn reference(blob: usize) -> StreamRef {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(blob as u64).to_be_bytes());
        let reference = BlobRef {
            id: id.to_vec(),
            pack: PackId([1; 16]).0.to_vec(),
            offset: PACK_HEADER_LEN as u64,
            stored_len: 10,
            raw_len: 10,
            codec: 0,
        };
        StreamRef { manifest: Some(reference.clone()), index: Some(reference) }
    }

    fn blob(&self, reference: &StreamRef) -> Option<&Blob> {
        let id = &reference.manifest.as_ref()?.id;
        let number = u64::from_be_bytes(id.get(..8)?.try_into().ok()?);
        self.blobs.get(usize::try_from(number).ok()?)
    }

    /// An outcome is about to be written where none is.
    fn judge(&mut self, outcome: &Outcome, cluster: &Cluster) {
        let number = outcome.number;
        if let Some(Object::Outcome(first)) = self.objects.get(&Name::Outcome(number))
            && **first != *outcome
        {
            self.complain(format!("point {number} has two outcomes"));
        }
        if !outcome.committed {
            return;
        }
        if number < self.begun || number < self.committed {
            let last = self.begun.max(self.committed);
            self.complain(format!("point {number} is committed although point {last} has superseded it"));
        }
        self.committed = self.committed.max(number);
        let root = BlobId::from_slice(&outcome.root).expect("a committed outcome has a root");
        match self.objects.get(&Name::Manifest(number, root)) {
            Some(Object::Manifest(manifest)) => {
                let manifest = manifest.clone();
                self.judge_manifest(&manifest, cluster);
            }
            _ => self.complain(format!("point {number} is committed without its manifest")),
        }
    }

    fn judge_manifest(&mut self, manifest: &PointManifest, cluster: &Cluster) {
        let number = manifest.number;
        if let Err(error) = manifest.check() {
            self.complain(format!("point {number} is committed with a manifest that makes no sense: {error}"));
        }
        for finding in manifest.findings.iter().filter(|finding| finding.contains("answered")) {
            self.complain(format!("point {number} did not understand an agent: {finding}"));
        }
        let mut blobs = Vec::new();
        let entries: BTreeMap<Partition, &PartitionEntry> =
            manifest.partitions.iter().map(|entry| ((entry.topic.clone(), entry.partition), entry)).collect();
        for partition in cluster.partitions() {
            let judged = match entries.get(partition) {
                Some(entry) => self.judge_entry(entry, manifest, cluster),
                None => Err("it is not mentioned".to_owned()),
            };
            match judged {
                Ok(blob) => blobs.extend(blob.map(|blob| (Some(Stage::of(&partition.0)), blob))),
                Err(why) => self.complain(format!("point {number}: partition {}-{}: {why}", partition.0, partition.1)),
            }
        }
        match self.judge_metadata(manifest) {
            Ok(blob) => blobs.push((None, blob)),
            Err(why) => self.complain(format!("point {number}: metadata: {why}")),
        }
        self.judge_order(number, blobs);
    }

    /// What a partition of a committed point was stored from, if it is covered.
    fn judge_entry(
        &self,
        entry: &PartitionEntry,
        manifest: &PointManifest,
        cluster: &Cluster,
    ) -> Result<Option<Blob>, String> {
        let partition = (entry.topic.clone(), entry.partition);
        let Some(reference) = &entry.stream else {
            return if entry.uncovered.is_empty() {
                Err("it is not covered, and not said to be".into())
            } else {
                Ok(None)
            };
        };
        let blob = self.blob(reference).ok_or("what it refers to was never uploaded")?;
        let Blob { node_id, end_offset, pin, .. } = blob;
        if !blob.is_durable {
            return Err("what it refers to is not durable".into());
        }
        if blob.partition.as_ref() != Some(&partition)
            || *node_id != entry.source_node
            || *end_offset != entry.end_offset
        {
            return Err(format!("it is of {:?} of node {node_id} up to {end_offset}", blob.partition));
        }
        if pin.point != manifest.number {
            return Err(format!("it was pinned for point {}", pin.point));
        }
        let began = u64::try_from(manifest.began_ms).expect("time begins at 0") * MILLISECOND;
        let acknowledged = cluster.acknowledged(&partition, began);
        if !manifest.closed_only && entry.end_offset < acknowledged {
            return Err(format!("it ends at {end_offset}, but {acknowledged} were acknowledged when the point began"));
        }
        Ok(Some(blob.clone()))
    }

    fn judge_metadata(&self, manifest: &PointManifest) -> Result<Blob, String> {
        let reference = manifest.metadata.as_ref().and_then(|metadata| metadata.checkpoint.as_ref());
        let blob = reference.and_then(|reference| self.blob(reference)).ok_or("it is missing")?;
        if !blob.is_durable || blob.partition.is_some() {
            return Err("what it refers to is not durable, or something else".into());
        }
        if blob.pin.point != manifest.number {
            return Err(format!("it was stored for point {}", blob.pin.point));
        }
        Ok(blob.clone())
    }

    /// Effects first, causes last: all of a stage was pinned before anything of the next one, and the metadata was read
    /// after all of it.
    fn judge_order(&mut self, number: u64, mut blobs: Vec<(Option<Stage>, Blob)>) {
        blobs.sort_by_key(|(_, blob)| blob.pin.moment);
        let stages: Vec<_> = blobs.iter().map(|(stage, _)| stage.map_or(u8::MAX, |stage| stage as u8)).collect();
        // Transactions and reference topics are one phase: only the order within a node is kept.
        let phases = stages.iter().map(|stage| if *stage == Stage::Reference as u8 { stage - 1 } else { *stage });
        if !phases.is_sorted() {
            let order: Vec<_> = blobs.iter().map(|(stage, blob)| (stage, blob.node_id, blob.pin.moment)).collect();
            self.complain(format!("point {number} was pinned in another order than the barrier's: {order:?}"));
        }
    }
}
