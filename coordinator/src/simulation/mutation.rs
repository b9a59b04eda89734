//! Deliberate damage: each must be noticed, or the simulation proves nothing.

/// What is wrong in a damaged fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// An agent reports a partition as stored before it is durable.
    StoredBeforeDurable,
    /// An agent answers before it has pinned.
    AnswersBeforePinning,
    /// An agent uses pins of an earlier point.
    EarlierPinsAreUsed,
    /// An agent that starts leaves the pins of the process before it alone.
    OrphansStay,
    /// An agent never lets go, however long it hears nothing.
    LeaseIsIgnored,
    /// An agent goes on where it was although the coordinator has begun another session.
    SessionsAreMixed,
    /// An agent does not send again what was not confirmed.
    NothingIsSentAgain,
    /// An agent does a command again that comes again.
    RepeatsAreTakenTwice,
    /// An agent says of every report that it is of the newest run.
    NewestRunIsStamped,
    /// A coordinator leaves older points undecided.
    NothingIsSuperseded,
    /// The store lets a second outcome replace the first one.
    OutcomesAreReplaced,
    /// The outcome is written before the manifest.
    OutcomeComesFirst,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::StoredBeforeDurable,
        Self::AnswersBeforePinning,
        Self::EarlierPinsAreUsed,
        Self::OrphansStay,
        Self::LeaseIsIgnored,
        Self::SessionsAreMixed,
        Self::NothingIsSentAgain,
        Self::RepeatsAreTakenTwice,
        Self::NewestRunIsStamped,
        Self::NothingIsSuperseded,
        Self::OutcomesAreReplaced,
        Self::OutcomeComesFirst,
    ];
}
