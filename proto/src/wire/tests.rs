//! Whatever is said arrives as it was said, what cannot be meant is refused, and the bytes stay what they are.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use segvault_vault_format::blob::{BlobPlace, Codec};
use segvault_vault_format::ids::{BlobId, PackId, PlanId, PointId};

use super::*;
use crate::rpc::report::Body;
use crate::{
    CheckpointCopy, Command, EventsRequest, Finding, Gaps, LogDirFacts, LogPosition, MetadataCopy, MetadataOrder,
    NodeFacts, OpenTransaction, Prepared, ProducerEvent, ReplicaEvents, ReplicaSample, Report, RestoreDeed,
    RestoreFinding, Restored, Restoring, Severity, StoredMetadata, StoredPartition, TransactionLogCopy,
    TransactionRecord, TransactionState, TransactionsRequest, Unreadable, UploadOrder, rpc,
};

// Values that every reader must know, for the tests of single messages.

fn reference() -> StreamRef {
    let place = |id, offset| BlobPlace {
        id: BlobId([id; 32]),
        pack: PackId([9; 16]),
        offset,
        stored_len: 50,
        raw_len: 100,
        codec: Codec::Zstd,
    };
    StreamRef { manifest: Some(place(1, 40).into()), index: Some(place(2, 300).into()) }
}

fn order() -> UploadOrder {
    UploadOrder {
        topic: "orders".into(),
        topic_id: Uuid([7; 16]),
        partition: 3,
        cut: 1000,
        gaps: Gaps::InClosed,
        previous: Some(reference()),
    }
}

fn sample() -> ReplicaSample {
    ReplicaSample {
        topic: "orders".into(),
        topic_id: Uuid([7; 16]),
        partition: 3,
        dir: "/data/orders-3".into(),
        log_start_offset: 10,
        high_watermark: 900,
        active_base_offset: 700,
        position: LogPosition { last_epoch: -1, end_offset: 1000 },
        epochs: vec![(0, 0), (4, 500)],
        lost_from: Some(0),
        unusable: Some("damaged".into()),
    }
}

fn record() -> TransactionRecord {
    TransactionRecord {
        offset: 5,
        transactional_id: "payments".into(),
        producer_id: 4001,
        producer_epoch: -1,
        state: Some(TransactionState::Ongoing),
        partitions: vec![("orders".into(), 3)],
    }
}

fn events() -> ReplicaEvents {
    let event = ProducerEvent { offset: 7, producer_id: 4001, producer_epoch: 2, is_marker: true };
    let end = LogPosition { last_epoch: 4, end_offset: 8 };
    ReplicaEvents { topic: "orders".into(), partition: 3, probes: vec![None, Some(end)], events: vec![event] }
}

fn stored() -> StoredPartition {
    let open = OpenTransaction { producer_id: 4001, producer_epoch: 2, coordinator_epoch: -1, first_offset: 990 };
    StoredPartition {
        topic: "orders".into(),
        partition: 3,
        stream: reference(),
        log_start_offset: 10,
        end_offset: 1000,
        bytes: 70_000,
        read_bytes: 7_000,
        stored_bytes: 700,
        max_epoch: 4,
        max_producer_id: 4001,
        open: vec![open],
        notes: vec!["another source".into()],
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        node_id: 1,
        cluster_id: "uHkGuCQeSDWMbl4fVJgYtw".into(),
        broker: true,
        controller: false,
        log_dirs: vec![LogDirFacts { path: "/data".into(), directory_id: Some(Uuid([8; 16])) }],
        metadata_log_dir: 0,
        static_voters: Some(vec![1, 2]),
        compacts: true,
    }
}

fn metadata() -> MetadataCopy {
    MetadataCopy {
        checkpoint: Some(CheckpointCopy { end_offset: 50, epoch: 3, bytes: vec![1] }),
        log: vec![2],
        end_offset: 60,
        epoch: 3,
        remainder: None,
    }
}

// Any value.

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,12}"
}

fn topic() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._-]{1,12}"
}

fn cluster_id() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_-]{1,80}"
}

fn partition() -> impl Strategy<Value = i32> {
    0..=i32::MAX
}

fn offset() -> impl Strategy<Value = i64> {
    0..=i64::MAX
}

fn any_uuid() -> impl Strategy<Value = Uuid> {
    any::<[u8; 16]>().prop_map(Uuid)
}

