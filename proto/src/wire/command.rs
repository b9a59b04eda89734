//! Commands and what they carry.

use segvault_vault_format::ids::{PlanId, PointId};
use segvault_vault_format::keys::check_cluster_id;

use super::{
    Problem, WireError, all, each, from_stream, not_empty, not_negative, optional, required, to_optional_stream, uuid,
};
use crate::rpc;
use crate::rpc::command::{self, Body};
use crate::{Command, EventsRequest, Gaps, MetadataOrder, RestoreDeed, TransactionsRequest, UploadOrder};

impl From<Command> for rpc::Command {
    fn from(command: Command) -> Self {
        let body = match command {
            Command::Prepare { point, base_number, closed_only } => {
                Body::Prepare(command::Prepare { point: Some(point.into()), base_number, closed_only })
            }
            Command::ReadMetadata => Body::ReadMetadata(command::ReadMetadata {}),
            Command::Mark => Body::Mark(command::Mark {}),
            Command::Probe => Body::Probe(command::Probe {}),
            Command::PinProgress => Body::PinProgress(command::PinProgress {}),
            Command::PinData => Body::PinData(command::PinData {}),
            Command::Seal => Body::Seal(command::Seal {}),
            Command::ReadTransactions(requests) => {
                Body::ReadTransactions(command::ReadTransactions { requests: all(requests) })
            }
            Command::FindEvents(requests) => Body::FindEvents(command::FindEvents { requests: all(requests) }),
            Command::Upload { orders, metadata } => {
                Body::Upload(command::Upload { orders: all(orders), metadata: metadata.map(Into::into) })
            }
            Command::Release { committed } => Body::Release(command::Release { committed }),
            Command::Restore { plan: PlanId { cluster_id, number }, deed } => {
                Body::Restore(command::Restore { cluster_id, plan: number, deed: rpc::RestoreDeed::from(deed).into() })
            }
            Command::Examine => Body::Examine(command::Examine {}),
        };
        Self { body: Some(body) }
    }
}

impl TryFrom<rpc::Command> for Command {
    type Error = WireError;

    fn try_from(command: rpc::Command) -> Result<Self, WireError> {
        let body = command.body.ok_or_else(|| WireError::new("Command", Problem::NoBody))?;
        Ok(match body {
            Body::Prepare(command::Prepare { point, base_number, closed_only }) => {
                Self::Prepare { point: required("Command.Prepare.point", point)?, base_number, closed_only }
            }
            Body::ReadMetadata(command::ReadMetadata {}) => Self::ReadMetadata,
            Body::Mark(command::Mark {}) => Self::Mark,
            Body::Probe(command::Probe {}) => Self::Probe,
            Body::PinProgress(command::PinProgress {}) => Self::PinProgress,
            Body::PinData(command::PinData {}) => Self::PinData,
            Body::Seal(command::Seal {}) => Self::Seal,
            Body::ReadTransactions(command::ReadTransactions { requests }) => Self::ReadTransactions(each(requests)?),
            Body::FindEvents(command::FindEvents { requests }) => Self::FindEvents(each(requests)?),
            Body::Upload(command::Upload { orders, metadata }) => {
                Self::Upload { orders: each(orders)?, metadata: optional(metadata)? }
            }
            Body::Release(command::Release { committed }) => Self::Release { committed },
            Body::Restore(command::Restore { cluster_id, plan, deed }) => {
                check_cluster_id(&cluster_id).map_err(|error| WireError::new("Command.Restore.cluster_id", error))?;
                let number = not_zero("Command.Restore.plan", plan)?;
                Self::Restore { plan: PlanId { cluster_id, number }, deed: deed.try_into()? }
            }
            Body::Examine(command::Examine {}) => Self::Examine,
        })
    }
}

impl From<PointId> for rpc::PointId {
    fn from(PointId { cluster_id, number }: PointId) -> Self {
        Self { cluster_id, number }
    }
}

impl TryFrom<rpc::PointId> for PointId {
    type Error = WireError;

    fn try_from(rpc::PointId { cluster_id, number }: rpc::PointId) -> Result<Self, WireError> {
        check_cluster_id(&cluster_id).map_err(|error| WireError::new("PointId.cluster_id", error))?;
        Ok(Self { cluster_id, number: not_zero("PointId.number", number)? })
    }
}

fn not_zero(field: &'static str, number: u64) -> Result<u64, WireError> {
    match number {
        0 => Err(WireError::new(field, Problem::TooSmall { value: 0, min: 1 })),
        number => Ok(number),
    }
}

impl From<RestoreDeed> for rpc::RestoreDeed {
    fn from(deed: RestoreDeed) -> Self {
        match deed {
            RestoreDeed::Check => Self::Check,
            RestoreDeed::Run => Self::Run,
            RestoreDeed::Verify => Self::Verify,
        }
    }
}

