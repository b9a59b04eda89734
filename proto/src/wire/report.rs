//! Reports, and what they say of metadata, events and the vault.

use prost::Message;

use super::{
    Problem, WireError, all, at_least, each, from_count, from_stream, not_empty, not_negative, optional, required,
    to_count, to_optional_stream, to_stream,
};
use crate::rpc;
use crate::rpc::replica_events::ProbedEnd;
use crate::rpc::report::{self, Body};
use crate::{
    CheckpointCopy, Finding, LogPosition, MetadataCopy, Prepared, ReplicaEvents, Report, RestoreFinding, Restored,
    Restoring, Severity, StoredMetadata, StoredPartition, Unreadable,
};

/// The partition that stands for a metadata checkpoint.
const CHECKPOINT: i64 = -1;

impl From<Report> for rpc::Report {
    fn from(report: Report) -> Self {
        let body = match report {
            Report::Prepared(prepared) => Body::Prepared(prepared.into()),
            Report::Metadata(copy) => Body::Metadata(copy.into()),
            Report::NoMetadata { reason } => Body::NoMetadata(report::NoMetadata { reason }),
            Report::Marked(replicas) => Body::Marked(report::Marked { replicas: all(replicas) }),
            Report::Probed => Body::Probed(report::Probed {}),
            Report::Pinned(replicas) => Body::Pinned(report::Pinned { replicas: all(replicas) }),
            Report::Sealed { replicas, metadata } => {
                Body::Sealed(report::Sealed { replicas: all(replicas), metadata: metadata.map(Into::into) })
            }
            Report::Transactions { copies, unreadable } => {
                Body::Transactions(report::Transactions { copies: all(copies), unreadable: all(unreadable) })
            }
            Report::Events { events, unreadable } => {
                Body::Events(report::Events { events: all(events), unreadable: all(unreadable) })
            }
            Report::Stored(stored) => Body::Stored(stored.into()),
            Report::NotStored { topic, partition, reason, has_gap } => {
                Body::NotStored(report::NotStored { topic, partition, reason, has_gap })
            }
            Report::MetadataStored(stored) => Body::MetadataStored(stored.into()),
            Report::Uploaded => Body::Uploaded(report::Uploaded {}),
            Report::Released => Body::Released(report::Released {}),
            Report::Failed { reason } => Body::Failed(report::Failed { reason }),
            Report::Restoring(restoring) => Body::Restoring(restoring.into()),
            Report::Restored(restored) => Body::Restored(restored.into()),
            Report::Examined(findings) => Body::Examined(report::Examined { findings: all(findings) }),
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<rpc::Report> for Report {
    type Error = WireError;

    fn try_from(report: rpc::Report) -> Result<Self, WireError> {
        let body = report.body.ok_or_else(|| WireError::new("Report", Problem::NoBody))?;
        Ok(match body {
            Body::Prepared(prepared) => Self::Prepared(prepared.try_into()?),
            Body::Metadata(copy) => Self::Metadata(copy.try_into()?),
            Body::NoMetadata(report::NoMetadata { reason }) => Self::NoMetadata { reason },
            Body::Marked(report::Marked { replicas }) => Self::Marked(each(replicas)?),
            Body::Probed(report::Probed {}) => Self::Probed,
            Body::Pinned(report::Pinned { replicas }) => Self::Pinned(each(replicas)?),
            Body::Sealed(report::Sealed { replicas, metadata }) => {
                Self::Sealed { replicas: each(replicas)?, metadata: optional(metadata)? }
            }
            Body::Transactions(report::Transactions { copies, unreadable }) => {
                Self::Transactions { copies: each(copies)?, unreadable: each(unreadable)? }
            }
            Body::Events(report::Events { events, unreadable }) => {
                Self::Events { events: each(events)?, unreadable: each(unreadable)? }
            }
            Body::Stored(stored) => Self::Stored(stored.try_into()?),
            Body::NotStored(report::NotStored { topic, partition, reason, has_gap }) => Self::NotStored {
                topic: not_empty("Report.NotStored.topic", topic)?,
                partition: at_least(CHECKPOINT, "Report.NotStored.partition", partition)?,
                reason,
                has_gap,
            },
            Body::MetadataStored(stored) => Self::MetadataStored(stored.try_into()?),
            Body::Uploaded(report::Uploaded {}) => Self::Uploaded,
            Body::Released(report::Released {}) => Self::Released,
            Body::Failed(report::Failed { reason }) => Self::Failed { reason },
            Body::Restoring(restoring) => Self::Restoring(restoring.into()),
            Body::Restored(restored) => Self::Restored(restored.into()),
            Body::Examined(report::Examined { findings }) => Self::Examined(each(findings)?),
        })
    }
}

impl From<Restoring> for report::Restoring {
    fn from(Restoring { partitions, partitions_total, bytes, bytes_total }: Restoring) -> Self {
        Self { partitions, partitions_total, bytes, bytes_total }
    }
}

impl From<report::Restoring> for Restoring {
    fn from(restoring: report::Restoring) -> Self {
        let report::Restoring { partitions, partitions_total, bytes, bytes_total } = restoring;
        Self { partitions, partitions_total, bytes, bytes_total }
    }
}

impl From<Restored> for report::Restored {
    fn from(restored: Restored) -> Self {
        let Restored { partitions, kept, fetched_bytes, written_bytes, findings, advice } = restored;
        Self { partitions, kept, fetched_bytes, written_bytes, findings: all(findings), advice }
    }
}

impl From<report::Restored> for Restored {
    fn from(restored: report::Restored) -> Self {
        let report::Restored { partitions, kept, fetched_bytes, written_bytes, findings, advice } = restored;
        Self { partitions, kept, fetched_bytes, written_bytes, findings: all(findings), advice }
    }
}

impl From<RestoreFinding> for rpc::RestoreFinding {
    fn from(RestoreFinding { is_warning, what }: RestoreFinding) -> Self {
        Self { warning: is_warning, what }
    }
}

impl From<rpc::RestoreFinding> for RestoreFinding {
    fn from(rpc::RestoreFinding { warning, what }: rpc::RestoreFinding) -> Self {
        Self { is_warning: warning, what }
    }
}

impl From<Finding> for rpc::Finding {
    fn from(Finding { severity, subject, message, remedy }: Finding) -> Self {
        Self { severity: rpc::Severity::from(severity).into(), subject, message, remedy }
    }
}

impl TryFrom<rpc::Finding> for Finding {
    type Error = WireError;

    fn try_from(finding: rpc::Finding) -> Result<Self, WireError> {
        let rpc::Finding { severity, subject, message, remedy } = finding;
        Ok(Self { severity: severity.try_into()?, subject, message, remedy })
    }
}

impl From<Severity> for rpc::Severity {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Info => Self::Info,
            Severity::Warning => Self::Warning,
            Severity::Error => Self::Error,
        }
    }
}

impl TryFrom<i32> for Severity {
    type Error = WireError;

