//! Decisions and markers in short: `C` and `A` are decided and complete, `c` and `a` decided only; of events `d` is data,
//! `C` and `A` are markers. A digit is the epoch, 0 where there is none.

use proptest::collection::vec;
use proptest::prelude::*;
use segvault_kafka_log::batch::{BatchBuilder, EndTxnMarker, end_txn_marker_batch};
use segvault_kafka_log::transactions::TransactionPartitions;

use super::*;

fn decisions(text: &str) -> Vec<Decision> {
    letters(text)
        .map(|(letter, epoch)| Decision {
            commit: letter.eq_ignore_ascii_case(&'c'),
            epoch,
            is_complete: letter.is_uppercase(),
            timestamp: 0,
        })
        .collect()
}

fn events(text: &str) -> Vec<Event> {
    letters(text)
        .map(|(letter, epoch)| match letter {
            'd' => Event::Data,
            letter => Event::Marker { commit: letter == 'C', epoch },
        })
        .collect()
}

fn letters(text: &str) -> impl Iterator<Item = (char, i16)> {
    let letters: Vec<char> = text.chars().collect();
    let epoch_of = |next: Option<&char>| next.and_then(|next| next.to_digit(10)).map_or(0, |epoch| epoch as i16);
    let with_epochs: Vec<_> = letters
        .iter()
        .enumerate()
        .filter(|(_, letter)| letter.is_alphabetic())
        .map(|(index, letter)| (*letter, epoch_of(letters.get(index + 1))))
        .collect();
    with_epochs.into_iter()
}

#[test]
fn decisions_and_markers_fit_or_do_not() {
    const ALL: (bool, bool) = (true, true);
    const LATER_DECISIONS: (bool, bool) = (false, true);
    const LATER_MARKERS: (bool, bool) = (true, false);
    let (fits, mixed) = (Ok(()), Err(Misfit::Mixed));
    let table = [
        ("", "", ALL, fits),
        ("", "d", ALL, fits),   // what is open is judged elsewhere
        ("", "dC", ALL, mixed), // I1: a marker that nobody decided
        ("", "dC", LATER_DECISIONS, fits),
        ("CC", "dCdC", ALL, fits),
        ("CC", "dCCdCCC", ALL, fits), // sent again by a new coordinator
        ("CC", "CC", ALL, fits),      // listed, and nothing written
        ("CC", "dCdCd", ALL, fits),
        ("CC", "dC", ALL, Err(Misfit::Unmarked(1))), // I3
        ("CC", "dC", LATER_MARKERS, fits),
        ("CC", "dCd", ALL, Err(Misfit::Unmarked(1))),
        ("C", "dCdC", ALL, mixed),
        ("C", "dCdC", LATER_DECISIONS, fits),
        ("CA", "dCdA", ALL, fits),
        ("CA", "dAdC", ALL, mixed),
        ("A", "dC", (false, false), mixed), // torn: aborted there, committed here
        ("CAC", "dAdC", LATER_MARKERS, fits),
        ("CAC", "dCdC", LATER_MARKERS, mixed),
        ("Cc", "dCd", ALL, fits),   // the coordinator sends its markers
        ("Cc", "dCdC", ALL, fits),  // it has
        ("Cc", "dCdCC", ALL, fits), // twice
        ("Ca", "dCdA", ALL, fits),
        ("Ca", "dCdC", ALL, mixed),
        ("Cc", "dCdCd", ALL, mixed), // more after it, though it is not complete
        ("c", "", ALL, fits),
        ("C1", "dC1", ALL, fits),
        ("C1", "dC", (false, false), mixed),
        ("C1C2", "dC1dC2", ALL, fits),
        ("C1C2", "dC2", ALL, Err(Misfit::Unmarked(1))),
        ("C1C2", "dC1", (false, false), mixed),
    ];
    for (decided, seen, (all_decisions, all_markers), expected) in table {
        let found = fit(&decisions(decided), &events(seen), all_decisions, all_markers);
        assert_eq!(found, expected, "{decided:?} {seen:?} {all_decisions} {all_markers}");
    }
}

