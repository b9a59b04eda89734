//! KRaft's control records: who leads, who votes, and where a snapshot begins and ends.
//!
//! They stand in control batches of the metadata log and its snapshots, under the keys of
//! [`ControlType`](crate::batch::ControlType). Each value begins with its version as an int16; version 0 is the only
//! one that Kafka writes up to 4.4 (`ControlRecordUtils`).

use crate::{Uuid, wire::message};

message! {
    /// LEADER_CHANGE: the first record of each epoch.
    #[derive(Debug)]
    LeaderChange [0..=1, flexible 0] {
        /// The new leader.
        leader_id: i32;
        /// All voters.
        voters: Vec<LeaderVoter>;
        /// Those that voted for it.
        granting_voters: Vec<LeaderVoter>;
    }
}

message! {
    /// A voter in a [`LeaderChange`].
    #[derive(Debug)]
    LeaderVoter {
        /// The voter's node id.
        voter_id: i32;
        /// The `directory.id` of its metadata directory.
        voter_directory_id: Uuid, since 1;
    }
}

message! {
    /// SNAPSHOT_HEADER: the first record of a snapshot.
    #[derive(Debug)]
    SnapshotHeader [0..=0, flexible 0] {
        /// Append time of the last record that the snapshot covers, in milliseconds.
        last_contained_log_timestamp: i64;
    }
}

message! {
    /// SNAPSHOT_FOOTER: the last record of a snapshot.
    #[derive(Debug)]
    SnapshotFooter [0..=0, flexible 0] {}
}

message! {
    /// KRAFT_VERSION: the version of the quorum's protocol.
    #[derive(Debug)]
    KraftVersionRecord [0..=0, flexible 0] {
        /// 0 static quorum, 1 dynamic quorum (KIP-853).
        kraft_version: i16;
    }
}

message! {
    /// KRAFT_VOTERS: the voters of a dynamic quorum.
    #[derive(Debug)]
    VotersRecord [0..=0, flexible 0] {
        /// The voters.
        voters: Vec<Voter>;
    }
}

message! {
    /// A voter of a dynamic quorum: known by node id and directory id together.
    #[derive(Debug)]
    Voter {
        /// Its node id.
        voter_id: i32;
        /// The `directory.id` of its metadata directory.
        voter_directory_id: Uuid;
        /// Where it listens.
        endpoints: Vec<VoterEndpoint>;
        /// The versions of the quorum's protocol that it supports.
        kraft_version_feature: KraftVersionRange;
    }
}

message! {
    /// A listener of a voter.
    #[derive(Debug)]
    VoterEndpoint {
        /// The listener's name, one of `controller.listener.names`.
        name: String;
        /// Its host.
        host: String;
        /// Its port.
        port: u16;
    }
}

message! {
    /// A range of `kraft.version`.
    #[derive(Debug)]
    KraftVersionRange {
        /// The lowest level.
        min_supported_version: i16;
        /// The highest level.
        max_supported_version: i16;
    }
}