fn any_place() -> impl Strategy<Value = BlobPlace> {
    let places = (any::<[u8; 32]>(), any::<[u8; 16]>(), 40..=u64::MAX / 2, 1..=i32::MAX as u32, any::<bool>());
    places.prop_map(|(id, pack, offset, raw_len, is_packed)| BlobPlace {
        id: BlobId(id),
        pack: PackId(pack),
        offset,
        stored_len: if is_packed { raw_len / 2 } else { raw_len },
        raw_len,
        codec: if is_packed { Codec::Zstd } else { Codec::Raw },
    })
}

fn any_reference() -> impl Strategy<Value = StreamRef> {
    let parts = (any_place(), any_place());
    parts.prop_map(|(manifest, index)| StreamRef { manifest: Some(manifest.into()), index: Some(index.into()) })
}

fn any_point() -> impl Strategy<Value = PointId> {
    (cluster_id(), 1..=u64::MAX).prop_map(|(cluster_id, number)| PointId { cluster_id, number })
}

fn any_position() -> impl Strategy<Value = LogPosition> {
    (any::<i32>(), offset()).prop_map(|(last_epoch, end_offset)| LogPosition { last_epoch, end_offset })
}

fn any_transactions_request() -> impl Strategy<Value = TransactionsRequest> {
    let parts = (partition(), offset());
    parts.prop_map(|(partition, first_mark_offset)| TransactionsRequest { partition, first_mark_offset })
}

fn any_events_request() -> impl Strategy<Value = EventsRequest> {
    let parts = (topic(), partition(), vec(any::<i64>(), 0..4));
    parts.prop_map(|(topic, partition, producer_ids)| EventsRequest { topic, partition, producer_ids })
}

fn any_gaps() -> impl Strategy<Value = Gaps> {
    prop_oneof![Just(Gaps::Nowhere), Just(Gaps::InClosed), Just(Gaps::Anywhere)]
}

fn any_order() -> impl Strategy<Value = UploadOrder> {
    let parts = (topic(), any_uuid(), partition(), offset(), any_gaps(), option::of(any_reference()));
    parts.prop_map(|(topic, topic_id, partition, cut, gaps, previous)| UploadOrder {
        topic,
        topic_id,
        partition,
        cut,
        gaps,
        previous,
    })
}

fn any_metadata_order() -> impl Strategy<Value = MetadataOrder> {
    let parts = (option::of(any_reference()), option::of(any_reference()), option::of(any_metadata()));
    parts.prop_map(|(previous_checkpoint, previous_log, copy)| MetadataOrder {
        previous_checkpoint,
        previous_log,
        copy,
    })
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (any_point(), any::<u64>(), any::<bool>()).prop_map(|(point, base_number, closed_only)| Command::Prepare {
            point,
            base_number,
            closed_only
        }),
        Just(Command::ReadMetadata),
        Just(Command::Mark),
        Just(Command::Probe),
        Just(Command::PinProgress),
        Just(Command::PinData),
        Just(Command::Seal),
        vec(any_transactions_request(), 0..4).prop_map(Command::ReadTransactions),
        vec(any_events_request(), 0..4).prop_map(Command::FindEvents),
        (vec(any_order(), 0..4), option::of(any_metadata_order()))
            .prop_map(|(orders, metadata)| Command::Upload { orders, metadata }),
        any::<bool>().prop_map(|committed| Command::Release { committed }),
        (any_point(), any_deed()).prop_map(|(PointId { cluster_id, number }, deed)| Command::Restore {
            plan: PlanId { cluster_id, number },
            deed
        }),
        Just(Command::Examine),
    ]
}

fn any_deed() -> impl Strategy<Value = RestoreDeed> {
    prop_oneof![Just(RestoreDeed::Check), Just(RestoreDeed::Run), Just(RestoreDeed::Verify)]
}

fn any_restoring() -> impl Strategy<Value = Restoring> {
    any::<[u64; 4]>().prop_map(|[partitions, partitions_total, bytes, bytes_total]| Restoring {
        partitions,
        partitions_total,
        bytes,
        bytes_total,
    })
}

fn any_restored() -> impl Strategy<Value = Restored> {
    let finding = (any::<bool>(), text()).prop_map(|(is_warning, what)| RestoreFinding { is_warning, what });
    let parts = (any::<[u64; 4]>(), vec(finding, 0..4), vec(text(), 0..4));
    parts.prop_map(|([partitions, kept, fetched_bytes, written_bytes], findings, advice)| Restored {
        partitions,
        kept,
        fetched_bytes,
        written_bytes,
        findings,
        advice,
    })
}

fn any_log_dir() -> impl Strategy<Value = LogDirFacts> {
    (text(), option::of(any_uuid())).prop_map(|(path, directory_id)| LogDirFacts { path, directory_id })
}