    /// From the value of a field of type `rpc::Severity`.
    fn try_from(value: i32) -> Result<Self, WireError> {
        match rpc::Severity::try_from(value) {
            Ok(rpc::Severity::Info) => Ok(Self::Info),
            Ok(rpc::Severity::Warning) => Ok(Self::Warning),
            Ok(rpc::Severity::Error) => Ok(Self::Error),
            Ok(rpc::Severity::Unspecified) | Err(_) => Err(WireError::new("Severity", Problem::UnknownValue(value))),
        }
    }
}

impl From<Prepared> for rpc::Prepared {
    fn from(prepared: Prepared) -> Self {
        Self {
            facts: Some(prepared.facts.into()),
            metadata: prepared.metadata.map(Into::into),
            replicas: from_count(prepared.replicas),
            warnings: prepared.warnings,
        }
    }
}

impl TryFrom<rpc::Prepared> for Prepared {
    type Error = WireError;

    fn try_from(prepared: rpc::Prepared) -> Result<Self, WireError> {
        Ok(Self {
            facts: required("Prepared.facts", prepared.facts)?,
            metadata: optional(prepared.metadata)?,
            replicas: to_count("Prepared.replicas", prepared.replicas)?,
            warnings: prepared.warnings,
        })
    }
}

impl From<MetadataCopy> for rpc::MetadataCopy {
    fn from(copy: MetadataCopy) -> Self {
        Self {
            checkpoint: copy.checkpoint.map(Into::into),
            log: copy.log,
            end_offset: copy.end_offset,
            epoch: copy.epoch,
            remainder: copy.remainder,
        }
    }
}

impl TryFrom<rpc::MetadataCopy> for MetadataCopy {
    type Error = WireError;

    fn try_from(copy: rpc::MetadataCopy) -> Result<Self, WireError> {
        Ok(Self {
            checkpoint: optional(copy.checkpoint)?,
            log: copy.log,
            end_offset: not_negative("MetadataCopy.end_offset", copy.end_offset)?,
            epoch: copy.epoch,
            remainder: copy.remainder,
        })
    }
}

impl From<CheckpointCopy> for rpc::CheckpointCopy {
    fn from(CheckpointCopy { end_offset, epoch, bytes }: CheckpointCopy) -> Self {
        Self { end_offset, epoch, bytes }
    }
}

impl TryFrom<rpc::CheckpointCopy> for CheckpointCopy {
    type Error = WireError;