impl TryFrom<i32> for RestoreDeed {
    type Error = WireError;

    /// From the value of a field of type `rpc::RestoreDeed`.
    fn try_from(value: i32) -> Result<Self, WireError> {
        match rpc::RestoreDeed::try_from(value) {
            Ok(rpc::RestoreDeed::Check) => Ok(Self::Check),
            Ok(rpc::RestoreDeed::Run) => Ok(Self::Run),
            Ok(rpc::RestoreDeed::Verify) => Ok(Self::Verify),
            Ok(rpc::RestoreDeed::Unspecified) | Err(_) => {
                Err(WireError::new("RestoreDeed", Problem::UnknownValue(value)))
            }
        }
    }
}

impl From<TransactionsRequest> for rpc::TransactionsRequest {
    fn from(TransactionsRequest { partition, first_mark_offset }: TransactionsRequest) -> Self {
        Self { partition, first_mark_offset }
    }
}

impl TryFrom<rpc::TransactionsRequest> for TransactionsRequest {
    type Error = WireError;

    fn try_from(request: rpc::TransactionsRequest) -> Result<Self, WireError> {
        Ok(Self {
            partition: not_negative("TransactionsRequest.partition", request.partition)?,
            first_mark_offset: not_negative("TransactionsRequest.first_mark_offset", request.first_mark_offset)?,
        })
    }
}

impl From<EventsRequest> for rpc::EventsRequest {
    fn from(EventsRequest { topic, partition, producer_ids }: EventsRequest) -> Self {
        Self { topic, partition, producer_ids }
    }
}

impl TryFrom<rpc::EventsRequest> for EventsRequest {
    type Error = WireError;

    fn try_from(request: rpc::EventsRequest) -> Result<Self, WireError> {
        Ok(Self {
            topic: not_empty("EventsRequest.topic", request.topic)?,
            partition: not_negative("EventsRequest.partition", request.partition)?,
            producer_ids: request.producer_ids,
        })
    }
}

impl From<UploadOrder> for rpc::UploadOrder {
    fn from(order: UploadOrder) -> Self {
        Self {
            topic: order.topic,
            topic_id: order.topic_id.0.to_vec(),
            partition: order.partition,
            cut: order.cut,
            gaps: from_gaps(order.gaps).into(),
            previous: from_stream(order.previous),
        }
    }
}

impl TryFrom<rpc::UploadOrder> for UploadOrder {
    type Error = WireError;

    fn try_from(order: rpc::UploadOrder) -> Result<Self, WireError> {
        Ok(Self {
            topic: not_empty("UploadOrder.topic", order.topic)?,
            topic_id: uuid("UploadOrder.topic_id", &order.topic_id)?,
            partition: not_negative("UploadOrder.partition", order.partition)?,
            cut: not_negative("UploadOrder.cut", order.cut)?,
            gaps: to_gaps(order.gaps)?,
            previous: to_optional_stream("UploadOrder.previous", order.previous)?,
        })
    }
}

fn from_gaps(gaps: Gaps) -> rpc::Gaps {
    match gaps {
        Gaps::Nowhere => rpc::Gaps::Nowhere,
        Gaps::InClosed => rpc::Gaps::InClosed,
        Gaps::Anywhere => rpc::Gaps::Anywhere,
    }
}

fn to_gaps(value: i32) -> Result<Gaps, WireError> {
    match rpc::Gaps::try_from(value) {
        Ok(rpc::Gaps::Nowhere) => Ok(Gaps::Nowhere),
        Ok(rpc::Gaps::InClosed) => Ok(Gaps::InClosed),
        Ok(rpc::Gaps::Anywhere) => Ok(Gaps::Anywhere),
        Ok(rpc::Gaps::Unspecified) | Err(_) => Err(WireError::new("UploadOrder.gaps", Problem::UnknownValue(value))),
    }
}

impl From<MetadataOrder> for rpc::MetadataOrder {
    fn from(MetadataOrder { previous_checkpoint, previous_log, copy }: MetadataOrder) -> Self {
        Self {
            previous_checkpoint: from_stream(previous_checkpoint),
            previous_log: from_stream(previous_log),
            copy: copy.map(Into::into),
        }
    }
}

impl TryFrom<rpc::MetadataOrder> for MetadataOrder {
    type Error = WireError;

    fn try_from(order: rpc::MetadataOrder) -> Result<Self, WireError> {
        Ok(Self {
            previous_checkpoint: to_optional_stream("MetadataOrder.previous_checkpoint", order.previous_checkpoint)?,
            previous_log: to_optional_stream("MetadataOrder.previous_log", order.previous_log)?,
            copy: order.copy.map(TryInto::try_into).transpose()?,
        })
    }
}