fn any_facts() -> impl Strategy<Value = NodeFacts> {
    let parts = (
        partition(),
        cluster_id(),
        any::<[bool; 3]>(),
        vec(any_log_dir(), 1..4),
        any::<usize>(),
        option::of(vec(partition(), 0..4)),
    );
    parts.prop_map(|(node_id, cluster_id, [broker, controller, compacts], log_dirs, index, static_voters)| NodeFacts {
        node_id,
        cluster_id,
        broker,
        controller,
        metadata_log_dir: index % log_dirs.len(),
        log_dirs,
        static_voters,
        compacts,
    })
}

fn any_prepared() -> impl Strategy<Value = Prepared> {
    let parts = (any_facts(), option::of(any_position()), any::<usize>(), vec(text(), 0..4));
    parts.prop_map(|(facts, metadata, replicas, warnings)| Prepared { facts, metadata, replicas, warnings })
}

fn any_metadata() -> impl Strategy<Value = MetadataCopy> {
    let checkpoint = (offset(), any::<i32>(), vec(any::<u8>(), 0..20))
        .prop_map(|(end_offset, epoch, bytes)| CheckpointCopy { end_offset, epoch, bytes });
    let parts = (option::of(checkpoint), vec(any::<u8>(), 0..20), offset(), any::<i32>(), option::of(text()));
    parts.prop_map(|(checkpoint, log, end_offset, epoch, remainder)| MetadataCopy {
        checkpoint,
        log,
        end_offset,
        epoch,
        remainder,
    })
}

fn any_epochs() -> impl Strategy<Value = Vec<(i32, i64)>> {
    vec((1..1_000_000, 1..1_000_000_000_000_i64), 0..4).prop_map(|steps| {
        let sum = |sum: &mut (i32, i64), step: (i32, i64)| {
            *sum = (sum.0 + step.0, sum.1 + step.1);
            Some(*sum)
        };
        steps.into_iter().scan((-1, -1), sum).collect()
    })
}

fn any_sample() -> impl Strategy<Value = ReplicaSample> {
    let names = (topic(), any_uuid(), partition(), text());
    let offsets =
        (offset(), offset(), offset(), any_position(), any_epochs(), option::of(offset()), option::of(text()));
    (names, offsets).prop_map(|((topic, topic_id, partition, dir), offsets)| {
        let (log_start_offset, high_watermark, active_base_offset, position, epochs, lost_from, unusable) = offsets;
        ReplicaSample {
            topic,
            topic_id,
            partition,
            dir,
            log_start_offset,
            high_watermark,
            active_base_offset,
            position,
            epochs,
            lost_from,
            unusable,
        }
    })
}

fn any_state() -> impl Strategy<Value = TransactionState> {
    prop_oneof![
        Just(TransactionState::Empty),
        Just(TransactionState::Ongoing),
        Just(TransactionState::PrepareCommit),
        Just(TransactionState::PrepareAbort),
        Just(TransactionState::CompleteCommit),
        Just(TransactionState::CompleteAbort),
    ]
}

fn any_record() -> impl Strategy<Value = TransactionRecord> {
    let parts =
        (offset(), text(), any::<i64>(), any::<i16>(), option::of(any_state()), vec((topic(), partition()), 0..4));
    parts.prop_map(|(offset, transactional_id, producer_id, producer_epoch, state, partitions)| TransactionRecord {
        offset,
        transactional_id,
        producer_id,
        producer_epoch,
        state,
        partitions,
    })
}

fn any_log_copy() -> impl Strategy<Value = TransactionLogCopy> {
    let parts = (partition(), vec(any_record(), 0..4), vec(any_record(), 0..4), any::<i64>());
    parts.prop_map(|(partition, at_first, records, max_producer_id)| TransactionLogCopy {
        partition,
        at_first,
        records,
        max_producer_id,
    })
}

fn any_event() -> impl Strategy<Value = ProducerEvent> {
    let parts = (offset(), any::<i64>(), any::<i16>(), any::<bool>());
    parts.prop_map(|(offset, producer_id, producer_epoch, is_marker)| ProducerEvent {
        offset,
        producer_id,
        producer_epoch,
        is_marker,
    })
}

fn any_events() -> impl Strategy<Value = ReplicaEvents> {
    let parts = (topic(), partition(), vec(option::of(any_position()), 0..4), vec(any_event(), 0..4));
    parts.prop_map(|(topic, partition, probes, events)| ReplicaEvents { topic, partition, probes, events })
}