/// What one transaction left in a partition.
#[derive(Clone, Copy, Debug)]
struct Deed {
    commit: bool,
    bumps_epoch: bool,
    has_data: bool,
    markers: usize,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = (any::<bool>(), any::<bool>(), any::<bool>(), 1usize..3);
    vec(deed.prop_map(|(commit, bumps_epoch, has_data, markers)| Deed { commit, bumps_epoch, has_data, markers }), 0..8)
}

/// Plays transactions one after the other. The last one is in the state that `last` says: 0 open, 1 decided, 2 decided
/// with markers, 3 complete.
fn play(deeds: &[Deed], last: u8) -> (Vec<Decision>, Vec<Event>) {
    let (mut decided, mut seen, mut epoch) = (Vec::new(), Vec::new(), 0);
    for (index, deed) in deeds.iter().enumerate() {
        let stage = if index + 1 == deeds.len() { last } else { 3 };
        epoch += i16::from(deed.bumps_epoch);
        if deed.has_data {
            seen.push(Event::Data);
        }
        if stage >= 1 {
            decided.push(Decision { commit: deed.commit, epoch, is_complete: stage == 3, timestamp: 0 });
        }
        if stage >= 2 {
            let marker = Event::Marker { commit: deed.commit, epoch };
            seen.extend(std::iter::repeat_n(marker, deed.markers));
        }
    }
    (decided, seen)
}

proptest! {
    #[test]
    fn what_happened_fits_from_wherever_it_is_remembered(
        deeds in deeds(), last in 0u8..4, decisions_lost in 0usize..9, events_lost in 0usize..20,
    ) {
        let (decided, seen) = play(&deeds, last);
        let later = decided.get(decisions_lost..).unwrap_or_default();
        let seen_later = seen.get(events_lost..).unwrap_or_default();
        let (all_decisions, all_markers) = (decisions_lost == 0, events_lost == 0);
        prop_assert_eq!(fit(later, seen_later, all_decisions, all_markers), Ok(()));
    }

    /// With both logs whole, a marker more or a marker less is always seen. (Of markers without data between them one cannot
    /// say whether they are of one transaction or of several alike.)
    #[test]
    fn a_marker_too_many_or_too_few_is_seen(deeds in deeds(), commit: bool) {
        let deeds: Vec<Deed> = deeds.into_iter().map(|deed| Deed { has_data: true, markers: 1, ..deed }).collect();
        let (decided, mut seen) = play(&deeds, 3);
        let mut more = seen.clone();
        more.extend([Event::Data, Event::Marker { commit, epoch: 99 }]);
        prop_assert!(fit(&decided, &more, true, true).is_err());
        if !deeds.is_empty() {
            seen.truncate(seen.len() - 1);
            prop_assert!(fit(&decided, &seen, true, true).is_err());
        }
    }
}

const ID: &str = "payments";
const PRODUCER: i64 = 7;

fn place() -> TopicPartition {
    TopicPartition::new("t", 0)
}

fn record(state: TransactionState, epoch: i16, partitions: &[i32]) -> TransactionRecord {
    let lists =
        TransactionPartitions { topic: "t".to_owned(), partition_ids: partitions.to_vec(), ..Default::default() };
    let value = TransactionLogValue {
        producer_id: PRODUCER,
        producer_epoch: epoch,
        transaction_status: state as i8,
        transaction_partitions: Some(vec![lists]),
        ..TransactionLogValue::default()
    };
    TransactionRecord { offset: 0, timestamp: 5, transactional_id: ID.to_owned(), value: Some(value) }
}

/// What is found wrong at level 3 with a partition whose log is `batches`.
fn judged(records: &[TransactionRecord], batches: &[Vec<u8>], planned: &[PlannedMarker]) -> Vec<String> {
    let (mut ids, mut flaws) = (TransactionIds::default(), Flaws::default());
    records.iter().for_each(|record| ids.apply(record.clone(), &mut flaws));
    let mut producers = Producers::new(&ids, place(), 0);
    for bytes in batches {
        producers.apply(&Batch::parse(bytes).unwrap(), false, &mut flaws);
    }
    producers.judge(&planned.iter().map(|marker| (PRODUCER, *marker)).collect(), &mut flaws);
    let (flaws, _, _) = flaws.into_parts();
    assert!(flaws.iter().all(|flaw| flaw.level == 3));
    flaws.into_iter().map(|flaw| flaw.what).collect()
}