    fn try_from(copy: rpc::CheckpointCopy) -> Result<Self, WireError> {
        Ok(Self {
            end_offset: not_negative("CheckpointCopy.end_offset", copy.end_offset)?,
            epoch: copy.epoch,
            bytes: copy.bytes,
        })
    }
}

impl From<Unreadable> for rpc::Unreadable {
    fn from(Unreadable { topic, partition, reason }: Unreadable) -> Self {
        Self { topic, partition, reason }
    }
}

impl TryFrom<rpc::Unreadable> for Unreadable {
    type Error = WireError;

    fn try_from(unreadable: rpc::Unreadable) -> Result<Self, WireError> {
        Ok(Self {
            topic: not_empty("Unreadable.topic", unreadable.topic)?,
            partition: not_negative("Unreadable.partition", unreadable.partition)?,
            reason: unreadable.reason,
        })
    }
}

impl From<ReplicaEvents> for rpc::ReplicaEvents {
    fn from(ReplicaEvents { topic, partition, probes, events }: ReplicaEvents) -> Self {
        let probed = |position: Option<LogPosition>| ProbedEnd { position: position.map(Into::into) };
        Self { topic, partition, probes: probes.into_iter().map(probed).collect(), events: all(events) }
    }
}

impl TryFrom<rpc::ReplicaEvents> for ReplicaEvents {
    type Error = WireError;

    fn try_from(events: rpc::ReplicaEvents) -> Result<Self, WireError> {
        let probes = events.probes.into_iter().map(|probe| optional(probe.position));
        Ok(Self {
            topic: not_empty("ReplicaEvents.topic", events.topic)?,
            partition: not_negative("ReplicaEvents.partition", events.partition)?,
            probes: probes.collect::<Result<_, _>>()?,
            events: each(events.events)?,
        })
    }
}

impl From<StoredPartition> for rpc::StoredPartition {
    fn from(stored: StoredPartition) -> Self {
        Self {
            topic: stored.topic,
            partition: stored.partition,
            stream: stored.stream.encode_to_vec(),
            log_start_offset: stored.log_start_offset,
            end_offset: stored.end_offset,
            bytes: stored.bytes,
            read_bytes: stored.read_bytes,
            stored_bytes: stored.stored_bytes,
            max_epoch: stored.max_epoch,
            max_producer_id: stored.max_producer_id,
            open: all(stored.open),
            notes: stored.notes,
        }
    }
}

impl TryFrom<rpc::StoredPartition> for StoredPartition {
    type Error = WireError;

    fn try_from(stored: rpc::StoredPartition) -> Result<Self, WireError> {
        let (start, end) = (stored.log_start_offset, stored.end_offset);
        if start > end {
            let problem = Problem::BeyondEnd { value: start, end };
            return Err(WireError::new("StoredPartition.log_start_offset", problem));
        }
        Ok(Self {
            topic: not_empty("StoredPartition.topic", stored.topic)?,
            partition: not_negative("StoredPartition.partition", stored.partition)?,
            stream: to_stream("StoredPartition.stream", &stored.stream)?,
            log_start_offset: not_negative("StoredPartition.log_start_offset", start)?,
            end_offset: end,
            bytes: stored.bytes,
            read_bytes: stored.read_bytes,
            stored_bytes: stored.stored_bytes,
            max_epoch: stored.max_epoch,
            max_producer_id: stored.max_producer_id,
            open: each(stored.open)?,
            notes: stored.notes,
        })
    }
}

impl From<StoredMetadata> for rpc::StoredMetadata {
    fn from(StoredMetadata { checkpoint, log, read_bytes, stored_bytes }: StoredMetadata) -> Self {
        Self { checkpoint: from_stream(checkpoint), log: from_stream(log), read_bytes, stored_bytes }
    }
}

impl TryFrom<rpc::StoredMetadata> for StoredMetadata {
    type Error = WireError;

    fn try_from(stored: rpc::StoredMetadata) -> Result<Self, WireError> {
        Ok(Self {
            checkpoint: to_optional_stream("StoredMetadata.checkpoint", stored.checkpoint)?,
            log: to_optional_stream("StoredMetadata.log", stored.log)?,
            read_bytes: stored.read_bytes,
            stored_bytes: stored.stored_bytes,
        })
    }
}