fn any_unreadable() -> impl Strategy<Value = Unreadable> {
    let parts = (topic(), partition(), text());
    parts.prop_map(|(topic, partition, reason)| Unreadable { topic, partition, reason })
}

fn any_open() -> impl Strategy<Value = OpenTransaction> {
    let parts = (any::<i64>(), any::<i16>(), any::<i32>(), offset());
    parts.prop_map(|(producer_id, producer_epoch, coordinator_epoch, first_offset)| OpenTransaction {
        producer_id,
        producer_epoch,
        coordinator_epoch,
        first_offset,
    })
}

fn any_stored() -> impl Strategy<Value = StoredPartition> {
    let place = (topic(), partition(), any_reference(), offset(), offset());
    let found = (any::<[u64; 3]>(), any::<i32>(), any::<i64>(), vec(any_open(), 0..4), vec(text(), 0..4));
    (place, found).prop_map(|((topic, partition, stream, one, other), found)| {
        let ([bytes, read_bytes, stored_bytes], max_epoch, max_producer_id, open, notes) = found;
        StoredPartition {
            topic,
            partition,
            stream,
            log_start_offset: one.min(other),
            end_offset: one.max(other),
            bytes,
            read_bytes,
            stored_bytes,
            max_epoch,
            max_producer_id,
            open,
            notes,
        }
    })
}

fn any_stored_metadata() -> impl Strategy<Value = StoredMetadata> {
    let parts = (option::of(any_reference()), option::of(any_reference()), any::<[u64; 2]>());
    parts.prop_map(|(checkpoint, log, [read_bytes, stored_bytes])| StoredMetadata {
        checkpoint,
        log,
        read_bytes,
        stored_bytes,
    })
}

fn any_report() -> impl Strategy<Value = Report> {
    let samples = || vec(any_sample(), 0..4);
    let unreadable = || vec(any_unreadable(), 0..4);
    prop_oneof![
        any_prepared().prop_map(Report::Prepared),
        any_metadata().prop_map(Report::Metadata),
        text().prop_map(|reason| Report::NoMetadata { reason }),
        samples().prop_map(Report::Marked),
        Just(Report::Probed),
        samples().prop_map(Report::Pinned),
        (samples(), option::of(any_position())).prop_map(|(replicas, metadata)| Report::Sealed { replicas, metadata }),
        (vec(any_log_copy(), 0..4), unreadable())
            .prop_map(|(copies, unreadable)| Report::Transactions { copies, unreadable }),
        (vec(any_events(), 0..4), unreadable()).prop_map(|(events, unreadable)| Report::Events { events, unreadable }),
        any_stored().prop_map(Report::Stored),
        (topic(), -1..=i32::MAX, text(), any::<bool>())
            .prop_map(|(topic, partition, reason, has_gap)| Report::NotStored { topic, partition, reason, has_gap }),
        any_stored_metadata().prop_map(Report::MetadataStored),
        Just(Report::Uploaded),
        Just(Report::Released),
        text().prop_map(|reason| Report::Failed { reason }),
        any_restoring().prop_map(Report::Restoring),
        any_restored().prop_map(Report::Restored),
        vec(any_finding(), 0..4).prop_map(Report::Examined),
    ]
}

fn any_finding() -> impl Strategy<Value = Finding> {
    let severity = prop_oneof![Just(Severity::Info), Just(Severity::Warning), Just(Severity::Error)];
    (severity, text(), text(), text()).prop_map(|(severity, subject, message, remedy)| Finding {
        severity,
        subject,
        message,
        remedy,
    })
}

fn over_the_wire<T, R>(value: T) -> Result<T, WireError>
where
    R: Message + Default + From<T>,
    T: TryFrom<R, Error = WireError>,
{
    let bytes = R::from(value).encode_to_vec();
    R::decode(&bytes[..]).expect("what was just encoded").try_into()
}

proptest! {
    // Not all types can be compared, but their `Debug` text shows all that is in them.

    #[test]
    fn every_command_arrives_as_it_was_given(command in any_command()) {
        let said = format!("{command:?}");
        let heard = over_the_wire::<_, rpc::Command>(command).map(|command| format!("{command:?}"));
        prop_assert_eq!(heard, Ok(said));
    }

    #[test]
    fn every_report_arrives_as_it_was_given(report in any_report()) {
        let said = format!("{report:?}");
        let heard = over_the_wire::<_, rpc::Report>(report).map(|report| format!("{report:?}"));
        prop_assert_eq!(heard, Ok(said));
    }

    #[test]
    fn every_node_s_facts_arrive_as_they_were_given(facts in any_facts()) {
        prop_assert_eq!(rpc::NodeFacts::from(&facts), rpc::NodeFacts::from(facts.clone()));
        prop_assert_eq!(over_the_wire::<_, rpc::NodeFacts>(facts.clone()), Ok(facts));
    }

    #[test]
    fn damage_on_the_way_ends_no_process(
        command in any_command(), report in any_report(), at in any::<usize>(), byte in any::<u8>(),
    ) {
        let command = damaged(rpc::Command::from(command).encode_to_vec(), at, byte);
        let _ = rpc::Command::decode(&command[..]).map(Command::try_from);
        let report = damaged(rpc::Report::from(report).encode_to_vec(), at, byte);
        let _ = rpc::Report::decode(&report[..]).map(Report::try_from);
    }
}