fn data(offset: i64, epoch: i16) -> Vec<u8> {
    BatchBuilder::new(offset, 0).transactional().producer(PRODUCER, epoch, 0).record(1, None, Some(b"v")).build()
}

fn marker(offset: i64, epoch: i16, commit: bool) -> Vec<u8> {
    end_txn_marker_batch(offset, 0, 1, PRODUCER, epoch, EndTxnMarker { commit, coordinator_epoch: 0 })
}

#[test]
fn what_is_open_must_be_known_to_the_transaction_log_or_be_ended_by_the_restore() {
    use TransactionState::{CompleteCommit, Empty, Ongoing, PrepareAbort, PrepareCommit};
    let open = [data(0, 0)];
    let commit = |epoch| [PlannedMarker { commit: true, epoch }];
    let abort = |epoch| [PlannedMarker { commit: false, epoch }];
    let new = record(Empty, 0, &[]);
    let says = |found: Vec<String>, what: &str| {
        assert!(found.len() == 1 && found[0].contains(what), "{found:?} does not say {what:?}");
    };
    assert_eq!(judged(&[new.clone(), record(Ongoing, 0, &[0])], &open, &[]), [""; 0]);
    assert_eq!(judged(&[new.clone(), record(PrepareCommit, 0, &[0])], &open, &[]), [""; 0]);
    // I4: the transaction log does not know of it, or not in this partition.
    says(judged(std::slice::from_ref(&new), &open, &[]), "is unknown to the transaction log");
    says(judged(&[new.clone(), record(Ongoing, 0, &[1])], &open, &[]), "is unknown to the transaction log");
    assert_eq!(judged(std::slice::from_ref(&new), &open, &abort(0)), [""; 0]);
    says(judged(std::slice::from_ref(&new), &open, &commit(0)), "was committed nowhere");
    // What is decided gets the marker of the decision, or none; what is not, none.
    for (state, planned, what) in [
        (PrepareCommit, commit(1), ""),
        (PrepareCommit, abort(1), "is PrepareCommit with epoch 1, and a restore would end it by ABORT with epoch 1"),
        (PrepareCommit, commit(0), "would end it by COMMIT with epoch 0"),
        (PrepareAbort, abort(1), ""),
        (PrepareAbort, commit(1), "is PrepareAbort with epoch 1"),
        (PrepareAbort, abort(0), "would end it by ABORT with epoch 0"),
        (Ongoing, abort(1), "is Ongoing"),
        (Ongoing, commit(1), "is Ongoing"),
    ] {
        let found = judged(&[new.clone(), record(state, 1, &[0])], &open, &planned);
        if what.is_empty() {
            assert_eq!(found, [""; 0]);
        } else {
            says(found, what);
        }
    }
    // I5: the transaction log is behind.
    says(judged(&[new.clone(), record(Ongoing, 0, &[0])], &[data(0, 1)], &[]), "has epoch 1 here");
    // I1: a marker whose decision the transaction log does not have.
    says(
        judged(&[new.clone(), record(Ongoing, 0, &[0])], &[data(0, 0), marker(1, 0, true)], &[]),
        "0 decided, 1 markers",
    );
    // I3: complete, and this partition has no marker.
    let complete = [new, record(PrepareCommit, 0, &[0]), record(CompleteCommit, 0, &[])];
    let found = judged(&complete, &open, &[]);
    assert!(found.iter().any(|what| what.contains("1 complete transactions")), "{found:?}");
    assert_eq!(judged(&complete, &[data(0, 0), marker(1, 0, true)], &[]), [""; 0]);
    says(judged(&complete, &[data(0, 0), marker(1, 0, false)], &[]), "are not those of its decided transactions");
}
