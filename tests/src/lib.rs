//! Whole-system tests on real Kafka brokers and real object stores: the harness.
//!
//! In reading order: a [`Cluster`] of real brokers, a [`Workload`](workload::Workload) of real clients whose every
//! acknowledgement goes to a [`Ledger`](ledger::Ledger), what a cluster says of itself ([`State`](state::State)), and
//! the [`audit`] that holds a restored cluster against all of that; a [`Store`](store::Store) that speaks S3. The
//! scenarios are in `tests/scenarios.rs`; shell scripts drive the same through the binary `segvault-rig`.

pub mod appended;
pub mod audit;
pub mod broker_log;
pub mod chaos;
pub mod cluster;
pub mod fleet;
pub mod kills;
pub mod ledger;
pub mod nemesis;
pub mod network;
pub mod reader;
pub mod segvault;
pub mod state;
pub mod store;
pub mod workload;

pub use cluster::Cluster;

/// What the harness returns: its failures end a test, nobody handles them one by one.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What has not come about by then will not. No test fails sooner: machines are busy.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(180);

/// A number that a script gives to a test.
///
/// # Panics
/// If the variable is set to something else.
pub fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}