fn damaged(mut bytes: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    let at = at % bytes.len();
    bytes[at] = byte;
    bytes
}

/// The wire form of a message that `defect` has spoilt.
fn spoilt<T, R: From<T>>(value: T, defect: impl FnOnce(&mut R)) -> R {
    let mut message = R::from(value);
    defect(&mut message);
    message
}

const CLUSTER_ID: &str = "\"\" is not a cluster id (1 to 80 bytes)";
const UNKNOWN: &str = "no body, or one that this version does not know\n\
                       hint: run the same version of segvault on all hosts";

#[test]
fn a_command_that_cannot_be_meant_is_refused_by_field() {
    use rpc::command::{self, Body};

    let prepare = |point| Body::Prepare(command::Prepare { point, base_number: 0, closed_only: false });
    let point = |cluster_id: &str, number| prepare(Some(rpc::PointId { cluster_id: cluster_id.into(), number }));
    let read = |partition, first_mark_offset| {
        let requests = vec![rpc::TransactionsRequest { partition, first_mark_offset }];
        Body::ReadTransactions(command::ReadTransactions { requests })
    };
    let find = |topic: &str, partition| {
        let requests = vec![rpc::EventsRequest { topic: topic.into(), partition, producer_ids: vec![] }];
        Body::FindEvents(command::FindEvents { requests })
    };
    let upload = |defect: fn(&mut rpc::UploadOrder)| {
        Body::Upload(command::Upload { orders: vec![spoilt(order(), defect)], metadata: None })
    };
    let metadata = |defect: fn(&mut rpc::MetadataOrder)| {
        let metadata = Some(spoilt(MetadataOrder::default(), defect));
        Body::Upload(command::Upload { orders: vec![], metadata })
    };
    let restore =
        |cluster_id: &str, plan, deed| Body::Restore(command::Restore { cluster_id: cluster_id.into(), plan, deed });
    let table = [
        (None, format!("Command: {UNKNOWN}")),
        (Some(prepare(None)), "Command.Prepare.point: it is missing".into()),
        (Some(point("", 1)), format!("PointId.cluster_id: {CLUSTER_ID}")),
        (Some(point("c", 0)), "PointId.number: 0 is less than 1".into()),
        (Some(read(-1, 0)), "TransactionsRequest.partition: -1 is less than 0".into()),
        (Some(read(0, -5)), "TransactionsRequest.first_mark_offset: -5 is less than 0".into()),
        (Some(find("", 0)), "EventsRequest.topic: it is empty".into()),
        (Some(find("t", -1)), "EventsRequest.partition: -1 is less than 0".into()),
        (Some(restore("", 1, 1)), format!("Command.Restore.cluster_id: {CLUSTER_ID}")),
        (Some(restore("c", 0, 1)), "Command.Restore.plan: 0 is less than 1".into()),
        (Some(restore("c", 1, 0)), "RestoreDeed: 0 is no value that this version knows".into()),
        (Some(restore("c", 1, 4)), "RestoreDeed: 4 is no value that this version knows".into()),
        (Some(upload(|order| order.topic.clear())), "UploadOrder.topic: it is empty".into()),
        (Some(upload(|order| order.topic_id.truncate(15))), "UploadOrder.topic_id: 15 bytes instead of 16".into()),
        (Some(upload(|order| order.topic_id.push(0))), "UploadOrder.topic_id: 17 bytes instead of 16".into()),
        (Some(upload(|order| order.partition = -1)), "UploadOrder.partition: -1 is less than 0".into()),
        (Some(upload(|order| order.cut = i64::MIN)), format!("UploadOrder.cut: {} is less than 0", i64::MIN)),
        (Some(upload(|order| order.gaps = 0)), "UploadOrder.gaps: 0 is no value that this version knows".into()),
        (Some(upload(|order| order.gaps = 4)), "UploadOrder.gaps: 4 is no value that this version knows".into()),
        (
            Some(upload(|order| order.previous = Some(vec![]))),
            "UploadOrder.previous: stream reference: no manifest".into(),
        ),
        (
            Some(metadata(|order| order.previous_checkpoint = Some(vec![]))),
            "MetadataOrder.previous_checkpoint: stream reference: no manifest".into(),
        ),
        (
            Some(metadata(|order| order.previous_log = Some(vec![]))),
            "MetadataOrder.previous_log: stream reference: no manifest".into(),
        ),
    ];
    for (body, expected) in table {
        let error = Command::try_from(rpc::Command { body }).expect_err(&expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_report_that_cannot_be_meant_is_refused_by_field() {
    use rpc::report;

    let no_facts = rpc::Prepared { facts: None, metadata: None, replicas: 0, warnings: vec![] };
    let not_stored = |topic: &str, partition| {
        Body::NotStored(report::NotStored { topic: topic.into(), partition, reason: String::new(), has_gap: false })
    };
    let unreadable = |topic: &str, partition| {
        let unreadable = vec![rpc::Unreadable { topic: topic.into(), partition, reason: String::new() }];
        Body::Events(report::Events { events: vec![], unreadable })
    };
    let table = [
        (None, format!("Report: {UNKNOWN}")),
        (Some(Body::Prepared(no_facts)), "Prepared.facts: it is missing".into()),
        (Some(not_stored("", 0)), "Report.NotStored.topic: it is empty".into()),
        (Some(not_stored("t", -2)), "Report.NotStored.partition: -2 is less than -1".into()),
        (Some(unreadable("", 0)), "Unreadable.topic: it is empty".into()),
        (Some(unreadable("t", -1)), "Unreadable.partition: -1 is less than 0".into()),
    ];
    for (body, expected) in table {
        let error = Report::try_from(rpc::Report { body }).expect_err(&expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_sample_that_cannot_be_meant_is_refused_by_field() {
    type Defect = fn(&mut rpc::ReplicaSample);
    let table: [(Defect, &str); 12] = [
        (|sample| sample.topic.clear(), "ReplicaSample.topic: it is empty"),
        (|sample| sample.topic_id.truncate(15), "ReplicaSample.topic_id: 15 bytes instead of 16"),
        (|sample| sample.partition = -1, "ReplicaSample.partition: -1 is less than 0"),
        (|sample| sample.log_start_offset = -1, "ReplicaSample.log_start_offset: -1 is less than 0"),
        (|sample| sample.high_watermark = -1, "ReplicaSample.high_watermark: -1 is less than 0"),
        (|sample| sample.active_base_offset = -1, "ReplicaSample.active_base_offset: -1 is less than 0"),
        (|sample| sample.position = None, "ReplicaSample.position: it is missing"),
        (|sample| sample.position.as_mut().unwrap().end_offset = -1, "LogPosition.end_offset: -1 is less than 0"),
        (|sample| sample.epochs[0].start_offset = -1, "EpochStart.start_offset: -1 is less than 0"),
        (|sample| sample.epochs[1].epoch = 0, "ReplicaSample.epochs: entry 1 does not rise above the one before it"),
        (
            |sample| sample.epochs[1].start_offset = 0,
            "ReplicaSample.epochs: entry 1 does not rise above the one before it",
        ),
        (|sample| sample.lost_from = Some(-1), "ReplicaSample.lost_from: -1 is less than 0"),
    ];
    for (defect, expected) in table {
        let replicas = vec![spoilt(sample(), defect)];
        let sealed = rpc::report::Sealed { replicas: replicas.clone(), metadata: None };
        let marked = rpc::report::Marked { replicas: replicas.clone() };
        let pinned = rpc::report::Pinned { replicas };
        for body in [Body::Marked(marked), Body::Pinned(pinned), Body::Sealed(sealed)] {
            let error = Report::try_from(rpc::Report { body: Some(body) }).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
    }
}

#[test]
fn what_was_read_and_cannot_be_meant_is_refused_by_field() {
    type Defect = fn(&mut rpc::TransactionRecord);
    let table: [(Defect, &str); 6] = [
        (|record| record.offset = -1, "TransactionRecord.offset: -1 is less than 0"),
        (|record| record.producer_epoch = 32_768, "TransactionRecord.producer_epoch: 32768 does not fit into 16 bits"),
        (|record| record.state = Some(0), "TransactionRecord.state: 0 is no value that this version knows"),
        (|record| record.state = Some(7), "TransactionRecord.state: 7 is no value that this version knows"),
        (|record| record.partitions[0].topic.clear(), "TopicPartition.topic: it is empty"),
        (|record| record.partitions[0].partition = -1, "TopicPartition.partition: -1 is less than 0"),
    ];
    for (defect, expected) in table {
        let record = spoilt(record(), defect);
        let copy = |at_first, records| rpc::TransactionLogCopy { partition: 0, at_first, records, max_producer_id: -1 };
        for copy in [copy(vec![record.clone()], vec![]), copy(vec![], vec![record])] {
            let error = TransactionLogCopy::try_from(copy).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
    }
    let copy = rpc::TransactionLogCopy { partition: -1, at_first: vec![], records: vec![], max_producer_id: -1 };
    let error = TransactionLogCopy::try_from(copy).unwrap_err();
    assert_eq!(error.to_string(), "TransactionLogCopy.partition: -1 is less than 0");

    type EventsDefect = fn(&mut rpc::ReplicaEvents);
    let table: [(EventsDefect, &str); 5] = [
        (|events| events.topic.clear(), "ReplicaEvents.topic: it is empty"),
        (|events| events.partition = -1, "ReplicaEvents.partition: -1 is less than 0"),
        (
            |events| events.probes[1].position.as_mut().unwrap().end_offset = -1,
            "LogPosition.end_offset: -1 is less than 0",
        ),
        (|events| events.events[0].offset = -1, "ProducerEvent.offset: -1 is less than 0"),
        (
            |events| events.events[0].producer_epoch = -32_769,
            "ProducerEvent.producer_epoch: -32769 does not fit into 16 bits",
        ),
    ];
    for (defect, expected) in table {
        let error = ReplicaEvents::try_from(spoilt(events(), defect)).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }

    type MetadataDefect = fn(&mut rpc::MetadataCopy);
    let table: [(MetadataDefect, &str); 2] = [
        (|copy| copy.end_offset = -1, "MetadataCopy.end_offset: -1 is less than 0"),
        (|copy| copy.checkpoint.as_mut().unwrap().end_offset = -1, "CheckpointCopy.end_offset: -1 is less than 0"),
    ];
    for (defect, expected) in table {
        let error = MetadataCopy::try_from(spoilt(metadata(), defect)).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn what_was_stored_and_cannot_be_meant_is_refused_by_field() {
    type Defect = fn(&mut rpc::StoredPartition);
    let no_index = |stored: &mut rpc::StoredPartition| {
        stored.stream = StreamRef { index: None, ..reference() }.encode_to_vec();
    };
    let table: [(Defect, &str); 9] = [
        (|stored| stored.topic.clear(), "StoredPartition.topic: it is empty"),
        (|stored| stored.partition = -1, "StoredPartition.partition: -1 is less than 0"),
        (|stored| stored.stream.clear(), "StoredPartition.stream: stream reference: no manifest"),
        (no_index, "StoredPartition.stream: stream reference: no index"),
        (|stored| stored.log_start_offset = -1, "StoredPartition.log_start_offset: -1 is less than 0"),
        (|stored| stored.end_offset = 9, "StoredPartition.log_start_offset: 10 is greater than the end at 9"),
        (|stored| stored.open[0].first_offset = -1, "OpenTransaction.first_offset: -1 is less than 0"),
        (
            |stored| stored.open[0].producer_epoch = 40_000,
            "OpenTransaction.producer_epoch: 40000 does not fit into 16 bits",
        ),
        (|stored| stored.stream = vec![0xff], "StoredPartition.stream: failed to decode Protobuf message"),
    ];
    for (defect, expected) in table {
        let error = StoredPartition::try_from(spoilt(stored(), defect)).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error} should begin with {expected}");
    }

    type MetadataDefect = fn(&mut rpc::StoredMetadata);
    let table: [(MetadataDefect, &str); 2] = [
        (|stored| stored.checkpoint = Some(vec![]), "StoredMetadata.checkpoint: stream reference: no manifest"),
        (|stored| stored.log = Some(vec![]), "StoredMetadata.log: stream reference: no manifest"),
    ];
    for (defect, expected) in table {
        let error = StoredMetadata::try_from(spoilt(StoredMetadata::default(), defect)).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn facts_that_cannot_be_meant_are_refused_by_field() {
    type Defect = fn(&mut rpc::NodeFacts);
    let table: [(Defect, &str); 6] = [
        (|facts| facts.node_id = -1, "NodeFacts.node_id: -1 is less than 0"),
        (|facts| facts.cluster_id.clear(), "NodeFacts.cluster_id: \"\" is not a cluster id (1 to 80 bytes)"),
        (|facts| facts.metadata_log_dir = 1, "NodeFacts.metadata_log_dir: 1 is not below 1"),
        (|facts| facts.log_dirs.clear(), "NodeFacts.metadata_log_dir: 0 is not below 0"),
        (
            |facts| facts.static_voters.as_mut().unwrap().node_ids[1] = -2,
            "NodeFacts.StaticVoters.node_ids: -2 is less than 0",
        ),
        (|facts| facts.log_dirs[0].directory_id = Some(vec![]), "LogDirFacts.directory_id: 0 bytes instead of 16"),
    ];
    for (defect, expected) in table {
        let error = NodeFacts::try_from(spoilt(facts(), defect)).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of [`reference`], a message of the vault's format.
fn pinned_reference() -> String {
    let ids = |blob: &str| format!("0a20{}1210{}", blob.repeat(32), "09".repeat(16));
    format!("0a3c{}1828203228643001123d{}18ac02203228643001", ids("01"), ids("02"))
}

/// Do not change these without another protocol version.
#[test]
fn bytes_of_a_command_are_pinned() {
    let command = Command::Upload {
        orders: vec![order()],
        metadata: Some(MetadataOrder { previous_log: Some(reference()), ..MetadataOrder::default() }),
    };
    let pinned = [
        "52a402",                               // Upload
        "0aa001",                               // its first order
        "0a066f7264657273",                     // topic
        "121007070707070707070707070707070707", // topic id
        "1803",                                 // partition
        "20e807",                               // cut
        "2802",                                 // gaps
        "327d",                                 // previous
        &pinned_reference(),
        "127f", // its metadata order
        "127d", // previous log
        &pinned_reference(),
    ];
    assert_eq!(hex(&rpc::Command::from(command).encode_to_vec()), pinned.concat());
}

/// Do not change these without another protocol version.
#[test]
fn bytes_of_a_report_are_pinned() {
    let metadata = Some(LogPosition { last_epoch: 4, end_offset: 60 });
    let report = Report::Sealed { replicas: vec![sample()], metadata };
    let pinned = [
        "3a57",                                 // Sealed
        "0a4f",                                 // its first replica
        "0a066f7264657273",                     // topic
        "121007070707070707070707070707070707", // topic id
        "1803",                                 // partition
        "220e2f646174612f6f72646572732d33",     // dir
        "280a",                                 // log start offset
        "308407",                               // high watermark
        "3a05080110e807",                       // position
        "42004205080410f403",                   // epochs
        "4800",                                 // lost from
        "520764616d61676564",                   // unusable
        "58bc05",                               // active base offset
        "12040808103c",                         // metadata
    ];
    assert_eq!(hex(&rpc::Report::from(report).encode_to_vec()), pinned.concat());
}

/// Do not change these without another protocol version.
#[test]
fn numbers_of_bodies_are_pinned() {
    let number = |message: &[u8]| message[0] >> 3;
    let point = PointId { cluster_id: "c".into(), number: 1 };
    let commands = [
        Command::Prepare { point, base_number: 0, closed_only: false },
        Command::ReadMetadata,
        Command::Mark,
        Command::Probe,
        Command::PinProgress,
        Command::PinData,
        Command::Seal,
        Command::ReadTransactions(vec![]),
        Command::FindEvents(vec![]),
        Command::Upload { orders: vec![], metadata: None },
        Command::Release { committed: true },
    ];
    for (index, command) in (1..).zip(commands) {
        let name = format!("{command:?}");
        assert_eq!(number(&rpc::Command::from(command).encode_to_vec()), index, "{name}");
    }
    let reason = || "r".to_owned();
    let reports = [
        Report::Prepared(Prepared { facts: facts(), metadata: None, replicas: 0, warnings: vec![] }),
        Report::Metadata(metadata()),
        Report::NoMetadata { reason: reason() },
        Report::Marked(vec![]),
        Report::Probed,
        Report::Pinned(vec![]),
        Report::Sealed { replicas: vec![], metadata: None },
        Report::Transactions { copies: vec![], unreadable: vec![] },
        Report::Events { events: vec![], unreadable: vec![] },
        Report::Stored(stored()),
        Report::NotStored { topic: "t".into(), partition: 0, reason: reason(), has_gap: false },
        Report::MetadataStored(StoredMetadata::default()),
        Report::Uploaded,
        Report::Released,
        Report::Failed { reason: reason() },
    ];
    for (index, report) in (1..).zip(reports) {
        let name = format!("{report:?}");
        assert_eq!(number(&rpc::Report::from(report).encode_to_vec()), index, "{name}");
    }
}
